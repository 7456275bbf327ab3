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
        devices: 8,
        releasing: false,
        check: Check::Clean,
    }
}

fn parts(text: &str) -> Vec<Part> {
    let one = |text: &str| {
        let (booking, devices) = text.split_once('=').unwrap();
        Part { booking: booking.into(), devices: devices.parse().unwrap() }
    };
    text.split_whitespace().map(one).collect()
}

fn shared(set_up: &str) -> Hold {
    Hold::Shared { set_up: parts(set_up) }
}

fn in_parts(text: &str) -> Wanted {
    Wanted::Shared { parts: parts(text) }
}

/// One word for a step, with the code of its reason.
fn word(step: &NodeStep) -> String {
    match step {
        NodeStep::Wait(reason, ms) => format!("Wait {} {ms}", reason.code),
        NodeStep::GiveUp(reason) => format!("GiveUp {}", reason.code),
        NodeStep::Broken(reason, _) => format!("Broken {}", reason.code),
        NodeStep::WriteShared(parts) => {
            let parts: Vec<String> = parts.iter().map(|part| format!("{}={}", part.booking, part.devices)).collect();
            format!("WriteShared {}", parts.join(" "))
        }
        step => format!("{step:?}"),
    }
}

#[rstest]
#[case(Hold::None, "WriteClosedNoSchedule")]
#[case(Hold::Other, "WriteClosedBoth")]
#[case(holder("ns-2", "b-2"), "WriteClosedBoth")]
#[case(Hold::Unsold, "WriteClosedNoSchedule")]
#[case(CLOSING, "WriteClosedBoth")]
#[case(CLOSED, "WriteShared b-1=3 b-2=5")]
#[case(shared("b-1=3 b-2=5"), "Nothing")]
fn table_of_parts(#[case] hold: Hold, #[case] expected: &str) {
    assert_eq!(word(&node_step(&input(hold, in_parts("b-1=3 b-2=5")))), expected);
}

#[rstest]
#[case(Wanted::Open)]
#[case(held())]
fn a_shared_node_is_closed_for_others(#[case] wanted: Wanted) {
    assert_eq!(node_step(&input(shared("b-1=3"), wanted)), NodeStep::WriteClosedBoth);
}

#[rstest]
#[case::comes_by_labels_alone(shared("b-1=3"), "b-1=3 b-2=5", |_: &mut NodeInput| (), "WriteShared b-1=3 b-2=5")]
#[case::comes_beside_running_pods_of_one_that_ended(shared("b-0=2 b-1=3"), "b-1=3 b-2=3", |i: &mut NodeInput| i.pods.running = true, "WriteShared b-0=2 b-1=3 b-2=3")]
#[case::waits_for_room(shared("b-0=2 b-1=3"), "b-1=3 b-2=5", |i: &mut NodeInput| i.pods.running = true, "Drain")]
#[case::waits_for_pods_to_go(shared("b-0=2 b-1=3"), "b-1=3 b-2=5", |i: &mut NodeInput| i.pods.leaving = true, "Wait PodsLeaving 1000")]
#[case::asks_what_is_left(shared("b-0=2 b-1=3"), "b-1=3 b-2=5", |i: &mut NodeInput| i.check = Check::NotAsked, "AskCheck")]
#[case::something_is_left(shared("b-0=2 b-1=3"), "b-1=3 b-2=5", |i: &mut NodeInput| i.check = dirty(0), "Wait ContainersLeft 2000")]
#[case::nothing_is_left(shared("b-0=2 b-1=3"), "b-1=3 b-2=5", |_: &mut NodeInput| (), "WriteShared b-1=3")]
#[case::no_agent_needed(shared("b-0=2 b-1=3"), "b-1=3", |i: &mut NodeInput| i.check = Check::NotNeeded, "WriteShared b-1=3")]
#[case::not_onto_a_node_that_is_away(shared("b-1=3"), "b-1=3 b-2=5", |i: &mut NodeInput| i.ready = false, "Wait NotReady 1000")]
#[case::not_onto_a_cordoned_node(shared("b-1=3"), "b-1=3 b-2=5", |i: &mut NodeInput| i.cordoned = true, "Broken Cordoned")]
#[case::who_goes_from_a_cordoned_node_goes(shared("b-0=2 b-1=3"), "b-1=3", |i: &mut NodeInput| i.cordoned = true, "WriteShared b-1=3")]
#[case::fewer_devices_than_were_sold(shared("b-1=3"), "b-1=3 b-2=6", |_: &mut NodeInput| (), "Broken DeviceCount")]
#[case::another_size_of_the_same(shared("b-1=3"), "b-1=4", |_: &mut NodeInput| (), "WriteShared ")]
#[case::pods_of_nobody(shared("b-1=3"), "b-1=3", |i: &mut NodeInput| i.pods.running = true, "Drain")]
#[case::containers_of_pods_that_went(shared("b-1=3"), "b-1=3", |i: &mut NodeInput| (i.releasing, i.check) = (true, Check::NotAsked), "AskCheck")]
#[case::they_live_on(shared("b-1=3"), "b-1=3", |i: &mut NodeInput| (i.releasing, i.check) = (true, dirty(0)), "Wait ContainersLeft 2000")]
#[case::they_are_gone(shared("b-1=3"), "b-1=3", |i: &mut NodeInput| i.releasing = true, "Release")]
fn sharing(#[case] hold: Hold, #[case] wanted: &str, #[case] change: fn(&mut NodeInput), #[case] expected: &str) {
    let mut input = input(hold, in_parts(wanted));
    change(&mut input);
    assert_eq!(word(&node_step(&input)), expected);
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
