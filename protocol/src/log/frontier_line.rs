//! The line that a pruned log opens with (`spec/index@2.md`, "Pruning"): the subtree roots of everything before.
//!
//! Nobody signs it. It is believed when it folds to the `log_root` of the slice behind it, which its publisher signed.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::canonical;
use crate::did::Did;
use crate::digest::Digest;
use crate::merkle::Frontier;
use crate::sign::DocumentError;

/// What `type` of a frontier line says.
pub const FRONTIER_TYPE: &str = "frontier";
/// The longest frontier line: 53 hashes at most, each 67 bytes.
pub const MAX_FRONTIER_BYTES: usize = 8 * 1024;

/// A pruned prefix of a log, as its line says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontierLine {
    /// Whose log.
    pub publisher: Did,
    /// Which log of the publisher's.
    pub epoch: u64,
    /// How much was pruned, and what it folds to.
    pub frontier: Frontier,
    bytes: Bytes,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(rename = "type")]
    kind: String,
    publisher: Did,
    epoch: u64,
    size: u64,
    hashes: Vec<Digest>,
}

impl FrontierLine {
    /// The line for the log of `publisher` from `frontier` on. Errors: none that a frontier can cause.
    pub fn new(publisher: Did, epoch: u64, frontier: Frontier) -> Result<Self, DocumentError> {
        let bytes = canonical::to_vec(&Written {
            kind: FRONTIER_TYPE.to_owned(),
            publisher,
            epoch,
            size: frontier.size(),
            hashes: frontier.hashes().to_vec(),
        })?;
        Ok(Self {
            publisher,
            epoch,
            frontier,
            bytes: bytes.into(),
        })
    }

    /// Reads one line. Errors: another shape, empty, too long, or not one hash for each bit of the size.
    pub fn parse(bytes: Bytes) -> Result<Self, DocumentError> {
        if bytes.len() > MAX_FRONTIER_BYTES {
            return Err(DocumentError::TooLarge {
                got: bytes.len(),
                max: MAX_FRONTIER_BYTES,
            });
        }
        let written: Written = canonical::from_slice(&bytes)?;
        let frontier = Frontier::from_parts(written.size, written.hashes)
            .filter(|frontier| frontier.size() > 0 && written.kind == FRONTIER_TYPE)
            .ok_or_else(|| {
                DocumentError::Malformed("a frontier has one hash for each bit of its size".into())
            })?;
        Ok(Self {
            publisher: written.publisher,
            epoch: written.epoch,
            frontier,
            bytes,
        })
    }

    /// The line's bytes, without a line end.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}
