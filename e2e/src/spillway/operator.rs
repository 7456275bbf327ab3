//! An operator as a process of the test's own.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{NAMESPACE, Spillway};
use crate::control_plane::free_port;
use crate::process::ProcessSpec;
use crate::wait::{wait_for, wait_for_value};

/// Time for an operator to end by SIGTERM.
const STOP_BOUND: Duration = Duration::from_secs(15);

/// An operator as a process of the test's own. Dropping it kills it.
#[derive(Debug)]
pub struct Operator {
    /// Its identity in the leader election.
    pub identity: String,
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Spillway<'_> {
    /// Starts the operator. One with the identity of a dead one goes on with its Lease at once.
    pub fn start_operator(&self, identity: &str) -> Result<Operator> {
        self.spawn(&self.binaries().operator, identity, &[], &[])
    }

    /// Starts the operator with more arguments.
    pub fn start_operator_with(&self, identity: &str, more: &[&str]) -> Result<Operator> {
        self.spawn(&self.binaries().operator, identity, more, &[])
    }

    /// Starts an operator that ends itself with status 137 when it comes to a kill point (`operator/controllers/src/kill.rs`).
    pub fn start_operator_to_die(&self, identity: &str, point: &str) -> Result<Operator> {
        self.spawn(&self.binaries().operator, identity, &[], &[("SPILLWAY_KILL_AT", point)])
    }

    /// Starts an operator with more in its environment, where its flags may be as well.
    pub fn start_operator_in(&self, identity: &str, env: &[(&str, &str)]) -> Result<Operator> {
        self.spawn(&self.binaries().operator, identity, &[], env)
    }

    fn spawn(&self, program: &Path, identity: &str, more: &[&str], env: &[(&str, &str)]) -> Result<Operator> {
        let port = free_port(Ipv4Addr::LOCALHOST)?;
        let log = self.lab().log(identity);
        let args = ["--namespace", NAMESPACE, "--identity", identity, "--log-format", "text"];
        let mut process = ProcessSpec::new(identity, program, args)
            .env("KUBECONFIG", self.operator_kubeconfig().to_string_lossy())
            .env("RUST_LOG", std::env::var("SPILLWAY_OPERATOR_LOG").unwrap_or_else(|_| "info".to_owned()));
        process.args.push(format!("--http=127.0.0.1:{port}"));
        process.args.extend(more.iter().map(|more| (*more).to_owned()));
        for (key, value) in env {
            process = process.env(key, *value);
        }
        let child = process.start_child(&log, false)?;
        Ok(Operator { identity: identity.to_owned(), child, port, log })
    }
}

impl Operator {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log, which operators of one identity share.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("looking at {}", self.identity))
    }

    /// Sends a signal, such as SIGSTOP.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // A pid whose end was not noticed yet is nobody else's.
        if let Some(status) = self.exit_status()? {
            bail!("{} has ended already: {status}", self.identity);
        }
        let pid = i32::try_from(self.child.id()).context("a pid")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("sending {signal} to {}", self.identity))
    }

    /// Ends it by SIGKILL.
    pub fn kill(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait().with_context(|| format!("waiting for {}", self.identity))
    }

    /// Ends it by SIGTERM.
    pub async fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait_exit(STOP_BOUND).await
    }

    /// Waits until it ends by itself.
    pub async fn wait_exit(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.identity);
        let child = std::sync::Mutex::new(&mut self.child);
        wait_for_value(&what, timeout, || async {
            Ok(child.lock().unwrap_or_else(std::sync::PoisonError::into_inner).try_wait()?)
        })
        .await
    }

    /// Waits until it leads.
    pub async fn wait_leading(&self, timeout: Duration) -> Result<()> {
        wait_for(&format!("{} to lead", self.identity), timeout, || async {
            Ok(self.metric("spillway_leader").await? == "1")
        })
        .await
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> Result<String> {
        let url = format!("http://127.0.0.1:{}/metrics", self.port);
        let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build().context("an HTTP client")?;
        let answer =
            client.get(url).send().await.with_context(|| format!("asking {} for its metrics", self.identity))?;
        answer.text().await.context("reading metrics")
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, name: &str) -> Result<String> {
        let text = self.metrics().await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("no metric {name}"))?.to_owned())
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // It has ended already, or it ends now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
