//! What a user gets, seen from outside: the built `hn`, real files, real sockets.
//!
//! | module | proves |
//! |---|---|
//! | `federation` | nodes publish, follow, mirror, go away and come back |
//! | `refusal` | what a hostile peer says is refused, and costs nothing that was accepted |
//! | `mirror` | artifacts come many at once, from whoever has them, within their bounds |
//! | `holders` | what a peer says of the logs of others is judged log by log |
//! | `forks` | a publisher that signs two logs is proved, told of, and ended by the operator alone |
//! | `friends` | an invite survives everything, and the operator's word is what the roster says |
//! | `own_log` | a home from an old disk is completed by its followers before it signs |
//! | `bodies` | what no parser should read is refused on the socket too |
//! | `crash` | a crash at any point loses nothing that was acknowledged |
//! | `recovery` | what crashes and old copies leave behind is mended without a hand |
//! | `supervision` | a panic in an actor is the affair of one request |
//! | `gateway` | the HTTP contract of `spec/http.md` |
//! | `signed` | who asks is known, and nobody is taken for another |
//! | `revoked` | a DID that was revoked has ended everywhere, for its thief as well |
//! | `slow` | slow and quiet clients: what they take is bounded, and others are answered |
//! | `callers` | a client in another language is taken, and a fuzzer finds nothing that `/openapi.json` does not say |
//! | `cli_contract` | the commands, their JSON and their exit codes |
//! | `key_shares` | any few shares bring a key back, each bad one is named, and no wrong key comes out |
//! | `prune` | a holder forgets a log's beginning, and what it keeps is whole and proves |
//! | `policy` | gates decide, say why, and close when their policy is not to be trusted |
//! | `proof` | any holder proves any entry, and a wrong node never makes a wrong proof |
//! | `hosted` | logs of publishers without a server are taken from them alone, and served while they sleep |
//! | `home` | one home: one node, its version, its disk, its configuration |
//! | `independent` | documents verify with tools that are not ours |
//! | `watch` | news are there at once, and who abuses their streams is hung up on |
//! | `stranger` | a publisher made from the spec alone is followed, and each of its lies refused |
//!
//! `HN_BIN` names another binary, `HN_SEED` repeats a run of chance.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod bodies;
mod callers;
mod cli_contract;
mod crash;
mod federation;
mod forks;
mod friends;
mod gateway;
mod holders;
mod home;
mod hosted;
mod independent;
mod key_shares;
mod mirror;
mod own_log;
mod policy;
mod proof;
mod prune;
mod recovery;
mod refusal;
mod revoked;
mod signed;
mod slow;
mod stranger;
mod supervision;
mod watch;
