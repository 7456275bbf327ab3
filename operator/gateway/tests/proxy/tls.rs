//! Clients that come by TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use spillway_tls::{Error, Files, Server};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::engine::{Engine, Script};
use crate::stage::{BOUND, Setting, Stage, chat, key};

/// A certificate for `localhost`, in files.
pub(crate) struct Certificate {
    dir: TempDir,
    pub(crate) pem: String,
}

impl Certificate {
    pub(crate) fn new() -> Self {
        let mut this = Self { dir: TempDir::new().unwrap(), pem: String::new() };
        this.renew();
        this
    }

    fn renew(&mut self) {
        let key = KeyPair::generate().unwrap();
        self.pem = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
        std::fs::write(self.files().certificate, &self.pem).unwrap();
        std::fs::write(self.files().key, key.serialize_pem()).unwrap();
    }

    pub(crate) fn files(&self) -> Files {
        Files { certificate: self.dir.path().join("tls.crt"), key: self.dir.path().join("tls.key") }
    }

    /// A client that trusts this one and no other.
    async fn connect(
        &self,
        address: SocketAddr,
        alpn: &[u8],
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(address).await?;
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
    }
}

fn request(stage: &Stage) -> Request<http_body_util::Full<bytes::Bytes>> {
    Request::post(format!("https://localhost:{}/v1/chat/completions", stage.address.port()))
        .header("host", "localhost")
        .header("authorization", format!("Bearer {}", key()))
        .header("content-type", "application/json")
        .body(chat(json!({})).to_string().into())
        .unwrap()
}

#[tokio::test]
async fn clients_come_by_tls_and_by_either_http() {
    let certificate = Certificate::new();
    let tls = Server::load(certificate.files(), None).await.unwrap();
    let engine = Engine::start(Script::default()).await;
    let stage = Stage::with(Setting { tls: Some(Arc::clone(&tls)), ..Setting::default() }, &[&engine]).await;

    let stream = certificate.connect(stage.address, b"http/1.1").await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(sender.send_request(request(&stage)).await.unwrap().status(), 200);

    let stream = certificate.connect(stage.address, b"h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(sender.send_request(request(&stage)).await.unwrap().status(), 200);
    stage.bills(2).await;

    // Without TLS nobody gets anywhere.
    let plain = TcpStream::connect(stage.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(plain)).await.unwrap();
    tokio::spawn(connection);
    assert!(sender.send_request(request(&stage)).await.is_err());
}

#[tokio::test]
async fn a_certificate_is_replaced_while_it_serves() {
    let mut certificate = Certificate::new();
    let tls = Server::load(certificate.files(), None).await.unwrap();
    let engine = Engine::start(Script::default()).await;
    let stage = Stage::with(Setting { tls: Some(Arc::clone(&tls)), ..Setting::default() }, &[&engine]).await;
    certificate.connect(stage.address, b"h2").await.unwrap();
    certificate.renew();
    assert!(certificate.connect(stage.address, b"h2").await.is_err(), "it was not looked at yet");
    tls.look().await;
    certificate.connect(stage.address, b"h2").await.unwrap();
    // One that is not good changes nothing.
    std::fs::write(certificate.files().key, "nonsense").unwrap();
    tls.look().await;
    certificate.connect(stage.address, b"h2").await.unwrap();
    std::fs::remove_file(certificate.files().key).unwrap();
    tls.look().await;
    certificate.connect(stage.address, b"h2").await.unwrap();
}

#[tokio::test]
async fn who_does_not_shake_hands_is_let_go() {
    let certificate = Certificate::new();
    let tls = Server::load(certificate.files(), None).await.unwrap();
    let server = spillway_gateway::server::Limits { head: Duration::from_millis(200), ..Default::default() };
    let engine = Engine::start(Script::default()).await;
    let stage = Stage::with(Setting { tls: Some(tls), server, ..Setting::default() }, &[&engine]).await;
    let mut silent = TcpStream::connect(stage.address).await.unwrap();
    let mut byte = [0];
    let ended = tokio::time::timeout(BOUND, silent.read(&mut byte)).await.expect("it is kept");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_named() {
    let certificate = Certificate::new();
    let files = certificate.files();
    let swapped = Files { certificate: files.key.clone(), key: files.certificate.clone() };
    let error = Server::load(swapped, None).await.unwrap_err();
    assert!(error.to_string().contains("tls.crt has no PEM of a private key"), "{error}");
    let missing = Files { certificate: files.certificate.with_file_name("other.crt"), ..files.clone() };
    assert!(matches!(Server::load(missing, None).await, Err(Error::Read { .. })));
    let others = Certificate::new();
    let mixed = Files { key: others.files().key, ..files };
    assert!(matches!(Server::load(mixed, None).await, Err(Error::Tls(_))));
}
