use rstest::rstest;

use super::*;

const CLOSING: Hold = Hold::Closed { no_execute: false };
const CLOSED: Hold = Hold::Closed { no_execute: true };

fn held() -> Wanted {
    Wanted::Held { holder: "ns-1".into(), booking: "b-1".into() }
}

fn holder(holder: &str, booking: &str) -> Hold {
    Hold::Holder { holder: holder.into(), booking: Some(booking.into()) }
}

fn input(hold: Hold, wanted: Wanted) -> NodeInput {
    NodeInput {
        hold,
        wanted,
        closed_for_ms: 60_000,
        pods: ForeignPods::default(),
        ready: true,
        cordoned: false,
        device_count_ok: true,
        check: Check::Clean,
    }
}

/// One word for a step, with the code of its reason.
fn word(step: &NodeStep) -> String {
    match step {
        NodeStep::Wait(reason, ms) => format!("Wait {} {ms}", reason.code),
        NodeStep::GiveUp(reason) => format!("GiveUp {}", reason.code),
        NodeStep::Broken(reason, _) => format!("Broken {}", reason.code),
        step => format!("{step:?}"),
    }
}

#[rstest]
#[case(Hold::None, "WriteClosedNoSchedule", "WriteClosedNoSchedule")]
#[case(Hold::Other, "WriteClosedBoth", "WriteClosedBoth")]
#[case(holder("ns-2", "b-2"), "WriteClosedBoth", "WriteClosedBoth")]
#[case(holder("ns-1", "b-0"), "WriteClosedBoth", "WriteClosedBoth")]
#[case(Hold::Holder { holder: "ns-1".into(), booking: None }, "WriteClosedBoth", "WriteClosedBoth")]
#[case(holder("ns-1", "b-1"), "WriteClosedBoth", "Nothing")]
#[case(Hold::Unsold, "Nothing", "WriteClosedNoSchedule")]
#[case(CLOSING, "WriteUnsold", "WriteClosedBoth")]
#[case(CLOSED, "WriteUnsold", "WriteHolder")]
fn table(#[case] hold: Hold, #[case] open: &str, #[case] wanted_held: &str) {
    assert_eq!(word(&node_step(&input(hold.clone(), Wanted::Open))), open);
    assert_eq!(word(&node_step(&input(hold, held()))), wanted_held);
}

#[rstest]
#[case::settles(NodeInput { closed_for_ms: 400, ..input(CLOSING, held()) }, "Wait Settling 600")]
#[case::opening_does_not_settle(NodeInput { closed_for_ms: 0, ..input(CLOSING, Wanted::Open) }, "WriteUnsold")]
#[case::gives_up(NodeInput { pods: pods("o"), closed_for_ms: 0, ..input(CLOSING, held()) }, "GiveUp OwnerPods")]
#[case::stays_the_owners(NodeInput { pods: pods("o"), ..input(CLOSING, Wanted::Open) }, "WriteUnsold")]
#[case::but_no_tenants(NodeInput { pods: pods("or"), ..input(CLOSING, Wanted::Open) }, "WriteClosedBoth")]
#[case::nor_its_leaving_pods(NodeInput { pods: pods("l"), ..input(CLOSING, Wanted::Open) }, "WriteClosedBoth")]
#[case::nor_its_containers(NodeInput { check: dirty(0), ..input(CLOSING, Wanted::Open) }, "WriteClosedBoth")]
#[case::opens_when_asked(NodeInput { check: Check::NotAsked, ..input(CLOSING, Wanted::Open) }, "AskCheck")]
#[case::opens_when_answered(NodeInput { check: Check::Waiting, ..input(CLOSING, Wanted::Open) }, "Wait NodeCheck 1000")]
#[case::opens_when_ready(NodeInput { ready: false, ..input(CLOSING, Wanted::Open) }, "Wait NotReady 1000")]
#[case::opens_when_uncordoned(NodeInput { cordoned: true, ..input(CLOSING, Wanted::Open) }, "Broken Cordoned")]
#[case::drains_first(NodeInput { pods: pods("r"), ..input(CLOSING, held()) }, "Drain")]
#[case::told_to_go(NodeInput { pods: pods("l"), ..input(CLOSING, held()) }, "WriteClosedBoth")]
#[case::drains_late_pods(NodeInput { pods: pods("rl"), ..input(CLOSED, held()) }, "Drain")]
#[case::drains_late_owner_pods(NodeInput { pods: pods("o"), ..input(CLOSED, held()) }, "Drain")]
#[case::waits_for_pods(NodeInput { pods: pods("l"), ..input(CLOSED, held()) }, "Wait PodsLeaving 1000")]
#[case::pods_stuck(NodeInput { pods: pods("l"), closed_for_ms: QUARANTINE_MS, ..input(CLOSED, held()) }, "Broken PodsStuck")]
#[case::not_ready(NodeInput { ready: false, ..input(CLOSED, held()) }, "Wait NotReady 1000")]
#[case::cordoned(NodeInput { cordoned: true, ..input(CLOSED, held()) }, "Broken Cordoned")]
#[case::devices(NodeInput { device_count_ok: false, ..input(CLOSED, Wanted::Open) }, "Broken DeviceCount")]
#[case::asks(NodeInput { check: Check::NotAsked, ..input(CLOSED, held()) }, "AskCheck")]
#[case::waits_for_answer(NodeInput { check: Check::Waiting, ..input(CLOSED, held()) }, "Wait NodeCheck 1000")]
#[case::no_answer(NodeInput { check: Check::Waiting, closed_for_ms: QUARANTINE_MS, ..input(CLOSED, held()) }, "Broken NoAnswer")]
#[case::dirty(NodeInput { check: dirty(500), ..input(CLOSED, held()) }, "Wait ContainersLeft 1500")]
#[case::asks_again(NodeInput { check: dirty(RECHECK_MS), ..input(CLOSED, held()) }, "AskCheck")]
#[case::quarantined(NodeInput { check: dirty(500), closed_for_ms: QUARANTINE_MS, ..input(CLOSED, held()) }, "Broken ContainersLeft")]
#[case::without_agent(NodeInput { check: Check::NotNeeded, ..input(CLOSED, held()) }, "WriteHolder")]
#[case::a_cordon_does_not_end_a_hold(NodeInput { cordoned: true, ready: false, ..input(holder("ns-1", "b-1"), held()) }, "Nothing")]
fn steps(#[case] input: NodeInput, #[case] expected: &str) {
    assert_eq!(word(&node_step(&input)), expected);
}

fn pods(which: &str) -> ForeignPods {
    ForeignPods { owner: which.contains('o'), running: which.contains('r'), leaving: which.contains('l') }
}

fn dirty(age_ms: i64) -> Check {
    Check::Dirty { found: vec!["acme/train".into()], age_ms }
}
