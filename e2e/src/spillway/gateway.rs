//! A gateway as a process of the test's own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{GATEWAY_USER, NAMESPACE, Spillway};
use crate::control_plane::free_port;
use crate::process::ProcessSpec;
use crate::wait::wait_for_value;

/// Time for a gateway to end by SIGTERM when nothing runs.
const STOP_BOUND: Duration = Duration::from_secs(20);

/// A gateway as a process of the test's own. Dropping it kills it.
#[derive(Debug)]
pub struct Gateway {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
    log: PathBuf,
    http: reqwest::Client,
}

impl Spillway<'_> {
    /// Starts a gateway with the rights of the chart's, and waits until it serves. One of the same name goes on with the log of the one before.
    pub async fn start_gateway(&self, name: &str) -> Result<Gateway> {
        let groups = ["system:serviceaccounts", "system:serviceaccounts:spillway-system"];
        let kubeconfig = self.lab().kubeconfig_for(GATEWAY_USER, &groups)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(Ipv4Addr::LOCALHOST)?));
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(Ipv4Addr::LOCALHOST)?));
        let log = self.lab().log(name);
        let args = ["--namespace", NAMESPACE, "--name", name, "--log-format", "text", "--log-limit", "16"];
        let mut process = ProcessSpec::new(name, &self.binaries().gateway, args)
            .env("KUBECONFIG", kubeconfig.to_string_lossy())
            .env("RUST_LOG", std::env::var("SPILLWAY_GATEWAY_LOG").unwrap_or_else(|_| "info".to_owned()));
        let directory = self.lab().dir().join(format!("{name}-log"));
        process.args.extend([
            format!("--listen={address}"),
            format!("--admin={admin}"),
            format!("--log-directory={}", directory.display()),
        ]);
        let child = process.start_child(&log, false)?;
        let http = reqwest::Client::builder().timeout(Duration::from_secs(120)).build().context("an HTTP client")?;
        let gateway = Gateway { child, address, admin, log, http };
        wait_for_value("the gateway to serve", Duration::from_secs(30), || async {
            let answer = gateway.http.get(format!("http://{address}/v1/models")).send().await;
            Ok(answer.is_ok().then_some(()))
        })
        .await
        .with_context(|| format!("see {}", gateway.log.display()))?;
        Ok(gateway)
    }
}

impl Gateway {
    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// `GET` of a path with a key; the status, and the body as JSON.
    pub async fn get(&self, path: &str, key: &str) -> Result<(u16, Value)> {
        let request = self.http.get(format!("http://{}{path}", self.address)).bearer_auth(key);
        let answer = request.send().await.with_context(|| format!("GET {path}"))?;
        Ok((answer.status().as_u16(), answer.json().await.with_context(|| format!("the answer to GET {path}"))?))
    }

    /// `POST` of JSON to a path with a key; the status, and the body as text.
    pub async fn post(&self, path: &str, key: &str, body: &Value) -> Result<(u16, String)> {
        let request = self.http.post(format!("http://{}{path}", self.address)).bearer_auth(key).json(body);
        let answer = request.send().await.with_context(|| format!("POST {path}"))?;
        Ok((answer.status().as_u16(), answer.text().await.with_context(|| format!("the answer to POST {path}"))?))
    }

    /// What `/metrics` shows.
    pub async fn metrics(&self) -> Result<String> {
        let answer = self.http.get(format!("http://{}/metrics", self.admin)).send().await.context("reading metrics")?;
        answer.text().await.context("reading metrics")
    }

    /// Kills it, as the kernel would.
    pub fn kill(mut self) -> Result<ExitStatus> {
        self.child.kill().context("killing a gateway")?;
        self.child.wait().context("waiting for a killed gateway")
    }

    /// Ends it by SIGTERM.
    pub async fn stop(mut self) -> Result<ExitStatus> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).context("a pid")?);
        kill(pid, Signal::SIGTERM).context("telling a gateway to end")?;
        let child = &mut self.child;
        let ended = std::cell::RefCell::new(child);
        wait_for_value("the gateway to end", STOP_BOUND, || async {
            ended.borrow_mut().try_wait().context("asking for a gateway")
        })
        .await
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // One that has ended already is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
