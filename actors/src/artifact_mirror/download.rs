//! One artifact from one holder: hashed while it streams, resumed where it broke off.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use hn_protocol::digest::Digest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

use super::{Holder, MirrorError, blocking};
use crate::fetch::{Body, Fetch, FetchError, Trust};
use crate::pull::route;
use crate::vault::{ArtifactStore, Staged, Staging};

/// Requests for artifacts at the same time to one host.
pub(super) const PER_HOST: usize = 4;
/// Hosts that are remembered before those that nothing is asked of are forgotten.
const MAX_HOSTS: usize = 256;
/// From this many bytes on, what came of an artifact is kept when its transfer breaks off.
const RESUMED_FROM: u64 = 256 << 10;
/// How often a transfer that breaks off is taken up again at once; after that the next holder, or the next run, does.
const MAX_ATTEMPTS: usize = 4;
/// The largest artifact that is fetched for somebody who knows nothing but its digest.
const MAX_UNKNOWN_SIZE: u64 = 64 << 30;
/// What is written to the disk at once.
const WRITE: usize = 256 << 10;

/// Fetches artifacts. Cloning shares its bounds.
#[derive(Clone)]
pub(super) struct Downloads {
    pub(super) fetch: Fetch,
    hosts: Arc<Mutex<BTreeMap<String, Arc<Semaphore>>>>,
    /// What is being fetched into a file that stays: two transfers never write the same one.
    claimed: Arc<Mutex<BTreeSet<Digest>>>,
}

/// The right to write an artifact's unfinished file.
struct Claim {
    claimed: Arc<Mutex<BTreeSet<Digest>>>,
    digest: Digest,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        claimed.remove(&self.digest);
    }
}

impl Downloads {
    pub(super) fn new(fetch: Fetch) -> Self {
        Self {
            fetch,
            hosts: Arc::default(),
            claimed: Arc::default(),
        }
    }

    /// Waits for a turn at the host of `url`.
    pub(super) async fn turn(&self, url: &Url) -> Result<OwnedSemaphorePermit, MirrorError> {
        let host = url.authority().to_owned();
        let turns = {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            if hosts.len() >= MAX_HOSTS {
                hosts.retain(|_, turns| Arc::strong_count(turns) > 1);
            }
            let turns = hosts.entry(host);
            Arc::clone(turns.or_insert_with(|| Arc::new(Semaphore::new(PER_HOST))))
        };
        let turn = turns.acquire_owned().await;
        turn.map_err(|error| MirrorError::Failed(error.to_string()))
    }

    fn claim(&self, digest: &Digest) -> Option<Claim> {
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        claimed.insert(*digest).then(|| Claim {
            claimed: Arc::clone(&self.claimed),
            digest: *digest,
        })
    }

    /// Streams one artifact into a file of `target`. Errors: no answer, other bytes, another length.
    pub(super) async fn download(
        &self,
        target: &ArtifactStore,
        holder: &Holder,
        digest: &Digest,
        size: Option<u64>,
    ) -> Result<Staged, MirrorError> {
        let transfer = Transfer {
            url: route(&holder.base, &["artifact", &digest.to_string()]),
            trust: holder.trust,
            target: target.clone(),
            digest: *digest,
            size,
            claim: self.claim(digest),
        };
        let _turn = self.turn(&holder.base).await?;
        let fetch = self.fetch.to(holder.did);
        let mut attempts = 0;
        loop {
            attempts += 1;
            let (error, is_further) = match transfer.attempt(&fetch).await? {
                Attempt::Whole(staged) => return Ok(staged),
                Attempt::Broken(error, is_further) => (error, is_further),
                Attempt::Foreign => (MirrorError::NoSource, true),
            };
            if !is_further || attempts == MAX_ATTEMPTS {
                return Err(error);
            }
        }
    }

    /// Whether a holder says that it has an artifact. Errors: it does not, or has one of another length.
    pub(super) async fn look(
        &self,
        holder: &Holder,
        digest: &Digest,
        size: u64,
    ) -> Result<(), MirrorError> {
        let url = route(&holder.base, &["artifact", &digest.to_string()]);
        let _turn = self.turn(&holder.base).await?;
        match self.fetch.to(holder.did).head(&url, holder.trust).await? {
            Some(length) if length != size => Err(MirrorError::Length {
                announced: size,
                got: length,
            }),
            _ => Ok(()),
        }
    }
}

/// How one request for an artifact ended, when asking again may help.
enum Attempt {
    /// Everything is there, and is what it should be.
    Whole(Staged),
    /// The connection broke; and whether it brought something that stays.
    Broken(MirrorError, bool),
    /// What an earlier transfer had left was not of this artifact; it is gone now, and this holder is not to blame.
    Foreign,
}

/// An artifact that is being fetched.
struct Transfer {
    url: Url,
    trust: Trust,
    target: ArtifactStore,
    digest: Digest,
    size: Option<u64>,
    claim: Option<Claim>,
}

impl Transfer {
    fn limit(&self) -> u64 {
        self.size.unwrap_or(MAX_UNKNOWN_SIZE)
    }

    async fn attempt(&self, fetch: &Fetch) -> Result<Attempt, MirrorError> {
        let mut part = self.part().await?;
        let had = part.as_ref().map_or(0, Staging::size);
        if had > 0 && self.size == Some(had) {
            // The crash, or the full disk, came between its last byte and its commit.
            if let Some(staging) = part.take() {
                return self.judge(staging.finish(), true);
            }
        }
        let mut body = match fetch.open_from(&self.url, self.trust, had).await {
            Err(FetchError::Status { status: 416, .. }) if had > 0 => {
                // It has no more than what is here, and that is not all.
                part.into_iter().for_each(|part| part.finish().discard());
                return Ok(Attempt::Foreign);
            }
            opened => opened?,
        };
        let goes_on = body.is_partial();
        self.check_answer(&body, had, goes_on)?;
        let from = if goes_on { had } else { 0 };
        let total = body.announced().map(|length| length.saturating_add(from));
        let mut staging = Some(self.staging(part, from, total).await?);
        let received = self.receive(&mut body, &mut staging).await;
        let Some(staging) = staging else {
            return Err(MirrorError::Failed("a write was given up".into()));
        };
        let (now, keeps) = (staging.size(), staging.stays() && staging.size() > from);
        match received {
            Ok(()) => {}
            Err(error) if error.is_broken() => return Ok(Attempt::Broken(error, keeps)),
            Err(error) => {
                // Of more than it can be, nothing is worth keeping.
                if matches!(error, MirrorError::Size(_)) {
                    staging.finish().discard();
                }
                return Err(error);
            }
        }
        // Without a length, an end is only an end when everything is there.
        if total.is_none() && self.size.is_some_and(|size| now < size) {
            let error = FetchError::Connect("the answer ended early".into());
            return Ok(Attempt::Broken(error.into(), keeps));
        }
        self.judge(staging.finish(), from > 0)
    }

    /// What an earlier transfer left, hashed again.
    async fn part(&self) -> Result<Option<Staging>, MirrorError> {
        if self.claim.is_none() {
            return Ok(None);
        }
        let (target, digest, limit) = (self.target.clone(), self.digest, self.limit());
        blocking(move || match target.has_part(&digest) {
            true => target.resume(&digest, limit),
            false => Ok(None),
        })
        .await
    }

    /// Whether the head of the answer fits what was asked for.
    fn check_answer(&self, body: &Body, had: u64, goes_on: bool) -> Result<(), MirrorError> {
        let limit = self.limit();
        if goes_on {
            let range = body.range();
            let fits = range.is_some_and(|(first, last, length)| {
                first == had
                    && last.checked_add(1) == Some(length)
                    && self.size.is_none_or(|size| size == length)
                    && body
                        .announced()
                        .is_none_or(|announced| announced == length - had)
            });
            if !fits {
                let got = range.map_or_else(
                    || "none".to_owned(),
                    |(first, last, length)| format!("{first}-{last}/{length}"),
                );
                return Err(MirrorError::Range { from: had, got });
            }
        } else if body.announced().is_some_and(|announced| announced > limit) {
            return Err(MirrorError::Size(limit));
        }
        Ok(())
    }

    /// Where the bytes go: on behind what is there, or into a new file, which stays if it is worth it.
    async fn staging(
        &self,
        part: Option<Staging>,
        from: u64,
        total: Option<u64>,
    ) -> Result<Staging, MirrorError> {
        let (target, digest, limit) = (self.target.clone(), self.digest, self.limit());
        let large = total.or(self.size).unwrap_or_default() >= RESUMED_FROM;
        let stays = large && self.claim.is_some();
        blocking(move || {
            if let Some(mut part) = part {
                if part.size() != from {
                    part.restart()?;
                }
                return Ok(part);
            }
            let part = if stays {
                target.resume(&digest, limit)?
            } else {
                None
            };
            part.map_or_else(|| target.stage(limit), Ok)
        })
        .await
    }

    /// Writes what comes. Whatever happens, what came is in the file.
    async fn receive(
        &self,
        body: &mut Body,
        staging: &mut Option<Staging>,
    ) -> Result<(), MirrorError> {
        let mut waiting = BytesMut::new();
        loop {
            let chunk = body.chunk().await;
            if let Ok(Some(chunk)) = &chunk {
                waiting.extend_from_slice(chunk);
                if waiting.len() < WRITE {
                    continue;
                }
            }
            let Some(mut open) = staging.take() else {
                return Err(MirrorError::Failed("a write was given up".into()));
            };
            let (bytes, limit) = (waiting.split(), self.limit());
            let room = limit.saturating_sub(open.size());
            let fits = bytes.len() as u64 <= room;
            let (open, written) = blocking(move || {
                let taken = if fits { bytes.as_ref() } else { &[] };
                let written = open.write_all(taken);
                Ok((open, written))
            })
            .await?;
            *staging = Some(open);
            written?;
            if !fits {
                return Err(MirrorError::Size(limit));
            }
            if chunk?.is_none() {
                return Ok(());
            }
        }
    }

    /// Whether everything that came is what was asked for.
    fn judge(&self, staged: Staged, resumed: bool) -> Result<Attempt, MirrorError> {
        let (got, length) = (staged.digest(), staged.size());
        if got != self.digest {
            staged.discard();
            if resumed {
                return Ok(Attempt::Foreign);
            }
            let wanted = self.digest;
            return Err(MirrorError::Digest { wanted, got });
        }
        match self.size {
            Some(announced) if announced != length => {
                staged.discard();
                Err(MirrorError::Length {
                    announced,
                    got: length,
                })
            }
            _ => Ok(Attempt::Whole(staged)),
        }
    }
}
