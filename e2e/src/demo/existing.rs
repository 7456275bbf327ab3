//! A cluster that is there already: the chart is installed, and what it found is shown. No pool, no tenant, no node is made or changed.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use super::commands::Commands;
use super::teller::{Teller, print};
use crate::spillway::{CHART, NAMESPACE};

const BOUND: &str = "--timeout=180s";

pub(super) async fn show(kubeconfig: PathBuf, helm_args: &[String]) -> Result<()> {
    ensure!(kubeconfig.is_file(), "there is no kubeconfig {}", kubeconfig.display());
    let shown = kubeconfig.display().to_string();
    let commands = tokio::task::spawn_blocking(move || Commands::of_machine(kubeconfig))
        .await
        .context("looking for kubectl and helm")??;
    let mut teller = Teller::new();

    teller.step("The cluster");
    commands.show(&teller, &["kubectl", "version"], "").await?;
    commands
        .show(
            &teller,
            &["kubectl", "get", "nodes", "-L", "nvidia.com/gpu.product,nvidia.com/gpu.count,spillway.dev/pool"],
            "",
        )
        .await?;

    teller.step("Spillway by its Helm chart");
    let mut helm = vec!["helm", "upgrade", "--install", "spillway", CHART, "-n", NAMESPACE, "--create-namespace"];
    helm.extend(helm_args.iter().map(String::as_str));
    teller.command(&helm.join(" "), "");
    commands.quiet(&helm, "").await?;
    let wait = teller.wait("waiting for the operator");
    let rollout = commands
        .run(&["kubectl", "rollout", "status", "deployment/spillway-operator", "-n", NAMESPACE, BOUND], "")
        .await?;
    if !rollout.ok {
        drop(wait);
        // As much as the cluster tells; the failure itself is the answer.
        let pods = commands.quiet(&["kubectl", "get", "pods,events", "-n", NAMESPACE], "").await.unwrap_or_default();
        let logs = ["kubectl", "logs", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=operator", "--tail=30"];
        let logs = commands.quiet(&logs, "").await.unwrap_or_default();
        print(&format!("{pods}\n{logs}"));
        anyhow::bail!(
            "the operator does not run ({}). Does the cluster have its image? Say where it is: \
             make demo KUBECONFIG=... HELM_ARGS=\"--set image.operator.repository=... --set image.agent.repository=...\"",
            rollout.err
        );
    }
    teller.done(wait, "the operator runs");
    commands.show(&teller, &["kubectl", "get", "deployments,daemonsets", "-n", NAMESPACE], "").await?;

    teller.step("What there is to sell");
    commands.show(&teller, &["kubectl", "get", "gpupools,tenants"], "").await?;
    commands.show(&teller, &["kubectl", "get", "gpures", "-A"], "").await?;
    commands.show(&teller, &["spillway", "capacity"], "").await?;
    commands.show(&teller, &["spillway", "verify"], "").await?;
    print(&format!(
        "
What to do next, with KUBECONFIG={shown}:
  kubectl explain gpupool.spec                        a pool: one SKU, one region, so many GPUs a node
  kubectl label node NODE spillway.dev/pool=POOL      puts a node into it; it is closed, checked, then open to its owner
  kubectl explain tenant.spec                         who buys
  kubectl explain gpureservation.spec                 what they buy
  helm uninstall spillway -n {NAMESPACE}         takes Spillway out again; its message says what stays"
    ));
    Ok(())
}
