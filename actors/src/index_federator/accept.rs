//! An operator decides which of the two logs of a forked publisher counts (design 4).
//!
//! The decision is durable before anything else happens. If the log held here is the other one, its journal is set aside,
//! not deleted, and the accepted log is followed from its beginning.

use std::collections::BTreeSet;

use actix::{Handler, Message};
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::log::{History, LogState};
use serde::Serialize;
use tracing::{info, warn};

use super::{FederateError, IndexFederator, strike};
use crate::forks::{Accepted, Fork};
use crate::logs::LogError;

/// Accepts the log that the document `head` belongs to: one of the two of the evidence, or the head held here.
#[derive(Message)]
#[rtype(result = "Result<HeadAccepted, AcceptError>")]
pub struct AcceptHead {
    /// Whose log.
    pub publisher: Did,
    /// A document of the log that counts.
    pub head: Digest,
}

/// The log held here is shorter than what was accepted and turned out to be the other one: sets it aside. Answers
/// whether it did.
#[derive(Message)]
#[rtype(result = "Result<bool, FederateError>")]
pub struct BeginAnew {
    /// Whose log.
    pub publisher: Did,
}

/// What was accepted.
#[derive(Debug, Clone, Serialize)]
pub struct HeadAccepted {
    /// Whose log.
    pub did: Did,
    /// What the operator named.
    pub head: Digest,
    /// The size that it speaks for.
    pub log_size: u64,
    /// The root there.
    pub log_root: Digest,
    /// `kept`: the log held here is the accepted one; `set_aside`: it is the other one, and the accepted one is followed anew.
    pub held_log: &'static str,
}

/// Why nothing was accepted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AcceptError {
    /// Nothing contradicts the log.
    #[error("no fork of the log of {0} is known here")]
    NotForked(Did),
    /// A digest of neither log.
    #[error("{head} is of neither log of {publisher}; known are {}", .known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    UnknownHead {
        /// Whose.
        publisher: Did,
        /// What was named.
        head: Digest,
        /// What may be named.
        known: Vec<Digest>,
    },
    /// The disk or the index.
    #[error(transparent)]
    Federate(#[from] FederateError),
}

impl IndexFederator {
    fn accept(&mut self, message: &AcceptHead) -> Result<HeadAccepted, AcceptError> {
        let (publisher, head) = (message.publisher, message.head);
        let forks = self.options.forks.clone();
        let mut known = forks.list();
        known.retain(|fork| fork.publisher == publisher);
        let names = |fork: &&Fork| fork.sides.iter().any(|side| side.digest == head);
        let open = known.iter().find(|fork| !fork.accepted);
        let named = known.iter().find(names);
        let Some(fork) = named.or(open).or(known.last()) else {
            return Err(AcceptError::NotForked(publisher));
        };
        let state = self.held.get(&publisher).map(|log| log.state().clone());
        let accepted = self.choose(fork, state.as_ref(), head)?;
        forks
            .accept(&publisher, accepted.clone())
            .map_err(|error| FederateError::from(LogError::from(error)))?;
        info!(%publisher, %head, size = accepted.log_size, "a head of a forked log was accepted");
        let kept = !self.set_aside_if_refused(publisher, true)?;
        Ok(HeadAccepted {
            did: publisher,
            head,
            log_size: accepted.log_size,
            log_root: accepted.log_root,
            held_log: if kept { "kept" } else { "set_aside" },
        })
    }

    /// What `head` stands for: the log as held, whatever its size by now, or the other document of the evidence.
    fn choose(
        &self,
        fork: &Fork,
        state: Option<&LogState>,
        head: Digest,
    ) -> Result<Accepted, AcceptError> {
        let publisher = fork.publisher;
        let held = |digest: &Digest| {
            state.is_some_and(|state| {
                let history = self.shelf.catalog.history(publisher, state.epoch);
                let slice = fork.sides.iter().find(|side| side.digest == *digest);
                let slice = slice
                    .and_then(|side| side.log_size.checked_sub(1))
                    .and_then(|last| history.slice_holding(last));
                slice.is_some_and(|slice| slice.digest == *digest)
                    || state.head == Some(*digest)
                    || history.presence(digest).is_some()
            })
        };
        let (epoch, log_size, log_root) = match state.filter(|_| held(&head)) {
            Some(state) => (state.epoch, state.size(), state.root()),
            None => match fork.sides.iter().find(|side| side.digest == head) {
                Some(side) => (fork.epoch, side.log_size, side.log_root),
                None => {
                    let sides = fork.sides.iter().map(|side| side.digest);
                    let known: BTreeSet<Digest> =
                        sides.chain(state.and_then(|state| state.head)).collect();
                    let known = known.into_iter().collect();
                    return Err(AcceptError::UnknownHead {
                        publisher,
                        head,
                        known,
                    });
                }
            },
        };
        Ok(Accepted {
            epoch,
            head,
            log_size,
            log_root,
            at: self.options.clock.now(),
            settles: Vec::new(),
        })
    }

    /// Sets the journal of `publisher` aside when it holds another log than the accepted one; `deciding` also when it has
    /// not come so far yet.
    /// Errors: disk, index.
    pub(super) fn set_aside_if_refused(
        &mut self,
        publisher: Did,
        deciding: bool,
    ) -> Result<bool, FederateError> {
        let Some(accepted) = self.options.forks.accepted(&publisher) else {
            return Ok(false);
        };
        if self.shelf.catalog.is_revoked(&publisher) {
            // The other log would never come: what is held is all the history there will be.
            return Ok(false);
        }
        let Some(log) = self.held.get(&publisher) else {
            return Ok(false);
        };
        let state = log.state();
        if state.epoch != accepted.epoch || state.size() == 0 {
            return Ok(false);
        }
        let history = self.shelf.catalog.history(publisher, state.epoch);
        let pruned = accepted.log_size < state.base;
        let agrees = history.root_at(accepted.log_size) == Some(accepted.log_root);
        // A log that has not come so far yet may be the right one; only who decides now begins it anew.
        let on_its_way = state.size() < accepted.log_size && !deciding;
        if agrees || pruned || on_its_way {
            return Ok(false);
        }
        warn!(%publisher, size = state.size(), "the log held is not the accepted one; its journal is set aside");
        self.held.remove(&publisher);
        let now = self.options.clock.now();
        self.shelf
            .set_aside(&publisher, now)
            .map_err(FederateError::from)?;
        Ok(true)
    }
}

impl Handler<AcceptHead> for IndexFederator {
    type Result = Result<HeadAccepted, AcceptError>;

    fn handle(&mut self, message: AcceptHead, _: &mut Self::Context) -> Self::Result {
        strike();
        self.accept(&message)
    }
}

impl Handler<BeginAnew> for IndexFederator {
    type Result = Result<bool, FederateError>;

    fn handle(&mut self, message: BeginAnew, _: &mut Self::Context) -> Self::Result {
        strike();
        self.set_aside_if_refused(message.publisher, true)
    }
}
