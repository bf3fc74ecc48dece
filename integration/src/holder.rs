//! Mallory: she holds what a real node publishes, passes on its logs as they are, and gives the artifacts as she likes.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use hn_protocol::digest::Digest;
use reqwest::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The most of a request's head that she reads.
const MAX_HEAD: usize = 16 * 1024;
/// How much an endless answer sends at once.
const CHUNK: usize = 64 << 10;

/// How she gives an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gift {
    /// As it is; a range as it was asked for.
    Honest,
    /// 404.
    Nothing,
    /// Other bytes of the same length.
    False,
    /// Bytes without end, and without a length.
    Endless,
    /// One byte more, and she says so.
    Longer,
    /// All but the last byte, and she says that this is all.
    Short,
    /// Only so many bytes of what is left, and then the connection breaks.
    Cut(usize),
    /// [`Gift::Cut`], and a range is answered from its beginning on: 206 with another first byte.
    WrongRange,
    /// [`Gift::Cut`], and a range is answered with everything: 200.
    NoRange,
    /// [`Gift::Cut`], and a range is answered with more than there is.
    LongRange,
}

/// After so many bytes [`Gift::WrongRange`] and the like break off what they give whole.
pub const BREAK: usize = 1 << 20;

/// How she answers `/federate/artifacts`.
#[derive(Debug, Clone)]
pub enum Batches {
    /// As the node behind her does.
    Honest,
    /// 404.
    None,
    /// This tar, whatever was asked for.
    Tar(Bytes),
    /// The honest answer, cut off in the middle.
    Cut,
    /// The honest answer, then zeros without end.
    Endless,
    /// A page for people.
    Html,
}

struct Stage {
    gift: Gift,
    batches: Batches,
    asked: Vec<String>,
}

/// Mallory, listening. Dropped, she is gone.
pub struct Mallory {
    base: String,
    stage: Arc<Mutex<Stage>>,
    task: JoinHandle<()>,
}

impl Mallory {
    /// Stands in front of the node at `origin`, honest.
    pub async fn before(origin: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("a bound address"));
        let stage = Arc::new(Mutex::new(Stage {
            gift: Gift::Honest,
            batches: Batches::Honest,
            asked: Vec::new(),
        }));
        let task = tokio::spawn(accept(listener, origin.to_owned(), stage.clone()));
        Self { base, stage, task }
    }

    /// Her base URL.
    pub fn base_url(&self) -> &str {
        &self.base
    }

    /// Gives artifacts so from now on; and offers no batches, which would go around it.
    pub fn gives(&self, gift: Gift) {
        let mut stage = self.stage();
        stage.gift = gift;
        stage.batches = Batches::None;
    }

    /// Answers batches so from now on.
    pub fn batches(&self, batches: Batches) {
        self.stage().batches = batches;
    }

    /// What she was asked for that concerns artifacts: path, query, and ` bytes=…` of a range.
    pub fn asked(&self) -> Vec<String> {
        self.stage().asked.clone()
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().expect("nobody panicked on stage")
    }
}

impl Drop for Mallory {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, origin: String, stage: Arc<Mutex<Stage>>) {
    let client = Client::builder().no_proxy().build().expect("a client");
    while let Ok((stream, _)) = listener.accept().await {
        let (client, origin, stage) = (client.clone(), origin.clone(), stage.clone());
        tokio::spawn(async move {
            // A client that hangs up is no affair of hers.
            let _ = answer(stream, &client, &origin, &stage).await;
        });
    }
}

async fn answer(
    mut stream: TcpStream,
    client: &Client,
    origin: &str,
    stage: &Mutex<Stage>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
        let byte = stream.read_u8().await?;
        head.push(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap_or("GET"), words.next().unwrap_or("/"));
    let range = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("range").then(|| value.to_owned())
    });
    let is_batch = path.starts_with("/federate/artifacts");
    let digest = path.strip_prefix("/artifact/");
    let (gift, batches) = {
        let mut stage = stage.lock().expect("nobody panicked on stage");
        if is_batch || digest.is_some() {
            let range = range.as_ref().map_or(String::new(), |r| format!(" {r}"));
            stage.asked.push(format!("{path}{range}"));
        }
        (stage.gift, stage.batches.clone())
    };
    let url = format!("{origin}{path}");
    let method = method.parse().expect("a method");
    let mut request = client.request(method, url).timeout(crate::converge::SOON);
    for name in ["if-none-match", "range"] {
        let value = head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then(|| value.to_owned())
        });
        // A range is cut by herself, where she does not pass it on as it is.
        if let Some(value) = value.filter(|_| name != "range" || gift == Gift::Honest) {
            request = request.header(name, value);
        }
    }
    let real = request.send().await.map_err(std::io::Error::other)?;
    let (status, headers) = (real.status(), real.headers().clone());
    let body = real.bytes().await.map_err(std::io::Error::other)?;
    let not_found = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    if digest.is_some() && gift != Gift::Honest && status.is_success() {
        return give(&mut stream, gift, &body, range.as_deref()).await;
    }
    let mut text = format!("HTTP/1.1 {}\r\nConnection: close\r\n", status.as_u16());
    let mut sent = body.clone();
    let mut length = Some(body.len());
    if is_batch {
        match batches {
            Batches::Honest => {}
            Batches::None => return stream.write_all(not_found.as_bytes()).await,
            Batches::Html => sent = Bytes::from_static(b"<html>artifacts</html>"),
            Batches::Tar(tar) => sent = tar,
            Batches::Cut => sent = body.slice(..body.len() / 2),
            Batches::Endless => length = None,
        }
        if !matches!(batches_of(stage), Batches::Cut) {
            length = length.map(|_| sent.len());
        }
    }
    for (name, value) in &headers {
        let passed = [
            "etag",
            "link",
            "content-type",
            "content-range",
            "content-disposition",
        ];
        if passed.contains(&name.as_str()) {
            let value = value.to_str().unwrap_or_default();
            let html = matches!(batches_of(stage), Batches::Html) && name == "content-type";
            let value = if is_batch && html { "text/html" } else { value };
            text += &format!("{name}: {value}\r\n");
        }
    }
    let announced = headers.get("content-length").and_then(|v| v.to_str().ok());
    if !is_batch && body.is_empty() && announced.is_some() {
        // The answer to HEAD.
        text += &format!("Content-Length: {}\r\n", announced.unwrap_or("0"));
    } else if let Some(length) = length {
        text += &format!("Content-Length: {length}\r\n");
    }
    stream.write_all(format!("{text}\r\n").as_bytes()).await?;
    stream.write_all(&sent).await?;
    if length.is_none() {
        let zeros = vec![0; CHUNK];
        loop {
            stream.write_all(&zeros).await?;
        }
    }
    stream.shutdown().await
}

fn batches_of(stage: &Mutex<Stage>) -> Batches {
    let stage = stage.lock().expect("nobody panicked on stage");
    stage.batches.clone()
}

/// Sends the artifact `real` as `gift` says.
async fn give(
    stream: &mut TcpStream,
    gift: Gift,
    real: &Bytes,
    range: Option<&str>,
) -> std::io::Result<()> {
    let size = real.len();
    let from = range.and_then(|range| {
        let first = range.strip_prefix("bytes=")?.strip_suffix('-')?;
        first.parse::<usize>().ok()
    });
    let from = from.unwrap_or(0).min(size);
    let whole = |length: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n");
    let part = |first: usize, length: usize| {
        let last = first + length - 1;
        let of = size.max(last + 1);
        format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {length}\r\nContent-Range: bytes {first}-{last}/{of}\r\n"
        )
    };
    let (head, body) = match gift {
        Gift::Honest => (whole(size), real.clone()),
        Gift::Nothing => (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n".into(),
            Bytes::new(),
        ),
        Gift::False => (whole(size), Bytes::from(vec![b'!'; size])),
        Gift::Endless => ("HTTP/1.1 200 OK\r\n".into(), real.clone()),
        Gift::Longer => (whole(size + 1), Bytes::from([&real[..], b"!"].concat())),
        Gift::Short => (whole(size - 1), real.slice(..size - 1)),
        Gift::Cut(bytes) if from > 0 => (
            part(from, size - from),
            real.slice(from..(from + bytes).min(size)),
        ),
        Gift::Cut(bytes) => (whole(size), real.slice(..bytes.min(size))),
        Gift::WrongRange if from > 0 => (part(from - 1, size - from + 1), real.slice(from - 1..)),
        Gift::LongRange if from > 0 => {
            let more = [&real[from..], b"!"].concat();
            (part(from, more.len()), Bytes::from(more))
        }
        Gift::NoRange if from > 0 => (whole(size), real.clone()),
        Gift::WrongRange | Gift::NoRange | Gift::LongRange => {
            (whole(size), real.slice(..BREAK.min(size)))
        }
    };
    stream
        .write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())
        .await?;
    stream.write_all(&body).await?;
    if gift == Gift::Endless {
        let noise = vec![b'!'; CHUNK];
        loop {
            stream.write_all(&noise).await?;
        }
    }
    stream.shutdown().await
}

/// A tar of `members`, each under the digest that stands before its bytes.
pub fn tar_of(members: &[(Digest, &[u8])]) -> Bytes {
    let mut tar = tar::Builder::new(Vec::new());
    for (digest, bytes) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        tar.append_data(&mut header, digest.to_string(), *bytes)
            .expect("a vector takes bytes");
    }
    tar.into_inner().expect("a vector takes bytes").into()
}
