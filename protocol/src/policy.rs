//! Who may do what here: gates, the facts they look at, and why they decide as they do (design 7, `spec/policy@1.md`).
//!
//! A [`Policy`] is compiled once from its signed document; [`Policy::decide`] is a pure function of gate and [`Facts`], so
//! that every decision can be explained and decided again elsewhere ([`Explanation`]). What a policy does not say, it
//! denies; so does a condition that is false, that lacks a fact, or that fails.

mod condition;
mod explanation;
mod facts;

pub use condition::{Condition, ConditionError, MAX_CONDITION, MAX_DEPTH};
pub use explanation::{Explanation, ReplayError, Replayed};
pub use facts::{CallerFacts, Facts, OwnerFacts, ReputationFacts, TrustLinkFacts};

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::document::{PolicyDocument, PolicyGate};
use crate::sign::Signed;

/// What is asked before something is done for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Gate {
    /// Reading what is published and held: logs, presences, artifacts.
    FederateRead,
    /// Handing one's own log over, to be served from here.
    PublishHosted,
    /// Being relayed for.
    RelayRegister,
    /// Keeping a backup here.
    BackupStore,
    /// Leaving an envelope here.
    InboxAccept,
    /// Reading what this node thinks of others.
    TrustExposure,
    /// Handing over trust links.
    TrustLinks,
    /// Making an offer.
    OfferInbound,
    /// Announcing a payment.
    PaymentInbound,
}

impl Gate {
    /// Every gate, in the order of the pages.
    pub const ALL: [Self; 9] = [
        Self::FederateRead,
        Self::PublishHosted,
        Self::RelayRegister,
        Self::BackupStore,
        Self::InboxAccept,
        Self::TrustExposure,
        Self::TrustLinks,
        Self::OfferInbound,
        Self::PaymentInbound,
    ];

    /// As documents write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FederateRead => "federate.read",
            Self::PublishHosted => "publish.hosted",
            Self::RelayRegister => "relay.register",
            Self::BackupStore => "backup.store",
            Self::InboxAccept => "inbox.accept",
            Self::TrustExposure => "trust.exposure",
            Self::TrustLinks => "trust.links",
            Self::OfferInbound => "offer.inbound",
            Self::PaymentInbound => "payment.inbound",
        }
    }

    /// What holds where nobody has decided otherwise (design 7).
    #[must_use]
    pub fn default_rule(self) -> PolicyGate {
        let when = |mode, when: &str| PolicyGate {
            mode,
            when: Some(when.to_owned()),
        };
        let always = |mode| PolicyGate { mode, when: None };
        match self {
            Self::FederateRead => always(Mode::Allow),
            Self::PublishHosted => when(Mode::Allow, "caller.friend"),
            Self::RelayRegister => when(Mode::Allow, "\"relay\" in caller.rights"),
            Self::BackupStore => when(Mode::Allow, "\"backup\" in caller.rights"),
            Self::InboxAccept => when(Mode::Allow, "\"inbox\" in caller.rights"),
            Self::TrustExposure | Self::TrustLinks => always(Mode::Deny),
            Self::OfferInbound | Self::PaymentInbound => always(Mode::Prompt),
        }
    }

    /// What an operator who opens a gate that is closed by default most likely wants; a template, never in force by itself.
    #[must_use]
    pub fn template(self) -> PolicyGate {
        match self {
            Self::TrustExposure | Self::TrustLinks => PolicyGate {
                mode: Mode::Allow,
                when: Some("caller.friend".to_owned()),
            },
            _ => self.default_rule(),
        }
    }

    /// Every gate as it is by default.
    #[must_use]
    pub fn defaults() -> BTreeMap<String, PolicyGate> {
        Self::ALL
            .into_iter()
            .map(|gate| (gate.name().to_owned(), gate.default_rule()))
            .collect()
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no such gate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no gate {0:?}; there are {names}", names = Gate::ALL.map(Gate::name).join(", "))]
pub struct UnknownGate(pub String);

impl FromStr for Gate {
    type Err = UnknownGate;

    fn from_str(text: &str) -> Result<Self, UnknownGate> {
        let found = Self::ALL.into_iter().find(|gate| gate.name() == text);
        found.ok_or_else(|| UnknownGate(text.chars().take(80).collect()))
    }
}

/// What a gate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It may be done.
    Allow,
    /// A person decides each time.
    Prompt,
    /// It may not.
    Deny,
}

impl Mode {
    /// As documents write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Prompt => "prompt",
            Self::Deny => "deny",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Numbers that an operator signs with the gates: name, and what holds where the policy says nothing.
pub const LIMITS: [(&str, u64); 2] = [
    // Seconds for which a relay shows a peer at most (the plan's `policy.relay.ttl`).
    ("relay.ttl", 900),
    // Seconds for which the newest chain of a backup stays after its last push.
    ("backup.grace", 365 * 86_400),
];

/// What a gate decided, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Which gate.
    pub gate: Gate,
    /// What it says to these facts.
    pub mode: Mode,
    /// Why, in words that depend on policy and facts alone.
    pub reason: String,
}

/// A gate, ready to decide.
#[derive(Debug)]
struct Compiled {
    mode: Mode,
    when: Option<Condition>,
}

/// A vault's policy, compiled.
#[derive(Debug)]
pub struct Policy {
    document: Signed<PolicyDocument>,
    gates: BTreeMap<Gate, Compiled>,
}

impl Policy {
    /// Compiles a verified document, whose conditions were compiled when it was verified. Errors: none of a verified one.
    pub fn new(document: Signed<PolicyDocument>) -> Result<Self, ConditionError> {
        let mut gates = BTreeMap::new();
        for (name, gate) in &document.gates {
            let when = gate.when.as_deref().map(Condition::compile).transpose()?;
            if let Ok(known) = name.parse() {
                gates.insert(
                    known,
                    Compiled {
                        mode: gate.mode,
                        when,
                    },
                );
            }
        }
        Ok(Self { document, gates })
    }

    /// The signed document.
    #[must_use]
    pub const fn document(&self) -> &Signed<PolicyDocument> {
        &self.document
    }

    /// Whether `gate` asks for `owner.…`: nobody else has to find it out.
    #[must_use]
    pub fn asks_owner(&self, gate: Gate) -> bool {
        let when = self.gates.get(&gate).and_then(|gate| gate.when.as_ref());
        when.is_some_and(Condition::asks_owner)
    }

    /// What `gate` says to `facts`.
    #[must_use]
    pub fn decide(&self, gate: Gate, facts: &Facts) -> Decision {
        let (mode, reason) = match self.gates.get(&gate) {
            None => (
                Mode::Deny,
                "the policy has no such gate, which denies".to_owned(),
            ),
            Some(Compiled { mode, when: None }) => {
                (*mode, format!("the gate says {mode} to everybody"))
            }
            Some(Compiled {
                mode,
                when: Some(when),
            }) => match when.holds(facts) {
                Ok(true) => (
                    *mode,
                    format!("`{}` is true, so the gate says {mode}", when.text()),
                ),
                Ok(false) => (
                    Mode::Deny,
                    format!("`{}` is false, which denies", when.text()),
                ),
                Err(why) => (Mode::Deny, format!("`{}` denies: {why}", when.text())),
            },
        };
        Decision { gate, mode, reason }
    }

    /// A limit: what the policy says, else what holds by default; 0 for a name that is none.
    #[must_use]
    pub fn limit(&self, name: &str) -> u64 {
        let default = LIMITS
            .iter()
            .find(|(known, _)| *known == name)
            .map_or(0, |(_, value)| *value);
        self.document.limits.get(name).copied().unwrap_or(default)
    }
}

#[cfg(test)]
mod tests;
