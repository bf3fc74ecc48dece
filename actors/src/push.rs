//! Handing the own log over to a node that hosts it: signed documents first, then the artifacts that are missing there
//! (`spec/http.md` W1–W6). Nothing is remembered between two times: the host says where it stands.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hn_protocol::canonical;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::document::{MAX_PRESENCE_BYTES, Presence};
use hn_protocol::sign::Signed;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::artifacts::ArtifactShelf;
use crate::catalog::{Catalog, LogView, ReadError};
use crate::fetch::{Fetch, FetchError, Trust};
use crate::pull::route;

/// Slices of one request: its body stays below the 8 MiB that a host reads, see [`Catalog::page`].
const SLICES: usize = 64;
/// The longest answer to slices: a list of the digests of 8 MiB of them.
const MAX_ANSWER: usize = 8 << 20;
/// Artifacts sent at the same time to one host, as many as it is asked for in a mirror run.
const AT_ONCE: usize = 4;

/// How long a host that has enough to do is asked again: longer than it remembers a signature.
const PATIENCE: Duration = Duration::from_secs(360);
/// The pause before it is asked again; doubled each time...
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// ...up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// What was handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// The host.
    pub host: Did,
    /// Entries of the log as the host holds it now.
    pub log_size: u64,
    /// Its root.
    pub log_root: Digest,
    /// Entries that the host did not have.
    pub entries: u64,
    /// Artifacts that the host did not have.
    pub artifacts: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Artifacts that the host wants and that are not here either.
    pub absent: Vec<Digest>,
}

/// Why not everything is there. What the host has taken it keeps, and the next time goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The host refuses, or does not answer.
    #[error("{0}")]
    Fetch(#[from] FetchError),
    /// The host's presence, or an answer of its, is not what it must be.
    #[error("{0}")]
    Answer(String),
    /// Our own log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Nothing was published yet.
    #[error("nothing is published in this log yet")]
    Nothing,
}

/// What a host answers to `POST /publish`.
#[derive(Deserialize)]
struct Stands {
    log_size: u64,
    log_root: Digest,
    missing: Vec<Digest>,
}

/// Hands over.
pub struct Push {
    /// Signs.
    pub fetch: Fetch,
    /// The own log.
    pub catalog: Catalog,
    /// Its artifacts.
    pub artifacts: ArtifactShelf,
}

impl Push {
    /// Hands over what the node at `base` does not have of our log. Errors: see [`PushError`].
    pub async fn run(&self, base: &Url) -> Result<Pushed, PushError> {
        let view = self
            .catalog
            .log(&self.catalog.own())
            .ok_or(PushError::Nothing)?;
        let host = self.audience(base).await?;
        let fetch = self.fetch.to(host);
        let stands = self.publish(&fetch, base, Bytes::new()).await?;
        let mut pushed = Pushed {
            host,
            log_size: stands.log_size,
            log_root: stands.log_root,
            entries: 0,
            artifacts: 0,
            bytes: 0,
            absent: Vec::new(),
        };
        // The last slice once more, at least: so the host says what of it is missing after a push that broke off. Artifacts of
        // earlier ones it has, since they are sent before the next slices are.
        let mut cursor = stands.log_size.min(view.state.size()).saturating_sub(1);
        loop {
            let (page, next) = self.page(&view, cursor).await?;
            let stands = self.publish(&fetch, base, page).await?;
            pushed.entries += stands.log_size.saturating_sub(pushed.log_size);
            (pushed.log_size, pushed.log_root) = (stands.log_size, stands.log_root);
            self.send_all(&fetch, base, stands.missing, &mut pushed)
                .await?;
            match next {
                Some(next) => cursor = next,
                None => return Ok(pushed),
            }
        }
    }

    /// Who is there: a presence that the node has signed says so.
    async fn audience(&self, base: &Url) -> Result<Did, PushError> {
        let url = route(base, &[".well-known", "hn", "presence"]);
        let max = MAX_PRESENCE_BYTES + 1;
        let answer = self.fetch.get(&url, Trust::Operator, None, max).await?;
        let presence = Signed::<Presence>::verify(answer.body).map_err(|error| {
            PushError::Answer(format!("no presence of a node is there: {error}"))
        })?;
        Ok(presence.did)
    }

    async fn page(
        &self,
        view: &Arc<LogView>,
        cursor: u64,
    ) -> Result<(Bytes, Option<u64>), PushError> {
        let (catalog, view) = (self.catalog.clone(), Arc::clone(view));
        let reading = move || catalog.page(&view, cursor, SLICES);
        let page = tokio::task::spawn_blocking(reading)
            .await
            .map_err(io::Error::other)??;
        Ok((page.body, page.next))
    }

    async fn publish(&self, fetch: &Fetch, base: &Url, page: Bytes) -> Result<Stands, PushError> {
        let url = route(base, &["publish"]);
        let taken = patiently(async || {
            let (media, page) = ("application/x-ndjson", page.clone());
            Ok(fetch
                .post(&url, Trust::Operator, media, page, MAX_ANSWER)
                .await?)
        })
        .await?;
        canonical::from_slice(&taken.body).map_err(|error| {
            PushError::Answer(format!("the host's answer to POST /publish: {error}"))
        })
    }

    async fn send_all(
        &self,
        fetch: &Fetch,
        base: &Url,
        missing: Vec<Digest>,
        pushed: &mut Pushed,
    ) -> Result<(), PushError> {
        let missing: BTreeSet<Digest> = missing.into_iter().collect();
        let sending = missing
            .into_iter()
            .map(|digest| async move { (digest, self.send(fetch, base, digest).await) });
        let mut sending = stream::iter(sending).buffer_unordered(AT_ONCE);
        while let Some((digest, sent)) = sending.next().await {
            match sent? {
                Some(size) => {
                    pushed.artifacts += 1;
                    pushed.bytes += size;
                }
                None => pushed.absent.push(digest),
            }
        }
        Ok(())
    }

    /// Sends one artifact; `None` when it is not here.
    async fn send(
        &self,
        fetch: &Fetch,
        base: &Url,
        digest: Digest,
    ) -> Result<Option<u64>, PushError> {
        let url = route(base, &["artifact", &digest.to_string()]);
        patiently(async || {
            let shelf = self.artifacts.clone();
            let opened = tokio::task::spawn_blocking(move || shelf.open(&digest)).await;
            let Some((file, size)) = opened.map_err(io::Error::other)?? else {
                return Ok(None);
            };
            fetch
                .put_file(&url, Trust::Operator, &digest, file, size)
                .await?;
            Ok(Some(size))
        })
        .await
    }
}

/// Asks again while the host has enough to do: of many artifacts the last have to wait until it has forgotten the
/// signatures of the first (S8 of `spec/http.md`).
async fn patiently<T>(mut ask: impl AsyncFnMut() -> Result<T, PushError>) -> Result<T, PushError> {
    let (begun, mut pause) = (Instant::now(), FIRST_PAUSE);
    loop {
        match ask().await {
            Err(PushError::Fetch(FetchError::Status {
                status: 429 | 503, ..
            })) if begun.elapsed() < PATIENCE => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            answer => return answer,
        }
    }
}
