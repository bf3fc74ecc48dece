//! One pull from one peer: its log, and with scope `held` the logs that it holds for others.
//!
//! Pages come over the wire bounded in bytes and time, are judged off the actor's thread, and are handed to
//! the federator, which makes them durable. Nothing is believed on the way. While a page is judged the next
//! one is already under way.

mod held;

use std::time::Instant;

use actix::Recipient;
use bytes::Bytes;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::document::{MAX_PRESENCE_BYTES, MAX_SLICE_BYTES, Presence, parse_cursor};
use hn_protocol::federation::{Outcome, PeerState, Reason};
use hn_protocol::log::{LogState, PageContext, PageError, Source, VerifiedPage};
use hn_protocol::sign::Signed;
use reqwest::StatusCode;
use serde::Serialize;
use tokio::task::JoinHandle;
use url::Url;

use self::held::Budget;
pub use self::held::{HeldList, HeldLog, HeldLogHead, HeldLogs};
use crate::artifact_mirror::MirrorReport;
use crate::catalog::{Catalog, RecentHistory, with_newline};
use crate::clock::Clock;
use crate::fetch::{Answer, Fetch, FetchError, Trust};
use crate::index_federator::{AppendPage, Appended, FederateError};
use crate::roster::{RosterPeer, Scope, is_base_url};

/// How often a page is judged again because another pull was faster.
const MAX_OVERTAKEN: usize = 16;

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

/// How a pull from a peer ended: an element of `peers` in the JSON of `hn mcp federate refresh`.
#[derive(Debug, Clone, Serialize)]
pub struct PeerReport {
    /// The peer.
    pub did: Did,
    /// `updated`, `up-to-date` or `failed`.
    pub status: &'static str,
    /// The peer's state after the pull.
    pub state: &'static str,
    /// New entries, the held logs' included.
    pub entries: u64,
    /// New slices.
    pub slices: u64,
    /// Entries of the peer's own log as held.
    pub log_size: u64,
    /// Root of the peer's own log as held.
    pub log_root: Digest,
    /// Why it failed; null when it did not.
    pub error: Option<Reason>,
    /// The logs followed through this peer.
    pub held: Vec<HeldLog>,
    /// Logs that the peer holds and that the caps left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<Did>,
    /// What was mirrored, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirrored: Option<MirrorReport>,
    /// How the core is told.
    #[serde(skip)]
    pub outcome: Outcome,
    /// Through which base URL.
    #[serde(skip)]
    pub base: Option<Url>,
    /// What the peer listed, for the next pull.
    #[serde(skip)]
    pub list: Option<HeldList>,
}

/// Why a log could not be pulled.
#[derive(Debug, thiserror::Error)]
enum PullError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Page(#[from] PageError),
    #[error("the answer is not what the route gives: {0}")]
    Answer(String),
    #[error("{0}")]
    Local(FederateError),
}

impl PullError {
    fn outcome(&self) -> Outcome {
        let reason = self.reason();
        match self {
            // An answer that breaks the protocol is a failed validation; none at all is absence.
            Self::Fetch(FetchError::TooLarge(_) | FetchError::Encoding(_))
            | Self::Page(_)
            | Self::Answer(_) => Outcome::Refused(reason),
            Self::Fetch(_) => Outcome::Unreachable(reason),
            Self::Local(_) => Outcome::Local(reason),
        }
    }

    fn reason(&self) -> Reason {
        let code = match self {
            Self::Fetch(e) => e.code(),
            Self::Page(e) => e.code(),
            Self::Answer(_) => "bad_answer",
            Self::Local(FederateError::Full(_)) => "storage_full",
            Self::Local(_) => "local_failure",
        };
        Reason {
            code: code.to_owned(),
            detail: self.to_string(),
        }
    }
}

/// The page that is being made durable, and what was made durable before it.
#[derive(Default)]
struct Pipeline {
    pending: Option<Pending>,
    entries: u64,
    slices: u64,
}

struct Pending {
    append: JoinHandle<Result<Appended, PullError>>,
    entries: u64,
    slices: u64,
}

impl Pipeline {
    fn start(&mut self, puller: &Puller, base: LogState, page: VerifiedPage, context: PageContext) {
        let (slices, entries) = (page.slices() as u64, page.state.size() - base.size());
        let puller = puller.clone();
        let append = async move { puller.hand_over(base, page, context).await };
        self.pending = Some(Pending {
            append: tokio::task::spawn_local(append),
            entries,
            slices,
        });
    }

    /// Waits for the page that is under way.
    async fn drain(&mut self) -> Result<Appended, PullError> {
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
struct Ahead {
    cursor: u64,
    fetching: JoinHandle<Result<Answer, FetchError>>,
}

impl Ahead {
    async fn answer(mut self) -> Result<Answer, FetchError> {
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

#[derive(Default)]
struct Pulled {
    entries: u64,
    slices: u64,
}

/// Performs pulls. Cloned for each.
#[derive(Clone)]
pub struct Puller {
    /// HTTP.
    pub fetch: Fetch,
    /// What is held.
    pub catalog: Catalog,
    /// Where verified pages go.
    pub append: Recipient<AppendPage>,
    /// Time.
    pub clock: Clock,
    /// Bounds.
    pub limits: PullLimits,
}

impl Puller {
    /// Pulls everything that `peer` is followed for; `list` is what it listed last. Never fails: what went wrong is in
    /// the report.
    pub async fn pull(
        self,
        peer: RosterPeer,
        listed: Vec<Did>,
        list: Option<HeldList>,
    ) -> PeerReport {
        let started = Instant::now();
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
            outcome: Outcome::Verified,
            base: None,
            list,
        };
        if let Err(error) = self.pull_into(&peer, &listed, &mut report).await {
            report.outcome = error.outcome();
        }
        if let Some(view) = self.catalog.log(&peer.did) {
            report.log_size = view.state.size();
            report.log_root = view.state.root();
        }
        report.error = report.outcome.reason().cloned();
        report.status = match (&report.error, report.slices) {
            (Some(_), _) => "failed",
            (None, 0) => "up-to-date",
            (None, _) => "updated",
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
        let pulled = self
            .pull_log(
                &base,
                trust,
                peer.did,
                Source::Publisher,
                &mut Budget::unlimited(),
            )
            .await?;
        report.entries += pulled.entries;
        report.slices += pulled.slices;
        if peer.scope == Scope::Held {
            self.pull_held(&base, trust, peer, listed, report).await?;
        }
        Ok(())
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
        let presence = Signed::<Presence>::verify(trim_line(&answer.body))
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
        let mut pulled = Pulled::default();
        for _ in 0..MAX_OVERTAKEN {
            let mut pipeline = Pipeline::default();
            let outcome = self
                .pull_pages(base, trust, publisher, source, &mut pipeline, budget)
                .await;
            // What was judged before a page was refused is kept all the same.
            let last = pipeline.drain().await;
            pulled.entries += pipeline.entries;
            pulled.slices += pipeline.slices;
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
        let most = self.limits.page_slices.clamp(1, 64) as usize;
        let mut ahead: Option<Ahead> = None;
        loop {
            let cursor = state.size();
            let answer = match ahead.take() {
                Some(ahead) if ahead.cursor == cursor => ahead.answer().await?,
                _ => {
                    let slices = budget.slices(most, 0).max(1);
                    self.page(
                        base,
                        trust,
                        publisher,
                        cursor,
                        slices,
                        etag.take().as_deref(),
                    )
                    .await?
                }
            };
            let context = PageContext {
                now: self.clock.now(),
                source,
                reaches_head: answer.next.is_none(),
            };
            if answer.status == StatusCode::NOT_MODIFIED {
                self.unchanged(&state, context).await?;
                return Ok(Appended::Taken);
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
            let (page, recent) = self
                .judge(state.clone(), answer.body, context, history)
                .await?;
            history = recent;
            if !budget.takes(&page) {
                return pipeline.drain().await;
            }
            if pipeline.drain().await? == Appended::Overtaken {
                return Ok(Appended::Overtaken);
            }
            // The Store knows the page before by now; this one it learns of while the next is judged.
            history.clear();
            page.lines.iter().for_each(|line| history.add(line));
            let (base_state, progress) = (state, page.state.size() > cursor);
            state = page.state.clone();
            pipeline.start(self, base_state, page, context);
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
        let judging = move || (state.follow(&lines(&body), context, &history), history);
        match tokio::task::spawn_blocking(judging).await {
            Ok((page, history)) => Ok((page?, history)),
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

/// The lines of a page, without copying. A last line without its end counts as a line.
fn lines(body: &Bytes) -> Vec<Bytes> {
    let mut lines = Vec::new();
    let mut start = 0;
    while start < body.len() {
        let end = body[start..]
            .iter()
            .position(|b| *b == b'\n')
            .map_or(body.len(), |at| start + at);
        lines.push(body.slice(start..end));
        start = end + 1;
    }
    lines
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
        let split = |text: &'static str| lines(&Bytes::from_static(text.as_bytes()));
        assert_eq!(split("a\nb\n"), [Bytes::from("a"), Bytes::from("b")]);
        assert_eq!(
            split("a\n\nb"),
            [Bytes::from("a"), Bytes::new(), Bytes::from("b")]
        );
        assert!(split("").is_empty());
    }
}
