//! What is news, and how long who wasted a stream is left alone.

use hn_protocol::digest::Digest;
use hn_protocol::log::LogState;

use super::*;

fn did() -> Did {
    hn_protocol::did::SecretSeed::from_bytes([1; 32]).did()
}

#[test]
fn what_is_held_is_no_news_and_what_is_more_or_other_is() {
    let held = LogState::empty(did(), 1);
    let head = NewHead::of(&held);
    assert!(!head.is_beyond(&held));
    let older = NewHead {
        epoch: 0,
        log_size: 99,
        ..head.clone()
    };
    assert!(!older.is_beyond(&held), "an epoch that is over");
    let grown = NewHead {
        log_size: 1,
        ..head.clone()
    };
    assert!(grown.is_beyond(&held));
    let begun_anew = NewHead {
        epoch: 2,
        ..head.clone()
    };
    assert!(begun_anew.is_beyond(&held));
    let other = NewHead {
        presence: Some(Digest::of(b"another")),
        ..head
    };
    assert!(other.is_beyond(&held));
}

#[test]
fn the_more_a_peer_lists_the_longer_its_stream_rests_after_news() {
    assert!(rest(0).is_zero());
    assert_eq!(rest(10_000), Duration::from_secs(2));
    assert_eq!(rest(usize::MAX), SILENCE);
}

#[test]
fn pauses_double_up_to_a_quarter_of_an_hour() {
    let mut slot = Slot {
        target: WatchPeer {
            peer: did(),
            base: Url::parse("http://192.0.2.1").unwrap_or_else(|error| panic!("{error}")),
            trust: Trust::Operator,
            held: true,
            ignored: BTreeSet::new(),
            listed: 0,
        },
        ignored: Rc::default(),
        rest: Rc::default(),
        stream: None,
        not_before: None,
        waits: false,
        wasted: 0,
    };
    let pauses: Vec<u64> = (0..7).map(|_| slot.waste(PAUSE).as_secs()).collect();
    assert_eq!(pauses, [30, 60, 120, 240, 480, 900, 900]);
    slot.wasted = u32::MAX;
    assert_eq!(slot.waste(SHORT_PAUSE), SHORT_PAUSE * 512);
}
