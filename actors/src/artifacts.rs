//! Which artifacts are held, and where: one look-up by digest over our own folder and every mirrored one, with what
//! each publisher takes of the disk.

mod listed;
mod unnamed;
mod unsettled;
mod usage;

use std::fs::File;
use std::io::{self, Seek};
use std::sync::{Arc, Mutex, PoisonError};

use hn_protocol::did::Did;
use hn_protocol::digest::Digest;

pub use self::listed::{Listed, entries_of, listed};
pub use self::unnamed::Sweeper;
use self::unsettled::Unsettled;
pub use self::usage::Usage;
use self::usage::Usages;
use crate::home::Home;
use crate::store::{Batch, Store, StoreError, Tree};
use crate::vault::{ArtifactStore, Bundle, BundleWriter, Purpose, SpaceGuard, Staged};

/// Artifacts entered into the index together: bounds the memory of a rebuild.
const NOTED_AT_ONCE: usize = 1024;
/// Bundles that may wait in the background; who brings more settles one himself.
const MAX_UNSETTLED: usize = 4;

/// Finds and keeps artifacts. Cloning shares.
#[derive(Clone)]
pub struct ArtifactShelf {
    home: Home,
    store: Store,
    space: SpaceGuard,
    own: ArtifactStore,
    unsettled: Arc<Unsettled>,
    usages: Arc<Usages>,
    /// One bundle is settled at a time: more would only take the disk from each other.
    settling: Arc<Mutex<()>>,
}

impl ArtifactShelf {
    /// The artifacts of the node `alias`, and those it mirrors.
    #[must_use]
    pub fn new(home: Home, store: Store, space: SpaceGuard, alias: &str) -> Self {
        let own = ArtifactStore::new(&home.own_artifacts(alias), space.clone());
        Self {
            home,
            store,
            space,
            own,
            unsettled: Arc::default(),
            usages: Arc::default(),
            settling: Arc::default(),
        }
    }

    /// Whether the disk has more left than `storage.min_free`.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.space.check(0).is_ok()
    }

    /// Bytes that stay free: `storage.min_free`.
    #[must_use]
    pub fn min_free(&self) -> u64 {
        self.space.min_free()
    }

    /// Our own artifacts.
    #[must_use]
    pub const fn own(&self) -> &ArtifactStore {
        &self.own
    }

    /// What is mirrored of a publisher.
    #[must_use]
    pub fn mirrored(&self, publisher: &Did) -> ArtifactStore {
        ArtifactStore::new(&self.home.cache_artifacts(publisher), self.space.clone())
    }

    /// Opens an artifact: the file and its length. `None` when it is not held. Errors: the disk.
    pub fn open(&self, digest: &Digest) -> io::Result<Option<(File, u64)>> {
        if let Some(found) = self.own.open(digest)? {
            return Ok(Some(found));
        }
        // Before its bundle is settled, a file is half or not there.
        if let Some((bundle, member)) = self.unsettled.find(digest) {
            let bytes = match bundle.read(&member) {
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(None),
                read => read?,
            };
            // A file without a name, so that none is touched while the bundle is being settled.
            let staged = bundle.store().stage_bytes(&bytes)?;
            return Ok(Some((File::open(staged.path())?, member.size)));
        }
        match self.publisher_of(digest)? {
            Some(publisher) => self.mirrored(&publisher).open(digest),
            None => Ok(None),
        }
    }

    fn publisher_of(&self, digest: &Digest) -> io::Result<Option<Did>> {
        let found = self.store.get(Tree::Artifacts, &digest.0);
        found.map_err(io::Error::other)
    }

    /// [`ArtifactShelf::open`], after its bytes were read and found to be what the digest names: a copy that the disk
    /// has spoilt counts as not held. Errors: the disk.
    pub fn open_verified(&self, digest: &Digest) -> io::Result<Option<File>> {
        let Some((mut file, _)) = self.open(digest)? else {
            return Ok(None);
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(&mut file)?;
        if Digest::from(hasher.finalize()) != *digest {
            tracing::error!(%digest, "a held artifact is damaged on the disk");
            return Ok(None);
        }
        file.rewind()?;
        Ok(Some(file))
    }

    /// Whether an artifact is held.
    pub fn contains(&self, digest: &Digest) -> io::Result<bool> {
        if self.unsettled.find(digest).is_some() {
            return Ok(true);
        }
        match self.publisher_of(digest)? {
            Some(publisher) if self.mirrored(&publisher).contains(digest) => Ok(true),
            _ => Ok(self.own.contains(digest)),
        }
    }

    /// Makes mirrored artifacts of `publisher` durable, then findable. Errors: disk, index.
    pub fn keep(&self, publisher: &Did, staged: Vec<Staged>) -> io::Result<()> {
        let kept: Vec<(Digest, u64)> = staged.iter().map(|s| (s.digest(), s.size())).collect();
        self.usage(publisher)?;
        self.mirrored(publisher).commit(Purpose::Mirror, staged)?;
        let digests: Vec<Digest> = kept.iter().map(|(digest, _)| *digest).collect();
        self.note(publisher, &digests).map_err(io::Error::other)?;
        self.usages
            .add(publisher, kept.iter().map(|(_, size)| *size));
        Ok(())
    }

    /// [`ArtifactShelf::keep`] for many small ones together. What is returned is to be settled in the background.
    pub fn keep_bundle(
        &self,
        publisher: &Did,
        bundle: BundleWriter,
    ) -> io::Result<Option<Arc<Bundle>>> {
        if bundle.members().is_empty() {
            return Ok(None);
        }
        self.usage(publisher)?;
        let bundle = Arc::new(bundle.finish()?);
        let waiting = self.unsettled.add(*publisher, &bundle);
        let sizes = bundle.members().iter().map(|member| member.size);
        self.usages.add(publisher, sizes);
        if waiting <= MAX_UNSETTLED {
            return Ok(Some(bundle));
        }
        self.settle(&bundle)?;
        Ok(None)
    }

    /// Gives each artifact of a bundle its file, and removes the bundle. Errors: disk, index; then it stays for the next
    /// attempt, and its artifacts are held all the same.
    pub fn settle(&self, bundle: &Arc<Bundle>) -> io::Result<()> {
        let _turn = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(publisher) = self.unsettled.publisher(bundle) else {
            return Ok(());
        };
        let settled = bundle.settle()?;
        for digests in settled.chunks(NOTED_AT_ONCE) {
            self.note(&publisher, digests).map_err(io::Error::other)?;
        }
        self.unsettled.remove(bundle);
        bundle.remove()
    }

    /// Settles every bundle that waits.
    pub fn settle_all(&self) -> io::Result<()> {
        for bundle in self.unsettled.all() {
            self.settle(&bundle)?;
        }
        Ok(())
    }

    /// Whether bundles wait to be settled.
    #[must_use]
    pub fn has_unsettled(&self) -> bool {
        !self.unsettled.all().is_empty()
    }

    /// What is mirrored in the name of `publisher`. The first time its folder is read.
    pub fn usage(&self, publisher: &Did) -> io::Result<Usage> {
        if let Some(usage) = self.usages.get(publisher) {
            return Ok(usage);
        }
        self.settle_all()?;
        let mut usage = Usage::default();
        for artifact in self.mirrored(publisher).list()? {
            usage.add(artifact?.1);
        }
        Ok(self.usages.first(publisher, usage))
    }

    /// What is mirrored of everybody, by publisher.
    pub fn usages(&self) -> io::Result<Vec<(Did, Usage)>> {
        let publishers = self.home.cached_publishers()?.into_iter();
        publishers
            .map(|publisher| Ok((publisher, self.usage(&publisher)?)))
            .collect()
    }

    /// Bytes that are mirrored of everybody. The first time every folder is read.
    pub fn mirrored_bytes(&self) -> io::Result<u64> {
        if let Some(total) = self.usages.total() {
            return Ok(total);
        }
        self.usages()?;
        self.usages.complete();
        Ok(self.usages.total().unwrap_or_default())
    }

    /// What our own artifacts take.
    pub fn own_usage(&self) -> io::Result<Usage> {
        let mut usage = Usage::default();
        for artifact in self.own.list()? {
            usage.add(artifact?.1);
        }
        Ok(usage)
    }

    /// How many artifacts are held, after every mirrored one was entered into the index anew.
    pub fn reindex(&self) -> io::Result<u64> {
        let mut count = self.find_mirrored()?;
        for artifact in self.own.list()? {
            artifact?;
            count += 1;
        }
        Ok(count)
    }

    /// Enters every mirrored artifact into the index: an index that was not closed in order may lack the last ones,
    /// and their files are the truth. Answers how many there are.
    pub fn find_mirrored(&self) -> io::Result<u64> {
        self.settle_all()?;
        let mut count = 0;
        for publisher in self.home.cached_publishers()? {
            let mut digests = Vec::with_capacity(NOTED_AT_ONCE);
            for artifact in self.mirrored(&publisher).list()? {
                digests.push(artifact?.0);
                count += 1;
                if digests.len() == NOTED_AT_ONCE {
                    self.note(&publisher, &digests).map_err(io::Error::other)?;
                    digests.clear();
                }
            }
            self.note(&publisher, &digests).map_err(io::Error::other)?;
        }
        Ok(count)
    }

    /// Removes what unfinished writes left behind, and takes up the bundles that were not settled.
    pub fn clean(&self) -> io::Result<()> {
        self.own.clean_temps()?;
        for publisher in self.home.cached_publishers()? {
            let store = self.mirrored(&publisher);
            store.clean_temps()?;
            for bundle in store.bundles()? {
                self.unsettled.add(publisher, &Arc::new(bundle));
            }
        }
        Ok(())
    }

    fn note(&self, publisher: &Did, digests: &[Digest]) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for digest in digests {
            batch.put(Tree::Artifacts, &digest.0, publisher)?;
        }
        self.store.apply(batch)
    }
}

#[cfg(test)]
#[path = "artifacts_tests.rs"]
mod tests;
