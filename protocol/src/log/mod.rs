//! A log: one publisher's append-only, signed run of entries (design 4, `spec/index@2.md`).
//!
//! [`LogState`] is what is kept of a log to judge what comes next: O(log n) hashes, the head, the presence.
//! [`follow`] judges pages of somebody else's log; [`write`] grows our own. Both end in the same state, so
//! that a log read back from disk, fetched, or just written is one and the same thing.

mod follow;
mod write;

pub use follow::{Line, PageContext, PageError, Source, VerifiedPage, replay};
pub use write::{Commit, CommitRequest, EntryDraft, PresenceFacts, first_presence};

use serde::{Deserialize, Serialize};

use crate::did::Did;
use crate::digest::Digest;
use crate::document::{Presence, Slice};
use crate::merkle::{self, Frontier};
use crate::sign::Signed;
use crate::time::Timestamp;

/// What is remembered of a verified presence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresenceMark {
    /// Its digest.
    pub digest: Digest,
    /// Its sequence.
    pub sequence: u64,
    /// The log size that it binds.
    pub log_size: u64,
    /// The log root that it binds at that size.
    pub merkle_root: Digest,
    /// Until when it counts as current.
    pub expires_at: Timestamp,
}

impl From<&Signed<Presence>> for PresenceMark {
    fn from(presence: &Signed<Presence>) -> Self {
        Self {
            digest: presence.digest(),
            sequence: presence.sequence,
            log_size: presence.log_size,
            merkle_root: presence.merkle_root,
            expires_at: presence.expires_at,
        }
    }
}

/// What is kept of one log (publisher and epoch) to judge or write its next slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogState {
    /// Whose log.
    pub publisher: Did,
    /// Which log of the publisher's.
    pub epoch: u64,
    /// Size and subtree roots.
    pub frontier: Frontier,
    /// Digest of the last slice.
    pub head: Option<Digest>,
    /// The presence that the last slice names.
    pub named: Option<PresenceMark>,
    /// The presence with the highest sequence accepted.
    pub presence: Option<PresenceMark>,
}

impl LogState {
    /// A log of which nothing is known yet.
    #[must_use]
    pub fn empty(publisher: Did, epoch: u64) -> Self {
        Self {
            publisher,
            epoch,
            frontier: Frontier::default(),
            head: None,
            named: None,
            presence: None,
        }
    }

    /// Entries in the log.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// Root of the log.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.frontier.root()
    }

    fn advance(&mut self, slice: &Signed<Slice>, named: PresenceMark) {
        slice
            .leaves()
            .iter()
            .for_each(|leaf| self.frontier.push(*leaf));
        self.head = Some(slice.digest());
        self.named = Some(named);
    }
}

/// What is held of the log beyond its [`LogState`]: looked up, never loaded whole.
pub trait History {
    /// The slice that begins at `cursor`: its digest.
    fn slice_at(&self, cursor: u64) -> Option<Digest>;
    /// The log's root at `size`, when a slice ends there.
    fn root_at(&self, size: u64) -> Option<Digest>;
    /// A presence of this log that was accepted earlier.
    fn presence(&self, digest: &Digest) -> Option<PresenceMark>;
}

/// Nothing is held.
#[derive(Debug, Clone, Copy)]
pub struct NoHistory;

impl History for NoHistory {
    fn slice_at(&self, _: u64) -> Option<Digest> {
        None
    }

    fn root_at(&self, size: u64) -> Option<Digest> {
        (size == 0).then(merkle::empty_root)
    }

    fn presence(&self, _: &Digest) -> Option<PresenceMark> {
        None
    }
}
