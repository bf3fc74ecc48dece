//! Pages whose every line is a well-signed document, and which are refused all the same: rules L1–L8 and
//! P1–P5 of `spec/`.

use hn_protocol::digest::Digest;
use hn_protocol::log::{
    History, Line, LogState, PageContext, PresenceMark, SliceMark, Source, replay,
};
use hn_protocol::time::Timestamp;
use serde_json::json;

use crate::common::{DAY_MS, Journal, Publisher, START, file};
use crate::forge::{Object, digest_of, reroot, set, signed};
use crate::scene::{alice, alice_signs, code, follower_of, judge, page_of, whole};

fn nothing(publisher: &Publisher) -> Journal {
    Journal::empty(publisher.identity.did())
}

fn another() -> String {
    Digest::of(b"another").to_string()
}

// ---- whose log it is

#[test]
fn a_presence_of_another_publisher_is_refused() {
    let (alice, bob) = (alice(), Publisher::new(2));
    let held = follower_of(&alice);
    assert_eq!(code(&held, &alice, &whole(&bob)), "wrong_publisher");
    let mut page = whole(&alice);
    page.lines[2] = whole(&bob).lines[0].clone();
    assert_eq!(code(&held, &alice, &page), "wrong_publisher");
}

#[test]
fn a_slice_of_another_publisher_is_refused() {
    let (alice, mut bob) = (alice(), Publisher::new(2));
    bob.commit(vec![file("x")]);
    let page = page_of([&whole(&alice).lines[0], &whole(&bob).lines[1]]);
    assert_eq!(code(&nothing(&alice), &alice, &page), "wrong_publisher");
}

#[test]
fn another_epoch_is_refused_in_a_slice_and_in_a_presence() {
    // A presence of a later epoch may be the beginning of a new log, which is for the follower to find out.
    for (at, code) in [(0, "new_epoch"), (1, "wrong_epoch"), (6, "new_epoch")] {
        assert_eq!(alice_signs(at, set("epoch", 1)), code, "line {at}");
    }
}

#[test]
fn a_document_that_belongs_to_no_log_is_refused() {
    assert_eq!(alice_signs(1, set("type", "revocation@1")), "wrong_type");
}

#[test]
fn a_kept_line_of_another_publisher_is_refused_on_replay() {
    let (alice, bob) = (alice(), Publisher::new(2));
    let mut state = LogState::empty(alice.identity.did(), 0);
    let verdict = replay(&mut state, &bob.log.lines[0], &nothing(&alice));
    assert_eq!(verdict.unwrap_err().code(), "wrong_publisher");
}

// ---- L1–L3: order, chain and root

#[test]
fn a_skipped_slice_is_refused() {
    // Two slices of one commit name the same presence, so that nothing but the gap is wrong.
    let mut alice = Publisher::new(1);
    alice.commit((0..600).map(|i| file(&format!("{i}"))).collect());
    let lines = whole(&alice).lines;
    let page = page_of([&lines[0], &lines[2], &lines[3]]);
    assert_eq!(code(&nothing(&alice), &alice, &page), "gap");
}

#[test]
fn a_repeated_seq_is_refused() {
    // The second slice begins at 2 again, a seq that the first one has.
    let repeat = |o: &mut Object| {
        o.insert("cursor".into(), "2".into());
        o.insert("next_cursor".into(), "4".into());
        o.insert("log_size".into(), 4.into());
        o["entries"][0]["seq"] = 2.into();
        o["entries"][1]["seq"] = 3.into();
        reroot(o);
    };
    assert_eq!(alice_signs(3, repeat), "conflicting_slice");
}

#[test]
fn a_slice_that_chains_to_another_is_refused() {
    assert_eq!(alice_signs(3, set("prev", another())), "broken_chain");
}

#[test]
fn a_log_root_that_does_not_follow_is_refused() {
    for at in [1, 3, 5] {
        let verdict = alice_signs(at, set("log_root", another()));
        assert_eq!(verdict, "wrong_log_root", "line {at}");
    }
}

#[test]
fn an_altered_entry_breaks_the_log_root_though_its_slice_is_sound() {
    let forge = |o: &mut Object| {
        o["entries"][0]["path"] = "forged".into();
        reroot(o);
    };
    assert_eq!(alice_signs(1, forge), "wrong_log_root");
}

#[test]
fn a_slice_other_than_the_one_held_is_refused() {
    // Alice signs two pasts: what a follower took first stays.
    let mut other = Publisher::new(1);
    other.commit(vec![file("a"), file("b"), file("other")]);
    let held = follower_of(&alice());
    let before = held.state.clone();
    assert_eq!(code(&held, &other, &whole(&other)), "fork");
    assert_eq!(held.state, before);
}

#[test]
fn a_slice_cut_differently_from_the_one_held_is_refused() {
    let mut other = Publisher::new(1);
    other.commit(vec![file("a"), file("b")]);
    other.commit(vec![file("c"), file("d"), file("e"), file("f")]);
    let held = follower_of(&alice());
    let page = page_of(&other.log.page(2, 1).lines[1..]);
    assert_eq!(code(&held, &other, &page), "fork");
}

// ---- L4: what a presence binds

#[test]
fn a_presence_with_another_root_at_its_size_is_refused() {
    for at in [2, 4, 6] {
        let verdict = alice_signs(at, set("merkle_root", another()));
        assert_eq!(verdict, "conflicting_presence", "line {at}");
    }
}

#[test]
fn a_presence_at_a_size_where_no_slice_ends_is_refused() {
    assert_eq!(alice_signs(6, set("log_size", 4)), "unbound_presence");
    assert_eq!(alice_signs(4, set("log_size", 4)), "unbound_presence");
}

#[test]
fn a_current_presence_beyond_the_end_of_the_log_is_refused() {
    assert_eq!(alice_signs(6, set("log_size", 7)), "unbound_presence");
}

#[test]
fn a_presence_shown_before_the_slices_that_it_binds_is_refused() {
    let alice = alice();
    let mut page = whole(&alice);
    page.lines.swap(1, 2);
    assert_eq!(code(&nothing(&alice), &alice, &page), "unbound_presence");
}

// ---- L5: sequences

#[test]
fn a_lower_presence_sequence_from_the_publisher_is_refused_also_after_a_restart() {
    let mut alice = alice();
    let old = whole(&alice).lines[6].clone();
    alice.commit(vec![]);
    let held = follower_of(&alice);
    assert_eq!(code(&held, &alice, &page_of([&old])), "rollback");

    let mut restarted = nothing(&alice);
    for line in &held.lines {
        let mut state = restarted.state.clone();
        replay(&mut state, line, &restarted).unwrap();
        restarted.keep(vec![line.clone()], state);
    }
    assert_eq!(code(&restarted, &alice, &page_of([&old])), "rollback");
}

#[test]
fn a_smaller_log_under_a_higher_sequence_is_refused_whoever_shows_it() {
    let alice = alice();
    let lines = whole(&alice).lines;
    let shrunk = signed(&lines[2], &alice.identity, |o| {
        o.insert("sequence".into(), alice.now.0.into());
    });
    let held = follower_of(&alice);
    for source in [Source::Publisher, Source::Holder] {
        let refused = judge(&held, &alice, &page_of([&shrunk]), source).unwrap_err();
        assert_eq!(refused.code(), "rollback", "{source:?}");
    }
}

#[test]
fn slices_that_the_publishers_presence_does_not_cover_are_refused() {
    // The page says that it reaches the head, and its last presence says that the log ends earlier.
    let alice = alice();
    let lines = whole(&alice).lines;
    let page = page_of(lines[..6].iter().chain([&lines[4]]));
    assert_eq!(code(&nothing(&alice), &alice, &page), "rollback");
}

#[test]
fn one_sequence_with_two_contents_is_refused_from_anybody() {
    let alice = alice();
    let held = follower_of(&alice);
    let current = &whole(&alice).lines[6];
    let twin = signed(current, &alice.identity, set("services", json!(["dht"])));
    for source in [Source::Publisher, Source::Holder] {
        let verdict = judge(&held, &alice, &page_of([&twin]), source);
        assert_eq!(verdict.unwrap_err().code(), "fork");
    }
}

#[test]
fn a_twin_of_the_presence_that_the_last_slice_names_is_refused() {
    let alice = alice();
    let held = follower_of(&alice);
    let named = &whole(&alice).lines[4];
    let twin = signed(named, &alice.identity, set("services", json!(["dht"])));
    let verdict = judge(&held, &alice, &page_of([&twin]), Source::Holder);
    assert_eq!(verdict.unwrap_err().code(), "fork");
}

#[test]
fn one_sequence_with_two_contents_on_one_page_is_refused() {
    let alice = alice();
    let lines = whole(&alice).lines;
    let twin = signed(&lines[0], &alice.identity, set("services", json!(["dht"])));
    let page = page_of([&lines[0], &twin, &lines[1]]);
    assert_eq!(
        code(&nothing(&alice), &alice, &page),
        "conflicting_presence"
    );
}

// ---- L7: what a slice names

#[test]
fn a_slice_that_names_a_presence_never_shown_is_refused() {
    let verdict = alice_signs(3, set("presence_digest", another()));
    assert_eq!(verdict, "unbound_slice");
    let alice = alice();
    let page = page_of(&whole(&alice).lines[1..]);
    assert_eq!(code(&nothing(&alice), &alice, &page), "unbound_slice");
}

#[test]
fn a_slice_that_names_an_older_presence_than_the_slice_before_is_refused() {
    let first = digest_of(&whole(&alice()).lines[0]);
    let verdict = alice_signs(5, set("presence_digest", first));
    assert_eq!(verdict, "unbound_slice");
}

/// Remembers one presence, and every root as one and the same.
struct Recalls {
    mark: PresenceMark,
    root: Digest,
}

impl History for Recalls {
    fn slice_holding(&self, _: u64) -> Option<SliceMark> {
        None
    }

    fn presence_with(&self, _: u64) -> Option<Digest> {
        None
    }

    fn root_at(&self, _: u64) -> Option<Digest> {
        Some(self.root)
    }

    fn presence(&self, digest: &Digest) -> Option<PresenceMark> {
        (*digest == self.mark.digest).then_some(self.mark)
    }
}

/// Alice's first slice, naming a presence that only the follower's memory knows.
fn first_slice_naming(log_size: u64, merkle_root: Digest, root: Digest) -> Option<&'static str> {
    let alice = alice();
    let lines = whole(&alice).lines;
    let mark = PresenceMark {
        digest: Digest::of(b"remembered"),
        sequence: alice.now.0,
        log_size,
        merkle_root,
        expires_at: Timestamp(u64::MAX),
    };
    let slice = signed(
        &lines[1],
        &alice.identity,
        set("presence_digest", mark.digest.to_string()),
    );
    let context = PageContext {
        now: alice.now,
        source: Source::Publisher,
        reaches_head: false,
    };
    let state = LogState::empty(alice.identity.did(), 0);
    let verdict = state.follow(&[slice], context, &Recalls { mark, root });
    verdict.err().map(|error| error.code())
}

#[test]
fn a_slice_that_names_a_later_bound_presence_is_refused() {
    let (root, empty) = (Digest::of(b"root"), Digest::of(b""));
    assert_eq!(first_slice_naming(3, root, root), Some("unbound_slice"));
    assert_eq!(first_slice_naming(0, empty, root), None);
}

#[test]
fn a_slice_that_names_a_presence_of_another_root_is_refused() {
    let root = Digest::of(b"root");
    assert_eq!(first_slice_naming(0, root, root), Some("unbound_slice"));
}

// ---- P: what a presence says of itself

#[test]
fn what_lies_more_than_five_minutes_ahead_is_refused() {
    let soon = START.0 + 300_000 + 4_000;
    assert_eq!(alice_signs(6, set("sequence", soon + 1)), "ahead_of_clock");
    for (at, member) in [(6, "issued_at"), (1, "generated_at"), (3, "generated_at")] {
        let later = Timestamp(soon + 1).to_string();
        assert_eq!(
            alice_signs(at, set(member, later)),
            "ahead_of_clock",
            "{member}"
        );
    }
    let alice = alice();
    let mut page = whole(&alice);
    page.lines[6] = signed(&page.lines[6], &alice.identity, |o| {
        o.insert("sequence".into(), soon.into());
        o.insert("issued_at".into(), Timestamp(soon).to_string().into());
    });
    assert!(judge(&nothing(&alice), &alice, &page, Source::Publisher).is_ok());
}

#[test]
fn an_expired_presence_is_refused_from_the_publisher_and_taken_from_a_holder() {
    let mut alice = alice();
    let page = whole(&alice);
    alice.now = Timestamp(START.0 + 3_000 + DAY_MS);
    assert_eq!(code(&nothing(&alice), &alice, &page), "expired_presence");
    let taken = judge(&nothing(&alice), &alice, &page, Source::Holder).unwrap();
    assert_eq!(taken.state.size(), 6);
    alice.now.0 -= 1;
    assert!(judge(&nothing(&alice), &alice, &page, Source::Publisher).is_ok());
}

#[test]
fn a_page_that_reaches_the_head_without_the_current_presence_is_refused() {
    let alice = alice();
    let mut page = whole(&alice);
    page.lines.pop();
    for source in [Source::Publisher, Source::Holder] {
        let verdict = judge(&nothing(&alice), &alice, &page, source);
        assert_eq!(verdict.unwrap_err().code(), "no_current_presence");
    }
    let empty = page_of([]);
    assert_eq!(
        code(&nothing(&alice), &alice, &empty),
        "no_current_presence"
    );
}

#[test]
fn a_line_that_is_no_document_is_named_by_its_number() {
    let alice = alice();
    let mut page = whole(&alice);
    page.lines[3] = "{}".into();
    let verdict = judge(&nothing(&alice), &alice, &page, Source::Publisher);
    let error = verdict.unwrap_err();
    assert!(error.to_string().starts_with("line 4: "), "{error}");
    assert!(matches!(alice.log.lines[0], Line::Presence(_)));
}
