//! Opening the database, and telling a sound one from a damaged one.
//!
//! sled checks its pages when it meets them, which is too late, and takes a file that it cannot read at all for a new
//! one. So a clean shutdown leaves a seal: the BLAKE3 over the database's files. With a seal the files are what they
//! were or the database is set aside. Without one (the process was killed) every pair is read once.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::{Opened, StoreError};
use crate::clock::Clock;
use crate::supervise::panic_text;
use crate::vault;

/// The seal's name among sled's files.
const SEAL: &str = "sealed";
/// Left by a writer that met damage at run time.
const DAMAGED: &str = "damaged";
/// sled's own file of pages.
const PAGES: &str = "db";
/// sled writes in units of this; its default of 512 KiB takes 10 MiB more memory and is no faster here.
const SEGMENT: usize = 128 << 10;
/// A key outside every tree, written first of all: a database without it is not ours or lost its content.
const SENTINEL: &[u8] = &[0];

pub(super) fn open(folder: &Path, cache_bytes: u64) -> Result<(sled::Db, Opened), StoreError> {
    vault::create_dirs(folder)?;
    if !folder.join(PAGES).exists() {
        remove_file(&folder.join(SEAL))?;
        remove_file(&folder.join(DAMAGED))?;
        return Ok((create(folder, cache_bytes)?, Opened::Fresh));
    }
    match open_existing(folder, cache_bytes) {
        Ok((db, sealed)) => Ok((db, Opened::Existing { sealed })),
        Err(StoreError::Damaged(reason)) => {
            let set_aside = set_aside(folder)?;
            tracing::error!(set_aside = %set_aside.display(), %reason, "damaged database set aside");
            vault::create_dirs(folder)?;
            let db = create(folder, cache_bytes)?;
            Ok((db, Opened::Rebuilt { set_aside, reason }))
        }
        Err(other) => Err(other),
    }
}

fn create(folder: &Path, cache_bytes: u64) -> Result<sled::Db, StoreError> {
    let db = start(folder, cache_bytes)?;
    db.insert(SENTINEL, &[])?;
    db.flush()?;
    Ok(db)
}

/// The database, and whether it was closed in order.
fn open_existing(folder: &Path, cache_bytes: u64) -> Result<(sled::Db, bool), StoreError> {
    let damaged = |reason: &str| StoreError::Damaged(reason.to_owned());
    if folder.join(DAMAGED).exists() {
        return Err(damaged("damage was met while the node ran"));
    }
    let sealed = match fs::read_to_string(folder.join(SEAL)) {
        Ok(seal) => {
            if seal != digest(folder)? {
                return Err(damaged("its files are not those of the last shutdown"));
            }
            // From here on the files change; without the seal a crash is known for one.
            remove_file(&folder.join(SEAL))?;
            vault::sync_dir(folder)?;
            true
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            return Err(damaged("its seal is none"));
        }
        Err(e) => return Err(e.into()),
    };
    let opened = catch_unwind(AssertUnwindSafe(
        || -> Result<(sled::Db, bool), StoreError> {
            let db = start(folder, cache_bytes)?;
            if db.get(SENTINEL)?.is_none() {
                return Err(damaged("its content is lost"));
            }
            if !sealed {
                for pair in db.iter() {
                    pair?;
                }
            }
            Ok((db, sealed))
        },
    ));
    match opened {
        Ok(Err(StoreError::Io(e))) if is_damage(&e) => Err(StoreError::Damaged(e.to_string())),
        Ok(opened) => opened,
        Err(panic) => Err(StoreError::Damaged(panic_text(panic.as_ref()))),
    }
}

/// Opens a database that this process had open a moment ago.
pub(super) fn reopen(folder: &Path, cache_bytes: u64) -> Result<sled::Db, StoreError> {
    catch_unwind(AssertUnwindSafe(|| start(folder, cache_bytes)))
        .unwrap_or_else(|panic| Err(StoreError::Damaged(panic_text(panic.as_ref()))))
}

/// Whether an error of sled's says that the file is short or senseless, rather than that the disk refuses.
fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
    )
}

fn start(folder: &Path, cache_bytes: u64) -> Result<sled::Db, StoreError> {
    let db = sled::Config::new()
        .path(folder)
        // Measured: sled holds about twice what its cache counts.
        .cache_capacity(cache_bytes / 2)
        .segment_size(SEGMENT)
        // The writer flushes when there is something to flush; an idle node must not wake up.
        .flush_every_ms(None)
        .mode(sled::Mode::LowSpace)
        .open()?;
    Ok(db)
}

/// Renames the database to `<folder>.damaged-<ms>`. Older ones that were set aside make room.
fn set_aside(folder: &Path) -> Result<PathBuf, StoreError> {
    let name = folder
        .file_name()
        .map(|name| format!("{}.damaged-", name.to_string_lossy()))
        .unwrap_or_default();
    let parent = folder.parent().unwrap_or(Path::new("."));
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&name) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    let set_aside = parent.join(format!("{name}{}", Clock::system().now().0));
    fs::rename(folder, &set_aside)?;
    vault::sync_dir(parent)?;
    Ok(set_aside)
}

/// Leaves the seal. Called when sled has let go of its files.
pub(super) fn seal(folder: &Path) -> io::Result<()> {
    vault::write_atomic(
        &folder.join(SEAL),
        digest(folder)?.as_bytes(),
        vault::FILE_MODE,
    )
}

/// Leaves word that the database is not to be trusted at the next start.
pub(super) fn mark_damaged(folder: &Path) -> io::Result<()> {
    vault::write_atomic(&folder.join(DAMAGED), b"", vault::FILE_MODE)
}

/// BLAKE3 over the names, lengths and bytes of sled's files.
fn digest(folder: &Path) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file() && !name.starts_with(SEAL) {
            names.push((name, entry.metadata()?.len()));
        }
    }
    names.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    for (name, len) in names {
        hasher.update(format!("{name} {len}\n").as_bytes());
        hasher.update_reader(fs::File::open(folder.join(name))?)?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
