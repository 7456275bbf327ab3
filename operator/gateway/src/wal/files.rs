//! What the writer does to files, behind a trait, so that tests can let disks fail; and the lock of a directory.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::Path;

use super::Error;

/// The calls of the writer. Each does one thing and says when it did not.
pub(super) trait Files: Send + 'static {
    /// An open segment.
    type Segment: Send;

    /// Makes a file where there is none.
    fn create(&mut self, path: &Path) -> io::Result<Self::Segment>;
    /// Appends all of `bytes`; after an error, any part of them.
    fn write(&mut self, segment: &mut Self::Segment, bytes: &[u8]) -> io::Result<()>;
    /// Makes the contents durable.
    fn sync(&mut self, segment: &mut Self::Segment) -> io::Result<()>;
    /// Makes durable which files there are.
    fn sync_directory(&mut self, directory: &Path) -> io::Result<()>;
    /// Cuts a segment to `length` bytes.
    fn truncate(&mut self, segment: &mut Self::Segment, length: u64) -> io::Result<()>;
    /// Deletes a file.
    fn remove(&mut self, path: &Path) -> io::Result<()>;
}

/// The file system.
#[derive(Clone, Copy)]
pub(super) struct Disk;

impl Files for Disk {
    type Segment = File;

    fn create(&mut self, path: &Path) -> io::Result<File> {
        File::create_new(path)
    }

    fn write(&mut self, segment: &mut File, bytes: &[u8]) -> io::Result<()> {
        segment.write_all(bytes)
    }

    fn sync(&mut self, segment: &mut File) -> io::Result<()> {
        segment.sync_data()
    }

    fn sync_directory(&mut self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }

    fn truncate(&mut self, segment: &mut File, length: u64) -> io::Result<()> {
        segment.set_len(length)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

/// A directory that is taken for this process.
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file would not be enough while a process that was forked from this one has it open, too. Where this
        // fails, the kernel gives it back when the last of them ends.
        let _ = self.0.unlock();
    }
}

/// Makes the directory where there is none, and takes it. The kernel gives it back when a process ends, however it does.
pub(super) fn lock(directory: &Path) -> Result<Lock, Error> {
    fs::create_dir_all(directory).map_err(Error::io("make", directory))?;
    let path = directory.join("lock");
    let file =
        File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { directory: directory.to_path_buf() }),
        Err(TryLockError::Error(source)) => Err(Error::Io { action: "lock", path, source }),
    }
}
