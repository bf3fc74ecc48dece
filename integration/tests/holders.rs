//! What one peer says of the logs of others: a lie about one of them is charged to who told it, and no other log, of the
//! same holder or of anybody, is the worse for it.
//!
//! ```text
//!   bob, carol, … (gone) ◄──held by── eve ◄──follows── alice
//! ```

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use hn_integration::cluster::Node;
use hn_integration::converge::SOON;
use hn_integration::hostile::{Author, Eve, Lie};
use hn_protocol::did::Did;
use serde_json::Value;

/// Logs that a boasting peer announces.
const ANNOUNCED: usize = 10_000;
/// For a list of so many to be read and asked for as far as the caps allow, in a debug build.
const READ: Duration = Duration::from_secs(60);

/// A publisher who serves nothing itself.
fn absent() -> Author {
    let mut author = Author::new("http://127.0.0.1:1");
    author.publish();
    author.publish();
    author
}

async fn follow(node: &Node, eve: &Eve) {
    let did = eve.did().to_string();
    node.ok(&["mcp", "federate", "add", &did, eve.base_url()])
        .await;
    node.settles().await;
}

fn held(report: &Value, did: Did) -> Value {
    let held = report["peers"][0]["held"]
        .as_array()
        .expect("held logs")
        .iter();
    held.clone()
        .find(|log| log["did"] == did.to_string())
        .cloned()
        .unwrap_or_default()
}

/// Whether the lie contradicts what was accepted, by the publisher's own signature.
fn is_fork(lie: Lie) -> bool {
    lie.refused_as().0 == "fork"
}

/// Whether a holder may pass it on in good faith: the publisher signed it, and nothing shows that it did wrong before.
fn is_of_the_publisher(lie: Lie) -> bool {
    matches!(
        lie.refused_as().0,
        "fork" | "rollback" | "ahead_of_clock" | "wrong_epoch"
    )
}

/// Whether it is no lie of a holder at all: a copy may lag, and a presence may have expired meanwhile.
fn is_lagging(lie: Lie) -> bool {
    matches!(
        lie,
        Lie::LowerSequence | Lie::OldCopy | Lie::SmallerLog | Lie::ExpiredPresence
    )
}

#[tokio::test]
async fn a_lie_about_one_log_is_told_of_that_log_and_every_other_goes_on() {
    let alice = Node::started("alice").await;
    for lie in Lie::ALL {
        let eve = Eve::honest().await;
        let did = eve.did().to_string();
        let (bob, mut carol, mut dave) = (absent(), absent(), absent());
        for other in [&carol, &bob, &dave] {
            eve.hold(other, None);
        }
        follow(&alice, &eve).await;
        let accepted = alice.log(bob.did()).await;
        assert_eq!(accepted.size, bob.state.size());
        eve.hold(&bob, Some(lie));
        for other in [&mut carol, &mut dave] {
            other.publish();
            eve.hold(other, None);
        }
        let refresh = alice.cli(&["mcp", "federate", "refresh", &did]).await;
        let refresh = refresh.json;
        let (code, _) = lie.refused_as();
        let (said, peer) = (held(&refresh, bob.did()), &refresh["peers"][0]);
        if !is_lagging(lie) {
            assert!(
                said["error"].to_string().contains(code),
                "{lie:?} of bob is named: {peer}"
            );
            let state = if is_of_the_publisher(lie) {
                "healthy"
            } else {
                "stale"
            };
            assert_eq!(peer["state"], state, "{lie:?}: {peer}");
        }
        let stands = alice.log(bob.did()).await;
        assert_eq!(stands.slices, accepted.slices, "{lie:?}: bob's log stands");
        for other in [&carol, &dave] {
            assert_eq!(held(&refresh, other.did())["error"], Value::Null, "{lie:?}");
            let grown = alice.log(other.did()).await;
            assert_eq!(
                grown.size,
                other.state.size(),
                "{lie:?}: an honest log beside it grows"
            );
        }
        assert_eq!(
            alice.log(eve.did()).await.size,
            eve.size(),
            "{lie:?}: eve's own as well"
        );
        let heads: Value = alice.get("/federate/peers").await.json().await.unwrap();
        for head in heads["peers"].as_array().unwrap() {
            let others = [&carol, &dave, eve.author()].map(|author| author.did().to_string());
            if head["did"] == bob.did().to_string() {
                assert_eq!(head["forked"], is_fork(lie), "{lie:?}: {head}");
            } else if others.iter().any(|other| head["did"] == *other) {
                assert_eq!(head["forked"], false, "{lie:?}: {head}");
            }
        }
        alice.ok(&["mcp", "federate", "remove", &did]).await;
    }
}

#[tokio::test]
async fn of_ten_thousand_logs_that_a_peer_announces_as_many_as_the_cap_are_looked_at_and_the_rest_named()
 {
    let cap = 20;
    let mut alice = Node::new("alice").with("HN_FEDERATION__MAX_HELD_LOGS", &cap.to_string());
    alice.start().await;
    let mut eve = Eve::honest().await;
    let (mut bob, mut carol) = (absent(), absent());
    eve.hold(&bob, None);
    eve.hold(&carol, None);
    follow(&alice, &eve).await;
    let invented = eve.boast(ANNOUNCED);
    for other in [&mut bob, &mut carol] {
        other.publish();
        eve.hold(other, None);
    }
    eve.publish_files(2);
    let asked_before = eve.requests().len();
    let begun = Instant::now();
    let report = alice.cli(&["mcp", "federate", "refresh"]).await.json;
    assert!(begun.elapsed() < READ, "{:?}", begun.elapsed());
    let asked = eve.requests().len() - asked_before;
    assert!(asked <= 2 * cap + 8, "eve was asked {asked} times");
    // Logs that are held already come first, and the honest ones among the invented are followed.
    for (did, size) in [
        (bob.did(), bob.state.size()),
        (carol.did(), carol.state.size()),
        (eve.did(), eve.size()),
    ] {
        assert_eq!(alice.log(did).await.size, size, "an honest log goes on");
    }
    let peer = &report["peers"][0];
    let named = |list: &Value| -> BTreeSet<String> {
        let list = list.as_array().into_iter().flatten();
        list.map(|name| name["did"].as_str().or(name.as_str()).unwrap().to_owned())
            .collect()
    };
    let (left_out, looked_at) = (named(&peer["left_out"]), named(&peer["held"]));
    assert_eq!(looked_at.len(), cap, "as many as the cap are looked at");
    assert_eq!(
        left_out.len() + looked_at.len(),
        ANNOUNCED + 2,
        "and every other is named"
    );
    let invented: BTreeSet<String> = invented.iter().map(ToString::to_string).collect();
    assert!(left_out.is_subset(&invented));
    // Nothing of it is kept, and nobody else hears of it.
    let heads: Value = alice.get("/federate/peers").await.json().await.unwrap();
    assert_eq!(
        heads["peers"].as_array().map(Vec::len),
        Some(4),
        "alice, eve, bob, carol"
    );
    let followed = std::fs::read_dir(alice.home().join("cache/federation")).unwrap();
    assert_eq!(
        followed.count(),
        3,
        "no folder is made for what is not there"
    );
    // The same list again costs no more.
    let asked_before = eve.requests().len();
    alice.cli(&["mcp", "federate", "refresh"]).await;
    assert!(eve.requests().len() - asked_before <= 2 * cap + 8);
    alice.peer_becomes(eve.did(), "healthy", SOON).await;
}
