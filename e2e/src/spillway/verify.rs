//! `spillway verify`, as a person would run it.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use tokio::process::Command;

use super::Spillway;

/// Longest time of a check, unless another is given.
const BOUND: Duration = Duration::from_secs(60);

/// What `spillway verify -o json` said.
#[derive(Debug, Clone, Deserialize)]
pub struct Verdict {
    /// Number of violations.
    pub violations: usize,
    /// Number of warnings.
    pub warnings: usize,
    /// Each of them.
    pub findings: Vec<Finding>,
}

/// One thing that is not as it must be.
#[derive(Debug, Clone, Deserialize)]
pub struct Finding {
    /// `Violation` or `Warning`.
    pub severity: String,
    /// Number of the invariant.
    pub invariant: u8,
    /// One CamelCase word.
    pub code: String,
    /// The object.
    pub object: String,
    /// A sentence.
    pub message: String,
}

impl Verdict {
    /// Fails with all violations, if there are any.
    pub fn ensure_clean(&self) -> Result<()> {
        let list: Vec<String> = self
            .findings
            .iter()
            .filter(|finding| finding.severity == "Violation")
            .map(|finding| {
                format!("invariant {}: {} {}: {}", finding.invariant, finding.code, finding.object, finding.message)
            })
            .collect();
        ensure!(
            self.violations == 0 && list.is_empty(),
            "spillway verify found {} violations:\n{}",
            self.violations,
            list.join("\n")
        );
        Ok(())
    }
}

impl Spillway<'_> {
    /// Runs `spillway verify` with its own settle time: what is younger is a warning.
    pub async fn verify(&self) -> Result<Verdict> {
        self.verify_settled("30s").await
    }

    /// Runs `spillway verify` on a cluster that has been quiet for so long: whatever is older is a violation.
    pub async fn verify_settled(&self, settle: &str) -> Result<Verdict> {
        self.verify_within(settle, BOUND).await
    }

    /// The same on a cluster so large that it takes longer.
    pub async fn verify_within(&self, settle: &str, bound: Duration) -> Result<Verdict> {
        let run = Command::new(&self.binaries().cli)
            .args(["verify", "-o", "json", "--warnings", "--settle", settle])
            .env("KUBECONFIG", self.lab().kubeconfig())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(bound, run)
            .await
            .context("spillway verify does not end")?
            .context("running spillway verify")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let verdict: Verdict = serde_json::from_str(&text).with_context(|| {
            format!("spillway verify ({}) said:\n{text}\n{}", output.status, String::from_utf8_lossy(&output.stderr))
        })?;
        let expected = if verdict.violations > 0 { 1 } else { 0 };
        ensure!(
            output.status.code() == Some(expected),
            "spillway verify ended with {} and found {verdict:?}",
            output.status
        );
        Ok(verdict)
    }
}
