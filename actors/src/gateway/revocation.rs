//! `POST /revocation`: the last word of a DID, from whoever has it. It proves itself, so that nobody is asked who they are
//! (`spec/revocation@1.md`).

use actix_web::{HttpRequest, HttpResponse, web};
use hn_protocol::document::Revocation;
use hn_protocol::sign::Document;
use serde::Serialize;

use super::admin::{check_operator, whole};
use super::problem::{Problem, REVOKED};
use super::{GatewayState, asked, other_methods};
use crate::index_federator::GetOwnLog;
use crate::revocations::Accepted;

/// What was made of a revocation.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Told {
    /// Whose it is.
    did: String,
    /// `accepted`: durable and believed from now on; `known`: it was already.
    status: &'static str,
}

/// The open route.
pub fn open_routes(config: &mut web::ServiceConfig) {
    config.service(
        web::resource("/revocation")
            .route(asked("POST", "/revocation", web::post().to(tell)))
            .default_service(other_methods("POST")),
    );
}

/// The operator's route.
pub fn operator_routes(config: &mut web::ServiceConfig) {
    config.service(
        web::resource("/admin/revocation")
            .route(web::post().to(keep))
            .default_service(other_methods("POST")),
    );
}

/// Tells this node that a DID has ended.
#[utoipa::path(post, path = "/revocation", tag = "presence",
    request_body(content = Object, content_type = "application/json", description = "One revocation@1, at most 4 KiB"), responses(
    (status = 200, description = "Durable, and believed from now on or already", body = Told),
    (status = 400, description = "No revocation@1, or not by the DID that it names"),
    (status = 404, description = "A DID that this node has nothing to do with"),
    (status = 413, description = "More than 4 KiB"), (status = 415, description = "Compressed"),
    (status = 507, description = "The disk is full")))]
pub async fn tell(
    request: HttpRequest,
    state: web::Data<GatewayState>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let bytes = whole(&request, payload, Revocation::MAX_BYTES).await?;
    let revocations = state.revocations.clone();
    let accepted = super::blocking(move || Ok(revocations.accept(bytes)?)).await?;
    Ok(told(&state, accepted).await)
}

/// The same at the operator's word: also of a DID that this node has nothing to do with yet.
async fn keep(
    request: HttpRequest,
    state: web::Data<GatewayState>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    check_operator(&request)?;
    let bytes = whole(&request, payload, Revocation::MAX_BYTES).await?;
    let revocations = state.revocations.clone();
    let accepted = super::blocking(move || Ok(revocations.accept_from_operator(bytes)?)).await?;
    Ok(told(&state, accepted).await)
}

async fn told(state: &GatewayState, accepted: Accepted) -> HttpResponse {
    if accepted.did() == state.catalog.own() {
        // What was being signed at that moment is done once its writer answers; after that nothing is. One that is being
        // restarted signs nothing.
        let _ = state.ask(&state.links.own_log, GetOwnLog).await;
    }
    HttpResponse::Ok().json(Told {
        did: accepted.did().to_string(),
        status: accepted.status(),
    })
}

/// Refuses what would be signed for our own DID once it has ended.
pub fn check_own(state: &GatewayState) -> Result<(), Problem> {
    let own = state.catalog.own();
    if !state.revocations.is_revoked(&own) {
        return Ok(());
    }
    let detail = format!("nothing is signed for {own} any more");
    Err(Problem::new("revoked", detail).remedy(REVOKED))
}
