//! Evidence of forks for whoever follows, and what an operator decides about one.

use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, LINK};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::BytesMut;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use serde::Deserialize;
use serde_json::json;

use super::admin::{body, check_operator};
use super::problem::Problem;
use super::{GatewayState, is_unmodified, parse_did};
use crate::federation_sync::Refresh;
use crate::forks::Fork;
use crate::index_federator::AcceptHead;

/// The most bytes of an answer, beyond its first evidence: two that are as large as they may be.
const MAX_BYTES: usize = 4 << 20;

/// The most evidence that is given about one publisher who is asked for by name.
const MAX_OF_ONE: usize = 2;

/// What is asked for.
#[derive(Default)]
struct Wanted {
    publisher: Option<Did>,
    /// Publishers up to this one were had already.
    after: Option<Did>,
}

impl Wanted {
    fn parse(query: &str) -> Result<Self, Problem> {
        let mut wanted = Self::default();
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match key.as_ref() {
                "publisher" => wanted.publisher = Some(parse_did(&value)?),
                "after" => wanted.after = Some(parse_did(&value)?),
                _ => {}
            }
        }
        Ok(wanted)
    }

    fn takes(&self, fork: &Fork) -> bool {
        self.publisher.is_none_or(|wanted| wanted == fork.publisher)
            && self.after.is_none_or(|after| after < fork.publisher)
    }
}

/// Evidence of every fork that is known here, NDJSON, by publisher.
#[utoipa::path(get, path = "/federate/forks", tag = "federate", params(
    ("publisher" = Option<String>, Query, description = "did:hn; every publisher by default"),
    ("after" = Option<String>, Query, description = "did:hn; publishers behind it in order")), responses(
    (status = 200, description = "NDJSON of fork_evidence@1; a Link with rel=next when there is more", content_type = "application/x-ndjson"),
    (status = 304, description = "Unchanged since If-None-Match"), (status = 400, description = "A bad DID"),
    (status = 503, description = "Too many answers are being read")))]
pub async fn forks(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    let wanted = Wanted::parse(request.query_string())?;
    let known = state.forks.clone();
    let (page, next) = super::blocking(move || {
        let mut page = BytesMut::new();
        let mut last: Option<Did> = None;
        let mut forks = known.list();
        forks.retain(|fork| wanted.takes(fork));
        if wanted.publisher.is_some() {
            // Who asks about one reads little: what stands open first.
            forks.sort_by_key(|fork| fork.accepted);
            forks.truncate(MAX_OF_ONE);
        }
        for fork in &forks {
            // All of a publisher stands on one page, so that the next begins behind it.
            if page.len() > MAX_BYTES && last.is_some_and(|last| last != fork.publisher) {
                return Ok((page.freeze(), last));
            }
            match known.evidence(fork) {
                Ok(evidence) => page.extend_from_slice(&evidence),
                // Made room for newer ones meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            }
            page.extend_from_slice(b"\n");
            last = Some(fork.publisher);
        }
        Ok((page.freeze(), None))
    })
    .await?;
    let etag = format!("\"{}\"", Digest::of(&page));
    if is_unmodified(&request, &etag) {
        return Ok(HttpResponse::NotModified()
            .insert_header((ETAG, etag))
            .finish());
    }
    let mut response = HttpResponse::Ok();
    response
        .insert_header((
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-ndjson"),
        ))
        .insert_header((CACHE_CONTROL, HeaderValue::from_static("no-cache")))
        .insert_header((ETAG, etag));
    if let Some(after) = next {
        response.insert_header((LINK, format!("<?after={after}>; rel=\"next\"")));
    }
    Ok(response.body(state.admission.pages.body(page)?))
}

/// The forks known here, for the operator: who, how, what may be accepted.
pub async fn list(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    check_operator(&request)?;
    Ok(HttpResponse::Ok().json(json!({ "forks": state.forks.list() })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AcceptBody {
    did: Did,
    head: Digest,
}

/// Accepts one of the two logs of a publisher.
pub async fn accept(
    request: HttpRequest,
    state: web::Data<GatewayState>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let asked: Option<AcceptBody> = body(&request, payload).await?;
    let Some(AcceptBody { did, head }) = asked else {
        return Err(Problem::new(
            "invalid_json",
            "the body names `did` and `head`",
        ));
    };
    let accept = AcceptHead {
        publisher: did,
        head,
    };
    let accepted = state.ask(&state.links.accept_head, accept).await??;
    // Whoever holds the log is asked at once, not at its next turn; how that ends shows in `hn status`.
    let refresh = state.links.refresh.clone();
    actix_web::rt::spawn(async move {
        let everyone = Refresh {
            peer: None,
            mirror: false,
        };
        if let Err(error) = refresh.send(everyone).await {
            tracing::debug!(%error, "nobody was asked for the accepted log yet");
        }
    });
    Ok(HttpResponse::Ok().json(accepted))
}
