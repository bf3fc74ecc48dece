//! Files named by the BLAKE3 of their bytes: hashed while they are written, made durable many at a time.
//!
//! A file under its digest's name is whole and on the disk: bytes are synced before the rename, the folder after it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hn_protocol::digest::Digest;

use super::{FILE_MODE, SpaceGuard, create_dirs, sync_dir, temp_number};
use crate::failpoint;

/// From this many files on, one sync of the whole file system is cheaper than one fsync a file. Below, other writers
/// on the same disk should not make us wait.
#[cfg(target_os = "linux")]
const GROUP_SYNC: usize = 8;
/// How much of a stream is copied at once.
const COPY_BUFFER: usize = 64 << 10;

/// What artifacts are committed for; decides which failpoints are passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Publishing into the own log: `publish.stage.before_sync`, `publish.stage.after_sync`.
    Publish,
    /// Mirroring from a peer: `mirror.artifact.before_rename`, `mirror.artifact.after_rename`.
    Mirror,
}

impl Purpose {
    fn pass(self, expected: Self, name: &str) -> io::Result<()> {
        if self == expected {
            failpoint::hit(name)?;
        }
        Ok(())
    }
}

/// One folder of artifacts. Cloning shares it; the folder is made when the first artifact is staged.
#[derive(Debug, Clone)]
pub struct ArtifactStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    temps: PathBuf,
    space: SpaceGuard,
}

impl ArtifactStore {
    /// The store in `folder`. Touches no disk.
    #[must_use]
    pub fn new(folder: &Path, space: SpaceGuard) -> Self {
        Self {
            inner: Arc::new(Inner {
                folder: folder.to_owned(),
                temps: folder.join(".tmp"),
                space,
            }),
        }
    }

    /// Where the artifacts stand.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.inner.folder
    }

    /// Begins an artifact of at most `limit` bytes. Errors: no space ([`io::ErrorKind::StorageFull`]), IO.
    pub fn stage(&self, limit: u64) -> io::Result<Staging> {
        self.inner.space.check(0)?;
        let path = self.inner.temps.join(format!("{}", temp_number()));
        let mut options = OpenOptions::new();
        // A leftover of a crash may have this number; its content is nobody's.
        options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(FILE_MODE);
        let file = match options.open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                create_dirs(&self.inner.temps)?;
                options.open(&path)?
            }
            opened => opened?,
        };
        Ok(Staging {
            file,
            temp: Temp { path, owned: true },
            hasher: blake3::Hasher::new(),
            size: 0,
            limit,
            space: self.inner.space.clone(),
        })
    }

    /// Stages `bytes` whole.
    pub fn stage_bytes(&self, bytes: &[u8]) -> io::Result<Staged> {
        let mut staging = self.stage(u64::MAX)?;
        staging.write_all(bytes)?;
        Ok(staging.finish())
    }

    /// Stages what `source` gives, at most `limit` bytes of it.
    pub fn stage_from(&self, source: &mut impl Read, limit: u64) -> io::Result<Staged> {
        let mut staging = self.stage(limit)?;
        let mut buffer = vec![0; COPY_BUFFER];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => return Ok(staging.finish()),
                Ok(n) => staging.write_all(buffer.get(..n).unwrap_or_default())?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Makes all of `staged` durable under their digests, or fails; then a part of them may be there, whole and unused.
    /// What is already there with the right size is kept, its temp dropped.
    pub fn commit(&self, purpose: Purpose, staged: Vec<Staged>) -> io::Result<()> {
        let mut fresh = Vec::with_capacity(staged.len());
        for artifact in staged {
            let path = self.path(&artifact.digest);
            match fs::symlink_metadata(&path) {
                Ok(known) if known.is_file() && known.len() == artifact.size => {}
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => fresh.push((artifact, path)),
            }
        }
        purpose.pass(Purpose::Publish, "publish.stage.before_sync")?;
        if fresh.is_empty() {
            // The folder may have been filled by a commit that crashed before its last fsync.
            if self.inner.folder.is_dir() {
                sync_dir(&self.inner.folder)?;
            }
            return purpose.pass(Purpose::Publish, "publish.stage.after_sync");
        }
        self.sync(&fresh)?;
        purpose.pass(Purpose::Publish, "publish.stage.after_sync")?;
        purpose.pass(Purpose::Mirror, "mirror.artifact.before_rename")?;
        for (artifact, path) in &mut fresh {
            fs::rename(&artifact.temp.path, path)?;
            artifact.temp.owned = false;
        }
        sync_dir(&self.inner.folder)?;
        purpose.pass(Purpose::Mirror, "mirror.artifact.after_rename")
    }

    #[cfg(target_os = "linux")]
    fn sync(&self, staged: &[(Staged, PathBuf)]) -> io::Result<()> {
        if staged.len() < GROUP_SYNC {
            return sync_each(staged);
        }
        rustix::fs::syncfs(File::open(&self.inner.folder)?)?;
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn sync(&self, staged: &[(Staged, PathBuf)]) -> io::Result<()> {
        sync_each(staged)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.inner.folder.join(digest.to_string())
    }

    /// Opens an artifact; answers it with its size in bytes, or nothing.
    pub fn open(&self, digest: &Digest) -> io::Result<Option<(File, u64)>> {
        match File::open(self.path(digest)) {
            Ok(file) => {
                let size = file.metadata()?.len();
                Ok(Some((file, size)))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether an artifact is here, whole and durable.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Removes an artifact, as one whose bytes turned out to be damaged. Nothing when it is not here.
    pub fn remove(&self, digest: &Digest) -> io::Result<()> {
        match fs::remove_file(self.path(digest)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Every artifact here, with its size in bytes, in no order.
    pub fn list(&self) -> io::Result<impl Iterator<Item = io::Result<(Digest, u64)>> + use<>> {
        let folder = match fs::read_dir(&self.inner.folder) {
            Ok(folder) => Some(folder),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        Ok(folder.into_iter().flatten().filter_map(|entry| {
            let read = |entry: fs::DirEntry| -> io::Result<Option<(Digest, u64)>> {
                let name = entry.file_name();
                let Some(digest) = name.to_str().and_then(|n| n.parse().ok()) else {
                    return Ok(None);
                };
                Ok(Some((digest, entry.metadata()?.len())))
            };
            entry.and_then(read).transpose()
        }))
    }

    /// Removes what an earlier process staged and never committed; answers how many files that were.
    pub fn clean_temps(&self) -> io::Result<usize> {
        let folder = match fs::read_dir(&self.inner.temps) {
            Ok(folder) => folder,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(e) => return Err(e),
        };
        let mut removed = 0;
        for entry in folder {
            fs::remove_file(entry?.path())?;
            removed += 1;
        }
        Ok(removed)
    }
}

fn sync_each(staged: &[(Staged, PathBuf)]) -> io::Result<()> {
    for (artifact, _) in staged {
        File::open(&artifact.temp.path)?.sync_all()?;
    }
    Ok(())
}

/// A temp file that removes itself unless it was renamed into place.
#[derive(Debug)]
struct Temp {
    path: PathBuf,
    owned: bool,
}

impl Drop for Temp {
    fn drop(&mut self) {
        if self.owned {
            // What cannot be removed now is removed by clean_temps at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// An artifact that is being written; hashes as it goes. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct Staging {
    file: File,
    temp: Temp,
    hasher: blake3::Hasher,
    size: u64,
    limit: u64,
    space: SpaceGuard,
}

impl Staging {
    /// Bytes written so far.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Ends the artifact: now its digest is known. Not durable before [`ArtifactStore::commit`].
    #[must_use]
    pub fn finish(self) -> Staged {
        Staged {
            digest: self.hasher.finalize().into(),
            size: self.size,
            temp: self.temp,
        }
    }
}

impl Write for Staging {
    /// Errors: [`io::ErrorKind::FileTooLarge`] beyond the limit, [`io::ErrorKind::StorageFull`].
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len() as u64;
        if length > self.limit.saturating_sub(self.size) {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("the artifact is larger than {} bytes", self.limit),
            ));
        }
        self.space.check(length)?;
        let written = self.file.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or_default());
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An artifact that is written and hashed, waiting for its commit. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct Staged {
    digest: Digest,
    size: u64,
    temp: Temp,
}

impl Staged {
    /// BLAKE3 of the bytes.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// How many bytes it has.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The staged file, for reading it before it is committed.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.temp.path
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn store(folder: &Path) -> ArtifactStore {
        ArtifactStore::new(&folder.join("artifacts"), SpaceGuard::new(folder, 0))
    }

    fn temps(store: &ArtifactStore) -> usize {
        fs::read_dir(&store.inner.temps).map_or(0, Iterator::count)
    }

    fn read(store: &ArtifactStore, digest: &Digest) -> Vec<u8> {
        let (mut file, size) = store.open(digest).unwrap().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, size);
        bytes
    }

    #[test]
    fn an_artifact_appears_whole_under_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let mut staging = store.stage(100).unwrap();
        staging.write_all(b"hello ").unwrap();
        staging.write_all(b"world").unwrap();
        let staged = staging.finish();
        let digest = Digest::of(b"hello world");
        assert_eq!((staged.digest(), staged.size()), (digest, 11));
        assert!(!store.contains(&digest), "not before its commit");
        store.commit(Purpose::Mirror, vec![staged]).unwrap();
        assert!(store.contains(&digest));
        assert_eq!(read(&store, &digest), b"hello world");
        assert_eq!(temps(&store), 0);
        assert!(store.open(&Digest::of(b"else")).unwrap().is_none());
    }

    #[test]
    fn many_are_committed_together_and_repeats_cost_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        for _ in 0..2 {
            let staged: Vec<Staged> = (0..100u32)
                .map(|n| store.stage_bytes(&(n / 2).to_be_bytes()).unwrap())
                .collect();
            store.commit(Purpose::Mirror, staged).unwrap();
        }
        let list: Vec<_> = store.list().unwrap().map(Result::unwrap).collect();
        assert_eq!(list.len(), 50);
        assert!(list.iter().all(|(_, size)| *size == 4));
        assert_eq!(temps(&store), 0);
    }

    #[test]
    fn a_file_of_the_wrong_size_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let staged = store.stage_bytes(b"content").unwrap();
        let digest = staged.digest();
        fs::write(store.path(&digest), b"cut").unwrap();
        store.commit(Purpose::Mirror, vec![staged]).unwrap();
        assert_eq!(read(&store, &digest), b"content");
    }

    #[test]
    fn what_is_too_large_or_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let mut endless = io::repeat(7);
        let error = store.stage_from(&mut endless, 200_000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        drop(store.stage(10).unwrap());
        drop(store.stage_bytes(b"never committed").unwrap());
        assert_eq!(temps(&store), 0);
        let exact = store
            .stage_from(&mut io::repeat(7).take(200_000), 200_000)
            .unwrap();
        assert_eq!(exact.digest(), Digest::of(&vec![7; 200_000]));
    }

    #[test]
    fn leftovers_of_a_crash_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        assert_eq!(store.clean_temps().unwrap(), 0);
        std::mem::forget(store.stage_bytes(b"a crash follows").unwrap());
        assert_eq!(store.clean_temps().unwrap(), 1);
        assert_eq!(temps(&store), 0);
        assert_eq!(store.list().unwrap().count(), 0);
    }

    #[test]
    fn a_full_disk_fails_the_commit_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let staged = store.stage_bytes(b"x").unwrap();
        let digest = staged.digest();
        failpoint::set("publish.stage.before_sync", "error").unwrap();
        let error = store.commit(Purpose::Publish, vec![staged]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(!store.contains(&digest));
        assert_eq!(temps(&store), 0);
        let again = store.stage_bytes(b"x").unwrap();
        store.commit(Purpose::Publish, vec![again]).unwrap();
        let full = ArtifactStore::new(folder.path(), SpaceGuard::new(folder.path(), u64::MAX));
        assert_eq!(
            full.stage_bytes(b"y").unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
    }
}
