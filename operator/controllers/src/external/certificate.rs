//! The certificate of the metrics API: a CA of its own, which stays, and what it signs, which is replaced in good time. Pure: the clock is an argument.

use jiff::{Span, Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use x509_parser::prelude::{GeneralName, ParsedExtension, X509Certificate};

/// Common name of the CA.
const AUTHORITY: &str = "spillway-metrics-ca";
/// Days for which the CA is good,
const AUTHORITY_DAYS: i64 = 3_650;
/// and before the end of which it is made anew: more than what it signs is good for.
const AUTHORITY_LEFT_DAYS: i64 = 365;
/// Days for which a certificate is good,
const DAYS: i64 = 90;
/// and before the end of which it is replaced.
const LEFT_DAYS: i64 = 30;

/// Certificates and keys, as PEM.
#[derive(Clone, Eq, PartialEq)]
pub(super) struct Identity {
    /// The CA's certificate.
    pub authority: String,
    /// The CA's key.
    pub authority_key: String,
    /// The server's certificate.
    pub certificate: String,
    /// The server's key.
    pub key: String,
}

/// Why none could be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Making or signing.
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The clock is not one.
    #[error("the date is beyond the calendar")]
    Date,
}

/// Whether another one is to be made: it cannot be read, is for another name, or ends soon.
pub(super) fn is_due(identity: &Identity, name: &str, now: Timestamp) -> bool {
    !is_good(&identity.certificate, now, LEFT_DAYS, Some(name))
        || !is_good(&identity.authority, now, AUTHORITY_LEFT_DAYS, None)
}

/// A new one for a server of this name. The CA is that of the old one, as long as it is good.
///
/// # Errors
/// When it cannot be made.
pub(super) fn make(old: Option<&Identity>, name: &str, now: Timestamp) -> Result<Identity, Error> {
    let kept = old.filter(|old| is_good(&old.authority, now, AUTHORITY_LEFT_DAYS, None));
    let kept = kept.and_then(|old| Some((old.authority.clone(), KeyPair::from_pem(&old.authority_key).ok()?)));
    let (authority, authority_key) = match kept {
        Some(kept) => kept,
        None => {
            let key = KeyPair::generate()?;
            (authority_params(now)?.self_signed(&key)?.pem(), key)
        }
    };
    let authority_pem = authority_key.serialize_pem();
    let issuer = Issuer::new(authority_params(now)?, authority_key);
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    // A common name has 64 characters at most; the name that counts is the alternative one.
    params.distinguished_name.push(DnType::CommonName, "spillway-metrics");
    bound(&mut params, now, DAYS)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.signed_by(&key, &issuer)?.pem();
    Ok(Identity { authority, authority_key: authority_pem, certificate, key: key.serialize_pem() })
}

fn authority_params(now: Timestamp) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, AUTHORITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    bound(&mut params, now, AUTHORITY_DAYS)?;
    Ok(params)
}

/// Bounds a certificate to from yesterday, for clocks that are behind, and for so many days.
fn bound(params: &mut CertificateParams, now: Timestamp, days: i64) -> Result<(), Error> {
    let today = now.to_zoned(TimeZone::UTC).date();
    let midnight = |days: i64| {
        let date = today.checked_add(Span::new().days(days)).map_err(|_| Error::Date)?;
        Ok::<_, Error>(date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs()))
    };
    params.not_before = midnight(-1)?;
    params.not_after = midnight(days)?;
    Ok(())
}

/// Whether a certificate is good now and for so many days, and for a name.
fn is_good(pem: &str, now: Timestamp, days: i64, name: Option<&str>) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(pem.as_bytes()) else { return false };
    let Ok(certificate) = pem.parse_x509() else { return false };
    let (begin, end) = (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp());
    let needed = now.as_second().saturating_add(days.saturating_mul(86_400));
    begin <= now.as_second() && end > needed && name.is_none_or(|name| is_for(&certificate, name))
}

fn is_for(certificate: &X509Certificate<'_>, name: &str) -> bool {
    certificate.extensions().iter().any(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => {
            names.general_names.iter().any(|one| matches!(one, GeneralName::DNSName(dns) if *dns == name))
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "spillway-metrics-api.spillway-system.svc";

    fn now() -> Timestamp {
        "2026-11-27T12:00:00Z".parse().unwrap()
    }

    fn later(days: i64) -> Timestamp {
        Timestamp::from_second(now().as_second() + days * 86_400).unwrap()
    }

    #[test]
    fn it_is_replaced_in_time_and_its_authority_stays() {
        let first = make(None, NAME, now()).unwrap();
        assert!(!is_due(&first, NAME, now()) && !is_due(&first, NAME, later(59)));
        assert!(is_due(&first, NAME, later(61)));
        let second = make(Some(&first), NAME, later(61)).unwrap();
        assert!(!is_due(&second, NAME, later(61)));
        assert_eq!((&first.authority, &first.authority_key), (&second.authority, &second.authority_key));
        assert!(first.certificate != second.certificate && first.key != second.key);
        let third = make(Some(&second), NAME, later(3_300)).unwrap();
        assert_ne!(second.authority, third.authority, "an authority that ends is made anew");
    }

    #[test]
    fn what_cannot_be_read_or_is_for_another_is_due() {
        let good = make(None, NAME, now()).unwrap();
        assert!(is_due(&good, "another.svc", now()));
        assert!(is_due(&good, NAME, later(-3)), "from the future");
        assert!(is_due(&Identity { certificate: "nonsense".to_owned(), ..good.clone() }, NAME, now()));
        assert!(is_due(&Identity { authority: String::new(), ..good.clone() }, NAME, now()));
        // The key of a CA that cannot be read makes another CA.
        let broken = Identity { authority_key: "nonsense".to_owned(), ..good.clone() };
        assert_ne!(make(Some(&broken), NAME, now()).unwrap().authority, good.authority);
    }

    /// What it signed is accepted by who trusts its authority, after a replacement too.
    #[test]
    fn its_certificates_are_its_authoritys() {
        let first = make(None, NAME, now()).unwrap();
        let second = make(Some(&first), NAME, later(61)).unwrap();
        for identity in [&first, &second] {
            let (_, authority) = x509_parser::pem::parse_x509_pem(first.authority.as_bytes()).unwrap();
            let (_, certificate) = x509_parser::pem::parse_x509_pem(identity.certificate.as_bytes()).unwrap();
            let (authority, certificate) = (authority.parse_x509().unwrap(), certificate.parse_x509().unwrap());
            assert_eq!(authority.subject(), certificate.issuer());
        }
    }
}
