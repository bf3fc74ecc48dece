//! Which artifacts hosted publishers may hand over: those that slices of theirs name and that are not here. Memory alone:
//! whoever hands the slices over once more, which changes nothing, is told again what is missing.

use std::collections::{BTreeMap, VecDeque};

use hn_protocol::did::Did;
use hn_protocol::digest::Digest;

/// Publishers that are remembered; beyond them who came first is forgotten.
const MAX_PUBLISHERS: usize = 256;

/// By publisher, with the length that the slice gives.
#[derive(Debug, Default)]
pub struct Wanted {
    by_publisher: BTreeMap<Did, BTreeMap<Digest, u64>>,
    /// Who came first.
    order: VecDeque<Did>,
}

impl Wanted {
    /// Artifacts of one publisher: those of the slices of two requests.
    pub const MAX_OF_ONE: usize = 65_536;

    /// Remembers `wanted` of `publisher`; where that is too many, earlier ones are forgotten.
    pub fn add(&mut self, publisher: Did, wanted: BTreeMap<Digest, u64>) {
        if wanted.is_empty() {
            return;
        }
        if !self.by_publisher.contains_key(&publisher) {
            self.order.push_back(publisher);
            while self.order.len() > MAX_PUBLISHERS {
                if let Some(first) = self.order.pop_front() {
                    self.by_publisher.remove(&first);
                }
            }
        }
        let of = self.by_publisher.entry(publisher).or_default();
        if of.len() + wanted.len() > Self::MAX_OF_ONE {
            of.clear();
        }
        of.extend(wanted);
    }

    /// The length of an artifact that is wanted of `publisher`.
    pub fn size_of(&self, publisher: &Did, digest: &Digest) -> Option<u64> {
        self.by_publisher.get(publisher)?.get(digest).copied()
    }

    /// It is here now.
    pub fn settle(&mut self, publisher: &Did, digest: &Digest) {
        if let Some(of) = self.by_publisher.get_mut(publisher) {
            of.remove(digest);
            if of.is_empty() {
                self.by_publisher.remove(publisher);
                self.order.retain(|known| known != publisher);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hn_protocol::did::SecretSeed;

    fn did(n: u16) -> Did {
        let mut seed = [0; 32];
        seed[..2].copy_from_slice(&n.to_be_bytes());
        SecretSeed::from_bytes(seed).did()
    }

    fn digest(n: u32) -> Digest {
        Digest::of(&n.to_be_bytes())
    }

    #[test]
    fn what_a_publisher_may_hand_over_is_its_own_and_bounded() {
        let mut wanted = Wanted::default();
        wanted.add(did(1), BTreeMap::from([(digest(1), 10), (digest(2), 20)]));
        assert_eq!(wanted.size_of(&did(1), &digest(2)), Some(20));
        assert_eq!(wanted.size_of(&did(2), &digest(2)), None);
        wanted.settle(&did(1), &digest(2));
        assert_eq!(wanted.size_of(&did(1), &digest(2)), None);
        let most = u32::try_from(Wanted::MAX_OF_ONE).unwrap_or(u32::MAX);
        wanted.add(did(1), (10..10 + most).map(|n| (digest(n), 1)).collect());
        assert_eq!(wanted.size_of(&did(1), &digest(1)), None, "forgotten");
        assert_eq!(wanted.size_of(&did(1), &digest(10)), Some(1));
        for n in 2..600 {
            wanted.add(did(n), BTreeMap::from([(digest(1), 1)]));
        }
        assert_eq!(wanted.by_publisher.len(), MAX_PUBLISHERS);
        assert_eq!(wanted.order.len(), MAX_PUBLISHERS);
    }
}
