//! Our own log while it may not be signed upon: the gate, and what recovery does to the log meanwhile.

use std::ffi::OsString;
use std::time::{Duration, Instant, SystemTime};

use actix::{Context, Handler, MessageResult};
use hn_protocol::log::{CommitRequest, LogState, PageContext, Source};
use hn_protocol::recovery::Extent;
use tracing::{info, warn};

use super::messages::{
    CheckOwnLog, Gate, GetOwnLog, MendOwnLog, OwnLog, OwnStanding, ResetOwnLog, SetGate,
};
use super::{AppendPage, Appended, FederateError, IndexFederator, strike};
use crate::failpoint;
use crate::logs::{Log, LogError};

/// A damaged journal that has not changed is read again so often: what failed may have been the disk.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// What it means that the own DID is revoked.
const REVOKED: &str = "this DID has ended: nothing is signed any more, what was published stays readable as history, and its revocation is shown where its presence was";

/// When a folder was looked at, and its files: name, length, time.
pub(super) type LookedAt = (Instant, Vec<(OsString, u64, Option<SystemTime>)>);

impl IndexFederator {
    /// Whether our own DID has ended: nothing is signed for it then, whatever the gate is.
    pub(super) fn is_revoked(&self) -> bool {
        let own = self.options.identity.did();
        self.shelf.catalog.is_revoked(&own)
    }

    /// Nothing is signed but through an open gate.
    pub(super) fn check_gate(&self) -> Result<(), FederateError> {
        if self.is_revoked() {
            return Err(FederateError::Revoked(self.options.identity.did()));
        }
        match &self.gate {
            Gate::Open => Ok(()),
            Gate::Asking => Err(FederateError::Recovering(
                "whoever holds this log is being asked".into(),
            )),
            Gate::Closed(reason) => Err(FederateError::Recovering(reason.clone())),
        }
    }

    fn set_gate(&mut self, gate: Gate, ctx: &mut Context<Self>) {
        let changed = self.gate != gate;
        self.gate = gate;
        self.show_gate();
        match &self.gate {
            Gate::Asking => {}
            Gate::Open if changed => {
                // What went wrong is in the log, and it is tried again.
                let _ = self.reissue(ctx);
                if !self.waiting.is_empty() {
                    self.commit(ctx);
                }
            }
            Gate::Open => {}
            Gate::Closed(reason) => {
                let error = FederateError::Recovering(reason.clone());
                self.refuse_waiting(&error);
            }
        }
    }

    pub(super) fn show_gate(&self) {
        let closed = matches!(self.gate, Gate::Closed(_));
        self.shelf.catalog.set_recovering(closed);
    }

    pub(super) fn refuse_waiting(&mut self, error: &FederateError) {
        for wait in std::mem::take(&mut self.waiting) {
            let _ = wait.reply.send(Err(error.clone()));
        }
    }

    /// Our own log grows by our own hand alone, but for what we signed once and lost: that comes back from its holders.
    pub(super) fn append_own(&mut self, message: AppendPage) -> Result<Appended, FederateError> {
        if !matches!(self.gate, Gate::Closed(_)) {
            return Ok(Appended::Overtaken);
        }
        failpoint::hit("recovery.page.before_append").map_err(LogError::from)?;
        if self.own.is_none() {
            self.open_own()?;
        }
        let log = self.own.as_mut().ok_or(FederateError::Restarting)?;
        let base = &message.base;
        let begins = base.epoch > log.state().epoch && log.state().next_epoch(base.epoch) == *base;
        if log.state() != base && !begins {
            return Ok(Appended::Overtaken);
        }
        let (page, now) = (message.page, self.options.clock.now());
        self.shelf.mend(log, now)?;
        if let Err(error) = self.shelf.append(log, &page.lines, page.state, now, None) {
            warn!(%error, "a page of the own log was not appended; the log is read back");
            self.open_own()?;
            return Err(error.into());
        }
        failpoint::hit("recovery.page.after_append").map_err(LogError::from)?;
        self.options.metrics.log_size(self.size());
        Ok(Appended::Taken)
    }

    fn size(&self) -> u64 {
        self.own.as_ref().map_or(0, |log| log.state().size())
    }

    /// The copy of our newest presence is as good as a holder's, once the log reaches what it binds.
    fn admit_copy(&mut self, reach: &Extent) -> Result<(), FederateError> {
        self.append_copy()?;
        let log = self.own.as_mut().ok_or(FederateError::Restarting)?;
        if Extent::from(log.state()).reaches(reach) {
            self.shelf.mend(log, self.options.clock.now())?;
        }
        Ok(())
    }

    fn append_copy(&mut self) -> Result<(), FederateError> {
        let Some((copy, log)) = self.copied_presence().zip(self.own.as_mut()) else {
            return Ok(());
        };
        let state = log.state().clone();
        if state
            .presence
            .is_some_and(|held| held.sequence >= copy.sequence)
        {
            return Ok(());
        }
        let now = self.options.clock.now();
        let context = PageContext {
            now,
            source: Source::Holder,
            reaches_head: true,
        };
        let history = self.shelf.catalog.history(state.publisher, state.epoch);
        match state.follow(&[copy.bytes().clone()], context, &history) {
            Ok(page) => Ok(self.shelf.append(log, &page.lines, page.state, now, None)?),
            // The log does not reach it yet, or is another one: then what it must reach keeps it closed.
            Err(error) => {
                info!(%error, "the copied presence is not one of the log as it is here");
                Ok(())
            }
        }
    }

    /// Whether a damaged journal is another one than when it was looked at last, or has not been looked at for long.
    fn is_worth_reading(&mut self) -> bool {
        let folder = self.shelf.home.log_dir(&self.options.alias);
        let mut files: Vec<(OsString, u64, Option<SystemTime>)> = Vec::new();
        for file in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if let Ok(meta) = file
                .metadata()
                .map(|meta| (meta.len(), meta.modified().ok()))
            {
                files.push((file.file_name(), meta.0, meta.1));
            }
        }
        files.sort_unstable();
        let now = Instant::now();
        let known = self.looked_at.as_ref();
        let same = known.is_some_and(|(at, seen)| *seen == files && now - *at < LOOK_AGAIN);
        if !same {
            self.looked_at = Some((now, files));
        }
        !same
    }

    /// How our own log stands; what could not be read when it was tried last is read again.
    fn standing(&mut self) -> OwnStanding {
        let mut trouble = None;
        let whole = self.own.as_ref().is_some_and(|log| log.damaged().is_none());
        if !whole
            && self.is_worth_reading()
            && let Err(error) = self.open_own()
        {
            trouble = Some(error.to_string());
        }
        if self.own.is_none() && trouble.is_none() {
            trouble = Some("it could not be read".to_owned());
        }
        let mut reach = self.own.as_ref().map(Log::reach).unwrap_or_default();
        if let Some(copy) = self.copied_presence() {
            reach.raise(Extent {
                epoch: copy.epoch,
                size: copy.log_size,
                sequence: copy.sequence,
            });
        }
        // A journal that only lacks its end needs nothing cut off.
        if matches!(self.gate, Gate::Closed(_))
            && self.own.as_ref().is_some_and(|log| !log.must_be_cut())
            && let Err(error) = self.admit_copy(&reach)
        {
            warn!(%error, "the copied presence was not appended");
        }
        let own = self.own.as_ref();
        OwnStanding {
            state: own.map_or_else(
                || LogState::empty(self.options.identity.did(), 0),
                |log| log.state().clone(),
            ),
            damaged: trouble.or_else(|| own.and_then(Log::damaged).map(str::to_owned)),
            reach,
        }
    }

    /// Cuts off what is damaged; sequences go on above every one that is known to have been used.
    fn mend(&mut self, above: u64) -> Result<(), FederateError> {
        if self.own.is_none() {
            self.open_own()?;
        }
        let copied = self.copied_presence().map_or(0, |copy| copy.sequence);
        let log = self.own.as_mut().ok_or(FederateError::Restarting)?;
        self.shelf.mend(log, self.options.clock.now())?;
        self.append_copy()?;
        let log = self.own.as_mut().ok_or(FederateError::Restarting)?;
        self.shelf.sign_above(log, above.max(copied));
        // Whoever follows hears of it by a presence that is newer than every other.
        self.renew = true;
        Ok(())
    }

    /// Begins an epoch above `after` and ours. What the log was before stays, as history.
    fn reset(&mut self, after: u64, ctx: &mut Context<Self>) -> Result<(), FederateError> {
        if self.is_revoked() {
            return Err(FederateError::Revoked(self.options.identity.did()));
        }
        self.mend(0)?;
        let (now, facts) = (self.options.clock.now(), self.facts());
        let log = self.own.as_ref().ok_or(FederateError::Restarting)?;
        let epoch = log.state().epoch.max(after) + 1;
        let request = CommitRequest {
            entries: Vec::new(),
            facts: &facts,
            now,
        };
        let next = log.state().next_epoch(epoch);
        let commit = next.commit(request, &self.options.identity)?;
        self.keep(&commit, now)?;
        self.options.metrics.log_size(0);
        info!(epoch, "the own log begins anew");
        self.renew = false;
        self.copy_later(ctx);
        Ok(())
    }
}

impl Handler<SetGate> for IndexFederator {
    type Result = ();

    fn handle(&mut self, message: SetGate, ctx: &mut Self::Context) {
        strike();
        self.set_gate(message.gate, ctx);
    }
}

impl Handler<CheckOwnLog> for IndexFederator {
    type Result = MessageResult<CheckOwnLog>;

    fn handle(&mut self, _: CheckOwnLog, _: &mut Self::Context) -> Self::Result {
        strike();
        MessageResult(self.standing())
    }
}

impl Handler<GetOwnLog> for IndexFederator {
    type Result = MessageResult<GetOwnLog>;

    fn handle(&mut self, _: GetOwnLog, _: &mut Self::Context) -> Self::Result {
        strike();
        let empty = LogState::empty(self.options.identity.did(), 0);
        let state = self.own.as_ref().map_or(&empty, Log::state);
        let closed = match &self.gate {
            Gate::Closed(reason) => Some(reason.clone()),
            // It lasts five seconds, and nobody is refused.
            Gate::Asking | Gate::Open => None,
        };
        let reason = closed.or_else(|| match &self.own {
            Some(log) => log.damaged().map(str::to_owned),
            None => self.unreadable.get(&self.options.identity.did()).cloned(),
        });
        let revoked = self.is_revoked().then(|| REVOKED.to_owned());
        MessageResult(OwnLog {
            epoch: state.epoch,
            size: state.size(),
            root: state.root(),
            state: match reason {
                _ if revoked.is_some() => "revoked",
                Some(_) => "recovering",
                None if state.epoch > 0 && state.size() == 0 => "reset",
                None => "ok",
            },
            reason: revoked.or(reason),
            unreadable: self
                .unreadable
                .iter()
                .map(|(did, why)| (*did, why.clone()))
                .collect(),
        })
    }
}

impl Handler<MendOwnLog> for IndexFederator {
    type Result = Result<(), FederateError>;

    fn handle(&mut self, message: MendOwnLog, _: &mut Self::Context) -> Self::Result {
        strike();
        self.mend(message.above)
    }
}

impl Handler<ResetOwnLog> for IndexFederator {
    type Result = Result<OwnStanding, FederateError>;

    fn handle(&mut self, message: ResetOwnLog, ctx: &mut Self::Context) -> Self::Result {
        strike();
        self.reset(message.after, ctx)?;
        Ok(self.standing())
    }
}

#[cfg(test)]
#[path = "own_tests.rs"]
mod tests;
