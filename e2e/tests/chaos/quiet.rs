//! A settled cluster is not written to, not even by an operator that starts anew and lists everything again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt as _;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams};
use serde_json::json;
use spillway_crds::Phase;
use spillway_lab::spillway::Spillway;
use spillway_lab::{Lab, LabOptions, Size};

use crate::{BOUND, furnish};

/// All that the operator writes, but for its Lease and the root.
const KINDS: [(&str, &str, &str); 9] = [
    ("spillway.dev", "v1alpha1", "GpuPool"),
    ("spillway.dev", "v1alpha1", "GpuReservation"),
    ("spillway.dev", "v1alpha1", "Tenant"),
    ("spillway.dev", "v1alpha1", "GpuNode"),
    ("spillway.dev", "v1alpha1", "CapacityLedgerPage"),
    ("", "v1", "Node"),
    ("", "v1", "Namespace"),
    ("", "v1", "Pod"),
    ("events.k8s.io", "v1", "Event"),
];

/// How long nothing may happen: longer than every period of the engine but the collection's.
const QUIET: Duration = Duration::from_secs(6);

async fn versions(spillway: &Spillway<'_>) -> Result<BTreeMap<String, Option<String>>> {
    let mut versions = BTreeMap::new();
    for (group, version, kind) in KINDS {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api = Api::<DynamicObject>::all_with(spillway.client(), &resource);
        for object in api.list(&ListParams::default()).await.with_context(|| format!("listing {kind}s"))? {
            versions.insert(
                format!("{kind} {}/{}", object.namespace().unwrap_or_default(), object.name_any()),
                object.resource_version(),
            );
        }
    }
    Ok(versions)
}

fn difference(before: &BTreeMap<String, Option<String>>, after: &BTreeMap<String, Option<String>>) -> Vec<String> {
    let changed =
        after.iter().filter(|(name, version)| before.get(*name) != Some(*version)).map(|(name, _)| name.clone());
    let gone = before.keys().filter(|name| !after.contains_key(*name)).map(|name| format!("{name} (gone)"));
    changed.chain(gone).collect()
}

#[tokio::test]
async fn a_settled_cluster_is_not_written_to() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let spillway = Spillway::install(&lab).await?;
    let mut operator = spillway.start_operator("operator-a")?;
    furnish(&spillway, "h200", 3, &["acme", "beta"]).await?;
    spillway.create_tenant("house", &["house"], json!({"owner": true, "namespaces": ["house", "not-there"]})).await?;
    spillway.reserve("acme", "stays", json!({"devices": {"count": 16}})).await?;
    spillway.reserve("acme", "short", json!({"devices": {"count": 8}, "term": {"duration": "1s"}})).await?;
    spillway.wait_phase("acme", "stays", Phase::Active, BOUND).await?;
    spillway.wait_phase("acme", "short", Phase::Ended, BOUND).await?;
    spillway.reserve("beta", "waits", json!({"devices": {"count": 24}})).await?;
    spillway.reserve("beta", "never", json!({"devices": {"count": 8000}})).await?;
    spillway.wait_phase("beta", "waits", Phase::Waitlisted, BOUND).await?;
    spillway.wait_phase("beta", "never", Phase::Rejected, BOUND).await?;
    spillway.wait_unsold("h200", 1, BOUND).await?;

    // What is left to tidy up is tidied up by the first restart; the second finds nothing to do.
    operator.stop().await?;
    operator = spillway.start_operator("operator-a")?;
    quiet_since(&spillway, &operator, BOUND).await?;
    let before = versions(&spillway).await?;
    operator.stop().await?;
    operator = spillway.start_operator("operator-a")?;
    operator.wait_leading(BOUND).await?;
    let begun = Instant::now();
    spillway
        .wait_for("six quiet seconds", QUIET * 2, || async {
            Ok(!difference(&before, &versions(&spillway).await?).is_empty() || begun.elapsed() > QUIET)
        })
        .await?;
    let written = difference(&before, &versions(&spillway).await?);
    ensure!(written.is_empty(), "a settled cluster was written to: {written:?}");
    let bookings = operator.metric("spillway_bookings").await?;
    ensure!(bookings == "1", "the operator looked at nothing: it has {bookings} bookings");
    spillway.verify_settled("0s").await?.ensure_clean()?;
    drop(operator);
    lab.stop()
}

/// Waits until nothing was written for as long as [`QUIET`].
async fn quiet_since(
    spillway: &Spillway<'_>,
    operator: &spillway_lab::spillway::Operator,
    bound: Duration,
) -> Result<()> {
    operator.wait_leading(bound).await?;
    let last = std::sync::Mutex::new((versions(spillway).await?, Instant::now()));
    spillway
        .wait_for("the cluster to become quiet", bound, || async {
            let now = versions(spillway).await?;
            let mut last = last.lock().unwrap();
            let changes = difference(&last.0, &now);
            if !changes.is_empty() {
                *last = (now, Instant::now());
            }
            ensure!(last.1.elapsed() > QUIET, "written last: {changes:?}");
            Ok(true)
        })
        .await
}
