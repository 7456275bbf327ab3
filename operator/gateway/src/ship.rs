//! What is billed on its way to the usage service: read from the log, posted, and forgotten by the log once it is stored there. At least once; the
//! store knows a record by its id.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use serde::Serialize;
use serde::de::DeserializeOwned;
use spillway_metering::shipping::{Receipt, Shipment as Posted};
use spillway_metering::tokens::{GatewayName, UsageRecord};
use spillway_tls::Caller;
use tokio::task::JoinSet;

use crate::proxy::Gateway;
use crate::wal::{self, Aside, Reader, Refused, Shipment};

/// Records of one shipment.
const RECORDS: usize = 1_000;
/// How long a receipt may take.
const ANSWER: Duration = Duration::from_secs(30);
/// Bytes of an answer.
const ANSWER_BYTES: usize = 4 << 20;
/// How long is waited after a failure, at first, and at most.
pub(crate) const PAUSE: Duration = Duration::from_millis(200);
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(10);
/// What is said of a batch for what a few of its records are: too long a name, or all too much together. Anything else is not about the records.
const ONE_BY_ONE: [StatusCode; 2] = [StatusCode::UNPROCESSABLE_ENTITY, StatusCode::PAYLOAD_TOO_LARGE];
/// How long records are waited for, to ship some together.
const TOGETHER: Duration = Duration::from_millis(200);

/// Why the usage service did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is to be posted makes no request.
    #[error("it is no request: {0}")]
    Request(#[from] hyper::http::Error),
    /// No answer.
    #[error("no answer: {}", with_sources(.0))]
    Client(#[from] hyper_util::client::legacy::Error),
    /// No answer in time.
    #[error("no answer within {} s", within.as_secs())]
    Slow {
        /// The time.
        within: Duration,
    },
    /// Another status than that of an answer.
    #[error("status {status}: {said}")]
    Status {
        /// The status.
        status: StatusCode,
        /// What it said, shortened.
        said: String,
    },
    /// An answer that is none.
    #[error("the answer cannot be read: {0}")]
    Answer(String),
}

/// The usage service, as a gateway calls it.
#[derive(Clone, Debug)]
pub struct UsageService {
    base: Uri,
    caller: Caller,
}

impl UsageService {
    /// The service at this address, such as `https://spillway-usage.spillway-system.svc:8090`.
    pub fn new(base: Uri, caller: Caller) -> Self {
        Self { base, caller }
    }

    /// Posts JSON and reads the answer.
    ///
    /// # Errors
    ///
    /// [`Error`]. Whether what was posted had its effect is not known then.
    pub async fn post<Answer: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        within: Duration,
    ) -> Result<Answer, Error> {
        let body = serde_json::to_vec(body).map_err(|error| Error::Answer(error.to_string()))?;
        let mut parts = self.base.clone().into_parts();
        parts.path_and_query = Some(path.parse().map_err(hyper::http::Error::from)?);
        let uri = Uri::from_parts(parts).map_err(hyper::http::Error::from)?;
        let request = Request::post(uri)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(Full::new(Bytes::from(body)))?;
        let asked = async {
            let response = self.caller.request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| Error::Answer(error.to_string()))?.to_bytes();
            if !status.is_success() {
                let said = String::from_utf8_lossy(body.get(..body.len().min(200)).unwrap_or_default()).into_owned();
                return Err(Error::Status { status, said });
            }
            serde_json::from_slice(&body).map_err(|error| Error::Answer(error.to_string()))
        };
        tokio::time::timeout(within, asked).await.map_err(|_| Error::Slow { within })?
    }
}

/// An error with what it came from: that a certificate was refused is far below.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Ships what the log has, now and to come. Runs until the log is closed.
pub async fn ship(gateway: Arc<Gateway>, service: UsageService, name: GatewayName) {
    let mut durable = gateway.wal().durable();
    let mut reader = gateway.wal().reader();
    let mut pause = PAUSE;
    // Beside the others: there may be many, and they go one by one.
    let mut trying = JoinSet::new();
    trying.spawn({
        let (service, name, aside) = (service.clone(), name.clone(), Arc::clone(gateway.wal().aside()));
        async move {
            match store_aside(&service, &name, &aside).await {
                Ok(0) => {}
                Ok(stored) => tracing::info!(stored, "bills that were set aside are stored now"),
                Err(why) => tracing::warn!(why, "bills that are set aside could not be tried again"),
            }
        }
    });
    loop {
        let shipment = match read(reader).await {
            Ok((back, shipment)) => {
                reader = back;
                shipment
            }
            Err(why) => {
                tracing::error!(why, "the log cannot be read: nothing is shipped until it can");
                tokio::time::sleep(PAUSE_MAX).await;
                // The old one may be beyond what it could not read.
                reader = gateway.wal().reader();
                continue;
            }
        };
        let Some(shipment) = shipment else {
            if durable.changed().await.is_err() {
                return;
            }
            tokio::time::sleep(TOGETHER).await;
            continue;
        };
        while let Err(why) = store(&service, &name, gateway.wal().aside(), &shipment.records).await {
            tracing::warn!(why, "what is billed is not stored yet; it is shipped again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        pause = PAUSE;
        gateway.wal().acknowledge(shipment.up_to);
    }
}

/// Has records stored, each or those of it that the service does not take set aside; an error is why that is not known of all.
pub(crate) async fn store(
    service: &UsageService,
    name: &GatewayName,
    aside: &Arc<Aside>,
    records: &[UsageRecord],
) -> Result<(), String> {
    let mut waiting = vec![records];
    while let Some(part) = waiting.pop() {
        let why = match post(service, name, part.to_vec()).await {
            Ok(()) => continue,
            Err(Error::Status { status, said }) if ONE_BY_ONE.contains(&status) => said,
            Err(error) => return Err(error.to_string()),
        };
        // It is one of them: the others go on.
        if part.len() > 1 {
            let (first, second) = part.split_at(part.len() / 2);
            waiting.extend([second, first]);
            continue;
        }
        let Some(record) = part.first() else { continue };
        tracing::error!(id = %record.opening.id, why, "the usage service does not take a bill: it is set aside beside the log");
        let refused = Refused { why, record: record.clone() };
        let aside = Arc::clone(aside);
        blocking(move || aside.put(refused)).await?;
    }
    Ok(())
}

/// Tries what is set aside once more, one by one; how many of them are stored now.
pub(crate) async fn store_aside(
    service: &UsageService,
    name: &GatewayName,
    aside: &Arc<Aside>,
) -> Result<usize, String> {
    let mut stored = Vec::new();
    let mut outcome = Ok(());
    for Refused { record, .. } in aside.all() {
        let id = record.opening.id;
        match post(service, name, vec![record]).await {
            Ok(()) => stored.push(id),
            Err(Error::Status { status, .. }) if ONE_BY_ONE.contains(&status) => {}
            Err(error) => {
                outcome = Err(error.to_string());
                break;
            }
        }
    }
    let (count, forgetting) = (stored.len(), Arc::clone(aside));
    blocking(move || forgetting.forget(&stored)).await?;
    outcome.map(|()| count)
}

async fn blocking(step: impl FnOnce() -> Result<(), wal::Error> + Send + 'static) -> Result<(), String> {
    let done = tokio::task::spawn_blocking(step).await.map_err(|error| error.to_string())?;
    done.map_err(|error| error.to_string())
}

/// Posts records; each has its place in the receipt.
async fn post(service: &UsageService, name: &GatewayName, records: Vec<UsageRecord>) -> Result<(), Error> {
    let posted = Posted { gateway: name.clone(), records };
    let receipt = service.post::<Receipt>("/v1/records", &posted, ANSWER).await?;
    if receipt.total() == posted.records.len() as u64 {
        return Ok(());
    }
    Err(Error::Answer(format!("it answers for {} of {} records", receipt.total(), posted.records.len())))
}

/// Reads the next shipment where that may block.
pub(crate) async fn read(mut reader: Reader) -> Result<(Reader, Option<Shipment>), String> {
    let read = tokio::task::spawn_blocking(move || {
        let next = reader.next(RECORDS);
        next.map(|shipment| (reader, shipment))
    });
    read.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}
