//! Actors that survive their panics.
//!
//! actix neither catches a panic nor re-creates the actor: it is gone for good and its address closed. Here the
//! actor's future is polled inside `catch_unwind`. After a panic (or an actor that stops itself) the supervisor waits
//! a growing backoff, lets the actor rebuild its state in `restarting()`, and goes on with the same mailbox:
//! whoever sent the bad message gets `MailboxError::Closed`, messages queued behind it are served, the address stays.
//! A restart storm ends in the state `failed`. No other actor is touched.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use actix::dev::{ContextFut, channel};
use actix::{Actor, ActorContext, Addr, ArbiterHandle, Context, Supervised};
use serde::Serialize;
use tokio::time::{Instant, Sleep};

use crate::metrics::Metrics;

/// How fast and how often an actor is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartPolicy {
    /// The wait before the first restart; each further one within `window` doubles it.
    pub backoff: Duration,
    /// The longest wait: an actor is back within a second.
    pub max_backoff: Duration,
    /// More failures than this within `window` are a storm.
    pub limit: usize,
    /// How long a failure counts.
    pub window: Duration,
}

impl Default for RestartPolicy {
    /// 50 ms doubling to 1 s; at that pace 20 failures in a minute mean that restarting does not help.
    fn default() -> Self {
        Self {
            backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(1),
            limit: 20,
            window: Duration::from_secs(60),
        }
    }
}

impl RestartPolicy {
    /// The wait before the restart that follows the `failures`th failure within the window.
    #[must_use]
    pub fn wait(&self, failures: usize) -> Duration {
        // 2^16 times any sensible backoff is above any sensible maximum.
        let doublings = u32::try_from(failures.saturating_sub(1).min(16)).unwrap_or(16);
        self.backoff
            .saturating_mul(1 << doublings)
            .min(self.max_backoff)
    }
}

/// What an actor is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum ActorState {
    /// Handles its messages.
    Running,
    /// Waits out the backoff after a panic.
    Restarting,
    /// Given up after a restart storm; its address is closed.
    Failed,
    /// Ended in good order.
    Stopped,
}

/// One line of `actors` in `hn status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ActorStatus {
    /// The actor's name, as in metrics and failpoints.
    pub name: &'static str,
    /// What it is doing.
    pub state: ActorState,
    /// How often it was restarted since the node started.
    pub restarts: u64,
}

/// All supervised actors of a node. Cloning shares it.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<RegistryInner>,
}

struct RegistryInner {
    actors: Mutex<Vec<Arc<Entry>>>,
    stopping: AtomicBool,
    metrics: Metrics,
}

struct Entry {
    name: &'static str,
    state: AtomicU8,
    restarts: AtomicU64,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}

impl Registry {
    /// An empty registry that counts restarts in `metrics`.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self {
            inner: Arc::new(RegistryInner {
                actors: Mutex::new(Vec::new()),
                stopping: AtomicBool::new(false),
                metrics,
            }),
        }
    }

    /// Every actor, in the order in which they were started.
    #[must_use]
    pub fn list(&self) -> Vec<ActorStatus> {
        self.actors()
            .iter()
            .map(|entry| ActorStatus {
                name: entry.name,
                state: entry.state(),
                restarts: entry.restarts.load(Ordering::Relaxed),
            })
            .collect()
    }

    /// Whether some actor was given up.
    #[must_use]
    pub fn any_failed(&self) -> bool {
        self.actors()
            .iter()
            .any(|entry| entry.state() == ActorState::Failed)
    }

    /// From now on an actor that ends stays ended: the node is shutting down.
    pub fn begin_shutdown(&self) {
        self.inner.stopping.store(true, Ordering::Relaxed);
    }

    /// Lists an actor that somebody else runs, such as a thread of its own.
    #[must_use]
    pub fn register(&self, name: &'static str) -> ActorHandle {
        let entry = Arc::new(Entry {
            name,
            state: AtomicU8::new(ActorState::Running as u8),
            restarts: AtomicU64::new(0),
        });
        self.inner.metrics.actor_known(name);
        let mut actors = self.actors();
        // Only one actor has a name; one that is started anew takes the old one's line.
        actors.retain(|known| known.name != name);
        actors.push(Arc::clone(&entry));
        ActorHandle {
            entry,
            registry: Arc::clone(&self.inner),
        }
    }

    fn actors(&self) -> MutexGuard<'_, Vec<Arc<Entry>>> {
        self.inner
            .actors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn state(&self) -> ActorState {
        match self.state.load(Ordering::Relaxed) {
            0 => ActorState::Running,
            1 => ActorState::Restarting,
            2 => ActorState::Failed,
            _ => ActorState::Stopped,
        }
    }
}

/// The running actor's side of its line in the [`Registry`].
#[derive(Clone)]
pub struct ActorHandle {
    entry: Arc<Entry>,
    registry: Arc<RegistryInner>,
}

impl fmt::Debug for ActorHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ActorHandle({})", self.entry.name)
    }
}

impl ActorHandle {
    /// The actor's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.entry.name
    }

    /// Says what the actor is doing.
    pub fn set_state(&self, state: ActorState) {
        self.entry.state.store(state as u8, Ordering::Relaxed);
    }

    /// Counts one restart, in the registry and in `hn_actor_restarts_total`, with the event `actor.restart`.
    pub fn restarted(&self, reason: &str) {
        let restarts = self.entry.restarts.fetch_add(1, Ordering::Relaxed) + 1;
        self.registry.metrics.actor_restarted(self.entry.name);
        self.set_state(ActorState::Running);
        tracing::warn!(
            event = "actor.restart",
            actor = self.entry.name,
            restarts,
            reason,
            "actor restarted"
        );
    }

    fn node_is_stopping(&self) -> bool {
        self.registry.stopping.load(Ordering::Relaxed)
    }
}

/// Starts an actor under supervision with the default [`RestartPolicy`].
///
/// `factory` runs where the actor lives: on `arbiter`, else on the current one. `mailbox_capacity` bounds the messages
/// that wait. An actor that calls `ctx.stop()` is restarted too, unless [`Registry::begin_shutdown`] was called or
/// nobody holds its address any more.
pub fn supervise<A, F>(
    name: &'static str,
    mailbox_capacity: usize,
    registry: &Registry,
    arbiter: Option<&ArbiterHandle>,
    factory: F,
) -> Addr<A>
where
    A: Actor<Context = Context<A>> + Supervised,
    F: FnOnce(&mut Context<A>) -> A + Send + 'static,
{
    let policy = RestartPolicy::default();
    supervise_with(policy, name, mailbox_capacity, registry, arbiter, factory)
}

/// [`supervise`] with another policy.
pub fn supervise_with<A, F>(
    policy: RestartPolicy,
    name: &'static str,
    mailbox_capacity: usize,
    registry: &Registry,
    arbiter: Option<&ArbiterHandle>,
    factory: F,
) -> Addr<A>
where
    A: Actor<Context = Context<A>> + Supervised,
    F: FnOnce(&mut Context<A>) -> A + Send + 'static,
{
    let (sender, receiver) = channel::channel(mailbox_capacity);
    let handle = registry.register(name);
    let listed = handle.clone();
    let start = move || {
        let mut context = Context::with_receiver(receiver);
        match catch_unwind(AssertUnwindSafe(|| factory(&mut context))) {
            Ok(actor) => {
                actix::spawn(Supervisor {
                    actor: Some(context.into_future(actor)),
                    phase: Phase::Running,
                    failures: VecDeque::new(),
                    reason: String::new(),
                    policy,
                    handle,
                });
            }
            Err(panic) => {
                let reason = panic_text(panic.as_ref());
                tracing::error!(actor = handle.name(), %reason, "actor could not be made");
                handle.set_state(ActorState::Failed);
            }
        }
    };
    match arbiter {
        Some(arbiter) => {
            if !arbiter.spawn_fn(start) {
                tracing::error!(actor = name, "the actor's arbiter is gone");
                listed.set_state(ActorState::Failed);
            }
        }
        None => start(),
    }
    Addr::new(sender)
}

/// The text of a panic, as far as it has one.
#[must_use]
pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&'static str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a text".to_owned()
    }
}

enum Phase {
    Running,
    Waiting(Pin<Box<Sleep>>),
}

/// The future that runs one actor, through all its lives.
struct Supervisor<A: Actor<Context = Context<A>> + Supervised> {
    /// Present until the supervisor is dropped.
    actor: Option<ContextFut<A, Context<A>>>,
    phase: Phase,
    /// When the actor went down within the policy's window.
    failures: VecDeque<Instant>,
    /// Why it went down last.
    reason: String,
    policy: RestartPolicy,
    handle: ActorHandle,
}

/// What one poll of an actor came to.
enum Outcome {
    Pending,
    Ended,
    Panicked(String),
}

impl<A: Actor<Context = Context<A>> + Supervised> Supervisor<A> {
    fn poll_actor(&mut self, cx: &mut TaskContext<'_>) -> Outcome {
        let Some(actor) = self.actor.as_mut() else {
            return Outcome::Ended;
        };
        match catch_unwind(AssertUnwindSafe(|| Pin::new(actor).poll(cx))) {
            Ok(Poll::Pending) => Outcome::Pending,
            Ok(Poll::Ready(())) => Outcome::Ended,
            Err(panic) => Outcome::Panicked(panic_text(panic.as_ref())),
        }
    }

    /// Rebuilds the actor. Nothing when nobody holds its address any more.
    fn restart_actor(&mut self) -> Result<bool, String> {
        let Some(actor) = self.actor.as_mut() else {
            return Ok(false);
        };
        catch_unwind(AssertUnwindSafe(|| actor.restart()))
            .map_err(|panic| panic_text(panic.as_ref()))
    }

    /// Arms the backoff, or answers `Ready` when this actor is not to come back.
    fn went_down(&mut self, reason: String, panicked: bool) -> Poll<()> {
        let unreachable = self.actor.as_mut().is_none_or(|a| !a.ctx().connected());
        if self.handle.node_is_stopping() || (unreachable && !panicked) {
            return self.finish(ActorState::Stopped);
        }
        let now = Instant::now();
        while let Some(oldest) = self.failures.front() {
            if now.duration_since(*oldest) <= self.policy.window {
                break;
            }
            self.failures.pop_front();
        }
        self.failures.push_back(now);
        if self.failures.len() > self.policy.limit {
            let (actor, failures) = (self.handle.name(), self.failures.len());
            tracing::error!(actor, failures, %reason, "actor given up after a restart storm");
            return self.finish(ActorState::Failed);
        }
        let wait = self.policy.wait(self.failures.len());
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        tracing::error!(actor = self.handle.name(), %reason, wait_ms, "actor went down");
        self.handle.set_state(ActorState::Restarting);
        self.reason = reason;
        self.phase = Phase::Waiting(Box::pin(tokio::time::sleep(wait)));
        Poll::Pending
    }

    fn finish(&mut self, state: ActorState) -> Poll<()> {
        self.handle.set_state(state);
        Poll::Ready(())
    }
}

impl<A: Actor<Context = Context<A>> + Supervised> Future for Supervisor<A> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            let down = match &mut this.phase {
                Phase::Running => match this.poll_actor(cx) {
                    Outcome::Pending => return Poll::Pending,
                    Outcome::Ended => this.went_down("stopped itself".to_owned(), false),
                    Outcome::Panicked(reason) => this.went_down(reason, true),
                },
                Phase::Waiting(sleep) => {
                    if sleep.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    match this.restart_actor() {
                        Ok(true) => {
                            this.phase = Phase::Running;
                            this.handle.restarted(&std::mem::take(&mut this.reason));
                            Poll::Pending
                        }
                        Ok(false) => this.finish(ActorState::Stopped),
                        Err(reason) => this.went_down(reason, true),
                    }
                }
            };
            if down.is_ready() {
                return Poll::Ready(());
            }
        }
    }
}

impl<A: Actor<Context = Context<A>> + Supervised> Drop for Supervisor<A> {
    /// Dropping a live actor runs its last hooks, which may panic like any of its code.
    fn drop(&mut self) {
        let Some(mut actor) = self.actor.take() else {
            return;
        };
        if self.handle.entry.state() != ActorState::Running {
            // What is broken or has ended must not be polled once more.
            actor.ctx().terminate();
        } else {
            self.handle.set_state(ActorState::Stopped);
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(actor))) {
            let reason = panic_text(panic.as_ref());
            tracing::error!(actor = self.handle.name(), %reason, "actor panicked at its end");
        }
    }
}

#[cfg(test)]
#[path = "supervise_tests.rs"]
mod tests;
