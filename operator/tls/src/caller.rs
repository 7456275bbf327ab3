//! One that calls by HTTP/2, and shows its certificate where it has one.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client as Connections, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};

use super::Client;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);
/// How often it is asked whether anybody is at the other end: all that is called goes by one connection, and whoever is gone with its machine says
/// nothing.
const ALIVE: Duration = Duration::from_secs(3);

type Pool = Connections<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Calls by HTTP/2. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Caller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    identity: Option<(Arc<Client>, ServerName<'static>)>,
    now: RwLock<(Option<Arc<ClientConfig>>, Pool)>,
}

impl Caller {
    /// One without TLS.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up, which it is nevertheless.
    pub fn plain() -> Result<Self, rustls::Error> {
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let builder = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http2();
        Ok(Self(Arc::new(Inner { identity: None, now: RwLock::new((None, pool(builder.wrap_connector(http())))) })))
    }

    /// One that shows a certificate to servers whose certificate has this name, whatever the host of the address is; it calls nobody else.
    ///
    /// # Errors
    ///
    /// [`super::Error::Name`].
    pub fn new(identity: Arc<Client>, name: &str) -> Result<Self, super::Error> {
        let parsed = ServerName::try_from(name.to_owned());
        let name = parsed.map_err(|_| super::Error::Name { name: name.to_owned() })?;
        let config = identity.config();
        let now = (Some(Arc::clone(&config)), with_identity(&config, &name));
        Ok(Self(Arc::new(Inner { identity: Some((identity, name)), now: RwLock::new(now) })))
    }

    /// Asks. After the certificate changed new connections are made; those before go when they are done.
    ///
    /// # Errors
    ///
    /// When there is no answer: what it was is not known then.
    pub async fn request(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        let pool = self.pool();
        pool.request(request).await
    }

    fn pool(&self) -> Pool {
        let Inner { identity, now } = &*self.0;
        let Some((identity, name)) = identity else {
            return now.read().unwrap_or_else(PoisonError::into_inner).1.clone();
        };
        let config = identity.config();
        {
            let now = now.read().unwrap_or_else(PoisonError::into_inner);
            if now.0.as_ref().is_some_and(|known| Arc::ptr_eq(known, &config)) {
                return now.1.clone();
            }
        }
        let pool = with_identity(&config, name);
        *now.write().unwrap_or_else(PoisonError::into_inner) = (Some(config), pool.clone());
        pool
    }
}

fn http() -> HttpConnector {
    let mut http = HttpConnector::new();
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT));
    http.enforce_http(false);
    http
}

fn with_identity(config: &ClientConfig, name: &ServerName<'static>) -> Pool {
    let builder = HttpsConnectorBuilder::new().with_tls_config(config.clone()).https_only();
    pool(
        builder
            .with_server_name_resolver(FixedServerNameResolver::new(name.clone()))
            .enable_http2()
            .wrap_connector(http()),
    )
}

fn pool(connector: HttpsConnector<HttpConnector>) -> Pool {
    Connections::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .http2_only(true)
        .http2_keep_alive_interval(ALIVE)
        .http2_keep_alive_timeout(ALIVE)
        .http2_keep_alive_while_idle(true)
        .build(connector)
}
