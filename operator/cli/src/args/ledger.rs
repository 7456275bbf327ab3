//! `spillway ledger`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What to do with the ledger.
#[derive(Debug, Subcommand)]
pub(crate) enum LedgerCommand {
    /// Copy the ledger, root and every page, into one file with a checksum.
    ///
    /// It reads, and can be run at any time, as often as sales happen. The pools, the tenants and the reservations of live bookings are in
    /// the file as well, as manifests: after a loss of etcd they must be applied before the ledger is restored.
    #[command(after_help = EXPORT_EXAMPLES)]
    Export(ExportArgs),
    /// Check a copy, or the ledger of the cluster: format, checksum, chains of pages, nothing sold twice, times in order.
    ///
    /// A file is checked without any cluster. Exits with 1 when it cannot be relied on.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(LedgerVerifyArgs),
    /// Put a lost ledger back, from a copy or from the pages that are left.
    ///
    /// Shows what it would do and what becomes of each booking, and asks. It refuses what would do harm, and says which option means that
    /// harm is accepted. Pages are written first and the root last, so it can be stopped and run again at any time. Where the policy
    /// `spillway-ledger` stands it acts as the break-glass group, by impersonation.
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore(RestoreArgs),
}

const EXPORT_EXAMPLES: &str = "\
Examples:
  spillway ledger export ledger-$(date +%FT%H%M).json
  spillway ledger export - | gzip > ledger.json.gz";

const VERIFY_EXAMPLES: &str = "\
Examples:
  spillway ledger verify ledger.json     a copy, without any cluster
  spillway ledger verify                 the ledger of the cluster";

const RESTORE_EXAMPLES: &str = "\
Examples:
  spillway ledger restore --from-pages --dry-run     the root is gone: what would be put back?
  spillway ledger restore ledger.json                from a copy
  spillway ledger restore ledger.json --rebind       after a loss of etcd: objects have other UIDs";

/// Arguments of `ledger export`.
#[derive(Args, Debug)]
pub(crate) struct ExportArgs {
    /// File to write; `-` is standard output.
    pub(crate) file: PathBuf,
}

/// Arguments of `ledger verify`.
#[derive(Args, Debug)]
pub(crate) struct LedgerVerifyArgs {
    /// A file of `ledger export`; `-` is standard input. Without it: the ledger of the cluster.
    pub(crate) file: Option<PathBuf>,
}

/// Arguments of `ledger restore`.
#[derive(Args, Debug)]
pub(crate) struct RestoreArgs {
    /// A file of `ledger export`; `-` is standard input (then say --yes).
    #[arg(required_unless_present = "from_pages", conflicts_with = "from_pages")]
    pub(crate) file: Option<PathBuf>,

    /// Build the root from the newest pages in the cluster that make a whole ledger.
    #[arg(long)]
    pub(crate) from_pages: bool,

    /// Show what would be done, and do nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Do not ask.
    #[arg(long)]
    pub(crate) yes: bool,

    /// Put it in the place of the ledger that is there.
    #[arg(long)]
    pub(crate) replace: bool,

    /// Accept that the copy is from before the last commit. What was booked since is lost: nodes are emptied, reservations are booked anew if
    /// they fit. What ended since stands again, and ends again with a wrong meter.
    #[arg(long)]
    pub(crate) accept_older: bool,

    /// Match reservations and nodes by name where their UIDs are others than those in the copy, as after a loss of etcd.
    #[arg(long)]
    pub(crate) rebind: bool,

    /// Go on although bookings are without a reservation, or `spillway verify` would find violations.
    #[arg(long)]
    pub(crate) accept_losses: bool,

    /// Go on although an operator leads. It takes what it finds within seconds, before anybody has verified it.
    #[arg(long)]
    pub(crate) while_operator_runs: bool,

    /// The chart's value `breakGlassGroup`.
    #[arg(long, value_name = "GROUP", default_value = "spillway:break-glass")]
    pub(crate) break_glass_group: String,

    /// Namespace of the operator.
    #[arg(long, value_name = "NAME", default_value = "spillway-system")]
    pub(crate) operator_namespace: String,

    /// The chart's `infrastructureNamespaces`.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "kube-system,spillway-system,gpu-operator"
    )]
    pub(crate) infrastructure_namespaces: Vec<String>,
}
