//! A DID that has ended: its revocation reaches whoever has to do with it, is shown where the presence was, and nothing that
//! is signed after it counts anywhere.
//!
//! ```text
//!   bob ◄──► alice ◄── carol        the thief: bob's home, copied before
//! ```

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use hn_integration::caller::Caller;
use hn_integration::cluster::{DRAIN, Node, Output};
use hn_integration::converge::{SOON, eventually};
use hn_integration::copy::Copy;
use hn_integration::hostile::{Author, Eve};
use hn_integration::log::now;
use hn_protocol::did::{Did, Identity};
use hn_protocol::document::Revocation;
use hn_protocol::sign::Signed;
use reqwest::Method;
use serde_json::{Value, json};

use crate::signed::{awake, past_start};

/// For a node to have asked its holders at a start (design 4: 5 s), on a busy machine.
const ASKED: Duration = Duration::from_secs(15);

/// Bob and Alice, who follow each other; Bob has published.
async fn bob_and_alice() -> (Node, Node) {
    let (bob, alice) = (Node::started("bob").await, Node::started("alice").await);
    for name in ["one.txt", "two.txt"] {
        bob.publish(&[(name, name.as_bytes())]).await;
    }
    alice.follow(&bob).await;
    bob.follow(&alice).await;
    alice.refresh().await;
    (bob, alice)
}

/// Bob's revocation, as it was put aside when his identity was made.
fn put_aside(bob: &Node) -> Vec<u8> {
    fs::read(bob.home().join("identities/node/revocation.json")).unwrap()
}

async fn body(node: &Node, path: &str) -> (u16, Vec<u8>) {
    let answer = node.get(path).await;
    (
        answer.status().as_u16(),
        answer.bytes().await.unwrap().to_vec(),
    )
}

/// Whether `node` shows `word` wherever it showed the presence of `did`.
async fn shows(node: &Node, did: Did, word: &[u8]) -> Result<(), String> {
    let (status, shown) = body(node, &format!("/presence/{did}")).await;
    if (status, shown.as_slice()) != (200, word) {
        let shown = String::from_utf8_lossy(&shown).into_owned();
        return Err(format!("{status} {shown}"));
    }
    let (status, resolved) = body(node, &format!("/1.0/identifiers/{did}")).await;
    let problem: Value = serde_json::from_slice(&resolved).map_err(|e| e.to_string())?;
    if (status, &problem["code"]) != (410, &json!("revoked")) {
        return Err(format!("{status} {problem}"));
    }
    let heads: Value = node.get("/federate/peers").await.json().await.unwrap();
    let heads = heads["peers"].as_array().unwrap();
    let head = heads.iter().find(|head| head["did"] == did.to_string());
    match head {
        Some(head) if head["revoked"] == true => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

/// `node` shows `word`, and of the log every byte of `slices` before it and nothing else.
async fn holds_the_end(node: &Node, did: Did, word: &[u8], slices: &[Bytes]) {
    let shown = shows(node, did, word).await;
    shown.unwrap_or_else(|e| panic!("{} shows {e}", node.name()));
    let log = node.log(did).await;
    assert_eq!(log.slices, slices, "{}", node.name());
    assert_eq!(log.lines.last().unwrap(), word, "{}", node.name());
}

async fn signs_nothing(bob: &Node) {
    let before = bob.log(bob.did()).await;
    let refused = bob.try_publish(&[("refused.txt", b"?")]).await;
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    let problem = refused.problem();
    assert_eq!(
        (&problem["code"], &problem["status"]),
        (&json!("revoked"), &json!(410)),
        "{problem}"
    );
    assert!(problem["remedy"].is_string(), "{problem}");
    assert_eq!(bob.log(bob.did()).await.lines, before.lines);
    let reset = bob.cli(&["mcp", "log", "reset", "--yes"]).await;
    assert_eq!(reset.problem()["code"], "revoked", "{}", reset.stderr);
    let status = bob.status().await;
    assert_eq!(status["log"]["state"], "revoked", "{status}");
    assert_eq!(status["identity"]["revoked"], true);
    let steps = status["next_steps"].to_string();
    assert!(steps.contains("hn id create"), "{steps}");
}

/// Makes `did` a friend of `node`, by hand.
async fn befriend(node: &Node, did: Did) {
    let path = node.home().join("config/federation.toml");
    let roster = fs::read_to_string(&path).unwrap_or_default();
    let friend = format!("[[friend]]\ndid = \"{did}\"\nrights = []\nfriend = true\n");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!("{roster}\n{friend}")).unwrap();
    let reload = node.admin(Method::POST, "/admin/federation/reload");
    assert_eq!(reload.send().await.unwrap().status(), 200);
}

async fn tell(node: &Node, word: Vec<u8>) -> (u16, Value) {
    let url = format!("{}/revocation", node.base_url());
    let answer = node.http().post(url).body(word).send().await.unwrap();
    let status = answer.status().as_u16();
    (status, answer.json().await.unwrap_or_default())
}

async fn revoke(node: &Node, arguments: &[&str]) -> Output {
    let line = [&["id", "revoke", "--yes"], arguments].concat();
    node.cli(&line).await
}

/// A node on a copy of bob's home, who forgets whom bob followed, and signs.
async fn steal(copy: &Copy, name: &str) -> Node {
    let mut thief = copy.node(name);
    fs::remove_file(thief.home().join("config/federation.toml")).unwrap();
    thief.start().await;
    thief.ok(&["mcp", "log", "resume", "--accept-loss"]).await;
    thief.publish(&[("stolen.txt", b"by the thief")]).await;
    thief
}

/// ```text
///   bob revokes ──► alice ◄── carol;  the thief signs on;  dave comes late
/// ```
#[tokio::test]
async fn a_revoked_did_ends_everywhere_and_what_its_thief_signs_counts_nowhere() {
    let (mut bob, mut alice) = bob_and_alice().await;
    let mut carol = Node::started("carol").await;
    carol.follow(&alice).await;
    carol.refresh().await;
    bob.terminate().await;
    let copy = Copy::of(&bob);
    bob.start().await;
    let (did, word) = (bob.did(), put_aside(&bob));
    let slices = bob.log(did).await.slices;
    assert_eq!(carol.log(did).await.slices, slices);

    let revoked = revoke(&bob, &[]).await;
    assert_eq!(revoked.status, Some(0), "{}", revoked.stderr);
    assert_eq!(revoked.json["did"], did.to_string());
    assert!(revoked.json["revoked_at"].is_string(), "{}", revoked.json);
    let handed = json!([{"url": format!("{}/", alice.base_url()), "ok": true, "error": null}]);
    assert_eq!(revoked.json["handed_to"], handed);

    // Bob: nothing more is signed, and everything is there to be read.
    signs_nothing(&bob).await;
    holds_the_end(&bob, did, &word, &slices).await;
    for path in ["/presence", "/.well-known/hn/presence"] {
        assert_eq!(body(&bob, path).await, (200, word.clone()), "{path}");
    }
    assert_eq!(body(&bob, "/.well-known/did.json").await.0, 410);
    assert_eq!(body(&bob, "/readyz").await.0, 200);
    let identity = &bob.ok(&["id", "get"]).await["identity"];
    assert_eq!(identity["revoked"], true);
    let listed = &bob.ok(&["id", "list"]).await["identities"];
    assert_eq!(listed[0]["revoked"], true);

    // Alice has it from bob himself, carol from alice.
    holds_the_end(&alice, did, &word, &slices).await;
    carol.refresh().await;
    holds_the_end(&carol, did, &word, &slices).await;
    let peer = alice.peer(did).await;
    assert_eq!(peer["state"], "revoked", "{peer}");
    assert!(peer["reason"].as_str().unwrap().starts_with("revoked: "));
    assert!(peer["remedy"].as_str().unwrap().contains("federate remove"));

    // The thief signs, and asks to be followed: by alice, and by carol, who does not know him as a peer.
    let thief = steal(&copy, "thief").await;
    assert_eq!(thief.log(did).await.size, 3);
    for node in [&alice, &carol] {
        let add = [
            "mcp",
            "federate",
            "add",
            &did.to_string(),
            &thief.base_url(),
        ];
        node.ok(&add).await;
        let report = node.refresh().await;
        let reports = report["peers"].as_array().unwrap();
        let of_bob = reports.iter().find(|peer| peer["did"] == did.to_string());
        let of_bob = of_bob.unwrap();
        assert_eq!(of_bob["error"]["code"], "revoked", "{report}");
        assert_eq!(
            (&of_bob["slices"], &of_bob["state"]),
            (&json!(0), &json!("revoked"))
        );
        holds_the_end(node, did, &word, &slices).await;
    }

    // What is believed is neither in memory nor in the index alone; and the roster has nothing to say about it.
    alice
        .ok(&["mcp", "federate", "remove", &did.to_string()])
        .await;
    for node in [&mut alice, &mut carol, &mut bob] {
        node.restart().await;
        holds_the_end(node, did, &word, &slices).await;
        node.ok(&["mcp", "reindex"]).await;
        holds_the_end(node, did, &word, &slices).await;
    }
    signs_nothing(&bob).await;

    // Who comes late reads the history, and its end.
    let dave = Node::started("dave").await;
    dave.follow(&alice).await;
    dave.refresh().await;
    holds_the_end(&dave, did, &word, &slices).await;

    // Who had followed the thief alone hears of it from anybody, and believes nothing more.
    let erin = Node::started("erin").await;
    erin.follow(&thief).await;
    erin.refresh().await;
    assert_eq!(erin.log(did).await.size, 3);
    erin.follow(&alice).await;
    erin.refresh().await;
    shows(&erin, did, &word).await.unwrap();
    thief.publish(&[("more.txt", b"more")]).await;
    erin.refresh().await;
    assert_eq!(erin.log(did).await.size, 3);
    assert_eq!(erin.peer(did).await["state"], "revoked");
}

/// ```text
///   bob's machine is gone, and runs elsewhere;  his export is in a drawer;  alice follows him
/// ```
#[tokio::test]
async fn who_has_nothing_but_the_export_ends_the_did_from_any_machine() {
    let (mut bob, alice) = bob_and_alice().await;
    let (did, word) = (bob.did(), put_aside(&bob));
    let drawer = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { drawer.path().join(name) };
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let export = text(path("export.json"));
    fs::write(path("passphrase"), "correct horse\n").unwrap();
    let passphrase = text(path("passphrase"));
    let sealed = [
        "id",
        "export",
        "--out",
        &export,
        "--passphrase-file",
        &passphrase,
    ];
    bob.ok(&sealed).await;
    bob.kill();

    // A machine without a home, without a node, without the passphrase.
    let desk = Node::new("desk");
    let unconfirmed = desk
        .cli(&["id", "revoke", "--file", &export, "--to", &alice.base_url()])
        .await;
    assert_eq!(unconfirmed.status, Some(2), "{}", unconfirmed.stderr);
    assert_eq!(unconfirmed.problem()["code"], "not_confirmed");
    let nobody = revoke(&desk, &["--file", &export]).await;
    assert_eq!(
        (nobody.status, &nobody.problem()["code"]),
        (Some(2), &json!("nobody_to_tell"))
    );
    fs::write(path("other.json"), "{\"type\":\"hn_identity@1\"}").unwrap();
    let other = revoke(
        &desk,
        &[
            "--file",
            &text(path("other.json")),
            "--to",
            &alice.base_url(),
        ],
    )
    .await;
    assert_eq!(
        (other.status, &other.problem()["code"]),
        (Some(1), &json!("malformed_document"))
    );
    shows(&alice, did, &word)
        .await
        .expect_err("nothing came of it");

    let away = "http://127.0.0.1:9/";
    let told = revoke(
        &desk,
        &["--file", &export, "--to", &alice.base_url(), "--to", away],
    )
    .await;
    assert_eq!(told.status, Some(1), "one was not told: {}", told.stderr);
    assert_eq!(told.json["did"], did.to_string());
    assert_eq!(
        told.json["revoked_at"],
        Value::Null,
        "there is no home here"
    );
    let handed = &told.json["handed_to"];
    assert_eq!(
        (&handed[0]["ok"], &handed[0]["error"]),
        (&json!(true), &Value::Null)
    );
    assert_eq!(
        (&handed[1]["ok"], &handed[1]["url"]),
        (&json!(false), &json!(away))
    );
    assert!(handed[1]["error"].is_string());
    assert!(
        !desk.home().join("version").exists(),
        "no home is made for it"
    );
    shows(&alice, did, &word).await.unwrap();
    // The revocation alone is as good.
    fs::write(path("revocation.json"), &word).unwrap();
    let again = revoke(
        &desk,
        &[
            "--file",
            &text(path("revocation.json")),
            "--to",
            &alice.base_url(),
        ],
    )
    .await;
    assert_eq!(again.status, Some(0), "{}", again.stderr);

    // Whoever runs the stolen machine learns of it from whom it asks before it signs.
    bob.start().await;
    eventually(ASKED, "bob's node knows that it has ended", async || {
        shows(&bob, did, &word).await
    })
    .await;
    signs_nothing(&bob).await;
}

/// ```text
///   alice, who follows bob, is told ◄── anybody;  bob asks alice
/// ```
#[tokio::test]
async fn a_node_that_meets_its_own_end_at_a_peer_or_at_its_door_signs_no_more() {
    let (mut bob, alice) = bob_and_alice().await;
    let (did, word) = (bob.did(), put_aside(&bob));
    assert_eq!(
        tell(&alice, word.clone()).await,
        (200, json!({"did": did.to_string(), "status": "accepted"}))
    );
    assert_eq!(tell(&alice, word.clone()).await.1["status"], "known");
    bob.publish(&[("three.txt", b"not known yet")]).await;
    alice.refresh().await;
    assert_eq!(alice.log(did).await.size, 2, "nothing beyond what was held");
    bob.refresh().await;
    shows(&bob, did, &word).await.unwrap();
    signs_nothing(&bob).await;
    bob.restart().await;
    signs_nothing(&bob).await;

    // And told directly, by a stranger.
    let mut dave = Node::started("dave").await;
    let hers = put_aside(&dave);
    dave.publish(&[("a.txt", b"a")]).await;
    assert_eq!(tell(&dave, hers.clone()).await.1["status"], "accepted");
    signs_nothing(&dave).await;
    dave.restart().await;
    shows(&dave, dave.did(), &hers).await.unwrap();
    signs_nothing(&dave).await;
    assert!(dave.terminate().await.success());
}

#[tokio::test]
async fn what_is_no_revocation_of_somebody_known_is_refused_and_fills_no_disk() {
    let (alice, stranger) = (
        Node::started("alice").await,
        Node::started("stranger").await,
    );
    let word = put_aside(&stranger);
    let text = String::from_utf8(word.clone()).unwrap();
    let (mine, theirs) = (alice.did().to_string(), stranger.did().to_string());
    let cases = [
        (word.clone(), 404, "unknown_publisher"),
        (text.replace(&theirs, &mine).into_bytes(), 400, "wrong_id"),
        (b"{}".to_vec(), 400, "wrong_type"),
        (b"nothing".to_vec(), 400, "invalid_json"),
        (Vec::new(), 400, "invalid_json"),
        (b"\xff\xff".to_vec(), 400, "invalid_utf8"),
        (
            text.replace("ed25519:", "rsa:").into_bytes(),
            400,
            "bad_signature_form",
        ),
        (vec![b' '; 4097], 413, "body_too_large"),
    ];
    for (body, status, code) in cases {
        let (got, problem) = tell(&alice, body).await;
        assert_eq!((got, &problem["code"]), (status, &json!(code)), "{problem}");
    }
    let presence = body(&stranger, "/presence").await.1;
    assert_eq!(tell(&alice, presence).await.1["code"], "wrong_type");
    let answer = alice.get("/revocation").await;
    assert_eq!(answer.status(), 405);
    assert_eq!(answer.headers()["allow"], "POST");
    assert!(!alice.home().join("trust").exists(), "nothing was kept");
    alice.publish(&[("a.txt", b"a")]).await;

    // At the operator's own word a stranger's is kept as well, and shown.
    let kept = alice
        .admin(Method::POST, "/admin/revocation")
        .body(word.clone());
    assert_eq!(kept.send().await.unwrap().status(), 200);
    let shown = body(&alice, &format!("/presence/{theirs}")).await;
    assert_eq!(shown, (200, word.clone()));
    let (status, page) = body(&alice, &format!("/federate/index?publisher={theirs}")).await;
    assert_eq!((status, page), (200, [word, b"\n".to_vec()].concat()));
}

#[tokio::test]
async fn a_crash_between_the_mark_and_the_end_leaves_a_node_that_has_ended() {
    let (mut bob, alice) = bob_and_alice().await;
    let (did, word) = (bob.did(), put_aside(&bob));
    // A full disk: nothing is kept, nobody told.
    bob.terminate().await;
    bob.set("HN_FAILPOINTS", "revocation.before_write=error@1");
    bob.start().await;
    let failed = revoke(&bob, &[]).await;
    assert_eq!(failed.status, Some(1), "{}", failed.stderr);
    assert_eq!(failed.problem()["code"], "storage_full");
    shows(&alice, did, &word)
        .await
        .expect_err("nobody was told");
    bob.publish(&[("three.txt", b"still alive")]).await;

    // Durable, and the process dies before anybody hears of it.
    bob.terminate().await;
    bob.set("HN_FAILPOINTS", "revocation.after_write=crash");
    bob.start().await;
    let lost = revoke(&bob, &[]).await;
    assert_eq!(
        (lost.status, &lost.problem()["code"]),
        (Some(1), &json!("connection_lost"))
    );
    assert!(!bob.ended(DRAIN).await.success());
    bob.set("HN_FAILPOINTS", "");
    bob.start().await;
    shows(&bob, did, &word).await.unwrap();
    signs_nothing(&bob).await;
    // Asked again it tells those who have to know.
    assert_eq!(revoke(&bob, &[]).await.json["handed_to"][0]["ok"], true);
    shows(&alice, did, &word).await.unwrap();
}

/// ```text
///   bob is not running;  alice is told by his command;  carol listens to alice
/// ```
#[tokio::test]
async fn an_end_that_a_command_brought_is_news_to_those_who_listen() {
    let (mut bob, alice) = bob_and_alice().await;
    let mut carol = Node::new("carol").with("HN_FEDERATION__WATCH", "true");
    carol.start().await;
    carol.follow(&alice).await;
    carol.refresh().await;
    let (did, word) = (bob.did(), put_aside(&bob));
    let slices = bob.log(did).await.slices;
    bob.terminate().await;
    let revoked = revoke(&bob, &["node"]).await;
    assert_eq!(revoked.status, Some(0), "{}", revoked.stderr);
    assert!(revoked.json["revoked_at"].is_string());
    assert_eq!(revoked.json["handed_to"][0]["ok"], true, "{}", revoked.json);
    eventually(SOON, "carol hears of bob's end", async || {
        shows(&carol, did, &word).await
    })
    .await;
    holds_the_end(&carol, did, &word, &slices).await;
    // The command alone was enough for his own node, whenever it comes up again.
    bob.start().await;
    holds_the_end(&bob, did, &word, &slices).await;
    signs_nothing(&bob).await;
    let used = bob.cli(&["id", "revoke"]).await;
    assert_eq!(used.status, Some(0), "it is asked once: {}", used.stderr);
}

/// ```text
///   bob, who is away ◄──held by── eve, who calls him revoked ◄──follows── alice
/// ```
#[tokio::test]
async fn a_peer_that_buries_the_living_is_a_liar_and_nobody_ends_by_its_word() {
    let alice = Node::started("alice").await;
    let eve = Eve::honest().await;
    let mut bob = Author::new("http://127.0.0.1:1");
    bob.publish();
    eve.hold(&bob, None);
    let (did, hers) = (bob.did(), eve.did().to_string());
    alice
        .ok(&["mcp", "federate", "add", &hers, eve.base_url()])
        .await;
    alice.settles().await;
    let slices = alice.log(did).await.slices;
    let word = |identity: &Identity| {
        let did = identity.did();
        let word = Revocation { did, at: now() };
        Signed::create(&word, identity).unwrap().bytes().clone()
    };
    let genuine = word(&bob.identity);
    let another = word(&eve.author().identity);
    let text = String::from_utf8(genuine.to_vec()).unwrap();
    let damaged = Bytes::from(text.replace("\"at\":\"20", "\"at\":\"19"));
    for (lie, code) in [
        (None, "bad_answer"),
        (Some(another), "wrong_publisher"),
        (Some(damaged), "wrong_id"),
    ] {
        eve.bury(did, lie);
        alice.cli(&["mcp", "federate", "refresh"]).await;
        let peer = alice.peer(eve.did()).await;
        assert_eq!(peer["state"], "stale", "{code}: {peer}");
        assert!(peer["reason"].as_str().unwrap().starts_with(code), "{peer}");
        shows(&alice, did, &genuine).await.expect_err("bob lives");
        // And he goes on.
        bob.publish();
        eve.hold(&bob, None);
    }
    eve.excuse();
    eve.bury(did, Some(genuine.clone()));
    alice.refresh().await;
    let log = alice.log(did).await;
    shows(&alice, did, &genuine).await.unwrap();
    assert!(
        log.slices.len() > slices.len(),
        "what came with his end is history"
    );
    assert_eq!(alice.peer(eve.did()).await["state"], "healthy");
    bob.publish();
    eve.hold(&bob, None);
    alice.refresh().await;
    assert_eq!(
        alice.log(did).await.slices,
        log.slices,
        "nothing comes after it"
    );
}

/// ```text
///   ann, who has no server ──hands over──► host
/// ```
#[tokio::test]
async fn who_has_ended_is_nobody_at_any_door() {
    let mut host = awake("host").await;
    let mut ann = Author::new("http://127.0.0.1:1");
    ann.publish_files(2);
    let did = ann.did();
    befriend(&host, did).await;
    let caller = Caller::with(ann.identity.clone(), &host);
    let whole = |ann: &Author| ann.pages.page(0, usize::MAX).0;
    let (status, answer) = caller.publish(&whole(&ann)).answer().await;
    assert_eq!((status, &answer["log_size"]), (200, &json!(2)), "{answer}");
    let word = Revocation { did, at: now() };
    let word = Signed::create(&word, &ann.identity).unwrap();
    let word = word.bytes().clone();

    // Handed over behind the last of her lines.
    ann.publish_files(1);
    let mut last = whole(&ann);
    last.pop();
    last.push(word.clone());
    let (status, answer) = caller.publish(&last).answer().await;
    assert_eq!((status, &answer["log_size"]), (200, &json!(3)), "{answer}");
    let slices = host.log(did).await.slices;
    holds_the_end(&host, did, &word, &slices).await;

    // Whoever signs as her from now on is nobody, whatever the gates say; and nonces are none of its business.
    ann.publish_files(1);
    for _ in 0..2 {
        for ask in [
            caller.publish(&whole(&ann)),
            caller.publish(&[]),
            caller.get("/federate/peers"),
        ] {
            let (status, problem) = ask.answer().await;
            let code = json!("caller_revoked");
            assert_eq!((status, &problem["code"]), (403, &code), "{problem}");
        }
        holds_the_end(&host, did, &word, &slices).await;
        host.kill();
        host.start().await;
        past_start(&host).await;
    }

    // Nor does a node that has ended ask anybody in its own name.
    let bob = awake("bob").await;
    bob.publish(&[("a.txt", b"a")]).await;
    befriend(&host, bob.did()).await;
    bob.ok(&["id", "revoke", "--yes"]).await;
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("b.txt"), "b").unwrap();
    let (folder, url) = (folder.path().to_str().unwrap(), host.base_url());
    let publish = ["shard", "publish", "--public", folder, "--mcp-url", &url];
    let refused = bob.cli(&publish).await;
    assert_eq!(refused.status, Some(1), "{}", refused.stdout);
    let push = bob
        .admin(Method::POST, "/admin/log/push")
        .json(&json!({"url": url}));
    assert_eq!(push.send().await.unwrap().status(), 410);
    assert!(host.walk(bob.did()).await.is_err(), "nothing of bob came");
}
