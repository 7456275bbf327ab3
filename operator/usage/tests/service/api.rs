//! The API over loopback, with each store.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use rstest::rstest;
use serde_json::{Value, json};
use spillway_metering::shipping::{MOST_BYTES, Receipt, Shipment};
use spillway_metering::tokens::UsageRecord;
use spillway_usage::leases::Config;
use spillway_usage::server::{Front, Service, admin, posts, reports};
use spillway_usage::socket::{listen, serve_until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{Home, Kind, all, record, records};

/// Asks over HTTP, and waits for no longer than it takes.
#[derive(Clone)]
pub(crate) struct Http(Client<HttpConnector, Full<Bytes>>);

impl Http {
    pub(crate) fn new() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        address: SocketAddr,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<(StatusCode, String), String> {
        let request = Request::builder().method(method).uri(format!("http://{address}{path}"));
        let request = request.body(Full::new(body.into())).unwrap();
        let answer = self.0.request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok((status, String::from_utf8(body.to_vec()).unwrap()))
    }

    pub(crate) async fn ship(
        &self,
        address: SocketAddr,
        gateway: &str,
        records: Vec<UsageRecord>,
    ) -> Result<Receipt, String> {
        let body = serde_json::to_vec(&Shipment { gateway: gateway.into(), records }).unwrap();
        let (status, text) = self.send(Method::POST, address, "/v1/records", body).await?;
        if status == StatusCode::OK { Ok(serde_json::from_str(&text).unwrap()) } else { Err(text) }
    }
}

pub(crate) struct Served {
    pub(crate) api: SocketAddr,
    reports: SocketAddr,
    admin: SocketAddr,
    service: Arc<Service>,
    pub(crate) http: Http,
}

pub(crate) async fn serve(home: &Home) -> Served {
    let service = Service::new(home.open().await, Config::default());
    let mut addresses = Vec::new();
    for app in [posts(Arc::clone(&service)), reports(Arc::clone(&service)), admin(Front::of(Arc::clone(&service)))] {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        tokio::spawn(serve_until(listener, app, None, std::future::pending()));
    }
    Served { api: addresses[0], reports: addresses[1], admin: addresses[2], service, http: Http::new() }
}

impl Served {
    /// Of the port for what is asked: those that only read have their own.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: &str) -> (StatusCode, Value) {
        let port = if method == Method::GET { self.reports } else { self.api };
        let (status, text) = self.http.send(method, port, path, body.to_owned()).await.unwrap();
        (status, serde_json::from_str(&text).unwrap())
    }

    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.http.send(Method::GET, self.admin, "/metrics", "").await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("spillway_usage_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }
}

/// One batch comes from several gateways at once, several times: each record is stored once.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_comes_often_is_stored_once(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    // Two services of one store, as two replicas would be.
    let served = [serve(&home).await, serve(&home).await];
    let shippers: Vec<_> = (0_usize..8)
        .map(|shipper| {
            let (http, address) = (served[shipper % 2].http.clone(), served[shipper % 2].api);
            tokio::spawn(async move {
                let mut stored = 0;
                for _ in 0..3 {
                    let receipt = http.ship(address, &format!("gateway-{shipper}"), records(0..500)).await.unwrap();
                    assert_eq!(receipt.stored + receipt.known, 500);
                    stored += receipt.stored;
                }
                stored
            })
        })
        .collect();
    let mut stored = 0;
    for shipper in shippers {
        stored += shipper.await.unwrap();
    }
    assert_eq!(stored, 500);
    assert_eq!(all(served[0].service.store()).await, records(0..500));
    let mut counted = [0, 0];
    for one in &served {
        counted[0] += one.metric("records_total{result=\"stored\"}").await;
        counted[1] += one.metric("records_total{result=\"known\"}").await;
        assert_eq!(one.metric("batches_total{result=\"stored\"}").await, 12);
        assert_eq!(one.metric("store_seconds_count").await, 12);
    }
    assert_eq!(counted, [500, 500 * 23]);
}

#[rstest]
#[tokio::test]
async fn usage_is_given_by_groups(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    let served = serve(&home).await;
    let mut other = record(1);
    other.ending.ended_ms += 1;
    let receipt = served.http.ship(served.api, "g", [records(0..4), vec![other]].concat()).await.unwrap();
    assert_eq!(receipt, Receipt { stored: 4, known: 0, differing: 1, forgotten: 0 });
    let day = crate::DAY * 86_400_000;
    let path = format!("/v1/usage?by=day,tenant&namespace=models&from_ms={day}&to_ms={}", day + 86_400_000);
    let (status, answer) = served.ask(Method::GET, &path, "").await;
    let row = |tenant: &str, requests: u64, partial: u64, prompt: u64, cached: u64, completion: u64| {
        json!({"tenant": tenant, "dayMs": day, "requests": requests, "partial": partial, "promptTokens": prompt,
               "cachedTokens": cached, "completionTokens": completion})
    };
    let rows =
        [row("tenant-0", 2, 1, 203, 3, 23), row("tenant-1", 1, 0, 101, 1, 11), row("tenant-2", 1, 0, 102, 2, 12)];
    assert_eq!((status, answer), (StatusCode::OK, json!({ "rows": rows })));
    let (_, answer) = served.ask(Method::GET, "/v1/usage?tenant=nobody&by=model", "").await;
    assert_eq!(answer, json!({"rows": []}));
}

#[rstest]
#[case::no_json("POST", "/v1/records", "{", 400, "the body is not the JSON of a shipment: EOF")]
#[case::no_record(
    "POST",
    "/v1/records",
    r#"{"gateway":"g","records":[{"id":"x"}]}"#,
    400,
    "\"x\" is not a UUID of version 7"
)]
#[case::no_questions("POST", "/v1/leases", "[]", 400, "the body is not the JSON of questions for leases")]
#[case::no_parameter("GET", "/v1/usage?month=5", "", 400, "there is no parameter \"month\": there are tenant,")]
#[case::no_path(
    "GET",
    "/v1/bills",
    "",
    404,
    "there is no /v1/bills on this port: there is GET /v1/usage and GET /v1/gpu"
)]
#[case::nothing_is_posted_to_the_port_of_reports("GET", "/v1/records", "", 404, "there is no /v1/records on this port")]
#[case::nothing_is_read_from_the_other(
    "POST",
    "/v1/usage",
    "",
    404,
    "there is POST /v1/records, POST /v1/segments and POST /v1/leases"
)]
#[case::no_method("PUT", "/v1/records", "", 405, "/v1/records takes another method")]
#[tokio::test]
async fn errors_say_what_to_do(
    #[case] method: Method,
    #[case] path: &str,
    #[case] body: &str,
    #[case] status: u16,
    #[case] expected: &str,
) {
    let home = Home::new(Kind::Sqlite);
    let served = serve(&home).await;
    let (answered, answer) = served.ask(method, path, body).await;
    let text = answer["error"].as_str().unwrap();
    assert_eq!(answered.as_u16(), status);
    assert!(text.contains(expected), "{text}");
}

#[tokio::test]
async fn batches_have_bounds() {
    let home = Home::new(Kind::Sqlite);
    let served = serve(&home).await;
    let (status, answer) = served.ask(Method::POST, "/v1/records", &" ".repeat(MOST_BYTES + 1)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("4194304 bytes"), "{answer}");
    let mut small = record(0);
    small.opening.replica = "r".into();
    let body = serde_json::to_string(&Shipment { gateway: "g".into(), records: vec![small.clone(); 10_001] }).unwrap();
    assert!(body.len() < MOST_BYTES, "{}: or the other bound would be seen", body.len());
    let (status, answer) = served.ask(Method::POST, "/v1/records", &body).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("10000 records"), "{answer}");
    assert_eq!(all(served.service.store()).await, []);
    assert_eq!(served.metric("batches_total{result=\"refused\"}").await, 2);
    // A name that no store takes: the gateway is told which record.
    small.opening.key = "\0".into();
    let body = serde_json::to_string(&Shipment { gateway: "g".into(), records: vec![small] }).unwrap();
    let (status, answer) = served.ask(Method::POST, "/v1/records", &body).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(answer["error"].as_str().unwrap().starts_with("the key of record "), "{answer}");
}

/// A connection that asks nothing is let go, on each port.
#[tokio::test]
async fn who_says_nothing_is_let_go() {
    let home = Home::new(Kind::Sqlite);
    let served = serve(&home).await;
    let mut silent = Vec::new();
    for port in [served.api, served.reports, served.admin] {
        let mut caller = TcpStream::connect(port).await.unwrap();
        silent.push(tokio::spawn(async move { caller.read(&mut [0]).await }));
    }
    for caller in silent {
        let ended =
            tokio::time::timeout(std::time::Duration::from_secs(25), caller).await.expect("it is kept").unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
}

/// So many callers whose body has only begun.
async fn begin(served: &Served, path: &str, count: usize) -> Vec<TcpStream> {
    let mut callers = Vec::new();
    for _ in 0..count {
        let mut caller = TcpStream::connect(served.api).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: usage\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{{"
        );
        caller.write_all(head.as_bytes()).await.unwrap();
        callers.push(caller);
    }
    callers
}

/// Who has a place may send a body, and who has none is told before it has sent it: so no more bodies are kept than there are places.
#[tokio::test]
async fn a_batch_has_its_place_before_its_body() {
    let home = Home::new(Kind::Sqlite);
    let served = serve(&home).await;
    let mut callers = begin(&served, "/v1/records", 70).await;
    let bound = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while served.metric("batches_total{result=\"refused\"}").await < 6 {
        assert!(std::time::Instant::now() < bound, "those without a place are not told");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let mut refused = 0;
    for caller in &mut callers {
        let mut answer = [0; 12];
        if let Ok(Ok(_)) =
            tokio::time::timeout(std::time::Duration::from_millis(100), caller.read_exact(&mut answer)).await
        {
            assert_eq!(&answer, b"HTTP/1.1 503");
            refused += 1;
        }
    }
    assert_eq!(refused, 6, "64 have places");
    assert!(served.http.ship(served.api, "g", records(0..1)).await.unwrap_err().contains("too many batches"));
    // Who goes away leaves its place.
    callers.truncate(30);
    while served.http.ship(served.api, "g", records(0..1)).await.is_err() {
        assert!(std::time::Instant::now() < bound, "places are not given back");
    }
}

/// So it is with questions for leases.
#[tokio::test]
async fn a_question_has_its_place_before_its_body() {
    let home = Home::new(Kind::Sqlite);
    let served = serve(&home).await;
    let question = r#"{"gateway":"g","needs":[]}"#;
    let mut callers = begin(&served, "/v1/leases", 256).await;
    let bound = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let ask = async || served.ask(Method::POST, "/v1/leases", question).await.0;
    while ask().await != StatusCode::SERVICE_UNAVAILABLE {
        assert!(std::time::Instant::now() < bound, "there is a place still");
    }
    callers.truncate(200);
    while ask().await != StatusCode::OK {
        assert!(std::time::Instant::now() < bound, "places are not given back");
    }
}

#[tokio::test]
async fn leases_are_granted() {
    let home = Home::new(Kind::Sqlite);
    let served = serve(&home).await;
    let none = json!({"requests": 0, "tokens": 0});
    let need = json!({"sequence": 1, "held": none, "returned": none, "want": {"requests": 1, "tokens": 10}, "least": none,
                      "slots": 1, "leastSlots": 0});
    let body = json!({"gateway": "g/1", "needs": [
        {"tenant": "acme", "key": "k1", "limits": {"tokensPerMinute": 60_000_000}, "need": need},
        {"tenant": "acme", "limits": {"concurrency": 5}, "need": need},
    ]});
    // A token a microsecond: there are ten by now or soon.
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    let (status, answer) = served.ask(Method::POST, "/v1/leases", &body.to_string()).await;
    let granted = json!({"tenant": "acme", "key": "k1", "grant": {"sequence": 1, "block": {"requests": 0, "tokens": 10},
                         "slots": 1, "validMs": 10_000, "retryAfterMs": 0}});
    // Slots of before the start may still be used.
    assert_eq!((status, answer), (StatusCode::OK, json!({"grants": [granted]})));
    assert_eq!(served.metric("leases_granted_total").await, 1);
    assert_eq!(served.metric("leases_unanswered_total").await, 1);
    assert_eq!(served.metric("lease_scopes").await, 1);
}

#[rstest]
#[tokio::test]
async fn it_is_ready_while_its_store_answers(#[values(Kind::Sqlite, Kind::Postgres)] kind: Kind) {
    let home = Home::new(kind);
    let served = serve(&home).await;
    let ready = async || served.http.send(Method::GET, served.admin, "/readyz", "").await.unwrap();
    assert_eq!(ready().await, (StatusCode::OK, "ok".to_owned()));
    assert_eq!(served.metric("store_up").await, 1);
    crate::contract::change(&home, "ALTER TABLE records RENAME TO elsewhere");
    let (status, text) = served.http.send(Method::GET, served.reports, "/v1/usage", "").await.unwrap();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!text.contains("elsewhere") && text.contains("try again"), "{text}");
    assert!(served.http.ship(served.api, "g", records(0..1)).await.is_err());
    assert_eq!(served.metric("batches_total{result=\"failed\"}").await, 1);
    let (status, _) = served.http.send(Method::GET, served.admin, "/healthz", "").await.unwrap();
    assert_eq!(status, StatusCode::OK);
}
