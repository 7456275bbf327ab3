//! One engine after the other.

use super::{EngineId, Prompt, Strategy, Ticket, Usage};

/// One engine after the other, whatever they have to do.
#[derive(Clone, Debug, Default)]
pub struct RoundRobin {
    engines: Vec<EngineId>,
    /// Whose turn it is, as a position.
    next: usize,
}

impl RoundRobin {
    /// For no engines yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Strategy for RoundRobin {
    fn set_engines(&mut self, engines: &[EngineId]) {
        self.engines = engines.to_vec();
        self.next = 0;
    }

    fn choose(&self, _: u64, _: &Prompt<'_>, open: &dyn Fn(EngineId) -> bool) -> Option<EngineId> {
        let engines = self.engines.iter().cycle().skip(self.next).take(self.engines.len());
        engines.copied().find(|&engine| open(engine))
    }

    fn dispatched(&mut self, _: u64, engine: EngineId, _: &Prompt<'_>) -> Ticket {
        if let Some(position) = self.engines.iter().position(|&one| one == engine) {
            self.next = if position + 1 < self.engines.len() { position + 1 } else { 0 };
        }
        Ticket::NONE
    }

    fn token(&mut self, _: u64, _: Ticket) {}

    fn ended(&mut self, _: u64, _: Ticket, _: Option<Usage>) {}
}
