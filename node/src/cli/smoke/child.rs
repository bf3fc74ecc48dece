//! A node of the smoke test: a home, and while it runs a process of this very binary.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{self, Command};
use tokio::time::timeout;

/// How long a node may take until it accepts requests, on a slow machine.
const READY: Duration = Duration::from_secs(30);
/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(60);
/// How long a node may take to stop after SIGTERM (design 10), and a little.
const STOP: Duration = Duration::from_secs(11);
/// What is shown of a log when a node fails to start.
const TAIL: usize = 800;

/// A node with a home of its own. Dropped, its process is killed.
pub struct Child {
    /// What people call it.
    pub name: &'static str,
    /// Its DID, from the first start on.
    pub did: String,
    /// Its base URL, from the first start on.
    pub url: String,
    home: PathBuf,
    log: PathBuf,
    process: Option<process::Child>,
}

impl Child {
    /// A node that does not run yet, with its home in `folder`.
    pub fn new(name: &'static str, folder: &Path) -> Self {
        let (home, log) = (folder.join(name), folder.join(format!("{name}.log")));
        Self {
            name,
            did: String::new(),
            url: String::new(),
            home,
            log,
            process: None,
        }
    }

    /// The process id; 0 when it doesn't run.
    pub fn pid(&self) -> u32 {
        self.process
            .as_ref()
            .and_then(process::Child::id)
            .unwrap_or_default()
    }

    /// Starts the daemon and waits until it accepts requests.
    pub async fn start(&mut self, listen: &str) -> Result<(), String> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log);
        let log = log.map_err(|error| format!("{}: {error}", self.log.display()))?;
        let mut command =
            self.command(&["mcp", "serve", "--profile", "local", "--listen", listen])?;
        let mut process = command
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("{}: {error}", self.name))?;
        let stdout = process.stdout.take().ok_or("no stdout")?;
        self.process = Some(process);

        let mut lines = BufReader::new(stdout).lines();
        let ready = timeout(READY, async {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(ready) = line.strip_prefix("MCP_READY ") {
                    return serde_json::from_str::<Value>(ready).ok();
                }
            }
            None
        });
        let Ok(Some(ready)) = ready.await else {
            let said = std::fs::read_to_string(&self.log).unwrap_or_default();
            let tail: String = said
                .chars()
                .skip(said.chars().count().saturating_sub(TAIL))
                .collect();
            return Err(format!("{} did not get ready: {}", self.name, tail.trim()));
        };
        let text = |member: &str| {
            ready[member]
                .as_str()
                .map(str::to_owned)
                .ok_or(format!("MCP_READY without {member}: {ready}"))
        };
        self.did = text("did")?;
        self.url = text("base_url")?.trim_end_matches('/').to_owned();
        Ok(())
    }

    /// Runs a command on this home and gives its JSON. Errors: what it said on stderr.
    pub async fn run(&self, arguments: &[&str]) -> Result<Value, String> {
        let said = |what: &str| format!("{}: hn {}: {what}", self.name, arguments.join(" "));
        let output = self
            .command(arguments)?
            .arg("-o")
            .arg("json")
            .stdin(Stdio::null())
            .output();
        let output = timeout(COMMAND, output)
            .await
            .map_err(|_| said("no end after 60 s"))?
            .map_err(|error| said(&error.to_string()))?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            let answer = String::from_utf8_lossy(&output.stdout);
            return Err(said(&format!(
                "{}: {} {}",
                output.status,
                errors.trim(),
                answer.trim()
            )));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| said(&format!("stdout is not one JSON document: {error}")))
    }

    /// Kills the daemon as a power cut would.
    pub async fn kill(&mut self) -> Result<(), String> {
        let mut process = self
            .process
            .take()
            .ok_or_else(|| format!("{} doesn't run", self.name))?;
        process
            .kill()
            .await
            .map_err(|error| format!("{}: {error}", self.name))
    }

    /// Asks the daemon to stop, and kills it if it doesn't. Without a running daemon nothing happens.
    pub async fn stop(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        let pid = process
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        let asked = pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
        if !asked || timeout(STOP, process.wait()).await.is_err() {
            // It is gone already, or goes now.
            let _ = process.kill().await;
        }
    }

    /// This binary on this home, in an environment without settings: the caller's are for the caller's node.
    fn command(&self, arguments: &[&str]) -> Result<Command, String> {
        let binary =
            std::env::current_exe().map_err(|error| format!("this program's own file: {error}"))?;
        let mut command = Command::new(binary);
        command
            .kill_on_drop(true)
            .arg("--home")
            .arg(&self.home)
            .args(arguments);
        for (name, _) in std::env::vars_os() {
            let ours = name.to_string_lossy().starts_with("HN_") && name != "HN_LOG";
            if ours || name == "NOTIFY_SOCKET" || name == "CREDENTIALS_DIRECTORY" {
                command.env_remove(name);
            }
        }
        Ok(command)
    }
}
