//! Cgroups of real nodes, in version 1 (one tree for each controller) and version 2 (one tree).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use crate::process::Identity;

const ROOT: &str = "/sys/fs/cgroup";

/// The roots of all hierarchies.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    // Some hierarchies have a second name that is a link.
    entries.filter(|path| !path.is_symlink() && path.join("cgroup.procs").exists()).collect()
}

/// Makes a cgroup in every hierarchy, usable for a kubelet.
pub(crate) fn create(name: &str) -> Result<()> {
    for hierarchy in hierarchies() {
        let path = hierarchy.join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        // In version 1 nothing may run in a cgroup without CPUs and memory nodes, and a new one has none.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let from = hierarchy.join(file);
            if from.exists() && hierarchy != Path::new(ROOT) {
                let value = std::fs::read_to_string(&from).with_context(|| format!("reading {}", from.display()))?;
                std::fs::write(path.join(file), value.trim())
                    .with_context(|| format!("writing {file} of {}", path.display()))?;
            }
        }
    }
    let controllers = Path::new(ROOT).join("cgroup.controllers");
    if let Ok(all) = std::fs::read_to_string(controllers) {
        let wanted: Vec<String> = all.split_ascii_whitespace().map(|controller| format!("+{controller}")).collect();
        for path in [Path::new(ROOT).to_owned(), Path::new(ROOT).join(name)] {
            // Where a controller may not be delegated the kubelet says so better than this could.
            let _ = std::fs::write(path.join("cgroup.subtree_control"), wanted.join(" "));
        }
    }
    Ok(())
}

/// Kills everything in a cgroup and below, and removes it from every hierarchy.
pub(crate) fn destroy(name: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let mut left = None;
        for hierarchy in hierarchies() {
            let path = hierarchy.join(name);
            if path.exists() {
                kill_all(&path)?;
                left = remove_tree(&path).err().or(left);
            }
        }
        match left {
            None => return Ok(()),
            // A killed process leaves its cgroup a moment later.
            Some(error) if begun.elapsed() > Duration::from_secs(15) => {
                return Err(error).context(format!("removing the cgroup {name}"));
            }
            Some(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The cgroup and all below it, the deepest first.
fn depth_first(path: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut open = vec![path.to_owned()];
    while let Some(dir) = open.pop() {
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        open.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
        all.push(dir);
    }
    all.reverse();
    all
}

fn kill_all(path: &Path) -> Result<()> {
    for cgroup in depth_first(path) {
        let processes = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        for pid in processes.lines().filter_map(|line| line.parse().ok()) {
            if let Ok(process) = Identity::of(pid) {
                process.signal(Signal::SIGKILL)?;
            }
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    for cgroup in depth_first(path) {
        match std::fs::remove_dir(&cgroup) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
