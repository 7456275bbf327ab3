//! The self-test: the attacks of a tenant, as dry runs by a user that can do nothing else.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::Request;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::events::EventType,
};
use serde_json::{Value, json};
use spillway_crds::names::{HOLDER_LABEL, ROLE_LABEL, ROLE_TENANT, SELFTEST_NAMESPACE, SELFTEST_USER};
use spillway_manifests::selftest::{Answer, Attack, Outcome, attacks, judge, sum};

use super::{change, state, subject};
use crate::{
    context::Context,
    error::{Error, call},
    metrics::TestResult,
};

/// How often it is made while nothing changes.
const EVERY: Duration = Duration::from_secs(60);
/// The API server acts on a changed policy within a second (0.56 to 0.97 s were measured): what is tried sooner may still meet the old one.
const SETTLE: Duration = Duration::from_millis(1500);
/// Without a clear answer for so long nothing is sold.
const BOUND: Duration = Duration::from_secs(180);
/// How soon it is made again when it did not pass.
const AGAIN: Duration = Duration::from_secs(2);
/// Failures in a row after which a person is told: the first may be policies that were written a moment ago.
const TELL_AFTER: u32 = 2;
/// Labels of a namespace are seen by admission within this time (at most 40 ms were measured).
const LABELS_SEEN: Duration = Duration::from_millis(200);

/// Tests for ever.
pub(super) async fn run(context: Arc<Context>) {
    let mut changed = context.guards.changed.subscribe();
    let mut states = context.guards.state.subscribe();
    let (mut failures, mut passed) = (0_u32, None::<Instant>);
    loop {
        // While all pools observe, or the policies are known to be wrong, there is nothing to try.
        let ready = states.wait_for(|state| state.policies.is_none() && !state.observes()).await;
        if ready.map(drop).is_err() {
            return;
        }
        let change_seen = *changed.borrow_and_update();
        if let Some(left) = change_seen.and_then(|at| SETTLE.checked_sub(at.elapsed())) {
            tokio::time::sleep(left).await;
            continue;
        }
        let outcome = test(&context).await;
        if *changed.borrow() != change_seen || context.guards.state().policies.is_some() {
            continue;
        }
        let wait = record(&context, outcome, &mut failures, &mut passed).await;
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            result = changed.changed() => if result.is_err() { return },
        }
    }
}

/// Says what came of a test; gives the time to the next.
async fn record(context: &Context, outcome: Outcome, failures: &mut u32, passed: &mut Option<Instant>) -> Duration {
    let count = |result| context.metrics.selftests.get_or_create(&TestResult { result }).inc();
    match outcome {
        Outcome::Passed => {
            count("passed");
            if *failures >= TELL_AFTER {
                tracing::info!("the self-test passes again");
            }
            (*failures, *passed) = (0, Some(Instant::now()));
            context.metrics.selftest_failed.set(0);
            change(context, |state| state.tested = None).await;
            EVERY
        }
        Outcome::Failed(what) => {
            count("failed");
            *failures = failures.saturating_add(1);
            *passed = None;
            context.metrics.selftest_failed.set(1);
            let doubt = state::failed(&what);
            if *failures == TELL_AFTER {
                tracing::error!(?what, "the self-test failed");
                let note = format!("Nothing new is sold: {}", doubt.1);
                context.event(&subject(context), EventType::Warning, doubt.0, &note, "Test").await;
            }
            change(context, |state| state.tested = Some(doubt)).await;
            AGAIN
        }
        Outcome::Inconclusive(what) => {
            count("inconclusive");
            tracing::warn!(?what, "the self-test says nothing");
            // What passed before counts for a while; what never passed, or failed, is in doubt as it is.
            let tested = context.guards.state().tested;
            let stale = passed.is_some_and(|at| at.elapsed() > BOUND);
            let waiting = passed.is_none() && tested.as_ref().is_none_or(|doubt| doubt.0 == state::pending().0);
            if stale || waiting {
                let doubt = state::inconclusive(&what);
                let note = format!("Nothing new is sold: {}", doubt.1);
                context.event(&subject(context), EventType::Warning, doubt.0, &note, "Test").await;
                change(context, |state| state.tested = Some(doubt)).await;
            }
            AGAIN
        }
    }
}

/// Tries everything once.
async fn test(context: &Context) -> Outcome {
    let holder = match prepare(context).await {
        Ok(Some(holder)) => holder,
        Ok(None) => return Outcome::Inconclusive(vec![format!("namespace {SELFTEST_NAMESPACE} is missing")]),
        Err(error) => return Outcome::Inconclusive(vec![error.to_string()]),
    };
    let prefix = context.config.device_prefixes.first().map_or("nvidia.com/", String::as_str);
    let tries = attacks(prefix, context.config.grace_cap_seconds).into_iter().map(|attack| {
        let holder = &holder;
        async move {
            let answer = attempt(context, &attack).await;
            judge(&attack, &answer, holder)
        }
    });
    let verdicts = stream::iter(tries.collect::<Vec<_>>()).buffer_unordered(4).collect::<Vec<_>>().await;
    sum(verdicts)
}

/// Makes the namespace a tenant's to the policies; gives its holder id. It is in no Tenant, so nothing can be bought for it.
async fn prepare(context: &Context) -> Result<Option<String>, Error> {
    let api: Api<Namespace> = Api::all(context.client.clone());
    let found = call("reading the self-test's namespace", api.get_opt(SELFTEST_NAMESPACE)).await?;
    let Some(found) = found.filter(|found| found.metadata.deletion_timestamp.is_none()) else { return Ok(None) };
    let uid = found.uid().unwrap_or_default();
    let label = |key| found.labels().get(key).map(String::as_str);
    if label(ROLE_LABEL) != Some(ROLE_TENANT) || label(HOLDER_LABEL) != Some(uid.as_str()) {
        let patch = json!({"metadata": {"uid": uid, "labels": {ROLE_LABEL: ROLE_TENANT, HOLDER_LABEL: uid}}});
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let labelled = api.patch_metadata(SELFTEST_NAMESPACE, &params, &patch);
        call("labelling the self-test's namespace", labelled).await?;
        tokio::time::sleep(LABELS_SEEN).await;
    }
    Ok(Some(uid))
}

/// One try.
async fn attempt(context: &Context, attack: &Attack) -> Answer {
    let request = Request::post(format!("{}?dryRun=All", attack.object.path()))
        .header("content-type", "application/json")
        .header("impersonate-user", SELFTEST_USER)
        .body(attack.body.to_string().into_bytes());
    let request = match request {
        Ok(request) => request,
        Err(error) => return Answer::None(error.to_string()),
    };
    match call("trying an attack", context.client.request::<Value>(request)).await {
        Ok(object) => Answer::Accepted(object),
        Err(Error::Api { source, .. }) => match *source {
            kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429 => {
                Answer::Refused(status.message.clone())
            }
            other => Answer::None(other.to_string()),
        },
        Err(error) => Answer::None(error.to_string()),
    }
}
