//! Publishers without a server hand their logs over here (`spec/http.md` W1–W6).

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::BytesMut;
use futures_util::StreamExt;
use serde::Serialize;

use super::access::{Caller, SLOWEST};
use super::problem::Problem;
use super::{GatewayState, artifact};
use crate::hosted::{HostError, Place, Received};

/// What a caller hands over.
const NDJSON: &str = "application/x-ndjson";
/// How long an artifact may take whatever its sender does; [`SLOWEST`] bytes of it have a second more.
const GRACE: Duration = Duration::from_secs(10);
/// What is written to the disk at once.
const WRITE: usize = 256 << 10;

/// What became of an artifact.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Kept {
    /// Its digest.
    digest: String,
    /// `stored`, or `known` when it was here already.
    status: &'static str,
}

/// Takes the caller's own signed presences and slices, in order, all or nothing: the log is served from now on, also while
/// its publisher sleeps. An empty body only asks how the log stands here.
#[utoipa::path(post, path = "/publish", tag = "hosted", request_body(content = Option<String>, content_type = "application/x-ndjson", description = "Signed documents of the caller, one a line"), responses(
    (status = 200, description = "Durable; `missing` names the artifacts to be PUT", body = Received)))]
pub async fn publish(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    let caller = Caller::of(&request)?;
    let media = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    if !caller.body.is_empty() && media.map(str::trim) != Some(NDJSON) {
        return Err(Problem::new(
            "unsupported_media_type",
            format!("send {NDJSON}"),
        ));
    }
    if caller.document.is_some() {
        return Err(Problem::new(
            "signature_digest",
            "this route takes content-digest",
        ));
    }
    let received = state
        .hosting
        .publish(caller.did, caller.body.clone())
        .await?;
    Ok(HttpResponse::Ok().json(received))
}

/// Takes an artifact that a slice of the caller's log names.
#[utoipa::path(put, path = "/artifact/{digest}", tag = "hosted", request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses(
    (status = 200, description = "It was here already", body = Kept), (status = 201, description = "Durable", body = Kept),
    (status = 404, description = "No slice that was handed over names it")))]
pub async fn put_artifact(
    request: HttpRequest,
    digest: web::Path<String>,
    state: web::Data<GatewayState>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let caller = Caller::of(&request)?;
    let digest = artifact::parse(&digest)?;
    if caller.document.is_some_and(|signed| signed != digest) {
        return Err(Problem::new(
            "signature_digest",
            "hn-digest is not the artifact's digest",
        ));
    }
    let answer = |code, status| {
        let digest = digest.to_string();
        Ok(HttpResponse::build(code).json(Kept { digest, status }))
    };
    let Some(place) = state.hosting.place(caller.did, digest).await? else {
        return answer(StatusCode::OK, "known");
    };
    let allowed = GRACE + Duration::from_secs(place.size() / SLOWEST);
    let receiving = receive(&state, place, caller, payload);
    let received = tokio::time::timeout(allowed, receiving).await;
    received.map_err(|_| Problem::new("body_too_slow", "the artifact did not come in time"))??;
    answer(StatusCode::CREATED, "stored")
}

async fn receive(
    state: &GatewayState,
    place: Place,
    caller: Caller,
    mut payload: web::Payload,
) -> Result<(), Problem> {
    let hosting = &state.hosting;
    let mut staging = hosting.stage(&place).await?;
    if caller.document.is_none() {
        // Small, proved already, and held.
        staging = hosting.write(staging, caller.body.clone()).await?;
        return Ok(hosting.keep(place, staging).await?);
    }
    let mut waiting = BytesMut::with_capacity(WRITE);
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| Problem::new("bad_body", error.to_string()))?;
        waiting.extend_from_slice(&chunk);
        if waiting.len() >= WRITE {
            staging = hosting.write(staging, waiting.split().freeze()).await?;
        }
    }
    staging = hosting.write(staging, waiting.freeze()).await?;
    Ok(hosting.keep(place, staging).await?)
}

impl From<HostError> for Problem {
    fn from(error: HostError) -> Self {
        let detail = error.to_string();
        match error {
            HostError::Own => Self::new("own_publisher", detail),
            HostError::Foreign(_) => Self::new("foreign_document", detail),
            HostError::Page(error) => Self::new("page_refused", detail).reason(error.code()),
            HostError::Forked(_) | HostError::Rejected => Self::new("publisher_forked", detail),
            HostError::TooManyLines(_) => Self::new("too_many_entries", detail),
            HostError::Quota { .. } => Self::new("quota_exceeded", detail),
            HostError::Unnamed(_) => Self::new("unnamed_artifact", detail),
            HostError::Mismatch { .. } => Self::new("wrong_artifact", detail),
            HostError::Busy => Self::new("busy", detail),
            HostError::Federate(error) => error.into(),
            HostError::Io(error) if error.kind() == std::io::ErrorKind::FileTooLarge => {
                Self::new("wrong_artifact", detail)
            }
            HostError::Io(error) => error.into(),
        }
    }
}
