//! One home: one node at a time, a version, a disk, a configuration that is understood or refused.

use std::path::Path;
use std::process::Command;

use hn_integration::cluster::Node;
use hn_integration::converge::{SOON, eventually};
use serde_json::Value;

#[tokio::test]
async fn a_second_daemon_on_one_home_is_refused_and_the_first_serves_on() {
    let alice = Node::started("alice").await;
    let second = alice
        .cli(&["mcp", "serve", "--listen", "127.0.0.1:0"])
        .await;
    assert_eq!(second.status, Some(1), "{}", second.stderr);
    assert_eq!(second.problem()["code"], "home_locked", "{}", second.stderr);
    assert!(
        second.stderr.contains(&alice.pid().to_string()),
        "it says which process holds the home: {}",
        second.stderr
    );
    assert_eq!(alice.get("/healthz").await.status(), 200);
    alice.publish(&[("a", b"a")]).await;
}

#[tokio::test]
async fn sigterm_drains_and_ends_with_0() {
    let mut alice = Node::started("alice").await;
    alice.publish(&[("a", b"a")]).await;
    let status = alice.terminate().await;
    assert_eq!(status.code(), Some(0), "{}", alice.stderr());
    assert!(
        !alice.home().join("run/hn.sock").exists(),
        "no dead socket is left"
    );
    alice.start().await;
    assert_eq!(alice.log(alice.did()).await.size, 1);
}

/// An actor that hangs, here over a roster that never comes, keeps no node from stopping.
#[tokio::test]
async fn slow_sigterm_waits_for_no_actor_that_hangs() {
    let mut alice = Node::started("alice").await;
    let roster = alice.home().join("config/federation.toml");
    std::fs::create_dir_all(roster.parent().unwrap()).unwrap();
    let made = Command::new("mkfifo").arg(&roster).status().unwrap();
    assert!(made.success());
    let reload = alice.admin(reqwest::Method::POST, "/admin/federation/reload");
    let reload = tokio::spawn(reload.timeout(SOON).send());
    // Its mailbox is not emptied any more, once the reload has reached it: the roster is not listed either.
    eventually(SOON, "the actor hangs", async || {
        let list = alice.admin(reqwest::Method::GET, "/admin/federation/peers");
        let list = list.timeout(std::time::Duration::from_secs(1));
        match list.send().await {
            Ok(answer) => Err(answer.status().to_string()),
            Err(_) => Ok(()),
        }
    })
    .await;
    assert_eq!(alice.terminate().await.code(), Some(0), "within 10 s");
    reload.abort();
}

/// Loading may take minutes; so may waiting for the home. Neither keeps a daemon from being told to stop.
#[tokio::test]
async fn sigterm_ends_a_start_that_is_not_done() {
    use rustix::process::{Pid, Signal, kill_process};
    let mut alice = Node::started("alice").await;
    alice.terminate().await;
    let lock = std::fs::File::open(alice.home().join("run/lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut daemon = Command::new(hn_integration::binary::binary())
        .args(["mcp", "serve", "--listen", "127.0.0.1:0"])
        .env("HN_HOME", alice.home())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let listens = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
        caught >> 14 & 1 == 1
    };
    eventually(SOON, "the daemon listens to SIGTERM", async || {
        listens().then_some(()).ok_or("not yet".to_owned())
    })
    .await;
    let pid = Pid::from_raw(i32::try_from(daemon.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let status = tokio::task::spawn_blocking(move || daemon.wait().unwrap());
    let status = tokio::time::timeout(SOON, status).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}

/// A client that downloads and never reads, and one in the middle of its head, keep no node from stopping.
#[tokio::test]
async fn sigterm_waits_for_no_client_that_dawdles() {
    use tokio::io::AsyncWriteExt;
    let mut alice = Node::started("alice").await;
    let published = alice.publish(&[("large", &vec![b'x'; 8_000_000])]).await;
    let digest = published["published"][0]["digest"].as_str().unwrap();
    let request = format!(
        "GET /artifact/{digest} HTTP/1.1\r\nHost: {}\r\n\r\n",
        alice.address()
    );
    let mut clients = Vec::new();
    for sent in [request.as_str(), "GET /healthz HT"] {
        let mut client = tokio::net::TcpStream::connect(alice.address())
            .await
            .unwrap();
        client.write_all(sent.as_bytes()).await.unwrap();
        clients.push(client);
    }
    assert_eq!(alice.terminate().await.code(), Some(0), "within 10 s");
    drop(clients);
    alice.start().await;
    assert_eq!(alice.log(alice.did()).await.size, 1);
}

#[tokio::test]
async fn sighup_takes_over_what_can_be_changed_and_keeps_on_when_it_cannot_be_read() {
    let bob = Node::started("bob").await;
    let mut alice = Node::new("alice");
    alice.unset("HN_FEDERATION__INTERVAL_S");
    let file = alice.home().join("config/mcp.local.toml");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "[federation]\ninterval_s = 900\n").unwrap();
    alice.start().await;
    alice.follow(&bob).await;
    alice.peer_becomes(bob.did(), "healthy", SOON).await;

    std::fs::write(&file, "nonsense = 1\n").unwrap();
    alice.reload();
    eventually(SOON, "alice says what is wrong", async || {
        let said = alice.stderr();
        if said.contains("nonsense") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    assert_eq!(alice.get("/healthz").await.status(), 200);

    std::fs::write(&file, "[federation]\ninterval_s = 1\n").unwrap();
    alice.reload();
    bob.publish(&[("news", b"news")]).await;
    let wanted = bob.log(bob.did()).await;
    alice.converges_on(bob.did(), &wanted, SOON).await;
}

#[tokio::test]
async fn an_unknown_configuration_key_is_refused_with_its_file_and_line() {
    let alice = Node::new("alice");
    let file = alice.home().join("config/mcp.local.toml");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(
        &file,
        "listen = \"127.0.0.1:0\"\n\n[federation]\nintervall_s = 5\n",
    )
    .unwrap();
    let refused = alice.cli(&["mcp", "serve"]).await;
    assert_eq!(refused.status, Some(2), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("config/mcp.local.toml:4"),
        "{}",
        refused.stderr
    );
    assert!(
        refused.stderr.contains("federation.intervall_s"),
        "{}",
        refused.stderr
    );
    let refused = alice.cli(&["shard", "list"]).await;
    assert_eq!(
        refused.status,
        Some(2),
        "commands read it as well: {}",
        refused.stderr
    );
    std::fs::write(&file, "[federation]\ninterval_s = 5\n").unwrap();
    let mut alice = alice;
    alice.start().await;
}

#[tokio::test]
async fn an_unknown_environment_variable_is_refused_by_name() {
    let alice = Node::new("alice").with("HN_FEDERATION__INTERVALL_S", "5");
    let refused = alice
        .cli(&["mcp", "serve", "--listen", "127.0.0.1:0"])
        .await;
    assert_eq!(refused.status, Some(2), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("HN_FEDERATION__INTERVALL_S"),
        "{}",
        refused.stderr
    );
}

#[tokio::test]
async fn the_federation_profile_refuses_test_hooks() {
    for hook in ["HN_FAILPOINTS", "HN_CLOCK_OFFSET"] {
        let mut alice = Node::new("alice");
        alice.unset("HN_FAILPOINTS");
        alice.set(hook, "");
        let refused = alice
            .cli(&[
                "mcp",
                "serve",
                "--profile",
                "federation",
                "--listen",
                "127.0.0.1:0",
            ])
            .await;
        assert_eq!(refused.status, Some(2), "{hook}: {}", refused.stderr);
        assert!(refused.stderr.contains(hook), "{}", refused.stderr);
    }
}

#[tokio::test]
async fn a_home_of_a_newer_version_is_refused_and_left_alone() {
    let mut alice = Node::started("alice").await;
    alice.publish(&[("a", b"a")]).await;
    alice.terminate().await;
    let version = alice.home().join("version");
    let schema: u64 = std::fs::read_to_string(&version)
        .unwrap()
        .trim()
        .parse()
        .expect("version is a number");
    let newer = format!("{}\n", schema + 1);
    std::fs::write(&version, &newer).unwrap();
    for command in [
        vec!["mcp", "serve", "--listen", "127.0.0.1:0"],
        vec!["status"],
        vec!["shard", "list"],
        vec!["id", "create", "new"],
    ] {
        let refused = alice.cli(&command).await;
        assert_eq!(refused.status, Some(1), "{command:?}: {}", refused.stderr);
        assert_eq!(refused.problem()["code"], "home_newer", "{command:?}");
        assert!(
            refused.problem()["remedy"].is_string(),
            "{command:?} says what to do: {}",
            refused.stderr
        );
    }
    assert_eq!(
        std::fs::read_to_string(&version).unwrap(),
        newer,
        "it is not written back"
    );
    std::fs::write(&version, format!("{schema}\n")).unwrap();
    alice.start().await;
    assert_eq!(alice.log(alice.did()).await.size, 1);
}

/// A filesystem of a few MiB, unmounted when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// `None` where one may not be mounted: as another user than root, or in a container without the right.
    fn mount(at: &Path, mib: u32) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "hn-test"])
            .arg(at);
        mount
            .status()
            .is_ok_and(|status| status.success())
            .then(|| Self(at.to_owned()))
    }

    /// Takes all the space there is, and says where.
    fn fill(&self) -> std::path::PathBuf {
        use std::io::Write;
        let path = self.0.join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        for size in [1 << 16, 1 << 12, 1 << 8, 1] {
            let block = vec![0x5a; size];
            while file.write_all(&block).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(&self.0).status();
        if !done.is_ok_and(|status| status.success()) {
            println!("{} is still mounted", self.0.display());
        }
    }
}

/// A node whose home has a disk of its own. The node goes before its disk.
async fn on_a_small_disk(name: &str, mib: u32, min_free: &str) -> Option<(Node, SmallDisk)> {
    let dir = tempfile::Builder::new()
        .prefix("hn-disk-")
        .tempdir()
        .unwrap();
    let mounted = dir.path().join("disk");
    let Some(disk) = SmallDisk::mount(&mounted, mib) else {
        println!("no disk can be mounted here; the failpoints in `crash` stand for it");
        return None;
    };
    let mut node = Node::at(name, dir, mounted.join("home")).with("HN_STORAGE__MIN_FREE", min_free);
    node.start().await;
    Some((node, disk))
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_publishing_works_again_after_space_is_freed() {
    let Some((mut alice, disk)) = on_a_small_disk("alice", 32, "0").await else {
        return;
    };
    alice.publish(&[("before", b"before")]).await;
    let before = alice.log(alice.did()).await;
    let filler = disk.fill();
    for n in 0..3 {
        let refused = alice
            .try_publish(&[(&format!("full-{n}"), &[b'x'; 100_000])])
            .await;
        assert_eq!(refused.status, Some(1), "{}", refused.stderr);
        assert!(
            refused.problem()["remedy"].is_string(),
            "it says what to do: {}",
            refused.stderr
        );
    }
    assert_eq!(
        alice.get("/healthz").await.status(),
        200,
        "the node serves on"
    );
    assert_eq!(
        alice.log(alice.did()).await.slices,
        before.slices,
        "nothing is lost, and nothing half-done is shown"
    );
    std::fs::remove_file(&filler).unwrap();
    alice.publish(&[("after", b"after")]).await;
    alice.restart().await;
    let log = alice.log(alice.did()).await;
    assert_eq!(
        log.entries
            .iter()
            .map(|entry| entry.path.as_str())
            .collect::<Vec<_>>(),
        ["before", "after"]
    );
    drop(alice);
    drop(disk);
}

/// ```text
///   bob ◄──mirrors── alice, whose disk is full
/// ```
#[tokio::test]
async fn a_follower_with_a_full_disk_keeps_what_it_has_and_goes_on_when_there_is_space() {
    let Some((alice, disk)) = on_a_small_disk("alice", 32, "0").await else {
        return;
    };
    let bob = Node::started("bob").await;
    bob.publish(&[("one", b"one")]).await;
    alice.follow(&bob).await;
    alice.ok(&["mcp", "federate", "refresh", "--mirror"]).await;
    let before = alice.log(bob.did()).await;
    let filler = disk.fill();
    bob.publish(&[("two", &[b'x'; 200_000])]).await;
    let refresh = alice.cli(&["mcp", "federate", "refresh", "--mirror"]).await;
    assert_eq!(refresh.status, Some(1), "{}", refresh.stdout);
    let peer = alice.peer(bob.did()).await;
    assert!(!peer["reason"].is_null(), "hn status says why: {peer}");
    assert_ne!(peer["state"], "stale", "bob did not lie: {peer}");
    assert_eq!(
        alice.get("/healthz").await.status(),
        200,
        "the node serves on"
    );
    assert!(
        alice
            .log(bob.did())
            .await
            .slices
            .starts_with(&before.slices),
        "nothing is lost"
    );
    std::fs::remove_file(&filler).unwrap();
    alice.ok(&["mcp", "federate", "refresh", "--mirror"]).await;
    alice
        .converges_on(bob.did(), &bob.log(bob.did()).await, SOON)
        .await;
    alice.peer_becomes(bob.did(), "healthy", SOON).await;
    drop(alice);
    drop(disk);
}

#[tokio::test]
async fn a_write_that_would_leave_less_than_min_free_is_refused_before_the_disk_is_full() {
    let Some((alice, disk)) = on_a_small_disk("alice", 96, "67108864").await else {
        return;
    };
    alice.publish(&[("small", b"small")]).await;
    let refused = alice.try_publish(&[("large", &vec![b'x'; 64 << 20])]).await;
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("min_free"),
        "it names the setting: {}",
        refused.stderr
    );
    assert_eq!(alice.log(alice.did()).await.size, 1);
    alice.publish(&[("small again", b"small")]).await;
    drop(alice);
    drop(disk);
}

#[tokio::test]
async fn a_secret_under_a_passphrase_serves_only_with_it() {
    let mut alice = Node::new("alice");
    let file = alice.scratch().join("passphrase");
    std::fs::write(&file, "correct horse battery staple\n").unwrap();
    alice.set("HN_PASSPHRASE_FILE", file.to_str().unwrap());
    alice.ok(&["id", "create", "alice"]).await;
    let secret: Value = serde_json::from_slice(
        &std::fs::read(alice.home().join("identities/alice/secret.json")).unwrap(),
    )
    .unwrap();
    assert!(
        secret.to_string().contains("argon2"),
        "the secret is sealed: its members are {:?}",
        secret.as_object().unwrap().keys()
    );
    alice.start().await;
    alice.publish(&[("a", b"a")]).await;
    alice.terminate().await;
    alice.unset("HN_PASSPHRASE_FILE");
    let refused = alice
        .cli(&["mcp", "serve", "--listen", "127.0.0.1:0"])
        .await;
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    std::fs::write(&file, "wrong\n").unwrap();
    alice.set("HN_PASSPHRASE_FILE", file.to_str().unwrap());
    let refused = alice
        .cli(&["mcp", "serve", "--listen", "127.0.0.1:0"])
        .await;
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
}
