//! Chaos: leaders that freeze, roots that vanish, kills at every point and at any moment, nodes that come and go. Afterwards all must be as if
//! nothing had happened: no device sold twice, no booking lost, no metered millisecond that the ledger does not explain.
//!
//! `SPILLWAY_SOAK_KILLS=1000` makes the random kills long (`make soak`), `SPILLWAY_CHAOS_SEED` repeats a run of them.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "a test may fail loudly, and says what it saw"
)]

mod audit;
mod churn;
mod kills;
mod leaders;
mod nodes;
mod parts;
mod points;
mod quiet;
mod root;
mod stand_in;

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use spillway_lab::spillway::Spillway;

/// Longest time of anything that takes seconds on an idle machine.
const BOUND: Duration = Duration::from_secs(60);

/// Names such as `gpu-00`.
fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number:02}")).collect()
}

/// A pool with nodes, and tenants with a namespace of their own name.
async fn furnish(spillway: &Spillway<'_>, pool: &str, nodes: usize, tenants: &[&str]) -> Result<()> {
    spillway.create_pool(pool, json!({})).await?;
    for tenant in tenants {
        spillway.create_tenant(tenant, &[tenant], json!({})).await?;
    }
    spillway.add_nodes(pool, &names(pool, nodes)).await?;
    for tenant in tenants {
        spillway.wait_holder(tenant, BOUND).await?;
    }
    spillway.wait_unsold(pool, nodes, BOUND).await
}
