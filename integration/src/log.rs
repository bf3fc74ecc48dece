//! A log as a stranger reads it: page by page over HTTP, byte for byte, and verified with nothing but the DID.

use bytes::Bytes;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::document::Entry;
use hn_protocol::log::{Line, LogState, NoHistory, PageContext, Source};
use hn_protocol::time::Timestamp;
use reqwest::{Client, StatusCode};

/// Everything that a node serves of one log, verified.
#[derive(Debug, Clone)]
pub struct Walk {
    /// Every line of every page, in order: slices, the presences they name, the current presence last.
    pub lines: Vec<Bytes>,
    /// The slices alone, as bytes.
    pub slices: Vec<Bytes>,
    /// The entries, in order.
    pub entries: Vec<Entry>,
    /// The log's root after the last slice.
    pub root: Digest,
    /// Entries in the log.
    pub size: u64,
    /// The sequence of the current presence.
    pub sequence: u64,
}

/// Now, as documents write it.
pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("the clock stands after 1970");
    Timestamp(u64::try_from(since.as_millis()).expect("milliseconds fit"))
}

/// Reads the whole log of `publisher` from the node at `base` and checks it from the empty log on.
/// Errors: the node does not hold it, or a page does not verify.
pub async fn walk(client: &Client, base: &str, publisher: Did) -> Result<Walk, String> {
    let mut state = LogState::empty(publisher, 0);
    let mut found = Walk {
        lines: Vec::new(),
        slices: Vec::new(),
        entries: Vec::new(),
        root: state.root(),
        size: 0,
        sequence: 0,
    };
    loop {
        let url = format!(
            "{base}/federate/index?publisher={publisher}&cursor={}&limit=64",
            state.size()
        );
        let answer = client
            .get(&url)
            .send()
            .await
            .map_err(|e| format!("{url}: {e}"))?;
        if answer.status() != StatusCode::OK {
            return Err(format!("{url}: {}", answer.status()));
        }
        let reaches_head = answer.headers().get("link").is_none();
        let body = answer.bytes().await.map_err(|e| format!("{url}: {e}"))?;
        let lines = split(&body);
        let context = PageContext {
            now: now(),
            source: Source::Holder,
            reaches_head,
        };
        let page = state
            .follow(&lines, context, &NoHistory)
            .map_err(|e| format!("{url}: {e}"))?;
        for line in &page.lines {
            if let Line::Slice(slice) = line {
                found.slices.push(slice.bytes().clone());
                found.entries.extend(slice.entries.iter().cloned());
            }
        }
        found.lines.extend(lines);
        let grown = page.state.size() > state.size();
        state = page.state;
        if reaches_head {
            break;
        }
        if !grown {
            return Err(format!("{url}: names a next page and brings nothing"));
        }
    }
    found.root = state.root();
    found.size = state.size();
    found.sequence = state.presence.map_or(0, |presence| presence.sequence);
    Ok(found)
}

/// The lines of an NDJSON body, without line ends.
pub fn split(body: &Bytes) -> Vec<Bytes> {
    body.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| body.slice_ref(line))
        .collect()
}
