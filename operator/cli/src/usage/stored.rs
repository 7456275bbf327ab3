//! GPU time of bookings that ended, as the usage service has it.

use std::collections::BTreeMap;

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
    /// How many bookings it has of each archive that was asked about, from the first on.
    pub(crate) held: BTreeMap<String, i64>,
    /// What ended before then it has forgotten.
    pub(crate) forgotten_before_ms: Option<i64>,
    /// Why something may be missing, if it may.
    pub(crate) missing: Option<String>,
}

impl Stored {
    /// Whether it has counted a segment of the booking at a place of an archive.
    pub(super) fn counts(&self, archive: &str, place: i64, segment: &Segment) -> bool {
        let forgotten = self.forgotten_before_ms.zip(segment.to_ms).is_some_and(|(before, to)| to < before);
        // It may be another store than the one that took it, or one that was brought back from a copy.
        let there = self.held.get(archive).is_some_and(|bookings| place < *bookings);
        self.answered && there && !forgotten
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
    let pruned = !bookings.pruned.is_empty();
    let tells = |answer: &GpuUsage| {
        bookings.stored.iter().all(|(asked, _)| answer.archives.iter().any(|one| one.archive == *asked))
    };
    let answer = answer.and_then(|answer| match answer {
        // It has summed nobody knows what.
        Some(answer) if !tells(&answer) => {
            Err("it is older than this program, and does not say how much of them it has: upgrade it".to_owned())
        }
        answer => Ok(answer),
    });
    match answer {
        Ok(Some(GpuUsage { rows, archives, forgotten_before_ms })) => {
            let forgotten = forgotten_before_ms.filter(|before| pruned && from_ms < *before);
            let forgotten = forgotten.map(|before| {
                format!(
                    "the usage service has forgotten what ended before {} (usage.retentionDays)",
                    time::show(before)
                )
            });
            // What the ledger has pruned beyond that is in neither, until the operator has found it out and it is `lost`.
            let held: BTreeMap<String, i64> = archives.iter().map(|one| (one.archive.clone(), one.bookings)).collect();
            let short =
                bookings.pruned.iter().any(|(archive, pruned)| held.get(archive).is_none_or(|there| there < pruned));
            let short = short.then(|| "its store is another one, or was brought back from a copy, and lacks older bookings that the ledger has no more".to_owned());
            let lost = archives.iter().filter_map(|one| one.lost_before_ms).max().filter(|before| from_ms < *before);
            let lost = lost.map(|before| format!("some of what ended before {} is lost: the usage store was exchanged, or brought back from a copy without it", time::show(before)));
            Stored { answered: true, rows, held, forgotten_before_ms, missing: short.or(lost).or(forgotten) }
        }
        Ok(None) => {
            let missing = pruned.then(|| format!("{older}, and there is none in this namespace"));
            Stored { missing, ..Stored::default() }
        }
        Err(why) => {
            let missing = pruned.then(|| format!("{older}; {why}"));
            Stored { missing, ..Stored::default() }
        }
    }
}

#[cfg(test)]
mod tests {
    use spillway_metering::shipping::HeldArchive;

    use super::*;

    const DAY: i64 = 86_400_000;

    fn missing(answer: Result<Option<GpuUsage>, String>, pruned: i64, from_ms: i64) -> Option<String> {
        let pruned = (pruned > 0).then(|| ("a".to_owned(), pruned)).into_iter().collect();
        answered(answer, &Bookings { pruned, ..Bookings::default() }, from_ms).missing
    }

    #[test]
    fn a_service_that_does_not_say_how_much_it_has_is_not_counted() {
        let stored = vec![("a".to_owned(), 5)];
        let row = GpuRow { device_milliseconds: 7, ..GpuRow::default() };
        let answer = || GpuUsage { rows: vec![row.clone()], ..GpuUsage::default() };
        let read = |bookings: &Bookings| answered(Ok(Some(answer())), bookings, 0);
        let told = read(&Bookings { stored: stored.clone(), ..Bookings::default() });
        assert!(!told.answered && told.rows.is_empty() && told.missing.is_none(), "the ledger has all of it: {told:?}");
        let told = read(&Bookings { pruned: stored.clone(), stored, ..Bookings::default() });
        assert!(!told.answered && told.missing.unwrap().contains("older than this program"));
        let told = read(&Bookings::default());
        assert!(told.answered && told.rows.len() == 1);
    }

    #[test]
    fn what_may_be_missing_is_said() {
        let held = |bookings, lost_before_ms| vec![HeldArchive { archive: "a".to_owned(), bookings, lost_before_ms }];
        let has = |archives| Ok(Some(GpuUsage { archives, ..GpuUsage::default() }));
        let forgotten = || {
            Ok(Some(GpuUsage { archives: held(9, None), forgotten_before_ms: Some(5 * DAY), ..GpuUsage::default() }))
        };
        let away = || Err("it is away".to_owned());
        assert_eq!(missing(away(), 0, 0), None, "the ledger has all of it");
        assert_eq!(missing(away(), 1, 0).unwrap(), "older bookings are only in the usage service; it is away");
        assert!(missing(Ok(None), 1, 0).unwrap().ends_with("and there is none in this namespace"));
        assert_eq!(missing(Ok(None), 0, 0), None);
        assert_eq!(
            missing(forgotten(), 1, 0).unwrap(),
            "the usage service has forgotten what ended before 1970-01-06T00:00:00Z (usage.retentionDays)"
        );
        assert_eq!(missing(forgotten(), 1, 5 * DAY), None);
        assert_eq!(missing(forgotten(), 0, 0), None, "the ledger has what is forgotten");
        assert_eq!(missing(has(held(9, None)), 9, 0), None);
        // Another store.
        assert!(missing(has(held(8, None)), 9, 0).unwrap().contains("lacks older bookings"));
        assert!(missing(has(Vec::new()), 9, 0).unwrap().contains("lacks older bookings"));
        assert!(missing(has(held(9, Some(5 * DAY))), 9, 0).unwrap().contains("before 1970-01-06T00:00:00Z is lost"));
        assert_eq!(missing(has(held(9, Some(5 * DAY))), 9, 5 * DAY), None);
    }
}
