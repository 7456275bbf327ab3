//! The status of a `Model`.

use jiff::Timestamp;
use spillway_crds::{Model, ModelStatus};

use crate::conditions::{Wanted, merge};

/// Endpoints that a status names.
const NAMED: usize = 16;

/// The status of a model that these endpoints serve, each as `namespace/name`.
pub fn build_status(model: &Model, mut endpoints: Vec<String>, now: Timestamp) -> ModelStatus {
    let previous = model.status.clone().unwrap_or_default();
    endpoints.sort();
    let count = endpoints.len();
    endpoints.truncate(NAMED);
    let message = match count {
        0 => "No endpoint serves it.".to_owned(),
        1 => "One endpoint serves it.".to_owned(),
        count => format!("{count} endpoints serve it."),
    };
    let wanted = vec![
        Wanted::new("Ready", true, "InCatalogue", message),
        Wanted::new("Reconciling", false, "InCatalogue", ""),
        Wanted::new("Stalled", false, "InCatalogue", ""),
    ];
    ModelStatus {
        observed_generation: model.metadata.generation,
        conditions: merge(&previous.conditions, wanted, model.metadata.generation, now),
        endpoints,
        endpoint_count: i32::try_from(count).unwrap_or(i32::MAX),
    }
}
