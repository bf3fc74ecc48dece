//! Follows the roster's peers: who is pulled from when is decided by `hn_protocol::federation`; this file reads
//! the roster, starts the pulls and the mirror runs behind them, keeps each peer's health, and answers those who wait.

mod friends;
mod messages;
mod mirroring;
mod view;
mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, MessageResult, Recipient,
    ResponseFuture, SpawnHandle, Supervised, WrapFuture,
};
use hn_protocol::did::Did;
use hn_protocol::federation::{
    Effect, Federation, Input, Outcome, PeerHealth, PeerState, Schedule,
};
use hn_protocol::invariants::MAX_RETRY;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

pub use self::friends::{FriendsView, ListFriends, PutFriend, RemoveFriend};
pub use self::messages::{
    ListPeers, PutPeer, Refresh, ReloadRoster, RemovePeer, Reschedule, SyncError,
};
use self::mirroring::{Holdings, Mirrored, MirroredLog, Mirroring};
pub use self::view::{PeerView, RosterView};
use self::watching::Watching;
use crate::artifact_mirror::{Availability, Holder, MirrorLog, Work};
use crate::failpoint;
use crate::fetch::Trust;
use crate::metrics::Metrics;
use crate::pull::{HeldList, PeerReport, Puller};
use crate::roster::{RosterFile, RosterPeer};
use crate::settings::CheckAvailability;
use crate::store::{Batch, Store, Tree};

/// How often the roster file is looked at: a person who edits it sees the node follow within this.
const ROSTER_POLL: Duration = Duration::from_secs(2);
/// The shortest timer: what is due at once is started at once, not by a timer.
const SHORTEST_SLEEP: Duration = Duration::from_millis(5);

/// What the sync worker is made with.
pub struct SyncOptions {
    /// Decides how often.
    pub schedule: Schedule,
    /// Decides every jitter.
    pub seed: u64,
    /// Whether peers are followed without being asked to.
    pub background: bool,
    /// Whether artifacts that are not mirrored are looked for.
    pub check: CheckAvailability,
}

/// What a caller still waits for of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Pull,
    Mirror,
}

struct Waiting {
    /// Whether the artifacts are waited for as well.
    mirror: bool,
    pending: BTreeMap<Did, Phase>,
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
    /// Whose artifacts an operator asked for.
    mirror_wanted: BTreeSet<Did>,
    /// Mirror runs under way; with the pull to mirror again after them, because an operator asked meanwhile.
    mirroring: BTreeMap<Did, Option<PeerReport>>,
    /// What each peer listed last.
    held_lists: BTreeMap<Did, HeldList>,
    /// Who holds which log, and who of them gave false bytes.
    holdings: Holdings,
    /// What the last run for each peer found of what it announces.
    available: BTreeMap<Did, Availability>,
    /// Who is listened to.
    watching: Watching,
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
            core: core(&options),
            options,
            roster,
            puller,
            mirror,
            store,
            metrics,
            waiting: Vec::new(),
            mirror_wanted: BTreeSet::new(),
            mirroring: BTreeMap::new(),
            held_lists: BTreeMap::new(),
            holdings: Holdings::default(),
            available: BTreeMap::new(),
            watching: Watching::default(),
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
        let Some(wake) = self.core.next_wake() else {
            return;
        };
        // However far the clock was when the next try was set, it is looked at again within the longest wait.
        let wait = wake
            .since(self.puller.clock.now())
            .clamp(SHORTEST_SLEEP, MAX_RETRY);
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
        let last = self.held_lists.remove(&did);
        let pull = self.puller.clone().pull(peer, listed, last);
        ctx.spawn(
            pull.into_actor(self)
                .map(|report, this, ctx| this.pulled(report, ctx)),
        );
    }

    /// A pull has ended: its slot is free at once. Artifacts follow beside the next pulls; who asked for them waits.
    fn pulled(&mut self, mut report: PeerReport, ctx: &mut Context<Self>) {
        let did = report.did;
        let peer = self.roster.peer(&did).cloned();
        let again = self.mirror_wanted.remove(&did);
        let keeps = peer
            .as_ref()
            .is_some_and(|peer| again || peer.mirror || self.mirroring.contains_key(&did));
        let looks = mirroring::looking(self.options.check).filter(|_| peer.is_some());
        let work = if keeps { Some(Work::Keep) } else { looks };
        if peer.is_some() {
            self.holdings.note(&report);
        }
        if let Some(list) = report.list.take().filter(|_| peer.is_some()) {
            self.held_lists.insert(did, list);
        }
        if !keeps && !self.holdings.is_charged(&did) {
            // What an earlier run found is nothing that this peer is followed for any more.
            let outcome = Outcome::Verified;
            self.step(Input::Mirrored { peer: did, outcome }, ctx);
        }
        if report.entries > 0 {
            self.step(Input::Grew(did), ctx);
        }
        let outcome = report.outcome.clone();
        self.step(Input::Finished { peer: did, outcome }, ctx);
        if let Some(peer) = &peer {
            self.listen_to(peer, &report, ctx);
        }
        report.state = self.state(&did);
        self.tell(&report);
        let reached = !matches!(report.outcome, Outcome::Unreachable(_));
        let work = work.filter(|_| reached && report.base.is_some());
        report.availability = self.available.get(&did).cloned();
        self.report(&report, work.is_some() && (again || !keeps));
        if let Some(work) = work {
            self.mirror(report, work, again, ctx);
        }
    }

    /// Mirrors, or looks for, what the pull brought; one run a peer at a time.
    fn mirror(&mut self, report: PeerReport, work: Work, again: bool, ctx: &mut Context<Self>) {
        let did = report.did;
        if let Some(next) = self.mirroring.get_mut(&did) {
            // The run under way sees what is new; only an operator's wish wants a run of its own.
            if again {
                *next = Some(report);
            }
            return;
        }
        let Some((base, peer)) = report.base.clone().zip(self.roster.peer(&did)) else {
            return;
        };
        let trust = match peer.url {
            Some(_) => Trust::Operator,
            None => Trust::Stranger,
        };
        let listed = &self.roster.roster().peers;
        let log = |publisher: Did, counts: bool| {
            let first = Holder {
                did,
                base: base.clone(),
                trust,
            };
            let holders = self
                .holdings
                .holders(publisher, first, listed, &self.puller);
            MirroredLog {
                publisher,
                counts,
                holders,
            }
        };
        let counts = |publisher: &Did| listed.iter().all(|peer| peer.did != *publisher);
        let held = report.held.iter().map(|held| held.did);
        let held = held.map(|publisher| log(publisher, counts(&publisher)));
        let job = Mirroring {
            peer: did,
            logs: std::iter::once(log(did, false)).chain(held).collect(),
            work,
            budget: self.puller.limits.max_held_bytes,
            again,
            now: self.puller.clock.now(),
        };
        self.mirroring.insert(did, None);
        let run = mirroring::run(self.mirror.clone(), job);
        ctx.spawn(run.into_actor(self).map(move |mirrored, this, ctx| {
            this.mirrored(report, work, mirrored, ctx);
        }));
    }

    /// A mirror run has ended.
    fn mirrored(
        &mut self,
        mut report: PeerReport,
        work: Work,
        mirrored: Mirrored,
        ctx: &mut Context<Self>,
    ) {
        let did = report.did;
        let Mirrored {
            report: mirrored,
            outcome,
            charges,
        } = mirrored;
        let next = self.mirroring.remove(&did).flatten();
        let availability = mirrored.availability.clone();
        self.available.insert(did, availability.clone());
        report.availability = Some(availability);
        report.mirrored = (work == Work::Keep).then_some(mirrored);
        for peer in self.holdings.charge(did, &charges) {
            let outcome = Outcome::Verified;
            self.step(Input::Mirrored { peer, outcome }, ctx);
        }
        for (peer, reason) in charges {
            warn!(%peer, code = reason.code, reason = reason.detail, "a holder gave false bytes");
            let outcome = Outcome::Refused(reason);
            self.step(Input::Mirrored { peer, outcome }, ctx);
        }
        if let (Outcome::Refused(reason) | Outcome::Local(reason), None) = (&outcome, &report.error)
        {
            warn!(peer = %did, code = reason.code, reason = reason.detail, "mirror run failed");
            report.error = Some(reason.clone());
            report.status = "failed";
        }
        self.step(Input::Mirrored { peer: did, outcome }, ctx);
        report.state = self.state(&did);
        match next {
            // Whoever waits asked after this run had begun, or can wait for the next one as well.
            Some(next) => self.mirror(next, Work::Keep, true, ctx),
            None => self.report_mirrored(&report),
        }
    }

    fn state(&self, did: &Did) -> &'static str {
        self.core
            .health(did)
            .map_or(PeerState::New, |(health, _)| health.state)
            .name()
    }

    /// Answers whoever waits for this pull; who waits for a mirror run that follows it waits on.
    fn report(&mut self, report: &PeerReport, mirrors: bool) {
        for waiting in &mut self.waiting {
            match waiting.pending.get_mut(&report.did) {
                Some(phase) if waiting.mirror && mirrors => *phase = Phase::Mirror,
                Some(Phase::Pull) => {
                    waiting.pending.remove(&report.did);
                    waiting.reports.push(report.clone());
                }
                _ => {}
            }
        }
        self.answer();
    }

    fn report_mirrored(&mut self, report: &PeerReport) {
        for waiting in &mut self.waiting {
            if waiting.pending.get(&report.did) == Some(&Phase::Mirror) {
                waiting.pending.remove(&report.did);
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
            waiting.pending.retain(|did, _| followed.contains(did));
        }
        self.held_lists.retain(|did, _| followed.contains(did));
        self.holdings.retain(|did| followed.contains(did));
        self.available.retain(|did, _| followed.contains(did));
        self.listen_to_no_other(&followed, ctx);
        self.answer();
        self.step(Input::Roster(roster), ctx);
    }

    fn known_health(&self, did: &Did) -> Option<PeerHealth> {
        self.store.get(Tree::Peers, did.public_key()).ok().flatten()
    }

    fn put(&mut self, message: PutPeer, ctx: &mut Context<Self>) -> Result<PeerView, SyncError> {
        let peer = message.peer;
        let did = peer.did;
        if did == self.puller.catalog.own() {
            return Err(SyncError::Ourselves(did));
        }
        // What a presence says is a stranger's word at every pull; in the roster it would pass for the operator's.
        if peer.url.is_none() && self.puller.known_url(&did).is_none() {
            return Err(SyncError::Unresolved(did));
        }
        self.roster.put(&peer)?;
        self.follow_roster(ctx);
        if self.options.background {
            self.step(Input::Refresh(Some(did)), ctx);
        }
        Ok(self.view(&peer))
    }

    fn view(&self, peer: &RosterPeer) -> PeerView {
        PeerView {
            availability: self.available.get(&peer.did).cloned(),
            ..PeerView::new(peer, self.core.health(&peer.did), &self.puller)
        }
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
            mirror: message.mirror || self.options.check != CheckAvailability::Off,
            pending: pending.into_iter().map(|did| (did, Phase::Pull)).collect(),
            reports: Vec::new(),
            reply,
        });
        self.answer();
        self.step(Input::Refresh(message.peer), ctx);
        Ok(answer)
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
        self.core = core(&self.options);
        self.waiting.clear();
        self.mirror_wanted.clear();
        self.mirroring.clear();
        self.held_lists.clear();
        self.holdings = Holdings::default();
        self.available.clear();
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
        self.options.check = message.check;
        self.puller.limits = message.limits;
        self.core
            .reschedule(message.schedule, self.puller.clock.now());
        // More may run at once now.
        self.step(Input::Tick, ctx);
    }
}

fn core(options: &SyncOptions) -> Federation {
    let core = Federation::new(options.schedule, options.seed);
    if options.background {
        core
    } else {
        core.on_request()
    }
}

/// The failpoint at the start of each message.
fn strike() {
    if let Err(error) = failpoint::hit("actor.federation_sync") {
        warn!(%error, "failpoint");
    }
}
