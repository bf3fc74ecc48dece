//! The HTTP side of the node: open routes on TCP, the same and `/admin/*` on the Unix socket.
//!
//! Handlers parse, ask, respond. Reads go to the [`Catalog`] directly; whatever changes something is a message
//! to an actor. Errors are problem documents from one table ([`problem`]).

mod access;
mod admin;
mod artifact;
mod batch;
mod connections;
mod federate;
mod forks;
pub mod friends;
mod guard;
mod heads;
mod hosted;
mod openapi;
mod own_log;
mod page;
mod policy;
mod presence;
pub mod problem;
mod proof;
mod publish;
mod push;
mod revocation;
mod status;
mod storage;
pub(crate) mod tar_stream;
mod watch;

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Context, Handler, Message, MessageResult, Recipient, Supervised};
use actix_web::dev::{Extensions, Server, ServerHandle};
use actix_web::http::header::{ALLOW, HeaderValue, IF_NONE_MATCH};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, ResponseError, middleware, web};
use hn_protocol::did::Did;
use hn_protocol::time::Timestamp;
use serde::Serialize;
use tokio::sync::Semaphore;
use tracing::{error, warn};
use url::Url;

use access::Callers;
pub(crate) use batch::MAX_LIMIT as MAX_BATCH;
use connections::Connections;
pub use guard::Guard;
use heads::Heads;
pub use openapi::document as openapi_document;
use page::PageBudget;
use problem::Problem;
pub use publish::{BATCH_BYTES, BATCH_FILES};
use watch::Streams;

use crate::artifact_mirror::{FetchArtifact, MirrorLimits};
use crate::artifacts::ArtifactShelf;
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::failpoint;
use crate::federation_sync::{ListPeers, PutPeer, Refresh, ReloadRoster, RemovePeer};
use crate::fetch::Fetch;
use crate::forks::Forks;
use crate::home::Home;
use crate::hosted::Hosting;
use crate::index_federator::{AcceptHead, GetOwnLog, PublishEntries, Reindex};
use crate::log_recovery::{AskHolders, GetRecovery, ResetLog, ResumeLog};
use crate::metrics::Metrics;
use crate::policy::PolicyShelf;
use crate::prove::Prover;
use crate::revocations::Revocations;
use crate::roster::Standings;
use crate::settings::{GatewaySettings, Profile};
use crate::store::Store;
use crate::supervise::Registry;

/// How long a client may take to send its headers (design 13).
const HEADER_TIME: Duration = Duration::from_secs(10);
/// What was sent and is not taken for so long ends the connection, a window that stays shut included.
const UNREAD_TIME: Duration = Duration::from_secs(30);
/// An idle connection is kept so long.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Requests under way when the node stops get so long to end, in seconds; SIGTERM promises 10 in all.
const DRAIN_SECONDS: u64 = 5;
/// Threads a worker may block on disks: more would only queue there.
const BLOCKING_THREADS: usize = 8;
/// Connections to the admin socket at the same time.
const SOCKET_CONNECTIONS: usize = 256;
/// Scrapers at the same time.
const METRICS_CONNECTIONS: usize = 16;
/// Threads on which the admin side stages publications and reads disks.
const SOCKET_BLOCKING_THREADS: usize = 32;
/// Messages to actors that wait for their reply, so that no mailbox is ever waited for.
const MESSAGES: usize = 64;
/// Publications streamed at the same time; the next is told 503. Each has a thread until its sender is done.
const PUBLICATIONS: usize = 24;
const _: () = assert!(
    PUBLICATIONS < SOCKET_BLOCKING_THREADS,
    "slow publications leave the admin side threads to read with"
);

/// To whom the gateway may send what.
#[derive(Clone)]
pub struct Links {
    /// Grow our own log.
    pub publish: Recipient<PublishEntries>,
    /// Rebuild the index.
    pub reindex: Recipient<Reindex>,
    /// The state of our own log.
    pub own_log: Recipient<GetOwnLog>,
    /// Something is about to be signed.
    pub ask_holders: Recipient<AskHolders>,
    /// How the recovery of our own log stands.
    pub recovery: Recipient<GetRecovery>,
    /// Ask our log's holders again, or go on without them.
    pub resume_log: Recipient<ResumeLog>,
    /// Begin a new epoch of our own log.
    pub reset_log: Recipient<ResetLog>,
    /// Pull now.
    pub refresh: Recipient<Refresh>,
    /// Add a peer.
    pub put_peer: Recipient<PutPeer>,
    /// Remove a peer.
    pub remove_peer: Recipient<RemovePeer>,
    /// Accept one log of a forked publisher.
    pub accept_head: Recipient<AcceptHead>,
    /// The roster with each peer's health.
    pub list_peers: Recipient<ListPeers>,
    /// Read the roster again.
    pub reload_roster: Recipient<ReloadRoster>,
    /// Fetch one artifact.
    pub fetch_artifact: Recipient<FetchArtifact>,
}

/// What every handler may use.
pub struct GatewayState {
    /// Logs, for reading.
    pub catalog: Catalog,
    /// Whose logs stand still, with the evidence.
    pub forks: Forks,
    /// Whose logs have ended.
    pub revocations: Revocations,
    /// Who may do what here by the roster.
    pub standings: Standings,
    /// The policy in force.
    pub policy: PolicyShelf,
    /// Artifacts, for reading and publishing.
    pub artifacts: ArtifactShelf,
    /// The index, for its size.
    pub store: Store,
    /// Actors.
    pub links: Links,
    /// Who runs.
    pub registry: Registry,
    /// Counters.
    pub metrics: Metrics,
    /// Time.
    pub clock: Clock,
    /// The home folder.
    pub home: Home,
    /// The profile.
    pub profile: Profile,
    /// Our alias.
    pub alias: String,
    /// The gateway itself, asked for its addresses.
    pub listeners: Recipient<GetListeners>,
    /// How much may be mirrored.
    pub mirror_limits: MirrorLimits,
    /// Takes the logs of publishers without a server.
    pub hosting: Hosting,
    /// Asks other nodes.
    pub fetch: Fetch,
    /// Friends and invitations.
    pub friends: friends::FriendLinks,
    /// How much is under way.
    pub admission: Admission,
}

/// Bounds what the gateway has under way: beyond it a caller is told 503, not kept waiting.
pub struct Admission {
    messages: Semaphore,
    publications: Arc<Semaphore>,
    pages: PageBudget,
    heads: Heads,
    batches: Arc<Semaphore>,
    prover: Prover,
    streams: Arc<Streams>,
    callers: Callers,
}

impl Admission {
    /// Of the node `own`, which started at `started`.
    #[must_use]
    pub fn new(own: Did, started: Timestamp) -> Self {
        Self {
            callers: Callers::new(own, started),
            messages: Semaphore::new(MESSAGES),
            publications: Arc::new(Semaphore::new(PUBLICATIONS)),
            pages: PageBudget::default(),
            heads: Heads::default(),
            batches: Arc::new(Semaphore::new(batch::AT_ONCE)),
            prover: Prover::default(),
            streams: Arc::default(),
        }
    }
}

impl GatewayState {
    /// Sends `message` and waits for its reply. Errors: too much is under way, or the actor is being restarted.
    async fn ask<M>(&self, actor: &Recipient<M>, message: M) -> Result<M::Result, Problem>
    where
        M: Message + Send + 'static,
        M::Result: Send,
    {
        let _permit = self
            .admission
            .messages
            .try_acquire()
            .map_err(|_| Problem::new("busy", "too many requests are under way"))?;
        Ok(actor.send(message).await?)
    }
}

/// Starts serving.
#[derive(Message)]
#[rtype(result = "std::io::Result<()>")]
pub struct Serve {
    /// What the handlers use.
    pub state: web::Data<GatewayState>,
    /// The open side; `None` in a command's own process.
    pub tcp: Option<(TcpListener, Option<Url>)>,
    /// The operator's side.
    pub socket: UnixListener,
    /// `/metrics` alone, for a scraper.
    pub metrics: Option<TcpListener>,
    /// Bounds.
    pub settings: GatewaySettings,
}

/// Asks where the gateway listens.
#[derive(Message)]
#[rtype(result = "Listeners")]
pub struct GetListeners;

/// Where the gateway listens.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Listeners {
    /// The open side.
    pub listen: Option<SocketAddr>,
    /// `/metrics` alone.
    pub metrics: Option<SocketAddr>,
}

/// Ends the servers; answers when requests under way have ended or had their time.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Drain;

/// The actor that owns the servers. Their workers have threads of their own, which its restarts do not touch.
#[derive(Default)]
pub struct Gateway {
    listeners: Listeners,
    servers: Vec<ServerHandle>,
    streams: Option<Arc<Streams>>,
}

impl Actor for Gateway {
    type Context = Context<Self>;
}

impl Supervised for Gateway {}

impl Gateway {
    /// Runs a server beside the actor, so that the actor's restart leaves it alone.
    fn run(&mut self, server: Server) {
        self.servers.push(server.handle());
        actix::spawn(async move {
            if let Err(error) = server.await {
                error!(%error, "a server ended");
            }
        });
    }

    /// `/metrics` and nothing else, on an address that the operator chose.
    fn serve_metrics(
        &mut self,
        listener: TcpListener,
        state: web::Data<GatewayState>,
    ) -> std::io::Result<()> {
        self.listeners.metrics = Some(listener.local_addr()?);
        let server = HttpServer::new(move || {
            App::new()
                .app_data(state.clone())
                .service(
                    web::resource("/metrics")
                        .route(web::get().to(status::metrics))
                        .route(web::head().to(status::metrics))
                        .default_service(other_methods("GET, HEAD")),
                )
                .default_service(web::route().to(unknown_route))
        })
        .workers(1)
        .worker_max_blocking_threads(1)
        .max_connections(METRICS_CONNECTIONS)
        .client_request_timeout(HEADER_TIME)
        .disable_signals()
        .shutdown_timeout(DRAIN_SECONDS)
        .listen(listener)?;
        self.run(server.run());
        Ok(())
    }
}

impl Handler<Serve> for Gateway {
    type Result = std::io::Result<()>;

    fn handle(&mut self, message: Serve, _: &mut Self::Context) -> Self::Result {
        let Serve {
            state,
            tcp,
            socket,
            metrics,
            settings,
        } = message;
        let (shared, metrics_state) = (state.clone(), state.clone());
        let streams = &state.admission.streams;
        streams.bound(settings.max_connections as usize);
        self.streams = Some(Arc::clone(streams));
        let admin = HttpServer::new(move || {
            App::new()
                .app_data(shared.clone())
                .wrap(middleware::from_fn(guard::pass))
                .configure(open_routes)
                .configure(admin::routes)
                .configure(own_log::routes)
                .configure(policy::routes)
                .configure(push::routes)
                .configure(revocation::operator_routes)
                .configure(friends::routes)
                .default_service(web::route().to(unknown_route))
        })
        .workers(1)
        .worker_max_blocking_threads(SOCKET_BLOCKING_THREADS)
        .max_connections(SOCKET_CONNECTIONS)
        .client_request_timeout(HEADER_TIME)
        .disable_signals()
        .shutdown_timeout(DRAIN_SECONDS)
        .on_connect(check_peer)
        .listen_uds(socket)?;
        self.run(admin.run());
        if let Some((listener, public_url)) = tcp {
            let listen = listener.local_addr()?;
            self.listeners.listen = Some(listen);
            let guard =
                web::Data::new(Guard::new(listen, public_url.as_ref(), settings.rate_limit));
            let workers = settings.workers.max(1) as usize;
            let connections = Arc::new(Connections::bounded(settings.max_connections_a_client));
            let watched = Arc::clone(&connections);
            let server = HttpServer::new(move || {
                App::new()
                    .app_data(state.clone())
                    .app_data(guard.clone())
                    .wrap(middleware::from_fn(guard::pass))
                    .configure(open_routes)
                    .configure(socket_only)
                    .default_service(web::route().to(unknown_route))
            })
            .workers(workers)
            .worker_max_blocking_threads(BLOCKING_THREADS)
            .max_connections((settings.max_connections as usize / workers).max(1))
            .client_request_timeout(HEADER_TIME)
            .keep_alive(KEEP_ALIVE)
            .on_connect(move |connection, data| watch(&watched, connection, data))
            .disable_signals()
            .shutdown_timeout(DRAIN_SECONDS)
            .listen(listener)?;
            self.run(server.run());
            // Beside the actor, as the servers are.
            actix::spawn(async move {
                let mut sweep = tokio::time::interval(connections::SWEEP);
                loop {
                    sweep.tick().await;
                    connections.sweep(KEEP_ALIVE + HEADER_TIME);
                }
            });
        }
        if let Some(listener) = metrics {
            self.serve_metrics(listener, metrics_state)?;
        }
        Ok(())
    }
}

impl Handler<GetListeners> for Gateway {
    type Result = MessageResult<GetListeners>;

    fn handle(&mut self, _: GetListeners, _: &mut Self::Context) -> Self::Result {
        strike();
        MessageResult(self.listeners.clone())
    }
}

impl Handler<Drain> for Gateway {
    type Result = actix::ResponseFuture<()>;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        let servers = std::mem::take(&mut self.servers);
        // They never end by themselves.
        if let Some(streams) = &self.streams {
            streams.close();
        }
        Box::pin(async move {
            futures_util::future::join_all(servers.iter().map(|server| server.stop(true))).await;
        })
    }
}

/// The routes that any node may ask.
fn open_routes(config: &mut web::ServiceConfig) {
    config
        .service(read("/healthz", status::healthz))
        .service(read("/readyz", status::readyz))
        .service(read("/.well-known/hn/presence", presence::well_known))
        .service(read("/presence", presence::own))
        .service(read("/presence/digest/{digest}", presence::by_digest))
        .service(read("/presence/{did}", presence::of))
        .service(read("/.well-known/did.json", presence::own_document))
        .service(read("/1.0/identifiers/{did}", presence::resolve))
        .service(read("/federate", federate::offers))
        .service(read("/federate/index", federate::index))
        .service(read("/federate/peers", heads::peers))
        .service(read("/federate/forks", forks::forks))
        .service(read("/federate/artifacts", batch::artifacts))
        .service(read("/federate/proof/{publisher}/{seq}", proof::get))
        .service(read("/federate/watch", watch::watch))
        .service(
            web::resource("/artifact/{digest}")
                .route(asked(
                    "GET",
                    "/artifact/{digest}",
                    web::get().to(artifact::get),
                ))
                .route(asked(
                    "GET",
                    "/artifact/{digest}",
                    web::head().to(artifact::get),
                ))
                .route(asked(
                    "PUT",
                    "/artifact/{digest}",
                    web::put().to(hosted::put_artifact),
                ))
                .default_service(other_methods("GET, HEAD, PUT")),
        )
        .service(
            web::resource("/publish")
                .route(asked("POST", "/publish", web::post().to(hosted::publish)))
                .default_service(other_methods("POST")),
        )
        .service(
            web::resource("/federate/requests")
                .route(asked(
                    "POST",
                    "/federate/requests",
                    web::post().to(friends::request),
                ))
                .default_service(other_methods("POST")),
        )
        .configure(revocation::open_routes)
        .configure(openapi::routes);
}

/// What exists, but not here.
fn socket_only(config: &mut web::ServiceConfig) {
    async fn refuse() -> Result<HttpResponse, Problem> {
        Err(Problem::new("socket_only", "ask over $HN_HOME/run/hn.sock")
            .remedy("hn status, hn mcp …, or curl --unix-socket"))
    }
    config
        .service(web::resource("/metrics").route(web::route().to(refuse)))
        .service(web::resource("/admin/{rest:.*}").route(web::route().to(refuse)));
}

/// A route that those may ask for whom [`access::of`] names.
fn asked(method: &str, path: &str, route: actix_web::Route) -> actix_web::Route {
    let access = access::of(method, path);
    route.wrap(middleware::from_fn(move |request, next| {
        access::enforce(access, request, next)
    }))
}

/// A resource that is read: GET and HEAD; any other method is 405.
fn read<F, Args>(path: &'static str, handler: F) -> actix_web::Resource
where
    F: actix_web::Handler<Args> + Copy,
    Args: actix_web::FromRequest + 'static,
    F::Output: actix_web::Responder + 'static,
{
    web::resource(path)
        .route(asked("GET", path, web::get().to(handler)))
        .route(asked("GET", path, web::head().to(handler)))
        .default_service(other_methods("GET, HEAD"))
}

/// Answers 405 to every method but those in `allow` (RFC 9110, 15.5.6).
fn other_methods(allow: &'static str) -> actix_web::Route {
    web::route().to(move |request: HttpRequest| async move {
        let problem = Problem::new(
            "method_not_allowed",
            format!("{} {}", request.method(), request.path()),
        );
        let mut response = problem.error_response();
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static(allow));
        response
    })
}

async fn unknown_route(request: HttpRequest) -> Result<HttpResponse, Problem> {
    Err(Problem::new(
        "unknown_route",
        request.path().chars().take(200).collect::<String>(),
    ))
}

/// A connection from outside: watched, and dropped by the kernel when its answers are not taken.
fn watch(connections: &Connections, connection: &dyn std::any::Any, data: &mut Extensions) {
    let Some(stream) = connection.downcast_ref::<tokio::net::TcpStream>() else {
        return;
    };
    // An answer goes out in several writes; without this each waits for the reader's delayed acknowledgement, 40 ms.
    if let Err(error) = stream.set_nodelay(true) {
        warn!(%error, "a connection's answers may be delayed");
    }
    let unread = u32::try_from(UNREAD_TIME.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(stream, unread) {
        warn!(%error, "a connection's time could not be bounded");
    }
    let client = stream
        .peer_addr()
        .ok()
        .map(|peer| guard::client_of(peer.ip()));
    if let Some(connection) = connections.watch(stream, client) {
        data.insert(connection);
    }
}

/// The socket's mode keeps others out; that the peer is the owner or root is checked all the same.
fn check_peer(connection: &dyn std::any::Any, data: &mut Extensions) {
    let Some(stream) = connection.downcast_ref::<tokio::net::UnixStream>() else {
        return;
    };
    let own = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == own || peer.uid() == 0 => {
            data.insert(admin::Operator);
        }
        Ok(peer) => warn!(uid = peer.uid(), "a foreign user is at the socket"),
        Err(error) => warn!(%error, "the socket's peer is unknown"),
    }
}

/// Runs what touches the disk where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    web::block(work)
        .await
        .map_err(|error| Problem::internal(&error))?
}

fn parse_did(text: &str) -> Result<Did, Problem> {
    text.parse()
        .map_err(|error| Problem::new("bad_did", format!("{:.80}: {error}", text)))
}

/// Whether `If-None-Match` names `etag` (RFC 9110, 13.1.2).
fn is_unmodified(request: &HttpRequest, etag: &str) -> bool {
    let names = |value: &str| {
        value
            .split(',')
            .map(str::trim)
            .any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
    };
    request
        .headers()
        .get_all(IF_NONE_MATCH)
        .any(|value| value.to_str().is_ok_and(names))
}

/// The failpoint at the start of each message.
fn strike() {
    if let Err(error) = failpoint::hit("actor.gateway") {
        warn!(%error, "failpoint");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[actix_web::test]
    async fn a_client_that_takes_nothing_is_dropped_by_the_kernel() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = tokio::net::TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        watch(&Connections::default(), &accepted, &mut Extensions::new());
        let millis = rustix::net::sockopt::tcp_user_timeout(&accepted).unwrap();
        assert_eq!(u128::from(millis), UNREAD_TIME.as_millis());
        assert!(accepted.nodelay().unwrap(), "no answer waits for an ack");
    }
}
