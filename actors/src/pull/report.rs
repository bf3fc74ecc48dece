//! How a pull ended: for whoever asked, and for the core that schedules the next one.

use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::federation::{Outcome, Reason};
use hn_protocol::log::PageError;
use serde::Serialize;
use url::Url;

use super::held::{HeldList, HeldLog, HeldLogHead};
use crate::artifact_mirror::{Availability, MirrorReport};
use crate::fetch::FetchError;
use crate::index_federator::FederateError;

/// How a pull from a peer ended: an element of `peers` in the JSON of `hn mcp federate refresh`.
#[derive(Debug, Clone, Serialize)]
pub struct PeerReport {
    /// The peer.
    pub did: Did,
    /// `updated`, `up-to-date` or `failed`.
    pub status: &'static str,
    /// The peer's state after the pull.
    pub state: &'static str,
    /// New entries, the held logs' included.
    pub entries: u64,
    /// New slices.
    pub slices: u64,
    /// Entries of the peer's own log as held.
    pub log_size: u64,
    /// Root of the peer's own log as held.
    pub log_root: Digest,
    /// Why it failed; null when it did not.
    pub error: Option<Reason>,
    /// The logs followed through this peer.
    pub held: Vec<HeldLog>,
    /// Logs that the peer holds and that the caps left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<Did>,
    /// What was mirrored, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirrored: Option<MirrorReport>,
    /// What can be had of what it announces, as far as somebody looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub availability: Option<Availability>,
    /// How the core is told.
    #[serde(skip)]
    pub outcome: Outcome,
    /// Through which base URL.
    #[serde(skip)]
    pub base: Option<Url>,
    /// Our own log as the peer lists it, where that is more than we have, or something else.
    #[serde(skip)]
    pub own_head: Option<HeldLogHead>,
    /// What the peer listed, for the next pull.
    #[serde(skip)]
    pub list: Option<HeldList>,
}

/// Why a log could not be pulled.
#[derive(Debug, thiserror::Error)]
pub(super) enum PullError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Page(#[from] PageError),
    #[error("the answer is not what the route gives: {0}")]
    Answer(String),
    #[error("{0}")]
    Local(FederateError),
    /// The publisher signed two logs, and no operator has accepted one of them.
    #[error("{}", .0.detail)]
    Forked(Reason),
    /// What was shown is of the log that the operator did not accept.
    #[error("it shows the log that was not accepted: {0}")]
    Rejected(String),
    /// The publisher's node says that it is collecting its own newest slices.
    #[error("it is recovering its own log{}", .0.as_ref().map(|e| format!(", and shows an earlier state meanwhile: {e}")).unwrap_or_default())]
    Recovering(Option<PageError>),
    /// The publisher's revocation is held.
    #[error("{}", .0.detail)]
    Revoked(Reason),
    /// An evidence that proves nothing, from a peer that says otherwise.
    #[error(
        "it says that the log of {publisher} is forked, and its evidence proves nothing: {why}"
    )]
    Evidence { publisher: Did, why: String },
}

impl PullError {
    pub(super) fn outcome(&self) -> Outcome {
        let reason = self.reason();
        match self {
            // An answer that breaks the protocol is a failed validation; none at all is absence.
            Self::Fetch(FetchError::TooLarge(_) | FetchError::Encoding(_))
            | Self::Page(_)
            | Self::Rejected(_)
            | Self::Evidence { .. }
            | Self::Answer(_) => Outcome::Refused(reason),
            Self::Forked(_) => Outcome::Forked(reason),
            Self::Recovering(_) => Outcome::Recovering(reason),
            Self::Revoked(_) => Outcome::Revoked(reason),
            Self::Fetch(_) => Outcome::Unreachable(reason),
            Self::Local(_) => Outcome::Local(reason),
        }
    }

    /// Whether the peer gave documents of its log, and what is wrong is with them: nobody else answered in its place.
    pub(super) const fn is_of_the_log(&self) -> bool {
        match self {
            Self::Forked(_) | Self::Rejected(_) | Self::Recovering(_) | Self::Revoked(_) => true,
            Self::Page(error) => !matches!(
                error,
                PageError::Document { .. } | PageError::Publisher { .. } | PageError::NoPresence
            ),
            _ => false,
        }
    }

    pub(super) fn reason(&self) -> Reason {
        let code = match self {
            Self::Fetch(e) => e.code(),
            Self::Page(e) => e.code(),
            Self::Answer(_) => "bad_answer",
            Self::Forked(_) => "fork",
            Self::Rejected(_) => "rejected_branch",
            Self::Recovering(_) => "recovering",
            Self::Revoked(_) => "revoked",
            Self::Evidence { .. } => "bad_evidence",
            Self::Local(FederateError::Full(_)) => "storage_full",
            Self::Local(_) => "local_failure",
        };
        Reason {
            code: code.to_owned(),
            detail: self.to_string(),
        }
    }
}
