//! Manifests that are wrong in one place, or in two: made from a seed, so that a run can be repeated.

use serde_json::{Value, json};

/// xorshift64*: numbers that are the same on any machine.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or_default() % bound.max(1)
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// What is done with a manifest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verb {
    /// It is created.
    Create,
    /// An object that is there is changed to it by a merge patch.
    Patch,
}

/// A manifest, and where it is wrong.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Its number in the run.
    pub(crate) number: usize,
    /// What is done with it.
    pub(crate) verb: Verb,
    /// `GpuPool`, `GpuReservation` or `Tenant`.
    pub(crate) kind: &'static str,
    /// The places that were changed.
    pub(crate) places: Vec<&'static str>,
    /// The manifest, or the patch.
    pub(crate) object: Value,
}

const POOL: [&str; 24] = [
    "/spec",
    "/spec/sku",
    "/spec/region",
    "/spec/provenance",
    "/spec/devices",
    "/spec/devices/resource",
    "/spec/devices/perNode",
    "/spec/devices/profiles",
    "/spec/devices/profiles/0",
    "/spec/devices/profiles/0/name",
    "/spec/devices/profiles/0/resource",
    "/spec/devices/profiles/0/milliGpu",
    "/spec/topology",
    "/spec/topology/0",
    "/spec/nodeCheck",
    "/spec/sale",
    "/spec/sale/paused",
    "/spec/sale/graceCap",
    "/spec/sale/repairAfter",
    "/spec/sale/notThere",
    "/spec/notThere",
    "/metadata/name",
    "/metadata/labels",
    "/metadata/annotations",
];
const RESERVATION: [&str; 20] = [
    "/spec",
    "/spec/pool",
    "/spec/sku",
    "/spec/region",
    "/spec/devices",
    "/spec/devices/count",
    "/spec/devices/perNode",
    "/spec/devices/profile",
    "/spec/exclusiveNodes",
    "/spec/tier",
    "/spec/term",
    "/spec/term/duration",
    "/spec/topology",
    "/spec/topology/require",
    "/spec/waitFor",
    "/spec/devices/notThere",
    "/spec/notThere",
    "/metadata/name",
    "/metadata/labels",
    "/metadata/annotations",
];
const TENANT: [&str; 15] = [
    "/spec",
    "/spec/namespaces",
    "/spec/namespaces/0",
    "/spec/owner",
    "/spec/quotas",
    "/spec/quotas/0",
    "/spec/quotas/0/sku",
    "/spec/quotas/0/tier",
    "/spec/quotas/0/limit",
    "/spec/regions",
    "/spec/regions/0",
    "/spec/notThere",
    "/metadata/name",
    "/metadata/labels",
    "/metadata/annotations",
];

/// A sound manifest.
fn sound(kind: &str, number: usize, dice: &mut Dice) -> Value {
    let name = format!("case-{number}");
    let spec = match kind {
        "GpuPool" => json!({
            "sku": "b200", "region": "us-east", "provenance": "Owned", "devices": {
                "resource": "nvidia.com/gpu", "perNode": 8,
                "profiles": [
                    {"name": "1g.18gb", "resource": "nvidia.com/mig-1g.18gb", "milliGpu": 142},
                    {"name": "half", "resource": "example.com/half", "milliGpu": 500},
                ],
            },
            "topology": ["topology.kubernetes.io/zone"], "nodeCheck": "None",
            "sale": {"paused": false, "graceCap": "120s", "repairAfter": "5m"},
        }),
        "GpuReservation" => {
            let mut spec = json!({
                "devices": {"count": 8, "perNode": 8}, "exclusiveNodes": true,
                "tier": *dice.pick(&["Committed", "OnDemand", "Spot"]), "term": {"duration": "1h"}, "waitFor": "24h",
                "topology": {"require": "topology.kubernetes.io/zone"},
            });
            // Shares of a device, which are refused where a pool enforces.
            if dice.below(4) == 0 {
                spec["exclusiveNodes"] = json!(false);
                spec["devices"] = json!({"count": 3, "profile": "1g.18gb"});
            }
            if dice.below(2) == 0 {
                spec["pool"] = json!("h200");
            } else {
                spec["sku"] = json!("nvidia-h200-sxm");
                spec["region"] = json!("us-east");
            }
            spec
        }
        _ => json!({
            "namespaces": [format!("ns-{number}")], "owner": false, "regions": ["us-east"],
            "quotas": [{"sku": "nvidia-h200-sxm", "tier": "OnDemand", "limit": 8}],
        }),
    };
    let mut metadata = json!({"name": name, "labels": {"a": "b"}, "annotations": {"a": "b"}});
    if kind == "GpuReservation" {
        metadata["namespace"] = json!("acme");
    }
    json!({"apiVersion": "spillway.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})
}

/// What stands in a place instead; none: the place is left out.
fn wrong(place: &str, dice: &mut Dice) -> Option<Value> {
    let long = "x".repeat(70_000);
    let general = [
        None,
        Some(Value::Null),
        Some(json!("")),
        Some(json!(" ")),
        Some(json!("x".repeat(64))),
        Some(json!("x".repeat(400))),
        Some(json!(long)),
        Some(json!("ünï-\u{1F47E}\u{202E}\u{0}")),
        Some(json!("../../etc/passwd")),
        Some(json!("${jndi:x}{{.}}'\"\n")),
        Some(json!(-1)),
        Some(json!(0)),
        Some(json!(1)),
        Some(json!(7)),
        Some(json!(i64::from(i32::MAX) + 1)),
        Some(json!(i64::MAX)),
        Some(json!(i64::MIN)),
        Some(json!(1.5)),
        Some(json!(1e300)),
        Some(json!("8")),
        Some(json!(true)),
        Some(json!(false)),
        Some(json!("true")),
        Some(json!([])),
        Some(json!({})),
        Some(json!([null])),
        Some(json!([[]])),
        Some(json!({"a": {"b": {"c": []}}})),
        Some(json!(vec!["x"; 300])),
        Some(json!((0..300).map(|number| format!("item-{number}")).collect::<Vec<_>>())),
    ];
    let durations = [
        "0s",
        "1ns",
        "1us",
        "1ms",
        "0.5s",
        "1s",
        "-5m",
        "+5m",
        "1h30m",
        "1.5h",
        "1d",
        "5",
        "h",
        "9999999h",
        "26352h",
        "26353h",
        "8784h1ms",
        "1h1h1h1h1h1h1h1h1h1h1h",
        "00000000000000000000000000001s",
        "0.00000000000000000000001h",
        "1e3s",
        "1 h",
        "99999999999999999999999h",
        "PT1H",
    ];
    let words = [
        "Internal",
        "internal",
        "COMMITTED",
        "Spot",
        "OnDemand",
        "Leased",
        "Agent",
        "None",
        "kubernetes.io/hostname",
        "acme",
        "kube-system",
        "spillway-system",
        "a.b",
        "A",
        "-a",
        "a-",
        "nvidia.com/gpu",
        "nvidia.com/",
        "/gpu",
        "h200",
        "b200",
        "case-1",
    ];
    let numbers = [1, 2, 3, 8, 9, 16, 24, 1000, 1024, 1025, 100_000, 100_001, 1_000_000, 1_000_001];
    // What is of the right form is often taken: then it must be handled.
    if dice.below(2) == 0
        && let Some(value) = plausible(place, dice)
    {
        return Some(value);
    }
    let takes_a_duration = ["duration", "waitFor", "graceCap", "repairAfter"].iter().any(|name| place.ends_with(name));
    match dice.below(if takes_a_duration { 3 } else { 4 }) {
        0 => general[dice.below(general.len())].clone(),
        _ if takes_a_duration => Some(json!(*dice.pick(&durations))),
        1 => general[dice.below(general.len())].clone(),
        2 => Some(json!(*dice.pick(&words))),
        _ => Some(json!(*dice.pick(&numbers))),
    }
}

/// A value of the right type that may be wrong for what is there.
fn plausible(place: &str, dice: &mut Dice) -> Option<Value> {
    Some(match place {
        "/spec/devices/count" => json!(*dice.pick(&[1, 7, 8, 12, 16, 24, 32, 800, 99_992, 100_000])),
        "/spec/devices/perNode" => json!(*dice.pick(&[1, 2, 4, 8, 16, 1024])),
        "/spec/devices/profile" => json!(*dice.pick(&["1g.18gb", "half", "no-such-profile"])),
        "/spec/devices/profiles/0/name" => json!(*dice.pick(&["half", "2g.35gb", "a"])),
        "/spec/devices/profiles/0/resource" => {
            json!(*dice.pick(&["nvidia.com/gpu", "example.com/half", "nvidia.com/mig-2g.35gb"]))
        }
        "/spec/devices/profiles/0/milliGpu" => json!(*dice.pick(&[1, 142, 1000])),
        "/spec/quotas/0/limit" => json!(*dice.pick(&[0, 1, 7, 8, 1_000_000])),
        "/spec/tier" | "/spec/quotas/0/tier" => json!(*dice.pick(&["Internal", "Committed", "OnDemand", "Spot"])),
        "/spec/sku" | "/spec/quotas/0/sku" => json!(*dice.pick(&["b200", "nvidia-h200-sxm", "no-such-sku", "a.b-c"])),
        "/spec/pool" => json!(*dice.pick(&["h200", "fixed", "no-such-pool"])),
        "/spec/region" | "/spec/regions/0" => json!(*dice.pick(&["us-east", "mars"])),
        "/spec/provenance" => json!(*dice.pick(&["Owned", "Leased", "Resold"])),
        "/spec/nodeCheck" => json!(*dice.pick(&["Agent", "None"])),
        "/spec/namespaces/0" => json!(*dice.pick(&["acme", "kube-system", "spillway-system", "default", "not-there"])),
        "/spec/namespaces" => {
            json!(*dice.pick(&[&["acme", "fixed"][..], &["default", "kube-public"], &["a", "b", "c", "d"]]))
        }
        "/spec/owner" | "/spec/sale/paused" => json!(dice.below(2) == 0),
        "/spec/devices/resource" => json!(*dice.pick(&["amd.com/gpu", "example.com/thing", "nvidia.com/mig-1g.10gb"])),
        "/spec/topology/0" | "/spec/topology/require" => {
            json!(*dice.pick(&["kubernetes.io/hostname", "no.such/level", "zone"]))
        }
        "/spec/topology" => json!(["a", "b", "c"]),
        "/spec/term/duration" => json!(*dice.pick(&["1s", "1500ms", "1.5s", "26352h", "0.001h"])),
        "/spec/waitFor" => json!(*dice.pick(&["0s", "1ms", "8784h", "1.5s"])),
        "/spec/sale/graceCap" => json!(*dice.pick(&["1s", "119.9s", "120s", "1h"])),
        "/spec/sale/repairAfter" => json!(*dice.pick(&["1s", "24h", "0.5h"])),
        "/metadata/labels" => json!({"spillway.dev/role": "owner", "a.b/c": ""}),
        "/metadata/annotations" => json!({"spillway.dev/allow-early-end": "yes", "x": "\u{1F47E}".repeat(1000)}),
        "/spec/term" | "/spec/sale" | "/spec/quotas" | "/spec/regions" => {
            return dice.pick(&[Some(json!([])), Some(json!({}))]).clone();
        }
        _ => return None,
    })
}

/// Puts a value into a place, or takes the place out.
fn put(object: &mut Value, place: &str, value: Option<Value>) {
    let Some((parent, last)) = place.rsplit_once('/') else { return };
    let Some(parent) = object.pointer_mut(parent) else { return };
    match (parent, value) {
        (Value::Object(fields), Some(value)) => {
            fields.insert(last.to_owned(), value);
        }
        (Value::Object(fields), None) => {
            fields.remove(last);
        }
        (Value::Array(items), Some(value)) => {
            if let Some(item) = items.first_mut() {
                *item = value;
            }
        }
        (Value::Array(items), None) => items.clear(),
        _ => {}
    }
}

/// The case of a number: the same for the same seed.
pub(crate) fn case(seed: u64, number: usize) -> Case {
    let mut dice = Dice::new(seed.wrapping_add(u64::try_from(number).unwrap_or_default().wrapping_mul(0x1000_0001)));
    for _ in 0..8 {
        dice.next();
    }
    let (kind, places): (&'static str, &[&'static str]) = match dice.below(4) {
        0 => ("GpuPool", &POOL),
        1 => ("Tenant", &TENANT),
        _ => ("GpuReservation", &RESERVATION),
    };
    let mut object = sound(kind, number, &mut dice);
    let verb = if dice.below(6) == 0 { Verb::Patch } else { Verb::Create };
    let mut changed = Vec::new();
    for _ in 0..if dice.below(5) == 0 { 2 } else { 1 } {
        let place = *dice.pick(places);
        // A patch of something that is there: not its name.
        if verb == Verb::Patch && !place.starts_with("/spec/") {
            continue;
        }
        put(&mut object, place, wrong(place, &mut dice));
        changed.push(place);
    }
    if verb == Verb::Patch {
        let spec = object.get("spec").cloned().unwrap_or_default();
        // Only the part that was changed: a merge patch of the whole would change all.
        let mut patch = json!({"spec": {}});
        for place in &changed {
            let top = place.split('/').nth(2).unwrap_or_default();
            patch["spec"][top] = spec.get(top).cloned().unwrap_or_default();
        }
        object = patch;
    }
    Case { number, verb, kind, places: changed, object }
}
