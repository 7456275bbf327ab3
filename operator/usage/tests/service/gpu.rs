//! GPU time of bookings that ended: the same tests on each store, and by the API.

use hyper::{Method, StatusCode};
use rstest::rstest;
use serde_json::{Value, json};
use spillway_metering::Segment;
use spillway_metering::shipping::{EndedSegment, GpuRow, GpuUsage, HeldArchive, Receipt, SegmentReceipt, Segments};
use spillway_usage::store::{DAY_MS, Error, Forgotten, GpuFilter, GpuGroup, Store};

use crate::api::serve;
use crate::contract::{change, schema_version};
use crate::{DAY, Home, Kind};

pub(crate) const MIDNIGHT: i64 = DAY * DAY_MS;
const HOUR: i64 = 3_600_000;

/// Segment 0 of the booking at this place: an hour of two devices, on one day after another.
fn segment(place: u32) -> EndedSegment {
    let from_ms = MIDNIGHT + i64::from(place % 4) * DAY_MS;
    EndedSegment {
        booking: format!("b-{place}"),
        number: 0,
        place: place.into(),
        node: format!("gpu-{}", place % 2),
        segment: Segment {
            tenant: format!("tenant-{}", place % 3).into(),
            namespace: "acme".into(),
            reservation: format!("train-{place}").into(),
            pool: "h200".into(),
            sku: if place.is_multiple_of(2) { "h200" } else { "h100" }.into(),
            tier: "Committed".into(),
            devices: 2,
            from_ms,
            to_ms: Some(from_ms + HOUR),
        },
    }
}

pub(crate) fn posted(places: std::ops::Range<u32>) -> Segments {
    let (from, to) = (places.start.into(), places.end.into());
    Segments { archive: "one".to_owned(), from, to, oldest_ms: None, segments: places.map(segment).collect() }
}

/// Of no places.
fn loose(archive: &str, segments: Vec<EndedSegment>) -> Segments {
    Segments { archive: archive.to_owned(), segments, ..Segments::default() }
}

fn receipt(stored: u64, known: u64, differing: u64, bookings: i64) -> SegmentReceipt {
    of("one", Receipt { stored, known, differing, forgotten: 0 }, bookings)
}

fn of(archive: &str, receipt: Receipt, bookings: i64) -> SegmentReceipt {
    SegmentReceipt { receipt, held: HeldArchive { archive: archive.to_owned(), bookings, lost_before_ms: None } }
}

async fn sum(store: &Store, filter: &GpuFilter) -> i64 {
    let usage = store.gpu_usage(filter, &[]).await.unwrap();
    assert_eq!(usage.rows.len(), 1);
    usage.rows[0].device_milliseconds
}

#[rstest]
#[tokio::test]
async fn a_segment_is_stored_once(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    let store = home.open().await;
    assert_eq!(store.put_segments(posted(0..0)).await.unwrap(), receipt(0, 0, 0, 0));
    assert_eq!(sum(&store, &GpuFilter::default()).await, 0);
    assert_eq!(store.put_segments(posted(0..10)).await.unwrap(), receipt(10, 0, 0, 10));
    // Late, again, out of order, and twice in one batch.
    let mut again = posted(5..15);
    again.segments.reverse();
    again.segments.push(segment(14));
    assert_eq!(store.put_segments(again).await.unwrap(), receipt(5, 6, 0, 15));
    assert_eq!(sum(&store, &GpuFilter::default()).await, 15 * 2 * HOUR);
    // Another segment of a booking is another, and what differs does not count.
    let mut second = segment(3);
    second.number = 1;
    let mut other = segment(4);
    other.segment.devices = 8;
    let mixed = loose("one", vec![second.clone(), other.clone(), other, segment(2)]);
    assert_eq!(store.put_segments(mixed).await.unwrap(), receipt(1, 2, 1, 15));
    let mut differs = second;
    differs.segment.tenant = "somebody".into();
    let twice = loose("one", vec![segment(90), differs]);
    assert_eq!(store.put_segments(twice).await.unwrap(), receipt(1, 0, 1, 15));
    assert_eq!(sum(&store, &GpuFilter::default()).await, 17 * 2 * HOUR);
    // An archive that was put back from a backup has it elsewhere: it is the same segment.
    let elsewhere = loose("two", vec![EndedSegment { place: 99, ..segment(1) }]);
    assert_eq!(store.put_segments(elsewhere).await.unwrap(), of("two", Receipt { known: 1, ..Receipt::default() }, 0));
    // Another store of the same place has it.
    drop(store);
    let store = home.open().await;
    assert_eq!(store.check().await.unwrap().segments, 17);
    assert_eq!(sum(&store, &GpuFilter::default()).await, 17 * 2 * HOUR);
}

#[rstest]
#[tokio::test]
async fn gpu_time_is_summed_by_time_place_and_group(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    let store = home.open().await;
    store.put_segments(posted(0..12)).await.unwrap();
    let all = GpuFilter::default();
    // A part of each segment of the second day, of which there are three.
    let day = MIDNIGHT + DAY_MS;
    for (from_ms, to_ms, expected) in [
        (day, day + DAY_MS, 3 * 2 * HOUR),
        (day + 1, day + HOUR - 1, 3 * 2 * (HOUR - 2)),
        (day - 5, day, 0),
        (day - 5, day + 7, 3 * 2 * 7),
        (day + HOUR, day + DAY_MS, 0),
        (day + 7, day + 7, 0),
        (i64::MIN, day + 1, 3 * 2 * (HOUR + 1)),
        (day, i64::MAX, 9 * 2 * HOUR),
    ] {
        assert_eq!(sum(&store, &GpuFilter { from_ms, to_ms, ..all.clone() }).await, expected, "{from_ms} {to_ms}");
    }
    // Of one archive only what is below a place; of others all.
    for (before, expected) in [
        (vec![("one", 12)], 12),
        (vec![("one", 5)], 5),
        (vec![("one", 0)], 0),
        (vec![("other", 0)], 12),
        (vec![("other", 0), ("one", 3)], 3),
    ] {
        let before = before.into_iter().map(|(archive, place)| (archive.to_owned(), place)).collect();
        assert_eq!(sum(&store, &GpuFilter { before, ..all.clone() }).await, expected * 2 * HOUR);
    }
    let one = GpuFilter { tenant: Some("tenant-1".into()), ..all.clone() };
    assert_eq!(sum(&store, &one).await, 4 * 2 * HOUR);
    let row = |tenant: &str, sku: &str, count: i64| GpuRow {
        tenant: Some(tenant.to_owned()),
        sku: Some(sku.to_owned()),
        device_milliseconds: count * 2 * HOUR,
        ..GpuRow::default()
    };
    let rows = ["tenant-0", "tenant-1", "tenant-2"].map(|tenant| [row(tenant, "h100", 2), row(tenant, "h200", 2)]);
    let usage = store.gpu_usage(&all, &[GpuGroup::Sku, GpuGroup::Tenant, GpuGroup::Sku]).await.unwrap();
    assert_eq!(usage, GpuUsage { rows: rows.concat(), ..GpuUsage::default() });
    let usage = store.gpu_usage(&one, &GpuGroup::ALL).await.unwrap();
    assert_eq!(usage.rows.len(), 4);
    assert_eq!(usage.rows[0].reservation.as_deref(), Some("train-1"));
}

#[rstest]
#[tokio::test]
async fn old_segments_are_forgotten_and_stay_so(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    let store = home.open().await;
    store.put_segments(posted(0..12)).await.unwrap();
    store.put(vec![crate::record(0)]).await.unwrap();
    let third = MIDNIGHT + 2 * DAY_MS;
    // Two days of segments, and a record of the first.
    assert_eq!(store.forget_before(third + 5).await.unwrap(), Forgotten { days: 2, records: 7 });
    let late = store.put_segments(posted(0..12)).await.unwrap();
    let forgotten = Receipt { stored: 0, known: 6, differing: 0, forgotten: 6 };
    assert_eq!(late, of("one", forgotten, 12));
    let usage = store.gpu_usage(&GpuFilter::default(), &[]).await.unwrap();
    let rows = vec![GpuRow { device_milliseconds: 6 * 2 * HOUR, ..GpuRow::default() }];
    assert_eq!(usage, GpuUsage { rows, forgotten_before_ms: Some(third), ..GpuUsage::default() });
}

#[rstest]
#[case::zero(|one: &mut EndedSegment| one.segment.sku = "a\0".into(), "a name of it")]
#[case::long(|one: &mut EndedSegment| one.booking = "x".repeat(1_025), "a name of it")]
#[case::goes_on(|one: &mut EndedSegment| one.segment.to_ms = None, "it has not ended")]
#[case::reversed(|one: &mut EndedSegment| one.segment.to_ms = Some(one.segment.from_ms - 1), "it ends before it begins")]
#[case::endless(|one: &mut EndedSegment| one.segment.to_ms = Some(i64::MAX), "longer than can be summed")]
#[tokio::test]
async fn what_no_store_takes_is_refused_whole(
    #[values(Kind::Sqlite, Kind::Postgres)] kind: Kind,
    #[case] spoil: fn(&mut EndedSegment),
    #[case] why: &str,
) {
    let home = Home::new(kind);
    let store = home.open().await;
    let mut batch = posted(0..3);
    spoil(&mut batch.segments[1]);
    let error = store.put_segments(batch).await.unwrap_err();
    assert!(error.is_askers() && error.to_string().contains(why), "{error}");
    assert_eq!(store.check().await.unwrap().segments, 0);
}

#[rstest]
#[tokio::test]
async fn gpu_time_without_room_is_no_sum(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    let store = home.open().await;
    let mut batch = posted(0..4);
    for one in &mut batch.segments {
        (one.segment.devices, one.segment.from_ms, one.segment.to_ms) = (1 << 31, 0, Some(1 << 31));
    }
    store.put_segments(batch).await.unwrap();
    let error = store.gpu_usage(&GpuFilter::default(), &[]).await.unwrap_err();
    assert!(matches!(error, Error::Overflow), "{error}");
}

/// A store says itself how far it has an archive, so that one that is exchanged, or brought back from a copy, is found out; and sums no more than that.
#[rstest]
#[tokio::test]
async fn a_store_says_what_it_has(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    let store = home.open().await;
    let ask = async || store.put_segments(loose("one", Vec::new())).await.unwrap().held.bookings;
    let told = async || {
        let filter = GpuFilter { before: vec![("one".to_owned(), 100)], ..GpuFilter::default() };
        let usage = store.gpu_usage(&filter, &[]).await.unwrap();
        assert_eq!(usage.archives.len(), 1);
        let HeldArchive { archive, bookings, lost_before_ms } = usage.archives[0].clone();
        assert_eq!(archive, "one");
        (bookings, usage.rows[0].device_milliseconds / (2 * HOUR), lost_before_ms)
    };
    assert_eq!((ask().await, told().await), (0, (0, 0, None)));
    // What comes to another store than the one before it begins in the middle: it is stored, and is not all.
    assert_eq!(store.put_segments(posted(5..8)).await.unwrap(), receipt(3, 0, 0, 0));
    assert_eq!((ask().await, told().await), (0, (0, 0, None)));
    // From the start, a booking without a segment among them.
    let mut first = posted(0..6);
    first.segments.remove(2);
    assert_eq!(store.put_segments(first).await.unwrap(), receipt(4, 1, 0, 6));
    assert_eq!((ask().await, told().await), (6, (6, 5, None)));
    assert_eq!(store.put_segments(posted(6..9)).await.unwrap().held.bookings, 9);
    assert_eq!(store.put_segments(posted(3..4)).await.unwrap().held.bookings, 9, "again");
    // A gap is no loss while the ledger has what is missing; and one once it has not.
    assert_eq!(store.put_segments(posted(11..12)).await.unwrap().held.bookings, 9);
    assert_eq!(told().await, (9, 8, None));
    let rest = Segments { oldest_ms: Some(MIDNIGHT), ..posted(11..13) };
    let taken = store.put_segments(rest).await.unwrap();
    assert_eq!((taken.receipt.stored, taken.receipt.known, taken.held.bookings), (1, 1, 13));
    assert_eq!(taken.held.lost_before_ms, Some(MIDNIGHT));
    assert_eq!(told().await, (13, 10, Some(MIDNIGHT)));
    // It is said for ever, and nothing more is lost by what follows.
    let next = Segments { oldest_ms: Some(MIDNIGHT + DAY_MS), ..posted(13..14) };
    assert_eq!(store.put_segments(next).await.unwrap().held.bookings, 14);
    assert_eq!(told().await, (14, 11, Some(MIDNIGHT)));
}

/// A store of the version before has segments, and does not say how far: it is brought to this one, keeps what it has, and is posted it again.
#[rstest]
#[tokio::test]
async fn a_store_of_the_version_before_is_migrated(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    let store = home.open().await;
    store.put(crate::records(0..5)).await.unwrap();
    store.put_segments(posted(0..2)).await.unwrap();
    drop(store);
    let known = schema_version(kind);
    change(&home, &format!("DROP TABLE archives; DELETE FROM schema_version WHERE version = {known}"));
    let older = Store::open(&home.place(), spillway_usage::store::Migration::Refuse).await.err().unwrap();
    assert!(matches!(older, Error::Older { found, .. } if found == known - 1), "{older}");
    let store = home.open().await;
    assert_eq!(store.put_segments(posted(0..3)).await.unwrap(), receipt(1, 2, 0, 3));
    let summary = store.check().await.unwrap();
    assert_eq!((summary.version, summary.records, summary.segments), (known, 5, 3));
}

/// Several operators, one of which leads no more, post the same at once: each segment is stored once.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn the_api_takes_segments_and_gives_sums(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    let served = serve(&home).await;
    let body = serde_json::to_string(&posted(0..500)).unwrap();
    let posting: Vec<_> = (0..4)
        .map(|_| {
            let (http, api, body) = (served.http.clone(), served.api, body.clone());
            tokio::spawn(async move { http.send(Method::POST, api, "/v1/segments", body).await.unwrap() })
        })
        .collect();
    let mut stored = 0;
    for one in posting {
        let (status, text) = one.await.unwrap();
        assert_eq!(status, StatusCode::OK, "{text}");
        stored += serde_json::from_str::<Receipt>(&text).unwrap().stored;
    }
    assert_eq!(stored, 500);
    assert_eq!(served.metric("segments_total{result=\"stored\"}").await, 500);
    assert_eq!(served.metric("segments_total{result=\"known\"}").await, 1_500);
    let (status, answer) = served.ask(Method::GET, "/v1/gpu?by=tier&before=one:100", "").await;
    let row = json!({"tier": "Committed", "deviceMilliseconds": 100 * 2 * HOUR});
    assert_eq!(
        (status, answer),
        (StatusCode::OK, json!({"rows": [row], "archives": [{"archive": "one", "bookings": 500}]}))
    );
    let (status, answer): (_, Value) = served.ask(Method::GET, "/v1/gpu?by=day", "").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    let mut spoilt = posted(0..1);
    spoilt.segments[0].segment.to_ms = None;
    let (status, answer) = served.ask(Method::POST, "/v1/segments", &serde_json::to_string(&spoilt).unwrap()).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
}
