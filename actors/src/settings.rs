//! What an operator may set, as plain data with defaults and checks.
//!
//! The layering (defaults < profile < file < environment < flags) is the binary's work (`node/src/config.rs`); here
//! stands only *what* can be set, what it is without being set, and which values make no sense. Sizes are bytes and
//! times are seconds unless the name says otherwise. An unknown member is an error, so that a typing mistake never
//! passes for a setting.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use hn_protocol::invariants::MAX_RETRY;
use serde::{Deserialize, Serialize};

/// The longest `federation.interval_s`: F2 asks every peer every 15 minutes at least, and would cut a longer one.
const LONGEST_INTERVAL_S: u64 = MAX_RETRY.as_secs();

/// The set of defaults that a node starts from (`--profile`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// One person's machine: loopback only, plain http and private addresses allowed, no rate limit.
    #[default]
    Local,
    /// A node that strangers reach: https only towards others, rate limits, no test hooks.
    Federation,
}

impl Profile {
    /// The name as written in `--profile` and in `config/mcp.<name>.toml`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Federation => "federation",
        }
    }

    /// Whether `HN_FAILPOINTS` and `HN_CLOCK_OFFSET` may be set: never where strangers can reach the node.
    pub fn allows_test_hooks(self) -> bool {
        self == Self::Local
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Profile {
    type Err = SettingsError;

    fn from_str(name: &str) -> Result<Self, SettingsError> {
        match name {
            "local" => Ok(Self::Local),
            "federation" => Ok(Self::Federation),
            _ => Err(SettingsError::new(
                "profile",
                "is neither `local` nor `federation`",
            )),
        }
    }
}

/// A value that makes no sense: which key, and why. Source: [`Settings::validate`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} {problem}")]
pub struct SettingsError {
    /// The dotted key, as written in the file (`federation.interval_s`).
    pub key: &'static str,
    /// What is wrong with the value, to be read after the key.
    pub problem: String,
}

impl SettingsError {
    fn new(key: &'static str, problem: impl Into<String>) -> Self {
        Self {
            key,
            problem: problem.into(),
        }
    }
}

/// Everything that can be set in `config/mcp.<profile>.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the gateway listens; port 0 takes a free one. Default `127.0.0.1:7733`.
    pub listen: SocketAddr,
    /// The URL that others reach this node by, when it is not `http://<listen>`; put into the presence. http or https.
    pub public_url: Option<String>,
    /// Following others.
    pub federation: FederationSettings,
    /// The open HTTP side.
    pub gateway: GatewaySettings,
    /// Prometheus on an address of its own.
    pub metrics: MetricsSettings,
    /// Disk and database.
    pub storage: StorageSettings,
    /// The signed statement of where this node is.
    pub presence: PresenceSettings,
}

/// `[federation]`: how often and how much is pulled from peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FederationSettings {
    /// Seconds between two pulls of a quiet peer, less up to 20 % of jitter. Default 30: news come by the stream
    /// (`watch`), and this is for peers that offer none. At most 900, as F2 promises.
    pub interval_s: u64,
    /// Whether a stream of news is held open to each peer that offers one, so that what is new there is here at once.
    /// Default true.
    pub watch: bool,
    /// Slices asked for in one page, 1–64 as the route allows. Default 16.
    pub page_slices: u32,
    /// Logs kept of those that one peer of scope `held` holds for others. Default 256.
    pub max_held_logs: u32,
    /// Bytes of journals kept of those logs, a peer. Default 1 GiB.
    pub max_held_bytes: u64,
    /// Pulls that run at the same time. Default 8.
    pub concurrency: u32,
    /// Whether artifacts that logs announce, and that are not mirrored, are looked for at their holders. Default off.
    pub check_availability: CheckAvailability,
    /// Entries kept of each followed log, at least; earlier ones are pruned. 0 keeps all. Default 0.
    pub prune_entries: u64,
    /// Bytes kept of each followed log's journal, at most. 0 keeps all. Default 0.
    pub prune_bytes: u64,
    /// Seconds for which entries of followed logs are kept. 0 keeps them for ever. Default 0.
    pub prune_age_s: u64,
}

/// How many of the artifacts that new entries announce are looked for, where they are not mirrored: one HEAD each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckAvailability {
    /// None.
    #[default]
    Off,
    /// Sixteen a pull, far from each other.
    Sample,
    /// All, two thousand a pull.
    All,
}

/// `[gateway]`: bounds of the TCP gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewaySettings {
    /// Threads that answer requests. Default 2.
    pub workers: u32,
    /// Connections open at the same time, over all workers. Default 1024.
    pub max_connections: u32,
    /// Connections open at the same time from one client: an IPv4 address, or the /64 of an IPv6 one; 0 is no limit. Default 0
    /// (profile federation: 128).
    pub max_connections_a_client: u32,
    /// Requests a second from one client address before 429; 0 is no limit. Default 0 (profile federation: 200).
    pub rate_limit: u32,
}

/// `[metrics]`: Prometheus is always on the admin socket; an address opens it to a scraper.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsSettings {
    /// Address that serves `/metrics` and nothing else. Default none.
    pub listen: Option<SocketAddr>,
}

/// `[storage]`: disk and database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageSettings {
    /// Bytes that must stay free on the disk of the home; a write that would go below is refused. Default 64 MiB.
    pub min_free: u64,
    /// Bytes of artifacts that are mirrored of one publisher, 0 is no limit. Default 16 GiB.
    pub publisher_quota: u64,
    /// Bytes of artifacts that are mirrored of all publishers together, 0 is no limit. Default 256 GiB.
    pub mirror_quota: u64,
    /// MiB of memory for the database cache. Default 8.
    pub cache_mib: u64,
}

/// `[presence]`: the signed statement of where this node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PresenceSettings {
    /// Seconds from issue to expiry. Default 86400 (24 h).
    pub ttl_s: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7733)),
            public_url: None,
            federation: FederationSettings::default(),
            gateway: GatewaySettings::default(),
            metrics: MetricsSettings::default(),
            storage: StorageSettings::default(),
            presence: PresenceSettings::default(),
        }
    }
}

impl Default for FederationSettings {
    fn default() -> Self {
        Self {
            interval_s: 30,
            watch: true,
            page_slices: 16,
            max_held_logs: 256,
            max_held_bytes: 1 << 30,
            concurrency: 8,
            check_availability: CheckAvailability::Off,
            prune_entries: 0,
            prune_bytes: 0,
            prune_age_s: 0,
        }
    }
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            workers: 2,
            max_connections: 1024,
            max_connections_a_client: 0,
            rate_limit: 0,
        }
    }
}

impl Default for StorageSettings {
    fn default() -> Self {
        Self {
            min_free: 64 << 20,
            publisher_quota: 16 << 30,
            mirror_quota: 256 << 30,
            cache_mib: 8,
        }
    }
}

impl Default for PresenceSettings {
    fn default() -> Self {
        Self { ttl_s: 86_400 }
    }
}

impl Settings {
    /// Refuses values that are well formed and still make no sense. Names the first key that is wrong.
    pub fn validate(&self) -> Result<(), SettingsError> {
        if let Some(url) = &self.public_url {
            check_url(url).map_err(|problem| SettingsError::new("public_url", problem))?;
        }
        let federation = &self.federation;
        within(
            "federation.interval_s",
            federation.interval_s,
            1,
            LONGEST_INTERVAL_S,
        )?;
        within(
            "federation.page_slices",
            federation.page_slices.into(),
            1,
            64,
        )?;
        within(
            "federation.max_held_logs",
            federation.max_held_logs.into(),
            0,
            1 << 20,
        )?;
        within(
            "federation.concurrency",
            federation.concurrency.into(),
            1,
            256,
        )?;
        within("gateway.workers", self.gateway.workers.into(), 1, 256)?;
        within(
            "gateway.max_connections",
            self.gateway.max_connections.into(),
            1,
            1 << 20,
        )?;
        within(
            "gateway.max_connections_a_client",
            self.gateway.max_connections_a_client.into(),
            0,
            1 << 20,
        )?;
        within(
            "gateway.rate_limit",
            self.gateway.rate_limit.into(),
            0,
            1_000_000,
        )?;
        within("storage.cache_mib", self.storage.cache_mib, 1, 1 << 16)?;
        within("presence.ttl_s", self.presence.ttl_s, 60, 30 * 86_400)?;
        Ok(())
    }

    /// The keys in which `other` differs and which a running node can't take over without a restart.
    pub fn needs_restart(&self, other: &Settings) -> Vec<&'static str> {
        [
            ("listen", self.listen != other.listen),
            ("public_url", self.public_url != other.public_url),
            ("federation.prune_*", self.prunes() != other.prunes()),
            ("gateway", self.gateway != other.gateway),
            ("metrics", self.metrics != other.metrics),
            (
                "federation.watch",
                self.federation.watch != other.federation.watch,
            ),
            ("storage", self.storage != other.storage),
            ("presence", self.presence != other.presence),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }
}

impl Settings {
    fn prunes(&self) -> [u64; 3] {
        let federation = &self.federation;
        [
            federation.prune_entries,
            federation.prune_bytes,
            federation.prune_age_s,
        ]
    }
}

fn within(key: &'static str, value: u64, least: u64, most: u64) -> Result<(), SettingsError> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(SettingsError::new(
            key,
            format!("is {value}; it must lie in {least}..={most}"),
        ))
    }
}

/// A base URL that others can be told: http or https, a host, no user, query or fragment.
fn check_url(text: &str) -> Result<(), String> {
    let url = reqwest::Url::parse(text).map_err(|error| format!("is no URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!(
            "must begin with http:// or https://, not {}:",
            url.scheme()
        ));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("names no host".to_owned());
    }
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err("must carry no user, query or fragment".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Settings::default().validate(), Ok(()));
    }

    #[test]
    fn senseless_values_are_refused_by_key() {
        type Break = fn(&mut Settings);
        let cases: [(&str, Break); 9] = [
            ("public_url", |s| {
                s.public_url = Some("ftp://example.net".into())
            }),
            ("public_url", |s| {
                s.public_url = Some("https://u:p@example.net/?x".into())
            }),
            ("federation.interval_s", |s| s.federation.interval_s = 0),
            ("federation.interval_s", |s| s.federation.interval_s = 901),
            ("federation.page_slices", |s| s.federation.page_slices = 65),
            ("federation.concurrency", |s| s.federation.concurrency = 0),
            ("gateway.workers", |s| s.gateway.workers = 0),
            ("storage.cache_mib", |s| s.storage.cache_mib = 0),
            ("presence.ttl_s", |s| s.presence.ttl_s = 1),
        ];
        for (key, break_it) in cases {
            let mut settings = Settings::default();
            break_it(&mut settings);
            assert_eq!(settings.validate().unwrap_err().key, key);
        }
    }

    #[test]
    fn an_unknown_member_is_refused_on_every_level() {
        for text in [r#"{"listem":"127.0.0.1:1"}"#, r#"{"gateway":{"worker":1}}"#] {
            assert!(
                serde_json::from_str::<Settings>(text).is_err(),
                "{text} was read"
            );
        }
    }
}
