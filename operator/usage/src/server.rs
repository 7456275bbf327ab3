//! The API of the service, HTTP and JSON: gateways post records and ask for leases, the operator posts segments of bookings that ended; people and the CLI ask for sums, on a port of their own, since
//! whoever reads shows no certificate.
//!
//! A receipt is only given for what is durable. Every error is `{"error": "..."}` and says what to do.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequest as _, RawQuery, Request, State};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use serde::de::DeserializeOwned;
use spillway_metering::lease::{Answer, Answers, Grant, Question, Questions};
use spillway_metering::shipping::{MOST_BYTES, MOST_RECORDS, SegmentReceipt, Segments, Shipment};
use spillway_metering::tokens::GatewayName;
use tokio::sync::Semaphore;

use crate::forward::{FORWARDED, Forward};
use crate::holder::{self, Election, Step};
use crate::leases::{self, Leases};
use crate::metrics::Metrics;
use crate::store::{self, Store, Usage};

mod parameters;

/// Batches that are taken at once; more are refused, so that their bodies need not be kept.
const BATCHES: usize = 64;
/// Questions for leases that are answered at once: a gateway has one open, and those that ask another replica wait for it.
const ASKING: usize = 256;
/// How long a body may take to come.
const BODY: Duration = Duration::from_secs(20);
/// Questions of one request for leases.
const MOST_QUESTIONS: usize = 10_000;
/// How long a batch may take, all tries together.
const BATCH: Duration = Duration::from_secs(45);
/// How long a report may take.
const REPORT: Duration = Duration::from_secs(150);
/// For how long an answer of the store's holds.
const PROBED: Duration = Duration::from_secs(1);
/// How long the store may take to say that it is there.
const PING: Duration = Duration::from_secs(3);

/// Who leases, and what.
enum Leasing {
    /// We, always: nobody else has the store.
    Alone(Leases),
    /// Those of our term, if we have one.
    OneOf(Election, Option<Leases>),
}

/// What serves.
pub struct Service {
    store: Store,
    config: leases::Config,
    leasing: Mutex<Leasing>,
    forward: Option<Forward>,
    metrics: Metrics,
    start: Instant,
    batches: Semaphore,
    asking: Semaphore,
    /// How the store was last, and when. Whoever asks meanwhile waits for the one that looks.
    probed: tokio::sync::Mutex<Option<(Instant, Result<(), String>)>>,
}

impl Service {
    /// A service that starts now, alone with its store.
    pub fn new(store: Store, config: leases::Config) -> Arc<Self> {
        Self::with(store, config, Leasing::Alone(Leases::new(config, 0)), None)
    }

    /// One of several of a database. It leases once it has the seat ([`Service::lead`]), and until then asks who does.
    pub fn one_of_several(
        store: Store,
        config: leases::Config,
        holding: holder::Config,
        forward: Option<Forward>,
    ) -> Arc<Self> {
        let election = Election::new(holding, uuid::Uuid::new_v4().to_string());
        Self::with(store, config, Leasing::OneOf(election, None), forward)
    }

    fn with(store: Store, config: leases::Config, leasing: Leasing, forward: Option<Forward>) -> Arc<Self> {
        let metrics = Metrics::default();
        metrics.leases(matches!(leasing, Leasing::Alone(_)));
        Arc::new(Self {
            store,
            config,
            leasing: Mutex::new(leasing),
            forward,
            metrics,
            start: Instant::now(),
            batches: Semaphore::new(BATCHES),
            asking: Semaphore::new(ASKING),
            probed: tokio::sync::Mutex::default(),
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

    /// Asks the store whether it is there, and shows it; however many ask, it is asked once a second.
    ///
    /// # Errors
    ///
    /// Why it is not.
    pub async fn probe(&self) -> Result<(), String> {
        let mut probed = self.probed.lock().await;
        let recent = probed.as_ref().filter(|(at, _)| at.elapsed() < PROBED && self.store.is_alive());
        if let Some((_, answer)) = recent {
            return answer.clone();
        }
        let answer = match tokio::time::timeout(PING, self.store.ping()).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", PING.as_secs())),
        };
        self.metrics.store_up(answer.is_ok());
        *probed = Some((Instant::now(), answer.clone()));
        answer
    }

    /// Forgets leases that nobody holds.
    pub fn tidy(&self) {
        let now_ms = self.now_ms();
        match &mut *self.leasing() {
            Leasing::Alone(leases) | Leasing::OneOf(_, Some(leases)) => leases.forget(now_ms),
            Leasing::OneOf(_, None) => {}
        }
    }

    fn leasing(&self) -> MutexGuard<'_, Leasing> {
        self.leasing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the election, if there is one, and takes note of what came of it.
    fn elect<Done>(&self, step: impl FnOnce(&mut Election, u64) -> Done) -> Option<Done> {
        let mut leasing = self.leasing();
        // Read under the lock, so that it does not go back.
        let now_ms = self.now_ms();
        let Leasing::OneOf(election, leases) = &mut *leasing else { return None };
        let done = step(election, now_ms);
        let holds = election.holds(now_ms);
        match leases {
            None if holds => {
                tracing::info!("limits are leased here from now on");
                *leases = Some(Leases::new(self.config, now_ms));
            }
            Some(_) if !holds => {
                tracing::info!("limits are leased elsewhere from now on");
                *leases = None;
            }
            _ => {}
        }
        self.metrics.leases(holds);
        Some(done)
    }

    /// Takes the seat when it is free, and renews it. Runs without end, for one of several.
    pub async fn lead(self: Arc<Self>, config: holder::Config) {
        let Store::Postgres(store) = &self.store else { return };
        let mut ticks = tokio::time::interval(Duration::from_millis(config.look_ms));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.look(store).await {
                tracing::warn!(%error, "who leases limits is not known; it is asked again");
            }
        }
    }

    async fn look(&self, store: &store::Postgres) -> Result<(), store::Error> {
        let Some((step, me, asked_ms)) =
            self.elect(|election, now_ms| (election.step(now_ms), election.me().to_owned(), now_ms))
        else {
            return Ok(());
        };
        if step == Step::Renew {
            let is_ours = store.renew_seat(&me).await?;
            self.elect(|election, _| election.renewed(is_ours, asked_ms));
            return Ok(());
        }
        let seat = store.seat().await?;
        let Some(Some((free, asked_ms))) =
            self.elect(|election, now_ms| election.read(seat, now_ms).map(|free| (free, now_ms)))
        else {
            return Ok(());
        };
        let address = self.forward.as_ref().map_or("", |forward| forward.address.as_str());
        let is_ours = store.take_seat(&free, &me, address).await?;
        self.elect(|election, _| election.taken(is_ours, asked_ms));
        Ok(())
    }

    /// Whether limits are leased here.
    pub fn is_leasing(&self) -> bool {
        let leasing = self.leasing();
        match &*leasing {
            Leasing::Alone(_) => true,
            Leasing::OneOf(election, _) => election.holds(self.now_ms()),
        }
    }

    /// Grants nothing more, and lets another one do it at once.
    ///
    /// # Errors
    ///
    /// When the database does not hear of it: the others wait for the end of the term then.
    pub async fn leave(&self) -> Result<(), store::Error> {
        let Store::Postgres(store) = &self.store else { return Ok(()) };
        let held = self.elect(|election, now_ms| {
            let held = election.holds(now_ms);
            election.end();
            held.then(|| election.me().to_owned())
        });
        match held.flatten() {
            Some(me) => store.leave_seat(&me).await,
            None => Ok(()),
        }
    }

    /// The answers to questions; or where they are answered, as far as that is known.
    fn answer(&self, gateway: &GatewayName, needs: &[Question]) -> Result<Vec<Option<Grant>>, Option<String>> {
        let mut leasing = self.leasing();
        // Read under the lock, so that it does not go back.
        let now_ms = self.now_ms();
        let leases = match &mut *leasing {
            Leasing::Alone(leases) => leases,
            Leasing::OneOf(election, Some(leases)) if election.holds(now_ms) => leases,
            Leasing::OneOf(election, _) => return Err(election.other().map(str::to_owned)),
        };
        let grants: Vec<_> = needs.iter().map(|question| leases.answer(gateway, question, now_ms)).collect();
        let answered = grants.iter().flatten().count();
        let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        self.metrics.leased(count(answered), count(grants.len().saturating_sub(answered)), leases.len());
        Ok(grants)
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

    fn unled() -> Self {
        let text = "no service leases limits now: one does within seconds, once the one before has stopped; ask again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, text)
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

/// Takes a body, once there is a place for it.
async fn take(request: Request) -> Result<Bytes, Problem> {
    let taken = tokio::time::timeout(BODY, Bytes::from_request(request, &())).await;
    let taken: Result<Bytes, BytesRejection> = taken.map_err(|_| {
        let text = format!("the body has not come within {} s: send it again", BODY.as_secs());
        Problem::new(StatusCode::REQUEST_TIMEOUT, text)
    })?;
    taken.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a body has at most {MOST_BYTES} bytes: send less at once"),
        ),
        status => Problem::new(status, "the body ended before its end: send it again"),
    })
}

fn parse<Body: DeserializeOwned>(body: &[u8], what: &str) -> Result<Body, Problem> {
    serde_json::from_slice(body)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("the body is not the JSON of {what}: {error}")))
}

async fn post_records(State(service): State<Arc<Service>>, request: Request) -> Result<Response, Problem> {
    let shipment = |body: &[u8]| {
        let shipment: Shipment = parse(body, "a shipment")?;
        check_count(shipment.records.len(), "records").map(|()| shipment)
    };
    take_batch(&service, request, shipment, Metrics::stored, async |shipment| {
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

async fn post_segments(State(service): State<Arc<Service>>, request: Request) -> Result<Response, Problem> {
    let segments = |body: &[u8]| {
        let posted: Segments = parse(body, "segments of bookings")?;
        check_count(posted.segments.len(), "segments").map(|()| posted)
    };
    let count = |metrics: &Metrics, receipt: &SegmentReceipt, after| metrics.stored_segments(&receipt.receipt, after);
    take_batch(&service, request, segments, count, async |posted| {
        let count = posted.segments.len();
        let stored = service.store.put_segments(posted).await;
        match &stored {
            Ok(receipt) => tracing::debug!(count, stored = receipt.receipt.stored, "segments are stored"),
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
async fn take_batch<Posted, Answer: Serialize>(
    service: &Service,
    request: Request,
    read: impl FnOnce(&[u8]) -> Result<Posted, Problem>,
    count: impl FnOnce(&Metrics, &Answer, Duration),
    store: impl AsyncFnOnce(Posted) -> Result<Answer, store::Error>,
) -> Result<Response, Problem> {
    let stored = async {
        let Ok(_place) = service.batches.try_acquire() else {
            return Err((Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many batches at once; try again"), false));
        };
        let body = take(request).await.map_err(|problem| (problem, false))?;
        let posted = read(&body).map_err(|problem| (problem, false))?;
        drop(body);
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
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let Ok(_place) = service.asking.try_acquire() else {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many questions at once; ask again"));
    };
    let body = take(request).await?;
    let Questions { gateway, needs } = parse(&body, "questions for leases")?;
    if needs.len() > MOST_QUESTIONS {
        let text = format!("a request has at most {MOST_QUESTIONS} needs: send fewer at once");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, text));
    }
    let grants = match service.answer(&gateway, &needs) {
        Ok(grants) => grants,
        Err(elsewhere) if !headers.contains_key(FORWARDED) => return service.forward(elsewhere, body).await,
        Err(_) => return Err(Problem::unled()),
    };
    let grants = needs
        .into_iter()
        .zip(grants)
        .filter_map(|(question, grant)| Some(Answer { scope: question.scope, grant: grant? }))
        .collect();
    Ok(json(&Answers { grants }))
}

impl Service {
    /// Asks who leases, and gives the answer on.
    async fn forward(&self, elsewhere: Option<String>, body: Bytes) -> Result<Response, Problem> {
        let (Some(forward), Some(address)) = (&self.forward, elsewhere) else { return Err(Problem::unled()) };
        match forward.ask(&address, body).await {
            Ok((status, body)) => {
                self.metrics.forwarded(status.is_success());
                Ok((status, [(CONTENT_TYPE, "application/json")], body).into_response())
            }
            Err(error) => {
                self.metrics.forwarded(false);
                tracing::debug!(address, error, "who leases limits does not answer");
                Err(Problem::unled())
            }
        }
    }
}

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

/// What says what there is, where somebody asks for something else.
fn with_hints(app: Router<Arc<Service>>, there: &'static str) -> Router<Arc<Service>> {
    let unknown = move |uri: Uri| async move {
        Problem::new(StatusCode::NOT_FOUND, format!("there is no {} on this port: there is {there}", uri.path()))
    };
    let other_method = move |uri: Uri| async move {
        let text = format!("{} takes another method: there is {there}", uri.path());
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, text)
    };
    app.fallback(unknown).method_not_allowed_fallback(other_method)
}

/// What gateways post to.
pub fn posts(service: Arc<Service>) -> Router {
    let app = Router::new()
        .route("/v1/records", post(post_records))
        .route("/v1/segments", post(post_segments))
        .route("/v1/leases", post(post_leases));
    with_hints(app, "POST /v1/records, POST /v1/segments and POST /v1/leases")
        .layer(DefaultBodyLimit::max(MOST_BYTES))
        .with_state(service)
}

/// What is read, and changes nothing.
pub fn reports(service: Arc<Service>) -> Router {
    let app = Router::new().route("/v1/usage", get(get_usage)).route("/v1/gpu", get(get_gpu));
    with_hints(app, "GET /v1/usage and GET /v1/gpu").with_state(service)
}

/// What the admin port tells of: a service, once it has its store.
#[derive(Default)]
pub struct Front {
    service: OnceLock<Arc<Service>>,
    missing: Mutex<Option<String>>,
}

impl Front {
    /// Of a service that has its store.
    pub fn of(service: Arc<Service>) -> Arc<Self> {
        Arc::new(Self { service: OnceLock::from(service), missing: Mutex::default() })
    }

    /// The store is there.
    pub fn open(&self, service: Arc<Service>) {
        // Once.
        let _ = self.service.set(service);
    }

    /// Why it is not there yet.
    pub fn misses(&self, why: String) {
        *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    fn metrics(&self) -> String {
        self.service.get().map_or_else(|| Metrics::default().render(), |service| service.metrics.render())
    }

    fn is_alive(&self) -> bool {
        self.service.get().is_none_or(|service| service.store.is_alive())
    }

    async fn is_ready(&self) -> Result<(), String> {
        if let Some(service) = self.service.get() {
            return service.probe().await.map_err(|why| format!("the store cannot be reached: {why}"));
        }
        let why = self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Err(format!("the store is not open yet: {}", why.as_deref().unwrap_or("it is being opened")))
    }
}

/// `/metrics`, `/healthz` and `/readyz`.
pub fn admin(front: Arc<Front>) -> Router {
    let (measured, living) = (Arc::clone(&front), Arc::clone(&front));
    let away = |why: String| (StatusCode::SERVICE_UNAVAILABLE, why);
    let good = || (StatusCode::OK, "ok".to_owned());
    Router::new()
        .route("/metrics", get(move || async move { measured.metrics() }))
        .route(
            "/healthz",
            get(move || async move {
                if living.is_alive() { good() } else { away("a thread of the store has ended: start anew".to_owned()) }
            }),
        )
        .route(
            "/readyz",
            get(move || async move {
                match front.is_ready().await {
                    Ok(()) => good(),
                    Err(why) => away(why),
                }
            }),
        )
}

#[cfg(test)]
mod tests;
