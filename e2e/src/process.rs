//! Processes of the lab: started so that none outlives its owner by accident, known by pid and start time, ended by pid.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// One process and no other: a pid alone may have been given to somebody else since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The process id.
    pub pid: i32,
    /// When it was started, in clock ticks since the machine's start.
    pub start: u64,
}

impl Identity {
    /// This very process.
    pub fn of_self() -> Result<Self> {
        Self::of(nix::unistd::getpid().as_raw())
    }

    /// The process that has this pid now.
    pub fn of(pid: i32) -> Result<Self> {
        let (_, start) = state_and_start(pid).with_context(|| format!("reading the start time of process {pid}"))?;
        Ok(Self { pid, start })
    }

    /// Whether the process still runs. One that has ended and waits for its parent's notice does not.
    pub fn is_alive(&self) -> bool {
        state_and_start(self.pid).is_some_and(|(state, start)| start == self.start && !matches!(state, 'Z' | 'X'))
    }

    /// Sends a signal; nothing happens if the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("sending {signal} to process {}", self.pid)),
        }
    }

    /// Waits until the process has ended.
    pub fn wait_gone(&self, timeout: Duration) -> bool {
        let begun = Instant::now();
        while self.is_alive() {
            if begun.elapsed() > timeout {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Ends the process: SIGTERM, and SIGKILL when `grace` is over. A stopped process only hears the second.
    pub fn end(&self, grace: Duration) -> Result<()> {
        if !grace.is_zero() {
            self.signal(Signal::SIGTERM)?;
            if self.wait_gone(grace) {
                return Ok(());
            }
        }
        self.signal(Signal::SIGKILL)?;
        if !self.wait_gone(Duration::from_secs(10)) {
            bail!("process {} does not end, not even by SIGKILL", self.pid);
        }
        Ok(())
    }
}

/// Third and twenty-second field of `/proc/<pid>/stat`. The second, the name, may contain anything, so reading starts behind its bracket.
fn state_and_start(pid: i32) -> Option<(char, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// How a process is started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// The name by which tests know it, and of its log.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// What is added to the environment.
    pub env: Vec<(String, String)>,
    /// The pid of a process whose mount and network namespaces it joins.
    pub join: Option<i32>,
}

impl ProcessSpec {
    /// A process with arguments.
    pub fn new<A: Into<String>>(name: &str, program: impl Into<PathBuf>, args: impl IntoIterator<Item = A>) -> Self {
        Self {
            name: name.to_owned(),
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// Adds an environment variable.
    pub fn env(mut self, key: &str, value: impl Into<String>) -> Self {
        self.env.push((key.to_owned(), value.into()));
        self
    }

    /// Starts the process, its output appended to `log`. Unless `detached`, the kernel kills it when this process dies.
    pub fn start(&self, log: &Path, detached: bool) -> Result<Identity> {
        let child = self.start_child(log, detached)?;
        let identity = i32::try_from(child.id()).context("a pid").and_then(Identity::of)?;
        reap(child);
        Ok(identity)
    }

    /// The same, for who waits for its end.
    pub fn start_child(&self, log: &Path, detached: bool) -> Result<Child> {
        let mut argv: Vec<OsString> =
            if detached { vec!["setsid".into()] } else { vec!["setpriv".into(), "--pdeathsig".into(), "KILL".into()] };
        if let Some(pid) = self.join {
            argv.extend(["nsenter".into(), format!("--target={pid}").into(), "--mount".into(), "--net".into()]);
        }
        argv.push(self.program.clone().into());
        argv.extend(self.args.iter().map(OsString::from));
        let out = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        let mut command = Command::new(argv.remove(0));
        command.args(argv).stdin(Stdio::null()).stderr(out.try_clone().context("sharing a log")?).stdout(out);
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        if !detached {
            // Ctrl-C in a terminal is for the test alone; it takes the lab down in order.
            command.process_group(0);
        }
        spawn(command).with_context(|| format!("starting {} ({})", self.name, self.program.display()))
    }
}

type Request = (Command, Sender<std::io::Result<Child>>);

/// Starts a process from a thread that lives as long as this process. PR_SET_PDEATHSIG fires when the *thread* that started the child ends,
/// and a test's runtime ends its threads with the test.
pub fn spawn(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<Sender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, answer) in requests {
                // Nobody waits for the answer only if the asking thread is gone.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, child) = channel();
    spawner.send((command, answer)).ok().context("the thread that starts processes is gone")?;
    Ok(child.recv().context("the thread that starts processes is gone")??)
}

/// Takes notice of a child's end, so that it does not stay as a zombie.
pub fn reap(mut child: Child) {
    std::thread::spawn(move || {
        let _ = child.wait();
    });
}

/// The last lines of a log.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    // A verbose log may be large; the last 64 KiB hold any tail a person would read.
    let text = String::from_utf8_lossy(text.get(text.len().saturating_sub(65_536)..).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests;
