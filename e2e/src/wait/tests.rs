use std::cell::Cell;

use super::*;

#[tokio::test]
async fn an_error_means_not_yet() {
    let calls = Cell::new(0);
    let value = wait_for_value("three calls", Duration::from_secs(5), || async {
        calls.set(calls.get() + 1);
        anyhow::ensure!(calls.get() > 1, "too early");
        Ok((calls.get() > 2).then_some("done"))
    })
    .await
    .unwrap();
    assert_eq!((value, calls.get()), ("done", 3));
}

#[tokio::test]
async fn a_wait_in_vain_ends_and_says_what_was_last_seen() {
    let error = wait_for("the impossible", Duration::from_millis(50), || async { anyhow::bail!("still closed") })
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "waited 0 s in vain for: the impossible, the last attempt said: still closed");
}

#[tokio::test]
async fn a_check_that_hangs_does_not_hang_the_wait() {
    assert!(wait_for("a hanging check", Duration::from_millis(50), std::future::pending).await.is_err());
}
