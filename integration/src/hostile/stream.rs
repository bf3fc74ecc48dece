//! Eve's streams of news: what she says where an honest node tells of new heads.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use hn_protocol::did::{Did, SecretSeed};
use hn_protocol::digest::Digest;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::Stage;

/// A stream of news that goes on for as long as somebody listens.
#[derive(Debug, Clone)]
pub struct Streaming {
    /// Said again and again.
    pub chunk: Bytes,
    /// How long she rests between.
    pub pause: Duration,
}

impl Streaming {
    /// Says something without rest.
    pub fn endless(chunk: impl Into<Bytes>) -> Self {
        Self {
            chunk: chunk.into(),
            pause: Duration::ZERO,
        }
    }

    /// Takes the listener, and says nothing.
    pub fn mute() -> Self {
        Self {
            chunk: Bytes::new(),
            pause: Duration::from_secs(1),
        }
    }

    /// Events that tell of a new head of `publisher` that is none, every 10 ms.
    pub fn crying_wolf(publisher: Did) -> Self {
        Self {
            chunk: event(publisher, u64::MAX >> 12).into(),
            pause: Duration::from_millis(10),
        }
    }

    /// Events without rest, each of a log that nobody has ever heard of.
    pub fn strangers() -> Self {
        let events = (0..64).map(|_| {
            let stranger = SecretSeed::from_bytes(rand::random()).did();
            event(stranger, 7)
        });
        Self::endless(events.collect::<String>())
    }
}

fn event(publisher: Did, size: u64) -> String {
    let root = Digest::of(b"wolf");
    let head = json!({"did": publisher, "epoch": 0, "log_size": size, "log_root": root, "head": root, "presence": root});
    format!("id: 1-1\nevent: head\ndata: {head}\n\n")
}

/// Streams until nobody listens.
pub(super) async fn stream(
    socket: &mut TcpStream,
    streaming: &Streaming,
    stage: &Mutex<Stage>,
) -> std::io::Result<()> {
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
    socket.write_all(head).await?;
    loop {
        socket.write_all(&streaming.chunk).await?;
        stage.lock().expect("nobody panicked on stage").sent += streaming.chunk.len();
        if !streaming.pause.is_zero() {
            tokio::time::sleep(streaming.pause).await;
        }
    }
}
