//! The end of a log: its publisher's revocation, and what a page is worth once it is held (`spec/revocation@1.md`).

use bytes::Bytes;

use super::{PageError, VerifiedPage};
use crate::did::Did;
use crate::document::Revocation;
use crate::sign::{Document, Signed, Unverified};

/// Whether a line says that it is a revocation. What is longer than one is not even parsed.
pub(super) fn is_revocation(line: &Bytes) -> bool {
    line.len() <= Revocation::MAX_BYTES
        && Unverified::parse(line.clone()).is_ok_and(|line| line.kind() == Revocation::TYPE)
}

/// V4: the revocation of `publisher` with which a page ends. It proves itself, so that it counts whatever the lines before
/// it are worth; `None` where the page ends otherwise, or in one that does not verify or is somebody else's.
#[must_use]
pub fn last_word(lines: &[Bytes], publisher: &Did) -> Option<Signed<Revocation>> {
    let last = lines.last().filter(|line| is_revocation(line))?;
    let word = Signed::<Revocation>::verify(last.clone()).ok()?;
    (word.did == *publisher).then_some(word)
}

impl VerifiedPage {
    /// V5: what is left of the page for who holds its publisher's revocation: nothing that is not held already. Errors:
    /// [`PageError::Revoked`] when it brings any line.
    pub fn after_revocation(self) -> Result<Self, PageError> {
        if self.lines.is_empty() {
            Ok(self)
        } else {
            Err(PageError::Revoked(self.state.publisher))
        }
    }
}
