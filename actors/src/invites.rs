//! Invitations that this node made, and who came with one (`mcp/invites.json`). The decisions are in
//! [`hn_protocol::invite`]; this keeps them: durable before anybody is answered.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hn_protocol::did::Did;
use hn_protocol::invite::{
    FriendRequest, Introduced, Introduction, InviteBook, InviteRefusal, InviteToken,
};
use hn_protocol::time::Timestamp;

use crate::home::Home;
use crate::kept::Kept;
use crate::roster::Standings;

/// The failpoint of each write.
const FAILPOINT: &str = "invites.before_rename";

/// Why an invite was not made, or an introduction not taken.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    /// By the rules of the book.
    #[error(transparent)]
    Refused(#[from] InviteRefusal),
    /// The disk.
    #[error("the invites cannot be kept: {0}")]
    Io(#[from] io::Error),
}

/// A fresh invite.
#[derive(Debug, Clone, Copy)]
pub struct MadeInvite {
    /// The secret: it is told here and never again.
    pub token: InviteToken,
    /// Until when somebody may come with it.
    pub expires_at: Timestamp,
}

/// The invites and requests of this home. Cloning shares them; what changes them blocks on the disk.
#[derive(Clone)]
pub struct Invites {
    inner: Arc<Inner>,
}

struct Inner {
    book: Kept<InviteBook>,
    standings: Standings,
}

impl Invites {
    /// Reads what is kept; a damaged file is set aside and said. Errors: the disk.
    pub fn open(home: &Home, standings: Standings, now: Timestamp) -> io::Result<Self> {
        let book = Kept::open(home.invites_file(), FAILPOINT, now)?;
        Ok(Self {
            inner: Arc::new(Inner { book, standings }),
        })
    }

    /// What was damaged at the start, and where it is now.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.inner.book.trouble()
    }

    /// Makes an invite that lives for `life`. Errors: too many are open; the disk.
    pub fn create(&self, life: Duration, now: Timestamp) -> Result<MadeInvite, InviteError> {
        // Drawn from the operating system's generator by way of the thread's (ChaCha, reseeded).
        let token = InviteToken::from_bytes(rand::random());
        let expires_at = self
            .inner
            .book
            .change::<_, InviteError>(|book| Ok(book.create(&token, life, now)?))?;
        Ok(MadeInvite { token, expires_at })
    }

    /// Takes in `caller`, whom a signature has proved to be that DID. Errors: no such invite, expired, used by another,
    /// too many wait; the disk.
    pub fn introduce(
        &self,
        caller: Did,
        said: &Introduction,
        now: Timestamp,
    ) -> Result<Introduced, InviteError> {
        let is_friend = self.is_friend(&caller);
        self.inner
            .book
            .change(|book| Ok(book.introduce(caller, said, is_friend, now)?))
    }

    /// Ends what concerns `did`, who was allowed something or is dismissed. False when they did not wait. Errors: the disk.
    pub fn settle(&self, did: &Did) -> io::Result<bool> {
        self.inner.book.change(|book| Ok(book.settle(did)))
    }

    /// Takes back the invites that nobody came with; gives how many were open. Errors: the disk.
    pub fn withdraw(&self, now: Timestamp) -> io::Result<usize> {
        self.inner.book.change(|book| Ok(book.withdraw(now)))
    }

    /// How many invites somebody may still come with.
    #[must_use]
    pub fn open_count(&self, now: Timestamp) -> usize {
        self.inner.book.get().open(now)
    }

    /// Who waits for an answer, in the order in which they came. Whom the roster names a friend meanwhile does not wait.
    #[must_use]
    pub fn requests(&self) -> Vec<FriendRequest> {
        let book = self.inner.book.get();
        let waiting = book.requests().iter();
        waiting
            .filter(|request| !self.is_friend(&request.did))
            .cloned()
            .collect()
    }

    fn is_friend(&self, did: &Did) -> bool {
        let standing = self.inner.standings.of(did);
        standing.friend || !standing.rights.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;
    use crate::roster::{Right, RosterFile, RosterFriend};
    use hn_protocol::did::SecretSeed;

    const NOW: Timestamp = Timestamp(1_000_000);
    const LIFE: Duration = Duration::from_secs(60);

    fn did(n: u8) -> Did {
        SecretSeed::from_bytes([n; 32]).did()
    }

    struct Scene {
        _folder: tempfile::TempDir,
        home: Home,
        roster: RosterFile,
    }

    impl Scene {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let home = Home::open(&folder.path().join("home")).unwrap();
            let roster = RosterFile::new(home.federation_toml());
            Self {
                _folder: folder,
                home,
                roster,
            }
        }

        fn open(&self) -> Invites {
            Invites::open(&self.home, self.roster.standings(), NOW).unwrap()
        }
    }

    fn said(token: InviteToken) -> Introduction {
        Introduction {
            token,
            url: Some("https://bob.example".parse().unwrap()),
        }
    }

    #[test]
    fn what_was_answered_survives_a_restart_and_the_token_is_not_in_the_file() {
        let scene = Scene::new();
        let invites = scene.open();
        let made = invites.create(LIFE, NOW).unwrap();
        let text = std::fs::read_to_string(scene.home.invites_file()).unwrap();
        assert!(!text.contains(&made.token.to_string()));
        assert!(text.contains(&made.token.digest().to_string()));
        let invites = scene.open();
        assert_eq!(invites.open_count(NOW), 1);
        let come = invites.introduce(did(2), &said(made.token), NOW).unwrap();
        assert_eq!(come, Introduced::Pending);
        let invites = scene.open();
        assert_eq!(invites.requests()[0].did, did(2));
        assert_eq!(invites.open_count(NOW), 0);
        let other = invites.introduce(did(3), &said(made.token), NOW);
        assert!(matches!(
            other,
            Err(InviteError::Refused(InviteRefusal::Used))
        ));
        assert!(invites.settle(&did(2)).unwrap());
        assert!(scene.open().requests().is_empty());
    }

    #[test]
    fn two_invites_are_two_secrets() {
        let scene = Scene::new();
        let invites = scene.open();
        let made: BTreeSet<String> = (0..16)
            .map(|_| invites.create(LIFE, NOW).unwrap().token.to_string())
            .collect();
        assert_eq!(made.len(), 16);
        assert_eq!(invites.withdraw(NOW).unwrap(), 16);
        assert_eq!(scene.open().open_count(NOW), 0);
    }

    #[test]
    fn whom_a_person_makes_a_friend_in_the_file_waits_no_longer() {
        let mut scene = Scene::new();
        let invites = scene.open();
        let made = invites.create(LIFE, NOW).unwrap();
        invites.introduce(did(2), &said(made.token), NOW).unwrap();
        let friend = RosterFriend {
            did: did(2),
            rights: [Right::Read].into(),
            friend: false,
        };
        scene.roster.put_friend(&friend).unwrap();
        assert!(invites.requests().is_empty());
        let again = invites.introduce(did(2), &said(made.token), NOW).unwrap();
        assert_eq!(again, Introduced::Friend);
        scene.roster.remove_friend(&did(2)).unwrap();
        assert!(invites.requests().is_empty(), "settled for good");
    }

    #[test]
    fn a_damaged_file_costs_the_invites_and_is_said() {
        let scene = Scene::new();
        scene.open().create(LIFE, NOW).unwrap();
        std::fs::write(scene.home.invites_file(), "{\"invites\":3}").unwrap();
        let invites = scene.open();
        assert!(invites.trouble().unwrap().contains("set aside"));
        assert_eq!(invites.open_count(NOW), 0);
        invites.create(LIFE, NOW).unwrap();
        assert!(scene.open().trouble().is_none());
    }
}
