//! Peers as an operator sees them.

use hn_protocol::did::Did;
use hn_protocol::federation::{PeerHealth, PeerState, Reason};
use hn_protocol::merkle;
use hn_protocol::time::Timestamp;
use serde::Serialize;
use url::Url;

use crate::artifact_mirror::Availability;
use crate::pull::Puller;
use crate::roster::{RosterPeer, Scope};

/// Every peer, and what is wrong with the roster file.
#[derive(Debug, Clone, Serialize)]
pub struct RosterView {
    /// The peers, in the roster's order.
    pub peers: Vec<PeerView>,
    /// Why the file cannot be read as it is now.
    pub roster_error: Option<String>,
}

/// A peer as `hn status` and `hn mcp federate list` show it.
#[derive(Debug, Clone, Serialize)]
pub struct PeerView {
    /// The peer.
    pub did: Did,
    /// Its petname.
    pub alias: Option<String>,
    /// Its base URL as the roster says: the operator's word.
    pub url: Option<Url>,
    /// Where the roster says none: what its held presence says, a stranger's word. Never shown as the roster's.
    #[serde(skip)]
    pub known_url: Option<Url>,
    /// Its presence's URL.
    pub presence: Option<Url>,
    /// How much is followed.
    pub scope: Scope,
    /// Whether artifacts are fetched as well.
    pub mirror: bool,
    /// `new`, `healthy`, `unreachable`, `stale`, `recovering`, `reset`, `forked` or `revoked`.
    pub state: &'static str,
    /// Why it is not healthy: `code: detail`.
    pub reason: Option<String>,
    /// Since when the state holds.
    pub since: String,
    /// When it is asked next.
    pub next_try: String,
    /// What the operator can do.
    pub remedy: Option<&'static str>,
    /// Entries held of its log.
    pub log_size: u64,
    /// Root of what is held.
    pub log_root: String,
    /// When an answer last verified.
    pub last_sync: Option<String>,
    /// What can be had of what it announces, as far as the last run looked; absent before one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub availability: Option<Availability>,
}

impl PeerView {
    /// `peer` with what is held of its log and, once the core knows it, its health and next try.
    pub(super) fn new(
        peer: &RosterPeer,
        health: Option<(&PeerHealth, Timestamp)>,
        puller: &Puller,
    ) -> Self {
        let held = puller.catalog.log(&peer.did);
        let state = health.map_or(PeerState::New, |(health, _)| health.state);
        let reason = health.and_then(|(health, _)| health.reason.as_ref());
        // A fork that somebody else has shown meanwhile is not for the peer's next turn to tell.
        let fork = puller.forks.of(&peer.did).map(|fork| fork.reason());
        // Nor is a last word.
        let revoked = puller.revocations.reason(&peer.did);
        let (state, reason) = match &fork {
            _ if revoked.is_some() => (PeerState::Revoked, revoked.as_ref()),
            Some(fork) if state != PeerState::Forked => (PeerState::Forked, Some(fork)),
            _ => (state, reason),
        };
        let known_url = match peer.url {
            Some(_) => None,
            None => puller.known_url(&peer.did),
        };
        Self {
            did: peer.did,
            alias: peer.alias.clone(),
            url: peer.url.clone(),
            known_url,
            presence: peer.presence.clone(),
            scope: peer.scope,
            mirror: peer.mirror,
            state: state.name(),
            reason: reason.map(|reason| format!("{}: {}", reason.code, reason.detail)),
            since: health.map_or_else(String::new, |(health, _)| health.since.to_string()),
            next_try: health.map_or_else(String::new, |(_, next)| next.to_string()),
            remedy: remedy(state, reason),
            log_size: held.as_ref().map_or(0, |view| view.state.size()),
            log_root: held
                .as_ref()
                .map_or_else(merkle::empty_root, |view| view.state.root())
                .to_string(),
            last_sync: health
                .and_then(|(health, _)| health.last_sync)
                .map(|at| at.to_string()),
            availability: None,
        }
    }
}

/// What an operator can do about a peer that is not healthy.
fn remedy(state: PeerState, reason: Option<&Reason>) -> Option<&'static str> {
    let code = reason.map(|reason| reason.code.as_str());
    match (code, state) {
        (None, _) => None,
        (Some(_), PeerState::Revoked) => Some(
            "its DID has ended, for good: hn mcp federate remove DID; what was held of it stays",
        ),
        (Some(_), PeerState::Forked) => Some(
            "it signed two histories: ask its operator which one holds, then hn mcp federate accept DID --head DIGEST",
        ),
        (Some("storage_full"), _) => {
            Some("free space on the disk of the home; following goes on by itself")
        }
        (Some("local_failure"), _) => {
            Some("see the log of this node; `hn mcp reindex` rebuilds its index")
        }
        (Some("ahead_of_clock"), _) => Some("compare the clocks of both machines"),
        (Some("expired_presence"), _) => {
            Some("the peer's clock or node has stopped: tell its operator")
        }
        (Some("rollback"), _) => {
            Some("the peer runs from an old copy: tell its operator; nothing here was changed")
        }
        (Some("rejected_branch"), _) => Some(
            "its node shows the log that was not accepted here: tell its operator, or accept that one by hn mcp federate accept",
        ),
        (Some("bad_evidence"), _) => Some(
            "it calls somebody a forger without proof: tell its operator, or hn mcp federate remove DID",
        ),
        (Some("pruned"), _) => {
            Some("follow somebody who holds the earlier entries too: hn mcp federate add DID URL")
        }
        (Some("url_refused"), _) => Some("give the peer's URL: hn mcp federate add DID URL"),
        (Some(_), PeerState::Unreachable) => Some(
            "nothing to do if the peer is only offline; else check its URL: hn mcp federate add DID URL",
        ),
        (Some(_), PeerState::Recovering) => {
            Some("nothing to do: it collects its newest slices before it signs again")
        }
        (Some(_), PeerState::Reset) => Some(
            "its log begins anew, and what it had before stays as history: ask its operator whether that was meant",
        ),
        (Some(_), _) => Some(
            "what was accepted before stays; tell the peer's operator, or hn mcp federate remove DID",
        ),
    }
}
