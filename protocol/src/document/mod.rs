//! The document types, one a file; each has a page of the same name in `spec/`.

mod fork_evidence;
mod index;
mod key_share;
mod policy;
mod presence;
mod revocation;

pub use fork_evidence::{ForkEvidence, MAX_EVIDENCE_BYTES};
pub use index::{Entry, MAX_ENTRIES, MAX_SLICE_BYTES, Slice, SliceHead, check_path, parse_cursor};
pub use key_share::{Keeper, KeyShare, MAX_KEEPERS, MAX_KEY_SHARE_BYTES};
pub use policy::{MAX_POLICY_BYTES, PolicyDocument, PolicyGate};
pub use presence::{Endpoints, MAX_PRESENCE_BYTES, Presence, RelayBlock};
pub use revocation::Revocation;

use crate::sign::DocumentError;

/// A rule of a type as a sentence: `Err(Malformed(..))` unless it holds.
fn require(holds: bool, rule: &str) -> Result<(), DocumentError> {
    if holds {
        Ok(())
    } else {
        Err(DocumentError::Malformed(rule.to_owned()))
    }
}
