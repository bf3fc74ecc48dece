//! What takes how much of the disk: `hn mcp storage`.

use std::collections::{BTreeMap, BTreeSet};

use actix_web::{HttpRequest, HttpResponse, web};
use hn_protocol::did::Did;
use serde_json::{Value, json};

use super::GatewayState;
use super::admin::check_operator;
use super::problem::Problem;
use crate::artifact_mirror::left_out;
use crate::artifacts::Usage;
use crate::federation_sync::ListPeers;
use crate::home;

/// The disk, our own log, and each publisher's: journal, artifacts, quota, and what is left out.
pub async fn storage(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    check_operator(&request)?;
    // A petname more or less: an actor that is away hides no figures.
    let roster = state.ask(&state.links.list_peers, ListPeers).await;
    let peers = roster.map(|roster| roster.peers).unwrap_or_default();
    let aliases: BTreeMap<Did, Option<String>> = peers
        .into_iter()
        .map(|peer| (peer.did, peer.alias))
        .collect();
    let state = state.into_inner();
    let answer = super::blocking(move || Ok(figures(&state, &aliases)?)).await?;
    Ok(HttpResponse::Ok().json(answer))
}

fn figures(
    state: &GatewayState,
    aliases: &BTreeMap<Did, Option<String>>,
) -> std::io::Result<Value> {
    let own = state.catalog.own();
    let logs = state.catalog.logs();
    let logs: BTreeMap<Did, _> = logs
        .iter()
        .map(|view| (view.state.publisher, view))
        .collect();
    let usages: BTreeMap<Did, Usage> = state.artifacts.usages()?.into_iter().collect();
    let quota = |bytes: u64| (bytes > 0).then_some(bytes);
    let (mut all, mut journals, mut publishers) = (Usage::default(), 0, Vec::new());
    let named: BTreeSet<&Did> = logs.keys().chain(usages.keys()).collect();
    for did in named.into_iter().filter(|did| **did != own) {
        let usage = usages.get(did).copied().unwrap_or_default();
        let view = logs.get(did);
        let journal = view.map_or(0, |view| view.bytes);
        let size = view.map_or(0, |view| view.state.size());
        all.artifacts += usage.artifacts;
        all.bytes += usage.bytes;
        journals += journal;
        publishers.push(json!({
            "did": did,
            "alias": aliases.get(did).cloned().flatten(),
            "journal_bytes": journal,
            "artifacts": usage.artifacts,
            "artifact_bytes": usage.bytes,
            "unfinished_bytes": state.artifacts.mirrored(did).unfinished_bytes()?,
            "quota_bytes": quota(state.mirror_limits.publisher_quota),
            "left_out": left_out(&state.store, did, size)?,
        }));
    }
    let ours = state.artifacts.own_usage()?;
    let own_journal = logs.get(&own).map_or(0, |view| view.bytes);
    let index = state.store.size_on_disk().unwrap_or_default();
    let disk = home::disk_bytes(state.home.root())?;
    Ok(json!({
        "disk": {
            "free_bytes": disk.free,
            "total_bytes": disk.total,
            "min_free_bytes": state.artifacts.min_free(),
            "has_room": state.artifacts.has_room(),
        },
        "own": {
            "did": own,
            "journal_bytes": own_journal,
            "artifacts": ours.artifacts,
            "artifact_bytes": ours.bytes,
        },
        "mirrored": {
            "artifacts": all.artifacts,
            "artifact_bytes": all.bytes,
            "quota_bytes": quota(state.mirror_limits.mirror_quota),
        },
        "publishers": publishers,
        "index_bytes": index,
        "total_bytes": own_journal + ours.bytes + journals + all.bytes + index,
    }))
}
