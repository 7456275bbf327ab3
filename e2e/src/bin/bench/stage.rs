//! What every benchmark sets up: a pool of nodes that are unsold, tenants, reservations of one device.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::json;
use spillway_lab::progress::say;
use spillway_lab::spillway::{Operator, Spillway};
use spillway_lab::wait_for;

/// The pool.
pub(crate) const POOL: &str = "bench";
/// The identity of every operator: one that is started again is a container of the same pod.
pub(crate) const IDENTITY: &str = "operator-a";
/// Devices of a node.
pub(crate) const DEVICES: usize = 8;
/// Requests of the client under way at a time.
pub(crate) const PARALLEL: usize = 32;
/// Longest time of one part of a benchmark.
pub(crate) const BOUND: Duration = Duration::from_secs(900);

/// The name of one of so many tenants, which is that of its namespace as well.
pub(crate) fn tenant(number: usize, of: usize) -> String {
    format!("t-{:02}", number % of.max(1))
}

/// The names of so many nodes.
pub(crate) fn nodes(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("gpu-{number:05}")).collect()
}

/// Makes the pool, its tenants and its nodes, and waits until the operator has opened all of them. Gives how long the nodes took.
pub(crate) async fn furnish(
    spillway: &Spillway<'_>,
    operator: &Operator,
    nodes: usize,
    tenants: usize,
) -> Result<Duration> {
    spillway.create_pool(POOL, json!({"topology": ["kubernetes.io/hostname"]})).await?;
    for number in 0..tenants {
        let name = tenant(number, tenants);
        spillway.create_tenant(&name, &[&name], json!({})).await?;
    }
    let begun = Instant::now();
    spillway.add_nodes(POOL, &self::nodes(nodes)).await?;
    let metric = format!("spillway_pool_devices{{pool=\"{POOL}\",state=\"unsold\"}}");
    let devices = (nodes * DEVICES).to_string();
    // To list thousands of nodes again and again would slow down what is waited for.
    wait_for("all devices to be unsold", BOUND, || async { Ok(operator.metric(&metric).await? == devices) }).await?;
    spillway.wait_unsold(POOL, nodes, BOUND).await?;
    say(&format!("{nodes} nodes are unsold after {:.1?}", begun.elapsed()));
    Ok(begun.elapsed())
}

/// Makes one reservation of one device.
pub(crate) async fn reserve(spillway: &Spillway<'_>, tenant: &str, name: &str) -> Result<()> {
    let spec = json!({"pool": POOL, "devices": {"count": 1}, "exclusiveNodes": false});
    spillway.reserve(tenant, name, spec).await.map(drop)
}

/// Makes reservations of one device, as fast as they go.
pub(crate) async fn reserve_all(
    spillway: &Spillway<'_>,
    prefix: &str,
    numbers: Range<usize>,
    tenants: usize,
) -> Result<()> {
    futures::stream::iter(numbers)
        .map(|number| async move { reserve(spillway, &tenant(number, tenants), &format!("{prefix}{number:05}")).await })
        .buffer_unordered(PARALLEL)
        .try_collect::<Vec<()>>()
        .await
        .context("making reservations")?;
    Ok(())
}
