//! Certificates in Secrets of the operator's namespace: kept by the leader, replaced in time, mounted by who shows them.
//!
//! Those of the usage service and of gateways are of one CA, whose key no pod has: it is in a Secret that nobody mounts.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, api::PostParams};
use rcgen::ExtendedKeyUsagePurpose;
use spillway_crds::names::{
    GATEWAYS, OPERATOR, USAGE_CA_SECRET, USAGE_CLIENT_TLS_SECRET, USAGE_SERVICE, USAGE_TLS_SECRET,
};
use spillway_tls::Caller;

use crate::{
    certificate::{self, Pair, Subject},
    context::Context,
    error::{Error, call},
};

/// How often they are looked at,
const LOOK: Duration = Duration::from_secs(30);
/// and while something is missing.
const MISSING: Duration = Duration::from_secs(2);
/// Common name of the CA.
const AUTHORITY: &str = "spillway-usage-ca";

/// A file of a Secret.
pub(crate) fn file(secret: &Secret, name: &str) -> Option<String> {
    String::from_utf8(secret.data.as_ref()?.get(name)?.0.clone()).ok()
}

/// Writes files into a Secret that was `found`, with the resourceVersion that was read, or into a new one.
///
/// # Errors
/// When it cannot be written; a conflict where another was faster.
pub(crate) async fn write(
    secrets: &Api<Secret>,
    name: &str,
    found: Option<Secret>,
    files: &[(&str, &str)],
) -> Result<(), Error> {
    let file = |(name, text): &(&str, &str)| ((*name).to_owned(), ByteString(text.as_bytes().to_vec()));
    let data: BTreeMap<String, ByteString> = files.iter().map(file).collect();
    let is_there = found.is_some();
    let mut secret = found.unwrap_or_default();
    secret.metadata.name = Some(name.to_owned());
    secret.data = Some(data);
    let params = PostParams::default();
    if is_there {
        call("replacing a certificate", secrets.replace(name, &params, &secret)).await?;
    } else {
        call("creating a certificate", secrets.create(&params, &secret)).await?;
    }
    tracing::info!(secret = name, "there is a new certificate");
    Ok(())
}

/// Keeps the certificates by which gateways and the usage service know each other, where they are asked for. The leader's; never ends by itself.
pub async fn keep(context: Arc<Context>) {
    if !context.config.usage_tls {
        return std::future::pending().await;
    }
    loop {
        let wait = match keep_once(&context).await {
            Ok(()) => LOOK,
            Err(error) if error.is_conflict() => MISSING,
            Err(error) => {
                tracing::warn!(%error, "the certificates of gateways and usage service are not as they should; it is tried again");
                MISSING
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// The Secrets, and who mounts each. A usage service calls others of its kind, too.
fn subjects(namespace: &str) -> [(&'static str, Subject<'static>); 2] {
    const BOTH: &[ExtendedKeyUsagePurpose] =
        &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    const CALLS: &[ExtendedKeyUsagePurpose] = &[ExtendedKeyUsagePurpose::ClientAuth];
    let subject =
        |name: &'static str, uses| Subject { common_name: name, dns_name: format!("{name}.{namespace}.svc"), uses };
    [(USAGE_TLS_SECRET, subject(USAGE_SERVICE, BOTH)), (USAGE_CLIENT_TLS_SECRET, subject(GATEWAYS, CALLS))]
}

/// The operator, as it calls the usage service: with a certificate that it signs for itself and that nobody else ever has; without any, where none are asked for.
///
/// # Errors
/// Why it cannot call now.
pub(crate) async fn caller(context: &Context) -> Result<Caller, String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    if !context.config.usage_tls {
        return Caller::plain().map_err(|error| said(&error));
    }
    let namespace = context.config.namespace.as_str();
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let now = Timestamp::now();
    let authority = keep_authority(&secrets, now).await.map_err(|error| said(&error))?;
    let uses = &[ExtendedKeyUsagePurpose::ClientAuth];
    let subject = Subject { common_name: OPERATOR, dns_name: format!("{OPERATOR}.{namespace}.svc"), uses };
    let own = certificate::sign(AUTHORITY, &authority, &subject, now).map_err(|error| said(&error))?;
    let identity = spillway_tls::Client::of(&own.certificate, &own.key, &authority.certificate);
    let identity = identity.map_err(|error| said(&error))?;
    Caller::new(identity, &format!("{USAGE_SERVICE}.{namespace}.svc")).map_err(|error| said(&error))
}

async fn keep_once(context: &Context) -> Result<(), Error> {
    let namespace = context.config.namespace.as_str();
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let now = Timestamp::now();
    let authority = keep_authority(&secrets, now).await?;
    for (name, subject) in subjects(namespace) {
        let found = call("reading a certificate", secrets.get_opt(name)).await?;
        if found.as_ref().is_some_and(|found| is_good(found, &authority, &subject, now)) {
            continue;
        }
        let made = certificate::sign(AUTHORITY, &authority, &subject, now)?;
        let files =
            [("ca.crt", authority.certificate.as_str()), ("tls.crt", &made.certificate), ("tls.key", &made.key)];
        write(&secrets, name, found, &files).await?;
    }
    Ok(())
}

fn is_good(found: &Secret, authority: &Pair, subject: &Subject<'_>, now: Timestamp) -> bool {
    let read = || Some(Pair { certificate: file(found, "tls.crt")?, key: file(found, "tls.key")? });
    file(found, "ca.crt").is_some_and(|trusted| trusted == authority.certificate)
        && read().is_some_and(|known| !certificate::is_due(&known, &authority.certificate, &subject.dns_name, now))
}

async fn keep_authority(secrets: &Api<Secret>, now: Timestamp) -> Result<Pair, Error> {
    let found = call("reading the CA of gateways and usage service", secrets.get_opt(USAGE_CA_SECRET)).await?;
    let read = |found: &Secret| Some(Pair { certificate: file(found, "ca.crt")?, key: file(found, "ca.key")? });
    let known = found.as_ref().and_then(read);
    if let Some(known) = known.filter(|known| !certificate::is_authority_due(known, now)) {
        return Ok(known);
    }
    let made = certificate::make_authority(AUTHORITY, now)?;
    write(secrets, USAGE_CA_SECRET, found, &[("ca.crt", &made.certificate), ("ca.key", &made.key)]).await?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(files: &[(&str, &str)]) -> Secret {
        let file = |(name, text): &(&str, &str)| ((*name).to_owned(), ByteString(text.as_bytes().to_vec()));
        Secret { data: Some(files.iter().map(file).collect()), ..Secret::default() }
    }

    #[test]
    fn a_certificate_is_made_anew_with_its_authority() {
        let now: Timestamp = "2026-11-27T12:00:00Z".parse().unwrap();
        let [authority, other] = [(); 2].map(|()| certificate::make_authority(AUTHORITY, now).unwrap());
        let [(_, usage), (_, gateway)] = subjects("spillway-system");
        assert_eq!(usage.dns_name, "spillway-usage.spillway-system.svc");
        assert_eq!(gateway.dns_name, "spillway-gateway.spillway-system.svc");
        let made = certificate::sign(AUTHORITY, &authority, &gateway, now).unwrap();
        let files =
            [("ca.crt", authority.certificate.as_str()), ("tls.crt", &made.certificate), ("tls.key", &made.key)];
        let good = secret(&files);
        assert!(is_good(&good, &authority, &gateway, now));
        assert!(!is_good(&good, &other, &gateway, now), "of an authority that is gone");
        assert!(!is_good(&good, &authority, &usage, now), "of somebody else");
        assert!(!is_good(&secret(&files[..2]), &authority, &gateway, now), "without its key");
        assert!(!is_good(&Secret::default(), &authority, &gateway, now));
    }
}
