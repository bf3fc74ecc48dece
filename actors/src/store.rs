//! The Store: sled, an index over the Vault's files (design 11). Everything in it can be rebuilt from them.
//!
//! sled has traps: its flush is not an fsync, concurrent flushes hang, it may panic on a damaged file or quietly forget
//! what it cannot read. So one thread writes (the actor `store` of `hn status`), and a database that is not bit for bit
//! what the last clean shutdown left is walked through or set aside. Reads go to sled directly, from any thread.
//!
//! All our trees live in one tree of sled, told apart by the first byte of the key: one order of writes for all of them.
//! **Changes happen one after the other, in the order of the [`Batch`]; readers and crashes see a prefix of them.** So
//! what says that something is there goes behind what it speaks of.

mod open;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::supervise::Registry;
use writer::{Order, Request, Writer};

/// How many requests may wait for the writer: more than the node has threads and peers that could ask at once.
const QUEUE: usize = 1024;
/// The largest value. What is larger belongs into a file; sled would put it into one of its own.
pub const MAX_VALUE: usize = 16 << 10;

/// What is kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Tree {
    /// One record a log held: frontier, head, sequences, where its journal ends.
    Logs = 1,
    /// Where each slice of each log stands.
    Slices = 2,
    /// By digest: whose each presence is, what it binds and where it stands.
    Presences = 3,
    /// The latest entry of each published path.
    Paths = 4,
    /// By digest: in whose name an artifact is mirrored.
    Artifacts = 5,
    /// Each peer's health: how it answered last, and when it is asked again.
    Peers = 6,
    /// Everything that is one of a kind.
    Meta = 7,
    /// By sequence: the digest of each presence of each log.
    Sequences = 8,
    /// Where the frontier line of each log whose beginning was pruned stands.
    Frontiers = 9,
}

/// Why the Store did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// It was closed: the node is shutting down.
    #[error("the store is closed")]
    Closed,
    /// The writer panicked over this request; a prefix of it may be applied.
    #[error("the store's writer panicked: {0}")]
    Panicked(String),
    /// A value that cannot be written, or one of another shape than asked for.
    #[error("a stored value does not fit: {0}")]
    Codec(#[from] postcard::Error),
    /// A value above [`MAX_VALUE`].
    #[error("a value of {0} bytes is too large for the store")]
    TooLarge(usize),
    /// The database is damaged; it is set aside and rebuilt at the next start.
    #[error("the database is damaged and will be rebuilt at the next start: {0}")]
    Damaged(String),
    /// The disk, or an injected fault. When the disk is at fault the change is kept, and applied once it has space; until
    /// then readers do not see it.
    #[error("the store cannot be written: {0}")]
    Io(Arc<std::io::Error>),
    /// Another process has the database open.
    #[error("the database is in use: {0}")]
    InUse(String),
}

impl From<sled::Error> for StoreError {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(e) if e.to_string().starts_with("could not acquire lock") => {
                Self::InUse(e.to_string())
            }
            sled::Error::Io(e) => Self::Io(Arc::new(e)),
            other => Self::Damaged(other.to_string()),
        }
    }
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// What [`Store::open`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// Nothing: a new database was made.
    Fresh,
    /// A database in order.
    Existing {
        /// It was closed in order. Else it may lack the last moments: compare it with the files.
        sealed: bool,
    },
    /// A damaged one, which stands in `set_aside` now, and a new one was made.
    Rebuilt {
        /// Where the damaged database is.
        set_aside: PathBuf,
        /// What was wrong with it.
        reason: String,
    },
}

impl Opened {
    /// Whether the database may lack what the files have.
    #[must_use]
    pub const fn may_lack(&self) -> bool {
        !matches!(self, Self::Existing { sealed: true })
    }
}

/// Changes that are applied in order. After a crash a prefix of them is there.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    changes: Vec<Change>,
}

/// A key with its tree's byte in front, and its new value.
#[derive(Debug, Clone)]
struct Change {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

impl Batch {
    /// No changes yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `key` to `value`, written with postcard.
    pub fn put<T: Serialize + ?Sized>(
        &mut self,
        tree: Tree,
        key: &[u8],
        value: &T,
    ) -> Result<(), StoreError> {
        self.put_bytes(tree, key, postcard::to_stdvec(value)?)
    }

    /// Sets `key` to `value` as it is.
    pub fn put_bytes(&mut self, tree: Tree, key: &[u8], value: Vec<u8>) -> Result<(), StoreError> {
        if value.len() > MAX_VALUE {
            return Err(StoreError::TooLarge(value.len()));
        }
        self.changes.push(Change {
            key: full_key(tree, key),
            value: Some(value),
        });
        Ok(())
    }

    /// Removes `key`.
    pub fn remove(&mut self, tree: Tree, key: &[u8]) {
        self.changes.push(Change {
            key: full_key(tree, key),
            value: None,
        });
    }

    /// Adds the changes of `later` behind these.
    pub fn append(&mut self, mut later: Self) {
        self.changes.append(&mut later.changes);
    }

    /// How many changes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// About how much memory it takes.
    fn bytes(&self) -> usize {
        self.changes
            .iter()
            .map(|c| size_of::<Change>() + c.key.len() + c.value.as_ref().map_or(0, Vec::len))
            .sum()
    }
}

fn full_key(tree: Tree, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(key.len() + 1);
    full.push(tree as u8);
    full.extend_from_slice(key);
    full
}

/// A key and its value, as they stand in the Store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    key: sled::IVec,
    value: sled::IVec,
}

impl Pair {
    /// The key within its tree.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        self.key.get(1..).unwrap_or_default()
    }

    /// The value's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.value
    }

    /// The value, read with postcard.
    pub fn value<T: DeserializeOwned>(&self) -> Result<T, StoreError> {
        Ok(postcard::from_bytes(&self.value)?)
    }
}

/// The open database; empty once it is closed.
type Slot = Arc<RwLock<Option<sled::Db>>>;

fn read_slot(slot: &Slot) -> RwLockReadGuard<'_, Option<sled::Db>> {
    slot.read().unwrap_or_else(PoisonError::into_inner)
}

fn write_slot(slot: &Slot) -> RwLockWriteGuard<'_, Option<sled::Db>> {
    slot.write().unwrap_or_else(PoisonError::into_inner)
}

/// The database. Cloning shares it; the last clone that is dropped closes it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    slot: Slot,
    queue: SyncSender<Request>,
    writer: Mutex<Option<JoinHandle<()>>>,
    folder: PathBuf,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.inner.folder.display())
    }
}

impl Store {
    /// Opens the database in `folder` with a cache of about `cache_bytes`, and starts its writer, listed in `registry`
    /// as the actor `store`. A damaged database is set aside. Errors: it is in use, or the disk refuses.
    pub fn open(
        folder: &Path,
        cache_bytes: u64,
        registry: &Registry,
    ) -> Result<(Self, Opened), StoreError> {
        let (db, opened) = open::open(folder, cache_bytes)?;
        let slot = Arc::new(RwLock::new(Some(db)));
        let (queue, requests) = sync_channel(QUEUE);
        let writer = Writer::new(
            Arc::clone(&slot),
            requests,
            registry.register("store"),
            folder.to_owned(),
            cache_bytes,
        );
        let thread = std::thread::Builder::new()
            .name("hn-store".to_owned())
            .spawn(move || writer.run())?;
        let store = Self {
            inner: Arc::new(Inner {
                slot,
                queue,
                writer: Mutex::new(Some(thread)),
                folder: folder.to_owned(),
            }),
        };
        Ok((store, opened))
    }

    /// Applies `batch` and waits until reads see it. It outlives the process's crash only after a flush, about a second
    /// later, and a power cut not even then: the files are the truth. Errors: [`StoreError::Io`] on a full disk. Blocks.
    pub fn apply(&self, batch: Batch) -> Result<(), StoreError> {
        self.ask(Order::Apply(batch))
    }

    /// Removes everything in every tree. Blocks.
    pub fn clear_all(&self) -> Result<(), StoreError> {
        self.ask(Order::Clear)
    }

    /// Writes what was applied to the disk (which is no fsync). Blocks.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.ask(Order::Flush)
    }

    /// Ends the writer after everything that is queued, flushes, and seals the files so that the next start trusts them.
    /// Blocks. From then on everything answers [`StoreError::Closed`].
    pub fn close(&self) -> Result<(), StoreError> {
        let mut writer = self
            .inner
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(thread) = writer.take() else {
            return Ok(());
        };
        let closed = self.ask(Order::Close);
        // The writer's loop catches its panics, so that it always ends in order.
        let _ = thread.join();
        closed
    }

    fn ask(&self, order: Order) -> Result<(), StoreError> {
        let (reply, answer) = sync_channel(1);
        self.inner
            .queue
            .send(Request { order, reply })
            .map_err(|_| StoreError::Closed)?;
        answer.recv().unwrap_or(Err(StoreError::Closed))
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&sled::Db) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match &*read_slot(&self.inner.slot) {
            Some(db) => read(db),
            None => Err(StoreError::Closed),
        }
    }

    /// The value of `key`, read with postcard.
    pub fn get<T: DeserializeOwned>(
        &self,
        tree: Tree,
        key: &[u8],
    ) -> Result<Option<T>, StoreError> {
        match self.get_bytes(tree, key)? {
            Some(bytes) => Ok(Some(postcard::from_bytes(&bytes)?)),
            None => Ok(None),
        }
    }

    /// The bytes of `key`'s value.
    pub fn get_bytes(&self, tree: Tree, key: &[u8]) -> Result<Option<sled::IVec>, StoreError> {
        self.read(|db| Ok(db.get(full_key(tree, key))?))
    }

    /// Among the keys that start with `prefix`, the last one that is at most `prefix` followed by `key`.
    pub fn last_at_or_before(
        &self,
        tree: Tree,
        prefix: &[u8],
        key: &[u8],
    ) -> Result<Option<Pair>, StoreError> {
        let first = full_key(tree, prefix);
        let mut last = first.clone();
        last.extend_from_slice(key);
        self.read(|db| match db.range(first..=last).next_back() {
            Some(pair) => {
                let (key, value) = pair?;
                Ok(Some(Pair { key, value }))
            }
            None => Ok(None),
        })
    }

    /// Every pair whose key starts with `prefix`, in the order of keys. What is written meanwhile may or may not be seen.
    pub fn scan_prefix(
        &self,
        tree: Tree,
        prefix: &[u8],
    ) -> Result<impl DoubleEndedIterator<Item = Result<Pair, StoreError>> + use<>, StoreError> {
        self.read(|db| Ok(pairs(db.scan_prefix(full_key(tree, prefix)))))
    }

    /// Bytes that the database takes on the disk.
    pub fn size_on_disk(&self) -> Result<u64, StoreError> {
        self.read(|db| Ok(db.size_on_disk()?))
    }
}

fn pairs(iter: sled::Iter) -> impl DoubleEndedIterator<Item = Result<Pair, StoreError>> {
    iter.map(|pair| {
        let (key, value) = pair?;
        Ok(Pair { key, value })
    })
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
