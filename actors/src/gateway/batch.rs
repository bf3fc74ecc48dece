//! The small artifacts of a log, many in one answer: one request each would cost more than their bytes.
//!
//! An answer is a tar whose names are digests, so that whoever reads it can check every one. It is read from the disk
//! piece by piece as its reader takes it, and never held in memory whole.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::http::Method;
use actix_web::http::header::{
    CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LINK, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_util::{Stream, stream};
use hn_protocol::did::Did;
use hn_protocol::document::parse_cursor;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;

use super::problem::Problem;
use super::{GatewayState, parse_did};
use crate::artifacts::{ArtifactShelf, Listed, listed};
use crate::catalog::ReadError;
use crate::vault::{MAX_MEMBER, header, member_bytes};

/// Entries of an answer when the caller does not say.
const DEFAULT_LIMIT: usize = 1024;
/// The most entries of an answer.
pub const MAX_LIMIT: usize = 8192;
/// Bytes of an answer, beyond its first artifact: what does not fit comes with the next.
const MAX_BYTES: u64 = 16 << 20;
/// What is read from the disk and handed to a connection at once; each answer has two of these in memory.
const PIECE: usize = 256 << 10;
/// Answers at the same time; the next is told 503.
pub const AT_ONCE: usize = 64;
/// How long an answer may take, whatever its reader does: as pages (H9)...
const GRACE: Duration = Duration::from_secs(30);
/// ...and a second more for so many bytes.
const SLOWEST: u64 = 16 << 10;

struct Query {
    publisher: Did,
    cursor: u64,
    limit: usize,
}

impl Query {
    fn parse(query: &str, own: Did) -> Result<Self, Problem> {
        let mut parsed = Self {
            publisher: own,
            cursor: 0,
            limit: DEFAULT_LIMIT,
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
                    parsed.limit = limit.ok_or_else(|| {
                        Problem::new("bad_limit", format!("1 to {MAX_LIMIT}, not {value:.80}"))
                    })?;
                }
                _ => {}
            }
        }
        Ok(parsed)
    }
}

/// The artifacts of up to 64 KiB that a log's entries name and that are held here, as a tar whose names are digests.
#[utoipa::path(get, path = "/federate/artifacts", tag = "federate", params(
    ("publisher" = Option<String>, Query, description = "did:hn; this node's own by default"),
    ("cursor" = Option<String>, Query, description = "first seq, decimal; 0 by default"),
    ("limit" = Option<u16>, Query, minimum = 1, maximum = 8192, description = "entries; 1024 by default")), responses(
    (status = 200, description = "A tar; a Link with rel=next unless it reaches the head", content_type = "application/x-tar"),
    (status = 400, description = "A bad cursor, limit or DID"), (status = 404, description = "No such log is held"),
    (status = 503, description = "Too many answers are under way")))]
pub async fn artifacts(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    let query = Query::parse(request.query_string(), state.catalog.own())?;
    let view = state
        .catalog
        .log(&query.publisher)
        .ok_or(ReadError::UnknownPublisher(query.publisher))?;
    let permit = Arc::clone(&state.admission.batches)
        .try_acquire_owned()
        .map_err(|_| Problem::new("busy", "too many artifacts are being read"))?;
    let catalog = state.catalog.clone();
    let (size, limit) = (view.state.size(), query.limit);
    let (entries, next) = super::blocking(move || {
        let (mut entries, _) = listed(&catalog, &view, query.cursor, limit)?;
        entries.truncate(limit);
        Ok(select(entries, query.cursor))
    })
    .await?;
    let mut response = HttpResponse::Ok();
    response
        .insert_header((CONTENT_TYPE, "application/x-tar"))
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((CONTENT_SECURITY_POLICY, "sandbox"))
        .insert_header((CONTENT_DISPOSITION, "attachment"));
    if next < size {
        let publisher = query.publisher;
        let link = format!("<?publisher={publisher}&cursor={next}&limit={limit}>; rel=\"next\"");
        response.insert_header((LINK, link));
    }
    if request.method() == Method::HEAD {
        return Ok(response.finish());
    }
    let bytes: u64 = entries.iter().map(|entry| member_bytes(entry.size)).sum();
    let reading = Reading {
        shelf: state.artifacts.clone(),
        entries: entries.into(),
        at: 0,
        ended: false,
    };
    let patience = GRACE + Duration::from_secs(bytes / SLOWEST);
    Ok(response.streaming(stream(reading, permit, patience)))
}

/// Which of `entries` go into one answer, each artifact once; and the first seq that was not looked at.
fn select(entries: Vec<Listed>, cursor: u64) -> (Vec<Listed>, u64) {
    let (mut seen, mut bytes, mut next) = (BTreeSet::new(), 0, cursor);
    let mut selected = Vec::with_capacity(entries.len());
    for entry in entries {
        if entry.size <= MAX_MEMBER && !seen.contains(&entry.digest) {
            bytes += member_bytes(entry.size);
            if bytes > MAX_BYTES && !selected.is_empty() {
                break;
            }
            seen.insert(entry.digest);
            selected.push(entry);
        }
        next = entry.seq + 1;
    }
    (selected, next)
}

/// An answer on its way from the disk.
struct Reading {
    shelf: ArtifactShelf,
    entries: Arc<[Listed]>,
    at: usize,
    ended: bool,
}

impl Reading {
    /// The next piece; an empty one at the end. What is not here, or has another length than the log says, is left out.
    fn piece(mut self) -> io::Result<(Bytes, Self)> {
        let mut piece = Vec::with_capacity(PIECE + MAX_MEMBER as usize);
        while piece.len() < PIECE {
            let Some(entry) = self.entries.get(self.at) else {
                if !self.ended {
                    self.ended = true;
                    piece.resize(piece.len() + 1024, 0);
                }
                break;
            };
            self.at += 1;
            let found = self.shelf.open(&entry.digest)?;
            let Some((mut file, size)) = found.filter(|(_, size)| *size == entry.size) else {
                continue;
            };
            let begin = piece.len();
            piece.extend_from_slice(header(&entry.digest, size).as_bytes());
            let content = piece.len();
            let end = content + usize::try_from(size).map_err(io::Error::other)?;
            piece.resize(
                begin + usize::try_from(member_bytes(size)).map_err(io::Error::other)?,
                0,
            );
            file.read_exact(piece.get_mut(content..end).unwrap_or_default())?;
        }
        Ok((piece.into(), self))
    }

    fn next(self) -> JoinHandle<io::Result<(Bytes, Self)>> {
        tokio::task::spawn_blocking(move || self.piece())
    }
}

/// The pieces of an answer. The next one is read while one is sent, and no further.
fn stream(
    reading: Reading,
    permit: OwnedSemaphorePermit,
    patience: Duration,
) -> impl Stream<Item = io::Result<Bytes>> {
    let started = Instant::now();
    stream::try_unfold(
        (reading.next(), permit),
        move |(ahead, permit)| async move {
            if started.elapsed() > patience {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let (piece, reading) = ahead.await.map_err(io::Error::other)??;
            if piece.is_empty() {
                return Ok(None);
            }
            Ok(Some((piece, (reading.next(), permit))))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use hn_protocol::digest::Digest;

    fn entry(seq: u64, size: u64) -> Listed {
        let digest = Digest::of(&seq.to_be_bytes());
        Listed { seq, digest, size }
    }

    #[test]
    fn an_answer_holds_each_small_artifact_once_and_says_where_the_next_begins() {
        let twice = Listed {
            seq: 3,
            ..entry(1, 5)
        };
        let large = entry(2, MAX_MEMBER + 1);
        let (selected, next) = select(vec![entry(1, 5), large, twice, entry(4, 0)], 1);
        let seqs: Vec<u64> = selected.iter().map(|entry| entry.seq).collect();
        assert_eq!((seqs, next), (vec![1, 4], 5));
        assert_eq!(select(Vec::new(), 7), (Vec::new(), 7));
    }

    #[test]
    fn an_answer_is_bounded_in_bytes_and_brings_one_artifact_at_least() {
        let entries: Vec<Listed> = (0..1000).map(|seq| entry(seq, MAX_MEMBER)).collect();
        let (selected, next) = select(entries, 0);
        let bytes: u64 = selected.iter().map(|entry| member_bytes(entry.size)).sum();
        assert!(bytes <= MAX_BYTES && bytes + member_bytes(MAX_MEMBER) > MAX_BYTES);
        assert_eq!(next, selected.len() as u64);
    }
}
