//! A run: requests arrive, gateways route them with a strategy of the library, engines serve them, gateways see tokens.

use std::time::{Duration, Instant};

use spillway_gateway::routing::{
    Cache, Config, Cost, EngineId, Least, Peers, PrefixAffinity, Prompt, RoundRobin, Strategy, Ticket, Usage,
};

use super::{
    engine::{self, BLOCK, Engine, Event},
    trace::{Request, Trace},
};

/// Who decides.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Router {
    /// Sees every engine: the one where the first token comes soonest.
    Oracle,
    RoundRobin,
    LeastRequests,
    LeastPromptTokens,
    Affinity,
}

/// Which gateway a request comes to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Entry {
    /// One after the other.
    InTurn,
    /// By the second block of its prompt.
    Owner,
}

/// A run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) router: Router,
    pub(crate) gateways: usize,
    pub(crate) entry: Entry,
    pub(crate) engines: usize,
    /// Blocks that an engine caches.
    pub(crate) blocks: u32,
    /// Whether strategies are told how many blocks that is, or have to find out.
    pub(crate) told_blocks: bool,
    /// Percent of the recorded speed.
    pub(crate) speed: u64,
}

/// What came of it. Times are nanoseconds.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) cached_tokens: u64,
    pub(crate) first_token_sum: u64,
    pub(crate) first_token_p99: u64,
    pub(crate) wait_p99: u64,
    pub(crate) end_sum: u64,
    /// The busiest engine over the mean, in units of 10^-6.
    pub(crate) imbalance_ppm: u64,
    /// Real time of each decision with its commit, and of all that is told afterwards.
    pub(crate) decisions: Vec<Duration>,
    pub(crate) telling: Duration,
}

#[derive(Clone, Copy, Default)]
struct Served {
    gateway: usize,
    ticket: Option<Ticket>,
    cached_blocks: u64,
    first: u64,
    end: u64,
}

impl Setup {
    fn strategy(&self) -> Option<Box<dyn Strategy>> {
        let mut strategy: Box<dyn Strategy> = match self.router {
            Router::Oracle => return None,
            Router::RoundRobin => Box::new(RoundRobin::new()),
            Router::LeastRequests => Box::new(Least::requests()),
            Router::LeastPromptTokens => Box::new(Least::prompt_tokens()),
            Router::Affinity => {
                let peers = match self.entry {
                    _ if self.gateways == 1 => Peers::None,
                    Entry::InTurn => Peers::Any,
                    Entry::Owner => Peers::ByPrefix,
                };
                let cache = if self.told_blocks { Cache::Blocks(self.blocks) } else { Cache::AtMost(3 * self.blocks) };
                Box::new(PrefixAffinity::new(Config { cache, peers, cost: Cost::default(), seed: 1 }))
            }
        };
        let engines: Vec<EngineId> = (0..self.engines as u64).map(EngineId).collect();
        strategy.set_engines(&engines);
        Some(strategy)
    }

    fn gateway(&self, number: usize, request: &Request) -> usize {
        match self.entry {
            Entry::InTurn => number % self.gateways,
            Entry::Owner => {
                let block = request.blocks.get(1).or(request.blocks.first()).copied().unwrap_or(0);
                (splitmix64(block) % self.gateways as u64) as usize
            }
        }
    }

    pub(crate) fn run(&self, trace: &Trace) -> Outcome {
        let requests = &trace.requests;
        let arrivals = trace.arrivals(self.speed);
        let mut engines: Vec<Engine> = (0..self.engines).map(|_| Engine::new(self.blocks)).collect();
        let mut gateways: Vec<_> = (0..self.gateways).filter_map(|_| self.strategy()).collect();
        let mut served = vec![Served::default(); requests.len()];
        let mut outcome = Outcome::default();
        let mut events: Vec<(usize, Event)> = Vec::new();
        let mut coming = arrivals.iter().copied().enumerate().peekable();
        loop {
            let step = engines.iter().enumerate().filter_map(|(at, engine)| Some((engine.ends()?, at))).min();
            match (step, coming.peek().copied()) {
                (Some((now, at)), arrival) if arrival.is_none_or(|(_, arrival)| now <= arrival) => {
                    let Some(engine) = engines.get_mut(at) else { break };
                    let tell = |number, event| events.push((number, event));
                    engine.step(now, requests, |number, found| admitted(&mut served, number, found), tell);
                    let begun = Instant::now();
                    for (number, event) in events.drain(..) {
                        let Some(one) = served.get_mut(number) else { continue };
                        let output_tokens = requests.get(number).map_or(0, |request| request.output);
                        one.told(now, event, output_tokens, &mut gateways);
                    }
                    outcome.telling += begun.elapsed();
                }
                (_, Some((number, now))) => {
                    coming.next();
                    let (Some(request), Some(one)) = (requests.get(number), served.get_mut(number)) else { break };
                    let prompt = Prompt { tokens: request.input, blocks: &request.blocks };
                    let begun = Instant::now();
                    one.gateway = self.gateway(number, request);
                    let chosen = match gateways.get_mut(one.gateway) {
                        None => soonest(&engines, now, number, requests),
                        Some(strategy) => strategy.choose(now, &prompt, &|_| true).map(|engine| {
                            one.ticket = Some(strategy.dispatched(now, engine, &prompt));
                            engine.0 as usize
                        }),
                    };
                    outcome.decisions.push(begun.elapsed());
                    let Some(engine) = chosen.and_then(|at| engines.get_mut(at)) else { break };
                    engine.push(now, number, requests, |number, found| admitted(&mut served, number, found));
                }
                (_, None) => break,
            }
        }
        outcome.count(requests, &arrivals, &served, &engines);
        outcome
    }
}

fn admitted(served: &mut [Served], number: usize, found: u64) {
    if let Some(one) = served.get_mut(number) {
        one.cached_blocks = found;
    }
}

impl Served {
    fn told(&mut self, now: u64, event: Event, output_tokens: u64, gateways: &mut [Box<dyn Strategy>]) {
        match event {
            Event::First => self.first = now,
            Event::Token => {}
            Event::End => self.end = now,
        }
        let (Some(ticket), Some(strategy)) = (self.ticket, gateways.get_mut(self.gateway)) else { return };
        if event == Event::End {
            let usage = Usage { output_tokens, cached_tokens: Some(BLOCK * self.cached_blocks) };
            strategy.ended(now, ticket, Some(usage));
        } else {
            strategy.token(now, ticket);
        }
    }
}

impl Outcome {
    fn count(&mut self, requests: &[Request], arrivals: &[u64], served: &[Served], engines: &[Engine]) {
        let (mut firsts, mut waits) = (Vec::new(), Vec::new());
        for ((request, arrival), one) in requests.iter().zip(arrivals).zip(served) {
            let first = one.first.saturating_sub(*arrival);
            firsts.push(first);
            waits.push(first.saturating_sub(engine::alone(request, one.cached_blocks)));
            self.cached_tokens += BLOCK * one.cached_blocks;
            self.end_sum += one.end.saturating_sub(*arrival);
        }
        self.first_token_sum = firsts.iter().sum();
        self.first_token_p99 = p99(firsts);
        self.wait_p99 = p99(waits);
        let busiest = engines.iter().map(|engine| engine.busy).max().unwrap_or(0);
        let sum: u64 = engines.iter().map(|engine| engine.busy).sum();
        let ratio = u128::from(busiest) * 1_000_000 * engines.len() as u128;
        self.imbalance_ppm = ratio.checked_div(u128::from(sum)).unwrap_or(0) as u64;
    }
}

/// By nearest rank.
fn p99(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    let rank = (times.len() * 99).div_ceil(100);
    times.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// The engine where the first token would come soonest, by what each engine really has to do.
fn soonest(engines: &[Engine], now: u64, number: usize, requests: &[Request]) -> Option<usize> {
    let mut best = None;
    for (at, engine) in engines.iter().enumerate() {
        let before = best.map_or(u64::MAX, |(time, _)| time);
        if let Some(time) = engine.first_token(now, number, requests, before)
            && time < before
        {
            best = Some((time, at));
        }
    }
    best.map(|(_, at)| at)
}

/// The first number of splitmix64 from this seed.
fn splitmix64(seed: u64) -> u64 {
    let number = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
