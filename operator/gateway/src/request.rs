//! What the gateway must know of a request, and the body that goes on to the engine.
//!
//! A body is read once, strictly and within [`Bounds`], without building its values: of the prompt only sizes and positions are kept, so
//! that nothing of it can reach a log. The body that goes on is the client's, byte for byte, but for [`Request::edits`]: the value of
//! `model`, which becomes the engine's name of it, and, for a stream, `stream_options.include_usage`, so that usage is always told.
//!
//! A field of [`Field`] that stands twice, or whose value another reader could take for something else, is refused: what is billed, limited
//! and routed must be what the engine sees. All other fields are the engine's to judge. Must not: do I/O, keep or show prompts.
//!
//! Source of the fields: OpenAI's API reference, chat completions, completions and embeddings, as vLLM, SGLang and llama.cpp serve them.

use std::ops::Range;

use crate::json::Text;

mod field;
mod parser;
mod route;

pub use field::{Error, Field};
pub use parser::parse;
pub use route::{Endpoint, Route, check_content_type, route};

/// Strings of the prompt whose positions are kept for [`Request::prefix`]. What comes after them is far behind any common prefix.
const PREFIX_SPANS_MAX: usize = 4_096;
/// Bytes of a `model`: a namespace, `/`, and a name, each at most 253 bytes (RFC 1123 subdomains).
pub const MODEL_BYTES_MAX: usize = 507;
/// Bytes of the longest name that is looked for, `max_completion_tokens`.
const NAME_BYTES_MAX: usize = 21;
/// Most of `n`, as OpenAI's API has it.
pub const CHOICES_MAX: u32 = 128;

/// How much a body may hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bounds {
    /// Bytes of the body, at most `u32::MAX`.
    pub bytes: usize,
    /// Levels of nesting, at most 128.
    pub depth: u32,
    /// Elements of `messages`.
    pub messages: u32,
    /// Parts of the content of all messages together, and elements of `prompt` or `input` that are not token ids.
    pub parts: u32,
}

impl Default for Bounds {
    /// 32 MiB, as pictures are sent within messages; 64 levels; 4,096 messages; 16,384 parts.
    fn default() -> Self {
        Self { bytes: 32 << 20, depth: 64, messages: 4_096, parts: 16_384 }
    }
}

/// How large a prompt is, before an engine has counted it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PromptSize {
    /// Bytes of UTF-8 of text: contents, parts, tool calls and tools.
    pub text_bytes: u64,
    /// Messages of a conversation.
    pub messages: u32,
    /// Parts that are no text: pictures, sound, files. Their bytes say nothing of their tokens.
    pub media: u32,
    /// Tokens that came as token ids.
    pub token_ids: u64,
}

impl PromptSize {
    /// Bytes of text for a token, about what tokenizers of today make of English.
    pub const BYTES_PER_TOKEN: u64 = 4;
    /// Tokens that a chat template puts around a message.
    pub const TOKENS_PER_MESSAGE: u64 = 4;
    /// Tokens of a picture of middling size.
    pub const TOKENS_PER_MEDIA: u64 = 1_024;

    /// Tokens to reserve, until the engine says how many there were.
    pub fn estimated_tokens(self) -> u64 {
        self.text_bytes
            .div_ceil(Self::BYTES_PER_TOKEN)
            .saturating_add(u64::from(self.messages) * Self::TOKENS_PER_MESSAGE)
            .saturating_add(u64::from(self.media) * Self::TOKENS_PER_MEDIA)
            .saturating_add(self.token_ids)
    }
}

/// A stretch of the body. Bodies are shorter than 4 GiB.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Span {
    start: u32,
    end: u32,
}

impl From<Range<usize>> for Span {
    fn from(range: Range<usize>) -> Self {
        let bound = |at| u32::try_from(at).unwrap_or(u32::MAX);
        Self { start: bound(range.start), end: bound(range.end) }
    }
}

impl From<Text> for Span {
    fn from(text: Text) -> Self {
        Self::from(text.start..text.end)
    }
}

impl Span {
    fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    fn of(self, body: &[u8]) -> &[u8] {
        body.get(self.range()).unwrap_or_default()
    }
}

/// Where usage is asked for, or would be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum UsageSwitch {
    /// There are no `stream_options`.
    NoOptions,
    /// `stream_options` is `null`, which stands here.
    NullOptions(Span),
    /// `stream_options` without `include_usage`: the byte after its `{`, and whether other members follow.
    NotIn { at: u32, empty: bool },
    /// `include_usage` is `false` or `null`, which stands here.
    Off(Span),
    /// `include_usage` is `true`.
    On,
}

/// One change of a body: `range` of it becomes `text`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Edit {
    /// Bytes of the client's body.
    pub range: Range<usize>,
    /// What stands there in the engine's.
    pub text: String,
}

/// What is known of a request. Holds nothing of the prompt: only its size and where it stands in the body.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    endpoint: Endpoint,
    model: String,
    model_span: Span,
    stream: bool,
    usage: UsageSwitch,
    max_completion_tokens: Option<u32>,
    choices: u32,
    prompt_size: PromptSize,
    tools: Option<Span>,
    prompt: Vec<Span>,
}

impl Request {
    /// Where it was sent.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// The value of `model`, at most [`MODEL_BYTES_MAX`] bytes of whatever the client wrote.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Whether the answer is a stream of events.
    pub fn stream(&self) -> bool {
        self.stream
    }

    /// Whether the client asked for the usage of a stream. If not, the usage that we ask for is ours alone.
    pub fn wants_usage(&self) -> bool {
        self.usage == UsageSwitch::On
    }

    /// Most tokens of each choice: the larger of `max_tokens` and `max_completion_tokens`, as engines differ in which they follow.
    pub fn max_completion_tokens(&self) -> Option<u32> {
        self.max_completion_tokens
    }

    /// How many answers are asked for: `n`, for each prompt. 0 where no tokens are generated.
    pub fn choices(&self) -> u32 {
        self.choices
    }

    /// How large the prompt is.
    pub fn prompt_size(&self) -> PromptSize {
        self.prompt_size
    }

    /// The bytes over which prefixes are hashed: tools, then roles and contents in their order, as they stand in `body`, with a zero
    /// byte between any two (no JSON has one). A conversation that goes on keeps these bytes and adds to them.
    pub fn prefix<'b>(&self, body: &'b [u8]) -> impl Iterator<Item = &'b [u8]> {
        let mut first = true;
        self.tools.iter().chain(&self.prompt).flat_map(move |span| {
            let between: &[u8] = if std::mem::replace(&mut first, false) { b"" } else { b"\0" };
            [between, span.of(body)]
        })
    }

    /// The changes that make the engine's body of the client's, from its start to its end. `model` is the engine's name of the model.
    pub fn edits(&self, model: &str) -> Vec<Edit> {
        const OPTIONS: &str = r#"{"include_usage":true}"#;
        let mut name = serde_json::Value::from(model).to_string();
        let mut switch = None;
        if self.stream {
            match self.usage {
                UsageSwitch::On => {}
                // Behind `model`, which every body has.
                UsageSwitch::NoOptions => name.push_str(&format!(r#","stream_options":{OPTIONS}"#)),
                UsageSwitch::NullOptions(span) => {
                    switch = Some(Edit { range: span.range(), text: OPTIONS.to_owned() });
                }
                UsageSwitch::NotIn { at, empty } => {
                    let text = format!(r#""include_usage":true{}"#, if empty { "" } else { "," });
                    switch = Some(Edit { range: at as usize..at as usize, text });
                }
                UsageSwitch::Off(span) => switch = Some(Edit { range: span.range(), text: "true".to_owned() }),
            }
        }
        let mut edits = vec![Edit { range: self.model_span.range(), text: name }];
        edits.extend(switch);
        edits.sort_by_key(|edit| edit.range.start);
        edits
    }

    /// The engine's body: `body`, from which this request was read, with its [edits](Self::edits).
    pub fn upstream_body(&self, body: &[u8], model: &str) -> Vec<u8> {
        let edits = self.edits(model);
        let mut upstream = Vec::with_capacity(body.len() + edits.iter().map(|edit| edit.text.len()).sum::<usize>());
        let mut at = 0;
        for edit in edits {
            upstream.extend_from_slice(body.get(at..edit.range.start).unwrap_or_default());
            upstream.extend_from_slice(edit.text.as_bytes());
            at = edit.range.end;
        }
        upstream.extend_from_slice(body.get(at..).unwrap_or_default());
        upstream
    }
}

/// Feeds one input of a fuzzer to [`parse`], and checks what must hold of every request: its engine's body is JSON for another parser, and is
/// the client's outside the edits. The first byte chooses the endpoint.
#[doc(hidden)]
pub fn fuzz_request(data: &[u8]) {
    let Some((&choice, body)) = data.split_first() else { return };
    let endpoint = match choice % 3 {
        0 => Endpoint::ChatCompletions,
        1 => Endpoint::Completions,
        _ => Endpoint::Embeddings,
    };
    let bounds = Bounds { bytes: 1 << 16, depth: 16, messages: 8, parts: 16 };
    let Ok(request) = parse(endpoint, body, &bounds) else { return };
    let upstream = request.upstream_body(body, "engine/\"model\"");
    assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&upstream).is_ok());
    let again = parse(endpoint, &upstream, &Bounds { bytes: usize::MAX, ..bounds });
    assert!(again.is_ok_and(|again| {
        again.model() == "engine/\"model\""
            && again.stream == request.stream
            && (!again.stream || again.wants_usage())
            && again.prompt_size == request.prompt_size
            && again.prefix(&upstream).eq(request.prefix(body))
    }));
}

#[cfg(test)]
mod tests;
