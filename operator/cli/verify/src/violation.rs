//! What a check found.

use std::fmt;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Severity {
    /// An invariant is broken.
    Violation,
    /// Something is on its way, or is said openly by the API: no invariant is broken yet.
    Warning,
}

/// One thing that is not as it must be.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// How bad it is.
    pub severity: Severity,
    /// Number of the invariant, as docs/ARCHITECTURE.md counts them: 1, 2, 4 or 5.
    pub invariant: u8,
    /// What it is, as one CamelCase word for machines.
    pub code: &'static str,
    /// The object that it was seen on, as `kind/name` or `kind/namespace/name`.
    pub object: String,
    /// What was seen, as a sentence for people.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Violation => "violation",
            Severity::Warning => "warning",
        };
        write!(f, "{severity} of invariant {}: {} {}: {}", self.invariant, self.code, self.object, self.message)
    }
}

/// Collects what the checks find.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Violation>);

impl Findings {
    /// Notes a broken invariant.
    pub(crate) fn violation(&mut self, invariant: u8, code: &'static str, object: impl Into<String>, message: String) {
        self.push(Severity::Violation, invariant, code, object, message);
    }

    /// Notes something that is on its way.
    pub(crate) fn warning(&mut self, invariant: u8, code: &'static str, object: impl Into<String>, message: String) {
        self.push(Severity::Warning, invariant, code, object, message);
    }

    /// Notes a broken invariant, or only a warning when there is an excuse for it.
    pub(crate) fn unless(
        &mut self,
        excused: bool,
        invariant: u8,
        code: &'static str,
        object: impl Into<String>,
        message: String,
    ) {
        let severity = if excused { Severity::Warning } else { Severity::Violation };
        self.push(severity, invariant, code, object, message);
    }

    fn push(
        &mut self,
        severity: Severity,
        invariant: u8,
        code: &'static str,
        object: impl Into<String>,
        message: String,
    ) {
        self.0.push(Violation { severity, invariant, code, object: object.into(), message });
    }

    /// Violations first, then warnings, each by invariant, code and object.
    pub(crate) fn sorted(mut self) -> Vec<Violation> {
        self.0.sort();
        self.0
    }
}
