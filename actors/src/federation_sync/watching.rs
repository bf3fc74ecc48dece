//! Whose news are listened to: every peer whose last pull ended well. The [`watch`](crate::watch) does it; what it hears
//! goes to the core, which decides when to ask.

use std::collections::{BTreeMap, BTreeSet};

use actix::fut::wrap_future;
use actix::{AsyncContext, Context, Handler, Message, Recipient};
use hn_protocol::did::Did;
use hn_protocol::federation::{Input, Outcome};
use tracing::debug;

use super::{FederationSync, strike};
use crate::fetch::Trust;
use crate::pull::PeerReport;
use crate::roster::{RosterPeer, Scope};
use crate::watch::{Heard, PeerNews, UnwatchPeer, WatchPeer, Watcher};

/// The watch, where there is one, and what it was asked for: it is asked again when it was restarted.
#[derive(Default)]
pub(super) struct Watching {
    watcher: Option<Watcher>,
    peers: BTreeMap<Did, WatchPeer>,
}

impl FederationSync {
    /// After a pull that ended well: listen to the peer, or try again to.
    pub(super) fn listen_to(
        &mut self,
        peer: &RosterPeer,
        report: &PeerReport,
        ctx: &mut Context<Self>,
    ) {
        let ended = matches!(report.outcome, Outcome::Revoked(_));
        if ended && self.watching.peers.remove(&peer.did).is_some() {
            if let Some(watcher) = &self.watching.watcher {
                send(&watcher.unwatch, UnwatchPeer { peer: peer.did }, ctx);
            }
            return;
        }
        let worth = report.outcome.is_answer() && !ended;
        let Some(base) = report.base.clone().filter(|_| worth) else {
            return;
        };
        let failed = report.held.iter().filter(|held| held.error.is_some());
        let stands = matches!(report.outcome, Outcome::Forked(_)).then_some(peer.did);
        let ignored = failed
            .map(|held| held.did)
            .chain(report.left_out.iter().copied())
            .chain(stands);
        let target = WatchPeer {
            peer: peer.did,
            base,
            trust: if peer.url.is_some() {
                Trust::Operator
            } else {
                Trust::Stranger
            },
            held: peer.scope == Scope::Held,
            ignored: ignored.collect(),
            listed: report.held.len() + report.left_out.len(),
        };
        self.watching.peers.insert(peer.did, target.clone());
        if let Some(watcher) = &self.watching.watcher {
            send(&watcher.watch, target, ctx);
        }
    }

    /// Listens to nobody outside `followed` any more.
    pub(super) fn listen_to_no_other(&mut self, followed: &BTreeSet<Did>, ctx: &mut Context<Self>) {
        let Watching { watcher, peers } = &mut self.watching;
        peers.retain(|peer, _| {
            let stays = followed.contains(peer);
            if let Some(watcher) = watcher.as_ref().filter(|_| !stays) {
                send(&watcher.unwatch, UnwatchPeer { peer: *peer }, ctx);
            }
            stays
        });
    }
}

/// Waits for room in the mailbox beside everything else. A watch that is being restarted asks for all of it again.
fn send<M>(to: &Recipient<M>, message: M, ctx: &mut Context<FederationSync>)
where
    M: Message<Result = ()> + Send + 'static,
{
    let sent = to.send(message);
    let sent = async move {
        if let Err(error) = sent.await {
            debug!(%error, "the watch was not told");
        }
    };
    ctx.spawn(wrap_future::<_, FederationSync>(sent));
}

impl Handler<Watcher> for FederationSync {
    type Result = ();

    fn handle(&mut self, watcher: Watcher, ctx: &mut Self::Context) {
        strike();
        for target in self.watching.peers.values() {
            send(&watcher.watch, target.clone(), ctx);
        }
        self.watching.watcher = Some(watcher);
    }
}

impl Handler<PeerNews> for FederationSync {
    type Result = ();

    fn handle(&mut self, news: PeerNews, ctx: &mut Self::Context) {
        strike();
        let input = match news.heard {
            Heard::News => Input::News(news.peer),
            Heard::Lost => Input::Lost(news.peer),
        };
        self.step(input, ctx);
    }
}
