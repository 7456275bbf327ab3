//! The load: so many connections, each with one request after the other.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::engine::FRAMES;

/// Whom the load is for.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// What `model` is.
    pub(crate) model: &'static str,
    /// The key.
    pub(crate) key: String,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Microseconds of each request, in order of size.
    pub(crate) micros: Vec<u64>,
    pub(crate) took: Duration,
}

impl Outcome {
    /// The time in microseconds below which so many of a hundred requests are.
    pub(crate) fn percentile(&self, percent: usize) -> u64 {
        let index = self.micros.len().saturating_mul(percent).div_ceil(100).saturating_sub(1);
        self.micros.get(index).copied().unwrap_or(0)
    }

    pub(crate) fn per_second(&self) -> u64 {
        let micros = u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX).max(1);
        u64::try_from(self.micros.len()).unwrap_or(0).saturating_mul(1_000_000).div_euclid(micros)
    }
}

/// Asks for so long over so many connections.
pub(crate) async fn run(target: &Target, connections: usize, time: Duration, stream: bool) -> Result<Outcome> {
    let body = Bytes::from(format!(
        "{{\"model\":\"{}\",\"messages\":[{{\"role\":\"user\",\"content\":\"Count to five, please, and say nothing else.\"}}],\"max_tokens\":64,\"stream\":{stream}}}",
        target.model
    ));
    let mut senders = Vec::new();
    for _ in 0..connections {
        let mut sender = connect(target.address).await?;
        // One before the clock runs: connections to engines are made.
        once(&mut sender, target, &body, stream).await?;
        senders.push(sender);
    }
    let mut clients = JoinSet::new();
    let begun = Instant::now();
    for mut sender in senders {
        let (target, body) = (target.clone(), body.clone());
        clients.spawn(async move {
            let mut micros = Vec::new();
            while begun.elapsed() < time {
                let asked = Instant::now();
                once(&mut sender, &target, &body, stream).await?;
                micros.push(u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX));
            }
            anyhow::Ok(micros)
        });
    }
    let mut micros = Vec::new();
    while let Some(one) = clients.join_next().await {
        micros.extend(one.context("a client")??);
    }
    let took = begun.elapsed();
    micros.sort_unstable();
    Ok(Outcome { micros, took })
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true).context("setting TCP_NODELAY")?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.context("beginning HTTP")?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn once(sender: &mut SendRequest<Full<Bytes>>, target: &Target, body: &Bytes, stream: bool) -> Result<()> {
    sender.ready().await.context("waiting for a connection")?;
    let request = Request::post("/v1/chat/completions")
        .header(HOST, "bench")
        .header(CONTENT_TYPE, "application/json")
        .header(AUTHORIZATION, &target.key)
        .body(Full::new(body.clone()))
        .context("a request")?;
    let response = sender.send_request(request).await.context("asking")?;
    let status = response.status();
    let body = response.into_body().collect().await.context("reading an answer")?.to_bytes();
    ensure!(status.is_success(), "an answer is {status}: {}", String::from_utf8_lossy(&body));
    if stream {
        let words = body.windows(5).filter(|part| *part == b"word ").count();
        ensure!(words == FRAMES, "a stream has {words} words");
    } else {
        ensure!(body.ends_with(b"}"), "an answer is not whole");
    }
    Ok(())
}
