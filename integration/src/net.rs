//! What each node of a test has of the network: a loopback address, and clients that remember no connection.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use reqwest::Client;

/// For any answer over HTTP.
const ANSWER: Duration = Duration::from_secs(30);

/// A client for a TCP gateway, or for the socket at `path`. No pool: a killed node's connections are no news.
pub fn client(path: Option<&Path>) -> Client {
    static PROVIDER: Once = Once::new();
    // reqwest wants a TLS provider even where only http is spoken.
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let builder = Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(0)
        .redirect(reqwest::redirect::Policy::none())
        .timeout(ANSWER);
    match path {
        Some(path) => builder.unix_socket(path),
        None => builder,
    }
    .build()
    .expect("a client can be built")
}

/// A loopback address that no other node of this machine's tests has.
pub fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let pid = std::process::id();
    // 24 bits of host: 13 of the process, 11 of the node; never x.x.x.0 or .255, and never 127.0.0.x.
    let byte = |n: u32| u8::try_from(n & 0xff).expect("a byte");
    Ipv4Addr::new(
        127,
        byte(1 + (pid >> 4) % 250),
        byte(((pid & 0xf) << 4) | ((n / 250) & 0xf)),
        byte(1 + n % 250),
    )
}
