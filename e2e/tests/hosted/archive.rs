//! The ledger's archive and the usage service: GPU time of what ended is stored once, whoever dies, and then its pages may go.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use spillway_crds::Phase;
use spillway_lab::spillway::{LedgerCopy, Operator, Spillway};
use spillway_lab::{Lab, LabOptions, Size, free_port, wait_for};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{BOUND, TENANT, furnish};

/// A usage service as a process, where an API server finds it as well.
struct Service {
    program: PathBuf,
    store: PathBuf,
    address: SocketAddr,
    reports: SocketAddr,
    admin: SocketAddr,
    child: Option<Child>,
    http: reqwest::Client,
}

impl Service {
    fn new(spillway: &Spillway<'_>, folder: &Path) -> Result<Self> {
        // No API server reaches loopback through a Service. Nothing is sent: it is only asked by which address something would be.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("a socket")?;
        socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9)).context("this machine needs an address beside loopback")?;
        let ip = socket.local_addr().context("an address")?.ip();
        let free = || free_port(Ipv4Addr::UNSPECIFIED).map(|port| SocketAddr::new(ip, port));
        Ok(Self {
            program: spillway.binaries().gateway.with_file_name("spillway-usage"),
            store: folder.join("usage.sqlite"),
            address: free()?,
            reports: free()?,
            admin: free()?,
            child: None,
            http: reqwest::Client::builder().timeout(BOUND).pool_max_idle_per_host(0).build().context("a client")?,
        })
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    async fn start(&mut self, log: &Path) -> Result<()> {
        let file = std::fs::File::create(log).context("a log")?;
        let mut command = Command::new(&self.program);
        command.args([
            format!("--sqlite={}", self.store.display()),
            format!("--listen={}", self.address),
            format!("--reports={}", self.reports),
            format!("--admin={}", self.admin),
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).kill_on_drop(true);
        self.child = Some(command.spawn().context("starting spillway-usage")?);
        wait_for("the usage service to be ready", BOUND, || async {
            let url = format!("http://{}/readyz", self.admin);
            Ok(self.http.get(url).send().await.is_ok_and(|answer| answer.status().is_success()))
        })
        .await
    }

    /// Copies the store while it is used.
    async fn back_up(&self, to: &Path) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.arg(format!("--sqlite={}", self.store.display())).args(["backup", "--to"]).arg(to);
        let status = command.stdin(Stdio::null()).kill_on_drop(true).status().await.context("spillway-usage backup")?;
        ensure!(status.success(), "spillway-usage backup ended with {status}");
        Ok(())
    }

    /// Kills it, and gives it another store: a copy, or none.
    async fn exchange(&mut self, copy: Option<&Path>, log: &Path) -> Result<()> {
        self.kill().await?;
        for name in ["usage.sqlite", "usage.sqlite-wal", "usage.sqlite-shm"] {
            let file = self.store.with_file_name(name);
            if file.exists() {
                std::fs::remove_file(file).context("removing the store")?;
            }
        }
        if let Some(copy) = copy {
            std::fs::copy(copy, &self.store).context("bringing a copy back")?;
        }
        self.start(log).await
    }

    async fn kill(&mut self) -> Result<()> {
        self.child.take().context("it does not run")?.kill().await.context("killing the usage service")
    }

    /// Device-milliseconds of all that is stored.
    async fn stored_ms(&self) -> Result<i64> {
        let answer =
            self.http.get(format!("http://{}/v1/gpu", self.reports)).send().await.context("asking for GPU time")?;
        let answer: Value = answer.json().await.context("GPU time")?;
        answer["rows"][0]["deviceMilliseconds"].as_i64().with_context(|| format!("no sum in {answer}"))
    }

    async fn known(&self) -> Result<u64> {
        let answer =
            self.http.get(format!("http://{}/metrics", self.admin)).send().await.context("asking for metrics")?;
        let text = answer.text().await.context("metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix("spillway_usage_segments_total{result=\"known\"} "));
        line.context("no count of segments")?.parse().context("a count")
    }
}

struct Stage<'a> {
    spillway: &'a Spillway<'a>,
    service: Service,
}

impl Stage<'_> {
    fn operator(&self, more: &[(&str, &str)]) -> Result<Operator> {
        let url = self.service.url();
        self.spillway.start_operator_in("operator-a", &[&[("SPILLWAY_USAGE", url.as_str())], more].concat())
    }

    /// A reservation that is used and ends.
    async fn use_and_end(&self, name: &str) -> Result<()> {
        self.spillway.reserve(TENANT, name, json!({"devices": {"count": 4}, "exclusiveNodes": false})).await?;
        self.spillway.wait_phase(TENANT, name, Phase::Active, BOUND).await?;
        self.spillway.delete_reservation(TENANT, name).await
    }

    /// What the ledger says to be stored.
    async fn noted(&self) -> Result<(usize, usize)> {
        let stored = self.spillway.ledger().await?.stored.get("plain").map(|stored| (stored.bookings, stored.pruned));
        Ok(stored.unwrap_or_default())
    }

    /// Waits until so many bookings are noted as stored, and checks that their time is stored once.
    async fn wait_noted(&self, bookings: usize) -> Result<i64> {
        wait_for(&format!("{bookings} bookings to be stored"), BOUND, || async {
            let noted = self.noted().await?.0;
            ensure!(noted <= bookings, "{noted} are noted");
            Ok(noted == bookings)
        })
        .await?;
        let ledger = self.spillway.ledger().await?;
        let metered: i64 = ledger.archived.iter().map(|booking| booking.metered_ms()).sum();
        let stored = self.service.stored_ms().await?;
        ensure!(ledger.archived.len() == bookings && metered > 0, "{:?} ended", ledger.archived);
        ensure!(stored == metered, "{stored} is stored, and the ledger says {metered}");
        Ok(metered)
    }

    /// `spillway usage`, which must say this sum.
    async fn cli(&self, expected: i64, missing: bool) -> Result<()> {
        let output = Command::new(&self.spillway.binaries().cli)
            .args(["usage", "--from", "48h", "-o", "json"])
            .env("KUBECONFIG", self.spillway.lab().kubeconfig())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("spillway usage")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let answer: Value = serde_json::from_str(&text)
            .with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))?;
        let found = answer["total"]["deviceMilliseconds"].as_str().unwrap_or_default();
        ensure!(found == expected.to_string(), "it says {found} and not {expected}: {answer}");
        ensure!(answer["gpuTimeMissing"].is_string() == missing, "{answer}");
        Ok(())
    }
}

#[tokio::test]
async fn gpu_time_of_what_ended_is_stored_once_and_its_pages_go() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let spillway = Spillway::install(&lab).await?;
    let folder = TempDir::new().context("a folder")?;
    let log = lab.log("usage");
    let mut stage = Stage { spillway: &spillway, service: Service::new(&spillway, folder.path())? };
    stage.service.start(&log).await?;
    let operator = stage.operator(&[])?;
    furnish(&spillway).await?;
    publish(&stage).await?;
    stage.use_and_end("one").await?;
    let one = stage.wait_noted(1).await?;
    stage.cli(one, false).await?;
    operator.stop().await?;
    let copy = folder.path().join("copy.sqlite");
    stage.service.back_up(&copy).await?;

    // Between the receipt and the note, and after it.
    for (number, point) in [(2, "archive.after-post"), (3, "archive.after-note")] {
        let mut operator = stage.operator(&[("SPILLWAY_KILL_AT", point)])?;
        stage.use_and_end(&format!("at-{number}")).await?;
        let status = operator.wait_exit(BOUND).await.with_context(|| format!("it never came to {point}"))?;
        ensure!(status.code() == Some(137), "at {point} it ended with {status}");
        let (noted, _) = stage.noted().await?;
        ensure!(noted == if number == 2 { 1 } else { 3 }, "at {point} {noted} were noted");
        let operator = stage.operator(&[])?;
        let metered = stage.wait_noted(number).await?;
        stage.cli(metered, false).await?;
        operator.stop().await?;
    }
    ensure!(stage.service.known().await? == 1, "what was posted before the kill came again, and nothing else");

    // While the service is away all is in the ledger; and it comes by itself when it is back.
    stage.service.kill().await?;
    let operator = stage.operator(&[])?;
    stage.use_and_end("four").await?;
    wait_for("the operator to say that it waits", BOUND, || async {
        Ok(operator.metric("spillway_archive_waiting_bookings").await? == "1")
    })
    .await?;
    let ledger = spillway.ledger().await?;
    let metered = ledger.archived.iter().map(|booking| booking.metered_ms()).sum();
    stage.cli(metered, false).await?;
    stage.service.start(&log).await?;
    stage.wait_noted(4).await?;
    operator.stop().await?;

    // Another store, or a copy of one booking, lacks what the ledger says to be stored: it is counted from the ledger until it is posted again.
    for copy in [Some(copy.as_path()), None] {
        stage.service.exchange(copy, &log).await?;
        ensure!(stage.service.stored_ms().await? == if copy.is_some() { one } else { 0 }, "what was brought back");
        ensure!(stage.noted().await? == (4, 0), "{:?} are noted", stage.noted().await?);
        stage.cli(metered, false).await?;
        let operator = stage.operator(&[])?;
        wait_for("what is lacking to be posted again", BOUND, || async {
            Ok(stage.service.stored_ms().await? == metered)
        })
        .await?;
        stage.wait_noted(4).await?;
        stage.cli(metered, false).await?;
        operator.stop().await?;
    }

    // Pages of another day go. What they said is in the store, and is missed when that is away.
    let (old, new) = age(&spillway).await?;
    let operator = stage.operator(&[("SPILLWAY_ARCHIVE_DAYS", "0")])?;
    wait_for("the old page to go", BOUND * 2, || async {
        let pages = spillway.copy_ledger().await?.pages;
        let there = |name: &str| pages.iter().any(|page| page.metadata.name.as_deref() == Some(name));
        ensure!(there(&new), "the newest page is gone");
        Ok(!there(&old))
    })
    .await?;
    ensure!(stage.noted().await? == (4, 3), "{:?} are noted", stage.noted().await?);
    ensure!(spillway.ledger().await?.archived.len() == 1, "one booking is left in the ledger");
    stage.cli(metered, false).await?;
    spillway.verify_settled("0s").await?.ensure_clean()?;
    // The next leader reads what is left, and sells on.
    operator.stop().await?;
    let operator = stage.operator(&[])?;
    stage.use_and_end("five").await?;
    wait_for("five bookings to be stored", BOUND, || async { Ok(stage.noted().await? == (5, 3)) }).await?;
    let all = stage.service.stored_ms().await?;
    stage.cli(all, false).await?;
    let left = spillway.ledger().await?.archived.iter().map(|booking| booking.metered_ms()).sum();
    ensure!(left < all, "{left} is left of {all}");
    operator.stop().await?;
    // Another store again: what the ledger has no more is lost, and is said to be, before and after the rest is there.
    stage.service.exchange(None, &log).await?;
    stage.cli(left, true).await?;
    let operator = stage.operator(&[])?;
    wait_for("the rest to be posted again", BOUND, || async { Ok(stage.service.stored_ms().await? == left) }).await?;
    wait_for("it to be noted", BOUND, || async { Ok(stage.noted().await? == (5, 3)) }).await?;
    stage.cli(left, true).await?;
    stage.service.kill().await?;
    stage.cli(left, true).await?;
    operator.stop().await?;
    lab.stop()
}

/// Lets the API server reach the service as it does in a cluster.
async fn publish(stage: &Stage<'_>) -> Result<()> {
    let client = stage.spillway.client();
    let port = json!({"name": "reports", "port": stage.service.reports.port(), "protocol": "TCP"});
    let metadata = json!({
        "name": "spillway-usage", "namespace": spillway_lab::spillway::NAMESPACE,
        "labels": {"kubernetes.io/service-name": "spillway-usage"},
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata,
        "spec": {"ports": [{"name": "reports", "port": 8091, "targetPort": stage.service.reports.port()}]},
    });
    // The API server calls nothing but pods.
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "spillway-usage-0"},
        "spec": {"containers": [{"name": "usage", "image": "usage"}], "automountServiceAccountToken": false},
    });
    let ip = stage.service.address.ip().to_string();
    let target = json!({"kind": "Pod", "name": "spillway-usage-0", "namespace": spillway_lab::spillway::NAMESPACE});
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": metadata,
        "subsets": [{"addresses": [{"ip": ip, "targetRef": target}], "ports": [port]}],
    });
    for (kind, object) in [("services", service), ("serviceaccounts", account), ("pods", pod), ("endpoints", endpoints)]
    {
        let request = http_post(&format!("/api/v1/namespaces/spillway-system/{kind}"), &object)?;
        match client.request::<Value>(request).await {
            Err(kube::Error::Api(status)) if status.code == 409 && kind == "serviceaccounts" => {}
            result => drop(result.with_context(|| format!("making {object}"))?),
        }
    }
    let pods: Api<Pod> = Api::namespaced(client, spillway_lab::spillway::NAMESPACE);
    let running = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
    pods.patch_status("spillway-usage-0", &PatchParams::default(), &Patch::Merge(running)).await.context("a pod")?;
    Ok(())
}

fn http_post(path: &str, body: &Value) -> Result<hyper::Request<Vec<u8>>> {
    let request = hyper::Request::post(path).header("content-type", "application/json");
    request.body(serde_json::to_vec(body).context("JSON")?).context("a request")
}

/// Makes an archive of two days of one of today, as somebody who breaks the glass; gives the names of the old page and of the new one.
async fn age(spillway: &Spillway<'_>) -> Result<(String, String)> {
    let LedgerCopy { mut root, mut pages } = spillway.copy_ledger().await?;
    let pool = root.spec.pools.iter_mut().find(|pool| pool.name == "plain").context("the pool")?;
    let named = |name: &str| pages.iter().find(|page| page.metadata.name.as_deref() == Some(name)).cloned();
    let mut index = named(&pool.index).context("the index")?;
    let mut data: Value = serde_json::from_str(&index.spec.data).context("the index")?;
    let head = named(data["archive"].as_str().context("an archive")?).context("the archive")?;
    let mut today: Value = serde_json::from_str(&head.spec.data).context("the archive")?;
    let bookings = today["bookings"].as_array().context("bookings")?.clone();
    ensure!(bookings.len() == 4, "{today}");
    let (first, rest) = bookings.split_at(3);
    let (old, new) = ("archive-of-another-day".to_owned(), "archive-of-today".to_owned());
    let mut before = today.clone();
    (before["bookings"], before["day"]) = (json!(first), json!("2026-01-01"));
    (today["bookings"], today["previous"]) = (json!(rest), json!(old));
    data["archive"] = json!(new);
    for (name, data) in [(&old, &before), (&new, &today)] {
        let mut page = head.clone();
        page.metadata.name = Some(name.clone());
        page.spec.data = data.to_string();
        pages.push(page);
    }
    pool.index = "index-by-hand".to_owned();
    index.metadata.name = Some(pool.index.clone());
    index.spec.data = data.to_string();
    pages.push(index);
    root.spec.generation += 1;
    spillway.delete_root().await?;
    spillway.restore_ledger(&LedgerCopy { root, pages }).await?;
    Ok((old, new))
}
