//! How often a peer's own word has it asked: at once while its news are true, at the interval alone once they are not.

use std::time::Duration;

use crate::time::Timestamp;

/// The shortest time between the beginnings of two pulls that a peer's word has begun: what it publishes meanwhile comes
/// with the next, within what a reader takes for at once.
pub const NEWS_GAP: Duration = Duration::from_millis(25);
/// Pulls that a peer's word may begin and that bring nothing. An honest peer's news cross a pull under way now and then.
pub const NEWS_CREDIT: u32 = 16;

/// What a peer's word is worth: one pull that brings nothing costs one, one pull at the interval gives one back, and
/// whatever is new gives all back.
#[derive(Debug)]
pub(super) struct News {
    credit: u32,
    /// A pull has been asked for, and none has begun since.
    pending: bool,
    /// There was news while a pull ran: what it had read before may be all it brings.
    again: bool,
    begun: Option<Timestamp>,
}

impl News {
    pub(super) const fn new() -> Self {
        Self {
            credit: NEWS_CREDIT,
            pending: false,
            again: false,
            begun: None,
        }
    }

    /// There is news. When a pull is to begin for it; `None`: one runs or waits, or the peer's word is worth nothing now.
    pub(super) fn arrived(&mut self, running: bool, now: Timestamp) -> Option<Timestamp> {
        if running {
            self.again = true;
            return None;
        }
        if self.pending || self.credit == 0 {
            return None;
        }
        self.credit -= 1;
        self.pending = true;
        let earliest = self.begun.map_or(now, |begun| begun.plus(NEWS_GAP));
        // A clock that was set back makes nobody wait.
        Some(if earliest.since(now) > NEWS_GAP {
            now
        } else {
            earliest.max(now)
        })
    }

    /// A pull begins.
    pub(super) fn begin(&mut self, now: Timestamp) {
        if !self.pending {
            self.credit = NEWS_CREDIT.min(self.credit + 1);
        }
        self.pending = false;
        self.begun = Some(now);
    }

    /// The pull under way brought something.
    pub(super) const fn came_true(&mut self) {
        self.credit = NEWS_CREDIT;
    }

    /// A pull ended. When the next is to begin, where there was news meanwhile.
    pub(super) fn ended(&mut self, now: Timestamp) -> Option<Timestamp> {
        if std::mem::take(&mut self.again) {
            self.arrived(false, now)
        } else {
            None
        }
    }
}
