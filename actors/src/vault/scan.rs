//! Walking over a journal's lines, at start and when everything is rebuilt from them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;

use super::{FileId, JournalFile, MAX_LINE, Span};

/// How much of a file is read at once.
const SCAN_BUFFER: usize = 128 << 10;

/// What a scan came upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scanned<'a> {
    /// A whole line.
    Line {
        /// Where it stands.
        span: Span,
        /// Its bytes, without the line end.
        bytes: &'a [u8],
    },
    /// From here to its end the file holds no whole line of at most [`MAX_LINE`] bytes: what a crash left, to be cut by
    /// [`truncate_tail`](super::Journal::truncate_tail). The scan goes on with the next file.
    Torn {
        /// The file.
        file: FileId,
        /// Where its last whole line ends.
        offset: u64,
        /// How many bytes stand behind.
        len: u64,
    },
}

/// A walk over a journal's lines that holds one of them in memory.
#[derive(Debug)]
pub struct Scan {
    folder: PathBuf,
    files: VecDeque<JournalFile>,
    /// Where the first file is entered.
    first: Option<(FileId, u64)>,
    current: Option<Current>,
    line: Vec<u8>,
}

#[derive(Debug)]
struct Current {
    file: JournalFile,
    offset: u64,
    input: BufReader<File>,
}

impl Scan {
    /// A walk over `files` of `folder`, beginning at `offset` in the file `first`.
    pub(super) fn new(
        folder: PathBuf,
        files: VecDeque<JournalFile>,
        first: FileId,
        offset: u64,
    ) -> Self {
        Self {
            folder,
            files,
            first: Some((first, offset)),
            current: None,
            line: Vec::new(),
        }
    }

    /// The next line or torn tail; nothing at the journal's end. Lines appended after the scan began are not seen.
    #[expect(
        clippy::should_implement_trait,
        reason = "an Iterator cannot lend its line"
    )]
    pub fn next(&mut self) -> io::Result<Option<Scanned<'_>>> {
        loop {
            let Some(current) = &mut self.current else {
                match self.enter_next()? {
                    true => continue,
                    false => return Ok(None),
                }
            };
            let rest = current.file.len.saturating_sub(current.offset);
            if rest == 0 {
                self.current = None;
                continue;
            }
            self.line.clear();
            let limit = rest.min(MAX_LINE as u64 + 1);
            let input = &mut current.input;
            let read = input.take(limit).read_until(b'\n', &mut self.line)?;
            let (file, offset) = (current.file.id, current.offset);
            if self.line.pop_if(|last| *last == b'\n').is_none() {
                self.current = None;
                return Ok(Some(Scanned::Torn {
                    file,
                    offset,
                    len: rest,
                }));
            }
            current.offset += read as u64;
            let span = Span {
                file,
                offset,
                len: self.line.len() as u32,
            };
            let bytes = &self.line;
            return Ok(Some(Scanned::Line { span, bytes }));
        }
    }

    fn enter_next(&mut self) -> io::Result<bool> {
        let Some(file) = self.files.pop_front() else {
            return Ok(false);
        };
        let mut handle = File::open(self.folder.join(&file.name))?;
        let offset = match self.first.take() {
            Some((first, offset)) if first == file.id => offset,
            _ => 0,
        };
        handle.seek(SeekFrom::Start(offset))?;
        self.current = Some(Current {
            file,
            offset,
            input: BufReader::with_capacity(SCAN_BUFFER, handle),
        });
        Ok(true)
    }
}
