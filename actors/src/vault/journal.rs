//! An append-only log of lines in numbered files: the signed documents of one publisher, byte for byte.
//!
//! ```text
//! index-00000000000000000000.jsonl   full: never written again
//! index-00000000000000081920.jsonl   current: grows by whole appends
//! index-….jsonl.torn-0               what a crash left of an append that was never acknowledged
//! ```
//!
//! One append is one write and one fsync, however many lines it has. Readers see a line when it is durable, not before.

mod replace;

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Deref;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};

pub use self::replace::{Replace, Replaced};
use super::scan::Scan;
use super::{FILE_MODE, SpaceGuard, create_dirs, sync_dir, write_durable};
use crate::failpoint;

/// A file that has reached this many bytes is full; the next append begins a new one. Small enough to move and to prune.
pub const MAX_FILE: u64 = 64 << 20;
/// The longest line: a slice of 1 MiB, and room for the envelope of a later type.
pub const MAX_LINE: usize = (1 << 20) + (64 << 10);
/// What the names of journal files begin with; other files in the folder are nobody's business.
const PREFIX: &str = "index-";
/// What the names of journal files end with.
const SUFFIX: &str = ".jsonl";

/// The number of a journal file: the digits of its name, read as one number. Files stand in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId(pub u64);

impl FileId {
    /// Reads the number out of `index-<digits>.jsonl`; other characters among the digits (`T`, `Z`, `-`) are passed over.
    fn of(name: &str) -> Option<Self> {
        let stem = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        let digits: String = stem.chars().filter(char::is_ascii_digit).collect();
        digits.parse().ok().map(Self)
    }
}

/// Where a line stands: `len` bytes from `offset` on, without its line end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    /// In which file.
    pub file: FileId,
    /// Its first byte.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u32,
}

impl Span {
    /// The offset behind the line and its line end: where the next line of this file starts.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset + self.len as u64 + 1
    }
}

/// One file of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalFile {
    /// Its number.
    pub id: FileId,
    /// Its name within the journal's folder.
    pub name: String,
    /// Its durable length in bytes.
    pub len: u64,
}

/// Open file handles, shared by all journals of a node, so that their number is bounded. Cloning shares it.
#[derive(Clone)]
pub struct FileCache {
    inner: Arc<FileCacheInner>,
}

struct FileCacheInner {
    handles: Cache<(u32, FileId), Arc<File>>,
    journals: AtomicU32,
}

impl FileCache {
    /// A cache of at most about `capacity` handles.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            inner: Arc::new(FileCacheInner {
                handles: Cache::new(capacity),
                journals: AtomicU32::new(0),
            }),
        }
    }
}

impl Default for FileCache {
    /// 128 handles: well under the usual limit of 1,024 open files, sockets included.
    fn default() -> Self {
        Self::new(128)
    }
}

impl fmt::Debug for FileCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileCache({} open)", self.inner.handles.len())
    }
}

/// The reading side of a journal, for any thread. Cloning shares it.
#[derive(Clone)]
pub struct JournalReader {
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    /// This journal's number among the keys of `cache`.
    number: u32,
    cache: FileCache,
    files: RwLock<Vec<JournalFile>>,
}

impl fmt::Debug for JournalReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JournalReader({})", self.shared.folder.display())
    }
}

impl JournalReader {
    /// The folder of the journal's files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// The files, in order, with their durable lengths.
    #[must_use]
    pub fn files(&self) -> Vec<JournalFile> {
        self.list().clone()
    }

    /// The bytes of all files.
    #[must_use]
    pub fn total_len(&self) -> u64 {
        self.list().iter().map(|file| file.len).sum()
    }

    /// Whether `span` lies within what is durable here.
    #[must_use]
    pub fn holds(&self, span: Span) -> bool {
        self.durable_len(span.file)
            .is_some_and(|len| span.end() <= len)
    }

    /// One line, without its line end. Errors: [`io::ErrorKind::UnexpectedEof`] where the journal holds no such line.
    pub fn read(&self, span: Span) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        self.read_onto(span, &mut line)?;
        Ok(line)
    }

    /// [`JournalReader::read`], appended to `buffer`.
    pub fn read_onto(&self, span: Span, buffer: &mut Vec<u8>) -> io::Result<()> {
        if !self.holds(span) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_exact(span.file, span.offset, span.len as usize, buffer)
    }

    /// At most `max_len` durable bytes of `file` from `offset` on; fewer at its end. Lines are not looked for.
    pub fn read_range(&self, file: FileId, offset: u64, max_len: usize) -> io::Result<Vec<u8>> {
        let durable = self.durable_len(file).ok_or(io::ErrorKind::NotFound)?;
        let rest = usize::try_from(durable.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        self.read_exact(file, offset, rest.min(max_len), &mut bytes)?;
        Ok(bytes)
    }

    /// Reads every line from `offset` in `file` on, through all later files. `offset` must be the start of a line.
    pub fn scan(&self, file: FileId, offset: u64) -> Scan {
        let files = self
            .list()
            .iter()
            .filter(|f| f.id >= file)
            .cloned()
            .collect();
        Scan::new(self.shared.folder.clone(), files, file, offset)
    }

    /// Reads every line there is.
    pub fn scan_all(&self) -> Scan {
        self.scan(FileId(0), 0)
    }

    fn read_exact(
        &self,
        file: FileId,
        offset: u64,
        len: usize,
        buffer: &mut Vec<u8>,
    ) -> io::Result<()> {
        let start = buffer.len();
        buffer.resize(start + len, 0);
        let read = self.handle(file).and_then(|handle| {
            handle.read_exact_at(buffer.get_mut(start..).unwrap_or_default(), offset)
        });
        if read.is_err() {
            buffer.truncate(start);
        }
        read
    }

    fn durable_len(&self, file: FileId) -> Option<u64> {
        let files = self.list();
        let at = files.binary_search_by_key(&file, |f| f.id).ok()?;
        files.get(at).map(|f| f.len)
    }

    fn handle(&self, file: FileId) -> io::Result<Arc<File>> {
        let key = (self.shared.number, file);
        let handles = &self.shared.cache.inner.handles;
        if let Some(handle) = handles.get(&key) {
            return Ok(handle);
        }
        let path = self.path(file)?;
        let handle = Arc::new(OpenOptions::new().read(true).write(true).open(path)?);
        handles.insert(key, Arc::clone(&handle));
        Ok(handle)
    }

    fn path(&self, file: FileId) -> io::Result<PathBuf> {
        let files = self.list();
        let at = files
            .binary_search_by_key(&file, |f| f.id)
            .map_err(|_| io::ErrorKind::NotFound)?;
        let file = files.get(at).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.shared.folder.join(&file.name))
    }

    fn list(&self) -> RwLockReadGuard<'_, Vec<JournalFile>> {
        self.shared
            .files
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Vec<JournalFile>)) {
        let files = self.shared.files.write();
        change(&mut files.unwrap_or_else(PoisonError::into_inner));
    }

    fn forget(&self, file: FileId) {
        let key = (self.shared.number, file);
        self.shared.cache.inner.handles.remove(&key);
    }
}

/// A journal, with the right to append. There is one a folder; it reads like its [`JournalReader`].
#[derive(Debug)]
pub struct Journal {
    reader: JournalReader,
    space: SpaceGuard,
    /// An append began and did not end: the current file may be longer than `files` says, or a new one may stand there.
    unsure: bool,
    mended: bool,
}

impl Deref for Journal {
    type Target = JournalReader;

    fn deref(&self) -> &JournalReader {
        &self.reader
    }
}

impl Journal {
    /// Opens the journal in `folder`, making the folder where there is none. Files of other names are left alone.
    /// Errors: IO; two files of one number.
    pub fn open(folder: &Path, cache: &FileCache, space: SpaceGuard) -> io::Result<Self> {
        create_dirs(folder)?;
        let mended = replace::recover(folder)?;
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let meta = entry.metadata()?;
            if let Some(id) = FileId::of(&name).filter(|_| meta.is_file()) {
                files.push(JournalFile {
                    id,
                    name,
                    len: meta.len(),
                });
            }
        }
        files.sort_unstable_by_key(|file| file.id);
        for pair in files.windows(2) {
            if let [a, b] = pair
                && a.id == b.id
            {
                let text = format!("{} and {} have one number", a.name, b.name);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        let number = cache.inner.journals.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            reader: JournalReader {
                shared: Arc::new(Shared {
                    folder: folder.to_owned(),
                    number,
                    cache: cache.clone(),
                    files: RwLock::new(files),
                }),
            },
            space,
            unsure: false,
            mended,
        })
    }

    /// Whether opening it finished a pruning or compaction that a crash had interrupted.
    #[must_use]
    pub const fn was_mended(&self) -> bool {
        self.mended
    }

    /// A reading side for other threads.
    #[must_use]
    pub fn reader(&self) -> JournalReader {
        self.reader.clone()
    }

    /// Appends `lines`, each with a line end, in one write and one fsync, and answers where they stand.
    ///
    /// `file_name` is asked only when a new file begins; it gets the smallest number that the name may carry. `scope`
    /// (`publish` or `sync`) says which failpoints are passed. An append that fails leaves nothing.
    /// Errors: a line that is empty, too long or holds a line end; no space; IO.
    pub fn append(
        &mut self,
        file_name: impl FnOnce(u64) -> String,
        lines: &[&[u8]],
        scope: &'static str,
    ) -> io::Result<Vec<Span>> {
        if lines.is_empty() {
            return Ok(Vec::new());
        }
        let block = join(lines)?;
        if self.unsure {
            self.undo()?;
        }
        self.space.check(block.len() as u64)?;
        failpoint::hit_in(scope, "journal.before_write")?;

        self.unsure = true;
        let appended = self.append_block(file_name, &block, scope);
        let (file, offset) = match appended {
            Ok(at) => at,
            Err(error) => {
                // Where that fails too, the next append tries again before it writes.
                if let Err(undo) = self.undo() {
                    tracing::warn!(folder = %self.folder().display(), %undo, "failed append not undone yet");
                }
                return Err(error);
            }
        };
        self.unsure = false;
        Ok(spans(file, offset, lines))
    }

    /// Answers where the block stands, durable.
    fn append_block(
        &self,
        file_name: impl FnOnce(u64) -> String,
        block: &[u8],
        scope: &'static str,
    ) -> io::Result<(FileId, u64)> {
        let last = self.list().last().cloned();
        let size = block.len() as u64;
        match last {
            Some(last) if last.len == 0 || last.len + size <= MAX_FILE => {
                let handle = self.handle(last.id)?;
                write_block(&handle, block, last.len, scope)?;
                failpoint::hit_in(scope, "journal.after_fsync")?;
                self.change(|files| {
                    if let Some(last) = files.last_mut() {
                        last.len += size;
                    }
                });
                Ok((last.id, last.len))
            }
            last => {
                let file = self.name_file(file_name, last.map(|last| last.id), size)?;
                let path = self.folder().join(&file.name);
                let handle = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(FILE_MODE)
                    .open(path)?;
                write_block(&handle, block, 0, scope)?;
                sync_dir(self.folder())?;
                failpoint::hit_in(scope, "journal.after_fsync")?;
                let id = file.id;
                self.change(|files| files.push(file));
                Ok((id, 0))
            }
        }
    }

    fn name_file(
        &self,
        file_name: impl FnOnce(u64) -> String,
        last: Option<FileId>,
        len: u64,
    ) -> io::Result<JournalFile> {
        let free = last.map_or(0, |last| last.0.saturating_add(1));
        let name = file_name(free);
        match FileId::of(&name).filter(|id| id.0 >= free && !name.contains('/')) {
            Some(id) => Ok(JournalFile { id, name, len }),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} does not name a journal file of number {free} or above"),
            )),
        }
    }

    /// Brings the folder back to what `files` says, after an append that failed or panicked.
    fn undo(&mut self) -> io::Result<()> {
        if let Some(last) = self.list().last() {
            let handle = OpenOptions::new()
                .write(true)
                .open(self.folder().join(&last.name))?;
            if handle.metadata()?.len() != last.len {
                handle.set_len(last.len)?;
                handle.sync_data()?;
            }
        }
        let mut removed = false;
        for entry in fs::read_dir(self.folder())? {
            let entry = entry?;
            let unknown = entry.file_name().to_str().and_then(FileId::of);
            if unknown.is_some_and(|id| self.durable_len(id).is_none()) {
                fs::remove_file(entry.path())?;
                removed = true;
            }
        }
        if removed {
            sync_dir(self.folder())?;
        }
        self.unsure = false;
        Ok(())
    }

    /// Makes durable what a process that was killed may have left in the page cache.
    pub fn sync(&self) -> io::Result<()> {
        if let Some(last) = self.list().last() {
            File::open(self.folder().join(&last.name))?.sync_data()?;
        }
        sync_dir(self.folder())
    }

    /// Ends the journal at `offset` in `file`. What stood behind is kept beside it as `<file>.torn-<n>`, later files
    /// whole. A crash midway is repaired by calling it again.
    pub fn truncate_tail(&mut self, file: FileId, offset: u64) -> io::Result<()> {
        let files = self.files();
        let at = files
            .binary_search_by_key(&file, |f| f.id)
            .map_err(|_| io::ErrorKind::NotFound)?;
        let (kept, later) = files.split_at(at + 1);
        let cut = kept.last().ok_or(io::ErrorKind::NotFound)?;
        for file in later.iter().rev() {
            let aside = self.torn_path(&file.name)?;
            fs::rename(self.folder().join(&file.name), aside)?;
            self.forget(file.id);
        }
        let path = self.folder().join(&cut.name);
        let handle = OpenOptions::new().read(true).write(true).open(&path)?;
        let len = handle.metadata()?.len();
        if offset < len {
            let mut tail = Vec::new();
            let mut reader = &handle;
            reader.seek(SeekFrom::Start(offset))?;
            reader.read_to_end(&mut tail)?;
            write_durable(&self.torn_path(&cut.name)?, &tail, FILE_MODE)?;
            sync_dir(self.folder())?;
            handle.set_len(offset)?;
            handle.sync_all()?;
        }
        sync_dir(self.folder())?;
        self.change(|files| {
            files.truncate(at + 1);
            if let Some(last) = files.last_mut() {
                last.len = last.len.min(offset);
            }
        });
        Ok(())
    }

    fn torn_path(&self, name: &str) -> io::Result<PathBuf> {
        // Each repair leaves one; a thousand of them want a person.
        (0..1000)
            .map(|n| self.folder().join(format!("{name}.torn-{n}")))
            .find(|path| !path.exists())
            .ok_or_else(|| io::Error::other("a thousand torn tails stand beside the journal"))
    }
}

/// One block of lines with their line ends.
fn join(lines: &[&[u8]]) -> io::Result<Vec<u8>> {
    let mut block = Vec::with_capacity(lines.iter().map(|line| line.len() + 1).sum());
    for line in lines {
        if line.is_empty() || line.len() > MAX_LINE || line.contains(&b'\n') {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a journal line has 1 to {MAX_LINE} bytes and no line end"),
            ));
        }
        block.extend_from_slice(line);
        block.push(b'\n');
    }
    Ok(block)
}

fn spans(file: FileId, mut offset: u64, lines: &[&[u8]]) -> Vec<Span> {
    lines
        .iter()
        .map(|line| {
            let span = Span {
                file,
                offset,
                // join() refused what is longer than MAX_LINE.
                len: line.len() as u32,
            };
            offset = span.end();
            span
        })
        .collect()
}

fn write_block(file: &File, block: &[u8], offset: u64, scope: &'static str) -> io::Result<()> {
    if let Some(fault) = failpoint::hit_torn_in(scope, "journal.torn_write") {
        let half = block.get(..block.len() / 2).unwrap_or_default();
        file.write_all_at(half, offset)?;
        return Err(fault.strike());
    }
    file.write_all_at(block, offset)?;
    failpoint::hit_in(scope, "journal.after_write")?;
    file.sync_data()
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
