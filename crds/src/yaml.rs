//! The CRDs as YAML: what is committed beside this crate and what the chart installs.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::{CapacityLedger, CapacityLedgerPage, GpuNode, GpuPool, GpuReservation, Tenant};

/// All CRDs, in the order in which they are installed.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![
        GpuPool::crd(),
        GpuReservation::crd(),
        Tenant::crd(),
        GpuNode::crd(),
        CapacityLedger::crd(),
        CapacityLedgerPage::crd(),
    ]
}

/// The file name and YAML text of each CRD.
///
/// # Errors
/// When a CRD cannot be serialised, which would be a mistake in this crate.
pub fn files() -> Result<Vec<(String, String)>, serde_yaml::Error> {
    all()
        .into_iter()
        .map(|crd| {
            let name = format!("{}.yaml", crd.spec.names.plural);
            let head = "# Generated from crds/src by `make generate`. Do not edit.\n";
            Ok((name, format!("{head}{}", serde_yaml::to_string(&crd)?)))
        })
        .collect()
}
