//! Asking other nodes over HTTP: every answer bounded in bytes and time, no redirects, no proxies, and no
//! internal address unless the operator typed it (design 13). Where a node asks who it is, requests are signed.

mod signed;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hn_protocol::did::Did;
use hn_protocol::document::parse_cursor;
use hn_protocol::request::BodyProof;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    HeaderMap, HeaderName, IF_NONE_MATCH, LINK, RANGE,
};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use url::Url;

use self::signed::Gated;
pub use self::signed::{Signer, Taken};

/// What a node that recovers its own log says with its answers (`spec/http.md`).
pub const LOG_STATE: HeaderName = HeaderName::from_static("hn-log-state");
/// A connection that is not there within this is not there: nodes answer a SYN or they are off.
const CONNECT: Duration = Duration::from_secs(3);
/// Idle connections kept to one host: a pull uses one, a mirror a few.
const IDLE_PER_HOST: usize = 4;
/// How long an idle connection is kept: longer than the pull interval would only hold file descriptors.
const IDLE_FOR: Duration = Duration::from_secs(20);
/// A connection that brings nothing for so long is probed by the kernel: a machine that lost its power says nothing, and one
/// that is back knows nothing of a stream that was open.
const PROBE: Duration = Duration::from_secs(4);
/// After so many probes without an answer the connection is broken.
const PROBES: u32 = 4;
/// The slowest body that is waited for, in bytes a second: below it the peer counts as not answering.
const SLOWEST: u64 = 16 * 1024;
/// The most bytes of a problem document that are read to say why a peer refused.
const MAX_PROBLEM: usize = 16 * 1024;

/// Who wrote a URL, and so where it may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The operator typed it: any scheme and address.
    Operator,
    /// Somebody else wrote it: https to public addresses only; the local profile allows http and any address.
    Stranger,
}

/// Why there is no usable answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No connection, or it broke.
    #[error("no connection: {0}")]
    Connect(String),
    /// Too late, or too slow.
    #[error("no answer in time: {0}")]
    Timeout(&'static str),
    /// The answer sends us elsewhere; we do not go.
    #[error("the answer is a redirect ({0}), which is not followed")]
    Redirect(u16),
    /// More bytes than the route can have.
    #[error("the answer is longer than the {0} bytes that it may have")]
    TooLarge(usize),
    /// A compressed answer, which was not asked for.
    #[error("the answer has content-encoding {0:?}, which was not asked for")]
    Encoding(String),
    /// An HTTP error.
    #[error("the answer is {status}{detail}")]
    Status {
        /// The status code.
        status: u16,
        /// `: ` and what the problem document says, or nothing.
        detail: String,
    },
    /// 410: what is asked for was pruned there.
    #[error("pruned there: the first cursor is {first_cursor}")]
    Pruned {
        /// From where on it can be had.
        first_cursor: u64,
    },
    /// A URL that may not be asked.
    #[error("the URL is refused: {0}")]
    Url(String),
}

impl FetchError {
    /// A stable code for peer states.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Connect(_) => "no_connection",
            Self::Timeout(_) => "timeout",
            Self::Redirect(_) => "redirect",
            Self::TooLarge(_) => "answer_too_large",
            Self::Encoding(_) => "unexpected_encoding",
            Self::Status { .. } => "http_error",
            Self::Pruned { .. } => "pruned",
            Self::Url(_) => "url_refused",
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// 200 or 304.
    pub status: StatusCode,
    /// The body; empty for 304.
    pub body: Bytes,
    /// The query of the `rel="next"` link, when there is one.
    pub next: Option<String>,
    /// The strong entity tag.
    pub etag: Option<String>,
    /// Whether the publisher's node says that it is recovering its own log (`HN-Log-State`).
    pub recovering: bool,
}

/// The client side of HTTP, shared by all actors.
#[derive(Clone)]
pub struct Fetch {
    inner: Arc<Inner>,
    /// Whom signed requests are for; without one nothing is signed.
    audience: Option<Did>,
}

struct Inner {
    /// Allowed where a stranger's URL may lead to a private address (local profile).
    private_allowed: bool,
    patience: Duration,
    operator: OnceLock<Client>,
    stranger: OnceLock<Client>,
    signer: Option<Signer>,
    gated: Gated,
}

impl Fetch {
    /// `patience`: how long headers may take, and the head start of a slow body. Without a `signer` nothing is signed.
    #[must_use]
    pub fn new(private_allowed: bool, patience: Duration, signer: Option<Signer>) -> Self {
        let inner = Inner {
            private_allowed,
            patience,
            operator: OnceLock::new(),
            stranger: OnceLock::new(),
            signer,
            gated: Gated::default(),
        };
        Self {
            inner: Arc::new(inner),
            audience: None,
        }
    }

    /// GETs `url`, whole. `etag` becomes `If-None-Match`. Errors: everything but 200 and 304, more than `max` bytes, too slow.
    pub async fn get(
        &self,
        url: &Url,
        trust: Trust,
        etag: Option<&str>,
        max: usize,
    ) -> Result<Answer, FetchError> {
        let mut body = self.open(url, trust, etag).await?;
        let bytes = body.whole(max).await?;
        Ok(Answer {
            status: body.response.status(),
            next: next_query(body.response.headers()),
            etag: body
                .response
                .headers()
                .get(ETAG)
                .and_then(|v| v.to_str().ok())
                .map(str::to_owned),
            recovering: body
                .response
                .headers()
                .get(LOG_STATE)
                .is_some_and(|state| state.as_bytes() == b"recovering"),
            body: bytes,
        })
    }

    /// Starts a GET whose body is read in chunks. Errors: everything but 200 and 304.
    pub async fn open(
        &self,
        url: &Url,
        trust: Trust,
        etag: Option<&str>,
    ) -> Result<Body, FetchError> {
        let condition = etag.map(|etag| (IF_NONE_MATCH, etag.to_owned()));
        self.ask(Method::GET, url, trust, condition).await
    }

    /// Starts a GET of what follows the first `from` bytes; the answer may be 206, or 200 with everything. Errors:
    /// everything else; 416 is [`FetchError::Status`].
    pub async fn open_from(&self, url: &Url, trust: Trust, from: u64) -> Result<Body, FetchError> {
        let range = (from > 0).then(|| (RANGE, format!("bytes={from}-")));
        self.ask(Method::GET, url, trust, range).await
    }

    /// Asks with HEAD: the length that a GET would give, where the answer says it. Errors: everything but 200.
    pub async fn head(&self, url: &Url, trust: Trust) -> Result<Option<u64>, FetchError> {
        let answer = self.ask(Method::HEAD, url, trust, None).await?;
        // What the client knows of the body's length is that there is none.
        let length = answer.response.headers().get(CONTENT_LENGTH);
        Ok(length.and_then(|length| length.to_str().ok()?.parse().ok()))
    }

    /// Asks; where the answer is that only signed requests are read (401), once more with a signature, and from then on at
    /// once.
    async fn ask(
        &self,
        method: Method,
        url: &Url,
        trust: Trust,
        header: Option<(HeaderName, String)>,
    ) -> Result<Body, FetchError> {
        let is_range = header.as_ref().is_some_and(|(name, _)| *name == RANGE);
        let request = || -> Result<RequestBuilder, FetchError> {
            let request = self.request(method.clone(), url, trust)?;
            Ok(match &header {
                Some((name, value)) => request.header(name, value),
                None => request,
            })
        };
        let patience = self.inner.patience;
        let signs_at_once = self.is_gated(url);
        let mut first = request()?;
        if signs_at_once {
            first = self.sign(first, &method, url, &BodyProof::None)?;
        }
        let mut body = self.send(first, patience).await?;
        let asks_who = body.response.status() == StatusCode::UNAUTHORIZED;
        if asks_who && !signs_at_once && self.can_sign() {
            let signed = self.sign(request()?, &method, url, &BodyProof::None)?;
            body = self.send(signed, patience).await?;
            if body.response.status() != StatusCode::UNAUTHORIZED {
                self.remember_gated(url);
            }
        }
        match body.response.status() {
            StatusCode::OK | StatusCode::NOT_MODIFIED => Ok(body),
            StatusCode::PARTIAL_CONTENT if is_range => Ok(body),
            _ => Err(body.refusal().await),
        }
    }

    /// A request to a URL that may be asked. Errors: it may not.
    fn request(
        &self,
        method: Method,
        url: &Url,
        trust: Trust,
    ) -> Result<RequestBuilder, FetchError> {
        self.check(url, trust)?;
        let request = self.client(trust)?.request(method, url.clone());
        Ok(request.header(ACCEPT_ENCODING, "identity"))
    }

    /// Sends, and waits for headers. Errors: none in `allowed`, a redirect, a compressed answer.
    async fn send(&self, request: RequestBuilder, allowed: Duration) -> Result<Body, FetchError> {
        let response = tokio::time::timeout(allowed, request.send())
            .await
            .map_err(|_| FetchError::Timeout("no headers"))?
            .map_err(|e| connect_error(&e))?;
        let (started, patience) = (Instant::now(), self.inner.patience);
        let status = response.status();
        if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
            return Err(FetchError::Redirect(status.as_u16()));
        }
        let encoding = response.headers().get(CONTENT_ENCODING);
        if let Some(encoding) = encoding.filter(|encoding| encoding.as_bytes() != b"identity") {
            return Err(FetchError::Encoding(
                String::from_utf8_lossy(encoding.as_bytes()).into(),
            ));
        }
        Ok(Body {
            response,
            started,
            received: 0,
            patience,
        })
    }

    fn check(&self, url: &Url, trust: Trust) -> Result<(), FetchError> {
        let host = url
            .host()
            .ok_or_else(|| FetchError::Url("it names no host".into()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(FetchError::Url(format!(
                "{}: is neither http nor https",
                url.scheme()
            )));
        }
        if trust == Trust::Operator || self.inner.private_allowed {
            return Ok(());
        }
        if url.scheme() != "https" {
            return Err(FetchError::Url(
                "a URL from somebody else must be https".into(),
            ));
        }
        // A literal address never reaches the resolver.
        let address = match host {
            url::Host::Ipv4(v4) => Some(IpAddr::V4(v4)),
            url::Host::Ipv6(v6) => Some(IpAddr::V6(v6)),
            url::Host::Domain(_) => None,
        };
        match address {
            Some(ip) if !is_public(ip) => {
                Err(FetchError::Url(format!("{ip} is not a public address")))
            }
            _ => Ok(()),
        }
    }

    fn client(&self, trust: Trust) -> Result<Client, FetchError> {
        let guarded = trust == Trust::Stranger && !self.inner.private_allowed;
        let slot = if guarded {
            &self.inner.stranger
        } else {
            &self.inner.operator
        };
        if let Some(client) = slot.get() {
            return Ok(client.clone());
        }
        let mut builder = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT)
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .pool_idle_timeout(IDLE_FOR)
            .tcp_keepalive(PROBE)
            .tcp_keepalive_interval(PROBE)
            .tcp_keepalive_retries(PROBES)
            .user_agent(concat!("hn/", env!("CARGO_PKG_VERSION")));
        if guarded {
            builder = builder.dns_resolver(Arc::new(PublicOnly));
        }
        let client = builder
            .build()
            .map_err(|e| FetchError::Connect(e.to_string()))?;
        Ok(slot.get_or_init(|| client).clone())
    }
}

/// A body that is being read.
pub struct Body {
    response: Response,
    started: Instant,
    received: u64,
    patience: Duration,
}

impl Body {
    /// The length that the answer announces.
    #[must_use]
    pub fn announced(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// Of a 206: the first byte that comes, the last one, and the length of the whole, as `Content-Range` says.
    #[must_use]
    pub fn range(&self) -> Option<(u64, u64, u64)> {
        let range = self.response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
        let (span, length) = range.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = span.split_once('-')?;
        Some((
            first.parse().ok()?,
            last.parse().ok()?,
            length.parse().ok()?,
        ))
    }

    /// Whether it is only what was asked for of the whole (206).
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.response.status() == StatusCode::PARTIAL_CONTENT
    }

    /// The media type, without parameters.
    #[must_use]
    pub fn media_type(&self) -> &str {
        let value = self.response.headers().get(CONTENT_TYPE);
        let value = value.and_then(|value| value.to_str().ok());
        let media = value.and_then(|value| value.split(';').next());
        media.unwrap_or_default().trim()
    }

    /// The query of the `rel="next"` link, when there is one.
    #[must_use]
    pub fn next(&self) -> Option<String> {
        next_query(self.response.headers())
    }

    /// The next bytes; `None` at the end. Errors: broken, or slower than [`SLOWEST`] beyond the patience.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        let allowed = self.patience + Duration::from_secs(self.received / SLOWEST);
        let left = allowed.saturating_sub(self.started.elapsed());
        let chunk = tokio::time::timeout(left, self.response.chunk())
            .await
            .map_err(|_| FetchError::Timeout("the body comes too slowly"))?
            .map_err(|e| connect_error(&e))?;
        self.received += chunk.as_ref().map_or(0, |c| c.len() as u64);
        Ok(chunk)
    }

    /// The next bytes of an answer that has no end; `None` where it ends all the same. Errors: broken, or nothing came
    /// for `silence`.
    pub async fn chunk_within(&mut self, silence: Duration) -> Result<Option<Bytes>, FetchError> {
        tokio::time::timeout(silence, self.response.chunk())
            .await
            .map_err(|_| FetchError::Timeout("the stream is silent"))?
            .map_err(|e| connect_error(&e))
    }

    /// Why there is no success, as the answer says it.
    async fn refusal(mut self) -> FetchError {
        let status = self.response.status();
        let problem = self.problem().await;
        let first = problem.get("first_cursor").and_then(|v| v.as_str());
        if let Some(first_cursor) = first
            .and_then(parse_cursor)
            .filter(|_| status == StatusCode::GONE)
        {
            return FetchError::Pruned { first_cursor };
        }
        FetchError::Status {
            status: status.as_u16(),
            detail: said(&problem),
        }
    }

    /// The rest of it, whole. Errors: more than `max` bytes, broken, too slow.
    async fn whole(&mut self, max: usize) -> Result<Bytes, FetchError> {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if bytes.len() + chunk.len() > max {
                return Err(FetchError::TooLarge(max));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    /// A problem document, or null; a peer's text is never more than a hint.
    async fn problem(&mut self) -> Value {
        let mut bytes = Vec::new();
        while let Ok(Some(chunk)) = self.chunk().await {
            if bytes.len() + chunk.len() > MAX_PROBLEM {
                break;
            }
            bytes.extend_from_slice(&chunk);
        }
        hn_protocol::canonical::parse(&bytes).unwrap_or_default()
    }
}

/// What a problem document says, shortened.
fn said(problem: &Value) -> String {
    let text = problem
        .get("detail")
        .or_else(|| problem.get("title"))
        .and_then(|v| v.as_str());
    let plain = |t: &str| {
        t.chars()
            .filter(|c| !c.is_control())
            .take(200)
            .collect::<String>()
    };
    text.map(|t| format!(": {}", plain(t))).unwrap_or_default()
}

fn connect_error(error: &reqwest::Error) -> FetchError {
    if error.is_timeout() {
        return FetchError::Timeout("no connection");
    }
    // The innermost cause says what happened ("connection refused"); the outer ones repeat the URL.
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    FetchError::Connect(cause.to_string())
}

/// The query of `<?…>; rel="next"`: only a query-only relative reference is one of ours (design 4).
fn next_query(headers: &HeaderMap) -> Option<String> {
    let link = headers.get(LINK)?.to_str().ok()?;
    let (target, parameters) = link.trim().strip_prefix("<?")?.split_once('>')?;
    parameters
        .contains("rel=\"next\"")
        .then(|| target.to_owned())
}

/// Resolves names and gives out public addresses alone, so that the address that was checked is the one dialled.
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let (public, refused): (Vec<SocketAddr>, Vec<_>) =
                found.partition(|a| is_public(a.ip()));
            if public.is_empty() {
                let reason = format!(
                    "{} has no public address ({} refused)",
                    name.as_str(),
                    refused.len()
                );
                return Err(reason.into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is one of the public Internet's: not loopback, private, link-local (metadata services
/// among them), CGNAT, documentation, benchmark, multicast or reserved, nor an IPv6 wrapping of such or of any IPv4.
#[must_use]
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_documentation()
        || ip.is_broadcast()
        || a == 0
        || (a == 100 && b & 0xc0 == 64) // CGNAT, RFC 6598
        || (a == 192 && b == 0 && c == 0) // protocol assignments, RFC 6890
        || (a == 192 && b == 88 && c == 99) // 6to4 relays, RFC 7526
        || (a == 198 && b & 0xfe == 18) // benchmarks, RFC 2544
        || a >= 224) // multicast, reserved
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    // Only 2000::/3 is global unicast: this alone refuses ::1, v4-mapped, NAT64, fc00::/7, fe80::/10, ff00::/8.
    let [a, b, ..] = ip.segments();
    let global = a & 0xe000 == 0x2000;
    let teredo_or_special = a == 0x2001 && b < 0x0200;
    let documentation = (a == 0x2001 && b == 0x0db8) || (a == 0x3fff && b < 0x1000);
    let six_to_four = a == 0x2002;
    global && !teredo_or_special && !documentation && !six_to_four
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for ip in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2002:808:808::1",
            "2001::1",
            "2001:db8::1",
            "ff02::1",
        ] {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "8.8.8.8",
            "100.128.0.1",
            "172.32.0.1",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn a_strangers_url_is_checked_and_the_operators_is_not() {
        let fetch = Fetch::new(false, Duration::from_secs(1), None);
        for url in [
            "http://example.net/",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
        ] {
            let url = Url::parse(url).unwrap();
            assert!(fetch.check(&url, Trust::Stranger).is_err(), "{url}");
            assert!(fetch.check(&url, Trust::Operator).is_ok(), "{url}");
        }
        assert!(
            fetch
                .check(
                    &Url::parse("https://example.net/").unwrap(),
                    Trust::Stranger
                )
                .is_ok()
        );
        assert!(
            fetch
                .check(&Url::parse("ftp://example.net/").unwrap(), Trust::Operator)
                .is_err()
        );
    }

    #[test]
    fn only_a_query_only_next_link_counts() {
        let next = |link: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LINK, link.parse().unwrap());
            next_query(&headers)
        };
        assert_eq!(
            next("<?cursor=5>; rel=\"next\"").as_deref(),
            Some("cursor=5")
        );
        assert_eq!(next("<http://10.0.0.1/?cursor=5>; rel=\"next\""), None);
        assert_eq!(next("<?cursor=5>; rel=\"prev\""), None);
    }
}
