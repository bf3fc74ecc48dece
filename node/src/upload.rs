//! What `hn shard publish` sends: the files that were named, in order, as a tar that is made while it is sent.
//!
//! Everything is looked at before anything is sent, and what can't be published is refused by name. One thread reads
//! and packs; at most [`QUEUE`] pieces wait for the socket, so that a file of any size takes a few MiB of memory.

use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hn_actors::gateway::{BATCH_BYTES, BATCH_FILES};
use hn_protocol::digest::Digest;
use hn_protocol::document::check_path;
use reqwest::Body;
use tokio::sync::{mpsc, oneshot};

use crate::cli::output::{CliError, Progress};

/// Bytes sent at once: large enough that 10,000 small files are no 10,000 writes.
const PIECE: usize = 256 << 10;
/// Pieces that may wait for the socket.
const QUEUE: usize = 8;
/// Refused files that an error names before it only counts.
const NAMED: usize = 20;

/// Files to publish, by their published paths, sorted.
#[derive(Clone, Debug)]
pub struct Selection {
    files: Arc<BTreeMap<String, Picked>>,
}

/// A file where it lies, with its size in bytes when it was looked at.
#[derive(Debug)]
struct Picked {
    source: PathBuf,
    size: u64,
}

impl Selection {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.size).sum()
    }

    /// Path, size and digest of each file, read now.
    pub fn digests(&self) -> Result<Vec<(String, u64, Digest)>, CliError> {
        let digest = |(path, file): (&String, &Picked)| {
            let mut hasher = blake3::Hasher::new();
            let read = open(&file.source)
                .and_then(|(opened, _)| hasher.update_reader(opened).map(|hasher| hasher.count()));
            match read {
                Ok(size) => Ok((path.clone(), size, Digest::from(hasher.finalize()))),
                Err(error) => Err(unreadable(&file.source, &error)),
            }
        };
        self.files.iter().map(digest).collect()
    }
}

/// Picks the files: a file by its name, of a folder every file by its path relative to the folder.
/// Errors: a path that isn't there, and, named together, everything that is no regular file with a portable name.
pub fn select(paths: &[PathBuf]) -> Result<Selection, CliError> {
    let mut picking = Picking::default();
    for path in paths {
        let metadata = std::fs::symlink_metadata(path).map_err(|error| {
            let said =
                CliError::failed("missing_path", format_args!("{}: {error}", path.display()));
            said.next("name files and folders that are there")
        })?;
        if lies_in_a_home(path) {
            picking.refuse(path, IN_A_HOME);
        } else if metadata.is_dir() {
            picking.folder(path, "")?;
        } else {
            match path.file_name().and_then(|name| name.to_str()) {
                Some(name) => picking.file(path, name.to_owned(), &metadata),
                None => picking.refuse(path, "its name is not UTF-8"),
            }
        }
    }
    picking.finish()
}

/// What is published can never be taken back: a home holds the secret key, and nothing of it is ever published.
const IN_A_HOME: &str = "it belongs to a home of hn, which holds secret keys";

/// Whether `folder` is a home of a node, ours or any other.
fn is_home(folder: &Path) -> bool {
    folder.join("version").is_file() && folder.join("identities").is_dir()
}

fn lies_in_a_home(path: &Path) -> bool {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    real.ancestors().any(is_home)
}

#[derive(Default)]
struct Picking {
    files: BTreeMap<String, Picked>,
    refused: Vec<String>,
}

impl Picking {
    fn folder(&mut self, folder: &Path, prefix: &str) -> Result<(), CliError> {
        for item in std::fs::read_dir(folder).map_err(|error| unreadable(folder, &error))? {
            let item = item.map_err(|error| unreadable(folder, &error))?;
            let source = item.path();
            let metadata =
                std::fs::symlink_metadata(&source).map_err(|error| unreadable(&source, &error))?;
            let Ok(name) = item.file_name().into_string() else {
                self.refuse(&source, "its name is not UTF-8");
                continue;
            };
            let path = format!("{prefix}{name}");
            if metadata.is_dir() && is_home(&source) {
                self.refuse(&source, IN_A_HOME);
            } else if metadata.is_dir() {
                self.folder(&source, &format!("{path}/"))?;
            } else {
                self.file(&source, path, &metadata);
            }
        }
        Ok(())
    }

    fn file(&mut self, source: &Path, path: String, metadata: &Metadata) {
        let kind = metadata.file_type();
        if kind.is_symlink() {
            return self.refuse(source, "it is a symbolic link");
        }
        if kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device() {
            return self.refuse(source, "it is a device, pipe or socket");
        }
        if check_path(&path).is_err() {
            return self.refuse(
                source,
                "its path holds `\\` or control characters, or is too long",
            );
        }
        let picked = Picked {
            source: source.to_owned(),
            size: metadata.len(),
        };
        match self.files.get(&path) {
            Some(other) if other.source == picked.source => {}
            Some(other) => {
                let reason = format!(
                    "{} would be published as `{path}` too",
                    other.source.display()
                );
                self.refuse(source, &reason);
            }
            None => {
                self.files.insert(path, picked);
            }
        }
    }

    fn refuse(&mut self, source: &Path, reason: &str) {
        self.refused.push(format!("{}: {reason}", source.display()));
    }

    fn finish(mut self) -> Result<Selection, CliError> {
        if !self.refused.is_empty() {
            self.refused.sort_unstable();
            let more = match self.refused.len().saturating_sub(NAMED) {
                0 => String::new(),
                count => format!("; and {count} more"),
            };
            self.refused.truncate(NAMED);
            let what = format!("can't be published: {}{more}", self.refused.join("; "));
            return Err(CliError::failed("not_publishable", what)
                .next("take these out, or name the files one by one; nothing was sent"));
        }
        if self.files.is_empty() {
            return Err(CliError::failed(
                "nothing_to_publish",
                "there are no files in what was named",
            )
            .next("name files, or folders with files"));
        }
        Ok(Selection {
            files: Arc::new(self.files),
        })
    }
}

/// A body on its way, and what went wrong in making it.
pub struct Upload {
    /// The tar, as it is made.
    pub body: Body,
    /// The file that could not be read to its end, once the body has ended or broken off.
    pub problem: oneshot::Receiver<CliError>,
}

/// Starts to pack `selection` in a thread of its own. `progress` counts bytes of files.
pub fn stream(selection: Selection, progress: Progress) -> Upload {
    let (pieces, body) = mpsc::channel(QUEUE);
    let (report, problem) = oneshot::channel();
    std::thread::spawn(move || {
        if let Err(Stopped::Unreadable(error)) = pack(selection, &pieces, &progress) {
            let broken = io::Error::other(error.what().to_owned());
            // Said before the body breaks off, so that whoever sees it break finds it here. A missing reader of either
            // means that the node answered already.
            let _ = report.send(error);
            let _ = pieces.blocking_send(Err(broken));
        }
    });
    let body = futures_util::stream::unfold(
        body,
        async |mut body: mpsc::Receiver<io::Result<Vec<u8>>>| {
            body.recv().await.map(|piece| (piece, body))
        },
    );
    Upload {
        body: Body::wrap_stream(Box::pin(body)),
        problem,
    }
}

/// Why packing stopped early.
enum Stopped {
    Unreadable(CliError),
    /// The node wants no more; its answer says why.
    Unwanted,
}

fn pack(
    selection: Selection,
    pieces: &mpsc::Sender<io::Result<Vec<u8>>>,
    progress: &Progress,
) -> Result<(), Stopped> {
    let mut tar = tar::Builder::new(Pieces {
        pieces,
        buffer: Vec::with_capacity(PIECE),
    });
    let (mut files, mut bytes) = (0, 0);
    for (path, file) in selection.files.iter() {
        // The node publishes in batches as it receives; what was whole before this file stays published.
        let begun = files >= BATCH_FILES || bytes >= BATCH_BYTES;
        let stopped = |error: io::Error| match error.kind() {
            io::ErrorKind::BrokenPipe => Stopped::Unwanted,
            _ if begun => {
                let error = unreadable(&file.source, &error);
                let next = "make it readable and publish again: files before it are published already, and stay as they are";
                Stopped::Unreadable(error.next(next))
            }
            _ => Stopped::Unreadable(unreadable(&file.source, &error)),
        };
        let (opened, metadata) = open(&file.source).map_err(stopped)?;
        let mut header = tar::Header::new_gnu();
        header.set_size(metadata.len());
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        let mut exact = Exact {
            file: opened,
            left: metadata.len(),
            progress,
        };
        tar.append_data(&mut header, path, &mut exact)
            .map_err(stopped)?;
        exact.finish().map_err(stopped)?;
        files += 1;
        bytes += metadata.len();
    }
    let mut rest = tar.into_inner().map_err(|_| Stopped::Unwanted)?;
    rest.flush().map_err(|_| Stopped::Unwanted)
}

/// Opens a regular file, and that file only: what became a link or device since it was looked at is refused.
fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let nofollow = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nofollow.bits().cast_signed())
        .open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        Ok((file, metadata))
    } else {
        Err(io::Error::other("it is no regular file any more"))
    }
}

fn unreadable(path: &Path, error: &io::Error) -> CliError {
    CliError::failed("unreadable", format_args!("{}: {error}", path.display()))
        .next("make it readable and leave it alone meanwhile; nothing was published")
}

/// Gives as many bytes as the header of the file promised; a file that changes its size meanwhile is an error.
struct Exact<'a> {
    file: File,
    left: u64,
    progress: &'a Progress,
}

impl Exact<'_> {
    fn finish(mut self) -> io::Result<()> {
        match self.file.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(io::Error::other("it grew while it was read")),
        }
    }
}

impl Read for Exact<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = self.file.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            return Err(io::Error::other("it shrank while it was read"));
        }
        self.left -= count as u64;
        self.progress.add(count as u64);
        Ok(count)
    }
}

/// Collects what the tar is made of into pieces and hands them over; a reader that left is a broken pipe.
struct Pieces<'a> {
    pieces: &'a mpsc::Sender<io::Result<Vec<u8>>>,
    buffer: Vec<u8>,
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        self.pieces
            .blocking_send(Ok(piece))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn a_folder_gives_relative_paths_and_a_file_its_name_sorted() {
        let folder = folder(&[("b/z.txt", "z"), ("b/a/y.txt", "yy"), ("x.txt", "x")]);
        let selection = select(&[folder.path().join("x.txt"), folder.path().join("b")]).unwrap();
        assert_eq!(
            selection.files.keys().collect::<Vec<_>>(),
            ["a/y.txt", "x.txt", "z.txt"]
        );
        assert_eq!(selection.bytes(), 4);
        assert_eq!(selection.digests().unwrap()[1].2, Digest::of(b"x"));
    }

    #[test]
    fn what_cannot_be_published_is_named_all_together() {
        let folder = folder(&[("a", "1"), ("sub/a", "2"), ("sub/back\\slash", "")]);
        std::os::unix::fs::symlink("a", folder.path().join("sub/link")).unwrap();
        std::os::unix::net::UnixListener::bind(folder.path().join("sub/socket")).unwrap();
        std::fs::write(
            folder
                .path()
                .join("sub")
                .join(std::ffi::OsStr::from_bytes(b"\xff")),
            "",
        )
        .unwrap();
        let error = select(&[folder.path().join("a"), folder.path().join("sub")]).unwrap_err();
        for name in [
            "back\\slash",
            "sub/link: it is a symbolic link",
            "sub/socket",
            "not UTF-8",
            "published as `a` too",
        ] {
            assert!(
                error.what().contains(name),
                "{name} is missing in: {}",
                error.what()
            );
        }
    }

    #[test]
    fn nothing_of_a_home_is_published() {
        let outer = folder(&[
            ("doc", "d"),
            ("home/version", "1"),
            ("home/identities/x/secret.json", "seed"),
        ]);
        let secret = outer.path().join("home/identities/x/secret.json");
        for path in [outer.path().to_owned(), outer.path().join("home"), secret] {
            let refused = select(&[path]).unwrap_err();
            assert!(refused.what().contains("secret keys"), "{}", refused.what());
        }
        assert!(select(&[outer.path().join("doc")]).is_ok());
    }

    #[test]
    fn a_missing_path_and_an_empty_folder_are_errors() {
        assert_eq!(
            select(&["/nowhere/at/all".into()]).unwrap_err().code(),
            "missing_path"
        );
        assert_eq!(
            select(&[folder(&[]).path().to_owned()]).unwrap_err().code(),
            "nothing_to_publish"
        );
    }

    #[tokio::test]
    async fn only_before_the_first_batch_nothing_was_published() {
        for (files, said) in [
            (BATCH_FILES - 1, "nothing was"),
            (BATCH_FILES, "published already"),
        ] {
            let folder = folder(&[("last", "x")]);
            for at in 0..files {
                std::fs::write(folder.path().join(format!("f{at}")), "").unwrap();
            }
            let selection = select(&[folder.path().to_owned()]).unwrap();
            std::fs::remove_file(folder.path().join("last")).unwrap();
            let (pieces, mut body) = mpsc::channel(QUEUE);
            let packing =
                std::thread::spawn(move || pack(selection, &pieces, &Progress::bytes(None)));
            while body.recv().await.is_some() {}
            let Err(Stopped::Unreadable(error)) = packing.join().unwrap() else {
                panic!("a file that is gone is unreadable")
            };
            assert!(format!("{error:?}").contains(said), "{files}: {error:?}");
        }
    }

    #[tokio::test]
    async fn the_tar_holds_every_file_whole_also_with_a_long_path() {
        let long = format!("{}/{}.txt", "d".repeat(200), "n".repeat(200));
        let big = "0123456789abcdef".repeat(40_000);
        let folder = folder(&[("small", "s"), (&long, "l"), ("big", &big)]);
        let selection = select(&[folder.path().to_owned()]).unwrap();
        let (pieces, mut body) = mpsc::channel(QUEUE);
        let packing =
            std::thread::spawn(move || pack(selection, &pieces, &Progress::bytes(None)).is_ok());
        let mut bytes = Vec::new();
        while let Some(piece) = body.recv().await {
            bytes.extend(piece.unwrap());
        }
        assert!(packing.join().unwrap());
        let mut tar = tar::Archive::new(bytes.as_slice());
        let mut found = Vec::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.push((path, text));
        }
        let wanted = [
            ("big".to_owned(), big),
            (long, "l".to_owned()),
            ("small".to_owned(), "s".to_owned()),
        ];
        assert_eq!(found, wanted);
    }
}
