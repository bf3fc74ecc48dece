//! The policy in force: `policy/policy@1.json`, signed by the vault, read by gates from any thread (design 7, 11).
//!
//! Fails closed: a policy that is missing though there was one, that is not the vault's own, older than the one accepted
//! last, or that cannot be read, lets nobody pass, and `hn status` says why. `policy/accepted.json` remembers the highest
//! sequence that was accepted. A change is written to the policy first and to that second, so that a crash in between
//! leaves a policy that is newer than what is remembered, which is in order.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use hn_protocol::did::{Did, Identity};
use hn_protocol::digest::Digest;
use hn_protocol::document::{MAX_POLICY_BYTES, PolicyDocument, PolicyGate};
use hn_protocol::policy::{CallerFacts, Decision, Facts, Gate, Mode, OwnerFacts, Policy};
use hn_protocol::sign::{DocumentError, Signed};
use hn_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::{error, info, warn};

use crate::clock::Clock;
use crate::failpoint;
use crate::home::Home;
use crate::roster::Standings;
use crate::settings::Profile;
use crate::vault;

/// Why a policy is not changed.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The change makes no policy: a condition, most likely.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The disk.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
}

/// `policy/accepted.json`, by DID: a home may have several identities, one of which serves.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AcceptedFile {
    accepted: BTreeMap<Did, Accepted>,
}

/// The newest policy that was in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Accepted {
    sequence: u64,
    digest: Digest,
}

/// What gates ask.
enum InForce {
    Policy(Policy),
    /// Nobody passes, and why.
    Closed(String),
}

/// How the policy is, for people.
#[derive(Debug, Clone, Serialize)]
pub struct PolicyStanding {
    /// `ok` or `closed`.
    pub state: &'static str,
    /// Why it is closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The sequence in force.
    pub sequence: Option<u64>,
    /// Its digest.
    pub digest: Option<Digest>,
}

/// The policy of one vault. Cloning shares.
#[derive(Clone)]
pub struct PolicyShelf {
    inner: Arc<Inner>,
}

struct Inner {
    home: Home,
    identity: Identity,
    clock: Clock,
    in_force: RwLock<Arc<InForce>>,
    /// One change at a time.
    changing: Mutex<()>,
}

impl PolicyShelf {
    /// The policy of `home`. A home that never had one gets the defaults, signed; where the disk takes no file they hold all the
    /// same. Errors: the disk, where policies of several identities are exchanged; whatever else is wrong closes the gates.
    pub fn open(
        home: Home,
        identity: Identity,
        clock: Clock,
        profile: Profile,
        own: &[Did],
    ) -> Result<Self, PolicyError> {
        let shelf = Self {
            inner: Arc::new(Inner {
                home,
                identity,
                clock,
                in_force: RwLock::new(Arc::new(InForce::Closed("not read yet".to_owned()))),
                changing: Mutex::default(),
            }),
        };
        shelf.make_way(own)?;
        shelf.load()?;
        if profile == Profile::Federation {
            shelf.write_templates()?;
        }
        Ok(shelf)
    }

    /// Reads the file again: a person, or a machine that holds the key, may have put a newer one there.
    pub fn reload(&self) {
        if let Err(error) = self.load() {
            self.close(error.to_string());
        }
    }

    /// What `gate` says to `facts`.
    #[must_use]
    pub fn decide(&self, gate: Gate, facts: &Facts) -> Decision {
        match &*self.in_force() {
            InForce::Policy(policy) => policy.decide(gate, facts),
            InForce::Closed(why) => Decision {
                gate,
                mode: Mode::Deny,
                reason: format!("no policy is in force: {why}"),
            },
        }
    }

    /// Calls `look` with the policy in force; `None` when there is none.
    pub fn with<T>(&self, look: impl FnOnce(&Policy) -> T) -> Option<T> {
        match &*self.in_force() {
            InForce::Policy(policy) => Some(look(policy)),
            InForce::Closed(_) => None,
        }
    }

    /// How it is.
    #[must_use]
    pub fn standing(&self) -> PolicyStanding {
        match &*self.in_force() {
            InForce::Policy(policy) => PolicyStanding {
                state: "ok",
                reason: None,
                sequence: Some(policy.document().sequence),
                digest: Some(policy.document().digest()),
            },
            InForce::Closed(why) => PolicyStanding {
                state: "closed",
                reason: Some(why.clone()),
                sequence: None,
                digest: None,
            },
        }
    }

    /// Sets one gate, signs, and has it in force and durable when it returns. Where none is in force it starts from the
    /// defaults. Errors: the gate is none, or the disk; then the old policy stays.
    pub fn set_gate(&self, gate: Gate, rule: PolicyGate) -> Result<(), PolicyError> {
        let _turn = self
            .inner
            .changing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (mut gates, limits, last) = self
            .with(|policy| {
                let document = policy.document();
                (
                    document.gates.clone(),
                    document.limits.clone(),
                    document.sequence,
                )
            })
            .unwrap_or_else(|| (Gate::defaults(), BTreeMap::new(), 0));
        gates.insert(gate.name().to_owned(), rule);
        let accepted = self.accepted().unwrap_or_default();
        let accepted = accepted
            .accepted
            .get(&self.did())
            .map_or(0, |last| last.sequence);
        self.sign(gates, limits, last.max(accepted))
    }

    fn did(&self) -> Did {
        self.inner.identity.did()
    }

    fn in_force(&self) -> Arc<InForce> {
        let in_force = self
            .inner
            .in_force
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&in_force)
    }

    fn show(&self, now: InForce) {
        *self
            .inner
            .in_force
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(now);
    }

    fn close(&self, why: String) {
        error!(reason = why, "no policy is in force: every gate denies");
        self.show(InForce::Closed(why));
    }

    fn path(&self) -> PathBuf {
        self.inner.home.policy_file()
    }

    fn load(&self) -> Result<(), PolicyError> {
        let path = self.path();
        let accepted = match self.accepted() {
            Ok(accepted) => accepted,
            Err(error) => {
                self.close(format!("{}: {error}", self.accepted_path().display()));
                return Ok(());
            }
        };
        let last = accepted.accepted.get(&self.did()).copied();
        let bytes = match read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound && last.is_none() => {
                info!("a policy with the defaults is signed");
                return match self.sign(Gate::defaults(), BTreeMap::new(), 0) {
                    // A full disk keeps nobody from reading: nothing was decided here that could be forgotten.
                    Err(PolicyError::Io { error, .. }) => {
                        warn!(%error, "the first policy could not be kept; the defaults hold until it can");
                        self.show_defaults()
                    }
                    signed => signed,
                };
            }
            Err(error) => {
                self.close(format!("{}: {error}", path.display()));
                return Ok(());
            }
        };
        match self.judge(bytes, last) {
            Ok(policy) => {
                let (sequence, digest) = (policy.document().sequence, policy.document().digest());
                if last != Some(Accepted { sequence, digest }) {
                    self.remember(accepted, Accepted { sequence, digest })?;
                }
                self.show(InForce::Policy(policy));
            }
            Err(why) => self.close(format!("{}: {why}", path.display())),
        }
        Ok(())
    }

    /// Whether these bytes are the policy to follow. Errors: why not.
    fn judge(&self, bytes: Bytes, last: Option<Accepted>) -> Result<Policy, String> {
        let document =
            Signed::<PolicyDocument>::verify(bytes).map_err(|error| error.to_string())?;
        if document.did != self.did() {
            return Err(format!(
                "it is the policy of {}, not of this vault",
                document.did
            ));
        }
        if Timestamp(document.sequence).is_ahead_of(self.inner.clock.now()) {
            return Err("its sequence lies more than 5 minutes ahead of the clock".to_owned());
        }
        if let Some(last) = last {
            if document.sequence < last.sequence {
                let (got, last) = (document.sequence, last.sequence);
                return Err(format!(
                    "its sequence {got} is below {last}, which was in force"
                ));
            }
            if document.sequence == last.sequence && document.digest() != last.digest {
                return Err("it has the sequence of another one that was in force".to_owned());
            }
        }
        Policy::new(document).map_err(|error| error.to_string())
    }

    /// Signs what follows `last`, and has it in force once it is durable.
    fn sign(
        &self,
        gates: BTreeMap<String, PolicyGate>,
        limits: BTreeMap<String, u64>,
        last: u64,
    ) -> Result<(), PolicyError> {
        let document = PolicyDocument {
            did: self.did(),
            sequence: self.inner.clock.now().0.max(last + 1),
            gates,
            limits,
        };
        let document = Signed::create(&document, &self.inner.identity)?;
        let newest = Accepted {
            sequence: document.sequence,
            digest: document.digest(),
        };
        let path = self.path();
        let io = |error| PolicyError::Io {
            path: path.clone(),
            error,
        };
        vault::create_dirs(&self.inner.home.policy_dir()).map_err(io)?;
        let before_rename = || failpoint::hit("policy.before_rename");
        vault::write_atomic_with(&path, document.bytes(), vault::FILE_MODE, before_rename)
            .map_err(io)?;
        failpoint::hit("policy.after_rename").map_err(io)?;
        // What cannot be read of earlier ones is not worth keeping: this one is newer than all that were known.
        let accepted = self.accepted().unwrap_or_default();
        self.remember(accepted, newest)?;
        let policy = Policy::new(document).map_err(|e| DocumentError::Malformed(e.to_string()))?;
        self.show(InForce::Policy(policy));
        Ok(())
    }

    /// The defaults, signed in memory alone.
    fn show_defaults(&self) -> Result<(), PolicyError> {
        let document = PolicyDocument {
            did: self.did(),
            sequence: self.inner.clock.now().0,
            gates: Gate::defaults(),
            limits: BTreeMap::new(),
        };
        let document = Signed::create(&document, &self.inner.identity)?;
        let policy = Policy::new(document).map_err(|e| DocumentError::Malformed(e.to_string()))?;
        self.show(InForce::Policy(policy));
        Ok(())
    }

    fn accepted_path(&self) -> PathBuf {
        self.inner.home.policy_dir().join("accepted.json")
    }

    fn accepted(&self) -> io::Result<AcceptedFile> {
        match read(&self.accepted_path()) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(AcceptedFile::default()),
            Err(error) => Err(error),
        }
    }

    fn remember(&self, mut file: AcceptedFile, newest: Accepted) -> Result<(), PolicyError> {
        let path = self.accepted_path();
        file.accepted.insert(self.did(), newest);
        let text = serde_json::to_vec_pretty(&file).map_err(io::Error::other);
        text.and_then(|text| vault::write_atomic(&path, &text, vault::FILE_MODE))
            .map_err(|error| PolicyError::Io { path, error })
    }

    /// Another identity of this home served before: its policy is put aside, and ours taken back where it was.
    fn make_way(&self, own: &[Did]) -> Result<(), PolicyError> {
        let path = self.path();
        let io = |error| PolicyError::Io {
            path: path.clone(),
            error,
        };
        let aside = |did: &Did| {
            self.inner
                .home
                .policy_dir()
                .join(format!("policy@1.{did}.json"))
        };
        let there = read(&path)
            .ok()
            .and_then(|bytes| Signed::<PolicyDocument>::verify(bytes).ok());
        let other = there
            .map(|policy| policy.did)
            .filter(|did| *did != self.did());
        if let Some(other) = other.filter(|other| own.contains(other)) {
            fs::rename(&path, aside(&other)).map_err(io)?;
            info!(%other, "the policy of the identity that served before is put aside");
        }
        let ours = aside(&self.did());
        if !path.exists() && ours.exists() {
            fs::rename(&ours, &path).map_err(io)?;
            vault::sync_dir(&self.inner.home.policy_dir()).map_err(io)?;
        }
        Ok(())
    }

    /// What an operator may set each gate to, to look at and to copy from: never read.
    fn write_templates(&self) -> Result<(), PolicyError> {
        let folder = self.inner.home.policy_dir().join("templates");
        for gate in Gate::ALL {
            let path = folder.join(format!("{gate}.json"));
            if path.exists() {
                continue;
            }
            let rule = gate.template();
            let when = rule.when.as_deref().map(|when| format!(" --when '{when}'"));
            let command = format!(
                "hn policy gate set {gate} --mode {}{}",
                rule.mode,
                when.unwrap_or_default()
            );
            let template = json!({"gate": gate.name(), "mode": rule.mode, "when": rule.when, "command": command});
            let written = serde_json::to_vec_pretty(&template)
                .map_err(io::Error::other)
                .and_then(|text| {
                    vault::create_dirs(&folder)?;
                    vault::write_atomic(&path, &text, vault::FILE_MODE)
                });
            if let Err(error) = written {
                // Nothing depends on them.
                warn!(path = %path.display(), %error, "a template was not written");
            }
        }
        Ok(())
    }
}

/// What gates know of who asks: the caller of a verified signature, the roster, the time, and what it has here.
#[must_use]
pub fn facts(
    caller: Option<Did>,
    standings: &Standings,
    owner_bytes: Option<u64>,
    now: Timestamp,
) -> Facts {
    let caller = caller.map(|did| {
        let standing = standings.of(&did);
        CallerFacts {
            did,
            known: standing.known,
            friend: standing.friend,
            rights: standing.rights,
        }
    });
    Facts {
        owner: owner_bytes
            .filter(|_| caller.is_some())
            .map(|bytes| OwnerFacts { bytes }),
        caller,
        now: Some(now),
        ..Facts::default()
    }
}

/// A small file, whole. Errors: larger than a policy can be, the disk.
fn read(path: &std::path::Path) -> io::Result<Bytes> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let most = MAX_POLICY_BYTES as u64 + 1;
    fs::File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
