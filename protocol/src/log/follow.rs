//! Judging pages of a log: pure, all or nothing.
//!
//! A page is one signed document a line. Each line is verified, tested for conflict with what is held, then
//! for order, chain and binding (rules L1–L8 of `spec/index@2.md`). A page with one bad line is refused
//! whole, so that what was accepted earlier never depends on it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{FRONTIER_TYPE, FrontierLine, History, LogState, PresenceMark, SliceMark, revoked};
use crate::did::Did;
use crate::digest::Digest;
use crate::document::{Presence, Revocation, Slice};
use crate::invariants;
use crate::sign::{Document, DocumentError, Signed, Unverified};
use crate::time::Timestamp;

/// Who answered: the publisher's own node must be current, a holder may lag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The node of the log's publisher.
    Publisher,
    /// Somebody else, who holds a copy.
    Holder,
}

/// What is known of a page beyond its lines.
#[derive(Debug, Clone, Copy)]
pub struct PageContext {
    /// The follower's time.
    pub now: Timestamp,
    /// Who answered.
    pub source: Source,
    /// Whether the page says that it reaches the head: it has no `rel="next"`.
    pub reaches_head: bool,
}

/// A verified line of a log.
#[derive(Debug, Clone)]
pub enum Line {
    /// A slice.
    Slice(Signed<Slice>),
    /// A presence.
    Presence(Signed<Presence>),
    /// What a pruned log opens with; believed with the slice behind it.
    Frontier(FrontierLine),
}

impl PartialEq for Line {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Line {}

impl Line {
    /// Verifies one line on its own. Errors: see [`DocumentError`]; a type that no log has is [`DocumentError::Type`].
    pub fn verify(bytes: Bytes) -> Result<Self, DocumentError> {
        let line = Unverified::parse(bytes.clone())?;
        if line.kind() == FRONTIER_TYPE {
            return FrontierLine::parse(bytes).map(Self::Frontier);
        }
        if line.kind() == Presence::TYPE {
            return line.verify().map(Self::Presence);
        }
        line.verify().map(Self::Slice)
    }

    /// The line's bytes, without a line end.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        match self {
            Self::Slice(slice) => slice.bytes(),
            Self::Presence(presence) => presence.bytes(),
            Self::Frontier(frontier) => frontier.bytes(),
        }
    }

    /// Of which of its publisher's logs it is.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        match self {
            Self::Slice(slice) => slice.epoch,
            Self::Presence(presence) => presence.epoch,
            Self::Frontier(frontier) => frontier.epoch,
        }
    }

    /// Whose log it is of.
    #[must_use]
    pub fn publisher(&self) -> Did {
        match self {
            Self::Slice(slice) => slice.publisher,
            Self::Presence(presence) => presence.did,
            Self::Frontier(frontier) => frontier.publisher,
        }
    }
}

/// Which document that is held a shown one contradicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldDocument {
    /// The slice that begins there.
    Slice {
        /// Its first seq.
        cursor: u64,
    },
    /// The presence of that digest.
    Presence(Digest),
}

/// Why a page is refused. Nothing of it is accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// A line is not a document that we believe.
    #[error("line {line}: {error}")]
    Document {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        error: DocumentError,
    },
    /// A document of another publisher.
    #[error("a document is signed by {got}, not by the publisher {expected}")]
    Publisher {
        /// Whose it is.
        got: Did,
        /// Whose was asked for.
        expected: Did,
    },
    /// A signed document contradicts one that is held: the publisher signed two logs. Both are evidence.
    #[error("the publisher signed two logs: a document shown contradicts one that is held")]
    Fork {
        /// What was shown.
        shown: Box<Line>,
        /// What it contradicts.
        held: HeldDocument,
    },
    /// The publisher has begun another log: it is followed from its beginning, this one is history.
    #[error("the publisher has begun epoch {0}")]
    NewEpoch(u64),
    /// Who answers has pruned entries that are missing here: another holder may have them.
    #[error("the log begins at {size} there, and only {held} entries are held here")]
    Pruned {
        /// How much is pruned there.
        size: u64,
        /// How much is held here.
        held: u64,
    },
    /// A frontier that stands elsewhere than at the beginning of a page, or does not fold to its slice's `log_root`.
    #[error("the frontier is not the log's: {0}")]
    Frontier(&'static str),
    /// A document of an earlier epoch than the one followed.
    #[error("the epoch is {got}, not {expected}")]
    Epoch {
        /// The document's.
        got: u64,
        /// Ours.
        expected: u64,
    },
    /// A slice that differs from another of its page at the same place.
    #[error("the slice at {cursor} is not the one shown before it")]
    Conflict {
        /// Where.
        cursor: u64,
    },
    /// Two presences of one sequence on a page, or a root that contradicts the page's slices.
    #[error("the presence contradicts what stands before it: {0}")]
    PresenceConflict(&'static str),
    /// Seqs are skipped.
    #[error("the slice begins at {got} where {expected} was due")]
    Gap {
        /// The slice's cursor.
        got: u64,
        /// The size of the log so far.
        expected: u64,
    },
    /// `prev` is not the digest of the slice before.
    #[error("prev of the slice at {cursor} does not chain to the slice before")]
    Chain {
        /// Where.
        cursor: u64,
    },
    /// The frontier and the slice's leaves do not fold to `log_root`.
    #[error("log_root of the slice at {cursor} does not follow from the log and its entries")]
    LogRoot {
        /// Where.
        cursor: u64,
    },
    /// A slice names a presence that was not shown, or that cannot have been the last before it.
    #[error("the slice at {cursor} does not name the last presence before it: {why}")]
    Binding {
        /// Where.
        cursor: u64,
        /// In which way.
        why: &'static str,
    },
    /// A presence that binds a size at which no slice ends, or beyond the slices shown.
    #[error("the presence binds size {size}, where the log has no boundary")]
    Boundary {
        /// The size.
        size: u64,
    },
    /// A lower sequence, or a smaller log, than was accepted from the publisher before.
    #[error("rollback: {0}")]
    Rollback(String),
    /// A time or sequence of more than five minutes ahead of ours.
    #[error("the document lies more than 5 minutes ahead of our clock")]
    Ahead,
    /// The publisher's own node shows a presence that has expired.
    #[error("the publisher's presence expired at {0}")]
    Expired(Timestamp),
    /// A page that reaches the head ends with the current presence; this one does not.
    #[error("the page reaches the head but does not end with the current presence")]
    NoPresence,
    /// The publisher's revocation is held, and the page brings something that is not.
    #[error("{0} is revoked: nothing more by it is believed")]
    Revoked(Did),
}

impl PageError {
    /// A stable code for logs and peer states.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Document { error, .. } => error.code(),
            Self::Publisher { .. } => "wrong_publisher",
            Self::Fork { .. } => "fork",
            Self::NewEpoch(_) => "new_epoch",
            Self::Pruned { .. } => "pruned",
            Self::Frontier(_) => "wrong_frontier",
            Self::Epoch { .. } => "wrong_epoch",
            Self::Conflict { .. } => "conflicting_slice",
            Self::PresenceConflict(_) => "conflicting_presence",
            Self::Gap { .. } => "gap",
            Self::Chain { .. } => "broken_chain",
            Self::LogRoot { .. } => "wrong_log_root",
            Self::Binding { .. } => "unbound_slice",
            Self::Boundary { .. } => "unbound_presence",
            Self::Rollback(_) => "rollback",
            Self::Ahead => "ahead_of_clock",
            Self::Expired(_) => "expired_presence",
            Self::NoPresence => "no_current_presence",
            Self::Revoked(_) => "revoked",
        }
    }
}

/// What a page adds: to be made durable in this order, then believed.
#[derive(Debug)]
pub struct VerifiedPage {
    /// The new lines, in page order.
    pub lines: Vec<Line>,
    /// The log after them.
    pub state: LogState,
    /// Whether the answerer knows of more than the page brought.
    pub behind: bool,
    /// The publisher's last word, with which the page ends: to be kept once the lines are.
    pub revocation: Option<Signed<Revocation>>,
}

impl VerifiedPage {
    /// How many slices are new.
    #[must_use]
    pub fn slices(&self) -> usize {
        self.lines
            .iter()
            .filter(|line| matches!(line, Line::Slice(_)))
            .count()
    }
}

impl LogState {
    /// Judges one page. `lines` are the page's lines without line ends. Errors: the first rule that is broken.
    pub fn follow(
        &self,
        lines: &[Bytes],
        context: PageContext,
        history: &dyn History,
    ) -> Result<VerifiedPage, PageError> {
        let mut page = Judge::new(self, context, history);
        let last = lines.len();
        let mut broken = None;
        for (number, bytes) in lines.iter().enumerate() {
            let unbelieved = |error| PageError::Document {
                line: number + 1,
                error,
            };
            if number + 1 == last && revoked::is_revocation(bytes) {
                let word = Signed::verify(bytes.clone()).map_err(unbelieved)?;
                page.revoke(word)?;
                continue;
            }
            let line = Line::verify(bytes.clone()).map_err(unbelieved)?;
            page.of_this_log(&line)?;
            if let Some(held) = page.forks(&line) {
                let shown = Box::new(line);
                return Err(PageError::Fork { shown, held });
            }
            if broken.is_some() {
                continue;
            }
            // A fork further down says more than what is out of order here.
            let judged = match line {
                Line::Slice(slice) => page.slice(slice),
                Line::Presence(presence) => page.presence(presence, number + 1 == last),
                Line::Frontier(frontier) if number == 0 => page.frontier(frontier),
                Line::Frontier(_) => Err(PageError::Frontier("it does not open the page")),
            };
            broken = judged.err();
        }
        match broken {
            Some(error) => Err(error),
            None => page.finish(),
        }
    }
}

/// Rebuilds a log's state from lines that we stored ourselves, in order; the same rules, without a clock.
/// Errors: as [`LogState::follow`]; the state is then what the lines before the bad one make it.
pub fn replay(state: &mut LogState, line: &Line, history: &dyn History) -> Result<(), PageError> {
    let begins = match line {
        Line::Presence(presence) => presence.log_size == 0,
        Line::Frontier(_) => true,
        Line::Slice(_) => false,
    };
    if begins && line.publisher() == state.publisher && line.epoch() > state.epoch {
        *state = state.next_epoch(line.epoch());
    }
    // Presences may be older than the newest known and may have expired: they are history.
    let context = PageContext {
        now: Timestamp(u64::MAX),
        source: Source::Holder,
        reaches_head: false,
    };
    let mut judge = Judge::new(state, context, history);
    judge.of_this_log(line)?;
    if let Some(held) = judge.forks(line) {
        let shown = Box::new(line.clone());
        return Err(PageError::Fork { shown, held });
    }
    match line {
        Line::Slice(slice) => judge.slice(slice.clone())?,
        Line::Frontier(frontier) => judge.frontier(frontier.clone())?,
        Line::Presence(presence) => {
            judge.admit(presence)?;
            judge.state.presence = newer(judge.state.presence, PresenceMark::from(presence));
        }
    }
    *state = judge.state;
    Ok(())
}

fn newer(held: Option<PresenceMark>, seen: PresenceMark) -> Option<PresenceMark> {
    held.filter(|held| held.sequence >= seen.sequence)
        .or(Some(seen))
}

/// The state of judging one page.
struct Judge<'a> {
    before: &'a LogState,
    state: LogState,
    context: PageContext,
    history: &'a dyn History,
    lines: Vec<Line>,
    /// Presences seen on this page, by digest.
    seen: BTreeMap<Digest, PresenceMark>,
    /// Roots at the slice ends of this page.
    boundaries: BTreeMap<u64, Digest>,
    /// The last line, when it is a presence: judged after the page's slices.
    current: Option<Signed<Presence>>,
    /// The last line, when it is the publisher's revocation: what stands before it is history.
    revocation: Option<Signed<Revocation>>,
}

impl<'a> Judge<'a> {
    fn new(before: &'a LogState, context: PageContext, history: &'a dyn History) -> Self {
        Self {
            before,
            state: before.clone(),
            context,
            history,
            lines: Vec::new(),
            seen: BTreeMap::new(),
            boundaries: BTreeMap::from([(before.size(), before.root())]),
            current: None,
            revocation: None,
        }
    }

    /// V3: it ends the page, and is the publisher's own.
    fn revoke(&mut self, word: Signed<Revocation>) -> Result<(), PageError> {
        let (got, expected) = (word.did, self.state.publisher);
        if got != expected {
            return Err(PageError::Publisher { got, expected });
        }
        self.revocation = Some(word);
        Ok(())
    }

    fn of_this_log(&self, line: &Line) -> Result<(), PageError> {
        let (got, expected) = (line.publisher(), self.state.publisher);
        if got != expected {
            return Err(PageError::Publisher { got, expected });
        }
        let (got, expected) = (line.epoch(), self.state.epoch);
        if got < expected {
            return Err(PageError::Epoch { got, expected });
        }
        if got > expected {
            return Err(self.later_epoch(line));
        }
        Ok(())
    }

    /// What a line of a later epoch means: every page shows a presence first, and its sequence must be news.
    fn later_epoch(&self, line: &Line) -> PageError {
        let Line::Presence(presence) = line else {
            let (got, expected) = (line.epoch(), self.state.epoch);
            return PageError::Epoch { got, expected };
        };
        if Timestamp(presence.sequence).is_ahead_of(self.context.now) {
            return PageError::Ahead;
        }
        let last = self.before.presence.map_or(0, |held| held.sequence);
        let last = last.max(self.before.floor);
        if presence.sequence <= last {
            let got = presence.sequence;
            return PageError::Rollback(format!(
                "the sequence {got} of a later epoch is not above {last}"
            ));
        }
        PageError::NewEpoch(presence.epoch)
    }

    /// K1–K3: the document held before this page that `line` contradicts, so that both prove a fork.
    fn forks(&self, line: &Line) -> Option<HeldDocument> {
        let size = self.before.size();
        match line {
            Line::Slice(slice) => {
                let first = Some(slice.cursor).filter(|seq| *seq < size);
                let last = slice.next_cursor.min(size).checked_sub(1);
                let last = last.filter(|seq| *seq >= slice.cursor);
                // Where the first seq is pruned here, the last that both have may still be held.
                let held = [first, last].into_iter().flatten();
                let held = held
                    .filter_map(|seq| self.history.slice_holding(seq))
                    .next()?;
                let cursor = held.cursor;
                (held.digest != slice.digest()).then_some(HeldDocument::Slice { cursor })
            }
            Line::Presence(presence) => {
                let known = [self.before.presence, self.before.named];
                let known = known.into_iter().flatten();
                let same = known
                    .filter(|mark| mark.sequence == presence.sequence)
                    .map(|mark| mark.digest)
                    .next()
                    .or_else(|| self.history.presence_with(presence.sequence));
                if let Some(digest) = same.filter(|digest| *digest != presence.digest()) {
                    return Some(HeldDocument::Presence(digest));
                }
                let last = presence.log_size.checked_sub(1).filter(|seq| *seq < size)?;
                let SliceMark {
                    cursor,
                    next_cursor,
                    log_root,
                    ..
                } = self.history.slice_holding(last)?;
                let contradicts =
                    next_cursor == presence.log_size && log_root != presence.merkle_root;
                contradicts.then_some(HeldDocument::Slice { cursor })
            }
            Line::Frontier(_) => None,
        }
    }

    /// A pruned log opens with what was pruned; who holds that much already has no need of it.
    fn frontier(&mut self, line: FrontierLine) -> Result<(), PageError> {
        let (size, held) = (line.frontier.size(), self.before.size());
        if held >= size {
            return Ok(());
        }
        if held > 0 || self.before.head.is_some() {
            return Err(PageError::Pruned { size, held });
        }
        self.state.frontier = line.frontier.clone();
        self.state.base = size;
        self.boundaries.insert(size, self.state.root());
        self.lines.push(Line::Frontier(line));
        Ok(())
    }

    fn root_at(&self, size: u64) -> Option<Digest> {
        self.boundaries
            .get(&size)
            .copied()
            .or_else(|| self.history.root_at(size))
    }

    fn known(&self, digest: &Digest) -> Option<PresenceMark> {
        let held = [self.before.presence, self.before.named]
            .into_iter()
            .flatten();
        let held = held
            .chain(self.seen.get(digest).copied())
            .find(|mark| mark.digest == *digest);
        held.or_else(|| self.history.presence(digest))
    }

    fn slice(&mut self, slice: Signed<Slice>) -> Result<(), PageError> {
        let (cursor, size) = (slice.cursor, self.state.size());
        if self.state.awaits_anchor() {
            return self.anchor(slice);
        }
        if cursor < size {
            // Held before this page, which is no conflict, or pruned here; on this page only the very same may stand twice.
            let shown =
                |line: &Line| matches!(line, Line::Slice(s) if s.digest() == slice.digest());
            let same = cursor < self.before.size() || self.lines.iter().any(shown);
            return if same {
                Ok(())
            } else {
                Err(PageError::Conflict { cursor })
            };
        }
        if cursor > size {
            return Err(PageError::Gap {
                got: cursor,
                expected: size,
            });
        }
        if slice.prev != self.state.head {
            return Err(PageError::Chain { cursor });
        }
        if slice.generated_at.is_ahead_of(self.context.now) {
            return Err(PageError::Ahead);
        }
        let named = self.binding(&slice)?;
        let before = self.state.clone();
        self.state.advance(&slice, named);
        if self.state.root() != slice.log_root {
            return Err(PageError::LogRoot { cursor });
        }
        debug_assert!(invariants::slice_extends_log(&before, &slice, &self.state));
        self.boundaries.insert(self.state.size(), slice.log_root);
        self.lines.push(Line::Slice(slice));
        Ok(())
    }

    /// The last pruned slice: its publisher signed what the frontier folds to.
    fn anchor(&mut self, slice: Signed<Slice>) -> Result<(), PageError> {
        if slice.log_size != self.state.size() || slice.log_root != self.state.root() {
            return Err(PageError::Frontier(
                "it does not fold to the log_root of the slice behind it",
            ));
        }
        if slice.generated_at.is_ahead_of(self.context.now) {
            return Err(PageError::Ahead);
        }
        let named = self.binding(&slice)?;
        self.state.advance(&slice, named);
        self.lines.push(Line::Slice(slice));
        Ok(())
    }

    /// Whether the roots at `size` were pruned, so that nothing can be said of them.
    const fn is_pruned(&self, size: u64) -> bool {
        size > 0 && size < self.state.base
    }

    /// The presence that `slice` names, which must have been the last before it.
    fn binding(&self, slice: &Slice) -> Result<PresenceMark, PageError> {
        let unbound = |why| PageError::Binding {
            cursor: slice.cursor,
            why,
        };
        let named = self
            .known(&slice.presence_digest)
            .ok_or_else(|| unbound("that presence was not shown"))?;
        if named.log_size > slice.cursor {
            return Err(unbound("that presence binds a larger log"));
        }
        if self
            .state
            .named
            .is_some_and(|earlier| named.sequence < earlier.sequence)
        {
            return Err(unbound("the slice before names a later one"));
        }
        if !self.is_pruned(named.log_size)
            && self.root_at(named.log_size) != Some(named.merkle_root)
        {
            return Err(unbound("that presence has another root at its size"));
        }
        Ok(named)
    }

    fn presence(&mut self, presence: Signed<Presence>, last: bool) -> Result<(), PageError> {
        let sequence = Timestamp(presence.sequence);
        if sequence.is_ahead_of(self.context.now)
            || presence.issued_at.is_ahead_of(self.context.now)
        {
            return Err(PageError::Ahead);
        }
        if presence.sequence <= self.state.floor {
            let (got, floor) = (presence.sequence, self.state.floor);
            return Err(PageError::Rollback(format!(
                "the presence's sequence {got} is not above {floor} of the epoch before"
            )));
        }
        if last {
            self.current = Some(presence);
            return Ok(());
        }
        // A presence on the way is history: it stands before the first slice that names it.
        if presence.log_size > self.state.size() {
            return Err(PageError::Boundary {
                size: presence.log_size,
            });
        }
        self.admit(&presence)
    }

    /// Tests a verified presence for conflict with the page: before order, binding and rollback are looked at.
    fn contradicts(&self, presence: &Signed<Presence>) -> Result<(), PageError> {
        let mark = PresenceMark::from(presence);
        let mut held = [self.state.presence, self.state.named]
            .into_iter()
            .flatten()
            .chain(self.seen.values().copied());
        if held.any(|other| other.sequence == mark.sequence && other.digest != mark.digest) {
            return Err(PageError::PresenceConflict(
                "another presence has the same sequence",
            ));
        }
        match self.root_at(mark.log_size) {
            Some(root) if root != mark.merkle_root => Err(PageError::PresenceConflict(
                "its merkle_root is not the log's at its size",
            )),
            _ => Ok(()),
        }
    }

    /// Takes in a presence whose size is within the log, checking what it binds.
    fn admit(&mut self, presence: &Signed<Presence>) -> Result<(), PageError> {
        self.contradicts(presence)?;
        let mark = PresenceMark::from(presence);
        if !self.is_pruned(mark.log_size) && self.root_at(mark.log_size).is_none() {
            return Err(PageError::Boundary {
                size: mark.log_size,
            });
        }
        if self.known(&mark.digest).is_none() {
            self.lines.push(Line::Presence(presence.clone()));
        }
        self.seen.insert(mark.digest, mark);
        Ok(())
    }

    fn finish(mut self) -> Result<VerifiedPage, PageError> {
        if self.state.awaits_anchor() {
            return Err(PageError::Frontier("no slice stands behind it"));
        }
        if let Some(word) = self.revocation.take() {
            // There is no current presence any more, nor anything behind this page.
            return Ok(VerifiedPage {
                revocation: Some(word),
                ..self.page(false)
            });
        }
        let Some(current) = self.current.take() else {
            return if self.context.reaches_head {
                Err(PageError::NoPresence)
            } else {
                Ok(self.page(true))
            };
        };
        self.contradicts(&current)?;
        let size = self.state.size();
        if current.log_size > size {
            return if self.context.reaches_head {
                Err(PageError::Boundary {
                    size: current.log_size,
                })
            } else {
                Ok(self.page(true))
            };
        }
        // A log never shrinks: who signs that it did runs from an old copy, whoever shows it to us.
        let shrank = |held: &PresenceMark| {
            current.sequence > held.sequence && current.log_size < held.log_size
        };
        if let Some(held) = self.before.presence.filter(shrank) {
            let (got, held) = (current.log_size, held.log_size);
            return Err(PageError::Rollback(format!(
                "the log of {held} entries is said to have {got}"
            )));
        }
        if self.context.source == Source::Publisher && self.context.reaches_head {
            if current.is_expired(self.context.now) {
                return Err(PageError::Expired(current.expires_at));
            }
            if let Some(held) = self
                .before
                .presence
                .filter(|held| current.sequence < held.sequence)
            {
                let (got, held) = (current.sequence, held.sequence);
                return Err(PageError::Rollback(format!(
                    "the presence's sequence {got} is below {held}"
                )));
            }
            if current.log_size < size {
                self.admit(&current)?;
                let got = current.log_size;
                return Err(PageError::Rollback(format!(
                    "the log of {size} entries is said to have {got}"
                )));
            }
        }
        let stale = self
            .state
            .presence
            .is_some_and(|held| current.sequence < held.sequence);
        self.admit(&current)?;
        if stale {
            // A holder that lags: its older presence is neither news nor a lie.
            self.lines
                .pop_if(|line| matches!(line, Line::Presence(p) if p.digest() == current.digest()));
        }
        self.state.presence = newer(self.state.presence, PresenceMark::from(&current));
        let behind = !self.context.reaches_head;
        Ok(self.page(behind))
    }

    fn page(mut self, behind: bool) -> VerifiedPage {
        // A presence that a slice names counts as accepted as well.
        for mark in self.seen.values() {
            self.state.presence = newer(self.state.presence, *mark);
        }
        VerifiedPage {
            lines: self.lines,
            state: self.state,
            behind,
            revocation: None,
        }
    }
}
