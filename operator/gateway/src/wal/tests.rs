//! Whatever happens to a log (a kill, a loss of power, a full or failing disk, a bit that flips), what was said to be
//! durable is found again, once, and what cannot be believed is refused.

mod disks;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use proptest::collection::vec;
use proptest::prelude::*;
use rstest::rstest;
use spillway_metering::tokens::{
    Adjustment, Adjustments, Cause, Entry, MOST_TOKENS, Outcome, Tokens, UsageRecord, bills,
};
use tempfile::TempDir;

use self::disks::{Faulty, Powered, Slow};
use super::frame::{Header, Kind, Read};
use super::*;

fn id(number: u32) -> RequestId {
    let [a, b, c, d] = number.to_be_bytes();
    RequestId::new(1_700_000_000_000, [0, 0, 0, 0, 0, 0, a, b, c, d])
}

fn opening(number: u32) -> Opening {
    Opening {
        id: id(number),
        tenant: "acme".into(),
        namespace: "acme-serving".into(),
        endpoint: "chat".into(),
        model: "llama-3.3-70b-instruct".into(),
        version: "v3".into(),
        key: "k-7f3a9c21".into(),
        gateway: "gateway-0".into(),
        replica: "chat-v3-5d8f7c9b4-x2x7k".into(),
        started_ms: 1_000,
        stream: true,
    }
}

fn tokens(completion: u64) -> Tokens {
    Tokens::new(10, 4, completion).unwrap()
}

fn mark(number: u32, completion: u64) -> Mark {
    Mark { id: id(number), at_ms: 1_500, tokens: tokens(completion) }
}

fn ending(completion: u64) -> Ending {
    Ending { ended_ms: 2_000, tokens: tokens(completion), outcome: Outcome::Complete, adjusted: Adjustments::default() }
}

fn bill(number: u32, completion: u64) -> UsageRecord {
    UsageRecord::new(opening(number), ending(completion))
}

fn crash_bill(number: u32, last: Option<u64>) -> UsageRecord {
    let mark = last.map(|last| mark(number, last));
    UsageRecord::new(opening(number), Ending::of_crash(1_000, mark.as_ref()))
}

fn config(directory: &Path, durability: Durability) -> Config {
    Config { segment_bytes: LEAST_SEGMENT_BYTES, ..Config::new(directory, durability, 1 << 20) }
}

fn process(directory: &TempDir) -> Config {
    config(directory.path(), Durability::Process)
}

fn close(wal: &Wal, number: u32, completion: u64) -> Sequence {
    wal.begin_close(id(number), ending(completion)).unwrap().blocking_recv().unwrap()
}

fn open_and_close(wal: &Wal, number: u32) -> Sequence {
    wal.open_request(&opening(number)).unwrap();
    close(wal, number, u64::from(number))
}

/// All bills that the log holds.
fn all(wal: &Wal) -> Vec<UsageRecord> {
    let mut reader = wal.reader();
    let mut records = Vec::new();
    while let Some(shipment) = reader.next(7).unwrap() {
        assert!((1..=7).contains(&shipment.records.len()));
        records.extend(shipment.records);
    }
    records
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
    files.sort();
    files
}

fn size(directory: &Path) -> u64 {
    files(directory).iter().map(|path| fs::metadata(path).map_or(0, |metadata| metadata.len())).sum()
}

fn copy(from: &Path, to: &Path) {
    for file in files(to) {
        fs::remove_file(file).unwrap();
    }
    for file in files(from) {
        fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

fn ids(records: &[UsageRecord]) -> Vec<RequestId> {
    records.iter().map(|record| record.opening.id).collect()
}

// Frames and records.

proptest! {
    #[test]
    fn frames_are_read_as_they_were_written(payloads in vec(vec(any::<u8>(), 0..60), 1..5)) {
        let mut bytes = Vec::new();
        for payload in &payloads {
            frame::append(&mut bytes, Kind::Mark, &[&payload[..payload.len() / 2], &payload[payload.len() / 2..]]);
        }
        let mut rest = bytes.as_slice();
        for payload in &payloads {
            let length = frame::OVERHEAD + payload.len() as u64;
            prop_assert_eq!(frame::read(rest), Read::Frame { kind: Some(Kind::Mark), payload, length });
            rest = &rest[usize::try_from(length).unwrap()..];
        }
        prop_assert_eq!(frame::read(rest), Read::End);
        for cut in 1..payloads[0].len() + 9 {
            prop_assert_eq!(frame::read(&bytes[..cut]), Read::Short);
        }
    }

    #[test]
    fn a_flipped_bit_is_no_frame(payload in vec(any::<u8>(), 0..60), position in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let mut bytes = Vec::new();
        frame::append(&mut bytes, Kind::Mark, &[&payload]);
        let position = position.index(bytes.len());
        bytes[position] ^= 1_u8 << bit;
        prop_assert!(matches!(frame::read(&bytes), Read::Bad | Read::Short));
    }

    #[test]
    fn records_are_read_as_they_were_written(
        names in vec("\\PC{0,64}", 8),
        (number, started_ms, ended_ms, stream) in any::<(u32, i64, i64, bool)>(),
        (prompt, cached, completion) in (0..=MOST_TOKENS, 0..=MOST_TOKENS, 0..=MOST_TOKENS),
        (outcome, bits) in (0..8_usize, 0..64_u8),
    ) {
        let causes = [
            Cause::ClientGone, Cause::EngineFailed, Cause::Shutdown, Cause::Crash, Cause::NoUsage, Cause::Bound, Cause::Refused,
        ];
        let outcome = causes.get(outcome).map_or(Outcome::Complete, |cause| Outcome::Partial(*cause));
        let tokens = Tokens::new(prompt, cached.min(prompt), completion).unwrap();
        let [tenant, namespace, endpoint, model, version, key, gateway, replica] = names.try_into().unwrap();
        let opening = Opening {
            id: id(number), tenant: tenant.into(), namespace: namespace.into(), endpoint: endpoint.into(), model: model.into(),
            version: version.into(), key: key.into(), gateway: gateway.into(), replica: replica.into(), started_ms, stream,
        };
        let mark = Mark { id: id(number), at_ms: ended_ms, tokens };
        let bill = UsageRecord::new(opening.clone(), Ending { ended_ms, tokens, outcome, adjusted: Adjustments::from_bits(bits).unwrap() });
        let opened = record::encode_opening(&opening).unwrap();
        let closed = [opened.clone(), record::encode_ending(&bill.ending).to_vec()].concat();
        for (kind, payload, entry) in [
            (Kind::Open, opened, Entry::Open(opening)),
            (Kind::Mark, record::encode_mark(&mark).to_vec(), Entry::Mark(mark)),
            (Kind::Close, closed, Entry::Close(bill)),
        ] {
            prop_assert_eq!(record::decode(kind, &payload), Some(entry));
            prop_assert_eq!(record::decode(kind, &payload[..payload.len() - 1]), None);
            prop_assert_eq!(record::decode(kind, &[payload, vec![0]].concat()), None);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(kind in 0..3_usize, payload in vec(any::<u8>(), 0..300)) {
        let _ = frame::read(&payload);
        let _ = Header::of_payload(&payload);
        let _ = record::decode([Kind::Open, Kind::Mark, Kind::Close][kind], &payload);
    }
}

#[test]
fn zeros_are_no_frame() {
    assert_eq!(frame::read(&[0; 64]), Read::Bad);
    assert_eq!(frame::read(&[0; 8]), Read::Short);
}

/// The store and the logs of other versions read these.
#[test]
fn what_is_shipped_has_one_form() {
    let ending = Ending {
        outcome: Outcome::Partial(Cause::NoUsage),
        adjusted: [Adjustment::PromptMissing, Adjustment::CompletionMissing].into_iter().collect(),
        ..ending(64)
    };
    let record = UsageRecord::new(opening(1), ending);
    let json = serde_json::json!({
        "id": "018bcfe5-6800-7000-8000-000000000001",
        "tenant": "acme",
        "namespace": "acme-serving",
        "endpoint": "chat",
        "model": "llama-3.3-70b-instruct",
        "version": "v3",
        "key": "k-7f3a9c21",
        "gateway": "gateway-0",
        "replica": "chat-v3-5d8f7c9b4-x2x7k",
        "startedMs": 1_000,
        "stream": true,
        "endedMs": 2_000,
        "promptTokens": 10,
        "cachedTokens": 4,
        "completionTokens": 64,
        "outcome": { "partial": "no_usage" },
        "adjusted": ["prompt_missing", "completion_missing"],
    });
    assert_eq!(serde_json::to_value(&record).unwrap(), json);
    assert_eq!(serde_json::from_value::<UsageRecord>(json.clone()).unwrap(), record);
    let complete = serde_json::to_value(bill(1, 64)).unwrap();
    assert_eq!((&complete["outcome"], complete.get("adjusted")), (&serde_json::json!("complete"), None));
    let mut absurd = json;
    absurd["cachedTokens"] = 11.into();
    assert!(serde_json::from_value::<UsageRecord>(absurd).is_err());
}

#[test]
fn the_format_on_disk_is_one() {
    let mut bytes = Vec::new();
    Header { first: 7, previous: Some((3, 90)) }.append(&mut bytes);
    assert_eq!(bytes.len() as u64, frame::SEGMENT_BYTES);
    frame::append(&mut bytes, Kind::Batch, &[&34_u64.to_le_bytes()]);
    assert_eq!(bytes.len() as u64, frame::SEGMENT_BYTES + frame::BATCH_BYTES);
    frame::append(&mut bytes, Kind::Mark, &[&record::encode_mark(&mark(1, 64))]);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let header = "190000001756b97901".to_owned() + "01" + "0700000000000000" + "0300000000000000" + "5a00000000000000";
    let batch = "080000008b55cf4d02".to_owned() + "2200000000000000";
    let mark = "30000000ac91bf0504".to_owned()
        + "018bcfe5680070008000000000000001"
        + "dc05000000000000"
        + "0a00000000000000"
        + "0400000000000000"
        + "4000000000000000";
    assert_eq!(hex, header + &batch + &mark);
}

// A log's life.

#[rstest]
#[case::disk(Durability::Disk)]
#[case::process(Durability::Process)]
fn what_is_open_is_billed_at_its_last_mark(#[case] durability: Durability) {
    let directory = TempDir::new().unwrap();
    let (wal, recovery) = Wal::open(config(directory.path(), durability)).unwrap();
    assert_eq!(recovery, Recovery::default());
    for number in 0..4 {
        wal.open_request(&opening(number)).unwrap();
    }
    wal.mark(&mark(1, 64)).unwrap();
    wal.mark(&mark(1, 128)).unwrap();
    wal.mark(&mark(2, 64)).unwrap();
    close(&wal, 2, 60);
    wal.open_request(&Opening { replica: "elsewhere".into(), ..opening(3) }).unwrap();
    drop(wal);

    let (wal, recovery) = Wal::open(config(directory.path(), durability)).unwrap();
    let elsewhere =
        UsageRecord { opening: Opening { replica: "elsewhere".into(), ..opening(3) }, ..crash_bill(3, None) };
    let crashed = vec![crash_bill(0, None), crash_bill(1, Some(128)), elsewhere];
    assert_eq!(recovery, Recovery { crashed: crashed.clone(), unacknowledged: 4, torn: Vec::new() });
    let expected: Vec<_> = std::iter::once(bill(2, 60)).chain(crashed).collect();
    assert_eq!(all(&wal), expected);
    drop(wal);

    // Billed once: the next start finds nothing open.
    let (wal, recovery) = Wal::open(config(directory.path(), durability)).unwrap();
    assert_eq!(recovery, Recovery { unacknowledged: 4, ..Recovery::default() });
    assert_eq!(all(&wal), expected);
}

#[test]
fn a_request_is_closed_once() {
    let directory = TempDir::new().unwrap();
    let (wal, _) = Wal::open(process(&directory)).unwrap();
    assert!(matches!(wal.mark(&mark(1, 1)), Err(Error::NotOpen { .. })));
    assert!(matches!(wal.begin_close(id(1), ending(1)), Err(Error::NotOpen { .. })));
    open_and_close(&wal, 1);
    assert!(matches!(wal.begin_close(id(1), ending(2)), Err(Error::NotOpen { .. })));
    assert!(matches!(wal.mark(&mark(1, 1)), Err(Error::NotOpen { .. })));
    assert_eq!(all(&wal), [bill(1, 1)]);
}

#[test]
fn a_name_that_does_not_fit_is_refused() {
    let directory = TempDir::new().unwrap();
    let (wal, _) = Wal::open(process(&directory)).unwrap();
    let longest = Opening { model: "m".repeat(MOST_NAME_BYTES).into(), ..opening(1) };
    wal.open_request(&longest).unwrap();
    let too_long = Opening { model: "m".repeat(MOST_NAME_BYTES + 1).into(), ..opening(2) };
    assert!(matches!(wal.open_request(&too_long), Err(Error::NameTooLong { bytes: 257 })));
    assert_eq!(wal.stats().open, 1);
}

#[rstest]
#[case::small_segments(LEAST_SEGMENT_BYTES - 1, 1 << 20)]
#[case::one_segment(LEAST_SEGMENT_BYTES, 2 * LEAST_SEGMENT_BYTES - 1)]
fn sizes_that_make_no_log_are_refused(#[case] segment_bytes: u64, #[case] limit_bytes: u64) {
    let directory = TempDir::new().unwrap();
    let config = Config { segment_bytes, limit_bytes, ..process(&directory) };
    assert!(matches!(Wal::open(config), Err(Error::Config { .. })));
}

#[test]
fn a_log_has_one_writer() {
    let directory = TempDir::new().unwrap();
    let (wal, _) = Wal::open(process(&directory)).unwrap();
    let refused = Wal::open(process(&directory)).unwrap_err();
    assert!(matches!(&refused, Error::Locked { directory: locked } if locked == directory.path()), "{refused}");
    open_and_close(&wal, 1);
    drop(wal);
    let (wal, _) = Wal::open(process(&directory)).unwrap();
    assert_eq!(all(&wal), [bill(1, 1)]);
}

#[test]
fn a_log_that_was_not_used_leaves_no_segments() {
    let directory = TempDir::new().unwrap();
    for _ in 0..3 {
        drop(Wal::open(process(&directory)).unwrap());
    }
    assert_eq!(files(directory.path()), Vec::<PathBuf>::new());
}

// Group commit.

#[test]
fn those_who_wait_together_share_a_sync() {
    let directory = TempDir::new().unwrap();
    let disk = Slow::default();
    let (wal, _) = Wal::open_on(config(directory.path(), Durability::Disk), disk.clone()).unwrap();
    for number in 0..100 {
        wal.open_request(&opening(number)).unwrap();
    }
    let started = Instant::now();
    close(&wal, 0, 0);
    assert!(started.elapsed() < LAZY_SYNC, "nobody waits for company");
    disk.hold(true);
    let before = disk.syncs();
    let mut waiting: Vec<_> = (1..50).map(|number| wal.begin_close(id(number), ending(0)).unwrap()).collect();
    while disk.syncs() == before {
        thread::yield_now();
    }
    waiting.extend((50..100).map(|number| wal.begin_close(id(number), ending(0)).unwrap()));
    thread::sleep(Duration::from_millis(20));
    assert!(waiting.iter_mut().all(|waiter| waiter.try_recv().is_err()), "nobody is told before the sync ended");
    disk.hold(false);
    for waiter in waiting {
        waiter.blocking_recv().unwrap();
    }
    let syncs = disk.syncs() - before;
    // The first close may be written alone; the rest of the first half with it or after it; then all of the other half.
    assert!(syncs <= 4, "{syncs} syncs");
}

#[test]
fn what_nobody_waits_for_is_written_at_once_and_synced_later() {
    let directory = TempDir::new().unwrap();
    let disk = Slow::default();
    let (wal, _) = Wal::open_on(config(directory.path(), Durability::Disk), disk.clone()).unwrap();
    let started = Instant::now();
    wal.open_request(&opening(1)).unwrap();
    while size(directory.path()) == 0 {
        thread::yield_now();
    }
    if started.elapsed() < LAZY_SYNC / 2 {
        assert_eq!(disk.syncs(), 0);
    }
    let mut durable = wal.durable();
    while durable.borrow_and_update().get() == 0 {
        thread::yield_now();
    }
    assert!(started.elapsed() >= LAZY_SYNC);
    assert_eq!(disk.syncs(), 1);
}

#[test]
fn a_queue_that_is_full_refuses_openings_and_marks_but_no_endings() {
    let directory = TempDir::new().unwrap();
    let disk = Slow::default();
    let config = Config { queue_bytes: 1_000, ..config(directory.path(), Durability::Disk) };
    let (wal, _) = Wal::open_on(config, disk.clone()).unwrap();
    wal.open_request(&opening(0)).unwrap();
    wal.open_request(&opening(1)).unwrap();
    disk.hold(true);
    let first = wal.begin_close(id(0), ending(0)).unwrap();
    while disk.syncs() == 0 {
        thread::yield_now();
    }
    let refused = (2..100).find_map(|number| wal.open_request(&opening(number)).err()).unwrap();
    assert!(matches!(refused, Error::Busy), "{refused}");
    assert!(matches!(wal.mark(&mark(1, 64)), Err(Error::Busy)));
    let second = wal.begin_close(id(1), ending(1)).unwrap();
    disk.hold(false);
    first.blocking_recv().unwrap();
    second.blocking_recv().unwrap();
}

// Against a model.

#[derive(Clone, Debug)]
enum Step {
    Open(u32),
    Mark(u32, u64),
    Close(u32, u64),
    /// Ships this many bills, and says so.
    Ship(usize),
    Restart,
}

fn steps(requests: u32, length: usize) -> impl Strategy<Value = Vec<Step>> {
    let number = 0..requests;
    let step = prop_oneof![
        6 => number.clone().prop_map(Step::Open),
        4 => (number.clone(), 0_u64..500).prop_map(|(number, made)| Step::Mark(number, made)),
        6 => (number, 0_u64..500).prop_map(|(number, made)| Step::Close(number, made)),
        2 => (1_usize..12).prop_map(Step::Ship),
        1 => Just(Step::Restart),
    ];
    vec(step, 0..length)
}

/// A log, what went into it, and what came out.
struct Run<F: Files + Clone> {
    config: Config,
    disk: F,
    wal: Option<Wal>,
    reader: Option<Reader>,
    log: Vec<Entry>,
    open: BTreeSet<u32>,
    /// By the rules, each request is opened once.
    seen: BTreeSet<u32>,
    stored: BTreeMap<RequestId, UsageRecord>,
    refused: usize,
}

impl<F: Files + Clone> Run<F> {
    fn new(config: Config, disk: F) -> Self {
        let mut run = Self {
            config,
            disk,
            wal: None,
            reader: None,
            log: Vec::new(),
            open: BTreeSet::new(),
            seen: BTreeSet::new(),
            stored: BTreeMap::new(),
            refused: 0,
        };
        run.start();
        run
    }

    fn wal(&self) -> &Wal {
        self.wal.as_ref().unwrap()
    }

    fn start(&mut self) -> Recovery {
        (self.reader, self.wal) = (None, None);
        let recovery = loop {
            match Wal::open_on(self.config.clone(), self.disk.clone()) {
                Ok((wal, recovery)) => {
                    self.wal = Some(wal);
                    break recovery;
                }
                // A disk that fails right at the start: the next one begins anew.
                Err(Error::Io { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        };
        self.reader = Some(self.wal().reader());
        self.log.extend(recovery.crashed.iter().cloned().map(Entry::Close));
        let crashed: BTreeSet<_> = std::mem::take(&mut self.open).into_iter().map(id).collect();
        assert!(recovery.crashed.iter().all(|bill| crashed.contains(&bill.opening.id)));
        recovery
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Open(number) => {
                if self.seen.insert(number) {
                    match self.wal().open_request(&opening(number)) {
                        Ok(()) => {
                            self.open.insert(number);
                            self.log.push(Entry::Open(opening(number)));
                        }
                        Err(Error::Full { .. } | Error::Failing { .. }) => {
                            self.seen.remove(&number);
                            self.refused += 1;
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
            }
            Step::Mark(number, made) => match self.wal().mark(&mark(number, made)) {
                Ok(()) => self.log.push(Entry::Mark(mark(number, made))),
                Err(Error::NotOpen { .. }) => assert!(!self.open.contains(&number)),
                Err(Error::Full { .. }) => {}
                Err(other) => panic!("{other}"),
            },
            Step::Close(number, made) => {
                if self.open.remove(&number) {
                    close(self.wal(), number, made);
                    self.log.push(Entry::Close(bill(number, made)));
                }
            }
            Step::Ship(most) => self.ship(most),
            Step::Restart => {
                self.start();
            }
        }
    }

    fn ship(&mut self, most: usize) {
        if let Some(shipment) = self.reader.as_mut().unwrap().next(most).unwrap() {
            self.store(shipment.records);
            self.wal().acknowledge(shipment.up_to);
        }
    }

    fn store(&mut self, records: Vec<UsageRecord>) {
        for record in records {
            let before = self.stored.insert(record.opening.id, record.clone());
            assert!(before.is_none_or(|before| before == record), "one id, one bill");
        }
    }

    /// Everything that was opened is billed once, in the store or the log.
    fn check(mut self) {
        self.start();
        while let Some(shipment) = self.reader.as_mut().unwrap().next(100).unwrap() {
            self.store(shipment.records);
        }
        let expected: BTreeMap<_, _> =
            bills(std::mem::take(&mut self.log)).into_iter().map(|bill| (bill.opening.id, bill)).collect();
        assert_eq!(self.stored, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_request_is_billed_once(steps in steps(200, 500)) {
        let directory = TempDir::new().unwrap();
        let mut run = Run::new(process(&directory), Disk);
        for step in &steps {
            run.take(step);
        }
        prop_assert_eq!(run.refused, 0);
        run.check();
    }

    /// The smallest limit: what is refused is refused when it is opened; what was opened is closed, and the files stay
    /// below the limit whatever comes.
    #[test]
    fn closing_records_always_fit(steps in steps(400, 600)) {
        let directory = TempDir::new().unwrap();
        let config = Config { limit_bytes: 2 * LEAST_SEGMENT_BYTES, ..process(&directory) };
        let limit = config.limit_bytes;
        let mut run = Run::new(config, Disk);
        for step in &steps {
            run.take(step);
            let stats = run.wal().stats();
            prop_assert!(stats.used_bytes + stats.reserved_bytes <= limit, "{:?}", stats);
            prop_assert!(size(directory.path()) <= limit);
        }
        for number in run.open.clone() {
            run.take(&Step::Close(number, 1));
        }
        prop_assert!(size(directory.path()) <= limit);
        run.check();
        prop_assert!(size(directory.path()) <= limit);
    }

    /// Any call to the file system may fail, and syncs lose what they failed to sync: nothing that was closed is lost or
    /// doubled, and the log is read again.
    #[test]
    fn a_failing_disk_loses_nothing(
        steps in steps(100, 120),
        script in vec(prop_oneof![6 => Just(0_u8), 1 => any::<u8>()], 0..150),
    ) {
        let directory = TempDir::new().unwrap();
        let disk = Faulty::default();
        let mut run = Run::new(config(directory.path(), Durability::Disk), disk.clone());
        disk.script.lock().unwrap().extend(script);
        for step in &steps {
            // A kill while the disk fails may lose what nobody was told of: see the loss of power.
            if !matches!(step, Step::Restart) {
                run.take(step);
            }
        }
        disk.script.lock().unwrap().clear();
        run.check();
    }

    /// After a loss of power at any time, every request that was closed has its bill, and whatever else is found is a crash
    /// at one of its marks.
    #[test]
    fn a_loss_of_power_loses_nothing_that_was_durable(
        steps in steps(100, 150),
        losses in vec(any::<(prop::sample::Index, u8)>(), 1..6),
    ) {
        let directory = TempDir::new().unwrap();
        let disk = Powered::new(directory.path());
        let mut run = Run::new(config(directory.path(), Durability::Disk), disk.clone());
        let losses: BTreeMap<_, _> = losses.into_iter().map(|(when, luck)| (when.index(steps.len() + 1), luck)).collect();
        for (position, step) in steps.iter().enumerate() {
            if !matches!(step, Step::Restart) {
                run.take(step);
            }
            let Some(luck) = losses.get(&position) else { continue };
            let after = TempDir::new().unwrap();
            disk.lose_power(after.path(), *luck);
            let (wal, _) = Wal::open(config(after.path(), Durability::Process)).unwrap();
            let found = all(&wal);
            let unique: BTreeMap<_, _> = found.iter().map(|bill| (bill.opening.id, bill)).collect();
            prop_assert_eq!(unique.len(), found.len());
            for entry in &run.log {
                if let Entry::Close(bill) = entry
                    && !run.stored.contains_key(&bill.opening.id)
                {
                    prop_assert_eq!(unique.get(&bill.opening.id), Some(&bill));
                }
            }
            for bill in &found {
                let id = bill.opening.id;
                let tokens = bill.ending.tokens;
                let is_mark = |entry: &&Entry| matches!(entry, Entry::Mark(mark) if mark.id == id && mark.tokens == tokens);
                let is_marked = tokens == Tokens::default() || run.log.iter().any(|entry| is_mark(&entry));
                let is_closed = run.log.contains(&Entry::Close(bill.clone()));
                let is_crash = bill.ending.outcome == Outcome::Partial(Cause::Crash);
                prop_assert!(is_closed || is_crash && is_marked, "{:?}", bill);
            }
        }
    }
}

// Files that are not as they were written.

/// A log of three segments, whose writer was killed: nothing says that its end was safe.
fn killed_log(directory: &Path) -> Vec<UsageRecord> {
    let original = TempDir::new().unwrap();
    let (wal, _) = Wal::open(process(&original)).unwrap();
    let mut number = 0;
    while files(original.path()).len() < 3
        || fs::metadata(files(original.path()).last().unwrap()).unwrap().len() < 3_000
    {
        wal.open_request(&opening(number)).unwrap();
        if number % 3 == 0 {
            wal.mark(&mark(number, 64)).unwrap();
        }
        close(&wal, number, u64::from(number));
        number += 1;
    }
    copy(original.path(), directory);
    let records = all(&wal);
    assert_eq!(records.len(), usize::try_from(number).unwrap());
    records
}

/// The bills of the closing records in the files, as a start finds them.
fn recovered(directory: &Path) -> Result<(Vec<UsageRecord>, Recovery), Error> {
    let (wal, recovery) = Wal::open(config(directory, Durability::Process))?;
    Ok((all(&wal), recovery))
}

#[test]
fn a_torn_tail_is_cut_off_at_every_offset() {
    let (directory, copied) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let records = killed_log(directory.path());
    let last = files(directory.path()).pop().unwrap();
    let whole = fs::read(&last).unwrap();
    let mut found_before = 0;
    for cut in 0..=whole.len() {
        copy(directory.path(), copied.path());
        let path = copied.path().join(last.file_name().unwrap());
        // In place: writing a file anew makes some file systems wait for the disk.
        File::options().write(true).open(&path).unwrap().set_len(cut as u64).unwrap();
        let (found, recovery) = recovered(copied.path()).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        let crashed = recovery.crashed.len();
        assert!(crashed <= 1);
        let closed = found.len() - crashed;
        assert_eq!(found[..closed], records[..closed]);
        assert!(closed >= found_before && closed <= records.len(), "more is found, the more is left");
        found_before = closed;
        for torn in &recovery.torn {
            assert_eq!(torn.path, path);
            assert_eq!(torn.offset + torn.bytes, cut as u64);
        }
    }
    assert_eq!(found_before, records.len());
}

#[test]
fn garbage_after_the_end_is_cut_off() {
    let directory = TempDir::new().unwrap();
    let records = killed_log(directory.path());
    let last = files(directory.path()).pop().unwrap();
    let mut bytes = fs::read(&last).unwrap();
    let length = bytes.len() as u64;
    bytes.extend([0; 4_096]);
    fs::write(&last, bytes).unwrap();
    let (found, recovery) = recovered(directory.path()).unwrap();
    assert_eq!(found, records);
    assert_eq!(recovery.torn, [Torn { path: last.clone(), offset: length, bytes: 4_096 }]);
    assert_eq!(fs::metadata(&last).unwrap().len(), length);
}

/// Every byte of a log, with one bit of it flipped: refused with its place; but in the very last write, where it is as a
/// torn tail is.
#[test]
fn a_flipped_bit_is_refused_with_its_place() {
    let (directory, copied) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let records = killed_log(directory.path());
    let paths = files(directory.path());
    copy(directory.path(), copied.path());
    for (number, original) in paths.iter().enumerate() {
        let path = copied.path().join(original.file_name().unwrap());
        let bytes = fs::read(original).unwrap();
        let is_last = number + 1 == paths.len();
        let last_write = if is_last { last_write(&bytes) } else { bytes.len() };
        for (position, byte) in bytes.iter().enumerate() {
            let flip = |mask: u8| {
                let file = File::options().write(true).open(&path).unwrap();
                file.write_all_at(&[byte ^ mask], position as u64).unwrap();
            };
            flip(1 << (position % 8));
            match recovered(copied.path()) {
                Err(Error::Damaged { path: said, offset, .. }) => {
                    assert!(position < last_write, "{position} of {number} is in the last write");
                    // A header is what the segment before it is held against, too.
                    assert!(
                        said == path && offset <= position as u64 || position < 34,
                        "{} at {offset}",
                        said.display()
                    );
                }
                Err(other) => panic!("{other}"),
                Ok((found, recovery)) => {
                    assert!(position >= last_write, "{position} of {number} was safe");
                    let closed = found.len() - recovery.crashed.len();
                    assert_eq!(found[..closed], records[..closed]);
                    assert_eq!(recovery.torn[0].path, path);
                    copy(directory.path(), copied.path());
                }
            }
            flip(0);
        }
    }
}

/// Where the last write begins.
fn last_write(bytes: &[u8]) -> usize {
    let (mut offset, mut last) = (0, 0);
    while let Read::Frame { kind, length, .. } = frame::read(&bytes[offset..]) {
        if kind == Some(Kind::Batch) {
            last = offset;
        }
        offset += usize::try_from(length).unwrap();
    }
    last
}

#[test]
fn after_an_orderly_end_no_flipped_bit_is_taken_for_a_torn_tail() {
    let directory = TempDir::new().unwrap();
    let (wal, _) = Wal::open(process(&directory)).unwrap();
    open_and_close(&wal, 1);
    open_and_close(&wal, 2);
    drop(wal);
    let path = files(directory.path()).pop().unwrap();
    let bytes = fs::read(&path).unwrap();
    for position in 0..last_write(&bytes) {
        let mut flipped = bytes.clone();
        flipped[position] ^= 1;
        fs::write(&path, &flipped).unwrap();
        let refused = recovery::recover(directory.path(), Durability::Process).err().unwrap();
        assert!(matches!(&refused, Error::Damaged { path: said, .. } if *said == path), "{position}: {refused}");
        assert_eq!(fs::read(&path).unwrap(), flipped, "what is refused is left as it is");
    }
}

#[rstest]
#[case::in_the_middle(1)]
#[case::the_last_but_one_of_four(2)]
fn a_missing_segment_is_refused(#[case] missing: usize) {
    let directory = TempDir::new().unwrap();
    let (wal, _) = Wal::open(process(&directory)).unwrap();
    for number in 0.. {
        open_and_close(&wal, number);
        if files(directory.path()).len() == 4 {
            break;
        }
    }
    drop(wal);
    let paths = files(directory.path());
    fs::remove_file(&paths[missing]).unwrap();
    let refused = recovered(directory.path()).unwrap_err();
    assert!(matches!(&refused, Error::Damaged { path, offset: 0, .. } if *path == paths[missing + 1]), "{refused}");
}

#[test]
fn a_file_under_another_name_is_refused() {
    let directory = TempDir::new().unwrap();
    killed_log(directory.path());
    let first = files(directory.path()).remove(0);
    fs::rename(&first, directory.path().join("copy.log")).unwrap();
    let refused = recovered(directory.path()).unwrap_err();
    assert!(
        refused.to_string().contains("copy.log is damaged at offset 0: its name is not that of a segment"),
        "{refused}"
    );
}

// Room.

#[test]
fn a_full_log_says_so_and_has_room_again_when_it_was_shipped() {
    let directory = TempDir::new().unwrap();
    let config = Config { limit_bytes: 4 * LEAST_SEGMENT_BYTES, ..process(&directory) };
    let (wal, _) = Wal::open(config).unwrap();
    let mut opened = Vec::new();
    let refused =
        (0..).find_map(|number| wal.open_request(&opening(number)).map(|()| opened.push(number)).err()).unwrap();
    assert!(refused.to_string().starts_with("the log is full: "), "{refused}");
    for number in &opened {
        close(&wal, *number, 1);
    }
    // What they were charged for writes of their own was given back: there is room for some more, and then again none.
    let next = *opened.last().unwrap() + 1;
    let (mut closed, mut number) = (opened.len(), next);
    while wal.open_request(&opening(number)).is_ok() {
        close(&wal, number, 1);
        (closed, number) = (closed + 1, number + 1);
    }
    assert!(size(directory.path()) <= 4 * LEAST_SEGMENT_BYTES);
    let mut reader = wal.reader();
    let shipment = reader.next(usize::MAX).unwrap().unwrap();
    assert_eq!(shipment.records.len(), closed);
    wal.acknowledge(shipment.up_to);
    let until = Instant::now() + Duration::from_secs(10);
    while wal.stats().segments > 1 && Instant::now() < until {
        thread::yield_now();
    }
    wal.open_request(&opening(number)).unwrap();
    assert!(wal.stats().used_bytes < 2 * LEAST_SEGMENT_BYTES);
}

#[test]
fn a_long_request_does_not_hold_the_log() {
    let directory = TempDir::new().unwrap();
    let config = Config { limit_bytes: 6 * LEAST_SEGMENT_BYTES, ..process(&directory) };
    let (wal, _) = Wal::open(config.clone()).unwrap();
    wal.open_request(&opening(0)).unwrap();
    wal.mark(&mark(0, 64)).unwrap();
    let mut reader = wal.reader();
    // Forty times what the log may hold.
    for number in 1..3_000 {
        open_and_close(&wal, number);
        if number % 16 == 0 {
            wal.acknowledge(reader.next(usize::MAX).unwrap().unwrap().up_to);
        }
    }
    drop((wal, reader));
    let (_, recovery) = Wal::open(config).unwrap();
    assert_eq!(recovery.crashed, [crash_bill(0, Some(64))]);
}

#[test]
fn what_was_acknowledged_is_not_shipped_again() {
    let directory = TempDir::new().unwrap();
    let (wal, _) = Wal::open(process(&directory)).unwrap();
    for number in 0..10 {
        open_and_close(&wal, number);
    }
    let shipment = wal.reader().next(6).unwrap().unwrap();
    assert_eq!(ids(&shipment.records), (0..6).map(id).collect::<Vec<_>>());
    wal.acknowledge(shipment.up_to);
    drop(wal);
    let (wal, recovery) = Wal::open(process(&directory)).unwrap();
    assert_eq!(recovery.unacknowledged, 4);
    assert_eq!(ids(&all(&wal)), (6..10).map(id).collect::<Vec<_>>());
    // More than there is cannot be acknowledged.
    wal.acknowledge(Sequence(u64::MAX));
    open_and_close(&wal, 10);
    assert_eq!(ids(&all(&wal)), [id(10)]);
}

// A disk that fails.

#[test]
fn while_the_disk_fails_requests_are_refused_and_those_who_wait_wait() {
    let directory = TempDir::new().unwrap();
    let disk = Faulty::default();
    let (wal, _) = Wal::open_on(config(directory.path(), Durability::Disk), disk.clone()).unwrap();
    wal.open_request(&opening(1)).unwrap();
    wal.open_request(&opening(2)).unwrap();
    close(&wal, 1, 1);
    *disk.is_broken.lock().unwrap() = true;
    let mut waiter = wal.begin_close(id(2), ending(2)).unwrap();
    while wal.stats().failing.is_none() {
        thread::yield_now();
    }
    let refused = wal.open_request(&opening(3)).unwrap_err();
    assert_eq!(refused.to_string(), "the log cannot be written now: no storage space");
    thread::sleep(Duration::from_millis(200));
    assert!(waiter.try_recv().is_err());
    *disk.is_broken.lock().unwrap() = false;
    waiter.blocking_recv().unwrap();
    assert_eq!(wal.stats().failing, None);
    wal.open_request(&opening(3)).unwrap();
    assert_eq!(all(&wal), [bill(1, 1), bill(2, 2)]);
    drop(wal);
    let (found, _) = recovered(directory.path()).unwrap();
    assert_eq!(found, [bill(1, 1), bill(2, 2), crash_bill(3, None)]);
}

#[test]
fn who_waits_when_a_failing_log_is_closed_is_not_told_that_it_is_durable() {
    let directory = TempDir::new().unwrap();
    let disk = Faulty::default();
    let (wal, _) = Wal::open_on(config(directory.path(), Durability::Disk), disk.clone()).unwrap();
    wal.open_request(&opening(1)).unwrap();
    *disk.is_broken.lock().unwrap() = true;
    let waiter = wal.begin_close(id(1), ending(1)).unwrap();
    drop(wal);
    assert!(waiter.blocking_recv().is_err());
}

// Many at once.

#[test]
fn a_reader_beside_the_writer_sees_each_bill_once() {
    const WRITERS: u32 = 4;
    const EACH: u32 = 400;
    let directory = TempDir::new().unwrap();
    let (wal, _) = Wal::open(process(&directory)).unwrap();
    let mut records = Vec::new();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let wal = &wal;
            scope.spawn(move || {
                for number in 0..EACH {
                    open_and_close(wal, writer * EACH + number);
                }
            });
        }
        let mut reader = wal.reader();
        let mut before = Sequence(0);
        while records.len() < (WRITERS * EACH) as usize {
            let Some(shipment) = reader.next(50).unwrap() else {
                thread::yield_now();
                continue;
            };
            assert!(shipment.up_to > before);
            before = shipment.up_to;
            records.extend(shipment.records);
            wal.acknowledge(shipment.up_to);
        }
        assert_eq!(reader.next(1).unwrap(), None);
    });
    let mut found = ids(&records);
    found.sort_unstable();
    assert_eq!(found, (0..WRITERS * EACH).map(id).collect::<Vec<_>>());
    let until = Instant::now() + Duration::from_secs(10);
    while wal.stats().segments > 1 && Instant::now() < until {
        thread::yield_now();
    }
    assert!(wal.stats().segments <= 1, "what was acknowledged is gone");
}

// Kills.

const CHILD: &str = "SPILLWAY_WAL_CHILD";
const KILLS: u32 = 20;

/// Not a test of its own: what [`a_kill_loses_nothing_that_was_durable`] starts and kills. Logs until then, and says what
/// is durable as soon as it is.
#[test]
fn child_of_the_kill_test() {
    let Ok(said) = std::env::var(CHILD) else { return };
    let (directory, number) = said.split_once('|').unwrap();
    let (number, durability) = number.split_once('|').unwrap();
    let first = number.parse::<u32>().unwrap() * 1_000_000;
    let durability = if durability == "disk" { Durability::Disk } else { Durability::Process };
    let (wal, _) = Wal::open(Config { limit_bytes: 1 << 30, ..config(Path::new(directory), durability) }).unwrap();
    thread::scope(|scope| {
        for lane in 0..4 {
            let wal = &wal;
            scope.spawn(move || {
                for step in 0..200_000 {
                    let number = first + lane * 200_000 + step;
                    wal.open_request(&opening(number)).unwrap();
                    if step % 4 == 0 {
                        wal.mark(&mark(number, 64)).unwrap();
                    }
                    // Some take longer than the process lives.
                    if step % 10 != 9 {
                        close(wal, number, u64::from(number));
                        println!("durable {}", id(number));
                    }
                }
            });
        }
    });
}

#[rstest]
#[case::disk("disk")]
#[case::process("process")]
fn a_kill_loses_nothing_that_was_durable(#[case] durability: &str) {
    let directory = TempDir::new().unwrap();
    let (mut durable, mut stored) = (BTreeSet::new(), BTreeMap::new());
    let mut random = 7_u64;
    let mut cut_short = 0;
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["wal::tests::child_of_the_kill_test", "--exact", "--nocapture"])
            .env(CHILD, format!("{}|{kill}|{durability}", directory.path().display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let wait = Duration::from_micros((random >> 33) % 40_000);
        let (sender, receiver) = mpsc::channel();
        let reading = thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                sender.send(line).unwrap();
            }
        });
        // Half of them are killed while they log, the others at any time, their start among them.
        let first = if kill % 2 == 0 { receiver.iter().find(|line| line.contains("durable ")) } else { None };
        thread::sleep(wait);
        // SIGKILL, to the child that was started above.
        child.kill().unwrap();
        child.wait().unwrap();
        reading.join().unwrap();
        let lines: Vec<_> = first.into_iter().chain(receiver).collect();
        let said = lines
            .iter()
            .filter_map(|line| line.split_once("durable "))
            .filter_map(|(_, id)| id.parse::<RequestId>().ok());
        durable.extend(said);

        let (wal, recovery) =
            Wal::open(Config { limit_bytes: 1 << 30, ..config(directory.path(), Durability::Process) }).unwrap();
        cut_short += recovery.crashed.len();
        let found = all(&wal);
        let unique: BTreeSet<_> = found.iter().map(|bill| bill.opening.id).collect();
        assert_eq!(unique.len(), found.len(), "nothing is doubled");
        for bill in &found {
            let before = stored.insert(bill.opening.id, bill.clone());
            assert!(before.is_none_or(|before| before == *bill), "one id, one bill");
        }
        for id in &durable {
            let bill = stored.get(id).unwrap_or_else(|| panic!("{id} was durable and is not found after kill {kill}"));
            assert_eq!(bill.ending.outcome, Outcome::Complete);
        }
        // Every other time all of it is stored, and the log forgets it.
        if kill % 4 < 2 {
            let mut reader = wal.reader();
            while let Some(shipment) = reader.next(usize::MAX).unwrap() {
                wal.acknowledge(shipment.up_to);
            }
        }
    }
    assert!(durable.len() >= 10 && cut_short > 0, "{} were durable, {cut_short} open", durable.len());
}

/// The entry of the fuzzer holds for its seeds, and for each of them with any byte changed.
#[test]
fn fuzzed() {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/log");
    let mut count = 0;
    for seed in std::fs::read_dir(seeds).unwrap() {
        let seed = std::fs::read(seed.unwrap().path()).unwrap();
        fuzz_log(&seed);
        for at in 0..seed.len() {
            for byte in [0, 1, 2, 3, 4, 5, 6, 0x7f, 0xff] {
                let mut changed = seed.clone();
                changed[at] = byte;
                fuzz_log(&changed);
            }
            fuzz_log(&seed[..at]);
        }
        count += 1;
    }
    assert!(count >= 4, "{count} seeds");
}

/// A line that is no bill, or only a part of one, stops nothing, and is kept for somebody to look at.
#[test]
fn what_is_set_aside_is_read_beside_what_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("refused.jsonl");
    let refused = |number| Refused { why: "too long a name".to_owned(), record: bill(number, 5) };
    let aside = Aside::open(folder.path()).unwrap();
    for number in 0..4 {
        aside.put(refused(number)).unwrap();
    }
    aside.put(refused(2)).unwrap();
    assert_eq!((aside.count(), aside.all()), (4, (0..4).map(refused).collect()));
    drop(aside);
    // One line is damaged, and the last one is torn.
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let damaged = format!("{}\n{}{}\n{}\n{}", lines[0], &lines[1][..9], lines[1], lines[2], &lines[3][..20]);
    std::fs::write(&file, &damaged).unwrap();
    let aside = Aside::open(folder.path()).unwrap();
    assert_eq!((aside.count(), aside.all()), (3, vec![refused(0), refused(2)]));
    // What is stored goes, and nothing else.
    aside.forget(&[refused(0).record.opening.id, refused(7).record.opening.id]).unwrap();
    aside.put(refused(8)).unwrap();
    drop(aside);
    let aside = Aside::open(folder.path()).unwrap();
    assert_eq!((aside.count(), aside.all()), (3, vec![refused(2), refused(8)]));
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(&format!("{}{}", &lines[1][..9], lines[1])), "{text}");
}
