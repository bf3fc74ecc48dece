//! A publisher written from `spec/` alone, in another language, is followed while it is honest; each lie that it tells
//! with its own key is refused and named, and an honest publisher beside it is none the worse.
//!
//! ```text
//!   eve   (publisher.py, lies)   ◄──┐
//!   frank (publisher.py, honest) ◄──┴──follows── alice
//! ```

use std::path::Path;
use std::process::Command;

use hn_integration::cluster::Node;
use hn_integration::converge::SOON;
use hn_integration::log::Walk;
use hn_integration::stranger::{Stranger, python};
use hn_protocol::did::Did;
use serde_json::Value;

/// Slices of a page in these tests, so that logs of a few slices have pages.
const PAGE: &str = "2";

/// Alice, who follows the strangers and has their honest logs.
async fn alice_follows(strangers: &[&Stranger]) -> Node {
    let mut alice = Node::new("alice").with("HN_FEDERATION__PAGE_SLICES", PAGE);
    alice.start().await;
    for stranger in strangers {
        follow(&alice, stranger, 0).await;
    }
    alice
}

async fn follow(node: &Node, stranger: &Stranger, door: usize) {
    let did = stranger.did().to_string();
    node.ok(&["mcp", "federate", "add", &did, stranger.door(door)])
        .await;
    node.peer_becomes(stranger.did(), "healthy", SOON).await;
}

/// The log as a node has it is the one that the stranger says it published.
async fn is_equal(node: &Node, did: Did, published: &Value) -> Walk {
    let walk = node.log(did).await;
    assert_eq!(walk.size, published["size"], "{published}");
    assert_eq!(walk.root.to_string(), published["root"], "{published}");
    walk
}

/// What a list of peers says of one.
fn of(peers: &Value, did: Did) -> Value {
    let mut peers = peers["peers"].as_array().expect("a list of peers").iter();
    let peer = peers.find(|peer| peer["did"] == did.to_string());
    peer.expect("the peer is listed").clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_made_from_the_spec_alone_is_followed_while_it_grows() {
    let Some(python) = python() else { return };
    let mut frank = Stranger::start(&python, 1);
    let mut published = frank.order("publish 5 3");
    let mut alice = alice_follows(&[&frank]).await;
    is_equal(&alice, frank.did(), &published).await;
    for commit in ["publish", "publish 1 512", "publish 4 1", "publish 3 40"] {
        published = frank.order(commit);
        alice.refresh().await;
        is_equal(&alice, frank.did(), &published).await;
    }
    frank.order("requests");
    let quiet = alice.refresh().await;
    assert_eq!(of(&quiet, frank.did())["status"], "up-to-date", "{quiet}");
    let asked = frank.order("requests");
    let pages = asked["requests"].as_array().unwrap();
    let pages = pages
        .iter()
        .filter(|request| request.as_str().unwrap().contains("/federate/index"));
    assert_eq!(pages.count(), 1, "nothing new is one request: {asked}");

    // What it published can be had, and is had again by whoever follows alice alone.
    let entries = alice
        .ok(&["shard", "list", "--from", &frank.did().to_string()])
        .await;
    let digest = entries["entries"][7]["digest"].as_str().unwrap().to_owned();
    let out = alice.scratch().join("fetched");
    alice
        .ok(&["shard", "fetch", &digest, "--out", out.to_str().unwrap()])
        .await;
    assert_eq!(
        hn_protocol::digest::Digest::of(&std::fs::read(out).unwrap()).to_string(),
        digest
    );
    alice.restart().await;
    let (original, mut carol) = (
        is_equal(&alice, frank.did(), &published).await,
        Node::new("carol"),
    );
    carol.start().await;
    carol.follow(&alice).await;
    carol.refresh().await;
    carol.converges_on(frank.did(), &original, SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_lie_of_a_publisher_made_from_the_spec_is_refused_and_named() {
    let Some(python) = python() else { return };
    let (mut eve, mut frank) = (Stranger::start(&python, 1), Stranger::start(&python, 1));
    eve.order("publish 3 2");
    frank.order("publish 3 2");
    let alice = alice_follows(&[&eve, &frank]).await;
    let lies = eve.order("lies")["lies"].clone();
    let lies = lies.as_object().expect("lies by name");
    assert!(lies.len() >= 30, "{lies:?}");
    for (lie, code) in lies {
        let honest = eve.order("publish 1 3");
        alice.refresh().await;
        let accepted = is_equal(&alice, eve.did(), &honest).await;
        eve.order(&format!("tell {lie}"));
        let more = frank.order("publish");
        is_refused(&alice, &eve, (lie, code, "stale"), &accepted).await;
        is_equal(&alice, frank.did(), &more).await;
        let status = alice.ok(&["status"]).await;
        assert_eq!(
            of(&status, frank.did())["state"],
            "healthy",
            "{lie} told by eve"
        );
        eve.order("honest");
    }
}

/// A fork of each kind, by a publisher of its own each, all followed by one node.
#[tokio::test(flavor = "multi_thread")]
async fn every_fork_of_a_publisher_made_from_the_spec_is_kept_as_evidence_and_disturbs_no_other() {
    let Some(python) = python() else { return };
    let mut frank = Stranger::start(&python, 1);
    frank.order("publish 3 2");
    let alice = alice_follows(&[&frank]).await;
    let forks = frank.order("lies")["forks"].clone();
    let forks = forks.as_object().expect("forks by name");
    assert!(forks.len() >= 5, "{forks:?}");
    for (fork, code) in forks {
        let mut eve = Stranger::start(&python, 1);
        eve.order("publish 3 2");
        let honest = eve.order("publish 1 3");
        follow(&alice, &eve, 0).await;
        let accepted = is_equal(&alice, eve.did(), &honest).await;
        eve.order(&format!("tell {fork}"));
        let more = frank.order("publish");
        is_refused(&alice, &eve, (fork, code, "forked"), &accepted).await;
        is_equal(&alice, frank.did(), &more).await;
        // To be honest again does not undo what was signed.
        eve.order("honest");
        eve.order("publish");
        is_refused(&alice, &eve, (fork, code, "forked"), &accepted).await;
        let path = format!("/federate/forks?publisher={}", eve.did());
        let evidence = alice.get(&path).await.text().await.unwrap();
        let file = alice.scratch().join("evidence.json");
        std::fs::write(&file, &evidence).unwrap();
        let proved = verify_fork(&python, &file).unwrap_or_else(|e| panic!("{fork}: {e}"));
        assert_eq!(proved["publisher"], eve.did().to_string(), "{fork}");
        assert_eq!(proved["observer"], alice.did().to_string(), "{fork}");
        let altered = evidence.replacen("\"log_size\":", "\"log_size\":1", 1);
        std::fs::write(&file, altered).unwrap();
        verify_fork(&python, &file).expect_err("what was altered proves nothing");
    }
    let status = alice.ok(&["status"]).await;
    assert_eq!(of(&status, frank.did())["state"], "healthy", "{status}");
}

/// `independent/verify_fork.py`, which knows nothing but the file.
fn verify_fork(python: &Path, file: &Path) -> Result<Value, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/independent/verify_fork.py");
    let output = Command::new(python).args(["-B", script]).arg(file).output();
    let output = output.map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())
}

/// ```text
///   eve shows alice less than bob, or another log than bob; bob ◄──held── alice
/// ```
#[tokio::test(flavor = "multi_thread")]
async fn what_a_stranger_shows_to_one_follower_and_not_to_another_is_found_by_comparing_heads() {
    let Some(python) = python() else { return };
    for (lie, state, code) in [
        ("last_slice_withheld", "stale", "rollback"),
        ("fork_of_one_size", "forked", "fork"),
        ("fork_with_other_boundaries", "forked", "fork"),
        ("two_presences_of_one_sequence", "forked", "fork"),
    ] {
        let mut eve = Stranger::start(&python, 2);
        eve.order("publish 2 2");
        eve.order("publish 1 2");
        eve.order(&format!("tell {lie} 1"));
        let (alice, bob) = (Node::started("alice").await, Node::started("bob").await);
        follow(&bob, &eve, 0).await;
        follow(&alice, &eve, 1).await;
        alice.follow(&bob).await;
        alice.cli(&["mcp", "federate", "refresh"]).await;
        let refresh = alice.cli(&["mcp", "federate", "refresh"]).await;
        let report = of(&refresh.json, eve.did());
        assert_eq!(report["error"]["code"], code, "{lie}: {report}");
        let status = alice.ok(&["status"]).await;
        assert_eq!(of(&status, eve.did())["state"], state, "{lie}");
        assert_eq!(
            of(&status, bob.did())["state"],
            "healthy",
            "{lie}: bob told the truth"
        );
    }
}

/// ```text
///   frank (gone) ◄──held by── eve (publisher.py) ◄──follows── alice
/// ```
#[tokio::test(flavor = "multi_thread")]
async fn what_a_stranger_passes_on_of_another_log_is_judged_as_that_log() {
    let Some(python) = python() else { return };
    for lie in [
        "wrong_log_root",
        "wrong_prev",
        "climbing_path",
        "slice_signed_by_another",
        "slice_left_out",
        "fork_with_the_same_boundaries",
    ] {
        let mut eve = Stranger::start(&python, 1);
        eve.order("publish 2 2");
        eve.order("hold");
        let other = eve.order("hold");
        let alice = alice_follows(&[&eve]).await;
        let frank: Did = other["did"].as_str().unwrap().parse().unwrap();
        alice.refresh().await;
        let accepted = is_equal(&alice, frank, &other).await;
        let told = eve.order(&format!("hold {lie}"));
        let code = &told["code"];
        let more = eve.order("publish");
        let refresh = alice.cli(&["mcp", "federate", "refresh"]).await;
        let report = of(&refresh.json, eve.did());
        let held = &report["held"][0];
        assert_eq!(&held["error"]["code"], code, "{lie}: {report}");
        let state = if code == "fork" { "healthy" } else { "stale" };
        assert_eq!(report["state"], state, "{lie}: {report}");
        assert_eq!(alice.log(frank).await.lines, accepted.lines, "{lie}");
        is_equal(&alice, eve.did(), &more).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pruned_log_begins_at_its_frontier_and_a_frontier_that_does_not_fold_is_refused() {
    let Some(python) = python() else { return };
    let mut eve = Stranger::start(&python, 1);
    eve.order("publish 3 3");
    let whole = eve.order("publish 2 3");
    let did = eve.did().to_string();
    let alice = alice_follows(&[]).await;
    for (lie, code) in eve.order("lies")["frontiers"].as_object().unwrap() {
        eve.order(&format!("tell {lie}"));
        alice
            .ok(&["mcp", "federate", "add", &did, eve.door(0)])
            .await;
        let refresh = alice.cli(&["mcp", "federate", "refresh"]).await;
        let report = of(&refresh.json, eve.did());
        assert_eq!(&report["error"]["code"], code, "{lie}: {report}");
        assert!(
            alice.walk(eve.did()).await.is_err(),
            "{lie}: nothing of it is held"
        );
    }
    eve.order("prune");
    alice.refresh().await;
    let peer = alice.peer_becomes(eve.did(), "healthy", SOON).await;
    assert_eq!(
        (&peer["log_size"], &peer["log_root"]),
        (&whole["size"], &whole["root"]),
        "{peer}"
    );
    let more = eve.order("publish");
    alice.refresh().await;
    let peer = alice.peer(eve.did()).await;
    assert_eq!(
        (&peer["log_size"], &peer["log_root"]),
        (&more["size"], &more["root"]),
        "{peer}"
    );
}

/// Pulls, and proves that the lie is refused under its code, shown to the operator, and changes nothing.
async fn is_refused(
    alice: &Node,
    eve: &Stranger,
    (lie, code, state): (&str, &Value, &str),
    accepted: &Walk,
) {
    let refresh = alice.cli(&["mcp", "federate", "refresh"]).await;
    assert_eq!(refresh.status, Some(1), "{lie}: {}", refresh.stdout);
    let report = of(&refresh.json, eve.did());
    assert_eq!(&report["error"]["code"], code, "{lie}: {report}");
    for listing in [
        alice.ok(&["status"]).await,
        alice.ok(&["mcp", "federate", "list"]).await,
    ] {
        let peer = of(&listing, eve.did());
        assert_eq!(peer["state"], state, "{lie}: {peer}");
        let reason = peer["reason"].as_str().unwrap_or_default();
        assert!(
            reason.starts_with(code.as_str().unwrap()),
            "{lie} is named {code}: {peer}"
        );
        for said in ["remedy", "since", "next_try"] {
            assert!(peer[said].is_string(), "{lie}: {said} is said: {peer}");
        }
    }
    let now = alice.log(eve.did()).await;
    assert_eq!(now.lines, accepted.lines, "{lie}: what was accepted stays");
}
