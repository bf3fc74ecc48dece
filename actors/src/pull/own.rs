//! What a holder has of our own log: asked before we sign on top of it (O2 of `spec/index@2.md`).
//!
//! Pages are judged as anybody's. A signed document of ours that does not continue our log is no lie of the holder's: our
//! key signed it, in another copy of this home.

use bytes::Bytes;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::log::{Line, LogState, PageContext, PageError, Source, VerifiedPage};
use hn_protocol::recovery::Answer;
use reqwest::StatusCode;

use super::held::Budget;
use super::{HeldLogHead, PullError, Puller, lines};
use crate::catalog::{RecentHistory, with_newline};
use crate::fetch::FetchError;
use crate::log_recovery::OwnHeadSeen;
use crate::roster::RosterPeer;

impl Puller {
    /// Asks `peer` for what it has of our own log beyond `state`. Nothing of it is kept.
    pub async fn ask_own(&self, peer: &RosterPeer, state: &LogState) -> Answer {
        if self.catalog.is_revoked(&self.catalog.own()) {
            // Nothing is signed any more: nobody need be asked.
            return Answer::Level;
        }
        let asked = self.towards(peer.did).first_own_page(peer, state).await;
        asked.unwrap_or_else(|error| Answer::Failed {
            why: error.to_string(),
        })
    }

    /// Appends what `peer` has of our own log beyond ours, as far as it verifies. Errors: why it ended, for people.
    pub async fn adopt_own(&self, peer: &RosterPeer) -> Result<(), String> {
        let adopted = async {
            let (base, trust) = self.route_to(peer)?;
            let budget = &mut Budget::unlimited();
            let own = self.catalog.own();
            self.towards(peer.did)
                .pull_log(&base, trust, own, Source::Holder, budget)
                .await
        };
        match adopted.await {
            Ok(pulled) => {
                let (entries, slices) = (pulled.entries, pulled.slices);
                tracing::info!(peer = %peer.did, entries, slices, "own log adopted from a holder");
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Hands on that `holder` lists a head of our log that is not ours: its word, not yet ours.
    pub(super) async fn tell_own_head(&self, holder: Did, head: &HeldLogHead) {
        let Some(recovery) = &self.own_head else {
            return;
        };
        let seen = OwnHeadSeen {
            epoch: head.epoch,
            log_size: head.log_size,
            log_root: head.log_root,
            holder,
        };
        if recovery.send(seen).await.is_err() {
            tracing::warn!(peer = %holder, "what the peer lists of the own log was not looked into");
        }
    }

    async fn first_own_page(
        &self,
        peer: &RosterPeer,
        state: &LogState,
    ) -> Result<Answer, PullError> {
        let (base, trust) = self.route_to(peer)?;
        let own = self.catalog.own();
        let view = self.catalog.log(&own);
        let current = view.filter(|view| view.state == *state);
        let etag = current.map(|view| format!("\"{}\"", Digest::of(&with_newline(&view.presence))));
        let page = self.page(&base, trust, own, state.size(), 1, etag.as_deref());
        let answer = match page.await {
            // It holds nothing of ours, or offers nothing.
            Err(FetchError::Status { status: 404, .. }) => return Ok(Answer::Level),
            // It has dropped a beginning that we do not have either.
            Err(FetchError::Pruned { .. }) if state.size() == 0 => return Ok(Answer::Beyond),
            answer => answer?,
        };
        if answer.status == StatusCode::NOT_MODIFIED {
            return Ok(Answer::Level);
        }
        let context = PageContext {
            now: self.clock.now(),
            source: Source::Holder,
            reaches_head: answer.next.is_none(),
        };
        let history = RecentHistory::new(self.catalog.history(own, state.epoch));
        let body = answer.body.clone();
        match self
            .judge(state.clone(), answer.body, context, history)
            .await
        {
            Ok((
                VerifiedPage {
                    revocation: Some(word),
                    ..
                },
                _,
            )) => {
                self.take_word(&word).await?;
                Ok(Answer::Level)
            }
            Ok((page, _)) if !page.lines.is_empty() => Ok(Answer::Beyond),
            Ok((page, _)) if page.behind => Err(PullError::Answer(
                "a page with a next page brings nothing".into(),
            )),
            Ok(_) => Ok(Answer::Level),
            Err(PullError::Page(error)) => verdict(error, state, &body),
            Err(error) => Err(error),
        }
    }
}

/// What a page of our own log says that does not simply continue ours.
fn verdict(error: PageError, state: &LogState, body: &Bytes) -> Result<Answer, PullError> {
    let why = error.to_string();
    Ok(match error {
        PageError::NewEpoch(_) => Answer::Beyond,
        PageError::Boundary { size } if size > state.size() => Answer::Withheld { size },
        PageError::Fork { .. }
        | PageError::Conflict { .. }
        | PageError::PresenceConflict(_)
        | PageError::Chain { .. }
        | PageError::LogRoot { .. }
        | PageError::Boundary { .. } => Answer::Forked { why },
        // The holder lags.
        PageError::Epoch { got, expected } if got < expected => Answer::Level,
        PageError::Rollback(_) => match later_epoch(body, state) {
            Some(epoch) => Answer::Forked {
                why: format!("epoch {epoch} was begun elsewhere, and this one went on"),
            },
            None => Answer::Level,
        },
        error => return Err(error.into()),
    })
}

/// A later epoch of which the page shows a document of ours.
fn later_epoch(body: &Bytes, state: &LogState) -> Option<u64> {
    let lines = lines(body);
    let verified = lines.filter_map(|line| Line::verify(line).ok());
    let own = verified.filter(|line| line.publisher() == state.publisher);
    own.map(|line| line.epoch())
        .filter(|epoch| *epoch > state.epoch)
        .max()
}
