//! What the sync worker is asked and told, and why it refuses.

use actix::Message;
use hn_protocol::did::Did;
use hn_protocol::federation::Schedule;

use super::view::{PeerView, RosterView};
use crate::pull::{PeerReport, PullLimits};
use crate::roster::{RosterError, RosterPeer};
use crate::settings::CheckAvailability;

/// Pulls from `peer`, or from every one, now; answers when all of it has ended.
#[derive(Message)]
#[rtype(result = "Result<Vec<PeerReport>, SyncError>")]
pub struct Refresh {
    /// Whom; everyone when `None`.
    pub peer: Option<Did>,
    /// Whether artifacts are fetched as well.
    pub mirror: bool,
}

/// Adds or replaces a peer of the roster; a pull starts in the background.
#[derive(Message)]
#[rtype(result = "Result<PeerView, SyncError>")]
pub struct PutPeer {
    /// The peer as it is to be. Without a URL it is asked where its held presence says, looked up at each pull.
    pub peer: RosterPeer,
}

/// Removes a peer from the roster. What was verified of it stays.
#[derive(Message)]
#[rtype(result = "Result<(), SyncError>")]
pub struct RemovePeer {
    /// Whom.
    pub did: Did,
}

/// Asks for every peer with its health.
#[derive(Message)]
#[rtype(result = "RosterView")]
pub struct ListPeers;

/// Reads the roster file again at once.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ReloadRoster;

/// Takes over how often, and how much, is pulled from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Reschedule {
    /// How often, and how many at once.
    pub schedule: Schedule,
    /// Bounds of each pull.
    pub limits: PullLimits,
    /// Whether artifacts that are not mirrored are looked for.
    pub check: CheckAvailability,
}

/// Why a request about peers was refused.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// No such peer in the roster.
    #[error("{0} is not in the roster")]
    UnknownPeer(Did),
    /// No URL was given and none is known.
    #[error("no URL of {0} is known: give one, or follow a peer that holds its presence")]
    Unresolved(Did),
    /// Following oneself.
    #[error("{0} is this node itself")]
    Ourselves(Did),
    /// The roster file.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// The actor was restarted meanwhile: ask again.
    #[error("the sync worker is being restarted")]
    Restarting,
}
