//! Follows the roster's peers: who is pulled from when is decided by `hn_protocol::federation`; this file reads
//! the roster, starts the pulls, keeps each peer's health, and answers those who wait.

use std::collections::BTreeSet;
use std::time::Duration;

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, Message, MessageResult, Recipient,
    ResponseFuture, SpawnHandle, Supervised, WrapFuture,
};
use hn_protocol::did::Did;
use hn_protocol::federation::{
    Effect, Federation, Input, Outcome, PeerHealth, PeerState, Reason, Schedule,
};
use serde::Serialize;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};
use url::Url;

use crate::artifact_mirror::{MirrorError, MirrorLog, MirrorReport};
use crate::failpoint;
use crate::fetch::Trust;
use crate::metrics::Metrics;
use crate::pull::{PeerReport, PullLimits, Puller};
use crate::roster::{RosterError, RosterFile, RosterPeer, Scope};
use crate::store::{Batch, Store, Tree};

/// How often the roster file is looked at: a person who edits it sees the node follow within this.
const ROSTER_POLL: Duration = Duration::from_secs(2);
/// The shortest timer: what is due at once is started at once, not by a timer.
const SHORTEST_SLEEP: Duration = Duration::from_millis(5);

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
    /// The peer as it is to be. Without a URL one is looked for in what is held.
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
}

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
    /// Its base URL.
    pub url: Option<Url>,
    /// Its presence's URL.
    pub presence: Option<Url>,
    /// How much is followed.
    pub scope: Scope,
    /// Whether artifacts are fetched as well.
    pub mirror: bool,
    /// `new`, `healthy`, `unreachable` or `stale`.
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

/// What the sync worker is made with.
pub struct SyncOptions {
    /// Decides how often.
    pub schedule: Schedule,
    /// Decides every jitter.
    pub seed: u64,
    /// Whether peers are followed without being asked to.
    pub background: bool,
}

struct Waiting {
    pending: BTreeSet<Did>,
    reports: Vec<PeerReport>,
    reply: oneshot::Sender<Result<Vec<PeerReport>, SyncError>>,
}

/// The actor.
pub struct FederationSync {
    options: SyncOptions,
    core: Federation,
    roster: RosterFile,
    puller: Puller,
    mirror: Recipient<MirrorLog>,
    store: Store,
    metrics: Metrics,
    waiting: Vec<Waiting>,
    mirror_wanted: BTreeSet<Did>,
    timer: Option<SpawnHandle>,
}

impl FederationSync {
    /// Loads nothing yet: the roster is read when the actor starts.
    #[must_use]
    pub fn new(
        options: SyncOptions,
        roster: RosterFile,
        puller: Puller,
        mirror: Recipient<MirrorLog>,
        store: Store,
        metrics: Metrics,
    ) -> Self {
        Self {
            core: Federation::new(options.schedule, options.seed),
            options,
            roster,
            puller,
            mirror,
            store,
            metrics,
            waiting: Vec::new(),
            mirror_wanted: BTreeSet::new(),
            timer: None,
        }
    }

    fn step(&mut self, input: Input, ctx: &mut Context<Self>) {
        for effect in self.core.handle(input, self.puller.clock.now()) {
            match effect {
                Effect::Pull(peer) => self.start_pull(peer, ctx),
                Effect::Health(peer) => self.keep_health(&peer),
            }
        }
        self.arm(ctx);
    }

    fn arm(&mut self, ctx: &mut Context<Self>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        let Some(wake) = self.core.next_wake().filter(|_| self.options.background) else {
            return;
        };
        let wait = wake.since(self.puller.clock.now()).max(SHORTEST_SLEEP);
        self.timer = Some(ctx.run_later(wait, |this, ctx| {
            this.timer = None;
            this.step(Input::Tick, ctx);
        }));
    }

    fn start_pull(&mut self, did: Did, ctx: &mut Context<Self>) {
        let Some(peer) = self.roster.peer(&did).cloned() else {
            // Removed between decision and deed.
            self.step(
                Input::Finished {
                    peer: did,
                    outcome: Outcome::Verified,
                },
                ctx,
            );
            return;
        };
        let listed = self
            .roster
            .roster()
            .peers
            .iter()
            .map(|peer| peer.did)
            .collect();
        let pull = self.puller.clone().pull(peer, listed);
        ctx.spawn(
            pull.into_actor(self)
                .map(|report, this, ctx| this.pulled(report, ctx)),
        );
    }

    /// A pull has ended: mirror if that is wanted, then tell everyone.
    fn pulled(&mut self, report: PeerReport, ctx: &mut Context<Self>) {
        let peer = self.roster.peer(&report.did).cloned();
        let wanted =
            self.mirror_wanted.remove(&report.did) || peer.as_ref().is_some_and(|peer| peer.mirror);
        let reached = !matches!(report.outcome, Outcome::Unreachable(_));
        let Some((base, peer)) = report.base.clone().zip(peer).filter(|_| wanted && reached) else {
            self.settle(report, ctx);
            return;
        };
        let trust = if peer.url.is_some() {
            Trust::Operator
        } else {
            Trust::Stranger
        };
        let publishers = std::iter::once(report.did).chain(report.held.iter().map(|held| held.did));
        let jobs: Vec<MirrorLog> = publishers
            .map(|publisher| MirrorLog {
                publisher,
                base: base.clone(),
                trust,
            })
            .collect();
        let mirroring = mirror_all(self.mirror.clone(), jobs, report);
        ctx.spawn(
            mirroring
                .into_actor(self)
                .map(|report, this, ctx| this.settle(report, ctx)),
        );
    }

    fn settle(&mut self, mut report: PeerReport, ctx: &mut Context<Self>) {
        let did = report.did;
        self.step(
            Input::Finished {
                peer: did,
                outcome: report.outcome.clone(),
            },
            ctx,
        );
        report.state = self
            .core
            .health(&did)
            .map_or(PeerState::New, |(health, _)| health.state)
            .name();
        self.tell(&report);
        for waiting in &mut self.waiting {
            if waiting.pending.remove(&did) {
                waiting.reports.push(report.clone());
            }
        }
        self.answer();
    }

    fn answer(&mut self) {
        let (done, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|w| w.pending.is_empty());
        self.waiting = waiting;
        let done: Vec<Waiting> = done;
        for waiting in done {
            let _ = waiting.reply.send(Ok(waiting.reports));
        }
    }

    /// The telemetry of design 12.
    fn tell(&self, report: &PeerReport) {
        let (peer, entries, slices, size) =
            (report.did, report.entries, report.slices, report.log_size);
        match &report.error {
            None => {
                self.metrics.sync_succeeded();
                if report.status == "updated" {
                    info!(%peer, entries, slices, log_size = size, "federation.sync.success");
                } else {
                    debug!(%peer, log_size = size, "federation.sync.success");
                }
            }
            Some(reason) => {
                self.metrics.sync_failed();
                warn!(%peer, state = report.state, code = reason.code, reason = reason.detail, "federation.sync.failure");
            }
        }
    }

    fn keep_health(&self, peer: &Did) {
        let Some((health, _)) = self.core.health(peer) else {
            return;
        };
        let mut batch = Batch::default();
        let kept = batch
            .put(Tree::Peers, peer.public_key(), health)
            .map(|_| ());
        // Health is a memory, not a promise: without it the peer is asked again.
        if let Err(error) = kept.and_then(|()| self.store.apply(batch)) {
            warn!(%error, %peer, "the peer's health was not kept");
        }
    }

    fn read_roster(&mut self, ctx: &mut Context<Self>) {
        if self.roster.poll() {
            info!(peers = self.roster.roster().peers.len(), "roster read");
            self.follow_roster(ctx);
        }
    }

    fn follow_roster(&mut self, ctx: &mut Context<Self>) {
        let own = self.puller.catalog.own();
        let listed = self
            .roster
            .roster()
            .peers
            .iter()
            .map(|peer| peer.did)
            .filter(|did| *did != own);
        let roster: Vec<(Did, Option<PeerHealth>)> =
            listed.map(|did| (did, self.known_health(&did))).collect();
        let followed: BTreeSet<Did> = roster.iter().map(|(did, _)| *did).collect();
        for waiting in &mut self.waiting {
            waiting.pending.retain(|did| followed.contains(did));
        }
        self.answer();
        if self.options.background {
            self.step(Input::Roster(roster), ctx);
        } else {
            // Without background following, peers are known to the core but only a refresh starts a pull.
            self.core.know(roster, self.puller.clock.now());
        }
    }

    fn known_health(&self, did: &Did) -> Option<PeerHealth> {
        self.store.get(Tree::Peers, did.public_key()).ok().flatten()
    }

    fn view(&self, peer: &RosterPeer) -> PeerView {
        let held = self.puller.catalog.log(&peer.did);
        let health = self.core.health(&peer.did);
        let state = health.map_or(PeerState::New, |(health, _)| health.state);
        let reason = health.and_then(|(health, _)| health.reason.as_ref());
        PeerView {
            did: peer.did,
            alias: peer.alias.clone(),
            url: peer.url.clone(),
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
                .map_or_else(hn_protocol::merkle::empty_root, |view| view.state.root())
                .to_string(),
            last_sync: health
                .and_then(|(health, _)| health.last_sync)
                .map(|at| at.to_string()),
        }
    }

    fn put(&mut self, message: PutPeer, ctx: &mut Context<Self>) -> Result<PeerView, SyncError> {
        let mut peer = message.peer;
        let did = peer.did;
        if did == self.puller.catalog.own() {
            return Err(SyncError::Ourselves(did));
        }
        if peer.url.is_none() {
            peer.url = self
                .puller
                .known_url(&did)
                .filter(crate::roster::is_base_url);
        }
        if peer.url.is_none() {
            return Err(SyncError::Unresolved(did));
        }
        self.roster.put(&peer)?;
        self.follow_roster(ctx);
        if self.options.background {
            self.step(Input::Refresh(Some(did)), ctx);
        }
        Ok(self.view(&peer))
    }

    fn refresh(
        &mut self,
        message: &Refresh,
        ctx: &mut Context<Self>,
    ) -> Result<oneshot::Receiver<Result<Vec<PeerReport>, SyncError>>, SyncError> {
        self.read_roster(ctx);
        let own = self.puller.catalog.own();
        let followed: BTreeSet<Did> = self
            .roster
            .roster()
            .peers
            .iter()
            .map(|p| p.did)
            .filter(|did| *did != own)
            .collect();
        let pending = match message.peer {
            Some(did) if !followed.contains(&did) => return Err(SyncError::UnknownPeer(did)),
            Some(did) => BTreeSet::from([did]),
            None => followed,
        };
        if message.mirror {
            self.mirror_wanted.extend(&pending);
        }
        let (reply, answer) = oneshot::channel();
        self.waiting.push(Waiting {
            pending,
            reports: Vec::new(),
            reply,
        });
        self.answer();
        self.step(Input::Refresh(message.peer), ctx);
        Ok(answer)
    }
}

async fn mirror_all(
    mirror: Recipient<MirrorLog>,
    jobs: Vec<MirrorLog>,
    mut report: PeerReport,
) -> PeerReport {
    let mut total = MirrorReport::default();
    let mut failure = None;
    for job in jobs {
        match mirror.send(job).await {
            Ok(Ok(mirrored)) => total.add(mirrored),
            Ok(Err(error)) => failure = Some(error),
            Err(_) => failure = Some(MirrorError::Failed("the mirror is being restarted".into())),
        }
        if failure.is_some() {
            break;
        }
    }
    let mirrored = total.error.clone();
    report.mirrored = Some(total);
    if report.error.is_some() {
        return report;
    }
    let outcome = match (failure, mirrored) {
        (Some(error), _) => {
            let reason = Reason {
                code: error.code().to_owned(),
                detail: error.to_string(),
            };
            Some(Outcome::Local(reason))
        }
        // Bytes that are not what the digest names are a lie; an artifact that is not there is not.
        (None, Some(reason))
            if reason.code == "artifact_mismatch" || reason.code == "artifact_too_long" =>
        {
            Some(Outcome::Refused(reason))
        }
        (None, _) => None,
    };
    if let Some(outcome) = outcome {
        report.error = match &outcome {
            Outcome::Refused(reason) | Outcome::Local(reason) => Some(reason.clone()),
            _ => None,
        };
        report.status = "failed";
        report.outcome = outcome;
    }
    report
}

/// What an operator can do about a peer that is not healthy.
fn remedy(state: PeerState, reason: Option<&Reason>) -> Option<&'static str> {
    let code = reason.map(|reason| reason.code.as_str());
    match (code, state) {
        (None, _) => None,
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
        (Some("url_refused"), _) => Some("give the peer's URL: hn mcp federate add DID URL"),
        (Some(_), PeerState::Unreachable) => Some(
            "nothing to do if the peer is only offline; else check its URL: hn mcp federate add DID URL",
        ),
        (Some(_), _) => Some(
            "what was accepted before stays; tell the peer's operator, or hn mcp federate remove DID",
        ),
    }
}

impl Actor for FederationSync {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.roster.poll();
        self.follow_roster(ctx);
        if self.options.background {
            ctx.run_interval(ROSTER_POLL, |this, ctx| this.read_roster(ctx));
        }
    }
}

impl Supervised for FederationSync {
    /// Pulls that ran are lost with the old core; every peer is simply due again.
    fn restarting(&mut self, _: &mut Self::Context) {
        self.core = Federation::new(self.options.schedule, self.options.seed);
        self.waiting.clear();
        self.mirror_wanted.clear();
        self.timer = None;
    }
}

impl Handler<Refresh> for FederationSync {
    type Result = ResponseFuture<Result<Vec<PeerReport>, SyncError>>;

    fn handle(&mut self, message: Refresh, ctx: &mut Self::Context) -> Self::Result {
        strike();
        let answer = self.refresh(&message, ctx);
        Box::pin(async move { answer?.await.unwrap_or(Err(SyncError::Restarting)) })
    }
}

impl Handler<PutPeer> for FederationSync {
    type Result = Result<PeerView, SyncError>;

    fn handle(&mut self, message: PutPeer, ctx: &mut Self::Context) -> Self::Result {
        strike();
        self.put(message, ctx)
    }
}

impl Handler<RemovePeer> for FederationSync {
    type Result = Result<(), SyncError>;

    fn handle(&mut self, message: RemovePeer, ctx: &mut Self::Context) -> Self::Result {
        strike();
        if !self.roster.remove(&message.did)? {
            return Err(SyncError::UnknownPeer(message.did));
        }
        self.follow_roster(ctx);
        Ok(())
    }
}

impl Handler<ListPeers> for FederationSync {
    type Result = MessageResult<ListPeers>;

    fn handle(&mut self, _: ListPeers, ctx: &mut Self::Context) -> Self::Result {
        strike();
        self.read_roster(ctx);
        MessageResult(RosterView {
            peers: self
                .roster
                .roster()
                .peers
                .iter()
                .map(|peer| self.view(peer))
                .collect(),
            roster_error: self.roster.error().map(str::to_owned),
        })
    }
}

impl Handler<ReloadRoster> for FederationSync {
    type Result = ();

    fn handle(&mut self, _: ReloadRoster, ctx: &mut Self::Context) {
        strike();
        self.read_roster(ctx);
    }
}

impl Handler<Reschedule> for FederationSync {
    type Result = ();

    fn handle(&mut self, message: Reschedule, ctx: &mut Self::Context) {
        strike();
        self.options.schedule = message.schedule;
        self.puller.limits = message.limits;
        self.core
            .reschedule(message.schedule, self.puller.clock.now());
        self.arm(ctx);
    }
}

/// The failpoint at the start of each message.
fn strike() {
    if let Err(error) = failpoint::hit("actor.federation_sync") {
        warn!(%error, "failpoint");
    }
}
