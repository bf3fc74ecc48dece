//! The one thread that writes.
//!
//! sled never writes again after its first error, such as a full disk, until it is opened anew. So the writer keeps the
//! changes since the last flush, opens the database again when there is space, and repeats them: what was applied stays
//! applied, without a restart of the node.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use super::{Batch, Slot, StoreError, open, read_slot, write_slot};
use crate::failpoint;
use crate::home::free_bytes;
use crate::supervise::{ActorHandle, ActorState, panic_text};

/// How long a change may wait for its flush. Long, because a flush costs more than it brings: the files are the truth.
const FLUSH_AFTER: Duration = Duration::from_secs(1);

/// When this much waits for a flush it is flushed at once.
const UNFLUSHED_BYTES: usize = 4 << 20;
/// When this much waits for a disk with space the rest is left to a rebuild at the next start.
const UNFLUSHED_LIMIT: usize = 16 << 20;
/// A database is opened again when this much is free: opening writes a little, and failing at it costs the readers.
const REOPEN_FREE: u64 = 8 << 20;
/// How long readers' iterators may keep the old database, and with it its lock.
const REOPEN_WAIT: Duration = Duration::from_millis(500);

pub(super) struct Request {
    pub order: Order,
    pub reply: Reply,
}

pub(super) enum Order {
    Apply(Batch),
    Clear,
    Flush,
    Close,
    /// As if the disk had failed.
    #[cfg(test)]
    Break,
}

/// A caller that no longer waits is no failure.
fn answer(reply: &Reply, result: Result<(), StoreError>) {
    let _ = reply.send(result);
}

/// Takes the one answer.
pub(super) type Reply = SyncSender<Result<(), StoreError>>;

pub(super) struct Writer {
    slot: Slot,
    requests: Receiver<Request>,
    handle: ActorHandle,
    folder: PathBuf,
    cache_bytes: u64,
    /// When the oldest change that is not flushed was applied, or the last attempt to flush failed.
    dirty_since: Option<Instant>,
    /// The changes since the last flush, in order.
    unflushed: Vec<Batch>,
    unflushed_bytes: usize,
    /// sled met an error and writes no more.
    broken: bool,
}

impl Writer {
    pub(super) fn new(
        slot: Slot,
        requests: Receiver<Request>,
        handle: ActorHandle,
        folder: PathBuf,
        cache_bytes: u64,
    ) -> Self {
        Self {
            slot,
            requests,
            handle,
            folder,
            cache_bytes,
            dirty_since: None,
            unflushed: Vec::new(),
            unflushed_bytes: 0,
            broken: false,
        }
    }

    /// Serves until it is told to close or nobody is left who could ask.
    pub(super) fn run(mut self) {
        let mut closing = None;
        while let Some(Request { order, reply }) = self.wait() {
            match order {
                Order::Apply(batch) => answer(&reply, self.guarded(|writer| writer.apply(batch))),
                Order::Clear => answer(&reply, self.guarded(Self::clear)),
                Order::Flush => answer(&reply, self.guarded(Self::flush)),
                Order::Close => {
                    closing = Some(reply);
                    break;
                }
                #[cfg(test)]
                Order::Break => {
                    self.broken = true;
                    answer(&reply, Ok(()));
                }
            }
        }
        let closed = self.close();
        self.handle.set_state(ActorState::Stopped);
        if let Some(reply) = closing {
            answer(&reply, closed);
        }
    }

    /// The next request; flushes when that is due. Sleeps without a timer while there is nothing to flush.
    fn wait(&mut self) -> Option<Request> {
        loop {
            let Some(since) = self.dirty_since else {
                return self.requests.recv().ok();
            };
            let left = FLUSH_AFTER.saturating_sub(since.elapsed());
            if !left.is_zero() {
                match self.requests.recv_timeout(left) {
                    Ok(request) => return Some(request),
                    Err(RecvTimeoutError::Disconnected) => return None,
                    Err(RecvTimeoutError::Timeout) => {}
                }
            }
            if let Err(error) = self.guarded(Self::flush) {
                tracing::warn!(%error, "store not flushed");
                self.dirty_since = Some(Instant::now());
            }
        }
    }

    /// One change after the other. sled's own batches are not used: each costs a kilobyte of memory that does not come
    /// back, a large one hundreds of megabytes; and its log keeps single changes in order anyway.
    fn apply(&mut self, batch: Batch) -> Result<(), StoreError> {
        failpoint::hit("actor.store")?;
        if batch.is_empty() {
            return Ok(());
        }
        self.dirty_since.get_or_insert_with(Instant::now);
        let applied = if self.broken {
            Err(full())
        } else {
            self.db().and_then(|db| write(&db, &batch))
        };
        self.keep(batch);
        match &applied {
            Err(StoreError::Io(_)) => self.broken = true,
            Ok(()) if self.unflushed_bytes > UNFLUSHED_BYTES => self.flush()?,
            _ => {}
        }
        applied
    }

    /// Remembers a batch until it is flushed, also one that could not be applied: it will be.
    fn keep(&mut self, batch: Batch) {
        if self.unflushed_bytes > UNFLUSHED_LIMIT {
            // Too much was written while the disk was full; the files have it, this index will be made anew.
            self.mark_damaged("too many changes waited for a disk with space");
            return;
        }
        self.unflushed_bytes += batch.bytes();
        self.unflushed.push(batch);
    }

    fn clear(&mut self) -> Result<(), StoreError> {
        self.mend()?;
        self.unflushed.clear();
        self.unflushed_bytes = 0;
        let db = self.db()?;
        self.dirty_since.get_or_insert_with(Instant::now);
        // The sentinel has key 0; trees begin at 1.
        for pair in db.range(vec![1u8]..) {
            db.remove(pair?.0)?;
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.mend()?;
        match self.db()?.flush() {
            Ok(_) => {
                self.dirty_since = None;
                self.unflushed.clear();
                self.unflushed_bytes = 0;
                Ok(())
            }
            Err(error) => {
                self.broken = true;
                Err(error.into())
            }
        }
    }

    /// Opens a database that met an error anew, and repeats what may be lost with it.
    fn mend(&mut self) -> Result<(), StoreError> {
        if !self.broken {
            return Ok(());
        }
        if free_bytes(&self.folder)? < REOPEN_FREE {
            return Err(full());
        }
        let mut slot = write_slot(&self.slot);
        if let Some(old) = slot.take()
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(old)))
        {
            let reason = panic_text(panic.as_ref());
            tracing::warn!(%reason, "the broken database panicked when it was dropped");
        }
        let deadline = Instant::now() + REOPEN_WAIT;
        let db = loop {
            match open::reopen(&self.folder, self.cache_bytes) {
                Err(StoreError::InUse(_)) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                opened => break opened?,
            }
        };
        for batch in &self.unflushed {
            write(&db, batch)?;
        }
        *slot = Some(db);
        self.broken = false;
        let repeated = self.unflushed.len();
        tracing::info!(repeated, "the database was opened anew");
        Ok(())
    }

    fn close(&mut self) -> Result<(), StoreError> {
        let flushed = self.guarded(Self::flush);
        let db = write_slot(&self.slot).take();
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(db)));
        flushed?;
        dropped.map_err(|panic| StoreError::Panicked(panic_text(panic.as_ref())))?;
        open::seal(&self.folder)?;
        Ok(())
    }

    fn db(&self) -> Result<sled::Db, StoreError> {
        read_slot(&self.slot).clone().ok_or(StoreError::Closed)
    }

    fn mark_damaged(&self, reason: &str) {
        tracing::error!(%reason, "the database is damaged; it is rebuilt at the next start");
        if let Err(error) = open::mark_damaged(&self.folder) {
            tracing::error!(%error, "damage not marked");
        }
    }

    /// Does `work` so that a panic fails it alone: the thread goes on, and the restart is counted.
    fn guarded(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let result = match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(result) => result,
            Err(panic) => {
                let reason = panic_text(panic.as_ref());
                self.handle.restarted(&reason);
                Err(StoreError::Panicked(reason))
            }
        };
        if let Err(StoreError::Damaged(reason)) = &result {
            self.mark_damaged(reason);
        }
        result
    }
}

fn write(db: &sled::Db, batch: &Batch) -> Result<(), StoreError> {
    for change in &batch.changes {
        match &change.value {
            Some(value) => db.insert(&change.key, value.as_slice())?,
            None => db.remove(&change.key)?,
        };
    }
    Ok(())
}

fn full() -> StoreError {
    let reason = "the database waits for a disk with space";
    std::io::Error::new(std::io::ErrorKind::StorageFull, reason).into()
}
