//! A ledger that speaks of objects which are there again under other UIDs, as after a loss of etcd: which are meant, by name, and the pages
//! that name them.
//!
//! Pure. A page never changes, so a page that must say something else gets a new name, and so do the index that names it and the root.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use serde::Serialize;
use serde_json::Value;
use spillway_crds::{CapacityLedgerSpec, GpuReservation, PageKind, names::POOL_LABEL, parse_duration_ms};
use spillway_planner::Booking;

use super::copy::{PageCopy, Whole};
use crate::error::Error;

/// An object that is meant by another UID from now on.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Rebound {
    /// `GpuReservation/namespace/name` or `Node/name`.
    pub(crate) object: String,
    /// UID in the copy.
    pub(crate) from: String,
    /// UID in the cluster.
    pub(crate) to: String,
}

/// Something of the copy that the cluster does not have.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Missing {
    /// `GpuReservation/namespace/name` or `Node/name`.
    pub(crate) object: String,
    /// Why none is meant, and what becomes of it.
    pub(crate) why: String,
}

/// What the live bookings speak of, and what is there.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Matches {
    /// Found by name.
    pub(crate) rebound: Vec<Rebound>,
    /// Live bookings without their reservation: the operator ends them.
    pub(crate) lost: Vec<Missing>,
    /// Nodes of live bookings that are gone: the operator replaces them if others are free.
    pub(crate) nodes_gone: Vec<Missing>,
    /// Reservations that would be bought a second time, because what they had ended under another UID.
    pub(crate) bought_again: Vec<Missing>,
}

/// Finds by name what a live booking means and the cluster has under another UID.
pub(crate) fn match_names(whole: &Whole, reservations: &[GpuReservation], nodes: &[Node]) -> Matches {
    let mut matches = Matches::default();
    let by_uid: BTreeSet<String> = reservations.iter().filter_map(ResourceExt::uid).collect();
    let booked: BTreeSet<&str> = whole.live.iter().map(|booking| booking.reservation.uid.as_str()).collect();
    for booking in &whole.live {
        let reservation = &booking.reservation;
        if by_uid.contains(reservation.uid.as_str()) {
            continue;
        }
        let object = format!("GpuReservation/{}/{}", reservation.namespace, reservation.name);
        let found = reservations.iter().find(|one| {
            one.namespace().as_deref() == Some(&*reservation.namespace) && one.name_any() == *reservation.name
        });
        match found.map(|found| (found, difference(booking, found, &booked))) {
            Some((found, None)) => {
                let to = found.uid().unwrap_or_default();
                matches.rebound.push(Rebound { object, from: reservation.uid.to_string(), to });
            }
            Some((_, Some(why))) => matches.lost.push(Missing { object, why }),
            None => matches.lost.push(Missing { object, why: "it does not exist: apply it first".to_owned() }),
        }
    }
    match_nodes(whole, nodes, &mut matches);
    let rebound: BTreeSet<String> = matches.rebound.iter().map(|one| one.to.clone()).collect();
    for reservation in reservations {
        let uid = reservation.uid().unwrap_or_default();
        let over = reservation.status.as_ref().is_some_and(|status| status.phase.is_final());
        let (namespace, name) = (reservation.namespace().unwrap_or_default(), reservation.name_any());
        let ended = |booking: &&std::sync::Arc<Booking>| {
            *booking.reservation.namespace == *namespace && *booking.reservation.name == *name
        };
        let mine = whole.ended.iter().any(|booking| booking.reservation.uid.as_str() == uid);
        if !over
            && !mine
            && !booked.contains(uid.as_str())
            && !rebound.contains(&uid)
            && whole.ended.iter().any(|b| ended(&b))
        {
            matches.bought_again.push(Missing {
                object: format!("GpuReservation/{namespace}/{name}"),
                why: "what a reservation of this name had has ended; this one is new and is booked anew. Delete it if that is not meant"
                    .to_owned(),
            });
        }
    }
    matches
}

fn match_nodes(whole: &Whole, nodes: &[Node], matches: &mut Matches) {
    let uids: BTreeSet<String> = nodes.iter().filter_map(ResourceExt::uid).collect();
    let open = || {
        whole.live.iter().flat_map(|booking| {
            booking.segments.iter().filter(|segment| segment.to.is_none()).map(move |segment| (booking, segment))
        })
    };
    let held: BTreeSet<&str> = open().map(|(_, segment)| segment.uid.as_str()).collect();
    let mut seen = BTreeSet::new();
    for (booking, segment) in open() {
        if uids.contains(segment.uid.as_str()) || !seen.insert(segment.uid.as_str()) {
            continue;
        }
        let object = format!("Node/{}", segment.node);
        let found = nodes.iter().find(|node| node.name_any() == segment.node.as_str());
        let why = match found {
            None => "it does not exist",
            Some(node) if node.labels().get(POOL_LABEL).map(String::as_str) != Some(booking.pool.as_str()) => {
                "the node of this name is not in the pool of the booking"
            }
            Some(node) => {
                let to = node.uid().unwrap_or_default();
                if held.contains(to.as_str()) {
                    "the node of this name is held by another booking"
                } else {
                    matches.rebound.push(Rebound { object, from: segment.uid.to_string(), to });
                    continue;
                }
            }
        };
        matches.nodes_gone.push(Missing { object, why: why.to_owned() });
    }
}

/// Why a reservation of the name cannot be the one that was booked.
fn difference(booking: &Booking, found: &GpuReservation, booked: &BTreeSet<&str>) -> Option<String> {
    let spec = &found.spec;
    let duration = spec.term.as_ref().and_then(|term| parse_duration_ms(&term.duration).ok());
    if booked.contains(found.uid().unwrap_or_default().as_str()) {
        Some("the one of this name has a booking of its own".to_owned())
    } else if i64::from(spec.devices.count) != i64::from(booking.devices) {
        Some(format!("the one of this name wants {} devices and {} were booked", spec.devices.count, booking.devices))
    } else if spec.exclusive_nodes != booking.exclusive {
        let kind = |exclusive: bool| if exclusive { "whole nodes" } else { "parts of nodes" };
        Some(format!(
            "the one of this name wants {} and {} were booked",
            kind(spec.exclusive_nodes),
            kind(booking.exclusive)
        ))
    } else if spec.tier.as_str() != format!("{:?}", booking.tier) {
        Some(format!("the one of this name is of tier {} and {:?} was booked", spec.tier.as_str(), booking.tier))
    } else if duration != booking.duration_ms {
        Some("the one of this name has another term than was booked".to_owned())
    } else if found.metadata.deletion_timestamp.is_some() {
        Some("the one of this name is being deleted".to_owned())
    } else {
        None
    }
}

/// Root and pages in which the live bookings speak of other UIDs. The archive stays as it is: it is history.
pub(crate) fn rename(
    root: &CapacityLedgerSpec,
    pages: &[PageCopy],
    uids: &BTreeMap<String, String>,
    new_name: &mut dyn FnMut(&str) -> String,
) -> Result<(CapacityLedgerSpec, Vec<PageCopy>), Error> {
    let mut root = root.clone();
    let mut pages = pages.to_vec();
    let mut moved: BTreeMap<String, String> = BTreeMap::new();
    for (kind, label) in [(PageKind::Bookings, "bookings"), (PageKind::Index, "index")] {
        let mut renamed = BTreeMap::new();
        for page in pages.iter_mut().filter(|page| page.spec.kind == kind) {
            let mut data: Value = serde_json::from_str(&page.spec.data)
                .map_err(|source| Error::Copy { why: format!("page {}: {source}", page.name) })?;
            let words = if kind == PageKind::Index { &moved } else { uids };
            if substitute(&mut data, words) {
                page.spec.data = data.to_string();
                let name = new_name(label);
                renamed.insert(std::mem::replace(&mut page.name, name.clone()), name);
            }
        }
        moved.extend(renamed);
    }
    for pool in &mut root.pools {
        if let Some(name) = moved.get(&pool.index) {
            pool.index.clone_from(name);
        }
    }
    Ok((root, pages))
}

/// Puts other words in the place of whole strings, wherever they stand; true if there was one. UIDs and names of pages mean nothing else.
fn substitute(value: &mut Value, words: &BTreeMap<String, String>) -> bool {
    match value {
        Value::String(text) => match words.get(text) {
            Some(word) => {
                text.clone_from(word);
                true
            }
            None => false,
        },
        Value::Array(items) => items.iter_mut().filter_map(|item| substitute(item, words).then_some(())).count() > 0,
        Value::Object(fields) => {
            fields.values_mut().filter_map(|field| substitute(field, words).then_some(())).count() > 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
