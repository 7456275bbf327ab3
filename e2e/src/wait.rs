//! Bounded waiting: the only way in which the lab and its tests wait.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Waits until `check` answers true; an error of `check` counts as "not yet" and is told if the time is over.
pub async fn wait_for<F, Fut>(what: &str, timeout: Duration, mut check: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<bool>>,
{
    wait_for_value(what, timeout, || {
        let answer = check();
        async move { Ok(answer.await?.then_some(())) }
    })
    .await
}

/// Waits until `check` answers with a value, and returns that.
pub async fn wait_for_value<T, F, Fut>(what: &str, timeout: Duration, mut check: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let begun = Instant::now();
    let mut last = None;
    let mut pause = Duration::from_millis(20);
    loop {
        let left = timeout.saturating_sub(begun.elapsed());
        match tokio::time::timeout(left, check()).await {
            Ok(Ok(Some(value))) => return Ok(value),
            Ok(Ok(None)) => last = None,
            Ok(Err(error)) => last = Some(error),
            Err(_) => {}
        }
        if begun.elapsed() + pause >= timeout {
            let because = last.map(|error| format!(", the last attempt said: {error:#}")).unwrap_or_default();
            bail!("waited {} s in vain for: {what}{because}", timeout.as_secs());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(500));
    }
}

#[cfg(test)]
mod tests;
