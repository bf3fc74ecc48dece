//! Artifacts by digest. What others published is bytes to be saved, never a page of ours (design 13).

use std::fs::File;

use actix_files::NamedFile;
use actix_web::http::StatusCode;
use actix_web::http::header::{
    CONTENT_DISPOSITION, CONTENT_RANGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderValue,
    X_CONTENT_TYPE_OPTIONS,
};
use actix_web::{HttpRequest, HttpResponse, ResponseError, web};
use hn_protocol::digest::Digest;

use super::problem::Problem;
use super::{GatewayState, is_unmodified};

/// An artifact, whole or a range of it.
#[utoipa::path(get, path = "/artifact/{digest}", tag = "artifact", params(("digest" = String, Path, description = "64 hex digits")), responses(
    (status = 200, description = "The bytes", content_type = "application/octet-stream"),
    (status = 206, description = "The range asked for"), (status = 304, description = "If-None-Match names it"),
    (status = 400, description = "Not a digest"), (status = 404, description = "Not held"),
    (status = 416, description = "No such range")))]
pub async fn get(
    request: HttpRequest,
    digest: web::Path<String>,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    let digest = parse(&digest)?;
    let shelf = state.artifacts.clone();
    let found = super::blocking(move || Ok(shelf.open(&digest)?)).await?;
    let (file, _) = found
        .ok_or_else(|| Problem::new("unknown_artifact", format!("{digest} is not held here")))?;
    send(&request, &digest, file)
}

/// Reads a digest of a path.
pub fn parse(text: &str) -> Result<Digest, Problem> {
    text.parse()
        .map_err(|_| Problem::new("bad_digest", text.chars().take(80).collect::<String>()))
}

/// Streams `file`, which holds the bytes of `digest`, as an attachment that no browser runs.
pub fn send(request: &HttpRequest, digest: &Digest, file: File) -> Result<HttpResponse, Problem> {
    let etag = format!("\"{digest}\"");
    if is_unmodified(request, &etag) {
        return Ok(HttpResponse::NotModified()
            .insert_header((ETAG, etag))
            .finish());
    }
    let named = NamedFile::from_file(file, digest.to_string())?
        .use_etag(false)
        .use_last_modified(false)
        .disable_content_disposition();
    let mut response = named.into_response(request);
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    headers.insert(CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(ETAG, etag);
    }
    if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        let mut refused =
            Problem::new("bad_range", "the range lies outside of the artifact").error_response();
        if let Some(length) = response.headers().get(CONTENT_RANGE) {
            refused.headers_mut().insert(CONTENT_RANGE, length.clone());
        }
        return Ok(refused);
    }
    Ok(response)
}
