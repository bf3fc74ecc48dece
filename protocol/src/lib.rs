//! The vocabulary of Human.Net: documents, proofs and decisions, without any IO.
//!
//! | module | idea |
//! |---|---|
//! | [`did`] | a DID *is* an Ed25519 key; whoever has the DID can verify |
//! | [`canonical`] | JSON parsed strictly and written canonically (RFC 8785) |
//! | [`sign`] | `Signed<T>`: cannot be built unverified, keeps the bytes |
//! | [`document`] | one document type a file |
//! | [`merkle`] | RFC 6962 trees over BLAKE3: roots, frontiers, inclusion proofs |
//! | [`log`] | an append-only signed log: following one, and writing one's own |
//! | [`proof`] | that an entry stands in a log, for a reader who has only the DID |
//! | [`policy`] | gates: who may do what, decided by facts, explained and replayed |
//! | [`request`] | who signed an HTTP request (RFC 9421) |
//! | [`recovery`] | whether our own log may be signed upon |
//! | [`federation`] | which peer is asked when, and what its state is |
//! | [`key_share`] | a key as shares for other people: splitting it, and bringing it back |
//! | [`invite`] | invitations: the line that people send, and both sides of an introduction |
//! | [`invariants`] | the numbered laws of `spec/`, used by every level of test |
//! | [`time`], [`digest`] | values |
//!
//! Nothing here reads a clock, a disk, a socket or a global source of randomness: those come in as arguments.

pub mod canonical;
pub mod did;
pub mod digest;
pub mod document;
pub mod federation;
pub mod invariants;
pub mod invite;
pub mod key_share;
pub mod log;
pub mod merkle;
pub mod policy;
pub mod proof;
pub mod recovery;
pub mod request;
pub mod sign;
pub mod time;
