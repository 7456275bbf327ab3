//! `bench`: what a real operator does on a real API server, and what a real gateway costs, measured. `make bench-operator`, `bench-scale`, `bench-recovery` and
//! `bench-gateway` build and run it.

#![expect(clippy::print_stdout, reason = "it prints what it measured")]

mod audit;
mod book;
mod gateway;
mod heartbeats;
mod operator;
mod probe;
mod recovery;
mod scale;
mod stage;
mod usage;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use spillway_lab::progress::say;

/// Benchmarks of Spillway, most of them on a Kubernetes of their own. Each prints JSON.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Reservations of one device each: from the first apply to the last `Booked` and `Active`, and from the deletes to the last one gone.
    ///
    /// First all at once, then so many a second. Nodes are API objects without kubelets (`nodeCheck: None`).
    #[command(after_help = "Examples:\n  bench operator\n  bench operator --nodes 50 --reservations 400 --rate 50")]
    Operator(operator::Options),
    /// An operator that is started on so many nodes, and what it takes while nothing happens: the start to the first decision, memory, processor,
    /// writes.
    ///
    /// The nodes are API objects of 8 devices, most of them unsold, whose heartbeats are written as kubelets write them.
    #[command(after_help = "Examples:\n  bench scale\n  bench scale --nodes 50 --seconds 15 --heartbeat-seconds 10")]
    Scale(scale::Options),
    /// An operator that is killed and started again in a cluster that is sold out: from the kill to the ledger read and the first decision.
    ///
    /// The bookings have one device each and share nodes of 8 devices; the real operator makes them from real reservations.
    #[command(after_help = "Examples:\n  bench recovery\n  bench recovery --nodes 50 --bookings 300 --pause-seconds 5")]
    Recovery(recovery::Options),
    /// Our gateway and routers of others before an engine that answers at once: added latency, requests and streams a second, memory, processor time.
    ///
    /// Ours has a key, limits and a durable bill for each request; the others have none. They come from PyPI; what cannot be had is left out, and named.
    #[command(after_help = "Examples:\n  bench gateway\n  bench gateway --rounds 1 --seconds 1 --peers vllm-router")]
    Gateway(gateway::Options),
    /// The engine of `bench gateway`.
    #[command(hide = true)]
    Engine(gateway::EngineOptions),
}

#[tokio::main]
async fn main() -> ExitCode {
    let report = match Cli::parse().command {
        Command::Operator(options) => Box::pin(operator::run(&options)).await,
        Command::Scale(options) => Box::pin(scale::run(&options)).await,
        Command::Recovery(options) => Box::pin(recovery::run(&options)).await,
        Command::Gateway(options) => Box::pin(gateway::run(&options)).await,
        Command::Engine(options) => Box::pin(gateway::run_engine(&options)).await.map(|()| serde_json::Value::Null),
    };
    match report {
        Ok(report) => {
            println!("{report:#}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
