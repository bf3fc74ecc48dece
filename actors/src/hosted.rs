//! Logs of publishers who have no server of their own: they hand over signed documents and artifacts, and are asleep
//! when others follow them here (`spec/http.md` W1–W6).
//!
//! A hosted log is a held log like any other: what is handed over is judged by the same rules as a page of its
//! publisher's own node, and made durable by the one writer of logs before the answer.

mod wanted;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use actix::Recipient;
use bytes::Bytes;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::document::Revocation;
use hn_protocol::log::{Line, LogState, PageContext, PageError, Source, VerifiedPage};
use hn_protocol::sign::Signed;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::wanted::Wanted;
use crate::artifact_mirror::MirrorLimits;
use crate::artifacts::{ArtifactShelf, entries_of};
use crate::catalog::{Catalog, RecentHistory};
use crate::clock::Clock;
use crate::forks::{ForkError, Forks};
use crate::index_federator::{AppendPage, Appended, FederateError};
use crate::pull::{lines, observe_fork};
use crate::revocations::{RevocationError, Revocations};
use crate::vault::{Staged, Staging};

/// The most lines of one request: each costs a signature check, all of them some 40 ms.
pub const MAX_LINES: usize = 1024;
/// How often a request is judged again because somebody else appended meanwhile.
const MAX_OVERTAKEN: usize = 16;
/// Epochs that one request begins.
const MAX_EPOCHS: usize = 4;
/// Artifacts received at the same time, from all...
const RECEIVED_AT_ONCE: usize = 32;
/// ...and from one publisher, so that none who is slow takes everybody's place.
const RECEIVED_OF_ONE: usize = 8;

/// What became of documents handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Received {
    /// Entries of the log as held here now.
    pub log_size: u64,
    /// Its root.
    #[schema(value_type = String)]
    pub log_root: Digest,
    /// Artifacts that the slices handed over name and that are not held here: to be PUT.
    #[schema(value_type = Vec<String>)]
    pub missing: Vec<Digest>,
}

/// Why something is not taken.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// This node's own log does not grow this way.
    #[error("this node's own log grows over its socket alone")]
    Own,
    /// A document that is not the caller's.
    #[error("{0}")]
    Foreign(PageError),
    /// The documents break a rule of logs; nothing of them was taken.
    #[error("{code}: {0}", code = .0.code())]
    Page(PageError),
    /// The publisher signed two logs.
    #[error("{0}")]
    Forked(String),
    /// Another log of this publisher was accepted by the operator.
    #[error("another log of this publisher was accepted here")]
    Rejected,
    /// More lines than a request may have.
    #[error("{0} lines; a request has {MAX_LINES} at most")]
    TooManyLines(usize),
    /// More than the publisher may keep here.
    #[error("{what} would take {needed} bytes of the {quota} that one publisher has here")]
    Quota {
        /// The log, or an artifact.
        what: &'static str,
        /// Bytes with it.
        needed: u64,
        /// The limit.
        quota: u64,
    },
    /// Nothing that the caller handed over names this artifact.
    #[error(
        "no slice that you handed over since this node started names {0}; POST /publish says what is missing"
    )]
    Unnamed(Digest),
    /// Other bytes, or another length.
    #[error("what came is not the artifact {digest} of {size} bytes")]
    Mismatch {
        /// What was named.
        digest: Digest,
        /// As the slice says.
        size: u64,
    },
    /// Too much at a time.
    #[error("other artifacts are being received")]
    Busy,
    /// The federator.
    #[error(transparent)]
    Federate(#[from] FederateError),
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Takes what hosted publishers hand over. Cloning shares.
#[derive(Clone)]
pub struct Hosting {
    catalog: Catalog,
    forks: Forks,
    append: Recipient<AppendPage>,
    shelf: ArtifactShelf,
    clock: Clock,
    revocations: Revocations,
    limits: HostingLimits,
    shared: Arc<Shared>,
}

/// How much one publisher may keep here. Artifacts count as mirrored ones do.
#[derive(Debug, Clone, Copy)]
pub struct HostingLimits {
    /// Bytes of a hosted log's journal.
    pub journal: u64,
    /// Bytes of artifacts.
    pub artifacts: MirrorLimits,
}

struct Shared {
    wanted: Mutex<Wanted>,
    /// Bytes of artifacts under way, by publisher, and how many.
    under_way: Mutex<BTreeMap<Did, UnderWay>>,
    places: Arc<Semaphore>,
}

#[derive(Debug, Clone, Copy, Default)]
struct UnderWay {
    artifacts: usize,
    bytes: u64,
}

/// The right to hand over one artifact.
pub struct Place {
    publisher: Did,
    digest: Digest,
    size: u64,
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// How many bytes it has.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = lock(&self.shared.under_way);
        if let Some(of) = all.get_mut(&self.publisher) {
            of.artifacts -= 1;
            of.bytes -= self.size;
            if of.artifacts == 0 {
                all.remove(&self.publisher);
            }
        }
    }
}

impl Hosting {
    /// Over what the node holds.
    #[must_use]
    pub fn new(
        catalog: Catalog,
        forks: Forks,
        append: Recipient<AppendPage>,
        shelf: ArtifactShelf,
        clock: Clock,
        revocations: Revocations,
        limits: HostingLimits,
    ) -> Self {
        Self {
            catalog,
            forks,
            append,
            shelf,
            clock,
            revocations,
            limits,
            shared: Arc::new(Shared {
                wanted: Mutex::default(),
                under_way: Mutex::default(),
                places: Arc::new(Semaphore::new(RECEIVED_AT_ONCE)),
            }),
        }
    }

    /// Bytes that a publisher keeps here: journal and artifacts. Errors: the disk.
    pub fn bytes_of(&self, publisher: &Did) -> io::Result<u64> {
        // Of a stranger nothing is looked for, and nothing remembered.
        let Some(view) = self.catalog.log(publisher) else {
            return Ok(0);
        };
        Ok(view.bytes + self.shelf.usage(publisher)?.bytes)
    }

    /// Takes NDJSON of the publisher's own signed documents, all or nothing; without a line it only says how the log
    /// stands. Durable when it returns. Errors: see [`HostError`].
    pub async fn publish(&self, publisher: Did, body: Bytes) -> Result<Received, HostError> {
        if publisher == self.catalog.own() {
            return Err(HostError::Own);
        }
        if let Some(fork) = self.forks.of(&publisher) {
            return Err(HostError::Forked(fork.reason().detail));
        }
        let shown: Vec<Bytes> = lines(&body).take(MAX_LINES + 1).collect();
        if shown.len() > MAX_LINES {
            return Err(HostError::TooManyLines(lines(&body).count()));
        }
        let shown = Arc::new(shown);
        if !shown.is_empty() {
            self.append(publisher, &shown).await?;
        }
        let (this, shown) = (self.clone(), Arc::clone(&shown));
        let missing = blocking(move || Ok(this.missing(publisher, &shown)?)).await?;
        let view = self.catalog.log(&publisher);
        let state = view.map_or_else(|| LogState::empty(publisher, 0), |view| view.state.clone());
        Ok(Received {
            log_size: state.size(),
            log_root: state.root(),
            missing,
        })
    }

    async fn append(&self, publisher: Did, shown: &Arc<Vec<Bytes>>) -> Result<(), HostError> {
        let mut epochs = 0;
        let mut begun: Option<u64> = None;
        for _ in 0..MAX_OVERTAKEN {
            let view = self.catalog.log(&publisher);
            let held = view.as_ref().map_or(0, |view| view.bytes);
            let (needed, quota) = (held + total(shown), self.limits.journal);
            if needed > quota {
                let what = "the log";
                return Err(HostError::Quota {
                    what,
                    needed,
                    quota,
                });
            }
            let state =
                view.map_or_else(|| LogState::empty(publisher, 0), |view| view.state.clone());
            let base = match begun.filter(|epoch| *epoch > state.epoch) {
                Some(epoch) => state.next_epoch(epoch),
                None => state,
            };
            let (page, now) = match self.judge(base.clone(), shown).await {
                Err(HostError::Page(PageError::NewEpoch(epoch))) if epochs < MAX_EPOCHS => {
                    (begun, epochs) = (Some(epoch), epochs + 1);
                    continue;
                }
                judged => judged?,
            };
            let accepted = self.forks.accepted(&publisher);
            let refuses = |line: &Line| accepted.as_ref().is_some_and(|a| a.refuses(line));
            if page.lines.iter().any(refuses) {
                return Err(HostError::Rejected);
            }
            let (seen, word) = (Some(now), page.revocation.clone());
            let appended = self.append.send(AppendPage { base, page, seen }).await;
            if appended.map_err(|_| FederateError::Restarting)?? == Appended::Taken {
                return match word {
                    Some(word) => self.end(&word).await,
                    None => Ok(()),
                };
            }
        }
        Err(FederateError::Restarting.into())
    }

    /// The publisher's last word: kept once what stands before it is.
    async fn end(&self, word: &Signed<Revocation>) -> Result<(), HostError> {
        let (revocations, bytes) = (self.revocations.clone(), word.bytes().clone());
        blocking(move || match revocations.accept(bytes) {
            Err(RevocationError::Io(error)) => Err(error.into()),
            // Of a DID that this node has something to do with, as it holds its log, nothing else is wrong.
            Ok(_) | Err(_) => Ok(()),
        })
        .await
    }

    /// Judges what the publisher itself hands over, away from the caller's thread.
    async fn judge(
        &self,
        base: LogState,
        shown: &Arc<Vec<Bytes>>,
    ) -> Result<(VerifiedPage, hn_protocol::time::Timestamp), HostError> {
        let (this, shown) = (self.clone(), Arc::clone(shown));
        blocking(move || {
            let (publisher, now) = (base.publisher, this.clock.now());
            let history = RecentHistory::new(this.catalog.history(publisher, base.epoch));
            // What ends with a slice has more to come; what ends with a presence says where the log stands.
            // So does what ends with its revocation.
            let more = |line: &Bytes| matches!(Line::verify(line.clone()), Ok(Line::Slice(_)));
            let context = PageContext {
                now,
                source: Source::Publisher,
                reaches_head: !shown.last().is_some_and(more),
            };
            match base.follow(&shown, context, &history) {
                Ok(page) => Ok((page, now)),
                Err(error @ PageError::Publisher { .. }) => Err(HostError::Foreign(error)),
                Err(PageError::Fork { shown, held }) => {
                    match observe_fork(&this.catalog, &this.forks, publisher, &shown, held) {
                        Ok(fork) => Err(HostError::Forked(fork.reason().detail)),
                        Err(ForkError::Io(error)) => Err(error.into()),
                        Err(error) => Err(io::Error::other(error.to_string()).into()),
                    }
                }
                Err(error) => Err(HostError::Page(error)),
            }
        })
        .await
    }

    /// The artifacts that the slices among `shown`, which were judged, name and that are not here; remembered, so that they
    /// may be handed over.
    fn missing(&self, publisher: Did, shown: &[Bytes]) -> io::Result<Vec<Digest>> {
        let mut missing = Vec::new();
        let mut wanted = BTreeMap::new();
        for line in shown {
            for (digest, size) in entries_of(line)? {
                if wanted.len() < Wanted::MAX_OF_ONE
                    && !wanted.contains_key(&digest)
                    && !self.shelf.contains(&digest)?
                {
                    wanted.insert(digest, size);
                    missing.push(digest);
                }
            }
        }
        lock(&self.shared.wanted).add(publisher, wanted);
        Ok(missing)
    }

    /// A place for an artifact that the caller's log names; `None` when it is held already. Errors: nothing names it, no
    /// room, too much under way.
    pub async fn place(&self, publisher: Did, digest: Digest) -> Result<Option<Place>, HostError> {
        let shelf = self.shelf.clone();
        if blocking(move || Ok(shelf.contains(&digest)?)).await? {
            return Ok(None);
        }
        let size = lock(&self.shared.wanted).size_of(&publisher, &digest);
        let size = size.ok_or(HostError::Unnamed(digest))?;
        let permit = Arc::clone(&self.shared.places).try_acquire_owned();
        let permit = permit.map_err(|_| HostError::Busy)?;
        let (shelf, quotas) = (self.shelf.clone(), self.limits.artifacts);
        let (own, all) = blocking(move || {
            let own = shelf.usage(&publisher)?.bytes;
            let all = match quotas.mirror_quota {
                0 => 0,
                _ => shelf.mirrored_bytes()?,
            };
            Ok((own, all))
        })
        .await?;
        let mut under_way = lock(&self.shared.under_way);
        let others: u64 = under_way.values().map(|of| of.bytes).sum();
        let of = under_way.get(&publisher).copied().unwrap_or_default();
        if of.artifacts >= RECEIVED_OF_ONE {
            return Err(HostError::Busy);
        }
        for (used, quota) in [
            (own + of.bytes, quotas.publisher_quota),
            (all + others, quotas.mirror_quota),
        ] {
            let needed = used.saturating_add(size);
            if quota > 0 && needed > quota {
                let what = "the artifact";
                return Err(HostError::Quota {
                    what,
                    needed,
                    quota,
                });
            }
        }
        let of = under_way.entry(publisher).or_default();
        of.artifacts += 1;
        of.bytes += size;
        Ok(Some(Place {
            publisher,
            digest,
            size,
            shared: Arc::clone(&self.shared),
            _permit: permit,
        }))
    }

    /// Begins the artifact's file. Errors: no space.
    pub async fn stage(&self, place: &Place) -> Result<Staging, HostError> {
        let (store, size) = (self.shelf.mirrored(&place.publisher), place.size);
        blocking(move || Ok(store.stage(size)?)).await
    }

    /// Writes the next bytes. Errors: more than the artifact has, no space.
    pub async fn write(&self, mut staging: Staging, bytes: Bytes) -> Result<Staging, HostError> {
        blocking(move || {
            staging.write_all(&bytes)?;
            Ok(staging)
        })
        .await
    }

    /// Keeps the artifact, durable when it returns. Errors: other bytes than its digest names, another length.
    pub async fn keep(&self, place: Place, staging: Staging) -> Result<(), HostError> {
        let (shelf, digest, size) = (self.shelf.clone(), place.digest, place.size);
        blocking(move || {
            let staged: Staged = staging.finish();
            if staged.digest() != digest || staged.size() != size {
                return Err(HostError::Mismatch { digest, size });
            }
            shelf.keep(&place.publisher, vec![staged])?;
            lock(&place.shared.wanted).settle(&place.publisher, &digest);
            Ok(())
        })
        .await
    }
}

fn total(shown: &[Bytes]) -> u64 {
    shown.iter().map(|line| line.len() as u64 + 1).sum()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| HostError::Io(io::Error::other(error)))?
}
