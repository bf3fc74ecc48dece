//! `hn mcp log`: what an operator does about an own log that may not be signed upon.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Context;
use super::output::{self, CliError, Outcome};
use crate::client;
use crate::names::Names;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask everybody who may hold newer parts of the own log again, or go on without them
    Resume(Resume),
    /// Begin the own log anew; followers keep the old one as history
    Reset(Reset),
}

#[derive(Debug, Args)]
pub struct Resume {
    /// Go on with what is here: what only others hold is given up
    #[arg(long)]
    accept_loss: bool,
}

#[derive(Debug, Args)]
pub struct Reset {
    /// Don't ask
    #[arg(long)]
    yes: bool,
}

/// Carries out one `hn mcp log` command.
pub async fn run(ctx: &Context, command: Command) -> Result<Outcome, CliError> {
    let (path, body, waiting) = match command {
        Command::Resume(Resume { accept_loss }) => (
            "/admin/log/resume",
            json!({ "accept_loss": accept_loss }),
            "asking whoever holds this log",
        ),
        Command::Reset(Reset { yes }) => {
            let wanted = yes || (io::stdin().is_terminal() && confirmed()?);
            if !wanted {
                return Err(CliError::failed("not_confirmed", "nothing was changed")
                    .next("hn mcp log reset --yes; everything is to be published again after it"));
            }
            ("/admin/log/reset", json!({}), "beginning a new log")
        }
    };
    let answer = client::with_node(ctx, async |admin| {
        output::waiting(waiting, admin.post(path, &body)).await
    })
    .await?;
    let names = Names::of(ctx, &answer);
    output::show(ctx.format, &answer, |answer| report(answer, &names))?;
    Ok(if answer["state"] == "ok" {
        Outcome::Done
    } else {
        Outcome::Failed
    })
}

fn confirmed() -> Result<bool, CliError> {
    let failed = |error| CliError::failed("terminal", format_args!("the terminal: {error}"));
    let mut stderr = io::stderr();
    let question =
        "Begin the own log anew? Its entries stay as history and are to be published again. [y/N] ";
    write!(stderr, "{question}").map_err(failed)?;
    stderr.flush().map_err(failed)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn report(answer: &Value, names: &Names) -> String {
    let log = &answer["log"];
    let mut page = format!(
        "the own log is {}: epoch {}, {}\n",
        answer["state"].as_str().unwrap_or_default(),
        log["epoch"],
        output::entries(&log["size"])
    );
    if answer["state"] == "ok" {
        return page;
    }
    for reason in answer["reasons"].as_array().into_iter().flatten() {
        let detail = reason["detail"].as_str().unwrap_or_default();
        page += &format!("  {}\n", output::plain_line(detail));
    }
    for holder in answer["holders"].as_array().into_iter().flatten() {
        let name = names.show(holder["did"].as_str().unwrap_or_default());
        let answered = if holder["answered"] == true {
            "has answered"
        } else {
            "has not answered"
        };
        page += &match holder["error"].as_str() {
            Some(error) => format!("  {name} {answered}: {}\n", output::plain_line(error)),
            None => format!("  {name} {answered}\n"),
        };
    }
    page + "next: hn status names the ways out\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_says_why_and_who_is_waited_for() {
        let answer = json!({"state": "recovering", "log": {"epoch": 0, "size": 3},
            "reasons": [{"code": "restored", "detail": "this home was copied"}],
            "holders": [{"did": "did:hn:x", "answered": false, "error": "no connection"}]});
        let page = report(&answer, &Names::default());
        assert!(page.contains("recovering: epoch 0, 3 entries\n"), "{page}");
        assert!(page.contains("  this home was copied\n"), "{page}");
        assert!(
            page.contains("did:hn:x has not answered: no connection\n"),
            "{page}"
        );
    }
}
