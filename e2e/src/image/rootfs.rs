//! Root file systems of Debian's packages: under our own binaries the C library that they are linked with, under an engine what it needs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::command::checked;
use crate::paths::cache_dir;
use crate::progress::Step;

const PACKAGES: [&str; 2] = ["libc6", "libgcc-s1"];

/// Folders of these packages that no program of ours reads: documentation, character set tables.
const UNUSED: [&str; 4] =
    ["usr/share/doc", "usr/share/lintian", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/aarch64-linux-gnu/gconv"];

/// A folder with the C library, from the cache or downloaded by apt. The cache is keyed by the installed version, which the binaries were linked with.
pub fn glibc() -> Result<PathBuf> {
    let mut key = "glibc".to_owned();
    for package in PACKAGES {
        let version = checked("dpkg-query", &["-W", "-f=${Version}", package])?;
        key.push('-');
        key.extend(version.trim().chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '.' }));
    }
    unpacked(&key, "the C library", &PACKAGES)
}

/// A folder with these packages unpacked, and none that they depend on, from the cache or downloaded by apt.
pub fn unpacked(key: &str, what: &str, packages: &[&str]) -> Result<PathBuf> {
    let roots = cache_dir()?.join("rootfs");
    let wanted = roots.join(key);
    if wanted.is_dir() {
        return Ok(wanted);
    }
    std::fs::create_dir_all(&roots).with_context(|| format!("creating {}", roots.display()))?;
    let step = Step::begin(format!("fetching {what} for images"));
    let scratch = tempfile::tempdir_in(&roots).context("creating a folder for packages")?;
    let root = scratch.path().join("root");
    download(packages, scratch.path())?;
    for entry in std::fs::read_dir(scratch.path()).context("listing the packages")? {
        let path = entry.context("listing the packages")?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            checked("dpkg", &["-x", &path.to_string_lossy(), &root.to_string_lossy()])?;
        }
    }
    for unused in UNUSED {
        // Not every architecture has each of them.
        let _ = std::fs::remove_dir_all(root.join(unused));
    }
    match std::fs::rename(&root, &wanted) {
        // Somebody else was as fast.
        Err(_) if wanted.is_dir() => {}
        other => other.with_context(|| format!("moving {what} to {}", wanted.display()))?,
    }
    step.done();
    Ok(wanted)
}

fn download(packages: &[&str], into: &Path) -> Result<()> {
    let output = std::process::Command::new("apt-get")
        .arg("download")
        .args(packages)
        .current_dir(into)
        .output()
        .context("running apt-get download")?;
    anyhow::ensure!(output.status.success(), "apt-get download failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
