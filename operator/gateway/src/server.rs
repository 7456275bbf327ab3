//! Sockets: connections are taken, each with bounds of its own, and let go in an orderly way when we are told to stop.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::proxy::{Gateway, Hangup, Stage};

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// At once.
    pub connections: usize,
    /// Until the head of a request is there.
    pub head: Duration,
    /// Bytes of the head of a request.
    pub head_bytes: usize,
    /// Requests at once on one connection of HTTP/2.
    pub streams: u32,
    /// For which a connection may be without a new request. What runs on it then comes to its end.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            head: Duration::from_secs(10),
            head_bytes: 32 << 10,
            streams: 128,
            idle: Duration::from_secs(90),
        }
    }
}

/// How long connections have after requests were cut off.
const CUT: Duration = Duration::from_secs(2);

/// Takes connections until the gateway is told to stop; returns when none is left, or requests were cut off.
///
/// With `tls` clients must come by it.
pub async fn serve(
    listener: TcpListener,
    gateway: Arc<Gateway>,
    limits: Limits,
    stage: watch::Receiver<Stage>,
    tls: Option<Arc<spillway_tls::Server>>,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    let mut stopping = stage.clone();
    loop {
        tokio::select! {
            biased;
            () = at_least(&mut stopping, Stage::Draining) => break,
            (stream, place) = accept(&listener, &places) => {
                let acceptor = tls.as_ref().map(|tls| tls.acceptor());
                connections.spawn(hold(stream, acceptor, place, Arc::clone(&gateway), limits, stage.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    let cut = async {
        at_least(&mut stopping, Stage::Cutting).await;
        tokio::time::sleep(CUT).await;
    };
    tokio::select! {
        () = ended => {}
        // Their answers have come to an end already, and nobody reads them.
        () = cut => {}
    }
}

/// Until the gateway has come to a stage.
async fn at_least(stage: &mut watch::Receiver<Stage>, wanted: Stage) {
    let reached = |stage: &Stage| *stage == wanted || *stage == Stage::Cutting;
    if stage.wait_for(reached).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Serves one connection to its end.
async fn hold(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    _place: Option<OwnedSemaphorePermit>,
    gateway: Arc<Gateway>,
    limits: Limits,
    mut stage: watch::Receiver<Stage>,
) {
    let Some(acceptor) = acceptor else { return hold_stream(stream, gateway, limits, stage).await };
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(limits.head, acceptor.accept(stream)) => shaken,
        () = at_least(&mut stage, Stage::Draining) => return,
    };
    match shaken {
        Ok(Ok(stream)) => Box::pin(hold_stream(stream, gateway, limits, stage)).await,
        Ok(Err(error)) => tracing::debug!(%error, "a client did not come by TLS"),
        Err(_) => tracing::debug!("a client took too long to come by TLS"),
    }
}

async fn hold_stream<Stream>(stream: Stream, gateway: Arc<Gateway>, limits: Limits, mut stage: watch::Receiver<Stage>)
where
    Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let hangup = Hangup::default();
    // Heads of requests that have come.
    let heads = Arc::new(AtomicU64::new(0));
    let (counted, ending) = (Arc::clone(&heads), hangup.clone());
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        counted.fetch_add(1, Ordering::Relaxed);
        request.extensions_mut().insert(ending.clone());
        let gateway = Arc::clone(&gateway);
        async move { Ok::<_, std::convert::Infallible>(gateway.answer(request).await) }
    });
    let builder = builder(limits);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut seen = 0;
    let mut ends = false;
    loop {
        // hyper's own time limit begins when it knows which HTTP it is, and ends with the first head.
        let wait = if seen == 0 { limits.head } else { limits.idle };
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended");
                }
                return;
            }
            // Who does not read its answers is not waited for.
            () = hangup.0.notified() => return,
            () = at_least(&mut stage, Stage::Draining), if !ends => {
                ends = true;
                connection.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep(wait), if !ends => {
                let now = heads.load(Ordering::Relaxed);
                if now == 0 {
                    return;
                }
                if now == seen {
                    ends = true;
                    connection.as_mut().graceful_shutdown();
                }
                seen = now;
            }
        }
    }
}

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    loop {
        // Closed it is never.
        let place = Arc::clone(places).acquire_owned().await.ok();
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                return (stream, place);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn builder(limits: Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.head_bytes.max(8 << 10))
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_send_buf_size(64 << 10)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}
