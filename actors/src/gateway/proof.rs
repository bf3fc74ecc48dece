//! Inclusion proofs: that an entry stands in a held log, to be checked by anybody with nothing but the DID.

use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use hn_protocol::document::parse_cursor;

use super::problem::Problem;
use super::{GatewayState, parse_did};
use crate::catalog::{LogView, ReadError};
use crate::prove::ProveError;

/// The proof that an entry stands in its publisher's log, against the presence that binds the log.
#[utoipa::path(get, path = "/federate/proof/{publisher}/{seq}", tag = "federate", params(
    ("publisher" = String, Path, description = "did:hn"),
    ("seq" = String, Path, description = "the entry's seq, decimal"),
    ("epoch" = Option<u64>, Query, description = "an older epoch")), responses(
    (status = 200, description = "The entry, its leaf, the hashes to the root, and the signed presence that binds it", content_type = "application/json"),
    (status = 400, description = "A bad DID, seq or epoch"), (status = 404, description = "No such log or entry is held"),
    (status = 410, description = "The entry was pruned; first_cursor names the first that is kept"),
    (status = 503, description = "The proofs of a log are being rebuilt")))]
pub async fn get(
    request: HttpRequest,
    path: web::Path<(String, String)>,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    let publisher = parse_did(&path.0)?;
    let seq = parse_cursor(&path.1)
        .ok_or_else(|| Problem::new("bad_seq", path.1.chars().take(80).collect::<String>()))?;
    let epoch = url::form_urlencoded::parse(request.query_string().as_bytes())
        .find(|(key, _)| key == "epoch")
        .map(|(_, value)| parse_cursor(&value).ok_or_else(|| Problem::new("bad_epoch", value)))
        .transpose()?;
    let view = state
        .catalog
        .log(&publisher)
        .ok_or(ReadError::UnknownPublisher(publisher))?;
    let body = super::blocking(move || {
        let catalog = &state.catalog;
        let earlier = match epoch.filter(|epoch| *epoch != view.state.epoch) {
            Some(epoch) => Some(
                catalog
                    .earlier(&view, epoch)?
                    .ok_or(ReadError::UnknownEpoch(epoch))?,
            ),
            None => None,
        };
        let prover = &state.admission.prover;
        let prove = |view: &LogView| prover.prove(&state.home, catalog, view, seq);
        Ok(match &earlier {
            Some(earlier) => prove(earlier)?,
            None => catalog.fresh(view, prove)?,
        })
    })
    .await?;
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, HeaderValue::from_static("application/json")))
        .insert_header((CACHE_CONTROL, HeaderValue::from_static("no-cache")))
        .body(body))
}

impl From<ProveError> for Problem {
    fn from(error: ProveError) -> Self {
        let detail = error.to_string();
        match error {
            ProveError::Beyond { .. } => Self::new("unknown_entry", detail),
            ProveError::Pruned { first_cursor } => {
                Self::new("pruned", detail).first_cursor(first_cursor)
            }
            ProveError::Busy => Self::new("busy", detail),
            ProveError::Broken => Self::internal(&error),
            ProveError::Read(error) => error.into(),
        }
    }
}
