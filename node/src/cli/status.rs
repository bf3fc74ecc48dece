//! `hn status`: how the node is, and what to do next.

use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::Args;
use hn_protocol::time::Timestamp;
use serde_json::{Value, json};

use super::Context;
use super::friends::rights_of;
use super::output::{self, CliError, Format, Outcome};
use crate::client::{self, Admin};
use crate::names::Names;

/// How often `--watch` looks again.
const REDRAW: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub struct Arguments {
    /// Draw it again every 2 seconds, until ^C
    #[arg(long)]
    watch: bool,
}

/// Prints the status once, or again and again.
pub async fn run(ctx: &Context, arguments: Arguments) -> Result<Outcome, CliError> {
    if !arguments.watch {
        let status = read(ctx).await?;
        let now = ctx.clock()?.now();
        output::show(ctx.format, &status, |status| page(ctx, status, now))?;
        return Ok(Outcome::Done);
    }
    if ctx.format == Format::Json {
        return Err(CliError::usage(
            "watch_is_text",
            "--watch prints again and again, and -o json prints one document",
        )
        .next("leave one of them out"));
    }
    loop {
        let drawn = match read(ctx).await {
            Ok(status) => page(ctx, &status, ctx.clock()?.now()),
            Err(error) => format!("error: {}\n", error.what()),
        };
        // Home and erase to the end, after the new page is ready: no flicker.
        let clear = if io::stdout().is_terminal() {
            "\x1b[H\x1b[J"
        } else {
            ""
        };
        if !output::print_on(&format!("{clear}{}", output::plain(&drawn)))? {
            return Ok(Outcome::Done);
        }
        tokio::time::sleep(REDRAW).await;
    }
}

/// The status with `node.running`: whether it is of a running daemon or of a node made for this question.
async fn read(ctx: &Context) -> Result<Value, CliError> {
    client::with_node(ctx, async |admin: &Admin| {
        let mut status = admin.get("/admin/status").await?;
        if let Some(node) = status["node"].as_object_mut() {
            node.insert("running".to_owned(), json!(admin.is_remote()));
        }
        Ok(status)
    })
    .await
}

fn page(ctx: &Context, status: &Value, now: Timestamp) -> String {
    let names = Names::of(ctx, status);
    let sections = [
        node(status, &names),
        // Without a daemon they are those of this very command, which says nothing about a node.
        if status["node"]["running"] == true {
            actors(&status["actors"])
        } else {
            String::new()
        },
        peers(&status["peers"], &names, now),
        friends(&status["friends"], &names),
        requests(&status["requests"], &names, now),
        introductions(&status["introductions"], &names, now),
        facts("storage", &status["storage"]),
        next_steps(&status["next_steps"]),
    ];
    sections
        .into_iter()
        .filter(|section| !section.is_empty())
        .collect::<Vec<_>>()
        .join("\n")
}

fn node(status: &Value, names: &Names) -> String {
    let (node, log) = (&status["node"], &status["log"]);
    let running = node["running"] == true;
    let mut table = output::table(["node", ""]);
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            table.add_row([name.to_owned(), value]);
        }
    };
    row("identity", names.show(text(node, "did")));
    row("version", text(node, "version").to_owned());
    row("home", text(node, "home").to_owned());
    if running {
        row("profile", text(node, "profile").to_owned());
        row("listens on", text(node, "listen").to_owned());
        row(
            "up for",
            node["uptime_s"]
                .as_f64()
                .map(|seconds| output::duration(seconds as u64))
                .unwrap_or_default(),
        );
    } else {
        row(
            "running",
            "no: this is what its files say; start it by `hn mcp serve`".to_owned(),
        );
    }
    row(
        "log",
        format!(
            "{}, {}, root {}",
            text(log, "state"),
            output::entries(&log["size"]),
            text(log, "root")
        ),
    );
    row(
        "roster",
        status["roster_error"]
            .as_str()
            .map(|error| format!("not read: {error}"))
            .unwrap_or_default(),
    );
    output::lines(&table)
}

fn actors(actors: &Value) -> String {
    let mut table = output::table(["actor", "state", "restarts"]);
    for actor in actors.as_array().into_iter().flatten() {
        table.add_row([
            text(actor, "name"),
            text(actor, "state"),
            &plain(&actor["restarts"]),
        ]);
    }
    if table.is_empty() {
        String::new()
    } else {
        output::lines(&table)
    }
}

fn peers(peers: &Value, names: &Names, now: Timestamp) -> String {
    let peers = peers.as_array().map(Vec::as_slice).unwrap_or_default();
    if peers.is_empty() {
        return String::new();
    }
    let mut table = output::table(["peer", "state", "since", "entries", "last sync", "next try"]);
    table.fit();
    for peer in peers {
        table.add_row([
            names.show(text(peer, "did")),
            text(peer, "state").to_owned(),
            output::when(&peer["since"], now),
            plain(&peer["log_size"]),
            output::when(&peer["last_sync"], now),
            output::when(&peer["next_try"], now),
        ]);
    }
    // Why and what to do are sentences: under the table, whole.
    let mut page = output::lines(&table);
    for peer in peers {
        let name = names.show(text(peer, "did"));
        if let Some(reason) = peer["reason"].as_str() {
            let reason = output::plain_line(reason);
            page += &format!("{name} is {}: {reason}\n", text(peer, "state"));
        }
        if let Some(remedy) = peer["remedy"].as_str() {
            page += &format!("  next: {remedy}\n");
        }
    }
    page
}

fn friends(friends: &Value, names: &Names) -> String {
    let mut table = output::table(["friend", "may", ""]);
    for friend in friends.as_array().into_iter().flatten() {
        table.add_row([
            names.show(text(friend, "did")),
            rights_of(friend),
            if friend["friend"] == true {
                "friend"
            } else {
                ""
            }
            .to_owned(),
        ]);
    }
    if table.is_empty() {
        String::new()
    } else {
        output::lines(&table)
    }
}

/// Who waits to be allowed something. Where they are is their own word.
fn requests(requests: &Value, names: &Names, now: Timestamp) -> String {
    let requests = requests.as_array().map(Vec::as_slice).unwrap_or_default();
    if requests.is_empty() {
        return String::new();
    }
    let mut table = output::table(["requests", "says to be at", "since", "invite made"]);
    for request in requests {
        table.add_row([
            names.show(text(request, "did")),
            text(request, "url").to_owned(),
            output::when(&request["since"], now),
            output::when(&request["invite_made_at"], now),
        ]);
    }
    let mut page = output::lines(&table);
    for request in requests {
        let did = output::plain_line(text(request, "did"));
        page += &format!("  next: hn mcp allow {did} RIGHTS [--friend], or none to dismiss it\n");
    }
    page
}

fn introductions(introductions: &Value, names: &Names, now: Timestamp) -> String {
    let introductions = introductions.as_array().into_iter().flatten();
    let mut table = output::table(["introduced to", "state", "since", "next try"]);
    let mut reasons = String::new();
    for one in introductions {
        let name = names.show(text(one, "did"));
        table.add_row([
            name.clone(),
            text(one, "state").to_owned(),
            output::when(&one["since"], now),
            output::when(&one["next_try"], now),
        ]);
        if let Some(reason) = one["reason"].as_str() {
            reasons += &format!("{name}: {}\n", output::plain_line(reason));
        }
    }
    if table.is_empty() {
        String::new()
    } else {
        output::lines(&table) + &reasons
    }
}

/// An object of facts: members of bytes are made readable, inner objects are flattened.
fn facts(title: &str, object: &Value) -> String {
    let mut table = output::table([title, ""]);
    collect(object, "", &mut |name, value| {
        table.add_row([name.replace('_', " "), value]);
    });
    if table.is_empty() {
        String::new()
    } else {
        output::lines(&table)
    }
}

fn collect(object: &Value, prefix: &str, add: &mut impl FnMut(&str, String)) {
    for (name, value) in object.as_object().into_iter().flatten() {
        let name = format!("{prefix}{name}");
        match value {
            Value::Object(_) => collect(value, &format!("{name} "), add),
            Value::Null => {}
            Value::Number(number)
                if ["bytes", "free", "total", "size"]
                    .iter()
                    .any(|unit| name.ends_with(unit)) =>
            {
                add(
                    &name,
                    number
                        .as_u64()
                        .map_or_else(|| number.to_string(), output::bytes),
                );
            }
            other => add(&name, plain(other)),
        }
    }
}

fn next_steps(steps: &Value) -> String {
    let mut page = String::new();
    for step in steps.as_array().into_iter().flatten() {
        let line = match (
            step.as_str(),
            step["what"].as_str().or(step["text"].as_str()),
            step["command"].as_str(),
        ) {
            (Some(sentence), _, _) => sentence.to_owned(),
            (None, Some(what), Some(command)) => format!("{what}: {command}"),
            (None, Some(what), None) => what.to_owned(),
            _ => step.to_string(),
        };
        page += &format!("  {}\n", output::plain_line(&line));
    }
    if page.is_empty() {
        page
    } else {
        format!("next steps\n{page}")
    }
}

/// A value as a person writes it: no quotes, nothing for null.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_peer_in_trouble_says_why_and_what_to_do() {
        let peer = json!({"did": "did:hn:x", "state": "stale", "reason": "a gap", "remedy": "ask it", "log_size": 3});
        let page = peers(&json!([peer]), &Names::default(), Timestamp(0));
        assert!(
            page.contains("did:hn:x is stale: a gap\n  next: ask it\n"),
            "{page}"
        );
    }

    #[test]
    fn who_waits_is_shown_with_what_to_do() {
        let request = json!({"did": "did:hn:x", "url": "https://x.example\u{1b}", "since": "1970-01-01T00:00:00.000Z",
            "invite_made_at": "1970-01-01T00:00:00.000Z"});
        let page = requests(&json!([request]), &Names::default(), Timestamp(5000));
        assert!(
            page.contains("https://x.example\u{fffd}") && page.contains("5s ago"),
            "{page}"
        );
        assert!(
            page.contains("next: hn mcp allow did:hn:x RIGHTS"),
            "{page}"
        );
        let friend = json!({"did": "did:hn:y", "rights": ["read", "inbox"], "friend": true});
        let page = friends(&json!([friend]), &Names::default());
        assert!(
            page.contains("read, inbox") && page.contains("friend"),
            "{page}"
        );
        let one = json!({"did": "did:hn:z", "state": "refused", "reason": "used"});
        let page = introductions(&json!([one]), &Names::default(), Timestamp(0));
        assert!(
            page.contains("refused") && page.contains("did:hn:z: used"),
            "{page}"
        );
        assert_eq!(requests(&Value::Null, &Names::default(), Timestamp(0)), "");
    }

    #[test]
    fn storage_is_readable() {
        let page = facts(
            "storage",
            &json!({"free_bytes": 1536, "artifacts": {"count": 2}, "damaged": null}),
        );
        assert!(
            page.contains("1.5 KiB")
                && page.contains("artifacts count")
                && !page.contains("damaged"),
            "{page}"
        );
    }

    #[test]
    fn next_steps_come_as_sentences_or_with_their_command() {
        let page = next_steps(
            &json!(["look", {"what": "no peers", "command": "hn mcp federate add DID URL"}]),
        );
        assert_eq!(
            page,
            "next steps\n  look\n  no peers: hn mcp federate add DID URL\n"
        );
    }
}
