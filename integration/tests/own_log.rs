//! A home that comes back from an old disk signs nothing on top of it before its followers were asked: its log is
//! completed from them, and never forked.
//!
//! ```text
//!   bob ◄──follows── alice        bob names alice in his roster: she is whom he asks
//!       ───names───►
//! ```

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hn_integration::cluster::Node;
use hn_integration::converge::{SOON, eventually};
use hn_integration::copy::{Copy, wipe};
use hn_integration::hostile::{Eve, Manner};
use hn_integration::log::Walk;
use hn_protocol::did::Did;
use serde_json::{Value, json};

/// For a start to give up on holders that do not answer (design 4: 5 s), and for tests that share two cores.
const ASKED: Duration = Duration::from_secs(15);
/// For a holder that was away to be asked again (design 4: every 4 s at least), and its answer to be adopted.
const ASKED_AGAIN: Duration = Duration::from_secs(20);

/// Bob and Alice, who follow each other.
async fn bob_and_alice() -> (Node, Node) {
    let (bob, alice) = (Node::started("bob").await, Node::started("alice").await);
    bob.publish(&[("one.txt", b"1")]).await;
    alice.follow(&bob).await;
    bob.follow(&alice).await;
    alice.refresh().await;
    (bob, alice)
}

/// What `hn status` says of the own log.
async fn log_state(node: &Node) -> Value {
    node.ok(&["status"]).await["log"].clone()
}

async fn log_becomes(node: &Node, state: &str, deadline: Duration) -> Value {
    let sentence = format!("the log of {} is {state}", node.name());
    eventually(deadline, &sentence, async || {
        let log = node.status().await["log"].clone();
        if log["state"] == state {
            Ok(log)
        } else {
            Err(log.to_string())
        }
    })
    .await
}

/// The node refuses to publish, names why, and has lost nothing by it.
async fn signs_nothing(node: &Node) {
    let before = node.log(node.did()).await;
    let refused = node.try_publish(&[("refused.txt", b"?")]).await;
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    let problem = refused.problem();
    assert_eq!(
        (&problem["code"], &problem["status"]),
        (&"log_recovering".into(), &json!(503)),
        "{problem}"
    );
    assert!(problem["remedy"].is_string(), "{problem}");
    let after = node.log(node.did()).await;
    assert_eq!(
        after.lines, before.lines,
        "neither slice nor presence is signed"
    );
    assert_eq!(log_state(node).await["state"], "recovering");
}

fn paths(walk: &Walk) -> Vec<&str> {
    walk.entries
        .iter()
        .map(|entry| entry.path.as_str())
        .collect()
}

/// Everybody has one and the same log of bob, and nobody calls it forked.
async fn all_agree(bob: &Node, followers: &[&Node]) {
    let log = bob.log(bob.did()).await;
    for follower in followers {
        follower.refresh().await;
        follower.converges_on(bob.did(), &log, SOON).await;
        let peer = follower.peer(bob.did()).await;
        assert_eq!(peer["state"], "healthy", "{peer}");
        let forks = follower.ok(&["mcp", "federate", "forks"]).await;
        assert_eq!(forks["forks"], json!([]), "nothing was signed twice");
    }
}

#[tokio::test]
async fn an_older_copy_recovers_what_it_lacks_from_its_follower_and_appends_after_it() {
    let (mut bob, alice) = bob_and_alice().await;
    bob.terminate().await;
    let older = Copy::of(&bob);
    bob.start().await;
    for name in ["two.txt", "three.txt"] {
        bob.publish(&[(name, name.as_bytes())]).await;
    }
    alice.refresh().await;
    let lost = bob.log(bob.did()).await;
    bob.kill();
    older.restore(&bob);
    bob.start().await;
    log_becomes(&bob, "ok", ASKED_AGAIN).await;
    let found = bob.log(bob.did()).await;
    assert_eq!(
        found.slices, lost.slices,
        "what was lost is there, byte for byte"
    );
    bob.publish(&[("four.txt", b"4")]).await;
    all_agree(&bob, &[&alice]).await;
    let log = alice.log(bob.did()).await;
    assert_eq!(paths(&log), ["one.txt", "two.txt", "three.txt", "four.txt"]);
    assert!(log.sequence > lost.sequence, "no sequence is used twice");
    // Once recovered, a start is a start.
    bob.restart().await;
    log_becomes(&bob, "ok", ASKED).await;
    bob.publish(&[("five.txt", b"5")]).await;
    all_agree(&bob, &[&alice]).await;
}

#[tokio::test]
async fn with_no_follower_an_older_copy_waits_says_so_and_obeys_its_operator() {
    let mut bob = Node::started("bob").await;
    bob.publish(&[("one.txt", b"1")]).await;
    bob.terminate().await;
    let older = Copy::of(&bob);
    bob.start().await;
    bob.publish(&[("two.txt", b"2")]).await;
    bob.kill();
    older.restore(&bob);
    // No restart makes it forget, however it ended.
    for _ in 0..2 {
        bob.start().await;
        signs_nothing(&bob).await;
        bob.kill();
    }
    bob.start().await;
    let status = bob.ok(&["status"]).await;
    let steps = status["next_steps"].to_string();
    assert!(
        steps.contains("hn mcp federate add"),
        "one way out is a holder: {steps}"
    );
    assert!(
        steps.contains("hn mcp log resume --accept-loss"),
        "the other is a decision: {steps}"
    );
    // Without the words that say what it costs, nothing is lost.
    let resume = bob.cli(&["mcp", "log", "resume"]).await;
    assert_eq!(
        log_state(&bob).await["state"],
        "recovering",
        "{}",
        resume.stdout
    );
    signs_nothing(&bob).await;
    bob.ok(&["mcp", "log", "resume", "--accept-loss"]).await;
    log_becomes(&bob, "ok", SOON).await;
    let published = bob.publish(&[("three.txt", b"3")]).await;
    assert_eq!(published["log_size"], 2);
    assert_eq!(paths(&bob.log(bob.did()).await), ["one.txt", "three.txt"]);
    bob.restart().await;
    assert_eq!(
        log_state(&bob).await["state"],
        "ok",
        "what was accepted is not asked again"
    );
    bob.publish(&[("four.txt", b"4")]).await;
}

#[tokio::test]
async fn an_older_copy_waits_for_each_holder_that_it_names() {
    let (mut bob, alice) = bob_and_alice().await;
    let mut carol = Node::started("carol").await;
    carol.follow(&bob).await;
    bob.follow(&carol).await;
    bob.terminate().await;
    let older = Copy::of(&bob);
    bob.start().await;
    bob.publish(&[("two.txt", b"2")]).await;
    carol.refresh().await;
    let newest = bob.log(bob.did()).await;
    bob.kill();
    // Carol, who alone has the newest, is away; Alice answers, and has nothing.
    carol.terminate().await;
    older.restore(&bob);
    bob.start().await;
    signs_nothing(&bob).await;
    let log = log_state(&bob).await;
    assert!(
        log.to_string().contains(&carol_did(&carol)),
        "whom it waits for is said: {log}"
    );
    let _ = bob.cli(&["mcp", "log", "resume"]).await;
    signs_nothing(&bob).await;
    carol.start().await;
    log_becomes(&bob, "ok", ASKED_AGAIN).await;
    assert_eq!(bob.log(bob.did()).await.slices, newest.slices);
    bob.publish(&[("three.txt", b"3")]).await;
    all_agree(&bob, &[&carol, &alice]).await;
}

/// The DID of a node that may be down.
fn carol_did(node: &Node) -> String {
    let active = fs::read_to_string(node.home().join("identities/node/identity.json")).unwrap();
    let identity: Value = serde_json::from_str(&active).unwrap();
    identity["did"].as_str().expect("a DID").to_owned()
}

#[tokio::test]
async fn what_a_holder_cannot_give_is_not_waited_for_for_ever_and_not_believed() {
    for manner in [
        Manner::Silent,
        Manner::TricklingBody,
        Manner::large(false),
        Manner::gzip_bomb(),
    ] {
        let eve = Eve::honest().await;
        let mut bob = Node::started("bob").await;
        bob.publish(&[("one.txt", b"1")]).await;
        bob.terminate().await;
        let older = Copy::of(&bob);
        bob.start().await;
        let did = eve.did().to_string();
        bob.ok(&["mcp", "federate", "add", &did, eve.base_url()])
            .await;
        bob.terminate().await;
        eve.behave(manner);
        // A home that is not in doubt waits a few seconds, and signs.
        let begun = Instant::now();
        bob.start().await;
        bob.publish(&[("two.txt", b"2")]).await;
        assert!(begun.elapsed() < ASKED, "{:?}", begun.elapsed());
        bob.terminate().await;
        // One that is, waits.
        let roster = fs::read(bob.home().join("config/federation.toml")).unwrap();
        older.restore(&bob);
        fs::create_dir_all(bob.home().join("config")).unwrap();
        fs::write(bob.home().join("config/federation.toml"), roster).unwrap();
        bob.start().await;
        signs_nothing(&bob).await;
        // And is let go by taking the holder out of the roster, or by a word.
        bob.ok(&["mcp", "log", "resume", "--accept-loss"]).await;
        log_becomes(&bob, "ok", SOON).await;
        bob.publish(&[("three.txt", b"3")]).await;
    }
}

#[tokio::test]
async fn a_recovered_key_in_an_empty_home_waits_for_its_log_and_goes_on_after_it() {
    let (mut bob, alice) = bob_and_alice().await;
    let did = bob.did();
    let key = alice.scratch().join("key.json");
    bob.ok(&["id", "export", "--out", key.to_str().unwrap()])
        .await;
    bob.publish(&[("two.txt", b"2")]).await;
    alice.refresh().await;
    let lost = bob.log(did).await;
    bob.kill();
    wipe(&bob);
    bob.ok(&[
        "id",
        "recover",
        "--file",
        key.to_str().unwrap(),
        "--alias",
        "node",
    ])
    .await;
    bob.start().await;
    assert_eq!(bob.did(), did);
    let refused = bob.try_publish(&[("refused.txt", b"?")]).await;
    assert_eq!(
        refused.problem()["code"],
        "log_recovering",
        "{}",
        refused.stderr
    );
    bob.follow(&alice).await;
    log_becomes(&bob, "ok", ASKED_AGAIN).await;
    assert_eq!(bob.log(did).await.slices, lost.slices);
    bob.publish(&[("three.txt", b"3")]).await;
    all_agree(&bob, &[&alice]).await;
}

#[tokio::test]
async fn a_key_from_three_of_its_five_shares_waits_for_its_log_and_goes_on_after_it() {
    let (mut bob, alice) = bob_and_alice().await;
    let did = bob.did();
    let split = bob.ok(&["vault", "key", "split"]).await;
    let words = |n: usize| split["shares"][n]["words"].as_str().unwrap();
    bob.publish(&[("two.txt", b"2")]).await;
    alice.refresh().await;
    let lost = bob.log(did).await;
    bob.kill();
    wipe(&bob);
    let mut recover = vec!["vault", "key", "recover", "--alias", "node"];
    for n in [4, 0, 2] {
        recover.extend(["--share", words(n)]);
    }
    bob.ok(&recover).await;
    bob.start().await;
    assert_eq!(bob.did(), did);
    let refused = bob.try_publish(&[("refused.txt", b"?")]).await;
    assert_eq!(refused.problem()["code"], "log_recovering");
    bob.follow(&alice).await;
    log_becomes(&bob, "ok", ASKED_AGAIN).await;
    assert_eq!(bob.log(did).await.slices, lost.slices);
    bob.publish(&[("three.txt", b"3")]).await;
    all_agree(&bob, &[&alice]).await;
}

/// The log of one epoch as a node serves it.
async fn epoch(node: &Node, of: Did, epoch: u64) -> (u16, Vec<u8>) {
    let path = format!("/federate/index?publisher={of}&epoch={epoch}&limit=64");
    let answer = node.get(&path).await;
    (
        answer.status().as_u16(),
        answer.bytes().await.unwrap().to_vec(),
    )
}

#[tokio::test]
async fn a_reset_begins_a_new_epoch_and_followers_keep_the_old_one_as_history() {
    let (mut bob, mut alice) = bob_and_alice().await;
    let did = bob.did();
    let (_, old) = epoch(&alice, did, 0).await;
    bob.ok(&["mcp", "log", "reset", "--yes"]).await;
    log_becomes(&bob, "reset", SOON).await;
    assert_eq!(bob.status().await["log"]["size"], 0);
    let published = bob.publish(&[("anew.txt", b"anew")]).await;
    assert_eq!(published["log_size"], 1);
    for _ in 0..2 {
        // The first pull says that the log begins anew, the next that all is well.
        alice.refresh().await;
        alice.refresh().await;
        alice.peer_becomes(did, "healthy", SOON).await;
        for node in [&bob, &alice] {
            let (status, now) = epoch(node, did, 0).await;
            assert_eq!(status, 200);
            // The presence that was current then may have been renewed before the reset.
            let slices = |page: &[u8]| -> Vec<Vec<u8>> {
                let lines = page.split(|byte| *byte == b'\n').map(<[u8]>::to_vec);
                lines
                    .filter(|line| line.windows(9).any(|w| w == b"\"index@2\""))
                    .collect()
            };
            assert_eq!(slices(&now), slices(&old), "{}", node.name());
            assert_eq!(
                epoch(node, did, 1).await,
                epoch(&bob, did, 1).await,
                "{}",
                node.name()
            );
            assert_eq!(epoch(node, did, 2).await.0, 404);
        }
        bob.restart().await;
        alice.restart().await;
    }
    bob.publish(&[("more.txt", b"more")]).await;
    let report = alice.refresh().await;
    assert_eq!(report["peers"][0]["log_size"], 2, "{report}");
    let heads: Value = alice.get("/federate/peers").await.json().await.unwrap();
    let heads = heads["peers"].as_array().unwrap();
    let head = heads
        .iter()
        .find(|head| head["did"] == did.to_string())
        .unwrap();
    assert_eq!(
        (&head["epoch"], &head["log_size"]),
        (&json!(1), &json!(2)),
        "{head}"
    );
}

/// ```text
///   bob and his twin both published; bob learns of it from alice, who has seen both
/// ```
#[tokio::test]
async fn a_publisher_who_was_copied_stops_when_it_sees_its_own_fork_and_begins_anew_by_a_reset() {
    let (mut bob, alice) = bob_and_alice().await;
    let did = bob.did();
    bob.terminate().await;
    let mut twin = Copy::of(&bob).node("twin");
    bob.start().await;
    bob.publish(&[("ours.txt", b"bob")]).await;
    bob.terminate().await;
    twin.start().await;
    twin.ok(&["mcp", "log", "resume", "--accept-loss"]).await;
    twin.publish(&[("ours.txt", b"twin")]).await;
    alice
        .ok(&["mcp", "federate", "add", &did.to_string(), &twin.base_url()])
        .await;
    alice.refresh().await;
    assert_eq!(alice.log(did).await.lines, twin.log(did).await.lines);
    twin.kill();
    bob.start().await;
    log_becomes(&bob, "recovering", ASKED_AGAIN).await;
    signs_nothing(&bob).await;
    bob.ok(&["mcp", "log", "reset", "--yes"]).await;
    log_becomes(&bob, "reset", SOON).await;
    bob.publish(&[("anew.txt", b"anew")]).await;
    let listed = bob.ok(&["shard", "list"]).await;
    assert_eq!(
        (&listed["log_size"], &listed["entries"][0]["path"]),
        (&json!(1), &"anew.txt".into()),
        "{listed}"
    );
}

fn journal(node: &Node) -> PathBuf {
    let folder = node.home().join("log/node");
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path());
    let mut files: Vec<PathBuf> = files
        .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    files.sort();
    files.pop().expect("a journal")
}

#[tokio::test]
async fn an_own_journal_that_is_damaged_or_shortened_is_completed_by_its_followers() {
    type Harm = fn(&[u8]) -> Vec<u8>;
    let harms: [(&str, Harm); 4] = [
        ("emptied", |_| Vec::new()),
        ("without its last lines", |whole| {
            let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
            lines[..lines.len() - 2].concat()
        }),
        ("with one bit turned in the middle", |whole| {
            let mut turned = whole.to_vec();
            let middle = turned.len() / 2;
            turned[middle] ^= 1;
            turned
        }),
        ("with garbage behind it", |whole| {
            [whole, vec![b'x'; 3 << 20].as_slice()].concat()
        }),
    ];
    for (what, harm) in harms {
        let (mut bob, alice) = bob_and_alice().await;
        bob.publish(&[("two.txt", b"2")]).await;
        alice.refresh().await;
        let whole = bob.log(bob.did()).await;
        bob.terminate().await;
        let file = journal(&bob);
        fs::write(&file, harm(&fs::read(&file).unwrap())).unwrap();
        // What the index covers is not read again at a clean start; without it every line is.
        fs::remove_dir_all(bob.home().join("state")).unwrap();
        bob.start().await;
        log_becomes(&bob, "ok", ASKED_AGAIN).await;
        assert_eq!(bob.log(bob.did()).await.slices, whole.slices, "{what}");
        bob.publish(&[("three.txt", b"3")]).await;
        all_agree(&bob, &[&alice]).await;
    }
}
