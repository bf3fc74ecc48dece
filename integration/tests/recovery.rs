//! What crashes, full disks and old copies leave behind is found, told apart, and mended without a hand.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hn_integration::cluster::Node;
use hn_integration::converge::{SOON, eventually};
use hn_protocol::digest::Digest;

/// The longest line that a journal takes, and then some: more than a crash can leave unfinished.
const NO_LINE: usize = 2 << 20;

fn journals(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "jsonl"))
        .collect();
    files.sort();
    files
}

fn only_journal(folder: &Path) -> PathBuf {
    let mut files = journals(folder);
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

/// ```text
///   bob: the first presence cannot be written, the first publication comes next
/// ```
#[tokio::test]
async fn a_publication_after_a_failed_first_presence_is_in_the_log() {
    let mut bob = Node::new("bob").with("HN_FAILPOINTS", "publish.journal.before_write=error@1");
    bob.start().await;
    let published = bob.publish(&[("a.txt", b"a")]).await;
    assert_eq!(published["log_size"], 1);
    assert_eq!(bob.log(bob.did()).await.size, 1);
}

/// ```text
///   alice mirrors bob ── kill -9 at once ── bob is gone for good
/// ```
#[tokio::test]
async fn what_was_mirrored_just_before_a_kill_is_still_found() {
    let (mut bob, mut alice) = (Node::started("bob").await, Node::started("alice").await);
    bob.publish(&[("a.txt", b"kept")]).await;
    alice.follow(&bob).await;
    alice.ok(&["mcp", "federate", "refresh", "--mirror"]).await;
    alice.kill();
    bob.kill();
    alice.start().await;
    let path = format!("/artifact/{}", Digest::of(b"kept"));
    eventually(SOON, "alice serves what she mirrored", async || {
        let answer = alice.get(&path).await;
        if answer.status() == 200 {
            Ok(())
        } else {
            Err(answer.status().to_string())
        }
    })
    .await;
}

/// ```text
///   carol ──► bob, dave; her copy of bob's log cannot be opened
/// ```
#[tokio::test]
async fn one_log_that_cannot_be_opened_hides_no_other_and_is_named() {
    let (bob, dave) = (Node::started("bob").await, Node::started("dave").await);
    let mut carol = Node::started("carol").await;
    for other in [&bob, &dave] {
        other.publish(&[("a.txt", b"a")]).await;
        carol.follow(other).await;
    }
    carol.publish(&[("own.txt", b"own")]).await;
    carol.refresh().await;
    carol.terminate().await;
    // Two files of one number: which of them is the log?
    let folder = carol.home().join(format!("cache/federation/{}", bob.did()));
    fs::write(folder.join("index-7.jsonl"), "").unwrap();
    fs::write(folder.join("index-07.jsonl"), "").unwrap();
    carol.start().await;
    assert_eq!(carol.log(carol.did()).await.size, 1);
    assert_eq!(carol.log(dave.did()).await.size, 1);
    let unreadable = carol.status().await["log"]["unreadable"].clone();
    assert!(
        unreadable[bob.did().to_string()].is_string(),
        "{unreadable}"
    );
    carol.publish(&[("more.txt", b"more")]).await;
}

/// ```text
///   alice's copy of bob's log comes back from an older backup; her index does not
/// ```
#[tokio::test]
async fn a_followed_log_that_lost_its_tail_is_completed_and_served_whole() {
    let (bob, mut alice) = (Node::started("bob").await, Node::started("alice").await);
    alice.follow(&bob).await;
    let folder = alice.home().join(format!("cache/federation/{}", bob.did()));
    bob.publish(&[("a.txt", b"a")]).await;
    alice.refresh().await;
    let older = fs::read(only_journal(&folder)).unwrap();
    for name in ["b.txt", "c.txt"] {
        bob.publish(&[(name, name.as_bytes())]).await;
    }
    alice.refresh().await;
    alice.terminate().await;
    fs::write(only_journal(&folder), older).unwrap();
    for _ in 0..2 {
        alice.start().await;
        alice.refresh().await;
        alice
            .converges_on(bob.did(), &bob.log(bob.did()).await, SOON)
            .await;
        alice.terminate().await;
    }
}

#[tokio::test]
async fn of_the_own_log_only_an_unfinished_last_line_is_cut_off() {
    let mut bob = Node::started("bob").await;
    bob.publish(&[("a.txt", b"a")]).await;
    let journal = only_journal(&bob.home().join("log/node"));
    bob.terminate().await;
    let whole = fs::read(&journal).unwrap();

    // What a crash in the middle of a write leaves: cut, kept beside, and all is well.
    fs::write(&journal, [whole.as_slice(), b"{\"unfinished"].concat()).unwrap();
    bob.start().await;
    bob.publish(&[("b.txt", b"b")]).await;
    bob.terminate().await;

    // More than any crash leaves: nothing is thrown away, nothing is signed on top, what verifies is served.
    let whole = fs::read(&journal).unwrap();
    let damaged = [whole.as_slice(), vec![b'x'; NO_LINE].as_slice()].concat();
    fs::write(&journal, &damaged).unwrap();
    bob.start().await;
    let refused = bob.try_publish(&[("c.txt", b"c")]).await;
    assert_eq!(refused.problem()["code"], "log_recovering");
    assert_eq!(bob.status().await["log"]["state"], "recovering");
    assert_eq!(bob.log(bob.did()).await.size, 2);
    assert_eq!(fs::read(&journal).unwrap(), damaged);

    // Mended by hand, it goes on without a restart.
    fs::write(&journal, &whole).unwrap();
    bob.ok(&["mcp", "log", "resume"]).await;
    bob.publish(&[("c.txt", b"c")]).await;
    assert_eq!(bob.status().await["log"]["state"], "ok");
}

/// ```text
///   bob ◄── alice ◄── carol
/// ```
#[tokio::test]
async fn a_log_followed_through_a_holder_has_its_publishers_time() {
    let bob = Node::started("bob").await;
    let (alice, carol) = (Node::started("alice").await, Node::started("carol").await);
    bob.publish(&[("a.txt", b"a")]).await;
    alice.follow(&bob).await;
    alice.refresh().await;
    carol.follow(&alice).await;
    carol.refresh().await;
    let folder = carol.home().join(format!("cache/federation/{}", bob.did()));
    let name = only_journal(&folder)
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    assert!(name.starts_with("index-20"), "{name}");
    let heads: serde_json::Value = carol.get("/federate/peers").await.json().await.unwrap();
    let of_bob = heads["peers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|head| head["did"] == bob.did().to_string());
    let seen = of_bob.unwrap()["last_seen"]
        .as_str()
        .unwrap()
        .parse::<hn_protocol::time::Timestamp>()
        .unwrap();
    assert!(
        hn_integration::log::now().since(seen) < Duration::from_secs(60),
        "{seen}"
    );
}

/// ```text
///   bob's journal loses its tail, or all of it: other hands, a half-restored backup
/// ```
#[tokio::test]
async fn nothing_is_signed_on_top_of_a_journal_that_is_shorter_than_what_was_published() {
    let mut bob = Node::started("bob").await;
    for name in ["a.txt", "b.txt"] {
        bob.publish(&[(name, name.as_bytes())]).await;
    }
    let journal = only_journal(&bob.home().join("log/node"));
    bob.terminate().await;
    let whole = fs::read(&journal).unwrap();
    let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    for kept in [lines.len() - 2, 0] {
        fs::write(&journal, lines[..kept].concat()).unwrap();
        // With the index, which knows better, and without it.
        for index in [true, false] {
            if !index {
                fs::remove_dir_all(bob.home().join("state")).unwrap();
            }
            bob.start().await;
            let refused = bob.try_publish(&[("c.txt", b"c")]).await;
            assert_eq!(
                refused.problem()["code"],
                "log_recovering",
                "{kept} lines, index {index}"
            );
            assert_eq!(bob.status().await["log"]["state"], "recovering");
            bob.terminate().await;
        }
    }
    fs::write(&journal, &whole).unwrap();
    bob.start().await;
    assert_eq!(bob.publish(&[("c.txt", b"c")]).await["log_size"], 3);
}

/// ```text
///   bob ◄──► alice        a byte of bob's journal changes, and his index is gone
/// ```
#[tokio::test]
async fn a_damaged_journal_is_made_whole_from_a_holder_and_goes_on() {
    let (mut bob, alice) = (Node::started("bob").await, Node::started("alice").await);
    bob.follow(&alice).await;
    for name in ["a.txt", "b.txt"] {
        bob.publish(&[(name, name.as_bytes())]).await;
    }
    alice.follow(&bob).await;
    alice.refresh().await;
    let whole = bob.log(bob.did()).await;
    bob.terminate().await;
    let journal = only_journal(&bob.home().join("log/node"));
    let mut bytes = fs::read(&journal).unwrap();
    let entries = bytes.windows(9).position(|part| part == b"\"entries\"");
    bytes[entries.unwrap() + 20] ^= 1;
    fs::write(&journal, &bytes).unwrap();
    fs::remove_dir_all(bob.home().join("state")).unwrap();
    bob.start().await;
    bob.converges_on(bob.did(), &whole, SOON).await;
    eventually(SOON, "bob may sign again", async || {
        match bob.status().await["log"].take() {
            log if log["state"] == "ok" => Ok(()),
            log => Err(log.to_string()),
        }
    })
    .await;
    assert_eq!(bob.publish(&[("c.txt", b"c")]).await["log_size"], 3);
    let aside = fs::read_dir(bob.home().join("log/node")).unwrap();
    let aside = aside
        .map(|file| file.unwrap().path())
        .find(|path| path.to_string_lossy().contains(".damaged-"));
    assert_eq!(fs::read(aside.unwrap()).unwrap(), bytes, "set aside whole");
}

/// A spoilt copy is as good as none: a peer's is fetched, or the command says so; never other bytes.
#[tokio::test]
async fn a_fetched_artifact_is_never_other_bytes_than_its_digest_names() {
    let (bob, alice) = (Node::started("bob").await, Node::started("alice").await);
    bob.publish(&[("a.txt", b"hello")]).await;
    alice.follow(&bob).await;
    alice.ok(&["mcp", "federate", "refresh", "--mirror"]).await;
    let digest = Digest::of(b"hello").to_string();
    let copy = format!("cache/federation/{}/artifacts/{digest}", bob.did());
    fs::write(alice.home().join(copy), b"HELLO").unwrap();
    let out = alice.scratch().join("fetched");
    alice
        .ok(&["shard", "fetch", &digest, "--out", out.to_str().unwrap()])
        .await;
    assert_eq!(fs::read(out).unwrap(), b"hello");
}
