//! The binary: killed while gateways ship to it, asked to end, and its subcommands.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::Method;
use spillway_usage::store::{Migration, Place, Store};

use crate::api::Http;
use crate::{Home, Kind, all, now_ms, record, records};

const PROGRAM: &str = env!("CARGO_BIN_EXE_spillway-usage");

struct Service {
    child: Child,
    api: SocketAddr,
    admin: SocketAddr,
}

impl Service {
    fn start(path: &Path) -> Self {
        Self::run(Command::new(PROGRAM).arg("--sqlite").arg(path))
    }

    /// One of several of a database.
    fn of_database(url: &str) -> Self {
        Self::run(Command::new(PROGRAM).env("SPILLWAY_USAGE_POSTGRES", url).args(["--advertise", "127.0.0.1"]))
    }

    fn run(command: &mut Command) -> Self {
        let mut child = command
            .args(["--listen", "127.0.0.1:0", "--reports", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .env("RUST_LOG", "info")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (api, admin) = loop {
            let line = lines.next().expect("it serves before it ends").unwrap();
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            let address = |field: &str| line["fields"][field].as_str().map(|text| text.parse().unwrap());
            if let (Some(api), Some(admin)) = (address("address"), address("admin")) {
                break (api, admin);
            }
        };
        // So that it does not stop when nobody reads what it says.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, api, admin }
    }

    async fn is_leasing(&self, http: &Http) -> bool {
        let (_, text) = http.send(Method::GET, self.admin, "/metrics", "").await.unwrap();
        text.lines().any(|line| line == "spillway_usage_leasing 1")
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Four gateways ship batches, and again what was not acknowledged; the service is killed twenty times.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_kill() {
    const KILLS: u64 = 20;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("usage.db");
    let address = Arc::new(Mutex::new(None::<SocketAddr>));
    let over = Arc::new(AtomicBool::new(false));
    let gateways: Vec<_> = (0_u64..4)
        .map(|gateway| {
            let (address, over) = (Arc::clone(&address), Arc::clone(&over));
            tokio::spawn(async move {
                let http = Http::new();
                let first = gateway * 1_000_000;
                let (mut next, mut again, mut known) = (first, 0_u32, 0);
                while !over.load(Ordering::Relaxed) {
                    let Some(address) = *address.lock().unwrap() else {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                        continue;
                    };
                    match http.ship(address, &format!("gateway-{gateway}"), records(next..next + 25)).await {
                        Ok(receipt) => {
                            assert_eq!((receipt.total(), receipt.differing), (25, 0));
                            known += receipt.known;
                            next += 25;
                        }
                        Err(_) => again += 1,
                    }
                }
                (first..next, again, known)
            })
        })
        .collect();
    let mut stored_before = 0;
    for kill in 0..KILLS {
        let service = Service::start(&path);
        *address.lock().unwrap() = Some(service.api);
        tokio::time::sleep(Duration::from_millis(60 + (kill * 37) % 90)).await;
        *address.lock().unwrap() = None;
        service.kill();
        let store = Store::open(&Place::Sqlite(path.clone()), Migration::Refuse).await.unwrap();
        let stored = store.check().await.unwrap().records;
        assert!(stored >= stored_before, "{stored} of {stored_before}");
        stored_before = stored;
    }
    over.store(true, Ordering::Relaxed);
    let (mut acknowledged, mut again, mut known) = (Vec::new(), 0, 0);
    for gateway in gateways {
        let (numbers, more, had) = gateway.await.unwrap();
        assert!(!numbers.is_empty());
        acknowledged.push(numbers);
        again += more;
        known += had;
    }
    let store = Store::open(&Place::Sqlite(path), Migration::Refuse).await.unwrap();
    let found = all(&store).await;
    // What was acknowledged, and at most one batch of each gateway that was stored and not acknowledged.
    let mut numbers: Vec<u64> = acknowledged.iter().cloned().flatten().collect();
    println!(
        "{} records acknowledged in {KILLS} lives, {again} batches shipped again, {known} records of them had been stored",
        numbers.len()
    );
    for last in acknowledged.iter().map(|numbers| numbers.end) {
        if found.contains(&record(last)) {
            numbers.extend(last..last + 25);
        }
    }
    let mut expected: Vec<_> = numbers.into_iter().map(record).collect();
    expected.sort_by_key(|record| record.opening.id);
    assert!(found == expected, "{} stored, {} expected", found.len(), expected.len());
    assert!(again > 0, "no batch was hit by a kill");
}

#[tokio::test]
async fn it_ends_when_it_is_asked_to() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("usage.db");
    let mut service = Service::start(&path);
    let http = Http::new();
    assert_eq!(http.ship(service.api, "g", records(0..5)).await.unwrap().stored, 5);
    let (status, _) = http.send(Method::GET, service.admin, "/readyz", "").await.unwrap();
    assert_eq!(status.as_u16(), 200);
    let begun = now_ms();
    let pid = service.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let status = tokio::task::spawn_blocking(move || service.child.wait().unwrap()).await.unwrap();
    assert!(status.success(), "{status}");
    assert!(now_ms() - begun < 10_000);
}

/// A database that is away when the service starts is waited for, however long, and meanwhile the service is alive and not ready.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_waited_for_at_the_start() {
    let server = std::sync::Arc::new(crate::postgres::Server::start());
    let database = server.new_database();
    let url = server.url(&database);
    let control = async |start: bool| {
        let server = std::sync::Arc::clone(&server);
        let run = move || if start { server.start_again() } else { server.stop_immediately() };
        tokio::task::spawn_blocking(run).await.unwrap();
    };
    control(false).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut child = Command::new(PROGRAM)
        .env("SPILLWAY_USAGE_POSTGRES", &url)
        .args(["--listen", "127.0.0.1:0", "--reports", "127.0.0.1:0", "--admin", &free.to_string()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let http = Http::new();
    let asked = async |path: &str| http.send(Method::GET, free, path, "").await.map(|(status, _)| status.as_u16());
    // Longer than a step is tried again.
    let end = std::time::Instant::now() + Duration::from_secs(24);
    let mut unready = 0;
    while std::time::Instant::now() < end {
        assert_eq!(child.try_wait().unwrap(), None, "it gave up");
        unready += u32::from(asked("/readyz").await == Ok(503) && asked("/healthz").await == Ok(200));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(unready > 50, "it tells that it lives {unready} times");
    let (_, text) = http.send(Method::GET, free, "/metrics", "").await.unwrap();
    assert!(text.contains("spillway_usage_store_up 0"), "{text}");
    control(true).await;
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while asked("/readyz").await != Ok(200) {
        assert!(std::time::Instant::now() < end, "it does not take up the database");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Processes of one database, with the terms that they have in a cluster: one that is told to end leaves its seat, one that is killed loses it.
#[tokio::test(flavor = "multi_thread")]
async fn another_process_leases_when_one_ends() {
    let home = Home::new(Kind::Postgres);
    let Place::Postgres { url, .. } = home.place() else { panic!("a database") };
    let http = Http::new();
    let leases = async |service: &Service, within: Duration| {
        let begun = std::time::Instant::now();
        while !service.is_leasing(&http).await {
            assert!(begun.elapsed() < within, "it does not lease within {within:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        begun.elapsed()
    };
    let questions = r#"{"gateway":"g","needs":[]}"#;
    let asked =
        async |service: &Service| http.send(Method::POST, service.api, "/v1/leases", questions).await.unwrap().0;
    let first = Service::of_database(&url);
    leases(&first, Duration::from_secs(5)).await;
    let second = Service::of_database(&url);
    let begun = std::time::Instant::now();
    while asked(&second).await != 200 {
        assert!(begun.elapsed() < Duration::from_secs(5), "it does not ask the other");
    }
    assert!(!second.is_leasing(&http).await && first.is_leasing(&http).await);
    let terminated = Command::new("kill").args(["-TERM", &first.child.id().to_string()]).status().unwrap();
    assert!(terminated.success());
    let took = leases(&second, Duration::from_secs(5)).await;
    println!("after SIGTERM another process leases within {took:?}");
    first.kill();
    let third = Service::of_database(&url);
    second.kill();
    let took = leases(&third, Duration::from_secs(25)).await;
    println!("after SIGKILL another process leases within {took:?}");
    assert!(took > Duration::from_secs(8), "{took:?}: what was killed might have gone on for its term");
    assert_eq!(asked(&third).await, 200);
    third.kill();
}

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).env_remove("SPILLWAY_USAGE_POSTGRES").output().unwrap()
}

#[test]
fn subcommands_of_a_file() {
    let home = tempfile::tempdir().unwrap();
    let (store, copy) = (home.path().join("usage.db"), home.path().join("copy.db"));
    let (store, copy) = (store.to_str().unwrap(), copy.to_str().unwrap());
    let said = |output: &Output| String::from_utf8(output.stdout.clone()).unwrap();
    assert!(!run(&["check", "--sqlite", store]).status.success(), "there is none yet");
    let empty = "schema version 3, 0 records, from - to - ms; 0 segments of bookings\n";
    assert_eq!(said(&run(&["migrate", "--sqlite", store])), empty);
    assert_eq!(said(&run(&["--sqlite", store, "check"])), empty);
    let backup = run(&["backup", "--sqlite", store, "--to", copy]);
    assert!(backup.status.success(), "{}", String::from_utf8_lossy(&backup.stderr));
    assert_eq!(said(&run(&["check", "--sqlite", copy])), empty);
    let imported = run(&["import", "--sqlite", store, "--from", copy]);
    assert!(
        imported.status.success() && said(&imported).starts_with("records: 0 stored, 0 were there"),
        "{imported:?}"
    );
    let missing = run(&["import", "--sqlite", store, "--from", "/nowhere/usage.db"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("opening /nowhere/usage.db"), "{missing:?}");
    // A file that is damaged is told of.
    let mut bytes = std::fs::read(copy).unwrap();
    let length = bytes.len();
    bytes[length / 2..].fill(0x5a);
    std::fs::write(copy, bytes).unwrap();
    assert!(!run(&["check", "--sqlite", copy]).status.success());
}

#[test]
fn subcommands_of_a_database() {
    let home = Home::new(Kind::Postgres);
    let Place::Postgres { url, .. } = home.place() else { panic!("a database") };
    let run = |arguments: &[&str]| {
        Command::new(PROGRAM).args(arguments).env("SPILLWAY_USAGE_POSTGRES", &url).output().unwrap()
    };
    let error = String::from_utf8(run(&["check"]).stderr).unwrap();
    assert!(error.contains("run `spillway-usage migrate`"), "{error}");
    assert!(run(&["migrate"]).status.success());
    assert_eq!(run(&["check"]).stdout, b"schema version 4, 0 records, from - to - ms; 0 segments of bookings\n");
    let error = String::from_utf8(run(&["backup", "--to", "/tmp/nowhere"]).stderr).unwrap();
    assert!(error.contains("pg_dump"), "{error}");
}

#[test]
fn help_shows_no_secret() {
    let output =
        Command::new(PROGRAM).arg("--help").env("SPILLWAY_USAGE_POSTGRES", "postgres://u:hunter2@h/d").output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(text.contains("Examples:") && !text.contains("hunter2"), "{text}");
    let none = run(&[]);
    assert!(String::from_utf8_lossy(&none.stderr).contains("Say --sqlite PATH"));
}
