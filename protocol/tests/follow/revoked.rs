//! A page that ends with its publisher's revocation, and what is believed once that is held (V3–V5).

use bytes::Bytes;
use hn_protocol::document::Revocation;
use hn_protocol::log::{Line, Source, VerifiedPage, last_word};
use hn_protocol::sign::Signed;
use proptest::prelude::*;

use crate::common::{Journal, Page, Publisher, START, file, identity};
use crate::forge::{set, signed, with_id};
use crate::scene::{alice, bytes_of, code, follower_of, judge, page_of, whole};

/// The last word of the identity no. `n`.
fn revocation(n: u8) -> Bytes {
    let identity = identity(n);
    let word = Revocation {
        did: identity.did(),
        at: START,
    };
    Signed::create(&word, &identity).unwrap().bytes().clone()
}

/// The page as a holder of the revocation serves it: `last` in place of the current presence.
fn ended_by(mut page: Page, last: Bytes) -> Page {
    page.lines.pop();
    page.lines.push(last);
    page
}

fn read(held: &Journal, publisher: &Publisher, page: &Page, source: Source) -> VerifiedPage {
    judge(held, publisher, page, source).unwrap()
}

#[test]
fn a_page_that_ends_with_the_revocation_is_history_up_to_it() {
    let alice = alice();
    let page = ended_by(whole(&alice), revocation(1));
    let nothing = Journal::empty(alice.identity.did());
    for source in [Source::Publisher, Source::Holder] {
        let read = read(&nothing, &alice, &page, source);
        assert_eq!(bytes_of(&read.lines), page.lines[..6]);
        let word = read.revocation.expect("the last word");
        assert_eq!(*word.bytes(), revocation(1));
        assert_eq!(read.state.size(), alice.log.state.size());
        assert_eq!(read.state.root(), alice.log.state.root());
        assert!(!read.behind);
    }
    assert_eq!(
        last_word(&page.lines, &alice.identity.did()).map(|w| w.bytes().clone()),
        Some(revocation(1))
    );
}

#[test]
fn who_holds_the_log_learns_of_the_revocation_by_one_line() {
    let alice = alice();
    let held = follower_of(&alice);
    let read = read(&held, &alice, &page_of([&revocation(1)]), Source::Publisher);
    assert!(read.lines.is_empty() && read.revocation.is_some());
    assert_eq!(read.state, held.state);
    let none = Journal::empty(alice.identity.did());
    let read = judge(&none, &alice, &page_of([&revocation(1)]), Source::Holder).unwrap();
    assert_eq!(read.state, none.state);
}

#[test]
fn a_revocation_has_no_expiry_and_no_clock() {
    let mut alice = alice();
    let page = ended_by(whole(&alice), revocation(1));
    alice.now.0 = 0;
    let ahead = judge(
        &Journal::empty(alice.identity.did()),
        &alice,
        &page,
        Source::Publisher,
    );
    assert_eq!(
        ahead.unwrap_err().code(),
        "ahead_of_clock",
        "the slices are"
    );
    let held = follower_of(&self::alice());
    alice.now.0 = u64::MAX / 2;
    assert!(judge(&held, &alice, &page, Source::Publisher).is_ok());
}

#[test]
fn the_revocation_of_somebody_else_ends_no_log() {
    let alice = alice();
    let held = follower_of(&alice);
    for before in [0, 7] {
        let mut lines = whole(&alice).lines;
        lines.truncate(before);
        lines.push(revocation(2));
        assert_eq!(code(&held, &alice, &page_of(&lines)), "wrong_publisher");
        assert!(last_word(&lines, &alice.identity.did()).is_none());
    }
}

#[test]
fn a_revocation_that_another_signed_is_refused() {
    let alice = alice();
    let held = follower_of(&alice);
    let hers = alice.identity.did().to_string();
    // Bob signs, in alice's name; and a word of alice's that was changed after.
    let by_bob = signed(&revocation(2), &identity(2), set("did", hers.clone()));
    let changed = with_id(&revocation(1), set("at", "2026-01-02T00:00:00.000Z"));
    for forged in [by_bob, changed] {
        let page = page_of([&forged]);
        assert_eq!(code(&held, &alice, &page), "wrong_signature");
        assert!(last_word(&page.lines, &alice.identity.did()).is_none());
    }
    let padded = signed(&revocation(1), &identity(1), set("x", "x".repeat(4096)));
    assert_eq!(code(&held, &alice, &page_of([&padded])), "wrong_type");
}

#[test]
fn a_revocation_stands_at_the_end_or_not_at_all() {
    let alice = alice();
    let nothing = Journal::empty(alice.identity.did());
    for at in 0..7 {
        let mut lines = whole(&alice).lines;
        lines.insert(at, revocation(1));
        assert_eq!(code(&nothing, &alice, &page_of(&lines)), "wrong_type");
    }
    let twice = page_of([&revocation(1), &revocation(1)]);
    assert_eq!(code(&nothing, &alice, &twice), "wrong_type");
    assert!(Line::verify(revocation(1)).is_err(), "no journal has it");
}

#[test]
fn a_lie_before_the_revocation_is_refused_and_the_revocation_counts() {
    let mut alice = alice();
    let held = follower_of(&alice);
    let mut thief = alice.clone();
    alice.commit(vec![file("hers")]);
    thief.commit(vec![file("his")]);
    let mut held = held;
    let hers = judge(&held, &alice, &whole(&alice), Source::Publisher).unwrap();
    held.keep(hers.lines, hers.state);
    let page = ended_by(whole(&thief), revocation(1));
    assert_eq!(code(&held, &alice, &page), "fork", "the evidence is whole");
    assert!(last_word(&page.lines, &alice.identity.did()).is_some());
}

#[test]
fn what_the_thief_signs_after_it_is_refused_also_with_the_revocation_behind_it() {
    let mut thief = alice();
    let held = follower_of(&thief);
    thief.commit(vec![file("stolen")]);
    for page in [whole(&thief), ended_by(whole(&thief), revocation(1))] {
        let more = read(&held, &thief, &page, Source::Publisher).after_revocation();
        assert_eq!(more.unwrap_err().code(), "revoked");
    }
    // A presence alone is as new as a slice.
    let mut thief = alice();
    thief.commit(vec![]);
    let more = read(&held, &thief, &whole(&thief), Source::Holder).after_revocation();
    assert_eq!(more.unwrap_err().code(), "revoked");
    // What is held already is no news and no lie.
    let same = read(&held, &alice(), &whole(&alice()), Source::Holder).after_revocation();
    assert_eq!(same.unwrap().state, held.state);
}

proptest! {
    /// V5, over every log, cut, and theft: who holds the revocation holds for ever what was held then.
    #[test]
    fn nothing_moves_a_log_whose_revocation_is_held(
        before in prop::collection::vec(0usize..4, 0..4),
        after in prop::collection::vec(0usize..4, 1..4),
        cursor in 0u64..8,
        limit in 1usize..4,
        shown in any::<bool>(),
        holder in any::<bool>(),
    ) {
        let mut alice = Publisher::new(1);
        let mut count = 0;
        let mut grow = |log: &mut Publisher, entries: usize| {
            let files = (0..entries).map(|_| { count += 1; file(&format!("{count}")) });
            log.commit(files.collect());
        };
        before.iter().for_each(|entries| grow(&mut alice, *entries));
        let page = ended_by(whole(&alice), revocation(1));
        let mut held = Journal::empty(alice.identity.did());
        let source = if holder { Source::Holder } else { Source::Publisher };
        let ended = judge(&held, &alice, &page, source).unwrap();
        prop_assert!(ended.revocation.is_some());
        held.keep(ended.lines, ended.state);
        prop_assert_eq!(held.state.size(), alice.log.state.size());

        let mut thief = alice.clone();
        after.iter().for_each(|entries| grow(&mut thief, *entries));
        let mut more = thief.log.page(cursor.min(held.state.size()), limit);
        if shown && more.reaches_head {
            more = ended_by(more, revocation(1));
        }
        // Whether it is refused by the laws of every log or by V5: nothing is taken in.
        if let Ok(kept) = judge(&held, &thief, &more, source).and_then(VerifiedPage::after_revocation) {
            prop_assert!(kept.lines.is_empty());
            prop_assert_eq!(kept.state.size(), held.state.size());
        }
    }
}
