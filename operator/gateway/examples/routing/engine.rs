//! An engine that serves a model: chunked prefill, first come first served, a cache of prompt blocks. Times are nanoseconds, all
//! divisions round down. The constants are rounded arithmetic for a GPU with 80 GB and a model of 8 billion parameters.

use std::collections::{HashSet, VecDeque};

use spillway_gateway::routing::BlockIndex;

use super::trace::Request;

/// Tokens of a block.
pub(crate) const BLOCK: u64 = 512;
/// Blocks in GPU memory.
const ROOM: u64 = 800;
/// Tokens of a step.
const BUDGET: u64 = 2048;
/// What every step takes.
const STEP: u64 = 7_000_000;
/// What a token of a prompt takes, without attention.
const TOKEN: u64 = 40_000;
/// What a token takes that is decoded, for each before it.
const DECODE: u64 = 50;
/// What it takes to bring a block in from the cache.
const LOAD: u64 = 2_500_000;

/// What happened to a request at the end of a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Event {
    First,
    Token,
    End,
}

/// What prefilling `new` tokens after `before` takes.
fn prefill(new: u64, before: u64) -> u64 {
    TOKEN * new + new * before + new * (new + 1) / 2
}

/// The time to the first token on an engine that has nothing else to do.
pub(crate) fn alone(request: &Request, cached_blocks: u64) -> u64 {
    let new = request.input - BLOCK * cached_blocks;
    prefill(new, BLOCK * cached_blocks) + LOAD * cached_blocks + STEP * new.div_ceil(BUDGET)
}

/// The blocks that a prompt fills.
fn filled(request: &Request) -> &[u64] {
    let filled = (request.input / BLOCK) as usize;
    request.blocks.get(..filled).unwrap_or(&request.blocks)
}

/// How many blocks may come from a cache: the last token is always computed.
fn reusable(request: &Request) -> u64 {
    (request.input - 1) / BLOCK
}

/// Queue and running requests.
#[derive(Clone, Default)]
struct Batch {
    queue: VecDeque<usize>,
    running: Vec<Running>,
    used: u64,
}

#[derive(Clone)]
struct Running {
    request: usize,
    /// Tokens with KV.
    context: u64,
    /// Tokens of the prompt that are missing.
    left: u64,
    /// What the step that is under way computes of it.
    chunk: u64,
    made: u64,
    output: u64,
    blocks: u64,
}

impl Batch {
    /// Begins a step, and gives how long it takes. `cached` says how many blocks a request finds when it is admitted.
    fn begin(&mut self, requests: &[Request], mut cached: impl FnMut(usize, &Request) -> u64) -> u64 {
        let (mut budget, mut takes) = (BUDGET, STEP);
        for running in self.running.iter().filter(|running| running.left == 0) {
            budget = budget.saturating_sub(1);
            takes += DECODE * running.context;
        }
        for running in self.running.iter_mut().filter(|running| running.left > 0) {
            takes += running.start_chunk(&mut budget);
        }
        while budget > 0
            && let Some(&number) = self.queue.front()
            && let Some(request) = requests.get(number)
        {
            let blocks = (request.input + request.output).div_ceil(BLOCK);
            if self.used + blocks > ROOM && !self.running.is_empty() {
                break;
            }
            self.queue.pop_front();
            let found = cached(number, request);
            let context = BLOCK * found;
            let left = request.input - context;
            let mut running =
                Running { request: number, context, left, chunk: 0, made: 0, output: request.output, blocks };
            takes += LOAD * found + running.start_chunk(&mut budget);
            self.used += blocks;
            self.running.push(running);
        }
        takes
    }

    /// Ends the step.
    fn finish(&mut self, mut tell: impl FnMut(usize, Event)) {
        let used = &mut self.used;
        self.running.retain_mut(|running| {
            if running.left > 0 {
                running.context += running.chunk;
                running.left -= running.chunk;
                if running.left > 0 {
                    return true;
                }
                tell(running.request, Event::First);
            } else {
                running.context += 1;
                tell(running.request, Event::Token);
            }
            running.made += 1;
            let goes_on = running.made < running.output;
            if !goes_on {
                *used -= running.blocks;
                tell(running.request, Event::End);
            }
            goes_on
        });
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.running.is_empty()
    }
}

impl Running {
    fn start_chunk(&mut self, budget: &mut u64) -> u64 {
        self.chunk = self.left.min(*budget);
        *budget -= self.chunk;
        prefill(self.chunk, self.context)
    }
}

/// An engine.
pub(crate) struct Engine {
    batch: Batch,
    cache: BlockIndex,
    /// When the step that is under way ends.
    ends: Option<u64>,
    /// Time in steps, without what every step takes.
    pub(crate) busy: u64,
}

impl Engine {
    pub(crate) fn new(blocks: u32) -> Self {
        Self { batch: Batch::default(), cache: BlockIndex::new(blocks, 0), ends: None, busy: 0 }
    }

    pub(crate) fn ends(&self) -> Option<u64> {
        self.ends
    }

    /// A request arrives. `admitted` is told how many blocks a request has found in the cache.
    pub(crate) fn push(&mut self, now: u64, number: usize, requests: &[Request], admitted: impl FnMut(usize, u64)) {
        self.batch.queue.push_back(number);
        if self.ends.is_none() {
            self.start(now, requests, admitted);
        }
    }

    /// The step ends, and the next one begins.
    pub(crate) fn step(
        &mut self,
        now: u64,
        requests: &[Request],
        admitted: impl FnMut(usize, u64),
        tell: impl FnMut(usize, Event),
    ) {
        self.batch.finish(tell);
        self.start(now, requests, admitted);
    }

    fn start(&mut self, now: u64, requests: &[Request], mut admitted: impl FnMut(usize, u64)) {
        if self.batch.is_idle() {
            self.ends = None;
            return;
        }
        let cache = &mut self.cache;
        let takes = self.batch.begin(requests, |number, request| {
            let blocks = filled(request);
            let found = (cache.leading(blocks) as u64).min(reusable(request));
            cache.touch(blocks);
            admitted(number, found);
            found
        });
        self.busy += takes - STEP;
        self.ends = Some(now + takes);
    }

    /// When the request would get its first token if it came here now and nothing came after it; none, if later than `before`. Nothing is
    /// evicted meanwhile, and what is queued before it counts as cached.
    pub(crate) fn first_token(&self, now: u64, number: usize, requests: &[Request], before: u64) -> Option<u64> {
        let mut batch = self.batch.clone();
        let mut time = now;
        if let Some(ends) = self.ends {
            batch.finish(|_, _| {});
            time = ends;
        }
        batch.queue.push_back(number);
        let mut queued: HashSet<u64> = HashSet::new();
        while time < before {
            time += batch.begin(requests, |_, request| {
                let has = |block: &&u64| self.cache.contains(**block) || queued.contains(*block);
                let found = filled(request).iter().take_while(has).count() as u64;
                queued.extend(filled(request));
                found.min(reusable(request))
            });
            let mut first = false;
            batch.finish(|one, event| first |= one == number && event == Event::First);
            if first {
                return Some(time);
            }
        }
        None
    }
}
