//! `Content-Digest` (RFC 9530): SHA-256 or SHA-512 of a body, as a dictionary of byte sequences.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sfv::{BareItem, Dictionary, Item, ListEntry, Parser};
use sha2::{Digest as _, Sha256, Sha512};

/// The largest field that is read, in bytes: SHA-256 and SHA-512 together have 150.
const MAX_FIELD: usize = 512;

/// What a body must hash to: one or both of the digests that RFC 9530 calls active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentDigest {
    sha256: Option<[u8; 32]>,
    sha512: Option<[u8; 64]>,
}

/// Why a digest proves no body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentDigestError {
    /// Not a dictionary of byte sequences.
    #[error("content-digest cannot be read: {0}")]
    Malformed(String),
    /// Neither sha-256 nor sha-512.
    #[error("content-digest has neither sha-256 nor sha-512")]
    Algorithm,
    /// The body is another.
    #[error("the body is not what content-digest says")]
    Mismatch,
}

impl ContentDigest {
    /// Reads the header. Other algorithms beside sha-256 or sha-512 are passed over. Errors: neither is there, a length
    /// that is not the algorithm's.
    pub fn parse(field: &str) -> Result<Self, ContentDigestError> {
        let malformed = |text: &str| ContentDigestError::Malformed(text.to_owned());
        if field.len() > MAX_FIELD {
            return Err(malformed("longer than 512 bytes"));
        }
        let entries: Dictionary = Parser::new(field)
            .parse()
            .map_err(|error| malformed(&error.to_string()))?;
        let bytes = |name: &str| match entries.get(name) {
            None => Ok(None),
            Some(ListEntry::Item(Item {
                bare_item: BareItem::ByteSequence(bytes),
                ..
            })) => Ok(Some(bytes.clone())),
            Some(_) => Err(malformed("a digest is a byte sequence")),
        };
        let length = |_| malformed("a digest of another length");
        let sha256 = bytes("sha-256")?
            .map(|b| b.try_into().map_err(length))
            .transpose()?;
        let sha512 = bytes("sha-512")?
            .map(|b| b.try_into().map_err(length))
            .transpose()?;
        if sha256.is_none() && sha512.is_none() {
            return Err(ContentDigestError::Algorithm);
        }
        Ok(Self { sha256, sha512 })
    }

    /// The header of `body`, by SHA-256.
    #[must_use]
    pub fn field_of(body: &[u8]) -> String {
        format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(body)))
    }

    /// Whether `body` is what was promised: every digest that was given must agree. Errors:
    /// [`ContentDigestError::Mismatch`].
    pub fn check(&self, body: &[u8]) -> Result<(), ContentDigestError> {
        let agrees = self
            .sha256
            .is_none_or(|want| Sha256::digest(body)[..] == want)
            && self
                .sha512
                .is_none_or(|want| Sha512::digest(body)[..] == want);
        if agrees {
            Ok(())
        } else {
            Err(ContentDigestError::Mismatch)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// RFC 9530, appendix B.1 and D: the body `{"hello": "world"}` and a line end.
    const BODY: &[u8] = b"{\"hello\": \"world\"}\n";
    const SHA256: &str = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:";
    const SHA512: &str = "sha-512=:YMAam51Jz/jOATT6/zvHrLVgOYTGFy1d6GJiOHTohq4yP+pgk4vf2aCsyRZOtw8MjkM7iw7yZ/WkppmM44T3qg==:";

    #[test]
    fn agrees_with_the_examples_of_rfc_9530() {
        assert_eq!(ContentDigest::field_of(BODY), SHA256);
        for field in [
            SHA256.to_owned(),
            SHA512.to_owned(),
            format!("{SHA512}, {SHA256}"),
        ] {
            let digest = ContentDigest::parse(&field).unwrap();
            digest.check(BODY).unwrap();
            assert_eq!(digest.check(b"other"), Err(ContentDigestError::Mismatch));
        }
    }

    #[test]
    fn every_digest_that_is_given_must_agree_and_unknown_ones_prove_nothing() {
        let wrong = format!("{SHA512}, {}", ContentDigest::field_of(b"other"));
        let digest = ContentDigest::parse(&wrong).unwrap();
        assert_eq!(digest.check(BODY), Err(ContentDigestError::Mismatch));
        assert_eq!(
            ContentDigest::parse("md5=:AAAA:"),
            Err(ContentDigestError::Algorithm)
        );
        for bad in [
            "",
            "sha-256",
            "sha-256=:AAAA:",
            "sha-256=\"x\"",
            "sha-256=:%:",
            "\u{e9}",
        ] {
            assert!(ContentDigest::parse(bad).is_err(), "{bad}");
        }
        assert!(ContentDigest::parse(&"a=1,".repeat(200)).is_err());
    }
}
