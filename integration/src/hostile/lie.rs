//! Every way in which eve's next slice or presence can be wrong, each wrong in that one way alone: whatever else is
//! checked holds, so that a follower without this one check would believe it.

use bytes::Bytes;
use hn_protocol::canonical::MAX_INTEGER;
use hn_protocol::did::SecretSeed;
use hn_protocol::digest::Digest;
use hn_protocol::time::Timestamp;
use serde_json::{Map, Value, json};

use super::author::{Author, Pages, ServedSlice, object, reroot, sign};
use crate::log::now;

/// How far ahead of the clock is too far, in milliseconds, with room for the test to run.
const AHEAD_MS: u64 = 10 * 60_000;

/// How much lower a sequence is than any of hers, in milliseconds.
const LONG_AGO_MS: u64 = 1_000_000;

/// A lie about the log. Each is told on top of an honest log that was accepted before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// A signature with one byte changed.
    WrongSignature,
    /// Eve's slice, rightly signed by mallory.
    SignatureOfAnother,
    /// A slice by mallory, who signed it, in eve's log.
    SliceOfAnother,
    /// A presence by mallory, who signed it, at the end of eve's log.
    PresenceOfAnother,
    /// An entry changed after signing.
    AlteredEntry,
    /// An entry that `merkle_root` does not cover, though all is signed.
    EntryBesideTheRoot,
    /// Entries in another order.
    AlteredOrder,
    /// Another `merkle_root`.
    AlteredMerkleRoot,
    /// Another `log_root`.
    AlteredLogRoot,
    /// Another `cursor`.
    AlteredCursor,
    /// Another `next_cursor`.
    AlteredNextCursor,
    /// Another `log_size`.
    AlteredLogSize,
    /// Another `prev`.
    AlteredPrev,
    /// No `prev`, though it is not the first slice.
    MissingPrev,
    /// Within a slice, a seq is left out.
    SkippedSeq,
    /// A whole slice is left out.
    SkippedSlice,
    /// Within a slice, a seq stands twice.
    RepeatedSeq,
    /// Another slice for a place that was taken before.
    RewrittenSlice,
    /// The current presence is older than the one accepted before.
    LowerSequence,
    /// Everything as it was before the last slice: she runs from an old copy.
    OldCopy,
    /// A newer presence says that the log is smaller than it was.
    SmallerLog,
    /// Two presences of one sequence.
    SameSequence,
    /// A presence for a size that the log does not have.
    UnboundPresence,
    /// A presence with another root at the log's size.
    PresenceOfAnotherRoot,
    /// A slice that names a presence which nobody has seen.
    UnboundSlice,
    /// A presence of a time to come.
    PresenceAhead,
    /// A slice of a time to come.
    SliceAhead,
    /// A presence that has expired.
    ExpiredPresence,
    /// A page that reaches the head and ends without a presence.
    NoPresence,
    /// Another epoch's slice.
    OtherEpoch,
    /// A path that must never be written.
    Path(&'static str),
    /// A member that stands twice.
    DuplicateKey,
    /// `NaN` where a number belongs.
    NotANumber,
    /// An integer over 2^53.
    BigInteger,
    /// Arrays within arrays, a thousand deep.
    Depth,
    /// Bytes that are no UTF-8.
    InvalidUtf8,
    /// No JSON.
    NotJson,
    /// A signed document of a type that no log has.
    WrongType,
    /// More than 512 entries in one slice.
    TooManyEntries,
    /// A slice of more than 1 MiB, as far as the follower reads it.
    LargeSlice,
}

impl Lie {
    /// Every lie.
    pub const ALL: [Self; 45] = [
        Self::WrongSignature,
        Self::SignatureOfAnother,
        Self::SliceOfAnother,
        Self::PresenceOfAnother,
        Self::AlteredEntry,
        Self::EntryBesideTheRoot,
        Self::AlteredOrder,
        Self::AlteredMerkleRoot,
        Self::AlteredLogRoot,
        Self::AlteredCursor,
        Self::AlteredNextCursor,
        Self::AlteredLogSize,
        Self::AlteredPrev,
        Self::MissingPrev,
        Self::SkippedSeq,
        Self::SkippedSlice,
        Self::RepeatedSeq,
        Self::RewrittenSlice,
        Self::LowerSequence,
        Self::OldCopy,
        Self::SmallerLog,
        Self::SameSequence,
        Self::UnboundPresence,
        Self::PresenceOfAnotherRoot,
        Self::UnboundSlice,
        Self::PresenceAhead,
        Self::SliceAhead,
        Self::ExpiredPresence,
        Self::NoPresence,
        Self::OtherEpoch,
        Self::Path("../x"),
        Self::Path("/abs"),
        Self::Path("a/../b"),
        Self::Path("a\\b"),
        Self::Path("a\0b"),
        Self::Path(""),
        Self::DuplicateKey,
        Self::NotANumber,
        Self::BigInteger,
        Self::Depth,
        Self::InvalidUtf8,
        Self::NotJson,
        Self::WrongType,
        Self::TooManyEntries,
        Self::LargeSlice,
    ];

    /// The code under which a follower refuses it, and words of the reason that tell it from others of that code.
    pub const fn refused_as(self) -> (&'static str, &'static str) {
        match self {
            Self::WrongSignature | Self::SignatureOfAnother => {
                ("wrong_signature", "not by did:hn:")
            }
            Self::SliceOfAnother | Self::PresenceOfAnother => ("wrong_publisher", "signed by"),
            Self::AlteredEntry => ("wrong_id", "id is not the digest"),
            Self::EntryBesideTheRoot | Self::AlteredMerkleRoot => {
                ("malformed_document", "merkle_root")
            }
            Self::AlteredOrder | Self::AlteredCursor | Self::SkippedSeq | Self::RepeatedSeq => {
                ("malformed_document", "seqs do not run on")
            }
            Self::AlteredNextCursor | Self::AlteredLogSize => {
                ("malformed_document", "next_cursor or log_size")
            }
            Self::AlteredLogRoot => ("wrong_log_root", "log_root"),
            Self::AlteredPrev => ("broken_chain", "prev"),
            Self::MissingPrev => ("malformed_document", "no prev"),
            Self::SkippedSlice => ("gap", "was due"),
            // What was accepted and what is told now are both signed: evidence.
            Self::RewrittenSlice | Self::SameSequence | Self::PresenceOfAnotherRoot => {
                ("fork", "signed two logs")
            }
            Self::LowerSequence | Self::OldCopy => ("rollback", "sequence"),
            Self::SmallerLog => ("rollback", "is said to have"),
            Self::UnboundPresence => ("unbound_presence", "binds size"),
            Self::UnboundSlice => ("unbound_slice", "was not shown"),
            Self::PresenceAhead | Self::SliceAhead => ("ahead_of_clock", "5 minutes"),
            Self::ExpiredPresence => ("expired_presence", "expired"),
            Self::NoPresence => ("no_current_presence", "current presence"),
            Self::OtherEpoch => ("wrong_epoch", "epoch"),
            Self::Path(_) => ("bad_path", "path"),
            Self::DuplicateKey => ("duplicate_key", "type"),
            Self::NotANumber => ("invalid_json", "not JSON"),
            Self::BigInteger => ("number_out_of_range", "2^53"),
            Self::Depth => ("nested_too_deep", "too deep"),
            Self::InvalidUtf8 => ("invalid_utf8", "UTF-8"),
            Self::NotJson => ("invalid_json", "not JSON"),
            Self::WrongType => ("wrong_type", "index@3"),
            Self::TooManyEntries => ("malformed_document", "1 to 512"),
            Self::LargeSlice => ("document_too_large", "bytes"),
        }
    }

    /// What eve serves when she tells this lie on top of her honest log.
    pub fn told_by(self, honest: &Author) -> Pages {
        let mut grown = honest.clone();
        grown.publish();
        let mut lie = Telling { honest, grown };
        match self {
            Self::LowerSequence
            | Self::SmallerLog
            | Self::SameSequence
            | Self::UnboundPresence
            | Self::PresenceOfAnotherRoot
            | Self::PresenceOfAnother
            | Self::PresenceAhead
            | Self::ExpiredPresence
            | Self::NoPresence => lie.about_presence(self),
            Self::WrongSignature
            | Self::AlteredEntry
            | Self::DuplicateKey
            | Self::NotANumber
            | Self::Depth
            | Self::InvalidUtf8
            | Self::NotJson => lie.in_bytes(self),
            Self::SkippedSlice => lie.skipping(),
            Self::OldCopy => lie.old_copy(),
            _ => lie.signed(self),
        }
        lie.grown.pages
    }
}

struct Telling<'a> {
    honest: &'a Author,
    grown: Author,
}

impl Telling<'_> {
    /// Lies that eve signs: the slice is forged, and a presence is forged to cover it.
    fn signed(&mut self, lie: Lie) {
        let mallory = SecretSeed::from_bytes(rand::random()).identity();
        let mut slice = self.grown.last_slice();
        let before = self.honest.state.frontier.clone();
        match lie {
            Lie::SignatureOfAnother => {
                let bytes = sign(slice, &mallory);
                return self.replace_last(bytes);
            }
            Lie::SliceOfAnother => {
                slice.insert("publisher".into(), json!(mallory.did()));
                let bytes = sign(slice, &mallory);
                return self.replace_last(bytes);
            }
            Lie::EntryBesideTheRoot => {
                let root = slice["merkle_root"].clone();
                slice["entries"][0]["size"] = json!(1);
                reroot(&mut slice, &before);
                slice.insert("merkle_root".into(), root);
            }
            Lie::AlteredOrder => {
                slice["entries"].as_array_mut().expect("entries").reverse();
                reroot(&mut slice, &before);
            }
            Lie::AlteredMerkleRoot => {
                drop(slice.insert("merkle_root".into(), json!(Digest::of(b"x"))))
            }
            Lie::AlteredLogRoot => drop(slice.insert("log_root".into(), json!(Digest::of(b"x")))),
            Lie::AlteredCursor => shift_text(&mut slice, "cursor"),
            Lie::AlteredNextCursor => shift_text(&mut slice, "next_cursor"),
            Lie::AlteredLogSize => shift(&mut slice["log_size"]),
            Lie::AlteredPrev => drop(slice.insert("prev".into(), json!(Digest::of(b"x")))),
            Lie::MissingPrev => drop(slice.remove("prev")),
            Lie::SkippedSeq => {
                shift(&mut slice["entries"][1]["seq"]);
                reroot(&mut slice, &before);
            }
            Lie::RepeatedSeq => {
                slice["entries"][1]["seq"] = slice["entries"][0]["seq"].clone();
                reroot(&mut slice, &before);
            }
            Lie::RewrittenSlice => return self.rewrite(),
            Lie::UnboundSlice => {
                drop(slice.insert("presence_digest".into(), json!(Digest::of(b"x"))))
            }
            Lie::SliceAhead => {
                drop(slice.insert("generated_at".into(), json!(Timestamp(now().0 + AHEAD_MS))))
            }
            Lie::OtherEpoch => drop(slice.insert("epoch".into(), json!(1))),
            Lie::Path(path) => {
                slice["entries"][0]["path"] = json!(path);
                reroot(&mut slice, &before);
            }
            Lie::BigInteger => drop(slice.insert("more".into(), json!(MAX_INTEGER + 2))),
            Lie::WrongType => drop(slice.insert("type".into(), json!("index@3"))),
            Lie::TooManyEntries => self.enlarge(&mut slice, 513, 10),
            Lie::LargeSlice => self.enlarge(&mut slice, 512, 4000),
            other => unreachable!("{other:?} is not told in a signed slice"),
        }
        let covering = self.cover(&slice);
        let bytes = sign(slice, &self.grown.identity);
        self.replace_last(bytes);
        self.grown.pages.current = Some(covering);
    }

    /// A presence that binds the log as `slice` leaves it.
    fn cover(&self, slice: &Map<String, Value>) -> Bytes {
        let mut presence = self.grown.presence();
        presence.insert("merkle_root".into(), slice["log_root"].clone());
        presence.insert("log_size".into(), slice["log_size"].clone());
        sign(presence, &self.grown.identity)
    }

    fn replace_last(&mut self, bytes: Bytes) {
        self.grown
            .pages
            .slices
            .last_mut()
            .expect("she has published")
            .bytes = bytes;
    }

    /// As many entries as `count`, each with `padding` bytes of metadata, all else right.
    fn enlarge(&self, slice: &mut Map<String, Value>, count: u64, padding: usize) {
        let first = self.honest.state.size();
        let entry = |n: u64| {
            json!({"seq": first + n, "type": "file", "digest": Digest::of(b"x"), "size": 1, "path": format!("many/{n}"),
                "tags": {}, "metadata": {"a": "x".repeat(padding.min(1000)), "b": "x".repeat(padding.saturating_sub(1000).min(1000)),
                "c": "x".repeat(padding.saturating_sub(2000).min(1000))}})
        };
        slice.insert("entries".into(), (0..count).map(entry).collect());
        slice.insert("next_cursor".into(), json!((first + count).to_string()));
        slice.insert("log_size".into(), json!(first + count));
        reroot(slice, &self.honest.state.frontier);
    }

    /// The last accepted slice is served once more with other content, where the next is due.
    fn rewrite(&mut self) {
        let mut slice = self.honest.last_slice();
        slice["entries"][0]["size"] = json!(1);
        reroot_within(&mut slice, self.honest);
        let bytes = sign(slice, &self.grown.identity);
        self.replace_last(bytes);
    }

    /// Two slices further, and the one between is not shown. The presence that the later one names is an accepted one.
    fn skipping(&mut self) {
        let accepted = self
            .honest
            .state
            .presence
            .expect("a presence was accepted")
            .digest;
        self.grown.publish();
        let mut slice = self.grown.last_slice();
        slice.insert("presence_digest".into(), json!(accepted));
        let bytes = sign(slice, &self.grown.identity);
        self.replace_last(bytes);
        let slices = &mut self.grown.pages.slices;
        slices.remove(slices.len() - 2);
        slices.iter_mut().last().expect("the later one").presence = accepted;
    }

    /// The honest log without its last slice, and the presence that was current then: the one which that slice names.
    fn old_copy(&mut self) {
        self.grown.pages = self.honest.pages.clone();
        let pages = &mut self.grown.pages;
        let last = pages.slices.pop().expect("two slices were accepted");
        pages.current = pages.presences.get(&last.presence).cloned();
    }

    /// Lies in the presence that ends the page; the log itself does not grow.
    fn about_presence(&mut self, lie: Lie) {
        let accepted = self.honest.presence();
        let newer = self.grown.presence();
        let sequence = accepted["sequence"].as_u64().expect("a sequence");
        let mut presence = accepted.clone();
        self.grown.pages = self.honest.pages.clone();
        presence.insert("sequence".into(), newer["sequence"].clone());
        match lie {
            // One that none of her presences had.
            Lie::LowerSequence => {
                drop(presence.insert("sequence".into(), json!(sequence - LONG_AGO_MS)))
            }
            Lie::SameSequence => {
                presence.insert("sequence".into(), json!(sequence));
                presence.insert("services".into(), json!(["relay"]));
            }
            Lie::SmallerLog => {
                let earlier = self
                    .honest
                    .pages
                    .slices
                    .iter()
                    .rev()
                    .nth(1)
                    .expect("two slices were accepted");
                let slice = object(&earlier.bytes);
                presence.insert("log_size".into(), slice["log_size"].clone());
                presence.insert("merkle_root".into(), slice["log_root"].clone());
            }
            Lie::UnboundPresence => {
                drop(presence.insert("log_size".into(), json!(self.honest.state.size() + 100)))
            }
            Lie::PresenceOfAnotherRoot => {
                drop(presence.insert("merkle_root".into(), json!(Digest::of(b"x"))))
            }
            Lie::PresenceAhead => {
                drop(presence.insert("sequence".into(), json!(now().0 + AHEAD_MS)))
            }
            Lie::ExpiredPresence => {
                presence.insert("issued_at".into(), json!(Timestamp(now().0 - 2000)));
                presence.insert("expires_at".into(), json!(Timestamp(now().0 - 1000)));
            }
            Lie::PresenceOfAnother => {
                let mallory = SecretSeed::from_bytes(rand::random()).identity();
                presence.insert("did".into(), json!(mallory.did()));
                self.grown.pages.current = Some(sign(presence, &mallory));
                return;
            }
            Lie::NoPresence => {
                self.grown.pages.current = None;
                return;
            }
            other => unreachable!("{other:?} is not told in a presence"),
        }
        self.grown.pages.current = Some(sign(presence, &self.grown.identity));
    }

    /// Lies that are told in the bytes of the honest line.
    fn in_bytes(&mut self, lie: Lie) {
        let last = self
            .grown
            .pages
            .slices
            .last_mut()
            .expect("she has published");
        let text = String::from_utf8(last.bytes.to_vec()).expect("an honest line is UTF-8");
        let with = |member: &str| Bytes::from(format!("{{{member},{}", &text[1..]));
        last.bytes = match lie {
            Lie::WrongSignature => {
                let at = text.find("ed25519:").expect("a signature") + 20;
                let other = if text.as_bytes()[at] == b'A' {
                    "B"
                } else {
                    "A"
                };
                Bytes::from(format!("{}{other}{}", &text[..at], &text[at + 1..]))
            }
            Lie::AlteredEntry => Bytes::from(text.replacen("notes/", "other/", 1)),
            Lie::DuplicateKey => with("\"type\":\"index@2\""),
            Lie::NotANumber => with("\"more\":NaN"),
            Lie::Depth => with(&format!(
                "\"more\":{}{}",
                "[".repeat(1000),
                "]".repeat(1000)
            )),
            Lie::InvalidUtf8 => {
                let mut bytes = text.into_bytes();
                let at = bytes
                    .windows(6)
                    .position(|w| w == b"notes/")
                    .expect("a path");
                bytes[at] = 0xff;
                Bytes::from(bytes)
            }
            Lie::NotJson => Bytes::from_static(b"<html>It works!</html>"),
            other => unreachable!("{other:?} is not told in bytes"),
        };
    }
}

/// [`reroot`] of the honest log's own last slice: its frontier before is made of the slices before.
fn reroot_within(slice: &mut Map<String, Value>, honest: &Author) {
    let mut before = hn_protocol::merkle::Frontier::default();
    let earlier: &[ServedSlice] = &honest.pages.slices[..honest.pages.slices.len() - 1];
    for served in earlier {
        let slice =
            hn_protocol::sign::Signed::<hn_protocol::document::Slice>::verify(served.bytes.clone());
        slice
            .expect("an honest slice")
            .leaves()
            .iter()
            .for_each(|leaf| before.push(*leaf));
    }
    reroot(slice, &before);
}

fn shift(number: &mut Value) {
    *number = json!(number.as_u64().expect("a number") + 1);
}

fn shift_text(slice: &mut Map<String, Value>, member: &str) {
    let number: u64 = slice[member]
        .as_str()
        .and_then(|n| n.parse().ok())
        .expect("a decimal");
    slice.insert(member.into(), json!((number + 1).to_string()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use hn_protocol::log::{
        History, LogState, PageContext, PageError, PresenceMark, SliceMark, Source,
    };

    /// What a follower holds of an honest log: the ends and beginnings of its slices.
    struct Held<'a>(&'a Author);

    impl History for Held<'_> {
        fn slice_holding(&self, seq: u64) -> Option<SliceMark> {
            let mut slices = self.0.pages.slices.iter();
            let slice = slices.find(|slice| (slice.cursor..slice.next).contains(&seq))?;
            let written = object(&slice.bytes);
            let id = written["id"].as_str()?.strip_prefix("index:")?;
            Some(SliceMark {
                digest: id.parse().ok()?,
                cursor: slice.cursor,
                next_cursor: slice.next,
                log_root: written["log_root"].as_str()?.parse().ok()?,
            })
        }

        fn presence_with(&self, _: u64) -> Option<Digest> {
            None
        }

        fn presence(&self, _: &Digest) -> Option<PresenceMark> {
            None
        }
    }

    fn follow(state: &LogState, pages: &Pages, honest: &Author) -> Result<LogState, PageError> {
        let (lines, reaches_head) = pages.page(state.size(), 16);
        let context = PageContext {
            now: now(),
            source: Source::Publisher,
            reaches_head,
        };
        state
            .follow(&lines, context, &Held(honest))
            .map(|page| page.state)
    }

    /// So that a refusal in the tests of nodes is the lie's doing, not a mistake of this harness.
    #[test]
    fn the_honest_log_is_believed_and_every_lie_is_refused_for_its_own_reason() {
        let mut honest = Author::new("http://127.0.0.1:1");
        honest.publish();
        honest.publish();
        let accepted = follow(&LogState::empty(honest.did(), 0), &honest.pages, &honest).unwrap();
        assert_eq!(accepted.size(), 4);
        for lie in Lie::ALL {
            let (code, words) = lie.refused_as();
            let error = follow(&accepted, &lie.told_by(&honest), &honest)
                .expect_err(&format!("{lie:?} is refused"));
            assert_eq!(error.code(), code, "{lie:?}: {error}");
            assert!(error.to_string().contains(words), "{lie:?}: {error}");
        }
        let mut grown = honest.clone();
        grown.publish();
        assert_eq!(follow(&accepted, &grown.pages, &honest).unwrap().size(), 6);
    }
}
