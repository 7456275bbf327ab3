//! The kernel's boot id, which tells an answer from before a reboot from one after it.

use std::io;
use std::path::{Path, PathBuf};

/// Where Linux shows it; the same in every container, and what the kubelet reports as the node's boot id.
pub const BOOT_ID_PATH: &str = "/proc/sys/kernel/random/boot_id";

/// Why there is no boot id.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("read the boot id from {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something that is not an id.
    #[error("the boot id in {path} is empty or longer than 64 characters")]
    Invalid {
        /// The file.
        path: PathBuf,
    },
}

/// Reads the boot id from `path`. The file is made by the kernel from memory, so this does not block.
pub fn read_boot_id(path: &Path) -> Result<String, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let id = text.trim();
    if id.is_empty() || id.len() > 64 {
        return Err(Error::Invalid { path: path.to_owned() });
    }
    Ok(id.to_owned())
}
