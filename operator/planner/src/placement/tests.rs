use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::{
    packing::Learned,
    plan::PlannedShare,
    types::{Profile, Resources},
};

fn pool(levels: &[&str]) -> Pool {
    Pool {
        name: "a".into(),
        sku: "h200".into(),
        region: "us-east".into(),
        devices_per_node: 8,
        topology: levels.iter().map(|&level| level.into()).collect(),
        not_selling: None,
        profiles: Vec::new(),
        observed: false,
        turnover_ms: 0,
    }
}

/// A node of `zone/rack/name`; `-` is a missing label. With a `!` behind it, it is sold.
fn node(text: &str) -> (Node, State) {
    let path = text.trim_end_matches('!');
    let labels: Vec<Option<Arc<str>>> = path.split('/').map(|label| (label != "-").then(|| Arc::from(label))).collect();
    let name = path.rsplit('/').next().unwrap();
    let node = Node {
        name: name.into(),
        uid: format!("uid-{name}").into(),
        pool: "a".into(),
        capacity: Resources { gpu: MilliGpu::whole(8), cpu_milli: 0, memory_mib: 0 },
        domains: labels,
        sale: NodeSale::Open,
        health: NodeHealth::Sound,
        owner_use: Resources::default(),
        returning: 0,
    };
    (node, if path == text { State::Free } else { State::Sold })
}

fn standing(state: State) -> Standing {
    Standing { state, free: if state == State::Free { 8 } else { 0 }, parts: 0 }
}

fn nodes(text: &str) -> Vec<(Node, State)> {
    text.split_whitespace().map(node).collect()
}

fn stock(pool: &Pool, nodes: &[(Node, State)]) -> Stock {
    let nodes = nodes.iter().map(|(node, state)| (Arc::new(node.clone()), standing(*state))).collect();
    Stock::new(Arc::new(pool.clone()), nodes)
}

fn names(stock: &Stock, slots: &[Slot]) -> String {
    let mut names: Vec<&str> = slots.iter().map(|&slot| stock.places[slot].node.name.as_str()).collect();
    names.sort_unstable();
    names.join(" ")
}

const LEVELS: [&str; 3] = ["zone", "rack", "host"];

#[rstest]
#[case::one_node("z/r/n2 z/r/n1", 1, None, "n1")]
#[case::not_enough("z/r/n1 z/r/n2!", 2, None, "-")]
#[case::none_is_no_gang("z/r/n1", 0, None, "-")]
#[case::best_fitting_rack("z/r1/n1 z/r1/n2 z/r1/n3 z/r2/n4 z/r2/n5", 2, None, "n4 n5")]
#[case::a_single_node_breaks_no_full_rack("z/r1/n1 z/r1/n2 z/r2/n3 z/r2/n4!", 1, None, "n3")]
#[case::equal_racks_go_by_name("z/r2/n1 z/r2/n3! z/r1/n2 z/r1/n4!", 1, None, "n2")]
#[case::narrowest_level_that_suffices("x/r1/n1 x/r2/n2 y/r3/n3 y/r3/n4 y/r4/n5", 2, None, "n3 n4")]
#[case::the_zone_when_no_rack_suffices("x/r1/n1 x/r2/n2 y/r3/n3 y/r4/n4 y/r5/n5", 3, None, "n3 n4 n5")]
#[case::best_fitting_zone("x/r1/n1 x/r2/n2 x/r3/n3 y/r4/n4 y/r5/n5", 2, None, "n4 n5")]
#[case::few_racks_within_the_zone("z/r1/n1 z/r2/n2 z/r2/n3 z/r3/n4 z/r3/n5 z/r3/n6", 4, None, "n1 n4 n5 n6")]
#[case::few_zones_when_none_suffices("x/r/n1 x/r/n2 y/r/n3 z/r/n4 z/r/n5 z/r/n6", 4, None, "n3 n4 n5 n6")]
#[case::same_rack_name_in_another_zone("x/r1/n1 y/r1/n2 y/r2/n3", 2, None, "n2 n3")]
#[case::unlabelled_last("-/-/n1 z/r/n2 z/r/n3", 3, None, "n1 n2 n3")]
#[case::unlabelled_only_when_needed("-/-/n1 z/r/n2 z/r/n3", 2, None, "n2 n3")]
#[case::no_labels_at_all("-/-/n2 -/-/n1 -/-/n3", 2, None, "n1 n2")]
#[case::required_rack("z/r1/n1 z/r1/n2 z/r2/n3 z/r2/n4 z/r2/n5", 2, Some("rack"), "n1 n2")]
#[case::no_required_rack_suffices("z/r1/n1 z/r1/n2! z/r2/n3", 2, Some("rack"), "-")]
#[case::racks_of_two_zones_are_two("x/r1/n1 y/r1/n2", 2, Some("rack"), "-")]
#[case::required_zone_keeps_racks_whole("x/r1/n1 y/r1/n2 y/r2/n3 y/r2/n4", 2, Some("zone"), "n3 n4")]
#[case::required_label_is_missing("z/-/n1 z/-/n2", 2, Some("rack"), "-")]
#[case::rack_without_a_zone("-/r1/n1 -/r1/n2", 2, Some("rack"), "n1 n2")]
#[case::required_host("z/r1/n1! z/r1/n2", 1, Some("host"), "n2")]
#[case::two_on_one_host("z/r1/n1 z/r1/n2", 2, Some("host"), "-")]
#[case::unknown_level("z/r1/n1", 1, Some("row"), "-")]
fn finds(#[case] layout: &str, #[case] wanted: usize, #[case] require: Option<&str>, #[case] expected: &str) {
    let (pool, nodes) = (pool(&LEVELS), nodes(layout));
    let stock = stock(&pool, &nodes);
    let found = stock.find(wanted, require.map(TopologyKey::from).as_ref());
    assert_eq!(found.map_or("-".to_owned(), |slots| names(&stock, &slots)), expected);
}

#[rstest]
#[case::same_rack("z/r1/n1! z/r1/n2 z/r0/n3", "n1", 1, None, "n2")]
#[case::same_zone("x/r1/n1! x/r2/n2 a/r2/n3", "n1", 1, None, "n2")]
#[case::anywhere("x/r1/n1! y/r2/n2", "n1", 1, None, "n2")]
#[case::as_many_as_there_are("z/r1/n1! z/r1/n2 z/r1/n3!", "n1", 3, None, "n2")]
#[case::not_out_of_the_required_rack("z/r1/n1! z/r2/n2", "n1", 1, Some("rack"), "")]
#[case::in_the_required_zone("x/r1/n1! x/r2/n2 y/r2/n3", "n1", 2, Some("zone"), "n2")]
#[case::remaining_nodes_stand_apart_now("z/r1/n1! z/r2/n2! z/r1/n3", "n1 n2", 1, Some("rack"), "")]
#[case::remaining_node_lost_its_label("z/-/n1! z/r1/n3", "n1", 1, Some("rack"), "")]
#[case::none_remains_any_rack("z/r1/n1 z/r2/n2 z/r2/n3", "", 2, Some("rack"), "n2 n3")]
#[case::none_remains_the_largest_rack("z/r1/n1 z/r2/n2 z/r2/n3", "", 3, Some("rack"), "n2 n3")]
#[case::none_remains_nothing_required("z/r1/n1 z/r2/n2 z/r2/n3", "", 1, None, "n1")]
#[case::unknown_level("z/r1/n1! z/r1/n2", "n1", 1, Some("row"), "")]
fn replaces(
    #[case] layout: &str,
    #[case] remaining: &str,
    #[case] wanted: usize,
    #[case] require: Option<&str>,
    #[case] expected: &str,
) {
    let (pool, nodes) = (pool(&LEVELS), nodes(layout));
    let stock = stock(&pool, &nodes);
    let is_at = |name: &str| stock.places.iter().position(|place| place.node.name.as_str() == name).unwrap();
    let remaining: Vec<Slot> = remaining.split_whitespace().map(is_at).collect();
    let found = stock.find_near(&remaining, wanted, require.map(TopologyKey::from).as_ref());
    assert_eq!(names(&stock, &found), expected);
}

#[rstest]
#[case::fits(16, None, None, Ok(2))]
#[case::fits_sold_nodes_too(32, Some(8), None, Ok(4))]
#[case::nothing(0, None, None, Err(Misfit::Nothing))]
#[case::other_nodes(8, Some(4), None, Err(Misfit::OtherNodes { per_node: 8 }))]
#[case::half_a_node(12, None, None, Err(Misfit::NotWholeNodes { per_node: 8 }))]
#[case::too_large(40, None, None, Err(Misfit::TooLarge { total: 32 }))]
#[case::rack_fits(24, None, Some("rack"), Ok(3))]
#[case::rack_too_small(32, None, Some("rack"), Err(Misfit::DomainTooSmall { largest: 24 }))]
#[case::unknown_level(8, None, Some("row"), Err(Misfit::UnknownLevel))]
fn checks(
    #[case] devices: u32,
    #[case] per_node: Option<u32>,
    #[case] require: Option<&str>,
    #[case] expected: Result<usize, Misfit>,
) {
    let (pool, nodes) = (pool(&LEVELS), nodes("z/r1/n1 z/r1/n2! z/r1/n3! z/r2/n4"));
    let stock = stock(&pool, &nodes);
    let want = Want { count: devices, per_node, whole: true, profile: None };
    assert_eq!(stock.check(want, require.map(TopologyKey::from).as_ref()), expected);
}

#[test]
fn a_pool_without_nodes_may_get_some() {
    let pool = pool(&LEVELS);
    let stock = stock(&pool, &[]);
    assert_eq!(
        stock.check(Want { count: 800, per_node: None, whole: true, profile: None }, Some(&"rack".into())),
        Ok(100)
    );
    assert_eq!(stock.find(1, None), None);
}

#[test]
fn a_pool_of_nodes_without_devices_holds_nothing() {
    let pool = Pool { devices_per_node: 0, ..pool(&[]) };
    let stock = stock(&pool, &[]);
    let misfit = stock.check(Want { count: 8, per_node: None, whole: true, profile: None }, None);
    assert_eq!(misfit, Err(Misfit::NotWholeNodes { per_node: 0 }));
}

/// A pool that offers shares, with these nodes: `free` devices of eight.
fn shares(layout: &str, observed: bool) -> Stock {
    let offer = |name: &str, milli| Profile { name: name.into(), gpu: MilliGpu(milli) };
    let profiles = vec![offer("quarter", 250), offer("third", 333), offer("whole", 1000), offer("nonsense", 1001)];
    let pool = Pool { profiles, observed, ..pool(&LEVELS) };
    let nodes = parts(layout).places;
    Stock::new(Arc::new(pool), nodes.into_iter().filter_map(|place| Some((place.node, place.standing?))).collect())
}

#[rstest]
#[case::fits("quarter", 32, None, true, Ok(1))]
#[case::what_is_left_of_a_device_is_lost("third", 25, None, true, Ok(2))]
#[case::too_many("quarter", 97, None, true, Err(Misfit::TooManyShares { most: 96 }))]
#[case::too_many_for_a_rack("quarter", 65, Some("rack"), true, Err(Misfit::TooManyShares { most: 64 }))]
#[case::no_such_level("quarter", 1, Some("row"), true, Err(Misfit::UnknownLevel))]
#[case::no_such_profile("half", 1, None, true, Err(Misfit::NoProfile))]
#[case::more_than_a_device("nonsense", 1, None, true, Err(Misfit::NoProfile))]
#[case::nothing("quarter", 0, None, true, Err(Misfit::Nothing))]
#[case::not_held_yet("quarter", 1, None, false, Err(Misfit::NotHeld))]
fn checks_shares(
    #[case] profile: &str,
    #[case] count: u32,
    #[case] require: Option<&str>,
    #[case] observed: bool,
    #[case] expected: Result<usize, Misfit>,
) {
    let stock = shares("z/r1/n1=8 z/r1/n2=0 z/r2/n3=3", observed);
    let shape = Shape::Shares { count, profile: profile.into() };
    assert_eq!(stock.check(Want::of(&shape), require.map(TopologyKey::from).as_ref()), expected);
}

#[rstest]
#[case::one("z/r/n1=8 z/r/n2=2", 1, 250, None, "n2:0")]
#[case::of_one_device("z/r/n1=8 z/r/n2=2", 4, 250, None, "n2:0 n2:0 n2:0 n2:0")]
#[case::of_the_next_device("z/r/n1=8 z/r/n2=2", 5, 250, None, "n2:0 n2:0 n2:0 n2:0 n2:1")]
#[case::of_the_next_node("z/r/n1=8 z/r/n2=1", 3, 500, None, "n1:0 n2:0 n2:0")]
#[case::in_one_rack("z/r1/n1=1 z/r2/n2=2", 3, 500, Some("rack"), "n2:0 n2:0 n2:1")]
#[case::all_or_none("z/r/n1=1 z/r/n2=1", 3, 600, None, "-")]
#[case::a_whole_device("z/r/n1=1", 1, 1000, None, "n1:0")]
fn finds_shares(
    #[case] layout: &str,
    #[case] count: u32,
    #[case] milli: u16,
    #[case] require: Option<&str>,
    #[case] expected: &str,
) {
    let mut stock = shares(layout, true);
    let before: Vec<_> = (0..stock.len()).map(|slot| (slot, stock.standing(slot))).collect();
    let free = (stock.shares_free(milli), stock.part_free());
    let found = stock.find_shares(count, milli, require.map(TopologyKey::from).as_ref());
    assert_eq!((stock.shares_free(milli), stock.part_free()), free, "a look took something");
    let text = |taken: Vec<PlannedShare>| {
        let taken: Vec<String> = taken.iter().map(|share| format!("{}:{}", share.node, share.device)).collect();
        taken.join(" ")
    };
    let found = found.map(|found| stock.take_shares(&found, milli));
    if found.is_some() {
        assert_eq!(stock.shares_free(milli), free.0 - u64::from(count));
        assert!(stock.part_free() < free.1, "a device of which a share is gone is not whole");
    }
    for (slot, standing) in before {
        stock.set(slot, standing);
    }
    assert_eq!((stock.shares_free(milli), stock.part_free()), free, "it was not put back");
    assert_eq!(found.map_or("-".to_owned(), text), expected);
}

/// What comes is of 500 and 700: a share of 300 leaves 700 of a whole device, and the device with 500 left is worth more as it is.
#[test]
fn what_was_learned_decides() {
    let mut stock = shares("z/r/n1=1 z/r/n2=1", true);
    assert_eq!(stock.take_shares(&[(0, 0)], 500).len(), 1);
    let mut learned = Learned::default();
    for _ in 0..150 {
        learned.observe(&bins::share(500).unwrap());
        learned.observe(&bins::share(700).unwrap());
        if learned.is_due() {
            learned = stock.learn(&learned);
        }
    }
    assert_eq!(stock.find_shares(1, 300, None), Some(vec![(0, 0)]), "best fit, while nothing is known");
    stock.set_learned(&learned);
    assert_eq!(stock.find_shares(1, 300, None), Some(vec![(1, 0)]));
}

const NOTHING: Held = Held { whole: false, parts: 0 };
const PART: Held = Held { whole: false, parts: 3 };
const WHOLE: Held = Held { whole: true, parts: 8 };

#[rstest]
#[case::free(|_: &mut Node| (), NOTHING, false, State::Free, 8)]
#[case::owner(|_: &mut Node| (), NOTHING, true, State::Owner, 0)]
#[case::not_now(|node: &mut Node| node.sale = NodeSale::NotNow, NOTHING, false, State::NotNow, 0)]
#[case::not_now_whoever_uses_it(|node: &mut Node| node.sale = NodeSale::NotNow, NOTHING, true, State::NotNow, 0)]
#[case::broken(|node: &mut Node| node.sale = NodeSale::Broken, NOTHING, true, State::Broken, 0)]
#[case::lost(|node: &mut Node| node.health = NodeHealth::Lost(crate::types::TimeMs(0)), NOTHING, false, State::Broken, 0)]
#[case::other_device_count(|node: &mut Node| node.capacity.gpu = MilliGpu::whole(7), NOTHING, false, State::Broken, 0)]
#[case::sold(|_: &mut Node| (), WHOLE, false, State::Sold, 0)]
#[case::sold_is_sold_though_lost(|node: &mut Node| node.health = NodeHealth::Lost(crate::types::TimeMs(0)), WHOLE, true, State::Sold, 0)]
#[case::a_part_of_an_open_node(|_: &mut Node| (), PART, false, State::Shared, 5)]
#[case::a_part_of_a_shared_node(|node: &mut Node| node.sale = NodeSale::Shared, PART, false, State::Shared, 5)]
#[case::what_comes_back_is_not_free(|node: &mut Node| (node.sale, node.returning) = (NodeSale::Shared, 4), PART, false, State::Shared, 1)]
#[case::more_comes_back_than_there_is(|node: &mut Node| (node.sale, node.returning) = (NodeSale::Shared, 9), PART, false, State::Shared, 0)]
#[case::the_owner_is_where_a_part_is_to_be(|_: &mut Node| (), PART, true, State::Shared, 0)]
#[case::the_owner_has_a_part(|node: &mut Node| node.sale = NodeSale::Shared, PART, true, State::Shared, 5)]
#[case::a_part_of_a_broken_node(|node: &mut Node| node.sale = NodeSale::Broken, PART, false, State::Shared, 0)]
#[case::a_part_of_a_lost_node(|node: &mut Node| (node.sale, node.health) = (NodeSale::Shared, NodeHealth::Lost(crate::types::TimeMs(0))), PART, false, State::Shared, 0)]
#[case::a_shared_node_that_nobody_has(|node: &mut Node| node.sale = NodeSale::Shared, NOTHING, false, State::NotNow, 0)]
#[case::an_open_node_with_something_coming_back(|node: &mut Node| node.returning = 1, NOTHING, false, State::NotNow, 0)]
fn standings(
    #[case] change: fn(&mut Node),
    #[case] held: Held,
    #[case] owner: bool,
    #[case] state: State,
    #[case] free: u32,
) {
    let (mut node, _) = node("z/r/n");
    change(&mut node);
    assert_eq!(Standing::of(&node, &pool(&LEVELS), held, owner), Standing { state, free, parts: held.parts });
}

/// Nodes as `zone/rack/name=free devices`: 8 is a free node, less a shared one.
fn parts(text: &str) -> Stock {
    let nodes = text.split_whitespace().map(|text| {
        let (path, free) = text.split_once('=').unwrap();
        let free: u32 = free.parse().unwrap();
        let state = if free == 8 { State::Free } else { State::Shared };
        (Arc::new(node(path).0), Standing { state, free, parts: 8 - free })
    });
    Stock::new(Arc::new(pool(&LEVELS)), nodes.collect())
}

#[rstest]
#[case::best_fit("z/r/n1=8 z/r/n2=5 z/r/n3=3", 3, None, None, "n3:3")]
#[case::whole_nodes_stay_whole("z/r/n1=8 z/r/n2=5", 4, None, None, "n2:4")]
#[case::a_whole_node_when_nothing_else_does("z/r/n1=8 z/r/n2=5", 6, None, None, "n1:6")]
#[case::as_few_nodes_as_possible("z/r/n1=3 z/r/n2=4 z/r/n3=5 z/r/n4=2", 9, None, None, "n3:5 n2:4")]
#[case::the_rest_where_it_fits_best("z/r/n1=3 z/r/n2=6 z/r/n3=1 z/r/n4=2", 7, None, None, "n2:6 n3:1")]
#[case::all_or_nothing("z/r/n1=3 z/r/n2=4", 8, None, None, "-")]
#[case::several_nodes_for_one_large_part("z/r/n1=8 z/r/n2=8 z/r/n3=8", 20, None, None, "n3:8 n2:8 n1:4")]
#[case::so_many_on_each("z/r/n1=8 z/r/n2=5 z/r/n3=3 z/r/n4=1", 6, Some(3), None, "n3:3 n2:3")]
#[case::not_enough_nodes_with_so_many("z/r/n1=8 z/r/n2=2 z/r/n3=2", 6, Some(3), None, "-")]
#[case::fullest_rack_that_suffices("z/r1/n1=3 z/r1/n2=3 z/r2/n3=8", 5, None, Some("rack"), "n2:3 n1:2")]
#[case::the_other_rack_when_the_parts_do_not_fit("z/r1/n1=3 z/r1/n2=2 z/r2/n3=8", 6, Some(3), Some("rack"), "-")]
#[case::one_host("z/r1/n1=3 z/r1/n2=6", 5, None, Some("host"), "n2:5")]
#[case::no_host_has_enough("z/r1/n1=3 z/r1/n2=6", 7, None, Some("host"), "-")]
#[case::no_label("-/-/n1=8", 1, None, Some("rack"), "-")]
fn finds_parts(
    #[case] layout: &str,
    #[case] devices: u32,
    #[case] per_node: Option<u32>,
    #[case] require: Option<&str>,
    #[case] expected: &str,
) {
    let mut stock = parts(layout);
    let found = stock.find_parts(devices, per_node, require.map(TopologyKey::from).as_ref());
    let text = |parts: Vec<(Slot, u32)>| {
        let one = |(slot, devices): &(Slot, u32)| format!("{}:{devices}", stock.node(*slot).unwrap().name);
        parts.iter().map(one).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(found.map_or("-".to_owned(), text), expected);
}

#[rstest]
#[case::best_fit("z/r/n1=8 z/r/n2=5 z/r/n3=3", "", 3, None, "n3")]
#[case::not_where_it_is_already("z/r/n1=8 z/r/n2=3", "n2", 3, None, "n1")]
#[case::in_the_required_rack("z/r1/n1=8 z/r1/n2=1 z/r2/n3=3", "n2", 3, Some("rack"), "n1")]
#[case::not_out_of_the_required_rack("z/r1/n2=1 z/r2/n3=3", "n2", 3, Some("rack"), "-")]
#[case::any_rack_when_none_remains("z/r1/n2=1 z/r2/n3=3", "", 3, Some("rack"), "n3")]
#[case::nowhere("z/r/n1=2", "", 3, None, "-")]
fn replaces_parts(
    #[case] layout: &str,
    #[case] remaining: &str,
    #[case] devices: u32,
    #[case] require: Option<&str>,
    #[case] expected: &str,
) {
    let mut stock = parts(layout);
    let is_at = |name: &str| stock.places.iter().position(|place| place.node.name.as_str() == name).unwrap();
    let remaining: Vec<Slot> = remaining.split_whitespace().map(is_at).collect();
    let found = stock.find_part_near(&remaining, devices, require.map(TopologyKey::from).as_ref());
    assert_eq!(found.map_or("-", |slot| stock.places[slot].node.name.as_str()), expected);
}

#[rstest]
#[case::fits(3, None, Ok(1))]
#[case::more_than_one_node(9, None, Ok(2))]
#[case::nothing(0, None, Err(Misfit::Nothing))]
#[case::so_many_on_each(6, Some(3), Ok(1))]
#[case::a_rest_of_each_node_is_too_small(18, Some(5), Err(Misfit::NotParts { per_node: 8 }))]
#[case::parts_that_leave_a_rest(20, Some(5), Ok(4))]
#[case::parts_larger_than_a_node(18, Some(9), Err(Misfit::NotParts { per_node: 8 }))]
#[case::parts_of_nothing(8, Some(0), Err(Misfit::NotParts { per_node: 8 }))]
#[case::too_large(33, None, Err(Misfit::TooLarge { total: 32 }))]
fn checks_parts(#[case] devices: u32, #[case] per_node: Option<u32>, #[case] expected: Result<usize, Misfit>) {
    let stock = parts("z/r/n1=8 z/r/n2=8 z/r/n3=0 z/r/n4=1");
    assert_eq!(stock.check(Want { count: devices, per_node, whole: false, profile: None }, None), expected);
}

#[test]
fn parts_that_are_taken_are_gone() {
    let mut stock = parts("z/r/n1=8 z/r/n2=5");
    let parts = stock.find_parts(4, None, None).unwrap();
    let taken = Segment { node: "n2".into(), uid: "uid-n2".into(), devices: 4, of: Some(8), from: None, to: None };
    assert_eq!(stock.take_parts(&parts), vec![taken]);
    assert_eq!(stock.part_free(), 9);
    assert_eq!(stock.tally(), Tally { free: 1, shared: 1, part_free: 1, part_sold: 7, ..Tally::default() });
    let whole = stock.find(1, None).unwrap();
    stock.take(&whole);
    assert_eq!(stock.part_free(), 1);
    // A free node of which a part is taken is no whole node any more.
    let mut stock = self::parts("z/r/n1=8");
    let parts = stock.find_parts(1, None, None).unwrap();
    stock.take_parts(&parts);
    assert_eq!(stock.find(1, None), None);
}

#[test]
fn what_is_taken_is_gone() {
    let (pool, nodes) = (pool(&LEVELS), nodes("z/r1/n1 z/r1/n2 z/r2/n3!"));
    let mut stock = stock(&pool, &nodes);
    let slots = stock.find(1, None).unwrap();
    let taken = Segment { node: "n1".into(), uid: "uid-n1".into(), devices: 8, of: None, from: None, to: None };
    assert_eq!(stock.take(&slots), vec![taken.clone()]);
    assert_eq!(stock.tally(), Tally { free: 1, sold: 2, ..Tally::default() });
    assert_eq!(stock.most_free(&"rack".into()), 1);
    assert_eq!(stock.find(2, None), None);
    assert_eq!(stock.slot(&taken), Some(0));
    assert_eq!(stock.slot(&Segment { uid: "uid-of-the-node-before".into(), ..taken }), None);
}

/// Free nodes in zones and racks, in no order.
fn layouts() -> impl Strategy<Value = Vec<(Node, State)>> {
    let label = |names: &'static [&'static str]| prop::sample::select(names);
    let one = (label(&["x", "y", "z", "-"]), label(&["r1", "r2", "r3", "-"]), prop::bool::weighted(0.7));
    prop::collection::vec(one, 0..30).prop_map(|all| {
        let text = |(i, (zone, rack, free)): (usize, (&str, &str, bool))| {
            node(&format!("{zone}/{rack}/n{i:02}{}", if free { "" } else { "!" }))
        };
        all.into_iter().enumerate().map(text).collect()
    })
}

fn path(node: &Node, level: usize) -> Option<Vec<Option<Arc<str>>>> {
    node.domains[level].as_ref().map(|_| node.domains[..=level].to_vec())
}

proptest! {
    /// Counts that are kept up to date say the same as counts made anew.
    #[test]
    fn taking_is_like_starting_without(
        mut nodes in layouts(),
        gangs in prop::collection::vec((1..6usize, prop::option::of(0..3usize)), 0..6),
    ) {
        let pool = pool(&LEVELS);
        let before = nodes.clone();
        let mut kept = stock(&pool, &before);
        for (wanted, level) in gangs {
            let require = level.map(|level| TopologyKey::from(LEVELS[level]));
            let fresh = stock(&pool, &nodes);
            let found = kept.find(wanted, require.as_ref());
            prop_assert_eq!(&found, &fresh.find(wanted, require.as_ref()));
            prop_assert_eq!(kept.tally(), fresh.tally());
            for segment in kept.take(&found.unwrap_or_default()) {
                nodes.iter_mut().find(|(node, _)| node.uid == segment.uid).unwrap().1 = State::Sold;
            }
        }
    }

    /// So do counts after nodes changed, went, and were put back.
    #[test]
    fn changing_is_like_starting_anew(
        nodes in layouts(),
        changes in prop::collection::vec((0..30usize, 0..10u32, 0..4u32), 0..20),
        wanted in 1..9u32,
        level in prop::option::of(0..3usize),
    ) {
        let pool = pool(&LEVELS);
        let mut kept = stock(&pool, &nodes);
        let mut now: Vec<(Arc<Node>, Option<Standing>)> =
            nodes.iter().map(|(node, state)| (Arc::new(node.clone()), Some(standing(*state)))).collect();
        let mut before = Vec::new();
        for (at, free, kind) in changes {
            if now.is_empty() {
                break;
            }
            let at = at % now.len();
            let standing = match (kind, free) {
                (0, _) => None,
                (1, 8..) => Some(standing(State::Free)),
                (1, _) => Some(Standing { state: State::Shared, free, parts: 8 - free }),
                (2, _) => Some(standing(State::Owner)),
                _ => Some(standing(State::Sold)),
            };
            let slot = kept.places.iter().position(|place| place.node.uid == now[at].0.uid).unwrap();
            before.push((slot, kept.standing(slot)));
            kept.set(slot, standing);
            now[at].1 = standing;
        }
        let there = now.iter().filter_map(|(node, standing)| Some((Arc::clone(node), (*standing)?))).collect();
        let fresh = Stock::new(Arc::new(pool.clone()), there);
        let require = level.map(|level| TopologyKey::from(LEVELS[level]));
        let named = |stock: &Stock, slots: Option<Vec<Slot>>| slots.map(|slots| names(stock, &slots));
        let parts_named = |stock: &Stock, parts: Option<Vec<(Slot, u32)>>| {
            parts.map(|parts| parts.iter().map(|&(slot, n)| (stock.places[slot].node.name.clone(), n)).collect::<Vec<_>>())
        };
        prop_assert_eq!(kept.tally(), fresh.tally());
        prop_assert_eq!(kept.len(), fresh.len());
        prop_assert_eq!(kept.part_free(), fresh.part_free());
        let nodes_wanted = wanted as usize;
        prop_assert_eq!(named(&kept, kept.find(nodes_wanted, require.as_ref())), named(&fresh, fresh.find(nodes_wanted, require.as_ref())));
        let mut fresh = fresh;
        let (of_kept, of_fresh) = (kept.find_parts(wanted, None, require.as_ref()), fresh.find_parts(wanted, None, require.as_ref()));
        prop_assert_eq!(parts_named(&kept, of_kept), parts_named(&fresh, of_fresh));
        let want = Want { count: wanted * 8, per_node: None, whole: true, profile: None };
        prop_assert_eq!(kept.check(want, require.as_ref()), fresh.check(want, require.as_ref()));
        while let Some((slot, standing)) = before.pop() {
            kept.set(slot, standing);
        }
        prop_assert_eq!(kept.tally(), stock(&pool, &nodes).tally());
    }

    /// Parts add up, fit where they are, lie on different nodes, and are found whenever the devices are there.
    #[test]
    fn parts_add_up(free in prop::collection::vec(0..9u32, 0..12), wanted in 1..40u32, each in prop::option::of(1..5u32)) {
        let text: Vec<String> = free.iter().enumerate().map(|(i, free)| format!("z/r/n{i:02}={free}")).collect();
        let mut stock = parts(&text.join(" "));
        let wanted = each.map_or(wanted, |each| wanted * each);
        let possible = match each {
            None => free.iter().sum::<u32>() >= wanted,
            Some(each) => free.iter().filter(|&&free| free >= each).count() >= (wanted / each) as usize,
        };
        let found = stock.find_parts(wanted, each, None);
        prop_assert_eq!(found.is_some(), possible);
        if let Some(found) = found {
            prop_assert_eq!(found.iter().map(|&(_, devices)| devices).sum::<u32>(), wanted);
            prop_assert!(found.iter().all(|&(slot, devices)| devices > 0 && devices <= free[slot]));
            prop_assert!(each.is_none_or(|each| found.iter().all(|&(_, devices)| devices == each)));
            let distinct: BTreeSet<Slot> = found.iter().map(|&(slot, _)| slot).collect();
            prop_assert_eq!(distinct.len(), found.len());
            if each.is_none() {
                let mut largest = free.clone();
                largest.sort_unstable_by(|one, other| other.cmp(one));
                let mut sum = 0;
                let fewest = largest.iter().position(|free| { sum += free; sum >= wanted }).unwrap() + 1;
                prop_assert_eq!(found.len(), fewest);
            }
        }
    }

    /// All or nothing, free nodes only, in one domain if that is required, and found whenever there is one.
    #[test]
    fn gangs_are_whole(nodes in layouts(), wanted in 1..8usize, level in prop::option::of(0..3usize)) {
        let pool = pool(&LEVELS);
        let stock = stock(&pool, &nodes);
        let require = level.map(|level| TopologyKey::from(LEVELS[level]));
        let free: Vec<&Node> = nodes.iter().filter(|(_, state)| *state == State::Free).map(|(node, _)| node).collect();
        let possible = match level {
            None => free.len() >= wanted,
            Some(level) => free.iter().any(|one| {
                path(one, level).is_some()
                    && free.iter().filter(|node| path(node, level) == path(one, level)).count() >= wanted
            }),
        };
        let found = stock.find(wanted, require.as_ref());
        prop_assert_eq!(found.is_some(), possible);
        if let Some(slots) = found {
            let distinct: BTreeSet<Slot> = slots.iter().copied().collect();
            prop_assert_eq!(distinct.len(), wanted);
            let chosen: Vec<&Node> = slots.iter().map(|&slot| &*stock.places[slot].node).collect();
            prop_assert!(chosen.iter().all(|node| free.iter().any(|free| free.uid == node.uid)));
            if let Some(level) = level {
                let domain = path(chosen[0], level);
                prop_assert!(domain.is_some() && chosen.iter().all(|node| path(node, level) == domain));
            }
        }
    }

    /// Without a requirement, a gang stands in as few zones as can be.
    #[test]
    fn gangs_stand_in_few_zones(nodes in layouts(), wanted in 1..20usize) {
        let pool = pool(&LEVELS);
        let labelled: Vec<_> = nodes.into_iter().filter(|(node, _)| node.domains[0].is_some()).collect();
        let stock = stock(&pool, &labelled);
        if let Some(slots) = stock.find(wanted, None) {
            let mut free: HashMap<_, usize> = HashMap::new();
            for (node, _) in labelled.iter().filter(|(_, state)| *state == State::Free) {
                *free.entry(node.domains[0].clone()).or_default() += 1;
            }
            let mut sizes: Vec<usize> = free.into_values().collect();
            sizes.sort_unstable_by(|one, other| other.cmp(one));
            let mut sum = 0;
            let fewest = sizes.iter().position(|size| { sum += size; sum >= wanted }).unwrap() + 1;
            let zones: BTreeSet<_> = slots.iter().map(|&slot| stock.places[slot].node.domains[0].clone()).collect();
            prop_assert_eq!(zones.len(), fewest);
        }
    }
}
