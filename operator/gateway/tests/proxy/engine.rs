//! An engine that does what its script says, and counts what it produced: the edge of the gateway in its tests. That a real engine is served is
//! shown on a real cluster.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response, StatusCode, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

/// What an engine does with a request.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    /// Tokens of the answer.
    pub(crate) tokens: u64,
    /// With which each of them begins.
    pub(crate) says: &'static str,
    /// Before each of them.
    pub(crate) pause: Duration,
    /// After so many tokens the connection breaks.
    pub(crate) breaks_after: Option<u64>,
    /// Requests of one connection that it answers; at the next one it closes the connection without a word.
    pub(crate) answers: Option<usize>,
    /// What it says that it used; none: nothing.
    pub(crate) usage: Option<Value>,
    /// The status and body of a refusal.
    pub(crate) refuses: Option<(u16, &'static str)>,
    /// Whether it ends a stream with `[DONE]`.
    pub(crate) says_done: bool,
    /// What it says at `/metrics`; none: it has none.
    pub(crate) metrics: Option<String>,
    /// Between the chunk in which the choice ends and what comes after it.
    pub(crate) pause_at_end: Duration,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            tokens: 5,
            says: "",
            pause: Duration::ZERO,
            breaks_after: None,
            answers: None,
            usage: Some(usage(7, 5)),
            refuses: None,
            says_done: true,
            metrics: None,
            pause_at_end: Duration::ZERO,
        }
    }
}

pub(crate) fn usage(prompt: u64, completion: u64) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
}

/// What was asked of an engine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The bodies, in their order.
    pub(crate) bodies: Vec<Value>,
    /// The paths.
    pub(crate) paths: Vec<String>,
    /// Their `authorization`s.
    pub(crate) authorizations: Vec<Option<String>>,
    /// The traces that they are part of,
    pub(crate) traces: Vec<Option<String>>,
    /// and their state.
    pub(crate) trace_states: Vec<Option<String>>,
    /// Tokens that it produced, by `x-request-id`.
    pub(crate) produced: HashMap<String, u64>,
    /// Requests whose client went away.
    pub(crate) cancelled: u64,
}

#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) address: SocketAddr,
    script: Arc<Mutex<Script>>,
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

impl Engine {
    pub(crate) async fn start(script: Script) -> Self {
        Self::start_with(script, None).await
    }

    /// One that is reached by TLS where there is an acceptor.
    pub(crate) async fn start_with(script: Script, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (script, seen) = (Arc::new(Mutex::new(script)), Arc::new(Mutex::new(Seen::default())));
        let shared = (Arc::clone(&script), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (script, seen) = shared.clone();
                let asked = AtomicUsize::new(0);
                let service = service_fn(move |request| {
                    let script = script.lock().unwrap().clone();
                    answer(script, asked.fetch_add(1, Ordering::Relaxed), Arc::clone(&seen), request)
                });
                let tls = tls.clone();
                connections.spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = match tls {
                        None => builder.serve_connection(TokioIo::new(stream), service).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => builder.serve_connection(TokioIo::new(stream), service).await,
                            Err(_) => return,
                        },
                    };
                });
            }
        });
        Self { address, script, seen, task }
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn set(&self, script: Script) {
        *self.script.lock().unwrap() = script;
    }
}

async fn answer(
    script: Script,
    before: usize,
    seen: Arc<Mutex<Seen>>,
    request: Request<Incoming>,
) -> std::io::Result<Answer> {
    if request.uri().path() == "/metrics" {
        let status = if script.metrics.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
        return Ok(response(status, "text/plain", full(script.metrics.unwrap_or_default())));
    }
    let id = request.headers()["x-request-id"].to_str().unwrap().to_owned();
    let path = request.uri().path().to_owned();
    let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (trace, trace_state) = (header("traceparent"), header("tracestate"));
    let authorization = header("authorization");
    let body: Value = serde_json::from_slice(&request.into_body().collect().await.unwrap().to_bytes()).unwrap();
    {
        let mut seen = seen.lock().unwrap();
        seen.bodies.push(body.clone());
        seen.paths.push(path.clone());
        seen.authorizations.push(authorization);
        seen.traces.push(trace);
        seen.trace_states.push(trace_state);
    }
    if script.answers.is_some_and(|answers| before >= answers) {
        return Err(std::io::Error::other("the engine closes the connection"));
    }
    if let Some((status, text)) = script.refuses {
        return Ok(response(StatusCode::from_u16(status).unwrap(), "application/json", full(text.to_owned())));
    }
    if path.ends_with("/embeddings") {
        let text = json!({"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
            "usage": {"prompt_tokens": 3, "total_tokens": 3}});
        return Ok(response(StatusCode::OK, "application/json", full(text.to_string())));
    }
    if body["stream"] != json!(true) {
        tokio::time::sleep(script.pause).await;
        let content = format!("{}word ", script.says).repeat(usize::try_from(script.tokens).unwrap());
        *seen.lock().unwrap().produced.entry(id).or_default() += script.tokens;
        let text = json!({"id": "x", "object": "chat.completion", "usage": script.usage,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]});
        return Ok(response(StatusCode::OK, "application/json", full(text.to_string())));
    }
    let (sender, mut receiver) = mpsc::channel(1);
    tokio::spawn(produce(script, seen, id, sender));
    let frames = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
    Ok(response(StatusCode::OK, "text/event-stream", StreamBody::new(frames).boxed_unsync()))
}

fn full(text: String) -> UnsyncBoxBody<Bytes, std::io::Error> {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync()
}

fn response(status: StatusCode, content_type: &str, body: UnsyncBoxBody<Bytes, std::io::Error>) -> Answer {
    Response::builder().status(status).header("content-type", content_type).body(body).unwrap()
}

/// Makes a stream, one event for each token.
async fn produce(
    script: Script,
    seen: Arc<Mutex<Seen>>,
    id: String,
    sender: mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>,
) {
    let event = |value: &Value| Ok(Frame::data(Bytes::from(format!("data: {value}\n\n"))));
    for token in 0..script.tokens {
        if script.breaks_after == Some(token) {
            let _ = sender.send(Err(std::io::Error::other("the engine dies"))).await;
            return;
        }
        // A timer takes a millisecond, even of nothing.
        let gone = !script.pause.is_zero()
            && tokio::select! {
                () = tokio::time::sleep(script.pause) => false,
                () = sender.closed() => true,
            };
        let chunk = json!({"id": "x", "object": "chat.completion.chunk", "usage": null,
            "choices": [{"index": 0, "delta": {"content": format!("{}t{token} ", script.says)}}]});
        *seen.lock().unwrap().produced.entry(id.clone()).or_default() += u64::from(!gone);
        if gone || sender.send(event(&chunk)).await.is_err() {
            seen.lock().unwrap().cancelled += 1;
            return;
        }
    }
    let end = json!({"id": "x", "object": "chat.completion.chunk", "usage": null,
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
    let _ = sender.send(event(&end)).await;
    tokio::time::sleep(script.pause_at_end).await;
    if let Some(usage) = &script.usage {
        let chunk = json!({"id": "x", "object": "chat.completion.chunk", "choices": [], "usage": usage});
        let _ = sender.send(event(&chunk)).await;
    }
    if script.says_done {
        let _ = sender.send(Ok(Frame::data(Bytes::from_static(b"data: [DONE]\n\n")))).await;
    }
}
