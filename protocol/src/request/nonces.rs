//! Which signed requests were seen: a nonce is taken once as long as its request could still be taken (`spec/http.md` S8).
//!
//! Memory alone, and so bounded: what a caller and all callers together may have at a time. Strangers have a place of
//! their own, so that any number of keys made on the spot takes nobody's place whom this node knows.

use std::collections::{BTreeMap, BTreeSet};

use super::WINDOW_S;
use crate::did::Did;
use crate::time::Timestamp;

/// Nonces of one DID of the roster at a time: 27 requests a second for as long as one is remembered.
pub const MAX_NONCES_A_KNOWN: usize = 8192;
/// Nonces of all DIDs of the roster at a time: some 10 MiB.
pub const MAX_NONCES_KNOWN: usize = 65_536;
/// Nonces of one stranger at a time: it has nothing to ask for but what anybody may read.
pub const MAX_NONCES_A_STRANGER: usize = 512;
/// Nonces of all strangers at a time.
pub const MAX_NONCES_STRANGERS: usize = 16_384;

/// Why a nonce is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NonceError {
    /// The request was seen before: 401.
    #[error("the nonce was used before")]
    Replayed,
    /// It was signed before the end of the second in which this node started, whose memory does not reach further back:
    /// 401, sign anew.
    #[error("created lies before this node's start; sign anew")]
    BeforeStart,
    /// Too many at a time: 503.
    #[error("too many signed requests within {} s", 2 * WINDOW_S)]
    Full,
}

type Key = [u8; 16];

#[derive(Debug, Clone, Copy)]
struct Seen {
    key: Key,
    caller: Did,
    known: bool,
}

#[derive(Debug, Default)]
struct Pool {
    all: usize,
    by_caller: BTreeMap<Did, usize>,
}

/// The memory of one node since its start.
#[derive(Debug)]
pub struct Nonces {
    started_s: u64,
    seen: BTreeSet<Key>,
    /// By the second after which the request would be stale anyway.
    expiring: BTreeMap<u64, Vec<Seen>>,
    known: Pool,
    strangers: Pool,
}

impl Nonces {
    /// Of a node that started at `started`.
    #[must_use]
    pub fn new(started: Timestamp) -> Self {
        Self {
            started_s: started.0 / 1000,
            seen: BTreeSet::new(),
            expiring: BTreeMap::new(),
            known: Pool::default(),
            strangers: Pool::default(),
        }
    }

    /// Takes a nonce whose signature verified. `known`: the caller is in the roster. `created` in Unix seconds, within
    /// the window. Errors: seen before, signed before the start, no room.
    pub fn admit(
        &mut self,
        caller: Did,
        known: bool,
        nonce: &str,
        created: u64,
        now: Timestamp,
    ) -> Result<(), NonceError> {
        if created <= self.started_s {
            return Err(NonceError::BeforeStart);
        }
        self.forget(now.0 / 1000);
        let key = key(&caller, nonce);
        if self.seen.contains(&key) {
            return Err(NonceError::Replayed);
        }
        let (pool, each, all) = match known {
            true => (&mut self.known, MAX_NONCES_A_KNOWN, MAX_NONCES_KNOWN),
            false => (
                &mut self.strangers,
                MAX_NONCES_A_STRANGER,
                MAX_NONCES_STRANGERS,
            ),
        };
        let count = pool.by_caller.get(&caller).copied().unwrap_or_default();
        if pool.all >= all || count >= each {
            return Err(NonceError::Full);
        }
        pool.all += 1;
        pool.by_caller.insert(caller, count + 1);
        self.seen.insert(key);
        let stale = created.saturating_add(WINDOW_S);
        self.expiring
            .entry(stale)
            .or_default()
            .push(Seen { key, caller, known });
        Ok(())
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    fn forget(&mut self, now_s: u64) {
        while let Some(entry) = self
            .expiring
            .first_entry()
            .filter(|entry| *entry.key() < now_s)
        {
            for Seen { key, caller, known } in entry.remove() {
                self.seen.remove(&key);
                let pool = if known {
                    &mut self.known
                } else {
                    &mut self.strangers
                };
                pool.all -= 1;
                if let Some(count) = pool.by_caller.get_mut(&caller) {
                    *count -= 1;
                    if *count == 0 {
                        pool.by_caller.remove(&caller);
                    }
                }
            }
        }
    }
}

/// 128 bits: two requests that a caller did not make to collide do not.
fn key(caller: &Did, nonce: &str) -> Key {
    let mut hasher = blake3::Hasher::new();
    hasher.update(caller.public_key()).update(nonce.as_bytes());
    let mut key = Key::default();
    hasher.finalize_xof().fill(&mut key);
    key
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::did::SecretSeed;
    use proptest::prelude::*;

    const START: u64 = 1_800_000_000;

    fn did(n: u8) -> Did {
        SecretSeed::from_bytes([n; 32]).did()
    }

    fn at(after: u64) -> Timestamp {
        Timestamp((START + after) * 1000)
    }

    #[test]
    fn a_nonce_is_taken_once_and_forgotten_when_its_request_is_stale() {
        let mut nonces = Nonces::new(at(0));
        let mut admit =
            |nonce: &str, created, now| nonces.admit(did(1), true, nonce, START + created, at(now));
        assert_eq!(admit("a", 0, 0), Err(NonceError::BeforeStart));
        assert_eq!(admit("a", 1, 1), Ok(()));
        assert_eq!(admit("a", 1, 1), Err(NonceError::Replayed));
        assert_eq!(
            admit("a", 301, 301),
            Err(NonceError::Replayed),
            "still in its window"
        );
        assert_eq!(admit("b", 302, 302), Ok(()));
        assert_eq!(
            admit("a", 303, 302),
            Ok(()),
            "the first could not be taken any more"
        );
        assert_eq!(nonces.len(), 2);
        assert_eq!(
            nonces.admit(did(2), true, "b", START + 302, at(302)),
            Ok(()),
            "another's"
        );
    }

    #[test]
    fn ten_thousand_at_once_are_refused_and_take_nobody_elses_place() {
        let mut nonces = Nonces::new(at(0));
        let flood = |nonces: &mut Nonces, n, known, tries| {
            let taken = |i: &u32| {
                nonces.admit(did(n), known, &format!("nonce-{i}"), START + 1, at(1)) == Ok(())
            };
            (0..tries).filter(taken).count()
        };
        assert_eq!(flood(&mut nonces, 1, true, 10_000), MAX_NONCES_A_KNOWN);
        assert_eq!(flood(&mut nonces, 2, false, 10_000), MAX_NONCES_A_STRANGER);
        let strangers = (3..=40).map(|n| flood(&mut nonces, n, false, 600));
        let all: usize = strangers.sum();
        assert_eq!(all + MAX_NONCES_A_STRANGER, MAX_NONCES_STRANGERS);
        assert_eq!(
            nonces.admit(did(2), true, "friend", START + 1, at(1)),
            Ok(())
        );
        assert_eq!(
            nonces.admit(did(3), true, "later", START + 302, at(302)),
            Ok(())
        );
        assert_eq!(nonces.len(), 1, "all the others are forgotten");
        assert!(nonces.strangers.by_caller.is_empty() && nonces.strangers.all == 0);
    }

    proptest! {
        #[test]
        fn no_request_is_taken_twice_in_any_order(
            steps in prop::collection::vec((0u8..4, 0u8..6, 1u64..700, any::<bool>()), 1..200)
        ) {
            let (mut nonces, mut now) = (Nonces::new(at(0)), 0);
            let mut taken: BTreeMap<(u8, u8), u64> = BTreeMap::new();
            for (who, nonce, created, known) in steps {
                now = now.max(created.saturating_sub(WINDOW_S));
                if created.abs_diff(now) > WINDOW_S {
                    continue;
                }
                let admitted = nonces.admit(did(who + 1), known, &nonce.to_string(), START + created, at(now));
                let replayable = taken.get(&(who, nonce)).is_some_and(|seen| seen + WINDOW_S >= now);
                prop_assert_eq!(admitted.is_ok(), !replayable);
                if admitted.is_ok() {
                    taken.insert((who, nonce), created);
                }
            }
        }
    }
}
