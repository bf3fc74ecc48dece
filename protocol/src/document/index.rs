//! `index@2`: a slice, a signed run of entries of one publisher's log (`spec/index@2.md`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::require;
use crate::canonical::{self, CanonicalObject, MAX_INTEGER};
use crate::did::Did;
use crate::digest::Digest;
use crate::merkle;
use crate::sign::{Document, DocumentError};
use crate::time::Timestamp;

/// The most entries of a slice (design 4).
pub const MAX_ENTRIES: usize = 512;
/// The most bytes of a slice (design 13).
pub const MAX_SLICE_BYTES: usize = 1 << 20;
/// The longest path, and the longest part of one, in bytes: what every common file system can hold.
const MAX_PATH: usize = 1024;
const MAX_PATH_PART: usize = 255;
/// The most tags, and the most metadata members, of an entry.
const MAX_PAIRS: usize = 32;
/// The longest key and value of a tag or of metadata, in bytes.
const MAX_KEY: usize = 64;
const MAX_VALUE: usize = 1024;

/// One published thing: a line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Position in the log, from 0.
    pub seq: u64,
    /// `file`, or the name of the document type that the artifact is; an open set.
    #[serde(rename = "type")]
    pub kind: String,
    /// BLAKE3 of the artifact's bytes.
    pub digest: Digest,
    /// Bytes of the artifact.
    pub size: u64,
    /// Relative path with `/`, never climbing.
    pub path: String,
    /// The publisher's labels.
    pub tags: BTreeMap<String, String>,
    /// Further facts about the artifact.
    pub metadata: BTreeMap<String, String>,
    /// The seq of the earlier entry of this path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<u64>,
    /// The seq of the entry that this one takes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retracts: Option<u64>,
}

impl Entry {
    /// The Merkle leaf: BLAKE3(0x00 ‖ JCS(entry)). For an entry of our own; a received one is hashed as it was received.
    pub fn leaf(&self) -> Result<Digest, DocumentError> {
        Ok(merkle::leaf_hash(&canonical::to_vec(self)?))
    }

    /// What every entry must keep to. Errors: the first rule that is broken.
    pub(crate) fn check(&self) -> Result<(), DocumentError> {
        let kind = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_-.@".contains(&c);
        require(
            !self.kind.is_empty() && self.kind.len() <= MAX_KEY && self.kind.bytes().all(kind),
            "an entry's type is not a name",
        )?;
        require(self.size <= MAX_INTEGER, "an entry's size is above 2^53")?;
        for pairs in [&self.tags, &self.metadata] {
            require(
                pairs.len() <= MAX_PAIRS,
                "more than 32 tags or metadata members",
            )?;
            require(
                pairs
                    .iter()
                    .all(|(k, v)| !k.is_empty() && k.len() <= MAX_KEY && v.len() <= MAX_VALUE),
                "a tag or metadata member is empty or too long",
            )?;
        }
        let earlier = |seq: &u64| *seq < self.seq;
        require(
            self.replaces.iter().chain(&self.retracts).all(earlier),
            "an entry replaces or retracts one that is not before it",
        )?;
        check_path(&self.path)
    }
}

/// Accepts a relative path that names one file below a folder on every system.
/// Errors: [`DocumentError::Path`] for empty, absolute, climbing, `\`, control characters, or too long.
pub fn check_path(path: &str) -> Result<(), DocumentError> {
    let part = |p: &str| !p.is_empty() && p != "." && p != ".." && p.len() <= MAX_PATH_PART;
    let plain = path.len() <= MAX_PATH
        && path.split('/').all(part)
        && !path.chars().any(|c| c == '\\' || c.is_control());
    if plain {
        Ok(())
    } else {
        Err(DocumentError::Path(path.chars().take(80).collect()))
    }
}

/// A signed run of 1 to 512 entries, with the size and root of the whole log after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// Whose log this is, and the signer.
    pub publisher: Did,
    /// Which log of the publisher's; counts from 0.
    pub epoch: u64,
    /// The publisher's base URL when it was signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// When it was signed.
    pub generated_at: Timestamp,
    /// First seq.
    #[serde(with = "decimal")]
    pub cursor: u64,
    /// First seq of the next slice: equals `log_size`.
    #[serde(with = "decimal")]
    pub next_cursor: u64,
    /// The entries, in order.
    pub entries: Vec<Entry>,
    /// Root over this slice's own leaves.
    pub merkle_root: Digest,
    /// Entries in the log after this slice.
    pub log_size: u64,
    /// Root of the log after this slice.
    pub log_root: Digest,
    /// Digest of the previous slice; only the first has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev: Option<Digest>,
    /// Digest of the last presence issued before this slice.
    pub presence_digest: Digest,
    #[serde(skip)]
    leaves: Vec<Digest>,
}

/// What [`Slice::new`] is made of beyond its entries.
#[derive(Debug, Clone)]
pub struct SliceHead {
    /// The publisher.
    pub publisher: Did,
    /// The log's epoch.
    pub epoch: u64,
    /// The publisher's base URL.
    pub source: Option<String>,
    /// Now.
    pub generated_at: Timestamp,
    /// Root of the log after the slice.
    pub log_root: Digest,
    /// The previous slice.
    pub prev: Option<Digest>,
    /// The last presence issued.
    pub presence_digest: Digest,
}

impl Slice {
    /// A slice of `entries`, not empty, whose seqs are contiguous; `leaves` are their hashes.
    #[must_use]
    pub fn new(head: SliceHead, entries: Vec<Entry>, leaves: Vec<Digest>) -> Self {
        let cursor = entries.first().map_or(0, |e| e.seq);
        let next_cursor = cursor + entries.len() as u64;
        Self {
            publisher: head.publisher,
            epoch: head.epoch,
            source: head.source,
            generated_at: head.generated_at,
            cursor,
            next_cursor,
            merkle_root: merkle::root(&leaves),
            log_size: next_cursor,
            log_root: head.log_root,
            prev: head.prev,
            presence_digest: head.presence_digest,
            entries,
            leaves,
        }
    }

    /// The leaf of each entry, hashed over the entry as it was received.
    #[must_use]
    pub fn leaves(&self) -> &[Digest] {
        &self.leaves
    }
}

impl Document for Slice {
    const TYPE: &'static str = "index@2";
    const MAX_BYTES: usize = MAX_SLICE_BYTES;

    fn signer(&self) -> Did {
        self.publisher
    }

    fn read(value: Value, canonical: &CanonicalObject) -> Result<Self, DocumentError> {
        let mut slice: Self =
            serde_json::from_value(value).map_err(|e| DocumentError::Malformed(e.to_string()))?;
        slice.leaves = canonical
            .elements("entries")
            .map(merkle::leaf_hash)
            .collect();
        Ok(slice)
    }

    fn check(&self) -> Result<(), DocumentError> {
        require(
            (1..=MAX_ENTRIES).contains(&self.entries.len()),
            "a slice has 1 to 512 entries",
        )?;
        require(self.log_size <= MAX_INTEGER, "log_size is above 2^53")?;
        let contiguous = (self.cursor..)
            .zip(&self.entries)
            .all(|(seq, entry)| entry.seq == seq);
        require(
            contiguous,
            "the entries' seqs do not run on from the cursor",
        )?;
        require(
            self.next_cursor == self.cursor + self.entries.len() as u64
                && self.log_size == self.next_cursor,
            "next_cursor or log_size is not where the entries end",
        )?;
        require(
            self.prev.is_none() == (self.cursor == 0),
            "only the first slice has no prev",
        )?;
        require(
            merkle::root(&self.leaves) == self.merkle_root,
            "merkle_root is not the root of the entries",
        )?;
        let mut paths = BTreeSet::new();
        for entry in &self.entries {
            entry.check()?;
            require(
                paths.insert(entry.path.as_str())
                    || entry.replaces.is_some()
                    || entry.retracts.is_some(),
                "a path stands twice in a slice and does not say what it replaces",
            )?;
        }
        Ok(())
    }
}

/// A number as a decimal string in its one spelling: no sign, no leading zero.
mod decimal {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        super::parse_cursor(&text).ok_or_else(|| de::Error::custom("a cursor is a decimal number"))
    }
}

/// Reads a cursor: digits alone, no leading zero, at most 2^53. `None` for anything else.
#[must_use]
pub fn parse_cursor(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|n| plain && *n <= MAX_INTEGER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_paths_that_climb_or_cannot_be_written_everywhere() {
        for path in [
            "../x", "/abs", "a/../b", "a\\b", "a\0b", "", "a//b", "./a", "a/.", "a/", "a\nb",
        ] {
            assert!(
                matches!(check_path(path), Err(DocumentError::Path(_))),
                "{path:?}"
            );
        }
        assert!(check_path(&"x".repeat(256)).is_err());
        assert!(check_path(&"x/".repeat(600)).is_err());
        for path in ["a", "notes/é-0.txt", "a/..b", "...", "C:x", "shards/ab"] {
            assert!(check_path(path).is_ok(), "{path:?}");
        }
    }

    #[test]
    fn a_cursor_has_one_spelling() {
        assert_eq!(parse_cursor("0"), Some(0));
        assert_eq!(parse_cursor("120"), Some(120));
        for text in [
            "",
            "01",
            "+1",
            "-1",
            "1.0",
            " 1",
            "9007199254740993",
            "99999999999999999999",
        ] {
            assert_eq!(parse_cursor(text), None, "{text:?}");
        }
    }
}
