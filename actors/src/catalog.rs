//! What may be shown of every log held, our own among them: one thing, *a signed log keyed by its publisher*.
//!
//! The [`IndexFederator`](crate::index_federator) alone writes; once lines are durable it publishes the log's
//! new [`LogView`] here, and any thread reads: pages, presences, roots. Nothing unverified or not yet durable
//! can be seen through a catalog. A request costs O(log n) in the size of the log and in the number of logs.

mod history;
mod news;
mod revoked;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::{Bytes, BytesMut};
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::log::{FrontierLine, LogState, PresenceMark};
use hn_protocol::time::Timestamp;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};

use self::history::slice_holding;
pub use self::history::{LogHistory, RecentHistory};
pub use self::news::News;
use crate::store::{Store, Tree};
use crate::vault::{FileId, JournalReader, Span};

/// The most bytes of a page, beyond its first slice: an answer is built in memory.
const MAX_PAGE_BYTES: usize = 4 << 20;
/// Pages up to this size are kept for the next caller; larger ones are read by a follower that is behind, once.
const MAX_CACHED_PAGE: usize = 512 << 10;
/// How often a log that changes meanwhile is read.
const READS: usize = 4;
/// Memory for kept pages.
const CACHE_BYTES: u64 = 8 << 20;
/// How many pages the cache expects to hold.
const CACHE_PAGES: usize = 256;

/// Where a slice stands, as the Store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceRecord {
    /// Its line in the journal.
    pub span: Span,
    /// The first seq after it.
    pub next_cursor: u64,
    /// Its digest.
    pub digest: Digest,
    /// The log's root after it.
    pub log_root: Digest,
    /// The presence that it names.
    pub presence: Digest,
}

/// Where a presence stands, as the Store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresenceRecord {
    /// Whose it is.
    pub did: Did,
    /// What it binds.
    pub mark: PresenceMark,
    /// Its line in the journal.
    pub span: Span,
}

/// What the Store keeps of one epoch of a log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogRecord {
    /// Size, root, head, presence.
    pub state: LogState,
    /// Up to where the journal is in the index.
    pub cover: Option<(FileId, u64)>,
    /// Bytes of the journal up to there, all files together.
    pub bytes: u64,
    /// When the publisher was surely there.
    pub last_seen: Timestamp,
}

/// The key of a log in [`Tree::Logs`], and the prefix of its slices in [`Tree::Slices`].
#[must_use]
pub fn log_key(publisher: &Did, epoch: u64) -> [u8; 40] {
    let mut key = [0; 40];
    key[..32].copy_from_slice(publisher.public_key());
    key[32..].copy_from_slice(&epoch.to_be_bytes());
    key
}

/// The key of a slice in [`Tree::Slices`].
#[must_use]
pub fn slice_key(publisher: &Did, epoch: u64, cursor: u64) -> [u8; 48] {
    let mut key = [0; 48];
    key[..40].copy_from_slice(&log_key(publisher, epoch));
    key[40..].copy_from_slice(&cursor.to_be_bytes());
    key
}

/// The key of a presence in [`Tree::Sequences`].
#[must_use]
pub fn sequence_key(publisher: &Did, epoch: u64, sequence: u64) -> [u8; 48] {
    // Of the same shape as a slice's, in a tree of its own.
    slice_key(publisher, epoch, sequence)
}

/// One log as it may be shown: durable and verified.
#[derive(Debug)]
pub struct LogView {
    /// Size, root, head, presence.
    pub state: LogState,
    /// The current presence's line: the last known of somebody else's.
    pub presence: Bytes,
    /// When the publisher was surely there: answered us itself, or signed the presence.
    pub last_seen: Timestamp,
    /// Bytes of the log's journal.
    pub bytes: u64,
    /// Reads lines of the journal.
    pub reader: JournalReader,
    /// Given by [`Catalog::publish`]: no other view of any log has it, also none of before a reload.
    pub version: u64,
}

/// A page of `GET /federate/index`, ready to be sent.
#[derive(Debug, Clone)]
pub struct Page {
    /// NDJSON.
    pub body: Bytes,
    /// BLAKE3 of the body.
    pub etag: Digest,
    /// The cursor of the next page; `None` when this one reaches the head.
    pub next: Option<u64>,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No log of this publisher (and epoch) is held.
    #[error("no log of {0} is held here")]
    UnknownPublisher(Did),
    /// The log is held, but nothing of this epoch.
    #[error("no epoch {0} of this log is held here")]
    UnknownEpoch(u64),
    /// What was asked for was pruned.
    #[error("the entries below {first_cursor} were pruned here")]
    Pruned {
        /// Where the log begins here.
        first_cursor: u64,
    },
    /// The disk or the index failed us.
    #[error("the log cannot be read: {0}")]
    Io(#[from] io::Error),
}

#[derive(PartialEq, Eq, Hash, Clone)]
struct PageKey {
    publisher: Did,
    version: u64,
    /// Whether it ends with the revocation.
    revoked: bool,
    cursor: u64,
    limit: u64,
}

#[derive(Clone)]
struct PageWeight;

impl Weighter<PageKey, Page> for PageWeight {
    fn weight(&self, _: &PageKey, page: &Page) -> u64 {
        page.body.len() as u64 + 256
    }
}

/// Every log held, readable from any thread.
#[derive(Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
}

struct Inner {
    own: Did,
    store: Store,
    logs: RwLock<BTreeMap<Did, Arc<LogView>>>,
    /// How many views were published: kept pages of one view must never pass for those of another.
    published: AtomicU64,
    /// How often what the heads say changed.
    changes: AtomicU64,
    /// Our own log is being recovered: what is shown of it may be older than what others hold.
    recovering: AtomicBool,
    news: News,
    revoked: revoked::Revoked,
    pages: Cache<PageKey, Page, PageWeight>,
}

impl Catalog {
    /// An empty catalog of the node `own`.
    #[must_use]
    pub fn new(own: Did, store: Store) -> Self {
        let pages = Cache::with_weighter(CACHE_PAGES, CACHE_BYTES, PageWeight);
        Self {
            inner: Arc::new(Inner {
                own,
                store,
                logs: RwLock::default(),
                published: AtomicU64::new(0),
                changes: AtomicU64::new(0),
                recovering: AtomicBool::new(false),
                news: News::default(),
                revoked: revoked::Revoked::default(),
                pages,
            }),
        }
    }

    /// The node's own DID.
    #[must_use]
    pub fn own(&self) -> Did {
        self.inner.own
    }

    /// Shows `view` from now on.
    pub fn publish(&self, mut view: LogView) {
        view.version = self.inner.published.fetch_add(1, Ordering::Relaxed);
        let mut logs = self
            .inner
            .logs
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let publisher = view.state.publisher;
        let known = logs.get(&publisher);
        let news = known.is_none_or(|known| known.state != view.state);
        logs.insert(publisher, Arc::new(view));
        if news {
            self.inner.changes.fetch_add(1, Ordering::Release);
            self.inner.news.changed(publisher);
        }
    }

    /// What is said of the logs changed, and none of them did: one is called forked, or not any more.
    pub fn changed(&self) {
        self.inner.changes.fetch_add(1, Ordering::Release);
    }

    /// Says whether our own log is being recovered.
    pub fn set_recovering(&self, recovering: bool) {
        self.inner.recovering.store(recovering, Ordering::Release);
    }

    /// Whether `publisher` is this node and its log is being recovered: what is shown may be older than what others hold.
    #[must_use]
    pub fn is_recovering(&self, publisher: &Did) -> bool {
        *publisher == self.inner.own
            && self.inner.recovering.load(Ordering::Acquire)
            && !self.is_revoked(publisher)
    }

    /// Shows nothing of `publisher` any more.
    pub fn withdraw(&self, publisher: &Did) {
        let mut logs = self
            .inner
            .logs
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if logs.remove(publisher).is_some() {
            self.inner.changes.fetch_add(1, Ordering::Release);
            self.inner.news.withdrawn(publisher);
        }
    }

    /// What changed when.
    #[must_use]
    pub fn news(&self) -> &News {
        &self.inner.news
    }

    /// A number that grows whenever a log is shown for the first time, changes, or is shown no more; that somebody
    /// was seen is no change. Read it before the logs: then they are at least as new.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.inner.changes.load(Ordering::Acquire)
    }

    /// One log.
    #[must_use]
    pub fn log(&self, publisher: &Did) -> Option<Arc<LogView>> {
        self.inner
            .logs
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(publisher)
            .cloned()
    }

    /// Every log, by DID.
    #[must_use]
    pub fn logs(&self) -> Vec<Arc<LogView>> {
        self.inner
            .logs
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// How many logs are held.
    #[must_use]
    pub fn count(&self) -> usize {
        self.inner
            .logs
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// The page of `publisher`'s log from `cursor` on, if it is at hand without touching the disk.
    pub fn page_at_hand(&self, view: &LogView, cursor: u64, limit: usize) -> Option<Page> {
        if cursor >= view.state.size() {
            let body = with_newline(&self.last_line(view));
            return Some(Page {
                etag: Digest::of(&body),
                body,
                next: None,
            });
        }
        self.inner.pages.get(&self.page_key(view, cursor, limit))
    }

    /// The page from `cursor` on: at most `limit` slices, each presence before the first slice of the page
    /// that names it, at the head the current presence last. Reads the disk. Errors: [`ReadError::Io`].
    pub fn page(&self, view: &LogView, cursor: u64, limit: usize) -> Result<Page, ReadError> {
        if let Some(page) = self.page_at_hand(view, cursor, limit) {
            return Ok(page);
        }
        let mut body = BytesMut::new();
        let key = self.page_key(view, cursor, limit);
        if cursor < view.state.base {
            let (first_cursor, _) = self.slice_with(view, view.state.base - 1)?;
            if cursor < first_cursor {
                return Err(ReadError::Pruned { first_cursor });
            }
            push_line(&mut body, self.frontier(view)?.bytes());
        }
        let mut shown: Vec<Digest> = Vec::new();
        let mut next = cursor;
        for (index, slice) in self.slices(view, cursor).take(limit).enumerate() {
            let slice = slice?;
            if index > 0 && body.len() + slice.span.len as usize > MAX_PAGE_BYTES {
                break;
            }
            if !shown.contains(&slice.presence) {
                let (_, line) = self
                    .presence_line(view, &slice.presence)?
                    .ok_or_else(|| missing("a presence"))?;
                push_line(&mut body, &line);
                shown.push(slice.presence);
            }
            push_line(&mut body, &view.reader.read(slice.span)?);
            next = slice.next_cursor;
        }
        let reaches_head = next >= view.state.size();
        if reaches_head {
            push_line(&mut body, &self.last_line(view));
        }
        let body = body.freeze();
        let page = Page {
            etag: Digest::of(&body),
            body,
            next: (!reaches_head).then_some(next),
        };
        if page.body.len() <= MAX_CACHED_PAGE {
            self.inner.pages.insert(key, page.clone());
        }
        Ok(page)
    }

    /// What `read` makes of a log. When it fails while the log changes, as it may when it is pruned, it is asked again with
    /// the newer view.
    pub fn fresh<T, E>(
        &self,
        mut view: Arc<LogView>,
        read: impl Fn(&LogView) -> Result<T, E>,
    ) -> Result<T, E> {
        for _ in 1..READS {
            let outcome = read(&view);
            let newer = self.log(&view.state.publisher).filter(|newer| {
                newer.version != view.version && newer.state.epoch == view.state.epoch
            });
            match newer {
                Some(newer) if outcome.is_err() => view = newer,
                _ => return outcome,
            }
        }
        read(&view)
    }

    /// The slices of a log from the one that holds `cursor` on, one look-up each; from the first kept one on, where that one
    /// was pruned.
    pub fn slices<'a>(
        &'a self,
        view: &'a LogView,
        cursor: u64,
    ) -> impl Iterator<Item = Result<SliceRecord, ReadError>> + 'a {
        let mut at = cursor;
        std::iter::from_fn(move || {
            if at >= view.state.size() {
                return None;
            }
            let holding = |seq| {
                let (publisher, epoch) = (&view.state.publisher, view.state.epoch);
                slice_holding(&self.inner.store, publisher, epoch, seq)
            };
            let found = match holding(at) {
                Ok(None) if at < view.state.base => holding(view.state.base),
                found => found,
            };
            let slice = found.transpose().unwrap_or_else(|| Err(missing("a slice")));
            // An error ends the walk.
            at = slice
                .as_ref()
                .map_or(u64::MAX, |(_, slice)| slice.next_cursor);
            Some(slice.map(|(_, slice)| slice).map_err(ReadError::Io))
        })
    }

    /// The slice that holds the entry `seq`, and its first seq. Errors: it is not in the index, or the disk.
    pub fn slice_with(&self, view: &LogView, seq: u64) -> Result<(u64, SliceRecord), ReadError> {
        let (publisher, epoch) = (&view.state.publisher, view.state.epoch);
        let found = slice_holding(&self.inner.store, publisher, epoch, seq)?;
        Ok(found.ok_or_else(|| missing("a slice"))?)
    }

    /// What was pruned of a log that does not begin at 0. Errors: it is not in the index, or the disk.
    pub fn frontier(&self, view: &LogView) -> Result<FrontierLine, ReadError> {
        let key = log_key(&view.state.publisher, view.state.epoch);
        let span: Option<Span> = self
            .inner
            .store
            .get(Tree::Frontiers, &key)
            .map_err(io::Error::other)?;
        let line = view
            .reader
            .read(span.ok_or_else(|| missing("the frontier"))?)?;
        Ok(FrontierLine::parse(line.into()).map_err(io::Error::other)?)
    }

    /// A presence by its digest, current or historic: whose it is, and its line. Errors: the disk.
    pub fn presence_by_digest(
        &self,
        digest: &Digest,
    ) -> Result<Option<(Arc<LogView>, Bytes)>, ReadError> {
        let record: Option<PresenceRecord> = self
            .inner
            .store
            .get(Tree::Presences, &digest.0)
            .map_err(io::Error::other)?;
        let Some(view) = record.and_then(|record| self.log(&record.did)) else {
            return Ok(None);
        };
        Ok(self
            .presence_line(&view, digest)?
            .map(|(_, line)| (view, line)))
    }

    fn presence_line(
        &self,
        view: &LogView,
        digest: &Digest,
    ) -> Result<Option<(PresenceMark, Bytes)>, ReadError> {
        let record: Option<PresenceRecord> = self
            .inner
            .store
            .get(Tree::Presences, &digest.0)
            .map_err(io::Error::other)?;
        let Some(record) = record else {
            return Ok(None);
        };
        Ok(Some((
            record.mark,
            Bytes::from(view.reader.read(record.span)?),
        )))
    }

    /// An earlier epoch of a log, as it was when the next one began. Errors: the disk.
    pub fn earlier(&self, view: &LogView, epoch: u64) -> Result<Option<LogView>, ReadError> {
        let key = log_key(&view.state.publisher, epoch);
        let record: Option<LogRecord> = self
            .inner
            .store
            .get(Tree::Logs, &key)
            .map_err(io::Error::other)?;
        let Some(record) = record.filter(|_| epoch < view.state.epoch) else {
            return Ok(None);
        };
        let Some(mark) = record.state.presence else {
            return Ok(None);
        };
        let line = self.presence_line(view, &mark.digest)?;
        Ok(line.map(|(_, presence)| LogView {
            state: record.state,
            presence,
            last_seen: record.last_seen,
            bytes: view.bytes,
            reader: view.reader.clone(),
            version: u64::MAX - epoch,
        }))
    }

    /// The line of the slice that holds the entry `seq`; `None` where none does. Errors: the disk.
    pub fn slice_of(&self, view: &LogView, seq: u64) -> Result<Option<Bytes>, ReadError> {
        let (publisher, epoch) = (&view.state.publisher, view.state.epoch);
        let Some((_, slice)) = slice_holding(&self.inner.store, publisher, epoch, seq)? else {
            return Ok(None);
        };
        Ok(Some(view.reader.read(slice.span)?.into()))
    }

    /// The line of a presence of this log; `None` when it is not held. Errors: the disk.
    pub fn presence_of(&self, view: &LogView, digest: &Digest) -> Result<Option<Bytes>, ReadError> {
        Ok(self.presence_line(view, digest)?.map(|(_, line)| line))
    }

    /// What judging a page of this log may look up.
    #[must_use]
    pub fn history(&self, publisher: Did, epoch: u64) -> LogHistory {
        LogHistory {
            store: self.inner.store.clone(),
            publisher,
            epoch,
        }
    }

    fn page_key(&self, view: &LogView, cursor: u64, limit: usize) -> PageKey {
        PageKey {
            publisher: view.state.publisher,
            version: view.version,
            revoked: self.is_revoked(&view.state.publisher),
            cursor,
            limit: limit as u64,
        }
    }
}

fn push_line(body: &mut BytesMut, line: &[u8]) {
    body.extend_from_slice(line);
    body.extend_from_slice(b"\n");
}

/// One line as a body.
#[must_use]
pub fn with_newline(line: &[u8]) -> Bytes {
    let mut body = BytesMut::with_capacity(line.len() + 1);
    push_line(&mut body, line);
    body.freeze()
}

fn missing(what: &str) -> io::Error {
    io::Error::other(format!(
        "{what} of the log is not in the index; `hn mcp reindex` rebuilds it"
    ))
}
