//! A decision with everything that it rests on, so that it can be decided again by whoever has it (design 7).

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Decision, Facts, Mode, Policy};
use crate::canonical::{self, JsonError};
use crate::did::Did;
use crate::document::PolicyDocument;
use crate::sign::{DocumentError, Signed};

/// The longest explanation that is read: a policy, facts, and what is said about them.
const MAX_BYTES: usize = 256 << 10;

/// A decision, why, and what it rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explanation {
    /// Which gate.
    pub gate: String,
    /// What it said.
    pub mode: Mode,
    /// Why.
    pub reason: String,
    /// The facts that were there.
    pub facts: Facts,
    /// Those that were not.
    pub missing: Vec<String>,
    /// The signed policy, whole.
    pub policy: Value,
}

/// What came of deciding again.
#[derive(Debug, Clone, PartialEq)]
pub struct Replayed {
    /// Whose policy it is.
    pub did: Did,
    /// What is decided now.
    pub decision: Decision,
    /// What the explanation says was decided.
    pub said: (Mode, String),
}

impl Replayed {
    /// Whether both are the same.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.decision.mode == self.said.0 && self.decision.reason == self.said.1
    }
}

/// Why an explanation explains nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Not an explanation.
    #[error("this is no explanation: {0}")]
    Form(JsonError),
    /// Longer than one can be.
    #[error("an explanation has {MAX_BYTES} bytes at most")]
    TooLarge,
    /// A gate that there is not.
    #[error(transparent)]
    Gate(#[from] super::UnknownGate),
    /// The policy in it is not signed by the DID that it names, or is none.
    #[error("its policy does not verify: {0}")]
    Policy(#[from] DocumentError),
}

impl Explanation {
    /// Of what `policy` decided on `facts`. Errors: none that a verified policy can cause.
    pub fn new(policy: &Policy, decision: &Decision, facts: Facts) -> Result<Self, JsonError> {
        Ok(Self {
            gate: decision.gate.name().to_owned(),
            mode: decision.mode,
            reason: decision.reason.clone(),
            missing: facts.missing().into_iter().map(str::to_owned).collect(),
            facts,
            policy: canonical::parse(policy.document().bytes())?,
        })
    }

    /// Verifies the policy and decides again, from what stands in the explanation alone. Errors: it cannot be decided;
    /// that another decision comes out is [`Replayed::agrees`].
    pub fn replay(bytes: &[u8]) -> Result<Replayed, ReplayError> {
        if bytes.len() > MAX_BYTES {
            return Err(ReplayError::TooLarge);
        }
        let said: Self = canonical::from_slice(bytes).map_err(ReplayError::Form)?;
        let gate = said.gate.parse()?;
        let policy = canonical::to_vec(&said.policy).map_err(ReplayError::Form)?;
        let document = Signed::<PolicyDocument>::verify(Bytes::from(policy))?;
        let policy =
            Policy::new(document).map_err(|error| DocumentError::Malformed(error.to_string()))?;
        Ok(Replayed {
            did: policy.document().did,
            decision: policy.decide(gate, &said.facts),
            said: (said.mode, said.reason),
        })
    }
}
