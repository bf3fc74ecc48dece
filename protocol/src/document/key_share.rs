//! `key_share@1`: one share of a key, signed by the key's owner (design 6, `spec/key_share@1.md`).

use serde::{Deserialize, Serialize};

use super::require;
use crate::did::Did;
use crate::invite::BaseUrl;
use crate::key_share::{DidDigest, Layout, SetId, Share, ShareValue};
use crate::sign::{Document, DocumentError};

/// The largest share: what one QR code holds (version 40, level L, byte mode).
pub const MAX_KEY_SHARE_BYTES: usize = 2953;
/// The most keepers that a share names. Backups lie with a handful, and a code with fewer modules is read sooner.
pub const MAX_KEEPERS: usize = 16;

/// Who keeps backups of the owner, and where, so that whoever brings the key back finds the vault as well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeper {
    /// The keeper.
    pub did: Did,
    /// The base URL of its gateway when the share was made.
    pub url: BaseUrl,
}

/// One share as a file or a QR code. What `Debug` shows has no secret in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyShare {
    /// Whose key is shared, and the signer.
    pub did: Did,
    /// The digest of `did` by which shares that are words alone know it.
    pub did_digest: DidDigest,
    /// Which shares belong together.
    pub set: SetId,
    /// How many of them are the key.
    pub threshold: u8,
    /// Which one this is, from 1.
    pub index: u8,
    /// Whether a passphrase is needed besides; left out where none is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub passphrase: bool,
    /// The share.
    pub share: ShareValue,
    /// Who keeps backups; may be empty.
    pub keepers: Vec<Keeper>,
}

impl KeyShare {
    /// The document of a share of `did`'s key.
    #[must_use]
    pub fn new(share: &Share, did: Did, keepers: Vec<Keeper>) -> Self {
        let layout = share.layout;
        Self {
            did,
            did_digest: layout.did_digest,
            set: layout.set,
            threshold: layout.threshold,
            index: share.index,
            passphrase: layout.passphrase,
            share: share.value.clone(),
            keepers,
        }
    }

    /// The share, as words carry it.
    #[must_use]
    pub fn share(&self) -> Share {
        Share {
            layout: Layout {
                set: self.set,
                did_digest: self.did_digest,
                threshold: self.threshold,
                passphrase: self.passphrase,
            },
            index: self.index,
            value: self.share.clone(),
        }
    }
}

impl Document for KeyShare {
    const TYPE: &'static str = "key_share@1";
    const MAX_BYTES: usize = MAX_KEY_SHARE_BYTES;

    fn signer(&self) -> Did {
        self.did
    }

    fn check(&self) -> Result<(), DocumentError> {
        self.share()
            .check()
            .map_err(|error| DocumentError::Malformed(error.to_string()))?;
        require(
            self.did_digest == DidDigest::of(&self.did),
            "did_digest is that of did",
        )?;
        require(
            self.keepers.len() <= MAX_KEEPERS,
            "a share names at most 16 keepers",
        )
    }
}
