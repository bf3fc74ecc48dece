//! What every request passes before its handler: right host, not too many, and no panic leaves the request.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Uri;
use actix_web::http::header::{HOST, ORIGIN};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, web};
use futures_util::FutureExt;
use governor::{DefaultKeyedRateLimiter, Quota};
use url::Url;

use super::GatewayState;
use super::connections::{Answering, Attended, Connection};
use super::problem::Problem;
use crate::supervise::panic_text;

/// A client may use up so many seconds of its rate at once.
const BURST_SECONDS: u32 = 4;
/// Clients that are remembered before those that went quiet are forgotten.
const MAX_CLIENTS: usize = 10_000;

/// The path of the URL that was asked for, where it is not the path that is routed: signatures are over this one.
pub struct SentPath(pub String);

/// Who may ask, and as whom we answer.
pub struct Guard {
    hosts: BTreeSet<String>,
    public: Option<PublicBase>,
    /// Listening on every address: any address of ours is a good host.
    any_address: Option<u16>,
    /// By [`client_of`].
    limiter: Option<DefaultKeyedRateLimiter<IpAddr>>,
}

impl Guard {
    /// For a gateway at `listen`, also known as `public_url`; `rate` requests a second and client, 0 = no limit.
    #[must_use]
    pub fn new(listen: SocketAddr, public_url: Option<&Url>, rate: u32) -> Self {
        let port = listen.port();
        // `localhost` cannot be rebound to us by somebody else's DNS; a forwarded port shows another number.
        let mut hosts = BTreeSet::from([
            listen.to_string(),
            format!("localhost:{port}"),
            "localhost".to_owned(),
        ]);
        if port == 80 {
            hosts.insert(host_of(listen.ip()));
        }
        if let Some((url, host)) = public_url.and_then(|url| Some((url, url.host_str()?))) {
            // The default port may be written or left out.
            hosts.insert(
                url.port()
                    .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")),
            );
            hosts.extend(
                url.port_or_known_default()
                    .map(|port| format!("{host}:{port}")),
            );
        }
        let public = public_url.and_then(PublicBase::of);
        let limiter = NonZeroU32::new(rate).map(|rate| {
            let burst = rate.saturating_mul(NonZeroU32::MIN.saturating_add(BURST_SECONDS - 1));
            DefaultKeyedRateLimiter::keyed(Quota::per_second(rate).allow_burst(burst))
        });
        Self {
            hosts,
            public,
            any_address: listen.ip().is_unspecified().then_some(port),
            limiter,
        }
    }

    fn check(&self, request: &ServiceRequest) -> Result<(), Problem> {
        let host = host_asked(request);
        if !self.is_ours(host) {
            let detail = format!(
                "{:?} is neither the listen address, the public URL's, nor localhost",
                host
            );
            return Err(Problem::new("misdirected", detail));
        }
        self.check_origin(request)?;
        let (Some(limiter), Some(peer)) = (&self.limiter, request.peer_addr()) else {
            return Ok(());
        };
        if limiter.len() > MAX_CLIENTS {
            limiter.retain_recent();
        }
        limiter
            .check_key(&client_of(peer.ip()))
            .map_err(|_| Problem::new("rate_limited", "slow down"))
    }

    /// A page of another origin changes nothing here, whatever its visitor's browser adds to its requests (design 13).
    fn check_origin(&self, request: &ServiceRequest) -> Result<(), Problem> {
        let Some(origin) = request
            .headers()
            .get(ORIGIN)
            .filter(|_| !request.method().is_safe())
        else {
            return Ok(());
        };
        let authority = origin.to_str().ok().and_then(|origin| {
            origin
                .strip_prefix("http://")
                .or_else(|| origin.strip_prefix("https://"))
        });
        if authority.is_some_and(|authority| self.is_ours(authority)) {
            return Ok(());
        }
        let detail = format!("{origin:?} is not an origin of this node");
        Err(Problem::new("foreign_origin", detail))
    }

    /// Routes stand below the public URL's path as well. A proxy may have taken that path off; where it left `Host` as it
    /// was, the URL that was asked for had it all the same.
    fn route_below_base(&self, request: &mut ServiceRequest) {
        let Some(base) = &self.public else {
            return;
        };
        let path = request.uri().path();
        match path
            .strip_prefix(&base.path)
            .filter(|rest| rest.starts_with('/'))
        {
            Some(rest) => {
                let (sent, routed) = (path.to_owned(), rest.to_owned());
                if reroute(request, &routed).is_some() {
                    request.extensions_mut().insert(SentPath(sent));
                }
            }
            None if base.is_host(host_asked(request)) => {
                let sent = format!("{}{path}", base.path);
                request.extensions_mut().insert(SentPath(sent));
            }
            None => {}
        }
    }

    fn is_ours(&self, host: &str) -> bool {
        if self.hosts.contains(host) {
            return true;
        }
        if self.hosts.contains(&host.to_ascii_lowercase()) {
            return true;
        }
        let address = host.parse::<SocketAddr>().ok();
        self.any_address
            .is_some_and(|port| address.is_some_and(|a| a.port() == port))
    }
}

/// Where the public URL has a path: that path without a slash at its end, and the authorities that name the URL.
struct PublicBase {
    path: String,
    authorities: [String; 2],
}

impl PublicBase {
    fn of(url: &Url) -> Option<Self> {
        let path = url.path().trim_end_matches('/');
        let host = url.host_str()?;
        let port = url.port_or_known_default()?;
        (!path.is_empty()).then(|| Self {
            path: path.to_owned(),
            authorities: [url.authority().to_owned(), format!("{host}:{port}")],
        })
    }

    fn is_host(&self, host: &str) -> bool {
        self.authorities
            .iter()
            .any(|authority| authority.eq_ignore_ascii_case(host))
    }
}

/// The authority that was asked for; of absolute-form targets the one in the target (RFC 9112, 3.2.2).
fn host_asked(request: &ServiceRequest) -> &str {
    let header = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok());
    request
        .uri()
        .authority()
        .map(|a| a.as_str())
        .or(header)
        .unwrap_or_default()
}

/// Has the request routed as if `path` had been asked for.
fn reroute(request: &mut ServiceRequest, path: &str) -> Option<()> {
    let mut parts = request.uri().clone().into_parts();
    let target = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    parts.path_and_query = Some(target.parse().ok()?);
    let uri = Uri::from_parts(parts).ok()?;
    request.match_info_mut().get_mut().update(&uri);
    request.head_mut().uri = uri;
    Some(())
}

fn host_of(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

/// What counts as one client: an IPv4 address, also written as IPv6; of an IPv6 address the /64, all of which one
/// household has.
pub(super) fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

/// The middleware: guard, handler, count. A handler that panics answers 500 and harms nobody else.
pub async fn pass<B: MessageBody + Unpin>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<Attended<B>>, Error> {
    let connection = request.request().conn_data::<Arc<Connection>>();
    let answering = connection.map(Answering::on);
    let state = request.app_data::<web::Data<GatewayState>>().cloned();
    let guard = request.app_data::<web::Data<Guard>>().cloned();
    let refused = guard.as_ref().and_then(|guard| guard.check(&request).err());
    if let (Some(guard), None) = (&guard, &refused) {
        guard.route_below_base(&mut request);
    }
    let answer = match refused {
        Some(problem) => Err(problem.into()),
        // The request must not be kept meanwhile: the router wants it for itself alone.
        None => AssertUnwindSafe(next.call(request))
            .catch_unwind()
            .await
            .unwrap_or_else(|panic| {
                let reason = panic_text(panic.as_ref());
                tracing::error!(%reason, "a request handler panicked");
                Err(Problem::new("internal", "see the log of the node").into())
            }),
    };
    if let Some(state) = state {
        let status = match &answer {
            Ok(response) => response.status(),
            Err(error) => error.as_response_error().status_code(),
        };
        state.metrics.http_answered(status.as_u16());
    }
    Ok(answer?.map_body(|_, body| Attended::new(body, answering)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn guard(listen: &str, public: Option<&str>) -> Guard {
        Guard::new(
            listen.parse().unwrap(),
            public.map(|p| p.parse().unwrap()).as_ref(),
            0,
        )
    }

    #[test]
    fn a_client_is_an_ipv4_address_or_a_network_of_64_bits() {
        let of = |text: &str| client_of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_ne!(of("::ffff:192.0.2.1"), of("::ffff:192.0.2.2"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }

    #[test]
    fn only_our_own_hosts_are_answered() {
        let local = guard("127.0.0.1:7733", None);
        assert!(
            local.is_ours("127.0.0.1:7733")
                && local.is_ours("localhost:7733")
                && local.is_ours("LOCALHOST:7733")
        );
        for host in [
            "evil.example",
            "127.0.0.1:7734",
            "127.0.0.1",
            "",
            "10.0.0.1:7733",
        ] {
            assert!(!local.is_ours(host), "{host}");
        }
        let public = guard("0.0.0.0:7733", Some("https://alice.example.net"));
        assert!(public.is_ours("alice.example.net") && public.is_ours("alice.example.net:443"));
        assert!(public.is_ours("192.168.1.4:7733") && !public.is_ours("rebound.example:7733"));
    }
}
