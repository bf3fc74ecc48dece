//! The one place where the node's actors are made and joined.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use actix::{Addr, Arbiter};
use actix_web::web;
use hn_actors::artifact_mirror::{ArtifactMirror, MirrorLimits};
use hn_actors::artifacts::{ArtifactShelf, Sweeper};
use hn_actors::catalog::Catalog;
use hn_actors::clock::{Clock, ClockError};
use hn_actors::failpoint::{self, FailpointError};
use hn_actors::federation_sync::{FederationSync, ReloadRoster, Reschedule, SyncOptions};
use hn_actors::fetch::{Fetch, Signer};
use hn_actors::forks::Forks;
use hn_actors::gateway::friends::FriendLinks;
use hn_actors::gateway::{Admission, Drain, Gateway, GatewayState, Links, Serve};
use hn_actors::home::{Home, HomeError, HomeLock};
use hn_actors::hosted::{Hosting, HostingLimits};
use hn_actors::index_federator::{Announce, FederatorOptions, GetOwnLog, IndexFederator};
use hn_actors::introducer::{Introducer, IntroducerOptions, IntroductionBook};
use hn_actors::invites::Invites;
use hn_actors::keyring::{Keyring, KeyringError, Passphrase};
use hn_actors::log_recovery::{LogRecovery, OwnLogLinks, RecoveryStart};
use hn_actors::logs::{PrunePolicy, Shelf};
use hn_actors::metrics::Metrics;
use hn_actors::own_url::OwnUrl;
use hn_actors::policy::PolicyShelf;
use hn_actors::pull::{PullLimits, Puller};
use hn_actors::revocations::Revocations;
use hn_actors::roster::RosterFile;
use hn_actors::settings::{Profile, Settings};
use hn_actors::store::{Opened, Store, StoreError};
use hn_actors::supervise::{Registry, supervise};
use hn_actors::vault::{FileCache, SpaceGuard};
use hn_actors::watch::{Watch, WatchLinks};
use hn_protocol::did::Did;
use hn_protocol::document::Endpoints;
use hn_protocol::federation::Schedule;
use rustix::process::{Resource, getrlimit, setrlimit};
use tracing::{info, warn};
use url::Url;

/// Messages that wait for the writer of logs: each is a page or a batch, and its sender waits for it.
const FEDERATOR_MAILBOX: usize = 256;
/// Messages that wait for the other actors: commands of an operator, a few at a time.
const MAILBOX: usize = 64;
/// How long another node may take to begin its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the first message to the federator may take: it verifies journals that the index does not know.
const LOADING: Duration = Duration::from_secs(600);

/// How the node is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As a daemon: gateway, `run/hn.sock`, background sync. Does not wait for a held lock.
    Serve,
    /// In the process of a command, without a gateway: on a private socket, or following on `run/hn.sock`.
    InProcess {
        /// Whether peers are pulled on a schedule.
        follow: bool,
    },
}

/// Everything a start takes.
pub struct StartOptions {
    /// The home.
    pub home: Home,
    /// Its settings, all layers joined.
    pub settings: Settings,
    /// The profile they come from.
    pub profile: Profile,
    /// What opens the secret key, where it is sealed.
    pub passphrase: Option<Passphrase>,
    /// How it is run.
    pub mode: Mode,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process holds the home.
    #[error("{} is in use by process {}", home.display(), pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string()))]
    Locked {
        /// The home.
        home: PathBuf,
        /// The holder, where it says so.
        pid: Option<u32>,
    },
    /// The home can't be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// There is no identity to run as.
    #[error("{}", if *several { "several identities and none in use" } else { "the home has no identity yet" })]
    NoIdentity {
        /// Whether one has only to be chosen.
        several: bool,
    },
    /// The identity can't be opened.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// An address can't be listened on.
    #[error("cannot listen on {what}: {error}")]
    Listen {
        /// Address or path.
        what: String,
        /// Why.
        error: std::io::Error,
    },
    /// The database can't be opened, not even anew.
    #[error("the index cannot be opened: {0}")]
    Store(#[from] StoreError),
    /// The clock offset of a test is not one.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// The failpoints of a test are none.
    #[error(transparent)]
    Failpoints(#[from] FailpointError),
    /// An actor did not come up.
    #[error("the node did not come up: {0}")]
    Actor(String),
}

impl StartError {
    /// A stable word for it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "home_locked",
            Self::Home(_) => "home",
            Self::NoIdentity { .. } => "no_identity",
            Self::Keyring(_) => "identity",
            Self::Listen { .. } => "listen",
            Self::Store(_) => "store",
            Self::Clock(_) => "clock_offset",
            Self::Failpoints(_) => "failpoints",
            Self::Actor(_) => "start",
        }
    }

    /// What to do about it, where there is something.
    pub fn remedy(&self, _home: &Path) -> Option<String> {
        match self {
            Self::Locked { pid: Some(pid), .. } => {
                Some(format!("stop process {pid}, or use another --home"))
            }
            Self::NoIdentity { several: true } => {
                Some("hn id use ALIAS; hn id list shows them".to_owned())
            }
            Self::NoIdentity { several: false } => {
                Some("hn id create ALIAS, or hn mcp serve".to_owned())
            }
            Self::Store(_) => Some(
                "free space on the disk, and look at the rights of state/ in the home".to_owned(),
            ),
            Self::Listen { .. } => {
                Some("give another address with --listen; port 0 takes a free one".to_owned())
            }
            _ => None,
        }
    }
}

/// What a daemon tells once it accepts requests.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Its identity.
    pub did: Did,
    /// Where the gateway listens; none in the process of a command.
    pub listen: Option<SocketAddr>,
    /// Base URL.
    pub base_url: String,
    /// URL of the current presence.
    pub presence_url: String,
}

/// A node that runs in this process.
pub struct NodeHandle {
    /// Who and where it is.
    pub ready: Ready,
    /// The socket of its admin API.
    pub socket: PathBuf,
    gateway: Addr<Gateway>,
    sync: Addr<FederationSync>,
    policy: PolicyShelf,
    registry: Registry,
    store: Store,
    arbiters: Vec<Arbiter>,
    /// Given back last.
    lock: HomeLock,
}

/// The node.
pub struct Node;

impl Node {
    /// Starts every actor and the sockets; returns once requests are accepted.
    pub async fn start(options: StartOptions) -> Result<NodeHandle, StartError> {
        let StartOptions {
            home,
            settings,
            profile,
            passphrase,
            mode,
        } = options;
        let clock = Clock::from_env()?;
        raise_descriptors();
        failpoint::init_from_env()?;
        let lock = lock(&home)?;
        let keyring = Keyring::open(&home)?;
        let alias = match keyring.active()? {
            Some(alias) => alias,
            None => {
                return Err(StartError::NoIdentity {
                    several: !keyring.list()?.is_empty(),
                });
            }
        };
        let identity = keyring.unlock(&alias, passphrase.as_ref())?.identity();
        let did = identity.did();

        let serving = mode == Mode::Serve;
        let public_url = settings
            .public_url
            .as_deref()
            .and_then(|url| url.parse::<Url>().ok());
        let tcp = if serving {
            Some(listen(settings.listen)?)
        } else {
            None
        };
        let metrics_listener = match settings.metrics.listen.filter(|_| serving) {
            Some(address) => Some(listen(address)?),
            None => None,
        };
        let address = tcp.as_ref().and_then(|listener| listener.local_addr().ok());
        let ready = ready(did, address, public_url.as_ref());

        let metrics = Metrics::new();
        let registry = Registry::new(metrics.clone());
        let (store, opened) = Store::open(
            &home.state_dir(),
            settings.storage.cache_mib << 20,
            &registry,
        )?;
        if let Opened::Rebuilt { set_aside, reason } = &opened {
            warn!(set_aside = %set_aside.display(), reason, "the index was damaged and is rebuilt from the files");
        }
        let space = SpaceGuard::new(home.root(), settings.storage.min_free);
        let catalog = Catalog::new(did, store.clone());
        let mut roster = RosterFile::new(home.federation_toml());
        // Gates read it from the first request on.
        roster.poll();
        let standings = roster.standings();
        // Before anything can be signed or shown.
        let revocations = Revocations::open(home.clone(), catalog.clone(), standings.clone());
        let artifacts = ArtifactShelf::new(home.clone(), store.clone(), space.clone(), &alias);
        artifacts
            .clean()
            .map_err(|error| StartError::Actor(error.to_string()))?;
        if opened.may_lack() || artifacts.has_unsettled() {
            // Beside the start: until it has ended, an artifact mirrored just before a crash may be asked for in vain.
            let artifacts = artifacts.clone();
            tokio::task::spawn_blocking(move || match artifacts.find_mirrored() {
                Ok(count) => info!(count, "mirrored artifacts found"),
                Err(error) => {
                    warn!(%error, "the mirrored artifacts were not all found; hn mcp reindex")
                }
            });
        }
        let signer = Signer {
            identity: identity.clone(),
            clock,
            catalog: catalog.clone(),
        };
        let own: Vec<Did> = keyring
            .list()?
            .iter()
            .map(|identity| identity.did)
            .collect();
        let policy = PolicyShelf::open(home.clone(), identity.clone(), clock, profile, &own)
            .map_err(|error| StartError::Actor(error.to_string()))?;
        let fetch = Fetch::new(profile == Profile::Local, PATIENCE, Some(signer));
        let forks = Forks::open(
            home.clone(),
            identity.clone(),
            clock,
            catalog.clone(),
            metrics.clone(),
        );

        let (logs_thread, sync_thread) = (Arbiter::new(), Arbiter::new());
        let background = !matches!(mode, Mode::InProcess { follow: false });
        let recovery_start =
            RecoveryStart::look(&home, &alias, did, clock.now()).on_request(!background);
        let federator = {
            let options = FederatorOptions {
                gate: recovery_start.gate(),
                identity,
                alias: alias.clone(),
                presence_ttl: Duration::from_secs(settings.presence.ttl_s),
                clock,
                metrics: metrics.clone(),
                forks: forks.clone(),
                prune: prune_policy(&settings),
                sweeper: Sweeper::new(artifacts.clone(), catalog.clone()),
            };
            let shelf = Shelf {
                home: home.clone(),
                store: store.clone(),
                catalog: catalog.clone(),
                files: FileCache::default(),
                space,
            };
            let make = move |_: &mut _| IndexFederator::new(options, shelf);
            supervise(
                "index_federator",
                FEDERATOR_MAILBOX,
                &registry,
                Some(&logs_thread.handle()),
                make,
            )
        };
        let mirror = {
            let worker = ArtifactMirror::new(
                fetch.clone(),
                catalog.clone(),
                artifacts.clone(),
                store.clone(),
                mirror_limits(&settings),
                metrics.clone(),
            );
            supervise(
                "artifact_mirror",
                MAILBOX,
                &registry,
                Some(&sync_thread.handle()),
                move |_| worker,
            )
        };
        let puller = Puller {
            fetch: fetch.clone(),
            catalog: catalog.clone(),
            forks: forks.clone(),
            revocations: revocations.clone(),
            append: federator.clone().recipient(),
            begin_anew: federator.clone().recipient(),
            clock,
            limits: limits(&settings),
            own_head: None,
        };
        let recovery = {
            let puller = puller.clone();
            let links = OwnLogLinks {
                gate: federator.clone().recipient(),
                check: federator.clone().recipient(),
                mend: federator.clone().recipient(),
                reset: federator.clone().recipient(),
            };
            let make = move |_: &mut _| LogRecovery::new(recovery_start, puller, links);
            supervise(
                "log_recovery",
                MAILBOX,
                &registry,
                Some(&sync_thread.handle()),
                make,
            )
        };
        let sync = {
            let options = SyncOptions {
                schedule: schedule(&settings),
                seed: rand::random(),
                background,
                check: settings.federation.check_availability,
            };
            let (to_mirror, store, metrics) =
                (mirror.clone().recipient(), store.clone(), metrics.clone());
            let puller = Puller {
                own_head: Some(recovery.clone().recipient()),
                ..puller
            };
            let make = move |_: &mut _| {
                FederationSync::new(options, roster, puller, to_mirror, store, metrics)
            };
            supervise(
                "federation_sync",
                MAILBOX,
                &registry,
                Some(&sync_thread.handle()),
                make,
            )
        };
        let kept = |error: std::io::Error| StartError::Actor(format!("mcp/ in the home: {error}"));
        let introductions = IntroductionBook::open(&home, clock.now()).map_err(kept)?;
        let own_url = OwnUrl::new(serving.then(|| ready.base_url.clone()), catalog.clone());
        let introducer = {
            let options = IntroducerOptions {
                background,
                own_url: own_url.clone(),
                clock,
            };
            let (introductions, fetch) = (introductions.clone(), fetch.clone());
            let make = move |_: &mut _| Introducer::new(options, introductions, fetch);
            let thread = Some(&sync_thread.handle());
            supervise("introducer", MAILBOX, &registry, thread, make)
        };
        let friends = FriendLinks {
            invites: Invites::open(&home, standings.clone(), clock.now()).map_err(kept)?,
            introductions,
            own_url,
            put: sync.clone().recipient(),
            remove: sync.clone().recipient(),
            list: sync.clone().recipient(),
            introduce: introducer.clone().recipient(),
            forget: introducer.recipient(),
        };
        if background && settings.federation.watch {
            let links = WatchLinks {
                news: sync.clone().recipient(),
                started: sync.clone().recipient(),
            };
            let (fetch, catalog, metrics) = (fetch.clone(), catalog.clone(), metrics.clone());
            supervise(
                "watch",
                MAILBOX,
                &registry,
                Some(&sync_thread.handle()),
                move |_| Watch::new(fetch, catalog, links, metrics),
            );
        }
        let gateway = supervise("gateway", MAILBOX, &registry, None, |_| Gateway::default());

        // The federator answers once every log is open: from then on there is something to show.
        let up = |error: &dyn std::fmt::Display| StartError::Actor(error.to_string());
        if serving {
            let announced = federator
                .send(Announce {
                    endpoints: endpoints(&ready),
                })
                .timeout(LOADING)
                .await;
            if let Err(error) = announced.map_err(|error| up(&error))? {
                // A full disk or a damaged log keeps the node from signing, not from serving what it holds.
                warn!(%error, "the presence could not be re-issued");
            }
        } else {
            federator
                .send(GetOwnLog)
                .timeout(LOADING)
                .await
                .map_err(|error| up(&error))?;
        }

        let hosting = Hosting::new(
            catalog.clone(),
            forks.clone(),
            federator.clone().recipient(),
            artifacts.clone(),
            clock,
            revocations.clone(),
            HostingLimits {
                journal: settings.federation.max_held_bytes,
                artifacts: mirror_limits(&settings),
            },
        );
        let links = Links {
            publish: federator.clone().recipient(),
            reindex: federator.clone().recipient(),
            own_log: federator.clone().recipient(),
            ask_holders: recovery.clone().recipient(),
            recovery: recovery.clone().recipient(),
            resume_log: recovery.clone().recipient(),
            reset_log: recovery.recipient(),
            refresh: sync.clone().recipient(),
            put_peer: sync.clone().recipient(),
            remove_peer: sync.clone().recipient(),
            list_peers: sync.clone().recipient(),
            reload_roster: sync.clone().recipient(),
            accept_head: federator.recipient(),
            fetch_artifact: mirror.recipient(),
        };
        let state = GatewayState {
            catalog,
            forks,
            revocations,
            standings,
            policy: policy.clone(),
            artifacts,
            store: store.clone(),
            links,
            registry: registry.clone(),
            metrics,
            clock,
            home: home.clone(),
            profile,
            alias,
            listeners: gateway.clone().recipient(),
            mirror_limits: mirror_limits(&settings),
            hosting,
            fetch,
            friends,
            admission: Admission::new(did, clock.now()),
        };
        let socket = match mode {
            // Whoever follows for long is a node to other commands.
            Mode::Serve | Mode::InProcess { follow: true } => home.socket(),
            Mode::InProcess { follow: false } => home.cli_socket(std::process::id()),
        };
        let serve = Serve {
            state: web::Data::new(state),
            tcp: tcp.map(|listener| (listener, public_url)),
            socket: bind_socket(&lock, &socket)?,
            metrics: metrics_listener,
            settings: settings.gateway,
        };
        let served = gateway.send(serve).await.map_err(|error| up(&error))?;
        served.map_err(|error| up(&error))?;
        info!(%did, listen = ?address, "the node is up");
        let arbiters = vec![logs_thread, sync_thread];
        Ok(NodeHandle {
            ready,
            socket,
            gateway,
            sync,
            policy,
            registry,
            store,
            arbiters,
            lock,
        })
    }
}

impl NodeHandle {
    /// Takes over the settings that can change while it runs, and reads the roster again.
    pub async fn reload(&self, settings: Settings) -> Result<(), StartError> {
        let up = |error: actix::MailboxError| StartError::Actor(error.to_string());
        let reschedule = Reschedule {
            schedule: schedule(&settings),
            limits: limits(&settings),
            check: settings.federation.check_availability,
        };
        self.policy.reload();
        self.sync.send(reschedule).await.map_err(up)?;
        self.sync.send(ReloadRoster).await.map_err(up)
    }

    /// Drains requests, stops the actors, and gives the home back.
    pub async fn stop(self) {
        self.registry.begin_shutdown();
        if self.gateway.send(Drain).await.is_err() {
            warn!("the gateway was not there to be drained");
        }
        let (store, arbiters) = (self.store, self.arbiters);
        // A commit that is under way ends first; then nobody writes any more.
        let closed = tokio::task::spawn_blocking(move || {
            for arbiter in arbiters {
                arbiter.stop();
                let _ = arbiter.join();
            }
            store.close()
        });
        match closed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(%error, "the index was not closed in order; the next start checks it")
            }
            Err(error) => warn!(%error, "the actors did not end in order"),
        }
        if let Err(error) = self.lock.remove_stale_sockets() {
            warn!(%error, "the socket was not removed");
        }
    }
}

/// A connection takes two file descriptors; the usual soft limit of 1,024 is for programs without any.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        warn!(%error, "the limit of open files stays as it is");
    }
}

fn lock(home: &Home) -> Result<HomeLock, StartError> {
    HomeLock::acquire(home, Duration::ZERO).map_err(|error| match error {
        HomeError::Locked { path, pid } => StartError::Locked { home: path, pid },
        other => StartError::Home(other),
    })
}

fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    let failed = |error| StartError::Listen {
        what: address.to_string(),
        error,
    };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// The socket is made where nobody else may look, and for its owner alone.
fn bind_socket(lock: &HomeLock, path: &Path) -> Result<UnixListener, StartError> {
    let failed = |error| StartError::Listen {
        what: path.display().to_string(),
        error,
    };
    lock.remove_stale_sockets().map_err(failed)?;
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

fn schedule(settings: &Settings) -> Schedule {
    Schedule {
        interval: Duration::from_secs(settings.federation.interval_s),
        concurrency: settings.federation.concurrency as usize,
    }
}

fn prune_policy(settings: &Settings) -> PrunePolicy {
    PrunePolicy {
        entries: settings.federation.prune_entries,
        bytes: settings.federation.prune_bytes,
        age: Duration::from_secs(settings.federation.prune_age_s),
    }
}

fn limits(settings: &Settings) -> PullLimits {
    PullLimits {
        page_slices: settings.federation.page_slices,
        max_held_logs: settings.federation.max_held_logs as usize,
        max_held_bytes: settings.federation.max_held_bytes,
    }
}

fn mirror_limits(settings: &Settings) -> MirrorLimits {
    MirrorLimits {
        publisher_quota: settings.storage.publisher_quota,
        mirror_quota: settings.storage.mirror_quota,
    }
}

fn ready(did: Did, listen: Option<SocketAddr>, public_url: Option<&Url>) -> Ready {
    let base_url = match (public_url, listen) {
        (Some(url), _) => url.as_str().trim_end_matches('/').to_owned(),
        (None, Some(listen)) if listen.ip().is_unspecified() => {
            format!("http://localhost:{}", listen.port())
        }
        (None, Some(listen)) => format!("http://{listen}"),
        (None, None) => String::new(),
    };
    let presence_url = format!("{base_url}/.well-known/hn/presence");
    Ready {
        did,
        listen,
        base_url,
        presence_url,
    }
}

fn endpoints(ready: &Ready) -> Endpoints {
    Endpoints {
        mcp: Some(ready.base_url.clone()),
        presence: Some(ready.presence_url.clone()),
        libp2p: Vec::new(),
    }
}
