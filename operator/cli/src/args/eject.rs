//! `spillway eject`.

use clap::Args;

/// Arguments of `eject`.
#[derive(Args, Debug)]
pub(crate) struct EjectArgs {
    /// Show what would be taken off, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Do not ask.
    #[arg(long)]
    pub(crate) yes: bool,

    /// Go on although something is sold: whoever bought loses what they hold.
    #[arg(long)]
    pub(crate) with_live_bookings: bool,

    /// Go on although an operator runs or will be started. It writes again what is taken off.
    #[arg(long)]
    pub(crate) while_operator_runs: bool,

    /// The chart's value `breakGlassGroup`.
    #[arg(long, value_name = "GROUP", default_value = "spillway:break-glass")]
    pub(crate) break_glass_group: String,

    /// Namespace of the operator.
    #[arg(long, value_name = "NAME", default_value = "spillway-system")]
    pub(crate) operator_namespace: String,
}
