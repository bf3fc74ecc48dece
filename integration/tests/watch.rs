//! News: there at once, whatever the interval; and streams that are abused, by readers and by writers.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use hn_integration::cluster::Node;
use hn_integration::converge::{SOON, eventually, same};
use hn_integration::fault::Fault;
use hn_integration::hostile::{Eve, Streaming};
use reqwest::{Method, Response};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// News have to be there within this: the machine runs many tests, the interval is 15 minutes.
const AT_ONCE: Duration = Duration::from_secs(5);
/// Streams that a node has for others, of 1,024 connections (`spec/http.md`, H21), and for one client.
const STREAMS: usize = 512;
const CLIENT_STREAMS: usize = 128;
/// For a node to see that a reader is gone, which it does when it gives him his next heartbeat.
const UNREAD: Duration = Duration::from_secs(60);
/// The most bytes that a follower takes of a stream without end (F10), and what sockets keep on the way.
const FLOOD: usize = (4 << 20) + (12 << 20);

/// A node that hears of news by streams alone.
async fn listener(name: &str) -> Node {
    let mut node = Node::new(name).with("HN_FEDERATION__WATCH", "true");
    node.start().await;
    node
}

async fn listens_to(node: &Node, peers: f64) {
    let sentence = format!("{} listens to {peers} peers", node.name());
    eventually(SOON, &sentence, async || {
        let open = node.metric("hn_watched_peers").await;
        same("hn_watched_peers", open, Some(peers))
    })
    .await;
}

/// A reader of a node's events.
struct Events {
    answer: Response,
    text: String,
}

impl Events {
    async fn open(node: &Node, query: &str, last: Option<&str>) -> Self {
        let url = format!("{}/federate/watch{query}", node.base_url());
        // As long as a test may last: a stream has no end.
        let mut request = node.http().get(url).timeout(Duration::from_secs(600));
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Self {
            answer,
            text: String::new(),
        }
    }

    /// The next event: its id, and its head.
    async fn next(&mut self) -> (String, Value) {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let block = block.to_owned();
                self.text = rest.to_owned();
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
                if field("event: ") == Some("head") {
                    let head = serde_json::from_str(field("data: ").unwrap()).unwrap();
                    return (field("id: ").unwrap().to_owned(), head);
                }
            }
            let chunk = tokio::time::timeout(SOON, self.answer.chunk()).await;
            let chunk = chunk
                .expect("an event comes")
                .unwrap()
                .expect("the stream is open");
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// Whether the stream ends, and not by an error.
    async fn ends(mut self) {
        let ended = async { while self.answer.chunk().await.unwrap().is_some() {} };
        tokio::time::timeout(SOON, ended)
            .await
            .expect("the stream ends");
    }
}

/// ```text
///   bob ◄── alice ◄── carol        nobody pulls by the clock
/// ```
#[tokio::test]
async fn news_pass_through_a_holder_at_once_though_nobody_pulls_by_the_clock() {
    let (bob, alice, carol) = (
        Node::started("bob").await,
        listener("alice").await,
        listener("carol").await,
    );
    alice.follow(&bob).await;
    carol.follow(&alice).await;
    listens_to(&alice, 1.0).await;
    listens_to(&carol, 1.0).await;
    for round in 0..5 {
        bob.publish(&[(&*format!("{round}.txt"), b"news")]).await;
        let wanted = bob.log(bob.did()).await;
        alice.converges_on(bob.did(), &wanted, AT_ONCE).await;
        carol.converges_on(bob.did(), &wanted, AT_ONCE).await;
    }
}

/// He is back before anybody could have noticed, each time; only the broken stream tells.
#[tokio::test]
async fn a_publisher_that_bounces_is_caught_up_within_5_s_of_his_return() {
    let (mut bob, alice) = (Node::started("bob").await, listener("alice").await);
    alice.follow(&bob).await;
    let bobs = bob.did();
    listens_to(&alice, 1.0).await;
    for round in 0..3 {
        bob.kill();
        bob.publish(&[(&*format!("{round}.txt"), b"offline")]).await;
        bob.start().await;
        let wanted = bob.log(bobs).await;
        alice.converges_on(bobs, &wanted, AT_ONCE).await;
        bob.publish(&[(&*format!("{round}.too"), b"online again")])
            .await;
        let wanted = bob.log(bobs).await;
        alice.converges_on(bobs, &wanted, AT_ONCE).await;
    }
}

#[tokio::test]
async fn a_peer_that_is_removed_is_listened_to_no_more() {
    let (bob, alice) = (Node::started("bob").await, listener("alice").await);
    alice.follow(&bob).await;
    listens_to(&alice, 1.0).await;
    let did = bob.did().to_string();
    alice.ok(&["mcp", "federate", "remove", &did]).await;
    listens_to(&alice, 0.0).await;
    eventually(UNREAD, "bob has no reader", async || {
        let open = bob.metric("hn_watch_streams").await;
        same("hn_watch_streams", open, Some(0.0))
    })
    .await;
}

#[tokio::test]
async fn a_watch_that_panics_is_back_and_listens_to_everyone_again() {
    let (bob, alice) = (Node::started("bob").await, listener("alice").await);
    alice.follow(&bob).await;
    listens_to(&alice, 1.0).await;
    alice.arm(Fault::Panic("watch")).await;
    alice.refresh().await;
    let restarts = "hn_actor_restarts_total{actor=\"watch\"}";
    eventually(SOON, "the watch was restarted", async || {
        same(restarts, alice.metric(restarts).await, Some(1.0))
    })
    .await;
    listens_to(&alice, 1.0).await;
    bob.publish(&[("a.txt", b"a")]).await;
    let wanted = bob.log(bob.did()).await;
    alice.converges_on(bob.did(), &wanted, AT_ONCE).await;
}

#[tokio::test]
async fn a_stream_begins_where_its_reader_stands_and_tells_the_newest_alone() {
    let bob = Node::started("bob").await;
    let mut events = Events::open(&bob, "", None).await;
    let (_, head) = events.next().await;
    assert_eq!(
        (&head["did"], &head["log_size"]),
        (&bob.ready()["did"], &0.into())
    );
    bob.publish(&[("0.txt", b"0")]).await;
    let (id, head) = events.next().await;
    assert_eq!(head["log_size"], 1);
    let heads: Value = bob.get("/federate/peers").await.json().await.unwrap();
    for (member, value) in head.as_object().unwrap() {
        assert_eq!(&heads["peers"][0][member], value, "{member}");
    }
    drop(events);
    bob.publish(&[("1.txt", b"1")]).await;
    bob.publish(&[("2.txt", b"2")]).await;
    // Two changes were missed: one event tells of both.
    let mut events = Events::open(&bob, "", Some(&id)).await;
    assert_eq!(events.next().await.1["log_size"], 3);
    bob.publish(&[("3.txt", b"3")]).await;
    assert_eq!(events.next().await.1["log_size"], 4);
    // An id of another run says nothing.
    let mut events = Events::open(&bob, "", Some("0000000000000000-1")).await;
    assert_eq!(events.next().await.1["log_size"], 4);
}

#[tokio::test]
async fn a_stream_of_named_publishers_tells_of_no_other() {
    let (bob, alice) = (Node::started("bob").await, listener("alice").await);
    let query = format!("?publisher={}", bob.did());
    let mut events = Events::open(&alice, &query, None).await;
    alice.publish(&[("hers.txt", b"hers")]).await;
    alice.follow(&bob).await;
    let (_, head) = events.next().await;
    assert_eq!(head["did"], bob.did().to_string(), "{head}");
    assert_eq!(
        alice.get("/federate/watch?publisher=me").await.status(),
        400
    );
    let many: Vec<String> = (0..65)
        .map(|_| {
            format!(
                "publisher={}",
                hn_protocol::did::SecretSeed::from_bytes(rand::random()).did()
            )
        })
        .collect();
    let answer = alice
        .get(&format!("/federate/watch?{}", many.join("&")))
        .await;
    assert_eq!(answer.status(), 400);
    assert_eq!(answer.json::<Value>().await.unwrap()["code"], "bad_limit");
    let url = format!("{}/federate/watch", alice.base_url());
    let answer = alice
        .http()
        .request(Method::HEAD, url)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200, "HEAD opens no stream");
}

#[tokio::test]
async fn a_node_with_open_streams_ends_at_once_and_ends_them() {
    let mut bob = Node::started("bob").await;
    let mut readers = Vec::new();
    for _ in 0..50 {
        let mut events = Events::open(&bob, "", None).await;
        events.next().await;
        readers.push(events);
    }
    let begun = Instant::now();
    let status = bob.terminate().await;
    assert!(status.success());
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    for reader in readers {
        reader.ends().await;
    }
}

/// A stream that is asked for from `from`; what the answer begins with.
async fn open_from(from: Ipv4Addr, to: SocketAddr) -> (TcpStream, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    let request = format!("GET /federate/watch HTTP/1.1\r\nHost: {to}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    (stream, String::from_utf8_lossy(&head).into_owned())
}

#[tokio::test]
async fn of_a_thousand_streams_those_beyond_the_bounds_are_refused_and_others_are_served() {
    let bob = Node::started("bob").await;
    let mut open = Vec::new();
    let mut refused = 0;
    // Eight clients with 125 each...
    for client in 1..=8 {
        for _ in 0..125 {
            let (stream, status) = open_from(Ipv4Addr::new(127, 9, 9, client), bob.address()).await;
            match &*status {
                "HTTP/1.1 200" => open.push(stream),
                "HTTP/1.1 503" => refused += 1,
                other => panic!("{other}"),
            }
        }
    }
    assert_eq!((open.len(), refused), (STREAMS, 1000 - STREAMS));
    assert_eq!(bob.metric("hn_watch_streams").await, Some(STREAMS as f64));
    assert_eq!(bob.get("/healthz").await.status(), 200);
    bob.publish(&[("a.txt", b"a")]).await;
    drop(open);
    eventually(UNREAD, "places are free again", async || {
        let open = bob.metric("hn_watch_streams").await;
        same("hn_watch_streams", open, Some(0.0))
    })
    .await;
    // ...and one that wants more than its share.
    let mut open = Vec::new();
    let greedy = Ipv4Addr::new(127, 9, 9, 9);
    for _ in 0..CLIENT_STREAMS {
        let (stream, status) = open_from(greedy, bob.address()).await;
        assert_eq!(status, "HTTP/1.1 200");
        open.push(stream);
    }
    assert_eq!(open_from(greedy, bob.address()).await.1, "HTTP/1.1 503");
    let modest = Ipv4Addr::new(127, 9, 9, 10);
    assert_eq!(open_from(modest, bob.address()).await.1, "HTTP/1.1 200");
}

/// 60 kB are more than its sockets take, and nothing of it is read.
#[tokio::test]
async fn slow_a_reader_that_never_reads_is_closed_and_others_hear_everything() {
    let bob = Node::started("bob").await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(1024).unwrap();
    let mut idler = socket.connect(bob.address()).await.unwrap();
    let request = format!(
        "GET /federate/watch HTTP/1.1\r\nHost: {}\r\n\r\n",
        bob.address()
    );
    idler.write_all(request.as_bytes()).await.unwrap();
    let mut events = Events::open(&bob, "", None).await;
    let mut size = 0;
    eventually(
        Duration::from_secs(120),
        "the idler is closed",
        async || {
            // As long as he is there, there is something to tell him.
            let path = "/admin/log/publish?public=true";
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(8);
            header.set_mode(0o644);
            let content = format!("{size:08}");
            tar.append_data(&mut header, format!("{size}"), content.as_bytes())
                .unwrap();
            let sent = bob
                .admin(Method::POST, path)
                .header("content-type", "application/x-tar");
            let answer = sent.body(tar.into_inner().unwrap()).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            size += 1;
            let open = bob.metric("hn_watch_streams").await;
            same("hn_watch_streams", open, Some(1.0))
        },
    )
    .await;
    while events.next().await.1["log_size"] != size {}
}

/// Whatever eve streams: she is hung up on, her log is followed all the same, and little of it is taken.
async fn is_hung_up_on(streaming: Streaming, why: &str) {
    let (mut eve, alice) = (Eve::honest().await, listener("alice").await);
    eve.stream(streaming);
    follow(&alice, &eve).await;
    eventually(SOON, &format!("alice hangs up: {why}"), async || {
        let said = alice.stderr();
        if said.contains("hung up on a stream") && said.contains(why) {
            return Ok(());
        }
        Err("not yet".to_owned())
    })
    .await;
    assert!(eve.sent() < FLOOD, "{} bytes", eve.sent());
    assert_eq!(
        eve.asked("/federate/watch"),
        1,
        "and does not call again soon"
    );
    eve.repent();
    alice.refresh().await;
    let peer = alice.peer(eve.did()).await;
    assert_eq!(peer["state"], "healthy", "{peer}");
    assert_eq!(peer["log_size"], eve.size());
}

async fn follow(alice: &Node, eve: &Eve) {
    let did = eve.did().to_string();
    alice
        .ok(&["mcp", "federate", "add", &did, eve.base_url()])
        .await;
}

#[tokio::test]
async fn a_stream_of_garbage_is_hung_up_on() {
    let garbage = "event: head\ndata: {\"did\": 7}\n\n";
    is_hung_up_on(Streaming::endless(garbage), "cannot be read").await;
}

#[tokio::test]
async fn a_stream_of_one_endless_line_is_hung_up_on() {
    is_hung_up_on(Streaming::endless(vec![b'x'; 4096]), "a line is longer").await;
}

#[tokio::test]
async fn a_stream_of_one_endless_event_is_hung_up_on() {
    is_hung_up_on(
        Streaming::endless("data: more of it\n"),
        "an event is longer",
    )
    .await;
}

#[tokio::test]
async fn a_stream_of_endless_comments_is_hung_up_on() {
    let comments = ": nothing\n\n".repeat(1000);
    is_hung_up_on(Streaming::endless(comments), "does not stop").await;
}

#[tokio::test]
async fn a_stream_of_endless_strangers_is_hung_up_on() {
    is_hung_up_on(Streaming::strangers(), "does not stop").await;
}

/// Eve says a hundred times a second that she has news, and has none.
#[tokio::test]
async fn who_cries_wolf_is_soon_asked_by_the_clock_alone_and_her_true_news_are_found() {
    let (mut eve, alice) = (Eve::honest().await, listener("alice").await);
    eve.stream(Streaming::crying_wolf(eve.did()));
    follow(&alice, &eve).await;
    let event = Streaming::crying_wolf(eve.did()).chunk.len();
    eventually(
        Duration::from_secs(30),
        "eve has cried 300 times",
        async || {
            if eve.sent() > 300 * event {
                Ok(())
            } else {
                Err(format!("{} bytes", eve.sent()))
            }
        },
    )
    .await;
    let asked = eve.asked("/federate/index");
    assert!(asked <= 24, "{asked} pulls for 300 cries");
    eve.repent();
    alice.refresh().await;
    assert_eq!(alice.peer(eve.did()).await["log_size"], eve.size());
}

#[tokio::test]
async fn slow_a_stream_that_falls_silent_is_taken_for_broken_and_the_peer_is_asked() {
    let (mut eve, alice) = (Eve::honest().await, listener("alice").await);
    eve.stream(Streaming::mute());
    follow(&alice, &eve).await;
    listens_to(&alice, 1.0).await;
    eve.repent();
    eventually(
        Duration::from_secs(90),
        "alice asks eve by herself",
        async || {
            let peer = alice.peer(eve.did()).await;
            same("log_size", peer["log_size"].as_u64(), Some(eve.size()))
        },
    )
    .await;
}
