//! Slow and quiet clients: what they take is bounded, and others are answered.

use std::io;

use hn_integration::cluster::Node;
use hn_protocol::digest::Digest;
use reqwest::{Body, Method};
use serde_json::Value;

/// Publications that may be under way (`spec/http.md`).
const PUBLICATIONS: usize = 24;

/// A tar of `count` small files.
fn tar_of(count: usize) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for at in 0..count {
        let mut header = tar::Header::new_gnu();
        header.set_size(8);
        header.set_mode(0o644);
        let content = format!("{at:08}");
        tar.append_data(&mut header, format!("f/{at}"), content.as_bytes())
            .unwrap();
    }
    tar.into_inner().unwrap()
}

#[tokio::test]
async fn a_page_of_large_slices_ends_before_it_takes_4_mib_and_followers_get_all() {
    let (bob, alice) = (Node::started("bob").await, Node::started("alice").await);
    let label = "t".repeat(1000);
    let path =
        format!("/admin/log/publish?public=true&tag=a%3D{label}&tag=b%3D{label}&tag=c%3D{label}");
    let sent = bob.admin(Method::POST, &path);
    let sent = sent.header("content-type", "application/x-tar");
    let answer = sent.body(tar_of(1536)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let page = bob.get("/federate/index?limit=64").await;
    assert!(page.headers().contains_key("link"), "it is not the last");
    let etag = page.headers()["etag"].to_str().unwrap().to_owned();
    let body = page.bytes().await.unwrap();
    assert!(
        body.len() > 2 << 20 && body.len() <= 4 << 20,
        "{}",
        body.len()
    );
    assert_eq!(etag, format!("\"{}\"", Digest::of(&body)));
    alice.follow(&bob).await;
    alice.refresh().await;
    let heads: Value = alice.get("/federate/peers").await.json().await.unwrap();
    let heads = heads["peers"].as_array().unwrap();
    assert!(heads.iter().any(|head| head["log_size"] == 1536));
}

#[tokio::test]
async fn publications_that_stall_leave_room_for_everything_else() {
    let bob = Node::started("bob").await;
    let publish = || {
        let (pieces, body) = tokio::sync::mpsc::channel::<io::Result<Vec<u8>>>(2);
        let body = futures_util::stream::unfold(body, async |mut body| {
            body.recv().await.map(|piece| (piece, body))
        });
        let sent = bob.admin(Method::POST, "/admin/log/publish?public=true");
        let sent = sent
            .header("content-type", "application/x-tar")
            .body(Body::wrap_stream(Box::pin(body)));
        (pieces, tokio::spawn(sent.send()))
    };
    // One too many: whoever comes last is told so at once, the others wait for their senders.
    let (senders, answers): (Vec<_>, Vec<_>) = (0..=PUBLICATIONS).map(|_| publish()).unzip();
    let (refused, _, waiting) = futures_util::future::select_all(answers).await;
    let refused = refused.unwrap().unwrap();
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "busy");
    // What reads disks is answered.
    assert!(bob.status().await["storage"].is_object());
    let nothing = Digest::of(b"nobody has this");
    let path = format!("/artifact/{nothing}");
    let answer = bob.admin(Method::GET, &path).send().await.unwrap();
    assert_eq!(answer.status(), 404);
    drop(senders);
    for answer in waiting {
        assert_eq!(answer.await.unwrap().unwrap().status(), 400, "an empty tar");
    }
    bob.publish(&[("a.txt", b"a")]).await;
}

#[tokio::test]
async fn heads_that_did_not_change_are_answered_304_and_news_are_not() {
    let bob = Node::started("bob").await;
    let first = bob.get("/federate/peers").await;
    let etag = first.headers()["etag"].to_str().unwrap().to_owned();
    let body = first.bytes().await.unwrap();
    assert_eq!(etag, format!("\"{}\"", Digest::of(&body)));
    let again = || {
        bob.http()
            .get(format!("{}/federate/peers", bob.base_url()))
            .header("if-none-match", &etag)
            .send()
    };
    assert_eq!(again().await.unwrap().status(), 304);
    bob.publish(&[("a.txt", b"a")]).await;
    let news = again().await.unwrap();
    assert_eq!(news.status(), 200);
    let news: Value = news.json().await.unwrap();
    assert_eq!(news["peers"][0]["log_size"], 1);
}
