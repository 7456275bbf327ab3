//! Reads a body once, from its start to its end.

use super::{
    Bounds, CHOICES_MAX, Endpoint, Error, Field, MODEL_BYTES_MAX, NAME_BYTES_MAX, PREFIX_SPANS_MAX, PromptSize,
    Request, Span, UsageSwitch,
};
use crate::json::{Kind, Reader};

/// Reads the body of a `POST` to `endpoint`.
///
/// # Errors
///
/// [`Error`], for what is not JSON, not within `bounds`, or not understood in the same way by all.
pub fn parse(endpoint: Endpoint, body: &[u8], bounds: &Bounds) -> Result<Request, Error> {
    let limit = bounds.bytes.min(u32::MAX as usize);
    if body.len() > limit {
        return Err(Error::TooLarge { limit });
    }
    let reader = Reader::new(body, bounds.depth)?;
    Parser {
        reader,
        bounds,
        seen: 0,
        parts: 0,
        prompts: 1,
        request: Request {
            endpoint,
            model: String::new(),
            model_span: Span { start: 0, end: 0 },
            stream: false,
            usage: UsageSwitch::NoOptions,
            max_completion_tokens: None,
            choices: 1,
            prompt_size: PromptSize::default(),
            tools: None,
            prompt: Vec::new(),
        },
    }
    .body()
}

struct Parser<'a> {
    reader: Reader<'a>,
    bounds: &'a Bounds,
    /// A bit for each [`Field`] met.
    seen: u16,
    /// Counted against [`Bounds::parts`].
    parts: u32,
    /// Prompts in `prompt`.
    prompts: u32,
    request: Request,
}

impl Parser<'_> {
    fn body(mut self) -> Result<Request, Error> {
        if self.reader.kind()? != Kind::Object {
            // What is no JSON at all is told as that.
            self.reader.skip()?;
            self.reader.end()?;
            return Err(Error::NotAnObject);
        }
        self.reader.open_object()?;
        let mut first = true;
        while let Some(name) = self.reader.member(&mut first)? {
            let name = self.reader.decode_short(name, NAME_BYTES_MAX);
            match name.and_then(|name| Field::of(self.request.endpoint, &name)) {
                Some(field) => self.field(field).map_err(|error| match error {
                    Error::NotJson { field: None, source } => Error::NotJson { field: Some(field), source },
                    error => error,
                })?,
                None => {
                    self.reader.skip()?;
                }
            }
        }
        self.reader.end()?;
        self.finish()
    }

    fn finish(self) -> Result<Request, Error> {
        let has = |field: Field| self.seen & (1 << field as u16) != 0;
        let mut request = self.request;
        if !has(Field::Model) {
            return Err(Error::Missing { field: Field::Model });
        }
        match request.endpoint {
            Endpoint::ChatCompletions if !has(Field::Messages) => {
                return Err(Error::Missing { field: Field::Messages });
            }
            Endpoint::ChatCompletions => {}
            // What else can stand for a prompt is the engine's to know.
            Endpoint::Completions => request.choices = request.choices.saturating_mul(self.prompts),
            Endpoint::Embeddings => request.choices = 0,
        }
        Ok(request)
    }

    fn field(&mut self, field: Field) -> Result<(), Error> {
        self.once(field)?;
        match field {
            Field::Model => self.model(),
            Field::Stream => {
                self.request.stream = self.switch(field)?.is_some_and(|(on, _)| on);
                Ok(())
            }
            Field::StreamOptions => self.stream_options(),
            Field::MaxTokens | Field::MaxCompletionTokens => {
                let tokens = self.number(field, 0..=u32::MAX, "a whole number of tokens from 0 to 4294967295")?;
                self.request.max_completion_tokens = self.request.max_completion_tokens.max(tokens);
                Ok(())
            }
            Field::N => {
                if let Some(choices) = self.number(field, 1..=CHOICES_MAX, "a whole number from 1 to 128")? {
                    self.request.choices = choices;
                }
                Ok(())
            }
            Field::Messages => self.messages(),
            Field::Tools => {
                let span = self.reader.skip()?;
                self.count_text(span.len());
                self.request.tools = Some(span.into());
                Ok(())
            }
            Field::Prompt | Field::Input => self.prompt(field),
            // Not of the top level.
            Field::IncludeUsage => self.reader.skip().map(drop).map_err(Error::from),
        }
    }

    fn once(&mut self, field: Field) -> Result<(), Error> {
        let bit = 1 << field as u16;
        if self.seen & bit != 0 {
            return Err(Error::Duplicate { field });
        }
        self.seen |= bit;
        Ok(())
    }

    fn model(&mut self) -> Result<(), Error> {
        let invalid =
            Error::Invalid { field: Field::Model, expected: "the name of a model, as GET /v1/models lists them" };
        if self.reader.kind()? != Kind::Text {
            self.reader.skip()?;
            return Err(invalid);
        }
        let text = self.reader.string()?;
        let model = self.reader.decode_short(text, MODEL_BYTES_MAX).filter(|model| !model.is_empty()).ok_or(invalid)?;
        self.request.model = model.into_owned();
        // The quotes are part of the value.
        self.request.model_span = (text.start - 1..text.end + 1).into();
        Ok(())
    }

    /// A boolean and where it stands: `None` for the value means `null`.
    fn switch(&mut self, field: Field) -> Result<Option<(bool, Span)>, Error> {
        let kind = self.reader.kind()?;
        let span = self.reader.skip()?.into();
        match kind {
            Kind::True => Ok(Some((true, span))),
            Kind::False => Ok(Some((false, span))),
            Kind::Null => Ok(None),
            // Some engines take "true" or 1 for true.
            _ => Err(Error::Invalid { field, expected: "true or false" }),
        }
    }

    fn stream_options(&mut self) -> Result<(), Error> {
        match self.reader.kind()? {
            Kind::Null => {
                self.request.usage = UsageSwitch::NullOptions(self.reader.skip()?.into());
                return Ok(());
            }
            Kind::Object => {}
            _ => {
                self.reader.skip()?;
                return Err(Error::Invalid { field: Field::StreamOptions, expected: "an object" });
            }
        }
        self.reader.open_object()?;
        let at = self.position();
        let mut usage = None;
        let mut first = true;
        while let Some(name) = self.reader.member(&mut first)? {
            if self.reader.decode_short(name, NAME_BYTES_MAX).is_none_or(|name| name != "include_usage") {
                self.reader.skip()?;
                continue;
            }
            self.once(Field::IncludeUsage)?;
            self.reader.kind()?;
            let from = self.position();
            usage = Some(match self.switch(Field::IncludeUsage)? {
                Some((true, _)) => UsageSwitch::On,
                Some((false, span)) => UsageSwitch::Off(span),
                None => UsageSwitch::Off(Span { start: from, end: self.position() }),
            });
        }
        self.request.usage = usage.unwrap_or(UsageSwitch::NotIn { at, empty: first });
        Ok(())
    }

    fn position(&self) -> u32 {
        u32::try_from(self.reader.at()).unwrap_or(u32::MAX)
    }

    /// A whole number within `range`, or `null`.
    fn number(
        &mut self,
        field: Field,
        range: std::ops::RangeInclusive<u32>,
        expected: &'static str,
    ) -> Result<Option<u32>, Error> {
        let kind = self.reader.kind()?;
        let span = self.reader.skip()?;
        if kind == Kind::Null {
            return Ok(None);
        }
        let number = (kind == Kind::Number).then(|| self.reader.slice(span).parse().ok()).flatten();
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(Error::Invalid { field, expected }),
        }
    }

    fn count_text(&mut self, bytes: usize) {
        self.request.prompt_size.text_bytes += bytes as u64;
    }

    fn keep_span(&mut self, span: Span) {
        if self.request.prompt.len() < PREFIX_SPANS_MAX {
            self.request.prompt.push(span);
        }
    }

    /// A string of the prompt.
    fn prompt_text(&mut self) -> Result<(), Error> {
        let text = self.reader.string()?;
        self.count_text(text.decoded);
        self.keep_span(text.into());
        Ok(())
    }

    fn count_part(&mut self, field: Field) -> Result<(), Error> {
        self.parts += 1;
        if self.parts > self.bounds.parts {
            return Err(Error::TooMany { field, limit: self.bounds.parts });
        }
        Ok(())
    }

    fn messages(&mut self) -> Result<(), Error> {
        let field = Field::Messages;
        if self.reader.kind()? != Kind::Array {
            self.reader.skip()?;
            return Err(Error::Invalid { field, expected: "an array of messages" });
        }
        self.reader.open_array()?;
        let mut first = true;
        while self.reader.element(&mut first)? {
            if self.request.prompt_size.messages == self.bounds.messages {
                return Err(Error::TooMany { field, limit: self.bounds.messages });
            }
            self.request.prompt_size.messages += 1;
            if self.reader.kind()? != Kind::Object {
                self.reader.skip()?;
                return Err(Error::Invalid { field, expected: "an array of messages, each an object" });
            }
            self.message()?;
        }
        Ok(())
    }

    fn message(&mut self) -> Result<(), Error> {
        self.reader.open_object()?;
        let mut first = true;
        while let Some(name) = self.reader.member(&mut first)? {
            let name = self.reader.decode_short(name, NAME_BYTES_MAX);
            match (name.as_deref(), self.reader.kind()?) {
                (Some("role"), Kind::Text) => {
                    let text = self.reader.string()?;
                    self.keep_span(text.into());
                }
                (Some("content"), Kind::Text) => self.prompt_text()?,
                (Some("content"), Kind::Array) => self.parts()?,
                (Some("tool_calls"), Kind::Array) => {
                    let span = self.reader.skip()?;
                    self.count_text(span.len());
                    self.keep_span(span.into());
                }
                _ => {
                    self.reader.skip()?;
                }
            }
        }
        Ok(())
    }

    /// The parts of a message's content.
    fn parts(&mut self) -> Result<(), Error> {
        self.reader.open_array()?;
        let mut first = true;
        while self.reader.element(&mut first)? {
            self.count_part(Field::Messages)?;
            match self.reader.kind()? {
                Kind::Text => self.prompt_text()?,
                Kind::Object => self.part()?,
                _ => {
                    self.reader.skip()?;
                }
            }
        }
        Ok(())
    }

    fn part(&mut self) -> Result<(), Error> {
        self.reader.open_object()?;
        let mut media = None;
        let mut text = false;
        let mut first = true;
        while let Some(name) = self.reader.member(&mut first)? {
            let name = self.reader.decode_short(name, NAME_BYTES_MAX);
            match (name.as_deref(), self.reader.kind()?) {
                (Some("text"), Kind::Text) => {
                    text = true;
                    self.prompt_text()?;
                }
                // `image_url`, `input_audio`, `file` and their kind.
                (_, Kind::Object) => media = Some(self.reader.skip()?),
                _ => {
                    self.reader.skip()?;
                }
            }
        }
        if let Some(span) = media.filter(|_| !text) {
            self.request.prompt_size.media += 1;
            self.keep_span(span.into());
        }
        Ok(())
    }

    /// A string, token ids, or an array of either.
    fn prompt(&mut self, field: Field) -> Result<(), Error> {
        match self.reader.kind()? {
            Kind::Text => return self.prompt_text(),
            Kind::Array => {}
            _ => {
                self.reader.skip()?;
                return Ok(());
            }
        }
        self.reader.kind()?;
        let start = self.reader.at();
        self.reader.open_array()?;
        let (mut prompts, mut ids) = (0, 0);
        let mut first = true;
        while self.reader.element(&mut first)? {
            match self.reader.kind()? {
                Kind::Number => {
                    self.reader.skip()?;
                    ids += 1;
                    continue;
                }
                Kind::Text => self.prompt_text()?,
                Kind::Array => self.token_ids()?,
                _ => {
                    self.reader.skip()?;
                }
            }
            self.count_part(field)?;
            prompts += 1;
        }
        if ids > 0 {
            self.request.prompt_size.token_ids += ids;
            self.keep_span((start..self.reader.at()).into());
        }
        self.prompts = prompts.max(1);
        Ok(())
    }

    fn token_ids(&mut self) -> Result<(), Error> {
        self.reader.kind()?;
        let start = self.reader.at();
        self.reader.open_array()?;
        let mut first = true;
        while self.reader.element(&mut first)? {
            self.reader.skip()?;
            self.request.prompt_size.token_ids += 1;
        }
        self.keep_span((start..self.reader.at()).into());
        Ok(())
    }
}
