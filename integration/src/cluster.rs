//! Nodes as a user has them: the built binary, a home in a temporary folder, real sockets.
//!
//! Each node has a loopback address of its own (`127.x.y.z`), so that it finds its port free again after a restart,
//! whatever else runs meanwhile. Background pulls ([`QUIET`]) and streams of news are off unless a test asks
//! for them, and the pulls that a start and a new peer bring are waited for ([`Node::settles`]): a refresh then means
//! exactly one pull.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hn_protocol::did::{Did, Identity, SecretSeed};
use hn_protocol::time::Timestamp;
use reqwest::{Client, Method, RequestBuilder, Response};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::binary::binary;
use crate::converge::eventually;
use crate::fault::Fault;
use crate::log::{self, Walk};
use crate::net::{client, own_address};

/// A pull interval so long that no test meets it.
pub const QUIET: &str = "900";
/// The shortest pull interval that can be configured, for tests of what happens by itself.
pub const LIVELY: &str = "1";
/// For a node to say that it is ready: it takes a tenth of a second, and tests share two cores.
const START: Duration = Duration::from_secs(30);
/// For a command to end. The slowest waits for a peer that never answers.
const COMMAND: Duration = Duration::from_secs(120);
/// For pulls under way to end. The slowest waits for a peer that never answers, and for another one after it.
const PULLS: Duration = Duration::from_secs(60);
/// For a node to end after SIGTERM (design 10), with a little room for the machine.
pub const DRAIN: Duration = Duration::from_secs(12);
/// How much of a node's stderr a failing test shows.
const TAIL: usize = 8 * 1024;

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Output {
    /// The exit code; `None` after a signal.
    pub status: Option<i32>,
    /// Stdout as JSON; null when it is none.
    pub json: Value,
    /// Stdout as text.
    pub stdout: String,
    /// Stderr as text.
    pub stderr: String,
}

impl Output {
    /// The problem object that a failed command printed last on stderr; null when there is none.
    pub fn problem(&self) -> Value {
        let last = self.stderr.lines().rev().find(|line| line.starts_with('{'));
        last.and_then(|line| serde_json::from_str(line).ok())
            .unwrap_or_default()
    }
}

/// A home, and the node that runs on it or does not.
pub struct Node {
    name: String,
    dir: TempDir,
    home: PathBuf,
    address: SocketAddr,
    env: BTreeMap<String, String>,
    args: Vec<String>,
    running: Option<Running>,
    starts: u32,
    http: Client,
    socket: Client,
}

struct Running {
    child: Child,
    ready: Value,
}

impl Node {
    /// A node with an empty home, not started.
    pub fn new(name: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("hn-")
            .tempdir()
            .expect("a temporary folder");
        let home = dir.path().join("home");
        Self::at(name, dir, home)
    }

    /// A node whose home is `home`, somewhere below `dir`.
    pub fn at(name: &str, dir: TempDir, home: PathBuf) -> Self {
        fs::create_dir_all(&home).expect("a home");
        let env = [
            ("HN_FEDERATION__INTERVAL_S", QUIET),
            ("HN_FEDERATION__WATCH", "false"),
            ("HN_FAILPOINTS", ""),
        ];
        Self {
            name: name.to_owned(),
            address: SocketAddr::from((own_address(), 0)),
            env: env
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            args: Vec::new(),
            running: None,
            starts: 0,
            http: client(None),
            socket: client(Some(&home.join("run/hn.sock"))),
            dir,
            home,
        }
    }

    /// A running node that pulls only when it is told to.
    pub async fn started(name: &str) -> Self {
        let mut node = Self::new(name);
        node.start().await;
        node
    }

    /// A running node that follows its peers by itself, as fast as can be configured.
    pub async fn lively(name: &str) -> Self {
        let mut node = Self::new(name).with("HN_FEDERATION__INTERVAL_S", LIVELY);
        node.start().await;
        node
    }

    /// Sets an environment variable of the next start and of commands.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.set(name, value);
        self
    }

    /// Sets an environment variable of the next start and of commands.
    pub fn set(&mut self, name: &str, value: &str) {
        self.env.insert(name.to_owned(), value.to_owned());
    }

    /// Takes an environment variable away from the next start and from commands.
    pub fn unset(&mut self, name: &str) {
        self.env.remove(name);
    }

    /// Adds a flag of `hn mcp serve`.
    #[must_use]
    pub fn with_flag(mut self, flag: &str) -> Self {
        self.args.push(flag.to_owned());
        self
    }

    /// Starts the node and waits until it says that it is ready and has asked its peers. On the address of the last start.
    pub async fn start(&mut self) {
        assert!(self.running.is_none(), "{} runs already", self.name);
        self.starts += 1;
        let stdout = self.output_file("out");
        let mut child = self
            .command(&["mcp", "serve", "--listen", &self.address.to_string()])
            .args(&self.args)
            .stdout(File::create(&stdout).expect("a file for stdout"))
            .stderr(File::create(self.output_file("err")).expect("a file for stderr"))
            .spawn()
            .expect("hn can be started");
        let sentence = format!("{} says MCP_READY", self.name);
        let seen = eventually(START, &sentence, async || {
            if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
                return Ok(Err(status));
            }
            let text = fs::read_to_string(&stdout).map_err(|e| e.to_string())?;
            let line = text
                .split_inclusive('\n')
                .find(|line| line.ends_with('\n') && line.starts_with("MCP_READY "));
            line.map(|line| Ok(line["MCP_READY ".len()..].to_owned()))
                .ok_or(format!("stdout is {text:?}"))
        });
        let line = match seen.await {
            Ok(line) => line,
            Err(status) => panic!("{} ended with {status}: {}", self.name, self.stderr()),
        };
        let ready: Value = serde_json::from_str(&line).expect("MCP_READY carries JSON");
        self.address = ready["listen"]
            .as_str()
            .and_then(|l| l.parse().ok())
            .expect("listen is host:port");
        self.running = Some(Running { child, ready });
        self.settles().await;
    }

    /// What MCP_READY said.
    pub fn ready(&self) -> &Value {
        &self.running().ready
    }

    fn running(&self) -> &Running {
        self.running
            .as_ref()
            .unwrap_or_else(|| panic!("{} does not run", self.name))
    }

    /// The process of the running node.
    pub fn pid(&self) -> u32 {
        self.running().child.id()
    }

    /// Ends the process as a power cut would, for it; does nothing when it does not run.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            // It may have ended by itself a moment ago.
            let _ = running.child.kill();
            running
                .child
                .wait()
                .expect("a killed child can be waited for");
        }
    }

    /// Sends SIGTERM and waits for the end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended(DRAIN).await
    }

    /// Sends SIGHUP: read the configuration and the roster again.
    pub fn reload(&self) {
        self.signal(Signal::HUP);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid())
            .ok()
            .and_then(Pid::from_raw)
            .expect("a pid");
        kill_process(pid, signal).expect("the node can be signalled");
    }

    /// Waits until the process has ended by itself.
    pub async fn ended(&mut self, deadline: Duration) -> ExitStatus {
        let name = self.name.clone();
        let running = self
            .running
            .as_mut()
            .unwrap_or_else(|| panic!("{name} does not run"));
        let status = eventually(deadline, &format!("{name} ends"), async || {
            let status = running.child.try_wait().map_err(|e| e.to_string())?;
            status.ok_or_else(|| "it still runs".to_owned())
        })
        .await;
        self.running = None;
        status
    }

    /// kill -9, and the same node again.
    pub async fn restart(&mut self) {
        self.kill();
        self.start().await;
    }

    /// `hn` with this home, JSON output and this node's environment, and nothing of ours in it.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HN_"))
        {
            command.env_remove(name);
        }
        command
            .env("HN_HOME", &self.home)
            .envs(&self.env)
            .args(["-o", "json"])
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command on this home to its end, whatever it is. A refresh would join a pull under way, which may have
    /// begun before what the test did last; so it waits for that one first.
    pub async fn cli(&self, args: &[&str]) -> Output {
        if args.starts_with(&["mcp", "federate", "refresh"]) {
            self.settles().await;
        }
        let mut command = tokio::process::Command::from(self.command(args));
        let ended = tokio::time::timeout(COMMAND, command.kill_on_drop(true).output()).await;
        let output = ended
            .unwrap_or_else(|_| panic!("hn {args:?} did not end"))
            .expect("hn can be started");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let stdout = text(output.stdout);
        Output {
            status: output.status.code(),
            json: serde_json::from_str(&stdout).unwrap_or_default(),
            stdout,
            stderr: text(output.stderr),
        }
    }

    /// Runs a command that has to succeed, and gives its JSON.
    pub async fn ok(&self, args: &[&str]) -> Value {
        let output = self.cli(args).await;
        assert_eq!(
            output.status,
            Some(0),
            "{}: hn {args:?}: {}{}",
            self.name,
            output.stdout,
            output.stderr
        );
        output.json
    }

    /// Publishes files, by their paths, through `hn shard publish --public`.
    pub async fn publish(&self, files: &[(&str, &[u8])]) -> Value {
        let output = self.try_publish(files).await;
        assert_eq!(
            output.status,
            Some(0),
            "{}: publish: {}",
            self.name,
            output.stderr
        );
        output.json
    }

    /// [`Node::publish`] that may fail.
    pub async fn try_publish(&self, files: &[(&str, &[u8])]) -> Output {
        let folder = tempfile::tempdir_in(self.dir.path()).expect("a folder to publish");
        for (path, content) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("a path below the folder")).expect("a folder");
            fs::write(path, content).expect("a file to publish");
        }
        let folder = folder.path().to_str().expect("a UTF-8 path");
        self.cli(&["shard", "publish", "--public", folder]).await
    }

    /// Puts `other` into the roster, by its URL.
    pub async fn follow(&self, other: &Node) {
        self.ok(&[
            "mcp",
            "federate",
            "add",
            &other.did().to_string(),
            &other.base_url(),
        ])
        .await;
        self.settles().await;
    }

    /// Waits until no pull runs: every peer's next try lies ahead. A node that does not answer has none, and one whose
    /// clock is set otherwise is not waited for.
    pub async fn settles(&self) {
        if self.running.is_none() {
            return;
        }
        eventually(PULLS, &format!("{} pulls no more", self.name), async || {
            let Ok(status) = self.try_admin("/admin/status").await else {
                return Ok(());
            };
            let now = log::now();
            let tries = status["peers"].as_array().into_iter().flatten();
            let due = tries
                .map(|peer| peer["next_try"].as_str().and_then(|at| at.parse().ok()))
                .any(|at: Option<Timestamp>| at.is_none_or(|at| at <= now));
            if due {
                Err(status["peers"].to_string())
            } else {
                Ok(())
            }
        })
        .await;
    }

    /// Pulls from every peer, now; every one has to succeed.
    pub async fn refresh(&self) -> Value {
        self.ok(&["mcp", "federate", "refresh"]).await
    }

    /// The DID that the home serves.
    pub fn did(&self) -> Did {
        self.ready()["did"]
            .as_str()
            .and_then(|did| did.parse().ok())
            .expect("MCP_READY names the DID")
    }

    /// The base URL of the gateway.
    pub fn base_url(&self) -> String {
        self.ready()["base_url"]
            .as_str()
            .expect("MCP_READY names the base URL")
            .to_owned()
    }

    /// Where the gateway listens, or listened last.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The key of its home, which lies there in plain.
    pub fn identity(&self) -> Identity {
        let path = self.home.join("identities/node/secret.json");
        let secret: Value =
            serde_json::from_slice(&fs::read(path).expect("a secret")).expect("JSON");
        let seed = secret["seed"].as_str().expect("a plain seed");
        let seed = URL_SAFE_NO_PAD.decode(seed).expect("base64url");
        SecretSeed::from_bytes(seed.try_into().expect("32 bytes")).identity()
    }

    /// The folder of the home.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// A folder beside the home that goes with the node.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// The node's name in tests.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A client of TCP gateways.
    pub fn http(&self) -> &Client {
        &self.http
    }

    /// GET over TCP. The answer, whatever it is.
    pub async fn get(&self, path: &str) -> Response {
        let url = format!("{}{path}", self.base_url());
        self.http
            .get(&url)
            .send()
            .await
            .unwrap_or_else(|e| panic!("{url}: {e:?}"))
    }

    /// A request over the Unix socket.
    pub fn admin(&self, method: Method, path: &str) -> RequestBuilder {
        self.socket
            .request(method, format!("http://localhost{path}"))
    }

    /// The answer to GET over the socket, as JSON. Errors: no connection, no success, no JSON.
    pub async fn try_admin(&self, path: &str) -> Result<Value, String> {
        let answer = self
            .admin(Method::GET, path)
            .send()
            .await
            .map_err(|e| format!("{path}: {e:?}"))?;
        let answer = answer.error_for_status().map_err(|e| e.to_string())?;
        answer.json().await.map_err(|e| format!("{path}: {e}"))
    }

    /// What `hn status` says, asked over the socket.
    pub async fn status(&self) -> Value {
        self.try_admin("/admin/status")
            .await
            .unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// What `hn status` says of one peer; null when it does not know it.
    pub async fn peer(&self, did: Did) -> Value {
        let status = self.status().await;
        let peers = status["peers"].as_array().expect("status has peers");
        peers
            .iter()
            .find(|peer| peer["did"] == did.to_string())
            .cloned()
            .unwrap_or_default()
    }

    /// Waits until the peer has this state, and gives what is said of it.
    pub async fn peer_becomes(&self, did: Did, state: &str, deadline: Duration) -> Value {
        eventually(
            deadline,
            &format!("{} calls {did} {state}", self.name),
            async || {
                let peer = self.peer(did).await;
                if peer["state"] == state {
                    Ok(peer)
                } else {
                    Err(peer.to_string())
                }
            },
        )
        .await
    }

    /// The log of `publisher` as this node serves it, verified from its first entry on.
    pub async fn walk(&self, publisher: Did) -> Result<Walk, String> {
        log::walk(&self.http, &self.base_url(), publisher).await
    }

    /// [`Node::walk`] of a log that has to be there.
    pub async fn log(&self, publisher: Did) -> Walk {
        self.walk(publisher)
            .await
            .unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// Waits until this node serves of `publisher` what `wanted` is: same bytes of every slice.
    pub async fn converges_on(&self, publisher: Did, wanted: &Walk, deadline: Duration) {
        let sentence = format!(
            "{} has the {} entries of {publisher}",
            self.name, wanted.size
        );
        eventually(deadline, &sentence, async || {
            let found = self.walk(publisher).await?;
            if found.slices == wanted.slices && found.root == wanted.root {
                return Ok(());
            }
            Err(format!(
                "it has {} of {} entries, root {}",
                found.size, wanted.size, found.root
            ))
        })
        .await;
    }

    /// Arms a fault in the running node.
    pub async fn arm(&self, fault: Fault) {
        let body = serde_json::json!({ fault.point(): fault.action() });
        let answer = self
            .admin(Method::POST, "/admin/failpoints")
            .json(&body)
            .send()
            .await;
        let answer = answer.unwrap_or_else(|e| panic!("{}: {e:?}", self.name));
        assert!(
            answer.status().is_success(),
            "{fault:?}: {}",
            answer.status()
        );
    }

    /// What a line of `/metrics` says; `None` when it is not there. `series` is a name with its labels.
    pub async fn metric(&self, series: &str) -> Option<f64> {
        let answer = self
            .admin(Method::GET, "/metrics")
            .send()
            .await
            .expect("/metrics answers");
        let text = answer.text().await.expect("/metrics is text");
        let line = text.lines().find_map(|line| {
            line.strip_prefix(series)?
                .strip_prefix(' ')
                .map(str::to_owned)
        })?;
        line.trim().parse().ok()
    }

    /// Everything that the last start wrote to stderr.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.output_file("err")).unwrap_or_default()
    }

    fn output_file(&self, kind: &str) -> PathBuf {
        self.dir.path().join(format!("{}.{kind}", self.starts))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() && self.starts > 0 {
            let text = self.stderr();
            let from = text.len().saturating_sub(TAIL);
            let from = (from..text.len())
                .find(|i| text.is_char_boundary(*i))
                .unwrap_or(text.len());
            println!(
                "--- {} ({}) said last:\n{}",
                self.name,
                self.address,
                &text[from..]
            );
        }
    }
}
