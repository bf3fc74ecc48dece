//! What it takes to refuse a forged request, beside the check of its signature alone. `cargo bench --bench request`.
#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use hn_protocol::did::{Did, SecretSeed};
use hn_protocol::request::{
    Audience, BodyProof, ContentDigest, ReceivedFields, Target, sign, verify,
};
use hn_protocol::time::Timestamp;

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const TARGET: Target<'static> = Target {
    method: "POST",
    path: "/publish",
    query: None,
};

fn refuse(c: &mut Criterion) {
    let (alice, bob) = (
        SecretSeed::from_bytes([1; 32]).identity(),
        SecretSeed::from_bytes([2; 32]).did(),
    );
    let own = Audience::new(bob);
    let proof = BodyProof::Content(ContentDigest::field_of(b"body"));
    let mut fields = sign(TARGET, bob, &proof, &alice, NOW, "nonce-0123456789").unwrap();
    fields.signature_input = fields.signature_input.replace("nonce-0", "nonce-1");
    let received = ReceivedFields {
        signature_input: Some(&fields.signature_input),
        signature: Some(&fields.signature),
        audience: Some(&fields.audience),
        content_digest: fields.proof.as_ref().map(|(_, value)| value.as_str()),
        hn_digest: None,
    };
    let (message, signature) = ([b'x'; 400], alice.sign(&[b'x'; 400]));
    c.bench_function("Ed25519 verification alone", |b| {
        b.iter(|| {
            alice
                .did()
                .verifies(std::hint::black_box(&message), &signature)
        });
    });
    c.bench_function("a forged request, refused", |b| {
        b.iter(|| verify(TARGET, std::hint::black_box(received), &own, NOW).unwrap_err());
    });
    let text = alice.did().to_string();
    c.bench_function("a DID read", |b| b.iter(|| text.parse::<Did>().unwrap()));
}

criterion_group!(benches, refuse);
criterion_main!(benches);
