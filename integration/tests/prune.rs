//! Pruning, seen from outside: a holder forgets the beginning of a log, and nobody is ever shown half of anything.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hn_integration::cluster::Node;
use hn_integration::converge::eventually;
use hn_integration::log::{now, split};
use hn_protocol::digest::Digest;
use hn_protocol::log::{Line, LogState, NoHistory, PageContext, Source};
use hn_protocol::proof::InclusionProof;
use reqwest::StatusCode;
use serde_json::Value;

/// For a node to do what it does by the clock, with room for the machine.
const SOON: Duration = Duration::from_secs(30);

/// Publishes a slice of three entries.
async fn publish(alice: &Node, round: usize) {
    let names = [0, 1, 2].map(|n| format!("{round}/{n}"));
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .map(|name| (name.as_str(), name.as_bytes()))
        .collect();
    alice.publish(&files).await;
}

/// A holder of alice's log that keeps about `entries` of it.
async fn carol(alice: &Node, entries: &str) -> Node {
    let mut carol = Node::new("carol").with("HN_FEDERATION__PRUNE_ENTRIES", entries);
    carol.start().await;
    carol.follow(alice).await;
    carol.refresh().await;
    carol
}

/// Where alice's log begins at `holder`: what a page from 0 on is refused with.
async fn first_cursor(holder: &Node, alice: &Node) -> Option<u64> {
    let answer = holder
        .get(&format!("/federate/index?publisher={}", alice.did()))
        .await;
    if answer.status() == StatusCode::OK {
        return None;
    }
    assert_eq!(answer.status(), StatusCode::GONE);
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["code"], "pruned");
    Some(problem["first_cursor"].as_str().unwrap().parse().unwrap())
}

/// Alice's log as `holder` gives it to somebody who holds nothing, verified; its lines too.
async fn walk(holder: &Node, alice: &Node) -> (LogState, Vec<Bytes>) {
    let mut state = LogState::empty(alice.did(), 0);
    let mut cursor = first_cursor(holder, alice).await.unwrap_or(0);
    let mut all = Vec::new();
    loop {
        let path = format!(
            "/federate/index?publisher={}&cursor={cursor}&limit=2",
            alice.did()
        );
        let answer = holder.get(&path).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let context = PageContext {
            now: now(),
            source: Source::Holder,
            reaches_head: answer.headers().get("link").is_none(),
        };
        let lines = split(&answer.bytes().await.unwrap());
        let page = state.follow(&lines, context, &NoHistory).unwrap();
        all.extend(lines);
        state = page.state;
        cursor = state.size();
        if context.reaches_head {
            return (state, all);
        }
    }
}

/// That `node` proves every entry of alice's log from `base` on.
async fn proves(node: &Node, alice: &Node, base: u64, size: u64) {
    for seq in base..size {
        let path = format!("/federate/proof/{}/{seq}", alice.did());
        let answer = node.get(&path).await;
        assert_eq!(answer.status(), StatusCode::OK, "{}: {path}", node.name());
        let proof = InclusionProof::verify(&answer.bytes().await.unwrap()).unwrap();
        assert_eq!((proof.claim.publisher, proof.claim.seq), (alice.did(), seq));
    }
}

/// ```text
/// alice ◄── carol (prunes) ◄── bob, from the beginning
///                          ◄── dave, from the frontier
/// ```
#[tokio::test]
async fn a_holder_prunes_while_followers_sync_and_a_new_one_starts_at_the_frontier() {
    let alice = Node::started("alice").await;
    let carol = carol(&alice, "12").await;
    let bob = Node::started("bob").await;
    bob.follow(&carol).await;
    bob.refresh().await;

    // Somebody who reads all the time.
    let done = Arc::new(AtomicBool::new(false));
    let (http, stop) = (carol.http().clone(), Arc::clone(&done));
    let url = format!(
        "{}/federate/index?publisher={}",
        carol.base_url(),
        alice.did()
    );
    let reader = tokio::spawn(async move {
        let (mut seen, mut refused, mut cursor) = (BTreeSet::new(), 0, 0);
        while !stop.load(Ordering::Relaxed) {
            cursor = (cursor + 7) % 60;
            let answer = http
                .get(format!("{url}&cursor={cursor}&limit=3"))
                .send()
                .await;
            let answer = answer.unwrap();
            match answer.status() {
                StatusCode::OK => seen.extend(split(&answer.bytes().await.unwrap())),
                StatusCode::GONE => refused += 1,
                other => panic!("{other} at {cursor}"),
            }
        }
        (seen, refused)
    });
    for round in 0..20 {
        publish(&alice, round).await;
        carol.refresh().await;
        bob.refresh().await;
    }
    done.store(true, Ordering::Relaxed);
    let (seen, refused) = reader.await.unwrap();
    assert!(refused > 0, "the reader came late, too");

    let whole = alice.log(alice.did()).await;
    let known: BTreeSet<&Bytes> = whole.slices.iter().collect();
    for line in &seen {
        match Line::verify(line.clone()).unwrap() {
            Line::Slice(_) => assert!(known.contains(line), "never half a line, never a mixture"),
            Line::Presence(_) | Line::Frontier(_) => {}
        }
    }
    let (pruned, lines) = walk(&carol, &alice).await;
    assert!((42..=48).contains(&pruned.base), "{}", pruned.base);
    assert_eq!((pruned.size(), pruned.root()), (60, whole.root));
    assert!(matches!(
        Line::verify(lines[0].clone()),
        Ok(Line::Frontier(_))
    ));
    assert_eq!(
        first_cursor(&bob, &alice).await,
        None,
        "bob followed all the time"
    );
    assert_eq!(bob.log(alice.did()).await.slices, whole.slices);

    let mut dave = Node::started("dave").await;
    dave.follow(&carol).await;
    dave.refresh().await;
    let (from_dave, _) = walk(&dave, &alice).await;
    assert_eq!(
        from_dave.base, pruned.base,
        "it begins where carol's begins"
    );
    proves(&carol, &alice, pruned.base, 60).await;
    proves(&dave, &alice, pruned.base, 60).await;
    let gone = dave
        .get(&format!("/federate/proof/{}/0", alice.did()))
        .await;
    assert_eq!(gone.status(), StatusCode::GONE);

    // Both go on from there, also over a kill.
    dave.restart().await;
    publish(&alice, 20).await;
    carol.refresh().await;
    dave.refresh().await;
    let (grown, _) = walk(&dave, &alice).await;
    assert_eq!((grown.size(), grown.base), (63, pruned.base));
    proves(&dave, &alice, grown.base, 63).await;
    dave.ok(&["mcp", "reindex"]).await;
    proves(&dave, &alice, grown.base, 63).await;
}

#[tokio::test]
async fn artifacts_that_only_pruned_entries_name_go_and_all_others_stay() {
    let alice = Node::started("alice").await;
    alice
        .publish(&[("old", b"old"), ("shared", b"shared"), ("own", b"own")])
        .await;
    let mut carol = Node::new("carol").with("HN_FEDERATION__PRUNE_ENTRIES", "3");
    carol.start().await;
    carol.publish(&[("mine", b"own")]).await;
    let (did, url) = (alice.did().to_string(), alice.base_url());
    carol
        .ok(&["mcp", "federate", "add", &did, &url, "--mirror"])
        .await;
    let mirror = async || carol.ok(&["mcp", "federate", "refresh", "--mirror"]).await;
    mirror().await;
    let held = async |content: &str| {
        let digest = Digest::of(content.as_bytes());
        carol.get(&format!("/artifact/{digest}")).await.status() == StatusCode::OK
    };
    for content in ["old", "shared", "own"] {
        assert!(held(content).await, "{content}");
    }
    alice
        .publish(&[("again", b"shared"), ("new", b"new"), ("newer", b"newer")])
        .await;
    mirror().await;
    assert_eq!(walk(&carol, &alice).await.0.base, 3);
    eventually(SOON, "what only a pruned entry named is gone", async || {
        if held("old").await {
            Err("it is held".to_owned())
        } else {
            Ok(())
        }
    })
    .await;
    for content in ["shared", "own", "new", "newer"] {
        assert!(held(content).await, "{content}");
    }
}

#[tokio::test]
async fn slow_a_crash_at_any_point_of_a_pruning_is_finished_or_undone_by_the_next_start() {
    let alice = Node::started("alice").await;
    for round in 0..6 {
        publish(&alice, round).await;
    }
    for point in [
        "prune.journal.after_write",
        "prune.journal.after_intent",
        "prune.journal.after_rename",
        "prune.store.after_apply",
        "prune.journal.after_remove",
    ] {
        let mut carol = Node::new("carol")
            .with("HN_FEDERATION__PRUNE_ENTRIES", "6")
            .with("HN_FAILPOINTS", &format!("{point}=crash"));
        carol.start().await;
        let (did, url) = (alice.did().to_string(), alice.base_url());
        // Whether the command still gets its answer is chance.
        carol.cli(&["mcp", "federate", "add", &did, &url]).await;
        let status = carol.ended(SOON).await;
        assert!(!status.success(), "{point}: {status}");
        carol.set("HN_FAILPOINTS", "");
        carol.start().await;
        carol.refresh().await;
        let sentence = format!("{point}: carol's copy begins at 12");
        eventually(SOON, &sentence, async || {
            let (log, _) = walk(&carol, &alice).await;
            (log.base == 12 && log.size() == 18)
                .then_some(())
                .ok_or(format!("it begins at {}", log.base))
        })
        .await;
        proves(&carol, &alice, 12, 18).await;
        let folder = carol
            .home()
            .join("cache/federation")
            .join(alice.did().to_string());
        let files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "artifacts")
            .collect();
        assert_eq!(files.len(), 1, "{point}: nothing is left over: {files:?}");
    }
}

#[tokio::test]
async fn entries_that_grew_old_go_by_themselves_and_the_newest_slice_stays() {
    let alice = Node::started("alice").await;
    for round in 0..3 {
        publish(&alice, round).await;
    }
    let mut carol = Node::new("carol").with("HN_FEDERATION__PRUNE_AGE_S", "86400");
    carol.start().await;
    carol.follow(&alice).await;
    carol.refresh().await;
    assert_eq!(
        first_cursor(&carol, &alice).await,
        None,
        "nothing is old yet"
    );
    carol.kill();
    carol.set("HN_CLOCK_OFFSET", "+2d");
    carol.start().await;
    eventually(SOON, "the old entries are pruned", async || {
        first_cursor(&carol, &alice)
            .await
            .ok_or("it still begins at 0".to_owned())
    })
    .await;
    let (log, _) = walk(&carol, &alice).await;
    assert_eq!((log.base, log.size()), (6, 9));
    let text = carol
        .admin(reqwest::Method::GET, "/metrics")
        .send()
        .await
        .unwrap();
    let text = text.text().await.unwrap();
    assert!(text.contains("hn_federation_prune_total 1"), "{text}");
    assert!(text.contains("hn_pruned_entries_total 6"), "{text}");
}
