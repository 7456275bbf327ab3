//! `demo`: a real Kubernetes on this machine, Spillway in it, and GPU nodes sold. `make demo` builds and runs it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use spillway_lab::demo::{DemoOptions, run, take_down};
use spillway_lab::progress::say;

/// Starts a real Kubernetes on this machine, installs Spillway into it by its Helm chart and sells GPU nodes.
#[derive(Debug, Parser)]
#[command(name = "demo", version)]
struct Cli {
    /// List of nodes, as CSV with the header sn,cpu_milli,memory_mib,gpu,model; by default 60 mixed nodes.
    #[arg(long, value_name = "FILE")]
    nodes: Option<PathBuf>,
    /// Kubeconfig of an existing cluster: only install the chart there and show.
    #[arg(long, value_name = "KUBECONFIG")]
    existing: Option<PathBuf>,
    /// Take the cluster down at the end instead of leaving it up.
    #[arg(long)]
    down: bool,
    /// More arguments for helm.
    #[arg(last = true)]
    helm_args: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let own_lab = cli.existing.is_none();
    let options = DemoOptions { nodes: cli.nodes, existing: cli.existing, helm_args: cli.helm_args, down: cli.down };
    let ended = tokio::select! {
        ended = run(options) => ended,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let Err(error) = ended else {
        return ExitCode::SUCCESS;
    };
    say(&format!("error: {error:#}"));
    if own_lab && error.to_string() == "interrupted" {
        say("taking the demo's lab down");
        if let Err(error) = take_down() {
            say(&format!("error: {error:#}"));
        }
    }
    ExitCode::FAILURE
}
