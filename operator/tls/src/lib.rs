//! TLS of what serves and of what calls: certificates and keys in files, which are read again when they change, as cert-manager and kubelets change them.
//!
//! [`Caller`] calls with one by HTTP/2. Must not: make certificates, or know what is said. Whose certificate it is that somebody shows is checked while hands are shaken, by its name
//! ([`Peers::names`]): what is signed for somebody else does not let anybody in.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

mod caller;
mod callers;

pub use caller::Caller;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// Where a certificate is.
#[derive(Clone, Debug)]
pub struct Files {
    /// PEM of the certificate, with those between it and its CA after it.
    pub certificate: PathBuf,
    /// PEM of its key.
    pub key: PathBuf,
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Peers {
    /// PEM of the CAs that sign their certificates.
    pub authority: PathBuf,
    /// DNS names of which a certificate must have one. Of none, nobody is let in.
    pub names: Vec<String>,
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
    /// A CA that is none.
    #[error("{path} has a CA that cannot be used: {source}")]
    Authority {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// Nobody could be checked.
    #[error("{path} has no CA that callers can be checked by: {source}")]
    Callers {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls::server::VerifierBuilderError,
    },
    /// A name that no certificate can have.
    #[error("{name:?} is no DNS name")]
    Name {
        /// Which.
        name: String,
    },
}

/// A certificate in files, and how connections are made with it.
#[derive(Debug)]
pub struct Tls<Config> {
    files: Files,
    peers: Option<Peers>,
    make: fn(&Files, Option<&Peers>, &Contents) -> Result<Config, Error>,
    now: RwLock<(Contents, Arc<Config>)>,
}

/// That of one that serves.
pub type Server = Tls<ServerConfig>;
/// That of one that calls.
pub type Client = Tls<ClientConfig>;

/// Of certificate, key and CAs.
type Contents = [Vec<u8>; 3];

impl Tls<ServerConfig> {
    /// Reads the certificate of one that serves; with `callers` nobody else is let in.
    ///
    /// # Errors
    ///
    /// When it is not there, or is not good.
    pub async fn load(files: Files, callers: Option<Peers>) -> Result<Arc<Self>, Error> {
        Self::open(files, callers, server).await
    }

    /// How a connection is begun.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config())
    }
}

impl Tls<ClientConfig> {
    /// Reads the certificate of one that calls servers that `authority` has signed for. Which name is theirs whoever connects says.
    ///
    /// # Errors
    ///
    /// When it is not there, or is not good.
    pub async fn load(files: Files, authority: PathBuf) -> Result<Arc<Self>, Error> {
        Self::open(files, Some(Peers { authority, names: Vec::new() }), client).await
    }

    /// One of PEMs that are in no files, for who makes its certificates itself.
    ///
    /// # Errors
    ///
    /// When they are not good.
    pub fn of(certificate: &str, key: &str, authority: &str) -> Result<Arc<Self>, Error> {
        let files = Files { certificate: "the certificate".into(), key: "the key".into() };
        let peers = Some(Peers { authority: "the CA".into(), names: Vec::new() });
        let contents = [certificate, key, authority].map(|pem| pem.as_bytes().to_vec());
        let config = client(&files, peers.as_ref(), &contents)?;
        Ok(Arc::new(Self { files, peers, make: client, now: RwLock::new((contents, Arc::new(config))) }))
    }
}

impl<Config> Tls<Config> {
    async fn open(
        files: Files,
        peers: Option<Peers>,
        make: fn(&Files, Option<&Peers>, &Contents) -> Result<Config, Error>,
    ) -> Result<Arc<Self>, Error> {
        let contents = read(&files, peers.as_ref()).await?;
        let config = make(&files, peers.as_ref(), &contents)?;
        Ok(Arc::new(Self { files, peers, make, now: RwLock::new((contents, Arc::new(config))) }))
    }

    /// What connections are made with now. Another one, by its address, once the files have changed.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner).1)
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
        let contents = match read(&self.files, self.peers.as_ref()).await {
            Ok(contents) => contents,
            Err(error) => return tracing::warn!(%error, "the certificate stays as it was"),
        };
        if contents == self.now.read().unwrap_or_else(PoisonError::into_inner).0 {
            return;
        }
        match (self.make)(&self.files, self.peers.as_ref(), &contents) {
            Ok(config) => {
                *self.now.write().unwrap_or_else(PoisonError::into_inner) = (contents, Arc::new(config));
                tracing::info!(certificate = %self.files.certificate.display(), "a new certificate is shown");
            }
            // Certificate and key may be written one after the other.
            Err(error) => tracing::warn!(%error, "the certificate stays as it was"),
        }
    }
}

async fn read(files: &Files, peers: Option<&Peers>) -> Result<Contents, Error> {
    let one = |path: &PathBuf| {
        let path = path.clone();
        async move { tokio::fs::read(&path).await.map_err(|source| Error::Read { path, source }) }
    };
    let authority = match peers {
        Some(peers) => one(&peers.authority).await?,
        None => Vec::new(),
    };
    Ok([one(&files.certificate).await?, one(&files.key).await?, authority])
}

type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn chain(files: &Files, [certificate, key, _]: &Contents) -> Result<Chain, Error> {
    let chain = certificates(&files.certificate, certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key);
    let key = key.map_err(|source| Error::Pem { path: files.key.clone(), what: "private key", source })?;
    Ok((chain, key))
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    all.map_err(|source| Error::Pem { path: path.to_owned(), what: "certificate", source })
}

/// The CAs of a PEM, which is that of a file.
///
/// # Errors
///
/// When there is one among them that cannot be used, or none at all.
pub fn authorities(path: &Path, pem: &[u8]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(path, pem)? {
        roots.add(authority).map_err(|source| Error::Authority { path: path.to_owned(), source })?;
    }
    if roots.is_empty() {
        return Err(Error::Pem { path: path.to_owned(), what: "certificate", source: pem::Error::NoItemsFound });
    }
    Ok(roots)
}

fn server(files: &Files, callers: Option<&Peers>, contents: &Contents) -> Result<ServerConfig, Error> {
    let (chain, key) = chain(files, contents)?;
    let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?;
    let mut config = match callers {
        None => builder.with_no_client_auth().with_single_cert(chain, key)?,
        Some(callers) => {
            let verifier = callers::verifier(callers, contents)?;
            let mut config = builder.with_client_cert_verifier(verifier).with_single_cert(chain, key)?;
            // Who resumes a session shows no certificate: one that has ended since would still do.
            config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            config
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn client(files: &Files, servers: Option<&Peers>, contents: &Contents) -> Result<ClientConfig, Error> {
    let (chain, key) = chain(files, contents)?;
    let [_, _, pem] = contents;
    let roots = match servers {
        Some(servers) => authorities(&servers.authority, pem)?,
        None => RootCertStore::empty(),
    };
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    Ok(config)
}
