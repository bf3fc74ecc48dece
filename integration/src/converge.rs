//! Waiting for a condition instead of for time: polled, bounded, and telling when missed.

use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

/// How often a condition is looked at: often enough for bounds of a second, seldom enough for two cores.
const POLL: Duration = Duration::from_millis(20);

/// The bound for what should happen at once, on a machine that runs many tests at the same time.
pub const SOON: Duration = Duration::from_secs(10);

/// Polls `probe` until it answers `Ok`, and gives that answer. `Err` says what still differs.
///
/// Panics when `deadline` has passed, with `sentence` and the last difference.
pub async fn eventually<T>(
    deadline: Duration,
    sentence: &str,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = String::from("it was never looked at");
    loop {
        ticks.tick().await;
        // A probe that hangs must not outlive the deadline by more than its own bound.
        let left = deadline
            .saturating_sub(begun.elapsed())
            .max(Duration::from_secs(1));
        match tokio::time::timeout(left, probe()).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(difference)) => last = difference,
            Err(_) => last = format!("a probe did not answer ({last})"),
        }
        assert!(
            begun.elapsed() < deadline,
            "not within {deadline:?}: {sentence}\n  last: {last}"
        );
    }
}

/// `Ok` when both are equal; else says who differs, for [`eventually`].
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, wanted: T) -> Result<(), String> {
    if got == wanted {
        Ok(())
    } else {
        Err(format!("{what} is {got:?}, not {wanted:?}"))
    }
}
