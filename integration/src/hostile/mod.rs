//! Eve: a publisher with a real key and a real socket. Honest until she is told to lie, and honest again after.

mod author;
mod evidence;
mod lie;
mod stream;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use hn_protocol::did::{Did, SecretSeed};
use hn_protocol::digest::Digest;
use reqwest::Url;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::log::now;
pub use author::{Author, sign};
pub use evidence::{Forgery, proof};
pub use lie::Lie;
pub use stream::Streaming;

/// The most of a request's head that eve reads.
const MAX_HEAD: usize = 16 * 1024;
/// How many bytes her large bodies have.
pub const LARGE: usize = 100 << 20;
/// How many bytes her gzip bomb has when it is unpacked.
const BOMB: usize = 1 << 30;

/// How eve answers, beyond what she says of the log.
#[derive(Debug, Clone)]
pub enum Manner {
    /// As a node does.
    Plain,
    /// The log's pages are this body, with these header lines.
    Body {
        /// Lines of the head, each ending in CRLF.
        head: String,
        /// The body, repeated until `times` is through.
        chunk: Bytes,
        /// How often the chunk is sent.
        times: usize,
    },
    /// Takes the connection and never answers.
    Silent,
    /// Answers a byte a second, of the head already.
    TricklingHead,
    /// Answers a proper head at once, then a byte a second.
    TricklingBody,
    /// 302 to the same path elsewhere.
    Redirect(String),
}

impl Manner {
    /// A body of 100 MiB that never ends its first line; with a `Content-Length`, or ending with the connection.
    pub fn large(announced: bool) -> Self {
        let chunk = Bytes::from(vec![b'a'; 1 << 16]);
        let head = if announced {
            format!("Content-Length: {LARGE}\r\n")
        } else {
            String::new()
        };
        Self::Body {
            head,
            times: LARGE / chunk.len(),
            chunk,
        }
    }

    /// A megabyte of gzip that unpacks to a gigabyte.
    pub fn gzip_bomb() -> Self {
        let chunk = Bytes::from(gzip_bomb());
        let head = format!(
            "Content-Encoding: gzip\r\nContent-Length: {}\r\n",
            chunk.len()
        );
        Self::Body {
            head,
            chunk,
            times: 1,
        }
    }
}

/// A megabyte of gzip that unpacks to a gigabyte of zeros.
pub fn gzip_bomb() -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let zeros = vec![0; 1 << 20];
    for _ in 0..BOMB / zeros.len() {
        encoder.write_all(&zeros).expect("a vector takes bytes");
    }
    encoder.finish().expect("a vector takes bytes")
}

/// Eve, listening. Dropped, she is gone.
pub struct Eve {
    author: Author,
    base: String,
    stage: Arc<Mutex<Stage>>,
    task: JoinHandle<()>,
}

struct Stage {
    did: Did,
    pages: author::Pages,
    /// What she holds of others, with the size that she claims of each.
    held: BTreeMap<Did, (u64, author::Pages)>,
    /// Logs that nobody has and she says that she holds.
    invented: Vec<Did>,
    /// Whom she accuses of a fork, and what she shows for it.
    accused: BTreeMap<Did, Bytes>,
    /// Whom she calls revoked, and the line that she shows for it.
    buried: BTreeMap<Did, Option<Bytes>>,
    manner: Manner,
    /// Her streams of news; `None`: she offers none.
    streaming: Option<Streaming>,
    requests: Vec<String>,
    sent: usize,
}

impl Eve {
    /// Listens on a free port, with an honest log of two slices.
    pub async fn honest() -> Self {
        let (listener, base) = listen().await;
        let mut author = Author::new(&base);
        author.publish();
        author.publish();
        Self::serving(author, listener, base)
    }

    /// As if her home had been copied: the same key and the same log so far, behind another port. From here on each of
    /// the two goes on alone.
    pub async fn copied(&self) -> Self {
        let (listener, base) = listen().await;
        Self::serving(self.author.clone(), listener, base)
    }

    fn serving(author: Author, listener: TcpListener, base: String) -> Self {
        let stage = Arc::new(Mutex::new(Stage {
            did: author.did(),
            pages: author.pages.clone(),
            held: BTreeMap::new(),
            invented: Vec::new(),
            accused: BTreeMap::new(),
            buried: BTreeMap::new(),
            manner: Manner::Plain,
            streaming: None,
            requests: Vec::new(),
            sent: 0,
        }));
        let task = tokio::spawn(accept(listener, stage.clone()));
        Self {
            author,
            base,
            stage,
            task,
        }
    }

    /// Who she is.
    pub fn did(&self) -> Did {
        self.author.did()
    }

    /// Her base URL.
    pub fn base_url(&self) -> &str {
        &self.base
    }

    /// Entries in her honest log.
    pub fn size(&self) -> u64 {
        self.author.state.size()
    }

    /// Tells a lie on top of her honest log, from now on.
    pub fn lie(&self, lie: Lie) {
        self.stage().pages = lie.told_by(&self.author);
    }

    /// Answers in this manner from now on.
    pub fn behave(&self, manner: Manner) {
        self.stage().manner = manner;
    }

    /// Offers streams of news from now on, and says this in them.
    pub fn stream(&self, streaming: Streaming) {
        self.stage().streaming = Some(streaming);
    }

    /// How often a route was asked for.
    pub fn asked(&self, path: &str) -> usize {
        let wanted = format!("GET {path}");
        let requests = self.requests();
        requests
            .iter()
            .filter(|line| line.starts_with(&wanted))
            .count()
    }

    /// Says that she holds the log of `other`, and serves it, with a lie on top or as it is.
    pub fn hold(&self, other: &Author, lie: Option<Lie>) {
        let pages = lie.map_or_else(|| other.pages.clone(), |lie| lie.told_by(other));
        let claimed = other.state.size() + if lie.is_some() { 2 } else { 0 };
        self.stage().held.insert(other.did(), (claimed, pages));
    }

    /// Serves other bytes for every artifact: as many, or none but an error.
    pub fn spoil_artifacts(&self) {
        for content in self.stage().pages.artifacts.values_mut() {
            *content = Bytes::from(vec![b'?'; content.len()]);
        }
    }

    /// Says that she holds so many logs more, of which nobody has ever heard.
    pub fn boast(&self, logs: usize) -> Vec<Did> {
        let invented: Vec<Did> = (0..logs)
            .map(|_| SecretSeed::from_bytes(rand::random()).identity().did())
            .collect();
        self.stage().invented.clone_from(&invented);
        invented
    }

    /// Says that the log of `other`, which she holds, is forked, and shows these lines for it.
    pub fn accuse(&self, other: Did, evidence: &[Bytes]) {
        let body = evidence.iter().flat_map(|line| [line.as_ref(), b"\n"]);
        let body = Bytes::from(body.collect::<Vec<_>>().concat());
        self.stage().accused.insert(other, body);
    }

    /// Says that `other`, whose log she holds, is revoked; its log ends with `word`, where there is one.
    pub fn bury(&self, other: Did, word: Option<Bytes>) {
        self.stage().buried.insert(other, word);
    }

    /// Takes every accusation back.
    pub fn excuse(&self) {
        self.stage().accused.clear();
    }

    /// Her honest log, and her key.
    pub fn author(&self) -> &Author {
        &self.author
    }

    /// Publishes once more, and serves the truth from now on.
    pub fn repent(&mut self) {
        self.publish_files(2);
    }

    /// Publishes so many files in one commit, and serves the truth from now on.
    pub fn publish_files(&mut self, files: usize) {
        self.author.publish_files(files);
        let mut stage = self.stage();
        stage.pages = self.author.pages.clone();
        stage.manner = Manner::Plain;
    }

    /// The request lines so far.
    pub fn requests(&self) -> Vec<String> {
        self.stage().requests.clone()
    }

    /// Bytes of bodies that she could get rid of so far.
    pub fn sent(&self) -> usize {
        self.stage().sent
    }

    /// The digests of her artifacts.
    pub fn artifacts(&self) -> Vec<Digest> {
        self.author.pages.artifacts.keys().copied().collect()
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().expect("nobody panicked on stage")
    }
}

impl Stage {
    fn log(&self, publisher: Did) -> Option<&author::Pages> {
        if publisher == self.did {
            return Some(&self.pages);
        }
        self.held.get(&publisher).map(|(_, pages)| pages)
    }

    /// `GET /federate/peers`, as far as she holds logs of others: each under the root that its presence binds.
    fn heads(&self) -> Value {
        let heads = self.held.iter().map(|(did, (size, pages))| {
            let current = pages.current.as_ref().map(author::object);
            let root = current.as_ref().map_or_else(
                || json!(Digest::of(b"")),
                |presence| presence["merkle_root"].clone(),
            );
            let presence = current.map(|presence| presence["id"].clone());
            let presence =
                presence.and_then(|id| Some(id.as_str()?.strip_prefix("presence:")?.to_owned()));
            json!({"did": did, "epoch": 0, "log_size": size, "log_root": root, "head": null,
                "presence": presence, "last_seen": now(), "forked": self.accused.contains_key(did),
                "revoked": self.buried.contains_key(did)})
        });
        let invented = self.invented.iter().map(|did| {
            json!({"did": did, "epoch": 0, "log_size": 7, "log_root": Digest::of(b"x"), "head": Digest::of(b"x"),
                "presence": Digest::of(b"x"), "last_seen": now(), "forked": false})
        });
        json!({ "peers": heads.chain(invented).collect::<Vec<_>>() })
    }
}

impl Drop for Eve {
    fn drop(&mut self) {
        self.task.abort();
        if std::thread::panicking() {
            println!("--- eve was asked:\n{}", self.requests().join("\n"));
        }
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let base = format!("http://{}", listener.local_addr().expect("a bound address"));
    (listener, base)
}

async fn accept(listener: TcpListener, stage: Arc<Mutex<Stage>>) {
    let mut visitors = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let stage = stage.clone();
        visitors.spawn(async move {
            // A visitor that hangs up is no news.
            let _ = serve(stream, &stage).await;
        });
    }
}

/// One request, one answer, one connection.
async fn serve(mut stream: TcpStream, stage: &Mutex<Stage>) -> std::io::Result<()> {
    let Some(head) = read_head(&mut stream).await? else {
        return Ok(());
    };
    let (line, manner) = {
        let mut stage = stage.lock().expect("nobody panicked on stage");
        let line = head.lines().next().unwrap_or_default().to_owned();
        stage.requests.push(line.clone());
        (line, stage.manner.clone())
    };
    let target = line.split(' ').nth(1).unwrap_or("/").to_owned();
    let streaming = stage
        .lock()
        .expect("nobody panicked on stage")
        .streaming
        .clone();
    if let Some(streaming) = streaming.filter(|_| target.starts_with("/federate/watch")) {
        return stream::stream(&mut stream, &streaming, stage).await;
    }
    match manner {
        Manner::Plain => {
            let answer = plain(
                &target,
                &head,
                &stage.lock().expect("nobody panicked on stage"),
            );
            stream.write_all(&answer).await?;
        }
        Manner::Body { head, chunk, times } => {
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n{head}\r\n"
            );
            stream.write_all(head.as_bytes()).await?;
            for _ in 0..times {
                stream.write_all(&chunk).await?;
                stage.lock().expect("nobody panicked on stage").sent += chunk.len();
            }
        }
        Manner::Silent => std::future::pending().await,
        Manner::TricklingHead => trickle(&mut stream, b"HTTP/1.1 200 OK\r\nX-Patience: ").await?,
        Manner::TricklingBody => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: 100000\r\n\r\n").await?;
            trickle(&mut stream, b"{").await?;
        }
        Manner::Redirect(base) => {
            let answer = format!(
                "HTTP/1.1 302 Found\r\nLocation: {base}{target}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).await?;
        }
    }
    stream.shutdown().await
}

async fn trickle(stream: &mut TcpStream, begin: &[u8]) -> std::io::Result<()> {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    for byte in begin.iter().chain(std::iter::repeat(&b'x')) {
        seconds.tick().await;
        stream.write_all(&[*byte]).await?;
    }
    Ok(())
}

async fn read_head(stream: &mut TcpStream) -> std::io::Result<Option<String>> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut chunk = [0; 2048];
        match stream.read(&mut chunk).await? {
            0 => return Ok(None),
            n => head.extend_from_slice(&chunk[..n]),
        }
        if head.len() > MAX_HEAD {
            return Ok(None);
        }
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}

/// What a node would answer.
fn plain(target: &str, head: &str, stage: &Stage) -> Vec<u8> {
    let url = Url::parse("http://eve")
        .and_then(|base| base.join(target))
        .expect("a request target");
    let query = |name: &str| {
        url.query_pairs()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    };
    let path = url.path();
    if path == "/federate/index" {
        let publisher = query("publisher").map_or(Some(stage.did), |wanted| wanted.parse().ok());
        let Some((publisher, pages)) = publisher.and_then(|did| Some((did, stage.log(did)?)))
        else {
            return not_found();
        };
        let cursor = query("cursor").and_then(|c| c.parse().ok()).unwrap_or(0);
        let limit = query("limit").and_then(|l| l.parse().ok()).unwrap_or(16);
        let mut pages = pages.clone();
        if let Some(word) = stage.buried.get(&publisher).cloned().flatten() {
            pages.current = Some(word);
        }
        return index(publisher, &pages, (cursor, limit), head);
    }
    if path == "/federate/forks" {
        let accused = query("publisher").and_then(|did| did.parse().ok());
        return match accused.and_then(|did: Did| stage.accused.get(&did)) {
            Some(evidence) => answer("200 OK", "application/x-ndjson", "", evidence),
            None => not_found(),
        };
    }
    if path == "/federate/peers" && !(stage.held.is_empty() && stage.invented.is_empty()) {
        return answer(
            "200 OK",
            "application/json",
            "",
            stage.heads().to_string().as_bytes(),
        );
    }
    if path.starts_with("/presence") || path == "/.well-known/hn/presence" {
        return match &stage.pages.current {
            Some(presence) => answer("200 OK", "application/json", "", presence),
            None => not_found(),
        };
    }
    let artifact = path
        .strip_prefix("/artifact/")
        .and_then(|digest| digest.parse::<Digest>().ok());
    match artifact.and_then(|digest| stage.pages.artifacts.get(&digest)) {
        Some(content) => answer("200 OK", "application/octet-stream", "", content),
        None => not_found(),
    }
}

fn index(
    publisher: Did,
    pages: &author::Pages,
    (cursor, limit): (u64, usize),
    head: &str,
) -> Vec<u8> {
    let (lines, reaches_head) = pages.page(cursor, limit);
    let body: Vec<u8> = lines
        .iter()
        .flat_map(|line| line.iter().copied().chain([b'\n']))
        .collect();
    let etag = format!("\"{}\"", Digest::of(&body));
    if head
        .lines()
        .any(|line| line.to_ascii_lowercase().starts_with("if-none-match:") && line.contains(&etag))
    {
        return answer(
            "304 Not Modified",
            "application/x-ndjson",
            &format!("ETag: {etag}\r\n"),
            b"",
        );
    }
    let next = match pages
        .slices
        .iter()
        .filter(|slice| slice.next > cursor)
        .nth(limit)
    {
        Some(slice) if !reaches_head => {
            format!(
                "Link: <?publisher={}&cursor={}&limit={limit}>; rel=\"next\"\r\n",
                publisher, slice.cursor
            )
        }
        _ => String::new(),
    };
    answer(
        "200 OK",
        "application/x-ndjson",
        &format!("ETag: {etag}\r\n{next}"),
        &body,
    )
}

fn not_found() -> Vec<u8> {
    answer(
        "404 Not Found",
        "application/problem+json",
        "",
        br#"{"title":"not found","status":404,"code":"not_found"}"#,
    )
}

fn answer(status: &str, kind: &str, head: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{head}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}
