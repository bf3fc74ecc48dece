//! What the CLI needs, on the Unix socket alone: its owner is the operator.

use actix_web::http::header::CONTENT_ENCODING;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use hn_protocol::canonical;
use hn_protocol::did::Did;
use hn_protocol::document::parse_cursor;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use url::Url;

use super::access::body_time;
use super::problem::Problem;
use super::{
    GatewayState, artifact, forks, friends, other_methods, parse_did, publish, read, status,
    storage,
};
use crate::artifact_mirror::{FetchArtifact, Holder};
use crate::catalog::{LogView, ReadError};
use crate::failpoint;
use crate::federation_sync::{ListPeers, PeerView, PutPeer, Refresh, ReloadRoster, RemovePeer};
use crate::fetch::Trust;
use crate::index_federator::Reindex;
use crate::roster::{RosterPeer, Scope, is_base_url};

/// The most bytes of a JSON body (design 13).
const MAX_BODY: usize = 8 << 20;
/// Entries listed at once.
const MAX_ENTRIES: usize = 1000;
/// The longest petname.
const MAX_ALIAS: usize = 64;

/// Put on a connection whose peer is the socket's owner or root.
pub struct Operator;

/// The operator's routes.
pub fn routes(config: &mut web::ServiceConfig) {
    let post = |path: &str, route: actix_web::Route| {
        web::resource(path.to_owned())
            .route(route)
            .default_service(other_methods("POST"))
    };
    config
        .service(read("/metrics", status::socket_metrics))
        .service(read("/admin/status", status::status))
        .service(read("/admin/log/entries", entries))
        .service(read("/admin/artifact/{digest}", fetch))
        .service(read("/admin/storage", storage::storage))
        .service(read("/admin/federation/peers", list_peers))
        .service(post("/admin/log/publish", web::post().to(publish::publish)))
        .service(read("/admin/federation/forks", forks::list))
        .service(post(
            "/admin/federation/accept",
            web::post().to(forks::accept),
        ))
        .service(post("/admin/federation/refresh", web::post().to(refresh)))
        .service(post("/admin/federation/reload", web::post().to(reload)))
        .service(post("/admin/reindex", web::post().to(reindex)))
        .service(post("/admin/failpoints", web::post().to(failpoints)))
        .service(
            web::resource("/admin/federation/peers/{did}")
                .route(web::put().to(put_peer))
                .route(web::delete().to(remove_peer))
                .default_service(other_methods("PUT, DELETE")),
        );
}

/// Refuses whoever is neither the owner nor root, though the socket's mode does so already.
pub fn check_operator(request: &HttpRequest) -> Result<(), Problem> {
    if request.conn_data::<Operator>().is_some() {
        return Ok(());
    }
    Err(Problem::new(
        "socket_only",
        "the socket answers its owner alone",
    ))
}

/// Reads a JSON body strictly: bounded, uncompressed, no duplicate keys, no numbers that readers differ on.
pub(super) async fn body<T: DeserializeOwned + Default>(
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<T, Problem> {
    check_operator(request)?;
    let bytes = whole(request, payload, MAX_BODY).await?;
    if bytes.is_empty() {
        return Ok(T::default());
    }
    Ok(canonical::from_slice(&bytes)?)
}

/// A body of at most `most` bytes, as it is: nothing is decompressed.
pub(super) async fn whole(
    request: &HttpRequest,
    mut payload: web::Payload,
    most: usize,
) -> Result<Bytes, Problem> {
    if request.headers().contains_key(CONTENT_ENCODING) {
        return Err(Problem::new(
            "unsupported_encoding",
            "send the body as it is",
        ));
    }
    let reading = async {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|error| Problem::new("bad_body", error.to_string()))?;
            if bytes.len() + chunk.len() > most {
                return Err(Problem::new(
                    "body_too_large",
                    format!("at most {most} bytes"),
                ));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    };
    // While it is read its connection counts as busy: nothing else ends one that brings no more.
    tokio::time::timeout(body_time(most), reading)
        .await
        .map_err(|_| Problem::new("body_too_slow", "the body did not come in time"))?
}

async fn list_peers(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    check_operator(&request)?;
    Ok(HttpResponse::Ok().json(state.ask(&state.links.list_peers, ListPeers).await?))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerBody {
    url: Option<Url>,
    presence: Option<Url>,
    scope: Option<Scope>,
    mirror: Option<bool>,
    alias: Option<String>,
    /// Of an invite: whoever is added is told that we come with it.
    token: Option<String>,
}

async fn put_peer(
    request: HttpRequest,
    did: web::Path<String>,
    state: web::Data<GatewayState>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let did = parse_did(&did)?;
    let asked: PeerBody = body(&request, payload).await?;
    if let Some(url) = asked
        .url
        .iter()
        .chain(&asked.presence)
        .find(|url| !is_base_url(url))
    {
        return Err(Problem::new("bad_url", url.as_str()));
    }
    let good = |alias: &String| {
        !alias.is_empty()
            && alias.len() <= MAX_ALIAS
            && !alias.starts_with("did:")
            && !alias.chars().any(char::is_control)
    };
    if let Some(alias) = asked.alias.as_ref().filter(|alias| !good(alias)) {
        return Err(Problem::new(
            "bad_alias",
            format!("{alias:?} is no petname"),
        ));
    }
    let invited = friends::invited(asked.url.as_ref(), asked.token.as_deref())?;
    let known = known_peer(&state, &did).await?;
    // An alias names one peer, and never another than the node itself where it is the node's own.
    if let Some(alias) = &asked.alias {
        if *alias == state.alias {
            return Err(Problem::new(
                "bad_alias",
                format!("{alias:?} is this node's own identity"),
            ));
        }
        let roster = state.ask(&state.links.list_peers, ListPeers).await?;
        if roster
            .peers
            .iter()
            .any(|peer| peer.did != did && peer.alias.as_ref() == Some(alias))
        {
            return Err(Problem::new(
                "bad_alias",
                format!("another peer is called {alias:?}"),
            ));
        }
    }
    let peer = RosterPeer {
        did,
        // On a known peer, URL and scope are replaced; the rest stays unless it is given.
        url: asked
            .url
            .or_else(|| known.as_ref().and_then(|peer| peer.url.clone())),
        presence: asked
            .presence
            .or_else(|| known.as_ref().and_then(|peer| peer.presence.clone())),
        scope: asked.scope.unwrap_or_default(),
        mirror: asked
            .mirror
            .or_else(|| known.as_ref().map(|peer| peer.mirror))
            .unwrap_or_default(),
        alias: asked.alias.or_else(|| known.and_then(|peer| peer.alias)),
    };
    let view = state.ask(&state.links.put_peer, PutPeer { peer }).await??;
    Ok(
        HttpResponse::Ok().json(match friends::introduce_us(&state, did, invited).await? {
            Some(introduction) => json!({ "peer": view, "introduction": introduction }),
            None => json!({ "peer": view }),
        }),
    )
}

async fn known_peer(state: &GatewayState, did: &Did) -> Result<Option<PeerView>, Problem> {
    let roster = state.ask(&state.links.list_peers, ListPeers).await?;
    Ok(roster.peers.into_iter().find(|peer| peer.did == *did))
}

async fn remove_peer(
    request: HttpRequest,
    did: web::Path<String>,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    check_operator(&request)?;
    let did = parse_did(&did)?;
    friends::forget(&state, did).await?;
    state
        .ask(&state.links.remove_peer, RemovePeer { did })
        .await??;
    Ok(HttpResponse::Ok().json(json!({ "removed": true })))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RefreshBody {
    did: Option<Did>,
    #[serde(default)]
    mirror: bool,
}

async fn refresh(
    request: HttpRequest,
    state: web::Data<GatewayState>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let asked: RefreshBody = body(&request, payload).await?;
    let refresh = Refresh {
        peer: asked.did,
        mirror: asked.mirror,
    };
    let peers = state.ask(&state.links.refresh, refresh).await??;
    Ok(HttpResponse::Ok().json(json!({ "peers": peers })))
}

async fn reload(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    check_operator(&request)?;
    state.ask(&state.links.reload_roster, ReloadRoster).await?;
    list_peers(request, state).await
}

async fn reindex(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    check_operator(&request)?;
    // Once begun it ends, also when whoever asked hangs up: half an index would be worse than none.
    let rebuilding = actix_web::rt::spawn(async move {
        let mut found = state.ask(&state.links.reindex, Reindex).await??;
        let shelf = state.artifacts.clone();
        found.artifacts = super::blocking(move || Ok(shelf.reindex()?)).await?;
        Ok::<_, Problem>(found)
    });
    let found = rebuilding
        .await
        .map_err(|error| Problem::internal(&error))??;
    Ok(HttpResponse::Ok().json(found))
}

async fn failpoints(request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, Problem> {
    if !failpoint::enabled() {
        return Err(Problem::new(
            "unknown_route",
            "failpoints are for tests: HN_FAILPOINTS is not set",
        ));
    }
    let wanted: std::collections::BTreeMap<String, String> = body(&request, payload).await?;
    for (name, action) in &wanted {
        failpoint::set(name, action)
            .map_err(|error| Problem::new("bad_failpoint", error.to_string()))?;
    }
    Ok(HttpResponse::Ok().json(json!({ "set": wanted.len() })))
}

/// Entries of a held log as they were signed.
async fn entries(
    request: HttpRequest,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    check_operator(&request)?;
    let (mut publisher, mut cursor, mut limit) = (state.catalog.own(), 0, 100);
    for (key, value) in url::form_urlencoded::parse(request.query_string().as_bytes()) {
        match key.as_ref() {
            "publisher" => publisher = parse_did(&value)?,
            "cursor" => {
                cursor = parse_cursor(&value).ok_or_else(|| Problem::new("bad_cursor", value))?
            }
            "limit" => {
                let asked = value.parse().ok().filter(|n| (1..=MAX_ENTRIES).contains(n));
                limit = asked.ok_or_else(|| {
                    Problem::new("bad_limit", format!("1 to {MAX_ENTRIES}, not {value}"))
                })?;
            }
            _ => {}
        }
    }
    let view = state
        .catalog
        .log(&publisher)
        .ok_or(ReadError::UnknownPublisher(publisher))?;
    let catalog = state.catalog.clone();
    let (log_size, log_root) = (view.state.size(), view.state.root());
    let cursor = cursor.max(view.state.base);
    let reader = state.catalog.clone();
    let read = move |view: &LogView| -> Result<Vec<Value>, Problem> {
        let mut listed: Vec<Value> = Vec::new();
        for slice in catalog.slices(view, cursor) {
            let slice = slice?;
            let document = canonical::parse(&view.reader.read(slice.span)?)?;
            let entries = document
                .get("entries")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            let due = |entry: &Value| {
                entry
                    .get("seq")
                    .and_then(Value::as_u64)
                    .is_some_and(|seq| seq >= cursor)
            };
            listed.extend(entries.into_iter().filter(due).take(limit - listed.len()));
            if listed.len() == limit {
                break;
            }
        }
        Ok(listed)
    };
    let listed = super::blocking(move || reader.fresh(view, read)).await?;
    let next = cursor.saturating_add(listed.len() as u64);
    Ok(HttpResponse::Ok().json(json!({
        "publisher": publisher,
        "entries": listed,
        "next_cursor": (next < log_size).then_some(next),
        "log_size": log_size,
        "log_root": log_root,
    })))
}

/// An artifact: held here, or fetched from a peer and verified before a byte of it is given on.
async fn fetch(
    request: HttpRequest,
    digest: web::Path<String>,
    state: web::Data<GatewayState>,
) -> Result<HttpResponse, Problem> {
    check_operator(&request)?;
    let digest = artifact::parse(&digest)?;
    let from = url::form_urlencoded::parse(request.query_string().as_bytes())
        .find(|(key, _)| key == "from")
        .map(|(_, value)| parse_did(&value))
        .transpose()?;
    let shelf = state.artifacts.clone();
    if let Some(file) = super::blocking(move || Ok(shelf.open_verified(&digest)?)).await? {
        return artifact::send(&request, &digest, file).await;
    }
    let roster = state.ask(&state.links.list_peers, ListPeers).await?;
    let known = |did: &Did| {
        roster.peers.iter().any(|peer| peer.did == *did) || state.catalog.log(did).is_some()
    };
    if let Some(did) = from.filter(|did| !known(did)) {
        return Err(Problem::new(
            "unknown_peer",
            format!("{did} is neither in the roster nor is its log held"),
        ));
    }
    // Whom the operator named goes first; a publisher that is gone is held by others.
    let mut asked = roster.peers;
    asked.sort_by_key(|peer| Some(peer.did) != from);
    let asked = asked.into_iter();
    let sources = asked
        .filter_map(|peer| {
            let typed = peer.url.map(|url| (url, Trust::Operator));
            // What the peer itself says of its address is a stranger's word.
            let said = || peer.known_url.map(|url| (url, Trust::Stranger));
            let (base, trust) = typed.or_else(said)?;
            Some(Holder {
                did: peer.did,
                base,
                trust,
            })
        })
        .collect();
    let staged = state
        .ask(
            &state.links.fetch_artifact,
            FetchArtifact { digest, sources },
        )
        .await??;
    let file = super::blocking(move || Ok(std::fs::File::open(staged.path())?)).await?;
    artifact::send(&request, &digest, file).await
}
