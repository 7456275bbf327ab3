//! Room on shared nodes, one namespace at a time: which of its pods may land where (docs/ARCHITECTURE.md, "Shared nodes").
//!
//! What is given is decided by the planner's `assign`; here it is looked at, recorded in the reservations' statuses, and then made known to
//! the pods. A pod is never told before its record is written.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Namespace, Node, Pod, Toleration},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::{controller::Action, events::EventType, reflector::ObjectRef},
};
use serde_json::json;
use spillway_crds::{
    Assignment as Place, GpuReservation,
    names::{HOLD_NODE_PREFIX, HOLD_TAINT, hold_of_node},
};
use spillway_manifests::{hold, validate};
use spillway_planner::{
    Booking, BookingId, NodeUid, Reason, ReservationUid, Segment, TimeMs,
    assign::{Assignment, Guest, Record, Room, assign},
    node::Part,
};

use crate::{
    context::Context,
    ended::PodName,
    error::{Error, call},
    kill,
    pods::{PodFacts, facts},
    view::View,
};

/// A namespace in which nothing happens is looked at again after so long.
const RESYNC: Duration = Duration::from_secs(300);
/// Places in parts that are over are looked at again after so long.
const ENDING: Duration = Duration::from_secs(15);
/// Why a pod waits is said by an Event at most this often.
pub const EVENTS: Duration = Duration::from_secs(300);

/// A reservation of the namespace that has parts of nodes.
struct Sharer {
    object: Arc<GpuReservation>,
    booking: Arc<Booking>,
}

/// Looks at a namespace.
///
/// # Errors
/// When the API server cannot be asked or told, or what was decided on is not the latest any more.
pub async fn reconcile(object: Arc<PartialObjectMeta<Namespace>>, context: Arc<Context>) -> Result<Action, Error> {
    let namespace = object.name_any();
    let gaps = context.pulse.gaps();
    let view = context.view();
    if view.ledger.is_none() || view.blocked.is_some() {
        // Nothing is known, or nothing may be done: what has room keeps it.
        return Ok(Action::requeue(Duration::from_secs(1)));
    }
    let sharers = sharers(&context, &view, &namespace);
    if sharers.is_empty() {
        context.forget_waiting(&namespace);
        if !context.pods.any_admitted_in(&namespace) {
            return Ok(Action::await_change());
        }
    }
    let nobody = !context.pods.any_in(&namespace);
    if nobody && sharers.iter().all(|sharer| records(&sharer.object).is_empty()) {
        tell_of_waiting(&context, &namespace, &sharers, &BTreeMap::new()).await;
        return Ok(Action::requeue(RESYNC));
    }
    // Objects first, then the root: what is written stands on a ledger that is no older than them.
    let view = context.settled("assigning room on shared nodes", gaps).await?;
    let still =
        |sharer: &Sharer| view.booking_of(&sharer.booking.reservation.uid).map(|b| &b.id) == Some(&sharer.booking.id);
    let sharers: Vec<Sharer> = sharers.into_iter().filter(still).collect();

    let pods = context.pods.in_namespace(&namespace);
    let before = all_records(&sharers);
    let found = decide(&context, &sharers, &pods, &before);

    expel(&context, &namespace, &found.expel, gaps).await?;
    let named = read_nodes_of_over(&context, &sharers).await?;
    let places: Vec<Vec<Place>> = sharers.iter().map(|sharer| places(sharer, &found.records, &named)).collect();
    write_places(&context, &sharers, &places).await?;
    context.forget_gone(&before, &places.iter().flatten().map(|place| (&*place.node, &*place.pod_uid)).collect());
    for (pod, node) in &found.admit {
        let has = |sharer: &&Sharer| {
            let name = sharer.object.name_any();
            let part = open(&sharer.booking).find(|segment| segment.uid == *node);
            let on = |record: &Record| part.is_some_and(|segment| segment.node == record.node);
            found.records.iter().any(|record| record.pod_uid == *pod && *record.reservation == name && on(record))
        };
        let Some(sharer) = sharers.iter().find(has) else { continue };
        let Some(pod) = pods.iter().find(|one| one.uid == *pod) else { continue };
        admit(&context, pod, node, &sharer.booking, gaps).await?;
        kill::point("assign.after-toleration");
    }
    // Whether anything is left of a pod that went, the node says.
    let left: BTreeSet<&str> = found
        .records
        .iter()
        .filter(|record| pods.iter().all(|pod| pod.uid != record.pod_uid))
        .map(|record| record.node.as_str())
        .collect();
    for node in left {
        context.queues.nodes.push(node).await;
    }
    say_why_pods_wait(&context, &namespace, &sharers, &pods, &found).await;
    // The node of a part that is over tells nobody that it has given it back.
    let ending = places.iter().flatten().any(|place| place.ending);
    Ok(Action::requeue(if ending { ENDING } else { RESYNC }))
}

/// The reservations of a namespace that have parts of nodes, by name.
fn sharers(context: &Context, view: &View, namespace: &str) -> Vec<Sharer> {
    let names = context.sharing.of(namespace).into_iter();
    of_live(view, names.filter_map(|name| context.stores.reservations.get(&ObjectRef::new(&name).within(namespace))))
}

/// Those reservations that have parts of nodes, by name.
fn of_live(view: &View, objects: impl Iterator<Item = Arc<GpuReservation>>) -> Vec<Sharer> {
    let Some(ledger) = view.ledger.as_ref() else { return Vec::new() };
    let mut found: Vec<Sharer> = objects
        .filter_map(|object| {
            let booking = ledger.booking_of(&ReservationUid::from(object.uid().unwrap_or_default()))?;
            (!booking.exclusive).then(|| Sharer { object, booking: Arc::clone(booking) })
        })
        .collect();
    found.sort_by_key(|sharer| sharer.object.name_any());
    found
}

/// All places that are recorded.
fn all_records(sharers: &[Sharer]) -> Vec<Record> {
    sharers.iter().flat_map(|sharer| records(&sharer.object)).collect()
}

/// Who of these pods has a place, and who must go.
fn decide(context: &Context, sharers: &[Sharer], pods: &[PodFacts], records: &[Record]) -> Assignment {
    let rooms: Vec<Room> = sharers.iter().flat_map(|sharer| rooms(context, sharer)).collect();
    let guests: Vec<Guest> = pods.iter().filter(|pod| !pod.devices.is_empty()).map(guest).collect();
    assign(&rooms, &guests, records, &context.pods_seen_gone())
}

/// Ends pods that may land where nothing is theirs, or are there, if the API server itself says so. The pods are read first and the records last: who
/// was given a place meanwhile has it recorded, even in a part that the root that was read in between does not have yet.
async fn expel(context: &Context, namespace: &str, suspects: &[Arc<str>], gaps: u64) -> Result<(), Error> {
    if suspects.is_empty() {
        return Ok(());
    }
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let list = call("listing the pods of a namespace", api.list(&ListParams::default())).await?;
    let pods: Vec<PodFacts> = list.items.iter().filter_map(|pod| facts(pod, &context.config.device_prefixes)).collect();
    let view = context.settled("ending pods without room", gaps).await?;
    let api: Api<GpuReservation> = Api::namespaced(context.client.clone(), namespace);
    let list = call("listing the reservations of a namespace", api.list(&ListParams::default())).await?;
    let objects: Vec<Arc<GpuReservation>> = list.items.into_iter().map(Arc::new).collect();
    let later: BTreeSet<&str> = objects.iter().flat_map(|object| booked_later(&view, object)).collect();
    let sharers = of_live(&view, objects.iter().cloned());
    let mut found = decide(context, &sharers, &pods, &all_records(&sharers));
    found.expel.retain(|uid| !later.contains(&**uid));
    let held: u32 = sharers.iter().flat_map(|sharer| rooms(context, sharer)).map(|room| room.devices).sum();
    for pod in pods.iter().filter(|pod| suspects.contains(&pod.uid) && found.expel.contains(&pod.uid)) {
        if context.end_pod(pod, "ending a pod that has no room any more").await? {
            let name = &pod.name;
            tracing::info!(%namespace, %name, "a pod that had room in a part that ended is ended as well");
            let note = format!(
                "Pod {name} had room in a part of a node that is not held any more, and its namespace holds {held} devices in parts of nodes: it is ended. What makes it again gets room as soon as there is some."
            );
            context.event(&reference(pod), EventType::Warning, "RoomEnded", &note, "Expel").await;
        }
    }
    Ok(())
}

/// UIDs of pods that have places of a reservation in parts that a view does not have yet.
fn booked_later<'a>(view: &View, object: &'a GpuReservation) -> impl Iterator<Item = &'a str> {
    let uid = ReservationUid::from(object.uid().unwrap_or_default());
    let (live, ended) = (view.booking_of(&uid).cloned(), view.ended.contains_key(&uid));
    let is_later = move |place: &&Place| match &live {
        Some(booking) => !place.ending && open(booking).all(|segment| segment.node.as_str() != place.node),
        None => !ended,
    };
    recorded(object).iter().filter(is_later).map(|place| place.pod_uid.as_str())
}

/// The parts that a booking holds.
fn open(booking: &Booking) -> impl Iterator<Item = &Segment> {
    booking.segments.iter().filter(|segment| segment.to.is_none())
}

/// The rooms that the parts of a booking are.
fn rooms(context: &Context, sharer: &Sharer) -> Vec<Room> {
    let booking = &sharer.booking;
    let Some(pool) = context.stores.pools.get(&ObjectRef::new(booking.pool.as_str())) else { return Vec::new() };
    let resource: Arc<str> = Arc::from(pool.spec.devices.resource.as_str());
    open(booking)
        .map(|segment| {
            let node = context.stores.nodes.get(&ObjectRef::new(segment.node.as_str()));
            let part = Part { booking: booking.id.clone(), devices: segment.devices };
            let is_set_up = |node: &Arc<Node>| {
                segment.from.is_some()
                    && node.uid().as_deref() == Some(segment.uid.as_str())
                    && hold::is_shared(node)
                    && hold::read_parts(node).contains(&part)
            };
            let capacity = node.as_ref().map(|node| validate::capacity(node, &resource)).unwrap_or_default();
            let of = i64::from(segment.of.unwrap_or(0)).max(1);
            let share = |amount: i64| amount.saturating_mul(i64::from(segment.devices)) / of;
            Room {
                reservation: Arc::clone(&booking.reservation.name),
                node: segment.node.clone(),
                uid: segment.uid.clone(),
                set_up: node.as_ref().is_some_and(is_set_up),
                resource: Arc::clone(&resource),
                devices: segment.devices,
                cpu_milli: share(capacity.cpu_milli),
                memory_mib: share(capacity.memory_mib),
            }
        })
        .collect()
}

fn guest(pod: &PodFacts) -> Guest {
    Guest {
        uid: Arc::clone(&pod.uid),
        name: Arc::clone(&pod.name),
        created: TimeMs(pod.created_ms),
        node: pod.node.as_deref().map(Into::into),
        reservation: pod.reservation.clone(),
        admitted: pod.admitted.iter().map(|uid| NodeUid::from(&**uid)).collect(),
        devices: pod.devices.clone(),
        cpu_milli: pod.cpu_milli,
        memory_mib: pod.memory_mib,
        limited: pod.limited,
        priority: pod.priority,
        deleting: pod.deleting.is_some(),
    }
}

/// The places that a reservation's status records.
pub fn records(object: &GpuReservation) -> Vec<Record> {
    let name: Arc<str> = Arc::from(object.name_any());
    let record = |place: &Place| Record {
        pod_uid: Arc::from(place.pod_uid.as_str()),
        pod: Arc::from(place.pod.as_str()),
        reservation: Arc::clone(&name),
        node: place.node.as_str().into(),
        devices: u32::try_from(place.devices).unwrap_or(0),
    };
    recorded(object).iter().map(record).collect()
}

/// Whether a pod has room by another reservation of its namespace than this one.
pub fn has_other_place(context: &Context, than: &GpuReservation, pod: &PodFacts) -> bool {
    let namespace = than.namespace().unwrap_or_default();
    let others = context.sharing.of(&namespace).into_iter().filter(|name| *name != than.name_any());
    let objects = others.filter_map(|name| context.stores.reservations.get(&ObjectRef::new(&name).within(&namespace)));
    objects.into_iter().any(|object| recorded(&object).iter().any(|place| *place.pod_uid == *pod.uid))
}

fn recorded(object: &GpuReservation) -> &[Place] {
    object.status.as_ref().map(|status| status.assignments.as_slice()).unwrap_or_default()
}

/// Whether a reservation has a part of the node of this name.
fn is_held(sharer: &Sharer, node: &str) -> bool {
    open(&sharer.booking).any(|segment| segment.node.as_str() == node)
}

/// Of the nodes with places in parts that are over, the bookings that they name, as the API server itself has it: a place that is dropped too early is
/// forgotten.
async fn read_nodes_of_over(context: &Context, sharers: &[Sharer]) -> Result<BTreeSet<(String, BookingId)>, Error> {
    let over = |sharer: &Sharer, place: &Place| !is_held(sharer, &place.node);
    let nodes: BTreeSet<String> = sharers
        .iter()
        .flat_map(|sharer| recorded(&sharer.object).iter().filter(|place| over(sharer, place)))
        .map(|place| place.node.clone())
        .collect();
    let api: Api<Node> = Api::all(context.client.clone());
    let mut named = BTreeSet::new();
    for node in nodes {
        let found = call("reading a node of a part that is over", api.get_opt(&node)).await?;
        named.extend(found.iter().flat_map(hold::read_parts).map(|part| (node.clone(), part.booking)));
    }
    Ok(named)
}

/// The places of a reservation as they are to be recorded. Those in a part that is over while the reservation goes on stay until the node has given it
/// back: until then it is they that say who may land there, or has containers there.
fn places(sharer: &Sharer, records: &[Record], named: &BTreeSet<(String, BookingId)>) -> Vec<Place> {
    let name = sharer.object.name_any();
    let is_held = |node: &str| is_held(sharer, node);
    let is_named = |node: &str| named.contains(&(node.to_owned(), sharer.booking.id.clone()));
    let place = |record: &Record| Place {
        pod: record.pod.to_string(),
        pod_uid: record.pod_uid.to_string(),
        node: record.node.to_string(),
        devices: i32::try_from(record.devices).unwrap_or(i32::MAX),
        ending: false,
    };
    let held = records.iter().filter(|record| *record.reservation == name && is_held(record.node.as_str()));
    let over = recorded(&sharer.object).iter().filter(|place| !is_held(&place.node) && is_named(&place.node));
    let over = over.map(|one| Place { ending: true, ..one.clone() });
    let mut places: Vec<Place> = held.map(place).chain(over).collect();
    sort(&mut places);
    places
}

fn sort(places: &mut [Place]) {
    places.sort_unstable_by(|a, b| (&a.pod_uid, &a.node).cmp(&(&b.pod_uid, &b.node)));
}

/// Writes the places of each reservation whose places changed, if nobody else wrote it. Who loses places comes before who gets some.
async fn write_places(context: &Context, sharers: &[Sharer], places: &[Vec<Place>]) -> Result<(), Error> {
    let mut writes = Vec::new();
    for (sharer, wanted) in sharers.iter().zip(places) {
        let mut before = recorded(&sharer.object).to_vec();
        sort(&mut before);
        if *wanted != before {
            writes.push((wanted.len() > before.len(), sharer, wanted));
        }
    }
    writes.sort_by_key(|(grows, ..)| *grows);
    for (_, sharer, wanted) in writes {
        let patch = json!({
            "metadata": {"resourceVersion": sharer.object.metadata.resource_version},
            "status": {"assignments": wanted},
        });
        let namespace = sharer.object.namespace().unwrap_or_default();
        let api: Api<GpuReservation> = Api::namespaced(context.client.clone(), &namespace);
        kill::point("assign.before-record");
        call(
            "recording room on shared nodes",
            api.patch_status(&sharer.object.name_any(), &PatchParams::default(), &Patch::Merge(&patch)),
        )
        .await?;
        kill::point("assign.after-record");
    }
    Ok(())
}

/// Gives a pod the toleration of a node, if it still waits for one. The root is read once more after the pod: who ends the part after that finds the
/// record, and the pod waiting, and ends it, so that a toleration that comes late is given to nobody.
async fn admit(context: &Context, facts: &PodFacts, node: &NodeUid, booking: &Booking, gaps: u64) -> Result<(), Error> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &facts.namespace);
    let Some(pod) = call("reading a pod that gets room", api.get_opt(&facts.name)).await? else { return Ok(()) };
    let spec = pod.spec.clone().unwrap_or_default();
    let waits = pod.uid().as_deref() == Some(&*facts.uid)
        && pod.metadata.deletion_timestamp.is_none()
        && spec.node_name.as_deref().unwrap_or_default().is_empty();
    let value = hold_of_node(node.as_str());
    let mut tolerations = spec.tolerations.unwrap_or_default();
    let of_node = |toleration: &Toleration| {
        toleration.key.as_deref() == Some(HOLD_TAINT)
            && toleration.value.as_deref().is_some_and(|value| value.starts_with(HOLD_NODE_PREFIX))
    };
    // One pod, one node: whoever gave it another has a record of that.
    if !waits || tolerations.iter().any(of_node) {
        return Ok(());
    }
    let action = "giving a pod room on a shared node";
    let view = context.settled(action, gaps).await?;
    let held = view.booking_of(&booking.reservation.uid).filter(|now| now.id == booking.id);
    if !held.is_some_and(|now| open(now).any(|one| one.uid == *node)) {
        return Err(Error::Fenced { action, expected: view.generation, found: view.generation });
    }
    tolerations.push(Toleration {
        key: Some(HOLD_TAINT.to_owned()),
        operator: Some("Equal".to_owned()),
        value: Some(value),
        ..Toleration::default()
    });
    let patch = json!({
        "metadata": {"resourceVersion": pod.metadata.resource_version},
        "spec": {"tolerations": tolerations},
    });
    call(action, api.patch(&facts.name, &PatchParams::default(), &Patch::Merge(&patch))).await.map(|_| ())
}

/// So much of a pod as an Event on it needs.
fn reference(pod: &PodFacts) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some(pod.name.to_string()),
            namespace: Some(pod.namespace.to_string()),
            uid: Some(pod.uid.to_string()),
            ..ObjectMeta::default()
        },
        ..Pod::default()
    }
}

/// An Event on each pod that waits, and a note for the statuses of the reservations.
async fn say_why_pods_wait(
    context: &Context,
    namespace: &str,
    sharers: &[Sharer],
    pods: &[PodFacts],
    found: &Assignment,
) {
    let reasons: HashMap<&str, &Reason> = found.waiting.iter().map(|(uid, reason)| (&**uid, reason)).collect();
    let mut notes: BTreeMap<ReservationUid, (usize, Reason)> = BTreeMap::new();
    for pod in pods {
        let Some(reason) = reasons.get(&*pod.uid) else { continue };
        let asked = |sharer: &&Sharer| pod.reservation.as_ref().is_none_or(|name| **name == sharer.object.name_any());
        for sharer in sharers.iter().filter(asked) {
            let note = notes
                .entry(sharer.booking.reservation.uid.clone())
                .or_insert_with(|| (0, Reason { code: reason.code, message: reason.message.clone() }));
            note.0 += 1;
        }
        if context.pod_events.wait(&format!("{} {}", pod.uid, reason.code)).is_none() {
            context.event(&reference(pod), EventType::Warning, reason.code, &reason.message, "Assign").await;
        }
    }
    tell_of_waiting(context, namespace, sharers, &notes).await;
}

/// Has those reservations looked at of which something else is to be said of pods that wait.
async fn tell_of_waiting(
    context: &Context,
    namespace: &str,
    sharers: &[Sharer],
    notes: &BTreeMap<ReservationUid, (usize, Reason)>,
) {
    for uid in context.note_waiting(namespace, notes) {
        if let Some(sharer) = sharers.iter().find(|sharer| sharer.booking.reservation.uid == uid) {
            context.queues.reservations.push_in(namespace, &sharer.object.name_any()).await;
            context.hosted.reservation(namespace, &sharer.object.name_any()).await;
        }
    }
}

/// Pods of which a live reservation says that they have room on a node, and which are not there any more, by UID.
pub fn releasing(context: &Context, bookings: &[Arc<Booking>], node: &str) -> BTreeMap<Arc<str>, PodName> {
    let mut found = BTreeMap::new();
    for booking in bookings.iter().filter(|booking| !booking.exclusive) {
        let namespace = &booking.reservation.namespace;
        let key = ObjectRef::new(&booking.reservation.name).within(namespace);
        let Some(object) = context.stores.reservations.get(&key) else { continue };
        let here = records(&object).into_iter().filter(|record| record.node.as_str() == node);
        let gone = here.filter(|record| !context.pods.has(&record.pod_uid));
        found.extend(gone.map(|record| (record.pod_uid, (Arc::clone(namespace), record.pod))));
    }
    found
}
