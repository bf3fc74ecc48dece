//! Load for a node's front door, over plain sockets: what a caller costs the node is measured from outside.
//!
//! ```text
//! caller did                             the caller's DID
//! caller verify N                        seconds of CPU for N strict Ed25519 verifications, as a floor
//! caller unsigned|signed|forged HOST:PORT DID N   N requests POST /publish, over eight connections
//! caller slow HOST:PORT N                opens N connections from 127.0.0.2 that send their headers a byte at a time; runs until killed
//! caller latency HOST:PORT N             N requests GET /healthz, prints p50 and p95 in ms
//! ```
//! The caller's key is the seed of 32 bytes `07`. Prints JSON.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hn_protocol::did::{Did, SecretSeed};
use hn_protocol::request::{BodyProof, ContentDigest, SignatureFields, Target, sign};
use hn_protocol::time::Timestamp;
use serde_json::json;

type Outcome = Result<(), Box<dyn Error>>;

/// Connections at the same time: enough to keep a node of two threads busy.
const CONNECTIONS: u64 = 8;
/// How often a slow client sends its next byte.
const DRIP: Duration = Duration::from_secs(1);

fn main() -> Outcome {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["did"] => {
            println!("{}", key().did());
            Ok(())
        }
        ["verify", count] => verify(count.parse()?),
        [kind @ ("unsigned" | "signed" | "forged"), host, did, count] => {
            post(kind, host, did.parse()?, count.parse()?)
        }
        ["slow", host, count] => slow(host.parse()?, count.parse()?),
        ["latency", host, count] => latency(host, count.parse()?),
        _ => Err("see the head of caller.rs".into()),
    }
}

fn key() -> SecretSeed {
    SecretSeed::from_bytes([7; 32])
}

fn now() -> Result<Timestamp, Box<dyn Error>> {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    Ok(Timestamp(u64::try_from(millis)?))
}

/// One message as long as a signature base.
fn verify(count: u32) -> Outcome {
    let (message, identity) = ([b'x'; 400], key().identity());
    let signature = identity.sign(&message);
    let begun = Instant::now();
    for _ in 0..count {
        assert!(
            identity
                .did()
                .verifies(std::hint::black_box(&message), &signature)
        );
    }
    println!(
        "{}",
        json!({"each_us": begun.elapsed().as_secs_f64() * 1e6 / f64::from(count)})
    );
    Ok(())
}

fn fields(did: Did, nonce: u64) -> Result<SignatureFields, Box<dyn Error>> {
    let target = Target {
        method: "POST",
        path: "/publish",
        query: None,
    };
    let proof = BodyProof::Content(ContentDigest::field_of(b""));
    Ok(sign(
        target,
        did,
        &proof,
        &key().identity(),
        now()?,
        &format!("nonce-{}-{nonce}", std::process::id()),
    )?)
}

/// `count` requests over [`CONNECTIONS`] at a time, as a crowd brings them: one alone would measure how a processor wakes up.
fn post(kind: &str, host: &str, did: Did, count: u64) -> Outcome {
    let share = |n: u64| (count * n / CONNECTIONS)..(count * (n + 1) / CONNECTIONS);
    let mut statuses = std::collections::BTreeMap::<u16, u64>::new();
    let counted = std::thread::scope(|scope| {
        let connections: Vec<_> = (0..CONNECTIONS)
            .map(|n| {
                scope.spawn(move || converse(kind, host, did, share(n)).map_err(|e| e.to_string()))
            })
            .collect();
        connections
            .into_iter()
            .map(|c| c.join().map_err(|_| "a connection panicked".to_owned())?)
            .collect::<Result<Vec<_>, _>>()
    })?;
    for status in counted.into_iter().flatten() {
        *statuses.entry(status).or_default() += 1;
    }
    let statuses: serde_json::Map<_, _> = statuses
        .into_iter()
        .map(|(status, n)| (status.to_string(), n.into()))
        .collect();
    println!("{}", json!({ "statuses": statuses }));
    Ok(())
}

/// One request after the other on one connection.
fn converse(
    kind: &str,
    host: &str,
    did: Did,
    nonces: std::ops::Range<u64>,
) -> Result<Vec<u16>, Box<dyn Error>> {
    let mut stream = TcpStream::connect(host)?;
    stream.set_nodelay(true)?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let forged = {
        // Of the right form, by another key than it names: what costs the node most.
        let mut forged = fields(did, 0)?;
        forged.signature_input = forged.signature_input.replace("nonce-", "NONCE-");
        forged
    };
    let mut statuses = Vec::new();
    for nonce in nonces {
        let fields = match kind {
            "signed" => Some(fields(did, nonce)?),
            "forged" => Some(forged.clone()),
            _ => None,
        };
        let mut request =
            format!("POST /publish HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\n");
        if let Some(fields) = fields {
            request += &format!(
                "hn-audience: {}\r\nsignature-input: {}\r\nsignature: {}\r\n",
                fields.audience, fields.signature_input, fields.signature
            );
            if let Some((name, value)) = fields.proof {
                request += &format!("{name}: {value}\r\n");
            }
        }
        stream.write_all((request + "\r\n").as_bytes())?;
        statuses.push(answer(&mut answers)?);
    }
    Ok(statuses)
}

/// Reads an answer with a length, and gives its status.
fn answer(answers: &mut impl BufRead) -> Result<u16, Box<dyn Error>> {
    let (mut line, mut length) = (String::new(), 0);
    answers.read_line(&mut line)?;
    let status = line.split(' ').nth(1).ok_or("no status")?.parse()?;
    while line != "\r\n" {
        line.clear();
        if answers.read_line(&mut line)? == 0 {
            return Err("the answer broke off".into());
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    answers.read_exact(&mut vec![0; length])?;
    Ok(status)
}

/// Keeps `count` connections busy with headers that never end; one that is closed is opened again.
fn slow(host: SocketAddr, count: usize) -> Outcome {
    let open = || -> Result<TcpStream, Box<dyn Error>> {
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
            None,
        )?;
        rustix::net::bind(&socket, &SocketAddr::new(IpAddr::from([127, 0, 0, 2]), 0))?;
        rustix::net::connect(&socket, &host)?;
        let mut stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nx-slow: ")?;
        Ok(stream)
    };
    let mut streams: Vec<Option<TcpStream>> = (0..count).map(|_| open().ok()).collect();
    println!("{}", json!({"open": streams.iter().flatten().count()}));
    loop {
        std::thread::sleep(DRIP);
        for stream in &mut streams {
            let gone = stream
                .as_mut()
                .is_none_or(|stream| stream.write_all(b"x").is_err());
            if gone {
                *stream = open().ok();
            }
        }
    }
}

/// An honest client that makes a connection for each request, as one who comes anew does.
fn latency(host: &str, count: usize) -> Outcome {
    let mut taken = Vec::with_capacity(count);
    for _ in 0..count {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(host)?;
        let request = format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let status = answer(&mut BufReader::new(stream))?;
        if status != 200 {
            return Err(format!("the answer is {status}").into());
        }
        taken.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    taken.sort_by(f64::total_cmp);
    let at = |percent: usize| taken[(taken.len() - 1) * percent / 100];
    println!("{}", json!({"p50_ms": at(50), "p95_ms": at(95)}));
    Ok(())
}
