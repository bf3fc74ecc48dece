//! A seed at rest: plain, or sealed under a passphrase (design 2).
//!
//! Argon2id makes the key, XChaCha20-Poly1305 seals, the DID is bound as associated data: a sealed seed put beside
//! another identity does not open. The alias is not bound, so that an identity can be renamed.

use std::fmt;
use std::io::Read;
use std::path::Path;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hn_protocol::did::{Did, SecretSeed};
use hn_protocol::key_share::{Pad, SALT_BYTES as SALT_BYTES_OF_SHARES};
use rand::CryptoRng;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// RFC 9106's second recommendation: 64 MiB and three passes, on one lane as a NAS has few.
const COSTS: Costs = Costs {
    memory_kib: 64 << 10,
    passes: 3,
    lanes: 1,
};
/// The most that a file may ask of us: 1 GiB, 16 passes, 16 lanes.
const MAX_COSTS: Costs = Costs {
    memory_kib: 1 << 20,
    passes: 16,
    lanes: 16,
};
const SALT_BYTES: usize = 16;
const NONCE_BYTES: usize = 24;
/// A passphrase file is one line; whoever names a larger file named the wrong one.
const MAX_PASSPHRASE: u64 = 1024;

/// What a secret is sealed with. Wiped when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Passphrase(String);

/// A passphrase file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PassphraseError {
    /// It cannot be read, or is no UTF-8.
    #[error("the passphrase file cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// It holds nothing.
    #[error("the passphrase file is empty")]
    Empty,
    /// It is too large to be one.
    #[error("the passphrase file is larger than {MAX_PASSPHRASE} bytes")]
    TooLarge,
}

impl Passphrase {
    /// A passphrase as it was typed.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The content of a file, without the line end that an editor leaves.
    pub fn from_file(path: &Path) -> Result<Self, PassphraseError> {
        // Room for all of it at once: growing would leave copies behind.
        let mut text = Zeroizing::new(String::with_capacity(MAX_PASSPHRASE as usize + 1));
        std::fs::File::open(path)?
            .take(MAX_PASSPHRASE + 1)
            .read_to_string(&mut text)?;
        if text.len() as u64 > MAX_PASSPHRASE {
            return Err(PassphraseError::TooLarge);
        }
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            return Err(PassphraseError::Empty);
        }
        Ok(Self(line.to_owned()))
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

impl Passphrase {
    /// What the passphrase becomes for one set of key shares (Y6 of `spec/key_share@1.md`): Argon2id, version 0x13, over its
    /// UTF-8 bytes, 64 MiB, three passes, one lane. Nothing where that memory cannot be had.
    #[must_use]
    pub fn pad(&self, salt: &[u8; SALT_BYTES_OF_SHARES]) -> Option<Pad> {
        derive(self, salt, COSTS)
            .ok()
            .map(|bytes| Pad::from_bytes(*bytes))
    }
}

/// Text that is wiped when dropped and never printed.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
struct SecretText(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Kdf {
    #[serde(rename = "none")]
    None,
    #[serde(rename = "argon2id")]
    Argon2id,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Cipher {
    #[serde(rename = "xchacha20poly1305")]
    XChaCha20Poly1305,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Costs {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// `secret.json`: `{"kdf":"none","seed"}` or `{"kdf":"argon2id","params","salt","cipher","nonce","ciphertext"}`, binary
/// as unpadded base64url.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Secret {
    kdf: Kdf,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<SecretText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<Costs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    salt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cipher: Option<Cipher>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext: Option<String>,
}

/// Why a stored secret gave no seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OpenError {
    /// It is sealed and no passphrase was given.
    PassphraseNeeded,
    /// Another passphrase, or the sealed bytes were changed, or they belong to another DID.
    WrongPassphrase,
    /// It is not of the form that we write.
    Malformed(&'static str),
}

impl Secret {
    /// The seed as it is, for a disk that is trusted.
    pub(super) fn plain(seed: &SecretSeed) -> Self {
        Self {
            kdf: Kdf::None,
            seed: Some(SecretText(URL_SAFE_NO_PAD.encode(seed.expose()))),
            params: None,
            salt: None,
            cipher: None,
            nonce: None,
            ciphertext: None,
        }
    }

    /// The seed under a passphrase. Errors: only where 64 MiB of memory cannot be had.
    pub(super) fn sealed(
        seed: &SecretSeed,
        passphrase: &Passphrase,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, OpenError> {
        let (mut salt, mut nonce) = ([0; SALT_BYTES], [0; NONCE_BYTES]);
        rng.fill_bytes(&mut salt);
        rng.fill_bytes(&mut nonce);
        let key = derive(passphrase, &salt, COSTS)?;
        let did = seed.did().to_string();
        let sealed = Payload {
            msg: seed.expose(),
            aad: did.as_bytes(),
        };
        let ciphertext = XChaCha20Poly1305::new((&*key).into())
            .encrypt(&XNonce::from(nonce), sealed)
            .map_err(|_| OpenError::Malformed("the seed cannot be sealed"))?;
        Ok(Self {
            kdf: Kdf::Argon2id,
            seed: None,
            params: Some(COSTS),
            salt: Some(URL_SAFE_NO_PAD.encode(salt)),
            cipher: Some(Cipher::XChaCha20Poly1305),
            nonce: Some(URL_SAFE_NO_PAD.encode(nonce)),
            ciphertext: Some(URL_SAFE_NO_PAD.encode(ciphertext)),
        })
    }

    /// Whether a passphrase is needed.
    pub(super) const fn is_sealed(&self) -> bool {
        matches!(self.kdf, Kdf::Argon2id)
    }

    /// The seed of `did`.
    pub(super) fn open(
        &self,
        did: &Did,
        passphrase: Option<&Passphrase>,
    ) -> Result<SecretSeed, OpenError> {
        let seed = match self.kdf {
            Kdf::None => {
                let text = self.seed.as_ref().ok_or(OpenError::Malformed("no seed"))?;
                decode(Some(&text.0), "seed")?
            }
            Kdf::Argon2id => self.unseal(did, passphrase)?,
        };
        let seed = SecretSeed::from_bytes(*seed);
        if seed.did() == *did {
            Ok(seed)
        } else {
            Err(OpenError::Malformed("the seed is another DID's"))
        }
    }

    fn unseal(
        &self,
        did: &Did,
        passphrase: Option<&Passphrase>,
    ) -> Result<Zeroizing<[u8; 32]>, OpenError> {
        let passphrase = passphrase.ok_or(OpenError::PassphraseNeeded)?;
        let costs = self.params.ok_or(OpenError::Malformed("no params"))?;
        if self.cipher.is_none() {
            return Err(OpenError::Malformed("no cipher"));
        }
        let salt: Zeroizing<[u8; SALT_BYTES]> = decode(self.salt.as_deref(), "salt")?;
        let nonce: Zeroizing<[u8; NONCE_BYTES]> = decode(self.nonce.as_deref(), "nonce")?;
        let sealed: Zeroizing<[u8; 48]> = decode(self.ciphertext.as_deref(), "ciphertext")?;
        let key = derive(passphrase, &*salt, costs)?;
        let did = did.to_string();
        let payload = Payload {
            msg: &*sealed,
            aad: did.as_bytes(),
        };
        let opened = XChaCha20Poly1305::new((&*key).into())
            .decrypt(&XNonce::from(*nonce), payload)
            .map_err(|_| OpenError::WrongPassphrase)?;
        let opened = Zeroizing::new(opened);
        let mut seed = Zeroizing::new([0; 32]);
        // The tag was right, so the length is.
        seed.copy_from_slice(&opened);
        Ok(seed)
    }
}

fn derive(
    passphrase: &Passphrase,
    salt: &[u8],
    costs: Costs,
) -> Result<Zeroizing<[u8; 32]>, OpenError> {
    if costs.memory_kib > MAX_COSTS.memory_kib
        || costs.passes > MAX_COSTS.passes
        || costs.lanes > MAX_COSTS.lanes
    {
        return Err(OpenError::Malformed("params ask for too much"));
    }
    let params = Params::new(costs.memory_kib, costs.passes, costs.lanes, Some(32))
        .map_err(|_| OpenError::Malformed("params"))?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.0.as_bytes(), salt, &mut *key)
        .map_err(|_| OpenError::Malformed("params"))?;
    Ok(key)
}

fn decode<const N: usize>(
    text: Option<&str>,
    member: &'static str,
) -> Result<Zeroizing<[u8; N]>, OpenError> {
    let text = text.ok_or(OpenError::Malformed(member))?;
    let mut bytes = Zeroizing::new([0; N]);
    // Checked first: decoding needs exactly this much room, and no more is looked at.
    if text.len() != (N * 4).div_ceil(3) {
        return Err(OpenError::Malformed(member));
    }
    URL_SAFE_NO_PAD
        .decode_slice(text, &mut *bytes)
        .map_err(|_| OpenError::Malformed(member))?;
    Ok(bytes)
}
