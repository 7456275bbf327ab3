//! Providers that serve models beside our own replicas: how they are reached, and the keys that they ask for.
//!
//! The keys are files of one directory, a mounted Secret: nothing of the API server gives them to a gateway, and an endpoint only names one. Must not: log a key, or send
//! one by anything but HTTPS.

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{Request, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tower_service::Service;

use crate::catalogue::Provider;

/// How often the keys are read again.
const LOOK: Duration = Duration::from_secs(10);
/// How long a connection is kept for the next request: less than providers keep it.
const IDLE: Duration = Duration::from_secs(15);
/// Bytes of a key.
const KEY_BYTES: usize = 8 << 10;

/// Why a provider cannot be asked.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// Its key is not there.
    #[error(
        "there are no credentials {name}: put them into the gateways' Secret of credentials (gateway.providers.secretName of the chart)"
    )]
    NoCredentials {
        /// Under which name.
        name: String,
    },
    /// Its key would go where everybody can read it.
    #[error("{host} is not reached by https, and gets no credentials")]
    NotPrivate {
        /// Where it would go.
        host: String,
    },
}

/// Client and keys.
#[derive(Debug)]
pub struct Providers {
    directory: Option<PathBuf>,
    keys: RwLock<HashMap<String, HeaderValue>>,
    pub(crate) client: Client<Bounded, Full<Bytes>>,
}

/// Makes connections, TLS included, in a time.
#[derive(Clone, Debug)]
pub(crate) struct Bounded {
    https: HttpsConnector<HttpConnector>,
    within: Duration,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Bounded {
    type Response = <HttpsConnector<HttpConnector> as Service<Uri>>::Response;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.https.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, within) = (self.https.call(uri), self.within);
        Box::pin(async move {
            let slow = || format!("no connection within {} ms", within.as_millis());
            tokio::time::timeout(within, connecting).await.map_err(|_| slow())?
        })
    }
}

impl Providers {
    /// With keys in files of this directory, and with these authorities of TLS.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn new(
        directory: Option<PathBuf>,
        roots: RootCertStore,
        connect: Duration,
    ) -> Result<Arc<Self>, rustls::Error> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        http.set_connect_timeout(Some(connect));
        http.enforce_http(false);
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .enable_http2()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            // TLS takes some turns more than a connection.
            .build(Bounded { https, within: connect.saturating_mul(2) });
        Ok(Arc::new(Self { directory, keys: RwLock::default(), client }))
    }

    /// The authorities that the system trusts; `SSL_CERT_FILE` and `SSL_CERT_DIR` name others.
    pub fn system_roots() -> RootCertStore {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "certificates of authorities cannot be read");
        }
        roots.add_parsable_certificates(found.certs);
        roots
    }

    /// Reads the keys now and again. Never ends by itself.
    pub async fn follow(self: Arc<Self>) {
        let Some(directory) = self.directory.clone() else { return };
        loop {
            self.look(&directory).await;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Reads the keys. Those of files that cannot be read stay as they were while the file is there.
    pub async fn look(&self, directory: &Path) {
        let before = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        let place = directory.to_owned();
        match tokio::task::spawn_blocking(move || read(&place, &before)).await {
            Ok(Ok(keys)) => *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys,
            Ok(Err(error)) => {
                let directory = directory.display();
                tracing::warn!(%error, %directory, "the credentials of providers cannot be read: they stay as they were");
            }
            Err(error) => tracing::error!(%error, "reading the credentials of providers failed"),
        }
    }

    /// Adds the key that a provider asks for.
    ///
    /// # Errors
    ///
    /// [`Error`]; nothing is to be sent then.
    pub(crate) fn sign(&self, provider: &Provider, request: &mut Request<Full<Bytes>>) -> Result<(), Error> {
        let Some(name) = &provider.credentials else { return Ok(()) };
        if provider.base.scheme_str() != Some("https") {
            return Err(Error::NotPrivate { host: provider.base.host().unwrap_or_default().to_owned() });
        }
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let key = keys.get(name).cloned().ok_or_else(|| Error::NoCredentials { name: name.clone() })?;
        request.headers_mut().insert(AUTHORIZATION, key);
        Ok(())
    }
}

/// Keys by the names of their files.
fn read(directory: &Path, before: &HashMap<String, HeaderValue>) -> std::io::Result<HashMap<String, HeaderValue>> {
    let mut keys = HashMap::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // A mounted Secret keeps its versions in folders whose names begin with a dot.
        if name.starts_with('.') || !entry.path().is_file() {
            continue;
        }
        let header = std::fs::read_to_string(entry.path()).ok().and_then(|key| header(&key));
        match header.or_else(|| before.get(&name).cloned()) {
            Some(header) => drop(keys.insert(name, header)),
            None => tracing::warn!(name, "credentials of a provider are no key: one line of text is expected"),
        }
    }
    Ok(keys)
}

fn header(key: &str) -> Option<HeaderValue> {
    let key = key.trim();
    if key.is_empty() || key.len() > KEY_BYTES {
        return None;
    }
    let mut header = HeaderValue::try_from(format!("Bearer {key}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}
