//! Nodes publish, follow, mirror, go away and come back.

use std::time::Duration;

use hn_integration::cluster::{LIVELY, Node};
use hn_integration::converge::{SOON, eventually};
use hn_integration::hostile::Eve;
use hn_protocol::digest::Digest;
use serde_json::Value;

/// Within which a peer that is back has been caught up (design 4).
const CAUGHT_UP: Duration = Duration::from_secs(5);

const NOTES: [(&str, &[u8]); 4] = [
    ("notes/one.txt", b"one"),
    ("notes/deep/two.txt", b"two"),
    ("notes/\u{e9}.txt", b"three"),
    ("empty", b""),
];

/// What a refresh says of one held log; null when it says nothing.
fn held(refresh: &Value, did: &str) -> Value {
    let peers = refresh["peers"].as_array().unwrap();
    let mut held = peers
        .iter()
        .flat_map(|peer| peer["held"].as_array().unwrap());
    held.find(|log| log["did"] == did)
        .cloned()
        .unwrap_or_default()
}

/// ```text
///   bob ◄──mirrors── alice ◄──follows── carol        then bob is killed
/// ```
#[tokio::test]
async fn carol_who_follows_only_alice_reads_and_fetches_bob_after_he_is_gone() {
    let (mut bob, alice, carol) = (
        Node::started("bob").await,
        Node::started("alice").await,
        Node::started("carol").await,
    );
    let published = bob.publish(&NOTES).await;
    let did = bob.did().to_string();
    assert_eq!(published["log_size"], NOTES.len());

    alice.follow(&bob).await;
    let mirrored = alice.ok(&["mcp", "federate", "refresh", "--mirror"]).await;
    let report = &mirrored["peers"][0];
    assert_eq!(
        (&report["did"], &report["state"]),
        (&Value::from(did.clone()), &"healthy".into()),
        "{report}"
    );
    assert_eq!(
        report["log_root"], published["log_root"],
        "alice's root of bob's log is bob's"
    );

    carol.follow(&alice).await;
    let refreshed = carol.refresh().await;
    assert_eq!(
        held(&refreshed, &did)["log_root"],
        published["log_root"],
        "carol's root of bob's log is bob's: {refreshed}"
    );
    let original = bob.log(bob.did()).await;
    assert_eq!(original.root.to_string(), published["log_root"]);

    let bobs = bob.did();
    bob.kill();
    let copy = carol.log(bobs).await;
    assert_eq!(
        copy.slices, original.slices,
        "carol serves bob's slices byte for byte"
    );
    assert_eq!(copy.lines, original.lines, "and his presences");

    let listed = carol.ok(&["shard", "list", "--from", &did]).await;
    let entries = listed["entries"].as_array().unwrap();
    assert_eq!(entries.len(), NOTES.len());
    for entry in entries {
        let digest = entry["digest"].as_str().unwrap();
        let out = carol.scratch().join(digest);
        carol
            .ok(&[
                "shard",
                "fetch",
                digest,
                "--from",
                &did,
                "--out",
                out.to_str().unwrap(),
            ])
            .await;
        let content = std::fs::read(&out).unwrap();
        assert_eq!(
            Digest::of(&content).to_string(),
            digest,
            "what carol fetched is what bob published"
        );
        let (_, original) = NOTES
            .iter()
            .find(|(path, _)| entry["path"] == *path)
            .expect("a path of bob's");
        assert_eq!(content, *original);
    }
    let presence: Value = carol
        .get(&format!("/presence/{did}"))
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(presence["did"], did, "carol serves bob's presence");
}

/// ```text
///   bob ◄──── alice        bob: publishes, is killed, publishes without a node, starts again
/// ```
#[tokio::test]
async fn what_bob_publishes_while_he_is_offline_reaches_alice_within_5_s_of_his_return() {
    let (mut bob, mut alice) = (Node::started("bob").await, Node::new("alice"));
    // As she comes: nothing is said of how often she pulls, nor of whether she listens.
    alice.unset("HN_FEDERATION__INTERVAL_S");
    alice.unset("HN_FEDERATION__WATCH");
    alice.start().await;
    bob.publish(&NOTES).await;
    alice.follow(&bob).await;
    let bobs = bob.did();
    alice
        .converges_on(bobs, &bob.log(bobs).await, CAUGHT_UP)
        .await;

    // A short absence, which she may not even notice.
    bob.kill();
    let offline = bob
        .publish(&[("offline.txt", b"written while offline")])
        .await;
    assert_eq!(offline["log_size"], NOTES.len() + 1);
    bob.start().await;
    let wanted = bob.log(bobs).await;
    assert_eq!(
        wanted.root.to_string(),
        offline["log_root"],
        "what was published offline is served"
    );
    alice.converges_on(bobs, &wanted, CAUGHT_UP).await;

    // One that she does.
    bob.kill();
    let peer = alice.peer_becomes(bobs, "unreachable", SOON).await;
    for said in ["reason", "remedy", "since", "next_try"] {
        assert!(!peer[said].is_null(), "hn status says {said}: {peer}");
    }
    let refresh = alice.cli(&["mcp", "federate", "refresh"]).await;
    assert_eq!(
        refresh.status,
        Some(1),
        "a peer that is away fails a refresh"
    );
    bob.publish(&[("offline again.txt", b"and once more")])
        .await;
    bob.start().await;
    let wanted = bob.log(bobs).await;
    alice.converges_on(bobs, &wanted, CAUGHT_UP).await;
    alice.peer_becomes(bobs, "healthy", SOON).await;
}

/// ```text
///   bob ◄──── alice ◄──── carol        nobody gives a command
/// ```
#[tokio::test]
async fn news_travels_two_hops_by_itself() {
    let (bob, alice, carol) = (
        Node::started("bob").await,
        Node::lively("alice").await,
        Node::lively("carol").await,
    );
    alice.follow(&bob).await;
    carol.follow(&alice).await;
    for n in 0..3 {
        bob.publish(&[(&format!("{n}.txt"), b"news")]).await;
        let wanted = bob.log(bob.did()).await;
        alice.converges_on(bob.did(), &wanted, SOON).await;
        carol.converges_on(bob.did(), &wanted, SOON).await;
    }
}

/// ```text
///   bob ◄──── alice ◄──scope own── carol
/// ```
#[tokio::test]
async fn scope_own_brings_only_the_log_of_the_peer_itself() {
    let (bob, alice, carol) = (
        Node::started("bob").await,
        Node::started("alice").await,
        Node::started("carol").await,
    );
    bob.publish(&NOTES).await;
    alice.publish(&[("alice.txt", b"alice")]).await;
    alice.follow(&bob).await;
    alice.refresh().await;
    let did = alice.did().to_string();
    carol
        .ok(&[
            "mcp",
            "federate",
            "add",
            &did,
            &alice.base_url(),
            "--scope",
            "own",
        ])
        .await;
    carol.refresh().await;
    carol
        .converges_on(alice.did(), &alice.log(alice.did()).await, SOON)
        .await;
    assert!(
        carol.walk(bob.did()).await.is_err(),
        "what alice holds is not followed"
    );

    carol
        .ok(&[
            "mcp",
            "federate",
            "add",
            &did,
            &alice.base_url(),
            "--scope",
            "held",
        ])
        .await;
    carol.refresh().await;
    carol
        .converges_on(bob.did(), &bob.log(bob.did()).await, SOON)
        .await;
}

/// ```text
///   bob ◄──► alice        each follows the other
/// ```
#[tokio::test]
async fn two_nodes_that_follow_each_other_agree_on_both_logs() {
    let (bob, alice) = (Node::lively("bob").await, Node::lively("alice").await);
    bob.follow(&alice).await;
    alice.follow(&bob).await;
    bob.publish(&[("b", b"b")]).await;
    alice.publish(&[("a", b"a")]).await;
    alice
        .converges_on(bob.did(), &bob.log(bob.did()).await, SOON)
        .await;
    bob.converges_on(alice.did(), &alice.log(alice.did()).await, SOON)
        .await;
    bob.publish(&[("b2", b"b2")]).await;
    alice
        .converges_on(bob.did(), &bob.log(bob.did()).await, SOON)
        .await;
    assert_eq!(
        alice.log(alice.did()).await.size,
        1,
        "a node's own log grows by its own hand alone"
    );
}

/// ```text
///   bob ◄──── alice        many more slices than a page holds
/// ```
#[tokio::test]
async fn a_log_of_many_pages_is_followed_to_its_end() {
    let (bob, alice) = (
        Node::started("bob").await,
        Node::new("alice").with("HN_FEDERATION__PAGE_SLICES", "2"),
    );
    let mut alice = alice;
    alice.start().await;
    for n in 0..7 {
        bob.publish(&[(&format!("{n}.txt"), b"page")]).await;
    }
    alice.follow(&bob).await;
    let report = alice.refresh().await["peers"][0].clone();
    assert_eq!(report["log_size"], 7, "{report}");
    let wanted = bob.log(bob.did()).await;
    assert_eq!(wanted.slices.len(), 7);
    alice.converges_on(bob.did(), &wanted, SOON).await;
    let again = alice.refresh().await["peers"][0].clone();
    assert_eq!(
        (&again["status"], &again["entries"]),
        (&"up-to-date".into(), &0.into()),
        "{again}"
    );
}

/// ```text
///   bob ◄──── alice        a person writes alice's roster with an editor
/// ```
#[tokio::test]
async fn a_roster_edited_by_hand_is_followed_while_the_node_runs() {
    let (bob, alice) = (Node::started("bob").await, Node::started("alice").await);
    bob.publish(&NOTES).await;
    let roster = alice.home().join("config/federation.toml");
    let text = format!(
        "# written by hand\n[[peer]]\ndid = \"{}\"\nurl = \"{}\"\nmirror = true\nalias = \"bob\"\n",
        bob.did(),
        bob.base_url()
    );
    std::fs::create_dir_all(roster.parent().unwrap()).unwrap();
    std::fs::write(&roster, &text).unwrap();
    alice
        .converges_on(bob.did(), &bob.log(bob.did()).await, SOON)
        .await;
    let digest = Digest::of(NOTES[0].1);
    eventually(
        SOON,
        "alice mirrors what the roster says to mirror",
        async || {
            let status = alice.get(&format!("/artifact/{digest}")).await.status();
            if status == 200 {
                Ok(())
            } else {
                Err(status.to_string())
            }
        },
    )
    .await;

    std::fs::write(&roster, format!("{text}\n[[peer]\ndid =")).unwrap();
    eventually(
        SOON,
        "hn status says that the roster can't be read",
        async || {
            let status = alice.status().await;
            match status["roster_error"].is_null() {
                false => Ok(()),
                true => Err(status.to_string()),
            }
        },
    )
    .await;
    // A broken roster changes nothing.
    alice.peer_becomes(bob.did(), "healthy", SOON).await;

    std::fs::write(&roster, "# nobody\n").unwrap();
    eventually(SOON, "alice follows nobody any more", async || {
        let status = alice.status().await;
        match (
            status["peers"].as_array().unwrap().is_empty(),
            status["roster_error"].is_null(),
        ) {
            (true, true) => Ok(()),
            _ => Err(status.to_string()),
        }
    })
    .await;
    assert_eq!(
        alice.log(bob.did()).await.size,
        4,
        "what was verified is served on"
    );
}

#[tokio::test]
async fn adding_a_peer_keeps_what_a_person_wrote_into_the_roster() {
    let (bob, alice) = (Node::started("bob").await, Node::started("alice").await);
    let roster = alice.home().join("config/federation.toml");
    std::fs::create_dir_all(roster.parent().unwrap()).unwrap();
    std::fs::write(&roster, "# my friends, do not touch\n").unwrap();
    alice.follow(&bob).await;
    let text = std::fs::read_to_string(&roster).unwrap();
    assert!(text.contains("# my friends, do not touch"), "{text}");
    assert!(text.contains(&bob.did().to_string()), "{text}");
}

/// ```text
///   bob (6 minutes ahead) ◄──── alice
/// ```
#[tokio::test]
async fn a_publisher_whose_clock_is_6_minutes_ahead_is_stale_until_it_is_set_right() {
    let mut bob = Node::new("bob").with("HN_CLOCK_OFFSET", "+6m");
    bob.start().await;
    let alice = Node::started("alice").await;
    alice.follow(&bob).await;
    let peer = alice.peer_becomes(bob.did(), "stale", SOON).await;
    assert!(peer["reason"].to_string().contains("ahead"), "{peer}");
}

/// ```text
///   bob (his presence expired) ◄──── alice ◄──── carol
/// ```
#[tokio::test]
async fn an_expired_presence_is_still_served_as_the_last_known_and_marked() {
    let (mut bob, alice, mut carol) = (
        Node::started("bob").await,
        Node::started("alice").await,
        Node::new("carol"),
    );
    bob.publish(&NOTES).await;
    alice.follow(&bob).await;
    alice.refresh().await;
    let bobs = bob.did();
    bob.kill();
    let wanted = alice.log(bobs).await;

    // Two days later, for carol.
    let mut alice = alice;
    alice.kill();
    alice.set("HN_CLOCK_OFFSET", "+2d");
    alice.start().await;
    carol.set("HN_CLOCK_OFFSET", "+2d");
    carol.start().await;
    // She signs no presence before bob was given his 5 s to answer.
    eventually(
        SOON,
        "alice has a presence of these days",
        async || match alice.get("/presence").await.headers().get("hn-expired") {
            Some(_) => Err("it has expired".to_owned()),
            None => Ok(()),
        },
    )
    .await;
    let answer = alice.get(&format!("/presence/{bobs}")).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["hn-expired"], "true");
    assert!(
        answer.headers().contains_key("hn-last-seen"),
        "{:?}",
        answer.headers()
    );
    carol.follow(&alice).await;
    carol.refresh().await;
    carol.converges_on(bobs, &wanted, SOON).await;
}

/// ```text
///   bob ◄──── alice        alice is restarted in between
/// ```
#[tokio::test]
async fn a_follower_goes_on_where_it_stopped_after_a_restart() {
    let (bob, mut alice) = (Node::started("bob").await, Node::started("alice").await);
    bob.publish(&NOTES).await;
    alice.follow(&bob).await;
    alice.refresh().await;
    alice.terminate().await;
    alice.start().await;
    alice
        .converges_on(bob.did(), &bob.log(bob.did()).await, SOON)
        .await;
    bob.publish(&[("more.txt", b"more")]).await;
    let report = alice.refresh().await["peers"][0].clone();
    assert_eq!(
        (&report["status"], &report["slices"], &report["entries"]),
        (&"updated".into(), &1.into(), &1.into()),
        "{report}"
    );
}

/// ```text
///   bob ◄──── alice        `hn mcp sync --once` without a daemon
/// ```
#[tokio::test]
async fn following_works_without_a_daemon() {
    let bob = Node::started("bob").await;
    bob.publish(&NOTES).await;
    let mut alice = Node::new("alice").with("HN_FEDERATION__INTERVAL_S", LIVELY);
    alice.ok(&["id", "create", "alice"]).await;
    let did = bob.did().to_string();
    alice
        .ok(&["mcp", "federate", "add", &did, &bob.base_url()])
        .await;
    alice.ok(&["mcp", "sync", "--once"]).await;
    let listed = alice.ok(&["shard", "list", "--from", &did]).await;
    assert_eq!(listed["entries"].as_array().unwrap().len(), NOTES.len());
    alice.start().await;
    alice
        .converges_on(bob.did(), &bob.log(bob.did()).await, SOON)
        .await;
}

/// ```text
///   bob ◄──── carol ◄──── alice, who then follows bob by his DID alone
/// ```
#[tokio::test]
async fn a_peer_that_is_added_without_a_url_is_asked_where_its_presence_says_and_the_roster_names_none()
 {
    let (bob, carol, alice) = (
        Node::started("bob").await,
        Node::started("carol").await,
        Node::started("alice").await,
    );
    bob.publish(&NOTES).await;
    carol.follow(&bob).await;
    carol.refresh().await;
    alice.follow(&carol).await;
    let first = alice.refresh().await;
    let did = bob.did().to_string();
    let log = held(&first, &did);
    assert_eq!(log["log_size"], NOTES.len(), "{first}");
    assert_eq!(
        held(&alice.refresh().await, &did),
        log,
        "a list that has not changed says the same of what is held"
    );

    let added = alice.ok(&["mcp", "federate", "add", &did]).await;
    assert_eq!(added["peer"]["url"], Value::Null, "{added}");
    let more = bob.publish(&[("more.txt", b"more")]).await;
    let report = alice.ok(&["mcp", "federate", "refresh", &did]).await["peers"][0].clone();
    assert_eq!(report["log_root"], more["log_root"], "{report}");
    alice.peer_becomes(bob.did(), "healthy", SOON).await;
    let roster = std::fs::read_to_string(alice.home().join("config/federation.toml")).unwrap();
    assert!(
        !roster.contains(&bob.base_url()),
        "what a presence says is not the operator's word: {roster}"
    );
}

/// ```text
///   eve, whose artifacts are false ◄──mirrors── alice
/// ```
#[tokio::test]
async fn an_artifact_that_cannot_be_had_is_left_alone_until_an_operator_asks() {
    let (eve, alice) = (Eve::honest().await, Node::started("alice").await);
    eve.spoil_artifacts();
    let did = eve.did().to_string();
    let asked = || {
        let requests = eve.requests();
        requests.iter().filter(|r| r.contains("/artifact/")).count()
    };
    alice
        .ok(&["mcp", "federate", "add", &did, eve.base_url(), "--mirror"])
        .await;
    let mirror = ["mcp", "federate", "refresh", did.as_str(), "--mirror"];
    let report = alice.cli(&mirror).await.json["peers"][0].clone();
    assert_eq!(
        report["mirrored"]["missing"],
        eve.artifacts().len(),
        "{report}"
    );
    let before = asked();
    assert!(before > 0);
    for _ in 0..3 {
        alice.cli(&["mcp", "federate", "refresh", &did]).await;
    }
    let peer = alice.peer(eve.did()).await;
    assert_eq!(
        peer["state"], "stale",
        "what she serves is false still: {peer}"
    );
    assert_eq!(asked(), before, "and it is not asked for with every pull");
    alice.cli(&mirror).await;
    assert_eq!(
        asked(),
        before + eve.artifacts().len(),
        "but for an operator"
    );
}

/// ```text
///   eve, mallory ◄──── alice        `hn mcp federate refresh EVE` without a daemon
/// ```
#[tokio::test]
async fn a_refresh_of_one_peer_without_a_daemon_asks_nobody_else() {
    let (eve, mallory) = (Eve::honest().await, Eve::honest().await);
    let alice = Node::new("alice");
    alice.ok(&["id", "create", "alice"]).await;
    for peer in [&eve, &mallory] {
        let did = peer.did().to_string();
        alice
            .ok(&["mcp", "federate", "add", &did, peer.base_url()])
            .await;
    }
    let did = eve.did().to_string();
    alice.ok(&["mcp", "federate", "refresh", &did]).await;
    assert!(!eve.requests().is_empty());
    assert_eq!(mallory.requests(), Vec::<String>::new());
}
