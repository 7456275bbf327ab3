use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
};

use clap::Parser;
use rstest::rstest;
use serde_json::Value;

use super::*;
use crate::{
    args::{Cli, Command},
    error,
    output::{self, Format, shown},
    simulate::{Error, Found, Simulation},
};

const POOL: &str = r#"
apiVersion: spillway.dev/v1alpha1
kind: GpuPool
metadata: {name: h200}
spec:
  sku: nvidia-h200-sxm
  region: us-east
  provenance: Owned
  devices:
    resource: nvidia.com/gpu
    perNode: 8
    profiles:
      - {name: 1g.18gb, resource: nvidia.com/mig-1g.18gb, milliGpu: 142}
  topology: [topology.kubernetes.io/zone, kubernetes.io/hostname]
---
apiVersion: spillway.dev/v1alpha1
kind: Tenant
metadata: {name: acme}
spec: {namespaces: [acme]}
"#;

/// A reservation of acme.
fn reservation(name: &str, spec: &str) -> String {
    dated(name, "", spec)
}

fn dated(name: &str, created: &str, spec: &str) -> String {
    let created = if created.is_empty() { String::new() } else { format!(", creationTimestamp: {created}") };
    format!(
        "---\napiVersion: spillway.dev/v1alpha1\nkind: GpuReservation\nmetadata: {{namespace: acme, name: {name}{created}}}\nspec: {{pool: h200, tier: OnDemand, {spec}}}\n"
    )
}

fn node(name: &str, metadata: &str, rest: &str) -> String {
    format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, {metadata}}}\n{rest}\n")
}

const OF_POOL: &str = "labels: {spillway.dev/pool: h200, topology.kubernetes.io/zone: a}";

fn objects(text: &str) -> objects::Objects {
    objects::read_texts(&[("test.yaml", text)], false).unwrap()
}

fn planned(text: &str, nodes: u32) -> Answers {
    let extra = if nodes == 0 { BTreeMap::new() } else { BTreeMap::from([("h200", nodes)]) };
    answer(&objects(text), &extra, None).unwrap()
}

/// Name, answer and reason of each, in the order in which they are served.
fn answered(answers: &Answers) -> Vec<String> {
    let rows = answers.reservations.iter();
    rows.map(|row| format!("{} {} {}", row.name, row.answer, row.reason.unwrap_or_default()).trim_end().to_owned())
        .collect()
}

fn refused(text: &str) -> String {
    let error = objects::read_texts(&[("test.yaml", text)], false).unwrap_err();
    error::report(&Error::from(error).into())
}

#[test]
fn whole_nodes_parts_and_who_waits_as_a_table() {
    let text = [
        POOL,
        &reservation("two", "devices: {count: 16}"),
        &reservation("part", "devices: {count: 3}, exclusiveNodes: false"),
        &reservation("late", "devices: {count: 16}"),
    ]
    .concat();
    insta::assert_snapshot!(shown(&planned(&text, 4)), @r#"
    NAMESPACE  NAME  DEVICES  ANSWER      REASON                WHERE OR WHY
    acme       two        16  Booked                            h200: h200-1 (8), h200-2 (8)
    acme       part        3  Booked                            h200: h200-3 (3)
    acme       late       16  Waitlisted  InsufficientCapacity  16 devices wanted, 8 free of 32 in pool `h200` (19 sold, 5 free on nodes that are held in parts). It is booked when enough come free or nodes are added; nothing younger is booked there before it.

    POOL  NODES  DEVICES  TAKEN  MILLIGPU-IN-SHARES
    h200      4       32     19                   0

    2 of 3 reservations booked at 1970-01-01T00:00:00Z.
    "#);
}

#[test]
fn whole_nodes_and_who_is_refused_as_json() {
    let text = [POOL, &reservation("one", "devices: {count: 8}"), &reservation("odd", "devices: {count: 12}")].concat();
    let mut out = Vec::new();
    output::write(Format::Json, &planned(&text, 2), &mut out).unwrap();
    insta::assert_snapshot!(String::from_utf8(out).unwrap(), @r#"
    {
      "at": "1970-01-01T00:00:00Z",
      "booked": 1,
      "notBooked": 1,
      "reservations": [
        {
          "namespace": "acme",
          "name": "one",
          "count": 8,
          "answer": "Booked",
          "pool": "h200",
          "nodes": [
            {
              "node": "h200-1",
              "devices": 8
            }
          ]
        },
        {
          "namespace": "acme",
          "name": "odd",
          "count": 12,
          "answer": "Rejected",
          "reason": "ShapeDoesNotFit",
          "message": "12 devices are not whole nodes of pool `h200`: ask for a multiple of 8, or set `exclusiveNodes: false`."
        }
      ],
      "pools": [
        {
          "pool": "h200",
          "nodes": 2,
          "devices": 16,
          "devicesTaken": 8,
          "milliGpuTaken": 0
        }
      ],
      "leftOut": {
        "reservations": 0,
        "nodes": 0
      }
    }
    "#);
}

#[test]
fn shares_are_planned() {
    let text = [POOL, &reservation("s", "devices: {count: 8, profile: 1g.18gb}, exclusiveNodes: false")].concat();
    let answers = planned(&text, 1);
    assert_eq!(answered(&answers), ["s Booked"]);
    // Seven fit on a device.
    assert!(shown(&answers).contains("h200: h200-1 (8 shares of devices 0, 1)"), "{}", shown(&answers));
    let text = [POOL, &reservation("s", "devices: {count: 57, profile: 1g.18gb}, exclusiveNodes: false")].concat();
    assert_eq!(answered(&planned(&text, 1)), ["s Rejected ShapeDoesNotFit"]);
}

#[test]
fn shares_are_shown_by_device() {
    let text = [POOL, &reservation("s", "devices: {count: 3, profile: 1g.18gb}, exclusiveNodes: false")].concat();
    let cluster = cluster::Cluster::build(&objects(&text), &BTreeMap::from([("h200", 1)]), None).unwrap();
    assert!(cluster.snapshot.pools.iter().all(|pool| pool.observed), "shares are planned in observed pools only");
    let share = |device| spillway_planner::plan::PlannedShare {
        node: "h200-1".into(),
        uid: "h200-1".into(),
        device,
        gpu: spillway_planner::MilliGpu(142),
    };
    let booking = spillway_planner::plan::NewBooking {
        reservation: cluster.snapshot.requests[0].reservation.clone(),
        pool: "h200".into(),
        segments: Vec::new(),
        shares: vec![share(0), share(2), share(0)],
    };
    let plan = spillway_planner::Plan { bookings: vec![booking], ..spillway_planner::Plan::default() };
    let answers = Answers::new(&cluster, &plan);
    insta::assert_snapshot!(shown(&answers), @r#"
    NAMESPACE  NAME  DEVICES      ANSWER  REASON  WHERE OR WHY
    acme       s     3 x 1g.18gb  Booked          h200: h200-1 (3 shares of devices 0, 2)

    POOL  NODES  DEVICES  TAKEN  MILLIGPU-IN-SHARES
    h200      1        8      0                 426

    1 of 1 reservation booked at 1970-01-01T00:00:00Z.
    "#);
    let json = serde_json::to_value(&answers).unwrap();
    assert_eq!(
        json.pointer("/reservations/0/shares/1"),
        Some(&serde_json::json!({"node": "h200-1", "device": 2, "milliGpu": 142}))
    );
    assert_eq!(json.pointer("/pools/0/milliGpuTaken"), Some(&Value::from(426)));
    assert_eq!(json.pointer("/pools/0/devicesTaken"), Some(&Value::from(0)));
}

/// By time where there is one, then in the order of the files; the names go against it.
#[test]
fn the_order_is_that_of_creation_then_of_the_files() {
    let whole = "devices: {count: 8}";
    let text = [
        POOL,
        &reservation("c", whole),
        &dated("z", "2026-11-21T08:00:00Z", whole),
        &reservation("b", whole),
        &dated("y", "2026-11-20T08:00:00Z", whole),
    ]
    .concat();
    let answers = planned(&text, 3);
    assert_eq!(answered(&answers), ["y Booked", "z Booked", "c Booked", "b Waitlisted InsufficientCapacity"]);
    assert!(shown(&answers).contains("3 of 4 reservations booked at 2026-11-21T08:00:00Z."));
}

#[test]
fn the_time_of_the_plan_can_be_given() {
    let text = [POOL, &dated("r", "2026-11-20T08:00:00Z", "devices: {count: 8}, waitFor: 1h")].concat();
    // Its one node offers too few devices to be sold.
    let text = [text, node("n", OF_POOL, "status: {allocatable: {nvidia.com/gpu: '7'}}")].concat();
    let at = |text: &str| parse_at(text).unwrap();
    let objects = objects(&text);
    let plan = |at| answered(&answer(&objects, &BTreeMap::new(), at).unwrap());
    assert_eq!(plan(None), ["r Waitlisted InsufficientCapacity"]);
    assert_eq!(plan(Some(at("2026-11-20T08:59:59Z"))), ["r Waitlisted InsufficientCapacity"]);
    assert_eq!(plan(Some(at("2026-11-20T09:00:00Z"))), ["r Expired WaitedTooLong"]);
}

#[test]
fn nodes_count_as_open_whatever_their_taints_say() {
    let text = [
        POOL,
        &node("bare", OF_POOL, ""),
        &node(
            "held",
            OF_POOL,
            "spec: {unschedulable: true, taints: [{key: spillway.dev/hold, value: x, effect: NoExecute}]}",
        ),
        &node("short", OF_POOL, "status: {allocatable: {nvidia.com/gpu: '7', cpu: '96', memory: 512Gi}}"),
        &node("other", "labels: {spillway.dev/pool: h100}", ""),
        &node("none", "labels: {}", ""),
        &reservation("r", "devices: {count: 16}, topology: {require: topology.kubernetes.io/zone}"),
    ]
    .concat();
    let answers = planned(&text, 0);
    assert_eq!(answered(&answers), ["r Booked"]);
    let text = shown(&answers);
    assert!(text.contains("h200: bare (8), held (8)"), "{text}");
    assert!(text.contains("Left out, because of no pool that is there: 2 nodes."), "{text}");
}

#[test]
fn nodes_that_are_made_have_names_of_their_own_and_one_domain() {
    let text = [
        POOL,
        &node("h200-1", OF_POOL, ""),
        &reservation("r", "devices: {count: 16}, topology: {require: topology.kubernetes.io/zone}"),
        &reservation("host", "devices: {count: 8}, topology: {require: kubernetes.io/hostname}"),
    ]
    .concat();
    let text = shown(&planned(&text, 2));
    assert!(text.contains("h200: h200-2 (8), h200-3 (8)") && text.contains("h200: h200-1 (8)"), "{text}");
}

#[rstest]
#[case::no_tenant(
    "---\napiVersion: spillway.dev/v1alpha1\nkind: GpuReservation\nmetadata: {name: r}\nspec: {pool: h200, tier: Spot, devices: {count: 8}}\n",
    "r Waitlisted NoTenant"
)]
#[case::no_pool(
    "---\napiVersion: spillway.dev/v1alpha1\nkind: GpuReservation\nmetadata: {name: r, namespace: acme}\nspec: {pool: no, tier: Spot, devices: {count: 8}}\n",
    "r Waitlisted NoMatchingPool"
)]
#[case::not_now(
    "---\napiVersion: spillway.dev/v1alpha1\nkind: GpuReservation\nmetadata: {name: r, namespace: acme}\nspec: {pool: no, tier: Spot, devices: {count: 8}, waitFor: 0s}\n",
    "r Rejected NotNow"
)]
fn who_gets_nothing_is_answered(#[case] text: &str, #[case] expected: &str) {
    assert_eq!(answered(&planned(&[POOL, text].concat(), 1)), [expected]);
}

#[test]
fn a_paused_pool_sells_nothing() {
    let paused = POOL.replace("  topology:", "  sale: {paused: true}\n  topology:");
    let text = [&paused, reservation("r", "devices: {count: 8}").as_str()].concat();
    assert_eq!(answered(&planned(&text, 1)), ["r Waitlisted PoolNotSelling"]);
}

#[test]
fn what_is_over_is_left_out() {
    let over = [reservation("over", "devices: {count: 8}").as_str(), "status: {phase: Ended}\n"].concat();
    let active = [reservation("active", "devices: {count: 8}").as_str(), "status: {phase: Active}\n"].concat();
    let answers = planned(&[POOL, &over, &active].concat(), 1);
    assert_eq!(answered(&answers), ["active Booked"]);
    assert!(shown(&answers).contains("Left out, because over or being deleted: 1 reservation."));
    let nothing = answer(&objects(&[POOL, &over].concat()), &BTreeMap::new(), None).unwrap_err();
    assert!(nothing.to_string().contains("there is nothing to plan"), "{nothing}");
}

/// As `kubectl get -o json` prints them, and as the API server lists one kind.
#[rstest]
#[case::mixed("List", "v1", r#""apiVersion": "spillway.dev/v1alpha1", "kind": "GpuReservation", "#)]
#[case::of_a_kind("GpuReservationList", "spillway.dev/v1alpha1", "")]
fn lists_are_read(#[case] kind: &str, #[case] version: &str, #[case] of: &str) {
    let list = format!(
        r#"{{"apiVersion": "{version}", "kind": "{kind}", "items": [{{{of}"metadata": {{"namespace": "acme", "name": "r"}},
            "spec": {{"pool": "h200", "tier": "Spot", "devices": {{"count": 8}}}}}}]}}"#
    );
    let objects = objects::read_texts(&[("a.yaml", POOL), ("b.json", &list)], false).unwrap();
    assert_eq!(answered(&answer(&objects, &BTreeMap::from([("h200", 1)]), None).unwrap()), ["r Booked"]);
}

#[rstest]
#[case::other_kind(
    "---\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n",
    "test.yaml, document 2: kind ConfigMap of \"v1\" has no part in a plan"
)]
#[case::of_somebody_else(
    "apiVersion: capsule.clastix.io/v1beta2\nkind: Tenant\nmetadata: {name: t}\n",
    "kind Tenant of \"capsule.clastix.io/v1beta2\" has no part in a plan"
)]
#[case::no_object("just: this\n", "test.yaml, document 1: this is no Kubernetes object")]
#[case::no_yaml("a: [\n", "test.yaml, document 1: this is neither YAML nor JSON")]
#[case::twice(
    &[POOL, POOL].concat(),
    "test.yaml, document 4: Tenant acme: it is in test.yaml, document 2 as well: take one of them out"
)]
fn what_cannot_be_read_is_refused(#[case] text: &str, #[case] expected: &str) {
    let text = text.replace("spec: {namespaces: [acme]}\n\n", "spec: {namespaces: [acme]}\n---\n");
    let found = refused(&text);
    assert!(found.contains(expected), "{found}");
}

#[test]
fn other_kinds_can_be_passed_over() {
    let text = "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: ConfigMap, metadata: {name: c}}]\n";
    assert!(refused(text).contains("test.yaml, document 1, item 1: kind ConfigMap"));
    let read = objects::read_texts(&[("test.yaml", text)], true).unwrap();
    assert!(read.pools.is_empty() && read.reservations.is_empty());
}

#[rstest]
#[case::count("devices: {count: 0}", "spec.devices.count is 0: at least 1 and at most 100000")]
#[case::text("devices: {count: '8'}", "spec.devices.count is \"8\": write a whole number without quotes")]
#[case::missing("exclusiveNodes: false", "spec.devices is missing: it must be there")]
#[case::unknown(
    "devices: {counts: 8}",
    "spec.devices.counts is 8: there is no such field (there are count, perNode, profile)"
)]
#[case::null("devices: null", "spec.devices is null: write a value, or leave it out")]
#[case::pattern("devices: {count: 1, profile: 1G}", "spec.devices.profile is \"1G\": it must match ^[a-z0-9]")]
#[case::multiple(
    "devices: {count: 9, perNode: 8}",
    "spec.devices.count is 9: ask for a multiple of devices.perNode, which is 8"
)]
#[case::exclusive(
    "devices: {count: 1, profile: half}",
    "spec.devices.profile is \"half\": it asks for shares of a device, and exclusiveNodes: true for whole nodes"
)]
#[case::both(
    "devices: {count: 1, perNode: 1, profile: half}, exclusiveNodes: false",
    "spec.devices.profile is \"half\": it asks for shares of a device, and devices.perNode counts whole ones"
)]
#[case::duration("devices: {count: 8}, waitFor: soon", "spec.waitFor is \"soon\": it must match")]
#[case::too_long("devices: {count: 8}, waitFor: 9000h", "spec.waitFor is \"9000h\": write a duration from 0s to 8784h")]
#[case::place("devices: {count: 8}, sku: x", "name either pool, or sku and region")]
fn a_reservation_that_an_api_server_would_not_take(#[case] spec: &str, #[case] expected: &str) {
    let found = refused(&reservation("r", spec));
    assert!(found.contains("test.yaml, document 1: GpuReservation acme/r: "), "{found}");
    assert!(found.contains(expected), "{found}");
}

#[rstest]
#[case::tier("OnDemand", "Committed", "spec.tier is \"Committed\": a Committed reservation needs term.duration")]
#[case::word("OnDemand", "ondemand", "spec.tier is \"ondemand\": write one of Internal, Committed, OnDemand, Spot")]
#[case::name("name: r", "name: a.b", "metadata.name is \"a.b\": lower-case letters, digits and dashes only")]
#[case::no_name("name: r", "namex: r", "metadata.name is missing: give it a name")]
fn a_reservation_with_a_wrong_word(#[case] from: &str, #[case] to: &str, #[case] expected: &str) {
    let found = refused(&reservation("r", "devices: {count: 8}").replace(from, to));
    assert!(found.contains(expected), "{found}");
}

#[rstest]
#[case::per_node("perNode: 8", "perNode: 2000", "spec.devices.perNode is 2000: at least 1 and at most 1024")]
#[case::share(
    "milliGpu: 142",
    "milliGpu: 1001",
    "spec.devices.profiles[0].milliGpu is 1001: at least 1 and at most 1000"
)]
#[case::the_same_resource(
    "nvidia.com/mig-1g.18gb",
    "nvidia.com/gpu",
    "spec.devices.profiles[0].resource is \"nvidia.com/gpu\": it is that of whole devices (devices.resource)"
)]
#[case::resource_twice(
    "milliGpu: 142}",
    "milliGpu: 142}\n      - {name: half, resource: nvidia.com/mig-1g.18gb, milliGpu: 500}",
    "spec.devices.profiles[1].resource is \"nvidia.com/mig-1g.18gb\": another profile has it"
)]
#[case::name_twice(
    "milliGpu: 142}",
    "milliGpu: 142}\n      - {name: 1g.18gb, resource: example.com/half, milliGpu: 500}",
    "it is in the list already by name: take one out"
)]
#[case::cap(
    "  topology:",
    "  sale: {graceCap: 2h}\n  topology:",
    "spec.sale.graceCap is \"2h\": write a duration from 1s to 1h"
)]
#[case::level_twice(
    "kubernetes.io/hostname]",
    "topology.kubernetes.io/zone]",
    "spec.topology[1] is \"topology.kubernetes.io/zone\": it is in the list already"
)]
#[case::no_namespaces("[acme]", "[]", "spec.namespaces is a list of 0: list at least 1 and at most 64")]
fn a_pool_or_tenant_that_an_api_server_would_not_take(#[case] from: &str, #[case] to: &str, #[case] expected: &str) {
    let found = refused(&POOL.replace(from, to));
    assert!(found.contains(expected), "{found}");
}

#[test]
fn nodes_of_a_pool_that_is_not_there_are_refused() {
    let text = [POOL, &reservation("r", "devices: {count: 8}")].concat();
    let error = answer(&objects(&text), &BTreeMap::from([("h100", 1)]), None).unwrap_err();
    assert!(
        error.to_string().contains("--nodes names pool \"h100\"") && error.to_string().contains("`h200`"),
        "{error}"
    );
}

#[rstest]
#[case("h200", "write the name of a pool and a number")]
#[case("=3", "write the name of a pool and a number")]
#[case("h200=0", "a number from 1 to 100000")]
#[case("h200=100001", "a number from 1 to 100000")]
fn bad_numbers_of_nodes_are_refused(#[case] text: &str, #[case] expected: &str) {
    let found = parse_nodes(text).unwrap_err();
    assert!(found.contains(expected), "{found}");
}

fn parse(arguments: &[&str]) -> Result<crate::simulate::SimulateArgs, clap::Error> {
    match Cli::try_parse_from(["spillway", "simulate", "plan"].iter().chain(arguments))?.command {
        Command::Simulate(args) => Ok(args),
        other => panic!("not simulate: {other:?}"),
    }
}

/// From the command line to the exit code, twice: the same bytes.
#[rstest]
#[case::all_fit("h200=2", false)]
#[case::one_waits("h200=1", true)]
fn the_command_line_reads_files(#[case] nodes: &str, #[case] finding: bool) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("spillway-plan-{}-{}.yaml", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    let wants = ["a", "b"].map(|name| reservation(name, "devices: {count: 8}"));
    fs::write(&path, [POOL, &wants.concat()].concat()).unwrap();
    let file = path.display().to_string();
    let run = || {
        let args = parse(&["-f", &file, "--nodes", nodes, "--at", "2026-11-21T08:00:00Z"]).unwrap();
        assert!(matches!(&args.experiment, Simulation::Plan(_)));
        let found = crate::simulate::run(&args).unwrap();
        assert_eq!(found.is_finding(), finding);
        let Found::Plan(answers) = found else { panic!("not a plan") };
        serde_json::to_string(&answers).unwrap()
    };
    let (first, second) = (run(), run());
    fs::remove_file(&path).unwrap();
    assert_eq!(first, second);
}

#[test]
fn a_missing_file_is_named() {
    let error = crate::simulate::run(&parse(&["-f", "no/such.yaml"]).unwrap()).unwrap_err();
    let text = error::report(&error.into());
    assert!(text.contains("no/such.yaml: cannot be read: is the path right?"), "{text}");
}

#[test]
fn the_help_has_examples() {
    let error = parse(&["--help"]).unwrap_err();
    assert!(error.to_string().contains("Examples:\n  spillway simulate plan -f"), "{error}");
}
