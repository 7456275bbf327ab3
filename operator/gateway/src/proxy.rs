//! A request's way through the gateway: read, authenticate, admit, and then an [exchange] with an engine, which goes on by itself and is told when
//! its client is gone (docs/adr/0011-the-shape-of-hosted-models.md).

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame};
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use spillway_metering::load::LoadReport;
use spillway_metering::tokens::{GatewayName, RequestId};
use tokio::sync::{mpsc, oneshot, watch};

use crate::admission::{Admission, Ask, Guard, Retry, Waiter};
use crate::budget::{Budget, Share};
use crate::catalogue::{Catalogue, Served};
use crate::clock::Clock;
use crate::error::ApiError;
use crate::fleet::Fleet;
use crate::keys::Key;
use crate::kv_cache::Caches;
use crate::leasing::Bell;
use crate::load::{self, Loads};
use crate::metrics::Metrics;
use crate::providers::Providers;
use crate::request::{self, Bounds, Route, check_content_type, route};
use crate::routing::BlockShape;
use crate::telemetry::Telemetry;
use crate::wal::Wal;

mod connect;
mod downstream;
mod exchange;

use connect::Connector;
use exchange::Exchange;

/// Bytes of a block of a prompt, for routing: what [`Cost::default`](crate::routing::Cost) takes 512 tokens to be.
const BLOCK_BYTES: usize = 2_048;
/// How long a request waits for a lease of limits.
const LEASE: Duration = Duration::from_millis(500);
/// The id of a request, in its answer and at the engine.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Trace context (W3C), which goes on to the engine as it came, where no trace of ours continues it.
const TRACE: [HeaderName; 2] = [HeaderName::from_static("traceparent"), HeaderName::from_static("tracestate")];

/// How long each phase of a request may take, and how much of it there may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of the body that a client sends.
    pub body: Bounds,
    /// From the head of a request until its body is there.
    pub receive: Duration,
    /// Until an engine is connected.
    pub connect: Duration,
    /// Until an engine begins its answer: with an answer in one piece, all of its work.
    pub first_byte: Duration,
    /// Between two pieces of an answer.
    pub idle: Duration,
    /// For which a client may leave an answer unread.
    pub slow_client: Duration,
    /// For which a bill may take to be durable before the answer is given up.
    pub bill: Duration,
    /// Bytes of an answer in one piece.
    pub answer_bytes: usize,
    /// For which a request waits for a replica that starts,
    pub hold: Duration,
    /// and between two signs of life for one that streams.
    pub heartbeat: Duration,
    /// How many may wait so.
    pub held: load::Bounds,
    /// Requests at once, of all tenants.
    pub requests: usize,
    /// Bytes of bodies at once, of all tenants, until their engines answer.
    pub bodies: usize,
    /// Of these, bytes of one key,
    pub bodies_of_key: usize,
    /// in so many requests.
    pub requests_of_key: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: Bounds::default(),
            receive: Duration::from_secs(60),
            connect: Duration::from_secs(2),
            first_byte: Duration::from_secs(600),
            idle: Duration::from_secs(120),
            slow_client: Duration::from_secs(20),
            bill: Duration::from_secs(30),
            answer_bytes: 64 << 20,
            hold: Duration::from_secs(300),
            heartbeat: Duration::from_secs(10),
            held: load::Bounds { of_endpoint: 512, of_tenant: 1_024, total: 4_096 },
            requests: 8_192,
            bodies: 512 << 20,
            bodies_of_key: 128 << 20,
            requests_of_key: 1_024,
        }
    }
}

/// Whether requests may begin, and go on.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Stage {
    /// They may.
    #[default]
    Serving,
    /// None may begin; those that run go on.
    Draining,
    /// They are cut off, and billed.
    Cutting,
}

/// The body of an answer.
#[derive(Debug)]
pub enum Answer {
    /// In one piece.
    Whole(Full<Bytes>),
    /// As it comes.
    Stream(mpsc::Receiver<Bytes>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Whole(body) => std::pin::Pin::new(body).poll_frame(context),
            Self::Stream(pieces) => pieces.poll_recv(context).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Stream(_) => hyper::body::SizeHint::default(),
        }
    }
}

/// What all requests share.
pub struct Gateway {
    name: GatewayName,
    limits: Limits,
    pub(crate) clock: Clock,
    pub(crate) catalogue: watch::Receiver<Arc<Catalogue>>,
    stage: watch::Receiver<Stage>,
    pub(crate) admission: Arc<Admission>,
    fleet: Fleet,
    wal: Wal,
    metrics: Metrics,
    engines: Client<Connector, Full<Bytes>>,
    providers: Arc<Providers>,
    running: AtomicUsize,
    bodies: Arc<Budget>,
    pub(crate) bell: Bell,
    loads: Arc<Loads>,
    pub(crate) caches: Caches,
    telemetry: Arc<Telemetry>,
}

/// How a connection is ended whose client does not read: put into its requests by who has it.
#[derive(Clone, Debug, Default)]
pub struct Hangup(pub Arc<tokio::sync::Notify>);

/// What a gateway is made of.
pub struct Parts {
    /// Its name, in bills.
    pub name: GatewayName,
    /// How long and how much.
    pub limits: Limits,
    /// What it knows of the cluster, whenever that changes.
    pub catalogue: watch::Receiver<Arc<Catalogue>>,
    /// Whether it goes on.
    pub stage: watch::Receiver<Stage>,
    /// Limits of keys and tenants.
    pub admission: Arc<Admission>,
    /// The engines.
    pub fleet: Fleet,
    /// Who else serves models.
    pub providers: Arc<Providers>,
    /// The log of what is billed.
    pub wal: Wal,
    /// Where requests are told of.
    pub telemetry: Arc<Telemetry>,
}

/// A request that counts as running until this is dropped.
struct Running(Arc<Gateway>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Gateway {
    /// A gateway of these parts.
    pub fn new(parts: Parts) -> Arc<Self> {
        let limits = parts.limits;
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(limits.connect));
        let engines = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            // Shorter than engines have it: some end what is idle for 5 s.
            .pool_idle_timeout(Duration::from_secs(3))
            .build(Connector(connector));
        let clock = Clock::default();
        Arc::new(Self {
            name: parts.name,
            limits,
            clock,
            catalogue: parts.catalogue,
            stage: parts.stage,
            admission: parts.admission,
            fleet: parts.fleet,
            wal: parts.wal,
            metrics: Metrics::default(),
            engines,
            providers: parts.providers,
            running: AtomicUsize::new(0),
            bodies: Budget::new(limits.bodies, limits.bodies_of_key, limits.requests_of_key),
            bell: Bell::default(),
            loads: Loads::new(clock, limits.held),
            caches: Caches::new(clock),
            telemetry: parts.telemetry,
        })
    }

    /// How many requests run.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Acquire)
    }

    /// The log of what is billed.
    pub fn wal(&self) -> &Wal {
        &self.wal
    }

    /// What `/metrics` shows.
    pub fn metrics(&self) -> String {
        self.metrics.set_aside(self.wal.aside().count());
        let (counts, log) = (self.admission.counts(), self.wal.stats());
        let mut text = self.metrics.render(&counts, &log, self.running(), self.loads.held());
        self.telemetry.render(&mut text);
        text
    }

    /// Tells whoever asks for the load once more, at once.
    pub fn farewell(&self) {
        self.loads.farewell();
    }

    /// What each endpoint has to do: when a request calls for a replica after `after` calls, or shortly.
    pub async fn load(&self, after: u64) -> LoadReport {
        self.loads.called(after).await;
        let caches = self.caches.report(&self.catalogue.borrow());
        self.loads.report(&self.name, caches)
    }

    /// The engines that the catalogue names are those to send to, from now on and whenever it changes. Runs until the catalogue is dropped.
    pub async fn follow(self: Arc<Self>) {
        let mut catalogue = self.catalogue.clone();
        loop {
            let now = Arc::clone(&catalogue.borrow_and_update());
            self.fleet.take(&now);
            for called_ms in self.loads.take(&now) {
                self.metrics.woken(Duration::from_millis(called_ms));
            }
            self.admission.retain(&now.keys, |tenant| now.limits(&tenant.into()), self.clock.now_ms());
            if catalogue.changed().await.is_err() {
                return;
            }
        }
    }

    /// Answers a request.
    pub async fn answer<Incoming>(self: Arc<Self>, request: Request<Incoming>) -> Response<Answer>
    where
        Incoming: Body<Data = Bytes> + Unpin,
    {
        let id = RequestId::from_bytes(uuid::Uuid::now_v7().into_bytes())
            .unwrap_or_else(|_| RequestId::new(self.clock.unix_ms(), [0; 10]));
        let begun = self.clock.now_ns();
        let mut response = match self.serve(id, request).await {
            Ok(response) => response,
            Err(error) => refuse(&error),
        };
        let taken = self.clock.now_ns().saturating_sub(begun);
        self.metrics.answered(response.status(), Duration::from_nanos(taken));
        if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        response
    }

    async fn serve<Incoming>(
        self: &Arc<Self>,
        id: RequestId,
        request: Request<Incoming>,
    ) -> Result<Response<Answer>, ApiError>
    where
        Incoming: Body<Data = Bytes> + Unpin,
    {
        let begun = Instant::now();
        let (head, body) = request.into_parts();
        let route = route(head.method.as_str(), head.uri.path())?;
        let catalogue = Arc::clone(&self.catalogue.borrow());
        let authorization = text(&head.headers, &AUTHORIZATION);
        let key = catalogue.keys.authenticate(authorization, self.clock.unix_ms())?;
        let endpoint = match route {
            Route::Models => return Ok(json(catalogue.list(key))),
            Route::Model(name) => {
                let entry = catalogue.entry(key, &name);
                return entry.map(json).ok_or_else(|| ApiError::model_not_found(&name));
            }
            Route::Engine(endpoint) => endpoint,
        };
        check_content_type(text(&head.headers, &CONTENT_TYPE))?;
        let running = self.begin()?;
        let refused = ApiError::Unavailable { retry_after_ms: 1_000 };
        let share = self.bodies.begin(key.id).ok_or(refused)?;
        let (body, share) = self.receive(&head.headers, body, share).await?;
        // What changed while the body came counts: a key that was revoked is not let in any more.
        let catalogue = Arc::clone(&self.catalogue.borrow());
        let key = catalogue.keys.authenticate(authorization, self.clock.unix_ms())?;
        let request = request::parse(endpoint, &body, &self.limits.body)?;
        let served =
            catalogue.resolve(key, request.model()).ok_or_else(|| ApiError::model_not_found(request.model()))?;
        if !served.capabilities.contains(&endpoint) {
            return Err(ApiError::NotCapable { path: endpoint.path() });
        }
        let candidates = catalogue.candidates(key, served).into_iter();
        let mut candidates = candidates.filter(|one| one.capabilities.contains(&endpoint));
        let served = &candidates.next().ok_or(ApiError::Residency)?;
        let fallbacks: Vec<Arc<Served>> = candidates.collect();
        let mut operation = self.telemetry.begin(begun, &head.headers, endpoint, served, request.stream());
        let admitted = self.admit(&catalogue, key, served, &request).await;
        let guard = admitted.inspect_err(|error| operation.failed(error.code()))?;
        let rates = guard.rates();
        let passed = || TRACE.iter().filter_map(|name| Some((name.clone(), head.headers.get(name)?.clone()))).collect();
        let trace = operation.trace().unwrap_or_else(passed);
        let exchange = Exchange {
            gateway: Arc::clone(self),
            id,
            served: Arc::clone(served),
            tenant: key.tenant.clone(),
            key: key.id,
            upstream: request.upstream_body(&body, &served.served_name).into(),
            // As it came, where another engine may know the model by another name.
            body: (!fallbacks.is_empty() || served.replicas.iter().any(|one| one.served_name != served.served_name))
                .then(|| body.clone()),
            upstream_name: served.served_name.clone(),
            fallbacks,
            share: Some(share),
            blocks: BlockShape { salt: 0, size: BLOCK_BYTES }.of_bytes(request.prefix(&body)),
            request,
            trace,
            hangup: head.extensions.get::<Hangup>().cloned().unwrap_or_default(),
            guard: Some(guard),
            operation,
            load: self.loads.begin((served.namespace.clone(), served.name.clone()), key.tenant.clone()),
        };
        drop(body);
        // It goes on by itself: what it used is billed whether anybody waits for it or not.
        let (head, answer) = oneshot::channel();
        let gateway = Arc::clone(self);
        tokio::spawn(async move {
            if AssertUnwindSafe(exchange.run(head)).catch_unwind().await.is_err() {
                tracing::error!(request = %id, "a request ended by a mistake of ours");
                exchange::close_by_mistake(&gateway, id).await;
            }
            drop(running);
        });
        let mut response = answer.await.unwrap_or(Err(ApiError::Upstream))?;
        insert(response.headers_mut(), rates.headers());
        Ok(response)
    }

    async fn admit(
        &self,
        catalogue: &Catalogue,
        key: &Key,
        served: &Served,
        request: &request::Request,
    ) -> Result<Guard, ApiError> {
        let ask = Ask {
            tenant: key.tenant.as_str(),
            key: key.id,
            model: served.name.as_str(),
            tenant_limits: catalogue.limits(&key.tenant),
            key_limits: key.limits,
            prompt_tokens: request.prompt_size().estimated_tokens(),
            max_completion_tokens: request.max_completion_tokens().map(u64::from),
            choices: request.choices(),
        };
        let until = tokio::time::Instant::now() + LEASE;
        let mut waiter = Waiter::default();
        loop {
            // Before it is asked for, so that no grant is missed.
            let granted = self.bell.granted.notified();
            let refusal = match self.admission.admit_waiting(self.clock.now_ms(), &ask, &mut waiter) {
                Ok(guard) => return Ok(guard),
                Err(refusal) => refusal,
            };
            if refusal.retry == Retry::Lease {
                self.bell.wanted.notify_one();
                if tokio::time::timeout_at(until, granted).await.is_ok() {
                    continue;
                }
            }
            self.admission.give_up();
            return Err(refusal.into());
        }
    }

    /// Counts a request as running, if it may.
    fn begin(self: &Arc<Self>) -> Result<Running, ApiError> {
        let refused = ApiError::Unavailable { retry_after_ms: 1_000 };
        if *self.stage.borrow() != Stage::Serving {
            return Err(refused);
        }
        let before = self.running.fetch_add(1, Ordering::AcqRel);
        let running = Running(Arc::clone(self));
        if before >= self.limits.requests { Err(refused) } else { Ok(running) }
    }

    /// The body of a request, within its bounds of size and time.
    async fn receive<Incoming>(
        &self,
        headers: &HeaderMap,
        mut body: Incoming,
        mut share: Share,
    ) -> Result<(Bytes, Share), ApiError>
    where
        Incoming: Body<Data = Bytes> + Unpin,
    {
        let limit = self.limits.body.bytes;
        let too_large = || ApiError::from(request::Error::TooLarge { limit });
        let announced = text(headers, &CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
        if announced.is_some_and(|announced| announced > limit) {
            return Err(too_large());
        }
        let receive = async {
            let mut whole = BytesMut::new();
            while let Some(frame) = body.frame().await {
                let data = frame.map_err(|_| ApiError::Incomplete)?.into_data().unwrap_or_default();
                if whole.len() + data.len() > limit {
                    return Err(too_large());
                }
                // As it came, and as it goes on.
                if !share.grow(2 * data.len()) {
                    return Err(ApiError::Unavailable { retry_after_ms: 1_000 });
                }
                if whole.is_empty() && body.is_end_stream() {
                    return Ok((data, share));
                }
                whole.extend_from_slice(&data);
            }
            Ok((whole.freeze(), share))
        };
        let limit_ms = u64::try_from(self.limits.receive.as_millis()).unwrap_or(u64::MAX);
        tokio::time::timeout(self.limits.receive, receive).await.map_err(|_| ApiError::RequestTimeout { limit_ms })?
    }
}

/// A header that is text. One that stands more than once is none: others could read another one of them.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    all.next().filter(|_| all.next().is_none()).and_then(|value| value.to_str().ok())
}

fn whole(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Response<Answer> {
    let mut response = Response::new(Answer::Whole(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn json(body: String) -> Response<Answer> {
    whole(StatusCode::OK, HeaderValue::from_static("application/json"), body)
}

/// The answer that tells of an error.
fn refuse(error: &ApiError) -> Response<Answer> {
    let mut response = json(error.body());
    *response.status_mut() = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    insert(response.headers_mut(), error.headers());
    response
}

fn insert(headers: &mut HeaderMap, more: impl IntoIterator<Item = (&'static str, String)>) {
    for (name, value) in more {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    }
}
