//! The one thread that writes: takes what has queued up, applies it as one batch, answers all.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use super::{Batch, StoreError, open};
use crate::failpoint;
use crate::supervise::{ActorHandle, ActorState, panic_text};

/// At most this many changes or bytes are applied together: sled keeps a batch in its buffers until it is whole.
const GROUP_CHANGES: usize = 8192;
const GROUP_BYTES: usize = 4 << 20;
/// How long a change may wait for its flush. Long, because a flush costs more than it brings: the files are the truth.
const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// How many pairs are removed at once when everything is.
const CLEAR_CHUNK: usize = 4096;

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
        while closing.is_none() {
            let Some(first) = self.wait() else { break };
            let mut group = Vec::new();
            let mut next = Some(first);
            let (mut changes, mut bytes) = (0, 0);
            while let Some(request) = next.take() {
                let Request { order, reply } = request;
                if let Order::Apply(batch) = order {
                    changes += batch.len();
                    bytes += batch.bytes;
                    group.push((batch, reply));
                    if changes < GROUP_CHANGES && bytes < GROUP_BYTES {
                        next = self.requests.try_recv().ok();
                    }
                    continue;
                }
                self.apply_group(std::mem::take(&mut group));
                match order {
                    Order::Clear => reply.send(self.guarded(Self::clear)),
                    Order::Flush => reply.send(self.guarded(Self::flush)),
                    Order::Close | Order::Apply(_) => closing = Some(reply),
                }
            }
            self.apply_group(group);
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

    fn apply_group(&mut self, group: Vec<(Batch, Reply)>) {
        let mut ready = Vec::with_capacity(group.len());
        for (batch, reply) in group {
            // A fault strikes one request, not those that share its group.
            match self.guarded(|_| Ok(failpoint::hit("actor.store")?)) {
                Ok(()) => ready.push((batch, reply)),
                Err(error) => reply.send(Err(error)),
            }
        }
        if ready.len() > 1 {
            let mut joined = Batch::new();
            for (batch, _) in &ready {
                joined.append(batch.clone());
            }
            if self.guarded(|writer| writer.apply(joined)).is_ok() {
                for (_, reply) in ready {
                    reply.send(Ok(()));
                }
                return;
            }
        }
        // Alone, or one of them is bad: each gets its own answer. A change that is applied twice stays the same change.
        for (batch, reply) in ready {
            reply.send(self.guarded(|writer| writer.apply(batch)));
        }
    }

    fn apply(&mut self, batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.db()?.apply_batch(batch.into_sled())?;
        self.dirty_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn clear(&mut self) -> Result<(), StoreError> {
        let db = self.db()?;
        loop {
            let mut batch = sled::Batch::default();
            let mut found = 0;
            // The sentinel has key 0; trees begin at 1.
            for pair in db.range(vec![1u8]..).take(CLEAR_CHUNK) {
                batch.remove(pair?.0);
                found += 1;
            }
            if found == 0 {
                break;
            }
            db.apply_batch(batch)?;
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
