//! Gateways, the usage service as the module's page asks of it, and the messages between them, one step at a time.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::*;
use crate::admission::bucket::Bucket;

/// What may happen next. Indexes are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Time passes, for all alike.
    Pause { ms: u64 },
    /// A request comes to a gateway.
    Admit { gateway: usize, tokens: u64 },
    /// As many requests as a gateway lets in come to it one after the other, each ending as it was reserved for, while it asks for more and
    /// is answered at once.
    Flood { gateway: usize, tokens: u64 },
    /// The oldest request of a gateway ends, having used some of what it reserved, or more.
    End { gateway: usize, used_percent: u64 },
    /// A gateway asks, if it has need to.
    Ask { gateway: usize },
    /// A question comes to the service, which answers.
    Answer { index: usize, lost: bool, twice: bool },
    /// An answer comes to its gateway.
    Hear { index: usize, lost: bool, twice: bool },
    /// A gateway dies with all its requests; another one starts in its place.
    Die { gateway: usize },
}

impl Step {
    pub(super) fn any() -> impl Strategy<Value = Self> {
        let gateway = 0_usize..8;
        let often = prop::bool::weighted(0.1);
        prop_oneof![
            6 => prop_oneof![3 => 0_u64..200, 1 => 0_u64..12_000].prop_map(|ms| Self::Pause { ms }),
            10 => (gateway.clone(), 1_u64..300).prop_map(|(gateway, tokens)| Self::Admit { gateway, tokens }),
            5 => (gateway.clone(), 1_u64..100).prop_map(|(gateway, tokens)| Self::Flood { gateway, tokens }),
            5 => (gateway.clone(), 0_u64..150).prop_map(|(gateway, used_percent)| Self::End { gateway, used_percent }),
            8 => gateway.clone().prop_map(|gateway| Self::Ask { gateway }),
            8 => (any::<usize>(), often, often).prop_map(|(index, lost, twice)| Self::Answer { index, lost, twice }),
            8 => (any::<usize>(), often, often).prop_map(|(index, lost, twice)| Self::Hear { index, lost, twice }),
            1 => gateway.prop_map(|gateway| Self::Die { gateway }),
        ]
    }
}

/// One start of a gateway.
struct Gateway {
    id: usize,
    /// Its clock is so much ahead.
    ahead_ms: u64,
    lease: Lease,
    /// Tokens reserved for each request in flight.
    flights: Vec<u64>,
    /// Whether its slots ended while requests were in flight, since they all had one.
    lapsed: bool,
}

impl Gateway {
    fn in_flight(&self) -> u32 {
        self.flights.len() as u32
    }
}

/// What the service knows of one start of a gateway.
#[derive(Default)]
struct Known {
    sequence: u64,
    returned: Block,
    granted: Block,
    /// Ends of grants, by the service's clock, and their slots.
    slots: Vec<(u64, u32)>,
}

struct Service {
    requests: Bucket,
    tokens: Bucket,
    concurrency: u32,
    /// A gateway's part of each limit: one of so many.
    part: u64,
    valid_ms: u64,
    known: BTreeMap<usize, Known>,
}

impl Service {
    fn slots_of(&self, gateway: usize, now_ms: u64) -> u32 {
        let live = |known: &Known| known.slots.iter().filter(|(end, _)| *end > now_ms).map(|(_, slots)| *slots).max();
        self.known.get(&gateway).and_then(live).unwrap_or(0)
    }

    fn answer(&mut self, gateway: usize, need: &Need, now_ms: u64) -> Option<Grant> {
        self.requests.refill(now_ms);
        self.tokens.refill(now_ms);
        let counted = self.slots_of(gateway, now_ms);
        let others: u32 = self.known.keys().filter(|id| **id != gateway).map(|id| self.slots_of(*id, now_ms)).sum();
        let known = self.known.entry(gateway).or_default();
        if need.sequence <= known.sequence {
            return None;
        }
        known.sequence = need.sequence;
        known.slots.iter_mut().for_each(|(_, slots)| *slots = need.slots.min(*slots));
        let returned = |now: u64, before: u64, granted: u64| now.min(granted).saturating_sub(before);
        self.requests.give(returned(need.returned.requests, known.returned.requests, known.granted.requests));
        self.tokens.give(returned(need.returned.tokens, known.returned.tokens, known.granted.tokens));
        known.returned = Block {
            requests: known.returned.requests.max(need.returned.requests),
            tokens: known.returned.tokens.max(need.returned.tokens),
        };
        let part = self.part;
        let share = |bucket: &Bucket, want: u64, least: u64, held: u64| {
            let most = (bucket.per_minute() / part).max(1).saturating_sub(held);
            want.min(most).max(least).min(bucket.available())
        };
        let block = Block {
            requests: share(&self.requests, need.want.requests, need.least.requests, need.held.requests),
            tokens: share(&self.tokens, need.want.tokens, need.least.tokens, need.held.tokens),
        };
        self.requests.take(block.requests);
        self.tokens.take(block.tokens);
        known.granted.requests += block.requests;
        known.granted.tokens += block.tokens;
        let slots = need.slots.min(self.concurrency - others).max(need.slots.min(counted));
        known.slots.retain(|(end, _)| *end > now_ms);
        known.slots.push((now_ms + self.valid_ms, slots));
        let wait = |bucket: &Bucket, least: u64, granted: u64| {
            if granted >= least { 0 } else { bucket.wait_ms(least - granted).unwrap_or(60_000).min(60_000) }
        };
        let retry_after_ms = u64::from(slots < need.least_slots)
            .max(wait(&self.requests, need.least.requests, block.requests))
            .max(wait(&self.tokens, need.least.tokens, block.tokens));
        Some(Grant { sequence: need.sequence, block, slots, valid_ms: self.valid_ms, retry_after_ms })
    }
}

/// What had happened at some time.
#[derive(Clone, Copy)]
struct Mark {
    at_ms: u64,
    /// Reserved, less what was given back.
    net: (i128, i128),
    /// Unspent, with gateways or on the way to them or from them.
    outstanding: (u64, u64),
}

pub(super) struct World {
    now_ms: u64,
    gateways: Vec<Gateway>,
    started: usize,
    service: Service,
    questions: Vec<(usize, Need)>,
    answers: Vec<(usize, Grant)>,
    net: (i128, i128),
    marks: Vec<Mark>,
}

impl World {
    pub(super) fn new(gateways: usize, limit: (u64, u64, u32), part: u64, valid_ms: u64) -> Self {
        let (requests, tokens, concurrency) = limit;
        let mut world = Self {
            // No clock begins at 0.
            now_ms: 1_000,
            gateways: Vec::new(),
            started: 0,
            service: Service {
                requests: Bucket::new(requests, 1_000),
                tokens: Bucket::new(tokens, 1_000),
                concurrency,
                part,
                valid_ms,
                known: BTreeMap::new(),
            },
            questions: Vec::new(),
            answers: Vec::new(),
            net: (0, 0),
            marks: Vec::new(),
        };
        world.gateways = (0..gateways).map(|_| world.start()).collect();
        world.mark();
        world
    }

    fn start(&mut self) -> Gateway {
        self.started += 1;
        let id = self.started;
        Gateway { id, ahead_ms: id as u64 * 7_777, lease: Lease::default(), flights: Vec::new(), lapsed: false }
    }

    /// Requests and tokens that were let in, in all, less those given back.
    pub(super) fn admitted(&self) -> (u64, u64) {
        (self.net.0.try_into().unwrap_or(0), self.net.1.try_into().unwrap_or(0))
    }

    /// What a gateway returned, in total, and the service does not know of but may come to.
    fn on_the_way_back(&self, id: usize) -> Block {
        let alive = self.gateways.iter().filter(|gateway| gateway.id == id).map(|gateway| gateway.lease.returned);
        let asked = self.questions.iter().filter(|(asker, _)| *asker == id).map(|(_, need)| need.returned);
        let known = self.service.known.get(&id).map(|known| known.returned).unwrap_or_default();
        let returned = alive.chain(asked).fold(known, |most, block| Block {
            requests: most.requests.max(block.requests),
            tokens: most.tokens.max(block.tokens),
        });
        Block { requests: returned.requests - known.requests, tokens: returned.tokens - known.tokens }
    }

    fn mark(&mut self) {
        let held = self.gateways.iter().map(|gateway| gateway.lease.held());
        let granted = self.answers.iter().filter(|(id, _)| self.gateways.iter().any(|gateway| gateway.id == *id));
        let returned = (1..=self.started).map(|id| self.on_the_way_back(id));
        let blocks: Vec<Block> = held.chain(granted.map(|(_, grant)| grant.block)).chain(returned).collect();
        let outstanding =
            (blocks.iter().map(|block| block.requests).sum(), blocks.iter().map(|block| block.tokens).sum());
        self.marks.push(Mark { at_ms: self.now_ms, net: self.net, outstanding });
    }

    pub(super) fn step(&mut self, step: Step) {
        let count = self.gateways.len();
        let now_ms = self.now_ms;
        match step {
            Step::Pause { ms } => {
                self.now_ms += ms;
                for gateway in &mut self.gateways {
                    gateway.lease.expire(self.now_ms + gateway.ahead_ms);
                    gateway.lapsed |= gateway.in_flight() > gateway.lease.slots();
                }
            }
            Step::Admit { gateway, tokens } => {
                let gateway = &mut self.gateways[gateway % count];
                let now_ms = now_ms + gateway.ahead_ms;
                gateway.lease.expire(now_ms);
                let needed = Block { requests: 1, tokens: tokens.min(self.service.tokens.per_minute()) };
                let missing = gateway.lease.missing(needed, now_ms);
                let slot = gateway.lease.missing_slot(gateway.in_flight(), now_ms, &mut None);
                if missing == (None, None) && slot.is_none() {
                    gateway.flights.push(needed.tokens);
                    gateway.lease.take(needed, gateway.in_flight());
                    self.net.0 += 1;
                    self.net.1 += i128::from(needed.tokens);
                }
            }
            Step::Flood { gateway, tokens } => {
                loop {
                    let before = self.net.0;
                    self.step(Step::Admit { gateway, tokens });
                    if self.net.0 > before {
                        self.step(Step::End { gateway, used_percent: 100 });
                        continue;
                    }
                    let (questions, answers) = (self.questions.len(), self.answers.len());
                    self.step(Step::Ask { gateway });
                    if self.questions.len() == questions {
                        break;
                    }
                    self.step(Step::Answer { index: questions, lost: false, twice: false });
                    self.step(Step::Hear { index: answers, lost: false, twice: false });
                }
                return;
            }
            Step::End { gateway, used_percent } => {
                let gateway = &mut self.gateways[gateway % count];
                if gateway.flights.is_empty() {
                    return;
                }
                let reserved = gateway.flights.remove(0);
                let used = reserved * used_percent / 100;
                gateway.lease.expire(now_ms + gateway.ahead_ms);
                gateway.lease.charge(used.saturating_sub(reserved));
                let refunded = used_percent == 0;
                let given = Block { requests: u64::from(refunded), tokens: reserved.saturating_sub(used) };
                gateway.lease.give(given);
                gateway.lapsed &= gateway.in_flight() > gateway.lease.slots();
                // What is used beyond the estimate is not admitted, but paid.
                self.net.0 -= i128::from(given.requests);
                self.net.1 -= i128::from(given.tokens);
            }
            Step::Ask { gateway } => {
                let gateway = &mut self.gateways[gateway % count];
                let in_flight = gateway.in_flight();
                if let Some(need) = gateway.lease.need(now_ms + gateway.ahead_ms, in_flight) {
                    self.questions.push((gateway.id, need));
                }
                gateway.lapsed |= in_flight > gateway.lease.slots();
            }
            Step::Answer { index, lost, twice } if !self.questions.is_empty() => {
                let index = index % self.questions.len();
                let (id, need) = self.questions[index];
                if !twice {
                    self.questions.remove(index);
                }
                if !lost {
                    self.answers.extend(self.service.answer(id, &need, now_ms).map(|grant| (id, grant)));
                }
            }
            Step::Hear { index, lost, twice } if !self.answers.is_empty() => {
                let index = index % self.answers.len();
                let (id, grant) = self.answers[index];
                if !twice {
                    self.answers.remove(index);
                }
                if let Some(gateway) = self.gateways.iter_mut().find(|gateway| gateway.id == id && !lost) {
                    gateway.lease.grant(now_ms + gateway.ahead_ms, &grant);
                    gateway.lapsed &= gateway.in_flight() > gateway.lease.slots();
                }
            }
            Step::Die { gateway } => {
                self.gateways[gateway % count] = self.start();
            }
            Step::Answer { .. } | Step::Hear { .. } => {}
        }
        self.mark();
    }

    pub(super) fn check(&self) -> Result<(), TestCaseError> {
        let limits = [self.service.requests.per_minute(), self.service.tokens.per_minute()];
        let last = self.marks.last().expect("the first");
        let net = |mark: &Mark| [mark.net.0, mark.net.1];
        let first = self.marks.first().expect("the first");
        for mark in &self.marks {
            let outstanding = [mark.outstanding.0, mark.outstanding.1];
            for which in 0..2 {
                let elapsed = i128::from(last.at_ms - mark.at_ms);
                let limit = i128::from(limits[which]);
                let admitted = (net(last)[which] - net(mark)[which]) * 60_000;
                let alone = limit * 60_000 + limit * elapsed;
                prop_assert!(admitted <= alone + i128::from(outstanding[which]) * 60_000);
                if std::ptr::eq(mark, first) {
                    prop_assert!(admitted <= alone, "from the start there is no overshoot");
                }
            }
        }
        // Slots in use by leases that live are within the limit, and only a gateway whose slots ended has more in flight.
        let used: u32 = self.gateways.iter().map(|gateway| gateway.lease.slots()).sum();
        prop_assert!(used <= self.service.concurrency, "{used}");
        for gateway in &self.gateways {
            prop_assert!(gateway.in_flight() <= gateway.lease.slots() || gateway.lapsed);
        }
        Ok(())
    }
}
