//! Publishers without a server (`spec/http.md` W1–W6): their logs are taken from them alone, and served while they sleep.

use bytes::Bytes;
use hn_integration::caller::Caller;
use hn_integration::cluster::Node;
use hn_integration::converge::{SOON, eventually};
use hn_integration::hostile::Author;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use reqwest::Method;
use serde_json::{Value, json};

use crate::signed::{awake, past_start};

/// Gives `did` a friend's rights at `node`.
async fn befriend(node: &Node, did: Did) {
    node.ok(&["mcp", "allow", &did.to_string(), "none", "--friend"])
        .await;
}

/// Everything that `author` has, as one request shows it.
fn all(author: &Author) -> Vec<Bytes> {
    author.pages.page(0, usize::MAX).0
}

#[tokio::test]
async fn a_strangers_publish_is_403_and_a_friends_is_served_while_its_owner_sleeps() {
    let (host, carol) = (awake("host").await, awake("carol").await);
    let bob = Node::new("bob");
    let made = bob.ok(&["id", "create", "bob", "--yes"]).await;
    let did = made["identity"]["did"].as_str().unwrap().to_owned();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("song.txt"), "la la").unwrap();
    std::fs::write(folder.path().join("large.bin"), vec![7; 9 << 20]).unwrap();
    let (folder, url) = (folder.path().to_str().unwrap().to_owned(), host.base_url());
    let publish = ["shard", "publish", "--public", &folder, "--mcp-url", &url];

    let refused = bob.cli(&publish).await;
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    assert_eq!(
        refused.json["log_size"], 2,
        "it is published at home all the same"
    );
    let error = &refused.json["pushed"]["error"];
    assert_eq!(error["code"], "host_refused");
    assert!(
        error["detail"].as_str().unwrap().contains("publish.hosted"),
        "{error}"
    );

    host.ok(&["mcp", "allow", &did, "none", "--friend"]).await;
    let taken = bob.ok(&publish).await;
    assert_eq!(taken["pushed"]["log_size"], 2);
    assert_eq!(
        (&taken["pushed"]["entries"], &taken["pushed"]["artifacts"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(taken["pushed"]["log_root"], taken["log_root"]);
    let again = bob.ok(&publish).await;
    assert_eq!(
        (&again["pushed"]["entries"], &again["pushed"]["artifacts"]),
        (&json!(0), &json!(0))
    );

    // Nothing of bob runs. Carol follows him through the host alone.
    carol.follow(&host).await;
    carol.ok(&["mcp", "federate", "refresh", "--mirror"]).await;
    let listed = carol.ok(&["shard", "list", "--from", &did]).await;
    assert_eq!(listed["log_root"], taken["log_root"]);
    assert_eq!(listed["entries"][1]["path"], "song.txt");
    let digest = Digest::of(b"la la").to_string();
    assert_eq!(
        carol
            .get(&format!("/artifact/{digest}"))
            .await
            .bytes()
            .await
            .unwrap(),
        "la la"
    );

    // And the host has it after a crash: what was acknowledged is durable.
    let mut host = host;
    host.kill();
    host.start().await;
    assert_eq!(host.log(did.parse().unwrap()).await.size, 2);
    assert_eq!(host.get(&format!("/artifact/{digest}")).await.status(), 200);
}

#[tokio::test]
async fn a_log_is_handed_over_in_pieces_and_again_without_a_change() {
    let host = awake("host").await;
    let mut ann = Author::new("http://127.0.0.1:1");
    ann.publish_files(3);
    ann.publish_files(2);
    let caller = Caller::with(ann.identity.clone(), &host);
    befriend(&host, ann.did()).await;
    let nothing = caller.publish(&[]).answer().await;
    assert_eq!((nothing.0, &nothing.1["log_size"]), (200, &json!(0)));

    let (first, _) = ann.pages.page(0, 1);
    let (status, answer) = caller.publish(&first).answer().await;
    assert_eq!((status, &answer["log_size"]), (200, &json!(3)), "{answer}");
    let missing = answer["missing"].as_array().unwrap().clone();
    assert_eq!(missing.len(), 3);
    for (lines, size) in [(all(&ann), 5), (first, 5), (all(&ann), 5)] {
        let (status, answer) = caller.publish(&lines).answer().await;
        assert_eq!(
            (status, &answer["log_size"]),
            (200, &json!(size)),
            "{answer}"
        );
    }
    assert_eq!(host.log(ann.did()).await.size, 5);

    for (digest, bytes) in &ann.pages.artifacts {
        let put = caller.put(*digest, bytes);
        let (status, answer) = put.answer().await;
        assert_eq!(
            (status, &answer["status"]),
            (201, &json!("stored")),
            "{answer}"
        );
        let (status, answer) = caller.put(*digest, bytes).answer().await;
        assert_eq!(
            (status, &answer["status"]),
            (200, &json!("known")),
            "{answer}"
        );
        let path = format!("/artifact/{digest}");
        assert_eq!(host.get(&path).await.bytes().await.unwrap(), bytes);
    }
    let (_, answer) = caller.publish(&all(&ann)).answer().await;
    assert_eq!(answer["missing"], json!([]));
}

#[tokio::test]
async fn what_is_not_the_callers_own_or_breaks_a_rule_is_refused_whole() {
    let host = awake("host").await;
    let (mut ann, mut eve) = (
        Author::new("http://127.0.0.1:1"),
        Author::new("http://127.0.0.1:1"),
    );
    ann.publish();
    eve.publish();
    let caller = Caller::with(eve.identity.clone(), &host);
    befriend(&host, eve.did()).await;

    let foreign = caller.publish(&all(&ann)).refused().await;
    assert_eq!(foreign, (403, "foreign_document".into()));
    let mut mixed = all(&eve);
    mixed.extend(all(&ann));
    assert_eq!(
        caller.publish(&mixed).refused().await,
        (403, "foreign_document".into())
    );
    assert_eq!(
        host.get(&format!("/presence/{}", eve.did())).await.status(),
        404,
        "nothing of it"
    );
    assert_eq!(
        host.get(&format!("/presence/{}", ann.did())).await.status(),
        404
    );

    for (lines, reason) in [
        (vec![Bytes::from_static(b"{}")], "wrong_type"),
        (vec![Bytes::from_static(b"nonsense")], "invalid_json"),
        (all(&eve).into_iter().rev().collect(), "unbound_presence"),
    ] {
        let (status, answer) = caller.publish(&lines).answer().await;
        assert_eq!(
            (status, &answer["code"]),
            (409, &json!("page_refused")),
            "{answer}"
        );
        assert_eq!(answer["reason"], reason, "{answer}");
    }
    let many = vec![Bytes::from_static(b"{}"); 1025];
    assert_eq!(
        caller.publish(&many).refused().await,
        (413, "too_many_entries".into())
    );
    let large = caller
        .ask(Method::POST, "/publish")
        .content(vec![b'x'; (8 << 20) + 1]);
    assert_eq!(large.refused().await, (413, "body_too_large".into()));
    let mut json = caller.publish(&all(&eve));
    json.media = "application/json";
    assert_eq!(json.refused().await, (415, "unsupported_media_type".into()));
    let mut wrong = caller.publish(&all(&eve));
    wrong.body = Some("other".into());
    assert_eq!(wrong.refused().await, (401, "signature_digest".into()));

    // The node's own key publishes over the socket alone.
    let seed = std::fs::read(host.home().join("identities/node/secret.json")).unwrap();
    let seed: Value = serde_json::from_slice(&seed).unwrap();
    let own = own_identity(&seed);
    assert_eq!(own.did(), host.did());
    let own = Caller::with(own, &host);
    host.ok(&["policy", "gate", "set", "publish.hosted", "--mode", "allow"])
        .await;
    assert_eq!(
        own.publish(&all(&eve)).refused().await,
        (403, "own_publisher".into())
    );
}

fn own_identity(secret: &Value) -> hn_protocol::did::Identity {
    use base64::Engine;
    let text = secret["seed"].as_str().expect("a plain seed");
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(text)
        .unwrap();
    hn_protocol::did::SecretSeed::from_bytes(bytes.try_into().unwrap()).identity()
}

#[tokio::test]
async fn an_artifact_that_no_slice_names_or_with_other_bytes_is_refused() {
    let mut host = awake("host").await;
    let mut ann = Author::new("http://127.0.0.1:1");
    ann.publish();
    let caller = Caller::with(ann.identity.clone(), &host);
    befriend(&host, ann.did()).await;
    let (digest, bytes) = ann
        .pages
        .artifacts
        .iter()
        .next()
        .map(|(d, b)| (*d, b.clone()))
        .unwrap();
    assert_eq!(
        caller.put(digest, &bytes).refused().await,
        (404, "unnamed_artifact".into())
    );
    caller.publish(&all(&ann)).answer().await;
    let unnamed = Digest::of(b"unnamed");
    assert_eq!(
        caller.put(unnamed, b"unnamed").refused().await,
        (404, "unnamed_artifact".into())
    );
    let mut other = bytes.to_vec();
    other[0] ^= 1;
    assert_eq!(
        caller.put(digest, &other).refused().await,
        (422, "wrong_artifact".into())
    );
    let short = &bytes[..bytes.len() - 1];
    assert_eq!(
        caller.put(digest, short).refused().await,
        (422, "wrong_artifact".into())
    );
    let long = [&bytes[..], b"x"].concat();
    assert_eq!(
        caller.put(digest, &long).refused().await,
        (422, "wrong_artifact".into())
    );
    let mut elsewhere = caller.put(digest, &bytes);
    elsewhere.path = format!("/artifact/{unnamed}");
    assert_eq!(elsewhere.refused().await, (401, "signature_digest".into()));
    assert_eq!(
        host.get(&format!("/artifact/{digest}")).await.status(),
        404,
        "nothing of it is kept"
    );

    // Another friend may not fill it in either: no slice of its names it.
    let eve = Caller::stranger(&host);
    befriend(&host, eve.did()).await;
    assert_eq!(
        eve.put(digest, &bytes).refused().await,
        (404, "unnamed_artifact".into())
    );

    // After a restart the slices are handed over once more.
    host.kill();
    host.start().await;
    past_start(&host).await;
    assert_eq!(
        caller.put(digest, &bytes).refused().await,
        (404, "unnamed_artifact".into())
    );
    caller.publish(&all(&ann)).answer().await;
    let small = caller
        .ask(Method::PUT, &format!("/artifact/{digest}"))
        .content(bytes.clone());
    assert_eq!(
        small.answer().await.0,
        201,
        "content-digest is as good for what is small"
    );
}

#[tokio::test]
async fn who_hands_over_two_logs_is_proved_forked() {
    let host = awake("host").await;
    let mut ann = Author::new("http://127.0.0.1:1");
    let mut twin = ann.clone();
    ann.publish_files(1);
    twin.publish_files(2);
    let caller = Caller::with(ann.identity.clone(), &host);
    befriend(&host, ann.did()).await;
    assert_eq!(caller.publish(&all(&ann)).answer().await.0, 200);
    assert_eq!(
        caller.publish(&all(&twin)).refused().await,
        (409, "publisher_forked".into())
    );
    assert_eq!(
        caller.publish(&all(&ann)).refused().await,
        (409, "publisher_forked".into())
    );
    let forks = host.ok(&["mcp", "federate", "forks"]).await;
    assert_eq!(forks["forks"][0]["publisher"], ann.did().to_string());
}

#[tokio::test]
async fn a_publisher_without_room_is_told_so_and_evicts_nothing() {
    let mut host = Node::new("host")
        .with("HN_STORAGE__PUBLISHER_QUOTA", "10")
        .with("HN_FEDERATION__MAX_HELD_BYTES", "4000");
    host.start().await;
    past_start(&host).await;
    let mut ann = Author::new("http://127.0.0.1:1");
    ann.publish_files(1);
    let caller = Caller::with(ann.identity.clone(), &host);
    befriend(&host, ann.did()).await;
    let (status, answer) = caller.publish(&all(&ann)).answer().await;
    assert_eq!(status, 200, "{answer}");
    let (digest, bytes) = ann.pages.artifacts.iter().next().unwrap();
    assert!(bytes.len() > 10);
    assert_eq!(
        caller.put(*digest, bytes).refused().await,
        (507, "quota_exceeded".into())
    );
    ann.publish_files(20);
    assert_eq!(
        caller.publish(&all(&ann)).refused().await,
        (507, "quota_exceeded".into())
    );
    assert_eq!(host.log(ann.did()).await.size, 1);
}

#[tokio::test]
async fn who_takes_a_friends_rights_back_is_obeyed_at_once() {
    let host = awake("host").await;
    let mut ann = Author::new("http://127.0.0.1:1");
    ann.publish();
    let caller = Caller::with(ann.identity.clone(), &host);
    befriend(&host, ann.did()).await;
    assert_eq!(caller.publish(&all(&ann)).answer().await.0, 200);
    host.ok(&["mcp", "allow", &ann.did().to_string(), "none"])
        .await;
    assert_eq!(
        caller.publish(&all(&ann)).refused().await,
        (403, "gate_denied".into())
    );
    // A person's edit of the file counts as well.
    let roster = host.home().join("config/federation.toml");
    let text = std::fs::read_to_string(&roster).unwrap_or_default();
    let friend = format!(
        "{text}\n[[friend]]\ndid = \"{}\"\nfriend = true\n",
        ann.did()
    );
    std::fs::write(&roster, friend).unwrap();
    eventually(SOON, "the file is read again", async || {
        match caller.publish(&all(&ann)).answer().await {
            (200, _) => Ok(()),
            (status, answer) => Err(format!("{status} {answer}")),
        }
    })
    .await;
}
