//! Recovers our own log from whoever holds it, and keeps the gate in front of its signatures.
//!
//! Decisions live in [`hn_protocol::recovery`]; this file performs them: it asks the roster's peers, adopts what they
//! have, keeps the troubles in the home's [`PlaceMarker`], and moves the federator's gate. While the gate is open it
//! sleeps.

mod messages;
mod view;

use std::time::Duration;

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, MessageResult, Recipient,
    ResponseActFuture, SpawnHandle, Supervised, WrapFuture,
};
use hn_protocol::did::Did;
use hn_protocol::log::History;
use hn_protocol::recovery::{Answer, Effect, Input, Phase, Recovery, Troubles};
use hn_protocol::time::Timestamp;
use tokio::sync::oneshot;
use tracing::{info, warn};

pub use messages::{AskHolders, GetRecovery, OwnHeadSeen, RecoverError, ResetLog, ResumeLog};
pub use view::{HolderView, ReasonView, RecoveryView};

use crate::failpoint;
use crate::home::Home;
use crate::index_federator::{
    CheckOwnLog, FederateError, Gate, MendOwnLog, OwnStanding, ResetOwnLog, SetGate,
};
use crate::place::PlaceMarker;
use crate::pull::Puller;
use crate::roster::RosterFile;

/// How often the roster and a damaged journal are looked at while the log is being recovered.
const LOOK: Duration = Duration::from_secs(2);
/// The shortest timer: what is due at once is begun at once, not by a timer.
const SHORTEST_SLEEP: Duration = Duration::from_millis(5);
/// How often, and how soon, a move of the gate is tried again that was lost with a panic of the federator.
const GATE_TRIES: usize = 50;
/// The federator is back within a second.
const GATE_RETRY: Duration = Duration::from_millis(100);
/// How long an operator waits for whoever is asked again: a peer has 10 s for its answer.
const RESUME_WAIT: Duration = Duration::from_secs(12);

/// What is known of a home before its log is opened.
pub struct RecoveryStart {
    core: Recovery,
    roster: RosterFile,
    marker: PlaceMarker,
    own: Did,
    on_request: bool,
}

impl RecoveryStart {
    /// Looks at the home's marker and roster.
    #[must_use]
    pub fn look(home: &Home, alias: &str, own: Did, now: Timestamp) -> Self {
        let marker = PlaceMarker::new(&home.identity_dir(alias));
        let mut roster = RosterFile::new(home.federation_toml());
        roster.poll();
        let troubles = marker.read();
        for (code, reason) in troubles.reasons() {
            warn!(
                code,
                reason, "the own log is recovered before anything is signed"
            );
        }
        let core = Recovery::new(
            troubles,
            &named(&roster, own),
            roster.error().is_none(),
            now,
        );
        Self {
            core,
            roster,
            marker,
            own,
            on_request: false,
        }
    }

    /// Asks nobody before [`AskHolders`]: for a node that lives as long as one command, which may sign nothing.
    #[must_use]
    pub const fn on_request(mut self, on_request: bool) -> Self {
        self.on_request = on_request;
        self
    }

    /// The gate to begin with.
    #[must_use]
    pub fn gate(&self) -> Gate {
        gate(&self.core)
    }
}

/// To whom the recovery may send what.
#[derive(Clone)]
pub struct OwnLogLinks {
    /// Move the gate.
    pub gate: Recipient<SetGate>,
    /// How the log stands.
    pub check: Recipient<CheckOwnLog>,
    /// Go on from what is good.
    pub mend: Recipient<MendOwnLog>,
    /// Begin a new epoch.
    pub reset: Recipient<ResetOwnLog>,
}

/// The actor.
pub struct LogRecovery {
    core: Recovery,
    roster: RosterFile,
    marker: PlaceMarker,
    own: Did,
    puller: Puller,
    links: OwnLogLinks,
    /// Nobody is asked yet.
    on_request: bool,
    /// Moves of the gate that wait for those before them.
    moves: Vec<Move>,
    moving: bool,
    /// Who waits until nothing is under way.
    waiting: Vec<oneshot::Sender<RecoveryView>>,
    timer: Option<SpawnHandle>,
}

/// A move of the gate, and what has to be durable around it.
enum Move {
    Wait,
    Close(String, Troubles),
    Open,
    Settle(u64),
}

impl LogRecovery {
    /// Begins where `start` says.
    #[must_use]
    pub fn new(start: RecoveryStart, puller: Puller, links: OwnLogLinks) -> Self {
        let RecoveryStart {
            core,
            roster,
            marker,
            own,
            on_request,
        } = start;
        Self {
            core,
            roster,
            marker,
            own,
            puller,
            links,
            on_request,
            moves: Vec::new(),
            moving: false,
            waiting: Vec::new(),
            timer: None,
        }
    }

    /// The core as after a start, with what is known to be wrong.
    fn begin(&mut self) {
        let known = self.core.troubles();
        let troubles = if known.any() {
            known.clone()
        } else {
            self.marker.read()
        };
        let named = named(&self.roster, self.own);
        let whole = self.roster.error().is_none();
        self.core = Recovery::new(troubles, &named, whole, self.now());
    }

    /// From now on holders are asked, as after a start.
    fn ask_unasked(&mut self) {
        if std::mem::take(&mut self.on_request) {
            self.begin();
        }
    }

    fn now(&self) -> Timestamp {
        self.puller.clock.now()
    }

    fn step(&mut self, input: Input, ctx: &mut Context<Self>) {
        let mut moves = Vec::new();
        for effect in self.core.handle(input, self.now()) {
            match effect {
                Effect::Ask(holder) => self.ask(holder, false, ctx),
                Effect::Adopt(holder) => self.ask(holder, true, ctx),
                Effect::Wait => moves.push(Move::Wait),
                Effect::Close => {
                    let troubles = self.core.troubles().clone();
                    moves.push(Move::Close(sentence(&troubles), troubles));
                }
                Effect::Open => moves.push(Move::Open),
                Effect::Settle { above } => moves.push(Move::Settle(above)),
            }
        }
        if !moves.is_empty() {
            self.perform(moves, ctx);
        }
        if self.core.is_idle() {
            let view = self.view();
            for waiting in std::mem::take(&mut self.waiting) {
                let _ = waiting.send(view.clone());
            }
        }
        self.arm(ctx);
    }

    /// Moves the gate, one move after the other in the order in which they were decided, and nothing else meanwhile.
    fn perform(&mut self, moves: Vec<Move>, ctx: &mut Context<Self>) {
        self.moves.extend(moves);
        if !self.moving {
            self.move_on(ctx);
        }
    }

    fn move_on(&mut self, ctx: &mut Context<Self>) {
        let moves = std::mem::take(&mut self.moves);
        self.moving = !moves.is_empty();
        if moves.is_empty() {
            return;
        }
        let (links, marker) = (self.links.clone(), self.marker.clone());
        let performing = async move {
            let mut settled = None;
            for step in moves {
                match step {
                    Move::Wait => send_gate(&links, Gate::Asking).await,
                    Move::Close(reason, troubles) => {
                        warn!(reason, "the own log is recovering: nothing is signed");
                        send_gate(&links, Gate::Closed(reason)).await;
                        if let Err(error) = write_marker(&marker, troubles).await {
                            // Closed it is all the same; a restart would ask as every start does.
                            warn!(%error, "why the own log is recovered was not kept");
                        }
                    }
                    Move::Open => send_gate(&links, Gate::Open).await,
                    Move::Settle(above) => {
                        let outcome = settle(&links, &marker, above).await;
                        if let Err(error) = &outcome {
                            warn!(%error, "the recovery could not be ended; it is tried again");
                        }
                        settled = Some(outcome.is_ok());
                    }
                }
            }
            settled
        };
        ctx.wait(performing.into_actor(self).map(|settled, this, ctx| {
            if let Some(done) = settled {
                this.step(Input::Settled { done }, ctx);
                if this.core.phase() == Phase::Open {
                    info!("the own log is recovered");
                }
            }
            this.move_on(ctx);
        }));
    }

    /// Asks a holder; with `adopt` what it has is appended first.
    fn ask(&mut self, holder: Did, adopt: bool, ctx: &mut Context<Self>) {
        let Some(peer) = self.roster.peer(&holder).cloned() else {
            let why = "it is not in the roster any more".to_owned();
            let answer = Answer::Failed { why };
            // Not from within the step that asks.
            ctx.spawn(std::future::ready(answer).into_actor(self).map(
                move |answer, this: &mut Self, ctx| {
                    this.step(Input::Answered { holder, answer }, ctx);
                },
            ));
            return;
        };
        let (links, puller) = (self.links.clone(), self.puller.clone());
        let asking = async move {
            let mut failure = None;
            if adopt {
                failure = puller.adopt_own(&peer).await.err();
            }
            let standing = links.check.send(CheckOwnLog).await.ok()?;
            let answer = puller.ask_own(&peer, &standing.state).await;
            Some((standing, answer, failure))
        };
        ctx.spawn(asking.into_actor(self).map(move |asked, this, ctx| {
            let failed = |why: String| Answer::Failed { why };
            let answer = match asked {
                None => failed(FederateError::Restarting.to_string()),
                Some((standing, answer, failure)) => {
                    this.log_is(standing, ctx);
                    match (answer, failure) {
                        // What it has could not be had: asked again later, not at once.
                        (Answer::Beyond, Some(why)) => failed(why),
                        (answer, _) => answer,
                    }
                }
            };
            this.step(Input::Answered { holder, answer }, ctx);
        }));
    }

    fn log_is(&mut self, standing: OwnStanding, ctx: &mut Context<Self>) {
        let input = Input::Log {
            extent: (&standing.state).into(),
            damaged: standing.damaged,
            reach: standing.reach,
        };
        self.step(input, ctx);
    }

    /// Begins, once the log has been read: that may take longer than holders are given.
    fn ask_first(&self, ctx: &mut Context<Self>) {
        let check = self.links.check.send(CheckOwnLog);
        ctx.spawn(check.into_actor(self).map(|standing, this, ctx| {
            this.core.ask_from(this.now());
            if let Ok(standing) = standing {
                this.log_is(standing, ctx);
            }
            this.step(Input::Tick, ctx);
        }));
    }

    fn read_roster(&mut self, ctx: &mut Context<Self>) {
        let before = self.roster.error().is_some();
        if self.roster.poll() || self.roster.error().is_some() != before {
            let named = named(&self.roster, self.own);
            let known = self.roster.error().is_none();
            self.step(Input::Holders { named, known }, ctx);
        }
    }

    fn arm(&mut self, ctx: &mut Context<Self>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        if self.core.phase() == Phase::Open {
            return;
        }
        let due = self.core.next_wake().map(|wake| wake.since(self.now()));
        let wait = due.unwrap_or(LOOK).clamp(SHORTEST_SLEEP, LOOK);
        self.timer = Some(ctx.run_later(wait, |this, ctx| {
            this.timer = None;
            this.tick(ctx);
        }));
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        self.read_roster(ctx);
        if self.core.troubles().damaged.is_some() {
            // Somebody may have mended it by hand.
            let check = self.links.check.send(CheckOwnLog);
            ctx.spawn(check.into_actor(self).map(|standing, this, ctx| {
                if let Ok(standing) = standing {
                    this.log_is(standing, ctx);
                }
                this.step(Input::Tick, ctx);
            }));
        } else {
            self.step(Input::Tick, ctx);
        }
    }

    /// The view once nothing is under way any more, or after [`RESUME_WAIT`].
    fn when_idle(&mut self, ctx: &mut Context<Self>) -> oneshot::Receiver<RecoveryView> {
        let (reply, answer) = oneshot::channel();
        self.waiting.push(reply);
        ctx.run_later(RESUME_WAIT, |this, _| {
            let view = this.view();
            for waiting in std::mem::take(&mut this.waiting) {
                let _ = waiting.send(view.clone());
            }
        });
        answer
    }

    /// Whether a peer's word about our log says something that our log does not.
    fn is_news(&self, seen: &OwnHeadSeen) -> bool {
        let catalog = &self.puller.catalog;
        let Some(view) = catalog.log(&self.own) else {
            return true;
        };
        let state = &view.state;
        if seen.epoch != state.epoch || seen.log_size > state.size() {
            return seen.epoch >= state.epoch;
        }
        let held = catalog
            .history(self.own, state.epoch)
            .root_at(seen.log_size);
        // Of what was pruned here nothing can be said.
        seen.log_size >= state.base && held != Some(seen.log_root)
    }
}

async fn send_gate(links: &OwnLogLinks, gate: Gate) {
    for _ in 0..GATE_TRIES {
        let message = SetGate { gate: gate.clone() };
        if links.gate.send(message).await.is_ok() {
            return;
        }
        // Lost with a panic of the federator, which keeps its gate.
        tokio::time::sleep(GATE_RETRY).await;
    }
    warn!(?gate, "the federator is away; its gate stays where it was");
}

async fn write_marker(marker: &PlaceMarker, troubles: Troubles) -> std::io::Result<()> {
    let marker = marker.clone();
    let writing = move || marker.write(&troubles);
    tokio::task::spawn_blocking(writing)
        .await
        .unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

/// O6: everything durable that says that the log may be signed upon, before anything is signed.
async fn settle(
    links: &OwnLogLinks,
    marker: &PlaceMarker,
    above: u64,
) -> Result<(), FederateError> {
    let mended = links.mend.send(MendOwnLog { above }).await;
    mended.map_err(|_| FederateError::Restarting)??;
    let local = |error: std::io::Error| FederateError::Failed(error.to_string());
    failpoint::hit("recovery.place.before_write").map_err(local)?;
    write_marker(marker, Troubles::default())
        .await
        .map_err(local)?;
    failpoint::hit("recovery.place.after_write").map_err(local)?;
    send_gate(links, Gate::Open).await;
    Ok(())
}

/// Who is asked and waited for.
fn named(roster: &RosterFile, own: Did) -> Vec<Did> {
    let peers = roster.roster().peers.iter();
    peers
        .map(|peer| peer.did)
        .filter(|did| *did != own)
        .collect()
}

fn gate(core: &Recovery) -> Gate {
    match core.phase() {
        Phase::Open => Gate::Open,
        Phase::Asking { .. } => Gate::Asking,
        Phase::Recovering { .. } => Gate::Closed(sentence(core.troubles())),
    }
}

/// Every reason, for people.
fn sentence(troubles: &Troubles) -> String {
    let reasons = troubles.reasons().into_iter().map(|(_, text)| text);
    reasons.collect::<Vec<_>>().join("; ")
}

impl Actor for LogRecovery {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let (links, gate) = (self.links.clone(), gate(&self.core));
        // The gate first: after a restart it may stand elsewhere.
        ctx.wait(async move { send_gate(&links, gate).await }.into_actor(self));
        if !self.on_request {
            self.ask_first(ctx);
        }
    }
}

impl Supervised for LogRecovery {
    /// Why nothing is signed is remembered; who has answered is asked again.
    fn restarting(&mut self, _: &mut Self::Context) {
        self.begin();
        self.moves.clear();
        self.moving = false;
        self.waiting.clear();
        self.timer = None;
    }
}

impl Handler<AskHolders> for LogRecovery {
    type Result = ();

    fn handle(&mut self, _: AskHolders, ctx: &mut Self::Context) {
        strike();
        if self.on_request {
            self.ask_unasked();
            self.ask_first(ctx);
        }
    }
}

impl Handler<GetRecovery> for LogRecovery {
    type Result = MessageResult<GetRecovery>;

    fn handle(&mut self, _: GetRecovery, ctx: &mut Self::Context) -> Self::Result {
        strike();
        if !self.on_request {
            self.read_roster(ctx);
        }
        MessageResult(self.view())
    }
}

impl Handler<ResumeLog> for LogRecovery {
    type Result = ResponseActFuture<Self, Result<RecoveryView, RecoverError>>;

    fn handle(&mut self, message: ResumeLog, ctx: &mut Self::Context) -> Self::Result {
        strike();
        self.ask_unasked();
        self.read_roster(ctx);
        let check = self.links.check.send(CheckOwnLog).into_actor(self);
        let begun = check.map(move |standing, this, ctx| {
            this.log_is(standing.map_err(|_| RecoverError::Restarting)?, ctx);
            if !message.accept_loss {
                this.step(Input::AskAgain, ctx);
            } else if let Some(fork) = &this.core.troubles().forked {
                return Err(RecoverError::Forked(fork.why.clone()));
            } else {
                this.step(Input::AcceptLoss, ctx);
            }
            let waiting = this.when_idle(ctx);
            if this.core.is_idle() {
                this.step(Input::Tick, ctx);
            }
            Ok(waiting)
        });
        Box::pin(begun.then(|waiting, this, _| ended(waiting).into_actor(this)))
    }
}

impl Handler<ResetLog> for LogRecovery {
    type Result = ResponseActFuture<Self, Result<RecoveryView, RecoverError>>;

    fn handle(&mut self, _: ResetLog, _: &mut Self::Context) -> Self::Result {
        strike();
        self.ask_unasked();
        let after = self.core.troubles().reach.epoch;
        let reset = self
            .links
            .reset
            .send(ResetOwnLog { after })
            .into_actor(self);
        let begun = reset.map(|standing, this, ctx| {
            let standing = standing.map_err(|_| RecoverError::Restarting)??;
            let extent = (&standing.state).into();
            this.step(Input::Reset { extent }, ctx);
            let waiting = this.when_idle(ctx);
            if this.core.is_idle() {
                this.step(Input::Tick, ctx);
            }
            Ok(waiting)
        });
        Box::pin(begun.then(|waiting, this, _| ended(waiting).into_actor(this)))
    }
}

async fn ended(
    waiting: Result<oneshot::Receiver<RecoveryView>, RecoverError>,
) -> Result<RecoveryView, RecoverError> {
    waiting?.await.map_err(|_| RecoverError::Restarting)
}

impl Handler<OwnHeadSeen> for LogRecovery {
    type Result = ();

    fn handle(&mut self, message: OwnHeadSeen, ctx: &mut Self::Context) {
        strike();
        if !self.on_request && self.is_news(&message) {
            let (holder, size) = (message.holder, message.log_size);
            warn!(peer = %holder, size, "a peer lists another head of the own log");
            self.read_roster(ctx);
            self.step(Input::Claimed { holder }, ctx);
        }
    }
}

/// The failpoint at the start of each message.
fn strike() {
    if let Err(error) = failpoint::hit("actor.log_recovery") {
        warn!(%error, "failpoint");
    }
}
