//! What is no lie: lagging, repeating, cutting pages anywhere, and members that this reader does not know.

use hn_protocol::canonical;
use hn_protocol::document::Entry;
use hn_protocol::log::{Line, Source};
use hn_protocol::merkle;
use serde_json::{Value, json};

use crate::common::{Journal, Page, Publisher, file};
use crate::forge::{digest_of, edited, object, reroot, set, signed, with_id};
use crate::scene::{alice, bytes_of, follower_of, judge, page_of, whole};

#[test]
fn a_page_is_kept_line_by_line_as_it_was_received() {
    let alice = alice();
    let held = follower_of(&alice);
    assert_eq!(bytes_of(&held.lines), whole(&alice).lines);
    assert_eq!(held.state, alice.log.state);
}

#[test]
fn a_holder_that_lags_is_no_liar_and_its_old_presence_no_news() {
    let mut alice = alice();
    let old = whole(&alice);
    alice.commit(vec![file("g")]);
    let held = follower_of(&alice);
    let verdict = judge(&held, &alice, &old, Source::Holder).unwrap();
    assert!(verdict.lines.is_empty());
    assert_eq!(verdict.state, held.state);
}

#[test]
fn a_holder_with_an_older_presence_at_the_same_size_is_no_liar() {
    let mut alice = alice();
    let old = whole(&alice);
    alice.commit(vec![]);
    // Nobody but the holder shows this presence any more: no slice names it.
    let mut held = Journal::empty(alice.identity.did());
    let page = whole(&alice);
    let verified = judge(&held, &alice, &page, Source::Publisher).unwrap();
    held.keep(verified.lines, verified.state);
    let verdict = judge(&held, &alice, &old, Source::Holder).unwrap();
    assert!(verdict.lines.is_empty());
    assert_eq!(verdict.state, held.state);
}

#[test]
fn reading_a_known_page_again_adds_nothing() {
    let alice = alice();
    let held = follower_of(&alice);
    for (cursor, limit) in [(0, 64), (0, 1), (3, 1), (6, 1)] {
        let page = alice.log.page(cursor, limit);
        let verdict = judge(&held, &alice, &page, Source::Publisher).unwrap();
        assert!(verdict.lines.is_empty(), "from {cursor}");
        assert_eq!(verdict.state, held.state);
        assert_eq!(verdict.behind, !page.reaches_head);
    }
}

#[test]
fn a_presence_issued_again_without_growth_replaces_the_one_before() {
    let mut alice = alice();
    let held = follower_of(&alice);
    alice.commit(vec![]);
    let page = alice.log.page(held.state.size(), 1);
    let verdict = judge(&held, &alice, &page, Source::Publisher).unwrap();
    assert_eq!(bytes_of(&verdict.lines), page.lines);
    assert_eq!(verdict.state, alice.log.state);
    assert_eq!(verdict.slices(), 0);
}

#[test]
fn pages_may_end_inside_a_commit() {
    // Three slices, one presence before and one after: pages 2 and 3 show the first presence again.
    let mut alice = Publisher::new(1);
    alice.commit((0..1100).map(|i| file(&format!("{i}"))).collect());
    let mut held = Journal::empty(alice.identity.did());
    for (lines, reaches_head) in [(2, false), (2, false), (3, true)] {
        let page = alice.log.page(held.state.size(), 1);
        assert_eq!((page.lines.len(), page.reaches_head), (lines, reaches_head));
        let verdict = judge(&held, &alice, &page, Source::Publisher).unwrap();
        assert_eq!(verdict.behind, !reaches_head);
        held.keep(verdict.lines, verdict.state);
    }
    assert_eq!(held.state, alice.log.state);
    assert_eq!(bytes_of(&held.lines), bytes_of(&alice.log.lines));
}

#[test]
fn a_page_that_goes_on_leaves_the_newest_presence_that_it_showed() {
    let alice = alice();
    let nothing = Journal::empty(alice.identity.did());
    let page = alice.log.page(0, 2);
    let verdict = judge(&nothing, &alice, &page, Source::Publisher).unwrap();
    let shown = verdict.state.presence.unwrap();
    assert_eq!(shown.log_size, 3);
    assert_eq!(Some(shown), verdict.state.named);
}

#[test]
fn a_current_presence_beyond_a_page_that_goes_on_means_keep_pulling() {
    let alice = alice();
    let mut page = alice.log.page(0, 1);
    page.lines.push(whole(&alice).lines[6].clone());
    let nothing = Journal::empty(alice.identity.did());
    let verdict = judge(&nothing, &alice, &page, Source::Publisher).unwrap();
    assert!(verdict.behind);
    assert_eq!((verdict.state.size(), verdict.lines.len()), (3, 2));
}

#[test]
fn unknown_members_are_covered_and_passed_on_untouched() {
    // A later version of alice's node says more, in a presence, a slice and an entry.
    let mut alice = Publisher::new(1);
    alice.commit(vec![file("a")]);
    let lines = whole(&alice).lines;
    let presence = signed(
        &lines[0],
        &alice.identity,
        set("mood", json!({"x": [1.5, null]})),
    );
    let entry = json!({"digest": merkle::empty_root(), "licence": "CC0", "metadata": {}, "path": "a",
        "seq": 0, "size": 0, "tags": {}, "type": "file"});
    let leaf = merkle::leaf_hash(&canonical::to_vec(&entry).unwrap());
    let digest = digest_of(&presence);
    let slice = signed(&lines[1], &alice.identity, |o| {
        o.insert("entries".into(), json!([entry]));
        o.insert("weather".into(), "rain".into());
        o.insert("presence_digest".into(), digest.into());
        o.insert("log_root".into(), leaf.to_string().into());
        reroot(o);
    });
    let page = Page {
        lines: vec![presence, slice.clone()],
        reaches_head: false,
    };
    let nothing = Journal::empty(alice.identity.did());
    let verdict = judge(&nothing, &alice, &page, Source::Publisher).unwrap();

    assert_eq!(bytes_of(&verdict.lines), page.lines, "passed on untouched");
    let Line::Slice(read) = &verdict.lines[1] else {
        unreachable!()
    };
    assert_eq!(read.leaves(), [leaf], "covered by the leaf");
    let known: &Entry = &read.entries[0];
    assert_ne!(known.leaf().unwrap(), leaf);
    assert_eq!(verdict.state.root(), leaf);

    let strip = |o: &mut serde_json::Map<String, Value>| {
        o.remove("weather");
    };
    let code = |lie| Line::verify(lie).unwrap_err().code();
    assert_eq!(code(edited(&slice, strip)), "wrong_id", "covered by the id");
    let lie = with_id(&slice, strip);
    assert_eq!(code(lie), "wrong_signature", "covered by the signature");
    assert_eq!(object(&slice)["weather"], "rain");
}

#[test]
fn a_page_from_a_holder_ends_with_the_last_presence_that_it_holds() {
    // The holder has not seen the newest presence; its page covers a part of the log, and says so.
    let mut alice = alice();
    let held = follower_of(&alice);
    alice.commit(vec![file("g")]);
    let nothing = Journal::empty(alice.identity.did());
    let page = held.page(0, 64);
    let verdict = judge(&nothing, &alice, &page, Source::Holder).unwrap();
    assert_eq!(verdict.state, held.state);
    let alone = page_of(&held.page(6, 1).lines);
    assert!(
        judge(&held, &alice, &alone, Source::Holder)
            .unwrap()
            .lines
            .is_empty()
    );
}
