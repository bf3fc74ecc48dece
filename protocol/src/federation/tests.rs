//! The schedule and the states of peers.

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
fn a_clock_that_is_set_back_by_a_year_makes_nobody_wait_for_a_year() {
    let year = 31_536_000_000;
    let (mut federation, _) = federation(0);
    federation.handle(Input::Roster(vec![(peer(1), None)]), Timestamp(year));
    finish(&mut federation, 1, Outcome::Unreachable(reason()), year);
    let effects = federation.handle(Input::Tick, Timestamp(0));
    assert_eq!(effects, [Effect::Pull(peer(1))]);
    finish(&mut federation, 1, Outcome::Unreachable(reason()), 0);
    let (health, next) = federation.health(&peer(1)).unwrap();
    assert_eq!(health.since, Timestamp(0));
    assert!(next.since(Timestamp(0)) <= FAST_RETRY);
}

#[test]
fn no_timer_is_set_while_every_slot_is_taken() {
    let (mut federation, effects) = federation(5);
    assert_eq!(
        federation.next_wake(),
        None,
        "two are due, and only a pull that ends lets them run"
    );
    for (at, effect) in effects.into_iter().enumerate() {
        let Effect::Pull(peer) = effect else { continue };
        let outcome = Outcome::Verified;
        federation.handle(Input::Finished { peer, outcome }, Timestamp(at as u64));
    }
    let wake = federation.next_wake();
    assert!(
        wake.unwrap() > Timestamp(2),
        "a slot is free and nobody is due"
    );
}

#[test]
fn without_background_following_only_the_peer_that_was_asked_for_is_pulled() {
    let mut federation = Federation::new(SCHEDULE, 7).on_request();
    let roster = (1..=5).map(|n| (peer(n), None)).collect();
    assert!(
        federation
            .handle(Input::Roster(roster), Timestamp(0))
            .is_empty()
    );
    let effects = federation.handle(Input::Refresh(Some(peer(4))), Timestamp(1));
    assert_eq!(effects, [Effect::Pull(peer(4))]);
    let next = finish(&mut federation, 4, Outcome::Verified, 2);
    assert_eq!(next, [Effect::Health(peer(4))]);
    assert_eq!(federation.next_wake(), None);
    // Everyone, in turns of what may run at once.
    let mut asked = federation.handle(Input::Refresh(None), Timestamp(3));
    let mut pulled = 0;
    while let Some(effect) = asked.pop() {
        let Effect::Pull(peer) = effect else { continue };
        pulled += 1;
        let outcome = Outcome::Verified;
        asked.extend(federation.handle(Input::Finished { peer, outcome }, Timestamp(4)));
    }
    assert_eq!(pulled, 5);
}

#[test]
fn a_quiet_peer_costs_no_write() {
    let (mut federation, _) = federation(1);
    let first = finish(&mut federation, 1, Outcome::Verified, 10);
    assert_eq!(first, [Effect::Health(peer(1))]);
    for round in 1..4 {
        let now = round * 60_000;
        federation.handle(Input::Tick, Timestamp(now));
        assert!(finish(&mut federation, 1, Outcome::Verified, now).is_empty());
        let (health, _) = federation.health(&peer(1)).unwrap();
        assert_eq!(health.last_sync, Some(Timestamp(now)));
    }
}

#[test]
fn who_serves_false_artifacts_is_stale_until_a_mirror_run_finds_none() {
    let (mut federation, _) = federation(1);
    let mirrored = |federation: &mut Federation, outcome, now| {
        let peer = peer(1);
        federation.handle(Input::Mirrored { peer, outcome }, Timestamp(now))
    };
    let state = |federation: &Federation| federation.health(&peer(1)).unwrap().0.state;
    finish(&mut federation, 1, Outcome::Verified, 10);
    let told = mirrored(&mut federation, Outcome::Refused(reason()), 20);
    assert_eq!((state(&federation), told.len()), (PeerState::Stale, 1));
    // Its log verifies, and is asked for as often as ever.
    federation.handle(Input::Refresh(None), Timestamp(30));
    assert!(finish(&mut federation, 1, Outcome::Verified, 40).is_empty());
    let (health, next) = federation.health(&peer(1)).unwrap();
    assert_eq!(
        (health.state, health.since),
        (PeerState::Stale, Timestamp(20))
    );
    assert!(next.since(Timestamp(40)) <= SCHEDULE.interval);
    mirrored(&mut federation, Outcome::Verified, 50);
    assert_eq!(state(&federation), PeerState::Healthy);
    // Absence is told before false artifacts.
    federation.handle(Input::Refresh(None), Timestamp(60));
    finish(&mut federation, 1, Outcome::Unreachable(reason()), 70);
    mirrored(&mut federation, Outcome::Refused(reason()), 80);
    assert_eq!(state(&federation), PeerState::Unreachable);
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
