//! What a process has used, from `/proc`.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Processor time, in milliseconds.
    pub(crate) cpu_ms: u64,
    /// Memory that it has now, in KiB.
    pub(crate) resident_kib: u64,
    /// The most memory that it has had, in KiB.
    pub(crate) peak_kib: u64,
}

impl Usage {
    /// That of a running process.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))
        };
        let stat = read("stat")?;
        // The name, in brackets, may contain anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
        let status = read("status")?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line?.split_whitespace().next()?.parse().ok()
        };
        let used = || {
            // Linux counts in hundredths of a second: utime and stime.
            let cpu_ms = (ticks(11)? + ticks(12)?) * 10;
            Some(Self { cpu_ms, resident_kib: kib("VmRSS")?, peak_kib: kib("VmHWM")? })
        };
        used().with_context(|| format!("/proc has no figures of process {pid}"))
    }

    /// Thousandths of a processor since `before`, which is `window` ago.
    pub(crate) fn milli_cores_since(&self, before: &Self, window: Duration) -> u128 {
        u128::from(self.cpu_ms.saturating_sub(before.cpu_ms)) * 1000 / window.as_millis().max(1)
    }
}
