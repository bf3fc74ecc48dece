//! The bytes of an independent implementation, in `spec/vectors/`: we agree with each of them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use hn_protocol::did::{Did, SecretSeed};
use hn_protocol::digest::Digest;
use hn_protocol::log::{Line, LogState, NoHistory, PageContext, Source};
use hn_protocol::time::Timestamp;
use hn_protocol::{canonical, merkle};
use serde_json::Value;

fn vectors(name: &str) -> Value {
    let path = format!("{}/../spec/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn hex32(text: &Value) -> [u8; 32] {
    text.as_str().unwrap().parse::<Digest>().unwrap().0
}

#[test]
fn identities_agree() {
    let vectors = vectors("identity");
    for case in vectors["cases"].as_array().unwrap() {
        let seed = SecretSeed::from_bytes(hex32(&case["seed_hex"]));
        let did = seed.did();
        assert_eq!(did.to_string(), case["did"]);
        assert_eq!(did.to_string().parse::<Did>().unwrap(), did);
        assert_eq!(*did.public_key(), hex32(&case["ed25519_public_hex"]));
        assert_eq!(did.key_agreement(), hex32(&case["x25519_public_hex"]));
        assert_eq!(
            *seed.key_agreement_secret(),
            hex32(&case["x25519_secret_hex"])
        );
        assert_eq!(did.hash().0, hex32(&case["did_hash"]));
        let document = did.document(None).to_string();
        assert!(document.contains(case["key_agreement_multibase"].as_str().unwrap()));
    }
}

#[test]
fn every_bad_did_is_refused() {
    for text in vectors("identity")["refuse"].as_array().unwrap() {
        assert!(text.as_str().unwrap().parse::<Did>().is_err(), "{text}");
    }
    // The identity point: of small order. Its DID is well-formed.
    let mut weak = [0u8; 32];
    weak[0] = 1;
    assert!(Did::from_public_key(weak).is_err());
    // y = p + 1 is a second spelling of y = 1.
    let mut non_canonical = [0xff; 32];
    non_canonical[0] = 0xee;
    non_canonical[31] = 0x7f;
    assert!(Did::from_public_key(non_canonical).is_err());
}

#[test]
fn merkle_roots_agree() {
    for (n, root) in vectors("merkle")["roots"].as_object().unwrap() {
        let leaves: Vec<Digest> = (0..n.parse::<u64>().unwrap())
            .map(|i| merkle::leaf_hash(i.to_string().as_bytes()))
            .collect();
        assert_eq!(merkle::root(&leaves).0, hex32(root), "{n} leaves");
    }
}

#[test]
fn documents_agree_to_the_byte() {
    let mut leaves = Vec::new();
    for case in vectors("log")["documents"].as_array().unwrap() {
        let mut value = case["document"].clone();
        let line = Line::verify(Bytes::from(value.to_string())).unwrap();
        value.as_object_mut().unwrap().remove("signature");
        assert_eq!(
            canonical::to_vec(&value).unwrap(),
            case["signed_utf8"].as_str().unwrap().as_bytes()
        );
        value.as_object_mut().unwrap().remove("id");
        let bytes = canonical::to_vec(&value).unwrap();
        assert_eq!(
            bytes,
            case["canonical_without_id_utf8"]
                .as_str()
                .unwrap()
                .as_bytes()
        );
        if let Line::Slice(slice) = line {
            assert_eq!(slice.digest(), Digest::of(&bytes));
            leaves.extend_from_slice(slice.leaves());
        }
    }
    let expected: Vec<[u8; 32]> = vectors("log")["leaves_hex"]
        .as_array()
        .unwrap()
        .iter()
        .map(hex32)
        .collect();
    assert_eq!(leaves.iter().map(|l| l.0).collect::<Vec<_>>(), expected);
}

#[test]
fn the_page_is_followed_and_its_bytes_are_kept() {
    let vectors = vectors("log");
    let page = vectors["page_ndjson_utf8"].as_str().unwrap();
    let lines: Vec<Bytes> = page
        .lines()
        .map(|line| Bytes::copy_from_slice(line.as_bytes()))
        .collect();
    let seed = SecretSeed::from_bytes([1; 32]);
    let context = PageContext {
        now: "2026-01-01T01:00:00.000Z".parse::<Timestamp>().unwrap(),
        source: Source::Publisher,
        reaches_head: true,
    };
    let followed = LogState::empty(seed.did(), 0)
        .follow(&lines, context, &NoHistory)
        .unwrap();
    assert_eq!(followed.state.size(), 5);
    assert_eq!(followed.slices(), 2);
    let kept: Vec<Bytes> = followed
        .lines
        .iter()
        .map(|line| line.bytes().clone())
        .collect();
    assert_eq!(kept, lines);
}
