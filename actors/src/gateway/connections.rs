//! Connections under watch: one that neither brings a request nor takes an answer for too long is closed.
//!
//! The server bounds the headers of a connection's first request alone; whoever sends those of the second a byte at
//! a time would keep his place for ever. So each connection notes when a request was last complete, and whether an
//! answer is under way; a sweep shuts down those that do neither. Answers that nobody reads are the kernel's affair
//! (`TCP_USER_TIMEOUT`).

use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actix_web::body::{BodySize, MessageBody};
use bytes::Bytes;
use rustix::net::{Shutdown, shutdown, sockopt};

/// How often connections are looked at, while there are any.
pub const SWEEP: Duration = Duration::from_secs(5);

/// One connection: in the server's connection data as long as it lives.
pub struct Connection {
    /// A second handle of the socket: closing the first is the server's business, ending the conversation ours.
    socket: OwnedFd,
    opened: Instant,
    /// Milliseconds after `opened` at which something last happened.
    last: AtomicU64,
    /// Answers that are being sent.
    answers: AtomicUsize,
}

impl Connection {
    fn touch(&self) {
        let after = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(after, Ordering::Relaxed);
    }

    /// Ends the conversation, whatever is under way.
    pub fn cut(&self) {
        // A socket that is gone already has nothing to shut down.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// Bounds what the kernel keeps of answers that are not taken, in bytes.
    pub fn bound_unsent(&self, bytes: usize) {
        // Without the bound the kernel's own holds.
        let _ = sockopt::set_socket_send_buffer_size(&self.socket, bytes);
    }

    fn quiet_for(&self) -> Duration {
        if self.answers.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        self.opened
            .elapsed()
            .saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}

/// Every connection of a server.
#[derive(Default)]
pub struct Connections {
    watched: Mutex<Vec<Weak<Connection>>>,
}

impl Connections {
    /// Watches a connection from now on, as long as the answer is kept. `None` when the process is out of descriptors.
    pub fn watch(&self, socket: &impl AsFd) -> Option<Arc<Connection>> {
        let connection = Arc::new(Connection {
            socket: socket.as_fd().try_clone_to_owned().ok()?,
            opened: Instant::now(),
            last: AtomicU64::new(0),
            answers: AtomicUsize::new(0),
        });
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.push(Arc::downgrade(&connection));
        Some(connection)
    }

    /// Ends every conversation that has been quiet for longer than `limit`.
    pub fn sweep(&self, limit: Duration) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|connection| {
            let Some(connection) = connection.upgrade() else {
                return false;
            };
            if connection.quiet_for() > limit {
                connection.cut();
            }
            true
        });
    }
}

/// A request is complete, and its answer is under way until this is dropped.
pub struct Answering(Arc<Connection>);

impl Answering {
    /// Notes both.
    #[must_use]
    pub fn on(connection: &Arc<Connection>) -> Self {
        connection.touch();
        connection.answers.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(connection))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.touch();
        self.0.answers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body whose connection counts as busy until it has been sent.
pub struct Attended<B> {
    body: B,
    _answering: Option<Answering>,
}

impl<B> Attended<B> {
    /// `body`, attended by `answering`.
    pub const fn new(body: B, answering: Option<Answering>) -> Self {
        Self {
            body,
            _answering: answering,
        }
    }
}

impl<B: MessageBody + Unpin> MessageBody for Attended<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_quiet_connection_is_ended_and_a_busy_one_is_not() {
        let connections = Connections::default();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let connection = connections.watch(&ours).unwrap();
        let answering = Answering::on(&connection);
        connections.sweep(Duration::ZERO);
        theirs.set_nonblocking(true).unwrap();
        assert!(theirs.read(&mut [0]).is_err(), "still open");
        drop(answering);
        // Time passes between two looks at a clock: zero is exceeded as soon as it does.
        while connection.quiet_for() == Duration::ZERO {
            std::hint::spin_loop();
        }
        connections.sweep(Duration::ZERO);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "ended");
    }

    #[test]
    fn what_is_closed_is_watched_no_more() {
        let connections = Connections::default();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        drop(connections.watch(&ours).unwrap());
        connections.sweep(Duration::ZERO);
        assert!(connections.watched.lock().unwrap().is_empty());
    }
}
