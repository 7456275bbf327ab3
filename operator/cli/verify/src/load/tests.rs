//! Against an API server of the test's own: a router that answers lists and writes down what it was asked.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    extract::{Path, State},
    http::{StatusCode, Uri},
    routing::get,
};
use serde_json::{Value, json};

use super::*;
use crate::check;

/// What the server has.
#[derive(Clone, Default)]
struct Server {
    /// Generation of the root at each read, the last one for ever; its index is `index-<generation>`.
    generations: Vec<i64>,
    /// Names of the index pages that there are at each list of pages, the last one for ever.
    pages: Vec<Vec<&'static str>>,
    asked: Arc<Mutex<Vec<String>>>,
}

type Answer = (StatusCode, String);

impl Server {
    fn client(&self) -> Client {
        let router = Router::new()
            .route("/api/v1/pods", get(pods))
            .route("/api/v1/{kind}", get(list_core))
            .route("/apis/spillway.dev/v1alpha1/capacityledgers/cluster", get(root))
            .route("/apis/spillway.dev/v1alpha1/{kind}", get(list_ours))
            .with_state(self.clone());
        Client::new(router, "default")
    }

    /// How often something was asked before, noting it.
    fn ask(&self, what: &str) -> usize {
        let mut asked = self.asked.lock().unwrap();
        asked.push(what.to_owned());
        asked.iter().filter(|other| *other == what).count() - 1
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn nth<T: Clone>(list: &[T], at: usize) -> Option<T> {
    list.get(at).or(list.last()).cloned()
}

fn items(items: &[Value], next: Option<&str>) -> Answer {
    (StatusCode::OK, json!({"metadata": {"continue": next}, "items": items}).to_string())
}

/// Two chunks: a pod on a node of a pool, and one on another node.
async fn pods(State(server): State<Server>, uri: Uri) -> Answer {
    server.ask("pods");
    let query = uri.query().unwrap_or_default();
    assert!(query.contains("fieldSelector=spec.nodeName%21%3D") && query.contains("limit=1000"), "{query}");
    let pod = |name: &str, node: &str| json!({"metadata": {"name": name, "namespace": "x"}, "spec": {"nodeName": node, "containers": []}});
    if query.contains("continue=more") {
        items(&[pod("b", "n2")], None)
    } else {
        items(&[pod("a", "n1")], Some("more"))
    }
}

async fn list_core(State(server): State<Server>, Path(kind): Path<String>) -> Answer {
    server.ask(&kind);
    match kind.as_str() {
        "nodes" => items(&[json!({"metadata": {"name": "n2", "labels": {"spillway.dev/pool": "lab"}}})], None),
        _ => items(&[], None),
    }
}

async fn list_ours(State(server): State<Server>, Path(kind): Path<String>) -> Answer {
    let before = server.ask(&kind);
    let pages = if kind == "capacityledgerpages" { nth(&server.pages, before).unwrap_or_default() } else { vec![] };
    let page = |name: &&str| {
        json!({
            "apiVersion": "spillway.dev/v1alpha1", "kind": "CapacityLedgerPage", "metadata": {"name": name},
            "spec": {"format": 1, "kind": "Index", "pool": "lab",
                "data": json!({"format": 1, "pool": "lab", "bookings": [], "archived": 0}).to_string()},
        })
    };
    items(&pages.iter().map(page).collect::<Vec<_>>(), None)
}

async fn root(State(server): State<Server>) -> Answer {
    let before = server.ask("root");
    let Some(generation) = nth(&server.generations, before) else {
        let missing = json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"});
        return (StatusCode::NOT_FOUND, missing.to_string());
    };
    let root = json!({
        "apiVersion": "spillway.dev/v1alpha1", "kind": "CapacityLedger", "metadata": {"name": "cluster"},
        "spec": {"format": 1, "generation": generation, "epoch": 0, "committedAt": 1,
            "pools": [{"name": "lab", "index": format!("index-{generation}")}]},
    });
    (StatusCode::OK, root.to_string())
}

async fn load_from(server: &Server) -> Result<World, LoadError> {
    load(&server.client(), Settings::default()).await
}

#[tokio::test]
async fn pods_come_first_the_ledger_last_and_lists_are_followed_to_their_end() {
    let server = Server { generations: vec![1], pages: vec![vec!["index-1"]], ..Server::default() };
    let world = load_from(&server).await.unwrap();
    let pods: Vec<&str> = world.pods.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect();
    assert_eq!(pods, ["b"], "only pods of pool nodes are kept");
    assert_eq!(
        server.asked(),
        [
            "pods",
            "pods",
            "nodes",
            "gpureservations",
            "tenants",
            "namespaces",
            "gpupools",
            "root",
            "capacityledgerpages"
        ]
    );
}

/// A commit, and a collection of what it replaced, between the root and its pages.
#[tokio::test]
async fn a_ledger_that_moved_on_is_read_again() {
    let server = Server { generations: vec![1, 2], pages: vec![vec!["index-2"]], ..Server::default() };
    let world = load_from(&server).await.unwrap();
    assert_eq!(world.root.unwrap().spec.generation, 2);
}

/// Pages that were replaced and not collected yet do no harm, and no second look is taken.
#[tokio::test]
async fn a_ledger_whose_pages_are_all_there_is_believed() {
    let server = Server { generations: vec![1, 2], pages: vec![vec!["index-1", "index-2"]], ..Server::default() };
    let world = load_from(&server).await.unwrap();
    assert_eq!(world.root.unwrap().spec.generation, 1);
}

#[tokio::test]
async fn a_page_that_is_lost_is_found_missing() {
    let server = Server { generations: vec![1], pages: vec![vec!["index-0"]], ..Server::default() };
    let world = load_from(&server).await.unwrap();
    assert!(check(&world).iter().any(|violation| violation.code == "PageMissing"));
}

#[tokio::test]
async fn a_ledger_that_never_rests_is_an_error() {
    let server = Server { generations: (1..20).collect(), pages: vec![vec!["index-0"]], ..Server::default() };
    let error = load_from(&server).await.unwrap_err();
    assert!(matches!(error, LoadError::Restless), "{error}");
}

#[tokio::test]
async fn no_ledger_is_no_error() {
    let server = Server::default();
    assert!(load_from(&server).await.unwrap().root.is_none());
}
