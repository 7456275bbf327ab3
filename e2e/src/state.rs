//! What a lab owns, written down before or as soon as it exists, so that a later process can take it down.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::cluster_spec::Size;
use crate::process::{Identity, ProcessSpec};

const FILE: &str = "state.json";

/// One process: how it is started, and which one it is now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// How it is started.
    pub spec: ProcessSpec,
    /// The process itself; `None` while it is stopped on purpose.
    pub identity: Option<Identity>,
}

/// All that a lab owns on this machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// The lab's name, also the name of its folder.
    pub name: String,
    /// Its size.
    pub size: Size,
    /// Whether it outlives the process that started it.
    pub detached: bool,
    /// Whether it came up whole.
    pub ready: bool,
    /// The process that started it.
    pub owner: Identity,
    /// The API server's address, once it is known.
    pub server: Option<String>,
    /// Processes by name, in no particular order.
    pub processes: BTreeMap<String, ProcessRecord>,
    /// Network links in the machine's own namespace.
    pub links: Vec<String>,
    /// nftables tables (family and name) in the machine's own namespace.
    pub nft_tables: Vec<String>,
    /// Cgroup names, each in every hierarchy.
    pub cgroups: Vec<String>,
    /// Kernel settings as they were before the lab.
    pub sysctls: BTreeMap<String, String>,
    /// Folders outside the lab's own that it created and that go if they are empty.
    pub folders: Vec<PathBuf>,
}

impl State {
    /// A lab that owns nothing yet.
    pub fn new(name: &str, size: Size, detached: bool) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            size,
            detached,
            ready: false,
            owner: Identity::of_self()?,
            server: None,
            processes: BTreeMap::new(),
            links: Vec::new(),
            nft_tables: Vec::new(),
            cgroups: Vec::new(),
            sysctls: BTreeMap::new(),
            folders: Vec::new(),
        })
    }

    /// Reads the state of the lab in `dir`; `None` where there is no lab.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        Ok(Some(serde_json::from_slice(&text).with_context(|| format!("understanding {}", path.display()))?))
    }

    /// Writes the state; a reader sees the old or the new one, never half of it.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).context("writing the lab's state as JSON")?;
        let mut file = tempfile::NamedTempFile::new_in(dir).context("creating the lab's state file")?;
        std::io::Write::write_all(&mut file, &text).context("writing the lab's state file")?;
        file.persist(dir.join(FILE)).context("replacing the lab's state file")?;
        Ok(())
    }

    /// Whether anything of the lab still runs: its owner if the lab depends on it, else any of its processes.
    pub fn is_alive(&self) -> bool {
        if self.detached {
            self.owner.is_alive()
                || self.processes.values().any(|record| record.identity.is_some_and(|process| process.is_alive()))
        } else {
            self.owner.is_alive()
        }
    }

    /// Forgets the state file, which says that nothing is left.
    pub fn forget(dir: &Path) -> Result<()> {
        match std::fs::remove_file(dir.join(FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("removing the lab's state file")
            }
            _ => Ok(()),
        }
    }
}

/// All labs under the base folder that have a state.
pub fn all(base: &Path) -> Result<Vec<(PathBuf, State)>> {
    let entries = match std::fs::read_dir(base) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("listing {}", base.display())),
    };
    let mut labs = Vec::new();
    for entry in entries {
        let dir = entry.context("listing the labs")?.path();
        if dir.is_dir()
            && let Some(state) = State::read(&dir)?
        {
            labs.push((dir, state));
        }
    }
    labs.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(labs)
}
