//! Faults as data, so that a test can loop over them and a seed can draw them.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What can be done to a running node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process ends at the named point, as by a power cut.
    Crash(&'static str),
    /// The operation at the named point fails as on a full disk.
    DiskFull(&'static str),
    /// The named actor panics at its next message.
    Panic(&'static str),
}

impl Fault {
    /// The failpoint's name.
    pub fn point(self) -> String {
        match self {
            Self::Crash(point) | Self::DiskFull(point) => point.to_owned(),
            Self::Panic(actor) => format!("actor.{actor}"),
        }
    }

    /// What `HN_FAILPOINTS` and `/admin/failpoints` call it.
    pub fn action(self) -> &'static str {
        match self {
            Self::Crash(_) => "crash",
            Self::DiskFull(_) => "error",
            Self::Panic(_) => "panic",
        }
    }
}

/// Where publishing can be cut off, in the order in which it passes.
pub const PUBLISH: [&str; 7] = [
    "publish.stage.before_sync",
    "publish.stage.after_sync",
    "publish.journal.before_write",
    "publish.journal.torn_write",
    "publish.journal.after_write",
    "publish.journal.after_fsync",
    "publish.store.after_apply",
];

/// Where following and mirroring can be cut off, in the order in which they pass.
pub const SYNC: [&str; 8] = [
    "sync.page.before_append",
    "sync.journal.before_write",
    "sync.journal.torn_write",
    "sync.journal.after_write",
    "sync.journal.after_fsync",
    "sync.store.after_apply",
    "mirror.artifact.before_rename",
    "mirror.artifact.after_rename",
];

/// The actors of a node, as `hn status` names them.
pub const ACTORS: [&str; 5] = [
    "index_federator",
    "federation_sync",
    "artifact_mirror",
    "store",
    "gateway",
];

/// Chance that can be had again: `HN_SEED=…`, else a new seed. A failing test shows it in its output.
pub struct Dice {
    random: StdRng,
}

impl Dice {
    /// From `HN_SEED`, or fresh.
    pub fn from_env() -> Self {
        let seed = match std::env::var("HN_SEED") {
            Ok(text) => text.parse().expect("HN_SEED is a number"),
            Err(_) => rand::random(),
        };
        println!("HN_SEED={seed}");
        Self {
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// A number in `0..below`.
    pub fn below(&mut self, below: u64) -> u64 {
        self.random.random_range(0..below)
    }
}
