//! What each publisher takes of the disk, counted as artifacts come.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

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
    counted: Mutex<BTreeMap<Did, Usage>>,
}

impl Usages {
    /// What is known of `publisher`.
    pub fn get(&self, publisher: &Did) -> Option<Usage> {
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.get(publisher).copied()
    }

    /// The count of a folder, unless somebody was faster; answers what holds.
    pub fn first(&self, publisher: &Did, usage: Usage) -> Usage {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        *counted.entry(*publisher).or_insert(usage)
    }

    /// One artifact less of a publisher that was counted.
    pub fn subtract(&self, publisher: &Did, size: u64) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(usage) = counted.get_mut(publisher) {
            usage.artifacts = usage.artifacts.saturating_sub(1);
            usage.bytes = usage.bytes.saturating_sub(size);
        }
    }

    /// More artifacts of a publisher that was counted.
    pub fn add(&self, publisher: &Did, sizes: impl Iterator<Item = u64>) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(usage) = counted.get_mut(publisher) {
            sizes.for_each(|size| usage.add(size));
        }
    }
}
