//! `spec/vectors/refuse.json`: what a verifier must refuse, with the code that it gets here.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hn_protocol::canonical;
use hn_protocol::document::Revocation;
use hn_protocol::log::{Line, PageContext, Source};
use hn_protocol::sign::Signed;
use hn_protocol::time::Timestamp;
use serde_json::{Value, json};

use crate::common::{DAY_MS, Journal, Page, Publisher, START, file, identity};
use crate::examples::alice;
use crate::forge::{Object, digest_of, edited, reroot, set, signed, with_id};
use crate::{page, promised};

/// Name, bytes: each is refused on its own.
fn documents() -> Vec<(&'static str, Bytes)> {
    let log = alice().log;
    let bytes = |at: usize| log.lines[at].bytes().clone();
    let (presence, slice) = (bytes(0), bytes(3));
    let text = String::from_utf8(bytes(1).to_vec()).unwrap();
    let again = |insert: &str| Bytes::from(format!("{{{insert},{}", &text[1..]));
    let own = |edit: &dyn Fn(&mut Object)| signed(&slice, &identity(1), edit);
    let first = |edit: &dyn Fn(&mut Object)| {
        signed(&bytes(1), &identity(1), |o| {
            edit(o);
            reroot(o);
        })
    };
    let hers = |edit: &dyn Fn(&mut Object)| signed(&presence, &identity(1), edit);
    let put = |member: &'static str, value: Value| {
        move |o: &mut Object| {
            o.insert(member.into(), value.clone());
        }
    };
    let entry = |member: &'static str, value: Value| {
        first(&move |o: &mut Object| o["entries"][1][member] = value.clone())
    };
    let zeros = "00".repeat(32);
    vec![
        ("no JSON at all", Bytes::from("index@2")),
        ("JSON and more", Bytes::from(format!("{text} {{}}"))),
        ("no object", Bytes::from(format!("[{text}]"))),
        ("NaN", again("\"x\":NaN")),
        ("a duplicate key", again("\"epoch\":0")),
        (
            "a duplicate key further in",
            again("\"x\":{\"a\":1,\"a\":1}"),
        ),
        ("an integer above 2^53", again("\"x\":9007199254740993")),
        ("the same as a fraction", again("\"x\":9007199254740994.0")),
        ("a number that no double holds", again("\"x\":1e400")),
        ("a lone surrogate", again("\"x\":\"\\ud800\"")),
        (
            "invalid UTF-8",
            [&text.as_bytes()[..text.len() - 1], b",\"x\":\"\xff\"}"]
                .concat()
                .into(),
        ),
        (
            "depth 33",
            again(&format!("\"x\":{}{}", "[".repeat(32), "]".repeat(32))),
        ),
        (
            "depth 1,000",
            again(&format!("\"x\":{}{}", "[".repeat(999), "]".repeat(999))),
        ),
        ("no type", edited(&slice, |o| drop(o.remove("type")))),
        (
            "shard_index@1 of the older system",
            own(&put("type", json!("shard_index@1"))),
        ),
        (
            "no signature",
            edited(&slice, |o| drop(o.remove("signature"))),
        ),
        (
            "two kinds of signature",
            edited(&slice, set("signatures", json!({}))),
        ),
        (
            "a signature with padding",
            edited(&slice, |o| {
                let padded = format!("{}==", o["signature"].as_str().unwrap());
                o.insert("signature".into(), padded.into());
            }),
        ),
        (
            "the signature of another document",
            edited(&slice, |o| {
                o.insert(
                    "signature".into(),
                    crate::forge::object(&bytes(1))["signature"].clone(),
                );
            }),
        ),
        (
            "the signature of another DID",
            signed(&slice, &identity(9), |_| {}),
        ),
        (
            "the id of another document",
            edited(&slice, |o| {
                o.insert(
                    "id".into(),
                    format!("index:{}", digest_of(&bytes(1))).into(),
                );
            }),
        ),
        (
            "an id that names another type",
            edited(&slice, |o| {
                o.insert(
                    "id".into(),
                    format!("presence:{}", digest_of(&slice)).into(),
                );
            }),
        ),
        ("no id", edited(&slice, |o| drop(o.remove("id")))),
        (
            "an altered entry",
            edited(&slice, |o| o["entries"][0]["size"] = 1.into()),
        ),
        (
            "an altered entry, roots and id made to fit",
            with_id(&slice, |o| {
                o["entries"][0]["size"] = 1.into();
                reroot(o);
            }),
        ),
        (
            "an altered log_root, id made to fit",
            with_id(&slice, set("log_root", zeros.as_str())),
        ),
        (
            "an altered cursor, id made to fit",
            with_id(&slice, set("cursor", "2")),
        ),
        (
            "an altered prev, id made to fit",
            with_id(&slice, set("prev", zeros.as_str())),
        ),
        ("an unknown member taken out, id made to fit", {
            let more = own(&put("x", json!(1)));
            with_id(&more, |o| drop(o.remove("x")))
        }),
        (
            "signed: entries in another order",
            first(&|o| o["entries"].as_array_mut().unwrap().swap(0, 1)),
        ),
        ("signed: a skipped seq", entry("seq", json!(2))),
        ("signed: a repeated seq", entry("seq", json!(0))),
        (
            "signed: merkle_root of other entries",
            own(&put("merkle_root", json!(zeros))),
        ),
        ("signed: no entries", own(&put("entries", json!([])))),
        (
            "signed: next_cursor beyond the entries",
            own(&put("next_cursor", json!("5"))),
        ),
        (
            "signed: log_size beyond the entries",
            own(&put("log_size", json!(5))),
        ),
        (
            "signed: a cursor with a leading zero",
            own(&put("cursor", json!("03"))),
        ),
        (
            "signed: a cursor as a number",
            own(&put("cursor", json!(3))),
        ),
        (
            "signed: a digest in upper case",
            own(&put("presence_digest", json!("AB".repeat(32)))),
        ),
        (
            "signed: a time without milliseconds",
            own(&put("generated_at", json!("2026-01-01T00:00:02Z"))),
        ),
        (
            "signed: a time with an offset",
            own(&put("generated_at", json!("2026-01-01T01:00:02.000+01:00"))),
        ),
        (
            "signed: a first slice with prev",
            first(&put("prev", json!(zeros))),
        ),
        (
            "signed: a later slice without prev",
            own(&|o| drop(o.remove("prev"))),
        ),
        (
            "signed: a path that climbs",
            entry("path", json!("notes/../../x")),
        ),
        (
            "signed: an absolute path",
            entry("path", json!("/etc/passwd")),
        ),
        (
            "signed: a path with a backslash",
            entry("path", json!("a\\b")),
        ),
        (
            "signed: a path with a control character",
            entry("path", json!("a\u{0}b")),
        ),
        ("signed: an empty path", entry("path", json!(""))),
        ("signed: a path twice", entry("path", json!("notes/a.txt"))),
        (
            "signed: an entry that replaces itself",
            entry("replaces", json!(1)),
        ),
        (
            "signed: an entry type with a space",
            entry("type", json!("a file")),
        ),
        ("signed: an empty entry type", entry("type", json!(""))),
        ("signed: an empty tag key", entry("tags", json!({"": "x"}))),
        (
            "signed: a tag that is no string",
            entry("tags", json!({"x": 1})),
        ),
        ("signed: a negative size", entry("size", json!(-1))),
        (
            "signed: a publisher that is a did:key",
            own(&|o| {
                let key = o["publisher"]
                    .as_str()
                    .unwrap()
                    .replace("did:hn:", "did:key:");
                o.insert("publisher".into(), key.into());
            }),
        ),
        (
            "signed: a presence that expires when it is issued",
            hers(&|o| {
                let issued = o["issued_at"].clone();
                o.insert("expires_at".into(), issued);
            }),
        ),
        (
            "signed: a presence without endpoints",
            hers(&|o| drop(o.remove("endpoints"))),
        ),
        (
            "signed: a presence without sequence",
            hers(&|o| drop(o.remove("sequence"))),
        ),
    ]
}

/// A page, and what is held before it.
struct Lie {
    name: &'static str,
    now: Timestamp,
    source: Source,
    held: Vec<Bytes>,
    page: Page,
}

/// Pages of alice's log whose every line verifies on its own, and which are refused whole.
fn pages() -> Vec<Lie> {
    let mut alice = alice();
    let whole = alice.log.page(0, 64);
    let lines = &whole.lines;
    let now = alice.now;
    alice.commit(vec![]);
    let newer = alice.log.page(0, 64);
    let own = |at: usize, edit: &dyn Fn(&mut Object)| signed(&lines[at], &identity(1), edit);
    let put = |member: &'static str, value: Value| {
        move |o: &mut Object| {
            o.insert(member.into(), value.clone());
        }
    };
    let with = |at: usize, line: Bytes| {
        let mut page = whole.clone();
        page.lines[at] = line;
        page
    };
    let of = |lines: Vec<Bytes>| Page {
        lines,
        reaches_head: true,
    };
    let lie = |name, page| Lie {
        name,
        now,
        source: Source::Publisher,
        held: vec![],
        page,
    };
    let after = |name, held: &Page, page| Lie {
        held: held.lines.clone(),
        ..lie(name, page)
    };
    let zeros = json!("00".repeat(32));
    let word = |n: u8| {
        let did = identity(n).did();
        let word = Signed::create(&Revocation { did, at: START }, &identity(n)).unwrap();
        word.bytes().clone()
    };
    let mut bob = Publisher::new(2);
    bob.commit(vec![file("x")]);
    let mut many = Publisher::new(1);
    many.commit((0..513).map(|i| file(&i.to_string())).collect());
    let mut many = many.log.page(0, 64);
    many.lines.remove(1);
    let ahead = START.0 + DAY_MS;
    vec![
        lie("the log of another publisher", bob.log.page(0, 64)),
        lie("the revocation of another DID at the end", with(4, word(2))),
        lie(
            "a revocation in her name that another signed",
            with(
                4,
                signed(&word(2), &identity(2), put("did", json!(identity(1).did()))),
            ),
        ),
        lie("a revocation before the end", {
            let mut page = whole.clone();
            page.lines.insert(2, word(1));
            page
        }),
        lie("another epoch", with(1, own(1, &put("epoch", json!(1))))),
        lie("a slice left out", many),
        lie(
            "a prev that chains to another slice",
            with(3, own(3, &put("prev", zeros.clone()))),
        ),
        lie(
            "a log_root that does not follow",
            with(3, own(3, &put("log_root", zeros.clone()))),
        ),
        lie("a presence that was never shown", of(lines[1..].to_vec())),
        lie(
            "a presence with another root",
            with(4, own(4, &put("merkle_root", zeros.clone()))),
        ),
        lie(
            "a presence inside a slice",
            with(4, own(4, &put("log_size", json!(2)))),
        ),
        lie(
            "a presence beyond the log",
            with(4, own(4, &put("log_size", json!(9)))),
        ),
        lie("no current presence at the head", of(lines[..4].to_vec())),
        lie(
            "a presence of another day",
            with(4, own(4, &put("sequence", json!(ahead)))),
        ),
        Lie {
            now: Timestamp(ahead + 4_000),
            ..lie("a presence that has expired", whole.clone())
        },
        after(
            "another slice where one is held",
            &whole,
            with(1, own(1, &put("x", json!(1)))),
        ),
        after(
            "one sequence, two presences",
            &whole,
            of(vec![own(4, &put("x", json!(1)))]),
        ),
        after(
            "a lower sequence than before",
            &newer,
            of(vec![lines[4].clone()]),
        ),
    ]
}

#[test]
fn what_must_be_refused_is_refused_with_its_code() {
    let documents = documents().into_iter().map(|(name, bytes)| {
        let code = Line::verify(bytes.clone()).expect_err(name).code();
        match std::str::from_utf8(&bytes) {
            Ok(text) => json!({"name": name, "code": code, "utf8": text}),
            Err(_) => json!({"name": name, "code": code, "base64": STANDARD.encode(&bytes)}),
        }
    });
    let documents: Vec<Value> = documents.collect();
    let did = identity(1).did();
    let pages = pages().into_iter().map(|lie| {
        let judge = |held: &Journal, page: &Page| {
            let context = PageContext {
                now: lie.now,
                source: lie.source,
                reaches_head: page.reaches_head,
            };
            held.state.follow(&page.lines, context, held)
        };
        let mut held = Journal::empty(did);
        if !lie.held.is_empty() {
            let page = Page {
                lines: lie.held.clone(),
                reaches_head: true,
            };
            let verified = judge(&held, &page).unwrap();
            held.keep(verified.lines, verified.state);
        }
        let code = judge(&held, &lie.page).expect_err(lie.name).code();
        let text = |lines: &[Bytes]| -> Vec<String> {
            lines
                .iter()
                .map(|l| String::from_utf8(l.to_vec()).unwrap())
                .collect()
        };
        json!({
            "name": lie.name, "code": code, "publisher": did, "now": lie.now,
            "source": "publisher", "reaches_head": lie.page.reaches_head,
            "held": text(&lie.held), "lines": text(&lie.page.lines),
        })
    });
    let pages: Vec<Value> = pages.collect();
    let explained = page("index@2.md");
    for case in documents.iter().chain(&pages) {
        let code = case["code"].as_str().unwrap();
        assert!(explained.contains(&format!("`{code}`")), "{code}");
    }
    let made = json!({
        "about": "documents and pages that must be refused, each with the code of spec/index@2.md",
        "documents": documents,
        "pages": pages,
    });
    assert!(canonical::to_vec(&made).is_ok());
    promised(
        "vectors/refuse.json",
        &format!("{}\n", serde_json::to_string_pretty(&made).unwrap()),
    );
}
