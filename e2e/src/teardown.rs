//! Takes a lab down from what its state says, in whichever process. Doing it twice is harmless.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

use crate::node::{cgroup, sysctl};
use crate::process::Identity;
use crate::progress::say;
use crate::state::State;

/// Ends every process of the lab in `dir` and removes everything that it owns, its folder last; with `keep_logs` the logs stay.
pub fn tear_down(dir: &Path, keep_logs: bool) -> Result<()> {
    let Some(base) = dir.parent() else { return Ok(()) };
    if !base.exists() {
        return Ok(());
    }
    // The guard, `lab down` and the next lab may all want to clean up after the same killed test.
    let lock = std::fs::File::create(base.join("teardown.lock")).context("opening the tear-down lock")?;
    let _lock =
        Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).context("taking the tear-down lock")?;
    let Some(state) = State::read(dir)? else { return Ok(()) };

    let me = std::process::id();
    let processes: Vec<_> = state
        .processes
        .iter()
        .filter_map(|(name, record)| Some((name, record.identity?)))
        .filter(|(_, process)| u32::try_from(process.pid) != Ok(me))
        .collect();
    for (_, process) in &processes {
        process.signal(Signal::SIGKILL)?;
    }
    for (name, process) in &processes {
        if !process.wait_gone(Duration::from_secs(10)) {
            say(&format!("{name} (process {}) does not end by SIGKILL", process.pid));
        }
    }
    // Containers and the shims above them are no children of ours: the former are found by their cgroup, the latter by their socket.
    for cgroup in &state.cgroups {
        cgroup::destroy(cgroup)?;
    }
    kill_shims(dir)?;
    for table in &state.nft_tables {
        quietly(Command::new("nft").arg("delete").arg("table").args(table.split(' ')));
    }
    for link in &state.links {
        quietly(Command::new("ip").args(["link", "delete", link]));
    }
    sysctl::restore(&state.sysctls);
    remove_files(dir, keep_logs)?;
    for folder in state.folders.iter().rev() {
        // Only if empty: somebody else may use it by now.
        let _ = std::fs::remove_dir(folder);
    }
    State::forget(dir)?;
    if !keep_logs {
        std::fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    Ok(())
}

/// Removes the logs that failed labs left: of one lab, or of all.
pub fn remove_old_logs(base: &Path, name: Option<&str>) -> Result<()> {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let dir = entry.path();
        let wanted = name.is_none_or(|name| entry.file_name() == name);
        if wanted && dir.is_dir() && State::read(&dir)?.is_none() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
        }
    }
    Ok(())
}

/// Kills the containerd shims that serve a containerd in this folder.
fn kill_shims(dir: &Path) -> Result<()> {
    let inside = format!("{}/", dir.display());
    for entry in std::fs::read_dir("/proc").context("listing processes")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(process) = Identity::of(pid) else { continue };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let is_shim = words.next().is_some_and(|program| program.contains("containerd-shim"));
        if is_shim && words.any(|word| word.starts_with(&inside)) {
            process.signal(Signal::SIGKILL)?;
            process.wait_gone(Duration::from_secs(5));
        }
    }
    Ok(())
}

/// Removes the lab's files but for its state, which goes last, and its logs if they are wanted.
fn remove_files(dir: &Path, keep_logs: bool) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let entry = entry.context("listing the lab's folder")?;
        let name = entry.file_name();
        if name == "state.json" || (keep_logs && name == "logs") {
            continue;
        }
        let path = entry.path();
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

/// Runs a command whose failure means that there was nothing to remove.
fn quietly(command: &mut Command) {
    let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}
