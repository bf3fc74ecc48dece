//! `hn`: parses the command line, carries it out inside one actix system, and gives the exit code.

mod cli;
mod client;
mod config;
mod names;
mod node;
mod telemetry;
mod upload;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // First of all: both ring and others may be linked, and the first connection must not have to choose. An error
    // means that a provider is installed already, which is all that is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli::Cli::try_parse() {
        Ok(cli) => actix::System::new().block_on(cli::run(cli)),
        Err(error) => cli::refuse(&error, &std::env::args_os().collect::<Vec<_>>()),
    }
}
