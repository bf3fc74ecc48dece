//! What each publisher takes of the disk, counted as artifacts come.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hn_protocol::did::Did;
use serde::Serialize;

/// Artifacts of one publisher. One that several logs share counts once: with the publisher for whom it was fetched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// How many.
    pub artifacts: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Usage {
    /// One more.
    pub fn add(&mut self, size: u64) {
        self.artifacts += 1;
        self.bytes = self.bytes.saturating_add(size);
    }
}

/// The usages that were counted so far.
#[derive(Default)]
pub struct Usages {
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    by_publisher: BTreeMap<Did, Usage>,
    /// Bytes of all of them.
    total: u64,
    /// Every publisher's folder was counted once.
    complete: bool,
}

impl Usages {
    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of `publisher`.
    pub fn get(&self, publisher: &Did) -> Option<Usage> {
        self.counted().by_publisher.get(publisher).copied()
    }

    /// Bytes of everybody, once every folder was counted.
    pub fn total(&self) -> Option<u64> {
        let counted = self.counted();
        counted.complete.then_some(counted.total)
    }

    /// Every folder that there is was counted; others come through [`Usages::first`].
    pub fn complete(&self) {
        self.counted().complete = true;
    }

    /// The count of a folder, unless somebody was faster; answers what holds.
    pub fn first(&self, publisher: &Did, usage: Usage) -> Usage {
        let mut counted = self.counted();
        if let Some(known) = counted.by_publisher.get(publisher) {
            return *known;
        }
        counted.total = counted.total.saturating_add(usage.bytes);
        counted.by_publisher.insert(*publisher, usage);
        usage
    }

    /// One artifact less of a publisher that was counted.
    pub fn subtract(&self, publisher: &Did, size: u64) {
        let mut counted = self.counted();
        if let Some(usage) = counted.by_publisher.get_mut(publisher) {
            usage.artifacts = usage.artifacts.saturating_sub(1);
            usage.bytes = usage.bytes.saturating_sub(size);
            counted.total = counted.total.saturating_sub(size);
        }
    }

    /// More artifacts of a publisher that was counted.
    pub fn add(&self, publisher: &Did, sizes: impl Iterator<Item = u64>) {
        let mut counted = self.counted();
        if let Some(usage) = counted.by_publisher.get_mut(publisher) {
            let before = usage.bytes;
            sizes.for_each(|size| usage.add(size));
            let more = usage.bytes - before;
            counted.total = counted.total.saturating_add(more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hn_protocol::did::SecretSeed;

    #[test]
    fn the_total_is_known_once_everybody_was_counted_and_follows_what_comes_and_goes() {
        let (usages, did) = (Usages::default(), |n| SecretSeed::from_bytes([n; 32]).did());
        let usage = |bytes| Usage {
            artifacts: 1,
            bytes,
        };
        usages.first(&did(1), usage(10));
        assert_eq!(usages.total(), None);
        usages.complete();
        usages.first(&did(2), usage(5));
        assert_eq!(
            usages.first(&did(2), usage(99)),
            usage(5),
            "the first count holds"
        );
        usages.add(&did(1), [1, 2].into_iter());
        usages.add(&did(3), [100].into_iter());
        usages.subtract(&did(2), 5);
        assert_eq!(usages.total(), Some(13));
    }
}
