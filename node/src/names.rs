//! The address book: which alias stands for which DID. Its pages are the own identities and the roster.

use std::collections::BTreeMap;

use hn_actors::keyring::Keyring;
use hn_protocol::did::Did;
use serde_json::Value;

use crate::cli::Context;
use crate::cli::id::parse_alias;
use crate::cli::output::{self, CliError};
use crate::client::Admin;

/// Aliases and DIDs of one home. An own identity wins over a peer of the same alias.
#[derive(Debug, Default)]
pub struct Names {
    by_alias: BTreeMap<String, String>,
    by_did: BTreeMap<String, String>,
}

impl Names {
    /// Own identities and the roster as the node holds it.
    pub async fn load(ctx: &Context, admin: &Admin) -> Result<Self, CliError> {
        Ok(Self::of(ctx, &admin.get("/admin/federation/peers").await?))
    }

    /// Own identities and the peers of an answer that has them (`peers[].did`, `peers[].alias`). A keyring that can't
    /// be read only costs the names: whoever needs the keys will say so.
    pub fn of(ctx: &Context, peers: &Value) -> Self {
        let mut names = Self::default();
        for peer in peers["peers"].as_array().into_iter().flatten() {
            if let (Some(did), Some(alias)) = (peer["did"].as_str(), peer["alias"].as_str()) {
                names.add(did, alias);
            }
        }
        let own = ctx
            .home()
            .ok()
            .and_then(|home| Keyring::open(&home).ok()?.list().ok());
        for identity in own.unwrap_or_default() {
            names.add(&identity.did.to_string(), &identity.alias);
        }
        names
    }

    fn add(&mut self, did: &str, alias: &str) {
        self.by_alias.insert(alias.to_owned(), did.to_owned());
        self.by_did.insert(did.to_owned(), alias.to_owned());
    }

    /// The DID of a DID or alias. Errors: usage for what has the form of neither; an alias that nobody has.
    pub fn did(&self, text: &str) -> Result<String, CliError> {
        if text.starts_with("did:") {
            let did: Did = text.parse().map_err(|error| {
                CliError::usage("bad_did", format_args!("{text}: {error}"))
                    .next("write did:hn:z6Mk…, as `hn id get` prints it")
            })?;
            return Ok(did.to_string());
        }
        // The roster is a person's file, so an alias there may have a form that we would not give.
        if let Some(did) = self.by_alias.get(text) {
            return Ok(did.clone());
        }
        parse_alias(text).map_err(|error| {
            CliError::usage(
                "bad_alias",
                format_args!("`{text}` is neither a DID nor an alias: {error}"),
            )
            .next(
                "write did:hn:z6Mk…, or an alias that `hn mcp federate list` or `hn id list` shows",
            )
        })?;
        Err(CliError::failed(
            "unknown_alias",
            format_args!("nobody is known as `{text}` here"),
        )
        .next("`hn mcp federate list` and `hn id list` show who is; or write the DID"))
    }

    /// `bob (did:hn:z6Mk…Xy)`, or the whole DID of somebody without a name.
    pub fn show(&self, did: &str) -> String {
        output::name(did, self.by_did.get(did).map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const BOB: &str = "did:hn:z6Mko9hTggMwjSTEaJaPUfE6tqcy2xvU6BnNq3e3o8qVBiyH";

    #[test]
    fn a_name_is_as_good_as_a_did_and_what_is_neither_is_said() {
        let mut names = Names::default();
        names.add(BOB, "bob");
        assert_eq!(names.did("bob").unwrap(), BOB);
        assert_eq!(names.did(BOB).unwrap(), BOB);
        assert_eq!(names.show(BOB), "bob (did:hn:z6Mko…BiyH)");
        assert_eq!(names.did("carol").unwrap_err().code(), "unknown_alias");
        assert_eq!(names.did("did:hn:bob").unwrap_err().code(), "bad_did");
        assert_eq!(names.did("../bob").unwrap_err().code(), "bad_alias");
    }
}
