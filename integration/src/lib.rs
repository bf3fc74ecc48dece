//! Drives the built `hn` over real files and real sockets.
//!
//! | module | idea |
//! |---|---|
//! | [`binary`] | which `hn` is under test |
//! | [`caller`] | somebody with a key who asks, and can break one rule at a time |
//! | [`cluster`] | alice, bob, carol: a home in a temporary folder, the built binary, the wire |
//! | [`net`] | a loopback address of its own for each node, and clients |
//! | [`copy`] | homes that are copied, wiped and put back |
//! | [`log`] | a log as a stranger reads it from a node, verified with `hn-protocol` alone |
//! | [`converge`] | waits with a bound that say, when missed, who differs |
//! | [`fault`] | what is done to a node, as data, drawn from a seed that a failure prints |
//! | [`holder`] | mallory: she passes on logs as they are, and gives artifacts as she likes |
//! | [`hostile`] | eve: a publisher with a real key and a real socket, who lies |
//! | [`stranger`] | a publisher that shares no code with ours, made from `spec/` alone |
//!
//! A harness ends a test by a panic that carries the sentence that did not hold; a node that is dropped during one
//! prints the last it said.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "this crate is tests: what cannot go on fails the test"
)]

pub mod binary;
pub mod caller;
pub mod cluster;
pub mod converge;
pub mod copy;
pub mod fault;
pub mod holder;
pub mod hostile;
pub mod log;
pub mod net;
pub mod stranger;
