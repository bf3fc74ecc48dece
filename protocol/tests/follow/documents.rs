//! Single documents that are not believed, and why: nothing of a document counts until its proof holds.
//! The limits of every field are in `tests/spec/limits.rs`, against the numbers of the spec pages.

use bytes::Bytes;
use hn_protocol::canonical::MAX_INTEGER;
use hn_protocol::document::{Presence, RelayBlock, Revocation, Slice};
use hn_protocol::log::{CommitRequest, Line};
use hn_protocol::sign::{DocumentError, MAX_DOCUMENT, Signed, Unverified};
use hn_protocol::time::Timestamp;
use serde_json::json;

use crate::common::{file, identity};
use crate::forge::{Object, edited, object, reroot, set, signed, with_id};
use crate::scene::{alice, whole};

/// Alice's second slice: entries 3 and 4, with a `prev`.
fn slice() -> Bytes {
    whole(&alice()).lines[3].clone()
}

fn refused(lie: Bytes) -> &'static str {
    Line::verify(lie).unwrap_err().code()
}

/// What everybody can do to alice's slice: change it and compute its id anew. Only the signature tells.
fn forged(edit: impl FnOnce(&mut Object)) -> &'static str {
    refused(with_id(&slice(), edit))
}

#[test]
fn a_wrong_signature_is_refused() {
    let other = object(&whole(&alice()).lines[1])["signature"].clone();
    let lie = edited(&slice(), set("signature", other));
    assert_eq!(refused(lie), "wrong_signature");
}

#[test]
fn a_right_signature_of_another_did_is_refused() {
    let lie = signed(&slice(), &identity(9), |_| {});
    assert_eq!(refused(lie), "wrong_signature");
}

#[test]
fn an_altered_entry_is_refused() {
    let alter = |o: &mut Object| {
        o["entries"][0]["path"] = "forged".into();
        reroot(o);
    };
    assert_eq!(forged(alter), "wrong_signature");
    assert_eq!(refused(edited(&slice(), alter)), "wrong_id");
    let only = |o: &mut Object| o["entries"][0]["path"] = "forged".into();
    let lie = signed(&slice(), &identity(1), only);
    assert_eq!(
        refused(lie),
        "malformed_document",
        "merkle_root is of the entries as they were"
    );
}

#[test]
fn an_altered_order_is_refused() {
    let swap = |o: &mut Object| {
        if let Some(entries) = o["entries"].as_array_mut() {
            entries.swap(0, 1);
        }
        reroot(o);
    };
    assert_eq!(forged(swap), "wrong_signature");
    let lie = signed(&slice(), &identity(1), swap);
    assert_eq!(refused(lie), "malformed_document", "the seqs do not run on");
}

#[test]
fn an_altered_root_cursor_or_prev_is_refused() {
    let digest = "00".repeat(32);
    for member in ["merkle_root", "log_root", "prev", "presence_digest"] {
        assert_eq!(
            forged(set(member, digest.as_str())),
            "wrong_signature",
            "{member}"
        );
        let lie = edited(&slice(), set(member, digest.as_str()));
        assert_eq!(refused(lie), "wrong_id", "{member}");
    }
    for member in ["cursor", "next_cursor"] {
        assert_eq!(forged(set(member, "7")), "wrong_signature", "{member}");
    }
    assert_eq!(forged(set("log_size", 6)), "wrong_signature");
}

#[test]
fn a_slice_whose_numbers_do_not_agree_is_refused_though_the_publisher_signed_it() {
    let sign = |edit: &dyn Fn(&mut Object)| refused(signed(&slice(), &identity(1), edit));
    let put = |member: &'static str, value: serde_json::Value| {
        sign(&|o: &mut Object| {
            o.insert(member.into(), value.clone());
        })
    };
    for (member, value) in [
        ("cursor", json!("2")),
        ("next_cursor", json!("6")),
        ("log_size", json!(6)),
        ("merkle_root", json!("00".repeat(32))),
        ("entries", json!([])),
    ] {
        assert_eq!(put(member, value), "malformed_document", "{member}");
    }
    let skipped = |o: &mut Object| {
        o["entries"][1]["seq"] = 5.into();
        reroot(o);
    };
    assert_eq!(sign(&skipped), "malformed_document", "a skipped seq");
    let repeated = |o: &mut Object| {
        o["entries"][1]["seq"] = 3.into();
        reroot(o);
    };
    assert_eq!(sign(&repeated), "malformed_document", "a repeated seq");
    let both = |o: &mut Object| {
        o.insert("next_cursor".into(), "6".into());
        o.insert("log_size".into(), 6.into());
    };
    assert_eq!(
        sign(&both),
        "malformed_document",
        "the log ends beyond the entries"
    );
}

#[test]
fn only_the_first_slice_has_no_prev() {
    let lines = whole(&alice()).lines;
    let without = |o: &mut Object| {
        o.remove("prev");
    };
    let lie = signed(&lines[3], &identity(1), without);
    assert_eq!(refused(lie), "malformed_document");
    let lie = signed(&lines[1], &identity(1), set("prev", "00".repeat(32)));
    assert_eq!(refused(lie), "malformed_document");
}

#[test]
fn a_path_that_stands_twice_must_say_what_it_replaces() {
    let twice = |o: &mut Object| {
        o["entries"][1]["path"] = o["entries"][0]["path"].clone();
        reroot(o);
    };
    let lie = signed(&slice(), &identity(1), twice);
    assert_eq!(refused(lie), "malformed_document");
    for member in ["replaces", "retracts"] {
        let told = signed(&slice(), &identity(1), |o| {
            o["entries"][1][member] = 3.into();
            twice(o);
        });
        assert!(Line::verify(told).is_ok(), "{member}");
        let later = signed(&slice(), &identity(1), |o| {
            o["entries"][1][member] = 4.into();
            reroot(o);
        });
        assert_eq!(refused(later), "malformed_document", "{member} itself");
    }
}

#[test]
fn paths_that_climb_or_are_absolute_are_refused_though_the_publisher_signed_them() {
    for path in [
        "../x",
        "/etc/passwd",
        "a/../../b",
        "a\\..\\b",
        "",
        "a//b",
        "a\u{0}b",
        "./a",
    ] {
        let lie = signed(&slice(), &identity(1), |o| {
            o["entries"][0]["path"] = path.into();
            reroot(o);
        });
        assert_eq!(refused(lie), "bad_path", "{path:?}");
    }
}

#[test]
fn a_document_is_only_what_its_type_says() {
    let slice = slice();
    assert!(matches!(
        Signed::<Presence>::verify(slice.clone()),
        Err(DocumentError::Type { .. })
    ));
    assert!(Signed::<Slice>::verify(slice.clone()).is_ok());
    for kind in [
        json!(["index@2"]),
        json!("index"),
        json!("shard_index@1"),
        json!(null),
    ] {
        let other = edited(&slice, set("type", kind.clone()));
        assert_eq!(refused(other), "wrong_type", "{kind}");
    }
}

#[test]
fn the_signature_stands_alone_and_in_one_form() {
    let slice = slice();
    for edit in [
        set("signature", json!({})),
        set("signature", json!("ed25519:")),
        set("signature", json!("ED25519:AAAA")),
        set("signatures", json!({})),
    ] {
        assert_eq!(refused(edited(&slice, edit)), "bad_signature_form");
    }
    let none = edited(&slice, |o| {
        o.remove("signature");
    });
    assert_eq!(refused(none), "bad_signature_form");
    // The last digit of 64 bytes in base64 has four spare bits: a second spelling of one signature.
    let spare = edited(&slice, |o| {
        let mut text = o["signature"].as_str().unwrap().to_owned();
        let last = text.pop().unwrap();
        let next = char::from(last as u8 + 1);
        text.push(next);
        o.insert("signature".into(), text.into());
    });
    assert_eq!(refused(spare), "bad_signature_form");
}

#[test]
fn an_id_of_another_form_or_document_is_refused() {
    let lines = whole(&alice()).lines;
    let other = object(&lines[1])["id"].clone();
    let own = object(&lines[3])["id"].as_str().unwrap().to_owned();
    for id in [
        other,
        json!(own.replace("index:", "presence:")),
        json!(own.to_uppercase()),
        json!(null),
    ] {
        assert_eq!(
            refused(edited(&slice(), set("id", id.clone()))),
            "wrong_id",
            "{id}"
        );
    }
}

#[test]
fn whoever_signs_must_be_whom_the_document_names() {
    let revocation = Revocation {
        did: identity(1).did(),
        at: Timestamp(0),
    };
    assert!(matches!(
        Signed::create(&revocation, &identity(9)),
        Err(DocumentError::Signature(_))
    ));
    let own = Signed::create(&revocation, &identity(1)).unwrap();
    let again = Signed::<Revocation>::verify(own.bytes().clone()).unwrap();
    assert_eq!(again.digest(), own.digest());
}

#[test]
fn what_is_too_large_for_any_document_is_not_even_parsed() {
    let junk = |n: usize| Unverified::parse(Bytes::from(vec![b'['; n])).unwrap_err();
    assert_eq!(junk(MAX_DOCUMENT + 1).code(), "document_too_large");
    assert_eq!(junk(MAX_DOCUMENT).code(), "nested_too_deep");
}

#[test]
fn nobody_signs_what_others_would_refuse() {
    let mut alice = alice();
    let relay = RelayBlock {
        did: identity(2).did(),
        url: "u".repeat(2000),
        expires_at: None,
    };
    let presence = whole(&alice).lines[6].clone();
    let mut presence = Signed::<Presence>::verify(presence).unwrap().into_inner();
    presence.relays = Some(vec![relay; 16]);
    let refused = Signed::create(&presence, &alice.identity).unwrap_err();
    assert_eq!(refused.code(), "document_too_large");

    presence.relays = None;
    presence.sequence = MAX_INTEGER + 1;
    let refused = Signed::create(&presence, &alice.identity).unwrap_err();
    assert_eq!(refused.code(), "malformed_document");

    // JCS would round the number, and the signature would be over another one.
    let mut huge = file("huge");
    huge.size = MAX_INTEGER + 1;
    let request = CommitRequest {
        entries: vec![huge],
        facts: &alice.facts,
        now: alice.now,
    };
    let refused = alice
        .log
        .state
        .commit(request, &alice.identity)
        .unwrap_err();
    assert_eq!(refused.code(), "malformed_document");
    alice.commit(vec![file("g")]);
    assert_eq!(alice.log.state.size(), 7);
}

#[test]
fn what_is_not_an_object_is_no_document() {
    for text in ["[]", "1", "null", "\"index@2\""] {
        let error = Unverified::parse(Bytes::from(text)).unwrap_err();
        assert_eq!(error.code(), "malformed_document", "{text}");
    }
}
