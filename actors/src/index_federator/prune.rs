//! When followed logs are pruned: after what was appended to them, and by the clock, since entries also grow old.

use std::time::Duration;

use actix::{AsyncContext, Context};
use hn_protocol::did::Did;
use hn_protocol::log::LogState;
use tracing::{info, warn};

use super::{AppendPage, IndexFederator};
use crate::logs::{LogError, Place};

/// How soon after a start the logs are looked at: not before the node is ready.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// How often they are looked at while nothing is appended.
const INTERVAL: Duration = Duration::from_secs(60);

/// A page that was judged before the log was pruned is as good afterwards: what it leans on was held then.
pub(super) fn rebase(held: &LogState, message: &mut AppendPage) {
    let judged = LogState {
        base: held.base,
        ..message.base.clone()
    };
    if judged == *held && message.page.state.epoch == held.epoch {
        message.page.state.base = message.page.state.base.max(held.base);
        message.base = judged;
    }
}

impl IndexFederator {
    /// From now on every followed log is looked at from time to time.
    pub(super) fn watch_age(&mut self, ctx: &mut Context<Self>) {
        ctx.run_later(FIRST_LOOK, |this, ctx| {
            this.tidy_all();
            if this.options.prune.is_set() {
                ctx.run_interval(INTERVAL, |this, _| this.tidy_all());
            }
        });
    }

    fn tidy_all(&mut self) {
        let publishers: Vec<Did> = self.held.keys().copied().collect();
        for publisher in publishers {
            self.prune(publisher);
            self.compact(publisher);
        }
    }

    /// Prunes the log of `publisher` if it is due. What goes wrong is tried again with the next page or by the clock.
    pub(super) fn prune(&mut self, publisher: Did) {
        let (policy, now) = (self.options.prune, self.options.clock.now());
        // A log that stands still keeps what its evidence is about.
        if self.options.forks.of(&publisher).is_some() {
            return;
        }
        let Some(log) = self.held.get_mut(&publisher) else {
            return;
        };
        match self.shelf.prune(log, &policy, now) {
            Ok(None) => {}
            Ok(Some(pruned)) => {
                let (entries, bytes, base) = (pruned.entries, pruned.bytes, pruned.base);
                self.options.metrics.pruned(entries, bytes);
                info!(log = %publisher, entries, bytes, base, "federation.prune");
                self.options.sweeper.sweep(publisher);
            }
            Err(error) => self.read_back(publisher, &error),
        }
    }

    fn compact(&mut self, publisher: Did) {
        let Some(log) = self.held.get_mut(&publisher) else {
            return;
        };
        if let Err(error) = self.shelf.compact(log) {
            self.read_back(publisher, &error);
        }
    }

    /// Journal, index and memory may disagree: opening the log finishes or undoes what was begun.
    fn read_back(&mut self, publisher: Did, error: &LogError) {
        warn!(%error, log = %publisher, "a log was not pruned; it is read back");
        self.held.remove(&publisher);
        match self.shelf.open(publisher, Place::Cached) {
            Ok((log, _)) => {
                self.held.insert(publisher, log);
            }
            Err(error) => self.cannot_open(publisher, &error),
        }
    }
}
