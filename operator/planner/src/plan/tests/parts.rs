//! Parts of nodes.

use super::*;

fn part_of(count: u32) -> Shape {
    Shape::Devices { count, per_node: None }
}

fn part(node: &str, devices: u32) -> Segment {
    Segment { devices, of: Some(8), ..segment(node) }
}

/// An active booking of parts.
fn parts_booking(name: &str, parts: &[(&str, u32)]) -> Booking {
    let from = Some(TimeMs(2000));
    Booking {
        exclusive: false,
        devices: parts.iter().map(|(_, devices)| devices).sum(),
        segments: parts.iter().map(|&(node, devices)| Segment { from, ..part(node, devices) }).collect(),
        ..booking(name, &[parts[0].0])
    }
}

/// `node:devices` of each new booking, or its answer.
fn told_parts(plan: &Plan) -> Vec<String> {
    let text = |segment: &Segment| {
        assert_eq!(segment.of, Some(8));
        format!("{}:{}", segment.node, segment.devices)
    };
    let of = |new: &NewBooking| new.segments.iter().map(text).collect::<Vec<_>>().join(" ");
    let bookings = plan.bookings.iter().map(|new| format!("{}: {}", new.reservation.name, of(new)));
    let outcomes = plan.outcomes.iter().map(|(uid, outcome)| {
        let (kind, reason) = super::parts(outcome);
        format!("{}: {kind} {}", uid.as_str().trim_start_matches("uid-"), reason.code)
    });
    bookings.chain(outcomes).collect()
}

fn ask_part(snapshot: &mut Snapshot, name: &str, devices: u32) {
    ask(snapshot, name, |request| request.shape = part_of(devices));
}

#[test]
fn parts_of_a_node_go_to_several() {
    let mut scene = scene();
    ask_part(&mut scene, "r1", 3);
    ask_part(&mut scene, "r2", 5);
    ask_part(&mut scene, "r3", 1);
    assert_eq!(told_parts(&plan(&scene, NOW)), ["r1: a-1:3", "r2: a-1:5", "r3: a-2:1"]);
}

#[rstest]
#[case::beside_another_part(|s: &mut Snapshot| sell(s, parts_booking("old", &[("a-4", 5)])), "r: a-4:3")]
#[case::not_where_too_little_is_left(|s: &mut Snapshot| sell(s, parts_booking("old", &[("a-4", 6)])), "r: a-1:3")]
#[case::not_beside_a_whole_node(|s: &mut Snapshot| sell(s, booking("old", &["a-1"])), "r: a-2:3")]
#[case::not_where_a_part_comes_back(|s: &mut Snapshot| {
    sell(s, parts_booking("old", &[("a-4", 5)]));
    (s.nodes[3].sale, s.nodes[3].returning) = (NodeSale::Shared, 1);
}, "r: a-1:3")]
#[case::not_where_the_owner_is(|s: &mut Snapshot| s.nodes[0].owner_use.gpu = MilliGpu::whole(1), "r: a-2:3")]
#[case::not_on_a_shared_node_that_is_given_back(|s: &mut Snapshot| s.nodes[0].sale = NodeSale::Shared, "r: a-2:3")]
fn where_a_part_goes(#[case] change: fn(&mut Snapshot), #[case] expected: &str) {
    let mut scene = scene();
    change(&mut scene);
    ask_part(&mut scene, "r", 3);
    assert_eq!(told_parts(&plan(&scene, NOW)), [expected]);
}

#[test]
fn a_part_may_span_nodes_and_a_rack_may_be_required() {
    let mut scene = scene();
    sell(&mut scene, parts_booking("old", &[("a-1", 6), ("a-3", 1)]));
    ask(&mut scene, "r", |request| {
        request.shape = part_of(10);
        request.require = Some("rack".into());
    });
    assert_eq!(told_parts(&plan(&scene, NOW)), ["r: a-1:2 a-2:8"]);
    scene.requests.last_mut().unwrap().shape = Shape::Devices { count: 4, per_node: Some(2) };
    assert_eq!(told_parts(&plan(&scene, NOW)), ["r: a-1:2 a-2:2"]);
    scene.requests.last_mut().unwrap().shape = part_of(16);
    assert_eq!(
        answer(&scene),
        "Waitlisted InsufficientCapacity: 16 devices wanted, 25 free of 32 in pool `a` (7 sold). They must be in one `rack`, and none has more than 15 free. It is booked when enough come free or nodes are added; nothing younger is booked there before it."
    );
}

#[test]
fn who_wants_whole_nodes_is_told_of_parts() {
    let mut scene = scene();
    sell(&mut scene, parts_booking("old", &[("a-1", 3), ("a-2", 3), ("a-3", 3), ("a-4", 3)]));
    scene.nodes[3].sale = NodeSale::NotNow;
    ask(&mut scene, "r", |_| ());
    assert_eq!(
        answer(&scene),
        "Waitlisted InsufficientCapacity: 8 devices wanted, 0 free of 32 in pool `a` (12 sold, 15 free on nodes that are held in parts, 5 in turnover or not ready). It is booked when enough come free or nodes are added; nothing younger is booked there before it."
    );
}

#[rstest]
#[case::replaced_by_a_part_of_its_size(&[("a-1", 3), ("a-2", 2)], &[], ["a-1 by a-3:3"].as_slice())]
#[case::in_pieces_when_none_is_large_enough(&[("a-1", 6), ("a-2", 2)], &[("a-3", 3), ("a-4", 3)], ["a-1 by -", "- by a-3:5", "- by a-4:1"].as_slice())]
#[case::beside_others(&[("a-1", 3), ("a-2", 2)], &[("a-4", 5)], ["a-1 by a-4:3"].as_slice())]
fn lost_parts(#[case] held: &[(&str, u32)], #[case] others: &[(&str, u32)], #[case] expected: &[&str]) {
    let mut scene = scene();
    let mut hurt = parts_booking("hurt", held);
    hurt.devices = held.iter().map(|(_, devices)| devices).sum();
    sell(&mut scene, hurt);
    if !others.is_empty() {
        sell(&mut scene, parts_booking("others", others));
    }
    scene.nodes[0].health = NodeHealth::Lost(TimeMs(5000));
    let text = |swap: &Swap| {
        let new = swap.replacement.as_ref().map_or("-".to_owned(), |new| format!("{}:{}", new.node, new.devices));
        format!("{} by {new}", swap.lost.as_ref().map_or("-", |uid| uid.as_str().trim_start_matches("uid-")))
    };
    assert_eq!(plan(&scene, NOW).swaps.iter().map(text).collect::<Vec<_>>(), expected);
}

#[test]
fn what_was_lost_earlier_is_made_good_in_as_large_parts_as_there_are() {
    let mut scene = scene();
    sell(&mut scene, Booking { devices: 9, ..parts_booking("hurt", &[("a-1", 3)]) });
    sell(&mut scene, parts_booking("others", &[("a-2", 4), ("a-3", 5), ("a-4", 8)]));
    let plan = plan(&scene, NOW);
    let made: Vec<_> = plan.swaps.iter().filter_map(|swap| swap.replacement.as_ref()).collect();
    assert_eq!(made, [&part("a-2", 4), &part("a-3", 2)]);
    assert!(plan.swaps.iter().all(|swap| swap.lost.is_none()));
}
