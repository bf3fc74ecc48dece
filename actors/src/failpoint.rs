//! Named points at which a test makes the node crash, fail or panic (design 11).
//!
//! `HN_FAILPOINTS="name=action;name=action"`, where an action is `crash`, `error` or `panic`, optionally with `@N`
//! (at the Nth hit only; 1 when it is left out) or `@N+` (from the Nth on). Refused by the federation profile.
//! A point that nobody armed costs one relaxed load.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The environment variable that arms points, and, even empty, allows arming them over the socket.
pub const VARIABLE: &str = "HN_FAILPOINTS";

/// Every point there is, in the order in which a write meets them.
pub const NAMES: &[&str] = &[
    "publish.stage.before_sync",
    "publish.stage.after_sync",
    "publish.journal.before_write",
    "publish.journal.torn_write",
    "publish.journal.after_write",
    "publish.journal.after_fsync",
    "publish.store.after_apply",
    "sync.page.before_append",
    "sync.journal.before_write",
    "sync.journal.torn_write",
    "sync.journal.after_write",
    "sync.journal.after_fsync",
    "sync.store.after_apply",
    "prune.journal.after_write",
    "prune.journal.after_intent",
    "prune.journal.after_rename",
    "prune.store.after_apply",
    "prune.journal.after_remove",
    "recovery.page.before_append",
    "recovery.page.after_append",
    "recovery.place.before_write",
    "recovery.place.after_write",
    "mirror.artifact.before_rename",
    "mirror.artifact.after_rename",
    "mirror.bundle.before_sync",
    "mirror.bundle.after_sync",
    "mirror.bundle.before_settle",
    "roster.before_rename",
    "policy.before_rename",
    "policy.after_rename",
    "revocation.before_write",
    "revocation.after_write",
    "invites.before_rename",
    "introductions.before_rename",
    "actor.index_federator",
    "actor.federation_sync",
    "actor.artifact_mirror",
    "actor.log_recovery",
    "actor.introducer",
    "actor.store",
    "actor.gateway",
    "actor.watch",
];

/// Why a failpoint could not be armed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FailpointError {
    /// No point has this name.
    #[error("there is no failpoint {0:?}; there are: {names}", names = NAMES.join(", "))]
    UnknownName(String),
    /// Not an action.
    #[error("{0:?} is no action; there are: crash, error, panic, each with @N or @N+, and off")]
    Action(String),
    /// Not `name=action`.
    #[error("{VARIABLE} takes name=action;name=action, not {0:?}")]
    Form(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Crash,
    Error,
    Panic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Armed {
    action: Action,
    /// The hit, counted from 1, at which it strikes.
    at: u64,
    /// Whether it also strikes at every later hit.
    onwards: bool,
    hits: u64,
}

static ENABLED: AtomicBool = AtomicBool::new(false);
static ANY_ARMED: AtomicBool = AtomicBool::new(false);
static POINTS: Mutex<BTreeMap<&'static str, Armed>> = Mutex::new(BTreeMap::new());

fn points() -> MutexGuard<'static, BTreeMap<&'static str, Armed>> {
    POINTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Arms what `HN_FAILPOINTS` asks for. Answers whether the variable is set at all, be it empty.
pub fn init_from_env() -> Result<bool, FailpointError> {
    let Some(text) = std::env::var_os(VARIABLE) else {
        return Ok(false);
    };
    let text = text.to_string_lossy();
    ENABLED.store(true, Ordering::Relaxed);
    for pair in text.split(';').map(str::trim).filter(|p| !p.is_empty()) {
        let (name, action) = pair
            .split_once('=')
            .ok_or_else(|| FailpointError::Form(pair.to_owned()))?;
        set(name.trim(), action.trim())?;
    }
    Ok(true)
}

/// Whether the environment allows failpoints, so that `/admin/failpoints` exists.
#[must_use]
pub fn enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// Arms the point `name` with `action` (`off` disarms it) and counts its hits from zero again.
pub fn set(name: &str, action: &str) -> Result<(), FailpointError> {
    let name = NAMES
        .iter()
        .find(|known| **known == name)
        .ok_or_else(|| FailpointError::UnknownName(name.to_owned()))?;
    let armed = parse_action(action)?;
    let mut points = points();
    match armed {
        Some(armed) => points.insert(name, armed),
        None => points.remove(name),
    };
    ANY_ARMED.store(!points.is_empty(), Ordering::Relaxed);
    Ok(())
}

fn parse_action(text: &str) -> Result<Option<Armed>, FailpointError> {
    let refuse = || FailpointError::Action(text.to_owned());
    let (action, when) = text.split_once('@').unwrap_or((text, "1"));
    let action = match action {
        "off" => return Ok(None),
        "crash" => Action::Crash,
        "error" => Action::Error,
        "panic" => Action::Panic,
        _ => return Err(refuse()),
    };
    let (at, onwards) = match when.strip_suffix('+') {
        Some(at) => (at, true),
        None => (when, false),
    };
    let at = at.parse().ok().filter(|n| *n > 0).ok_or_else(refuse)?;
    Ok(Some(Armed {
        action,
        at,
        onwards,
        hits: 0,
    }))
}

/// Passes the point `name`: does nothing, fails as a full disk would, panics, or ends the process.
pub fn hit(name: &str) -> io::Result<()> {
    match hit_torn(name) {
        None => Ok(()),
        Some(fault) => Err(fault.strike()),
    }
}

/// [`hit`] for the point `<scope>.<point>`; the name is put together only where something is armed.
pub fn hit_in(scope: &str, point: &str) -> io::Result<()> {
    match hit_torn_in(scope, point) {
        None => Ok(()),
        Some(fault) => Err(fault.strike()),
    }
}

/// Passes the point `name` where the caller has to do half of its work before the fault strikes.
#[must_use]
pub fn hit_torn(name: &str) -> Option<Fault> {
    if !ANY_ARMED.load(Ordering::Relaxed) {
        return None;
    }
    let mut points = points();
    let (name, armed) = points
        .iter_mut()
        .find(|(known, _)| **known == name)
        .map(|(known, armed)| (*known, armed))?;
    armed.hits += 1;
    let strikes = armed.hits == armed.at || (armed.onwards && armed.hits > armed.at);
    strikes.then_some(Fault {
        name,
        action: armed.action,
    })
}

/// [`hit_torn`] for the point `<scope>.<point>`.
#[must_use]
pub fn hit_torn_in(scope: &str, point: &str) -> Option<Fault> {
    if !ANY_ARMED.load(Ordering::Relaxed) {
        return None;
    }
    hit_torn(&format!("{scope}.{point}"))
}

/// A fault whose time has come.
#[derive(Debug)]
#[must_use = "a fault does nothing until it strikes"]
pub struct Fault {
    name: &'static str,
    action: Action,
}

impl Fault {
    /// Ends the process, panics, or returns the error of a full disk.
    pub fn strike(self) -> io::Error {
        tracing::warn!(failpoint = self.name, action = ?self.action, "failpoint strikes");
        match self.action {
            Action::Crash => std::process::abort(),
            Action::Panic => panic!("failpoint {}", self.name),
            Action::Error => io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Points are global: each test here uses one that no other test arms.

    #[test]
    fn strikes_once_at_the_first_hit_when_nothing_else_is_said() {
        set("roster.before_rename", "error").unwrap();
        let error = hit("roster.before_rename").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(hit("roster.before_rename").is_ok());
        set("roster.before_rename", "off").unwrap();
    }

    #[test]
    fn counts_hits_and_goes_on_with_a_plus() {
        set("sync.store.after_apply", "error@2").unwrap();
        let seen: Vec<bool> = (0..4)
            .map(|_| hit_in("sync", "store.after_apply").is_err())
            .collect();
        assert_eq!(seen, [false, true, false, false]);
        set("sync.store.after_apply", "error@2+").unwrap();
        let seen: Vec<bool> = (0..4)
            .map(|_| hit("sync.store.after_apply").is_err())
            .collect();
        assert_eq!(seen, [false, true, true, true]);
        set("sync.store.after_apply", "off").unwrap();
        assert!(hit("sync.store.after_apply").is_ok());
    }

    #[test]
    fn panics_by_name_and_the_next_hit_is_served() {
        set("actor.gateway", "panic").unwrap();
        let panic = std::panic::catch_unwind(|| hit("actor.gateway")).unwrap_err();
        let text = panic.downcast_ref::<String>().unwrap();
        assert_eq!(text, "failpoint actor.gateway");
        assert!(hit("actor.gateway").is_ok());
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let unknown = set("publish.nothing", "crash").unwrap_err();
        assert!(unknown.to_string().contains("roster.before_rename"));
        for action in ["explode", "crash@0", "error@x", "panic@1-", ""] {
            assert!(
                matches!(
                    set("actor.federation_sync", action),
                    Err(FailpointError::Action(_))
                ),
                "{action}"
            );
        }
    }
}
