//! Which engine a request goes to: pure strategies that see what one gateway sees.
//!
//! A gateway knows its own requests: how long their prompts are and the hashes of their blocks, when it sent them, when tokens came back,
//! and at the end what the engine counted. It does not know queues and caches of engines, how long an answer will be, or the requests
//! of other gateways. A [`Strategy`] is told just that. [`Strategy::choose`] decides and changes nothing, [`Strategy::dispatched`]
//! commits, so that a caller can think twice or try another engine.
//!
//! All arithmetic is on integers and the clock is an argument, so the same calls give the same decisions on any machine. Memory is bounded by
//! the engines times the blocks of an engine, and by the requests in flight, which are bounded too ([`IN_FLIGHT_MAX`]).
//! Must not: read a clock, do I/O, wait, or keep the text of a prompt; prompts come as hashes ([`BlockShape`]).
//!
//! `make bench-routing` runs these strategies against simulated engines (`docs/benchmarks.md`).

mod affinity;
mod blocks;
mod cost;
mod fixed;
mod flights;
mod index;
mod least;
mod popularity;
mod round_robin;
mod streams;
mod turns;

#[cfg(test)]
mod tests;

pub use affinity::{Cache, Config, Peers, PrefixAffinity};
pub use blocks::{BLOCKS_MAX, BlockShape};
pub use cost::Cost;
pub use flights::{IN_FLIGHT_MAX, Ticket};
pub use index::BlockIndex;
pub use least::Least;
pub use round_robin::RoundRobin;
pub use turns::Turns;

/// An engine: a replica of a model, by a number that every gateway gives it alike, such as the hash of its pod's UID.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct EngineId(pub u64);

/// What a strategy is told of a request.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    /// Tokens of the prompt, counted or estimated.
    pub tokens: u64,
    /// Hashes of its blocks, each of which stands for the whole prompt up to its end. Blocks that the prompt does not fill are ignored.
    pub blocks: &'a [u64],
}

/// What an engine counted, at the end of a request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// Tokens that it made.
    pub output_tokens: u64,
    /// Tokens of the prompt that it did not have to compute, if it says so.
    pub cached_tokens: Option<u64>,
}

/// How requests are spread over engines. Times are nanoseconds of one monotonic clock, and never go back.
pub trait Strategy {
    /// These are the engines from now on. What is known of those that stay is kept; requests in flight on others are forgotten.
    fn set_engines(&mut self, engines: &[EngineId]);

    /// The engine for a request that arrives now, among those that are `open`; none, if none is. Equal engines go by their order in
    /// [`Strategy::set_engines`].
    fn choose(&self, now: u64, prompt: &Prompt<'_>, open: &dyn Fn(EngineId) -> bool) -> Option<EngineId>;

    /// The request is sent to this engine now.
    fn dispatched(&mut self, now: u64, engine: EngineId, prompt: &Prompt<'_>) -> Ticket;

    /// A token of its answer has come, or several at once.
    fn token(&mut self, now: u64, ticket: Ticket);

    /// It is over: answered, failed or given up. A ticket that was over before does nothing.
    fn ended(&mut self, now: u64, ticket: Ticket, usage: Option<Usage>);
}
