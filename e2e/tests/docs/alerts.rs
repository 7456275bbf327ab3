//! Alerts and dashboard speak of metrics that exist, and each alert has a page that says what to do.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{ROOT, read};

const ALERTS: &str = "charts/spillway/files/alerts.yaml";

/// The names of all metrics that docs/book/src/metrics.md describes.
fn documented() -> Result<BTreeSet<String>> {
    let reference = read("docs/book/src/metrics.md")?;
    let names = reference.lines().filter_map(|line| line.strip_prefix("| `spillway_")?.split('`').next());
    Ok(names.map(|name| format!("spillway_{name}")).collect())
}

/// The metrics of an expression.
fn metrics(expression: &str) -> BTreeSet<&str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("spillway_")).collect()
}

fn unknown(expression: &str, documented: &BTreeSet<String>) -> Vec<String> {
    metrics(expression)
        .into_iter()
        .filter(|name| {
            let whole = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
            !documented.contains(*name) && !documented.contains(whole)
        })
        .map(str::to_owned)
        .collect()
}

/// Brackets that match, and no name of a metric without a value to compare or draw.
fn is_well_formed(expression: &str) -> bool {
    let mut open = Vec::new();
    for c in expression.chars() {
        match c {
            '(' | '[' | '{' => open.push(c),
            ')' | ']' | '}' => {
                let wanted = match c {
                    ')' => '(',
                    ']' => '[',
                    _ => '{',
                };
                if open.pop() != Some(wanted) {
                    return false;
                }
            }
            _ => {}
        }
    }
    open.is_empty() && !metrics(expression).is_empty()
}

#[test]
fn every_alert_is_of_metrics_that_exist_and_has_a_runbook() -> Result<()> {
    let documented = documented()?;
    let file: Value = serde_yaml::from_str(&read(ALERTS)?).context("reading the alerts")?;
    let rules = file.pointer("/groups/0/rules").and_then(Value::as_array).context("rules")?;
    ensure!(rules.len() >= 5, "only {} alerts", rules.len());
    let metrics_page = read("docs/book/src/metrics.md")?;
    let mut wrong = Vec::new();
    for rule in rules {
        let text = |pointer: &str| rule.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let name = text("/alert");
        let expression = text("/expr");
        if !is_well_formed(expression) {
            wrong.push(format!("{name}: '{expression}' is no expression"));
        }
        wrong
            .extend(unknown(expression, &documented).into_iter().map(|metric| format!("{name}: there is no {metric}")));
        if !matches!(text("/labels/severity"), "critical" | "warning") {
            wrong.push(format!("{name} has no severity"));
        }
        if text("/annotations/summary").is_empty() || text("/annotations/description").is_empty() {
            wrong.push(format!("{name} does not say what it means"));
        }
        let runbook = text("/annotations/runbook");
        match runbook.starts_with("docs/runbooks/").then(|| read(runbook)) {
            Some(Ok(page)) if page.contains(&format!("`{name}`")) => {}
            Some(Ok(_)) => wrong.push(format!("{runbook} does not name {name}")),
            _ => wrong.push(format!("{name}: there is no runbook {runbook}")),
        }
        if !metrics_page.contains(&format!("| `{name}` |")) {
            wrong.push(format!("docs/book/src/metrics.md does not list {name}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn the_dashboard_shows_metrics_that_exist() -> Result<()> {
    let documented = documented()?;
    let board: Value = serde_json::from_str(&read("charts/spillway/files/dashboard.json")?)?;
    let panels = board.pointer("/panels").and_then(Value::as_array).context("panels")?;
    let expressions: Vec<&str> = panels
        .iter()
        .flat_map(|panel| panel.pointer("/targets").and_then(Value::as_array).into_iter().flatten())
        .filter_map(|target| target.get("expr").and_then(Value::as_str))
        .collect();
    ensure!(expressions.len() > 10, "only {} expressions", expressions.len());
    let wrong: Vec<String> = expressions
        .iter()
        .flat_map(|expression| {
            let broken = (!is_well_formed(expression)).then(|| format!("'{expression}' is no expression"));
            broken.into_iter().chain(unknown(expression, &documented))
        })
        .collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn a_wrong_expression_is_found() -> Result<()> {
    let documented = documented()?;
    ensure!(unknown("max(spillway_leaders) > 0", &documented) == ["spillway_leaders"], "an unknown metric is taken");
    ensure!(unknown("rate(spillway_plan_seconds_bucket[5m])", &documented).is_empty(), "a histogram is not taken");
    ensure!(!is_well_formed("max(spillway_leader > 0"), "an open bracket is taken");
    ensure!(!is_well_formed("max(up) > 0"), "an alert of nothing of ours is taken");
    Ok(())
}

/// With Prometheus' own parser, where it is installed (Debian's package `prometheus`).
#[test]
fn promtool_takes_the_alerts() -> Result<()> {
    let output = match Command::new("promtool").args(["check", "rules"]).arg(Path::new(ROOT).join(ALERTS)).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context("starting promtool"),
    };
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "promtool: {said}");
    Ok(())
}
