//! GPU time of bookings that ended, as the usage service has it.

use kube::Client;
use spillway_metering::{
    Segment,
    shipping::{GpuRow, GpuUsage},
};

use super::service;
use crate::{
    args::{By, UsageArgs},
    ledger::Bookings,
    time,
};

/// What the usage service has, or that nothing of it is known.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    /// Whether it answered; else the ledger counts all that it has.
    pub(crate) answered: bool,
    /// Sums, of what the ledger says to be stored and of archives that it does not know.
    pub(crate) rows: Vec<GpuRow>,
    /// What ended before then it has forgotten.
    pub(crate) forgotten_before_ms: Option<i64>,
    /// Why something may be missing, if it may.
    pub(crate) missing: Option<String>,
}

impl Stored {
    /// Whether it has counted a segment of a booking that is in the store.
    pub(super) fn counts(&self, segment: &Segment) -> bool {
        let forgotten = self.forgotten_before_ms.zip(segment.to_ms).is_some_and(|(before, to)| to < before);
        self.answered && !forgotten
    }
}

/// Asks the usage service for what the ledger need not have any more.
pub(super) async fn read(client: &Client, args: &UsageArgs, bookings: &Bookings, from_ms: i64, to_ms: i64) -> Stored {
    let by = match args.by {
        By::Tenant => "tenant",
        By::Reservation => "tenant,namespace,reservation,sku,tier",
        By::Sku => "sku,tier",
    };
    let mut path = format!("/v1/gpu?by={by}&from_ms={from_ms}&to_ms={to_ms}");
    if let Some(tenant) = &args.tenant {
        if !service::is_plain(tenant) {
            return Stored::default();
        }
        path.push_str(&format!("&tenant={tenant}"));
    }
    if !bookings.stored.is_empty() {
        let places: Vec<String> = bookings.stored.iter().map(|(archive, count)| format!("{archive}:{count}")).collect();
        path.push_str(&format!("&before={}", places.join(",")));
    }
    answered(service::ask(client, &args.spillway_namespace, &path).await, bookings, from_ms)
}

/// What an answer, or none, means for the sums.
fn answered(answer: Result<Option<GpuUsage>, String>, bookings: &Bookings, from_ms: i64) -> Stored {
    let older = "older bookings are only in the usage service";
    match answer {
        Ok(Some(GpuUsage { rows, forgotten_before_ms })) => {
            let missing = forgotten_before_ms.filter(|before| bookings.pruned && from_ms < *before);
            let missing = missing.map(|before| {
                format!(
                    "the usage service has forgotten what ended before {} (usage.retentionDays)",
                    time::show(before)
                )
            });
            Stored { answered: true, rows, forgotten_before_ms, missing }
        }
        Ok(None) => {
            let missing = bookings.pruned.then(|| format!("{older}, and there is none in this namespace"));
            Stored { missing, ..Stored::default() }
        }
        Err(why) => {
            let missing = bookings.pruned.then(|| format!("{older}; {why}"));
            Stored { missing, ..Stored::default() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    fn missing(answer: Result<Option<GpuUsage>, String>, pruned: bool, from_ms: i64) -> Option<String> {
        answered(answer, &Bookings { pruned, ..Bookings::default() }, from_ms).missing
    }

    #[test]
    fn what_may_be_missing_is_said() {
        let forgotten = || Ok(Some(GpuUsage { rows: Vec::new(), forgotten_before_ms: Some(5 * DAY) }));
        let away = || Err("it is away".to_owned());
        assert_eq!(missing(away(), false, 0), None, "the ledger has all of it");
        assert_eq!(missing(away(), true, 0).unwrap(), "older bookings are only in the usage service; it is away");
        assert!(missing(Ok(None), true, 0).unwrap().ends_with("and there is none in this namespace"));
        assert_eq!(missing(Ok(None), false, 0), None);
        assert_eq!(
            missing(forgotten(), true, 0).unwrap(),
            "the usage service has forgotten what ended before 1970-01-06T00:00:00Z (usage.retentionDays)"
        );
        assert_eq!(missing(forgotten(), true, 5 * DAY), None);
        assert_eq!(missing(forgotten(), false, 0), None, "the ledger has what is forgotten");
        assert_eq!(missing(Ok(Some(GpuUsage::default())), true, 0), None);
    }
}
