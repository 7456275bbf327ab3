//! `/metrics`, `/healthz` and `/readyz`. Every replica answers; a replica that does not lead is ready as well: it is the spare.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{Router, http::StatusCode, routing::get};

use crate::{error::Error, metrics::Metrics};

/// Serves until the process ends.
///
/// # Errors
/// When the address cannot be bound or the server fails.
pub async fn serve(address: std::net::SocketAddr, metrics: Arc<Metrics>, ready: Arc<AtomicBool>) -> Result<(), Error> {
    let app = Router::new()
        .route("/metrics", get(move || async move { metrics.render() }))
        .route("/healthz", get(|| async { "ok" }))
        .route(
            "/readyz",
            get(move || async move {
                if ready.load(Ordering::Acquire) {
                    (StatusCode::OK, "ok")
                } else {
                    (StatusCode::SERVICE_UNAVAILABLE, "the API server has not been reached yet")
                }
            }),
        );
    let source = |source| Error::Http { address, source };
    let listener = tokio::net::TcpListener::bind(address).await.map_err(source)?;
    axum::serve(listener, app).await.map_err(source)
}
