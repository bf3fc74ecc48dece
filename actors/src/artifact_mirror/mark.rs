//! How far a log is mirrored from one holder, and what of it that holder did not have.

use std::collections::BTreeMap;
use std::time::Duration;

use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::federation::Reason;
use hn_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::MirrorError;

/// How long what was missing is left alone, unless an operator asks: a holder that lacks one artifact is not asked for
/// it with every pull.
const RETRY: Duration = Duration::from_secs(300);
/// The most missing artifacts that are remembered a log and holder: their record stays below the Store's 16 KiB. Where
/// there are more, the mark stops and goes on when some were found.
pub(super) const MAX_MISSING: usize = 256;
/// The most characters of the reason that are kept with them.
const MAX_DETAIL: usize = 200;

/// The key of a mark in the Store.
pub(super) fn key(publisher: &Did, holder: &Did) -> Vec<u8> {
    [
        b"mirror/".as_slice(),
        publisher.public_key(),
        holder.public_key(),
    ]
    .concat()
}

/// Every artifact before `next` is here, or among the missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MirrorMark {
    next: u64,
    kept: u64,
    /// Digest and size of what the holder did not have, or what did not verify.
    missing: BTreeMap<Digest, u64>,
    /// Code and detail of why one of them is missing, a lie before an absence; with whether it is one.
    why: Option<(String, String, bool)>,
    /// Since when the missing are left alone.
    tried: Option<Timestamp>,
    /// The Store has another one.
    #[serde(skip)]
    changed: bool,
}

impl MirrorMark {
    /// The first entry that no run has looked at.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    /// Bytes kept of this log from this holder.
    pub(super) const fn kept(&self) -> u64 {
        self.kept
    }

    /// How many artifacts are missing.
    pub(super) fn missing(&self) -> u64 {
        self.missing.len() as u64
    }

    /// Whether this artifact is among the missing.
    pub(super) fn misses(&self, digest: &Digest) -> bool {
        self.missing.contains_key(digest)
    }

    /// Whether no further missing artifact can be remembered.
    pub(super) fn is_full(&self) -> bool {
        self.missing.len() >= MAX_MISSING
    }

    /// Why artifacts are missing.
    pub(super) fn reason(&self) -> Option<Reason> {
        let (code, detail, _) = self.why.as_ref()?;
        Some(Reason {
            code: code.clone(),
            detail: detail.clone(),
        })
    }

    /// The missing artifacts that are to be asked for now: all of them when they were left alone for long enough, or
    /// an operator asks; else none.
    pub(super) fn due(&mut self, now: Timestamp, again: bool) -> Vec<(Digest, u64)> {
        let rested = |tried: Timestamp| now.since(tried) >= RETRY || tried > now;
        if self.missing.is_empty() || !(again || self.tried.is_none_or(rested)) {
            return Vec::new();
        }
        self.tried = Some(now);
        self.why = None;
        self.changed = true;
        self.missing.iter().map(|(d, size)| (*d, *size)).collect()
    }

    /// Everything before `next` was looked at.
    pub(super) fn advance(&mut self, next: u64) {
        self.next = next;
        self.changed = true;
    }

    /// An artifact is here; `fetched` bytes of it from this holder just now.
    pub(super) fn found(&mut self, digest: &Digest, fetched: u64) {
        if self.missing.remove(digest).is_none() && fetched == 0 {
            return;
        }
        self.kept = self.kept.saturating_add(fetched);
        self.changed = true;
        if self.missing.is_empty() {
            self.why = None;
            self.tried = None;
        }
    }

    /// An artifact could not be had. False when it cannot be remembered.
    pub(super) fn missed(
        &mut self,
        digest: Digest,
        size: u64,
        error: &MirrorError,
        now: Timestamp,
    ) -> bool {
        self.changed = true;
        let lie = error.is_lie();
        // A lie is worth telling before an absence.
        if self.why.as_ref().is_none_or(|(_, _, known)| lie && !known) {
            let detail = error.to_string().chars().take(MAX_DETAIL).collect();
            self.why = Some((error.code().to_owned(), detail, lie));
        }
        if !self.misses(&digest) {
            if self.is_full() {
                return false;
            }
            self.missing.insert(digest, size);
        }
        self.tried.get_or_insert(now);
        true
    }

    /// Whether it is another one than the Store has; from now on the Store has it.
    pub(super) const fn take_changed(&mut self) -> bool {
        std::mem::replace(&mut self.changed, false)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::fetch::FetchError;
    use crate::store::{Batch, MAX_VALUE, Tree};

    fn absent() -> MirrorError {
        MirrorError::Fetch(FetchError::Status {
            status: 404,
            detail: "x".repeat(1000),
        })
    }

    #[test]
    fn what_is_missing_is_asked_for_again_after_five_minutes_or_when_an_operator_asks() {
        let mut mark = MirrorMark::default();
        let digest = Digest::of(b"gone");
        assert!(mark.missed(digest, 4, &absent(), Timestamp(0)));
        mark.advance(7);
        assert!(mark.take_changed());
        assert!(mark.due(Timestamp(299_999), false).is_empty());
        assert!(!mark.take_changed(), "a quiet run writes nothing");
        assert_eq!((mark.next(), mark.missing()), (7, 1));
        assert_eq!(mark.due(Timestamp(1), true), [(digest, 4)]);
        assert!(mark.due(Timestamp(300_000), false).is_empty());
        assert_eq!(mark.due(Timestamp(300_001), false), [(digest, 4)]);
        // A clock that was set back makes nothing wait for a year.
        assert_eq!(mark.due(Timestamp(9), false), [(digest, 4)]);
        mark.found(&digest, 4);
        assert_eq!((mark.missing(), mark.kept(), mark.reason()), (0, 4, None));
        assert!(mark.due(Timestamp(u64::MAX), true).is_empty());
    }

    #[test]
    fn a_lie_is_told_before_an_absence() {
        let mut mark = MirrorMark::default();
        mark.missed(Digest::of(b"1"), 1, &absent(), Timestamp(0));
        assert_eq!(mark.reason().unwrap().code, "http_error");
        let lie = MirrorError::Digest {
            wanted: Digest::of(b"2"),
            got: Digest::of(b"3"),
        };
        mark.missed(Digest::of(b"2"), 1, &lie, Timestamp(0));
        mark.missed(Digest::of(b"4"), 1, &absent(), Timestamp(0));
        assert_eq!(mark.reason().unwrap().code, "artifact_mismatch");
    }

    #[test]
    fn a_full_mark_fits_into_the_store() {
        let mut mark = MirrorMark::default();
        mark.advance(u64::MAX);
        for n in 0..MAX_MISSING as u64 {
            let digest = Digest::of(&n.to_be_bytes());
            assert!(mark.missed(digest, u64::MAX, &absent(), Timestamp(u64::MAX)));
        }
        assert!(mark.is_full());
        assert!(!mark.missed(Digest::of(b"more"), 1, &absent(), Timestamp(0)));
        let mut batch = Batch::default();
        batch
            .put(Tree::Meta, b"mark", &mark)
            .unwrap_or_else(|error| unreachable!("{MAX_VALUE} bytes: {error}"));
    }
}
