//! Hosted models with all that is real: a kubelet, a container runtime, llama.cpp with a small model in pods, gateways, the usage service, an HPA.

#![expect(clippy::print_stderr, reason = "a test tells how long things took")]
#![allow(clippy::indexing_slicing, reason = "a field that a JSON value lacks reads as null")]

mod canary;
mod scale;
mod serve;

use anyhow::{Context as _, Result};
use kube::api::{Api, PostParams};
use serde_json::Value;

const TENANT: &str = "acme";

async fn create<K>(api: &Api<K>, object: Value) -> Result<K>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
{
    let object: K = serde_json::from_value(object).context("an object of the test")?;
    api.create(&PostParams::default(), &object).await.context("creating an object")
}
