//! Whether another version that is tried does worse than the one before it (docs/adr/0013-canaries-fallback-and-residency.md). The leader judges by what gateways tell, and
//! the reconciler of endpoints takes the canary back.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::ResourceExt;
use spillway_crds::{Canary, CanaryPhase, ModelEndpoint};
use spillway_metering::tokens::ModelVersion;

use crate::{
    context::Context,
    gateways::Gateways,
    loads::{FullName, Outcomes},
};

/// How often canaries are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Milliseconds over which requests are judged; over more where there were fewer requests than the canary asks for.
const WINDOW_MS: u64 = 300_000;
/// Milliseconds between two samples.
const SAMPLE_MS: u64 = 5_000;

/// Canaries that failed, and why: until that is in their endpoint's status.
#[derive(Debug, Default)]
pub struct Failed(Mutex<HashMap<FullName, (String, String)>>);

impl Failed {
    /// Why a canary of this version failed, if it did.
    pub fn why(&self, name: &FullName, version: &str) -> Option<String> {
        let failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get(name).filter(|(of, _)| of == version).map(|(_, why)| why.clone())
    }

    fn note(&self, name: FullName, version: &str, why: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, (version.to_owned(), why));
    }

    fn retain(&self, is_there: impl Fn(&FullName) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| is_there(name));
    }
}

/// How requests ended to the canary and to the other version, since the operator counts.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Sample {
    at_ms: u64,
    canary: Outcomes,
    stable: Outcomes,
}

/// One canary under watch.
#[derive(Debug, Default)]
struct Trial {
    /// The version that is tried, and the one that all others are asked for.
    versions: (String, String),
    samples: VecDeque<Sample>,
}

impl Trial {
    /// Takes what is known now. Gives why the canary failed, if it did.
    fn judge(&mut self, canary: &Canary, stable: &str, now: Sample) -> Option<String> {
        let versions = (canary.version.clone(), stable.to_owned());
        if self.versions != versions {
            (self.versions, self.samples) = (versions, VecDeque::new());
        }
        if self.samples.back().is_none_or(|last| now.at_ms.saturating_sub(last.at_ms) >= SAMPLE_MS) {
            self.samples.push_back(now);
        }
        let enough = u64::try_from(canary.min_requests).unwrap_or(1).max(1);
        let begins_late = |first: &Sample| {
            now.at_ms.saturating_sub(first.at_ms) >= WINDOW_MS && total(more(now.canary, first.canary)) >= enough
        };
        // The oldest that is left is the youngest that is old enough.
        while self.samples.get(1).is_some_and(begins_late) {
            self.samples.pop_front();
        }
        let first = self.samples.front()?;
        let (tried, other) = (more(now.canary, first.canary), more(now.stable, first.stable));
        let (all, all_others) = (total(tried), total(other));
        let worse =
            u128::from(tried.failed) * u128::from(all_others.max(1)) > u128::from(other.failed) * u128::from(all);
        let limit = u128::try_from(canary.max_error_percent).unwrap_or(0) * u128::from(all);
        (all >= enough && u128::from(tried.failed) * 100 > limit && worse).then(|| {
            format!(
                "{} of {all} requests to version {} failed, and {} of {all_others} to others: more than spec.canary.maxErrorPercent, {} %.",
                tried.failed, canary.version, other.failed, canary.max_error_percent
            )
        })
    }
}

fn total(outcomes: Outcomes) -> u64 {
    outcomes.answered.saturating_add(outcomes.failed)
}

fn more(now: Outcomes, before: Outcomes) -> Outcomes {
    Outcomes {
        answered: now.answered.saturating_sub(before.answered),
        failed: now.failed.saturating_sub(before.failed),
    }
}

/// Watches over all canaries, and never ends by itself.
pub async fn run(context: Arc<Context>, gateways: Arc<Gateways>) {
    let mut trials: HashMap<FullName, Trial> = HashMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        for (namespace, name) in look(&context, &gateways, &mut trials) {
            context.hosted.push(&namespace, &name).await;
        }
    }
}

/// Gives the endpoints whose canary has just failed.
fn look(context: &Context, gateways: &Gateways, trials: &mut HashMap<FullName, Trial>) -> Vec<(String, String)> {
    let endpoints = context.hosted.endpoints.state();
    let named: HashSet<FullName> = endpoints.iter().map(|one| full_name(one)).collect();
    let tried: Vec<&Arc<ModelEndpoint>> = endpoints.iter().filter(|one| is_tried(one)).collect();
    let under_way: HashSet<FullName> = tried.iter().map(|one| full_name(one)).collect();
    trials.retain(|name, _| under_way.contains(name));
    context.hosted.failed.retain(|name| under_way.contains(name));
    let at_ms = gateways.now_ms();
    let mut loads = gateways.loads();
    loads.retain_outcomes(|name| named.contains(name));
    let mut failed = Vec::new();
    for endpoint in tried {
        let Some(canary) = &endpoint.spec.canary else { continue };
        let name = full_name(endpoint);
        let (canary_now, stable_now) = loads.outcomes(&name, &ModelVersion::from(canary.version.as_str()));
        let now = Sample { at_ms, canary: canary_now, stable: stable_now };
        let trial = trials.entry(name.clone()).or_default();
        let Some(why) = trial.judge(canary, &endpoint.spec.model.version, now) else { continue };
        if context.hosted.failed.why(&name, &canary.version).is_none() {
            tracing::warn!(namespace = %name.0, endpoint = %name.1, version = canary.version, why, "a canary is rolled back");
            failed.push((name.0.to_string(), name.1.to_string()));
            context.hosted.failed.note(name, &canary.version, why);
        }
    }
    failed
}

/// Whether its canary is tried, as far as it says.
fn is_tried(endpoint: &ModelEndpoint) -> bool {
    let known = endpoint.status.as_ref().and_then(|status| status.canary.as_ref());
    endpoint.spec.canary.as_ref().is_some_and(|canary| {
        known.is_some_and(|known| known.version == canary.version && known.phase == CanaryPhase::Running)
    })
}

/// An endpoint's name with its namespace.
pub fn full_name(endpoint: &ModelEndpoint) -> FullName {
    (endpoint.namespace().unwrap_or_default().into(), endpoint.name_any().into())
}

#[cfg(test)]
mod tests;
