//! What gates look at. Each fact may be missing; a condition that needs a missing one denies.

use cel::Value;
use cel::objects::Key;
use chrono::DateTime;
use serde::{Deserialize, Serialize};

use crate::did::Did;
use crate::time::Timestamp;

/// The facts of one decision (design 7).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Who asks; nobody in particular without a signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<CallerFacts>,
    /// Whom or what it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What this vault thinks of the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reputation: Option<ReputationFacts>,
    /// This vault's own link to the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_link: Option<TrustLinkFacts>,
    /// What the caller has here already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerFacts>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<Timestamp>,
}

/// `caller.…`: by a verified signature, and what the roster says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallerFacts {
    /// Whose key signed.
    pub did: Did,
    /// Whether the roster names it, as peer or friend.
    pub known: bool,
    /// Whether the operator called it a friend.
    pub friend: bool,
    /// What the operator allowed it.
    pub rights: Vec<String>,
}

/// `reputation.…`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReputationFacts {
    /// From 0 to 1.
    pub avg_confidence: f64,
    /// First hops.
    pub count: u64,
}

/// `trust_link.…`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustLinkFacts {
    /// From 0 to 1.
    pub confidence: f64,
}

/// `owner.…`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnerFacts {
    /// Bytes of the caller's that are kept here.
    pub bytes: u64,
}

/// Of what kind a fact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Text,
    Number,
    Time,
    Texts,
}

/// Every fact by name, so that a condition cannot ask for another.
pub(super) const NAMES: [(&str, Option<&str>, Kind); 10] = [
    ("caller", Some("did"), Kind::Text),
    ("caller", Some("known"), Kind::Bool),
    ("caller", Some("friend"), Kind::Bool),
    ("caller", Some("rights"), Kind::Texts),
    ("target", None, Kind::Text),
    ("reputation", Some("avg_confidence"), Kind::Number),
    ("reputation", Some("count"), Kind::Number),
    ("trust_link", Some("confidence"), Kind::Number),
    ("owner", Some("bytes"), Kind::Number),
    ("now", None, Kind::Time),
];

impl Facts {
    /// The facts that are there, as CEL knows them: by first name.
    pub(super) fn values(&self) -> Vec<(&'static str, Value)> {
        let mut values = Vec::with_capacity(6);
        if let Some(caller) = &self.caller {
            let members = vec![
                ("did", Value::from(caller.did.to_string())),
                ("known", caller.known.into()),
                ("friend", caller.friend.into()),
                ("rights", caller.rights.clone().into()),
            ];
            values.push(("caller", map(members)));
        }
        if let Some(target) = &self.target {
            values.push(("target", target.as_str().into()));
        }
        if let Some(reputation) = &self.reputation {
            let count = i64::try_from(reputation.count).unwrap_or(i64::MAX);
            let confidence = Value::from(reputation.avg_confidence);
            let members = vec![("avg_confidence", confidence), ("count", count.into())];
            values.push(("reputation", map(members)));
        }
        if let Some(link) = &self.trust_link {
            values.push((
                "trust_link",
                map(vec![("confidence", link.confidence.into())]),
            ));
        }
        if let Some(owner) = &self.owner {
            let bytes = i64::try_from(owner.bytes).unwrap_or(i64::MAX);
            values.push(("owner", map(vec![("bytes", bytes.into())])));
        }
        let now = self.now.and_then(|now| i64::try_from(now.0).ok());
        if let Some(now) = now.and_then(DateTime::from_timestamp_millis) {
            values.push(("now", Value::Timestamp(now.fixed_offset())));
        }
        values
    }

    /// The facts that are not there, by first name.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        [
            ("caller", self.caller.is_none()),
            ("target", self.target.is_none()),
            ("reputation", self.reputation.is_none()),
            ("trust_link", self.trust_link.is_none()),
            ("owner", self.owner.is_none()),
            ("now", self.now.is_none()),
        ]
        .into_iter()
        .filter_map(|(name, missing)| missing.then_some(name))
        .collect()
    }
}

fn map(members: Vec<(&'static str, Value)>) -> Value {
    let members = members
        .into_iter()
        .map(|(name, value)| (Key::from(name), value));
    Value::from(members.collect::<std::collections::HashMap<Key, Value>>())
}
