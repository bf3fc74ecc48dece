//! Which `hn` is under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The binary under test: `HN_BIN`, or the one of this build beside the test.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("HN_BIN") {
        Some(path) => PathBuf::from(path),
        None => built(),
    })
}

/// `target/<profile>/hn`, brought up to date: `cargo test` itself builds no other package's binary.
fn built() -> PathBuf {
    let test = std::env::current_exe().expect("the test knows itself");
    let folder = test
        .ancestors()
        .nth(2)
        .expect("tests stand in target/<profile>/deps");
    let release = folder.ends_with("release");
    let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    cargo
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .args(["build", "--quiet", "--workspace", "--bin", "hn"]);
    if release {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo can be started");
    assert!(
        status.success(),
        "hn could not be built; set HN_BIN to a built one"
    );
    folder.join("hn")
}
