//! What the guards found: whether the policies act, and why nothing is sold, if so.

use std::time::{Duration, Instant};

use spillway_manifests::{observe::Stance, pool::passes};

/// Why nothing is sold: a CamelCase word, and a sentence that says what to do.
pub type Doubt = (&'static str, String);

/// The planner's word for a request that would not wait.
pub const NOT_NOW: &str = "NotNow";

/// What passes by itself is not told for so long: a leader that starts on a settled cluster writes no status.
pub const UNTOLD: Duration = Duration::from_secs(15);

/// What the guards found.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Whether the policies are to act.
    pub stance: Stance,
    /// What is wrong with the policies.
    pub policies: Option<Doubt>,
    /// What is wrong with what they do.
    pub tested: Option<Doubt>,
    /// Why the audit stopped sales.
    pub brake: Option<Doubt>,
    /// Since when something is in doubt, if it is.
    pub since: Instant,
}

impl Default for State {
    /// Nothing is known yet, so everything is in doubt.
    fn default() -> Self {
        Self {
            stance: Stance::Enforce,
            policies: Some(starting()),
            tested: Some(pending()),
            brake: Some(starting()),
            since: Instant::now(),
        }
    }
}

impl State {
    /// Why nothing is sold. What a person must do comes first. While all pools observe no test is made, because no policy acts.
    pub fn doubt(&self) -> Option<&Doubt> {
        let tested = || self.tested.as_ref().filter(|_| !self.observes());
        let starting = |doubt: &&Doubt| doubt.0 == STARTING;
        let all = || self.brake.iter().chain(self.policies.iter()).chain(tested());
        all().find(|doubt| !starting(doubt)).or_else(|| all().next())
    }

    /// What of it people are told: all but what passes by itself, unless that lasts.
    pub fn told(&self) -> Option<&Doubt> {
        self.doubt().filter(|(reason, _)| !passes(reason) || self.since.elapsed() >= UNTOLD)
    }

    /// All pools observe and nothing is booked.
    pub fn observes(&self) -> bool {
        self.stance == Stance::Observe
    }
}

const STARTING: &str = "GuardsStarting";

/// A leader that has not looked yet.
pub fn starting() -> Doubt {
    (STARTING, "the operator has just begun to lead and looks at the policies first; it takes seconds.".to_owned())
}

/// The policies have not been tried since they last changed.
pub fn pending() -> Doubt {
    ("SelfTestPending", "the policies are being tried; it takes seconds.".to_owned())
}

/// The self-test found that the policies do not hold.
pub fn failed(what: &[String]) -> Doubt {
    let (first, more) = some(what);
    (
        "SelfTestFailed",
        format!(
            "the admission policies do not hold what they should ({first}{more}): look for changed policies, other mutating policies and webhooks; it is tried again every few seconds."
        ),
    )
}

/// The self-test has had no clear answer for too long.
pub fn inconclusive(what: &[String]) -> Doubt {
    let (first, more) = some(what);
    (
        "SelfTestInconclusive",
        format!(
            "the policies could not be tried for minutes ({first}{more}): helm upgrade the release if namespace or role spillway-selftest is missing."
        ),
    )
}

/// Policies are missing or differ.
pub fn wrong(what: &[String], why_not_restored: Option<&str>) -> Doubt {
    let (first, more) = some(what);
    let restored = match why_not_restored {
        None => "they are being restored".to_owned(),
        Some(why) => format!("they could not be restored ({why}), which is tried again: helm upgrade the release"),
    };
    ("PoliciesWrong", format!("{first}{more}; {restored}."))
}

/// The policies are being put in or out of force, because modes of pools changed.
pub fn changing() -> Doubt {
    ("PoliciesChanging", "modes of pools changed, and the policies with them; it takes seconds.".to_owned())
}

/// There is nothing to compare the policies with.
pub fn no_copy(why: &str) -> Doubt {
    (
        "PolicyCopyMissing",
        format!("{why}, so nobody can say whether the policies are as they should be: helm upgrade the release."),
    )
}

/// The release's policies only warn.
pub fn not_enforced() -> Doubt {
    (
        "PoliciesNotEnforced",
        "the release was installed with policies.enforce=false, and policies that only warn hold nothing: helm upgrade with policies.enforce=true."
            .to_owned(),
    )
}

/// The release is going.
pub fn uninstalling(what: &str) -> Doubt {
    (
        "Uninstalling",
        format!(
            "{what} is gone, so the release is being uninstalled and its policies are not restored: helm upgrade --install it, if not."
        ),
    )
}

/// Nodes have not been audited yet.
pub fn auditing() -> Doubt {
    ("AuditPending", "the pods on all nodes are being audited first; it takes seconds.".to_owned())
}

/// The audit found too much.
pub fn braked(configmap: &str, namespace: &str, pods: &str) -> Doubt {
    (
        "AuditBrake",
        format!(
            "the audit found more pods than it deletes in a minute where they may not be ({pods}), and deletes none: find out why, end them, then kubectl delete configmap -n {namespace} {configmap}."
        ),
    )
}

/// The first of a list, and how many more.
fn some(what: &[String]) -> (String, String) {
    let first = what.first().cloned().unwrap_or_default();
    let more = what.len().saturating_sub(1);
    (first, if more > 0 { format!("; and {more} more") } else { String::new() })
}

#[cfg(test)]
mod tests;
