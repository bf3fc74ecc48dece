//! The artifacts that a log names, read from its journal.

use std::io;

use hn_protocol::digest::Digest;
use serde::Deserialize;

use crate::catalog::{Catalog, LogView};

/// An artifact as an entry names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// The entry.
    pub seq: u64,
    /// BLAKE3 of the bytes.
    pub digest: Digest,
    /// How many they are to be.
    pub size: u64,
}

/// What is wanted of a slice: it was verified before it was stored, and what is fetched proves itself by its digest.
#[derive(Deserialize)]
struct SliceArtifacts {
    entries: Vec<EntryArtifact>,
}

/// The same of any line.
#[derive(Deserialize)]
struct LineArtifacts {
    #[serde(default)]
    entries: Vec<EntryArtifact>,
}

#[derive(Deserialize)]
struct EntryArtifact {
    digest: Digest,
    size: u64,
}

/// The artifacts that a line of a log names, with their lengths; a presence names none. Errors: the line is no document.
pub fn entries_of(line: &[u8]) -> io::Result<Vec<(Digest, u64)>> {
    let slice: LineArtifacts = serde_json::from_slice(line)?;
    let entries = slice.entries.into_iter();
    Ok(entries.map(|entry| (entry.digest, entry.size)).collect())
}

/// The artifacts of the entries from `cursor` on, in whole slices until there are `most` or more; with the first seq
/// after them. Errors: the disk, the index.
pub fn listed(
    catalog: &Catalog,
    view: &LogView,
    cursor: u64,
    most: usize,
) -> io::Result<(Vec<Listed>, u64)> {
    let (mut found, mut next) = (Vec::new(), cursor);
    for record in catalog.slices(view, cursor) {
        let record = record.map_err(io::Error::other)?;
        let slice: SliceArtifacts = serde_json::from_slice(&view.reader.read(record.span)?)?;
        let first = record
            .next_cursor
            .saturating_sub(slice.entries.len() as u64);
        let entries = (first..).zip(slice.entries);
        let entries =
            entries.map(|(seq, EntryArtifact { digest, size })| Listed { seq, digest, size });
        found.extend(entries.filter(|entry| entry.seq >= cursor));
        next = record.next_cursor;
        if found.len() >= most {
            break;
        }
    }
    Ok((found, next))
}
