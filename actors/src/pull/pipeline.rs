//! Three things run beside each other: the next page comes over the wire, this one is judged, the one before becomes
//! durable.

use hn_protocol::log::{LogState, PageContext, VerifiedPage};
use tokio::task::JoinHandle;

use super::Puller;
use super::report::PullError;
use crate::fetch::{Answer, FetchError};
use crate::index_federator::{Appended, FederateError};

/// The page that is being made durable, and what was made durable before it.
#[derive(Default)]
pub(super) struct Pipeline {
    pending: Option<Pending>,
    /// Entries made durable so far.
    pub(super) entries: u64,
    /// Slices made durable so far.
    pub(super) slices: u64,
    /// The epoch that the publisher has begun, where an earlier one was held.
    pub(super) reset: Option<u64>,
    /// The publisher's node says that it is recovering its own log.
    pub(super) recovering: bool,
    /// The publisher's last word came, and is kept.
    pub(super) revoked: bool,
}

struct Pending {
    append: JoinHandle<Result<Appended, PullError>>,
    entries: u64,
    slices: u64,
}

impl Pipeline {
    pub(super) fn start(
        &mut self,
        puller: &Puller,
        base: LogState,
        page: VerifiedPage,
        context: PageContext,
    ) {
        let entries = page.state.size().saturating_sub(base.size());
        let slices = page.slices() as u64;
        let puller = puller.clone();
        let append = async move { puller.hand_over(base, page, context).await };
        self.pending = Some(Pending {
            append: tokio::task::spawn_local(append),
            entries,
            slices,
        });
    }

    /// Waits for the page that is under way.
    pub(super) async fn drain(&mut self) -> Result<Appended, PullError> {
        let Some(pending) = self.pending.take() else {
            return Ok(Appended::Taken);
        };
        let appended = pending
            .append
            .await
            .map_err(|error| PullError::Local(FederateError::Failed(error.to_string())))??;
        if appended == Appended::Taken {
            self.entries += pending.entries;
            self.slices += pending.slices;
        }
        Ok(appended)
    }
}

/// The next page, on its way. Nobody who has given up on a log goes on downloading it.
pub(super) struct Ahead {
    pub(super) cursor: u64,
    pub(super) fetching: JoinHandle<Result<Answer, FetchError>>,
}

impl Ahead {
    pub(super) async fn answer(mut self) -> Result<Answer, FetchError> {
        (&mut self.fetching)
            .await
            .map_err(|_| FetchError::Connect("the request was given up".into()))?
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.fetching.abort();
    }
}
