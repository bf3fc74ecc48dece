#![allow(clippy::unwrap_used)]
use super::*;
use crate::did::{Identity, SecretSeed};
use crate::time::Timestamp;
use proptest::prelude::*;

fn alice() -> Identity {
    SecretSeed::from_bytes([1; 32]).identity()
}

fn policy(gates: &[(Gate, Mode, Option<&str>)]) -> Policy {
    let gate = |(gate, mode, when): &(Gate, Mode, Option<&str>)| {
        let when = when.map(str::to_owned);
        (gate.name().to_owned(), PolicyGate { mode: *mode, when })
    };
    let document = PolicyDocument {
        did: alice().did(),
        sequence: 7,
        gates: gates.iter().map(gate).collect(),
        limits: BTreeMap::new(),
    };
    Policy::new(Signed::create(&document, &alice()).unwrap()).unwrap()
}

fn defaults() -> Policy {
    let document = PolicyDocument {
        did: alice().did(),
        sequence: 1,
        gates: Gate::defaults(),
        limits: BTreeMap::from([("relay.ttl".to_owned(), 60)]),
    };
    Policy::new(Signed::create(&document, &alice()).unwrap()).unwrap()
}

fn bob(friend: bool, rights: &[&str]) -> Facts {
    Facts {
        caller: Some(CallerFacts {
            did: SecretSeed::from_bytes([2; 32]).did(),
            known: friend,
            friend,
            rights: rights.iter().map(|right| (*right).to_owned()).collect(),
        }),
        now: Some(Timestamp(1_800_000_000_000)),
        ..Facts::default()
    }
}

/// The facts of somebody who has everything.
fn everything() -> Facts {
    Facts {
        target: Some("did:hn:target".to_owned()),
        reputation: Some(ReputationFacts {
            avg_confidence: 0.9,
            count: 4,
        }),
        trust_link: Some(TrustLinkFacts { confidence: 0.93 }),
        owner: Some(OwnerFacts { bytes: 1 << 20 }),
        ..bob(true, &["relay", "backup"])
    }
}

#[test]
fn the_default_table_is_that_of_the_design() {
    let policy = defaults();
    let nobody = Facts::default();
    let stranger = bob(false, &[]);
    let friend = bob(true, &[]);
    let holder = bob(false, &["relay", "backup", "inbox"]);
    use Mode::{Allow, Deny, Prompt};
    for (gate, expected) in [
        (Gate::FederateRead, [Allow, Allow, Allow, Allow]),
        (Gate::PublishHosted, [Deny, Deny, Allow, Deny]),
        (Gate::RelayRegister, [Deny, Deny, Deny, Allow]),
        (Gate::BackupStore, [Deny, Deny, Deny, Allow]),
        (Gate::InboxAccept, [Deny, Deny, Deny, Allow]),
        (Gate::TrustExposure, [Deny, Deny, Deny, Deny]),
        (Gate::TrustLinks, [Deny, Deny, Deny, Deny]),
        (Gate::OfferInbound, [Prompt, Prompt, Prompt, Prompt]),
        (Gate::PaymentInbound, [Prompt, Prompt, Prompt, Prompt]),
    ] {
        for (facts, expected) in [&nobody, &stranger, &friend, &holder]
            .into_iter()
            .zip(expected)
        {
            let decision = policy.decide(gate, facts);
            assert_eq!(decision.mode, expected, "{gate}: {}", decision.reason);
        }
    }
    assert_eq!(policy.limit("relay.ttl"), 60);
    assert_eq!(policy.limit("backup.grace"), 365 * 86_400);
}

#[test]
fn false_missing_failing_and_unsaid_all_deny() {
    for (when, because) in [
        ("caller.friend", "is false"),
        ("reputation.count > 3", "the fact `reputation` is missing"),
        (
            "trust_link.confidence > 0.5 && !caller.known",
            "the fact `trust_link` is missing",
        ),
        ("owner.bytes < 10", "the fact `owner` is missing"),
        ("caller.did == target", "the fact `target` is missing"),
        ("caller.rights + [1] == caller.did", ""),
        ("caller.did > 3", "denies"),
        ("1 / 0 == 1", "denies"),
        ("has(caller.did) && 9223372036854775807 + 1 > 0", "denies"),
    ] {
        let policy = policy(&[(Gate::FederateRead, Mode::Allow, Some(when))]);
        let decision = policy.decide(Gate::FederateRead, &bob(false, &[]));
        assert_eq!(decision.mode, Mode::Deny, "{when}");
        assert!(
            decision.reason.contains(because),
            "{when}: {}",
            decision.reason
        );
    }
    let decision = policy(&[]).decide(Gate::FederateRead, &everything());
    assert_eq!(decision.mode, Mode::Deny, "no gate");
}

#[test]
fn true_gives_the_mode_and_or_needs_one_side_alone() {
    for when in [
        "caller.friend || reputation.count > 3",
        "reputation.count > 3 || caller.friend",
        "caller.friend && !(\"inbox\" in caller.rights)",
        "caller.rights == [\"relay\"] && caller.did.startsWith(\"did:hn:z6Mk\")",
        "now > timestamp(\"2027-01-01T00:00:00Z\") && now < timestamp(\"2030-01-01T00:00:00Z\")",
        "now - timestamp(\"2027-01-01T00:00:00Z\") > duration(\"1h\")",
        "caller.friend ? size(caller.rights) == 1 : false",
        "has(caller.did)",
        "caller.did in [\"x\", caller.did]",
    ] {
        for mode in [Mode::Allow, Mode::Prompt] {
            let policy = policy(&[(Gate::FederateRead, mode, Some(when))]);
            let decision = policy.decide(Gate::FederateRead, &bob(true, &["relay"]));
            assert_eq!(decision.mode, mode, "{}", decision.reason);
        }
    }
    assert!(!defaults().asks_owner(Gate::PublishHosted));
    let all = "reputation.avg_confidence >= 0.9 && reputation.count == 4 && trust_link.confidence > 0.9 && owner.bytes <= 1048576 && target != \"\"";
    let policy = policy(&[(Gate::FederateRead, Mode::Allow, Some(all))]);
    assert!(policy.asks_owner(Gate::FederateRead));
    let decision = policy.decide(Gate::FederateRead, &everything());
    assert_eq!(decision.mode, Mode::Allow, "{}", decision.reason);
}

#[test]
fn what_is_no_condition_is_refused_with_its_place() {
    let long = format!("caller.friend{}", " ".repeat(MAX_CONDITION));
    let deep = format!("{}caller.friend{}", "(".repeat(200), ")".repeat(200));
    let nested = format!(
        "{}true{}",
        "caller.friend ? (".repeat(33),
        ") : false".repeat(33)
    );
    for (text, code, said) in [
        (long.as_str(), "condition_too_long", "bytes"),
        (&deep, "condition_too_deep", "line 1, column 32"),
        (&nested, "condition_too_deep", "nested deeper than 32"),
        ("", "bad_condition", "line 1"),
        ("caller.friend &&", "bad_condition", "line 1, column"),
        (
            "caller.friend\n  && caller.freind",
            "bad_condition",
            "line 2, column 12: there is no fact `caller.freind`",
        ),
        (
            "frend",
            "bad_condition",
            "line 1, column 1: there is no fact `frend`",
        ),
        ("caller", "bad_condition", "there is no fact `caller`"),
        ("caller[\"friend\"]", "bad_condition", "no `_[_]`"),
        (
            "caller.rights.exists(r, r == \"x\")",
            "bad_condition",
            "no all, exists",
        ),
        (
            "caller.rights.all(r, r == \"x\")",
            "bad_condition",
            "no all, exists",
        ),
        (
            "size(caller.rights.map(r, r)) > 0",
            "bad_condition",
            "no all, exists",
        ),
        (
            "caller.did.matches(\"a+\")",
            "bad_condition",
            "no `matches`",
        ),
        ("string(now) == \"\"", "bad_condition", "no `string`"),
        ("{\"a\": 1} == {\"a\": 1}", "bad_condition", "no maps"),
        ("null", "bad_condition", "null"),
        ("1", "bad_condition", "the condition is a number"),
        ("caller.did", "bad_condition", "the condition is a text"),
        ("caller.rights", "bad_condition", "the condition is a list"),
        ("now", "bad_condition", "the condition is a time"),
        (
            "caller.friend ? 1 : 2",
            "bad_condition",
            "the condition is a number",
        ),
        (
            "caller.friend && caller.did",
            "bad_condition",
            "line 1, column 24",
        ),
        (
            "!reputation.count",
            "bad_condition",
            "a number stands where",
        ),
        ("caller.did.friend", "bad_condition", "nothing has a member"),
        ("caller.friend ; true", "bad_condition", "line 1, column"),
        ("\u{1f600}", "bad_condition", "line 1"),
    ] {
        let error = Condition::compile(text).unwrap_err();
        assert_eq!(error.code(), code, "{text:.60}: {error}");
        assert!(error.to_string().contains(said), "{text:.60}: {error}");
    }
}

/// Texts made to recurse, on the smallest stack that a thread of ours has.
#[test]
fn no_text_of_4_kib_overflows_a_stack() {
    let fill = |unit: &str| unit.repeat(MAX_CONDITION / unit.len());
    let mut texts: Vec<String> = [
        "(", "[", "{", "!", "-", "a.", "1+", "1*", "a?b:", "true||", "true&&", "a(", "a[", "!(",
        "-(", "\"", "\\", "a?", ".", "1-", "1 ", "in ", "a in ", "==1", "a==", "f(x,", "{a:", "((",
        "[[", "\u{e9}", "\n", "'''", "b'", "0x", "1e9",
    ]
    .map(fill)
    .into();
    texts.extend([
        format!("{}true", "!".repeat(127)),
        format!("{}1{}", "(".repeat(31), ")".repeat(31)),
        format!("{}1{}", "[".repeat(31), "]".repeat(31)),
        format!("{}1{}", "!(true?".repeat(15), ":true)".repeat(15)),
        format!("a{}", ".a".repeat(128)),
        format!("1{}", "+1".repeat(128)),
        format!("{}1", "true?1:".repeat(31)),
        format!("true{}", "||true".repeat(600)),
    ]);
    let compile = move || {
        for text in texts {
            if let Ok(condition) = Condition::compile(&text) {
                let _ = condition.holds(&everything());
            }
        }
    };
    std::thread::Builder::new()
        .stack_size(2 << 20)
        .spawn(compile)
        .unwrap()
        .join()
        .unwrap();
}

#[test]
fn an_explanation_replays_to_the_same_decision_and_a_changed_one_does_not() {
    let policy = defaults();
    for facts in [
        bob(true, &[]),
        bob(false, &[]),
        Facts::default(),
        everything(),
    ] {
        for gate in Gate::ALL {
            let decision = policy.decide(gate, &facts);
            let explanation = Explanation::new(&policy, &decision, facts.clone()).unwrap();
            let bytes = serde_json::to_vec(&explanation).unwrap();
            let replayed = Explanation::replay(&bytes).unwrap();
            assert!(replayed.agrees(), "{gate}");
            assert_eq!((replayed.did, replayed.decision), (alice().did(), decision));
        }
    }
    let decision = policy.decide(Gate::PublishHosted, &bob(false, &[]));
    let honest = Explanation::new(&policy, &decision, bob(false, &[])).unwrap();
    let lie = |change: fn(&mut Explanation)| {
        let mut lie = honest.clone();
        change(&mut lie);
        Explanation::replay(&serde_json::to_vec(&lie).unwrap())
    };
    assert!(!lie(|e| e.mode = Mode::Allow).unwrap().agrees());
    assert!(!lie(|e| e.reason.push('!')).unwrap().agrees());
    assert!(!lie(|e| e.facts = bob(true, &[])).unwrap().agrees());
    assert!(!lie(|e| e.gate = "federate.read".into()).unwrap().agrees());
    assert!(matches!(
        lie(|e| e.gate = "x".into()),
        Err(ReplayError::Gate(_))
    ));
    let changed =
        lie(|e| e.policy["gates"]["publish.hosted"] = serde_json::json!({"mode": "allow"}));
    assert!(matches!(changed, Err(ReplayError::Policy(_))));
    assert!(matches!(
        Explanation::replay(b"{}"),
        Err(ReplayError::Form(_))
    ));
    assert_eq!(
        Explanation::replay(&vec![b' '; 1 << 20]),
        Err(ReplayError::TooLarge)
    );
}

#[test]
fn a_document_that_breaks_a_rule_is_refused() {
    let with = |name: &str, mode, when: Option<&str>, limit: Option<(&str, u64)>| {
        let gate = PolicyGate {
            mode,
            when: when.map(str::to_owned),
        };
        let document = PolicyDocument {
            did: alice().did(),
            sequence: 1,
            gates: BTreeMap::from([(name.to_owned(), gate)]),
            limits: limit
                .into_iter()
                .map(|(name, n)| (name.to_owned(), n))
                .collect(),
        };
        Signed::create(&document, &alice())
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    assert_eq!(
        with(
            "federate.read",
            Mode::Allow,
            Some("caller.known"),
            Some(("relay.ttl", 1))
        ),
        Ok(())
    );
    for (broken, said) in [
        (
            with("federate.reed", Mode::Allow, None, None),
            "no gate \"federate.reed\"",
        ),
        (
            with("federate.read", Mode::Deny, Some("true"), None),
            "denies has no condition",
        ),
        (
            with("federate.read", Mode::Allow, Some("caller.frend"), None),
            "federate.read: line 1, column 7",
        ),
        (
            with("federate.read", Mode::Allow, None, Some(("relay.tll", 1))),
            "no limit",
        ),
        (
            with("federate.read", Mode::Allow, None, Some(("relay.ttl", 0))),
            "between 1",
        ),
    ] {
        assert!(
            broken.as_ref().is_err_and(|error| error.contains(said)),
            "{broken:?}"
        );
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[a-z.&|!()\\[\\]<>=+*/?: \"0-9-]{0,80}") {
        if let Ok(condition) = Condition::compile(&text) {
            let _ = condition.holds(&everything());
            let _ = condition.holds(&Facts::default());
        }
    }
}
