//! Laws L1–L6 of `invariants.rs` over random logs, pages and faults.

use hn_protocol::invariants::{is_extension, next_sequence, presence_binds_log, slice_extends_log};
use hn_protocol::log::{Line, LogState, Source, replay};
use hn_protocol::time::Timestamp;
use proptest::prelude::*;

use crate::common::{Journal, Publisher, START, file};
use crate::scene::{alice, bytes_of, follower_of, judge, whole};

/// How many entries each commit has: none is a presence issued again, many are several slices.
fn commits() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![12 => 0usize..6, 1 => 510usize..515, 1 => 1022usize..1027];
    prop::collection::vec(size, 0..7)
}

fn publisher(commits: &[usize]) -> Publisher {
    let mut alice = Publisher::new(1);
    for (n, size) in commits.iter().enumerate() {
        alice.commit((0..*size).map(|i| file(&format!("{n}/{i}"))).collect());
    }
    alice
}

/// Reads kept lines back as a restart does, asking every law on the way.
fn reloaded(kept: &Journal) -> Journal {
    let mut journal = Journal::empty(kept.state.publisher);
    for line in &kept.lines {
        let before = journal.state.clone();
        let mut after = before.clone();
        replay(&mut after, line, &journal).unwrap();
        assert!(is_extension(&before, &after), "L6");
        match line {
            Line::Slice(slice) => assert!(slice_extends_log(&before, slice, &after), "L1–L3"),
            Line::Presence(presence) if presence.log_size == after.size() => {
                assert!(presence_binds_log(presence, &after), "L4");
            }
            Line::Presence(_) | Line::Frontier(_) => {}
        }
        journal.keep(vec![line.clone()], after);
    }
    journal
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn however_a_log_is_cut_into_pages_its_state_is_the_same(
        commits in commits(),
        pages in prop::collection::vec((0.0..=1.0f64, 1usize..5), 1..12),
    ) {
        let alice = publisher(&commits);
        let mut held = Journal::empty(alice.identity.did());
        let mut pages = pages.into_iter();
        loop {
            // A follower may ask from where it stands, or anywhere before; at last from where it stands.
            let (back, limit) = pages.next().unwrap_or((1.0, 4));
            let cursor = (held.state.size() as f64 * back) as u64;
            let page = alice.log.page(cursor, limit);
            let verdict = judge(&held, &alice, &page, Source::Publisher).unwrap();
            prop_assert!(is_extension(&held.state, &verdict.state));
            prop_assert_eq!(verdict.behind, !page.reaches_head);
            held.keep(verdict.lines, verdict.state);
            prop_assert_eq!(&reloaded(&held).state, &held.state, "a restart changes nothing");
            if !verdict.behind && held.state == alice.log.state {
                break;
            }
        }
        let reloaded = reloaded(&held);
        prop_assert_eq!(&reloaded.state, &alice.log.state);
        prop_assert_eq!(reloaded.page(0, usize::MAX / 2), whole(&alice));
    }

    #[test]
    fn a_copy_of_a_copy_is_the_log(commits in commits(), grown in 0usize..3) {
        let mut alice = publisher(&commits);
        let carol = follower_of(&alice);
        let mut dave = Journal::empty(alice.identity.did());
        let verdict = judge(&dave, &alice, &carol.page(0, 64), Source::Holder).unwrap();
        dave.keep(verdict.lines, verdict.state);
        prop_assert_eq!(&dave.state, &carol.state);
        prop_assert_eq!(bytes_of(&dave.lines), bytes_of(&carol.lines));
        alice.commit((0..grown).map(|i| file(&format!("more/{i}"))).collect());
        let page = alice.log.page(dave.state.size(), 1);
        let verdict = judge(&dave, &alice, &page, Source::Publisher).unwrap();
        prop_assert_eq!(verdict.state, alice.log.state);
    }

    #[test]
    fn sequences_grow_whatever_the_clock_does(clock in prop::collection::vec(0u64..10_000, 1..20)) {
        let mut alice = Publisher::new(1);
        let mut last = alice.log.state.presence.unwrap().sequence;
        for now in clock {
            alice.now.0 = START.0 + now;
            alice.commit(vec![]);
            let sequence = alice.log.state.presence.unwrap().sequence;
            prop_assert!(sequence > last);
            prop_assert_eq!(sequence, next_sequence(Some(last), Timestamp(START.0 + now)));
            last = sequence;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// No bit of a page can be turned without notice.
    #[test]
    fn a_flipped_byte_is_refused_or_changes_nothing(
        line in 0usize..7,
        place in any::<prop::sample::Index>(),
        with in 1u8..=255,
    ) {
        let alice = alice();
        let mut page = whole(&alice);
        let mut bytes = page.lines[line].to_vec();
        let at = place.index(bytes.len());
        bytes[at] ^= with;
        page.lines[line] = bytes.into();
        let nothing = Journal::empty(alice.identity.did());
        if let Ok(verdict) = judge(&nothing, &alice, &page, Source::Publisher) {
            prop_assert_eq!(&verdict.state, &alice.log.state);
            let entries = |lines: &[Line]| -> Vec<_> {
                lines.iter().flat_map(|line| match line {
                    Line::Slice(slice) => slice.entries.clone(),
                    Line::Presence(_) | Line::Frontier(_) => Vec::new(),
                }).collect()
            };
            prop_assert_eq!(entries(&verdict.lines), entries(&alice.log.lines));
        }
    }

    /// Not even the order of a page's lines, or leaving one out, leads anywhere else.
    #[test]
    fn a_shuffled_page_is_refused_or_leads_to_a_part_of_the_log(
        order in prop::collection::vec(0usize..7, 1..10),
        reaches_head: bool,
    ) {
        let alice = alice();
        let mut page = whole(&alice);
        page.lines = order.into_iter().map(|at| page.lines[at].clone()).collect();
        page.reaches_head = reaches_head;
        let nothing = Journal::empty(alice.identity.did());
        if let Ok(verdict) = judge(&nothing, &alice, &page, Source::Holder) {
            prop_assert!(is_prefix(&verdict.state, &alice.log));
        }
    }
}

fn is_prefix(state: &LogState, of: &Journal) -> bool {
    use hn_protocol::log::History;
    of.root_at(state.size()) == Some(state.root())
}
