//! The node's numbers, for Prometheus (design 12): one registry, counters that cost one atomic addition.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Instant;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The media type of what [`Metrics::encode`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Status classes from 1xx to 5xx.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActorLabel {
    actor: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GateLabel {
    gate: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabel {
    class: &'static str,
}

/// Every counter and gauge of the node. Cloning shares them.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    started: Instant,
    sync_success: Counter,
    sync_failure: Counter,
    prunes: Counter,
    pruned_entries: Counter,
    pruned_bytes: Counter,
    policy_denials: Family<GateLabel, Counter>,
    forks: Counter,
    forked_logs: Gauge,
    actor_restarts: Family<ActorLabel, Counter>,
    http_requests: [Counter<u64, AtomicU64>; 5],
    log_entries: Gauge<i64, AtomicI64>,
    published_entries: Counter,
    mirrored_artifacts: Counter,
    mirrored_bytes: Counter,
    watch_streams: Gauge,
    watched_peers: Gauge,
    resident_memory: Gauge,
    uptime: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics(…)")
    }
}

impl Metrics {
    /// A registry with everything at zero; the uptime counts from here.
    #[must_use]
    pub fn new() -> Self {
        let http = Family::<ClassLabel, Counter>::default();
        let mut inner = Inner {
            registry: Registry::default(),
            started: Instant::now(),
            sync_success: Counter::default(),
            sync_failure: Counter::default(),
            prunes: Counter::default(),
            pruned_entries: Counter::default(),
            pruned_bytes: Counter::default(),
            policy_denials: Family::default(),
            forks: Counter::default(),
            forked_logs: Gauge::default(),
            actor_restarts: Family::default(),
            http_requests: CLASSES.map(|class| http.get_or_create(&ClassLabel { class }).clone()),
            log_entries: Gauge::default(),
            published_entries: Counter::default(),
            mirrored_artifacts: Counter::default(),
            mirrored_bytes: Counter::default(),
            watch_streams: Gauge::default(),
            watched_peers: Gauge::default(),
            resident_memory: Gauge::default(),
            uptime: Gauge::default(),
        };
        let registry = &mut inner.registry;
        // The encoder appends `_total` to counters.
        registry.register(
            "hn_federation_sync_success",
            "Pulls from peers that ended verified",
            inner.sync_success.clone(),
        );
        registry.register(
            "hn_federation_sync_failure",
            "Pulls from peers that failed",
            inner.sync_failure.clone(),
        );
        registry.register(
            "hn_policy_deny",
            "Requests that a gate did not allow",
            inner.policy_denials.clone(),
        );
        registry.register(
            "hn_federation_prune",
            "Prunings of followed logs",
            inner.prunes.clone(),
        );
        registry.register(
            "hn_pruned_entries",
            "Entries pruned from followed logs",
            inner.pruned_entries.clone(),
        );
        registry.register(
            "hn_pruned_bytes",
            "Bytes pruned from the journals of followed logs",
            inner.pruned_bytes.clone(),
        );
        registry.register(
            "hn_federation_fork",
            "Forks seen: publishers that signed two logs",
            inner.forks.clone(),
        );
        registry.register(
            "hn_forked_logs",
            "Logs that stand still because their publisher signed two",
            inner.forked_logs.clone(),
        );
        registry.register(
            "hn_actor_restarts",
            "Restarts of an actor after a panic or a stop",
            inner.actor_restarts.clone(),
        );
        registry.register("hn_http_requests", "Answers by status class", http);
        registry.register(
            "hn_log_entries",
            "Entries in this node's own log",
            inner.log_entries.clone(),
        );
        registry.register(
            "hn_published_entries",
            "Entries appended to the own log since the start",
            inner.published_entries.clone(),
        );
        registry.register(
            "hn_mirrored_artifacts",
            "Artifacts fetched from peers and verified",
            inner.mirrored_artifacts.clone(),
        );
        registry.register(
            "hn_mirrored_bytes",
            "Bytes of the artifacts fetched from peers",
            inner.mirrored_bytes.clone(),
        );
        registry.register(
            "hn_watch_streams",
            "Streams of news that others have open here",
            inner.watch_streams.clone(),
        );
        registry.register(
            "hn_watched_peers",
            "Peers whose streams of news are open",
            inner.watched_peers.clone(),
        );
        registry.register(
            "process_resident_memory_bytes",
            "Resident memory of this process",
            inner.resident_memory.clone(),
        );
        registry.register(
            "process_uptime_seconds",
            "Seconds since this process started",
            inner.uptime.clone(),
        );
        Self {
            inner: Arc::new(inner),
        }
    }

    /// A gate did not allow a request.
    pub fn policy_denied(&self, gate: &'static str) {
        self.inner
            .policy_denials
            .get_or_create(&GateLabel { gate })
            .inc();
    }

    /// A publisher was seen to have signed two logs.
    pub fn fork_seen(&self) {
        self.inner.forks.inc();
    }

    /// How many logs stand still because of it.
    pub fn forked_logs(&self, count: usize) {
        self.inner
            .forked_logs
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A pull from a peer ended with everything verified and durable.
    pub fn sync_succeeded(&self) {
        self.inner.sync_success.inc();
    }

    /// A pull from a peer failed.
    pub fn sync_failed(&self) {
        self.inner.sync_failure.inc();
    }

    /// A followed log lost `entries` entries of its beginning, and its journal `bytes` bytes.
    pub fn pruned(&self, entries: u64, bytes: u64) {
        self.inner.prunes.inc();
        self.inner.pruned_entries.inc_by(entries);
        self.inner.pruned_bytes.inc_by(bytes);
    }

    /// The actor `name` was restarted.
    pub fn actor_restarted(&self, name: &'static str) {
        let label = ActorLabel { actor: name };
        self.inner.actor_restarts.get_or_create(&label).inc();
    }

    /// Makes the actor `name` visible with a zero before it ever restarts.
    pub fn actor_known(&self, name: &'static str) {
        let label = ActorLabel { actor: name };
        drop(self.inner.actor_restarts.get_or_create(&label));
    }

    /// An HTTP answer with `status` (100–599) was sent.
    pub fn http_answered(&self, status: u16) {
        let class = usize::from(status / 100).saturating_sub(1);
        if let Some(counter) = self.inner.http_requests.get(class) {
            counter.inc();
        }
    }

    /// The own log now holds `entries`, `appended` of which are new.
    pub fn log_grew(&self, entries: u64, appended: u64) {
        self.log_size(entries);
        self.inner.published_entries.inc_by(appended);
    }

    /// The own log holds `entries`.
    pub fn log_size(&self, entries: u64) {
        self.inner
            .log_entries
            .set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    /// `count` artifacts of `bytes` together were fetched, verified and stored.
    pub fn artifacts_mirrored(&self, count: u64, bytes: u64) {
        self.inner.mirrored_artifacts.inc_by(count);
        self.inner.mirrored_bytes.inc_by(bytes);
    }

    /// `count` streams of news are open to others.
    pub fn streams_open(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.inner.watch_streams.set(count);
    }

    /// The news of `count` peers are listened to.
    pub fn peers_watched(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.inner.watched_peers.set(count);
    }

    /// Whole seconds since the registry was made, which is the node's start.
    #[must_use]
    pub fn uptime_seconds(&self) -> u64 {
        self.inner.started.elapsed().as_secs()
    }

    /// The registry as OpenMetrics text ([`CONTENT_TYPE`]).
    #[must_use]
    pub fn encode(&self) -> String {
        let inner = &self.inner;
        if let Some(bytes) = resident_memory() {
            inner
                .resident_memory
                .set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        inner
            .uptime
            .set(i64::try_from(self.uptime_seconds()).unwrap_or(i64::MAX));
        let mut text = String::with_capacity(4096);
        // Writing into a String does not fail.
        if text::encode(&mut text, &inner.registry).is_err() {
            text.clear();
        }
        text
    }
}

/// Resident memory of this process in bytes; nothing where the system does not say.
#[must_use]
pub fn resident_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn encodes_every_counter_under_its_promised_name() {
        let metrics = Metrics::new();
        metrics.sync_succeeded();
        metrics.sync_failed();
        metrics.actor_known("store");
        metrics.actor_restarted("gateway");
        metrics.http_answered(200);
        metrics.http_answered(204);
        metrics.http_answered(503);
        metrics.http_answered(42);
        metrics.log_grew(7, 3);
        metrics.artifacts_mirrored(1, 2048);
        metrics.streams_open(3);
        metrics.peers_watched(2);
        metrics.pruned(5, 4096);
        let text = metrics.encode();
        for line in [
            "hn_federation_sync_success_total 1",
            "hn_federation_sync_failure_total 1",
            "hn_federation_prune_total 1",
            "hn_pruned_entries_total 5",
            "hn_pruned_bytes_total 4096",
            "hn_actor_restarts_total{actor=\"store\"} 0",
            "hn_actor_restarts_total{actor=\"gateway\"} 1",
            "hn_http_requests_total{class=\"2xx\"} 2",
            "hn_http_requests_total{class=\"5xx\"} 1",
            "hn_http_requests_total{class=\"4xx\"} 0",
            "hn_log_entries 7",
            "hn_published_entries_total 3",
            "hn_mirrored_artifacts_total 1",
            "hn_mirrored_bytes_total 2048",
            "hn_watch_streams 3",
            "hn_watched_peers 2",
            "process_uptime_seconds 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn knows_its_memory() {
        assert!(resident_memory().unwrap() > 100_000);
        assert!(
            Metrics::new()
                .encode()
                .contains("process_resident_memory_bytes ")
        );
    }
}
