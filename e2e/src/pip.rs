//! What comes from PyPI: by exact versions, and never part of this repository.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::packages;
use crate::paths::cache_dir;
use crate::progress::Step;

/// OpenAI's client, and what it needs.
const OPENAI: [&str; 13] = [
    "openai==3.57.0",
    "annotated-types==0.8.0",
    "anyio==4.16.0",
    "h11==0.16.0",
    "httpcore2==2.16.2",
    "httpx2==2.16.2",
    "idna==3.20",
    "jiter==0.19.0",
    "pydantic==2.14.4",
    "pydantic-core==2.50.5",
    "sniffio==1.3.1",
    "truststore==0.10.5",
    "typing-extensions==4.16.0",
];

/// A folder for `PYTHONPATH` with OpenAI's client, from the cache or installed by pip.
pub fn openai() -> Result<PathBuf> {
    site("openai-3.57.0", &OPENAI)
}

/// A folder for `PYTHONPATH` with these packages, from the cache under this name, or installed by pip.
pub fn site(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let sites = cache_dir()?.join("python");
    let site = sites.join(name);
    if site.is_dir() {
        return Ok(site);
    }
    std::fs::create_dir_all(&sites).with_context(|| format!("creating {}", sites.display()))?;
    let step = Step::begin(format!("fetching {name} from PyPI"));
    let scratch = tempfile::tempdir_in(&sites).context("creating a folder for packages")?;
    let target = scratch.path().join("site");
    let target_text = target.to_string_lossy();
    let mut arguments = vec!["install", "--quiet", "--only-binary", ":all:", "--target", &target_text];
    arguments.extend(packages);
    pip(&arguments, scratch.path())?;
    match std::fs::rename(&target, &site) {
        // Somebody else was as fast.
        Err(_) if site.is_dir() => {}
        other => other.with_context(|| format!("moving packages to {}", site.display()))?,
    }
    step.done();
    Ok(site)
}

/// Runs pip in a folder; installs it first where there is none.
pub fn pip(arguments: &[&str], folder: &Path) -> Result<()> {
    let run =
        |arguments: &[&str]| Command::new("python3").args(["-m", "pip"]).args(arguments).current_dir(folder).output();
    if !run(&["--version"]).is_ok_and(|output| output.status.success()) {
        packages::install(&["python3-pip"])?;
    }
    let output = run(arguments).context("starting pip")?;
    ensure!(
        output.status.success(),
        "pip {} failed:\n{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
