//! PostgreSQL by TLS: a real server, with certificates of the test's making.

use std::path::PathBuf;

use spillway_usage::store::{Error, Migration, Place, Store};
use tempfile::TempDir;

use crate::postgres::Server;
use crate::tls::Authority;
use crate::{all, records};

struct Trusted(TempDir);

impl Trusted {
    fn new(authority: &Authority) -> Self {
        let this = Self(TempDir::new().unwrap());
        this.write(authority);
        this
    }

    fn write(&self, authority: &Authority) {
        std::fs::write(self.file(), &authority.pem).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("ca.crt")
    }
}

async fn open(url: String, authority: Option<PathBuf>) -> Result<Store, Error> {
    Store::open(&Place::Postgres { url, authority }, Migration::Apply).await
}

#[tokio::test]
async fn a_server_is_known_by_its_certificate() {
    let server = Server::start();
    let database = server.new_database();
    let url = |host: &str, query: &str| format!("postgres://usage:hunter2@{host}:{}/{database}{query}", server.port());
    let authority = Authority::new();
    let trusted = Trusted::new(&authority);
    let refused = async |url: String, trusted: Option<PathBuf>| {
        let Err(error) = open(url, trusted).await else { panic!("it was let in") };
        let text = error.to_string();
        assert!(!text.contains("hunter2"), "{text}");
        text
    };

    // Without TLS there: nothing goes to it, unless the URL says so.
    let text = refused(url("localhost", ""), Some(trusted.file())).await;
    assert!(text.contains("the server has no TLS") && text.contains("sslmode=disable"), "{text}");
    open(url("localhost", "?sslmode=disable"), None).await.unwrap();

    let (certificate, key) = authority.sign("localhost", 2099);
    server.serve_tls(&certificate, &key);
    let store = open(url("localhost", ""), Some(trusted.file())).await.unwrap();
    store.put(records(0..5)).await.unwrap();
    assert_eq!(all(&store).await, records(0..5));
    open(url("localhost", "?sslmode=verify-full"), Some(trusted.file())).await.unwrap();
    open(url("127.0.0.1", "?sslmode=disable"), None).await.unwrap();

    // By another name, by another CA of the same name, by none that the system knows.
    let text = refused(url("127.0.0.1", ""), Some(trusted.file())).await;
    assert!(text.contains("must name the host as the server's certificate does"), "{text}");
    let another = Trusted::new(&Authority::new());
    let text = refused(url("localhost", ""), Some(another.file())).await;
    assert!(text.contains("certificate"), "{text}");
    let text = refused(url("localhost", ""), None).await;
    assert!(text.contains("--postgres-ca"), "{text}");
    let text = refused(url("localhost", ""), Some(another.file().with_file_name("nowhere.crt"))).await;
    assert!(text.contains("nowhere.crt"), "{text}");

    // One that has ended.
    let (certificate, key) = authority.sign("localhost", 2025);
    server.serve_tls(&certificate, &key);
    let text = refused(url("localhost", ""), Some(trusted.file())).await;
    assert!(text.contains("is not good"), "{text}");

    // The CA of a server may change: what is in the file counts when a connection is made.
    let next = Authority::new();
    let (certificate, key) = next.sign("localhost", 2099);
    server.serve_tls(&certificate, &key);
    assert!(store.ping().await.is_err());
    trusted.write(&next);
    store.ping().await.unwrap();
}
