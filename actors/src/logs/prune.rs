//! Pruning and compaction of followed logs: their journals, and with them index and view (R1–R4 of `spec/index@2.md`).
//!
//! A log is cut at its beginning, where a slice ends. What stays are the frontier there, the slice that ended there, and
//! everything behind it. The new file and the old ones can be read beside each other until index and view know the new
//! one; only then the old ones go ([`Journal::replace`]). A reader who still has the old view finds the line that he looks
//! for, or nothing and asks again.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use hn_protocol::digest::Digest;
use hn_protocol::log::{FrontierLine, History, LogState};
use hn_protocol::time::Timestamp;
use serde::Deserialize;

use super::{Log, LogError, LogRecord, Place, Shelf, covered_bytes};
use crate::catalog::{LogView, PresenceRecord, SliceRecord, log_key, sequence_key, slice_key};
use crate::failpoint;
use crate::prove;
use crate::store::{Batch, Tree};
use crate::tree::TreeFile;
use crate::vault::{FileId, Replace, Replaced, Span};

/// Pruning waits until there is an eighth to prune: the file at the cut is written anew each time.
const SLACK: u64 = 8;

/// Bytes that a pruned journal opens with, beside its last pruned slice: the frontier and a few presences.
const HEAD: u64 = 8 << 10;

/// How much is kept of each followed log. Zero keeps everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrunePolicy {
    /// At least so many entries, as long as the other rules allow.
    pub entries: u64,
    /// At most so many bytes of its journal.
    pub bytes: u64,
    /// Slices that were signed within this time.
    pub age: Duration,
}

impl PrunePolicy {
    /// Whether anything is ever pruned.
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self != Self::default()
    }
}

/// What was pruned of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    /// Entries, those of earlier epochs left out.
    pub entries: u64,
    /// Bytes of its journal.
    pub bytes: u64,
    /// Where the log begins now.
    pub base: u64,
}

/// What moves with a pruning: the cut, and what the new file opens with.
struct Cut {
    frontier: FrontierLine,
    /// The last pruned slice.
    anchor: (u64, SliceRecord),
    /// Its line.
    anchor_line: Bytes,
    /// Presences before the cut that what stays names or may name: by sequence, the one that the anchor names first.
    presences: Vec<(PresenceRecord, Bytes)>,
}

impl Shelf {
    /// Prunes a followed log when `policy` asks for it. Errors: disk, index; then open the log again.
    pub fn prune(
        &self,
        log: &mut Log,
        policy: &PrunePolicy,
        now: Timestamp,
    ) -> Result<Option<Pruned>, LogError> {
        if !policy.is_set() || log.place != Place::Cached || log.damaged.is_some() {
            return Ok(None);
        }
        // What is not shown cannot be pruned: index and view are one.
        let view = self.catalog.log(&log.state.publisher);
        let Some(view) = view.filter(|view| view.state == log.state) else {
            return Ok(None);
        };
        let Some(base) = self.due(&view, policy, now)? else {
            return Ok(None);
        };
        let cut = self.cut(&view, base)?;
        let (entries, before) = (base - log.state.base, log.journal.total_len());
        let mut head: Vec<&[u8]> = vec![cut.frontier.bytes()];
        let (first, others) = cut.presences.split_at(1);
        head.extend(first.iter().map(|(_, line)| line.as_ref()));
        head.push(&cut.anchor_line);
        head.extend(others.iter().map(|(_, line)| line.as_ref()));
        let anchor = cut.anchor.1.span;
        let replaced = log.journal.replace(Replace {
            first: FileId(0),
            from: (anchor.file, anchor.end()),
            last: anchor.file,
            head: &head,
        })?;
        let state = LogState {
            base,
            ..log.state.clone()
        };
        let stays = cut.presences.iter().map(|(record, _)| record.mark.digest);
        let stays: BTreeSet<Digest> = stays.collect();
        let (mut batch, gone) = self.moved(&view, &state, &replaced, (cut.anchor.0, &stays))?;
        let mut spans = replaced.head.iter().copied();
        let mut next = || spans.next().unwrap_or(anchor);
        let key = log_key(&state.publisher, state.epoch);
        batch.put(Tree::Frontiers, &key, &next())?;
        let put = |batch: &mut Batch, record: &PresenceRecord, span| {
            let record = PresenceRecord {
                span,
                ..record.clone()
            };
            let digest = record.mark.digest;
            batch.put(Tree::Presences, &digest.0, &record)?;
            let sequence = record.mark.sequence;
            let key = sequence_key(&state.publisher, state.epoch, sequence);
            batch.put(Tree::Sequences, &key, &digest)
        };
        for (record, _) in first {
            put(&mut batch, record, next())?;
        }
        let record = SliceRecord {
            span: next(),
            ..cut.anchor.1.clone()
        };
        let key = slice_key(&state.publisher, state.epoch, cut.anchor.0);
        batch.put(Tree::Slices, &key, &record)?;
        for (record, _) in others {
            put(&mut batch, record, next())?;
        }
        log.state = state;
        self.take_over(log, batch, gone, &replaced)?;
        self.forget_epochs_before(&log.state)?;
        let nodes = TreeFile::of(&self.home, &log.state.publisher, log.state.epoch);
        nodes.punch(cut.anchor.0, base);
        Ok(Some(Pruned {
            entries,
            bytes: before.saturating_sub(log.journal.total_len()),
            base,
        }))
    }

    /// Makes one file of small ones beside each other, if there are any. Errors: as [`Shelf::prune`].
    pub fn compact(&self, log: &mut Log) -> Result<bool, LogError> {
        let view = self.catalog.log(&log.state.publisher);
        let view = view.filter(|view| view.state == log.state && log.damaged.is_none());
        let (Some(view), Some((first, last))) = (view, log.journal.small_files()) else {
            return Ok(false);
        };
        let replaced = log.journal.replace(Replace {
            first,
            from: (first, 0),
            last,
            head: &[],
        })?;
        let (batch, gone) = self.moved(&view, &log.state, &replaced, (0, &BTreeSet::new()))?;
        self.take_over(log, batch, gone, &replaced)?;
        Ok(true)
    }

    /// Up to where `policy` prunes; `None` when nothing is due. The newest slice always stays.
    fn due(
        &self,
        view: &LogView,
        policy: &PrunePolicy,
        now: Timestamp,
    ) -> Result<Option<u64>, LogError> {
        let (base, size) = (view.state.base, view.state.size());
        let exceeds = |value: u64, limit: u64| limit > 0 && value > limit + limit / SLACK;
        if base == size {
            return Ok(None);
        }
        let mut cut = base;
        if exceeds(size - base, policy.entries) {
            cut = cut.max(self.slice(view, size - policy.entries)?.0);
        }
        let bytes = view.reader.total_len();
        if policy.bytes > 0 && bytes > policy.bytes {
            let target = policy.bytes - policy.bytes / SLACK;
            let files = view.reader.files();
            let keeps = |cursor: u64, slice: &SliceRecord| -> Result<bool, LogError> {
                let before = files.iter().filter(|file| file.id < slice.span.file);
                let before = before.map(|file| file.len).sum::<u64>() + slice.span.offset;
                let head = match cursor.checked_sub(1) {
                    Some(last) => HEAD + u64::from(self.slice(view, last)?.1.span.len),
                    None => 0,
                };
                Ok(bytes - before + head <= target)
            };
            cut = cut.max(self.first_slice(view, keeps)?);
        }
        let age = u64::try_from(policy.age.as_millis()).unwrap_or(u64::MAX);
        let (oldest, kept) = (self.slice(view, base)?.1, now.0.saturating_sub(age));
        let signed = |slice: &SliceRecord| -> Result<u64, LogError> {
            Ok(signed_at(&view.reader.read(slice.span)?)?.0)
        };
        if age > 0 && exceeds(now.0.saturating_sub(signed(&oldest)?), age) {
            cut = cut.max(self.first_slice(view, |_, slice| Ok(signed(slice)? >= kept))?);
        }
        // What no presence binds yet could not be proved any more.
        let bound = view.state.presence.map_or(0, |presence| presence.log_size);
        let cut = cut.min(self.slice(view, size - 1)?.0).min(bound);
        Ok(Some(cut).filter(|cut| *cut > base))
    }

    /// The first seq of the first kept slice from which on `keeps` holds, by halving; the log's size when there is none.
    fn first_slice(
        &self,
        view: &LogView,
        keeps: impl Fn(u64, &SliceRecord) -> Result<bool, LogError>,
    ) -> Result<u64, LogError> {
        let (mut low, mut high) = (view.state.base, view.state.size());
        while low < high {
            let (cursor, slice) = self.slice(view, low + (high - low) / 2)?;
            if keeps(cursor, &slice)? {
                high = cursor;
            } else {
                low = slice.next_cursor;
            }
        }
        Ok(high)
    }

    fn slice(&self, view: &LogView, seq: u64) -> Result<(u64, SliceRecord), LogError> {
        Ok(self.catalog.slice_with(view, seq).map_err(as_io)?)
    }

    /// Everything that a log which begins at `base` opens with.
    fn cut(&self, view: &LogView, base: u64) -> Result<Cut, LogError> {
        let state = &view.state;
        let anchor = self.slice(view, base - 1)?;
        let frontier = prove::frontier(&self.home, &self.catalog, view, base).map_err(as_io)?;
        let end = (anchor.1.span.file, anchor.1.span.end());
        let mut named = BTreeSet::from([anchor.1.presence]);
        for slice in self.catalog.slices(view, base) {
            named.insert(slice.map_err(as_io)?.presence);
        }
        let least = state.named.map_or(0, |named| named.sequence);
        let mut presences = Vec::new();
        for record in self.presences(view, state.epoch)? {
            let stays = named.contains(&record.mark.digest) || record.mark.sequence >= least;
            let before = (record.span.file, record.span.offset) < end;
            if stays && before {
                let line = view.reader.read(record.span)?;
                presences.push((record, Bytes::from(line)));
            }
        }
        // The one that the anchor names stands before it.
        presences.sort_by_key(|(record, _)| {
            (
                record.mark.digest != anchor.1.presence,
                record.mark.sequence,
            )
        });
        Ok(Cut {
            frontier: FrontierLine::new(state.publisher, state.epoch, frontier)
                .map_err(std::io::Error::other)?,
            anchor_line: view.reader.read(anchor.1.span)?.into(),
            anchor,
            presences,
        })
    }

    /// The presences held of one epoch, by sequence.
    fn presences(&self, view: &LogView, epoch: u64) -> Result<Vec<PresenceRecord>, LogError> {
        let mut found = Vec::new();
        let prefix = log_key(&view.state.publisher, epoch);
        for pair in self.store.scan_prefix(Tree::Sequences, &prefix)? {
            let digest: Digest = pair?.value()?;
            found.extend(self.store.get(Tree::Presences, &digest.0)?);
        }
        Ok(found)
    }

    /// What the index has to hear of files that were replaced: which lines stand elsewhere, and which are gone. The slice
    /// and the presences of `stays` are put by whoever knows where they stand.
    fn moved(
        &self,
        view: &LogView,
        state: &LogState,
        replaced: &Replaced,
        (slice, presences): (u64, &BTreeSet<Digest>),
    ) -> Result<(Batch, Batch), LogError> {
        let (mut batch, mut gone) = (Batch::default(), Batch::default());
        let publisher = &state.publisher;
        let anchor = slice_key(publisher, state.epoch, slice);
        let of_log = publisher.public_key();
        for pair in self.store.scan_prefix(Tree::Slices, of_log)? {
            let pair = pair?;
            let slice: SliceRecord = pair.value()?;
            match replaced.span(slice.span) {
                Some(span) if span == slice.span => {}
                Some(span) => {
                    batch.put(Tree::Slices, pair.key(), &SliceRecord { span, ..slice })?
                }
                None if pair.key() == anchor => {}
                None => gone.remove(Tree::Slices, pair.key()),
            }
        }
        for epoch in self.epochs(state)? {
            for presence in self.presences(view, epoch)? {
                let mark = presence.mark;
                match replaced.span(presence.span) {
                    Some(span) if span == presence.span => {}
                    Some(span) => {
                        let record = PresenceRecord { span, ..presence };
                        batch.put(Tree::Presences, &mark.digest.0, &record)?;
                    }
                    None if presences.contains(&mark.digest) => {}
                    None => {
                        let key = sequence_key(publisher, epoch, mark.sequence);
                        gone.remove(Tree::Sequences, &key);
                        gone.remove(Tree::Presences, &mark.digest.0);
                    }
                }
            }
        }
        for pair in self.store.scan_prefix(Tree::Frontiers, of_log)? {
            let pair = pair?;
            let span: Span = pair.value()?;
            match replaced.span(span) {
                Some(moved) if moved == span => {}
                Some(moved) => batch.put(Tree::Frontiers, pair.key(), &moved)?,
                // That of this epoch is put anew.
                None if pair.key() == log_key(publisher, state.epoch) => {}
                None => gone.remove(Tree::Frontiers, pair.key()),
            }
        }
        Ok((batch, gone))
    }

    /// The epochs held of a log.
    fn epochs(&self, state: &LogState) -> Result<Vec<u64>, LogError> {
        let mut epochs = Vec::new();
        let of_log = state.publisher.public_key();
        for pair in self.store.scan_prefix(Tree::Logs, of_log)? {
            let record: LogRecord = pair?.value()?;
            epochs.push(record.state.epoch);
        }
        Ok(epochs)
    }

    /// Index, then view, then what is gone, in this order: a reader always finds what his view promises, or a newer view.
    fn take_over(
        &self,
        log: &mut Log,
        mut batch: Batch,
        gone: Batch,
        replaced: &Replaced,
    ) -> Result<(), LogError> {
        let key = log_key(&log.state.publisher, log.state.epoch);
        let known: Option<LogRecord> = self.store.get(Tree::Logs, &key)?;
        let cover = known.and_then(|record| record.cover);
        let cover = cover.map(|cover| replaced.end(cover));
        let bytes = cover.map_or(0, |cover| covered_bytes(&log.journal, cover));
        let record = LogRecord {
            state: log.state.clone(),
            cover,
            // The old files are still there, and will not be.
            bytes: bytes.saturating_sub(replaced.old_bytes()),
            last_seen: log.last_seen,
        };
        batch.put(Tree::Logs, &key, &record)?;
        self.store.apply(batch)?;
        failpoint::hit("prune.store.after_apply").map_err(LogError::from)?;
        self.show(log);
        self.store.apply(gone)?;
        log.journal.drop_replaced(replaced)?;
        // Again, with its size.
        self.show(log);
        Ok(())
    }

    /// Takes out of the index what a crash kept from being taken out after a pruning.
    pub(super) fn sweep(&self, state: &LogState) -> Result<(), LogError> {
        let (publisher, epoch) = (&state.publisher, state.epoch);
        let history = self.catalog.history(*publisher, epoch);
        let anchor = state
            .base
            .checked_sub(1)
            .and_then(|last| history.slice_holding(last));
        let Some(anchor) = anchor else {
            return Ok(());
        };
        let first = slice_key(publisher, epoch, anchor.cursor);
        let mut gone = Batch::default();
        for pair in self
            .store
            .scan_prefix(Tree::Slices, &log_key(publisher, epoch))?
        {
            let pair = pair?;
            if pair.key() >= first.as_slice() {
                break;
            }
            gone.remove(Tree::Slices, pair.key());
        }
        if gone.is_empty() {
            return Ok(());
        }
        Ok(self.store.apply(gone)?)
    }

    /// Earlier epochs stood before the cut.
    fn forget_epochs_before(&self, state: &LogState) -> Result<(), LogError> {
        let mut batch = Batch::default();
        let newest = log_key(&state.publisher, state.epoch);
        for pair in self
            .store
            .scan_prefix(Tree::Logs, state.publisher.public_key())?
        {
            let pair = pair?;
            if pair.key() < newest.as_slice() {
                let record: LogRecord = pair.value()?;
                TreeFile::of(&self.home, &state.publisher, record.state.epoch).remove();
                batch.remove(Tree::Logs, pair.key());
            }
        }
        if !batch.is_empty() {
            self.store.apply(batch)?;
        }
        Ok(())
    }
}

fn as_io(error: impl std::error::Error + Send + Sync + 'static) -> std::io::Error {
    std::io::Error::other(error)
}

/// When a verified slice's line says that it was signed.
fn signed_at(line: &[u8]) -> std::io::Result<Timestamp> {
    #[derive(Deserialize)]
    struct Signed {
        generated_at: Timestamp,
    }
    Ok(serde_json::from_slice::<Signed>(line)?.generated_at)
}

#[cfg(test)]
#[path = "prune_tests.rs"]
mod tests;
