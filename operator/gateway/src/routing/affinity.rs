//! To the engine that is expected to give the first token soonest, with the work of the prompt counted three times.
//!
//! An engine computes what it has not cached of a prompt, after what was sent to it before. The strategy keeps for each engine the
//! blocks that it likely has ([`BlockIndex`]) and the own requests that have no token yet, and learns how fast engines are. The work
//! of the prompt itself counts three times, for it also delays those who come after; that is what sends prompts to where their prefix is.
//!
//! With several gateways two things are unknown, and estimated from what one gateway sees: what the others' requests left in a cache
//! (learned from what engines say they had cached), and what the others' requests have to do there (`streams.rs`).

use std::collections::VecDeque;

use super::{
    BlockIndex, Cost, EngineId, Prompt, Strategy, Ticket, Usage, cost,
    fixed::{ONE, approach, mix, ratio, scale},
    flights::{Flights, forget_gone},
    popularity::{Key, Popularity},
    streams::Streams,
};

/// The work of the request itself counts so many times.
const OWN_WORK: u64 = 3;
/// Where the rate starts: 40,000 ns a token, in units of 2^-20 ns. Twice as much or half as much makes no difference after some requests.
const RATE_START: u64 = 40_000 * ONE;
/// The rate moves by 1 / 50 of the way to a sample.
const RATE_DIVISOR: u64 = 50;
/// Less work than this says nothing about the rate.
const RATE_WORK_MIN: u64 = 4_000;
/// The share of blocks that others have cached moves by 1 / 100 of the way to a sample.
const FOUND_DIVISOR: u64 = 100;
/// It starts at a quarter for the engine that all gateways prefer.
const FOUND_START: u64 = ONE / 4;
/// It is counted twice, up to .8: an engine that is not tried teaches nothing.
const FOUND_MAX: u64 = ONE * 4 / 5;
/// The engine that all gateways prefer counts as having at least this.
const FOUND_HOME_MIN: u64 = ONE * 3 / 100;
/// A request that has run for 1.2 times what was expected and .1 s more is overdue, and will take as long again and a second.
const OVERDUE_PERCENT: u64 = 120;
const OVERDUE_NS: u64 = 100_000_000;
const OVERDUE_MORE_NS: u64 = 1_000_000_000;
/// A cache whose size is not known counts as no smaller than this.
const BLOCKS_MIN: u64 = 64;

/// Who else sends requests to the same engines.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Peers {
    /// Nobody: this is the only gateway.
    #[default]
    None,
    /// Other gateways, with requests of the same kind.
    Any,
    /// Other gateways, but prompts with the same prefix all come to the same gateway.
    ByPrefix,
}

/// How many blocks an engine caches.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cache {
    /// So many.
    Blocks(u32),
    /// It is not known, but no more than this: learned from what engines say they had cached.
    AtMost(u32),
}

impl Cache {
    fn blocks(self) -> u32 {
        match self {
            Self::Blocks(blocks) | Self::AtMost(blocks) => blocks,
        }
    }
}

/// What a [`PrefixAffinity`] must be told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Config {
    /// What engines cache.
    pub cache: Cache,
    /// Who else sends requests there.
    pub peers: Peers,
    /// What prompts cost.
    pub cost: Cost,
    /// A random number, for hash tables; decisions do not depend on it.
    pub seed: u64,
}

/// Least expected time to the first token, with own work counted three times.
#[derive(Clone, Debug)]
pub struct PrefixAffinity {
    config: Config,
    engines: Vec<Engine>,
    flights: Flights<Flight>,
    popularity: Popularity,
    /// Nanoseconds a token of work, in units of 2^-20.
    rate: u64,
    /// Which share of what could be cached is, beyond what the index knows, in units of 2^-20: by whether the index knows the key of the
    /// prompt, and by the rank of the engine for that key.
    found: [[u64; 3]; 2],
}

/// What is known of an engine.
#[derive(Clone, Debug)]
struct Engine {
    id: EngineId,
    index: BlockIndex,
    /// How many blocks it caches, in units of 2^-20.
    capacity: u64,
    /// Own requests without a token, in order of dispatch.
    pending: VecDeque<Pending>,
    /// Work of all of them.
    pending_work: u64,
    /// Tokens of own prompts in flight.
    in_flight: u64,
    /// When the last own request got its first token.
    last_first: u64,
    streams: Streams,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    ticket: Ticket,
    work: u64,
    since: u64,
}

/// An own request in flight.
#[derive(Clone, Copy, Debug)]
struct Flight {
    /// Where its engine stands in the list.
    position: usize,
    tokens: u64,
    since: u64,
    /// Its first and its last token so far.
    first: Option<u64>,
    last: u64,
    /// No other own request was waiting there, so that the time to the first token was its own.
    alone: bool,
    /// How slow the engine was, in units of 2^-20.
    slow: u64,
    guess: Guess,
}

/// What an engine may have cached of a prompt, in blocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Guess {
    /// By the index.
    known: u64,
    /// At most. The last token is always computed.
    reusable: u64,
    /// Whether the index knows the key.
    beyond_key: bool,
    rank: Rank,
}

/// How early an engine comes in the order in which all gateways prefer engines for a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Rank {
    Home,
    Second,
    Other,
}

/// A prompt, with what does not depend on the engine.
#[derive(Clone, Copy, Debug)]
struct Sight<'a> {
    tokens: u64,
    /// The blocks that it fills.
    blocks: &'a [u64],
    key: Option<Key>,
    home: Option<EngineId>,
    second: Option<EngineId>,
}

impl PrefixAffinity {
    /// For no engines yet.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            engines: Vec::new(),
            flights: Flights::new(),
            popularity: Popularity::new(config.seed),
            rate: RATE_START,
            found: [[FOUND_START, 0, 0]; 2],
        }
    }

    /// Blocks in the indexes of all engines.
    pub fn blocks(&self) -> usize {
        self.engines.iter().map(|engine| engine.index.len()).sum()
    }

    /// Gateways come and go.
    pub fn set_peers(&mut self, peers: Peers) {
        self.config.peers = peers;
    }

    #[cfg(test)]
    pub(super) fn rate(&self) -> u64 {
        self.rate
    }

    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Ends all requests, as the gateway would.
    #[cfg(test)]
    pub(super) fn end_all(&mut self) {
        for ticket in self.flights.tickets() {
            self.ended(0, ticket, None);
        }
    }

    /// Whether nothing is counted as in flight or waiting anywhere.
    #[cfg(test)]
    pub(super) fn is_at_rest(&self) -> bool {
        self.engines.iter().all(|engine| {
            engine.pending.is_empty() && (engine.pending_work, engine.in_flight) == (0, 0) && engine.streams.is_none()
        })
    }

    fn look<'a>(&self, prompt: &Prompt<'a>) -> Sight<'a> {
        let filled = prompt.tokens.checked_div(self.config.cost.block_tokens).unwrap_or(0);
        let filled = usize::try_from(filled).unwrap_or(usize::MAX);
        let blocks = prompt.blocks.get(..filled).unwrap_or(prompt.blocks);
        let key = self.popularity.key(blocks, self.engines.len());
        let (home, second) = key.map_or((None, None), |key| self.preferred(key));
        Sight { tokens: prompt.tokens, blocks, key, home, second }
    }

    /// The two engines that every gateway prefers for this key: rendezvous hashing.
    fn preferred(&self, key: Key) -> (Option<EngineId>, Option<EngineId>) {
        let (mut first, mut second) = (None, None);
        for engine in &self.engines {
            let candidate = Some((mix(key.block ^ mix(engine.id.0)), engine.id));
            if candidate > first {
                (first, second) = (candidate, first);
            } else if candidate > second {
                second = candidate;
            }
        }
        (first.map(|(_, id)| id), second.map(|(_, id)| id))
    }

    fn guess(&self, sight: &Sight<'_>, engine: &Engine) -> Guess {
        let could = sight.tokens.saturating_sub(1).checked_div(self.config.cost.block_tokens).unwrap_or(0);
        let reusable = could.min(sight.blocks.len() as u64);
        let known = (engine.index.leading(sight.blocks) as u64).min(reusable);
        let rank = match Some(engine.id) {
            id if id == sight.home => Rank::Home,
            id if id == sight.second => Rank::Second,
            _ => Rank::Other,
        };
        Guess { known, reusable, beyond_key: sight.key.is_some_and(|key| known >= key.depth as u64), rank }
    }

    /// Tokens that are likely cached.
    fn cached(&self, guess: Guess) -> u64 {
        let found = match self.config.peers {
            Peers::ByPrefix => 0,
            Peers::None | Peers::Any => {
                let least = if guess.rank == Rank::Home { FOUND_HOME_MIN } else { 0 };
                self.found(guess).saturating_mul(2).clamp(least, FOUND_MAX)
            }
        };
        let block = self.config.cost.block_tokens;
        block.saturating_mul(guess.known) + scale(block.saturating_mul(guess.reusable - guess.known), found)
    }

    fn found(&self, guess: Guess) -> u64 {
        let [unknown, known] = self.found;
        let [home, second, other] = if guess.beyond_key { known } else { unknown };
        match guess.rank {
            Rank::Home => home,
            Rank::Second => second,
            Rank::Other => other,
        }
    }

    /// The work of a prompt of which so much is cached.
    fn work(&self, tokens: u64, cached: u64) -> u64 {
        self.config.cost.work(tokens.saturating_sub(cached), cached)
    }

    /// Nanoseconds to the first token, with the work of the request counted three times.
    fn score(&self, now: u64, sight: &Sight<'_>, engine: &Engine) -> u64 {
        let slow = self.config.cost.slow(engine.in_flight);
        let own = engine.waiting(now, slow, self.rate);
        let others = match self.config.peers {
            Peers::None => 0,
            Peers::Any | Peers::ByPrefix => engine.streams.others(now, !engine.pending.is_empty()),
        };
        let work = self.work(sight.tokens, self.cached(self.guess(sight, engine)));
        let itself = cost::time(work, slow, self.rate).saturating_mul(OWN_WORK);
        own.saturating_add(others).saturating_add(itself)
    }

    fn learn(&mut self, flight: &Flight, usage: Usage) {
        let Some(cached_tokens) = usage.cached_tokens else { return };
        let Guess { known, reusable, .. } = flight.guess;
        let cached = cached_tokens.checked_div(self.config.cost.block_tokens).unwrap_or(0);
        let work = self.work(flight.tokens, cached_tokens);
        if let Some(first) = flight.first
            && flight.alone
            && work > RATE_WORK_MIN
            && cached == known
        {
            let sample = cost::rate(first.saturating_sub(flight.since), work, flight.slow);
            let sample = sample.clamp(self.rate / 2, self.rate.saturating_mul(2));
            self.rate = approach(self.rate, sample, RATE_DIVISOR).max(1);
        }
        if reusable > known {
            let sample = ratio(cached.saturating_sub(known), reusable - known).min(ONE);
            let learned = approach(self.found(flight.guess), sample, FOUND_DIVISOR);
            self.set_found(flight.guess, learned);
        }
        if let Cache::AtMost(blocks) = self.config.cache
            && let Some(engine) = self.engines.get_mut(flight.position)
        {
            engine.resize(cached.cmp(&known), blocks);
        }
    }

    fn set_found(&mut self, guess: Guess, learned: u64) {
        let [unknown, known] = &mut self.found;
        let [home, second, other] = if guess.beyond_key { known } else { unknown };
        *match guess.rank {
            Rank::Home => home,
            Rank::Second => second,
            Rank::Other => other,
        } = learned;
    }
}

impl Engine {
    fn new(id: EngineId, config: &Config) -> Self {
        let blocks = config.cache.blocks();
        Self {
            id,
            index: BlockIndex::new(blocks, config.seed),
            capacity: u64::from(blocks) * ONE,
            pending: VecDeque::new(),
            pending_work: 0,
            in_flight: 0,
            last_first: 0,
            streams: Streams::default(),
        }
    }

    /// Nanoseconds until all own requests that wait have their first token.
    fn waiting(&self, now: u64, slow: u64, rate: u64) -> u64 {
        let Some(first) = self.pending.front() else { return 0 };
        let behind = cost::time(self.pending_work.saturating_sub(first.work), slow, rate);
        let takes = cost::time(first.work, slow, rate);
        let runs = now.saturating_sub(first.since.max(self.last_first));
        let left = if runs > (takes / 100).saturating_mul(OVERDUE_PERCENT).saturating_add(OVERDUE_NS) {
            takes.saturating_add(OVERDUE_MORE_NS)
        } else {
            takes.saturating_sub(runs)
        };
        behind.saturating_add(left)
    }

    /// The request does not wait any more.
    fn settle(&mut self, ticket: Ticket) {
        if let Some(at) = self.pending.iter().position(|one| one.ticket == ticket)
            && let Some(pending) = self.pending.remove(at)
        {
            self.pending_work = self.pending_work.saturating_sub(pending.work);
        }
    }

    /// More was cached than the index says, or less: the cache is larger than we think, or smaller.
    fn resize(&mut self, cached: std::cmp::Ordering, most: u32) {
        let change = match cached {
            std::cmp::Ordering::Less => ratio(990, 1000),
            std::cmp::Ordering::Greater => ratio(1010, 1000),
            std::cmp::Ordering::Equal => ratio(1001, 1000),
        };
        let most = u64::from(most);
        self.capacity = scale(self.capacity, change).clamp(BLOCKS_MIN.min(most) * ONE, most * ONE);
        self.index.set_capacity(u32::try_from(self.capacity / ONE).unwrap_or(u32::MAX));
    }
}

impl Strategy for PrefixAffinity {
    fn set_engines(&mut self, engines: &[EngineId]) {
        let mut had = std::mem::take(&mut self.engines);
        let ids: Vec<EngineId> = had.iter().map(|engine| engine.id).collect();
        forget_gone(&mut self.flights, &ids, engines, |flight| &mut flight.position);
        for &id in engines {
            let at = had.iter().position(|engine| engine.id == id);
            let kept = at.map(|at| had.swap_remove(at));
            self.engines.push(kept.unwrap_or_else(|| Engine::new(id, &self.config)));
        }
    }

    fn choose(&self, now: u64, prompt: &Prompt<'_>, open: &dyn Fn(EngineId) -> bool) -> Option<EngineId> {
        let sight = self.look(prompt);
        let engines = self.engines.iter().filter(|engine| open(engine.id));
        engines.min_by_key(|engine| self.score(now, &sight, engine)).map(|engine| engine.id)
    }

    fn dispatched(&mut self, now: u64, engine: EngineId, prompt: &Prompt<'_>) -> Ticket {
        let sight = self.look(prompt);
        self.popularity.observe(sight.blocks);
        let Some(position) = self.engines.iter().position(|one| one.id == engine) else { return Ticket::NONE };
        let Some(engine) = self.engines.get(position) else { return Ticket::NONE };
        let guess = self.guess(&sight, engine);
        let slow = self.config.cost.slow(engine.in_flight);
        let work = self.work(sight.tokens, self.cached(guess));
        let alone = engine.pending.is_empty();
        let tokens = sight.tokens;
        let flight = Flight { position, tokens, since: now, first: None, last: now, alone, slow, guess };
        let ticket = self.flights.insert(flight);
        if let Some(engine) = self.engines.get_mut(position) {
            engine.index.touch(sight.blocks);
            if ticket != Ticket::NONE {
                engine.pending.push_back(Pending { ticket, work, since: now });
                engine.pending_work = engine.pending_work.saturating_add(work);
                engine.in_flight = engine.in_flight.saturating_add(tokens);
            }
        }
        ticket
    }

    fn token(&mut self, now: u64, ticket: Ticket) {
        let Some(flight) = self.flights.get_mut(ticket) else { return };
        let Some(engine) = self.engines.get_mut(flight.position) else { return };
        if flight.first.is_some() {
            engine.streams.token(now, flight.last);
        } else {
            flight.first = Some(now);
            engine.settle(ticket);
            engine.last_first = now;
            engine.streams.begin(now);
        }
        flight.last = now;
    }

    fn ended(&mut self, _: u64, ticket: Ticket, usage: Option<Usage>) {
        let Some(flight) = self.flights.remove(ticket) else { return };
        if let Some(engine) = self.engines.get_mut(flight.position) {
            engine.in_flight = engine.in_flight.saturating_sub(flight.tokens);
            if flight.first.is_some() {
                engine.streams.end();
            } else {
                engine.settle(ticket);
            }
        }
        if let Some(usage) = usage {
            self.learn(&flight, usage);
        }
    }
}
