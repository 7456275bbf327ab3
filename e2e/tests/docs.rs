//! The documentation says what the code says: every metric and every reason is described, and every relative link leads somewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

#[path = "docs/alerts.rs"]
mod alerts;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Where the words that people see as `reason` are written.
const REASONS: [&str; 14] = [
    "operator/planner/src/plan/reasons.rs",
    "operator/planner/src/node.rs",
    "operator/controllers/src/apikeys.rs",
    "operator/controllers/src/engine.rs",
    "operator/controllers/src/guards/state.rs",
    "operator/controllers/src/guards/audit.rs",
    "operator/controllers/src/pools.rs",
    "operator/controllers/src/reservations.rs",
    "operator/controllers/src/tenants.rs",
    "operator/manifests/src/apikey.rs",
    "operator/manifests/src/observe.rs",
    "operator/manifests/src/pool.rs",
    "operator/manifests/src/reservation.rs",
    "operator/manifests/src/tenant.rs",
];

/// Words of the same form that are no reasons: condition types, taint effects, kinds, actions of Events.
const OTHER_WORDS: [&str; 15] = [
    "Reconciling",
    "NoSchedule",
    "NoExecute",
    "Refuse",
    "End",
    "Replace",
    "ConfigMap",
    "True",
    "PodScheduled",
    "Delete",
    "Stop",
    "Issue",
    "ApiKey",
    "Opaque",
    "Secret",
];

fn read(path: &str) -> Result<String> {
    fs::read_to_string(Path::new(ROOT).join(path)).with_context(|| format!("reading {path}"))
}

/// The string literals of a Rust source that are one CamelCase word.
fn words(source: &str) -> BTreeSet<&str> {
    let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    let literals = code.flat_map(|line| line.split('"').skip(1).step_by(2));
    literals
        .filter(|word| {
            word.len() > 2
                && word.starts_with(|first: char| first.is_ascii_uppercase())
                && word.chars().all(|c| c.is_ascii_alphanumeric())
                && word.chars().skip(1).any(|c| c.is_ascii_lowercase())
        })
        .collect()
}

#[test]
fn every_reason_is_described() -> Result<()> {
    let reference = read("docs/book/src/reasons.md")?;
    let mut missing = Vec::new();
    for path in REASONS {
        let source = read(path)?;
        for word in words(&source) {
            if !OTHER_WORDS.contains(&word)
                && !reference.contains(&format!("`{word}`"))
                && !reference.contains(&format!("{word}="))
            {
                missing.push(format!("{word} ({path})"));
            }
        }
    }
    ensure!(missing.is_empty(), "docs/book/src/reasons.md does not describe {}", missing.join(", "));
    Ok(())
}

/// The names of all metrics as Prometheus sees them: prefix, unit, and `_total` for what only grows.
fn metrics(source: &str, prefix: &str) -> Result<Vec<String>> {
    let counters: BTreeSet<&str> = source
        .lines()
        .filter_map(|line| line.trim().trim_start_matches("pub ").split_once(": "))
        .filter(|(_, kind)| kind.trim_end_matches(',').ends_with("Counter") || kind.contains(", Counter>"))
        .map(|(field, _)| field)
        .collect();
    let mut names = Vec::new();
    for call in source.split("registry.register").skip(1) {
        let (unit, arguments) = match call.strip_prefix("_with_unit(") {
            Some(arguments) => ("_seconds", arguments),
            None => ("", call.strip_prefix('(').context("a call of register")?),
        };
        let name = arguments.split('"').nth(1).context("the name of a metric")?;
        let field = arguments.split("metrics.").nth(1).or_else(|| arguments.split("self.").nth(1));
        let field = field.and_then(|rest| rest.split('.').next()).context("the field of a metric")?;
        let total = if counters.contains(field) { "_total" } else { "" };
        names.push(format!("{prefix}_{name}{unit}{total}"));
    }
    Ok(names)
}

#[test]
fn every_metric_is_described() -> Result<()> {
    let reference = read("docs/book/src/metrics.md")?;
    let mut names = metrics(&read("operator/controllers/src/metrics.rs")?, "spillway")?;
    names.extend(metrics(&read("operator/gateway/src/metrics.rs")?, "spillway_gateway")?);
    names.extend(metrics(&read("operator/gateway/src/telemetry.rs")?, "gen_ai")?);
    names.extend(metrics(&read("operator/usage/src/metrics.rs")?, "spillway_usage")?);
    ensure!(names.len() > 20, "only {names:?} were found: does this test still understand metrics.rs?");
    let missing: Vec<&String> = names.iter().filter(|name| !reference.contains(&format!("| `{name}` |"))).collect();
    ensure!(missing.is_empty(), "docs/book/src/metrics.md does not describe {missing:?}");
    let described = reference.lines().filter_map(|line| line.strip_prefix("| `spillway_")?.split('`').next());
    let gone: Vec<&str> =
        described.filter(|name| !names.iter().any(|known| *known == format!("spillway_{name}"))).collect();
    ensure!(gone.is_empty(), "docs/book/src/metrics.md describes what is not there: {gone:?}");
    Ok(())
}

fn markdown_under(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            markdown_under(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    Ok(())
}

/// The targets of links and includes of a page, code left out.
fn targets(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut targets = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if fenced {
            continue;
        }
        let links = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let includes = line.split("{{#include ").skip(1).filter_map(|rest| rest.split("}}").next());
        targets.extend(links.chain(includes).map(str::to_owned));
    }
    targets
}

/// The anchors of a page's headings, as mdBook and GitHub make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    headings
        .map(|heading| {
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.collect::<String>().to_lowercase().replace(' ', "-")
        })
        .collect()
}

#[test]
fn every_relative_link_leads_somewhere() -> Result<()> {
    let mut pages = Vec::new();
    markdown_under(&Path::new(ROOT).join("docs"), &mut pages)?;
    for page in ["README.md", "charts/spillway/README.md"] {
        let path = Path::new(ROOT).join(page);
        if path.exists() {
            pages.push(path);
        }
    }
    let mut broken = Vec::new();
    for page in &pages {
        let text = fs::read_to_string(page)?;
        for target in targets(&text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target.as_str(), ""));
            let path = if file.is_empty() { page.clone() } else { page.parent().unwrap_or(page).join(file) };
            let leads = path.exists()
                && (anchor.is_empty() || !path.is_file() || anchors(&fs::read_to_string(&path)?).contains(anchor));
            if !leads {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    ensure!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
    Ok(())
}

#[test]
fn every_chapter_is_in_the_summary() -> Result<()> {
    let summary = read("docs/book/src/SUMMARY.md")?;
    let book = Path::new(ROOT).join("docs/book/src");
    let mut pages = Vec::new();
    markdown_under(&book, &mut pages)?;
    let missing: Vec<String> = pages
        .iter()
        .filter_map(|page| page.strip_prefix(&book).ok())
        .map(|page| page.display().to_string())
        .filter(|page| page != "SUMMARY.md" && !summary.contains(&format!("]({page})")))
        .collect();
    ensure!(missing.is_empty(), "SUMMARY.md does not name {missing:?}");
    Ok(())
}

/// Each paragraph of the invariants names files and, after each, tests in it.
#[test]
fn every_guard_of_an_invariant_exists() -> Result<()> {
    let architecture = read("docs/ARCHITECTURE.md")?;
    let section = architecture.split("\n## Invariants\n").nth(1).context("a section Invariants")?;
    let section = section.split("\n## ").next().unwrap_or(section);
    let (mut wrong, mut named) = (Vec::new(), 0);
    let mut source = None;
    for word in section.split('`').skip(1).step_by(2) {
        if Path::new(word).extension().is_some_and(|extension| extension == "rs") {
            match read(word) {
                Ok(text) => source = Some((word, text)),
                Err(_) => wrong.push(format!("there is no {word}")),
            }
        } else if let Some((path, text)) = &source
            && word.contains('_')
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && word != "float_arithmetic"
        {
            named += 1;
            if !text.contains(&format!("fn {word}(")) && !text.contains(&format!("    {word}: ")) {
                wrong.push(format!("there is no {word} in {path}"));
            }
        }
    }
    ensure!(wrong.is_empty(), "docs/ARCHITECTURE.md, Invariants: {}", wrong.join("; "));
    ensure!(named > 20, "only {named} tests are named: does this test still understand the section?");
    Ok(())
}
