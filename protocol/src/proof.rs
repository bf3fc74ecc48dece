//! Inclusion proofs (`spec/inclusion_proof.md`): that an entry stands in its publisher's log, checked with nothing but the DID.
//!
//! The presence in it is signed and binds size and root of a log; the hashes lead from the entry to that root. Nothing else
//! of the document has to be believed, so nobody signs it. An [`InclusionProof`] can only come from
//! [`InclusionProof::verify`].

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::canonical::{self, JsonError};
use crate::did::Did;
use crate::digest::Digest;
use crate::document::{Entry, MAX_PRESENCE_BYTES, MAX_SLICE_BYTES, Presence};
use crate::merkle;
use crate::sign::{DocumentError, Signed};

/// The most bytes of a proof: an entry that fills a slice, a presence, and 64 hashes with room to spare.
pub const MAX_PROOF_BYTES: usize = MAX_SLICE_BYTES + MAX_PRESENCE_BYTES + 16 * 1024;
/// The most hashes of a proof: one for each level of the largest log.
const MAX_HASHES: usize = 64;

/// Why a proof proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// More bytes than any proof has.
    #[error("the proof has more than {MAX_PROOF_BYTES} bytes")]
    TooLarge,
    /// Not JSON that we read.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A member is missing or has another shape.
    #[error("not a proof: {0}")]
    Malformed(String),
    /// The presence is not one that we believe.
    #[error("the presence of the proof: {0}")]
    Presence(DocumentError),
    /// The presence is of another publisher or epoch than the proof.
    #[error("the presence is not of the log that the proof is about")]
    Log,
    /// Size or root are not what the presence binds.
    #[error("the presence binds another log_size or log_root")]
    Root,
    /// The entry breaks a rule of `index@2`.
    #[error("the entry: {0}")]
    Entry(DocumentError),
    /// The leaf is not the entry's, or the entry stands at another seq.
    #[error("the leaf is not that of the entry at this seq")]
    Leaf,
    /// The hashes do not lead from the leaf to the root.
    #[error("the hashes do not lead from the leaf to log_root")]
    Path,
}

impl ProofError {
    /// A stable code for callers.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLarge => "document_too_large",
            Self::Json(error) => error.code(),
            Self::Malformed(_) => "malformed_proof",
            Self::Presence(error) | Self::Entry(error) => error.code(),
            Self::Log => "wrong_log",
            Self::Root => "unbound_root",
            Self::Leaf => "wrong_leaf",
            Self::Path => "wrong_path",
        }
    }
}

/// A verified proof: its publisher's log, at the size that the presence binds, has the entry.
#[derive(Debug, Clone)]
pub struct InclusionProof {
    /// What was said and found true.
    pub claim: Claim,
    /// The entry as it was read; what it has beyond is in `claim.entry`.
    pub entry: Entry,
    /// The presence that binds size and root. It may have expired since: what was in the log stays in it.
    pub presence: Signed<Presence>,
}

/// The document without its presence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Whose log.
    pub publisher: Did,
    /// Which log of the publisher's.
    pub epoch: u64,
    /// Where in the log.
    pub seq: u64,
    /// The entry with all its members, those unknown to the reader too.
    pub entry: Map<String, Value>,
    /// BLAKE3(0x00 ‖ JCS(entry)).
    pub leaf: Digest,
    /// Entries in the log that the presence binds.
    pub log_size: u64,
    /// Its root.
    pub log_root: Digest,
    /// The siblings from the leaf upwards.
    pub proof: Vec<Digest>,
}

impl Claim {
    /// The whole document: this claim and `presence`, the presence's bytes as they were signed. Errors: none that what was
    /// read as JSON can cause.
    pub fn with_presence(&self, presence: &[u8]) -> Result<Vec<u8>, JsonError> {
        let mut bytes = canonical::to_vec(self)?;
        // An object ends in its brace; the presence's own bytes take its place.
        bytes.pop();
        bytes.extend_from_slice(b",\"presence\":");
        bytes.extend_from_slice(presence);
        bytes.push(b'}');
        Ok(bytes)
    }

    /// Whether the entry is the leaf at `seq`, and the hashes lead from it to `log_root`. Errors: which of it fails.
    pub fn check(&self) -> Result<Entry, ProofError> {
        let entry: Entry = serde_json::from_value(Value::Object(self.entry.clone()))
            .map_err(|error| ProofError::Malformed(error.to_string()))?;
        if entry.seq != self.seq || merkle::leaf_hash(&canonical::to_vec(&self.entry)?) != self.leaf
        {
            return Err(ProofError::Leaf);
        }
        let leads = merkle::verify_inclusion(
            &self.log_root,
            self.log_size,
            self.seq,
            &self.leaf,
            &self.proof,
        );
        if !leads {
            return Err(ProofError::Path);
        }
        entry.check().map_err(ProofError::Entry)?;
        Ok(entry)
    }
}

impl InclusionProof {
    /// Verifies a document with nothing but itself: whose log it is about is for the caller to compare.
    /// Errors: the first rule of `spec/inclusion_proof.md` that is broken.
    pub fn verify(bytes: &[u8]) -> Result<Self, ProofError> {
        if bytes.len() > MAX_PROOF_BYTES {
            return Err(ProofError::TooLarge);
        }
        let malformed = |reason: String| ProofError::Malformed(reason);
        let Value::Object(mut object) = canonical::parse(bytes)? else {
            return Err(malformed("a proof is a JSON object".into()));
        };
        let presence = object
            .remove("presence")
            .ok_or_else(|| malformed("there is no presence in it".into()))?;
        let claim: Claim = serde_json::from_value(Value::Object(object))
            .map_err(|error| malformed(error.to_string()))?;
        if claim.proof.len() > MAX_HASHES {
            return Err(malformed("more hashes than any log has levels".into()));
        }
        let presence = Signed::<Presence>::verify(canonical::to_vec(&presence)?.into())
            .map_err(ProofError::Presence)?;
        if (presence.did, presence.epoch) != (claim.publisher, claim.epoch) {
            return Err(ProofError::Log);
        }
        if (presence.log_size, presence.merkle_root) != (claim.log_size, claim.log_root) {
            return Err(ProofError::Root);
        }
        let entry = claim.check()?;
        Ok(Self {
            claim,
            entry,
            presence,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::did::{Identity, SecretSeed};
    use crate::log::{CommitRequest, EntryDraft, Line, PresenceFacts, first_presence};
    use crate::time::Timestamp;
    use serde_json::json;

    fn draft(path: &str) -> EntryDraft {
        EntryDraft {
            kind: "file".into(),
            digest: Digest::of(path.as_bytes()),
            size: 1,
            path: path.into(),
            tags: Default::default(),
            metadata: Default::default(),
            replaces: None,
            retracts: None,
        }
    }

    /// A log of five entries, its leaves, and the presence that covers it.
    fn log(identity: &Identity, paths: [&str; 5]) -> (Vec<Entry>, Vec<Digest>, Signed<Presence>) {
        let facts = PresenceFacts {
            ttl_ms: 1000,
            ..PresenceFacts::default()
        };
        let now = Timestamp(1_767_225_600_000);
        let first = first_presence(identity, 0, &facts, now).unwrap();
        let request = CommitRequest {
            entries: paths.map(draft).to_vec(),
            facts: &facts,
            now,
        };
        let commit = first.state.commit(request, identity).unwrap();
        let [Line::Slice(slice), Line::Presence(presence)] = &commit.lines[..] else {
            panic!("one slice and its presence")
        };
        assert_eq!(commit.state.size(), 5);
        (
            slice.entries.clone(),
            slice.leaves().to_vec(),
            presence.clone(),
        )
    }

    /// The proof of entry 3 as a value to be spoilt.
    fn proof() -> Value {
        let identity = SecretSeed::from_bytes([1; 32]).identity();
        let (entries, leaves, presence) = log(&identity, ["a", "b", "c", "d", "e"]);
        let Value::Object(entry) = serde_json::to_value(&entries[3]).unwrap() else {
            panic!("an object")
        };
        let claim = Claim {
            publisher: identity.did(),
            epoch: 0,
            seq: 3,
            entry,
            leaf: leaves[3],
            log_size: 5,
            log_root: merkle::root(&leaves),
            proof: merkle::inclusion_proof(&leaves, 3).unwrap(),
        };
        assert_eq!(claim.check().unwrap(), entries[3]);
        let bytes = claim.with_presence(presence.bytes()).unwrap();
        assert_eq!(InclusionProof::verify(&bytes).unwrap().claim, claim);
        serde_json::from_slice(&bytes).unwrap()
    }

    fn refusal(proof: &Value) -> &'static str {
        let refused = InclusionProof::verify(&serde_json::to_vec(proof).unwrap());
        refused.unwrap_err().code()
    }

    #[test]
    fn a_proof_holds_whatever_its_members_order_and_space() {
        let text = serde_json::to_string_pretty(&proof()).unwrap();
        let verified = InclusionProof::verify(text.as_bytes()).unwrap();
        assert_eq!(verified.entry.path, "d");
    }

    #[test]
    fn whatever_is_changed_in_a_proof_is_refused_by_name() {
        let other = Digest::of(b"another").to_string();
        for (pointer, value, code) in [
            (
                "/publisher",
                json!(SecretSeed::from_bytes([2; 32]).did()),
                "wrong_log",
            ),
            ("/epoch", json!(1), "wrong_log"),
            ("/seq", json!(2), "wrong_leaf"),
            ("/entry/path", json!("x"), "wrong_leaf"),
            ("/entry/seq", json!(2), "wrong_leaf"),
            ("/leaf", json!(other), "wrong_leaf"),
            ("/log_size", json!(6), "unbound_root"),
            ("/log_root", json!(other), "unbound_root"),
            ("/proof/0", json!(other), "wrong_path"),
            ("/proof", json!([]), "wrong_path"),
            ("/proof", json!(vec![other.clone(); 65]), "malformed_proof"),
            ("/presence/log_size", json!(4), "wrong_id"),
            (
                "/presence/signature",
                json!("ed25519:AA"),
                "bad_signature_form",
            ),
            ("/presence", json!(null), "malformed_document"),
            ("/entry", json!({}), "malformed_proof"),
        ] {
            let mut spoilt = proof();
            *spoilt.pointer_mut(pointer).unwrap() = value;
            assert_eq!(refusal(&spoilt), code, "{pointer}");
        }
        for member in ["publisher", "entry", "proof", "presence"] {
            let mut spoilt = proof();
            spoilt.as_object_mut().unwrap().remove(member);
            assert_eq!(refusal(&spoilt), "malformed_proof", "{member}");
        }
        let mut longer = proof();
        longer["proof"].as_array_mut().unwrap().push(json!(other));
        assert_eq!(refusal(&longer), "wrong_path");
        assert_eq!(
            InclusionProof::verify(b"[]").unwrap_err().code(),
            "malformed_proof"
        );
        assert_eq!(
            InclusionProof::verify(b"{\"a\":1,\"a\":1}")
                .unwrap_err()
                .code(),
            "duplicate_key"
        );
        let endless = vec![b' '; MAX_PROOF_BYTES + 1];
        assert_eq!(
            InclusionProof::verify(&endless).unwrap_err().code(),
            "document_too_large"
        );
    }

    #[test]
    fn a_proof_for_another_root_is_refused_even_if_its_publisher_signed_it() {
        for (seed, code) in [(1, "unbound_root"), (3, "wrong_log")] {
            let signer = SecretSeed::from_bytes([seed; 32]).identity();
            let (_, _, presence) = log(&signer, ["a", "b", "c", "d", "x"]);
            let mut spoilt = proof();
            spoilt["presence"] = serde_json::from_slice(presence.bytes()).unwrap();
            assert_eq!(refusal(&spoilt), code);
        }
    }

    #[test]
    fn members_that_nobody_knows_are_part_of_the_leaf() {
        let mut spoilt = proof();
        spoilt["entry"]["colour"] = json!("red");
        assert_eq!(refusal(&spoilt), "wrong_leaf");
    }
}
