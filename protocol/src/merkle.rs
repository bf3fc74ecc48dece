//! Merkle trees in the shape of RFC 6962 over BLAKE3 (design 4).
//!
//! Leaf = BLAKE3(0x00 ‖ bytes), node = BLAKE3(0x01 ‖ left ‖ right), empty root = BLAKE3 of no bytes.
//! A growing log keeps a [`Frontier`] and, for proofs in O(log n), its nodes in the order of `nodes`. Whole small trees are
//! proved by `rs_merkle`, which has the same shape.

mod nodes;

pub use nodes::{
    NodeReader, frontier_at, leaf_count, node_count, node_position, peak_positions, proof_at,
};

use rs_merkle::{Hasher, MerkleProof, MerkleTree};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// BLAKE3(0x00 ‖ `bytes`).
#[must_use]
pub fn leaf_hash(bytes: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[0x00]).update(bytes);
    hasher.finalize().into()
}

/// BLAKE3(0x01 ‖ `left` ‖ `right`).
#[must_use]
pub fn node_hash(left: &Digest, right: &Digest) -> Digest {
    let mut bytes = [0x01; 65];
    bytes[1..33].copy_from_slice(&left.0);
    bytes[33..].copy_from_slice(&right.0);
    Digest::of(&bytes)
}

/// The root of no leaves.
#[must_use]
pub fn empty_root() -> Digest {
    Digest::of(b"")
}

/// The root of `leaves`.
#[must_use]
pub fn root(leaves: &[Digest]) -> Digest {
    let mut frontier = Frontier::default();
    leaves.iter().for_each(|leaf| frontier.push(*leaf));
    frontier.root()
}

/// The roots of the perfect subtrees that a log consists of, largest first: O(log n) hashes, from which
/// the log's root follows and to which leaves can be appended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontier {
    size: u64,
    hashes: Vec<Digest>,
}

impl Frontier {
    /// A frontier from its parts; `None` unless there is one hash for each bit set in `size`.
    #[must_use]
    pub fn from_parts(size: u64, hashes: Vec<Digest>) -> Option<Self> {
        (hashes.len() == size.count_ones() as usize).then_some(Self { size, hashes })
    }

    /// How many leaves it stands for.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The subtree roots, largest first.
    #[must_use]
    pub fn hashes(&self) -> &[Digest] {
        &self.hashes
    }

    /// Appends one leaf.
    pub fn push(&mut self, leaf: Digest) {
        self.push_with(leaf, |_| ());
    }

    /// Appends one leaf, and tells of each node that is complete with it: the leaf, then its parents upwards.
    pub fn push_with(&mut self, leaf: Digest, mut made: impl FnMut(Digest)) {
        let mut node = leaf;
        made(node);
        // Each trailing one of the size is a subtree of the height that has just been completed.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.hashes.pop() {
                node = node_hash(&left, &node);
                made(node);
            }
        }
        self.hashes.push(node);
        self.size += 1;
    }

    /// The root of all leaves.
    #[must_use]
    pub fn root(&self) -> Digest {
        let mut smallest_first = self.hashes.iter().rev();
        match smallest_first.next() {
            None => empty_root(),
            Some(last) => smallest_first.fold(*last, |right, left| node_hash(left, &right)),
        }
    }
}

/// The hash of this tree for `rs_merkle`.
#[derive(Clone)]
struct Blake3Tree;

impl Hasher for Blake3Tree {
    type Hash = [u8; 32];

    fn hash(data: &[u8]) -> [u8; 32] {
        leaf_hash(data).0
    }

    fn concat_and_hash(left: &[u8; 32], right: Option<&[u8; 32]>) -> [u8; 32] {
        // An odd node is promoted as it is, as in RFC 6962.
        right.map_or(*left, |right| node_hash(&Digest(*left), &Digest(*right)).0)
    }
}

/// The hashes that lead from leaf `index` of `leaves` to their root, lowest first; `None` beyond the end.
#[must_use]
pub fn inclusion_proof(leaves: &[Digest], index: usize) -> Option<Vec<Digest>> {
    if index >= leaves.len() {
        return None;
    }
    let leaves: Vec<[u8; 32]> = leaves.iter().map(|leaf| leaf.0).collect();
    let proof = MerkleTree::<Blake3Tree>::from_leaves(&leaves).proof(&[index]);
    Some(
        proof
            .proof_hashes()
            .iter()
            .map(|hash| Digest(*hash))
            .collect(),
    )
}

/// Whether `proof` leads from `leaf` at `index` to `root` of a tree with `size` leaves.
#[must_use]
pub fn verify_inclusion(
    root: &Digest,
    size: u64,
    index: u64,
    leaf: &Digest,
    proof: &[Digest],
) -> bool {
    let (Ok(total), Ok(position)) = (usize::try_from(size), usize::try_from(index)) else {
        return false;
    };
    // rs_merkle ignores hashes that it does not need; a proof has exactly those that it needs.
    if position >= total || proof.len() != proof_length(size, index) {
        return false;
    }
    let proof = MerkleProof::<Blake3Tree>::new(proof.iter().map(|hash| hash.0).collect());
    proof.verify(root.0, &[position], &[leaf.0], total)
}

/// How many siblings a leaf has on its way to the root.
fn proof_length(size: u64, index: u64) -> usize {
    let (mut size, mut index, mut length) = (size, index, 0);
    while size > 1 {
        if index ^ 1 < size {
            length += 1;
        }
        index >>= 1;
        size = size.div_ceil(2);
    }
    length
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn leaves(n: u64) -> Vec<Digest> {
        (0..n)
            .map(|i| leaf_hash(i.to_string().as_bytes()))
            .collect()
    }

    #[test]
    fn a_proof_with_a_hash_too_many_or_too_few_is_refused() {
        let leaves = leaves(13);
        let mut proof = inclusion_proof(&leaves, 4).unwrap();
        assert!(verify_inclusion(&root(&leaves), 13, 4, &leaves[4], &proof));
        proof.push(leaves[0]);
        assert!(!verify_inclusion(&root(&leaves), 13, 4, &leaves[4], &proof));
        proof.truncate(2);
        assert!(!verify_inclusion(&root(&leaves), 13, 4, &leaves[4], &proof));
        assert!(inclusion_proof(&leaves, 13).is_none());
    }

    proptest! {
        #[test]
        fn frontier_and_tree_have_one_root(n in 1u64..300) {
            let leaves = leaves(n);
            let raw: Vec<[u8; 32]> = leaves.iter().map(|l| l.0).collect();
            prop_assert_eq!(Some(root(&leaves).0), MerkleTree::<Blake3Tree>::from_leaves(&raw).root());
        }

        #[test]
        fn every_leaf_proves_and_no_other_does(n in 1u64..200, at in 0u64..200, other in 0u64..200) {
            let at = at % n;
            let leaves = leaves(n);
            let proof = inclusion_proof(&leaves, at as usize).unwrap();
            let root = root(&leaves);
            prop_assert!(verify_inclusion(&root, n, at, &leaves[at as usize], &proof));
            let other = other % n;
            prop_assert_eq!(verify_inclusion(&root, n, other, &leaves[at as usize], &proof), other == at);
            prop_assert!(!verify_inclusion(&empty_root(), n, at, &leaves[at as usize], &proof));
        }

        #[test]
        fn a_frontier_resumes_from_its_parts(n in 0u64..300, more in 0u64..50) {
            let all = leaves(n + more);
            let mut frontier = Frontier::default();
            all[..n as usize].iter().for_each(|l| frontier.push(*l));
            let mut resumed = Frontier::from_parts(n, frontier.hashes().to_vec()).unwrap();
            all[n as usize..].iter().for_each(|l| resumed.push(*l));
            prop_assert_eq!(resumed.root(), root(&all));
            prop_assert!(Frontier::from_parts(n + 1, vec![]).is_none());
        }
    }
}
