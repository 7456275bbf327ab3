//! What would help: one rule, one sentence.

use kube::ResourceExt;
use spillway_crds::{GpuPool, Phase};
use spillway_planner::Booking;

use super::{Facts, Queue, QuotaRow, WaitingPod, queue};
use crate::{capacity::PoolRow, output::counted, time};

/// Sentences for people, those that decide first.
pub(super) fn help(
    facts: &Facts,
    pools: &[&GpuPool],
    rows: &[PoolRow],
    queue: Option<&Queue>,
    quota: Option<&QuotaRow>,
    waiting_pods: &[WaitingPod],
) -> Vec<String> {
    let status = facts.reservation.status.clone().unwrap_or_default();
    let mut help = Vec::new();
    help.extend(facts.ledger_fault.clone());
    match status.phase {
        Phase::Pending | Phase::Waitlisted if facts.booking().is_some() => {
            help.push(
                "The ledger has a booking of it, and that is what counts: the status is behind. If that lasts for more than a few seconds, see \
                 whether the operator runs: kubectl get pods -n spillway-system."
                    .to_owned(),
            );
        }
        Phase::Pending | Phase::Waitlisted => {
            help.extend(no_tenant(facts));
            help.extend(quota_used(facts, quota));
            help.extend(line(queue));
            for (pool, row) in
                pools.iter().filter_map(|pool| Some((pool, rows.iter().find(|row| row.pool == pool.name_any())?)))
            {
                help.extend(paused(pool));
                help.extend(turnover(row));
                help.extend(broken(row));
                help.extend(owner_used(row));
                help.extend(next_ends(facts, pool, row));
            }
            help.extend(unlooked_at(facts, status.phase));
        }
        Phase::Rejected | Phase::Expired => {
            help.extend(no_tenant(facts));
            help.push(
                "Nothing more happens to it. Delete it, and create another once what the message says is mended."
                    .to_owned(),
            );
        }
        Phase::Booked | Phase::Preparing => {
            help.push(
                "Its nodes are handed over one by one, as each is empty and checked; it is Active, and metered, when all are."
                    .to_owned(),
            );
        }
        Phase::Active => help.extend(pods_waiting(facts, waiting_pods)),
        Phase::Ending => {
            help.push(
                "Its nodes are being emptied. It is not metered any more, and there is nothing to do.".to_owned(),
            );
        }
        Phase::Ended => {}
    }
    help
}

fn no_tenant(facts: &Facts) -> Option<String> {
    facts.tenants.as_ref()?;
    if queue::tenant(facts).is_some() {
        return None;
    }
    let namespace = facts.reservation.namespace().unwrap_or_default();
    Some(format!("No Tenant lists namespace {namespace}: add it to one."))
}

fn quota_used(facts: &Facts, quota: Option<&QuotaRow>) -> Option<String> {
    let quota = quota?;
    let limit = u64::try_from(quota.limit?).unwrap_or_default();
    let wanted = u64::try_from(facts.reservation.spec.devices.count).unwrap_or_default();
    let held = quota.held?;
    if held.saturating_add(wanted) <= limit {
        return None;
    }
    Some(format!(
        "Tenant {} holds {held} of its {limit} {} devices of {}, and this wants {wanted}: end another reservation of the tenant, or raise the quota.",
        quota.tenant, quota.tier, quota.sku
    ))
}

fn line(queue: Option<&Queue>) -> Option<String> {
    let queue = queue?;
    let first = queue.ahead.first()?;
    let older = queue.position.saturating_sub(1);
    Some(format!(
        "{} before it for the same pools, the oldest is {} with {} devices: nobody is passed.",
        if older == 1 { "1 older request stands".to_owned() } else { format!("{older} older requests stand") },
        first.reservation,
        first.devices
    ))
}

fn paused(pool: &GpuPool) -> Option<String> {
    pool.spec.sale.paused.then(|| format!("Pool {} sells nothing new (sale.paused): set it to false.", pool.name_any()))
}

fn turnover(row: &PoolRow) -> Option<String> {
    (row.amounts.turnover > 0).then(|| {
        format!(
            "{} devices of pool {} are in turnover and can be sold when their nodes are empty and checked.",
            row.amounts.turnover, row.pool
        )
    })
}

fn broken(row: &PoolRow) -> Option<String> {
    let first = row.problems.first()?;
    let more = row.problems.len().saturating_sub(1);
    let more = if more > 0 { format!(", and {} more", counted(more, "node")) } else { String::new() };
    Some(format!(
        "{} devices of pool {} are on broken nodes ({}: {}{more}): mend them.",
        row.amounts.broken, row.pool, first.node, first.problem
    ))
}

fn owner_used(row: &PoolRow) -> Option<String> {
    (row.amounts.owner_used > 0).then(|| {
        format!(
            "The owner's pods use {} devices of pool {}; a sale does not displace them.",
            row.amounts.owner_used, row.pool
        )
    })
}

/// When enough terms are over, if nothing else came in between.
fn next_ends(facts: &Facts, pool: &GpuPool, row: &PoolRow) -> Option<String> {
    let wanted = u64::try_from(facts.reservation.spec.devices.count).unwrap_or_default();
    let mut free = row.amounts.unsold.saturating_sub(row.amounts.owner_used).saturating_add(row.amounts.turnover);
    if free >= wanted {
        return None;
    }
    let name = pool.name_any();
    let live = facts.fleet.as_ref()?.bookings.live.iter().filter(|booking| booking.pool.as_str() == name);
    let mut ends: Vec<(i64, &Booking)> = live.filter_map(|booking| Some((booking.end?.0, booking.as_ref()))).collect();
    ends.sort_by_key(|(end, booking)| (*end, booking.id.as_str()));
    for (end, booking) in ends {
        free =
            free.saturating_add(booking.segments.iter().filter(|s| s.to.is_none()).map(|s| u64::from(s.devices)).sum());
        if free >= wanted {
            return Some(format!(
                "By their terms enough devices of pool {name} come free at {}, when {}/{} ends, and then as soon as their nodes are empty and checked.",
                time::show(end),
                booking.reservation.namespace,
                booking.reservation.name
            ));
        }
    }
    Some(format!(
        "The terms that run now do not free enough of pool {name}: it takes nodes to be added or open-ended reservations to be deleted."
    ))
}

fn unlooked_at(facts: &Facts, phase: Phase) -> Option<String> {
    let generation = facts.reservation.metadata.generation;
    let observed = facts.reservation.status.as_ref().and_then(|status| status.observed_generation);
    (phase == Phase::Pending && observed != generation).then(|| {
        "The operator has not looked at it yet. If that lasts for more than a few seconds, see whether it runs: kubectl get pods -n spillway-system."
            .to_owned()
    })
}

fn pods_waiting(facts: &Facts, waiting: &[WaitingPod]) -> Option<String> {
    if waiting.is_empty() {
        return None;
    }
    let namespace = facts.reservation.namespace().unwrap_or_default();
    Some(format!(
        "{} of namespace {namespace} can run nowhere: more is wanted than is held, or another reservation is named in the label \
         spillway.dev/reservation.",
        counted(waiting.len(), "pod")
    ))
}
