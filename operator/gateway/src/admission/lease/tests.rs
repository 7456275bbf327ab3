//! The life of a lease by hand, and the bounds of many gateways against a model of the service, over any loss, delay and death.

mod model;

use proptest::prelude::*;
use rstest::rstest;

use super::*;
use model::{Step, World};

fn block(requests: u64, tokens: u64) -> Block {
    Block { requests, tokens }
}

fn grant(sequence: u64, block: Block, slots: u32) -> Grant {
    Grant { sequence, block, slots, valid_ms: 10_000, retry_after_ms: 0 }
}

/// A lease that was refused a request at time 0 and has asked.
fn asking() -> (Lease, Need) {
    let mut lease = Lease::default();
    assert_eq!(lease.need(0, 0), None);
    assert_eq!(lease.missing(block(1, 50), 0), (Some(Wait::Answer), Some(Wait::Answer)));
    assert_eq!(lease.missing_slot(0, 0, &mut None), Some(Wait::Answer));
    let need = lease.need(0, 0).expect("a need");
    (lease, need)
}

#[test]
fn it_asks_for_what_was_refused() {
    let (mut lease, need) = asking();
    let (asked, none) = (block(1, 50), block(0, 0));
    let expected =
        Need { sequence: 1, held: none, returned: none, want: asked, least: asked, slots: 1, least_slots: 1 };
    assert_eq!(need, expected);
    assert_eq!(lease.need(ANSWER_MS - 1, 0), None);
}

/// A request that is woken in vain asks again: that makes it no more than one.
#[test]
fn who_waits_is_counted_once_in_each_question() {
    let mut lease = Lease::default();
    let (mut one, mut other) = (None, None);
    for _ in 0..5 {
        assert_eq!(lease.missing_slot(0, 0, &mut one), Some(Wait::Answer));
    }
    assert_eq!(lease.missing_slot(0, 0, &mut other), Some(Wait::Answer));
    assert_eq!(lease.need(0, 0).expect("a need").slots, 2);
    // The next question is about who waits still.
    for _ in 0..3 {
        assert_eq!(lease.missing_slot(0, ANSWER_MS, &mut one), Some(Wait::Answer));
    }
    assert_eq!(lease.need(ANSWER_MS, 0).expect("a need").slots, 1);
}

#[test]
fn it_admits_what_it_was_granted() {
    let (mut lease, _) = asking();
    assert!(lease.grant(5, &grant(1, block(2, 80), 1)));
    assert_eq!((lease.held(), lease.slots()), (block(2, 80), 1));
    assert_eq!(lease.missing(block(1, 50), 5), (None, None));
    lease.take(block(1, 50), 1);
    assert_eq!(lease.held(), block(1, 30));
    assert_eq!(lease.missing_slot(1, 5, &mut None), Some(Wait::Answer));
    assert_eq!(lease.missing(block(1, 31), 5), (None, Some(Wait::Answer)));
    lease.give(block(0, 20));
    assert_eq!(lease.held(), block(1, 50));
}

#[test]
fn slots_that_nobody_uses_are_given_back() {
    let (mut lease, _) = asking();
    assert!(lease.grant(5, &grant(1, block(20, 800), 4)));
    lease.take(block(1, 50), 1);
    // One is in flight, and for a while after it nothing is given back.
    assert_eq!(lease.need(400, 1), None);
    assert_eq!(lease.need(1_500, 0), None);
    assert_eq!(lease.need(2_400, 0), None);
    let need = lease.need(2_500, 0).expect("a need");
    assert_eq!((need.slots, need.least_slots, lease.slots()), (0, 0, 0));
    // There is nothing more to give.
    assert!(lease.grant(2_505, &grant(need.sequence, block(0, 0), 0)));
    assert_eq!(lease.need(4_000, 0), None);
    assert_eq!(lease.held(), block(19, 750));
}

/// Time counts from the question, not from the answer.
#[test]
fn what_is_left_at_the_end_is_returned() {
    let (mut lease, _) = asking();
    assert!(lease.grant(900, &grant(1, block(2, 80), 3)));
    lease.take(block(1, 50), 1);
    lease.expire(9_999);
    assert_eq!((lease.held(), lease.slots()), (block(1, 30), 3));
    lease.expire(10_000);
    assert_eq!((lease.held(), lease.slots()), (block(0, 0), 0));
    // The request ends after the lease: what it did not use is returned, too.
    lease.give(block(0, 20));
    assert!(!lease.is_settled());
    let need = lease.need(10_000, 0).expect("something to return");
    assert_eq!((need.sequence, need.returned), (10_001, block(1, 50)));
    assert!(lease.is_settled());
    assert_eq!(lease.need(20_000, 0), None);
}

#[rstest]
#[case::another_question(grant(2, block(1, 1), 1), 5, block(0, 0))]
#[case::an_old_question(grant(0, block(1, 1), 1), 5, block(0, 0))]
#[case::too_late(grant(1, block(1, 1), 1), 10_000, block(1, 1))]
fn grants_that_are_not_taken(#[case] grant: Grant, #[case] now_ms: u64, #[case] returned: Block) {
    let (mut lease, _) = asking();
    assert!(!lease.grant(now_ms, &grant));
    assert_eq!((lease.held(), lease.slots(), lease.returned), (block(0, 0), 0, returned));
}

#[test]
fn a_grant_counts_once() {
    let (mut lease, _) = asking();
    assert!(lease.grant(5, &grant(1, block(2, 80), 1)));
    assert!(!lease.grant(6, &grant(1, block(2, 80), 1)));
    assert_eq!(lease.held(), block(2, 80));
}

#[test]
fn it_asks_again_when_no_answer_comes() {
    let (mut lease, _) = asking();
    lease.missing(block(1, 50), ANSWER_MS);
    assert_eq!(lease.need(ANSWER_MS, 0).map(|need| need.sequence), Some(ANSWER_MS + 1));
    assert!(!lease.grant(ANSWER_MS + 1, &grant(1, block(2, 80), 1)));
}

#[test]
fn it_waits_for_as_long_as_the_service_says() {
    let (mut lease, _) = asking();
    assert!(lease.grant(5, &Grant { retry_after_ms: 700, ..grant(1, block(0, 0), 0) }));
    assert_eq!(lease.missing(block(1, 50), 105), (Some(Wait::Ms(600)), Some(Wait::Ms(600))));
    assert_eq!(lease.need(105, 0), None);
    assert_eq!(lease.missing(block(1, 50), 705), (Some(Wait::Answer), Some(Wait::Answer)));
    assert!(lease.need(705, 0).is_some());
}

/// What was too little for a large request is asked for again, for small ones: it comes bit by bit.
#[test]
fn one_large_request_does_not_starve_small_ones() {
    let (mut lease, _) = asking();
    assert!(lease.grant(5, &Grant { retry_after_ms: 43_000, ..grant(1, block(1, 0), 1) }));
    assert_eq!(lease.missing(block(1, 50), 1_004), (None, Some(Wait::Ms(42_001))));
    assert_eq!(lease.need(1_004, 0), None);
    let need = lease.need(1_005, 0).expect("a need");
    assert!(lease.grant(1_006, &grant(need.sequence, block(0, 67), 1)));
    assert_eq!(lease.missing(block(1, 50), 1_006), (None, None));
}

/// The service still knows the lease of this name that was forgotten here, and answers nothing that is not newer.
#[test]
fn a_lease_that_is_made_anew_is_not_taken_for_an_old_question() {
    let mut last = 0;
    let mut lease = Lease::default();
    for now_ms in (0..100_000).step_by(1_000) {
        lease.missing(block(1, 50), now_ms);
        last = lease.need(now_ms, 0).expect("a need").sequence;
    }
    let mut anew = Lease::default();
    anew.missing(block(1, 50), 100_000);
    assert!(anew.need(100_000, 0).expect("a need").sequence > last);
}

#[test]
fn a_debt_is_paid_from_the_next_block() {
    let (mut lease, _) = asking();
    assert!(lease.grant(5, &grant(1, block(2, 80), 1)));
    lease.charge(100);
    assert_eq!(lease.held(), block(2, 0));
    // The debt alone is reason to ask.
    let need = lease.need(5, 1).expect("a need");
    assert!(need.want.tokens >= 20, "{need:?}");
    assert!(lease.grant(6, &grant(need.sequence, block(0, 50), 1)));
    assert_eq!(lease.held().tokens, 30);
}

/// With demand, it asks before it has nothing left, and for as much as two seconds need.
#[test]
fn it_asks_ahead_of_demand() {
    let (mut lease, _) = asking();
    assert!(lease.grant(5, &grant(1, block(10, 1_000), 1)));
    for _ in 0..4 {
        lease.take(block(1, 100), 1);
    }
    assert_eq!(lease.need(1_000, 1), None, "6 are left, and 4 were used in a second");
    lease.take(block(1, 100), 1);
    lease.take(block(1, 100), 1);
    let need = lease.need(1_000, 1).expect("a need");
    assert_eq!((need.held, need.want, need.least), (block(4, 400), block(8, 800), block(0, 0)));
}

/// What asks for fewer slots uses no more from then on: the service may give the others away before its answer is here.
#[test]
fn slots_that_are_not_asked_for_are_not_used() {
    let (mut lease, _) = asking();
    assert!(lease.grant(5, &grant(1, block(9, 900), 8)));
    assert_eq!(lease.slots(), 8);
    // Near its end, with one in flight.
    let need = lease.need(9_000, 1).expect("a renewal");
    assert_eq!((need.slots, lease.slots()), (1, 1));
}

proptest! {
    /// The bounds of this module's page, at every step of any schedule: gateways that ask, admit, end requests, die and start anew; messages
    /// that are lost, late, out of order or twice; clocks that differ.
    #[test]
    fn gateways_stay_within_the_bound(
        gateways in 1_usize..5,
        limit in (1_u64..40, 1_u64..2_000, 1_u32..12),
        part in 1_u64..5,
        valid_ms in 3_000_u64..12_000,
        steps in prop::collection::vec(Step::any(), 1..160),
    ) {
        let mut world = World::new(gateways, limit, part, valid_ms);
        for step in steps {
            world.step(step);
            world.check()?;
        }
    }

    /// When messages come and nobody dies, demand gets what the limit has: all gateways together admit as much as one would, but for what is held.
    #[test]
    fn demand_is_served(gateways in 1_usize..4, requests in 10_u64..200, seed in any::<u64>()) {
        let mut world = World::new(gateways, (requests, 1_000_000, 1_000), 4, 10_000);
        let minutes = 4;
        for tick in 0..minutes * 60 * 10 {
            for offset in 0..gateways {
                let gateway = (seed.wrapping_add(tick) as usize).wrapping_add(offset) % gateways;
                world.step(Step::Admit { gateway, tokens: 1 });
                world.step(Step::Ask { gateway });
                world.step(Step::Answer { index: 0, lost: false, twice: false });
                world.step(Step::Hear { index: 0, lost: false, twice: false });
                world.step(Step::End { gateway, used_percent: 100 });
            }
            world.step(Step::Pause { ms: 100 });
        }
        world.check()?;
        let (admitted, _) = world.admitted();
        let most = requests + requests * minutes;
        prop_assert!(admitted <= most);
        prop_assert!(admitted >= most - most / 5, "{admitted} of {most} with {gateways}");
    }
}
