//! Disks that fail, that lose power, and that are slow.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use super::super::files::{Disk, Files};

/// A file, and how much of it was synced.
pub(super) struct Open {
    file: File,
    path: PathBuf,
    written: u64,
    synced: u64,
}

impl Open {
    fn new(file: File, path: &Path) -> Self {
        Self { file, path: path.to_path_buf(), written: 0, synced: 0 }
    }
}

fn failure() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

/// A disk that fails as a script says: each call takes a number of it, and fails where that is not 0. A failed write leaves
/// a part, and a failed sync loses all that was not synced, as Linux may.
#[derive(Clone, Default)]
pub(super) struct Faulty {
    pub(super) script: Arc<Mutex<VecDeque<u8>>>,
    /// Fails for as long as this is so, whatever the script says.
    pub(super) is_broken: Arc<Mutex<bool>>,
}

impl Faulty {
    fn next(&self) -> u8 {
        if *self.is_broken.lock().unwrap() {
            return 128;
        }
        self.script.lock().unwrap().pop_front().unwrap_or(0)
    }

    fn check(&self) -> io::Result<()> {
        if self.next() == 0 { Ok(()) } else { Err(failure()) }
    }
}

impl Files for Faulty {
    type Segment = Open;

    fn create(&mut self, path: &Path) -> io::Result<Open> {
        self.check()?;
        Ok(Open::new(Disk.create(path)?, path))
    }

    fn write(&mut self, segment: &mut Open, bytes: &[u8]) -> io::Result<()> {
        let fault = self.next();
        if fault == 0 {
            segment.written += bytes.len() as u64;
            return Disk.write(&mut segment.file, bytes);
        }
        Disk.write(&mut segment.file, &bytes[..bytes.len() * usize::from(fault) / 256])?;
        Err(failure())
    }

    fn sync(&mut self, segment: &mut Open) -> io::Result<()> {
        if self.next() == 0 {
            segment.synced = segment.written;
            return Ok(());
        }
        let lost = vec![0; usize::try_from(segment.written - segment.synced).unwrap()];
        segment.file.write_all_at(&lost, segment.synced)?;
        Err(failure())
    }

    fn sync_directory(&mut self, _: &Path) -> io::Result<()> {
        self.check()
    }

    fn truncate(&mut self, segment: &mut Open, length: u64) -> io::Result<()> {
        self.check()?;
        Disk.truncate(&mut segment.file, length)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.check()?;
        Disk.remove(path)
    }
}

/// A disk that keeps beside itself what would be left after a loss of power: only what was synced, in the files that were
/// there when their directory was.
#[derive(Clone)]
pub(super) struct Powered(Arc<Mutex<Kept>>);

struct Kept {
    directory: PathBuf,
    /// Synced lengths.
    synced: HashMap<PathBuf, u64>,
    /// Files of the directory when it was synced.
    entries: HashSet<PathBuf>,
    /// What was deleted is still there for as long as the directory was not synced.
    graves: HashMap<PathBuf, Vec<u8>>,
}

impl Powered {
    pub(super) fn new(directory: &Path) -> Self {
        let kept = Kept {
            directory: directory.to_path_buf(),
            synced: HashMap::new(),
            entries: HashSet::new(),
            graves: HashMap::new(),
        };
        Self(Arc::new(Mutex::new(kept)))
    }

    /// What is left after a loss of power now, in `target`. `luck` says of how much of what was not synced that is: of 256
    /// parts of each file's end, the rest of which is zeros.
    pub(super) fn lose_power(&self, target: &Path, luck: u8) {
        let kept = self.0.lock().unwrap();
        fs::create_dir_all(target).unwrap();
        for path in &kept.entries {
            let name = path.file_name().unwrap();
            if let Some(bytes) = kept.graves.get(path) {
                fs::write(target.join(name), bytes).unwrap();
                continue;
            }
            let mut bytes = fs::read(path).unwrap();
            let synced = usize::try_from(kept.synced.get(path).copied().unwrap_or(0)).unwrap();
            let lucky = synced + (bytes.len() - synced) * usize::from(luck) / 256;
            bytes[lucky..].fill(0);
            fs::write(target.join(name), bytes).unwrap();
        }
        assert!(kept.directory.is_dir());
    }
}

impl Files for Powered {
    type Segment = Open;

    fn create(&mut self, path: &Path) -> io::Result<Open> {
        Ok(Open::new(Disk.create(path)?, path))
    }

    fn write(&mut self, segment: &mut Open, bytes: &[u8]) -> io::Result<()> {
        let _kept = self.0.lock().unwrap();
        segment.written += bytes.len() as u64;
        Disk.write(&mut segment.file, bytes)
    }

    fn sync(&mut self, segment: &mut Open) -> io::Result<()> {
        self.0.lock().unwrap().synced.insert(segment.path.clone(), segment.written);
        Ok(())
    }

    fn sync_directory(&mut self, directory: &Path) -> io::Result<()> {
        let mut kept = self.0.lock().unwrap();
        let files = fs::read_dir(directory)?.map(|entry| entry.unwrap().path());
        kept.entries = files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
        kept.graves.clear();
        Ok(())
    }

    fn truncate(&mut self, segment: &mut Open, length: u64) -> io::Result<()> {
        Disk.truncate(&mut segment.file, length)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        let mut kept = self.0.lock().unwrap();
        let bytes = fs::read(path)?;
        kept.graves.insert(path.to_path_buf(), bytes);
        Disk.remove(path)
    }
}

/// A disk whose syncs wait for leave, and are counted.
#[derive(Clone, Default)]
pub(super) struct Slow(Arc<(Mutex<(bool, usize)>, Condvar)>);

impl Slow {
    /// Holds syncs, or lets them go.
    pub(super) fn hold(&self, is_held: bool) {
        self.0.0.lock().unwrap().0 = is_held;
        self.0.1.notify_all();
    }

    /// Syncs that were asked for.
    pub(super) fn syncs(&self) -> usize {
        self.0.0.lock().unwrap().1
    }
}

impl Files for Slow {
    type Segment = File;

    fn create(&mut self, path: &Path) -> io::Result<File> {
        Disk.create(path)
    }

    fn write(&mut self, segment: &mut File, bytes: &[u8]) -> io::Result<()> {
        Disk.write(segment, bytes)
    }

    fn sync(&mut self, _: &mut File) -> io::Result<()> {
        let mut state = self.0.0.lock().unwrap();
        state.1 += 1;
        while state.0 {
            state = self.0.1.wait(state).unwrap();
        }
        Ok(())
    }

    fn sync_directory(&mut self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&mut self, segment: &mut File, length: u64) -> io::Result<()> {
        Disk.truncate(segment, length)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        Disk.remove(path)
    }
}
