use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use rstest::rstest;
use serde_json::{Value, json};
use spillway_planner::{MilliGpu, Profile, Shape};

use super::{mib, milli, pool, request, whole};

fn a_pool(mode: &str, profiles: &Value) -> spillway_crds::GpuPool {
    serde_json::from_value(json!({
        "apiVersion": "spillway.dev/v1alpha1", "kind": "GpuPool", "metadata": {"name": "h200"},
        "spec": {"sku": "nvidia-h200-sxm", "region": "us-east", "provenance": "Owned", "mode": mode,
            "devices": {"resource": "nvidia.com/gpu", "perNode": 8, "profiles": profiles}},
    }))
    .unwrap()
}

#[test]
fn a_pool_offers_its_profiles() {
    let profiles = json!([
        {"name": "1g.18gb", "resource": "nvidia.com/mig-1g.18gb", "milliGpu": 142},
        {"name": "half", "resource": "example.com/half", "milliGpu": 500},
    ]);
    let found = pool(&a_pool("Enforce", &profiles), 0);
    let profile = |name: &str, milli| Profile { name: name.into(), gpu: MilliGpu(milli) };
    assert_eq!(found.profiles, [profile("1g.18gb", 142), profile("half", 500)]);
    assert_eq!(pool(&a_pool("Enforce", &json!([])), 0).profiles, []);
}

#[rstest]
#[case::enforces("Enforce", false)]
#[case::observes("Observe", true)]
fn a_pool_is_observed_when_it_says_so(#[case] mode: &str, #[case] expected: bool) {
    assert_eq!(pool(&a_pool(mode, &json!([])), 0).observed, expected);
}

#[rstest]
#[case::whole(json!({"count": 16, "perNode": 8}), true, Shape::WholeNodes { count: 16, per_node: Some(8) })]
#[case::parts(json!({"count": 3}), false, Shape::Devices { count: 3, per_node: None })]
#[case::shares(json!({"count": 3, "profile": "1g.18gb"}), false, Shape::Shares { count: 3, profile: "1g.18gb".into() })]
fn a_reservation_has_a_shape(#[case] devices: Value, #[case] exclusive: bool, #[case] expected: Shape) {
    let reservation = serde_json::from_value(json!({
        "apiVersion": "spillway.dev/v1alpha1", "kind": "GpuReservation", "metadata": {"namespace": "acme", "name": "r"},
        "spec": {"pool": "h200", "devices": devices, "exclusiveNodes": exclusive, "tier": "OnDemand"},
    }))
    .unwrap();
    assert_eq!(request(&reservation, None).shape, expected);
}

#[test]
fn quantities_are_read_exactly() {
    for (text, want) in [("4", 4000), ("3500m", 3500), ("1.5", 1500), ("100u", 0), ("x", 0), ("", 0), ("2k", 2_000_000)]
    {
        assert_eq!(milli(&Quantity(text.to_owned())), want, "{text}");
    }
    for (text, want) in [("16Gi", 16384), ("1.5Gi", 1536), ("1048576", 1), ("1M", 0), ("2Ti", 2_097_152), ("5000m", 0)]
    {
        assert_eq!(mib(&Quantity(text.to_owned())), want, "{text}");
    }
    assert_eq!(whole(Some(&Quantity("8".to_owned()))), Some(8));
    assert_eq!(whole(Some(&Quantity("8k".to_owned()))), None);
    assert_eq!(whole(None), None);
}
