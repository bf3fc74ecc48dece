//! Connections under watch: one that neither brings a request nor takes an answer for too long is closed.
//!
//! The server bounds the headers of a connection's first request alone; whoever sends those of the second a byte at
//! a time would keep his place for ever. So each connection notes when a request was last complete, and whether an
//! answer is under way; a sweep shuts down those that do neither. Answers that nobody reads are the kernel's affair
//! (`TCP_USER_TIMEOUT`).

use std::collections::BTreeMap;
use std::net::IpAddr;
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
    /// Gives its client's place back.
    _place: Option<ClientPlace>,
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

/// How many connections each client has.
type Clients = Arc<Mutex<BTreeMap<IpAddr, u32>>>;

/// One of a client's connections.
struct ClientPlace {
    clients: Clients,
    client: IpAddr,
}

impl Drop for ClientPlace {
    fn drop(&mut self) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

/// Every connection of a server.
#[derive(Default)]
pub struct Connections {
    watched: Mutex<Vec<Weak<Connection>>>,
    clients: Clients,
    /// The most connections of one client; 0 is no limit.
    a_client: u32,
}

impl Connections {
    /// At most `a_client` of one client; 0 is no limit.
    #[must_use]
    pub fn bounded(a_client: u32) -> Self {
        Self {
            a_client,
            ..Self::default()
        }
    }

    /// A place for one more connection of `client`; `None` when it has as many as it may have.
    fn place(&self, client: IpAddr) -> Option<ClientPlace> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(client).or_default();
        if self.a_client > 0 && *count >= self.a_client {
            return None;
        }
        *count += 1;
        Some(ClientPlace {
            clients: Arc::clone(&self.clients),
            client,
        })
    }

    /// Watches a connection of `client` from now on, as long as the answer is kept; one too many is ended at once. `None`
    /// when the process is out of descriptors.
    pub fn watch(&self, socket: &impl AsFd, client: Option<IpAddr>) -> Option<Arc<Connection>> {
        let place = client.and_then(|client| self.place(client));
        let connection = Arc::new(Connection {
            socket: socket.as_fd().try_clone_to_owned().ok()?,
            opened: Instant::now(),
            last: AtomicU64::new(0),
            answers: AtomicUsize::new(0),
            _place: place,
        });
        if client.is_some() && connection._place.is_none() {
            connection.cut();
            return None;
        }
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
        let connection = connections.watch(&ours, None).unwrap();
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
    fn one_connection_too_many_of_a_client_is_ended_and_another_clients_is_not() {
        let connections = Connections::bounded(1);
        let [one, two] = [1, 2].map(|n| Some(IpAddr::from([192, 0, 2, n])));
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let first = connections.watch(&ours, one).unwrap();
        let (second, mut ended) = UnixStream::pair().unwrap();
        assert!(connections.watch(&second, one).is_none());
        assert_eq!(ended.read(&mut [0]).unwrap(), 0, "ended");
        assert!(connections.watch(&second, two).is_some());
        theirs.set_nonblocking(true).unwrap();
        assert!(theirs.read(&mut [0]).is_err(), "the first is open");
        drop(first);
        assert!(
            connections.watch(&second, one).is_some(),
            "a place was given back"
        );
        assert!(connections.clients.lock().unwrap().is_empty());
    }

    #[test]
    fn what_is_closed_is_watched_no_more() {
        let connections = Connections::default();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        drop(connections.watch(&ours, None).unwrap());
        connections.sweep(Duration::ZERO);
        assert!(connections.watched.lock().unwrap().is_empty());
    }
}
