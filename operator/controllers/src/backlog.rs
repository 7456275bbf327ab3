//! What was booked and not told yet. It is told in the order in which it was booked, and goes before the nodes' being handed over: a buyer first
//! learns that it has what it asked for, and a busy API server is not asked for everything at once.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use spillway_planner::{Booking, ReservationUid, TimeMs};
use tokio::sync::mpsc;

/// So many untold bookings are much.
const MUCH: usize = 8;
/// Where so many were booked within a second, none waits to be told with its hand-over.
const MANY: usize = 16;
/// While much is untold and the first of it waits for longer than this, no hand-over begins.
const LATE: Duration = Duration::from_millis(300);
/// Hand-overs at once on an API server that is not busy.
const AT_ONCE: usize = 8;
/// A server that takes this long for one thing that is told is busy: it is given one hand-over at a time, and twice as many for half of it. One
/// that takes twice as long, while many are booked, is given none.
const BUSY: Duration = Duration::from_millis(50);
/// How long it counts what telling took.
const REMEMBERED: Duration = Duration::from_secs(1);
/// Milliseconds after its booking until which the hand-over may wait, whatever is untold.
const BOUND_MS: i64 = 60_000;
/// How long who waits for the backlog waits at a time.
const PAUSE: Duration = Duration::from_secs(1);

/// A booking of which a reservation is to be told.
#[derive(Clone, Debug)]
pub struct Order {
    /// Which reservation.
    pub reservation: ReservationUid,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// When it was booked.
    pub booked_at: TimeMs,
}

#[derive(Debug, Default)]
struct State {
    untold: HashSet<ReservationUid>,
    /// Those that were booked, in order; some of them have been told.
    queue: VecDeque<(ReservationUid, Instant)>,
    /// When the last of them were booked, told or not: as many as are many.
    recent: VecDeque<Instant>,
    /// How long telling one took of late, and when the last one was told.
    took: Option<(Duration, Instant)>,
    /// Hand-overs under way.
    under_way: usize,
}

impl State {
    fn is_long(&self) -> bool {
        self.untold.len() > MUCH
    }

    fn hurries(&self, now: Instant) -> bool {
        let many = self.recent.len() >= MANY;
        let first = self.recent.front().filter(|_| many);
        self.is_long() || first.is_some_and(|first| now.saturating_duration_since(*first) < Duration::from_secs(1))
    }

    /// How many hand-overs may be under way.
    fn room(&self, now: Instant) -> usize {
        let first = self.queue.front().map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(*since));
        if self.is_long() && first > LATE {
            return 0;
        }
        match self.took {
            Some((took, _)) if took > BUSY * 2 && self.hurries(now) => 0,
            Some((took, last)) if now.saturating_duration_since(last) < REMEMBERED => {
                let room = BUSY.as_micros() / took.as_micros().max(1);
                usize::try_from(room).unwrap_or(AT_ONCE).clamp(1, AT_ONCE)
            }
            _ => AT_ONCE,
        }
    }

    fn told(&mut self, reservation: &ReservationUid) {
        self.untold.remove(reservation);
        while self.queue.front().is_some_and(|(first, _)| !self.untold.contains(first)) {
            self.queue.pop_front();
        }
    }
}

/// The reservations that were booked and whose status does not say so.
#[derive(Debug)]
pub struct Backlog {
    state: Mutex<State>,
    orders: mpsc::UnboundedSender<Order>,
}

/// Leave for one hand-over, until it is dropped.
#[derive(Debug)]
pub struct Leave<'a>(&'a Backlog);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.state().under_way -= 1;
    }
}

impl Backlog {
    /// An empty one, and what is to be told, in order.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Order>) {
        let (orders, receiver) = mpsc::unbounded_channel();
        (Self { state: Mutex::default(), orders }, receiver)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a new booking.
    pub fn booked(&self, booking: &Booking) {
        let reservation = &booking.reservation;
        {
            let mut state = self.state();
            state.untold.insert(reservation.uid.clone());
            let now = Instant::now();
            state.queue.push_back((reservation.uid.clone(), now));
            state.recent.push_back(now);
            if state.recent.len() > MANY {
                state.recent.pop_front();
            }
        }
        // Who tells lives as long as the process leads.
        let _ = self.orders.send(Order {
            reservation: reservation.uid.clone(),
            namespace: reservation.namespace.to_string(),
            name: reservation.name.to_string(),
            booked_at: booking.booked_at,
        });
    }

    /// Notes that it was told, or that there is nothing to be told any more.
    pub fn told(&self, reservation: &ReservationUid) {
        self.state().told(reservation);
    }

    /// Notes how long the API server took for one that was told.
    pub fn took(&self, took: Duration) {
        let mut state = self.state();
        let before = state.took.map_or(took, |(before, _)| before);
        state.took = Some(((before * 3 + took) / 4, Instant::now()));
    }

    /// Whether a reservation is to be told that it is booked.
    pub fn has(&self, reservation: &ReservationUid) -> bool {
        self.state().untold.contains(reservation)
    }

    /// Whether so much is booked that none should wait to be told.
    pub fn hurries(&self) -> bool {
        self.state().hurries(Instant::now())
    }

    /// Leave for a step of the hand-over for a booking of that time.
    ///
    /// # Errors
    /// How long it should wait before it asks again.
    pub fn leave(&self, booked_at: TimeMs, now_ms: i64) -> Result<Leave<'_>, Duration> {
        let young = now_ms < booked_at.plus(BOUND_MS).0;
        let mut state = self.state();
        if young && state.under_way >= state.room(Instant::now()) {
            return Err(PAUSE);
        }
        state.under_way += 1;
        Ok(Leave(self))
    }
}

#[cfg(test)]
mod tests;
