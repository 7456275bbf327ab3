//! What the usage service has of the archive, and which pages may go for it (docs/adr/0016).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// How far the GPU time of a pool's ended bookings is in the usage store. They are counted in the order in which they ended.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Stored {
    /// The id of this archive there: a place in it means nothing in another, such as that of a cluster that was made anew.
    pub archive: Arc<str>,
    /// The first so many bookings are stored.
    pub bookings: i64,
    /// The pages of the first so many of them are gone.
    pub pruned: i64,
}

impl Stored {
    /// Of an archive of which nothing is stored.
    pub fn new(archive: Arc<str>) -> Self {
        Self { archive, bookings: 0, pruned: 0 }
    }

    /// With what is known beside it of the same archive: who tells how far it is stored and who tells what is pruned do not wait for each other.
    #[must_use]
    pub fn beside(self, known: Option<&Self>) -> Self {
        match known.filter(|known| known.archive == self.archive) {
            None => self,
            Some(known) => Self {
                bookings: self.bookings.max(known.bookings),
                pruned: self.pruned.max(known.pruned),
                archive: self.archive,
            },
        }
    }

    /// What is wrong with it for an archive of so many bookings.
    pub(super) fn fault(&self, archived: i64) -> Option<String> {
        let Self { bookings, pruned, .. } = self;
        (*pruned < 0 || pruned > bookings || *bookings > archived).then(|| {
            format!("of {archived} bookings that ended, {bookings} are said to be stored and {pruned} of them pruned")
        })
    }

    /// Whether it may take the place of what stands: of the same archive, with no less stored and no less pruned, and not the same.
    pub(super) fn follows(&self, before: Option<&Self>) -> bool {
        before.is_none_or(|before| {
            self.archive == before.archive
                && self.bookings >= before.bookings
                && self.pruned >= before.pruned
                && self != before
        })
    }
}

/// Finds how many bookings' pages may go, while the archive is walked from its newest page back. All of these hold of what is pruned: it is stored, its
/// pages are old enough, nobody waits to be told of it, and the newest page is not among them (the next ends are written into it).
#[derive(Clone, Debug)]
pub struct Prunable {
    stored: i64,
    /// Bookings before the pages that were taken.
    before: i64,
    /// How many may go, if all older pages may.
    cut: Option<i64>,
    newest: bool,
}

impl Prunable {
    /// For an archive of so many bookings, the first `stored` of which are in the usage store.
    pub fn new(archived: i64, stored: i64) -> Self {
        Self { stored, before: archived, cut: None, newest: true }
    }

    /// Takes the next page: how many bookings were found with it, whether it may go as far as it itself says (old, and nobody waits to be told of one of
    /// them), and whether what was found so far is whole ([`ArchiveWalk::is_even`](super::ArchiveWalk::is_even)).
    pub fn take(&mut self, found: usize, may_go: bool, even: bool) {
        let newest = std::mem::replace(&mut self.newest, false);
        if newest || !may_go || self.before > self.stored {
            self.cut = None;
        }
        self.before = self.before.saturating_sub(i64::try_from(found).unwrap_or(i64::MAX));
        if self.cut.is_none() && even {
            self.cut = Some(self.before);
        }
    }

    /// How many may go, once all was walked.
    pub fn pruned(&self) -> i64 {
        self.cut.unwrap_or(0).clamp(0, self.stored.max(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pruned_is_noted_though_more_was_stored_meanwhile() {
        let of = |archive: &str, bookings, pruned| Stored { archive: archive.into(), bookings, pruned };
        let stands = of("a", 9, 0);
        let told = of("a", 7, 5).beside(Some(&stands));
        assert_eq!(told, of("a", 9, 5));
        assert!(told.follows(Some(&stands)));
        assert!(!of("a", 7, 0).beside(Some(&stands)).follows(Some(&stands)), "nothing new");
        // A place in another archive means nothing here.
        assert_eq!(of("b", 7, 5).beside(Some(&stands)), of("b", 7, 5));
        assert!(!of("b", 7, 5).beside(Some(&stands)).follows(Some(&stands)));
    }
}
