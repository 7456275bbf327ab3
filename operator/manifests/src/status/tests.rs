use serde_json::{Value, json};

use super::build_patch;

#[test]
fn what_is_no_longer_said_is_taken_away() {
    let previous = json!({"nodes": [{"name": "a"}], "booking": {"id": "b", "activeAt": "then"}, "phase": "Active"});
    let next = json!({"booking": {"id": "b"}, "phase": "Active", "nodeCount": 0});
    let expected = json!({
        "metadata": {"resourceVersion": "7"},
        "status": {"nodes": null, "booking": {"id": "b", "activeAt": null}, "phase": "Active", "nodeCount": 0},
    });
    assert_eq!(build_patch(Some("7"), &previous, next), expected);
}

#[test]
fn a_first_status_is_written_as_it_is() {
    let next = json!({"phase": "Pending"});
    assert_eq!(build_patch(None, &Value::Null, next.clone())["status"], next);
}
