//! What went wrong, and what to do about it.

use std::{error::Error as StdError, io};

use spillway_planner::ledger::LoadError as LedgerError;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No usable kubeconfig.
    #[error("there is no cluster to ask: name one with --kubeconfig and --context")]
    Kubeconfig {
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// No client can be made of it.
    #[error("the kubeconfig does not make a client")]
    Client {
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// The API server refused or could not be reached.
    #[error("could not read {what}: {}", advice(what, source))]
    Read {
        /// Plural resource, with its group.
        what: &'static str,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// The ledger cannot be read.
    #[error("the booking ledger cannot be relied on: `spillway verify` says all that is wrong with it")]
    Ledger {
        /// Why.
        #[source]
        source: LedgerError,
    },
    /// The ledger was collected each time that it was read.
    #[error("the booking ledger changed each time that it was read: try again")]
    Restless,
    /// There is no ledger, and there should be one.
    #[error(
        "there is no booking ledger (CapacityLedger \"cluster\"): has Spillway's operator ever run here? If it has, the ledger was lost, and \
         nothing is sold until it is restored"
    )]
    NoLedger,
    /// No such pool.
    #[error("there is no GpuPool {name:?}: `kubectl get gpupools` lists all")]
    NoPool {
        /// Its name.
        name: String,
    },
    /// No such reservation.
    #[error(
        "there is no GpuReservation {name:?} in namespace {namespace:?}: `kubectl get gpureservations -A` lists all"
    )]
    NoReservation {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A period that ends before it begins, or sums that are too large.
    #[error("there is no usage to show")]
    Usage {
        /// Why.
        #[source]
        source: spillway_metering::Error,
    },
    /// An experiment could not be run.
    #[error(transparent)]
    Simulate(#[from] crate::simulate::Error),
    /// A copy of the ledger that cannot be used.
    #[error("this copy of the ledger cannot be used: {why}")]
    Copy {
        /// Why, and what to do.
        why: String,
    },
    /// A file could not be read or written.
    #[error("could not use the file {name:?}: does it exist, and may you read and write it?")]
    File {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The API server refused a change.
    #[error(
        "could not write {what} {name:?}: what was written before it stays, and the same command goes on from there once the cause is mended"
    )]
    Change {
        /// Plural resource, with its group.
        what: &'static str,
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// It would do harm.
    #[error("{what}:\n  - {}", why.join("\n  - "))]
    Refused {
        /// What is not done.
        what: &'static str,
        /// Why, each with what to do.
        why: Vec<String>,
    },
    /// Nobody said yes, and nobody can be asked.
    #[error(
        "nobody can be asked whether to {word}, because standard input is no terminal: look at it with --dry-run, then say --yes"
    )]
    NotConfirmed {
        /// What would be done.
        word: &'static str,
    },
    /// The answer could not be printed.
    #[error("could not write the answer")]
    Write {
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl From<spillway_verify::LoadError> for Error {
    fn from(error: spillway_verify::LoadError) -> Self {
        use spillway_verify::LoadError;
        match error {
            LoadError::List { what, source } => Self::Read { what, source },
            LoadError::Root { source } => Self::Read { what: "capacityledgers.spillway.dev", source },
            LoadError::Restless => Self::Restless,
        }
    }
}

/// True when the answer was that we may not.
pub(crate) fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

/// What to do about an error of the API server.
fn advice(what: &str, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 401 => {
            "the API server does not accept the credentials of this kubeconfig: log in again".to_owned()
        }
        kube::Error::Api(status) if status.code == 403 => {
            format!("you may not list them. Ask an administrator for a ClusterRole with get and list on {what}")
        }
        kube::Error::Api(status) if status.code == 404 && what.ends_with("spillway.dev") => {
            "this cluster does not know Spillway. Install its chart, or choose another cluster with --kubeconfig and --context".to_owned()
        }
        kube::Error::Api(status) => format!("the API server answered {}", status.code),
        kube::Error::Service(_) | kube::Error::HyperError(_) => {
            "the API server cannot be reached: is it running, and does the kubeconfig name it?".to_owned()
        }
        kube::Error::Auth(_) => "the credentials of this kubeconfig cannot be had".to_owned(),
        _ => "the answer of the API server cannot be used".to_owned(),
    }
}

/// An error with all its causes, each once.
pub(crate) fn report(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(one) = cause {
        // The text of what the API server answered repeats the whole object; its message is enough.
        let answer = match one.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) => Some(status.message.clone()),
            _ => None,
        };
        let last = answer.is_some();
        let said = answer.unwrap_or_else(|| one.to_string());
        if !said.is_empty() && !text.contains(&said) {
            text.push_str("\n  because: ");
            text.push_str(&said);
        }
        cause = if last { None } else { one.source() };
    }
    text
}

#[cfg(test)]
mod tests;
