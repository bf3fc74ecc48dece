//! What supervision promises, one sentence a test.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use actix::{Handler, MailboxError, Message};

#[derive(Message)]
#[rtype(result = "u64")]
struct Add {
    amount: u64,
}

#[derive(Message)]
#[rtype(result = "()")]
struct Break;

#[derive(Message)]
#[rtype(result = "()")]
struct Stop;

/// Counts; what it counted is lost with a panic, as unsaved state is.
struct Counter {
    sum: u64,
    lives: u64,
    breaks_at_start: bool,
}

impl Counter {
    fn new() -> Self {
        Self {
            sum: 0,
            lives: 0,
            breaks_at_start: false,
        }
    }
}

impl Actor for Counter {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        self.lives += 1;
        assert!(!self.breaks_at_start || self.lives < 2, "breaks at start");
    }
}

impl Supervised for Counter {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.sum = 0;
    }
}

impl Handler<Add> for Counter {
    type Result = u64;

    fn handle(&mut self, message: Add, _: &mut Self::Context) -> u64 {
        self.sum += message.amount;
        self.sum
    }
}

impl Handler<Break> for Counter {
    type Result = ();

    fn handle(&mut self, _: Break, _: &mut Self::Context) {
        panic!("a broken message");
    }
}

impl Handler<Stop> for Counter {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

const CAPACITY: usize = 16;

fn fast() -> RestartPolicy {
    RestartPolicy {
        backoff: Duration::from_millis(1),
        max_backoff: Duration::from_millis(5),
        limit: 3,
        window: Duration::from_secs(60),
    }
}

fn status(registry: &Registry, name: &str) -> ActorStatus {
    let mut list = registry.list().into_iter();
    list.find(|s| s.name == name).expect("is listed")
}

async fn until(registry: &Registry, name: &str, state: ActorState) {
    let wait = async {
        while status(registry, name).state != state {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), wait)
        .await
        .expect("the state is reached within 5 s");
}

#[actix::test]
async fn restarts_on_panic() {
    let metrics = Metrics::new();
    let registry = Registry::new(metrics.clone());
    let addr = supervise("counter", CAPACITY, &registry, None, |_| Counter::new());
    assert_eq!(addr.send(Add { amount: 2 }).await, Ok(2));
    let began = Instant::now();
    assert_eq!(addr.send(Break).await, Err(MailboxError::Closed));
    assert_eq!(
        addr.send(Add { amount: 5 }).await,
        Ok(5),
        "the same address serves again, from rebuilt state"
    );
    assert!(began.elapsed() < Duration::from_secs(1), "within a second");
    assert_eq!(
        status(&registry, "counter"),
        ActorStatus {
            name: "counter",
            state: ActorState::Running,
            restarts: 1
        }
    );
    let text = metrics.encode();
    assert!(text.contains("hn_actor_restarts_total{actor=\"counter\"} 1"));
}

#[actix::test]
async fn messages_queued_behind_a_panic_are_served() {
    let registry = Registry::new(Metrics::new());
    let addr = supervise("counter", CAPACITY, &registry, None, |_| Counter::new());
    let bad = addr.send(Break);
    let queued: Vec<_> = (0..10).map(|_| addr.send(Add { amount: 1 })).collect();
    assert_eq!(bad.await, Err(MailboxError::Closed));
    let answers = futures_util::future::join_all(queued).await;
    let expected: Vec<_> = (1..=10).map(Ok).collect();
    assert_eq!(answers, expected, "all of them, in order");
}

#[actix::test]
async fn gives_up_after_a_restart_storm() {
    let registry = Registry::new(Metrics::new());
    let addr = supervise_with(fast(), "counter", CAPACITY, &registry, None, |_| {
        Counter::new()
    });
    for _ in 0..4 {
        assert_eq!(addr.send(Break).await, Err(MailboxError::Closed));
    }
    until(&registry, "counter", ActorState::Failed).await;
    assert_eq!(status(&registry, "counter").restarts, 3);
    assert!(registry.any_failed());
    let after = addr.send(Add { amount: 1 }).await;
    assert_eq!(after, Err(MailboxError::Closed), "and says so at once");
}

#[actix::test]
async fn a_panic_at_start_is_a_failure_like_any_other() {
    let registry = Registry::new(Metrics::new());
    let addr = supervise_with(fast(), "counter", CAPACITY, &registry, None, |_| Counter {
        breaks_at_start: true,
        ..Counter::new()
    });
    assert_eq!(addr.send(Break).await, Err(MailboxError::Closed));
    until(&registry, "counter", ActorState::Failed).await;
    drop(addr);
}

#[actix::test]
async fn other_actors_are_untouched() {
    let registry = Registry::new(Metrics::new());
    let arbiter = actix::Arbiter::new();
    let bad = supervise("bad", CAPACITY, &registry, Some(&arbiter.handle()), |_| {
        Counter::new()
    });
    let good = supervise("good", CAPACITY, &registry, Some(&arbiter.handle()), |_| {
        Counter::new()
    });
    assert_eq!(good.send(Add { amount: 1 }).await, Ok(1));
    assert_eq!(bad.send(Break).await, Err(MailboxError::Closed));
    assert_eq!(
        good.send(Add { amount: 1 }).await,
        Ok(2),
        "kept its state, on the same thread"
    );
    assert_eq!(bad.send(Add { amount: 1 }).await, Ok(1));
    assert_eq!(status(&registry, "good").restarts, 0);
    assert_eq!(status(&registry, "bad").restarts, 1);
    arbiter.stop();
}

#[actix::test]
async fn a_backoff_blocks_nobody_else_on_the_thread() {
    let registry = Registry::new(Metrics::new());
    let slow = RestartPolicy {
        backoff: Duration::from_secs(3600),
        max_backoff: Duration::from_secs(3600),
        ..fast()
    };
    let bad = supervise_with(slow, "bad", CAPACITY, &registry, None, |_| Counter::new());
    let good = supervise("good", CAPACITY, &registry, None, |_| Counter::new());
    assert_eq!(bad.send(Break).await, Err(MailboxError::Closed));
    assert_eq!(status(&registry, "bad").state, ActorState::Restarting);
    assert_eq!(good.send(Add { amount: 1 }).await, Ok(1));
}

#[actix::test]
async fn an_actor_that_stops_is_restarted_until_the_node_shuts_down() {
    let registry = Registry::new(Metrics::new());
    let addr = supervise("counter", CAPACITY, &registry, None, |_| Counter::new());
    addr.send(Stop).await.unwrap();
    assert_eq!(addr.send(Add { amount: 1 }).await, Ok(1));
    assert_eq!(status(&registry, "counter").restarts, 1);
    registry.begin_shutdown();
    addr.send(Stop).await.unwrap();
    until(&registry, "counter", ActorState::Stopped).await;
}

#[actix::test]
async fn an_actor_that_nobody_can_reach_ends() {
    let registry = Registry::new(Metrics::new());
    let addr = supervise("counter", CAPACITY, &registry, None, |_| Counter::new());
    assert_eq!(addr.send(Add { amount: 1 }).await, Ok(1));
    drop(addr);
    until(&registry, "counter", ActorState::Stopped).await;
    assert_eq!(status(&registry, "counter").restarts, 0);
}

#[test]
fn the_backoff_grows_to_its_maximum() {
    let policy = RestartPolicy::default();
    let waits: Vec<u128> = (1..=7).map(|n| policy.wait(n).as_millis()).collect();
    assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000]);
    assert_eq!(policy.wait(usize::MAX), policy.max_backoff);
}
