//! `hn vault key`: a key as shares, and back. Works on the files of the home, as `hn id` does; what a share is says
//! `spec/key_share@1.md`.

mod recover;
mod split;

use std::path::Path;

use clap::Subcommand;
use hn_actors::keyring::Passphrase;
use hn_protocol::key_share::{Layout, Pad};

use crate::cli::Context;
use crate::cli::output::{CliError, Outcome};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Split a key into shares, as words, files and QR codes
    Split(split::Split),
    /// Bring a key back from enough of its shares
    Recover(recover::Recover),
}

/// Carries out one `hn vault key` command.
pub fn run(ctx: &Context, command: Command) -> Result<Outcome, CliError> {
    match command {
        Command::Split(arguments) => split::run(ctx, arguments)?,
        Command::Recover(arguments) => recover::run(ctx, arguments)?,
    }
    Ok(Outcome::Done)
}

/// The passphrase of a set, where its file is named.
fn share_passphrase(file: Option<&Path>) -> Result<Option<Passphrase>, CliError> {
    let read = file.map(|path| {
        Passphrase::from_file(path).map_err(|error| {
            CliError::failed("passphrase", format_args!("{}: {error}", path.display()))
                .next("name a readable file whose first line is the passphrase of the shares")
        })
    });
    read.transpose()
}

/// The pad that the passphrase of a set becomes.
fn pad(passphrase: &Passphrase, layout: &Layout) -> Result<Pad, CliError> {
    passphrase.pad(&layout.salt()).ok_or_else(|| {
        CliError::failed("no_memory", "the passphrase takes 64 MiB to stretch")
            .next("end something else, and try again")
    })
}
