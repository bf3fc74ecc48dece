//! One pull from one peer: its log, and with scope `held` the logs that it holds for others.
//!
//! Pages come over the wire bounded in bytes and time, are judged off the actor's thread, and are handed to
//! the federator, which makes them durable. Nothing is believed on the way. While a page is judged the next
//! one is already under way.

mod fork;
mod held;
mod own;
mod pipeline;
mod report;
mod revoked;

use std::time::Instant;

use actix::Recipient;
use bytes::Bytes;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::document::{MAX_PRESENCE_BYTES, MAX_SLICE_BYTES, Presence, parse_cursor};
use hn_protocol::federation::{Outcome, PeerState, Reason};
use hn_protocol::log::{LogState, PageContext, PageError, Source, VerifiedPage, last_word};
use hn_protocol::sign::Signed;
use reqwest::StatusCode;
use url::Url;

pub(crate) use self::fork::observe_fork;
use self::held::Budget;
pub use self::held::{HeldList, HeldLog, HeldLogHead, HeldLogs};
use self::pipeline::{Ahead, Pipeline};
pub use self::report::PeerReport;
use self::report::PullError;
use crate::catalog::{Catalog, RecentHistory, with_newline};
use crate::clock::Clock;
use crate::fetch::{Answer, Fetch, FetchError, Trust};
use crate::forks::Forks;
use crate::index_federator::{AppendPage, Appended, BeginAnew, FederateError};
use crate::log_recovery::OwnHeadSeen;
use crate::revocations::Revocations;
use crate::roster::{RosterPeer, is_base_url};

/// How often a page is judged again because another pull was faster.
const MAX_OVERTAKEN: usize = 16;
/// The most slices of a page (design 4).
const MAX_PAGE_SLICES: usize = 64;
/// The most lines of a page: a frontier, a presence before each slice, the slices, the current presence.
const MAX_PAGE_LINES: usize = 2 * MAX_PAGE_SLICES + 2;
/// How often a holder may say that it has pruned further while it is asked.
const MAX_JUMPS: usize = 4;
/// Epochs that are begun in one pull: an operator resets a log once, not twice in a minute.
const MAX_EPOCHS: usize = 4;

/// How a pull is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PullLimits {
    /// Slices asked for in one page, 1–64.
    pub page_slices: u32,
    /// Held logs followed of one peer.
    pub max_held_logs: usize,
    /// Bytes of journals kept of those; as many again of their artifacts, where they are mirrored.
    pub max_held_bytes: u64,
}

#[derive(Default)]
struct Pulled {
    entries: u64,
    slices: u64,
    /// The publisher has begun this epoch, and another was held before.
    reset: Option<u64>,
    /// The publisher's node says that it is recovering its own log.
    recovering: bool,
    /// The publisher's last word came.
    revoked: Option<Reason>,
}

impl Pulled {
    /// How the publisher stands whose log this was.
    fn outcome(&self) -> Outcome {
        if let Some(reason) = &self.revoked {
            return Outcome::Revoked(reason.clone());
        }
        if let Some(epoch) = self.reset {
            return Outcome::Reset(Reason {
                code: "reset".to_owned(),
                detail: format!(
                    "the publisher has begun epoch {epoch}; the one before is kept as history"
                ),
            });
        }
        if self.recovering {
            return PullError::Recovering(None).outcome();
        }
        Outcome::Verified
    }
}

/// Performs pulls. Cloned for each.
#[derive(Clone)]
pub struct Puller {
    /// HTTP.
    pub fetch: Fetch,
    /// What is held.
    pub catalog: Catalog,
    /// Whose logs stand still.
    pub forks: Forks,
    /// Whose logs have ended.
    pub revocations: Revocations,
    /// Where verified pages go.
    pub append: Recipient<AppendPage>,
    /// Sets aside what is held of a log that was not accepted.
    pub begin_anew: Recipient<BeginAnew>,
    /// Time.
    pub clock: Clock,
    /// Bounds.
    pub limits: PullLimits,
    /// Who is told that a peer lists a head of our own log that is not ours.
    pub own_head: Option<Recipient<OwnHeadSeen>>,
}

impl Puller {
    /// Pulls everything that `peer` is followed for; `list` is what it listed last. Never fails: what went wrong is in
    /// the report.
    pub async fn pull(
        mut self,
        peer: RosterPeer,
        listed: Vec<Did>,
        list: Option<HeldList>,
    ) -> PeerReport {
        let started = Instant::now();
        self.fetch = self.fetch.to(peer.did);
        let mut report = PeerReport {
            did: peer.did,
            status: "up-to-date",
            state: PeerState::New.name(),
            entries: 0,
            slices: 0,
            log_size: 0,
            log_root: hn_protocol::merkle::empty_root(),
            error: None,
            held: Vec::new(),
            left_out: Vec::new(),
            mirrored: None,
            availability: None,
            outcome: Outcome::Verified,
            base: None,
            own_head: None,
            list,
        };
        if let Err(error) = self.pull_into(&peer, &listed, &mut report).await {
            report.outcome = error.outcome();
        }
        if let Some(reason) = self.revocations.reason(&peer.did) {
            // Whether its node answered or not: its DID has ended.
            report.outcome = Outcome::Revoked(reason);
        }
        if let Some(view) = self.catalog.log(&peer.did) {
            report.log_size = view.state.size();
            report.log_root = view.state.root();
        }
        if let Some(head) = report.own_head.take() {
            self.tell_own_head(peer.did, &head).await;
        }
        report.error = report.outcome.reason().cloned();
        let failed = match report.outcome {
            Outcome::Verified
            | Outcome::Reset(_)
            | Outcome::Recovering(_)
            | Outcome::Revoked(_) => false,
            Outcome::Unreachable(_)
            | Outcome::Refused(_)
            | Outcome::Forked(_)
            | Outcome::Local(_) => true,
        };
        report.status = match (failed, report.slices) {
            (true, _) => "failed",
            (false, 0) => "up-to-date",
            (false, _) => "updated",
        };
        tracing::debug!(peer = %peer.did, status = report.status, ms = started.elapsed().as_millis() as u64, "pull ended");
        report
    }

    async fn pull_into(
        &self,
        peer: &RosterPeer,
        listed: &[Did],
        report: &mut PeerReport,
    ) -> Result<(), PullError> {
        let (base, trust) = self.route_to(peer)?;
        report.base = Some(base.clone());
        if let Some(url) = &peer.presence {
            self.check_presence(url, &peer.did).await?;
        }
        let budget = &mut Budget::unlimited();
        let own = self.pull_log(&base, trust, peer.did, Source::Publisher, budget);
        let own = match own.await {
            Ok(pulled) => {
                report.entries += pulled.entries;
                report.slices += pulled.slices;
                pulled.outcome()
            }
            // What is wrong with its own log disturbs no log that it holds for others.
            Err(error) if error.is_of_the_log() => error.outcome(),
            Err(error) => return Err(error),
        };
        let held = self.pull_held(&base, trust, peer, listed, report).await;
        if own != Outcome::Verified {
            report.outcome = own;
            return Ok(());
        }
        held
    }

    /// The same for requests to `peer`, signed where it wants to know who asks.
    fn towards(&self, peer: Did) -> Self {
        Self {
            fetch: self.fetch.to(peer),
            ..self.clone()
        }
    }

    /// The operator's URL is the only route to a peer; without one, what the peer's held presence says.
    fn route_to(&self, peer: &RosterPeer) -> Result<(Url, Trust), PullError> {
        if let Some(url) = &peer.url {
            return Ok((url.clone(), Trust::Operator));
        }
        match self.known_url(&peer.did) {
            Some(url) => Ok((url, Trust::Stranger)),
            None => Err(FetchError::Url("none is known for this peer".into()).into()),
        }
    }

    /// The gateway that a held presence names.
    #[must_use]
    pub fn known_url(&self, did: &Did) -> Option<Url> {
        let view = self.catalog.log(did)?;
        let presence = Signed::<Presence>::verify(view.presence.clone()).ok()?;
        let url = presence.endpoints.mcp.as_deref()?.parse().ok();
        url.filter(is_base_url)
    }

    /// The roster's presence URL must show a presence of that very DID.
    async fn check_presence(&self, url: &Url, did: &Did) -> Result<(), PullError> {
        let answer = self
            .fetch
            .get(url, Trust::Operator, None, MAX_PRESENCE_BYTES + 1)
            .await?;
        let shown = trim_line(&answer.body);
        if let Some(word) = last_word(std::slice::from_ref(&shown), did) {
            return self.take_word(&word).await;
        }
        let presence = Signed::<Presence>::verify(shown)
            .map_err(|error| PageError::Document { line: 1, error })?;
        if presence.did != *did {
            return Err(PageError::Publisher {
                got: presence.did,
                expected: *did,
            }
            .into());
        }
        Ok(())
    }

    /// Follows one log to its head. Three things run beside each other: the next page comes over the wire, this
    /// one is judged, the one before becomes durable.
    async fn pull_log(
        &self,
        base: &Url,
        trust: Trust,
        publisher: Did,
        source: Source,
        budget: &mut Budget,
    ) -> Result<Pulled, PullError> {
        if let Some(still) = self.stands_still(&publisher) {
            return Err(still);
        }
        let mut pulled = Pulled::default();
        let mut begun_anew = false;
        for _ in 0..MAX_OVERTAKEN {
            let mut pipeline = Pipeline::default();
            let outcome = self
                .pull_pages(base, trust, publisher, source, &mut pipeline, budget)
                .await;
            // What was judged before a page was refused is kept all the same.
            let last = pipeline.drain().await;
            pulled.entries += pipeline.entries;
            pulled.slices += pipeline.slices;
            pulled.reset = pulled.reset.or(pipeline.reset);
            pulled.recovering |= pipeline.recovering;
            if pipeline.revoked {
                pulled.revoked = self.revocations.reason(&publisher);
            }
            let outcome = match outcome {
                // Our own log is recovery's concern.
                Err(PullError::Page(error)) if publisher != self.catalog.own() => {
                    match self.contradiction(base, trust, publisher, error).await {
                        Some(error) => Err(error),
                        // What was held is not the accepted log: it is followed from its beginning.
                        None if !begun_anew => {
                            begun_anew = true;
                            continue;
                        }
                        None => Err(PullError::Rejected("another log was accepted".into())),
                    }
                }
                outcome => outcome,
            };
            if outcome? == Appended::Taken && last? == Appended::Taken {
                return Ok(pulled);
            }
        }
        // Others append faster than we do: what they append was verified as well.
        Ok(pulled)
    }

    async fn pull_pages(
        &self,
        base: &Url,
        trust: Trust,
        publisher: Did,
        source: Source,
        pipeline: &mut Pipeline,
        budget: &mut Budget,
    ) -> Result<Appended, PullError> {
        let view = self.catalog.log(&publisher);
        let mut etag = view
            .as_ref()
            .map(|view| format!("\"{}\"", Digest::of(&with_newline(&view.presence))));
        let mut state =
            view.map_or_else(|| LogState::empty(publisher, 0), |view| view.state.clone());
        let mut history = RecentHistory::new(self.catalog.history(publisher, state.epoch));
        let accepted = self.forks.accepted(&publisher);
        let (mut from, mut epochs, mut jumps) = (state.size(), 0, 0);
        let most = (self.limits.page_slices as usize).clamp(1, MAX_PAGE_SLICES);
        let mut ahead: Option<Ahead> = None;
        loop {
            let cursor = from;
            let answer = match ahead.take() {
                Some(ahead) if ahead.cursor == cursor => ahead.answer().await?,
                _ => {
                    let slices = budget.slices(most, 0).max(1);
                    let etag = etag.take();
                    let page = self.page(base, trust, publisher, cursor, slices, etag.as_deref());
                    match page.await {
                        // Where nothing is held, a log may begin where its holder has pruned it; it may prune on
                        // meanwhile, but not for ever.
                        Err(FetchError::Pruned { first_cursor })
                            if state.size() == 0 && first_cursor > cursor && jumps < MAX_JUMPS =>
                        {
                            (from, jumps) = (first_cursor, jumps + 1);
                            continue;
                        }
                        page => page?,
                    }
                }
            };
            let context = PageContext {
                now: self.clock.now(),
                source,
                reaches_head: answer.next.is_none(),
            };
            let recovering = answer.recovering && source == Source::Publisher;
            pipeline.recovering |= recovering;
            if answer.status == StatusCode::NOT_MODIFIED {
                return match self.unchanged(&state, context).await {
                    // It cannot sign another one yet.
                    Err(PullError::Page(error @ PageError::Expired(_))) if recovering => {
                        Err(PullError::Recovering(Some(error)))
                    }
                    unchanged => unchanged.map(|()| Appended::Taken),
                };
            }
            let next = answer.next.as_deref().and_then(next_cursor);
            let slices = budget.slices(most, answer.body.len());
            if let Some(next) = next.filter(|next| *next > cursor && slices > 0) {
                let (this, base) = (self.clone(), base.clone());
                let fetching =
                    async move { this.page(&base, trust, publisher, next, slices, None).await };
                ahead = Some(Ahead {
                    cursor: next,
                    fetching: tokio::task::spawn_local(fetching),
                });
            }
            let judged = self.judge(state.clone(), answer.body, context, history);
            let (page, recent) = match judged.await {
                Err(PullError::Page(PageError::NewEpoch(epoch))) if epochs < MAX_EPOCHS => {
                    if pipeline.drain().await? == Appended::Overtaken {
                        return Ok(Appended::Overtaken);
                    }
                    // Its beginning is elsewhere; what is held stays as history.
                    pipeline.reset = state.presence.map(|_| epoch).or(pipeline.reset);
                    state = state.next_epoch(epoch);
                    history = RecentHistory::new(self.catalog.history(publisher, epoch));
                    (from, epochs, ahead) = (0, epochs + 1, None);
                    continue;
                }
                Err(PullError::Page(
                    error @ (PageError::Rollback(_)
                    | PageError::Expired(_)
                    | PageError::Boundary { .. }),
                )) if recovering => return Err(PullError::Recovering(Some(error))),
                judged => judged?,
            };
            if let Some(accepted) = &accepted
                && page.lines.iter().any(|line| accepted.refuses(line))
            {
                self.take_last(&page, pipeline).await?;
                return Err(PullError::Rejected(format!(
                    "{} was accepted",
                    accepted.head
                )));
            }
            history = recent;
            if !budget.takes(&page) {
                let drained = pipeline.drain().await?;
                self.take_last(&page, pipeline).await?;
                return Ok(drained);
            }
            if pipeline.drain().await? == Appended::Overtaken {
                return Ok(Appended::Overtaken);
            }
            // The Store knows the page before by now; this one it learns of while the next is judged.
            history.clear();
            page.lines.iter().for_each(|line| history.add(line));
            let (base_state, progress) = (state, page.state.size() > cursor);
            state = page.state.clone();
            from = state.size();
            let word = page.revocation.clone();
            pipeline.start(self, base_state, page, context);
            if let Some(word) = word {
                // The lines before it first: none is taken in behind it.
                if pipeline.drain().await? == Appended::Overtaken {
                    return Ok(Appended::Overtaken);
                }
                self.take_word(&word).await?;
                pipeline.revoked = true;
                return Ok(Appended::Taken);
            }
            if context.reaches_head {
                return Ok(Appended::Taken);
            }
            if !progress {
                return Err(PullError::Answer(
                    "a page with a next page brings no slice".into(),
                ));
            }
        }
    }

    async fn page(
        &self,
        base: &Url,
        trust: Trust,
        publisher: Did,
        cursor: u64,
        slices: usize,
        etag: Option<&str>,
    ) -> Result<Answer, FetchError> {
        let mut url = route(base, &["federate", "index"]);
        url.query_pairs_mut()
            .append_pair("publisher", &publisher.to_string())
            .append_pair("cursor", &cursor.to_string())
            .append_pair("limit", &slices.to_string());
        let max = slices * (MAX_SLICE_BYTES + 1) + (slices + 1) * (MAX_PRESENCE_BYTES + 1);
        self.fetch.get(&url, trust, etag, max).await
    }

    /// Judges a page away from the actor's thread: signatures and hashes are CPU time.
    async fn judge(
        &self,
        state: LogState,
        body: Bytes,
        context: PageContext,
        history: RecentHistory,
    ) -> Result<(VerifiedPage, RecentHistory), PullError> {
        // A line costs more than its bytes: what no page of ours can have is not even taken apart.
        let shown: Vec<Bytes> = lines(&body).take(MAX_PAGE_LINES + 1).collect();
        if shown.len() > MAX_PAGE_LINES {
            let text = format!("a page has more than {MAX_PAGE_LINES} lines");
            return Err(PullError::Answer(text));
        }
        let publisher = state.publisher;
        let judging = move || {
            let judged = state.follow(&shown, context, &history);
            // V4: it counts, whatever is wrong with the rest.
            let word = judged.is_err().then(|| last_word(&shown, &publisher));
            (judged, history, word.flatten())
        };
        match tokio::task::spawn_blocking(judging).await {
            Ok((page, history, word)) => {
                if let Some(word) = word {
                    self.take_word(&word).await?;
                }
                Ok((page?, history))
            }
            Err(error) => Err(PullError::Local(FederateError::Failed(error.to_string()))),
        }
    }

    /// Nothing is new: the presence that we hold is still the publisher's current one.
    async fn unchanged(&self, state: &LogState, context: PageContext) -> Result<(), PullError> {
        let Some(held) = state.presence else {
            return Err(PullError::Answer("304 for a log that is not held".into()));
        };
        if context.source == Source::Publisher {
            if held.expires_at <= context.now {
                return Err(PageError::Expired(held.expires_at).into());
            }
            let page = VerifiedPage {
                lines: Vec::new(),
                state: state.clone(),
                behind: false,
                revocation: None,
            };
            self.hand_over(state.clone(), page, context).await?;
        }
        Ok(())
    }

    async fn hand_over(
        &self,
        base: LogState,
        page: VerifiedPage,
        context: PageContext,
    ) -> Result<Appended, PullError> {
        let seen = (context.source == Source::Publisher).then_some(context.now);
        if page.lines.is_empty() && seen.is_none() {
            return Ok(Appended::Taken);
        }
        match self.append.send(AppendPage { base, page, seen }).await {
            // Its last word came while this page was on its way.
            Ok(Err(FederateError::Revoked(did))) => Err(self
                .stands_still(&did)
                .unwrap_or(PullError::Local(FederateError::Revoked(did)))),
            Ok(outcome) => outcome.map_err(PullError::Local),
            // It may have been written before the actor fell: the next look at the catalog tells.
            Err(_) => Err(PullError::Local(FederateError::Restarting)),
        }
    }
}

/// A route below a base URL, which may have a path of its own.
#[must_use]
pub fn route(base: &Url, segments: &[&str]) -> Url {
    let mut url = base.clone();
    url.set_query(None);
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

/// The lines of a page, one after the other, without copying. A last line without its end counts as a line.
pub(crate) fn lines(body: &Bytes) -> impl Iterator<Item = Bytes> + '_ {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = body.get(start..).filter(|rest| !rest.is_empty())?;
        let length = rest.iter().position(|b| *b == b'\n');
        let end = start + length.unwrap_or(rest.len());
        let line = body.slice(start..end);
        start = end + 1;
        Some(line)
    })
}

fn trim_line(body: &Bytes) -> Bytes {
    let end = body.len() - usize::from(body.ends_with(b"\n"));
    body.slice(..end)
}

fn next_cursor(query: &str) -> Option<u64> {
    url::form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == "cursor")
        .and_then(|(_, value)| parse_cursor(&value))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn routes_stand_below_the_base_whatever_it_ends_with() {
        for base in ["http://x", "http://x/", "http://x/?q"] {
            assert_eq!(
                route(&base.parse().unwrap(), &["a", "b"]).as_str(),
                "http://x/a/b"
            );
        }
        assert_eq!(
            route(&"http://x/mcp".parse().unwrap(), &["a"]).as_str(),
            "http://x/mcp/a"
        );
        assert_eq!(
            route(&"http://x/mcp/".parse().unwrap(), &["a"]).as_str(),
            "http://x/mcp/a"
        );
    }

    #[tokio::test]
    async fn a_page_that_nobody_waits_for_is_not_fetched_to_its_end() {
        let (open, mut closed) = tokio::sync::oneshot::channel::<()>();
        let fetching = tokio::spawn(async move {
            let _open = open;
            std::future::pending().await
        });
        drop(Ahead {
            cursor: 1,
            fetching,
        });
        assert!(
            (&mut closed).await.is_err(),
            "the task is gone with its request"
        );
    }

    #[test]
    fn lines_are_split_where_they_end() {
        let split = |text: &'static str| -> Vec<Bytes> {
            lines(&Bytes::from_static(text.as_bytes())).collect()
        };
        assert_eq!(split("a\nb\n"), [Bytes::from("a"), Bytes::from("b")]);
        assert_eq!(
            split("a\n\nb"),
            [Bytes::from("a"), Bytes::new(), Bytes::from("b")]
        );
        assert!(split("").is_empty());
    }
}
