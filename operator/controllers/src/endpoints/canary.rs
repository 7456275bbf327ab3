//! Another version that is tried: which part of the replicas it has, and what is said of it. Whether it fails is judged elsewhere ([`crate::canaries`]).

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use spillway_crds::{Canary, CanaryPhase, Model, ModelEndpoint, ModelVersion, VersionStatus, names::VERSION_LABEL};
use spillway_manifests::endpoint::{CanaryFacts, find_version, runtime_of};

use super::ready;
use crate::{canaries::full_name, context::Context};

/// The version that is tried, if one is; and what is to be said of it, if that is news.
pub(super) fn look(
    context: &Context,
    endpoint: &ModelEndpoint,
    model: &Model,
    devices: i32,
    share: i32,
    there: &[Arc<Deployment>],
) -> (Option<ModelVersion>, Option<CanaryFacts>) {
    let Some(canary) = &endpoint.spec.canary else { return (None, None) };
    let known = endpoint.status.as_ref().and_then(|status| status.canary.as_ref());
    if known.is_some_and(|known| known.version == canary.version && known.phase == CanaryPhase::RolledBack) {
        return (None, None);
    }
    let failed = |why: &str| {
        let message = format!(
            "{why} All requests go to version {} again. To try {} once more, take spec.canary out and put it back.",
            endpoint.spec.model.version, canary.version
        );
        (None, Some(CanaryFacts { phase: Some(CanaryPhase::RolledBack), reason: "RolledBack", message }))
    };
    if let Some(why) = context.hosted.failed.why(&full_name(endpoint), &canary.version) {
        return failed(&why);
    }
    let cannot = |reason, message| (None, Some(CanaryFacts { phase: None, reason, message }));
    let version = match find_version(model, &canary.version) {
        Ok(version) => version,
        Err((reason, message)) => return cannot(reason, message.replace("spec.model.version", "spec.canary.version")),
    };
    match runtime_of(version) {
        Err((reason, message)) => return cannot(reason, message),
        Ok((_, needs)) if needs.devices != devices => {
            let message = format!(
                "A replica of version {} takes {} devices, and one of {} takes {devices}: a canary is tried on devices of the same replicas. Make an endpoint of its own for it.",
                canary.version, needs.devices, endpoint.spec.model.version
            );
            return cannot("NeedsDiffer", message);
        }
        Ok(_) => {}
    }
    if endpoint.spec.replicas < 2 {
        let message = "A canary takes the place of one of at least two replicas: set spec.replicas to 2 or more.";
        return cannot("NeedsTwoReplicas", message.to_owned());
    }
    if share < 1 {
        let message = "A canary takes the place of one of at least two replicas that have devices, one of them on spec.capacity.reservation: reserve more.";
        return cannot("NeedsDevices", message.to_owned());
    }
    let mut of_it = there.iter().filter(|one| is_of(one, &canary.version));
    if of_it.clone().any(|one| has_stalled(one)) && of_it.clone().all(|one| ready(one) == 0) {
        return failed(&format!("No replica of version {} has come to answer in its time.", canary.version));
    }
    let facts = if of_it.any(|one| ready(one) > 0) {
        let message = format!("{} % of the requests go to version {}.", canary.weight, canary.version);
        CanaryFacts { phase: Some(CanaryPhase::Running), reason: "Running", message }
    } else {
        let message = format!("No replica of version {} answers yet.", canary.version);
        CanaryFacts { phase: Some(CanaryPhase::Running), reason: "Starting", message }
    };
    (Some(version.clone()), Some(facts))
}

/// Whether a Deployment is of the version that was tried last.
pub(super) fn was_tried(endpoint: &ModelEndpoint, deployment: &Deployment) -> bool {
    let known = endpoint.status.as_ref().and_then(|status| status.canary.as_ref());
    known.is_some_and(|known| is_of(deployment, &known.version))
}

pub(super) fn is_of(deployment: &Deployment, version: &str) -> bool {
    deployment.labels().get(VERSION_LABEL).is_some_and(|of| of == version)
}

/// Whether a Deployment has got no further for longer than it may take.
fn has_stalled(deployment: &Deployment) -> bool {
    let conditions = deployment.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|one| {
        one.type_ == "Progressing" && one.status == "False" && one.reason.as_deref() == Some("ProgressDeadlineExceeded")
    })
}

/// Versions that there are replicas of, or are to be. A canary that failed gets nothing; one that is not tried for want of something is one like others.
pub(super) fn versions(
    endpoint: &ModelEndpoint,
    there: &[Arc<Deployment>],
    phase: Option<CanaryPhase>,
    moves: bool,
) -> Vec<VersionStatus> {
    let mut all: BTreeMap<&str, VersionStatus> = BTreeMap::new();
    let canary = endpoint.spec.canary.as_ref().and_then(|canary: &Canary| match phase? {
        // A version that goes has as much as its replicas can do, until it has its share of them only.
        CanaryPhase::Running if moves => None,
        CanaryPhase::Running => Some((canary, canary.weight)),
        CanaryPhase::RolledBack => Some((canary, 0)),
    });
    let to_others = 100 - canary.map_or(0, |(_, weight)| weight);
    all.entry(&endpoint.spec.model.version).or_default().weight = (!moves).then_some(to_others);
    if let Some((canary, weight)) = canary {
        all.entry(&canary.version).or_default().weight = Some(weight);
    }
    for one in there {
        let Some(version) = one.labels().get(VERSION_LABEL) else { continue };
        let entry = all.entry(version).or_default();
        entry.replicas += one.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
        entry.ready_replicas += ready(one);
    }
    all.into_iter().map(|(name, status)| VersionStatus { version: name.to_owned(), ..status }).collect()
}
