//! `spillway`, run as an administrator runs it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use spillway_lab::{Lab, spillway::Binaries};
use tokio::process::Command;

/// What a run of it said.
pub(crate) struct Said {
    /// Exit status.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

impl Said {
    /// Fails unless it ended with this status and said all that.
    pub(crate) fn expect(&self, code: i32, texts: &[&str]) -> Result<&Self> {
        let all = format!("{}{}", self.out, self.err);
        ensure!(self.code == code, "it ended with {} instead of {code}:\n{all}", self.code);
        for text in texts {
            ensure!(all.contains(text), "it does not say '{text}':\n{all}");
        }
        Ok(self)
    }
}

/// Runs it; nobody can be asked, for its standard input is no terminal.
pub(crate) async fn spillway(lab: &Lab, args: &[&str]) -> Result<Said> {
    let binaries = tokio::task::spawn_blocking(Binaries::find).await.context("looking for the binaries")??;
    run(&binaries.cli, Some(&lab.kubeconfig()), args).await
}

/// Runs it without any cluster.
pub(crate) async fn offline(args: &[&str]) -> Result<Said> {
    let binaries = tokio::task::spawn_blocking(Binaries::find).await.context("looking for the binaries")??;
    run(&binaries.cli, None, args).await
}

async fn run(program: &Path, kubeconfig: Option<&Path>, args: &[&str]) -> Result<Said> {
    let nowhere = Path::new("/nonexistent");
    let run = Command::new(program)
        .args(args)
        .env("KUBECONFIG", kubeconfig.unwrap_or(nowhere))
        .env("COLUMNS", "160")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(60), run).await.context("spillway does not end")??;
    let said = Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    // What documents show as output is taken from here.
    eprintln!("$ spillway {}\n{}{}(exit {})\n", args.join(" "), said.out, said.err, said.code);
    Ok(said)
}
