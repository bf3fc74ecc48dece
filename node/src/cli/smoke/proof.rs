//! What a stranger can check: documents over HTTP, verified with nothing but the publisher's DID.

use std::collections::BTreeSet;
use std::time::Duration;

use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use hn_protocol::document::Entry;
use hn_protocol::log::Line;
use hn_protocol::merkle::{Frontier, inclusion_proof, verify_inclusion};
use reqwest::header::LINK;
use reqwest::{Client, Response, Url};

use crate::client::chain;

/// An answer on loopback takes milliseconds; this is for a machine that is busy.
const ANSWER: Duration = Duration::from_secs(10);

async fn ask(url: &str) -> Result<Response, String> {
    let client = Client::builder()
        .no_proxy()
        .timeout(ANSWER)
        .build()
        .map_err(|error| chain(&error))?;
    let answer = client
        .get(url)
        .send()
        .await
        .map_err(|error| chain(&error))?;
    if answer.status().is_success() {
        Ok(answer)
    } else {
        Err(format!("{url}: {}", answer.status()))
    }
}

/// The body of a successful GET.
pub async fn get(url: &str) -> Result<Vec<u8>, String> {
    Ok(ask(url)
        .await?
        .bytes()
        .await
        .map_err(|error| chain(&error))?
        .to_vec())
}

/// Gets an artifact from a node and checks its digest.
pub async fn artifact(base: &str, digest: Digest) -> Result<(), String> {
    let found = Digest::of(&get(&format!("{base}/artifact/{digest}")).await?);
    if found == digest {
        Ok(())
    } else {
        Err(format!("{base}/artifact/{digest} has the digest {found}"))
    }
}

/// A log that was read from the first entry to the head and verified line by line.
pub struct Log {
    /// Every entry, in order.
    pub entries: Vec<Entry>,
    /// Slices verified.
    pub slices: usize,
    /// Presences verified.
    pub presences: usize,
    leaves: Vec<Digest>,
    frontier: Frontier,
    head: Option<Digest>,
    shown: BTreeSet<Digest>,
    /// Size and root that the last presence binds.
    bound: Option<(u64, Digest)>,
}

impl Log {
    /// Reads `publisher`'s log from the node at `base`, page by page. Errors: the first line that doesn't verify.
    pub async fn read(base: &str, publisher: &str) -> Result<Self, String> {
        let did: Did = publisher
            .parse()
            .map_err(|error| format!("{publisher}: {error}"))?;
        let mut log = Self {
            entries: Vec::new(),
            slices: 0,
            presences: 0,
            leaves: Vec::new(),
            frontier: Frontier::default(),
            head: None,
            shown: BTreeSet::new(),
            bound: None,
        };
        let mut url = Url::parse(&format!(
            "{base}/federate/index?publisher={publisher}&cursor=0"
        ))
        .map_err(|error| error.to_string())?;
        loop {
            let answer = ask(url.as_str()).await?;
            let next = answer
                .headers()
                .get(LINK)
                .and_then(|link| link.to_str().ok())
                .and_then(next_reference)
                .map(str::to_owned);
            let body = answer.bytes().await.map_err(|error| chain(&error))?;
            let before = log.entries.len();
            for line in body
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty())
            {
                let line = Line::verify(body.slice_ref(line))
                    .map_err(|error| format!("line after entry {}: {error}", log.entries.len()))?;
                log.accept(did, &line)?;
            }
            match next {
                Some(next) if log.entries.len() > before => {
                    url = url.join(&next).map_err(|error| error.to_string())?
                }
                Some(_) => return Err(format!("{url} brings nothing and names a next page")),
                None => break,
            }
        }
        match log.bound {
            Some((size, root)) if size == log.frontier.size() && root == log.root() => Ok(log),
            bound => Err(format!(
                "the last presence binds {bound:?}, the log has {} entries",
                log.frontier.size()
            )),
        }
    }

    /// The root of all leaves read.
    pub fn root(&self) -> Digest {
        self.frontier.root()
    }

    /// One verified line: its place in the chain, its leaves against `log_root`, its presence.
    fn accept(&mut self, did: Did, line: &Line) -> Result<(), String> {
        match line {
            Line::Presence(presence) => {
                ensure(presence.did == did, "a presence of somebody else")?;
                self.shown.insert(presence.digest());
                self.bound = Some((presence.log_size, presence.merkle_root));
                self.presences += 1;
            }
            // The proof is from the first entry on, or it is none.
            Line::Frontier(_) => return Err("the log does not begin at its first entry".into()),
            Line::Slice(slice) => {
                ensure(slice.publisher == did, "a slice of somebody else")?;
                ensure(slice.cursor == self.frontier.size(), "a gap between slices")?;
                ensure(slice.prev == self.head, "prev is not the slice before")?;
                ensure(
                    self.shown.contains(&slice.presence_digest),
                    "the slice's presence was not shown before it",
                )?;
                for leaf in slice.leaves() {
                    self.frontier.push(*leaf);
                    self.leaves.push(*leaf);
                }
                ensure(
                    self.frontier.root() == slice.log_root,
                    "the leaves don't fold to log_root",
                )?;
                self.entries.extend(slice.entries.iter().cloned());
                self.head = Some(slice.digest());
                self.slices += 1;
            }
        }
        Ok(())
    }

    /// Proves that the entry at `index` is in the log: its path, and how many hashes it took.
    pub fn prove_inclusion(&self, index: usize) -> Result<(&str, usize), String> {
        let entry = self.entries.get(index).ok_or("no such entry")?;
        let leaf = entry.leaf().map_err(|error| error.to_string())?;
        let proof = inclusion_proof(&self.leaves, index).ok_or("no proof")?;
        let holds = verify_inclusion(
            &self.root(),
            self.frontier.size(),
            index as u64,
            &leaf,
            &proof,
        );
        ensure(holds, "the proof does not lead to log_root")?;
        Ok((&entry.path, proof.len()))
    }
}

fn ensure(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(otherwise.to_owned())
    }
}

/// The reference of `<…>; rel="next"`.
fn next_reference(link: &str) -> Option<&str> {
    let (reference, parameters) = link.strip_prefix('<')?.split_once('>')?;
    parameters.contains(r#"rel="next""#).then_some(reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_read_from_the_link() {
        assert_eq!(
            next_reference(r#"<?cursor=5>; rel="next""#),
            Some("?cursor=5")
        );
        assert_eq!(next_reference(r#"<?cursor=5>; rel="prev""#), None);
    }
}
