//! Every limit of a page is the one that the code keeps: the number on the page is accepted, one more is not.
//!
//! A page lists them after `<!-- limits: <type> -->` as rows ``| `name` | number | `code` | … |``.

use std::collections::BTreeMap;

use bytes::Bytes;
use hn_protocol::canonical::MAX_INTEGER;
use hn_protocol::document::{ForkEvidence, KeyShare, PolicyDocument, Revocation};
use hn_protocol::log::{EntryDraft, Line};
use hn_protocol::sign::{DocumentError, Signed, Unverified};
use serde_json::{Value, json};

use crate::common::{START, file, identity};
use crate::examples::{alice, evidence, policy};
use crate::forge::{Object, reroot, signed};
use crate::{key_shares, page};

/// Makes a document that uses a limit to `n`, and is sound otherwise.
type Probe = fn(usize) -> Bytes;

/// The rows of the table behind `mark`: name, number, code.
fn rows(page_name: &str, mark: &str) -> BTreeMap<String, (usize, String)> {
    let text = page(page_name);
    let (_, table) = text
        .split_once(&format!("<!-- limits: {mark} -->\n"))
        .expect("the mark");
    let rows = table.lines().skip(2).take_while(|l| l.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let plain = |cell: &str| cell.trim_matches('`').to_owned();
        let number = cells[2].replace(',', "").parse().expect("a number");
        (plain(cells[1]), (number, plain(cells[3])))
    })
    .collect()
}

fn probe(
    page_name: &str,
    mark: &str,
    probes: &[(&str, Probe)],
    verify: fn(Bytes) -> Result<(), DocumentError>,
) {
    let rows = rows(page_name, mark);
    let names: Vec<&str> = probes.iter().map(|(name, _)| *name).collect();
    for name in rows.keys() {
        assert!(names.contains(&name.as_str()), "no test of {name}");
    }
    for (name, make) in probes {
        let (number, code) = rows
            .get(*name)
            .unwrap_or_else(|| panic!("no row of {name}"));
        let at = verify(make(*number));
        assert!(at.is_ok(), "{name}: {number} is refused: {at:?}");
        let over = verify(make(number + 1)).expect_err(name);
        assert_eq!(over.code(), code, "{name}: {over}");
    }
}

fn line(bytes: Bytes) -> Result<(), DocumentError> {
    Line::verify(bytes).map(drop)
}

/// Alice's first slice after `edit`, signed by her.
fn slice(edit: impl FnOnce(&mut Object)) -> Bytes {
    signed(alice().log.lines[1].bytes(), &identity(1), |o| {
        edit(o);
        reroot(o);
    })
}

/// The same with `value` as member of the first entry.
fn entry(member: &str, value: impl Into<Value>) -> Bytes {
    slice(|o| o["entries"][0][member] = value.into())
}

fn presence(edit: impl FnOnce(&mut Object)) -> Bytes {
    signed(alice().log.lines[0].bytes(), &identity(1), edit)
}

fn pairs(n: usize) -> Value {
    (0..n)
        .map(|i| (format!("k{i}"), json!("v")))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// `document` after padding an unknown member so that it has `n` bytes.
fn padded(make: impl Fn(String) -> Bytes, n: usize) -> Bytes {
    let bare = make(String::new()).len();
    make("x".repeat(n - bare))
}

/// `document` with the integer 2^53 in it written as `n`: JCS itself would round what is above.
fn integer(document: Bytes, n: usize) -> Bytes {
    let text = String::from_utf8(document.to_vec()).unwrap();
    text.replace(&MAX_INTEGER.to_string(), &n.to_string())
        .into()
}

/// Arrays in arrays, so that the document is `n` deep.
fn nested(n: usize) -> Value {
    (2..n).fold(json!([]), |inner, _| json!([inner]))
}

#[test]
fn limits_of_a_slice() {
    let probes: [(&str, Probe); 14] = [
        ("entries", |n| {
            slice(|o| {
                let mut entry = o["entries"][0].clone();
                let entries = (0..n).map(|seq| {
                    entry["seq"] = seq.into();
                    entry["path"] = seq.to_string().into();
                    entry.clone()
                });
                o["entries"] = entries.collect::<Vec<_>>().into();
                o["next_cursor"] = n.to_string().into();
                o["log_size"] = n.into();
            })
        }),
        ("bytes", |n| {
            padded(
                |text| slice(|o| drop(o.insert("pad".into(), text.into()))),
                n,
            )
        }),
        ("depth", |n| {
            slice(|o| drop(o.insert("pad".into(), nested(n))))
        }),
        ("integer", |n| integer(entry("size", MAX_INTEGER), n)),
        ("path", |n| {
            let parts = format!("{}/", "p".repeat(99)).repeat(n / 100);
            entry("path", format!("{parts}{}", "q".repeat(n % 100)))
        }),
        ("path-part", |n| entry("path", "p".repeat(n))),
        ("type", |n| entry("type", "t".repeat(n))),
        ("tags", |n| entry("tags", pairs(n))),
        ("metadata", |n| entry("metadata", pairs(n))),
        ("tag-key", |n| entry("tags", json!({"k".repeat(n): ""}))),
        ("tag-value", |n| entry("tags", json!({"k": "v".repeat(n)}))),
        ("metadata-key", |n| {
            entry("metadata", json!({"k".repeat(n): ""}))
        }),
        ("metadata-value", |n| {
            entry("metadata", json!({"k": "v".repeat(n)}))
        }),
        ("cursor", |n| {
            // The entries of a slice that begins as far out as a log can reach, less the one entry.
            slice(|o| {
                let mut entry = o["entries"][0].clone();
                entry["seq"] = (n - 1).into();
                o.insert("entries".into(), json!([entry]));
                o.insert("cursor".into(), (n - 1).to_string().into());
                o.insert("next_cursor".into(), n.to_string().into());
                o.insert("log_size".into(), MAX_INTEGER.min(n as u64).into());
                let prev = o["presence_digest"].clone();
                o.insert("prev".into(), prev);
            })
        }),
    ];
    probe("index@2.md", "index@2", &probes, line);
}

#[test]
fn limits_of_a_presence() {
    let probes: [(&str, Probe); 9] = [
        ("bytes", |n| {
            padded(
                |text| presence(|o| drop(o.insert("pad".into(), text.into()))),
                n,
            )
        }),
        ("services", |n| {
            presence(|o| o["services"] = vec!["dht"; n].into())
        }),
        ("libp2p", |n| {
            presence(|o| o["endpoints"]["libp2p"] = vec!["/ip4/192.0.2.1"; n].into())
        }),
        ("relays", |n| {
            let relay = json!({"did": identity(2).did(), "url": "https://r.example.net"});
            presence(|o| drop(o.insert("relays".into(), vec![relay; n].into())))
        }),
        ("mcp", |n| {
            presence(|o| o["endpoints"]["mcp"] = "u".repeat(n).into())
        }),
        ("presence", |n| {
            presence(|o| o["endpoints"]["presence"] = "u".repeat(n).into())
        }),
        ("libp2p-address", |n| {
            presence(|o| o["endpoints"]["libp2p"] = json!(["u".repeat(n)]))
        }),
        ("sequence", |n| {
            integer(presence(|o| o["sequence"] = MAX_INTEGER.into()), n)
        }),
        ("log_size", |n| {
            integer(presence(|o| o["log_size"] = MAX_INTEGER.into()), n)
        }),
    ];
    probe("presence@2.md", "presence@2", &probes, line);
}

#[test]
fn limits_of_a_policy() {
    let probes: [(&str, Probe); 2] = [
        ("bytes", |n| {
            let pad = |text: String| {
                signed(policy().bytes(), &identity(1), |o| {
                    drop(o.insert("pad".into(), text.into()))
                })
            };
            padded(pad, n)
        }),
        ("when", |n| {
            signed(policy().bytes(), &identity(1), |o| {
                let condition = format!("caller.known{}", " ".repeat(n - "caller.known".len()));
                let gate = json!({"mode": "allow", "when": condition});
                o["gates"]["federate.read"] = gate;
            })
        }),
    ];
    let verify = |bytes| Signed::<PolicyDocument>::verify(bytes).map(drop);
    probe("policy@1.md", "policy@1", &probes, verify);
}

#[test]
fn limits_of_a_revocation() {
    let did = identity(1).did();
    let revocation = Signed::create(&Revocation { did, at: START }, &identity(1)).unwrap();
    assert!(line(revocation.bytes().clone()).is_err(), "no log has it");
    let probes: [(&str, Probe); 1] = [("bytes", |n| {
        let did = identity(1).did();
        let own = Signed::create(&Revocation { did, at: START }, &identity(1)).unwrap();
        let pad = |text: String| {
            signed(own.bytes(), &identity(1), |o| {
                drop(o.insert("pad".into(), text.into()))
            })
        };
        padded(pad, n)
    })];
    let verify = |bytes| Unverified::parse(bytes)?.verify::<Revocation>().map(drop);
    probe("revocation@1.md", "revocation@1", &probes, verify);
}

#[test]
fn limits_of_a_key_share() {
    fn share(edit: impl FnOnce(&mut Object)) -> Bytes {
        signed(key_shares::example().bytes(), &identity(1), edit)
    }
    fn keeper(url: String) -> Value {
        json!({"did": identity(4).did(), "url": url})
    }
    let probes: [(&str, Probe); 5] = [
        ("bytes", |n| {
            padded(
                |text| share(|o| drop(o.insert("pad".into(), text.into()))),
                n,
            )
        }),
        ("threshold", |n| share(|o| o["threshold"] = n.into())),
        ("index", |n| share(|o| o["index"] = n.into())),
        ("keepers", |n| {
            let one = keeper("https://k.example".into());
            share(|o| o["keepers"] = vec![one; n].into())
        }),
        ("url", |n| {
            let host = "https://k.example/";
            let url = format!("{host}{}", "p".repeat(n - host.len()));
            share(|o| o["keepers"] = json!([keeper(url)]))
        }),
    ];
    let verify = |bytes| Signed::<KeyShare>::verify(bytes).map(drop);
    probe("key_share@1.md", "key_share@1", &probes, verify);
}

#[test]
fn limits_of_an_evidence() {
    let probes: [(&str, Probe); 1] = [("bytes", |n| {
        let own = evidence();
        let pad = |text: String| {
            signed(own.bytes(), &identity(2), |o| {
                drop(o.insert("pad".into(), text.into()))
            })
        };
        padded(pad, n)
    })];
    let verify = |bytes| Signed::<ForkEvidence>::verify(bytes).map(drop);
    probe("fork_evidence@1.md", "fork_evidence@1", &probes, verify);
}

/// Nobody signs what others would refuse; a commit that is too much for one slice becomes several.
#[test]
fn a_commit_keeps_the_limits() {
    let mut alice = alice();
    let before = alice.log.state.size();
    let long = |i: usize| EntryDraft {
        metadata: (0..32)
            .map(|k| (format!("k{k}"), "v".repeat(1024)))
            .collect(),
        ..file(&format!("long/{i}"))
    };
    alice.commit((0..100).map(long).collect());
    assert_eq!(alice.log.state.size(), before + 100);
    let slices = alice
        .log
        .lines
        .iter()
        .filter(|l| matches!(l, Line::Slice(_)));
    assert!(
        slices.clone().count() > 2 + 1,
        "3 MiB of entries do not fit a slice"
    );
    assert!(
        slices
            .clone()
            .all(|l| l.bytes().len() <= hn_protocol::document::MAX_SLICE_BYTES)
    );
    for line in &alice.log.lines {
        Line::verify(line.bytes().clone()).unwrap();
    }
    alice.commit((0..1000).map(|i| file(&format!("many/{i}"))).collect());
    let longest = alice.log.lines.iter().filter_map(|l| match l {
        Line::Slice(slice) => Some(slice.entries.len()),
        Line::Presence(_) | Line::Frontier(_) => None,
    });
    assert_eq!(longest.max(), Some(hn_protocol::document::MAX_ENTRIES));
    let climbing = hn_protocol::log::CommitRequest {
        entries: vec![file("../x")],
        facts: &alice.facts,
        now: alice.now,
    };
    let refused = alice
        .log
        .state
        .commit(climbing, &alice.identity)
        .unwrap_err();
    assert_eq!(refused.code(), "bad_path");
    alice.facts.services = vec!["dht".into(); 17];
    let boastful = hn_protocol::log::CommitRequest {
        entries: vec![],
        facts: &alice.facts,
        now: alice.now,
    };
    assert!(alice.log.state.commit(boastful, &alice.identity).is_err());
}
