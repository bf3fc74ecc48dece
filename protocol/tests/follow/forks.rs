//! Forks, epochs and pruned beginnings: rules K1–K6, E1–E3, R1–R4 of `spec/`.

use bytes::Bytes;
use hn_protocol::canonical;
use hn_protocol::document::ForkEvidence;
use hn_protocol::log::{
    Conflict, FrontierLine, HeldDocument, History, Line, LogState, NoHistory, PageError, Source,
    conflict, replay,
};
use hn_protocol::sign::{DocumentError, Signed};
use serde_json::json;

use crate::common::{Journal, Publisher, file, identity};
use crate::forge::{Object, set, signed};
use crate::scene::{alice, code, follower_of, judge, page_of, whole};

/// Alice's twin: the same key, another past.
fn twin() -> Publisher {
    let mut twin = Publisher::new(1);
    twin.commit(vec![file("a"), file("other")]);
    twin.commit(vec![file("x"), file("y"), file("z"), file("w")]);
    twin
}

fn line(bytes: &Bytes) -> Line {
    Line::verify(bytes.clone()).unwrap()
}

#[test]
fn overlapping_slices_equal_sizes_and_equal_sequences_are_conflicts_and_nothing_else_is() {
    let (alice, twin) = (alice(), twin());
    let (hers, others) = (whole(&alice).lines, whole(&twin).lines);
    let (a, b) = (line(&hers[1]), line(&others[1]));
    assert_eq!(conflict(&a, &b), Some(Conflict::Slices), "other ends");
    assert_eq!(conflict(&b, &a), Some(Conflict::Slices), "in any order");
    assert_eq!(conflict(&a, &a), None, "a document and itself");
    assert_eq!(conflict(&a, &line(&hers[3])), None, "neighbours");
    let wrong = signed(
        &hers[2],
        &alice.identity,
        set("merkle_root", "00".repeat(32)),
    );
    assert_eq!(conflict(&a, &line(&wrong)), Some(Conflict::Heads));
    let same = signed(&hers[2], &alice.identity, set("services", json!(["dht"])));
    assert_eq!(
        conflict(&line(&hers[2]), &line(&same)),
        Some(Conflict::Sequence)
    );
    assert_eq!(conflict(&a, &line(&same)), None, "one root for one size");
    let epoch = signed(&others[1], &alice.identity, set("epoch", 1));
    assert_eq!(conflict(&a, &line(&epoch)), None, "another log");
    let bob = {
        let mut bob = Publisher::new(2);
        bob.commit(vec![file("b")]);
        bob
    };
    assert_eq!(
        conflict(&a, &line(&whole(&bob).lines[1])),
        None,
        "another publisher"
    );
}

#[test]
fn a_fork_is_told_with_the_document_held_and_proves_itself() {
    let (alice, twin) = (alice(), twin());
    let held = follower_of(&alice);
    let verdict = judge(&held, &alice, &whole(&twin), Source::Holder);
    let Err(PageError::Fork { shown, held: which }) = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(which, HeldDocument::Slice { cursor: 0 });
    let evidence =
        ForkEvidence::sign(&alice.log.lines[1], &shown, alice.now, &identity(3)).unwrap();
    let read = Signed::<ForkEvidence>::verify(evidence.bytes().clone()).unwrap();
    assert_eq!(read.conflict(), Some(Conflict::Slices));
    assert_eq!(read.publisher, alice.identity.did());
}

#[test]
fn a_fork_on_the_last_line_is_told_before_a_gap_on_the_first() {
    let (alice, twin) = (alice(), twin());
    let mut held = Journal::empty(alice.identity.did());
    let page = page_of(&whole(&alice).lines[..3]);
    let verified = judge(&held, &alice, &page, Source::Publisher).unwrap();
    held.keep(verified.lines, verified.state);
    // The slice at 5 has a gap before it; the one at 0 is not the one that is held.
    let page = page_of([&whole(&alice).lines[5], &whole(&twin).lines[1]]);
    assert_eq!(code(&held, &alice, &page), "fork");
}

#[test]
fn a_presence_with_another_root_at_a_held_size_is_a_fork_whoever_shows_it() {
    let alice = alice();
    let held = follower_of(&alice);
    for at in [2, 4, 6] {
        let edit = |o: &mut Object| {
            o.insert("merkle_root".into(), "00".repeat(32).into());
            o["sequence"] = (o["sequence"].as_u64().unwrap() + 1).into();
        };
        let lie = signed(&whole(&alice).lines[at], &alice.identity, edit);
        for source in [Source::Publisher, Source::Holder] {
            let verdict = judge(&held, &alice, &page_of([&lie]), source);
            let told = matches!(
                verdict,
                Err(PageError::Fork {
                    held: HeldDocument::Slice { .. },
                    ..
                })
            );
            assert!(told, "line {at}, {source:?}");
        }
    }
}

#[test]
fn evidence_that_is_no_conflict_or_is_forged_is_refused() {
    let (alice, twin) = (alice(), twin());
    let lines = &alice.log.lines;
    let none = ForkEvidence::sign(&lines[1], &lines[3], alice.now, &identity(3));
    assert_eq!(none.unwrap_err(), DocumentError::NoConflict);

    let evidence =
        ForkEvidence::sign(&lines[1], &twin.log.lines[1], alice.now, &identity(3)).unwrap();
    let refused = |edit: &dyn Fn(&mut Object)| {
        let forged = signed(evidence.bytes(), &identity(3), edit);
        Signed::<ForkEvidence>::verify(forged).unwrap_err().code()
    };
    let (slice, next) = (object(&lines[1]), object(&lines[3]));
    let pair = |a: &Object, b: &Object| {
        let mut pair = [a.clone(), b.clone()];
        pair.sort_by_key(|o| o["id"].as_str().unwrap().to_owned());
        json!(pair)
    };
    assert_eq!(
        refused(&|o| drop(o.insert("documents".into(), pair(&slice, &next)))),
        "no_conflict"
    );
    assert_eq!(
        refused(&|o| drop(o.insert("documents".into(), pair(&slice, &slice)))),
        "malformed_document"
    );
    assert_eq!(
        refused(&|o| o["documents"].as_array_mut().unwrap().reverse()),
        "malformed_document"
    );
    assert_eq!(
        refused(&|o| drop(o["documents"].as_array_mut().unwrap().pop())),
        "malformed_document"
    );
    assert_eq!(
        refused(&|o| drop(o.insert("epoch".into(), 1.into()))),
        "malformed_document"
    );
    let did = identity(2).did().to_string();
    assert_eq!(
        refused(&|o| drop(o.insert("publisher".into(), did.clone().into()))),
        "malformed_document"
    );
    assert_eq!(
        refused(&|o| o["documents"][0]["entries"][0]["path"] = "b".into()),
        "wrong_id"
    );
    assert_eq!(
        refused(&|o| drop(o.insert("observer".into(), did.clone().into()))),
        "wrong_signature"
    );
}

fn object(line: &Line) -> Object {
    crate::forge::object(line.bytes())
}

#[test]
fn a_document_at_the_limits_of_its_type_can_be_carried_as_evidence() {
    let (alice, twin) = (alice(), twin());
    let deep = |depth: usize| (1..depth).fold(json!({}), |inner, _| json!({ "d": inner }));
    // A member of a document is at depth 2: 30 levels below it reach 32.
    let slice = signed(twin.log.lines[1].bytes(), &identity(1), |o| {
        o.insert("x".into(), deep(canonical::MAX_DEPTH - 1));
    });
    let evidence = ForkEvidence::sign(&alice.log.lines[1], &line(&slice), alice.now, &identity(3));
    let evidence = evidence.unwrap();
    assert!(Signed::<ForkEvidence>::verify(evidence.bytes().clone()).is_ok());
    let long = "1e15,".repeat(200_000);
    let text = String::from_utf8(slice.to_vec()).unwrap();
    let short = text.replacen('{', &format!("{{\"n\":[{}0],", long), 1);
    let refused = Line::verify(short.into()).unwrap_err();
    assert_eq!(
        refused.code(),
        "document_too_large",
        "its canonical form counts as well"
    );
}

// ---- epochs

fn next_epoch(publisher: &mut Publisher) {
    let state = publisher
        .log
        .state
        .next_epoch(publisher.log.state.epoch + 1);
    publisher.log = Journal::empty(publisher.identity.did());
    publisher.log.state = state;
    publisher.commit(vec![]);
}

#[test]
fn a_later_epoch_is_followed_from_its_beginning_and_sequences_go_on() {
    let mut alice = alice();
    let held = follower_of(&alice);
    let before = held.state.presence.unwrap().sequence;
    // Her clock was set back meanwhile: the sequence grows all the same.
    alice.now.0 -= 60_000;
    next_epoch(&mut alice);
    alice.commit(vec![file("anew")]);
    let verdict = judge(&held, &alice, &whole(&alice), Source::Publisher);
    assert_eq!(verdict.unwrap_err(), PageError::NewEpoch(1));
    let mut again = Journal::empty(alice.identity.did());
    again.state = held.state.next_epoch(1);
    let page = judge(&again, &alice, &whole(&alice), Source::Publisher).unwrap();
    assert_eq!((page.state.epoch, page.state.size()), (1, 1));
    assert!(page.state.presence.unwrap().sequence > before);
}

#[test]
fn a_later_epoch_that_does_not_go_on_in_sequence_is_refused() {
    let alice = alice();
    let held = follower_of(&alice);
    let mut other = Publisher::new(1);
    next_epoch(&mut other);
    // Signed long before what was accepted of the epoch before.
    let old = signed(&whole(&other).lines[0], &alice.identity, set("sequence", 5));
    assert_eq!(code(&held, &alice, &page_of([&old])), "rollback");
    let mut again = Journal::empty(alice.identity.did());
    again.state = held.state.next_epoch(1);
    assert_eq!(code(&again, &alice, &page_of([&old])), "rollback");
}

#[test]
fn an_earlier_epoch_is_refused() {
    let mut alice = alice();
    let old = whole(&alice);
    next_epoch(&mut alice);
    let held = follower_of_epoch(&alice);
    assert_eq!(code(&held, &alice, &old), "wrong_epoch");
}

fn follower_of_epoch(publisher: &Publisher) -> Journal {
    let mut held = Journal::empty(publisher.identity.did());
    held.state = held.state.next_epoch(publisher.log.state.epoch);
    let page = judge(&held, publisher, &whole(publisher), Source::Publisher).unwrap();
    held.keep(page.lines, page.state);
    held
}

#[test]
fn kept_lines_of_two_epochs_lead_to_the_second() {
    let mut alice = alice();
    let mut lines = alice.log.lines.clone();
    next_epoch(&mut alice);
    alice.commit(vec![file("anew")]);
    lines.extend(alice.log.lines.clone());
    let mut journal = Journal::empty(alice.identity.did());
    for line in &lines {
        let mut state = journal.state.clone();
        if line.epoch() > state.epoch {
            journal = Journal::empty(alice.identity.did());
        }
        replay(&mut state, line, &journal).unwrap();
        journal.keep(vec![line.clone()], state);
    }
    assert_eq!(journal.state, alice.log.state);
}

// ---- pruned beginnings

/// The page of a holder who has pruned alice's first two slices: her third begins at 5.
fn pruned(publisher: &Publisher) -> Vec<Bytes> {
    let state = &publisher.log.state;
    let mut short = Publisher::new(1);
    short.commit(vec![file("a"), file("b"), file("c")]);
    short.commit(vec![file("d"), file("e")]);
    let frontier = FrontierLine::new(state.publisher, 0, short.log.state.frontier.clone()).unwrap();
    let mut lines = vec![frontier.bytes().clone()];
    lines.extend(whole(publisher).lines[2..].iter().cloned());
    lines
}

#[test]
fn a_log_may_begin_where_its_holder_has_pruned_it() {
    let mut alice = alice();
    let nothing = Journal::empty(alice.identity.did());
    let page = page_of(&pruned(&alice));
    let verified = judge(&nothing, &alice, &page, Source::Holder).unwrap();
    assert_eq!((verified.state.size(), verified.state.base), (6, 5));
    assert_eq!(verified.state.root(), alice.log.state.root());
    let mut held = nothing;
    held.keep(verified.lines, verified.state);
    alice.commit(vec![file("later")]);
    let page = judge(&held, &alice, &whole_from(&alice, 6), Source::Publisher).unwrap();
    assert_eq!(page.state.root(), alice.log.state.root());
    // What was pruned is neither news nor a lie.
    let whole = judge(&held, &alice, &whole(&alice), Source::Holder).unwrap();
    assert_eq!(whole.state.root(), alice.log.state.root());
    // Read back from disk it is the same.
    let mut state = LogState::empty(alice.identity.did(), 0);
    let mut journal = Journal::empty(alice.identity.did());
    for line in &held.lines {
        replay(&mut state, line, &journal).unwrap();
        journal.keep(vec![line.clone()], state.clone());
    }
    assert_eq!(state, held.state);
}

fn whole_from(publisher: &Publisher, cursor: u64) -> crate::common::Page {
    publisher.log.page(cursor, 64)
}

#[test]
fn a_frontier_that_does_not_fold_or_stands_elsewhere_is_refused() {
    let alice = alice();
    let nothing = Journal::empty(alice.identity.did());
    let lines = pruned(&alice);
    let forged = |edit: &dyn Fn(&mut Object)| {
        let mut lines = lines.clone();
        lines[0] = crate::forge::edited(&lines[0], edit);
        code(&nothing, &alice, &page_of(&lines))
    };
    let zeros = "00".repeat(32);
    assert_eq!(
        forged(&|o| o["hashes"][0] = zeros.clone().into()),
        "wrong_frontier"
    );
    assert_eq!(
        forged(&|o| drop(o.insert("size".into(), 6.into()))),
        "wrong_frontier"
    );
    assert_eq!(
        forged(&|o| drop(o.insert("size".into(), 7.into()))),
        "malformed_document"
    );
    assert_eq!(
        forged(&|o| drop(o.insert("epoch".into(), 1.into()))),
        "wrong_epoch"
    );
    assert_eq!(
        forged(&|o| drop(o.insert("more".into(), 1.into()))),
        "invalid_json"
    );
    let mut moved = lines.clone();
    moved.swap(0, 1);
    assert_eq!(code(&nothing, &alice, &page_of(&moved)), "unbound_presence");
    let again = lines.iter().chain(&lines);
    assert_eq!(code(&nothing, &alice, &page_of(again)), "wrong_frontier");
    let cut = crate::common::Page {
        lines: lines[..1].to_vec(),
        reaches_head: false,
    };
    assert_eq!(code(&nothing, &alice, &cut), "wrong_frontier");
    let alone = page_of([&lines[0], &whole(&alice).lines[6]]);
    assert_eq!(code(&nothing, &alice, &alone), "wrong_frontier");
}

#[test]
fn a_frontier_cannot_replace_what_is_missing_in_the_middle() {
    let alice = alice();
    let mut held = Journal::empty(alice.identity.did());
    let first = page_of(&whole(&alice).lines[..3]);
    let verified = judge(&held, &alice, &first, Source::Publisher).unwrap();
    held.keep(verified.lines, verified.state);
    assert_eq!(code(&held, &alice, &page_of(&pruned(&alice))), "pruned");
    assert!(NoHistory.slice_holding(0).is_none());
}

#[test]
fn a_slice_that_begins_in_the_pruned_past_and_ends_beyond_the_head_is_a_fork() {
    let mut alice = alice();
    let nothing = Journal::empty(alice.identity.did());
    let page = page_of(&pruned(&alice));
    let verified = judge(&nothing, &alice, &page, Source::Holder).unwrap();
    let mut held = nothing;
    held.keep(verified.lines, verified.state);
    // The same key signs one slice over everything: 0 is pruned here, 7 lies beyond the 6 that are held.
    let mut other = Publisher::new(1);
    other.commit((0..8).map(|i| file(&format!("other/{i}"))).collect());
    alice.now = other.now;
    assert_eq!(code(&held, &alice, &whole(&other)), "fork");
}
