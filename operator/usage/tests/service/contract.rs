//! What every store does: the same tests on each.

use std::collections::BTreeSet;

use rstest::rstest;
use spillway_metering::shipping::Receipt;
use spillway_metering::tokens::{Cause, MOST_TOKENS, Outcome, Tokens, UsageRecord};
use spillway_usage::store::{DAY_MS, Error, Filter, Forgotten, Group, GroupKey, Migration, Store, Summary, Usage};

use crate::{DAY, Home, Kind, all, record, records};

fn receipt(stored: u64, known: u64, differing: u64) -> Receipt {
    Receipt { stored, known, differing, forgotten: 0 }
}

#[rstest]
#[tokio::test]
async fn what_is_put_is_there_once_and_as_it_was(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    let store = home.open().await;
    assert_eq!(store.put(Vec::new()).await.unwrap(), receipt(0, 0, 0));
    let mut odd = record(7);
    odd.opening.tenant = "Ünï'code\"; DROP TABLE records; --".into();
    odd.opening.started_ms = i64::MAX;
    odd.ending.ended_ms = i64::MIN;
    odd.ending.tokens = Tokens::new(MOST_TOKENS, MOST_TOKENS, MOST_TOKENS).unwrap();
    odd.ending.outcome = Outcome::Partial(Cause::Bound);
    odd.ending.adjusted = spillway_metering::tokens::Adjustment::ALL.into_iter().collect();
    let batch = [records(0..7), vec![odd.clone()], records(8..20)].concat();
    assert_eq!(store.put(batch.clone()).await.unwrap(), receipt(20, 0, 0));
    // Out of order, some new.
    let again: Vec<UsageRecord> = records(15..25).into_iter().rev().collect();
    assert_eq!(store.put(again).await.unwrap(), receipt(5, 5, 0));
    // Another store of the same place has it.
    drop(store);
    let store = home.open().await;
    let expected = [batch, records(20..25)].concat();
    assert_eq!(all(&store).await, expected);
}

#[rstest]
#[tokio::test]
async fn the_first_record_of_an_id_stands(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    let store = home.open().await;
    let first = record(1);
    let mut other = first.clone();
    other.ending.tokens = Tokens::new(1, 0, 1).unwrap();
    // In one batch, and in another one.
    let batch = vec![first.clone(), other.clone(), first.clone(), record(2)];
    assert_eq!(store.put(batch).await.unwrap(), receipt(2, 1, 1));
    assert_eq!(store.put(vec![other, record(3), record(2)]).await.unwrap(), receipt(1, 1, 1));
    assert_eq!(all(&store).await, [first, record(2), record(3)]);
}

#[rstest]
#[case::zero("a\0b".to_owned())]
#[case::long("x".repeat(1_025))]
#[tokio::test]
async fn a_batch_with_a_name_that_cannot_be_stored_is_refused_whole(
    #[values(Kind::Sqlite, Kind::Postgres)] kind: Kind,
    #[case] name: String,
) {
    let home = Home::new(kind);
    let store = home.open().await;
    let mut bad = record(2);
    bad.opening.model = name.into();
    let error = store.put(vec![record(1), bad]).await.unwrap_err();
    assert!(matches!(error, Error::Name { field: "model", .. }), "{error}");
    assert_eq!(all(&store).await, []);
    let mut longest = record(3);
    longest.opening.tenant = "x".repeat(1_024).into();
    assert_eq!(store.put(vec![longest]).await.unwrap().stored, 1);
}

/// What the sums must be, made of the records themselves.
fn sum(records: &[UsageRecord], groups: &[Group]) -> Vec<Usage> {
    let mut sums = std::collections::BTreeMap::<GroupKey, Usage>::new();
    for UsageRecord { opening, ending } in records {
        let has = |group| groups.contains(&group);
        let group = GroupKey {
            tenant: has(Group::Tenant).then(|| opening.tenant.clone()),
            namespace: has(Group::Namespace).then(|| opening.namespace.clone()),
            endpoint: has(Group::Endpoint).then(|| opening.endpoint.clone()),
            model: has(Group::Model).then(|| opening.model.clone()),
            version: has(Group::Version).then(|| opening.version.clone()),
            key: has(Group::Key).then(|| opening.key.clone()),
            day_ms: has(Group::Day).then(|| ending.ended_ms.div_euclid(DAY_MS) * DAY_MS),
        };
        let sum = sums.entry(group.clone()).or_insert(Usage { group, ..Usage::default() });
        sum.requests += 1;
        sum.partial += u64::from(ending.outcome != Outcome::Complete);
        sum.prompt_tokens += ending.tokens.prompt();
        sum.cached_tokens += ending.tokens.cached();
        sum.completion_tokens += ending.tokens.completion();
    }
    sums.into_values().collect()
}

/// Two hundred records over four days.
async fn filled(home: &Home) -> (Store, Vec<UsageRecord>) {
    let mut records = records(0..200);
    for (index, record) in (0_i64..).zip(&mut records) {
        let later = index % 4 * DAY_MS;
        record.opening.started_ms += later;
        record.ending.ended_ms += later;
    }
    let store = home.open().await;
    store.put(records.clone()).await.unwrap();
    (store, records)
}

#[rstest]
#[tokio::test]
async fn sums_are_those_of_the_records(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    let (store, records) = filled(&home).await;
    // Every choice of groups.
    for choice in 0_u32..1 << Group::ALL.len() {
        let groups: Vec<Group> =
            (0..).zip(Group::ALL).filter(|(bit, _)| choice >> bit & 1 == 1).map(|(_, g)| g).collect();
        assert_eq!(store.usage(&Filter::default(), &groups).await.unwrap(), sum(&records, &groups), "{groups:?}");
    }
    let twice = [Group::Day, Group::Tenant, Group::Day];
    assert_eq!(store.usage(&Filter::default(), &twice).await.unwrap(), sum(&records, &twice));
}

#[rstest]
#[tokio::test]
async fn filters_take_what_they_say(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    let (store, records) = filled(&home).await;
    let one = &records[42];
    let (ended_ms, opening) = (one.ending.ended_ms, &one.opening);
    let filters = [
        Filter { tenant: Some(opening.tenant.clone()), ..Filter::default() },
        Filter { namespace: Some(opening.namespace.clone()), ..Filter::default() },
        Filter { namespace: Some("other".into()), ..Filter::default() },
        Filter { endpoint: Some(opening.endpoint.clone()), ..Filter::default() },
        Filter { model: Some(opening.model.clone()), key: Some(opening.key.clone()), ..Filter::default() },
        // Half open, on the end of a request.
        Filter { from_ms: ended_ms, to_ms: ended_ms + 1, ..Filter::default() },
        Filter { from_ms: ended_ms + 1, ..Filter::default() },
        Filter { to_ms: ended_ms, ..Filter::default() },
        Filter { from_ms: ended_ms, to_ms: ended_ms, ..Filter::default() },
    ];
    for filter in filters {
        let passes = |record: &&UsageRecord| {
            let UsageRecord { opening, ending } = record;
            filter.tenant.as_ref().is_none_or(|tenant| *tenant == opening.tenant)
                && filter.namespace.as_ref().is_none_or(|namespace| *namespace == opening.namespace)
                && filter.endpoint.as_ref().is_none_or(|endpoint| *endpoint == opening.endpoint)
                && filter.model.as_ref().is_none_or(|model| *model == opening.model)
                && filter.key.as_ref().is_none_or(|key| *key == opening.key)
                && (filter.from_ms..filter.to_ms).contains(&ending.ended_ms)
        };
        let mut expected: Vec<UsageRecord> = records.iter().filter(passes).cloned().collect();
        expected.sort_by_key(|record| record.opening.id);
        let groups = [Group::Key, Group::Day];
        assert_eq!(store.usage(&filter, &groups).await.unwrap(), sum(&expected, &groups), "{filter:?}");
        assert_eq!(store.usage(&filter, &[]).await.unwrap()[0].requests, u64::try_from(expected.len()).unwrap());
        // And page by page.
        let (mut pages, mut after) = (Vec::new(), None);
        loop {
            let page = store.records(&filter, after, 7).await.unwrap();
            assert!(page.len() <= 7);
            let Some(last) = page.last() else { break };
            after = Some(last.opening.id);
            pages.extend(page);
        }
        assert_eq!(pages, expected, "{filter:?}");
    }
}

#[rstest]
#[tokio::test]
async fn whole_days_are_forgotten_and_stay_so(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    let (store, records) = filled(&home).await;
    let third_day_ms = (DAY + 2) * DAY_MS;
    // In the midst of the third day: that stays.
    let forgotten = store.forget_before(third_day_ms + 5_000).await.unwrap();
    assert_eq!(forgotten, Forgotten { days: 2, records: 100 });
    let mut kept: Vec<UsageRecord> =
        records.iter().filter(|record| record.ending.ended_ms >= third_day_ms).cloned().collect();
    kept.sort_by_key(|record| record.opening.id);
    assert_eq!(all(&store).await, kept);
    // What comes of those days later may have been stored before.
    let again = store.put(records.clone()).await.unwrap();
    assert_eq!(again, Receipt { stored: 0, known: 100, differing: 0, forgotten: 100 });
    // An earlier time makes nothing remembered again.
    assert_eq!(store.forget_before(DAY * DAY_MS).await.unwrap(), Forgotten::default());
    assert_eq!(store.put(records).await.unwrap().forgotten, 100);
    assert_eq!(all(&store).await, kept);
}

#[rstest]
#[tokio::test]
async fn a_full_batch_is_one_batch(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    let store = home.open().await;
    assert_eq!(store.put(records(0..10_000)).await.unwrap(), receipt(10_000, 0, 0));
    assert_eq!(store.put(records(0..10_000)).await.unwrap(), receipt(0, 10_000, 0));
    let summary = store.check().await.unwrap();
    let ended_ms = |number| record(number).ending.ended_ms;
    let version = schema_version(kind);
    let expected =
        Summary { version, records: 10_000, segments: 0, first_ms: Some(ended_ms(0)), last_ms: Some(ended_ms(9_999)) };
    assert_eq!(summary, expected);
}

/// Those who store the same records at once, in any order, do not wait for each other for ever, and none is stored twice.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn many_store_the_same(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    // Each as another process would.
    let mut stores = Vec::new();
    for _ in 0..2 {
        stores.push(home.open().await);
    }
    let tasks: Vec<_> = (0_u64..8)
        .map(|task| {
            let store = stores[usize::try_from(task).unwrap() % 2].clone();
            tokio::spawn(async move {
                let mut sum = Receipt::default();
                for batch in 0..10_u64 {
                    let mut records = records(batch * 50..batch * 50 + 100);
                    if task % 2 == 1 {
                        records.reverse();
                    }
                    let receipt = store.put(records).await.unwrap();
                    assert_eq!(receipt.total(), 100);
                    sum.stored += receipt.stored;
                    sum.known += receipt.known;
                }
                sum
            })
        })
        .collect();
    let (mut stored, mut known) = (0, 0);
    for task in tasks {
        let sum = task.await.unwrap();
        stored += sum.stored;
        known += sum.known;
    }
    assert_eq!((stored, stored + known), (550, 8_000));
    let ids: BTreeSet<_> = all(&stores[0]).await.into_iter().map(|record| record.opening.id).collect();
    assert_eq!(ids.len(), 550);
}

#[rstest]
#[tokio::test]
async fn sums_without_room_are_no_sums(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    let store = home.open().await;
    store.put(records(0..2)).await.unwrap();
    change(&home, "UPDATE records SET prompt = 9223372036854775807");
    let error = store.usage(&Filter::default(), &[]).await.unwrap_err();
    assert!(matches!(error, Error::Overflow), "{error}");
}

#[rstest]
#[case::sqlite(
    Kind::Sqlite,
    "WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers LIMIT 100000) ",
    "CAST(printf('%016d', number) AS BLOB)",
    "numbers"
)]
#[case::postgres(
    Kind::Postgres,
    "",
    "convert_to(lpad(number::text, 16, '0'), 'UTF8')",
    "generate_series(1, 100000) AS number"
)]
#[tokio::test]
async fn too_many_rows_are_none(#[case] kind: Kind, #[case] with: &str, #[case] id: &str, #[case] numbers: &str) {
    let home = Home::new(kind);
    let store = home.open().await;
    store.put(records(0..1)).await.unwrap();
    // Each of a day of its own.
    let rest = "tenant, namespace, endpoint, model, version, key_id, gateway, replica, started_ms, ended_ms, stream, prompt, cached, \
                completion, outcome, adjusted";
    let insert = format!(
        "{with} INSERT INTO records (id, day, {rest}) SELECT {id}, number, {rest} FROM records, {numbers} WHERE day > 0"
    );
    change(&home, &insert);
    assert_eq!(store.usage(&Filter::default(), &[Group::Tenant]).await.unwrap()[0].requests, 100_001);
    // The first record's day is among them.
    assert_eq!(store.usage(&Filter::default(), &[Group::Day]).await.unwrap().len(), 100_000);
    change(&home, "UPDATE records SET day = -1 WHERE day = 5");
    change(&home, "UPDATE records SET key_id = 'another' WHERE day = -1");
    assert_eq!(store.usage(&Filter::default(), &[Group::Day, Group::Key]).await.unwrap().len(), 100_000);
    change(
        &home,
        "UPDATE records SET key_id = 'another' WHERE id IN (SELECT id FROM records WHERE day = 20783 LIMIT 1)",
    );
    let error = store.usage(&Filter::default(), &[Group::Day, Group::Key]).await.unwrap_err();
    assert!(matches!(error, Error::TooMany) && error.is_askers(), "{error}");
}

/// What somebody else wrote is not taken for a record.
#[rstest]
#[case::outcome("UPDATE records SET outcome = 'lost'", "outcome")]
#[case::tokens("UPDATE records SET cached = prompt + 1", "tokens")]
#[case::negative("UPDATE records SET completion = -1", "tokens")]
#[case::adjusted("UPDATE records SET adjusted = 255", "adjusted")]
#[tokio::test]
async fn what_is_no_record_is_found(
    #[values(Kind::Sqlite, Kind::Postgres)] kind: Kind,
    #[case] sql: &str,
    #[case] expected: &str,
) {
    let home = Home::new(kind);
    let store = home.open().await;
    store.put(records(0..2)).await.unwrap();
    change(&home, sql);
    let error = store.records(&Filter::default(), None, 10).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { field, .. } if field == expected), "{error}");
    // A gateway is not stuck on it: it is another record than its own.
    assert_eq!(store.put(records(0..2)).await.unwrap(), receipt(0, 0, 2));
}

#[rstest]
#[tokio::test]
async fn stores_of_other_versions_are_refused(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    let refused = async |migration| match Store::open(&home.place(), migration).await {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    };
    let error = refused(Migration::Refuse).await;
    // A file that is not there is none; a database that is there is empty.
    let known = schema_version(kind);
    assert!(
        matches!(error, Error::Older { found: 0, known: by } if by == known) || matches!(error, Error::Sqlite { .. }),
        "{error}"
    );
    drop(home.open().await);
    drop(Store::open(&home.place(), Migration::Refuse).await.unwrap());
    change(&home, "INSERT INTO schema_version (version) VALUES (99)");
    for migration in [Migration::Apply, Migration::Refuse] {
        let error = refused(migration).await;
        assert!(matches!(error, Error::Newer { found: 99, known: by } if by == known), "{error}");
    }
}

/// That of this program.
pub(crate) fn schema_version(kind: Kind) -> i32 {
    match kind {
        Kind::Sqlite => 3,
        Kind::Postgres => 4,
    }
}

/// Changes a store behind its back.
pub(crate) fn change(home: &Home, sql: &str) {
    match home {
        Home::Sqlite(folder) => {
            let connection = rusqlite::Connection::open(folder.path().join("usage.db")).unwrap();
            connection.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
            connection.execute_batch(sql).unwrap();
        }
        Home::Postgres(server, database) => server.sql(database, sql),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_one_moment_of_a_store_that_is_written_to() {
    let home = Home::new(Kind::Sqlite);
    let store = home.open().await;
    store.put(records(0..100)).await.unwrap();
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            for batch in 1..40_u64 {
                store.put(records(batch * 100..batch * 100 + 100)).await.unwrap();
            }
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("copy.db");
    // The second one replaces the first.
    for _ in 0..2 {
        store.backup(to.clone()).await.unwrap();
        let copy = Store::open(&spillway_usage::store::Place::Sqlite(to.clone()), Migration::Refuse).await.unwrap();
        let copied = copy.check().await.unwrap().records;
        assert!(copied >= 100 && copied % 100 == 0, "{copied}: batches are whole");
        drop(copy);
    }
    writing.await.unwrap();
    assert_eq!(store.check().await.unwrap().records, 4_000);
    let nowhere = store.backup(folder.path().join("no/copy.db")).await;
    assert!(nowhere.is_err());
    // One that is looked at is still one file.
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["copy.db"]);
    // It reads on, and writes nothing.
    assert_eq!(all(&store).await.len(), 4_000);
}

#[tokio::test]
async fn no_error_tells_the_password() {
    let place = spillway_usage::store::Place::Postgres {
        url: "postgres://usage:hunter2@127.0.0.1:nothing/x".to_owned(),
        authority: None,
    };
    let error = Store::open(&place, Migration::Apply).await.err().unwrap();
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
}
