use jiff::Timestamp;
use rstest::rstest;
use serde_json::{Value, json};
use spillway_crds::{ConditionStatus, Model, ModelEndpoint};

use super::*;

fn model(runtime: &Value, source: &Value) -> Model {
    serde_json::from_value(json!({
        "apiVersion": "spillway.dev/v1alpha1", "kind": "Model", "metadata": {"name": "smollm2"},
        "spec": {"capabilities": ["Chat"], "versions": [{
            "name": "q4.1", "runtime": runtime, "source": source, "contextLength": 2048,
            "needs": {"devices": 2, "cpu": "4", "memory": "8Gi", "startup": "3m"},
        }]},
    }))
    .unwrap()
}

fn endpoint(replicas: i32) -> ModelEndpoint {
    serde_json::from_value(json!({
        "apiVersion": "spillway.dev/v1alpha1", "kind": "ModelEndpoint",
        "metadata": {"name": "chat", "namespace": "acme", "uid": "e-1", "generation": 3},
        "spec": {"model": {"name": "smollm2", "version": "q4.1"}, "capacity": {"reservation": "base"}, "replicas": replicas},
    }))
    .unwrap()
}

fn serving<'a>(model: &'a Model, endpoint: &'a ModelEndpoint) -> Serving<'a> {
    Serving {
        endpoint,
        namespace: "acme",
        name: "chat",
        model: "smollm2",
        version: &model.spec.versions[0],
        runtime: model.spec.versions[0].runtime.as_ref().unwrap(),
        needs: model.spec.versions[0].needs.as_ref().unwrap(),
        reservation: &endpoint.spec.capacity.as_ref().unwrap().reservation,
        resource: "nvidia.com/gpu",
        pool: "h100",
        drain_seconds: 30,
    }
}

fn laid_out(runtime: &Value, source: &Value) -> Value {
    let (model, endpoint) = (model(runtime, source), endpoint(2));
    build_deployment(&serving(&model, &endpoint), Place::Named(2))
}

#[rstest]
#[case::llama_cpp("llama-cpp", json!({"preset": "LlamaCpp", "image": "llama:1"}), json!({"path": "/weights/q4.gguf"}))]
#[case::vllm("vllm", json!({"preset": "Vllm", "image": "vllm:1", "args": ["--enforce-eager"]}), json!({"claim": {"name": "weights", "path": "smollm2"}}))]
#[case::vllm_registry("vllm-registry", json!({"preset": "Vllm", "image": "vllm:1"}), json!({"registry": "HuggingFaceTB/SmolLM2-135M-Instruct"}))]
#[case::any("any", json!({"preset": "OpenAi", "image": "mine:1", "port": 9000, "servedName": "m", "args": ["serve"]}), json!({"image": {"name": "weights:1", "path": "m.bin"}}))]
fn deployment(#[case] name: &str, #[case] runtime: Value, #[case] source: Value) {
    insta::assert_yaml_snapshot!(name, laid_out(&runtime, &source));
}

#[test]
fn what_an_engine_keeps_is_on_the_claim_that_is_named() {
    let mut model = model(&json!({"preset": "Vllm", "image": "vllm:1"}), &json!({"registry": "m/m"}));
    model.spec.versions[0].cache = Some(spillway_crds::Cache { claim: "engine-cache".to_owned() });
    let endpoint = endpoint(1);
    let deployment = build_deployment(&serving(&model, &endpoint), Place::Named(1));
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["env"], json!([{"name": "HOME", "value": "/cache"}]));
    let mount = json!({"name": "cache", "mountPath": "/cache"});
    assert!(container["volumeMounts"].as_array().unwrap().contains(&mount), "{container}");
    let volume = json!({"name": "cache", "persistentVolumeClaim": {"claimName": "engine-cache"}});
    assert!(pod["volumes"].as_array().unwrap().contains(&volume), "{pod}");
    assert_eq!(pod["securityContext"]["fsGroup"], 65_532, "an image's user could not write there");
    // Without one all of it goes with the pod.
    let plain = laid_out(&json!({"preset": "Vllm", "image": "vllm:1"}), &json!({"registry": "m/m"}));
    assert_eq!(plain.pointer("/spec/template/spec/containers/0/env/0/value").unwrap(), "/tmp");
}

#[test]
fn only_gateways_reach_an_engine_and_a_drain_takes_one_at_a_time() {
    let (model, endpoint) =
        (model(&json!({"preset": "LlamaCpp", "image": "llama:1"}), &json!({"path": "/m"})), endpoint(2));
    let serving = serving(&model, &endpoint);
    insta::assert_yaml_snapshot!("network-policy", build_network_policy(&serving, "spillway-system"));
    insta::assert_yaml_snapshot!("disruption-budget", build_disruption_budget(&serving));
}

#[test]
fn the_selector_of_a_deployment_finds_its_pods_and_no_other_versions() {
    let deployment = laid_out(&json!({"preset": "LlamaCpp", "image": "llama:1"}), &json!({"path": "/m"}));
    let (wanted, labels) =
        (&deployment["spec"]["selector"]["matchLabels"], &deployment["spec"]["template"]["metadata"]["labels"]);
    for (key, value) in wanted.as_object().unwrap() {
        assert_eq!(labels[key], *value, "{key}");
    }
    assert_eq!(wanted["spillway.dev/version"], "q4.1");
    assert_eq!(labels["spillway.dev/reservation"], "base");
}

#[rstest]
#[case::serving(2, facts((2, 2), 2), "Serving", [true, false, false])]
#[case::starting(2, facts((2, 1), 2), "ReplicasStarting", [true, true, false])]
#[case::none_answers_yet(2, facts((2, 0), 2), "ReplicasStarting", [false, true, false])]
#[case::less_is_held(2, facts((1, 1), 1), "CapacityMissing", [true, true, false])]
#[case::asleep(0, facts((0, 0), 2), "ScaledToZero", [true, false, false])]
#[case::falling_asleep(0, facts((1, 1), 2), "ScaledToZero", [true, true, false])]
#[case::no_model(2, Facts { problem: Some(("ModelNotFound", "There is none.".into())), ..Facts::default() }, "ModelNotFound", [false, false, true])]
fn status(#[case] replicas: i32, #[case] facts: Facts, #[case] reason: &str, #[case] expected: [bool; 3]) {
    let status = build_status(&endpoint(replicas), &facts, Timestamp::UNIX_EPOCH);
    let holds = |type_: &str| {
        let found = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
        assert_eq!(found.reason, reason);
        found.status == ConditionStatus::True
    };
    assert_eq!([holds("Ready"), holds("Reconciling"), holds("Stalled")], expected);
    assert_eq!(status.selector.as_deref(), Some("spillway.dev/endpoint=chat"));
    assert_eq!(status.address.as_deref(), Some("chat.acme.svc:80"));
}

#[test]
fn a_burst_replica_has_a_reservation_and_a_deployment_of_its_own() {
    let model = model(&json!({"preset": "LlamaCpp", "image": "llama:1"}), &json!({"path": "/m"}));
    let endpoint = endpoint(2);
    let serving = serving(&model, &endpoint);
    insta::assert_yaml_snapshot!("burst", build_burst(&serving, 3));
    let deployment = build_deployment(&serving, Place::Burst(3));
    assert_eq!(deployment["metadata"]["name"], "chat-q4-1-burst-3");
    assert_eq!(deployment["spec"]["replicas"], 1);
    for labels in ["/spec/selector/matchLabels", "/spec/template/metadata/labels", "/metadata/labels"] {
        assert_eq!(deployment.pointer(labels).unwrap()["spillway.dev/reservation"], "chat-burst-3", "{labels}");
    }
    // Those on the named reservation are not told apart by it: what it is called may change.
    let named = build_deployment(&serving, Place::Named(2));
    assert_eq!(named["spec"]["selector"]["matchLabels"]["spillway.dev/reservation"], Value::Null);
}

fn scaling(endpoint: ModelEndpoint, scaling: &Value) -> ModelEndpoint {
    let mut endpoint = endpoint;
    endpoint.spec.scaling = Some(serde_json::from_value(scaling.clone()).unwrap());
    endpoint
}

#[test]
fn an_endpoint_that_scales_has_an_autoscaler() {
    let model = model(&json!({"preset": "LlamaCpp", "image": "llama:1"}), &json!({"path": "/m"}));
    let plain = endpoint(2);
    assert_eq!(build_autoscaler(&serving(&model, &plain)), None);
    let target = json!({"inFlightPerReplica": 4, "tokensPerSecondPerReplica": 500, "kvCachePercentPerReplica": 80});
    let scales = scaling(endpoint(0), &json!({"min": 0, "max": 8, "target": target, "scaleDownAfter": "90s"}));
    insta::assert_yaml_snapshot!("autoscaler", build_autoscaler(&serving(&model, &scales)).unwrap());
    let default = scaling(endpoint(0), &json!({"max": 8}));
    let autoscaler = build_autoscaler(&serving(&model, &default)).unwrap();
    assert_eq!(autoscaler["spec"]["minReplicas"], 1);
    assert_eq!(autoscaler["spec"]["metrics"].as_array().map(Vec::len), Some(1));
    assert_eq!(autoscaler["spec"]["metrics"][0]["external"]["target"]["averageValue"], "16");
    assert_eq!(autoscaler["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"], 300);
}

#[test]
fn whether_replicas_follow_is_told_and_kept_while_it_is_not_known() {
    let told = |endpoint: &ModelEndpoint, autoscaling| {
        let facts = Facts { autoscaling, ..facts((0, 0), 2) };
        let status = build_status(endpoint, &facts, Timestamp::UNIX_EPOCH);
        let found = status.conditions.iter().find(|one| one.type_ == "Autoscaling").cloned();
        (status, found.map(|one| (one.status == ConditionStatus::True, one.reason)))
    };
    let plain = endpoint(0);
    assert_eq!(told(&plain, Some((true, "FollowsLoad", String::new()))).1, None);
    let mut scales = scaling(endpoint(0), &json!({"min": 0, "max": 8}));
    assert_eq!(told(&scales, None).1, None);
    let (status, found) = told(&scales, Some((false, "AnotherAdapter", "another".to_owned())));
    assert_eq!(found, Some((false, "AnotherAdapter".to_owned())));
    assert!(status.conditions.iter().any(|one| one.type_ == "Ready" && one.reason == ASLEEP));
    scales.status = Some(status);
    assert_eq!(told(&scales, None).1, Some((false, "AnotherAdapter".to_owned())));
    // It is still asleep, and not stopped, when it may not sleep any more.
    scales.spec.scaling = None;
    let (status, _) = told(&scales, None);
    assert!(status.asleep && status.conditions.iter().any(|one| one.type_ == "Ready" && one.reason == ASLEEP));
    // Nor while it could not be started.
    let problem = Some(("NoCapacity", "none".to_owned()));
    scales.status = Some(build_status(&scales, &Facts { problem, ..Facts::default() }, Timestamp::UNIX_EPOCH));
    assert!(told(&scales, None).0.asleep);
    scales.spec.replicas = 1;
    assert!(!told(&scales, None).0.asleep);
}

#[test]
fn what_keeps_replicas_from_starting_is_said() {
    let waiting = Some("Pod chat-1 requests more CPU than is left: request less.".to_owned());
    let message = |replicas| {
        let facts = Facts { waiting: waiting.clone(), ..facts(replicas, 2) };
        let status = build_status(&endpoint(2), &facts, Timestamp::UNIX_EPOCH);
        status.conditions.into_iter().find(|one| one.type_ == "Ready").unwrap().message
    };
    assert_eq!(message((2, 1)), "1 of 2 replicas answer. Pod chat-1 requests more CPU than is left: request less.");
    assert_eq!(message((2, 2)), "2 of 2 replicas answer.");
}

fn facts(replicas: (i32, i32), bookable: i32) -> Facts {
    Facts { replicas, bookable, ..Facts::default() }
}

#[test]
fn a_version_that_is_missing_is_named_with_those_that_are_there() {
    let model = model(&json!({"preset": "LlamaCpp", "image": "llama:1"}), &json!({"path": "/m"}));
    let (reason, message) = find_version(&model, "q8").unwrap_err();
    assert_eq!(reason, "VersionNotFound");
    assert_eq!(message, "Model smollm2 has no version q8: set spec.model.version to one of q4.1.");
}
