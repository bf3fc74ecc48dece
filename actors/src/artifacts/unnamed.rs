//! Mirrored artifacts that no log names any more, because the entries that named them were pruned.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hn_protocol::did::Did;
use hn_protocol::digest::Digest;

use super::{ArtifactShelf, Usage, listed};
use crate::catalog::{Catalog, LogView};
use crate::store::{Batch, Tree};

/// Artifacts that are looked for at once: bounds the memory of a sweep. Where there are more, the logs are read again.
const AT_ONCE: usize = 1 << 17;
/// Entries that are read at once.
const ENTRIES: usize = 8192;

impl ArtifactShelf {
    /// Removes what is mirrored in the name of `publisher` and named by no entry of any log that is held. Reads every
    /// entry of every log. Answers what was removed. Errors: disk, index; what was not removed is found the next time.
    pub fn drop_unnamed(&self, catalog: &Catalog, publisher: &Did) -> io::Result<Usage> {
        self.settle_all()?;
        let (store, mut dropped) = (self.mirrored(publisher), Usage::default());
        let mut artifacts = store.list()?;
        loop {
            // First what is here, then who names it: what is mirrored meanwhile was named before it came.
            let some = artifacts.by_ref().take(AT_ONCE);
            let mut unnamed: BTreeMap<Digest, u64> = some.collect::<io::Result<_>>()?;
            if unnamed.is_empty() {
                return Ok(dropped);
            }
            let mut read = BTreeMap::new();
            // The second time only what was appended during the first is there to be read.
            for _ in 0..2 {
                for view in catalog.logs() {
                    forget_named(catalog, &view, &mut read, &mut unnamed)?;
                    for epoch in 0..view.state.epoch {
                        let earlier = catalog.earlier(&view, epoch);
                        if let Some(earlier) = earlier.map_err(io::Error::other)? {
                            forget_named(catalog, &earlier, &mut read, &mut unnamed)?;
                        }
                    }
                }
            }
            let mut batch = Batch::default();
            for (digest, size) in &unnamed {
                if self.publisher_of(digest)? == Some(*publisher) {
                    batch.remove(Tree::Artifacts, &digest.0);
                }
                dropped.add(*size);
            }
            // Not found any more first, gone then.
            self.store.apply(batch).map_err(io::Error::other)?;
            for (digest, size) in &unnamed {
                store.remove(digest)?;
                self.usages.subtract(publisher, *size);
            }
        }
    }
}

/// Takes out of `unnamed` what the entries of a log name, from where it was `read` to.
fn forget_named(
    catalog: &Catalog,
    view: &LogView,
    read: &mut BTreeMap<(Did, u64), u64>,
    unnamed: &mut BTreeMap<Digest, u64>,
) -> io::Result<()> {
    let log = (view.state.publisher, view.state.epoch);
    let from = read.insert(log, view.state.size()).unwrap_or_default();
    let mut cursor = from.max(view.state.base);
    while cursor < view.state.size() && !unnamed.is_empty() {
        let (entries, next) = listed(catalog, view, cursor, ENTRIES)?;
        for entry in entries {
            unnamed.remove(&entry.digest);
        }
        cursor = next;
    }
    Ok(())
}

/// Sweeps in a thread of its own, one publisher after the other, and only while there is something to sweep.
#[derive(Clone)]
pub struct Sweeper {
    inner: Arc<Inner>,
}

struct Inner {
    artifacts: ArtifactShelf,
    catalog: Catalog,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: BTreeSet<Did>,
    running: bool,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let _running = Running(self);
        loop {
            let publisher = {
                let mut state = self.state();
                let Some(publisher) = state.waiting.pop_first() else {
                    state.running = false;
                    return;
                };
                publisher
            };
            match self.artifacts.drop_unnamed(&self.catalog, &publisher) {
                Ok(dropped) if dropped.artifacts > 0 => {
                    let (artifacts, bytes) = (dropped.artifacts, dropped.bytes);
                    tracing::info!(log = %publisher, artifacts, bytes, "artifacts of pruned entries are removed");
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(log = %publisher, %error, "artifacts of pruned entries stay until the next pruning");
                }
            }
        }
    }
}

/// Also a sweep that panics gives way to the next.
struct Running<'a>(&'a Inner);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.state().running = false;
        }
    }
}

impl Sweeper {
    /// Sweeps what `artifacts` mirror of the logs in `catalog`.
    #[must_use]
    pub fn new(artifacts: ArtifactShelf, catalog: Catalog) -> Self {
        Self {
            inner: Arc::new(Inner {
                artifacts,
                catalog,
                state: Mutex::default(),
            }),
        }
    }

    /// Removes, in the background, what is mirrored of `publisher` and named by nobody any more.
    pub fn sweep(&self, publisher: Did) {
        let mut state = self.inner.state();
        state.waiting.insert(publisher);
        if state.running {
            return;
        }
        let inner = Arc::clone(&self.inner);
        let thread = std::thread::Builder::new().name("hn-sweep".to_owned());
        match thread.spawn(move || inner.run()) {
            Ok(_) => state.running = true,
            Err(error) => tracing::warn!(%error, "no thread for sweeping artifacts"),
        }
    }
}
