//! Bills that the usage service never takes, set aside in a file beside the log: one line of JSON each, durable before the log forgets them. They are
//! tried again at each start, for a newer service may take them, and go from the file only when they are stored.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use spillway_metering::tokens::{RequestId, UsageRecord};

use super::Error;

/// Name of the file, in the log's directory.
const NAME: &str = "refused.jsonl";
/// The most that may be set aside, in bytes: more is a fault of the service, and waits in the log.
const MOST_BYTES: u64 = 64 << 20;

/// A bill that was set aside.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// What the usage service said.
    pub why: String,
    /// The bill.
    pub record: UsageRecord,
}

/// What is set aside of a log.
pub struct Aside {
    path: PathBuf,
    content: Mutex<Content>,
}

/// What the file has.
#[derive(Debug, Default)]
pub(super) struct Content {
    refused: BTreeMap<RequestId, Refused>,
    /// Lines that are no bill, such as one that could not be written whole. They stay in the file: somebody may want to read them.
    damaged: Vec<Vec<u8>>,
    /// A part of a line stands at the end of the file, and could not be cut off.
    is_torn: bool,
}

impl Content {
    pub(super) fn count(&self) -> usize {
        self.refused.len().saturating_add(self.damaged.len())
    }
}

impl Aside {
    /// Opens what is set aside. A torn last line is that of a bill that the log has still: it is cut off.
    pub(super) fn open(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(NAME);
        let (content, torn_at) = Self::read(directory)?;
        if let Some(whole) = torn_at {
            let file = File::options().write(true).open(&path).map_err(Error::io("open", &path))?;
            file.set_len(whole).and_then(|()| file.sync_all()).map_err(Error::io("cut off the end of", &path))?;
        }
        if !content.damaged.is_empty() {
            let (path, lines) = (path.display(), content.damaged.len());
            tracing::error!(%path, lines, "lines of what is set aside are no bills: they stay there, and a person should look");
        }
        Ok(Self { path, content: Mutex::new(content) })
    }

    /// What is set aside, and where its last line is torn, if it is.
    pub(super) fn read(directory: &Path) -> Result<(Content, Option<u64>), Error> {
        let path = directory.join(NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let mut content = Content::default();
        for line in bytes.get(..whole).unwrap_or_default().split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
        {
            match serde_json::from_slice::<Refused>(line) {
                Ok(one) => drop(content.refused.entry(one.record.opening.id).or_insert(one)),
                Err(_) => content.damaged.push(line.to_vec()),
            }
        }
        Ok((content, (whole < bytes.len()).then_some(whole as u64)))
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bills are set aside, and lines that are none.
    pub fn count(&self) -> usize {
        self.lock().count()
    }

    /// The bills that are set aside, by their ids.
    pub fn all(&self) -> Vec<Refused> {
        self.lock().refused.values().cloned().collect()
    }

    /// Sets a bill aside, and returns when that is durable. Blocks on files.
    ///
    /// # Errors
    ///
    /// What the file system says, or [`Error::AsideFull`]; the bill stays in the log then.
    pub fn put(&self, one: Refused) -> Result<(), Error> {
        let mut content = self.lock();
        let id = one.record.opening.id;
        if content.refused.contains_key(&id) {
            return Ok(());
        }
        let mut line = serde_json::to_vec(&one).map_err(|error| Error::io("write", &self.path)(error.into()))?;
        line.push(b'\n');
        if content.is_torn {
            line.insert(0, b'\n');
        }
        let file = File::options().create(true).append(true).open(&self.path);
        let mut file = file.map_err(Error::io("open", &self.path))?;
        let before = file.metadata().map_err(Error::io("look at", &self.path))?.len();
        if before + line.len() as u64 > MOST_BYTES {
            return Err(Error::AsideFull { path: self.path.clone(), limit: MOST_BYTES });
        }
        if let Err(error) = file.write_all(&line).and_then(|()| file.sync_all()) {
            // What was written of it is no line, or one more of a bill that is in the log.
            content.is_torn |= file.set_len(before).is_err();
            return Err(Error::io("write", &self.path)(error));
        }
        if before == 0 {
            self.sync_directory()?;
        }
        content.is_torn = false;
        content.refused.insert(id, one);
        Ok(())
    }

    /// Forgets bills that are stored by now. Blocks on files.
    ///
    /// # Errors
    ///
    /// What the file system says; they are tried again then, which is harmless.
    pub fn forget(&self, stored: &[RequestId]) -> Result<(), Error> {
        let stored: HashSet<&RequestId> = stored.iter().collect();
        let mut content = self.lock();
        if !content.refused.keys().any(|id| stored.contains(id)) {
            return Ok(());
        }
        let failed = || Error::io("write", &self.path);
        let mut text = Vec::new();
        for line in &content.damaged {
            text.extend_from_slice(line);
            text.push(b'\n');
        }
        for (_, one) in content.refused.iter().filter(|(id, _)| !stored.contains(id)) {
            serde_json::to_writer(&mut text, one).map_err(|error| failed()(error.into()))?;
            text.push(b'\n');
        }
        let partial = self.path.with_extension("partial");
        let written = File::create(&partial).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()
        });
        written.and_then(|()| fs::rename(&partial, &self.path)).map_err(failed())?;
        self.sync_directory()?;
        content.refused.retain(|id, _| !stored.contains(id));
        content.is_torn = false;
        Ok(())
    }

    fn sync_directory(&self) -> Result<(), Error> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        File::open(directory).and_then(|file| file.sync_all()).map_err(Error::io("sync", directory))
    }
}
