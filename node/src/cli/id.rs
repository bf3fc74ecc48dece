//! `hn id`: identities, worked on as files of the home. Each appears whole or not at all, also in a crash.

use std::fs::OpenOptions;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use hn_actors::home::{Home, HomeLock};
use hn_actors::keyring::{IdentityInfo, Keyring, KeyringError, is_alias};
use hn_actors::revocations;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::output::{self, CliError, Outcome};
use super::revoke::{self, Revoke};
use super::{Context, home_error};
use crate::client::Admin;

/// How long `id use` waits for a command that holds the home (design 11).
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// An exported identity is about 1 KiB; what is much larger is something else.
const MAX_EXPORT: u64 = 64 << 10;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an identity: a key, its DID, and its revocation, put aside
    Create {
        /// What it is called here
        #[arg(value_parser = parse_alias)]
        alias: String,
        /// Don't ask
        #[arg(long)]
        yes: bool,
    },
    /// Choose the identity that serves and publishes
    Use {
        /// The identity
        #[arg(value_parser = parse_alias)]
        alias: String,
    },
    /// List the identities of this home
    List,
    /// Show an identity and its DID document
    Get {
        /// The identity; else the one in use
        #[arg(value_parser = parse_alias)]
        alias: Option<String>,
    },
    /// Save an identity to a file, sealed when a passphrase is given or was given before
    Export {
        /// The identity; else the one in use
        #[arg(value_parser = parse_alias)]
        alias: Option<String>,
        /// The file to make
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// End an identity for good, and tell others; its file alone is enough
    Revoke(Revoke),
    /// Bring an identity back from its file
    Recover {
        /// The file that `hn id export` made
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// What it is called here; else what it was called
        #[arg(long, value_parser = parse_alias)]
        alias: Option<String>,
    },
}

/// Carries out one `hn id` command.
pub async fn run(ctx: &Context, command: Command) -> Result<Outcome, CliError> {
    match command {
        Command::Create { alias, yes } => create(ctx, &alias, yes)?,
        Command::Use { alias } => choose(ctx, &alias).await?,
        Command::List => list(ctx)?,
        Command::Get { alias } => get(ctx, alias)?,
        Command::Export { alias, out } => export(ctx, alias, &out)?,
        Command::Revoke(arguments) => return revoke::run(ctx, arguments).await,
        Command::Recover { file, alias } => recover(ctx, &file, alias.as_deref())?,
    }
    Ok(Outcome::Done)
}

/// Accepts what can be an alias. Errors: a sentence for the command line.
pub fn parse_alias(text: &str) -> Result<String, String> {
    if is_alias(text) {
        Ok(text.to_owned())
    } else {
        Err(KeyringError::Alias(text.to_owned()).to_string())
    }
}

/// Makes an identity as every command that makes one does: sealed when there is a passphrase.
pub fn make(ctx: &Context, keyring: &Keyring, alias: &str) -> Result<IdentityInfo, CliError> {
    keyring
        .create(
            alias,
            ctx.passphrase()?.as_ref(),
            ctx.clock()?.now(),
            &mut rand::rng(),
        )
        .map_err(|error| keyring_error(&error))
}

fn create(ctx: &Context, alias: &str, yes: bool) -> Result<(), CliError> {
    let keyring = open(ctx)?;
    if !yes && io::stdin().is_terminal() && !confirmed(alias)? {
        return Err(
            CliError::failed("not_confirmed", "nothing was made").next("answer y, or give --yes")
        );
    }
    let identity = make(ctx, &keyring, alias)?;
    let document = shown(ctx, &keyring, &identity)?;
    output::show(ctx.format, &document, |_| {
        format!(
            "{alias} is {}\nnext: save it by `hn id export {alias} --out FILE`\n",
            identity.did
        )
    })
}

fn confirmed(alias: &str) -> Result<bool, CliError> {
    ask(&format!(
        "Make the identity {alias}? Its key can be saved and revoked, but never replaced. [y/N] "
    ))
}

/// Asks on the terminal; anything but a plain yes is a no.
pub fn ask(question: &str) -> Result<bool, CliError> {
    let failed = |error| CliError::failed("terminal", format_args!("the terminal: {error}"));
    let mut stderr = io::stderr();
    write!(stderr, "{question}").map_err(failed)?;
    stderr.flush().map_err(failed)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// A running node serves one identity from start to end, so it must not run.
async fn choose(ctx: &Context, alias: &str) -> Result<(), CliError> {
    let home = ctx.existing_home()?;
    let keyring = open(ctx)?;
    if Admin::running(ctx).await?.is_some() {
        let pid = HomeLock::holder(&home)
            .map(|pid| format!(" (process {pid})"))
            .unwrap_or_default();
        return Err(CliError::failed(
            "node_running",
            format_args!("a node is running on this home{pid}, and it keeps its identity"),
        )
        .next(format_args!("stop it, then `hn id use {alias}`")));
    }
    let lock = HomeLock::acquire(&home, LOCK_WAIT).map_err(|error| home_error(&error))?;
    keyring
        .set_active(alias)
        .map_err(|error| keyring_error(&error))?;
    drop(lock);
    let identity = keyring.get(alias).map_err(|error| keyring_error(&error))?;
    let document = shown(ctx, &keyring, &identity)?;
    if revocations::is_kept(&home, &identity.did) {
        eprintln!(
            "{alias} is revoked: a node that runs as it serves what was published, and signs nothing"
        );
    }
    output::show(ctx.format, &document, |_| {
        format!(
            "{} is in use\n",
            output::name(&identity.did.to_string(), Some(alias))
        )
    })
}

fn list(ctx: &Context) -> Result<(), CliError> {
    let (identities, active) = if ctx.is_empty() {
        (Vec::new(), None)
    } else {
        let keyring = open(ctx)?;
        let listed = keyring
            .list()
            .and_then(|list| Ok((list, keyring.active()?)));
        listed.map_err(|error| keyring_error(&error))?
    };
    let in_use = |identity: &IdentityInfo| active.as_ref() == Some(&identity.alias);
    let home = ctx.kept_home()?;
    let revoked = |identity: &IdentityInfo| is_revoked(home.as_ref(), identity);
    let listed: Vec<Value> = identities
        .iter()
        .map(|identity| facts(identity, in_use(identity), revoked(identity)))
        .collect();
    output::show(ctx.format, &json!({"identities": listed}), |_| {
        if identities.is_empty() {
            return "no identities; next: hn id create ALIAS\n".to_owned();
        }
        let mut table = output::table(["alias", "did", "sealed", "in use", "revoked"]);
        let yes = |holds: bool| if holds { "yes" } else { "" };
        for identity in &identities {
            let did = identity.did.to_string();
            table.add_row([
                identity.alias.as_str(),
                &did,
                yes(identity.sealed),
                yes(in_use(identity)),
                yes(revoked(identity)),
            ]);
        }
        output::lines(&table)
    })
}

fn get(ctx: &Context, alias: Option<String>) -> Result<(), CliError> {
    ctx.existing_home()?;
    let keyring = open(ctx)?;
    let identity = named_or_active(&keyring, alias)?;
    output::show(ctx.format, &shown(ctx, &keyring, &identity)?, |document| {
        let ended = match document["identity"]["revoked"] == true {
            true => "it is revoked, for good: nothing is signed for it any more\n",
            false => "",
        };
        format!(
            "{} is {}\n{ended}{:#}\n",
            identity.alias, identity.did, document["identity"]["did_document"]
        )
    })
}

fn export(ctx: &Context, alias: Option<String>, out: &Path) -> Result<(), CliError> {
    ctx.existing_home()?;
    let keyring = open(ctx)?;
    let identity = named_or_active(&keyring, alias)?;
    let passphrase = ctx.passphrase()?;
    let bytes = keyring
        .export(&identity.alias, passphrase.as_ref(), true, &mut rand::rng())
        .map_err(|error| keyring_error(&error))?;
    write_new(out, &bytes)?;
    let sealed = identity.sealed || passphrase.is_some();
    let document = json!({"exported": {"alias": identity.alias, "did": identity.did, "file": out, "sealed": sealed}});
    output::show(ctx.format, &document, |_| format!("{}\n", out.display()))?;
    if !sealed {
        eprintln!(
            "{} holds the key in plain: whoever reads it is {}; --passphrase-file seals it",
            out.display(),
            identity.alias
        );
    }
    Ok(())
}

/// Makes a file that only its owner reads, durable. What is there already may be the only copy of another key.
fn write_new(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let failed = |error: io::Error| {
        CliError::failed("write", format_args!("{}: {error}", path.display()))
            .next("name a file that isn't there yet, in a folder that is")
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)
}

fn recover(ctx: &Context, file: &Path, alias: Option<&str>) -> Result<(), CliError> {
    let document = read_export(file)?;
    let keyring = open(ctx)?;
    let identity = keyring
        .recover(
            &document,
            alias,
            ctx.passphrase()?.as_ref(),
            &mut rand::rng(),
        )
        .map_err(|error| keyring_error(&error))?;
    let document = shown(ctx, &keyring, &identity)?;
    output::show(ctx.format, &document, |_| {
        format!("{} is {}\n", identity.alias, identity.did)
    })
}

/// The bytes of an exported identity, as far as one can be long.
pub fn read_export(file: &Path) -> Result<Zeroizing<Vec<u8>>, CliError> {
    let failed = |error: io::Error| {
        CliError::failed("unreadable", format_args!("{}: {error}", file.display()))
    };
    let mut document = Zeroizing::new(Vec::new());
    std::fs::File::open(file)
        .and_then(|opened| opened.take(MAX_EXPORT + 1).read_to_end(&mut document))
        .map_err(failed)?;
    Ok(document)
}

/// The keyring of the home.
pub fn open(ctx: &Context) -> Result<Keyring, CliError> {
    Keyring::open(&ctx.home()?).map_err(|error| keyring_error(&error))
}

/// The identity of that alias, else the one in use.
pub fn named_or_active(keyring: &Keyring, alias: Option<String>) -> Result<IdentityInfo, CliError> {
    let found = match alias {
        Some(alias) => Some(alias),
        None => keyring.active().map_err(|error| keyring_error(&error))?,
    };
    let alias = found.ok_or_else(|| {
        CliError::failed("no_identity", "no identity is in use here")
            .next("make one by `hn id create ALIAS`, or choose one by `hn id use ALIAS`")
    })?;
    keyring.get(&alias).map_err(|error| keyring_error(&error))
}

/// `{"identity": …}`: the facts and the DID document.
fn shown(ctx: &Context, keyring: &Keyring, identity: &IdentityInfo) -> Result<Value, CliError> {
    let active = keyring.active().map_err(|error| keyring_error(&error))?;
    let in_use = active.as_ref() == Some(&identity.alias);
    let revoked = is_revoked(ctx.kept_home()?.as_ref(), identity);
    let mut facts = facts(identity, in_use, revoked);
    facts["did_document"] = identity.did.document(None);
    Ok(json!({"identity": facts}))
}

fn is_revoked(home: Option<&Home>, identity: &IdentityInfo) -> bool {
    home.is_some_and(|home| revocations::is_kept(home, &identity.did))
}

fn facts(identity: &IdentityInfo, in_use: bool, revoked: bool) -> Value {
    json!({
        "alias": identity.alias,
        "did": identity.did,
        "created_at": identity.created_at,
        "sealed": identity.sealed,
        "in_use": in_use,
        "revoked": revoked,
    })
}

/// Says why the keyring did not do it, and what to do.
pub fn keyring_error(error: &KeyringError) -> CliError {
    let said = |code, remedy: &str| {
        let what = error.to_string();
        // The keyring's own sentence ends with the remedy where there is no better one here.
        match what.split_once(remedy) {
            Some((what, rest)) if !rest.is_empty() => CliError::failed(code, what).next(rest),
            _ => CliError::failed(code, what),
        }
    };
    match error {
        KeyringError::Alias(_) => CliError::usage("bad_alias", error).next("take another name"),
        KeyringError::Exists(_) => said("identity_exists", "\n")
            .next("take another alias; `hn id list` shows which are taken"),
        KeyringError::DidExists { .. } => said("identity_exists", "\n").next("nothing: it is here"),
        KeyringError::Unknown(_) => said("unknown_identity", "; "),
        KeyringError::PassphraseNeeded(_) => said("passphrase_needed", ": "),
        KeyringError::WrongPassphrase(_) => said("wrong_passphrase", "\n")
            .next("name the file with the right one by --passphrase-file"),
        KeyringError::PlainExport(_) => said("plain_export", ": "),
        KeyringError::Document(_) => {
            said("bad_export", "\n").next("name a file that `hn id export` made")
        }
        KeyringError::Damaged { .. } => said("identity_damaged", "; "),
        KeyringError::Io { .. } => said("keyring_io", "\n"),
    }
}
