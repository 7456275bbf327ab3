//! `spillway preflight`: what the policies would refuse, and what the sale of a node would evict, in a cluster as it is.
//!
//! A rule is a pure function from [`Facts`] to findings. [`workloads`] has those about pods and what makes them, [`fleet`] those about nodes,
//! pools and tenants, [`server`] those about the API server.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    io::{self, Write},
};

use k8s_openapi::{
    api::{
        admissionregistration::v1::{
            MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingWebhookConfiguration,
        },
        apps::v1::{DaemonSet, Deployment, StatefulSet},
        batch::v1::{CronJob, Job},
        core::v1::{Namespace, Node, Pod},
        scheduling::v1::PriorityClass,
    },
    apimachinery::pkg::version::Info,
};
use kube::{Api, Client, ResourceExt, api::ListParams};
use serde::{Serialize, de::DeserializeOwned};
use spillway_crds::{
    CapacityLedger, GpuPool, Tenant,
    names::{LEDGER_NAME, ROLE_LABEL, ROLE_OWNER, ROLE_TENANT},
};

use crate::{
    args::{FailOn, PreflightArgs},
    cluster::list,
    error::Error,
    output::{Report, Table, counted},
};

mod fleet;
mod server;
mod workloads;

/// What becomes of an object.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) enum Severity {
    /// It, or the next pod of it, is refused as soon as the policies are enforced.
    Refused,
    /// Its pods are deleted or kept off when the node is closed or sold.
    Evicted,
    /// A person should know.
    Note,
}

/// One finding.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Finding {
    /// What becomes of it.
    pub(crate) severity: Severity,
    /// Which rule, as one CamelCase word.
    pub(crate) rule: &'static str,
    /// `Kind/name` or `Kind/namespace/name`.
    pub(crate) object: String,
    /// Why.
    pub(crate) why: String,
    /// What to do.
    pub(crate) remedy: String,
}

/// The chart's values that matter here.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Values {
    /// Namespaces that the policies exempt.
    pub(crate) infrastructure: BTreeSet<String>,
    /// User names that may bind.
    pub(crate) schedulers: Vec<String>,
    /// Prefixes of resources that are devices.
    pub(crate) device_prefixes: Vec<String>,
    /// Longest grace period of a tenant's pod, in seconds.
    pub(crate) grace_cap_seconds: i64,
    /// Where they come from: `the installed release` or `the chart's defaults`, with flags over either.
    pub(crate) from: &'static str,
}

/// Whose a namespace is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    /// Exempt.
    Infrastructure,
    /// A buyer's.
    Tenant,
    /// The owner's.
    Owner,
    /// Nobody's.
    None,
}

/// All that the rules look at.
#[derive(Debug)]
pub(crate) struct Facts {
    /// Values.
    pub(crate) values: Values,
    /// Namespaces of buyers and of the owner, the word on the command line included.
    pub(crate) roles: BTreeMap<String, Role>,
    /// The API server's version.
    pub(crate) version: Info,
    /// All pods that are not over.
    pub(crate) pods: Vec<Pod>,
    /// Deployments.
    pub(crate) deployments: Vec<Deployment>,
    /// StatefulSets.
    pub(crate) statefulsets: Vec<StatefulSet>,
    /// DaemonSets.
    pub(crate) daemonsets: Vec<DaemonSet>,
    /// Jobs.
    pub(crate) jobs: Vec<Job>,
    /// CronJobs.
    pub(crate) cronjobs: Vec<CronJob>,
    /// Priority classes.
    pub(crate) priorities: Vec<PriorityClass>,
    /// Nodes.
    pub(crate) nodes: Vec<Node>,
    /// Namespaces.
    pub(crate) namespaces: Vec<Namespace>,
    /// Pools, if the CRD is there.
    pub(crate) pools: Vec<GpuPool>,
    /// Tenants, if the CRD is there.
    pub(crate) tenants: Vec<Tenant>,
    /// Whether there is a ledger.
    pub(crate) ledger: bool,
    /// Webhooks, as their configuration's name, resources that they take, and whether they fail closed.
    pub(crate) webhooks: Vec<server::Webhook>,
}

impl Facts {
    /// Whose a namespace is.
    pub(crate) fn role(&self, namespace: &str) -> Role {
        if self.values.infrastructure.contains(namespace) {
            return Role::Infrastructure;
        }
        self.roles.get(namespace).copied().unwrap_or(Role::None)
    }

    /// True for resource names that are devices.
    pub(crate) fn is_device(&self, resource: &str) -> bool {
        self.values.device_prefixes.iter().any(|prefix| resource.starts_with(prefix.as_str()))
    }
}

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Preflight {
    /// The values that were gone by.
    pub(crate) values: Values,
    /// How many would be refused.
    pub(crate) refused: usize,
    /// How many would be evicted.
    pub(crate) evicted: usize,
    /// How many notes.
    pub(crate) notes: usize,
    /// All, the worst first.
    pub(crate) findings: Vec<Finding>,
}

impl Preflight {
    /// Whether the exit status is to be 1.
    pub(crate) fn fails(&self, on: FailOn) -> bool {
        match on {
            FailOn::Never => false,
            FailOn::Refused => self.refused > 0,
            FailOn::Evicted => self.refused + self.evicted > 0,
            FailOn::Note => !self.findings.is_empty(),
        }
    }
}

/// Reads and judges.
pub(crate) async fn run(client: &Client, args: &PreflightArgs) -> Result<Preflight, Error> {
    Ok(judge(&fetch(client, args).await?))
}

/// All rules.
pub(crate) fn judge(facts: &Facts) -> Preflight {
    let mut findings: Vec<Finding> =
        [workloads::check(facts), fleet::check(facts), server::check(facts)].into_iter().flatten().collect();
    findings.sort();
    findings.dedup();
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    Preflight {
        values: facts.values.clone(),
        refused: count(Severity::Refused),
        evicted: count(Severity::Evicted),
        notes: count(Severity::Note),
        findings,
    }
}

async fn fetch(client: &Client, args: &PreflightArgs) -> Result<Facts, Error> {
    let version =
        client.apiserver_version().await.map_err(|source| Error::Read { what: "the API server's version", source })?;
    let everything = ListParams::default();
    let alive = ListParams::default().fields("status.phase!=Succeeded,status.phase!=Failed");
    let tenants: Vec<Tenant> = if_installed(client, "tenants.spillway.dev").await?;
    let namespaces: Vec<Namespace> = list(Api::all(client.clone()), &everything, "namespaces").await?;
    let ledgers: Vec<CapacityLedger> = if_installed(client, "capacityledgers.spillway.dev").await?;
    let validating: Vec<ValidatingWebhookConfiguration> =
        list(Api::all(client.clone()), &everything, "validatingwebhookconfigurations").await?;
    let mutating: Vec<MutatingWebhookConfiguration> =
        list(Api::all(client.clone()), &everything, "mutatingwebhookconfigurations").await?;
    Ok(Facts {
        values: values(client, args).await?,
        roles: roles(&tenants, &namespaces, args),
        version,
        pods: list(Api::all(client.clone()), &alive, "pods").await?,
        deployments: list(Api::all(client.clone()), &everything, "deployments.apps").await?,
        statefulsets: list(Api::all(client.clone()), &everything, "statefulsets.apps").await?,
        daemonsets: list(Api::all(client.clone()), &everything, "daemonsets.apps").await?,
        jobs: list(Api::all(client.clone()), &everything, "jobs.batch").await?,
        cronjobs: list(Api::all(client.clone()), &everything, "cronjobs.batch").await?,
        priorities: list(Api::all(client.clone()), &everything, "priorityclasses").await?,
        nodes: list(Api::all(client.clone()), &everything, "nodes").await?,
        namespaces,
        pools: if_installed(client, "gpupools.spillway.dev").await?,
        tenants,
        ledger: ledgers.iter().any(|root| root.name_any() == LEDGER_NAME),
        webhooks: server::webhooks(&validating, &mutating),
    })
}

/// Objects of a kind of ours; none before its CRD is there.
async fn if_installed<K>(client: &Client, what: &'static str) -> Result<Vec<K>, Error>
where
    K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    match list(Api::all(client.clone()), &ListParams::default(), what).await {
        Err(Error::Read { source: kube::Error::Api(status), .. }) if status.code == 404 => Ok(Vec::new()),
        result => result,
    }
}

/// What Tenants say, then what the operator wrote on namespaces, then what the command line adds.
fn roles(tenants: &[Tenant], namespaces: &[Namespace], args: &PreflightArgs) -> BTreeMap<String, Role> {
    let mut roles = BTreeMap::new();
    for (names, role) in [(&args.owner_namespaces, Role::Owner), (&args.tenant_namespaces, Role::Tenant)] {
        roles.extend(names.iter().map(|name| (name.clone(), role)));
    }
    for tenant in tenants {
        let role = if tenant.spec.owner { Role::Owner } else { Role::Tenant };
        roles.extend(tenant.spec.namespaces.iter().map(|name| (name.clone(), role)));
    }
    for namespace in namespaces {
        let role = match namespace.labels().get(ROLE_LABEL).map(String::as_str) {
            Some(ROLE_OWNER) => Role::Owner,
            Some(ROLE_TENANT) => Role::Tenant,
            _ => continue,
        };
        roles.insert(namespace.name_any(), role);
    }
    roles
}

/// The command line, else the release that is installed, else the chart's defaults.
async fn values(client: &Client, args: &PreflightArgs) -> Result<Values, Error> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &args.operator_namespace);
    let found = deployments.get_opt("spillway-operator").await;
    let deployment = found.map_err(|source| Error::Read { what: "deployments.apps", source })?;
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    let binding = policies
        .get_opt("spillway-binding")
        .await
        .map_err(|source| Error::Read { what: "validatingadmissionpolicies", source })?;
    Ok(merge(args, &arguments(deployment.as_ref()), binding.as_ref().map(bound_by)))
}

/// The operator's arguments.
fn arguments(deployment: Option<&Deployment>) -> Vec<String> {
    let pod = deployment.and_then(|deployment| deployment.spec.as_ref()).and_then(|spec| spec.template.spec.as_ref());
    let containers = pod.map(|pod| pod.containers.as_slice()).unwrap_or_default();
    containers.iter().flat_map(|container| container.args.clone().unwrap_or_default()).collect()
}

/// The user names in the policy that says who may bind.
fn bound_by(policy: &ValidatingAdmissionPolicy) -> Vec<String> {
    let rules = policy.spec.as_ref().and_then(|spec| spec.validations.as_deref()).unwrap_or_default();
    let quoted = |expression: &str| expression.split('\'').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    rules.iter().flat_map(|rule| quoted(&rule.expression)).collect()
}

fn merge(args: &PreflightArgs, installed: &[String], schedulers: Option<Vec<String>>) -> Values {
    let installed_list = |flag: &str| {
        let value = installed.iter().find_map(|argument| argument.strip_prefix(flag)?.strip_prefix('='))?;
        Some(value.split(',').map(str::to_owned).collect::<Vec<_>>())
    };
    let infrastructure = args
        .infrastructure_namespaces
        .clone()
        .or_else(|| installed_list("--infrastructure-namespaces"))
        .unwrap_or_else(|| vec!["gpu-operator".to_owned()]);
    let always = ["kube-system".to_owned(), args.operator_namespace.clone()];
    let grace = installed_list("--grace-cap-seconds").and_then(|list| list.first()?.parse().ok());
    Values {
        infrastructure: infrastructure.into_iter().chain(always).collect(),
        schedulers: args
            .schedulers
            .clone()
            .or_else(|| schedulers.filter(|users| !users.is_empty()))
            .unwrap_or_else(|| vec!["system:kube-scheduler".to_owned()]),
        device_prefixes: args
            .device_prefixes
            .clone()
            .or_else(|| installed_list("--device-prefixes"))
            .unwrap_or_else(|| vec!["nvidia.com/".to_owned(), "amd.com/".to_owned()]),
        grace_cap_seconds: args.grace_cap_seconds.or(grace).unwrap_or(120),
        from: if installed.is_empty() { "the chart's defaults" } else { "the installed release" },
    }
}

impl Report for Preflight {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        if !self.findings.is_empty() {
            let mut table = Table::new(&["SEVERITY", "RULE", "OBJECT", "WHY"]);
            for finding in &self.findings {
                table.push(vec![
                    format!("{:?}", finding.severity),
                    finding.rule.to_owned(),
                    finding.object.clone(),
                    finding.why.clone(),
                ]);
            }
            table.write(out, 0)?;
            let remedies: BTreeSet<(&str, &str)> =
                self.findings.iter().map(|finding| (finding.rule, finding.remedy.as_str())).collect();
            writeln!(out, "\nWhat to do:")?;
            for (rule, remedy) in remedies {
                writeln!(out, "  {rule}: {remedy}")?;
            }
            writeln!(out)?;
        }
        let names: Vec<&str> = self.values.infrastructure.iter().map(String::as_str).collect();
        writeln!(
            out,
            "{} refused, {} evicted, {}. By {}: infrastructure {}; schedulers {}; devices {}; grace cap {} s.",
            self.refused,
            self.evicted,
            counted(self.notes, "note"),
            self.values.from,
            names.join(","),
            self.values.schedulers.join(","),
            self.values.device_prefixes.join(","),
            self.values.grace_cap_seconds
        )
    }
}

#[cfg(test)]
mod tests;
