//! The Helm chart: what it refuses, and its life from a dry run to a reinstall, on a bare API server.

#![allow(clippy::indexing_slicing, reason = "a field that a JSON value lacks reads as null")]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use spillway_lab::{Lab, LabOptions, Size};
use tonic::codegen::http::Request;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/spillway");
const NAMESPACE: &str = "spillway-system";
const CRDS: [&str; 6] =
    ["capacityledgerpages", "capacityledgers", "gpunodes", "gpupools", "gpureservations", "tenants"];
const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const LEDGER: &str = "/apis/spillway.dev/v1alpha1/capacityledgers";

async fn helm(lab: &Lab, verb: &[&str], more: &[&str]) -> Result<String> {
    let mut args = verb.to_vec();
    args.extend(["-n", NAMESPACE]);
    args.extend(more);
    lab.helm(&args).await
}

async fn read(lab: &Lab, path: &str) -> Result<Value> {
    let request = Request::get(path).body(Vec::new()).context("a request")?;
    lab.client()?.request(request).await.with_context(|| format!("reading {path}"))
}

/// The names of a list.
async fn names(lab: &Lab, path: &str) -> Result<Vec<String>> {
    let list = read(lab, path).await?;
    let items = list["items"].as_array().with_context(|| format!("a list at {path}"))?;
    let mut names: Vec<String> =
        items.iter().filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned)).collect();
    names.sort();
    Ok(names)
}

/// Whether somebody without special rights in our policies may label a namespace as a tenant's.
async fn policies_are_in_force(lab: &Lab) -> Result<bool> {
    let body = json!({"metadata": {"labels": {"spillway.dev/role": "owner"}}}).to_string().into_bytes();
    let request = Request::patch("/api/v1/namespaces/default?dryRun=All")
        .header("content-type", "application/merge-patch+json")
        .body(body)
        .context("a request")?;
    Ok(match lab.client()?.request::<Value>(request).await {
        Ok(_) => false,
        Err(kube::Error::Api(status)) if status.message.contains("list the namespace in a Tenant") => true,
        Err(error) => return Err(error).context("probing the policies"),
    })
}

async fn wait_for_policies(lab: &Lab, in_force: bool) -> Result<()> {
    let what = if in_force { "the policies to be in force" } else { "the policies to be gone" };
    lab.wait_for(what, Duration::from_secs(20), || async { Ok(policies_are_in_force(lab).await? == in_force) }).await
}

/// Makes the ledger as who breaks the glass: no operator runs here.
async fn make_ledger(lab: &Lab) -> Result<String> {
    let root = json!({
        "apiVersion": "spillway.dev/v1alpha1", "kind": "CapacityLedger", "metadata": {"name": "cluster"},
        "spec": {"format": 1, "generation": 7, "epoch": 0, "committedAt": 1, "pools": []},
    });
    let client = lab.client_as("lab:admin", &["system:masters", "spillway:break-glass"], &[])?;
    let request = Request::post(LEDGER)
        .header("content-type", "application/json")
        .body(root.to_string().into_bytes())
        .context("a request")?;
    let made: Value = client.request(request).await.context("making the ledger")?;
    Ok(made["metadata"]["uid"].as_str().context("its UID")?.to_owned())
}

/// What is wrong with values, and what is said about it.
const REFUSED_VALUES: [(&str, &str); 15] = [
    ("graceCapSeconds=0", "graceCapSeconds"),
    ("graceCapSeconds=soon", "graceCapSeconds"),
    ("graceCapSeconds=3601", "graceCapSeconds"),
    ("devicePrefixes={nvidia.com}", "devicePrefixes"),
    ("devicePrefixes=null", "devicePrefixes"),
    ("schedulers={it's}", "schedulers"),
    ("schedulers=null", "schedulers"),
    ("breakGlassGroup=system:masters", "breakGlassGroup"),
    ("breakGlassGroup=it's", "breakGlassGroup"),
    ("infrastructureNamespaces={Bad_Name}", "infrastructureNamespaces"),
    ("agent.criSocket=/containerd.sock", "criSocket"),
    ("image.operator.pullPolicy=Sometimes", "pullPolicy"),
    ("operator.replicaCount=3", "replicaCount"),
    ("gateway.otlp.endpoint=https://collector:4318", "otlp/endpoint"),
    ("nonsense=1", "nonsense"),
];

#[tokio::test]
async fn helm_lints_and_refuses_what_would_not_work() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let lint = helm(&lab, &["lint", "--strict", CHART], &[]).await?;
    ensure!(lint.contains("0 chart(s) failed") && !lint.contains("[WARNING]"), "{lint}");

    let mut wrong = Vec::new();
    wrong.extend(monitoring(&lab).await?);
    wrong.extend(metrics_api(&lab).await?);
    wrong.extend(client_tls(&lab).await?);
    wrong.extend(collector(&lab).await?);
    wrong.extend(usage_tls(&lab).await?);
    wrong.extend(postgres_ca(&lab).await?);
    wrong.extend(usage_replicas(&lab).await?);
    for (set, text) in REFUSED_VALUES {
        match helm(&lab, &["template", "spillway", CHART], &["--set", set]).await {
            Ok(_) => wrong.push(format!("{set} was taken")),
            Err(error) if format!("{error:#}").contains(text) => {}
            Err(error) => wrong.push(format!("{set}: expected {text}, got {error:#}")),
        }
    }
    for (args, text) in [
        (vec!["-n", "default"], "Spillway needs a namespace of its own"),
        (vec!["-n", "kube-system"], "Spillway needs a namespace of its own"),
        (
            vec!["-n", NAMESPACE, "--kube-version", "1.35.3"],
            "kubeVersion: >=1.36.0-0 which is incompatible with Kubernetes v1.35.3",
        ),
    ] {
        let all = [vec!["template", "spillway", CHART], args.clone()].concat();
        match lab.helm(&all).await {
            Ok(_) => wrong.push(format!("{args:?} was taken")),
            Err(error) if format!("{error:#}").contains(text) => {}
            Err(error) => wrong.push(format!("{args:?}: expected {text}, got {error:#}")),
        }
    }
    lab.stop()?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The metrics API is registered only where somebody is behind it: a dead one stops the deletion of every namespace.
async fn metrics_api(lab: &Lab) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (set, expected) in [
        ("gateway.enabled=true", true),
        ("gateway.enabled=false", false),
        ("gateway.enabled=true,autoscaling.externalMetrics=false", false),
        ("gateway.enabled=true,operator.replicas=0", false),
        ("gateway.enabled=true,policies.enforce=false", false),
    ] {
        let text = helm(lab, &["template", "spillway", CHART], &["--set", set]).await?;
        let all = ["kind: APIService", "--metrics-api=", "name: spillway-operator-authentication-reader"];
        if !all.iter().all(|part| text.contains(part) == expected) {
            wrong.push(format!("{set}: the metrics API is not as it should be"));
        }
    }
    Ok(wrong)
}

/// With a Secret clients come by TLS, and with another providers get their keys, whatever the log is on.
async fn client_tls(lab: &Lab) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for kind in ["Volume", "Scratch"] {
        let set = format!(
            "gateway.enabled=true,gateway.tls.secretName=front,gateway.providers.secretName=keys,gateway.storage.kind={kind}"
        );
        let text = helm(lab, &["template", "spillway", CHART], &["--set", &set]).await?;
        let find = |kind: &str| -> Result<Value> {
            let all = text.split("\n---\n").map(serde_yaml::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
            let named = |one: &Value| one["kind"] == kind && one["metadata"]["name"] == "spillway-gateway";
            all.into_iter().find(named).with_context(|| format!("no {kind} of the gateway"))
        };
        let pod = find("StatefulSet")?["spec"]["template"]["spec"].clone();
        let args = pod["containers"][0]["args"].to_string();
        let mounts =
            |name: &str| pod["volumes"].as_array().into_iter().flatten().any(|one| one["secret"]["secretName"] == name);
        let secret = mounts("front") && mounts("keys") && args.contains("--providers=/etc/spillway-gateway/providers");
        let port = find("Service")?["spec"]["ports"][0]["port"].clone();
        if !args.contains("--tls-certificate=/etc/spillway-gateway/tls/tls.crt") || !secret || port != 443 {
            wrong.push(format!("{kind}: {args}, port {port}, {}", pod["volumes"]));
        }
    }
    Ok(wrong)
}

/// A collector is told of requests where one is named.
async fn collector(lab: &Lab) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (set, expected) in [
        ("gateway.enabled=true", None),
        ("gateway.enabled=true,gateway.otlp.endpoint=http://collector.monitoring:4318", Some("\"1\"")),
        ("gateway.enabled=true,gateway.otlp.endpoint=http://collector:4318,gateway.otlp.ratio=0.05", Some("\"0.05\"")),
    ] {
        let text = helm(lab, &["template", "spillway", CHART], &["--set", set]).await?;
        let ratio = text.split_once("OTEL_TRACES_SAMPLER_ARG\n");
        let ratio = ratio.and_then(|(_, rest)| rest.trim_start().strip_prefix("value: ")?.lines().next());
        if ratio != expected || text.contains("OTEL_EXPORTER_OTLP_ENDPOINT") != expected.is_some() {
            wrong.push(format!("{set}: the collector is not as it should be: {ratio:?}"));
        }
    }
    Ok(wrong)
}

/// Gateways and the usage service know each other by what the operator makes, and it may touch it; or nothing of it is there.
async fn usage_tls(lab: &Lab) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (set, expected) in [
        ("gateway.enabled=true,usage.enabled=true", true),
        ("gateway.enabled=true,usage.enabled=true,usage.tls.enabled=false", false),
        ("gateway.enabled=true", false),
    ] {
        let text = helm(lab, &["template", "spillway", CHART], &["--set", set]).await?;
        let all = [
            "- --usage-tls\n",
            "resourceNames: [spillway-usage-ca, spillway-usage-tls, spillway-usage-client-tls]",
            "--tls-callers=spillway-gateway.spillway-system.svc",
            "secret: {secretName: spillway-usage-tls, defaultMode: 0440}",
            "--usage-tls-name=spillway-usage.spillway-system.svc",
            "secret: {secretName: spillway-usage-client-tls, defaultMode: 0440}",
            "value: https://spillway-usage.spillway-system.svc:8090",
        ];
        for part in all.into_iter().filter(|part| text.contains(part) != expected) {
            wrong.push(format!("{set}: {part:?} should be there: {expected}"));
        }
    }
    let open = "networkPolicy.reportsFrom[0].ipBlock.cidr=10.0.0.0/28,usage.enabled=true";
    for (set, expected) in [(open, true), ("usage.enabled=true", false)] {
        let text = helm(lab, &["template", "spillway", CHART], &["--set", set]).await?;
        if text.contains("- {port: reports}") != expected {
            wrong.push(format!("{set}: who may read reports is not as it should be"));
        }
    }
    Ok(wrong)
}

/// On PostgreSQL there are two, each of which may die or be drained; a file has one.
async fn usage_replicas(lab: &Lab) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let postgres = "usage.enabled=true,usage.storage.kind=Postgres,usage.storage.postgresSecret.name=db";
    for (set, kind, replicas) in [(postgres, "Deployment", 2), ("usage.enabled=true", "StatefulSet", 1)] {
        let text = helm(lab, &["template", "spillway", CHART], &["--set", set]).await?;
        let all = text.split("\n---\n").map(serde_yaml::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
        let find = |kind: &str| {
            let named = |one: &&Value| one["kind"] == kind && one["metadata"]["name"] == "spillway-usage";
            all.iter().find(named).cloned().unwrap_or_default()
        };
        let (workload, several) = (find(kind), kind == "Deployment");
        let pod = &workload["spec"]["template"]["spec"];
        let advertised = pod["containers"][0]["env"].to_string().contains("status.podIP");
        let apart = !pod["affinity"]["podAntiAffinity"].is_null();
        let budget = !find("PodDisruptionBudget").is_null();
        if workload["spec"]["replicas"] != replicas || [advertised, apart, budget] != [several; 3] {
            wrong.push(format!("{set}: {workload}, a budget: {budget}"));
        }
        if find("Service")["spec"]["publishNotReadyAddresses"] == several {
            wrong.push(format!("{set}: {}", find("Service")));
        }
    }
    Ok(wrong)
}

/// The CA of a PostgreSQL, from a ConfigMap or a Secret.
async fn postgres_ca(lab: &Lab) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let base = "usage.enabled=true,usage.storage.kind=Postgres,usage.storage.postgresSecret.name=db";
    for (set, source) in [
        ("usage.storage.postgresCa.configMap=rds", Some("configMap: {name: rds}")),
        ("usage.storage.postgresCa.secret=rds", Some("secret: {secretName: rds, defaultMode: 0440}")),
        ("usage.storage.postgresCa.key=ca.crt", None),
    ] {
        let text = helm(lab, &["template", "spillway", CHART], &["--set", &format!("{base},{set}")]).await?;
        let argument = text.contains("--postgres-ca=/etc/spillway-usage/postgres/ca.crt");
        if argument != source.is_some() || source.is_some_and(|source| !text.contains(source)) {
            wrong.push(format!("{set}: the CA of PostgreSQL is not as it should be"));
        }
    }
    Ok(wrong)
}

/// Alerts and dashboard come when they are asked for, whole, and not otherwise.
async fn monitoring(lab: &Lab) -> Result<Option<String>> {
    let template = ["template", "spillway", CHART];
    let plain = helm(lab, &template, &[]).await?;
    let set = [
        "--set",
        "metrics.prometheusRule.enabled=true,metrics.prometheusRule.labels.release=kps,metrics.dashboard.enabled=true",
    ];
    let mut objects = Vec::new();
    for document in helm(lab, &template, &set).await?.split("\n---\n") {
        objects.push(serde_yaml::from_str::<Value>(document).context("a document of the chart")?);
    }
    let find = |kind: &str, name: &str| {
        objects
            .iter()
            .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
            .cloned()
            .unwrap_or_default()
    };
    let (rule, board) = (find("PrometheusRule", "spillway"), find("ConfigMap", "spillway-dashboard"));
    let alerts = rule["spec"]["groups"][0]["rules"].as_array().map_or(0, Vec::len);
    let text = board["data"]["spillway.json"].as_str().unwrap_or_default();
    let panels = serde_json::from_str::<Value>(text).ok().and_then(|board| board["panels"].as_array().map(Vec::len));
    let whole = alerts >= 5
        && rule["metadata"]["labels"]["release"] == "kps"
        && panels.is_some_and(|panels| panels > 10)
        && board["metadata"]["labels"]["grafana_dashboard"] == "1"
        && !plain.contains("PrometheusRule")
        && !plain.contains("grafana_dashboard");
    Ok((!whole).then(|| format!("{alerts} alerts, {panels:?} panels: {rule} {}", board["metadata"])))
}

#[tokio::test]
async fn a_release_comes_changes_goes_and_comes_back_without_losing_a_booking() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let before = names(&lab, "/apis/rbac.authorization.k8s.io/v1/clusterroles").await?;

    helm(&lab, &["install", "spillway", CHART], &["--create-namespace", "--dry-run=server"]).await?;
    ensure!(names(&lab, POLICIES).await?.is_empty(), "a dry run left policies");

    let notes = helm(&lab, &["install", "spillway", CHART], &["--create-namespace"]).await?;
    for text in
        ["What to do next", "gpu-operator, kube-system, spillway-system", "helm uninstall spillway -n spillway-system"]
    {
        ensure!(notes.contains(text), "the notes do not say '{text}': {notes}");
    }
    wait_for_policies(&lab, true).await?;
    crds_are_kept_ones(&lab).await?;
    the_copy_is_complete(&lab).await?;
    let ledger = make_ledger(&lab).await?;

    // An upgrade changes the policies and loses nothing.
    ensure!(!policy(&lab, "spillway-pod-delete").await?.contains("1 to 60,"), "the cap is 60 already");
    helm(
        &lab,
        &["upgrade", "spillway", CHART],
        &["--set", "graceCapSeconds=60", "--set", "infrastructureNamespaces={a,b}"],
    )
    .await?;
    ensure!(policy(&lab, "spillway-pod-delete").await?.contains("1 to 60,"), "the new cap did not arrive");
    let namespaces = json!(["a", "b", "kube-system", NAMESPACE]).to_string();
    ensure!(
        policy(&lab, "spillway-pod").await?.contains(&namespaces),
        "the new infrastructure namespaces did not arrive"
    );
    ensure!(uid(&lab).await? == ledger, "the upgrade lost the ledger");
    let looking = helm(&lab, &["upgrade", "spillway", CHART], &["--set", "policies.enforce=false"]).await;
    let refusal = format!("{:#}", looking.err().context("policies were taken off a cluster with bookings")?);
    ensure!(refusal.contains("would leave sold nodes open to everybody"), "{refusal}");

    // Gone, but for what was sold.
    helm(&lab, &["uninstall", "spillway"], &[]).await?;
    wait_for_policies(&lab, false).await?;
    ensure!(names(&lab, POLICIES).await?.is_empty(), "policies are left");
    ensure!(names(&lab, "/apis/rbac.authorization.k8s.io/v1/clusterroles").await? == before, "roles are left");
    crds_are_kept_ones(&lab).await?;
    ensure!(uid(&lab).await? == ledger, "the uninstall lost the ledger");

    // Back again, on the same objects.
    helm(&lab, &["install", "spillway", CHART], &[]).await?;
    wait_for_policies(&lab, true).await?;
    ensure!(uid(&lab).await? == ledger, "the reinstall lost the ledger");
    // What somebody deleted comes back with the next upgrade.
    lab.kubectl(&["delete", "validatingadmissionpolicybinding", "spillway-namespace"]).await?;
    wait_for_policies(&lab, false).await?;
    helm(&lab, &["upgrade", "spillway", CHART], &[]).await?;
    wait_for_policies(&lab, true).await?;
    lab.stop()
}

#[tokio::test]
async fn a_first_look_refuses_nothing_and_sells_nothing() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let notes =
        helm(&lab, &["install", "spillway", CHART], &["--create-namespace", "--set", "policies.enforce=false"]).await?;
    ensure!(notes.contains("nothing is sold"), "{notes}");
    let bindings = read(&lab, "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings").await?;
    for binding in bindings["items"].as_array().context("bindings")? {
        ensure!(binding["spec"]["validationActions"] == json!(["Warn", "Audit"]), "{binding}");
    }
    let deployment = read(&lab, &format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/spillway-operator")).await?;
    ensure!(deployment["spec"]["replicas"] == 0, "an operator runs beside policies that hold nothing");
    // The bindings are written in one go; what they do is seen within a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let warned = lab.kubectl(&["label", "namespace", "default", "spillway.dev/role=owner"]).await;
    ensure!(warned.is_ok(), "a policy that only looks refused: {warned:?}");
    let node = "{apiVersion: v1, kind: Node, metadata: {name: node-a, labels: {spillway.dev/pool: p}}}";
    lab.kubectl_with_input(&["create", "-f", "-"], node).await?;
    let taints = read(&lab, "/api/v1/nodes/node-a").await?["spec"]["taints"].to_string();
    ensure!(!taints.contains("spillway.dev/hold"), "a node was closed, and nobody is there to open it: {taints}");
    lab.stop()
}

/// What the operator restores from has every policy and binding of the release, and its role names every one of them.
async fn the_copy_is_complete(lab: &Lab) -> Result<()> {
    let copy = read(lab, &format!("/api/v1/namespaces/{NAMESPACE}/configmaps/spillway-policies")).await?;
    let mut copied: Vec<String> =
        copy["data"].as_object().context("data")?.keys().filter(|key| *key != "enforce").cloned().collect();
    let role = read(lab, "/apis/rbac.authorization.k8s.io/v1/clusterroles/spillway-operator").await?;
    let may = |plural: &str, name: &str| {
        role["rules"].as_array().into_iter().flatten().any(|rule| {
            let has =
                |field: &str, value: &str| rule[field].as_array().is_some_and(|all| all.iter().any(|one| one == value));
            has("resources", plural) && has("resourceNames", name) && has("verbs", "create") && has("verbs", "patch")
        })
    };
    let mut there = Vec::new();
    for (plural, kind) in [
        ("validatingadmissionpolicies", "ValidatingAdmissionPolicy"),
        ("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding"),
        ("mutatingadmissionpolicies", "MutatingAdmissionPolicy"),
        ("mutatingadmissionpolicybindings", "MutatingAdmissionPolicyBinding"),
    ] {
        for name in names(lab, &format!("/apis/admissionregistration.k8s.io/v1/{plural}")).await? {
            ensure!(may(plural, &name), "the operator may not restore {kind} {name}");
            there.push(format!("{kind}.{name}"));
        }
    }
    copied.sort();
    there.sort();
    ensure!(copied == there && there.len() > 30, "the copy has {copied:?}, the cluster {there:?}");
    Ok(())
}

async fn uid(lab: &Lab) -> Result<String> {
    let root = read(lab, &format!("{LEDGER}/cluster")).await?;
    Ok(root["metadata"]["uid"].as_str().context("the ledger's UID")?.to_owned())
}

async fn policy(lab: &Lab, name: &str) -> Result<String> {
    Ok(read(lab, &format!("{POLICIES}/{name}")).await?.to_string())
}

async fn crds_are_kept_ones(lab: &Lab) -> Result<()> {
    for plural in CRDS {
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.spillway.dev");
        let crd = read(lab, &path).await?;
        ensure!(
            crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep",
            "{plural} would go with the release"
        );
    }
    Ok(())
}
