//! Who talks to the API server: the admin, or anybody the test wants to be.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use reqwest::header::{HeaderName, HeaderValue};
use tower::util::MapRequestLayer;

use super::Lab;
use crate::certs::{self, Authority};

pub(super) async fn config_of(kubeconfig: &Path) -> Result<kube::Config> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).context("reading the lab's kubeconfig")?;
    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .context("using the lab's kubeconfig")
}

impl Lab {
    /// The admin's kubeconfig (group `system:masters`, not the break-glass group).
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// A new client as the admin. Each call makes one of its own, because a client lives in the runtime in which it was made.
    pub fn client(&self) -> Result<kube::Client> {
        let config = self.config.clone().context("the lab has no API server yet")?;
        kube::Client::try_from(config).context("making a client")
    }

    /// A new client that acts as somebody else, by impersonation: a user, its groups, and extra values such as
    /// `("authentication.kubernetes.io/node-name", "node-0")`.
    pub fn client_as(&self, user: &str, groups: &[&str], extra: &[(&str, &str)]) -> Result<kube::Client> {
        let mut headers = vec![header("Impersonate-User", user)?];
        for group in groups {
            headers.push(header("Impersonate-Group", group)?);
        }
        for (key, value) in extra {
            // A slash may not be in a header's name.
            headers.push(header(&format!("Impersonate-Extra-{}", key.replace('%', "%25").replace('/', "%2F")), value)?);
        }
        let layer = MapRequestLayer::new(move |mut request: tonic::codegen::http::Request<kube::client::Body>| {
            for (name, value) in &headers {
                request.headers_mut().append(name, value.clone());
            }
            request
        });
        let config = self.config.clone().context("the lab has no API server yet")?;
        Ok(ClientBuilder::try_from(config).context("making a client")?.with_layer(&layer).build())
    }

    /// A client as a ServiceAccount, with the groups that its token would have.
    pub fn client_as_service_account(&self, namespace: &str, name: &str) -> Result<kube::Client> {
        let of_namespace = format!("system:serviceaccounts:{namespace}");
        self.client_as(
            &format!("system:serviceaccount:{namespace}:{name}"),
            &["system:serviceaccounts", &of_namespace, "system:authenticated"],
            &[],
        )
    }

    /// Writes a kubeconfig for a user by client certificate, for processes that the test starts itself. At most two groups.
    pub fn kubeconfig_for(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        let server = self.server().context("the lab has no API server yet")?;
        let authority = Authority::read(&certs::dir_of(&self.dir), "ca")?;
        let file = user.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
        let path = self.dir.join("users").join(format!("{file}.kubeconfig"));
        crate::kubeconfig::write(&path, &server, &authority.pair().cert, &authority.client(user, groups)?)?;
        Ok(path)
    }
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_bytes(name.as_bytes()).with_context(|| format!("'{name}' as a header"))?;
    Ok((name, HeaderValue::from_str(value).with_context(|| format!("'{value}' in a header"))?))
}
