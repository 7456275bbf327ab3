use rstest::rstest;
use spillway_metering::load::{ReplicaCache, VersionLoad};
use spillway_metering::tokens::GatewayName;

use super::*;

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number], 8080))
}

fn named(numbers: &[(u8, bool)]) -> Vec<Address> {
    numbers.iter().map(|&(number, ready)| Address { address: address(number), ready }).collect()
}

fn chat() -> FullName {
    ("acme".into(), "chat".into())
}

fn load(in_flight: u64, held: u64, idle_ms: u64, tokens: u64) -> EndpointLoad {
    let (namespace, endpoint) = chat();
    EndpointLoad { namespace, endpoint, in_flight, queued: held, held, idle_ms, tokens, versions: Vec::new() }
}

fn report(up_ms: u64, endpoints: Vec<EndpointLoad>) -> LoadReport {
    LoadReport { gateway: GatewayName::from("gateway"), up_ms, calls: 0, endpoints, caches: Vec::new() }
}

#[test]
fn sums_are_over_gateways_that_were_heard() {
    let mut loads = Loads::default();
    assert_eq!(loads.in_flight(&chat(), 0), Err(Unknown::NoGateway));
    loads.set_gateways(&named(&[(1, true), (2, true)]), 0);
    loads.note(address(1), report(60_000, vec![load(3, 1, 0, 0)]), 0);
    assert_eq!(loads.in_flight(&chat(), 2_000), Err(Unknown::Silent { address: address(2), seconds: 2 }));
    loads.note(address(2), report(50_000, vec![]), 1_000);
    assert_eq!(loads.in_flight(&chat(), 2_000), Ok(3));
    assert_eq!(loads.queued(&chat(), 2_000), Ok(1));
    assert_eq!(loads.in_flight(&("acme".into(), "another".into()), 2_000), Ok(0));
    // Neither is heard for a while.
    assert!(matches!(loads.in_flight(&chat(), 6_001), Err(Unknown::Silent { .. })));
    // Who is not Ready counts as long as it is heard, and is not waited for where it had nothing.
    loads.set_gateways(&named(&[(1, true), (2, false)]), 6_000);
    loads.note(address(1), report(66_000, vec![load(4, 0, 0, 0)]), 6_000);
    assert_eq!(loads.in_flight(&chat(), 7_000), Ok(4));
    loads.note(address(2), report(56_000, vec![load(5, 0, 0, 0)]), 7_000);
    assert_eq!(loads.in_flight(&chat(), 7_000), Ok(9));
}

#[test]
fn a_gateway_that_goes_while_it_is_busy_is_missed() {
    let mut loads = Loads::default();
    loads.set_gateways(&named(&[(1, true), (2, true)]), 0);
    loads.note(address(2), report(0, vec![load(1, 0, 0, 0)]), 0);
    loads.set_gateways(&named(&[(1, true)]), 1_000);
    for now_ms in [1_000, 60_000, 119_000] {
        loads.note(address(1), report(now_ms, vec![]), now_ms);
        let known = loads.idle_ms(&chat(), now_ms);
        // Just after it was heard it is known to be busy, later nothing is.
        assert!(if now_ms == 1_000 { known == Ok(0) } else { known.is_err() }, "{known:?} at {now_ms}");
    }
    // Of another endpoint all is known all the time.
    loads.note(address(1), report(119_500, vec![]), 119_500);
    assert_eq!(loads.in_flight(&("acme".into(), "another".into()), 119_500), Ok(0));
    loads.note(address(1), report(121_000, vec![]), 121_000);
    assert_eq!(loads.idle_ms(&chat(), 121_000), Ok(121_000));
    // And forgotten with the next change.
    loads.set_gateways(&named(&[(1, true)]), 121_000);
    assert_eq!(loads.gateways.len(), 1);
    // One that was idle is not missed at all.
    loads.set_gateways(&[], 121_000);
    assert!(loads.gateways.is_empty());
}

#[test]
fn an_endpoint_is_idle_for_as_long_as_all_say() {
    let mut loads = Loads::default();
    loads.set_gateways(&named(&[(1, true), (2, true)]), 0);
    loads.note(address(1), report(500_000, vec![load(0, 0, 400_000, 9)]), 0);
    loads.note(address(2), report(300_000, vec![]), 0);
    // The second began a while ago, and has had no request since.
    assert_eq!(loads.idle_ms(&chat(), 0), Ok(300_000));
    loads.note(address(1), report(501_000, vec![load(1, 0, 0, 9)]), 0);
    assert_eq!(loads.idle_ms(&chat(), 0), Ok(0));
}

#[test]
fn who_waits_is_heard_though_another_gateway_is_silent() {
    let mut loads = Loads::default();
    loads.set_gateways(&named(&[(1, true), (2, true)]), 0);
    assert!(!loads.is_held(&chat(), 0));
    loads.note(address(1), report(0, vec![load(1, 1, 0, 0)]), 0);
    assert!(loads.is_held(&chat(), 5_000));
    assert!(!loads.is_held(&chat(), 5_001));
}

#[test]
fn a_rate_is_known_when_it_was_counted_for_long_enough() {
    let mut loads = Loads::default();
    loads.set_gateways(&named(&[(1, true)]), 0);
    for second in 0..=60_u64 {
        loads.note(address(1), report(second * 1_000, vec![load(1, 0, 0, second * 20)]), second * 1_000);
        let rate = loads.milli_tokens_per_second(&chat(), second * 1_000);
        if second < 25 {
            assert_eq!(rate, Err(Unknown::Young { known_ms: second * 1_000 }));
        } else {
            assert_eq!(rate, Ok(20_000), "after {second} s");
        }
    }
    assert!(loads.gateways[&address(1)].tokens.len() <= 32);
    // It begins anew: what it counted before is not taken from what it counts now.
    loads.note(address(1), report(10, vec![load(1, 0, 0, 5)]), 61_000);
    assert_eq!(loads.milli_tokens_per_second(&chat(), 61_000), Err(Unknown::Young { known_ms: 0 }));
}

fn outcomes(answered: u64, failed: u64) -> EndpointLoad {
    let versions = vec![VersionLoad { version: "q8".into(), answered, failed }];
    EndpointLoad { versions, ..load(0, 0, 0, 0) }
}

#[test]
fn outcomes_are_counted_from_when_a_gateway_is_first_heard_and_on_when_it_begins_anew() {
    let mut loads = Loads::default();
    let of = |loads: &Loads| {
        let (found, others) = loads.outcomes(&chat(), &"q8".into());
        assert_eq!(loads.outcomes(&chat(), &"q4".into()), (others, found));
        (found.answered, found.failed)
    };
    loads.set_gateways(&named(&[(1, true), (2, true)]), 0);
    loads.note(address(1), report(60_000, vec![outcomes(1_000, 900)]), 0);
    assert_eq!(of(&loads), (0, 0), "what was before it was heard");
    loads.note(address(1), report(61_000, vec![outcomes(1_010, 901)]), 1_000);
    assert_eq!(of(&loads), (10, 1));
    loads.note(address(2), report(0, vec![]), 1_000);
    loads.note(address(2), report(1_000, vec![outcomes(5, 0)]), 2_000);
    assert_eq!(of(&loads), (15, 1));
    loads.note(address(1), report(500, vec![outcomes(3, 1)]), 3_000);
    assert_eq!(of(&loads), (18, 2), "it began anew");
    loads.retain_outcomes(|_| false);
    assert_eq!(of(&loads), (0, 0));
}

fn used(percent: u32, age_ms: u64) -> CacheReading {
    CacheReading::Used { millionths: percent * 10_000, age_ms }
}

/// What a gateway has read of the caches of `chat`, of which 80 % are to be in use.
fn read(wanted: u32, replicas: &[(&str, CacheReading)]) -> LoadReport {
    let (namespace, endpoint) = chat();
    let replica = |(name, reading): &(&str, CacheReading)| ReplicaCache { replica: (*name).into(), reading: *reading };
    let replicas = replicas.iter().map(replica).collect();
    let caches = vec![EndpointCaches { namespace, endpoint, wanted, target_percent: 80, replicas }];
    LoadReport { caches, ..report(60_000, vec![]) }
}

/// Replicas that an HPA makes of a sum: `ceil(sum / target)`.
fn replicas(sum: u64) -> u64 {
    sum.div_ceil(80_000)
}

#[test]
fn each_cache_counts_once_however_many_gateways_read_it() {
    let mut loads = Loads::default();
    loads.set_gateways(&named(&[(1, true), (2, true)]), 0);
    loads.note(address(1), read(2, &[("a", used(50, 4_000)), ("b", used(70, 0))]), 0);
    loads.note(address(2), read(2, &[("a", used(60, 1_000)), ("b", CacheReading::Unknown(CacheUnknown::NoAnswer))]), 0);
    // The later reading of the one, and the only one of the other.
    assert_eq!(loads.kv_cache_milli_percent(&chat(), 1_000), Ok(130_000));
    // Of an endpoint that nobody reads nothing is known.
    assert_eq!(loads.kv_cache_milli_percent(&("acme".into(), "another".into()), 0), Err(Unknown::NoCaches));
    // Nor while a gateway is silent.
    assert!(matches!(loads.kv_cache_milli_percent(&chat(), 6_000), Err(Unknown::Silent { .. })));
}

#[test]
fn a_cache_that_is_not_known_makes_the_sum_unknown() {
    let mut loads = Loads::default();
    loads.set_gateways(&named(&[(1, true)]), 0);
    loads.note(address(1), read(2, &[("a", used(50, 0)), ("b", CacheReading::Unknown(CacheUnknown::NotExported))]), 0);
    let unknown = Unknown::Cache { replica: "b".into(), why: CacheUnknown::NotExported };
    assert_eq!(loads.kv_cache_milli_percent(&chat(), 0), Err(unknown));
    // What was read counts for a while, also while it is told.
    loads.note(address(1), read(1, &[("a", used(50, 11_000))]), 0);
    assert_eq!(loads.kv_cache_milli_percent(&chat(), 4_000), Ok(50_000));
    let stale = Unknown::StaleCache { replica: "a".into(), seconds: 15 };
    assert_eq!(loads.kv_cache_milli_percent(&chat(), 4_001), Err(stale));
}

#[rstest]
#[case::full_ones_grow(2, &[100, 100], 3)]
#[case::one_that_starts_makes_no_more_of_them(3, &[100, 100], 3)]
#[case::nor_do_two(4, &[90, 90], 4)]
#[case::and_none_is_taken_away_for_it(4, &[100, 100], 4)]
#[case::but_for_what_is_idle(4, &[10, 10], 3)]
#[case::from_none(1, &[], 1)]
#[case::of_a_version_that_goes_too(1, &[30, 30], 1)]
#[case::asleep(0, &[], 0)]
fn replicas_that_do_not_answer_move_nothing(#[case] wanted: u32, #[case] percent: &[u32], #[case] expected: u64) {
    let mut loads = Loads::default();
    loads.set_gateways(&named(&[(1, true)]), 0);
    let names = ["a", "b", "c"];
    let all: Vec<(&str, CacheReading)> = names.into_iter().zip(percent.iter().map(|one| used(*one, 0))).collect();
    loads.note(address(1), read(wanted, &all), 0);
    assert_eq!(loads.kv_cache_milli_percent(&chat(), 0).map(replicas), Ok(expected));
}
