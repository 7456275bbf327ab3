//! What `external.metrics.k8s.io/v1beta1` answers, from what is known of the load. Pure but for the clock in its answers.

use jiff::Timestamp;
use serde_json::{Value, json};
use spillway_crds::names::ENDPOINT_LABEL;
use spillway_manifests::endpoint::{
    METRIC_IN_FLIGHT, METRIC_KV_CACHE, METRIC_QUEUED, METRIC_TOKENS, SCALING_LABEL, SCALING_SPEC,
};

use crate::loads::{FullName, Loads, Unknown};

const GROUP: &str = "external.metrics.k8s.io";
const GROUP_VERSION: &str = "external.metrics.k8s.io/v1beta1";

/// An answer: its status, and its JSON.
pub(super) type Answer = (u16, Value);

/// Answers a `GET`. `path` is without its query.
/// `scales` says whether an endpoint's spec asks for a metric, if that is known.
pub(super) fn answer(
    loads: &Loads,
    scales: &dyn Fn(&FullName, &str) -> Option<bool>,
    path: &str,
    query: Option<&str>,
    now_ms: u64,
    now: Timestamp,
) -> Answer {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        ["healthz" | "livez" | "readyz"] => (200, json!("ok")),
        ["apis", group] if *group == GROUP => (200, discover_group()),
        ["apis", group, "v1beta1"] if *group == GROUP => (200, discover()),
        ["apis", group, "v1beta1", "namespaces", namespace, metric] if *group == GROUP => {
            value(loads, scales, namespace, metric, query, now_ms, now)
        }
        _ => failure(404, "NotFound", "there is nothing at this path"),
    }
}

/// A refusal in the form of the API.
pub(super) fn failure(code: u16, reason: &str, message: &str) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    (code, status)
}

fn discover_group() -> Value {
    let version = json!({"groupVersion": GROUP_VERSION, "version": "v1beta1"});
    json!({"kind": "APIGroup", "apiVersion": "v1", "name": GROUP, "versions": [version], "preferredVersion": version})
}

fn discover() -> Value {
    let resource = |name: &str| {
        json!({
            "name": name, "singularName": "", "namespaced": true, "kind": "ExternalMetricValueList", "verbs": ["get"],
        })
    };
    let metrics = [METRIC_IN_FLIGHT, METRIC_QUEUED, METRIC_TOKENS, METRIC_KV_CACHE];
    let resources: Vec<Value> = metrics.into_iter().map(resource).collect();
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP_VERSION, "resources": resources})
}

fn value(
    loads: &Loads,
    scales: &dyn Fn(&FullName, &str) -> Option<bool>,
    namespace: &str,
    metric: &str,
    query: Option<&str>,
    now_ms: u64,
    now: Timestamp,
) -> Answer {
    let Some((endpoint, by_spec)) = query.and_then(selected) else {
        let message = format!("select one endpoint: labelSelector={ENDPOINT_LABEL}=NAME");
        return failure(400, "BadRequest", &message);
    };
    let name: FullName = (namespace.into(), endpoint.as_str().into());
    let plain = |value: Result<u64, Unknown>| value.map(|value| value.to_string());
    let value = match metric {
        METRIC_IN_FLIGHT => plain(loads.in_flight(&name, now_ms)),
        METRIC_QUEUED => plain(loads.queued(&name, now_ms)),
        METRIC_TOKENS => loads.milli_tokens_per_second(&name, now_ms).map(|milli| format!("{milli}m")),
        METRIC_KV_CACHE => loads.kv_cache_milli_percent(&name, now_ms).map(|milli| format!("{milli}m")),
        _ => {
            let message = format!(
                "there is no metric {metric}: {METRIC_IN_FLIGHT}, {METRIC_QUEUED}, {METRIC_TOKENS} or {METRIC_KV_CACHE}"
            );
            return failure(404, "NotFound", &message);
        }
    };
    // Only autoscalers of ours ask so: they are not to move what they are not to scale any more.
    let may_ask = if by_spec { scales(&name, metric) } else { Some(true) };
    let value = match may_ask {
        Some(true) => value.map_err(|unknown| unknown.to_string()),
        Some(false) => Err(format!("spec.scaling of ModelEndpoint {namespace}/{endpoint} does not ask for it")),
        None => Err("this operator has not read the ModelEndpoints yet".to_owned()),
    };
    let value = match value {
        Ok(value) => value,
        // Whoever scales does nothing then.
        Err(why) => return failure(503, "ServiceUnavailable", &format!("{metric} is not known: {why}")),
    };
    let item = json!({
        "metricName": metric, "metricLabels": {ENDPOINT_LABEL: endpoint},
        "timestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(), "value": value,
    });
    (200, json!({"kind": "ExternalMetricValueList", "apiVersion": GROUP_VERSION, "metadata": {}, "items": [item]}))
}

/// The endpoint that a query selects by its label, and whether it asks in the name of the endpoint's spec.
fn selected(query: &str) -> Option<(String, bool)> {
    let pairs = form_urlencoded::parse(query.as_bytes());
    let mut selectors = pairs.filter(|(name, _)| name == "labelSelector").map(|(_, value)| value);
    let (mut endpoint, mut by_spec) = (None, false);
    for requirement in selectors.next()?.split(',') {
        let (label, value) = requirement.split_once('=')?;
        let value = value.strip_prefix('=').unwrap_or(value);
        match label {
            ENDPOINT_LABEL => endpoint = Some(value.to_owned()),
            SCALING_LABEL if value == SCALING_SPEC => by_spec = true,
            _ => return None,
        }
    }
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let endpoint = endpoint.filter(|name| !name.is_empty() && name.bytes().all(good))?;
    Some((endpoint, by_spec))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use spillway_metering::load::{CacheReading, CacheUnknown, EndpointCaches, EndpointLoad, LoadReport, ReplicaCache};

    use super::*;
    use crate::loads::Address;

    const CHAT: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/acme/spillway-in-flight";
    const SELECT: Option<&str> = Some("labelSelector=spillway.dev%2Fendpoint%3Dchat");

    fn loads() -> Loads {
        let address = std::net::SocketAddr::from(([10, 0, 0, 1], 8080));
        let mut loads = Loads::default();
        loads.set_gateways(&[Address { address, ready: true }], 0);
        let chat = EndpointLoad {
            namespace: "acme".into(),
            endpoint: "chat".into(),
            in_flight: 7,
            queued: 2,
            held: 0,
            idle_ms: 0,
            tokens: 0,
            versions: Vec::new(),
        };
        let replica = |name: &str, reading| ReplicaCache { replica: name.into(), reading };
        let caches = |endpoint: &str, replicas| EndpointCaches {
            namespace: "acme".into(),
            endpoint: endpoint.into(),
            wanted: 1,
            target_percent: 80,
            replicas,
        };
        let read = caches("chat", vec![replica("one", CacheReading::Used { millionths: 123_456, age_ms: 0 })]);
        let silent = caches("tiny", vec![replica("one", CacheReading::Unknown(CacheUnknown::NotExported))]);
        let report =
            LoadReport { gateway: "g".into(), up_ms: 0, calls: 0, endpoints: vec![chat], caches: vec![read, silent] };
        loads.note(address, report, 0);
        loads
    }

    fn ask(path: &str, query: Option<&str>, now_ms: u64) -> Answer {
        let scales = |name: &FullName, metric: &str| match name.1.as_str() {
            "new" => None,
            name => Some(name == "chat" && metric == METRIC_IN_FLIGHT),
        };
        answer(&loads(), &scales, path, query, now_ms, Timestamp::UNIX_EPOCH)
    }

    /// An autoscaler that is to go, or to ask for another metric, would else write what nobody wants any more.
    #[rstest]
    #[case::as_the_spec_says(CHAT, "chat", 200)]
    #[case::by_another_metric(&CHAT.replace("in-flight", "queued"), "chat", 503)]
    #[case::not_at_all(CHAT, "other", 503)]
    #[case::not_known_yet(CHAT, "new", 503)]
    fn an_autoscaler_of_before_is_told_nothing(#[case] path: &str, #[case] endpoint: &str, #[case] status: u16) {
        let spec = "spillway.dev%2Fscaling%3Dspec";
        for query in [
            format!("labelSelector=spillway.dev%2Fendpoint%3D{endpoint}%2C{spec}"),
            format!("labelSelector={spec}%2Cspillway.dev%2Fendpoint%3D{endpoint}"),
        ] {
            assert_eq!(ask(path, Some(&query), 0).0, status);
        }
        let anybody = format!("labelSelector=spillway.dev%2Fendpoint%3D{endpoint}");
        assert_eq!(ask(path, Some(&anybody), 0).0, 200, "others may ask");
    }

    #[test]
    fn a_value_is_told_as_the_api_has_it() {
        let (status, body) = ask(CHAT, SELECT, 0);
        assert_eq!(status, 200);
        let item = json!({
            "metricName": "spillway-in-flight", "metricLabels": {"spillway.dev/endpoint": "chat"},
            "timestamp": "1970-01-01T00:00:00Z", "value": "7",
        });
        assert_eq!(body["items"], json!([item]));
        assert_eq!((&body["kind"], &body["apiVersion"]), (&json!("ExternalMetricValueList"), &json!(GROUP_VERSION)));
        let (_, queued) = ask(&CHAT.replace("in-flight", "queued"), SELECT, 0);
        assert_eq!(queued["items"][0]["value"], "2");
        let (_, cache) = ask(&CHAT.replace("in-flight", "kv-cache-percent"), SELECT, 0);
        assert_eq!(cache["items"][0]["value"], "12345m");
        // An endpoint of which all gateways say nothing has nothing to do.
        let (_, idle) = ask(&CHAT.replace("acme", "beta"), SELECT, 0);
        assert_eq!(idle["items"][0]["value"], "0");
    }

    #[rstest]
    #[case::nobody_was_heard(CHAT, SELECT, 503, "has not told its load")]
    #[case::too_early(&CHAT.replace("in-flight", "tokens-per-second"), SELECT, 503, "is not known")]
    #[case::no_cache(&CHAT.replace("in-flight", "kv-cache-percent"), SELECT, 503, "is not known")]
    #[case::no_selector(CHAT, None, 400, "select one endpoint")]
    #[case::another_label(CHAT, Some("labelSelector=app%3Dchat"), 400, "select one endpoint")]
    #[case::several(CHAT, Some("labelSelector=spillway.dev%2Fendpoint%3Dchat%2Ca%3Db"), 400, "select one endpoint")]
    #[case::another_metric(&CHAT.replace("in-flight", "weather"), SELECT, 404, "no metric spillway-weather")]
    #[case::elsewhere("/metrics", None, 404, "nothing at this path")]
    #[case::aggregated_discovery("/apis", None, 404, "nothing at this path")]
    fn what_is_not_known_is_no_zero(
        #[case] path: &str,
        #[case] query: Option<&str>,
        #[case] status: u16,
        #[case] message: &str,
    ) {
        let (code, body) = ask(path, query, 60_000);
        assert_eq!((code, &body["code"]), (status, &json!(status)));
        assert!(body["message"].as_str().unwrap().contains(message), "{body}");
    }

    /// What a person reads in the condition of the HPA, and of the endpoint.
    #[test]
    fn an_engine_that_does_not_tell_its_cache_is_named() {
        let select = SELECT.map(|select| select.replace("chat", "tiny"));
        let (code, body) = ask(&CHAT.replace("in-flight", "kv-cache-percent"), select.as_deref(), 0);
        assert_eq!(code, 503);
        assert_eq!(
            body["message"],
            "spillway-kv-cache-percent is not known: replica one: no metric of its engine tells it: this version of the engine does not export it, \
             so scale by something else"
        );
    }

    #[test]
    fn it_can_be_discovered() {
        let (status, body) = ask("/apis/external.metrics.k8s.io/v1beta1", Some("timeout=32s"), 0);
        assert_eq!((status, &body["kind"]), (200, &json!("APIResourceList")));
        assert_eq!(body["resources"].as_array().map(Vec::len), Some(4));
        assert_eq!(ask("/apis/external.metrics.k8s.io", None, 0).1["name"], GROUP);
    }
}
