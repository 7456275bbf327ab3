//! Heartbeats of nodes, written as kubelets write them while nothing changes: each node's once a period, spread evenly.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::stage::PARALLEL;

/// Heartbeats until they are dropped.
#[derive(Debug)]
pub(crate) struct Heartbeats {
    written: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Heartbeats {
    /// Begins with the first node at once.
    pub(crate) fn begin(client: Client, nodes: Vec<String>, period: Duration) -> Self {
        let (written, failed) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let counters = (Arc::clone(&written), Arc::clone(&failed));
        let task = tokio::spawn(write(Api::all(client), nodes, period, counters));
        Self { written, failed, task }
    }

    /// How many were written so far; an error when one could not be.
    pub(crate) fn written(&self) -> Result<u64> {
        let failed = self.failed.load(Ordering::Relaxed);
        ensure!(failed == 0 && !self.task.is_finished(), "{failed} heartbeats could not be written");
        Ok(self.written.load(Ordering::Relaxed))
    }
}

/// Writes for ever, and counts what was written and what could not be.
async fn write(api: Api<Node>, nodes: Vec<String>, period: Duration, counters: (Arc<AtomicU64>, Arc<AtomicU64>)) {
    let (begun, gap) = (Instant::now(), period / u32::try_from(nodes.len()).unwrap_or(u32::MAX).max(1));
    let beats = (0_u32..).zip(nodes.into_iter().cycle()).map(|(number, node)| {
        let (api, (written, failed)) = (api.clone(), counters.clone());
        async move {
            tokio::time::sleep_until((begun + gap * number).into()).await;
            let counter = if beat(&api, &node).await.is_ok() { written } else { failed };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    futures::stream::iter(beats).buffer_unordered(PARALLEL).for_each(|()| async {}).await;
}

async fn beat(api: &Api<Node>, node: &str) -> Result<()> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    // A strategic merge finds the condition by its type and leaves the rest of it.
    let patch = json!({"status": {"conditions": [{"type": "Ready", "lastHeartbeatTime": now}]}});
    api.patch_status(node, &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .with_context(|| format!("writing the heartbeat of node {node}"))?;
    Ok(())
}
