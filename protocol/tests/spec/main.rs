//! The pages of `spec/` are what the code does: worked examples, limits and refusals are made anew from fixed
//! seeds and compared. `HN_SPEC_WRITE=1 cargo test -p hn-protocol --test spec` writes them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
mod examples;
#[path = "../common/forge.rs"]
mod forge;
mod key_shares;
mod limits;
mod refuse;
mod requests;
mod sources;

use std::path::PathBuf;

/// `spec/<name>`.
fn spec(name: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("../spec").join(name)
}

fn page(name: &str) -> String {
    std::fs::read_to_string(spec(name)).unwrap_or_else(|e| panic!("spec/{name}: {e}"))
}

/// Whether `spec/<name>` says what the code makes; rewrites it instead where that is asked for.
fn promised(name: &str, made: &str) {
    if std::env::var_os("HN_SPEC_WRITE").is_some() {
        std::fs::create_dir_all(spec(name).parent().unwrap()).unwrap();
        std::fs::write(spec(name), made).unwrap();
    }
    assert!(
        page(name) == made,
        "spec/{name} is not what the code makes; look at the change, then \
         HN_SPEC_WRITE=1 cargo test -p hn-protocol --test spec"
    );
}
