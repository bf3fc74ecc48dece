//! `GET /federate/watch`: new heads of the logs held here, as they come, to whoever holds a stream open (SSE).
//!
//! A stream has no queue: it remembers up to which change it has told, and tells of each log that changed since, once,
//! whenever its reader takes more. A slow reader thus gets the newest head of a log and not each. What a stream may
//! cost is bounded by [`Streams`]; what readers are told is a hint, and what they fetch on it is verified.

mod streams;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;

use actix_web::http::Method;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use hn_protocol::did::Did;
use tokio::sync::watch::Receiver;
use tokio::time::{Duration, Instant};

pub use self::streams::Streams;
use self::streams::{Beat, Place};
use super::connections::Connection;
use super::guard::client_of;
use super::problem::Problem;
use super::{GatewayState, parse_did};
use crate::catalog::{Catalog, News};
use crate::watch::NewHead;

/// How long a stream lasts at most: a reader that comes back after it finds the streams of who went away free again.
const LIFETIME: Duration = Duration::from_secs(3600);
/// Streams that were opened together do not end together: each ends up to so much earlier.
const SPREAD_SECONDS: u64 = 360;
/// Heads told at once; a connection copies what it is given, and a head takes some 500 bytes.
const HEADS_AT_ONCE: usize = 64;
/// Publishers that one stream may name.
const MAX_PUBLISHERS: usize = 64;
/// After how many milliseconds a browser comes back.
const RETRY_MS: u64 = 2000;
/// A comment, so that both sides see that the other is there.
const COMMENT: &[u8] = b":\n\n";

/// What a stream tells of.
trait Source {
    /// The node's own DID.
    fn own(&self) -> Did;
    /// What changed when.
    fn news(&self) -> &News;
    /// The head of a log, while it is held.
    fn head(&self, publisher: &Did) -> Option<NewHead>;
}

impl Source for Catalog {
    fn own(&self) -> Did {
        Self::own(self)
    }

    fn news(&self) -> &News {
        Self::news(self)
    }

    fn head(&self, publisher: &Did) -> Option<NewHead> {
        let view = self.log(publisher)?;
        Some(NewHead {
            revoked: self.is_revoked(publisher),
            ..NewHead::of(&view.state)
        })
    }
}

/// One reader's stream.
struct Watching<S> {
    source: S,
    /// Of whom it tells; everyone when `None`.
    publishers: Option<BTreeSet<Did>>,
    /// The number of this run of the node: a change of another run says nothing here.
    run: u64,
    /// Up to which change it has told.
    seen: u64,
    begun: bool,
    ends: Instant,
    told: Receiver<u64>,
    beat: Receiver<Beat>,
    place: Place,
}

impl<S: Source> Watching<S> {
    fn new(
        source: S,
        publishers: Option<BTreeSet<Did>>,
        last_event: Option<&str>,
        place: Place,
        lifetime: Duration,
    ) -> Self {
        let told = source.news().subscribe();
        let (run, beat) = (place.run(), place.beats());
        let now = *told.borrow();
        let resumed = last_event.and_then(|id| parse_id(id, run));
        Self {
            publishers,
            run,
            seen: resumed.filter(|seen| *seen <= now).unwrap_or(now),
            begun: resumed.is_some_and(|seen| seen <= now),
            ends: Instant::now() + lifetime,
            told,
            beat,
            place,
            source,
        }
    }

    /// What the reader is given next; `None` at the end. Waits until there is something.
    async fn next(&mut self) -> Option<Bytes> {
        self.place.taken();
        if !self.begun {
            self.begun = true;
            return Some(self.beginning());
        }
        loop {
            if self.beat.borrow_and_update().closing || Instant::now() >= self.ends {
                return None;
            }
            // Marked as seen before it is read: what changes meanwhile is told next.
            self.told.borrow_and_update();
            let news = self.news();
            if !news.is_empty() {
                return Some(news.into());
            }
            tokio::select! {
                told = self.told.changed() => told.ok()?,
                beat = self.beat.changed() => {
                    beat.ok()?;
                    self.place.taken();
                    if !self.beat.borrow().closing {
                        return Some(Bytes::from_static(COMMENT));
                    }
                }
            }
        }
    }

    /// Where the reader stands: the own head, or those of the publishers that it named.
    fn beginning(&self) -> Bytes {
        let mut text = format!("retry: {RETRY_MS}\n\n");
        let own = BTreeSet::from([self.source.own()]);
        for publisher in self.publishers.as_ref().unwrap_or(&own) {
            self.tell(&mut text, self.seen, publisher);
        }
        text.into()
    }

    /// What changed since, as much of it as goes at once.
    fn news(&mut self) -> String {
        let mut text = String::new();
        while text.is_empty() {
            let (changed, upto) = self.source.news().since(self.seen, HEADS_AT_ONCE);
            for (at, publisher) in &changed {
                let wanted = self.publishers.as_ref();
                if wanted.is_none_or(|wanted| wanted.contains(publisher)) {
                    self.tell(&mut text, *at, publisher);
                }
            }
            self.seen = upto;
            if changed.len() < HEADS_AT_ONCE {
                break;
            }
        }
        text
    }

    fn tell(&self, text: &mut String, at: u64, publisher: &Did) {
        let Some(head) = self.source.head(publisher) else {
            return;
        };
        if let Ok(json) = serde_json::to_string(&head) {
            // Writing into a String does not fail.
            let _ = write!(
                text,
                "id: {:016x}-{at}\nevent: head\ndata: {json}\n\n",
                self.run
            );
        }
    }
}

/// The change that an id of this run names.
fn parse_id(id: &str, run: u64) -> Option<u64> {
    let (of, change) = id.split_once('-')?;
    (u64::from_str_radix(of, 16) == Ok(run))
        .then(|| change.parse().ok())
        .flatten()
}

fn parse_publishers(query: &str) -> Result<Option<BTreeSet<Did>>, Problem> {
    let mut publishers = BTreeSet::new();
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        if key == "publisher" {
            publishers.insert(parse_did(&value)?);
        }
        if publishers.len() > MAX_PUBLISHERS {
            let detail = format!("a stream names at most {MAX_PUBLISHERS} publishers");
            return Err(Problem::new("bad_limit", detail));
        }
    }
    Ok((!publishers.is_empty()).then_some(publishers))
}

/// New heads of the logs held, as server-sent events.
#[utoipa::path(get, path = "/federate/watch", tag = "federate", params(
    ("publisher" = Option<String>, Query, description = "did:hn; tells of this log alone; up to 64 of them; every log held by default"),
    ("Last-Event-ID" = Option<String>, Header, description = "the id of the last event taken; of this run of the node, what changed since is told")), responses(
    (status = 200, description = "Events `head`; data is a head", content_type = "text/event-stream", body = NewHead),
    (status = 400, description = "A bad DID, or too many"),
    (status = 503, description = "Too many streams are open, in all or of this client")))]
pub async fn watch(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    let publishers = parse_publishers(request.query_string())?;
    let mut response = HttpResponse::Ok();
    response
        .insert_header((CONTENT_TYPE, HeaderValue::from_static("text/event-stream")))
        .insert_header((CACHE_CONTROL, HeaderValue::from_static("no-store")))
        // Proxies that know it pass each event on at once.
        .insert_header((
            HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ))
        // Whoever ends a stream ends its connection: a drain waits for nothing after it.
        .force_close();
    if request.method() == Method::HEAD {
        return Ok(response.finish());
    }
    let connection = request.conn_data::<Arc<Connection>>().cloned();
    let client = request.peer_addr().map(|peer| client_of(peer.ip()));
    let place = state.admission.streams.enter(client, connection)?;
    let last_event = request.headers().get("last-event-id");
    let last_event = last_event.and_then(|id| id.to_str().ok());
    let lifetime = LIFETIME - Duration::from_secs(rand::random_range(0..SPREAD_SECONDS));
    let watching = Watching::new(
        state.catalog.clone(),
        publishers,
        last_event,
        place,
        lifetime,
    );
    let events = futures_util::stream::unfold(watching, async |mut watching| {
        let chunk = watching.next().await?;
        Some((Ok::<_, Infallible>(chunk), watching))
    });
    Ok(response.streaming(Box::pin(events)))
}

#[cfg(test)]
mod tests;
