//! What is kept of the requests in flight: a table with a bounded number of places.

use super::EngineId;

/// Requests in flight that a strategy keeps in mind. What is sent beyond that is served, but nothing is learnt from it.
pub const IN_FLIGHT_MAX: u32 = 1 << 16;

/// A request in flight. It says nothing once the request has ended, also when its place has been taken by another.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Ticket {
    place: u32,
    turn: u32,
}

impl Ticket {
    /// One that stands for no request.
    pub(super) const NONE: Self = Self { place: u32::MAX, turn: 0 };
}

/// Requests in flight by ticket.
#[derive(Clone, Debug)]
pub(super) struct Flights<T> {
    /// How often the place was given out, and what is in it.
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Flights<T> {
    pub(super) fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    /// Keeps it, or gives [`Ticket::NONE`] where the table is full.
    pub(super) fn insert(&mut self, flight: T) -> Ticket {
        if let Some(place) = self.free.pop()
            && let Some((turn, slot)) = self.places.get_mut(place as usize)
        {
            *turn = turn.wrapping_add(1);
            *slot = Some(flight);
            return Ticket { place, turn: *turn };
        }
        match u32::try_from(self.places.len()) {
            Ok(place) if place < IN_FLIGHT_MAX => {
                self.places.push((0, Some(flight)));
                Ticket { place, turn: 0 }
            }
            _ => Ticket::NONE,
        }
    }

    pub(super) fn get_mut(&mut self, ticket: Ticket) -> Option<&mut T> {
        let (turn, slot) = self.places.get_mut(ticket.place as usize)?;
        if *turn == ticket.turn { slot.as_mut() } else { None }
    }

    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let (turn, slot) = self.places.get_mut(ticket.place as usize)?;
        let flight = if *turn == ticket.turn { slot.take() } else { None };
        if flight.is_some() {
            self.free.push(ticket.place);
        }
        flight
    }

    /// Drops those for which `keep` says no. It may change what it keeps.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&mut T) -> bool) {
        for (place, (_, slot)) in (0..).zip(&mut self.places) {
            if slot.as_mut().is_some_and(|flight| !keep(flight)) {
                *slot = None;
                self.free.push(place);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.tickets().len()
    }

    #[cfg(test)]
    pub(super) fn tickets(&self) -> Vec<Ticket> {
        let taken = (0..).zip(&self.places).filter(|(_, (_, slot))| slot.is_some());
        taken.map(|(place, &(turn, _))| Ticket { place, turn }).collect()
    }
}

/// Drops the flights to engines that are gone, and tells the others where theirs stands now.
pub(super) fn forget_gone<T>(
    flights: &mut Flights<T>,
    had: &[EngineId],
    has: &[EngineId],
    position: impl Fn(&mut T) -> &mut usize,
) {
    flights.retain(|flight| {
        let position = position(flight);
        let moved = had.get(*position).and_then(|id| has.iter().position(|one| one == id));
        moved.inspect(|&moved| *position = moved).is_some()
    });
}
