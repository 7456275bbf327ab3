//! Who is let in: whoever shows a certificate of one of the CAs, for clients, with one of the names.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};

use super::{Contents, Error, Peers, authorities};

pub(crate) fn verifier(callers: &Peers, [_, _, pem]: &Contents) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let roots = authorities(&callers.authority, pem)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let signed = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let signed = signed.map_err(|source| Error::Callers { path: callers.authority.clone(), source })?;
    let name = |name: &String| {
        let parsed = ServerName::try_from(name.clone()).ok();
        parsed.filter(|name| matches!(name, ServerName::DnsName(_))).ok_or_else(|| Error::Name { name: name.clone() })
    };
    let names = callers.names.iter().map(name).collect::<Result<_, _>>()?;
    Ok(Arc::new(Named { signed, names }))
}

/// What rustls checks of a client's certificate, and its name, which rustls checks of servers only.
#[derive(Debug)]
struct Named {
    signed: Arc<dyn ClientCertVerifier>,
    names: Vec<ServerName<'static>>,
}

impl ClientCertVerifier for Named {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signed.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.signed.verify_client_cert(end_entity, intermediates, now)?;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let mut wrong = rustls::Error::General("no name is allowed".to_owned());
        for name in &self.names {
            match verify_server_name(&parsed, name) {
                Ok(()) => return Ok(verified),
                Err(error) => wrong = error,
            }
        }
        Err(wrong)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}
