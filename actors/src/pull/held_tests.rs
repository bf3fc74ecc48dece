#![allow(clippy::unwrap_used)]
use super::*;
use hn_protocol::did::SecretSeed;

fn did(n: u8) -> Did {
    SecretSeed::from_bytes([n; 32]).did()
}

fn status(status: u16) -> PullError {
    let detail = String::new();
    PullError::Fetch(FetchError::Status { status, detail })
}

#[test]
fn what_a_publisher_signed_is_not_charged_to_who_passes_it_on() {
    for signed in [
        PageError::Conflict { cursor: 0 },
        PageError::PresenceConflict("x"),
        PageError::Rollback("x".into()),
        PageError::Ahead,
        PageError::Epoch {
            got: 1,
            expected: 0,
        },
    ] {
        let error = PullError::Page(signed);
        let mut verdict = Verdict::default();
        verdict.add(&error);
        assert!(verdict.failed, "{error}: the list is looked at again");
        assert_eq!(verdict.outcome(), Outcome::Verified, "{error}");
    }
    for forged in [
        PullError::Page(PageError::Chain { cursor: 0 }),
        PullError::Page(PageError::Gap {
            got: 2,
            expected: 1,
        }),
        PullError::Page(PageError::LogRoot { cursor: 0 }),
        PullError::Page(PageError::NoPresence),
        PullError::Answer("x".into()),
        PullError::Fetch(FetchError::TooLarge(1)),
    ] {
        let mut verdict = Verdict::default();
        verdict.add(&status(500));
        verdict.add(&PullError::Local(FederateError::Restarting));
        verdict.add(&forged);
        assert!(
            matches!(verdict.outcome(), Outcome::Refused(_)),
            "{forged}: a lie is told before our own trouble"
        );
    }
}

#[test]
fn one_log_that_fails_ends_no_pull_but_an_absence_or_a_full_disk_does() {
    for one in [
        status(500),
        status(404),
        PullError::Fetch(FetchError::TooLarge(1)),
        PullError::Fetch(FetchError::Encoding("gzip".into())),
        PullError::Local(FederateError::Restarting),
        PullError::Page(PageError::NoPresence),
    ] {
        assert!(!ends_pull(&one), "{one}");
    }
    for all in [
        PullError::Fetch(FetchError::Connect("refused".into())),
        PullError::Fetch(FetchError::Timeout("no headers")),
        PullError::Local(FederateError::Full("full".into())),
    ] {
        assert!(ends_pull(&all), "{all}");
    }
}

#[test]
fn what_is_held_already_comes_before_what_a_peer_lists_first() {
    let head = |n| HeldLogHead {
        did: did(n),
        epoch: 0,
        log_size: 1,
        log_root: Digest::of(b""),
        head: None,
        presence: None,
        last_seen: Timestamp(0),
        forked: false,
        revoked: false,
    };
    let mut heads: Vec<HeldLogHead> = [4, 1, 3, 2].map(head).into();
    in_turn(&mut heads, |d| *d == did(3) || *d == did(2));
    let order: Vec<Did> = heads.iter().map(|head| head.did).collect();
    assert_eq!(order, [3, 2, 4, 1].map(did));
}

#[test]
fn no_more_is_asked_for_than_may_be_kept() {
    let slice = MAX_SLICE_BYTES as u64;
    assert_eq!(Budget::unlimited().slices(16, 9_000_000), 16);
    assert_eq!(Budget::of(3 * slice + 5).slices(16, 0), 3);
    assert_eq!(Budget::of(3 * slice + 5).slices(16, MAX_SLICE_BYTES), 2);
    assert_eq!(Budget::of(5).slices(16, 0), 1);
    assert_eq!(Budget::of(5).slices(16, 5), 0, "nothing is fetched ahead");
}

#[test]
fn an_etag_is_for_the_same_list_under_the_same_terms() {
    let dir = tempfile::tempdir().unwrap();
    let registry = crate::supervise::Registry::new(crate::metrics::Metrics::new());
    let (store, _) = crate::store::Store::open(dir.path(), 1 << 20, &registry).unwrap();
    let catalog = Catalog::new(did(9), store);
    let limits = PullLimits {
        page_slices: 16,
        max_held_logs: 1,
        max_held_bytes: 1,
    };
    let base: Url = "http://x/".parse().unwrap();
    let mut list = HeldList {
        etag: Some("\"e\"".into()),
        base: base.clone(),
        scope: Scope::Held,
        limits,
        listed: vec![did(1)],
        followed: Vec::new(),
        left_out: vec![did(2)],
        overflowed: BTreeMap::new(),
    };
    let listed = [did(1)];
    assert_eq!(
        list.etag_for(&base, Scope::Held, limits, &listed, &catalog),
        Some("\"e\"")
    );
    let own = list.etag_for(&base, Scope::Own, limits, &listed, &catalog);
    assert_eq!(own, None, "less was followed of it");
    let more = PullLimits {
        max_held_logs: 2,
        ..limits
    };
    assert_eq!(
        list.etag_for(&base, Scope::Held, more, &listed, &catalog),
        None
    );
    assert_eq!(
        list.etag_for(&base, Scope::Held, limits, &[], &catalog),
        None
    );
    let other = "http://y/".parse().unwrap();
    assert_eq!(
        list.etag_for(&other, Scope::Held, limits, &listed, &catalog),
        None
    );
    list.followed.push(did(3));
    assert_eq!(
        list.etag_for(&base, Scope::Held, limits, &listed, &catalog),
        None,
        "a log that is gone from here is asked for again"
    );
}
