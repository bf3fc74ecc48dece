//! A publisher that signs two logs: seen, proved, told to others, and ended by the operator alone.
//!
//! ```text
//!   bob ──his home is copied──► bob's twin          each publishes
//!    ▲                            ▲
//!    └──────── alice ─────────────┘                 sees both
//! ```

use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use hn_integration::cluster::Node;
use hn_integration::converge::SOON;
use hn_integration::copy::Copy;
use hn_integration::hostile::{Author, Eve, Forgery, Lie, proof};
use hn_integration::log::{Walk, split};
use hn_protocol::did::{Did, SecretSeed};
use hn_protocol::document::ForkEvidence;
use hn_protocol::sign::Signed;
use serde_json::Value;

/// What the tests here say of one peer in a report.
fn of(report: &Value, did: Did) -> Value {
    let peers = report["peers"].as_array().expect("a list of peers");
    let peer = peers.iter().find(|peer| peer["did"] == did.to_string());
    peer.expect("the peer is there").clone()
}

/// What a report says of a log that is followed through `peer`.
fn held(report: &Value, peer: Did, did: Did) -> Value {
    let report = of(report, peer);
    let held = report["held"].as_array().expect("held logs");
    let log = held.iter().find(|log| log["did"] == did.to_string());
    log.cloned().unwrap_or_default()
}

/// Whether `/federate/peers` of a node calls the log forked.
async fn calls_forked(node: &Node, did: Did) -> bool {
    let heads: Value = node.get("/federate/peers").await.json().await.unwrap();
    let forked = of(&heads, did)["forked"].clone();
    forked.as_bool().expect("forked is said")
}

/// The evidence that a node serves, verified.
async fn evidence(node: &Node, of: Did) -> Vec<Signed<ForkEvidence>> {
    let answer = node.get(&format!("/federate/forks?publisher={of}")).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
    let lines = split(&answer.bytes().await.unwrap());
    let verified = lines.into_iter().map(Signed::<ForkEvidence>::verify);
    verified
        .collect::<Result<_, _>>()
        .expect("only what verifies is served")
}

/// The files of evidence in a home.
fn evidence_files(node: &Node, of: Did) -> Vec<PathBuf> {
    let folder = node.home().join(format!("cache/federation/{of}"));
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = files.map(|file| file.path());
    let mut files: Vec<PathBuf> = files
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("fork-"))
        })
        .collect();
    files.sort();
    files
}

async fn add(node: &Node, did: Did, url: &str) {
    node.ok(&["mcp", "federate", "add", &did.to_string(), url])
        .await;
    node.settles().await;
}

/// Follows `did` at `url` from now on, and pulls once.
async fn pulls(node: &Node, did: Did, url: &str) -> Value {
    add(node, did, url).await;
    node.cli(&["mcp", "federate", "refresh"]).await.json
}

/// The publisher is called forked, with reason and remedy, and its log stands where it stood.
async fn is_forked(node: &Node, did: Did, accepted: &Walk) {
    for listing in [
        node.ok(&["status"]).await,
        node.ok(&["mcp", "federate", "list"]).await,
    ] {
        let peer = of(&listing, did);
        assert_eq!(peer["state"], "forked", "{peer}");
        let reason = peer["reason"].as_str().unwrap_or_default();
        assert!(
            reason.starts_with("fork: ") && reason.contains("signed two logs"),
            "{peer}"
        );
        let remedy = peer["remedy"].as_str().unwrap_or_default();
        assert!(remedy.contains("hn mcp federate accept"), "{peer}");
    }
    assert!(calls_forked(node, did).await, "/federate/peers says so");
    let now = node.log(did).await;
    assert_eq!(now.lines, accepted.lines, "what was accepted is served on");
    assert_eq!(evidence(node, did).await.len(), 1);
    assert_eq!(evidence_files(node, did).len(), 1);
}

/// Alice, who has eve's honest log and has then been shown another one; the other eve; what alice accepted.
async fn alice_sees_two() -> (Node, Eve, Eve, Walk) {
    let alice = Node::started("alice").await;
    let mut eve = Eve::honest().await;
    let mut twin = eve.copied().await;
    eve.publish_files(2);
    twin.publish_files(3);
    add(&alice, eve.did(), eve.base_url()).await;
    let accepted = alice.log(eve.did()).await;
    assert_eq!(accepted.size, eve.size());
    let report = pulls(&alice, eve.did(), twin.base_url()).await;
    let peer = of(&report, eve.did());
    assert_eq!(
        (&peer["state"], &peer["status"]),
        (&"forked".into(), &"failed".into()),
        "{peer}"
    );
    assert_eq!(peer["error"]["code"], "fork", "{peer}");
    is_forked(&alice, eve.did(), &accepted).await;
    (alice, eve, twin, accepted)
}

/// The digest of the last slice that an eve published.
fn head_of(eve: &Eve) -> String {
    eve.author()
        .state
        .head
        .expect("a log with slices")
        .to_string()
}

#[tokio::test]
async fn two_copies_of_a_home_that_both_publish_are_proved_to_a_third_node_by_a_file_alone() {
    let mut bob = Node::started("bob").await;
    let did = bob.did();
    bob.publish(&[("before.txt", b"before")]).await;
    bob.terminate().await;
    let mut twin = Copy::of(&bob).node("twin");
    bob.start().await;
    twin.start().await;
    assert_eq!(twin.did(), did, "the same key");
    // A copy knows that it is one, and signs nothing before its operator has said that nobody has newer.
    assert_eq!(twin.status().await["log"]["state"], "recovering");
    twin.ok(&["mcp", "log", "resume", "--accept-loss"]).await;
    bob.publish(&[("ours.txt", b"bob")]).await;
    twin.publish(&[("ours.txt", b"twin")]).await;

    let alice = Node::started("alice").await;
    add(&alice, did, &bob.base_url()).await;
    let accepted = alice.log(did).await;
    assert_eq!(accepted.size, 2);
    pulls(&alice, did, &twin.base_url()).await;
    is_forked(&alice, did, &accepted).await;

    let file = evidence_files(&alice, did).remove(0);
    let served = evidence(&alice, did).await.remove(0);
    assert_eq!(
        &fs::read(&file).unwrap(),
        served.bytes(),
        "what is kept is what is served"
    );
    assert_eq!((served.publisher, served.observer), (did, alice.did()));
    // Carol has never heard of any of them.
    let carol = Node::new("carol");
    let checked = carol
        .ok(&["mcp", "federate", "forks", "--file", file.to_str().unwrap()])
        .await;
    let fork = &checked["forks"][0];
    assert_eq!(fork["publisher"], did.to_string(), "{checked}");
    assert_eq!(fork["sides"].as_array().map(Vec::len), Some(2), "{checked}");
    let altered = String::from_utf8(fs::read(&file).unwrap()).unwrap();
    let altered = altered.replacen("\"log_size\":", "\"log_size\":1", 1);
    let forged = carol.scratch().join("forged.json");
    fs::write(&forged, altered).unwrap();
    let refused = carol
        .cli(&[
            "mcp",
            "federate",
            "forks",
            "--file",
            forged.to_str().unwrap(),
        ])
        .await;
    assert_eq!(refused.status, Some(1), "{}", refused.stdout);
}

#[tokio::test]
async fn a_fork_is_seen_with_the_same_and_with_other_boundaries_and_when_it_is_no_longer() {
    for [ours, theirs] in [[2, 2], [2, 3], [3, 2], [2, 600], [600, 2]] {
        let alice = Node::started("alice").await;
        let mut eve = Eve::honest().await;
        let mut twin = eve.copied().await;
        eve.publish_files(ours);
        twin.publish_files(theirs);
        add(&alice, eve.did(), eve.base_url()).await;
        let accepted = alice.log(eve.did()).await;
        pulls(&alice, eve.did(), twin.base_url()).await;
        is_forked(&alice, eve.did(), &accepted).await;
    }
}

/// ```text
///   eve shows one log to bob and another to alice; bob ◄──held── alice
/// ```
#[tokio::test]
async fn two_followers_who_compare_their_heads_find_what_neither_was_shown() {
    for [to_bob, to_alice] in [[2, 2], [2, 3], [3, 2]] {
        let (alice, bob) = (Node::started("alice").await, Node::started("bob").await);
        let mut eve = Eve::honest().await;
        let mut twin = eve.copied().await;
        twin.publish_files(to_bob);
        eve.publish_files(to_alice);
        add(&bob, eve.did(), twin.base_url()).await;
        add(&alice, eve.did(), eve.base_url()).await;
        let accepted = alice.log(eve.did()).await;
        let report = pulls(&alice, bob.did(), &bob.base_url()).await;
        assert_eq!(
            of(&report, bob.did())["state"],
            "healthy",
            "bob is not to blame: {report}"
        );
        assert_eq!(
            held(&report, bob.did(), eve.did())["error"]["code"],
            "fork",
            "{report}"
        );
        is_forked(&alice, eve.did(), &accepted).await;
        // Bob hears of it from alice, and believes her evidence, not her.
        let ours = bob.log(eve.did()).await;
        let report = pulls(&bob, alice.did(), &alice.base_url()).await;
        assert_eq!(of(&report, alice.did())["state"], "healthy", "{report}");
        is_forked(&bob, eve.did(), &ours).await;
    }
}

/// ```text
///   eve shows alice less than bob; bob ◄──held── alice
/// ```
#[tokio::test]
async fn a_last_slice_that_is_withheld_from_one_follower_is_had_from_the_other_and_named() {
    let (alice, bob) = (Node::started("alice").await, Node::started("bob").await);
    let mut eve = Eve::honest().await;
    let less = eve.copied().await;
    eve.publish_files(2);
    add(&bob, eve.did(), eve.base_url()).await;
    add(&alice, eve.did(), less.base_url()).await;
    assert_eq!(alice.log(eve.did()).await.size, less.size());
    let report = pulls(&alice, bob.did(), &bob.base_url()).await;
    assert_eq!(of(&report, bob.did())["state"], "healthy", "{report}");
    assert_eq!(
        alice.log(eve.did()).await.lines,
        bob.log(eve.did()).await.lines
    );
    // What eve shows alice is older than what eve signed.
    let refresh = alice.cli(&["mcp", "federate", "refresh"]).await;
    assert_eq!(refresh.status, Some(1));
    let peer = of(&refresh.json, eve.did());
    assert_eq!(
        (&peer["state"], &peer["error"]["code"]),
        (&"stale".into(), &"rollback".into()),
        "{peer}"
    );
    assert!(
        !calls_forked(&alice, eve.did()).await,
        "to say less is not to say two things"
    );
}

/// ```text
///   bob (gone) ◄──held by── eve, who accuses him ◄──follows── alice
/// ```
#[tokio::test]
async fn evidence_that_proves_nothing_is_refused_and_charged_to_who_shows_it() {
    let (alice, eve) = (Node::started("alice").await, Eve::honest().await);
    let mut bob = Author::new("http://127.0.0.1:1");
    bob.publish();
    bob.publish();
    eve.hold(&bob, None);
    add(&alice, eve.did(), eve.base_url()).await;
    for forgery in Forgery::ALL {
        let accepted = alice.log(bob.did()).await;
        assert_eq!(accepted.size, bob.state.size());
        eve.accuse(bob.did(), &[forgery.told_of(&bob, &eve.author().identity)]);
        let refresh = alice.cli(&["mcp", "federate", "refresh"]).await;
        assert_eq!(refresh.status, Some(1), "{forgery:?}: {}", refresh.stdout);
        let peer = of(&refresh.json, eve.did());
        assert_eq!(
            peer["state"], "stale",
            "{forgery:?} is charged to eve: {peer}"
        );
        assert!(
            peer["error"].to_string().contains(forgery.refused_as()),
            "{forgery:?}: {peer}"
        );
        assert!(!calls_forked(&alice, bob.did()).await, "{forgery:?}");
        assert_eq!(
            evidence_files(&alice, bob.did()),
            Vec::<PathBuf>::new(),
            "{forgery:?}"
        );
        // Bob's log goes on, through eve herself, as soon as she is honest.
        eve.excuse();
        bob.publish();
        eve.hold(&bob, None);
        alice.refresh().await;
        alice.peer_becomes(eve.did(), "healthy", SOON).await;
    }
}

#[tokio::test]
async fn true_evidence_is_believed_whoever_shows_it_and_signed_it() {
    let (alice, eve) = (Node::started("alice").await, Eve::honest().await);
    let mut bob = Author::new("http://127.0.0.1:1");
    let mut twin = bob.clone();
    bob.publish();
    twin.publish_files(3);
    eve.hold(&bob, None);
    add(&alice, eve.did(), eve.base_url()).await;
    let accepted = alice.log(bob.did()).await;
    let nobody = SecretSeed::from_bytes(rand::random()).identity();
    let [ours, theirs] = [&bob, &twin].map(|author| author.pages.slices[0].bytes.clone());
    let line = proof(bob.did(), [&ours, &theirs], &nobody);
    // What stands before it does not matter, and what is wrong with eve's word is not charged to bob.
    eve.accuse(bob.did(), &[Bytes::from_static(b"{}"), line.clone()]);
    let report = alice.cli(&["mcp", "federate", "refresh"]).await.json;
    assert_eq!(
        held(&report, eve.did(), bob.did())["error"]["code"],
        "fork",
        "{report}"
    );
    assert!(calls_forked(&alice, bob.did()).await);
    assert_eq!(evidence(&alice, bob.did()).await[0].bytes(), &line);
    assert_eq!(alice.log(bob.did()).await.lines, accepted.lines);
}

/// ```text
///   bob, carol (gone) ◄──held by── eve ◄──follows── alice ──follows──► dave        bob, then eve, fork
/// ```
#[tokio::test]
async fn a_fork_in_one_log_disturbs_no_other() {
    let (alice, dave) = (Node::started("alice").await, Node::started("dave").await);
    let mut eve = Eve::honest().await;
    let [mut bob, mut carol] = [(); 2].map(|()| Author::new("http://127.0.0.1:1"));
    bob.publish();
    carol.publish();
    let mut twin = bob.clone();
    bob.publish();
    twin.publish_files(3);
    eve.hold(&bob, None);
    eve.hold(&carol, None);
    add(&alice, eve.did(), eve.base_url()).await;
    add(&alice, dave.did(), &dave.base_url()).await;
    let accepted = alice.log(bob.did()).await;
    eve.hold(&twin, None);
    for round in 0..3 {
        carol.publish();
        eve.hold(&carol, None);
        if round < 2 {
            eve.publish_files(2);
        } else {
            // The peer forks itself: what it holds of others is followed on.
            eve.lie(Lie::RewrittenSlice);
        }
        dave.publish(&[(&format!("{round}.txt"), b"dave")]).await;
        let report = alice.cli(&["mcp", "federate", "refresh"]).await.json;
        assert_eq!(of(&report, dave.did())["state"], "healthy", "{report}");
        assert_eq!(
            alice.log(dave.did()).await.lines,
            dave.log(dave.did()).await.lines
        );
        let state = if round < 2 { "healthy" } else { "forked" };
        assert_eq!(of(&report, eve.did())["state"], state, "{report}");
        assert_eq!(
            alice.log(carol.did()).await.size,
            carol.state.size(),
            "round {round}"
        );
        assert_eq!(alice.log(eve.did()).await.size, eve.size(), "round {round}");
        assert_eq!(
            alice.log(bob.did()).await.lines,
            accepted.lines,
            "bob's stands"
        );
        assert!(calls_forked(&alice, bob.did()).await);
        assert!(!calls_forked(&alice, carol.did()).await);
    }
}

#[tokio::test]
async fn accepting_the_other_log_sets_the_held_one_aside_and_follows_the_other() {
    let (mut alice, eve, mut twin, _) = alice_sees_two().await;
    let did = eve.did().to_string();
    let forks = alice.ok(&["mcp", "federate", "forks"]).await;
    let sides = forks["forks"][0]["sides"]
        .as_array()
        .expect("two sides")
        .clone();
    let held: Vec<String> = {
        let presences = eve.author().pages.presences.keys().map(ToString::to_string);
        presences.chain([head_of(&eve)]).collect()
    };
    let digests = sides
        .iter()
        .map(|side| side["digest"].as_str().unwrap().to_owned());
    let other = digests
        .into_iter()
        .find(|digest| !held.contains(digest))
        .expect("one is not held");
    let accept = alice
        .ok(&["mcp", "federate", "accept", &did, "--head", &other])
        .await;
    assert_eq!(accept["held_log"], "set_aside", "{accept}");
    for size in [None, Some(2)] {
        if let Some(more) = size {
            twin.publish_files(more);
        }
        alice.refresh().await;
        alice.peer_becomes(eve.did(), "healthy", SOON).await;
        let now = alice.log(eve.did()).await;
        assert_eq!(
            (now.size, now.root),
            (twin.size(), twin.author().state.root())
        );
        assert!(!calls_forked(&alice, eve.did()).await);
        alice.restart().await;
    }
    let peer = of(&pulls(&alice, eve.did(), eve.base_url()).await, eve.did());
    assert_ne!(
        peer["error"],
        Value::Null,
        "the log that was not accepted is refused: {peer}"
    );
    assert_eq!(alice.log(eve.did()).await.size, twin.size());
}

#[tokio::test]
async fn only_a_head_of_one_of_the_two_logs_can_be_accepted() {
    let (alice, eve, _, accepted) = alice_sees_two().await;
    let bob = Node::started("bob").await;
    let head = head_of(&eve);
    for (did, head, code) in [
        (eve.did(), "0".repeat(64), 1),
        (eve.did(), "head".to_owned(), 2),
        (bob.did(), head.clone(), 1),
        (alice.did(), head, 1),
    ] {
        let refused = alice
            .cli(&[
                "mcp",
                "federate",
                "accept",
                &did.to_string(),
                "--head",
                &head,
            ])
            .await;
        assert_eq!(
            refused.status,
            Some(code),
            "{did} {head}: {}",
            refused.stderr
        );
    }
    is_forked(&alice, eve.did(), &accepted).await;
}

#[tokio::test]
async fn a_fork_survives_restart_kill_reindex_and_the_peer_being_added_again() {
    let (mut alice, mut eve, _, accepted) = alice_sees_two().await;
    let did = eve.did();
    // The same log again, and more of it, from the one that was believed first.
    eve.publish_files(2);
    pulls(&alice, did, eve.base_url()).await;
    is_forked(&alice, did, &accepted).await;
    alice.terminate().await;
    alice.start().await;
    is_forked(&alice, did, &accepted).await;
    alice.restart().await;
    alice.cli(&["mcp", "federate", "refresh"]).await;
    is_forked(&alice, did, &accepted).await;
    alice.ok(&["mcp", "reindex"]).await;
    is_forked(&alice, did, &accepted).await;
    alice.kill();
    fs::remove_dir_all(alice.home().join("state")).unwrap();
    alice.start().await;
    alice.cli(&["mcp", "federate", "refresh"]).await;
    is_forked(&alice, did, &accepted).await;
    alice
        .ok(&["mcp", "federate", "remove", &did.to_string()])
        .await;
    assert!(
        calls_forked(&alice, did).await,
        "the log is held, and forked, without a peer"
    );
    pulls(&alice, did, eve.base_url()).await;
    is_forked(&alice, did, &accepted).await;
}

#[tokio::test]
async fn accepting_the_log_that_is_held_lets_it_go_on_and_the_other_be_refused() {
    let (alice, mut eve, mut twin, _) = alice_sees_two().await;
    let did = eve.did().to_string();
    let accept = alice
        .ok(&["mcp", "federate", "accept", &did, "--head", &head_of(&eve)])
        .await;
    assert_eq!(
        (&accept["did"], &accept["held_log"]),
        (&Value::from(did), &"kept".into()),
        "{accept}"
    );
    eve.publish_files(2);
    add(&alice, eve.did(), eve.base_url()).await;
    alice.refresh().await;
    alice.peer_becomes(eve.did(), "healthy", SOON).await;
    assert_eq!(alice.log(eve.did()).await.size, eve.size());
    assert!(!calls_forked(&alice, eve.did()).await);
    // What was not accepted is refused for good, and the same evidence does not bring the fork back.
    twin.publish_files(2);
    let peer = of(&pulls(&alice, eve.did(), twin.base_url()).await, eve.did());
    assert_ne!(peer["error"], Value::Null, "{peer}");
    assert_eq!(alice.log(eve.did()).await.size, eve.size(), "{peer}");
}

/// ```text
///   dave ──► alice, who knows of the fork; his copy of eve's log comes from alice alone
/// ```
#[tokio::test]
async fn whoever_takes_a_forked_log_over_from_a_holder_learns_that_it_is_forked() {
    let (alice, eve, _, accepted) = alice_sees_two().await;
    let dave = Node::started("dave").await;
    add(&dave, alice.did(), &alice.base_url()).await;
    for _ in 0..2 {
        let report = pulls(&dave, alice.did(), &alice.base_url()).await;
        assert_eq!(
            of(&report, alice.did())["state"],
            "healthy",
            "alice told the truth: {report}"
        );
    }
    assert!(
        calls_forked(&dave, eve.did()).await,
        "dave holds the log, and knows"
    );
    let (theirs, mut ours) = (
        evidence(&alice, eve.did()).await,
        evidence(&dave, eve.did()).await,
    );
    assert_eq!(
        ours.remove(0).bytes(),
        theirs[0].bytes(),
        "evidence is passed on as it is"
    );
    assert_eq!(dave.log(eve.did()).await.slices, accepted.slices);
}
