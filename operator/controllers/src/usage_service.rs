//! The usage service, as the operator calls it.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, Uri, header::CONTENT_TYPE};
use spillway_metering::shipping::{HeldArchive, SegmentReceipt, Segments};
use spillway_tls::Caller;

/// How long a receipt may take: longer than the service gives its store.
const ANSWER: Duration = Duration::from_secs(50);
/// Bytes of an answer.
const ANSWER_BYTES: usize = 64 << 10;

/// The usage service.
#[derive(Debug)]
pub(crate) struct UsageService {
    base: Uri,
    caller: Caller,
}

impl UsageService {
    /// The service at this address, such as `https://spillway-usage.spillway-system.svc:8090`.
    pub(crate) fn new(base: Uri, caller: Caller) -> Self {
        Self { base, caller }
    }

    /// Posts segments; what it answers for is durable. Gives what of the archive the store has by its own account.
    ///
    /// # Errors
    ///
    /// Why there is no receipt for all of them. They may be stored all the same: to post them again is safe.
    pub(crate) async fn post(&self, segments: &Segments) -> Result<HeldArchive, String> {
        let receipt = tokio::time::timeout(ANSWER, self.ask(segments)).await;
        let SegmentReceipt { receipt, held } =
            receipt.map_err(|_| format!("no answer within {} s", ANSWER.as_secs()))??;
        if receipt.differing > 0 {
            tracing::warn!(?receipt, "GPU time is stored otherwise than the ledger says it; what is stored stands");
        }
        let posted = u64::try_from(segments.segments.len()).unwrap_or(u64::MAX);
        if receipt.total() == posted {
            Ok(held)
        } else {
            Err(format!("a receipt for {} of {posted} segments", receipt.total()))
        }
    }

    async fn ask(&self, segments: &Segments) -> Result<SegmentReceipt, String> {
        let said = |error: &dyn std::fmt::Display| error.to_string();
        let body = serde_json::to_vec(segments).map_err(|error| said(&error))?;
        let mut parts = self.base.clone().into_parts();
        parts.path_and_query = Some(hyper::http::uri::PathAndQuery::from_static("/v1/segments"));
        let uri = Uri::from_parts(parts).map_err(|error| said(&error))?;
        let request = Request::post(uri).header(CONTENT_TYPE, "application/json").body(Full::new(Bytes::from(body)));
        let response = self.caller.request(request.map_err(|error| said(&error))?).await;
        let response = response.map_err(|error| format!("no answer: {error}"))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| said(&error))?.to_bytes();
        if !status.is_success() {
            let text = String::from_utf8_lossy(body.get(..body.len().min(300)).unwrap_or_default()).into_owned();
            return Err(format!("status {status}: {text}"));
        }
        serde_json::from_slice(&body).map_err(|error| format!("the answer cannot be read: {error}"))
    }
}
