//! Spillway on a [`Lab`]: its chart installed, its operator as processes of the test's own on this machine, and what tests do with it.
//!
//! The operator runs outside the cluster as its ServiceAccount, so the chart's roles and policies bind it as they do in a pod, and a test may
//! stop, kill and freeze it by pid. Binaries come from `SPILLWAY_BIN_DIR`, or are built by Cargo beside this test's own.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use std::time::Duration;
//! use serde_json::json;
//! use spillway_crds::Phase;
//! use spillway_lab::{Lab, LabOptions, Size, spillway::Spillway};
//!
//! let lab = Lab::start(LabOptions::new(Size::Api)).await?;
//! let spillway = Spillway::install(&lab).await?;
//! let operator = spillway.start_operator("operator-a")?;
//! spillway.create_pool("h200", json!({})).await?;
//! spillway.add_nodes("h200", &["gpu-0", "gpu-1"]).await?;
//! spillway.create_tenant("acme", &["acme"], json!({})).await?;
//! spillway.reserve("acme", "job", json!({"pool": "h200", "devices": {"count": 8}})).await?;
//! spillway.wait_phase("acme", "job", Phase::Active, Duration::from_secs(30)).await?;
//! spillway.verify().await?.ensure_clean()?;
//! drop(operator);
//! lab.stop()
//! # }
//! ```

mod binaries;
mod catalogue;
mod gateway;
mod ledger;
mod objects;
mod operator;
mod verify;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::Client;

pub use binaries::Binaries;
pub use catalogue::{CatalogueOptions, write_catalogue};
pub use gateway::Gateway;
pub use ledger::{Booking, LedgerCopy, LedgerView, ReservationRef, Segment};
pub use objects::{REGION, SKU, holds};
pub use operator::Operator;
pub use verify::{Finding, Verdict};

use crate::lab::Lab;

/// The chart.
pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/spillway");
/// Where it is installed.
pub const NAMESPACE: &str = "spillway-system";
/// The user that the operator is.
pub const OPERATOR_USER: &str = "system:serviceaccount:spillway-system:spillway-operator";
/// The user that a gateway is.
pub const GATEWAY_USER: &str = "system:serviceaccount:spillway-system:spillway-gateway";
/// Longest time from an install to policies in force.
const POLICY_BOUND: Duration = Duration::from_secs(30);

/// Spillway on a lab.
pub struct Spillway<'lab> {
    lab: &'lab Lab,
    client: Client,
    binaries: Binaries,
    operator_kubeconfig: PathBuf,
}

impl<'lab> Spillway<'lab> {
    /// Installs the chart without operator and agent pods and waits until its policies are in force.
    pub async fn install(lab: &'lab Lab) -> Result<Self> {
        Self::install_with(lab, &["operator.replicas=0", "agent.enabled=false"]).await
    }

    /// Installs the chart with these values (`key=value`, as `--set` takes them) and waits until its policies are in force.
    pub async fn install_with(lab: &'lab Lab, values: &[&str]) -> Result<Self> {
        let binaries = tokio::task::spawn_blocking(Binaries::find).await.context("looking for the binaries")??;
        let mut arguments = vec!["install", "spillway", CHART, "-n", NAMESPACE, "--create-namespace"];
        for value in values {
            arguments.extend(["--set", value]);
        }
        lab.helm(&arguments).await?;
        let groups = ["system:serviceaccounts", "system:serviceaccounts:spillway-system"];
        let spillway = Self {
            lab,
            client: lab.client()?,
            binaries,
            operator_kubeconfig: lab.kubeconfig_for(OPERATOR_USER, &groups)?,
        };
        spillway.wait_for_policies().await?;
        Ok(spillway)
    }

    /// The lab.
    pub fn lab(&self) -> &'lab Lab {
        self.lab
    }

    /// The admin's client.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client that the policies let through: what an administrator does by breaking the glass.
    pub fn break_glass(&self) -> Result<Client> {
        self.lab.client_as("lab:break-glass", &["system:masters", "spillway:break-glass"], &[])
    }

    /// The operator's kubeconfig.
    pub fn operator_kubeconfig(&self) -> PathBuf {
        self.operator_kubeconfig.clone()
    }

    /// The binaries under test.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// Waits until `check` answers true. See [`crate::wait_for`].
    pub async fn wait_for<F, Fut>(&self, what: &str, timeout: Duration, check: F) -> Result<()>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<bool>>,
    {
        crate::wait::wait_for(what, timeout, check).await
    }

    /// Policies take effect one by one, up to a second after they were written: one that refuses and one that mutates are tried. One that mutates a kind
    /// of ours takes longer: the API server looks for new schemas every five seconds, and refuses such objects until then.
    async fn wait_for_policies(&self) -> Result<()> {
        self.wait_for("the chart's policies to be in force", POLICY_BOUND, || async {
            Ok(self.refuses_role_label().await?
                && self.closes_new_nodes().await?
                && self.finalizes_reservations().await?)
        })
        .await
    }
}
