//! Publishing into the own log: a tar stream over the socket, in batches that are durable one after the other.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use actix_web::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::StreamExt;
use hn_protocol::document::check_path;
use hn_protocol::log::EntryDraft;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::GatewayState;
use super::admin::check_operator;
use super::problem::Problem;
use super::tar_stream::{ChunkReader, Head, TarStream};
use crate::index_federator::{PublishEntries, Published};
use crate::log_recovery::AskHolders;
use crate::vault::{Purpose, Staged};

/// Chunks of the request that wait for the disk.
const CHUNKS: usize = 16;
/// Artifacts that share a group commit: what came before stays published whatever comes after.
pub const BATCH_FILES: usize = 1024;
/// Bytes after which a batch is committed though it has fewer files.
pub const BATCH_BYTES: u64 = 256 << 20;
/// The most entries of one request: its answer names each.
const MAX_FILES: usize = 200_000;
/// The largest artifact: what a file system can hold is decided by `storage.min_free`.
const MAX_ARTIFACT: u64 = 1 << 53;

/// Publishes the regular files of a tar stream under their names. Progress is kept: what a batch published stays
/// published when a later file is refused, and publishing it again changes nothing.
pub async fn publish(
    request: HttpRequest,
    state: web::Data<GatewayState>,
    mut payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    check_operator(&request)?;
    let tags = parse_query(request.query_string())?;
    if request.headers().contains_key(CONTENT_ENCODING) {
        return Err(Problem::new(
            "unsupported_encoding",
            "send the tar as it is",
        ));
    }
    let media = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if media != "application/x-tar" {
        return Err(Problem::new(
            "unsupported_media_type",
            "send application/x-tar",
        ));
    }
    let permit = Arc::clone(&state.admission.publications)
        .try_acquire_owned()
        .map_err(|_| Problem::new("busy", "other publications are being streamed"))?;
    super::revocation::check_own(&state)?;
    state.ask(&state.links.ask_holders, AskHolders).await?;
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let (handle, worker) = (Handle::current(), state.clone().into_inner());
    let staging = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        publish_tar(ChunkReader::new(receiver), &tags, &worker, &handle)
    });
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| io::Error::other(error.to_string()));
        let broken = chunk.is_err();
        // The worker that stopped reading says why in its answer.
        if sender.send(Some(chunk)).await.is_err() || broken {
            break;
        }
    }
    let _ = sender.send(None).await;
    drop(sender);
    let published = staging.await.map_err(|error| Problem::internal(&error))??;
    Ok(HttpResponse::Ok().json(published))
}

fn parse_query(query: &str) -> Result<BTreeMap<String, String>, Problem> {
    let (mut tags, mut public) = (BTreeMap::new(), false);
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match key.as_ref() {
            "public" => public = value == "true",
            "tag" => {
                let pair = value.split_once('=').filter(|(key, _)| !key.is_empty());
                let (key, value) = pair.ok_or_else(|| Problem::new("bad_tag", value.as_ref()))?;
                tags.insert(key.to_owned(), value.to_owned());
            }
            _ => {}
        }
    }
    if !public {
        return Err(Problem::new(
            "publish_without_public",
            "what is published can be read by anyone",
        )
        .remedy("say so with --public"));
    }
    Ok(tags)
}

fn publish_tar(
    reader: ChunkReader,
    tags: &BTreeMap<String, String>,
    state: &GatewayState,
    handle: &Handle,
) -> Result<Published, Problem> {
    let mut files = TarStream::new(reader);
    let mut all: Option<Published> = None;
    let mut batch = Batch::default();
    let mut count = 0;
    while let Some(Head { path, kind, size }) = files.next().map_err(unreadable)? {
        let path =
            String::from_utf8(path).map_err(|error| Problem::new("bad_path", error.to_string()))?;
        if kind.is_dir() {
            continue;
        }
        if !kind.is_file() {
            return Err(Problem::new("unsupported_file_type", path));
        }
        check_path(&path).map_err(|error| Problem::new("bad_path", error.to_string()))?;
        count += 1;
        if count > MAX_FILES {
            return Err(Problem::new(
                "too_many_entries",
                format!("at most {MAX_FILES} a request"),
            ));
        }
        let staged = state
            .artifacts
            .own()
            .stage_from(&mut files, MAX_ARTIFACT)
            .map_err(|error| {
                if error.kind() == io::ErrorKind::StorageFull {
                    error.into()
                } else {
                    unreadable(error)
                }
            })?;
        if staged.size() != size {
            return Err(Problem::new(
                "bad_body",
                format!("{path} ends after {} of {size} bytes", staged.size()),
            ));
        }
        batch.add(path, staged, tags);
        if batch.is_full() {
            batch.commit(state, handle, &mut all)?;
        }
    }
    batch.commit(state, handle, &mut all)?;
    all.ok_or_else(|| Problem::new("bad_body", "the tar holds no file"))
}

/// The tar cannot be read: the caller's fault, or the connection's.
fn unreadable(error: io::Error) -> Problem {
    Problem::new("bad_body", error.to_string())
}

#[derive(Default)]
struct Batch {
    drafts: Vec<EntryDraft>,
    staged: Vec<Staged>,
    bytes: u64,
}

impl Batch {
    fn add(&mut self, path: String, staged: Staged, tags: &BTreeMap<String, String>) {
        self.bytes += staged.size();
        self.drafts.push(EntryDraft {
            kind: "file".to_owned(),
            digest: staged.digest(),
            size: staged.size(),
            path,
            tags: tags.clone(),
            metadata: BTreeMap::new(),
            replaces: None,
            retracts: None,
        });
        self.staged.push(staged);
    }

    fn is_full(&self) -> bool {
        self.drafts.len() >= BATCH_FILES || self.bytes >= BATCH_BYTES
    }

    /// Artifacts first, the entries that name them second: a log never names what is not there.
    fn commit(
        &mut self,
        state: &GatewayState,
        handle: &Handle,
        all: &mut Option<Published>,
    ) -> Result<(), Problem> {
        let batch = std::mem::take(self);
        if batch.drafts.is_empty() {
            return Ok(());
        }
        if let Some(error) = batch.drafts.iter().find_map(|draft| draft.check().err()) {
            return Err(crate::index_federator::FederateError::Document(error).into());
        }
        state
            .artifacts
            .own()
            .commit(Purpose::Publish, batch.staged)?;
        let published = handle.block_on(state.links.publish.send(PublishEntries {
            entries: batch.drafts,
        }))??;
        match all {
            Some(all) => {
                all.published.extend(published.published);
                all.log_size = published.log_size;
                all.log_root = published.log_root;
            }
            None => *all = Some(published),
        }
        Ok(())
    }
}
