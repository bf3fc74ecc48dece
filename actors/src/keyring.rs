//! The identities of a home: `identities/<alias>/{identity.json, secret.json, revocation.json}` (design 2, 11);
//! with one that was made here its [`PlaceMarker`].
//!
//! An identity appears whole, by one rename of a fsynced folder, and is never changed. Which one serves stands in
//! `identities/active`.

mod secret;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use hn_protocol::canonical;
use hn_protocol::did::{Did, SecretSeed};
use hn_protocol::document::Revocation;
use hn_protocol::recovery::Troubles;
use hn_protocol::sign::Signed;
use hn_protocol::time::Timestamp;
use rand::CryptoRng;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use secret::{Passphrase, PassphraseError};

use crate::home::Home;
use crate::place::PlaceMarker;
use crate::vault;
use secret::{OpenError, Secret};

/// What an exported identity says it is.
pub(crate) const EXPORT_TYPE: &str = "hn_identity@1";
/// The longest alias; it is a folder's name and stands in tables.
const MAX_ALIAS: usize = 63;
/// An exported identity is about 1 KiB; room for other people's white space.
const MAX_EXPORT: usize = 64 << 10;
/// The file beside the identities that names the one that serves; so no identity can have this alias.
const ACTIVE: &str = "active";
/// What the names of folders that are being made begin with. No alias begins so.
const MAKING: &str = ".new-";

static MAKING_COUNTER: AtomicU64 = AtomicU64::new(0);

/// Why the keyring did not do it.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// Not an alias.
    #[error(
        "{0:?} is no alias: it takes 1 to {MAX_ALIAS} of a-z, 0-9, dot, dash and underscore, begins with a letter or digit, has no two dots in a row and is not \"active\""
    )]
    Alias(String),
    /// There is an identity of this alias.
    #[error("there is an identity {0} already")]
    Exists(String),
    /// The same DID is here under another alias.
    #[error("{did} is here already, as {alias}")]
    DidExists {
        /// The DID.
        did: Did,
        /// Its alias here.
        alias: String,
    },
    /// No identity has this alias.
    #[error("there is no identity {0}; `hn id list` shows those there are")]
    Unknown(String),
    /// The secret is sealed and no passphrase was given.
    #[error("the secret of {0} is sealed: give --passphrase-file or HN_PASSPHRASE_FILE")]
    PassphraseNeeded(String),
    /// The passphrase does not open the secret.
    #[error("this is not the passphrase of {0}")]
    WrongPassphrase(String),
    /// A plain secret would be written out without anybody having asked for it.
    #[error(
        "the secret of {0} is not sealed: give a passphrase to seal the export with, or ask for it in plain"
    )]
    PlainExport(String),
    /// The document to recover from is none, or was changed.
    #[error("this is no exported identity: {0}")]
    Document(String),
    /// A file of the keyring is not of the form that we write.
    #[error("{path} is damaged: {reason}; recover the identity from its export")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// What was worked on.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl KeyringError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// What is public about an identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IdentityInfo {
    /// What it is called here.
    pub alias: String,
    /// Its DID.
    pub did: Did,
    /// When it was made.
    pub created_at: Timestamp,
    /// Whether its secret needs a passphrase.
    pub sealed: bool,
}

/// `identity.json`.
#[derive(Debug, Serialize, Deserialize)]
struct IdentityFile {
    did: Did,
    created_at: Timestamp,
}

/// Where an identity comes from. One that was made here has signed nothing anywhere else.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Made,
    Recovered,
}

/// An exported identity: everything there is to it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Export {
    #[serde(rename = "type")]
    kind: String,
    alias: String,
    did: Did,
    created_at: Timestamp,
    secret: Secret,
    revocation: serde_json::Value,
}

/// The identities of one home.
#[derive(Debug, Clone)]
pub struct Keyring {
    folder: PathBuf,
}

/// Whether `alias` is one: `[a-z0-9][a-z0-9._-]{0,62}` without `..`, and not `active`.
#[must_use]
pub fn is_alias(alias: &str) -> bool {
    let starts = alias
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    starts
        && alias.len() <= MAX_ALIAS
        && alias != ACTIVE
        && !alias.contains("..")
        && alias
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
}

impl Keyring {
    /// The keyring of `home`. Sweeps what commands that crashed left unfinished.
    pub fn open(home: &Home) -> Result<Self, KeyringError> {
        let keyring = Self {
            folder: home.identities_dir(),
        };
        vault::create_dirs(&keyring.folder)
            .and_then(|()| keyring.sweep())
            .map_err(KeyringError::io(&keyring.folder))?;
        Ok(keyring)
    }

    /// Makes a new identity and its revocation; the first one becomes the active one.
    pub fn create(
        &self,
        alias: &str,
        passphrase: Option<&Passphrase>,
        now: Timestamp,
        rng: &mut impl CryptoRng,
    ) -> Result<IdentityInfo, KeyringError> {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *bytes);
        let seed = SecretSeed::from_bytes(*bytes);
        let secret = seal(alias, &seed, passphrase, rng)?;
        let identity = IdentityFile {
            did: seed.did(),
            created_at: now,
        };
        let revocation = revocation(&seed, now)?;
        self.put(alias, &identity, &secret, &revocation, Origin::Made)
    }

    /// Every identity, by alias.
    pub fn list(&self) -> Result<Vec<IdentityInfo>, KeyringError> {
        let mut list = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(KeyringError::io(&self.folder))? {
            let entry = entry.map_err(KeyringError::io(&self.folder))?;
            if let Some(alias) = entry.file_name().to_str().filter(|name| is_alias(name)) {
                list.push(self.get(alias)?);
            }
        }
        list.sort_by(|a, b| a.alias.cmp(&b.alias));
        Ok(list)
    }

    /// One identity.
    pub fn get(&self, alias: &str) -> Result<IdentityInfo, KeyringError> {
        let identity: IdentityFile = self.read(alias, "identity.json")?;
        let secret: Secret = self.read(alias, "secret.json")?;
        Ok(IdentityInfo {
            alias: alias.to_owned(),
            did: identity.did,
            created_at: identity.created_at,
            sealed: secret.is_sealed(),
        })
    }

    /// The alias of the identity that serves: the one in `identities/active`, else the only one. Nothing when there is
    /// none, or several and nobody has chosen.
    pub fn active(&self) -> Result<Option<String>, KeyringError> {
        let path = self.folder.join(ACTIVE);
        match fs::read_to_string(&path) {
            Ok(text) => {
                let alias = text.trim();
                if self.folder.join(alias).is_dir() && is_alias(alias) {
                    return Ok(Some(alias.to_owned()));
                }
                Err(KeyringError::Unknown(alias.to_owned()))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mut list = self.list()?;
                match list.pop() {
                    Some(only) if list.is_empty() => Ok(Some(only.alias)),
                    _ => Ok(None),
                }
            }
            Err(e) => Err(KeyringError::io(&path)(e)),
        }
    }

    /// Makes `alias` the identity that serves.
    pub fn set_active(&self, alias: &str) -> Result<(), KeyringError> {
        self.get(alias)?;
        let path = self.folder.join(ACTIVE);
        vault::write_atomic(&path, format!("{alias}\n").as_bytes(), vault::FILE_MODE)
            .map_err(KeyringError::io(&path))
    }

    /// The seed of `alias`. Errors: [`KeyringError::PassphraseNeeded`], [`KeyringError::WrongPassphrase`].
    pub fn unlock(
        &self,
        alias: &str,
        passphrase: Option<&Passphrase>,
    ) -> Result<SecretSeed, KeyringError> {
        let identity: IdentityFile = self.read(alias, "identity.json")?;
        let secret: Secret = self.read(alias, "secret.json")?;
        secret
            .open(&identity.did, passphrase)
            .map_err(|error| match error {
                OpenError::PassphraseNeeded => KeyringError::PassphraseNeeded(alias.to_owned()),
                OpenError::WrongPassphrase => KeyringError::WrongPassphrase(alias.to_owned()),
                OpenError::Malformed(reason) => KeyringError::Damaged {
                    path: self.folder.join(alias).join("secret.json"),
                    reason: reason.to_owned(),
                },
            })
    }

    /// The signed `revocation@1` that was made with the identity, byte for byte.
    pub fn revocation(&self, alias: &str) -> Result<Signed<Revocation>, KeyringError> {
        let path = self.file(alias, "revocation.json")?;
        let bytes = self.read_bytes(alias, &path)?;
        Signed::verify(Bytes::copy_from_slice(&bytes)).map_err(|e| KeyringError::Damaged {
            path,
            reason: e.to_string(),
        })
    }

    /// The identity as one JSON document, to be kept apart from the home. A sealed secret stays as it is sealed. A plain
    /// one is sealed with `passphrase`, or written out only with `allow_plain`.
    pub fn export(
        &self,
        alias: &str,
        passphrase: Option<&Passphrase>,
        allow_plain: bool,
        rng: &mut impl CryptoRng,
    ) -> Result<Zeroizing<Vec<u8>>, KeyringError> {
        let identity: IdentityFile = self.read(alias, "identity.json")?;
        let mut secret: Secret = self.read(alias, "secret.json")?;
        if secret.is_sealed() {
            // Sealed as it is; whoever gives a passphrase must hear now, not when it is needed, that it is another.
            if passphrase.is_some() {
                self.unlock(alias, passphrase)?;
            }
        } else {
            match passphrase {
                Some(_) => {
                    let seed = self.unlock(alias, None)?;
                    secret = seal(alias, &seed, passphrase, rng)?;
                }
                None if allow_plain => {}
                None => return Err(KeyringError::PlainExport(alias.to_owned())),
            }
        }
        let revocation = self.revocation(alias)?;
        let export = Export {
            kind: EXPORT_TYPE.to_owned(),
            alias: alias.to_owned(),
            did: identity.did,
            created_at: identity.created_at,
            secret,
            revocation: canonical::parse(revocation.bytes())
                .map_err(|e| KeyringError::Document(e.to_string()))?,
        };
        json(&export, &self.folder)
    }

    /// Takes an exported identity in, under its own alias or `alias`. The secret has to be opened to see that it is the
    /// DID's, so a sealed one needs its passphrase; a plain one is sealed when a passphrase is given.
    pub fn recover(
        &self,
        document: &[u8],
        alias: Option<&str>,
        passphrase: Option<&Passphrase>,
        rng: &mut impl CryptoRng,
    ) -> Result<IdentityInfo, KeyringError> {
        if document.len() > MAX_EXPORT {
            return Err(KeyringError::Document("it is too large".to_owned()));
        }
        let export: Export = serde_json::from_slice(document)
            .map_err(|e| KeyringError::Document(syntax_only(&e)))?;
        if export.kind != EXPORT_TYPE {
            return Err(KeyringError::Document(format!(
                "its type is not {EXPORT_TYPE}"
            )));
        }
        let alias = alias.unwrap_or(&export.alias);
        let seed = export
            .secret
            .open(&export.did, passphrase)
            .map_err(|error| match error {
                OpenError::PassphraseNeeded => KeyringError::PassphraseNeeded(alias.to_owned()),
                OpenError::WrongPassphrase => KeyringError::WrongPassphrase(alias.to_owned()),
                OpenError::Malformed(reason) => KeyringError::Document(reason.to_owned()),
            })?;
        let revocation = canonical::to_vec(&export.revocation)
            .map_err(|e| e.to_string())
            .and_then(|bytes| Signed::<Revocation>::verify(bytes.into()).map_err(|e| e.to_string()))
            .map_err(|e| KeyringError::Document(format!("its revocation: {e}")))?;
        if revocation.did != export.did {
            let reason = "its revocation is another DID's";
            return Err(KeyringError::Document(reason.to_owned()));
        }
        let secret = if export.secret.is_sealed() {
            export.secret
        } else {
            seal(alias, &seed, passphrase, rng)?
        };
        let identity = IdentityFile {
            did: export.did,
            created_at: export.created_at,
        };
        self.put(alias, &identity, &secret, &revocation, Origin::Recovered)
    }

    /// Takes in a key that was brought back from its shares. Of the first time only the key is left: `created_at` is
    /// `now`, and the revocation is a new one, which ends the DID as well as the old one does. Sealed when a passphrase is
    /// given.
    pub fn restore(
        &self,
        alias: &str,
        seed: &SecretSeed,
        passphrase: Option<&Passphrase>,
        now: Timestamp,
        rng: &mut impl CryptoRng,
    ) -> Result<IdentityInfo, KeyringError> {
        let secret = seal(alias, seed, passphrase, rng)?;
        let identity = IdentityFile {
            did: seed.did(),
            created_at: now,
        };
        let revocation = revocation(seed, now)?;
        self.put(alias, &identity, &secret, &revocation, Origin::Recovered)
    }

    /// Makes the identity's folder aside, fsyncs all of it and renames it into place.
    fn put(
        &self,
        alias: &str,
        identity: &IdentityFile,
        secret: &Secret,
        revocation: &Signed<Revocation>,
        origin: Origin,
    ) -> Result<IdentityInfo, KeyringError> {
        if !is_alias(alias) {
            return Err(KeyringError::Alias(alias.to_owned()));
        }
        let list = self.list()?;
        if list.iter().any(|known| known.alias == alias) {
            return Err(KeyringError::Exists(alias.to_owned()));
        }
        if let Some(known) = list.iter().find(|known| known.did == identity.did) {
            return Err(KeyringError::DidExists {
                did: identity.did,
                alias: known.alias.clone(),
            });
        }
        let target = self.folder.join(alias);
        let aside = self.folder.join(format!(
            "{MAKING}{}-{}",
            std::process::id(),
            MAKING_COUNTER.fetch_add(1, Ordering::Relaxed)
        ));
        let files = [
            ("identity.json", json(identity, &target)?),
            ("secret.json", json(secret, &target)?),
            (
                "revocation.json",
                Zeroizing::new(revocation.bytes().to_vec()),
            ),
        ];
        let made = vault::create_dirs(&aside)
            .and_then(|()| {
                files.iter().try_for_each(|(name, bytes)| {
                    vault::write_durable(&aside.join(name), bytes, vault::FILE_MODE)
                })
            })
            .and_then(|()| match origin {
                Origin::Made => PlaceMarker::new(&aside).write(&Troubles::default()),
                Origin::Recovered => Ok(()),
            })
            .and_then(|()| vault::sync_dir(&aside))
            .and_then(|()| fs::rename(&aside, &target))
            .and_then(|()| vault::sync_dir(&self.folder));
        if let Err(error) = made {
            // Nothing was promised yet; what cannot be removed now is swept later.
            let _ = fs::remove_dir_all(&aside);
            return Err(match error.kind() {
                // Another process was first.
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
                    KeyringError::Exists(alias.to_owned())
                }
                _ => KeyringError::io(&target)(error),
            });
        }
        if list.is_empty() {
            self.set_active(alias)?;
        }
        self.get(alias)
    }

    fn file(&self, alias: &str, name: &str) -> Result<PathBuf, KeyringError> {
        if is_alias(alias) {
            Ok(self.folder.join(alias).join(name))
        } else {
            Err(KeyringError::Alias(alias.to_owned()))
        }
    }

    fn read<T: serde::de::DeserializeOwned>(
        &self,
        alias: &str,
        name: &str,
    ) -> Result<T, KeyringError> {
        let path = self.file(alias, name)?;
        let bytes = self.read_bytes(alias, &path)?;
        serde_json::from_slice(&bytes).map_err(|e| KeyringError::Damaged {
            path,
            reason: syntax_only(&e),
        })
    }

    fn read_bytes(&self, alias: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyringError> {
        match fs::read(path) {
            Ok(bytes) => Ok(Zeroizing::new(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound && !self.folder.join(alias).is_dir() => {
                Err(KeyringError::Unknown(alias.to_owned()))
            }
            Err(e) => Err(KeyringError::io(path)(e)),
        }
    }

    /// Removes unfinished folders whose makers are gone: they may hold secrets that nobody was told of.
    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let maker = name
                .to_str()
                .and_then(|name| name.strip_prefix(MAKING))
                .and_then(|rest| rest.split('-').next())
                .and_then(|pid| pid.parse().ok())
                .and_then(rustix::process::Pid::from_raw);
            if let Some(maker) = maker
                && rustix::process::test_kill_process(maker) == Err(rustix::io::Errno::SRCH)
            {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

fn seal(
    alias: &str,
    seed: &SecretSeed,
    passphrase: Option<&Passphrase>,
    rng: &mut impl CryptoRng,
) -> Result<Secret, KeyringError> {
    match passphrase {
        None => Ok(Secret::plain(seed)),
        Some(passphrase) => Secret::sealed(seed, passphrase, rng).map_err(|_| KeyringError::Io {
            path: PathBuf::from(alias),
            source: io::ErrorKind::OutOfMemory.into(),
        }),
    }
}

fn revocation(seed: &SecretSeed, now: Timestamp) -> Result<Signed<Revocation>, KeyringError> {
    let identity = seed.identity();
    let revocation = Revocation {
        did: identity.did(),
        at: now,
    };
    Signed::create(&revocation, &identity).map_err(|e| KeyringError::Document(e.to_string()))
}

/// Pretty JSON in a buffer that is wiped, large enough never to move.
fn json(value: &impl Serialize, path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyringError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_EXPORT));
    serde_json::to_writer_pretty(&mut *bytes, value)
        .map_err(|e| KeyringError::io(path)(io::Error::other(e)))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// What serde says without the text it was reading, which may be a secret.
fn syntax_only(error: &serde_json::Error) -> String {
    let what = if error.is_data() {
        "a member is missing, unknown or of another type"
    } else {
        "not JSON"
    };
    format!("{what}, at line {} column {}", error.line(), error.column())
}

#[cfg(test)]
#[path = "keyring_tests.rs"]
mod tests;
