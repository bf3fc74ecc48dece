//! What a peer says of itself: its news, and the states that are its own word or the evidence against it.

#![allow(clippy::unwrap_used)]
use super::*;
use crate::did::SecretSeed;
use proptest::prelude::*;

const INTERVAL: Duration = Duration::from_secs(30);
const GAP: u64 = NEWS_GAP.as_millis() as u64;

fn did() -> Did {
    SecretSeed::from_bytes([1; 32]).did()
}

fn reason(detail: &str) -> Reason {
    Reason {
        code: "code".into(),
        detail: detail.into(),
    }
}

/// A node that follows one peer, whose first pull begins at 0.
struct Story(Federation);

impl Story {
    fn new() -> Self {
        let schedule = Schedule {
            interval: INTERVAL,
            concurrency: 3,
        };
        let mut federation = Federation::new(schedule, 7);
        let roster = Input::Roster(vec![(did(), None)]);
        assert_eq!(federation.handle(roster, Timestamp(0)).len(), 1);
        Self(federation)
    }

    /// Whether a pull begins.
    fn handle(&mut self, input: Input, now: u64) -> bool {
        let effects = self.0.handle(input, Timestamp(now));
        effects.contains(&Effect::Pull(did()))
    }

    fn finish(&mut self, outcome: Outcome, now: u64) -> bool {
        let peer = did();
        self.handle(Input::Finished { peer, outcome }, now)
    }

    fn health(&self) -> PeerHealth {
        self.0.health(&did()).unwrap().0.clone()
    }

    fn next_try(&self) -> Timestamp {
        self.0.health(&did()).unwrap().1
    }

    /// A pull that an operator asks for, and that ends like this.
    fn refreshed(&mut self, outcome: Outcome, now: u64) {
        assert!(self.handle(Input::Refresh(None), now));
        self.finish(outcome, now);
    }
}

#[test]
fn news_are_asked_for_at_once() {
    let mut story = Story::new();
    story.finish(Outcome::Verified, 10);
    assert!(story.handle(Input::News(did()), 1_000));
}

#[test]
fn news_during_a_pull_are_asked_for_right_after_it() {
    let mut story = Story::new();
    assert!(!story.handle(Input::News(did()), 1));
    assert!(!story.handle(Input::News(did()), 2));
    assert!(story.finish(Outcome::Verified, 1_000));
    assert!(!story.finish(Outcome::Verified, 2_000), "once is enough");
}

#[test]
fn a_stream_that_broke_has_the_peer_asked_at_once() {
    let mut story = Story::new();
    story.finish(Outcome::Verified, 10);
    assert!(story.handle(Input::Lost(did()), 1_000));
    story.finish(Outcome::Unreachable(reason("refused")), 1_001);
    assert_eq!(story.health().state, PeerState::Unreachable);
    assert!(story.next_try().since(Timestamp(1_001)) <= FAST_RETRY);
}

#[test]
fn news_of_an_absent_peer_end_its_wait() {
    let mut story = Story::new();
    story.finish(Outcome::Unreachable(reason("refused")), 10);
    assert!(story.handle(Input::News(did()), 1_000));
}

#[test]
fn what_a_burst_of_news_says_comes_with_few_pulls() {
    let mut story = Story::new();
    story.finish(Outcome::Verified, 1);
    assert!(!story.handle(Input::News(did()), 2), "one has just begun");
    assert_eq!(story.next_try(), Timestamp(GAP));
    assert!(!story.handle(Input::News(did()), 3));
    assert_eq!(story.0.next_wake(), Some(Timestamp(GAP)));
    assert!(story.handle(Input::Tick, GAP));
}

/// News every 5 ms for a minute, of which none is true.
#[test]
fn a_chatty_liar_is_soon_asked_at_the_interval_alone() {
    let mut story = Story::new();
    story.finish(Outcome::Verified, 1);
    let mut pulls = 0;
    for now in (0..60_000).step_by(5) {
        if story.handle(Input::News(did()), now) {
            pulls += 1;
            story.finish(Outcome::Verified, now + 1);
        }
    }
    assert!(pulls <= NEWS_CREDIT + 6, "{pulls} pulls in two intervals");
}

#[test]
fn a_busy_publisher_is_followed_at_once_however_long_it_goes_on() {
    let mut story = Story::new();
    story.finish(Outcome::Verified, 1);
    for round in 1..1_000 {
        let now = round * 100;
        assert!(story.handle(Input::News(did()), now), "at {now} ms");
        story.handle(Input::Grew(did()), now + 5);
        story.finish(Outcome::Verified, now + 5);
    }
}

#[test]
fn one_true_word_makes_up_for_false_ones() {
    let mut story = Story::new();
    story.finish(Outcome::Verified, 1);
    let lie = |story: &mut Story, at: u64| {
        let begun = story.handle(Input::News(did()), at);
        if begun {
            story.finish(Outcome::Verified, at + 1);
        }
        begun
    };
    let believed = (1..=100).filter(|n| lie(&mut story, n * 100)).count();
    assert_eq!(believed, NEWS_CREDIT as usize);
    story.handle(Input::Refresh(None), 20_000);
    story.handle(Input::Grew(did()), 20_001);
    story.finish(Outcome::Verified, 20_002);
    assert!(lie(&mut story, 21_000));
}

#[test]
fn news_of_strangers_and_of_removed_peers_start_nothing() {
    let mut story = Story::new();
    story.finish(Outcome::Verified, 1);
    let stranger = SecretSeed::from_bytes([9; 32]).did();
    assert!(
        story
            .0
            .handle(Input::News(stranger), Timestamp(2))
            .is_empty()
    );
    story.0.handle(Input::Roster(vec![]), Timestamp(3));
    assert!(!story.handle(Input::Lost(did()), 4));
}

#[test]
fn without_background_following_news_start_nothing() {
    let schedule = Schedule {
        interval: INTERVAL,
        concurrency: 3,
    };
    let mut federation = Federation::new(schedule, 7).on_request();
    federation.handle(Input::Roster(vec![(did(), None)]), Timestamp(0));
    assert!(
        federation
            .handle(Input::News(did()), Timestamp(1))
            .is_empty()
    );
}

#[test]
fn a_clock_that_is_set_back_delays_no_news() {
    let year = 31_536_000_000;
    let mut story = Story::new();
    story.finish(Outcome::Verified, 1);
    story.refreshed(Outcome::Verified, year);
    assert!(story.handle(Input::News(did()), 5));
}

#[test]
fn a_peer_that_recovers_or_begins_anew_is_asked_at_the_interval_until_it_verifies() {
    for (outcome, state) in [
        (Outcome::Recovering(reason("waits")), PeerState::Recovering),
        (Outcome::Reset(reason("anew")), PeerState::Reset),
    ] {
        let mut story = Story::new();
        story.finish(outcome.clone(), 10);
        for now in [1_000, 2_000, 3_000] {
            story.refreshed(outcome.clone(), now);
            let health = story.health();
            assert_eq!((health.state, health.since), (state, Timestamp(10)));
            assert_eq!(health.reason.as_ref(), outcome.reason());
            assert_eq!(health.last_sync, None, "nothing verified yet");
            assert!(story.next_try().since(Timestamp(now)) <= INTERVAL);
        }
        story.refreshed(Outcome::Verified, 4_000);
        assert_eq!(story.health().state, PeerState::Healthy);
        assert_eq!(story.health().reason, None);
    }
}

#[test]
fn a_fork_is_hidden_neither_by_absence_nor_by_our_own_trouble() {
    let mut story = Story::new();
    story.finish(Outcome::Forked(reason("two heads")), 10);
    for now in 1..5 {
        story.refreshed(Outcome::Unreachable(reason("refused")), now * 1_000);
        let health = story.health();
        assert_eq!(
            (health.state, health.since),
            (PeerState::Forked, Timestamp(10))
        );
        assert_eq!(
            health.reason.unwrap().detail,
            "two heads; and now: refused",
            "said once, however often it fails"
        );
    }
    story.refreshed(Outcome::Local(reason("disk full")), 6_000);
    assert_eq!(story.health().state, PeerState::Forked);
    assert_eq!(
        story.health().reason.unwrap().detail,
        "two heads; and now: disk full"
    );
    story.refreshed(Outcome::Forked(reason("two heads")), 7_000);
    assert_eq!(story.health().reason, Some(reason("two heads")));
    assert!(story.next_try().since(Timestamp(7_000)) <= INTERVAL);
}

#[test]
fn a_fork_that_was_accepted_ends_with_the_next_answer() {
    for (outcome, state) in [
        (Outcome::Verified, PeerState::Healthy),
        (Outcome::Refused(reason("a gap")), PeerState::Stale),
        (Outcome::Recovering(reason("waits")), PeerState::Recovering),
    ] {
        let mut story = Story::new();
        story.finish(Outcome::Forked(reason("two heads")), 10);
        story.refreshed(outcome, 1_000);
        assert_eq!(story.health().state, state);
    }
}

#[test]
fn a_forked_peer_that_stays_away_is_asked_less_and_less() {
    let mut story = Story::new();
    story.finish(Outcome::Forked(reason("two heads")), 0);
    let mut now = 0;
    for _ in 0..12 {
        now = story.next_try().0;
        assert!(story.handle(Input::Tick, now));
        story.finish(Outcome::Unreachable(reason("refused")), now);
    }
    let wait = story.next_try().since(Timestamp(now));
    assert!(wait > INTERVAL * 10 && wait <= MAX_RETRY, "{wait:?}");
}

#[test]
fn false_artifacts_of_a_forked_peer_leave_it_forked() {
    let mut story = Story::new();
    story.finish(Outcome::Forked(reason("two heads")), 10);
    let outcome = Outcome::Refused(reason("false bytes"));
    story.handle(
        Input::Mirrored {
            peer: did(),
            outcome,
        },
        20,
    );
    assert_eq!(story.health().state, PeerState::Forked);
}

#[test]
fn the_names_of_all_states_are_what_json_writes() {
    for state in [
        PeerState::New,
        PeerState::Healthy,
        PeerState::Unreachable,
        PeerState::Stale,
        PeerState::Recovering,
        PeerState::Reset,
        PeerState::Forked,
        PeerState::Revoked,
    ] {
        let written = serde_json::to_value(state).unwrap();
        assert_eq!(written, state.name());
    }
}

proptest! {
    /// Whatever is said when: never two pulls at once, none within the gap of the one before, and no more than credit allows.
    #[test]
    fn news_never_make_us_spin(steps in prop::collection::vec((0u64..50, 0u8..5), 1..400)) {
        let mut story = Story::new();
        let (mut now, mut running, mut begun, mut pulls) = (0, true, 0, 1u32);
        for (wait, step) in steps {
            now += wait;
            let input = match step {
                0 | 1 => Input::News(did()),
                2 => Input::Lost(did()),
                3 if running => {
                    running = false;
                    let peer = did();
                    Input::Finished { peer, outcome: Outcome::Verified }
                }
                _ => Input::Tick,
            };
            if story.handle(input, now) {
                prop_assert!(!running, "one at a time");
                prop_assert!(now - begun >= GAP, "{now} after {begun}");
                (running, begun) = (true, now);
                pulls += 1;
            }
        }
        let rounds = u32::try_from(now / 24_000).unwrap();
        prop_assert!(pulls <= 1 + NEWS_CREDIT + 2 * rounds, "{pulls} pulls in {now} ms");
    }
}

#[test]
fn a_revoked_peer_stays_so_and_is_asked_at_the_slowest_interval_whatever_it_says() {
    for outcome in [
        Outcome::Revoked(reason("its last word")),
        Outcome::Forked(reason("two heads")),
        Outcome::Verified,
        Outcome::Unreachable(reason("refused")),
        Outcome::Refused(reason("a gap")),
        Outcome::Local(reason("disk full")),
    ] {
        let mut story = Story::new();
        story.finish(Outcome::Verified, 1);
        story.refreshed(Outcome::Revoked(reason("its last word")), 10);
        story.refreshed(outcome, 1_000);
        let health = story.health();
        assert_eq!(
            (health.state, health.since, health.reason),
            (
                PeerState::Revoked,
                Timestamp(10),
                Some(reason("its last word"))
            )
        );
        let wait = story.next_try().since(Timestamp(1_000));
        assert!(wait >= MAX_RETRY / 5 * 4 && wait <= MAX_RETRY, "{wait:?}");
        assert!(!story.handle(Input::News(did()), 2_000), "no news");
        assert!(!story.handle(Input::Lost(did()), 2_000), "no news either");
        let mirrored = Input::Mirrored {
            peer: did(),
            outcome: Outcome::Verified,
        };
        story.handle(mirrored, 3_000);
        assert_eq!(story.health().state, PeerState::Revoked);
        assert!(story.handle(Input::Refresh(None), 4_000), "but by hand");
    }
}

#[test]
fn news_during_the_pull_that_brings_the_revocation_bring_no_other() {
    let mut story = Story::new();
    assert!(!story.handle(Input::News(did()), 1));
    assert!(!story.finish(Outcome::Revoked(reason("its last word")), 1_000));
}
