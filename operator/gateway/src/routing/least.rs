//! The engine with least in flight.

use super::{
    EngineId, Prompt, Strategy, Ticket, Usage,
    flights::{Flights, forget_gone},
};

/// The engine on which this gateway has least in flight, from dispatch to end.
#[derive(Clone, Debug)]
pub struct Least {
    measure: Measure,
    engines: Vec<(EngineId, u64)>,
    flights: Flights<Flight>,
}

#[derive(Clone, Copy, Debug)]
enum Measure {
    Requests,
    PromptTokens,
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
struct Flight {
    /// Where its engine stands in the list.
    position: usize,
    amount: u64,
}

impl Least {
    /// Fewest requests.
    pub fn requests() -> Self {
        Self::of(Measure::Requests)
    }

    /// Fewest tokens of prompts.
    pub fn prompt_tokens() -> Self {
        Self::of(Measure::PromptTokens)
    }

    fn of(measure: Measure) -> Self {
        Self { measure, engines: Vec::new(), flights: Flights::new() }
    }
}

impl Strategy for Least {
    fn set_engines(&mut self, engines: &[EngineId]) {
        let had = std::mem::take(&mut self.engines);
        let amount = |id| had.iter().find(|(one, _)| *one == id).map_or(0, |&(_, amount)| amount);
        self.engines = engines.iter().map(|&id| (id, amount(id))).collect();
        let had: Vec<EngineId> = had.into_iter().map(|(id, _)| id).collect();
        forget_gone(&mut self.flights, &had, engines, |flight| &mut flight.position);
    }

    fn choose(&self, _: u64, _: &Prompt<'_>, open: &dyn Fn(EngineId) -> bool) -> Option<EngineId> {
        let engines = self.engines.iter().filter(|(id, _)| open(*id));
        engines.min_by_key(|(_, amount)| *amount).map(|&(id, _)| id)
    }

    fn dispatched(&mut self, _: u64, engine: EngineId, prompt: &Prompt<'_>) -> Ticket {
        let amount = match self.measure {
            Measure::Requests => 1,
            Measure::PromptTokens => prompt.tokens,
        };
        let Some(position) = self.engines.iter().position(|(id, _)| *id == engine) else { return Ticket::NONE };
        let ticket = self.flights.insert(Flight { position, amount });
        if ticket != Ticket::NONE
            && let Some((_, in_flight)) = self.engines.get_mut(position)
        {
            *in_flight = in_flight.saturating_add(amount);
        }
        ticket
    }

    fn token(&mut self, _: u64, _: Ticket) {}

    fn ended(&mut self, _: u64, ticket: Ticket, _: Option<Usage>) {
        if let Some(Flight { position, amount }) = self.flights.remove(ticket)
            && let Some((_, in_flight)) = self.engines.get_mut(position)
        {
            *in_flight = in_flight.saturating_sub(amount);
        }
    }
}
