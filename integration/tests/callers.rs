//! Clients that share no code with ours: a signed-request client in Python made from `spec/http.md`, and a fuzzer that
//! believes `/openapi.json`. `system-tests.sh` installs what they need.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use hn_integration::stranger::{python, python_with};
use hn_protocol::did::{Did, SecretSeed};
use serde_json::Value;

use crate::signed::awake;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/independent");
const SEED: [u8; 32] = [7; 32];
/// Cases of each operation and phase; with a thousand requests it takes some seconds.
const FUZZ_CASES: &str = "40";
/// What a node of the tests may take of memory while it is fuzzed, in bytes.
const MEMORY: f64 = 200e6;

fn friend() -> Did {
    SecretSeed::from_bytes(SEED).did()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn run(mut command: Command) -> String {
    let output = command.output().expect("it can be started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{said}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_made_from_the_spec_alone_is_accepted_and_each_refusal_is_as_the_spec_says() {
    let Some(python) = python() else { return };
    let alice = awake("alice").await;
    alice
        .ok(&["mcp", "allow", &friend().to_string(), "none", "--friend"])
        .await;
    let mut command = Command::new(python);
    let script = Path::new(SCRIPTS).join("signed_requests.py");
    command.arg(script).args([alice.base_url(), hex(&SEED)]);
    let said = run(command);
    let cases: BTreeMap<String, (u64, String)> = said
        .lines()
        .map(|line| {
            let case: Value = serde_json::from_str(line).expect("a line of JSON");
            let code = case["code"].as_str().unwrap_or_default().to_owned();
            (
                case["case"].as_str().unwrap().to_owned(),
                (case["status"].as_u64().unwrap(), code),
            )
        })
        .collect();
    let expected = [
        ("read", 200, ""),
        ("read with a query", 200, ""),
        ("publish", 200, ""),
        ("once", 200, ""),
        ("missing", 401, "signature_required"),
        ("stale", 401, "signature_time"),
        ("future", 401, "signature_time"),
        ("keyid of another", 401, "signature_invalid"),
        ("unknown algorithm", 401, "signature_algorithm"),
        ("uncovered audience", 401, "signature_components"),
        ("uncovered digest", 401, "signature_components"),
        ("wrong digest", 401, "signature_digest"),
        ("wrong audience", 401, "signature_audience"),
        ("replayed", 401, "signature_replayed"),
        ("two signatures", 401, "signature_several"),
        ("foreign host", 421, "misdirected"),
        ("admin", 403, "socket_only"),
        ("stranger", 403, "gate_denied"),
        ("too many nonces", 503, "too_many_signatures"),
    ];
    for (case, status, code) in expected {
        assert_eq!(cases[case], (status, code.to_owned()), "{case}");
    }
    assert_eq!(cases.len(), expected.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fuzzer_finds_no_answer_that_the_openapi_does_not_say() {
    let Some(python) = python_with("import schemathesis, requests, base58, cryptography") else {
        return;
    };
    let alice = awake("alice").await;
    alice.publish(&[("a.txt", b"a"), ("b/c.txt", b"c")]).await;
    alice
        .ok(&["mcp", "allow", &friend().to_string(), "none", "--friend"])
        .await;
    let mut command = Command::new(python.with_file_name("schemathesis"));
    command
        .current_dir(SCRIPTS)
        .env("PYTHONPATH", SCRIPTS)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SCHEMATHESIS_HOOKS", "fuzz_hooks")
        .env("HN_FUZZ_SEED", hex(&SEED))
        .env("HN_FUZZ_BASE", alice.base_url())
        .args(["--config-file", "schemathesis.toml"])
        .args(["run", &format!("{}/openapi.json", alice.base_url())])
        // A stream has no end to wait for; watch:: has its tests.
        .args([
            "--exclude-path",
            "/federate/watch",
            "--max-examples",
            FUZZ_CASES,
        ])
        .args([
            "--warnings",
            "off",
            "--request-timeout",
            "20",
            "--generation-database",
            "none",
        ]);
    run(command);
    let status = alice.status().await;
    for actor in status["actors"].as_array().unwrap() {
        assert_eq!(
            (&actor["state"], &actor["restarts"]),
            (&"running".into(), &0.into()),
            "{actor}"
        );
    }
    assert!(!alice.stderr().contains("panicked"), "{}", alice.stderr());
    let memory = alice
        .metric("hn_resident_memory_bytes")
        .await
        .expect("it is counted");
    assert!(memory < MEMORY, "{memory}");
    assert_eq!(alice.get("/readyz").await.status(), 200);
}
