//! What mirroring is measured against: one request after the other on a connection that stays, each artifact hashed
//! and durable under its name (temp, fsync, rename, fsync of the folder) before the next is asked for.
//!
//! `one_by_one HOST:PORT FOLDER < DIGESTS` prints the seconds it took.

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Instant;

use hn_protocol::digest::Digest;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "one_by_one HOST:PORT FOLDER < DIGESTS";
    let host = args.next().ok_or(usage)?;
    let folder = PathBuf::from(args.next().ok_or(usage)?);
    fs::create_dir_all(&folder)?;
    let digests: Vec<String> = std::io::stdin().lines().collect::<Result<_, _>>()?;
    let directory = File::open(&folder)?;
    let begun = Instant::now();
    let mut stream = TcpStream::connect(&host)?;
    stream.set_nodelay(true)?;
    let mut answers = BufReader::new(stream.try_clone()?);
    for digest in &digests {
        let request = format!("GET /artifact/{digest} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let bytes = body(&mut answers)?;
        if Digest::of(&bytes).to_string() != *digest {
            return Err(format!("{digest} came as other bytes").into());
        }
        let temp = folder.join("temp");
        let mut file = File::create_new(&temp)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temp, folder.join(digest))?;
        directory.sync_all()?;
    }
    println!("{:.6}", begun.elapsed().as_secs_f64());
    Ok(())
}

/// The body of a 200 with a length.
fn body(answers: &mut impl BufRead) -> Result<Vec<u8>, Box<dyn Error>> {
    let (mut line, mut length) = (String::new(), None);
    answers.read_line(&mut line)?;
    if !line.starts_with("HTTP/1.1 200") {
        return Err(format!("the answer is {line:?}").into());
    }
    while line != "\r\n" {
        line.clear();
        answers.read_line(&mut line)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = Some(value.trim().parse()?);
        }
    }
    let mut bytes = vec![0; length.ok_or("an answer without a length")?];
    answers.read_exact(&mut bytes)?;
    Ok(bytes)
}
