//! What eve publishes while she is honest, and how she forges: any object, rightly signed by any key of hers.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hn_protocol::canonical;
use hn_protocol::did::{Did, Identity, SecretSeed};
use hn_protocol::digest::Digest;
use hn_protocol::document::Endpoints;
use hn_protocol::log::{
    Commit, CommitRequest, EntryDraft, Line, LogState, PresenceFacts, first_presence,
};
use hn_protocol::merkle::{self, Frontier};
use serde_json::{Map, Value, json};

use crate::log::now;

/// How long her presences count as current, in milliseconds.
const TTL_MS: u64 = 86_400_000;

/// A slice as it is served, and where it stands.
#[derive(Debug, Clone)]
pub struct ServedSlice {
    /// Its first seq, for finding it by a cursor.
    pub cursor: u64,
    /// The first seq after it.
    pub next: u64,
    /// The presence that is shown before it.
    pub presence: Digest,
    /// The line.
    pub bytes: Bytes,
}

/// Everything that is served of one log.
#[derive(Debug, Clone)]
pub struct Pages {
    /// The slices, in order.
    pub slices: Vec<ServedSlice>,
    /// Presences by digest.
    pub presences: BTreeMap<Digest, Bytes>,
    /// The line that ends a page which reaches the head; none when she leaves it out.
    pub current: Option<Bytes>,
    /// Artifacts by the digest that they are asked by.
    pub artifacts: BTreeMap<Digest, Bytes>,
}

impl Pages {
    /// The lines of the page at `cursor`, and whether it reaches the head.
    pub fn page(&self, cursor: u64, limit: usize) -> (Vec<Bytes>, bool) {
        let due: Vec<&ServedSlice> = self
            .slices
            .iter()
            .filter(|slice| slice.next > cursor)
            .collect();
        let mut lines = Vec::new();
        let mut shown = Vec::new();
        for slice in due.iter().take(limit) {
            if let Some(presence) = self.presences.get(&slice.presence)
                && !shown.contains(&slice.presence)
            {
                shown.push(slice.presence);
                lines.push(presence.clone());
            }
            lines.push(slice.bytes.clone());
        }
        let reaches_head = due.len() <= limit;
        if reaches_head {
            lines.extend(self.current.clone());
        }
        (lines, reaches_head)
    }
}

/// A publisher with her key and her log, honest so far.
#[derive(Debug, Clone)]
pub struct Author {
    /// Her key.
    pub identity: Identity,
    /// Her log.
    pub state: LogState,
    /// What she serves of it.
    pub pages: Pages,
    facts: PresenceFacts,
    published: u32,
}

impl Author {
    /// A new publisher who says that she is at `base`; her log holds presence no. 1 alone.
    pub fn new(base: &str) -> Self {
        let identity = SecretSeed::from_bytes(rand::random()).identity();
        let endpoints = Endpoints {
            mcp: Some(base.to_owned()),
            presence: Some(format!("{base}/presence")),
            libp2p: Vec::new(),
        };
        let facts = PresenceFacts {
            endpoints,
            ttl_ms: TTL_MS,
            ..PresenceFacts::default()
        };
        let first = first_presence(&identity, 0, &facts, now()).expect("a presence can be signed");
        let pages = Pages {
            slices: Vec::new(),
            presences: BTreeMap::new(),
            current: None,
            artifacts: BTreeMap::new(),
        };
        let state = LogState::empty(identity.did(), 0);
        let mut author = Self {
            identity,
            state,
            pages,
            facts,
            published: 0,
        };
        author.take(first);
        author
    }

    /// Who she is.
    pub fn did(&self) -> Did {
        self.identity.did()
    }

    /// Appends a slice of two new files.
    pub fn publish(&mut self) {
        self.publish_files(2);
    }

    /// Appends new files, in one commit: a slice for each 512 of them.
    pub fn publish_files(&mut self, files: usize) {
        let drafts = (0..files).map(|n| {
            self.published += 1;
            // Of two copies of her home each publishes its own.
            let salt: u64 = rand::random();
            let content = Bytes::from(format!("{} file {} {salt}", self.did(), self.published));
            let digest = Digest::of(&content);
            self.pages.artifacts.insert(digest, content.clone());
            EntryDraft {
                kind: "file".into(),
                digest,
                size: content.len() as u64,
                path: format!("notes/{:04}-{n}.txt", self.published),
                tags: BTreeMap::new(),
                metadata: BTreeMap::new(),
                replaces: None,
                retracts: None,
            }
        });
        let entries = drafts.collect();
        let request = CommitRequest {
            entries,
            facts: &self.facts,
            now: now(),
        };
        let commit = self
            .state
            .commit(request, &self.identity)
            .expect("an honest slice can be signed");
        self.take(commit);
    }

    fn take(&mut self, commit: Commit) {
        for line in commit.lines {
            match line {
                Line::Slice(slice) => self.pages.slices.push(ServedSlice {
                    cursor: slice.cursor,
                    next: slice.next_cursor,
                    presence: slice.presence_digest,
                    bytes: slice.bytes().clone(),
                }),
                Line::Presence(presence) => {
                    self.pages
                        .presences
                        .insert(presence.digest(), presence.bytes().clone());
                    self.pages.current = Some(presence.bytes().clone());
                }
                Line::Frontier(_) => {}
            }
        }
        self.state = commit.state;
    }

    /// Her last slice, as an object.
    pub fn last_slice(&self) -> Map<String, Value> {
        object(&self.pages.slices.last().expect("she has published").bytes)
    }

    /// Her current presence, as an object.
    pub fn presence(&self) -> Map<String, Value> {
        object(self.pages.current.as_ref().expect("she is honest"))
    }
}

/// A line as an object.
pub fn object(bytes: &Bytes) -> Map<String, Value> {
    serde_json::from_slice(bytes).expect("an honest line is an object")
}

/// Gives `object` its right id and a right signature by `identity`, whatever it says.
pub fn sign(mut object: Map<String, Value>, identity: &Identity) -> Bytes {
    object.remove("id");
    object.remove("signature");
    let kind = object["type"]
        .as_str()
        .and_then(|t| t.split('@').next())
        .expect("a type")
        .to_owned();
    object.insert(
        "id".into(),
        json!(format!("{kind}:{}", Digest::of(&jcs(&object)))),
    );
    let signature = URL_SAFE_NO_PAD.encode(identity.sign(&jcs(&object)));
    object.insert("signature".into(), json!(format!("ed25519:{signature}")));
    Bytes::from(jcs(&object))
}

/// Makes `merkle_root` and `log_root` follow from the entries and from the log before the slice.
pub fn reroot(slice: &mut Map<String, Value>, before: &Frontier) {
    let entries = slice["entries"].as_array().expect("entries");
    let leaves: Vec<Digest> = entries
        .iter()
        .map(|entry| merkle::leaf_hash(&jcs(entry)))
        .collect();
    let mut log = before.clone();
    leaves.iter().for_each(|leaf| log.push(*leaf));
    slice.insert("merkle_root".into(), json!(merkle::root(&leaves)));
    slice.insert("log_root".into(), json!(log.root()));
}

fn jcs<T: serde::Serialize>(value: &T) -> Vec<u8> {
    canonical::to_vec(value).expect("an object has a canonical form")
}
