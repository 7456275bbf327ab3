//! The binaries under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};

use crate::paths::binaries_dir;
use crate::progress::say;

/// The binaries under test.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// The operator, with kill points, which do nothing unless `SPILLWAY_KILL_AT` names one.
    pub operator: PathBuf,
    /// `spillway`.
    pub cli: PathBuf,
    /// The gateway of hosted models.
    pub gateway: PathBuf,
}

/// Built once for all tests of a process.
static BUILT: Mutex<Option<Binaries>> = Mutex::new(None);

impl Binaries {
    /// Those of `SPILLWAY_BIN_DIR`, or what Cargo builds now beside this test.
    pub fn find() -> Result<Self> {
        let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(binaries) = &*built {
            return Ok(binaries.clone());
        }
        let binaries = match std::env::var_os("SPILLWAY_BIN_DIR") {
            Some(dir) => Self::in_folder(Path::new(&dir)),
            None => Self::build()?,
        };
        for path in [&binaries.operator, &binaries.cli, &binaries.gateway] {
            ensure!(path.is_file(), "{} is missing: `make` builds it", path.display());
        }
        *built = Some(binaries.clone());
        Ok(binaries)
    }

    fn in_folder(dir: &Path) -> Self {
        Self {
            operator: dir.join("spillway-operator"),
            cli: dir.join("spillway"),
            gateway: dir.join("spillway-gateway"),
        }
    }

    /// With the words of `e2e/test.sh`, so that nothing is compiled once more with other features.
    fn build() -> Result<Self> {
        say("building Spillway for the tests");
        cargo(&["build", "--quiet", "--workspace", "--features", "spillway-operator/kill-points", "--bins"])?;
        Ok(Self::in_folder(&binaries_dir()?))
    }
}

fn cargo(arguments: &[&str]) -> Result<()> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(program)
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}
