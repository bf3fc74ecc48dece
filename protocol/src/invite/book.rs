//! The inviter's side: which invites are open, who came with one, and who waits to be allowed something.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BaseUrl, InviteToken};
use crate::did::Did;
use crate::digest::Digest;
use crate::time::Timestamp;

/// The longest life of an invite: it is a secret in somebody's chat history.
pub const MAX_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// The most invites that are remembered: more than a person sends within their life of a month.
pub const MAX_INVITES: usize = 256;
/// The most requests that wait: one comes with each invite.
pub const MAX_REQUESTS: usize = 256;

/// An invite as its maker remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenInvite {
    /// BLAKE3 of the token.
    pub token: Digest,
    /// When it was made.
    pub made_at: Timestamp,
    /// Until when somebody may come with it.
    pub expires_at: Timestamp,
    /// Who came with it; nobody else may any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<Did>,
}

/// Somebody who came with an invite and has not been answered yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FriendRequest {
    /// Who.
    pub did: Did,
    /// Where they say they are: a stranger's word, for display alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<BaseUrl>,
    /// When they came first.
    pub since: Timestamp,
    /// When the invite was made that they came with.
    pub invite_made_at: Timestamp,
    /// BLAKE3 of its token.
    pub invite: Digest,
}

/// What an introduction says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// The invite's token.
    pub token: InviteToken,
    /// Where the one who comes says they are.
    pub url: Option<BaseUrl>,
}

/// How an introduction was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Introduced {
    /// The operator is asked.
    Pending,
    /// They have rights here already, or count as a friend.
    Friend,
}

/// Why it was not, or why there is no further invite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InviteRefusal {
    /// No such invite: never made, taken back, dismissed, or long expired.
    #[error("there is no such invite")]
    Unknown,
    /// It has expired and nobody had come with it.
    #[error("the invite has expired")]
    Expired,
    /// Another DID came with it before.
    #[error("the invite was used by another DID")]
    Used,
    /// [`MAX_REQUESTS`] wait already.
    #[error("{MAX_REQUESTS} requests wait for an answer already")]
    TooManyRequests,
    /// [`MAX_INVITES`] are open already.
    #[error("{MAX_INVITES} invites are open already")]
    TooManyInvites,
}

/// All of it, as it is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InviteBook {
    #[serde(default)]
    invites: Vec<OpenInvite>,
    #[serde(default)]
    requests: Vec<FriendRequest>,
}

impl InviteBook {
    /// Opens an invite of this token; gives until when. `life` is cut to [`MAX_LIFE`]. Where [`MAX_INVITES`] are
    /// remembered, the one that expired first goes. Errors: none of them has expired.
    pub fn create(
        &mut self,
        token: &InviteToken,
        life: Duration,
        now: Timestamp,
    ) -> Result<Timestamp, InviteRefusal> {
        if self.invites.len() >= MAX_INVITES {
            let oldest = (0..self.invites.len()).min_by_key(|at| self.invites[*at].expires_at);
            match oldest.filter(|at| self.invites[*at].expires_at <= now) {
                Some(at) => drop(self.invites.remove(at)),
                None => return Err(InviteRefusal::TooManyInvites),
            }
        }
        let expires_at = now.plus(life.min(MAX_LIFE));
        self.invites.push(OpenInvite {
            token: token.digest(),
            made_at: now,
            expires_at,
            used_by: None,
        });
        Ok(expires_at)
    }

    /// Takes in `caller`, who has proved to be that DID. Whoever comes again with their own invite changes nothing but
    /// their URL. Errors: everything but [`InviteRefusal::TooManyInvites`].
    pub fn introduce(
        &mut self,
        caller: Did,
        said: &Introduction,
        is_friend: bool,
        now: Timestamp,
    ) -> Result<Introduced, InviteRefusal> {
        if is_friend {
            self.settle(&caller);
            return Ok(Introduced::Friend);
        }
        let token = said.token.digest();
        let waiting = self.requests.iter_mut().find(|known| known.did == caller);
        if let Some(waiting) = waiting.filter(|known| known.invite == token) {
            if said.url.is_some() {
                waiting.url.clone_from(&said.url);
            }
            return Ok(Introduced::Pending);
        }
        let invites = &mut self.invites;
        let invite = invites
            .iter_mut()
            .find(|invite| invite.token == token)
            .ok_or(InviteRefusal::Unknown)?;
        match invite.used_by {
            Some(used_by) if used_by != caller => return Err(InviteRefusal::Used),
            None if invite.expires_at <= now => return Err(InviteRefusal::Expired),
            _ => {}
        }
        let at = self.requests.iter().position(|known| known.did == caller);
        if at.is_none() && self.requests.len() >= MAX_REQUESTS {
            return Err(InviteRefusal::TooManyRequests);
        }
        invite.used_by = Some(caller);
        let since = at.map_or(now, |at| self.requests.remove(at).since);
        self.requests.push(FriendRequest {
            did: caller,
            url: said.url.clone(),
            since,
            invite_made_at: invite.made_at,
            invite: token,
        });
        Ok(Introduced::Pending)
    }

    /// Ends what concerns `did`, who was allowed something or dismissed: no request, no invite of theirs. False when there
    /// was no request.
    pub fn settle(&mut self, did: &Did) -> bool {
        let waiting = self.requests.len();
        self.requests.retain(|known| known.did != *did);
        self.invites
            .retain(|invite| invite.used_by.as_ref() != Some(did));
        self.requests.len() < waiting
    }

    /// Takes back every invite that nobody has come with; gives how many had not expired at `now`.
    pub fn withdraw(&mut self, now: Timestamp) -> usize {
        let open = self.open(now);
        self.invites.retain(|invite| invite.used_by.is_some());
        open
    }

    /// How many invites somebody may still come with at `now`.
    #[must_use]
    pub fn open(&self, now: Timestamp) -> usize {
        let open = |invite: &&OpenInvite| invite.used_by.is_none() && invite.expires_at > now;
        self.invites.iter().filter(open).count()
    }

    /// Who waits for an answer, in the order in which they came.
    #[must_use]
    pub fn requests(&self) -> &[FriendRequest] {
        &self.requests
    }

    /// The invites that are remembered.
    #[must_use]
    pub fn invites(&self) -> &[OpenInvite] {
        &self.invites
    }
}
