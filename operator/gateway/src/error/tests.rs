//! What clients are told, word for word where it matters.

use std::collections::BTreeSet;

use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::admission::rates::{Rate, RateLimits};
use crate::json::{Problem, SyntaxError};
use crate::request::Field;

fn refusal(scope: ScopeKind, limit: LimitKind, retry: Retry) -> ApiError {
    Refusal { scope, limit, allowed: 60, retry, rates: RateLimits::default() }.into()
}

fn bad_json(field: Option<Field>) -> ApiError {
    let source = SyntaxError { at: 7, problem: Problem::UnexpectedByte };
    request::Error::NotJson { field, source }.into()
}

/// One of each kind.
fn all() -> Vec<ApiError> {
    let mut all = vec![
        ApiError::model_not_found("chat"),
        bad_json(None),
        request::Error::TooLarge { limit: 9 }.into(),
        request::Error::NotAnObject.into(),
        request::Error::Missing { field: Field::Model }.into(),
        request::Error::Duplicate { field: Field::Model }.into(),
        request::Error::Invalid { field: Field::N, expected: "a number" }.into(),
        request::Error::TooMany { field: Field::Messages, limit: 9 }.into(),
        ApiError::HeadersTooLarge { limit: 9 },
        ApiError::UnsupportedMediaType,
        ApiError::UnknownPath,
        ApiError::MethodNotAllowed { allowed: "GET" },
        ApiError::RequestTimeout { limit_ms: 9 },
        ApiError::Waking { retry_after_ms: 9 },
        ApiError::NoReplica { retry_after_ms: 9 },
        ApiError::Unavailable { retry_after_ms: 9 },
        ApiError::Upstream,
        ApiError::UpstreamTimeout { limit_ms: 9 },
        ApiError::Unrecorded,
        ApiError::AnswerTooLarge { limit: 9 },
        ApiError::NotCapable { path: "/v1/embeddings" },
        ApiError::Incomplete,
    ];
    all.extend(
        [KeyError::Missing, KeyError::Malformed, KeyError::Unknown, KeyError::Expired, KeyError::Revoked]
            .map(ApiError::from),
    );
    for scope in [ScopeKind::Key, ScopeKind::Tenant] {
        for limit in [LimitKind::Requests, LimitKind::Tokens, LimitKind::Concurrency] {
            all.extend([Retry::AfterMs(9), Retry::Never, Retry::Lease].map(|retry| refusal(scope, limit, retry)));
        }
    }
    all
}

#[rstest]
#[case::missing_key(KeyError::Missing.into(), 401, "missing_api_key", None)]
#[case::unknown_key(KeyError::Unknown.into(), 401, "invalid_api_key", None)]
#[case::expired_key(KeyError::Expired.into(), 401, "expired_api_key", None)]
#[case::revoked_key(KeyError::Revoked.into(), 401, "revoked_api_key", None)]
#[case::model(ApiError::model_not_found("chat"), 404, "model_not_found", Some("model"))]
#[case::too_large(request::Error::TooLarge { limit: 9 }.into(), 413, "request_too_large", None)]
#[case::bad_json(bad_json(None), 400, "invalid_json", None)]
#[case::bad_json_in_a_field(bad_json(Some(Field::Messages)), 400, "invalid_json", Some("messages"))]
#[case::bad_field(request::Error::Invalid { field: Field::MaxTokens, expected: "" }.into(), 400, "invalid_value", Some("max_tokens"))]
#[case::limit(refusal(ScopeKind::Key, LimitKind::Tokens, Retry::AfterMs(5)), 429, "rate_limit_exceeded", None)]
#[case::limit_for_ever(refusal(ScopeKind::Key, LimitKind::Tokens, Retry::Never), 429, "rate_limit_exceeded", None)]
#[case::no_lease(refusal(ScopeKind::Key, LimitKind::Tokens, Retry::Lease), 503, "limits_unavailable", None)]
#[case::waking(ApiError::Waking { retry_after_ms: 5 }, 503, "model_starting", None)]
#[case::no_replica(ApiError::NoReplica { retry_after_ms: 5 }, 503, "model_unavailable", None)]
#[case::upstream(ApiError::Upstream, 502, "upstream_error", None)]
#[case::upstream_timeout(ApiError::UpstreamTimeout { limit_ms: 5 }, 504, "upstream_timeout", None)]
#[case::unrecorded(ApiError::Unrecorded, 503, "log_unavailable", None)]
#[case::answer_too_large(ApiError::AnswerTooLarge { limit: 5 }, 400, "answer_too_large", None)]
#[case::not_capable(ApiError::NotCapable { path: "/v1/embeddings" }, 400, "model_not_capable", Some("model"))]
#[case::incomplete(ApiError::Incomplete, 400, "incomplete_body", None)]
#[case::method(ApiError::MethodNotAllowed { allowed: "POST" }, 405, "method_not_allowed", None)]
#[case::path(ApiError::UnknownPath, 404, "unknown_url", None)]
#[case::media_type(ApiError::UnsupportedMediaType, 415, "unsupported_media_type", None)]
#[case::headers(ApiError::HeadersTooLarge { limit: 5 }, 431, "headers_too_large", None)]
fn errors_have_a_status_and_a_code(
    #[case] error: ApiError,
    #[case] status: u16,
    #[case] code: &str,
    #[case] param: Option<&str>,
) {
    assert_eq!((error.status(), error.code(), error.param()), (status, code, param));
}

#[rstest]
#[case::key_requests(
    refusal(ScopeKind::Key, LimitKind::Requests, Retry::AfterMs(1_201)),
    "This key may use 60 requests per minute, which are in use: try again in 1.3 s, or ask for a higher limit."
)]
#[case::tenant_concurrency(
    refusal(ScopeKind::Tenant, LimitKind::Concurrency, Retry::AfterMs(1_000)),
    "This key's tenant may use 60 requests at once, which are in use: try again in 1 s, or ask for a higher limit."
)]
#[case::prompt_too_long(
    refusal(ScopeKind::Tenant, LimitKind::Tokens, Retry::Never),
    "This key's tenant may use 60 tokens per minute, and the prompt alone is longer: send a shorter one, or ask for a higher limit."
)]
#[case::no_lease(
    refusal(ScopeKind::Key, LimitKind::Tokens, Retry::Lease),
    "How much of this key's limit of 60 tokens per minute is left is not known now: try again in 1 s."
)]
#[case::bad_json(
    bad_json(Some(Field::Messages)),
    "The body is not valid JSON: an unexpected character at byte 7, in `messages`. Correct it and send it again."
)]
#[case::model(
    ApiError::model_not_found("acme/chat"),
    "The model `acme/chat` does not exist or is not shared with you: GET /v1/models lists those that this key may use, and its owner can have \
     another one shared."
)]
fn messages_say_what_to_do(#[case] error: ApiError, #[case] message: &str) {
    assert_eq!(error.to_string(), message);
}

/// What is no name is not repeated: it could be a prompt in the wrong place.
#[rstest]
#[case::words("tell me a story")]
#[case::line("chat\nchat")]
#[case::long(&"a".repeat(SHOWN_MODEL_MAX + 1))]
#[case::empty("")]
fn what_is_no_name_is_not_repeated(#[case] model: &str) {
    assert_eq!(ApiError::model_not_found(model), ApiError::ModelNotFound { model: String::new() });
}

#[test]
fn the_body_is_what_openai_has() {
    let error: ApiError = request::Error::Missing { field: Field::Model }.into();
    let expected = json!({"error": {
        "message": "`model` is missing: add it to the body.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "missing_required_parameter",
    }});
    assert_eq!(serde_json::from_str::<Value>(&error.body()).expect("JSON"), expected);
    assert_eq!(error.event(), format!("data: {expected}\n\n").replace(&expected.to_string(), &error.body()));
}

#[test]
fn a_limit_says_when_in_its_headers() {
    let rates = RateLimits { requests: Some(Rate { limit: 60, remaining: 0, reset_ms: 60_000 }), tokens: None };
    let refused = |retry| {
        ApiError::from(Refusal { scope: ScopeKind::Key, limit: LimitKind::Requests, allowed: 60, retry, rates })
    };
    let headers = |error: &ApiError| {
        error.headers().into_iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>()
    };
    let limits =
        ["x-ratelimit-limit-requests: 60", "x-ratelimit-remaining-requests: 0", "x-ratelimit-reset-requests: 1m0s"];
    let after =
        [vec!["content-type: application/json"], limits.to_vec(), vec!["retry-after: 2", "retry-after-ms: 1001"]]
            .concat();
    assert_eq!(headers(&refused(Retry::AfterMs(1_001))), after);
    let never = [vec!["content-type: application/json"], limits.to_vec(), vec!["x-should-retry: false"]].concat();
    assert_eq!(headers(&refused(Retry::Never)), never);
    assert_eq!(
        headers(&ApiError::MethodNotAllowed { allowed: "POST" }),
        ["content-type: application/json", "allow: POST"]
    );
    assert_eq!(headers(&KeyError::Missing.into()), ["content-type: application/json", "www-authenticate: Bearer"]);
}

/// Whatever the error, its answer is whole, and what is worth trying again says when.
#[test]
fn every_error_is_whole() {
    let mut codes = BTreeSet::new();
    for error in all() {
        let body: Value = serde_json::from_str(&error.body()).expect("JSON");
        let object = body["error"].as_object().expect("an object");
        assert_eq!(
            object.keys().map(String::as_str).collect::<BTreeSet<_>>(),
            ["code", "message", "param", "type"].into()
        );
        let message = object["message"].as_str().expect("a message");
        assert!(message.ends_with('.') && (message.contains(':') || message.contains("must be")), "{message}");
        let later =
            matches!(error.status(), 429 | 503) && error.headers().iter().all(|(name, _)| *name != "x-should-retry");
        assert_eq!(error.retry_after_ms().is_some(), later, "{message}");
        assert!((400..=504).contains(&error.status()));
        codes.insert(error.code());
    }
    assert_eq!(codes.len(), 27);
}

/// What vLLM 0.25.1 said of requests that it refused.
#[rstest]
#[case::validation(
    r#"{"error":{"message":"1 validation error:\n  {'type': 'float_parsing', 'loc': ('body', 'temperature'), 'msg': 'Input should be a valid number, unable to parse string as a number', 'input': 'x'}\n\n  File \"/site/vllm/entrypoints/serve/utils/api_utils.py\", line 40, in create_chat_completion\n    POST /v1/chat/completions [{'type': 'float_parsing'}]","type":"Bad Request","param":"body.temperature","code":400}}"#,
    "`temperature`: Input should be a valid number, unable to parse string as a number.",
    Some("temperature"),
    "refused_by_model"
)]
#[case::too_long(
    r#"{"error":{"message":"This model's maximum context length is 2048 tokens. (parameter=input_tokens, value=2009)","type":"BadRequestError","param":"input_tokens","code":400}}"#,
    "This model's maximum context length is 2048 tokens. (parameter=input_tokens, value=2009)",
    Some("input_tokens"),
    "context_length_exceeded"
)]
#[case::tools(
    r#"{"error":{"message":"\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set","type":"BadRequestError","param":null,"code":400}}"#,
    "\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set",
    None,
    "refused_by_model"
)]
#[case::a_validation_of_another_form(
    r#"{"error":{"message":"2 validation errors for the canary prompt","param":"body"}}"#,
    "The model's server refuses the request: check it against the API of the model.",
    Some("body"),
    "refused_by_model"
)]
#[case::nothing_but_a_trace(
    r#"{"error":{"message":"\nTraceback (most recent call last)"}}"#,
    "The model's server refuses the request: check it against the API of the model.",
    None,
    "refused_by_model"
)]
fn what_an_engine_says_is_given_on_without_what_is_its_own(
    #[case] body: &str,
    #[case] message: &str,
    #[case] param: Option<&str>,
    #[case] code: &str,
) {
    let told: serde_json::Value = serde_json::from_str(&ApiError::engine_refusal(body.as_bytes())).unwrap();
    let error = &told["error"];
    assert_eq!((error["message"].as_str(), error["param"].as_str()), (Some(message), param));
    assert_eq!(error["code"], code);
    // However much it says, there is an end.
    let long = serde_json::json!({"error": {"message": "word ".repeat(10_000)}}).to_string();
    assert!(ApiError::engine_refusal(long.as_bytes()).len() < 2_000);
}
