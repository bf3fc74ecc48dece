//! `big_log HOME ENTRIES` puts a made-up publisher's log of so many entries, in slices of 512, among the followed logs of a
//! home, as if it had been followed there, and prints the publisher's DID. The node verifies it at its next start.
//!
//! `big_log HOME ENTRIES ALIAS [SLICE]` makes it the log of the home's own identity instead, as if it had published them:
//! made without artifacts, in a fraction of the time. With SLICE each commit has so many entries and a presence of its own.

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hn_protocol::did::{Identity, SecretSeed};
use hn_protocol::digest::Digest;
use hn_protocol::log::{Commit, CommitRequest, EntryDraft, PresenceFacts, first_presence};
use hn_protocol::time::Timestamp;

/// Entries of a commit: sixteen slices, a page.
const COMMIT: u64 = 16 * 512;
/// Bytes of a journal file, as the node makes them.
const FILE: u64 = 64 << 20;
/// A year.
const TTL_MS: u64 = 365 * 24 * 3_600_000;

struct Journal<'a> {
    folder: &'a Path,
    file: BufWriter<File>,
    written: u64,
}

impl<'a> Journal<'a> {
    /// A file that begins with the entry `first`; as the node does, its name says so.
    fn create(folder: &'a Path, first: u64) -> Result<Self, Box<dyn Error>> {
        let file = File::create(folder.join(format!("index-{first:020}.jsonl")))?;
        Ok(Self {
            folder,
            file: BufWriter::new(file),
            written: 0,
        })
    }

    fn append(&mut self, first: u64, commit: &Commit) -> Result<(), Box<dyn Error>> {
        let size: usize = commit.lines.iter().map(|line| line.bytes().len() + 1).sum();
        if self.written > 0 && self.written + size as u64 > FILE {
            self.file.flush()?;
            *self = Self::create(self.folder, first)?;
        }
        for line in &commit.lines {
            self.file.write_all(line.bytes())?;
            self.file.write_all(b"\n")?;
            self.written += line.bytes().len() as u64 + 1;
        }
        Ok(())
    }
}

fn draft(number: u64) -> EntryDraft {
    EntryDraft {
        kind: "file".into(),
        digest: Digest::of(&number.to_be_bytes()),
        size: 2048,
        path: format!("notes/{:04}/{number:09}.txt", number / 1000),
        tags: [("topic".to_owned(), "bench".to_owned())].into(),
        metadata: Default::default(),
        replaces: None,
        retracts: None,
    }
}

/// The identity of a home that has no passphrase.
fn identity_of(home: &Path, alias: &str) -> Result<Identity, Box<dyn Error>> {
    let secret = fs::read(home.join("identities").join(alias).join("secret.json"))?;
    let secret: serde_json::Value = serde_json::from_slice(&secret)?;
    let seed = secret["seed"].as_str().ok_or("the home has a passphrase")?;
    let seed: [u8; 32] = URL_SAFE_NO_PAD
        .decode(seed)?
        .try_into()
        .map_err(|_| "no seed")?;
    Ok(SecretSeed::from_bytes(seed).identity())
}

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "big_log HOME ENTRIES [ALIAS [SLICE]]";
    let mut arguments = std::env::args().skip(1);
    let home = arguments.next().ok_or(usage)?;
    let home = Path::new(&home);
    let entries: u64 = arguments.next().ok_or(usage)?.parse()?;
    let alias = arguments.next();
    let at_once: u64 = arguments.next().map_or(Ok(COMMIT), |slice| slice.parse())?;

    let identity = match &alias {
        Some(alias) => identity_of(home, alias)?,
        None => SecretSeed::from_bytes([77; 32]).identity(),
    };
    let did = identity.did().to_string();
    let folder = match &alias {
        Some(alias) => home.join("log").join(alias),
        None => home.join("cache/federation").join(&did),
    };
    fs::create_dir_all(&folder)?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let now = Timestamp(u64::try_from(now.as_millis())?);
    let facts = PresenceFacts {
        ttl_ms: TTL_MS,
        ..PresenceFacts::default()
    };
    let mut journal = Journal::create(&folder, 0)?;
    let mut commit = first_presence(&identity, 0, &facts, now)?;
    journal.append(0, &commit)?;
    while commit.state.size() < entries {
        let from = commit.state.size();
        let request = CommitRequest {
            entries: (from..entries.min(from + at_once)).map(draft).collect(),
            facts: &facts,
            now,
        };
        commit = commit.state.commit(request, &identity)?;
        journal.append(from, &commit)?;
    }
    journal.file.flush()?;
    println!("{did}");
    Ok(())
}
