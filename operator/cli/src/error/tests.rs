use kube::core::Status;
use rstest::rstest;

use super::*;

fn refused(code: u16, message: &str) -> kube::Error {
    kube::Error::Api(Box::new(Status { code, message: message.to_owned(), ..Status::default() }))
}

#[rstest]
#[case::forbidden("nodes", 403, "ClusterRole with get and list on nodes")]
#[case::unknown_kind("gpupools.spillway.dev", 404, "Install its chart")]
#[case::credentials("nodes", 401, "log in again")]
#[case::broken("nodes", 500, "answered 500")]
fn it_says_what_to_do(#[case] what: &'static str, #[case] code: u16, #[case] expected: &str) {
    let text = report(&Error::Read { what, source: refused(code, "so it is") });
    assert!(text.contains(expected), "{text}");
    assert!(text.ends_with("because: so it is"), "{text}");
}
