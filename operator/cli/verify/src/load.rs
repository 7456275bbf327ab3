//! Reads a [`World`] from an API server.

use std::{collections::BTreeSet, fmt::Debug};

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{Api, Client, api::ListParams};
use serde::de::DeserializeOwned;
use spillway_crds::{CapacityLedger, CapacityLedgerPage, GpuPool, GpuReservation, Tenant, names};

use crate::{Settings, World, ledger::is_page_missing};

/// Objects of a page of a list: small enough for an API server, large enough for 80,000 pods.
const LIST_LIMIT: u32 = 1000;
/// How often the ledger is read anew when it was collected while it was read.
const LEDGER_ATTEMPTS: usize = 5;

/// Why the world could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A list failed.
    #[error("could not list {what}")]
    List {
        /// Plural name of the kind.
        what: &'static str,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// The root could not be read.
    #[error("could not read the CapacityLedger \"cluster\"")]
    Root {
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// Each time that the pages were read the root had moved on and they had been collected.
    #[error("the ledger changed {LEDGER_ATTEMPTS} times while it was read: try again")]
    Restless,
}

/// Reads all that [`crate::check`] looks at, by consistent lists (no resourceVersion: the API server asks etcd), the ledger last.
///
/// # Errors
/// When a list fails, by a missing permission or a missing CRD for example.
pub async fn load(client: &Client, settings: Settings) -> Result<World, LoadError> {
    let began_ms = jiff::Timestamp::now().as_millisecond();
    let bound = ListParams::default().fields("spec.nodeName!=");
    let pods: Vec<Pod> = list(&Api::all(client.clone()), &bound, "pods").await?;
    let everything = ListParams::default();
    let nodes: Vec<Node> =
        list(&Api::all(client.clone()), &ListParams::default().labels(names::POOL_LABEL), "nodes").await?;
    let reservations: Vec<GpuReservation> =
        list(&Api::all(client.clone()), &everything, "gpureservations.spillway.dev").await?;
    let tenants: Vec<Tenant> = list(&Api::all(client.clone()), &everything, "tenants.spillway.dev").await?;
    let namespaces: Vec<Namespace> = list(&Api::all(client.clone()), &everything, "namespaces").await?;
    let pools: Vec<GpuPool> = list(&Api::all(client.clone()), &everything, "gpupools.spillway.dev").await?;
    let (root, pages) = load_ledger(client).await?;
    let on_pool_nodes: BTreeSet<&str> = nodes.iter().filter_map(|node| node.metadata.name.as_deref()).collect();
    let pods = pods
        .into_iter()
        .filter(|pod| {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            node.is_some_and(|name| on_pool_nodes.contains(name))
        })
        .collect();
    Ok(World {
        began_ms,
        now_ms: jiff::Timestamp::now().as_millisecond(),
        settings,
        root,
        pages,
        pools,
        reservations,
        tenants,
        nodes,
        pods,
        namespaces,
    })
}

/// The root, and pages among which are all that it reaches: pages never change, so that is the ledger of one moment. When pages are
/// missing because a newer root replaced them, everything is read again; when the root has not moved they are lost.
async fn load_ledger(client: &Client) -> Result<(Option<CapacityLedger>, Vec<CapacityLedgerPage>), LoadError> {
    let roots: Api<CapacityLedger> = Api::all(client.clone());
    let read_root = async || roots.get_opt(names::LEDGER_NAME).await.map_err(|source| LoadError::Root { source });
    for _ in 0..LEDGER_ATTEMPTS {
        let root = read_root().await?;
        let pages = list(&Api::all(client.clone()), &ListParams::default(), "capacityledgerpages.spillway.dev").await?;
        if !is_page_missing(root.as_ref(), &pages) {
            return Ok((root, pages));
        }
        let again = read_root().await?;
        let moved = |root: &Option<CapacityLedger>| root.as_ref().map(|root| root.spec.generation);
        if moved(&again) == moved(&root) {
            return Ok((root, pages));
        }
    }
    Err(LoadError::Restless)
}

async fn list<K>(api: &Api<K>, params: &ListParams, what: &'static str) -> Result<Vec<K>, LoadError>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut params = params.clone().limit(LIST_LIMIT);
    let mut items = Vec::new();
    loop {
        let page = api.list(&params).await.map_err(|source| LoadError::List { what, source })?;
        items.extend(page.items);
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params = params.continue_token(&token),
            _ => return Ok(items),
        }
    }
}

#[cfg(test)]
mod tests;
