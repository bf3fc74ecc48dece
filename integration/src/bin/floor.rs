//! The floor of following, on one core and without IO: parse, RFC 8785, BLAKE3 and one Ed25519 verification a slice,
//! over the very bytes that a node serves. Plain library calls, none of the node's own code beside the key.
//!
//! `floor FILE` reads pages as NDJSON and prints `entries slices seconds`, the best of five runs.

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hn_protocol::canonical;
use hn_protocol::did::Did;
use hn_protocol::digest::Digest;
use serde_json::Value;

const RUNS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).ok_or("floor FILE")?;
    let bytes = std::fs::read(file)?;
    let lines: Vec<&[u8]> = bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .collect();
    let mut best = Duration::MAX;
    let mut counted = (0, 0);
    for _ in 0..RUNS {
        let begun = Instant::now();
        counted = (0, 0);
        for line in &lines {
            let entries = verify(line)?;
            counted = (counted.0 + entries, counted.1 + usize::from(entries > 0));
        }
        best = best.min(begun.elapsed());
    }
    println!("{} {} {:.6}", counted.0, counted.1, best.as_secs_f64());
    Ok(())
}

/// Verifies one line and counts its entries; a presence has none.
fn verify(line: &[u8]) -> Result<usize, Box<dyn Error>> {
    let mut document: Value = serde_json::from_slice(line)?;
    let object = document.as_object_mut().ok_or("no object")?;
    let signature = object.remove("signature").ok_or("no signature")?;
    let entries = object
        .get("entries")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    let signer = object.get("publisher").or_else(|| object.get("did"));
    let signer: Did = signer.and_then(Value::as_str).ok_or("no signer")?.parse()?;
    let signed = canonical::to_vec(&document)?;
    black_box(Digest::of(&signed));
    let encoded = signature
        .as_str()
        .and_then(|s| s.strip_prefix("ed25519:"))
        .ok_or("no signature")?;
    let raw: [u8; 64] = URL_SAFE_NO_PAD
        .decode(encoded)?
        .try_into()
        .map_err(|_| "no signature")?;
    // Presences are a handful beside the slices; their signatures are left out, so that the floor is no lower than said.
    if entries > 0 && !signer.verifies(&signed, &raw) {
        return Err("a wrong signature".into());
    }
    Ok(entries)
}
