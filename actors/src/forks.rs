//! Which publishers signed two logs, with the evidence (design 4, `spec/fork_evidence@1.md`).
//!
//! Evidence is a file beside the log's journal, written before the log is called forked; what an operator accepted
//! afterwards is a file as well. Both are read back at the start, and memory is what is asked.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use hn_protocol::canonical;
use hn_protocol::did::{Did, Identity};
use hn_protocol::digest::Digest;
use hn_protocol::document::ForkEvidence;
use hn_protocol::federation::Reason;
use hn_protocol::log::Line;
use hn_protocol::sign::{DocumentError, Signed};
use hn_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::home::Home;
use crate::metrics::Metrics;
use crate::vault;

/// The most evidence kept of one publisher: each has up to 2 MiB, and one is as good as a hundred.
const MAX_EVIDENCE: usize = 16;
/// What an operator accepted.
const ACCEPTED_FILE: &str = "accepted.json";

/// One of the two documents of an evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ForkSide {
    /// `index@2` or `presence@2`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Its digest: what `hn mcp federate accept --head` takes.
    pub digest: Digest,
    /// The log's size that it speaks for.
    pub log_size: u64,
    /// The log's root at that size.
    pub log_root: Digest,
}

impl ForkSide {
    fn of(line: &Line) -> Option<Self> {
        match line {
            Line::Slice(slice) => Some(Self {
                kind: "index@2",
                digest: slice.digest(),
                log_size: slice.log_size,
                log_root: slice.log_root,
            }),
            Line::Presence(presence) => Some(Self {
                kind: "presence@2",
                digest: presence.digest(),
                log_size: presence.log_size,
                log_root: presence.merkle_root,
            }),
            Line::Frontier(_) => None,
        }
    }
}

/// A publisher that signed two logs, as far as we know.
#[derive(Debug, Clone, Serialize)]
pub struct Fork {
    /// Who.
    pub publisher: Did,
    /// In which of its logs.
    pub epoch: u64,
    /// Digest of the evidence.
    pub evidence: Digest,
    /// Who saw it.
    pub observer: Did,
    /// When.
    pub observed_at: Timestamp,
    /// What happened, for people.
    pub what: &'static str,
    /// The two documents.
    pub sides: Vec<ForkSide>,
    /// Whether an operator has accepted one of the two logs since.
    pub accepted: bool,
    /// The evidence's file, relative to the home.
    pub file: PathBuf,
}

impl Fork {
    fn of(evidence: &Signed<ForkEvidence>) -> Self {
        Self {
            publisher: evidence.publisher,
            epoch: evidence.epoch,
            evidence: evidence.digest(),
            observer: evidence.observer,
            observed_at: evidence.observed_at,
            what: evidence.conflict().map_or("", |how| how.sentence()),
            sides: evidence.lines().iter().filter_map(ForkSide::of).collect(),
            accepted: false,
            file: PathBuf::new(),
        }
    }

    /// As a peer's health says it.
    #[must_use]
    pub fn reason(&self) -> Reason {
        let sides: Vec<String> = self.sides.iter().map(|s| s.digest.to_string()).collect();
        Reason {
            code: "fork".to_owned(),
            detail: format!(
                "the publisher signed two logs of epoch {}: {} ({})",
                self.epoch,
                self.what,
                sides.join(" and ")
            ),
        }
    }
}

/// What an operator accepted of a forked log: the log has this root at this size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Of which epoch.
    pub epoch: u64,
    /// The accepted document.
    pub head: Digest,
    /// The size that it speaks for.
    pub log_size: u64,
    /// The root there.
    pub log_root: Digest,
    /// When.
    pub at: Timestamp,
    /// The evidence that this settles.
    pub settles: Vec<Digest>,
}

/// Why a fork could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// The documents are no conflict.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// Our own DID has ended: it testifies no more.
    #[error("this node's DID is revoked: it signs no evidence")]
    Revoked,
    /// The disk.
    #[error("the evidence cannot be kept: {0}")]
    Io(#[from] io::Error),
}

#[derive(Default)]
struct Known {
    forks: Vec<Fork>,
    accepted: Option<Accepted>,
}

impl Known {
    fn settle(&mut self) {
        let accepted = self.accepted.as_ref();
        for fork in &mut self.forks {
            fork.accepted =
                accepted.is_some_and(|accepted| accepted.settles.contains(&fork.evidence));
        }
    }

    fn open(&self) -> Option<&Fork> {
        self.forks.iter().find(|fork| !fork.accepted)
    }
}

/// Every fork known. Cloning shares it.
#[derive(Clone)]
pub struct Forks {
    inner: Arc<Inner>,
}

struct Inner {
    home: Home,
    identity: Identity,
    clock: Clock,
    catalog: Catalog,
    metrics: Metrics,
    known: RwLock<BTreeMap<Did, Known>>,
}

impl Forks {
    /// Reads back what is known. A file that does not verify is passed over, and said so.
    #[must_use]
    pub fn open(
        home: Home,
        identity: Identity,
        clock: Clock,
        catalog: Catalog,
        metrics: Metrics,
    ) -> Self {
        let mut known = BTreeMap::new();
        for publisher in home.cached_publishers().unwrap_or_default() {
            let found = read_back(&home, &publisher);
            if !found.forks.is_empty() || found.accepted.is_some() {
                known.insert(publisher, found);
            }
        }
        let forks = Self {
            inner: Arc::new(Inner {
                home,
                identity,
                clock,
                catalog,
                metrics,
                known: RwLock::new(known),
            }),
        };
        forks.count();
        forks
    }

    /// The fork for which the log of `publisher` stands still; `None` when it does not.
    #[must_use]
    pub fn of(&self, publisher: &Did) -> Option<Fork> {
        self.read(|known| known.get(publisher).and_then(Known::open).cloned())
    }

    /// What an operator accepted of the log of `publisher`.
    #[must_use]
    pub fn accepted(&self, publisher: &Did) -> Option<Accepted> {
        self.read(|known| {
            known
                .get(publisher)
                .and_then(|known| known.accepted.clone())
        })
    }

    /// Every fork, by publisher, settled ones included.
    #[must_use]
    pub fn list(&self) -> Vec<Fork> {
        self.read(|known| {
            let forks = known.values().flat_map(|known| &known.forks);
            forks.cloned().collect()
        })
    }

    /// The bytes of an evidence. Errors: the disk.
    pub fn evidence(&self, fork: &Fork) -> io::Result<Bytes> {
        Ok(std::fs::read(self.path(fork))?.into())
    }

    /// Signs and keeps evidence that `held` and `shown` contradict each other. Errors: they do not; our DID has ended; the
    /// disk.
    pub fn observe(&self, held: &Line, shown: &Line) -> Result<Fork, ForkError> {
        if self.inner.catalog.is_revoked(&self.inner.identity.did()) {
            return Err(ForkError::Revoked);
        }
        let now = self.inner.clock.now();
        let evidence = ForkEvidence::sign(held, shown, now, &self.inner.identity)?;
        Ok(self.keep(&evidence)?)
    }

    /// Keeps evidence that somebody else signed, unless as much is known already. Errors: the disk.
    pub fn adopt(&self, evidence: &Signed<ForkEvidence>) -> Result<Option<Fork>, ForkError> {
        if self.of(&evidence.publisher).is_some() || self.is_settled(evidence) {
            return Ok(None);
        }
        Ok(Some(self.keep(evidence)?))
    }

    /// Whether an operator has accepted a log of which one of the two documents is no news: both lie within what was
    /// accepted, or in an epoch before it.
    fn is_settled(&self, evidence: &Signed<ForkEvidence>) -> bool {
        let lines = evidence.lines();
        self.accepted(&evidence.publisher).is_some_and(|accepted| {
            let known = |line| accepted.covers(line) || accepted.refuses(line);
            lines.iter().all(known)
        })
    }

    /// Records what an operator accepted; the log is followed again. Errors: the disk.
    pub fn accept(&self, publisher: &Did, mut accepted: Accepted) -> io::Result<()> {
        let mut known = self
            .inner
            .known
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let entry = known.entry(*publisher).or_default();
        accepted.settles = entry.forks.iter().map(|fork| fork.evidence).collect();
        let path = self.inner.home.cache_dir(publisher).join(ACCEPTED_FILE);
        let bytes = canonical::to_vec(&accepted).map_err(io::Error::other)?;
        vault::write_atomic(&path, &bytes, vault::FILE_MODE)?;
        entry.accepted = Some(accepted);
        entry.settle();
        drop(known);
        self.inner.catalog.changed();
        self.count();
        Ok(())
    }

    fn keep(&self, evidence: &Signed<ForkEvidence>) -> io::Result<Fork> {
        let mut fork = Fork::of(evidence);
        fork.file = relative(&self.inner.home, self.path(&fork));
        let mut known = self
            .inner
            .known
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let entry = known.entry(fork.publisher).or_default();
        if let Some(open) = entry.open() {
            return Ok(open.clone());
        }
        vault::create_dirs(&self.inner.home.cache_dir(&fork.publisher))?;
        vault::write_atomic(&self.path(&fork), evidence.bytes(), vault::FILE_MODE)?;
        while entry.forks.len() >= MAX_EVIDENCE {
            let oldest = entry.forks.remove(0);
            // One that stays is read back at the next start, and does no harm.
            let _ = std::fs::remove_file(self.path(&oldest));
        }
        entry.forks.push(fork.clone());
        drop(known);
        warn!(publisher = %fork.publisher, epoch = fork.epoch, evidence = %fork.evidence, what = fork.what, "federation.fork");
        self.inner.metrics.fork_seen();
        self.inner.catalog.changed();
        self.count();
        Ok(fork)
    }

    fn path(&self, fork: &Fork) -> PathBuf {
        let name = format!("fork-{:020}-{}.json", fork.epoch, fork.evidence);
        self.inner.home.cache_dir(&fork.publisher).join(name)
    }

    fn count(&self) {
        let open = self.read(|known| {
            known
                .values()
                .filter(|known| known.open().is_some())
                .count()
        });
        self.inner.metrics.forked_logs(open);
    }

    fn read<T>(&self, look: impl FnOnce(&BTreeMap<Did, Known>) -> T) -> T {
        look(
            &self
                .inner
                .known
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

impl Accepted {
    /// Whether `line` speaks for no more than was accepted: it cannot begin a fork anew.
    #[must_use]
    pub fn covers(&self, line: &Line) -> bool {
        let size = ForkSide::of(line).map_or(0, |side| side.log_size);
        line.epoch() < self.epoch || (line.epoch() == self.epoch && size <= self.log_size)
    }

    /// Whether `line` shows another root at the accepted size: it is of the log that was not accepted.
    #[must_use]
    pub fn refuses(&self, line: &Line) -> bool {
        let crosses = match line {
            Line::Slice(slice) => slice.cursor < self.log_size && self.log_size < slice.log_size,
            Line::Presence(_) | Line::Frontier(_) => false,
        };
        let other = ForkSide::of(line)
            .is_some_and(|side| side.log_size == self.log_size && side.log_root != self.log_root);
        line.epoch() == self.epoch && (crosses || other)
    }
}

/// Where `path` stands in the home.
fn relative(home: &Home, path: PathBuf) -> PathBuf {
    path.strip_prefix(home.root())
        .map(PathBuf::from)
        .unwrap_or(path)
}

fn read_back(home: &Home, publisher: &Did) -> Known {
    let folder = home.cache_dir(publisher);
    let mut known = Known::default();
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("fork-") && name.ends_with(".json"))
        .collect();
    names.sort_unstable();
    for name in names.into_iter().take(MAX_EVIDENCE) {
        let read = std::fs::read(folder.join(&name)).map_err(|e| e.to_string());
        let read = read.and_then(|bytes| {
            Signed::<ForkEvidence>::verify(bytes.into()).map_err(|e| e.to_string())
        });
        match read {
            Ok(evidence) if evidence.publisher == *publisher => {
                let mut fork = Fork::of(&evidence);
                fork.file = relative(home, folder.join(&name));
                known.forks.push(fork);
            }
            Ok(_) => error!(%publisher, name, "an evidence stands in another publisher's folder"),
            Err(error) => error!(%publisher, name, error, "a kept evidence does not verify"),
        }
    }
    known.forks.sort_by_key(|fork| fork.observed_at);
    known.accepted = match std::fs::read(folder.join(ACCEPTED_FILE)) {
        Ok(bytes) => match canonical::from_slice(&bytes) {
            Ok(accepted) => Some(accepted),
            Err(error) => {
                error!(%publisher, %error, "what was accepted of a forked log cannot be read");
                None
            }
        },
        Err(_) => None,
    };
    known.settle();
    known
}

#[cfg(test)]
#[path = "forks_tests.rs"]
mod tests;
