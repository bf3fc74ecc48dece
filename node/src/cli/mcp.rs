//! `hn mcp`: the node itself. `serve` is the daemon; the others ask it for something.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use clap::{Args, Subcommand};
use hn_actors::keyring::Keyring;
use hn_actors::settings::{Profile, Settings};
use sd_notify::NotifyState;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use super::Context;
use super::federate;
use super::friends;
use super::log;
use super::output::{self, CliError, Outcome};
use super::storage;
use crate::client::{self, Admin};
use crate::config::Flags;
use crate::names::Names;
use crate::node::NodeHandle;

/// A drain that takes longer is cut off: SIGTERM ends the daemon within 10 s (design 10).
const DRAIN: Duration = Duration::from_secs(9);
/// Alias of the identity that an empty home is given.
const FIRST_ALIAS: &str = "node";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node until SIGTERM
    Serve(Serve),
    /// Peers: follow, list, refresh
    #[command(subcommand)]
    Federate(federate::Command),
    /// Say what somebody may do here, and that they are a friend
    Allow(friends::Allow),
    /// Make an invitation: one line to send to a friend, and a QR code of it
    Invite(friends::InviteArguments),
    /// Pull from every peer: one round of the running node, or follow here until SIGTERM
    Sync(Sync),
    /// What takes how much of the disk, and what has no room
    Storage,
    /// The own log: recover it, or begin it anew
    #[command(subcommand)]
    Log(log::Command),
    /// Rebuild the database from the files, which are the truth
    Reindex,
}

#[derive(Debug, Args)]
pub struct Serve {
    /// Set of defaults to start from [env: HN_PROFILE=] [default: local]
    #[arg(long, value_parser = parse_profile, value_name = "local|federation")]
    profile: Option<Profile>,
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// URL that others reach this node by
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
}

#[derive(Debug, Args)]
pub struct Sync {
    /// One round over every peer, then exit; 1 if any failed
    #[arg(long)]
    once: bool,
}

fn parse_profile(name: &str) -> Result<Profile, String> {
    name.parse()
        .map_err(|_| "there are `local` and `federation`".to_owned())
}

impl Command {
    /// Whether it stays until it is told to stop, and so says what it does.
    pub fn is_daemon(&self) -> bool {
        matches!(self, Self::Serve(_) | Self::Sync(Sync { once: false }))
    }
}

/// Carries out one `hn mcp` command.
pub async fn run(ctx: &Context, command: Command) -> Result<Outcome, CliError> {
    match command {
        Command::Serve(arguments) => serve(ctx, arguments).await,
        Command::Federate(command) => federate::run(ctx, command).await,
        Command::Allow(arguments) => friends::allow(ctx, arguments).await,
        Command::Invite(arguments) => friends::invite(ctx, arguments).await,
        Command::Sync(Sync { once: true }) => federate::refresh(ctx, None, false).await,
        Command::Sync(Sync { once: false }) => follow(ctx).await,
        Command::Storage => storage::run(ctx).await,
        Command::Log(command) => log::run(ctx, command).await,
        Command::Reindex => reindex(ctx).await,
    }
}

/// The signals that a daemon listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
}

/// What a signal asks for.
enum Asked {
    Stop,
    Reload,
}

impl Signals {
    fn listen() -> Result<Self, CliError> {
        let on = |kind| {
            signal(kind)
                .map_err(|error| CliError::failed("signals", format_args!("signals: {error}")))
        };
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            reload: on(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.reload.recv() => Asked::Reload,
        }
    }
}

async fn serve(ctx: &Context, arguments: Serve) -> Result<Outcome, CliError> {
    let profile = ctx.profile(arguments.profile)?;
    let flags = Flags {
        listen: arguments.listen,
        public_url: arguments.public_url,
    };
    let settings = ctx.settings(profile, &flags)?;
    // Before anything is started, so that a signal that comes early is kept and not fatal.
    let mut signals = Signals::listen()?;
    first_identity(ctx)?;
    let (node, mut reload) = {
        let mut starting = pin!(client::start_daemon(ctx, profile, &flags));
        let mut reload = false;
        loop {
            tokio::select! {
                node = &mut starting => break (node?, reload),
                asked = signals.next() => match asked {
                    Asked::Stop => {
                        info!("stopping before the start was done");
                        leave()
                    }
                    Asked::Reload => reload = true,
                }
            }
        }
    };

    announce(&node)?;
    notify(&[NotifyState::Ready]);
    loop {
        if reload {
            reloading();
            take_over(&node, &settings, ctx.settings(profile, &flags)).await;
            notify(&[NotifyState::Ready]);
        }
        match signals.next().await {
            Asked::Stop => break,
            Asked::Reload => reload = true,
        }
    }
    info!("stopping");
    notify(&[NotifyState::Stopping]);
    stop(node).await;
    Ok(Outcome::Done)
}

/// Gives the node what a reload read, and says what has to wait.
async fn take_over(node: &NodeHandle, started_with: &Settings, read: Result<Settings, CliError>) {
    let new = match read {
        Ok(new) => new,
        Err(error) => {
            let error = error.what();
            warn!(
                error,
                "configuration not reloaded, everything stays as it was"
            );
            return;
        }
    };
    let restart = started_with.needs_restart(&new);
    if !restart.is_empty() {
        let keys = restart.join(", ");
        warn!(keys, "changed settings wait for a restart");
    }
    match node.reload(new).await {
        Ok(()) => info!("configuration and roster reloaded"),
        Err(error) => warn!(%error, "reload failed, everything stays as it was"),
    }
}

/// A home without any identity gets one, and the operator hears of it.
fn first_identity(ctx: &Context) -> Result<(), CliError> {
    let keyring = Keyring::open(&ctx.home()?).map_err(|error| super::id::keyring_error(&error))?;
    if !keyring
        .list()
        .map_err(|error| super::id::keyring_error(&error))?
        .is_empty()
    {
        return Ok(());
    }
    let identity = super::id::make(ctx, &keyring, FIRST_ALIAS)?;
    eprintln!(
        "made the identity {} for this home; save it by: hn id export --out FILE",
        output::name(&identity.did.to_string(), Some(&identity.alias))
    );
    Ok(())
}

/// The one line on stdout that says where the node is (design 10).
fn announce(node: &NodeHandle) -> Result<(), CliError> {
    let ready = json!({
        "did": node.ready.did,
        "listen": node.ready.listen,
        "base_url": node.ready.base_url,
        "presence_url": node.ready.presence_url,
        "libp2p": [],
        "pid": std::process::id(),
    });
    output::print(&format!("MCP_READY {ready}\n"))
}

/// Ends the node, within [`DRAIN`] whatever it is busy with: what was acknowledged is in fsynced files.
async fn stop(node: NodeHandle) {
    if tokio::time::timeout(DRAIN, node.stop()).await.is_err() {
        warn!("requests or actors were still busy after 9 s and are cut off");
        leave();
    }
}

/// Ends the process with 0 at once. A thread that is still busy would keep the runtime from ending in order; what was
/// acknowledged is in fsynced files, and the rest is what a crash leaves, which every start mends.
fn leave() -> ! {
    std::process::exit(0)
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "systemd could not be told");
    }
}

fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// A running node makes one round now; without one, this process follows until it is told to stop.
async fn follow(ctx: &Context) -> Result<Outcome, CliError> {
    if Admin::running(ctx).await?.is_some() {
        return federate::refresh(ctx, None, false).await;
    }
    let mut signals = Signals::listen()?;
    let admin = Admin::open_following(ctx).await?;
    info!("following every peer; SIGTERM ends it");
    notify(&[NotifyState::Ready]);
    while let Asked::Reload = signals.next().await {
        // The roster is watched as it is; settings of a foreground run come with the next one.
        info!("nothing to reload here");
    }
    notify(&[NotifyState::Stopping]);
    let peers = admin.get("/admin/federation/peers").await;
    let closed = tokio::time::timeout(DRAIN, admin.close()).await;
    let peers = peers?;
    let names = Names::of(ctx, &peers);
    let now = ctx.clock()?.now();
    output::show(ctx.format, &peers, |peers| {
        federate::listed(peers, &names, now)
    })?;
    if closed.is_err() {
        warn!("pulls were still running after 9 s and are cut off");
        leave();
    }
    Ok(Outcome::Done)
}

async fn reindex(ctx: &Context) -> Result<Outcome, CliError> {
    let answer = client::with_node(ctx, async |admin| {
        output::waiting(
            "reading every journal",
            admin.post("/admin/reindex", &Value::Object(Default::default())),
        )
        .await
    })
    .await?;
    output::show(ctx.format, &answer, |answer| {
        format!(
            "rebuilt from the files: {} logs, {} slices, {} entries, {} artifacts\n",
            answer["logs"], answer["slices"], answer["entries"], answer["artifacts"]
        )
    })?;
    Ok(Outcome::Done)
}
