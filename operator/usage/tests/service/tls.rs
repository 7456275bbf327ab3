//! Who may post: over loopback, with real certificates.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode, Version};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rstest::rstest;
use spillway_metering::shipping::{Receipt, Shipment};
use spillway_tls::{Caller, Client, Files, Peers, Server};
use spillway_usage::leases::Config;
use spillway_usage::server::{Service, posts};
use spillway_usage::socket::{listen, serve_until};
use tempfile::TempDir;

use crate::{Home, Kind, all, records};

pub(crate) const GATEWAY: &str = "spillway-gateway.spillway-system.svc";
pub(crate) const USAGE: &str = "spillway-usage.spillway-system.svc";

pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate until the end of that year, and its key.
    pub(crate) fn sign(&self, name: &str, year: i32) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 12, 31);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// What a pod has mounted.
pub(crate) struct Mount(TempDir);

impl Mount {
    pub(crate) fn new(trusted: &Authority, by: &Authority, name: &str, year: i32) -> Self {
        let this = Self(TempDir::new().unwrap());
        this.write(trusted, by, name, year);
        this
    }

    pub(crate) fn write(&self, trusted: &Authority, by: &Authority, name: &str, year: i32) {
        let (certificate, key) = by.sign(name, year);
        std::fs::write(self.files().certificate, certificate).unwrap();
        std::fs::write(self.files().key, key).unwrap();
        std::fs::write(self.authority(), &trusted.pem).unwrap();
    }

    pub(crate) fn files(&self) -> Files {
        Files { certificate: self.0.path().join("tls.crt"), key: self.0.path().join("tls.key") }
    }

    pub(crate) fn authority(&self) -> PathBuf {
        self.0.path().join("ca.crt")
    }

    pub(crate) async fn server(&self, names: &[&str]) -> Arc<Server> {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Server::load(self.files(), Some(Peers { authority: self.authority(), names })).await.unwrap()
    }

    pub(crate) async fn client(&self) -> Arc<Client> {
        Client::load(self.files(), self.authority()).await.unwrap()
    }
}

struct Stage {
    home: Home,
    address: SocketAddr,
    tls: Arc<Server>,
    service: Arc<Service>,
}

async fn stage(mount: &Mount) -> Stage {
    let home = Home::new(Kind::Sqlite);
    let service = Service::new(home.open().await, Config::default());
    let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = mount.server(&[GATEWAY]).await;
    let app = posts(Arc::clone(&service));
    tokio::spawn(serve_until(listener, app, Some(Arc::clone(&tls)), std::future::pending()));
    Stage { home, address, tls, service }
}

/// Posts a record as a gateway does: by which HTTP it was answered, or why not, with all that it came from.
async fn post(caller: &Caller, address: SocketAddr) -> Result<Version, String> {
    let body = serde_json::to_vec(&Shipment { gateway: "g".into(), records: records(0..1) }).unwrap();
    let request = Request::post(format!("https://{address}/v1/records")).body(Full::new(Bytes::from(body))).unwrap();
    let answer = caller.request(request).await.map_err(|error| format!("{error:?}"))?;
    assert_eq!(answer.status(), StatusCode::OK);
    let version = answer.version();
    let receipt: Receipt = serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(receipt.total(), 1);
    Ok(version)
}

#[tokio::test]
async fn a_gateway_ships_by_http2_with_its_certificate() {
    let authority = Authority::new();
    let stage = stage(&Mount::new(&authority, &authority, USAGE, 2099)).await;
    let gateway = Mount::new(&authority, &authority, GATEWAY, 2099);
    let caller = Caller::new(gateway.client().await, USAGE).unwrap();
    assert_eq!(post(&caller, stage.address).await, Ok(Version::HTTP_2));
    assert_eq!(all(stage.service.store()).await, records(0..1));
    drop(stage.home);
}

#[derive(Debug)]
enum Shown {
    Anothers,
    Expired,
    OtherName,
    ToAnotherServer,
}

/// Nobody else is let in, and a gateway sends nothing to who is not the usage service.
#[rstest]
// One of the same name.
#[case::by_another_authority(Shown::Anothers, "DecryptError")]
#[case::that_has_ended(Shown::Expired, "CertificateExpired")]
#[case::without_a_gateways_name(Shown::OtherName, "BadCertificate")]
#[case::to_one_that_is_not_the_service(Shown::ToAnotherServer, "NotValidForName")]
#[tokio::test]
async fn who_shows_another_certificate_is_refused(#[case] shown: Shown, #[case] why: &str) {
    let (authority, other) = (Authority::new(), Authority::new());
    let stage = stage(&Mount::new(&authority, &authority, USAGE, 2099)).await;
    let (mount, name) = match shown {
        Shown::Anothers => (Mount::new(&authority, &other, GATEWAY, 2099), USAGE),
        Shown::Expired => (Mount::new(&authority, &authority, GATEWAY, 2025), USAGE),
        Shown::OtherName => (Mount::new(&authority, &authority, "acme-gateway.acme.svc", 2099), USAGE),
        Shown::ToAnotherServer => (Mount::new(&authority, &authority, GATEWAY, 2099), "spillway-usage.acme.svc"),
    };
    let caller = Caller::new(mount.client().await, name).unwrap();
    let error = post(&caller, stage.address).await.unwrap_err();
    assert!(error.contains(why), "{error}");
    assert_eq!(all(stage.service.store()).await, []);
}

#[tokio::test]
async fn who_shows_none_is_refused() {
    let authority = Authority::new();
    let stage = stage(&Mount::new(&authority, &authority, USAGE, 2099)).await;
    let output = tokio::task::spawn_blocking(move || {
        let url = format!("https://{}/v1/records", stage.address);
        std::process::Command::new("curl").args(["-sS", "-k", "-m", "10", "-d", "{}", &url]).output().unwrap()
    });
    let output = output.await.unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    // Nor without TLS.
    let plain = crate::api::Http::new().ship(stage.address, "g", records(0..1)).await;
    assert!(plain.is_err());
}

/// Both sides take up what is mounted anew, also by another authority, while they run.
#[tokio::test]
async fn certificates_are_replaced_while_it_serves() {
    let authority = Authority::new();
    let (usage, gateway) =
        (Mount::new(&authority, &authority, USAGE, 2099), Mount::new(&authority, &authority, GATEWAY, 2099));
    let stage = stage(&usage).await;
    let identity = gateway.client().await;
    let caller = Caller::new(Arc::clone(&identity), USAGE).unwrap();
    let fresh = async || Caller::new(gateway.client().await, USAGE).unwrap();
    post(&caller, stage.address).await.unwrap();
    let next = Authority::new();
    usage.write(&next, &next, USAGE, 2099);
    post(&fresh().await, stage.address).await.unwrap();
    stage.tls.look().await;
    let error = post(&fresh().await, stage.address).await.unwrap_err();
    assert!(error.contains("UnknownIssuer") || error.contains("BadSignature"), "{error}");
    gateway.write(&next, &next, GATEWAY, 2099);
    identity.look().await;
    assert_eq!(post(&caller, stage.address).await, Ok(Version::HTTP_2));
    // What cannot be used changes nothing.
    std::fs::write(gateway.files().key, "nonsense").unwrap();
    identity.look().await;
    std::fs::write(usage.authority(), "nonsense").unwrap();
    stage.tls.look().await;
    post(&caller, stage.address).await.unwrap();
}
