//! What a gate's decision takes with warm facts: the policy compiled, the facts at hand. `cargo bench --bench gate`.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use criterion::{Criterion, criterion_group, criterion_main};
use hn_protocol::did::SecretSeed;
use hn_protocol::document::{PolicyDocument, PolicyGate};
use hn_protocol::policy::{CallerFacts, Facts, Gate, Mode, OwnerFacts, Policy};
use hn_protocol::sign::Signed;
use hn_protocol::time::Timestamp;

fn policy(when: &str) -> Policy {
    let identity = SecretSeed::from_bytes([1; 32]).identity();
    let rule = PolicyGate {
        mode: Mode::Allow,
        when: Some(when.to_owned()),
    };
    let mut gates = Gate::defaults();
    gates.insert(Gate::PublishHosted.name().to_owned(), rule);
    let document = PolicyDocument {
        did: identity.did(),
        sequence: 1,
        gates,
        limits: BTreeMap::new(),
    };
    Policy::new(Signed::create(&document, &identity).unwrap()).unwrap()
}

fn facts() -> Facts {
    Facts {
        caller: Some(CallerFacts {
            did: SecretSeed::from_bytes([2; 32]).did(),
            known: true,
            friend: true,
            rights: vec!["relay".to_owned(), "backup".to_owned()],
        }),
        owner: Some(OwnerFacts { bytes: 1 << 20 }),
        now: Some(Timestamp(1_800_000_000_000)),
        ..Facts::default()
    }
}

fn decide(c: &mut Criterion) {
    let facts = facts();
    for (name, when) in [
        ("caller.friend", "caller.friend"),
        (
            "rights, bytes and time",
            "(caller.friend || \"backup\" in caller.rights) && owner.bytes < 1073741824 && now > timestamp(\"2026-01-01T00:00:00Z\")",
        ),
    ] {
        let policy = policy(when);
        assert_eq!(policy.decide(Gate::PublishHosted, &facts).mode, Mode::Allow);
        c.bench_function(name, |b| {
            b.iter(|| policy.decide(Gate::PublishHosted, &facts))
        });
    }
}

criterion_group!(benches, decide);
criterion_main!(benches);
