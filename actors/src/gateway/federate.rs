//! Logs for whoever follows: pages, and what this node offers.

use std::sync::Arc;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, LINK};
use actix_web::{HttpRequest, HttpResponse, web};
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::document::{MAX_ENTRIES, MAX_PRESENCE_BYTES, MAX_SLICE_BYTES, parse_cursor};
use serde::Serialize;

use super::problem::Problem;
use super::{GatewayState, is_unmodified, own_log, parse_did};
use crate::catalog::{LogView, Page, ReadError, with_newline};

/// Slices of a page when the caller does not say (design 4).
const DEFAULT_LIMIT: usize = 16;
/// The most slices of a page (design 4).
const MAX_LIMIT: usize = 64;

struct IndexQuery {
    publisher: Did,
    cursor: u64,
    limit: usize,
    epoch: Option<u64>,
}

impl IndexQuery {
    fn parse(query: &str, own: Did) -> Result<Self, Problem> {
        let mut parsed = Self {
            publisher: own,
            cursor: 0,
            limit: DEFAULT_LIMIT,
            epoch: None,
        };
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match key.as_ref() {
                "publisher" => parsed.publisher = parse_did(&value)?,
                "cursor" => {
                    parsed.cursor =
                        parse_cursor(&value).ok_or_else(|| Problem::new("bad_cursor", value))?;
                }
                "limit" => {
                    let limit = parse_cursor(&value).and_then(|n| usize::try_from(n).ok());
                    let limit = limit.filter(|n| (1..=MAX_LIMIT).contains(n));
                    parsed.limit = limit.ok_or_else(|| Problem::new("bad_limit", value))?;
                }
                "epoch" => {
                    let epoch =
                        parse_cursor(&value).ok_or_else(|| Problem::new("bad_epoch", value))?;
                    parsed.epoch = Some(epoch);
                }
                _ => {}
            }
        }
        Ok(parsed)
    }
}

/// A page of a log: NDJSON of signed documents, each presence before the first slice that names it.
#[utoipa::path(get, path = "/federate/index", tag = "federate", params(
    ("publisher" = Option<String>, Query, description = "did:hn; this node's own by default"),
    ("cursor" = Option<String>, Query, description = "first seq, decimal; 0 by default"),
    ("limit" = Option<u8>, Query, minimum = 1, maximum = 64, description = "slices; 16 by default"),
    ("epoch" = Option<u64>, Query, description = "an older epoch")), responses(
    (status = 200, description = "NDJSON; a Link with rel=next unless it reaches the head", content_type = "application/x-ndjson"),
    (status = 304, description = "Unchanged since If-None-Match"),
    (status = 400, description = "A bad cursor, limit, epoch or DID"), (status = 404, description = "No such log is held"),
    (status = 410, description = "The cursor was pruned; first_cursor names the first that is served"),
    (status = 503, description = "Too many pages are being read")))]
pub async fn index(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    let query = IndexQuery::parse(request.query_string(), state.catalog.own())?;
    let held = state.catalog.log(&query.publisher);
    if held.is_none()
        && let Some(word) = state.catalog.revocation(&query.publisher)
    {
        // Nothing but its end is known of this log.
        let body = with_newline(&word);
        let (etag, next) = (Digest::of(&body), None);
        return answer(&request, &state, &query, Page { body, etag, next });
    }
    let mut view = held.ok_or_else(|| {
        if state.catalog.is_recovering(&query.publisher) {
            return own_log::nothing_yet();
        }
        ReadError::UnknownPublisher(query.publisher).into()
    })?;
    if let Some(epoch) = query.epoch.filter(|epoch| *epoch != view.state.epoch) {
        let earlier = state.catalog.earlier(&view, epoch)?;
        view = Arc::new(earlier.ok_or(ReadError::UnknownEpoch(epoch))?);
    }
    let page = match state.catalog.page_at_hand(&view, query.cursor, query.limit) {
        Some(page) => page,
        None => {
            let catalog = state.catalog.clone();
            let read = move |view: &LogView| catalog.page(view, query.cursor, query.limit);
            let catalog = state.catalog.clone();
            super::blocking(move || Ok(catalog.fresh(view, read)?)).await?
        }
    };
    answer(&request, &state, &query, page)
}

fn answer(
    request: &HttpRequest,
    state: &GatewayState,
    query: &IndexQuery,
    page: Page,
) -> Result<HttpResponse, Problem> {
    let log_state = own_log::log_state(&state.catalog, &query.publisher);
    let etag = format!("\"{}\"", page.etag);
    if is_unmodified(request, &etag) {
        let mut response = HttpResponse::NotModified();
        log_state.map(|header| response.insert_header(header));
        return Ok(response.insert_header((ETAG, etag)).finish());
    }
    let mut response = HttpResponse::Ok();
    log_state.map(|header| response.insert_header(header));
    response
        .insert_header((
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-ndjson"),
        ))
        .insert_header((CACHE_CONTROL, HeaderValue::from_static("no-cache")))
        .insert_header((ETAG, etag));
    if let Some(next) = page.next {
        let (publisher, limit) = (query.publisher, query.limit);
        let epoch = query.epoch.map(|epoch| format!("&epoch={epoch}"));
        let epoch = epoch.unwrap_or_default();
        let link =
            format!("<?publisher={publisher}&cursor={next}&limit={limit}{epoch}>; rel=\"next\"");
        response.insert_header((LINK, link));
    }
    Ok(response.body(state.admission.pages.body(page.body)?))
}

/// What this node offers.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Offers {
    /// The node's own DID.
    did: String,
    /// Its version.
    version: &'static str,
    /// Logs held.
    publishers: usize,
    /// What it does for others.
    services: Vec<&'static str>,
    /// How large things may be.
    limits: Limits,
}

/// How large things may be.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Limits {
    /// Slices of a page, at most.
    page_slices: usize,
    /// Slices of a page when the caller does not say.
    default_page_slices: usize,
    /// Entries of a slice.
    slice_entries: usize,
    /// Bytes of a slice.
    slice_bytes: usize,
    /// Bytes of a presence.
    presence_bytes: usize,
}

/// What this node offers.
#[utoipa::path(get, path = "/federate", tag = "federate", responses((status = 200, description = "DID, number of logs held, limits, services", body = Offers)))]
pub async fn offers(state: web::Data<GatewayState>) -> HttpResponse {
    HttpResponse::Ok().json(Offers {
        did: state.catalog.own().to_string(),
        version: env!("CARGO_PKG_VERSION"),
        publishers: state.catalog.count(),
        services: Vec::new(),
        limits: Limits {
            page_slices: MAX_LIMIT,
            default_page_slices: DEFAULT_LIMIT,
            slice_entries: MAX_ENTRIES,
            slice_bytes: MAX_SLICE_BYTES,
            presence_bytes: MAX_PRESENCE_BYTES,
        },
    })
}
