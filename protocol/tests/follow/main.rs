//! Following a log: what a page may say, and every lie that is refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
mod documents;
#[path = "../common/forge.rs"]
mod forge;
mod forks;
mod honest;
mod laws;
mod lies;
mod revoked;
mod scene;
