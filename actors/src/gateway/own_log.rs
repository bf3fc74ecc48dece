//! The own log while it may not be signed upon: what the operator does about it, and what followers are told.

use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use hn_protocol::did::Did;
use serde::Deserialize;
use serde_json::{Value, json};

use super::admin::body;
use super::problem::Problem;
use super::{GatewayState, other_methods, revocation};
use crate::catalog::Catalog;
use crate::log_recovery::{GetRecovery, RecoveryView, ResetLog, ResumeLog};

/// On what is shown of an own log that is being recovered. The name that followers look for, in the server's types.
const LOG_STATE: HeaderName = HeaderName::from_static("hn-log-state");

/// The operator's routes.
pub fn routes(config: &mut web::ServiceConfig) {
    let post = |path: &str, route: actix_web::Route| {
        web::resource(path.to_owned())
            .route(route)
            .default_service(other_methods("POST"))
    };
    config
        .service(post("/admin/log/resume", web::post().to(resume)))
        .service(post("/admin/log/reset", web::post().to(reset)));
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResumeBody {
    #[serde(default)]
    accept_loss: bool,
}

async fn resume(
    request: HttpRequest,
    state: web::Data<GatewayState>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let asked: ResumeBody = body(&request, payload).await?;
    revocation::check_own(&state)?;
    let message = ResumeLog {
        accept_loss: asked.accept_loss,
    };
    let view = state.ask(&state.links.resume_log, message).await??;
    Ok(HttpResponse::Ok().json(view))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResetBody {}

async fn reset(
    request: HttpRequest,
    state: web::Data<GatewayState>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let ResetBody {} = body(&request, payload).await?;
    revocation::check_own(&state)?;
    // Others may hold a later epoch than this home remembers: the new one must lie above it. What they say besides is
    // of no concern to who begins anew.
    let ask = ResumeLog { accept_loss: false };
    if let Err(problem) = state.ask(&state.links.resume_log, ask).await {
        tracing::warn!(?problem, "nobody was asked for a later epoch");
    }
    let view = state.ask(&state.links.reset_log, ResetLog).await??;
    Ok(HttpResponse::Ok().json(view))
}

/// What is said of `publisher`'s log in the answers that show it: while it is being recovered, they may be older than what
/// others hold. Nothing where it is not ours, or well.
pub fn log_state(catalog: &Catalog, publisher: &Did) -> Option<(HeaderName, HeaderValue)> {
    catalog
        .is_recovering(publisher)
        .then(|| (LOG_STATE, HeaderValue::from_static("recovering")))
}

/// For whoever asks for a log of which nothing is here yet.
pub fn nothing_yet() -> Problem {
    Problem::new(
        "log_recovering",
        "nothing of this node's log is here; it is being collected from its holders",
    )
}

/// How the recovery stands; nothing while there is none.
pub async fn recovery(state: &GatewayState) -> Option<RecoveryView> {
    let view = state.ask(&state.links.recovery, GetRecovery).await.ok()?;
    // What has ended recovers no more.
    let ended = state.catalog.is_revoked(&state.catalog.own());
    (view.state != "ok" && !ended).then_some(view)
}

/// What the operator can do about it, each with its command.
pub fn next_steps(view: &RecoveryView) -> Vec<Value> {
    let step = |text: String, command: &str| json!({ "text": text, "command": command });
    let forked = view.reasons.iter().any(|reason| reason.code == "own_fork");
    let mut steps = Vec::new();
    let waiting: Vec<String> = view
        .holders
        .iter()
        .filter(|holder| !holder.answered)
        .map(|holder| holder.alias.clone().unwrap_or_else(|| holder.did.short()))
        .collect();
    if forked {
        // Nobody's answer mends that.
    } else if view.holders.is_empty() {
        steps.push(step(
            "nobody is named who may hold newer parts of the log: name one, who is asked at once"
                .into(),
            "hn mcp federate add DID URL",
        ));
    } else if !waiting.is_empty() {
        let text = format!(
            "the recovery waits for {}; ask again now",
            waiting.join(", ")
        );
        steps.push(step(text, "hn mcp log resume"));
    } else {
        let text = "all have answered, and the log does not reach what was signed once; ask again";
        steps.push(step(text.into(), "hn mcp log resume"));
    }
    if !forked {
        steps.push(step(
            "or go on with what is here; what only others hold is given up, and forks the log if it exists".into(),
            "hn mcp log resume --accept-loss",
        ));
    }
    steps.push(step(
        "or begin a new log: followers keep this one as history, and everything is to be published again".into(),
        "hn mcp log reset --yes",
    ));
    steps
}
