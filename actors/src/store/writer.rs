//! The one thread that writes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use super::{Batch, StoreError, open};
use crate::failpoint;
use crate::supervise::{ActorHandle, ActorState, panic_text};

/// How long a change may wait for its flush. Long, because a flush costs more than it brings: the files are the truth.
const FLUSH_AFTER: Duration = Duration::from_secs(1);

pub(super) struct Request {
    pub order: Order,
    pub reply: Reply,
}

pub(super) enum Order {
    Apply(Batch),
    Clear,
    Flush,
    Close,
}

pub(super) enum Reply {
    Blocking(SyncSender<Result<(), StoreError>>),
    Async(tokio::sync::oneshot::Sender<Result<(), StoreError>>),
}

impl Reply {
    /// A caller that no longer waits is no failure.
    fn send(self, result: Result<(), StoreError>) {
        match self {
            Self::Blocking(sender) => drop(sender.send(result)),
            Self::Async(sender) => drop(sender.send(result)),
        }
    }
}

pub(super) struct Writer {
    db: Arc<ArcSwapOption<sled::Db>>,
    requests: Receiver<Request>,
    handle: ActorHandle,
    folder: PathBuf,
    /// When the oldest change that is not flushed was applied.
    dirty_since: Option<Instant>,
}

impl Writer {
    pub(super) fn new(
        db: Arc<ArcSwapOption<sled::Db>>,
        requests: Receiver<Request>,
        handle: ActorHandle,
        folder: PathBuf,
    ) -> Self {
        Self {
            db,
            requests,
            handle,
            folder,
            dirty_since: None,
        }
    }

    /// Serves until it is told to close or nobody is left who could ask.
    pub(super) fn run(mut self) {
        let mut closing = None;
        while let Some(Request { order, reply }) = self.wait() {
            match order {
                Order::Apply(batch) => reply.send(self.guarded(|writer| writer.apply(batch))),
                Order::Clear => reply.send(self.guarded(Self::clear)),
                Order::Flush => reply.send(self.guarded(Self::flush)),
                Order::Close => {
                    closing = Some(reply);
                    break;
                }
            }
        }
        let closed = self.close();
        self.handle.set_state(ActorState::Stopped);
        if let Some(reply) = closing {
            reply.send(closed);
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
        let db = self.db()?;
        if !batch.is_empty() {
            self.dirty_since.get_or_insert_with(Instant::now);
        }
        for change in batch.changes {
            match change.value {
                Some(value) => db.insert(change.key, value)?,
                None => db.remove(change.key)?,
            };
        }
        Ok(())
    }

    fn clear(&mut self) -> Result<(), StoreError> {
        let db = self.db()?;
        // The sentinel has key 0; trees begin at 1.
        for pair in db.range(vec![1u8]..) {
            db.remove(pair?.0)?;
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.db()?.flush()?;
        self.dirty_since = None;
        Ok(())
    }

    fn close(&mut self) -> Result<(), StoreError> {
        let flushed = self.guarded(Self::flush);
        let db = self.db.swap(None);
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(db)));
        flushed?;
        dropped.map_err(|panic| StoreError::Panicked(panic_text(panic.as_ref())))?;
        open::seal(&self.folder)?;
        Ok(())
    }

    fn db(&self) -> Result<Arc<sled::Db>, StoreError> {
        self.db.load_full().ok_or(StoreError::Closed)
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
            tracing::error!(%reason, "the database is damaged; it is rebuilt at the next start");
            if let Err(error) = open::mark_damaged(&self.folder) {
                tracing::error!(%error, "damage not marked");
            }
        }
        result
    }
}
