//! Kubeconfigs with everything inside, so that one can be copied away.

use std::path::Path;

use anyhow::{Context as _, Result};
use k8s_openapi::ByteString;
use serde_json::json;

use crate::certs::Pair;

/// Writes a kubeconfig for one user. JSON is YAML, so no second format is needed.
pub(crate) fn write(path: &Path, server: &str, ca_cert: &str, client: &Pair) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let bytes = |pem: &str| ByteString(pem.as_bytes().to_vec());
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority-data": bytes(ca_cert)}}],
        "users": [{"name": "lab", "user": {"client-certificate-data": bytes(&client.cert), "client-key-data": bytes(&client.key)}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "current-context": "lab",
    });
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    let text = serde_json::to_string_pretty(&config).context("writing a kubeconfig as JSON")?;
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    // kubectl and helm warn about a kubeconfig that others may read.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).context("protecting a kubeconfig")
}
