//! The guard: a small process that outlives a killed test just long enough to take its lab down.
//!
//! Its standard input is a pipe whose other end only the lab's owner has. However the owner dies, the kernel closes that end.

use std::io::Read as _;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};

use anyhow::{Context as _, Result};

use crate::paths::lab_binary;
use crate::process::{Identity, reap, spawn};
use crate::state::State;
use crate::teardown::tear_down;

/// Starts a guard for the lab in `dir`. The lab is guarded as long as the returned pipe is held.
pub(crate) fn start(dir: &Path) -> Result<(Identity, ChildStdin)> {
    let log = std::fs::File::create(dir.join("logs").join("guard.log")).context("creating the guard's log")?;
    let mut command = Command::new("setsid");
    command.arg(lab_binary()?).arg("guard").arg(dir).stdin(Stdio::piped());
    command.stdout(log.try_clone().context("sharing the guard's log")?).stderr(log);
    let mut child = spawn(command).context("starting the guard")?;
    let identity = i32::try_from(child.id()).context("a pid").and_then(Identity::of)?;
    let pipe = child.stdin.take().context("the guard's pipe")?;
    reap(child);
    Ok((identity, pipe))
}

/// What the guard does: waits for the end of its input, then takes down what is left.
pub fn run(dir: &Path) -> Result<()> {
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing).context("waiting for the lab's owner to end")?;
    if let Some(state) = State::read(dir)? {
        state.owner.wait_gone(std::time::Duration::from_secs(10));
        tear_down(dir, false)?;
    }
    Ok(())
}
