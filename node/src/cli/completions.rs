//! `hn completions`: a script for the shell, made from the same description as `--help`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use super::output::{self, CliError, Outcome};

#[derive(Debug, Args)]
pub struct Arguments {
    /// The shell that the script is for
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
pub fn run(arguments: Arguments) -> Result<Outcome, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "hn", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Outcome::Done)
}
