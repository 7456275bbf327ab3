//! Parts of a shared node whose bookings ended, and the pods that had room in them: whether these are there still, by what the watches have and,
//! before anything is decided for good, by the API server itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, runtime::reflector::ObjectRef};
use spillway_crds::GpuReservation;
use spillway_planner::{Booking, BookingId, NodeUid, ReservationRef, node::Part};

use crate::{
    assignments,
    context::Context,
    error::{Error, call},
    pods::{PodFacts, facts},
    view::View,
};

/// Namespace and name of a pod.
pub type PodName = (Arc<str>, Arc<str>);

/// Of what a question to the agent of a shared node is: ids of parts that ended, and UIDs of pods that are not there any more, with their names.
pub type About = BTreeMap<Arc<str>, Option<PodName>>;

/// Reservations as they were found.
type Objects = Vec<(ReservationRef, Option<Arc<GpuReservation>>)>;

/// A pod that had room in a part that ended.
#[derive(Clone, Debug)]
enum Whereabouts {
    /// It is not there any more; its containers may be.
    Gone,
    /// It waits, and may land at any time if it was told, or is told yet by who decided it before the end.
    Waits(Box<PodFacts>),
    /// It is on the node.
    There,
    /// It is on another node, was told of another, or is deleted while it waits: it cannot come here any more.
    Never,
}

impl Whereabouts {
    fn of(pod: Option<PodFacts>, here: &str, uid: &NodeUid) -> Self {
        match pod {
            None => Self::Gone,
            Some(pod) if pod.node.as_deref() == Some(here) => Self::There,
            Some(pod) if may_land(&pod, uid) => Self::Waits(Box::new(pod)),
            Some(_) => Self::Never,
        }
    }
}

/// Whether a pod may land on a node still, by a toleration that it has or may be given yet: it is given one of one node only.
pub fn may_land(pod: &PodFacts, node: &NodeUid) -> bool {
    let told = || pod.admitted.is_empty() || pod.admitted.iter().any(|uid| **uid == *node.as_str());
    pod.node.is_none() && pod.deleting.is_none() && told()
}

/// Parts of a node that ended, while it is shared, and while it is closed after that.
#[derive(Debug, Default)]
pub struct Ended {
    node: Arc<str>,
    uid: Option<NodeUid>,
    parts: Vec<(BookingId, Option<ReservationRef>)>,
    /// The live bookings of the node.
    live: Vec<Arc<Booking>>,
    /// UIDs of pods that had room in the parts that ended, and have none in those that live.
    pods: BTreeMap<Arc<str>, (PodName, Whereabouts)>,
    /// UIDs of pods that have room in the parts that live.
    placed: BTreeSet<Arc<str>>,
    /// Parts that ended of which it is not known any more who had room in them.
    forgotten: BTreeSet<BookingId>,
}

impl Ended {
    /// What the watches have of the parts that a node is set up for and of which no booking lives.
    pub fn look(
        context: &Context,
        view: &View,
        (node, uid): (&str, &NodeUid),
        set_up: &[Part],
        live: &[Arc<Booking>],
        parts: &[Part],
    ) -> Self {
        let over = set_up.iter().filter(|part| !parts.contains(part));
        let of = |part: &Part| view.booking(&part.booking).map(|booking| booking.reservation.clone());
        let parts: Vec<_> = over.map(|part| (part.booking.clone(), of(part))).collect();
        let (name, live) = (Arc::from(node), live.to_vec());
        let mut ended = Self { node: name, uid: Some(uid.clone()), parts, live, ..Self::default() };
        if ended.parts.is_empty() {
            return ended;
        }
        let known = |reservation: &ReservationRef| {
            context.stores.reservations.get(&ObjectRef::new(&reservation.name).within(&reservation.namespace))
        };
        let all = ended.over().chain(ended.live.iter().map(|booking| booking.reservation.clone()));
        let objects: Objects = all.map(|one| (one.clone(), known(&one))).collect();
        ended.take(&objects);
        for (pod, (_, whereabouts)) in &mut ended.pods {
            *whereabouts = Whereabouts::of(context.pods.get(pod), node, uid);
        }
        ended
    }

    /// The same by consistent reads, of records first and then of pods: one that was given room just before the end must not be overlooked.
    pub async fn read_again(&mut self, context: &Context) -> Result<(), Error> {
        if self.parts.is_empty() {
            return Ok(());
        }
        let mut objects = Vec::new();
        read(context, self.over(), &mut objects).await?;
        self.take(&objects);
        if self.pods.is_empty() && self.forgotten.is_empty() {
            return Ok(());
        }
        read(context, self.live.iter().map(|booking| booking.reservation.clone()), &mut objects).await?;
        self.take(&objects);
        let Some(node) = self.uid.clone() else { return Ok(()) };
        for (uid, ((namespace, name), whereabouts)) in &mut self.pods {
            *whereabouts = Whereabouts::of(read_pod(context, namespace, name, uid).await?, &self.node, &node);
        }
        Ok(())
    }

    /// The reservations of the parts that ended.
    fn over(&self) -> impl Iterator<Item = ReservationRef> {
        self.parts.iter().filter_map(|(_, reservation)| reservation.clone())
    }

    /// Takes in what the reservations record.
    fn take(&mut self, objects: &Objects) {
        let of = |reservation: &ReservationRef| {
            let (_, object) = objects.iter().find(|(one, _)| one == reservation)?;
            let object = object.as_ref().filter(|one| one.uid().as_deref() == Some(reservation.uid.as_str()))?;
            // One that was told that it is over has no records any more: it is forgotten as one that is gone.
            object.status.as_ref().filter(|status| !status.phase.is_final())?;
            Some(assignments::records(object).into_iter().filter(|record| record.node.as_str() == &*self.node))
        };
        let live = self.live.iter().filter_map(|booking| of(&booking.reservation)).flatten();
        let placed: BTreeSet<Arc<str>> = live.map(|record| record.pod_uid).collect();
        let (mut pods, mut forgotten) = (BTreeMap::new(), BTreeSet::new());
        for (id, reservation) in &self.parts {
            let Some((reservation, records)) = reservation.as_ref().and_then(|one| Some((one, of(one)?))) else {
                forgotten.insert(id.clone());
                continue;
            };
            for record in records.filter(|record| !placed.contains(&record.pod_uid)) {
                let name = (Arc::clone(&reservation.namespace), record.pod);
                pods.insert(record.pod_uid, (name, Whereabouts::There));
            }
        }
        (self.pods, self.placed, self.forgotten) = (pods, placed, forgotten);
    }

    /// Whether a pod of a namespace that has a part of the node is there by right.
    pub fn allows(&self, uid: &str) -> bool {
        self.placed.contains(uid) || self.forgotten.is_empty() && !self.pods.contains_key(uid)
    }

    /// Pods that wait and must not land any more.
    pub fn waiting(&self) -> impl Iterator<Item = &PodFacts> {
        self.pods.values().filter_map(|(_, whereabouts)| match whereabouts {
            Whereabouts::Waits(pod) => Some(&**pod),
            Whereabouts::Gone | Whereabouts::There | Whereabouts::Never => None,
        })
    }

    /// Whether one of the pods that were on the node is not among those that it has: it went meanwhile, and nobody was asked about it.
    pub fn went_meanwhile(&self, pods: &[PodFacts]) -> bool {
        let mut there = self.pods.iter().filter(|(_, (_, whereabouts))| matches!(whereabouts, Whereabouts::There));
        there.any(|(uid, _)| pods.iter().all(|pod| pod.uid != *uid))
    }

    /// Of what a question to the agent is: the parts that ended, and the pods of them that are not there any more.
    pub fn about(&self) -> About {
        let part = |id: &BookingId| match self.forgotten.contains(id) {
            false => Arc::from(id.as_str()),
            // What was asked while it was known who had room in it does not tell of who landed since then.
            true => Arc::from(format!("{id}, forgotten")),
        };
        let parts = self.parts.iter().map(|(id, _)| (part(id), None));
        let gone = self.pods.iter().filter(|(_, (_, whereabouts))| matches!(whereabouts, Whereabouts::Gone));
        parts.chain(gone.map(|(uid, (name, _))| (Arc::clone(uid), Some(name.clone())))).collect()
    }
}

async fn read(
    context: &Context,
    which: impl Iterator<Item = ReservationRef>,
    objects: &mut Objects,
) -> Result<(), Error> {
    for reservation in which.collect::<Vec<_>>() {
        let api: Api<GpuReservation> = Api::namespaced(context.client.clone(), &reservation.namespace);
        let found = call("reading a reservation of a shared node", api.get_opt(&reservation.name)).await?;
        objects.push((reservation, found.map(Arc::new)));
    }
    Ok(())
}

/// A pod as the API server has it; none: it is gone, or its containers are over.
pub async fn read_pod(context: &Context, namespace: &str, name: &str, uid: &str) -> Result<Option<PodFacts>, Error> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let found = call("reading a pod that had room", api.get_opt(name)).await?;
    Ok(found.and_then(|pod| facts(&pod, &context.config.device_prefixes)).filter(|pod| *pod.uid == *uid))
}
