use std::sync::Arc;

use super::*;
use crate::routing::{Cache, Cost, Peers};

fn replica(number: u16) -> Replica {
    Replica {
        version: "v1".into(),
        served_name: "llama".to_owned(),
        preset: spillway_crds::Preset::LlamaCpp,
        name: format!("engine-{number}").as_str().into(),
        engine: EngineId(number.into()),
        address: ([127, 0, 0, 1], number).into(),
    }
}

fn group(replicas: &[Replica]) -> Group {
    let config = Config { cache: Cache::AtMost(4096), peers: Peers::None, cost: Cost::default(), seed: 1 };
    let group = Group::new(config);
    group.set_replicas(replicas);
    group
}

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
    group.set_replicas(&[replica(2)]);
    let new = group.send(clock, &PROMPT, &[]).unwrap();
    assert_eq!(new.replica.engine, EngineId(2));
    old.token();
    old.end(None, Verdict::Failed);
    drop(new);
    group.set_replicas(&[]);
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
    };
    catalogue.endpoints.insert(name.clone(), Arc::new(served));
    fleet.take(&catalogue);
    let group = fleet.group(&name).unwrap();
    fleet.take(&catalogue);
    assert!(Arc::ptr_eq(&group, &fleet.group(&name).unwrap()));
    fleet.take(&Catalogue::default());
    assert!(fleet.group(&name).is_none());
}
