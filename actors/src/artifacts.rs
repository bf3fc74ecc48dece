//! Which artifacts are held, and where: one look-up by digest over our own folder and every mirrored one.

use std::fs::File;
use std::io::{self, Seek};

use hn_protocol::did::Did;
use hn_protocol::digest::Digest;

use crate::home::Home;
use crate::store::{Batch, Store, StoreError, Tree};
use crate::vault::{ArtifactStore, Purpose, SpaceGuard, Staged};

/// Artifacts entered into the index together: bounds the memory of a rebuild.
const NOTED_AT_ONCE: usize = 1024;

/// Finds and keeps artifacts. Cloning shares.
#[derive(Clone)]
pub struct ArtifactShelf {
    home: Home,
    store: Store,
    space: SpaceGuard,
    own: ArtifactStore,
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
        }
    }

    /// Whether the disk has more left than `storage.min_free`.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.space.check(0).is_ok()
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
        let publisher: Option<Did> = self
            .store
            .get(Tree::Artifacts, &digest.0)
            .map_err(io::Error::other)?;
        match publisher {
            Some(publisher) => self.mirrored(&publisher).open(digest),
            None => Ok(None),
        }
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

    /// Whether an artifact is held, with its length.
    pub fn contains(&self, digest: &Digest) -> io::Result<bool> {
        Ok(self.open(digest)?.is_some())
    }

    /// Makes mirrored artifacts of `publisher` durable, then findable. Errors: disk, index.
    pub fn keep(&self, publisher: &Did, staged: Vec<Staged>) -> io::Result<()> {
        let digests: Vec<Digest> = staged.iter().map(Staged::digest).collect();
        self.mirrored(publisher).commit(Purpose::Mirror, staged)?;
        self.note(publisher, &digests).map_err(io::Error::other)
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

    /// Removes what unfinished writes left behind.
    pub fn clean(&self) -> io::Result<()> {
        self.own.clean_temps()?;
        for publisher in self.home.cached_publishers()? {
            self.mirrored(&publisher).clean_temps()?;
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
