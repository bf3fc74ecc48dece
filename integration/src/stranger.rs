//! A publisher that somebody else wrote: `independent/publisher.py`, made from `spec/` alone. It is told on its stdin what
//! to serve, and answers on its stdout.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use hn_protocol::did::Did;
use serde_json::Value;

/// For a command to be answered: Python starts in a second, also where tests share two cores.
const ANSWER: Duration = Duration::from_secs(60);

/// The Python with the libraries: `HN_PYTHON`, come what may, else the environment that `system-tests.sh` makes, else
/// `python3` if it has them. `None`, saying so, where there is none.
pub fn python() -> Option<PathBuf> {
    python_with("import rfc8785, cryptography, blake3, base58")
}

/// [`python`] for another line of imports.
pub fn python_with(imports: &str) -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("HN_PYTHON") {
        return Some(PathBuf::from(named));
    }
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let made = PathBuf::from(root).join("target/system-tests/venv/bin/python");
    let found = [made, PathBuf::from("python3")].into_iter().find(|python| {
        let mut probe = Command::new(python);
        probe.args(["-c", imports]);
        probe.output().is_ok_and(|output| output.status.success())
    });
    if found.is_none() {
        println!("no Python that can `{imports}`; integration/system-tests.sh runs this with one");
    }
    found
}

/// A running `publisher.py`. Dropped, it is gone.
pub struct Stranger {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
    did: Did,
    doors: Vec<String>,
}

impl Stranger {
    /// Starts it with so many doors: ports at which it can say different things.
    pub fn start(python: &Path, doors: usize) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/independent/publisher.py");
        let mut child = Command::new(python)
            .args(["-B", script, &doors.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python can be started");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let orders = child.stdin.take().expect("stdin is piped");
        let (said, answers) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The test is over when nobody listens.
                let _ = said.send(line);
            }
        });
        let ready = answer(&answers, "start");
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        Self {
            did: text(&ready["did"]).parse().expect("a did:hn"),
            doors: ready["doors"]
                .as_array()
                .expect("doors")
                .iter()
                .map(text)
                .collect(),
            child,
            orders,
            answers,
        }
    }

    /// Who it is.
    pub fn did(&self) -> Did {
        self.did
    }

    /// The base URL of a door.
    pub fn door(&self, door: usize) -> &str {
        &self.doors[door]
    }

    /// Gives an order (`publisher.py` lists them) and its answer.
    pub fn order(&mut self, order: &str) -> Value {
        writeln!(self.orders, "{order}").expect("publisher.py takes orders");
        answer(&self.answers, order)
    }
}

fn answer(answers: &Receiver<String>, order: &str) -> Value {
    let line = answers
        .recv_timeout(ANSWER)
        .unwrap_or_else(|e| panic!("publisher.py does not answer {order}: {e}"));
    serde_json::from_str(&line).expect("publisher.py answers in JSON")
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
