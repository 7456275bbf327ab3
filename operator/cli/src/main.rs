//! The `spillway` command, also `kubectl spillway`: what a fleet has sold, to whom, how much of it was used, why a reservation is where it is,
//! and whether all that is true. It reads, and writes nothing, but for `ledger restore` and `eject`, which ask first.
//!
//! - [`args`]: the command line.
//! - [`client`], [`cluster`], [`ledger`]: reading from the API server.
//! - [`capacity`], [`usage`], [`explain`], [`verify`]: one command each: a part that reads, and a pure part that answers.
//! - [`simulate`]: experiments on lists of nodes and tasks through the planner's own policies, and its answers to objects in files, without a
//!   cluster.
//! - [`output`]: tables, JSON, YAML.
//! - [`error`]: what went wrong, and what to do about it.

use std::{
    io::{ErrorKind, Write},
    process::ExitCode,
};

use clap::{CommandFactory, FromArgMatches};

use args::{Cli, Command, LedgerCommand, LedgerVerifyArgs};
use error::Error;
use kube::Client;

mod args;
mod capacity;
mod client;
mod cluster;
mod confirm;
mod eject;
mod error;
mod explain;
mod ledger;
mod output;
mod preflight;
#[cfg(test)]
mod sample;
mod simulate;
mod time;
mod usage;
mod verify;

/// There is an answer, and it is not the one that was hoped for: `verify` found a violation, `simulate plan` a reservation that is not booked.
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
            let found = simulate::run(args)?;
            output::write(cli.output, &found, &mut out)?;
            return Ok(if found.is_finding() { ExitCode::from(EXIT_FINDING) } else { ExitCode::SUCCESS });
        }
        other => other,
    };
    let format = cli.output;
    // A copy is checked without any cluster.
    if let Command::Ledger { command: LedgerCommand::Verify(LedgerVerifyArgs { file: Some(file) }) } = command {
        let checked = ledger::check::check_file(&file.display().to_string(), &ledger::restore::read_file(file)?);
        output::write(format, &checked, &mut out)?;
        return Ok(if checked.sound { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FINDING) });
    }
    let client = client::connect(&cli.connection).await?;
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
        Command::Preflight(args) => {
            let report = preflight::run(&client, args).await?;
            output::write(format, &report, &mut out)?;
            if report.fails(args.fail_on) {
                code = ExitCode::from(EXIT_FINDING);
            }
        }
        Command::Eject(args) => eject::run(&client, &cli.connection, args, format, &mut out).await?,
        Command::Ledger { command } => code = run_ledger(&client, cli, command, &mut out).await?,
        Command::Completions { .. } | Command::Simulate(_) => {}
    }
    Ok(code)
}

async fn run_ledger(
    client: &Client,
    cli: &Cli,
    command: &LedgerCommand,
    out: &mut dyn Write,
) -> Result<ExitCode, Error> {
    match command {
        LedgerCommand::Export(args) => {
            if let Some(exported) = ledger::export::run(client, &args.file, out).await? {
                output::write(cli.output, &exported, out)?;
            }
        }
        LedgerCommand::Verify(_) => {
            let checked = ledger::check::check_cluster(client).await?;
            output::write(cli.output, &checked, out)?;
            if !checked.sound {
                return Ok(ExitCode::from(EXIT_FINDING));
            }
        }
        LedgerCommand::Restore(args) => ledger::restore::run(client, &cli.connection, args, cli.output, out).await?,
    }
    Ok(ExitCode::SUCCESS)
}
