//! A log in memory, as a publisher writes it and a holder keeps it, and the pages served from it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hn_protocol::did::{Did, Identity, SecretSeed};
use hn_protocol::digest::Digest;
use hn_protocol::document::{Presence, Slice};
use hn_protocol::log::{
    CommitRequest, EntryDraft, History, Line, LogState, PresenceFacts, PresenceMark, SliceMark,
};
use hn_protocol::sign::Signed;
use hn_protocol::time::Timestamp;

/// When every story begins: 2026-01-01T00:00:00.000Z.
pub const START: Timestamp = Timestamp(1_767_225_600_000);
/// For how long a presence counts as current.
pub const DAY_MS: u64 = 24 * 3_600_000;

/// One identity a number.
pub fn identity(n: u8) -> Identity {
    SecretSeed::from_bytes([n; 32]).identity()
}

/// A file of that path, with the path as its content.
pub fn file(path: &str) -> EntryDraft {
    EntryDraft {
        kind: "file".into(),
        digest: Digest::of(path.as_bytes()),
        size: path.len() as u64,
        path: path.into(),
        tags: BTreeMap::new(),
        metadata: BTreeMap::new(),
        replaces: None,
        retracts: None,
    }
}

/// One answer of `GET /federate/index`.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// Without line ends.
    pub lines: Vec<Bytes>,
    /// Whether there is no `rel="next"`.
    pub reaches_head: bool,
}

/// A log with its lines in the order in which they were kept.
#[derive(Clone)]
pub struct Journal {
    pub state: LogState,
    pub lines: Vec<Line>,
    slices: Vec<Signed<Slice>>,
    presences: BTreeMap<Digest, Signed<Presence>>,
}

impl Journal {
    pub fn empty(publisher: Did) -> Self {
        Self {
            state: LogState::empty(publisher, 0),
            lines: Vec::new(),
            slices: Vec::new(),
            presences: BTreeMap::new(),
        }
    }

    /// Takes in lines that were signed or verified, and the state that they led to.
    pub fn keep(&mut self, lines: Vec<Line>, state: LogState) {
        for line in lines {
            match &line {
                Line::Slice(slice) => self.slices.push(slice.clone()),
                Line::Presence(presence) => {
                    self.presences.insert(presence.digest(), presence.clone());
                }
                Line::Frontier(_) => {}
            }
            self.lines.push(line);
        }
        self.state = state;
    }

    /// The page rules of `spec/http.md`: each presence before the first slice of the page that names it, and
    /// the current presence last when the page reaches the head.
    pub fn page(&self, cursor: u64, limit: usize) -> Page {
        let from = self.slices.partition_point(|s| s.next_cursor <= cursor);
        let to = self.slices.len().min(from + limit);
        let mut shown = BTreeSet::new();
        let mut lines = Vec::new();
        for slice in &self.slices[from..to] {
            if shown.insert(slice.presence_digest) {
                lines.push(self.presences[&slice.presence_digest].bytes().clone());
            }
            lines.push(slice.bytes().clone());
        }
        let reaches_head = to == self.slices.len();
        if let Some(mark) = self.state.presence.filter(|_| reaches_head) {
            lines.push(self.presences[&mark.digest].bytes().clone());
        }
        Page {
            lines,
            reaches_head,
        }
    }
}

impl History for Journal {
    fn slice_holding(&self, seq: u64) -> Option<SliceMark> {
        let at = self.slices.partition_point(|s| s.next_cursor <= seq);
        let slice = self.slices.get(at).filter(|s| s.cursor <= seq)?;
        Some(SliceMark::from(slice))
    }

    fn presence_with(&self, sequence: u64) -> Option<Digest> {
        let mut held = self.presences.values();
        held.find(|p| p.sequence == sequence).map(Signed::digest)
    }

    fn presence(&self, digest: &Digest) -> Option<PresenceMark> {
        self.presences.get(digest).map(PresenceMark::from)
    }
}

/// Somebody who grows a log of her own; her clock moves a second with every commit.
#[derive(Clone)]
pub struct Publisher {
    pub identity: Identity,
    pub log: Journal,
    pub now: Timestamp,
    pub facts: PresenceFacts,
}

impl Publisher {
    /// With presence no. 1, and nothing published.
    pub fn new(n: u8) -> Self {
        let identity = identity(n);
        let mut publisher = Self {
            log: Journal::empty(identity.did()),
            identity,
            now: START,
            facts: PresenceFacts {
                ttl_ms: DAY_MS,
                ..PresenceFacts::default()
            },
        };
        publisher.commit(vec![]);
        publisher
    }

    /// One commit: slices and the presence that covers them; without entries a presence alone.
    pub fn commit(&mut self, entries: Vec<EntryDraft>) {
        let request = CommitRequest {
            entries,
            facts: &self.facts,
            now: self.now,
        };
        let commit = self.log.state.commit(request, &self.identity).unwrap();
        self.log.keep(commit.lines, commit.state);
        self.now.0 += 1000;
    }
}
