//! A place in line, and the tenant's quota.

use kube::ResourceExt;
use spillway_crds::{GpuPool, GpuReservation, Phase, Tenant};

use super::{Ahead, Facts, Queue, QuotaRow, full_name, is_candidate};

/// Older requests that are listed.
const MAX_AHEAD: usize = 10;

/// Where the reservation stands among those that want the same pools, if it waits.
pub(super) fn queue(facts: &Facts, pools: &[&GpuPool]) -> Option<Queue> {
    let reservation = &facts.reservation;
    if !is_waiting(reservation) || facts.booking().is_some() {
        return None;
    }
    let mine = age(reservation);
    let mut older: Vec<&GpuReservation> = facts
        .reservations
        .as_ref()?
        .iter()
        .filter(|other| other.metadata.uid != reservation.metadata.uid && is_waiting(other) && age(other) < mine)
        // One that waits for its tenant's quota is passed.
        .filter(|other| other.status.as_ref().and_then(|status| status.reason.as_deref()) != Some("QuotaInUse"))
        .filter(|other| pools.iter().any(|pool| is_candidate(other, pool)))
        .collect();
    older.sort_by_key(|other| age(other));
    Some(Queue {
        position: older.len().saturating_add(1),
        ahead: older
            .into_iter()
            .take(MAX_AHEAD)
            .map(|other| Ahead {
                reservation: full_name(other),
                devices: other.spec.devices.count,
                created: other.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default(),
                reason: other.status.as_ref().and_then(|status| status.reason.clone()).unwrap_or_default(),
            })
            .collect(),
    })
}

fn is_waiting(reservation: &GpuReservation) -> bool {
    let phase = reservation.status.as_ref().map(|status| status.phase).unwrap_or_default();
    matches!(phase, Phase::Pending | Phase::Waitlisted)
}

/// The order of arrival.
fn age(reservation: &GpuReservation) -> (Option<i64>, Option<String>, String) {
    (
        reservation.metadata.creation_timestamp.as_ref().map(|time| time.0.as_millisecond()),
        reservation.namespace(),
        reservation.name_any(),
    )
}

/// The tenant that lists the reservation's namespace: the oldest that does.
pub(super) fn tenant(facts: &Facts) -> Option<&Tenant> {
    let namespace = facts.reservation.namespace()?;
    let listing = facts.tenants.iter().flatten().filter(|tenant| tenant.spec.namespaces.contains(&namespace));
    listing.min_by_key(|tenant| {
        (tenant.metadata.creation_timestamp.as_ref().map(|time| time.0.as_millisecond()), tenant.name_any())
    })
}

/// What the tenant holds of the SKU in the tier.
pub(super) fn quota(facts: &Facts, pools: &[&GpuPool]) -> Option<QuotaRow> {
    let tenant = tenant(facts)?;
    let spec = &facts.reservation.spec;
    let sku = spec.sku.clone().or_else(|| pools.first().map(|pool| pool.spec.sku.clone()))?;
    let limit = tenant.spec.quotas.iter().find(|quota| quota.sku == sku && quota.tier == spec.tier);
    let held = facts.fleet.as_ref().filter(|_| facts.is_ledger_known()).map(|fleet| {
        fleet
            .bookings
            .live
            .iter()
            .filter(|booking| booking.tenant.as_str() == tenant.name_any() && booking.sku.as_str() == sku)
            .filter(|booking| booking.tier.to_string() == spec.tier.as_str())
            .map(|booking| u64::from(booking.devices))
            .sum()
    });
    Some(QuotaRow {
        tenant: tenant.name_any(),
        sku,
        tier: spec.tier.as_str().to_owned(),
        held,
        limit: limit.map(|quota| quota.limit),
    })
}
