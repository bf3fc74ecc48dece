//! The recovery as an operator sees it.

use hn_protocol::did::Did;
use hn_protocol::recovery::{Extent, Phase};
use serde::Serialize;

use super::LogRecovery;

/// How the recovery stands: `log.recovery` of `hn status`, and the answer to `hn mcp log`.
#[derive(Debug, Clone, Serialize)]
pub struct RecoveryView {
    /// `ok`, or `recovering` while nothing may be signed. A start that asks its holders is `ok`: it takes 5 s at most.
    pub state: &'static str,
    /// Entries of the log as it is here.
    pub log: Extent,
    /// Why nothing is signed, the gravest first.
    pub reasons: Vec<ReasonView>,
    /// What the log must reach, by what was signed once; absent where nothing is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub must_reach: Option<Extent>,
    /// The named holders.
    pub holders: Vec<HolderView>,
}

/// One reason.
#[derive(Debug, Clone, Serialize)]
pub struct ReasonView {
    /// `own_fork`, `log_damaged`, `seen_ahead` or `restored`.
    pub code: &'static str,
    /// A sentence.
    pub detail: String,
}

/// One named holder.
#[derive(Debug, Clone, Serialize)]
pub struct HolderView {
    /// Who.
    pub did: Did,
    /// Its petname.
    pub alias: Option<String>,
    /// Whether it has answered since the recovery began.
    pub answered: bool,
    /// Why the last attempt brought no answer, or not a whole one.
    pub error: Option<String>,
}

impl LogRecovery {
    pub(super) fn view(&self) -> RecoveryView {
        let troubles = self.core.troubles();
        let recovering = matches!(self.core.phase(), Phase::Recovering { .. });
        let reasons = troubles.reasons().into_iter();
        let holders = self.core.holders().iter().map(|(did, holder)| HolderView {
            did: *did,
            alias: self.roster.peer(did).and_then(|peer| peer.alias.clone()),
            answered: holder.answered,
            error: holder.failure.clone(),
        });
        RecoveryView {
            state: if recovering { "recovering" } else { "ok" },
            log: self.core.log(),
            reasons: reasons
                .map(|(code, detail)| ReasonView { code, detail })
                .collect(),
            must_reach: Some(troubles.reach).filter(|reach| *reach != Extent::default()),
            holders: holders.collect(),
        }
    }
}
