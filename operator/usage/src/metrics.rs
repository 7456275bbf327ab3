//! What `/metrics` shows, all of it `spillway_usage_*`. No label carries a name of anybody's.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use spillway_metering::shipping::Receipt;

/// How something ended.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Ended {
    result: &'static str,
}

/// All metrics of a service.
pub struct Metrics {
    registry: Registry,
    records: Family<Ended, Counter>,
    segments: Family<Ended, Counter>,
    batches: Family<Ended, Counter>,
    store_seconds: Histogram,
    granted: Counter,
    unanswered: Counter,
    holds: Gauge,
    forwarded: Family<Ended, Counter>,
    scopes: Gauge,
    store_up: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let buckets = [0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
        let mut metrics = Self {
            registry: Registry::with_prefix("spillway_usage"),
            records: Family::default(),
            segments: Family::default(),
            batches: Family::default(),
            store_seconds: Histogram::new(buckets),
            granted: Counter::default(),
            unanswered: Counter::default(),
            holds: Gauge::default(),
            forwarded: Family::default(),
            scopes: Gauge::default(),
            store_up: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("records", "Records that came, by what became of them", metrics.records.clone());
        registry.register(
            "segments",
            "Segments of bookings that ended that came, by what became of them",
            metrics.segments.clone(),
        );
        registry.register("batches", "Batches of records and of segments, by how they ended", metrics.batches.clone());
        registry.register_with_unit(
            "store",
            "Time until a batch is durable",
            Unit::Seconds,
            metrics.store_seconds.clone(),
        );
        registry.register("leases_granted", "Grants of leases", metrics.granted.clone());
        registry.register(
            "leases_unanswered",
            "Questions for a lease that were not answered: too old, or just after the start",
            metrics.unanswered.clone(),
        );
        registry.register("leasing", "1 while this one leases limits: of all replicas one does", metrics.holds.clone());
        let help = "Requests for leases that were given on to the replica that leases, by how they ended";
        registry.register("leases_forwarded", help, metrics.forwarded.clone());
        registry.register("lease_scopes", "Keys and tenants of which leases are known", metrics.scopes.clone());
        registry.register("store_up", "1 while the store answers", metrics.store_up.clone());
        for result in ["stored", "known", "differing", "forgotten"] {
            let _ = metrics.records.get_or_create(&Ended { result });
            let _ = metrics.segments.get_or_create(&Ended { result });
        }
        for result in ["stored", "refused", "failed"] {
            let _ = metrics.batches.get_or_create(&Ended { result });
        }
        for result in ["answered", "failed"] {
            let _ = metrics.forwarded.get_or_create(&Ended { result });
        }
        metrics
    }
}

impl Metrics {
    /// A batch of records is durable after so long.
    pub fn stored(&self, receipt: &Receipt, after: Duration) {
        self.count(&self.records, receipt, after);
    }

    /// A batch of segments is durable after so long.
    pub fn stored_segments(&self, receipt: &Receipt, after: Duration) {
        self.count(&self.segments, receipt, after);
    }

    fn count(&self, counters: &Family<Ended, Counter>, receipt: &Receipt, after: Duration) {
        for (result, count) in [
            ("stored", receipt.stored),
            ("known", receipt.known),
            ("differing", receipt.differing),
            ("forgotten", receipt.forgotten),
        ] {
            counters.get_or_create(&Ended { result }).inc_by(count);
        }
        self.batches.get_or_create(&Ended { result: "stored" }).inc();
        self.store_seconds.observe(after.as_secs_f64());
    }

    /// A batch that could not be taken as it was.
    pub fn refused(&self) {
        self.batches.get_or_create(&Ended { result: "refused" }).inc();
    }

    /// A batch that the store did not take.
    pub fn failed(&self) {
        self.batches.get_or_create(&Ended { result: "failed" }).inc();
    }

    /// Questions for leases were answered, and not answered; so many keys and tenants are known by then.
    pub fn leased(&self, granted: u64, unanswered: u64, scopes: usize) {
        self.granted.inc_by(granted);
        self.unanswered.inc_by(unanswered);
        self.scopes.set(i64::try_from(scopes).unwrap_or(i64::MAX));
    }

    /// Whether limits are leased here.
    pub fn leases(&self, holds: bool) {
        self.holds.set(i64::from(holds));
    }

    /// A request for leases was given on, and answered or not.
    pub fn forwarded(&self, answered: bool) {
        let result = if answered { "answered" } else { "failed" };
        self.forwarded.get_or_create(&Ended { result }).inc();
    }

    /// Whether the store answers.
    pub fn store_up(&self, up: bool) {
        self.store_up.set(i64::from(up));
    }

    /// The text that Prometheus reads.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Into a string: there is no way for it to fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
