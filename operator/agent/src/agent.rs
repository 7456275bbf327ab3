//! The loop of the agent: a watch that keeps the open question, and a worker that answers it.
//!
//! The two meet in a cell that holds at most one question, the newest. So a burst of events costs one answer, a question
//! that was replaced is not answered late, and losing the API server loses nothing: the watch lists again when it is back.

use std::path::PathBuf;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, DefaultBackoff, Event, watcher};
use kube::{Api, Client};
use spillway_crds::{CheckResult, GpuNode};
use tokio::sync::watch;

use crate::answer::{Question, answer, describe, question};
use crate::boot::{BOOT_ID_PATH, read_boot_id};
use crate::cri::Runtime;
use crate::status::{self, write_check};

/// Seconds of one watch call. A connection that died without a word is noticed 5 s after it.
pub const WATCH_SECONDS: u32 = 120;
/// Between two tries of a write, once the growing delays have reached it.
const MAX_DELAY: Duration = Duration::from_secs(30);

/// Why the agent stopped; the pod's restart is the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The watch of the node's `GpuNode` ended, which it never should.
    #[error("the watch of GpuNode {node} ended")]
    WatchEnded {
        /// Name of the node.
        node: String,
    },
}

/// The agent of one node.
#[derive(Clone)]
pub struct Agent {
    api: Api<GpuNode>,
    node: String,
    runtime: Runtime,
    boot_id: PathBuf,
}

impl Agent {
    /// The agent of `node`, which answers for `runtime`.
    pub fn new(client: Client, node: &str, runtime: Runtime) -> Self {
        Self { api: Api::all(client), node: node.to_owned(), runtime, boot_id: PathBuf::from(BOOT_ID_PATH) }
    }

    /// Answers questions for ever; returns only when the watch has ended.
    pub async fn run(&self) -> Result<(), Error> {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.node)).timeout(WATCH_SECONDS);
        let events = watcher(self.api.clone(), config).default_backoff();
        let cell = watch::Sender::new(None);
        tokio::select! {
            () = self.follow(events, &cell) => Err(Error::WatchEnded { node: self.node.clone() }),
            () = self.work(&cell) => Ok(()),
        }
    }

    /// What the node has now, as an answer to `question`. The time is taken before the runtime is asked: everything
    /// that was there at that time is in the answer.
    pub async fn observe(&self, question: &Question) -> CheckResult {
        let observed_at = Timestamp::now();
        let boot_id = read_boot_id(&self.boot_id);
        let containers = self.runtime.list().await;
        answer(question, boot_id, containers, observed_at)
    }

    /// Keeps the cell equal to the open question of the object that the watch shows.
    async fn follow<S>(&self, events: S, cell: &watch::Sender<Option<Question>>)
    where
        S: Stream<Item = watcher::Result<Event<GpuNode>>>,
    {
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            let now = match event {
                Ok(Event::Apply(node) | Event::InitApply(node)) => question(&node),
                Ok(Event::Delete(_)) => None,
                // The list may turn out without the object; then a question in the cell is answered and found gone.
                Ok(Event::Init | Event::InitDone) => continue,
                Err(error) => {
                    tracing::warn!(node = self.node, error = describe(&error), "watch failed, trying again");
                    continue;
                }
            };
            replace(cell, now);
        }
    }

    /// Answers what is in the cell until it is empty, then waits. A write that fails is tried again for as long as its
    /// question stands, each time with a new look at the runtime: what is written late is not old.
    async fn work(&self, cell: &watch::Sender<Option<Question>>) {
        let mut receiver = cell.subscribe();
        let mut delays = DefaultBackoff::default();
        loop {
            // The sender lives in the same task for longer than this loop, so waiting on it does not fail.
            let Ok(question) = receiver.wait_for(Option::is_some).await.map(|open| open.clone()) else { return };
            let Some(question) = question else { continue };
            let check = self.observe(&question).await;
            let (total, failure) = (check.total, check.error.clone());
            match write_check(&self.api, &self.node, check).await {
                Ok(()) => {
                    delays = DefaultBackoff::default();
                    match failure {
                        None => tracing::info!(node = self.node, check = question.id, total, "answered"),
                        Some(error) => {
                            tracing::warn!(node = self.node, check = question.id, error, "answered with an error");
                        }
                    }
                    close(cell, &question);
                }
                Err(status::Error::Gone { .. }) => {
                    tracing::info!(node = self.node, check = question.id, "the question is gone");
                    close(cell, &question);
                }
                Err(error) => {
                    tracing::warn!(node = self.node, check = question.id, error = describe(&error), "trying again");
                    let delay = delays.next().unwrap_or(MAX_DELAY);
                    let replaced = receiver.wait_for(|open| open.as_ref() != Some(&question));
                    // Either way the next round looks into the cell.
                    let _ = tokio::time::timeout(delay, replaced).await;
                }
            }
        }
    }
}

/// Puts `now` into the cell and wakes the worker if that is a change.
fn replace(cell: &watch::Sender<Option<Question>>, now: Option<Question>) {
    cell.send_if_modified(|open| {
        let changed = *open != now;
        if changed {
            *open = now;
        }
        changed
    });
}

/// Empties the cell unless another question has come meanwhile.
fn close(cell: &watch::Sender<Option<Question>>, answered: &Question) {
    cell.send_if_modified(|open| {
        let closes = open.as_ref() == Some(answered);
        if closes {
            *open = None;
        }
        closes
    });
}

#[cfg(test)]
mod tests;
