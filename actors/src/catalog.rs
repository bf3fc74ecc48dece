//! What may be shown of every log held, our own among them: one thing, *a signed log keyed by its publisher*.
//!
//! The [`IndexFederator`](crate::index_federator) alone writes; once lines are durable it publishes the log's
//! new [`LogView`] here, and any thread reads: pages, presences, roots. Nothing unverified or not yet durable
//! can be seen through a catalog. A request costs O(log n) in the size of the log and in the number of logs.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::{Bytes, BytesMut};
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::log::{History, Line, LogState, PresenceMark};
use hn_protocol::merkle;
use hn_protocol::time::Timestamp;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};

use crate::store::{Store, Tree};
use crate::vault::{JournalReader, Span};

/// The most bytes of a page, beyond its first slice: an answer is built in memory.
const MAX_PAGE_BYTES: usize = 4 << 20;
/// Pages up to this size are kept for the next caller; larger ones are read by a follower that is behind, once.
const MAX_CACHED_PAGE: usize = 512 << 10;
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
    /// The disk or the index failed us.
    #[error("the log cannot be read: {0}")]
    Io(#[from] io::Error),
}

#[derive(PartialEq, Eq, Hash, Clone)]
struct PageKey {
    publisher: Did,
    version: u64,
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
        let known = logs.get(&view.state.publisher);
        if known.is_none_or(|known| known.state != view.state) {
            self.inner.changes.fetch_add(1, Ordering::Release);
        }
        logs.insert(view.state.publisher, Arc::new(view));
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
        }
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
            let body = with_newline(&view.presence);
            return Some(Page {
                etag: Digest::of(&body),
                body,
                next: None,
            });
        }
        self.inner.pages.get(&page_key(view, cursor, limit))
    }

    /// The page from `cursor` on: at most `limit` slices, each presence before the first slice of the page
    /// that names it, at the head the current presence last. Reads the disk. Errors: [`ReadError::Io`].
    pub fn page(&self, view: &LogView, cursor: u64, limit: usize) -> Result<Page, ReadError> {
        if let Some(page) = self.page_at_hand(view, cursor, limit) {
            return Ok(page);
        }
        let mut body = BytesMut::new();
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
            push_line(&mut body, &view.presence);
        }
        let body = body.freeze();
        let page = Page {
            etag: Digest::of(&body),
            body,
            next: (!reaches_head).then_some(next),
        };
        if page.body.len() <= MAX_CACHED_PAGE {
            self.inner
                .pages
                .insert(page_key(view, cursor, limit), page.clone());
        }
        Ok(page)
    }

    /// The slices of a log from the one that holds `cursor` on, one look-up each.
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
            let found = slice_holding(
                &self.inner.store,
                &view.state.publisher,
                view.state.epoch,
                at,
            );
            let slice = found.transpose().unwrap_or_else(|| Err(missing("a slice")));
            // An error ends the walk.
            at = slice.as_ref().map_or(u64::MAX, |slice| slice.next_cursor);
            Some(slice.map_err(ReadError::Io))
        })
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

    /// What judging a page of this log may look up.
    #[must_use]
    pub fn history(&self, publisher: Did, epoch: u64) -> LogHistory {
        LogHistory {
            store: self.inner.store.clone(),
            publisher,
            epoch,
        }
    }
}

fn page_key(view: &LogView, cursor: u64, limit: usize) -> PageKey {
    PageKey {
        publisher: view.state.publisher,
        version: view.version,
        cursor,
        limit: limit as u64,
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

/// The slice that holds the entry `seq`.
fn slice_holding(
    store: &Store,
    publisher: &Did,
    epoch: u64,
    seq: u64,
) -> io::Result<Option<SliceRecord>> {
    let prefix = log_key(publisher, epoch);
    let found = store
        .last_at_or_before(Tree::Slices, &prefix, &seq.to_be_bytes())
        .map_err(io::Error::other)?;
    let slice: Option<SliceRecord> = found
        .map(|pair| pair.value())
        .transpose()
        .map_err(io::Error::other)?;
    Ok(slice.filter(|slice| seq < slice.next_cursor))
}

/// A log's history in the Store. A failed look-up reads as "not held", which can only refuse, never accept.
pub struct LogHistory {
    store: Store,
    publisher: Did,
    epoch: u64,
}

impl History for LogHistory {
    fn slice_at(&self, cursor: u64) -> Option<Digest> {
        let key = slice_key(&self.publisher, self.epoch, cursor);
        let slice: Option<SliceRecord> = self.store.get(Tree::Slices, &key).ok()?;
        slice.map(|slice| slice.digest)
    }

    fn root_at(&self, size: u64) -> Option<Digest> {
        let Some(last) = size.checked_sub(1) else {
            return Some(merkle::empty_root());
        };
        let slice = slice_holding(&self.store, &self.publisher, self.epoch, last).ok()??;
        (slice.next_cursor == size).then_some(slice.log_root)
    }

    fn presence(&self, digest: &Digest) -> Option<PresenceMark> {
        let record: PresenceRecord = self.store.get(Tree::Presences, &digest.0).ok()??;
        (record.did == self.publisher).then_some(record.mark)
    }
}

/// A log's history while it grows: the Store's, and the lines that the Store has not heard of yet.
pub struct RecentHistory {
    stored: LogHistory,
    slices: BTreeMap<u64, Digest>,
    roots: BTreeMap<u64, Digest>,
    presences: HashMap<Digest, PresenceMark>,
    lines: usize,
}

impl RecentHistory {
    /// What is stored, and nothing more yet.
    #[must_use]
    pub fn new(stored: LogHistory) -> Self {
        Self {
            stored,
            slices: BTreeMap::new(),
            roots: BTreeMap::new(),
            presences: HashMap::new(),
            lines: 0,
        }
    }

    /// From now on `line` is known.
    pub fn add(&mut self, line: &Line) {
        self.lines += 1;
        match line {
            Line::Slice(slice) => {
                self.slices.insert(slice.cursor, slice.digest());
                self.roots.insert(slice.next_cursor, slice.log_root);
            }
            Line::Presence(presence) => {
                self.presences
                    .insert(presence.digest(), PresenceMark::from(presence));
            }
        }
    }

    /// How many lines are known beyond the Store's.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.lines
    }

    /// Whether the Store knows everything.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.lines == 0
    }

    /// The Store has heard of everything.
    pub fn clear(&mut self) {
        self.slices.clear();
        self.roots.clear();
        self.presences.clear();
        self.lines = 0;
    }
}

impl History for RecentHistory {
    fn slice_at(&self, cursor: u64) -> Option<Digest> {
        self.slices
            .get(&cursor)
            .copied()
            .or_else(|| self.stored.slice_at(cursor))
    }

    fn root_at(&self, size: u64) -> Option<Digest> {
        self.roots
            .get(&size)
            .copied()
            .or_else(|| self.stored.root_at(size))
    }

    fn presence(&self, digest: &Digest) -> Option<PresenceMark> {
        self.presences
            .get(digest)
            .copied()
            .or_else(|| self.stored.presence(digest))
    }
}
