#![allow(clippy::unwrap_used)]
use super::*;
use crate::did::SecretSeed;

const START: Timestamp = Timestamp(1_000_000);

fn did(n: u8) -> Did {
    SecretSeed::from_bytes([n; 32]).did()
}

fn after(seconds: u64) -> Timestamp {
    START.plus(Duration::from_secs(seconds))
}

fn extent(size: u64, sequence: u64) -> Extent {
    Extent {
        epoch: 0,
        size,
        sequence,
    }
}

fn restored() -> Troubles {
    Troubles {
        restored: true,
        ..Troubles::default()
    }
}

fn holders(count: u8) -> Vec<Did> {
    (1..=count).map(did).collect()
}

fn answer(core: &mut Recovery, n: u8, answer: Answer, now: Timestamp) -> Vec<Effect> {
    let holder = did(n);
    core.handle(Input::Answered { holder, answer }, now)
}

fn log(core: &mut Recovery, extent: Extent, now: Timestamp) -> Vec<Effect> {
    let input = Input::Log {
        extent,
        damaged: None,
        reach: extent,
    };
    core.handle(input, now)
}

fn settle(core: &mut Recovery, now: Timestamp) {
    let effects = core.handle(Input::Settled { done: true }, now);
    assert_eq!(effects, []);
    assert_eq!(core.phase(), Phase::Open);
    assert!(!core.troubles().any());
}

fn failed() -> Answer {
    Answer::Failed { why: "away".into() }
}

#[test]
fn a_home_that_nobody_else_holds_is_open_at_once() {
    let mut core = Recovery::new(Troubles::default(), &[], true, START);
    assert_eq!(core.phase(), Phase::Open);
    assert_eq!(core.handle(Input::Tick, START), []);
    assert_eq!(core.next_wake(), None);
}

#[test]
fn a_start_waits_for_every_holder_and_no_longer() {
    let mut core = Recovery::new(Troubles::default(), &holders(2), true, START);
    let asked = core.handle(Input::Tick, START);
    assert_eq!(asked.len(), 2, "both are asked: {asked:?}");
    assert_eq!(answer(&mut core, 1, Answer::Level, START), []);
    assert_eq!(answer(&mut core, 2, Answer::Level, START), [Effect::Open]);
    assert_eq!(core.next_wake(), None, "an open node is not woken");
}

#[test]
fn a_holder_that_is_away_holds_a_start_up_for_five_seconds() {
    let mut core = Recovery::new(Troubles::default(), &holders(1), true, START);
    core.handle(Input::Tick, START);
    assert_eq!(answer(&mut core, 1, failed(), START), []);
    assert_eq!(
        core.handle(Input::Tick, after(1)),
        [Effect::Ask(did(1))],
        "it may be back"
    );
    assert_eq!(core.next_wake(), Some(after(5)));
    assert_eq!(core.handle(Input::Tick, after(5)), [Effect::Open]);
}

#[test]
fn a_start_that_took_long_to_read_its_log_asks_all_the_same() {
    let mut core = Recovery::new(Troubles::default(), &holders(1), true, START);
    core.ask_from(after(30));
    assert_eq!(core.handle(Input::Tick, after(30)), [Effect::Ask(did(1))]);
    assert_eq!(core.next_wake(), Some(after(35)));
}

#[test]
fn a_clock_that_is_set_back_holds_no_start_up() {
    let mut core = Recovery::new(Troubles::default(), &holders(1), true, START);
    assert!(
        core.handle(Input::Tick, Timestamp(10))
            .contains(&Effect::Open)
    );
}

#[test]
fn a_restored_home_waits_for_all_and_for_ever() {
    let mut core = Recovery::new(restored(), &holders(2), true, START);
    core.handle(Input::Tick, START);
    answer(&mut core, 1, Answer::Level, START);
    answer(&mut core, 2, failed(), START);
    for hour in 1..48 {
        let now = after(hour * 3600);
        let effects = core.handle(Input::Tick, now);
        assert_eq!(effects, [Effect::Ask(did(2))], "hour {hour}");
        answer(&mut core, 2, failed(), now);
        let wake = core.next_wake().unwrap();
        assert!(wake.since(now) <= MAX_RETRY, "O6: {:?}", wake.since(now));
    }
    let now = after(48 * 3600);
    core.handle(Input::Tick, now);
    assert_eq!(
        answer(&mut core, 2, Answer::Level, now),
        [Effect::Settle { above: 0 }]
    );
    settle(&mut core, now);
}

#[test]
fn an_absent_holder_is_asked_every_four_seconds_at_first() {
    let mut core = Recovery::new(restored(), &holders(1), true, START);
    for second in (0..500).step_by(4) {
        assert_eq!(
            core.handle(Input::Tick, after(second)),
            [Effect::Ask(did(1))]
        );
        answer(&mut core, 1, failed(), after(second));
        assert_eq!(core.next_wake(), Some(after(second + 4)));
    }
}

#[test]
fn a_restored_home_that_names_nobody_waits_for_its_operator() {
    let mut core = Recovery::new(restored(), &[], true, START);
    assert_eq!(core.handle(Input::Tick, after(100_000)), []);
    assert_eq!(core.handle(Input::AskAgain, after(100_000)), []);
    let effects = core.handle(Input::AcceptLoss, after(100_000));
    assert_eq!(effects, [Effect::Settle { above: 0 }]);
    settle(&mut core, after(100_000));
}

#[test]
fn an_unreadable_roster_names_nobody_that_could_be_left_out() {
    let mut core = Recovery::new(restored(), &holders(1), true, START);
    core.handle(Input::Tick, START);
    let named = vec![];
    core.handle(
        Input::Holders {
            named,
            known: false,
        },
        START,
    );
    assert_eq!(answer(&mut core, 1, Answer::Level, START), []);
    let named = holders(1);
    let effects = core.handle(Input::Holders { named, known: true }, START);
    assert_eq!(effects, [Effect::Settle { above: 0 }]);
}

#[test]
fn what_a_holder_has_beyond_ours_is_adopted_and_then_everybody_is_asked() {
    let mut core = Recovery::new(Troubles::default(), &holders(2), true, START);
    core.handle(Input::Tick, START);
    answer(&mut core, 2, Answer::Level, START);
    let effects = answer(&mut core, 1, Answer::Beyond, START);
    assert_eq!(
        effects,
        [Effect::Close, Effect::Adopt(did(1)), Effect::Ask(did(2))],
        "closed before adopted"
    );
    assert_eq!(
        core.handle(Input::Tick, after(60)),
        [],
        "five seconds end nothing any more"
    );
    log(&mut core, extent(9, 9), after(60));
    assert_eq!(answer(&mut core, 1, Answer::Level, after(60)), []);
    assert_eq!(
        answer(&mut core, 2, Answer::Level, after(60)),
        [Effect::Settle { above: 0 }]
    );
    settle(&mut core, after(60));
}

#[test]
fn one_holder_is_adopted_from_at_a_time_and_the_next_is_asked_again() {
    let mut core = Recovery::new(restored(), &holders(2), true, START);
    core.handle(Input::Tick, START);
    let effects = answer(&mut core, 1, Answer::Beyond, START);
    assert_eq!(effects, [Effect::Close, Effect::Adopt(did(1))]);
    assert_eq!(
        answer(&mut core, 2, Answer::Beyond, START),
        [Effect::Close],
        "its reason is another one"
    );
    assert_eq!(
        answer(&mut core, 1, Answer::Level, START),
        [Effect::Ask(did(2))]
    );
}

#[test]
fn an_open_node_that_is_shown_more_closes() {
    let mut core = Recovery::new(Troubles::default(), &holders(1), true, START);
    core.handle(Input::Tick, START);
    core.handle(Input::Tick, after(5));
    assert_eq!(core.phase(), Phase::Open);
    let effects = answer(&mut core, 1, Answer::Beyond, after(7));
    assert_eq!(effects, [Effect::Close, Effect::Adopt(did(1))]);
}

#[test]
fn a_claim_is_looked_into_and_a_liar_is_heeded_ever_more_seldom() {
    let mut core = Recovery::new(Troubles::default(), &holders(1), true, START);
    core.handle(Input::Tick, START);
    answer(&mut core, 1, Answer::Level, START);
    let (mut heeded, mut waited) = (0, 0);
    for second in 1..3600 {
        let effects = core.handle(Input::Claimed { holder: did(1) }, after(second));
        if effects == [Effect::Wait, Effect::Ask(did(1))] {
            heeded += 1;
            assert_eq!(
                answer(&mut core, 1, Answer::Level, after(second)),
                [Effect::Open]
            );
        } else {
            assert_eq!(effects, []);
            waited += 1;
        }
    }
    assert!((3..15).contains(&heeded), "{heeded} of {waited}");
}

#[test]
fn a_claim_of_somebody_who_is_not_named_is_nothing() {
    let mut core = Recovery::new(Troubles::default(), &[], true, START);
    assert_eq!(core.handle(Input::Claimed { holder: did(1) }, START), []);
}

#[test]
fn a_presence_without_its_slices_says_how_far_the_log_must_reach() {
    let mut core = Recovery::new(Troubles::default(), &holders(2), true, START);
    core.handle(Input::Tick, START);
    log(&mut core, extent(3, 3), START);
    assert_eq!(
        answer(&mut core, 1, Answer::Withheld { size: 5 }, START),
        [Effect::Close, Effect::Ask(did(1))]
    );
    answer(&mut core, 2, Answer::Level, START);
    assert_eq!(
        answer(&mut core, 1, Answer::Withheld { size: 5 }, START),
        [],
        "all have answered, two entries are missing"
    );
    answer(&mut core, 2, Answer::Beyond, after(4));
    log(&mut core, extent(5, 5), after(4));
    assert_eq!(
        answer(&mut core, 2, Answer::Level, after(4)),
        [Effect::Settle { above: 3 }]
    );
}

#[test]
fn a_damaged_log_ends_when_it_reaches_what_was_signed() {
    let mut core = Recovery::new(Troubles::default(), &holders(1), true, START);
    core.handle(Input::Tick, START);
    let damage = Input::Log {
        extent: extent(2, 20),
        damaged: Some("a line does not verify".into()),
        reach: extent(4, 40),
    };
    assert_eq!(core.handle(damage, START), [Effect::Close]);
    assert_eq!(
        answer(&mut core, 1, Answer::Level, START),
        [],
        "it is asked again: it answered before"
    );
    core.handle(Input::Tick, after(4));
    let effects = answer(&mut core, 1, Answer::Beyond, after(4));
    assert_eq!(effects, [Effect::Close, Effect::Adopt(did(1))]);
    log(&mut core, extent(4, 39), after(4));
    assert_eq!(
        answer(&mut core, 1, Answer::Level, after(4)),
        [],
        "the last presence is missing"
    );
    assert_eq!(
        log(&mut core, extent(4, 40), after(4)),
        [Effect::Settle { above: 40 }]
    );
}

#[test]
fn damage_that_is_mended_by_hand_needs_no_holder() {
    let mut core = Recovery::new(Troubles::default(), &[], true, START);
    let damage = Input::Log {
        extent: extent(2, 20),
        damaged: Some("gone".into()),
        reach: extent(4, 40),
    };
    assert_eq!(core.handle(damage, START), [Effect::Close]);
    assert_eq!(
        log(&mut core, extent(3, 40), START),
        [],
        "not all of it is back"
    );
    assert_eq!(
        log(&mut core, extent(4, 40), START),
        [Effect::Settle { above: 40 }]
    );
    settle(&mut core, START);
}

#[test]
fn loss_is_accepted_above_every_sequence_that_is_known() {
    let troubles = Troubles {
        damaged: Some("gone".into()),
        reach: extent(4, 40),
        ..Troubles::default()
    };
    let mut core = Recovery::new(troubles, &holders(1), true, START);
    core.handle(Input::Tick, START);
    assert_eq!(
        core.handle(Input::AcceptLoss, START),
        [Effect::Settle { above: 40 }]
    );
    settle(&mut core, START);
}

#[test]
fn a_fork_ends_by_a_new_epoch_alone() {
    let mut core = Recovery::new(restored(), &holders(1), true, START);
    core.handle(Input::Tick, START);
    let why = "two slices at 3".to_owned();
    assert_eq!(
        answer(&mut core, 1, Answer::Forked { why }, START),
        [Effect::Close]
    );
    assert_eq!(
        core.handle(Input::Tick, after(100)),
        [],
        "no answer could mend it"
    );
    assert_eq!(core.handle(Input::AcceptLoss, after(100)), []);
    let begun = Extent {
        epoch: 1,
        size: 0,
        sequence: 50,
    };
    let effects = core.handle(Input::Reset { extent: begun }, after(100));
    assert_eq!(effects, [Effect::Settle { above: 0 }]);
    settle(&mut core, after(100));
}

#[test]
fn what_comes_up_while_the_recovery_ends_keeps_it_closed() {
    let mut core = Recovery::new(restored(), &holders(1), true, START);
    core.handle(Input::Tick, START);
    assert_eq!(
        core.handle(Input::AcceptLoss, START),
        [Effect::Settle { above: 0 }]
    );
    answer(&mut core, 1, Answer::Beyond, START);
    let effects = core.handle(Input::Settled { done: true }, START);
    assert_eq!(effects, [Effect::Close, Effect::Adopt(did(1))]);
}

#[test]
fn an_end_that_could_not_be_kept_is_tried_again() {
    let mut core = Recovery::new(restored(), &holders(1), true, START);
    core.handle(Input::Tick, START);
    answer(&mut core, 1, Answer::Level, START);
    core.handle(Input::Settled { done: false }, START);
    assert_ne!(core.phase(), Phase::Open);
    assert_eq!(core.next_wake(), Some(after(4)));
    assert_eq!(
        core.handle(Input::Tick, after(4)),
        [Effect::Settle { above: 0 }]
    );
}

#[test]
fn who_is_named_while_it_recovers_is_waited_for_and_who_is_removed_is_not() {
    let mut core = Recovery::new(restored(), &holders(1), true, START);
    core.handle(Input::Tick, START);
    let named = holders(2);
    assert_eq!(
        core.handle(Input::Holders { named, known: true }, START),
        [Effect::Ask(did(2))]
    );
    assert_eq!(answer(&mut core, 1, Answer::Level, START), []);
    let named = holders(1);
    let effects = core.handle(Input::Holders { named, known: true }, START);
    assert_eq!(effects, [Effect::Settle { above: 0 }]);
}

#[test]
fn troubles_survive_being_kept() {
    let troubles = Troubles {
        restored: true,
        ahead: Some(did(1)),
        damaged: Some("cut".into()),
        forked: Some(OwnFork {
            epoch: 2,
            why: "two".into(),
        }),
        reach: extent(1, 2),
    };
    let kept = serde_json::to_vec(&troubles).unwrap();
    assert_eq!(serde_json::from_slice::<Troubles>(&kept).unwrap(), troubles);
    let codes: Vec<_> = troubles
        .reasons()
        .into_iter()
        .map(|(code, _)| code)
        .collect();
    assert_eq!(codes, ["own_fork", "log_damaged", "seen_ahead", "restored"]);
}
