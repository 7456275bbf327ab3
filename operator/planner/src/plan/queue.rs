//! The reservations that want something.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::types::{Request, ReservationUid, TimeMs};

/// In which order requests are served: by age, then by name.
type Turn = (TimeMs, Arc<str>, Arc<str>, ReservationUid);

fn turn(request: &Request) -> Turn {
    let reservation = &request.reservation;
    (request.created, Arc::clone(&reservation.namespace), Arc::clone(&reservation.name), reservation.uid.clone())
}

/// The reservations that want something.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    all: HashMap<ReservationUid, Arc<Request>>,
    waiting: BTreeSet<Turn>,
    deleting: BTreeSet<ReservationUid>,
}

impl Queue {
    /// Enters a request, or what it has become. `booked`: it has a live booking.
    pub(super) fn insert(&mut self, request: Arc<Request>, booked: bool) {
        let uid = request.reservation.uid.clone();
        self.remove(&uid);
        if request.deleting {
            self.deleting.insert(uid.clone());
        } else if !booked {
            self.waiting.insert(turn(&request));
        }
        self.all.insert(uid, request);
    }

    pub(super) fn remove(&mut self, uid: &ReservationUid) {
        if let Some(before) = self.all.remove(uid) {
            self.waiting.remove(&turn(&before));
            self.deleting.remove(uid);
        }
    }

    /// Says whether a reservation has a live booking from now on.
    pub(super) fn set_booked(&mut self, uid: &ReservationUid, booked: bool) {
        let Some(request) = self.all.get(uid).filter(|request| !request.deleting) else { return };
        let turn = turn(request);
        if booked {
            self.waiting.remove(&turn);
        } else {
            self.waiting.insert(turn);
        }
    }

    pub(super) fn get(&self, uid: &ReservationUid) -> Option<&Arc<Request>> {
        self.all.get(uid)
    }

    /// Requests that are to be answered, in the order in which they are served.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Arc<Request>> {
        self.waiting.iter().filter_map(|(.., uid)| self.all.get(uid))
    }

    /// Reservations that are being deleted.
    pub(super) fn deleting(&self) -> impl Iterator<Item = &ReservationUid> {
        self.deleting.iter()
    }
}
