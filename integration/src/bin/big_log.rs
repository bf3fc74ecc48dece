//! `big_log HOME ENTRIES` puts a made-up publisher's log of so many entries, in slices of 512, among the followed logs of a
//! home, as if it had been followed there, and prints the publisher's DID. The node verifies it at its next start.

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use hn_protocol::did::SecretSeed;
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
    number: u64,
    written: u64,
}

impl<'a> Journal<'a> {
    fn create(folder: &'a Path, number: u64) -> Result<Self, Box<dyn Error>> {
        let file = File::create(folder.join(format!("index-{number}.jsonl")))?;
        Ok(Self {
            folder,
            file: BufWriter::new(file),
            number,
            written: 0,
        })
    }

    fn append(&mut self, commit: &Commit) -> Result<(), Box<dyn Error>> {
        if self.written > FILE {
            self.file.flush()?;
            *self = Self::create(self.folder, self.number + 1)?;
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

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "big_log HOME ENTRIES";
    let mut arguments = std::env::args().skip(1);
    let home = arguments.next().ok_or(usage)?;
    let entries: u64 = arguments.next().ok_or(usage)?.parse()?;

    let identity = SecretSeed::from_bytes([77; 32]).identity();
    let did = identity.did().to_string();
    let folder = Path::new(&home).join("cache/federation").join(&did);
    fs::create_dir_all(&folder)?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let now = Timestamp(u64::try_from(now.as_millis())?);
    let facts = PresenceFacts {
        ttl_ms: TTL_MS,
        ..PresenceFacts::default()
    };
    let mut journal = Journal::create(&folder, 1)?;
    let mut commit = first_presence(&identity, 0, &facts, now)?;
    journal.append(&commit)?;
    while commit.state.size() < entries {
        let from = commit.state.size();
        let request = CommitRequest {
            entries: (from..entries.min(from + COMMIT)).map(draft).collect(),
            facts: &facts,
            now,
        };
        commit = commit.state.commit(request, &identity)?;
        journal.append(&commit)?;
    }
    journal.file.flush()?;
    println!("{did}");
    Ok(())
}
