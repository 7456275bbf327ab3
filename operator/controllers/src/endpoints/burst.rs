//! Replicas beyond the named reservation: each has a reservation of its own, which comes and goes with it, so that every device in use is booked.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, ResourceExt, api::PostParams, runtime::reflector::ObjectRef};
use spillway_crds::{GpuReservation, ModelEndpoint, names::RESERVATION_LABEL};
use spillway_manifests::endpoint::{Serving, build_burst, burst_name};
use spillway_planner::ReservationUid;

use super::{delete, fits};
use crate::{
    context::Context,
    error::{Error, call},
    kill,
};

/// Most burst replicas of an endpoint, by its schema.
const MOST: i32 = 64;

/// A burst reservation of an endpoint.
pub(super) struct Burst {
    object: Arc<GpuReservation>,
    /// Its devices are handed over.
    held: bool,
}

impl Burst {
    /// Whether its devices are those that a replica needs now.
    fn suits(&self, serving: &Serving<'_>) -> bool {
        self.object.spec.devices.count == serving.needs.devices && self.pool() == serving.pool
    }

    /// The pool of its devices.
    pub(super) fn pool(&self) -> String {
        self.object.spec.pool.clone().unwrap_or_default()
    }

    fn is_over(&self) -> bool {
        self.object.metadata.deletion_timestamp.is_some()
    }

    /// What it waits for, in its own words.
    fn waits(&self) -> String {
        let status = self.object.status.as_ref();
        let phase = status.map_or("Pending", |status| status.phase.as_str());
        let message = status.and_then(|status| status.message.clone()).unwrap_or_default();
        format!("GpuReservation {} is {phase}. {message}", self.object.name_any())
    }

    /// Whether devices are on their way to it, or may be.
    fn is_hopeful(&self) -> bool {
        use spillway_crds::Phase;
        let phase = self.object.status.as_ref().map_or(Phase::Pending, |status| status.phase);
        matches!(phase, Phase::Pending | Phase::Booked | Phase::Preparing | Phase::Active)
    }
}

/// The burst reservations that an endpoint has, by number.
pub(super) fn known(context: &Context, endpoint: &ModelEndpoint) -> BTreeMap<i32, Burst> {
    let (namespace, name) = (endpoint.namespace().unwrap_or_default(), endpoint.name_any());
    let view = context.view();
    let find = |number: i32| {
        let reference = ObjectRef::new(&burst_name(&name, number)).within(&namespace);
        let object = context.stores.reservations.get(&reference)?;
        // One that somebody else made under this name is theirs.
        let ours = object.owner_references().iter().any(|owner| Some(&owner.uid) == endpoint.metadata.uid.as_ref());
        let booking = view.booking_of(&ReservationUid::from(object.uid().unwrap_or_default()));
        let held = booking.is_some_and(|booking| fits(booking, object.spec.devices.count) > 0);
        ours.then_some((number, Burst { object, held }))
    };
    (0..MOST).filter_map(find).collect()
}

/// Creates those that are missing of so many. Gives why one could not be, if somebody else has its name.
pub(super) async fn create(
    context: &Context,
    serving: &Serving<'_>,
    known: &BTreeMap<i32, Burst>,
    wanted: i32,
) -> Result<Option<(&'static str, String)>, Error> {
    let api: Api<GpuReservation> = Api::namespaced(context.client.clone(), serving.namespace);
    for number in (0..wanted).filter(|number| !known.contains_key(number)) {
        let Ok(object) = serde_json::from_value::<GpuReservation>(build_burst(serving, number)) else { continue };
        match call("creating a burst reservation", api.create(&PostParams::default(), &object)).await {
            // Ours, and on its way here; or another's.
            Err(error) if error.is_conflict() => {
                let name = burst_name(serving.name, number);
                let reference = ObjectRef::new(&name).within(serving.namespace);
                if context.stores.reservations.get(&reference).is_some() {
                    let message =
                        format!("GpuReservation {name} is another's: delete it, or give the endpoint another name.");
                    return Ok(Some(("NameTaken", message)));
                }
            }
            created => {
                created?;
                kill::point("endpoint.after-burst");
            }
        }
    }
    Ok(None)
}

/// Those of so many on which a replica can run.
pub(super) fn usable(known: &BTreeMap<i32, Burst>, serving: &Serving<'_>, wanted: i32) -> Vec<i32> {
    let good = |burst: &Burst| burst.held && burst.suits(serving) && !burst.is_over();
    known.iter().filter(|(number, burst)| **number < wanted && good(burst)).map(|(number, _)| *number).collect()
}

/// Ends those that are not wanted any more, once no Deployment is on them; with them ends what they cost. Those of `wanted` that do not suit go too, and come anew.
pub(super) async fn end(
    context: &Context,
    serving: &Serving<'_>,
    known: &BTreeMap<i32, Burst>,
    wanted: i32,
    deployments: &[Arc<Deployment>],
) -> Result<(), Error> {
    let over = |(number, burst): &(&i32, &Burst)| **number >= wanted || !burst.suits(serving);
    for (_, burst) in known.iter().filter(over).filter(|(_, burst)| !burst.is_over()) {
        let name = burst.object.name_any();
        if deployments.iter().any(|one| one.labels().get(RESERVATION_LABEL) == Some(&name)) {
            continue;
        }
        delete(context, serving.namespace, &*burst.object).await?;
        kill::point("endpoint.after-burst-end");
    }
    Ok(())
}

/// For how many replicas beyond the named reservation devices are booked, or may be where so many may; and what the first waits for that has none.
pub(super) fn bookable(known: &BTreeMap<i32, Burst>, most: i32) -> (i32, Option<String>) {
    let live: Vec<&Burst> = known.values().filter(|burst| !burst.is_over()).collect();
    let held = i32::try_from(live.iter().filter(|burst| burst.held).count()).unwrap_or(i32::MAX);
    match live.iter().find(|burst| !burst.held && !burst.is_hopeful()) {
        Some(waits) => (held.min(most), Some(waits.waits())),
        None => (most, None),
    }
}
