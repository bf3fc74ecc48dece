//! Fetches artifacts: for mirrors, and one at a time for whoever asks.
//!
//! An artifact is hashed while it streams and is kept only when its digest is the one that was asked for, and its length
//! the one that the log says. It may come from any holder: the bytes prove themselves. Small ones come many in one answer
//! and are made durable together; the transfer of a large one goes on where it broke off.
//!
//! How far a log is mirrored in the name of a peer is kept durably ([`MirrorMark`]): a run looks at what is new, and now
//! and then at what was missing.
//!
//! | part | idea |
//! |---|---|
//! | `run` | one log: what is missing, within which bounds, from whom |
//! | `batch` | many small artifacts in one answer |
//! | `download` | one artifact, resumed |
//! | `mark` | what is remembered between runs |

mod batch;
mod download;
mod mark;
mod run;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use actix::{Actor, Context, Handler, Message, ResponseFuture, Supervised};
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::federation::Reason;
use hn_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::warn;
use url::Url;

use self::download::Downloads;
use self::mark::MirrorMark;
use self::run::Run;
use crate::artifacts::ArtifactShelf;
use crate::catalog::Catalog;
use crate::failpoint;
use crate::fetch::{Fetch, FetchError, Trust};
use crate::metrics::Metrics;
use crate::store::{Store, Tree};
use crate::vault::Staged;

/// Fetches the artifacts of a held log that are not here yet, or asks whether they can be had: those of slices that are
/// new, and of the missing ones those that are due again. Answers when all are durable, or what is missing.
#[derive(Message)]
#[rtype(result = "Result<MirrorReport, MirrorError>")]
pub struct MirrorLog {
    /// Whose log.
    pub publisher: Did,
    /// In whose name: the peer through which the log is followed.
    pub peer: Did,
    /// From whom, in this order.
    pub holders: Vec<Holder>,
    /// Whether the artifacts are wanted, or only whether they are there.
    pub work: Work,
    /// Bytes that may be kept of this log for this peer, those of earlier runs included.
    pub budget: u64,
    /// Whether what was missing a moment ago is asked for again.
    pub again: bool,
    /// The time.
    pub now: Timestamp,
}

/// Somebody who says that he holds a log, and so its artifacts.
#[derive(Debug, Clone)]
pub struct Holder {
    /// Who.
    pub did: Did,
    /// Where.
    pub base: Url,
    /// Who wrote that URL.
    pub trust: Trust,
}

/// What is done about the artifacts of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// They are fetched and kept.
    Keep,
    /// A few of them are asked for with HEAD.
    Sample,
    /// All of them are.
    Check,
}

/// What keeps artifacts out, though they could be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Limit {
    /// `storage.publisher_quota`.
    #[serde(rename = "storage.publisher_quota")]
    Publisher,
    /// `storage.mirror_quota`.
    #[serde(rename = "storage.mirror_quota")]
    Mirror,
    /// `federation.max_held_bytes`.
    #[serde(rename = "federation.max_held_bytes")]
    Held,
}

/// How much may be mirrored; 0 is no limit.
#[derive(Debug, Clone, Copy)]
pub struct MirrorLimits {
    /// Bytes of one publisher.
    pub publisher_quota: u64,
    /// Bytes of all together.
    pub mirror_quota: u64,
}

/// Whether what a log announces can be had, as far as somebody looked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Availability {
    /// Entries of the logs.
    pub announced: u64,
    /// Entries whose artifact was looked for.
    pub looked: u64,
    /// Of those, how many were here already.
    pub held: u64,
    /// Artifacts that no holder gave.
    pub missing: u64,
    /// A few of those.
    pub named: Vec<Digest>,
}

impl Availability {
    fn add(&mut self, other: Self) {
        self.announced += other.announced;
        self.looked += other.looked;
        self.held += other.held;
        self.missing += other.missing;
        let room = mark::MAX_NAMED.saturating_sub(self.named.len());
        self.named.extend(other.named.into_iter().take(room));
    }
}

/// What is left out of the mirror of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Why.
    pub limit: Limit,
    /// From this entry on.
    pub from: u64,
    /// How many entries are held of the log behind it.
    pub entries: u64,
}

/// What keeps the rest of a log out of the mirror, in the name of whichever peer. Errors: the index.
pub fn left_out(store: &Store, publisher: &Did, size: u64) -> io::Result<Option<LeftOut>> {
    let prefix = mark::keys_of(publisher);
    let marks = store.scan_prefix(Tree::Meta, &prefix);
    let mut found: Option<LeftOut> = None;
    for pair in marks.map_err(io::Error::other)? {
        let mark = pair.map_err(io::Error::other)?.value::<MirrorMark>();
        // One of another shape is looked at again with the next run.
        let Some((mark, limit)) = mark.ok().and_then(|mark| mark.limit().map(|l| (mark, l))) else {
            continue;
        };
        let from = mark.next();
        if found.is_none_or(|known| known.from < from) {
            let entries = size.saturating_sub(from);
            found = Some(LeftOut {
                limit,
                from,
                entries,
            });
        }
    }
    Ok(found)
}

/// Fetches one artifact from one of `sources`, into a temporary file.
#[derive(Message)]
#[rtype(result = "Result<Staged, MirrorError>")]
pub struct FetchArtifact {
    /// Which.
    pub digest: Digest,
    /// From where, in this order.
    pub sources: Vec<Holder>,
}

/// What a mirror run did.
#[derive(Debug, Clone, Default, Serialize, PartialEq, Eq)]
pub struct MirrorReport {
    /// Artifacts fetched and verified.
    pub artifacts: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Artifacts that no holder has, or that did not verify; those of earlier runs included.
    pub missing: u64,
    /// One of those reasons, a lie before an absence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Reason>,
    /// Whether artifacts are left out because of a limit.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub left_out: bool,
    /// Which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// Bytes kept of this log for this peer, by this run and every earlier one.
    #[serde(skip)]
    pub kept: u64,
    /// Who gave false bytes, once each: in this run, or for what is missing still.
    #[serde(skip)]
    pub lies: Vec<(Did, Reason)>,
    /// What of the log can be had.
    #[serde(skip)]
    pub availability: Availability,
}

impl MirrorReport {
    /// Both together.
    pub fn add(&mut self, other: Self) {
        self.artifacts += other.artifacts;
        self.bytes += other.bytes;
        self.missing += other.missing;
        self.error = self.error.take().or(other.error);
        self.left_out |= other.left_out;
        self.limit = self.limit.or(other.limit);
        self.kept += other.kept;
        self.lies.extend(other.lies);
        self.availability.add(other.availability);
    }
}

/// Why an artifact, or a mirror, could not be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MirrorError {
    /// No source gave an answer that could be used.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The bytes are not what the digest names.
    #[error("the artifact has digest {got}, not {wanted}")]
    Digest {
        /// What was asked for.
        wanted: Digest,
        /// What came.
        got: Digest,
    },
    /// Longer than the log says.
    #[error("the artifact is longer than the {0} bytes that the log says")]
    Size(u64),
    /// What the digest names, and of another length than the log says.
    #[error("the artifact has {got} bytes, not the {announced} that the log says")]
    Length {
        /// As its entry says.
        announced: u64,
        /// As it is.
        got: u64,
    },
    /// Another part of the artifact than was asked for.
    #[error("the rest from byte {from} on was asked for, and the answer is the range {got}")]
    Range {
        /// Where the rest begins.
        from: u64,
        /// What `Content-Range` says.
        got: String,
    },
    /// An answer that is not what the route gives.
    #[error("the answer is not what the route gives: {0}")]
    Answer(String),
    /// The holder gives everything around it, and not this one.
    #[error("the holder does not have the artifact")]
    Absent,
    /// There is no peer to ask.
    #[error("no peer is known that could have it")]
    NoSource,
    /// The disk is full, or `storage.min_free` is reached.
    #[error("the disk is full: {0}")]
    Full(String),
    /// The disk or the index failed.
    #[error("the artifact cannot be stored: {0}")]
    Failed(String),
}

impl MirrorError {
    /// A stable code for reasons and problem+json.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Fetch(e) => e.code(),
            Self::Digest { .. } => "artifact_mismatch",
            Self::Size(_) => "artifact_too_long",
            Self::Length { .. } => "artifact_wrong_length",
            Self::Range { .. } => "bad_range_answer",
            Self::Answer(_) => "bad_answer",
            Self::Absent => "not_held",
            Self::NoSource => "no_source",
            Self::Full(_) => "storage_full",
            Self::Failed(_) => "local_failure",
        }
    }

    /// Whether the answer was a lie, rather than none.
    #[must_use]
    pub const fn is_lie(&self) -> bool {
        matches!(
            self,
            Self::Digest { .. }
                | Self::Size(_)
                | Self::Length { .. }
                | Self::Range { .. }
                | Self::Answer(_)
                | Self::Fetch(FetchError::Encoding(_) | FetchError::TooLarge(_))
        )
    }

    /// Whether nobody answers there now.
    const fn is_gone(&self) -> bool {
        matches!(self, Self::Fetch(FetchError::Connect(_)))
    }

    /// Whether the connection broke, or brings too little.
    const fn is_broken(&self) -> bool {
        matches!(
            self,
            Self::Fetch(FetchError::Connect(_) | FetchError::Timeout(_))
        )
    }

    const fn is_local(&self) -> bool {
        matches!(self, Self::Full(_) | Self::Failed(_))
    }

    /// As a peer's health says it.
    #[must_use]
    pub fn reason(&self) -> Reason {
        Reason {
            code: self.code().to_owned(),
            detail: self.to_string(),
        }
    }
}

impl From<io::Error> for MirrorError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full(error.to_string())
            }
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// The actor: messages in, downloads beside each other, one run a log at a time.
pub struct ArtifactMirror {
    worker: Worker,
}

/// What a run needs.
#[derive(Clone)]
struct Worker {
    downloads: Downloads,
    catalog: Catalog,
    shelf: ArtifactShelf,
    store: Store,
    limits: MirrorLimits,
    metrics: Metrics,
    /// One run a log: a second waits, then finds everything done.
    turns: Arc<Mutex<BTreeMap<Did, Arc<tokio::sync::Mutex<()>>>>>,
}

impl ArtifactMirror {
    /// Nothing is fetched before it is asked for.
    #[must_use]
    pub fn new(
        fetch: Fetch,
        catalog: Catalog,
        shelf: ArtifactShelf,
        store: Store,
        limits: MirrorLimits,
        metrics: Metrics,
    ) -> Self {
        Self {
            worker: Worker {
                downloads: Downloads::new(fetch),
                catalog,
                shelf,
                store,
                limits,
                metrics,
                turns: Arc::default(),
            },
        }
    }
}

impl Worker {
    async fn mirror(self, job: MirrorLog) -> Result<MirrorReport, MirrorError> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(job.publisher).or_default())
        };
        let _turn = turn.lock().await;
        let Some(view) = self.catalog.log(&job.publisher) else {
            return Ok(MirrorReport::default());
        };
        Run::new(self, job, view).report().await
    }

    async fn fetch_one(self, job: FetchArtifact) -> Result<Staged, MirrorError> {
        let mut first = None;
        let target = self.shelf.own().clone();
        for holder in &job.sources {
            let download = self.downloads.download(&target, holder, &job.digest, None);
            match download.await {
                Ok(staged) => return Ok(staged),
                Err(error) if error.is_local() => return Err(error),
                Err(error) => {
                    // What matters most to whoever asked: that somebody lied.
                    if first
                        .as_ref()
                        .is_none_or(|e: &MirrorError| error.is_lie() && !e.is_lie())
                    {
                        first = Some(error);
                    }
                }
            }
        }
        Err(first.unwrap_or(MirrorError::NoSource))
    }
}

impl Actor for ArtifactMirror {
    type Context = Context<Self>;
}

impl Supervised for ArtifactMirror {
    /// Turns that a panic left taken are given back.
    fn restarting(&mut self, _: &mut Self::Context) {
        self.worker.turns = Arc::default();
    }
}

impl Handler<MirrorLog> for ArtifactMirror {
    type Result = ResponseFuture<Result<MirrorReport, MirrorError>>;

    fn handle(&mut self, message: MirrorLog, _: &mut Self::Context) -> Self::Result {
        strike();
        Box::pin(self.worker.clone().mirror(message))
    }
}

impl Handler<FetchArtifact> for ArtifactMirror {
    type Result = ResponseFuture<Result<Staged, MirrorError>>;

    fn handle(&mut self, message: FetchArtifact, _: &mut Self::Context) -> Self::Result {
        strike();
        Box::pin(self.worker.clone().fetch_one(message))
    }
}

/// Runs what touches the disk where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, MirrorError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => Ok(outcome?),
        Err(error) => Err(MirrorError::Failed(error.to_string())),
    }
}

/// The failpoint at the start of each message.
fn strike() {
    if let Err(error) = failpoint::hit("actor.artifact_mirror") {
        warn!(%error, "failpoint");
    }
}
