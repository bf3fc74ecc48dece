//! The roster, `config/federation.toml`: whom this node follows, and its friends (design 11).
//!
//! A person may edit the file while the node runs: it is re-read when it changes, an edit that cannot be read
//! leaves the roster as it was and is named in `hn status`, and our own edits keep comments and order.

mod friend;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use hn_protocol::did::Did;
use serde::{Deserialize, Serialize};
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};
use url::Url;

pub use self::friend::{Right, RosterFriend, UnknownRight};
use crate::failpoint;
use crate::vault;

/// The largest roster file that is read: some ten thousand peers.
const MAX_BYTES: u64 = 4 << 20;

/// How much of what a peer serves is followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The peer's own log alone.
    Own,
    /// Also the logs that the peer holds for others.
    #[default]
    Held,
}

/// One `[[peer]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RosterPeer {
    /// Whom to follow.
    pub did: Did,
    /// Base URL of the peer's gateway: the only route to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<Url>,
    /// URL of the peer's presence, asked before the index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence: Option<Url>,
    /// How much is followed.
    #[serde(default)]
    pub scope: Scope,
    /// Whether artifacts are fetched as well.
    #[serde(default)]
    pub mirror: bool,
    /// The petname.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
}

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roster {
    /// Whom this node follows.
    #[serde(default, rename = "peer")]
    pub peers: Vec<RosterPeer>,
    /// Who has rights here.
    #[serde(default, rename = "friend")]
    pub friends: Vec<RosterFriend>,
}

/// What the roster says of one DID: the facts that gates ask for (design 7).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether it is in the roster at all, as peer or as friend.
    pub known: bool,
    /// Whether policy sees it as a friend.
    pub friend: bool,
    /// What it may do.
    pub rights: Vec<String>,
}

/// The roster as gates read it: from any thread, as last read from the file.
#[derive(Debug, Clone, Default)]
pub struct Standings(Arc<RwLock<Arc<BTreeMap<Did, Standing>>>>);

impl Standings {
    /// What the roster says of `did`; of a stranger that it is one.
    #[must_use]
    pub fn of(&self, did: &Did) -> Standing {
        let standings = self.0.read().unwrap_or_else(PoisonError::into_inner);
        standings.get(did).cloned().unwrap_or_default()
    }

    fn show(&self, roster: &Roster) {
        let mut standings: BTreeMap<Did, Standing> = BTreeMap::new();
        for peer in &roster.peers {
            standings.entry(peer.did).or_default().known = true;
        }
        for friend in &roster.friends {
            let standing = standings.entry(friend.did).or_default();
            standing.known = true;
            standing.friend |= friend.friend;
            let rights = friend.rights.iter().map(|right| right.name().to_owned());
            standing.rights.extend(rights);
        }
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(standings);
    }
}

/// Why the roster cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RosterError {
    /// Not TOML, an unknown key, a bad DID or URL; with line and column.
    #[error("{path}: {detail}", path = path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        detail: String,
    },
    /// The disk.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
}

/// The file, with what it held when it was last read.
#[derive(Debug)]
pub struct RosterFile {
    path: PathBuf,
    stamp: Option<(SystemTime, u64)>,
    roster: Roster,
    error: Option<String>,
    standings: Standings,
}

impl RosterFile {
    /// The file at `path`, not read yet: an absent file is an empty roster.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            stamp: None,
            roster: Roster::default(),
            error: None,
            standings: Standings::default(),
        }
    }

    /// What it says of each DID, kept up to date with every [`poll`](Self::poll) and edit.
    #[must_use]
    pub fn standings(&self) -> Standings {
        self.standings.clone()
    }

    /// The roster as last read.
    #[must_use]
    pub const fn roster(&self) -> &Roster {
        &self.roster
    }

    /// What is wrong with the file as it is now; the roster is then the last good one.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// The peer of this DID.
    #[must_use]
    pub fn peer(&self, did: &Did) -> Option<&RosterPeer> {
        self.roster.peers.iter().find(|peer| peer.did == *did)
    }

    /// Reads the file again if it changed since. True when the roster is another one than before.
    pub fn poll(&mut self) -> bool {
        let stamp = std::fs::metadata(&self.path)
            .ok()
            .and_then(|m| Some((m.modified().ok()?, m.len())));
        if stamp == self.stamp && (stamp.is_some() || self.roster == Roster::default()) {
            return false;
        }
        self.stamp = stamp;
        match self.read().and_then(|text| self.parse(&text)) {
            Ok(roster) => {
                self.error = None;
                let changed = roster != self.roster;
                self.roster = roster;
                self.standings.show(&self.roster);
                changed
            }
            Err(error) => {
                tracing::warn!(%error, "the roster cannot be read; the last good one stays");
                self.error = Some(error.to_string());
                false
            }
        }
    }

    /// Adds `peer`, or replaces URL, presence, scope, mirror and alias of the one with its DID. Durable when it returns.
    pub fn put(&mut self, peer: &RosterPeer) -> Result<(), RosterError> {
        self.edit("peer", |peers| {
            let url = |url: &Option<Url>| url.as_ref().map(|url| value(url.as_str()));
            let scope = match peer.scope {
                Scope::Own => "own",
                Scope::Held => "held",
            };
            change_table(peers, &peer.did, |table| {
                set(table, "did", Some(value(peer.did.to_string())));
                set(table, "url", url(&peer.url));
                set(table, "presence", url(&peer.presence));
                set(table, "scope", Some(value(scope)));
                set(table, "mirror", peer.mirror.then(|| value(true)));
                set(table, "alias", peer.alias.as_ref().map(value));
            });
        })
    }

    /// Removes the peer of this DID; false when there is none. Durable when it returns.
    pub fn remove(&mut self, did: &Did) -> Result<bool, RosterError> {
        if self.peer(did).is_none() {
            return Ok(false);
        }
        self.edit("peer", |peers| peers.retain(|table| !names(table, did)))?;
        Ok(true)
    }

    /// Changes the tables of one kind, and leaves everything else as a person wrote it.
    fn edit(
        &mut self,
        kind: &str,
        change: impl FnOnce(&mut ArrayOfTables),
    ) -> Result<(), RosterError> {
        let text = self.read()?;
        // What a person broke is not ours to overwrite.
        self.parse(&text)?;
        let mut document: DocumentMut = text
            .parse()
            .map_err(|e: toml_edit::TomlError| self.form(e.to_string()))?;
        let was_empty = document.is_empty();
        let tables = document
            .entry(kind)
            .or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        let tables = tables.as_array_of_tables_mut().ok_or_else(|| {
            self.form(format!(
                "{kind} is written as an inline array; write [[{kind}]]"
            ))
        })?;
        change(tables);
        if was_empty {
            keep_heading(&mut document, kind);
        }
        let text = document.to_string();
        // What is written has to be read again.
        if text.len() as u64 > MAX_BYTES {
            return Err(self.form(format!("larger than {MAX_BYTES} bytes")));
        }
        let roster = self.parse(&text)?;
        self.write(text.as_bytes())
            .map_err(|error| RosterError::Io {
                path: self.path.clone(),
                error,
            })?;
        self.roster = roster;
        self.standings.show(&self.roster);
        self.error = None;
        self.stamp = None;
        self.poll();
        Ok(())
    }

    fn write(&self, text: &[u8]) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            vault::create_dirs(folder)?;
            self.sweep(folder)?;
        }
        let before_rename = || failpoint::hit("roster.before_rename");
        vault::write_atomic_with(&self.path, text, vault::FILE_MODE, before_rename)
    }

    /// Removes what a crash left of earlier writes: whoever holds the home is the only one who writes here.
    fn sweep(&self, folder: &Path) -> io::Result<()> {
        let Some(name) = self.path.file_name() else {
            return Ok(());
        };
        let temporary = format!("{}.tmp-", name.to_string_lossy());
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&temporary) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn read(&self) -> Result<String, RosterError> {
        let io = |error| RosterError::Io {
            path: self.path.clone(),
            error,
        };
        match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            Err(error) => return Err(io(error)),
            Ok(meta) if meta.len() > MAX_BYTES => {
                return Err(self.form(format!("larger than {MAX_BYTES} bytes")));
            }
            Ok(_) => {}
        }
        std::fs::read_to_string(&self.path).map_err(io)
    }

    fn parse(&self, text: &str) -> Result<Roster, RosterError> {
        let roster: Roster = toml_edit::de::from_str(text)
            .map_err(|e| self.form(e.to_string().trim_end().to_owned()))?;
        for (at, peer) in roster.peers.iter().enumerate() {
            if roster
                .peers
                .iter()
                .take(at)
                .any(|earlier| earlier.did == peer.did)
            {
                return Err(self.form(format!("{} stands twice", peer.did)));
            }
            let same_name =
                |earlier: &RosterPeer| peer.alias.is_some() && earlier.alias == peer.alias;
            if roster.peers.iter().take(at).any(same_name) {
                let alias = peer.alias.as_deref().unwrap_or_default();
                return Err(self.form(format!("two peers are called {alias}")));
            }
            if let Some(url) = peer
                .url
                .iter()
                .chain(&peer.presence)
                .find(|url| !is_base_url(url))
            {
                return Err(self.form(format!("{url} is not a plain http or https URL")));
            }
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = roster
            .friends
            .iter()
            .find(|friend| !seen.insert(friend.did))
        {
            return Err(self.form(format!("the friend {} stands twice", twice.did)));
        }
        Ok(roster)
    }

    fn form(&self, detail: String) -> RosterError {
        RosterError::Form {
            path: self.path.clone(),
            detail,
        }
    }
}

/// Whether routes can be asked relative to `url`: http or https with a host, and nothing secret in it.
#[must_use]
pub fn is_base_url(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https")
        && url.host().is_some()
        && url.username().is_empty()
        && url.password().is_none()
        && url.fragment().is_none()
}

/// What a person wrote into a file without any table stays above the first one.
fn keep_heading(document: &mut DocumentMut, kind: &str) {
    let heading = document.trailing().as_str().unwrap_or_default().to_owned();
    let tables = document
        .get_mut(kind)
        .and_then(Item::as_array_of_tables_mut);
    if let Some(first) = tables.and_then(|tables| tables.get_mut(0)) {
        first.decor_mut().set_prefix(heading);
        document.set_trailing("");
    }
}

/// Changes the table of this DID; a new one where there is none.
fn change_table(tables: &mut ArrayOfTables, did: &Did, change: impl FnOnce(&mut Table)) {
    let at = tables.iter().position(|table| names(table, did));
    if let Some(table) = at.and_then(|at| tables.get_mut(at)) {
        change(table);
        return;
    }
    let mut table = Table::new();
    change(&mut table);
    tables.push(table);
}

/// Sets a key, or takes it away. What a person wrote beside the old value stays.
fn set(table: &mut Table, key: &str, to: Option<Item>) {
    let Some(mut item) = to else {
        table.remove(key);
        return;
    };
    let Some(old) = table.get_mut(key) else {
        table.insert(key, item);
        return;
    };
    if let (Some(new), Some(old)) = (item.as_value_mut(), old.as_value()) {
        *new.decor_mut() = old.decor().clone();
    }
    *old = item;
}

fn names(table: &Table, did: &Did) -> bool {
    table
        .get("did")
        .and_then(Item::as_str)
        .is_some_and(|text| text == did.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use hn_protocol::did::SecretSeed;

    fn file() -> (tempfile::TempDir, RosterFile) {
        let dir = tempfile::tempdir().unwrap();
        let file = RosterFile::new(dir.path().join("federation.toml"));
        (dir, file)
    }

    fn peer(n: u8) -> RosterPeer {
        RosterPeer {
            did: SecretSeed::from_bytes([n; 32]).did(),
            url: Some(Url::parse("http://127.0.0.1:7733").unwrap()),
            presence: None,
            scope: Scope::Held,
            mirror: false,
            alias: None,
        }
    }

    #[test]
    fn an_edit_keeps_what_a_person_wrote() {
        let (_dir, mut file) = file();
        let theirs = format!("# my peers\n[[peer]]\ndid = \"{}\" # bob\n", peer(2).did);
        std::fs::write(&file.path, &theirs).unwrap();
        assert!(file.poll());
        file.put(&peer(1)).unwrap();
        let text = std::fs::read_to_string(&file.path).unwrap();
        assert!(text.starts_with(&theirs), "{text}");
        assert_eq!(file.roster().peers.len(), 2);
        let mut changed = peer(2);
        changed.scope = Scope::Own;
        file.put(&changed).unwrap();
        assert_eq!(file.peer(&changed.did).unwrap().scope, Scope::Own);
        assert!(file.remove(&changed.did).unwrap());
        assert!(!file.remove(&changed.did).unwrap());
        assert_eq!(file.roster().peers, [peer(1)]);
        assert!(!file.poll());
    }

    #[test]
    fn a_did_stands_as_the_file_says_and_a_stranger_as_nobody() {
        let (_dir, mut file) = file();
        let standings = file.standings();
        file.put(&peer(1)).unwrap();
        let friend = peer(2).did;
        let text = std::fs::read_to_string(&file.path).unwrap();
        let more = format!("[[friend]]\ndid = \"{friend}\"\nrights = [\"relay\"]\nfriend = true\n");
        std::fs::write(&file.path, text + &more).unwrap();
        assert!(file.poll());
        let stands = |n| standings.of(&peer(n).did);
        assert!(stands(1).known && !stands(1).friend && stands(1).rights.is_empty());
        assert!(stands(2).known && stands(2).friend && stands(2).rights == ["relay"]);
        assert_eq!(stands(3), Standing::default());
        file.remove(&peer(1).did).unwrap();
        assert!(!stands(1).known);
    }

    #[test]
    fn a_broken_edit_leaves_the_last_good_roster_and_is_named() {
        let (_dir, mut file) = file();
        file.put(&peer(1)).unwrap();
        for broken in [
            "[[peer]]\ndid = \"did:hn:alice\"\n",
            "[[peer]\n",
            "[[peer]]\nurll = \"x\"\n",
        ] {
            std::fs::write(&file.path, broken).unwrap();
            file.stamp = None;
            assert!(!file.poll());
            assert_eq!(file.roster().peers, [peer(1)]);
            assert!(file.error().unwrap().contains("line"), "{:?}", file.error());
            assert!(file.put(&peer(2)).is_err());
            assert_eq!(std::fs::read_to_string(&file.path).unwrap(), broken);
        }
    }
}
