use rstest::rstest;
use spillway_metering::tokens::Cause;

use super::*;

type Variables = &'static [(&'static str, &'static str)];

/// Where traces and metrics go.
type Where = Option<(Option<String>, Option<String>)>;

fn settings(variables: Variables) -> Result<Where, String> {
    let read = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    let text = |uri: Option<hyper::Uri>| uri.map(|uri| uri.to_string());
    let found = Settings::from_env(read).map_err(|error| error.to_string())?;
    Ok(found.map(|found| (text(found.traces), text(found.metrics))))
}

const BASE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

#[rstest]
#[case::nothing(&[], None)]
#[case::empty(&[(BASE, "")], None)]
#[case::one_for_both(&[(BASE, "http://c:4318")], Some((Some("http://c:4318/v1/traces"), Some("http://c:4318/v1/metrics"))))]
#[case::with_a_path(&[(BASE, "http://c:4318/otlp/")], Some((Some("http://c:4318/otlp/v1/traces"), Some("http://c:4318/otlp/v1/metrics"))))]
#[case::only_traces(&[(TRACES, "http://t/here")], Some((Some("http://t/here"), None)))]
#[case::its_own_goes_before(&[(BASE, "http://c:4318"), (TRACES, "http://t/here")], Some((Some("http://t/here"), Some("http://c:4318/v1/metrics"))))]
#[case::without_metrics(&[(BASE, "http://c:4318"), ("OTEL_METRICS_EXPORTER", "none")], Some((Some("http://c:4318/v1/traces"), None)))]
#[case::turned_off(&[(BASE, "http://c:4318"), ("OTEL_SDK_DISABLED", "true")], None)]
#[case::the_protocol_that_there_is(&[(BASE, "http://c:4318"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"), ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "none")], None)]
fn the_environment_says_where(#[case] variables: Variables, #[case] expected: Option<(Option<&str>, Option<&str>)>) {
    let text = |one: Option<&str>| one.map(str::to_owned);
    assert_eq!(settings(variables), Ok(expected.map(|(traces, metrics)| (text(traces), text(metrics)))));
}

#[rstest]
#[case::grpc(&[(BASE, "http://c:4317"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], "http/protobuf is what there is")]
#[case::tls(&[(BASE, "https://c:4318")], "OTEL_EXPORTER_OTLP_ENDPOINT is \"https://c:4318\"")]
#[case::no_scheme(&[(TRACES, "c:4318")], "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is \"c:4318\"")]
#[case::console(&[(BASE, "http://c:4318"), ("OTEL_TRACES_EXPORTER", "console")], "otlp or none is what there is")]
fn what_cannot_be_is_refused(#[case] variables: Variables, #[case] message: &str) {
    let error = settings(variables).unwrap_err();
    assert!(error.contains(message), "{error}");
}

fn operation(telemetry: &Arc<Telemetry>) -> Operation {
    let served = Served {
        namespace: "acme".into(),
        name: "chat".into(),
        tenant: "acme".into(),
        shared_with: Default::default(),
        model: "tiny".into(),
        version: "v1".into(),
        served_name: "tiny".to_owned(),
        capabilities: Default::default(),
        context_length: 1,
        created: 0,
        wanted: 1,
        kv_cache_target: None,
        absence: Default::default(),
        replicas: Vec::new(),
        routing: Default::default(),
    };
    telemetry.begin(Instant::now(), &HeaderMap::new(), Endpoint::ChatCompletions, &served, true)
}

fn text(telemetry: &Telemetry) -> String {
    let mut text = String::new();
    telemetry.render(&mut text);
    text
}

const LABELS: &str = r#"gen_ai_operation_name="chat",gen_ai_provider_name="spillway",gen_ai_request_model="acme/chat""#;

#[test]
fn an_answer_that_was_good_is_told_with_its_times_and_tokens() {
    let telemetry = Telemetry::new(None);
    let mut operation = operation(&telemetry);
    assert!(operation.trace().is_none(), "the client's own goes on");
    operation.token();
    operation.ended(Outcome::Complete, Tokens::new(70, 0, 5).unwrap(), FinishReasons::default());
    assert!(text(&telemetry).lines().all(|line| line.starts_with('#')), "nothing is told before it ends");
    drop(operation);
    let text = text(&telemetry);
    for line in [
        format!(r#"gen_ai_server_request_duration_seconds_count{{{LABELS},gen_ai_response_model="",error_type=""}} 1"#),
        format!(r#"gen_ai_server_time_to_first_token_seconds_count{{{LABELS},gen_ai_response_model=""}} 1"#),
        format!(r#"gen_ai_server_time_per_output_token_seconds_count{{{LABELS},gen_ai_response_model=""}} 1"#),
        format!(r#"gen_ai_client_token_usage_sum{{{LABELS},gen_ai_response_model="",gen_ai_token_type="input"}} 70.0"#),
        format!(r#"gen_ai_client_token_usage_sum{{{LABELS},gen_ai_response_model="",gen_ai_token_type="output"}} 5.0"#),
        "# EOF".to_owned(),
    ] {
        assert!(text.lines().any(|there| there == line), "{line}\nis not in\n{text}");
    }
}

enum Word {
    Failed(&'static str),
    Ended(Outcome),
}
use Word::{Ended as E, Failed as F};

#[rstest]
#[case::nobody_says([].as_slice(), "internal")]
#[case::refused(&[F("rate_limit_exceeded")], "rate_limit_exceeded")]
#[case::the_first_reason_counts(&[F("engine_refused"), E(Outcome::Partial(Cause::EngineFailed))], "engine_refused")]
#[case::cut(&[E(Outcome::Partial(Cause::ClientGone))], "client_gone")]
#[case::good_but_not_recorded(&[E(Outcome::Complete), F("log_unavailable")], "log_unavailable")]
#[case::without_usage(&[E(Outcome::Partial(Cause::NoUsage))], "")]
fn what_failed_says_why(#[case] words: &[Word], #[case] error: &str) {
    let telemetry = Telemetry::new(None);
    let mut operation = operation(&telemetry);
    for word in words {
        match word {
            F(error) => operation.failed(error),
            E(outcome) => operation.ended(*outcome, Tokens::default(), FinishReasons::default()),
        }
    }
    drop(operation);
    let text = text(&telemetry);
    assert!(text.contains(&format!(r#"error_type="{error}"}} 1"#)), "{text}");
    assert!(!text.contains("first_token_seconds_count{"), "{text}");
}
