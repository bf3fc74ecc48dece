//! Mirrors that finish: many artifacts at once, from whoever has them, on where they broke off, within their bounds.
//!
//! ```text
//!   bob, honest ◄── mallory, who stands before him and gives artifacts as she likes ◄──mirrors── alice
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use hn_integration::cluster::{Node, Output};
use hn_integration::converge::{SOON, eventually, same};
use hn_integration::fault::Fault;
use hn_integration::holder::{BREAK, Batches, Gift, Mallory, tar_of};
use hn_protocol::digest::Digest;
use serde_json::Value;

/// The size of an artifact that takes several transfers where each breaks off after [`BREAK`] bytes.
const LARGE: usize = 6 * BREAK + 77;

struct Scene {
    bob: Node,
    mallory: Mallory,
    alice: Node,
}

impl Scene {
    /// Bob has published `files`; alice follows him through mallory and has mirrored nothing.
    async fn with(files: &[(String, Vec<u8>)]) -> Self {
        Self::of(Node::new("alice"), files).await
    }

    async fn of(mut alice: Node, files: &[(String, Vec<u8>)]) -> Self {
        let bob = Node::started("bob").await;
        publish(&bob, files).await;
        alice.start().await;
        let mallory = Mallory::before(&bob.base_url()).await;
        let did = bob.did().to_string();
        alice
            .ok(&["mcp", "federate", "add", &did, mallory.base_url()])
            .await;
        alice.refresh().await;
        Self {
            bob,
            mallory,
            alice,
        }
    }

    /// Mirrors once; what the report says of bob.
    async fn mirror(&self) -> (Output, Value) {
        let did = self.bob.did().to_string();
        let refresh = ["mcp", "federate", "refresh", &did, "--mirror"];
        let output = self.alice.cli(&refresh).await;
        let report = output.json["peers"][0].clone();
        assert!(report.is_object(), "{}{}", output.stdout, output.stderr);
        (output, report)
    }

    /// Mirrors once, all of it.
    async fn mirrors_all(&self, files: &[(String, Vec<u8>)]) -> Value {
        let (output, report) = self.mirror().await;
        assert_eq!(output.status, Some(0), "{report}");
        assert_eq!(report["mirrored"]["missing"], 0, "{report}");
        serves(&self.alice, files).await;
        report
    }

    fn copies(&self) -> PathBuf {
        let did = self.bob.did();
        self.alice
            .home()
            .join(format!("cache/federation/{did}/artifacts"))
    }

    /// The state of bob in alice's eyes, and why.
    async fn health(&self) -> (String, String) {
        let peer = self.alice.peer(self.bob.did()).await;
        let text = |name: &str| peer[name].as_str().unwrap_or_default().to_owned();
        (text("state"), text("reason"))
    }
}

async fn publish(node: &Node, files: &[(String, Vec<u8>)]) {
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
        .collect();
    node.publish(&files).await;
}

fn small(count: usize) -> Vec<(String, Vec<u8>)> {
    (0..count)
        .map(|n| {
            (
                format!("{n:04}"),
                format!("small {n}").repeat(n % 50 + 1).into_bytes(),
            )
        })
        .collect()
}

fn large(name: &str, size: usize) -> (String, Vec<u8>) {
    let seed = Digest::of(name.as_bytes()).0;
    let bytes = (0..size).map(|at| seed[at % 32] ^ (at / 32) as u8);
    (name.to_owned(), bytes.collect())
}

async fn serves(node: &Node, files: &[(String, Vec<u8>)]) {
    for (path, bytes) in files {
        let answer = node.get(&format!("/artifact/{}", Digest::of(bytes))).await;
        assert_eq!(answer.status(), 200, "{}: {path}", node.name());
        assert!(
            answer.bytes().await.unwrap() == bytes[..],
            "{path} is what bob published"
        );
    }
}

fn singles(asked: &[String]) -> usize {
    asked
        .iter()
        .filter(|path| path.starts_with("/artifact/"))
        .count()
}

#[tokio::test]
async fn small_artifacts_come_many_in_one_answer_and_large_ones_by_themselves() {
    let mut files = small(600);
    files.push(large("one", 100_000));
    files.push(large("other", 65_537));
    files.push(("empty".into(), Vec::new()));
    let scene = Scene::with(&files).await;
    let report = scene.mirrors_all(&files).await;
    assert_eq!(report["mirrored"]["artifacts"], files.len(), "{report}");
    let asked = scene.mallory.asked();
    assert_eq!(singles(&asked), 2, "{asked:?}");
    assert!(
        asked.len() <= 4,
        "603 artifacts are a few requests: {asked:?}"
    );
    let available = &report["availability"];
    assert_eq!(available["announced"], files.len(), "{report}");
    assert_eq!(available["looked"], files.len(), "{report}");

    eventually(SOON, "each artifact has a file of its own", async || {
        let names = fs::read_dir(scene.copies()).map_err(|e| e.to_string())?;
        let names: BTreeSet<String> = names
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        let bundles = fs::read_dir(scene.copies().join(".bundles"));
        same("bundles", bundles.map_err(|e| e.to_string())?.count(), 0)?;
        let mut wanted = files.iter();
        let wanted = wanted.all(|(_, bytes)| names.contains(&Digest::of(bytes).to_string()));
        same("every file is there", wanted, true)
    })
    .await;
    serves(&scene.alice, &files).await;
    scene.mirrors_all(&[]).await;
    assert_eq!(
        scene.mallory.asked().len(),
        asked.len(),
        "nothing is asked for twice"
    );
}

#[tokio::test]
async fn a_holder_without_batches_is_asked_for_one_after_the_other() {
    for batches in [Batches::None, Batches::Html] {
        let files = small(40);
        let scene = Scene::with(&files).await;
        scene.mallory.batches(batches);
        scene.mirrors_all(&files).await;
        assert_eq!(singles(&scene.mallory.asked()), files.len());
    }
}

#[tokio::test]
async fn false_batches_are_charged_and_nothing_of_them_is_kept() {
    let files = small(40);
    let first = Digest::of(&files[0].1);
    let no_tar = vec![b'x'; 4096].into();
    for (batches, code) in [
        (
            Batches::Tar(tar_of(&[(first, b"small!!")])),
            "artifact_mismatch",
        ),
        (
            Batches::Tar(tar_of(&[(Digest::of(b"?"), b"?")])),
            "bad_answer",
        ),
        (Batches::Tar(no_tar), "bad_answer"),
        (Batches::Endless, "answer_too_large"),
    ] {
        let scene = Scene::with(&files).await;
        scene.mallory.gives(Gift::Nothing);
        scene.mallory.batches(batches);
        let (output, report) = scene.mirror().await;
        assert_eq!(output.status, Some(1), "{code}: {report}");
        assert_eq!(report["error"]["code"], code, "{report}");
        let (state, reason) = scene.health().await;
        assert!(
            state == "stale" && reason.contains(code),
            "{state}: {reason}"
        );
        if code != "answer_too_large" {
            let status = scene
                .alice
                .get(&format!("/artifact/{first}"))
                .await
                .status();
            assert_eq!(status, 404, "{code}");
        }
        assert_eq!(report["log_size"], 40, "{code}: the log stands");

        scene.mallory.gives(Gift::Honest);
        scene.mallory.batches(Batches::Honest);
        scene.mirrors_all(&files).await;
        assert_eq!(scene.health().await.0, "healthy", "{code}");
    }
}

#[tokio::test]
async fn a_batch_that_breaks_off_is_no_lie_and_what_came_of_it_stays() {
    let files = small(200);
    let scene = Scene::with(&files).await;
    scene.mallory.batches(Batches::Cut);
    scene.mirrors_all(&files).await;
    let alone = singles(&scene.mallory.asked());
    assert!((50..150).contains(&alone), "{alone} of 200 by themselves");
    assert_eq!(scene.health().await.0, "healthy");
}

#[tokio::test]
async fn a_transfer_that_breaks_off_goes_on_where_it_was_also_after_a_kill() {
    let files = [large("film", LARGE)];
    let mut scene = Scene::with(&files).await;
    scene.mallory.gives(Gift::Cut(BREAK));
    let (_, report) = scene.mirror().await;
    assert_eq!(report["mirrored"]["artifacts"], 0, "{report}");
    assert_ne!(
        scene.health().await.0,
        "stale",
        "a broken connection is no lie"
    );
    let digest = Digest::of(&files[0].1);
    let range = |from: usize| format!("/artifact/{digest} bytes={from}-");
    let wanted = [
        format!("/artifact/{digest}"),
        range(BREAK),
        range(2 * BREAK),
        range(3 * BREAK),
    ];
    assert_eq!(
        scene.mallory.asked(),
        wanted,
        "taken up again a few times at once"
    );

    scene.alice.restart().await;
    scene.mirror().await;
    let asked = scene.mallory.asked();
    assert_eq!(asked[4], range(4 * BREAK), "and by the next process");
    assert_eq!(asked.len(), 7, "{asked:?}");
    serves(&scene.alice, &files).await;
    assert_eq!(
        fs::read_dir(scene.copies().join(".tmp")).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn what_a_power_cut_spoilt_of_a_broken_transfer_is_fetched_again_and_nobody_is_blamed() {
    let files = [large("film", LARGE)];
    let mut scene = Scene::with(&files).await;
    scene.mallory.gives(Gift::Cut(BREAK));
    scene.mirror().await;
    scene.alice.kill();
    let part = scene
        .copies()
        .join(format!(".tmp/{}.part", Digest::of(&files[0].1)));
    let mut bytes = fs::read(&part).unwrap();
    bytes[77] ^= 1;
    fs::write(&part, bytes).unwrap();
    scene.alice.start().await;
    scene.mallory.gives(Gift::Honest);
    scene.mirrors_all(&files).await;
    assert_eq!(scene.health().await.0, "healthy");
}

#[tokio::test]
async fn a_range_that_is_not_what_was_asked_for_is_refused_and_what_is_here_stays() {
    let files = [large("film", 3 * BREAK)];
    for gift in [Gift::WrongRange, Gift::LongRange] {
        let scene = Scene::with(&files).await;
        scene.mallory.gives(gift);
        let (_, report) = scene.mirror().await;
        assert_eq!(
            report["error"]["code"], "bad_range_answer",
            "{gift:?}: {report}"
        );
        assert_eq!(scene.health().await.0, "stale", "{gift:?}");
        scene.mallory.gives(Gift::Honest);
        scene.mirrors_all(&files).await;
        let asked = scene.mallory.asked();
        assert!(
            asked.last().unwrap().ends_with(&format!("bytes={BREAK}-")),
            "{asked:?}"
        );
    }
    // Everything again, as RFC 9110 allows, is taken from the beginning.
    let scene = Scene::with(&files).await;
    scene.mallory.gives(Gift::NoRange);
    scene.mirrors_all(&files).await;
    assert_eq!(scene.health().await.0, "healthy");
}

#[tokio::test]
async fn false_endless_short_and_overlong_artifacts_are_refused_and_the_log_stands() {
    let files = [
        large("film", 300_000),
        ("note".to_owned(), b"a note".to_vec()),
    ];
    for (gift, code) in [
        (Gift::False, "artifact_mismatch"),
        (Gift::Endless, "artifact_too_long"),
        (Gift::Longer, "artifact_too_long"),
        (Gift::Short, "artifact_mismatch"),
    ] {
        let scene = Scene::with(&files).await;
        scene.mallory.gives(gift);
        let (output, report) = scene.mirror().await;
        assert_eq!(output.status, Some(1), "{gift:?}");
        assert_eq!(report["error"]["code"], code, "{gift:?}: {report}");
        assert_eq!(report["mirrored"]["missing"], 2, "{gift:?}: {report}");
        assert_eq!(
            report["log_size"], 2,
            "{gift:?}: the log itself is not refused"
        );
        let (state, reason) = scene.health().await;
        assert!(
            state == "stale" && reason.contains(code),
            "{gift:?}: {reason}"
        );
        for (_, bytes) in &files {
            let path = format!("/artifact/{}", Digest::of(bytes));
            assert_eq!(scene.alice.get(&path).await.status(), 404, "{gift:?}");
        }
        scene.mallory.gives(Gift::Honest);
        scene.mirrors_all(&files).await;
        assert_eq!(scene.health().await.0, "healthy", "{gift:?}");
    }
}

/// ```text
///   bob ◄── mallory ◄──mirrors── alice ──follows──► carol ──mirrors──► bob
/// ```
#[tokio::test]
async fn what_one_holder_lacks_or_forges_another_gives() {
    let mut files = small(30);
    files.push(large("film", LARGE));
    for gift in [Gift::Nothing, Gift::False] {
        let scene = Scene::with(&files).await;
        let carol = Node::started("carol").await;
        carol.follow(&scene.bob).await;
        carol.ok(&["mcp", "federate", "refresh", "--mirror"]).await;
        scene.alice.follow(&carol).await;
        scene.alice.refresh().await;
        scene.mallory.gives(gift);
        let (_, report) = scene.mirror().await;
        assert_eq!(report["mirrored"]["missing"], 0, "{gift:?}: {report}");
        serves(&scene.alice, &files).await;
        let (state, reason) = scene.health().await;
        match gift {
            Gift::Nothing => assert_eq!(state, "healthy", "an absence is no lie: {reason}"),
            _ => assert!(
                state == "stale" && reason.contains("artifact_mismatch"),
                "{reason}"
            ),
        }
        assert_eq!(scene.alice.peer(carol.did()).await["state"], "healthy");
    }
}

/// ```text
///   bob, gone ◄── carol, who mirrored him, and mallory, who lies ◄──── alice follows both
/// ```
#[tokio::test]
async fn a_publisher_that_is_gone_is_mirrored_from_who_holds_him_and_a_liar_among_them_is_charged()
{
    let files = [large("film", 400_000), large("song", 300_000)];
    let bob = Node::started("bob").await;
    publish(&bob, &files).await;
    let mut holders = Vec::new();
    for name in ["carol", "dave"] {
        let holder = Node::started(name).await;
        holder.follow(&bob).await;
        holder.ok(&["mcp", "federate", "refresh", "--mirror"]).await;
        holders.push(holder);
    }
    let (carol, dave) = (&holders[0], &holders[1]);
    let mallory = Mallory::before(&dave.base_url()).await;
    drop(bob);
    mallory.gives(Gift::False);
    let alice = Node::started("alice").await;
    let (liar, honest) = (dave.did().to_string(), carol.did().to_string());
    alice
        .ok(&["mcp", "federate", "add", &liar, mallory.base_url()])
        .await;
    alice.follow(carol).await;
    alice.refresh().await;
    let refresh = ["mcp", "federate", "refresh", &honest, "--mirror"];
    alice.ok(&refresh).await;
    serves(&alice, &files).await;
    let refresh = ["mcp", "federate", "refresh", &liar, "--mirror"];
    alice.ok(&refresh).await;
    assert!(
        mallory.asked().is_empty(),
        "what is here is asked of nobody"
    );
}

#[tokio::test]
async fn what_cannot_be_had_is_counted_and_named_and_the_log_is_followed_all_the_same() {
    let files = small(12);
    for (check, looked) in [("all", 12), ("sample", 12)] {
        let alice = Node::new("alice").with("HN_FEDERATION__CHECK_AVAILABILITY", check);
        let scene = Scene::of(alice, &files).await;
        let report = scene.alice.refresh().await["peers"][0].clone();
        let available = &report["availability"];
        assert_eq!(
            (available["missing"].clone(), available["looked"].clone()),
            (0.into(), looked.into()),
            "{report}"
        );
        assert!(
            report["mirrored"].is_null(),
            "nothing was fetched: {report}"
        );

        scene.mallory.gives(Gift::Nothing);
        let gone = ("gone".to_owned(), b"nobody gives this".to_vec());
        publish(&scene.bob, std::slice::from_ref(&gone)).await;
        let report = scene.alice.refresh().await["peers"][0].clone();
        assert_eq!(report["status"], "updated", "{report}");
        assert_eq!(report["availability"]["announced"], 13, "{report}");
        assert_eq!(report["availability"]["missing"], 1, "{report}");
        assert_eq!(
            report["availability"]["named"][0],
            Digest::of(&gone.1).to_string()
        );
        let list = scene.alice.ok(&["mcp", "federate", "list"]).await;
        assert_eq!(list["peers"][0]["availability"]["missing"], 1, "{list}");
        assert_eq!(list["peers"][0]["state"], "healthy", "{list}");
    }
}

#[tokio::test]
async fn a_quota_is_named_with_what_it_leaves_out_and_a_larger_one_goes_on() {
    let files: Vec<_> = (0..5)
        .map(|n| large(&format!("part {n}"), 100_000))
        .collect();
    for (key, name) in [
        ("HN_STORAGE__PUBLISHER_QUOTA", "storage.publisher_quota"),
        ("HN_STORAGE__MIRROR_QUOTA", "storage.mirror_quota"),
    ] {
        let mut scene = Scene::of(Node::new("alice").with(key, "250000"), &files).await;
        let (output, report) = scene.mirror().await;
        assert_eq!(output.status, Some(0), "a limit is no failure: {report}");
        assert_eq!(report["mirrored"]["artifacts"], 2, "{report}");
        assert_eq!(report["mirrored"]["limit"], name, "{report}");
        let storage = scene.alice.ok(&["mcp", "storage"]).await;
        let publisher = &storage["publishers"][0];
        assert_eq!(publisher["did"], scene.bob.did().to_string(), "{storage}");
        assert_eq!(publisher["artifacts"], 2, "{storage}");
        assert_eq!(publisher["artifact_bytes"], 200_000, "{storage}");
        assert_eq!(publisher["left_out"]["limit"], name, "{storage}");
        assert_eq!(publisher["left_out"]["from"], 2, "{storage}");
        assert_eq!(publisher["left_out"]["entries"], 3, "{storage}");
        assert!(
            publisher["journal_bytes"].as_u64().unwrap() > 0,
            "{storage}"
        );
        assert!(
            storage["disk"]["free_bytes"].as_u64().unwrap() > 0,
            "{storage}"
        );

        let before = singles(&scene.mallory.asked());
        scene.mirror().await;
        assert_eq!(
            singles(&scene.mallory.asked()),
            before,
            "what has no room is not asked for"
        );
        scene.alice.set(key, "0");
        scene.alice.restart().await;
        let report = scene.mirrors_all(&files).await;
        assert!(report["mirrored"]["limit"].is_null(), "{report}");
        let storage = scene.alice.ok(&["mcp", "storage"]).await;
        assert!(storage["publishers"][0]["left_out"].is_null(), "{storage}");
        assert_eq!(storage["mirrored"]["artifacts"], 5, "{storage}");
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_in_the_middle_is_no_peers_fault_and_the_mirror_goes_on() {
    let mut files = small(50);
    files.extend((0..6).map(|n| large(&format!("part {n}"), 100_000)));
    for point in ["mirror.bundle.before_sync", "mirror.artifact.before_rename"] {
        let scene = Scene::with(&files).await;
        scene.alice.arm(Fault::DiskFull(point)).await;
        let (output, report) = scene.mirror().await;
        assert_eq!(output.status, Some(1), "{point}");
        assert_eq!(report["error"]["code"], "storage_full", "{point}: {report}");
        assert_eq!(report["log_size"], files.len(), "{point}");
        assert_ne!(
            scene.health().await.0,
            "stale",
            "{point}: the peer is not blamed"
        );
        scene.mirrors_all(&files).await;
        assert_eq!(scene.health().await.0, "healthy", "{point}");
    }
    // A floor above what is free: nothing is written, and everything once there is room.
    let mut scene = Scene::with(&files).await;
    scene.alice.kill();
    scene
        .alice
        .set("HN_STORAGE__MIN_FREE", &(1_u64 << 60).to_string());
    scene.alice.start().await;
    let (_, report) = scene.mirror().await;
    assert_eq!(report["error"]["code"], "storage_full", "{report}");
    let storage = scene.alice.ok(&["mcp", "storage"]).await;
    assert_eq!(storage["disk"]["has_room"], false, "{storage}");
    assert_eq!(storage["mirrored"]["artifacts"], 0, "{storage}");
    scene.alice.unset("HN_STORAGE__MIN_FREE");
    scene.alice.restart().await;
    scene.mirrors_all(&files).await;
}

#[tokio::test]
async fn a_crash_at_any_point_of_a_batch_loses_nothing_that_was_told() {
    let files = small(50);
    for point in [
        "mirror.bundle.before_sync",
        "mirror.bundle.after_sync",
        "mirror.bundle.before_settle",
    ] {
        let mut scene = Scene::with(&files).await;
        scene.alice.arm(Fault::Crash(point)).await;
        let did = scene.bob.did().to_string();
        let refresh = ["mcp", "federate", "refresh", &did, "--mirror"];
        let told = scene.alice.cli(&refresh).await.status == Some(0);
        scene.alice.ended(SOON).await;
        scene.alice.start().await;
        if told {
            serves(&scene.alice, &files).await;
        }
        scene.mirrors_all(&files).await;
        scene.alice.restart().await;
        serves(&scene.alice, &files).await;
    }
}

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
