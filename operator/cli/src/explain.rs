//! `spillway explain`: why a reservation is where it is, or why not and what would help.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client, ResourceExt, api::ListParams};
use serde::Serialize;
use spillway_crds::{GpuNode, GpuPool, GpuReservation, Phase, Tenant};
use spillway_planner::Booking;

use crate::{
    args::ExplainArgs,
    capacity::{self, PoolRow},
    cluster::{list, optional},
    error::Error,
    ledger, time,
};

mod help;
mod nodes;
mod queue;
mod show;

/// The ledger, where it may not be read.
const LEDGER: &str = "the booking ledger";

/// All that the answer depends on. What may not be read is not there.
#[derive(Debug)]
pub(crate) struct Facts {
    /// The clock, in Unix milliseconds.
    pub(crate) now_ms: i64,
    /// Which reservation.
    pub(crate) reservation: GpuReservation,
    /// All reservations.
    pub(crate) reservations: Option<Vec<GpuReservation>>,
    /// All tenants.
    pub(crate) tenants: Option<Vec<Tenant>>,
    /// All pools, nodes, pods on nodes, and the ledger.
    pub(crate) fleet: Option<capacity::Facts>,
    /// Why the ledger cannot be relied on, if so.
    pub(crate) ledger_fault: Option<String>,
    /// What the agents saw.
    pub(crate) gpu_nodes: Vec<GpuNode>,
    /// Pods of the namespace.
    pub(crate) own_pods: Option<Vec<Pod>>,
    /// What may not be read.
    pub(crate) not_shown: Vec<&'static str>,
}

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Explanation {
    /// `namespace/name`.
    pub(crate) reservation: String,
    /// What was asked for, as a sentence.
    pub(crate) asked: String,
    /// Where it is in its life.
    pub(crate) phase: String,
    /// Why, for machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// Why, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    /// Its conditions.
    pub(crate) conditions: Vec<ConditionRow>,
    /// Its booking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) booking: Option<BookingRow>,
    /// Its nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) nodes: Vec<NodeRow>,
    /// Where it stands in line, if it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) queue: Option<Queue>,
    /// What its tenant holds of what it may hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) quota: Option<QuotaRow>,
    /// The pools that will do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) pools: Vec<PoolRow>,
    /// Pods of its namespace that want devices and are on no node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) waiting_pods: Vec<WaitingPod>,
    /// What would help, as sentences.
    pub(crate) help: Vec<String>,
    /// What may not be read, and so is not in this answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) not_shown: Vec<&'static str>,
}

/// A condition.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConditionRow {
    /// Its type.
    #[serde(rename = "type")]
    pub(crate) type_: String,
    /// Whether it holds.
    pub(crate) status: String,
    /// Why.
    pub(crate) reason: String,
    /// Since when.
    pub(crate) since: String,
}

/// A booking.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BookingRow {
    /// Its id.
    pub(crate) id: String,
    /// From which pool.
    pub(crate) pool: String,
    /// When it was booked.
    pub(crate) booked_at: String,
    /// When all nodes were handed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) active_at: Option<String>,
    /// When it ends, or ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ends_at: Option<String>,
    /// What was used so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gpu_hours: Option<String>,
}

/// A node of a booking.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeRow {
    /// Its name.
    pub(crate) node: String,
    /// Devices of it that are booked.
    pub(crate) devices: u32,
    /// Its hold, as a sentence.
    pub(crate) state: String,
    /// When it was handed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) handed_over: Option<String>,
    /// When it was lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lost: Option<String>,
    /// Pods on it that are not infrastructure's, as far as that can be told: those of the namespace, and others that want devices.
    pub(crate) pods: Vec<String>,
}

/// A place in line.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Queue {
    /// 1: next.
    pub(crate) position: usize,
    /// Older requests for the same pools, oldest first.
    pub(crate) ahead: Vec<Ahead>,
}

/// An older request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ahead {
    /// `namespace/name`.
    pub(crate) reservation: String,
    /// Devices that it wants.
    pub(crate) devices: i32,
    /// Since when it waits.
    pub(crate) created: String,
    /// Why it waits.
    pub(crate) reason: String,
}

/// What a tenant holds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct QuotaRow {
    /// Which tenant.
    pub(crate) tenant: String,
    /// SKU.
    pub(crate) sku: String,
    /// Tier.
    pub(crate) tier: String,
    /// Devices that it holds in the ledger; none: the ledger may not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) held: Option<u64>,
    /// Devices that it may hold; none: as many as it likes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<i32>,
}

/// A pod on no node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WaitingPod {
    /// Its name.
    pub(crate) pod: String,
    /// What the scheduler says.
    pub(crate) why: String,
}

/// Reads and answers.
pub(crate) async fn run(client: &Client, args: &ExplainArgs) -> Result<Explanation, Error> {
    Ok(explain(fetch(client, args).await?))
}

async fn fetch(client: &Client, args: &ExplainArgs) -> Result<Facts, Error> {
    let (namespace, name) = match (args.reservation.split_once('/'), &args.namespace) {
        (Some((namespace, name)), _) => (namespace, name),
        (None, Some(namespace)) => (namespace.as_str(), args.reservation.as_str()),
        (None, None) => (client.default_namespace(), args.reservation.as_str()),
    };
    const RESERVATIONS: &str = "gpureservations.spillway.dev";
    let everything = ListParams::default();
    let of_namespace: Api<GpuReservation> = Api::namespaced(client.clone(), namespace);
    let found = of_namespace.get_opt(name).await.map_err(|source| Error::Read { what: RESERVATIONS, source })?;
    let Some(reservation) = found else {
        // Of an unknown kind there is nothing either: a list tells.
        list(of_namespace, &everything, RESERVATIONS).await?;
        return Err(Error::NoReservation { namespace: namespace.to_owned(), name: name.to_owned() });
    };
    let mut not_shown = Vec::new();
    let own_pods = list(Api::namespaced(client.clone(), namespace), &everything, "pods").await;
    let own_pods = optional(own_pods, "pods of the namespace", &mut not_shown)?;
    let tenants = list(Api::all(client.clone()), &everything, "tenants.spillway.dev").await;
    let tenants = optional(tenants, "tenants", &mut not_shown)?;
    let reservations = list(Api::all(client.clone()), &everything, RESERVATIONS).await;
    let reservations = optional(reservations, "reservations of other namespaces", &mut not_shown)?;
    let gpu_nodes = list(Api::all(client.clone()), &everything, "gpunodes.spillway.dev").await;
    let gpu_nodes = optional(gpu_nodes, "what the nodes' agents saw", &mut not_shown)?.unwrap_or_default();
    let fleet = capacity::fetch_objects(client).await;
    let mut fleet = optional(fleet, "pools, nodes and pods on them", &mut not_shown)?;
    let mut ledger_fault = None;
    if let Some(fleet) = &mut fleet {
        match ledger::read(client, archive_since(&reservation)).await {
            Err(error @ (Error::NoLedger | Error::Ledger { .. })) => ledger_fault = Some(crate::error::report(&error)),
            result => fleet.bookings = optional(result, LEDGER, &mut not_shown)?.unwrap_or_default(),
        }
    }
    let now_ms = time::now_ms();
    Ok(Facts { now_ms, reservation, reservations, tenants, fleet, ledger_fault, gpu_nodes, own_pods, not_shown })
}

/// How far back the archive must be read to find the booking of a reservation that is over.
fn archive_since(reservation: &GpuReservation) -> Option<i64> {
    let status = reservation.status.as_ref()?;
    if status.booking.is_none() || !matches!(status.phase, Phase::Ending | Phase::Ended) {
        return None;
    }
    reservation.metadata.creation_timestamp.as_ref().map(|time| time.0.as_millisecond())
}

/// Answers.
pub(crate) fn explain(facts: Facts) -> Explanation {
    let reservation = &facts.reservation;
    let status = reservation.status.clone().unwrap_or_default();
    let pools = facts.candidate_pools();
    let booking = facts.booking();
    let rows = facts.pool_rows(&pools);
    let queue = queue::queue(&facts, &pools);
    let quota = queue::quota(&facts, &pools);
    let nodes = match booking {
        Some(booking) => nodes::rows(&facts, booking),
        None => nodes::rows_of_status(&facts, &status),
    };
    let waiting_pods = nodes::waiting_pods(&facts, &pools);
    let help = help::help(&facts, &pools, &rows, queue.as_ref(), quota.as_ref(), &waiting_pods);
    Explanation {
        reservation: full_name(reservation),
        asked: asked(reservation),
        phase: status.phase.as_str().to_owned(),
        reason: status.reason,
        message: status.message,
        conditions: status
            .conditions
            .into_iter()
            .map(|condition| ConditionRow {
                type_: condition.type_,
                status: format!("{:?}", condition.status),
                reason: condition.reason,
                since: condition.last_transition_time.0.to_string(),
            })
            .collect(),
        booking: facts.booking_row(),
        nodes,
        queue,
        quota,
        pools: rows,
        waiting_pods,
        help,
        not_shown: facts.not_shown,
    }
}

/// `namespace/name`.
fn full_name(reservation: &GpuReservation) -> String {
    format!("{}/{}", reservation.namespace().unwrap_or_default(), reservation.name_any())
}

fn asked(reservation: &GpuReservation) -> String {
    let spec = &reservation.spec;
    let place = match (&spec.pool, &spec.sku, &spec.region) {
        (Some(pool), _, _) => format!("of pool {pool}"),
        (None, sku, region) => {
            format!("of {} in {}", sku.as_deref().unwrap_or_default(), region.as_deref().unwrap_or_default())
        }
    };
    let shape = spec.devices.per_node.map(|per_node| format!(", {per_node} a node")).unwrap_or_default();
    let level = spec.topology.as_ref().map(|topology| format!(", in one {}", topology.require)).unwrap_or_default();
    let term = spec.term.as_ref().map_or_else(|| "open-ended".to_owned(), |term| format!("for {}", term.duration));
    let what = match &spec.devices.profile {
        Some(profile) => format!("shares `{profile}` of a device"),
        None => "devices".to_owned(),
    };
    format!(
        "{} {what} {place}{shape}{level}, {} {term}; created {}, waits for {} at most",
        spec.devices.count,
        spec.tier.as_str(),
        reservation.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default(),
        spec.wait_for
    )
}

impl Facts {
    /// Whether the ledger is there: without it nothing can be said of what is sold.
    fn is_ledger_known(&self) -> bool {
        self.fleet.is_some() && self.ledger_fault.is_none() && !self.not_shown.contains(&LEDGER)
    }

    /// The booking of the reservation, live or ended.
    fn booking(&self) -> Option<&Booking> {
        let uid = self.reservation.metadata.uid.as_deref()?;
        let bookings = &self.fleet.as_ref()?.bookings;
        let found = bookings.live.iter().chain(&bookings.ended).find(|booking| booking.reservation.uid.as_str() == uid);
        found.map(Arc::as_ref)
    }

    /// Pools that will do: the one that is named or booked, or all of the SKU in the region whose nodes have the right size.
    fn candidate_pools(&self) -> Vec<&GpuPool> {
        let Some(fleet) = &self.fleet else { return Vec::new() };
        let booked = self.booking().map(|booking| booking.pool.as_str());
        fleet
            .pools
            .iter()
            .filter(|pool| match booked {
                Some(booked) => pool.name_any() == booked,
                None => is_candidate(&self.reservation, pool),
            })
            .collect()
    }

    fn pool_rows(&self, pools: &[&GpuPool]) -> Vec<PoolRow> {
        let Some(fleet) = self.fleet.as_ref().filter(|_| self.is_ledger_known()) else { return Vec::new() };
        let mut rows = capacity::capacity(fleet).pools;
        rows.retain(|row| pools.iter().any(|pool| pool.name_any() == row.pool));
        rows
    }

    fn booking_row(&self) -> Option<BookingRow> {
        if let Some(booking) = self.booking() {
            let ended = booking.end_reason.is_some();
            let used: i128 = crate::usage::segments(booking)
                .filter_map(|segment| {
                    let now = if ended { i64::MAX } else { self.now_ms };
                    spillway_metering::device_milliseconds(&segment, spillway_metering::Period::ALWAYS, now).ok()
                })
                .sum();
            return Some(BookingRow {
                id: booking.id.to_string(),
                pool: booking.pool.to_string(),
                booked_at: time::show(booking.booked_at.0),
                active_at: booking.active_at.map(|at| time::show(at.0)),
                ends_at: booking.end.map(|at| time::show(at.0)),
                gpu_hours: spillway_metering::gpu_hours(used).ok(),
            });
        }
        let booking = self.reservation.status.as_ref()?.booking.as_ref()?;
        Some(BookingRow {
            id: booking.id.clone(),
            pool: booking.pool.clone(),
            booked_at: booking.booked_at.0.to_string(),
            active_at: booking.active_at.as_ref().map(|at| at.0.to_string()),
            ends_at: booking.ends_at.as_ref().map(|at| at.0.to_string()),
            gpu_hours: None,
        })
    }

    fn node(&self, uid: &str) -> Option<&Node> {
        self.fleet.as_ref()?.nodes.iter().find(|node| node.metadata.uid.as_deref() == Some(uid))
    }
}

/// True when a pool is one of those that a reservation names.
fn is_candidate(reservation: &GpuReservation, pool: &GpuPool) -> bool {
    let spec = &reservation.spec;
    let named = match &spec.pool {
        Some(name) => pool.name_any() == *name,
        None => spec.sku.as_ref() == Some(&pool.spec.sku) && spec.region.as_ref() == Some(&pool.spec.region),
    };
    let sized = spec.devices.per_node.is_none_or(|per_node| per_node == pool.spec.devices.per_node);
    named && sized
}

#[cfg(test)]
mod tests;
