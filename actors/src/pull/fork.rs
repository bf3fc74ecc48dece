//! When what a peer shows contradicts what is held: is it a fork, or less? (`spec/index@2.md`, "Forks")
//!
//! A page that contradicts what is held brings the evidence along. A page that only does not fit may come from another
//! log that the publisher signed as well: the slice that holds the last entry which both have tells.

use std::io;

use bytes::Bytes;
use hn_protocol::did::Did;
use hn_protocol::document::{ForkEvidence, MAX_EVIDENCE_BYTES};
use hn_protocol::log::{HeldDocument, Line, PageContext, PageError, Source};
use hn_protocol::sign::Signed;
use url::Url;

use super::report::PullError;
use super::{MAX_PAGE_LINES, Puller, lines, route};
use crate::catalog::{Catalog, ReadError, RecentHistory};
use crate::fetch::{FetchError, Trust};
use crate::forks::{Accepted, Fork, ForkError, Forks};
use crate::index_federator::{BeginAnew, FederateError};

/// Evidence of one publisher that is looked at: the first that proves a fork is enough.
const MAX_SHOWN: usize = 2;
/// Slices asked for to find where two logs part: each is the last that both may have.
const MAX_PROBES: usize = 2;

/// Which of the two logs of a forked publisher somebody shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Branch {
    Accepted,
    Refused,
}

/// Keeps `shown` and the held document that it contradicts as evidence of a fork, durable when it returns. Errors: the disk;
/// what is held is gone meanwhile.
pub(crate) fn observe_fork(
    catalog: &Catalog,
    forks: &Forks,
    publisher: Did,
    shown: &Line,
    held: HeldDocument,
) -> Result<Fork, ForkError> {
    let read = |error: ReadError| ForkError::Io(io::Error::other(error));
    let gone = || ForkError::Io(io::Error::other("what it contradicts is gone"));
    let view = catalog.log(&publisher).ok_or_else(gone)?;
    let line = match held {
        HeldDocument::Slice { cursor } => catalog.slice_of(&view, cursor),
        HeldDocument::Presence(digest) => catalog.presence_of(&view, &digest),
    };
    let line = line.map_err(read)?.ok_or_else(gone)?;
    forks.observe(&Line::verify(line)?, shown)
}

impl Puller {
    /// What a page that was refused with `error` means for the log of `publisher`; `None`: the log held here was not the
    /// accepted one, and was set aside.
    pub(super) async fn contradiction(
        &self,
        base: &Url,
        trust: Trust,
        publisher: Did,
        error: PageError,
    ) -> Option<PullError> {
        let error = match error {
            PageError::Fork { shown, held } => {
                self.fork(base, trust, publisher, &shown, held).await
            }
            PageError::Gap { .. }
            | PageError::Chain { .. }
            | PageError::LogRoot { .. }
            | PageError::Binding { .. }
            | PageError::Boundary { .. }
            | PageError::Rollback(_) => match self.probe(base, trust, publisher, u64::MAX).await {
                Some(fork) => fork,
                None => error.into(),
            },
            _ => error.into(),
        };
        if matches!(error, PullError::Rejected(_)) && self.begins_anew(base, trust, publisher).await
        {
            return None;
        }
        Some(error)
    }

    /// Whether the log held here, shorter than what was accepted, turns out to be the other one: who contradicts it shows
    /// the accepted root.
    async fn begins_anew(&self, base: &Url, trust: Trust, publisher: Did) -> bool {
        let (Some(accepted), Some(view)) = (
            self.forks.accepted(&publisher),
            self.catalog.log(&publisher),
        ) else {
            return false;
        };
        if view.state.epoch != accepted.epoch || view.state.size() >= accepted.log_size {
            return false;
        }
        if self.branch_of(base, trust, publisher, &accepted).await != Some(Branch::Accepted) {
            return false;
        }
        let anew = self.begin_anew.send(BeginAnew { publisher }).await;
        matches!(anew, Ok(Ok(true)))
    }

    /// Which of the two logs is shown there: the slice that holds the last accepted entry tells.
    async fn branch_of(
        &self,
        base: &Url,
        trust: Trust,
        publisher: Did,
        accepted: &Accepted,
    ) -> Option<Branch> {
        let last = accepted.log_size.checked_sub(1)?;
        let page = self.page(base, trust, publisher, last, 1, None);
        let shown = page.await.ok()?.body;
        let verified = lines(&shown)
            .take(MAX_PAGE_LINES)
            .filter_map(|line| Line::verify(line).ok());
        let of_log: Vec<Line> = verified
            .filter(|line| line.publisher() == publisher && line.epoch() == accepted.epoch)
            .collect();
        if of_log.iter().any(|line| accepted.refuses(line)) {
            return Some(Branch::Refused);
        }
        let ends = |line: &Line| matches!(line, Line::Slice(s) if s.log_size == accepted.log_size);
        of_log.iter().any(ends).then_some(Branch::Accepted)
    }

    /// `shown` contradicts what is held: keeps both, unless the operator has decided already.
    async fn fork(
        &self,
        base: &Url,
        trust: Trust,
        publisher: Did,
        shown: &Line,
        held: HeldDocument,
    ) -> PullError {
        if let Some(accepted) = self.forks.accepted(&publisher) {
            // Of the log that was not accepted: within what was accepted, crossing where that ends, or grown on it.
            let refused = accepted.covers(shown)
                || accepted.refuses(shown)
                || self.branch_of(base, trust, publisher, &accepted).await == Some(Branch::Refused);
            if refused {
                return PullError::Rejected(format!("{} was accepted", accepted.head));
            }
        }
        let refused = shown;
        let (catalog, forks, shown) = (self.catalog.clone(), self.forks.clone(), shown.clone());
        let observing = move || observe_fork(&catalog, &forks, publisher, &shown, held);
        match tokio::task::spawn_blocking(observing).await {
            Ok(Ok(fork)) => PullError::Forked(fork.reason()),
            // Refused it is all the same.
            Ok(Err(ForkError::Revoked)) => {
                let shown = Box::new(refused.clone());
                PageError::Fork { shown, held }.into()
            }
            Ok(Err(error)) => PullError::Local(kept(&error)),
            Err(error) => PullError::Local(FederateError::Failed(error.to_string())),
        }
    }

    /// Looks for a fork at the end of what both sides have of the log: `theirs` entries there, as far as is known.
    pub(super) async fn probe(
        &self,
        base: &Url,
        trust: Trust,
        publisher: Did,
        theirs: u64,
    ) -> Option<PullError> {
        let view = self.catalog.log(&publisher)?;
        let mut both = view.state.size().min(theirs);
        for _ in 0..MAX_PROBES {
            let cursor = both.checked_sub(1)?;
            let answer = self
                .page(base, trust, publisher, cursor, 1, None)
                .await
                .ok()?;
            let context = PageContext {
                now: self.clock.now(),
                source: Source::Holder,
                reaches_head: answer.next.is_none(),
            };
            let shown: Vec<Bytes> = lines(&answer.body).take(MAX_PAGE_LINES).collect();
            let history = RecentHistory::new(self.catalog.history(publisher, view.state.epoch));
            let judged = self
                .judge(view.state.clone(), answer.body, context, history)
                .await;
            if let Ok((page, _)) = &judged
                && let Some(word) = &page.revocation
            {
                // What it is worth is told by the next pull.
                let _ = self.take_word(word).await;
            }
            if let Err(PullError::Page(PageError::Fork { shown, held })) = judged {
                return Some(self.fork(base, trust, publisher, &shown, held).await);
            }
            // A log that is shorter than we thought shows its presence alone, and with it its size.
            let Some(Ok(Line::Presence(last))) = shown.last().map(|l| Line::verify(l.clone()))
            else {
                return None;
            };
            if shown.len() > 1 || last.log_size >= both {
                return None;
            }
            both = last.log_size;
        }
        None
    }

    /// A peer says that the log of `publisher`, which is held here, is forked: its evidence counts, its word does not.
    /// Errors: it shows evidence that proves nothing; our disk.
    pub(super) async fn hear(
        &self,
        base: &Url,
        trust: Trust,
        publisher: Did,
    ) -> Result<(), PullError> {
        let mut url = route(base, &["federate", "forks"]);
        url.query_pairs_mut()
            .append_pair("publisher", &publisher.to_string());
        let max = MAX_SHOWN * (MAX_EVIDENCE_BYTES + 1);
        let answer = match self.fetch.get(&url, trust, None, max).await {
            // Not offered, or settled meanwhile.
            Err(FetchError::Status { status: 404, .. }) => return Ok(()),
            answer => answer?,
        };
        let (forks, body) = (self.forks.clone(), answer.body);
        let reading = move || adopt(&forks, publisher, &body);
        match tokio::task::spawn_blocking(reading).await {
            Ok(adopted) => adopted,
            Err(error) => Err(PullError::Local(FederateError::Failed(error.to_string()))),
        }
    }
}

fn adopt(forks: &crate::forks::Forks, publisher: Did, body: &Bytes) -> Result<(), PullError> {
    let mut wrong = None;
    for line in lines(body).take(MAX_SHOWN) {
        match Signed::<ForkEvidence>::verify(line) {
            Ok(evidence) if evidence.publisher == publisher => {
                let adopted = forks.adopt(&evidence);
                let adopted = adopted.map_err(|error| PullError::Local(kept(&error)))?;
                // One that is settled here says nothing about the next.
                if adopted.is_some() || forks.of(&publisher).is_some() {
                    return Ok(());
                }
            }
            Ok(_) => wrong = Some("it is about another publisher".to_owned()),
            Err(error) => wrong = Some(error.to_string()),
        }
    }
    match wrong {
        Some(why) => Err(PullError::Evidence { publisher, why }),
        None => Ok(()),
    }
}

/// Why evidence could not be kept: a full disk is told as such.
fn kept(error: &ForkError) -> FederateError {
    match error {
        ForkError::Io(io) if io.kind() == io::ErrorKind::StorageFull => {
            FederateError::Full(error.to_string())
        }
        _ => FederateError::Failed(error.to_string()),
    }
}
