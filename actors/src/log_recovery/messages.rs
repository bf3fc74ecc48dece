//! What may be asked of the recovery, and what it answers.

use actix::Message;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;

use super::RecoveryView;
use crate::index_federator::FederateError;

/// Something is about to be signed: where holders are asked on request alone, they are asked from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AskHolders;

/// Asks how the recovery stands.
#[derive(Message)]
#[rtype(result = "RecoveryView")]
pub struct GetRecovery;

/// Asks every holder again, and answers when all have been; or goes on with what is here.
#[derive(Message)]
#[rtype(result = "Result<RecoveryView, RecoverError>")]
pub struct ResumeLog {
    /// Whether what others may hold is given up.
    pub accept_loss: bool,
}

/// Begins a new epoch of our own log.
#[derive(Message)]
#[rtype(result = "Result<RecoveryView, RecoverError>")]
pub struct ResetLog;

/// A peer lists a head of our own log that is not ours. An unsigned word: it is looked into.
#[derive(Message, Debug, Clone)]
#[rtype(result = "()")]
pub struct OwnHeadSeen {
    /// The epoch that it lists.
    pub epoch: u64,
    /// The entries that it lists.
    pub log_size: u64,
    /// The root that it lists.
    pub log_root: Digest,
    /// Who lists it.
    pub holder: Did,
}

/// Why a recovery could not be ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RecoverError {
    /// Whichever of the two histories goes on, the other one is out there.
    #[error("{0}; going on with either would leave the other with those who hold it")]
    Forked(String),
    /// The log could not be written or read.
    #[error(transparent)]
    Federate(#[from] FederateError),
    /// The actor was restarted meanwhile: ask again.
    #[error("the recovery is being restarted")]
    Restarting,
}
