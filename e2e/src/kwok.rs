//! kwok, which plays the kubelets of fake nodes.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::process::ProcessSpec;
use crate::tools::Tools;

const CONFIG: &str = include_str!("../stages/kwok.yaml");

/// The user as which kwok writes. It stands for many kubelets, which no admission policy of a product can know, hence the break-glass group.
pub(crate) const USER: &str = "system:lab:kwok";
/// Its groups.
pub(crate) const GROUPS: [&str; 2] = ["system:masters", "spillway:break-glass"];

/// How kwok is started; writes its configuration into `dir`.
pub(crate) fn process(tools: &Tools, dir: &Path, kubeconfig: &Path) -> Result<ProcessSpec> {
    let config = dir.join("kwok.yaml");
    std::fs::write(&config, CONFIG).with_context(|| format!("writing {}", config.display()))?;
    Ok(ProcessSpec::new(
        "kwok",
        tools.kwok(),
        [format!("--kubeconfig={}", kubeconfig.display()), format!("--config={}", config.display())],
    ))
}
