//! A publisher written from `spec/` alone, in another language, is followed while it is honest; each lie that it tells
//! with its own key is refused and named, and an honest publisher beside it is none the worse.
//!
//! ```text
//!   eve   (publisher.py, lies)   ◄──┐
//!   frank (publisher.py, honest) ◄──┴──follows── alice
//! ```

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
