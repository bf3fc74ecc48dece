//! The command line: what can be said, and which file answers it.
//!
//! Every command is a plain client of the admin API (`client.rs`), through the socket of the running node or of one
//! that it starts in its own process. `hn id` alone works on files.

mod completions;
mod federate;
mod forks;
mod friends;
mod http;
pub mod id;
mod log;
mod mcp;
pub mod output;
mod policy;
mod proof;
mod qr;
mod revoke;
mod shard;
mod smoke;
mod status;
mod storage;
mod vault;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use hn_actors::clock::Clock;
use hn_actors::home::{Home, HomeError};
use hn_actors::keyring::Passphrase;
use hn_actors::settings::{Profile, Settings};

use crate::config::{self, Flags};
use crate::telemetry::{self, Base};
use output::{CliError, Format, Outcome};

/// Where systemd's `LoadCredential=hn-passphrase:…` puts it, below `$CREDENTIALS_DIRECTORY`.
const CREDENTIAL: &str = "hn-passphrase";

/// A node for federated networks of trust: signed logs, published and followed.
#[derive(Debug, Parser)]
#[command(name = "hn", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Everywhere")]
struct Global {
    /// Folder of identities, logs and state [default: ~/.human-net]
    #[arg(
        long,
        global = true,
        env = "HN_HOME",
        value_name = "DIR",
        hide_env_values = true
    )]
    home: Option<PathBuf>,
    /// Form of what is printed; json is exactly one document
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value = "text",
        value_name = "FORMAT"
    )]
    output: Format,
    /// Write log events as JSON, one a line, to stderr
    #[arg(long, global = true)]
    log_json: bool,
    /// Say more on stderr (-vv: still more); HN_LOG holds a filter of its own
    #[arg(short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// File with the passphrase that seals the secret key
    #[arg(
        long,
        global = true,
        env = "HN_PASSPHRASE_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Identities: make, choose, show, save and bring back
    #[command(subcommand)]
    Id(id::Command),
    /// The node: serve, follow others, keep the index
    #[command(subcommand)]
    Mcp(mcp::Command),
    /// What is published: put into the log, fetch, list
    #[command(subcommand)]
    Shard(shard::Command),
    /// What outlives this machine: the key as shares
    #[command(subcommand)]
    Vault(vault::Command),
    /// Who may do what here: gates, and why they decide as they do
    #[command(subcommand)]
    Policy(policy::Command),
    /// The node, its log, actors, peers and storage, and what to do next
    Status(status::Arguments),
    /// One request to a node, signed by the identity in use
    Http(http::Arguments),
    /// Prove an installation: real nodes on this machine, made for the purpose
    #[command(subcommand)]
    Smoke(smoke::Command),
    /// Print a completion script for a shell
    Completions(completions::Arguments),
}

/// What the commands need of the outside: the home, how to print, and how to start a node.
#[derive(Debug)]
pub struct Context {
    /// How to print.
    pub format: Format,
    root: PathBuf,
    passphrase_file: Option<PathBuf>,
}

impl Context {
    /// The home, made where there is none yet. Errors: it is somebody else's folder, or from a newer hn.
    pub fn home(&self) -> Result<Home, CliError> {
        Home::open(&self.root).map_err(|error| home_error(&error))
    }

    /// The home, for a command that has nothing to do in an empty one.
    pub fn existing_home(&self) -> Result<Home, CliError> {
        self.must_be_there()?;
        self.home()
    }

    /// The home, where there is one.
    pub fn kept_home(&self) -> Result<Option<Home>, CliError> {
        if self.is_empty() {
            return Ok(None);
        }
        self.home().map(Some)
    }

    /// Refuses a folder that isn't there or holds nothing.
    pub fn must_be_there(&self) -> Result<(), CliError> {
        if self.is_empty() {
            return Err(CliError::failed(
                "no_home",
                format_args!("{} holds no home of hn", self.root.display()),
            )
            .next("make an identity by `hn id create ALIAS`, or name another --home"));
        }
        Ok(())
    }

    /// Where a running node of this home listens, whether there is one or not.
    pub fn socket(&self) -> PathBuf {
        self.root.join("run").join("hn.sock")
    }

    /// Whether there is no folder, or nothing in it.
    pub fn is_empty(&self) -> bool {
        std::fs::read_dir(&self.root).map_or(true, |mut folder| folder.next().is_none())
    }

    /// The folder of the home, whether there is one or not.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The clock of this process, shifted where a test says so.
    pub fn clock(&self) -> Result<Clock, CliError> {
        Clock::from_env().map_err(|error| {
            CliError::usage("clock_offset", error).next("correct HN_CLOCK_OFFSET, or unset it")
        })
    }

    /// The profile: what the flag says, else `HN_PROFILE`, else `local`.
    pub fn profile(&self, flag: Option<Profile>) -> Result<Profile, CliError> {
        match (flag, std::env::var("HN_PROFILE")) {
            (Some(profile), _) => Ok(profile),
            (None, Ok(name)) if !name.is_empty() => name.parse().map_err(|error| {
                CliError::usage("bad_profile", format_args!("HN_PROFILE: {error}"))
            }),
            _ => Ok(Profile::Local),
        }
    }

    /// The settings of a profile under flags.
    pub fn settings(&self, profile: Profile, flags: &Flags) -> Result<Settings, CliError> {
        config::load(&self.root, profile, &config::environment(), flags)
            .map_err(|error| CliError::usage("configuration", &error).next(error.remedy()))
    }

    /// The passphrase, where one is named: flag or `HN_PASSPHRASE_FILE`, else systemd's credential.
    pub fn passphrase(&self) -> Result<Option<Passphrase>, CliError> {
        let credential = || {
            let path = PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?).join(CREDENTIAL);
            path.exists().then_some(path)
        };
        let Some(path) = self.passphrase_file.clone().or_else(credential) else {
            return Ok(None);
        };
        Passphrase::from_file(&path).map(Some).map_err(|error| {
            CliError::failed("passphrase", format_args!("{}: {error}", path.display()))
                .next("name a readable file whose first line is the passphrase")
        })
    }
}

/// Says what clap found wrong with the line, as the problem object where that was asked for, and gives the exit code.
/// Help and the version come this way too; they are no errors.
pub fn refuse(error: &clap::Error, line: &[OsString]) -> ExitCode {
    let asked = |pair: &[OsString]| {
        matches!(pair[0].to_str(), Some("-o" | "--output")) && pair[1] == "json"
    };
    let json = line.windows(2).any(asked)
        || line
            .iter()
            .any(|word| word == "-ojson" || word == "--output=json");
    if json && error.use_stderr() {
        let text = error.to_string();
        let what = text
            .lines()
            .take_while(|line| !line.is_empty())
            .map(str::trim);
        let what = what.collect::<Vec<_>>().join(" ");
        return CliError::usage("usage", what.trim_start_matches("error: "))
            .next("look at --help")
            .report(Format::Json);
    }
    // Nobody is left to tell when the stream is closed.
    let _ = error.print();
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Carries out the parsed line, and gives the exit code.
pub async fn run(cli: Cli) -> ExitCode {
    let format = cli.global.output;
    match execute(cli).await {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::from(1),
        Err(error) => error.report(format),
    }
}

async fn execute(cli: Cli) -> Result<Outcome, CliError> {
    let Cli { global, command } = cli;
    let base = match &command {
        Command::Mcp(command) if command.is_daemon() => Base::Info,
        _ => Base::Warn,
    };
    telemetry::init(base, global.verbose, global.log_json).map_err(|error| {
        CliError::usage("bad_filter", error).next("correct HN_LOG, for example HN_LOG=debug")
    })?;

    let ctx = Context {
        format: global.output,
        root: home_folder(global.home)?,
        passphrase_file: global.passphrase_file,
    };
    match command {
        Command::Id(command) => id::run(&ctx, command).await,
        Command::Mcp(command) => mcp::run(&ctx, command).await,
        Command::Shard(command) => shard::run(&ctx, command).await,
        Command::Vault(command) => vault::run(&ctx, command).await,
        Command::Policy(command) => policy::run(&ctx, command).await,
        Command::Status(arguments) => status::run(&ctx, arguments).await,
        Command::Http(arguments) => http::run(&ctx, arguments).await,
        Command::Smoke(command) => smoke::run(&ctx, command).await,
        Command::Completions(arguments) => completions::run(arguments),
    }
}

/// Says why a home can't be used; the words of a [`HomeError`] end with what to do.
pub fn home_error(error: &HomeError) -> CliError {
    let code = match error {
        HomeError::Newer { .. } => "home_newer",
        HomeError::NotAHome(_) => "not_a_home",
        HomeError::Damaged { .. } => "home_damaged",
        HomeError::Locked { .. } => "home_locked",
        HomeError::Io { .. } => "home_io",
    };
    let text = error.to_string();
    match (error, text.split_once(": ")) {
        (HomeError::Io { .. }, _) | (_, None) => CliError::failed(code, text),
        (_, Some((what, remedy))) => CliError::failed(code, what).next(remedy),
    }
}

/// The folder named, made absolute, or `~/.human-net`.
fn home_folder(named: Option<PathBuf>) -> Result<PathBuf, CliError> {
    match (named, std::env::home_dir()) {
        (Some(path), _) => std::path::absolute(&path).map_err(|error| {
            CliError::usage(
                "bad_home",
                format_args!("--home {}: {error}", path.display()),
            )
        }),
        (None, Some(user)) if user.is_absolute() => Ok(user.join(".human-net")),
        (None, _) => Err(CliError::usage(
            "no_home",
            "nobody says where the home is: HOME is not set",
        )
        .next("give --home DIR, or set HN_HOME")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
