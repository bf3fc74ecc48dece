//! The supervised actors of a node: thin shells around `hn_protocol`, and what they stand on.
//!
//! ```text
//!   CLI ──socket──┐   other nodes ──HTTP──┐
//!                 ▼                       ▼
//!            ┌─────────────── gateway ───────────────┐        reads: catalog, artifacts (any thread)
//!            │ PublishEntries   Refresh, PutPeer     │ FetchArtifact
//!            ▼                  ▼                    ▼
//!     index_federator ◄── federation_sync ──► artifact_mirror
//!            │   AppendPage     │   MirrorLog        │
//!            ▼                  ▼                    ▼
//!        vault: journals,    fetch: HTTP          vault: artifacts
//!        fsynced, the truth
//!            └──────────► store: sled, their index ◄─┘
//! ```
//!
//! [`introducer`] stands beside them: it takes `Introduce` from the gateway, and asks other nodes by fetch.
//! [`index_federator`] is the only writer of logs; readers use [`catalog`]. Every actor is started, watched and
//! restarted by [`supervise`]; all wiring stands in the binary's `node.rs`.

pub mod artifact_mirror;
pub mod artifacts;
pub mod catalog;
pub mod clock;
pub mod failpoint;
pub mod federation_sync;
pub mod fetch;
pub mod forks;
pub mod gateway;
pub mod home;
pub mod hosted;
pub mod index_federator;
pub mod introducer;
pub mod invites;
mod kept;
pub mod keyring;
pub mod log_recovery;
pub mod logs;
pub mod metrics;
pub mod own_url;
pub mod place;
pub mod policy;
pub mod prove;
pub mod pull;
pub mod push;
pub mod revocations;
pub mod roster;
pub mod settings;
pub mod store;
pub mod supervise;
pub mod tree;
pub mod vault;
pub mod watch;
