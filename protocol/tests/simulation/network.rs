//! Virtual time, and the network between the nodes: a queue of events in the order of their times.

use std::collections::BTreeMap;

use hn_protocol::did::Did;
use hn_protocol::document::Revocation;
use hn_protocol::federation::{Effect, Input, Outcome, PeerHealth, Reason};
use hn_protocol::log::History;
use hn_protocol::sign::Signed;
use hn_protocol::time::Timestamp;

use crate::common::START;
use crate::node::{Answer, Node, Question};

/// How long an asker waits before it calls a peer unreachable.
const TIMEOUT_MS: u64 = 5_000;
/// The longest way of a message, which is also how much messages overtake each other.
const MAX_DELAY_MS: u64 = 800;
/// In trouble, one message of so many is lost.
const LOSS: u64 = 12;

/// What a node is in this story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Publisher,
    Reader,
    Liar,
    /// Publishes, and is gone for good after a while.
    Absentee,
    /// Publishes; after a while its owner ends its DID, and a thief goes on signing on its machine.
    Stolen,
}

/// All chance of a play: SplitMix64 from the seed.
pub struct Chance(u64);

impl Chance {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n.max(1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What happened, for the last assertion and for people.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    pub messages: u64,
    pub lost: u64,
    pub parted: u64,
    pub crashes: u64,
    pub lies: u64,
    pub accepted: u64,
}

enum Event {
    /// A question arrives.
    Asked {
        at: usize,
        by: usize,
        number: u64,
        question: Question,
    },
    /// An answer arrives.
    Answered {
        at: usize,
        by: usize,
        number: u64,
        answer: Answer,
    },
    /// The asker gives up.
    TimedOut {
        at: usize,
        by: usize,
        number: u64,
    },
    /// A node's schedule is due.
    Wake(usize),
    /// Somebody publishes, or issues a presence again.
    Publish(usize),
    Crash(usize),
    Start(usize),
    /// The network falls into two halves, or is one again.
    Part(u64),
    Join,
}

pub struct Network {
    nodes: Vec<Node>,
    by_did: BTreeMap<Did, usize>,
    queue: BTreeMap<(u64, u64), Event>,
    queued: u64,
    now: Timestamp,
    chance: Chance,
    trouble: bool,
    /// Which nodes are on the far side of a partition.
    far: Vec<bool>,
    told: Summary,
}

impl Network {
    /// `counts`: publishers, readers, liars, absentees, stolen ones.
    pub fn new(seed: u64, counts: [usize; 5]) -> Self {
        let roles = [
            Role::Publisher,
            Role::Reader,
            Role::Liar,
            Role::Absentee,
            Role::Stolen,
        ];
        let roles = roles.into_iter().zip(counts);
        let roles: Vec<Role> = roles.flat_map(|(role, n)| vec![role; n]).collect();
        let nodes: Vec<Node> = (1u8..)
            .zip(&roles)
            .map(|(n, role)| Node::new(n, *role, seed ^ u64::from(n)))
            .collect();
        let by_did = nodes
            .iter()
            .enumerate()
            .map(|(i, n)| (n.did(), i))
            .collect();
        let mut network = Self {
            far: vec![false; nodes.len()],
            nodes,
            by_did,
            queue: BTreeMap::new(),
            queued: 0,
            now: START,
            chance: Chance(seed),
            trouble: true,
            told: Summary::default(),
        };
        network.befriend(counts[0] + counts[1]);
        for node in 0..network.nodes.len() {
            network.start(node);
            if network.nodes[node].role != Role::Reader {
                network.after(1_000, Event::Publish(node));
            }
        }
        network.after(90_000, Event::Part(120_000));
        network.after(30_000, Event::Crash(0));
        network
    }

    /// A ring of the honest nodes that stay, so that these are connected whatever else there is; the rest by chance.
    fn befriend(&mut self, honest: usize) {
        let all = self.nodes.len();
        for node in 0..all {
            let mut peers = vec![];
            if node < honest {
                peers.push((node + 1) % honest);
            }
            while peers.len() < 3 {
                let other = self.chance.below(all as u64) as usize;
                if other != node && !peers.contains(&other) {
                    peers.push(other);
                }
            }
            // Everybody who leaves or lies is known to somebody who stays.
            if node >= honest {
                let did = self.nodes[node].did();
                self.nodes[node % honest].peers.insert(did);
            }
            let dids: Vec<Did> = peers.iter().map(|p| self.nodes[*p].did()).collect();
            self.nodes[node].peers.extend(dids);
        }
    }

    /// Lets `ms` of virtual time pass, with or without trouble in the network.
    pub fn run(&mut self, ms: u64, trouble: bool) {
        if self.trouble && !trouble {
            self.heal();
        }
        self.trouble = trouble;
        let end = self.now.0 + ms;
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), event) = entry.remove_entry();
            self.now = Timestamp(at);
            self.step(event);
        }
        self.now = Timestamp(end);
    }

    /// All nodes of this role are gone for good; their logs stay where they were followed.
    pub fn leave(&mut self, role: Role) {
        for node in self.nodes.iter_mut().filter(|n| n.role == role) {
            node.running = false;
            node.gone = true;
        }
    }

    /// The owners of the stolen machines tell one node each; the thieves go on.
    pub fn revoke(&mut self) {
        let stolen = self.nodes.iter().filter(|n| n.role == Role::Stolen);
        let words: Vec<(Did, bytes::Bytes)> = stolen
            .map(|node| {
                let (did, at) = (node.did(), self.now);
                let word = Signed::create(&Revocation { did, at }, &node.own.identity);
                (did, word.expect("a revocation").bytes().clone())
            })
            .collect();
        for (told, (did, word)) in words.iter().enumerate() {
            self.nodes[told].end(*did, word);
        }
    }

    fn heal(&mut self) {
        self.far.fill(false);
        for node in 0..self.nodes.len() {
            if !self.nodes[node].running {
                self.start(node);
            }
        }
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.queued += 1;
        self.queue.insert((self.now.0 + ms, self.queued), event);
    }

    fn start(&mut self, node: usize) {
        if self.nodes[node].gone {
            return;
        }
        let seed = self.chance.below(u64::MAX);
        let effects = self.nodes[node].start(seed, self.now);
        self.perform(node, effects);
    }

    fn perform(&mut self, node: usize, effects: Vec<Effect>) {
        for effect in effects {
            if let Effect::Pull(peer) = effect {
                let busy = self.nodes[node].pulls.contains_key(&peer);
                assert!(!busy, "one pull a peer at a time");
                self.ask(node, self.by_did[&peer]);
            }
        }
        if let Some(due) = self.nodes[node].federation.next_wake() {
            // A peer that is due but for the limit on concurrent pulls is started when one of them ends.
            if due > self.now {
                self.after(due.0 - self.now.0, Event::Wake(node));
            }
        }
    }

    fn ask(&mut self, by: usize, at: usize) {
        self.queued += 1;
        let (number, question) = (self.queued, self.nodes[by].question());
        let peer = self.nodes[at].did();
        self.nodes[by].pulls.insert(peer, number);
        self.after(TIMEOUT_MS, Event::TimedOut { at, by, number });
        self.send(
            by,
            at,
            Event::Asked {
                at,
                by,
                number,
                question,
            },
        );
    }

    /// A message on its way: lost, held up by a partition, or late.
    fn send(&mut self, from: usize, to: usize, event: Event) {
        self.told.messages += 1;
        let late = 1 + self.chance.below(MAX_DELAY_MS);
        if self.trouble && self.chance.one_in(LOSS) {
            self.told.lost += 1;
        } else if self.far[from] != self.far[to] {
            self.told.parted += 1;
        } else {
            self.after(late, event);
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Asked {
                at,
                by,
                number,
                question,
            } if self.nodes[at].running => {
                let answer = self.nodes[at].answer(&question, &mut self.chance);
                self.told.lies += u64::from(self.nodes[at].role == Role::Liar);
                self.send(
                    at,
                    by,
                    Event::Answered {
                        at,
                        by,
                        number,
                        answer,
                    },
                );
            }
            Event::Answered {
                at,
                by,
                number,
                answer,
            } if self.waits(by, at, number) => {
                self.answered(by, at, answer);
            }
            Event::TimedOut { at, by, number } if self.waits(by, at, number) => {
                let reason = Reason {
                    code: "timed_out".into(),
                    detail: "no answer in 5 s".into(),
                };
                self.finish(by, at, Outcome::Unreachable(reason));
            }
            Event::Wake(node) if self.nodes[node].running => {
                let effects = self.nodes[node].handle(Input::Tick, self.now);
                self.perform(node, effects);
            }
            Event::Publish(node) => self.publish(node),
            Event::Crash(node) => self.crash(node),
            Event::Start(node) if !self.nodes[node].running => self.start(node),
            Event::Part(ms) if self.trouble => {
                for far in &mut self.far {
                    *far = self.chance.one_in(3);
                }
                self.after(ms, Event::Join);
            }
            Event::Join => {
                self.far.fill(false);
                let quiet = 30_000 + self.chance.below(60_000);
                self.after(quiet, Event::Part(60_000));
            }
            // Whoever does not run hears nothing.
            _ => {}
        }
    }

    fn waits(&self, by: usize, at: usize, number: u64) -> bool {
        let asker = &self.nodes[by];
        asker.running && asker.pulls.get(&self.nodes[at].did()) == Some(&number)
    }

    fn answered(&mut self, by: usize, at: usize, answer: Answer) {
        let peer = self.nodes[at].did();
        let publishers: Vec<Did> = answer.iter().map(|(did, _)| *did).collect();
        let verdict = self.nodes[by].judge(peer, answer, self.now);
        for publisher in publishers {
            self.assert_prefix(by, &publisher);
        }
        self.told.accepted += u64::from(verdict.is_ok());
        match verdict {
            // A round trip more, within the same pull.
            Ok(true) => self.ask(by, at),
            Ok(false) => self.finish(by, at, Outcome::Verified),
            Err(outcome) => self.finish(by, at, outcome),
        }
    }

    fn finish(&mut self, by: usize, at: usize, outcome: Outcome) {
        let peer = self.nodes[at].did();
        self.nodes[by].pulls.remove(&peer);
        let effects = self.nodes[by].handle(Input::Finished { peer, outcome }, self.now);
        self.perform(by, effects);
    }

    fn publish(&mut self, node: usize) {
        if !self.trouble {
            return;
        }
        if self.nodes[node].running {
            let entries = self.chance.below(4) as usize;
            self.nodes[node].publish(entries, self.now);
        }
        let pause = 60_000 + self.chance.below(120_000);
        self.after(pause, Event::Publish(node));
    }

    fn crash(&mut self, node: usize) {
        if !self.trouble {
            return;
        }
        if self.nodes[node].running {
            self.told.crashes += 1;
            self.nodes[node].crash();
            let down = self.chance.below(40_000);
            self.after(down, Event::Start(node));
        }
        let next = self.chance.below(self.nodes.len() as u64) as usize;
        let pause = 5_000 + self.chance.below(20_000);
        self.after(pause, Event::Crash(next));
    }

    /// Whatever a node holds of a log is the beginning of what its publisher signed.
    fn assert_prefix(&self, node: usize, publisher: &Did) {
        let truth = &self.nodes[self.by_did[publisher]].own.log;
        if let Some(copy) = self.nodes[node].held.get(publisher) {
            let (size, root) = (copy.state.size(), copy.state.root());
            assert_eq!(
                truth.root_at(size),
                Some(root),
                "node {node} of {publisher} at {size}"
            );
        }
    }

    /// Every honest node that stayed holds every honest log as far as anybody can know it.
    pub fn assert_converged(&self) {
        let stays = |n: &&Node| matches!(n.role, Role::Publisher | Role::Reader);
        let honest = |n: &&Node| !matches!(n.role, Role::Liar | Role::Stolen);
        for publisher in self.nodes.iter().filter(honest) {
            let did = publisher.did();
            let copies = || {
                let stay = self.nodes.iter().filter(stays).filter(|n| n.did() != did);
                stay.map(|n| (n.did(), n.log(&did).map(|log| &log.state)))
            };
            // Of an absentee: what the best informed of those who stay holds.
            let best = match publisher.role {
                Role::Absentee => copies()
                    .filter_map(|(_, s)| s)
                    .max_by_key(|s| crate::node::extent(s)),
                _ => Some(&publisher.own.log.state),
            };
            let best = best.expect("somebody followed it");
            for (node, copy) in copies() {
                assert_eq!(copy, Some(best), "the copy of {did} at {node}");
            }
        }
    }

    /// Every honest node that stayed knows of every end, and holds of that log what it held when it heard of it. How many
    /// hold less than the thief has signed meanwhile.
    pub fn assert_ended(&self) -> usize {
        let stays = |n: &&Node| matches!(n.role, Role::Publisher | Role::Reader);
        let mut shorter = 0;
        for stolen in self.nodes.iter().filter(|n| n.role == Role::Stolen) {
            let did = stolen.did();
            for node in self.nodes.iter().filter(stays) {
                assert!(node.ended.contains_key(&did), "{} of {did}", node.did());
                node.assert_ended(&did);
                let held = node.held[&did].state.size();
                shorter += usize::from(held < stolen.own.log.state.size());
            }
        }
        shorter
    }

    /// Every peer of every honest node that stayed: who, whom, what it is, how it stands.
    pub fn healths(&self) -> Vec<(Did, Did, Role, PeerHealth)> {
        let mut healths = Vec::new();
        for node in &self.nodes {
            if !matches!(node.role, Role::Publisher | Role::Reader) {
                continue;
            }
            for peer in &node.peers {
                let (health, _) = node.federation.health(peer).expect("of the roster");
                let role = self.nodes[self.by_did[peer]].role;
                healths.push((node.did(), *peer, role, health.clone()));
            }
        }
        healths
    }

    pub fn summary(&self) -> Summary {
        self.told.clone()
    }
}
