//! The certificates of gateways and the usage service, as the operator makes them with the rights that the chart gives it: a real usage service lets in
//! who has them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams};
use serde_json::json;
use spillway_crds::Phase;
use spillway_lab::spillway::Spillway;
use spillway_lab::{Lab, LabOptions, Size, free_port, wait_for, wait_for_value};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{BOUND, TENANT, furnish};

const NAMESPACE: &str = "spillway-system";
const HOST: &str = "spillway-usage.spillway-system.svc";

type Files = BTreeMap<String, Vec<u8>>;

/// What is in a Secret, once it is there and `is_new`.
async fn files(secrets: &Api<Secret>, name: &str, is_new: impl Fn(&Files) -> bool) -> Result<Files> {
    wait_for_value(&format!("the Secret {name}"), BOUND, || async {
        let data = secrets.get_opt(name).await?.and_then(|secret| secret.data);
        let files: Option<Files> = data.map(|data| data.into_iter().map(|(name, bytes)| (name, bytes.0)).collect());
        Ok(files.filter(|files| is_new(files)))
    })
    .await
}

fn mount(dir: &Path, files: &Files) -> Result<()> {
    std::fs::create_dir_all(dir).context("a folder")?;
    for (name, bytes) in files {
        std::fs::write(dir.join(name), bytes).with_context(|| format!("writing {name}"))?;
    }
    Ok(())
}

struct Service {
    _child: Child,
    port: u16,
}

async fn serve(program: &Path, dir: &Path) -> Result<Service> {
    let [port, reports, admin] =
        [free_port(Ipv4Addr::LOCALHOST)?, free_port(Ipv4Addr::LOCALHOST)?, free_port(Ipv4Addr::LOCALHOST)?];
    let file = |name: &str| dir.join("usage").join(name).display().to_string();
    let log = std::fs::File::create(dir.join("usage.log")).context("a log")?;
    let child = Command::new(program)
        .args([format!("--sqlite={}", dir.join("usage.sqlite").display()), format!("--listen=127.0.0.1:{port}")])
        .args([format!("--reports=127.0.0.1:{reports}"), format!("--admin=127.0.0.1:{admin}")])
        .args([format!("--tls-certificate={}", file("tls.crt")), format!("--tls-key={}", file("tls.key"))])
        .args([
            format!("--tls-ca={}", file("ca.crt")),
            format!("--tls-callers=spillway-gateway.{NAMESPACE}.svc,spillway-operator.{NAMESPACE}.svc"),
        ])
        .stdin(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("starting the usage service")?;
    let service = Service { _child: child, port };
    wait_for("the usage service", BOUND, || async {
        Ok(tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok())
    })
    .await?;
    Ok(service)
}

/// Asks for no leases, with the certificate in a folder; what curl says.
async fn ask(service: &Service, dir: &Path, certificate: Option<&str>) -> Result<String> {
    let mut command = Command::new("curl");
    command.args(["-sS", "--http2", "-m", "10", "-w", " %{http_version}", "-d", r#"{"gateway":"g","needs":[]}"#]);
    command.args(["--resolve", &format!("{HOST}:{}:127.0.0.1", service.port), "--cacert"]);
    command.arg(dir.join("gateway/ca.crt"));
    if let Some(name) = certificate {
        command.arg("--cert").arg(dir.join(name).join("tls.crt")).arg("--key").arg(dir.join(name).join("tls.key"));
    }
    let output = command.arg(format!("https://{HOST}:{}/v1/leases", service.port)).output().await.context("curl")?;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// Waits until the service has said why it let somebody not in. What a caller hears of it depends on when it listens.
async fn wait_told(dir: &TempDir, why: &str) -> Result<()> {
    wait_for(why, BOUND, || async {
        let log = std::fs::read_to_string(dir.path().join("usage.log")).context("the log")?;
        Ok(log.lines().any(|line| line.contains("was not let in") && line.contains(why)))
    })
    .await
}

#[tokio::test]
async fn gateways_and_the_usage_service_have_certificates() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let values = [
        "operator.replicas=0",
        "agent.enabled=false",
        "gateway.enabled=true",
        "gateway.replicas=0",
        "usage.enabled=true",
        "usage.storage.kind=Scratch",
    ];
    let spillway = Spillway::install_with(&lab, &values).await?;
    let operator = spillway.start_operator_with("operator-a", &["--usage-tls"])?;
    let secrets: Api<Secret> = Api::namespaced(spillway.client(), NAMESPACE);
    let dir = TempDir::new().context("a folder")?;
    let usage = files(&secrets, "spillway-usage-tls", |_| true).await?;
    let gateway = files(&secrets, "spillway-usage-client-tls", |_| true).await?;
    let names = ["ca.crt", "tls.crt", "tls.key"];
    ensure!(usage.keys().eq(names) && gateway.keys().eq(names), "the key of the CA is mounted by nobody");
    mount(&dir.path().join("usage"), &usage)?;
    mount(&dir.path().join("gateway"), &gateway)?;
    let program = spillway.binaries().gateway.with_file_name("spillway-usage");
    let service = serve(&program, dir.path()).await?;
    let said = ask(&service, dir.path(), Some("gateway")).await?;
    ensure!(said == r#"{"grants":[]} 2"#, "a gateway is told {said}");
    let said = ask(&service, dir.path(), None).await?;
    ensure!(!said.contains("grants"), "without a certificate: {said}");
    wait_told(&dir, "peer sent no certificates").await?;
    let said = ask(&service, dir.path(), Some("usage")).await?;
    ensure!(!said.contains("grants"), "without a gateway's name: {said}");
    wait_told(&dir, "certificate not valid for name").await?;

    // One that is lost is made anew, by the same CA; with the CA all are.
    secrets.delete("spillway-usage-client-tls", &DeleteParams::default()).await.context("deleting")?;
    let again = files(&secrets, "spillway-usage-client-tls", |_| true).await?;
    ensure!(again["ca.crt"] == gateway["ca.crt"] && again["tls.crt"] != gateway["tls.crt"], "not of the same CA");
    mount(&dir.path().join("gateway"), &again)?;
    let said = ask(&service, dir.path(), Some("gateway")).await?;
    ensure!(said == r#"{"grants":[]} 2"#, "a gateway is told {said}");
    // The operator shows one of its own, for what ended in its ledger.
    operator.stop().await.context("stopping the operator")?;
    let url = format!("--usage=https://127.0.0.1:{}", service.port);
    let operator = spillway.start_operator_with("operator-a", &["--usage-tls", &url])?;
    furnish(&spillway).await?;
    spillway.reserve(TENANT, "one", json!({"devices": {"count": 4}, "exclusiveNodes": false})).await?;
    spillway.wait_phase(TENANT, "one", Phase::Active, BOUND).await?;
    spillway.delete_reservation(TENANT, "one").await?;
    wait_for("GPU time to be stored by TLS", BOUND, || async {
        Ok(spillway.ledger().await?.stored.get("plain").is_some_and(|stored| stored.bookings == 1))
    })
    .await?;

    secrets.delete("spillway-usage-ca", &DeleteParams::default()).await.context("deleting")?;
    for name in ["spillway-usage-tls", "spillway-usage-client-tls"] {
        files(&secrets, name, |files| files["ca.crt"] != gateway["ca.crt"]).await?;
    }
    operator.stop().await.context("stopping the operator")?;

    // On PostgreSQL there are two, and what is laid out for them is taken as it is.
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/spillway");
    let postgres =
        "usage.storage.kind=Postgres,usage.storage.postgresSecret.name=db,usage.storage.postgresCa.configMap=ca";
    let upgrade = ["upgrade", "spillway", chart, "-n", NAMESPACE, "--reuse-values", "--set", postgres];
    lab.helm(&upgrade).await?;
    let deployments: Api<Deployment> = Api::namespaced(spillway.client(), NAMESPACE);
    let spec = deployments.get("spillway-usage").await.context("reading the Deployment")?.spec.context("a spec")?;
    ensure!(spec.replicas == Some(2), "there are to be {:?}", spec.replicas);
    let sets: Api<StatefulSet> = Api::namespaced(spillway.client(), NAMESPACE);
    ensure!(sets.get_opt("spillway-usage").await?.is_none(), "the StatefulSet is left");
    lab.stop()
}
