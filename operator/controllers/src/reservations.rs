//! `GpuReservation`: finalizer and status. Capacity is not decided here: the last committed view is read.

use std::{collections::HashSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{controller::Action, events::EventType, reflector::ObjectRef},
};
use serde_json::json;
use spillway_crds::{GpuReservation, GpuReservationStatus, Phase, names::HOLD_CLOSED};
use spillway_manifests::{
    hold,
    reservation::{Facts, build_status, differs_in_substance},
};
use spillway_planner::{Booking, NodeUid, Reason, ReservationUid};

use crate::{
    context::Context,
    error::{Error, call},
    finalizer, kill,
    view::View,
};

/// A status whose wording alone changed is written at most this often.
pub const WORDING: Duration = Duration::from_secs(60);
/// Milliseconds after the booking until which nobody is told that its nodes are being prepared.
const MOMENT_MS: i64 = 1_000;
/// Time for the node check and more beside the grace cap, after which a reservation is over even if a node of it is stuck in turnover.
const TURNOVER: Duration = Duration::from_secs(120);

/// Looks at a reservation.
///
/// # Errors
/// When the API server cannot be asked or told.
pub async fn reconcile(object: Arc<GpuReservation>, context: Arc<Context>) -> Result<Action, Error> {
    let namespace = object.namespace().unwrap_or_default();
    let api: Api<GpuReservation> = Api::namespaced(context.client.clone(), &namespace);
    let deleting = object.metadata.deletion_timestamp.is_some();
    if !finalizer::is_on(&*object) {
        if !deleting {
            finalizer::add(&api, &object).await?;
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
            kill::point("reservation.before-finalizer");
            finalizer::remove(&api, &object).await?;
        }
        return Ok(Action::await_change());
    }

    let mut again = Duration::from_secs(300);
    let facts = match (&live, &ended) {
        (Some(booking), _) => Facts::Live { booking, preparing: preparing(&context, booking) },
        (None, Some(booking)) => {
            let given_back = given_back(&context, &view, booking, now);
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
    if let Some(wait) = soon_over(&previous, &status, live.as_deref(), now) {
        again = wait;
    } else if substance || status != previous {
        if substance || context.wording.wait(uid.as_str()).is_none() {
            kill::point("reservation.before-status");
            write_status(&api, &object, &status).await?;
            kill::point("reservation.after-status");
            announce(&context, &object, &previous, &status).await;
        } else {
            again = again.min(WORDING);
        }
    }

    // A reservation that is being deleted goes once nothing of it is booked, or its nodes are given back.
    let over = match facts {
        Facts::Live { .. } | Facts::Blocked(..) => false,
        Facts::Ended { given_back, .. } => given_back,
        Facts::Answer(_) | Facts::NotYet => view.released.contains(&uid),
    };
    if deleting && over {
        kill::point("reservation.before-finalizer");
        finalizer::remove(&api, &object).await?;
        return Ok(Action::await_change());
    }
    Ok(Action::requeue(again))
}

/// A node that is prepared in a moment is not worth a write of its own: how long to wait with saying `Preparing`.
fn soon_over(
    previous: &GpuReservationStatus,
    status: &GpuReservationStatus,
    live: Option<&Booking>,
    now: Timestamp,
) -> Option<Duration> {
    let due = live?.booked_at.plus(MOMENT_MS).0.saturating_sub(now.as_millisecond());
    let begins = previous.phase == Phase::Booked && status.phase == Phase::Preparing;
    (begins && due > 0).then(|| Duration::from_millis(due.unsigned_abs()))
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

/// No node is in turnover from the booking any more; or those that are have been so for longer than a turnover may take.
fn given_back(context: &Context, view: &View, booking: &Booking, now: Timestamp) -> bool {
    let ended_ms = booking.end.map_or(0, |end| end.0);
    let grace = i64::from(context.config.grace_cap_seconds) * 1000 + i64::try_from(TURNOVER.as_millis()).unwrap_or(0);
    let overdue = now.as_millisecond() > ended_ms.saturating_add(grace);
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

async fn write_status(
    api: &Api<GpuReservation>,
    object: &GpuReservation,
    status: &GpuReservationStatus,
) -> Result<(), Error> {
    let patch = spillway_manifests::status::build_patch(
        object.metadata.resource_version.as_deref(),
        &json!(object.status),
        json!(status),
    );
    call(
        "writing a reservation's status",
        api.patch_status(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch)),
    )
    .await?;
    Ok(())
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
