//! A client of the API server.

use std::time::Duration;

use k8s_openapi::api::{
    admissionregistration::v1::ValidatingAdmissionPolicyBinding, authentication::v1::SelfSubjectReview,
    coordination::v1::Lease,
};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::{
    args::Connection,
    error::{Error, is_forbidden},
};

/// Name of the operators' Lease.
const LEASE: &str = "spillway-operator";

/// A connection that takes longer is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer that stops for longer is given up.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// A client of the cluster that was named, or of the one that kubectl would ask.
pub(crate) async fn connect(connection: &Connection) -> Result<Client, Error> {
    Client::try_from(configure(connection).await?).map_err(|source| Error::Client { source })
}

/// The same client as a member of the group that the admission policies let pass, by impersonation: what an administrator does by
/// `kubectl --as=... --as-group=system:masters --as-group=spillway:break-glass`. It takes the right to impersonate, and is in the audit log.
pub(crate) async fn break_glass(connection: &Connection, client: &Client, group: &str) -> Result<Client, Error> {
    let reviews: Api<SelfSubjectReview> = Api::all(client.clone());
    let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await;
    let review = review.map_err(|source| Error::Read { what: "selfsubjectreviews.authentication.k8s.io", source })?;
    let user = review.status.and_then(|status| status.user_info).and_then(|user| user.username).unwrap_or_default();
    let mut config = configure(connection).await?;
    config.auth_info.impersonate = Some(user);
    config.auth_info.impersonate_groups = Some(vec!["system:masters".to_owned(), group.to_owned()]);
    Client::try_from(config).map_err(|source| Error::Client { source })
}

async fn configure(connection: &Connection) -> Result<Config, Error> {
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
    // A person waits. The client would try again without end what the API server cannot answer now, such as for a Service that has no pod.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    Ok(config)
}

/// Whether a policy of the chart guards what is to be changed, so that the glass must be broken. Where that may not be read, it is taken to.
pub(crate) async fn is_guarded(client: &Client, policy: &'static str) -> Result<bool, Error> {
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    match bindings.get_opt(policy).await {
        Ok(found) => Ok(found.is_some()),
        Err(error) if is_forbidden(&error) => Ok(true),
        Err(source) => Err(Error::Read { what: "validatingadmissionpolicybindings", source }),
    }
}

/// Who leads as operator, if somebody does: the holder of a Lease that has not run out.
pub(crate) async fn leader(client: &Client, namespace: &str, now_ms: i64) -> Result<Option<String>, Error> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let found = leases.get_opt(LEASE).await.map_err(|source| Error::Read { what: "leases", source })?;
    let Some(spec) = found.and_then(|lease| lease.spec) else { return Ok(None) };
    let renewed = spec.renew_time.map_or(0, |time| time.0.as_millisecond());
    let length = i64::from(spec.lease_duration_seconds.unwrap_or_default()).saturating_mul(1000);
    let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
    Ok(holder.filter(|_| renewed.saturating_add(length) > now_ms))
}
