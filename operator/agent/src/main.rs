//! `spillway-agent`: the arguments, the logs and the signals around the library.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::builder::NonEmptyStringValueParser;
use clap::{Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use kube::{Client, Config};
use serde_json::json;
use spillway_agent::agent::WATCH_SECONDS;
use spillway_agent::answer::describe;
use spillway_agent::boot::{BOOT_ID_PATH, read_boot_id};
use spillway_agent::{Agent, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Says which containers and pod sandboxes this node's container runtime really has.
///
/// Runs as a pod on each GPU node. It watches the one GpuNode that is named like its node and answers the question in
/// spec.check in status.check. It writes nothing else, and nothing when it is not asked.
#[derive(Debug, Parser)]
#[command(name = "spillway-agent", version, subcommand_negates_reqs = true, after_help = EXAMPLES)]
struct Arguments {
    /// Name of the node, which is also the name of its GpuNode
    #[arg(long, env = "NODE_NAME", value_name = "NAME", required = true, value_parser = NonEmptyStringValueParser::new())]
    node: Option<String>,

    /// Socket of the container runtime, as a path or a unix:// address
    #[arg(
        long,
        env = "CRI_SOCKET",
        value_name = "PATH",
        default_value = "/run/containerd/containerd.sock",
        global = true
    )]
    cri_socket: PathBuf,

    /// Form of the log lines on standard error
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value = "json", global = true)]
    log_format: LogFormat,

    #[command(subcommand)]
    command: Option<Command>,
}

/// What to do instead of running.
#[derive(Debug, Subcommand)]
enum Command {
    /// Print as JSON what the runtime has now, without asking the API server
    ///
    /// Everything that is not dead is listed, a pod sandbox with an empty container name. Exits with 1 if the runtime
    /// does not answer.
    #[command(after_help = CHECK_EXAMPLES)]
    Check,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// One JSON object a line
    Json,
    /// For people
    Text,
}

const EXAMPLES: &str = "\
Examples:
  # as the DaemonSet does: NODE_NAME from the pod's spec.nodeName, the API server from the pod's service account
  NODE_NAME=gpu-7 spillway-agent

  # from a workstation, for a node whose socket is at hand, with the current kubeconfig
  spillway-agent --node gpu-7 --cri-socket unix:///tmp/gpu-7/containerd.sock --log-format text

  # on the node: what does the runtime have, and whose is it?
  spillway-agent check

RUST_LOG sets what is logged (default: info).";

const CHECK_EXAMPLES: &str = "\
Examples:
  # of containerd
  spillway-agent check

  # of CRI-O
  spillway-agent check --cri-socket /run/crio/crio.sock

  # only what is not of kube-system
  spillway-agent check | jq '.containers[] | select(.namespace != \"kube-system\")'";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_logs(arguments.log_format);
    let runtime = Runtime::new(&arguments.cri_socket);
    match (arguments.command, arguments.node) {
        (Some(Command::Check), _) => match check(&runtime).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                // A person asked. If even standard error is closed, the exit status says it.
                let _ = writeln!(std::io::stderr().lock(), "error: {}", describe(&*error));
                ExitCode::FAILURE
            }
        },
        // Without a subcommand the parser has asked for the node already.
        (None, node) => match run(&node.unwrap_or_default(), runtime).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(error = describe(&*error), "spillway-agent failed");
                ExitCode::FAILURE
            }
        },
    }
}

fn start_logs(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    match format {
        LogFormat::Json => logs.json().flatten_event(true).init(),
        LogFormat::Text => logs.init(),
    }
}

/// Answers until SIGTERM or SIGINT, which end it at once: a question without an answer waits for the next agent.
async fn run(node: &str, runtime: Runtime) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let agent = Agent::new(connect().await?, node, runtime);
    tracing::info!(node, "answering");
    let signal = tokio::select! {
        ended = agent.run() => return ended.context("the agent stopped"),
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(node, signal, "leaving");
    Ok(())
}

/// A client whose calls all end: a response that stops longer than a watch may last is given up. Retries are the
/// agent's own, so the client makes none.
async fn connect() -> anyhow::Result<Client> {
    let mut config = Config::infer().await.context("find the API server (in a pod, or by a kubeconfig)")?;
    config.connect_timeout = Some(Duration::from_secs(10));
    config.read_timeout = Some(Duration::from_secs(u64::from(WATCH_SECONDS) + 10));
    config.reset_reader_on_write = true;
    config.write_timeout = Some(Duration::from_secs(30));
    config.default_retry = false;
    Client::try_from(config).context("make a client of the API server")
}

/// Prints what the runtime has now; all of it, the bound of the API object does not hold here.
async fn check(runtime: &Runtime) -> anyhow::Result<()> {
    let observed_at = Timestamp::now();
    let boot_id = read_boot_id(BOOT_ID_PATH.as_ref())?;
    let containers = runtime.list().await?;
    let mut text = serde_json::to_string_pretty(&json!({
        "bootId": boot_id,
        "observedAt": observed_at,
        "total": containers.len(),
        "containers": containers,
    }))?;
    text.push('\n');
    std::io::stdout().lock().write_all(text.as_bytes()).context("write to standard output")
}
