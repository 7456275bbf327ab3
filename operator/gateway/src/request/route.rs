//! Which paths there are, and what they take.

use std::borrow::Cow;

use crate::error::ApiError;

/// What a path of the API is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Route<'a> {
    /// `GET /v1/models`
    Models,
    /// `GET /v1/models/{model}`, the name with `%2F` read as `/`.
    Model(Cow<'a, str>),
    /// `POST` of a request to an engine.
    Engine(Endpoint),
}

/// An endpoint that an engine answers.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    ChatCompletions,
    /// `/v1/completions`
    Completions,
    /// `/v1/embeddings`
    Embeddings,
}

impl Endpoint {
    /// Every endpoint.
    pub const ALL: [Self; 3] = [Self::ChatCompletions, Self::Completions, Self::Embeddings];

    /// Its path, at the gateway and at an engine.
    pub fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
        }
    }
}

/// Which route `method` and `path` (without its query) name.
///
/// # Errors
///
/// [`ApiError::UnknownPath`], [`ApiError::MethodNotAllowed`].
pub fn route<'a>(method: &str, path: &'a str) -> Result<Route<'a>, ApiError> {
    let (route, allowed) = if let Some(endpoint) = Endpoint::ALL.into_iter().find(|endpoint| endpoint.path() == path) {
        (Route::Engine(endpoint), "POST")
    } else if path == "/v1/models" {
        (Route::Models, "GET")
    } else if let Some(name) = path.strip_prefix("/v1/models/").filter(|name| !name.is_empty()) {
        let slash = name.contains("%2F") || name.contains("%2f");
        let name = if slash { name.replace("%2F", "/").replace("%2f", "/").into() } else { name.into() };
        (Route::Model(name), "GET")
    } else {
        return Err(ApiError::UnknownPath);
    };
    if method == allowed { Ok(route) } else { Err(ApiError::MethodNotAllowed { allowed }) }
}

/// That a `Content-Type` is JSON's: `application/json`, with any parameters. None at all is taken for it, as engines do.
///
/// # Errors
///
/// [`ApiError::UnsupportedMediaType`].
pub fn check_content_type(content_type: Option<&str>) -> Result<(), ApiError> {
    let Some(content_type) = content_type else { return Ok(()) };
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") { Ok(()) } else { Err(ApiError::UnsupportedMediaType) }
}
