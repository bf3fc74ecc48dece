//! The revocations that this node keeps: its own identities', and those of the DIDs that it has to do with
//! (`spec/revocation@1.md`).
//!
//! Each is a file, `trust/revocations/<did>.json`, fsynced before anything else follows from it; it is never removed nor
//! replaced. Apart from logs and index, so that neither `hn mcp federate remove`, a reindex nor a pruning forgets it.
//! What is revoked is asked of memory, from any thread: the [`Catalog`] shows it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use hn_protocol::canonical;
use hn_protocol::did::Did;
use hn_protocol::document::Revocation;
use hn_protocol::federation::Reason;
use hn_protocol::sign::{Document, DocumentError, Signed};
use hn_protocol::time::Timestamp;
use tracing::{error, warn};

use crate::catalog::Catalog;
use crate::failpoint;
use crate::home::Home;
use crate::keyring::{EXPORT_TYPE, Keyring};
use crate::roster::Standings;
use crate::vault;

/// Revocations kept of DIDs that are neither ours nor in the roster: those of held logs, which peers choose. As many as an
/// honest node may hold logs, and at 4 KiB each no more than 64 MiB.
pub const MAX_KEPT: usize = 16_384;

/// What came of a revocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// Durable from now on, and believed.
    New(Did),
    /// One of this DID was held already. The first one stays: they say the same.
    Known(Did),
}

impl Accepted {
    /// Whose.
    #[must_use]
    pub const fn did(&self) -> Did {
        match self {
            Self::New(did) | Self::Known(did) => *did,
        }
    }

    /// As the answer to `POST /revocation` has it.
    #[must_use]
    pub const fn status(&self) -> &'static str {
        match self {
            Self::New(_) => "accepted",
            Self::Known(_) => "known",
        }
    }
}

/// Why a revocation was not kept.
#[derive(Debug, thiserror::Error)]
pub enum RevocationError {
    /// No revocation, or not by the DID that it names.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// Of a DID that this node has nothing to do with.
    #[error("{0} is unknown here: no log of it is held, and the roster does not name it")]
    Unknown(Did),
    /// Enough are kept of DIDs that the roster does not name.
    #[error("revocations of {MAX_KEPT} logs are kept, which is all there is room for")]
    Full,
    /// The disk.
    #[error("the revocation cannot be kept: {0}")]
    Io(#[from] io::Error),
}

/// Every revocation that is held. Cloning shares it.
#[derive(Clone)]
pub struct Revocations {
    inner: Arc<Inner>,
}

struct Inner {
    home: Home,
    catalog: Catalog,
    standings: Standings,
    /// The identities of this home.
    own: BTreeSet<Did>,
    /// One is written at a time: the first stays.
    writing: Mutex<()>,
}

impl Revocations {
    /// Reads back what is kept, and shows it in `catalog`. A file that does not verify is passed over, and said so; where it
    /// is one of our own identities', the one that was made with it says the same.
    #[must_use]
    pub fn open(home: Home, catalog: Catalog, standings: Standings) -> Self {
        let mut own = BTreeSet::new();
        match Keyring::open(&home).and_then(|keyring| Ok((keyring.list()?, keyring))) {
            Ok((identities, keyring)) => {
                for identity in identities {
                    own.insert(identity.did);
                    if is_kept(&home, &identity.did) && read(&home, &identity.did).is_none() {
                        let made = keyring.revocation(&identity.alias);
                        if let Some(word) = made.ok().filter(|word| word.did == identity.did) {
                            catalog.revoke(word.did, word.bytes().clone());
                        }
                    }
                }
            }
            Err(error) => warn!(%error, "the own identities cannot be read"),
        }
        for did in kept(&home) {
            match read(&home, &did) {
                Some(word) => catalog.revoke(did, word.bytes().clone()),
                None => error!(%did, "a kept revocation does not verify"),
            }
        }
        Self {
            inner: Arc::new(Inner {
                home,
                catalog,
                standings,
                own,
                writing: Mutex::new(()),
            }),
        }
    }

    /// Whether the revocation of `did` is held.
    #[must_use]
    pub fn is_revoked(&self, did: &Did) -> bool {
        self.inner.catalog.is_revoked(did)
    }

    /// The revocation of `did`, byte for byte.
    #[must_use]
    pub fn get(&self, did: &Did) -> Option<Bytes> {
        self.inner.catalog.revocation(did)
    }

    /// As a peer's health says it; `None` where `did` is not revoked.
    #[must_use]
    pub fn reason(&self, did: &Did) -> Option<Reason> {
        if !self.is_revoked(did) {
            return None;
        }
        let since = since(&self.inner.home, did).map_or_else(String::new, |at| format!(" at {at}"));
        Some(Reason {
            code: "revoked".to_owned(),
            detail: format!(
                "its revocation came here{since}: nothing newer by it is believed, what was held of its log stays as history"
            ),
        })
    }

    /// Whether this node has to do with `did`: an own identity, in the roster as peer or friend, or its log is held.
    #[must_use]
    pub fn concerns(&self, did: &Did) -> bool {
        self.is_named(did)
            || self.inner.catalog.log(did).is_some()
            // A log that cannot be opened just now.
            || self.inner.home.cache_dir(did).is_dir()
    }

    fn is_named(&self, did: &Did) -> bool {
        self.inner.own.contains(did) || self.inner.standings.of(did).known
    }

    /// Keeps a revocation that somebody showed, durably, and believes it from now on. Verified first. Errors: see
    /// [`RevocationError`]; nothing is kept then.
    pub fn accept(&self, bytes: Bytes) -> Result<Accepted, RevocationError> {
        let word = Signed::<Revocation>::verify(bytes)?;
        if self.is_revoked(&word.did) {
            return Ok(Accepted::Known(word.did));
        }
        if !self.concerns(&word.did) {
            return Err(RevocationError::Unknown(word.did));
        }
        if !self.is_named(&word.did) && self.inner.catalog.revocations() >= MAX_KEPT {
            return Err(RevocationError::Full);
        }
        self.keep(&word)
    }

    /// [`accept`](Self::accept) at an operator's word: also of a DID that the node has nothing to do with yet.
    pub fn accept_from_operator(&self, bytes: Bytes) -> Result<Accepted, RevocationError> {
        self.keep(&Signed::verify(bytes)?)
    }

    fn keep(&self, word: &Signed<Revocation>) -> Result<Accepted, RevocationError> {
        let did = word.did;
        let writing = self.inner.writing.lock();
        let _writing = writing.unwrap_or_else(PoisonError::into_inner);
        if self.is_revoked(&did) {
            return Ok(Accepted::Known(did));
        }
        keep(&self.inner.home, word)?;
        failpoint::hit("revocation.after_write")?;
        self.inner.catalog.revoke(did, word.bytes().clone());
        if did == self.inner.catalog.own() {
            warn!(%did, "this node's own DID is revoked: nothing is signed any more");
        } else {
            warn!(%did, "federation.revoked");
        }
        Ok(Accepted::New(did))
    }
}

/// Writes a revocation into a home, durably, unless one is there. Whoever calls this for a home without a node holds its
/// lock. Errors: the disk.
pub fn keep(home: &Home, word: &Signed<Revocation>) -> io::Result<()> {
    if read(home, &word.did).is_some() {
        return Ok(());
    }
    let path = home.revocation_file(&word.did);
    failpoint::hit("revocation.before_write")?;
    vault::create_dirs(&home.revocations_dir())?;
    vault::write_atomic(&path, word.bytes(), vault::FILE_MODE)
}

/// The revocation of `did` that `home` keeps; `None` where there is none, or none that verifies.
#[must_use]
pub fn read(home: &Home, did: &Did) -> Option<Signed<Revocation>> {
    let word = Signed::<Revocation>::verify(bounded(&home.revocation_file(did))?).ok()?;
    (word.did == *did).then_some(word)
}

/// The revocation in a file: an exported identity, which carries its own, or the `revocation@1` itself. No passphrase is
/// needed: it was signed when the identity was made. Errors: neither, or one that does not verify.
pub fn in_file(document: &[u8]) -> Result<Signed<Revocation>, DocumentError> {
    let mut value = canonical::parse(document)?;
    let exported = value["type"] == EXPORT_TYPE;
    let did = value["did"].clone();
    if let Some(object) = value.as_object_mut().filter(|_| exported) {
        value = object.remove("revocation").unwrap_or_default();
    }
    let word = Signed::<Revocation>::verify(canonical::to_vec(&value)?.into())?;
    if exported && did != word.did.to_string().as_str() {
        let text = "the revocation of the export is another DID's";
        return Err(DocumentError::Malformed(text.to_owned()));
    }
    Ok(word)
}

/// Whether `home` keeps a revocation of `did`, damaged or not.
#[must_use]
pub fn is_kept(home: &Home, did: &Did) -> bool {
    home.revocation_file(did).exists()
}

/// When the revocation of `did` was kept.
#[must_use]
pub fn since(home: &Home, did: &Did) -> Option<Timestamp> {
    let meta = fs::metadata(home.revocation_file(did)).ok()?;
    let since = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok().map(Timestamp)
}

/// Whose revocations `home` keeps. What is no DID's file is passed over.
fn kept(home: &Home) -> Vec<Did> {
    let entries = match fs::read_dir(home.revocations_dir()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            error!(%error, "the folder of revocations cannot be read");
            return Vec::new();
        }
    };
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| name.strip_suffix(".json")?.parse().ok())
        .collect()
}

fn bounded(path: &Path) -> Option<Bytes> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let most = Revocation::MAX_BYTES as u64 + 1;
    let file = fs::File::open(path).ok()?;
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(bytes.into())
}

#[cfg(test)]
#[path = "revocations_tests.rs"]
mod tests;
