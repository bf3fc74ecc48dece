//! The logs that a peer holds for others: which of them are followed, within which caps, and whom a failure on one of
//! them is charged to.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hn_protocol::canonical;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::document::MAX_SLICE_BYTES;
use hn_protocol::federation::{Outcome, Reason};
use hn_protocol::log::{History, PageError, Source, VerifiedPage};
use hn_protocol::time::Timestamp;
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use url::Url;

use super::report::PullError;
use super::{PeerReport, PullLimits, Pulled, Puller, route};
use crate::catalog::{Catalog, LogView};
use crate::fetch::{FetchError, Trust};
use crate::index_federator::FederateError;
use crate::roster::{RosterPeer, Scope};

/// Bytes of a list of held logs that are read a log which may be followed: a head takes about 400.
const HEAD_BYTES: usize = 1024;
/// The bytes of such a list that are always read: an honest node may hold ten thousand logs.
const MIN_LIST: usize = 4 << 20;
/// The bytes of such a list that are never exceeded.
const MAX_LIST: usize = 32 << 20;
/// How often in a pull a peer is asked for evidence that it says it has.
const MAX_HEARD: usize = 16;

/// A log followed through a peer that holds it.
#[derive(Debug, Clone, Serialize)]
pub struct HeldLog {
    /// Its publisher.
    pub did: Did,
    /// Entries as held here.
    pub log_size: u64,
    /// Root as held here.
    pub log_root: Digest,
    /// Why this log could not be followed further; absent when it could.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Reason>,
}

/// `GET /federate/peers`: the logs that a node holds.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HeldLogs {
    /// One a log.
    pub peers: Vec<HeldLogHead>,
}

/// The head of a log that a node holds.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HeldLogHead {
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
    /// When the publisher was surely there.
    #[schema(value_type = String)]
    pub last_seen: Timestamp,
    /// Whether evidence of a fork is held.
    pub forked: bool,
    /// Whether the publisher's revocation is held.
    #[serde(default)]
    pub revoked: bool,
}

/// What a head says to who holds the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    /// Nothing new.
    Known,
    /// More, or another presence: worth a pull.
    News,
    /// A head that the log held here never had.
    Contradiction,
}

impl HeldLogHead {
    /// Compares it with the log as held in `view`.
    fn compare(&self, view: &LogView, catalog: &Catalog) -> Compared {
        let state = &view.state;
        // V5: nothing can come.
        if catalog.is_revoked(&self.did) {
            return Compared::Known;
        }
        let (theirs, ours) = ((self.epoch, self.log_size), (state.epoch, state.size()));
        let presence = state.presence.map(|presence| presence.digest);
        if theirs > ours {
            return Compared::News;
        }
        if theirs == ours {
            let same = self.log_root == state.root() && self.presence == presence;
            return if same && !self.revoked {
                Compared::Known
            } else {
                Compared::News
            };
        }
        // Of an earlier epoch, or of what is pruned here, nothing is at hand to compare it with.
        if self.epoch < state.epoch || (0 < self.log_size && self.log_size < state.base) {
            return Compared::Known;
        }
        let history = catalog.history(self.did, self.epoch);
        if history.root_at(self.log_size) == Some(self.log_root) {
            Compared::Known
        } else {
            Compared::Contradiction
        }
    }
}

/// What a peer listed last, so that a quiet pull asks only whether it changed.
#[derive(Debug, Clone)]
pub struct HeldList {
    /// Of a list of which everything that may be followed was followed.
    etag: Option<String>,
    base: Url,
    scope: Scope,
    limits: PullLimits,
    listed: Vec<Did>,
    followed: Vec<Did>,
    left_out: Vec<Did>,
    /// Logs that were too large for the budget, and what was left of it then.
    overflowed: BTreeMap<Did, u64>,
}

impl HeldList {
    /// The entity tag to ask with: where nothing else changed since, an unchanged list brings no work.
    fn etag_for(
        &self,
        base: &Url,
        scope: Scope,
        limits: PullLimits,
        listed: &[Did],
        catalog: &Catalog,
    ) -> Option<&str> {
        let same = self.base == *base
            && self.scope == scope
            && self.limits == limits
            && self.listed == listed
            && self.followed.iter().all(|did| catalog.log(did).is_some());
        self.etag.as_deref().filter(|_| same)
    }
}

/// How many bytes a log may still grow by.
pub(super) struct Budget {
    left: u64,
    /// A page was left out because of it.
    exceeded: bool,
}

impl Budget {
    pub(super) const fn unlimited() -> Self {
        Self::of(u64::MAX)
    }

    const fn of(left: u64) -> Self {
        Self {
            left,
            exceeded: false,
        }
    }

    /// How many slices to ask for, once the page under way has cost `pending` bytes: no page whose better part could not
    /// be kept. 0 when nothing is left.
    pub(super) fn slices(&self, most: usize, pending: usize) -> usize {
        match self.left.saturating_sub(pending as u64) {
            0 => 0,
            left => usize::try_from(left / MAX_SLICE_BYTES as u64)
                .unwrap_or(usize::MAX)
                .clamp(1, most),
        }
    }

    /// Whether a verified page is within what is left, and takes it off.
    pub(super) fn takes(&mut self, page: &VerifiedPage) -> bool {
        let cost = page.lines.iter().map(|line| line.bytes().len() as u64 + 1);
        let left = self.left.checked_sub(cost.sum());
        self.exceeded = left.is_none();
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }
}

/// How the held logs of one peer went.
#[derive(Default)]
struct Verdict {
    refused: Option<Reason>,
    local: Option<Reason>,
    failed: bool,
}

impl Verdict {
    fn add(&mut self, error: &PullError) {
        // A log that stands still is nothing to look at again.
        self.failed |= !matches!(error, PullError::Forked(_) | PullError::Revoked(_));
        match error.outcome() {
            Outcome::Refused(reason) if blames_holder(error) => {
                self.refused.get_or_insert(reason);
            }
            Outcome::Local(reason) => {
                self.local.get_or_insert(reason);
            }
            _ => {}
        }
    }

    fn outcome(self) -> Outcome {
        match (self.refused, self.local) {
            (Some(reason), _) => Outcome::Refused(reason),
            (None, Some(reason)) => Outcome::Local(reason),
            (None, None) => Outcome::Verified,
        }
    }
}

impl Puller {
    /// Follows the logs that `peer` holds. Errors: the peer is gone, its list is none, or our disk is full; what is
    /// wrong with one log is in the report and disturbs no other.
    pub(super) async fn pull_held(
        &self,
        base: &Url,
        trust: Trust,
        peer: &RosterPeer,
        listed: &[Did],
        report: &mut PeerReport,
    ) -> Result<(), PullError> {
        let url = route(base, &["federate", "peers"]);
        let last = report.list.clone();
        let etag = last
            .as_ref()
            .and_then(|last| last.etag_for(base, peer.scope, self.limits, listed, &self.catalog));
        let max = (self.limits.max_held_logs.saturating_mul(HEAD_BYTES)).clamp(MIN_LIST, MAX_LIST);
        let answer = match self.fetch.get(&url, trust, etag, max).await {
            // A publisher need not offer it.
            Err(FetchError::Status { status: 404, .. }) => return Ok(()),
            answer => answer?,
        };
        if answer.status == StatusCode::NOT_MODIFIED {
            let Some(last) = last.as_ref().filter(|_| etag.is_some()) else {
                return Err(PullError::Answer(
                    "304 for a list that was not asked for".into(),
                ));
            };
            report.held = last
                .followed
                .iter()
                .map(|did| self.held_log(did, None))
                .collect();
            report.left_out.clone_from(&last.left_out);
            return Ok(());
        }
        let mut heads = parse(answer.body).await?;
        let own = self.catalog.own();
        let mine = self.catalog.log(&own);
        report.own_head = heads
            .iter()
            .find(|head| head.did == own)
            .filter(|head| {
                let compared = mine.as_ref().map(|mine| head.compare(mine, &self.catalog));
                // An older presence of the same log is no news: we signed it, and later ones.
                match compared {
                    Some(Compared::Known) => false,
                    Some(Compared::News) => mine.as_ref().is_none_or(|mine| {
                        (head.epoch, head.log_size) != (mine.state.epoch, mine.state.size())
                            || head.log_root != mine.state.root()
                    }),
                    Some(Compared::Contradiction) | None => true,
                }
            })
            .cloned();
        let ended = heads.iter().any(|head| head.did == own && head.revoked);
        if ended && self.may_learn(&own) {
            // The last word of our own DID: somebody else has shown it.
            match self.learn(base, trust, own).await {
                Err(error) if ends_pull(&error) => return Err(error),
                Err(error) => tracing::warn!(peer = %peer.did, %error, "no revocation of ours"),
                Ok(()) => {}
            }
        }
        let mut seen = BTreeSet::from([peer.did, own]);
        let wanted = |did: &Did| {
            peer.scope == Scope::Held || listed.contains(did) || self.catalog.log(did).is_some()
        };
        heads.retain(|head| wanted(&head.did) && seen.insert(head.did));
        in_turn(&mut heads, |did| self.catalog.log(did).is_some());

        let mut list = HeldList {
            etag: None,
            base: base.clone(),
            scope: peer.scope,
            limits: self.limits,
            listed: listed.to_vec(),
            followed: Vec::new(),
            left_out: Vec::new(),
            overflowed: last.map(|last| last.overflowed).unwrap_or_default(),
        };
        list.overflowed.retain(|did, _| seen.contains(did));
        let outcome = self
            .follow_held(base, trust, heads, &mut list, report)
            .await;
        report.left_out.clone_from(&list.left_out);
        let verdict = match outcome {
            Ok(verdict) => verdict,
            Err(error) => {
                report.list = Some(list);
                return Err(error);
            }
        };
        if !verdict.failed {
            list.etag = answer.etag;
        }
        report.list = Some(list);
        report.outcome = verdict.outcome();
        Ok(())
    }

    async fn follow_held(
        &self,
        base: &Url,
        trust: Trust,
        heads: Vec<HeldLogHead>,
        list: &mut HeldList,
        report: &mut PeerReport,
    ) -> Result<Verdict, PullError> {
        // Logs of the roster count against no cap: they are followed for their own sake.
        let counts: Vec<bool> = heads
            .iter()
            .map(|head| !list.listed.contains(&head.did))
            .collect();
        let mut logs = self.limits.max_held_logs;
        let held = heads.iter().zip(&counts).filter(|(_, counts)| **counts);
        let held = held.filter_map(|(head, _)| self.catalog.log(&head.did));
        let bytes: u64 = held.take(logs).map(|view| view.bytes).sum();
        let mut left = self.limits.max_held_bytes.saturating_sub(bytes);
        let mut verdict = Verdict::default();
        let mut heard = 0;
        for (head, counts) in heads.into_iter().zip(counts) {
            let did = head.did;
            let view = self.catalog.log(&did);
            let compared = view
                .as_ref()
                .map_or(Compared::News, |view| head.compare(view, &self.catalog));
            let known = compared != Compared::News;
            let fits = left > list.overflowed.get(&did).copied().unwrap_or_default();
            if counts && (logs == 0 || !(known || fits)) {
                list.left_out.push(did);
                // What is held of it already keeps its place.
                if logs == 0 || view.is_none() {
                    continue;
                }
            }
            logs -= usize::from(counts);
            let mut error = None;
            if compared == Compared::Contradiction && self.forks.of(&did).is_none() {
                let doubt = self.contradicted(base, trust, &head).await;
                if ends_pull(&doubt) {
                    return Err(doubt);
                }
                verdict.add(&doubt);
                error = Some(doubt.reason());
            }
            if !known && (fits || !counts) && error.is_none() {
                let mut budget = if counts {
                    Budget::of(left)
                } else {
                    Budget::unlimited()
                };
                let outcome = self
                    .pull_log(base, trust, did, Source::Holder, &mut budget)
                    .await;
                if counts {
                    left = budget.left;
                }
                if budget.exceeded {
                    list.left_out.push(did);
                    list.overflowed.insert(did, left);
                } else {
                    list.overflowed.remove(&did);
                }
                match outcome {
                    Ok(Pulled {
                        entries, slices, ..
                    }) => {
                        report.entries += entries;
                        report.slices += slices;
                    }
                    Err(e) if ends_pull(&e) => return Err(e),
                    Err(e) => {
                        verdict.add(&e);
                        error = Some(e.reason());
                    }
                }
            }
            // Evidence about a log that is held by now, also where this pull has brought it.
            if head.forked && self.forks.of(&did).is_none() && self.catalog.log(&did).is_some() {
                heard += 1;
                let doubt = if heard > MAX_HEARD {
                    // The list is looked at again, so that the rest has its turn.
                    verdict.failed = true;
                    None
                } else {
                    self.hear(base, trust, did).await.err()
                };
                match doubt {
                    Some(e) if ends_pull(&e) => return Err(e),
                    Some(e) => {
                        verdict.add(&e);
                        error.get_or_insert(e.reason());
                    }
                    None => {}
                }
            }
            // Its last word, where the pull did not come so far as to bring it.
            if head.revoked && self.may_learn(&did) {
                match self.learn(base, trust, did).await {
                    Ok(()) => {}
                    Err(e) if ends_pull(&e) => return Err(e),
                    Err(e) => {
                        verdict.add(&e);
                        error.get_or_insert(e.reason());
                    }
                }
            }
            report.held.push(self.held_log(&did, error));
            list.followed.push(did);
        }
        Ok(verdict)
    }

    /// A head that the log held here never had: the last slice that both have tells whether its publisher signed two.
    async fn contradicted(&self, base: &Url, trust: Trust, head: &HeldLogHead) -> PullError {
        let probe = self.probe(base, trust, head.did, head.log_size);
        probe.await.unwrap_or_else(|| {
            PullError::Answer(format!(
                "it lists {} entries of the log of {} under a root that they do not have",
                head.log_size, head.did
            ))
        })
    }

    fn held_log(&self, did: &Did, error: Option<Reason>) -> HeldLog {
        let error = error.or_else(|| self.stands_still(did).map(|still| still.reason()));
        let view = self.catalog.log(did);
        HeldLog {
            did: *did,
            log_size: view.as_ref().map_or(0, |view| view.state.size()),
            log_root: view.map_or_else(hn_protocol::merkle::empty_root, |view| view.state.root()),
            error,
        }
    }
}

/// Reads a list away from the actor's thread: it may be megabytes of JSON.
async fn parse(body: Bytes) -> Result<Vec<HeldLogHead>, PullError> {
    let parsing = move || canonical::from_slice::<HeldLogs>(&body);
    match tokio::task::spawn_blocking(parsing).await {
        Ok(parsed) => Ok(parsed.map_err(|e| PullError::Answer(e.to_string()))?.peers),
        Err(error) => Err(PullError::Local(FederateError::Failed(error.to_string()))),
    }
}

/// Logs that are held already come first, so that no order of a peer's list takes their place away.
fn in_turn(heads: &mut [HeldLogHead], is_held: impl Fn(&Did) -> bool) {
    heads.sort_by_cached_key(|head| !is_held(&head.did));
}

/// Whether nothing more can come of this pull: the peer is gone, or our disk is full.
fn ends_pull(error: &PullError) -> bool {
    matches!(
        error,
        PullError::Fetch(FetchError::Connect(_) | FetchError::Timeout(_))
            | PullError::Local(FederateError::Full(_))
    )
}

/// Whether no verifying holder could have served this. What its publisher signed, be it a fork, an older log or a time
/// that lies ahead, an honest holder can only pass on.
fn blames_holder(error: &PullError) -> bool {
    match error {
        PullError::Page(
            PageError::Fork { .. }
            | PageError::NewEpoch(_)
            | PageError::Pruned { .. }
            | PageError::Conflict { .. }
            | PageError::PresenceConflict(_)
            | PageError::Rollback(_)
            | PageError::Revoked(_)
            | PageError::Ahead
            | PageError::Epoch { .. },
        )
        | PullError::Forked(_)
        | PullError::Rejected(_)
        | PullError::Recovering(_)
        | PullError::Revoked(_)
        | PullError::Local(_) => false,
        PullError::Fetch(e) => matches!(e, FetchError::TooLarge(_) | FetchError::Encoding(_)),
        PullError::Page(_) | PullError::Answer(_) | PullError::Evidence { .. } => true,
    }
}

#[cfg(test)]
#[path = "held_tests.rs"]
mod tests;
