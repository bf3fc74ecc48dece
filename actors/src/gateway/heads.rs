//! The head of every log held. Whoever follows asks for it at every pull, so that the answer is made once and kept for
//! all until something changes: a quiet pull is a 304.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use hn_protocol::digest::Digest;

use super::problem::Problem;
use super::{GatewayState, is_unmodified};
use crate::catalog::LogView;
use crate::pull::{HeldLogHead, HeldLogs};

/// How old a `last_seen` may be shown while nothing else changes. Every pull moves one; peers ask every 4 s, and would
/// be given all heads each time.
const LAST_SEEN_AGE: Duration = Duration::from_secs(30);

/// The answer as it was made last.
#[derive(Default)]
pub struct Heads(Mutex<Option<Kept>>);

#[derive(Clone)]
struct Kept {
    /// [`Catalog::changes`](crate::catalog::Catalog::changes) before it was made.
    changes: u64,
    made: Instant,
    body: Bytes,
    etag: Arc<str>,
}

impl Heads {
    /// What is kept, if it is of `changes` and not too old; else what `make` gives. One caller makes it, others wait.
    fn get(
        &self,
        changes: u64,
        now: Instant,
        make: impl FnOnce() -> Result<Bytes, Problem>,
    ) -> Result<Kept, Problem> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let good = kept.as_ref().filter(|kept| {
            kept.changes >= changes && now.saturating_duration_since(kept.made) < LAST_SEEN_AGE
        });
        if let Some(good) = good {
            return Ok(good.clone());
        }
        let body = make()?;
        let etag = format!("\"{}\"", Digest::of(&body)).into();
        let made = Kept {
            changes,
            made: now,
            body,
            etag,
        };
        *kept = Some(made.clone());
        Ok(made)
    }
}

/// The head of every log held.
#[utoipa::path(get, path = "/federate/peers", tag = "federate", responses(
    (status = 200, description = "One head a log", body = HeldLogs),
    (status = 304, description = "Unchanged since If-None-Match"),
    (status = 503, description = "Too many are being read")))]
pub async fn peers(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    // Read before the logs are: what changes meanwhile makes the next answer a new one.
    let changes = state.catalog.changes();
    let make = || heads(&state);
    let kept = state.admission.heads.get(changes, Instant::now(), make)?;
    if is_unmodified(&request, &kept.etag) {
        return Ok(HttpResponse::NotModified()
            .insert_header((ETAG, &*kept.etag))
            .finish());
    }
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, HeaderValue::from_static("application/json")))
        .insert_header((CACHE_CONTROL, HeaderValue::from_static("no-cache")))
        .insert_header((ETAG, &*kept.etag))
        .body(state.admission.pages.body(kept.body)?))
}

fn heads(state: &GatewayState) -> Result<Bytes, Problem> {
    let own = state.catalog.own();
    let head = |view: &LogView| HeldLogHead {
        did: view.state.publisher,
        epoch: view.state.epoch,
        log_size: view.state.size(),
        log_root: view.state.root(),
        head: view.state.head,
        presence: view.state.presence.map(|presence| presence.digest),
        last_seen: if view.state.publisher == own {
            state.clock.now()
        } else {
            view.last_seen
        },
        forked: state.forks.of(&view.state.publisher).is_some(),
        revoked: state.catalog.is_revoked(&view.state.publisher),
    };
    let peers = state.catalog.logs().iter().map(|view| head(view)).collect();
    let body = serde_json::to_vec(&HeldLogs { peers });
    Ok(body.map_err(|error| Problem::internal(&error))?.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_answer_is_made_again_after_a_change_or_when_it_is_old_and_not_before() {
        let (heads, start) = (Heads::default(), Instant::now());
        let get = |changes, after, body: &'static str| {
            let kept = heads.get(changes, start + after, || {
                Ok(Bytes::from_static(body.as_bytes()))
            });
            let kept = kept.unwrap();
            assert_eq!(*kept.etag, format!("\"{}\"", Digest::of(&kept.body)));
            kept.body
        };
        let second = Duration::from_secs(1);
        assert_eq!(get(1, Duration::ZERO, "a"), "a");
        assert_eq!(get(1, LAST_SEEN_AGE - second, "b"), "a");
        assert_eq!(get(2, LAST_SEEN_AGE - second, "c"), "c");
        assert_eq!(get(1, LAST_SEEN_AGE, "d"), "c", "a late reader");
        assert_eq!(get(2, LAST_SEEN_AGE * 2, "e"), "e");
    }
}
