//! An engine that takes its time and counts.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

const ANSWER: &str = r#"{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"one two three four five"},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}"#;

#[derive(Default)]
struct Counts {
    asked: AtomicU64,
    now: AtomicU64,
    most: AtomicU64,
}

/// One that is at the engine until this is dropped, as it is when its caller goes away.
struct Here(Arc<Counts>);

impl Drop for Here {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(crate) struct Engine {
    pub(crate) address: SocketAddr,
    counts: Arc<Counts>,
}

impl Engine {
    pub(crate) async fn start(takes: Duration) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("listening")?;
        let address = listener.local_addr().context("the address")?;
        let counts: Arc<Counts> = Arc::default();
        let counted = Arc::clone(&counts);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let counts = Arc::clone(&counted);
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let counts = Arc::clone(&counts);
                        async move { Ok::<_, Infallible>(answer(request, counts, takes).await) }
                    });
                    // That a gateway breaks off is what one of the tests does.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Self { address, counts })
    }

    /// Requests that came.
    pub(crate) fn asked(&self) -> u64 {
        self.counts.asked.load(Ordering::SeqCst)
    }

    /// The most that were here at once.
    pub(crate) fn most_at_once(&self) -> u64 {
        self.counts.most.load(Ordering::SeqCst)
    }

    pub(crate) fn forget_most(&self) {
        self.counts.most.store(0, Ordering::SeqCst);
    }
}

async fn answer(request: Request<Incoming>, counts: Arc<Counts>, takes: Duration) -> Response<Full<Bytes>> {
    counts.asked.fetch_add(1, Ordering::SeqCst);
    let now = counts.now.fetch_add(1, Ordering::SeqCst) + 1;
    counts.most.fetch_max(now, Ordering::SeqCst);
    let here = Here(counts);
    let _ = request.into_body().collect().await;
    tokio::time::sleep(takes).await;
    drop(here);
    let mut response = Response::new(Full::from(ANSWER));
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    response
}
