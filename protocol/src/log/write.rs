//! Growing our own log: signed slices and the presence that covers them, as one commit (design 4).

use std::collections::BTreeMap;

use super::{LogState, PresenceMark};
use crate::did::Identity;
use crate::digest::Digest;
use crate::document::{
    Endpoints, Entry, MAX_ENTRIES, MAX_SLICE_BYTES, Presence, RelayBlock, Slice, SliceHead,
};
use crate::invariants;
use crate::log::Line;
use crate::sign::{DocumentError, Signed};
use crate::time::Timestamp;

/// Room for what a slice has beyond its entries.
const SLICE_OVERHEAD: usize = 8 * 1024;

/// An entry before it has its place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryDraft {
    /// `file`, or a document type's name.
    pub kind: String,
    /// The artifact.
    pub digest: Digest,
    /// Bytes of the artifact.
    pub size: u64,
    /// Where it stands, relative.
    pub path: String,
    /// Labels.
    pub tags: BTreeMap<String, String>,
    /// Further facts.
    pub metadata: BTreeMap<String, String>,
    /// The seq of the earlier entry of this path.
    pub replaces: Option<u64>,
    /// The seq of the entry taken back.
    pub retracts: Option<u64>,
}

/// What a presence says beyond the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PresenceFacts {
    /// Where the vault can be reached.
    pub endpoints: Endpoints,
    /// What its node does for others.
    pub services: Vec<String>,
    /// Its relay.
    pub relay: Option<RelayBlock>,
    /// For how long the presence counts as current, in milliseconds.
    pub ttl_ms: u64,
}

/// What is to be signed.
#[derive(Debug)]
pub struct CommitRequest<'a> {
    /// The new entries, in order; none for a re-issued presence.
    pub entries: Vec<EntryDraft>,
    /// What the covering presence says.
    pub facts: &'a PresenceFacts,
    /// Now.
    pub now: Timestamp,
}

/// Signed lines that belong together: to be made durable as one, before anything of it is shown.
#[derive(Debug)]
pub struct Commit {
    /// Slices, then the presence that covers them.
    pub lines: Vec<Line>,
    /// The log after them.
    pub state: LogState,
}

/// The presence that precedes every slice of a new log: size 0, the empty root.
/// Errors: the facts break a rule of `presence@2`.
pub fn first_presence(
    identity: &Identity,
    epoch: u64,
    facts: &PresenceFacts,
    now: Timestamp,
) -> Result<Commit, DocumentError> {
    LogState::empty(identity.did(), epoch).commit(
        CommitRequest {
            entries: Vec::new(),
            facts,
            now,
        },
        identity,
    )
}

impl LogState {
    /// Signs `request` on top of this log: slices of at most 512 entries and 1 MiB, then one presence.
    /// Errors: an entry or fact breaks a rule of its type; nothing is signed then.
    pub fn commit(
        &self,
        mut request: CommitRequest<'_>,
        identity: &Identity,
    ) -> Result<Commit, DocumentError> {
        let mut state = self.clone();
        let mut lines = Vec::new();
        let mut run = Run::default();
        for draft in std::mem::take(&mut request.entries) {
            let entry = draft.at(state.size() + run.entries.len() as u64);
            let canonical = crate::canonical::to_vec(&entry)?;
            if run.is_full(canonical.len()) {
                lines.push(std::mem::take(&mut run).sign(&mut state, &request, identity)?);
            }
            run.push(entry, &canonical);
        }
        if !run.entries.is_empty() {
            lines.push(run.sign(&mut state, &request, identity)?);
        }
        let presence = Signed::create(&state.next_presence(request.facts, request.now), identity)?;
        state.presence = Some(PresenceMark::from(&presence));
        debug_assert!(invariants::presence_binds_log(&presence, &state));
        lines.push(Line::Presence(presence));
        Ok(Commit { lines, state })
    }

    /// The highest sequence of this log, earlier epochs included; `None` before the first presence.
    fn last_sequence(&self) -> Option<u64> {
        let earlier = (self.floor > 0).then_some(self.floor);
        self.presence.map(|last| last.sequence).max(earlier)
    }

    fn next_presence(&self, facts: &PresenceFacts, now: Timestamp) -> Presence {
        Presence {
            did: self.publisher,
            epoch: self.epoch,
            sequence: invariants::next_sequence(self.last_sequence(), now),
            endpoints: facts.endpoints.clone(),
            services: facts.services.clone(),
            merkle_root: self.root(),
            log_size: self.size(),
            relay: facts.relay.clone(),
            relays: None,
            issued_at: now,
            expires_at: Timestamp(now.0.saturating_add(facts.ttl_ms)),
        }
    }
}

impl EntryDraft {
    /// Whether a log can take this entry, wherever it will stand. Errors: the first rule of `index@2` that is broken.
    pub fn check(&self) -> Result<(), DocumentError> {
        let last = crate::canonical::MAX_INTEGER;
        self.clone().at(last).check()
    }

    fn at(self, seq: u64) -> Entry {
        Entry {
            seq,
            kind: self.kind,
            digest: self.digest,
            size: self.size,
            path: self.path,
            tags: self.tags,
            metadata: self.metadata,
            replaces: self.replaces,
            retracts: self.retracts,
        }
    }
}

/// Entries that will share a slice.
#[derive(Default)]
struct Run {
    entries: Vec<Entry>,
    leaves: Vec<Digest>,
    bytes: usize,
}

impl Run {
    fn is_full(&self, more: usize) -> bool {
        !self.entries.is_empty()
            && (self.entries.len() == MAX_ENTRIES
                || self.bytes + more + SLICE_OVERHEAD > MAX_SLICE_BYTES)
    }

    fn push(&mut self, entry: Entry, canonical: &[u8]) {
        self.bytes += canonical.len() + 1;
        self.leaves.push(crate::merkle::leaf_hash(canonical));
        self.entries.push(entry);
    }

    fn sign(
        self,
        state: &mut LogState,
        request: &CommitRequest<'_>,
        identity: &Identity,
    ) -> Result<Line, DocumentError> {
        // Presence no. 1 precedes the first slice of every log.
        let named = state
            .presence
            .ok_or_else(|| DocumentError::Malformed("the log has no presence yet".into()))?;
        let mut grown = state.frontier.clone();
        self.leaves.iter().for_each(|leaf| grown.push(*leaf));
        let head = SliceHead {
            publisher: state.publisher,
            epoch: state.epoch,
            source: request.facts.endpoints.mcp.clone(),
            generated_at: request.now,
            log_root: grown.root(),
            prev: state.head,
            presence_digest: named.digest,
        };
        let slice = Signed::create(&Slice::new(head, self.entries, self.leaves), identity)?;
        state.advance(&slice, named);
        Ok(Line::Slice(slice))
    }
}
