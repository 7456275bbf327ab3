//! The usage of hosted models: what one request was, what it used, and how a log of requests becomes bills.
//!
//! Pure, as all of this crate: no clock and no randomness (times and ids are arguments), no I/O. Times are Unix
//! milliseconds. Tokens are integers with a bound, [`MOST_TOKENS`], so that sums of them cannot overflow and every store
//! can hold them. No text of a prompt or of an answer has a place here, and of an API key only its id.
//!
//! A request is opened, marked while it runs, and closed. **Every request that was opened is billed exactly once**
//! ([`bills`]): by its first closing record; or, where the gateway died before it wrote one, at its last mark.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{NamespaceName, TenantName};

/// No count of tokens of one request is above this: 2^40, a million times the longest context of today. A sum of 2^23
/// such requests fits into 63 bits, and every real sum by far.
pub const MOST_TOKENS: u64 = 1 << 40;

name!(
    /// Name of a `ModelEndpoint` in its namespace.
    EndpointName
);
name!(
    /// Name of a model as clients ask for it.
    ModelName
);
name!(
    /// Version of a model that served, as the endpoint names it.
    ModelVersion
);
name!(
    /// Id of an API key: never the key, nor its hash.
    KeyId
);
name!(
    /// Name of the gateway that let a request in, and whose log holds it.
    GatewayName
);
name!(
    /// Name of the replica, or of the provider, that a request was sent to.
    ReplicaName
);

/// Why text or numbers of elsewhere are no value of this module.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// Not a UUID of version 7.
    #[error("{text:?} is not a UUID of version 7")]
    RequestId {
        /// What was read.
        text: String,
    },
    /// Tokens that cannot be.
    #[error("{prompt} prompt tokens, {cached} of them cached, and {completion} completion tokens cannot be")]
    Tokens {
        /// Prompt tokens.
        prompt: u64,
        /// Cached ones of them.
        cached: u64,
        /// Completion tokens.
        completion: u64,
    },
}

/// The id of a request, and of its bill: a UUIDv7, so that ids sort by when requests came. The store keeps one record
/// for each.
#[derive(Clone, Copy, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct RequestId([u8; 16]);

impl RequestId {
    /// An id made of the time, of which 48 bits are kept, and of 74 random bits (the other 6 are the version's).
    pub fn new(unix_ms: u64, random: [u8; 10]) -> Self {
        let random = random.into_iter().fold(0_u128, |bits, byte| (bits << 8) | u128::from(byte));
        let bits = (u128::from(unix_ms) << 80) | random;
        let version = (bits & !(0xf << 76)) | (0x7 << 76);
        let variant = (version & !(0b11 << 62)) | (0b10 << 62);
        Self(variant.to_be_bytes())
    }

    /// The id of these bytes, where they are a UUID of version 7.
    pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, Error> {
        let bits = u128::from_be_bytes(bytes);
        let id = Self(bytes);
        if (bits >> 76) & 0xf == 0x7 && (bits >> 62) & 0b11 == 0b10 {
            Ok(id)
        } else {
            Err(Error::RequestId { text: id.to_string() })
        }
    }

    /// The 16 bytes, in the order of RFC 9562.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// When the id was made.
    pub fn unix_ms(&self) -> u64 {
        // 48 bits always fit.
        u64::try_from(u128::from_be_bytes(self.0) >> 80).unwrap_or_default()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = u128::from_be_bytes(self.0);
        let (first, second, third) = (bits >> 96, (bits >> 80) & 0xffff, (bits >> 64) & 0xffff);
        let (fourth, fifth) = ((bits >> 48) & 0xffff, bits & 0xffff_ffff_ffff);
        write!(formatter, "{first:08x}-{second:04x}-{third:04x}-{fourth:04x}-{fifth:012x}")
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for RequestId {
    type Err = Error;

    /// Only the form that [`Display`](fmt::Display) writes, so that one id has one text.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::RequestId { text: text.chars().take(64).collect() };
        let digits: String = text.split('-').collect();
        if digits.len() != 32 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let bits = u128::from_str_radix(&digits, 16).map_err(|_| wrong())?;
        let id = Self::from_bytes(bits.to_be_bytes())?;
        if id.to_string() == text { Ok(id) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for RequestId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<RequestId> for String {
    fn from(id: RequestId) -> Self {
        id.to_string()
    }
}

/// Tokens of one request: at most [`MOST_TOKENS`] each, and no more cached than there were in the prompt.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "TokenCounts", into = "TokenCounts")]
pub struct Tokens {
    prompt: u64,
    cached: u64,
    completion: u64,
}

/// How tokens are written; only [`Tokens`] of it are used.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct TokenCounts {
    prompt_tokens: u64,
    cached_tokens: u64,
    completion_tokens: u64,
}

impl Tokens {
    /// Tokens that can be.
    pub fn new(prompt: u64, cached: u64, completion: u64) -> Result<Self, Error> {
        if cached > prompt || prompt > MOST_TOKENS || completion > MOST_TOKENS {
            return Err(Error::Tokens { prompt, cached, completion });
        }
        Ok(Self { prompt, cached, completion })
    }

    /// All tokens of the prompt, the cached ones among them.
    pub fn prompt(self) -> u64 {
        self.prompt
    }

    /// Tokens of the prompt that the engine had in its cache. They are in [`prompt`](Self::prompt) too.
    pub fn cached(self) -> u64 {
        self.cached
    }

    /// Tokens of the prompt that were computed: with the cached ones, each token of the prompt once.
    pub fn uncached(self) -> u64 {
        self.prompt.saturating_sub(self.cached)
    }

    /// Tokens that were produced.
    pub fn completion(self) -> u64 {
        self.completion
    }
}

impl TryFrom<TokenCounts> for Tokens {
    type Error = Error;

    fn try_from(counts: TokenCounts) -> Result<Self, Error> {
        Self::new(counts.prompt_tokens, counts.cached_tokens, counts.completion_tokens)
    }
}

impl From<Tokens> for TokenCounts {
    fn from(tokens: Tokens) -> Self {
        Self { prompt_tokens: tokens.prompt, cached_tokens: tokens.cached, completion_tokens: tokens.completion }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// With its last chunk, and with the usage that the engine says.
    Complete,
    /// Otherwise: what was produced until then is billed.
    Partial(Cause),
}

/// Why a request is billed in part, or by our own count.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The client went away, and the request was cancelled upstream.
    ClientGone,
    /// The engine failed or went away.
    EngineFailed,
    /// The gateway was told to stop before the request was over.
    Shutdown,
    /// The gateway died; the last mark is billed.
    Crash,
    /// The answer was whole, but the engine did not say what it used.
    NoUsage,
    /// The answer was longer, or took longer, than the gateway allows.
    Bound,
    /// The engine said no to what the request is; nothing was used.
    Refused,
}

/// Where a number was not taken as it came, and the rule that was used instead ([`settle`]).
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Adjustment {
    /// The engine did not say the prompt's tokens: what the gateway counted stands.
    PromptMissing,
    /// The engine did not say the completion's tokens: what the gateway counted stands.
    CompletionMissing,
    /// More prompt than the request can have had: the bound stands.
    PromptAboveBound,
    /// More completion than the request can have had: the bound stands.
    CompletionAboveBound,
    /// More cached tokens than the prompt had: all of the prompt was cached.
    CachedAbovePrompt,
    /// The clock was set back while the request ran: it ended when it started.
    EndBeforeStart,
}

impl Adjustment {
    /// All of them, in the order of their bits.
    pub const ALL: [Self; 6] = [
        Self::PromptMissing,
        Self::CompletionMissing,
        Self::PromptAboveBound,
        Self::CompletionAboveBound,
        Self::CachedAbovePrompt,
        Self::EndBeforeStart,
    ];

    /// The bit that stands for it in [`Adjustments::bits`]. Logs hold it: never changed, only added to.
    fn bit(self) -> u8 {
        match self {
            Self::PromptMissing => 1,
            Self::CompletionMissing => 1 << 1,
            Self::PromptAboveBound => 1 << 2,
            Self::CompletionAboveBound => 1 << 3,
            Self::CachedAbovePrompt => 1 << 4,
            Self::EndBeforeStart => 1 << 5,
        }
    }
}

/// A set of [`Adjustment`]s; written as their list.
#[derive(Clone, Copy, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(from = "Vec<Adjustment>", into = "Vec<Adjustment>")]
pub struct Adjustments(u8);

impl Adjustments {
    /// The set with `adjustment` in it.
    #[must_use]
    pub fn with(self, adjustment: Adjustment) -> Self {
        Self(self.0 | adjustment.bit())
    }

    /// Whether `adjustment` is in the set.
    pub fn contains(self, adjustment: Adjustment) -> bool {
        self.0 & adjustment.bit() != 0
    }

    /// Whether every number was taken as it came.
    pub fn is_empty(&self) -> bool {
        self.0 == 0
    }

    /// What is in the set.
    pub fn iter(self) -> impl Iterator<Item = Adjustment> {
        Adjustment::ALL.into_iter().filter(move |adjustment| self.contains(*adjustment))
    }

    /// One byte for a log.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// The set of a byte of [`bits`](Self::bits); none where a bit means nothing.
    pub fn from_bits(bits: u8) -> Option<Self> {
        let all = Adjustment::ALL.into_iter().fold(0, |all, adjustment| all | adjustment.bit());
        (bits & !all == 0).then_some(Self(bits))
    }
}

impl fmt::Debug for Adjustments {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.iter()).finish()
    }
}

impl FromIterator<Adjustment> for Adjustments {
    fn from_iter<Source: IntoIterator<Item = Adjustment>>(adjustments: Source) -> Self {
        adjustments.into_iter().fold(Self::default(), Self::with)
    }
}

impl From<Vec<Adjustment>> for Adjustments {
    fn from(adjustments: Vec<Adjustment>) -> Self {
        adjustments.into_iter().collect()
    }
}

impl From<Adjustments> for Vec<Adjustment> {
    fn from(adjustments: Adjustments) -> Self {
        adjustments.iter().collect()
    }
}

/// What an engine says that a request used. Engines leave out what they do not know.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Reported {
    /// Tokens of the prompt, the cached ones among them.
    pub prompt: Option<u64>,
    /// Cached ones of them.
    pub cached: Option<u64>,
    /// Tokens that were produced.
    pub completion: Option<u64>,
}

/// The most that a request can have used: the model's context for the prompt, and what was asked for (`max_tokens` for
/// each choice, or else the context) for the completion.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bounds {
    /// Of the prompt.
    pub prompt: u64,
    /// Of the completion.
    pub completion: u64,
}

/// What is billed of a request that ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settled {
    /// What it used.
    pub tokens: Tokens,
    /// How it ended.
    pub outcome: Outcome,
    /// Where the engine was not believed.
    pub adjusted: Adjustments,
}

/// What is billed, of what the engine says (`reported`) and what the gateway itself `counted`. The rules, in this order,
/// each of which leaves its mark:
///
/// 1. A count of prompt or completion that the engine does not say is the gateway's own. Where the answer was whole, it
///    is `partial: no_usage` then. Cached tokens that it does not say are none, which is no adjustment: many engines
///    have no such count. Where the prompt is the gateway's, so are the cached tokens.
/// 2. A count above its bound is the bound.
/// 3. More cached tokens than the prompt has are all of the prompt.
pub fn settle(ended: Outcome, reported: Reported, counted: Tokens, bounds: Bounds) -> Settled {
    let mut adjusted = Adjustments::default();
    let mut outcome = ended;
    let mut missing = |adjustment: Adjustment, own: u64| {
        adjusted = adjusted.with(adjustment);
        if outcome == Outcome::Complete {
            outcome = Outcome::Partial(Cause::NoUsage);
        }
        own
    };
    let (prompt, cached) = match reported.prompt {
        Some(prompt) => (prompt, reported.cached.unwrap_or_default()),
        None => (missing(Adjustment::PromptMissing, counted.prompt), counted.cached),
    };
    let completion = reported.completion.unwrap_or_else(|| missing(Adjustment::CompletionMissing, counted.completion));
    let mut at_most = |count: u64, bound: u64, adjustment: Adjustment| {
        if count > bound {
            adjusted = adjusted.with(adjustment);
        }
        count.min(bound)
    };
    let prompt = at_most(prompt, bounds.prompt.min(MOST_TOKENS), Adjustment::PromptAboveBound);
    let completion = at_most(completion, bounds.completion.min(MOST_TOKENS), Adjustment::CompletionAboveBound);
    let cached = at_most(cached, prompt, Adjustment::CachedAbovePrompt);
    Settled { tokens: Tokens { prompt, cached, completion }, outcome, adjusted }
}

/// A request as it goes upstream: the opening record.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Opening {
    /// The request's id.
    pub id: RequestId,
    /// Who pays.
    pub tenant: TenantName,
    /// The endpoint's namespace.
    pub namespace: NamespaceName,
    /// The endpoint.
    pub endpoint: EndpointName,
    /// The model that serves.
    pub model: ModelName,
    /// Its version.
    pub version: ModelVersion,
    /// Which key asked.
    pub key: KeyId,
    /// Which gateway let it in.
    pub gateway: GatewayName,
    /// Where it was sent.
    pub replica: ReplicaName,
    /// When.
    pub started_ms: i64,
    /// Whether the answer is streamed.
    pub stream: bool,
}

/// What an open request has used so far.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mark {
    /// The request.
    pub id: RequestId,
    /// When it had used this.
    pub at_ms: i64,
    /// All that it had used by then, not since the mark before.
    #[serde(flatten)]
    pub tokens: Tokens,
}

/// How a request ended and what it used: all that its closing record adds to the opening one.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ending {
    /// When.
    pub ended_ms: i64,
    /// What it used.
    #[serde(flatten)]
    pub tokens: Tokens,
    /// How.
    pub outcome: Outcome,
    /// Where numbers were not taken as they came.
    #[serde(default, skip_serializing_if = "Adjustments::is_empty")]
    pub adjusted: Adjustments,
}

impl Ending {
    /// The ending of a request that started at `started_ms`: nothing ends before that.
    #[must_use]
    pub fn after(self, started_ms: i64) -> Self {
        if self.ended_ms >= started_ms {
            return self;
        }
        Self { ended_ms: started_ms, adjusted: self.adjusted.with(Adjustment::EndBeforeStart), ..self }
    }

    /// The ending of a request whose gateway died after `mark`, or before the first one.
    pub fn of_crash(started_ms: i64, mark: Option<&Mark>) -> Self {
        Self {
            ended_ms: mark.map_or(started_ms, |mark| mark.at_ms),
            tokens: mark.map(|mark| mark.tokens).unwrap_or_default(),
            outcome: Outcome::Partial(Cause::Crash),
            adjusted: Adjustments::default(),
        }
        .after(started_ms)
    }
}

/// The closing record, which is the bill: it stands for itself, whatever becomes of the opening record and the marks.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct UsageRecord {
    /// What was asked, by whom, and where it went.
    #[serde(flatten)]
    pub opening: Opening,
    /// How it ended and what it used.
    #[serde(flatten)]
    pub ending: Ending,
}

impl UsageRecord {
    /// The bill of a request that ended.
    pub fn new(opening: Opening, ending: Ending) -> Self {
        let ending = ending.after(opening.started_ms);
        Self { opening, ending }
    }
}

/// One record of a log.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// A request goes upstream; or, where it is open already, goes on elsewhere: the last such record counts.
    Open(Opening),
    /// What it has used.
    Mark(Mark),
    /// It ended.
    Close(UsageRecord),
}

impl Entry {
    /// Whose record it is.
    pub fn id(&self) -> RequestId {
        match self {
            Self::Open(opening) => opening.id,
            Self::Mark(mark) => mark.id,
            Self::Close(record) => record.opening.id,
        }
    }
}

/// The requests of a log that are open at the place that was read to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct OpenRequests(BTreeMap<RequestId, (Opening, Option<Mark>)>);

impl OpenRequests {
    /// Reads one record more; the bill, where it is a closing one. Marks of requests that are not open are nothing: they
    /// do not say who pays.
    pub fn apply(&mut self, entry: Entry) -> Option<UsageRecord> {
        match entry {
            Entry::Open(opening) => {
                let mark = self.0.get(&opening.id).and_then(|(_, mark)| *mark);
                self.0.insert(opening.id, (opening, mark));
                None
            }
            Entry::Mark(mark) => {
                if let Some((_, last)) = self.0.get_mut(&mark.id) {
                    *last = Some(mark);
                }
                None
            }
            Entry::Close(record) => {
                self.0.remove(&record.opening.id);
                Some(record)
            }
        }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bills of what is still open in a log whose writer died: each at its last mark.
    pub fn into_crashed(self) -> impl Iterator<Item = UsageRecord> {
        self.0.into_values().map(|(opening, mark)| {
            let ending = Ending::of_crash(opening.started_ms, mark.as_ref());
            UsageRecord::new(opening, ending)
        })
    }
}

/// The bills of a log whose writer is dead: one for each request that was opened or closed in it. The first closing
/// record of an id stands, whatever follows it; a request without one is billed at its last mark.
pub fn bills(log: impl IntoIterator<Item = Entry>) -> Vec<UsageRecord> {
    let mut open = OpenRequests::default();
    let mut closed = BTreeSet::new();
    let mut bills = Vec::new();
    for entry in log {
        if closed.contains(&entry.id()) {
            continue;
        }
        if let Some(bill) = open.apply(entry) {
            closed.insert(bill.opening.id);
            bills.push(bill);
        }
    }
    bills.extend(open.into_crashed());
    bills
}

#[cfg(test)]
mod tests;
