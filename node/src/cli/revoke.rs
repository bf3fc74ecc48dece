//! `hn id revoke`: ends a DID for good, and tells whoever has to know. The revocation was signed when the identity was made,
//! so that neither key nor passphrase is needed, nor the machine: its export, or the revocation alone, is enough.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use futures_util::{StreamExt, stream};
use hn_actors::home::{Home, HomeError, HomeLock};
use hn_actors::pull::route;
use hn_actors::revocations;
use hn_actors::roster::{RosterFile, is_base_url};
use hn_protocol::document::Revocation;
use hn_protocol::sign::Signed;
use reqwest::{Client, Method, Url};
use serde_json::{Value, json};

use super::id::{self, parse_alias};
use super::output::{self, CliError, Outcome};
use super::{Context, home_error};
use crate::client::{self, Admin, chain};

/// How long a command that holds the home is waited for (design 11).
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How often the lock is tried before it is looked again whether a node has come up.
const LOCK_TURN: Duration = Duration::from_millis(200);
/// A machine that is not there within this is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A node keeps 4 KiB and answers: who takes longer counts as away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Nodes told at the same time.
const AT_ONCE: usize = 16;
/// The most of an answer that is read: it is one small object, or a problem document.
const MAX_ANSWER: usize = 16 << 10;

#[derive(Debug, Args)]
pub struct Revoke {
    /// The identity; else the one in use
    #[arg(value_parser = parse_alias, conflicts_with = "file")]
    alias: Option<String>,
    /// Its export, or its revocation: enough from any machine, without passphrase
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Tell this node as well, besides the peers of the roster; may be given again
    #[arg(long, value_name = "URL", value_parser = parse_url)]
    to: Vec<Url>,
    /// Don't ask
    #[arg(long)]
    yes: bool,
}

fn parse_url(text: &str) -> Result<Url, String> {
    let url: Url = text
        .parse()
        .map_err(|error| format!("not a URL: {error}"))?;
    if is_base_url(&url) {
        Ok(url)
    } else {
        Err("not the plain http or https URL of a node".to_owned())
    }
}

/// Revokes, keeps that durably here, then tells others.
pub async fn run(ctx: &Context, arguments: Revoke) -> Result<Outcome, CliError> {
    let Revoke {
        alias,
        file,
        to,
        yes,
    } = arguments;
    let (word, named) = match &file {
        Some(file) => {
            let document = id::read_export(file)?;
            let word = revocations::in_file(&document).map_err(|error| {
                CliError::failed(error.code(), format_args!("{}: {error}", file.display()))
                    .next("name a file that `hn id export` made, or a revocation.json")
            })?;
            let named = word.did.to_string();
            (word, named)
        }
        None => {
            ctx.existing_home()?;
            let keyring = id::open(ctx)?;
            let identity = id::named_or_active(&keyring, alias)?;
            let word = keyring.revocation(&identity.alias);
            let word = word.map_err(|error| id::keyring_error(&error))?;
            let did = identity.did.to_string();
            if word.did != identity.did {
                let what = format_args!("the revocation of {} is another DID's", identity.alias);
                return Err(CliError::failed("identity_damaged", what)
                    .next("recover the identity from its export, or give that by --file"));
            }
            (word, output::name(&did, Some(&identity.alias)))
        }
    };
    let home = ctx.kept_home()?;
    let peers = home.as_ref().map(peers).unwrap_or_default();
    if home.is_none() && to.is_empty() {
        let text = "there is no home here, so nobody is known who could be told";
        return Err(CliError::usage("nobody_to_tell", text)
            .next("name nodes by --to URL, above all those that follow this DID"));
    }
    let known = home
        .as_ref()
        .is_some_and(|home| revocations::is_kept(home, &word.did));
    if !yes && !known {
        confirm(&named)?;
    }

    let revoked_at = match &home {
        Some(home) => {
            keep(ctx, home, &word).await?;
            revocations::since(home, &word.did)
        }
        None => None,
    };
    let mut urls = to.clone();
    urls.extend(peers.into_iter().filter(|url| !to.contains(url)));
    let handed = output::waiting("telling others", hand_over(&word, &urls)).await?;
    let asked_failed = handed.iter().zip(&urls).any(|(handed, url)| {
        // Whom the roster names may be away; whom the caller named was to be told.
        handed["ok"] != true && to.contains(url)
    });
    let document = json!({
        "did": word.did,
        "revoked_at": revoked_at,
        "handed_to": handed,
    });
    output::show(ctx.format, &document, |document| report(document, &named))?;
    Ok(if asked_failed {
        Outcome::Failed
    } else {
        Outcome::Done
    })
}

/// It is final: nobody ends an identity by a slip.
fn confirm(named: &str) -> Result<(), CliError> {
    if !io::stdin().is_terminal() {
        let text = format_args!("{named} would end for good, and nobody can be asked");
        return Err(CliError::usage("not_confirmed", text).next("give --yes if it is meant"));
    }
    let question = format!(
        "End {named} for good? Nothing will be signed for it any more, and nothing newer believed. [y/N] "
    );
    if id::ask(&question)? {
        return Ok(());
    }
    Err(CliError::failed("not_confirmed", "nothing was changed").next("answer y, or give --yes"))
}

/// The URLs of the roster. One that cannot be read costs the peers, not the revocation.
fn peers(home: &Home) -> Vec<Url> {
    let mut roster = RosterFile::new(home.federation_toml());
    roster.poll();
    if let Some(error) = roster.error() {
        eprintln!("the roster cannot be read, so that no peer of it is told: {error}");
    }
    let peers = roster.roster().peers.iter();
    peers.filter_map(|peer| peer.url.clone()).collect()
}

/// Durable in the home before anybody else hears of it: through the running node, which signs nothing more from then on,
/// else as a file.
async fn keep(ctx: &Context, home: &Home, word: &Signed<Revocation>) -> Result<(), CliError> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        if let Some(node) = Admin::running(ctx).await? {
            let request = node.request(Method::POST, "/admin/revocation");
            client::json(request.body(word.bytes().clone())).await?;
            return Ok(());
        }
        match HomeLock::acquire(home, LOCK_TURN) {
            Ok(lock) => {
                let kept = revocations::keep(home, word);
                drop(lock);
                return kept.map_err(|error| {
                    let path = home.revocation_file(&word.did);
                    CliError::failed("not_kept", format_args!("{}: {error}", path.display()))
                        .next("make room or set the rights, then try again; nobody was told")
                });
            }
            Err(HomeError::Locked { .. }) if Instant::now() < deadline => {}
            Err(error) => return Err(home_error(&error)),
        }
    }
}

/// Tells every node, a few at a time; what came of each, in the order of `urls`.
async fn hand_over(word: &Signed<Revocation>, urls: &[Url]) -> Result<Vec<Value>, CliError> {
    let http = Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(ANSWER_TIMEOUT)
        .build()
        .map_err(|error| CliError::failed("client", chain(&error)))?;
    let telling = urls.iter().map(|url| {
        let telling = tell(&http, url, word);
        async move {
            let error = telling.await.err();
            json!({"url": url, "ok": error.is_none(), "error": error})
        }
    });
    Ok(stream::iter(telling).buffered(AT_ONCE).collect().await)
}

/// Errors: why the node did not take it, for people.
async fn tell(http: &Client, base: &Url, word: &Signed<Revocation>) -> Result<(), String> {
    let url = route(base, &["revocation"]);
    let request = http.post(url).body(word.bytes().clone());
    let request = request.header("content-type", "application/json");
    let mut answer = request.send().await.map_err(|error| chain(&error))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER {
            break;
        }
    }
    body.truncate(MAX_ANSWER);
    let problem = CliError::from_problem(status.as_u16(), &body);
    Err(format!("{}: {}", problem.code(), problem.what()))
}

fn report(document: &Value, named: &str) -> String {
    let mut page = match document["revoked_at"].is_string() {
        true => format!("{named} is revoked, for good: nothing is signed for it any more\n"),
        false => format!("the revocation of {named} was handed on\n"),
    };
    let mut away = false;
    for handed in document["handed_to"].as_array().into_iter().flatten() {
        let url = output::plain_line(handed["url"].as_str().unwrap_or_default());
        page += &match handed["error"].as_str() {
            None => format!("  {url} keeps it\n"),
            Some(error) => {
                away = true;
                format!("  {url} does not: {}\n", output::plain_line(error))
            }
        };
    }
    page += match away {
        true => {
            "next: the same command again tells those that were away; whoever follows hears of it from the others\n"
        }
        false => "next: hn id create ALIAS makes another identity\n",
    };
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_who_keeps_it_and_what_to_do_about_the_others() {
        let handed = json!([
            {"url": "http://a/", "ok": true, "error": null},
            {"url": "http://b/", "ok": false, "error": "no\u{1b}answer"}]);
        let document = json!({"did": "did:hn:x", "revoked_at": "2026-01-01T00:00:00.000Z", "handed_to": handed});
        let page = report(&document, "bob");
        assert!(page.starts_with("bob is revoked, for good"), "{page}");
        assert!(page.contains("  http://a/ keeps it\n"), "{page}");
        assert!(
            page.contains("  http://b/ does not: no\u{fffd}answer\nnext: the same"),
            "{page}"
        );
        let nobody = json!({"did": "did:hn:x", "revoked_at": null, "handed_to": []});
        assert!(report(&nobody, "did:hn:x").contains("was handed on\nnext: hn id create"));
    }

    #[test]
    fn a_node_is_named_by_its_base_url_alone() {
        assert!(parse_url("https://bob.example.net").is_ok());
        for not in ["bob", "ftp://x", "http://x/#part", "http://u:p@x/"] {
            assert!(parse_url(not).is_err(), "{not}");
        }
    }
}
