//! While all pools observe: nodes count as open in a plan, and lose what an earlier mode wrote on them.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{controller::Action, reflector::ObjectRef},
};
use spillway_crds::names::POOL_LABEL;
use spillway_manifests::observe::build_release;
use spillway_planner::{NodeSale, Snapshot};

use super::State;
use crate::{
    context::Context,
    error::{Error, call},
    snapshot::soundness,
};

/// A node that needs nothing is looked at again after so long.
const RESYNC: Duration = Duration::from_secs(300);

/// Lets the plan see what it could sell: every node that is sound, whatever its taints say.
pub(super) fn open_nodes(context: &Context, snapshot: &mut Snapshot) {
    for node in snapshot.nodes.iter_mut().filter(|node| node.sale == NodeSale::NotNow) {
        let object = context.stores.nodes.get(&ObjectRef::new(node.name.as_str()));
        let pool = context.stores.pools.get(&ObjectRef::new(node.pool.as_str()));
        let (Some(object), Some(pool)) = (object, pool) else { continue };
        let sound = soundness(&object, &pool);
        if sound.ready && !sound.cordoned && !sound.deleting && sound.wrong_devices.is_none() {
            node.sale = NodeSale::Open;
        }
    }
}

/// Takes a hold off a node, once no policy acts any more. Until the API server has noticed that, it puts one back, and this comes again.
pub(super) async fn release(context: &Context, state: &State, node: &Node) -> Result<Action, Error> {
    if state.doubt().is_some() {
        return Ok(Action::requeue(Duration::from_secs(1)));
    }
    let Some(patch) = build_release(node).filter(|_| node.labels().contains_key(POOL_LABEL)) else {
        return Ok(Action::requeue(RESYNC));
    };
    // A leader that was paused must not take off what another one has sold since.
    let expected = context.view().generation;
    let found = context.fence.generation().await?;
    if expected != found {
        return Err(Error::Fenced { action: "taking a hold off a node", expected, found });
    }
    let api: Api<Node> = Api::all(context.client.clone());
    let name = node.name_any();
    call("taking a hold off a node", api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(&patch))).await?;
    context.metrics.node_writes.inc();
    tracing::info!(node = name, "all pools observe: its hold was taken off");
    Ok(Action::requeue(Duration::from_secs(2)))
}
