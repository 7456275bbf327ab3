//! Taking a place on the machine for a lab: a folder of its own, and for the size node the machine itself.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::cluster_spec::LabOptions;
use crate::progress::say;
use crate::state::{self, State};
use crate::teardown::tear_down;

/// Takes the place, cleaning up after labs whose owners died. Waits, within bounds, for another exclusive lab to end.
pub(crate) fn claim(base: &Path, options: &LabOptions) -> Result<(PathBuf, State)> {
    check_name(&options.name)?;
    std::fs::create_dir_all(base).with_context(|| format!("creating {}", base.display()))?;
    let begun = Instant::now();
    let mut told = false;
    loop {
        let Some(other) = try_claim(base, options)? else {
            let dir = base.join(&options.name);
            let state = State::read(&dir)?.context("the lab's state vanished right after it was written")?;
            return Ok((dir, state));
        };
        if begun.elapsed() > options.wait_for_machine {
            bail!(
                "the lab '{other}' still has the machine after {} s; only one lab of the size node fits on it",
                options.wait_for_machine.as_secs()
            );
        }
        if !told {
            say(&format!("waiting for the lab '{other}' to end: only one lab of the size node fits on the machine"));
            told = true;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Answers the name of the lab that is in the way, if there is one.
fn try_claim(base: &Path, options: &LabOptions) -> Result<Option<String>> {
    let lock = std::fs::File::create(base.join("claim.lock")).context("opening the lock of the labs' folder")?;
    let _lock =
        Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).context("locking the labs' folder")?;
    for (dir, other) in state::all(base)? {
        if !other.is_alive() || (other.name == options.name && !other.ready && !other.owner.is_alive()) {
            say(&format!("cleaning up after the lab '{}', which was killed", other.name));
            tear_down(&dir, false)?;
            continue;
        }
        if other.name == options.name {
            bail!("the lab '{}' is up already: `lab down --name {}` takes it down", other.name, other.name);
        }
        if options.size.is_exclusive() && other.size.is_exclusive() {
            if other.detached && other.ready {
                bail!(
                    "the lab '{}' (size {}) has the machine and stays until `lab down --name {}`",
                    other.name,
                    other.size.word(),
                    other.name
                );
            }
            return Ok(Some(other.name));
        }
    }
    let dir = base.join(&options.name);
    if dir.exists() {
        // Logs of a failed lab of this name.
        std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    std::fs::create_dir_all(dir.join("logs")).with_context(|| format!("creating {}", dir.display()))?;
    State::new(&options.name, options.size, options.keep)?.write(&dir)?;
    Ok(None)
}

fn check_name(name: &str) -> Result<()> {
    let fine = !name.is_empty()
        && name.len() <= 32
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    anyhow::ensure!(fine, "a lab's name has 1 to 32 lower-case letters, digits and dashes, not '{name}'");
    Ok(())
}

#[cfg(test)]
mod tests;
