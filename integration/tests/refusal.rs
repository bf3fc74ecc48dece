//! Eve lies. Each time: what was accepted before stays byte for byte and is served on, the peer turns `stale` (she
//! lied) or `unreachable` (she did not answer) with a reason and a remedy, the node lives, and when she is honest
//! again she is healthy again. Where her lie proves that she signed two logs she is `forked`, and stays so.
//!
//! ```text
//!   eve (hostile) ◄──follows── alice
//! ```

use std::time::Duration;

use hn_integration::cluster::Node;
use hn_integration::converge::{SOON, eventually};
use hn_integration::hostile::{Author, Eve, LARGE, Lie, Manner};
use hn_integration::log::Walk;
use serde_json::Value;

/// For a pull from a peer that does not answer, or answers a byte a second, to be given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Alice, who has accepted eve's honest log, with what she serves of it.
async fn alice_follows_eve() -> (Node, Eve, Walk) {
    let alice = Node::started("alice").await;
    let eve = Eve::honest().await;
    alice
        .ok(&[
            "mcp",
            "federate",
            "add",
            &eve.did().to_string(),
            eve.base_url(),
        ])
        .await;
    alice.peer_becomes(eve.did(), "healthy", SOON).await;
    let accepted = alice.log(eve.did()).await;
    assert_eq!(accepted.size, eve.size(), "alice has eve's honest log");
    (alice, eve, accepted)
}

/// Refreshes, and proves what has to hold of every refusal.
async fn refuses(alice: &Node, eve: &Eve, accepted: &Walk, state: &str, code: &str, words: &str) {
    let did = eve.did().to_string();
    let refresh = alice.cli(&["mcp", "federate", "refresh", &did]).await;
    assert_eq!(
        refresh.status,
        Some(1),
        "a refused pull fails the refresh: {}{}",
        refresh.stdout,
        refresh.stderr
    );
    let report = &refresh.json["peers"][0];
    assert_eq!(
        (&report["did"], &report["status"]),
        (&Value::from(did), &"failed".into()),
        "{report}"
    );
    assert_eq!(report["state"], state, "{report}");
    assert!(
        report["error"].to_string().contains(code),
        "the error carries {code}: {report}"
    );

    let status = alice.ok(&["status"]).await;
    let peer = &status["peers"][0];
    assert_eq!(peer["state"], state, "{peer}");
    let reason = peer["reason"].to_string();
    assert!(
        reason.contains(words),
        "the reason says {words:?}: {reason}"
    );
    for said in ["remedy", "since", "next_try"] {
        assert!(
            peer[said].as_str().is_some_and(|text| !text.is_empty()),
            "hn status says {said}: {peer}"
        );
    }
    stands(alice, eve, accepted).await;
}

/// What was accepted is served byte for byte, and the node is well.
async fn stands(alice: &Node, eve: &Eve, accepted: &Walk) {
    let now = alice.log(eve.did()).await;
    assert_eq!(
        now.lines, accepted.lines,
        "what was accepted stays byte for byte"
    );
    assert_eq!(
        alice.get("/healthz").await.status(),
        200,
        "the node serves on"
    );
}

/// Eve tells the truth again, and more of it.
async fn heals(alice: &Node, eve: &mut Eve) {
    eve.repent();
    alice
        .ok(&["mcp", "federate", "refresh", &eve.did().to_string()])
        .await;
    alice.peer_becomes(eve.did(), "healthy", SOON).await;
    assert_eq!(
        alice.log(eve.did()).await.size,
        eve.size(),
        "the honest log goes on where it stopped"
    );
}

async fn a_lie_is_refused(lie: Lie) {
    let (alice, mut eve, accepted) = alice_follows_eve().await;
    let (code, words) = lie.refused_as();
    eve.lie(lie);
    if code == "fork" {
        // Of this one she has left proof: no truth told later undoes it (`forks` is about the rest).
        refuses(&alice, &eve, &accepted, "forked", code, words).await;
        eve.repent();
        return refuses(&alice, &eve, &accepted, "forked", code, words).await;
    }
    refuses(&alice, &eve, &accepted, "stale", code, words).await;
    heals(&alice, &mut eve).await;
}

async fn a_manner_is_refused(manner: Manner, state: &str, code: &str, words: &str) {
    let (alice, mut eve, accepted) = alice_follows_eve().await;
    eve.behave(manner);
    tokio::time::timeout(
        PATIENCE,
        refuses(&alice, &eve, &accepted, state, code, words),
    )
    .await
    .expect("alice gives up in time");
    heals(&alice, &mut eve).await;
}

macro_rules! lies {
    ($($sentence:ident => $($lie:expr),+;)+) => {$(
        #[tokio::test]
        async fn $sentence() {
            $(a_lie_is_refused($lie).await;)+
        }
    )+};
}

lies! {
    a_wrong_signature_is_refused => Lie::WrongSignature;
    a_right_signature_of_another_did_is_refused => Lie::SignatureOfAnother;
    a_document_of_another_did_is_refused => Lie::SliceOfAnother, Lie::PresenceOfAnother;
    an_entry_altered_after_signing_is_refused => Lie::AlteredEntry;
    an_entry_that_the_root_does_not_cover_is_refused => Lie::EntryBesideTheRoot;
    entries_in_another_order_are_refused => Lie::AlteredOrder;
    an_altered_merkle_root_is_refused => Lie::AlteredMerkleRoot;
    an_altered_log_root_is_refused => Lie::AlteredLogRoot;
    an_altered_cursor_is_refused => Lie::AlteredCursor, Lie::AlteredNextCursor, Lie::AlteredLogSize;
    an_altered_prev_is_refused => Lie::AlteredPrev, Lie::MissingPrev;
    a_skipped_seq_is_refused => Lie::SkippedSeq, Lie::SkippedSlice;
    a_repeated_seq_is_refused => Lie::RepeatedSeq;
    a_rewritten_slice_is_refused => Lie::RewrittenSlice;
    a_lower_sequence_is_refused => Lie::LowerSequence;
    a_publisher_from_an_old_copy_is_refused => Lie::OldCopy;
    a_shrunken_log_is_refused => Lie::SmallerLog;
    two_presences_of_one_sequence_are_refused => Lie::SameSequence;
    a_presence_that_does_not_bind_the_log_is_refused => Lie::UnboundPresence, Lie::PresenceOfAnotherRoot;
    a_slice_that_names_an_unknown_presence_is_refused => Lie::UnboundSlice;
    a_presence_or_slice_from_the_future_is_refused => Lie::PresenceAhead, Lie::SliceAhead;
    an_expired_presence_of_the_publisher_itself_is_refused => Lie::ExpiredPresence;
    a_head_without_a_presence_is_refused => Lie::NoPresence;
    a_slice_of_another_epoch_is_refused => Lie::OtherEpoch;
    a_path_that_climbs_is_refused => Lie::Path("../x"), Lie::Path("a/../b");
    an_absolute_path_is_refused => Lie::Path("/abs");
    a_path_with_a_backslash_or_a_nul_is_refused => Lie::Path("a\\b"), Lie::Path("a\0b");
    an_empty_path_is_refused => Lie::Path("");
    duplicate_keys_are_refused => Lie::DuplicateKey;
    nan_is_refused => Lie::NotANumber;
    an_integer_over_2_to_the_53_is_refused => Lie::BigInteger;
    a_thousand_levels_are_refused => Lie::Depth;
    invalid_utf8_is_refused => Lie::InvalidUtf8;
    what_is_no_json_is_refused => Lie::NotJson;
    a_document_of_an_unknown_type_is_refused => Lie::WrongType;
    a_slice_over_its_limits_is_refused => Lie::TooManyEntries, Lie::LargeSlice;
}

#[tokio::test]
async fn a_body_of_100_mib_is_not_read_to_its_end() {
    for announced in [true, false] {
        let (alice, mut eve, accepted) = alice_follows_eve().await;
        eve.behave(Manner::large(announced));
        refuses(
            &alice,
            &eve,
            &accepted,
            "stale",
            "answer_too_large",
            "longer than",
        )
        .await;
        assert!(
            eve.sent() < LARGE / 2,
            "alice took {} bytes of 100 MiB",
            eve.sent()
        );
        heals(&alice, &mut eve).await;
    }
}

#[tokio::test]
async fn a_gzip_bomb_is_not_unpacked() {
    a_manner_is_refused(Manner::gzip_bomb(), "stale", "unexpected_encoding", "gzip").await;
}

#[tokio::test]
async fn a_peer_that_never_answers_is_unreachable() {
    a_manner_is_refused(Manner::Silent, "unreachable", "timeout", "in time").await;
}

#[tokio::test]
async fn a_peer_that_sends_a_byte_a_second_is_unreachable() {
    let head = a_manner_is_refused(Manner::TricklingHead, "unreachable", "timeout", "in time");
    let body = a_manner_is_refused(Manner::TricklingBody, "unreachable", "timeout", "in time");
    tokio::join!(head, body);
}

#[tokio::test]
async fn a_redirect_is_not_followed_be_it_to_an_honest_node() {
    let bob = Eve::honest().await;
    a_manner_is_refused(
        Manner::Redirect(bob.base_url().to_owned()),
        "unreachable",
        "redirect",
        "redirect",
    )
    .await;
    assert_eq!(bob.requests(), [""; 0], "nobody was asked in eve's place");
}

#[tokio::test]
async fn a_lower_sequence_is_refused_after_a_restart_too() {
    let (mut alice, mut eve, accepted) = alice_follows_eve().await;
    alice.restart().await;
    eve.lie(Lie::LowerSequence);
    refuses(&alice, &eve, &accepted, "stale", "rollback", "sequence").await;
    heals(&alice, &mut eve).await;
}

#[tokio::test]
async fn a_lower_sequence_is_refused_after_the_index_was_rebuilt_from_the_files() {
    let (alice, mut eve, accepted) = alice_follows_eve().await;
    let rebuilt = alice.ok(&["mcp", "reindex"]).await;
    assert!(rebuilt["logs"].as_u64() >= Some(1), "{rebuilt}");
    eve.lie(Lie::LowerSequence);
    refuses(&alice, &eve, &accepted, "stale", "rollback", "sequence").await;
    heals(&alice, &mut eve).await;
}

#[tokio::test]
async fn a_removed_peer_that_is_added_again_is_still_held_to_its_highest_sequence() {
    let (alice, mut eve, accepted) = alice_follows_eve().await;
    let did = eve.did().to_string();
    alice.ok(&["mcp", "federate", "remove", &did]).await;
    assert!(
        alice.peer(eve.did()).await.is_null(),
        "a removed peer is not followed"
    );
    stands(&alice, &eve, &accepted).await;
    eve.lie(Lie::LowerSequence);
    alice
        .ok(&["mcp", "federate", "add", &did, eve.base_url()])
        .await;
    alice.peer_becomes(eve.did(), "stale", SOON).await;
    refuses(&alice, &eve, &accepted, "stale", "rollback", "sequence").await;
    heals(&alice, &mut eve).await;
}

#[tokio::test]
async fn an_artifact_with_another_digest_is_refused_and_not_stored() {
    let (alice, mut eve, accepted) = alice_follows_eve().await;
    let did = eve.did().to_string();
    let digest = eve.artifacts()[0].to_string();
    eve.spoil_artifacts();
    let out = alice.scratch().join("fetched");
    let out = out.to_str().unwrap();
    let fetch = alice
        .cli(&["shard", "fetch", &digest, "--from", &did, "--out", out])
        .await;
    assert_eq!(fetch.status, Some(1), "{}", fetch.stderr);
    assert!(
        !std::path::Path::new(out).exists(),
        "nothing unverified is handed out"
    );
    let code = fetch.problem()["code"].clone();
    assert!(code == "artifact_mismatch", "{}", fetch.stderr);
    assert_eq!(
        alice.get(&format!("/artifact/{digest}")).await.status(),
        404,
        "nothing unverified is served"
    );

    let mirror = alice
        .cli(&["mcp", "federate", "refresh", &did, "--mirror"])
        .await;
    assert_eq!(mirror.status, Some(1), "{}", mirror.stdout);
    assert!(
        mirror.json["peers"][0]["error"]
            .to_string()
            .contains("artifact_mismatch"),
        "{}",
        mirror.stdout
    );
    let peer = alice.peer_becomes(eve.did(), "stale", SOON).await;
    assert!(peer["remedy"].is_string(), "{peer}");
    assert_eq!(
        alice.get(&format!("/artifact/{digest}")).await.status(),
        404,
        "nothing unverified is served"
    );
    stands(&alice, &eve, &accepted).await;

    eve.repent();
    alice
        .ok(&["mcp", "federate", "refresh", &did, "--mirror"])
        .await;
    eventually(
        SOON,
        "alice mirrors the honest artifact",
        async || match alice
            .get(&format!("/artifact/{digest}"))
            .await
            .status()
            .as_u16()
        {
            200 => Ok(()),
            other => Err(format!("it is answered {other}")),
        },
    )
    .await;
}

#[tokio::test]
async fn a_peer_that_lies_from_the_first_day_is_stale_and_nothing_of_it_is_kept() {
    let alice = Node::started("alice").await;
    let mut eve = Eve::honest().await;
    eve.lie(Lie::WrongSignature);
    let add = alice
        .cli(&[
            "mcp",
            "federate",
            "add",
            &eve.did().to_string(),
            eve.base_url(),
        ])
        .await;
    assert_eq!(
        add.status,
        Some(0),
        "adding succeeds whatever the peer does: {}",
        add.stderr
    );
    alice.peer_becomes(eve.did(), "stale", SOON).await;
    let answer = alice
        .get(&format!("/federate/index?publisher={}", eve.did()))
        .await;
    assert_eq!(
        answer.status(),
        404,
        "a log of which nothing verified is not held"
    );
    heals(&alice, &mut eve).await;
}

#[tokio::test]
async fn a_node_that_is_not_who_it_is_said_to_be_is_refused() {
    let alice = Node::started("alice").await;
    let bob = Node::started("bob").await;
    bob.publish(&[("a.txt", b"a")]).await;
    let mallory = Eve::honest().await;
    let claimed = mallory.did();
    alice
        .ok(&[
            "mcp",
            "federate",
            "add",
            &claimed.to_string(),
            &bob.base_url(),
        ])
        .await;
    let peer = alice.peer_becomes(claimed, "unreachable", SOON).await;
    assert!(
        peer["reason"].is_string() || peer["reason"].is_object(),
        "{peer}"
    );
    assert!(
        alice.walk(claimed).await.is_err(),
        "bob's log is not taken for mallory's"
    );
}

/// A publisher who serves nothing herself, with so many slices.
fn absent_author(slices: usize) -> Author {
    let mut author = Author::new("http://127.0.0.1:1");
    (0..slices).for_each(|_| author.publish());
    author
}

/// ```text
///   bob (gone) ◄──held by── eve, who forges bob's log ◄──follows── alice
/// ```
#[tokio::test]
async fn a_holder_who_forges_the_log_of_another_is_refused_and_his_log_stays() {
    let (alice, eve) = (Node::started("alice").await, Eve::honest().await);
    let mut bob = absent_author(2);
    eve.hold(&bob, None);
    let did = eve.did().to_string();
    alice
        .ok(&["mcp", "federate", "add", &did, eve.base_url()])
        .await;
    alice.peer_becomes(eve.did(), "healthy", SOON).await;
    let accepted = alice.log(bob.did()).await;
    assert_eq!(accepted.size, bob.state.size(), "eve held it honestly");
    // What only bob can have signed is not charged to eve, who may pass on what she was given.
    for (lie, charged) in [
        (Lie::WrongSignature, true),
        (Lie::SignatureOfAnother, true),
        (Lie::SliceOfAnother, true),
        (Lie::AlteredLogRoot, true),
        (Lie::Path("../x"), true),
        (Lie::SliceAhead, false),
    ] {
        let (code, _) = lie.refused_as();
        let (status, state) = if charged {
            (1, "stale")
        } else {
            (0, "healthy")
        };
        eve.hold(&bob, Some(lie));
        let refresh = alice.cli(&["mcp", "federate", "refresh", &did]).await;
        assert_eq!(refresh.status, Some(status), "{lie:?}: {}", refresh.stdout);
        let report = &refresh.json["peers"][0];
        assert_eq!(report["state"], state, "{lie:?}: {report}");
        let held = &report["held"][0];
        assert_eq!(held["did"], bob.did().to_string(), "{lie:?}: {report}");
        assert!(
            held["error"].to_string().contains(code),
            "{lie:?}: {report}"
        );
        let now = alice.log(bob.did()).await;
        assert_eq!(now.lines, accepted.lines, "{lie:?}: bob's log stays");
        assert_eq!(
            alice.log(eve.did()).await.size,
            eve.size(),
            "{lie:?}: eve's own log was honest"
        );
    }
    bob.publish();
    eve.hold(&bob, None);
    alice.ok(&["mcp", "federate", "refresh", &did]).await;
    alice.peer_becomes(eve.did(), "healthy", SOON).await;
    assert_eq!(alice.log(bob.did()).await.size, bob.state.size());
}

/// ```text
///   bob (gone) ◄──held by── eve, whose copy is old ◄──follows── alice
/// ```
#[tokio::test]
async fn a_holder_who_lags_is_no_liar_and_takes_nothing_back() {
    let (alice, eve) = (Node::started("alice").await, Eve::honest().await);
    let old = absent_author(2);
    let mut bob = old.clone();
    bob.publish();
    eve.hold(&bob, None);
    let did = eve.did().to_string();
    alice
        .ok(&["mcp", "federate", "add", &did, eve.base_url()])
        .await;
    alice.peer_becomes(eve.did(), "healthy", SOON).await;
    let accepted = alice.log(bob.did()).await;
    assert_eq!(accepted.size, bob.state.size());
    eve.hold(&old, None);
    alice.ok(&["mcp", "federate", "refresh", &did]).await;
    assert_eq!(
        alice.log(bob.did()).await.lines,
        accepted.lines,
        "the newer copy stays"
    );
}

/// ```text
///   bob, carol, dave ◄──held by── eve ◄──follows── alice, who takes little
/// ```
#[tokio::test]
async fn a_peer_cannot_fill_the_disk_with_the_logs_of_others() {
    let eve = Eve::honest().await;
    let did = eve.did().to_string();
    let others: Vec<Author> = (0..3).map(|_| absent_author(30)).collect();
    others.iter().for_each(|other| eve.hold(other, None));
    let sizes = async |alice: &Node| {
        alice
            .ok(&["mcp", "federate", "add", &did, eve.base_url()])
            .await;
        let report = alice.ok(&["mcp", "federate", "refresh", &did]).await["peers"][0].clone();
        let mut sizes = Vec::new();
        for other in &others {
            sizes.push(alice.walk(other.did()).await.map_or(0, |walk| walk.size));
        }
        (report["left_out"].as_array().map_or(0, Vec::len), sizes)
    };

    let mut alice = Node::new("alice").with("HN_FEDERATION__MAX_HELD_LOGS", "1");
    alice.start().await;
    let (left_out, kept) = sizes(&alice).await;
    let whole = others[0].state.size();
    assert_eq!(
        kept.iter().filter(|size| **size == whole).count(),
        1,
        "{kept:?}"
    );
    assert_eq!(
        kept.iter().filter(|size| **size == 0).count(),
        2,
        "{kept:?}"
    );
    assert_eq!(left_out, 2, "it says what was left out");

    let cap = 40_000;
    let mut alice = Node::new("alice")
        .with("HN_FEDERATION__MAX_HELD_BYTES", &cap.to_string())
        .with("HN_FEDERATION__PAGE_SLICES", "1");
    alice.start().await;
    let (left_out, kept) = sizes(&alice).await;
    assert!(left_out > 0, "it says what was left out");
    assert!(
        kept.iter().sum::<u64>() > 0,
        "something within the cap is kept: {kept:?}"
    );
    let bytes: u64 = others
        .iter()
        .map(|other| journal_bytes(&alice, other))
        .sum();
    assert!(
        bytes <= cap,
        "{bytes} bytes of others are kept where {cap} may be"
    );
}

/// Bytes of the journals that a node keeps of somebody's log.
fn journal_bytes(node: &Node, publisher: &Author) -> u64 {
    let folder = node
        .home()
        .join("cache/federation")
        .join(publisher.did().to_string());
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files = files.filter(|file| file.path().is_file());
    files.map(|file| file.metadata().unwrap().len()).sum()
}
