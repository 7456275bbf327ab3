//! What `/metrics` shows. Every name is in docs/book/src/metrics.md. Labels name endpoints and models, of which there are few; never keys or prompts.
//! Bills are made of records in the log, never of these.

use std::time::Duration;

use hyper::StatusCode;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode_registry},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use spillway_metering::tokens::{Cause, Ending, Outcome};

use crate::admission::Counts;
use crate::catalogue::Served;
use crate::wal;

/// A status of answers.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Status {
    code: u16,
}

/// An endpoint and how requests of it ended.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct End {
    namespace: String,
    endpoint: String,
    /// `complete`, or why not.
    outcome: &'static str,
}

/// An endpoint and a kind of tokens.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct TokenKind {
    namespace: String,
    endpoint: String,
    /// `prompt`, `cached` or `completion`; the cached ones are among those of the prompt.
    kind: &'static str,
}

/// How waiting for a replica ended.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Waited {
    /// `served`, `gone`, `cut`, `stopped` or `refused`.
    outcome: &'static str,
}

/// Buckets of times in which pods start, in seconds.
const HOLD: [f64; 12] = [0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// All metrics of a gateway.
pub struct Metrics {
    registry: Registry,
    answers: Family<Status, Counter>,
    seconds: Histogram,
    requests: Family<End, Counter>,
    tokens: Family<TokenKind, Counter>,
    running: Gauge,
    held: Gauge,
    hold_seconds: Family<Waited, Histogram, fn() -> Histogram>,
    wake_seconds: Histogram,
    refused: Gauge,
    dropped: Gauge,
    log_used: Gauge,
    log_limit: Gauge,
    log_open: Gauge,
    log_unshipped: Gauge,
    log_failing: Gauge,
    log_set_aside: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let buckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
        let mut metrics = Self {
            registry: Registry::with_prefix("spillway_gateway"),
            answers: Family::default(),
            seconds: Histogram::new(buckets),
            requests: Family::default(),
            tokens: Family::default(),
            running: Gauge::default(),
            held: Gauge::default(),
            hold_seconds: Family::new_with_constructor(|| Histogram::new(HOLD)),
            wake_seconds: Histogram::new(buckets),
            refused: Gauge::default(),
            dropped: Gauge::default(),
            log_used: Gauge::default(),
            log_limit: Gauge::default(),
            log_open: Gauge::default(),
            log_unshipped: Gauge::default(),
            log_failing: Gauge::default(),
            log_set_aside: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("answers", "Answers by their status", metrics.answers.clone());
        let unit = Unit::Seconds;
        registry.register_with_unit("answer", "Time until the head of an answer goes", unit, metrics.seconds.clone());
        registry.register("requests", "Requests that went to an engine, by how they ended", metrics.requests.clone());
        registry.register("tokens", "Tokens that were billed", metrics.tokens.clone());
        registry.register("running", "Requests that run", metrics.running.clone());
        registry.register("held", "Requests that wait for a replica", metrics.held.clone());
        let unit = Unit::Seconds;
        let name = "How long requests waited for a replica, by whether one came";
        registry.register_with_unit("hold", name, unit.clone(), metrics.hold_seconds.clone());
        let name = "Time from the first request for a model without replicas until one is wanted";
        registry.register_with_unit("wake", name, unit, metrics.wake_seconds.clone());
        registry.register("refused", "Requests that a limit refused", metrics.refused.clone());
        registry.register("dropped", "Requests that ended by mistake; should be 0", metrics.dropped.clone());
        registry.register("log_used_bytes", "Bytes of the log, and of what it keeps free", metrics.log_used.clone());
        registry.register("log_limit_bytes", "Bytes that the log may have", metrics.log_limit.clone());
        registry.register("log_open", "Requests that are open in the log", metrics.log_open.clone());
        registry.register(
            "log_unshipped",
            "Requests that are billed and not stored by the usage service",
            metrics.log_unshipped.clone(),
        );
        registry.register("log_failing", "1 while the log cannot be written", metrics.log_failing.clone());
        registry.register(
            "log_set_aside",
            "Bills beside the log that the usage service does not take; should be 0",
            metrics.log_set_aside.clone(),
        );
        metrics
    }
}

/// Why an answer is not whole; none of one that is, whether its engine said what it used or not.
pub(crate) fn failure(outcome: Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Complete | Outcome::Partial(Cause::NoUsage) => None,
        Outcome::Partial(Cause::ClientGone) => Some("client_gone"),
        Outcome::Partial(Cause::EngineFailed) => Some("engine_failed"),
        Outcome::Partial(Cause::Shutdown) => Some("shutdown"),
        Outcome::Partial(Cause::Crash) => Some("crash"),
        Outcome::Partial(Cause::Bound) => Some("bound"),
        Outcome::Partial(Cause::Refused) => Some("refused"),
    }
}

impl Metrics {
    /// An answer whose head goes after so long.
    pub fn answered(&self, status: StatusCode, after: Duration) {
        self.answers.get_or_create(&Status { code: status.as_u16() }).inc();
        self.seconds.observe(after.as_secs_f64());
    }

    /// A request waited for a replica for so long.
    pub fn held(&self, outcome: &'static str, waited: Duration) {
        self.hold_seconds.get_or_create(&Waited { outcome }).observe(waited.as_secs_f64());
    }

    /// A replica is wanted so long after it was called for.
    pub fn woken(&self, after: Duration) {
        self.wake_seconds.observe(after.as_secs_f64());
    }

    /// A request is billed.
    pub fn billed(&self, served: &Served, ending: &Ending) {
        let (namespace, endpoint) = (served.namespace.to_string(), served.name.to_string());
        let outcome = match ending.outcome {
            Outcome::Partial(Cause::NoUsage) => "no_usage",
            outcome => failure(outcome).unwrap_or("complete"),
        };
        for (kind, count) in [
            ("prompt", ending.tokens.prompt()),
            ("cached", ending.tokens.cached()),
            ("completion", ending.tokens.completion()),
        ] {
            let kind = TokenKind { namespace: namespace.clone(), endpoint: endpoint.clone(), kind };
            self.tokens.get_or_create(&kind).inc_by(count);
        }
        self.requests.get_or_create(&End { namespace, endpoint, outcome }).inc();
    }

    /// So many bills are set aside.
    pub fn set_aside(&self, count: usize) {
        self.log_set_aside.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// All of them as text, with these as they are now. Its end is left out.
    pub fn render(&self, counts: &Counts, log: &wal::Stats, running: usize, held: u64) -> String {
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.running.set(i64::try_from(running).unwrap_or(i64::MAX));
        self.held.set(signed(held));
        self.refused.set(signed(counts.refused));
        self.dropped.set(signed(counts.dropped));
        self.log_used.set(signed(log.used_bytes.saturating_add(log.reserved_bytes)));
        self.log_limit.set(signed(log.limit_bytes));
        self.log_open.set(i64::try_from(log.open).unwrap_or(i64::MAX));
        self.log_unshipped.set(i64::try_from(log.unacknowledged).unwrap_or(i64::MAX));
        self.log_failing.set(i64::from(log.failing.is_some()));
        let mut text = String::new();
        // Into a string: there is no way for it to fail.
        let _ = encode_registry(&mut text, &self.registry);
        text
    }
}
