//! How the node is: for load balancers, for Prometheus, for `hn status`.

use actix_web::http::header::CONTENT_TYPE;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use serde_json::{Value, json};

use super::admin::check_operator;
use super::problem::Problem;
use super::{GatewayState, GetListeners, friends, own_log};
use crate::federation_sync::{ListPeers, PeerView, RosterView};
use crate::home;
use crate::index_federator::{GetOwnLog, OwnLog};
use crate::log_recovery::RecoveryView;
use crate::metrics;
use crate::supervise::{ActorState, ActorStatus};

/// The process answers.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Alive {
    /// `ok`.
    status: &'static str,
}

/// Whether the node can do its work.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Readiness {
    /// `ready` or `not ready`.
    status: &'static str,
    /// The node's version.
    version: &'static str,
    /// The schema of its home.
    schema: u32,
}

/// Whether the process answers.
#[utoipa::path(get, path = "/healthz", tag = "node", responses((status = 200, description = "It does", body = Alive)))]
pub async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(Alive { status: "ok" })
}

/// Whether the node can do its work. An outage elsewhere does not change it.
#[utoipa::path(get, path = "/readyz", tag = "node", responses(
    (status = 200, description = "Every actor runs, the own presence is there", body = Readiness), (status = 503, description = "Not (yet)", body = Readiness)))]
pub async fn readyz(state: web::Data<GatewayState>) -> HttpResponse {
    let running = |actor: &ActorStatus| actor.state == ActorState::Running;
    let ready = state.registry.list().iter().all(running) && is_shown(&state);
    let body = Readiness {
        status: if ready { "ready" } else { "not ready" },
        version: env!("CARGO_PKG_VERSION"),
        schema: home::SCHEMA,
    };
    if ready {
        HttpResponse::Ok().json(body)
    } else {
        HttpResponse::ServiceUnavailable().json(body)
    }
}

/// Whether there is something of the own log to show: its presence, or its end.
fn is_shown(state: &GatewayState) -> bool {
    let own = state.catalog.own();
    state.catalog.log(&own).is_some() || state.catalog.is_revoked(&own)
}

/// Prometheus text.
pub async fn metrics(state: web::Data<GatewayState>) -> HttpResponse {
    state.metrics.streams_open(state.admission.streams.count());
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, metrics::CONTENT_TYPE))
        .body(state.metrics.encode())
}

/// The same on the socket, for its owner.
pub async fn socket_metrics(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    check_operator(&request)?;
    Ok(metrics(state).await)
}

/// `hn status`. An actor that is away leaves its part out, never the whole answer.
pub async fn status(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    check_operator(&request)?;
    let listeners = state
        .ask(&state.listeners, GetListeners)
        .await
        .unwrap_or_default();
    let roster = state.ask(&state.links.list_peers, ListPeers).await;
    // An actor that is away is no reason to tell the operator that there are no peers.
    let roster = roster.unwrap_or_else(|_| RosterView {
        peers: Vec::new(),
        roster_error: Some("federation_sync is being restarted; ask again".into()),
    });
    let log = match state.ask(&state.links.own_log, GetOwnLog).await {
        Ok(log) => log,
        Err(_) => own_log_as_shown(&state),
    };
    let recovery = own_log::recovery(&state).await;
    let next_steps = next_steps(
        &state,
        &log,
        recovery.as_ref(),
        &roster,
        listeners.listen.is_some_and(|l| l.ip().is_loopback()),
    );
    let (own, storage) = (state.catalog.own(), storage(&state).await?);
    let mut status = json!({
        "node": {
            "did": own,
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_s": state.metrics.uptime_seconds(),
            "listen": listeners.listen,
            "metrics_listen": listeners.metrics,
            "home": state.home.root(),
            "profile": state.profile,
            "pid": std::process::id(),
        },
        "identity": {
            "alias": state.alias,
            "did": own,
            "revoked": state.catalog.is_revoked(&own),
        },
        "log": log_and(&log, recovery.as_ref()),
        "actors": state.registry.list(),
        "peers": roster.peers,
        "roster_error": roster.roster_error,
        "policy": state.policy.standing(),
        "forks": state.forks.list(),
        "held_logs": state.catalog.count().saturating_sub(1),
        "storage": storage,
        "next_steps": next_steps,
    });
    friends::status(&state, &mut status).await;
    Ok(HttpResponse::Ok().json(status))
}

/// The own log, and where it is being recovered, how far that is.
fn log_and(log: &OwnLog, recovery: Option<&RecoveryView>) -> Value {
    let mut log = json!(log);
    if let (Some(recovery), Some(members)) = (recovery, log.as_object_mut()) {
        members.insert("state".into(), json!("recovering"));
        members.insert("recovery".into(), json!(recovery));
    }
    log
}

fn own_log_as_shown(state: &GatewayState) -> OwnLog {
    let view = state.catalog.log(&state.catalog.own());
    OwnLog {
        epoch: view.as_ref().map_or(0, |view| view.state.epoch),
        size: view.as_ref().map_or(0, |view| view.state.size()),
        root: view.map_or_else(hn_protocol::merkle::empty_root, |view| view.state.root()),
        state: "recovering",
        reason: Some("the federator is being restarted".into()),
        unreadable: std::collections::BTreeMap::new(),
    }
}

async fn storage(state: &GatewayState) -> Result<Value, Problem> {
    let (home, store) = (state.home.clone(), state.store.clone());
    let own = state.catalog.own();
    let journals = |ours: bool| -> u64 {
        let logs = state.catalog.logs();
        logs.iter()
            .filter(|view| (view.state.publisher == own) == ours)
            .map(|view| view.bytes)
            .sum()
    };
    let (own_log, held_logs) = (journals(true), journals(false));
    super::blocking(move || {
        Ok(json!({
            "free_bytes": home::free_bytes(home.root())?,
            "own_log_bytes": own_log,
            "held_logs_bytes": held_logs,
            "index_bytes": store.size_on_disk().unwrap_or_default(),
        }))
    })
    .await
}

/// What the operator could do next, each with its command.
fn next_steps(
    state: &GatewayState,
    log: &OwnLog,
    recovery: Option<&RecoveryView>,
    roster: &RosterView,
    loopback: bool,
) -> Vec<Value> {
    let step = |text: String, command: &str| json!({ "text": text, "command": command });
    let mut steps = Vec::new();
    if let Some(error) = &roster.roster_error {
        steps.push(step(
            format!("the roster cannot be read: {error}"),
            "edit config/federation.toml",
        ));
    }
    if let Some(reason) = state.policy.standing().reason {
        steps.push(step(
            format!(
                "no policy is in force, and every gate denies: {reason}. Put the newest policy@1.json back (kill -HUP reads it), or begin again from the defaults"
            ),
            "hn policy gate set federate.read --mode allow",
        ));
    }
    if log.state == "revoked" {
        steps.push(step(
            format!(
                "this node's identity is revoked: {}; make another, then choose it by hn id use",
                log.reason.as_deref().unwrap_or_default()
            ),
            "hn id create ALIAS",
        ));
    } else if let Some(reason) = &log.reason {
        steps.push(step(
            format!("the own log is {}: {reason}", log.state),
            "hn status",
        ));
    }
    steps.extend(recovery.into_iter().flat_map(own_log::next_steps));
    // What a fork asks for has a step of its own, with what may be accepted.
    let ailing = |peer: &&PeerView| peer.remedy.is_some() && peer.state != "forked";
    for peer in roster.peers.iter().filter(ailing) {
        let name = peer.alias.clone().unwrap_or_else(|| peer.did.short());
        let remedy = peer.remedy.unwrap_or_default();
        if peer.state == "revoked" {
            steps.push(step(
                format!("the DID of {name} has ended, for good; what was held of its log stays"),
                &format!("hn mcp federate remove {}", peer.did),
            ));
            continue;
        }
        steps.push(step(
            format!("{name} is {}: {remedy}", peer.state),
            "hn mcp federate refresh",
        ));
    }
    steps.extend(friends::next_steps(state));
    for fork in state.forks.list().iter().filter(|fork| !fork.accepted) {
        let sides: Vec<String> = fork.sides.iter().map(|s| s.digest.to_string()).collect();
        steps.push(step(
            format!(
                "{} signed two logs ({}): ask whose it is which one counts; its log stands still",
                fork.publisher.short(),
                fork.what
            ),
            &format!(
                "hn mcp federate accept {} --head {}",
                fork.publisher,
                sides.join("|")
            ),
        ));
    }
    if !state.artifacts.has_room() {
        let text =
            "the disk is full: nothing is published or followed until there is space".to_owned();
        steps.push(step(
            text,
            "df -h; storage.min_free says what must stay free",
        ));
    }
    for (did, reason) in &log.unreadable {
        let text = format!("the log of {} cannot be opened: {reason}", did.short());
        steps.push(step(text, "hn mcp reindex"));
    }
    if log.size == 0 && log.reason.is_none() {
        steps.push(step(
            "nothing is published yet".into(),
            "hn shard publish PATH --public",
        ));
    }
    if roster.peers.is_empty() && roster.roster_error.is_none() {
        steps.push(step(
            "no peer is followed".into(),
            "hn mcp federate add DID URL",
        ));
    }
    if loopback {
        let text = "the node is not reachable from outside".to_owned();
        steps.push(step(
            text,
            "hn mcp serve --listen 0.0.0.0:7733 --public-url URL",
        ));
    }
    steps
}
