//! `hn policy`: who may do what at this node, and why.

use std::io::Read;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use hn_protocol::policy::{Explanation, Gate, Mode};
use reqwest::Method;
use serde_json::{Value, json};

use super::Context;
use super::output::{self, CliError, Outcome};
use crate::client;
use crate::names::Names;

/// The longest explanation that is read; the reader itself takes less.
const MAX_FILE: u64 = 1 << 20;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the gates and limits, and whether the policy is in force
    Get,
    /// Gates: who passes
    #[command(subcommand)]
    Gate(GateCommand),
    /// Say what a gate would decide, and why
    Check(Check),
}

#[derive(Debug, Subcommand)]
pub enum GateCommand {
    /// Set one gate, and sign the policy anew
    Set(Set),
}

#[derive(Debug, Args)]
pub struct Set {
    /// The gate, such as publish.hosted
    #[arg(value_parser = parse_gate)]
    name: Gate,
    /// What it says: allow, prompt (a person decides each time) or deny
    #[arg(long, value_parser = parse_mode, value_name = "MODE")]
    mode: Mode,
    /// Condition in CEL, such as 'caller.friend || "relay" in caller.rights'; where it is not true the gate denies
    #[arg(long, value_name = "CEL")]
    when: Option<String>,
}

#[derive(Debug, Args)]
pub struct Check {
    /// The gate
    #[arg(value_parser = parse_gate, required_unless_present = "replay")]
    name: Option<Gate>,
    /// Who asks; else nobody in particular
    #[arg(long, value_name = "DID|ALIAS")]
    caller: Option<String>,
    /// Decide an explanation again, from this file (- for stdin) alone: no home is needed
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "caller"])]
    replay: Option<PathBuf>,
}

fn parse_gate(text: &str) -> Result<Gate, String> {
    text.parse()
        .map_err(|error: hn_protocol::policy::UnknownGate| error.to_string())
}

fn parse_mode(text: &str) -> Result<Mode, String> {
    [Mode::Allow, Mode::Prompt, Mode::Deny]
        .into_iter()
        .find(|mode| mode.name() == text)
        .ok_or_else(|| "there are `allow`, `prompt` and `deny`".to_owned())
}

/// Carries out one `hn policy` command.
pub async fn run(ctx: &Context, command: Command) -> Result<Outcome, CliError> {
    match command {
        Command::Get => get(ctx).await,
        Command::Gate(GateCommand::Set(arguments)) => set(ctx, arguments).await,
        Command::Check(Check {
            replay: Some(file), ..
        }) => replay(ctx, &file),
        Command::Check(arguments) => check(ctx, arguments).await,
    }
}

async fn get(ctx: &Context) -> Result<Outcome, CliError> {
    let view = client::with_node(ctx, async |admin| admin.get("/admin/policy").await).await?;
    show(ctx, &view)
}

async fn set(ctx: &Context, arguments: Set) -> Result<Outcome, CliError> {
    if arguments.mode == Mode::Deny && arguments.when.is_some() {
        return Err(
            CliError::usage("bad_condition", "a gate that denies has no condition")
                .next("leave --when away, or give another --mode"),
        );
    }
    let path = format!("/admin/policy/gates/{}", arguments.name);
    let asked = json!({"mode": arguments.mode, "when": arguments.when});
    let view = client::with_node(ctx, async |admin| {
        client::json(admin.request(Method::PUT, &path).json(&asked)).await
    })
    .await
    .map_err(|error| match error.code() {
        // The command line was wrong, as it is where clap finds it out.
        "bad_condition" => CliError::usage("bad_condition", error.what())
            .next("correct --when; spec/policy@1.md says what there is to ask for"),
        _ => error,
    })?;
    show(ctx, &view)
}

/// Exit 1 while no policy is in force.
fn show(ctx: &Context, view: &Value) -> Result<Outcome, CliError> {
    output::show(ctx.format, view, get_text)?;
    Ok(match view["state"] == "ok" {
        true => Outcome::Done,
        false => Outcome::Failed,
    })
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn get_text(view: &Value) -> String {
    if view["state"] != "ok" {
        let reason = text(view, "reason");
        return format!(
            "no policy is in force, and every gate denies: {reason}\nput the newest policy@1.json back, or begin again: hn policy gate set NAME --mode MODE\n"
        );
    }
    let mut table = output::table(["gate", "says", "when", ""]);
    for gate in view["gates"].as_array().into_iter().flatten() {
        let note = if gate["default"] == true {
            "default"
        } else {
            ""
        };
        table.add_row([
            text(gate, "name"),
            text(gate, "mode"),
            text(gate, "when"),
            note,
        ]);
    }
    let limits = view["limits"].as_object().into_iter().flatten();
    let limits: String = limits
        .map(|(name, value)| format!("{name} {value}\n"))
        .collect();
    format!(
        "{}\n{limits}signed as number {}\n",
        output::lines(&table),
        view["sequence"]
    )
}

async fn check(ctx: &Context, arguments: Check) -> Result<Outcome, CliError> {
    let gate = arguments
        .name
        .map_or_else(String::new, |gate| gate.name().to_owned());
    let explanation = client::with_node(ctx, async |admin| {
        let caller = match &arguments.caller {
            Some(name) => Some(Names::load(ctx, admin).await?.did(name)?),
            None => None,
        };
        let asked = json!({"gate": gate, "caller": caller});
        admin.post("/admin/policy/check", &asked).await
    })
    .await?;
    output::show(ctx.format, &explanation, explained)?;
    Ok(Outcome::Done)
}

fn explained(explanation: &Value) -> String {
    let facts = &explanation["facts"];
    let mut lines = format!(
        "{}: {}\n  {}\n",
        text(explanation, "gate"),
        text(explanation, "mode"),
        text(explanation, "reason")
    );
    let caller = &facts["caller"];
    if caller.is_null() {
        lines += "  caller: nobody in particular (no signature)\n";
    } else {
        lines += &format!(
            "  caller: {}, known {}, friend {}, rights {}\n",
            text(caller, "did"),
            caller["known"],
            caller["friend"],
            caller["rights"]
        );
    }
    let missing: Vec<&str> = explanation["missing"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !missing.is_empty() {
        lines += &format!("  not known: {}\n", missing.join(", "));
    }
    lines
}

fn replay(ctx: &Context, file: &PathBuf) -> Result<Outcome, CliError> {
    let unreadable = |error: std::io::Error| {
        CliError::failed("read", format_args!("{}: {error}", file.display()))
            .next("name a file that `hn -o json policy check` has written")
    };
    let mut bytes = Vec::new();
    if file.as_os_str() == "-" {
        std::io::stdin()
            .lock()
            .take(MAX_FILE)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
    } else {
        let opened = std::fs::File::open(file).map_err(unreadable)?;
        opened
            .take(MAX_FILE)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
    }
    let replayed =
        Explanation::replay(&bytes).map_err(|error| CliError::failed("bad_explanation", error))?;
    let (agrees, decision) = (replayed.agrees(), &replayed.decision);
    let document = json!({
        "agrees": agrees,
        "policy_of": replayed.did,
        "gate": decision.gate.name(),
        "mode": decision.mode,
        "reason": decision.reason,
        "said": {"mode": replayed.said.0, "reason": replayed.said.1},
    });
    output::show(ctx.format, &document, |_| {
        let verdict = match agrees {
            true => "the explanation holds".to_owned(),
            false => format!(
                "the explanation does not hold; it says {}: {}",
                replayed.said.0, replayed.said.1
            ),
        };
        format!(
            "{}: {} by the policy of {}\n  {}\n{verdict}\n",
            decision.gate, decision.mode, replayed.did, decision.reason
        )
    })?;
    Ok(if agrees {
        Outcome::Done
    } else {
        Outcome::Failed
    })
}
