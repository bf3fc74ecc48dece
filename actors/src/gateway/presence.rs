//! Presences and DID documents.

use std::sync::Arc;

use actix_web::http::header::{CACHE_CONTROL, ETAG};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::document::Presence;
use hn_protocol::sign::Signed;

use super::problem::Problem;
use super::{GatewayState, is_unmodified, own_log, parse_did};
use crate::catalog::LogView;

/// Our own current presence.
#[utoipa::path(get, path = "/presence", tag = "presence", responses(
    (status = 200, description = "The signed presence@2, byte for byte; the revocation@1 of a DID that is revoked", content_type = "application/json", body = Object),
    (status = 304, description = "Unchanged since If-None-Match"),
    (status = 503, description = "No presence could be signed yet")))]
pub async fn own(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    let own = state.catalog.own();
    if let Some(word) = state.catalog.revocation(&own) {
        return Ok(last_word(&request, word));
    }
    let view = state.catalog.log(&own).ok_or_else(|| {
        match state.catalog.is_recovering(&state.catalog.own()) {
            true => own_log::nothing_yet(),
            false => Problem::restarting(),
        }
    })?;
    Ok(current(&request, &state, &view))
}

/// [`own`], where it is looked for first.
#[utoipa::path(get, path = "/.well-known/hn/presence", tag = "presence", responses(
    (status = 200, description = "The signed presence@2, byte for byte", content_type = "application/json", body = Object),
    (status = 304, description = "Unchanged since If-None-Match"),
    (status = 503, description = "No presence could be signed yet")))]
pub async fn well_known(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    own(request, state).await
}

/// The current presence of a vault whose log is held: the last one known, marked when it has expired.
#[utoipa::path(get, path = "/presence/{did}", tag = "presence", params(("did" = String, Path, description = "did:hn")), responses(
    (status = 200, description = "The signed presence@2, or the revocation@1 of a DID that is revoked; HN-Expired and HN-Last-Seen when it is only the last known", content_type = "application/json", body = Object),
    (status = 304, description = "Unchanged since If-None-Match"),
    (status = 400, description = "Not a did:hn"), (status = 404, description = "Not held")))]
pub async fn of(
    request: HttpRequest,
    did: web::Path<String>,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    let did = parse_did(&did)?;
    if let Some(word) = state.catalog.revocation(&did) {
        return Ok(last_word(&request, word));
    }
    let view = state.catalog.log(&did).ok_or_else(|| {
        Problem::new(
            "unknown_presence",
            format!("no presence of {did} is held here"),
        )
    })?;
    Ok(current(&request, &state, &view))
}

/// A presence by its digest, current or historic.
#[utoipa::path(get, path = "/presence/digest/{digest}", tag = "presence", params(("digest" = String, Path, description = "64 hex digits")), responses(
    (status = 200, description = "The signed presence@2", content_type = "application/json", body = Object), (status = 304, description = "If-None-Match names it"),
    (status = 400, description = "Not a digest"), (status = 404, description = "Not held")))]
pub async fn by_digest(
    request: HttpRequest,
    digest: web::Path<String>,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    let digest: Digest = digest
        .parse()
        .map_err(|_| Problem::new("bad_digest", digest.as_str()))?;
    let catalog = state.catalog.clone();
    let found = super::blocking(move || Ok(catalog.presence_by_digest(&digest)?)).await?;
    let (view, line) = found
        .ok_or_else(|| Problem::new("unknown_presence", format!("{digest} is not held here")))?;
    Ok(answer(&request, &state, &view, line))
}

/// What is shown of a DID that has ended, where its presence was.
fn last_word(request: &HttpRequest, line: Bytes) -> HttpResponse {
    let etag = format!("\"{}\"", Digest::of(&line));
    if is_unmodified(request, &etag) {
        return HttpResponse::NotModified()
            .insert_header((ETAG, etag))
            .finish();
    }
    HttpResponse::Ok()
        .insert_header((ETAG, etag))
        .insert_header((CACHE_CONTROL, "no-cache"))
        .content_type("application/json")
        .body(line)
}

fn current(request: &HttpRequest, state: &GatewayState, view: &Arc<LogView>) -> HttpResponse {
    answer(request, state, view, view.presence.clone())
}

fn answer(
    request: &HttpRequest,
    state: &GatewayState,
    view: &LogView,
    line: Bytes,
) -> HttpResponse {
    let etag = format!("\"{}\"", Digest::of(&line));
    let log_state = own_log::log_state(&state.catalog, &view.state.publisher);
    if is_unmodified(request, &etag) {
        let mut response = HttpResponse::NotModified();
        log_state.map(|header| response.insert_header(header));
        return response.insert_header((ETAG, etag)).finish();
    }
    let mut response = HttpResponse::Ok();
    log_state.map(|header| response.insert_header(header));
    response
        .insert_header((ETAG, etag))
        .insert_header((CACHE_CONTROL, "no-cache"));
    let expires = view.state.presence.map(|presence| presence.expires_at);
    if expires.is_some_and(|expires| expires <= state.clock.now()) {
        response.insert_header(("HN-Expired", "true"));
        response.insert_header(("HN-Last-Seen", view.last_seen.to_string()));
    }
    response.content_type("application/json").body(line)
}

/// Our own DID document.
#[utoipa::path(get, path = "/.well-known/did.json", tag = "did", responses(
    (status = 200, description = "The DID document", content_type = "application/did+json", body = Object), (status = 410, description = "This node's DID is revoked")))]
pub async fn own_document(state: web::Data<GatewayState>) -> Result<HttpResponse, Problem> {
    document(&state, &state.catalog.own())
}

/// The DID document of any did:hn: the DID is the key, so none has to be known. With an endpoint where one is.
#[utoipa::path(get, path = "/1.0/identifiers/{did}", tag = "did", params(("did" = String, Path, description = "did:hn")), responses(
    (status = 200, description = "The DID document", content_type = "application/did+json", body = Object), (status = 400, description = "Not a did:hn"),
    (status = 410, description = "The DID is revoked")))]
pub async fn resolve(
    did: web::Path<String>,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    document(&state, &parse_did(&did)?)
}

fn document(state: &GatewayState, did: &Did) -> Result<HttpResponse, Problem> {
    if state.catalog.is_revoked(did) {
        let detail = format!("{did} has ended; /presence/{did} shows its revocation");
        return Err(Problem::new("revoked", detail));
    }
    let presence = state
        .catalog
        .log(did)
        .and_then(|view| Signed::<Presence>::verify(view.presence.clone()).ok());
    let endpoint = presence
        .as_ref()
        .and_then(|presence| presence.endpoints.mcp.as_deref());
    Ok(HttpResponse::Ok()
        .content_type("application/did+json")
        .json(did.document(endpoint)))
}
