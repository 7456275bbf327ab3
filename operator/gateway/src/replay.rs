//! The log of a gateway that is gone, on its way to the usage service: what was open is billed as at any start, what is not stored is posted, and what is
//! stored is forgotten. A log that a gateway writes is refused.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use spillway_metering::tokens::GatewayName;

use crate::ship::{PAUSE, PAUSE_MAX, UsageService, read, store, store_aside};
use crate::wal::{self, Config, Durability, Look, Recovery, Wal};

/// As large as any log may be: its gateway may have had another limit than anybody knows now.
const LIMIT_BYTES: u64 = 1 << 40;

/// What was found in a log, and what was done.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The log.
    pub directory: PathBuf,
    /// Whether it was only looked at.
    pub dry_run: bool,
    /// Requests that were open when the gateway went, which are billed at their last marks.
    pub crashed: usize,
    /// Bytes of a torn end, which nobody was told to be durable.
    pub torn_bytes: u64,
    /// Bills that were not known to be stored, those of the crash among them.
    pub unshipped: u64,
    /// Bills that are stored now, of those and of those that were set aside before. The usage service may have had some of them.
    pub stored: usize,
    /// Bills that are set aside beside the log: the usage service does not take them.
    pub set_aside: usize,
    /// Bills that are still to be stored: to run this again is safe.
    pub left: u64,
    /// Why some are left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Report {
    fn new(directory: &Path, recovery: &Recovery) -> Self {
        Self {
            directory: directory.to_path_buf(),
            crashed: recovery.crashed.len(),
            torn_bytes: recovery.torn.iter().map(|torn| torn.bytes).sum(),
            unshipped: recovery.unacknowledged,
            left: recovery.unacknowledged,
            ..Self::default()
        }
    }

    /// Whether nothing is left to do with the log, and its volume may go.
    pub fn is_done(&self) -> bool {
        self.left == 0 && self.set_aside == 0
    }
}

/// Looks at a log, and changes nothing.
///
/// # Errors
///
/// [`wal::Error::None`], [`wal::Error::Locked`], or why it cannot be read.
pub fn look(directory: &Path) -> Result<Report, wal::Error> {
    let Look { recovery, set_aside } = Wal::look(directory)?;
    Ok(Report { dry_run: true, set_aside, ..Report::new(directory, &recovery) })
}

/// Has a log stored, and says after each batch how far it is. A usage service that does not answer is asked again for `patience`.
///
/// # Errors
///
/// [`wal::Error::None`], [`wal::Error::Locked`], or why it cannot be opened. What could not be stored is in the report.
pub async fn replay(
    directory: &Path,
    service: &UsageService,
    patience: Duration,
    mut progress: impl FnMut(&Report),
) -> Result<Report, wal::Error> {
    // First looked at: opening makes a log where there is none.
    let path = directory.to_path_buf();
    let opened = tokio::task::spawn_blocking(move || {
        Wal::look(&path)?;
        Wal::open(Config::new(path, Durability::Disk, LIMIT_BYTES))
    });
    let (wal, recovery) = opened.await.map_err(|_| wal::Error::Stopped)??;
    let mut report = Report::new(directory, &recovery);
    let name = GatewayName::from(format!("replay of {}", directory.display()));
    let outcome = ship(&wal, service, &name, patience, &mut report, &mut progress).await;
    report.why = outcome.err();
    report.set_aside = wal.aside().count();
    report.left = u64::try_from(wal.stats().unacknowledged).unwrap_or(u64::MAX);
    // Waits until it is on the disk what was acknowledged.
    tokio::task::spawn_blocking(move || drop(wal)).await.map_err(|_| wal::Error::Stopped)?;
    Ok(report)
}

async fn ship(
    wal: &Wal,
    service: &UsageService,
    name: &GatewayName,
    patience: Duration,
    report: &mut Report,
    progress: &mut impl FnMut(&Report),
) -> Result<(), String> {
    let mut until = Instant::now() + patience;
    let mut pause = PAUSE;
    let mut reader = wal.reader();
    loop {
        let (back, shipment) = read(reader).await?;
        reader = back;
        let Some(shipment) = shipment else { break };
        let before = wal.aside().count();
        while let Err(why) = store(service, name, wal.aside(), &shipment.records).await {
            if Instant::now() + pause > until {
                return Err(why);
            }
            tracing::warn!(why, "the usage service is asked again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        let refused = wal.aside().count().saturating_sub(before);
        report.stored = report.stored.saturating_add(shipment.records.len().saturating_sub(refused));
        report.left = report.left.saturating_sub(shipment.records.len() as u64);
        wal.acknowledge(shipment.up_to);
        progress(report);
        (until, pause) = (Instant::now() + patience, PAUSE);
    }
    // Last, for these may stand in nobody's way.
    let stored = store_aside(service, name, wal.aside()).await?;
    report.stored = report.stored.saturating_add(stored);
    Ok(())
}
