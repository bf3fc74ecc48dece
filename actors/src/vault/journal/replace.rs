//! Replacing files of a journal by one that holds less (pruning) or as much in one piece (compaction).
//!
//! ```text
//! 1  <new>.part        the new file, durable under a name that nobody reads
//! 2  replaced.json     what it replaces, durable: from here on a start finishes what a crash interrupted
//! 3  <new>             renamed; old and new files can be read beside each other until the index knows the new one
//! 4                    the old files are removed, then replaced.json
//! ```
//!
//! A crash before 3 leaves the old files, one behind it the new one: never neither, never a mixture. The new file has a
//! number of its own, so that whoever still looks for a line in an old file finds it or nothing, and no other line.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{FileId, Journal, JournalFile, MAX_FILE, PREFIX, SUFFIX, Span, join, spans};
use crate::failpoint;
use crate::vault::{FILE_MODE, sync_dir, write_atomic};

/// What a new file is called while it is written.
const PART: &str = ".part";
/// Says which files a new one replaces.
const INTENT: &str = "replaced.json";
/// The longest intent that is read: names of more files than a journal has.
const MAX_INTENT: u64 = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Intent {
    new: String,
    old: Vec<String>,
}

impl Intent {
    fn is_plain(&self) -> bool {
        let plain = |name: &String| FileId::of(name).is_some() && !name.contains('/');
        plain(&self.new) && self.old.iter().all(plain) && !self.old.contains(&self.new)
    }
}

/// Which part of a journal is written anew.
#[derive(Debug, Clone, Copy)]
pub struct Replace<'a> {
    /// The first file that goes.
    pub first: FileId,
    /// From which line on it is kept, in `first` or a later file.
    pub from: (FileId, u64),
    /// The last file that goes.
    pub last: FileId,
    /// Lines that the new file opens with.
    pub head: &'a [&'a [u8]],
}

/// A new file in place, beside those that it replaces.
#[derive(Debug)]
#[must_use = "the files that it replaces are still there"]
pub struct Replaced {
    /// Where the opening lines stand.
    pub head: Vec<Span>,
    file: FileId,
    old: Vec<JournalFile>,
    /// What was taken over: from this file, from this offset on, to that offset.
    parts: Vec<(FileId, u64, u64)>,
}

impl Replaced {
    /// Where a line stands that stood at `span`; `None` when it is gone.
    #[must_use]
    pub fn span(&self, span: Span) -> Option<Span> {
        if !self.is_old(span.file) {
            return Some(span);
        }
        let of_file = self.parts.iter().find(|(file, ..)| *file == span.file);
        let (_, from, to) = of_file.filter(|(_, from, _)| span.offset >= *from)?;
        Some(Span {
            file: self.file,
            offset: span.offset - from + to,
            len: span.len,
        })
    }

    /// Where the end of a line stands that ended at `offset` of `file`.
    #[must_use]
    pub fn end(&self, (file, offset): (FileId, u64)) -> (FileId, u64) {
        let line = Span {
            file,
            offset,
            len: 0,
        };
        self.span(line)
            .map_or((file, offset), |span| (span.file, span.offset))
    }

    /// Whether `file` is one of those that go.
    #[must_use]
    pub fn is_old(&self, file: FileId) -> bool {
        self.old.iter().any(|old| old.id == file)
    }

    /// Bytes of the files that go.
    #[must_use]
    pub fn old_bytes(&self) -> u64 {
        self.old.iter().map(|file| file.len).sum()
    }
}

/// Finishes or undoes what a crash interrupted, and answers whether it finished something. Errors: IO; then nothing was
/// lost, and the next start tries again.
pub(super) fn recover(folder: &Path) -> io::Result<bool> {
    let path = folder.join(INTENT);
    let mut text = Vec::new();
    match File::open(&path) {
        Ok(file) => file.take(MAX_INTENT).read_to_end(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            remove_parts(folder)?;
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    let intent = serde_json::from_slice::<Intent>(&text)
        .ok()
        .filter(Intent::is_plain);
    let intent = intent.filter(|intent| folder.join(&intent.new).exists());
    let finished = intent.is_some();
    if let Some(intent) = intent {
        tracing::warn!(folder = %folder.display(), file = intent.new, "an interrupted pruning or compaction is finished");
        // Its rename may not be durable yet.
        sync_dir(folder)?;
        for old in &intent.old {
            remove(&folder.join(old))?;
        }
        sync_dir(folder)?;
    }
    remove(&path)?;
    remove_parts(folder)?;
    Ok(finished)
}

fn remove_parts(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name
            .strip_suffix(PART)
            .is_some_and(|name| FileId::of(name).is_some())
        {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Journal {
    /// Files beside each other that fit into one: the first run of them that is worth it.
    #[must_use]
    pub fn small_files(&self) -> Option<(FileId, FileId)> {
        let files = self.files();
        let mut run: Vec<&JournalFile> = Vec::new();
        for file in &files {
            let bytes: u64 = run.iter().map(|file| file.len).sum();
            if bytes + file.len > MAX_FILE {
                if run.len() > 1 {
                    break;
                }
                run.clear();
            }
            run.push(file);
        }
        match run.as_slice() {
            [first, .., last] => Some((first.id, last.id)),
            _ => None,
        }
    }

    /// Writes a new file in the place of those that `what` names, and makes it durable and readable. The old ones stay
    /// until [`Journal::drop_replaced`]. Errors: IO; then open the journal again, which finishes or undoes it.
    pub fn replace(&mut self, what: Replace<'_>) -> io::Result<Replaced> {
        if self.unsure {
            self.undo()?;
        }
        let files = self.files();
        let mut last = what.last;
        // The new file's number lies between the last one that goes and the next.
        while files.iter().any(|file| file.id.0 == last.0 + 1) {
            last.0 += 1;
        }
        let id = FileId(last.0.saturating_add(1));
        let old: Vec<JournalFile> = files
            .into_iter()
            .filter(|file| file.id >= what.first && file.id <= last)
            .collect();
        let name = format!("{PREFIX}{}{SUFFIX}", id.0);
        let mut replaced = Replaced {
            head: spans(id, 0, what.head),
            file: id,
            old,
            parts: Vec::new(),
        };
        let part = self.folder().join(format!("{name}{PART}"));
        let written = self.write_part(&part, what, &mut replaced);
        let len = match written {
            Ok(len) => len,
            Err(error) => {
                let _ = fs::remove_file(&part);
                return Err(error);
            }
        };
        failpoint::hit("prune.journal.after_write")?;
        let intent = Intent {
            new: name.clone(),
            old: replaced.old.iter().map(|file| file.name.clone()).collect(),
        };
        let intent = serde_json::to_vec(&intent).map_err(io::Error::other)?;
        write_atomic(&self.folder().join(INTENT), &intent, FILE_MODE)?;
        failpoint::hit("prune.journal.after_intent")?;
        fs::rename(&part, self.folder().join(&name))?;
        sync_dir(self.folder())?;
        failpoint::hit("prune.journal.after_rename")?;
        self.change(|files| {
            files.push(JournalFile { id, name, len });
            files.sort_unstable_by_key(|file| file.id);
        });
        Ok(replaced)
    }

    fn write_part(
        &self,
        path: &Path,
        what: Replace<'_>,
        replaced: &mut Replaced,
    ) -> io::Result<u64> {
        let mut part = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(FILE_MODE)
            .open(path)?;
        let head = join(what.head)?;
        part.write_all(&head)?;
        let mut len = head.len() as u64;
        let (first, offset) = what.from;
        for file in replaced.old.iter().filter(|file| file.id >= first) {
            let from = if file.id == first { offset } else { 0 };
            let rest = file.len.saturating_sub(from);
            let mut source = File::open(self.folder().join(&file.name))?;
            source.seek(SeekFrom::Start(from))?;
            if io::copy(&mut source.take(rest), &mut part)? != rest {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            replaced.parts.push((file.id, from, len));
            len += rest;
        }
        part.sync_all()?;
        Ok(len)
    }

    /// Removes the files that were replaced: the index speaks of the new one by now. Errors: IO; the next start goes on.
    pub fn drop_replaced(&mut self, replaced: &Replaced) -> io::Result<()> {
        self.change(|files| files.retain(|file| !replaced.is_old(file.id)));
        for file in &replaced.old {
            remove(&self.folder().join(&file.name))?;
            self.forget(file.id);
        }
        sync_dir(self.folder())?;
        failpoint::hit("prune.journal.after_remove")?;
        remove(&self.folder().join(INTENT))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::vault::{FileCache, SpaceGuard};

    fn open(folder: &Path) -> Journal {
        let space = SpaceGuard::new(folder, 0);
        Journal::open(folder, &FileCache::default(), space).unwrap()
    }

    fn append(journal: &mut Journal, line: &str) -> Span {
        journal
            .append(
                |free| format!("index-{free}.jsonl"),
                &[line.as_bytes()],
                "sync",
            )
            .unwrap()[0]
    }

    fn text(journal: &Journal) -> String {
        let files = journal.files();
        let read = |file: &JournalFile| {
            let bytes = journal.read_range(file.id, 0, file.len as usize).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        files.iter().map(read).collect()
    }

    /// Lines a to e in files of 10, 11 and 20.
    fn filled(folder: &Path) -> (Journal, Vec<Span>) {
        for (number, text) in [(10, "aa\nb\n"), (11, "ccc\n"), (20, "d\nee\n")] {
            fs::write(folder.join(format!("index-{number}.jsonl")), text).unwrap();
        }
        let journal = open(folder);
        let line = |file, offset, len| Span {
            file: FileId(file),
            offset,
            len,
        };
        let spans = vec![
            line(10, 0, 2),
            line(10, 3, 1),
            line(11, 0, 3),
            line(20, 0, 1),
            line(20, 2, 2),
        ];
        (journal, spans)
    }

    #[test]
    fn a_journal_is_cut_at_its_beginning_and_grows_on() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, spans) = filled(folder.path());
        let replaced = journal
            .replace(Replace {
                first: FileId(0),
                from: (FileId(10), 3),
                last: FileId(10),
                head: &[b"head", b"more"],
            })
            .unwrap();
        assert_eq!(replaced.span(spans[0]), None);
        let b = replaced.span(spans[1]).unwrap();
        assert_eq!(journal.read(b).unwrap(), b"b");
        assert_eq!(journal.read(replaced.head[1]).unwrap(), b"more");
        // The file behind it had the number that was needed: it went along.
        assert_eq!(replaced.span(spans[2]).unwrap().file, FileId(12));
        assert_eq!(replaced.span(spans[3]), Some(spans[3]));
        assert_eq!(journal.read(spans[0]).unwrap(), b"aa", "still readable");
        journal.drop_replaced(&replaced).unwrap();
        assert!(journal.read(spans[0]).is_err(), "gone, and no other line");
        assert_eq!(text(&journal), "head\nmore\nb\nccc\nd\nee\n");
        let f = append(&mut journal, "f");
        assert_eq!(f.file, FileId(20));
        drop(journal);
        assert_eq!(text(&open(folder.path())), "head\nmore\nb\nccc\nd\nee\nf\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn small_files_become_one_and_keep_every_line() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, spans) = filled(folder.path());
        let (first, last) = journal.small_files().unwrap();
        assert_eq!((first, last), (FileId(10), FileId(20)));
        let replaced = journal
            .replace(Replace {
                first,
                from: (first, 0),
                last,
                head: &[],
            })
            .unwrap();
        let moved: Vec<_> = spans
            .iter()
            .map(|span| journal.read(replaced.span(*span).unwrap()).unwrap())
            .collect();
        assert_eq!(moved, [&b"aa"[..], b"b", b"ccc", b"d", b"ee"]);
        assert_eq!(replaced.end((FileId(20), 5)), (FileId(21), 14));
        journal.drop_replaced(&replaced).unwrap();
        assert_eq!(journal.small_files(), None);
        assert_eq!(text(&journal), "aa\nb\nccc\nd\nee\n");
    }

    #[test]
    fn a_start_finishes_or_undoes_what_was_interrupted_and_obeys_no_foreign_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let whole = "aa\nb\nccc\nd\nee\n";
        let intent = |old: &str| format!(r#"{{"new":"index-12.jsonl","old":["{old}"]}}"#);
        // Before the rename: undone.
        filled(folder.path());
        fs::write(at("index-12.jsonl.part"), "half").unwrap();
        assert_eq!(text(&open(folder.path())), whole);
        assert!(!at("index-12.jsonl.part").exists());
        fs::write(at("index-12.jsonl.part"), "b\nccc\n").unwrap();
        fs::write(at(INTENT), intent("index-10.jsonl")).unwrap();
        assert_eq!(text(&open(folder.path())), whole);
        assert!(!at(INTENT).exists() && !at("index-12.jsonl.part").exists());
        // Behind it: finished, also the second time.
        for _ in 0..2 {
            fs::write(at("index-12.jsonl"), "x\n").unwrap();
            fs::write(at(INTENT), intent("index-10.jsonl")).unwrap();
            assert_eq!(text(&open(folder.path())), "ccc\nx\nd\nee\n");
            assert!(!at(INTENT).exists());
        }
        let outside = tempfile::NamedTempFile::new().unwrap();
        let name = outside.path().file_name().unwrap().to_str().unwrap();
        for foreign in [format!("../{name}"), "index-1/../../x.jsonl".into()] {
            fs::write(at(INTENT), intent(&foreign)).unwrap();
            assert_eq!(text(&open(folder.path())), "ccc\nx\nd\nee\n");
        }
        fs::write(at(INTENT), "{").unwrap();
        open(folder.path());
        assert!(outside.path().exists() && !at(INTENT).exists());
    }
}
