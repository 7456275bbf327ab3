//! An engine that answers at once: what is measured is what stands before it. A process of its own, as a real one would be.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::Args;
use futures::StreamExt as _;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Frames of a stream with content.
pub(crate) const FRAMES: usize = 35;

/// Where it listens.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Address
    #[arg(long)]
    listen: SocketAddr,
}

const ANSWER: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"bench","choices":[{"index":0,"message":{"role":"assistant","content":"one two three four five"},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}"#;
const MODELS: &str =
    r#"{"object":"list","data":[{"id":"bench","object":"model","created":1,"owned_by":"bench","max_model_len":4096}]}"#;

type Body = BoxBody<Bytes, Infallible>;

/// Serves until the process is ended.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let listener =
        TcpListener::bind(options.listen).await.with_context(|| format!("listening on {}", options.listen))?;
    loop {
        let (stream, _) = listener.accept().await.context("taking a connection")?;
        stream.set_nodelay(true).context("setting TCP_NODELAY")?;
        tokio::spawn(async move {
            let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(request).await) });
            // That a peer breaks off is no news here.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    let is_post = request.method() == Method::POST;
    let path = request.uri().path().to_owned();
    // Whole, as an engine must have it.
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    if !is_post {
        // What routers ask of a worker before they send to it.
        return whole(if path.ends_with("/models") { MODELS } else { "{}" });
    }
    if body.windows(13).any(|part| part == b"\"stream\":true")
        || body.windows(14).any(|part| part == b"\"stream\": true")
    {
        return stream();
    }
    whole(ANSWER)
}

fn whole(text: &'static str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())).boxed());
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}

/// Each frame by itself, as tokens come.
fn stream() -> Response<Body> {
    let chunk = |delta: &str, end: &str| {
        Bytes::from(format!(
            "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"bench\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"finish_reason\":{end}}}]}}\n\n"
        ))
    };
    let mut frames: Vec<Bytes> = (0..FRAMES).map(|_| chunk("{\"content\":\"word \"}", "null")).collect();
    frames.push(chunk("{}", "\"stop\""));
    frames.push(Bytes::from_static(
        b"data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"bench\",\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":35,\"total_tokens\":42}}\n\n",
    ));
    frames.push(Bytes::from_static(b"data: [DONE]\n\n"));
    let frames = futures::stream::iter(frames).then(|frame| async move {
        // What is written is flushed before the next one is there.
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(Frame::data(frame))
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/event-stream"));
    response
}
