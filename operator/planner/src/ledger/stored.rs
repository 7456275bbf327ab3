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

    /// What is wrong with it for an archive of so many bookings.
    pub(super) fn fault(&self, archived: i64) -> Option<String> {
        let Self { bookings, pruned, .. } = self;
        (*pruned < 0 || pruned > bookings || *bookings > archived).then(|| {
            format!("of {archived} bookings that ended, {bookings} are said to be stored and {pruned} of them pruned")
        })
    }
}

/// What is said of an archive in the usage store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredNote {
    archive: Arc<str>,
    bookings: Option<i64>,
    pruned: Option<i64>,
}

impl StoredNote {
    /// That it is known there by this id from now on.
    pub fn named(archive: Arc<str>) -> Self {
        Self { archive, bookings: None, pruned: None }
    }

    /// That the first so many of its bookings are stored: more than before, or fewer, if the store is another one or was brought back from a copy.
    pub fn stored(archive: Arc<str>, bookings: i64) -> Self {
        Self { bookings: Some(bookings), ..Self::named(archive) }
    }

    /// That the pages of the first so many of its bookings may go.
    pub fn pruned(archive: Arc<str>, pruned: i64) -> Self {
        Self { pruned: Some(pruned), ..Self::named(archive) }
    }

    /// With what was said of the same archive before.
    #[must_use]
    pub fn after(self, before: Option<Self>) -> Self {
        match before.filter(|before| before.archive == self.archive) {
            None => self,
            Some(before) => Self {
                bookings: self.bookings.or(before.bookings),
                pruned: self.pruned.max(before.pruned),
                archive: self.archive,
            },
        }
    }

    /// What stands then for an archive of so many bookings; none: what stood before. What is pruned stays pruned.
    pub(super) fn apply(self, before: Option<&Stored>, archived: i64) -> Option<Stored> {
        let Self { archive, bookings, pruned } = self;
        if before.is_some_and(|before| before.archive != archive) {
            return None;
        }
        let stands = before.cloned().unwrap_or_else(|| Stored::new(archive));
        let bookings = bookings.unwrap_or(stands.bookings);
        let next =
            Stored { bookings, pruned: pruned.unwrap_or(0).max(stands.pruned), archive: Arc::clone(&stands.archive) };
        (before != Some(&next) && next.fault(archived).is_none()).then_some(next)
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
        let stands = Stored { archive: "a".into(), bookings: 9, pruned: 0 };
        let next = |note: StoredNote| note.apply(Some(&stands), 10).map(|stored| (stored.bookings, stored.pruned));
        assert_eq!(next(StoredNote::pruned("a".into(), 5)), Some((9, 5)));
        assert_eq!(next(StoredNote::stored("a".into(), 9)), None, "nothing new");
        let both = StoredNote::pruned("a".into(), 5).after(Some(StoredNote::stored("a".into(), 7)));
        assert_eq!(next(both.clone()), Some((7, 5)));
        // The last word counts, also where the store has less than it had.
        let less = StoredNote::stored("a".into(), 4).after(Some(StoredNote::stored("a".into(), 10)));
        assert_eq!(next(less.clone()), Some((4, 0)));
        assert_eq!(next(less.after(Some(both))), None, "what is pruned cannot be unstored");
        // A place in another archive means nothing here.
        assert_eq!(next(StoredNote::stored("b".into(), 10)), None);
        assert_eq!(
            next(StoredNote::stored("a".into(), 10).after(Some(StoredNote::pruned("b".into(), 3)))),
            Some((10, 0))
        );
    }
}
