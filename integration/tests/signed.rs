//! Signed requests (`spec/http.md` S1–S11, G1–G4): who asks is known, and nobody is believed to be another.

use std::time::Duration;

use futures_util::StreamExt;
use hn_integration::caller::{Caller, code, read};
use hn_integration::cluster::Node;
use hn_protocol::digest::Digest;
use hn_protocol::request::{BodyProof, ContentDigest, SignatureFields};
use reqwest::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A node whose second of start is over: what is signed now is after it.
pub async fn awake(name: &str) -> Node {
    let mut node = Node::new(name);
    node.start().await;
    past_start(&node).await;
    node
}

/// Waits until a request of now is taken: `created` counts in seconds.
pub async fn past_start(node: &Node) {
    let caller = Caller::stranger(node);
    hn_integration::converge::eventually(
        hn_integration::converge::SOON,
        "what is signed is signed after the start",
        async || match caller.get("/federate/peers").send().await.status().as_u16() {
            200 => Ok(()),
            status => Err(status.to_string()),
        },
    )
    .await;
}

#[tokio::test]
async fn a_stranger_may_read_with_a_signature_and_without_one() {
    let alice = awake("alice").await;
    let eve = Caller::stranger(&alice);
    assert_eq!(alice.get("/federate/peers").await.status(), 200);
    for path in [
        "/federate/peers",
        "/federate/index?cursor=0&limit=4",
        "/federate/index?",
    ] {
        assert_eq!(eve.get(path).send().await.status(), 200, "{path}");
        assert_eq!(
            eve.ask(Method::HEAD, path).send().await.status(),
            200,
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_signature_that_breaks_a_rule_is_401_with_its_code() {
    let alice = awake("alice").await;
    let eve = Caller::stranger(&alice);
    let post = || eve.ask(Method::POST, "/publish").content("{}");

    let unsigned = alice
        .http()
        .post(format!("{}/publish", alice.base_url()))
        .body("{}")
        .send();
    let unsigned = unsigned.await.unwrap();
    assert!(unsigned.headers().contains_key("www-authenticate"));
    assert_eq!(code(unsigned).await, (401, "signature_required".into()));

    for (seconds, expected) in [
        (-301, "signature_time"),
        (301, "signature_time"),
        (86_400, "signature_time"),
    ] {
        let mut ask = post();
        ask.at.0 = ask.at.0.saturating_add_signed(seconds * 1000);
        assert_eq!(ask.refused().await, (401, expected.into()), "{seconds}");
    }
    let mut other = post();
    other.audience = eve.did();
    assert_eq!(other.refused().await, (401, "signature_audience".into()));

    let wrong_body = {
        let mut ask = post();
        ask.body = Some("[]".into());
        ask
    };
    // The gate comes first: no body of who may not send it is read.
    assert_eq!(wrong_body.refused().await, (403, "gate_denied".into()));

    let carol = Caller::stranger(&alice);
    let input = |from: &str, to: &str| {
        let (from, to) = (from.to_owned(), to.to_owned());
        move |fields: &mut SignatureFields| {
            fields.signature_input = fields.signature_input.replace(&from, &to)
        }
    };
    type Edit = Box<dyn Fn(&mut SignatureFields)>;
    let edits: Vec<(Edit, &str)> = vec![
        (Box::new(|f| f.signature.clear()), "signature_malformed"),
        (
            Box::new(|f| f.signature_input = "sig=1".into()),
            "signature_malformed",
        ),
        (
            Box::new(input(&eve.did().to_string(), &carol.did().to_string())),
            "signature_invalid",
        ),
        (
            Box::new(input(" \"hn-audience\"", "")),
            "signature_components",
        ),
        (
            Box::new(input(" \"content-digest\"", "")),
            "signature_components",
        ),
        (Box::new(input("\"@path\" ", "")), "signature_components"),
        (
            Box::new(input("ed25519", "hmac-sha256")),
            "signature_algorithm",
        ),
        (
            Box::new(input("keyid=\"did:hn", "keyid=\"did:key")),
            "signature_keyid",
        ),
        (
            Box::new(input("nonce=\"", "nonce=\"x")),
            "signature_invalid",
        ),
        (Box::new(input(";nonce", ";nance")), "signature_nonce"),
        (
            Box::new(|f| {
                f.signature_input = format!("{0}, b{0}", f.signature_input);
                f.signature = format!("{0}, b{0}", f.signature);
            }),
            "signature_several",
        ),
        (
            Box::new(|f| {
                let other = ContentDigest::field_of(b"[]");
                f.proof = Some(("content-digest", other));
            }),
            "signature_invalid",
        ),
        (Box::new(|f| f.proof = None), "signature_components"),
    ];
    for (edit, expected) in edits {
        let ask = post();
        let mut fields = ask.fields();
        edit(&mut fields);
        let answer = ask.with(&fields).send().await.unwrap();
        assert_eq!(code(answer).await, (401, expected.into()), "{fields:?}");
    }
    let twice = post();
    let fields = twice.fields();
    let answer = twice
        .with(&fields)
        .header("signature", &fields.signature)
        .send()
        .await
        .unwrap();
    assert_eq!(
        code(answer).await,
        (401, "signature_malformed".into()),
        "a header twice"
    );

    let mut elsewhere = post();
    elsewhere.signed_path = Some("/artifact".into());
    assert_eq!(elsewhere.refused().await, (401, "signature_invalid".into()));
    let mut query = post();
    query.path = "/publish?x=1".into();
    query.signed_path = Some("/publish".into());
    assert_eq!(query.refused().await, (401, "signature_invalid".into()));
    let mut uncovered = eve.ask(Method::POST, "/publish");
    uncovered.body = Some("{}".into());
    assert_eq!(
        uncovered.refused().await,
        (401, "signature_components".into())
    );
    // A broken signature is no stranger's reading either.
    let mut read = eve.get("/federate/peers");
    read.audience = eve.did();
    assert_eq!(read.refused().await, (401, "signature_audience".into()));
}

#[tokio::test]
async fn a_request_is_taken_once_also_after_a_restart() {
    let mut alice = awake("alice").await;
    let eve = Caller::stranger(&alice);
    let ask = eve.get("/federate/peers");
    assert_eq!(ask.send().await.status(), 200);
    assert_eq!(ask.refused().await, (401, "signature_replayed".into()));
    let unused = eve.get("/federate/peers");
    alice.kill();
    alice.start().await;
    for seen in [ask, unused] {
        let answer = seen.send().await;
        assert_eq!(answer.headers()["retry-after"], "1");
        assert_eq!(code(answer).await, (401, "signature_too_early".into()));
    }
    past_start(&alice).await;
}

#[tokio::test]
async fn ten_thousand_nonces_at_once_are_refused_and_cost_others_nothing() {
    let alice = awake("alice").await;
    let eve = Caller::stranger(&alice).keeping();
    let mut taken = 0;
    let mut full = 0;
    let asks = futures_util::stream::iter(0..10_000).map(|_| async {
        let answer = eve.ask(Method::HEAD, "/federate/peers").send().await;
        answer.status().as_u16()
    });
    let mut answers = asks.buffer_unordered(16);
    while let Some(status) = answers.next().await {
        match status {
            200 => taken += 1,
            503 => full += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!((taken, full), (512, 10_000 - 512));
    let refused = eve.get("/federate/peers").refused().await;
    assert_eq!(refused, (503, "too_many_signatures".into()));
    let carol = Caller::stranger(&alice);
    assert_eq!(carol.get("/federate/peers").send().await.status(), 200);
    let memory = alice.metric("process_resident_memory_bytes").await;
    assert!(memory.is_some_and(|bytes| bytes < 200e6), "{memory:?}");
}

#[tokio::test]
async fn the_admin_side_is_closed_in_every_disguise() {
    let alice = awake("alice").await;
    let eve = Caller::stranger(&alice);
    for path in [
        "/admin/status",
        "/admin/",
        "//admin/status",
        "/%61dmin/status",
        "/admin%2fstatus",
        "/federate/../admin/status",
        "/./admin/status",
        "/federate/%2e%2e/admin/status",
        "/relay/x/http/admin/status",
        "/metrics",
        "/metrics/",
        "/ADMIN/status",
        "/admin/status;x",
        "/admin\\status",
    ] {
        for headers in [
            "",
            "X-Original-URL: /admin/status\r\n",
            "X-Rewrite-URL: /admin/status\r\nX-Forwarded-Prefix: /admin\r\nX-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1\r\n",
        ] {
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: {}\r\n{headers}Connection: close\r\n\r\n",
                alice.address()
            );
            let answer = raw(&alice, request.as_bytes()).await;
            let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
            assert!(
                ["400", "403", "404"].contains(&status.as_str()),
                "{path}: {answer}"
            );
            assert!(!answer.contains("uptime_s"), "{path}: {answer}");
        }
    }
    let absolute = format!(
        "GET http://{0}/admin/status HTTP/1.1\r\nHost: {0}\r\nConnection: close\r\n\r\n",
        alice.address()
    );
    assert!(
        raw(&alice, absolute.as_bytes())
            .await
            .contains("socket_only")
    );
    let foreign = format!(
        "GET http://evil.example/federate HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        alice.address()
    );
    assert!(
        raw(&alice, foreign.as_bytes())
            .await
            .contains("misdirected")
    );
    assert_eq!(
        eve.get("/admin/status").refused().await,
        (403, "socket_only".into())
    );
}

async fn raw(node: &Node, request: &[u8]) -> String {
    let mut stream = tokio::net::TcpStream::connect(node.address())
        .await
        .unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(10), reading)
        .await
        .expect("an answer")
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for_whoever_sends_it() {
    let alice = awake("alice").await;
    let begun = std::time::Instant::now();
    let mut stream = tokio::net::TcpStream::connect(alice.address())
        .await
        .unwrap();
    let head = format!(
        "POST /revocation HTTP/1.1\r\nHost: {}\r\nContent-Length: 4000\r\n\r\n",
        alice.address()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let reading = stream.read(&mut answer);
    let length = tokio::time::timeout(Duration::from_secs(30), reading)
        .await
        .expect("an answer")
        .unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(
        answer.starts_with("HTTP/1.1 408") && answer.contains("body_too_slow"),
        "{answer}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn hn_http_signs_nothing_for_an_identity_that_has_ended() {
    let alice = awake("alice").await;
    let bob = Node::new("bob");
    bob.ok(&["id", "create", "bob", "--yes"]).await;
    bob.ok(&["id", "revoke", "bob", "--yes"]).await;
    let url = format!("{}/federate/peers", alice.base_url());
    let refused = bob.cli(&["http", "GET", &url]).await;
    assert_eq!(refused.status, Some(1), "{}", refused.stdout);
    assert_eq!(refused.problem()["code"], "revoked");
    let unsigned = bob.ok(&["http", "GET", &url, "--anonymous"]).await;
    assert_eq!(unsigned["status"], 200);
}

#[tokio::test]
async fn a_page_of_another_origin_changes_nothing() {
    let alice = awake("alice").await;
    let eve = Caller::stranger(&alice);
    for (origin, expected) in [
        ("https://evil.example", "foreign_origin"),
        ("null", "foreign_origin"),
        ("http://127.0.0.1:1", "foreign_origin"),
    ] {
        let mut ask = eve.ask(Method::POST, "/publish").content("x");
        ask.headers.push(("origin", origin.to_owned()));
        assert_eq!(ask.refused().await, (403, expected.into()), "{origin}");
    }
    let mut own = eve.ask(Method::POST, "/publish").content("x");
    own.headers.push(("origin", alice.base_url()));
    assert_eq!(own.refused().await, (403, "gate_denied".into()));
    let mut read = eve.get("/federate/peers");
    read.headers.push(("origin", "https://evil.example".into()));
    assert_eq!(
        read.send().await.status(),
        200,
        "reading is no matter of origins"
    );
}

#[tokio::test]
async fn a_base_path_is_signed_whether_a_proxy_takes_it_off_or_not() {
    let mut alice = Node::new("alice").with_flag("--public-url=https://alice.example/mcp");
    alice.start().await;
    let eve = Caller::stranger(&alice);
    let peers = |path: &str, signed: &str, host: &str| {
        let mut ask = eve.get(path);
        ask.signed_path = Some(signed.to_owned());
        ask.headers.push(("host", host.to_owned()));
        ask
    };
    let own = alice.address().to_string();
    hn_integration::converge::eventually(
        hn_integration::converge::SOON,
        "a request below the base path is taken",
        async || {
            let ask = peers(
                "/mcp/federate/peers",
                "/mcp/federate/peers",
                "alice.example",
            );
            match ask.answer().await {
                (200, _) => Ok(()),
                (status, problem) => Err(format!("{status} {problem}")),
            }
        },
    )
    .await;
    let stripped = peers("/federate/peers", "/mcp/federate/peers", "alice.example");
    assert_eq!(stripped.send().await.status(), 200, "a proxy took it off");
    let direct = peers("/federate/peers", "/federate/peers", &own);
    assert_eq!(
        direct.send().await.status(),
        200,
        "asked at the listen address"
    );
    let lied = peers("/mcp/federate/peers", "/federate/peers", "alice.example");
    assert_eq!(lied.refused().await, (401, "signature_invalid".into()));
    let (status, _) = read(eve.get("/mcpfederate/peers").send().await).await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn hn_http_signs_for_people_and_says_how_it_went() {
    let alice = awake("alice").await;
    let bob = Node::new("bob");
    bob.ok(&["id", "create", "bob", "--yes"]).await;
    let url = |path: &str| format!("{}{path}", alice.base_url());
    let peers = bob.ok(&["http", "get", &url("/federate/peers")]).await;
    assert_eq!(peers["status"], 200);
    assert_eq!(peers["body"]["peers"][0]["did"], alice.did().to_string());
    let refused = bob
        .cli(&["http", "POST", &url("/publish"), "--data", "x"])
        .await;
    assert_eq!(refused.status, Some(1));
    assert_eq!(refused.json["body"]["code"], "gate_denied");
    assert_eq!(refused.json["body"]["gate"], "publish.hosted");
    let unsigned = bob
        .cli(&[
            "http",
            "POST",
            &url("/publish"),
            "--data",
            "x",
            "--anonymous",
        ])
        .await;
    assert_eq!(unsigned.json["body"]["code"], "signature_required");
    let wrong = bob.ok(&["id", "get"]).await["identity"]["did"]
        .as_str()
        .unwrap()
        .to_owned();
    let wrong = bob
        .cli(&["http", "GET", &url("/federate/peers"), "--audience", &wrong])
        .await;
    assert_eq!(wrong.json["body"]["code"], "signature_audience");
    let nobody = bob
        .cli(&["http", "GET", "http://127.0.0.1:1/federate"])
        .await;
    assert_eq!(
        (nobody.status, nobody.problem()["code"].as_str()),
        (Some(1), Some("no_connection"))
    );
    let ftp = bob.cli(&["http", "GET", "ftp://127.0.0.1/"]).await;
    assert_eq!(ftp.status, Some(2));
}

#[tokio::test]
async fn what_is_signed_for_a_body_of_another_size_or_digest_is_not_read() {
    let alice = awake("alice").await;
    let eve = Caller::stranger(&alice);
    let mut ask = eve.put(Digest::of(b"x"), b"x");
    ask.proof = BodyProof::None;
    assert_eq!(ask.refused().await, (401, "signature_components".into()));
    assert_eq!(
        eve.put(Digest::of(b"x"), b"x").refused().await,
        (403, "gate_denied".into())
    );
}
