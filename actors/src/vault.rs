//! The Vault: fsynced files, the truth that everything else is rebuilt from (design 11).
//!
//! | part | idea |
//! |---|---|
//! | [`write_atomic`] | one small file: temp → fsync → rename → fsync of the folder |
//! | [`Journal`] | an append-only log of lines: one write and one fsync for many |
//! | [`ArtifactStore`] | files named by their BLAKE3: many made durable by one group commit |
//! | [`Bundle`] | many small ones durable by one write, before each has its file |
//! | [`SpaceGuard`] | refuses before the disk is full |
//!
//! All of it blocks: it is called from an actor's own thread or from a blocking task. What a call reports as done is on
//! the disk; what failed left nothing behind.

mod artifacts;
mod bundle;
mod journal;
mod scan;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use artifacts::{ArtifactStore, Purpose, Staged, Staging};
pub use bundle::{Bundle, BundleWriter, MAX_MEMBER, Member, header, member_bytes};
pub use journal::{
    FileCache, FileId, Journal, JournalFile, JournalReader, MAX_FILE, MAX_LINE, Replace, Replaced,
    Span,
};
pub use scan::{Scan, Scanned};

use crate::home::free_bytes;

/// Files of a home are for its owner alone.
pub const FILE_MODE: u32 = 0o600;
/// So are its folders.
pub const DIR_MODE: u32 = 0o700;

/// Makes temp names unique within the process; the home lock keeps other processes out.
static TEMP_COUNTER: AtomicU64 = AtomicU64::new(0);

fn temp_number() -> u64 {
    TEMP_COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// Writes `bytes` to `path` with `mode` so that a crash leaves the old file or the new one, never a mixture.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    write_atomic_with(path, bytes, mode, || Ok(()))
}

/// [`write_atomic`] that asks `before_rename` when the new file is durable but not yet in place.
pub fn write_atomic_with(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    before_rename: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a file has a folder and a name",
        ));
    };
    let temp = folder.join(format!(
        "{}.tmp-{}-{}",
        name.to_string_lossy(),
        std::process::id(),
        temp_number()
    ));
    let written = write_durable(&temp, bytes, mode)
        .and_then(|()| before_rename())
        .and_then(|()| fs::rename(&temp, path))
        .and_then(|()| sync_dir(folder));
    if written.is_err() {
        // Already renamed or never made: then there is nothing to remove.
        let _ = fs::remove_file(&temp);
    }
    written
}

/// Writes a new file and fsyncs it. The folder's entry is not durable yet.
pub(crate) fn write_durable(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the entries of a folder durable.
pub fn sync_dir(folder: &Path) -> io::Result<()> {
    // The parent of a bare file name is written as the empty path.
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    File::open(folder)?.sync_all()
}

/// Makes a folder and the missing ones above it, all durable and for the owner alone. One that exists is left as it is.
pub fn create_dirs(folder: &Path) -> io::Result<()> {
    let mut missing = Vec::new();
    let mut above = folder;
    while !above.as_os_str().is_empty() && !above.is_dir() {
        missing.push(above);
        match above.parent() {
            Some(parent) => above = parent,
            None => break,
        }
    }
    for path in missing.into_iter().rev() {
        match DirBuilder::new().mode(DIR_MODE).create(path) {
            Ok(()) => {}
            // Somebody else made it meanwhile.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            Err(e) => return Err(e),
        }
        sync_dir(path.parent().unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// Refuses to write when less than `min_free` bytes would stay free on the home's file system.
///
/// The system is asked at most once per [`SpaceGuard::BUDGET`] bytes or per second, not at every write. Cloning shares it.
#[derive(Debug, Clone)]
pub struct SpaceGuard {
    inner: Arc<SpaceInner>,
}

#[derive(Debug)]
struct SpaceInner {
    folder: PathBuf,
    min_free: u64,
    budget: Mutex<Budget>,
}

#[derive(Debug)]
struct Budget {
    bytes: u64,
    until: Instant,
}

impl SpaceGuard {
    /// How many bytes may be written on one look at the file system; also keeps a look from going stale unnoticed.
    pub const BUDGET: u64 = 16 << 20;
    /// How long one look is believed: others write to the same disk.
    const BELIEF: Duration = Duration::from_secs(1);

    /// A guard over the file system that holds `folder`.
    #[must_use]
    pub fn new(folder: &Path, min_free: u64) -> Self {
        Self {
            inner: Arc::new(SpaceInner {
                folder: folder.to_owned(),
                min_free,
                budget: Mutex::new(Budget {
                    bytes: 0,
                    until: Instant::now(),
                }),
            }),
        }
    }

    /// Bytes that stay free.
    #[must_use]
    pub fn min_free(&self) -> u64 {
        self.inner.min_free
    }

    /// Whether `bytes` more may be written. Errors: [`io::ErrorKind::StorageFull`], saying how much is free.
    pub fn check(&self, bytes: u64) -> io::Result<()> {
        let inner = &self.inner;
        let mut budget = inner.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if budget.bytes < bytes || budget.until <= now {
            let free = free_bytes(&inner.folder)?;
            let usable = free.saturating_sub(inner.min_free);
            if usable < bytes || free < inner.min_free {
                budget.bytes = 0;
                return Err(io::Error::new(
                    io::ErrorKind::StorageFull,
                    format!(
                        "{free} bytes are free, {bytes} are needed and storage.min_free keeps {}",
                        inner.min_free
                    ),
                ));
            }
            budget.bytes = usable.min(Self::BUDGET.max(bytes));
            budget.until = now + Self::BELIEF;
        }
        budget.bytes -= bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_atomic_write_replaces_the_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roster.toml");
        write_atomic(&path, b"long old content", 0o600).unwrap();
        write_atomic(&path, b"new", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["roster.toml"], "no temp file stays");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_no_temp() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roster.toml");
        write_atomic(&path, b"old", 0o600).unwrap();
        let refuse = || Err(io::Error::from(io::ErrorKind::StorageFull));
        assert!(write_atomic_with(&path, b"new", 0o600, refuse).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["roster.toml"]);
    }

    #[test]
    fn folders_are_for_the_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b/c");
        create_dirs(&deep).unwrap();
        create_dirs(&deep).unwrap();
        for path in [folder.path().join("a"), deep] {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
        }
    }

    #[test]
    fn refuses_before_the_disk_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let free = free_bytes(folder.path()).unwrap();
        let full = SpaceGuard::new(folder.path(), free.saturating_mul(2));
        assert_eq!(
            full.check(0).unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
        let roomy = SpaceGuard::new(folder.path(), 1);
        for _ in 0..10 {
            roomy.check(1 << 20).unwrap();
        }
        let asked = roomy.check(u64::MAX).unwrap_err();
        assert_eq!(asked.kind(), io::ErrorKind::StorageFull);
    }
}
