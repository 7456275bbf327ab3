//! The direction of dependency between our crates, and the folders at the top: the code map of docs/ARCHITECTURE.md as a check.

#![allow(clippy::indexing_slicing, reason = "a field that a JSON value lacks reads as null")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What a crate of ours may use of ours, in any kind of dependency.
const MAY_USE: [(&str, &[&str]); 13] = [
    ("spillway-crds", &[]),
    ("spillway-planner", &[]),
    ("spillway-metering", &[]),
    ("spillway-tls", &[]),
    ("spillway-manifests", &["spillway-crds", "spillway-planner", "spillway-metering"]),
    (
        "spillway-controllers",
        &["spillway-crds", "spillway-planner", "spillway-metering", "spillway-manifests", "spillway-tls"],
    ),
    ("spillway-verify", &["spillway-crds"]),
    ("spillway-operator", &LIBRARIES),
    ("spillway-agent", &LIBRARIES),
    // It links neither the planner nor the controllers: what it shares with the usage service is in `metering`.
    ("spillway-gateway", &["spillway-crds", "spillway-metering", "spillway-tls"]),
    ("spillway-usage", &["spillway-metering", "spillway-tls"]),
    ("spillway-cli", &LIBRARIES),
    // It tests what is installed, from outside: another crate of ours here would be a test that believes what it tests.
    ("spillway-lab", &["spillway-crds"]),
];

/// What binaries may use. That nothing uses a binary follows: none is in any list.
const LIBRARIES: [&str; 6] = [
    "spillway-crds",
    "spillway-planner",
    "spillway-metering",
    "spillway-manifests",
    "spillway-controllers",
    "spillway-verify",
];

/// Crates that are values in, values out, and what they must not reach through anything that ends up in a build of them.
const PURE: [&str; 2] = ["spillway-planner", "spillway-metering"];
const IMPURE: [&str; 7] = ["tokio", "kube", "kube-client", "kube-core", "kube-runtime", "k8s-openapi", "spillway-crds"];

/// The checker of invariants shares no code with what it checks, not even through a third crate.
const INDEPENDENT: &str = "spillway-verify";
const NOT_REACHED_BY_INDEPENDENT: [&str; 4] =
    ["spillway-planner", "spillway-metering", "spillway-manifests", "spillway-controllers"];

/// The folders of the repository. Those of tools begin with a dot.
const FOLDERS: [&str; 6] = ["operator", "crds", "charts", "kernels", "e2e", "docs"];
const HIDDEN_FOLDERS: [&str; 1] = [".ci"];

/// Who depends on whom.
#[derive(Debug, Default, Clone)]
struct Graph {
    /// Crates of this workspace.
    ours: BTreeSet<String>,
    /// Crate and what a build of it links or runs: normal and build dependencies.
    shipped: BTreeMap<String, BTreeSet<String>>,
    /// What only its tests use.
    tests: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn read(metadata: &Value) -> Result<Self> {
        let list =
            |value: &Value, what: &str| value.as_array().cloned().with_context(|| format!("no {what} in the metadata"));
        let text = |value: &Value| value.as_str().map(str::to_owned).context("not a string in the metadata");
        let mut names = BTreeMap::new();
        for package in list(&metadata["packages"], "packages")? {
            names.insert(text(&package["id"])?, text(&package["name"])?);
        }
        let name =
            |id: &Value| Ok::<_, anyhow::Error>(names.get(&text(id)?).context("a package without a name")?.clone());
        let mut graph = Self::default();
        for id in list(&metadata["workspace_members"], "members")? {
            graph.ours.insert(name(&id)?);
        }
        for node in list(&metadata["resolve"]["nodes"], "nodes")? {
            // Two versions of a crate are one here: either would be one too many.
            let from = name(&node["id"])?;
            for dependency in list(&node["deps"], "deps")? {
                let to = name(&dependency["pkg"])?;
                for kind in list(&dependency["dep_kinds"], "kinds")? {
                    let edges = if kind["kind"] == "dev" { &mut graph.tests } else { &mut graph.shipped };
                    edges.entry(from.clone()).or_default().insert(to.clone());
                }
            }
        }
        Ok(graph)
    }

    /// The way from a crate to the first of `forbidden` that it reaches.
    fn way(&self, from: &str, forbidden: &[&str]) -> Option<Vec<String>> {
        let mut ways = vec![vec![from.to_owned()]];
        let mut seen = BTreeSet::from([from.to_owned()]);
        while let Some(way) = ways.pop() {
            for next in way.last().and_then(|last| self.shipped.get(last)).into_iter().flatten() {
                let way = [way.clone(), vec![next.clone()]].concat();
                if forbidden.contains(&next.as_str()) {
                    return Some(way);
                }
                if seen.insert(next.clone()) {
                    ways.insert(0, way);
                }
            }
        }
        None
    }
}

/// Everything that is wrong with a graph, as sentences.
fn check(graph: &Graph) -> Vec<String> {
    let mut wrong = Vec::new();
    for from in &graph.ours {
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| name == from) else {
            wrong.push(format!(
                "{from} is not in the table of this test: say there what it may use, and in docs/ARCHITECTURE.md"
            ));
            continue;
        };
        let used = [&graph.shipped, &graph.tests]
            .into_iter()
            .filter_map(|edges| edges.get(from))
            .flatten()
            .collect::<BTreeSet<_>>();
        for to in
            used.into_iter().filter(|to| graph.ours.contains(*to) && *to != from && !allowed.contains(&to.as_str()))
        {
            wrong.push(format!("{from} uses {to}; it may use {allowed:?} of ours"));
        }
    }
    for (from, forbidden) in
        PURE.iter().map(|pure| (*pure, IMPURE.as_slice())).chain([(INDEPENDENT, NOT_REACHED_BY_INDEPENDENT.as_slice())])
    {
        if let Some(way) = graph.way(from, forbidden) {
            wrong.push(format!("{from} reaches what it must not: {}", way.join(" -> ")));
        }
    }
    for (name, _) in MAY_USE {
        if !graph.ours.contains(name) {
            wrong.push(format!("{name} is in the table of this test, but not in the workspace"));
        }
    }
    wrong
}

fn run(program: &str, args: &[&str]) -> Result<Vec<u8>> {
    let output =
        Command::new(program).args(args).current_dir(ROOT).output().with_context(|| format!("running {program}"))?;
    ensure!(output.status.success(), "{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

fn real_graph() -> Result<Graph> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    // Only what was downloaded for this machine: the answer for others would be the same, and need the network.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata =
        run(&cargo, &["metadata", "--format-version=1", "--locked", "--all-features", "--filter-platform", &platform])?;
    Graph::read(&serde_json::from_slice(&metadata).context("the metadata's JSON")?)
}

#[test]
fn crates_use_only_what_they_may() -> Result<()> {
    let wrong = check(&real_graph()?);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn a_broken_graph_is_found() -> Result<()> {
    let whole = real_graph()?;
    let broken = |tests: bool, from: &str, to: &str| {
        let mut graph = whole.clone();
        let edges = if tests { &mut graph.tests } else { &mut graph.shipped };
        edges.entry(from.to_owned()).or_default().insert(to.to_owned());
        check(&graph)
    };
    // An edge to ours, in what ships and in tests.
    let upwards = broken(false, "spillway-manifests", "spillway-controllers");
    assert_eq!(upwards.len(), 1, "{upwards:?}");
    assert!(upwards[0].starts_with("spillway-manifests uses spillway-controllers; it may use ["), "{upwards:?}");
    let in_tests = broken(true, "spillway-verify", "spillway-metering");
    assert_eq!(in_tests, ["spillway-verify uses spillway-metering; it may use [\"spillway-crds\"] of ours"]);
    // Nothing uses a binary.
    for binary in
        ["spillway-operator", "spillway-agent", "spillway-gateway", "spillway-usage", "spillway-cli", "spillway-lab"]
    {
        assert_eq!(broken(false, "spillway-controllers", binary).len(), 1, "{binary}");
    }
    // By a way round: through a crate of somebody else's.
    let async_planner = broken(false, "jiff", "tokio");
    assert_eq!(async_planner, ["spillway-planner reaches what it must not: spillway-planner -> jiff -> tokio"]);
    let metering = broken(false, "thiserror", "k8s-openapi");
    assert!(
        metering.contains(
            &"spillway-metering reaches what it must not: spillway-metering -> thiserror -> k8s-openapi".to_owned()
        ),
        "{metering:?}"
    );
    let verify = broken(false, "spillway-crds", "spillway-planner");
    assert!(
        verify.contains(
            &"spillway-verify reaches what it must not: spillway-verify -> spillway-crds -> spillway-planner"
                .to_owned()
        ),
        "{verify:?}"
    );
    // What tests of the pure crates use is not in a build of them.
    assert_eq!(broken(true, "spillway-planner", "tokio"), [""; 0]);

    // Crates come and go with the table.
    let mut graph = whole.clone();
    graph.ours.insert("spillway-later".to_owned());
    graph.ours.remove("spillway-agent");
    let wrong = check(&graph);
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert!(wrong[0].starts_with("spillway-later is not in the table"), "{wrong:?}");
    assert_eq!(wrong[1], "spillway-agent is in the table of this test, but not in the workspace");
    Ok(())
}

#[test]
fn metadata_is_read_by_kind() -> Result<()> {
    let metadata = serde_json::json!({
        "packages": [{"id": "a#1", "name": "a"}, {"id": "b#1", "name": "b"}, {"id": "c#2", "name": "c"}],
        "workspace_members": ["a#1"],
        "resolve": {"nodes": [
            {"id": "a#1", "deps": [
                {"pkg": "b#1", "dep_kinds": [{"kind": null}]},
                {"pkg": "c#2", "dep_kinds": [{"kind": "dev"}]},
            ]},
            {"id": "b#1", "deps": [{"pkg": "c#2", "dep_kinds": [{"kind": "build"}, {"kind": "dev"}]}]},
            {"id": "c#2", "deps": []},
        ]},
    });
    let graph = Graph::read(&metadata)?;
    assert_eq!(graph.ours, BTreeSet::from(["a".to_owned()]));
    assert_eq!(graph.tests["a"], BTreeSet::from(["c".to_owned()]));
    assert_eq!(graph.way("a", &["c"]), Some(vec!["a".to_owned(), "b".to_owned(), "c".to_owned()]));
    assert_eq!(graph.way("c", &["a"]), None);
    Ok(())
}

/// The top-level folders of these paths that should not be there.
fn strange_folders<'a>(paths: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
    paths
        .filter_map(|path| path.split_once('/').map(|(folder, _)| folder))
        .filter(|folder| !FOLDERS.contains(folder) && !HIDDEN_FOLDERS.contains(folder))
        .collect()
}

#[test]
fn only_known_folders_are_at_the_top() -> Result<()> {
    assert_eq!(
        strange_folders(["crds/src/lib.rs", "Makefile", ".ci/run", "tools/x", "tools/y"].into_iter()),
        BTreeSet::from(["tools"])
    );

    assert!(Path::new(ROOT).join(".git").exists(), "this test asks git which files there are");
    let files = String::from_utf8(run("git", &["ls-files"])?).context("names of files")?;
    let strange = strange_folders(files.lines());
    assert!(strange.is_empty(), "folders at the top that docs/ARCHITECTURE.md does not know: {strange:?}");
    Ok(())
}
