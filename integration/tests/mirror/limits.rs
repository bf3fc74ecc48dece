//! What a mirror keeps within: quotas, a full disk, a crash; and what it says of what cannot be had.

use hn_integration::cluster::Node;
use hn_integration::converge::SOON;
use hn_integration::fault::Fault;
use hn_integration::holder::Gift;
use hn_protocol::digest::Digest;

use super::scene::{Scene, large, publish, serves, singles, small};

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
