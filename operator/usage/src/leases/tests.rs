//! The rules one by one, and their bounds over any loss, delay, repetition and death, of gateways and of the service.

use proptest::prelude::*;
use rstest::rstest;

use super::*;

const CONFIG: Config = Config { parts: 4, valid_ms: 10_000 };
const NONE: Block = Block { requests: 0, tokens: 0 };

fn need(sequence: u64, want: Block, slots: u32) -> Need {
    Need { sequence, held: NONE, returned: NONE, want, least: NONE, slots, least_slots: 0 }
}

fn block(requests: u64, tokens: u64) -> Block {
    Block { requests, tokens }
}

fn limits(requests: u32, tokens: u64, concurrency: u32) -> Limits {
    Limits { requests_per_minute: Some(requests), tokens_per_minute: Some(tokens), concurrency: Some(concurrency) }
}

fn question(limits: Limits, need: Need) -> Question {
    Question { scope: Scope { tenant: "acme".into(), key: None }, limits, need }
}

/// A service that has been there for a minute, so that its buckets are full, at 60,000.
fn settled() -> Leases {
    Leases::new(CONFIG, 0)
}

fn ask(leases: &mut Leases, gateway: &str, limits: Limits, need: Need, now_ms: u64) -> Option<Grant> {
    leases.answer(&gateway.into(), &question(limits, need), now_ms)
}

#[test]
fn a_gateway_gets_its_part() {
    let mut leases = settled();
    let grant = ask(&mut leases, "a", limits(40, 4_000, 8), need(1, block(100, 700), 3), 60_000);
    let expected = Grant { sequence: 1, block: block(10, 700), slots: 3, valid_ms: 10_000, retry_after_ms: 0 };
    assert_eq!(grant, Some(expected));
    // What it holds is within its part.
    let held = Need { held: block(8, 900), ..need(2, block(100, 700), 3) };
    assert_eq!(ask(&mut leases, "a", limits(40, 4_000, 8), held, 60_000).unwrap().block, block(2, 100));
}

#[test]
fn what_one_request_needs_may_be_more_than_a_part() {
    let mut leases = settled();
    let need = Need { least: block(1, 3_000), ..need(1, block(1, 3_000), 1) };
    assert_eq!(ask(&mut leases, "a", limits(40, 4_000, 8), need, 60_000).unwrap().block, block(1, 3_000));
    // Another one waits until there is enough: 2,000 more at 4,000 a minute.
    let grant = ask(&mut leases, "b", limits(40, 4_000, 8), need, 60_000).unwrap();
    assert_eq!((grant.block, grant.retry_after_ms), (block(1, 1_000), 30_000));
}

#[rstest]
#[case::the_same(1)]
#[case::an_older_one(0)]
fn stale_questions_have_no_answer(#[case] sequence: u64) {
    let mut leases = settled();
    assert!(ask(&mut leases, "a", limits(40, 4_000, 8), need(1, block(1, 1), 1), 60_000).is_some());
    assert_eq!(ask(&mut leases, "a", limits(40, 4_000, 8), need(sequence, block(1, 1), 1), 60_000), None);
}

#[test]
fn slots_are_not_taken_from_who_asks_in_time() {
    let mut leases = settled();
    let slots = |leases: &mut Leases, gateway: &str, sequence, slots, limit, now_ms| {
        ask(leases, gateway, limits(40, 4_000, limit), need(sequence, NONE, slots), now_ms).unwrap().slots
    };
    assert_eq!(slots(&mut leases, "a", 1, 6, 8, 60_000), 6);
    assert_eq!(slots(&mut leases, "b", 1, 6, 8, 60_000), 2);
    // The limit is lowered: who holds more keeps it as long as it asks for it, and gives it away by asking for less.
    assert_eq!(slots(&mut leases, "a", 2, 6, 4, 61_000), 6);
    assert_eq!(slots(&mut leases, "b", 2, 6, 4, 61_000), 2);
    assert_eq!(slots(&mut leases, "a", 3, 1, 4, 62_000), 1);
    // What it has given away is another's at once; what it is granted counts until it ends.
    assert_eq!(slots(&mut leases, "c", 1, 1, 8, 62_000), 1);
    assert_eq!(slots(&mut leases, "c", 2, 9, 8, 62_500), 5);
    assert_eq!(slots(&mut leases, "c", 3, 9, 8, 71_000), 7);
}

#[test]
fn a_missing_slot_is_tried_again() {
    let mut leases = settled();
    ask(&mut leases, "a", limits(40, 4_000, 1), need(1, NONE, 1), 60_000);
    let waits = Need { least_slots: 1, ..need(1, NONE, 1) };
    let grant = ask(&mut leases, "b", limits(40, 4_000, 1), waits, 60_000).unwrap();
    assert_eq!((grant.slots, grant.retry_after_ms), (0, SLOT_RETRY_MS));
}

#[test]
fn what_is_returned_is_granted_again_once() {
    let mut leases = settled();
    let limits = Limits { requests_per_minute: Some(40), ..Limits::default() };
    let least = |sequence, requests, returned| Need {
        least: block(requests, 0),
        returned: block(returned, 0),
        ..need(sequence, block(requests, 0), 0)
    };
    assert_eq!(ask(&mut leases, "a", limits, least(1, 40, 0), 60_000).unwrap().block.requests, 40);
    assert_eq!(ask(&mut leases, "a", limits, least(2, 0, 7), 60_000).unwrap().block.requests, 0);
    assert_eq!(ask(&mut leases, "a", limits, least(3, 40, 7), 60_000).unwrap().block.requests, 7);
    // Nobody can return more than it was granted.
    assert_eq!(ask(&mut leases, "a", limits, least(4, 0, 900), 60_000).unwrap().block.requests, 0);
    assert_eq!(ask(&mut leases, "a", limits, least(5, 100, 900), 60_000).unwrap().block.requests, 40);
}

#[test]
fn a_service_that_starts_grants_what_comes_from_then_on() {
    let mut leases = Leases::new(CONFIG, 0);
    let rates = Limits { concurrency: None, ..limits(60, 6_000, 0) };
    assert_eq!(ask(&mut leases, "a", rates, need(1, block(9, 900), 0), 0).unwrap().block, NONE);
    assert_eq!(ask(&mut leases, "a", rates, need(2, block(9, 900), 0), 3_000).unwrap().block, block(3, 300));
    // A scope that comes later has what came since the start.
    let mut later = question(rates, need(1, block(9, 900), 0));
    later.scope.key = Some("k".into());
    assert_eq!(leases.answer(&"a".into(), &later, 5_000).unwrap().block, block(5, 500));
}

#[test]
fn slots_wait_until_those_of_before_are_over() {
    let mut leases = Leases::new(CONFIG, 0);
    assert_eq!(ask(&mut leases, "a", limits(60, 6_000, 2), need(1, NONE, 1), 9_999), None);
    assert_eq!(ask(&mut leases, "a", limits(60, 6_000, 2), need(1, NONE, 1), 10_000).unwrap().slots, 1);
}

#[test]
fn what_has_no_limit_is_not_leased() {
    let mut leases = settled();
    let grant = ask(&mut leases, "a", Limits::default(), need(1, block(9, 9), 5), 60_000).unwrap();
    assert_eq!((grant.block, grant.slots, grant.retry_after_ms), (NONE, 5, 0));
}

#[test]
fn lifting_a_limit_for_a_moment_fills_nothing() {
    let mut leases = settled();
    let rates = Limits { concurrency: None, ..limits(40, 4_000, 0) };
    let all = Need { least: block(40, 4_000), ..need(1, block(40, 4_000), 0) };
    assert_eq!(ask(&mut leases, "a", rates, all, 60_000).unwrap().block, block(40, 4_000));
    ask(&mut leases, "a", Limits::default(), Need { sequence: 2, ..all }, 60_000);
    assert_eq!(ask(&mut leases, "a", rates, Need { sequence: 3, ..all }, 60_000).unwrap().block, NONE);
}

#[test]
fn who_is_gone_is_forgotten_when_it_costs_nothing() {
    let mut leases = settled();
    ask(&mut leases, "a", limits(40, 4_000, 8), need(1, block(9, 9), 5), 60_000);
    leases.forget(60_000 + FORGET_MS - 1);
    assert_eq!(leases.len(), 1);
    leases.forget(60_000 + FORGET_MS);
    assert!(leases.is_empty());
}

/// What may happen next. Indexes are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
enum Step {
    Pause { ms: u64 },
    Ask { gateway: usize, want: (u64, u64), least: (u64, u64), returned_percent: u64, slots: u32 },
    Answer { index: usize, lost: bool, twice: bool },
    Hear { index: usize, lost: bool, twice: bool },
    Use { gateway: usize, percent: u64 },
    Die { gateway: usize },
    Restart,
    Forget,
}

fn any_step() -> impl Strategy<Value = Step> {
    let gateway = 0_usize..8;
    let often = prop::bool::weighted(0.1);
    let amounts = (0_u64..60, 0_u64..3_000);
    prop_oneof![
        6 => prop_oneof![3 => 0_u64..500, 1 => 0_u64..12_000].prop_map(|ms| Step::Pause { ms }),
        8 => (gateway.clone(), amounts.clone(), amounts, 0_u64..100, 0_u32..14).prop_map(
            |(gateway, want, least, returned_percent, slots)| Step::Ask { gateway, want, least, returned_percent, slots }
        ),
        8 => (any::<usize>(), often, often).prop_map(|(index, lost, twice)| Step::Answer { index, lost, twice }),
        8 => (any::<usize>(), often, often).prop_map(|(index, lost, twice)| Step::Hear { index, lost, twice }),
        3 => (gateway.clone(), 0_u64..100).prop_map(|(gateway, percent)| Step::Use { gateway, percent }),
        1 => gateway.prop_map(|gateway| Step::Die { gateway }),
        1 => Just(Step::Restart),
        1 => Just(Step::Forget),
    ]
}

/// A gateway that keeps the rules of its side: it uses what it holds, returns what it says, and no slots above those it asked for.
#[derive(Default)]
struct Gateway {
    id: usize,
    sequence: u64,
    asked_ms: u64,
    held: Block,
    returned: Block,
    slots: u32,
    until_ms: u64,
}

struct World {
    now_ms: u64,
    config: Config,
    limits: Limits,
    leases: Leases,
    gateways: Vec<Gateway>,
    started: usize,
    questions: Vec<(usize, Need)>,
    answers: Vec<(usize, Grant)>,
    /// When, and what was granted until then, less what gateways returned.
    net: Vec<(u64, [i128; 2])>,
}

impl World {
    fn new(gateways: usize, config: Config, limits: Limits) -> Self {
        let mut world = Self {
            now_ms: 1_000,
            config,
            limits,
            leases: Leases::new(config, 1_000),
            gateways: Vec::new(),
            started: 0,
            questions: Vec::new(),
            answers: Vec::new(),
            net: vec![(1_000, [0, 0])],
        };
        world.gateways = (0..gateways).map(|_| world.start()).collect();
        world
    }

    fn start(&mut self) -> Gateway {
        self.started += 1;
        Gateway { id: self.started, ..Gateway::default() }
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        let (count, now_ms) = (self.gateways.len(), self.now_ms);
        let mut net = self.net.last().expect("the first").1;
        match step {
            Step::Pause { ms } => self.now_ms += ms,
            Step::Ask { gateway, want, least, returned_percent, slots } => {
                let gateway = &mut self.gateways[gateway % count];
                let back =
                    block(gateway.held.requests * returned_percent / 100, gateway.held.tokens * returned_percent / 100);
                gateway.held = block(gateway.held.requests - back.requests, gateway.held.tokens - back.tokens);
                gateway.returned =
                    block(gateway.returned.requests + back.requests, gateway.returned.tokens + back.tokens);
                net[0] -= i128::from(back.requests);
                net[1] -= i128::from(back.tokens);
                gateway.sequence += 1;
                gateway.asked_ms = now_ms;
                gateway.slots = gateway.slots.min(slots);
                let need = Need {
                    sequence: gateway.sequence,
                    held: gateway.held,
                    returned: gateway.returned,
                    want: block(want.0, want.1),
                    least: block(least.0, least.1),
                    slots,
                    least_slots: slots.min(1),
                };
                self.questions.push((gateway.id, need));
            }
            Step::Answer { index, lost, twice } if !self.questions.is_empty() => {
                let index = index % self.questions.len();
                let (id, need) = self.questions[index];
                if !twice {
                    self.questions.remove(index);
                }
                if lost {
                    return Ok(());
                }
                let name = format!("gateway-{id}");
                if let Some(grant) = self.leases.answer(&name.as_str().into(), &question(self.limits, need), now_ms) {
                    prop_assert_eq!(grant.sequence, need.sequence);
                    prop_assert!(grant.slots <= need.slots);
                    // No more than a part, unless one request needs it.
                    let most = |limit: u64, held: u64| (limit / self.config.parts).max(1).saturating_sub(held);
                    let requests = u64::from(self.limits.requests_per_minute.unwrap());
                    prop_assert!(grant.block.requests <= most(requests, need.held.requests).max(need.least.requests));
                    let tokens = self.limits.tokens_per_minute.unwrap();
                    prop_assert!(grant.block.tokens <= most(tokens, need.held.tokens).max(need.least.tokens));
                    net[0] += i128::from(grant.block.requests);
                    net[1] += i128::from(grant.block.tokens);
                    self.answers.push((id, grant));
                }
            }
            Step::Hear { index, lost, twice } if !self.answers.is_empty() => {
                let index = index % self.answers.len();
                let (id, grant) = self.answers[index];
                if !twice {
                    self.answers.remove(index);
                }
                let hears = |gateway: &&mut Gateway| gateway.id == id && !lost && gateway.sequence == grant.sequence;
                if let Some(gateway) = self.gateways.iter_mut().find(hears) {
                    let until_ms = gateway.asked_ms + grant.valid_ms;
                    // So that it cannot come again.
                    gateway.sequence += 1;
                    if now_ms < until_ms {
                        gateway.held.requests += grant.block.requests;
                        gateway.held.tokens += grant.block.tokens;
                        (gateway.slots, gateway.until_ms) = (grant.slots, until_ms);
                    }
                }
            }
            Step::Use { gateway, percent } => {
                let held = &mut self.gateways[gateway % count].held;
                held.requests -= held.requests * percent / 100;
                held.tokens -= held.tokens * percent / 100;
            }
            Step::Die { gateway } => self.gateways[gateway % count] = self.start(),
            Step::Restart => self.leases = Leases::new(self.config, now_ms),
            Step::Forget => self.leases.forget(now_ms),
            Step::Answer { .. } | Step::Hear { .. } => {}
        }
        self.net.push((self.now_ms, net));
        self.check()
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let (last_ms, last) = self.net.last().expect("the first");
        let limits =
            [i128::from(self.limits.requests_per_minute.unwrap()), i128::from(self.limits.tokens_per_minute.unwrap())];
        for (at_ms, net) in &self.net {
            for which in 0..2 {
                let granted = (last[which] - net[which]) * 60_000;
                prop_assert!(granted <= limits[which] * (60_000 + i128::from(last_ms - at_ms)));
            }
        }
        let live = self.gateways.iter().filter(|gateway| self.now_ms < gateway.until_ms);
        let slots: u32 = live.map(|gateway| gateway.slots).sum();
        prop_assert!(slots <= self.limits.concurrency.unwrap(), "{slots} slots");
        Ok(())
    }
}

proptest! {
    /// Over any stretch no more is granted than the bucket has, less what came back, and slots that may be used are never more than the limit; also
    /// when the service forgets all it knows.
    #[test]
    fn grants_stay_within_the_limits(
        gateways in 1_usize..5,
        limit in (1_u32..60, 1_u64..3_000, 1_u32..12),
        parts in 1_u64..5,
        valid_ms in 3_000_u64..12_000,
        steps in prop::collection::vec(any_step(), 1..200),
    ) {
        let mut world = World::new(gateways, Config { parts, valid_ms }, limits(limit.0, limit.1, limit.2));
        for step in steps {
            world.step(step)?;
        }
    }
}
