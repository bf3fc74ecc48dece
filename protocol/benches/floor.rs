//! What following a log costs at least, on one core and without IO: the floor that `hn` is measured against.
//!
//! - `floor/primitives`: parse, JCS, BLAKE3 and one Ed25519 verification a slice by the libraries alone, each
//!   once over the bytes: nobody who checks slices can do less with them.
//! - `floor/line_verify`: the same slices through [`Line::verify`], which also refuses, types and hashes leaves.
//! - `follow/page_of_16`: a page judged whole, with frontier, chain and binding.
//!
//! The rest are single steps, to see where the time goes.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::hint::black_box;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hn_protocol::canonical::{self, CanonicalObject};
use hn_protocol::did::SecretSeed;
use hn_protocol::digest::Digest;
use hn_protocol::document::MAX_ENTRIES;
use hn_protocol::log::{
    CommitRequest, EntryDraft, Line, LogState, NoHistory, PageContext, PresenceFacts, Source,
    first_presence,
};
use hn_protocol::merkle::{self, Frontier};
use hn_protocol::time::Timestamp;
use serde_json::Value;

const NOW: Timestamp = Timestamp(1_767_225_600_000);
const SLICES: usize = 16;

/// One page as it is served: a presence, sixteen full slices, the current presence.
fn page() -> Vec<Bytes> {
    let identity = SecretSeed::from_bytes([1; 32]).identity();
    let facts = PresenceFacts {
        ttl_ms: 86_400_000,
        ..PresenceFacts::default()
    };
    let first = first_presence(&identity, 0, &facts, NOW).unwrap();
    let entries = (0..SLICES * MAX_ENTRIES).map(|i| EntryDraft {
        kind: "file".into(),
        digest: Digest::of(&i.to_le_bytes()),
        size: 2048,
        path: format!("photos/2026/IMG_{i:06}.jpg"),
        tags: BTreeMap::new(),
        metadata: BTreeMap::new(),
        replaces: None,
        retracts: None,
    });
    let request = CommitRequest {
        entries: entries.collect(),
        facts: &facts,
        now: NOW,
    };
    let commit = first.state.commit(request, &identity).unwrap();
    let lines = first.lines.iter().chain(&commit.lines);
    lines.map(|line| line.bytes().clone()).collect()
}

/// The floor itself: each step once, by the libraries that do it.
fn primitives(line: &Bytes) -> [u8; 32] {
    let mut value: Value = serde_json::from_slice(line).unwrap();
    let object = value.as_object_mut().unwrap();
    let signature = object.remove("signature").unwrap();
    let encoded = signature
        .as_str()
        .unwrap()
        .strip_prefix("ed25519:")
        .unwrap();
    let signature = URL_SAFE_NO_PAD.decode(encoded).unwrap().try_into().unwrap();
    let canonical = serde_json_canonicalizer::to_vec(&value).unwrap();
    let signer = SecretSeed::from_bytes([1; 32]).did();
    assert!(signer.verifies(&canonical, &signature));
    *blake3::hash(&canonical).as_bytes()
}

fn floor(c: &mut Criterion) {
    let page = page();
    let slices = &page[1..=SLICES];
    let entries = (SLICES * MAX_ENTRIES) as u64;
    let mut group = c.benchmark_group("floor");
    group.throughput(Throughput::Elements(entries));
    group.bench_function("primitives", |b| {
        b.iter(|| slices.iter().map(primitives).fold([0; 32], |_, hash| hash));
    });
    group.bench_function("line_verify", |b| {
        b.iter(|| {
            slices
                .iter()
                .filter(|l| Line::verify((*l).clone()).is_ok())
                .count()
        });
    });
    group.finish();

    let did = SecretSeed::from_bytes([1; 32]).did();
    let context = PageContext {
        now: NOW,
        source: Source::Publisher,
        reaches_head: true,
    };
    let mut group = c.benchmark_group("follow");
    group.throughput(Throughput::Elements(entries));
    group.bench_function("page_of_16", |b| {
        b.iter(|| {
            let followed = LogState::empty(did, 0).follow(&page, context, &NoHistory);
            assert_eq!(followed.unwrap().state.size(), entries);
        });
    });
    group.finish();
}

fn steps(c: &mut Criterion) {
    let page = page();
    let slice = page[1].clone();
    let value = canonical::parse(&slice).unwrap();
    let object = value.as_object().unwrap();
    let canonical = CanonicalObject::new(object).unwrap();
    let identity = SecretSeed::from_bytes([1; 32]).identity();
    let signature = identity.sign(&slice);
    let mut group = c.benchmark_group("step");
    group.throughput(Throughput::Elements(MAX_ENTRIES as u64));
    group.bench_function("parse_strictly", |b| b.iter(|| canonical::parse(&slice)));
    group.bench_function("parse_by_serde_json", |b| {
        b.iter(|| serde_json::from_slice::<Value>(&slice));
    });
    group.bench_function("canonical_object", |b| {
        b.iter(|| CanonicalObject::new(object))
    });
    group.bench_function("canonical_by_library", |b| {
        b.iter(|| serde_json_canonicalizer::to_vec(&value));
    });
    group.bench_function("leaves", |b| {
        b.iter(|| canonical.elements("entries").map(merkle::leaf_hash).count());
    });
    group.bench_function("hash", |b| b.iter(|| Digest::of(&slice)));
    group.bench_function("verify_signature", |b| {
        b.iter(|| identity.did().verifies(&slice, &signature));
    });
    group.finish();
}

fn trees(c: &mut Criterion) {
    const LEAVES: usize = 1_000_000;
    let leaves: Vec<Digest> = (0..LEAVES).map(|i| Digest::of(&i.to_le_bytes())).collect();
    let mut group = c.benchmark_group("merkle");
    group.throughput(Throughput::Elements(1));
    let mut frontier = Frontier::default();
    let mut next = leaves.iter().cycle();
    group.bench_function("frontier_push", |b| {
        b.iter(|| frontier.push(*next.next().unwrap()));
    });
    let (root, at) = (merkle::root(&leaves), 123_456);
    let proof = merkle::inclusion_proof(&leaves, at).unwrap();
    group.bench_function("verify_inclusion_in_1M", |b| {
        b.iter(|| {
            let proof = black_box(&proof);
            merkle::verify_inclusion(&root, LEAVES as u64, at as u64, &leaves[at], proof)
        });
    });
    group.finish();
}

criterion_group!(benches, floor, steps, trees);
criterion_main!(benches);
