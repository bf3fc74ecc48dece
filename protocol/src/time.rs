//! Time as a value: Unix milliseconds, in text RFC 3339 UTC with `Z` and milliseconds (design 15).
//!
//! This crate never asks what time it is; every `now` is an argument.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// How far ahead of our clock a document's time or sequence may lie (design 3).
pub const MAX_AHEAD: Duration = Duration::from_secs(5 * 60);

/// A moment in Unix milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

/// The text is not of the one form that documents use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a time is RFC 3339 in UTC with milliseconds, such as 2026-01-01T00:00:00.000Z")]
pub struct TimestampError;

impl Timestamp {
    /// This moment and `duration` later; saturates.
    #[must_use]
    pub const fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }

    /// How long after `earlier` this is; zero when it is not.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Whether this lies more than [`MAX_AHEAD`] after `now`.
    #[must_use]
    pub const fn is_ahead_of(self, now: Self) -> bool {
        self.0 > now.plus(MAX_AHEAD).0
    }
}

const fn millis(duration: Duration) -> u64 {
    let ms = duration.as_millis();
    if ms > u64::MAX as u128 {
        u64::MAX
    } else {
        ms as u64
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = i64::try_from(self.0)
            .ok()
            .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
            .unwrap_or(jiff::Timestamp::MAX);
        write!(f, "{moment:.3}")
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        let moment: jiff::Timestamp = text.parse().map_err(|_| TimestampError)?;
        let parsed = Self(u64::try_from(moment.as_millisecond()).map_err(|_| TimestampError)?);
        // One moment, one spelling: signed bytes must not depend on the writer's taste.
        if parsed.to_string() == text {
            Ok(parsed)
        } else {
            Err(TimestampError)
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
            text.parse().map_err(de::Error::custom)
        } else {
            u64::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_and_writes_one_form() {
        let text = "2026-01-01T00:00:01.000Z";
        let moment: Timestamp = text.parse().unwrap();
        assert_eq!(moment.0, 1_767_225_601_000);
        assert_eq!(moment.to_string(), text);
    }

    #[test]
    fn refuses_every_other_form() {
        for text in [
            "2026-01-01T00:00:01Z",
            "2026-01-01T00:00:01.0000Z",
            "2026-01-01 00:00:01.000Z",
            "2026-01-01T01:00:01.000+01:00",
            "1969-12-31T23:59:59.000Z",
            "",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }

    #[test]
    fn knows_what_lies_too_far_ahead() {
        let now = Timestamp(1_000_000);
        assert!(!Timestamp(1_300_000).is_ahead_of(now));
        assert!(Timestamp(1_300_001).is_ahead_of(now));
    }
}
