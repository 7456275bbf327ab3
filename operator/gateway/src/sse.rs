//! The events of a stream: where each begins and ends, however the bytes come, and what an OpenAI stream says in it.
//!
//! [`EventStream`] takes chunks as they arrive and gives back [`Piece`]s, each as soon as its last byte is there. Their bytes together are the
//! bytes that came: nothing is written anew. Only the usage chunk is withheld where the client did not ask for it. What does not look as
//! expected goes on as it came: it is the client's to judge. How the stream was cut into chunks changes nothing of the outcome.
//!
//! Must not: do I/O, show bytes of an event.
//!
//! Sources: server-sent events, WHATWG HTML 9.2.6 (lines end with CR, LF or CRLF, an event with an empty line; one byte order mark may stand
//! first). OpenAI's chat and completion chunks, and the usage chunk with an empty `choices` that `stream_options.include_usage` asks for.

use std::borrow::Cow;

use crate::json::{Kind, Reader, SyntaxError};

/// Bytes of one event, where nothing else is configured: 4 MiB, far more than a token with all its log probabilities.
pub const EVENT_BYTES_MAX: usize = 4 << 20;
/// Bytes that few tokens have more of: what comes at once is at least so many tokens. Engines that put several into an event are not all alike.
pub const TOKEN_BYTES: usize = 16;
/// Nesting of a chunk that is still read.
const DEPTH_MAX: u32 = 128;
/// Bytes of the longest name that is looked for, `completion_tokens_details`.
const NAME_BYTES_MAX: usize = 25;

/// Why a stream cannot go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// An event has no end, or one that is too far away. Nothing of it went on.
    #[error("the engine sent an event of more than {limit} bytes")]
    EventTooLarge {
        /// Bytes allowed.
        limit: usize,
    },
}

/// What an engine says it used.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TokenUsage {
    /// Tokens of the prompt, cached ones among them.
    pub prompt: u64,
    /// Tokens of the answer, reasoning among them.
    pub completion: u64,
    /// Tokens of the prompt that came from a cache, never more than `prompt`.
    pub cached: u64,
}

/// Why choices ended, as far as the words are OpenAI's own: others could say anything.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct FinishReasons(u8);

impl FinishReasons {
    const WORDS: [&'static str; 5] = ["stop", "length", "tool_calls", "content_filter", "function_call"];

    fn add(&mut self, word: &str) {
        if let Some(number) = Self::WORDS.iter().position(|known| *known == word) {
            self.0 |= 1 << number;
        }
    }

    /// The words, each once.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        (0..).zip(Self::WORDS).filter(move |(number, _)| self.0 >> number & 1 == 1).map(|(_, word)| word)
    }
}

/// What one event is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// `[DONE]`, the end of a stream.
    Done,
    /// The usage chunk: usage, and no choices.
    Usage(TokenUsage),
    /// A chunk with choices.
    Delta {
        /// Tokens that it has at least: one for each choice that says something, and one for each [`TOKEN_BYTES`] of it.
        tokens: u32,
        /// Choices that end with it.
        finished: u32,
        /// Usage so far, which some engines tell in each chunk, or in the last one.
        usage: Option<TokenUsage>,
    },
    /// An error in the midst of a stream.
    Failure,
    /// A comment, a heartbeat, or what no OpenAI stream has.
    Other,
    /// The line feed of a CRLF whose event is gone already, because the chunk ended between the two.
    LineFeed,
}

/// An event and its bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Piece<'a> {
    /// What it is.
    pub event: Event,
    /// What goes to the client: the event as it came, or nothing.
    pub bytes: &'a [u8],
}

/// What was seen of a stream until now.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Tokens of all deltas, at least: what is billed where an engine never tells its usage.
    pub tokens: u64,
    /// The last usage that was told.
    pub usage: Option<TokenUsage>,
    /// Choices that have ended.
    pub finished: u32,
    /// Why they have.
    pub reasons: FinishReasons,
    /// Whether the usage chunk came, after which none with choices does.
    pub usage_chunk: bool,
    /// Whether `[DONE]` came.
    pub done: bool,
    /// Whether an error came.
    pub failed: bool,
}

/// Cuts a stream into events.
#[derive(Debug)]
pub struct EventStream {
    /// Bytes of an event whose end has not come. Not shown.
    pending: Pending,
    limit: usize,
    withhold_usage: bool,
    /// Whether no byte of the line that is being read has come.
    line_empty: bool,
    /// Whether the byte before was a CR, so that a LF now belongs to it.
    after_cr: bool,
    /// Where that CR ended an event that is gone: whether its bytes went on.
    gone_with_cr: Option<bool>,
    /// Whether no event has ended yet, so that a byte order mark may stand before the first.
    at_start: bool,
    error: Option<Error>,
    tally: Tally,
}

/// Bytes that do not show themselves.
#[derive(Default)]
struct Pending(Vec<u8>);

impl std::fmt::Debug for Pending {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} bytes", self.0.len())
    }
}

impl EventStream {
    /// A stream from its start. `client_wants_usage` as [`crate::request::Request::wants_usage`] has it; an event of more than `limit` bytes
    /// ends the stream.
    pub fn new(client_wants_usage: bool, limit: usize) -> Self {
        Self {
            pending: Pending::default(),
            limit,
            withhold_usage: !client_wants_usage,
            line_empty: true,
            after_cr: false,
            gone_with_cr: None,
            at_start: true,
            error: None,
            tally: Tally::default(),
        }
    }

    /// What was seen until now.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Takes the next bytes and gives `sink` every event that ends in them.
    ///
    /// # Errors
    ///
    /// [`Error::EventTooLarge`], now and ever after. Events before it were given to `sink`.
    pub fn push(&mut self, chunk: &[u8], mut sink: impl FnMut(Piece<'_>)) -> Result<(), Error> {
        if let Some(error) = self.error {
            return Err(error);
        }
        // Up to here the chunk is dealt with, and up to `at` it is read.
        let (mut start, mut at) = (0, 0);
        while let Some(rest) = chunk.get(at..).filter(|rest| !rest.is_empty()) {
            if std::mem::take(&mut self.after_cr) && rest.first() == Some(&b'\n') {
                at += 1;
                if let Some(forwarded) = self.gone_with_cr.take() {
                    start = at;
                    sink(Piece { event: Event::LineFeed, bytes: if forwarded { b"\n" } else { b"" } });
                }
                continue;
            }
            self.gone_with_cr = None;
            let Some(length) = line_length(rest) else {
                self.line_empty = false;
                break;
            };
            at += length;
            self.line_empty &= length == 0;
            let cr = chunk.get(at) == Some(&b'\r');
            at += 1;
            self.after_cr = cr;
            if !std::mem::replace(&mut self.line_empty, true) {
                continue;
            }
            // The length that counts has no LF after a CR, which may be in another chunk.
            self.check_length(at - start)?;
            if cr && chunk.get(at) == Some(&b'\n') {
                at += 1;
                self.after_cr = false;
            }
            let forwarded = self.dispatch(chunk.get(start..at).unwrap_or_default(), &mut sink);
            self.gone_with_cr = self.after_cr.then_some(forwarded);
            start = at;
        }
        let rest = chunk.get(start..).unwrap_or_default();
        self.check_length(rest.len())?;
        self.pending.0.extend_from_slice(rest);
        Ok(())
    }

    /// The end of the stream: what came after the last event is one more, though no client that follows the standard would read it.
    pub fn finish(mut self, mut sink: impl FnMut(Piece<'_>)) -> Tally {
        if self.error.is_none() && !self.pending.0.is_empty() {
            self.dispatch(b"", &mut sink);
        }
        self.tally
    }

    /// That an event of which `more` bytes are not pending is not too long.
    fn check_length(&mut self, more: usize) -> Result<(), Error> {
        if self.pending.0.len() + more <= self.limit {
            return Ok(());
        }
        let error = Error::EventTooLarge { limit: self.limit };
        self.error = Some(error);
        self.pending.0 = Vec::new();
        Err(error)
    }

    /// Gives away an event whose last bytes are `rest`. Whether its bytes go on.
    fn dispatch(&mut self, rest: &[u8], sink: &mut impl FnMut(Piece<'_>)) -> bool {
        let mut pending = std::mem::take(&mut self.pending.0);
        let raw = if pending.is_empty() {
            rest
        } else {
            pending.extend_from_slice(rest);
            &pending
        };
        let (event, reasons) = match raw.strip_prefix("\u{feff}".as_bytes()) {
            Some(raw) if self.at_start => classify(raw),
            _ => classify(raw),
        };
        self.tally.reasons.0 |= reasons.0;
        self.at_start = false;
        self.count(event);
        let forwarded = !(self.withhold_usage && matches!(event, Event::Usage(_)));
        sink(Piece { event, bytes: if forwarded { raw } else { b"" } });
        pending.clear();
        self.pending.0 = pending;
        forwarded
    }

    fn count(&mut self, event: Event) {
        match event {
            Event::Done => self.tally.done = true,
            Event::Failure => self.tally.failed = true,
            Event::Usage(usage) => {
                self.tally.usage = Some(usage);
                self.tally.usage_chunk = true;
            }
            Event::Delta { tokens, finished, usage } => {
                self.tally.tokens = self.tally.tokens.saturating_add(tokens.into());
                self.tally.finished = self.tally.finished.saturating_add(finished);
                self.tally.usage = usage.or(self.tally.usage);
            }
            Event::Other | Event::LineFeed => {}
        }
    }
}

/// Bytes before the end of a line, if it is there.
fn line_length(bytes: &[u8]) -> Option<usize> {
    const STRIDE: usize = 32;
    let ends = |byte: u8| byte == b'\n' || byte == b'\r';
    let (strides, _) = bytes.as_chunks::<STRIDE>();
    // `|` and not `||`: without a branch for each byte, so that a stride is compared at once.
    let whole =
        strides.iter().take_while(|stride| !stride.iter().fold(false, |hit, &byte| hit | ends(byte))).count() * STRIDE;
    let rest = bytes.get(whole..).unwrap_or_default();
    rest.iter().position(|&byte| ends(byte)).map(|length| whole + length)
}

/// What a whole event is.
fn classify(raw: &[u8]) -> (Event, FinishReasons) {
    let mut data: Option<Cow<'_, [u8]>> = None;
    let mut failure = false;
    for line in raw.split(|&byte| byte == b'\n' || byte == b'\r') {
        let (name, value) = match line.iter().position(|&byte| byte == b':') {
            Some(colon) => (line.get(..colon).unwrap_or_default(), line.get(colon + 1..).unwrap_or_default()),
            None => (line, b"".as_slice()),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => match &mut data {
                None => data = Some(Cow::Borrowed(value)),
                Some(data) => {
                    let data = data.to_mut();
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
            },
            b"event" => failure = value == b"error",
            _ => {}
        }
    }
    let none = FinishReasons::default();
    let Some(data) = data else { return (Event::Other, none) };
    // As the official clients read it.
    if data.starts_with(b"[DONE]") {
        return (Event::Done, none);
    }
    let chunk = Chunk::read(&data).unwrap_or_default();
    if failure || chunk.error {
        return (Event::Failure, none);
    }
    let event = match (chunk.choices, chunk.usage) {
        (Some(0), Some(usage)) => Event::Usage(usage),
        (Some(1..), usage) => Event::Delta { tokens: chunk.tokens, finished: chunk.finished, usage },
        _ => Event::Other,
    };
    (event, chunk.reasons)
}

/// The usage that an answer in one piece tells, if it is JSON and does, and why its choices ended.
pub fn usage_of_answer(body: &[u8]) -> (Option<TokenUsage>, FinishReasons) {
    let answer = Chunk::read(body).unwrap_or_default();
    (answer.usage, answer.reasons)
}

/// Bytes of text in an answer in one piece: `text` of completions, `content` and `reasoning_content` of chats. For engines that do not tell their
/// usage.
pub fn text_bytes_of_answer(body: &[u8]) -> u64 {
    fn of_choice(reader: &mut Reader<'_>, bytes: &mut u64) -> Result<(), SyntaxError> {
        members(reader, |reader, name, kind| {
            match (name, kind) {
                ("text" | "content" | "reasoning_content", Kind::Text) => {
                    *bytes = bytes.saturating_add(reader.string()?.decoded as u64);
                }
                ("message", Kind::Object) => of_choice(reader, bytes)?,
                _ => {
                    reader.skip()?;
                }
            }
            Ok(())
        })
    }
    let mut bytes = 0;
    let mut read = || -> Result<(), SyntaxError> {
        let mut reader = Reader::new(body, DEPTH_MAX)?;
        members(&mut reader, |reader, name, kind| {
            if (name, kind) != ("choices", Kind::Array) {
                return reader.skip().map(drop);
            }
            reader.open_array()?;
            let mut first = true;
            while reader.element(&mut first)? {
                of_choice(reader, &mut bytes)?;
            }
            Ok(())
        })
    };
    // What was read before an error stands.
    let _ = read();
    bytes
}

/// What is read of a chunk, or of an answer in one piece.
#[derive(Default)]
struct Chunk {
    /// How many choices there are, if they are told.
    choices: Option<u32>,
    /// Tokens of what they say, at least.
    tokens: u32,
    /// How many of them end.
    finished: u32,
    reasons: FinishReasons,
    usage: Option<TokenUsage>,
    error: bool,
}

impl Chunk {
    fn read(data: &[u8]) -> Result<Self, SyntaxError> {
        let mut reader = Reader::new(data, DEPTH_MAX)?;
        let mut chunk = Self::default();
        let mut said = None;
        members(&mut reader, |reader, name, kind| {
            match (name, kind) {
                ("choices", Kind::Array) => {
                    reader.open_array()?;
                    let (mut choices, mut first) = (0_u32, true);
                    while reader.element(&mut first)? {
                        choices = choices.saturating_add(1);
                        let choice = read_choice(reader, &mut chunk.reasons)?;
                        chunk.tokens = chunk.tokens.saturating_add(choice.tokens);
                        chunk.finished = chunk.finished.saturating_add(u32::from(choice.finished));
                    }
                    chunk.choices = Some(choices);
                }
                ("usage", Kind::Object) => said = Some(read_usage(reader)?),
                ("error", kind) => {
                    chunk.error = kind != Kind::Null;
                    reader.skip()?;
                }
                _ => {
                    reader.skip()?;
                }
            }
            Ok(())
        })?;
        reader.end()?;
        // What is not whole is not believed: our own count is better than a 0 that nobody meant. Embeddings have no completion.
        chunk.usage = said.and_then(|Said { prompt, completion, cached }| {
            let prompt = prompt?;
            let completion = if chunk.choices.is_some() { completion? } else { completion.unwrap_or(0) };
            Some(TokenUsage { prompt, completion, cached: cached.unwrap_or(0).min(prompt) })
        });
        Ok(chunk)
    }
}

/// Calls `take` for each member of the object that comes next; what is no object is skipped. `take` reads or skips the value.
fn members<'a>(
    reader: &mut Reader<'a>,
    mut take: impl FnMut(&mut Reader<'a>, &str, Kind) -> Result<(), SyntaxError>,
) -> Result<(), SyntaxError> {
    if reader.kind()? != Kind::Object {
        return reader.skip().map(drop);
    }
    reader.open_object()?;
    let mut first = true;
    while let Some(name) = reader.member(&mut first)? {
        let name = reader.decode_short(name, NAME_BYTES_MAX).unwrap_or_default();
        let kind = reader.kind()?;
        take(reader, &name, kind)?;
    }
    Ok(())
}

/// One choice of a chunk.
#[derive(Default)]
struct Choice {
    tokens: u32,
    finished: bool,
}

/// Reads what a choice says (`text` of completions; `content`, a refusal or reasoning of chats; calls of tools), and whether it ends, and why.
fn read_choice(reader: &mut Reader<'_>, reasons: &mut FinishReasons) -> Result<Choice, SyntaxError> {
    let (mut bytes, mut finished) = (0_usize, false);
    members(reader, |reader, name, kind| {
        match (name, kind) {
            ("text", Kind::Text) => bytes += reader.string()?.decoded,
            ("finish_reason", Kind::Text) => {
                let word = reader.string()?;
                reasons.add(&reader.decode_short(word, NAME_BYTES_MAX).unwrap_or_default());
                finished = true;
            }
            ("delta", _) => members(reader, |reader, name, kind| {
                bytes += match (name, kind) {
                    ("content" | "reasoning_content" | "reasoning" | "refusal", Kind::Text) => reader.string()?.decoded,
                    ("tool_calls", Kind::Array) => {
                        reader.open_array()?;
                        let (mut calls, mut first) = (0, true);
                        while reader.element(&mut first)? {
                            // A call that says nothing yet is a token as well.
                            calls += read_call(reader)?.max(1);
                        }
                        calls
                    }
                    ("function_call", Kind::Object) => read_call(reader)?,
                    _ => {
                        reader.skip()?;
                        0
                    }
                };
                Ok(())
            })?,
            _ => {
                reader.skip()?;
            }
        }
        Ok(())
    })?;
    let tokens = if bytes == 0 { 0 } else { (bytes / TOKEN_BYTES).max(1) };
    Ok(Choice { tokens: u32::try_from(tokens).unwrap_or(u32::MAX), finished })
}

/// Bytes of a call of a tool: of its name and arguments, wherever they stand in it.
fn read_call(reader: &mut Reader<'_>) -> Result<usize, SyntaxError> {
    let mut bytes = 0;
    members(reader, |reader, name, kind| {
        match (name, kind) {
            ("name" | "arguments", Kind::Text) => bytes += reader.string()?.decoded,
            ("function", Kind::Object) => bytes += read_call(reader)?,
            _ => {
                reader.skip()?;
            }
        }
        Ok(())
    })?;
    Ok(bytes)
}

/// Usage as it was told: counts that are not there, or are none, are not.
#[derive(Clone, Copy, Default)]
struct Said {
    prompt: Option<u64>,
    completion: Option<u64>,
    cached: Option<u64>,
}

fn read_usage(reader: &mut Reader<'_>) -> Result<Said, SyntaxError> {
    let mut usage = Said::default();
    members(reader, |reader, name, _| {
        match name {
            "prompt_tokens" => usage.prompt = read_count(reader)?,
            "completion_tokens" => usage.completion = read_count(reader)?,
            "prompt_tokens_details" => members(reader, |reader, name, _| {
                if name == "cached_tokens" {
                    usage.cached = read_count(reader)?;
                } else {
                    reader.skip()?;
                }
                Ok(())
            })?,
            _ => {
                reader.skip()?;
            }
        }
        Ok(())
    })?;
    Ok(usage)
}

/// A count of tokens, if it is one.
fn read_count(reader: &mut Reader<'_>) -> Result<Option<u64>, SyntaxError> {
    let span = reader.skip()?;
    Ok(reader.slice(span).parse().ok())
}

/// Feeds one input of a fuzzer to an [`EventStream`]: cut at places that the first bytes choose, it must give what it gives uncut.
#[doc(hidden)]
pub fn fuzz_sse(data: &[u8]) {
    const LIMIT: usize = 256;
    let Some((&flags, rest)) = data.split_first() else { return };
    let (cuts, bytes) = rest.split_at(rest.len().min(usize::from(flags >> 4)));
    let run = |cuts: &[u8]| {
        let mut stream = EventStream::new(flags & 1 == 1, LIMIT);
        let (mut out, mut events) = (Vec::new(), Vec::new());
        let mut rest = bytes;
        let mut result = Ok(());
        for chunk in cuts.iter().map(|&cut| usize::from(cut)).chain([usize::MAX]) {
            let (chunk, after) = rest.split_at(chunk.min(rest.len()));
            rest = after;
            result = stream.push(chunk, |piece| {
                out.extend_from_slice(piece.bytes);
                events.extend((piece.event != Event::LineFeed).then_some(piece.event));
            });
        }
        let tally = stream.finish(|piece| {
            out.extend_from_slice(piece.bytes);
            events.push(piece.event);
        });
        (out, events, result, tally)
    };
    let whole = run(&[]);
    assert!(run(cuts) == whole);
    let withheld = whole.1.iter().any(|event| matches!(event, Event::Usage(_)));
    assert!(withheld || whole.2.is_err() || whole.0 == bytes);
}

#[cfg(test)]
mod tests;
