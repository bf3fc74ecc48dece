//! Whether our own log may be signed upon: the decision core of recovery (design 4, O1–O10 of `spec/index@2.md`).
//!
//! A home that came back from an old copy looks like any other from within, and one signature on top of it would fork
//! the log. So whoever holds our log is asked before the first signature after a start, and where there is a reason to
//! doubt the home, nothing is signed until every named holder has answered.
//!
//! ```text
//!   start ──► asking ──all answered, or 5 s──► open ──a holder claims more──► asking
//!               │                               │
//!               └── restored, damaged, or signed proof that somebody holds more ──┐
//!                                                                                 ▼
//!   open ◄── all named holders answered and the log reaches what it must ── recovering
//!                                           forked: ends by a new epoch alone ────┘
//! ```
//!
//! `handle(input, now) -> effects`. The shell asks, adopts, keeps the troubles durably and moves the gate.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::did::Did;
use crate::invariants::{FAST_RETRY, FAST_RETRY_FOR, MAX_RETRY};
use crate::time::Timestamp;

mod troubles;

pub use troubles::{Extent, OwnFork, Troubles};

/// O1: for how long a start waits for holders that do not answer (design 4).
pub const ASKING: Duration = Duration::from_secs(5);
/// How soon a holder that did not answer is asked again while a start waits for it.
const ASKING_RETRY: Duration = Duration::from_secs(1);

/// What a holder said of our log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nothing that is not here.
    Level,
    /// Signed parts that continue ours: to be adopted.
    Beyond,
    /// A signed presence of a larger log, and not its slices.
    Withheld {
        /// Entries of that log.
        size: u64,
    },
    /// Signed parts that contradict ours.
    Forked {
        /// In which way.
        why: String,
    },
    /// No answer, or none that verifies.
    Failed {
        /// Why.
        why: String,
    },
}

/// What can happen.
#[derive(Debug, Clone)]
pub enum Input {
    /// These are the named holders now.
    Holders {
        /// Each once.
        named: Vec<Did>,
        /// Whether that is all of them: a roster that cannot be read names nobody.
        known: bool,
    },
    /// The own log as it stands.
    Log {
        /// How far it reaches, as far as it verifies.
        extent: Extent,
        /// What is wrong with it.
        damaged: Option<String>,
        /// What it must reach, by what the disk says.
        reach: Extent,
    },
    /// A holder was asked, or what it has was adopted ([`Answer::Level`] then).
    Answered {
        /// Who.
        holder: Did,
        /// What it said.
        answer: Answer,
    },
    /// A holder lists a head of ours, unsigned, that is not ours.
    Claimed {
        /// Who.
        holder: Did,
    },
    /// The operator wants everybody asked at once.
    AskAgain,
    /// The operator goes on with what is here. Nothing while the log is forked.
    AcceptLoss,
    /// A new epoch was begun.
    Reset {
        /// The log now.
        extent: Extent,
    },
    /// [`Effect::Settle`] was performed, or failed.
    Settled {
        /// Whether everything of it is durable.
        done: bool,
    },
    /// Time has passed.
    Tick,
}

/// What the shell is to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask this holder for what it has of our log beyond ours; answer with [`Input::Answered`].
    Ask(Did),
    /// Append what this holder has beyond ours; answer with [`Input::Log`] and [`Input::Answered`].
    Adopt(Did),
    /// Sign nothing, let publications wait.
    Wait,
    /// Sign nothing, refuse publications; keep the troubles durably.
    Close,
    /// Sign again: the home was never in doubt.
    Open,
    /// The recovery has ended: cut off what is damaged, sign above `above` from now on, mark the home as the log's, all
    /// durable before anything is signed; then sign again. Answer with [`Input::Settled`].
    Settle {
        /// The highest sequence that is known to have been used.
        above: u64,
    },
}

/// How a holder stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Whether it has answered since this phase began.
    pub answered: bool,
    /// Why the last attempt brought no answer.
    pub failure: Option<String>,
    running: bool,
    /// It has more, which is not adopted yet.
    beyond: bool,
    next_ask: Timestamp,
    /// Claims of it in a row that nothing signed has borne out.
    claims: u32,
    /// Until when its claims are not heeded.
    deaf_until: Timestamp,
}

impl Holder {
    const fn new(now: Timestamp) -> Self {
        Self {
            answered: false,
            failure: None,
            running: false,
            beyond: false,
            next_ask: now,
            claims: 0,
            deaf_until: Timestamp(0),
        }
    }

    fn ask_at(&mut self, at: Timestamp) {
        self.answered = false;
        self.beyond = false;
        self.next_ask = at;
    }
}

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A start, or a claim: signatures wait.
    Asking {
        /// Until then.
        until: Timestamp,
    },
    /// Signatures are made.
    Open,
    /// Nothing is signed.
    Recovering {
        /// Since when.
        since: Timestamp,
    },
}

/// The core.
#[derive(Debug)]
pub struct Recovery {
    phase: Phase,
    troubles: Troubles,
    /// What the shell was told last.
    told: Troubles,
    log: Extent,
    holders: BTreeMap<Did, Holder>,
    roster_known: bool,
    adopting: Option<Did>,
    /// The operator has decided, or a new epoch makes all of it history.
    accepted: bool,
    /// The troubles that are being settled.
    settling: Option<Troubles>,
    settle_at: Timestamp,
}

impl Recovery {
    /// A start. `troubles` are what the home knows of; `named` are the holders.
    #[must_use]
    pub fn new(troubles: Troubles, named: &[Did], roster_known: bool, now: Timestamp) -> Self {
        let phase = if troubles.any() {
            Phase::Recovering { since: now }
        } else if named.is_empty() && roster_known {
            // A roster that cannot be read may name somebody: it has the time of an asking to be mended.
            Phase::Open
        } else {
            Phase::Asking {
                until: now.plus(ASKING),
            }
        };
        Self {
            phase,
            told: troubles.clone(),
            troubles,
            log: Extent::default(),
            holders: named.iter().map(|did| (*did, Holder::new(now))).collect(),
            roster_known,
            adopting: None,
            accepted: false,
            settling: None,
            settle_at: now,
        }
    }

    /// The five seconds of a start begin now: the log has been read.
    pub fn ask_from(&mut self, now: Timestamp) {
        if let Phase::Asking { until } = &mut self.phase {
            *until = now.plus(ASKING);
        }
    }

    /// Where it stands.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Why nothing is signed.
    #[must_use]
    pub const fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    /// The log as it was told last.
    #[must_use]
    pub const fn log(&self) -> Extent {
        self.log
    }

    /// The named holders.
    #[must_use]
    pub const fn holders(&self) -> &BTreeMap<Did, Holder> {
        &self.holders
    }

    /// Whether nothing is under way: nobody is being asked, nothing adopted or settled.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.adopting.is_none()
            && self.settling.is_none()
            && self
                .holders
                .values()
                .all(|holder| !holder.running && !holder.beyond)
    }

    /// Decides. Effects are to be performed in order.
    pub fn handle(&mut self, input: Input, now: Timestamp) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Holders { named, known } => self.name(&named, known, now),
            Input::Log {
                extent,
                damaged,
                reach,
            } => self.log_is(extent, damaged, reach),
            Input::Answered { holder, answer } => self.answered(holder, answer, now),
            Input::Claimed { holder } => self.claimed(holder, now, &mut effects),
            Input::AskAgain => self.ask_again(now),
            Input::AcceptLoss => {
                self.accepted = self.troubles.forked.is_none() && self.is_recovering()
            }
            Input::Reset { extent } => self.reset(extent),
            Input::Settled { done } => self.settled(done, now, &mut effects),
            Input::Tick => {}
        }
        self.conclude(now, &mut effects);
        self.start(now, &mut effects);
        effects
    }

    /// When [`Input::Tick`] is due next; `None` while there is nothing to wait for.
    #[must_use]
    pub fn next_wake(&self) -> Option<Timestamp> {
        let asks = self.holders.values().filter(|holder| self.may_ask(holder));
        let ask = asks.map(|holder| holder.next_ask).min();
        match self.phase {
            Phase::Open => None,
            Phase::Asking { until } => Some(ask.map_or(until, |ask| ask.min(until))),
            Phase::Recovering { .. } if self.may_end() => Some(self.settle_at),
            Phase::Recovering { .. } => ask,
        }
    }

    const fn is_recovering(&self) -> bool {
        matches!(self.phase, Phase::Recovering { .. })
    }

    fn name(&mut self, named: &[Did], known: bool, now: Timestamp) {
        self.roster_known = known;
        if !known {
            // Whoever was named before is still waited for.
            return;
        }
        self.holders.retain(|did, _| named.contains(did));
        let waits = self.phase != Phase::Open;
        for did in named {
            let holder = self.holders.entry(*did).or_insert_with(|| Holder::new(now));
            // O1 is about a start: who is named later holds nothing up that was open.
            holder.answered |= !waits;
        }
    }

    fn log_is(&mut self, extent: Extent, damaged: Option<String>, reach: Extent) {
        self.log = extent;
        if let Some(why) = damaged {
            self.troubles.damaged = Some(why);
            self.troubles.reach.raise(reach);
        } else if extent.reaches(&self.troubles.reach) {
            // Mended by other hands: what was signed once is all here again. Where parts were had from a holder,
            // `ahead` says so, and its reasons stand.
            self.troubles.damaged = None;
        }
        if self
            .troubles
            .forked
            .as_ref()
            .is_some_and(|fork| fork.epoch < extent.epoch)
        {
            self.troubles.forked = None;
        }
    }

    fn answered(&mut self, did: Did, answer: Answer, now: Timestamp) {
        let retry = now.plus(self.retry(now));
        if self.adopting == Some(did) {
            self.adopting = None;
            // What the others have beyond ours may be here now.
            let waiting = self.holders.values_mut().filter(|holder| holder.beyond);
            waiting.for_each(|holder| holder.ask_at(now));
        }
        // Removed from the roster meanwhile: what it showed counts all the same, but it is not waited for.
        let mut gone = Holder::new(now);
        let named = self.holders.contains_key(&did);
        let holder = self.holders.get_mut(&did).unwrap_or(&mut gone);
        holder.running = false;
        holder.failure = None;
        holder.next_ask = retry;
        holder.beyond = false;
        holder.answered = !matches!(answer, Answer::Beyond | Answer::Failed { .. });
        let mut proved = true;
        match answer {
            Answer::Level => proved = false,
            Answer::Beyond => {
                self.troubles.ahead = Some(did);
                holder.beyond = true;
            }
            Answer::Withheld { size } => {
                holder.failure = Some(format!(
                    "it shows a presence of {size} entries and not all of its slices"
                ));
                self.troubles.ahead = Some(did);
                let Extent {
                    epoch, sequence, ..
                } = self.log;
                self.troubles.reach.raise(Extent {
                    epoch,
                    size,
                    sequence,
                });
            }
            Answer::Forked { why } => {
                let epoch = self.log.epoch;
                self.troubles.forked = Some(OwnFork { epoch, why });
            }
            Answer::Failed { why } => {
                holder.failure = Some(why);
                proved = false;
            }
        }
        if proved {
            holder.claims = 0;
            holder.deaf_until = now;
            // A decision that was made without knowing this is none.
            self.accepted &= !named || self.settling.is_some();
        }
    }

    /// O9: an unsigned word makes us look, not stop. Each one that nothing bears out is heeded more seldom.
    fn claimed(&mut self, did: Did, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(holder) = self.holders.get_mut(&did) else {
            return;
        };
        if holder.running || holder.beyond || holder.deaf_until > now {
            return;
        }
        holder.claims = holder.claims.saturating_add(1);
        let deaf = FAST_RETRY.saturating_mul(1 << holder.claims.min(10));
        holder.deaf_until = now.plus(deaf.min(MAX_RETRY));
        holder.ask_at(now);
        if self.phase == Phase::Open {
            self.phase = Phase::Asking {
                until: now.plus(ASKING),
            };
            effects.push(Effect::Wait);
        }
    }

    fn ask_again(&mut self, now: Timestamp) {
        if self.phase == Phase::Open {
            return;
        }
        let idle = self
            .holders
            .values_mut()
            .filter(|holder| !holder.running && !holder.beyond);
        idle.for_each(|holder| holder.ask_at(now));
        self.settle_at = now;
    }

    fn reset(&mut self, extent: Extent) {
        self.log = extent;
        self.troubles = Troubles::default();
        self.accepted = self.is_recovering();
        self.settling = None;
    }

    fn settled(&mut self, done: bool, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(settled) = self.settling.take() else {
            return;
        };
        if !done {
            self.settle_at = now.plus(FAST_RETRY);
            return;
        }
        self.accepted = false;
        if self.troubles == settled {
            self.troubles = Troubles::default();
            self.told = Troubles::default();
            self.phase = Phase::Open;
        } else {
            // Something came up meanwhile, which the shell has not closed the gate for yet.
            effects.push(Effect::Close);
            self.told = self.troubles.clone();
        }
    }

    fn all_answered(&self) -> bool {
        self.roster_known
            && self.adopting.is_none()
            && self.holders.values().all(|holder| holder.answered)
    }

    /// O6: whether the recovery has come to its end.
    fn may_end(&self) -> bool {
        let Troubles { forked, reach, .. } = &self.troubles;
        if self.accepted || !self.troubles.any() {
            return true;
        }
        forked.is_none()
            && !self.holders.is_empty()
            && self.all_answered()
            && self.log.reaches(reach)
    }

    fn conclude(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if !self.is_recovering() && self.troubles.any() {
            self.phase = Phase::Recovering { since: now };
            let idle = self
                .holders
                .values_mut()
                .filter(|holder| !holder.running && !holder.beyond);
            idle.for_each(|holder| holder.ask_at(now));
            self.told = Troubles::default();
        }
        match self.phase {
            Phase::Asking { until } => {
                // A clock that was set back must not hold a start up.
                let over = until <= now || until.since(now) > ASKING;
                if over || self.all_answered() {
                    self.phase = Phase::Open;
                    effects.push(Effect::Open);
                }
            }
            Phase::Open => {}
            Phase::Recovering { .. } => {
                let due = self.settle_at <= now || self.settle_at.since(now) > FAST_RETRY;
                if self.settling.is_none() && self.may_end() && due {
                    self.settling = Some(self.troubles.clone());
                    self.told = self.troubles.clone();
                    let above = self.troubles.reach.sequence;
                    effects.push(Effect::Settle { above });
                } else if self.told != self.troubles {
                    self.told = self.troubles.clone();
                    effects.push(Effect::Close);
                }
            }
        }
    }

    /// Whether it is asked when its time has come.
    fn may_ask(&self, holder: &Holder) -> bool {
        let idle = !holder.running && !holder.beyond;
        match self.phase {
            Phase::Open => false,
            Phase::Asking { .. } => idle && !holder.answered,
            // All have answered and something is missing still: they may come by it.
            Phase::Recovering { .. } => {
                idle && self.troubles.forked.is_none()
                    && !self.accepted
                    && (!holder.answered || self.all_answered())
            }
        }
    }

    fn start(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if self.settling.is_some() {
            return;
        }
        let open = self.phase == Phase::Open;
        if self.adopting.is_none() && !open && self.troubles.forked.is_none() {
            let beyond = self.holders.iter().find(|(_, holder)| holder.beyond);
            if let Some(did) = beyond.map(|(did, _)| *did) {
                self.adopting = Some(did);
                effects.push(Effect::Adopt(did));
            }
        }
        let due: Vec<Did> = self
            .holders
            .iter()
            .filter(|(did, holder)| {
                let late = holder.next_ask <= now || holder.next_ask.since(now) > MAX_RETRY;
                late && self.adopting != Some(**did) && self.may_ask(holder)
            })
            .map(|(did, _)| *did)
            .collect();
        for did in due {
            if let Some(holder) = self.holders.get_mut(&did) {
                holder.running = true;
                effects.push(Effect::Ask(did));
            }
        }
    }

    /// O6: about every 4 s for ten minutes, then ever more seldom, every 15 minutes at least.
    fn retry(&self, now: Timestamp) -> Duration {
        match self.phase {
            Phase::Recovering { since } if now.since(since) >= FAST_RETRY_FOR => {
                let beyond = now.since(since) - FAST_RETRY_FOR;
                beyond.clamp(FAST_RETRY * 2, MAX_RETRY)
            }
            Phase::Recovering { .. } => FAST_RETRY,
            Phase::Asking { .. } | Phase::Open => ASKING_RETRY,
        }
    }
}

#[cfg(test)]
mod tests;
