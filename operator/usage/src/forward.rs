//! Questions for leases on their way to the service that answers them, where several share a database.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use spillway_metering::shipping::MOST_BYTES;
use spillway_tls::Caller;

/// How long the other one may take: gateways wait for a second.
const ANSWER: Duration = Duration::from_millis(800);
/// What is forwarded is not forwarded again.
pub const FORWARDED: HeaderName = HeaderName::from_static("spillway-forwarded");

/// How another service is called.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Shows our certificate.
    pub caller: Caller,
    /// Where the others reach us, such as `https://10.0.0.7:8000`.
    pub address: String,
}

impl Forward {
    /// The answer of the service at an address, as it is.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub async fn ask(&self, address: &str, body: Bytes) -> Result<(StatusCode, Bytes), String> {
        let request = Request::post(format!("{address}/v1/leases"))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(FORWARDED, HeaderValue::from_static("1"))
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        let asking = async {
            let answer = self.caller.request(request).await.map_err(|error| error.to_string())?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await;
            Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
        };
        tokio::time::timeout(ANSWER, asking).await.map_err(|_| format!("no answer within {} ms", ANSWER.as_millis()))?
    }
}
