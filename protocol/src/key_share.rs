//! A key as shares for other people (design 6, `spec/key_share@1.md`): any `threshold` of them are the key, fewer say
//! nothing about it.
//!
//! | part | idea |
//! |---|---|
//! | [`Share`] | one share: which set, which of it, and its 32 bytes |
//! | [`Share::to_words`], [`Share::from_words`] | a share for paper and telephone, with a checksum |
//! | [`KeyShare`](crate::document::KeyShare) | a share as a file or QR code, signed by the owner |
//! | [`split`] | a seed → shares |
//! | [`Gathered`] | what people brought → the seed, or which share is bad and why |
//!
//! Shamir's scheme is blahaj's: a polynomial a byte of the seed over GF(2^8). Secrets are wiped when dropped and never
//! shown by `Debug`; what is printed, encoded as JSON or evaluated inside blahaj leaves copies that are not.

mod gather;
mod split;
#[cfg(test)]
mod tests;
mod words;

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand_core::CryptoRng;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

pub use self::gather::{BadShare, Gathered, MAX_GIVEN, MAX_SHARE_TEXT, RecoverError, Recovered};
pub use self::split::{SplitError, split};
pub use self::words::{WORD_COUNT, WordsError};
use crate::did::Did;

/// A share that is the key alone would be no share.
pub const MIN_THRESHOLD: u8 = 2;
/// The most shares of a set, so also the highest threshold: both fit four bits, and nobody has more confidants.
pub const MAX_SHARES: u8 = 16;
/// Bytes of a set's id: sets of one owner are told apart, and what is left to chance is found by the DID's digest.
const SET_BYTES: usize = 4;
/// Bytes of a DID's digest: a wrong key passes for the right one once in 2^48.
const DID_DIGEST_BYTES: usize = 6;
/// Bytes of the salt that a passphrase is stretched with: Argon2 wants at least eight.
pub const SALT_BYTES: usize = SET_BYTES + DID_DIGEST_BYTES;

/// The text is not as many lower-case hex digits as it has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not {0} lower-case hex digits")]
pub struct HexError(usize);

fn from_hex<const N: usize>(text: &str) -> Result<[u8; N], HexError> {
    let wrong = HexError(2 * N);
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(wrong),
    };
    if text.len() != 2 * N {
        return Err(wrong);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(bytes)
}

macro_rules! hex_bytes {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = HexError;

            fn from_str(text: &str) -> Result<Self, HexError> {
                from_hex(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

/// Which shares belong together: 4 random bytes, in text 8 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetId([u8; SET_BYTES]);

hex_bytes!(SetId);

impl SetId {
    /// A new one.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        let mut bytes = [0; SET_BYTES];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }
}

/// The first 6 bytes of the BLAKE3 of a DID's text (I4 of `spec/did-hn.md`), in text 12 lower-case hex digits: enough to
/// see that a key is the right one, too little to follow whose it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DidDigest([u8; DID_DIGEST_BYTES]);

hex_bytes!(DidDigest);

impl DidDigest {
    /// The digest of `did`.
    #[must_use]
    pub fn of(did: &Did) -> Self {
        let mut bytes = [0; DID_DIGEST_BYTES];
        bytes.copy_from_slice(&did.hash().as_bytes()[..DID_DIGEST_BYTES]);
        Self(bytes)
    }
}

/// The 32 bytes of a share. Wiped when dropped, never shown by `Debug`; as text unpadded base64url.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct ShareValue([u8; 32]);

impl fmt::Debug for ShareValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShareValue(…)")
    }
}

impl Serialize for ShareValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(URL_SAFE_NO_PAD.encode(self.0)))
    }
}

impl<'de> Deserialize<'de> for ShareValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let mut value = Self([0; 32]);
        // Checked first: decoding needs exactly this much room.
        let fits = text.len() == 43 && URL_SAFE_NO_PAD.decode_slice(&*text, &mut value.0).is_ok();
        if fits {
            Ok(value)
        } else {
            Err(de::Error::custom("a share is 32 bytes in base64url"))
        }
    }
}

/// What the shares of one set have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Layout {
    /// The set.
    pub set: SetId,
    /// Whose key it is.
    pub did_digest: DidDigest,
    /// How many shares are the key, [`MIN_THRESHOLD`] to [`MAX_SHARES`].
    pub threshold: u8,
    /// Whether a passphrase is needed besides.
    pub passphrase: bool,
}

impl Layout {
    /// What the passphrase of the set is stretched with: set ‖ digest of the DID.
    #[must_use]
    pub fn salt(&self) -> [u8; SALT_BYTES] {
        let mut salt = [0; SALT_BYTES];
        salt[..SET_BYTES].copy_from_slice(&self.set.0);
        salt[SET_BYTES..].copy_from_slice(&self.did_digest.0);
        salt
    }
}

/// One share of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// What it has in common with the others.
    pub layout: Layout,
    /// Which one it is, 1 to [`MAX_SHARES`]: where the polynomials were evaluated.
    pub index: u8,
    /// The polynomials there.
    pub value: ShareValue,
}

/// A threshold or an index that no set has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// See [`Layout::threshold`].
    #[error("a threshold lies between {MIN_THRESHOLD} and {MAX_SHARES}")]
    Threshold,
    /// See [`Share::index`].
    #[error("the number of a share lies between 1 and {MAX_SHARES}")]
    Index,
}

impl Share {
    /// Whether threshold and index are possible. What words say always is.
    pub(crate) fn check(&self) -> Result<(), ShareError> {
        if !(MIN_THRESHOLD..=MAX_SHARES).contains(&self.layout.threshold) {
            return Err(ShareError::Threshold);
        }
        if !(1..=MAX_SHARES).contains(&self.index) {
            return Err(ShareError::Index);
        }
        Ok(())
    }
}

/// What a passphrase becomes for one set: Argon2id over it with [`Layout::salt`], 32 bytes that the seed is XORed with
/// before it is split. Each set has a salt of its own, so that no pad is used twice.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Pad([u8; 32]);

impl Pad {
    /// Takes the 32 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    fn apply(&self, bytes: &mut [u8; 32]) {
        for (byte, pad) in bytes.iter_mut().zip(self.0) {
            *byte ^= pad;
        }
    }
}

impl fmt::Debug for Pad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pad(…)")
    }
}
