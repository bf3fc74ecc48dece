//! The head of a log as an event tells it.

use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::log::LogState;
use serde::{Deserialize, Serialize};

/// The new head of a log: what an element of `/federate/peers` says of the log itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NewHead {
    /// Its publisher.
    #[schema(value_type = String)]
    pub did: Did,
    /// Its epoch.
    pub epoch: u64,
    /// Entries.
    pub log_size: u64,
    /// Root.
    #[schema(value_type = String)]
    pub log_root: Digest,
    /// Digest of the last slice; null while there is none.
    #[schema(value_type = Option<String>)]
    pub head: Option<Digest>,
    /// Digest of the current presence.
    #[schema(value_type = Option<String>)]
    pub presence: Option<Digest>,
    /// Whether the publisher's revocation is held.
    #[serde(default)]
    pub revoked: bool,
}

impl NewHead {
    /// The head of a log whose publisher is not revoked.
    #[must_use]
    pub fn of(state: &LogState) -> Self {
        Self {
            did: state.publisher,
            epoch: state.epoch,
            log_size: state.size(),
            log_root: state.root(),
            head: state.head,
            presence: state.presence.map(|presence| presence.digest),
            revoked: false,
        }
    }

    /// Whether it names something that `held` does not have: more, or something else at the same size.
    #[must_use]
    pub fn is_beyond(&self, held: &LogState) -> bool {
        let ours = (held.epoch, held.size());
        match (self.epoch, self.log_size).cmp(&ours) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => *self != Self::of(held),
            std::cmp::Ordering::Greater => true,
        }
    }
}
