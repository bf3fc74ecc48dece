//! `hn mcp federate forks` and `accept`: publishers that signed two logs, the proof, and the operator's decision.

use std::path::{Path, PathBuf};

use clap::Args;
use hn_protocol::digest::Digest;
use hn_protocol::document::{ForkEvidence, MAX_EVIDENCE_BYTES};
use hn_protocol::log::Line;
use hn_protocol::sign::Signed;
use serde_json::{Value, json};

use super::Context;
use super::output::{self, CliError, Outcome};
use crate::client;
use crate::names::Names;

/// The longest file of evidence that is read: a node's answer holds a few.
const MAX_FILE: u64 = 8 * MAX_EVIDENCE_BYTES as u64;

#[derive(Debug, Args)]
pub struct Forks {
    /// Check the evidence in FILE with nothing but the file; no node and no home is needed
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Accept {
    /// The publisher that signed two logs
    #[arg(value_name = "DID|ALIAS")]
    did: String,
    /// Digest of a document of the log that counts; `hn mcp federate forks` shows both
    #[arg(long, value_name = "DIGEST", value_parser = parse_digest)]
    head: Digest,
}

fn parse_digest(text: &str) -> Result<Digest, String> {
    text.parse()
        .map_err(|_| "a digest is 64 lower-case hex digits".to_owned())
}

/// Lists the forks known here, or checks a file.
pub async fn forks(ctx: &Context, arguments: Forks) -> Result<Outcome, CliError> {
    if let Some(file) = arguments.file {
        return check(ctx, &file);
    }
    let (answer, names) = client::with_node(ctx, async |admin| {
        let answer = admin.get("/admin/federation/forks").await?;
        Ok((answer, Names::load(ctx, admin).await?))
    })
    .await?;
    output::show(ctx.format, &answer, |answer| listed(answer, &names))?;
    Ok(Outcome::Done)
}

fn listed(answer: &Value, names: &Names) -> String {
    let forks = answer["forks"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if forks.is_empty() {
        return "no publisher is known to have signed two logs\n".to_owned();
    }
    let text = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let mut said = String::new();
    for fork in forks {
        let settled = if fork["accepted"] == true {
            "; one of them was accepted"
        } else {
            ""
        };
        said += &format!(
            "{} signed two logs of epoch {}: {}{settled}\n",
            names.show(&text(fork, "publisher")),
            fork["epoch"],
            text(fork, "what"),
        );
        for side in fork["sides"].as_array().into_iter().flatten() {
            said += &format!(
                "  {} {} at {} entries, root {}\n",
                text(side, "type"),
                text(side, "digest"),
                side["log_size"],
                text(side, "log_root"),
            );
        }
        said += &format!("  evidence {}\n", text(fork, "file"));
    }
    said += "next: hn mcp federate accept DID --head DIGEST, once you know which log counts\n";
    said
}

/// Checks evidence offline: whoever signed it, the two documents prove the fork or do not.
fn check(ctx: &Context, file: &Path) -> Result<Outcome, CliError> {
    let failed = |error: std::io::Error| {
        CliError::failed("file", format!("{}: {error}", file.display()))
            .next("name a file that this user can read")
    };
    if std::fs::metadata(file).map_err(failed)?.len() > MAX_FILE {
        let what = format!("{} has more than {MAX_FILE} bytes", file.display());
        return Err(
            CliError::failed("document_too_large", what).next("check one evidence at a time")
        );
    }
    let bytes = std::fs::read(file).map_err(failed)?;
    let lines = bytes.split(|byte| *byte == b'\n');
    let lines: Vec<&[u8]> = lines.filter(|line| !line.trim_ascii().is_empty()).collect();
    // One document may be laid out over many lines.
    let whole = Signed::<ForkEvidence>::verify(bytes.clone().into());
    let evidence: Vec<_> = match whole {
        Ok(evidence) => vec![evidence],
        Err(error) if lines.len() <= 1 => return Err(unproven(file, 1, &error)),
        Err(_) => {
            let read = |(at, line): (usize, &&[u8])| {
                Signed::<ForkEvidence>::verify(line.to_vec().into())
                    .map_err(|error| unproven(file, at + 1, &error))
            };
            lines
                .iter()
                .enumerate()
                .map(read)
                .collect::<Result<_, _>>()?
        }
    };
    let proven: Vec<Value> = evidence.iter().map(told).collect();
    output::show(ctx.format, &json!({ "forks": proven }), |_| {
        let said = evidence.iter().map(|evidence| {
            format!(
                "proven: {} signed two logs of epoch {}: {}; seen by {} at {}\n",
                evidence.publisher,
                evidence.epoch,
                evidence.conflict().map_or("", |how| how.sentence()),
                evidence.observer,
                evidence.observed_at,
            )
        });
        said.collect()
    })?;
    Ok(Outcome::Done)
}

fn unproven(file: &Path, line: usize, error: &hn_protocol::sign::DocumentError) -> CliError {
    let what = format!("{}, line {line}: {error}", file.display());
    CliError::failed(error.code(), what)
        .next("this proves nothing; spec/fork_evidence@1.md says what would")
}

fn told(evidence: &Signed<ForkEvidence>) -> Value {
    let sides = evidence.lines().iter().map(|line| match line {
        Line::Slice(slice) => json!({ "type": "index@2", "digest": slice.digest(),
            "log_size": slice.log_size, "log_root": slice.log_root }),
        Line::Presence(presence) => json!({ "type": "presence@2", "digest": presence.digest(),
            "log_size": presence.log_size, "log_root": presence.merkle_root }),
        Line::Frontier(_) => Value::Null,
    });
    json!({
        "publisher": evidence.publisher,
        "epoch": evidence.epoch,
        "evidence": evidence.digest(),
        "observer": evidence.observer,
        "observed_at": evidence.observed_at,
        "what": evidence.conflict().map(|how| how.sentence()),
        "sides": sides.collect::<Vec<_>>(),
        "verified": true,
    })
}

/// Says which of the two logs counts.
pub async fn accept(ctx: &Context, arguments: Accept) -> Result<Outcome, CliError> {
    let (answer, name) = client::with_node(ctx, async |admin| {
        let names = Names::load(ctx, admin).await?;
        let did = names.did(&arguments.did)?;
        let body = json!({ "did": did, "head": arguments.head });
        let answer = admin.post("/admin/federation/accept", &body).await?;
        Ok((answer, names.show(&did)))
    })
    .await?;
    output::show(ctx.format, &answer, |answer| {
        let then = if answer["held_log"] == "kept" {
            "the log held here goes on"
        } else {
            "the log held here was the other one: it is set aside, and the accepted one is followed from its beginning"
        };
        format!("accepted {} for {name}; {then}\n", arguments.head)
    })?;
    Ok(Outcome::Done)
}
