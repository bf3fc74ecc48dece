//! The mirror runs behind a pull: which logs, within which budget, and whom a false artifact is charged to.

use actix::Recipient;
use hn_protocol::did::Did;
use hn_protocol::federation::{Outcome, Reason};
use hn_protocol::time::Timestamp;
use url::Url;

use crate::artifact_mirror::{MirrorError, MirrorLog, MirrorReport};
use crate::fetch::Trust;

/// What is mirrored from one peer.
pub(super) struct Mirroring {
    /// From whom.
    pub peer: Did,
    /// Through which URL, and who wrote it.
    pub base: Url,
    /// See `base`.
    pub trust: Trust,
    /// The logs, the peer's own first; and whether their artifacts count against the budget.
    pub logs: Vec<(Did, bool)>,
    /// Bytes that may be kept of those that count.
    pub budget: u64,
    /// Whether an operator asked: what was missing a moment ago is asked for again.
    pub again: bool,
    /// The time.
    pub now: Timestamp,
}

/// Mirrors one log after the other. How it went as a whole is what the core is told.
pub(super) async fn run(mirror: Recipient<MirrorLog>, job: Mirroring) -> (MirrorReport, Outcome) {
    let mut total = MirrorReport::default();
    let mut lie = None;
    let mut left = job.budget;
    for (publisher, counts) in job.logs {
        let answer = mirror
            .send(MirrorLog {
                publisher,
                holder: job.peer,
                base: job.base.clone(),
                trust: job.trust,
                budget: if counts { left } else { u64::MAX },
                again: job.again,
                now: job.now,
            })
            .await
            .unwrap_or_else(|_| Err(MirrorError::Failed("the mirror is being restarted".into())));
        match answer {
            Ok(report) => {
                if counts {
                    left = left.saturating_sub(report.kept);
                }
                let blamed = report
                    .error
                    .clone()
                    .filter(|reason| blames_holder(reason, publisher == job.peer));
                lie = lie.or(blamed);
                total.add(report);
            }
            Err(error) => return (total, Outcome::Local(error.reason())),
        }
    }
    let outcome = lie.map_or(Outcome::Verified, Outcome::Refused);
    (total, outcome)
}

/// Bytes that are not what the digest names are the holder's lie; that they are more than the log says is its
/// publisher's. An artifact that is not there is no lie.
fn blames_holder(reason: &Reason, is_publisher: bool) -> bool {
    match reason.code.as_str() {
        "artifact_mismatch" => true,
        "artifact_too_long" => is_publisher,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_pays_for_its_own_lies_alone() {
        let blames = |code: &str, is_publisher| {
            let (code, detail) = (code.to_owned(), String::new());
            blames_holder(&Reason { code, detail }, is_publisher)
        };
        assert!(blames("artifact_mismatch", false));
        assert!(blames("artifact_mismatch", true));
        assert!(blames("artifact_too_long", true));
        assert!(
            !blames("artifact_too_long", false),
            "the log's publisher said the size"
        );
        assert!(!blames("http_error", true));
    }
}
