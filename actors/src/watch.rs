//! Listens for the news of peers: one stream of `/federate/watch` each (SSE), open as long as the peer keeps it open.
//!
//! What a stream says is a hint and nothing more: an event that names something we do not hold has the peer pulled
//! from at once, and what comes is verified as ever. A stream is opened after a pull that verified and again after the
//! next one, so that this worker has no schedule of its own: a peer that is away is asked by the pulls alone. When a
//! stream breaks, the peer is pulled from at once, as it may be gone or back already. Who floods, or talks nonsense, is
//! hung up on and left alone for a while; the pulls at the interval go on.
//!
//! ```text
//!   federation_sync ──WatchPeer, UnwatchPeer──► watch ──GET /federate/watch──► peer
//!                   ◄──────PeerNews, Watcher──
//! ```

mod events;
mod head;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use actix::fut::wrap_future;
use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, Message, Recipient, SpawnHandle,
    Supervised, WrapFuture,
};
use hn_protocol::did::Did;
use tokio::time::Instant;
use tracing::{debug, info, warn};
use url::Url;

use self::events::{EventReader, Nonsense};
pub use self::head::NewHead;
use crate::catalog::Catalog;
use crate::failpoint;
use crate::fetch::{Fetch, FetchError, Trust};
use crate::metrics::Metrics;
use crate::pull::route;

/// Peers that are listened to at the same time: each takes a connection. The others are asked at the interval.
const MAX_STREAMS: usize = 256;
/// A stream that brings nothing for three heartbeats is taken for broken.
const SILENCE: Duration = Duration::from_secs(45);
/// Bytes that a stream may bring at once: the heads of some ten thousand logs...
const BURST: u64 = 8 << 20;
/// ...and a second on top, for as long as it lives.
const BYTES_A_SECOND: u64 = 128 << 10;
/// Events of a stream that cannot be read before it is given up.
const MAX_GARBLED: u32 = 8;
/// After news, a stream is read on once so long has passed for each log that the peer listed: a list of 10,000, some 4 MB,
/// is fetched every two seconds at most. What comes meanwhile the peer tells as one, of each log the newest.
const PACE: Duration = Duration::from_micros(200);
/// A stream that ended sooner than this was not worth opening: the next is opened later.
const SHORT_LIFE: Duration = Duration::from_secs(10);
/// The pause after a stream that was not worth opening; doubled after each in a row.
const SHORT_PAUSE: Duration = Duration::from_millis(500);
/// The pause after a peer that has no room for one more stream, or that was hung up on; doubled likewise.
const PAUSE: Duration = Duration::from_secs(30);
/// The longest pause, and that of a peer that offers no streams.
const LONG_PAUSE: Duration = Duration::from_secs(900);

/// Listen to this peer from now on, if it is not listened to already: a pull from there has just verified.
#[derive(Message, Debug, Clone, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct WatchPeer {
    /// Whom.
    pub peer: Did,
    /// Its gateway, and who wrote that URL.
    pub base: Url,
    /// See `base`.
    pub trust: Trust,
    /// Whether the logs that it holds for others are followed as well.
    pub held: bool,
    /// Logs there that are not followed, or cannot be just now: no word of them is worth a pull.
    pub ignored: BTreeSet<Did>,
    /// How many logs it listed last: each pull may bring the list of them all.
    pub listed: usize,
}

/// Listen to this peer no more.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct UnwatchPeer {
    /// Whom.
    pub peer: Did,
}

/// What was heard of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It may have something that we do not hold.
    News,
    /// Its stream broke.
    Lost,
}

/// Something was heard of a peer.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct PeerNews {
    /// Of whom.
    pub peer: Did,
    /// What.
    pub heard: Heard,
}

/// The watch has (re)started and listens to nobody: tell it whom.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Watcher {
    /// Where to ask for a peer to be listened to.
    pub watch: Recipient<WatchPeer>,
    /// Where to end that.
    pub unwatch: Recipient<UnwatchPeer>,
}

/// To whom the watch may send what.
#[derive(Clone)]
pub struct WatchLinks {
    /// What was heard.
    pub news: Recipient<PeerNews>,
    /// That it has (re)started.
    pub started: Recipient<Watcher>,
}

/// How a stream ended.
#[derive(Debug)]
enum End {
    /// The peer offers none.
    NotOffered,
    /// It was not opened.
    Refused(FetchError),
    /// It ended or broke off, after so long.
    Broken(Duration),
    /// We hung up.
    Cut(Nonsense),
}

/// One peer that is listened to, or will be again.
struct Slot {
    target: WatchPeer,
    /// Shared with the stream that runs.
    ignored: Rc<RefCell<BTreeSet<Did>>>,
    /// See [`PACE`]; shared likewise.
    rest: Rc<Cell<Duration>>,
    stream: Option<SpawnHandle>,
    not_before: Option<Instant>,
    /// It is opened when its pause is over.
    waits: bool,
    /// Streams in a row that were not worth opening.
    wasted: u32,
}

/// The actor.
pub struct Watch {
    fetch: Fetch,
    catalog: Catalog,
    links: WatchLinks,
    metrics: Metrics,
    slots: BTreeMap<Did, Slot>,
}

impl Watch {
    /// Listens to nobody yet.
    #[must_use]
    pub fn new(fetch: Fetch, catalog: Catalog, links: WatchLinks, metrics: Metrics) -> Self {
        Self {
            fetch,
            catalog,
            links,
            metrics,
            slots: BTreeMap::new(),
        }
    }

    fn watch(&mut self, target: WatchPeer, ctx: &mut Context<Self>) {
        let did = target.peer;
        if let Some(slot) = self.slots.get_mut(&did) {
            slot.ignored.replace(target.ignored.clone());
            slot.rest.set(rest(target.listed));
            let moved = slot.target.base != target.base
                || slot.target.trust != target.trust
                || slot.target.held != target.held;
            slot.target = target;
            if moved {
                // It is another place that is asked from now on: what the old one did says nothing of it.
                if let Some(stream) = slot.stream.take() {
                    ctx.cancel_future(stream);
                }
                (slot.not_before, slot.wasted, slot.waits) = (None, 0, false);
            }
        } else {
            let ignored = Rc::new(RefCell::new(target.ignored.clone()));
            let slot = Slot {
                rest: Rc::new(Cell::new(rest(target.listed))),
                target,
                ignored,
                stream: None,
                not_before: None,
                waits: false,
                wasted: 0,
            };
            self.slots.insert(did, slot);
        }
        self.open(did, ctx);
    }

    fn open(&mut self, did: Did, ctx: &mut Context<Self>) {
        let open = self.streams();
        let Some(slot) = self.slots.get_mut(&did) else {
            return;
        };
        if slot.stream.is_some() || slot.waits || open >= MAX_STREAMS {
            return;
        }
        let pause = slot.not_before.map(|then| then - Instant::now());
        if let Some(pause) = pause.filter(|pause| !pause.is_zero()) {
            slot.waits = true;
            ctx.run_later(pause, move |this, ctx| {
                if let Some(slot) = this.slots.get_mut(&did) {
                    slot.waits = false;
                    this.open(did, ctx);
                }
            });
            return;
        }
        let listener = Listener {
            peer: did,
            held: slot.target.held,
            ignored: Rc::clone(&slot.ignored),
            rest: Rc::clone(&slot.rest),
            catalog: self.catalog.clone(),
            news: self.links.news.clone(),
        };
        let (fetch, target) = (self.fetch.clone(), slot.target.clone());
        let stream = async move { listener.listen(&fetch, &target).await };
        let stream = wrap_future::<_, Self>(stream);
        let handle = ctx.spawn(stream.map(move |end, this, ctx| this.ended(did, end, ctx)));
        slot.stream = Some(handle);
        self.metrics.peers_watched(open + 1);
    }

    fn ended(&mut self, did: Did, end: End, ctx: &mut Context<Self>) {
        let Some(slot) = self.slots.get_mut(&did) else {
            return;
        };
        slot.stream = None;
        let pause = match &end {
            End::NotOffered => {
                debug!(peer = %did, "the peer offers no stream of news");
                Some(LONG_PAUSE)
            }
            End::Refused(FetchError::Status { .. }) => Some(slot.waste(PAUSE)),
            End::Refused(_) => Some(slot.waste(SHORT_PAUSE)),
            End::Broken(lived) if *lived < SHORT_LIFE => Some(slot.waste(SHORT_PAUSE)),
            End::Broken(_) => {
                slot.wasted = 0;
                None
            }
            End::Cut(nonsense) => {
                warn!(peer = %did, %nonsense, "hung up on a stream of news; the peer is asked at the interval");
                Some(slot.waste(PAUSE))
            }
        };
        slot.not_before = pause.map(|pause| Instant::now() + pause);
        // A peer that a pull has just reached, and its stream has not, may be gone or back already, as one whose stream
        // broke: no later stream would tell.
        let lost = match &end {
            End::Broken(lived) => {
                info!(peer = %did, after = ?lived, "the stream of news broke; asking at once");
                true
            }
            End::Refused(error) => {
                debug!(peer = %did, %error, "the stream of news was not opened");
                !matches!(error, FetchError::Status { .. })
            }
            End::NotOffered | End::Cut(_) => false,
        };
        if lost {
            let news = self.links.news.clone();
            let lost = async move { tell(&news, did, Heard::Lost).await };
            ctx.spawn(lost.into_actor(self));
        }
        self.metrics.peers_watched(self.streams());
    }

    fn streams(&self) -> usize {
        self.slots.values().filter(|s| s.stream.is_some()).count()
    }
}

impl Slot {
    /// The pause after one more stream that was not worth opening.
    fn waste(&mut self, pause: Duration) -> Duration {
        let doubled = pause.saturating_mul(1 << self.wasted.min(9));
        self.wasted = self.wasted.saturating_add(1);
        doubled.min(LONG_PAUSE)
    }
}

impl Actor for Watch {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let (links, address) = (self.links.clone(), ctx.address());
        let tell = async move {
            let watcher = Watcher {
                watch: address.clone().recipient(),
                unwatch: address.recipient(),
            };
            if let Err(error) = links.started.send(watcher).await {
                warn!(%error, "nobody says whom to listen to");
            }
        };
        ctx.spawn(tell.into_actor(self));
    }
}

impl Supervised for Watch {
    /// The streams ended with the life before; who started us says again whom to listen to.
    fn restarting(&mut self, _: &mut Self::Context) {
        self.slots.clear();
    }
}

impl Handler<WatchPeer> for Watch {
    type Result = ();

    fn handle(&mut self, target: WatchPeer, ctx: &mut Self::Context) {
        strike();
        self.watch(target, ctx);
    }
}

impl Handler<UnwatchPeer> for Watch {
    type Result = ();

    fn handle(&mut self, message: UnwatchPeer, ctx: &mut Self::Context) {
        strike();
        let slot = self.slots.remove(&message.peer);
        if let Some(stream) = slot.and_then(|slot| slot.stream) {
            ctx.cancel_future(stream);
        }
        self.metrics.peers_watched(self.streams());
    }
}

/// The reader of one stream.
struct Listener {
    peer: Did,
    held: bool,
    ignored: Rc<RefCell<BTreeSet<Did>>>,
    rest: Rc<Cell<Duration>>,
    catalog: Catalog,
    news: Recipient<PeerNews>,
}

impl Listener {
    async fn listen(&self, fetch: &Fetch, target: &WatchPeer) -> End {
        let mut url = route(&target.base, &["federate", "watch"]);
        if !self.held {
            url.query_pairs_mut()
                .append_pair("publisher", &self.peer.to_string());
        }
        let mut body = match fetch.to(target.peer).open(&url, target.trust, None).await {
            Ok(body) if body.media_type() == "text/event-stream" => body,
            Ok(_) => return End::NotOffered,
            Err(FetchError::Status {
                status: 404 | 405 | 501,
                ..
            }) => return End::NotOffered,
            Err(error) => return End::Refused(error),
        };
        let opened = Instant::now();
        debug!(peer = %self.peer, "listening for news");
        // What changed between the last pull and now, no event tells.
        tell(&self.news, self.peer, Heard::News).await;
        let mut events = EventReader::default();
        let (mut received, mut garbled) = (0u64, 0);
        loop {
            let chunk = match body.chunk_within(SILENCE).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) | Err(_) => return End::Broken(opened.elapsed()),
            };
            received += chunk.len() as u64;
            if received > BURST + opened.elapsed().as_secs() * BYTES_A_SECOND {
                return End::Cut(Nonsense::Flood);
            }
            let heads = match events.read(&chunk) {
                Ok(heads) => heads,
                Err(nonsense) => return End::Cut(nonsense),
            };
            let mut news = false;
            for head in heads {
                match serde_json::from_str::<NewHead>(&head) {
                    Ok(head) => news |= self.is_news(&head),
                    Err(_) => garbled += 1,
                }
            }
            if garbled > MAX_GARBLED {
                return End::Cut(Nonsense::Garbled);
            }
            if news {
                tell(&self.news, self.peer, Heard::News).await;
                tokio::time::sleep(self.rest.get()).await;
            }
        }
    }

    /// Whether a head names something that a pull from this peer could bring, and that is not held.
    fn is_news(&self, head: &NewHead) -> bool {
        let offered = self.held || head.did == self.peer;
        let followed = offered && !self.ignored.borrow().contains(&head.did);
        if self.catalog.is_revoked(&head.did) {
            return false;
        }
        let held = self.catalog.log(&head.did);
        followed && held.is_none_or(|view| head.revoked || head.is_beyond(&view.state))
    }
}

/// How long a stream rests after news of a peer that listed so many logs.
fn rest(listed: usize) -> Duration {
    PACE.saturating_mul(u32::try_from(listed).unwrap_or(u32::MAX))
        .min(SILENCE)
}

/// Says what was heard. A worker that is being restarted asks everyone anew.
async fn tell(news: &Recipient<PeerNews>, peer: Did, heard: Heard) {
    if let Err(error) = news.send(PeerNews { peer, heard }).await {
        debug!(%peer, %error, "news reached nobody");
    }
}

/// The failpoint at the start of each message.
fn strike() {
    if let Err(error) = failpoint::hit("actor.watch") {
        warn!(%error, "failpoint");
    }
}

#[cfg(test)]
mod tests;
