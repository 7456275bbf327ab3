//! TLS of the metrics API: callers must present a certificate of the cluster's front-proxy CA. Then it is the API server that calls, and it has
//! authenticated and authorised whoever it calls for.

use std::{collections::BTreeSet, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use serde::Deserialize;

use super::Identity;

/// Who may call.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
pub(super) struct Callers {
    /// PEM of the CAs.
    pub authorities: String,
    /// Common names, any of which is good; none: every one.
    pub names: BTreeSet<String>,
}

/// Why nobody can be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The API server has published no front-proxy CA.
    #[error(
        "kube-system/extension-apiserver-authentication has no requestheader-client-ca-file: does the API server have --requestheader-client-ca-file?"
    )]
    NoCallers,
    /// Its names cannot be read.
    #[error("kube-system/extension-apiserver-authentication: requestheader-allowed-names: {0}")]
    Names(#[source] serde_json::Error),
    /// Every client of the cluster could call as anybody.
    #[error(
        "the front-proxy CA is that of all clients, and requestheader-allowed-names is empty: set --requestheader-allowed-names of the API server"
    )]
    Anybody,
    /// A certificate or key cannot be read.
    #[error("reading a certificate: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// They cannot be used.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The CAs cannot be used.
    #[error("the front-proxy CA: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

impl Callers {
    /// Reads the data of the `ConfigMap` `kube-system/extension-apiserver-authentication`.
    ///
    /// # Errors
    /// When it says nobody, or anybody.
    pub(super) fn parse<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, Error> {
        let authorities = get("requestheader-client-ca-file").filter(|pem| !pem.trim().is_empty());
        let authorities = authorities.ok_or(Error::NoCallers)?.trim().to_owned();
        let names = get("requestheader-allowed-names").map(serde_json::from_str).transpose().map_err(Error::Names)?;
        let names: BTreeSet<String> = names.unwrap_or_default();
        let clients = certificates(get("client-ca-file").unwrap_or_default());
        if names.is_empty() && !certificates(&authorities).is_disjoint(&clients) {
            return Err(Error::Anybody);
        }
        Ok(Self { authorities, names })
    }

    /// Whether a caller whose certificate its CA has signed is one.
    pub(super) fn may(&self, certificate: Option<&CertificateDer<'_>>) -> bool {
        if self.names.is_empty() {
            return certificate.is_some();
        }
        let parsed = certificate.and_then(|der| Some(x509_parser::parse_x509_certificate(der.as_ref()).ok()?.1));
        let Some(parsed) = parsed else { return false };
        let mut names = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        names.any(|name| self.names.contains(name))
    }
}

/// The certificates in a PEM, as far as they can be read.
fn certificates(pem: &str) -> BTreeSet<Vec<u8>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).flatten().map(|one| one.as_ref().to_vec()).collect()
}

/// How connections are taken.
///
/// # Errors
/// When a certificate cannot be used.
pub(super) fn config(identity: &Identity, callers: &Callers) -> Result<ServerConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(callers.authorities.as_bytes()) {
        roots.add(authority?)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let chain =
        CertificateDer::pem_slice_iter(identity.server.certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(identity.server.key.as_bytes())?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn parse(data: &[(&str, &str)]) -> Result<Callers, Error> {
        let data: Vec<(String, String)> = data.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        Callers::parse(|name| data.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()))
    }

    #[test]
    fn nobody_and_anybody_are_refused() {
        assert!(matches!(parse(&[]), Err(Error::NoCallers)));
        assert!(matches!(parse(&[("requestheader-client-ca-file", " \n")]), Err(Error::NoCallers)));
        let pem = || CertificateParams::default().self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        let (clients, proxies) = (pem(), pem());
        let both = format!("# of the front proxies\n{proxies}\n{clients}");
        let apart = [("requestheader-client-ca-file", proxies.as_str()), ("client-ca-file", clients.as_str())];
        assert!(parse(&apart).unwrap().names.is_empty());
        let anybody = [("requestheader-client-ca-file", both.as_str()), ("client-ca-file", clients.as_str())];
        assert!(matches!(parse(&anybody), Err(Error::Anybody)));
        let named = [anybody.as_slice(), &[("requestheader-allowed-names", r#"["front-proxy-client"]"#)]].concat();
        assert_eq!(parse(&named).unwrap().names.len(), 1);
        let nonsense = [("requestheader-client-ca-file", "CA"), ("requestheader-allowed-names", "front-proxy")];
        assert!(matches!(parse(&nonsense), Err(Error::Names(_))));
    }

    #[test]
    fn a_caller_has_an_allowed_name() {
        let certificate = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
        };
        let named = Callers { authorities: String::new(), names: ["front-proxy-client".to_owned()].into() };
        assert!(named.may(Some(&certificate("front-proxy-client"))));
        assert!(!named.may(Some(&certificate("system:node:a"))));
        assert!(!named.may(None));
        let any = Callers::default();
        assert!(any.may(Some(&certificate("whoever"))) && !any.may(None));
    }
}
