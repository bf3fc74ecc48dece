//! Fetches artifacts: for mirrors, and one at a time for whoever asks.
//!
//! An artifact is hashed while it streams and is kept only when its digest is the one that was asked for; it
//! may not be longer than the log says. Many are made durable together.
//!
//! How far a log is mirrored from a holder is kept durably ([`MirrorMark`]): a run looks at what is new, and now and
//! then at what was missing.

mod mark;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use actix::{Actor, Context, Handler, Message, ResponseFuture, Supervised};
use futures_util::StreamExt;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::document::Slice;
use hn_protocol::federation::Reason;
use hn_protocol::sign::Signed;
use hn_protocol::time::Timestamp;
use serde::Serialize;
use tracing::warn;
use url::Url;

use self::mark::MirrorMark;
use crate::artifacts::ArtifactShelf;
use crate::catalog::{Catalog, LogView};
use crate::failpoint;
use crate::fetch::{Fetch, FetchError, Trust};
use crate::metrics::Metrics;
use crate::pull::route;
use crate::store::{Batch, Store, Tree};
use crate::vault::{ArtifactStore, Staged};

/// Artifacts fetched at the same time from one peer.
const CONCURRENCY: usize = 4;
/// Artifacts made durable by one group commit.
const COMMIT_SIZE: usize = 64;
/// The largest artifact that is fetched for somebody who knows nothing but its digest.
const MAX_UNKNOWN_SIZE: u64 = 64 << 30;

/// Fetches the artifacts of a held log that are not here yet: those of slices that are new, and of the missing ones
/// those that are due again. Answers when all are durable, or what is missing.
#[derive(Message)]
#[rtype(result = "Result<MirrorReport, MirrorError>")]
pub struct MirrorLog {
    /// Whose log.
    pub publisher: Did,
    /// From whom.
    pub holder: Did,
    /// From where.
    pub base: Url,
    /// Who wrote that URL.
    pub trust: Trust,
    /// Bytes that may be kept of this log from this holder, those of earlier runs included.
    pub budget: u64,
    /// Whether what was missing a moment ago is asked for again.
    pub again: bool,
    /// The time.
    pub now: Timestamp,
}

/// Fetches one artifact from one of `sources`, into a temporary file.
#[derive(Message)]
#[rtype(result = "Result<Staged, MirrorError>")]
pub struct FetchArtifact {
    /// Which.
    pub digest: Digest,
    /// From where, in this order.
    pub sources: Vec<(Url, Trust)>,
}

/// What a mirror run did.
#[derive(Debug, Clone, Default, Serialize, PartialEq, Eq)]
pub struct MirrorReport {
    /// Artifacts fetched and verified.
    pub artifacts: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Artifacts that the peer does not have, or that did not verify; those of earlier runs included.
    pub missing: u64,
    /// One of those reasons, a lie before an absence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Reason>,
    /// Whether artifacts are left out because `federation.max_held_bytes` is used up.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub left_out: bool,
    /// Bytes kept of this log from this holder, by this run and every earlier one.
    #[serde(skip)]
    pub kept: u64,
}

impl MirrorReport {
    /// Both together.
    pub fn add(&mut self, other: Self) {
        self.artifacts += other.artifacts;
        self.bytes += other.bytes;
        self.missing += other.missing;
        self.error = self.error.take().or(other.error);
        self.left_out |= other.left_out;
        self.kept += other.kept;
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
            Self::Digest { .. } | Self::Size(_) | Self::Fetch(FetchError::Encoding(_))
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

/// What a download needs.
#[derive(Clone)]
struct Worker {
    fetch: Fetch,
    catalog: Catalog,
    shelf: ArtifactShelf,
    store: Store,
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
        metrics: Metrics,
    ) -> Self {
        Self {
            worker: Worker {
                fetch,
                catalog,
                shelf,
                store,
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
        let key = mark::key(&job.publisher, &job.holder);
        let mark: Option<MirrorMark> =
            self.store.get(Tree::Meta, &key).map_err(io::Error::other)?;
        let mut run = Run {
            target: self.shelf.mirrored(&job.publisher),
            worker: self,
            job,
            key,
            mark: mark.unwrap_or_default(),
            report: MirrorReport::default(),
        };
        let outcome = run.run(view).await;
        // What is durable is remembered, however the run ended.
        run.save().await?;
        outcome?;
        run.report.missing = run.mark.missing();
        run.report.error = run.mark.reason().or(run.report.error);
        run.report.kept = run.mark.kept();
        Ok(run.report)
    }

    /// Streams one artifact into a temporary file. Errors: no answer, another digest, another length.
    async fn download(
        &self,
        target: &ArtifactStore,
        base: &Url,
        trust: Trust,
        digest: &Digest,
        size: Option<u64>,
    ) -> Result<Staged, MirrorError> {
        let url = route(base, &["artifact", &digest.to_string()]);
        let limit = size.unwrap_or(MAX_UNKNOWN_SIZE);
        let mut body = self.fetch.open(&url, trust, None).await?;
        if body.announced().is_some_and(|announced| announced > limit) {
            return Err(MirrorError::Size(limit));
        }
        let target = target.clone();
        let mut staging = blocking(move || target.stage(limit)).await?;
        let mut received = 0;
        while let Some(chunk) = body.chunk().await? {
            received += chunk.len() as u64;
            if received > limit {
                return Err(MirrorError::Size(limit));
            }
            staging = blocking(move || {
                io::Write::write_all(&mut staging, &chunk)?;
                Ok(staging)
            })
            .await?;
        }
        let staged = staging.finish();
        if staged.digest() != *digest {
            return Err(MirrorError::Digest {
                wanted: *digest,
                got: staged.digest(),
            });
        }
        Ok(staged)
    }

    async fn fetch_one(self, job: FetchArtifact) -> Result<Staged, MirrorError> {
        let mut first = None;
        let target = self.shelf.own().clone();
        for (base, trust) in &job.sources {
            match self
                .download(&target, base, *trust, &job.digest, None)
                .await
            {
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

/// One log from one holder.
struct Run {
    worker: Worker,
    job: MirrorLog,
    target: ArtifactStore,
    key: Vec<u8>,
    mark: MirrorMark,
    report: MirrorReport,
}

impl Run {
    async fn run(&mut self, view: Arc<LogView>) -> Result<(), MirrorError> {
        let missing = self.mark.due(self.job.now, self.job.again);
        if !self.fetch(missing).await? {
            return Ok(());
        }
        while self.mark.next() < view.state.size() && !self.mark.is_full() {
            let Some((slice, after)) = self.slice(&view).await? else {
                break;
            };
            let entries = slice.entries.iter();
            let wanted = entries
                .filter(|entry| !self.mark.misses(&entry.digest))
                .map(|entry| (entry.digest, entry.size))
                .collect();
            if !self.fetch(wanted).await? {
                break;
            }
            self.mark.advance(after);
            self.save().await?;
        }
        Ok(())
    }

    /// The slice at the mark, with the cursor after it.
    async fn slice(
        &self,
        view: &Arc<LogView>,
    ) -> Result<Option<(Signed<Slice>, u64)>, MirrorError> {
        let (catalog, view) = (self.worker.catalog.clone(), Arc::clone(view));
        let next = self.mark.next();
        blocking(move || {
            let record = catalog.slices(&view, next).next().transpose();
            let Some(record) = record.map_err(io::Error::other)? else {
                return Ok(None);
            };
            let line = view.reader.read(record.span)?;
            // It was verified before it was stored; what the disk gives back is verified again.
            let slice = Signed::<Slice>::verify(line.into()).map_err(io::Error::other)?;
            Ok(Some((slice, record.next_cursor)))
        })
        .await
    }

    /// Fetches those of `wanted` that are not here. False when it has to stop before the end: the budget is used up,
    /// too much is missing to remember, or the holder is gone.
    async fn fetch(&mut self, wanted: Vec<(Digest, u64)>) -> Result<bool, MirrorError> {
        let shelf = self.worker.shelf.clone();
        let (held, wanted) = blocking(move || {
            let (mut held, mut absent) = (Vec::new(), Vec::new());
            for (digest, size) in wanted {
                if shelf.contains(&digest)? {
                    held.push(digest);
                } else {
                    absent.push((digest, size));
                }
            }
            Ok((held, absent))
        })
        .await?;
        held.iter().for_each(|digest| self.mark.found(digest, 0));
        let mut left = self.job.budget.saturating_sub(self.mark.kept());
        let mut affordable = Vec::new();
        for (digest, size) in wanted {
            match left.checked_sub(size) {
                Some(after) => left = after,
                None => {
                    self.report.left_out = true;
                    break;
                }
            }
            affordable.push((digest, size));
        }
        let from = (self.job.base.clone(), self.job.trust);
        let to = (self.worker.clone(), self.target.clone());
        let downloads =
            futures_util::stream::iter(affordable.into_iter().map(move |(digest, size)| {
                let ((worker, target), (base, trust)) = (to.clone(), from.clone());
                async move {
                    let outcome = worker
                        .download(&target, &base, trust, &digest, Some(size))
                        .await;
                    (digest, size, outcome)
                }
            }));
        let mut batches = downloads
            .buffer_unordered(CONCURRENCY)
            .ready_chunks(COMMIT_SIZE);
        let mut goes_on = true;
        while let Some(batch) = batches.next().await {
            let mut staged = Vec::with_capacity(batch.len());
            let mut stop = None;
            for (digest, size, outcome) in batch {
                match outcome {
                    Ok(artifact) => staged.push(artifact),
                    Err(error) if error.is_local() => stop = Some(error),
                    // Who is gone lacks nothing: the next run goes on here.
                    Err(MirrorError::Fetch(error @ FetchError::Connect(_))) => {
                        self.report.error = Some(MirrorError::Fetch(error).reason());
                        goes_on = false;
                    }
                    Err(error) => goes_on &= self.mark.missed(digest, size, &error, self.job.now),
                }
            }
            self.keep(staged).await?;
            if let Some(error) = stop {
                return Err(error);
            }
            if !goes_on {
                break;
            }
        }
        Ok(goes_on && !self.report.left_out)
    }

    async fn keep(&mut self, staged: Vec<Staged>) -> Result<(), MirrorError> {
        let kept: Vec<(Digest, u64)> = staged.iter().map(|s| (s.digest(), s.size())).collect();
        let count = kept.len() as u64;
        let bytes: u64 = kept.iter().map(|(_, size)| size).sum();
        let (shelf, publisher) = (self.worker.shelf.clone(), self.job.publisher);
        blocking(move || shelf.keep(&publisher, staged)).await?;
        for (digest, size) in &kept {
            self.mark.found(digest, *size);
        }
        self.report.artifacts += count;
        self.report.bytes += bytes;
        self.worker.metrics.artifacts_mirrored(count, bytes);
        Ok(())
    }

    /// Keeps the mark, if it is another one than the Store has.
    async fn save(&mut self) -> Result<(), MirrorError> {
        if !self.mark.take_changed() {
            return Ok(());
        }
        let mut batch = Batch::default();
        batch
            .put(Tree::Meta, &self.key, &self.mark)
            .map_err(io::Error::other)?;
        let store = self.worker.store.clone();
        blocking(move || store.apply(batch).map_err(io::Error::other)).await
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
