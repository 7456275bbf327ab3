//! kubectl and helm against the lab.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::Lab;

/// Longer than any command that waits by itself (helm's own default is five minutes).
const BOUND: Duration = Duration::from_secs(360);

impl Lab {
    /// Runs kubectl as the admin and returns what it printed; a failure carries what it complained about.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.run(&self.tools.kubernetes("kubectl"), args, None).await
    }

    /// Runs kubectl with something on its standard input.
    pub async fn kubectl_with_input(&self, args: &[&str], input: &str) -> Result<String> {
        self.run(&self.tools.kubernetes("kubectl"), args, Some(input)).await
    }

    /// Runs helm as the admin.
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        self.run(&self.tools.helm(), args, None).await
    }

    /// Applies manifests (server-side, as field manager `lab`).
    pub async fn apply_yaml(&self, manifests: &str) -> Result<String> {
        let args = ["apply", "--server-side", "--force-conflicts", "--field-manager=lab", "-f", "-"];
        self.kubectl_with_input(&args, manifests).await
    }

    async fn run(&self, program: &Path, args: &[&str], input: Option<&str>) -> Result<String> {
        let what = || {
            let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
            format!("{name} {}", args.join(" "))
        };
        let mut command = Command::new(program);
        command.args(args).env("KUBECONFIG", self.kubeconfig());
        // helm keeps its caches where it is told to, not in the user's home.
        command
            .env("HELM_CACHE_HOME", self.dir.join("helm/cache"))
            .env("HELM_CONFIG_HOME", self.dir.join("helm/config"));
        command.env("HELM_DATA_HOME", self.dir.join("helm/data"));
        command
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().with_context(|| format!("starting {}", what()))?;
        let stdin = child.stdin.take();
        let feed = async {
            if let (Some(mut stdin), Some(input)) = (stdin, input) {
                // A command that fails early does not read all of it; its own message says why.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let both = async { tokio::join!(feed, child.wait_with_output()).1 };
        let output = tokio::time::timeout(BOUND, both)
            .await
            .with_context(|| format!("{}: not done in {} s", what(), BOUND.as_secs()))?;
        let output = output.with_context(|| format!("running {}", what()))?;
        if !output.status.success() {
            bail!("{}: {}", what(), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
