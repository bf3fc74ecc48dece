//! The HTTP contract of `spec/http.md`, over real sockets.

use std::time::Duration;

use futures_util::future::join_all;
use hn_integration::cluster::Node;
use hn_integration::log::split;
use hn_protocol::did::SecretSeed;
use hn_protocol::digest::Digest;
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;

/// Within which a head has to be there (design 13: 10 s), with room for the machine.
const HEAD: Duration = Duration::from_secs(20);

/// The same for the second head of a connection: 25 s (H9), the sweep, and room for the machine.
const SECOND_HEAD: Duration = Duration::from_secs(50);

const FIVE: [(&str, &[u8]); 5] = [
    ("0", b"zero"),
    ("1", b"one"),
    ("2", b"two"),
    ("3", b"three"),
    ("4", b"four"),
];

/// What stands in an error: problem+json with its five members and this status.
async fn problem(answer: Response, status: u16) -> Value {
    assert_eq!(answer.status().as_u16(), status, "{}", answer.url());
    assert_eq!(
        header(&answer, "content-type"),
        "application/problem+json",
        "{}",
        answer.url()
    );
    let problem: Value = answer.json().await.expect("a problem is JSON");
    for member in ["type", "title", "detail", "code"] {
        assert!(
            problem[member].is_string(),
            "a problem has {member}: {problem}"
        );
    }
    assert_eq!(problem["status"], status);
    problem
}

fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    answer
        .headers()
        .get(name)
        .map_or("", |value| value.to_str().unwrap())
}

/// The types of a page's lines, and its first slice's cursor.
async fn page(node: &Node, query: &str) -> (Vec<String>, Option<String>, Option<String>) {
    let answer = node.get(&format!("/federate/index?{query}")).await;
    assert_eq!(answer.status(), 200, "{query}");
    assert_eq!(header(&answer, "content-type"), "application/x-ndjson");
    let link = answer
        .headers()
        .get("link")
        .map(|link| link.to_str().unwrap().to_owned());
    let lines: Vec<Value> = split(&answer.bytes().await.unwrap())
        .iter()
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let cursor = lines
        .iter()
        .find_map(|line| line["cursor"].as_str().map(str::to_owned));
    (
        lines
            .iter()
            .map(|line| line["type"].as_str().unwrap().to_owned())
            .collect(),
        cursor,
        link,
    )
}

#[tokio::test]
async fn a_page_is_found_by_any_cursor_and_never_by_a_bad_one() {
    let bob = Node::started("bob").await;
    let (types, _, _) = page(&bob, "").await;
    assert_eq!(types, ["presence@2"], "an empty log is its presence alone");
    bob.publish(&FIVE).await;
    bob.publish(&[("5", b"five")]).await;

    let (types, cursor, link) = page(&bob, "cursor=0").await;
    assert_eq!(
        types,
        [
            "presence@2",
            "index@2",
            "presence@2",
            "index@2",
            "presence@2"
        ],
        "a presence before the slice that names it"
    );
    assert_eq!(
        (cursor.as_deref(), link),
        (Some("0"), None),
        "a page that reaches the head has no next"
    );
    let (_, cursor, _) = page(&bob, "cursor=3").await;
    assert_eq!(
        cursor.as_deref(),
        Some("0"),
        "a cursor inside a slice brings that slice"
    );
    let (types, cursor, _) = page(&bob, "cursor=5").await;
    assert_eq!(
        (types.len(), cursor.as_deref()),
        (3, Some("5")),
        "every page is self-contained: {types:?}"
    );
    for beyond in ["6", "7", "9007199254740991"] {
        let (types, _, link) = page(&bob, &format!("cursor={beyond}")).await;
        assert_eq!(
            (types, link),
            (vec!["presence@2".to_owned()], None),
            "at or beyond the end: the presence alone"
        );
    }
    for bad in [
        "cursor=-1",
        "cursor=x",
        "cursor=",
        "cursor=01",
        "cursor=1.5",
        "cursor=99999999999999999999",
        "limit=0",
        "limit=65",
        "limit=x",
        "limit=-1",
    ] {
        problem(bob.get(&format!("/federate/index?{bad}")).await, 400).await;
    }
    problem(bob.get("/federate/index?publisher=did:hn:alice").await, 400).await;
    let stranger = SecretSeed::from_bytes([7; 32]).did();
    problem(
        bob.get(&format!("/federate/index?publisher={stranger}"))
            .await,
        404,
    )
    .await;
}

#[tokio::test]
async fn the_next_page_is_a_relative_reference_of_a_query_alone() {
    let bob = Node::started("bob").await;
    for (path, content) in FIVE {
        bob.publish(&[(path, content)]).await;
    }
    let mut query = format!("publisher={}&cursor=0&limit=2", bob.did());
    let mut cursors = Vec::new();
    loop {
        let (types, cursor, link) = page(&bob, &query).await;
        cursors.extend(cursor);
        assert_eq!(types[0], "presence@2", "every page begins with a presence");
        let Some(link) = link else {
            assert_eq!(
                types.last().unwrap(),
                "presence@2",
                "the page at the head ends with the current presence"
            );
            break;
        };
        let (reference, relation) = link.split_once('>').expect("<reference>; rel");
        assert!(relation.contains("rel=\"next\""), "{link}");
        query = reference
            .strip_prefix("<?")
            .expect("a query-only reference")
            .to_owned();
        assert!(
            query.contains("limit=2"),
            "the next page is of the same size: {link}"
        );
    }
    assert_eq!(cursors, ["0", "2", "4"]);
}

#[tokio::test]
async fn an_unchanged_page_is_answered_304_and_a_grown_one_is_not() {
    let bob = Node::started("bob").await;
    bob.publish(&FIVE).await;
    let first = bob.get("/federate/index?cursor=0").await;
    let etag = header(&first, "etag").to_owned();
    let body = first.bytes().await.unwrap();
    assert_eq!(
        etag,
        format!("\"{}\"", Digest::of(&body)),
        "the ETag is BLAKE3 of the body"
    );
    let again = |tag: String| {
        bob.http()
            .get(format!("{}/federate/index?cursor=0", bob.base_url()))
            .header("if-none-match", tag)
            .send()
    };
    let unchanged = again(etag.clone()).await.unwrap();
    assert_eq!(
        (unchanged.status(), header(&unchanged, "etag")),
        (StatusCode::NOT_MODIFIED, etag.as_str())
    );
    assert!(unchanged.bytes().await.unwrap().is_empty());
    assert_eq!(
        again(format!("\"x\", {etag}")).await.unwrap().status(),
        304,
        "one of several"
    );
    assert_eq!(again("*".into()).await.unwrap().status(), 304);
    assert_eq!(again("\"x\"".into()).await.unwrap().status(), 200);
    bob.publish(&[("5", b"five")]).await;
    let grown = again(etag.clone()).await.unwrap();
    assert_eq!(grown.status(), 200);
    assert_ne!(header(&grown, "etag"), etag);
}

#[tokio::test]
async fn an_artifact_is_served_in_ranges_and_never_as_part_of_our_origin() {
    let bob = Node::started("bob").await;
    let html = b"<script>alert(1)</script> and the rest of it";
    let published = bob.publish(&[("page.html", html), ("empty", b"")]).await;
    let published = published["published"].as_array().unwrap();
    let of = |path: &str| {
        published.iter().find(|item| item["path"] == path).unwrap()["digest"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let digest = of("page.html");
    let get = |range: &'static str| {
        let request = bob
            .http()
            .get(format!("{}/artifact/{digest}", bob.base_url()));
        if range.is_empty() {
            request
        } else {
            request.header("range", range)
        }
        .send()
    };
    let whole = get("").await.unwrap();
    assert_eq!(whole.status(), 200);
    assert_eq!(header(&whole, "x-content-type-options"), "nosniff");
    assert!(header(&whole, "content-security-policy").contains("sandbox"));
    assert!(header(&whole, "content-disposition").starts_with("attachment"));
    assert_eq!(header(&whole, "accept-ranges"), "bytes");
    assert!(
        !header(&whole, "content-type").contains("html"),
        "{}",
        header(&whole, "content-type")
    );
    assert_eq!(&whole.bytes().await.unwrap()[..], html);
    for (range, from, to) in [
        ("bytes=0-3", 0, 4),
        ("bytes=8-", 8, html.len()),
        ("bytes=-4", html.len() - 4, html.len()),
        ("bytes=40-4000", 40, html.len()),
    ] {
        let part = get(range).await.unwrap();
        assert_eq!(part.status(), 206, "{range}");
        assert_eq!(
            header(&part, "content-range"),
            format!("bytes {from}-{}/{}", to - 1, html.len())
        );
        assert_eq!(header(&part, "x-content-type-options"), "nosniff");
        assert_eq!(&part.bytes().await.unwrap()[..], &html[from..to], "{range}");
    }
    let beyond = get("bytes=4000-").await.unwrap();
    assert_eq!(beyond.status(), 416);
    assert_eq!(
        header(&beyond, "content-range"),
        format!("bytes */{}", html.len())
    );
    let empty = bob.get(&format!("/artifact/{}", of("empty"))).await;
    assert_eq!(
        (empty.status(), empty.bytes().await.unwrap().len()),
        (StatusCode::OK, 0)
    );
    problem(
        bob.get(&format!("/artifact/{}", Digest::of(b"nobody has this")))
            .await,
        404,
    )
    .await;
    for bad in ["x", "..%2f..%2fversion", &digest.to_uppercase()] {
        let status = bob.get(&format!("/artifact/{bad}")).await.status().as_u16();
        assert!(status == 400 || status == 404, "{bad}: {status}");
    }
}

#[tokio::test]
async fn a_request_for_another_host_is_misdirected() {
    let bob = Node::started("bob").await;
    let ask = |host: String| {
        bob.http()
            .get(format!("{}/healthz", bob.base_url()))
            .header("host", host)
            .send()
    };
    problem(ask("evil.example".into()).await.unwrap(), 421).await;
    problem(
        ask(format!("evil.example:{}", bob.address().port()))
            .await
            .unwrap(),
        421,
    )
    .await;
    for right in [
        bob.address().to_string(),
        format!("localhost:{}", bob.address().port()),
        "localhost".into(),
    ] {
        assert_eq!(ask(right.clone()).await.unwrap().status(), 200, "{right}");
    }
}

#[tokio::test]
async fn a_public_url_is_a_host_as_well() {
    let mut bob = Node::new("bob").with("HN_PUBLIC_URL", "https://bob.example.net");
    bob.start().await;
    let presence = bob.ready()["presence_url"].as_str().unwrap();
    assert!(
        presence.starts_with("https://bob.example.net/"),
        "{presence}"
    );
    let url = format!("http://{}/healthz", bob.address());
    let ask = |host: &'static str| bob.http().get(&url).header("host", host).send();
    assert_eq!(ask("bob.example.net").await.unwrap().status(), 200);
    assert_eq!(ask("eve.example.net").await.unwrap().status(), 421);
}

#[tokio::test]
async fn health_presence_and_the_did_document_are_there_from_the_first_moment() {
    let bob = Node::started("bob").await;
    let json = async |path: &str| -> Value {
        let answer = bob.get(path).await;
        assert_eq!(answer.status(), 200, "{path}");
        answer.json().await.unwrap()
    };
    let did = bob.did();
    assert_eq!(json("/healthz").await["status"], "ok");
    let ready = json("/readyz").await;
    assert!(
        ready["version"].is_string() && ready["schema"].is_number(),
        "{ready}"
    );
    for path in [
        "/.well-known/hn/presence",
        "/presence",
        &format!("/presence/{did}"),
    ] {
        let presence = json(path).await;
        assert_eq!(
            (&presence["type"], &presence["did"]),
            (&"presence@2".into(), &did.to_string().into()),
            "{path}"
        );
        assert_eq!(presence["endpoints"]["mcp"], bob.base_url(), "{path}");
        let digest = presence["id"]
            .as_str()
            .unwrap()
            .strip_prefix("presence:")
            .unwrap()
            .to_owned();
        assert_eq!(
            json(&format!("/presence/digest/{digest}")).await,
            presence,
            "{path}"
        );
    }
    for path in ["/.well-known/did.json", &format!("/1.0/identifiers/{did}")] {
        let answer = json(path).await;
        let document = if answer["didDocument"].is_object() {
            &answer["didDocument"]
        } else {
            &answer
        };
        assert_eq!(document["id"], did.to_string(), "{path}");
        assert_eq!(
            document["service"][0]["serviceEndpoint"],
            bob.base_url(),
            "{path}"
        );
    }
    assert!(json("/federate").await["publishers"].is_number());
    let peers = json("/federate/peers").await;
    assert_eq!(peers["peers"][0]["did"], did.to_string(), "{peers}");
    let api = json("/openapi.json").await;
    for route in ["/federate/index", "/artifact/{digest}", "/healthz"] {
        assert!(api["paths"][route].is_object(), "openapi.json has {route}");
    }
}

#[tokio::test]
async fn federate_peers_names_every_log_that_is_held() {
    let (bob, alice) = (Node::started("bob").await, Node::started("alice").await);
    bob.publish(&FIVE).await;
    alice.follow(&bob).await;
    alice.refresh().await;
    let peers: Value = alice.get("/federate/peers").await.json().await.unwrap();
    let of = |did: String| {
        peers["peers"]
            .as_array()
            .unwrap()
            .iter()
            .find(|peer| peer["did"] == did)
            .cloned()
            .unwrap_or_default()
    };
    let held = of(bob.did().to_string());
    assert_eq!(held["log_size"], 5, "{peers}");
    assert_eq!(held["log_root"], bob.log(bob.did()).await.root.to_string());
    assert_eq!(
        (&held["epoch"], &held["forked"]),
        (&0.into(), &false.into()),
        "{held}"
    );
    let head = held["head"].as_str().unwrap();
    let last = bob.log(bob.did()).await.slices.last().cloned().unwrap();
    assert!(
        String::from_utf8_lossy(&last).contains(&format!("\"id\":\"index:{head}\"")),
        "head is the last slice"
    );
    assert_eq!(
        of(alice.did().to_string())["log_size"],
        0,
        "its own log among them"
    );
}

#[tokio::test]
async fn the_socket_serves_all_and_tcp_only_what_is_open() {
    let bob = Node::started("bob").await;
    for path in ["/healthz", "/federate/index", "/metrics", "/admin/status"] {
        let answer = bob.admin(Method::GET, path).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path} on the socket");
    }
    for path in [
        "/metrics",
        "/admin/status",
        "/admin/federation/peers",
        "/admin/log/entries",
    ] {
        let refused = problem(bob.get(path).await, 403).await;
        assert_eq!(refused["code"], "socket_only", "{path}");
    }
    let post = |path: &str| {
        bob.http()
            .post(format!("{}{path}", bob.base_url()))
            .body("x")
            .send()
    };
    problem(post("/admin/log/publish?public=true").await.unwrap(), 403).await;
    let status = post("/federate/index").await.unwrap().status().as_u16();
    assert!(status == 405 || status == 404, "{status}");
    problem(bob.get("/no/such/route").await, 404).await;
    let mode = std::os::unix::fs::MetadataExt::mode(
        &std::fs::metadata(bob.home().join("run/hn.sock")).unwrap(),
    );
    assert_eq!(mode & 0o777, 0o600, "the socket is its owner's");
}

#[tokio::test]
async fn failpoints_are_there_only_where_the_environment_asked_for_them() {
    let mut bob = Node::new("bob");
    bob.unset("HN_FAILPOINTS");
    bob.start().await;
    let answer = bob
        .admin(Method::POST, "/admin/failpoints")
        .json(&serde_json::json!({"actor.store": "panic"}));
    problem(answer.send().await.unwrap(), 404).await;
}

#[tokio::test]
async fn a_client_that_asks_too_often_is_told_to_wait() {
    let mut bob = Node::new("bob").with("HN_GATEWAY__RATE_LIMIT", "2");
    bob.start().await;
    // At once, however slow the machine is: one after the other might be seldom enough.
    let answers = join_all((0..40).map(|_| bob.get("/healthz"))).await;
    let refused = answers.into_iter().find(|answer| answer.status() != 200);
    let refused = refused.expect("40 requests at once are too many at 2 a second");
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(problem(refused, 429).await["code"], "rate_limited");
    bob.status().await;
}

#[tokio::test]
async fn a_client_that_never_finishes_its_head_is_cut_off() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let bob = Node::started("bob").await;
    let mut stream = tokio::net::TcpStream::connect(bob.address()).await.unwrap();
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: ")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(HEAD, stream.read_to_end(&mut answer)).await;
    ended.expect("the connection is ended in time").unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
        "{answer}"
    );
    assert_eq!(bob.get("/healthz").await.status(), 200);
}

/// The server's own bound is for the first head of a connection; whoever dribbles the second holds no place either.
#[tokio::test]
async fn a_client_that_dribbles_its_second_head_is_cut_off() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let bob = Node::started("bob").await;
    let stream = tokio::net::TcpStream::connect(bob.address()).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let first = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", bob.address());
    writer.write_all(first.as_bytes()).await.unwrap();
    let mut answer = [0; 4096];
    assert!(reader.read(&mut answer).await.unwrap() > 0);
    let dribble = async {
        writer.write_all(b"GET /healthz HTTP/1.1\r\nX: ").await?;
        let mut beat = tokio::time::interval(Duration::from_secs(1));
        loop {
            beat.tick().await;
            writer.write_all(b"x").await?;
        }
    };
    let cut = async {
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).await
    };
    let ended = async {
        tokio::select! {
            _ = cut => {}
            broken = dribble => { let _: std::io::Result<()> = broken; }
        }
    };
    tokio::time::timeout(SECOND_HEAD, ended)
        .await
        .expect("the connection is ended in time");
    assert_eq!(bob.get("/healthz").await.status(), 200);
}

#[tokio::test]
async fn metrics_have_an_address_of_their_own_where_one_is_set() {
    let mut bob = Node::new("bob").with("HN_METRICS__LISTEN", "127.0.0.1:0");
    bob.start().await;
    let listen = bob.status().await["node"]["metrics_listen"]
        .as_str()
        .unwrap()
        .to_owned();
    let answer = bob
        .http()
        .get(format!("http://{listen}/metrics"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.text().await.unwrap().contains("hn_"));
    let other = bob
        .http()
        .get(format!("http://{listen}/admin/status"))
        .send()
        .await
        .unwrap();
    assert_ne!(other.status(), 200, "and nothing else is there");
}
