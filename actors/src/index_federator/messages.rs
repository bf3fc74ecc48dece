//! What may be asked of the federator, and what it answers.

use std::collections::BTreeMap;

use actix::Message;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::document::Endpoints;
use hn_protocol::log::{EntryDraft, LogState, VerifiedPage};
use hn_protocol::recovery::Extent;
use hn_protocol::sign::DocumentError;
use hn_protocol::time::Timestamp;
use serde::Serialize;

use crate::logs::LogError;

/// Appends entries to our own log; their artifacts are durable already. Answers when all of it is durable and visible.
/// Errors: a path or tag that no log takes, a full disk, a damaged log.
#[derive(Message)]
#[rtype(result = "Result<Published, FederateError>")]
pub struct PublishEntries {
    /// What to append, in order.
    pub entries: Vec<EntryDraft>,
}

/// What became of the entries of a [`PublishEntries`].
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Published {
    /// One for each entry, in order.
    pub published: Vec<PublishedEntry>,
    /// Entries in the log after it.
    pub log_size: u64,
    /// Root of the log after it.
    #[schema(value_type = String)]
    pub log_root: Digest,
}

/// One published path.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct PublishedEntry {
    /// Its place in the log.
    pub seq: u64,
    /// The artifact.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// The path.
    pub path: String,
    /// `appended`, or `existing` when path and digest stood there already.
    pub status: &'static str,
}

/// Appends a verified page to a followed log. Refused when the log has moved on since the page was judged.
#[derive(Message)]
#[rtype(result = "Result<Appended, FederateError>")]
pub struct AppendPage {
    /// The log as it was when the page was judged.
    pub base: LogState,
    /// What the page adds.
    pub page: VerifiedPage,
    /// When the publisher itself gave it; `None` when a holder did.
    pub seen: Option<Timestamp>,
}

/// Whether a page was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// Durable and visible.
    Taken,
    /// Another pull was faster: judge again from where the log is now.
    Overtaken,
}

/// Sets where our presence says that we are; re-issues it when that is news.
#[derive(Message)]
#[rtype(result = "Result<(), FederateError>")]
pub struct Announce {
    /// Where the node can be reached from now on.
    pub endpoints: Endpoints,
}

/// Rebuilds the index from the journals. Answers what was found.
#[derive(Message)]
#[rtype(result = "Result<Reindexed, FederateError>")]
pub struct Reindex;

/// What a reindex found.
#[derive(Debug, Clone, Copy, Default, Serialize, utoipa::ToSchema)]
pub struct Reindexed {
    /// Logs read.
    pub logs: u64,
    /// Slices verified.
    pub slices: u64,
    /// Entries verified.
    pub entries: u64,
    /// Artifacts found.
    pub artifacts: u64,
}

/// Whether our own log may be signed upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gate {
    /// Not yet: publications wait.
    Asking,
    /// It may.
    Open,
    /// Not before the log is recovered, and why: publications are refused.
    Closed(String),
}

/// Moves the gate. When it opens, what waited is signed before the answer.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SetGate {
    /// To where.
    pub gate: Gate,
}

/// Asks how far our own log verifies. What can be mended without others is: a journal that was damaged is read again, the
/// copied presence is put back behind what it binds.
#[derive(Message)]
#[rtype(result = "OwnStanding")]
pub struct CheckOwnLog;

/// How our own log stands.
#[derive(Debug, Clone)]
pub struct OwnStanding {
    /// As far as it verifies.
    pub state: LogState,
    /// What is wrong with it.
    pub damaged: Option<String>,
    /// How far it reached once, by what the index and the copied presence say.
    pub reach: Extent,
}

/// Sets aside what is damaged of our own log, so that it goes on from what is good. Errors: the disk.
#[derive(Message)]
#[rtype(result = "Result<(), FederateError>")]
pub struct MendOwnLog {
    /// The highest sequence that is known to have been used.
    pub above: u64,
}

/// Begins a new epoch of our own log, also while the gate is closed: nothing of the old one goes on. Errors: the disk.
#[derive(Message)]
#[rtype(result = "Result<OwnStanding, FederateError>")]
pub struct ResetOwnLog {
    /// An epoch that is known to have been begun.
    pub after: u64,
}

/// Asks for the state of our own log.
#[derive(Message)]
#[rtype(result = "OwnLog")]
pub struct GetOwnLog;

/// The state of our own log.
#[derive(Debug, Clone, Serialize)]
pub struct OwnLog {
    /// Which epoch.
    pub epoch: u64,
    /// Entries.
    pub size: u64,
    /// Root.
    pub root: Digest,
    /// `ok`; `recovering` while nothing may be signed; `reset` while a new epoch has no entry; `revoked` for ever.
    pub state: &'static str,
    /// Why it is not `ok`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Logs that cannot be opened, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unreadable: BTreeMap<Did, String>,
}

/// Why a message to the federator was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FederateError {
    /// An entry that no log takes.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The disk is full, or `storage.min_free` is reached.
    #[error("the disk is full: {0}")]
    Full(String),
    /// Our own log may not be signed upon as it is.
    #[error("{0}")]
    Recovering(String),
    /// The DID has ended.
    #[error(
        "{0} is revoked: nothing is signed for it any more, and nothing more by it is taken in"
    )]
    Revoked(Did),
    /// The disk or the index failed.
    #[error("the log cannot be written: {0}")]
    Failed(String),
    /// The actor was restarted meanwhile: ask again, nothing is done twice.
    #[error("the federator is being restarted")]
    Restarting,
}

impl From<LogError> for FederateError {
    fn from(error: LogError) -> Self {
        if error.is_full() {
            Self::Full(error.to_string())
        } else {
            Self::Failed(error.to_string())
        }
    }
}
