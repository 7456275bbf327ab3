//! The API of the service, HTTP/1.1 and JSON: gateways post records and ask for leases, the operator posts segments of bookings that ended, people and the CLI ask for sums.
//!
//! A receipt is only given for what is durable. Every error is `{"error": "..."}` and says what to do.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, RawQuery, State};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use axum::{Router, serve};
use serde::Serialize;
use serde::de::DeserializeOwned;
use spillway_metering::lease::{Answer, Answers, Questions};
use spillway_metering::shipping::{MOST_BYTES, MOST_RECORDS, Receipt, Segments, Shipment};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::leases::{self, Leases};
use crate::metrics::Metrics;
use crate::store::{self, Store, Usage};

mod parameters;

/// Batches that are taken at once; more are refused, so that their bodies need not be kept.
const BATCHES: usize = 64;
/// Questions of one request for leases.
const MOST_QUESTIONS: usize = 10_000;
/// How long a batch may take, all tries together.
const BATCH: Duration = Duration::from_secs(45);
/// How long a report may take.
const REPORT: Duration = Duration::from_secs(150);
/// How long the store may take to say that it is there.
const PING: Duration = Duration::from_secs(3);

/// What serves.
pub struct Service {
    store: Store,
    leases: Mutex<Leases>,
    metrics: Metrics,
    start: Instant,
    batches: Semaphore,
}

impl Service {
    /// A service that starts now.
    pub fn new(store: Store, config: leases::Config) -> Arc<Self> {
        Arc::new(Self {
            store,
            leases: Mutex::new(Leases::new(config, 0)),
            metrics: Metrics::default(),
            start: Instant::now(),
            batches: Semaphore::new(BATCHES),
        })
    }

    /// Milliseconds since the start.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Asks the store whether it is there, and shows it.
    ///
    /// # Errors
    ///
    /// Why it is not.
    pub async fn probe(&self) -> Result<(), String> {
        let answer = match tokio::time::timeout(PING, self.store.ping()).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", PING.as_secs())),
        };
        self.metrics.store_up(answer.is_ok());
        answer
    }

    /// Forgets leases that nobody holds.
    pub fn tidy(&self) {
        let now_ms = self.now_ms();
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).forget(now_ms);
    }
}

/// An answer that is none.
struct Problem {
    status: StatusCode,
    text: String,
}

impl Problem {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    fn of_store(error: &store::Error) -> Self {
        if error.is_askers() {
            return Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string());
        }
        tracing::error!(%error, "the store failed");
        // What the store says is for the log: it names machines and files.
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the store does not answer as it should; try again, the log of spillway-usage says why",
        )
    }

    fn slow() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the store took too long; try again")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": self.text }).to_string();
        let answer = (self.status, [(CONTENT_TYPE, "application/json")], body);
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            return ([(RETRY_AFTER, "1")], answer).into_response();
        }
        answer.into_response()
    }
}

fn json(body: &impl Serialize) -> Response {
    match serde_json::to_string(body) {
        Ok(text) => ([(CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written; report this")
                .into_response()
        }
    }
}

fn parse<Body: DeserializeOwned>(body: Result<Bytes, BytesRejection>, what: &str) -> Result<Body, Problem> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a body has at most {MOST_BYTES} bytes: send less at once"),
        ),
        status => Problem::new(status, "the body ended before its end: send it again"),
    })?;
    serde_json::from_slice(&body)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("the body is not the JSON of {what}: {error}")))
}

async fn post_records(
    State(service): State<Arc<Service>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let shipment = |body| {
        let shipment: Shipment = parse(body, "a shipment")?;
        check_count(shipment.records.len(), "records").map(|()| shipment)
    };
    take_batch(&service, body, shipment, Metrics::stored, async |shipment| {
        let (gateway, count) = (shipment.gateway, shipment.records.len());
        let stored = service.store.put(shipment.records).await;
        match &stored {
            Ok(receipt) => tracing::debug!(%gateway, count, stored = receipt.stored, "a batch is stored"),
            Err(error) => tracing::warn!(%gateway, count, %error, "a batch was not stored"),
        }
        stored
    })
    .await
}

async fn post_segments(
    State(service): State<Arc<Service>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let segments = |body| {
        let posted: Segments = parse(body, "segments of bookings")?;
        check_count(posted.segments.len(), "segments").map(|()| posted)
    };
    take_batch(&service, body, segments, Metrics::stored_segments, async |posted| {
        let count = posted.segments.len();
        let stored = service.store.put_segments(posted).await;
        match &stored {
            Ok(receipt) => tracing::debug!(count, stored = receipt.stored, "segments are stored"),
            Err(error) => tracing::warn!(count, %error, "segments were not stored"),
        }
        stored
    })
    .await
}

fn check_count(count: usize, what: &str) -> Result<(), Problem> {
    if count <= MOST_RECORDS {
        return Ok(());
    }
    let text = format!("a batch has at most {MOST_RECORDS} {what}: send fewer at once");
    Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, text))
}

/// Stores a batch of either kind, and counts how that ended.
async fn take_batch<Posted>(
    service: &Service,
    body: Result<Bytes, BytesRejection>,
    read: impl FnOnce(Result<Bytes, BytesRejection>) -> Result<Posted, Problem>,
    count: impl FnOnce(&Metrics, &Receipt, Duration),
    store: impl AsyncFnOnce(Posted) -> Result<Receipt, store::Error>,
) -> Result<Response, Problem> {
    let stored = async {
        let Ok(_place) = service.batches.try_acquire() else {
            return Err((Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many batches at once; try again"), false));
        };
        let posted = read(body).map_err(|problem| (problem, false))?;
        let begun = Instant::now();
        let stored = tokio::time::timeout(BATCH, store(posted)).await;
        let stored = stored.map_err(|_| Problem::slow()).and_then(|one| one.map_err(|error| Problem::of_store(&error)));
        let receipt = stored.map_err(|problem| {
            let failed = problem.status == StatusCode::SERVICE_UNAVAILABLE;
            (problem, failed)
        })?;
        Ok((receipt, begun.elapsed()))
    };
    match stored.await {
        Ok((receipt, after)) => {
            count(&service.metrics, &receipt, after);
            Ok(json(&receipt))
        }
        Err((problem, failed)) => {
            if failed {
                service.metrics.failed();
            } else {
                service.metrics.refused();
            }
            Err(problem)
        }
    }
}

async fn post_leases(
    State(service): State<Arc<Service>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let Questions { gateway, needs } = parse(body, "questions for leases")?;
    if needs.len() > MOST_QUESTIONS {
        let text = format!("a request has at most {MOST_QUESTIONS} needs: send fewer at once");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, text));
    }
    let asked = needs.len();
    let (grants, scopes) = {
        let mut leases = service.leases.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock, so that it does not go back.
        let now_ms = service.now_ms();
        let answer = |question: &_| leases.answer(&gateway, question, now_ms);
        let grants: Vec<_> = needs.iter().map(answer).collect();
        (grants, leases.len())
    };
    let grants: Vec<Answer> = needs
        .into_iter()
        .zip(grants)
        .filter_map(|(question, grant)| Some(Answer { scope: question.scope, grant: grant? }))
        .collect();
    let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
    service.metrics.leased(count(grants.len()), count(asked.saturating_sub(grants.len())), scopes);
    Ok(json(&Answers { grants }))
}

/// What is posted to.
const POSTS: &str = "/v1/records, /v1/segments, /v1/leases";

/// What `/v1/usage` answers.
#[derive(Serialize)]
struct Rows {
    rows: Vec<Usage>,
}

async fn get_usage(State(service): State<Arc<Service>>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let asked = parameters::parse(query.as_deref().unwrap_or_default());
    let (filter, groups) = asked.map_err(|text| Problem::new(StatusCode::BAD_REQUEST, text))?;
    let rows = tokio::time::timeout(REPORT, service.store.usage(&filter, &groups)).await;
    let rows = rows.map_err(|_| Problem::slow())?.map_err(|error| Problem::of_store(&error))?;
    Ok(json(&Rows { rows }))
}

async fn get_gpu(State(service): State<Arc<Service>>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let asked = parameters::parse_gpu(query.as_deref().unwrap_or_default());
    let (filter, groups) = asked.map_err(|text| Problem::new(StatusCode::BAD_REQUEST, text))?;
    let usage = tokio::time::timeout(REPORT, service.store.gpu_usage(&filter, &groups)).await;
    let usage = usage.map_err(|_| Problem::slow())?.map_err(|error| Problem::of_store(&error))?;
    Ok(json(&usage))
}

async fn unknown(uri: Uri) -> Problem {
    let text = format!("there is no {}: there are POST {POSTS} and GET /v1/usage, /v1/gpu", uri.path());
    Problem::new(StatusCode::NOT_FOUND, text)
}

async fn other_method(uri: Uri) -> Problem {
    let text = format!("{} takes another method: POST {POSTS}; GET /v1/usage, /v1/gpu", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, text)
}

/// The API.
pub fn api(service: Arc<Service>) -> Router {
    Router::new()
        .route("/v1/records", post(post_records))
        .route("/v1/segments", post(post_segments))
        .route("/v1/gpu", get(get_gpu))
        .route("/v1/leases", post(post_leases))
        .route("/v1/usage", get(get_usage))
        .fallback(unknown)
        .method_not_allowed_fallback(other_method)
        .layer(DefaultBodyLimit::max(MOST_BYTES))
        .with_state(service)
}

/// `/metrics`, `/healthz` and `/readyz`.
pub fn admin(service: Arc<Service>) -> Router {
    let measured = Arc::clone(&service);
    Router::new()
        .route("/metrics", get(move || async move { measured.metrics.render() }))
        .route("/healthz", get(|| async { "ok" }))
        .route(
            "/readyz",
            get(move || async move {
                match service.probe().await {
                    Ok(()) => (StatusCode::OK, "ok".to_owned()),
                    Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("the store cannot be reached: {why}")),
                }
            }),
        )
}

/// Serves until `ended` is over and those who are being answered have their answers.
///
/// # Errors
///
/// What the socket says.
pub async fn serve_until(
    listener: TcpListener,
    app: Router,
    ended: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection delays small packets");
        }
    });
    serve(listener, app.into_make_service()).with_graceful_shutdown(ended).await
}

/// Listens there.
///
/// # Errors
///
/// What the system says.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}
