//! What another store has, brought into this one: to move from a file to a database, or to bring back what an older store had.

use rstest::rstest;
use spillway_metering::shipping::{Receipt, Segments};
use spillway_usage::store::{DAY_MS, Error, GpuFilter, Migration, Sqlite, Store};

use crate::contract::change;
use crate::gpu::{MIDNIGHT, posted};
use crate::{Home, Kind, all, records};

fn receipt(stored: u64, known: u64) -> Receipt {
    Receipt { stored, known, ..Receipt::default() }
}

/// A file that another store was, and that store.
async fn another() -> (Home, Store, Sqlite) {
    let home = Home::new(Kind::Sqlite);
    let store = home.open().await;
    let Store::Sqlite(file) = store.clone() else { panic!("a file") };
    (home, store, file)
}

/// How many bookings of archive `one` a store has, and before when some are lost.
async fn held(store: &Store) -> (i64, Option<i64>) {
    let filter = GpuFilter { before: vec![("one".to_owned(), i64::MAX)], ..GpuFilter::default() };
    let archive = store.gpu_usage(&filter, &[]).await.unwrap().archives.remove(0);
    (archive.bookings, archive.lost_before_ms)
}

#[rstest]
#[tokio::test]
async fn what_another_store_has_is_brought_in_once(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let (_home, old, file) = another().await;
    old.put(records(0..1_500)).await.unwrap();
    old.put_segments(posted(0..20)).await.unwrap();
    let home = Home::new(kind);
    let store = home.open().await;
    // It was exchanged when the ledger had what came from place 15 on.
    store.put(records(1_400..1_600)).await.unwrap();
    store.put_segments(Segments { oldest_ms: Some(MIDNIGHT), ..posted(15..25) }).await.unwrap();
    assert_eq!(held(&store).await, (25, Some(MIDNIGHT)));
    let imported = store.import(&file, false).await.unwrap();
    assert_eq!((imported.records, imported.segments), (receipt(1_400, 100), receipt(15, 5)));
    let mut expected = records(0..1_600);
    expected.sort_by_key(|record| record.opening.id);
    assert!(all(&store).await == expected);
    assert_eq!(store.check().await.unwrap().segments, 25);
    assert_eq!(held(&store).await, (25, None), "what was lost is found");
    let again = store.import(&file, false).await.unwrap();
    assert_eq!((again.records, again.segments), (receipt(0, 1_500), receipt(0, 20)));
    assert_eq!(held(&store).await, (25, None));
}

#[rstest]
#[tokio::test]
async fn what_is_lost_to_another_store_is_lost_here_unless_it_is_here(
    #[values(Kind::Sqlite, Kind::Postgres)] kind: Kind,
) {
    let (_home, old, file) = another().await;
    old.put_segments(Segments { oldest_ms: Some(MIDNIGHT), ..posted(5..20) }).await.unwrap();
    let home = Home::new(kind);
    let store = home.open().await;
    store.import(&file, false).await.unwrap();
    assert_eq!(held(&store).await, (20, Some(MIDNIGHT)));
    let home = Home::new(kind);
    let store = home.open().await;
    store.put_segments(posted(0..4)).await.unwrap();
    store.import(&file, false).await.unwrap();
    assert_eq!(held(&store).await, (20, Some(MIDNIGHT)), "place 4 is nowhere");
    let home = Home::new(kind);
    let store = home.open().await;
    store.put_segments(posted(0..5)).await.unwrap();
    store.import(&file, false).await.unwrap();
    assert_eq!(held(&store).await, (20, None));
}

#[rstest]
#[tokio::test]
async fn days_that_another_store_has_forgotten_are_forgotten(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let (_home, old, file) = another().await;
    old.put_segments(posted(0..12)).await.unwrap();
    let third = MIDNIGHT + 2 * DAY_MS;
    old.forget_before(third).await.unwrap();
    let home = Home::new(kind);
    let store = home.open().await;
    assert_eq!(store.import(&file, false).await.unwrap().segments, receipt(6, 0), "there is nothing to forget");
    let home = Home::new(kind);
    let store = home.open().await;
    store.put_segments(posted(0..2)).await.unwrap();
    let error = store.import(&file, false).await.unwrap_err();
    assert!(matches!(error, Error::WouldForget { before_ms } if before_ms == third), "{error}");
    assert_eq!(store.check().await.unwrap().segments, 2, "nothing is changed");
    assert_eq!(store.import(&file, true).await.unwrap().segments, receipt(6, 0));
    let usage = store.gpu_usage(&GpuFilter::default(), &[]).await.unwrap();
    assert_eq!(usage.forgotten_before_ms, Some(third));
    assert_eq!(store.check().await.unwrap().segments, 6);
    // A file that is none, or of another version, is told of.
    assert!(Sqlite::open(std::path::Path::new("/nowhere/usage.db"), Migration::Refuse).await.is_err());
}

/// What cannot be read is left out and told of, and keeps nothing else back.
#[tokio::test]
async fn what_another_store_has_that_is_no_record_is_left_out() {
    let (home, old, file) = another().await;
    old.put(records(0..30)).await.unwrap();
    old.put_segments(posted(0..10)).await.unwrap();
    change(&home, "UPDATE records SET outcome = 'nonsense' WHERE tenant = 'tenant-1' AND endpoint = 'chat-0'");
    change(&home, "UPDATE segments SET devices = -1 WHERE booking = 'b-7'");
    let other = Home::new(Kind::Sqlite);
    let store = other.open().await;
    let imported = store.import(&file, false).await.unwrap();
    assert_eq!(imported.unreadable, 5 + 1);
    assert_eq!((imported.records, imported.segments), (receipt(25, 0), receipt(9, 0)));
    assert_eq!(held(&store).await, (0, None), "not all of it is here");
}
