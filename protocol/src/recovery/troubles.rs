//! Why nothing may be signed, and how far a log must reach.

use serde::{Deserialize, Serialize};

use crate::did::Did;
use crate::log::LogState;

/// How far a log reaches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Its epoch.
    pub epoch: u64,
    /// Its entries.
    pub size: u64,
    /// The sequence of its newest presence; 0 without one.
    pub sequence: u64,
}

impl Extent {
    /// Whether nothing of `other` is missing.
    #[must_use]
    pub fn reaches(&self, other: &Self) -> bool {
        (self.epoch, self.size) >= (other.epoch, other.size) && self.sequence >= other.sequence
    }

    /// Reaches as far as `other` as well, from now on.
    pub fn raise(&mut self, other: Self) {
        (self.epoch, self.size) = (self.epoch, self.size).max((other.epoch, other.size));
        self.sequence = self.sequence.max(other.sequence);
    }
}

impl From<&LogState> for Extent {
    fn from(state: &LogState) -> Self {
        Self {
            epoch: state.epoch,
            size: state.size(),
            sequence: state.presence.map_or(0, |presence| presence.sequence),
        }
    }
}

/// Our key signed two histories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnFork {
    /// In which epoch.
    pub epoch: u64,
    /// What shows it.
    pub why: String,
}

/// Why nothing may be signed. Kept durably while it stands, so that no restart forgets it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Troubles {
    /// The home is not the one that the log was written in: it was copied, or restored.
    #[serde(default)]
    pub restored: bool,
    /// This holder showed something of ours, signed, that was not here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<Did>,
    /// The own journal does not verify, or is shorter than it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
    /// Two histories exist: no answer can mend that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forked: Option<OwnFork>,
    /// What the log must reach, by what was signed once.
    #[serde(default)]
    pub reach: Extent,
}

impl Troubles {
    /// Whether there is any.
    #[must_use]
    pub const fn any(&self) -> bool {
        self.restored || self.ahead.is_some() || self.damaged.is_some() || self.forked.is_some()
    }

    /// Each as a stable code and a sentence, the gravest first.
    #[must_use]
    pub fn reasons(&self) -> Vec<(&'static str, String)> {
        let forked = self.forked.as_ref().map(|fork| {
            let text = format!(
                "this key signed two histories in epoch {}: {}",
                fork.epoch, fork.why
            );
            ("own_fork", text)
        });
        let damaged = self.damaged.as_ref();
        let damaged =
            damaged.map(|why| ("log_damaged", format!("the own journal is damaged: {why}")));
        let ahead = self.ahead.as_ref().map(|holder| {
            let text =
                format!("{holder} held newer parts of this log, which this key signed elsewhere");
            ("seen_ahead", text)
        });
        let restored = self.restored.then(|| {
            let text =
                "this home was copied or restored: newer parts of its log may be with others";
            ("restored", text.to_owned())
        });
        [forked, damaged, ahead, restored]
            .into_iter()
            .flatten()
            .collect()
    }
}
