//! Inclusion proofs of every log held (`spec/inclusion_proof.md`): O(log n) reads of its nodes, one of the slice.
//!
//! The nodes are derived and nobody vouches for them, so that a proof is checked before it is given out. One that does not
//! hold (bits that rotted, zeros that a power cut left, a file that is behind or was never made) has the nodes made again
//! from the journal's slices, once, by the caller who noticed; others are told to come back meanwhile.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, TryLockError};

use hn_protocol::canonical::{self, JsonError};
use hn_protocol::did::Did;
use hn_protocol::document::Slice;
use hn_protocol::log::PresenceMark;
use hn_protocol::merkle::{Frontier, frontier_at, leaf_hash, proof_at};
use hn_protocol::proof::Claim;
use hn_protocol::sign::Signed;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::catalog::{Catalog, LogView, ReadError};
use crate::home::Home;
use crate::tree::{TreeFile, TreeWriter};

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// The log, as its presence binds it, has no such entry.
    #[error("the presence held of this log binds {size} entries")]
    Beyond {
        /// How many there are.
        size: u64,
    },
    /// The entry was pruned here.
    #[error("the entries below {first_cursor} were pruned here")]
    Pruned {
        /// The first that is kept.
        first_cursor: u64,
    },
    /// The nodes are being made again.
    #[error("the proofs of a log are being rebuilt")]
    Busy,
    /// Journal and index contradict each other, also after the nodes were made again.
    #[error("the nodes of this log do not fold to its root")]
    Broken,
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<io::Error> for ProveError {
    fn from(error: io::Error) -> Self {
        Self::Read(error.into())
    }
}

impl From<JsonError> for ProveError {
    fn from(error: JsonError) -> Self {
        io::Error::other(error).into()
    }
}

/// Proves entries of held logs.
#[derive(Debug, Default)]
pub struct Prover {
    /// Held by whoever makes nodes: one at a time, since it is work for a processor.
    mending: Mutex<Unmendable>,
}

/// Logs (publisher and epoch) whose nodes were made again in vain, and the version of the view with which that was.
type Unmendable = BTreeMap<(Did, u64), u64>;

impl Prover {
    /// The proof document of the entry `seq` of the log that `view` shows. Reads the disk. Errors: see [`ProveError`].
    pub fn prove(
        &self,
        home: &Home,
        catalog: &Catalog,
        view: &LogView,
        seq: u64,
    ) -> Result<Vec<u8>, ProveError> {
        let state = &view.state;
        let bound = state.presence.ok_or(ProveError::Beyond { size: 0 })?;
        if seq >= bound.log_size {
            return Err(ProveError::Beyond {
                size: bound.log_size,
            });
        }
        let file = TreeFile::of(home, &state.publisher, state.epoch);
        if seq < state.base {
            // The last pruned slice is kept; what lies before it may still be known here, but cannot be made again.
            let mut kept = claim(catalog, view, seq, bound).ok();
            kept.take_if(|claim| !holds(claim, &file));
            let first_cursor = state.base;
            let kept = kept.ok_or(ProveError::Pruned { first_cursor })?;
            return Ok(kept.with_presence(&view.presence)?);
        }
        let mut claim = claim(catalog, view, seq, bound)?;
        if !holds(&mut claim, &file) {
            self.mend(catalog, view, &file, &mut claim)?;
        }
        Ok(claim.with_presence(&view.presence)?)
    }

    /// Makes nodes until `claim` holds: first those that are missing at the end, then all of them.
    fn mend(
        &self,
        catalog: &Catalog,
        view: &LogView,
        file: &TreeFile,
        claim: &mut Claim,
    ) -> Result<(), ProveError> {
        let mut unmendable = match self.mending.try_lock() {
            Ok(unmendable) => unmendable,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(ProveError::Busy),
        };
        // Whoever had the lock before may have mended what is missing here.
        if holds(claim, file) {
            return Ok(());
        }
        let log = (view.state.publisher, view.state.epoch);
        if unmendable.get(&log) == Some(&view.version) {
            return Err(ProveError::Broken);
        }
        if let Some(whole) = covered(catalog, view, file)? {
            extend(catalog, view, file, whole, false)?;
            if holds(claim, file) {
                return Ok(());
            }
        }
        tracing::warn!(log = %log.0, epoch = log.1, "the nodes of a log are made again from its slices");
        let made = beginning(catalog, view)
            .and_then(|frontier| extend(catalog, view, file, frontier, true));
        if made.is_ok() && holds(claim, file) {
            unmendable.remove(&log);
            return Ok(());
        }
        // Asking again would cost as much, and bring as little, until the log is read back or grows.
        unmendable.insert(log, view.version);
        made.and(Err(ProveError::Broken))
    }
}

/// The frontier at `size`, where a kept slice ends, from nodes that fold to what its publisher signed; they are made again
/// where they do not. Reads the disk. Errors: journal and index contradict each other, or cannot be read.
pub fn frontier(
    home: &Home,
    catalog: &Catalog,
    view: &LogView,
    size: u64,
) -> Result<Frontier, ProveError> {
    let file = TreeFile::of(home, &view.state.publisher, view.state.epoch);
    let (_, slice) = catalog.slice_with(view, size.saturating_sub(1))?;
    let read = || {
        let frontier = file.open().and_then(|nodes| frontier_at(&nodes, size));
        frontier
            .ok()
            .filter(|frontier| frontier.root() == slice.log_root)
    };
    if let Some(frontier) = read() {
        return Ok(frontier);
    }
    extend(catalog, view, &file, beginning(catalog, view)?, true)?;
    read().ok_or(ProveError::Broken)
}

/// Everything of a proof but its hashes.
fn claim(
    catalog: &Catalog,
    view: &LogView,
    seq: u64,
    bound: PresenceMark,
) -> Result<Claim, ProveError> {
    let (cursor, slice) = catalog.slice_with(view, seq)?;
    let line = view.reader.read(slice.span)?;
    let entry = entry_of(&line, seq - cursor)?;
    Ok(Claim {
        publisher: view.state.publisher,
        epoch: view.state.epoch,
        seq,
        leaf: leaf_hash(&canonical::to_vec(&entry)?),
        entry,
        log_size: bound.log_size,
        log_root: bound.merkle_root,
        proof: Vec::new(),
    })
}

/// Whether the nodes prove `claim`; then it has its hashes.
fn holds(claim: &mut Claim, file: &TreeFile) -> bool {
    let read = file
        .open()
        .and_then(|nodes| proof_at(&nodes, claim.log_size, claim.seq));
    let Ok(Some(proof)) = read else {
        return false;
    };
    claim.proof = proof;
    claim.check().is_ok()
}

/// The log at the last slice end up to which the file has all nodes, if what they fold to there is right.
fn covered(
    catalog: &Catalog,
    view: &LogView,
    file: &TreeFile,
) -> Result<Option<Frontier>, ProveError> {
    let Ok(nodes) = file.open() else {
        return Ok(None);
    };
    let leaves = nodes.leaves()?.min(view.state.size());
    if leaves <= view.state.base || leaves == view.state.size() {
        return Ok(None);
    }
    let (end, _) = catalog.slice_with(view, leaves)?;
    let Some(last) = end.checked_sub(1).filter(|last| *last >= view.state.base) else {
        return Ok(None);
    };
    let (_, before) = catalog.slice_with(view, last)?;
    let frontier = frontier_at(&nodes, end)?;
    Ok((frontier.root() == before.log_root).then_some(frontier))
}

/// The log before its first kept entry.
fn beginning(catalog: &Catalog, view: &LogView) -> Result<Frontier, ProveError> {
    if view.state.base == 0 {
        return Ok(Frontier::default());
    }
    Ok(catalog.frontier(view)?.frontier)
}

/// Writes the nodes of every slice from `frontier` on; `anew` begins the file with it.
fn extend(
    catalog: &Catalog,
    view: &LogView,
    file: &TreeFile,
    frontier: Frontier,
    anew: bool,
) -> Result<(), ProveError> {
    let from = frontier.size();
    let mut tree = TreeWriter::at(file.clone(), frontier, anew);
    for slice in catalog.slices(view, from) {
        let line = view.reader.read(slice?.span)?;
        let slice = Signed::<Slice>::verify(line.into()).map_err(io::Error::other)?;
        tree.add_slice(&slice);
    }
    Ok(tree.finish()?)
}

/// The entry at `index` of a verified slice's line, which has up to 1 MiB: those before it are passed over, and reading
/// ends with it.
fn entry_of(line: &[u8], index: u64) -> io::Result<Map<String, Value>> {
    let found = Cell::new(None);
    let search = Search {
        index,
        found: &found,
    };
    let read = serde_json::Deserializer::from_slice(line).deserialize_map(search);
    match (found.take(), read) {
        (Some(entry), _) => Ok(entry),
        (None, Err(error)) => Err(error.into()),
        (None, Ok(())) => Err(io::Error::other("the slice has no such entry")),
    }
}

/// Goes through a slice, then through its entries, and ends with an error when it has found the one.
struct Search<'a> {
    index: u64,
    found: &'a Cell<Option<Map<String, Value>>>,
}

impl<'de> Visitor<'de> for Search<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a slice with entries")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(key) = members.next_key::<std::borrow::Cow<'de, str>>()? {
            if key == "entries" {
                let Self { index, found } = self;
                members.next_value_seed(Search { index, found })?;
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        for _ in 0..self.index {
            if entries.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        self.found.set(entries.next_element()?);
        Err(A::Error::custom("nothing behind it is wanted"))
    }
}

impl<'de> DeserializeSeed<'de> for Search<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_entry_of_a_slice_is_read_wherever_it_stands() {
        let line =
            br#"{"cursor":"7","entries":[{"a":1},{"b":{"c":[2]}},{"d":3}],"type":"index@2"}"#;
        for (index, expected) in [r#"{"a":1}"#, r#"{"b":{"c":[2]}}"#, r#"{"d":3}"#]
            .iter()
            .enumerate()
        {
            let entry = entry_of(line, index as u64).unwrap();
            assert_eq!(serde_json::to_string(&entry).unwrap(), *expected);
        }
        assert!(entry_of(line, 3).is_err());
        assert!(entry_of(br#"{"type":"index@2"}"#, 0).is_err());
        assert!(entry_of(b"{", 0).is_err());
    }
}
