//! The numbered laws of `spec/` as plain functions: property tests, simulation and debug assertions all
//! ask these, so that a law is written once.
//!
//! | law | function |
//! |---|---|
//! | L1–L3: a slice runs on, chains, and its root follows | [`slice_extends_log`] |
//! | L4: a presence binds the log at its size | [`presence_binds_log`] |
//! | L5: sequences grow, and survive a restore | [`next_sequence`] |
//! | L6: what was accepted is never lost or changed | [`is_extension`] |
//! | F1, F2: an absent peer is asked soon, then seldom, but always again | [`retry_is_due_in_time`] |

use std::time::Duration;

use crate::document::{Presence, Slice};
use crate::log::LogState;
use crate::sign::Signed;
use crate::time::Timestamp;

/// F1: how often an unreachable peer is asked at least, for the first ten minutes (design 4).
pub const FAST_RETRY: Duration = Duration::from_secs(4);
/// F1: for how long.
pub const FAST_RETRY_FOR: Duration = Duration::from_secs(600);
/// F2: the longest wait between two attempts, ever.
pub const MAX_RETRY: Duration = Duration::from_secs(900);

/// L1 contiguous, L2 chained, L3 rooted: `after` is `before` with `slice` appended, and nothing else.
#[must_use]
pub fn slice_extends_log(before: &LogState, slice: &Signed<Slice>, after: &LogState) -> bool {
    slice.cursor == before.size()
        && slice.prev == before.head
        && slice.log_size == after.size()
        && slice.log_root == after.root()
        && after.head == Some(slice.digest())
        && after.publisher == before.publisher
        && after.epoch == before.epoch
}

/// L4: a presence says of the log at its size what the log is.
#[must_use]
pub fn presence_binds_log(presence: &Presence, log: &LogState) -> bool {
    presence.did == log.publisher
        && presence.epoch == log.epoch
        && presence.log_size == log.size()
        && presence.merkle_root == log.root()
}

/// L5: max(last + 1, Unix milliseconds): grows even after a restore from an old copy (design 3).
#[must_use]
pub fn next_sequence(last: Option<u64>, now: Timestamp) -> u64 {
    last.map_or(now.0, |last| now.0.max(last.saturating_add(1)))
}

/// L6: `later` may follow `earlier` as states of one log in one place: nothing shrank, no sequence fell.
#[must_use]
pub fn is_extension(earlier: &LogState, later: &LogState) -> bool {
    let sequence = |log: &LogState| log.presence.map_or(0, |p| p.sequence);
    if later.epoch > earlier.epoch {
        // Another log of the same publisher: only sequences go on.
        return earlier.publisher == later.publisher
            && later.floor >= earlier.floor.max(sequence(earlier));
    }
    earlier.publisher == later.publisher
        && earlier.epoch == later.epoch
        && later.size() >= earlier.size()
        && (later.size() != earlier.size()
            || (later.root() == earlier.root() && later.head == earlier.head))
        && sequence(later) >= sequence(earlier)
}

/// F1, F2: a peer unreachable `since` is tried again at `next_try`: within 4 s during the first ten
/// minutes, within 15 minutes always.
#[must_use]
pub fn retry_is_due_in_time(since: Timestamp, now: Timestamp, next_try: Timestamp) -> bool {
    let wait = next_try.since(now);
    if now.since(since) < FAST_RETRY_FOR {
        wait <= FAST_RETRY
    } else {
        wait <= MAX_RETRY
    }
}
