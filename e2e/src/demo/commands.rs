//! kubectl, helm and spillway, as a person would type them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::teller::Teller;
use crate::paths;
use crate::tools::Tools;

/// No command of the demo waits longer.
const BOUND: Duration = Duration::from_secs(360);

/// Where the programs are, and which cluster they talk to.
#[derive(Debug)]
pub(super) struct Commands {
    kubectl: PathBuf,
    helm: PathBuf,
    spillway: PathBuf,
    kubeconfig: PathBuf,
}

/// What a command printed and whether it went well.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) ok: bool,
    pub(super) out: String,
    pub(super) err: String,
}

impl Commands {
    /// With the lab's own kubectl and helm.
    pub(super) fn of_lab(kubeconfig: PathBuf) -> Result<Self> {
        let tools = Tools::ensure()?;
        Ok(Self {
            kubectl: tools.kubernetes("kubectl"),
            helm: tools.helm(),
            spillway: paths::binaries_dir()?.join("spillway"),
            kubeconfig,
        })
    }

    /// With the kubectl and helm of this machine, if it has both.
    pub(super) fn of_machine(kubeconfig: PathBuf) -> Result<Self> {
        let Some((kubectl, helm)) = find("kubectl").zip(find("helm")) else {
            return Self::of_lab(kubeconfig);
        };
        Ok(Self { kubectl, helm, spillway: paths::binaries_dir()?.join("spillway"), kubeconfig })
    }

    /// The folders of the programs, for a person's PATH.
    pub(super) fn folders(&self) -> Vec<&Path> {
        [&self.kubectl, &self.helm, &self.spillway].into_iter().filter_map(|program| program.parent()).collect()
    }

    /// Runs a command line such as `kubectl get nodes`.
    pub(super) async fn run(&self, line: &[&str], input: &str) -> Result<Answer> {
        let what = line.join(" ");
        let (name, args) = line.split_first().context("an empty command")?;
        let program = match *name {
            "kubectl" => &self.kubectl,
            "helm" => &self.helm,
            "spillway" => &self.spillway,
            other => bail!("{other} is no program of the demo"),
        };
        let mut child = Command::new(program)
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // Who does not read it says why in its own words.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = tokio::time::timeout(BOUND, child.wait_with_output())
            .await
            .with_context(|| format!("{what}: not done in {} s", BOUND.as_secs()))?
            .with_context(|| format!("running {what}"))?;
        Ok(Answer {
            ok: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// Runs a command that must go well, quietly, and returns what it printed.
    pub(super) async fn quiet(&self, line: &[&str], input: &str) -> Result<String> {
        let answer = self.run(line, input).await?;
        if !answer.ok {
            bail!("{}: {}{}", line.join(" "), answer.err, answer.out.trim());
        }
        Ok(answer.out)
    }

    /// Shows a command and its answer; it must go well.
    pub(super) async fn show(&self, teller: &Teller, line: &[&str], input: &str) -> Result<String> {
        teller.command(&line.join(" "), input);
        let out = self.quiet(line, input).await?;
        teller.answer(&out, 40);
        Ok(out)
    }

    /// Shows a command that must be refused, and the refusal, which has to contain these words.
    pub(super) async fn show_refused(&self, teller: &Teller, line: &[&str], input: &str, words: &str) -> Result<()> {
        teller.command(&line.join(" "), input);
        let answer = self.run(line, input).await?;
        if answer.ok {
            bail!("{} was not refused: {}", line.join(" "), answer.out.trim());
        }
        if !answer.err.contains(words) {
            bail!("{} was refused, but not with '{words}': {}", line.join(" "), answer.err);
        }
        teller.answer(&wrap(&answer.err, 110), 8);
        teller.fine("refused");
        Ok(())
    }
}

/// Breaks lines between words.
pub(super) fn wrap(text: &str, width: usize) -> String {
    let mut wrapped = String::new();
    let mut used = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            wrapped.push('\n');
            used = 0;
        } else if used > 0 {
            wrapped.push(' ');
            used += 1;
        }
        wrapped.push_str(word);
        used += length;
    }
    wrapped
}

fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}
