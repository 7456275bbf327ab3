//! `GpuPool`: finalizer and status, the public capacity statement.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{Api, ResourceExt, runtime::controller::Action};
use spillway_crds::{
    GpuPool, Mode,
    names::{HOLD_CLOSED, HOLD_UNSOLD, POOL_LABEL},
};
use spillway_manifests::{
    hold, observe,
    pool::{Facts, NodeClass, NodeFacts, build_status},
    validate,
};
use spillway_planner::{Booking, NodeUid};

use crate::{
    context::{Context, owners},
    error::Error,
    finalizer,
    guards::state::UNTOLD,
    metrics::PoolState,
    snapshot::{Owners, owner_devices, soundness},
    status,
    view::View,
};

/// A pool's status is reckoned at most this often, but for changes of the pool itself.
pub const STATEMENTS: Duration = Duration::from_secs(5);

/// Looks at a pool.
///
/// # Errors
/// When the API server cannot be asked or told.
pub async fn reconcile(object: Arc<GpuPool>, context: Arc<Context>) -> Result<Action, Error> {
    let name = object.name_any();
    let api: Api<GpuPool> = Api::all(context.client.clone());
    let deleting = object.metadata.deletion_timestamp.is_some();
    if !finalizer::is_on(&*object) {
        if !deleting {
            finalizer::add(&api, &object).await?;
        }
        return Ok(Action::await_change());
    }
    let view = context.view();
    if view.ledger.is_none() && view.blocked.is_none() {
        // A new leader that has not read the ledger: what its predecessor said stands.
        return Ok(Action::requeue(Duration::from_secs(1)));
    }
    let wait = context.statements.wait(&name);
    // Nodes may have come before their pool, and what it says of them may have changed.
    if object.status.as_ref().and_then(|status| status.observed_generation) != object.metadata.generation {
        for node in context.stores.nodes.state().iter().filter(|node| node.labels().get(POOL_LABEL) == Some(&name)) {
            context.queues.nodes.push(&node.name_any()).await;
        }
    } else if let Some(wait) = wait.filter(|_| !deleting && view.blocked.is_none()) {
        return Ok(Action::requeue(wait));
    }
    let facts = facts(&context, &view, &object);
    let status = build_status(&object, &facts, Timestamp::now());
    for (state, value) in [
        ("owned", status.devices.owned),
        ("sold", status.devices.sold),
        ("held", status.devices.held),
        ("unsold", status.devices.unsold),
        ("turnover", status.devices.turnover),
        ("broken", status.devices.broken),
        ("owner_used", status.devices.owner_used),
    ] {
        context.metrics.devices.get_or_create(&PoolState { pool: name.clone(), state }).set(i64::from(value));
    }
    let written = status::write("writing a pool's status", &api, &*object, object.status.as_ref(), &status).await?;
    // A status that was written brings us back with the object as it is then.
    if deleting && !written && facts.sold.is_some_and(|(_, live)| live.is_empty()) && view.blocked.is_none() {
        finalizer::remove(&api, &object).await?;
        return Ok(Action::await_change());
    }
    // A doubt that was to pass and does not is told then.
    let again = if context.guards.state().doubt().is_some() { UNTOLD } else { Duration::from_secs(60) };
    Ok(Action::requeue(again))
}

fn facts(context: &Context, view: &View, pool: &GpuPool) -> Facts {
    let name = pool.name_any();
    let owners = owners(&context.stores.tenants.state(), &context.config);
    let mut nodes: Vec<NodeFacts> = context
        .stores
        .nodes
        .state()
        .iter()
        .filter(|node| node.labels().get(POOL_LABEL) == Some(&name))
        .map(|node| node_facts(context, view, pool, node, &owners))
        .collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let sold = view.ledger.as_ref().map(|ledger| {
        let bookings: Vec<_> = ledger.bookings().filter(|booking| booking.pool.as_str() == name).collect();
        let mut live: Vec<String> = bookings
            .iter()
            .map(|booking| format!("{}/{}", booking.reservation.namespace, booking.reservation.name))
            .collect();
        live.sort();
        (bookings.iter().map(|booking| spillway_manifests::reservation::open_devices(booking)).sum(), live)
    });
    let live = sold.as_ref().map(|(_, live)| live.as_slice()).unwrap_or_default();
    let guarded = context.guards.state();
    let planned = validate::pool(pool, context.config.grace_cap_seconds);
    let not_selling = match (&view.blocked, planned.not_selling) {
        (Some((reason, message)), _) => Some((*reason, message.clone())),
        (None, _) if let Some((reason, message)) = guarded.told() => {
            Some((*reason, format!("Nothing new is sold: {message}")))
        }
        (None, Some(why)) => {
            let reason = if pool.metadata.deletion_timestamp.is_some() {
                "Deleting"
            } else if pool.spec.sale.paused && !why.contains("graceCap") {
                "Paused"
            } else {
                "GraceCapTooLow"
            };
            let blockers = if reason == "Deleting" && !live.is_empty() {
                format!(
                    "; it goes when its bookings are over: {}",
                    live.iter().take(8).cloned().collect::<Vec<_>>().join(", ")
                )
            } else {
                String::new()
            };
            Some((reason, format!("Nothing new is sold: {why}{blockers}.")))
        }
        (None, None) => None,
    };
    let observing = (pool.spec.mode == Mode::Observe).then(|| observe::condition(&guarded.stance));
    let observed = || observing.as_ref().map(|(_, _, message)| ("Observing", message.clone()));
    let not_selling = not_selling.or_else(observed);
    Facts { nodes, sold, not_selling, observing }
}

fn node_facts(
    context: &Context,
    view: &View,
    pool: &GpuPool,
    node: &k8s_openapi::api::core::v1::Node,
    owners: &Owners,
) -> NodeFacts {
    let name = node.name_any();
    let uid = NodeUid::from(node.uid().unwrap_or_default());
    let sound = soundness(node, pool);
    let (no_schedule, _) = hold::read_taints(node);
    let bookings: Vec<&Arc<Booking>> = view.bookings_on(&uid).collect();
    // Without a ledger the taints alone say who holds it, and go on doing so.
    let held = (view.ledger.is_none() || bookings.iter().any(|one| hold::names_booking(node, one.id.as_str())))
        && !matches!(no_schedule, Some(HOLD_CLOSED | HOLD_UNSOLD) | None);
    let problem = if let Some(devices) = sound.wrong_devices.filter(|_| sound.ready) {
        Some(format!("it offers {devices} devices and the pool says {}", pool.spec.devices.per_node))
    } else if !sound.ready {
        Some("it is NotReady".to_owned())
    } else if sound.cordoned {
        Some("it is cordoned".to_owned())
    } else if let Some(booking) = bookings.iter().find(|booking| booking.pool.as_str() != pool.name_any()) {
        Some(format!("it was moved here from pool {} while it is booked there", booking.pool))
    } else {
        context.node_memory().problem.get(&uid).cloned()
    };
    let class = if held {
        NodeClass::Held
    } else if problem.is_some() {
        NodeClass::Broken
    } else if bookings.is_empty() && (no_schedule == Some(HOLD_UNSOLD) || context.guards.state().observes()) {
        NodeClass::Unsold
    } else {
        NodeClass::Turnover
    };
    let devices = validate::capacity(node, &pool.spec.devices.resource).gpu.0 / 1000;
    let devices = u32::try_from(devices).unwrap_or(0);
    NodeFacts {
        owner_used: owner_devices(&context.pods.on(&name), owners, &pool.spec.devices.resource),
        name,
        class,
        devices,
        rest: hold::rest_of_shared(node, devices),
        problem,
    }
}
