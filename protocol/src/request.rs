//! Signed requests: HTTP Message Signatures (RFC 9421) by a DID, with digests of RFC 9530 (design 9, `spec/http.md` S1–S9).
//!
//! A request is signed over what it does (`@method`, `@path`, `@query`), for whom (`hn-audience`, the receiver's DID) and
//! with what (`content-digest`, or `hn-digest` where the body is too large to be held). Everything here is pure: who
//! receives, what time it is and which nonces were seen come in as arguments. Whether a caller may do what it asks is
//! [`policy`](crate)'s question.

mod digest;
mod nonces;

pub use digest::{ContentDigest, ContentDigestError};
pub use nonces::{
    MAX_NONCES_A_KNOWN, MAX_NONCES_A_STRANGER, MAX_NONCES_KNOWN, MAX_NONCES_STRANGERS, NonceError,
    Nonces,
};

use std::fmt::Write as _;

use httpsig::prelude::message_component::{HttpMessageComponent, HttpMessageComponentId};
use httpsig::prelude::{
    AlgorithmName, HttpSigError, HttpSigResult, HttpSignatureBase, HttpSignatureParams, SigningKey,
};
use sfv::{BareItem, Dictionary, FieldType, Item, Key, ListEntry, Parser};

use crate::did::{Did, Identity, PublicKey};
use crate::digest::Digest;
use crate::time::Timestamp;

/// The header that names for whom a request is: the receiver's DID.
pub const AUDIENCE: &str = "hn-audience";
/// The header that stands in for `content-digest` where the body is large: the digest of the document that the body is
/// of, 64 hex digits.
pub const HN_DIGEST: &str = "hn-digest";
/// The header of RFC 9530.
pub const CONTENT_DIGEST: &str = "content-digest";
/// What a request is always signed over, in the order in which we write it.
pub const COVERED: [&str; 4] = ["@method", "@path", "@query", AUDIENCE];
/// The one algorithm (RFC 9421, 3.3.6).
pub const ALGORITHM: &str = "ed25519";
/// How far `created` may be from the receiver's clock, either way, in seconds (design 9).
pub const WINDOW_S: u64 = 300;
/// The largest `Signature-Input` or `Signature` that is read, in bytes: ours have 300 and 100.
pub const MAX_FIELD: usize = 2048;
/// How long a nonce is, in characters: enough not to be met twice, and nothing to fill a memory with.
pub const NONCE_LENGTH: std::ops::RangeInclusive<usize> = 8..=64;
/// What our own signatures are called.
const LABEL: &str = "sig";

/// What is asked for, as it stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// `POST`.
    pub method: &'a str,
    /// The path of the URL that was asked for, percent-encoded as it was sent; never empty.
    pub path: &'a str,
    /// What follows the `?`; `None` without one.
    pub query: Option<&'a str>,
}

/// What proves the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyProof {
    /// There is no body, and nothing is covered.
    None,
    /// `content-digest`, its value as it was sent.
    Content(String),
    /// `hn-digest`.
    Document(Digest),
}

impl BodyProof {
    fn field(&self) -> Option<(&'static str, String)> {
        match self {
            Self::None => None,
            Self::Content(value) => Some((CONTENT_DIGEST, value.clone())),
            Self::Document(digest) => Some((HN_DIGEST, digest.to_string())),
        }
    }
}

/// The headers that a signed request has more than another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureFields {
    /// `Signature-Input`.
    pub signature_input: String,
    /// `Signature`.
    pub signature: String,
    /// `hn-audience`.
    pub audience: String,
    /// `content-digest` or `hn-digest`, with its name.
    pub proof: Option<(&'static str, String)>,
}

/// The same headers as a receiver finds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReceivedFields<'a> {
    /// `Signature-Input`.
    pub signature_input: Option<&'a str>,
    /// `Signature`.
    pub signature: Option<&'a str>,
    /// `hn-audience`.
    pub audience: Option<&'a str>,
    /// `content-digest`.
    pub content_digest: Option<&'a str>,
    /// `hn-digest`.
    pub hn_digest: Option<&'a str>,
}

/// Who asked, once the signature verifies. Whether the body is what `proof` says is for whoever reads the body; whether
/// the request was seen before, for [`Nonces`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRequest {
    /// Whose key signed.
    pub caller: Did,
    /// Used once.
    pub nonce: String,
    /// When it was signed, in Unix seconds.
    pub created: u64,
    /// What the body must be.
    pub proof: BodyProof,
}

/// Why a request is not signed as it should be. All are 401.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is no signature.
    #[error("the request is not signed")]
    Missing,
    /// The headers are not of the form of RFC 9421.
    #[error("the signature cannot be read: {0}")]
    Malformed(String),
    /// More than one signature.
    #[error("the request has {0} signatures, one is taken")]
    Several(usize),
    /// Too little, too much or something else is covered.
    #[error("the signature covers {covered}; it must cover {expected}")]
    Components {
        /// What it covers.
        covered: String,
        /// What it must cover.
        expected: String,
    },
    /// Another algorithm.
    #[error("the algorithm is {0:?}, not ed25519")]
    Algorithm(String),
    /// `keyid` is no DID.
    #[error("keyid is no did:hn: {0}")]
    KeyId(String),
    /// No nonce, or one of another length.
    #[error("nonce must have 8 to 64 characters")]
    Nonce,
    /// `created` is missing, too old, or in the future; or `expires` is past.
    #[error("{0}")]
    Time(String),
    /// Meant for another node.
    #[error("hn-audience is {got:?}; this node is {own}")]
    Audience {
        /// What was sent.
        got: String,
        /// Whom it was sent to.
        own: Did,
    },
    /// `keyid` did not sign this.
    #[error("the signature is not by {0} over this request")]
    Signature(Did),
    /// `content-digest` or `hn-digest` cannot be read.
    #[error("the digest cannot be read: {0}")]
    Digest(String),
}

impl SignatureError {
    /// The stable code in problem documents.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Missing => "signature_required",
            Self::Malformed(_) => "signature_malformed",
            Self::Several(_) => "signature_several",
            Self::Components { .. } => "signature_components",
            Self::Algorithm(_) => "signature_algorithm",
            Self::KeyId(_) => "signature_keyid",
            Self::Nonce => "signature_nonce",
            Self::Time(_) => "signature_time",
            Self::Audience { .. } => "signature_audience",
            Self::Signature(_) => "signature_invalid",
            Self::Digest(_) => "signature_digest",
        }
    }
}

/// Signs a request to `audience`. `nonce` must be new: 8 to 64 visible characters without quote and backslash. Errors: a
/// nonce of another form.
pub fn sign(
    target: Target<'_>,
    audience: Did,
    proof: &BodyProof,
    identity: &Identity,
    now: Timestamp,
    nonce: &str,
) -> Result<SignatureFields, SignatureError> {
    if !is_nonce(nonce) {
        return Err(SignatureError::Nonce);
    }
    let proof = proof.field();
    let names = COVERED
        .into_iter()
        .chain(proof.as_ref().map(|(name, _)| *name));
    let audience = audience.to_string();
    let mut lines = Vec::with_capacity(COVERED.len() + 1);
    for name in names {
        let value = match (&proof, name) {
            (Some((proof, value)), _) if *proof == name => value.clone(),
            _ => value_of(name, target, &audience),
        };
        let id = HttpMessageComponentId::try_from(name).map_err(malformed)?;
        lines.push(HttpMessageComponent::try_from((&id, [value].as_slice())).map_err(malformed)?);
    }
    let mut params = HttpSignatureParams {
        covered_components: lines.iter().map(|line| line.id.clone()).collect(),
        ..HttpSignatureParams::default()
    };
    let key = OwnKey(identity);
    params
        .set_created(now.0 / 1000)
        .set_nonce(nonce)
        .set_key_info(&key);
    let headers = HttpSignatureBase::try_new(&lines, &params)
        .and_then(|base| base.build_signature_headers(&key, Some(LABEL)))
        .map_err(malformed)?;
    Ok(SignatureFields {
        signature_input: headers.signature_input_header_value(),
        signature: headers.signature_header_value(),
        audience,
        proof,
    })
}

/// Whom requests are for: a node's own DID, with its text at hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audience {
    did: Did,
    text: String,
}

impl Audience {
    /// The node `did`.
    #[must_use]
    pub fn new(did: Did) -> Self {
        let text = did.to_string();
        Self { did, text }
    }
}

/// Checks who signed a request to `own`: form, what is covered, time, audience, and last the signature, which is the one
/// thing that costs. Errors: the first rule that is broken.
pub fn verify(
    target: Target<'_>,
    fields: ReceivedFields<'_>,
    own: &Audience,
    now: Timestamp,
) -> Result<SignedRequest, SignatureError> {
    let (input, signature) = match (fields.signature_input, fields.signature) {
        (None, None) => return Err(SignatureError::Missing),
        (Some(input), Some(signature)) => (input, signature),
        _ => {
            let text = "Signature and Signature-Input belong together";
            return Err(SignatureError::Malformed(text.to_owned()));
        }
    };
    let (label, input) = only_entry(input)?;
    let (signature_label, signature) = only_entry(signature)?;
    if label != signature_label {
        let text = "Signature and Signature-Input have another label";
        return Err(SignatureError::Malformed(text.to_owned()));
    }
    let signature = signature_bytes(signature)?;
    let params = HttpSignatureParams::try_from(&input).map_err(malformed)?;
    let covered: Vec<String> = params
        .covered_components
        .iter()
        .map(ToString::to_string)
        .collect();
    let proof = proof(&fields, &covered)?;
    if let Some(other) = params.alg.as_deref().filter(|alg| *alg != ALGORITHM) {
        return Err(SignatureError::Algorithm(shortened(other)));
    }
    let keyid = params.keyid.as_deref().unwrap_or_default();
    let key = PublicKey::parse(keyid)
        .map_err(|error| SignatureError::KeyId(format!("{error}: {:?}", shortened(keyid))))?;
    let created = check_time(&params, now)?;
    let nonce = params.nonce.filter(|nonce| is_nonce(nonce));
    let nonce = nonce.ok_or(SignatureError::Nonce)?;
    let audience = fields.audience.unwrap_or_default();
    if audience != own.text {
        return Err(SignatureError::Audience {
            got: shortened(audience),
            own: own.did,
        });
    }
    let base = base(input, &covered, target, audience, &proof)?;
    let caller = key.did();
    if !key.verifies(base.as_bytes(), &signature) {
        return Err(SignatureError::Signature(caller));
    }
    Ok(SignedRequest {
        caller,
        nonce,
        created,
        proof,
    })
}

/// The one entry of a header, and its label.
fn only_entry(field: &str) -> Result<(Key, ListEntry), SignatureError> {
    if field.len() > MAX_FIELD {
        let text = format!("a field is longer than {MAX_FIELD} bytes");
        return Err(SignatureError::Malformed(text));
    }
    let entries: Dictionary = Parser::new(field)
        .parse()
        .map_err(|error| SignatureError::Malformed(shortened(&error.to_string())))?;
    let count = entries.len();
    match (count, entries.into_iter().next()) {
        (1, Some(entry)) => Ok(entry),
        (0, _) | (_, None) => {
            let text = "Signature or Signature-Input is empty";
            Err(SignatureError::Malformed(text.to_owned()))
        }
        _ => Err(SignatureError::Several(count)),
    }
}

/// What the request is signed over beside [`COVERED`]; exactly that, and each once, in any order.
fn proof(fields: &ReceivedFields<'_>, covered: &[String]) -> Result<BodyProof, SignatureError> {
    // As they stand in `Signature-Input`, in quotes; the library has refused one that stands twice.
    let has = |name: &str| covered.iter().any(|c| c.trim_matches('"') == name);
    let covers = |extra: Option<&str>| {
        let mut wanted = COVERED.into_iter().chain(extra);
        covered.len() == COVERED.len() + usize::from(extra.is_some()) && wanted.all(has)
    };
    match (fields.content_digest, fields.hn_digest) {
        // A digest that is sent is covered: what proves the body must not be anybody's to exchange.
        (Some(value), None) if covers(Some(CONTENT_DIGEST)) => {
            Ok(BodyProof::Content(value.trim().to_owned()))
        }
        (None, Some(value)) if covers(Some(HN_DIGEST)) => value
            .trim()
            .parse()
            .map(BodyProof::Document)
            .map_err(|error| SignatureError::Digest(format!("{HN_DIGEST}: {error}"))),
        (None, None) if covers(None) => Ok(BodyProof::None),
        (content, document) => {
            let extra = content
                .and(Some(CONTENT_DIGEST))
                .or(document.and(Some(HN_DIGEST)));
            let expected: Vec<String> = COVERED
                .into_iter()
                .chain(extra)
                .map(|name| format!("\"{name}\""))
                .collect();
            Err(SignatureError::Components {
                covered: shortened(&covered.join(" ")),
                expected: format!("{} and no more", expected.join(" ")),
            })
        }
    }
}

fn check_time(params: &HttpSignatureParams, now: Timestamp) -> Result<u64, SignatureError> {
    let now = now.0 / 1000;
    let Some(created) = params.created else {
        return Err(SignatureError::Time("created is missing".to_owned()));
    };
    if created.abs_diff(now) > WINDOW_S {
        let (by, way) = (
            created.abs_diff(now),
            if created < now { "old" } else { "ahead" },
        );
        let text = format!("created is {by} s {way} by this node's clock; {WINDOW_S} s are taken");
        return Err(SignatureError::Time(text));
    }
    if params.expires.is_some_and(|expires| expires < now) {
        return Err(SignatureError::Time("expires is past".to_owned()));
    }
    Ok(created)
}

/// The signature base (RFC 9421, 2.5). Its last line is what was received, in the order in which it was received: the
/// library would write the parameters in an order of its own.
fn base(
    input: ListEntry,
    covered: &[String],
    target: Target<'_>,
    audience: &str,
    proof: &BodyProof,
) -> Result<String, SignatureError> {
    let proof = proof.field();
    let mut base = String::with_capacity(1024);
    for component in covered {
        let name = component.trim_matches('"');
        // Writing into a string does not fail.
        let _ = match &proof {
            Some((proof, value)) if *proof == name => writeln!(base, "{component}: {value}"),
            _ => writeln!(base, "{component}: {}", value_of(name, target, audience)),
        };
    }
    let own = vec![input].serialize();
    let own =
        own.ok_or_else(|| SignatureError::Malformed("Signature-Input is empty".to_owned()))?;
    let _ = write!(base, "\"@signature-params\": {own}");
    Ok(base)
}

/// The value of a component that every request has; of another name nothing, which nobody has signed.
fn value_of(name: &str, target: Target<'_>, audience: &str) -> String {
    match name {
        "@method" => target.method.to_owned(),
        "@path" => target.path.to_owned(),
        "@query" => format!("?{}", target.query.unwrap_or_default()),
        AUDIENCE => audience.to_owned(),
        _ => String::new(),
    }
}

fn signature_bytes(entry: ListEntry) -> Result<[u8; 64], SignatureError> {
    match entry {
        ListEntry::Item(Item {
            bare_item: BareItem::ByteSequence(bytes),
            ..
        }) => bytes.try_into().ok(),
        _ => None,
    }
    .ok_or_else(|| SignatureError::Malformed("a signature has 64 bytes".to_owned()))
}

/// A nonce needs no escape in a string of RFC 9651, so that it stands everywhere as it is.
fn is_nonce(nonce: &str) -> bool {
    NONCE_LENGTH.contains(&nonce.len())
        && nonce
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\'))
}

/// What a stranger wrote, bounded for messages and logs.
fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn malformed(error: HttpSigError) -> SignatureError {
    SignatureError::Malformed(shortened(&error.to_string()))
}

/// Our key as the library asks for it.
struct OwnKey<'a>(&'a Identity);

impl SigningKey for OwnKey<'_> {
    fn sign(&self, data: &[u8]) -> HttpSigResult<Vec<u8>> {
        Ok(self.0.sign(data).to_vec())
    }

    fn key_id(&self) -> String {
        self.0.did().to_string()
    }

    fn alg(&self) -> AlgorithmName {
        AlgorithmName::Ed25519
    }
}

#[cfg(test)]
#[path = "request/tests.rs"]
mod tests;
