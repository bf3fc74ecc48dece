//! Artifacts by digest. What others published is bytes to be saved, never a page of ours (design 13).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use actix_web::body::SizedStream;
use actix_web::http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_RANGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    HeaderMap, HeaderValue, IF_RANGE, RANGE, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, ResponseError, web};
use bytes::Bytes;
use futures_util::{Stream, stream};
use hn_protocol::digest::Digest;

use super::problem::Problem;
use super::{GatewayState, is_unmodified};

/// Bytes read from the disk at once: what a connection keeps of an artifact in memory. Up to so many go out in one
/// piece with their head.
const PIECE: u64 = 64 << 10;

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
    send(&request, &digest, file).await
}

/// Reads a digest of a path.
pub fn parse(text: &str) -> Result<Digest, Problem> {
    text.parse()
        .map_err(|_| Problem::new("bad_digest", text.chars().take(80).collect::<String>()))
}

/// Streams `file`, which holds the bytes of `digest`, as an attachment that no browser runs.
pub async fn send(
    request: &HttpRequest,
    digest: &Digest,
    file: File,
) -> Result<HttpResponse, Problem> {
    let etag = format!("\"{digest}\"");
    if is_unmodified(request, &etag) {
        return Ok(HttpResponse::NotModified()
            .insert_header((ETAG, etag))
            .finish());
    }
    let is_head = request.method() == Method::HEAD;
    let headers = request.headers();
    let wanted = Wanted::of(headers, &etag);
    let (file, length, part, small) = super::blocking(move || {
        let length = file.metadata()?.len();
        let part = wanted.within(length);
        let small = match &part {
            Some(part) if part.length <= PIECE && !is_head => {
                Some(read_at(&file, part.from, part.length)?)
            }
            _ => None,
        };
        Ok((file, length, part, small))
    })
    .await?;
    let Some(part) = part else {
        let mut refused =
            Problem::new("bad_range", "the range lies outside of the artifact").error_response();
        if let Ok(length) = HeaderValue::from_str(&format!("bytes */{length}")) {
            refused.headers_mut().insert(CONTENT_RANGE, length);
        }
        return Ok(refused);
    };
    let mut response = HttpResponse::build(part.status);
    response
        .insert_header((
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        ))
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((CONTENT_SECURITY_POLICY, "sandbox"))
        .insert_header((CONTENT_DISPOSITION, "attachment"))
        .insert_header((ACCEPT_RANGES, "bytes"))
        .insert_header((ETAG, etag));
    if part.status == StatusCode::PARTIAL_CONTENT {
        let last = part.from + part.length - 1;
        response.insert_header((
            CONTENT_RANGE,
            format!("bytes {}-{last}/{length}", part.from),
        ));
    }
    Ok(match small {
        Some(bytes) => response.body(bytes),
        None => response.body(SizedStream::new(
            part.length,
            Box::pin(pieces(Arc::new(file), part.from, part.length)),
        )),
    })
}

/// Reads `file` on as its reader takes it.
fn pieces(file: Arc<File>, from: u64, length: u64) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((from, length), move |(from, left)| {
        let file = Arc::clone(&file);
        async move {
            let size = left.min(PIECE);
            if size == 0 {
                return Ok(None);
            }
            let piece = tokio::task::spawn_blocking(move || read_at(&file, from, size));
            let piece = piece.await.map_err(io::Error::other)??;
            Ok(Some((piece, (from + size, left - size))))
        }
    })
}

fn read_at(file: &File, from: u64, size: u64) -> io::Result<Bytes> {
    let mut piece = vec![0; usize::try_from(size).map_err(io::Error::other)?];
    file.read_exact_at(&mut piece, from)?;
    Ok(piece.into())
}

/// What of an artifact is asked for (RFC 9110, 14.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Everything, also where `Range` says nothing that is understood.
    Whole,
    /// From this byte on, up to and with another one.
    From(u64, u64),
    /// So many bytes of the end.
    Last(u64),
}

/// What of an artifact is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    status: StatusCode,
    from: u64,
    length: u64,
}

impl Wanted {
    /// One range of bytes. Several, another unit, nonsense, or an `If-Range` that names other bytes: the whole.
    fn of(headers: &HeaderMap, etag: &str) -> Self {
        let mut ranges = headers.get_all(RANGE);
        let (Some(range), None) = (ranges.next(), ranges.next()) else {
            return Self::Whole;
        };
        if headers
            .get(IF_RANGE)
            .is_some_and(|tag| tag.as_bytes() != etag.as_bytes())
        {
            return Self::Whole;
        }
        range
            .to_str()
            .ok()
            .and_then(Self::parse)
            .unwrap_or(Self::Whole)
    }

    fn parse(text: &str) -> Option<Self> {
        let (unit, range) = text.split_once('=')?;
        let (first, last) = range.trim().split_once('-')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        match (number(first)?, number(last)?) {
            (None, None) => None,
            (None, Some(count)) => Some(Self::Last(count)),
            (Some(first), last) => {
                let last = last.unwrap_or(u64::MAX);
                (first <= last).then_some(Self::From(first, last))
            }
        }
    }

    /// What that is of `length` bytes; `None` when there is nothing of it.
    fn within(self, length: u64) -> Option<Part> {
        let (from, end) = match self {
            // No Content-Range can speak of an empty part of nothing.
            Self::Whole => return Some(Part::whole(length)),
            Self::Last(count) if length == 0 && count > 0 => return Some(Part::whole(0)),
            Self::Last(count) => (length - count.min(length), length),
            Self::From(first, last) => (first, last.saturating_add(1).min(length)),
        };
        (from < end).then(|| Part {
            status: StatusCode::PARTIAL_CONTENT,
            from,
            length: end - from,
        })
    }
}

impl Part {
    const fn whole(length: u64) -> Self {
        Self {
            status: StatusCode::OK,
            from: 0,
            length,
        }
    }
}

/// The digits of one end of a range, which may be left out; what is beyond any file is beyond this one.
fn number(text: &str) -> Option<Option<u64>> {
    if text.is_empty() {
        return Some(None);
    }
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| Some(text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(range: &str, length: u64) -> Option<(u16, u64, u64)> {
        let wanted = Wanted::parse(range).unwrap_or(Wanted::Whole);
        let part = wanted.within(length);
        part.map(|part| (part.status.as_u16(), part.from, part.length))
    }

    #[test]
    fn a_range_is_a_part_nothing_or_no_range_at_all() {
        let huge = "99999999999999999999999";
        for (range, length, wanted) in [
            ("bytes=0-3", 10, Some((206, 0, 4))),
            ("BYTES=3-", 10, Some((206, 3, 7))),
            ("bytes=-3", 10, Some((206, 7, 3))),
            ("bytes=-30", 10, Some((206, 0, 10))),
            ("bytes=9-9", 10, Some((206, 9, 1))),
            ("bytes=10-", 10, None),
            ("bytes=-0", 10, None),
            ("bytes=0-", 0, None),
            ("bytes=-1", 0, Some((200, 0, 0))),
            (&format!("bytes=2-{huge}"), 10, Some((206, 2, 8))),
            (&format!("bytes=-{huge}"), 10, Some((206, 0, 10))),
            (&format!("bytes={huge}-"), 10, None),
            (&format!("bytes={huge}-{huge}"), 10, None),
            ("bytes=5-4", 10, Some((200, 0, 10))),
            ("bytes=0-1,3-4", 10, Some((200, 0, 10))),
            ("bytes=-", 10, Some((200, 0, 10))),
            ("bytes=+1-2", 10, Some((200, 0, 10))),
            ("pages=1-2", 10, Some((200, 0, 10))),
        ] {
            assert_eq!(sent(range, length), wanted, "{range} of {length}");
        }
    }
}
