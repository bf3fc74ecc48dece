//! How eve, or a publisher gone bad, makes documents that are well-formed and well-signed, and wrong.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hn_protocol::did::Identity;
use hn_protocol::digest::Digest;
use hn_protocol::log::{Line, PageContext, PageError, Source, VerifiedPage};
use hn_protocol::{canonical, merkle};
use serde_json::{Map, Value};

use crate::common::{Journal, Page, Publisher, file};

/// The members of a document.
pub type Object = Map<String, Value>;

/// The edit that gives member `key` this value.
pub fn set(key: &'static str, value: impl Into<Value>) -> impl FnOnce(&mut Object) {
    move |object| {
        object.insert(key.into(), value.into());
    }
}

/// The digest by which other documents name this line.
pub fn digest_of(bytes: &Bytes) -> String {
    let id = object(bytes)["id"].as_str().unwrap().to_owned();
    id.split_once(':').unwrap().1.to_owned()
}

/// The members of a line.
pub fn object(bytes: &Bytes) -> Object {
    serde_json::from_slice(bytes).unwrap()
}

/// `bytes` after `edit`, everything else as it was: id and signature no longer fit.
pub fn edited(bytes: &Bytes, edit: impl FnOnce(&mut Object)) -> Bytes {
    let mut object = object(bytes);
    edit(&mut object);
    Bytes::from(canonical::to_vec(&Value::Object(object)).unwrap())
}

/// `bytes` after `edit`, with the id that it then has; the signature no longer fits.
pub fn with_id(bytes: &Bytes, edit: impl FnOnce(&mut Object)) -> Bytes {
    edited(bytes, |object| {
        let signature = object.remove("signature").unwrap();
        object.remove("id");
        edit(object);
        let digest = Digest::of(&canonical::to_vec(object).unwrap());
        let name = object["type"].as_str().unwrap().split('@').next().unwrap();
        let id = format!("{name}:{digest}");
        object.insert("id".into(), id.into());
        object.insert("signature".into(), signature);
    })
}

/// `bytes` after `edit`, with a right id and a right signature by `signer`.
pub fn signed(bytes: &Bytes, signer: &Identity, edit: impl FnOnce(&mut Object)) -> Bytes {
    edited(&with_id(bytes, edit), |object| {
        object.remove("signature");
        let signature = signer.sign(&canonical::to_vec(object).unwrap());
        let text = format!("ed25519:{}", URL_SAFE_NO_PAD.encode(signature));
        object.insert("signature".into(), text.into());
    })
}

/// Makes `merkle_root` that of the entries, whatever they are.
pub fn reroot(object: &mut Object) {
    let entries = object["entries"].as_array().unwrap();
    let leaves: Vec<Digest> = entries
        .iter()
        .map(|entry| merkle::leaf_hash(&canonical::to_vec(entry).unwrap()))
        .collect();
    object.insert(
        "merkle_root".into(),
        merkle::root(&leaves).to_string().into(),
    );
}

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
