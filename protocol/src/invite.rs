//! Invitations (design 7, 10): one line that a person can send by chat, and what becomes of it on both sides.
//!
//! | part | idea |
//! |---|---|
//! | [`Invite`] | `<did>=<base URL>#<token>`: the TXT record of design 8 with a secret behind it |
//! | [`InviteBook`] | the inviter's side: open invites, who came with one, who asks to be a friend |
//! | [`Introductions`] | the invited side: to whom we introduce ourselves, and what they said |
//!
//! The line is a bearer secret until somebody has come with it: the inviter keeps the BLAKE3 of the token alone.

mod base_url;
mod book;
mod introductions;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use self::base_url::{BaseUrl, BaseUrlError, MAX_URL};
pub use self::book::{
    FriendRequest, Introduced, Introduction, InviteBook, InviteRefusal, MAX_INVITES, MAX_LIFE,
    MAX_REQUESTS, OpenInvite,
};
pub use self::introductions::{
    Agenda, Introducing, Introductions, IntroductionsFull, MAX_INTRODUCTIONS, Reply, Stage,
};
use crate::did::{Did, DidError};
use crate::digest::Digest;

/// Random bytes in a token: nobody guesses 128 bits, and the line stays short enough for a QR code.
pub const TOKEN_BYTES: usize = 16;
/// Characters of a token as text: 16 bytes in unpadded base64url.
const TOKEN_TEXT: usize = 22;
/// The longest line worth reading: a DID, a URL, a token, and the two marks between them.
pub const MAX_INVITE: usize = 64 + 1 + MAX_URL + 1 + TOKEN_TEXT;

/// The secret of an invite. Never shown by `Debug`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InviteToken([u8; TOKEN_BYTES]);

/// The text is not 22 characters of unpadded base64url, in their one spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token is {TOKEN_TEXT} characters of unpadded base64url")]
pub struct TokenError;

impl InviteToken {
    /// Takes bytes that came from a cryptographic random source.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; TOKEN_BYTES]) -> Self {
        Self(bytes)
    }

    /// What the inviter keeps of it: BLAKE3 of the bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }
}

impl fmt::Display for InviteToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for InviteToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InviteToken(…)")
    }
}

impl FromStr for InviteToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        if text.len() != TOKEN_TEXT {
            return Err(TokenError);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError)?;
        bytes.try_into().map(Self).map_err(|_| TokenError)
    }
}

impl Serialize for InviteToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for InviteToken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// An invitation as it is sent: who invites, where they are, and what proves that one was invited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// Who invites.
    pub did: Did,
    /// The base URL of their gateway.
    pub url: BaseUrl,
    /// The secret.
    pub token: InviteToken,
}

/// Why a text is no invitation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InviteTextError {
    /// More than [`MAX_INVITE`] bytes.
    #[error("an invite has at most {MAX_INVITE} characters, this has {0}")]
    TooLong(usize),
    /// No `=` behind a DID.
    #[error("an invite is one line, did:hn:…=https://…#…, and this has no `=` behind the DID")]
    NoUrl,
    /// No `#`: the line was cut off, or it is a TXT record.
    #[error("the end is missing: an invite ends with # and a token")]
    NoToken,
    /// What stands before the `=` is no DID.
    #[error("before the `=`: {0}")]
    Did(#[from] DidError),
    /// What stands between is no base URL.
    #[error("the URL: {0}")]
    Url(#[from] BaseUrlError),
    /// What stands behind the `#` is no token.
    #[error("behind the `#`: {0}; was the line cut off?")]
    Token(#[from] TokenError),
}

impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}#{}", self.did, self.url, self.token)
    }
}

impl FromStr for Invite {
    type Err = InviteTextError;

    fn from_str(text: &str) -> Result<Self, InviteTextError> {
        if text.len() > MAX_INVITE {
            return Err(InviteTextError::TooLong(text.len()));
        }
        // A DID has no `=`, and neither a base URL nor a token has a `#`.
        let (did, rest) = text.split_once('=').ok_or(InviteTextError::NoUrl)?;
        let (url, token) = rest.split_once('#').ok_or(InviteTextError::NoToken)?;
        Ok(Self {
            did: did.parse()?,
            url: url.parse()?,
            token: token.parse()?,
        })
    }
}
