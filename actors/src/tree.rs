//! The nodes of each held log's tree, in one append-only file a log and epoch: what proofs and frontiers are read from.
//!
//! `state/trees/<publisher>-<epoch>.nodes` holds 32 bytes a node in the order of [`hn_protocol::merkle`]. It is derived from
//! the journal, as sled is: nobody fsyncs it, an append that fails leaves it short, and whoever reads a proof checks it
//! against the log's root before he shows it. So a wrong or missing node is noticed when it is needed, and mended then
//! ([`crate::prove`]).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::document::Slice;
use hn_protocol::log::{Line, LogState};
use hn_protocol::merkle::{Frontier, NodeReader, leaf_count, node_count, peak_positions};
use rustix::fs::{FallocateFlags, fallocate};

use crate::home::Home;
use crate::vault;

/// Bytes of a node.
const NODE: u64 = 32;
/// What file systems give back is a multiple of this.
const BLOCK: u64 = 4096;
/// Nodes that are kept in memory before they are written: those of a page.
const MAX_PENDING: usize = 1 << 20;

/// Where the nodes of one log and epoch stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeFile(PathBuf);

impl TreeFile {
    /// The file of `publisher`'s log of `epoch`, which may not be there. A DID's text is a plain file name.
    #[must_use]
    pub fn of(home: &Home, publisher: &Did, epoch: u64) -> Self {
        Self(home.trees_dir().join(file_name(publisher, epoch)))
    }

    /// The file of another epoch, in the same folder.
    fn of_epoch(&self, publisher: &Did, epoch: u64) -> Self {
        Self(self.0.with_file_name(file_name(publisher, epoch)))
    }

    /// The nodes, for reading. Errors: there is no such file, the disk.
    pub fn open(&self) -> io::Result<Nodes> {
        File::open(&self.0).map(Nodes)
    }

    /// Removes the file of a log that is not held any more. One that stays costs space alone.
    pub fn remove(&self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(file = %self.0.display(), %error, "the nodes of a log were not removed");
            }
            _ => {}
        }
    }

    /// Gives the disk back what no proof needs any more of a log that begins at `base` and whose last pruned slice begins
    /// at `anchor`: everything before that one but the two frontiers. A file system that cannot keeps it.
    pub fn punch(&self, anchor: u64, base: u64) {
        let mut kept: Vec<u64> = peak_positions(anchor).chain(peak_positions(base)).collect();
        kept.push(node_count(anchor));
        kept.sort_unstable();
        let punched = || -> io::Result<()> {
            let file = OpenOptions::new().write(true).open(&self.0)?;
            let mut from = 0;
            for position in kept.into_iter().take_while(|at| *at <= node_count(anchor)) {
                let block = position * NODE / BLOCK * BLOCK;
                if block > from {
                    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    fallocate(&file, hole, from, block - from)?;
                }
                from = from.max(block + BLOCK);
            }
            Ok(())
        };
        if let Err(error) = punched() {
            tracing::debug!(file = %self.0.display(), %error, "the nodes of a pruned beginning stay on the disk");
        }
    }

    fn open_for_writing(&self) -> io::Result<File> {
        if let Some(folder) = self.0.parent() {
            vault::create_dirs(folder)?;
        }
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(vault::FILE_MODE)
            .open(&self.0)
    }
}

fn file_name(publisher: &Did, epoch: u64) -> String {
    format!("{publisher}-{epoch}.nodes")
}

/// The nodes of a log. What it gives may be wrong: it is derived, and nobody has checked it yet.
#[derive(Debug)]
pub struct Nodes(File);

impl Nodes {
    /// How many leaves the file has nodes of.
    pub fn leaves(&self) -> io::Result<u64> {
        Ok(leaf_count(self.0.metadata()?.len() / NODE))
    }
}

impl NodeReader for Nodes {
    type Error = io::Error;

    fn node(&self, position: u64) -> io::Result<Digest> {
        let mut node = [0; NODE as usize];
        self.0.read_exact_at(&mut node, position * NODE)?;
        Ok(Digest(node))
    }
}

/// Grows the file of one log, slice by slice, in few writes.
#[derive(Debug)]
pub struct TreeWriter {
    file: TreeFile,
    epoch: u64,
    frontier: Frontier,
    /// The frontier that the file begins with, until it was begun.
    begin: Option<Frontier>,
    /// The size at which `pending` begins.
    from: u64,
    pending: Vec<u8>,
    failed: Option<io::Error>,
}

impl TreeWriter {
    /// Goes on from `state`. At the log's beginning the file is begun anew.
    #[must_use]
    pub fn of(home: &Home, state: &LogState) -> Self {
        let file = TreeFile::of(home, &state.publisher, state.epoch);
        let mut writer = Self::at(file, state.frontier.clone(), state.size() == state.base);
        writer.epoch = state.epoch;
        writer
    }

    /// Goes on in `file` from `frontier`; `anew` begins the file with nothing but that frontier.
    #[must_use]
    pub fn at(file: TreeFile, frontier: Frontier, anew: bool) -> Self {
        Self {
            file,
            epoch: 0,
            from: frontier.size(),
            begin: anew.then(|| frontier.clone()),
            frontier,
            pending: Vec::new(),
            failed: None,
        }
    }

    /// Appends what the log's next line brings: the nodes of a slice; a frontier or another epoch begins a file.
    pub fn add(&mut self, line: &Line) {
        let begins = match line {
            Line::Frontier(line) => Some(line.frontier.clone()),
            line => (line.epoch() != self.epoch).then(Frontier::default),
        };
        if let Some(frontier) = begins {
            self.flush();
            let failed = self.failed.take();
            let file = self.file.of_epoch(&line.publisher(), line.epoch());
            *self = Self {
                epoch: line.epoch(),
                failed,
                ..Self::at(file, frontier, true)
            };
        }
        if let Line::Slice(slice) = line {
            self.add_slice(slice);
        }
    }

    /// Appends the nodes of `slice`, if it is the log's next: the slice that a frontier stands for is in it already.
    pub fn add_slice(&mut self, slice: &Slice) {
        if slice.cursor != self.frontier.size() || self.failed.is_some() {
            return;
        }
        let Self {
            frontier, pending, ..
        } = self;
        for leaf in slice.leaves() {
            frontier.push_with(*leaf, |node| pending.extend_from_slice(&node.0));
        }
        if self.pending.len() >= MAX_PENDING {
            self.flush();
        }
    }

    /// Writes what is left. Errors: the disk; the file may then be shorter than the log.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush();
        self.failed.map_or(Ok(()), Err)
    }

    /// [`TreeWriter::finish`] where a file that stays behind is no failure.
    pub fn finish_or_warn(self) {
        let path = self.file.0.clone();
        if let Err(error) = self.finish() {
            tracing::warn!(file = %path.display(), %error, "nodes of a log were not written; they are made when they are needed");
        }
    }

    fn flush(&mut self) {
        if self.failed.is_none() && !self.pending.is_empty() {
            self.failed = self.write().err();
        }
        self.pending.clear();
        self.from = self.frontier.size();
    }

    fn write(&mut self) -> io::Result<()> {
        let file = self.file.open_for_writing()?;
        let start = node_count(self.from) * NODE;
        if let Some(frontier) = self.begin.take() {
            // What was pruned stays a hole, but for the frontier itself.
            file.set_len(0)?;
            file.set_len(node_count(frontier.size()) * NODE)?;
            for (position, hash) in peak_positions(frontier.size()).zip(frontier.hashes()) {
                file.write_all_at(&hash.0, position * NODE)?;
            }
        }
        let len = file.metadata()?.len();
        if len < start {
            // The file is behind already: nodes beyond a gap would only hide it.
            return Ok(());
        }
        file.write_all_at(&self.pending, start)?;
        let end = start + self.pending.len() as u64;
        if len > end {
            // Of a log that was longer before its journal was cut.
            file.set_len(end)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use hn_protocol::merkle::{frontier_at, leaf_hash, proof_at};

    fn push(writer: &mut TreeWriter, from: u64, to: u64) {
        for leaf in from..to {
            let leaf = leaf_hash(&leaf.to_be_bytes());
            let pending = &mut writer.pending;
            writer
                .frontier
                .push_with(leaf, |node| pending.extend_from_slice(&node.0));
        }
    }

    /// Writes the leaves from `from` to `to` in a run of their own, and answers the file's length in nodes.
    fn grow(file: &TreeFile, from: u64, to: u64) -> u64 {
        let mut before = Frontier::default();
        (0..from).for_each(|leaf| before.push(leaf_hash(&leaf.to_be_bytes())));
        let mut writer = TreeWriter::at(file.clone(), before, from == 0);
        push(&mut writer, from, to);
        writer.finish().unwrap();
        std::fs::metadata(&file.0).unwrap().len() / NODE
    }

    #[test]
    fn a_file_that_is_behind_stays_so_and_one_that_is_too_long_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let file = TreeFile(folder.path().join("trees/x.nodes"));
        assert_eq!(grow(&file, 0, 5), node_count(5));
        assert_eq!(grow(&file, 5, 9), node_count(9));
        assert_eq!(file.open().unwrap().leaves().unwrap(), 9);
        assert_eq!(grow(&file, 12, 20), node_count(9), "no nodes behind a gap");
        assert_eq!(grow(&file, 5, 7), node_count(7), "the log was cut");
        let nodes = file.open().unwrap();
        let mut expected = Frontier::default();
        (0..7u64).for_each(|leaf| expected.push(leaf_hash(&leaf.to_be_bytes())));
        assert_eq!(frontier_at(&nodes, 7).unwrap(), expected);
        assert_eq!(grow(&file, 0, 2), node_count(2), "begun anew");
    }

    #[test]
    fn what_no_proof_needs_is_given_back_and_everything_else_stays() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let file = TreeFile(folder.path().join("x.nodes"));
        grow(&file, 0, 20_000);
        let proof = |at, size| proof_at(&file.open().unwrap(), size, at).unwrap().unwrap();
        let (anchor, base) = (15_000, 15_360);
        let kept = [
            (anchor, 20_000),
            (base, base + 1),
            (base + 77, 19_000),
            (19_999, 20_000),
        ];
        let before: Vec<_> = kept.iter().map(|(at, size)| proof(*at, *size)).collect();
        let blocks = || std::fs::metadata(&file.0).unwrap().blocks();
        let (all, len) = (blocks(), std::fs::metadata(&file.0).unwrap().len());
        file.punch(anchor, base);
        file.punch(anchor, base);
        let after: Vec<_> = kept.iter().map(|(at, size)| proof(*at, *size)).collect();
        assert_eq!(after, before);
        assert_eq!(std::fs::metadata(&file.0).unwrap().len(), len);
        // Where the file system cannot, nothing is given back.
        assert!(
            blocks() < all / 2 || blocks() == all,
            "{} of {all}",
            blocks()
        );
        for size in (base..20_000).step_by(997) {
            frontier_at(&file.open().unwrap(), size).unwrap();
        }
        assert_eq!(grow(&file, 20_000, 20_001), node_count(20_001));
        TreeFile(folder.path().join("none")).punch(anchor, base);
    }

    #[test]
    fn a_pruned_beginning_is_its_frontier_with_holes_between() {
        let folder = tempfile::tempdir().unwrap();
        let file = TreeFile(folder.path().join("x.nodes"));
        let mut pruned = Frontier::default();
        (0..6u64).for_each(|leaf| pruned.push(leaf_hash(&leaf.to_be_bytes())));
        let mut writer = TreeWriter::at(file.clone(), pruned.clone(), true);
        push(&mut writer, 6, 8);
        let whole = writer.frontier.clone();
        writer.finish().unwrap();
        let nodes = file.open().unwrap();
        assert_eq!(frontier_at(&nodes, 6).unwrap(), pruned);
        assert_eq!(frontier_at(&nodes, 8).unwrap(), whole);
        assert_eq!(nodes.node(0).unwrap(), Digest([0; 32]), "nobody knows it");
    }
}
