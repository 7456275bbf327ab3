//! What `/metrics` shows. Every name is in docs/book/src/metrics.md. No label carries an object's name but the pool's, of which there are few.

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// A pool and a state of its devices.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct PoolState {
    /// Name of the `GpuPool`.
    pub pool: String,
    /// `owned`, `sold`, `held`, `unsold`, `turnover`, `broken` or `owner_used`.
    pub state: &'static str,
}

/// A controller and how a look at an object ended.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct Reconcile {
    /// `nodes`, `reservations`, `pools` or `tenants`.
    pub controller: &'static str,
    /// `ok`, `conflict` or `error`.
    pub result: &'static str,
}

/// How a self-test ended.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct TestResult {
    /// `passed`, `failed` or `inconclusive`.
    pub result: &'static str,
}

/// Why an endpoint went to or from no replica.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct ScaleChange {
    /// `wake`, `sleep` or `lift`.
    pub change: &'static str,
}

/// All metrics.
pub struct Metrics {
    registry: Registry,
    /// 1 while this process leads.
    pub leader: Gauge,
    /// 1 while nothing is sold because the ledger is lost or unreadable.
    pub blocked: Gauge,
    /// Generation of the last committed root.
    pub generation: Gauge,
    /// Commits of the ledger.
    pub commits: Counter,
    /// Commits that failed because somebody else had committed.
    pub conflicts: Counter,
    /// Pages deleted by collections.
    pub collected: Counter,
    /// Time of a plan.
    pub plan_seconds: Histogram,
    /// Time of a commit.
    pub commit_seconds: Histogram,
    /// Live bookings.
    pub bookings: Gauge,
    /// Requests that wait in line.
    pub waiting: Gauge,
    /// Age of the oldest turnover of a sound node, in seconds.
    pub turnover_oldest: Gauge,
    /// Devices by pool and state.
    pub devices: Family<PoolState, Gauge>,
    /// Bookings that ended and are not in the usage store.
    pub archive_waiting: Gauge,
    /// Pools of which the usage store says that it lacks what the ledger has no more.
    pub archive_lost: Gauge,
    /// Looks at objects.
    pub reconciles: Family<Reconcile, Counter>,
    /// Writes of nodes' taints and labels.
    pub node_writes: Counter,
    /// Writes held back by the fence.
    pub fenced: Counter,
    /// 1 while a guard stops sales.
    pub doubt: Gauge,
    /// 1 while all pools observe and nothing is booked.
    pub observing: Gauge,
    /// Policies and bindings that are not as they should be.
    pub policies_wrong: Gauge,
    /// Policies and bindings written back.
    pub policies_restored: Counter,
    /// Self-tests by how they ended.
    pub selftests: Family<TestResult, Counter>,
    /// 1 while the last self-test with a clear answer failed.
    pub selftest_failed: Gauge,
    /// Pods that the last audit found where they may not be.
    pub audit_illegal: Gauge,
    /// Pods that the audit deleted.
    pub audit_deleted: Counter,
    /// 1 while the audit's brake is on.
    pub audit_brake: Gauge,
    /// Endpoints that went to or from no replica.
    pub scaled: Family<ScaleChange, Counter>,
}

fn seconds() -> Histogram {
    Histogram::new([0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5])
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::default(),
            leader: Gauge::default(),
            blocked: Gauge::default(),
            generation: Gauge::default(),
            commits: Counter::default(),
            conflicts: Counter::default(),
            collected: Counter::default(),
            plan_seconds: seconds(),
            commit_seconds: seconds(),
            bookings: Gauge::default(),
            waiting: Gauge::default(),
            turnover_oldest: Gauge::default(),
            devices: Family::default(),
            archive_waiting: Gauge::default(),
            archive_lost: Gauge::default(),
            reconciles: Family::default(),
            node_writes: Counter::default(),
            fenced: Counter::default(),
            doubt: Gauge::default(),
            observing: Gauge::default(),
            policies_wrong: Gauge::default(),
            policies_restored: Counter::default(),
            selftests: Family::default(),
            selftest_failed: Gauge::default(),
            audit_illegal: Gauge::default(),
            audit_deleted: Counter::default(),
            audit_brake: Gauge::default(),
            scaled: Family::default(),
        };
        metrics.doubt.set(1);
        metrics.registered()
    }
}

impl Metrics {
    fn registered(mut self) -> Self {
        let registry = self.registry.sub_registry_with_prefix("spillway");
        registry.register("leader", "1 while this process leads", self.leader.clone());
        registry.register(
            "sales_blocked",
            "1 while nothing is sold because the ledger is lost or unreadable",
            self.blocked.clone(),
        );
        registry.register("ledger_generation", "Generation of the last committed root", self.generation.clone());
        registry.register("ledger_commits", "Commits of the ledger", self.commits.clone());
        registry.register(
            "ledger_conflicts",
            "Commits that failed because somebody else had committed",
            self.conflicts.clone(),
        );
        registry.register("ledger_pages_collected", "Ledger pages deleted by collections", self.collected.clone());
        registry.register_with_unit("plan", "Time of a plan", Unit::Seconds, self.plan_seconds.clone());
        registry.register_with_unit(
            "commit",
            "Time of a commit of the ledger",
            Unit::Seconds,
            self.commit_seconds.clone(),
        );
        registry.register("bookings", "Live bookings", self.bookings.clone());
        registry.register("requests_waiting", "Requests that wait in line", self.waiting.clone());
        registry.register_with_unit(
            "node_turnover_oldest",
            "For how long the node has been closed that has been so the longest, of those that are Ready and not cordoned",
            Unit::Seconds,
            self.turnover_oldest.clone(),
        );
        registry.register("pool_devices", "Devices by pool and state", self.devices.clone());
        registry.register(
            "archive_waiting_bookings",
            "Bookings that ended and whose GPU time is not in the usage store yet, where there is one",
            self.archive_waiting.clone(),
        );
        registry.register(
            "archive_lost_pools",
            "Pools of which the usage store lacks GPU time that the ledger has no more",
            self.archive_lost.clone(),
        );
        registry.register("reconciles", "Looks at objects by controller and result", self.reconciles.clone());
        registry.register("node_writes", "Writes of nodes' hold taints and labels", self.node_writes.clone());
        registry.register(
            "fenced_writes",
            "Writes held back because the decision behind them was not the latest",
            self.fenced.clone(),
        );
        registry.register("sales_doubted", "1 while a guard stops sales", self.doubt.clone());
        registry.register("observing", "1 while all pools observe and nothing is booked", self.observing.clone());
        registry.register(
            "policies_wrong",
            "Admission policies and bindings that are not as they should be",
            self.policies_wrong.clone(),
        );
        registry.register(
            "policies_restored",
            "Admission policies and bindings that were written back",
            self.policies_restored.clone(),
        );
        registry.register("selftests", "Self-tests by how they ended", self.selftests.clone());
        registry.register(
            "self_test_failed",
            "1 while the last self-test with a clear answer failed",
            self.selftest_failed.clone(),
        );
        registry.register(
            "audit_illegal_pods",
            "Pods that the last audit found where they may not be",
            self.audit_illegal.clone(),
        );
        registry.register("audit_deleted_pods", "Pods that the audit deleted", self.audit_deleted.clone());
        registry.register("audit_brake", "1 while the brake of the audit stops sales", self.audit_brake.clone());
        registry.register("endpoints_scaled", "Endpoints that were scaled to and from none", self.scaled.clone());
        self
    }

    /// The text that Prometheus reads.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// Counts an endpoint that went to or from no replica.
    pub fn scaled(&self, change: &'static str) {
        self.scaled.get_or_create(&ScaleChange { change }).inc();
    }

    /// Counts a look at an object.
    pub fn reconciled(&self, controller: &'static str, result: &'static str) {
        self.reconciles.get_or_create(&Reconcile { controller, result }).inc();
    }
}
