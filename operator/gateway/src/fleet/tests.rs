use std::sync::Arc;

use super::*;
use crate::catalogue::Target;
use crate::routing::{Cache, Cost, Peers};

fn replica(number: u16) -> Replica {
    Replica {
        version: "v1".into(),
        served_name: "llama".to_owned(),
        preset: spillway_crds::Preset::LlamaCpp,
        name: format!("engine-{number}").as_str().into(),
        engine: EngineId(number.into()),
        target: Target::Pod(([127, 0, 0, 1], number).into()),
    }
}

fn group(replicas: &[Replica]) -> Group {
    let group = Group::new(RoutingPolicy::PrefixAffinity, CONFIG);
    group.set(&Routing::default(), replicas, CONFIG);
    group
}

const CONFIG: Config = Config {
    cache: Cache::AtMost(4096),
    peers: Peers::None,
    cost: Cost { block_tokens: 512, attention_tokens: 40_000, decode_tokens: 1_600_000, step_milli: 100 },
    seed: 1,
};

const PROMPT: Prompt<'static> = Prompt { tokens: 100, blocks: &[] };

#[test]
fn who_fails_is_left_alone() {
    let (clock, group) = (Clock::default(), Arc::new(group(&[replica(1), replica(2)])));
    let (first, second) = (EngineId(1), EngineId(2));
    for _ in 0..3 {
        let flight = group.send(clock, &PROMPT, &[second]).unwrap();
        assert_eq!(flight.replica.engine, first);
        flight.end(None, Verdict::Failed);
    }
    for _ in 0..10 {
        let flight = group.send(clock, &PROMPT, &[]).unwrap();
        assert_eq!(flight.replica.engine, second);
        flight.end(None, Verdict::Worked);
    }
    let wait = group.send(clock, &PROMPT, &[second]).unwrap_err().unwrap();
    assert!((1..=1_000).contains(&wait), "{wait} ms");
    assert_eq!(group.send(clock, &PROMPT, &[first, second]).unwrap_err(), None, "nobody is left");
}

#[test]
fn engines_come_and_go_under_requests() {
    let (clock, group) = (Clock::default(), Arc::new(group(&[replica(1)])));
    let old = group.send(clock, &PROMPT, &[]).unwrap();
    group.set(&Routing::default(), &[replica(2)], CONFIG);
    let new = group.send(clock, &PROMPT, &[]).unwrap();
    assert_eq!(new.replica.engine, EngineId(2));
    old.token();
    old.end(None, Verdict::Failed);
    drop(new);
    group.set(&Routing::default(), &[], CONFIG);
    assert_eq!(group.send(clock, &PROMPT, &[]).unwrap_err(), None);
}

#[test]
fn an_endpoint_that_stays_keeps_what_is_known() {
    let config = Config { cache: Cache::AtMost(4096), peers: Peers::None, cost: Cost::default(), seed: 1 };
    let fleet = Fleet::new(config);
    let name: FullName = ("acme".into(), "chat".into());
    let mut catalogue = Catalogue::default();
    fleet.take(&catalogue);
    assert!(fleet.group(&name).is_none());
    let served = crate::catalogue::Served {
        namespace: "acme".into(),
        name: "chat".into(),
        tenant: "acme".into(),
        shared_with: Default::default(),
        model: "llama".into(),
        version: "v1".into(),
        served_name: "llama".to_owned(),
        capabilities: Default::default(),
        context_length: 1,
        created: 0,
        wanted: 1,
        kv_cache_target: None,
        absence: Default::default(),
        replicas: vec![replica(1)],
        routing: Routing::default(),
    };
    catalogue.endpoints.insert(name.clone(), Arc::new(served));
    fleet.take(&catalogue);
    let group = fleet.group(&name).unwrap();
    fleet.take(&catalogue);
    assert!(Arc::ptr_eq(&group, &fleet.group(&name).unwrap()));
    fleet.take(&Catalogue::default());
    assert!(fleet.group(&name).is_none());
}

/// Which of these engines get so many requests.
fn shares(group: &Arc<Group>, requests: usize) -> HashMap<u64, usize> {
    let mut shares = HashMap::new();
    for _ in 0..requests {
        if let Ok(flight) = group.send(Clock::default(), &PROMPT, &[]) {
            *shares.entry(flight.replica.engine.0).or_default() += 1;
            flight.end(None, Verdict::Worked);
        }
    }
    shares
}

#[test]
fn a_version_that_is_tried_gets_just_its_part() {
    let canary = |number| Replica { version: "v2".into(), ..replica(number) };
    let routing = |weight| Routing { canary: Some(("v2".into(), weight)), ..Routing::default() };
    let group = Arc::new(group(&[]));
    let set = |weight, replicas: &[Replica]| group.set(&routing(weight), replicas, CONFIG);
    set(10, &[replica(1), canary(2), canary(3)]);
    let got = shares(&group, 1_000);
    assert_eq!((got[&1], got.values().sum::<usize>()), (900, 1_000));
    // Where only one of the two answers it gets all.
    set(10, &[canary(2)]);
    assert_eq!(shares(&group, 10), HashMap::from([(2, 10)]));
    set(10, &[replica(1)]);
    assert_eq!(shares(&group, 10), HashMap::from([(1, 10)]));
    // One that was rolled back gets nothing, and waits for nobody to ask it.
    set(0, &[replica(1), canary(2)]);
    assert_eq!(shares(&group, 200), HashMap::from([(1, 200)]));
    set(0, &[canary(2)]);
    assert_eq!(shares(&group, 10), HashMap::new());
    // One that fails is left alone, and its part goes to the other.
    set(50, &[replica(1), canary(2)]);
    for _ in 0..3 {
        let flight = group.send(Clock::default(), &PROMPT, &[EngineId(1)]).unwrap();
        flight.end(None, Verdict::Failed);
    }
    assert_eq!(shares(&group, 50), HashMap::from([(1, 50)]));
    // And who was tried in vain is not asked twice for one request.
    let flight = group.send(Clock::default(), &PROMPT, &[EngineId(1)]);
    assert!(flight.is_err());
}

#[test]
fn another_policy_takes_over_with_what_is_there() {
    let group = Arc::new(group(&[replica(1), replica(2)]));
    let routing = Routing { policy: RoutingPolicy::RoundRobin, ..Routing::default() };
    group.set(&routing, &[replica(1), replica(2)], CONFIG);
    assert_eq!(shares(&group, 10), HashMap::from([(1, 5), (2, 5)]));
}
