//! Shared nodes, checked exhaustively at small sizes (docs/ARCHITECTURE.md, "Shared nodes: who may land"): a node of two devices that are sold one by one,
//! two operators that both believe to lead, each stopped or killed between any two of its API calls, pods that land whenever they may, and containers that
//! outlive them.
//!
//! The model runs the operator's own decisions: `node_step` and `assign`. What is abstract is the world:
//! - The ledger is the live parts. A commit is one step, for one that read an old root fails; `model.rs` checks that. Parts are booked and end whenever
//!   they may, whatever an operator saw of the node.
//! - There is no election: both operators act whenever they like, and one that is paused is one that does not happen to be chosen.
//! - A resourceVersion is a flag: whether the object changed since it was read.
//! - The scheduler counts the pods that are bound. Of a container without a pod the agent alone knows.
//! - What the controllers do around a decision is told here once more, as it should be: what they read in which order, of what a question to the agent is,
//!   and which precondition a write has.
//! - A crash forgets the task, and whose containers were seen to be gone. That somebody has only read is no part of a crash: it is another history.
//! - What can only fail or be without effect is given up at once.
//!
//! So that the check can fail, each safeguard is also taken away in turn ([`Bug`], and `told_late` of [`Size`]), and the model must then find a history that
//! breaks a property.

#![allow(unreachable_pub, reason = "modules of one test")]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test of its own crate, which clippy does not take for one"
)]

#[path = "checking/mod.rs"]
mod checking;
#[path = "shared/state.rs"]
mod state;
#[path = "shared/world.rs"]
mod world;

use checking::{assert_broken, check};
use stateright::{Checker, HasDiscoveries, Model};
use world::{Bug, Size, World};

/// Checks a world, with a safeguard taken away if one is named: histories must be found that break these properties.
fn find(size: Size, bug: Option<Bug>, broken: &[&'static str]) {
    let all = HasDiscoveries::AllOf(broken.iter().copied().collect());
    let checker =
        World::new(size, bug).checker().threads(1).target_state_count(10_000_000).finish_when(all).spawn_bfs().join();
    assert_broken(&format!("{bug:?}"), &checker, broken);
}

/// One part, from an open node and back.
const ONE: Size = Size {
    reservations: &[0],
    pods: &[0, 0],
    prepared: 0,
    ends: 1,
    deletions: 1,
    recreations: 0,
    told_late: false,
    late_pods: false,
    late_records: false,
    losses: 0,
    expels: false,
    strict: true,
    forgotten: false,
};

/// Two tenants side by side.
const NEIGHBOURS: Size = Size { reservations: &[0, 1], pods: &[0, 1], prepared: 2, deletions: 0, ..ONE };

/// One tenant has both parts, and one of them ends.
const TWO_PARTS: Size = Size { reservations: &[0, 0], pods: &[0, 0], prepared: 2, deletions: 0, ..ONE };

/// The same, and another tenant takes what becomes free.
const THREE: Size = Size { reservations: &[0, 0, 1], pods: &[0, 0, 1], ..TWO_PARTS };

/// A view of pods that is behind.
const LATE_PODS: Size = Size { late_pods: true, prepared: 1, ..ONE };

/// A pod is told of a place that may be over. Who has more than its parts is then found by the next look: the second line of defence.
const TOLD_LATE: Size = Size { told_late: true, strict: false, expels: true, ..TWO_PARTS };

/// A reservation that ended may be gone before its part was given back, which takes longer than minutes.
const FORGOTTEN: Size = Size { forgotten: true, ..TWO_PARTS };

/// The view of pods may be behind.
const BEHIND: Size = Size { late_pods: true, ..TWO_PARTS };

/// The view of records may be behind.
const OLD_RECORDS: Size = Size { late_records: true, ..TWO_PARTS };

/// One tenant has one part after the other.
const AGAIN: Size = Size { prepared: 1, ..TWO_PARTS };

/// A part is lost, and its reservation goes on.
const LOST: Size = Size { losses: 1, ends: 0, ..TWO_PARTS };

/// The only part is lost, and the node is closed; then its reservation, or another of the tenant's, gets a part again.
const LOST_AGAIN: Size = Size { prepared: 1, ..LOST };

/// Either with a view of pods that is behind.
const AGAIN_BEHIND: Size = Size { late_pods: true, ..AGAIN };
const LOST_AGAIN_BEHIND: Size = Size { late_pods: true, ..LOST_AGAIN };

/// Both parts stay, and a pod is deleted.
const DELETED: Size = Size { ends: 0, deletions: 1, ..TWO_PARTS };

/// The node object is deleted and registers again at any time, its containers living on.
const RECREATED: Size = Size { recreations: 1, deletions: 0, pods: &[0], ..ONE };

macro_rules! worlds {
    ($($name:ident: $size:expr, $states:expr;)*) => {$(
        #[test]
        fn $name() {
            check(stringify!($name), World::new($size, None), $states);
        }
    )*};
}

worlds! {
    one: ONE, 100_000;
    recreated: RECREATED, 100_000;
    neighbours: NEIGHBOURS, 150_000;
    two_parts: TWO_PARTS, 150_000;
    behind: BEHIND, 500_000;
    told_late: TOLD_LATE, 150_000;
    three: THREE, 500_000;
    late_pods: LATE_PODS, 200_000;
    forgotten: FORGOTTEN, 500_000;
    deleted: DELETED, 200_000;
    old_records: OLD_RECORDS, 400_000;
    lost: LOST, 400_000;
    lost_again: LOST_AGAIN, 500_000;
    again: AGAIN, 500_000;
    again_behind: AGAIN_BEHIND, 800_000;
    lost_again_behind: LOST_AGAIN_BEHIND, 900_000;
}

macro_rules! bugs {
    ($($name:ident: $bug:ident in $size:expr, $broken:expr;)*) => {$(
        #[test]
        fn $name() {
            find($size, Some(Bug::$bug), &$broken);
        }
    )*};
}

#[test]
fn finds_told_without_the_root() {
    find(Size { strict: true, ..TOLD_LATE }, None, &["nobody has more than its parts"]);
}

bugs! {
    finds_node_without_precondition: NodeWithoutPrecondition in ONE, ["nothing of a tenant is on an unsold node"];
    finds_record_without_precondition: RecordWithoutPrecondition in TWO_PARTS, ["nobody has more than its parts"];
    finds_told_before_recorded: ToldBeforeRecorded in ONE, ["nobody is told without a record"];
    finds_no_node_check: NoNodeCheck in ONE, ["nothing of a tenant is on an unsold node"];
    finds_old_answer: OldAnswer in TWO_PARTS, ["nobody has more than its parts"];
    finds_asked_by_view: AskedByView in LATE_PODS, ["nobody has more than its parts"];
    finds_asked_of_parts_only: AskedOfPartsOnly in TWO_PARTS, ["nobody has more than its parts"];
    finds_emptied_late: EmptiedLate in ONE, ["who has a place is not ended"];
    finds_ended_though_placed: EndedThoughPlaced in TWO_PARTS, ["who has a place is not ended"];
    finds_waiting_left: WaitingLeft in TWO_PARTS, ["nobody has more than its parts"];
    finds_waiting_when_closed: WaitingWhenClosed in AGAIN, ["nobody has more than its parts"];
    finds_gone_between_reads: GoneBetweenReads in OLD_RECORDS, ["nobody has more than its parts"];
    finds_place_given_up: PlaceGivenUp in LOST, ["nobody has more than its parts"];
    finds_place_given_up_when_closed: PlaceGivenUp in LOST_AGAIN, ["nobody has more than its parts"];
    finds_forgotten_waiting: ForgottenWaiting in FORGOTTEN, ["nobody has more than its parts"];
    finds_asked_before_forgotten: AskedBeforeForgotten in FORGOTTEN, ["nobody has more than its parts"];
    finds_two_places: TwoPlaces in DELETED, ["a pod keeps one place"];
    finds_no_expel: NoExpel in TOLD_LATE, ["excess is found"];
    finds_records_before_pods: RecordsBeforePods in Size { deletions: 1, ..TOLD_LATE }, ["who has a place is not ended"];
    finds_records_before_root: RecordsBeforeRoot in LOST_AGAIN_BEHIND, ["who has a place is not ended"];
    finds_later_place_ignored: LaterPlaceIgnored in LOST_AGAIN_BEHIND, ["who has a place is not ended"];
}
