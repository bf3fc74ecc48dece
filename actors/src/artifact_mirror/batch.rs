//! Many small artifacts in one answer (`GET /federate/artifacts`): hashed one by one, made durable together.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::ops::Range;

use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use tokio::sync::mpsc;

use super::download::Downloads;
use super::{Holder, MirrorError};
use crate::artifacts::Listed;
use crate::fetch::{Body, FetchError};
use crate::gateway::MAX_BATCH;
use crate::gateway::tar_stream::{ChunkReader, TarStream};
use crate::pull::route;
use crate::vault::{ArtifactStore, BundleWriter, MAX_MEMBER, member_bytes};

/// Entries that are looked at together when it is decided whether a batch pays.
const STRETCH: usize = 256;
/// So many artifacts have to be missing in a stretch...
const MIN_MISSING: usize = 8;
/// ...and of its bytes one part in so many: the rest is downloaded in vain.
const MIN_SHARE: u64 = 2;
/// What a tar may have beyond its members: its end, and what fills its last record.
const SLACK: u64 = 64 << 10;
/// An answer names a next one at least so many entries further on: no holder makes us ask without end.
const MIN_STEP: u64 = 64;
/// Chunks that wait to be hashed.
const CHUNKS: usize = 16;

/// The entries for which a batch pays: contiguous runs of `entries` in which enough is `missing`.
pub(super) fn ranges(entries: &[Listed], missing: &BTreeMap<Digest, u64>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for stretch in entries.chunks(STRETCH) {
        let small = stretch.iter().filter(|entry| entry.size <= MAX_MEMBER);
        let is_missing = |entry: &&Listed| missing.contains_key(&entry.digest);
        let wanted: Vec<&Listed> = small.clone().filter(is_missing).collect();
        let bytes = |entries: &mut dyn Iterator<Item = &Listed>| -> u64 {
            entries.map(|entry| member_bytes(entry.size)).sum()
        };
        let pays = wanted.len() >= MIN_MISSING
            && bytes(&mut wanted.iter().copied()) >= bytes(&mut small.into_iter()) / MIN_SHARE;
        let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else {
            continue;
        };
        if !pays {
            continue;
        }
        match ranges.last_mut() {
            // What lies between two such stretches is at most a stretch.
            Some(range) if first.seq - range.end <= STRETCH as u64 => range.end = last.seq + 1,
            _ => ranges.push(first.seq..last.seq + 1),
        }
    }
    ranges
}

/// What one answer brought.
pub(super) struct Answer {
    /// The artifacts, verified and not durable yet.
    pub bundle: BundleWriter,
    /// The entries that it covered to its end; those of them that did not come are not there.
    pub covered: Range<u64>,
    /// Where the next one begins.
    pub next: Option<u64>,
    /// Why it was given up before its end.
    pub error: Option<MirrorError>,
}

/// Asks `holder` for the small artifacts of `range`; `entries` are those of the log in it, `missing` is what is wanted.
/// `None` where the holder offers no batches. Errors: no answer; the disk.
pub(super) async fn fetch(
    downloads: &Downloads,
    target: &ArtifactStore,
    publisher: &Did,
    holder: &Holder,
    range: Range<u64>,
    entries: &[Listed],
    missing: &BTreeMap<Digest, u64>,
) -> Result<Option<Answer>, MirrorError> {
    let limit = (range.end - range.start).min(MAX_BATCH as u64);
    let mut url = route(&holder.base, &["federate", "artifacts"]);
    url.query_pairs_mut()
        .append_pair("publisher", &publisher.to_string())
        .append_pair("cursor", &range.start.to_string())
        .append_pair("limit", &limit.to_string());
    let _turn = downloads.turn(&holder.base).await?;
    let fetch = downloads.fetch.to(holder.did);
    let body = match fetch.open(&url, holder.trust, None).await {
        Err(FetchError::Status { status, .. }) if (400..500).contains(&status) && status != 429 => {
            return Ok(None);
        }
        opened => opened?,
    };
    if body.media_type() != "application/x-tar" {
        return Ok(None);
    }
    let next = body.next().and_then(|query| cursor_of(&query));
    let end = next.unwrap_or(range.end);
    let covered = range.start..end.min(range.end).min(range.start + limit);
    let known: BTreeMap<Digest, u64> = entries
        .iter()
        .filter(|entry| covered.contains(&entry.seq) && entry.size <= MAX_MEMBER)
        .map(|entry| (entry.digest, entry.size))
        .collect();
    let most = known.values().map(|size| member_bytes(*size)).sum::<u64>() + SLACK;
    let wanted = known.keys().filter(|digest| missing.contains_key(digest));
    let wanted = wanted.copied().collect();
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let store = target.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let mut bundle = store.bundle()?;
        let error = read(ChunkReader::new(receiver), &known, wanted, &mut bundle).err();
        Ok::<_, io::Error>((bundle, error))
    });
    let sent = pass_on(body, sender, most).await;
    let read = reading.await;
    let (bundle, error) = read.map_err(|error| MirrorError::Failed(error.to_string()))??;
    // Why the bytes ended says more than that they did.
    let error = match (sent, error) {
        (Err(sent), Some(error)) if !error.is_lie() && !error.is_local() => Some(sent),
        (Err(sent), None) => Some(sent),
        (_, error) => error,
    };
    let goes_on = |next: &u64| *next >= range.start + MIN_STEP.min(limit) && *next < range.end;
    Ok(Some(Answer {
        bundle,
        next: next.filter(goes_on),
        covered,
        error,
    }))
}

fn cursor_of(query: &str) -> Option<u64> {
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    let (_, cursor) = pairs.find(|(key, _)| key == "cursor")?;
    cursor.parse().ok()
}

/// Hands the body to the thread that reads it. Errors: broken, too slow, or longer than `most`.
async fn pass_on(
    mut body: Body,
    sender: mpsc::Sender<Option<io::Result<bytes::Bytes>>>,
    most: u64,
) -> Result<(), MirrorError> {
    let mut received = 0;
    loop {
        let chunk = body.chunk().await.and_then(|chunk| {
            received += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            (received <= most as u64)
                .then_some(chunk)
                .ok_or(FetchError::TooLarge(most))
        });
        let (item, ended) = match &chunk {
            Ok(Some(chunk)) => (Some(Ok(chunk.clone())), false),
            Ok(None) => (None, true),
            Err(_) => (Some(Err(io::ErrorKind::ConnectionAborted.into())), true),
        };
        // A reader that has seen enough reads no more.
        let gone = sender.send(item).await.is_err();
        if ended || gone {
            return chunk.map(drop).map_err(MirrorError::Fetch);
        }
    }
}

/// Reads artifact after artifact. Errors: what is no tar, is not of this log, comes twice, or is not what it says.
fn read(
    reader: ChunkReader,
    known: &BTreeMap<Digest, u64>,
    mut wanted: BTreeSet<Digest>,
    bundle: &mut BundleWriter,
) -> Result<(), MirrorError> {
    let mut tar = TarStream::new(reader);
    let mut seen = BTreeSet::new();
    let mut bytes = Vec::new();
    let wrong = |what: String| Err(MirrorError::Answer(what));
    while let Some(head) = tar.next().map_err(unreadable)? {
        let name = String::from_utf8_lossy(&head.path).into_owned();
        let Some((digest, size)) = name
            .parse::<Digest>()
            .ok()
            .and_then(|digest| Some((digest, *known.get(&digest)?)))
        else {
            return wrong(format!("{name:.80} was not asked for"));
        };
        if !head.kind.is_file() || head.size != size || !seen.insert(digest) {
            return wrong(format!("{digest} comes twice, or not as the log says"));
        }
        if !wanted.remove(&digest) {
            continue;
        }
        bytes.clear();
        tar.by_ref()
            .take(size)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        if bytes.len() as u64 != size {
            return Err(FetchError::Connect("the answer ended early".into()).into());
        }
        let got = Digest::of(&bytes);
        if got != digest {
            let wanted = digest;
            return Err(MirrorError::Digest { wanted, got });
        }
        bundle.push(digest, &bytes)?;
    }
    Ok(())
}

/// The bytes cannot be read: no tar, or no connection.
fn unreadable(error: io::Error) -> MirrorError {
    match error.kind() {
        io::ErrorKind::Other | io::ErrorKind::InvalidData => MirrorError::Answer(error.to_string()),
        _ => FetchError::Connect("the answer ended early".into()).into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::vault::{SpaceGuard, header};

    fn listed(seq: u64, size: u64) -> Listed {
        let digest = Digest::of(&seq.to_be_bytes());
        Listed { seq, digest, size }
    }

    fn missing(entries: &[Listed], seqs: impl Fn(u64) -> bool) -> BTreeMap<Digest, u64> {
        let entries = entries.iter().filter(|entry| seqs(entry.seq));
        entries.map(|entry| (entry.digest, entry.size)).collect()
    }

    #[test]
    fn a_batch_is_asked_for_where_enough_is_missing() {
        let log: Vec<Listed> = (0..2048).map(|seq| listed(seq, 2048)).collect();
        let of = |seqs: &dyn Fn(u64) -> bool| ranges(&log, &missing(&log, seqs));
        assert_eq!(of(&|_| true), vec![0..2048]);
        assert_eq!(of(&|_| false), Vec::new());
        assert_eq!(of(&|seq| seq % 10 == 0), Vec::new(), "most of it is here");
        assert_eq!(
            of(&|seq| seq < 300),
            vec![0..256],
            "the last 44 are not worth one"
        );
        assert_eq!(of(&|seq| seq % 2 == 1), vec![1..2048]);
        assert_eq!(of(&|seq| !(256..2000).contains(&seq)), vec![0..256]);
        let large: Vec<Listed> = (0..9).map(|seq| listed(seq, MAX_MEMBER + 1)).collect();
        assert_eq!(ranges(&large, &missing(&large, |_| true)), Vec::new());
    }

    fn tar(members: &[(Digest, &[u8])]) -> Vec<u8> {
        let mut tar = Vec::new();
        for (digest, bytes) in members {
            tar.extend_from_slice(header(digest, bytes.len() as u64).as_bytes());
            tar.extend_from_slice(bytes);
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        tar.resize(tar.len() + 1024, 0);
        tar
    }

    /// What is kept of an answer to a wish for `one` and `two`, and why it was given up.
    fn kept(tar: &[u8]) -> (usize, Option<&'static str>) {
        let folder = tempfile::tempdir().unwrap();
        let space = SpaceGuard::new(folder.path(), 0);
        let mut bundle = ArtifactStore::new(folder.path(), space).bundle().unwrap();
        let known: BTreeMap<Digest, u64> = [&b"one"[..], b"two", b"held"]
            .map(|bytes| (Digest::of(bytes), bytes.len() as u64))
            .into();
        let wanted = [Digest::of(b"one"), Digest::of(b"two")].into();
        let (sender, receiver) = mpsc::channel(4);
        let chunk = bytes::Bytes::copy_from_slice(tar);
        sender.blocking_send(Some(Ok(chunk))).unwrap();
        sender.blocking_send(None).unwrap();
        let error = read(ChunkReader::new(receiver), &known, wanted, &mut bundle).err();
        (bundle.members().len(), error.map(|error| error.code()))
    }

    #[test]
    fn of_an_answer_only_what_was_asked_for_and_is_true_is_kept() {
        let of = |bytes: &'static [u8]| (Digest::of(bytes), bytes);
        let honest = tar(&[of(b"one"), of(b"held"), of(b"two")]);
        assert_eq!(kept(&honest), (2, None));
        assert_eq!(
            kept(&honest[..1024]),
            (1, None),
            "the end mark is not asked for"
        );
        assert_eq!(kept(&honest[..1000]).1, Some("no_connection"), "cut off");
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        assert_eq!(
            kept(&tar(&[of(b"one"), (two, b"TWO")])),
            (1, Some("artifact_mismatch"))
        );
        assert_eq!(
            kept(&tar(&[of(b"one"), of(b"one")])),
            (1, Some("bad_answer"))
        );
        assert_eq!(
            kept(&tar(&[of(b"one"), of(b"else")])),
            (1, Some("bad_answer"))
        );
        assert_eq!(kept(&tar(&[(one, b"one more")])), (0, Some("bad_answer")));
        assert_eq!(kept(&[b'<'; 2048]), (0, Some("bad_answer")), "no tar");
    }
}
