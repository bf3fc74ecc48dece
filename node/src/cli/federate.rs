//! `hn mcp federate`: whom this node follows.

use clap::{Args, Subcommand, ValueEnum};
use hn_protocol::invite::Invite;
use hn_protocol::time::Timestamp;
use reqwest::{Method, Url};
use serde_json::{Map, Value, json};

use super::Context;
use super::output::{self, CliError, Outcome};
use super::proof;
use crate::client;
use crate::names::Names;

/// What stands in the place of an empty table.
const NOBODY: &str = "nobody is followed; next: hn mcp federate add DID URL\n";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Follow a peer, or change how it is followed
    Add(Add),
    /// Stop following a peer; what was verified stays
    Remove(Remove),
    /// List the peers and how they are
    List,
    /// Pull now, and say what came
    Refresh(Refresh),
    /// List the publishers that signed two logs, or check the evidence
    Forks(super::forks::Forks),
    /// Say which log of a publisher that signed two counts
    Accept(super::forks::Accept),
    /// Prove that an entry stands in a log, and check the proof here
    Proof(proof::Proof),
}

#[derive(Debug, Args)]
pub struct Add {
    /// DID of the peer, its alias when it is known already, or the invite that its operator sent: then they are told that you
    /// came
    #[arg(value_name = "DID|ALIAS|INVITE")]
    did: String,
    /// Base URL of the peer; without it, it is looked for in what this node holds. An invite has it
    #[arg(value_parser = parse_url)]
    url: Option<Url>,
    /// URL of the peer's presence, where it is not <URL>/presence
    #[arg(long, value_name = "URL", value_parser = parse_url)]
    presence: Option<Url>,
    /// Follow only its own log, or also the logs that it holds for others [default: held]
    #[arg(long, value_enum)]
    scope: Option<Scope>,
    /// Also keep the published files, not only the index
    #[arg(long)]
    mirror: bool,
    /// Name for the peer on this node
    #[arg(long, value_name = "NAME", value_parser = super::id::parse_alias)]
    alias: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Scope {
    Own,
    Held,
}

#[derive(Debug, Args)]
pub struct Remove {
    /// The peer
    #[arg(value_name = "DID|ALIAS")]
    did: String,
}

#[derive(Debug, Args)]
pub struct Refresh {
    /// One peer; else all
    #[arg(value_name = "DID|ALIAS")]
    did: Option<String>,
    /// Also fetch the published files that are missing here
    #[arg(long)]
    mirror: bool,
}

/// Carries out one `hn mcp federate` command.
pub async fn run(ctx: &Context, command: Command) -> Result<Outcome, CliError> {
    match command {
        Command::Add(arguments) => add(ctx, arguments).await,
        Command::Remove(arguments) => remove(ctx, arguments).await,
        Command::List => list(ctx).await,
        Command::Forks(arguments) => super::forks::forks(ctx, arguments).await,
        Command::Accept(arguments) => super::forks::accept(ctx, arguments).await,
        Command::Proof(arguments) => proof::run(ctx, arguments).await,
        Command::Refresh(arguments) => {
            refresh(ctx, arguments.did.as_deref(), arguments.mirror).await
        }
    }
}

fn parse_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(format!("write http:// or https://, not {other}:")),
    }
}

/// The invite in the place of a DID, where it is one: no DID and no alias of ours has a `=`.
fn invite(arguments: &Add) -> Result<Option<Invite>, CliError> {
    let text = arguments.did.trim();
    if !(text.starts_with("did:") && text.contains('=')) {
        return Ok(None);
    }
    let invite: Invite = text.parse().map_err(|error| {
        CliError::usage("bad_invite", format_args!("the invite: {error}"))
            .next("paste the whole line, in quotes, as `hn mcp invite` printed it")
    })?;
    if arguments.url.is_some() {
        return Err(CliError::usage(
            "invite_with_url",
            "an invite names its URL, and here is another one",
        )
        .next("leave the URL out"));
    }
    Ok(Some(invite))
}

async fn add(ctx: &Context, mut arguments: Add) -> Result<Outcome, CliError> {
    let mut body = Map::new();
    if let Some(invite) = invite(&arguments)? {
        let url = parse_url(invite.url.as_str()).map_err(|error| {
            CliError::usage("bad_invite", format_args!("the invite's URL: {error}"))
                .next("ask whoever sent it for another one")
        })?;
        arguments.url = Some(url);
        arguments.did = invite.did.to_string();
        body.insert("token".to_owned(), invite.token.to_string().into());
    }
    let mut set =
        |name: &str, value: Option<Value>| value.map(|value| body.insert(name.to_owned(), value));
    set(
        "url",
        arguments
            .url
            .map(|url| json!(url.as_str().trim_end_matches('/'))),
    );
    set("presence", arguments.presence.map(|url| json!(url)));
    set(
        "scope",
        arguments.scope.map(|scope| {
            json!(match scope {
                Scope::Own => "own",
                Scope::Held => "held",
            })
        }),
    );
    set("mirror", arguments.mirror.then_some(json!(true)));
    set("alias", arguments.alias.map(Value::String));

    let (answer, names, running) = client::with_node(ctx, async |admin| {
        let did = Names::load(ctx, admin).await?.did(&arguments.did)?;
        let request = admin
            .request(Method::PUT, &format!("/admin/federation/peers/{did}"))
            .json(&body);
        let answer = client::json(request).await?;
        let names = Names::load(ctx, admin).await?;
        Ok((answer, names, admin.is_remote()))
    })
    .await?;
    output::show(ctx.format, &answer, |answer| {
        let peer = &answer["peer"];
        let mirrored = if peer["mirror"] == true {
            ", its files mirrored"
        } else {
            ""
        };
        let name = names.show(text(peer, "did"));
        let introduced = match (answer["introduction"].is_object(), running) {
            (false, _) => "",
            (true, true) => {
                "they are told that you came with their invite; hn status says what they answer\n"
            }
            (true, false) => {
                "they are told that you came with their invite once a node runs here: hn mcp serve\n"
            }
        };
        format!(
            "following {name} at {}, scope {}{mirrored}\n{introduced}",
            base(peer),
            text(peer, "scope")
        )
    })?;
    Ok(Outcome::Done)
}

async fn remove(ctx: &Context, arguments: Remove) -> Result<Outcome, CliError> {
    let (answer, shown) = client::with_node(ctx, async |admin| {
        let names = Names::load(ctx, admin).await?;
        let did = names.did(&arguments.did)?;
        let request = admin.request(Method::DELETE, &format!("/admin/federation/peers/{did}"));
        Ok((client::json(request).await?, names.show(&did)))
    })
    .await?;
    output::show(ctx.format, &answer, |_| {
        format!("no longer following {shown}; what was verified stays\n")
    })?;
    Ok(Outcome::Done)
}

async fn list(ctx: &Context) -> Result<Outcome, CliError> {
    let answer = client::with_node(ctx, async |admin| {
        admin.get("/admin/federation/peers").await
    })
    .await?;
    let names = Names::of(ctx, &answer);
    let now = ctx.clock()?.now();
    output::show(ctx.format, &answer, |answer| listed(answer, &names, now))?;
    Ok(Outcome::Done)
}

/// The peers of an answer as a table.
pub fn listed(answer: &Value, names: &Names, now: Timestamp) -> String {
    let peers = answer["peers"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if peers.is_empty() {
        return NOBODY.to_owned();
    }
    let mut table = output::table([
        "peer",
        "url",
        "scope",
        "mirror",
        "state",
        "entries",
        "last sync",
    ]);
    for peer in peers {
        table.add_row([
            names.show(text(peer, "did")),
            base(peer).to_owned(),
            text(peer, "scope").to_owned(),
            if peer["mirror"] == true { "yes" } else { "" }.to_owned(),
            text(peer, "state").to_owned(),
            peer["log_size"]
                .as_u64()
                .map(|size| size.to_string())
                .unwrap_or_default(),
            output::when(&peer["last_sync"], now),
        ]);
    }
    output::lines(&table)
}

/// Pulls from one peer or all, prints what came, and says by the exit code whether all could be followed.
pub async fn refresh(ctx: &Context, peer: Option<&str>, mirror: bool) -> Result<Outcome, CliError> {
    let (answer, names) = client::with_node(ctx, async |admin| {
        let names = Names::load(ctx, admin).await?;
        let mut body = Map::new();
        if let Some(peer) = peer {
            body.insert("did".to_owned(), names.did(peer)?.into());
        }
        if mirror {
            body.insert("mirror".to_owned(), true.into());
        }
        let body = Value::Object(body);
        let round = admin.post("/admin/federation/refresh", &body);
        Ok((output::waiting("pulling from peers", round).await?, names))
    })
    .await?;
    output::show(ctx.format, &answer, |answer| refreshed(answer, &names))?;
    let failed = answer["peers"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|peer| peer["status"] == "failed");
    Ok(if failed {
        Outcome::Failed
    } else {
        Outcome::Done
    })
}

fn refreshed(answer: &Value, names: &Names) -> String {
    let peers = answer["peers"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if peers.is_empty() {
        return NOBODY.to_owned();
    }
    let mut table = output::table(["peer", "status", "new", "size", "root", ""]);
    for peer in peers {
        table.add_row(refreshed_row(peer, &names.show(text(peer, "did"))));
        for held in peer["held"].as_array().into_iter().flatten() {
            table.add_row(refreshed_row(
                held,
                &format!("  holds {}", names.show(text(held, "did"))),
            ));
        }
    }
    output::lines(&table)
}

fn refreshed_row(log: &Value, name: &str) -> [String; 6] {
    let count = |member: &str| {
        log[member]
            .as_u64()
            .map(|count| count.to_string())
            .unwrap_or_default()
    };
    let root: String = text(log, "log_root").chars().take(16).collect();
    // A sentence, or an object of a code and a sentence.
    let error = &log["error"];
    let error = error.as_str().or_else(|| error["detail"].as_str());
    let said = match (text(log, "state"), error) {
        (_, None) => String::new(),
        ("", Some(error)) => error.to_owned(),
        (state, Some(error)) => format!("{state}: {error}"),
    };
    [
        name.to_owned(),
        text(log, "status").to_owned(),
        count("entries"),
        count("log_size"),
        root,
        said,
    ]
}

/// The base URL of a peer as a person writes it.
fn base(peer: &Value) -> &str {
    text(peer, "url").trim_end_matches('/')
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_pull_says_why_in_its_row() {
        let peer = json!({"did": "did:hn:x", "status": "failed", "state": "unreachable",
            "error": {"code": "no_connection", "detail": "refused"}, "log_size": 3, "held": [{"did": "did:hn:y", "log_size": 1}]});
        let page = refreshed(&json!({"peers": [peer]}), &Names::default());
        assert!(page.contains("unreachable: refused"), "{page}");
        assert!(page.contains("  holds did:hn:y"), "{page}");
    }
}
