//! How PostgreSQL is reached: by TLS to a server whose certificate is checked, or without any where its URL says so. There is nothing between: TLS with
//! whoever answers keeps nobody out who can stand between.

use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;

use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::Error;

/// What the server's certificate is checked by.
#[derive(Clone, Debug)]
pub(super) enum Trust {
    /// It shows none: there is no TLS.
    Nobody,
    /// The CAs of this file, which is read for each connection: providers change theirs.
    File(PathBuf),
    /// Those of the system.
    System,
}

/// Reads a URL; without `sslmode` it is `verify-full`.
///
/// # Errors
///
/// [`Error::Url`], [`Error::SslMode`].
pub(super) fn parse(url: &str, authority: Option<PathBuf>) -> Result<(Config, Trust), Error> {
    if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(Error::Url);
    }
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let (modes, others): (Vec<&str>, Vec<&str>) = query.split('&').partition(|pair| pair.starts_with("sslmode="));
    let mut config = Config::from_str(&format!("{address}?{}", others.join("&"))).map_err(|_| Error::Url)?;
    let mode = modes.last().and_then(|pair| pair.split_once('=')).map_or("verify-full", |(_, mode)| mode);
    let trust = match (mode, authority) {
        ("disable", _) => Trust::Nobody,
        ("verify-full", Some(path)) => Trust::File(path),
        ("verify-full", None) => Trust::System,
        _ => return Err(Error::SslMode),
    };
    // Required, not preferred: a server that says that it has no TLS may be another one.
    config.ssl_mode(if matches!(trust, Trust::Nobody) { SslMode::Disable } else { SslMode::Require });
    Ok((config, trust))
}

impl Trust {
    /// How to connect by TLS; none where there is none.
    ///
    /// # Errors
    ///
    /// When there is no CA to check by.
    pub(super) async fn connector(&self) -> Result<Option<MakeRustlsConnect>, Error> {
        let roots = match self {
            Self::Nobody => return Ok(None),
            Self::File(path) => {
                let pem = tokio::fs::read(path).await.map_err(|source| Error::Authority {
                    source: spillway_tls::Error::Read { path: path.clone(), source },
                })?;
                spillway_tls::authorities(path, &pem).map_err(|source| Error::Authority { source })?
            }
            Self::System => tokio::task::spawn_blocking(system).await.map_err(|_| Error::Closed)??,
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder
            .with_safe_default_protocol_versions()
            .map_err(|source| Error::Authority { source: spillway_tls::Error::Tls(source) })?;
        Ok(Some(MakeRustlsConnect::new(builder.with_root_certificates(roots).with_no_client_auth())))
    }
}

fn system() -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(Error::NoAuthority) } else { Ok(roots) }
}

/// What to do about an error of TLS; none where it is of something else.
pub(super) fn remedy(error: &tokio_postgres::Error) -> Option<&'static str> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(tls) = tls.or_else(|| error.downcast_ref()) {
            return Some(match tls {
                rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                ) => "the URL must name the host as the server's certificate does",
                rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                    "its certificate is of no CA that is trusted here: name a file with the one that signed it by --postgres-ca"
                }
                rustls::Error::InvalidCertificate(_) => "its certificate is not good: replace it at the server",
                _ => "the server does not speak TLS as it should",
            });
        }
        source = error.source();
    }
    let refused =
        std::error::Error::source(error).is_some_and(|source| source.to_string() == "server does not support TLS");
    refused.then_some(
        "the server has no TLS: switch it on there (ssl = on), or say sslmode=disable in the URL where nobody can stand between",
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const HOST: &str = "postgres://usage:hunter2@db.example:5432/usage";

    #[rstest]
    #[case::nothing_said("", "System", SslMode::Require)]
    #[case::checked("?sslmode=verify-full", "System", SslMode::Require)]
    #[case::among_others(
        "?connect_timeout=3&sslmode=verify-full&target_session_attrs=read-write",
        "System",
        SslMode::Require
    )]
    #[case::off("?sslmode=disable", "Nobody", SslMode::Disable)]
    fn how_it_is_reached_is_in_its_url(#[case] query: &str, #[case] expected: &str, #[case] mode: SslMode) {
        let (config, trust) = parse(&format!("{HOST}{query}"), None).unwrap();
        assert_eq!((format!("{trust:?}").as_str(), config.get_ssl_mode()), (expected, mode));
        assert_eq!(config.get_password(), Some(b"hunter2".as_slice()));
        let (_, trust) = parse(&format!("{HOST}{query}"), Some("/ca.crt".into())).unwrap();
        assert!(matches!((trust, expected), (Trust::Nobody, "Nobody") | (Trust::File(_), "System")));
    }

    #[rstest]
    #[case::whoever_answers(&format!("{HOST}?sslmode=require"), "sslmode=verify-full")]
    #[case::or_nobody(&format!("{HOST}?sslmode=prefer"), "sslmode=verify-full")]
    #[case::any_name(&format!("{HOST}?sslmode=verify-ca"), "sslmode=verify-full")]
    #[case::last_counts(&format!("{HOST}?sslmode=verify-full&sslmode=allow"), "sslmode=verify-full")]
    #[case::another_parameter(&format!("{HOST}?sslkey=x"), "must be like postgres://")]
    #[case::no_url("host=db user=usage password=hunter2", "must be like postgres://")]
    fn what_would_not_be_safe_is_refused(#[case] url: &str, #[case] hint: &str) {
        let error = parse(url, None).unwrap_err().to_string();
        assert!(error.contains(hint) && !error.contains("hunter2"), "{error}");
    }
}
