//! `presence@2`: where a vault can be reached, and how far its log has grown (`spec/presence@2.md`).

use serde::{Deserialize, Serialize};

use super::require;
use crate::canonical::MAX_INTEGER;
use crate::did::Did;
use crate::digest::Digest;
use crate::merkle;
use crate::sign::{Document, DocumentError};
use crate::time::Timestamp;

/// The most bytes of a presence (design 13).
pub const MAX_PRESENCE_BYTES: usize = 16 * 1024;
/// The most libp2p addresses, services or further relays that a presence names.
const MAX_LIST: usize = 16;
/// The longest URL or address in a presence.
const MAX_ADDRESS: usize = 2048;

/// A vault's signed statement of where it is and that its log has `log_size` entries under `merkle_root`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// The vault, and the signer.
    pub did: Did,
    /// Which log of the vault's; counts from 0.
    pub epoch: u64,
    /// Grows with every presence: max(last + 1, Unix milliseconds).
    pub sequence: u64,
    /// Where the vault can be reached.
    pub endpoints: Endpoints,
    /// What the vault's node does for others: `relay`, `keeper`, `dht`.
    pub services: Vec<String>,
    /// Root of the log at `log_size`; BLAKE3 of no bytes when it is empty.
    pub merkle_root: Digest,
    /// Entries in the log: always a slice boundary.
    pub log_size: u64,
    /// The relay through which the vault can be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<RelayBlock>,
    /// Further relays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relays: Option<Vec<RelayBlock>>,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// Until when it counts as current.
    pub expires_at: Timestamp,
}

/// Where a vault can be reached; before the first serve only `libp2p: []`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// Base URL of the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcp: Option<String>,
    /// URL of the current presence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence: Option<String>,
    /// libp2p multiaddrs, each ending in `/p2p/<PeerId>`.
    pub libp2p: Vec<String>,
}

/// `relay@1`: a relay that holds a grant for the vault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayBlock {
    /// The relay.
    pub did: Did,
    /// The relay's base URL.
    pub url: String,
    /// Until when the grant runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

impl Presence {
    /// Whether the presence no longer counts as current at `now`.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at <= now
    }
}

impl Document for Presence {
    const TYPE: &'static str = "presence@2";
    const MAX_BYTES: usize = MAX_PRESENCE_BYTES;

    fn signer(&self) -> Did {
        self.did
    }

    fn check(&self) -> Result<(), DocumentError> {
        let short = |text: &String| text.len() <= MAX_ADDRESS;
        require(
            self.expires_at > self.issued_at,
            "expires_at is not after issued_at",
        )?;
        require(
            self.sequence <= MAX_INTEGER && self.log_size <= MAX_INTEGER,
            "a number is above 2^53",
        )?;
        require(
            self.log_size > 0 || self.merkle_root == merkle::empty_root(),
            "merkle_root of an empty log is the BLAKE3 of no bytes",
        )?;
        require(self.services.len() <= MAX_LIST, "too many services")?;
        require(
            self.endpoints.libp2p.len() <= MAX_LIST,
            "too many libp2p addresses",
        )?;
        require(
            self.relays.as_ref().is_none_or(|r| r.len() <= MAX_LIST),
            "too many relays",
        )?;
        let endpoints = &self.endpoints;
        require(
            endpoints
                .mcp
                .iter()
                .chain(&endpoints.presence)
                .chain(&endpoints.libp2p)
                .all(short),
            "an endpoint is longer than 2,048 bytes",
        )
    }
}
