//! Friends: an invite is a line that survives everything, whoever takes it is heard of, and the operator's word is what
//! the roster says.

use std::sync::{Arc, Mutex};

use hn_integration::cluster::Node;
use hn_integration::converge::{SOON, eventually, same};
use hn_integration::fault::Fault;
use hn_protocol::did::{Did, SecretSeed};
use hn_protocol::invite::{Invite, InviteToken, MAX_INVITES};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

fn did(n: u8) -> Did {
    SecretSeed::from_bytes([n; 32]).did()
}

/// An inviter's door: takes introductions, and answers each as it is told to. Everything else is 404. Dropped, it is gone.
struct Door {
    base: String,
    stage: Arc<Mutex<Stage>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Stage {
    status: u16,
    body: String,
    introductions: Vec<Value>,
}

impl Door {
    async fn open(address: &str, status: u16, body: Value) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let base = format!("http://{}", listener.local_addr().unwrap());
        let stage = Arc::new(Mutex::new(Stage::default()));
        let shared = Arc::clone(&stage);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A caller who hangs up is no concern of the next.
                let _ = answer(stream, &shared).await;
            }
        });
        let door = Self { base, stage, task };
        door.says(status, &body);
        door
    }

    fn says(&self, status: u16, body: &Value) {
        let mut stage = self.stage.lock().unwrap();
        stage.status = status;
        stage.body = body.to_string();
    }

    fn introductions(&self) -> Vec<Value> {
        self.stage.lock().unwrap().introductions.clone()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut stream: TcpStream, stage: &Mutex<Stage>) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let end = loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let length = head.lines().find_map(|line| {
        let length = line.strip_prefix("content-length:")?;
        length.trim().parse::<usize>().ok()
    });
    while bytes.len() < end + length.unwrap_or_default() {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
    let (status, body) = if head.starts_with("post /federate/requests ") {
        let mut stage = stage.lock().unwrap();
        let body = serde_json::from_slice(&bytes[end..]).expect("an introduction is JSON");
        stage.introductions.push(body);
        (stage.status, stage.body.clone())
    } else {
        (404, "{}".to_owned())
    };
    let answer = format!(
        "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await
}

fn invite_of(n: u8, base: &str) -> Invite {
    Invite {
        did: did(n),
        url: base.parse().unwrap(),
        token: InviteToken::from_bytes([n; 16]),
    }
}

async fn introduced(node: &Node, state: &str) -> Value {
    eventually(SOON, &format!("the introduction is {state}"), async || {
        let status = node.status().await;
        let one = status["introductions"][0].clone();
        same("the state", one["state"].as_str(), Some(state))
            .map(|()| one.clone())
            .map_err(|error| format!("{error}: {one}"))
    })
    .await
}

#[tokio::test]
async fn an_invite_is_a_line_that_names_the_node_and_is_drawn_only_where_asked_for() {
    let mut alice = Node::started("alice").await;
    let made = alice.ok(&["mcp", "invite", "--expires", "3"]).await;
    let invite: Invite = made["invite"].as_str().unwrap().parse().unwrap();
    assert_eq!(invite.did, alice.did());
    assert_eq!(invite.url.as_str(), alice.base_url());
    assert_eq!(made["did"], alice.did().to_string());
    assert_eq!(made["url"], alice.base_url());
    assert!(made.get("qr").is_none(), "no terminal, no QR code: {made}");
    let drawn = alice.ok(&["mcp", "invite", "--qr"]).await;
    let code = drawn["qr"].as_str().unwrap();
    let lines: Vec<&str> = code.lines().collect();
    let width = lines[0].chars().count();
    // 21 modules and four more a version, and a quiet zone of four on each side.
    assert_eq!((width - 8 - 21) % 4, 0, "{width}");
    assert_eq!(lines.len(), width.div_ceil(2));
    let warned = alice.cli(&["mcp", "invite"]).await;
    assert!(
        warned.stderr.contains("nobody reaches"),
        "a loopback address is warned of: {}",
        warned.stderr
    );

    // Without the node its last presence names the URL; that nobody is there is said.
    let base = alice.base_url();
    alice.kill();
    let made = alice.cli(&["mcp", "invite"]).await;
    assert_eq!(made.status, Some(0), "{}", made.stderr);
    assert_eq!(made.json["url"], base);
    assert!(made.stderr.contains("no node runs"), "{}", made.stderr);
    let kept = std::fs::read_to_string(alice.home().join("mcp/invites.json")).unwrap();
    let kept: Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(kept["invites"].as_array().unwrap().len(), 4);
    let digest = invite.token.digest().to_string();
    assert_eq!(kept["invites"][0]["token"], digest);
    assert!(!kept.to_string().contains(&invite.token.to_string()));
}

#[tokio::test]
async fn so_many_invites_are_open_and_they_can_be_taken_back() {
    let mut alice = Node::started("alice").await;
    let create = async || {
        let request = alice.admin(Method::POST, "/admin/invites");
        request.json(&json!({})).send().await.unwrap().status()
    };
    for _ in 0..MAX_INVITES {
        assert_eq!(create().await, 200);
    }
    let full = alice.cli(&["mcp", "invite"]).await;
    assert_eq!(full.status, Some(1));
    assert_eq!(full.problem()["code"], "too_many_invites");
    alice.restart().await;
    let friends = alice.try_admin("/admin/friends").await.unwrap();
    assert_eq!(friends["invites_open"], MAX_INVITES);
    let back = alice.ok(&["mcp", "invite", "--withdraw"]).await;
    assert_eq!(back["withdrawn"], MAX_INVITES);
    alice.ok(&["mcp", "invite"]).await;
    for days in [0, 366] {
        let request = alice.admin(Method::POST, "/admin/invites");
        let body = json!({ "expires_days": days });
        let refused = request.json(&body).send().await.unwrap();
        assert_eq!(refused.status(), 400);
        let problem: Value = refused.json().await.unwrap();
        assert_eq!(problem["code"], "bad_expiry");
    }
}

#[tokio::test]
async fn what_is_allowed_is_what_was_said_last_with_a_node_and_without() {
    let mut alice = Node::started("alice").await;
    let bob = did(2).to_string();
    let roster = alice.home().join("config/federation.toml");
    std::fs::create_dir_all(roster.parent().unwrap()).unwrap();
    std::fs::write(&roster, "# mine\n").unwrap();
    for running in [true, false] {
        if !running {
            alice.kill();
        }
        for (words, rights, friend) in [
            (
                &["read,relay", "--friend"][..],
                json!(["read", "relay"]),
                true,
            ),
            (&["inbox"][..], json!(["inbox"]), false),
            (&["none", "--friend"][..], json!([]), true),
            (&["backup,read"][..], json!(["read", "backup"]), false),
        ] {
            let line = [&["mcp", "allow", bob.as_str()], words].concat();
            let said = alice.ok(&line).await;
            let wanted = json!({ "did": bob, "rights": rights, "friend": friend });
            assert_eq!(said["friend"], wanted);
            assert_eq!(alice.ok(&["status"]).await["friends"], json!([wanted]));
        }
        let text = std::fs::read_to_string(&roster).unwrap();
        assert!(text.starts_with("# mine\n"), "{text}");
        let refused = alice.cli(&["mcp", "allow", &bob, "read,root"]).await;
        assert_eq!(refused.status, Some(2));
        assert!(
            refused.stderr.contains("read, relay, backup, inbox"),
            "{}",
            refused.stderr
        );
        assert_eq!(std::fs::read_to_string(&roster).unwrap(), text);
    }
    // Durable, and the same after a crash.
    alice.start().await;
    alice.restart().await;
    let friend = alice.try_admin(&format!("/admin/friends/{bob}")).await;
    assert_eq!(
        friend.unwrap()["friend"]["rights"],
        json!(["read", "backup"])
    );
    for _ in 0..2 {
        let none = alice.ok(&["mcp", "allow", &bob, "none"]).await;
        assert_eq!(none["friend"]["rights"], json!([]), "as often as one likes");
    }
    let text = std::fs::read_to_string(&roster).unwrap();
    assert!(!text.contains("friend"), "{text}");
    let own = alice.did().to_string();
    let own = alice.cli(&["mcp", "allow", &own, "read"]).await;
    assert_eq!(own.problem()["code"], "own_peer");
}

#[tokio::test]
async fn what_the_roster_cannot_say_is_refused_and_nothing_of_it_is_lost() {
    let alice = Node::started("alice").await;
    let bob = did(2).to_string();
    let path = format!("/admin/friends/{bob}");
    for (body, code) in [
        (json!({ "rights": ["root"] }), "bad_right"),
        (json!({ "rights": "read" }), "invalid_json"),
        (json!({ "friend": true }), "invalid_json"),
        (json!({ "rights": [], "more": 1 }), "invalid_json"),
    ] {
        let request = alice.admin(Method::PUT, &path).json(&body);
        let refused = request.send().await.unwrap();
        assert_eq!(refused.status(), 400, "{body}");
        let problem: Value = refused.json().await.unwrap();
        assert_eq!(problem["code"], code, "{body}");
    }
    let roster = alice.home().join("config/federation.toml");
    std::fs::create_dir_all(roster.parent().unwrap()).unwrap();
    let one = format!("[[friend]]\ndid = \"{bob}\"\nrights = [\"read\"]\n");
    for broken in [
        format!("{one}{one}"),
        one.replace("\"read\"", "\"everything\""),
    ] {
        std::fs::write(&roster, &broken).unwrap();
        for words in ["read", "none"] {
            let refused = alice.cli(&["mcp", "allow", &bob, words]).await;
            assert_eq!(refused.status, Some(1), "{}", refused.stdout);
            assert_eq!(refused.problem()["code"], "bad_roster");
        }
        let status = alice.status().await;
        assert!(status["roster_error"].is_string(), "{status}");
        assert_eq!(std::fs::read_to_string(&roster).unwrap(), broken);
    }
    for path in ["/admin/friends", "/admin/invites"] {
        assert_eq!(alice.get(path).await.status(), 403, "over TCP: {path}");
    }
}

#[tokio::test]
async fn an_inviter_who_is_away_is_told_when_they_are_back_also_after_a_crash() {
    let door = Door::open("127.0.0.1:0", 202, json!({ "status": "pending" })).await;
    let (base, address) = (door.base.clone(), door.base.replace("http://", ""));
    drop(door);
    let mut bob = Node::started("bob").await;
    let invite = invite_of(1, &base);
    let line = format!(" {invite}\n");
    let added = bob
        .ok(&["mcp", "federate", "add", &line, "--alias", "alice"])
        .await;
    assert_eq!(added["peer"]["url"], format!("{base}/"));
    assert_eq!(added["introduction"]["state"], "sending");
    assert!(!added.to_string().contains(&invite.token.to_string()));
    let one = eventually(SOON, "the first try failed", async || {
        let one = bob.status().await["introductions"][0].clone();
        match one["reason"].is_string() {
            true => Ok(one),
            false => Err(one.to_string()),
        }
    })
    .await;
    assert_eq!(
        (&one["state"], &one["url"]),
        (&json!("sending"), &json!(base))
    );
    assert!(one["next_try"].is_string(), "{one}");

    bob.kill();
    let door = Door::open(&address, 202, json!({ "status": "pending" })).await;
    bob.start().await;
    introduced(&bob, "pending").await;
    let said = door.introductions();
    assert_eq!(said[0]["token"], invite.token.to_string());
    assert_eq!(said[0]["url"], bob.base_url());

    // Their operator says yes meanwhile: the same invite again asks at once.
    door.says(200, &json!({ "status": "friend" }));
    bob.ok(&["mcp", "federate", "add", &invite.to_string()])
        .await;
    introduced(&bob, "accepted").await;
    bob.restart().await;
    introduced(&bob, "accepted").await;
    let asked = door.introductions().len();
    assert_eq!(asked, 2, "what has ended is not sent again");
    assert_eq!(bob.peer(did(1)).await["alias"], "alice", "the rest stays");
}

#[tokio::test]
async fn a_refusal_is_shown_with_its_reason_and_a_new_invite_begins_anew() {
    let problem =
        json!({ "code": "invite_used", "detail": "the invite was used by another DID\u{1b}[2J" });
    let door = Door::open("127.0.0.1:0", 403, problem).await;
    let bob = Node::started("bob").await;
    let mut invite = invite_of(1, &door.base);
    bob.ok(&["mcp", "federate", "add", &invite.to_string()])
        .await;
    let refused = introduced(&bob, "refused").await;
    let reason = refused["reason"].as_str().unwrap();
    assert!(reason.contains("used by another DID"), "{reason}");
    assert!(!reason.contains('\u{1b}'), "{reason}");
    let steps = bob.status().await["next_steps"].to_string();
    assert!(steps.contains("did not take the introduction"), "{steps}");

    // A page of some other server decides nothing.
    door.says(200, &json!({ "status": "hello" }));
    invite.token = InviteToken::from_bytes([9; 16]);
    let moved = invite.to_string().replace("#", "/sub#");
    bob.ok(&["mcp", "federate", "add", &moved]).await;
    let lost = introduced(&bob, "refused").await;
    assert!(lost["reason"].as_str().unwrap().contains("404"), "{lost}");
    bob.ok(&["mcp", "federate", "add", &invite.to_string()])
        .await;
    eventually(SOON, "the answer was not understood", async || {
        let one = bob.status().await["introductions"][0].clone();
        let said = one["reason"].as_str().unwrap_or_default();
        if one["state"] == "sending" && said.contains("not one of a node") {
            Ok(())
        } else {
            Err(one.to_string())
        }
    })
    .await;
    assert_eq!(bob.peer(did(1)).await["url"], format!("{}/", door.base));
    bob.ok(&["mcp", "federate", "remove", &did(1).to_string()])
        .await;
    assert_eq!(bob.status().await["introductions"], json!([]));

    let own = Invite {
        did: bob.did(),
        ..invite
    };
    let own = bob.cli(&["mcp", "federate", "add", &own.to_string()]).await;
    assert_eq!(own.status, Some(1));
    assert_eq!(own.problem()["code"], "own_peer");
    let cut = bob
        .cli(&["mcp", "federate", "add", &moved[..moved.len() - 1]])
        .await;
    assert_eq!(cut.status, Some(2));
    assert_eq!(cut.problem()["code"], "bad_invite");
    assert_eq!(bob.status().await["introductions"], json!([]));
}

/// What `mcp/invites.json` holds after bob and carol came, by `spec/cli.md`.
fn two_requests() -> Value {
    let request = |n: u8| {
        json!({
            "did": did(n), "url": format!("https://n{n}.example"), "since": "2026-01-02T00:00:00.000Z",
            "invite_made_at": "2026-01-01T00:00:00.000Z", "invite": InviteToken::from_bytes([n; 16]).digest(),
        })
    };
    json!({ "invites": [], "requests": [request(2), request(3)] })
}

#[tokio::test]
async fn who_came_with_an_invite_waits_until_the_operator_has_decided() {
    let mut alice = Node::started("alice").await;
    alice.kill();
    let file = alice.home().join("mcp/invites.json");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, two_requests().to_string()).unwrap();
    alice.start().await;
    let waiting = |status: &Value| -> Vec<String> {
        let requests = status["requests"].as_array().unwrap().iter();
        requests
            .map(|r| r["did"].as_str().unwrap().to_owned())
            .collect()
    };
    let (bob, carol) = (did(2).to_string(), did(3).to_string());
    let status = alice.ok(&["status"]).await;
    assert_eq!(waiting(&status), [bob.clone(), carol.clone()]);
    let first = &status["requests"][0];
    assert_eq!(first["url"], "https://n2.example");
    assert_eq!(first["invite_made_at"], "2026-01-01T00:00:00.000Z");
    assert!(first.get("invite").is_none(), "no secret, nor its digest");
    let steps = status["next_steps"].to_string();
    assert!(steps.contains(&format!("hn mcp allow {bob}")), "{steps}");

    let allowed = alice.ok(&["mcp", "allow", &bob, "relay"]).await;
    assert_eq!(allowed["request"], true);
    alice.restart().await;
    assert_eq!(waiting(&alice.status().await), std::slice::from_ref(&carol));
    let dismissed = alice.ok(&["mcp", "allow", &carol, "none"]).await;
    assert_eq!(
        (&dismissed["request"], &dismissed["removed"]),
        (&json!(true), &json!(false))
    );
    alice.restart().await;
    let status = alice.status().await;
    assert!(waiting(&status).is_empty());
    assert_eq!(status["friends"][0]["did"], bob);
    assert_eq!(status["friends"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_crash_between_roster_and_request_asks_the_operator_nothing_twice() {
    let mut alice = Node::started("alice").await;
    alice.kill();
    let file = alice.home().join("mcp/invites.json");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, two_requests().to_string()).unwrap();
    alice.start().await;
    alice.arm(Fault::Crash("invites.before_rename")).await;
    let bob = did(2).to_string();
    let cut = alice.cli(&["mcp", "allow", &bob, "read"]).await;
    assert_eq!(cut.status, Some(1), "{}", cut.stdout);
    alice.ended(SOON).await;
    alice.start().await;
    let status = alice.status().await;
    assert_eq!(status["friends"][0]["did"], bob, "the roster was durable");
    assert_eq!(
        status["requests"].as_array().unwrap().len(),
        1,
        "only carol waits"
    );
    let left = std::fs::read_dir(file.parent().unwrap()).unwrap();
    assert_eq!(left.count(), 1, "nothing of the broken write is left");

    // A full disk costs the request, and nothing that was there.
    alice.arm(Fault::DiskFull("invites.before_rename")).await;
    let full = alice.cli(&["mcp", "invite"]).await;
    assert_eq!(full.problem()["code"], "storage_full", "{}", full.stderr);
    let friends = alice.try_admin("/admin/friends").await.unwrap();
    assert_eq!(friends["invites_open"], 0);
    alice.ok(&["mcp", "invite"]).await;
}

#[tokio::test]
async fn an_invite_taken_in_a_crash_is_taken_again() {
    let door = Door::open("127.0.0.1:0", 202, json!({ "status": "pending" })).await;
    let mut bob = Node::started("bob").await;
    let line = invite_of(1, &door.base).to_string();
    bob.arm(Fault::Crash("introductions.before_rename")).await;
    let cut = bob.cli(&["mcp", "federate", "add", &line]).await;
    assert_eq!(cut.status, Some(1));
    bob.ended(SOON).await;
    bob.start().await;
    let status = bob.status().await;
    assert_eq!(
        status["peers"].as_array().unwrap().len(),
        1,
        "the roster was first"
    );
    assert_eq!(status["introductions"], json!([]));
    // An introducer that panics is back before the command gives up.
    bob.arm(Fault::Panic("introducer")).await;
    bob.ok(&["mcp", "federate", "add", &line]).await;
    introduced(&bob, "pending").await;
}

#[tokio::test]
async fn a_damaged_file_is_set_aside_and_said_and_the_node_serves() {
    let mut alice = Node::started("alice").await;
    alice.ok(&["mcp", "invite"]).await;
    alice.kill();
    let folder = alice.home().join("mcp");
    std::fs::write(folder.join("invites.json"), "{\"invites\":[").unwrap();
    std::fs::write(folder.join("introductions.json"), "[1]").unwrap();
    alice.start().await;
    let steps = alice.status().await["next_steps"].to_string();
    for name in ["invites.json.damaged-", "introductions.json.damaged-"] {
        assert!(steps.contains(name), "{steps}");
        let names = std::fs::read_dir(&folder).unwrap();
        let mut names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(names.any(|found| found.starts_with(name)), "{name}");
    }
    alice.ok(&["mcp", "invite"]).await;
    alice.restart().await;
    let friends = alice.try_admin("/admin/friends").await.unwrap();
    assert_eq!(friends["invites_open"], 1);
}
