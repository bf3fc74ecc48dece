//! The commands: their JSON, their exit codes, and that they do the same with a running node and without.

use futures_util::future::join_all;
use hn_integration::cluster::Node;
use hn_integration::converge::SOON;
use hn_protocol::did::SecretSeed;
use hn_protocol::digest::Digest;
use serde_json::Value;

/// The members that `hn status` promises.
fn is_a_status(status: &Value) {
    for member in [
        "/node/did",
        "/node/version",
        "/node/uptime_s",
        "/log/size",
        "/log/root",
        "/log/state",
        "/storage",
        "/next_steps",
        "/peers",
    ] {
        assert!(
            status.pointer(member).is_some_and(|value| !value.is_null()),
            "status has {member}: {status}"
        );
    }
    for actor in status["actors"].as_array().unwrap() {
        assert!(
            actor["name"].is_string() && actor["state"].is_string() && actor["restarts"].is_u64(),
            "{actor}"
        );
    }
}

#[tokio::test]
async fn an_identity_is_made_shown_chosen_saved_and_brought_back() {
    let home = Node::new("alice");
    let made = home.ok(&["id", "create", "alice"]).await;
    let shown = home.ok(&["id", "get"]).await;
    let identity = &shown["identity"];
    let did = identity["did"].as_str().unwrap();
    assert_eq!(identity["alias"], "alice");
    assert_eq!(identity["did_document"]["id"], did);
    assert!(made.to_string().contains(did), "{made}");
    let again = home.cli(&["id", "create", "alice"]).await;
    assert_eq!(again.status, Some(1), "an alias is taken once");
    home.ok(&["id", "create", "second"]).await;
    assert_eq!(
        home.ok(&["id", "list"]).await["identities"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    home.ok(&["id", "use", "second"]).await;
    assert_eq!(home.ok(&["id", "get"]).await["identity"]["alias"], "second");
    assert_eq!(
        home.ok(&["id", "get", "alice"]).await["identity"]["did"],
        did
    );
    assert_eq!(home.cli(&["id", "use", "nobody"]).await.status, Some(1));

    let secret = home.home().join("identities/alice/secret.json");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(secret).unwrap());
    assert_eq!(mode & 0o777, 0o600, "a secret is its owner's");

    home.ok(&["id", "use", "alice"]).await;
    let saved = home.scratch().join("alice.saved");
    let saved = saved.to_str().unwrap();
    home.ok(&["id", "export", "--out", saved]).await;
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(saved).unwrap());
    assert_eq!(mode & 0o777, 0o600, "what was saved is its owner's");
    let other = Node::new("other");
    other.ok(&["id", "recover", "--file", saved]).await;
    assert_eq!(
        other.ok(&["id", "get"]).await["identity"]["did"],
        did,
        "the same DID on another home"
    );
}

#[tokio::test]
async fn an_identity_serves_as_long_as_its_node_runs() {
    let mut alice = Node::started("alice").await;
    alice.ok(&["id", "create", "second"]).await;
    let refused = alice.cli(&["id", "use", "second"]).await;
    assert_eq!(
        refused.status,
        Some(1),
        "a running daemon refuses to change it"
    );
    let first = alice.did();
    alice.terminate().await;
    alice.ok(&["id", "use", "second"]).await;
    alice.start().await;
    assert_ne!(alice.did(), first);
}

#[tokio::test]
async fn every_command_does_the_same_without_a_node_and_with_one() {
    let mut alice = Node::new("alice");
    alice.ok(&["id", "create", "alice"]).await;
    for running in [false, true] {
        if running {
            alice.start().await;
        }
        let word = if running {
            "with a node"
        } else {
            "without a node"
        };
        let published = alice.publish(&[(word, word.as_bytes())]).await;
        let item = &published["published"][0];
        let digest = Digest::of(word.as_bytes()).to_string();
        assert_eq!(
            (&item["digest"], &item["path"]),
            (&digest.clone().into(), &word.into()),
            "{word}"
        );
        assert_eq!(published["log_size"], u64::from(running) + 1, "{word}");
        let listed = alice.ok(&["shard", "list"]).await;
        assert_eq!(
            listed["entries"].as_array().unwrap().last().unwrap()["path"],
            word
        );
        assert_eq!(listed["log_root"], published["log_root"]);
        let out = alice.scratch().join(word);
        alice
            .ok(&["shard", "fetch", &digest, "--out", out.to_str().unwrap()])
            .await;
        assert_eq!(std::fs::read(out).unwrap(), word.as_bytes());
        let status = alice.ok(&["status"]).await;
        is_a_status(&status);
        assert_eq!(status["log"]["root"], published["log_root"], "{word}");
        assert_eq!(
            alice.ok(&["mcp", "federate", "list"]).await["peers"],
            Value::Array(Vec::new())
        );
        let rebuilt = alice.ok(&["mcp", "reindex"]).await;
        assert_eq!(
            rebuilt["entries"], published["log_size"],
            "{word}: {rebuilt}"
        );
        assert_eq!(
            alice.ok(&["shard", "list"]).await["log_root"],
            published["log_root"],
            "{word}: after a reindex"
        );
    }
    is_a_status(&alice.status().await);
    assert_eq!(
        alice.status().await["node"]["listen"],
        alice.address().to_string()
    );
}

#[tokio::test]
async fn publishing_needs_the_word_public() {
    let alice = Node::started("alice").await;
    let file = alice.scratch().join("file");
    std::fs::write(&file, "private").unwrap();
    let refused = alice
        .cli(&["shard", "publish", file.to_str().unwrap()])
        .await;
    assert_eq!(refused.status, Some(2), "{}", refused.stderr);
    assert_eq!(refused.problem()["code"], "publish_without_public");
    let request = alice
        .admin(reqwest::Method::POST, "/admin/log/publish")
        .header("content-type", "application/x-tar");
    let answer = request.body(Vec::new()).send().await.unwrap();
    assert_eq!(answer.status(), 400);
    assert_eq!(
        answer.json::<Value>().await.unwrap()["code"],
        "publish_without_public"
    );
    assert_eq!(alice.status().await["log"]["size"], 0);
    let dry = alice
        .ok(&[
            "shard",
            "publish",
            "--public",
            "--dry-run",
            file.to_str().unwrap(),
        ])
        .await;
    assert!(
        dry.to_string()
            .contains(&Digest::of(b"private").to_string()),
        "{dry}"
    );
    assert_eq!(
        alice.status().await["log"]["size"],
        0,
        "a dry run publishes nothing"
    );
}

#[tokio::test]
async fn the_same_file_again_is_the_same_entry_and_a_changed_one_replaces_it() {
    let alice = Node::started("alice").await;
    let first = alice.publish(&[("a", b"1"), ("b", b"2")]).await;
    let again = alice.publish(&[("a", b"1"), ("b", b"2")]).await;
    assert_eq!(again["log_root"], first["log_root"], "nothing was appended");
    for (one, two) in first["published"]
        .as_array()
        .unwrap()
        .iter()
        .zip(again["published"].as_array().unwrap())
    {
        assert_eq!((&one["seq"], &one["path"]), (&two["seq"], &two["path"]));
        assert_eq!(
            (&one["status"], &two["status"]),
            (&"appended".into(), &"existing".into())
        );
    }
    let changed = alice.publish(&[("a", b"new")]).await;
    assert_eq!(changed["log_size"], 3);
    let log = alice.log(alice.did()).await;
    let old = log.entries.iter().find(|entry| entry.path == "a").unwrap();
    assert_eq!(
        log.entries[2].replaces,
        Some(old.seq),
        "the new entry names the old one"
    );
    let copied = alice.publish(&[("c", b"new")]).await;
    assert_eq!(
        copied["log_size"], 4,
        "the same content at another path is another entry"
    );
    let back = alice.publish(&[("a", b"1")]).await;
    assert_eq!(
        back["log_size"], 5,
        "going back to an old content is a change too"
    );
    assert_eq!(alice.log(alice.did()).await.entries[4].replaces, Some(2));
}

#[tokio::test]
async fn concurrent_publishes_all_land() {
    let alice = Node::started("alice").await;
    let publishes = (0..24).map(async |n| {
        let path = format!("{n}");
        alice.publish(&[(path.as_str(), path.as_bytes())]).await;
    });
    join_all(publishes).await;
    let log = alice.log(alice.did()).await;
    assert_eq!(log.size, 24);
    let mut paths: Vec<u32> = log
        .entries
        .iter()
        .map(|entry| entry.path.parse().unwrap())
        .collect();
    paths.sort_unstable();
    assert!(paths.into_iter().eq(0..24), "each once");
}

#[tokio::test]
async fn commands_that_share_a_home_without_a_node_take_turns() {
    let alice = Node::new("alice");
    alice.ok(&["id", "create", "alice"]).await;
    // Each waits 10 s for its turn: as many as a machine under load has done by then.
    let publishes = (0..3).map(async |n| {
        let path = format!("{n}");
        alice.publish(&[(path.as_str(), path.as_bytes())]).await;
    });
    join_all(publishes).await;
    assert_eq!(alice.ok(&["status"]).await["log"]["size"], 3);
}

#[tokio::test]
async fn tags_are_written_into_the_entries() {
    let alice = Node::started("alice").await;
    let file = alice.scratch().join("tagged");
    std::fs::write(&file, "x").unwrap();
    alice
        .ok(&[
            "shard",
            "publish",
            "--public",
            "--tag",
            "lang=en",
            "--tag",
            "kind=note=1",
            file.to_str().unwrap(),
        ])
        .await;
    let entry = &alice.log(alice.did()).await.entries[0];
    assert_eq!(
        (
            entry.path.as_str(),
            entry.tags["lang"].as_str(),
            entry.tags["kind"].as_str()
        ),
        ("tagged", "en", "note=1")
    );
    assert_eq!(entry.kind, "file");
}

#[tokio::test]
async fn a_large_file_is_published_and_fetched_through_another_node() {
    let (bob, alice) = (Node::started("bob").await, Node::started("alice").await);
    // Beyond the 8 MiB that any other body may have.
    let content: Vec<u8> = (0..9_000_000u32)
        .map(|n| n.to_le_bytes()[usize::try_from(n % 4).unwrap()])
        .collect();
    let published = bob.publish(&[("large", &content)]).await;
    let digest = published["published"][0]["digest"].as_str().unwrap();
    alice.follow(&bob).await;
    alice.refresh().await;
    let out = alice.scratch().join("large");
    alice
        .ok(&["shard", "fetch", digest, "--out", out.to_str().unwrap()])
        .await;
    assert!(std::fs::read(out).unwrap() == content, "the same bytes");
}

#[tokio::test]
async fn peers_are_added_replaced_listed_and_removed() {
    let (bob, alice) = (Node::started("bob").await, Node::started("alice").await);
    let did = bob.did().to_string();
    let nobody = SecretSeed::from_bytes([9; 32]).did().to_string();
    let unresolved = alice.cli(&["mcp", "federate", "add", &nobody]).await;
    assert_eq!(
        (unresolved.status, &unresolved.problem()["code"]),
        (Some(1), &"peer_unresolved".into())
    );
    assert_eq!(
        alice
            .cli(&["mcp", "federate", "remove", &nobody])
            .await
            .problem()["code"],
        "unknown_peer"
    );
    assert_eq!(
        alice
            .cli(&[
                "mcp",
                "federate",
                "add",
                "did:hn:alice",
                "http://127.0.0.1:1"
            ])
            .await
            .status
            .map(|code| code > 0),
        Some(true)
    );

    alice
        .ok(&[
            "mcp",
            "federate",
            "add",
            &did,
            "http://127.0.0.1:9",
            "--scope",
            "own",
        ])
        .await;
    alice.peer_becomes(bob.did(), "unreachable", SOON).await;
    alice
        .ok(&[
            "mcp",
            "federate",
            "add",
            &did,
            &bob.base_url(),
            "--scope",
            "held",
            "--alias",
            "bob",
        ])
        .await;
    alice.peer_becomes(bob.did(), "healthy", SOON).await;
    let listed = alice.ok(&["mcp", "federate", "list"]).await;
    let peer = &listed["peers"][0];
    assert_eq!(
        peer["url"].as_str().unwrap().trim_end_matches('/'),
        bob.base_url(),
        "{peer}"
    );
    assert_eq!(
        (&peer["scope"], &peer["alias"]),
        (&"held".into(), &"bob".into()),
        "{peer}"
    );
    alice.ok(&["mcp", "federate", "refresh", "bob"]).await;
    alice.ok(&["mcp", "federate", "remove", "bob"]).await;
    assert_eq!(
        alice.ok(&["mcp", "federate", "list"]).await["peers"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
}

#[tokio::test]
async fn a_wrong_command_line_ends_with_2_and_help_with_0() {
    let home = Node::new("alice");
    for wrong in [
        vec!["nonsense"],
        vec!["shard", "publish", "--public"],
        vec!["shard", "fetch", "xyz"],
        vec!["mcp", "serve", "--listen", "here"],
    ] {
        let output = home.cli(&wrong).await;
        assert_eq!(output.status, Some(2), "{wrong:?}: {}", output.stderr);
        assert!(output.stdout.is_empty(), "{wrong:?}: stdout stays clean");
    }
    assert_eq!(home.cli(&["--help"]).await.status, Some(0));
    for shell in ["bash", "zsh", "fish"] {
        let script = home.cli(&["completions", shell]).await;
        assert_eq!(script.status, Some(0));
        assert!(script.stdout.contains("federate"), "{shell}");
    }
}
