//! The Go programs of the lab, built from the wrapper modules in `tools/` into the cache.
//!
//! The wrapper's `go.mod` and `go.sum` are compiled into this crate, so the cache key and what is built cannot drift apart, and a binary
//! that was moved elsewhere still knows how to build its tools.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest as _, Sha256};

use crate::paths::cache_dir;
use crate::progress::{Step, say};

/// One wrapper module and the programs it yields.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    /// Name of the module and of its cache folder.
    pub name: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
    flags: &'static [&'static str],
    programs: &'static [&'static str],
    /// What Go calls the program, and what it should be called.
    rename: Option<(&'static str, &'static str)>,
}

macro_rules! module_file {
    ($tool:literal, $file:literal) => {
        include_str!(concat!("../tools/", $tool, "/", $file))
    };
}

/// `-pgo=off` because the API server ships a profile, with which everything would be compiled twice. Without `gitVersion` the kubelet reports v0.0.0.
const KUBERNETES: Tool = Tool {
    name: "kubernetes",
    go_mod: module_file!("kubernetes", "go.mod"),
    go_sum: module_file!("kubernetes", "go.sum"),
    flags: &[
        "-pgo=off",
        "-trimpath",
        "-ldflags",
        "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.4 -X k8s.io/component-base/version.gitMajor=1 \
         -X k8s.io/component-base/version.gitMinor=36",
    ],
    programs: &["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"],
    rename: None,
};

const PLAIN_FLAGS: &[&str] = &["-trimpath", "-ldflags", "-s -w"];

const ETCD: Tool = Tool {
    name: "etcd",
    go_mod: module_file!("etcd", "go.mod"),
    go_sum: module_file!("etcd", "go.sum"),
    flags: PLAIN_FLAGS,
    programs: &["etcd"],
    rename: Some(("server", "etcd")),
};

const KWOK: Tool = Tool {
    name: "kwok",
    go_mod: module_file!("kwok", "go.mod"),
    go_sum: module_file!("kwok", "go.sum"),
    flags: PLAIN_FLAGS,
    programs: &["kwok"],
    rename: None,
};

const HELM: Tool = Tool {
    name: "helm",
    go_mod: module_file!("helm", "go.mod"),
    go_sum: module_file!("helm", "go.sum"),
    flags: PLAIN_FLAGS,
    programs: &["helm"],
    rename: None,
};

/// Every tool, in the order in which they are built: what the smallest size needs comes first.
pub const ALL: [Tool; 4] = [ETCD, KUBERNETES, KWOK, HELM];

/// The folders in which the built programs lie.
#[derive(Debug, Clone)]
pub struct Tools {
    etcd: PathBuf,
    kubernetes: PathBuf,
    kwok: PathBuf,
    helm: PathBuf,
}

impl Tools {
    /// Finds every tool in the cache, building what is not there.
    pub fn ensure() -> Result<Self> {
        let go = go_version()?;
        Ok(Self {
            etcd: ETCD.ensure(&go)?,
            kubernetes: KUBERNETES.ensure(&go)?,
            kwok: KWOK.ensure(&go)?,
            helm: HELM.ensure(&go)?,
        })
    }

    /// The path of etcd.
    pub fn etcd(&self) -> PathBuf {
        self.etcd.join("etcd")
    }

    /// The path of one of Kubernetes' own programs.
    pub fn kubernetes(&self, program: &str) -> PathBuf {
        self.kubernetes.join(program)
    }

    /// The path of kwok.
    pub fn kwok(&self) -> PathBuf {
        self.kwok.join("kwok")
    }

    /// The path of helm.
    pub fn helm(&self) -> PathBuf {
        self.helm.join("helm")
    }
}

fn go_version() -> Result<String> {
    let output = Command::new("go")
        .args(["env", "GOVERSION"])
        .env("GOTOOLCHAIN", "local")
        .output()
        .context("running `go env GOVERSION`: the lab builds Kubernetes from source and needs Go")?;
    anyhow::ensure!(output.status.success(), "`go env GOVERSION` failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Tool {
    /// The key of the cache: everything that decides what comes out of the build.
    fn hash(&self, go_version: &str) -> String {
        let mut hasher = Sha256::new();
        for part in [self.go_mod, self.go_sum, go_version].iter().chain(self.flags) {
            // The length goes in first, so that no two lists of parts can run together.
            hasher.update(part.len().to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    fn ensure(&self, go_version: &str) -> Result<PathBuf> {
        let tools = cache_dir()?.join("tools");
        let wanted = tools.join(format!("{}-{}", self.name, self.hash(go_version)));
        if self.is_complete(&wanted) {
            return Ok(wanted);
        }
        std::fs::create_dir_all(&tools).with_context(|| format!("creating {}", tools.display()))?;
        // One lock for all tools: two builds at once on a small machine are slower than one after the other.
        let lock_path = tools.join("build.lock");
        let file = std::fs::File::create(&lock_path).with_context(|| format!("opening {}", lock_path.display()))?;
        let _lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((file, _)) => {
                say("waiting for another build of the lab's tools");
                Flock::lock(file, FlockArg::LockExclusive)
                    .map_err(|(_, error)| error)
                    .context("locking the tool cache")?
            }
        };
        if self.is_complete(&wanted) {
            return Ok(wanted);
        }
        let scratch =
            tempfile::Builder::new().prefix("build-").tempdir_in(&tools).context("creating a build folder")?;
        self.build_in(scratch.path())?;
        std::fs::rename(scratch.path().join("bin"), &wanted)
            .with_context(|| format!("moving the built programs to {}", wanted.display()))?;
        Ok(wanted)
    }

    fn is_complete(&self, folder: &Path) -> bool {
        self.programs.iter().all(|program| folder.join(program).is_file())
    }

    fn build_in(&self, folder: &Path) -> Result<()> {
        std::fs::write(folder.join("go.mod"), self.go_mod).context("writing go.mod")?;
        std::fs::write(folder.join("go.sum"), self.go_sum).context("writing go.sum")?;
        let bin = folder.join("bin");
        let step = Step::begin(format!("building {} from source (once, then it is cached)", self.programs.join(", ")));
        let mut child = Command::new("go")
            .args(["install", "-v"])
            .args(self.flags)
            .arg("tool")
            .current_dir(folder)
            .env("GOTOOLCHAIN", "local")
            .env("GOFLAGS", "-mod=readonly")
            .env("GOWORK", "off")
            .env("CGO_ENABLED", "0")
            .env("GOBIN", &bin)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting `go install`")?;
        let mut tail = std::collections::VecDeque::new();
        if let Some(stderr) = child.stderr.take() {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                step.at(&line);
                tail.push_back(line);
                if tail.len() > 30 {
                    tail.pop_front();
                }
            }
        }
        if !child.wait().context("waiting for `go install`")?.success() {
            bail!("building {} failed:\n{}", self.name, Vec::from(tail).join("\n"));
        }
        if let Some((from, to)) = self.rename {
            std::fs::rename(bin.join(from), bin.join(to)).with_context(|| format!("renaming {from} to {to}"))?;
        }
        step.done();
        Ok(())
    }
}
