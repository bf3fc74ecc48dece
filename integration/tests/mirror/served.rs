//! How artifacts are served: never as a page of ours, in ranges, and many in one tar.

use std::collections::BTreeSet;

use hn_integration::cluster::Node;
use hn_protocol::digest::Digest;
use serde_json::Value;

use super::scene::{Scene, large, publish, small};

#[tokio::test]
async fn a_mirrored_page_with_a_script_never_runs_in_our_origin() {
    let html = b"<html><script>fetch('/admin/status')</script></html>".to_vec();
    let files = [
        ("page.html".to_owned(), html.clone()),
        ("x.svg".to_owned(), b"<svg onload='x()'/>".to_vec()),
    ];
    let scene = Scene::with(&files).await;
    scene.mirrors_all(&files).await;
    let mut paths: Vec<String> = files
        .iter()
        .map(|(_, bytes)| format!("/artifact/{}", Digest::of(bytes)))
        .collect();
    paths.push(format!("/federate/artifacts?publisher={}", scene.bob.did()));
    for path in paths {
        let answer = scene.alice.get(&path).await;
        let header = |name: &str| {
            answer
                .headers()
                .get(name)
                .map_or("", |v| v.to_str().unwrap())
                .to_owned()
        };
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(header("content-security-policy"), "sandbox", "{path}");
        assert_eq!(header("content-disposition"), "attachment", "{path}");
        let media = header("content-type");
        assert!(
            ["application/octet-stream", "application/x-tar"].contains(&media.as_str()),
            "{media}"
        );
    }
}

#[tokio::test]
async fn a_range_beyond_any_file_is_no_range_and_nothing_is_no_part() {
    let bob = Node::started("bob").await;
    let files = [
        ("ten".to_owned(), b"0123456789".to_vec()),
        ("empty".to_owned(), Vec::new()),
    ];
    publish(&bob, &files).await;
    let huge = "99999999999999999999999999";
    for (at, range, status, content_range, body) in [
        (0, format!("bytes={huge}-"), 416, "bytes */10", None),
        (
            0,
            format!("bytes=7-{huge}"),
            206,
            "bytes 7-9/10",
            Some(&b"789"[..]),
        ),
        (
            0,
            format!("bytes=-{huge}"),
            206,
            "bytes 0-9/10",
            Some(b"0123456789"),
        ),
        (0, "bytes=4-2".to_owned(), 200, "", Some(b"0123456789")),
        (0, "bytes=0-1,4-5".to_owned(), 200, "", Some(b"0123456789")),
        (1, "bytes=-1".to_owned(), 200, "", Some(b"")),
        (1, "bytes=0-".to_owned(), 416, "bytes */0", None),
    ] {
        let url = format!("{}/artifact/{}", bob.base_url(), Digest::of(&files[at].1));
        let answer = bob
            .http()
            .get(url)
            .header("range", &range)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status().as_u16(), status, "{range}");
        let got = answer
            .headers()
            .get("content-range")
            .map_or("", |v| v.to_str().unwrap());
        assert_eq!(got, content_range, "{range}");
        if let Some(body) = body {
            assert_eq!(&answer.bytes().await.unwrap()[..], body, "{range}");
        }
    }
}

#[tokio::test]
async fn the_artifacts_of_a_log_are_a_tar_of_digests_page_by_page() {
    let bob = Node::started("bob").await;
    let mut files = small(10);
    files.push(("again".to_owned(), files[3].1.clone()));
    files.push(large("too large", 65_537));
    publish(&bob, &files).await;
    let mut found = BTreeSet::new();
    let mut query = Some("cursor=0&limit=5".to_owned());
    let mut pages = 0;
    while let Some(at) = query {
        let answer = bob.get(&format!("/federate/artifacts?{at}")).await;
        assert_eq!(answer.status(), 200);
        let link = answer
            .headers()
            .get("link")
            .map(|link| link.to_str().unwrap().to_owned());
        let body = answer.bytes().await.unwrap();
        let mut archive = tar::Archive::new(&body[..]);
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            let name = entry.path().unwrap().display().to_string();
            assert_eq!(name, Digest::of(&bytes).to_string());
            names.push(name);
        }
        let distinct: BTreeSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "each once");
        found.extend(names);
        pages += 1;
        query = link.map(|link| {
            link.strip_prefix("<?")
                .unwrap()
                .split('>')
                .next()
                .unwrap()
                .to_owned()
        });
    }
    let wanted = files.iter().filter(|(_, bytes)| bytes.len() <= 65_536);
    let wanted: BTreeSet<String> = wanted
        .map(|(_, bytes)| Digest::of(bytes).to_string())
        .collect();
    assert_eq!((found, pages), (wanted, 3));
    for (query, status, code) in [
        ("limit=0", 400, "bad_limit"),
        ("limit=8193", 400, "bad_limit"),
        ("cursor=x", 400, "bad_cursor"),
        ("publisher=bob", 400, "bad_did"),
        (
            "publisher=did:hn:z6Mko9hTggMwjSTEaJaPUfE6tqcy2xvU6BnNq3e3o8qVBiyH",
            404,
            "unknown_publisher",
        ),
    ] {
        let answer = bob.get(&format!("/federate/artifacts?{query}")).await;
        assert_eq!(answer.status().as_u16(), status, "{query}");
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["code"], code, "{query}");
    }
    let beyond = bob.get("/federate/artifacts?cursor=99").await;
    assert_eq!(beyond.status(), 200);
    assert!(beyond.headers().get("link").is_none());
}
