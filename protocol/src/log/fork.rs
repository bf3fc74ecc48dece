//! When two signed documents of one publisher contradict each other (design 4, `spec/fork_evidence@1.md`).

use super::Line;
use crate::did::Did;
use crate::digest::Digest;

/// In which way two documents contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// Two slices with an entry's seq in common and different ids.
    Slices,
    /// Two heads, each a slice or a presence, of one size and different roots.
    Heads,
    /// Two presences of one sequence and different content.
    Sequence,
}

impl Conflict {
    /// What happened, for people.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Slices => "two slices hold the same seqs",
            Self::Heads => "two roots were signed for one size",
            Self::Sequence => "two presences have one sequence",
        }
    }
}

/// Whose document a line is, and of which epoch; none for a frontier, which nobody signs.
fn author(line: &Line) -> Option<(Did, u64, Digest)> {
    match line {
        Line::Slice(slice) => Some((slice.publisher, slice.epoch, slice.digest())),
        Line::Presence(presence) => Some((presence.did, presence.epoch, presence.digest())),
        Line::Frontier(_) => None,
    }
}

/// The size and the root of the log that a document speaks for.
fn head(line: &Line) -> Option<(u64, Digest)> {
    match line {
        Line::Slice(slice) => Some((slice.log_size, slice.log_root)),
        Line::Presence(presence) => Some((presence.log_size, presence.merkle_root)),
        Line::Frontier(_) => None,
    }
}

/// K1–K3: how `a` and `b` prove that their publisher signed two logs; `None` when they do not. The order does not matter.
#[must_use]
pub fn conflict(a: &Line, b: &Line) -> Option<Conflict> {
    let (publisher, epoch, digest) = author(a)?;
    let (other, other_epoch, other_digest) = author(b)?;
    if (publisher, epoch) != (other, other_epoch) || digest == other_digest {
        return None;
    }
    match (a, b) {
        (Line::Slice(a), Line::Slice(b))
            if a.cursor < b.next_cursor && b.cursor < a.next_cursor =>
        {
            return Some(Conflict::Slices);
        }
        (Line::Presence(a), Line::Presence(b)) if a.sequence == b.sequence => {
            return Some(Conflict::Sequence);
        }
        _ => {}
    }
    let ((size, root), (other_size, other_root)) = (head(a)?, head(b)?);
    (size == other_size && root != other_root).then_some(Conflict::Heads)
}
