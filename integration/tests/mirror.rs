//! Mirrors that finish: many artifacts at once, from whoever has them, on where they broke off, within their bounds.
//!
//! ```text
//!   bob, honest ◄── mallory, who stands before him and gives artifacts as she likes ◄──mirrors── alice
//! ```

mod limits;
mod scene;
mod served;

use std::collections::BTreeSet;
use std::fs;

use hn_integration::cluster::Node;
use hn_integration::converge::{SOON, eventually, same};
use hn_integration::holder::{BREAK, Batches, Gift, Mallory, tar_of};
use hn_protocol::digest::Digest;
use serde_json::Value;

use scene::{LARGE, Scene, large, publish, serves, singles, small};

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

/// ```text
///   bob, who gives nothing ◄── alice ──follows──► carol, who holds bob's log and forges what is in it
/// ```
#[tokio::test]
async fn a_holder_that_forges_what_another_published_is_charged_and_the_other_is_not() {
    let files = [large("film", 300_000)];
    let scene = Scene::with(&files).await;
    let carol = Node::started("carol").await;
    carol.follow(&scene.bob).await;
    carol.ok(&["mcp", "federate", "refresh", "--mirror"]).await;
    let forger = Mallory::before(&carol.base_url()).await;
    let did = carol.did().to_string();
    scene
        .alice
        .ok(&["mcp", "federate", "add", &did, forger.base_url()])
        .await;
    scene.alice.refresh().await;
    scene.mallory.gives(Gift::Nothing);
    forger.gives(Gift::False);
    let (_, report) = scene.mirror().await;
    assert_eq!(report["mirrored"]["missing"], 1, "{report}");
    let forged = scene.alice.peer(carol.did()).await;
    assert_eq!(forged["state"], "stale", "{forged}");
    assert!(
        forged["reason"].to_string().contains("artifact_mismatch"),
        "{forged}"
    );
    assert_eq!(scene.health().await.0, "healthy", "bob said nothing false");
    assert_eq!(report["error"], Value::Null, "{report}");

    // Her next pull does not clear her of it; that nothing is missing any more does.
    scene.alice.refresh().await;
    assert_eq!(scene.alice.peer(carol.did()).await["state"], "stale");
    scene.mallory.gives(Gift::Honest);
    scene.mirrors_all(&files).await;
    assert_eq!(scene.alice.peer(carol.did()).await["state"], "healthy");
}
