//! The binary form of records. Pure. Numbers are little endian and of fixed width, names have their length (u16) before
//! them:
//!
//! ```text
//! opening  id 16, started i64, stream u8, tenant, namespace, endpoint, model, version, key, gateway, replica
//! mark     id 16, at i64, prompt u64, cached u64, completion u64
//! closing  the opening's, then: ended i64, prompt u64, cached u64, completion u64, outcome u8, adjusted u8
//! ```

use spillway_metering::tokens::{
    Adjustments, Cause, Ending, Entry, Mark, Opening, Outcome, RequestId, Tokens, UsageRecord,
};

use super::frame::Kind;
use super::{Error, MOST_NAME_BYTES};

/// Bytes of what a closing record adds to the opening one.
pub(super) const ENDING_BYTES: usize = 34;
/// Bytes of a mark.
pub(super) const MARK_BYTES: usize = 48;

/// The payload of an opening record.
pub(super) fn encode_opening(opening: &Opening) -> Result<Vec<u8>, Error> {
    let names = [
        opening.tenant.as_str(),
        opening.namespace.as_str(),
        opening.endpoint.as_str(),
        opening.model.as_str(),
        opening.version.as_str(),
        opening.key.as_str(),
        opening.gateway.as_str(),
        opening.replica.as_str(),
    ];
    let mut payload = Vec::with_capacity(25 + names.iter().map(|name| name.len() + 2).sum::<usize>());
    payload.extend_from_slice(opening.id.as_bytes());
    payload.extend_from_slice(&opening.started_ms.to_le_bytes());
    payload.push(u8::from(opening.stream));
    for name in names {
        let bytes = name.len();
        let length = u16::try_from(bytes).ok().filter(|_| bytes <= MOST_NAME_BYTES);
        payload.extend_from_slice(&length.ok_or(Error::NameTooLong { bytes })?.to_le_bytes());
        payload.extend_from_slice(name.as_bytes());
    }
    Ok(payload)
}

/// The payload of a mark.
pub(super) fn encode_mark(mark: &Mark) -> [u8; MARK_BYTES] {
    let mut payload = [0; MARK_BYTES];
    fill(&mut payload, &[mark.id.as_bytes(), &mark.at_ms.to_le_bytes(), &encode_tokens(mark.tokens)]);
    payload
}

/// What follows the opening record's payload in the closing one's.
pub(super) fn encode_ending(ending: &Ending) -> [u8; ENDING_BYTES] {
    let outcome = match ending.outcome {
        Outcome::Complete => 0,
        Outcome::Partial(Cause::ClientGone) => 1,
        Outcome::Partial(Cause::EngineFailed) => 2,
        Outcome::Partial(Cause::Shutdown) => 3,
        Outcome::Partial(Cause::Crash) => 4,
        Outcome::Partial(Cause::NoUsage) => 5,
        Outcome::Partial(Cause::Bound) => 6,
        Outcome::Partial(Cause::Refused) => 7,
    };
    let mut payload = [0; ENDING_BYTES];
    let last = [outcome, ending.adjusted.bits()];
    fill(&mut payload, &[&ending.ended_ms.to_le_bytes(), &encode_tokens(ending.tokens), &last]);
    payload
}

fn encode_tokens(tokens: Tokens) -> [u8; 24] {
    let mut bytes = [0; 24];
    let (prompt, cached, completion) = (tokens.prompt(), tokens.cached(), tokens.completion());
    fill(&mut bytes, &[&prompt.to_le_bytes(), &cached.to_le_bytes(), &completion.to_le_bytes()]);
    bytes
}

/// Writes `parts` one after the other to the beginning of `target`.
fn fill(target: &mut [u8], parts: &[&[u8]]) {
    for (byte, value) in target.iter_mut().zip(parts.iter().flat_map(|part| part.iter())) {
        *byte = *value;
    }
}

/// The record of a frame; none where its payload is none.
pub(super) fn decode(kind: Kind, payload: &[u8]) -> Option<Entry> {
    let mut fields = Fields(payload);
    let entry = match kind {
        Kind::Open => Entry::Open(fields.opening()?),
        Kind::Mark => {
            Entry::Mark(Mark { id: fields.id()?, at_ms: i64::from_le_bytes(fields.array()?), tokens: fields.tokens()? })
        }
        Kind::Close => Entry::Close(UsageRecord::new(fields.opening()?, fields.ending()?)),
        Kind::Segment | Kind::Batch | Kind::Acknowledged => return None,
    };
    fields.0.is_empty().then_some(entry)
}

/// What is left of a payload.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const LENGTH: usize>(&mut self) -> Option<[u8; LENGTH]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn name(&mut self) -> Option<String> {
        let length = usize::from(u16::from_le_bytes(self.array()?));
        let (name, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(name).ok().map(ToOwned::to_owned)
    }

    fn id(&mut self) -> Option<RequestId> {
        RequestId::from_bytes(self.array()?).ok()
    }

    fn tokens(&mut self) -> Option<Tokens> {
        let mut count = || self.array().map(u64::from_le_bytes);
        Tokens::new(count()?, count()?, count()?).ok()
    }

    fn opening(&mut self) -> Option<Opening> {
        let (id, started_ms) = (self.id()?, i64::from_le_bytes(self.array()?));
        let stream = match self.byte()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(Opening {
            id,
            started_ms,
            stream,
            tenant: self.name()?.into(),
            namespace: self.name()?.into(),
            endpoint: self.name()?.into(),
            model: self.name()?.into(),
            version: self.name()?.into(),
            key: self.name()?.into(),
            gateway: self.name()?.into(),
            replica: self.name()?.into(),
        })
    }

    fn ending(&mut self) -> Option<Ending> {
        let (ended_ms, tokens) = (i64::from_le_bytes(self.array()?), self.tokens()?);
        let outcome = match self.byte()? {
            0 => Outcome::Complete,
            1 => Outcome::Partial(Cause::ClientGone),
            2 => Outcome::Partial(Cause::EngineFailed),
            3 => Outcome::Partial(Cause::Shutdown),
            4 => Outcome::Partial(Cause::Crash),
            5 => Outcome::Partial(Cause::NoUsage),
            6 => Outcome::Partial(Cause::Bound),
            7 => Outcome::Partial(Cause::Refused),
            _ => return None,
        };
        Some(Ending { ended_ms, tokens, outcome, adjusted: Adjustments::from_bits(self.byte()?)? })
    }
}
