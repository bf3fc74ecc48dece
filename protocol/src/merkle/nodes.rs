//! The nodes of a growing tree in the order in which they come to be, so that they can stand in an append-only file.
//!
//! A node is written as soon as its last leaf is there, right behind its right child (a Merkle mountain range, read in
//! post-order). Leaf `i` writes itself and one parent for each trailing one of `i`; nothing written ever changes:
//!
//! ```text
//! leaves      0 1   2 3     4       what the file holds: 0 1 ┐0  2 3 ┐0 ┐1  4
//! positions   0 1 2 3 4 5 6 7                            positions 2, 5 and 6 are parents
//! ```
//!
//! From such nodes follow, by O(log n) reads, the frontier of any earlier size and the proof of any leaf in the log of any
//! earlier size. Of a log whose past was pruned the nodes before the frontier may be missing, except the frontier itself.

use super::{Frontier, node_hash};
use crate::digest::Digest;

/// Gives nodes by their position.
pub trait NodeReader {
    /// Why a node cannot be read.
    type Error;

    /// The node at `position`. Errors: it is not there.
    fn node(&self, position: u64) -> Result<Digest, Self::Error>;
}

/// How many nodes `leaves` leaves have written; the position of the leaf that comes next.
#[must_use]
pub const fn node_count(leaves: u64) -> u64 {
    2 * leaves - leaves.count_ones() as u64
}

/// How many leaves have all their nodes among the first `nodes`.
#[must_use]
pub const fn leaf_count(nodes: u64) -> u64 {
    // At most 64 too few, since a number has at most 64 ones.
    let mut leaves = nodes / 2;
    while node_count(leaves + 1) <= nodes {
        leaves += 1;
    }
    leaves
}

/// Where the root of the leaves `[index · 2^level, (index + 1) · 2^level)` stands.
#[must_use]
pub const fn node_position(level: u32, index: u64) -> u64 {
    node_count(((index + 1) << level) - 1) + level as u64
}

/// Where each hash of the frontier of `size` leaves stands, largest subtree first.
pub fn peak_positions(size: u64) -> impl Iterator<Item = u64> {
    peaks(0, size).map(|(level, index)| node_position(level, index))
}

/// The perfect subtrees of `[start, end)`, largest first; `start` is a multiple of a power of two above `end - start`.
fn peaks(start: u64, end: u64) -> impl Iterator<Item = (u32, u64)> {
    let mut at = start;
    std::iter::from_fn(move || {
        let level = (end - at).checked_ilog2()?;
        let peak = (level, at >> level);
        at += 1 << level;
        Some(peak)
    })
}

/// The frontier of the first `size` leaves. Errors: a node is not there.
pub fn frontier_at<R: NodeReader>(nodes: &R, size: u64) -> Result<Frontier, R::Error> {
    let hashes = peak_positions(size)
        .map(|position| nodes.node(position))
        .collect::<Result<_, _>>()?;
    Ok(Frontier { size, hashes })
}

/// The hashes that lead from leaf `index` to the root of the first `size` leaves, lowest first; `None` beyond the end.
/// Errors: a node is not there.
pub fn proof_at<R: NodeReader>(
    nodes: &R,
    size: u64,
    index: u64,
) -> Result<Option<Vec<Digest>>, R::Error> {
    if index >= size {
        return Ok(None);
    }
    let mut proof = Vec::new();
    let (mut level, mut width) = (0, size);
    while width > 1 {
        let sibling = (index >> level) ^ 1;
        // Without a sibling the node is promoted as it is.
        if sibling < width {
            proof.push(subtree(nodes, level, sibling, size)?);
        }
        level += 1;
        width = width.div_ceil(2);
    }
    Ok(Some(proof))
}

/// The root of those of the leaves `[index · 2^level, (index + 1) · 2^level)` that the first `size` have.
fn subtree<R: NodeReader>(
    nodes: &R,
    level: u32,
    index: u64,
    size: u64,
) -> Result<Digest, R::Error> {
    let start = index << level;
    let end = size.min(start + (1 << level));
    // At the right edge of the tree there is no node yet for what is not full.
    let mut smallest_first: Vec<(u32, u64)> = peaks(start, end).collect();
    smallest_first.reverse();
    let mut root = None;
    for (level, index) in smallest_first {
        let left = nodes.node(node_position(level, index))?;
        root = Some(root.map_or(left, |right| node_hash(&left, &right)));
    }
    Ok(root.unwrap_or_else(super::empty_root))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{inclusion_proof, leaf_hash, root, verify_inclusion};
    use super::*;
    use proptest::prelude::*;

    /// What a file of nodes is; a pruned one lacks some.
    struct Nodes(Vec<Option<Digest>>);

    impl NodeReader for Nodes {
        type Error = u64;

        fn node(&self, position: u64) -> Result<Digest, u64> {
            self.0
                .get(position as usize)
                .copied()
                .flatten()
                .ok_or(position)
        }
    }

    fn leaves(n: u64) -> Vec<Digest> {
        (0..n)
            .map(|i| leaf_hash(i.to_string().as_bytes()))
            .collect()
    }

    fn frontier(leaves: &[Digest]) -> Frontier {
        let mut frontier = Frontier::default();
        leaves.iter().for_each(|leaf| frontier.push(*leaf));
        frontier
    }

    fn nodes(leaves: &[Digest]) -> Nodes {
        let (mut frontier, mut nodes) = (Frontier::default(), Vec::new());
        for (index, leaf) in leaves.iter().enumerate() {
            assert_eq!(node_count(index as u64), nodes.len() as u64);
            frontier.push_with(*leaf, |node| nodes.push(Some(node)));
            assert_eq!(leaf_count(nodes.len() as u64), index as u64 + 1);
        }
        Nodes(nodes)
    }

    #[test]
    fn nodes_stand_where_the_picture_says() {
        let leaf_positions: Vec<u64> = (0..5).map(node_count).collect();
        assert_eq!(leaf_positions, [0, 1, 3, 4, 7]);
        assert_eq!(
            [
                node_position(1, 0),
                node_position(1, 1),
                node_position(2, 0)
            ],
            [2, 5, 6]
        );
        assert_eq!(peak_positions(5).collect::<Vec<_>>(), [6, 7]);
        assert_eq!(peak_positions(0).count(), 0);
        let counted: Vec<u64> = (0..8).map(leaf_count).collect();
        assert_eq!(counted, [0, 1, 1, 2, 3, 3, 3, 4]);
    }

    #[test]
    fn the_largest_log_has_positions() {
        let size = crate::canonical::MAX_INTEGER;
        assert_eq!(node_position(53, 0), node_count(size) - 1);
        assert_eq!(leaf_count(node_count(size)), size);
    }

    proptest! {
        #[test]
        fn every_earlier_size_has_its_frontier(n in 0u64..300, at in 0u64..300) {
            let all = leaves(n);
            let at = at.min(n);
            prop_assert_eq!(
                frontier_at(&nodes(&all), at).unwrap(),
                frontier(&all[..at as usize])
            );
        }

        #[test]
        fn every_leaf_has_the_proof_of_the_whole_tree_at_every_size(n in 1u64..200, size in 1u64..200, at in 0u64..200) {
            let all = leaves(n);
            let size = size.min(n);
            let tree = nodes(&all);
            let kept = &all[..size as usize];
            let proof = proof_at(&tree, size, at).unwrap();
            prop_assert_eq!(&proof, &inclusion_proof(kept, at as usize));
            if let Some(proof) = proof {
                prop_assert!(verify_inclusion(&root(kept), size, at, &all[at as usize], &proof));
            }
        }

        #[test]
        fn what_a_pruned_log_keeps_proves_without_the_nodes_before_its_frontier(n in 1u64..200, base in 0u64..200, more in 0u64..200) {
            let all = leaves(n);
            let base = base % n;
            let mut tree = nodes(&all);
            let peaks: Vec<u64> = peak_positions(base).collect();
            for position in 0..node_count(base) {
                if !peaks.contains(&position) {
                    tree.0[position as usize] = None;
                }
            }
            let at = base + more % (n - base);
            for size in at + 1..=n {
                let proof = proof_at(&tree, size, at).unwrap().unwrap();
                let root = root(&all[..size as usize]);
                prop_assert!(verify_inclusion(&root, size, at, &all[at as usize], &proof));
            }
        }

        #[test]
        fn a_proof_reads_few_nodes(n in 1u64..100_000, at in 0u64..100_000) {
            struct Counted(std::cell::Cell<u32>);
            impl NodeReader for Counted {
                type Error = u64;
                fn node(&self, _: u64) -> Result<Digest, u64> {
                    self.0.set(self.0.get() + 1);
                    Ok(Digest([0; 32]))
                }
            }
            let reads = Counted(std::cell::Cell::new(0));
            proof_at(&reads, n, at % n).unwrap();
            prop_assert!(reads.0.get() <= 2 * 64 - n.leading_zeros() * 2, "{}", reads.0.get());
        }
    }
}
