//! Segments of bookings that ended: what of them every store takes, and the SQL that SQLite and PostgreSQL share.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use spillway_metering::shipping::{EndedSegment, GpuRow, HeldArchive, Receipt, SegmentReceipt, Segments};
use spillway_metering::{Segment, TenantName};

use super::batch::count;
use super::query::{Bound, Dialect, Query};
use super::{Error, MOST_NAME_BYTES, MOST_ROWS};

/// The columns of a segment, in the order in which they are read and written.
pub(super) const COLUMNS: &str = "booking, number, archive, place, node, tenant, namespace, reservation, pool, sku, tier, \
     devices, from_ms, to_ms";

/// Which GPU time: what ended bookings used within a time, of all who pay or of one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GpuFilter {
    /// Who pays.
    pub tenant: Option<TenantName>,
    /// What was used from then on, Unix milliseconds.
    pub from_ms: i64,
    /// What was used before then, Unix milliseconds.
    pub to_ms: i64,
    /// Archives of which only bookings below a place are summed: who asks knows the others by the ledger.
    pub before: Vec<(String, i64)>,
}

impl Default for GpuFilter {
    /// Everything.
    fn default() -> Self {
        Self { tenant: None, from_ms: i64::MIN, to_ms: i64::MAX, before: Vec::new() }
    }
}

/// What sums of GPU time are kept by.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum GpuGroup {
    /// Who pays.
    Tenant,
    /// The reservation's namespace.
    Namespace,
    /// The reservation. Of two namespaces, two may have one name.
    Reservation,
    /// Which devices.
    Sku,
    /// On which terms.
    Tier,
}

impl GpuGroup {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Tenant, Self::Namespace, Self::Reservation, Self::Sku, Self::Tier];

    /// How it is asked for, and its column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Namespace => "namespace",
            Self::Reservation => "reservation",
            Self::Sku => "sku",
            Self::Tier => "tier",
        }
    }

    fn set(self, row: &mut GpuRow, value: String) {
        let place = match self {
            Self::Tenant => &mut row.tenant,
            Self::Namespace => &mut row.namespace,
            Self::Reservation => &mut row.reservation,
            Self::Sku => &mut row.sku,
            Self::Tier => &mut row.tier,
        };
        *place = Some(value);
    }
}

impl std::str::FromStr for GpuGroup {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|group| group.as_str() == text).ok_or(())
    }
}

/// A sum of these groups, whose values are `names`.
pub(super) fn row(groups: &[GpuGroup], names: Vec<String>, device_milliseconds: i64) -> GpuRow {
    let mut row = GpuRow { device_milliseconds, ..GpuRow::default() };
    for (group, name) in groups.iter().zip(names) {
        group.set(&mut row, name);
    }
    row
}

/// A segment as columns. It is compared with what is stored column by column, so that nothing is lost in between.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct FlatSegment {
    pub(super) booking: String,
    pub(super) number: i64,
    pub(super) archive: String,
    pub(super) place: i64,
    /// Node, tenant, namespace, reservation, pool, SKU, tier.
    pub(super) names: [String; 7],
    pub(super) devices: i64,
    pub(super) from_ms: i64,
    pub(super) to_ms: i64,
}

impl FlatSegment {
    fn new(archive: &str, ended: EndedSegment) -> Result<Self, Error> {
        let EndedSegment { booking, number, place, node, segment } = ended;
        let wrong = |why| Error::Segment { booking: booking.chars().take(100).collect(), number, why };
        let names = [
            node,
            segment.tenant.to_string(),
            segment.namespace.to_string(),
            segment.reservation.to_string(),
            segment.pool.to_string(),
            segment.sku.to_string(),
            segment.tier.to_string(),
        ];
        let storable = |name: &str| name.len() <= MOST_NAME_BYTES && !name.contains('\0');
        if ![&booking, archive].into_iter().chain(names.iter().map(String::as_str)).all(storable) {
            return Err(wrong("a name of it is longer than 1024 bytes or has a zero byte in it"));
        }
        let to_ms = segment.to_ms.ok_or_else(|| wrong("it has not ended"))?;
        let devices = i64::from(segment.devices);
        // So that no part of it that is ever summed has no room.
        if to_ms
            .checked_sub(segment.from_ms)
            .filter(|length| *length >= 0)
            .and_then(|one| one.checked_mul(devices))
            .is_none()
        {
            return Err(wrong("it ends before it begins, or is longer than can be summed"));
        }
        let place = i64::try_from(place).map_err(|_| wrong("its place has no room in 63 bits"))?;
        let (number, from_ms) = (i64::from(number), segment.from_ms);
        Ok(Self { booking, number, archive: archive.to_owned(), place, names, devices, from_ms, to_ms })
    }

    /// What it is of an archive, and which.
    pub(super) fn ended(self) -> Option<(String, EndedSegment)> {
        let [node, tenant, namespace, reservation, pool, sku, tier] = self.names;
        let segment = Segment {
            tenant: tenant.into(),
            namespace: namespace.into(),
            reservation: reservation.into(),
            pool: pool.into(),
            sku: sku.into(),
            tier: tier.into(),
            devices: self.devices.try_into().ok()?,
            from_ms: self.from_ms,
            to_ms: Some(self.to_ms),
        };
        let (number, place) = (self.number.try_into().ok()?, self.place.try_into().ok()?);
        Some((self.archive, EndedSegment { booking: self.booking, number, place, node, segment }))
    }

    /// Whether it says the same of the same booking. Where the booking stands in an archive is no part of that: an archive that was restored from a
    /// backup may have it at another place.
    pub(super) fn says(&self, other: &Self) -> bool {
        (&self.names, self.devices, self.from_ms, self.to_ms)
            == (&other.names, other.devices, other.from_ms, other.to_ms)
    }
}

/// The id of a segment: of which booking, and which of its segments.
pub(super) type SegmentId = (String, i64);

/// How far an archive is stored. It stands in the store itself, so that a store that is another, or is brought back from a copy, says so.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Held {
    /// So many bookings, from the first on.
    pub(super) bookings: i64,
    /// Some of them are lost.
    pub(super) lost: Option<Lost>,
}

/// What nobody has any more, as far as a store knows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Lost {
    /// It ended before then, Unix milliseconds.
    pub(super) before_ms: i64,
    /// Places of bookings that are lost are below this one.
    pub(super) below: i64,
}

impl Held {
    /// With all bookings of these places. What is before them and not here is still to come, or, if nobody has it, lost now.
    fn with(self, places: Places) -> Self {
        let Places { from, to, oldest_ms } = places;
        let has_gap = from > self.bookings;
        if to <= from || (has_gap && oldest_ms.is_none()) {
            return self;
        }
        let lost = oldest_ms.filter(|_| has_gap).map(|before_ms| Lost { before_ms, below: from });
        Self { bookings: self.bookings.max(to), lost: lost.or(self.lost) }
    }

    /// With what another store has of the same archive, all of which is here by now.
    pub(super) fn beside(self, other: Self) -> Self {
        let has = |held: Self, lost: Lost| held.lost.is_none() && held.bookings >= lost.below;
        let lost = [(self, other), (other, self)]
            .into_iter()
            .filter_map(|(one, other)| one.lost.filter(|lost| !has(other, *lost)));
        Self { bookings: self.bookings.max(other.bookings), lost: lost.max_by_key(|lost| lost.below) }
    }

    pub(super) fn read(bookings: i64, before_ms: Option<i64>, below: Option<i64>) -> Self {
        let lost = before_ms.zip(below).map(|(before_ms, below)| Lost { before_ms, below });
        Self { bookings, lost }
    }

    pub(super) fn of(self, archive: &str) -> HeldArchive {
        let lost_before_ms = self.lost.map(|lost| lost.before_ms);
        HeldArchive { archive: archive.to_owned(), bookings: self.bookings, lost_before_ms }
    }
}

/// Bookings of an archive.
#[derive(Clone, Copy, Debug, Default)]
struct Places {
    from: i64,
    to: i64,
    oldest_ms: Option<i64>,
}

/// Segments that every store takes: the first of each id, in the order of ids.
#[derive(Debug, Default)]
pub(super) struct SegmentBatch {
    pub(super) archive: String,
    places: Places,
    segments: BTreeMap<SegmentId, FlatSegment>,
    known: u64,
    differing: Vec<SegmentId>,
}

impl SegmentBatch {
    pub(super) fn new(posted: Segments) -> Result<Self, Error> {
        let Segments { archive, from, to, oldest_ms, segments } = posted;
        let mut batch = Self { archive, places: Places { from, to, oldest_ms }, ..Self::default() };
        for ended in segments {
            let flat = FlatSegment::new(&batch.archive, ended)?;
            match batch.segments.entry((flat.booking.clone(), flat.number)) {
                Entry::Vacant(place) => {
                    place.insert(flat);
                }
                Entry::Occupied(first) if first.get().says(&flat) => batch.known = batch.known.saturating_add(1),
                Entry::Occupied(first) => batch.differing.push(first.key().clone()),
            }
        }
        Ok(batch)
    }

    /// Those that are not forgotten, by their ids, and how many are.
    pub(super) fn kept(&self, forgotten_before_ms: Option<i64>) -> (Vec<&FlatSegment>, u64) {
        let kept = |one: &&FlatSegment| forgotten_before_ms.is_none_or(|before_ms| one.to_ms >= before_ms);
        let kept: Vec<&FlatSegment> = self.segments.values().filter(kept).collect();
        let forgotten = self.segments.len().saturating_sub(kept.len());
        (kept, count(forgotten))
    }

    /// Whether it says anything of how far the archive is stored.
    pub(super) fn has_places(&self) -> bool {
        self.places.to > self.places.from
    }

    /// How far the archive is stored with this batch; none: as before.
    pub(super) fn held(&self, known: Held) -> Option<Held> {
        let held = known.with(self.places);
        if held.lost != known.lost {
            let (archive, lost) = (&self.archive, self.places.from.saturating_sub(known.bookings));
            tracing::error!(
                archive,
                lost,
                "GPU time of bookings is lost: it is neither here nor in the ledger any more"
            );
        }
        (held != known).then_some(held)
    }

    /// The receipt for the whole batch, where of those [kept](Self::kept) `stored` are stored and these differ, and the archive is stored so far by
    /// now; and the ids of all that differ.
    pub(super) fn receipt(
        &self,
        stored: usize,
        forgotten: u64,
        differ: Vec<SegmentId>,
        held: Held,
    ) -> (SegmentReceipt, Vec<SegmentId>) {
        let had = count(self.segments.len())
            .saturating_sub(forgotten)
            .saturating_sub(count(stored))
            .saturating_sub(count(differ.len()));
        let differing = [differ, self.differing.clone()].concat();
        let known = self.known.saturating_add(had);
        let receipt = Receipt { stored: count(stored), known, differing: count(differing.len()), forgotten };
        (SegmentReceipt { receipt, held: held.of(&self.archive) }, differing)
    }
}

/// Sums of GPU time by groups, each part of a segment that is within the filter's time. What is forgotten counts no more, though it may not be deleted yet;
/// and of the archives that were asked about no more than is `held` in one piece, so that who asks can count the rest.
pub(super) fn usage(
    dialect: Dialect,
    filter: &GpuFilter,
    groups: &[GpuGroup],
    forgotten_before_ms: Option<i64>,
    held: &[HeldArchive],
) -> Query {
    // Bounds of a few hundred million years, so that they have room whatever is subtracted.
    const FAR: i64 = i64::MAX / 4;
    let (from_ms, to_ms) = (filter.from_ms.clamp(-FAR, FAR), filter.to_ms.clamp(-FAR, FAR));
    let columns: Vec<&str> = groups.iter().map(|group| group.as_str()).collect();
    let columns = columns.join(", ");
    let comma = if groups.is_empty() { "" } else { ", " };
    let mut query =
        Query::empty(dialect, format!("SELECT {columns}{comma}CAST(coalesce(sum(devices * (CASE WHEN to_ms < "));
    query.bind(Bound::Number(to_ms));
    query.push(" THEN to_ms ELSE ");
    query.bind(Bound::Number(to_ms));
    query.push(" END - CASE WHEN from_ms > ");
    query.bind(Bound::Number(from_ms));
    query.push(" THEN from_ms ELSE ");
    query.bind(Bound::Number(from_ms));
    query.push(" END)), 0) AS BIGINT) FROM segments WHERE 1 = 1");
    // What ended before, as whole days that are forgotten do, is found by its end.
    query.also("to_ms >", Bound::Number(from_ms));
    query.also("from_ms <", Bound::Number(to_ms));
    if let Some(before_ms) = forgotten_before_ms {
        query.also("to_ms >=", Bound::Number(before_ms));
    }
    if let Some(tenant) = &filter.tenant {
        query.also("tenant =", Bound::Text(tenant.to_string()));
    }
    for ((archive, before), held) in filter.before.iter().zip(held) {
        query.push(" AND (archive <> ");
        query.bind(Bound::Text(archive.clone()));
        query.push(" OR place < ");
        query.bind(Bound::Number(held.bookings.min(*before)));
        query.push(")");
    }
    if !groups.is_empty() {
        query.push(&format!(" GROUP BY {columns}"));
    }
    query.push(&format!(" LIMIT {}", MOST_ROWS.saturating_add(1)));
    query
}
