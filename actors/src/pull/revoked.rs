//! What a pull makes of a revocation, and of a log whose publisher has one (`spec/revocation@1.md`).

use bytes::Bytes;
use hn_protocol::canonical::MAX_INTEGER;
use hn_protocol::did::Did;
use hn_protocol::document::Revocation;
use hn_protocol::log::{VerifiedPage, last_word};
use hn_protocol::sign::Signed;
use tracing::debug;
use url::Url;

use super::pipeline::Pipeline;
use super::report::PullError;
use super::{MAX_PAGE_LINES, Puller, lines};
use crate::fetch::Trust;
use crate::index_federator::FederateError;
use crate::revocations::RevocationError;

impl Puller {
    /// Why nothing is pulled of the log of `publisher`: it has ended, or two of it were signed. The last word goes first.
    pub(super) fn stands_still(&self, publisher: &Did) -> Option<PullError> {
        let revoked = self.revocations.reason(publisher).map(PullError::Revoked);
        let forked = || Some(PullError::Forked(self.forks.of(publisher)?.reason()));
        revoked.or_else(forked)
    }

    /// Keeps the last word of somebody whom this node has to do with; of others there is nothing to end. Errors: our disk.
    pub(super) async fn take_word(&self, word: &Signed<Revocation>) -> Result<(), PullError> {
        let (revocations, bytes) = (self.revocations.clone(), word.bytes().clone());
        let local = |error: String| PullError::Local(FederateError::Failed(error));
        match tokio::task::spawn_blocking(move || revocations.accept(bytes)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RevocationError::Io(error)))
                if error.kind() == std::io::ErrorKind::StorageFull =>
            {
                Err(PullError::Local(FederateError::Full(error.to_string())))
            }
            Ok(Err(error @ RevocationError::Io(_))) => Err(local(error.to_string())),
            Ok(Err(error)) => {
                debug!(did = %word.did, %error, "a revocation is not kept");
                Ok(())
            }
            Err(error) => Err(local(error.to_string())),
        }
    }

    /// [`take_word`](Self::take_word) of a page whose lines are not taken in.
    pub(super) async fn take_last(
        &self,
        page: &VerifiedPage,
        pipeline: &mut Pipeline,
    ) -> Result<(), PullError> {
        if let Some(word) = &page.revocation {
            self.take_word(word).await?;
            pipeline.revoked = true;
        }
        Ok(())
    }

    /// Whether a revocation of `did` would be kept, and is not held yet.
    pub(super) fn may_learn(&self, did: &Did) -> bool {
        !self.revocations.is_revoked(did) && self.revocations.concerns(did)
    }

    /// Asks for the end of the log of `publisher` at somebody who lists it as revoked: the head alone, one line. Errors: it
    /// does not end so, which only a liar says.
    pub(super) async fn learn(
        &self,
        base: &Url,
        trust: Trust,
        publisher: Did,
    ) -> Result<(), PullError> {
        // Behind every log: the head alone.
        let page = self.page(base, trust, publisher, MAX_INTEGER, 1, None);
        let body = page.await?.body;
        let shown: Vec<Bytes> = lines(&body).take(MAX_PAGE_LINES).collect();
        let word = last_word(&shown, &publisher).ok_or_else(|| {
            PullError::Answer(format!(
                "it lists {publisher} as revoked and shows no revocation"
            ))
        })?;
        self.take_word(&word).await
    }
}
