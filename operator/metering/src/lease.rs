//! What a gateway and the usage service say to each other of limits that several gateways share. The rules, and the bound that they keep, are on the
//! page of the gateway's `admission::lease`; the service is `leases` of the crate of the usage service.

use serde::{Deserialize, Serialize};

use crate::TenantName;
use crate::tokens::{GatewayName, KeyId};

/// Limits of a key or of a tenant. None is no limit.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Requests in a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Tokens in a minute, of prompts and of answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// Requests at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
}

/// Whose limits they are: those of a tenant, or of one key of it.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Scope {
    /// The tenant.
    pub tenant: TenantName,
    /// The key; none for the limits that all keys of the tenant share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
}

/// Amounts of two limits in a minute.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// Requests.
    pub requests: u64,
    /// Tokens.
    pub tokens: u64,
}

/// What a gateway asks the service for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Need {
    /// Rises with every message of this gateway on this scope.
    pub sequence: u64,
    /// What it holds unspent.
    pub held: Block,
    /// What it has held and will not use, in total since it started.
    pub returned: Block,
    /// What it would like, beyond `held`.
    pub want: Block,
    /// What one request that waits needs, beyond `held`.
    pub least: Block,
    /// How many requests it wants to have in flight at once, in all, those of now among them.
    pub slots: u32,
    /// How many of them it needs for one request that waits; 0 if none waits for a slot.
    pub least_slots: u32,
}

/// What the service grants.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// That of the [`Need`] that it answers.
    pub sequence: u64,
    /// Added to what is held.
    pub block: Block,
    /// In place of the slots held.
    pub slots: u32,
    /// How long the gateway may use all that it holds then, milliseconds from when it asked.
    pub valid_ms: u64,
    /// Where less was granted than the least: milliseconds until it may be there, as the service's bucket has it, and for slots some time that
    /// is not 0. The gateway does not ask for more before that.
    pub retry_after_ms: u64,
}

/// A question of one scope.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// Whose limits.
    #[serde(flatten)]
    pub scope: Scope,
    /// The limits as the gateway knows them.
    pub limits: Limits,
    /// What it asks for.
    pub need: Need,
}

/// What a gateway posts to `/v1/leases`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Questions {
    /// The gateway, and this start of it: one that starts anew has another name here, for it holds nothing.
    pub gateway: GatewayName,
    /// One for each scope.
    pub needs: Vec<Question>,
}

/// What one scope was granted.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Whose limits.
    #[serde(flatten)]
    pub scope: Scope,
    /// What was granted.
    pub grant: Grant,
}

/// What `/v1/leases` answers. A question that is not to be answered (too old, or the service has just started) has no answer here.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answers {
    /// In the order of the questions.
    pub grants: Vec<Answer>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_on_the_wire() {
        let text = concat!(
            r#"{"gateway":"gw-0/1","needs":[{"tenant":"acme","key":"k1","limits":{"requestsPerMinute":60},"#,
            r#""need":{"sequence":1,"held":{"requests":0,"tokens":0},"returned":{"requests":0,"tokens":0},"#,
            r#""want":{"requests":2,"tokens":0},"least":{"requests":1,"tokens":0},"slots":1,"leastSlots":0}}]}"#
        );
        let questions: Questions = serde_json::from_str(text).unwrap();
        assert_eq!(questions.needs[0].limits, Limits { requests_per_minute: Some(60), ..Limits::default() });
        assert_eq!(serde_json::to_string(&questions).unwrap(), text);

        let grant = Grant { sequence: 1, block: Block::default(), slots: 3, valid_ms: 10_000, retry_after_ms: 5 };
        let scope = Scope { tenant: "acme".into(), key: None };
        let answers = Answers { grants: vec![Answer { scope, grant }] };
        let text = concat!(
            r#"{"grants":[{"tenant":"acme","grant":{"sequence":1,"block":{"requests":0,"tokens":0},"#,
            r#""slots":3,"validMs":10000,"retryAfterMs":5}}]}"#
        );
        assert_eq!(serde_json::to_string(&answers).unwrap(), text);
        assert_eq!(serde_json::from_str::<Answers>(text).unwrap(), answers);
    }
}
