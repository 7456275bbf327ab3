//! `GpuReservation`: finalizer and status. Capacity is not decided here: the last committed view is read.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::PostParams,
    runtime::{controller::Action, events::EventType, reflector::ObjectRef},
};
use spillway_crds::{GpuReservation, GpuReservationStatus, Phase, names::HOLD_CLOSED};
use spillway_manifests::{
    hold,
    reservation::{Facts, build_status, differs_in_substance},
};
use spillway_planner::{Booking, NodeUid, Reason, ReservationUid};
use tokio::sync::mpsc;

use crate::{
    assignments,
    backlog::Order,
    context::Context,
    ended::{may_land, read_pod},
    error::{Error, call},
    finalizer, kill,
    view::View,
};

/// A status whose wording alone changed is written at most this often.
pub const WORDING: Duration = Duration::from_secs(60);
/// Milliseconds after the booking until which nobody is told of it: most are `Active` by then, and that is told at once.
const BOOKED_MS: i64 = 400;
/// Milliseconds after the booking until which nobody who was told of it is told that its nodes are being prepared.
const PREPARING_MS: i64 = 15_000;
/// Milliseconds after its end until which nobody is told that a reservation ends that is being deleted: most are gone by then.
const ENDING_MS: i64 = 3_000;
/// Reservations that are told at a time that they are booked.
const TELLERS: usize = 32;
/// How long it is tried to tell one.
const TELLING: Duration = Duration::from_secs(20);
/// Milliseconds after its creation until which nobody is told that a reservation was not planned yet.
const UNPLANNED_MS: i64 = 10_000;
/// Time for the node check and more beside the grace cap, after which a reservation is over even if a node of it is stuck in turnover.
const TURNOVER: Duration = Duration::from_secs(120);

/// Tells reservations that they are booked, in the order in which they were.
pub async fn tell(context: Arc<Context>, orders: mpsc::UnboundedReceiver<Order>) {
    let waiting = Arc::clone(&context);
    let orders = futures::stream::unfold((orders, waiting), |(mut orders, context)| async move {
        let order = orders.recv().await?;
        let due = order.booked_at.plus(BOOKED_MS).0;
        while !context.backlog.hurries() && Timestamp::now().as_millisecond() < due {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Some((order, (orders, context)))
    });
    orders
        .for_each_concurrent(TELLERS, |order| {
            let context = Arc::clone(&context);
            async move {
                let key = ObjectRef::new(&order.name).within(&order.namespace);
                let begun = Instant::now();
                let mut pause = Duration::from_millis(25);
                while begun.elapsed() < TELLING {
                    let object = context.stores.reservations.get(&key);
                    let Some(object) = object.filter(|one| one.uid().as_deref() == Some(order.reservation.as_str()))
                    else {
                        break;
                    };
                    // What was written before is on its way here.
                    if !context.written.is_old(&*object) {
                        let asked = Instant::now();
                        let told = look(object, &context).await;
                        context.backlog.took(asked.elapsed());
                        match told {
                            Ok(_) => break,
                            Err(error) => tracing::debug!(name = order.name, %error, "not told"),
                        }
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(400));
                }
                // What comes next, and what could not be told, is the controller's.
                context.backlog.told(&order.reservation);
                context.queues.reservations.push_in(&order.namespace, &order.name).await;
            }
        })
        .await;
}

/// Looks at a reservation, unless it is about to be told that it is booked.
///
/// # Errors
/// When the API server cannot be asked or told.
pub async fn reconcile(object: Arc<GpuReservation>, context: Arc<Context>) -> Result<Action, Error> {
    if context.backlog.has(&ReservationUid::from(object.uid().unwrap_or_default())) {
        return Ok(Action::await_change());
    }
    look(object, &context).await
}

async fn look(object: Arc<GpuReservation>, context: &Context) -> Result<Action, Error> {
    let namespace = object.namespace().unwrap_or_default();
    let api: Api<GpuReservation> = Api::namespaced(context.client.clone(), &namespace);
    let deleting = object.metadata.deletion_timestamp.is_some();
    if context.written.is_old(&*object) {
        // What was written last is on its way here, and brings us back.
        return Ok(Action::requeue(Duration::from_secs(1)));
    }
    if !finalizer::is_on(&*object) {
        if !deleting {
            context.written.note(&finalizer::add(&api, &object).await?);
        }
        return Ok(Action::await_change());
    }
    let view = context.view();
    if view.ledger.is_none() && view.blocked.is_none() {
        // Nothing is known yet, so nothing is said: what the status promises stands.
        return Ok(Action::requeue(Duration::from_millis(500)));
    }
    let uid = ReservationUid::from(object.uid().unwrap_or_default());
    let now = Timestamp::now();
    let live = view.booking_of(&uid).cloned();
    let ended = view.ended.get(&uid).cloned();
    let phase = object.status.as_ref().map_or(Phase::Pending, |status| status.phase);
    if phase.is_final() && live.is_none() && ended.is_none() {
        if deleting && view.blocked.is_none() {
            let_go(context, &api, &object).await?;
        }
        return Ok(Action::await_change());
    }

    let mut again = Duration::from_secs(300);
    let facts = match (&live, &ended) {
        (Some(booking), _) => Facts::Live { booking, preparing: preparing(context, booking) },
        (None, Some(booking)) => {
            let overdue = is_overdue(context, booking, now);
            let given_back = given_back(context, &view, booking, overdue)
                && !somebody_waits(context, &object, booking, overdue).await?;
            if !given_back {
                again = Duration::from_secs(2);
            }
            Facts::Ended { booking, given_back }
        }
        (None, None) => match (&view.blocked, view.outcomes.get(&uid)) {
            (Some((reason, message)), _) => Facts::Blocked(reason, message),
            (None, Some(outcome)) => Facts::Answer(outcome),
            // A new leader has not planned yet: what its predecessor said stands.
            (None, None) if phase != Phase::Pending && !view.released.contains(&uid) => {
                return Ok(Action::requeue(Duration::from_secs(1)));
            }
            (None, None) => Facts::NotYet,
        },
    };
    let waiting = live
        .as_ref()
        .filter(|booking| !booking.exclusive)
        .map(|_| context.waiting_for(&namespace, &uid).unwrap_or_else(nobody_waits));
    let status = build_status(&object, facts, waiting.as_ref().map(|(pods, why)| (*pods, why)), now);
    let previous = object.status.clone().unwrap_or_default();
    let substance = differs_in_substance(&previous, &status);
    // A reservation that is being deleted goes once nothing of it is booked, or its nodes are given back.
    let over = match facts {
        Facts::Live { .. } | Facts::Blocked(..) => false,
        Facts::Ended { given_back, .. } => given_back,
        Facts::Answer(_) | Facts::NotYet => view.released.contains(&uid),
    };
    if deleting && over {
        let_go(context, &api, &object).await?;
        return Ok(Action::await_change());
    }
    let soon = soon_over(&object, &status, &facts, now);
    let handed = matches!(phase, Phase::Booked | Phase::Preparing) && status.phase != phase;
    let leave = live.as_ref().filter(|_| handed);
    let leave = leave.map(|booking| context.backlog.leave(booking.booked_at, now.as_millisecond())).transpose();
    if let Some(wait) = soon.or_else(|| leave.as_ref().err().copied()) {
        again = again.min(wait);
    } else if substance || status != previous {
        if substance || context.wording.wait(uid.as_str()).is_none() {
            kill::point("reservation.before-status");
            context.written.note(&write_status(&api, &object, &status).await?);
            kill::point("reservation.after-status");
            announce(context, &object, &previous, &status).await;
        } else {
            again = again.min(WORDING);
        }
    }

    Ok(Action::requeue(again))
}

/// Takes the finalizer off: nothing of the reservation is held any more.
async fn let_go(context: &Context, api: &Api<GpuReservation>, object: &GpuReservation) -> Result<(), Error> {
    kill::point("reservation.before-finalizer");
    finalizer::remove(api, object).await?;
    context.written.note_last(object);
    Ok(())
}

/// What is over in a moment is not worth a write of its own: how long to wait with saying it.
fn soon_over(
    object: &GpuReservation,
    status: &GpuReservationStatus,
    facts: &Facts<'_>,
    now: Timestamp,
) -> Option<Duration> {
    let previous = object.status.as_ref().map_or(Phase::Pending, |status| status.phase);
    let deleting = object.metadata.deletion_timestamp.is_some();
    let created = object.metadata.creation_timestamp.as_ref().map(|created| created.0.as_millisecond());
    let due = match (facts, status.phase) {
        (Facts::NotYet, _) if previous == Phase::Pending => created?.saturating_add(UNPLANNED_MS),
        (Facts::Live { booking, .. }, Phase::Booked | Phase::Preparing) => match previous {
            Phase::Booked if status.phase == Phase::Preparing => booking.booked_at.plus(PREPARING_MS).0,
            _ => return None,
        },
        (Facts::Ended { booking, .. }, Phase::Ending) if deleting => booking.end?.plus(ENDING_MS).0,
        _ => return None,
    };
    let left = due.saturating_sub(now.as_millisecond());
    // A clock that is far off must not keep anything from being said.
    (1..=PREPARING_MS + 1_000).contains(&left).then(|| Duration::from_millis(left.unsigned_abs()))
}

fn nobody_waits() -> (usize, Reason) {
    (0, Reason { code: "AllPodsFit", message: "No pod waits for devices of this reservation.".to_owned() })
}

/// A node of the booking was closed for it already.
fn preparing(context: &Context, booking: &Booking) -> bool {
    booking.segments.iter().filter(|segment| segment.to.is_none()).any(|segment| {
        context
            .stores
            .nodes
            .get(&ObjectRef::new(segment.node.as_str()))
            .is_some_and(|node| hold::names_booking(&node, booking.id.as_str()))
    })
}

/// Its nodes have been in turnover for longer than that may take.
fn is_overdue(context: &Context, booking: &Booking, now: Timestamp) -> bool {
    let ended_ms = booking.end.map_or(0, |end| end.0);
    let grace = i64::from(context.config.grace_cap_seconds) * 1000 + i64::try_from(TURNOVER.as_millis()).unwrap_or(0);
    now.as_millisecond() > ended_ms.saturating_add(grace)
}

/// No node is in turnover from the booking any more; or, if it is overdue, those that are are closed.
fn given_back(context: &Context, view: &View, booking: &Booking, overdue: bool) -> bool {
    let mut seen = HashSet::new();
    booking.segments.iter().filter(|segment| seen.insert(segment.uid.clone())).all(|segment| {
        let Some(node) = context.stores.nodes.get(&ObjectRef::new(segment.node.as_str())) else { return true };
        if NodeUid::from(node.uid().unwrap_or_default()) != segment.uid
            || booking.exclusive && view.is_held(&segment.uid)
            || !hold::names_booking(&node, booking.id.as_str())
        {
            return true;
        }
        // Closed for everybody is what a tenant can be promised; a node that never gets clean is the operator's problem, not the tenant's. Of a
        // shared node no new pod of the tenant's gets room.
        overdue && (!booking.exclusive || hold::read_taints(&node) == (Some(HOLD_CLOSED), Some(HOLD_CLOSED)))
    })
}

/// Whether a pod that has room by the reservation's status may land by it still, as the API server itself has it: nobody but the status knows of that.
/// The node sees to it that there is none; where it is `overdue`, it is done here. Who writes the status meanwhile makes the object that was read an old
/// one, and what follows fails.
async fn somebody_waits(
    context: &Context,
    object: &GpuReservation,
    booking: &Booking,
    overdue: bool,
) -> Result<bool, Error> {
    let namespace = object.namespace().unwrap_or_default();
    let mut waits = false;
    for record in assignments::records(object) {
        let mut nodes = booking.segments.iter().filter(|segment| segment.node == record.node);
        let pod = read_pod(context, &namespace, &record.pod, &record.pod_uid).await?;
        let Some(pod) = pod.filter(|pod| nodes.any(|segment| may_land(pod, &segment.uid))) else { continue };
        waits = true;
        if overdue && !assignments::has_other_place(context, object, &pod) {
            context.end_pod(&pod, "ending a pod that waits in a part that ended").await?;
        }
    }
    Ok(waits)
}

/// Replaces the status, if the object is still the one that was read. The API server looks at nothing else of the object there, and need not work
/// out a patch.
async fn write_status(
    api: &Api<GpuReservation>,
    object: &GpuReservation,
    status: &GpuReservationStatus,
) -> Result<GpuReservation, Error> {
    let next = GpuReservation { status: Some(status.clone()), ..object.clone() };
    call("writing a reservation's status", api.replace_status(&object.name_any(), &PostParams::default(), &next)).await
}

/// Events for refusals, risk and ends only.
async fn announce(
    context: &Context,
    object: &GpuReservation,
    previous: &GpuReservationStatus,
    status: &GpuReservationStatus,
) {
    let message = status.message.as_deref().unwrap_or_default();
    let reason = status.reason.as_deref().unwrap_or_default();
    if previous.phase != status.phase {
        match status.phase {
            Phase::Rejected | Phase::Expired => {
                context.event(object, EventType::Warning, reason, message, "Refuse").await;
            }
            Phase::Ending | Phase::Ended => context.event(object, EventType::Normal, reason, message, "End").await,
            _ => {}
        }
    }
    if previous.reason != status.reason && matches!(reason, "CommitmentAtRisk" | "NodesLost") {
        context.event(object, EventType::Warning, reason, message, "Replace").await;
    }
}
