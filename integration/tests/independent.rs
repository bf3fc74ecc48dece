//! Documents taken from running nodes verify with tools that are not ours: any RFC 8785 library, any Ed25519 library,
//! any BLAKE3, with nothing but the DID. `independent/verify_log.py` is the verifier; it shares no code with this
//! repository, and `system-tests.sh` installs what it needs.

use std::path::PathBuf;
use std::process::Command;

use hn_integration::cluster::Node;
use hn_integration::hostile::{Eve, Lie};
use hn_integration::stranger::python;
use serde_json::Value;

fn verify(python: &PathBuf, base: &str, did: &str) -> Result<Value, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/independent/verify_log.py");
    let output = Command::new(python)
        .args([script, base, did])
        .output()
        .map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())
}

/// ```text
///   bob ◄──── alice        a stranger with Python reads both
/// ```
#[tokio::test]
async fn documents_of_running_nodes_verify_with_independent_tools() {
    let Some(python) = python() else { return };
    let (bob, alice) = (Node::started("bob").await, Node::started("alice").await);
    let names = [
        "plain.txt",
        "\u{e9}\u{1f600}/\u{fb33}.txt",
        "quote\" and more.txt",
    ];
    for name in names {
        bob.publish(&[(name, name.as_bytes())]).await;
    }
    let many: Vec<(String, Vec<u8>)> = (0..600)
        .map(|n| (format!("many/{n:03}"), vec![b'x'; n % 7]))
        .collect();
    let many: Vec<(&str, &[u8])> = many
        .iter()
        .map(|(path, content)| (path.as_str(), content.as_slice()))
        .collect();
    let published = bob.publish(&many).await;
    alice.follow(&bob).await;
    alice.refresh().await;
    let did = bob.did().to_string();
    let from_bob = verify(&python, &bob.base_url(), &did).expect("bob's documents verify");
    assert_eq!(from_bob["log_root"], published["log_root"]);
    assert_eq!(from_bob["log_size"], names.len() + many.len());
    let from_alice = verify(&python, &alice.base_url(), &did).expect("alice's copies verify");
    assert_eq!(from_alice, from_bob, "the same, from a holder");
    verify(&python, &alice.base_url(), &alice.did().to_string())
        .expect("an empty log verifies too");
    verify(&python, &bob.base_url(), &alice.did().to_string())
        .expect_err("bob does not hold alice's log");
}

/// A log that ended is whole up to its publisher's last word, for a stranger as well.
#[tokio::test]
async fn a_log_that_ended_verifies_with_independent_tools() {
    let Some(python) = python() else { return };
    let bob = Node::started("bob").await;
    let did = bob.did().to_string();
    bob.publish(&[("a.txt", b"a"), ("b.txt", b"b")]).await;
    let before = verify(&python, &bob.base_url(), &did).expect("bob's documents verify");
    assert_eq!(before["revoked"], false);
    bob.ok(&["id", "revoke", "--yes"]).await;
    let after = verify(&python, &bob.base_url(), &did).expect("and so they do at their end");
    assert_eq!(after["revoked"], true);
    for member in ["log_size", "log_root", "head"] {
        assert_eq!(after[member], before[member], "{member}");
    }
}

/// A verifier that believes everything proves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_independent_verifier_believes_an_honest_log_and_no_lie() {
    let Some(python) = python() else { return };
    let mut eve = Eve::honest().await;
    let did = eve.did().to_string();
    let believed = verify(&python, eve.base_url(), &did).expect("an honest log verifies");
    assert_eq!(believed["log_size"], eve.size());
    for lie in [
        Lie::WrongSignature,
        Lie::SignatureOfAnother,
        Lie::SliceOfAnother,
        Lie::AlteredEntry,
        Lie::EntryBesideTheRoot,
        Lie::AlteredLogRoot,
        Lie::AlteredPrev,
        Lie::SkippedSeq,
        Lie::SkippedSlice,
        Lie::UnboundSlice,
        Lie::UnboundPresence,
        Lie::PresenceOfAnotherRoot,
        Lie::DuplicateKey,
    ] {
        eve.lie(lie);
        let refused =
            verify(&python, eve.base_url(), &did).expect_err(&format!("{lie:?} is believed"));
        assert!(!refused.contains("Traceback"), "{lie:?}: {refused}");
    }
    eve.repent();
    verify(&python, eve.base_url(), &did).expect("an honest log verifies again");
}
