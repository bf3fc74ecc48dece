//! The invited side: to whom this node introduces itself, when it tries again, and what they said.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BaseUrl, InviteToken, MAX_LIFE};
use crate::did::Did;
use crate::time::Timestamp;

/// The most introductions that are remembered: as many as one inviter can have out.
pub const MAX_INTRODUCTIONS: usize = 256;
/// The first wait for an inviter who did not answer; each further one doubles.
const FIRST_RETRY: Duration = Duration::from_secs(4);
/// The longest: an inviter who is back is met within a quarter of an hour, as a followed peer is.
const LAST_RETRY: Duration = Duration::from_secs(15 * 60);
/// The first wait before an inviter whose operator has not decided is asked again; each further one doubles.
const FIRST_LOOK: Duration = Duration::from_secs(60);
/// The longest: people decide within days, and a look is one request.
const LAST_LOOK: Duration = Duration::from_secs(6 * 3600);
/// The longest reason that is kept; it is the inviter's word.
const MAX_REASON: usize = 256;

/// How far an introduction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The inviter has not answered yet.
    Sending,
    /// The inviter's operator is asked.
    Pending,
    /// The inviter counts us as a friend, or gave us rights.
    Accepted,
    /// The inviter does not take it, or was not there for as long as an invite can live.
    Refused,
}

impl Stage {
    /// Whether nothing more is to be sent.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Accepted | Self::Refused)
    }
}

/// One introduction, as it is kept. The token is a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Introducing {
    /// To whom.
    pub did: Did,
    /// Where.
    pub url: BaseUrl,
    /// With what.
    pub token: InviteToken,
    /// Since when.
    pub since: Timestamp,
    /// How far.
    #[serde(rename = "state")]
    pub stage: Stage,
    /// Why it was refused: the inviter's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How one try ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The inviter counts us as a friend.
    Friend,
    /// The inviter's operator is asked.
    Pending,
    /// The inviter does not take it: why.
    Refused(String),
    /// No answer, or none that decides anything: what happened.
    Failed(String),
}

/// There are [`MAX_INTRODUCTIONS`], all under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_INTRODUCTIONS} introductions are under way already")]
pub struct IntroductionsFull;

/// All of them, as they are kept; one an inviter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Introductions {
    #[serde(default)]
    introductions: Vec<Introducing>,
}

impl Introductions {
    /// Begins one, in the place of an earlier one to the same DID. Where there is no room, the oldest that has ended goes.
    /// Errors: none has ended.
    pub fn begin(
        &mut self,
        did: Did,
        url: BaseUrl,
        token: InviteToken,
        now: Timestamp,
    ) -> Result<(), IntroductionsFull> {
        self.introductions.retain(|known| known.did != did);
        if self.introductions.len() >= MAX_INTRODUCTIONS {
            let ended = self.introductions.iter().position(|i| i.stage.is_final());
            self.introductions.remove(ended.ok_or(IntroductionsFull)?);
        }
        self.introductions.push(Introducing {
            did,
            url,
            token,
            since: now,
            stage: Stage::Sending,
            reason: None,
        });
        Ok(())
    }

    /// Forgets the one to `did`; false when there is none.
    pub fn forget(&mut self, did: &Did) -> bool {
        let before = self.introductions.len();
        self.introductions.retain(|known| known.did != *did);
        self.introductions.len() < before
    }

    /// Takes in how a try with `token` ended. Nothing happens where another introduction took its place meanwhile.
    pub fn answered(&mut self, did: &Did, token: &InviteToken, reply: &Reply, now: Timestamp) {
        let mut known = self.introductions.iter_mut();
        let Some(known) = known.find(|known| known.did == *did && known.token == *token) else {
            return;
        };
        match reply {
            Reply::Friend => known.stage = Stage::Accepted,
            Reply::Pending if now.since(known.since) < MAX_LIFE => known.stage = Stage::Pending,
            Reply::Refused(reason) => {
                known.stage = Stage::Refused;
                known.reason = Some(reason.chars().take(MAX_REASON).collect());
            }
            Reply::Failed(_) if now.since(known.since) < MAX_LIFE => {}
            Reply::Pending | Reply::Failed(_) => {
                known.stage = Stage::Refused;
                known.reason = Some("nothing was decided for as long as an invite lives".into());
            }
        }
    }

    /// The one to `did`.
    #[must_use]
    pub fn of(&self, did: &Did) -> Option<&Introducing> {
        self.introductions.iter().find(|known| known.did == *did)
    }

    /// All of them, in the order in which they were begun.
    #[must_use]
    pub fn list(&self) -> &[Introducing] {
        &self.introductions
    }
}

/// When which one is tried next. Not kept: after a start every one that has not ended is due.
#[derive(Debug, Clone, Default)]
pub struct Agenda {
    tries: BTreeMap<Did, Try>,
}

#[derive(Debug, Clone, Default)]
struct Try {
    running: bool,
    /// How often in a row it ended alike: as a failure, or without a decision.
    count: u32,
    stage: Option<Stage>,
    next: Timestamp,
    error: Option<String>,
}

impl Agenda {
    /// Whom to try now, each marked as running until [`tried`](Self::tried); at most `room` of them.
    pub fn start_due(
        &mut self,
        introductions: &Introductions,
        room: usize,
        now: Timestamp,
    ) -> Vec<Introducing> {
        let listed = introductions.list();
        self.tries.retain(|did, _| introductions.of(did).is_some());
        let mut due = Vec::new();
        for one in listed.iter().filter(|one| !one.stage.is_final()) {
            let known = self.tries.entry(one.did).or_default();
            if due.len() < room && !known.running && known.next <= now {
                known.running = true;
                due.push(one.clone());
            }
        }
        due
    }

    /// How many run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.tries.values().filter(|known| known.running).count()
    }

    /// Takes in how a try ended.
    pub fn tried(&mut self, did: &Did, reply: &Reply, now: Timestamp) {
        let known = self.tries.entry(*did).or_default();
        let (stage, first, last) = match reply {
            Reply::Failed(_) => (Stage::Sending, FIRST_RETRY, LAST_RETRY),
            Reply::Pending => (Stage::Pending, FIRST_LOOK, LAST_LOOK),
            Reply::Friend => (Stage::Accepted, FIRST_LOOK, LAST_LOOK),
            Reply::Refused(_) => (Stage::Refused, FIRST_LOOK, LAST_LOOK),
        };
        let again = known.stage == Some(stage);
        let count = if again { known.count + 1 } else { 0 };
        // 2^16 times the first wait is above the last.
        let wait = first.saturating_mul(1 << count.min(16)).min(last);
        *known = Try {
            running: false,
            count: count.min(16),
            stage: Some(stage),
            next: now.plus(wait),
            error: match reply {
                Reply::Failed(error) => Some(error.chars().take(MAX_REASON).collect()),
                _ => None,
            },
        };
    }

    /// A try ended that belonged to an earlier introduction: the one in its place is due.
    pub fn dropped(&mut self, did: &Did) {
        self.tries.remove(did);
    }

    /// Makes the one to `did` due at once, as after a new invite.
    pub fn at_once(&mut self, did: &Did) {
        let running = self.tries.get(did).is_some_and(|known| known.running);
        let fresh = Try {
            running,
            ..Try::default()
        };
        self.tries.insert(*did, fresh);
    }

    /// When to look again, of those that do not run; `None` when nothing is left to do.
    #[must_use]
    pub fn next_wake(&self, introductions: &Introductions) -> Option<Timestamp> {
        let open = introductions.list().iter().filter(|i| !i.stage.is_final());
        let waiting = open.filter_map(|one| match self.tries.get(&one.did) {
            Some(known) if known.running => None,
            Some(known) => Some(known.next),
            None => Some(Timestamp::default()),
        });
        waiting.min()
    }

    /// Why the last try failed, and when the next one is.
    #[must_use]
    pub fn trouble(&self, did: &Did) -> Option<(&str, Timestamp)> {
        let known = self.tries.get(did)?;
        Some((known.error.as_deref()?, known.next))
    }
}
