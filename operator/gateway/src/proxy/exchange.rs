//! One request and its engine: sent, answered, and billed, whatever becomes of the client, of the engine, and of us.
//!
//! An exchange runs as a task of its own. Its client is at the other end of two channels, one for the head of the answer and one for its pieces; that
//! they are closed is how it learns that the client is gone. The last piece of an answer goes only when its bill is durable: of a stream that is the
//! one in which the last choice ends, and all after it.
//!
//! **What is billed.** What the engine says that a whole answer used. Of one that was cut off, what it said so far, or what was counted here; its prompt
//! from the first event on. Nothing where nothing came. **What counts against limits** is that, and where the client itself went away or asked for too
//! much, no less than its prompt: or whoever always hangs up would have no limits.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::connect::capture_connection;
use spillway_metering::TenantName;
use spillway_metering::tokens::{
    Adjustments, Bounds, Cause, Ending, Mark, Opening, Outcome, Reported, RequestId, Settled, Tokens, settle,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::downstream::{Downstream, Head, PIECES};
use super::{Answer, Gateway, Hangup, REQUEST_ID, Stage, connect, whole};
use crate::admission::Guard;
use crate::budget::Share;
use crate::catalogue::{Absence, FullName, Served, Target};
use crate::error::ApiError;
use crate::fleet::{Flight, Group, Verdict};
use crate::keys::KeyId;
use crate::load::Load;
use crate::request::{self, Endpoint, PromptSize};
use crate::routing::{EngineId, Prompt, Usage};
use crate::sse::{self, EVENT_BYTES_MAX, Event, EventStream, FinishReasons, Tally, TokenUsage};
use crate::telemetry::Operation;

/// Engines that a request is sent to, one after the other, while they cannot be reached or have no room.
const TRIES: usize = 3;
/// Bytes of a piece of an answer at most.
const PIECE_BYTES: usize = 64 << 10;
/// A mark is made after so many tokens,
const MARK_TOKENS: u64 = 64;
/// or so much time.
const MARK: Duration = Duration::from_secs(1);
/// Bytes of an engine's error that are read.
const ERROR_BYTES: usize = 64 << 10;
/// How long an engine may take to end a stream whose last event has come, so that its connection can be used again.
const TRAILER: Duration = Duration::from_secs(1);
/// Milliseconds until a request is worth trying again where no engine took it,
const RETRY_MS: u64 = 1_000;
/// and where the model takes longer to start than is waited for.
const WAKING_MS: u64 = 10_000;
/// How long a request that has waited for a replica leaves it alone where it does not take it.
const AGAIN: Duration = Duration::from_millis(250);
/// How often it looks for itself, whatever it is told.
const LOOK: Duration = Duration::from_secs(1);
/// Reads of an answer that is cut off, to count what the engine has produced and nobody has read.
const READY: usize = 4_096;

/// A request that was let in.
pub(super) struct Exchange {
    pub(super) gateway: Arc<Gateway>,
    pub(super) id: RequestId,
    /// Who is asked now.
    pub(super) served: Arc<Served>,
    /// Who is asked when it does not take the request.
    pub(super) fallbacks: Vec<Arc<Served>>,
    pub(super) tenant: TenantName,
    pub(super) key: KeyId,
    pub(super) request: request::Request,
    /// The engine's body, and the room that it takes; gone once an engine answers.
    pub(super) upstream: Bytes,
    /// The model's name in it.
    pub(super) upstream_name: String,
    /// The client's, where it may have to be another one for an engine.
    pub(super) body: Option<Bytes>,
    pub(super) share: Option<Share>,
    /// Hashes of the prompt's blocks.
    pub(super) blocks: Vec<u64>,
    /// Headers that go on to the engine.
    pub(super) trace: Vec<(HeaderName, HeaderValue)>,
    /// Ends the connection of a client that does not read.
    pub(super) hangup: Hangup,
    /// Until it is settled.
    pub(super) guard: Option<Guard>,
    /// That it is there, for who scales.
    pub(super) load: Load,
    /// What is told of it.
    pub(super) operation: Operation,
}

/// How long an endpoint is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Patience {
    /// As long as it may: nobody else can be asked.
    Waits,
    /// No longer than it takes the request now: others may.
    Now,
    /// Likewise, in place of another: what it says no to, that one may take.
    StandsIn,
}

/// Why an endpoint did not take a request that others may take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Passed {
    /// It has no replica, none is in reach, or none has room.
    Absent,
    /// It answered, and that it cannot.
    Failed,
}

/// How far an engine came with a request.
enum Reached {
    /// It answers.
    Answers(Flight, Box<Response<Incoming>>),
    /// None took it, or it was ended before there was an answer.
    Ended(Cause, Option<ApiError>),
}

/// How an answer ended.
struct Ended {
    outcome: Outcome,
    usage: Option<TokenUsage>,
    /// Tokens of the answer, as they were counted here.
    counted: u64,
    /// Whether the engine has begun to answer, so that it has computed the prompt.
    begun: bool,
    /// Why its choices ended.
    reasons: FinishReasons,
}

impl Ended {
    /// Of which nothing came.
    fn unused(cause: Cause) -> Self {
        let reasons = FinishReasons::default();
        Self { outcome: Outcome::Partial(cause), usage: None, counted: 0, begun: false, reasons }
    }

    fn cut(cause: Cause, tally: Tally, begun: bool) -> Self {
        let outcome = Outcome::Partial(cause);
        Self { outcome, usage: tally.usage, counted: tally.tokens, begun, reasons: tally.reasons }
    }

    fn usage(&self) -> Option<Usage> {
        self.usage.map(|usage| Usage { output_tokens: usage.completion, cached_tokens: Some(usage.cached) })
    }
}

/// A body that was read.
enum Read {
    Whole(Bytes),
    /// It is larger than allowed; what was read of it.
    TooLarge(Bytes),
    Broken,
}

/// Bills a request whose task ended by a mistake of ours, if it is open.
pub(super) async fn close_by_mistake(gateway: &Gateway, id: RequestId) {
    let ending = Ending {
        ended_ms: i64::try_from(gateway.clock.unix_ms()).unwrap_or(i64::MAX),
        tokens: Tokens::default(),
        outcome: Outcome::Partial(Cause::Crash),
        adjusted: Adjustments::default(),
    };
    // Where it was not opened, or is closed, there is nothing to bill.
    let _ = timeout(gateway.limits.bill, gateway.wal.close(id, ending)).await;
}

impl Exchange {
    pub(super) async fn run(mut self, head: Head) {
        let mut client = Downstream::Waits(head);
        let mut opened = false;
        let reached = self.reach(&mut client, &mut opened).await;
        (self.upstream, self.body) = (Bytes::new(), None);
        self.share = None;
        match reached {
            Reached::Answers(flight, response) if response.status().is_success() => {
                if self.request.stream() {
                    self.stream(flight, *response, client).await;
                } else {
                    self.whole(flight, *response, client).await;
                }
            }
            Reached::Answers(flight, response) => {
                let (status, replica) = (response.status(), flight.replica.name.clone());
                let ours = matches!(flight.replica.target, Target::Pod(_));
                let refused = is_requests_fault(status);
                // What a client got wrong says nothing of the version.
                if !refused {
                    self.load.ended(&flight.replica.version, true);
                }
                // What it says no to may be the request's fault: three of them in a row are no reason to leave an engine alone.
                flight.end(None, Verdict::Unknown);
                if !refused {
                    tracing::warn!(id = %self.id, %replica, %status, "an engine answered with an error");
                }
                self.operation.failed(if refused { "engine_refused" } else { "engine_failed" });
                let answer = refusal(*response, ours).await;
                self.close(&Ended::unused(if refused { Cause::Refused } else { Cause::EngineFailed })).await;
                if refused {
                    self.settle_prompt();
                } else {
                    self.refund();
                }
                match answer {
                    Ok((status, error)) => client.refuse(status, error),
                    Err(error) => client.fail(error),
                }
            }
            Reached::Ended(cause, error) => {
                self.operation.failed(error.as_ref().map_or("client_gone", ApiError::code));
                if opened {
                    self.close(&Ended::unused(cause)).await;
                }
                match cause {
                    // One that no engine was asked for has used nothing.
                    Cause::ClientGone | Cause::Bound if opened => self.settle_prompt(),
                    _ => self.refund(),
                }
                if let Some(error) = error {
                    client.fail(error);
                }
            }
        }
    }

    /// Sends the request to the endpoint that it names, and to others where that does not take it.
    async fn reach(&mut self, client: &mut Downstream, opened: &mut bool) -> Reached {
        let blocks = std::mem::take(&mut self.blocks);
        let prompt = Prompt { tokens: self.request.prompt_size().estimated_tokens(), blocks: &blocks };
        let fallbacks = std::mem::take(&mut self.fallbacks);
        if !fallbacks.is_empty() {
            let first = Arc::clone(&self.served);
            let failed = match self.reach_one(client, opened, &prompt, Patience::Now).await {
                Ok(reached) => return reached,
                Err(passed) => passed == Passed::Failed,
            };
            for one in fallbacks {
                // One that sleeps is not woken for another, nor kept awake by it.
                let group = self.gateway.fleet.group(&(one.namespace.clone(), one.name.clone()));
                if group.is_none_or(|group| group.is_empty()) {
                    continue;
                }
                self.turn_to(one);
                if let Ok(reached) = self.reach_one(client, opened, &prompt, Patience::StandsIn).await {
                    return reached;
                }
            }
            self.turn_to(first);
            if failed {
                // It has been asked, and would fail again.
                return Reached::Ended(Cause::EngineFailed, Some(ApiError::Upstream));
            }
        }
        let nobody = ApiError::NoReplica { retry_after_ms: RETRY_MS };
        let reached = self.reach_one(client, opened, &prompt, Patience::Waits).await;
        reached.unwrap_or(Reached::Ended(Cause::EngineFailed, Some(nobody)))
    }

    /// Another endpoint is asked: the request is a part of its load from now on.
    fn turn_to(&mut self, served: Arc<Served>) {
        if !Arc::ptr_eq(&self.served, &served) {
            self.served = served;
            self.load = self.gateway.loads.begin(self.name(), self.tenant.clone());
        }
    }

    /// Sends the request to an engine of the endpoint, and to another one where it was not taken. An error: none took it, and others may.
    async fn reach_one(
        &mut self,
        client: &mut Downstream,
        opened: &mut bool,
        prompt: &Prompt<'_>,
        patience: Patience,
    ) -> Result<Reached, Passed> {
        let gateway = Arc::clone(&self.gateway);
        let mut tried: Vec<EngineId> = Vec::new();
        let mut stage = gateway.stage.clone();
        let limit = gateway.limits.first_byte;
        let nobody = |retry_after_ms| match patience {
            Patience::Now | Patience::StandsIn => Err(Passed::Absent),
            Patience::Waits => Ok(Reached::Ended(Cause::EngineFailed, Some(ApiError::NoReplica { retry_after_ms }))),
        };
        let mut stale = false;
        let (mut tries, mut until) = (0, None);
        // Who has waited for a replica is not turned away by the first that comes.
        while tries < TRIES || until.is_some() {
            let Some(group) = gateway.fleet.group(&self.name()) else { return nobody(RETRY_MS) };
            let flight = match group.send(gateway.clock, prompt, &tried) {
                Ok(flight) => flight,
                Err(_) if group.is_empty() && patience != Patience::Waits => {
                    if patience == Patience::Now && self.served.absence == Absence::Starts {
                        self.load.call(self.served.wanted == 0);
                    }
                    return Err(Passed::Absent);
                }
                Err(_) if group.is_empty() => match self.hold(client, &mut until, None).await {
                    Ok(()) => continue,
                    Err((cause, error)) => return Ok(Reached::Ended(cause, error)),
                },
                // One that has just come may have no room for all who waited for it, or be out of reach for a moment.
                Err(wait) if until.is_some_and(|until| Instant::now() < until) => {
                    let pause = AGAIN.max(Duration::from_millis(wait.unwrap_or(0)));
                    if let Err((cause, error)) = self.hold(client, &mut until, Some(pause)).await {
                        return Ok(Reached::Ended(cause, error));
                    }
                    (tries, tried) = (0, Vec::new());
                    continue;
                }
                Err(wait) if tried.is_empty() => return nobody(wait.unwrap_or(RETRY_MS)),
                Err(_) => break,
            };
            tries += 1;
            tried.push(flight.replica.engine);
            let Some(upstream) = self.body_for(&flight) else {
                flight.end(None, Verdict::Unknown);
                continue;
            };
            let Ok(mut request) = self.upstream_request(&flight, upstream) else {
                return Ok(Reached::Ended(Cause::EngineFailed, Some(ApiError::Upstream)));
            };
            if let Target::Provider(provider) = &flight.replica.target
                && let Err(error) = gateway.providers.sign(provider, &mut request)
            {
                tracing::error!(%error, id = %self.id, endpoint = %self.served.name, "a provider cannot be asked");
                flight.end(None, Verdict::Failed);
                continue;
            }
            if let Err(error) = gateway.wal.open_request(&self.opening(&flight)) {
                tracing::warn!(%error, "a request is refused, for it could not be billed");
                let error = ApiError::Unavailable { retry_after_ms: RETRY_MS };
                return Ok(Reached::Ended(Cause::EngineFailed, Some(error)));
            }
            *opened = true;
            self.operation.sent(&self.served, &flight.replica);
            let (connection, sent) = (capture_connection(&mut request), Instant::now());
            let answer = tokio::select! {
                biased;
                () = client.closed() => return Ok(Reached::Ended(Cause::ClientGone, None)),
                () = cutting(&mut stage) => {
                    let error = ApiError::Unavailable { retry_after_ms: RETRY_MS };
                    return Ok(Reached::Ended(Cause::Shutdown, Some(error)));
                }
                answer = timeout(limit, gateway.ask(&flight.replica.target, request)) => answer,
            };
            match answer {
                // It has no room, or no model yet.
                Ok(Ok(response)) if is_busy(&flight.replica.target, response.status()) => {
                    flight.end(None, Verdict::Busy);
                }
                // What only its owner can mend is left alone for a while, and others are asked.
                Ok(Ok(response)) if is_locked(&flight.replica.target, response.status()) => {
                    let status = response.status();
                    tracing::error!(id = %self.id, endpoint = %self.served.name, %status, "a provider refuses its credentials");
                    self.load.ended(&flight.replica.version, true);
                    flight.end(None, Verdict::Failed);
                }
                Ok(Ok(response)) if patience == Patience::StandsIn && is_requests_fault(response.status()) => {
                    // It may have less context, or no tools: the one that was asked for decides.
                    flight.end(None, Verdict::Unknown);
                    return Err(Passed::Failed);
                }
                Ok(Ok(response))
                    if !response.status().is_success()
                        && !is_requests_fault(response.status())
                        && patience != Patience::Waits =>
                {
                    let (status, replica) = (response.status(), flight.replica.name.clone());
                    tracing::warn!(id = %self.id, %replica, %status, "an engine answered with an error: another endpoint is asked");
                    self.load.ended(&flight.replica.version, true);
                    flight.end(None, Verdict::Unknown);
                    return Err(Passed::Failed);
                }
                Ok(Ok(response)) => return Ok(Reached::Answers(flight, Box::new(response))),
                Ok(Err(error)) => {
                    let told = &error as &dyn std::error::Error;
                    let replica = flight.replica.name.clone();
                    // An engine may close an idle connection at any time, also just when something is sent on it.
                    if !stale && connect::was_closed(&connection, sent, &error) {
                        tracing::debug!(error = told, id = %self.id, %replica, "an engine had closed a connection");
                        flight.end(None, Verdict::Unknown);
                        stale = true;
                        tried.pop();
                        continue;
                    }
                    self.load.ended(&flight.replica.version, true);
                    flight.end(None, Verdict::Failed);
                    // What it may have begun is not begun again elsewhere.
                    if !error.is_connect() {
                        tracing::warn!(error = told, id = %self.id, %replica, "an engine went away before it answered");
                        return Ok(Reached::Ended(Cause::EngineFailed, Some(ApiError::Upstream)));
                    }
                    tracing::debug!(error = told, id = %self.id, %replica, "an engine cannot be reached");
                }
                Err(_) => {
                    self.load.ended(&flight.replica.version, true);
                    if matches!(flight.replica.target, Target::Provider(_)) {
                        flight.end(None, Verdict::Failed);
                    }
                    let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                    return Ok(Reached::Ended(Cause::Bound, Some(ApiError::UpstreamTimeout { limit_ms })));
                }
            }
        }
        nobody(RETRY_MS)
    }

    fn name(&self) -> FullName {
        (self.served.namespace.clone(), self.served.name.clone())
    }

    /// Waits for a replica, if there is to be one: until there is, or why it is not waited for any longer. `until`: when all waiting ends. With a `pause`
    /// there is one, which is left alone for so long.
    async fn hold(
        &self,
        client: &mut Downstream,
        until: &mut Option<Instant>,
        pause: Option<Duration>,
    ) -> Result<(), (Cause, Option<ApiError>)> {
        let gateway = &self.gateway;
        let limits = gateway.limits;
        let until = *until.get_or_insert_with(|| Instant::now() + limits.hold);
        let refused = |error| Err((Cause::EngineFailed, Some(error)));
        let (name, begun) = (self.name(), gateway.clock.now_ns());
        let (mut catalogue, mut stage) = (gateway.catalogue.clone(), gateway.stage.clone());
        let mut beats = tokio::time::interval_at(Instant::now() + limits.heartbeat, limits.heartbeat);
        let paused = pause.map(|pause| Instant::now() + pause);
        let mut held = None;
        let ended = loop {
            let served = catalogue.borrow_and_update().endpoints.get(&name).cloned();
            let Some(served) = served else { break refused(ApiError::model_not_found(self.request.model())) };
            // Of one that was deleted and made anew there is another one.
            let group = gateway.fleet.group(&name);
            if served.absence != Absence::Starts && served.replicas.is_empty() {
                break refused(ApiError::Absent { absence: served.absence });
            }
            if held.is_none() && paused.is_none() {
                held = self.load.hold(served.wanted == 0);
                if held.is_none() {
                    break refused(ApiError::WakingFull { retry_after_ms: WAKING_MS });
                }
            }
            tokio::select! {
                biased;
                () = client.closed() => break Err((Cause::ClientGone, None)),
                () = cutting(&mut stage) => {
                    let error = ApiError::Unavailable { retry_after_ms: RETRY_MS };
                    break Err((Cause::Shutdown, Some(error)));
                }
                () = ready(group.as_deref(), paused) => break self.still_good(),
                // Who could tell is gone with the process.
                Ok(()) = catalogue.changed() => {}
                _ = beats.tick(), if self.request.stream() => client.beat(),
                () = tokio::time::sleep(LOOK) => {}
                () = tokio::time::sleep_until(until) => break refused(ApiError::Waking { retry_after_ms: WAKING_MS }),
            }
        };
        let outcome = match &ended {
            Ok(()) => "served",
            Err((Cause::ClientGone, _)) => "gone",
            Err((Cause::Shutdown, _)) => "cut",
            Err((_, Some(ApiError::Absent { absence: Absence::Stopped } | ApiError::Key(_)))) => "stopped",
            Err(_) => "refused",
        };
        if paused.is_none() {
            let waited = Duration::from_nanos(gateway.clock.now_ns().saturating_sub(begun));
            gateway.metrics.held(outcome, waited);
        }
        ended
    }

    /// Whether what was let in would still be, after it waited.
    fn still_good(&self) -> Result<(), (Cause, Option<ApiError>)> {
        let refused = |error| Err((Cause::EngineFailed, Some(error)));
        let catalogue = Arc::clone(&self.gateway.catalogue.borrow());
        let key = match catalogue.keys.recheck(self.key, self.gateway.clock.unix_ms()) {
            Ok(key) => key,
            Err(error) => return refused(error.into()),
        };
        let Some(asked) = catalogue.resolve(key, self.request.model()) else {
            return refused(ApiError::model_not_found(self.request.model()));
        };
        match catalogue.candidates(key, asked).iter().find(|one| one.name == self.served.name) {
            None => refused(ApiError::Residency),
            // The body names another model than the engine knows.
            Some(served) if served.served_name != self.served.served_name => {
                refused(ApiError::Waking { retry_after_ms: RETRY_MS })
            }
            Some(_) => Ok(()),
        }
    }

    fn opening(&self, flight: &Flight) -> Opening {
        Opening {
            id: self.id,
            tenant: self.tenant.clone(),
            namespace: self.served.namespace.clone(),
            endpoint: self.served.name.clone(),
            model: self.served.model.clone(),
            version: flight.replica.version.clone(),
            key: self.key.as_str().into(),
            gateway: self.gateway.name.clone(),
            replica: flight.replica.name.clone(),
            started_ms: self.unix_ms(),
            stream: self.request.stream(),
        }
    }

    fn unix_ms(&self) -> i64 {
        i64::try_from(self.gateway.clock.unix_ms()).unwrap_or(i64::MAX)
    }

    /// The body for an engine, with the model's name at it; none where that cannot be made any more.
    fn body_for(&self, flight: &Flight) -> Option<Bytes> {
        if flight.replica.served_name == self.upstream_name {
            return Some(self.upstream.clone());
        }
        let body = self.body.as_ref()?;
        Some(self.request.upstream_body(body, &flight.replica.served_name).into())
    }

    fn upstream_request(&self, flight: &Flight, upstream: Bytes) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let path = self.request.endpoint().path();
        let uri = match &flight.replica.target {
            Target::Pod(address) => {
                Uri::builder().scheme("http").authority(address.to_string()).path_and_query(path).build()?
            }
            Target::Provider(provider) => {
                let mut parts = provider.base.clone().into_parts();
                let base = provider.base.path().trim_end_matches('/');
                parts.path_and_query = Some(format!("{base}{}", path.trim_start_matches("/v1")).parse()?);
                Uri::from_parts(parts)?
            }
        };
        let mut request = Request::post(uri)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(REQUEST_ID, self.id.to_string());
        // Traces are ours: others are told nothing of them.
        if matches!(flight.replica.target, Target::Pod(_)) {
            for (name, value) in &self.trace {
                request = request.header(name, value);
            }
        }
        request.body(Full::new(upstream))
    }

    /// An answer in one piece: it goes when it is billed.
    async fn whole(&mut self, flight: Flight, response: Response<Incoming>, mut client: Downstream) {
        let (parts, body) = response.into_parts();
        let limits = self.gateway.limits;
        let mut stage = self.gateway.stage.clone();
        let read = tokio::select! {
            biased;
            () = client.closed() => Err(Cause::ClientGone),
            () = cutting(&mut stage) => Err(Cause::Shutdown),
            read = read_all(body, limits.answer_bytes, limits.idle) => Ok(read),
        };
        let own_count = |body: &[u8]| sse::text_bytes_of_answer(body) / PromptSize::BYTES_PER_TOKEN;
        let (ended, body, verdict) = match read {
            // An engine that is stopped gives what it has as if it were all (vLLM does).
            Ok(Read::Whole(body)) if sse::usage_of_answer(&body).1.aborted() => {
                (Ended::unused(Cause::EngineFailed), Err(ApiError::Upstream), Verdict::Unknown)
            }
            Ok(Read::Whole(body)) => {
                let (usage, reasons) = sse::usage_of_answer(&body);
                let counted = if usage.is_some() { 0 } else { own_count(&body) };
                let ended = Ended { outcome: Outcome::Complete, usage, counted, begun: true, reasons };
                (ended, Ok(body), Verdict::Worked)
            }
            Ok(Read::TooLarge(part)) => {
                let outcome = Outcome::Partial(Cause::Bound);
                let (counted, reasons) = (own_count(&part), FinishReasons::default());
                let ended = Ended { outcome, usage: None, counted, begun: true, reasons };
                (ended, Err(ApiError::AnswerTooLarge { limit: limits.answer_bytes }), Verdict::Unknown)
            }
            Ok(Read::Broken) => (Ended::unused(Cause::EngineFailed), Err(ApiError::Upstream), Verdict::Failed),
            Err(cause) => {
                let error = ApiError::Unavailable { retry_after_ms: RETRY_MS };
                (Ended { begun: true, ..Ended::unused(cause) }, Err(error), Verdict::Unknown)
            }
        };
        self.note(&flight, &ended, false);
        flight.end(ended.usage(), verdict);
        let durable = self.close(&ended).await;
        self.settle_guard(&ended);
        let body = match body {
            Ok(body) if durable => body,
            Ok(_) => {
                self.operation.failed(ApiError::Unrecorded.code());
                return client.fail(ApiError::Unrecorded);
            }
            Err(error) => return client.fail(error),
        };
        // No stream was begun where none is asked for.
        let Downstream::Waits(head) = client else { return };
        let json = HeaderValue::from_static("application/json");
        let content_type = parts.headers.get(CONTENT_TYPE).cloned().unwrap_or(json);
        if body.len() <= PIECE_BYTES {
            let _ = head.send(Ok(whole(StatusCode::OK, content_type, body)));
            return;
        }
        // A large one goes as it is read, so that who does not read it does not keep it here.
        let (pieces, receiver) = mpsc::channel(PIECES);
        let mut answer = Response::new(Answer::Stream(receiver));
        answer.headers_mut().insert(CONTENT_TYPE, content_type);
        answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        let _ = head.send(Ok(answer));
        let _ = self.pass(&pieces, body, &mut stage).await;
    }

    /// An answer as it comes.
    async fn stream(&mut self, flight: Flight, response: Response<Incoming>, client: Downstream) {
        let (parts, mut body) = response.into_parts();
        let pieces = client.stream(parts.headers.get(CONTENT_TYPE).cloned());
        let limits = self.gateway.limits;
        let mut stage = self.gateway.stage.clone();
        let mut reading = Reading::new(&self.request);
        let mut marked = (0, Instant::now());
        let mut silent = false;
        let cut = loop {
            // A prompt may take as long as an answer in one piece; what has begun does not pause for so long.
            let idle = if reading.begun { limits.idle } else { limits.first_byte };
            let frame = tokio::select! {
                biased;
                () = pieces.closed() => break Some(Cause::ClientGone),
                () = cutting(&mut stage) => break Some(Cause::Shutdown),
                frame = timeout(idle, body.frame()) => frame,
            };
            let data = match frame {
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Ok(None) => break None,
                Ok(Some(Err(_))) => break Some(Cause::EngineFailed),
                Err(_) => {
                    silent = true;
                    break Some(Cause::Bound);
                }
            };
            let Ok(forward) = reading.take(&data) else { break Some(Cause::Bound) };
            flight.token();
            self.load.began();
            if reading.tally().tokens > 0 {
                self.operation.token();
            }
            if let Some(guard) = &mut self.guard {
                guard.progress(produced(&reading.tally()));
            }
            self.mark(&reading, &mut marked);
            if let Err(cause) = self.pass(&pieces, forward, &mut stage).await {
                break Some(cause);
            }
            if reading.tally().done {
                break None;
            }
        };
        if cut.is_some() {
            // What the engine has produced is billed, read or not; and then it is told to stop.
            for _ in 0..READY {
                let Some(Some(Ok(frame))) = body.frame().now_or_never() else { break };
                if reading.take(&frame.into_data().unwrap_or_default()).is_err() {
                    break;
                }
            }
        }
        // Only one that has come to its end is worth keeping.
        let body = Some(body).filter(|_| reading.tally().done);
        let (tally, begun, last) = reading.finish();
        let ended = match cut {
            Some(cause) => Ended::cut(cause, tally, begun),
            // Some engines end without a word; who has sent the usage chunk has sent all.
            None if tally.failed || tally.reasons.aborted() || !(tally.done || tally.usage_chunk) => {
                Ended::cut(Cause::EngineFailed, tally, begun)
            }
            None => Ended { outcome: Outcome::Complete, begun: true, ..Ended::cut(Cause::Crash, tally, begun) },
        };
        let verdict = match ended.outcome {
            Outcome::Complete => Verdict::Worked,
            // What it tells of itself may be the request's fault.
            Outcome::Partial(Cause::EngineFailed) if !(tally.failed || tally.reasons.aborted()) => Verdict::Failed,
            Outcome::Partial(_) if silent => Verdict::Failed,
            Outcome::Partial(_) => Verdict::Unknown,
        };
        self.note(&flight, &ended, silent);
        flight.end(ended.usage(), verdict);
        let durable = self.close(&ended).await;
        self.settle_guard(&ended);
        let farewell = match ended.outcome {
            Outcome::Complete if durable => last,
            Outcome::Complete => {
                self.operation.failed(ApiError::Unrecorded.code());
                ApiError::Unrecorded.event().into()
            }
            Outcome::Partial(Cause::ClientGone) => return,
            Outcome::Partial(Cause::Shutdown) => ApiError::Unavailable { retry_after_ms: RETRY_MS }.event().into(),
            // It has told of its failure itself.
            Outcome::Partial(_) if tally.failed => last,
            Outcome::Partial(_) => ApiError::Upstream.event().into(),
        };
        if ended.outcome == Outcome::Partial(Cause::Shutdown) {
            let _ = pieces.try_send(farewell);
        } else {
            let _ = self.pass(&pieces, farewell, &mut stage).await;
        }
        drop(pieces);
        if let Some(mut body) = body {
            let _ = timeout(TRAILER, async { while body.frame().await.is_some_and(|frame| frame.is_ok()) {} }).await;
        }
    }

    /// Gives the client a part of its answer, or finds why not.
    async fn pass(
        &self,
        pieces: &mpsc::Sender<Bytes>,
        mut part: Bytes,
        stage: &mut watch::Receiver<Stage>,
    ) -> Result<(), Cause> {
        while !part.is_empty() {
            let piece = part.split_to(part.len().min(PIECE_BYTES));
            let sent = tokio::select! {
                biased;
                sent = timeout(self.gateway.limits.slow_client, pieces.send(piece)) => sent,
                () = cutting(stage) => return Err(Cause::Shutdown),
            };
            match sent {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Cause::ClientGone),
                Err(_) => {
                    // It does not read, and may never: what waits for it goes with its connection.
                    self.hangup.0.notify_one();
                    return Err(Cause::ClientGone);
                }
            }
        }
        Ok(())
    }

    /// Marks what was used so far, where that is due.
    fn mark(&mut self, reading: &Reading, (tokens, at): &mut (u64, Instant)) {
        let tally = reading.tally();
        let now = produced(&tally);
        let more = now.saturating_sub(*tokens);
        if more == 0 || more < MARK_TOKENS && at.elapsed() < MARK {
            return;
        }
        (*tokens, *at) = (now, Instant::now());
        self.load.produced(now);
        let used = self.settle(&Ended::cut(Cause::Crash, tally, reading.begun)).tokens;
        // Without it a crash is billed at the mark before.
        let _ = self.gateway.wal.mark(&Mark { id: self.id, at_ms: self.unix_ms(), tokens: used });
    }

    /// What is billed of an answer that ended so.
    fn settle(&self, ended: &Ended) -> Settled {
        let size = self.request.prompt_size();
        let context = self.served.context_length;
        // A conversation is one prompt; of the others there may be many, none of which has more tokens than bytes.
        let prompt = match self.request.endpoint() {
            Endpoint::ChatCompletions => context,
            Endpoint::Completions | Endpoint::Embeddings => {
                context.max(size.text_bytes.saturating_add(size.token_ids).saturating_add(u64::from(size.messages)))
            }
        };
        // Not what the client asks for: engines read that in different ways, and what was produced was produced.
        let bounds = Bounds { prompt, completion: context.saturating_mul(self.request.choices().into()) };
        let own = if ended.begun { size.estimated_tokens() } else { 0 };
        let counted = Tokens::new(own.min(prompt), 0, ended.counted.min(bounds.completion)).unwrap_or_default();
        let reported = Reported {
            prompt: ended.usage.map(|usage| usage.prompt),
            cached: ended.usage.map(|usage| usage.cached),
            // Of a whole answer the engine's word counts; one that was cut off may have had more than the engine has told of.
            completion: ended.usage.map(|usage| match ended.outcome {
                Outcome::Complete => usage.completion,
                Outcome::Partial(_) => usage.completion.max(counted.completion()),
            }),
        };
        settle(ended.outcome, reported, counted, bounds)
    }

    /// How the request ended, for who judges versions: what its client made of it says nothing, nor what a replica cuts that is taken away. `silent`: nothing came any more.
    fn note(&self, flight: &Flight, ended: &Ended, silent: bool) {
        match ended.outcome {
            Outcome::Complete => self.load.ended(&flight.replica.version, false),
            Outcome::Partial(Cause::EngineFailed) if flight.is_there() => {
                self.load.ended(&flight.replica.version, true);
            }
            Outcome::Partial(_) if silent => self.load.ended(&flight.replica.version, true),
            Outcome::Partial(_) => {}
        }
    }

    /// Bills the answer; whether that is durable.
    async fn close(&mut self, ended: &Ended) -> bool {
        let settled = self.settle(ended);
        self.load.produced(settled.tokens.completion());
        let ending = Ending {
            ended_ms: self.unix_ms(),
            tokens: settled.tokens,
            outcome: settled.outcome,
            adjusted: settled.adjusted,
        };
        self.gateway.metrics.billed(&self.served, &ending);
        self.operation.ended(settled.outcome, settled.tokens, ended.reasons);
        match timeout(self.gateway.limits.bill, self.gateway.wal.close(self.id, ending)).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => {
                tracing::error!(%error, request = %self.id, "a request could not be billed");
                false
            }
            Err(_) => {
                tracing::error!(request = %self.id, "the bill of a request takes too long to be durable: its answer is cut off");
                false
            }
        }
    }

    /// As if it had not been.
    fn refund(&mut self) {
        if let Some(guard) = self.guard.take() {
            guard.refund(self.gateway.clock.now_ms());
        }
    }

    /// It counts, with its prompt.
    fn settle_prompt(&mut self) {
        self.settle_guard(&Ended::unused(Cause::ClientGone));
    }

    /// Gives back what was reserved and does not count.
    fn settle_guard(&mut self, ended: &Ended) {
        let Some(guard) = self.guard.take() else { return };
        let now_ms = self.gateway.clock.now_ms();
        let used = self.settle(ended).tokens;
        let asked = self.request.prompt_size().estimated_tokens();
        match ended.outcome {
            Outcome::Partial(Cause::EngineFailed | Cause::Shutdown) if used == Tokens::default() => {
                guard.refund(now_ms);
            }
            Outcome::Partial(Cause::ClientGone) => {
                guard.settle(now_ms, used.prompt().max(asked), used.completion(), false);
            }
            // It may have used all of what it asked for.
            Outcome::Partial(Cause::Bound) => {
                let reserved = guard.reserved().max(used.prompt().saturating_add(used.completion()));
                guard.settle(now_ms, reserved, 0, false);
            }
            outcome => guard.settle(now_ms, used.prompt(), used.completion(), outcome == Outcome::Complete),
        }
    }
}

impl Gateway {
    /// Asks an engine, or a provider.
    async fn ask(
        &self,
        target: &Target,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
        match target {
            Target::Pod(_) => self.engines.request(request).await,
            Target::Provider(_) => self.providers.client.request(request).await,
        }
    }
}

/// Whether an engine says no for what the request is. What only its operator could mend is no fault of the client's: its key, and a name of the model that we have written.
fn is_requests_fault(status: StatusCode) -> bool {
    let ours = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND);
    status.is_client_error() && !ours
}

/// Whether it has no room now. Engines say so by 503; providers have limits of their own as well.
fn is_busy(target: &Target, status: StatusCode) -> bool {
    let limited = status == StatusCode::TOO_MANY_REQUESTS && matches!(target, Target::Provider(_));
    status == StatusCode::SERVICE_UNAVAILABLE || limited
}

/// Whether a provider does not know us.
fn is_locked(target: &Target, status: StatusCode) -> bool {
    let refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PAYMENT_REQUIRED);
    refused && matches!(target, Target::Provider(_))
}

/// Until there is a replica, or it has been left alone for long enough.
async fn ready(group: Option<&Group>, paused: Option<Instant>) {
    match (paused, group) {
        (Some(paused), _) => tokio::time::sleep_until(paused).await,
        (None, Some(group)) => group.arrived().await,
        (None, None) => std::future::pending().await,
    }
}

/// A stream that is being read.
struct Reading {
    stream: EventStream,
    /// Choices that are asked for, and that have ended.
    choices: u32,
    finished: u32,
    /// Whether a chunk with choices has come.
    begun: bool,
    /// What does not go before the bill is durable.
    last: BytesMut,
}

impl Reading {
    fn new(request: &request::Request) -> Self {
        Self {
            stream: EventStream::new(request.wants_usage(), EVENT_BYTES_MAX),
            choices: request.choices().max(1),
            finished: 0,
            begun: false,
            last: BytesMut::new(),
        }
    }

    fn tally(&self) -> Tally {
        self.stream.tally()
    }

    /// Takes what came; gives what goes on now.
    fn take(&mut self, data: &[u8]) -> Result<Bytes, sse::Error> {
        let Self { stream, choices, finished, begun, last } = self;
        let mut forward = BytesMut::with_capacity(data.len());
        stream.push(data, |piece| {
            if let Event::Delta { finished: more, .. } = piece.event {
                *begun = true;
                *finished = finished.saturating_add(more);
            }
            let holds = piece.event == Event::Done || *finished >= *choices || !last.is_empty();
            if holds { last.extend_from_slice(piece.bytes) } else { forward.extend_from_slice(piece.bytes) }
        })?;
        Ok(forward.freeze())
    }

    fn finish(mut self) -> (Tally, bool, Bytes) {
        let tally = self.stream.finish(|piece| self.last.extend_from_slice(piece.bytes));
        (tally, self.begun, self.last.freeze())
    }
}

/// Tokens of the answer until now.
fn produced(tally: &Tally) -> u64 {
    tally.usage.map_or(0, |usage| usage.completion).max(tally.tokens)
}

/// Until what runs is to be cut off.
async fn cutting(stage: &mut watch::Receiver<Stage>) {
    // Who could tell is gone with the process.
    if stage.wait_for(|stage| *stage == Stage::Cutting).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Reads a body, with no pause in it that is too long.
async fn read_all(mut body: Incoming, most: usize, idle: Duration) -> Read {
    let mut all = BytesMut::new();
    loop {
        let data = match timeout(idle, body.frame()).await {
            Ok(None) => return Read::Whole(all.freeze()),
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Ok(Some(Err(_))) | Err(_) => return Read::Broken,
        };
        if all.len() + data.len() > most {
            return Read::TooLarge(all.freeze());
        }
        all.extend_from_slice(&data);
    }
}

/// What a client is told where the engine refuses its request: the engine's own words, in OpenAI's form; not those of a provider, which are for who has an account there.
async fn refusal(response: Response<Incoming>, ours: bool) -> Result<(StatusCode, String), ApiError> {
    let status = response.status();
    if !is_requests_fault(status) {
        return Err(ApiError::Upstream);
    }
    let body = match read_all(response.into_body(), ERROR_BYTES, Duration::from_secs(5)).await {
        Read::Whole(body) => body,
        Read::TooLarge(_) | Read::Broken => Bytes::new(),
    };
    Ok((status, if ours { ApiError::engine_refusal(&body) } else { ApiError::provider_refusal(&body) }))
}
