//! `policy@1`: who may do what at a vault's node, signed by the vault (design 7, `spec/policy@1.md`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::require;
use crate::canonical::MAX_INTEGER;
use crate::did::Did;
use crate::policy::{Condition, Gate, LIMITS, Mode};
use crate::sign::{Document, DocumentError};

/// The largest policy: nine gates with the longest condition, and room for what readers do not know.
pub const MAX_POLICY_BYTES: usize = 64 << 10;

/// One gate: what it says, and to whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyGate {
    /// What it says when `when` is true.
    pub mode: Mode,
    /// A condition in CEL; without one it says so to everybody. A gate that denies has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
}

/// The gates and limits of one vault. What replaces it has a higher sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyDocument {
    /// Whose policy, and the signer.
    pub did: Did,
    /// `max(last + 1, Unix milliseconds)`.
    pub sequence: u64,
    /// By name; what is not here denies.
    pub gates: BTreeMap<String, PolicyGate>,
    /// By name; what is not here is as by default.
    #[serde(default)]
    pub limits: BTreeMap<String, u64>,
}

impl Document for PolicyDocument {
    const TYPE: &'static str = "policy@1";
    const MAX_BYTES: usize = MAX_POLICY_BYTES;

    fn signer(&self) -> Did {
        self.did
    }

    fn check(&self) -> Result<(), DocumentError> {
        require(
            (1..=MAX_INTEGER).contains(&self.sequence),
            "sequence lies between 1 and 2^53",
        )?;
        for (name, gate) in &self.gates {
            let malformed = |what: String| DocumentError::Malformed(format!("gates: {what}"));
            name.parse::<Gate>()
                .map_err(|error| malformed(error.to_string()))?;
            require(
                gate.mode != Mode::Deny || gate.when.is_none(),
                "a gate that denies has no condition",
            )?;
            if let Some(when) = &gate.when {
                Condition::compile(when).map_err(|error| malformed(format!("{name}: {error}")))?;
            }
        }
        for (name, limit) in &self.limits {
            let known = LIMITS.iter().any(|(known, _)| known == name);
            require(known, "limits holds a name that is no limit")?;
            require(
                (1..=MAX_INTEGER).contains(limit),
                "a limit lies between 1 and 2^53",
            )?;
        }
        Ok(())
    }
}
