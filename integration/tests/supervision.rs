//! A panic in an actor is the affair of one request: the actor is back within a second, it is counted, what was
//! queued behind it is served, and no other actor is touched.
//!
//! ```text
//!   bob ◄──mirrors── alice, whose actors panic
//! ```

use std::time::Duration;

use futures_util::future::join_all;
use hn_integration::cluster::Node;
use hn_integration::converge::{SOON, eventually};
use hn_integration::fault::{ACTORS, Fault};
use serde_json::Value;

/// Within which an actor is back after a panic.
const BACK: Duration = Duration::from_secs(1);

fn restarts(status: &Value, actor: &str) -> u64 {
    let actors = status["actors"].as_array().expect("status has actors");
    let found = actors.iter().find(|known| known["name"] == actor);
    found.unwrap_or_else(|| panic!("status has {actor}: {status}"))["restarts"]
        .as_u64()
        .expect("restarts is a number")
}

/// Makes the actor of alice work, several times at once, and counts how often that failed.
async fn work(alice: &Node, actor: &str, round: &str) -> usize {
    let requests = (0..8).map(async |n| match actor {
        "gateway" => {
            let url = format!("{}/healthz", alice.base_url());
            let answer = alice.http().get(url).send().await;
            matches!(answer, Ok(answer) if answer.status() == 200)
        }
        "federation_sync" | "artifact_mirror" => {
            let answer = alice
                .admin(reqwest::Method::POST, "/admin/federation/refresh")
                .json(&serde_json::json!({"mirror": true}))
                .send()
                .await;
            matches!(answer, Ok(answer) if answer.status().is_success())
        }
        _ => {
            let path = format!("{actor}/{round}/{n}");
            alice
                .try_publish(&[(path.as_str(), path.as_bytes())])
                .await
                .status
                == Some(0)
        }
    });
    join_all(requests)
        .await
        .into_iter()
        .filter(|fine| !fine)
        .count()
}

#[tokio::test]
async fn an_actor_that_panics_is_back_within_a_second_and_no_other_is_touched() {
    let (bob, alice) = (Node::started("bob").await, Node::started("alice").await);
    bob.publish(&[("zero", b"zero")]).await;
    alice.follow(&bob).await;
    alice.ok(&["mcp", "federate", "refresh", "--mirror"]).await;
    for actor in ACTORS {
        bob.publish(&[(actor, actor.as_bytes())]).await;
        let before = alice.status().await;
        assert_eq!(restarts(&before, actor), 0, "{before}");
        alice.arm(Fault::Panic(actor)).await;
        let failed = work(&alice, actor, "panic").await;
        assert!(
            failed <= 1,
            "{actor}: a panic fails one request alone, and {failed} of 8 failed"
        );
        eventually(BACK, &format!("{actor} is back and counted"), async || {
            let status = alice.try_admin("/admin/status").await?;
            let back = status["actors"].as_array().is_some_and(|actors| {
                actors
                    .iter()
                    .any(|a| a["name"] == actor && a["restarts"] == 1 && a["state"] == "running")
            });
            if back {
                Ok(())
            } else {
                Err(status["actors"].to_string())
            }
        })
        .await;
        let status = alice.status().await;
        for other in ACTORS.iter().filter(|other| **other != actor) {
            assert_eq!(
                restarts(&status, other),
                restarts(&before, other),
                "{actor} panicked, not {other}"
            );
        }
        let series = format!("hn_actor_restarts_total{{actor=\"{actor}\"}}");
        assert_eq!(
            alice.metric(&series).await,
            Some(1.0),
            "{actor}: /metrics counts it"
        );
        assert_eq!(
            work(&alice, actor, "after").await,
            0,
            "{actor}: it works again"
        );
        alice.ok(&["mcp", "federate", "refresh", "--mirror"]).await;
        alice
            .converges_on(bob.did(), &bob.log(bob.did()).await, SOON)
            .await;
    }
}

#[tokio::test]
async fn what_was_acknowledged_around_a_panic_of_the_writer_is_in_the_log() {
    let mut alice = Node::started("alice").await;
    for actor in ["index_federator", "store"] {
        alice.arm(Fault::Panic(actor)).await;
        let requests = (0..16).map(async |n| {
            let path = format!("{actor}/{n}");
            let fine = alice
                .try_publish(&[(path.as_str(), path.as_bytes())])
                .await
                .status
                == Some(0);
            (path, fine)
        });
        let answers = join_all(requests).await;
        let failed = answers.iter().filter(|(_, fine)| !fine).count();
        assert!(failed <= 1, "{actor}: {failed} of 16 failed");
        let log = alice.log(alice.did()).await;
        for (path, _) in answers.iter().filter(|(_, fine)| *fine) {
            assert!(
                log.entries.iter().any(|entry| entry.path == *path),
                "{actor}: {path} was acknowledged and is lost"
            );
        }
    }
    let before = alice.log(alice.did()).await;
    alice.restart().await;
    assert_eq!(
        alice.log(alice.did()).await.slices,
        before.slices,
        "and after kill -9 as well"
    );
}

/// The value of a member of a JSON log line, wherever the formatter puts fields.
fn mentions(line: &str, text: &str) -> bool {
    let line: Value =
        serde_json::from_str(line).unwrap_or_else(|e| panic!("{line:?} is no JSON: {e}"));
    line.to_string().contains(text)
}

#[tokio::test]
async fn telemetry_is_one_json_event_a_line() {
    let bob = Node::started("bob").await;
    let mut alice = Node::new("alice").with_flag("--log-json");
    alice.start().await;
    bob.publish(&[("news", b"news")]).await;
    alice.follow(&bob).await;
    alice.refresh().await;
    let gone = Node::started("gone").await;
    let (did, url) = (gone.did().to_string(), gone.base_url());
    drop(gone);
    alice.ok(&["mcp", "federate", "add", &did, &url]).await;
    alice
        .peer_becomes(did.parse().unwrap(), "unreachable", SOON)
        .await;
    alice.arm(Fault::Panic("index_federator")).await;
    alice.try_publish(&[("x", b"x")]).await;
    for event in [
        "federation.sync.success",
        "federation.sync.failure",
        "actor.restart",
    ] {
        eventually(SOON, &format!("alice tells of {event}"), async || {
            let text = alice.stderr();
            let told = text
                .lines()
                .filter(|line| line.starts_with('{'))
                .any(|line| mentions(line, event));
            if told { Ok(()) } else { Err(text) }
        })
        .await;
    }
    let text = alice.stderr();
    let failure = text
        .lines()
        .find(|line| line.contains("federation.sync.failure"))
        .unwrap();
    assert!(
        mentions(failure, &did),
        "a failure names the peer: {failure}"
    );
    assert!(!text.contains("secret"), "secrets never reach logs");
}
