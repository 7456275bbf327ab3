//! Questions and answers, without a runtime and without an API server.

use std::path::PathBuf;

use rstest::rstest;
use spillway_crds::{CheckRequest, GpuNodeSpec, GpuNodeStatus};

use super::*;

fn node(asked: Option<&str>, answered: Option<(&str, &str)>) -> GpuNode {
    let check = asked.map(|id| CheckRequest { id: id.to_owned() });
    let mut node = GpuNode::new("gpu-1", GpuNodeSpec { node_uid: "uid-1".to_owned(), check });
    node.status = answered.map(|(id, uid)| {
        let question = Question { id: id.to_owned(), node_uid: uid.to_owned() };
        let check = answer(&question, Ok("boot".to_owned()), Ok(Vec::new()), Timestamp::UNIX_EPOCH);
        GpuNodeStatus { check: Some(check) }
    });
    node
}

fn asked() -> Question {
    Question { id: "q2".to_owned(), node_uid: "uid-1".to_owned() }
}

#[rstest]
#[case::nothing_asked(node(None, None), None)]
#[case::nothing_asked_any_more(node(None, Some(("q1", "uid-1"))), None)]
#[case::first(node(Some("q2"), None), Some(asked()))]
#[case::next(node(Some("q2"), Some(("q1", "uid-1"))), Some(asked()))]
#[case::answered(node(Some("q2"), Some(("q2", "uid-1"))), None)]
#[case::answered_for_the_node_before(node(Some("q2"), Some(("q2", "uid-0"))), Some(asked()))]
fn a_question_is_open_until_its_answer_is_there(#[case] node: GpuNode, #[case] open: Option<Question>) {
    assert_eq!(question(&node), open);
}

#[test]
fn an_empty_status_is_no_answer() {
    let mut node = node(Some("q2"), None);
    node.status = Some(GpuNodeStatus::default());
    assert_eq!(question(&node), Some(asked()));
}

fn containers(count: usize) -> Vec<RunningContainer> {
    let line = |at: usize| RunningContainer {
        namespace: "team-a".to_owned(),
        pod: format!("pod-{at:04}"),
        pod_uid: String::new(),
        container: "main".to_owned(),
    };
    (0..count).rev().map(line).collect()
}

#[rstest]
#[case::none(0, 0)]
#[case::at_the_bound(250, 250)]
#[case::above(261, 250)]
fn the_list_is_bounded_and_the_total_is_true(#[case] count: usize, #[case] listed: usize) {
    let check = answer(&asked(), Ok("boot-1".to_owned()), Ok(containers(count)), Timestamp::UNIX_EPOCH);
    let mut expected = containers(count);
    expected.sort();
    expected.truncate(listed);
    assert_eq!(
        check,
        CheckResult {
            id: "q2".to_owned(),
            node_uid: "uid-1".to_owned(),
            boot_id: "boot-1".to_owned(),
            observed_at: Time(Timestamp::UNIX_EPOCH),
            total: i32::try_from(count).expect("a small number"),
            containers: expected,
            error: None,
        }
    );
}

#[test]
fn a_runtime_that_fails_is_said_and_lists_nothing() {
    let failure =
        cri::Error::Timeout { socket: PathBuf::from("/run/x.sock"), timeout: std::time::Duration::from_secs(10) };
    let check = answer(&asked(), Ok("boot-1".to_owned()), Err(failure), Timestamp::UNIX_EPOCH);
    assert_eq!(check.error.as_deref(), Some("no answer of the container runtime at /run/x.sock within 10000 ms"));
    assert_eq!((check.boot_id.as_str(), check.total, check.containers), ("boot-1", 0, Vec::new()));
}

#[test]
fn a_list_without_a_boot_id_is_an_error() {
    let failure = boot::Error::Invalid { path: PathBuf::from("/x") };
    let check = answer(&asked(), Err(failure), Ok(containers(3)), Timestamp::UNIX_EPOCH);
    assert_eq!(check.error.as_deref(), Some("the boot id in /x is empty or longer than 64 characters"));
    assert_eq!((check.boot_id.as_str(), check.total, check.containers), ("", 0, Vec::new()));
}

#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Layer {
    text: String,
    source: Option<Box<Layer>>,
}

#[rstest]
#[case::causes(&["ask", "connect", "refused"], "ask: connect: refused")]
#[case::a_layer_that_prints_its_source(&["ask", "connect: refused", "refused"], "ask: connect: refused")]
fn an_error_is_told_with_its_causes(#[case] layers: &[&str], #[case] told: &str) {
    let wrap = |source, text: &&str| Some(Box::new(Layer { text: (*text).to_owned(), source }));
    let error = layers.iter().rev().fold(None, wrap).expect("a layer");
    assert_eq!(describe(&*error), told);
}

#[rstest]
#[case::at_the_bound(1024, false)]
#[case::above(1025, true)]
fn an_error_is_bounded_in_characters(#[case] count: usize, #[case] cut: bool) {
    let text = describe(&Layer { text: "ä".repeat(count), source: None });
    assert_eq!(text.chars().count(), MAX_ERROR);
    assert_eq!(text.ends_with('…'), cut);
}
