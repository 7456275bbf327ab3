//! The loop against an API server and a runtime of the test's own.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::stream;
use serde_json::{Value, json};
use spillway_crds::{CheckRequest, GpuNodeSpec, GpuNodeStatus};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use super::*;
use crate::fake_api::{Seen, fake_client};

/// Longer than the first delay between two tries.
const LONG: Duration = Duration::from_secs(10);
/// Long enough to see that nothing comes.
const SHORT: Duration = Duration::from_millis(300);

fn node(asked: Option<&str>) -> GpuNode {
    let check = asked.map(|id| CheckRequest { id: id.to_owned() });
    let mut node = GpuNode::new("gpu-1", GpuNodeSpec { node_uid: "uid-1".to_owned(), check });
    node.metadata.resource_version = Some("5".to_owned());
    node
}

fn asked(id: &str) -> Option<Question> {
    Some(Question { id: id.to_owned(), node_uid: "uid-1".to_owned() })
}

/// An agent whose node asks `q1` once, has no runtime, and whose writes are answered with `codes` and then with 200.
fn agent(codes: &'static [u16]) -> (Agent, UnboundedReceiver<Seen>) {
    let tries = Arc::new(AtomicUsize::new(0));
    let stored = serde_json::to_value(node(Some("q1"))).expect("JSON");
    let (client, requests) = fake_client(move |request| match request.method.as_str() {
        "PATCH" => match codes.get(tries.fetch_add(1, Ordering::SeqCst)) {
            Some(code) => Some((*code, json!({"kind": "Status", "code": code, "message": "no", "reason": "x"}))),
            None => Some((200, stored.clone())),
        },
        "GET" if request.uri.contains("watch=true") => None,
        _ => Some((
            200,
            json!({"apiVersion": "spillway.dev/v1alpha1", "kind": "GpuNodeList",
                   "metadata": {"resourceVersion": "5"}, "items": [stored.clone()]}),
        )),
    });
    (Agent::new(client, "gpu-1", Runtime::new(Path::new("/nonexistent/cri.sock"))), requests)
}

/// The next write that the agent sends, or nothing within `wait`; the watch's requests are checked on the way.
async fn next_write(requests: &mut UnboundedReceiver<Seen>, wait: Duration) -> Option<Value> {
    let next = async {
        loop {
            let request = requests.recv().await.expect("the agent runs");
            if request.method == "PATCH" {
                return request.body;
            }
            assert!(request.uri.contains("fieldSelector=metadata.name%3Dgpu-1"), "{}", request.uri);
        }
    };
    timeout(wait, next).await.ok()
}

#[tokio::test]
async fn a_question_is_answered_once_also_when_the_first_write_fails() {
    let (agent, mut requests) = agent(&[500]);
    let running = tokio::spawn(async move { agent.run().await });
    for _ in 0..2 {
        let write = next_write(&mut requests, LONG).await.expect("a write");
        let check = &write["status"]["check"];
        assert_eq!((&check["id"], &check["nodeUid"], &check["total"]), (&json!("q1"), &json!("uid-1"), &json!(0)));
        assert!(check["error"].as_str().is_some_and(|text| text.contains("connect to the container runtime")));
        assert!(check["bootId"].as_str().is_some_and(|id| !id.is_empty()));
    }
    assert_eq!(next_write(&mut requests, SHORT).await, None, "nothing ticks");
    running.abort();
}

#[tokio::test]
async fn a_question_of_a_deleted_object_is_dropped() {
    let (agent, mut requests) = agent(&[404]);
    let running = tokio::spawn(async move { agent.run().await });
    assert!(next_write(&mut requests, LONG).await.is_some());
    assert_eq!(next_write(&mut requests, 5 * SHORT).await, None);
    running.abort();
}

#[tokio::test]
async fn a_question_that_replaces_one_that_cannot_be_written_is_answered_at_once() {
    let (agent, mut requests) = agent(&[500, 500, 500, 500, 500]);
    let cell = watch::Sender::new(asked("q1"));
    let script = async {
        assert_eq!(next_write(&mut requests, LONG).await.expect("a write")["status"]["check"]["id"], "q1");
        replace(&cell, asked("q2"));
        assert_eq!(next_write(&mut requests, SHORT).await.expect("a write")["status"]["check"]["id"], "q2");
        replace(&cell, None);
        assert_eq!(next_write(&mut requests, 5 * SHORT).await, None);
    };
    tokio::select! {
        () = agent.work(&cell) => panic!("the worker ended"),
        () = script => {}
    }
}

#[tokio::test]
async fn the_cell_follows_the_object() {
    let (agent, _requests) = agent(&[]);
    let mut answered = node(Some("q2"));
    answered.status = Some(GpuNodeStatus { check: Some(agent.observe(&asked("q2").expect("a question")).await) });
    let gone = || watcher::Error::NoResourceVersion;
    let steps: Vec<(watcher::Result<Event<GpuNode>>, Option<Question>)> = vec![
        (Ok(Event::Init), None),
        (Ok(Event::InitApply(node(None))), None),
        (Ok(Event::InitDone), None),
        (Ok(Event::Apply(node(Some("q1")))), asked("q1")),
        (Err(gone()), asked("q1")),
        (Ok(Event::Init), asked("q1")),
        (Ok(Event::InitApply(node(Some("q2")))), asked("q2")),
        (Ok(Event::InitDone), asked("q2")),
        (Ok(Event::Apply(answered)), None),
        (Ok(Event::Apply(node(Some("q3")))), asked("q3")),
        (Ok(Event::Delete(node(Some("q3")))), None),
    ];
    let cell = watch::Sender::new(None);
    for (event, expected) in steps {
        let shown = format!("{event:?}");
        agent.follow(stream::iter([event]), &cell).await;
        assert_eq!(*cell.borrow(), expected, "after {shown}");
    }
}

#[test]
fn an_answer_closes_its_own_question_only() {
    let cell = watch::Sender::new(asked("q2"));
    close(&cell, &asked("q1").expect("a question"));
    assert_eq!(*cell.borrow(), asked("q2"));
    close(&cell, &asked("q2").expect("a question"));
    assert_eq!(*cell.borrow(), None);
}
