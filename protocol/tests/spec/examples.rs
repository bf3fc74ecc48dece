//! Worked examples: `spec/examples/`, and the blocks of the pages that show them.
//!
//! A block of a page is marked by the line before it: `<!-- example: index@2.json -->` shows the document
//! indented, `<!-- signed: index@2.json -->` the bytes that its signature covers.

use std::collections::BTreeMap;

use hn_protocol::did::SecretSeed;
use hn_protocol::digest::Digest;
use hn_protocol::document::{Endpoints, ForkEvidence, PolicyDocument, PolicyGate, Revocation};
use hn_protocol::log::{EntryDraft, HeldDocument, Line, PageError};
use hn_protocol::policy::{Gate, Mode};
use hn_protocol::proof::{Claim, InclusionProof};
use hn_protocol::sign::{DocumentError, Signed};
use hn_protocol::time::Timestamp;
use hn_protocol::{canonical, merkle};
use serde_json::{Value, json};

use crate::common::{Publisher, START, file, identity};
use crate::forge::object;
use crate::{page, promised, spec};

/// Every page that may show an example.
const PAGES: [&str; 12] = [
    "key_share@1.md",
    "fork_evidence@1.md",
    "README.md",
    "did-hn.md",
    "presence@2.md",
    "index@2.md",
    "inclusion_proof.md",
    "revocation@1.md",
    "policy@1.md",
    "http.md",
    "cli.md",
    "plan-map.md",
];

/// Alice's policy: the defaults, and what she shows her friends of her trust while they have little here.
pub fn policy() -> Signed<PolicyDocument> {
    let mut gates = Gate::defaults();
    let when = "caller.friend && owner.bytes < 1073741824";
    let rule = PolicyGate {
        mode: Mode::Allow,
        when: Some(when.to_owned()),
    };
    gates.insert(Gate::TrustExposure.name().to_owned(), rule);
    let document = PolicyDocument {
        did: identity(1).did(),
        sequence: START.0,
        gates,
        limits: BTreeMap::from([("relay.ttl".to_owned(), 600)]),
    };
    Signed::create(&document, &identity(1)).unwrap()
}

/// Alice publishes three notes, then a better version of the second.
pub fn alice() -> Publisher {
    let mut alice = Publisher::new(1);
    alice.now = START;
    alice.log = crate::common::Journal::empty(alice.identity.did());
    alice.facts.endpoints = Endpoints {
        mcp: Some("https://alice.example.net".into()),
        presence: Some("https://alice.example.net/.well-known/hn/presence".into()),
        libp2p: vec![],
    };
    alice.commit(vec![]);
    let note = |path, text: &str| EntryDraft {
        digest: Digest::of(text.as_bytes()),
        size: text.len() as u64,
        ..file(path)
    };
    let mut tagged = note("notes/é.txt", "two\n");
    tagged.tags.insert("topic".into(), "bicycle".into());
    alice.commit(vec![
        note("notes/a.txt", "one\n"),
        tagged,
        note("notes/z.txt", "three\n"),
    ]);
    let mut better = note("notes/é.txt", "two and a half\n");
    better.replaces = Some(1);
    alice.commit(vec![better]);
    alice
}

/// Bob holds alice's first slice, and is shown another that begins where it begins.
pub fn evidence() -> Signed<ForkEvidence> {
    let (alice, mut twin) = (alice(), Publisher::new(1));
    twin.commit(vec![file("notes/other.txt")]);
    let (held, shown) = (&alice.log.lines[1], &twin.log.lines[1]);
    ForkEvidence::sign(held, shown, alice.now, &identity(2)).unwrap()
}

fn examples() -> BTreeMap<&'static str, Value> {
    let alice = alice();
    let lines: Vec<Value> = alice
        .log
        .lines
        .iter()
        .map(|line| json!(object(line.bytes())))
        .collect();
    let seed = SecretSeed::from_bytes([1; 32]);
    let did = seed.did();
    let revocation = Revocation { did, at: START };
    let revocation = Signed::create(&revocation, &identity(1)).unwrap();
    let leaves: Vec<Digest> = alice.log.lines.iter().flat_map(leaves_of).collect();
    let proof = merkle::inclusion_proof(&leaves, 1).unwrap();
    let claim = Claim {
        publisher: did,
        epoch: 0,
        seq: 1,
        entry: object(alice.log.lines[1].bytes())["entries"][1]
            .as_object()
            .unwrap()
            .clone(),
        leaf: leaves[1],
        log_size: leaves.len() as u64,
        log_root: merkle::root(&leaves),
        proof: proof.clone(),
    };
    let inclusion = claim.with_presence(alice.log.lines[4].bytes()).unwrap();
    InclusionProof::verify(&inclusion).unwrap();
    BTreeMap::from([
        ("inclusion_proof.json", json!(object(&inclusion.into()))),
        (
            "did-hn.json",
            json!({
                "seed_hex": Digest([1; 32]),
                "ed25519_public_hex": Digest(*did.public_key()),
                "did": did,
                "x25519_public_hex": Digest(did.key_agreement()),
                "did_hash": did.hash(),
                "did_document": did.document(Some("https://alice.example.net")),
            }),
        ),
        (
            "key_share@1.json",
            json!(object(crate::key_shares::example().bytes())),
        ),
        ("policy@1.json", json!(object(policy().bytes()))),
        ("revocation@1.json", json!(object(revocation.bytes()))),
        ("fork_evidence@1.json", json!(object(evidence().bytes()))),
        ("presence@2.first.json", lines[0].clone()),
        ("index@2.json", lines[1].clone()),
        ("presence@2.json", lines[2].clone()),
        ("index@2.second.json", lines[3].clone()),
        ("presence@2.current.json", lines[4].clone()),
        (
            "inclusion.json",
            json!({
                "log_size": leaves.len(), "log_root": merkle::root(&leaves), "seq": 1,
                "leaf": leaves[1], "proof": proof, "leaves": leaves,
            }),
        ),
    ])
}

fn leaves_of(line: &Line) -> Vec<Digest> {
    match line {
        Line::Slice(slice) => slice.leaves().to_vec(),
        Line::Presence(_) | Line::Frontier(_) => Vec::new(),
    }
}

#[test]
fn examples_are_what_the_code_makes() {
    let mut files = Vec::new();
    for (name, value) in examples() {
        let text = String::from_utf8(canonical::to_vec(&value).unwrap()).unwrap();
        promised(&format!("examples/{name}"), &format!("{text}\n"));
        files.push(name.to_owned());
    }
    let served = alice().log.page(0, 64);
    let lines = served.lines.iter().map(|l| std::str::from_utf8(l).unwrap());
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    promised("examples/page.ndjson", &text);
    files.push("page.ndjson".into());
    let ended: Vec<&str> = text.lines().collect();
    let last = canonical::to_vec(&examples()["revocation@1.json"]).unwrap();
    let ended = [
        &ended[..ended.len() - 1],
        &[std::str::from_utf8(&last).unwrap()],
    ]
    .concat();
    let text: String = ended.iter().map(|line| format!("{line}\n")).collect();
    promised("examples/page.revoked.ndjson", &text);
    files.push("page.revoked.ndjson".into());
    for entry in std::fs::read_dir(spec("examples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            files.contains(&name),
            "spec/examples/{name} is nobody's example"
        );
    }
}

#[test]
fn pages_show_the_examples() {
    let examples = examples();
    let mut shown = Vec::new();
    for name in PAGES {
        let text = page(name);
        let mut made = String::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            made.push_str(line);
            made.push('\n');
            let Some(block) = block(line, &examples) else {
                continue;
            };
            shown.push(line.to_owned());
            made.push_str(
                lines
                    .next()
                    .filter(|l| l.starts_with("```"))
                    .expect("a block"),
            );
            made.push('\n');
            made.push_str(&block);
            made.push_str("\n```\n");
            lines.find(|l| *l == "```").expect("the end of the block");
        }
        promised(name, &made);
    }
    assert!(shown.len() >= 8, "{shown:?}");
}

/// What belongs into the block that is marked by `line`.
fn block(line: &str, examples: &BTreeMap<&'static str, Value>) -> Option<String> {
    let mark = line.strip_prefix("<!-- ")?.strip_suffix(" -->")?;
    let (kind, name) = mark.split_once(": ")?;
    let value = || {
        examples
            .get(name)
            .unwrap_or_else(|| panic!("no example {name}"))
    };
    match kind {
        "example" => Some(serde_json::to_string_pretty(value()).unwrap()),
        "signed" => {
            let mut value = value().clone();
            value.as_object_mut().unwrap().remove("signature");
            Some(String::from_utf8(canonical::to_vec(&value).unwrap()).unwrap())
        }
        "words" => crate::key_shares::block(name),
        "request" => crate::requests::block(name),
        _ => None,
    }
}

/// A code that no page explains helps nobody.
#[test]
fn every_code_of_a_refusal_stands_on_a_page() {
    let json = [
        canonical::JsonError::Utf8(0),
        canonical::JsonError::Syntax(String::new()),
        canonical::JsonError::DuplicateKey(String::new()),
        canonical::JsonError::Number,
        canonical::JsonError::Depth,
    ];
    let did = identity(1).did();
    let documents = [
        DocumentError::TooLarge { got: 0, max: 0 },
        DocumentError::Type {
            got: String::new(),
            expected: "",
        },
        DocumentError::Malformed(String::new()),
        DocumentError::Path(String::new()),
        DocumentError::Id,
        DocumentError::SignatureForm,
        DocumentError::Signature(did),
        DocumentError::NoConflict,
    ];
    let pages = [
        PageError::Publisher {
            got: did,
            expected: did,
        },
        PageError::Epoch {
            got: 0,
            expected: 0,
        },
        PageError::Fork {
            shown: Box::new(alice().log.lines[0].clone()),
            held: HeldDocument::Slice { cursor: 0 },
        },
        PageError::NewEpoch(1),
        PageError::Pruned { size: 2, held: 1 },
        PageError::Frontier(""),
        PageError::Conflict { cursor: 0 },
        PageError::PresenceConflict(""),
        PageError::Gap {
            got: 0,
            expected: 0,
        },
        PageError::Chain { cursor: 0 },
        PageError::LogRoot { cursor: 0 },
        PageError::Binding { cursor: 0, why: "" },
        PageError::Boundary { size: 0 },
        PageError::Rollback(String::new()),
        PageError::Ahead,
        PageError::Expired(Timestamp(0)),
        PageError::NoPresence,
    ];
    let codes = json
        .into_iter()
        .map(DocumentError::from)
        .chain(documents)
        .map(|e| e.code());
    let text = page("index@2.md");
    for code in codes.chain(pages.iter().map(PageError::code)) {
        assert!(text.contains(&format!("`{code}`")), "{code}");
    }
}
