//! What no parser should have to read, on the admin socket: each refused with a 4xx problem, and the node lives.

use std::io::Write;

use hn_integration::cluster::Node;
use hn_integration::hostile::gzip_bomb;
use hn_protocol::did::SecretSeed;
use reqwest::Method;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// What a node may have taken at most, in KiB, after every one of these bodies.
const MEMORY_KIB: u64 = 150 * 1024;

async fn is_refused(alice: &Node, head: &str, body: Vec<u8>, code: &str) {
    let did = SecretSeed::from_bytes([9; 32]).did();
    let answer = put(alice, &format!("/admin/federation/peers/{did}"), head, body).await;
    let (top, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{code}: {answer:?}"));
    let status = top.split(' ').nth(1).unwrap();
    assert!(status.starts_with('4'), "{code}: {top}");
    assert!(
        top.to_ascii_lowercase()
            .contains("content-type: application/problem+json"),
        "{code}: {top}"
    );
    let from = body.find('{').unwrap_or_else(|| panic!("{code}: {body}"));
    let to = body.rfind('}').unwrap();
    let problem: Value =
        serde_json::from_str(&body[from..=to]).unwrap_or_else(|e| panic!("{code}: {e}: {body}"));
    assert_eq!(problem["code"], code, "{problem}");
    assert_eq!(
        alice.get("/healthz").await.status(),
        200,
        "{code}: the node serves on"
    );
    assert!(
        alice.status().await["peers"].as_array().unwrap().is_empty(),
        "{code}: nothing was added"
    );
}

/// One PUT over the socket that goes on sending while the answer comes, and takes it when the other side hangs up.
async fn put(alice: &Node, path: &str, head: &str, body: Vec<u8>) -> String {
    let stream = UnixStream::connect(alice.home().join("run/hn.sock"))
        .await
        .unwrap();
    let (mut read, mut write) = stream.into_split();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n{head}Content-Length: {}\r\n\r\n",
        body.len()
    );
    let sending = tokio::spawn(async move {
        // Being cut off is what is wanted of the large ones.
        let _ = write.write_all(head.as_bytes()).await;
        let _ = write.write_all(&body).await;
        write
    });
    let mut answer = Vec::new();
    // A reset after the answer is how a server stops an upload; what came before it counts.
    let _ = read.read_to_end(&mut answer).await;
    sending.abort();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn bodies_that_two_readers_could_understand_differently_are_refused() {
    let alice = Node::started("alice").await;
    let text = |text: &str| text.as_bytes().to_vec();
    let url = "\"url\":\"http://127.0.0.1:9\"";
    is_refused(
        &alice,
        "",
        text(&format!("{{{url},{url}}}")),
        "duplicate_key",
    )
    .await;
    is_refused(
        &alice,
        "",
        text(&format!("{{{url},\"more\":NaN}}")),
        "invalid_json",
    )
    .await;
    is_refused(
        &alice,
        "",
        text(&format!("{{{url},\"more\":9007199254740994}}")),
        "number_out_of_range",
    )
    .await;
    is_refused(
        &alice,
        "",
        text(&format!("{{{url},\"more\":1e999}}")),
        "number_out_of_range",
    )
    .await;
    let deep = format!(
        "{{{url},\"more\":{}{}}}",
        "[".repeat(1000),
        "]".repeat(1000)
    );
    is_refused(&alice, "", text(&deep), "nested_too_deep").await;
    is_refused(
        &alice,
        "",
        [b"{\"url\":\"http://".as_slice(), &[0xff, 0xfe], b"\"}"].concat(),
        "invalid_utf8",
    )
    .await;
    is_refused(&alice, "", text("<html>"), "invalid_json").await;
    is_refused(&alice, "", text(""), "peer_unresolved").await;
}

#[tokio::test]
async fn bodies_that_are_too_large_are_refused_without_being_kept() {
    let alice = Node::started("alice").await;
    is_refused(&alice, "", vec![b' '; 100 << 20], "body_too_large").await;
    is_refused(
        &alice,
        "Content-Encoding: gzip\r\n",
        gzip_bomb(),
        "unsupported_encoding",
    )
    .await;
    let mut small = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    small.write_all(b"{}").unwrap();
    is_refused(
        &alice,
        "Content-Encoding: gzip\r\n",
        small.finish().unwrap(),
        "unsupported_encoding",
    )
    .await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", alice.pid())).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < MEMORY_KIB, "the node took {peak} KiB");
}

#[tokio::test]
async fn bodies_of_the_wrong_shape_are_refused() {
    let alice = Node::started("alice").await;
    let did = SecretSeed::from_bytes([9; 32]).did();
    for body in [
        "[]",
        "7",
        "{\"url\":7}",
        "{\"url\":\"ftp://x\"}",
        "{\"url\":\"nonsense\"}",
        "{\"scope\":\"all\",\"url\":\"http://127.0.0.1:9\"}",
        "{\"urll\":\"http://127.0.0.1:9\"}",
    ] {
        let answer = put(
            &alice,
            &format!("/admin/federation/peers/{did}"),
            "",
            body.as_bytes().to_vec(),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{body}: {answer}");
        assert!(
            answer.contains("application/problem+json"),
            "{body}: {answer}"
        );
    }
    assert!(alice.status().await["peers"].as_array().unwrap().is_empty());
}

/// A tar of one file under a name that no tool would write.
fn tar_of(path: &str) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.set_size(1);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append(&header, b"x".as_slice()).unwrap();
    tar.into_inner().unwrap()
}

#[tokio::test]
async fn paths_that_climb_are_not_published() {
    let alice = Node::started("alice").await;
    alice.publish(&[("fine", b"fine")]).await;
    let publish = async |body: Vec<u8>| {
        let request = alice
            .admin(Method::POST, "/admin/log/publish?public=true")
            .header("content-type", "application/x-tar");
        let answer = request.body(body).send().await.unwrap();
        (
            answer.status().as_u16(),
            answer.json::<Value>().await.unwrap(),
        )
    };
    for path in [
        "../x", "/abs", "a/../b", "a\\b", "", "./x", "a//b", "a\u{7}b",
    ] {
        let (status, problem) = publish(tar_of(path)).await;
        assert_eq!(
            (status, &problem["code"]),
            (400, &"bad_path".into()),
            "{path:?}: {problem}"
        );
    }
    let mut link = tar::Header::new_ustar();
    link.set_path("link").unwrap();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_link_name("/etc/passwd").unwrap();
    link.set_size(0);
    link.set_cksum();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append(&link, std::io::empty()).unwrap();
    let (status, problem) = publish(tar.into_inner().unwrap()).await;
    assert_eq!(status, 400, "a link is no file: {problem}");
    let (status, problem) = publish(b"this is no tar".repeat(100)).await;
    assert_eq!(status, 400, "{problem}");
    let (status, problem) = publish(tar_of("whole")[..600].to_vec()).await;
    assert_eq!(status, 400, "a tar that breaks off is refused: {problem}");
    assert_eq!(
        alice.status().await["log"]["size"],
        1,
        "nothing of all that was published"
    );
    alice.publish(&[("fine too", b"fine")]).await;
}
