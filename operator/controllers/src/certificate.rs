//! Certificates of the operator's making: CAs of its own, which stay, and what they sign, which is replaced in good time. Pure: the clock is an argument.

use jiff::{Span, Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use x509_parser::prelude::{GeneralName, ParsedExtension, X509Certificate};

/// Days for which a CA is good,
const AUTHORITY_DAYS: i64 = 3_650;
/// and before the end of which it is made anew: more than what it signs is good for.
const AUTHORITY_LEFT_DAYS: i64 = 365;
/// Days for which a certificate is good,
const DAYS: i64 = 90;
/// and before the end of which it is replaced.
const LEFT_DAYS: i64 = 30;

/// A certificate and its key, as PEM.
#[derive(Clone, Eq, PartialEq)]
pub(crate) struct Pair {
    pub certificate: String,
    pub key: String,
}

/// Whom a certificate is for.
#[derive(Clone, Debug)]
pub(crate) struct Subject<'a> {
    /// For people: a common name has 64 characters at most.
    pub common_name: &'a str,
    /// What counts.
    pub dns_name: String,
    pub uses: &'a [ExtendedKeyUsagePurpose],
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

/// Whether another CA is to be made: it cannot be read, its key is not its own, or it ends soon.
pub(crate) fn is_authority_due(authority: &Pair, now: Timestamp) -> bool {
    !is_good(&authority.certificate, now, AUTHORITY_LEFT_DAYS, None) || !is_whole(authority)
}

/// Whether a certificate can be read and is valid now.
pub(crate) fn is_valid(certificate: &str, now: Timestamp) -> bool {
    is_good(certificate, now, 0, None)
}

/// A new CA.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn make_authority(common_name: &str, now: Timestamp) -> Result<Pair, Error> {
    let key = KeyPair::generate()?;
    let certificate = authority_params(common_name, now)?.self_signed(&key)?.pem();
    Ok(Pair { certificate, key: key.serialize_pem() })
}

/// Whether another certificate is to be made: it cannot be read, its key is not its own, another CA has signed it (`authority` is the PEM of ours), it is
/// for another name, or ends soon.
pub(crate) fn is_due(pair: &Pair, authority: &str, name: &str, now: Timestamp) -> bool {
    !is_good(&pair.certificate, now, LEFT_DAYS, Some(name))
        || !is_whole(pair)
        || !is_signed(&pair.certificate, authority)
}

/// Whether a key can be read and is that of its certificate.
fn is_whole(pair: &Pair) -> bool {
    let Ok(key) = KeyPair::from_pem(&pair.key) else { return false };
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(pair.certificate.as_bytes()) else { return false };
    pem.parse_x509().is_ok_and(|certificate| *certificate.public_key().subject_public_key.data == *key.public_key_raw())
}

/// Whether a CA has signed a certificate.
fn is_signed(certificate: &str, authority: &str) -> bool {
    let read = |pem: &str| x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok().map(|(_, pem)| pem);
    let (Some(certificate), Some(authority)) = (read(certificate), read(authority)) else { return false };
    let (Ok(certificate), Ok(authority)) = (certificate.parse_x509(), authority.parse_x509()) else { return false };
    certificate.verify_signature(Some(authority.public_key())).is_ok()
}

/// A new certificate. `authority_name` is the common name of the CA.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn sign(
    authority_name: &str,
    authority: &Pair,
    subject: &Subject<'_>,
    now: Timestamp,
) -> Result<Pair, Error> {
    let issuer = Issuer::new(authority_params(authority_name, now)?, KeyPair::from_pem(&authority.key)?);
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![subject.dns_name.clone()])?;
    params.distinguished_name.push(DnType::CommonName, subject.common_name);
    bound(&mut params, now, DAYS)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = subject.uses.to_vec();
    let certificate = params.signed_by(&key, &issuer)?.pem();
    Ok(Pair { certificate, key: key.serialize_pem() })
}

fn authority_params(common_name: &str, now: Timestamp) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
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
    const AUTHORITY: &str = "spillway-metrics-ca";

    fn now() -> Timestamp {
        "2026-11-27T12:00:00Z".parse().unwrap()
    }

    fn later(days: i64) -> Timestamp {
        Timestamp::from_second(now().as_second() + days * 86_400).unwrap()
    }

    fn make(authority: &Pair, now: Timestamp) -> Pair {
        let uses = [ExtendedKeyUsagePurpose::ServerAuth];
        let subject = Subject { common_name: "spillway-metrics", dns_name: NAME.to_owned(), uses: &uses };
        sign(AUTHORITY, authority, &subject, now).unwrap()
    }

    #[test]
    fn each_is_replaced_in_time() {
        let authority = make_authority(AUTHORITY, now()).unwrap();
        let first = make(&authority, now());
        let due = |pair: &Pair, at| is_due(pair, &authority.certificate, NAME, at);
        assert!(!due(&first, now()) && !due(&first, later(59)));
        assert!(due(&first, later(61)));
        let second = make(&authority, later(61));
        assert!(!due(&second, later(61)));
        assert!(first.certificate != second.certificate && first.key != second.key);
        assert!(!is_authority_due(&authority, later(3_200)) && is_authority_due(&authority, later(3_300)));
    }

    #[test]
    fn what_cannot_be_read_or_is_for_another_is_due() {
        let authority = make_authority(AUTHORITY, now()).unwrap();
        let good = make(&authority, now());
        let due = |pair: &Pair, name, at| is_due(pair, &authority.certificate, name, at);
        assert!(!due(&good, NAME, now()));
        assert!(due(&good, "another.svc", now()));
        assert!(due(&good, NAME, later(-3)), "from the future");
        let nonsense = || "nonsense".to_owned();
        assert!(due(&Pair { certificate: nonsense(), ..good.clone() }, NAME, now()));
        // A key that cannot be read, and one that is another's.
        assert!(due(&Pair { key: nonsense(), ..good.clone() }, NAME, now()));
        let other = make(&authority, now());
        assert!(due(&Pair { key: other.key, ..good.clone() }, NAME, now()));
        // Of a CA of the same name.
        let another = make_authority(AUTHORITY, now()).unwrap();
        assert!(due(&make(&another, now()), NAME, now()));
        assert!(is_due(&good, "nonsense", NAME, now()));
        assert!(is_authority_due(&Pair { key: another.key, ..authority.clone() }, now()));
        assert!(is_authority_due(&Pair { certificate: String::new(), ..authority.clone() }, now()));
        assert!(is_authority_due(&Pair { key: "nonsense".to_owned(), ..authority }, now()));
    }

    /// What it signed is accepted by who trusts its authority, after a replacement too.
    #[test]
    fn its_certificates_are_its_authoritys() {
        let pair = make_authority(AUTHORITY, now()).unwrap();
        for signed in [make(&pair, now()), make(&pair, later(61))] {
            let (_, authority) = x509_parser::pem::parse_x509_pem(pair.certificate.as_bytes()).unwrap();
            let (_, certificate) = x509_parser::pem::parse_x509_pem(signed.certificate.as_bytes()).unwrap();
            let (authority, certificate) = (authority.parse_x509().unwrap(), certificate.parse_x509().unwrap());
            assert_eq!(authority.subject(), certificate.issuer());
        }
    }
}
