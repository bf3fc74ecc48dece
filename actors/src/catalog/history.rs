//! What judging a log may look up: the Store's index of it, and the lines that the Store has not heard of yet.

use std::collections::{BTreeMap, HashMap};
use std::io;

use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::log::{History, Line, PresenceMark, SliceMark};

use super::{PresenceRecord, SliceRecord, log_key, sequence_key};
use crate::store::{Store, Tree};

/// The slice that holds the entry `seq`, and its first seq.
pub(super) fn slice_holding(
    store: &Store,
    publisher: &Did,
    epoch: u64,
    seq: u64,
) -> io::Result<Option<(u64, SliceRecord)>> {
    let prefix = log_key(publisher, epoch);
    let found = store
        .last_at_or_before(Tree::Slices, &prefix, &seq.to_be_bytes())
        .map_err(io::Error::other)?;
    let Some(pair) = found else {
        return Ok(None);
    };
    let cursor = pair.key().get(40..).and_then(|key| key.try_into().ok());
    let cursor = cursor.map_or(0, u64::from_be_bytes);
    let slice: SliceRecord = pair.value().map_err(io::Error::other)?;
    Ok((seq < slice.next_cursor).then_some((cursor, slice)))
}

/// A log's history in the Store. A failed look-up reads as "not held", which can only refuse, never accept.
pub struct LogHistory {
    pub(super) store: Store,
    pub(super) publisher: Did,
    pub(super) epoch: u64,
}

impl History for LogHistory {
    fn slice_holding(&self, seq: u64) -> Option<SliceMark> {
        let (cursor, slice) =
            slice_holding(&self.store, &self.publisher, self.epoch, seq).ok()??;
        Some(SliceMark {
            digest: slice.digest,
            cursor,
            next_cursor: slice.next_cursor,
            log_root: slice.log_root,
        })
    }

    fn presence(&self, digest: &Digest) -> Option<PresenceMark> {
        let record: PresenceRecord = self.store.get(Tree::Presences, &digest.0).ok()??;
        (record.did == self.publisher).then_some(record.mark)
    }

    fn presence_with(&self, sequence: u64) -> Option<Digest> {
        let key = sequence_key(&self.publisher, self.epoch, sequence);
        self.store.get(Tree::Sequences, &key).ok()?
    }
}

/// A log's history while it grows: the Store's, and the lines that the Store has not heard of yet.
pub struct RecentHistory {
    stored: LogHistory,
    slices: BTreeMap<u64, SliceMark>,
    presences: HashMap<Digest, PresenceMark>,
    sequences: HashMap<u64, Digest>,
    lines: usize,
}

impl RecentHistory {
    /// What is stored, and nothing more yet.
    #[must_use]
    pub fn new(stored: LogHistory) -> Self {
        Self {
            stored,
            slices: BTreeMap::new(),
            presences: HashMap::new(),
            sequences: HashMap::new(),
            lines: 0,
        }
    }

    /// From now on `line` is known.
    pub fn add(&mut self, line: &Line) {
        self.lines += 1;
        match line {
            Line::Slice(slice) => {
                self.slices.insert(slice.cursor, SliceMark::from(slice));
            }
            Line::Presence(presence) => {
                let mark = PresenceMark::from(presence);
                self.presences.insert(mark.digest, mark);
                self.sequences.insert(mark.sequence, mark.digest);
            }
            Line::Frontier(_) => {}
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
        self.presences.clear();
        self.sequences.clear();
        self.lines = 0;
    }
}

impl History for RecentHistory {
    fn slice_holding(&self, seq: u64) -> Option<SliceMark> {
        let recent = self.slices.range(..=seq).next_back();
        recent
            .map(|(_, mark)| *mark)
            .filter(|mark| seq < mark.next_cursor)
            .or_else(|| self.stored.slice_holding(seq))
    }

    fn presence(&self, digest: &Digest) -> Option<PresenceMark> {
        let recent = self.presences.get(digest).copied();
        recent.or_else(|| self.stored.presence(digest))
    }

    fn presence_with(&self, sequence: u64) -> Option<Digest> {
        let recent = self.sequences.get(&sequence).copied();
        recent.or_else(|| self.stored.presence_with(sequence))
    }
}
