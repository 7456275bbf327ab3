//! A client of the API server.

use std::time::Duration;

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::{args::Connection, error::Error};

/// A connection that takes longer is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer that stops for longer is given up.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// A client of the cluster that was named, or of the one that kubectl would ask.
pub(crate) async fn connect(connection: &Connection) -> Result<Client, Error> {
    let options = KubeConfigOptions { context: connection.context.clone(), ..KubeConfigOptions::default() };
    let mut config = match &connection.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|source| Error::Kubeconfig { source: source.into() })?;
            Config::from_custom_kubeconfig(file, &options)
                .await
                .map_err(|source| Error::Kubeconfig { source: source.into() })?
        }
        None if connection.context.is_some() => {
            Config::from_kubeconfig(&options).await.map_err(|source| Error::Kubeconfig { source: source.into() })?
        }
        None => Config::infer().await.map_err(|source| Error::Kubeconfig { source: source.into() })?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    Client::try_from(config).map_err(|source| Error::Client { source })
}
