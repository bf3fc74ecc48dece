//! Signed documents: verified first, parsed second, bytes kept (design 3).
//!
//! A [`Signed<T>`] can only come from [`Unverified::verify`] or [`Signed::create`], so whoever holds one
//! holds a document whose id and signature were checked, and the very bytes that were signed.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::canonical::{self, CanonicalObject, JsonError};
use crate::did::{Did, Identity};
use crate::digest::Digest;

/// The largest document that a log has, in bytes (design 13: a slice).
pub const MAX_DOCUMENT: usize = 1 << 20;

const SIGNATURE_PREFIX: &str = "ed25519:";

/// A document type with one signer.
pub trait Document: Serialize + DeserializeOwned {
    /// `name@version`.
    const TYPE: &'static str;
    /// The most bytes that a document of this type may have.
    const MAX_BYTES: usize;
    /// The deepest nesting that a document of this type may have.
    const MAX_DEPTH: usize = canonical::MAX_DEPTH;

    /// Whose signature the document must carry.
    fn signer(&self) -> Did;

    /// What the type's `spec/` page demands beyond form. Errors: the first rule that is broken.
    fn check(&self) -> Result<(), DocumentError>;

    /// Builds the document from its verified JSON; `canonical` is the same object in RFC 8785 form.
    fn read(value: Value, _canonical: &CanonicalObject) -> Result<Self, DocumentError> {
        serde_json::from_value(value).map_err(|e| DocumentError::Malformed(e.to_string()))
    }
}

/// Why bytes are not a document that we believe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Longer than its type allows.
    #[error("the document has {got} bytes, more than the {max} of its type")]
    TooLarge {
        /// Bytes found.
        got: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Not JSON that we read.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// Another type than the one expected.
    #[error("the type is {got:?}, not {expected}")]
    Type {
        /// What `type` says, empty when it is missing or no string.
        got: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A member is missing, has another shape, or breaks a rule of the type.
    #[error("{0}")]
    Malformed(String),
    /// A published path that climbs, is absolute, or cannot be a path on every system.
    #[error("the path {0:?} is not a plain relative path")]
    Path(String),
    /// `id` is not the BLAKE3 of the document.
    #[error("the id is not the digest of the document")]
    Id,
    /// No signature, several, or one of another form.
    #[error("the signature is missing or not of the form ed25519:<base64url>")]
    SignatureForm,
    /// The signature is not the signer's over these bytes.
    #[error("the signature is not by {0} over this document")]
    Signature(Did),
    /// The two documents of an evidence do not contradict each other.
    #[error("the documents of the evidence do not contradict each other")]
    NoConflict,
}

impl DocumentError {
    /// A stable code for logs, peer states and problem+json.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "document_too_large",
            Self::Json(json) => json.code(),
            Self::Type { .. } => "wrong_type",
            Self::Malformed(_) => "malformed_document",
            Self::Path(_) => "bad_path",
            Self::Id => "wrong_id",
            Self::SignatureForm => "bad_signature_form",
            Self::Signature(_) => "wrong_signature",
            Self::NoConflict => "no_conflict",
        }
    }
}

/// A JSON object that claims to be a document: parsed strictly, nothing believed yet.
#[derive(Debug)]
pub struct Unverified {
    object: Map<String, Value>,
    bytes: Bytes,
}

impl Unverified {
    /// Parses one document of a log. Errors: too large for any of them, not strict JSON, not an object.
    pub fn parse(bytes: Bytes) -> Result<Self, DocumentError> {
        Self::parse_within(bytes, MAX_DOCUMENT, canonical::MAX_DEPTH)
    }

    fn parse_within(bytes: Bytes, max: usize, depth: usize) -> Result<Self, DocumentError> {
        if bytes.len() > max {
            return Err(DocumentError::TooLarge {
                got: bytes.len(),
                max,
            });
        }
        match canonical::parse_within(&bytes, depth)? {
            Value::Object(object) => Ok(Self { object, bytes }),
            _ => Err(DocumentError::Malformed(
                "a document is a JSON object".into(),
            )),
        }
    }

    /// What `type` says; empty when it is missing or no string.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.object
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// Checks id, signature and the rules of `T`. Errors: the first check that fails.
    pub fn verify<T: Document>(mut self) -> Result<Signed<T>, DocumentError> {
        if self.kind() != T::TYPE {
            return Err(DocumentError::Type {
                got: self.kind().to_owned(),
                expected: T::TYPE,
            });
        }
        if self.bytes.len() > T::MAX_BYTES {
            return Err(DocumentError::TooLarge {
                got: self.bytes.len(),
                max: T::MAX_BYTES,
            });
        }
        let text = match (
            self.object.remove("signature"),
            self.object.contains_key("signatures"),
        ) {
            (Some(Value::String(text)), false) => text,
            _ => return Err(DocumentError::SignatureForm),
        };
        let signature = decode_signature(&text)?;
        let canonical = CanonicalObject::new(&self.object)?;
        let signed = canonical.without(&[])?;
        // 1e15 is shorter than what it stands for: what one reader takes, every reader of the canonical form must.
        let got = signed.len() + text.len() + r#","signature":"""#.len();
        if got > T::MAX_BYTES {
            return Err(DocumentError::TooLarge {
                got,
                max: T::MAX_BYTES,
            });
        }
        let digest = Digest::of(&canonical.without(&["id"])?);
        let claimed = self.object.remove("id");
        if claimed.as_ref().and_then(Value::as_str) != Some(&format!("{}:{digest}", name(T::TYPE)))
        {
            return Err(DocumentError::Id);
        }
        let document = T::read(Value::Object(self.object), &canonical)?;
        if !document.signer().verifies(&signed, &signature) {
            return Err(DocumentError::Signature(document.signer()));
        }
        document.check()?;
        Ok(Signed {
            document,
            digest,
            bytes: self.bytes,
        })
    }
}

/// A document whose id and signature were verified, with the bytes as they were received.
#[derive(Debug, Clone)]
pub struct Signed<T> {
    document: T,
    digest: Digest,
    bytes: Bytes,
}

impl<T: Document> Signed<T> {
    /// Verifies one document's bytes. Errors: see [`DocumentError`].
    pub fn verify(bytes: Bytes) -> Result<Self, DocumentError> {
        Unverified::parse_within(bytes, T::MAX_BYTES, T::MAX_DEPTH)?.verify()
    }

    /// Signs `document`. Errors: it breaks a rule of its type, is too large, or names another signer than `identity`.
    pub fn create(document: &T, identity: &Identity) -> Result<Self, DocumentError> {
        if document.signer() != identity.did() {
            return Err(DocumentError::Signature(document.signer()));
        }
        let value =
            serde_json::to_value(document).map_err(|e| DocumentError::Malformed(e.to_string()))?;
        let Value::Object(mut object) = value else {
            return Err(DocumentError::Malformed(
                "a document is a JSON object".into(),
            ));
        };
        object.insert("type".into(), T::TYPE.into());
        let canonical = CanonicalObject::new(&object)?;
        let digest = Digest::of(&canonical.without(&[])?);
        let document = T::read(Value::Object(object.clone()), &canonical)?;
        document.check()?;
        object.insert("id".into(), format!("{}:{digest}", name(T::TYPE)).into());
        let signature = identity.sign(&CanonicalObject::new(&object)?.without(&[])?);
        object.insert("signature".into(), encode_signature(&signature).into());
        let bytes = Bytes::from(CanonicalObject::new(&object)?.without(&[])?);
        if bytes.len() > T::MAX_BYTES {
            return Err(DocumentError::TooLarge {
                got: bytes.len(),
                max: T::MAX_BYTES,
            });
        }
        Ok(Self {
            document,
            digest,
            bytes,
        })
    }
}

impl<T> Signed<T> {
    /// The BLAKE3 that other documents name this one by.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The bytes as received or written, without a line end.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The document without its proof.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.document
    }
}

impl<T> std::ops::Deref for Signed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.document
    }
}

/// `presence` of `presence@2`: what ids start with.
fn name(kind: &'static str) -> &'static str {
    kind.split('@').next().unwrap_or(kind)
}

fn encode_signature(signature: &[u8; 64]) -> String {
    format!("{SIGNATURE_PREFIX}{}", URL_SAFE_NO_PAD.encode(signature))
}

fn decode_signature(text: &str) -> Result<[u8; 64], DocumentError> {
    text.strip_prefix(SIGNATURE_PREFIX)
        .and_then(|encoded| URL_SAFE_NO_PAD.decode(encoded).ok())
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(DocumentError::SignatureForm)
}
