//! A strict reader of JSON that builds nothing: what is asked for is looked at, and the rest is checked and skipped.
//!
//! RFC 8259, without what engines' parsers disagree about: no `NaN`, no comments, no commas at an end, no half of a surrogate pair, nothing
//! after the value. Two readers of one body must not see two requests. Neither deep nor long input uses more than the stack of one call:
//! nesting is kept in the bits of a `u128`. Must not: keep or show a byte of what it reads, its errors are positions.

use std::borrow::Cow;
use std::ops::Range;

/// Most levels of nesting that a [`Reader`] can be made for: one bit each.
pub const DEPTH_MAX: u32 = 128;

/// Why a text is not JSON.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Problem {
    /// Not UTF-8.
    #[error("it is not UTF-8")]
    NotUtf8,
    /// The text ends within a value.
    #[error("it ends too early")]
    UnexpectedEnd,
    /// A byte that may not stand here.
    #[error("an unexpected character")]
    UnexpectedByte,
    /// A control character within a string that is not escaped.
    #[error("a control character that is not escaped in a string")]
    ControlCharacter,
    /// A `\` before something that it does not escape.
    #[error("an unknown escape in a string")]
    BadEscape,
    /// `\ud800` to `\udfff` alone: no character, often a string that was cut in the middle of an emoji.
    #[error("half of a surrogate pair in a string")]
    LoneSurrogate,
    /// Not a number of JSON's grammar.
    #[error("a malformed number")]
    BadNumber,
    /// Deeper than allowed.
    #[error("it is nested too deeply")]
    TooDeep,
    /// Something stands after the value.
    #[error("something follows the end")]
    Trailing,
}

/// A [`Problem`] and the byte where it was met, counted from 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{problem} at byte {at}")]
pub struct SyntaxError {
    /// Offset in bytes.
    pub at: usize,
    /// What is wrong there.
    pub problem: Problem,
}

/// A string as it stands in the text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Text {
    /// First byte within the quotes.
    pub(crate) start: usize,
    /// The closing quote.
    pub(crate) end: usize,
    /// Bytes of UTF-8 once escapes are read.
    pub(crate) decoded: usize,
}

impl Text {
    fn escaped(self) -> bool {
        self.decoded != self.end - self.start
    }
}

/// What a value begins as.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Object,
    Array,
    Text,
    Number,
    True,
    False,
    Null,
}

/// A position in a text, and how deep it lies.
///
/// Objects and arrays are walked by their caller: [`Reader::open_object`] then [`Reader::member`] until `None`, taking or
/// [skipping](Reader::skip) the value of each.
pub(crate) struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
    depth_max: u32,
}

impl<'a> Reader<'a> {
    /// At the start of `text`, going no deeper than `depth_max`, or [`DEPTH_MAX`].
    pub(crate) fn new(text: &'a [u8], depth_max: u32) -> Result<Self, SyntaxError> {
        match std::str::from_utf8(text) {
            Ok(text) => Ok(Self { text, at: 0, depth: 0, depth_max: depth_max.min(DEPTH_MAX) }),
            Err(error) => Err(SyntaxError { at: error.valid_up_to(), problem: Problem::NotUtf8 }),
        }
    }

    /// Where the reader stands: the first byte not read.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The kind of the next value, which stays where it is; whitespace before it is skipped.
    pub(crate) fn kind(&mut self) -> Result<Kind, SyntaxError> {
        match self.peek()? {
            b'{' => Ok(Kind::Object),
            b'[' => Ok(Kind::Array),
            b'"' => Ok(Kind::Text),
            b'-' | b'0'..=b'9' => Ok(Kind::Number),
            b't' => Ok(Kind::True),
            b'f' => Ok(Kind::False),
            b'n' => Ok(Kind::Null),
            _ => Err(self.error(Problem::UnexpectedByte)),
        }
    }

    /// Into an object.
    pub(crate) fn open_object(&mut self) -> Result<(), SyntaxError> {
        self.expect(b'{')?;
        self.enter()
    }

    /// The name of the next member, or out of the object. `first` is true for the first call and kept by the others.
    pub(crate) fn member(&mut self, first: &mut bool) -> Result<Option<Text>, SyntaxError> {
        if !self.more(b'}', first)? {
            return Ok(None);
        }
        self.name().map(Some)
    }

    /// Into an array.
    pub(crate) fn open_array(&mut self) -> Result<(), SyntaxError> {
        self.expect(b'[')?;
        self.enter()
    }

    /// Whether another element follows; if not, out of the array. `first` as for [`Reader::member`].
    pub(crate) fn element(&mut self, first: &mut bool) -> Result<bool, SyntaxError> {
        self.more(b']', first)
    }

    /// The next value, which is a string.
    pub(crate) fn string(&mut self) -> Result<Text, SyntaxError> {
        self.expect(b'"')?;
        let start = self.at;
        let mut saved = 0;
        loop {
            self.at += plain_length(self.bytes_from(self.at));
            match self.byte(self.at) {
                None => return Err(self.error(Problem::UnexpectedEnd)),
                Some(b'"') => {
                    let text = Text { start, end: self.at, decoded: self.at - start - saved };
                    self.at += 1;
                    return Ok(text);
                }
                Some(b'\\') => {
                    let (raw, character) = self.escape(self.at)?;
                    self.at += raw;
                    saved += raw - character.len_utf8();
                }
                Some(_) => return Err(self.error(Problem::ControlCharacter)),
            }
        }
    }

    /// Over the next value, whatever it is. Returns where it stands.
    pub(crate) fn skip(&mut self) -> Result<Range<usize>, SyntaxError> {
        let outside = self.depth;
        // The lowest bit says whether the innermost open value is an object; the others are those around it.
        let mut objects: u128 = 0;
        self.peek()?;
        let start = self.at;
        loop {
            let kind = self.kind()?;
            match kind {
                Kind::Object | Kind::Array => {
                    self.at += 1;
                    self.enter()?;
                    let object = kind == Kind::Object;
                    if self.peek()? == if object { b'}' } else { b']' } {
                        self.leave();
                    } else {
                        objects = (objects << 1) | u128::from(object);
                        if object {
                            self.name()?;
                        }
                        continue;
                    }
                }
                Kind::Text => {
                    self.string()?;
                }
                Kind::Number => self.number()?,
                Kind::True => self.word("true")?,
                Kind::False => self.word("false")?,
                Kind::Null => self.word("null")?,
            }
            // A value has ended: on to the next of what holds it, or out of it.
            loop {
                if self.depth == outside {
                    return Ok(start..self.at);
                }
                let object = objects & 1 == 1;
                match self.peek()? {
                    b',' => {
                        self.at += 1;
                        if object {
                            self.name()?;
                        }
                        break;
                    }
                    b'}' if object => self.leave(),
                    b']' if !object => self.leave(),
                    _ => return Err(self.error(Problem::UnexpectedByte)),
                }
                objects >>= 1;
            }
        }
    }

    /// The end of the text: nothing but whitespace is left.
    pub(crate) fn end(&mut self) -> Result<(), SyntaxError> {
        match self.peek() {
            Ok(_) => Err(self.error(Problem::Trailing)),
            Err(_) => Ok(()),
        }
    }

    /// The text between two positions; empty where that is none.
    pub(crate) fn slice(&self, range: Range<usize>) -> &'a str {
        self.text.get(range).unwrap_or_default()
    }

    /// The string `text` with its escapes read.
    pub(crate) fn decode(&self, text: Text) -> Cow<'a, str> {
        let raw = self.slice(text.start..text.end);
        if !text.escaped() {
            return Cow::Borrowed(raw);
        }
        let mut decoded = String::with_capacity(text.decoded);
        let mut at = text.start;
        while at < text.end {
            let plain = self.slice(at..text.end);
            let length = plain.find('\\').unwrap_or(plain.len());
            decoded.push_str(plain.get(..length).unwrap_or_default());
            at += length;
            if at < text.end {
                // The string was read once, so that its escapes are good.
                let Ok((raw, character)) = self.escape(at) else { break };
                decoded.push(character);
                at += raw;
            }
        }
        Cow::Owned(decoded)
    }

    /// The string `text` with its escapes read, or nothing where it is longer than `longest` bytes: then no name that is looked for.
    pub(crate) fn decode_short(&self, text: Text, longest: usize) -> Option<Cow<'a, str>> {
        (text.decoded <= longest).then(|| self.decode(text))
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.text.as_bytes().get(at).copied()
    }

    fn bytes_from(&self, at: usize) -> &'a [u8] {
        self.text.as_bytes().get(at..).unwrap_or_default()
    }

    fn error(&self, problem: Problem) -> SyntaxError {
        SyntaxError { at: self.at, problem }
    }

    /// The next byte that is not whitespace, which stays where it is.
    fn peek(&mut self) -> Result<u8, SyntaxError> {
        loop {
            match self.byte(self.at) {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                Some(byte) => return Ok(byte),
                None => return Err(self.error(Problem::UnexpectedEnd)),
            }
        }
    }

    fn expect(&mut self, wanted: u8) -> Result<(), SyntaxError> {
        if self.peek()? != wanted {
            return Err(self.error(Problem::UnexpectedByte));
        }
        self.at += 1;
        Ok(())
    }

    fn enter(&mut self) -> Result<(), SyntaxError> {
        if self.depth >= self.depth_max {
            return Err(self.error(Problem::TooDeep));
        }
        self.depth += 1;
        Ok(())
    }

    /// Over the closing bracket that the reader stands on.
    fn leave(&mut self) {
        self.at += 1;
        self.depth -= 1;
    }

    fn more(&mut self, close: u8, first: &mut bool) -> Result<bool, SyntaxError> {
        if self.peek()? == close {
            self.leave();
            return Ok(false);
        }
        if !std::mem::replace(first, false) {
            self.expect(b',')?;
            self.peek()?;
        }
        Ok(true)
    }

    /// The name of a member and the colon after it.
    fn name(&mut self) -> Result<Text, SyntaxError> {
        let name = self.string()?;
        self.expect(b':')?;
        Ok(name)
    }

    fn word(&mut self, word: &str) -> Result<(), SyntaxError> {
        if !self.bytes_from(self.at).starts_with(word.as_bytes()) {
            return Err(self.error(Problem::UnexpectedByte));
        }
        self.at += word.len();
        Ok(())
    }

    /// `-? (0 | [1-9] [0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?`
    fn number(&mut self) -> Result<(), SyntaxError> {
        if self.byte(self.at) == Some(b'-') {
            self.at += 1;
        }
        if self.byte(self.at) == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.byte(self.at) == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.byte(self.at) {
            self.at += 1;
            if let Some(b'+' | b'-') = self.byte(self.at) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), SyntaxError> {
        let length = self.bytes_from(self.at).iter().take_while(|byte| byte.is_ascii_digit()).count();
        if length == 0 {
            return Err(self.error(Problem::BadNumber));
        }
        self.at += length;
        Ok(())
    }

    /// The escape that begins at `at`: its length in the text, and its character.
    fn escape(&self, at: usize) -> Result<(usize, char), SyntaxError> {
        let character = match self.byte(at + 1) {
            None => return Err(SyntaxError { at: at + 1, problem: Problem::UnexpectedEnd }),
            Some(b'u') => return self.unicode_escape(at),
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(_) => return Err(SyntaxError { at, problem: Problem::BadEscape }),
        };
        Ok((2, character))
    }

    fn unicode_escape(&self, at: usize) -> Result<(usize, char), SyntaxError> {
        let lone = SyntaxError { at, problem: Problem::LoneSurrogate };
        let high = self.four_hex(at)?;
        match high {
            0xd800..=0xdbff => {
                if !self.bytes_from(at + 6).starts_with(b"\\u") {
                    return Err(lone);
                }
                let low = self.four_hex(at + 6)?;
                if !(0xdc00..=0xdfff).contains(&low) {
                    return Err(lone);
                }
                let code = 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                char::from_u32(code).map(|character| (12, character)).ok_or(lone)
            }
            code => char::from_u32(code).map(|character| (6, character)).ok_or(lone),
        }
    }

    /// The number of a `\uXXXX` that begins at `at`.
    fn four_hex(&self, at: usize) -> Result<u32, SyntaxError> {
        let bad = SyntaxError { at, problem: Problem::BadEscape };
        let digits = self.text.as_bytes().get(at + 2..at + 6).ok_or(bad)?;
        digits
            .iter()
            .try_fold(0, |code, &digit| char::from(digit).to_digit(16).map(|digit| (code << 4) | digit).ok_or(bad))
    }
}

/// How many bytes of a string's rest stand for themselves: up to a quote, a `\` or a control character.
fn plain_length(bytes: &[u8]) -> usize {
    /// Wide enough for one vector register, narrow enough for short names.
    const STRIDE: usize = 16;
    fn special(byte: u8) -> bool {
        byte == b'"' || byte == b'\\' || byte < b' '
    }
    let (strides, _) = bytes.as_chunks::<STRIDE>();
    // `|` and not `||`: without a branch for each byte, so that a stride is compared at once.
    let whole =
        strides.iter().take_while(|stride| !stride.iter().fold(false, |hit, &byte| hit | special(byte))).count();
    let rest = bytes.get(whole * STRIDE..).unwrap_or_default();
    whole * STRIDE + rest.iter().take_while(|&&byte| !special(byte)).count()
}

#[cfg(test)]
pub(crate) mod tests;
