//! A log: one publisher's append-only, signed run of entries (design 4, `spec/index@2.md`).
//!
//! [`LogState`] is what is kept of a log to judge what comes next: O(log n) hashes, the head, the presence.
//! [`follow`] judges pages of somebody else's log; [`write`] grows our own. Both end in the same state, so
//! that a log read back from disk, fetched, or just written is one and the same thing.

mod follow;
mod fork;
mod frontier_line;
mod revoked;
mod write;

pub use follow::{HeldDocument, Line, PageContext, PageError, Source, VerifiedPage, replay};
pub use fork::{Conflict, conflict};
pub use frontier_line::{FRONTIER_TYPE, FrontierLine, MAX_FRONTIER_BYTES};
pub use revoked::last_word;
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
    /// How many entries of the beginning were pruned, here or where the log was had from; 0 for a whole log. The slice
    /// that ends there is kept.
    pub base: u64,
    /// The highest sequence accepted in earlier epochs: this one's begin above it.
    pub floor: u64,
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
            base: 0,
            floor: 0,
        }
    }

    /// What is known of the log that `epoch`, a later one, begins: nothing but that sequences go on growing.
    #[must_use]
    pub fn next_epoch(&self, epoch: u64) -> Self {
        let last = self.presence.map_or(0, |presence| presence.sequence);
        Self {
            floor: self.floor.max(last),
            ..Self::empty(self.publisher, epoch)
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

    /// Whether the log began with a frontier whose slice has not been seen yet.
    const fn awaits_anchor(&self) -> bool {
        self.head.is_none() && self.frontier.size() > 0
    }

    fn advance(&mut self, slice: &Signed<Slice>, named: PresenceMark) {
        // The slice that a frontier stands for is in it already.
        if !self.awaits_anchor() {
            slice
                .leaves()
                .iter()
                .for_each(|leaf| self.frontier.push(*leaf));
        }
        self.head = Some(slice.digest());
        self.named = Some(named);
    }
}

/// Where a slice that is held stands, and what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceMark {
    /// Its digest.
    pub digest: Digest,
    /// Its first seq.
    pub cursor: u64,
    /// The first seq after it.
    pub next_cursor: u64,
    /// The log's root after it.
    pub log_root: Digest,
}

impl From<&Signed<Slice>> for SliceMark {
    fn from(slice: &Signed<Slice>) -> Self {
        Self {
            digest: slice.digest(),
            cursor: slice.cursor,
            next_cursor: slice.next_cursor,
            log_root: slice.log_root,
        }
    }
}

/// What is held of the log beyond its [`LogState`]: looked up, never loaded whole.
pub trait History {
    /// The slice that holds the entry `seq`.
    fn slice_holding(&self, seq: u64) -> Option<SliceMark>;
    /// A presence of this log that was accepted earlier.
    fn presence(&self, digest: &Digest) -> Option<PresenceMark>;
    /// The presence of this log with that sequence that was accepted earlier.
    fn presence_with(&self, sequence: u64) -> Option<Digest>;

    /// The log's root at `size`, when a slice ends there.
    fn root_at(&self, size: u64) -> Option<Digest> {
        let Some(last) = size.checked_sub(1) else {
            return Some(merkle::empty_root());
        };
        let slice = self.slice_holding(last)?;
        (slice.next_cursor == size).then_some(slice.log_root)
    }
}

/// Nothing is held.
#[derive(Debug, Clone, Copy)]
pub struct NoHistory;

impl History for NoHistory {
    fn slice_holding(&self, _: u64) -> Option<SliceMark> {
        None
    }

    fn presence(&self, _: &Digest) -> Option<PresenceMark> {
        None
    }

    fn presence_with(&self, _: u64) -> Option<Digest> {
        None
    }
}
