//! The command line.

use std::{
    ffi::OsStr,
    io::Write,
    path::{Path, PathBuf},
};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::{
    output::Format,
    simulate::{self, SimulateArgs},
    time,
};

mod eject;
mod ledger;
mod preflight;

pub(crate) use eject::EjectArgs;
pub(crate) use ledger::{LedgerCommand, LedgerVerifyArgs, RestoreArgs};
pub(crate) use preflight::{FailOn, PreflightArgs};

const EXIT_CODES: &str = "\
Exit codes:
  0  answered, or done; `verify` found no violation
  1  `verify` found a violation, `ledger verify` an unsound ledger, `preflight` what would be refused or evicted,
     `simulate plan` reservations that are not booked
  2  the question could not be answered (wrong arguments, no permission, no connection, no Spillway there), or
     what was asked would do harm: then the message says which option accepts it";

/// What a GPU fleet has sold, to whom, how much of it was used, and whether all that is true.
///
/// It reads the API server and writes nothing, but for `ledger restore` and `eject`, which ask first. Installed as `kubectl-spillway` as well, it is `kubectl spillway`.
#[derive(Debug, Parser)]
#[command(name = "spillway", version, after_help = EXIT_CODES, after_long_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) connection: Connection,

    /// How to print the answer.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which cluster.
#[derive(Args, Debug)]
pub(crate) struct Connection {
    /// Kubeconfig file. Without it: $KUBECONFIG, else the one in the home directory, else the service account of the pod.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig. Without it: its current context.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

/// What is asked.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What each pool has: owned, sold, held, unsold, in turnover, broken.
    ///
    /// All numbers are devices, counted now from the nodes and the booking ledger, not from a status:
    /// OWNED are all that the pool's nodes offer, and HELD, UNSOLD, TURNOVER and BROKEN add up to them. SOLD are those booked in the
    /// ledger, HELD those of nodes whose taints and labels are a holder's, UNSOLD those of nodes that are open to the owner, OWNER-USED what the
    /// owner's pods use. TURNOVER are those of nodes being prepared or given back, BROKEN those of nodes that are NotReady, cordoned or offer
    /// another number of devices than the pool says.
    #[command(after_help = CAPACITY_EXAMPLES)]
    Capacity(CapacityArgs),

    /// GPU-hours that tenants used over a period, and tokens of hosted models.
    ///
    /// Computed from the booking ledger, and from the usage service for bookings whose pages are not kept any more: devices times the time from Active to the end, without what was lost with nodes.
    /// Reservations that run are counted up to now. GPU-HOURS is rounded to six decimals; `-o json` has the exact device-milliseconds
    /// (3,600,000 are one GPU-hour).
    #[command(after_help = USAGE_EXAMPLES)]
    Usage(UsageArgs),

    /// Why a reservation is where it is, or why it is not booked and what would help.
    ///
    /// Shows its phase and conditions, its booking, its nodes with their taints and pods, what waits before it, its tenant's quota, and what
    /// its pools have. What you may not read is left out, and said.
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(ExplainArgs),

    /// Check that what was sold is really so: no device sold twice, no booking lost, no pod where its tenant holds nothing, no
    /// metered millisecond that the ledger does not explain.
    ///
    /// An independent check of the invariants 1, 2, 4 and 5 (GPU time) over all API objects: it shares no code with the operator's planner.
    /// Prints every violation and exits with 1 if there is any. What is on its way (a node that is to be closed after a booking ended just
    /// now) is a warning and not a violation.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(VerifyArgs),

    /// Run an experiment through the planner's own packing policies, or plan what is in files, without a cluster.
    #[command(after_help = simulate::EXAMPLES)]
    Simulate(SimulateArgs),

    /// Copy the booking ledger into a file, check a copy, put one back.
    #[command(after_help = LEDGER_EXAMPLES)]
    Ledger {
        /// What to do with it.
        #[command(subcommand)]
        command: LedgerCommand,
    },

    /// List what Spillway's policies would refuse or evict in this cluster, before they are enforced.
    ///
    /// It reads only, and works before the chart is installed and after. Exits with 1 when something would be refused or evicted.
    #[command(after_help = PREFLIGHT_EXAMPLES)]
    Preflight(PreflightArgs),

    /// Take everything of Spillway off nodes, namespaces and DaemonSets: the cluster is as before.
    ///
    /// Taints, labels and annotations under spillway.dev/, and the tolerations and node selectors that the policies put into templates of
    /// DaemonSets. Those of pods cannot be changed, and harm nobody. Shows what it would do, and asks. It can be said again at any time.
    /// Custom resources and CRDs stay: the ledger is what bills stand on.
    #[command(after_help = EJECT_EXAMPLES)]
    Eject(EjectArgs),

    /// Print the completion script of a shell.
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// Which shell.
        #[arg(value_enum)]
        shell: Shell,
    },
}

const CAPACITY_EXAMPLES: &str = "\
Examples:
  spillway capacity                    all pools, and the totals of each SKU
  spillway capacity h200-us-east       one pool
  spillway capacity -o json";

const USAGE_EXAMPLES: &str = "\
Examples:
  spillway usage                                          this month to date (UTC), by tenant
  spillway usage --from 24h --by reservation              the last 24 hours, by reservation
  spillway usage --tenant acme --by sku --from 2026-11-01 --to 2026-12-01
  spillway usage --from 2026-11-01T08:00:00Z -o json      exact device-milliseconds
  spillway usage --by reservation -o csv                  GPU time and tokens, for a spreadsheet";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  spillway explain finetune -n acme
  spillway explain acme/finetune
  kubectl spillway explain finetune -o yaml";

const VERIFY_EXAMPLES: &str = "\
Examples:
  spillway verify                       violations only
  spillway verify --warnings            what is on its way, too
  spillway verify --settle 2m -o json   grant two minutes to what is on its way

Exit codes: 0 no violation, 1 a violation, 2 not all objects could be read.";

const LEDGER_EXAMPLES: &str = "\
Examples:
  spillway ledger export ledger.json            copy root and all pages
  spillway ledger verify ledger.json            can it be relied on?
  spillway ledger verify                        and what the cluster has?
  spillway ledger restore ledger.json           show what would happen, ask, put it back
  spillway ledger restore --from-pages          the root is gone and the pages are there";

const PREFLIGHT_EXAMPLES: &str = "\
Examples:
  spillway preflight
  spillway preflight --infrastructure-namespaces=gpu-operator,monitoring --schedulers=system:kube-scheduler,volcano
  spillway preflight --fail-on never -o json";

const EJECT_EXAMPLES: &str = "\
Examples:
  spillway eject --dry-run      what would be taken off?
  spillway eject                show, ask, do it";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  source <(spillway completions bash)
  spillway completions zsh > \"${fpath[1]}/_spillway\"
  spillway completions fish > ~/.config/fish/completions/spillway.fish";

/// Arguments of `capacity`.
#[derive(Args, Debug)]
pub(crate) struct CapacityArgs {
    /// Name of a GpuPool. Without it: all.
    pub(crate) pool: Option<String>,
}

/// What sums of usage are kept by.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum By {
    /// One row a tenant.
    Tenant,
    /// One row a reservation.
    Reservation,
    /// One row a SKU and tier.
    Sku,
}

/// Arguments of `usage`.
#[derive(Args, Debug)]
pub(crate) struct UsageArgs {
    /// Name of a Tenant. Without it: all.
    #[arg(long)]
    pub(crate) tenant: Option<String>,

    /// Start of the period, included: RFC 3339, a UTC date, or how long ago (24h, 90m). Without it: the first of this month, UTC.
    #[arg(long, value_name = "TIME", value_parser = time::parse_when)]
    pub(crate) from: Option<time::When>,

    /// End of the period, not included: like --from. Without it: now.
    #[arg(long, value_name = "TIME", value_parser = time::parse_when)]
    pub(crate) to: Option<time::When>,

    /// What to sum by. Tokens: by tenant; by endpoint and model; by model.
    #[arg(long, value_enum, default_value_t = By::Tenant)]
    pub(crate) by: By,

    /// Name of a Model: tokens of that one only.
    #[arg(long)]
    pub(crate) model: Option<String>,

    /// Namespace of Spillway, in which the usage service is.
    #[arg(long, value_name = "NAMESPACE", default_value = "spillway-system")]
    pub(crate) spillway_namespace: String,
}

/// Arguments of `explain`.
#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    /// Name of a GpuReservation, or NAMESPACE/NAME.
    pub(crate) reservation: String,

    /// Its namespace. Without it: that of the kubeconfig's context.
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
}

/// Arguments of `verify`.
#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    /// For how long nodes, labels and statuses may lag behind the ledger: what is younger is a warning.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = time::parse_duration)]
    pub(crate) settle: i64,

    /// Print warnings as well.
    #[arg(long)]
    pub(crate) warnings: bool,

    /// Namespaces whose pods may be on any node: those that the chart's policies exempt (`infrastructureNamespaces`).
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "kube-system,spillway-system,gpu-operator"
    )]
    pub(crate) infrastructure_namespaces: Vec<String>,

    /// Namespace of the operator, which is infrastructure as well.
    #[arg(long, value_name = "NAME", default_value = "spillway-system")]
    pub(crate) operator_namespace: String,
}

/// How the command was called, for its help: kubectl finds plugins by the name of their file.
pub(crate) fn invoked_as(program: Option<&OsStr>) -> &'static str {
    let name = program.map(Path::new).and_then(Path::file_stem);
    if name.is_some_and(|name| name == "kubectl-spillway") { "kubectl spillway" } else { "spillway" }
}

/// Writes the completion script of a shell.
pub(crate) fn write_completions(shell: Shell, out: &mut dyn Write) -> std::io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "spillway", &mut script);
    out.write_all(&script)
}

#[cfg(test)]
mod tests;
