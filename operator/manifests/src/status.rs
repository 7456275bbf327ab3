//! The write of a status.

use serde_json::{Value, json};

/// The merge patch that makes a status of `previous` what `next` says, if the object is still the one that was read. A merge patch leaves alone what
/// it does not name, and an empty list is not written: so what was there and is no longer is named, as null.
pub fn build_patch(resource_version: Option<&str>, previous: &Value, next: Value) -> Value {
    json!({"metadata": {"resourceVersion": resource_version}, "status": cleared(previous, next)})
}

fn cleared(previous: &Value, next: Value) -> Value {
    match (previous, next) {
        (Value::Object(previous), Value::Object(mut next)) => {
            for (key, old) in previous {
                let new = next.remove(key).map_or(Value::Null, |new| cleared(old, new));
                next.insert(key.clone(), new);
            }
            Value::Object(next)
        }
        (_, next) => next,
    }
}

#[cfg(test)]
mod tests;
