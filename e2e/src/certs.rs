//! The cluster's certificate authorities and what they sign. Everything is made anew for each lab and dies with it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// A certificate and its key as PEM.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub cert: String,
    /// Its private key.
    pub key: String,
}

impl Pair {
    /// Writes `name.crt` and `name.key`.
    pub fn write(&self, dir: &Path, name: &str) -> Result<()> {
        std::fs::write(dir.join(format!("{name}.crt")), &self.cert).with_context(|| format!("writing {name}.crt"))?;
        std::fs::write(dir.join(format!("{name}.key")), &self.key).with_context(|| format!("writing {name}.key"))
    }
}

/// A certificate authority kept in a folder. Its name is the name of its files.
#[derive(Debug, Clone)]
pub struct Authority {
    name: String,
    pair: Pair,
}

/// What the authority says of itself. Making it again from the name saves parsing the certificate.
fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("spillway-lab-{name}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

impl Authority {
    /// Makes a new authority.
    pub fn create(name: &str) -> Result<Self> {
        let key = KeyPair::generate().context("generating an authority's key")?;
        let cert = authority_params(name).self_signed(&key).context("signing an authority")?;
        Ok(Self { name: name.to_owned(), pair: Pair { cert: cert.pem(), key: key.serialize_pem() } })
    }

    /// Reads an authority back that was written as `name.crt` and `name.key`.
    pub fn read(dir: &Path, name: &str) -> Result<Self> {
        let read = |suffix: &str| {
            let path = dir.join(format!("{name}.{suffix}"));
            std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        Ok(Self { name: name.to_owned(), pair: Pair { cert: read("crt")?, key: read("key")? } })
    }

    /// Writes the authority's files.
    pub fn write(&self, dir: &Path) -> Result<()> {
        self.pair.write(dir, &self.name)
    }

    /// The authority's own certificate and key.
    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    /// Signs a certificate for a client: `user` is the common name, `groups` the organisations.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<Pair> {
        self.sign(user, groups, &[], &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    /// Signs a certificate for a server that may be a client too, as the kubelet and the API server are.
    pub fn server(&self, name: &str, groups: &[&str], alternatives: &[String]) -> Result<Pair> {
        self.sign(
            name,
            groups,
            alternatives,
            &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        )
    }

    fn sign(
        &self,
        name: &str,
        groups: &[&str],
        alternatives: &[String],
        uses: &[ExtendedKeyUsagePurpose],
    ) -> Result<Pair> {
        let issuer_key = KeyPair::from_pem(&self.pair.key).context("reading the authority's key")?;
        let issuer = Issuer::new(authority_params(&self.name), issuer_key);
        let key = KeyPair::generate().context("generating a key")?;
        let mut params = CertificateParams::new(alternatives).context("taking the alternative names")?;
        // rcgen keeps one value per kind of name; its own kind and the same object id spelt out are two kinds to it, so two groups fit in.
        let kinds = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
        anyhow::ensure!(groups.len() <= kinds.len(), "a certificate of the lab carries at most {} groups", kinds.len());
        for (kind, group) in kinds.into_iter().zip(groups) {
            params.distinguished_name.push(kind, *group);
        }
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = uses.to_vec();
        let cert = params.signed_by(&key, &issuer).with_context(|| format!("signing a certificate for {name}"))?;
        Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
    }
}

/// Writes what the control plane needs into `dir`, and returns the authority that signs users and nodes.
pub fn write_control_plane(dir: &Path, api_addresses: &[String]) -> Result<Authority> {
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let authority = Authority::create("ca")?;
    authority.write(dir)?;
    let front_proxy = Authority::create("front-proxy-ca")?;
    front_proxy.write(dir)?;
    front_proxy.client("front-proxy-client", &[])?.write(dir, "front-proxy-client")?;

    let mut names: Vec<String> = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    .map(str::to_owned)
    .to_vec();
    names.extend_from_slice(api_addresses);
    authority.server("kube-apiserver", &[], &names)?.write(dir, "apiserver")?;
    authority.client("kube-apiserver-kubelet-client", &["system:masters"])?.write(dir, "apiserver-kubelet-client")?;

    let tokens = KeyPair::generate().context("generating the service accounts' key")?;
    std::fs::write(dir.join("sa.key"), tokens.serialize_pem()).context("writing sa.key")?;
    std::fs::write(dir.join("sa.pub"), tokens.public_key_pem()).context("writing sa.pub")?;
    Ok(authority)
}

/// The folder of a lab's certificates.
pub fn dir_of(lab_dir: &Path) -> PathBuf {
    lab_dir.join("pki")
}
