//! How far a log was mirrored, or looked through, in the name of one peer, and what of it no holder had.

use std::collections::BTreeMap;
use std::time::Duration;

use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::federation::Reason;
use hn_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Availability, Limit, MirrorError, Work};

/// How long what was missing is left alone, unless an operator asks: holders that lack one artifact are not asked for
/// it with every pull.
const RETRY: Duration = Duration::from_secs(300);
/// The most missing artifacts that are remembered a log and peer: their record stays below the Store's 16 KiB. Where
/// there are more, the mark stops and goes on when some were found.
pub(super) const MAX_MISSING: usize = 256;
/// The most characters of the reason that are kept with them.
const MAX_DETAIL: usize = 200;
/// The most holders of false bytes that are remembered with them.
const MAX_LIARS: usize = 4;
/// The most missing artifacts that a report names.
pub(super) const MAX_NAMED: usize = 16;

/// The key of a mark in the Store. What an earlier version kept under another one is not read: it looks again.
pub(super) fn key(work: Work, publisher: &Did, peer: &Did) -> Vec<u8> {
    match work {
        Work::Keep => [keys_of(publisher).as_slice(), peer.public_key()].concat(),
        Work::Sample | Work::Check => {
            let kind: &[u8] = b"available/";
            [kind, publisher.public_key(), peer.public_key()].concat()
        }
    }
}

/// What the keys of all marks of the mirror of a log begin with.
pub(super) fn keys_of(publisher: &Did) -> Vec<u8> {
    [b"mirror-2/".as_slice(), publisher.public_key()].concat()
}

/// Every artifact before `next` is here, or among the missing; of those that were only looked for, it can be had.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MirrorMark {
    next: u64,
    kept: u64,
    /// Entries that were looked at, and those of them whose artifact was here.
    looked: u64,
    held: u64,
    /// Digest and size of what no holder had, or what did not verify.
    missing: BTreeMap<Digest, u64>,
    /// Code and detail of why one of them is missing, a lie before an absence; with whether it is one.
    why: Option<(String, String, bool)>,
    /// Who gave false bytes for what is missing: holder, code, detail.
    liars: Vec<(Did, String, String)>,
    /// What keeps the rest of the log out.
    limit: Option<Limit>,
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
        self.liars.clear();
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
            self.liars.clear();
            self.tried = None;
        }
    }

    /// So many more entries were looked at, and of so many the artifact was here.
    pub(super) const fn looked(&mut self, entries: u64, held: u64) {
        self.looked = self.looked.saturating_add(entries);
        self.held = self.held.saturating_add(held);
        self.changed = true;
    }

    /// What keeps the rest of the log out now, if anything does.
    pub(super) fn set_limit(&mut self, limit: Option<Limit>) {
        self.changed |= self.limit != limit;
        self.limit = limit;
    }

    /// What keeps the rest of the log out.
    pub(super) const fn limit(&self) -> Option<Limit> {
        self.limit
    }

    /// A holder gave false bytes for something that is missing.
    pub(super) fn lied(&mut self, holder: Did, reason: &Reason) {
        let known = self.liars.iter().any(|(liar, _, _)| *liar == holder);
        if !known && self.liars.len() < MAX_LIARS {
            let detail = reason.detail.chars().take(MAX_DETAIL).collect();
            self.liars.push((holder, reason.code.clone(), detail));
            self.changed = true;
        }
    }

    /// Who gave false bytes for what is missing still.
    pub(super) fn liars(&self) -> impl Iterator<Item = (Did, Reason)> {
        self.liars.iter().map(|(liar, code, detail)| {
            let (code, detail) = (code.clone(), detail.clone());
            (*liar, Reason { code, detail })
        })
    }

    /// What is known of a log of `size` entries.
    pub(super) fn availability(&self, size: u64) -> Availability {
        Availability {
            announced: size,
            looked: self.looked,
            held: self.held,
            missing: self.missing(),
            named: self.missing.keys().take(MAX_NAMED).copied().collect(),
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
        for n in 0..=MAX_LIARS as u8 {
            let (code, detail) = ("c".repeat(30), "\u{1f600}".repeat(1000));
            let liar = hn_protocol::did::SecretSeed::from_bytes([n; 32]).did();
            mark.lied(liar, &Reason { code, detail });
        }
        assert!(mark.is_full());
        assert!(!mark.missed(Digest::of(b"more"), 1, &absent(), Timestamp(0)));
        let mut batch = Batch::default();
        batch
            .put(Tree::Meta, b"mark", &mark)
            .unwrap_or_else(|error| unreachable!("{MAX_VALUE} bytes: {error}"));
    }

    #[test]
    fn who_lied_is_remembered_as_long_as_something_is_missing_for_it() {
        let liar = hn_protocol::did::SecretSeed::from_bytes([1; 32]).did();
        let (code, detail) = ("artifact_mismatch".to_owned(), "x".repeat(1000));
        let reason = Reason { code, detail };
        let mut mark = MirrorMark::default();
        let digest = Digest::of(b"gone");
        mark.missed(digest, 4, &absent(), Timestamp(0));
        mark.lied(liar, &reason);
        mark.lied(liar, &reason);
        let liars: Vec<_> = mark.liars().collect();
        assert_eq!(liars.len(), 1);
        assert_eq!((liars[0].0, liars[0].1.detail.len()), (liar, MAX_DETAIL));
        mark.found(&digest, 4);
        assert_eq!(mark.liars().count(), 0);
    }
}
