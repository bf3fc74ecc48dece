//! `hn mcp federate proof`: that an entry stands in a log, checked here with nothing but the publisher's DID.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use futures_util::StreamExt;
use hn_protocol::proof::{InclusionProof, MAX_PROOF_BYTES};
use reqwest::Method;
use serde_json::Value;

use super::Context;
use super::output::{self, CliError, Outcome};
use crate::client::{self, lost};
use crate::names::Names;

#[derive(Debug, Args)]
pub struct Proof {
    /// Whose log
    #[arg(value_name = "DID|ALIAS")]
    did: String,
    /// The entry's place in the log
    #[arg(value_name = "SEQ")]
    seq: u64,
    /// An older epoch of the log
    #[arg(long, value_name = "N")]
    epoch: Option<u64>,
    /// Check this saved proof, without a node and without asking anybody
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Gets a proof of the node or of a file, verifies it, and prints it.
pub async fn run(ctx: &Context, arguments: Proof) -> Result<Outcome, CliError> {
    let (bytes, did, names) = match &arguments.file {
        Some(path) => {
            // Who writes the DID needs no home.
            let names = match arguments.did.starts_with("did:") {
                true => Names::default(),
                false => Names::of(ctx, &Value::Null),
            };
            (read(path)?, names.did(&arguments.did)?, names)
        }
        None => {
            client::with_node(ctx, async |admin| {
                let names = Names::load(ctx, admin).await?;
                let did = names.did(&arguments.did)?;
                let epoch = arguments.epoch.map(|epoch| ("epoch", epoch.to_string()));
                let query: Vec<_> = epoch.into_iter().collect();
                let path = format!("/federate/proof/{did}/{}", arguments.seq);
                let request = admin.request_with(Method::GET, &path, &query)?;
                let mut answer = client::accepted(request).await?.bytes_stream();
                let mut bytes = Vec::new();
                while let Some(piece) = answer.next().await {
                    bytes.extend_from_slice(&piece.map_err(|error| lost(&error))?);
                    if bytes.len() > MAX_PROOF_BYTES {
                        break;
                    }
                }
                Ok((bytes, did, names))
            })
            .await?
        }
    };
    let proof = check(&bytes, &did, &arguments)?;
    let document: Value = serde_json::from_slice(&bytes)
        .map_err(|error| CliError::failed("invalid_json", format_args!("the proof: {error}")))?;
    output::show(ctx.format, &document, |_| told(&proof, &names))?;
    Ok(Outcome::Done)
}

/// Reads a saved proof, never more than one can have.
fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| {
            file.take(MAX_PROOF_BYTES as u64 + 1)
                .read_to_end(&mut bytes)
        })
        .map_err(|error| {
            CliError::failed("unreadable", format_args!("{}: {error}", path.display()))
        })?;
    Ok(bytes)
}

/// Verifies `bytes`, and that they prove what was asked.
fn check(bytes: &[u8], did: &str, asked: &Proof) -> Result<InclusionProof, CliError> {
    let proof = InclusionProof::verify(bytes).map_err(|error| {
        CliError::failed(error.code(), format_args!("this proves nothing: {error}"))
            .next("do not rely on it; ask another node that holds the log")
    })?;
    let claim = &proof.claim;
    let epoch = asked.epoch.unwrap_or(claim.epoch);
    let wanted = format!("entry {} of epoch {epoch} of {did}", asked.seq);
    let proved = format!(
        "entry {} of epoch {} of {}",
        claim.seq, claim.epoch, claim.publisher
    );
    if wanted == proved {
        return Ok(proof);
    }
    let what = format!("this proves {proved}, not {wanted}");
    Err(CliError::failed("other_proof", what).next("name what it proves, or get the right one"))
}

fn told(proof: &InclusionProof, names: &Names) -> String {
    let (claim, entry, presence) = (&proof.claim, &proof.entry, &proof.presence);
    format!(
        "proved: entry {} of {}, epoch {}\n  path      {}\n  artifact  {}, {} bytes\n  in a log of {} entries with root {}\n  \
         signed by its publisher at {} in presence {}\n",
        claim.seq,
        names.show(&claim.publisher.to_string()),
        claim.epoch,
        entry.path,
        entry.digest,
        entry.size,
        claim.log_size,
        claim.log_root,
        presence.issued_at,
        presence.digest(),
    )
}
