//! `hn vault`: what outlives its machine.

mod key;

use clap::Subcommand;

use super::Context;
use super::output::{CliError, Outcome};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The key as shares for other people, a few of which bring it back
    #[command(subcommand)]
    Key(key::Command),
}

/// Carries out one `hn vault` command.
pub async fn run(ctx: &Context, command: Command) -> Result<Outcome, CliError> {
    match command {
        Command::Key(command) => key::run(ctx, command),
    }
}
