//! The `spillway` command, also `kubectl spillway`: what a fleet has sold, to whom, how much of it was used, why a reservation is where it is,
//! and whether all that is true. It reads, and writes nothing.
//!
//! - [`args`]: the command line.
//! - [`client`], [`cluster`], [`ledger`]: reading from the API server.
//! - [`capacity`], [`usage`], [`explain`], [`verify`]: one command each: a part that reads, and a pure part that answers.
//! - [`simulate`]: experiments on lists of nodes and tasks through the planner's own policies, without a cluster.
//! - [`output`]: tables, JSON, YAML.
//! - [`error`]: what went wrong, and what to do about it.

use std::{
    io::{ErrorKind, Write},
    process::ExitCode,
};

use clap::{CommandFactory, FromArgMatches};

use args::{Cli, Command};
use error::Error;

mod args;
mod capacity;
mod client;
mod cluster;
mod error;
mod explain;
mod ledger;
mod output;
#[cfg(test)]
mod sample;
mod simulate;
mod time;
mod usage;
mod verify;

/// `verify` found a violation.
const EXIT_FINDING: u8 = 1;
/// What was asked could not be answered.
const EXIT_ERROR: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let command = Cli::command().bin_name(args::invoked_as(std::env::args_os().next().as_deref()));
    let matches = command.get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match run(&cli).await {
        Ok(code) => code,
        // The reader of our output went away, as `head` does: nothing is wrong.
        Err(Error::Write { source }) if source.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to be told when even this fails.
            let _ = writeln!(std::io::stderr(), "error: {}", error::report(&error));
            ExitCode::from(EXIT_ERROR)
        }
    }
}

async fn run(cli: &Cli) -> Result<ExitCode, Error> {
    let mut out = std::io::stdout().lock();
    let command = match &cli.command {
        Command::Completions { shell } => {
            args::write_completions(*shell, &mut out).map_err(|source| Error::Write { source })?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Simulate(args) => {
            output::write(cli.output, &simulate::run(args)?, &mut out)?;
            return Ok(ExitCode::SUCCESS);
        }
        other => other,
    };
    let client = client::connect(&cli.connection).await?;
    let format = cli.output;
    let mut code = ExitCode::SUCCESS;
    match command {
        Command::Capacity(args) => output::write(format, &capacity::run(&client, args).await?, &mut out)?,
        Command::Usage(args) => output::write(format, &usage::run(&client, args).await?, &mut out)?,
        Command::Explain(args) => output::write(format, &explain::run(&client, args).await?, &mut out)?,
        Command::Verify(args) => {
            let report = verify::run(&client, args).await?;
            output::write(format, &report, &mut out)?;
            if report.violations > 0 {
                code = ExitCode::from(EXIT_FINDING);
            }
        }
        Command::Completions { .. } | Command::Simulate(_) => {}
    }
    Ok(code)
}
