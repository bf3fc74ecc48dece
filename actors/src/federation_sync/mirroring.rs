//! The mirror runs behind a pull: which logs, from whom, within which budget, and whom a false artifact is charged to.

use std::collections::BTreeMap;

use actix::Recipient;
use hn_protocol::did::Did;
use hn_protocol::federation::{Outcome, Reason};
use hn_protocol::time::Timestamp;

use crate::artifact_mirror::{Holder, MirrorError, MirrorLog, MirrorReport, Work};
use crate::fetch::Trust;
use crate::pull::{PeerReport, Puller};
use crate::roster::RosterPeer;
use crate::settings::CheckAvailability;

/// Holders of one log that are asked: the first ones have it, or nobody has.
const MAX_HOLDERS: usize = 8;

/// What is mirrored, or looked for, in the name of one peer.
pub(super) struct Mirroring {
    /// The peer.
    pub peer: Did,
    /// The logs, the peer's own first.
    pub logs: Vec<MirroredLog>,
    /// Whether the artifacts are wanted, or only whether they are there.
    pub work: Work,
    /// Bytes that may be kept of those logs that count.
    pub budget: u64,
    /// Whether an operator asked: what was missing a moment ago is asked for again.
    pub again: bool,
    /// The time.
    pub now: Timestamp,
}

/// One of those logs.
pub(super) struct MirroredLog {
    /// Its publisher.
    pub publisher: Did,
    /// Whether its artifacts count against the budget.
    pub counts: bool,
    /// Who holds it.
    pub holders: Vec<Holder>,
}

/// How a run went.
pub(super) struct Mirrored {
    /// All logs together.
    pub report: MirrorReport,
    /// What the core is told of the peer.
    pub outcome: Outcome,
    /// What it is told of other holders.
    pub charges: Vec<(Did, Reason)>,
}

/// Mirrors one log after the other. How it went as a whole is what the core is told.
pub(super) async fn run(mirror: Recipient<MirrorLog>, job: Mirroring) -> Mirrored {
    let mut report = MirrorReport::default();
    let mut blamed: BTreeMap<Did, Reason> = BTreeMap::new();
    let mut left = job.budget;
    let mut local = None;
    for log in job.logs {
        let publisher = log.publisher;
        let answer = mirror
            .send(MirrorLog {
                publisher,
                peer: job.peer,
                holders: log.holders,
                work: job.work,
                budget: if log.counts { left } else { u64::MAX },
                again: job.again,
                now: job.now,
            })
            .await
            .unwrap_or_else(|_| Err(MirrorError::Failed("the mirror is being restarted".into())));
        match answer {
            Ok(of_log) => {
                if log.counts {
                    left = left.saturating_sub(of_log.kept);
                }
                for (liar, reason) in &of_log.lies {
                    if blames_holder(reason, publisher == *liar) {
                        blamed.entry(*liar).or_insert_with(|| reason.clone());
                    }
                }
                report.add(of_log);
            }
            Err(error) => {
                local = Some(Outcome::Local(error.reason()));
                break;
            }
        }
    }
    let lie = blamed.remove(&job.peer).map(Outcome::Refused);
    Mirrored {
        report,
        outcome: local.or(lie).unwrap_or(Outcome::Verified),
        charges: blamed.into_iter().collect(),
    }
}

/// Bytes that are not what the digest names, or not what was asked for, are the holder's lie; that the artifact has
/// another length than the log says is its publisher's. An artifact that is not there is no lie.
fn blames_holder(reason: &Reason, is_publisher: bool) -> bool {
    match reason.code.as_str() {
        "artifact_mismatch" | "bad_range_answer" | "bad_answer" | "answer_too_large" => true,
        "artifact_too_long" | "artifact_wrong_length" => is_publisher,
        _ => false,
    }
}

/// What is done about the artifacts of a peer that is not mirrored.
pub(super) const fn looking(check: CheckAvailability) -> Option<Work> {
    match check {
        CheckAvailability::Off => None,
        CheckAvailability::Sample => Some(Work::Sample),
        CheckAvailability::All => Some(Work::Check),
    }
}

/// Which logs each peer listed last.
#[derive(Default)]
pub(super) struct Holdings {
    by_peer: BTreeMap<Did, Vec<Did>>,
    /// Who gave false bytes in a run for another peer: the liar, and that peer.
    charged: BTreeMap<Did, Did>,
}

impl Holdings {
    /// A pull has ended. What an absent peer listed before stays.
    pub(super) fn note(&mut self, report: &PeerReport) {
        if !matches!(report.outcome, Outcome::Unreachable(_)) {
            let held = report.held.iter().map(|held| held.did);
            let listed = held.chain(report.left_out.iter().copied()).collect();
            self.by_peer.insert(report.did, listed);
        }
    }

    /// Forgets who is followed no more.
    pub(super) fn retain(&mut self, followed: impl Fn(&Did) -> bool) {
        self.by_peer.retain(|did, _| followed(did));
        self.charged
            .retain(|liar, peer| followed(liar) && followed(peer));
    }

    /// Whether a run for another peer found that this one gives false bytes.
    pub(super) fn is_charged(&self, did: &Did) -> bool {
        self.charged.contains_key(did)
    }

    /// A run for `peer` charges these now; answers whom it had charged and charges no more.
    pub(super) fn charge(&mut self, peer: Did, charges: &[(Did, Reason)]) -> Vec<Did> {
        let is_charged = |liar: &Did| charges.iter().any(|(now, _)| now == liar);
        let before = self.charged.iter().filter(|(_, by)| **by == peer);
        let cleared: Vec<Did> = before
            .map(|(liar, _)| *liar)
            .filter(|liar| !is_charged(liar))
            .collect();
        self.charged.retain(|liar, _| !cleared.contains(liar));
        self.charged
            .extend(charges.iter().map(|(liar, _)| (*liar, peer)));
        cleared
    }

    /// Who can be asked for the artifacts of `publisher`: the peer through which its log is followed, the publisher
    /// itself, then every other peer that lists it.
    pub(super) fn holders(
        &self,
        publisher: Did,
        first: Holder,
        roster: &[RosterPeer],
        puller: &Puller,
    ) -> Vec<Holder> {
        let at = |did: Did| {
            let typed = roster.iter().find(|peer| peer.did == did);
            let typed = typed.and_then(|peer| peer.url.clone());
            let known = typed.map(|url| (url, Trust::Operator));
            // What the publisher says of itself is a stranger's word.
            let known = known.or_else(|| Some((puller.known_url(&did)?, Trust::Stranger)));
            known.map(|(base, trust)| Holder { did, base, trust })
        };
        let others = self
            .by_peer
            .iter()
            .filter(|(_, logs)| logs.contains(&publisher));
        let others = others.map(|(peer, _)| *peer);
        let mut holders = vec![first];
        for did in std::iter::once(publisher).chain(others) {
            if did != puller.catalog.own()
                && holders.len() < MAX_HOLDERS
                && holders.iter().all(|known| known.did != did)
            {
                holders.extend(at(did));
            }
        }
        holders
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hn_protocol::did::SecretSeed;

    fn reason(code: &str) -> Reason {
        let (code, detail) = (code.to_owned(), String::new());
        Reason { code, detail }
    }

    #[test]
    fn a_holder_pays_for_its_own_lies_alone() {
        let blames = |code: &str, is_publisher| blames_holder(&reason(code), is_publisher);
        for code in ["artifact_mismatch", "bad_answer", "bad_range_answer"] {
            assert!(blames(code, false) && blames(code, true), "{code}");
        }
        for code in ["artifact_too_long", "artifact_wrong_length"] {
            assert!(blames(code, true), "{code}");
            assert!(!blames(code, false), "{code}: the publisher said the size");
        }
        for code in ["http_error", "not_held", "no_connection"] {
            assert!(!blames(code, true), "{code}");
        }
    }

    #[test]
    fn a_charge_lasts_until_the_run_that_made_it_makes_it_no_more() {
        let [eve, alice, bob] = [1, 2, 3].map(|n| SecretSeed::from_bytes([n; 32]).did());
        let mut holdings = Holdings::default();
        let charges = vec![(eve, reason("artifact_mismatch"))];
        assert!(holdings.charge(alice, &charges).is_empty());
        assert!(holdings.charge(bob, &[]).is_empty());
        assert!(holdings.is_charged(&eve));
        assert!(holdings.charge(alice, &charges).is_empty());
        assert_eq!(holdings.charge(alice, &[]), [eve]);
        assert!(!holdings.is_charged(&eve));
    }
}
