use rstest::rstest;
use serde_json::{Value, json};

use super::*;

/// A cluster with one GPU node, a tenant's namespace `acme`, the owner's `house`, and infrastructure `gpu-operator`.
fn facts(more: impl FnOnce(&mut Facts)) -> Facts {
    let args = PreflightArgs {
        infrastructure_namespaces: None,
        schedulers: None,
        device_prefixes: None,
        grace_cap_seconds: None,
        operator_namespace: "spillway-system".to_owned(),
        tenant_namespaces: vec!["acme".to_owned()],
        owner_namespaces: vec!["house".to_owned()],
        fail_on: FailOn::Evicted,
    };
    let mut facts = Facts {
        values: merge(&args, &[], None),
        roles: roles(&[], &[], &args),
        version: read(json!({"major": "1", "minor": "36", "gitVersion": "v1.36.4", "buildDate": "", "compiler": "",
            "gitCommit": "", "gitTreeState": "", "goVersion": "", "platform": ""})),
        pods: vec![read(
            json!({"metadata": {"namespace": "kube-system", "name": "kube-apiserver-a"}, "spec": {"containers":
            [{"name": "a", "command": ["kube-apiserver", "--enable-admission-plugins=NodeRestriction"]}]}}),
        )],
        deployments: Vec::new(),
        statefulsets: Vec::new(),
        daemonsets: Vec::new(),
        jobs: Vec::new(),
        cronjobs: Vec::new(),
        priorities: Vec::new(),
        nodes: vec![read(json!({"metadata": {"name": "gpu-1"}, "status": {"capacity": {"nvidia.com/gpu": "8"}}}))],
        namespaces: Vec::new(),
        pools: Vec::new(),
        tenants: Vec::new(),
        ledger: false,
        webhooks: Vec::new(),
    };
    more(&mut facts);
    facts
}

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn found(facts: &Facts) -> Vec<String> {
    judge(facts).findings.iter().map(|one| format!("{:?} {} {}", one.severity, one.rule, one.object)).collect()
}

fn template(spec: &Value) -> Value {
    json!({"metadata": {}, "spec": spec})
}

fn workload<T: DeserializeOwned>(namespace: &str, spec: &Value) -> T {
    read(json!({"metadata": {"namespace": namespace, "name": "w"},
        "spec": {"selector": {}, "serviceName": "w", "template": template(spec)}}))
}

#[test]
fn an_empty_cluster_has_nothing_to_say() {
    assert_eq!(found(&facts(|_| {})), Vec::<String>::new());
}

#[rstest]
#[case::keyless("free", json!({"containers": [], "tolerations": [{"operator": "Exists"}]}), "Refused KeylessToleration")]
#[case::keyless_by_effect("house", json!({"containers": [], "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}]}), "Refused KeylessToleration")]
#[case::foreign_hold("acme", json!({"containers": [], "tolerations": [{"key": "spillway.dev/hold", "value": "x"}]}), "Refused HoldToleration")]
#[case::unsold_by_a_tenant("acme", json!({"containers": [], "tolerations": [{"key": "spillway.dev/hold", "value": "unsold"}]}), "Refused HoldToleration")]
#[case::exists_by_the_owner("house", json!({"containers": [], "tolerations": [{"key": "spillway.dev/hold", "operator": "Exists"}]}), "Refused HoldToleration")]
#[case::node_name("free", json!({"containers": [], "nodeName": "gpu-1"}), "Refused NodeName")]
#[case::no_grace("acme", json!({"containers": [], "terminationGracePeriodSeconds": 0}), "Refused GracePeriod")]
#[case::long_grace("acme", json!({"containers": [], "terminationGracePeriodSeconds": 121}), "Refused GracePeriod")]
#[case::system_priority("acme", json!({"containers": [], "priority": 2_000_000_000}), "Refused Priority")]
#[case::priority_without_devices("acme", json!({"containers": [], "priority": 1}), "Refused Priority")]
#[case::other_scheduler("free", json!({"containers": [], "schedulerName": "volcano"}), "Refused Scheduler")]
#[case::privileged("acme", json!({"containers": [{"name": "c", "securityContext": {"privileged": true}}]}), "Refused PodSecurity")]
#[case::host_path("acme", json!({"containers": [], "volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), "Refused PodSecurity")]
fn a_template_is_refused(#[case] namespace: &str, #[case] spec: Value, #[case] expected: &str) {
    let of = |kind: &str, change: &dyn Fn(&mut Facts)| {
        assert_eq!(found(&facts(|facts| change(facts))), [format!("{expected} {kind}/{namespace}/w")]);
    };
    of("Deployment", &|facts| facts.deployments.push(workload(namespace, &spec)));
    of("StatefulSet", &|facts| facts.statefulsets.push(workload(namespace, &spec)));
    of("DaemonSet", &|facts| facts.daemonsets.push(workload(namespace, &spec)));
    of("Job", &|facts| facts.jobs.push(workload(namespace, &spec)));
    of("CronJob", &|facts| {
        facts.cronjobs.push(read(json!({"metadata": {"namespace": namespace, "name": "w"},
            "spec": {"schedule": "@daily", "jobTemplate": {"spec": {"template": template(&spec)}}}})));
    });
}

#[rstest]
#[case::infrastructure("gpu-operator", json!({"containers": [], "tolerations": [{"operator": "Exists"}], "nodeName": "gpu-1"}))]
#[case::a_key_is_named("free", json!({"containers": [], "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}))]
#[case::the_owners_own("house", json!({"containers": [], "tolerations": [{"key": "spillway.dev/hold", "value": "unsold"}]}))]
#[case::grace_of_the_owner("house", json!({"containers": [], "terminationGracePeriodSeconds": 600}))]
#[case::a_fair_grace("acme", json!({"containers": [], "terminationGracePeriodSeconds": 120}))]
#[case::priority_with_devices("acme", json!({"priority": 5, "containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}))]
fn a_template_passes(#[case] namespace: &str, #[case] spec: Value) {
    assert_eq!(found(&facts(|facts| facts.deployments.push(workload(namespace, &spec)))), Vec::<String>::new());
}

#[test]
fn a_default_priority_counts() {
    let facts = facts(|facts| {
        facts.priorities.push(read(json!({"metadata": {"name": "usual"}, "value": 10, "globalDefault": true})));
        facts.deployments.push(workload("acme", &json!({"containers": []})));
    });
    assert_eq!(found(&facts), ["Refused Priority Deployment/acme/w"]);
}

#[rstest]
#[case::without(json!([]), true)]
#[case::one_effect_only(json!([{"key": "spillway.dev/hold", "operator": "Exists", "effect": "NoSchedule"}]), true)]
#[case::with(json!([{"key": "spillway.dev/hold", "operator": "Exists"}]), false)]
#[case::everything(json!([{"operator": "Exists"}]), false)]
fn infrastructure_needs_the_toleration(#[case] tolerations: Value, #[case] expected: bool) {
    let spec = json!({"containers": [], "tolerations": tolerations});
    let found = found(&facts(|facts| facts.daemonsets.push(workload("gpu-operator", &spec))));
    let evicted = vec!["Evicted InfrastructureWithoutToleration DaemonSet/gpu-operator/w".to_owned()];
    assert_eq!(found, if expected { evicted } else { Vec::new() });
}

#[rstest]
#[case::nobodys_with_devices("free", 1, false, Some("Evicted NobodysGpuPod ReplicaSet/free/rs"))]
#[case::nobodys_without("free", 0, false, Some("Evicted PodWithoutDevices ReplicaSet/free/rs"))]
#[case::the_owners_with_devices("house", 1, true, None)]
#[case::the_owners_without("house", 0, true, Some("Evicted PodWithoutDevices ReplicaSet/house/rs"))]
#[case::a_tenants_on_a_pool_node("acme", 1, true, Some("Evicted TenantPodOnPoolNode ReplicaSet/acme/rs"))]
#[case::infrastructure("gpu-operator", 0, true, None)]
fn pods_on_nodes_that_are_sold(
    #[case] namespace: &str,
    #[case] devices: u32,
    #[case] pool: bool,
    #[case] expected: Option<&str>,
) {
    let facts = facts(|facts| {
        if pool {
            facts.nodes[0].labels_mut().insert("spillway.dev/pool".to_owned(), "p".to_owned());
            facts.pools.push(crate::sample::pool("p", "h200", 8));
        }
        for name in ["a", "b"] {
            let mut pod = crate::sample::pod(namespace, name, "gpu-1", devices);
            if devices == 0 {
                pod.spec.as_mut().unwrap().containers[0].resources = None;
            }
            pod.metadata.owner_references =
                Some(vec![read(json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "u"}))]);
            facts.pods.push(pod);
        }
    });
    assert_eq!(found(&facts), expected.into_iter().map(str::to_owned).collect::<Vec<_>>());
}

#[test]
fn what_an_earlier_installation_left_is_found() {
    let left = |facts: &mut Facts| {
        facts.nodes.push(crate::sample::node("held", "p", "uid-acme", true));
        facts.pools.push(crate::sample::pool("p", "h200", 8));
        facts.namespaces.push(read(json!({"metadata": {"name": "gone", "labels": {"spillway.dev/role": "tenant"}}})));
        facts.nodes[1].status.as_mut().unwrap().capacity =
            Some([("nvidia.com/gpu".to_owned(), read(json!("8")))].into());
    };
    assert_eq!(
        found(&facts(left)),
        [
            "Refused HeldWithoutLedger Node/held",
            "Note NotInAPool Node/gpu-1",
            "Note StrayNamespaceLabels Namespace/gone"
        ]
    );
    let with_ledger = facts(|facts| {
        left(facts);
        facts.ledger = true;
    });
    assert_eq!(found(&with_ledger), ["Note NotInAPool Node/gpu-1"]);
}

#[test]
fn pools_and_tenants_that_do_not_fit_are_found() {
    let tenant = |name: &str, namespaces: Value| {
        read(
            json!({"apiVersion": "spillway.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": name}, "spec": {"namespaces": namespaces}}),
        )
    };
    let facts = facts(|facts| {
        facts.nodes[0].labels_mut().insert("spillway.dev/pool".to_owned(), "p".to_owned());
        facts.pools.push(crate::sample::pool("p", "h200", 4));
        facts.pools.push(crate::sample::pool("q", "h200", 8));
        facts.namespaces.push(read(json!({"metadata": {"name": "acme"}})));
        facts.tenants.push(tenant("one", json!(["acme", "missing"])));
        facts.tenants.push(tenant("two", json!(["acme", "gpu-operator"])));
    });
    assert_eq!(
        found(&facts),
        [
            "Refused TenantInInfrastructure Tenant/two",
            "Refused TwoTenants Namespace/acme",
            "Note DeviceCount Node/gpu-1",
            "Note NamespaceMissing Tenant/one",
            "Note NamespaceMissing Tenant/two",
            "Note PoolWithoutNodes GpuPool/q",
        ]
        .into_iter()
        .filter(|line| *line != "Note NamespaceMissing Tenant/two")
        .collect::<Vec<_>>()
    );
}

#[rstest]
#[case::old("1", "35+", true)]
#[case::oldest_that_will_do("1", "36", false)]
#[case::newer("2", "0", false)]
fn the_version_is_read(#[case] major: &str, #[case] minor: &str, #[case] refused: bool) {
    let facts = facts(|facts| {
        facts.version.major = major.to_owned();
        facts.version.minor = minor.to_owned();
    });
    assert_eq!(!found(&facts).is_empty(), refused);
}

#[test]
fn webhooks_and_plugins_are_seen() {
    let mutating: MutatingWebhookConfiguration = read(json!({"metadata": {"name": "istio"}, "webhooks": [
        {"name": "pods.istio", "clientConfig": {}, "sideEffects": "None", "admissionReviewVersions": [], "failurePolicy": "Fail",
         "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]},
        {"name": "apps.istio", "clientConfig": {}, "sideEffects": "None", "admissionReviewVersions": [],
         "rules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["*"]}]}]}));
    let validating: ValidatingWebhookConfiguration = read(json!({"metadata": {"name": "guard"}, "webhooks": [
        {"name": "all.guard", "clientConfig": {}, "sideEffects": "None", "admissionReviewVersions": [],
         "rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*"]}]}]}));
    let facts = facts(|facts| {
        facts.webhooks = server::webhooks(&[validating], &[mutating]);
        facts.pods.clear();
    });
    assert_eq!(
        found(&facts),
        [
            "Note NodeRestriction Cluster",
            "Note WebhookChangesPods MutatingWebhookConfiguration/istio",
            "Note WebhookFailsClosed ValidatingWebhookConfiguration/guard",
        ]
    );
}

#[rstest]
#[case(FailOn::Never, false)]
#[case(FailOn::Refused, false)]
#[case(FailOn::Evicted, true)]
#[case(FailOn::Note, true)]
fn the_exit_status_follows_the_worst(#[case] on: FailOn, #[case] fails: bool) {
    let answer = judge(&facts(|facts| facts.daemonsets.push(workload("gpu-operator", &json!({"containers": []})))));
    assert_eq!(answer.fails(on), fails);
}

#[test]
fn values_come_from_the_release() {
    let mut args = PreflightArgs {
        infrastructure_namespaces: None,
        schedulers: None,
        device_prefixes: None,
        grace_cap_seconds: None,
        operator_namespace: "sw".to_owned(),
        tenant_namespaces: Vec::new(),
        owner_namespaces: Vec::new(),
        fail_on: FailOn::Evicted,
    };
    let installed =
        ["--infrastructure-namespaces=monitoring,sw", "--device-prefixes=amd.com/", "--grace-cap-seconds=60"]
            .map(str::to_owned);
    let policy: ValidatingAdmissionPolicy = read(json!({"spec": {"validations": [
        {"expression": "request.userInfo.username in ['system:kube-scheduler', 'volcano']"}]}}));
    let values = merge(&args, &installed, Some(bound_by(&policy)));
    assert_eq!(values.infrastructure, ["kube-system", "monitoring", "sw"].map(str::to_owned).into());
    assert_eq!(values.schedulers, ["system:kube-scheduler", "volcano"]);
    assert_eq!((values.device_prefixes, values.grace_cap_seconds), (vec!["amd.com/".to_owned()], 60));
    args.grace_cap_seconds = Some(30);
    assert_eq!(merge(&args, &installed, None).grace_cap_seconds, 30);
}
