//! Introduces this node to those whose invites its operator took (`mcp/introductions.json`): tries until the inviter has
//! answered, asks again until their operator has decided, and remembers what came of it. When is decided by
//! [`hn_protocol::invite::Agenda`].

mod send;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, Message, SpawnHandle, Supervised,
    WrapFuture,
};
use hn_protocol::did::Did;
use hn_protocol::invite::{
    Agenda, BaseUrl, Introducing, Introductions, IntroductionsFull, InviteToken, Reply, Stage,
};
use hn_protocol::time::Timestamp;
use serde::Serialize;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::failpoint;
use crate::fetch::Fetch;
use crate::home::Home;
use crate::kept::Kept;
use crate::own_url::OwnUrl;

/// The failpoint of each write.
const FAILPOINT: &str = "introductions.before_rename";
/// Introductions sent at the same time: a person takes invites one by one.
const AT_ONCE: usize = 4;
/// The shortest timer: what is due at once is started at once, not by a timer.
const SHORTEST_SLEEP: Duration = Duration::from_millis(5);
/// The longest: however far the clock was set, it is looked at again within this.
const LONGEST_SLEEP: Duration = Duration::from_secs(15 * 60);
/// After the disk refused what an answer was, it is written with the next one; the inviter is asked again after this.
const DISK_RETRY: Duration = Duration::from_secs(60);

/// Introduces us to whoever made an invite; begins at once. Errors: too many are under way; the disk.
#[derive(Message)]
#[rtype(result = "Result<IntroductionView, IntroduceError>")]
pub struct Introduce {
    /// Who invites.
    pub peer: Did,
    /// Where they are.
    pub url: BaseUrl,
    /// The invite's secret.
    pub token: InviteToken,
}

/// Ends what is left of an introduction: the peer is not followed any more. False when there is none. Errors: the disk.
#[derive(Message)]
#[rtype(result = "Result<bool, IntroduceError>")]
pub struct ForgetIntroduction {
    /// To whom.
    pub peer: Did,
}

/// Why an introduction was not begun.
#[derive(Debug, thiserror::Error)]
pub enum IntroduceError {
    /// Too many are under way.
    #[error(transparent)]
    Full(#[from] IntroductionsFull),
    /// The disk.
    #[error("the introductions cannot be kept: {0}")]
    Io(#[from] io::Error),
}

/// An introduction as an operator sees it: without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IntroductionView {
    /// To whom.
    pub did: Did,
    /// Where.
    pub url: BaseUrl,
    /// Since when.
    pub since: Timestamp,
    /// `sending`, `pending`, `accepted` or `refused`.
    pub state: Stage,
    /// Why it was refused, or why the last try failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it is tried again after a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_try: Option<Timestamp>,
}

/// The introductions of this home, for reading from any thread. Cloning shares them.
#[derive(Clone)]
pub struct IntroductionBook {
    inner: Arc<Inner>,
}

struct Inner {
    kept: Kept<Introductions>,
    agenda: Mutex<Agenda>,
}

impl IntroductionBook {
    /// Reads what is kept; a damaged file is set aside and said. Errors: the disk.
    pub fn open(home: &Home, now: Timestamp) -> io::Result<Self> {
        let inner = Inner {
            kept: Kept::open(home.introductions_file(), FAILPOINT, now)?,
            agenda: Mutex::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// What was damaged at the start, and where it is now.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.inner.kept.trouble()
    }

    /// All of them, in the order in which they were begun.
    #[must_use]
    pub fn list(&self) -> Vec<IntroductionView> {
        let kept = self.inner.kept.get();
        self.agenda(|agenda| {
            let views = kept.list().iter().map(|one| view(one, agenda));
            views.collect()
        })
    }

    /// The one to `did`.
    #[must_use]
    pub fn of(&self, did: &Did) -> Option<IntroductionView> {
        let kept = self.inner.kept.get();
        let one = kept.of(did)?;
        Some(self.agenda(|agenda| view(one, agenda)))
    }

    fn agenda<T>(&self, look: impl FnOnce(&mut Agenda) -> T) -> T {
        let mut agenda = self
            .inner
            .agenda
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        look(&mut agenda)
    }
}

fn view(one: &Introducing, agenda: &Agenda) -> IntroductionView {
    let trouble = agenda.trouble(&one.did).filter(|_| !one.stage.is_final());
    IntroductionView {
        did: one.did,
        url: one.url.clone(),
        since: one.since,
        state: one.stage,
        reason: one
            .reason
            .clone()
            .or_else(|| trouble.map(|(reason, _)| reason.to_owned())),
        next_try: trouble.map(|(_, next)| next),
    }
}

/// What the introducer is made with.
pub struct IntroducerOptions {
    /// Whether it sends anything: a command's own process only writes down what is to be sent.
    pub background: bool,
    /// Where this node is.
    pub own_url: OwnUrl,
    /// Time.
    pub clock: Clock,
}

/// The actor.
pub struct Introducer {
    options: IntroducerOptions,
    introduced: IntroductionBook,
    fetch: Fetch,
    timer: Option<SpawnHandle>,
}

impl Introducer {
    /// Sends nothing before it is started.
    #[must_use]
    pub fn new(options: IntroducerOptions, introduced: IntroductionBook, fetch: Fetch) -> Self {
        Self {
            options,
            introduced,
            fetch,
            timer: None,
        }
    }

    /// Starts what is due, and sets the timer for the next.
    fn step(&mut self, ctx: &mut Context<Self>) {
        if !self.options.background {
            return;
        }
        let now = self.options.clock.now();
        let kept = self.introduced.inner.kept.get();
        let (due, next) = self.introduced.agenda(|agenda| {
            let room = AT_ONCE.saturating_sub(agenda.running());
            let due = agenda.start_due(&kept, room, now);
            // Without room, the next end is the next look.
            let full = agenda.running() >= AT_ONCE;
            let next = agenda.next_wake(&kept).filter(|_| !full);
            (due, next)
        });
        for one in due {
            self.send(one, ctx);
        }
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        self.timer = next.map(|next| {
            let wait = next.since(now).clamp(SHORTEST_SLEEP, LONGEST_SLEEP);
            ctx.run_later(wait, |this, ctx| {
                this.timer = None;
                this.step(ctx);
            })
        });
    }

    fn send(&self, one: Introducing, ctx: &mut Context<Self>) {
        // Without a URL the inviter is told none; they know us by our DID.
        let (fetch, own_url) = (self.fetch.clone(), self.options.own_url.find().ok());
        let sent = async move {
            let reply = send::introduce(&fetch, &one, own_url.as_ref()).await;
            (one, reply)
        };
        ctx.spawn(sent.into_actor(self).map(|(one, reply), this, ctx| {
            this.answered(&one, &reply);
            this.step(ctx);
        }));
    }

    fn answered(&self, one: &Introducing, reply: &Reply) {
        let (now, peer) = (self.options.clock.now(), one.did);
        let kept = &self.introduced.inner.kept;
        let written: io::Result<()> = kept.change(|list| {
            list.answered(&peer, &one.token, reply, now);
            Ok(())
        });
        let current = kept.get();
        let current = current.of(&peer).filter(|known| known.token == one.token);
        self.introduced.agenda(|agenda| match (&written, current) {
            // Another invite took its place, or nobody follows the inviter any more.
            (_, None) => agenda.dropped(&peer),
            (Ok(()), Some(_)) => agenda.tried(&peer, reply, now),
            (Err(error), Some(_)) => {
                let failed = Reply::Failed(format!("the answer could not be kept: {error}"));
                agenda.tried(&peer, &failed, now.plus(DISK_RETRY));
            }
        });
        match reply {
            Reply::Friend => info!(%peer, "introduced: the peer counts this node as a friend"),
            Reply::Pending => info!(%peer, "introduced: the peer's operator is asked"),
            Reply::Refused(reason) => warn!(%peer, reason, "the peer refused the introduction"),
            Reply::Failed(reason) => info!(%peer, reason, "the introduction was not answered yet"),
        }
        if let Err(error) = written {
            warn!(%error, %peer, "what the peer answered to the introduction was not kept");
        }
    }
}

impl Actor for Introducer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.step(ctx);
    }
}

impl Supervised for Introducer {
    /// What was on its way is lost with the old timers; every introduction is simply due again.
    fn restarting(&mut self, _: &mut Self::Context) {
        self.introduced.agenda(|agenda| *agenda = Agenda::default());
        self.timer = None;
    }
}

impl Handler<Introduce> for Introducer {
    type Result = Result<IntroductionView, IntroduceError>;

    fn handle(&mut self, message: Introduce, ctx: &mut Self::Context) -> Self::Result {
        strike();
        let Introduce { peer, url, token } = message;
        let now = self.options.clock.now();
        let begun = self
            .introduced
            .inner
            .kept
            .change::<_, IntroduceError>(|list| {
                list.begin(peer, url, token, now)?;
                Ok(list.of(&peer).cloned())
            })?;
        self.introduced.agenda(|agenda| agenda.at_once(&peer));
        self.step(ctx);
        let view = begun.map(|one| self.introduced.agenda(|agenda| view(&one, agenda)));
        view.ok_or_else(|| IntroduceError::Io(io::ErrorKind::NotFound.into()))
    }
}

impl Handler<ForgetIntroduction> for Introducer {
    type Result = Result<bool, IntroduceError>;

    fn handle(&mut self, message: ForgetIntroduction, ctx: &mut Self::Context) -> Self::Result {
        strike();
        let kept = &self.introduced.inner.kept;
        let forgotten = kept.change::<_, IntroduceError>(|list| Ok(list.forget(&message.peer)))?;
        self.step(ctx);
        Ok(forgotten)
    }
}

/// The failpoint at the start of each message.
fn strike() {
    if let Err(error) = failpoint::hit("actor.introducer") {
        warn!(%error, "failpoint");
    }
}
