//! Limits that several gateways share: what is needed of them is asked of the usage service, at once where a request waits for it.

use std::sync::Arc;
use std::time::Duration;

use spillway_metering::lease::{Answers, Question, Questions, Scope};
use spillway_metering::tokens::GatewayName;
use tokio::sync::Notify;

use crate::keys::KeyId;
use crate::proxy::Gateway;
use crate::ship::UsageService;

/// How often what is needed is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How long an answer may take: after that the question counts as lost.
const ANSWER: Duration = Duration::from_secs(1);
/// Questions of one post.
const QUESTIONS: usize = 500;

/// Who waits for a lease, and who asks for it.
#[derive(Debug, Default)]
pub struct Bell {
    /// Rung by a request that has none.
    pub wanted: Notify,
    /// Rung when something was granted.
    pub granted: Notify,
}

/// Asks for what is needed. Runs without end.
pub async fn lease(gateway: Arc<Gateway>, service: UsageService, name: GatewayName) {
    let mut failing = false;
    loop {
        tokio::select! {
            () = gateway.bell().wanted.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        let needs = gateway.needs();
        for some in needs.chunks(QUESTIONS) {
            let questions = Questions { gateway: name.clone(), needs: some.to_vec() };
            match service.post::<Answers>("/v1/leases", &questions, ANSWER).await {
                Ok(answers) => {
                    failing = false;
                    for answer in &answers.grants {
                        gateway.grant(&answer.scope, &answer.grant);
                    }
                    gateway.bell().granted.notify_waiters();
                }
                Err(error) if failing => tracing::debug!(%error, "no leases of limits"),
                Err(error) => {
                    failing = true;
                    tracing::warn!(%error, "no leases of limits: requests are let in while those that are held last");
                }
            }
        }
    }
}

impl Gateway {
    /// Who waits for a lease.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// What is needed of limits now.
    fn needs(&self) -> Vec<Question> {
        let needs = self.admission.needs(self.clock.now_ms());
        let question = |(name, limits, need): (crate::admission::ScopeName, _, _)| Question {
            scope: Scope { tenant: name.tenant.as_ref().into(), key: name.key.map(|key| key.as_str().into()) },
            limits,
            need,
        };
        needs.into_iter().map(question).collect()
    }

    fn grant(&self, scope: &Scope, grant: &spillway_metering::lease::Grant) {
        let key = match &scope.key {
            None => None,
            Some(key) => match KeyId::parse(key.as_str()) {
                Some(key) => Some(key),
                None => return,
            },
        };
        let name = crate::admission::ScopeName { tenant: scope.tenant.as_str().into(), key };
        self.admission.grant(self.clock.now_ms(), &name, grant);
    }
}
