//! The demo: a real Kubernetes on this machine, Spillway installed into it by its Helm chart, and a sale from the first reservation to the meter.
//!
//! Every step is checked: the demo ends at the first that does not come out as told, with the reason and the logs. What it types is what a
//! person would type: kubectl as the tenants' own users, helm, spillway.

mod commands;
mod existing;
mod fleet;
mod model;
mod stage;
mod story;
mod teller;
mod workloads;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use crate::{paths, state, teardown};
use stage::Stage;
use teller::{Teller, print, seconds};

/// Name of the demo's lab.
const LAB: &str = "demo";

/// What the demo may be told.
#[derive(Debug, Default)]
pub struct DemoOptions {
    /// A list of nodes (CSV: `sn,cpu_milli,memory_mib,gpu,model`) instead of the built-in one.
    pub nodes: Option<PathBuf>,
    /// Kubeconfig of a cluster that is there: the chart is installed and shown, nothing else.
    pub existing: Option<PathBuf>,
    /// More arguments for helm.
    pub helm_args: Vec<String>,
    /// Take the lab down at the end.
    pub down: bool,
}

/// Runs the demo to its end.
pub async fn run(options: DemoOptions) -> Result<()> {
    if let Some(kubeconfig) = options.existing {
        ensure!(
            options.nodes.is_none(),
            "a list of nodes is for the demo's own cluster; an existing one has nodes of its own"
        );
        return Box::pin(existing::show(kubeconfig, &options.helm_args)).await;
    }
    let mut teller = Teller::new();
    let fleet = fleet::Fleet::read(options.nodes.as_deref())?;
    let stage = Box::pin(stage::set_up(&mut teller, fleet, &options.helm_args, !options.down)).await?;
    let told = Box::pin(story::tell(&mut teller, &stage)).await;
    if let Err(error) = told {
        print(&format!("\nThe step failed: {error:#}\n\n{}", stage.logs().await));
        end(stage, options.down)?;
        return Err(error.context("the demo did not come to its end"));
    }
    print(&format!("\nThat took {} in all.", seconds(teller.elapsed())));
    if !options.down {
        print(&stage.what_next()?);
    }
    end(stage, options.down)
}

fn end(stage: Stage, down: bool) -> Result<()> {
    if down {
        stage.lab.stop()?;
    } else {
        print(&format!(
            "The cluster stays up: export KUBECONFIG={}   (`make clean-lab` takes it down)",
            stage.kubeconfig().display()
        ));
    }
    Ok(())
}

/// Takes the demo's lab down, if there is one.
pub fn take_down() -> Result<()> {
    let dir = paths::base_dir().join(LAB);
    if state::State::read(&dir)?.is_some() {
        teardown::tear_down(&dir, false).context("taking the demo's lab down")?;
    }
    Ok(())
}
