//! `spillway ledger restore`: the ledger put back, from a copy or from the pages that are left.
//!
//! First all is read and judged, then a plan is shown, then a person says yes, then pages are written, and the root last. Until the root
//! is written nothing has changed but that there are pages which nobody names, and the operator collects those.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    path::Path,
};

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::Time};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, PostParams},
};
use serde::Serialize;
use spillway_crds::{CapacityLedger, CapacityLedgerPage, CapacityLedgerSpec, names};
use spillway_verify::{Settings, Severity, Violation, World, check, load};

use super::{
    PAGES, PARALLEL, ROOTS,
    copy::{Copy, PageCopy},
    export::{self, highest_stamp},
    leftovers,
    rebind::{Matches, Missing, Rebound, match_names, rename},
};
use crate::{
    args::{Connection, RestoreArgs},
    client, cluster,
    confirm::{self, Asked},
    error::Error,
    output::{Format, Report, Table, counted},
    time,
};

/// How far the generation is raised when the root is not exactly what was committed: no decision of a process that was frozen may
/// pass for one that stands on it.
const LEAP: i64 = 1000;

/// What is, and what is to be.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Restoration {
    /// Where it comes from.
    pub(crate) source: String,
    /// When the copy was made.
    pub(crate) exported_at: String,
    /// Generation in the copy.
    pub(crate) copied_generation: i64,
    /// The highest generation stamped on a node of this cluster.
    pub(crate) highest_stamp: i64,
    /// Generation of the ledger that is there, if there is one.
    pub(crate) living_generation: Option<i64>,
    /// Generation that is written.
    pub(crate) generation: i64,
    /// Bookings that stand.
    pub(crate) live: usize,
    /// Bookings that ended.
    pub(crate) ended: usize,
    /// Pages to write.
    pub(crate) pages_to_write: usize,
    /// Pages that are there.
    pub(crate) pages_present: usize,
    /// Objects that bookings mean by another UID from now on.
    pub(crate) rebound: Vec<Rebound>,
    /// Live bookings whose reservation is not there.
    pub(crate) lost: Vec<Missing>,
    /// Nodes of live bookings that are not there.
    pub(crate) nodes_gone: Vec<Missing>,
    /// Reservations that will be booked a second time.
    pub(crate) bought_again: Vec<Missing>,
    /// Why the copy is older than the cluster, if it is.
    pub(crate) older: Option<String>,
    /// What `spillway verify` will say.
    pub(crate) violations: Vec<Violation>,
    /// What stands in the way, each with what to do.
    pub(crate) refusals: Vec<String>,
    /// True when it acts as the group that the policies let pass.
    pub(crate) breaks_the_glass: bool,
}

/// All that is written.
struct Writes {
    root: CapacityLedgerSpec,
    pages: Vec<PageCopy>,
    /// The root that is there.
    living: Option<CapacityLedger>,
}

/// Reads, judges, asks, writes.
pub(crate) async fn run(
    client: &Client,
    connection: &Connection,
    args: &RestoreArgs,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let now_ms = time::now_ms();
    let settings = Settings {
        infrastructure: args.infrastructure_namespaces.iter().chain([&args.operator_namespace]).cloned().collect(),
        ..Settings::default()
    };
    let world = load(client, settings).await?;
    let nodes: Vec<Node> = cluster::list(Api::all(client.clone()), &ListParams::default(), "nodes").await?;
    let (copy, source) = match &args.file {
        Some(file) => (read_file(file)?, file.display().to_string()),
        None => (
            leftovers::gather(&world, export::cluster_id(client).await?, now_ms)?,
            "the pages that are left".to_owned(),
        ),
    };
    let (mut restoration, writes) = judge(&copy, source, world, &nodes, args, now_ms)?;
    if let Some(holder) = client::leader(client, &args.operator_namespace, now_ms).await?
        && !args.while_operator_runs
    {
        restoration.refusals.push(format!(
            "{holder} leads as operator and takes what it finds within seconds: run `kubectl scale deployment spillway-operator -n {} \
             --replicas=0` and wait 15 seconds, or say --while-operator-runs",
            args.operator_namespace
        ));
    }
    restoration.breaks_the_glass = client::is_guarded(client, "spillway-ledger").await?;
    let glass = match restoration.breaks_the_glass {
        true => client::break_glass(connection, client, &args.break_glass_group).await?,
        false => client.clone(),
    };
    crate::output::write(format, &restoration, out)?;
    if !restoration.refusals.is_empty() {
        return Err(Error::Refused { what: "the ledger is not restored", why: restoration.refusals });
    }
    match confirm::ask("restore", args.dry_run, args.yes, format, out)? {
        Asked::DryRun | Asked::No => return Ok(()),
        Asked::Yes => {}
    }
    write(&glass, &writes).await?;
    // The API server's own word for it: it is whole, and it is ours.
    let (now, whole) = export::read(client).await?;
    let text = format!(
        "Restored: the ledger has generation {}, {} live and {} that ended. Now run `spillway verify`, then start the operator.",
        now.root.generation,
        counted(whole.live.len(), "booking"),
        whole.ended.len()
    );
    confirm::say(format, out, &text)
}

/// Reads a copy from a file, or from standard input.
pub(crate) fn read_file(file: &Path) -> Result<Copy, Error> {
    let failed = |source: io::Error| Error::File { name: file.display().to_string(), source };
    let text = match file.as_os_str() == "-" {
        true => io::read_to_string(io::stdin()),
        false => std::fs::read_to_string(file),
    };
    Copy::read(&text.map_err(failed)?)
}

/// What is to be written, and what stands in its way.
fn judge(
    copy: &Copy,
    source: String,
    world: World,
    nodes: &[Node],
    args: &RestoreArgs,
    now_ms: i64,
) -> Result<(Restoration, Writes), Error> {
    let whole = copy.decode().map_err(|source| Error::Copy { why: source.to_string() })?;
    let faults = copy.faults();
    if let Some(fault) = faults.first() {
        return Err(Error::Copy { why: format!("{fault} (`spillway ledger verify` lists all {})", faults.len()) });
    }
    let stamp = highest_stamp(nodes);
    let living = world.root.clone();
    let older = older(copy, &world, stamp, args.from_pages);
    let matches = match_names(&whole, &world.reservations, nodes);
    let Matches { rebound, lost, nodes_gone, bought_again } = matches;
    let uids: BTreeMap<String, String> = rebound.iter().map(|one| (one.from.clone(), one.to.clone())).collect();
    let mut name = |kind: &str| format!("{kind}-{}", uuid::Uuid::now_v7());
    let (mut root, pages) = rename(&copy.root, &copy.pages, &uids, &mut name)?;
    let living_generation = living.as_ref().map(|root| root.spec.generation);
    let exact = rebound.is_empty() && older.is_none() && living.is_none() && args.file.is_some();
    if !exact {
        let highest = [Some(stamp), living_generation, Some(root.generation)].into_iter().flatten().max();
        root.generation = highest.unwrap_or_default().saturating_add(LEAP);
        let epochs = living.as_ref().map_or(root.epoch, |living| living.spec.epoch.max(root.epoch));
        root.epoch = epochs.saturating_add(1);
        let times = [Some(root.committed_at), living.as_ref().map(|living| living.spec.committed_at), Some(now_ms)];
        root.committed_at = times.into_iter().flatten().max().unwrap_or(now_ms);
    }
    let present: BTreeSet<String> = world.pages.iter().map(ResourceExt::name_any).collect();
    let pages_present = pages.iter().filter(|page| present.contains(&page.name)).count();
    let violations = foresee(world, &root, &pages, now_ms);
    let mut restoration = Restoration {
        source,
        exported_at: copy.exported_at.clone(),
        copied_generation: copy.root.generation,
        highest_stamp: stamp,
        living_generation,
        generation: root.generation,
        live: whole.live.len(),
        ended: whole.ended.len(),
        pages_to_write: pages.len().saturating_sub(pages_present),
        pages_present,
        rebound,
        lost,
        nodes_gone,
        bought_again,
        older,
        violations,
        refusals: Vec::new(),
        breaks_the_glass: false,
    };
    restoration.refusals = refusals(&restoration, args);
    Ok((restoration, Writes { root, pages, living }))
}

/// Why a copy is from before something that this cluster knows.
fn older(copy: &Copy, world: &World, stamp: i64, from_pages: bool) -> Option<String> {
    let generation = copy.root.generation;
    if stamp > generation {
        return Some(format!("it has generation {generation}, and a node was written under {stamp}"));
    }
    if let Some(living) = world.root.as_ref().filter(|root| root.spec.generation > generation) {
        return Some(format!(
            "it has generation {generation}, and the ledger that is there {}",
            living.spec.generation
        ));
    }
    // Where pages were chosen, what is newer was looked at.
    if from_pages {
        return None;
    }
    let newest = copy.pages.iter().filter_map(|page| leftovers::made_at(&page.name)).max()?;
    let later = world
        .pages
        .iter()
        .map(ResourceExt::name_any)
        .find(|name| name.starts_with("index-") && leftovers::made_at(name).is_some_and(|at| at > newest))?;
    Some(format!(
        "the cluster has page {later}, which is newer than all of its pages: something was committed after it"
    ))
}

/// What the independent checker says of the cluster with this ledger in it.
fn foresee(world: World, root: &CapacityLedgerSpec, pages: &[PageCopy], now_ms: i64) -> Vec<Violation> {
    let created = jiff::Timestamp::from_millisecond(now_ms).ok().map(Time);
    let pages = pages.iter().map(|page| {
        let mut object = page.object();
        // What must follow from it has not had the time to.
        object.metadata.creation_timestamp.clone_from(&created);
        object
    });
    let world = World {
        root: Some(CapacityLedger::new(names::LEDGER_NAME, root.clone())),
        pages: pages.collect(),
        now_ms,
        ..world
    };
    check(&world).into_iter().filter(|finding| finding.severity == Severity::Violation).collect()
}

/// What stands in the way, each with what to do.
fn refusals(restoration: &Restoration, args: &RestoreArgs) -> Vec<String> {
    let mut refusals = Vec::new();
    if let Some(generation) = restoration.living_generation
        && !args.replace
    {
        refusals.push(format!(
            "this cluster has a ledger, of generation {generation}: if it is not to be relied on (`spillway ledger verify`), say --replace"
        ));
    }
    if let Some(older) = &restoration.older
        && !args.accept_older
    {
        refusals.push(format!(
            "{older}. What was booked since is not in it: those nodes are closed and emptied, and the reservations booked anew if they fit. \
             What ended since stands again and ends again, with a wrong meter. Look for a newer copy, or try --from-pages; if there is \
             none, say --accept-older"
        ));
    }
    if !restoration.rebound.is_empty() && !args.rebind {
        refusals.push(format!(
            "{} by live bookings are there under another UID, as after a loss of etcd: say --rebind to match them by name, as listed",
            counted(restoration.rebound.len(), "object meant")
        ));
    }
    if !restoration.lost.is_empty() && !args.accept_losses {
        refusals.push(format!(
            "{} without a reservation, and the operator ends such a booking about a minute after its start: apply the reservations (the copy \
             has them: `jq '{{apiVersion: \"v1\", kind: \"List\", items: .manifests}}' FILE | kubectl apply -f -`), or say --accept-losses",
            counted(restoration.lost.len(), "live booking")
        ));
    }
    if !restoration.violations.is_empty() && !args.accept_losses {
        refusals.push(format!(
            "`spillway verify` would find {}, as listed: read each, and say --accept-losses if that is what is left",
            counted(restoration.violations.len(), "violation")
        ));
    }
    refusals
}

async fn write(glass: &Client, writes: &Writes) -> Result<(), Error> {
    let pages: Api<CapacityLedgerPage> = Api::all(glass.clone());
    stream::iter(writes.pages.iter().map(|page| write_page(pages.clone(), page)))
        .buffer_unordered(PARALLEL)
        .try_collect::<Vec<()>>()
        .await?;
    let roots: Api<CapacityLedger> = Api::all(glass.clone());
    let mut object = CapacityLedger::new(names::LEDGER_NAME, writes.root.clone());
    let params = PostParams::default();
    let written = match &writes.living {
        // Only over the one that was judged.
        Some(living) => {
            object.metadata.resource_version = living.resource_version();
            roots.replace(names::LEDGER_NAME, &params, &object).await
        }
        None => roots.create(&params, &object).await,
    };
    written.map(drop).map_err(|source| Error::Change { what: ROOTS, name: names::LEDGER_NAME.to_owned(), source })
}

async fn write_page(pages: Api<CapacityLedgerPage>, page: &PageCopy) -> Result<(), Error> {
    let failed = |source: kube::Error| Error::Change { what: PAGES, name: page.name.clone(), source };
    match pages.create(&PostParams::default(), &page.object()).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let there = pages.get(&page.name).await.map_err(failed)?;
            if there.spec == page.spec {
                return Ok(());
            }
            Err(Error::Copy {
                why: format!(
                    "the cluster has a page {} that says something else: the copy is not of this ledger",
                    page.name
                ),
            })
        }
        result => result.map(drop).map_err(failed),
    }
}

impl Report for Restoration {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "From:        {} ({})", self.source, self.exported_at)?;
        writeln!(
            out,
            "Generation:  {} in the copy, {} stamped on nodes, {}; {} is written",
            self.copied_generation,
            self.highest_stamp,
            self.living_generation
                .map_or_else(|| "no ledger here".to_owned(), |generation| format!("{generation} of the ledger here")),
            self.generation
        )?;
        writeln!(out, "Bookings:    {} live, {} that ended", self.live, self.ended)?;
        writeln!(out, "Pages:       {} to write, {} are there", self.pages_to_write, self.pages_present)?;
        let as_group =
            if self.breaks_the_glass { "by impersonation, past policy spillway-ledger" } else { "as yourself" };
        writeln!(out, "Written:     {as_group}")?;
        if let Some(older) = &self.older {
            writeln!(out, "OLDER:       {older}")?;
        }
        if !self.rebound.is_empty() {
            writeln!(out, "\nBookings mean by another UID from now on:")?;
            let mut table = Table::new(&["OBJECT", "UID IN THE COPY", "UID HERE"]);
            for one in &self.rebound {
                table.push(vec![one.object.clone(), one.from.clone(), one.to.clone()]);
            }
            table.write(out, 2)?;
        }
        for (title, list) in [
            ("Live bookings whose reservation is not there, which the operator ends:", &self.lost),
            (
                "Nodes of live bookings that are not there, which the operator replaces if others are free:",
                &self.nodes_gone,
            ),
            ("Reservations that are booked a second time:", &self.bought_again),
        ] {
            if !list.is_empty() {
                writeln!(out, "\n{title}")?;
                for one in list {
                    writeln!(out, "  {}: {}", one.object, one.why)?;
                }
            }
        }
        if !self.violations.is_empty() {
            writeln!(out, "\n`spillway verify` will say:")?;
            for one in &self.violations {
                writeln!(out, "  {one}")?;
            }
        }
        writeln!(
            out,
            "\nNot restored, because it is not in the ledger: nodes, namespaces, pods, and the status of reservations. The operator writes"
        )?;
        writeln!(
            out,
            "taints, labels and statuses again from the ledger; nodes that were held come back to their holders after the node check.\n"
        )
    }
}
