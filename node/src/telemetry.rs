//! Tracing events to stderr: text for people, one JSON object a line with `--log-json`.
//!
//! A short command says only what went wrong (`warn`); a daemon also says what it does (`info`). `-v` goes one step
//! further, `-vv` two; `HN_LOG` holds a filter of its own (`info,hn_actors::sync=debug`) and wins over both.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// The variable that holds a filter, in the syntax of `tracing_subscriber::EnvFilter`.
const FILTER: &str = "HN_LOG";

/// How much is said without `-v`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Warnings and errors.
    Warn,
    /// What a daemon does as well.
    Info,
}

/// A filter in `HN_LOG` that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("environment variable HN_LOG: {0}")]
pub struct TelemetryError(#[from] tracing_subscriber::filter::ParseError);

/// Installs the one subscriber of this process. Call it once, before anything is logged.
pub fn init(base: Base, verbose: u8, json: bool) -> Result<(), TelemetryError> {
    let filter = match std::env::var(FILTER) {
        Ok(text) if !text.trim().is_empty() => EnvFilter::try_new(text)?,
        _ => EnvFilter::try_new(directives(base, verbose))?,
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_span_events(FmtSpan::NONE);
    if json {
        log.json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .init();
    } else {
        log.with_target(false)
            .with_ansi(std::io::IsTerminal::is_terminal(&io::stderr()))
            .init();
    }
    Ok(())
}

/// Our own crates at the level asked for, everything below us only when it warns (from `-vvv` on: all of it).
fn directives(base: Base, verbose: u8) -> String {
    let ours = match (base, verbose) {
        (Base::Warn, 0) => "warn",
        (Base::Warn, 1) | (Base::Info, 0) => "info",
        (Base::Warn, 2) | (Base::Info, 1) => "debug",
        _ => "trace",
    };
    // A stranger's malformed request is an error to actix_http: it must not fill our log.
    let others = if verbose > 2 {
        "debug"
    } else {
        "warn,actix_http=off"
    };
    format!("{others},hn={ours},hn_actors={ours},hn_protocol={ours}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn every_level_is_a_filter_that_can_be_read() {
        for base in [Base::Warn, Base::Info] {
            for verbose in 0..5 {
                EnvFilter::try_new(directives(base, verbose)).unwrap();
            }
        }
        assert_eq!(
            directives(Base::Info, 0),
            "warn,actix_http=off,hn=info,hn_actors=info,hn_protocol=info"
        );
    }
}
