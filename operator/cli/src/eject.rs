//! `spillway eject`: takes what Spillway wrote off nodes, namespaces and DaemonSets, so that the cluster is as before.
//!
//! [`plan`] is pure: from an object to the patch that takes ours off it, or to none. Everything carries the resourceVersion that was read. Custom
//! resources and CRDs stay: the ledger is what bills stand on.

use std::{
    io::{self, Write},
    time::Duration,
};

use k8s_openapi::api::{
    admissionregistration::v1::MutatingAdmissionPolicyBinding,
    apps::v1::{DaemonSet, Deployment},
    core::v1::{Namespace, Node},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde::Serialize;
use serde_json::Value;
use spillway_manifests::hold;

use crate::{
    args::{Connection, EjectArgs},
    client,
    cluster::list,
    confirm::{self, Asked},
    error::Error,
    ledger,
    output::{Format, Report, Table, counted},
    time,
};

mod plan;

/// Policies that would put a toleration back into a DaemonSet when it is written.
const PUT_BACK: [&str; 3] =
    ["spillway-infrastructure-daemonset", "spillway-owner-daemonset", "spillway-tenant-daemonset"];
/// The API server goes on with a policy for up to a second after its binding is gone.
const POLICY_LAG: Duration = Duration::from_millis(1500);
/// How often an object that changed meanwhile is read again.
const TRIES: usize = 5;
const DAEMONSETS: &str = "daemonsets.apps";

/// What is taken off one object.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Change {
    /// `Node/name`, `Namespace/name` or `DaemonSet/namespace/name`.
    pub(crate) object: String,
    /// What goes, one entry a key.
    pub(crate) removes: Vec<String>,
    /// The merge patch.
    #[serde(skip)]
    pub(crate) patch: Value,
}

/// What is to go.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ejection {
    /// Bindings of policies that are deleted first, because they would put back what is taken off.
    pub(crate) bindings: Vec<String>,
    /// Objects to change.
    pub(crate) changes: Vec<Change>,
    /// True when it acts as the group that the policies let pass.
    pub(crate) breaks_the_glass: bool,
    /// What stands in the way, each with what to do.
    pub(crate) refusals: Vec<String>,
}

/// Reads, shows, asks, writes.
pub(crate) async fn run(
    client: &Client,
    connection: &Connection,
    args: &EjectArgs,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let ejection = look(client, args).await?;
    crate::output::write(format, &ejection, out)?;
    if !ejection.refusals.is_empty() {
        return Err(Error::Refused { what: "nothing is taken off", why: ejection.refusals });
    }
    if ejection.changes.is_empty() {
        return Ok(());
    }
    match confirm::ask("eject", args.dry_run, args.yes, format, out)? {
        Asked::DryRun | Asked::No => return Ok(()),
        Asked::Yes => {}
    }
    let glass = match ejection.breaks_the_glass {
        true => client::break_glass(connection, client, &args.break_glass_group).await?,
        false => client.clone(),
    };
    for name in &ejection.bindings {
        let bindings: Api<MutatingAdmissionPolicyBinding> = Api::all(glass.clone());
        match bindings.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            result => drop(result.map_err(|source| Error::Change {
                what: "mutatingadmissionpolicybindings",
                name: name.clone(),
                source,
            })?),
        }
    }
    if !ejection.bindings.is_empty() {
        tokio::time::sleep(POLICY_LAG).await;
    }
    // Namespaces first: their role is what makes policies add to pods and DaemonSets.
    let everything = ListParams::default();
    let mut done = 0_usize;
    for namespace in list::<Namespace>(Api::all(client.clone()), &everything, "namespaces").await? {
        done += take_off(&Api::all(glass.clone()), namespace, &plan::namespace, "namespaces").await?;
    }
    for daemonset in list::<DaemonSet>(Api::all(client.clone()), &everything, DAEMONSETS).await? {
        let api = Api::namespaced(glass.clone(), &daemonset.namespace().unwrap_or_default());
        done += take_off(&api, daemonset, &plan::daemonset, DAEMONSETS).await?;
    }
    for node in list::<Node>(Api::all(client.clone()), &everything, "nodes").await? {
        done += take_off(&Api::all(glass.clone()), node, &plan::node, "nodes").await?;
    }
    // What somebody still puts back is seen here.
    let left = changes(client).await?;
    if let Some(first) = left.first() {
        return Err(Error::Refused {
            what: "not all could be taken off",
            why: vec![format!(
                "{} and {} more have it again: is an operator running, or a policy of the chart in force? Stop it, then say it again",
                first.object,
                left.len().saturating_sub(1)
            )],
        });
    }
    let text = format!(
        "Done: {} changed. Nothing of Spillway is left on nodes, namespaces and DaemonSets.",
        counted(done, "object")
    );
    confirm::say(format, out, &text)
}

/// Writes one object, reading it again when it changed; how many were written: one or none.
async fn take_off<K>(
    api: &Api<K>,
    mut object: K,
    plan: &(dyn Fn(&K) -> Option<Change> + Sync),
    what: &'static str,
) -> Result<usize, Error>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let name = object.name_any();
    let mut conflict = None;
    for _ in 0..TRIES {
        let Some(change) = plan(&object) else { return Ok(0) };
        match api.patch(&name, &PatchParams::default(), &Patch::Merge(&change.patch)).await {
            Ok(_) => return Ok(1),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(0),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                conflict = Some(kube::Error::Api(status));
                object = match api.get_opt(&name).await.map_err(|source| Error::Read { what, source })? {
                    Some(object) => object,
                    None => return Ok(0),
                };
            }
            Err(source) => return Err(Error::Change { what, name, source }),
        }
    }
    conflict.map_or(Ok(0), |source| Err(Error::Change { what, name, source }))
}

async fn look(client: &Client, args: &EjectArgs) -> Result<Ejection, Error> {
    let changes = changes(client).await?;
    let mut refusals = Vec::new();
    if !args.while_operator_runs
        && let Some(who) = operator(client, &args.operator_namespace).await?
    {
        refusals.push(format!(
            "{who}: it would write it again. `helm uninstall spillway -n {ns}`, or `kubectl scale deployment spillway-operator -n {ns} \
             --replicas=0`, and wait 15 seconds",
            ns = args.operator_namespace
        ));
    }
    if !args.with_live_bookings
        && let Some(why) = sold(client).await?
    {
        refusals.push(format!(
            "{why}: whoever bought loses what they hold. End the reservations first, or say --with-live-bookings"
        ));
    }
    let mut bindings = Vec::new();
    if changes.iter().any(|change| change.object.starts_with("DaemonSet/")) {
        let api: Api<MutatingAdmissionPolicyBinding> = Api::all(client.clone());
        for name in PUT_BACK {
            let what = "mutatingadmissionpolicybindings";
            if api.get_opt(name).await.map_err(|source| Error::Read { what, source })?.is_some() {
                bindings.push(name.to_owned());
            }
        }
    }
    let breaks_the_glass =
        client::is_guarded(client, "spillway-node").await? || client::is_guarded(client, "spillway-namespace").await?;
    Ok(Ejection { bindings, changes, breaks_the_glass, refusals })
}

/// All that carries something of ours.
async fn changes(client: &Client) -> Result<Vec<Change>, Error> {
    let everything = ListParams::default();
    let namespaces: Vec<Namespace> = list(Api::all(client.clone()), &everything, "namespaces").await?;
    let daemonsets: Vec<DaemonSet> = list(Api::all(client.clone()), &everything, DAEMONSETS).await?;
    let nodes: Vec<Node> = list(Api::all(client.clone()), &everything, "nodes").await?;
    let mut changes: Vec<Change> = namespaces.iter().filter_map(plan::namespace).collect();
    changes.extend(daemonsets.iter().filter_map(plan::daemonset));
    changes.extend(nodes.iter().filter_map(plan::node));
    Ok(changes)
}

/// Who would write it again, if somebody would.
async fn operator(client: &Client, namespace: &str) -> Result<Option<String>, Error> {
    if let Some(holder) = client::leader(client, namespace, time::now_ms()).await? {
        return Ok(Some(format!("{holder} leads as operator")));
    }
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let found = deployments.get_opt("spillway-operator").await;
    let found = found.map_err(|source| Error::Read { what: "deployments.apps", source })?;
    let replicas = found.and_then(|deployment| deployment.spec).and_then(|spec| spec.replicas).unwrap_or_default();
    Ok((replicas > 0).then(|| format!("Deployment {namespace}/spillway-operator wants {}", counted_i32(replicas))))
}

fn counted_i32(count: i32) -> String {
    counted(usize::try_from(count).unwrap_or_default(), "pod")
}

/// What is sold, if something is.
async fn sold(client: &Client) -> Result<Option<String>, Error> {
    match ledger::read(client, None).await {
        Ok(bookings) if !bookings.live.is_empty() => {
            return Ok(Some(format!("the ledger has {}", counted(bookings.live.len(), "live booking"))));
        }
        Ok(_) | Err(Error::NoLedger) => {}
        // The CRDs are gone.
        Err(Error::Read { source: kube::Error::Api(status), .. }) if status.code == 404 => {}
        Err(Error::Ledger { source }) => return Ok(Some(format!("the ledger cannot be read ({source})"))),
        Err(error) => return Err(error),
    }
    let nodes: Vec<Node> = list(Api::all(client.clone()), &ListParams::default(), "nodes").await?;
    let held = nodes.iter().filter(|node| {
        let (value, _) = hold::read_taints(node);
        !matches!(value, None | Some("closed" | "unsold"))
    });
    let held = held.count();
    Ok((held > 0).then(|| {
        format!(
            "{} the taint of a holder",
            if held == 1 { "1 node has".to_owned() } else { format!("{held} nodes have") }
        )
    }))
}

impl Report for Ejection {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.changes.is_empty() {
            return writeln!(out, "Nothing of Spillway is on nodes, namespaces and DaemonSets.");
        }
        let mut table = Table::new(&["OBJECT", "IS TAKEN OFF"]);
        for binding in &self.bindings {
            table.push(vec![
                format!("MutatingAdmissionPolicyBinding/{binding}"),
                "deleted: it would put tolerations back".to_owned(),
            ]);
        }
        for change in &self.changes {
            table.push(vec![change.object.clone(), change.removes.join(", ")]);
        }
        table.write(out, 0)?;
        if self.breaks_the_glass {
            writeln!(out, "\nIt acts as the break-glass group, by impersonation, past the policies of the chart.")?;
        }
        if self.changes.iter().any(|change| change.object.starts_with("DaemonSet/")) {
            writeln!(
                out,
                "\nThe pods of a DaemonSet whose template changes are replaced, as its update strategy says."
            )?;
        }
        writeln!(out)
    }
}

#[cfg(test)]
mod tests;
