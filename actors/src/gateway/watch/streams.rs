//! What open streams may cost: how many there are, in all and of one client, and how long one is kept whose reader does
//! not read. One timer serves all of them, and none runs while there is no stream.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::{Duration, Instant};

use super::super::connections::Connection;
use super::super::problem::Problem;
use super::LIFETIME;

/// How often each reader is given a comment: whoever hears nothing for three times as long knows that the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A reader that took nothing for so many heartbeats is closed.
const UNTAKEN_BEATS: u64 = 2;
/// Streams in all, until the gateway says how many connections there may be.
const STREAMS: usize = 512;
/// One client has at most this share of all streams.
const CLIENT_SHARE: usize = 4;
/// What the kernel keeps for a reader that does not read, in bytes; it doubles the number.
const SEND_BUFFER: usize = 32 << 10;

/// What every stream is told by the one timer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Beat {
    /// Grows with each.
    pub at: u64,
    /// The node ends: so do the streams.
    pub closing: bool,
}

/// Every open stream.
pub struct Streams {
    /// A number that no other run of this node has, as far as chance goes.
    run: u64,
    every: Duration,
    most: AtomicUsize,
    beat: watch::Sender<Beat>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    readers: BTreeMap<u64, Arc<Reader>>,
    entered: u64,
    /// Whether the timer runs.
    beating: bool,
}

struct Reader {
    /// `None` at the Unix socket.
    client: Option<IpAddr>,
    connection: Option<Arc<Connection>>,
    opened: Instant,
    /// The beat at which its connection last took something.
    taken: AtomicU64,
}

impl Default for Streams {
    fn default() -> Self {
        Self::every(HEARTBEAT)
    }
}

impl Streams {
    pub(super) fn every(every: Duration) -> Self {
        Self {
            run: rand::random(),
            every,
            most: AtomicUsize::new(STREAMS),
            beat: watch::Sender::default(),
            open: Mutex::default(),
        }
    }

    /// Half of the connections that there may be: the other half is for those who ask.
    pub fn bound(&self, connections: usize) {
        self.most.store((connections / 2).max(1), Ordering::Relaxed);
    }

    /// A place for one more. Errors: `busy`, all are taken, or this client has its share.
    pub(super) fn enter(
        self: &Arc<Self>,
        client: Option<IpAddr>,
        connection: Option<Arc<Connection>>,
    ) -> Result<Place, Problem> {
        if let Some(connection) = &connection {
            connection.bound_unsent(SEND_BUFFER);
        }
        let most = self.most.load(Ordering::Relaxed);
        let share = (most / CLIENT_SHARE).max(1);
        let mut open = self.open();
        let theirs = open.readers.values().filter(|r| r.client == client).count();
        if open.readers.len() >= most || theirs >= share {
            let detail = "too many streams are open; ask for /federate/peers instead";
            return Err(Problem::new("busy", detail));
        }
        let reader = Arc::new(Reader {
            client,
            connection,
            opened: Instant::now(),
            taken: AtomicU64::new(self.beat.borrow().at),
        });
        open.entered += 1;
        let number = open.entered;
        open.readers.insert(number, Arc::clone(&reader));
        if !std::mem::replace(&mut open.beating, true) {
            actix::spawn(Arc::clone(self).keep_time());
        }
        Ok(Place {
            streams: Arc::clone(self),
            number,
            reader,
        })
    }

    /// How many are open.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open().readers.len()
    }

    /// Ends every stream, and those that are opened from now on.
    pub fn close(&self) {
        self.beat.send_modify(|beat| beat.closing = true);
    }

    /// Beats while there are readers.
    async fn keep_time(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.every).await;
            self.beat.send_modify(|beat| beat.at += 1);
            let mut open = self.open();
            if open.readers.is_empty() {
                open.beating = false;
                return;
            }
            let now = self.beat.borrow().at;
            for reader in open.readers.values() {
                reader.judge(now, self.every);
            }
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// Closes the connection of who does not read: its stream is not even asked for more, and would never end by itself.
    fn judge(&self, beat: u64, every: Duration) {
        let untaken = beat.saturating_sub(self.taken.load(Ordering::Relaxed));
        // The stream itself ends in time, while somebody reads it.
        let late = self.opened.elapsed() > LIFETIME + every * 2;
        if let Some(connection) = self.connection.as_ref()
            && (untaken > UNTAKEN_BEATS || late)
        {
            connection.cut();
        }
    }
}

/// A stream's place, until it is dropped.
pub(super) struct Place {
    streams: Arc<Streams>,
    number: u64,
    reader: Arc<Reader>,
}

impl Place {
    /// The number of this run of the node.
    pub fn run(&self) -> u64 {
        self.streams.run
    }

    /// To be told of every beat.
    pub fn beats(&self) -> watch::Receiver<Beat> {
        self.streams.beat.subscribe()
    }

    /// The connection asks for more: what it was given before is out of our hands.
    pub fn taken(&self) {
        let now = self.streams.beat.borrow().at;
        self.reader.taken.store(now, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.streams.open().readers.remove(&self.number);
    }
}
