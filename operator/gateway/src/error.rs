//! What a client is told when a request does not go through, so that OpenAI's own clients understand it.
//!
//! The body is `{"error": {"message", "type", "param", "code"}}`. The official clients choose their exception by the status alone: 400
//! `BadRequestError`, 401 `AuthenticationError`, 403 `PermissionDeniedError`, 404 `NotFoundError`, 429 `RateLimitError`, 500 and above `InternalServerError`, any other
//! `APIStatusError`; they try 408, 409, 429 and 5xx again, after `retry-after-ms` or `retry-after`, unless `x-should-retry` is `false`. Within
//! a stream an event whose data has an `error` is raised. (openai-python, `_client.py`, `_base_client.py` and `_streaming.py`.)
//!
//! Every message says what to do. None shows anything of a prompt, of a key, or of what others have: a model that does not exist and one that is
//! not shared are the same.

use serde::Serialize;

use crate::admission::{LimitKind, Refusal, Retry, ScopeKind};
use crate::catalogue::Absence;
use crate::keys::KeyError;
use crate::request;

/// Milliseconds after which to try again where nothing says when it will be better.
const RETRY_MS: u64 = 1_000;
/// and where somebody has to do something first.
const ABSENT_MS: u64 = 30_000;
/// Characters of an engine's words that are given on.
const SHOWN_MESSAGE_MAX: usize = 1_024;
/// Characters of a model's name that are repeated to who asked for it.
const SHOWN_MODEL_MAX: usize = 128;

/// Why a request does not go through.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// No good key.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// No such model, or not for this key.
    #[error("{}", model_message(.model))]
    ModelNotFound {
        /// As it was asked for, or empty where that is no name. Made by [`ApiError::model_not_found`].
        model: String,
    },
    /// The model is there, and nowhere where it may be asked.
    #[error(
        "The model is not served where this key's requests may be processed: ask its owner for one that is, or the owner of the key for more regions (spec.residency of the ApiKey or Tenant)."
    )]
    Residency,
    /// The body is not one that we understand.
    #[error("{0}")]
    Body(request::Error),
    /// The model is there, and does something else.
    #[error("The model does not serve {path}: GET /v1/models lists others, and its owner knows what it serves.")]
    NotCapable {
        /// The path.
        path: &'static str,
    },
    /// The body broke off.
    #[error("The body ended before it was whole: send it again.")]
    Incomplete,
    /// The head of the request is too large.
    #[error("The headers are larger than {limit} bytes: send fewer or shorter ones.")]
    HeadersTooLarge {
        /// Bytes allowed.
        limit: usize,
    },
    /// The body is no JSON by its type.
    #[error("The body's media type is not supported: send JSON with `Content-Type: application/json`.")]
    UnsupportedMediaType,
    /// The path names nothing.
    #[error("There is nothing at this path: use /v1/models, /v1/chat/completions, /v1/completions or /v1/embeddings.")]
    UnknownPath,
    /// The path is for another method.
    #[error("This path takes {allowed} only: send the request with that method.")]
    MethodNotAllowed {
        /// The method that it takes.
        allowed: &'static str,
    },
    /// The client took too long to send its request.
    #[error("The request did not arrive within {limit_ms} ms: send it again.")]
    RequestTimeout {
        /// Milliseconds allowed.
        limit_ms: u64,
    },
    /// A limit has no room.
    #[error("{}", limit_message(.0))]
    Limit(Refusal),
    /// The model has no replica yet, and takes longer to start than is waited for.
    #[error("The model is starting: try again in {}.", seconds(*.retry_after_ms))]
    Waking {
        /// Milliseconds until it may serve.
        retry_after_ms: u64,
    },
    /// The model has no replica yet, and as many requests wait for it as may.
    #[error("The model is starting, and too many requests wait for it: try again in {}.", seconds(*.retry_after_ms))]
    WakingFull {
        /// Milliseconds until it may serve.
        retry_after_ms: u64,
    },
    /// The model has no replica, and none is on its way.
    #[error("{}", match .absence {
        Absence::Starts => "The model is starting: try again.",
        Absence::Stopped => "The model is stopped: its owner wants no replica of it now (spec.replicas of its ModelEndpoint).",
        Absence::NoCapacity => "The model cannot start: no devices are held for it. Its owner sees why in the status of its ModelEndpoint.",
        Absence::Stalled => "The model cannot start until its owner mends it: the status of its ModelEndpoint says how.",
    })]
    Absent {
        /// What is waited for.
        absence: Absence,
    },
    /// No replica of the model can take a request.
    #[error("No replica of the model can take the request now: try again in {}.", seconds(*.retry_after_ms))]
    NoReplica {
        /// Milliseconds until it may be otherwise.
        retry_after_ms: u64,
    },
    /// The gateway takes no more requests: it ends, or has no room for what it must record.
    #[error("The gateway takes no new requests now: try again in {}.", seconds(*.retry_after_ms))]
    Unavailable {
        /// Milliseconds until it, or another one, may.
        retry_after_ms: u64,
    },
    /// The bill of the answer is not durable, so that it is not given out.
    #[error(
        "The gateway cannot write its log now, and the answer is withheld: try again in a minute. What it used is charged."
    )]
    Unrecorded,
    /// The answer has no end that the gateway would wait for.
    #[error("The answer is larger than {limit} bytes: ask for less, or for a stream. What it used is charged.")]
    AnswerTooLarge {
        /// Bytes allowed.
        limit: usize,
    },
    /// The engine gave no good answer.
    #[error("The model's server failed: try again. Nothing is charged for what was not produced.")]
    Upstream,
    /// The engine gave no answer in time.
    #[error(
        "The model's server did not answer within {limit_ms} ms: try again, with a shorter prompt or fewer tokens."
    )]
    UpstreamTimeout {
        /// Milliseconds allowed.
        limit_ms: u64,
    },
}

fn model_message(model: &str) -> String {
    let name = if model.is_empty() { String::new() } else { format!(" `{model}`") };
    format!(
        "The model{name} does not exist or is not shared with you: GET /v1/models lists those that this key may use, and its owner can \
         have another one shared."
    )
}

fn limit_message(refusal: &Refusal) -> String {
    let Refusal { scope, limit, allowed, retry, .. } = refusal;
    let whose = match scope {
        ScopeKind::Key => "This key",
        ScopeKind::Tenant => "This key's tenant",
    };
    let what = match limit {
        LimitKind::Requests => "requests per minute",
        LimitKind::Tokens => "tokens per minute",
        LimitKind::Concurrency => "requests at once",
    };
    match retry {
        Retry::AfterMs(wait_ms) => format!(
            "{whose} may use {allowed} {what}, which are in use: try again in {}, or ask for a higher limit.",
            seconds(*wait_ms)
        ),
        Retry::Never => match limit {
            LimitKind::Tokens => format!(
                "{whose} may use {allowed} {what}, and the prompt alone is longer: send a shorter one, or ask for a higher limit."
            ),
            LimitKind::Requests | LimitKind::Concurrency => {
                format!("{whose} may use {allowed} {what}: ask for a higher limit.")
            }
        },
        Retry::Lease => format!(
            "How much of {} limit of {allowed} {what} is left is not known now: try again in {}.",
            match scope {
                ScopeKind::Key => "this key's",
                ScopeKind::Tenant => "this key's tenant's",
            },
            seconds(RETRY_MS)
        ),
    }
}

/// What an engine says of a request that it refuses, without what is its own: files of its program, the request once more, as vLLM's validation has them. None where nothing
/// is left.
fn plain(message: &str, param: Option<&str>) -> Option<String> {
    if message.trim_start_matches(|digit: char| digit.is_ascii_digit()).starts_with(" validation error") {
        // The first one: `{'type': ..., 'loc': ..., 'msg': 'Field required', 'input': ...}`.
        let said = message.split_once("'msg': ")?.1;
        let quote = said.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
        let said = said.get(1..)?.split_once(quote)?.0;
        return Some(match param {
            Some(param) => format!("`{param}`: {said}."),
            None => format!("{said}."),
        });
    }
    let end = ["\n\n  File ", "\nTraceback"].iter().filter_map(|mark| message.find(mark)).min();
    let shown = message.get(..end.unwrap_or(message.len()))?.trim_end();
    let shown: String = shown.chars().take(SHOWN_MESSAGE_MAX).collect();
    (!shown.is_empty()).then_some(shown)
}

/// A wait as a person reads it, rounded up to a tenth of a second.
fn seconds(milliseconds: u64) -> String {
    let tenths = milliseconds.div_ceil(100);
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} s"),
        (whole, tenths) => format!("{whole}.{tenths} s"),
    }
}

/// The JSON of an answer.
#[derive(Serialize)]
struct Body<'a> {
    error: Object<'a>,
}

#[derive(Serialize)]
struct Object<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'static str>,
    code: &'static str,
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self::Limit(refusal)
    }
}

impl From<request::Error> for ApiError {
    fn from(error: request::Error) -> Self {
        Self::Body(error)
    }
}

impl ApiError {
    /// `model` does not exist, or is not for this key. It is repeated if it looks like a name; what does not could be anything.
    pub fn model_not_found(model: &str) -> Self {
        let name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:/@".contains(&byte);
        let shown = model.len() <= SHOWN_MODEL_MAX && model.bytes().all(name);
        Self::ModelNotFound { model: if shown { model.to_owned() } else { String::new() } }
    }

    /// The status of HTTP.
    pub fn status(&self) -> u16 {
        match self {
            Self::Body(request::Error::TooLarge { .. }) => 413,
            Self::Body(_) | Self::NotCapable { .. } | Self::Incomplete | Self::AnswerTooLarge { .. } => 400,
            Self::Key(_) => 401,
            Self::Residency => 403,
            Self::ModelNotFound { .. } | Self::UnknownPath => 404,
            Self::MethodNotAllowed { .. } => 405,
            Self::RequestTimeout { .. } => 408,
            Self::UnsupportedMediaType => 415,
            // What is not known is our fault, not too much of the client's.
            Self::Limit(refusal) if refusal.retry == Retry::Lease => 503,
            Self::Limit(_) => 429,
            Self::HeadersTooLarge { .. } => 431,
            Self::Upstream => 502,
            Self::Waking { .. } | Self::WakingFull { .. } | Self::Absent { .. } => 503,
            Self::NoReplica { .. } | Self::Unavailable { .. } | Self::Unrecorded => 503,
            Self::UpstreamTimeout { .. } => 504,
        }
    }

    /// `error.type`. That of a limit says which, as OpenAI's does.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Limit(refusal) if refusal.retry == Retry::Lease => "server_error",
            Self::Limit(refusal) => match refusal.limit {
                LimitKind::Requests => "requests",
                LimitKind::Tokens => "tokens",
                LimitKind::Concurrency => "concurrency",
            },
            _ if self.status() >= 500 => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// `error.code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Key(KeyError::Missing) => "missing_api_key",
            Self::Key(KeyError::Malformed | KeyError::Unknown) => "invalid_api_key",
            Self::Key(KeyError::Expired) => "expired_api_key",
            Self::Key(KeyError::Revoked) => "revoked_api_key",
            Self::ModelNotFound { .. } => "model_not_found",
            Self::Residency => "region_not_allowed",
            Self::Body(request::Error::TooLarge { .. }) => "request_too_large",
            Self::Body(request::Error::NotJson { .. } | request::Error::NotAnObject) => "invalid_json",
            Self::Body(request::Error::Missing { .. }) => "missing_required_parameter",
            Self::Body(request::Error::Duplicate { .. }) => "duplicate_parameter",
            Self::Body(request::Error::Invalid { .. }) => "invalid_value",
            Self::Body(request::Error::TooMany { .. }) => "array_above_max_length",
            Self::NotCapable { .. } => "model_not_capable",
            Self::Incomplete => "incomplete_body",
            Self::HeadersTooLarge { .. } => "headers_too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::UnknownPath => "unknown_url",
            Self::MethodNotAllowed { .. } => "method_not_allowed",
            Self::RequestTimeout { .. } => "request_timeout",
            Self::Limit(refusal) if refusal.retry == Retry::Lease => "limits_unavailable",
            Self::Limit(_) => "rate_limit_exceeded",
            Self::Waking { .. } | Self::WakingFull { .. } => "model_starting",
            Self::Absent { absence } => match absence {
                Absence::Starts => "model_starting",
                Absence::Stopped => "model_stopped",
                Absence::NoCapacity => "model_without_capacity",
                Absence::Stalled => "model_stalled",
            },
            Self::NoReplica { .. } => "model_unavailable",
            Self::Unavailable { .. } => "gateway_unavailable",
            Self::Unrecorded => "log_unavailable",
            Self::AnswerTooLarge { .. } => "answer_too_large",
            Self::Upstream => "upstream_error",
            Self::UpstreamTimeout { .. } => "upstream_timeout",
        }
    }

    /// `error.param`: the field to correct.
    pub fn param(&self) -> Option<&'static str> {
        match self {
            Self::Body(error) => error.field().map(request::Field::as_str),
            Self::ModelNotFound { .. } | Self::NotCapable { .. } | Self::Residency => Some("model"),
            _ => None,
        }
    }

    /// Milliseconds after which to try again, where that helps and is known.
    pub fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::Limit(refusal) => match refusal.retry {
                Retry::AfterMs(wait_ms) => Some(wait_ms),
                Retry::Lease => Some(RETRY_MS),
                Retry::Never => None,
            },
            // Who holds devices for it may do so any minute.
            Self::Absent { .. } => Some(ABSENT_MS),
            Self::Waking { retry_after_ms }
            | Self::WakingFull { retry_after_ms }
            | Self::NoReplica { retry_after_ms }
            | Self::Unavailable { retry_after_ms } => Some(*retry_after_ms),
            _ => None,
        }
    }

    /// The headers of the answer, in lower case.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![("content-type", "application/json".to_owned())];
        match self {
            Self::Key(_) => headers.push(("www-authenticate", "Bearer".to_owned())),
            Self::MethodNotAllowed { allowed } => headers.push(("allow", (*allowed).to_owned())),
            Self::Limit(refusal) => {
                headers.extend(refusal.rates.headers());
                if refusal.retry == Retry::Never {
                    headers.push(("x-should-retry", "false".to_owned()));
                }
            }
            // Somebody has to do something first.
            Self::Absent { .. } => headers.push(("x-should-retry", "false".to_owned())),
            // Whoever tried again would pay again.
            Self::Unrecorded | Self::AnswerTooLarge { .. } | Self::UpstreamTimeout { .. } => {
                headers.push(("x-should-retry", "false".to_owned()));
            }
            _ => {}
        }
        if let Some(wait_ms) = self.retry_after_ms() {
            // Whole seconds, and not before it helps.
            headers.push(("retry-after", wait_ms.div_ceil(1_000).max(1).to_string()));
            headers.push(("retry-after-ms", wait_ms.max(1).to_string()));
        }
        headers
    }

    /// The body of the answer.
    pub fn body(&self) -> String {
        let message = self.to_string();
        let error = Object { message: &message, r#type: self.kind(), param: self.param(), code: self.code() };
        // Strings and nothing else: there is no way for it to fail.
        serde_json::to_string(&Body { error }).unwrap_or_default()
    }

    /// What a client is told where the engine refuses its request: the engine's own words, in this form. `body` is the engine's answer: with an
    /// `error` as OpenAI has it, or a `message` beside others (vLLM), or anything.
    pub fn engine_refusal(body: &[u8]) -> String {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Said {
            message: Option<String>,
            error: Option<serde_json::Value>,
        }
        let said: Said = serde_json::from_slice(body).unwrap_or_default();
        let message = match &said.error {
            Some(serde_json::Value::String(message)) => Some(message.as_str()),
            Some(error) => error.get("message").and_then(serde_json::Value::as_str),
            None => said.message.as_deref(),
        };
        let param = said.error.as_ref().and_then(|error| error.get("param")).and_then(serde_json::Value::as_str);
        // vLLM's are paths into the body.
        let param = param.map(|param| param.strip_prefix("body.").unwrap_or(param));
        let param = param.filter(|param| param.len() <= SHOWN_MODEL_MAX);
        let message = message.and_then(|message| plain(message, param));
        let message = message.unwrap_or_else(|| {
            "The model's server refuses the request: check it against the API of the model.".to_owned()
        });
        // vLLM's word for a prompt that is too long.
        let code = if param == Some("input_tokens") { "context_length_exceeded" } else { "refused_by_model" };
        let error = serde_json::json!({
            "message": message, "type": "invalid_request_error", "param": param, "code": code
        });
        serde_json::json!({ "error": error }).to_string()
    }

    /// What a client is told where a provider refuses its request: that, and whether the prompt is too long.
    pub fn provider_refusal(body: &[u8]) -> String {
        const TOO_LONG: &str = "context_length_exceeded";
        let said: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let code = said.pointer("/error/code").and_then(serde_json::Value::as_str);
        let (message, code) = if code == Some(TOO_LONG) {
            ("The prompt and the tokens that are asked for are more than the model takes: send less.", TOO_LONG)
        } else {
            ("The model's server refuses the request: check it against the API of the model.", "refused_by_model")
        };
        let error = serde_json::json!({
            "message": message, "type": "invalid_request_error", "param": null, "code": code
        });
        serde_json::json!({ "error": error }).to_string()
    }

    /// The error as an event, for a stream whose answer has begun.
    pub fn event(&self) -> String {
        format!("data: {}\n\n", self.body())
    }
}

#[cfg(test)]
mod tests;
