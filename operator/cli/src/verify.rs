//! `spillway verify`: whether what was sold is really so.

use std::io::{self, Write};

use kube::Client;
use serde::Serialize;
use spillway_verify::{Settings, Severity, Violation, check, load};

use crate::{
    args::VerifyArgs,
    error::Error,
    output::{Report, Table, counted},
};

/// The answer.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    /// How many violations there are.
    pub(crate) violations: usize,
    /// How many warnings there are, shown or not.
    pub(crate) warnings: usize,
    /// What was looked at.
    pub(crate) checked: Checked,
    /// What was found: violations, and warnings when they were asked for.
    pub(crate) findings: Vec<Violation>,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Checked {
    /// Generation of the ledger, if there is one.
    pub(crate) generation: Option<i64>,
    /// Nodes of pools.
    pub(crate) nodes: usize,
    /// Pods on them.
    pub(crate) pods: usize,
    /// Reservations.
    pub(crate) reservations: usize,
}

/// Reads and checks.
pub(crate) async fn run(client: &Client, args: &VerifyArgs) -> Result<Verdict, Error> {
    let mut settings = Settings { settle_ms: args.settle, ..Settings::default() };
    settings.infrastructure = args.infrastructure_namespaces.iter().cloned().collect();
    settings.infrastructure.insert(args.operator_namespace.clone());
    let world = load(client, settings).await?;
    let checked = Checked {
        generation: world.root.as_ref().map(|root| root.spec.generation),
        nodes: world.nodes.len(),
        pods: world.pods.len(),
        reservations: world.reservations.len(),
    };
    Ok(verdict(check(&world), checked, args.warnings))
}

fn verdict(mut findings: Vec<Violation>, checked: Checked, show_warnings: bool) -> Verdict {
    let violations = findings.iter().filter(|finding| finding.severity == Severity::Violation).count();
    let warnings = findings.len().saturating_sub(violations);
    if !show_warnings {
        findings.retain(|finding| finding.severity == Severity::Violation);
    }
    Verdict { violations, warnings, checked, findings }
}

impl Report for Verdict {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        if !self.findings.is_empty() {
            let mut table = Table::new(&["SEVERITY", "INVARIANT", "CODE", "OBJECT", "MESSAGE"]);
            for finding in &self.findings {
                table.push(vec![
                    format!("{:?}", finding.severity),
                    finding.invariant.to_string(),
                    finding.code.to_owned(),
                    finding.object.clone(),
                    finding.message.clone(),
                ]);
            }
            table.write(out, 0)?;
            writeln!(out)?;
        }
        let Checked { generation, nodes, pods, reservations } = self.checked;
        let ledger =
            generation.map_or_else(|| "no ledger".to_owned(), |generation| format!("ledger generation {generation}"));
        let hidden =
            if self.warnings > 0 && self.findings.len() == self.violations { " (--warnings shows more)" } else { "" };
        writeln!(
            out,
            "{}, {}{hidden}: {ledger}, {} with {}, {} checked.",
            counted(self.violations, "violation"),
            counted(self.warnings, "warning"),
            counted(nodes, "pool node"),
            counted(pods, "pod"),
            counted(reservations, "reservation"),
        )
    }
}

#[cfg(test)]
mod tests;
