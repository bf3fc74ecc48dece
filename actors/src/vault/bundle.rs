//! Many small artifacts made durable by one write and one fsync: a tar of them, each named by its digest.
//!
//! A file of its own for each costs more than all of its bytes. So a bundle is what an answer is given for; afterwards,
//! in the background, each of its artifacts gets its file ([`Bundle::settle`]), and then the bundle goes. A crash in
//! between leaves the bundle, and the next start settles it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hn_protocol::digest::Digest;
use tar::{EntryType, Header};

use super::artifacts::ArtifactStore;
use super::{FILE_MODE, SpaceGuard, create_dirs, sync_dir, temp_number};
use crate::failpoint;

/// A tar is made of these.
const BLOCK: u64 = 512;
/// The largest artifact of a bundle: it is read into memory.
pub const MAX_MEMBER: u64 = 64 << 10;
/// What is written at once.
const BUFFER: usize = 256 << 10;
/// Two empty blocks end a tar.
const END: [u8; 2 * BLOCK as usize] = [0; 2 * BLOCK as usize];

/// The header of an artifact in a tar.
#[must_use]
pub fn header(digest: &Digest, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(FILE_MODE);
    header.set_size(size);
    header.set_mtime(0);
    // 64 hex digits fit into the 100 bytes of a name.
    let name = digest.to_string();
    if let Some(field) = header.as_old_mut().name.get_mut(..name.len()) {
        field.copy_from_slice(name.as_bytes());
    }
    header.set_cksum();
    header
}

/// How many bytes an artifact takes in a tar.
#[must_use]
pub const fn member_bytes(size: u64) -> u64 {
    BLOCK + size.next_multiple_of(BLOCK)
}

/// One artifact of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its name, and what its bytes hash to.
    pub digest: Digest,
    /// Where its bytes begin.
    offset: u64,
    /// How many they are.
    pub size: u64,
}

/// A bundle that is being written. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct BundleWriter {
    store: ArtifactStore,
    file: BufWriter<File>,
    path: PathBuf,
    members: Vec<Member>,
    at: u64,
    space: SpaceGuard,
    finished: bool,
}

impl BundleWriter {
    /// Begins a bundle of `store`. Errors: no space ([`io::ErrorKind::StorageFull`]), IO.
    pub(super) fn new(store: ArtifactStore, folder: &Path, space: SpaceGuard) -> io::Result<Self> {
        space.check(0)?;
        create_dirs(folder)?;
        let (file, path) = loop {
            // A bundle of an earlier process may have the number.
            let path = folder.join(format!("{}.tar", temp_number()));
            let mut options = OpenOptions::new();
            options
                .read(true)
                .write(true)
                .create_new(true)
                .mode(FILE_MODE);
            match options.open(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                opened => break (opened?, path),
            }
        };
        Ok(Self {
            store,
            file: BufWriter::with_capacity(BUFFER, file),
            path,
            members: Vec::new(),
            at: 0,
            space,
            finished: false,
        })
    }

    /// Adds an artifact, whose bytes were hashed. Errors: no space for it, now and once it gets a file; IO.
    pub fn push(&mut self, digest: Digest, bytes: &[u8]) -> io::Result<()> {
        let size = bytes.len() as u64;
        let total = member_bytes(size);
        self.space.check(total + size)?;
        self.file.write_all(header(&digest, size).as_bytes())?;
        self.file.write_all(bytes)?;
        let padding = usize::try_from(total - BLOCK - size).map_err(io::Error::other)?;
        self.file
            .write_all(END.get(..padding).unwrap_or_default())?;
        self.members.push(Member {
            digest,
            offset: self.at + BLOCK,
            size,
        });
        self.at += total;
        Ok(())
    }

    /// What was added.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Makes all of it durable.
    pub fn finish(mut self) -> io::Result<Bundle> {
        self.file.write_all(&END)?;
        self.file.flush()?;
        failpoint::hit("mirror.bundle.before_sync")?;
        let file = self.file.get_ref().try_clone()?;
        file.sync_all()?;
        sync_dir(self.path.parent().unwrap_or(Path::new(".")))?;
        failpoint::hit("mirror.bundle.after_sync")?;
        self.finished = true;
        Ok(Bundle {
            store: self.store.clone(),
            path: std::mem::take(&mut self.path),
            file,
            members: std::mem::take(&mut self.members),
        })
    }
}

impl Drop for BundleWriter {
    fn drop(&mut self) {
        if !self.finished {
            // What cannot be removed now holds whole artifacts or half of one; the next start tells them apart.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Artifacts that are durable and have no files of their own yet.
#[derive(Debug)]
pub struct Bundle {
    store: ArtifactStore,
    path: PathBuf,
    file: File,
    members: Vec<Member>,
}

impl Bundle {
    /// Opens a bundle that an earlier process left: its members up to where it was cut off. Errors: IO.
    pub(super) fn open(store: ArtifactStore, path: PathBuf) -> io::Result<Self> {
        let file = File::open(&path)?;
        let length = file.metadata()?.len();
        let (mut members, mut at) = (Vec::new(), 0);
        while at + BLOCK <= length {
            let mut block = Header::new_old();
            file.read_exact_at(block.as_mut_bytes(), at)?;
            let name = block.path_bytes();
            let digest = std::str::from_utf8(&name).ok().and_then(|n| n.parse().ok());
            let size = block.entry_size().ok().filter(|size| *size <= MAX_MEMBER);
            let (Some(digest), Some(size)) = (digest, size) else {
                break;
            };
            let end = at + member_bytes(size);
            if end > length {
                break;
            }
            let offset = at + BLOCK;
            members.push(Member {
                digest,
                offset,
                size,
            });
            at = end;
        }
        Ok(Self {
            store,
            path,
            file,
            members,
        })
    }

    /// The artifacts in it.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Whose folder it stands in.
    #[must_use]
    pub const fn store(&self) -> &ArtifactStore {
        &self.store
    }

    /// The bytes of one artifact. Errors: [`io::ErrorKind::InvalidData`] when they are not what its name says; IO.
    pub fn read(&self, member: &Member) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(member.size).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, member.offset)?;
        if Digest::of(&bytes) != member.digest {
            let what = format!("a bundle holds other bytes as {}", member.digest);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(bytes)
    }

    /// Gives each artifact its file, all of them durable; answers which have one. One whose bytes were cut off or
    /// spoilt has none: it counts as never fetched. The bundle stays until [`Bundle::remove`]. Errors: IO.
    pub fn settle(&self) -> io::Result<Vec<Digest>> {
        let mut settled = Vec::with_capacity(self.members.len());
        for member in &self.members {
            let bytes = match self.read(member) {
                Err(e) if e.kind() == io::ErrorKind::InvalidData => continue,
                read => read?,
            };
            self.store.place(&member.digest, &bytes)?;
            settled.push(member.digest);
        }
        failpoint::hit("mirror.bundle.before_settle")?;
        self.store.sync_folder()?;
        Ok(settled)
    }

    /// Removes the bundle, whose artifacts have files.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Read;

    fn store(folder: &Path) -> ArtifactStore {
        ArtifactStore::new(&folder.join("artifacts"), SpaceGuard::new(folder, 0))
    }

    fn contents() -> Vec<Vec<u8>> {
        [0, 1, 511, 512, 513, 65_536]
            .into_iter()
            .map(|size| vec![b'x'; size])
            .collect()
    }

    fn bundle(store: &ArtifactStore) -> Bundle {
        let mut writer = store.bundle().unwrap();
        for bytes in contents() {
            writer.push(Digest::of(&bytes), &bytes).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn a_bundle_is_a_tar_that_any_tool_reads() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = bundle(&store(folder.path()));
        let mut found = Vec::new();
        let mut archive = tar::Archive::new(File::open(&bundle.path).unwrap());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            let name = entry.path().unwrap().display().to_string();
            assert_eq!(name, Digest::of(&bytes).to_string());
            found.push(bytes);
        }
        assert_eq!(found, contents());
    }

    #[test]
    fn what_a_crash_leaves_is_settled_up_to_where_it_was_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let path = bundle(&store).path.clone();
        let whole = fs::read(&path).unwrap();
        // Half of the last member, and a spoilt byte in the third.
        let third = whole.windows(511).position(|w| w == [b'x'; 511]).unwrap();
        let mut torn = whole[..whole.len() - 40_000].to_vec();
        torn[third] = b'y';
        fs::write(&path, torn).unwrap();
        let left = store.bundles().unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].members().len(), 5);
        let settled = left[0].settle().unwrap();
        assert_eq!(settled.len(), 4);
        for (at, bytes) in contents().iter().enumerate() {
            assert_eq!(
                store.contains(&Digest::of(bytes)),
                at != 2 && at != 5,
                "{at}"
            );
        }
        left[0].remove().unwrap();
        assert!(store.bundles().unwrap().is_empty());
    }

    #[test]
    fn a_file_that_a_crash_left_half_is_replaced_when_its_bundle_is_settled() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let bundle = bundle(&store);
        let digest = bundle.members()[3].digest;
        fs::write(store.folder().join(digest.to_string()), "half").unwrap();
        assert_eq!(bundle.settle().unwrap().len(), 6);
        let (mut file, size) = store.open(&digest).unwrap().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!((size, Digest::of(&bytes)), (512, digest));
    }

    #[test]
    fn a_bundle_that_is_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let mut writer = store.bundle().unwrap();
        writer.push(Digest::of(b"x"), b"x").unwrap();
        drop(writer);
        assert!(store.bundles().unwrap().is_empty());
    }
}
