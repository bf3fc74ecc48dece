//! Which peer is asked when, and what its state is: the decision core of following (design 4).
//!
//! `handle(input, now) -> effects`. The shell performs the effects (start a pull, tell of a change) and
//! feeds back what happened. Time and chance come from outside; the same inputs give the same effects.
//!
//! ```text
//!   new ──ok──► healthy ──no answer──► unreachable ──ok──► healthy
//!    └─────────────┴──a failed check──► stale ────────ok──► healthy
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::did::Did;
use crate::invariants::{self, FAST_RETRY, FAST_RETRY_FOR, MAX_RETRY};
use crate::time::Timestamp;

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
    /// The node itself could not: a full disk, a store that failed. Says nothing about the peer.
    Local(Reason),
}

/// What can happen.
#[derive(Debug, Clone)]
pub enum Input {
    /// These are the peers to follow now; with what was known of the health of new ones.
    Roster(Vec<(Did, Option<PeerHealth>)>),
    /// An operator wants this peer (or every one) asked at once, whatever the backoff says.
    Refresh(Option<Did>),
    /// A pull ended.
    Finished {
        /// Of which peer.
        peer: Did,
        /// How.
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
    /// The peer's health changed: keep it, tell of it.
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
    /// Asked for while a pull was running, after that pull had begun.
    wanted: bool,
}

/// The core: every peer of the roster with its health and its next attempt.
pub struct Federation {
    schedule: Schedule,
    seed: u64,
    draws: u64,
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
            peers: BTreeMap::new(),
        }
    }

    /// Decides. Effects are to be performed in order.
    pub fn handle(&mut self, input: Input, now: Timestamp) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Roster(roster) => self.roster(roster, now),
            Input::Refresh(which) => self.refresh(which, now),
            Input::Finished { peer, outcome } => self.finished(peer, outcome, now, &mut effects),
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

    /// Whether a pull from this peer is under way or due at once.
    #[must_use]
    pub fn is_busy(&self, peer: &Did) -> bool {
        self.peers.get(peer).is_some_and(|p| p.running || p.wanted)
    }

    /// When [`Input::Tick`] is due next; `None` while there is nothing to wait for.
    #[must_use]
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.peers
            .values()
            .filter(|p| !p.running)
            .map(|p| p.next_try)
            .min()
    }

    /// As [`Input::Roster`], without starting anything: for a node that follows only when it is told to.
    pub fn know(&mut self, roster: Vec<(Did, Option<PeerHealth>)>, now: Timestamp) {
        self.roster(roster, now);
    }

    /// Uses another schedule from now on: nobody waits longer than its interval any more.
    pub fn reschedule(&mut self, schedule: Schedule, now: Timestamp) {
        self.schedule = schedule;
        let latest = now.plus(schedule.interval);
        for peer in self.peers.values_mut() {
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
        let (state, reason) = match outcome {
            Outcome::Verified => (PeerState::Healthy, None),
            Outcome::Unreachable(reason) => (PeerState::Unreachable, Some(reason)),
            Outcome::Refused(reason) => (PeerState::Stale, Some(reason)),
            Outcome::Local(reason) => (before.state, Some(reason)),
        };
        let health = &mut peer.health;
        if health.state != state {
            health.since = now;
            health.state = state;
            health.failures = 0;
        }
        if reason.is_none() {
            health.last_sync = Some(now);
            health.failures = 0;
        } else {
            health.failures = health.failures.saturating_add(1);
        }
        health.reason = reason;
        peer.next_try = now.plus(match (health.state, &health.reason) {
            (PeerState::Unreachable, _) => absence(health, now, chance),
            (_, None) => spread(schedule.interval, chance),
            (_, Some(_)) => spread(
                doubled(schedule.interval, health.failures.saturating_sub(1)),
                chance,
            ),
        });
        debug_assert!(
            health.state != PeerState::Unreachable
                || invariants::retry_is_due_in_time(health.since, now, peer.next_try)
        );
        if before != *health {
            effects.push(Effect::Health(did));
        }
    }

    fn start_due(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let running = self.peers.values().filter(|p| p.running).count();
        let mut free = self.schedule.concurrency.saturating_sub(running);
        // Whoever waits longest goes first, so that a long roster starves nobody.
        let mut due: Vec<(Timestamp, Did)> = self
            .peers
            .iter()
            .filter(|(_, p)| !p.running && p.next_try <= now)
            .map(|(did, p)| (p.next_try, *did))
            .collect();
        due.sort_unstable();
        for (_, did) in due {
            let Some(peer) = self.peers.get_mut(&did).filter(|_| free > 0) else {
                break;
            };
            peer.running = true;
            peer.wanted = false;
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
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::did::SecretSeed;
    use proptest::prelude::*;

    const SCHEDULE: Schedule = Schedule {
        interval: Duration::from_secs(30),
        concurrency: 3,
    };

    fn peer(n: u8) -> Did {
        SecretSeed::from_bytes([n; 32]).did()
    }

    fn reason() -> Reason {
        Reason {
            code: "refused".into(),
            detail: "connection refused".into(),
        }
    }

    fn federation(peers: u8) -> (Federation, Vec<Effect>) {
        let mut federation = Federation::new(SCHEDULE, 7);
        let roster = (1..=peers).map(|n| (peer(n), None)).collect();
        let effects = federation.handle(Input::Roster(roster), Timestamp(0));
        (federation, effects)
    }

    fn finish(federation: &mut Federation, n: u8, outcome: Outcome, now: u64) -> Vec<Effect> {
        federation.handle(
            Input::Finished {
                peer: peer(n),
                outcome,
            },
            Timestamp(now),
        )
    }

    #[test]
    fn a_new_peer_is_asked_at_once() {
        let (_, effects) = federation(1);
        assert_eq!(effects, [Effect::Pull(peer(1))]);
    }

    #[test]
    fn no_more_pulls_run_than_allowed_and_the_rest_follow() {
        let (mut federation, effects) = federation(5);
        assert_eq!(effects.len(), 3);
        let Effect::Pull(first) = effects[0] else {
            unreachable!()
        };
        let next = federation.handle(
            Input::Finished {
                peer: first,
                outcome: Outcome::Verified,
            },
            Timestamp(1),
        );
        assert_eq!(
            next.iter().filter(|e| matches!(e, Effect::Pull(_))).count(),
            1
        );
    }

    #[test]
    fn absence_and_lies_are_told_apart_and_both_heal() {
        let (mut federation, _) = federation(1);
        finish(&mut federation, 1, Outcome::Unreachable(reason()), 10);
        assert_eq!(
            federation.health(&peer(1)).unwrap().0.state,
            PeerState::Unreachable
        );
        federation.handle(Input::Refresh(None), Timestamp(20));
        finish(&mut federation, 1, Outcome::Refused(reason()), 30);
        let (health, _) = federation.health(&peer(1)).unwrap();
        assert_eq!(
            (health.state, health.since),
            (PeerState::Stale, Timestamp(30))
        );
        federation.handle(Input::Refresh(None), Timestamp(40));
        finish(&mut federation, 1, Outcome::Verified, 50);
        let (health, _) = federation.health(&peer(1)).unwrap();
        assert_eq!(
            (health.state, health.last_sync),
            (PeerState::Healthy, Some(Timestamp(50)))
        );
        assert!(health.reason.is_none());
    }

    #[test]
    fn a_refresh_ignores_the_backoff_and_joins_a_running_pull() {
        let (mut federation, _) = federation(1);
        assert!(
            federation
                .handle(Input::Refresh(Some(peer(1))), Timestamp(1))
                .is_empty()
        );
        finish(&mut federation, 1, Outcome::Unreachable(reason()), 10);
        let effects = federation.handle(Input::Refresh(Some(peer(1))), Timestamp(11));
        assert_eq!(effects, [Effect::Pull(peer(1))]);
    }

    #[test]
    fn a_shorter_interval_is_waited_for_from_now_on() {
        let (mut federation, _) = federation(1);
        finish(&mut federation, 1, Outcome::Verified, 10);
        let schedule = Schedule {
            interval: Duration::from_secs(1),
            concurrency: 3,
        };
        federation.reschedule(schedule, Timestamp(20));
        assert_eq!(federation.next_wake(), Some(Timestamp(1020)));
    }

    #[test]
    fn our_own_full_disk_is_not_held_against_the_peer() {
        let (mut federation, _) = federation(1);
        finish(&mut federation, 1, Outcome::Verified, 10);
        federation.handle(Input::Refresh(None), Timestamp(20));
        finish(&mut federation, 1, Outcome::Local(reason()), 30);
        let (health, _) = federation.health(&peer(1)).unwrap();
        assert_eq!(health.state, PeerState::Healthy);
        assert!(health.reason.is_some());
    }

    #[test]
    fn a_removed_peer_is_forgotten_though_its_pull_still_ends() {
        let (mut federation, _) = federation(1);
        federation.handle(Input::Roster(vec![]), Timestamp(1));
        assert!(finish(&mut federation, 1, Outcome::Verified, 2).is_empty());
        assert!(federation.next_wake().is_none());
    }

    proptest! {
        /// F1, F2 over days of absence, whatever the seed.
        #[test]
        fn an_absent_peer_is_always_asked_again_in_time(seed: u64, hours in 0u64..48) {
            let mut federation = Federation::new(SCHEDULE, seed);
            let mut now = Timestamp(0);
            federation.handle(Input::Roster(vec![(peer(1), None)]), now);
            while now.0 < hours * 3_600_000 {
                federation.handle(
                    Input::Finished { peer: peer(1), outcome: Outcome::Unreachable(reason()) },
                    now,
                );
                let (health, next) = federation.health(&peer(1)).unwrap();
                prop_assert!(invariants::retry_is_due_in_time(health.since, now, next));
                prop_assert!(next > now);
                now = next;
                let effects = federation.handle(Input::Tick, now);
                prop_assert_eq!(effects, vec![Effect::Pull(peer(1))]);
            }
        }
    }
}
