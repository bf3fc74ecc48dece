//! Fetches artifacts: for mirrors, and one at a time for whoever asks.
//!
//! An artifact is hashed while it streams and is kept only when its digest is the one that was asked for; it
//! may not be longer than the log says. Many are made durable together.

use std::collections::BTreeMap;
use std::io;

use actix::{Actor, Context, Handler, Message, ResponseFuture, Supervised};
use futures_util::StreamExt;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::document::{Entry, Slice};
use hn_protocol::federation::Reason;
use hn_protocol::sign::Signed;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};
use tracing::warn;
use url::Url;

use crate::artifacts::ArtifactShelf;
use crate::catalog::Catalog;
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

/// Fetches every artifact of a held log that is not here yet. Answers when all are durable, or what is missing.
#[derive(Message)]
#[rtype(result = "Result<MirrorReport, MirrorError>")]
pub struct MirrorLog {
    /// Whose log.
    pub publisher: Did,
    /// From where.
    pub base: Url,
    /// Who wrote that URL.
    pub trust: Trust,
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
    /// Artifacts that the peer does not have, or that did not verify.
    pub missing: u64,
    /// The first of those reasons.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Reason>,
}

impl MirrorReport {
    /// Both together.
    pub fn add(&mut self, other: Self) {
        self.artifacts += other.artifacts;
        self.bytes += other.bytes;
        self.missing += other.missing;
        self.error = self.error.take().or(other.error);
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
    /// Longer or shorter than the log says.
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

    fn reason(&self) -> Reason {
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

/// How far a log is mirrored: everything before `next` is here or was never to be had.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct MirrorMark {
    next: u64,
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
        let mut report = MirrorReport::default();
        let Some(view) = self.catalog.log(&job.publisher) else {
            return Ok(report);
        };
        let key = mark_key(&job.publisher);
        let mark: Option<MirrorMark> =
            self.store.get(Tree::Meta, &key).map_err(io::Error::other)?;
        let mut next = mark.unwrap_or_default().next;
        let target = self.shelf.mirrored(&job.publisher);
        while next < view.state.size() {
            let slice = {
                let (catalog, view) = (self.catalog.clone(), Arc::clone(&view));
                blocking(move || {
                    let record = catalog
                        .slices(&view, next)
                        .next()
                        .transpose()
                        .map_err(io::Error::other)?;
                    record
                        .map(|record| Ok((view.reader.read(record.span)?, record.next_cursor)))
                        .transpose()
                })
                .await?
            };
            let Some((line, after)) = slice else { break };
            // It was verified before it was stored; what the disk gives back is verified again.
            let slice = Signed::<Slice>::verify(line.into())
                .map_err(|e| MirrorError::Failed(e.to_string()))?;
            let missing_before = report.missing;
            self.mirror_slice(&slice, &job, &target, &mut report)
                .await?;
            next = after;
            // From the first entry that could not be had on, the next run looks again.
            if report.missing == 0 && missing_before == 0 {
                let mut batch = Batch::default();
                batch
                    .put(Tree::Meta, &key, &MirrorMark { next })
                    .map_err(io::Error::other)?;
                self.store.apply(batch).map_err(io::Error::other)?;
            }
        }
        Ok(report)
    }

    async fn mirror_slice(
        &self,
        slice: &Slice,
        job: &MirrorLog,
        target: &ArtifactStore,
        report: &mut MirrorReport,
    ) -> Result<(), MirrorError> {
        let shelf = self.shelf.clone();
        let entries = slice.entries.clone();
        let wanted: Vec<Entry> = blocking(move || {
            let mut wanted = Vec::new();
            for entry in entries {
                if !shelf.contains(&entry.digest)? {
                    wanted.push(entry);
                }
            }
            Ok(wanted)
        })
        .await?;
        let downloads = futures_util::stream::iter(wanted.into_iter().map(|entry| {
            let (worker, target, base, trust) =
                (self.clone(), target.clone(), job.base.clone(), job.trust);
            async move {
                worker
                    .download(&target, &base, trust, &entry.digest, Some(entry.size))
                    .await
            }
        }));
        let mut batches = downloads
            .buffer_unordered(CONCURRENCY)
            .ready_chunks(COMMIT_SIZE);
        while let Some(batch) = batches.next().await {
            let mut staged = Vec::with_capacity(batch.len());
            let mut stop = None;
            for outcome in batch {
                match outcome {
                    Ok(artifact) => staged.push(artifact),
                    Err(error) if error.is_local() => stop = Some(error),
                    Err(error) => {
                        report.missing += 1;
                        // A lie is worth telling before an absence.
                        if report.error.is_none() || error.is_lie() {
                            report.error = Some(error.reason());
                        }
                    }
                }
            }
            let (count, bytes) = (
                staged.len() as u64,
                staged.iter().map(Staged::size).sum::<u64>(),
            );
            let (shelf, publisher) = (self.shelf.clone(), job.publisher);
            blocking(move || shelf.keep(&publisher, staged)).await?;
            report.artifacts += count;
            report.bytes += bytes;
            self.metrics.artifacts_mirrored(count, bytes);
            if let Some(error) = stop {
                return Err(error);
            }
        }
        Ok(())
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

/// Runs what touches the disk where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, MirrorError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => Ok(outcome?),
        Err(error) => Err(MirrorError::Failed(error.to_string())),
    }
}

fn mark_key(publisher: &Did) -> Vec<u8> {
    [b"mirror/".as_slice(), publisher.public_key()].concat()
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

/// The failpoint at the start of each message.
fn strike() {
    if let Err(error) = failpoint::hit("actor.artifact_mirror") {
        warn!(%error, "failpoint");
    }
}
