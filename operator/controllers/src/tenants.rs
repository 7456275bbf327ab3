//! `Tenant`: labels of its namespaces, finalizer and status.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{controller::Action, reflector::ObjectRef},
};
use spillway_crds::{
    HeldQuota, Tenant, TenantNamespace,
    names::{SELFTEST_NAMESPACE, TENANT_LABEL},
};
use spillway_manifests::{
    tenant::{Facts, build_labels, build_status, build_unlabel},
    validate::api_tier,
};
use spillway_planner::{Booking, TenantName};

use crate::{
    context::{Context, owners},
    error::{Error, call},
    finalizer, kill, status,
};

/// A tenant is looked at at most this often, but for changes of the tenant itself.
pub const TENANCIES: Duration = Duration::from_secs(5);

/// Looks at a tenant.
///
/// # Errors
/// When the API server cannot be asked or told.
pub async fn reconcile(object: Arc<Tenant>, context: Arc<Context>) -> Result<Action, Error> {
    let name = object.name_any();
    let api: Api<Tenant> = Api::all(context.client.clone());
    let deleting = object.metadata.deletion_timestamp.is_some();
    if !finalizer::is_on(&*object) {
        if !deleting {
            finalizer::add(&api, &object).await?;
        }
        return Ok(Action::await_change());
    }
    let known = object.status.as_ref().and_then(|status| status.observed_generation) == object.metadata.generation;
    if let Some(wait) = context.tenancies.wait(&name).filter(|_| known && !deleting) {
        return Ok(Action::requeue(wait));
    }
    let view = context.view();
    let Some(ledger) = view.ledger.as_ref() else { return Ok(Action::requeue(Duration::from_secs(2))) };
    let tenant = TenantName::from(name.as_str());
    let bookings: Vec<&Arc<Booking>> = ledger.bookings().filter(|booking| booking.tenant == tenant).collect();
    let mut facts = Facts { live: live(&bookings), held: held(&bookings), ..Facts::default() };

    // While all pools observe nothing is written; what an earlier mode labelled stays, and means nothing to policies that do not act.
    if view.blocked.is_none() && !context.guards.state().observes() {
        apply_labels(&context, &object, deleting, &mut facts).await?;
        kill::point("tenant.after-labels");
        prune_labels(&context, &object, deleting, &bookings, &mut facts).await?;
    }
    let status = build_status(&object, &facts, Timestamp::now());
    let written = status::write("writing a tenant's status", &api, &*object, object.status.as_ref(), &status).await?;
    // A status that was written brings us back with the object as it is then.
    if deleting && !written && facts.live.is_empty() && view.blocked.is_none() {
        finalizer::remove(&api, &object).await?;
        return Ok(Action::await_change());
    }
    Ok(Action::requeue(Duration::from_secs(300)))
}

fn live(bookings: &[&Arc<Booking>]) -> Vec<String> {
    let mut live: Vec<String> = bookings
        .iter()
        .map(|booking| format!("{}/{}", booking.reservation.namespace, booking.reservation.name))
        .collect();
    live.sort();
    live
}

fn held(bookings: &[&Arc<Booking>]) -> Vec<HeldQuota> {
    let mut sums: BTreeMap<(String, spillway_planner::Tier), u32> = BTreeMap::new();
    for booking in bookings {
        *sums.entry((booking.sku.to_string(), booking.tier)).or_default() += booking.devices;
    }
    sums.into_iter()
        .take(256)
        .map(|((sku, tier), devices)| HeldQuota {
            sku,
            tier: api_tier(tier),
            devices: i32::try_from(devices).unwrap_or(i32::MAX),
        })
        .collect()
}

/// Labels the namespaces that are this tenant's.
async fn apply_labels(context: &Context, object: &Tenant, deleting: bool, facts: &mut Facts) -> Result<(), Error> {
    let name = object.name_any();
    let owners = owners(&context.stores.tenants.state(), &context.config);
    let api: Api<Namespace> = Api::all(context.client.clone());
    let mut listed = object.spec.namespaces.clone();
    listed.sort();
    for namespace in listed {
        if context.config.infrastructure.contains(&namespace) {
            facts.problems.push(("InfrastructureNamespace", format!(
                "Namespace {namespace} is one of the cluster's infrastructure and can be no tenant's: take it out of spec.namespaces.")));
            continue;
        }
        if namespace == SELFTEST_NAMESPACE {
            facts.problems.push(("SelfTestNamespace", format!(
                "In namespace {namespace} the operator attacks itself, so it can be no tenant's: take it out of spec.namespaces.")));
            continue;
        }
        if let Some((other, _)) = owners.get(&namespace)
            && other.as_str() != name
        {
            facts.problems.push(("NamespaceTaken", format!(
                "Namespace {namespace} is listed by the older Tenant {other}: take it out of spec.namespaces here or there.")));
            continue;
        }
        let Some(found) = context.stores.namespaces.get(&ObjectRef::new(&namespace)) else {
            facts.problems.push(("NamespaceMissing", format!("Namespace {namespace} does not exist yet: create it.")));
            continue;
        };
        let uid = found.uid().unwrap_or_default();
        if !deleting {
            if let Some(patch) = build_labels(&name, object.spec.owner, &uid, found.labels()) {
                call(
                    "labelling a tenant's namespace",
                    api.patch_metadata(&namespace, &PatchParams::default(), &Patch::Merge(&patch)),
                )
                .await?;
            }
            facts.namespaces.push(TenantNamespace { name: namespace, holder: uid });
        }
    }
    Ok(())
}

/// Takes our labels off namespaces that this tenant does not list any more, unless they hold something still.
async fn prune_labels(
    context: &Context,
    object: &Tenant,
    deleting: bool,
    bookings: &[&Arc<Booking>],
    facts: &mut Facts,
) -> Result<(), Error> {
    let name = object.name_any();
    let api: Api<Namespace> = Api::all(context.client.clone());
    for namespace in context.stores.namespaces.state() {
        if namespace.labels().get(TENANT_LABEL) != Some(&name) {
            continue;
        }
        let namespace_name = namespace.name_any();
        if !deleting && object.spec.namespaces.contains(&namespace_name) {
            continue;
        }
        if bookings.iter().any(|booking| *booking.reservation.namespace == *namespace_name) {
            facts.problems.push(("NamespaceHolds", format!(
                "Namespace {namespace_name} is not listed any more but still holds devices: it stays this tenant's until its reservations are deleted.")));
            facts
                .namespaces
                .push(TenantNamespace { name: namespace_name, holder: namespace.uid().unwrap_or_default() });
            continue;
        }
        if let Some(patch) = build_unlabel(namespace.labels()) {
            call(
                "taking labels off a namespace",
                api.patch_metadata(&namespace_name, &PatchParams::default(), &Patch::Merge(&patch)),
            )
            .await?;
        }
    }
    Ok(())
}
