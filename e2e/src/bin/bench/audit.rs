//! What the operator wrote, from the API server's audit log.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use spillway_lab::spillway::OPERATOR_USER;
use spillway_lab::{LabOptions, Size};
use tempfile::TempDir;

/// Longest time from an answer to its line, doubled.
const LATE: Duration = Duration::from_secs(2);

/// An audit log of all that the operator writes.
#[derive(Debug)]
pub(crate) struct Audit {
    folder: TempDir,
}

/// A write of the operator.
#[derive(Debug)]
pub(crate) struct Write {
    /// `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub(crate) verb: String,
    /// Of what, such as `nodes` or `gpureservations/status`.
    pub(crate) what: String,
    /// Whether nothing was to be kept of it.
    pub(crate) dry_run: bool,
    /// When it was answered, as text that sorts.
    pub(crate) at: String,
}

impl Write {
    /// Whether it renews the lease.
    pub(crate) fn is_lease(&self) -> bool {
        self.what == "leases"
    }

    /// Whether it changed something that is not the Lease.
    pub(crate) fn counts(&self) -> bool {
        !self.dry_run && !self.is_lease()
    }
}

impl Audit {
    /// A log that is still to be written.
    pub(crate) fn new() -> Result<Self> {
        let audit = Self { folder: tempfile::tempdir().context("a folder")? };
        // One line for each request that is answered.
        let rules = format!(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived, ResponseStarted]\nrules:\n\
             - {{level: Metadata, users: ['{OPERATOR_USER}'], verbs: [create, update, patch, delete, deletecollection]}}\n\
             - {{level: None}}\n"
        );
        std::fs::write(audit.policy(), rules).context("writing the audit policy")?;
        Ok(audit)
    }

    fn policy(&self) -> PathBuf {
        self.folder.path().join("audit.yaml")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("audit.log")
    }

    /// A bare API server that writes it.
    pub(crate) fn lab_options(&self) -> LabOptions {
        let mut options = LabOptions::new(Size::Api);
        options.apiserver_args = vec![
            format!("--audit-policy-file={}", self.policy().display()),
            format!("--audit-log-path={}", self.log().display()),
            "--audit-log-mode=batch".to_owned(),
            "--audit-log-batch-max-wait=1s".to_owned(),
            // In MB. A log that is rotated is another file.
            "--audit-log-maxsize=100000".to_owned(),
        ];
        options
    }

    /// Where the log ends once it has all that was answered until now.
    pub(crate) async fn mark(&self) -> Result<u64> {
        tokio::time::sleep(LATE).await;
        // The API server makes the file with the first line.
        Ok(std::fs::metadata(self.log()).map_or(0, |log| log.len()))
    }

    /// The writes between two marks.
    pub(crate) fn writes(&self, between: Range<u64>) -> Result<Vec<Write>> {
        if between.is_empty() {
            return Ok(Vec::new());
        }
        let path = self.log();
        let mut file = std::fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        file.seek(SeekFrom::Start(between.start)).context("going to a place in the audit log")?;
        let part = BufReader::new(file).take(between.end - between.start);
        let mut writes = Vec::new();
        for line in part.lines() {
            let line = line.context("reading the audit log")?;
            // The last line may still be under way: it is one of the next part, which skips it as well.
            writes.extend(serde_json::from_str(&line).ok().map(|entry| read(&entry)));
        }
        Ok(writes)
    }
}

fn read(entry: &Value) -> Write {
    let text = |path: &str| entry.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let parts = [text("/objectRef/resource"), text("/objectRef/subresource")];
    Write {
        verb: text("/verb"),
        what: parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/"),
        dry_run: text("/requestURI").contains("dryRun=All"),
        at: text("/stageTimestamp"),
    }
}

/// How many changes there were by what they are of. Leases and dry runs are left out.
pub(crate) fn counts(writes: &[Write]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for write in writes.iter().filter(|write| write.counts()) {
        *counts.entry(write.what.clone()).or_default() += 1;
    }
    counts
}

/// How many pages each commit of the ledger made, one after the other: those that were made since the root was swapped the time before. A swap
/// without pages is a collection and not a commit.
pub(crate) fn pages_by_commit(mut writes: Vec<Write>) -> Vec<usize> {
    writes.sort_by(|one, other| one.at.cmp(&other.at));
    let mut commits = Vec::new();
    let mut pages = 0;
    for write in writes.iter().filter(|write| write.counts()) {
        match (write.verb.as_str(), write.what.as_str()) {
            ("create", "capacityledgerpages") => pages += 1,
            ("update", "capacityledgers") if pages > 0 => commits.push(std::mem::take(&mut pages)),
            _ => {}
        }
    }
    commits
}
