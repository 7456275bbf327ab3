//! `spillway preflight`.

use clap::{Args, ValueEnum};

/// From which finding on the exit status is 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum FailOn {
    /// Always 0.
    Never,
    /// Something would be refused.
    Refused,
    /// Something would be refused or evicted.
    Evicted,
    /// There is any finding.
    Note,
}

/// Arguments of `preflight`. What is not said is taken from the installed release, else it is the chart's default.
#[derive(Args, Debug)]
pub(crate) struct PreflightArgs {
    /// The chart's `infrastructureNamespaces`; kube-system and the operator's are always among them.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) infrastructure_namespaces: Option<Vec<String>>,

    /// The chart's `schedulers`: user names that may bind pods.
    #[arg(long, value_name = "USERS", value_delimiter = ',')]
    pub(crate) schedulers: Option<Vec<String>>,

    /// The chart's `devicePrefixes`.
    #[arg(long, value_name = "PREFIXES", value_delimiter = ',')]
    pub(crate) device_prefixes: Option<Vec<String>>,

    /// The chart's `graceCapSeconds`.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) grace_cap_seconds: Option<i64>,

    /// Namespace of the operator.
    #[arg(long, value_name = "NAME", default_value = "spillway-system")]
    pub(crate) operator_namespace: String,

    /// Namespaces that will be buyers', beside those that Tenants list.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) tenant_namespaces: Vec<String>,

    /// Namespaces that will be the owner's, beside those that Tenants with `owner: true` list.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) owner_namespaces: Vec<String>,

    /// From which finding on the exit status is 1.
    #[arg(long, value_enum, default_value_t = FailOn::Evicted)]
    pub(crate) fail_on: FailOn,
}
