//! Whatever was acknowledged is there after a crash, at whatever point it comes, and nobody has to lend a hand.

use std::collections::BTreeSet;
use std::time::Duration;

use hn_integration::cluster::Node;
use hn_integration::converge::{SOON, eventually};
use hn_integration::fault::{Dice, Fault, PUBLISH, SYNC};
use serde_json::Value;

/// How often each node is killed in the test of chance.
const KILLS: usize = 10;
/// The longest that a node is left alone in it.
const LONGEST_PEACE_MS: u64 = 250;
/// For everybody to agree after the last kill.
const PEACE: Duration = Duration::from_secs(30);

/// The paths of a log, each once.
async fn paths(node: &Node) -> BTreeSet<String> {
    let log = node.log(node.did()).await;
    let paths: BTreeSet<String> = log.entries.iter().map(|entry| entry.path.clone()).collect();
    assert_eq!(paths.len(), log.entries.len(), "no path stands twice");
    paths
}

/// Publishes one file and says whether it was acknowledged.
async fn publishes(node: &Node, path: &str) -> bool {
    let output = node.try_publish(&[(path, path.as_bytes())]).await;
    if output.status == Some(0) {
        let digest = output.json["published"][0]["digest"].as_str().unwrap();
        assert_eq!(
            digest,
            hn_protocol::digest::Digest::of(path.as_bytes()).to_string()
        );
    }
    output.status == Some(0)
}

/// ```text
///   bob crashes at each point of publishing in turn ◄──── alice
/// ```
#[tokio::test]
async fn a_crash_at_any_point_of_publishing_loses_nothing_acknowledged() {
    let (mut bob, alice) = (Node::started("bob").await, Node::started("alice").await);
    alice.follow(&bob).await;
    let mut acknowledged = BTreeSet::new();
    for point in PUBLISH {
        let (before, during, after) = (
            format!("{point}/before"),
            format!("{point}/during"),
            format!("{point}/after"),
        );
        assert!(
            publishes(&bob, &before).await,
            "{point}: publishing works before"
        );
        acknowledged.insert(before);
        bob.arm(Fault::Crash(point)).await;
        let survived = publishes(&bob, &during).await;
        let status = bob.ended(SOON).await;
        assert!(!status.success(), "{point}: the node crashes there");
        assert!(
            !survived,
            "{point}: a crash before the answer is no success"
        );

        bob.start().await;
        let found = paths(&bob).await;
        assert!(
            found.is_superset(&acknowledged),
            "{point}: lost {:?}",
            acknowledged.difference(&found)
        );
        // The client may try again without knowing what became of the first attempt.
        assert!(
            publishes(&bob, &during).await,
            "{point}: the same works after"
        );
        assert!(
            publishes(&bob, &after).await,
            "{point}: publishing works after"
        );
        acknowledged.extend([during, after]);
        assert_eq!(
            paths(&bob).await,
            acknowledged,
            "{point}: everything once, nothing else"
        );
        assert_eq!(bob.status().await["log"]["state"], "ok", "{point}");
        alice.refresh().await;
        alice
            .converges_on(bob.did(), &bob.log(bob.did()).await, SOON)
            .await;
    }
}

/// ```text
///   bob: the disk is full at each point of publishing in turn
/// ```
#[tokio::test]
async fn a_write_that_fails_at_any_point_of_publishing_loses_nothing_and_heals() {
    let mut bob = Node::started("bob").await;
    let mut acknowledged = BTreeSet::new();
    for point in PUBLISH {
        let (during, after) = (format!("{point}/during"), format!("{point}/after"));
        bob.arm(Fault::DiskFull(point)).await;
        let output = bob
            .try_publish(&[(during.as_str(), during.as_bytes())])
            .await;
        // Once the journal is fsynced the files have it, so that an answer may be a success.
        if output.status == Some(0) {
            acknowledged.insert(during.clone());
        } else {
            assert_eq!(output.status, Some(1), "{point}: {}", output.stderr);
            assert!(
                output.problem()["code"].is_string(),
                "{point}: the failure has a code: {}",
                output.stderr
            );
            assert!(
                output.problem()["remedy"].is_string(),
                "{point}: and says what to do: {}",
                output.stderr
            );
        }
        assert_eq!(
            bob.get("/healthz").await.status(),
            200,
            "{point}: the node lives"
        );
        assert!(
            paths(&bob).await.is_superset(&acknowledged),
            "{point}: nothing acknowledged is lost"
        );
        assert!(
            publishes(&bob, &after).await,
            "{point}: it works again without a restart"
        );
        acknowledged.insert(after);
        assert!(
            paths(&bob).await.is_superset(&acknowledged),
            "{point}: nothing acknowledged is lost"
        );
        bob.restart().await;
        assert!(
            paths(&bob).await.is_superset(&acknowledged),
            "{point}: nor after kill -9"
        );
    }
}

/// ```text
///   bob ◄──mirrors── alice, who crashes at each point of following and mirroring in turn
/// ```
#[tokio::test]
async fn a_crash_at_any_point_of_following_loses_nothing_and_needs_no_hand() {
    let (bob, mut alice) = (Node::started("bob").await, Node::started("alice").await);
    bob.publish(&[("first", b"first")]).await;
    alice.follow(&bob).await;
    alice.ok(&["mcp", "federate", "refresh", "--mirror"]).await;
    for point in SYNC {
        let accepted = alice.log(bob.did()).await;
        let news = bob.publish(&[(point, point.as_bytes())]).await;
        alice.arm(Fault::Crash(point)).await;
        let refresh = alice.cli(&["mcp", "federate", "refresh", "--mirror"]).await;
        let status = alice.ended(SOON).await;
        assert!(!status.success(), "{point}: the node crashes there");
        assert_eq!(
            refresh.status,
            Some(1),
            "{point}: a refresh that crashes is no success"
        );

        // As she starts she asks bob, and never again by herself: the next crash is the next refresh's.
        alice.start().await;
        let found = alice.log(bob.did()).await;
        assert!(
            found.slices.starts_with(&accepted.slices),
            "{point}: what was accepted is there, byte for byte"
        );
        assert!(
            found.sequence >= accepted.sequence,
            "{point}: the sequence did not fall"
        );
        alice
            .converges_on(bob.did(), &bob.log(bob.did()).await, SOON)
            .await;
        alice.ok(&["mcp", "federate", "refresh", "--mirror"]).await;
        let digest = news["published"][0]["digest"].as_str().unwrap();
        let artifact = alice.get(&format!("/artifact/{digest}")).await;
        assert_eq!(artifact.status(), 200, "{point}: the artifact is mirrored");
        assert_eq!(artifact.bytes().await.unwrap(), point.as_bytes());
        alice.peer_becomes(bob.did(), "healthy", SOON).await;
    }
}

/// ```text
///   bob ◄──mirrors── alice: her disk is full at each point of following in turn
/// ```
#[tokio::test]
async fn a_write_that_fails_while_following_is_not_held_against_the_peer_and_heals() {
    let (bob, alice) = (Node::started("bob").await, Node::started("alice").await);
    bob.publish(&[("first", b"first")]).await;
    alice.follow(&bob).await;
    alice.ok(&["mcp", "federate", "refresh", "--mirror"]).await;
    for point in SYNC {
        let accepted = alice.log(bob.did()).await;
        bob.publish(&[(point, point.as_bytes())]).await;
        alice.arm(Fault::DiskFull(point)).await;
        let refresh = alice.cli(&["mcp", "federate", "refresh", "--mirror"]).await;
        let found = alice.log(bob.did()).await;
        assert!(
            found.slices.starts_with(&accepted.slices),
            "{point}: what was accepted is there"
        );
        let peer = alice.peer(bob.did()).await;
        assert_ne!(peer["state"], "stale", "{point}: bob did not lie: {peer}");
        if refresh.status != Some(0) {
            assert!(
                !peer["reason"].is_null(),
                "{point}: hn status says why: {peer}"
            );
        }
        assert_eq!(
            alice.get("/healthz").await.status(),
            200,
            "{point}: the node lives"
        );
        alice.ok(&["mcp", "federate", "refresh", "--mirror"]).await;
        alice
            .converges_on(bob.did(), &bob.log(bob.did()).await, SOON)
            .await;
        let peer = alice.peer_becomes(bob.did(), "healthy", SOON).await;
        assert!(peer["reason"].is_null(), "{point}: {peer}");
    }
}

#[tokio::test]
async fn a_crash_while_the_roster_is_written_leaves_the_old_roster_or_the_new_one() {
    let (bob, carol, mut alice) = (
        Node::started("bob").await,
        Node::started("carol").await,
        Node::started("alice").await,
    );
    alice.follow(&bob).await;
    alice.arm(Fault::Crash("roster.before_rename")).await;
    let did = carol.did().to_string();
    let add = alice
        .cli(&["mcp", "federate", "add", &did, &carol.base_url()])
        .await;
    assert_eq!(add.status, Some(1), "{}", add.stderr);
    assert!(!alice.ended(SOON).await.success());
    alice.start().await;
    let status = alice.status().await;
    assert!(status["roster_error"].is_null(), "{status}");
    alice.peer_becomes(bob.did(), "healthy", SOON).await;
    alice.follow(&carol).await;
    alice.peer_becomes(carol.did(), "healthy", SOON).await;
    let leftovers = std::fs::read_dir(alice.home().join("config"))
        .unwrap()
        .flatten();
    let leftovers: Vec<_> = leftovers
        .map(|entry| entry.file_name())
        .filter(|name| name.to_string_lossy().contains("tmp"))
        .collect();
    assert!(
        leftovers.is_empty(),
        "no half-written roster is left: {leftovers:?}"
    );
}

/// ```text
///   bob ◄──mirrors── alice ◄──follows── carol        each is killed 10 times while bob publishes
/// ```
#[tokio::test]
async fn ten_random_kills_of_each_node_lose_nothing_acknowledged() {
    let mut dice = Dice::from_env();
    let mut nodes = [
        Node::lively("bob").await,
        Node::lively("alice").await,
        Node::lively("carol").await,
    ];
    nodes[1].follow(&nodes[0]).await;
    nodes[2].follow(&nodes[1]).await;
    let bobs = nodes[0].did();
    let mut left = [KILLS; 3];
    let mut acknowledged = BTreeSet::new();
    let mut n = 0;
    while left.iter().any(|kills| *kills > 0) {
        let victim = usize::try_from(dice.below(3)).unwrap();
        if left[victim] == 0 {
            continue;
        }
        left[victim] -= 1;
        let peace = Duration::from_millis(dice.below(LONGEST_PEACE_MS));
        // Bob publishes and alice pulls until the blow falls, in the middle of either.
        let busy = async {
            let work = async {
                loop {
                    n += 1;
                    let path = format!("{n:04}");
                    if !publishes_over_the_socket(&nodes[0], &path).await {
                        break;
                    }
                    acknowledged.insert(path);
                }
            };
            let pull = nodes[1].cli(&["mcp", "federate", "refresh", "--mirror"]);
            tokio::join!(work, pull)
        };
        // Either way is fine: the blow, or all done before it.
        let _ = tokio::time::timeout(peace, busy).await;
        nodes[victim].restart().await;
        let found = paths(&nodes[0]).await;
        assert!(
            found.is_superset(&acknowledged),
            "lost {:?}",
            acknowledged.difference(&found)
        );
    }
    println!(
        "{} files were acknowledged in {n} attempts",
        acknowledged.len()
    );
    assert!(publishes(&nodes[0], "the end").await);
    let wanted = nodes[0].log(bobs).await;
    for node in &nodes[1..] {
        node.converges_on(bobs, &wanted, PEACE).await;
    }
    for node in &nodes {
        let status = node.status().await;
        assert_eq!(status["log"]["state"], "ok", "{}: {status}", node.name());
        for peer in status["peers"].as_array().unwrap() {
            let did = peer["did"].as_str().unwrap().parse().unwrap();
            node.peer_becomes(did, "healthy", PEACE).await;
        }
    }
}

/// One file through the socket: quicker than a command, so that a blow falls into the middle of it.
async fn publishes_over_the_socket(node: &Node, path: &str) -> bool {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(path.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append_data(&mut header, path, path.as_bytes()).unwrap();
    let request = node
        .admin(reqwest::Method::POST, "/admin/log/publish?public=true")
        .header("content-type", "application/x-tar")
        .body(tar.into_inner().unwrap());
    matches!(request.send().await, Ok(answer) if answer.status().is_success())
}

/// ```text
///   bob: the database is damaged while he is away
/// ```
#[tokio::test]
async fn a_damaged_database_is_set_aside_and_rebuilt_from_the_files() {
    let (mut bob, alice) = (Node::started("bob").await, Node::started("alice").await);
    alice.publish(&[("alice", b"alice")]).await;
    bob.publish(&[("one", b"one"), ("two", b"two")]).await;
    bob.follow(&alice).await;
    bob.refresh().await;
    for damage in ["overwritten", "gone"] {
        let (own, held) = (bob.log(bob.did()).await, bob.log(alice.did()).await);
        bob.kill();
        let state = bob.home().join("state");
        match damage {
            "overwritten" => overwrite(&state),
            _ => std::fs::remove_dir_all(&state).unwrap(),
        }
        bob.start().await;
        assert_eq!(
            bob.log(bob.did()).await.slices,
            own.slices,
            "{damage}: the own log is there"
        );
        assert_eq!(
            bob.log(alice.did()).await.slices,
            held.slices,
            "{damage}: alice's log is there"
        );
        assert!(publishes(&bob, damage).await, "{damage}: publishing works");
        bob.refresh().await;
        break_even(&bob, damage).await;
    }
}

/// Changes one byte in the middle of the one journal of a folder.
fn damage_journal(folder: &std::path::Path) {
    let files = std::fs::read_dir(folder).unwrap().flatten();
    let mut journals = files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "jsonl"));
    let journal = journals.next().expect("a journal");
    let mut bytes = std::fs::read(&journal).unwrap();
    let at = bytes.windows(6).position(|w| w == b"second").unwrap();
    bytes[at] = b'S';
    std::fs::write(&journal, bytes).unwrap();
}

/// ```text
///   bob ◄──── alice        the disk changes a byte in a journal of each
/// ```
#[tokio::test]
async fn a_damaged_journal_is_noticed_nothing_is_signed_on_top_and_a_copy_is_fetched_again() {
    let (mut bob, mut alice) = (Node::started("bob").await, Node::started("alice").await);
    for path in ["first", "second", "third"] {
        bob.publish(&[(path, path.as_bytes())]).await;
    }
    alice.follow(&bob).await;
    alice.refresh().await;
    let bobs = bob.did();
    let whole = bob.log(bobs).await;

    let copy = alice.home().join("cache/federation").join(bobs.to_string());
    alice.kill();
    damage_journal(&copy);
    std::fs::remove_dir_all(alice.home().join("state")).unwrap();
    // With bob there, alice would have caught up again before one could look.
    bob.kill();
    alice.start().await;
    let kept = alice.log(bobs).await;
    assert!(
        whole.slices.starts_with(&kept.slices) && kept.size < 3,
        "what verifies is kept: {} entries",
        kept.size
    );
    bob.start().await;
    alice.refresh().await;
    alice.converges_on(bobs, &whole, SOON).await;

    bob.kill();
    let own = std::fs::read_dir(bob.home().join("log")).unwrap();
    damage_journal(&own.flatten().next().expect("an alias").path());
    std::fs::remove_dir_all(bob.home().join("state")).unwrap();
    bob.start().await;
    assert_ne!(bob.status().await["log"]["state"], "ok");
    let refused = bob.try_publish(&[("fourth", b"fourth")]).await;
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    assert_eq!(refused.problem()["code"], "log_recovering");
    assert_eq!(bob.get("/healthz").await.status(), 200);
    alice.cli(&["mcp", "federate", "refresh"]).await;
    assert_eq!(
        alice.log(bobs).await.slices,
        whole.slices,
        "the follower holds what was published"
    );
}

/// The own log grew by one, and only by that.
async fn break_even(bob: &Node, path: &str) {
    eventually(SOON, "the own log goes on", async || {
        let log = bob.walk(bob.did()).await?;
        match log.entries.last() {
            Some(last) if last.path == path => Ok(()),
            last => Err(format!("{last:?}")),
        }
    })
    .await;
    let status: Value = bob.status().await;
    assert_eq!(status["log"]["state"], "ok");
}

/// Fills every file of a folder with nonsense of the same length.
fn overwrite(folder: &std::path::Path) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            overwrite(&path);
        } else {
            let length = usize::try_from(entry.metadata().unwrap().len()).unwrap();
            std::fs::write(path, vec![0x5a; length]).unwrap();
        }
    }
}
