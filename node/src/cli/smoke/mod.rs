//! `hn smoke m5`: proves an installation with nothing but itself. Real processes of this binary, real files, real sockets
//! on loopback, homes made for the purpose.
//!
//! ```text
//!   bob ◄──follows, mirrors── alice ◄──follows── carol (and further ones)
//!    ╳ killed                  serves bob's log and files on
//! ```

mod child;
mod proof;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use hn_protocol::digest::Digest;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::Context;
use super::output::{self, CliError, Outcome};
use child::Child;
use proof::Log;

/// How long a node may take until another has its news, on a busy machine too. Peers are asked at once or by backoff
/// of at most 4 s while they are away.
const CONVERGE: Duration = Duration::from_secs(15);
/// Between two looks at a condition that is waited for.
const LOOK: Duration = Duration::from_millis(50);
/// Names of the nodes; the first three have parts of their own, the others do what carol does.
const NAMES: [&str; 12] = [
    "alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy", "mallory",
    "niaj",
];

#[derive(Debug, Subcommand)]
pub enum Command {
    /// What milestone 5 promises
    M5(Arguments),
}

#[derive(Debug, Args)]
pub struct Arguments {
    /// Which promise
    #[arg(value_enum, default_value = "federation")]
    part: Part,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=NAMES.len() as i64), value_name = "N")]
    nodes: u8,
    /// Leave the homes of the nodes there, and say where
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Part {
    // Nodes follow, verify, mirror and stand in for each other.
    Federation,
}

/// What was proved so far, and the first thing that was not.
#[derive(Default)]
struct Report {
    proofs: Vec<Proof>,
    failed: Option<(&'static str, String)>,
}

struct Proof {
    name: &'static str,
    evidence: String,
    took: Duration,
}

/// A proof failed; which and why stands in the report.
struct Failed;

impl Report {
    /// Does the work of one proof and keeps its evidence. Errors: kept too, and nothing after it is tried.
    async fn prove<T>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<(T, String), String>>,
    ) -> Result<T, Failed> {
        let started = Instant::now();
        match work.await {
            Ok((value, evidence)) => {
                self.proofs.push(Proof {
                    name,
                    evidence,
                    took: started.elapsed(),
                });
                Ok(value)
            }
            Err(error) => {
                self.failed = Some((name, error));
                Err(Failed)
            }
        }
    }
}

/// Runs the proofs, ends every node whatever came of them, and reports.
pub async fn run(ctx: &Context, command: Command) -> Result<Outcome, CliError> {
    let Command::M5(Arguments {
        part: Part::Federation,
        nodes,
        keep,
    }) = command;
    let failed = |error: std::io::Error| {
        CliError::failed("smoke", format_args!("the homes of the nodes: {error}"))
    };
    let folder = tempfile::Builder::new()
        .prefix("hn-smoke-")
        .tempdir()
        .map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;

    let mut report = Report::default();
    let mut cluster = Vec::new();
    let interrupted = tokio::select! {
        // The report says whether it worked.
        _ = output::waiting("running real nodes", federation(&mut report, &mut cluster, folder.path(), usize::from(nodes))) => false,
        _ = terminate.recv() => true,
        _ = interrupt.recv() => true,
    };
    for node in &mut cluster {
        node.stop().await;
    }
    if interrupted && report.failed.is_none() {
        report.failed = Some(("interrupted", "a signal ended it".to_owned()));
    }
    let kept = keep.then(|| folder.keep());
    let document = json!({
        "smoke": "m5 federation",
        "ok": report.failed.is_none(),
        "nodes": cluster.iter().map(|node| json!({"name": node.name, "did": node.did, "url": node.url})).collect::<Vec<_>>(),
        "proofs": report.proofs.iter().map(|proof| json!({
            "name": proof.name, "evidence": proof.evidence, "ms": millis(proof.took),
        })).collect::<Vec<_>>(),
        "failed": report.failed.as_ref().map(|(name, error)| json!({"name": name, "error": error})),
        "homes": kept,
    });
    output::show(ctx.format, &document, |_| page(&report, kept.as_deref()))?;
    Ok(if report.failed.is_none() {
        Outcome::Done
    } else {
        Outcome::Failed
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn page(report: &Report, kept: Option<&Path>) -> String {
    let mut table = output::table(["proved", "ms", "evidence"]);
    for proof in &report.proofs {
        table.add_row([proof.name, &millis(proof.took).to_string(), &proof.evidence]);
    }
    let mut page = output::lines(&table);
    page += &match &report.failed {
        None => format!("\nall {} proofs hold\n", report.proofs.len()),
        Some((name, error)) => format!("\nFAILED  {name}: {error}\n"),
    };
    if let Some(folder) = kept {
        page += &format!("homes and logs of the nodes: {}\n", folder.display());
    }
    page
}

/// Carries out the proofs in order. `cluster` holds every node from its start on, so that the caller can end them.
async fn federation(
    report: &mut Report,
    cluster: &mut Vec<Child>,
    folder: &Path,
    count: usize,
) -> Result<(), Failed> {
    for name in NAMES.into_iter().take(count) {
        cluster.push(Child::new(name, folder));
    }
    let homes = async {
        for node in cluster.iter_mut() {
            node.run(&["id", "create", node.name, "--yes"]).await?;
            node.start("127.0.0.1:0").await?;
        }
        let pids: Vec<String> = cluster
            .iter()
            .map(|node| format!("{} {}", node.name, node.pid()))
            .collect();
        Ok(((), format!("pids {}", pids.join(", "))))
    };
    report
        .prove("nodes of their own start and accept requests", homes)
        .await?;
    let [alice, bob, followers @ ..] = cluster.as_mut_slice() else {
        return Err(Failed);
    };
    let (bob_did, bob_url) = (bob.did.clone(), bob.url.clone());

    let files = real_files();
    let shown = folder.join("published");
    let publish = async {
        write_files(&shown, &files).map_err(|error| format!("{}: {error}", shown.display()))?;
        let answer = bob
            .run(&[
                "shard",
                "publish",
                &shown.to_string_lossy(),
                "--public",
                "--tag",
                "smoke=m5",
            ])
            .await?;
        let root = digest(&answer["log_root"])?;
        let size = answer["log_size"].as_u64().unwrap_or_default();
        expect(size == files.len() as u64, || {
            format!("{} files published, log_size {size}", files.len())
        })?;
        Ok(((size, root), format!("{size} files, log_root {root}")))
    };
    let (size, root) = report
        .prove("bob publishes a folder into his signed log", publish)
        .await?;

    let follow = async {
        alice
            .run(&[
                "mcp", "federate", "add", &bob_did, &bob_url, "--mirror", "--alias", "bob",
            ])
            .await?;
        let answer = alice
            .run(&["mcp", "federate", "refresh", "bob", "--mirror"])
            .await?;
        let peer = &answer["peers"][0];
        expect(digest(&peer["log_root"])? == root, || {
            format!("alice's refresh says {peer}")
        })?;
        let have = files.values().map(|bytes| Digest::of(bytes));
        for digest in have {
            proof::artifact(&alice.url, digest).await?;
        }
        Ok((
            (),
            format!(
                "log_root verified, and alice serves his {} files",
                files.len()
            ),
        ))
    };
    report
        .prove("alice follows bob and mirrors his files", follow)
        .await?;

    let indirect = async {
        for node in followers.iter_mut() {
            node.run(&[
                "mcp", "federate", "add", &alice.did, &alice.url, "--alias", "alice",
            ])
            .await?;
            node.run(&["mcp", "federate", "refresh"]).await?;
        }
        let names: Vec<&str> = followers.iter().map(|node| node.name).collect();
        Ok((
            (),
            format!("in the roster of {}: alice alone", names.join(", ")),
        ))
    };
    report.prove("carol follows only alice", indirect).await?;

    let agree = async {
        let mut evidence = Vec::new();
        for node in [&*alice, &*bob].into_iter().chain(&*followers) {
            wait_for_root(node, &bob_did, size, root).await?;
            evidence.push(node.name);
        }
        Ok(((), format!("{} say {root}", evidence.join(", "))))
    };
    report
        .prove("every log_root of bob's log agrees", agree)
        .await?;

    let die = async {
        bob.kill().await?;
        match proof::get(&format!("{bob_url}/healthz")).await {
            Ok(_) => Err(format!("{bob_url} still answers")),
            Err(error) => Ok(((), error)),
        }
    };
    report.prove("bob is gone (SIGKILL)", die).await?;

    let carol = followers.first_mut().ok_or(Failed)?;
    let list = async {
        let log = Log::read(&carol.url, &bob_did).await?;
        expect(log.root() == root, || {
            format!("carol's copy folds to {}, bob said {root}", log.root())
        })?;
        let evidence = format!(
            "{} signed slices and {} presences, {} leaves fold to log_root",
            log.slices,
            log.presences,
            log.entries.len()
        );
        Ok((log, evidence))
    };
    let log = report
        .prove(
            "carol lists bob's index, and it verifies with his DID alone",
            list,
        )
        .await?;

    let include = async {
        let (path, length) = log.prove_inclusion(log.entries.len() / 2)?;
        Ok(((), format!("`{path}` by {length} hashes to {root}")))
    };
    report
        .prove(
            "one entry is in the log: inclusion proof against log_root",
            include,
        )
        .await?;

    let fetch = async {
        let mut bytes = 0;
        for entry in &log.entries {
            let wanted = files
                .get(entry.path.as_str())
                .ok_or_else(|| format!("nobody published `{}`", entry.path))?;
            let out = folder.join("fetched");
            carol
                .run(&[
                    "shard",
                    "fetch",
                    &entry.digest.to_string(),
                    "--out",
                    &out.to_string_lossy(),
                ])
                .await?;
            let got = std::fs::read(&out).map_err(|error| format!("{}: {error}", out.display()))?;
            expect(got == *wanted, || {
                format!("`{}` is not what bob published", entry.path)
            })?;
            bytes += got.len() as u64;
        }
        Ok((
            (),
            format!(
                "{} files, {}, byte for byte",
                log.entries.len(),
                output::bytes(bytes)
            ),
        ))
    };
    report
        .prove("carol fetches bob's files while he is gone", fetch)
        .await?;

    let late = folder.join("late.txt");
    let offline = async {
        std::fs::write(&late, "published while offline\n")
            .map_err(|error| format!("{}: {error}", late.display()))?;
        let answer = bob
            .run(&["shard", "publish", &late.to_string_lossy(), "--public"])
            .await?;
        let root = digest(&answer["log_root"])?;
        expect(answer["log_size"] == size + 1, || {
            format!("bob's log has {} entries", answer["log_size"])
        })?;
        Ok((root, format!("log_size {}, log_root {root}", size + 1)))
    };
    let root = report
        .prove("bob publishes without a running node", offline)
        .await?;

    let back = async {
        let address = bob_url.trim_start_matches("http://").to_owned();
        bob.start(&address).await?;
        let started = Instant::now();
        wait_for_root(alice, &bob_did, size + 1, root).await?;
        Ok((
            (),
            format!("{} ms after bob was ready", millis(started.elapsed())),
        ))
    };
    report
        .prove(
            "bob returns, and alice has his news without a command",
            back,
        )
        .await
}

/// Files as people have them: nested, empty, binary, with a name beyond ASCII, one larger than a page.
fn real_files() -> BTreeMap<&'static str, Vec<u8>> {
    let noise: Vec<u8> = (0u32..300_000)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    BTreeMap::from([
        ("readme.txt", b"what bob has to say\n".to_vec()),
        ("empty", Vec::new()),
        (
            "notes/2026/november.md",
            b"# November\n\n- nodes follow each other\n".to_vec(),
        ),
        (
            "notes/\u{e9}t\u{e9}.txt",
            "l'\u{e9}t\u{e9}\n".as_bytes().to_vec(),
        ),
        ("pictures/noise.bin", noise),
    ])
}

fn write_files(folder: &Path, files: &BTreeMap<&'static str, Vec<u8>>) -> std::io::Result<()> {
    for (path, bytes) in files {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(folder))?;
        std::fs::write(path, bytes)?;
    }
    Ok(())
}

/// Waits until a node serves the log at this size and root. Errors: what it serves instead.
async fn wait_for_root(
    node: &Child,
    publisher: &str,
    size: u64,
    root: Digest,
) -> Result<(), String> {
    let deadline = Instant::now() + CONVERGE;
    let root = root.to_string();
    loop {
        let held = proof::get(&format!("{}/federate/peers", node.url)).await?;
        let held: Value = serde_json::from_slice(&held)
            .map_err(|error| format!("{}/federate/peers: {error}", node.url))?;
        let log = held["peers"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|log| log["did"] == publisher)
            .cloned()
            .unwrap_or_default();
        if log["log_size"] == size && log["log_root"] == root {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!(
                "{} has {} entries with root {} after {} s, not {size} with {root}",
                node.name,
                log["log_size"],
                log["log_root"],
                CONVERGE.as_secs()
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn digest(value: &Value) -> Result<Digest, String> {
    value
        .as_str()
        .unwrap_or_default()
        .parse()
        .map_err(|_| format!("{value} is no digest"))
}

fn expect(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
