//! Friends: the part of the roster that gives rights. Whoever owns the file sets them too.

use actix::{Context, Handler, Message, MessageResult};
use hn_protocol::did::Did;
use serde::Serialize;

use super::{FederationSync, SyncError, strike};
use crate::roster::RosterFriend;

/// Sets what a DID may do to exactly this; where that is nothing, it is in the roster as a friend no more. Errors: the node
/// itself; the roster file.
#[derive(Message)]
#[rtype(result = "Result<(), SyncError>")]
pub struct PutFriend {
    /// The friend as it is to be.
    pub friend: RosterFriend,
}

/// Takes every right of a DID away. False when it had none. Errors: the roster file.
#[derive(Message)]
#[rtype(result = "Result<bool, SyncError>")]
pub struct RemoveFriend {
    /// Whose.
    pub did: Did,
}

/// Asks for every friend.
#[derive(Message)]
#[rtype(result = "FriendsView")]
pub struct ListFriends;

/// Every friend, and what is wrong with the roster file.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FriendsView {
    /// The friends, in the roster's order.
    pub friends: Vec<RosterFriend>,
    /// Why the file cannot be read as it is now.
    pub roster_error: Option<String>,
}

impl FederationSync {
    fn remove_friend(&mut self, did: &Did, ctx: &mut Context<Self>) -> Result<bool, SyncError> {
        self.read_roster(ctx);
        let removed = self.roster.remove_friend(did)?;
        // The edit may have brought what a person wrote meanwhile.
        self.follow_roster(ctx);
        Ok(removed)
    }
}

impl Handler<PutFriend> for FederationSync {
    type Result = Result<(), SyncError>;

    fn handle(&mut self, message: PutFriend, ctx: &mut Self::Context) -> Self::Result {
        strike();
        let friend = message.friend;
        if friend.did == self.puller.catalog.own() {
            return Err(SyncError::Ourselves(friend.did));
        }
        if friend.is_nobody() {
            return self.remove_friend(&friend.did, ctx).map(drop);
        }
        self.read_roster(ctx);
        self.roster.put_friend(&friend)?;
        self.follow_roster(ctx);
        Ok(())
    }
}

impl Handler<RemoveFriend> for FederationSync {
    type Result = Result<bool, SyncError>;

    fn handle(&mut self, message: RemoveFriend, ctx: &mut Self::Context) -> Self::Result {
        strike();
        self.remove_friend(&message.did, ctx)
    }
}

impl Handler<ListFriends> for FederationSync {
    type Result = MessageResult<ListFriends>;

    fn handle(&mut self, _: ListFriends, ctx: &mut Self::Context) -> Self::Result {
        strike();
        self.read_roster(ctx);
        MessageResult(FriendsView {
            friends: self.roster.roster().friends.clone(),
            roster_error: self.roster.error().map(str::to_owned),
        })
    }
}
