//! What a plan says, reservation by reservation and pool by pool.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{self, Write},
};

use serde::Serialize;
use spillway_planner::{
    NodeSale, Outcome, Plan, Reason, ReservationUid, Shape,
    plan::{NewBooking, PlannedShare},
};

use super::cluster::Cluster;
use crate::{
    output::{self, Table, counted},
    time,
};

/// Nodes that a line of the table names.
const NODES_SHOWN: usize = 4;

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Answers {
    /// The time of the plan.
    at: String,
    /// How many are booked.
    pub(super) booked: usize,
    /// How many are not.
    pub(super) not_booked: usize,
    /// All, in the order in which they are served.
    pub(super) reservations: Vec<AnswerRow>,
    /// What is taken of each pool.
    pub(super) pools: Vec<Taken>,
    /// What has no part in it.
    left_out: LeftOut,
}

/// The answer to a reservation.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AnswerRow {
    /// Its namespace.
    namespace: String,
    /// Its name.
    pub(super) name: String,
    /// How many devices, or shares, it wants.
    count: u32,
    /// Which shares it wants; none: whole devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
    /// `Booked`, `Waitlisted`, `Rejected` or `Expired`.
    pub(super) answer: &'static str,
    /// Why not, for machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'static str>,
    /// Why not, and what would change it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) message: Option<String>,
    /// From which pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<String>,
    /// On which nodes, of whole devices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<OnNode>,
    /// On which devices, of shares.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    shares: Vec<OnDevice>,
}

/// Devices of a node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OnNode {
    /// Its name.
    node: String,
    /// How many of its devices.
    devices: u32,
}

/// A share of a device.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OnDevice {
    /// Name of the node.
    node: String,
    /// Which of its devices.
    device: u16,
    /// How much of it, in thousandths.
    milli_gpu: i64,
}

/// What is taken of a pool.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Taken {
    /// Its name.
    pool: String,
    /// Nodes that can be booked.
    nodes: usize,
    /// Their devices.
    devices: i64,
    /// Whole devices that are booked.
    pub(super) devices_taken: i64,
    /// Thousandths of devices that are booked in shares.
    pub(super) milli_gpu_taken: i64,
}

/// Objects that have no part in the plan.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LeftOut {
    /// Reservations that are over or being deleted.
    reservations: usize,
    /// Nodes of no pool that is there.
    nodes: usize,
}

impl Answers {
    /// What a plan says of a cluster.
    pub(super) fn new(cluster: &Cluster, plan: &Plan) -> Self {
        let booked: HashMap<&ReservationUid, &NewBooking> =
            plan.bookings.iter().map(|booking| (&booking.reservation.uid, booking)).collect();
        let outcomes: HashMap<&ReservationUid, &Outcome> =
            plan.outcomes.iter().map(|(uid, outcome)| (uid, outcome)).collect();
        let reservations = cluster.snapshot.requests.iter().map(|request| {
            let (count, profile) = match &request.shape {
                Shape::WholeNodes { count, .. } | Shape::Devices { count, .. } => (*count, None),
                Shape::Shares { count, profile } => (*count, Some(profile.to_string())),
            };
            let reservation = &request.reservation;
            let asked = AnswerRow {
                namespace: reservation.namespace.to_string(),
                name: reservation.name.to_string(),
                count,
                profile,
                answer: "Booked",
                reason: None,
                message: None,
                pool: None,
                nodes: Vec::new(),
                shares: Vec::new(),
            };
            match (booked.get(&reservation.uid), outcomes.get(&reservation.uid)) {
                (Some(booking), _) => asked.booked(booking),
                (None, Some(Outcome::Waitlisted(reason))) => asked.not_booked("Waitlisted", reason),
                (None, Some(Outcome::Rejected(reason))) => asked.not_booked("Rejected", reason),
                (None, Some(Outcome::Expired(reason))) => asked.not_booked("Expired", reason),
                // The planner answers every request: see its properties.
                (None, None) => AnswerRow { answer: "None", ..asked },
            }
        });
        let reservations: Vec<AnswerRow> = reservations.collect();
        let booked = plan.bookings.len();
        Self {
            at: time::show(cluster.at.0),
            booked,
            not_booked: reservations.len().saturating_sub(booked),
            reservations,
            pools: taken(cluster, plan),
            left_out: LeftOut { reservations: cluster.reservations_left_out, nodes: cluster.nodes_left_out },
        }
    }

    /// Whether everybody is booked.
    pub(crate) fn all_booked(&self) -> bool {
        self.not_booked == 0
    }
}

fn taken(cluster: &Cluster, plan: &Plan) -> Vec<Taken> {
    let pools = cluster.snapshot.pools.iter();
    let mut pools: BTreeMap<&str, Taken> =
        pools.map(|pool| (pool.name.as_str(), Taken { pool: pool.name.to_string(), ..Taken::default() })).collect();
    for node in cluster.snapshot.nodes.iter().filter(|node| node.sale == NodeSale::Open) {
        if let Some(pool) = pools.get_mut(node.pool.as_str()) {
            pool.nodes += 1;
            pool.devices += node.capacity.gpu.0 / 1000;
        }
    }
    for booking in &plan.bookings {
        if let Some(pool) = pools.get_mut(booking.pool.as_str()) {
            pool.devices_taken += booking.segments.iter().map(|segment| i64::from(segment.devices)).sum::<i64>();
            pool.milli_gpu_taken += booking.shares.iter().map(|share| share.gpu.0).sum::<i64>();
        }
    }
    pools.into_values().collect()
}

impl AnswerRow {
    fn booked(self, booking: &NewBooking) -> Self {
        let node =
            |segment: &spillway_planner::Segment| OnNode { node: segment.node.to_string(), devices: segment.devices };
        let share = |share: &PlannedShare| OnDevice {
            node: share.node.to_string(),
            device: share.device,
            milli_gpu: share.gpu.0,
        };
        Self {
            pool: Some(booking.pool.to_string()),
            nodes: booking.segments.iter().map(node).collect(),
            shares: booking.shares.iter().map(share).collect(),
            ..self
        }
    }

    fn not_booked(self, answer: &'static str, reason: &Reason) -> Self {
        Self { answer, reason: Some(reason.code), message: Some(reason.message.clone()), ..self }
    }

    fn wanted(&self) -> String {
        self.profile.as_ref().map_or_else(|| self.count.to_string(), |profile| format!("{} x {profile}", self.count))
    }

    /// Where it is, or why it is nowhere.
    fn place(&self) -> String {
        let Some(pool) = &self.pool else { return self.message.clone().unwrap_or_default() };
        let mut places: Vec<String> =
            self.nodes.iter().map(|OnNode { node, devices }| format!("{node} ({devices})")).collect();
        let mut by_node: BTreeMap<&str, Vec<u16>> = BTreeMap::new();
        for share in &self.shares {
            by_node.entry(&share.node).or_default().push(share.device);
        }
        for (node, shares) in by_node {
            let devices: BTreeSet<u16> = shares.iter().copied().collect();
            let word = if devices.len() == 1 { "device" } else { "devices" };
            let devices: Vec<String> = devices.iter().map(u16::to_string).collect();
            places.push(format!("{node} ({} of {word} {})", counted(shares.len(), "share"), devices.join(", ")));
        }
        let more = places.len().saturating_sub(NODES_SHOWN);
        places.truncate(NODES_SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{pool}: {}{more}", places.join(", "))
    }
}

impl output::Report for Answers {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut table = Table::new(&["NAMESPACE", "NAME", "DEVICES", "ANSWER", "REASON", "WHERE OR WHY"]);
        for row in &self.reservations {
            table.push(vec![
                row.namespace.clone(),
                row.name.clone(),
                row.wanted(),
                row.answer.to_owned(),
                row.reason.unwrap_or_default().to_owned(),
                row.place(),
            ]);
        }
        table.write(out, 0)?;
        writeln!(out)?;
        let mut table = Table::new(&["POOL", "NODES", "DEVICES", "TAKEN", "MILLIGPU-IN-SHARES"]);
        for pool in &self.pools {
            let cells = [pool.devices, pool.devices_taken, pool.milli_gpu_taken].map(|number| number.to_string());
            table.push([pool.pool.clone(), pool.nodes.to_string()].into_iter().chain(cells).collect());
        }
        table.write(out, 0)?;
        writeln!(out)?;
        write!(out, "{} of {} booked at {}.", self.booked, counted(self.reservations.len(), "reservation"), self.at)?;
        let LeftOut { reservations, nodes } = self.left_out;
        if reservations > 0 {
            write!(out, " Left out, because over or being deleted: {}.", counted(reservations, "reservation"))?;
        }
        if nodes > 0 {
            write!(out, " Left out, because of no pool that is there: {}.", counted(nodes, "node"))?;
        }
        writeln!(out)
    }
}
