//! `did:hn`: a DID that *is* an Ed25519 public key (design 2, `spec/did-hn.md`).
//!
//! Any signed document can be verified with nothing but its DID; any DID can be sealed to offline, because
//! its X25519 key follows from the same key.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Value, json};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// What every DID of ours starts with; `z` is multibase base58btc.
const PREFIX: &str = "did:hn:z";
/// Multicodec `ed25519-pub`, as unsigned varint.
const ED25519_PUB: [u8; 2] = [0xed, 0x01];
/// Multicodec `x25519-pub`, as unsigned varint.
const X25519_PUB: [u8; 2] = [0xec, 0x01];
/// The longest text worth decoding: base58 of 34 bytes is at most 47 digits.
const MAX_TEXT: usize = PREFIX.len() + 48;

/// A `did:hn`, held as the 32-byte Ed25519 public key that it encodes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Did([u8; 32]);

/// Why a text is not a `did:hn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DidError {
    /// Another method, another multibase, or too long.
    #[error("a DID starts with did:hn:z and is at most {MAX_TEXT} characters long")]
    Form,
    /// Not base58btc, or not its canonical spelling.
    #[error("the DID is not canonical base58btc")]
    Encoding,
    /// Another multicodec than `ed25519-pub`, or not 32 bytes of key.
    #[error("the DID does not hold a 32-byte Ed25519 key")]
    Codec,
    /// A non-canonical, off-curve or small-order point.
    #[error("the DID's key is not a canonical Ed25519 point of large order")]
    Key,
}

/// A DID together with its point, for who verifies at once what somebody signed whose DID was just read: taking the point
/// from its 32 bytes costs a tenth of a verification.
#[derive(Debug, Clone, Copy)]
pub struct PublicKey {
    did: Did,
    key: VerifyingKey,
}

impl PublicKey {
    /// Reads the text of a DID. Errors: as of [`Did`].
    pub fn parse(text: &str) -> Result<Self, DidError> {
        let digits = text.strip_prefix(PREFIX).ok_or(DidError::Form)?;
        if text.len() > MAX_TEXT {
            return Err(DidError::Form);
        }
        let bytes = bs58::decode(digits)
            .into_vec()
            .map_err(|_| DidError::Encoding)?;
        let key = bytes.strip_prefix(&ED25519_PUB).ok_or(DidError::Codec)?;
        // Base58 has one spelling for bytes that do not begin with a zero, and these begin with 0xed.
        Self::new(key.try_into().map_err(|_| DidError::Codec)?)
    }

    fn new(bytes: [u8; 32]) -> Result<Self, DidError> {
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| DidError::Key)?;
        // Two spellings of one point would be two DIDs of one key. A second spelling has y at or above p, or a sign where x
        // is 0; points with x = 0 are of small order.
        if key.is_weak() || !is_below_p(&bytes) {
            return Err(DidError::Key);
        }
        Ok(Self {
            did: Did(bytes),
            key,
        })
    }

    /// Whose it is.
    #[must_use]
    pub const fn did(&self) -> Did {
        self.did
    }

    /// [`Did::verifies`].
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        self.key.verify_strict(message, &signature).is_ok()
    }
}

/// Whether y of a compressed point is below p = 2^255 - 19.
fn is_below_p(bytes: &[u8; 32]) -> bool {
    let y_top = bytes[31] & 0x7f;
    let high = y_top == 0x7f && bytes[1..31].iter().all(|byte| *byte == 0xff);
    !(high && bytes[0] >= 0xed)
}

impl Did {
    /// The DID of a public key. Errors: [`DidError::Key`] for a point that nobody should sign with.
    pub fn from_public_key(bytes: [u8; 32]) -> Result<Self, DidError> {
        PublicKey::new(bytes).map(|key| key.did)
    }

    /// The 32-byte Ed25519 public key.
    #[must_use]
    pub const fn public_key(&self) -> &[u8; 32] {
        &self.0
    }

    /// The X25519 public key (Montgomery u of the Ed25519 point, design 15).
    #[must_use]
    pub fn key_agreement(&self) -> [u8; 32] {
        self.verifying_key().to_montgomery().to_bytes()
    }

    /// BLAKE3 of the DID's text: the key under which the DHT knows it (design 8).
    #[must_use]
    pub fn hash(&self) -> crate::digest::Digest {
        crate::digest::Digest::of(self.to_string().as_bytes())
    }

    /// Whether `signature` over `message` is this DID's, by strict verification.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let (did, key) = (*self, self.verifying_key());
        PublicKey { did, key }.verifies(message, signature)
    }

    #[expect(
        clippy::expect_used,
        reason = "invariant: a Did is only built from a checked key"
    )]
    fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey::from_bytes(&self.0)
            .expect("invariant: a Did is only built from a checked key")
    }

    /// The part behind `did:hn:`: the Ed25519 key as multibase.
    #[must_use]
    pub fn multibase(&self) -> String {
        multibase(ED25519_PUB, &self.0)
    }

    /// A short form for people, `did:hn:z6Mk…Xy`. Never for machines: it is not unique.
    #[must_use]
    pub fn short(&self) -> String {
        let text = self.to_string();
        let tail = text.get(text.len().saturating_sub(4)..).unwrap_or_default();
        format!("{}…{tail}", text.get(..12).unwrap_or(&text))
    }

    /// The DID document (W3C DID Core): keys from the DID alone, and the service `HnMcp` when an endpoint is known.
    #[must_use]
    pub fn document(&self, mcp: Option<&str>) -> Value {
        let did = self.to_string();
        let signing = self.multibase();
        let agreement = multibase(X25519_PUB, &self.key_agreement());
        let mut document = json!({
            "@context": ["https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1"],
            "id": did,
            "verificationMethod": [
                {"id": format!("{did}#{signing}"), "type": "Multikey", "controller": did, "publicKeyMultibase": signing},
                {"id": format!("{did}#{agreement}"), "type": "Multikey", "controller": did, "publicKeyMultibase": agreement},
            ],
            "authentication": [format!("{did}#{signing}")],
            "assertionMethod": [format!("{did}#{signing}")],
            "keyAgreement": [format!("{did}#{agreement}")],
        });
        if let Some(url) = mcp {
            document["service"] =
                json!([{"id": format!("{did}#mcp"), "type": "HnMcp", "serviceEndpoint": url}]);
        }
        document
    }
}

fn multibase(codec: [u8; 2], key: &[u8; 32]) -> String {
    let mut bytes = [0u8; 34];
    bytes[..2].copy_from_slice(&codec);
    bytes[2..].copy_from_slice(key);
    format!("z{}", bs58::encode(bytes).into_string())
}

impl fmt::Display for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "did:hn:{}", self.multibase())
    }
}

impl fmt::Debug for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Did {
    type Err = DidError;

    fn from_str(text: &str) -> Result<Self, DidError> {
        PublicKey::parse(text).map(|key| key.did)
    }
}

impl Serialize for Did {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Did {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
            text.parse().map_err(de::Error::custom)
        } else {
            Self::from_public_key(<[u8; 32]>::deserialize(deserializer)?).map_err(de::Error::custom)
        }
    }
}

/// The 32-byte Ed25519 seed behind a DID. Wiped when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretSeed([u8; 32]);

impl SecretSeed {
    /// Takes 32 bytes that came from a cryptographic random source.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The seed itself, for sealing it at rest.
    #[must_use]
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The DID of this seed.
    #[must_use]
    pub fn did(&self) -> Did {
        Did(SigningKey::from_bytes(&self.0).verifying_key().to_bytes())
    }

    /// The X25519 secret of the same seed: clamp(SHA-512(seed)[0..32]) (design 15).
    #[must_use]
    pub fn key_agreement_secret(&self) -> zeroize::Zeroizing<[u8; 32]> {
        let scalar = SigningKey::from_bytes(&self.0).to_scalar_bytes();
        zeroize::Zeroizing::new(curve25519_dalek::scalar::clamp_integer(scalar))
    }

    /// A key that signs for this seed's DID.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            did: self.did(),
            key: SigningKey::from_bytes(&self.0),
        }
    }
}

impl fmt::Debug for SecretSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretSeed(…)")
    }
}

/// A DID with the key that signs for it.
#[derive(Clone)]
pub struct Identity {
    did: Did,
    key: SigningKey,
}

impl Identity {
    /// Whom this signs for.
    #[must_use]
    pub const fn did(&self) -> Did {
        self.did
    }

    /// The Ed25519 signature over `message`: deterministic, 64 bytes (RFC 8032).
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.did)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The quick look at a point's spelling is as good as writing the point anew.
    #[test]
    fn a_second_spelling_of_a_point_is_no_did() {
        let canonical = |bytes: &[u8; 32]| {
            VerifyingKey::from_bytes(bytes)
                .is_ok_and(|key| !key.is_weak() && key.to_edwards().compress().to_bytes() == *bytes)
        };
        // Every y from p - 3 to 2^255 - 1, and the small ones, with either sign.
        let around = (0xea..=0xffu8).map(|low| (low, 0xff, 0x7f));
        let small = (0..=40u8).map(|low| (low, 0, 0));
        for (low, middle, top) in around.chain(small) {
            for sign in [0, 0x80] {
                let mut bytes = [middle; 32];
                (bytes[0], bytes[31]) = (low, top | sign);
                assert_eq!(
                    Did::from_public_key(bytes).is_ok(),
                    canonical(&bytes),
                    "{bytes:?}"
                );
            }
        }
        for n in 0..200u8 {
            let bytes = *blake3::hash(&[n]).as_bytes();
            assert_eq!(
                Did::from_public_key(bytes).is_ok(),
                canonical(&bytes),
                "{bytes:?}"
            );
        }
    }
}
