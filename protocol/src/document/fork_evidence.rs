//! `fork_evidence@1`: two documents that one publisher signed and that contradict each other
//! (`spec/fork_evidence@1.md`). Whoever has it knows, with nothing else, that the publisher signed two logs.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::MAX_SLICE_BYTES;
use crate::canonical::{self, CanonicalObject};
use crate::did::{Did, Identity};
use crate::log::{Conflict, Line, conflict};
use crate::sign::{Document, DocumentError, Signed};
use crate::time::Timestamp;

/// The most bytes of an evidence: two slices, and the envelope.
pub const MAX_EVIDENCE_BYTES: usize = 2 * MAX_SLICE_BYTES + 16 * 1024;

/// What an observer saw a publisher sign.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ForkEvidence {
    /// Who saw it, and the signer. Its word is not needed: the documents prove it.
    pub observer: Did,
    /// Who signed both documents.
    pub publisher: Did,
    /// In which of its logs.
    pub epoch: u64,
    /// The two documents, whole, sorted by id.
    pub documents: [Value; 2],
    /// When the second was seen.
    pub observed_at: Timestamp,
    /// The documents, verified.
    #[serde(skip)]
    lines: Vec<Line>,
}

impl ForkEvidence {
    /// Signs evidence of what `a` and `b` are: documents of one publisher and epoch.
    /// Errors: they are no conflict ([`DocumentError::NoConflict`]).
    pub fn sign(
        a: &Line,
        b: &Line,
        now: Timestamp,
        identity: &Identity,
    ) -> Result<Signed<Self>, DocumentError> {
        let (publisher, epoch) = match a {
            Line::Slice(slice) => (slice.publisher, slice.epoch),
            Line::Presence(presence) => (presence.did, presence.epoch),
            Line::Frontier(_) => return Err(DocumentError::NoConflict),
        };
        let mut documents = [canonical::parse(a.bytes())?, canonical::parse(b.bytes())?];
        documents.sort_by(|a, b| id(a).cmp(id(b)));
        let evidence = Self {
            observer: identity.did(),
            publisher,
            epoch,
            documents,
            observed_at: now,
            lines: Vec::new(),
        };
        Signed::create(&evidence, identity)
    }

    /// The two documents, verified.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// In which way the documents contradict each other.
    #[must_use]
    pub fn conflict(&self) -> Option<Conflict> {
        match self.lines.as_slice() {
            [a, b] => conflict(a, b),
            _ => None,
        }
    }
}

fn id(document: &Value) -> &str {
    document
        .get("id")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

impl Document for ForkEvidence {
    const TYPE: &'static str = "fork_evidence@1";
    const MAX_BYTES: usize = MAX_EVIDENCE_BYTES;
    // The documents stand two levels deep and may use all of theirs.
    const MAX_DEPTH: usize = canonical::MAX_DEPTH + 2;

    fn signer(&self) -> Did {
        self.observer
    }

    fn read(value: Value, _: &CanonicalObject) -> Result<Self, DocumentError> {
        let mut evidence: Self =
            serde_json::from_value(value).map_err(|e| DocumentError::Malformed(e.to_string()))?;
        for document in &evidence.documents {
            let bytes = Bytes::from(canonical::to_vec(document)?);
            evidence.lines.push(Line::verify(bytes)?);
        }
        Ok(evidence)
    }

    fn check(&self) -> Result<(), DocumentError> {
        let [a, b] = &self.documents;
        let of_publisher = self.lines.iter().all(|line| match line {
            Line::Slice(slice) => (slice.publisher, slice.epoch) == (self.publisher, self.epoch),
            Line::Presence(presence) => {
                (presence.did, presence.epoch) == (self.publisher, self.epoch)
            }
            Line::Frontier(_) => false,
        });
        super::require(
            of_publisher,
            "a document is not of the publisher and epoch that the evidence names",
        )?;
        super::require(id(a) < id(b), "the documents are not sorted by id")?;
        match self.conflict() {
            Some(_) => Ok(()),
            None => Err(DocumentError::NoConflict),
        }
    }
}
