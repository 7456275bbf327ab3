use std::sync::Arc;

use super::*;
use crate::routing::{Cache, Cost, Peers};

fn replica(number: u16) -> Replica {
    Replica {
        name: format!("engine-{number}").as_str().into(),
        engine: EngineId(number.into()),
        address: ([127, 0, 0, 1], number).into(),
    }
}

fn group(replicas: &[Replica]) -> Group {
    let config = Config { cache: Cache::AtMost(4096), peers: Peers::None, cost: Cost::default(), seed: 1 };
    let group = Group(Mutex::new(State { strategy: PrefixAffinity::new(config), replicas: HashMap::new() }));
    group.set_replicas(replicas);
    group
}

const PROMPT: Prompt<'static> = Prompt { tokens: 100, blocks: &[] };
const SECOND: u64 = 1_000_000_000;

#[test]
fn who_fails_is_left_alone_and_tried_again() {
    let group = group(&[replica(1), replica(2)]);
    let first = EngineId(1);
    for _ in 0..3 {
        let flight = group.send(0, &PROMPT, &[EngineId(2)]).unwrap();
        assert_eq!(flight.replica.engine, first);
        group.ended(0, &flight, None, true);
    }
    for _ in 0..10 {
        let flight = group.send(0, &PROMPT, &[]).unwrap();
        assert_eq!(flight.replica.engine, EngineId(2));
        group.ended(0, &flight, None, false);
    }
    assert_eq!(group.send(0, &PROMPT, &[EngineId(2)]).unwrap_err(), Some(1_000));
    let trial = group.send(SECOND, &PROMPT, &[EngineId(2)]).unwrap();
    assert_eq!(group.send(SECOND, &PROMPT, &[EngineId(2)]).unwrap_err(), Some(1_000), "one trial at a time");
    group.ended(SECOND, &trial, None, false);
    assert!(group.send(SECOND, &PROMPT, &[EngineId(2)]).is_ok());
    assert_eq!(group.send(SECOND, &PROMPT, &[first, EngineId(2)]).unwrap_err(), None, "nobody is left");
}

#[test]
fn engines_come_and_go_under_requests() {
    let group = group(&[replica(1)]);
    let old = group.send(0, &PROMPT, &[]).unwrap();
    group.set_replicas(&[replica(2)]);
    let new = group.send(1, &PROMPT, &[]).unwrap();
    assert_eq!(new.replica.engine, EngineId(2));
    group.token(2, &old);
    group.ended(3, &old, None, true);
    group.ended(4, &new, None, false);
    group.set_replicas(&[]);
    assert_eq!(group.send(5, &PROMPT, &[]).unwrap_err(), None);
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
