//! `revocation@1`: the last word of a DID, made at its creation and put aside (design 2, `spec/did-hn.md`).

use serde::{Deserialize, Serialize};

use crate::did::Did;
use crate::sign::{Document, DocumentError};
use crate::time::Timestamp;

/// Says that nothing newer by `did` is to be believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The DID that ends, and the signer.
    pub did: Did,
    /// When the document was made; the revocation holds from when it is shown.
    pub at: Timestamp,
}

impl Document for Revocation {
    const TYPE: &'static str = "revocation@1";
    const MAX_BYTES: usize = 4 * 1024;

    fn signer(&self) -> Did {
        self.did
    }

    fn check(&self) -> Result<(), DocumentError> {
        Ok(())
    }
}
