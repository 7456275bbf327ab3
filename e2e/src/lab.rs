//! [`Lab`]: a running cluster, and what tests do with it.

mod bring_up;
mod commands;
mod identity;
mod nodes;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use crate::cluster_spec::{LabOptions, Size};
use crate::fake_node::{self, FakeNode};
use crate::process::{Identity, ProcessSpec, tail};
use crate::progress::say;
use crate::state::{ProcessRecord, State};
use crate::teardown::tear_down;
use crate::tools::Tools;

/// How long a process has to end by itself before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// A running Kubernetes. [`Lab::stop`] takes it down. Dropping it does so too, but that is what a failed test does: the last lines of the logs
/// are printed and the logs kept. A lab that was started with `keep` stays in either case but `stop`.
///
/// ```no_run
/// # async fn example() -> anyhow::Result<()> {
/// use spillway_lab::{FakeNode, Lab, LabOptions, Size};
///
/// let lab = Lab::start(LabOptions::new(Size::Cluster)).await?;
/// lab.add_fake_nodes(&[FakeNode::new("gpu-0", "H100").label("spillway.dev/pool", "h100")]).await?;
/// lab.kubectl(&["get", "nodes"]).await?;
/// lab.stop()
/// # }
/// ```
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    tools: Tools,
    state: Mutex<State>,
    /// Set once the API server is up.
    config: Option<kube::Config>,
    /// While it is held the guard sleeps.
    guard: Option<ChildStdin>,
    down: bool,
}

impl Lab {
    /// Brings a lab up and waits until it is usable: the API answers, the default ServiceAccount is there, real nodes are Ready with their GPUs.
    ///
    /// Builds the tools first if the cache has none, which takes minutes. What an earlier, killed lab left is cleaned up before.
    pub async fn start(options: LabOptions) -> Result<Self> {
        Box::pin(bring_up::start(options)).await
    }

    /// Takes hold of a lab that `lab up` (or `keep`) left running.
    pub async fn attach(name: &str) -> Result<Self> {
        let dir = crate::paths::base_dir().join(name);
        let state = State::read(&dir)?
            .with_context(|| format!("there is no lab '{name}': `lab up --name {name}` starts one"))?;
        let tools = tokio::task::spawn_blocking(Tools::ensure).await.context("looking for the tools")??;
        let mut lab = Self { dir, tools, state: Mutex::new(state), config: None, guard: None, down: false };
        lab.config = Some(identity::config_of(&lab.kubeconfig()).await?);
        Ok(lab)
    }

    /// The lab's name.
    pub fn name(&self) -> String {
        self.state().name.clone()
    }

    /// The lab's size.
    pub fn size(&self) -> Size {
        self.state().size
    }

    /// The lab's own folder; it goes with the lab.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The API server's address.
    pub fn server(&self) -> Option<String> {
        self.state().server.clone()
    }

    /// Starts a process of the test's own, such as an operator. It is the lab's from then on: it is logged, guarded and taken down with it.
    pub fn spawn(&self, spec: ProcessSpec) -> Result<()> {
        let mut state = self.state();
        let name = spec.name.clone();
        if let Some(record) = state.processes.get(&name)
            && record.identity.is_some_and(|process| process.is_alive())
        {
            anyhow::bail!("the lab runs a process '{name}' already");
        }
        let identity = spec.start(&self.log(&name), state.detached)?;
        state.processes.insert(name, ProcessRecord { spec, identity: Some(identity) });
        state.write(&self.dir)
    }

    /// Ends a process by SIGTERM, and SIGKILL ten seconds later. [`Self::start_process`] starts it again.
    pub fn stop_process(&self, name: &str) -> Result<()> {
        self.end_process(name, STOP_GRACE)
    }

    /// Ends a process by SIGKILL at once.
    pub fn kill_process(&self, name: &str) -> Result<()> {
        self.end_process(name, Duration::ZERO)
    }

    fn end_process(&self, name: &str, grace: Duration) -> Result<()> {
        let identity = self.identity(name)?;
        identity.end(grace).with_context(|| format!("stopping {name}"))?;
        self.update_state(|state| {
            if let Some(record) = state.processes.get_mut(name) {
                record.identity = None;
            }
        })
    }

    /// Starts a process again that was stopped or that died, with the arguments it had.
    pub fn start_process(&self, name: &str) -> Result<()> {
        let spec = self
            .state()
            .processes
            .get(name)
            .with_context(|| format!("the lab knows no process '{name}'"))?
            .spec
            .clone();
        self.spawn(spec)
    }

    /// Sends a signal to a process of the lab, for instance `SIGSTOP`.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        self.identity(name)?.signal(signal)
    }

    /// Whether a process of the lab runs.
    pub fn is_running(&self, name: &str) -> bool {
        self.identity(name).is_ok_and(|process| process.is_alive())
    }

    /// The pid of a process of the lab.
    pub fn pid(&self, name: &str) -> Result<i32> {
        Ok(self.identity(name)?.pid)
    }

    /// The names of the lab's processes.
    pub fn processes(&self) -> Vec<String> {
        self.state().processes.keys().cloned().collect()
    }

    fn identity(&self, name: &str) -> Result<Identity> {
        let state = self.state();
        let record = state.processes.get(name).with_context(|| format!("the lab knows no process '{name}'"))?;
        record.identity.with_context(|| format!("{name} is stopped"))
    }

    /// The path of a process's log.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// The last lines of every log.
    pub fn logs_tail(&self) -> String {
        logs_tail(&self.dir, 15)
    }

    /// Creates fake nodes, many at a time, and waits until all of them are Ready. Needs at least the cluster size.
    pub async fn add_fake_nodes(&self, nodes: &[FakeNode]) -> Result<()> {
        anyhow::ensure!(self.size() >= Size::Cluster, "a lab of size api has no fake nodes: take the size cluster");
        fake_node::create(self.client()?, nodes).await?;
        let names: std::collections::BTreeSet<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
        // A thousand nodes take ten seconds on two cores.
        let bound =
            Duration::from_secs(30) + Duration::from_millis(60) * u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        self.wait_for("the fake nodes to be Ready", bound, || async {
            Ok(fake_node::count_ready(self.client()?, &names).await? == names.len())
        })
        .await
    }

    /// Waits until `check` answers true. See [`crate::wait_for`].
    pub async fn wait_for<F, Fut>(&self, what: &str, timeout: Duration, check: F) -> Result<()>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<bool>>,
    {
        crate::wait::wait_for(what, timeout, check).await
    }

    /// Takes the lab down and removes all that it had: what a test does when it went well.
    pub fn stop(mut self) -> Result<()> {
        self.take_down(false)
    }

    fn take_down(&mut self, keep_logs: bool) -> Result<()> {
        self.down = true;
        let result = tear_down(&self.dir, keep_logs);
        // The guard was killed with the rest; its pipe goes last, or it would have begun to do the same.
        self.guard = None;
        result
    }

    /// Changes what the lab owns, and writes it down.
    pub(crate) fn update_state(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut state = self.state();
        change(&mut state);
        state.write(&self.dir)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked elsewhere leaves the state whole: it is only replaced by complete ones.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.down || self.state().detached {
            return;
        }
        // A test that fails, by panic or by `?`, does not come to its `stop`.
        let logs = self.dir.join("logs");
        say(&format!(
            "the lab was dropped without `stop`, so something failed; logs stay in {}; their last lines:\n{}",
            logs.display(),
            self.logs_tail()
        ));
        if let Err(error) = self.take_down(true) {
            say(&format!("taking the lab down failed: {error:#}"));
        }
    }
}

/// The last lines of every log in a lab's folder.
pub fn logs_tail(dir: &Path, lines: usize) -> String {
    let mut logs: Vec<PathBuf> = std::fs::read_dir(dir.join("logs"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    logs.sort();
    logs.iter()
        .map(|log| (log, tail(log, lines)))
        .filter(|(_, text)| !text.is_empty())
        .map(|(log, text)| format!("--- {}\n{text}\n", log.display()))
        .collect()
}
