//! `ModelEndpoint`: fetch the model and the capacity, lay out a Deployment and a Service, prune what is not asked for any more, say how it does.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler, core::v1::Service,
        networking::v1::NetworkPolicy, policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::{controller::Action, events::EventType, reflector::ObjectRef},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use spillway_crds::{
    CanaryPhase, Capacity, Model, ModelEndpoint, ModelVersion,
    names::{ENDPOINT_LABEL, EXTERNAL_METRICS_APISERVICE, FIELD_MANAGER, RESERVATION_LABEL, ROLE_LABEL, ROLE_OWNER},
    parse_duration_ms,
};
use spillway_manifests::endpoint::{
    ASLEEP, Facts, Place, Replicas, STOP_SECONDS, Serving, build_autoscaler, build_deployment, build_disruption_budget,
    build_network_policy, build_service, build_status, burst_name, canary_share, deployment_name, find_version,
    runtime_of, shift,
};
use spillway_planner::{Booking, ReservationUid};

mod burst;
mod canary;

use crate::{
    context::Context,
    error::{Error, call},
    external::Registration,
    kill, status,
};

/// An endpoint in which nothing happens is looked at again after so long.
const RESYNC: Duration = Duration::from_secs(300);

/// What an endpoint can be laid out from.
struct Found {
    model: Arc<Model>,
    version: ModelVersion,
    /// The pools that it may run on.
    pools: Vec<String>,
    resource: String,
    /// The pool of burst reservations.
    pool: String,
    /// Replicas for which the named reservation holds devices.
    held: i32,
    /// Why these are no more.
    missing: String,
    /// Seconds for which a replica that goes serves what it has.
    drain_seconds: u32,
}

/// Looks at an endpoint.
///
/// # Errors
/// When the API server cannot be asked or told.
pub async fn reconcile(object: Arc<ModelEndpoint>, context: Arc<Context>) -> Result<Action, Error> {
    if object.metadata.deletion_timestamp.is_some() {
        // What it owns goes with it.
        return Ok(Action::await_change());
    }
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    if context.view().ledger.is_none() {
        // Nothing is known of what is held: what there is stays.
        return Ok(Action::requeue(Duration::from_secs(2)));
    }
    let mut facts = Facts::default();
    // Before anything else, and also where nothing can be laid out: until then it may change the number of replicas that somebody asks for.
    let dropped = drop_autoscaler(&context, &object, &namespace, &name).await;
    let external = object.spec.external.as_ref();
    let served = match (external, &object.spec.capacity) {
        (Some(external), _) => {
            facts.regions = Some(external.region.clone().into_iter().collect());
            check_external(&context, &object, &namespace)
        }
        (None, Some(capacity)) => serve(&context, &object, capacity, (&namespace, &name), &mut facts).await?,
        // The schema lets none in.
        (None, None) => Ok(()),
    };
    // What serves goes on: a model or reservation that cannot be found may be on its way back.
    if let Err(problem) = served {
        let known = object.status.as_ref().map_or(0, |status| status.bookable_replicas);
        facts.bookable = if problem.0 == "NoCapacity" { 0 } else { known };
        facts.problem = Some(problem);
    }
    if facts.autoscaling.is_none() {
        facts.autoscaling = autoscaling(&context, &object, &namespace, &name);
    }
    facts.replicas = count(&context, &namespace, &name);
    facts.waiting = waiting(&context, &object, &namespace, &name);
    let mut status = build_status(&object, &facts, Timestamp::now());
    let phase = status.canary.as_ref().map(|canary| canary.phase);
    let there: Vec<Arc<Deployment>> = deployments(&context, &namespace, &name).collect();
    status.versions =
        if external.is_some() { Vec::new() } else { canary::versions(&object, &there, phase, facts.canary_moves) };
    let api: Api<ModelEndpoint> = Api::namespaced(context.client.clone(), &namespace);
    kill::point("endpoint.before-status");
    status::write("writing an endpoint's status", &api, &*object, object.status.as_ref(), &status).await?;
    if let Some(canary) = facts.canary.filter(|canary| canary.phase == Some(CanaryPhase::RolledBack)) {
        context.event(&*object, EventType::Warning, "CanaryRolledBack", &canary.message, "RollBack").await;
    }
    dropped?;
    Ok(Action::requeue(RESYNC))
}

/// Lays out an endpoint of our own replicas, or says why that cannot be.
async fn serve(
    context: &Context,
    endpoint: &ModelEndpoint,
    capacity: &Capacity,
    (namespace, name): (&str, &str),
    facts: &mut Facts,
) -> Result<Result<(), (&'static str, String)>, Error> {
    let found = match fetch(context, endpoint, capacity, namespace) {
        Ok(found) => found,
        Err(problem) => return Ok(Err(problem)),
    };
    let (runtime, needs) = match runtime_of(&found.version) {
        Ok(both) => both,
        Err(problem) => return Ok(Err(problem)),
    };
    let serving = Serving {
        endpoint,
        namespace,
        name,
        model: &endpoint.spec.model.name,
        version: &found.version,
        runtime,
        needs,
        resource: &found.resource,
        pool: &found.pool,
        reservation: &capacity.reservation,
        drain_seconds: found.drain_seconds,
    };
    lay_out(context, &serving, capacity, &found, facts).await.map(Ok)
}

/// Makes, changes and ends what an endpoint is laid out as.
async fn lay_out(
    context: &Context,
    serving: &Serving<'_>,
    capacity: &Capacity,
    found: &Found,
    facts: &mut Facts,
) -> Result<(), Error> {
    let most = capacity.burst.as_ref().map_or(0, |burst| burst.max_replicas);
    let beyond = serving.endpoint.spec.replicas.saturating_sub(found.held).clamp(0, most);
    let bursts = burst::known(context, serving.endpoint);
    let (more, waits) = burst::bookable(&bursts, most);
    facts.bookable = found.held.saturating_add(more);
    facts.missing = Some(waits.unwrap_or_else(|| found.missing.clone()));
    facts.problem = burst::create(context, serving, &bursts, beyond).await?;
    if facts.problem.is_some() {
        return Ok(());
    }
    let there: Vec<Arc<Deployment>> = deployments(context, serving.namespace, serving.name).collect();
    let usable = burst::usable(&bursts, serving, beyond);
    let bursting = i32::try_from(usable.len()).unwrap_or(i32::MAX);
    let wanted = serving.endpoint.spec.replicas.min(found.held.saturating_add(bursting));
    let weight = serving.endpoint.spec.canary.as_ref().map_or(0, |canary| canary.weight);
    let share = canary_share(wanted, weight).min(found.held);
    let (tried, canary) = canary::look(context, serving.endpoint, &found.model, serving.needs.devices, share, &there);
    facts.canary = canary;
    let plan = Plan::new(serving, found.held, &usable, tried.as_ref().map(|_| share), &there);
    let tried = tried.as_ref().and_then(|version| {
        let (runtime, needs) = runtime_of(version).ok()?;
        Some(Serving { version, runtime, needs, ..serving.clone() })
    });
    let mut wanted: Vec<(&Serving<'_>, Place)> = plan.places.iter().map(|place| (serving, *place)).collect();
    wanted.extend(tried.iter().map(|tried| (tried, Place::Named(plan.canary))));
    facts.canary_moves = plan.canary > share;
    let applied = apply(context, serving, &wanted, &mut facts.autoscaling).await?;
    let is_settled = applied == Applied::Known && there.iter().all(|one| is_rolled_out(one));
    facts.regions = Some(regions(context, serving, found, &bursts, is_settled || there.is_empty()));
    if let Applied::Taken(problem) = applied {
        facts.problem = Some(problem);
    }
    if facts.problem.is_none() {
        kill::point("endpoint.before-prune");
        prune(context, serving, &wanted, &plan.old, &there).await?;
        burst::end(context, serving, &bursts, beyond, &there).await?;
    }
    Ok(())
}

/// Which Deployments there are to be.
struct Plan {
    /// Of the version that is asked for.
    places: Vec<Place>,
    /// Replicas of the canary, on the named reservation.
    canary: i32,
    /// Of versions before, which go as others come: with so many replicas.
    old: Vec<(Arc<Deployment>, i32)>,
}

impl Plan {
    /// `share`: replicas that a version has which is tried.
    fn new(serving: &Serving<'_>, held: i32, usable: &[i32], share: Option<i32>, there: &[Arc<Deployment>]) -> Self {
        let spec = &serving.endpoint.spec;
        let is_new = |one: &Deployment| canary::is_of(one, &serving.version.name);
        let is_canary = |one: &Deployment| {
            share.is_some() && spec.canary.as_ref().is_some_and(|canary| canary::is_of(one, &canary.version))
        };
        // What was tried and is not any more goes at once: nothing has to come in its place first.
        let is_gone = |one: &Deployment| canary::was_tried(serving.endpoint, one) && !is_new(one) && !is_canary(one);
        let is_old = |one: &Deployment| !is_new(one) && !is_canary(one) && !is_gone(one);
        let on = |one: &Deployment, name: &str| one.labels().get(RESERVATION_LABEL).is_some_and(|of| of == name);
        let sum = |all: &mut dyn Iterator<Item = &Arc<Deployment>>| {
            all.fold(Replicas::default(), |sum, one| Replicas {
                laid_out: sum.laid_out + laid_out(one),
                ready: sum.ready + ready(one),
            })
        };
        let named = serving.reservation;
        let share = share.unwrap_or(0);
        let tried = sum(&mut there.iter().filter(|one| is_canary(one) && on(one, named)));
        // A version that served before it was tried is old in all that is beyond its share.
        let beyond = Replicas { laid_out: (tried.laid_out - share).max(0), ready: (tried.ready - share).max(0) };
        let old = sum(&mut there.iter().filter(|one| is_old(one) && on(one, named)));
        let before = Replicas { laid_out: old.laid_out + beyond.laid_out, ready: old.ready + beyond.ready };
        let now = sum(&mut there.iter().filter(|one| is_new(one) && on(one, named)));
        // Those of the canary that answer take the place of others; the rest do so where there is no device for both.
        let answer = tried.ready.min(share);
        let (mut keep, lay) = shift(spec.replicas - answer, held - share, before, now);
        let mut old = Vec::new();
        for one in there.iter().filter(|one| is_old(one) && on(one, named)) {
            let kept = laid_out(one).min(keep);
            keep -= kept;
            old.push((Arc::clone(one), kept));
        }
        let canary = share + keep.clamp(0, beyond.laid_out);
        let mut places = vec![Place::Named(lay)];
        // One burst replica at a time changes its version, and only while all of the new one answer.
        let mut may_change = canary == share && old.iter().all(|(_, kept)| *kept == 0) && now.ready >= lay;
        for number in usable {
            let name = burst_name(serving.name, *number);
            let mut here = there.iter().filter(|one| on(one, &name));
            match here.find(|one| !is_new(one) && !is_gone(one)) {
                Some(before) if !may_change => old.push((Arc::clone(before), 1)),
                before => {
                    places.push(Place::Burst(*number));
                    let answers = there.iter().any(|one| on(one, &name) && is_new(one) && ready(one) > 0);
                    may_change &= before.is_none() && answers;
                }
            }
        }
        Self { places, canary, old }
    }
}

/// Regions in which replicas are, or may come to be: of none, where one is not known. What was said before stands until no pod of another time is left.
fn regions(
    context: &Context,
    serving: &Serving<'_>,
    found: &Found,
    bursts: &BTreeMap<i32, burst::Burst>,
    is_settled: bool,
) -> Vec<String> {
    let mut pools: BTreeSet<String> = found.pools.iter().cloned().collect();
    pools.extend(bursts.values().map(burst::Burst::pool));
    let known = |name: &String| context.stores.pools.get(&ObjectRef::new(name)).map(|pool| pool.spec.region.clone());
    let Some(mut regions) = pools.iter().map(known).collect::<Option<BTreeSet<String>>>() else { return Vec::new() };
    if let Some(before) = serving.endpoint.status.as_ref().filter(|_| !is_settled).map(|status| &status.regions) {
        if before.is_empty() {
            return Vec::new();
        }
        regions.extend(before.iter().cloned());
    }
    regions.into_iter().collect()
}

/// Whether all pods of a Deployment are as it asks for, and none of another time is left.
fn is_rolled_out(deployment: &Deployment) -> bool {
    let Some(status) = &deployment.status else { return false };
    let replicas = status.replicas.unwrap_or(0);
    status.observed_generation >= deployment.metadata.generation
        && status.updated_replicas.unwrap_or(0) == replicas
        && status.terminating_replicas.unwrap_or(0) == 0
}

/// Replicas that a Deployment asks for.
fn laid_out(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Replicas of a Deployment that answer.
fn ready(deployment: &Deployment) -> i32 {
    deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
}

/// Whether a namespace is one of an owner Tenant.
fn is_owners(context: &Context, namespace: &str) -> bool {
    let role = context.namespace(namespace).and_then(|found| found.labels().get(ROLE_LABEL).cloned());
    role.as_deref() == Some(ROLE_OWNER)
}

/// The model of an endpoint, and the version that is asked for.
fn find_model(context: &Context, object: &ModelEndpoint) -> Result<(Arc<Model>, ModelVersion), (&'static str, String)> {
    let model = context.hosted.models.get(&ObjectRef::new(&object.spec.model.name)).ok_or_else(|| {
        let message = format!("There is no Model {}: create it, or set spec.model.name.", object.spec.model.name);
        ("ModelNotFound", message)
    })?;
    let version = find_version(&model, &object.spec.model.version)?.clone();
    Ok((model, version))
}

/// Whether an endpoint of a provider can be served.
fn check_external(context: &Context, object: &ModelEndpoint, namespace: &str) -> Result<(), (&'static str, String)> {
    if !is_owners(context, namespace) {
        // Whoever could name an address would be sent the credentials of gateways there, and reach what they reach.
        let message = format!(
            "spec.external is for namespaces of an owner Tenant, and {namespace} is none: make the endpoint in one, and share it by spec.access."
        );
        return Err(("ExternalNotAllowed", message));
    }
    find_model(context, object).map(drop)
}

/// The model's version and the capacity, or why there is none.
fn fetch(
    context: &Context,
    object: &ModelEndpoint,
    capacity: &Capacity,
    namespace: &str,
) -> Result<Found, (&'static str, String)> {
    let shared = object.spec.access.as_ref().is_some_and(|access| !access.tenants.is_empty());
    if shared && !is_owners(context, namespace) {
        let message = format!(
            "spec.access.tenants shares the endpoint, and namespace {namespace} is not one of an owner Tenant: leave it out, or make the endpoint there."
        );
        return Err(("AccessNotAllowed", message));
    }
    let (model, version) = find_model(context, object)?;
    let devices_each = runtime_of(&version)?.1.devices;
    let reservation = &capacity.reservation;
    let found = context.stores.reservations.get(&ObjectRef::new(reservation).within(namespace)).ok_or_else(|| {
        let message = format!(
            "There is no GpuReservation {reservation} in namespace {namespace}: create it, or set spec.capacity.reservation."
        );
        ("ReservationNotFound", message)
    })?;
    let view = context.view();
    let booking = view.booking_of(&ReservationUid::from(found.uid().unwrap_or_default()));
    let burst = capacity.burst.as_ref();
    let phase = found.status.as_ref().map_or("Pending", |status| status.phase.as_str());
    let says_why = format!("kubectl describe gpures {reservation} -n {namespace} says why.");
    let own = booking.map(|booking| booking.pool.as_str());
    // Beyond the reservation there is something to run on, whatever becomes of it.
    let beyond = burst.and_then(|burst| burst.pool.as_deref().or(own).or(found.spec.pool.as_deref()));
    let name = own.or(beyond).ok_or_else(|| {
        ("NoCapacity", format!("GpuReservation {reservation} is {phase} and holds no devices: {says_why}"))
    })?;
    let pool = context.stores.pools.get(&ObjectRef::new(name)).ok_or_else(|| {
        let message = format!("There is no GpuPool {name}: set spec.capacity.burst.pool to one that there is, or ask the operator of the cluster.");
        ("PoolNotFound", message)
    })?;
    let burst_pool = context.stores.pools.get(&ObjectRef::new(beyond.unwrap_or(name)));
    if burst_pool.as_ref().is_some_and(|burst| burst.spec.devices.resource != pool.spec.devices.resource) {
        let message = format!(
            "GpuPool {} has other devices than the one of GpuReservation {reservation}: name a pool of the same devices in spec.capacity.burst.pool.",
            beyond.unwrap_or(name)
        );
        return Err(("PoolNotFound", message));
    }
    let held = booking.map_or(0, |booking| fits(booking, devices_each));
    let devices: u32 = booking.map_or(0, |booking| open(booking).sum());
    let missing = format!(
        "Reservation {reservation} holds {devices} devices, and each replica takes {devices_each} of one node: reserve more, or want fewer replicas."
    );
    let cap = context.config.grace_cap_seconds;
    let drain = parse_duration_ms(&object.spec.drain).unwrap_or(30_000).div_euclid(1_000);
    let drain_seconds = u32::try_from(drain).unwrap_or(u32::MAX);
    let longest = cap.saturating_sub(STOP_SECONDS);
    // The default is less where it must be.
    let drain_seconds = if object.spec.drain == "30s" { drain_seconds.min(longest) } else { drain_seconds };
    if drain_seconds > longest {
        let message = format!(
            "spec.drain is {}, and pods may take {cap} s to stop here (graceCapSeconds of the chart), of which {STOP_SECONDS} are the engine's: set it to {longest}s at most.",
            object.spec.drain
        );
        return Err(("DrainTooLong", message));
    }
    let mut pools = vec![name.to_owned()];
    pools.extend(burst.and(beyond).map(str::to_owned));
    let (resource, pool) = (pool.spec.devices.resource.clone(), beyond.unwrap_or(name).to_owned());
    Ok(Found { model, version, pools, drain_seconds, resource, pool, held, missing })
}

/// Devices that a booking has on each of its nodes, of those that were handed over.
fn open(booking: &Booking) -> impl Iterator<Item = u32> {
    booking
        .segments
        .iter()
        .filter(|segment| segment.to.is_none() && segment.from.is_some())
        .map(|segment| segment.devices)
}

/// How many replicas fit into a booking: each is whole on one node.
fn fits(booking: &Booking, devices: i32) -> i32 {
    let each = u32::try_from(devices).unwrap_or(1).max(1);
    i32::try_from(open(booking).map(|held| held / each).sum::<u32>()).unwrap_or(i32::MAX)
}

/// Name of the Deployment of a version at a place.
fn name_of((serving, place): &(&Serving<'_>, Place)) -> String {
    deployment_name(serving.name, &serving.version.name, *place)
}

/// What came of applying what is laid out.
#[derive(Debug, Eq, PartialEq)]
enum Applied {
    /// It was, just so, a short while ago, and is as it was.
    Known,
    /// It is now.
    Anew,
    /// Somebody else has the fields: a word and a sentence.
    Taken((&'static str, String)),
}

/// Applies what is laid out. What was applied just so a short while ago is not again.
async fn apply(
    context: &Context,
    serving: &Serving<'_>,
    wanted: &[(&Serving<'_>, Place)],
    autoscaling: &mut Option<(bool, &'static str, String)>,
) -> Result<Applied, Error> {
    let names: Vec<String> = wanted.iter().map(name_of).collect();
    // In this order: nobody comes by before the policy, and the Service is there before who is behind it.
    let mut all = vec![
        ("NetworkPolicy", serving.name, build_network_policy(serving, &context.config.namespace)),
        ("Service", serving.name, build_service(serving)),
        ("PodDisruptionBudget", serving.name, build_disruption_budget(serving)),
    ];
    for ((of, place), name) in wanted.iter().zip(&names) {
        all.push(("Deployment", name.as_str(), build_deployment(of, *place)));
    }
    let scales = (context.hosted.registration() == Registration::Ours).then(|| build_autoscaler(serving)).flatten();
    let lacks = scales.is_some() && autoscaler(context, serving.namespace, serving.name).is_none();
    if let Some(autoscaler) = scales {
        all.insert(0, ("HorizontalPodAutoscaler", serving.name, autoscaler));
    }
    let key = format!("{}/{}", serving.namespace, serving.name);
    let print = json!(all.iter().map(|(.., object)| object).collect::<Vec<_>>()).to_string();
    // Somebody's change of a Deployment makes its generation another one.
    let there: Vec<Arc<Deployment>> = deployments(context, serving.namespace, serving.name).collect();
    let generation = |name: &String| there.iter().find(|one| one.name_any() == *name)?.metadata.generation;
    let known = (print.clone(), names.iter().map(generation).collect::<Vec<_>>());
    if !lacks && known.1.iter().all(Option::is_some) && context.hosted.was_applied(&key, &known) {
        return Ok(Applied::Known);
    }
    let mut generations = Vec::new();
    let mut whole = true;
    for (kind, name, object) in all {
        let applied = match kind {
            "NetworkPolicy" => apply_one::<NetworkPolicy>(context, serving.namespace, name, &object).await,
            "Service" => apply_one::<Service>(context, serving.namespace, name, &object).await,
            "HorizontalPodAutoscaler" => {
                apply_one::<HorizontalPodAutoscaler>(context, serving.namespace, name, &object).await
            }
            "PodDisruptionBudget" => apply_one::<PodDisruptionBudget>(context, serving.namespace, name, &object).await,
            _ => apply_one::<Deployment>(context, serving.namespace, name, &object).await,
        };
        match applied {
            Ok(now) => {
                if kind == "Deployment" {
                    generations.push(now);
                }
                kill::point("endpoint.after-apply");
            }
            // What serves does so without it.
            Err(error) if kind == "HorizontalPodAutoscaler" && error.is_conflict() => {
                let (reason, message) = taken(kind, name, error)?;
                *autoscaling = Some((false, reason, message));
                whole = false;
            }
            Err(error) => return taken(kind, name, error).map(Applied::Taken),
        }
    }
    if whole {
        context.hosted.note_applied(key, (print, generations));
    }
    Ok(Applied::Anew)
}

/// Applies an object; gives its generation. Not by force: what somebody else made under this name is not taken over.
async fn apply_one<K>(context: &Context, namespace: &str, name: &str, object: &Value) -> Result<Option<i64>, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), namespace);
    let params = PatchParams::apply(FIELD_MANAGER);
    let applied = call("applying an object of an endpoint", api.patch(name, &params, &Patch::Apply(object))).await?;
    Ok(applied.meta().generation)
}

/// Somebody else has fields of an object that an endpoint needs.
fn taken(kind: &str, name: &str, error: Error) -> Result<(&'static str, String), Error> {
    if !error.is_conflict() {
        return Err(error);
    }
    let message = format!(
        "{kind} {name} is another's, or was changed by hand: delete it, or give the endpoint another name ({error})."
    );
    Ok(("NameTaken", message))
}

/// The Deployments of an endpoint.
fn deployments(context: &Context, namespace: &str, name: &str) -> impl Iterator<Item = Arc<Deployment>> {
    let all = context.hosted.deployments.state().into_iter();
    all.filter(move |one| {
        one.namespace().as_deref() == Some(namespace) && one.labels().get(ENDPOINT_LABEL).is_some_and(|of| of == name)
    })
}

/// Deletes what an endpoint has and its spec does not ask for any more.
async fn prune(
    context: &Context,
    serving: &Serving<'_>,
    wanted: &[(&Serving<'_>, Place)],
    old: &[(Arc<Deployment>, i32)],
    there: &[Arc<Deployment>],
) -> Result<(), Error> {
    let namespace = serving.namespace;
    let names: Vec<String> = wanted.iter().map(name_of).collect();
    for one in there.iter().filter(|one| !names.contains(&one.name_any())) {
        let kept = old.iter().find(|(old, _)| old.name_any() == one.name_any()).map_or(0, |(_, kept)| *kept);
        if kept == 0 {
            delete(context, namespace, &**one).await?;
            kill::point("endpoint.after-delete");
        } else if laid_out(one) != kept {
            shrink(context, namespace, one, kept).await?;
            kill::point("endpoint.after-shrink");
        }
    }
    Ok(())
}

/// Deletes an autoscaler that there is not to be.
async fn drop_autoscaler(
    context: &Context,
    endpoint: &ModelEndpoint,
    namespace: &str,
    name: &str,
) -> Result<(), Error> {
    // One that asks another adapter for our metrics would be told nothing good. While it is not known who has the API, what there is stays.
    let lost = matches!(context.hosted.registration(), Registration::Another | Registration::Nobody);
    if (endpoint.spec.scaling.is_none() || lost)
        && let Some(old) = autoscaler(context, namespace, name)
    {
        delete(context, namespace, &*old).await?;
    }
    Ok(())
}

/// Leaves a Deployment of a version before with so many replicas, as it was read.
async fn shrink(context: &Context, namespace: &str, old: &Deployment, replicas: i32) -> Result<(), Error> {
    let api: Api<Deployment> = Api::namespaced(context.client.clone(), namespace);
    let patch = Patch::Merge(json!({
        "metadata": {"resourceVersion": old.resource_version()}, "spec": {"replicas": replicas},
    }));
    let (name, params) = (old.name_any(), PatchParams::default());
    call("shrinking the version before", api.patch(&name, &params, &patch)).await.map(drop)
}

/// Deletes an object of an endpoint, if it is still that one.
async fn delete<K>(context: &Context, namespace: &str, old: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), namespace);
    let preconditions = Some(Preconditions { uid: old.uid(), resource_version: None });
    let params = DeleteParams { preconditions, ..DeleteParams::background() };
    match call("deleting what an endpoint does not ask for", api.delete(&old.name_any(), &params)).await {
        Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
        _ => Ok(()),
    }
}

/// The autoscaler of an endpoint, if there is one.
fn autoscaler(context: &Context, namespace: &str, name: &str) -> Option<Arc<HorizontalPodAutoscaler>> {
    let found = context.hosted.autoscalers.get(&ObjectRef::new(name).within(namespace))?;
    found.labels().get(ENDPOINT_LABEL).is_some_and(|of| of == name).then_some(found)
}

/// Whether replicas follow what is asked, and why not.
fn autoscaling(
    context: &Context,
    endpoint: &ModelEndpoint,
    namespace: &str,
    name: &str,
) -> Option<(bool, &'static str, String)> {
    let scaling = endpoint.spec.scaling.as_ref()?;
    let nobody = "set autoscaling.externalMetrics to true in the chart's values, and replicas follow what is asked.";
    match context.hosted.registration() {
        Registration::Unknown => return None,
        Registration::Nobody => {
            let message = format!("There is no APIService {EXTERNAL_METRICS_APISERVICE}: {nobody}");
            return Some((false, "MetricsNotRegistered", message));
        }
        Registration::Another => {
            let message = format!(
                "Another adapter has APIService {EXTERNAL_METRICS_APISERVICE}, and a cluster has one: between none and one replica is scaled, above that it is not. Take that adapter away and {nobody}"
            );
            return Some((false, "AnotherAdapter", message));
        }
        Registration::Ours => {}
    }
    if endpoint.spec.replicas == 0 {
        return Some(match scaling.min {
            0 => (true, ASLEEP, "The first request starts a replica.".to_owned()),
            _ => (false, "Stopped", "It is stopped: spec.replicas is 0.".to_owned()),
        });
    }
    let found = autoscaler(context, namespace, name)?;
    let conditions = found.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let active = conditions.into_iter().find(|one| one.type_ == "ScalingActive");
    match active {
        // It stands still at none, and says so until it looks again.
        Some(one) if one.status == "False" && one.reason.as_deref() != Some("ScalingDisabled") => {
            let why = one.message.clone().unwrap_or_default();
            Some((false, "MetricsMissing", format!("The HorizontalPodAutoscaler {name} changes nothing: {why}")))
        }
        Some(one) if one.status == "True" => {
            let message = format!("From {} to {} replicas.", scaling.min, scaling.max);
            Some((true, "FollowsLoad", message))
        }
        _ => None,
    }
}

/// Why pods wait for room on the reservations of an endpoint, if some do.
fn waiting(context: &Context, endpoint: &ModelEndpoint, namespace: &str, name: &str) -> Option<String> {
    let capacity = endpoint.spec.capacity.as_ref()?;
    let burst = capacity.burst.as_ref().map_or(0, |burst| burst.max_replicas);
    let names = [capacity.reservation.clone()].into_iter().chain((0..burst).map(|number| burst_name(name, number)));
    let found = names.filter_map(|one| context.stores.reservations.get(&ObjectRef::new(&one).within(namespace)));
    let reason = found.filter_map(|one| context.waiting_for(namespace, &one.uid().unwrap_or_default().into())).next();
    reason.map(|(_, reason)| reason.message)
}

/// Replicas that there are, and those that answer.
fn count(context: &Context, namespace: &str, name: &str) -> (i32, i32) {
    deployments(context, namespace, name).filter_map(|one| one.status.clone()).fold((0, 0), |(there, ready), status| {
        (there + status.replicas.unwrap_or(0), ready + status.ready_replicas.unwrap_or(0))
    })
}
