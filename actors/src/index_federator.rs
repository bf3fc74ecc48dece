//! The one writer of every log held: signs and grows our own, appends what was verified of others.
//!
//! Decisions live in `hn_protocol::log`; this file performs them: journal, fsync, Store, catalog, answer, in
//! that order. Readers never come here: they read the [`Catalog`](crate::catalog::Catalog). It has a thread of
//! its own, because an fsync blocks.

mod accept;
mod messages;
mod own;
mod prune;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler, ResponseFuture, SpawnHandle, Supervised};
use hn_protocol::did::{Did, Identity};
use hn_protocol::document::{Endpoints, MAX_ENTRIES, Presence};
use hn_protocol::log::{Commit, CommitRequest, EntryDraft, PresenceFacts, first_presence};
use hn_protocol::sign::Signed;
use hn_protocol::time::Timestamp;
use tokio::sync::oneshot;
use tracing::{error, warn};

pub use accept::{AcceptError, AcceptHead, BeginAnew, HeadAccepted};
pub use messages::{
    Announce, AppendPage, Appended, CheckOwnLog, FederateError, Gate, GetOwnLog, MendOwnLog,
    OwnLog, OwnStanding, PublishEntries, Published, PublishedEntry, Reindex, Reindexed,
    ResetOwnLog, SetGate,
};

use crate::artifacts::Sweeper;
use crate::clock::Clock;
use crate::failpoint;
use crate::forks::Forks;
use crate::logs::{Log, LogError, PathRecord, Place, PrunePolicy, Replayed, Shelf};
use crate::metrics::Metrics;
use crate::vault;

/// Appends within this share a commit (design 4).
const COMMIT_WINDOW: Duration = Duration::from_millis(50);
/// So many entries fill a slice: they do not wait for company.
const COMMIT_AT_ONCE: usize = MAX_ENTRIES;
/// Re-issues without growth come at most so often (design 4).
const REISSUE_PAUSE: Duration = Duration::from_secs(2);
/// A presence that could not be signed or stored is tried again so often: what failed is most likely the disk.
const REISSUE_RETRY: Duration = Duration::from_secs(10);
/// How soon after a commit the readable copy of the presence is written.
const COPY_DELAY: Duration = Duration::from_secs(2);
/// The longest that a timer sleeps: a clock that was set meanwhile is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// What the federator is made with.
#[derive(Clone)]
pub struct FederatorOptions {
    /// Signs for this node.
    pub identity: Identity,
    /// Its alias: names its folders.
    pub alias: String,
    /// How long a presence counts as current.
    pub presence_ttl: Duration,
    /// Time.
    pub clock: Clock,
    /// Counters.
    pub metrics: Metrics,
    /// How much is kept of followed logs.
    pub prune: PrunePolicy,
    /// Removes what only pruned entries named.
    pub sweeper: Sweeper,
    /// Whose logs stand still, and what an operator accepted.
    pub forks: Forks,
    /// Whether the own log may be signed upon from the beginning.
    pub gate: Gate,
}

struct Waiting {
    entries: Vec<EntryDraft>,
    reply: oneshot::Sender<Result<Published, FederateError>>,
}

/// The actor.
pub struct IndexFederator {
    options: FederatorOptions,
    shelf: Shelf,
    own: Option<Log>,
    held: HashMap<Did, Log>,
    endpoints: Option<Endpoints>,
    /// Kept through restarts: a panic opens nothing.
    gate: Gate,
    /// The presence is due whatever it says.
    renew: bool,
    /// The own journal's folder, when it was damaged.
    looked_at: Option<own::LookedAt>,
    waiting: Vec<Waiting>,
    commit_timer: Option<SpawnHandle>,
    copy_timer: Option<SpawnHandle>,
    reissue_timer: Option<SpawnHandle>,
    /// Logs that cannot be opened, and why.
    unreadable: BTreeMap<Did, String>,
}

impl IndexFederator {
    /// Loads every log held. Errors are kept and told to whoever asks, so that the node still serves what it can.
    #[must_use]
    pub fn new(options: FederatorOptions, shelf: Shelf) -> Self {
        let mut federator = Self {
            gate: options.gate.clone(),
            renew: false,
            looked_at: None,
            options,
            shelf,
            own: None,
            held: HashMap::new(),
            endpoints: None,
            waiting: Vec::new(),
            commit_timer: None,
            copy_timer: None,
            reissue_timer: None,
            unreadable: BTreeMap::new(),
        };
        federator.show_gate();
        federator.load();
        federator
    }

    /// What boot, restart and reindex have in common. A log that cannot be opened hides no other.
    fn load(&mut self) -> Reindexed {
        self.held.clear();
        self.unreadable.clear();
        let mut found = Reindexed::default();
        match self.open_own() {
            Ok(replayed) => add(&mut found, replayed),
            Err(error) => self.cannot_open(self.options.identity.did(), &error),
        }
        let publishers = self.shelf.home.cached_publishers().unwrap_or_else(|error| {
            error!(%error, "the folder of followed logs cannot be read");
            Vec::new()
        });
        for publisher in publishers {
            match self.shelf.open(publisher, Place::Cached) {
                Ok((log, replayed)) => {
                    add(&mut found, replayed);
                    self.held.insert(publisher, log);
                    // A crash between an operator's decision and what follows from it.
                    if let Err(error) = self.set_aside_if_refused(publisher, false) {
                        error!(log = %publisher, %error, "a log that was not accepted was not set aside");
                    }
                }
                Err(error) => self.cannot_open(publisher, &error),
            }
        }
        found
    }

    fn cannot_open(&mut self, publisher: Did, error: &LogError) {
        error!(log = %publisher, %error, "a log cannot be opened");
        self.unreadable.insert(publisher, error.to_string());
    }

    /// Reads our own log back; what was in memory of it counts no more.
    fn open_own(&mut self) -> Result<Replayed, LogError> {
        self.own = None;
        let place = Place::Own(self.options.alias.clone());
        let (mut own, replayed) = self.shelf.open(self.options.identity.did(), place)?;
        if let Some(newest) = self.copied_presence().filter(|newest| {
            own.state()
                .presence
                .is_none_or(|held| held.sequence < newest.sequence)
        }) {
            // Signed and fsynced once, and not in the journal any more: to sign on would fork the log.
            let (held, said) = (own.state().size(), newest.log_size);
            own.mark_damaged(format!(
                "the journal ends at {held} entries, before the newest presence of {said}"
            ));
        }
        self.options.metrics.log_size(own.state().size());
        self.own = Some(own);
        Ok(replayed)
    }

    fn own(&mut self) -> Result<&mut Log, FederateError> {
        // What could not be read when it was tried last may be readable now: a full disk may have space again.
        if self.own.as_ref().is_none_or(|log| log.damaged().is_some()) {
            self.open_own()?;
        }
        let log = self.own.as_mut().ok_or(FederateError::Restarting)?;
        match log.damaged() {
            Some(reason) => Err(FederateError::Recovering(reason.to_owned())),
            None => Ok(log),
        }
    }

    fn facts(&self) -> PresenceFacts {
        let last = self
            .own
            .as_ref()
            .and_then(|log| Signed::<Presence>::verify(log.presence().clone()).ok());
        // Before the first serve there is no endpoint; between two serves the last one stands.
        let endpoints = self
            .endpoints
            .clone()
            .or_else(|| last.map(|p| p.endpoints.clone()));
        PresenceFacts {
            endpoints: endpoints.unwrap_or_default(),
            services: Vec::new(),
            relay: None,
            ttl_ms: u64::try_from(self.options.presence_ttl.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Signs and makes durable: `entries`, and a presence that covers them; before the first, presence no. 1.
    fn sign(&mut self, entries: Vec<EntryDraft>) -> Result<(), FederateError> {
        self.check_gate()?;
        let (now, facts) = (self.options.clock.now(), self.facts());
        let identity = self.options.identity.clone();
        let log = self.own()?;
        if log.state().presence.is_none() {
            let first = first_presence(&identity, log.state().epoch, &facts, now)?;
            self.keep(&first, now)?;
            if entries.is_empty() {
                return Ok(());
            }
        }
        let appended = entries.len() as u64;
        let request = CommitRequest {
            entries,
            facts: &facts,
            now,
        };
        let commit = self.own()?.state().commit(request, &identity)?;
        self.keep(&commit, now)?;
        self.options.metrics.log_grew(commit.state.size(), appended);
        Ok(())
    }

    /// Makes a commit durable and visible. When that fails, the log is read back: lines that reached the journal are
    /// in the log, whatever failed behind them, and then all is well.
    fn keep(&mut self, commit: &Commit, now: Timestamp) -> Result<(), FederateError> {
        let log = self.own.as_mut().ok_or(FederateError::Restarting)?;
        let state = commit.state.clone();
        let Err(error) = self.shelf.append(log, &commit.lines, state, now, Some(now)) else {
            return Ok(());
        };
        warn!(%error, "commit failed; the own log is read back");
        self.open_own()?;
        if *self.own()?.state() == commit.state {
            return Ok(());
        }
        Err(error.into())
    }

    /// Whether the presence does not say what it should: the log's size, the endpoints, and for long enough.
    fn presence_is_due(&self) -> bool {
        let Some(log) = self.own.as_ref().filter(|_| !self.renew) else {
            return true;
        };
        let Some(presence) = log.state().presence else {
            return true;
        };
        let left = presence.expires_at.since(self.options.clock.now());
        let moved = self.endpoints.as_ref().is_some_and(|endpoints| {
            Signed::<Presence>::verify(log.presence().clone())
                .is_ok_and(|p| p.endpoints != *endpoints)
        });
        moved || presence.log_size != log.state().size() || left <= self.options.presence_ttl / 2
    }

    /// Nothing while the gate is not open: it is done when it opens. Nothing any more once the DID is revoked.
    fn reissue(&mut self, ctx: &mut Context<Self>) -> Result<(), FederateError> {
        if self.gate != Gate::Open || self.is_revoked() {
            return Ok(());
        }
        let outcome = if self.presence_is_due() {
            self.sign(Vec::new())
        } else {
            Ok(())
        };
        match &outcome {
            Ok(()) => {
                self.renew = false;
                self.copy_later(ctx);
            }
            Err(error) => warn!(%error, "the presence was not re-issued; it is tried again"),
        }
        self.arm_reissue(ctx);
        outcome
    }

    /// At half of its life a presence is re-issued; one that could not be is tried again soon.
    fn arm_reissue(&mut self, ctx: &mut Context<Self>) {
        if let Some(timer) = self.reissue_timer.take() {
            ctx.cancel_future(timer);
        }
        let wait = if self.presence_is_due() {
            REISSUE_RETRY
        } else {
            let presence = self.own.as_ref().and_then(|log| log.state().presence);
            let left = presence
                .map(|p| p.expires_at)
                .unwrap_or_default()
                .since(self.options.clock.now());
            left.saturating_sub(self.options.presence_ttl / 2)
                .clamp(REISSUE_PAUSE, LONGEST_SLEEP)
        };
        self.reissue_timer = Some(ctx.run_later(wait, |this, ctx| {
            this.reissue_timer = None;
            // What went wrong is in the log, and the timer is armed again.
            let _ = this.reissue(ctx);
        }));
    }

    /// `presence/<alias>/presence.json` is a copy for people and backups; the journal is the truth.
    fn copy_later(&mut self, ctx: &mut Context<Self>) {
        if self.copy_timer.is_none() {
            self.copy_timer = Some(ctx.run_later(COPY_DELAY, |this, _| {
                this.copy_timer = None;
                this.copy_presence();
            }));
        }
    }

    /// Our newest presence as it was copied; nothing when there is none, or it is another DID's.
    fn copied_presence(&self) -> Option<Signed<Presence>> {
        let path = self.shelf.home.presence_file(&self.options.alias);
        let presence = Signed::<Presence>::verify(std::fs::read(path).ok()?.into()).ok()?;
        (presence.did == self.options.identity.did()).then_some(presence)
    }

    fn copy_presence(&self) {
        let Some(log) = self.own.as_ref().filter(|log| log.damaged().is_none()) else {
            return;
        };
        let path = self.shelf.home.presence_file(&self.options.alias);
        let folder = self.shelf.home.presence_dir(&self.options.alias);
        let written = vault::create_dirs(&folder)
            .and_then(|()| vault::write_atomic(&path, log.presence(), vault::FILE_MODE));
        if let Err(error) = written {
            warn!(%error, "the copy of the presence was not written");
        }
    }

    fn commit(&mut self, ctx: &mut Context<Self>) {
        if let Some(timer) = self.commit_timer.take() {
            ctx.cancel_future(timer);
        }
        match self.check_gate() {
            Err(error) if self.gate != Gate::Asking || self.is_revoked() => {
                return self.refuse_waiting(&error);
            }
            // Until it opens or closes.
            Err(_) => return,
            Ok(()) => {}
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        let outcome = self.plan(&mut waiting).and_then(|plan| {
            if !plan.fresh.is_empty() {
                self.sign(plan.fresh)?;
                self.copy_later(ctx);
            }
            Ok(plan.answers)
        });
        let own = self
            .own
            .as_ref()
            .map(|log| (log.state().size(), log.state().root()));
        match (outcome, own) {
            (Ok(answers), Some((log_size, log_root))) => {
                for (wait, published) in waiting.into_iter().zip(answers) {
                    let _ = wait.reply.send(Ok(Published {
                        published,
                        log_size,
                        log_root,
                    }));
                }
            }
            (outcome, _) => {
                let error = outcome.err().unwrap_or(FederateError::Restarting);
                for wait in waiting {
                    let _ = wait.reply.send(Err(error.clone()));
                }
            }
        }
    }

    /// Decides which entries are new, and what each caller will be told.
    fn plan(&mut self, waiting: &mut [Waiting]) -> Result<Plan, FederateError> {
        let shelf = self.shelf.clone();
        let log = self.own()?;
        let mut plan = Plan::default();
        let mut paths: BTreeMap<String, PathRecord> = BTreeMap::new();
        for wait in waiting {
            let mut answer = Vec::with_capacity(wait.entries.len());
            for mut draft in std::mem::take(&mut wait.entries) {
                let earlier = match paths.get(&draft.path) {
                    Some(record) => Some(*record),
                    None => shelf.path(log, &draft.path)?,
                };
                let existing = earlier.filter(|record| record.digest == draft.digest);
                let seq = existing.map_or(log.state().size() + plan.fresh.len() as u64, |record| {
                    record.seq
                });
                let status = if existing.is_some() {
                    "existing"
                } else {
                    "appended"
                };
                answer.push(PublishedEntry {
                    seq,
                    digest: draft.digest,
                    path: draft.path.clone(),
                    status,
                });
                if existing.is_none() {
                    draft.replaces = earlier.map(|record| record.seq);
                    paths.insert(
                        draft.path.clone(),
                        PathRecord {
                            seq,
                            digest: draft.digest,
                        },
                    );
                    plan.fresh.push(draft);
                }
            }
            plan.answers.push(answer);
        }
        Ok(plan)
    }

    fn append_page(&mut self, mut message: AppendPage) -> Result<Appended, FederateError> {
        let publisher = message.base.publisher;
        if self.shelf.catalog.is_revoked(&publisher) {
            // V5, also for a page that was judged before the revocation came.
            let left = message.page.after_revocation();
            let taken = left.map(|_| Appended::Taken);
            return taken.map_err(|_| FederateError::Revoked(publisher));
        }
        if publisher == self.options.identity.did() {
            return self.append_own(message);
        }
        failpoint::hit("sync.page.before_append").map_err(LogError::from)?;
        if !self.held.contains_key(&publisher) {
            let (log, _) = self.shelf.open(publisher, Place::Cached)?;
            self.unreadable.remove(&publisher);
            self.held.insert(publisher, log);
        }
        let Some(log) = self.held.get_mut(&publisher) else {
            return Err(FederateError::Restarting);
        };
        if let Some(reason) = log.damaged().map(str::to_owned) {
            // The next page finds it read again, and whole if the disk allows.
            self.held.remove(&publisher);
            return Err(FederateError::Failed(reason));
        }
        prune::rebase(log.state(), &mut message);
        let base = &message.base;
        // Another epoch begins on top of nothing, wherever the one before ends.
        let begins = base.epoch > log.state().epoch && log.state().next_epoch(base.epoch) == *base;
        if log.state() != base && !begins {
            return Ok(Appended::Overtaken);
        }
        let (page, now) = (message.page, self.options.clock.now());
        let outcome = self
            .shelf
            .append(log, &page.lines, page.state, now, message.seen);
        if let Err(error) = outcome {
            warn!(%error, log = %publisher, "a page was not appended; the log is read back");
            self.held.remove(&publisher);
            let (log, _) = self.shelf.open(publisher, Place::Cached)?;
            self.held.insert(publisher, log);
            return Err(error.into());
        }
        Ok(Appended::Taken)
    }
}

#[derive(Default)]
struct Plan {
    fresh: Vec<EntryDraft>,
    answers: Vec<Vec<PublishedEntry>>,
}

fn add(found: &mut Reindexed, replayed: Replayed) {
    found.logs += 1;
    found.slices += replayed.slices;
    found.entries += replayed.entries;
}

impl Actor for IndexFederator {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // A crash may have come between a pruning and the removal of what it leaves without a name.
        let pruned = self.held.values().filter(|log| log.state().base > 0);
        for log in pruned {
            self.options.sweeper.sweep(log.state().publisher);
        }
        // Presence no. 1 of a new log, or the covering presence that a crash has kept from being written.
        let _ = self.reissue(ctx);
        self.watch_age(ctx);
    }

    fn stopping(&mut self, _: &mut Self::Context) -> actix::Running {
        if self.copy_timer.is_some() {
            self.copy_presence();
        }
        actix::Running::Stop
    }
}

impl Supervised for IndexFederator {
    /// Memory may be wrong after a panic; what was saved is not.
    fn restarting(&mut self, _: &mut Self::Context) {
        self.waiting.clear();
        self.commit_timer = None;
        self.copy_timer = None;
        self.reissue_timer = None;
        self.load();
    }
}

impl Handler<PublishEntries> for IndexFederator {
    type Result = ResponseFuture<Result<Published, FederateError>>;

    fn handle(&mut self, message: PublishEntries, ctx: &mut Self::Context) -> Self::Result {
        strike();
        // A bad entry refuses its own request, never its neighbours' in the same commit.
        if let Some(error) = message.entries.iter().find_map(|entry| entry.check().err()) {
            return Box::pin(async move { Err(error.into()) });
        }
        let closed = matches!(self.gate, Gate::Closed(_)) || self.is_revoked();
        if let (true, Err(error)) = (closed, self.check_gate()) {
            return Box::pin(async move { Err(error) });
        }
        let (reply, answer) = oneshot::channel();
        self.waiting.push(Waiting {
            entries: message.entries,
            reply,
        });
        let queued: usize = self.waiting.iter().map(|wait| wait.entries.len()).sum();
        if queued >= COMMIT_AT_ONCE {
            self.commit(ctx);
        } else if self.commit_timer.is_none() {
            self.commit_timer = Some(ctx.run_later(COMMIT_WINDOW, |this, ctx| {
                this.commit_timer = None;
                this.commit(ctx);
            }));
        }
        Box::pin(async move { answer.await.unwrap_or(Err(FederateError::Restarting)) })
    }
}

impl Handler<AppendPage> for IndexFederator {
    type Result = Result<Appended, FederateError>;

    fn handle(&mut self, message: AppendPage, _: &mut Self::Context) -> Self::Result {
        strike();
        let publisher = message.base.publisher;
        let appended = self.append_page(message);
        if matches!(appended, Ok(Appended::Taken)) {
            self.prune(publisher);
        }
        appended
    }
}

impl Handler<Announce> for IndexFederator {
    type Result = Result<(), FederateError>;

    fn handle(&mut self, message: Announce, ctx: &mut Self::Context) -> Self::Result {
        strike();
        self.endpoints = Some(message.endpoints);
        self.own()?;
        self.reissue(ctx)
    }
}

impl Handler<Reindex> for IndexFederator {
    type Result = Result<Reindexed, FederateError>;

    fn handle(&mut self, _: Reindex, ctx: &mut Self::Context) -> Self::Result {
        strike();
        self.shelf.store.clear_all().map_err(LogError::from)?;
        let found = self.load();
        let _ = self.reissue(ctx);
        match self.unreadable.values().next() {
            Some(reason) => Err(FederateError::Failed(reason.clone())),
            None => Ok(found),
        }
    }
}

/// The failpoint at the start of each message. A panic is what the supervisor is there for.
fn strike() {
    if let Err(error) = failpoint::hit("actor.index_federator") {
        warn!(%error, "failpoint");
    }
}
