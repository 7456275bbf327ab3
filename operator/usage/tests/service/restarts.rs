//! PostgreSQL that goes away in the midst of batches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use spillway_metering::shipping::Receipt;
use spillway_usage::store::{GpuFilter, Migration, Store};

use crate::postgres::Server;
use crate::{all, record, records};

async fn open(server: &Server, database: &str) -> Store {
    Store::open(&server.place(database), Migration::Apply).await.unwrap()
}

/// Several writers of two services, each of which asks again what failed, as gateways do; the server restarts, and recovers, five times.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_or_doubled_when_the_server_restarts() {
    let server = Arc::new(Server::start());
    let database = server.new_database();
    let stores = [open(&server, &database).await, open(&server, &database).await];
    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0_u64..6)
        .map(|writer| {
            let (store, over) = (stores[usize::try_from(writer).unwrap() % 2].clone(), Arc::clone(&over));
            tokio::spawn(async move {
                let (mut next, mut failed) = (writer * 1_000_000, 0_u32);
                let mut doubled = 0;
                while !over.load(Ordering::Relaxed) {
                    let batch = records(next..next + 20);
                    match store.put(batch).await {
                        Ok(receipt) => {
                            assert_eq!((receipt.total(), receipt.differing), (20, 0));
                            doubled += receipt.known;
                            next += 20;
                        }
                        Err(_) => failed += 1,
                    }
                }
                (writer * 1_000_000..next, failed, doubled)
            })
        })
        .collect();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let server = Arc::clone(&server);
        tokio::task::spawn_blocking(move || server.restart_immediately()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    over.store(true, Ordering::Relaxed);
    let (mut expected, mut in_doubt) = (Vec::new(), 0);
    for writer in writers {
        let (numbers, failed, doubled) = writer.await.unwrap();
        assert_eq!(failed, 0, "a restart of a second or two is waited for");
        assert!(numbers.end - numbers.start > 100, "{numbers:?}: there were hardly any batches");
        in_doubt += doubled;
        expected.extend(numbers.map(record));
    }
    expected.sort_by_key(|record| record.opening.id);
    println!("{} records, {in_doubt} of them were in doubt and had been stored", expected.len());
    assert!(all(&stores[0]).await == expected, "what is stored is not what was acknowledged");
    assert_eq!(stores[1].check().await.unwrap().records, u64::try_from(expected.len()).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_waited_for_and_then_told_of() {
    let server = Arc::new(Server::start());
    let database = server.new_database();
    let store = open(&server, &database).await;
    store.put(records(0..10)).await.unwrap();
    let stop = Arc::clone(&server);
    tokio::task::spawn_blocking(move || stop.stop_immediately()).await.unwrap();
    assert!(store.ping().await.is_err());
    let begun = std::time::Instant::now();
    let error = store.put(records(0..20)).await.unwrap_err();
    assert!(!error.is_askers(), "{error}");
    assert!((10..40).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.put(records(0..20)).await }
    });
    let start = Arc::clone(&server);
    tokio::task::spawn_blocking(move || start.start_again()).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), Receipt { stored: 10, known: 10, ..Receipt::default() });
    store.ping().await.unwrap();
}

/// What nobody waits for any more ends at the server too, with its connection; and reports, however many wait, take no place from batches.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_on_ends_at_the_server() {
    let server = Arc::new(Server::start());
    let database = server.new_database();
    let store = open(&server, &database).await;
    let (holder, connection) = tokio_postgres::connect(&server.url(&database), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    holder.batch_execute("BEGIN; LOCK TABLE segments IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut reports = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let store = store.clone();
        reports.spawn(async move { store.gpu_usage(&GpuFilter::default(), &[]).await.map(drop) });
    }
    let connections = async || {
        let count = "SELECT count(*) FILTER (WHERE wait_event_type = 'Lock'), count(*) FROM pg_stat_activity \
             WHERE datname = current_database() AND application_name = 'spillway-usage'";
        let row = holder.query_one(count, &[]).await.unwrap();
        (row.get::<_, i64>(0), row.get::<_, i64>(1))
    };
    let begun = std::time::Instant::now();
    while connections().await.0 == 0 {
        assert!(begun.elapsed().as_secs() < 5, "no report waits");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(store.put(records(0..10)).await.unwrap().stored, 10);
    let (waiting, all) = connections().await;
    assert!((1..=4).contains(&waiting) && all <= 6, "{waiting} wait, of {all}");
    // Long before the lock would be given up on, after ten seconds.
    reports.shutdown().await;
    let begun = std::time::Instant::now();
    while connections().await.0 > 0 {
        assert!(begun.elapsed().as_secs() < 6, "{:?} connections are left", connections().await);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
