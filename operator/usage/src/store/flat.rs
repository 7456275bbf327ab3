//! A record as columns.

use spillway_metering::tokens::{Adjustments, Cause, Ending, Opening, Outcome, RequestId, Tokens, UsageRecord};

use super::Error;

/// The columns of a record, in the order in which they are read and written, but for `day`.
pub(super) const COLUMNS: &str = "id, tenant, namespace, endpoint, model, version, key_id, gateway, replica, \
     started_ms, ended_ms, stream, prompt, cached, completion, outcome, adjusted";

/// How outcomes are written. Stores hold it: never changed, only added to.
const OUTCOMES: [(&str, Outcome); 8] = [
    (COMPLETE, Outcome::Complete),
    ("client_gone", Outcome::Partial(Cause::ClientGone)),
    ("engine_failed", Outcome::Partial(Cause::EngineFailed)),
    ("shutdown", Outcome::Partial(Cause::Shutdown)),
    ("crash", Outcome::Partial(Cause::Crash)),
    ("no_usage", Outcome::Partial(Cause::NoUsage)),
    ("bound", Outcome::Partial(Cause::Bound)),
    ("refused", Outcome::Partial(Cause::Refused)),
];
/// The outcome of a request that is not partial.
pub(super) const COMPLETE: &str = "complete";

/// How an outcome is written.
pub(super) fn outcome_text(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Complete => COMPLETE,
        Outcome::Partial(Cause::ClientGone) => "client_gone",
        Outcome::Partial(Cause::EngineFailed) => "engine_failed",
        Outcome::Partial(Cause::Shutdown) => "shutdown",
        Outcome::Partial(Cause::Crash) => "crash",
        Outcome::Partial(Cause::NoUsage) => "no_usage",
        Outcome::Partial(Cause::Bound) => "bound",
        Outcome::Partial(Cause::Refused) => "refused",
    }
}

/// A count of tokens: never above 2^40.
pub(super) fn signed(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

/// What the columns of a row hold.
pub(super) struct Flat {
    pub(super) id: Vec<u8>,
    /// Tenant, namespace, endpoint, model, version, key, gateway, replica.
    pub(super) names: [String; 8],
    pub(super) started_ms: i64,
    pub(super) ended_ms: i64,
    pub(super) stream: bool,
    /// Prompt, cached, completion.
    pub(super) tokens: [i64; 3],
    pub(super) outcome: String,
    pub(super) adjusted: i64,
}

impl TryFrom<Flat> for UsageRecord {
    type Error = Error;

    fn try_from(flat: Flat) -> Result<Self, Error> {
        let text: String = flat.id.iter().map(|byte| format!("{byte:02x}")).collect();
        let corrupt = |field| move || Error::Corrupt { id: text, field };
        let id = <[u8; 16]>::try_from(flat.id).ok().and_then(|bytes| RequestId::from_bytes(bytes).ok());
        let Some(id) = id else { return Err(corrupt("id")()) };
        let outcome = OUTCOMES.iter().find(|(text, _)| *text == flat.outcome).map(|(_, outcome)| *outcome);
        let Some(outcome) = outcome else { return Err(corrupt("outcome")()) };
        let adjusted = u8::try_from(flat.adjusted).ok().and_then(Adjustments::from_bits);
        let Some(adjusted) = adjusted else { return Err(corrupt("adjusted")()) };
        let [prompt, cached, completion] = flat.tokens.map(|tokens| u64::try_from(tokens).unwrap_or(u64::MAX));
        let Ok(tokens) = Tokens::new(prompt, cached, completion) else { return Err(corrupt("tokens")()) };
        let [tenant, namespace, endpoint, model, version, key, gateway, replica] = flat.names;
        let opening = Opening {
            id,
            tenant: tenant.into(),
            namespace: namespace.into(),
            endpoint: endpoint.into(),
            model: model.into(),
            version: version.into(),
            key: key.into(),
            gateway: gateway.into(),
            replica: replica.into(),
            started_ms: flat.started_ms,
            stream: flat.stream,
        };
        Ok(Self { opening, ending: Ending { ended_ms: flat.ended_ms, tokens, outcome, adjusted } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_its_text() {
        for (text, outcome) in OUTCOMES {
            assert_eq!(outcome_text(outcome), text);
        }
    }
}
