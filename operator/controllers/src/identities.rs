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
    let (_, known) = find_authority(&secrets, now).await.map_err(|error| said(&error))?;
    let authority = known.ok_or_else(|| format!("Secret {USAGE_CA_SECRET} has no CA yet: it is made soon"))?;
    let uses = &[ExtendedKeyUsagePurpose::ClientAuth];
    let subject = Subject { common_name: OPERATOR, dns_name: format!("{OPERATOR}.{namespace}.svc"), uses };
    let own = certificate::sign(AUTHORITY, &authority.pair, &subject, now).map_err(|error| said(&error))?;
    let identity = spillway_tls::Client::of(&own.certificate, &own.key, &authority.trusted());
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
        let good = found.as_ref().and_then(|found| good(found, &authority, &subject, now));
        let trusted = authority.trusted();
        if good.is_some() && found.as_ref().and_then(|found| file(found, "ca.crt")).as_ref() == Some(&trusted) {
            continue;
        }
        let pair = match good {
            Some(good) => good,
            None => certificate::sign(AUTHORITY, &authority.pair, &subject, now)?,
        };
        let files = [("ca.crt", trusted.as_str()), ("tls.crt", &pair.certificate), ("tls.key", &pair.key)];
        write(&secrets, name, found, &files).await?;
    }
    Ok(())
}

/// The certificate of a Secret, if it is good: of this CA or of the one before, which both sides trust on, so that none is replaced before all have heard of
/// another CA.
fn good(found: &Secret, authority: &Authority, subject: &Subject<'_>, now: Timestamp) -> Option<Pair> {
    let known = Pair { certificate: file(found, "tls.crt")?, key: file(found, "tls.key")? };
    authority.all().any(|one| !certificate::is_due(&known, one, &subject.dns_name, now)).then_some(known)
}

/// The CA, and the one before it while that is valid: certificates that it signed are shown until they are replaced.
struct Authority {
    pair: Pair,
    before: Option<String>,
}

impl Authority {
    fn read(found: &Secret, now: Timestamp) -> Option<Self> {
        let pair = Pair { certificate: file(found, "ca.crt")?, key: file(found, "ca.key")? };
        let before = file(found, "before.crt").filter(|before| certificate::is_valid(before, now));
        Some(Self { pair, before })
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        [self.pair.certificate.as_str()].into_iter().chain(self.before.as_deref())
    }

    /// What both sides take certificates of.
    fn trusted(&self) -> String {
        self.all().collect()
    }
}

/// A new CA after one that is due. One that only ends soon is trusted on; one that cannot be read, or was deleted, is not.
fn make_authority(known: Option<Authority>, now: Timestamp) -> Result<Authority, certificate::Error> {
    let before = known.map(|known| known.pair.certificate).filter(|before| certificate::is_valid(before, now));
    Ok(Authority { pair: certificate::make_authority(AUTHORITY, now)?, before })
}

/// The Secret of the CA, and what can be read of it.
async fn find_authority(secrets: &Api<Secret>, now: Timestamp) -> Result<(Option<Secret>, Option<Authority>), Error> {
    let found = call("reading the CA of gateways and usage service", secrets.get_opt(USAGE_CA_SECRET)).await?;
    let known = found.as_ref().and_then(|found| Authority::read(found, now));
    Ok((found, known))
}

async fn keep_authority(secrets: &Api<Secret>, now: Timestamp) -> Result<Authority, Error> {
    let (found, known) = match find_authority(secrets, now).await? {
        (_, Some(known)) if !certificate::is_authority_due(&known.pair, now) => return Ok(known),
        due => due,
    };
    let made = make_authority(known, now)?;
    let mut files = vec![("ca.crt", made.pair.certificate.as_str()), ("ca.key", &made.pair.key)];
    files.extend(made.before.as_deref().map(|before| ("before.crt", before)));
    write(secrets, USAGE_CA_SECRET, found, &files).await?;
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
        let [authority, other] = [(); 2].map(|()| make_authority(None, now).unwrap());
        let [(_, usage), (_, gateway)] = subjects("spillway-system");
        assert_eq!(usage.dns_name, "spillway-usage.spillway-system.svc");
        assert_eq!(gateway.dns_name, "spillway-gateway.spillway-system.svc");
        let made = certificate::sign(AUTHORITY, &authority.pair, &gateway, now).unwrap();
        let files = [("tls.crt", made.certificate.as_str()), ("tls.key", &made.key)];
        let is_good = |found: &Secret, authority: &Authority, subject: &Subject<'_>| {
            good(found, authority, subject, now).is_some()
        };
        assert!(is_good(&secret(&files), &authority, &gateway));
        assert!(!is_good(&secret(&files), &other, &gateway), "of an authority that is gone");
        assert!(!is_good(&secret(&files), &authority, &usage), "of somebody else");
        assert!(!is_good(&secret(&files[..1]), &authority, &gateway), "without its key");
        assert!(!is_good(&Secret::default(), &authority, &gateway));
    }

    /// While the CA changes, what either has signed is taken; and a certificate is replaced when its own time comes.
    #[test]
    fn a_ca_that_is_replaced_is_trusted_on() {
        let at = |day: &str| -> Timestamp { format!("{day}T12:00:00Z").parse().unwrap() };
        let (begin, due, end) = (at("2026-11-27"), at("2035-12-01"), at("2036-12-01"));
        let first = make_authority(None, begin).unwrap();
        assert_eq!(first.trusted(), first.pair.certificate);
        assert!(certificate::is_authority_due(&first.pair, due));
        let [(_, usage), _] = subjects("spillway-system");
        let shown = certificate::sign(AUTHORITY, &first.pair, &usage, at("2035-11-20")).unwrap();
        let old = first.pair.certificate.clone();
        let second = make_authority(Some(first), due).unwrap();
        assert_eq!(second.trusted(), format!("{}{old}", second.pair.certificate));
        let files = [("tls.crt", shown.certificate.as_str()), ("tls.key", &shown.key)];
        assert!(good(&secret(&files), &second, &usage, due).is_some());
        assert!(good(&secret(&files), &second, &usage, at("2036-02-01")).is_none(), "its own time is over");
        // What is in the Secret says the same; and what has ended is trusted no more.
        let pair = &second.pair;
        let kept = secret(&[("ca.crt", &pair.certificate), ("ca.key", &pair.key), ("before.crt", &old)]);
        assert_eq!(Authority::read(&kept, due).unwrap().trusted(), second.trusted());
        assert_eq!(Authority::read(&kept, end).unwrap().trusted(), pair.certificate);
    }
}
