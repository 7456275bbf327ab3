//! Bringing a lab up, part after part, each waited for.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::Api;

use super::{Lab, identity, logs_tail, nodes};
use crate::certs::{self, Authority};
use crate::claim::claim;
use crate::cluster_spec::{LabOptions, Size};
use crate::control_plane::{API_SERVICE_ADDRESS, Plan, free_port};
use crate::node::network;
use crate::process::{ProcessSpec, tail};
use crate::progress::say;
use crate::state::ProcessRecord;
use crate::tools::Tools;
use crate::wait::wait_for;
use crate::{guard, kubeconfig, kwok, paths};

/// How often a part is started anew because somebody else took its port in between.
const ATTEMPTS: u32 = 3;
/// Generous: a part that is fine takes a second or two, on a machine that also compiles some more.
const PART_BOUND: Duration = Duration::from_secs(60);

pub(super) async fn start(options: LabOptions) -> Result<Lab> {
    let claimed = options.clone();
    let (tools, (dir, state)) = tokio::task::spawn_blocking(move || {
        let tools = Tools::ensure()?;
        anyhow::Ok((tools, claim(&paths::base_dir(), &claimed)?))
    })
    .await
    .context("preparing the lab")??;
    let mut lab = Lab { dir, tools, state: Mutex::new(state), config: None, guard: None, down: false };
    match Box::pin(bring_up(&mut lab, &options)).await {
        Ok(()) => Ok(lab),
        Err(error) => {
            say(&format!("the lab did not come up; the last lines of its logs:\n{}", logs_tail(&lab.dir, 15)));
            let logs = lab.dir.join("logs");
            lab.take_down(true)?;
            Err(error.context(format!(
                "bringing up a lab of size {} (logs in {})",
                options.size.word(),
                logs.display()
            )))
        }
    }
}

async fn bring_up(lab: &mut Lab, options: &LabOptions) -> Result<()> {
    if !options.keep {
        let (identity, pipe) = guard::start(&lab.dir)?;
        lab.guard = Some(pipe);
        let record = ProcessRecord {
            spec: ProcessSpec { name: "guard".to_owned(), ..ProcessSpec::default() },
            identity: Some(identity),
        };
        lab.update_state(|state| {
            state.processes.insert("guard".to_owned(), record);
        })?;
    }
    let address = if options.size == Size::Node {
        nodes::prepare_machine(lab, options).await?;
        network::MACHINE
    } else {
        Ipv4Addr::LOCALHOST
    };
    let authority = write_certificates(lab, address).await?;
    let tools = lab.tools.clone();
    let dir = lab.dir.clone();
    let mut plan = Plan { options, tools: &tools, dir: &dir, address, etcd_port: 0, api_port: 0 };
    start_etcd(lab, &mut plan).await?;
    start_api_server(lab, &mut plan, &authority).await?;
    if options.size >= Size::Cluster {
        start_cluster(lab, &plan, &authority).await?;
    }
    if options.size >= Size::Node {
        nodes::start(lab, &plan, &authority).await?;
    }
    lab.update_state(|state| state.ready = true)
}

async fn write_certificates(lab: &Lab, address: Ipv4Addr) -> Result<Authority> {
    let pki = certs::dir_of(&lab.dir);
    let addresses = vec![Ipv4Addr::LOCALHOST.to_string(), API_SERVICE_ADDRESS.to_owned(), address.to_string()];
    tokio::task::spawn_blocking(move || certs::write_control_plane(&pki, &addresses))
        .await
        .context("making certificates")?
}

async fn start_etcd(lab: &Lab, plan: &mut Plan<'_>) -> Result<()> {
    let http = reqwest::Client::new();
    for attempt in 1..=ATTEMPTS {
        plan.etcd_port = free_port(Ipv4Addr::LOCALHOST)?;
        lab.spawn(plan.etcd()?)?;
        let url = format!("{}/health", plan.etcd_url());
        let healthy = wait_alive(lab, "etcd", PART_BOUND, || {
            let request = http.get(&url).timeout(Duration::from_secs(5)).send();
            async move { Ok(request.await?.status().is_success()) }
        })
        .await;
        match healthy {
            Err(_) if attempt < ATTEMPTS && !lab.is_running("etcd") => {
                // Its member identity holds the old port.
                let _ = tokio::fs::remove_dir_all(lab.dir.join("etcd")).await;
            }
            other => return other,
        }
    }
    Ok(())
}

async fn start_api_server(lab: &mut Lab, plan: &mut Plan<'_>, authority: &Authority) -> Result<()> {
    for attempt in 1..=ATTEMPTS {
        plan.api_port = free_port(plan.address)?;
        kubeconfig::write(
            &lab.kubeconfig(),
            &plan.server(),
            &authority.pair().cert,
            &authority.client("lab:admin", &["system:masters"])?,
        )?;
        lab.update_state(|state| state.server = Some(plan.server()))?;
        lab.config = Some(identity::config_of(&lab.kubeconfig()).await?);
        lab.spawn(plan.api_server())?;
        let ready = {
            let lab = &*lab;
            wait_alive(lab, "kube-apiserver", PART_BOUND, || async { is_api_ready(lab).await }).await
        };
        match ready {
            Err(_) if attempt < ATTEMPTS && !lab.is_running("kube-apiserver") => {}
            other => return other,
        }
    }
    Ok(())
}

async fn is_api_ready(lab: &Lab) -> Result<bool> {
    let client = lab.client()?;
    let request = tonic::codegen::http::Request::get("/readyz").body(Vec::new()).context("a request")?;
    client.request_text(request).await.context("asking /readyz")?;
    Ok(Api::<Namespace>::all(client).get_opt("default").await.context("looking for the default namespace")?.is_some())
}

async fn start_cluster(lab: &Lab, plan: &Plan<'_>, authority: &Authority) -> Result<()> {
    let config_for = |name: &str, user: &str, groups: &[&str]| config_for(lab, plan, authority, name, user, groups);
    let manager = config_for("kube-controller-manager", "system:kube-controller-manager", &[])?;
    lab.spawn(plan.controller_manager(&manager)?)?;
    let scheduler = config_for("kube-scheduler", "system:kube-scheduler", &[])?;
    lab.spawn(plan.scheduler(&scheduler)?)?;
    let kwok_config = config_for("kwok", kwok::USER, &kwok::GROUPS)?;
    lab.spawn(kwok::process(&lab.tools, &lab.dir, &kwok_config)?)?;
    wait_alive(lab, "kube-controller-manager", PART_BOUND, || async {
        // Until it is there no pod can be created in the namespace.
        let accounts = Api::<ServiceAccount>::namespaced(lab.client()?, "default");
        Ok(accounts.get_opt("default").await.context("looking for the default ServiceAccount")?.is_some())
    })
    .await?;
    for name in ["kube-scheduler", "kwok"] {
        if !lab.is_running(name) {
            bail!("{name} has ended:\n{}", tail(&lab.log(name), 10));
        }
    }
    Ok(())
}

/// Writes the kubeconfig of one part of Kubernetes.
pub(super) fn config_for(
    lab: &Lab,
    plan: &Plan<'_>,
    authority: &Authority,
    name: &str,
    user: &str,
    groups: &[&str],
) -> Result<PathBuf> {
    let path = lab.dir.join(format!("{name}.kubeconfig"));
    kubeconfig::write(&path, &plan.server(), &authority.pair().cert, &authority.client(user, groups)?)?;
    Ok(path)
}

/// Waits for a process to do its work, and not for one that has died.
pub(super) async fn wait_alive<F, Fut>(lab: &Lab, name: &str, timeout: Duration, mut check: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<bool>>,
{
    let mut died = false;
    let waited = wait_for(&format!("{name} to be ready"), timeout, || {
        died = !lab.is_running(name);
        let answer = (!died).then(&mut check);
        async move {
            match answer {
                None => Ok(true),
                Some(answer) => answer.await,
            }
        }
    })
    .await;
    if died {
        bail!("{name} has ended:\n{}", tail(&lab.log(name), 10));
    }
    waited
}
