//! `spillway ledger export`: the ledger of a cluster as one file.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    path::Path,
};

use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::{Api, Client, Resource, ResourceExt, api::ListParams};
use serde::Serialize;
use serde_json::{Value, json};
use spillway_crds::{CapacityLedger, CapacityLedgerPage, GpuPool, GpuReservation, Tenant, names};
use spillway_manifests::{hold, ledger::read_root};
use spillway_planner::{Booking, ledger::LoadError};

use super::{
    ATTEMPTS, PAGES, ROOTS,
    copy::{Copy, PageCopy, Whole, by_name, decode},
};
use crate::{
    cluster::list,
    error::Error,
    output::{Report, counted},
    time,
};

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Exported {
    /// Where it was written to.
    pub(crate) file: String,
    /// Generation of the root.
    pub(crate) generation: i64,
    /// Pages in it.
    pub(crate) pages: usize,
    /// Bookings that stand.
    pub(crate) live: usize,
    /// Bookings that ended.
    pub(crate) ended: usize,
    /// Its checksum.
    pub(crate) checksum: String,
}

/// Reads the cluster's ledger and writes it. `-` is standard output: then there is no report.
pub(crate) async fn run(client: &Client, file: &Path, out: &mut dyn Write) -> Result<Option<Exported>, Error> {
    let (copy, whole) = read(client).await?;
    let (generation, pages) = (copy.root.generation, copy.pages.len());
    let text = copy.write()?;
    if file.as_os_str() == "-" {
        out.write_all(text.as_bytes()).map_err(|source| Error::Write { source })?;
        return Ok(None);
    }
    // What was written is read again: a copy that cannot be read is none. A new file takes the place of an old one only when it is whole.
    let name = file.display().to_string();
    let failed = |source: io::Error| Error::File { name: name.clone(), source };
    let part = file.with_extension("part");
    std::fs::write(&part, &text).map_err(failed)?;
    let again = Copy::read(&std::fs::read_to_string(&part).map_err(failed)?)?;
    std::fs::rename(&part, file).map_err(failed)?;
    let (live, ended) = (whole.live.len(), whole.ended.len());
    Ok(Some(Exported { file: name, generation, pages, live, ended, checksum: again.checksum }))
}

/// The ledger of the cluster, whole, of one moment.
pub(crate) async fn read(client: &Client) -> Result<(Copy, Whole), Error> {
    let roots: Api<CapacityLedger> = Api::all(client.clone());
    let get = async || roots.get_opt(names::LEDGER_NAME).await.map_err(|source| Error::Read { what: ROOTS, source });
    for _ in 0..ATTEMPTS {
        let Some(root) = get().await? else {
            // A 404 may also mean that the kind is unknown, which a list tells apart.
            list(roots.clone(), &ListParams::default(), ROOTS).await?;
            return Err(Error::NoLedger);
        };
        let objects: Vec<CapacityLedgerPage> = list(Api::all(client.clone()), &ListParams::default(), PAGES).await?;
        let pages: BTreeMap<String, PageCopy> =
            objects.iter().map(PageCopy::of).map(|page| (page.name.clone(), page)).collect();
        let whole = match decode(&read_root(&root), &by_name(objects)) {
            Ok(whole) => whole,
            // A page of a ledger that was swapped and collected while we read is no loss.
            Err(LoadError::MissingPage { .. })
                if get().await?.map(|now| now.spec.generation) != Some(root.spec.generation) =>
            {
                continue;
            }
            Err(source) => return Err(Error::Ledger { source }),
        };
        let pages = whole.reached.iter().filter_map(|name| pages.get(&**name).cloned()).collect();
        let stamp = highest_stamp(&list(Api::all(client.clone()), &ListParams::default(), "nodes").await?);
        let manifests = manifests(client, &whole).await?;
        let at = time::show(time::now_ms());
        return Ok((Copy::new(at, cluster_id(client).await?, stamp, root.spec, pages, manifests), whole));
    }
    Err(Error::Restless)
}

/// The highest generation of the ledger stamped on a node.
pub(crate) fn highest_stamp(nodes: &[Node]) -> i64 {
    nodes.iter().filter_map(hold::stamped_generation).max().unwrap_or_default()
}

/// UID of namespace `kube-system`, which is made with the cluster and never again.
pub(crate) async fn cluster_id(client: &Client) -> Result<String, Error> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let found = namespaces.get("kube-system").await.map_err(|source| Error::Read { what: "namespaces", source })?;
    Ok(found.uid().unwrap_or_default())
}

/// What must be applied again after a loss of etcd, as a person would write it.
async fn manifests(client: &Client, whole: &Whole) -> Result<Vec<Value>, Error> {
    let everything = ListParams::default();
    let pools: Vec<GpuPool> = list(Api::all(client.clone()), &everything, "gpupools.spillway.dev").await?;
    let tenants: Vec<Tenant> = list(Api::all(client.clone()), &everything, "tenants.spillway.dev").await?;
    let reservations: Vec<GpuReservation> =
        list(Api::all(client.clone()), &everything, "gpureservations.spillway.dev").await?;
    let booked: BTreeSet<&str> = whole.live.iter().map(|booking: &_| uid_of(booking)).collect();
    let mut manifests = Vec::new();
    manifests.extend(pools.iter().map(|pool| manifest(pool, &pool.spec)));
    manifests.extend(tenants.iter().map(|tenant| manifest(tenant, &tenant.spec)));
    let live = reservations.iter().filter(|one| booked.contains(one.uid().unwrap_or_default().as_str()));
    manifests.extend(live.map(|reservation| manifest(reservation, &reservation.spec)));
    Ok(manifests)
}

fn uid_of(booking: &Booking) -> &str {
    booking.reservation.uid.as_str()
}

fn manifest<K: Resource<DynamicType = ()>>(object: &K, spec: &impl Serialize) -> Value {
    let mut metadata = json!({ "name": object.name_any() });
    if let (Some(namespace), Some(fields)) = (object.namespace(), metadata.as_object_mut()) {
        fields.insert("namespace".to_owned(), json!(namespace));
    }
    json!({ "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": metadata, "spec": spec })
}

impl Report for Exported {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "{}: ledger generation {} in {}, {} live and {} that ended. {}",
            self.file,
            self.generation,
            counted(self.pages, "page"),
            counted(self.live, "booking"),
            self.ended,
            self.checksum
        )
    }
}
