//! Leader election by a Lease. For liveness only: two leaders at once are safe, because the ledger's swap is the decision.

use kube::Client;
use kube_lease_manager::{LeaseCreateMode, LeaseManagerBuilder};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    config::{Config, LEASE_SECONDS},
    error::Error,
};

/// Name of the Lease.
pub const LEASE_NAME: &str = "spillway-operator";

/// Takes part in the election; the channel says whether this process leads.
///
/// # Errors
/// When the election cannot be set up.
pub async fn campaign(
    client: Client,
    config: &Config,
) -> Result<(watch::Receiver<bool>, JoinHandle<Result<(), Error>>), Error> {
    let manager = LeaseManagerBuilder::new(client, LEASE_NAME)
        .with_namespace(&config.namespace)
        .with_identity(&config.identity)
        .with_create_mode(LeaseCreateMode::AutoCreate)
        .with_duration(LEASE_SECONDS)
        .with_grace(LEASE_SECONDS / 3)
        .build()
        .await?;
    let (channel, task) = manager.watch().await;
    let task = tokio::spawn(async move {
        match task.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Error::TaskEnded("lease")),
        }
    });
    Ok((channel, task))
}

/// Waits until this process leads.
///
/// # Errors
/// When the election ended.
pub async fn wait_until_leading(channel: &mut watch::Receiver<bool>) -> Result<(), Error> {
    loop {
        if *channel.borrow_and_update() {
            return Ok(());
        }
        channel.changed().await.map_err(|_| Error::TaskEnded("lease"))?;
    }
}

/// Waits until this process leads no more.
pub async fn wait_until_deposed(channel: &mut watch::Receiver<bool>) {
    while *channel.borrow_and_update() {
        if channel.changed().await.is_err() {
            return;
        }
    }
}
