//! Tables of decisions; what holds for any requests and engines is in `tests/properties.rs`.

mod properties;

use std::collections::BTreeSet;

use rstest::rstest;

use super::{
    fixed::{ONE, approach, ratio, scale},
    flights::Flights,
    popularity::Popularity,
    streams::Streams,
    *,
};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
/// Four engines that cache 64 blocks each.
const ENGINES: [EngineId; 4] = [EngineId(10), EngineId(11), EngineId(12), EngineId(13)];

fn config(peers: Peers) -> Config {
    Config { cache: Cache::Blocks(64), peers, cost: Cost::default(), seed: 7 }
}

fn affinity(peers: Peers) -> PrefixAffinity {
    let mut affinity = PrefixAffinity::new(config(peers));
    affinity.set_engines(&ENGINES);
    affinity
}

fn ready(mut strategy: impl Strategy + 'static) -> Box<dyn Strategy> {
    strategy.set_engines(&ENGINES);
    Box::new(strategy)
}

/// A prompt of full blocks and one token.
fn prompt(blocks: &[u64]) -> Prompt<'_> {
    Prompt { tokens: blocks.len() as u64 * 512 + 1, blocks }
}

/// A prompt of which nothing is known but its length.
fn unknown(blocks: u64) -> Prompt<'static> {
    Prompt { tokens: blocks * 512 + 1, blocks: &[] }
}

/// A conversation: its first block is everybody's, the others are its own.
fn conversation(number: u64, blocks: u64) -> Vec<u64> {
    std::iter::once(1).chain((1..blocks).map(|block| number * 1000 + block)).collect()
}

/// Chooses and dispatches.
fn send(strategy: &mut dyn Strategy, now: u64, prompt: &Prompt<'_>) -> (EngineId, Ticket) {
    let engine = strategy.choose(now, prompt, &|_| true).unwrap();
    (engine, strategy.dispatched(now, engine, prompt))
}

fn used(cached_tokens: u64) -> Option<Usage> {
    Some(Usage { output_tokens: 1, cached_tokens: Some(cached_tokens) })
}

#[rstest]
#[case::round_robin(ready(RoundRobin::new()), [10, 11, 12, 13, 10, 11])]
#[case::least_requests(ready(Least::requests()), [10, 11, 12, 13, 10, 11])]
// The first prompt is five times as long as the others.
#[case::least_prompt_tokens(ready(Least::prompt_tokens()), [10, 11, 12, 13, 11, 12])]
// Nothing is cached, and what waits counts.
#[case::affinity(ready(affinity(Peers::None)), [10, 11, 12, 13, 11, 12])]
fn requests_that_have_nothing_in_common_are_spread(
    #[case] mut strategy: Box<dyn Strategy>,
    #[case] expected: [u64; 6],
) {
    for ((number, length), engine) in (1..).zip([20, 4, 4, 4, 4, 4]).zip(expected) {
        assert_eq!(send(&mut *strategy, number, &unknown(length)).0, EngineId(engine), "request {number}");
    }
}

#[rstest]
#[case::round_robin(ready(RoundRobin::new()))]
#[case::least_requests(ready(Least::requests()))]
#[case::least_prompt_tokens(ready(Least::prompt_tokens()))]
#[case::affinity(ready(affinity(Peers::None)))]
#[case::affinity_with_peers(ready(affinity(Peers::Any)))]
fn only_open_engines_are_chosen(#[case] mut strategy: Box<dyn Strategy>) {
    let blocks = conversation(1, 8);
    for now in 0..8 {
        assert_eq!(strategy.choose(now, &prompt(&blocks), &|engine| engine == ENGINES[2]), Some(ENGINES[2]));
        strategy.dispatched(now, ENGINES[2], &prompt(&blocks));
    }
    assert_eq!(strategy.choose(9, &prompt(&blocks), &|_| false), None);
    strategy.set_engines(&[]);
    assert_eq!(strategy.choose(10, &prompt(&blocks), &|_| true), None);
}

#[rstest]
#[case::ended(true, ENGINES[0])]
#[case::in_flight(false, ENGINES[1])]
fn what_has_ended_does_not_count(#[case] ends: bool, #[case] expected: EngineId) {
    for mut strategy in [ready(Least::requests()), ready(Least::prompt_tokens()), ready(affinity(Peers::None))] {
        let (engine, ticket) = send(&mut *strategy, 0, &unknown(3));
        assert_eq!(engine, ENGINES[0]);
        if ends {
            strategy.ended(1, ticket, None);
            // Once more does nothing.
            strategy.ended(1, ticket, None);
        }
        assert_eq!(strategy.choose(2, &unknown(3), &|_| true), Some(expected));
    }
}

#[test]
fn engines_that_stay_keep_what_is_known_of_them() {
    for mut strategy in [ready(Least::requests()), ready(affinity(Peers::None))] {
        let (_, gone) = send(&mut *strategy, 0, &unknown(2));
        let (engine, _) = send(&mut *strategy, 0, &unknown(2));
        assert_eq!(engine, ENGINES[1]);
        strategy.set_engines(&[EngineId(20), ENGINES[1]]);
        // Of an engine that has gone: does nothing.
        strategy.token(1, gone);
        strategy.ended(1, gone, None);
        assert_eq!(strategy.choose(2, &unknown(2), &|_| true), Some(EngineId(20)));
        assert_eq!(strategy.choose(2, &unknown(2), &|engine| engine != EngineId(20)), Some(ENGINES[1]));
    }
}

/// A turn of a conversation, answered with one token after half a second. Gives where it went.
fn turn(affinity: &mut PrefixAffinity, now: u64, blocks: &[u64], cached_tokens: u64) -> EngineId {
    let (engine, ticket) = send(affinity, now, &prompt(blocks));
    affinity.token(now + 500 * MS, ticket);
    affinity.ended(now + 500 * MS, ticket, used(cached_tokens));
    engine
}

#[test]
fn a_conversation_goes_where_its_prefix_is() {
    let mut affinity = affinity(Peers::None);
    for (number, engine) in (2..).zip(ENGINES) {
        // Everybody has the first block, and each engine one of the conversations.
        let ticket = affinity.dispatched(0, engine, &prompt(&conversation(number, 10)));
        affinity.token(SECOND, ticket);
        affinity.ended(SECOND, ticket, None);
    }
    let blocks = conversation(4, 12);
    assert_eq!(turn(&mut affinity, 2 * SECOND, &blocks, 10 * 512), ENGINES[2]);
    // Some work waits there, less than what is cached is worth,
    let busy = |affinity: &mut PrefixAffinity, tokens| {
        affinity.dispatched(2 * SECOND, ENGINES[2], &Prompt { tokens, blocks: &[] });
        affinity.choose(2 * SECOND, &prompt(&blocks), &|_| true)
    };
    assert_eq!(busy(&mut affinity, 2_000), Some(ENGINES[2]));
    // and then more.
    assert_ne!(busy(&mut affinity, 40_000), Some(ENGINES[2]));
}

#[test]
fn an_engine_that_is_overdue_is_not_expected_back_soon() {
    let mut affinity = affinity(Peers::None);
    affinity.set_engines(&ENGINES[..2]);
    let at = |affinity: &PrefixAffinity, now| affinity.choose(now, &unknown(4), &|_| true);
    affinity.dispatched(0, ENGINES[0], &Prompt { tokens: 4_000, blocks: &[] });
    affinity.dispatched(0, ENGINES[1], &Prompt { tokens: 16_000, blocks: &[] });
    // 4,000 tokens take about 0.18 s, 16,000 about 0.85 s.
    assert_eq!(at(&affinity, 100 * MS), Some(ENGINES[0]));
    assert_eq!(at(&affinity, 300 * MS), Some(ENGINES[0]));
    assert_eq!(at(&affinity, 400 * MS), Some(ENGINES[1]));
}

/// Gateways that know what is everybody's prefer the same engine for a conversation that neither has seen: there they will meet.
#[test]
fn gateways_find_the_same_home() {
    let (mut one, mut other) = (affinity(Peers::Any), affinity(Peers::Any));
    for (number, engine) in (1..20).zip(ENGINES.into_iter().cycle()) {
        for (gateway, number) in [(&mut one, number), (&mut other, 100 + number)] {
            let ticket = gateway.dispatched(0, engine, &prompt(&conversation(number, 20)));
            gateway.ended(0, ticket, None);
        }
    }
    let mut homes = BTreeSet::new();
    for number in 200..240 {
        let blocks = conversation(number, 20);
        let home = one.choose(SECOND, &prompt(&blocks), &|_| true);
        assert_eq!(other.choose(SECOND, &prompt(&blocks), &|_| true), home);
        homes.extend(home);
    }
    assert_eq!(homes, BTreeSet::from(ENGINES), "every engine is somebody's home");
}

/// What others have cached is learned from what engines say: where they never have anything, the engine that is least busy is taken.
#[rstest]
#[case::much(16 * 512, true)]
#[case::nothing(512, false)]
fn what_others_have_cached_is_learned(#[case] cached: u64, #[case] expected: bool) {
    let mut affinity = affinity(Peers::Any);
    affinity.set_engines(&ENGINES[..2]);
    let mut at_home = 0;
    for number in 1..=600 {
        let now = number * 10 * SECOND;
        let blocks = conversation(number, 20);
        turn(&mut affinity, now, &blocks, cached);
        // The same with some work waiting where it would go.
        let blocks = conversation(1000 + number, 20);
        let home = affinity.choose(now + 5 * SECOND, &prompt(&blocks), &|_| true).unwrap();
        let waiting = affinity.dispatched(now + 5 * SECOND, home, &unknown(10));
        at_home += u32::from(affinity.choose(now + 5 * SECOND, &prompt(&blocks), &|_| true) == Some(home));
        affinity.ended(now + 5 * SECOND, waiting, None);
    }
    assert_eq!(at_home > 500, expected, "{at_home}");
}

#[rstest]
#[case::system_prompt_of_one_block(40, 1, Some(2))]
#[case::nobody_elses(3, 1, Some(1))]
#[case::longer_system_prompt(40, 5, Some(6))]
#[case::all_that_is_looked_at_is_everybodys(40, 50, Some(32))]
fn the_key_is_the_first_block_that_is_not_everybodys(
    #[case] requests: u64,
    #[case] common: u64,
    #[case] depth: Option<usize>,
) {
    let mut popularity = Popularity::new(7);
    let blocks = |number| (1..=common).chain((0..10).map(|block| number * 1000 + block)).collect::<Vec<u64>>();
    for number in 1..=requests {
        popularity.observe(&blocks(number));
    }
    assert_eq!(popularity.key(&blocks(1), 4).map(|key| key.depth), depth);
    assert_eq!(popularity.key(&[], 4), None);
}

#[test]
fn popularity_is_bounded_and_forgets() {
    let mut popularity = Popularity::new(7);
    for number in 0..10_000_u64 {
        let blocks: Vec<u64> = (0..100).map(|block| number * 100 + block).collect();
        popularity.observe(&blocks);
        assert!(popularity.len() <= 2 * 2048 * 32);
    }
}

/// Milliseconds that others are expected to keep an engine busy, 1 s and then so much after an own stream had its first token.
#[rstest]
#[case::steady(&[10, 20, 30], 40, false, 0)]
#[case::steady_beside_own(&[10, 20, 30], 40, true, 0)]
#[case::stutters(&[10, 100], 110, false, 570)]
#[case::stutters_beside_own(&[10, 100], 110, true, 300)]
#[case::silent(&[10, 20], 120, false, 570)]
#[case::for_long(&[10, 100, 5_000, 6_000], 6_010, false, 4_000)]
#[case::over(&[10, 100, 110], 120, false, 0)]
fn streams_tell_of_others(#[case] tokens: &[u64], #[case] at: u64, #[case] own: bool, #[case] expected: u64) {
    let mut streams = Streams::default();
    streams.begin(SECOND);
    let mut last = 0;
    for &token in tokens {
        streams.token(SECOND + token * MS, SECOND + last * MS);
        last = token;
    }
    assert_eq!(streams.others(SECOND + at * MS, own) / MS, expected);
}

/// The same without a stream, and how it fades to what is usual.
#[rstest]
#[case::never_seen(None, 0, false, 400)]
#[case::own(None, 0, true, 300)]
#[case::was_steady(Some(10), 0, false, 0)]
#[case::was_steady_a_while_ago(Some(10), 1_500, false, 200)]
#[case::stuttered(Some(100), 0, false, 500)]
#[case::stuttered_a_while_ago(Some(100), 1_500, false, 450)]
#[case::long_ago(Some(100), 9_000, false, 400)]
fn engines_without_streams(#[case] gap: Option<u64>, #[case] after: u64, #[case] own: bool, #[case] expected: u64) {
    let mut streams = Streams::default();
    if let Some(gap) = gap {
        streams.begin(SECOND);
        streams.token(SECOND + gap * MS, SECOND);
        streams.end();
    }
    assert_eq!(streams.others(SECOND + (gap.unwrap_or(0) + after) * MS, own) / MS, expected);
}

/// An engine that is half as fast is found out, whatever one sample says.
#[test]
fn the_rate_is_learned() {
    let mut affinity = affinity(Peers::None);
    for number in 1..400 {
        let tokens = 8_000;
        let (_, ticket) = send(&mut affinity, number * 10 * SECOND, &Prompt { tokens, blocks: &[] });
        // 8,000 (1 + 4,000 / 40,000) 80 us, and a tenth of that for the steps.
        affinity.token(number * 10 * SECOND + 774_400_000, ticket);
        affinity.ended(number * 10 * SECOND + 774_400_000, ticket, used(0));
    }
    let (rate, expected) = (affinity.rate(), 80_000 * ONE);
    assert!(rate.abs_diff(expected) < expected / 100, "{rate}");
}

/// A cache of unknown size is found out: what is smaller than thought gives less than it should.
#[rstest]
#[case::smaller(0, 100)]
#[case::as_thought(512, 1_000)]
fn the_size_of_a_cache_is_learned(#[case] cached: u64, #[case] at_most: usize) {
    let mut affinity = PrefixAffinity::new(Config { cache: Cache::AtMost(1_000), ..config(Peers::None) });
    affinity.set_engines(&ENGINES[..1]);
    let blocks: Vec<u64> = (0..2_000).collect();
    affinity.dispatched(0, ENGINES[0], &prompt(&blocks));
    for now in 1..300 {
        // Of one block that the index has.
        turn(&mut affinity, now * SECOND, &[0, 5_000], cached);
    }
    assert!((64..=at_most).contains(&affinity.blocks()), "{}", affinity.blocks());
}

#[rstest]
#[case::short(512, 0, 512 + 3)]
#[case::long(40_000, 0, 60_000)]
#[case::behind_a_prefix(10_000, 40_000, 10_000 + 11_250)]
#[case::nothing(0, 100_000, 0)]
fn work_grows_with_what_is_attended_to(#[case] new: u64, #[case] cached: u64, #[case] expected: u64) {
    assert_eq!(Cost::default().work(new, cached), expected);
    assert!(Cost::default().work(u64::MAX, u64::MAX) > 0);
}

#[test]
fn fixed_point() {
    assert_eq!(ratio(1, 2), ONE / 2);
    assert_eq!(ratio(1, 0), 0);
    assert_eq!(scale(1_000, ONE * 3 / 2), 1_500);
    assert_eq!(scale(u64::MAX, u64::MAX), u64::MAX);
    assert_eq!((approach(100, 200, 50), approach(200, 100, 50), approach(100, 149, 50)), (102, 198, 100));
}

#[test]
fn flights_in_mind_are_bounded() {
    let mut flights = Flights::new();
    let tickets: Vec<Ticket> = (0..IN_FLIGHT_MAX + 10).map(|number| flights.insert(number)).collect();
    assert_eq!(flights.len(), IN_FLIGHT_MAX as usize);
    assert_eq!(flights.remove(tickets[5]), Some(5));
    assert_eq!(flights.remove(tickets[5]), None);
    let again = flights.insert(77);
    assert_ne!(again, tickets[5]);
    assert_eq!(flights.get_mut(tickets[5]), None);
    assert_eq!(flights.get_mut(again), Some(&mut 77));
    assert_eq!(flights.remove(*tickets.last().unwrap()), None);
}

#[rstest]
#[case::nothing(&[], 0)]
#[case::not_full(&["seven b"], 0)]
#[case::full(&["sixteen bytes ok"], 2)]
#[case::across_parts(&["twelve bytes", "four"], 2)]
#[case::more(&["twelve bytes", "fourteen bytes"], 3)]
fn full_blocks_are_hashed(#[case] parts: &[&str], #[case] expected: usize) {
    let shape = BlockShape { salt: 1, size: 8 };
    let blocks = shape.of_bytes(parts.iter().map(|part| part.as_bytes()));
    assert_eq!(blocks.len(), expected);
    let salted = BlockShape { salt: 2, ..shape }.of_bytes(parts.iter().map(|part| part.as_bytes()));
    assert!(blocks.iter().all(|block| !salted.contains(block)));
}

#[test]
fn blocks_are_bounded() {
    let shape = BlockShape { salt: 1, size: 2 };
    assert_eq!(shape.of_tokens(&vec![5; 10_000]).len(), BLOCKS_MAX);
    assert_eq!(shape.of_bytes([vec![5_u8; 10_000].as_slice()]).len(), BLOCKS_MAX);
    assert!(BlockShape { size: 0, ..shape }.of_tokens(&[1, 2, 3]).is_empty());
    assert!(BlockShape { size: 0, ..shape }.of_bytes([b"abc".as_slice()]).is_empty());
}

/// Gateways of different versions share engines: what a prompt's blocks are must not change unnoticed.
#[test]
fn hashes_are_these() {
    let shape = BlockShape { salt: 1, size: 4 };
    assert_eq!(shape.of_tokens(&[1, 2, 3, 4]), [0x4070_81d3_becc_6186]);
    assert_eq!(shape.of_bytes([b"abcd".as_slice(), b"efgh"]), [0x27da_f601_bbff_a6ce, 0x9d58_60c6_6beb_b1c5]);
}
