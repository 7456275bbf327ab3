//! A catalogue in a file, for gateways without a cluster.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tokio::process::Command;

/// What is in a catalogue: an endpoint of tenant `acme` that one engine serves, and a key to it.
#[derive(Clone, Copy, Debug)]
pub struct CatalogueOptions<'a> {
    /// Name of the endpoint.
    pub endpoint: &'a str,
    /// Where the engine serves `/v1`; it knows the model by the endpoint's name.
    pub engine: SocketAddr,
    /// Limits of the key, as YAML: `{concurrency: 4}`.
    pub key_limits: &'a str,
    /// Limits of the tenant, as YAML.
    pub tenant_limits: &'a str,
}

/// Has the gateway's program make a key, and writes the catalogue into a folder. Gives the key and the file.
pub async fn write_catalogue(gateway: &Path, dir: &Path, options: CatalogueOptions<'_>) -> Result<(String, PathBuf)> {
    let CatalogueOptions { endpoint, engine, key_limits, tenant_limits } = options;
    let printed = Command::new(gateway).arg("key").output().await.context("making a key")?;
    let printed = String::from_utf8(printed.stdout).context("a key")?;
    let key = printed.lines().next().context("a key")?.to_owned();
    let entry = printed.lines().find_map(|line| line.trim().strip_prefix("- {")).context("the entry of a key")?;
    let entry = entry.trim_end_matches('}');
    let text = format!(
        "tenants: [{{name: acme, limits: {tenant_limits}}}]\nkeys: [{{{entry}, limits: {key_limits}}}]\nendpoints: [{{namespace: acme, name: {endpoint}, tenant: acme, model: {endpoint}, version: one, capabilities: [Chat], contextLength: 4096, replicas: [{{name: one, address: \"{engine}\"}}]}}]\n"
    );
    let path = dir.join("catalogue.yaml");
    std::fs::write(&path, text).context("writing the catalogue")?;
    Ok((key, path))
}
