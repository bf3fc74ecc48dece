//! One node: the schedule that decides whom it asks, the logs that it holds, and its way to answer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::federation::PeerState;
use hn_protocol::federation::{Effect, Federation, Input, Outcome, PeerHealth, Reason, Schedule};
use hn_protocol::invariants::{is_extension, retry_is_due_in_time};
use hn_protocol::log::{LogState, PageContext, Source, last_word, replay};
use hn_protocol::time::Timestamp;

use crate::common::{Journal, Page, Publisher, file};
use crate::network::{Chance, Role};

/// Slices a page: small, so that a pull needs several round trips.
const PAGE_SLICES: usize = 2;
const SCHEDULE: Schedule = Schedule {
    interval: Duration::from_secs(60),
    concurrency: 3,
};

/// How far somebody's copy of a log reaches: size and presence sequence.
pub type Extent = (u64, u64);

/// What a follower asks a peer for: what it holds of each log, and whether it knows that it has ended.
pub type Question = BTreeMap<Did, (Extent, bool)>;

/// What a peer answers: a page of each log that it has more of.
pub type Answer = Vec<(Did, Page)>;

pub struct Node {
    pub role: Role,
    pub own: Publisher,
    pub held: BTreeMap<Did, Journal>,
    /// Revocations that are kept, with the log as it was held then.
    pub ended: BTreeMap<Did, (Bytes, LogState)>,
    pub federation: Federation,
    pub peers: BTreeSet<Did>,
    /// Healths as they were saved: what a restart begins with.
    saved: BTreeMap<Did, PeerHealth>,
    pub running: bool,
    /// Left for good.
    pub gone: bool,
    /// Pulls under way, with the number of the question that waits for its answer.
    pub pulls: BTreeMap<Did, u64>,
    published: usize,
}

impl Node {
    pub fn new(n: u8, role: Role, seed: u64) -> Self {
        Self {
            role,
            own: Publisher::new(n),
            held: BTreeMap::new(),
            ended: BTreeMap::new(),
            federation: Federation::new(SCHEDULE, seed),
            peers: BTreeSet::new(),
            saved: BTreeMap::new(),
            running: true,
            gone: false,
            pulls: BTreeMap::new(),
            published: 0,
        }
    }

    pub fn did(&self) -> Did {
        self.own.identity.did()
    }

    /// The copy of a log that this node serves.
    pub fn log(&self, publisher: &Did) -> Option<&Journal> {
        if *publisher == self.did() {
            Some(&self.own.log)
        } else {
            self.held.get(publisher)
        }
    }

    fn logs(&self) -> impl Iterator<Item = (Did, &Journal)> {
        let held = self.held.iter().map(|(did, log)| (*did, log));
        held.chain([(self.did(), &self.own.log)])
    }

    /// The peers of the roster, with what was saved of them: at the first start and at every other.
    pub fn start(&mut self, seed: u64, now: Timestamp) -> Vec<Effect> {
        self.running = true;
        self.pulls.clear();
        self.federation = Federation::new(SCHEDULE, seed);
        let roster = self
            .peers
            .iter()
            .map(|did| (*did, self.saved.get(did).cloned()));
        let roster = roster.collect();
        self.handle(Input::Roster(roster), now)
    }

    /// The process dies; what was kept is read back line by line, and is what it was.
    pub fn crash(&mut self) {
        self.running = false;
        for log in self.held.values_mut() {
            let mut again = Journal::empty(log.state.publisher);
            for line in &log.lines {
                let mut state = again.state.clone();
                replay(&mut state, line, &again).expect("what was kept is read back");
                again.keep(vec![line.clone()], state);
            }
            assert_eq!(again.state, log.state, "a restart changes nothing");
            *log = again;
        }
    }

    pub fn publish(&mut self, entries: usize, now: Timestamp) {
        self.own.now = now;
        let entries = (0..entries).map(|i| file(&format!("{}/{i}", self.published)));
        let before = self.own.log.state.clone();
        self.own.commit(entries.collect());
        self.published += 1;
        assert!(is_extension(&before, &self.own.log.state), "L5, L6");
    }

    /// Asks the core, and keeps what it wants kept. Gives the pulls to start.
    pub fn handle(&mut self, input: Input, now: Timestamp) -> Vec<Effect> {
        let effects = self.federation.handle(input, now);
        for effect in &effects {
            if let Effect::Health(peer) = effect {
                let (health, next_try) = self.federation.health(peer).expect("of the roster");
                if health.state == PeerState::Unreachable {
                    assert!(retry_is_due_in_time(health.since, now, next_try), "F1, F2");
                }
                self.saved.insert(*peer, health.clone());
            }
        }
        effects
    }

    pub fn question(&self) -> Question {
        self.logs()
            .map(|(did, log)| (did, (extent(&log.state), self.ended.contains_key(&did))))
            .collect()
    }

    /// A page of every log of which the asker has less, from where it stands; of the rest nothing, which is 304.
    /// A liar has always something to say of its own.
    pub fn answer(&self, question: &Question, chance: &mut Chance) -> Answer {
        let mut answer = Vec::new();
        for (did, log) in self.logs() {
            let (theirs, ended) = question.get(&did).copied().unwrap_or_default();
            // A thief shows what he signs to whoever asks.
            let bad = matches!(self.role, Role::Liar | Role::Stolen);
            let own_lie = bad && did == self.did();
            let word = self.ended.get(&did).map(|(word, _)| word);
            if own_lie || (!ended && (word.is_some() || extent(&log.state) > theirs)) {
                let mut page = log.page(theirs.0, PAGE_SLICES);
                if let (Some(word), true) = (word, page.reaches_head) {
                    page.lines.pop();
                    page.lines.push(word.clone());
                }
                answer.push((did, page));
            }
        }
        if self.role == Role::Liar {
            for (_, page) in &mut answer {
                lie(page, chance);
            }
        }
        answer
    }

    /// Judges an answer: whether there is more to ask for, or how the pull ended.
    pub fn judge(&mut self, peer: Did, answer: Answer, now: Timestamp) -> Result<bool, Outcome> {
        let mut more = false;
        for (publisher, page) in answer {
            if publisher == self.did() {
                continue;
            }
            let empty = || Journal::empty(publisher);
            let held = self.held.entry(publisher).or_insert_with(empty);
            let context = PageContext {
                now,
                source: if publisher == peer {
                    Source::Publisher
                } else {
                    Source::Holder
                },
                reaches_head: page.reaches_head,
            };
            let known = self.ended.contains_key(&publisher);
            let verified = held.state.follow(&page.lines, context, held);
            let verified = match verified {
                Ok(page) if known => page.after_revocation(),
                verified => verified,
            };
            // V4: it counts whatever the rest is worth, and V5: the lines before it first.
            let word = last_word(&page.lines, &publisher);
            let refused = match verified {
                Ok(verified) => {
                    assert!(is_extension(&held.state, &verified.state), "L6");
                    more |= verified.behind;
                    held.keep(verified.lines, verified.state);
                    None
                }
                Err(error) => Some(Reason {
                    code: error.code().into(),
                    detail: error.to_string(),
                }),
            };
            if let Some(word) = word {
                self.end(publisher, word.bytes());
            }
            self.assert_ended(&publisher);
            match refused {
                Some(reason) if !self.ended.contains_key(&publisher) => {
                    return Err(Outcome::Refused(reason));
                }
                _ => {}
            }
        }
        if self.ended.contains_key(&peer) {
            return Err(Outcome::Revoked(Reason {
                code: "revoked".into(),
                detail: "its last word".into(),
            }));
        }
        Ok(more)
    }

    /// The revocation of `publisher` is kept; the first one stays.
    pub fn end(&mut self, publisher: Did, word: &Bytes) {
        let held = self.held.entry(publisher);
        let held = held.or_insert_with(|| Journal::empty(publisher));
        let ended = self.ended.entry(publisher);
        ended.or_insert_with(|| (word.clone(), held.state.clone()));
    }

    /// V5: nothing moves a log whose revocation is held.
    pub fn assert_ended(&self, publisher: &Did) {
        if let Some((_, state)) = self.ended.get(publisher) {
            assert_eq!(&self.held[publisher].state, state, "V5");
        }
    }
}

pub fn extent(state: &LogState) -> Extent {
    (state.size(), state.presence.map_or(0, |p| p.sequence))
}

/// A liar alters a byte, claims another root, or says that it has nothing to say.
fn lie(page: &mut Page, chance: &mut Chance) {
    let at = chance.below(page.lines.len() as u64) as usize;
    match chance.below(3) {
        0 => {
            let mut bytes = page.lines[at].to_vec();
            let place = chance.below(bytes.len() as u64) as usize;
            bytes[place] ^= 1;
            page.lines[at] = Bytes::from(bytes);
        }
        1 => {
            let text = String::from_utf8_lossy(&page.lines[at]).into_owned();
            let other = Digest::of(b"a lie").to_string();
            match text.find("_root\":\"").map(|at| at + 8) {
                Some(from) => {
                    page.lines[at] =
                        format!("{}{other}{}", &text[..from], &text[from + 64..]).into();
                }
                // A revocation has none: it is held back.
                None => drop(page.lines.remove(at)),
            }
        }
        _ => {
            page.lines.clear();
            page.reaches_head = true;
        }
    }
}
