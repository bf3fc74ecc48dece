//! Alice's log, and who reads it how.

use bytes::Bytes;
use hn_protocol::log::{Line, PageContext, PageError, Source, VerifiedPage};

use crate::common::{Journal, Page, Publisher, file};
use crate::forge::{Object, signed};

/// Alice with three commits: entries 0–2, 3–4, 5. Her whole log is one page:
///
/// ```text
///   0: presence at 0    1: slice 0–2    2: presence at 3    3: slice 3–4
///   4: presence at 5    5: slice 5      6: presence at 6, the current one
/// ```
pub fn alice() -> Publisher {
    let mut alice = Publisher::new(1);
    alice.commit(vec![file("a"), file("b"), file("c")]);
    alice.commit(vec![file("d"), file("e")]);
    alice.commit(vec![file("f")]);
    alice
}

/// Her whole log as she serves it.
pub fn whole(publisher: &Publisher) -> Page {
    publisher.log.page(0, 64)
}

/// A follower who has read all of it.
pub fn follower_of(publisher: &Publisher) -> Journal {
    let mut held = Journal::empty(publisher.identity.did());
    let page = whole(publisher);
    let verified = judge(&held, publisher, &page, Source::Publisher).unwrap();
    held.keep(verified.lines, verified.state);
    held
}

/// What a follower who holds `held` thinks of `page`, a moment after the publisher's last commit.
pub fn judge(
    held: &Journal,
    publisher: &Publisher,
    page: &Page,
    source: Source,
) -> Result<VerifiedPage, PageError> {
    let context = PageContext {
        now: publisher.now,
        source,
        reaches_head: page.reaches_head,
    };
    held.state.follow(&page.lines, context, held)
}

/// Follows alice's log from nothing, with line `at` replaced by `lie`; gives the code of the refusal.
pub fn lie_at(at: usize, lie: impl FnOnce(&Publisher, &Bytes) -> Bytes) -> &'static str {
    let alice = alice();
    let mut page = whole(&alice);
    page.lines[at] = lie(&alice, &page.lines[at]);
    code(&Journal::empty(alice.identity.did()), &alice, &page)
}

/// The same, where alice herself signs line `at` after `edit`: what only she can do.
pub fn alice_signs(at: usize, edit: impl FnOnce(&mut Object)) -> &'static str {
    lie_at(at, |alice, line| signed(line, &alice.identity, edit))
}

/// The code with which a page from the publisher's own node is refused.
pub fn code(held: &Journal, publisher: &Publisher, page: &Page) -> &'static str {
    let verdict = judge(held, publisher, page, Source::Publisher);
    verdict.expect_err("the page is refused").code()
}

/// A page made by hand that says it reaches the head.
pub fn page_of<'a>(lines: impl IntoIterator<Item = &'a Bytes>) -> Page {
    Page {
        lines: lines.into_iter().cloned().collect(),
        reaches_head: true,
    }
}

/// What was kept, as bytes.
pub fn bytes_of(lines: &[Line]) -> Vec<Bytes> {
    lines.iter().map(|line| line.bytes().clone()).collect()
}
