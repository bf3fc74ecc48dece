//! Files named by the BLAKE3 of their bytes: hashed while they are written, made durable many at a time.
//!
//! A file under its digest's name is whole and on the disk: bytes are synced before the rename, the folder after it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hn_protocol::digest::Digest;

use super::bundle::{Bundle, BundleWriter};
use super::{FILE_MODE, SpaceGuard, create_dirs, sync_dir, temp_number};
use crate::failpoint;

/// From this many files on, one sync of the whole file system is cheaper than one fsync a file. Below, other writers
/// on the same disk should not make us wait.
#[cfg(target_os = "linux")]
const GROUP_SYNC: usize = 8;
/// Unfinished artifacts that are kept in one folder, so that their transfers go on where they broke off.
const MAX_PARTS: usize = 64;
/// How long an unfinished artifact is kept after its last byte: its holder may be away for a few days.
const PART_LIFE: Duration = Duration::from_secs(7 * 86_400);
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
    bundles: PathBuf,
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
                bundles: folder.join(".bundles"),
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
        let path = self.inner.temps.join(format!("{}", temp_number()));
        // A leftover of a crash may have this number; its content is nobody's.
        let file = self.open_temp(&path, OpenOptions::new().write(true).truncate(true))?;
        Ok(self.staging(file, path, limit, true))
    }

    fn open_temp(&self, path: &Path, options: &mut OpenOptions) -> io::Result<File> {
        self.inner.space.check(0)?;
        options.create(true).mode(FILE_MODE);
        match options.open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                create_dirs(&self.inner.temps)?;
                options.open(path)
            }
            opened => opened,
        }
    }

    fn staging(&self, file: File, path: PathBuf, limit: u64, owned: bool) -> Staging {
        Staging {
            file,
            temp: Temp { path, owned },
            hasher: blake3::Hasher::new(),
            size: 0,
            limit,
            space: self.inner.space.clone(),
        }
    }

    /// Begins or goes on with the artifact `digest`, which stays when its transfer breaks off: what is there of it is
    /// hashed again. `None` where too many unfinished ones are kept. One caller at a time for one digest. Errors: as
    /// [`ArtifactStore::stage`].
    pub fn resume(&self, digest: &Digest, limit: u64) -> io::Result<Option<Staging>> {
        let path = self.part(digest);
        if !path.is_file() && self.parts()?.len() >= MAX_PARTS {
            return Ok(None);
        }
        let file = self.open_temp(&path, OpenOptions::new().read(true).append(true))?;
        let mut staging = self.staging(file, path, limit, false);
        if staging.file.metadata()?.len() > limit {
            staging.restart()?;
        }
        staging.hasher.update_reader(&staging.file)?;
        staging.size = staging.file.metadata()?.len();
        Ok(Some(staging))
    }

    /// Whether a transfer of this artifact broke off.
    #[must_use]
    pub fn has_part(&self, digest: &Digest) -> bool {
        self.part(digest).is_file()
    }

    fn part(&self, digest: &Digest) -> PathBuf {
        self.inner.temps.join(format!("{digest}.part"))
    }

    /// Unfinished artifacts: when the last bytes came, how many there are, and the file. The latest first.
    fn parts(&self) -> io::Result<Vec<(SystemTime, u64, PathBuf)>> {
        let mut parts = Vec::new();
        for path in files(&self.inner.temps)? {
            if path
                .extension()
                .is_some_and(|extension| extension == "part")
            {
                let known = fs::metadata(&path)?;
                parts.push((known.modified()?, known.len(), path));
            }
        }
        parts.sort_unstable_by(|a, b| b.cmp(a));
        Ok(parts)
    }

    /// Bytes of unfinished artifacts.
    pub fn unfinished_bytes(&self) -> io::Result<u64> {
        Ok(self.parts()?.iter().map(|(_, size, _)| size).sum())
    }

    /// Begins a bundle. Errors: no space, IO.
    pub fn bundle(&self) -> io::Result<BundleWriter> {
        BundleWriter::new(self.clone(), &self.inner.bundles, self.inner.space.clone())
    }

    /// The bundles that wait to be settled.
    pub fn bundles(&self) -> io::Result<Vec<Bundle>> {
        files(&self.inner.bundles)?
            .into_iter()
            .map(|path| Bundle::open(self.clone(), path))
            .collect()
    }

    /// Gives an artifact of a bundle its file. Nobody may look for the file by itself before
    /// [`ArtifactStore::sync_folder`]: until then the bundle is the truth. A file that is there already stays if it is
    /// whole, and is never changed under somebody who reads it.
    pub(super) fn place(&self, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(digest);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(FILE_MODE);
        match options.open(&path) {
            Ok(mut file) => file.write_all(bytes),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                if fs::read(&path)? == bytes {
                    return Ok(());
                }
                self.replace(digest, bytes)
            }
            Err(e) => Err(e),
        }
    }

    /// Puts a file in the place of a damaged one: whole at any moment, though not durable yet.
    fn replace(&self, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
        let mut staged = self.stage_bytes(bytes)?;
        fs::rename(&staged.temp.path, self.path(digest))?;
        staged.temp.owned = false;
        Ok(())
    }

    /// Makes everything in the folder durable.
    pub(super) fn sync_folder(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        rustix::fs::syncfs(File::open(&self.inner.folder)?)?;
        #[cfg(not(target_os = "linux"))]
        for path in files(&self.inner.folder)? {
            File::open(path)?.sync_all()?;
        }
        sync_dir(&self.inner.folder)
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
                Ok(known) if known.is_file() && known.len() == artifact.size => artifact.discard(),
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
            // A transfer that had broken off stays its own until here: a commit that fails loses no byte of it.
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

    /// Removes what an earlier process staged and never committed, but for transfers that can still go on; answers how
    /// many files that were.
    pub fn clean_temps(&self) -> io::Result<usize> {
        let young = |at: &SystemTime| at.elapsed().is_ok_and(|age| age < PART_LIFE);
        let kept = self.parts()?.into_iter().take(MAX_PARTS);
        let kept = kept.filter(|(at, _, _)| young(at));
        let kept: Vec<PathBuf> = kept.map(|(_, _, path)| path).collect();
        let mut removed = 0;
        for path in files(&self.inner.temps)? {
            if !kept.contains(&path) {
                fs::remove_file(path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// The files of a folder, which may be missing.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn sync_each(staged: &[(Staged, PathBuf)]) -> io::Result<()> {
    for (artifact, _) in staged {
        File::open(&artifact.temp.path)?.sync_all()?;
    }
    Ok(())
}

/// A temp file that removes itself unless it was renamed into place, or is kept for its transfer to go on.
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

    /// Whether it stays when it is dropped, for its transfer to go on.
    #[must_use]
    pub const fn stays(&self) -> bool {
        !self.temp.owned
    }

    /// Forgets what was written: it begins anew.
    pub fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.hasher.reset();
        self.size = 0;
        Ok(())
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

    /// Removes it, also where it would have stayed for its transfer to go on.
    pub fn discard(mut self) {
        self.temp.owned = true;
    }

    /// The staged file, for reading it before it is committed.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.temp.path
    }
}

#[cfg(test)]
#[path = "artifacts_tests.rs"]
mod tests;
