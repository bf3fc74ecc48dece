//! Which peer is asked when, and what its state is: the decision core of following (design 4).
//!
//! `handle(input, now) -> effects`. The shell performs the effects (start a pull, tell of a change) and
//! feeds back what happened. Time and chance come from outside; the same inputs give the same effects.
//!
//! ```text
//!   new ──ok──► healthy ──no answer──► unreachable ──ok──► healthy
//!    └─────────────┴──a failed check──► stale ────────ok──► healthy
//!
//!   recovering, reset: what the peer says of itself, until an answer verifies
//!   forked:            stays, answered or not, until the operator accepts one of the histories
//!   revoked:           stays: its DID has ended
//! ```
//!
//! A peer is asked at the interval, and at once when it says that it has news: its word costs it credit ([`NEWS_CREDIT`]).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::did::Did;
use crate::invariants::{self, FAST_RETRY, FAST_RETRY_FOR, MAX_RETRY};
use crate::time::Timestamp;

mod news;

use news::News;
pub use news::{NEWS_CREDIT, NEWS_GAP};

/// Between the reason of a fork and why the last pull failed besides.
const BESIDES: &str = "; and now: ";

/// How a peer stands with us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerState {
    /// Never answered yet.
    New,
    /// The last answer verified.
    Healthy,
    /// No answer; being offline is not lying.
    Unreachable,
    /// An answer failed verification; what was accepted before stays.
    Stale,
    /// It is collecting its own newest slices and signs nothing meanwhile.
    Recovering,
    /// Its log begins anew where what we hold cannot be joined to it.
    Reset,
    /// It signed two histories. Its own log stands still here; ends only when the operator accepts one of them.
    Forked,
    /// Its DID was revoked, which is final. Its own log stands still here; it is asked at the slowest interval, for the
    /// logs that it holds for others.
    Revoked,
}

impl PeerState {
    /// As `hn status` and the JSON write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Healthy => "healthy",
            Self::Unreachable => "unreachable",
            Self::Stale => "stale",
            Self::Recovering => "recovering",
            Self::Reset => "reset",
            Self::Forked => "forked",
            Self::Revoked => "revoked",
        }
    }
}

/// What is known of a peer's health; kept durably by the shell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerHealth {
    /// The state.
    pub state: PeerState,
    /// Why, as a code and a sentence, when not healthy.
    pub reason: Option<Reason>,
    /// Since when the state holds.
    pub since: Timestamp,
    /// When the last answer verified.
    pub last_sync: Option<Timestamp>,
    /// Attempts that failed since the last that did not.
    pub failures: u32,
}

/// Why a peer is not healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// A stable code.
    pub code: String,
    /// A sentence for people.
    pub detail: String,
}

/// How a pull ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that the peer had verified.
    Verified,
    /// No usable answer: refused, timed out, redirected, not the protocol.
    Unreachable(Reason),
    /// An answer failed verification.
    Refused(Reason),
    /// It answered, and is recovering its own log.
    Recovering(Reason),
    /// It answered, and its log begins anew.
    Reset(Reason),
    /// There is evidence of two histories, not accepted by the operator. Reported at every pull while it stands, whatever
    /// else the answer was like.
    Forked(Reason),
    /// Its revocation is held. Reported at every pull, whatever else the answer was like.
    Revoked(Reason),
    /// The node itself could not: a full disk, a store that failed. Says nothing about the peer.
    Local(Reason),
}

impl Outcome {
    /// Why not everything was well.
    #[must_use]
    pub const fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Verified => None,
            Self::Unreachable(reason)
            | Self::Refused(reason)
            | Self::Recovering(reason)
            | Self::Reset(reason)
            | Self::Forked(reason)
            | Self::Revoked(reason)
            | Self::Local(reason) => Some(reason),
        }
    }

    /// Whether the peer answered and no check failed: it is asked again at the interval.
    #[must_use]
    pub const fn is_answer(&self) -> bool {
        matches!(
            self,
            Self::Verified
                | Self::Recovering(_)
                | Self::Reset(_)
                | Self::Forked(_)
                | Self::Revoked(_)
        )
    }
}

/// What can happen.
#[derive(Debug, Clone)]
pub enum Input {
    /// These are the peers to follow now; with what was known of the health of new ones.
    Roster(Vec<(Did, Option<PeerHealth>)>),
    /// An operator wants this peer (or every one) asked at once, whatever the backoff says.
    Refresh(Option<Did>),
    /// This peer says that it has something new.
    News(Did),
    /// This peer's stream of news broke: it may be gone, or back already.
    Lost(Did),
    /// The pull under way from this peer brought something: its news are worth asking for.
    Grew(Did),
    /// A pull ended.
    Finished {
        /// Of which peer.
        peer: Did,
        /// How.
        outcome: Outcome,
    },
    /// A run of the mirror behind a pull ended, or none is wanted any more ([`Outcome::Verified`]). What it found
    /// stands until the next one: a peer whose log verifies and whose artifacts do not stays `stale`.
    Mirrored {
        /// From which peer.
        peer: Did,
        /// How. [`Outcome::Unreachable`] says nothing: an artifact that is not there is no absence of the peer.
        outcome: Outcome,
    },
    /// Time has passed.
    Tick,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Pull from this peer; answer with [`Input::Finished`].
    Pull(Did),
    /// The peer's state, reason or since changed: keep its health. When it last answered alone is not worth a write.
    Health(Did),
}

/// How often, and how many at once.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// The longest time between two pulls from a healthy peer; jitter takes up to 20 % off.
    pub interval: Duration,
    /// Pulls that run at the same time.
    pub concurrency: usize,
}

struct Peer {
    health: PeerHealth,
    next_try: Timestamp,
    running: bool,
    /// An operator asked, and no pull has begun since.
    wanted: bool,
    /// The last pull verified.
    verified: bool,
    /// What the last run of the mirror found wrong.
    blemish: Option<Outcome>,
    /// What it says of itself.
    news: News,
}

impl Peer {
    /// Due, or said to be due later than any wait can last: the clock was set back meanwhile.
    fn is_due(&self, now: Timestamp) -> bool {
        self.next_try <= now || self.next_try.since(now) > MAX_RETRY
    }

    /// The state and reason after an answer that verified.
    fn verified_state(&self) -> (PeerState, Option<Reason>) {
        match &self.blemish {
            Some(Outcome::Refused(reason)) => (PeerState::Stale, Some(reason.clone())),
            Some(Outcome::Local(reason)) => (PeerState::Healthy, Some(reason.clone())),
            // The rest says something of a log, not of artifacts.
            _ => (PeerState::Healthy, None),
        }
    }

    /// The state and reason after a pull that ended like this.
    fn state_after(&self, outcome: &Outcome) -> (PeerState, Option<Reason>) {
        let state = match outcome {
            Outcome::Revoked(_) => PeerState::Revoked,
            // The DID has ended, whatever its node does since.
            _ if self.is_revoked() => return (PeerState::Revoked, self.health.reason.clone()),
            Outcome::Verified => return self.verified_state(),
            // Neither an absence nor a trouble of our own hides evidence.
            Outcome::Unreachable(reason) | Outcome::Local(reason)
                if self.health.state == PeerState::Forked =>
            {
                let reason = besides(self.health.reason.as_ref(), reason);
                return (PeerState::Forked, Some(reason));
            }
            Outcome::Unreachable(_) => PeerState::Unreachable,
            Outcome::Refused(_) => PeerState::Stale,
            Outcome::Recovering(_) => PeerState::Recovering,
            Outcome::Reset(_) => PeerState::Reset,
            Outcome::Forked(_) => PeerState::Forked,
            Outcome::Local(_) => self.health.state,
        };
        (state, outcome.reason().cloned())
    }

    fn is_revoked(&self) -> bool {
        self.health.state == PeerState::Revoked
    }

    /// There is news of it. What a revoked peer says is none.
    fn nudge(&mut self, now: Timestamp) {
        if self.is_revoked() {
            return;
        }
        if let Some(at) = self.news.arrived(self.running, now) {
            self.next_try = self.next_try.min(at);
        }
    }

    fn turn(&mut self, state: PeerState, reason: Option<Reason>, now: Timestamp) {
        if self.health.state != state {
            self.health.since = now;
            self.health.state = state;
            self.health.failures = 0;
        }
        self.health.reason = reason;
    }
}

/// The core: every peer of the roster with its health and its next attempt.
pub struct Federation {
    schedule: Schedule,
    seed: u64,
    draws: u64,
    on_request: bool,
    peers: BTreeMap<Did, Peer>,
}

impl Federation {
    /// No peers yet. `seed` decides every jitter.
    #[must_use]
    pub fn new(schedule: Schedule, seed: u64) -> Self {
        Self {
            schedule,
            seed,
            draws: 0,
            on_request: false,
            peers: BTreeMap::new(),
        }
    }

    /// Asks nobody without an operator's [`Input::Refresh`]: for a node that lives as long as one command.
    #[must_use]
    pub const fn on_request(mut self) -> Self {
        self.on_request = true;
        self
    }

    /// Decides. Effects are to be performed in order.
    pub fn handle(&mut self, input: Input, now: Timestamp) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Roster(roster) => self.roster(roster, now),
            Input::Refresh(which) => self.refresh(which, now),
            Input::News(peer) | Input::Lost(peer) => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.nudge(now);
                }
            }
            Input::Grew(peer) => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.news.came_true();
                }
            }
            Input::Finished { peer, outcome } => self.finished(peer, outcome, now, &mut effects),
            Input::Mirrored { peer, outcome } => self.mirrored(peer, outcome, now, &mut effects),
            Input::Tick => {}
        }
        self.start_due(now, &mut effects);
        effects
    }

    /// A peer's health, and when it is asked next.
    #[must_use]
    pub fn health(&self, peer: &Did) -> Option<(&PeerHealth, Timestamp)> {
        self.peers.get(peer).map(|p| (&p.health, p.next_try))
    }

    /// When [`Input::Tick`] is due next; `None` while there is nothing to wait for: nobody waits, nobody is asked without
    /// a request, or every slot is taken, so that the next [`Input::Finished`] comes first.
    #[must_use]
    pub fn next_wake(&self) -> Option<Timestamp> {
        if self.on_request || self.running() >= self.schedule.concurrency {
            return None;
        }
        self.peers
            .values()
            .filter(|p| !p.running)
            .map(|p| p.next_try)
            .min()
    }

    /// Uses another schedule from now on: nobody waits longer than its interval any more.
    pub fn reschedule(&mut self, schedule: Schedule, now: Timestamp) {
        self.schedule = schedule;
        let latest = now.plus(schedule.interval);
        for peer in self.peers.values_mut().filter(|p| !p.is_revoked()) {
            peer.next_try = peer.next_try.min(latest);
        }
    }

    fn roster(&mut self, roster: Vec<(Did, Option<PeerHealth>)>, now: Timestamp) {
        self.peers
            .retain(|did, _| roster.iter().any(|(wanted, _)| wanted == did));
        for (did, known) in roster {
            self.peers.entry(did).or_insert_with(|| Peer {
                health: known.unwrap_or(PeerHealth {
                    state: PeerState::New,
                    reason: None,
                    since: now,
                    last_sync: None,
                    failures: 0,
                }),
                next_try: now,
                running: false,
                wanted: false,
                verified: false,
                blemish: None,
                news: News::new(),
            });
        }
    }

    fn refresh(&mut self, which: Option<Did>, now: Timestamp) {
        for (_, peer) in self
            .peers
            .iter_mut()
            .filter(|(did, _)| which.is_none_or(|one| one == **did))
        {
            // A pull that runs already is joined, not repeated.
            if !peer.running {
                peer.next_try = now;
                peer.wanted = true;
            }
        }
    }

    fn finished(&mut self, did: Did, outcome: Outcome, now: Timestamp, effects: &mut Vec<Effect>) {
        let chance = self.draw();
        let schedule = self.schedule;
        // A peer that was removed meanwhile has no health any more.
        let Some(peer) = self.peers.get_mut(&did) else {
            return;
        };
        peer.running = false;
        let before = peer.health.clone();
        let (state, reason) = peer.state_after(&outcome);
        // A since that lies ahead of a clock that was set back would keep an absence young.
        peer.health.since = before.since.min(now);
        peer.turn(state, reason, now);
        peer.verified = outcome == Outcome::Verified;
        let health = &mut peer.health;
        if peer.verified {
            health.last_sync = Some(now);
        }
        if outcome.is_answer() {
            health.failures = 0;
        } else {
            health.failures = health.failures.saturating_add(1);
        }
        peer.next_try = now.plus(if health.state == PeerState::Revoked {
            spread(MAX_RETRY, chance)
        } else if outcome.is_answer() {
            spread(schedule.interval, chance)
        } else if health.state == PeerState::Unreachable {
            absence(health, now, chance)
        } else {
            let failures = health.failures.saturating_sub(1);
            spread(doubled(schedule.interval, failures), chance)
        });
        debug_assert!(
            health.state != PeerState::Unreachable
                || invariants::retry_is_due_in_time(health.since, now, peer.next_try)
        );
        tell(&before, health, did, effects);
        if let Some(at) = peer.news.ended(now).filter(|_| !peer.is_revoked()) {
            peer.next_try = peer.next_try.min(at);
        }
    }

    fn mirrored(&mut self, did: Did, outcome: Outcome, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(peer) = self.peers.get_mut(&did) else {
            return;
        };
        peer.blemish = (outcome != Outcome::Verified).then_some(outcome);
        // A pull that failed since says more than the artifacts of the one before.
        if !peer.verified || peer.is_revoked() {
            return;
        }
        let before = peer.health.clone();
        let (state, reason) = peer.verified_state();
        peer.turn(state, reason, now);
        tell(&before, &peer.health, did, effects);
    }

    fn running(&self) -> usize {
        self.peers.values().filter(|p| p.running).count()
    }

    fn start_due(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let mut free = self.schedule.concurrency.saturating_sub(self.running());
        // Whoever waits longest goes first, so that a long roster starves nobody.
        let mut due: Vec<(Timestamp, Did)> = self
            .peers
            .iter()
            .filter(|(_, p)| !p.running && (p.wanted || (!self.on_request && p.is_due(now))))
            .map(|(did, p)| (p.next_try, *did))
            .collect();
        due.sort_unstable();
        for (_, did) in due {
            let Some(peer) = self.peers.get_mut(&did).filter(|_| free > 0) else {
                break;
            };
            peer.running = true;
            peer.wanted = false;
            peer.news.begin(now);
            free -= 1;
            effects.push(Effect::Pull(did));
        }
    }

    /// A number in 0..1000 from the seed: the next of a sequence that the seed fixes.
    fn draw(&mut self) -> u64 {
        self.draws += 1;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.seed.to_le_bytes());
        bytes[8..].copy_from_slice(&self.draws.to_le_bytes());
        let hash = blake3::hash(&bytes);
        u64::from(u16::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1]])) % 1000
    }
}

/// Has the shell keep what changed: not the time of the last answer, which is another one every few seconds.
fn tell(before: &PeerHealth, after: &PeerHealth, peer: Did, effects: &mut Vec<Effect>) {
    let told = |health: &PeerHealth| (health.state, health.reason.clone(), health.since);
    if told(before) != told(after) {
        effects.push(Effect::Health(peer));
    }
}

/// The reason of a fork, and why the last pull failed besides; of the latter the newest alone.
fn besides(fork: Option<&Reason>, failure: &Reason) -> Reason {
    let fork = fork.unwrap_or(failure);
    let detail = fork.detail.split(BESIDES).next().unwrap_or_default();
    Reason {
        code: fork.code.clone(),
        detail: format!("{detail}{BESIDES}{}", failure.detail),
    }
}

/// `base` less up to 20 %, never above the longest wait.
fn spread(base: Duration, chance: u64) -> Duration {
    let base = base.min(MAX_RETRY);
    base - base / 5 * u32::try_from(chance).unwrap_or(0) / 1000
}

fn doubled(base: Duration, times: u32) -> Duration {
    base.saturating_mul(1u32.checked_shl(times.min(16)).unwrap_or(u32::MAX))
        .min(MAX_RETRY)
}

/// F1: 3 to 4 s for ten minutes, so that a peer that is back is caught up at once. F2: then doubling to 15 minutes.
fn absence(health: &PeerHealth, now: Timestamp, chance: u64) -> Duration {
    let absent = now.since(health.since);
    if absent < FAST_RETRY_FOR {
        return FAST_RETRY - Duration::from_millis(chance);
    }
    // The wait is about as long as the peer has been beyond the fast phase: each is twice the one before.
    let beyond = absent - FAST_RETRY_FOR;
    let wait = beyond.max(FAST_RETRY * 2).min(MAX_RETRY);
    wait - wait / 5 * u32::try_from(chance).unwrap_or(0) / 1000
}

#[cfg(test)]
mod news_tests;
#[cfg(test)]
mod tests;
