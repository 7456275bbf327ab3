//! What can fail in a controller.

use std::time::Duration;

/// What failed, named after the action.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to the API server failed.
    #[error("{action}: {source}")]
    Api {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: Box<kube::Error>,
    },
    /// A call to the API server took too long.
    #[error("{action}: no answer within {timeout:?}")]
    Timeout {
        /// What was tried.
        action: &'static str,
        /// How long it was waited.
        timeout: Duration,
    },
    /// A write was held back because the decision behind it is not the latest.
    #[error("{action}: held back, the ledger is at generation {found} and the decision stands on {expected}")]
    Fenced {
        /// What was to be done.
        action: &'static str,
        /// Generation of the decision.
        expected: i64,
        /// Generation of the root, -1 where there is none.
        found: i64,
    },
    /// The ledger could not be read.
    #[error("reading the ledger: {0}")]
    Load(#[from] spillway_planner::ledger::LoadError),
    /// The leader election failed.
    #[error("leader election: {0}")]
    Lease(#[from] kube_lease_manager::LeaseManagerError),
    /// The HTTP server failed.
    #[error("serving {address}: {source}")]
    Http {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A certificate could not be made.
    #[error(transparent)]
    Certificate(#[from] crate::certificate::Error),
    /// A task ended that must not end.
    #[error("task {0} ended")]
    TaskEnded(&'static str),
}

impl Error {
    /// An API error with what was tried.
    pub fn api(action: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Api { action, source: Box::new(source) }
    }

    /// True when the object changed since it was read: read again, it is no failure.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api { source, .. } if matches!(&**source, kube::Error::Api(status) if status.code == 409))
    }

    /// True when the object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api { source, .. } if matches!(&**source, kube::Error::Api(status) if status.code == 404))
    }
}

/// Waits for an API call at most [`crate::config::CALL_TIMEOUT`].
///
/// # Errors
/// What the call fails with, or a time-out.
pub async fn call<T>(
    action: &'static str,
    future: impl Future<Output = Result<T, kube::Error>> + Send,
) -> Result<T, Error> {
    let timeout = crate::config::CALL_TIMEOUT;
    match tokio::time::timeout(timeout, future).await {
        Ok(result) => result.map_err(Error::api(action)),
        Err(_) => Err(Error::Timeout { action, timeout }),
    }
}
