//! What publishing is measured against: files created, written and fsynced one after the other.
//!
//! `fsync_files COUNT BYTES FOLDER` prints the seconds it took.

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "fsync_files COUNT BYTES FOLDER";
    let count: usize = args.next().ok_or(usage)?.parse()?;
    let bytes: usize = args.next().ok_or(usage)?.parse()?;
    let folder = PathBuf::from(args.next().ok_or(usage)?);
    std::fs::create_dir_all(&folder)?;
    let content = vec![0x5a; bytes];
    let begun = Instant::now();
    for n in 0..count {
        let mut file = File::create_new(folder.join(n.to_string()))?;
        file.write_all(&content)?;
        file.sync_all()?;
    }
    File::open(&folder)?.sync_all()?;
    println!("{:.6}", begun.elapsed().as_secs_f64());
    Ok(())
}
