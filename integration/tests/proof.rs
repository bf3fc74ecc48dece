//! Inclusion proofs, from any holder, checked with nothing but the DID; and that no wrong node ever makes a wrong proof.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use hn_integration::cluster::Node;
use hn_integration::stranger::python;
use hn_protocol::proof::InclusionProof;
use reqwest::StatusCode;
use serde_json::{Value, json};

/// A publisher with 7 entries in three commits, and somebody who follows it.
async fn followed() -> (Node, Node) {
    let bob = Node::started("bob").await;
    bob.publish(&[("a", b"1"), ("b", b"2"), ("c", b"3")]).await;
    bob.publish(&[("d", b"4")]).await;
    bob.publish(&[("e", b"5"), ("f", b"6"), ("g", b"7")]).await;
    let alice = Node::started("alice").await;
    alice.follow(&bob).await;
    alice.refresh().await;
    (bob, alice)
}

/// The proof of `bob`'s entry `seq` as `node` gives it, verified.
async fn proof(node: &Node, bob: &Node, seq: u64) -> InclusionProof {
    let answer = node
        .get(&format!("/federate/proof/{}/{seq}", bob.did()))
        .await;
    let (status, body) = (answer.status(), answer.bytes().await.unwrap());
    assert_eq!(status, StatusCode::OK, "{}: {body:?}", node.name());
    let proof = InclusionProof::verify(&body).unwrap();
    assert_eq!((proof.claim.publisher, proof.claim.seq), (bob.did(), seq));
    proof
}

fn nodes_of(holder: &Node, publisher: &Node) -> PathBuf {
    let name = format!("{}-0.nodes", publisher.did());
    holder.home().join("state/trees").join(name)
}

#[tokio::test]
async fn every_entry_is_proved_by_its_publisher_and_by_a_holder_alike() {
    let (bob, alice) = followed().await;
    let log = alice.log(bob.did()).await;
    assert_eq!(log.size, 7);
    for (seq, entry) in (0..).zip(&log.entries) {
        let (own, held) = (proof(&bob, &bob, seq).await, proof(&alice, &bob, seq).await);
        assert_eq!(own.claim, held.claim);
        assert_eq!((&held.entry, held.claim.log_root), (entry, log.root));
    }
}

#[tokio::test]
async fn the_program_of_the_page_checks_a_real_proof_and_refuses_a_spoilt_one() {
    let Some(python) = python() else { return };
    let (bob, alice) = followed().await;
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../spec/inclusion_proof.md");
    let page = fs::read_to_string(page).unwrap();
    let program = page.split("```python\n").nth(1).unwrap();
    let program = program.split("```").next().unwrap();
    let check = |document: &Value| {
        let file = alice.scratch().join("proof.json");
        fs::write(&file, document.to_string()).unwrap();
        let mut command = Command::new(&python);
        command
            .args(["-c", program])
            .stdin(File::open(&file).unwrap());
        command.output().unwrap().status.success()
    };
    for seq in 0..7 {
        let answer = alice
            .get(&format!("/federate/proof/{}/{seq}", bob.did()))
            .await;
        let mut document: Value = answer.json().await.unwrap();
        assert!(check(&document), "{seq}");
        document["proof"][0] = document["leaf"].clone();
        assert!(!check(&document), "{seq}");
    }
}

#[tokio::test]
async fn proofs_follow_the_log_as_it_grows_also_over_a_kill() {
    let (bob, mut alice) = followed().await;
    for (round, path) in ["h", "i", "j"].into_iter().enumerate() {
        bob.publish(&[(path, path.as_bytes())]).await;
        alice.refresh().await;
        let newest = proof(&alice, &bob, 7 + round as u64).await;
        assert_eq!(newest.entry.path, path);
        assert_eq!(
            proof(&alice, &bob, 0).await.claim.log_root,
            newest.claim.log_root
        );
        alice.restart().await;
    }
}

#[tokio::test]
async fn what_cannot_be_proved_is_said() {
    let (bob, alice) = followed().await;
    let (did, stranger) = (
        bob.did(),
        "did:hn:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK",
    );
    for (path, status, code) in [
        (format!("{did}/7"), 404, "unknown_entry"),
        (format!("{did}/9007199254740992"), 404, "unknown_entry"),
        (format!("{did}/-1"), 400, "bad_seq"),
        (format!("{did}/01"), 400, "bad_seq"),
        (format!("{did}/9007199254740993"), 400, "bad_seq"),
        (format!("{stranger}/0"), 404, "unknown_publisher"),
        ("did:hn:x/0".to_owned(), 400, "bad_did"),
        (format!("{did}/0?epoch=x"), 400, "bad_epoch"),
        (format!("{did}/0?epoch=1"), 404, "unknown_epoch"),
    ] {
        let answer = alice.get(&format!("/federate/proof/{path}")).await;
        assert_eq!(answer.status().as_u16(), status, "{path}");
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["code"], code, "{path}");
    }
}

#[tokio::test]
async fn nodes_that_rot_are_short_or_missing_are_made_again_and_never_believed() {
    let (bob, alice) = followed().await;
    let file = nodes_of(&alice, &bob);
    let whole = fs::read(&file).unwrap();
    assert_eq!(whole.len(), 32 * 11, "7 leaves and 4 parents");
    let zeros = vec![0; whole.len()];
    let mut rotten = whole.clone();
    rotten[32 * 2] ^= 1;
    let mut long = whole.clone();
    long.extend_from_slice(&[7; 100]);
    for (what, bytes) in [
        ("zeros", zeros.as_slice()),
        ("a flipped bit", &rotten),
        ("half", &whole[..whole.len() / 2]),
        ("an end within a slice", &whole[..32 * 8]),
        ("nothing", &[]),
        ("more than the log", &long),
    ] {
        fs::write(&file, bytes).unwrap();
        for seq in 0..7 {
            proof(&alice, &bob, seq).await;
        }
        let mended = fs::read(&file).unwrap();
        assert!(mended.starts_with(&whole), "{what}");
    }
    fs::remove_file(&file).unwrap();
    proof(&alice, &bob, 3).await;
    assert_eq!(fs::read(&file).unwrap(), whole);
    // Growing an unfinished file leaves no gap that is taken for nodes.
    fs::write(&file, &whole[..32 * 3]).unwrap();
    bob.publish(&[("h", b"8")]).await;
    alice.refresh().await;
    for seq in 0..8 {
        proof(&alice, &bob, seq).await;
    }
    // `hn mcp reindex` makes them too.
    let grown = fs::read(&file).unwrap();
    fs::write(&file, vec![0; grown.len()]).unwrap();
    alice.ok(&["mcp", "reindex"]).await;
    assert_eq!(fs::read(&file).unwrap(), grown);
}

#[tokio::test]
async fn an_entry_that_rotted_in_the_journal_is_not_given_out() {
    let (bob, alice) = followed().await;
    let folder = alice
        .home()
        .join("cache/federation")
        .join(bob.did().to_string());
    let journal = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "jsonl"))
        .unwrap();
    let text = fs::read_to_string(&journal).unwrap();
    fs::write(
        &journal,
        text.replacen("\"path\":\"b\"", "\"path\":\"x\"", 1),
    )
    .unwrap();
    for _ in 0..2 {
        let answer = alice.get(&format!("/federate/proof/{}/1", bob.did())).await;
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}

#[tokio::test]
async fn a_saved_proof_is_checked_without_a_node_and_a_false_one_is_refused() {
    let (bob, alice) = followed().await;
    let did = bob.did().to_string();
    let document = alice.ok(&["mcp", "federate", "proof", &did, "4"]).await;
    assert_eq!(document["entry"]["path"], "e");

    let nobody = Node::new("nobody");
    let file = nobody.scratch().join("proof.json");
    let path = file.to_str().unwrap().to_owned();
    let check = async |document: &Value, seq: &str| {
        fs::write(&file, document.to_string()).unwrap();
        let command = ["mcp", "federate", "proof", &did, seq, "--file", &path];
        let checked = nobody.cli(&command).await;
        let code = checked.problem()["code"].as_str().map(str::to_owned);
        (checked.status, code)
    };
    assert_eq!(check(&document, "4").await, (Some(0), None));
    let refused = |code: &str| (Some(1), Some(code.to_owned()));
    assert_eq!(check(&document, "3").await, refused("other_proof"));

    let other = alice.ok(&["mcp", "federate", "proof", &did, "3"]).await;
    let old: Value = serde_json::from_slice(alice.log(bob.did()).await.lines[0].as_ref()).unwrap();
    for (member, value, code) in [
        ("leaf", other["leaf"].clone(), "wrong_leaf"),
        ("entry", other["entry"].clone(), "wrong_leaf"),
        ("proof", other["proof"].clone(), "wrong_path"),
        ("proof", json!([]), "wrong_path"),
        ("log_root", other["leaf"].clone(), "unbound_root"),
        ("presence", old, "unbound_root"),
    ] {
        let mut spoilt = document.clone();
        spoilt[member] = value;
        assert_eq!(check(&spoilt, "4").await, refused(code), "{member}");
    }
    let mut forged = document.clone();
    forged["presence"]["log_size"] = json!(8);
    forged["log_size"] = json!(8);
    assert_eq!(check(&forged, "4").await, refused("wrong_id"));
    fs::write(&file, "{").unwrap();
    let command = ["mcp", "federate", "proof", &did, "4", "--file", &path];
    assert_eq!(nobody.cli(&command).await.problem()["code"], "invalid_json");
}
