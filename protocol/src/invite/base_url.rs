//! A plain base URL as text: what routes are appended to. Nothing here dials it.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The most bytes of a base URL: longer ones do not fit into a line that people send, or a QR code.
pub const MAX_URL: usize = 512;
/// The longest host name (RFC 1035, 2.3.4).
const MAX_HOST: usize = 253;

/// `http://` or `https://`, a host, perhaps a port and a path; no slash at its end.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseUrl(String);

/// Why a text is no base URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BaseUrlError {
    /// More than [`MAX_URL`] bytes.
    #[error("it has more than {MAX_URL} bytes")]
    TooLong,
    /// A blank, a control character, or anything else that has to be escaped in a URL.
    #[error("it has a character that no URL has as it is, such as a blank")]
    Character,
    /// Neither `http://` nor `https://`, in lower case.
    #[error("it begins with neither https:// nor http://")]
    Scheme,
    /// User name or password.
    #[error("it names a user; who asks is told by a signature")]
    User,
    /// `?` or `#`.
    #[error("it has a query or a fragment, and routes are appended to it")]
    Query,
    /// No host, or none that can be one.
    #[error("it names no host")]
    Host,
    /// Not 1 to 65535 in plain decimal.
    #[error("its port is not a number from 1 to 65535")]
    Port,
    /// `.` or `..` in the path.
    #[error("its path climbs")]
    Path,
}

impl BaseUrl {
    /// The text, without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for BaseUrl {
    type Err = BaseUrlError;

    fn from_str(text: &str) -> Result<Self, BaseUrlError> {
        if text.len() > MAX_URL {
            return Err(BaseUrlError::TooLong);
        }
        if !text.bytes().all(is_plain) {
            return Err(BaseUrlError::Character);
        }
        let rest = text
            .strip_prefix("https://")
            .or_else(|| text.strip_prefix("http://"))
            .ok_or(BaseUrlError::Scheme)?;
        if rest.contains(['?', '#']) {
            return Err(BaseUrlError::Query);
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        check_authority(authority)?;
        if path.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(BaseUrlError::Path);
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}

/// What a URL may have as it is (RFC 3986, 2.2 and 2.3), and `%`.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte)
}

fn check_authority(authority: &str) -> Result<(), BaseUrlError> {
    if authority.contains('@') {
        return Err(BaseUrlError::User);
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(BaseUrlError::Host)?;
            address
                .parse::<Ipv6Addr>()
                .map_err(|_| BaseUrlError::Host)?;
            return check_port(port);
        }
        None => authority
            .find(':')
            .map_or((authority, ""), |at| authority.split_at(at)),
    };
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    // A dot at the end only says that the name is whole.
    let name = host.strip_suffix('.').unwrap_or(host);
    if host.len() > MAX_HOST || !name.split('.').all(label) {
        return Err(BaseUrlError::Host);
    }
    check_port(port)
}

/// Nothing, or `:` and a port.
fn check_port(text: &str) -> Result<(), BaseUrlError> {
    if text.is_empty() {
        return Ok(());
    }
    let digits = text.strip_prefix(':').ok_or(BaseUrlError::Host)?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    match digits.parse::<u16>() {
        Ok(_) if plain => Ok(()),
        _ => Err(BaseUrlError::Port),
    }
}

impl Serialize for BaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for BaseUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}
