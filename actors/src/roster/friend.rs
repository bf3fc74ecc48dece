//! `[[friend]]`: what a DID may do here, given apart from following (design 7).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use hn_protocol::did::Did;
use serde::{Deserialize, Serialize};
use toml_edit::{Array, value};

use super::{RosterError, RosterFile, change_table, set};

/// What can be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Right {
    /// To read what is behind a gate.
    Read,
    /// To be relayed.
    Relay,
    /// To keep backups here.
    Backup,
    /// To send to the inbox.
    Inbox,
}

/// The word is no right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no right; there are: {rights}", rights = Right::names())]
pub struct UnknownRight(String);

impl Right {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Read, Self::Relay, Self::Backup, Self::Inbox];

    /// Its word in the roster and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Relay => "relay",
            Self::Backup => "backup",
            Self::Inbox => "inbox",
        }
    }

    /// The words of all, for people.
    #[must_use]
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Right {
    type Err = UnknownRight;

    fn from_str(text: &str) -> Result<Self, UnknownRight> {
        let found = Self::ALL.into_iter().find(|right| right.name() == text);
        found.ok_or_else(|| UnknownRight(text.chars().take(40).collect()))
    }
}

impl TryFrom<String> for Right {
    type Error = UnknownRight;

    fn try_from(text: String) -> Result<Self, UnknownRight> {
        text.parse()
    }
}

impl From<Right> for String {
    fn from(right: Right) -> Self {
        right.name().to_owned()
    }
}

/// One `[[friend]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RosterFriend {
    /// Who.
    pub did: Did,
    /// What they may do.
    #[serde(default)]
    pub rights: BTreeSet<Right>,
    /// Whether policy sees them as a friend.
    #[serde(default)]
    pub friend: bool,
}

impl RosterFriend {
    /// Whether it says nothing: no right, and no friend.
    #[must_use]
    pub fn is_nobody(&self) -> bool {
        self.rights.is_empty() && !self.friend
    }
}

impl RosterFile {
    /// The friend of this DID.
    #[must_use]
    pub fn friend(&self, did: &Did) -> Option<&RosterFriend> {
        let mut friends = self.roster.friends.iter();
        friends.find(|friend| friend.did == *did)
    }

    /// Sets rights and friendship of a DID to exactly these. Durable when it returns.
    pub fn put_friend(&mut self, friend: &RosterFriend) -> Result<(), RosterError> {
        if self.error.is_none() && self.friend(&friend.did) == Some(friend) {
            return Ok(());
        }
        self.edit("friend", |friends| {
            let rights: Array = friend.rights.iter().map(|right| right.name()).collect();
            change_table(friends, &friend.did, |table| {
                set(table, "did", Some(value(friend.did.to_string())));
                set(table, "rights", Some(value(rights)));
                set(table, "friend", friend.friend.then(|| value(true)));
            });
        })
    }

    /// Takes every right of this DID away; false when it had none. Durable when it returns.
    pub fn remove_friend(&mut self, did: &Did) -> Result<bool, RosterError> {
        // A file that cannot be read is refused by the edit, whoever stands in the last good one.
        if self.error.is_none() && self.friend(did).is_none() {
            return Ok(false);
        }
        self.edit("friend", |friends| {
            friends.retain(|table| !super::names(table, did));
        })?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use hn_protocol::did::SecretSeed;
    use std::os::unix::fs::MetadataExt;

    fn file() -> (tempfile::TempDir, RosterFile) {
        let dir = tempfile::tempdir().unwrap();
        let file = RosterFile::new(dir.path().join("federation.toml"));
        (dir, file)
    }

    fn did(n: u8) -> Did {
        SecretSeed::from_bytes([n; 32]).did()
    }

    fn friend(n: u8, rights: &[Right], friend: bool) -> RosterFriend {
        RosterFriend {
            did: did(n),
            rights: rights.iter().copied().collect(),
            friend,
        }
    }

    #[test]
    fn rights_are_set_as_said_beside_what_a_person_wrote() {
        let (_dir, mut file) = file();
        let theirs = format!(
            "# whom I follow\n[[peer]]\ndid = \"{0}\" # bob\nurl = \"http://bob.example\"\n\n\
             # old friends\n[[friend]]\n# met in Ghent\ndid = \"{1}\" # carol\nrights = [\"read\"] # for now\n",
            did(2),
            did(3)
        );
        std::fs::write(&file.path, &theirs).unwrap();
        assert!(file.poll());
        file.put_friend(&friend(4, &[Right::Inbox, Right::Read], true))
            .unwrap();
        let text = std::fs::read_to_string(&file.path).unwrap();
        assert!(text.starts_with(&theirs), "{text}");
        assert!(
            text.contains("rights = [\"read\", \"inbox\"]\nfriend = true"),
            "{text}"
        );

        file.put_friend(&friend(3, &[Right::Relay], true)).unwrap();
        let text = std::fs::read_to_string(&file.path).unwrap();
        for kept in ["# met in Ghent", "# carol", "# for now", "# old friends"] {
            assert!(text.contains(kept), "{kept}: {text}");
        }
        assert_eq!(
            file.friend(&did(3)),
            Some(&friend(3, &[Right::Relay], true))
        );
        file.put_friend(&friend(3, &[], true)).unwrap();
        assert_eq!(file.friend(&did(3)), Some(&friend(3, &[], true)));

        assert!(file.remove_friend(&did(3)).unwrap());
        assert!(!file.remove_friend(&did(3)).unwrap());
        assert!(file.remove_friend(&did(4)).unwrap());
        let text = std::fs::read_to_string(&file.path).unwrap();
        assert!(text.starts_with("# whom I follow") && !text.contains("[[friend]]"));
        assert!(file.peer(&did(2)).is_some());
        let mut again = RosterFile::new(file.path.clone());
        assert!(again.poll() && again.error().is_none());
    }

    #[test]
    fn what_is_set_again_as_it_is_writes_nothing() {
        let (_dir, mut file) = file();
        let one = friend(4, &[Right::Backup], false);
        file.put_friend(&one).unwrap();
        let inode = |file: &RosterFile| std::fs::metadata(&file.path).unwrap().ino();
        let before = inode(&file);
        file.put_friend(&one).unwrap();
        assert_eq!(before, inode(&file), "the very same file");
    }

    #[test]
    fn a_right_that_is_none_and_a_friend_twice_are_refused_and_named() {
        let (_dir, mut file) = file();
        let good = format!("[[friend]]\ndid = \"{}\"\nrights = [\"read\"]\n", did(3));
        for (broken, said) in [
            (
                format!("[[friend]]\ndid = \"{}\"\nrights = [\"root\"]\n", did(4)),
                "there are: read, relay, backup, inbox",
            ),
            (format!("{good}{good}"), "stands twice"),
            (
                format!("friend = [{{ did = \"{}\" }}]\n", did(3)),
                "write [[friend]]",
            ),
        ] {
            std::fs::write(&file.path, &broken).unwrap();
            file.stamp = None;
            file.poll();
            let refused = file.put_friend(&friend(5, &[Right::Read], false));
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains(said), "{refused}");
            assert_eq!(std::fs::read_to_string(&file.path).unwrap(), broken);
        }
    }

    #[test]
    fn every_right_has_its_word() {
        for right in Right::ALL {
            assert_eq!(right.to_string().parse(), Ok(right));
        }
        let error = "READ".parse::<Right>().unwrap_err().to_string();
        assert_eq!(
            error,
            "\"READ\" is no right; there are: read, relay, backup, inbox"
        );
    }
}
