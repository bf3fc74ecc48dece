//! What time it is, asked in one place, so that a test can move a node's clock (design 11).
//!
//! `protocol/` takes every `now` as an argument; the shells get theirs from here.

use std::time::{SystemTime, UNIX_EPOCH};

use hn_protocol::time::Timestamp;

/// The environment variable that moves this node's clock: for tests, refused by the federation profile.
pub const OFFSET_VARIABLE: &str = "HN_CLOCK_OFFSET";

/// The system's clock, moved by a fixed offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Clock {
    offset_ms: i64,
}

/// `HN_CLOCK_OFFSET` holds something else than an offset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{OFFSET_VARIABLE} is {text:?}; it takes signed seconds, or a number with ms, s, m, h or d, such as -90 or +6m"
)]
pub struct ClockError {
    text: String,
}

impl Clock {
    /// The system's clock as it is.
    #[must_use]
    pub const fn system() -> Self {
        Self { offset_ms: 0 }
    }

    /// The system's clock, moved by `offset_ms` milliseconds.
    #[must_use]
    pub const fn shifted(offset_ms: i64) -> Self {
        Self { offset_ms }
    }

    /// The clock that the environment asks for; the system's where `HN_CLOCK_OFFSET` is not set or empty.
    pub fn from_env() -> Result<Self, ClockError> {
        match std::env::var(OFFSET_VARIABLE) {
            Ok(text) if !text.trim().is_empty() => parse_offset(&text).map(Self::shifted),
            Ok(_) | Err(std::env::VarError::NotPresent) => Ok(Self::system()),
            Err(std::env::VarError::NotUnicode(text)) => Err(ClockError {
                text: text.to_string_lossy().into_owned(),
            }),
        }
    }

    /// Whether this clock is not the system's.
    #[must_use]
    pub const fn is_shifted(self) -> bool {
        self.offset_ms != 0
    }

    /// The current time. A system clock before 1970 reads as 1970.
    #[must_use]
    pub fn now(self) -> Timestamp {
        let system = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        let system = u64::try_from(system).unwrap_or(u64::MAX);
        Timestamp(system.saturating_add_signed(self.offset_ms))
    }
}

/// Reads `-90`, `+6m` or `1500ms` as milliseconds.
fn parse_offset(text: &str) -> Result<i64, ClockError> {
    let refuse = || ClockError {
        text: text.to_owned(),
    };
    let trimmed = text.trim();
    let digits_end = trimmed
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits_end);
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(refuse()),
    };
    number
        .parse::<i64>()
        .ok()
        .and_then(|n| n.checked_mul(unit_ms))
        .ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_offsets_in_every_unit() {
        for (text, ms) in [
            ("-90", -90_000),
            ("+6m", 360_000),
            ("1500ms", 1_500),
            (" 2h ", 7_200_000),
            ("-1d", -86_400_000),
            ("0", 0),
        ] {
            assert_eq!(parse_offset(text).unwrap(), ms, "{text}");
        }
    }

    #[test]
    fn refuses_garbage_and_overflow() {
        for text in ["soon", "5w", "1.5h", "m", "9223372036854775807d", "+-3"] {
            assert!(parse_offset(text).is_err(), "{text}");
        }
    }

    #[test]
    fn is_moved_by_its_offset() {
        let system = Clock::system().now();
        assert!(!Clock::system().is_shifted());
        let ahead = Clock::shifted(3_600_000).now();
        assert!(ahead.since(system).as_secs() >= 3_599);
        assert_eq!(Clock::shifted(i64::MIN).now(), Timestamp(0));
    }
}
