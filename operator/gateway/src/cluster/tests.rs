use serde_json::{Value, json};

use super::*;
use crate::keys::{KeyError, mint};

fn object<K: DeserializeOwned>(value: Value) -> Arc<K> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn secret(number: u8) -> String {
    mint(KeyId::new(&[1; 5]), &[number; 32])
}

fn hash(number: u8) -> String {
    spillway_crds::key::PresentedKey::parse(&secret(number)).unwrap().hash().to_hex()
}

/// A cluster of one tenant with a key, and an endpoint with a replica.
fn objects() -> Objects {
    let id = KeyId::new(&[1; 5]);
    let record = json!({"uid": "k1", "namespace": "acme", "name": "ci", "secretName": "s", "issued": true,
        "hashes": [{"sha256": hash(1)}, {"sha256": hash(2), "expiresAtMs": 1_000}, {"sha256": "broken"}]});
    let shard = json!({"metadata": {"name": "keys-1", "namespace": "spillway-system"}, "data": {
        id.as_str(): k8s_openapi::ByteString(serde_json::to_vec(&record).unwrap()),
        "00000000": k8s_openapi::ByteString(b"no record".to_vec()),
    }});
    Objects {
        tenants: vec![object(
            json!({"apiVersion": "spillway.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": "acme"},
            "spec": {"namespaces": ["acme", "taken"], "limits": {"requestsPerMinute": 60}},
            "status": {"namespaces": [{"name": "acme", "holder": "h"}]}}),
        )],
        models: vec![object(
            json!({"apiVersion": "spillway.dev/v1alpha1", "kind": "Model", "metadata": {"name": "tiny"},
            "spec": {"capabilities": ["Chat"], "versions": [{"name": "v1", "contextLength": 2048,
                "runtime": {"preset": "LlamaCpp", "image": "llama"}, "needs": {"devices": 1, "cpu": "1", "memory": "1Gi"}}]}}),
        )],
        endpoints: vec![object(json!({"apiVersion": "spillway.dev/v1alpha1", "kind": "ModelEndpoint",
            "metadata": {"name": "chat", "namespace": "acme", "creationTimestamp": "2026-11-27T00:00:00Z"},
            "spec": {"model": {"name": "tiny", "version": "v1"}, "capacity": {"reservation": "r"}}}))],
        keys: vec![object(json!({"apiVersion": "spillway.dev/v1alpha1", "kind": "ApiKey",
            "metadata": {"name": "ci", "namespace": "acme", "uid": "k1"},
            "spec": {"secretName": "s", "models": ["chat"], "limits": {"concurrency": 4, "tokensPerMinute": 1000}}}))],
        shards: vec![object(shard)],
        slices: vec![object(slice(true))],
    }
}

fn slice(ready: bool) -> Value {
    json!({"addressType": "IPv4", "metadata": {"name": "chat-x", "namespace": "acme",
            "labels": {"kubernetes.io/service-name": "chat", "spillway.dev/endpoint": "chat"}},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.0.0.7"], "conditions": {"ready": ready},
            "targetRef": {"kind": "Pod", "name": "chat-v1-abc", "uid": "p1"}}]})
}

fn authenticate(objects: &Objects, number: u8) -> Result<(), KeyError> {
    build(objects).keys.authenticate(Some(&format!("Bearer {}", secret(number))), 500).map(drop)
}

#[test]
fn a_cluster_is_a_catalogue() {
    let catalogue = build(&objects());
    let key = catalogue.keys.authenticate(Some(&format!("Bearer {}", secret(1))), 500).unwrap();
    assert_eq!((key.tenant.as_str(), key.namespace.as_str()), ("acme", "acme"));
    assert_eq!((key.limits.concurrency, key.limits.tokens_per_minute), (Some(4), Some(1000)));
    assert_eq!(catalogue.limits(&key.tenant).requests_per_minute, Some(60));
    let served = catalogue.resolve(key, "chat").unwrap();
    assert_eq!((served.served_name.as_str(), served.context_length), ("tiny", 2048));
    assert!(served.capabilities.contains(&Endpoint::ChatCompletions) && served.capabilities.len() == 1);
    assert_eq!(served.replicas[0].target, Target::Pod("10.0.0.7:8080".parse().unwrap()));
    assert_eq!(served.replicas[0].name.as_str(), "chat-v1-abc");
    assert_eq!((served.replicas[0].preset, served.kv_cache_target), (Preset::LlamaCpp, None));
}

/// While one version takes the place of another each replica is known by its own.
#[test]
fn a_replica_is_of_the_version_that_its_host_says() {
    let mut objects = objects();
    let mut model = serde_json::to_value(&*objects.models[0]).unwrap();
    let mut next = model["spec"]["versions"][0].clone();
    next["name"] = json!("v1.1");
    next["runtime"] = json!({"preset": "OpenAi", "image": "mine", "port": 8080, "servedName": "mine/tiny"});
    model["spec"]["versions"].as_array_mut().unwrap().push(next);
    objects.models = vec![object(model)];
    let mut both = slice(true);
    let pod = |name: &str, address: &str, host: Value| {
        json!({"addresses": [address], "hostname": host, "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "name": name, "uid": name}})
    };
    both["endpoints"] = json!([
        pod("a", "10.0.0.1", json!("v1")),
        pod("b", "10.0.0.2", json!("v1-1")),
        pod("c", "10.0.0.3", json!(null)),
    ]);
    objects.slices = vec![object(both)];
    let catalogue = build(&objects);
    let served = catalogue.endpoints.values().next().unwrap();
    let mut found: Vec<_> =
        served.replicas.iter().map(|one| (one.name.as_str(), one.version.as_str(), one.served_name.as_str())).collect();
    found.sort_unstable();
    assert_eq!(found, [("a", "v1", "tiny"), ("b", "v1.1", "mine/tiny"), ("c", "v1", "tiny")]);
}

#[test]
fn a_key_is_worth_nothing_without_its_object() {
    assert_eq!(authenticate(&objects(), 1), Ok(()));
    assert_eq!(authenticate(&objects(), 2), Ok(()), "the secret before, in its overlap");
    assert_eq!(authenticate(&objects(), 3), Err(KeyError::Unknown));
    let mut gone = objects();
    gone.keys.clear();
    assert_eq!(authenticate(&gone, 1), Err(KeyError::Unknown));
    let change = |change: fn(&mut ApiKey)| {
        let mut objects = objects();
        let mut key = (*objects.keys[0]).clone();
        change(&mut key);
        objects.keys = vec![Arc::new(key)];
        authenticate(&objects, 1)
    };
    assert_eq!(change(|key| key.metadata.uid = Some("another".to_owned())), Err(KeyError::Unknown));
    assert_eq!(
        change(|key| key.metadata.deletion_timestamp = serde_json::from_value(json!("2026-11-27T00:00:00Z")).unwrap()),
        Err(KeyError::Unknown)
    );
    assert_eq!(change(|key| key.spec.revoked = true), Err(KeyError::Revoked));
    assert_eq!(change(|key| key.spec.expires_at = Some("1970-01-01T00:00:00Z".to_owned())), Err(KeyError::Expired));
    assert_eq!(change(|key| key.spec.expires_at = Some("some day".to_owned())), Err(KeyError::Expired));
    // A namespace that the tenant only asks for is not its own.
    assert_eq!(change(|key| key.metadata.namespace = Some("taken".to_owned())), Err(KeyError::Unknown));
}

#[test]
fn who_does_not_answer_is_no_replica() {
    let count = |slice: Value| {
        let mut objects = objects();
        objects.slices = vec![object(slice)];
        build(&objects).endpoints.values().map(|served| served.replicas.len()).sum::<usize>()
    };
    assert_eq!(count(slice(true)), 1);
    assert_eq!(count(slice(false)), 0);
    let mut other = slice(true);
    other["metadata"]["labels"]["kubernetes.io/service-name"] = json!("another");
    assert_eq!(count(other), 0, "a slice of another Service");
    let mut other = slice(true);
    other["metadata"]["namespace"] = json!("beta");
    assert_eq!(count(other), 0, "a slice of another namespace");
    let mut other = slice(true);
    other["ports"][0]["name"] = json!("admin");
    assert_eq!(count(other), 0, "another port");
}

/// Changes the endpoint, as JSON.
fn with_endpoint(change: impl FnOnce(&mut Value)) -> Objects {
    let mut objects = objects();
    let mut endpoint = serde_json::to_value(&*objects.endpoints[0]).unwrap();
    change(&mut endpoint);
    objects.endpoints = vec![object(endpoint)];
    objects
}

#[test]
fn a_canary_has_the_weight_that_the_operator_gives_it() {
    let canary = |versions: Value| {
        let objects = with_endpoint(|endpoint| {
            endpoint["spec"]["canary"] = json!({"version": "v2", "weight": 10});
            endpoint["status"] = json!({"versions": versions, "regions": ["us-east"]});
        });
        let served = build(&objects).endpoints.into_values().next().unwrap();
        assert_eq!(served.routing.regions, BTreeSet::from(["us-east".to_owned()]));
        served.routing.canary.clone().unwrap()
    };
    assert_eq!(canary(json!([{"version": "v1", "weight": 90}, {"version": "v2", "weight": 10}])), ("v2".into(), 10));
    assert_eq!(canary(json!([{"version": "v1", "weight": 100}, {"version": "v2", "weight": 0}])), ("v2".into(), 0));
    assert_eq!(canary(json!([])), ("v2".into(), 0), "nothing is known of it yet");
}

#[test]
fn a_provider_serves_for_owners_only() {
    let mut objects = with_endpoint(|endpoint| {
        let spec = endpoint["spec"].as_object_mut().unwrap();
        spec.remove("capacity");
        spec.insert(
            "external".to_owned(),
            json!({"url": "https://api.example.com/v1", "model": "big-1", "credentials": "big", "region": "eu-west"}),
        );
    });
    let served = |objects: &Objects| build(objects).endpoints.into_values().next().unwrap();
    // A tenant could send the gateway's credentials anywhere.
    assert_eq!(served(&objects).replicas, []);
    assert_eq!(served(&objects).absence, Absence::Stalled);
    let mut tenant = (*objects.tenants[0]).clone();
    tenant.spec.owner = true;
    objects.tenants = vec![Arc::new(tenant)];
    let served = served(&objects);
    let replica = &served.replicas[0];
    assert_eq!((replica.name.as_str(), replica.served_name.as_str()), ("provider/chat", "big-1"));
    let Target::Provider(provider) = &replica.target else { panic!("{replica:?}") };
    assert_eq!(
        (provider.base.to_string().as_str(), provider.credentials.as_deref()),
        ("https://api.example.com/v1", Some("big"))
    );
    assert_eq!(served.routing.regions, BTreeSet::from(["eu-west".to_owned()]));
}
