//! The fields that the gateway reads, and what can be wrong with them.

use super::Endpoint;
use crate::json::SyntaxError;

/// A field that the gateway reads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Field {
    /// `model`
    Model,
    /// `stream`
    Stream,
    /// `stream_options`
    StreamOptions,
    /// `stream_options.include_usage`
    IncludeUsage,
    /// `max_tokens`
    MaxTokens,
    /// `max_completion_tokens`
    MaxCompletionTokens,
    /// `n`
    N,
    /// `messages`
    Messages,
    /// `tools`
    Tools,
    /// `prompt`
    Prompt,
    /// `input`
    Input,
}

impl Field {
    /// The name, and the path to it, as an error's `param` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Stream => "stream",
            Self::StreamOptions => "stream_options",
            Self::IncludeUsage => "stream_options.include_usage",
            Self::MaxTokens => "max_tokens",
            Self::MaxCompletionTokens => "max_completion_tokens",
            Self::N => "n",
            Self::Messages => "messages",
            Self::Tools => "tools",
            Self::Prompt => "prompt",
            Self::Input => "input",
        }
    }

    /// The top-level field `name` of `endpoint`, if the gateway reads it.
    pub(super) fn of(endpoint: Endpoint, name: &str) -> Option<Self> {
        let generates = endpoint != Endpoint::Embeddings;
        let chat = endpoint == Endpoint::ChatCompletions;
        match name {
            "model" => Some(Self::Model),
            "stream" if generates => Some(Self::Stream),
            "stream_options" if generates => Some(Self::StreamOptions),
            "max_tokens" if generates => Some(Self::MaxTokens),
            "max_completion_tokens" if generates => Some(Self::MaxCompletionTokens),
            "n" if generates => Some(Self::N),
            // Engines embed conversations too.
            "messages" if endpoint != Endpoint::Completions => Some(Self::Messages),
            "tools" if chat => Some(Self::Tools),
            "prompt" if endpoint == Endpoint::Completions => Some(Self::Prompt),
            "input" if endpoint == Endpoint::Embeddings => Some(Self::Input),
            _ => None,
        }
    }
}

impl std::fmt::Display for Field {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Why a body is refused. Says what to change, and shows nothing of the body.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// More bytes than allowed.
    #[error("The body is larger than {limit} bytes: send a shorter prompt, or split the request.")]
    TooLarge {
        /// Bytes allowed.
        limit: usize,
    },
    /// Not JSON.
    #[error("The body is not valid JSON: {source}{}. Correct it and send it again.", in_field(*.field))]
    NotJson {
        /// The field in which it was met, if it is one that we know.
        field: Option<Field>,
        /// Where and what.
        source: SyntaxError,
    },
    /// JSON, but no object.
    #[error("The body is not a JSON object: send one with `model` and the prompt.")]
    NotAnObject,
    /// A field that must be there is not.
    #[error("`{field}` is missing: add it to the body.")]
    Missing {
        /// The field.
        field: Field,
    },
    /// A field stands twice.
    #[error("`{field}` is given twice: keep one of them.")]
    Duplicate {
        /// The field.
        field: Field,
    },
    /// A field's value is of the wrong kind or out of its range.
    #[error("`{field}` must be {expected}.")]
    Invalid {
        /// The field.
        field: Field,
        /// What it must be.
        expected: &'static str,
    },
    /// Too many elements.
    #[error("`{field}` has more than {limit} elements: send fewer, or split the request.")]
    TooMany {
        /// The field.
        field: Field,
        /// Elements allowed.
        limit: u32,
    },
}

fn in_field(field: Option<Field>) -> String {
    field.map(|field| format!(", in `{field}`")).unwrap_or_default()
}

impl Error {
    /// The field that must be corrected, if it is known.
    pub fn field(&self) -> Option<Field> {
        match *self {
            Self::TooLarge { .. } | Self::NotAnObject => None,
            Self::NotJson { field, .. } => field,
            Self::Missing { field }
            | Self::Duplicate { field }
            | Self::Invalid { field, .. }
            | Self::TooMany { field, .. } => Some(field),
        }
    }
}

impl From<SyntaxError> for Error {
    fn from(source: SyntaxError) -> Self {
        Self::NotJson { field: None, source }
    }
}
