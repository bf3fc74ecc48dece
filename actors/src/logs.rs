//! Every log held, as its one writer sees it: journal (the truth), state, index in the Store, view in the catalog.
//!
//! Boot, restart after a panic and reindex take the same way: what the Store says of a log counts as far as it
//! agrees with the journal's files; the rest of the journal is verified line by line, as if a peer had sent it.

mod mend;
mod prune;

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::log::{Line, LogState, PresenceMark, replay};
use hn_protocol::recovery::Extent;
use hn_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::prune::{PrunePolicy, Pruned};
use crate::catalog::{
    Catalog, LogRecord, LogView, PresenceRecord, RecentHistory, SliceRecord, log_key, sequence_key,
    slice_key,
};
use crate::failpoint;
use crate::home::Home;
use crate::store::{Batch, Store, StoreError, Tree};
use crate::tree::TreeWriter;
use crate::vault::{self, FileCache, FileId, Journal, MAX_LINE, Scanned, SpaceGuard, Span};

/// Lines that are verified before the Store hears of them, when a journal is read back.
const REPLAY_BATCH: usize = 256;

/// Why a log cannot be opened or grown.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The index.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LogError {
    /// Whether the disk is full (or `storage.min_free` is reached).
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io(error) => error.kind() == io::ErrorKind::StorageFull,
            Self::Store(StoreError::Io(error)) => error.kind() == io::ErrorKind::StorageFull,
            Self::Store(_) => false,
        }
    }
}

/// Where a log's files stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Our own, by alias.
    Own(String),
    /// Somebody else's.
    Cached,
}

impl Place {
    /// Which failpoints an append passes.
    const fn scope(&self) -> &'static str {
        match self {
            Self::Own(_) => "publish",
            Self::Cached => "sync",
        }
    }
}

/// The last entry of a path in our own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRecord {
    /// Its seq.
    pub seq: u64,
    /// Its artifact.
    pub digest: Digest,
}

fn path_key(publisher: &Did, epoch: u64, path: &str) -> Vec<u8> {
    [log_key(publisher, epoch).as_slice(), path.as_bytes()].concat()
}

/// What a walk over a journal found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// Slices verified.
    pub slices: u64,
    /// Their entries.
    pub entries: u64,
}

/// One log with the right to append to it.
pub struct Log {
    place: Place,
    state: LogState,
    journal: Journal,
    presence: Bytes,
    last_seen: Timestamp,
    /// A line of the journal does not verify: what is behind it is not used, and nothing is signed on top.
    damaged: Option<String>,
    /// Where the damage begins, where it stands in the journal.
    cut_at: Option<(FileId, u64)>,
    /// How far the log reached by what the index knew when it was opened.
    reach: Extent,
}

impl Log {
    /// Size, root, head, presence.
    #[must_use]
    pub const fn state(&self) -> &LogState {
        &self.state
    }

    /// The current presence's line; empty before the first.
    #[must_use]
    pub const fn presence(&self) -> &Bytes {
        &self.presence
    }

    /// From now on nothing may be signed on top of this log, nor appended to it.
    pub fn mark_damaged(&mut self, reason: String) {
        tracing::error!(log = %self.state.publisher, %reason, "the log is damaged");
        self.damaged.get_or_insert(reason);
    }

    /// Why nothing may be signed on top of this log.
    #[must_use]
    pub fn damaged(&self) -> Option<&str> {
        self.damaged.as_deref()
    }
}

/// What all logs share.
#[derive(Clone)]
pub struct Shelf {
    /// The home folder.
    pub home: Home,
    /// The index.
    pub store: Store,
    /// What is shown.
    pub catalog: Catalog,
    /// Open files.
    pub files: FileCache,
    /// Room on the disk.
    pub space: SpaceGuard,
}

impl Shelf {
    /// Opens the log of `publisher`, verifying what the index does not know yet. Errors: disk, index.
    pub fn open(&self, publisher: Did, place: Place) -> Result<(Log, Replayed), LogError> {
        let folder = self.folder(&publisher, &place);
        let journal = Journal::open(&folder, &self.files, self.space.clone())?;
        let known = self.newest(&publisher)?;
        let mut log = Log {
            place,
            state: LogState::empty(publisher, 0),
            journal,
            presence: Bytes::new(),
            last_seen: Timestamp(0),
            damaged: None,
            cut_at: None,
            reach: known
                .as_ref()
                .map_or_else(Extent::default, |record| Extent::from(&record.state)),
        };
        let extent = |state: &LogState| (state.epoch, state.size());
        let indexed = known.as_ref().map(|record| extent(&record.state));
        // Of what a crash interrupted, the index knows nobody can say which part.
        let whole = |record: &LogRecord| !log.journal.was_mended() && covers(&log.journal, record);
        let from = match known.filter(whole) {
            Some(record) => {
                log.state = record.state;
                log.last_seen = record.last_seen;
                record.cover
            }
            None => {
                if indexed.is_some() {
                    self.forget(&publisher)?;
                }
                None
            }
        };
        let replayed = self.replay(&mut log, from)?;
        self.sweep(&log.state)?;
        // What was indexed had been fsynced: a journal of our own that is shorter now was cut by other hands.
        let (held, indexed) = (extent(&log.state), indexed.unwrap_or_default());
        if held < indexed && log.place != Place::Cached {
            log.mark_damaged(format!(
                "the journal has {} entries of epoch {} where {} of epoch {} were published",
                held.1, held.0, indexed.1, indexed.0
            ));
        }
        if let Some(mark) = log.state.presence {
            let found: Option<PresenceRecord> = self.store.get(Tree::Presences, &mark.digest.0)?;
            if let Some(record) = found {
                log.presence = log.journal.read(record.span)?.into();
            }
        }
        self.show(&log);
        Ok((log, replayed))
    }

    /// Makes `lines` durable, then indexed, then visible, as one. `state` is the log after them; `seen` is when the
    /// publisher itself gave them. Errors: disk or index; then memory may be ahead or behind: open the log again.
    pub fn append(
        &self,
        log: &mut Log,
        lines: &[Line],
        state: LogState,
        now: Timestamp,
        seen: Option<Timestamp>,
    ) -> Result<(), LogError> {
        let signed = lines.iter().map(signed_at).max();
        log.last_seen = log
            .last_seen
            .max(seen.max(signed).unwrap_or_default().min(now));
        if lines.is_empty() {
            log.state = state;
            self.show(log);
            return Ok(());
        }
        let bytes: Vec<&[u8]> = lines.iter().map(|line| line.bytes().as_ref()).collect();
        let first_seq = log.state.size();
        let name = |free: u64| match &log.place {
            Place::Own(_) => format!("index-{:020}.jsonl", first_seq.max(free)),
            Place::Cached => format!("index-{}.jsonl", digits(now).max(free)),
        };
        let spans = log.journal.append(name, &bytes, log.place.scope())?;
        let mut tree = TreeWriter::of(&self.home, &log.state);
        lines.iter().for_each(|line| tree.add(line));
        tree.finish_or_warn();
        log.state = state;
        if let Some(Line::Presence(last)) = lines.iter().rev().find(
            |line| matches!(line, Line::Presence(p) if log.state.presence.is_some_and(|m| m.digest == p.digest())),
        ) {
            log.presence = last.bytes().clone();
        }
        let mut batch = Batch::default();
        for (line, span) in lines.iter().zip(&spans) {
            index_line(&mut batch, &log.place, line, *span)?;
        }
        let end = spans.last().map(|span| (span.file, span.end()));
        self.record(&mut batch, log, end)?;
        self.store.apply(batch)?;
        failpoint::hit_in(log.place.scope(), "store.after_apply")?;
        self.show(log);
        Ok(())
    }

    /// The last entry of `path` in a log of our own.
    pub fn path(&self, log: &Log, path: &str) -> Result<Option<PathRecord>, LogError> {
        Ok(self.store.get(
            Tree::Paths,
            &path_key(&log.state.publisher, log.state.epoch, path),
        )?)
    }

    /// What the index says of the newest epoch of a log.
    fn newest(&self, publisher: &Did) -> Result<Option<LogRecord>, LogError> {
        let (prefix, last) = (publisher.public_key(), u64::MAX.to_be_bytes());
        let found = self.store.last_at_or_before(Tree::Logs, prefix, &last)?;
        Ok(found.map(|pair| pair.value()).transpose()?)
    }

    /// Forgets what the index says of a log, every epoch of it; the journal stays.
    pub fn forget(&self, publisher: &Did) -> Result<(), LogError> {
        let mut batch = Batch::default();
        let of_logs = [Tree::Logs, Tree::Slices, Tree::Paths];
        for tree in of_logs
            .into_iter()
            .chain([Tree::Sequences, Tree::Frontiers])
        {
            for pair in self.store.scan_prefix(tree, publisher.public_key())? {
                batch.remove(tree, pair?.key());
            }
        }
        // Presences are kept by digest: one that the journal lost must not count as held.
        for pair in self.store.scan_prefix(Tree::Presences, &[])? {
            let pair = pair?;
            if pair.value::<PresenceRecord>()?.did == *publisher {
                batch.remove(Tree::Presences, pair.key());
            }
        }
        self.store.apply(batch)?;
        Ok(())
    }

    /// Takes the journal of a followed log out of use: its files stay under other names. Errors: disk, index.
    pub fn set_aside(&self, publisher: &Did, now: Timestamp) -> Result<(), LogError> {
        self.catalog.withdraw(publisher);
        let folder = self.folder(publisher, &Place::Cached);
        let journal = Journal::open(&folder, &self.files, self.space.clone())?;
        for file in journal.files() {
            let aside = format!("{}.forked-{}", file.name, now.0);
            std::fs::rename(folder.join(&file.name), folder.join(aside))?;
        }
        vault::sync_dir(&folder)?;
        self.forget(publisher)
    }

    fn folder(&self, publisher: &Did, place: &Place) -> PathBuf {
        match place {
            Place::Own(alias) => self.home.log_dir(alias),
            Place::Cached => self.home.cache_dir(publisher),
        }
    }

    fn record(
        &self,
        batch: &mut Batch,
        log: &Log,
        cover: Option<(FileId, u64)>,
    ) -> Result<(), LogError> {
        let record = LogRecord {
            state: log.state.clone(),
            cover,
            bytes: cover.map_or(0, |cover| covered_bytes(&log.journal, cover)),
            last_seen: log.last_seen,
        };
        batch.put(
            Tree::Logs,
            &log_key(&log.state.publisher, log.state.epoch),
            &record,
        )?;
        Ok(())
    }

    fn show(&self, log: &Log) {
        // A log without a presence has nothing that may be shown.
        if log.presence.is_empty() {
            self.catalog.withdraw(&log.state.publisher);
            return;
        }
        self.catalog.publish(LogView {
            state: log.state.clone(),
            presence: log.presence.clone(),
            last_seen: log.last_seen,
            bytes: log.journal.total_len(),
            reader: log.journal.reader(),
            version: 0,
        });
    }

    /// Verifies the journal from `from` on into state and index; cuts what a crash left unfinished.
    fn replay(&self, log: &mut Log, from: Option<(FileId, u64)>) -> Result<Replayed, LogError> {
        let mut scan = match from {
            Some((file, offset)) => log.journal.scan(file, offset),
            None => log.journal.scan_all(),
        };
        let mut found = Replayed::default();
        let mut tree = TreeWriter::of(&self.home, &log.state);
        let mut recent =
            RecentHistory::new(self.catalog.history(log.state.publisher, log.state.epoch));
        let mut batch = Batch::default();
        let mut cover = from;
        let mut cut = None;
        while let Some(scanned) = scan.next()? {
            let (span, bytes) = match scanned {
                Scanned::Line { span, bytes } => (span, Bytes::copy_from_slice(bytes)),
                Scanned::Torn { file, offset, len } => {
                    // A crash leaves less than a line, at the very end. Anything else of our own is damage.
                    let last = log
                        .journal
                        .files()
                        .last()
                        .is_some_and(|last| last.id == file);
                    if log.place == Place::Cached || (last && len <= MAX_LINE as u64) {
                        tracing::warn!(log = %log.state.publisher, bytes = len, "an unfinished write is cut off");
                        cut = Some((file, offset));
                    } else {
                        log.damaged =
                            Some(format!("{len} bytes at {offset} of a file are no lines"));
                        log.cut_at = Some((file, offset));
                    }
                    break;
                }
            };
            let line = Line::verify(bytes).map_err(|e| e.to_string());
            if let Ok(line) = &line
                && line.epoch() > log.state.epoch
            {
                // What the epoch before came to stays readable.
                self.record(&mut batch, log, cover)?;
                let history = self.catalog.history(log.state.publisher, line.epoch());
                recent = RecentHistory::new(history);
            }
            let taken = line.and_then(|line| {
                replay(&mut log.state, &line, &recent)
                    .map_err(|e| e.to_string())
                    .map(|()| line)
            });
            let line = match taken {
                Ok(line) => line,
                Err(reason) => {
                    tracing::error!(log = %log.state.publisher, file = span.file.0, offset = span.offset, %reason, "a stored line does not verify");
                    // Somebody else's log is fetched again from here; of our own nothing is thrown away.
                    match &log.place {
                        Place::Cached => cut = Some((span.file, span.offset)),
                        Place::Own(_) => {
                            log.damaged = Some(reason);
                            log.cut_at = Some((span.file, span.offset));
                        }
                    }
                    break;
                }
            };
            if let Line::Slice(slice) = &line {
                found.slices += 1;
                found.entries += slice.entries.len() as u64;
            }
            tree.add(&line);
            log.last_seen = log.last_seen.max(signed_at(&line));
            index_line(&mut batch, &log.place, &line, span)?;
            recent.add(&line);
            cover = Some((span.file, span.end()));
            if recent.len() >= REPLAY_BATCH {
                // With its record, so that a start that is cut short goes on from here.
                self.record(&mut batch, log, cover)?;
                self.store.apply(std::mem::take(&mut batch))?;
                recent.clear();
            }
        }
        tree.finish_or_warn();
        if let Some((file, offset)) = cut {
            // On a full disk the cut waits; what stands before it is read all the same.
            if let Err(error) = log.journal.truncate_tail(file, offset) {
                log.damaged = Some(format!("an unfinished write cannot be cut off: {error}"));
                log.cut_at = Some((file, offset));
            }
        }
        if cover != from || cut.is_some() {
            // Lines that a killed process wrote may not be on the disk yet: nothing is shown before they are.
            log.journal.sync()?;
            self.record(&mut batch, log, cover)?;
        }
        self.store.apply(batch)?;
        Ok(found)
    }
}

/// Whether the files hold at least what the index says of them.
fn covers(journal: &Journal, record: &LogRecord) -> bool {
    let Some((file, offset)) = record.cover else {
        return false;
    };
    let holds = journal
        .files()
        .iter()
        .any(|f| f.id == file && f.len >= offset);
    holds && covered_bytes(journal, (file, offset)) == record.bytes
}

/// Bytes of the journal's files up to `cover`.
fn covered_bytes(journal: &Journal, (file, offset): (FileId, u64)) -> u64 {
    let files = journal.files();
    let before: u64 = files.iter().filter(|f| f.id < file).map(|f| f.len).sum();
    before + offset
}

/// When the publisher signed this line, by its own word.
fn signed_at(line: &Line) -> Timestamp {
    match line {
        Line::Slice(slice) => slice.generated_at,
        Line::Presence(presence) => presence.issued_at,
        Line::Frontier(_) => Timestamp(0),
    }
}

fn index_line(batch: &mut Batch, place: &Place, line: &Line, span: Span) -> Result<(), StoreError> {
    if let (Place::Own(_), Line::Slice(slice)) = (place, line) {
        for entry in &slice.entries {
            let record = PathRecord {
                seq: entry.seq,
                digest: entry.digest,
            };
            batch.put(
                Tree::Paths,
                &path_key(&slice.publisher, slice.epoch, &entry.path),
                &record,
            )?;
        }
    }
    match line {
        Line::Slice(slice) => {
            let record = SliceRecord {
                span,
                next_cursor: slice.next_cursor,
                digest: slice.digest(),
                log_root: slice.log_root,
                presence: slice.presence_digest,
            };
            batch.put(
                Tree::Slices,
                &slice_key(&slice.publisher, slice.epoch, slice.cursor),
                &record,
            )?;
        }
        Line::Presence(presence) => {
            let record = PresenceRecord {
                did: presence.did,
                mark: PresenceMark::from(presence),
                span,
            };
            batch.put(Tree::Presences, &presence.digest().0, &record)?;
            let key = sequence_key(&presence.did, presence.epoch, presence.sequence);
            batch.put(Tree::Sequences, &key, &presence.digest())?;
        }
        Line::Frontier(line) => {
            let key = log_key(&line.publisher, line.epoch);
            batch.put(Tree::Frontiers, &key, &span)?;
        }
    }
    Ok(())
}

/// The digits of a time, as file names carry it: 20261123231700123.
fn digits(at: Timestamp) -> u64 {
    let text: String = at
        .to_string()
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    text.parse().unwrap_or(at.0)
}
