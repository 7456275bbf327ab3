//! Where the lab keeps things: what can be built again in the cache, what belongs to a running cluster in the base folder.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Folder of everything that can be built again: tools, image roots. `SPILLWAY_CACHE`, else `$HOME/.cache/spillway`.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("SPILLWAY_CACHE") {
        return Ok(PathBuf::from(dir));
    }
    let home = std::env::var_os("HOME").context("neither SPILLWAY_CACHE nor HOME is set")?;
    Ok(Path::new(&home).join(".cache").join("spillway"))
}

/// Folder under which every running lab has a folder of its own: `SPILLWAY_LAB_DIR`, else one per user that is short enough for the
/// 107 bytes of a unix socket's path.
pub fn base_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("SPILLWAY_LAB_DIR") {
        return PathBuf::from(dir);
    }
    if is_root() {
        PathBuf::from("/var/lib/spillway-lab")
    } else {
        std::env::temp_dir().join(format!("spillway-lab-{}", nix::unistd::getuid()))
    }
}

/// Whether this process is root, which the node size needs.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The `lab` binary, which is started for the guard and the device plugin: `SPILLWAY_LAB_BIN`, this very program, or the one that
/// Cargo put beside this test.
pub fn lab_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SPILLWAY_LAB_BIN") {
        return Ok(PathBuf::from(path));
    }
    let me = std::env::current_exe().context("finding this program's own path")?;
    if me.file_name().is_some_and(|name| name == "lab") {
        return Ok(me);
    }
    // A test lies in target/<profile>/deps/, an example in target/<profile>/examples/: `lab` lies one up.
    me.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("lab"))
        .find(|candidate| candidate.is_file())
        .context("the `lab` binary is not beside this program: build it with `cargo build -p spillway-lab`")
}

/// Where Cargo put our binaries: the folder of `lab`.
pub fn binaries_dir() -> Result<PathBuf> {
    Ok(lab_binary()?.parent().context("the folder of the `lab` binary")?.to_owned())
}
