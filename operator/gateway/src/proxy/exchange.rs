//! One request and its engine: sent, answered, and billed, whatever becomes of the client, of the engine, and of us.
//!
//! An exchange runs as a task of its own. Its client is at the other end of two channels, one for the head of the answer and one for its pieces; that
//! they are closed is how it learns that the client is gone. The last piece of an answer goes only when its bill is durable.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use spillway_metering::TenantName;
use spillway_metering::tokens::{Bounds, Cause, Ending, Mark, Opening, Outcome, Reported, RequestId, Tokens, settle};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::{Answer, Gateway, REQUEST_ID, Stage, json, whole};
use crate::admission::Guard;
use crate::catalogue::Served;
use crate::error::ApiError;
use crate::fleet::{Flight, Group};
use crate::keys::KeyId;
use crate::request::{self, Endpoint};
use crate::routing::{EngineId, Prompt, Usage};
use crate::sse::{self, EVENT_BYTES_MAX, Event, EventStream, Tally, TokenUsage};

/// Engines that a request is sent to, one after the other, while they cannot be reached or have no room.
const TRIES: usize = 3;
/// Pieces of an answer that wait for its client.
const PIECES: usize = 32;
/// A mark is made after so many tokens,
const MARK_TOKENS: u64 = 64;
/// or so much time.
const MARK: Duration = Duration::from_secs(1);
/// Bytes of an engine's error that are read.
const ERROR_BYTES: usize = 64 << 10;
/// How long an engine may take to end a stream whose last event has come, so that its connection can be used again.
const TRAILER: Duration = Duration::from_secs(1);
/// Milliseconds until a request is worth trying again where no engine took it.
const RETRY_MS: u64 = 1_000;

/// Who waits for the head of the answer.
pub(super) type Head = oneshot::Sender<Result<Response<Answer>, ApiError>>;

/// A request that was let in.
pub(super) struct Exchange {
    pub(super) gateway: Arc<Gateway>,
    pub(super) id: RequestId,
    pub(super) served: Arc<Served>,
    pub(super) tenant: TenantName,
    pub(super) key: KeyId,
    pub(super) request: request::Request,
    /// The engine's body.
    pub(super) upstream: Bytes,
    /// Hashes of the prompt's blocks.
    pub(super) blocks: Vec<u64>,
    /// Headers that go on to the engine.
    pub(super) trace: Vec<(HeaderName, HeaderValue)>,
    pub(super) guard: Guard,
}

/// How far an engine came with a request.
enum Reached {
    /// It answers.
    Answers(Flight, Response<Incoming>),
    /// There is none, or none took it.
    Nobody(ApiError),
    /// It took the request and then failed.
    Failed(ApiError),
    /// The client went away.
    ClientGone,
    /// We were told to stop.
    Cut,
}

/// How an answer ended.
struct Ended {
    outcome: Outcome,
    usage: Option<TokenUsage>,
    /// Tokens of the answer, as they were counted here.
    counted: u64,
    /// Whether the engine did not answer as one that works does.
    failed: bool,
}

impl Exchange {
    pub(super) async fn run(mut self, mut head: Head) {
        let name = (self.served.namespace.clone(), self.served.name.clone());
        let Some(group) = self.gateway.fleet.group(&name) else {
            self.refund();
            let _ = head.send(Err(ApiError::NoReplica { retry_after_ms: RETRY_MS }));
            return;
        };
        let mut opened = false;
        match self.reach(&group, &mut head, &mut opened).await {
            Reached::Answers(flight, response) if response.status().is_success() => {
                let is_stream = self.request.stream();
                let ended = if is_stream {
                    self.stream(&group, &flight, response, head).await
                } else {
                    self.whole(&group, &flight, response, head).await
                };
                let usage = ended
                    .usage
                    .map(|usage| Usage { output_tokens: usage.completion, cached_tokens: Some(usage.cached) });
                group.ended(self.gateway.clock.now_ns(), &flight, usage, ended.failed);
                self.give_back(&ended);
            }
            Reached::Answers(flight, response) => {
                let failed = response.status().is_server_error();
                let error = refusal(response).await;
                group.ended(self.gateway.clock.now_ns(), &flight, None, failed);
                self.close_unused(Cause::EngineFailed).await;
                self.refund();
                let _ = head.send(error);
            }
            Reached::Nobody(error) | Reached::Failed(error) => {
                if opened {
                    self.close_unused(Cause::EngineFailed).await;
                }
                self.refund();
                let _ = head.send(Err(error));
            }
            Reached::ClientGone => {
                if opened {
                    self.close_unused(Cause::ClientGone).await;
                }
                self.refund();
            }
            Reached::Cut => {
                if opened {
                    self.close_unused(Cause::Shutdown).await;
                }
                self.refund();
                let _ = head.send(Err(ApiError::Unavailable { retry_after_ms: RETRY_MS }));
            }
        }
    }

    /// Sends the request to an engine, and to another one where it was not taken.
    async fn reach(&self, group: &Arc<Group>, head: &mut Head, opened: &mut bool) -> Reached {
        let gateway = &self.gateway;
        let prompt = Prompt { tokens: self.request.prompt_size().estimated_tokens(), blocks: &self.blocks };
        let mut tried: Vec<EngineId> = Vec::new();
        let mut stage = gateway.stage.clone();
        let limit = gateway.limits.first_byte;
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        for _ in 0..TRIES {
            let flight = match group.send(gateway.clock.now_ns(), &prompt, &tried) {
                Ok(flight) => flight,
                Err(wait) if tried.is_empty() => {
                    return Reached::Nobody(ApiError::NoReplica { retry_after_ms: wait.unwrap_or(RETRY_MS) });
                }
                Err(_) => break,
            };
            tried.push(flight.replica.engine);
            let over = |failed: bool| group.ended(gateway.clock.now_ns(), &flight, None, failed);
            if let Err(error) = gateway.wal.open_request(&self.opening(&flight)) {
                tracing::warn!(%error, "a request is refused, for it could not be billed");
                over(false);
                return Reached::Nobody(ApiError::Unavailable { retry_after_ms: RETRY_MS });
            }
            *opened = true;
            let Ok(request) = self.upstream_request(&flight) else {
                over(true);
                return Reached::Failed(ApiError::Upstream);
            };
            let answer = tokio::select! {
                biased;
                () = head.closed() => {
                    over(false);
                    return Reached::ClientGone;
                }
                _ = stage.wait_for(|stage| *stage == Stage::Cutting) => {
                    over(false);
                    return Reached::Cut;
                }
                answer = timeout(limit, gateway.engines.request(request)) => answer,
            };
            match answer {
                Ok(Ok(response)) if response.status() != StatusCode::SERVICE_UNAVAILABLE => {
                    return Reached::Answers(flight, response);
                }
                // It has no room, or no model yet.
                Ok(Ok(_)) => over(true),
                Ok(Err(error)) => {
                    over(true);
                    tracing::debug!(engine = %flight.replica.name, error = %error, "an engine did not answer");
                    // What it may have begun is not begun again elsewhere.
                    if !error.is_connect() {
                        return Reached::Failed(ApiError::Upstream);
                    }
                }
                Err(_) => {
                    over(true);
                    return Reached::Failed(ApiError::UpstreamTimeout { limit_ms });
                }
            }
        }
        Reached::Nobody(ApiError::NoReplica { retry_after_ms: RETRY_MS })
    }

    fn opening(&self, flight: &Flight) -> Opening {
        Opening {
            id: self.id,
            tenant: self.tenant.clone(),
            namespace: self.served.namespace.clone(),
            endpoint: self.served.name.clone(),
            model: self.served.model.clone(),
            version: self.served.version.clone(),
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

    fn upstream_request(&self, flight: &Flight) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let uri = Uri::builder()
            .scheme("http")
            .authority(flight.replica.address.to_string())
            .path_and_query(self.request.endpoint().path())
            .build()?;
        let mut request = Request::post(uri)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(REQUEST_ID, self.id.to_string());
        for (name, value) in &self.trace {
            request = request.header(name, value);
        }
        request.body(Full::new(self.upstream.clone()))
    }

    /// An answer in one piece: it goes when it is billed.
    async fn whole(&mut self, group: &Group, flight: &Flight, response: Response<Incoming>, mut head: Head) -> Ended {
        let (parts, body) = response.into_parts();
        let limits = self.gateway.limits;
        let mut stage = self.gateway.stage.clone();
        let read = tokio::select! {
            biased;
            () = head.closed() => Err(Cause::ClientGone),
            _ = stage.wait_for(|stage| *stage == Stage::Cutting) => Err(Cause::Shutdown),
            body = read_all(body, limits.answer_bytes, limits.idle) => body.ok_or(Cause::EngineFailed),
        };
        group.token(self.gateway.clock.now_ns(), flight);
        let body = match read {
            Ok(body) => body,
            Err(cause) => {
                let ended = Ended::cut(cause, Tally::default());
                let error = match cause {
                    Cause::Shutdown => ApiError::Unavailable { retry_after_ms: RETRY_MS },
                    _ => ApiError::Upstream,
                };
                self.close(&ended).await;
                let _ = head.send(Err(error));
                return ended;
            }
        };
        let usage = sse::usage_of_answer(&body);
        let counted =
            if usage.is_some() { 0 } else { sse::text_bytes_of_answer(&body) / request::PromptSize::BYTES_PER_TOKEN };
        let ended = Ended { outcome: Outcome::Complete, usage, counted, failed: false };
        let answer = match self.close(&ended).await {
            true => {
                let json = HeaderValue::from_static("application/json");
                let content_type = parts.headers.get(CONTENT_TYPE).cloned().unwrap_or(json);
                Ok(whole(StatusCode::OK, content_type, body))
            }
            false => Err(ApiError::Unavailable { retry_after_ms: RETRY_MS }),
        };
        let _ = head.send(answer);
        ended
    }

    /// An answer as it comes.
    async fn stream(&mut self, group: &Group, flight: &Flight, response: Response<Incoming>, head: Head) -> Ended {
        let (parts, mut body) = response.into_parts();
        let (pieces, receiver) = mpsc::channel(PIECES);
        let events = HeaderValue::from_static("text/event-stream; charset=utf-8");
        let content_type = parts.headers.get(CONTENT_TYPE).cloned().unwrap_or(events);
        let mut answer = Response::new(Answer::Stream(receiver));
        answer.headers_mut().insert(CONTENT_TYPE, content_type);
        answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        // Who is gone already is found so below.
        let _ = head.send(Ok(answer));

        let limits = self.gateway.limits;
        let mut stage = self.gateway.stage.clone();
        let mut stream = EventStream::new(self.request.wants_usage(), EVENT_BYTES_MAX);
        let mut marked = (0, Instant::now());
        // From the last event on nothing goes before the bill is durable.
        let mut last = BytesMut::new();
        let cut = loop {
            let frame = tokio::select! {
                biased;
                () = pieces.closed() => break Some(Cause::ClientGone),
                _ = stage.wait_for(|stage| *stage == Stage::Cutting) => break Some(Cause::Shutdown),
                frame = timeout(limits.idle, body.frame()) => frame,
            };
            let data = match frame {
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Ok(None) => break None,
                Ok(Some(Err(_))) | Err(_) => break Some(Cause::EngineFailed),
            };
            let mut forward = BytesMut::with_capacity(data.len());
            let pushed = stream.push(&data, |piece| {
                let over = piece.event == Event::Done || !last.is_empty();
                if over { last.extend_from_slice(piece.bytes) } else { forward.extend_from_slice(piece.bytes) }
            });
            if pushed.is_err() {
                break Some(Cause::EngineFailed);
            }
            let tally = stream.tally();
            group.token(self.gateway.clock.now_ns(), flight);
            self.guard.progress(produced(&tally));
            self.mark(&tally, &mut marked);
            if !forward.is_empty()
                && timeout(limits.slow_client, pieces.send(forward.freeze())).await.map_or(true, |sent| sent.is_err())
            {
                break Some(Cause::ClientGone);
            }
            if tally.done {
                break None;
            }
        };
        let done = stream.tally().done;
        let tally = stream.finish(|piece| last.extend_from_slice(piece.bytes));
        let ended = match cut {
            Some(cause) => Ended::cut(cause, tally),
            // Some engines end without a word; who has told its usage has told all.
            None if tally.failed || !(tally.done || tally.usage.is_some()) => Ended::cut(Cause::EngineFailed, tally),
            None => Ended { outcome: Outcome::Complete, usage: tally.usage, counted: tally.tokens, failed: false },
        };
        let durable = self.close(&ended).await;
        let farewell = match ended.outcome {
            Outcome::Complete if durable => last.freeze(),
            Outcome::Complete => ApiError::Unavailable { retry_after_ms: RETRY_MS }.event().into(),
            Outcome::Partial(Cause::Shutdown) => ApiError::Unavailable { retry_after_ms: RETRY_MS }.event().into(),
            // It has told of its failure itself.
            Outcome::Partial(_) if tally.failed => last.freeze(),
            Outcome::Partial(_) => ApiError::Upstream.event().into(),
        };
        let _ = timeout(limits.slow_client, pieces.send(farewell)).await;
        drop(pieces);
        if done {
            let _ = timeout(TRAILER, async { while body.frame().await.is_some_and(|frame| frame.is_ok()) {} }).await;
        }
        ended
    }

    /// Marks what was used so far, where that is due.
    fn mark(&self, tally: &Tally, (tokens, at): &mut (u64, Instant)) {
        let now = produced(tally);
        let more = now.saturating_sub(*tokens);
        if more == 0 || more < MARK_TOKENS && at.elapsed() < MARK {
            return;
        }
        (*tokens, *at) = (now, Instant::now());
        let ended = Ended::cut(Cause::Crash, *tally);
        let used = self.settle(&ended).tokens;
        // Without it a crash is billed at the mark before.
        let _ = self.gateway.wal.mark(&Mark { id: self.id, at_ms: self.unix_ms(), tokens: used });
    }

    /// What is billed of an answer that ended so.
    fn settle(&self, ended: &Ended) -> spillway_metering::tokens::Settled {
        let size = self.request.prompt_size();
        let context = self.served.context_length;
        // A conversation is one prompt; of the others there may be many, none of which has more tokens than bytes.
        let prompt = match self.request.endpoint() {
            Endpoint::ChatCompletions => context,
            Endpoint::Completions | Endpoint::Embeddings => {
                context.max(size.text_bytes.saturating_add(size.token_ids).saturating_add(u64::from(size.messages)))
            }
        };
        let each = self.request.max_completion_tokens().map_or(context, |most| context.min(most.into()));
        let bounds = Bounds { prompt, completion: each.saturating_mul(self.request.choices().into()) };
        // Where nothing was produced, nothing is billed of the prompt either, unless the engine says so.
        let begun = ended.counted > 0 || ended.outcome == Outcome::Complete;
        let own = if begun { size.estimated_tokens() } else { 0 };
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

    /// Bills the answer; whether that is durable.
    async fn close(&self, ended: &Ended) -> bool {
        let settled = self.settle(ended);
        let ending = Ending {
            ended_ms: self.unix_ms(),
            tokens: settled.tokens,
            outcome: settled.outcome,
            adjusted: settled.adjusted,
        };
        self.gateway.metrics.billed(&self.served, &ending);
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

    /// Closes a request of which nothing came.
    async fn close_unused(&self, cause: Cause) {
        self.close(&Ended::cut(cause, Tally::default())).await;
    }

    fn refund(self) {
        self.guard.refund(self.gateway.clock.now_ms());
    }

    /// Gives back what was reserved and not used.
    fn give_back(self, ended: &Ended) {
        let settled = self.settle(ended);
        let now_ms = self.gateway.clock.now_ms();
        if ended.failed && settled.tokens == Tokens::default() {
            self.guard.refund(now_ms);
        } else {
            let whole = ended.outcome == Outcome::Complete;
            self.guard.settle(now_ms, settled.tokens.prompt(), settled.tokens.completion(), whole);
        }
    }
}

impl Ended {
    fn cut(cause: Cause, tally: Tally) -> Self {
        Self {
            outcome: Outcome::Partial(cause),
            usage: tally.usage,
            counted: tally.tokens,
            failed: cause == Cause::EngineFailed,
        }
    }
}

/// Tokens of the answer until now.
fn produced(tally: &Tally) -> u64 {
    tally.usage.map_or(0, |usage| usage.completion).max(tally.tokens)
}

/// A body that is whole and not too large, with no pause in it that is too long.
async fn read_all(mut body: Incoming, most: usize, idle: Duration) -> Option<Bytes> {
    let mut all = BytesMut::new();
    while let Some(frame) = timeout(idle, body.frame()).await.ok()? {
        let data = frame.ok()?.into_data().unwrap_or_default();
        if all.len() + data.len() > most {
            return None;
        }
        all.extend_from_slice(&data);
    }
    Some(all.freeze())
}

/// What a client is told where the engine refuses its request: the engine's own words, in OpenAI's form.
async fn refusal(response: Response<Incoming>) -> Result<Response<Answer>, ApiError> {
    let status = response.status();
    if !status.is_client_error() {
        return Err(ApiError::Upstream);
    }
    let body = read_all(response.into_body(), ERROR_BYTES, Duration::from_secs(5)).await.unwrap_or_default();
    let mut answer = json(ApiError::engine_refusal(&body));
    // What only an operator could mend is no fault of the client's key.
    *answer.status_mut() = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(ApiError::Upstream),
        status => status,
    };
    Ok(answer)
}
