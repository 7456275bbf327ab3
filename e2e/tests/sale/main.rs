//! The first sale, on real nodes: kubelets, containers, a device plugin, Spillway installed by its chart and running in pods. Tenants' unchanged
//! workloads run on exactly what they bought, what was sold comes back, and the meter says how much it was.
//!
//! One cluster for all of it, because it takes a while to come up. Each story begins and ends with every node unsold and everything checked.
//! `SPILLWAY_SALE_ONLY=quota,ghost` tells only these.

#![expect(clippy::print_stderr, reason = "a test tells how long things took")]
#![allow(clippy::indexing_slicing, reason = "a field that a JSON value lacks reads as null")]

mod accounts;
mod buy;
mod down;
mod ends;
mod ghost;
mod loss;
mod owner;
mod quota;
mod share;
mod stage;
mod unfit;
mod witness;
mod workloads;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use spillway_crds::names::POOL_LABEL;
use spillway_lab::{Lab, LabOptions, Size};

use crate::stage::Stage;

/// Longest time of anything that takes seconds on an idle machine.
const BOUND: Duration = Duration::from_secs(60);
/// After so long without a word of its kubelet a node is NotReady. Kubelets send one every ten seconds.
const NODE_MONITOR_GRACE: &str = "--node-monitor-grace-period=24s";

/// The stories, in order.
const STORIES: [&str; 9] = ["buy", "share", "quota", "ends", "owner", "down", "ghost", "unfit", "loss"];

#[tokio::test]
async fn what_was_bought_is_used_and_comes_back() -> Result<()> {
    let mut options = LabOptions::new(Size::Node).real_nodes(2).node_label(POOL_LABEL, stage::POOL);
    options.controller_manager_args = vec![NODE_MONITOR_GRACE.to_owned()];
    let begun = Instant::now();
    let lab = Lab::start(options).await?;
    eprintln!("the lab was up after {:.1?}", begun.elapsed());
    let told = tell(&lab).await;
    if let Err(error) = &told {
        // First, because what follows is long, and a reader may see only the beginning of it.
        eprintln!("after {:.1?}: {error:#}", begun.elapsed());
        eprintln!("{}", stage::what_the_cluster_says(&lab).await);
    }
    told?;
    eprintln!("all was told after {:.1?}", begun.elapsed());
    lab.stop()
}

async fn tell(lab: &Lab) -> Result<()> {
    let stage = Stage::set_up(lab).await?;
    let only = std::env::var("SPILLWAY_SALE_ONLY").unwrap_or_default();
    for story in STORIES.into_iter().filter(|story| only.is_empty() || only.split(',').any(|name| name == *story)) {
        let begun = Instant::now();
        let told = match story {
            "buy" => buy::tell(&stage).await,
            "share" => share::tell(&stage).await,
            "quota" => quota::tell(&stage).await,
            "ends" => ends::tell(&stage).await,
            "owner" => owner::tell(&stage).await,
            "down" => down::tell(&stage).await,
            "ghost" => ghost::tell(&stage).await,
            "unfit" => unfit::tell(&stage).await,
            _ => loss::tell(&stage).await,
        };
        told.with_context(|| format!("story {story}"))?;
        stage.clear().await.with_context(|| format!("after story {story}"))?;
        accounts::audit(&stage).await.with_context(|| format!("after story {story}"))?;
        eprintln!("{story}: {:.1?}", begun.elapsed());
    }
    Ok(())
}
