//! TLS for clients: a certificate and its key in files, which are read again when they change, as cert-manager and kubelets change them.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio_rustls::TlsAcceptor;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// Where the certificate is.
#[derive(Clone, Debug)]
pub struct Files {
    /// PEM of the certificate, with those between it and its CA after it.
    pub certificate: PathBuf,
    /// PEM of its key.
    pub key: PathBuf,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("reading {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is no PEM of its kind.
    #[error("{path} has no PEM of a {what}: {source}")]
    Pem {
        /// Which.
        path: PathBuf,
        /// What should be in it.
        what: &'static str,
        /// Why.
        source: pem::Error,
    },
    /// They do not belong together.
    #[error("certificate and key cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

/// The certificate that clients are shown.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    now: RwLock<(Contents, Arc<ServerConfig>)>,
}

type Contents = (Vec<u8>, Vec<u8>);

impl Tls {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// When it is not there, or is not good.
    pub async fn load(files: Files) -> Result<Arc<Self>, Error> {
        let contents = read(&files).await?;
        let config = config(&files, &contents)?;
        Ok(Arc::new(Self { files, now: RwLock::new((contents, Arc::new(config))) }))
    }

    /// How a connection is begun.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner).1))
    }

    /// Reads it again whenever it changes; one that is not good is told of, and the one before stays. Never ends by itself.
    pub async fn follow(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look().await;
        }
    }

    /// Looks whether it changed.
    pub async fn look(&self) {
        let contents = match read(&self.files).await {
            Ok(contents) => contents,
            Err(error) => return tracing::warn!(%error, "the certificate stays as it was"),
        };
        if contents == self.now.read().unwrap_or_else(PoisonError::into_inner).0 {
            return;
        }
        match config(&self.files, &contents) {
            Ok(config) => {
                *self.now.write().unwrap_or_else(PoisonError::into_inner) = (contents, Arc::new(config));
                tracing::info!("clients are shown a new certificate");
            }
            // Certificate and key may be written one after the other.
            Err(error) => tracing::warn!(%error, "the certificate stays as it was"),
        }
    }
}

async fn read(files: &Files) -> Result<Contents, Error> {
    let one = |path: &PathBuf| {
        let path = path.clone();
        async move { tokio::fs::read(&path).await.map_err(|source| Error::Read { path, source }) }
    };
    Ok((one(&files.certificate).await?, one(&files.key).await?))
}

fn config(files: &Files, (certificate, key): &Contents) -> Result<ServerConfig, Error> {
    let bad = |path: &PathBuf, what| {
        let path = path.clone();
        move |source| Error::Pem { path, what, source }
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.map_err(bad(&files.certificate, "certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(bad(&files.key, "private key"))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
