//! Nodes: from what they are to what the ledger wants, one step at a time (docs/ARCHITECTURE.md, "The node machine").
//!
//! The step is decided by the planner's `node_step`; here it is only looked at and carried out.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
    runtime::{controller::Action, reflector::ObjectRef},
};
use serde_json::json;
use spillway_crds::{
    CheckResult, GpuNode, GpuPool, NodeCheck,
    names::{
        BOOKING_ANNOTATION, FIELD_MANAGER, HOLD_CLOSED, HOLD_UNSOLD, POOL_LABEL, ROLE_LABEL, ROLE_OWNER, ROLE_TENANT,
    },
    parse_duration_ms,
};
use spillway_manifests::hold::{self, Target};
use spillway_planner::{
    Booking, BookingId, NodeUid,
    node::{Check, ForeignPods, Hold, NodeInput, NodeStep, Wanted, node_step},
};

use crate::{
    context::{Asked, Context},
    engine::Message,
    error::{Error, call},
    guards, kill,
    pods::{PodFacts, facts},
    snapshot::{Soundness, soundness},
    view::View,
};

/// A node that needs nothing is looked at again after so long.
const RESYNC: Duration = Duration::from_secs(300);
/// A question that the watch has not brought back for so long is asked again.
const LOST_QUESTION_MS: i64 = 5_000;
/// Containers that a message names.
const NAMED: usize = 6;

/// All that a look at a node stands on.
struct Look {
    node: Arc<Node>,
    uid: NodeUid,
    pool: Arc<GpuPool>,
    booking: Option<Arc<Booking>>,
    /// Number of pauses of the process before the look.
    gaps: u64,
    now_ms: i64,
}

/// Looks at a node.
///
/// # Errors
/// When the API server cannot be asked or told, or the decision is not the latest any more.
pub async fn reconcile(node: Arc<Node>, context: Arc<Context>) -> Result<Action, Error> {
    let gaps = context.pulse.gaps();
    let view = context.view();
    if view.ledger.is_none() || view.blocked.is_some() || node.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    if let Some(instead) = guards::hold_off(&context, &node).await? {
        return Ok(instead);
    }
    let uid = NodeUid::from(node.uid().unwrap_or_default());
    let booking = view.booking_on(&uid).cloned();
    let label = node.labels().get(POOL_LABEL).cloned();
    let pool = label
        .or_else(|| booking.as_ref().map(|booking| booking.pool.to_string()))
        .and_then(|name| context.stores.pools.get(&ObjectRef::new(&name)));
    let Some(pool) = pool else {
        return close_stray(&context, &Writer { node: &node, uid: &uid, booking: booking.as_ref(), gaps }).await;
    };
    let look = Look { node, uid, pool, booking, gaps, now_ms: jiff::Timestamp::now().as_millisecond() };
    let pods = context.pods.on(&look.node.name_any());
    let mut input = look.input(&context, &pods);
    let mut step = node_step(&input);
    // A watch may be behind: before a node changes hands, the API server itself is asked who is there.
    let decisive = matches!(step, NodeStep::WriteHolder | NodeStep::WriteUnsold)
        || (matches!(step, NodeStep::WriteClosedBoth) && matches!(input.hold, Hold::Closed { .. }));
    if decisive {
        input = look.input(&context, &pods_now(&context, &look.node.name_any()).await?);
        step = node_step(&input);
    }
    look.note_problem(&context, &step).await;
    look.take(&context, step).await
}

/// A node of no pool that is there, such as one that lost its label while it was held. It is not ours to sell, and the policy has closed one
/// that is new; but who held it keeps it no longer than the booking lasts.
async fn close_stray(context: &Context, writer: &Writer<'_>) -> Result<Action, Error> {
    let kept = writer.booking.is_some() || !matches!(read_hold(writer.node), Hold::Holder { .. } | Hold::Other);
    if kept {
        return Ok(Action::requeue(RESYNC));
    }
    writer.write(context, &Target::ClosedBoth { booking: None }).await
}

/// The pods that the API server has on a node now.
async fn pods_now(context: &Context, node: &str) -> Result<Vec<PodFacts>, Error> {
    let api: Api<Pod> = Api::all(context.client.clone());
    let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let list = call("listing the pods of a node", api.list(&params)).await?;
    Ok(list.items.iter().filter_map(|pod| facts(pod, &context.config.device_prefixes)).map(|(_, pod)| pod).collect())
}

/// Whose a namespace is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Infrastructure,
    Owner,
    Tenant,
    Other,
    Unknown,
}

fn whose(context: &Context, namespace: &str) -> Whose {
    if context.config.infrastructure.contains(namespace) {
        return Whose::Infrastructure;
    }
    let Some(found) = context.namespace(namespace) else { return Whose::Unknown };
    match found.labels().get(ROLE_LABEL).map(String::as_str) {
        Some(ROLE_OWNER) => Whose::Owner,
        Some(ROLE_TENANT) => Whose::Tenant,
        _ => Whose::Other,
    }
}

/// What the hold taints of a node say.
fn read_hold(node: &Node) -> Hold {
    let booking = hold::annotation(node, BOOKING_ANNOTATION).map(BookingId::from);
    match hold::read_taints(node) {
        (None, None) => Hold::None,
        (Some(HOLD_CLOSED), None) => Hold::Closed { no_execute: false },
        (Some(HOLD_CLOSED), Some(HOLD_CLOSED)) => Hold::Closed { no_execute: true },
        (Some(HOLD_UNSOLD), None) => Hold::Unsold,
        (Some(a), Some(b)) if a == b && a != HOLD_UNSOLD => Hold::Holder { holder: a.to_owned(), booking },
        _ => Hold::Other,
    }
}

impl Look {
    fn hold(&self) -> Hold {
        read_hold(&self.node)
    }

    fn writer(&self) -> Writer<'_> {
        Writer { node: &self.node, uid: &self.uid, booking: self.booking.as_ref(), gaps: self.gaps }
    }

    fn sound(&self) -> Soundness {
        soundness(&self.node, &self.pool)
    }

    /// Opening a node that nothing on it was told to leave: only what is a tenant's matters.
    fn tenants_only(&self, hold: &Hold) -> bool {
        self.booking.is_none() && matches!(hold, Hold::Closed { no_execute: false })
    }

    fn input(&self, context: &Context, pods: &[PodFacts]) -> NodeInput {
        let hold = self.hold();
        let tenants_only = self.tenants_only(&hold);
        let wanted = match &self.booking {
            None => Wanted::Open,
            Some(booking) => {
                let namespace = context.namespace(&booking.reservation.namespace).and_then(|namespace| namespace.uid());
                // A namespace that cannot be seen for a moment must not cost its tenant the node.
                let current = match &hold {
                    Hold::Holder { holder, booking: of } if of.as_ref() == Some(&booking.id) => Some(holder.clone()),
                    _ => None,
                };
                Wanted::Held { holder: namespace.or(current).unwrap_or_default(), booking: booking.id.clone() }
            }
        };
        let mut there = ForeignPods::default();
        for pod in pods {
            let whose = whose(context, &pod.namespace);
            let foreign = if tenants_only {
                matches!(whose, Whose::Tenant | Whose::Unknown)
            } else {
                whose != Whose::Infrastructure
            };
            let owner_device = whose == Whose::Owner && !pod.devices.is_empty();
            match (foreign, pod.deleting.is_some()) {
                (_, false) if owner_device => there.owner = true,
                (true, true) => there.leaving = true,
                (true, false) => there.running = true,
                (false, _) => {}
            }
        }
        let sound = self.sound();
        NodeInput {
            closed_for_ms: self.now_ms.saturating_sub(self.closed_since(context)),
            check: self.check(context, tenants_only),
            hold,
            wanted,
            pods: there,
            ready: sound.ready,
            cordoned: sound.cordoned,
            device_count_ok: sound.wrong_devices.is_none(),
        }
    }

    /// Since when it is closed. A policy that closes a new node notes no time: then since it was first asked something.
    fn closed_since(&self, context: &Context) -> i64 {
        let asked = || context.node_memory().asked.get(&self.uid).map(|asked| asked.first);
        hold::hold_since(&self.node).or_else(asked).unwrap_or(self.now_ms)
    }

    fn hold_since(&self) -> i64 {
        hold::hold_since(&self.node).unwrap_or(0)
    }

    /// What the agent says, if it was asked about this state of the node.
    fn check(&self, context: &Context, tenants_only: bool) -> Check {
        if self.pool.spec.node_check == NodeCheck::None {
            return Check::NotNeeded;
        }
        let Some(asked) =
            context.node_memory().asked.get(&self.uid).filter(|asked| asked.hold_since == self.hold_since()).cloned()
        else {
            return Check::NotAsked;
        };
        let object = context.stores.gpu_nodes.get(&ObjectRef::new(&self.node.name_any()));
        let stands =
            object.as_ref().is_some_and(|object| object.spec.check.as_ref().is_some_and(|check| check.id == asked.id));
        if !stands {
            // It is on its way, or somebody deleted it.
            return if self.now_ms.saturating_sub(asked.at) > LOST_QUESTION_MS {
                Check::NotAsked
            } else {
                Check::Waiting
            };
        }
        let answer = object
            .and_then(|object| object.status.as_ref().and_then(|status| status.check.clone()))
            .filter(|answer| answer.id == asked.id && answer.node_uid == self.uid.as_str());
        let Some(answer) = answer else { return Check::Waiting };
        let age_ms = self.now_ms.saturating_sub(asked.at);
        let boot =
            self.node.status.as_ref().and_then(|status| status.node_info.as_ref()).map(|info| info.boot_id.as_str());
        if boot.is_some_and(|boot| !boot.is_empty() && boot != answer.boot_id) {
            return Check::Dirty { found: vec!["the node was started again since it answered".to_owned()], age_ms };
        }
        let found = containers_left(context, &answer, tenants_only);
        if found.is_empty() { Check::Clean } else { Check::Dirty { found, age_ms } }
    }

    /// Keeps in mind why a node cannot be handed over, for the pool's status.
    async fn note_problem(&self, context: &Context, step: &NodeStep) {
        let problem = match step {
            NodeStep::Broken(reason, _) => Some(reason.message.clone()),
            _ => None,
        };
        let changed = {
            let mut memory = context.node_memory();
            match problem {
                Some(problem) => memory.problem.insert(self.uid.clone(), problem.clone()).as_ref() != Some(&problem),
                None => memory.problem.remove(&self.uid).is_some(),
            }
        };
        if changed {
            context.queues.pools.push(&self.pool.name_any()).await;
        }
    }

    /// Carries a step out.
    async fn take(&self, context: &Context, step: NodeStep) -> Result<Action, Error> {
        let booking = self.booking.as_ref();
        let id = booking.map(|booking| booking.id.as_str());
        let after = |ms: i64| Action::requeue(Duration::from_millis(u64::try_from(ms).unwrap_or(0).max(20)));
        match step {
            NodeStep::Nothing => {
                if let Some(booking) = booking
                    && booking
                        .segments
                        .iter()
                        .any(|segment| segment.uid == self.uid && segment.to.is_none() && segment.from.is_none())
                {
                    let node = self.uid.clone();
                    context.tell(Message::HandedOver { booking: booking.id.clone(), node });
                    return Ok(Action::requeue(Duration::from_secs(5)));
                }
                Ok(Action::requeue(RESYNC))
            }
            NodeStep::WriteClosedNoSchedule => {
                kill::point("node.before-closed");
                self.writer().write(context, &Target::ClosedNoSchedule { booking: id }).await
            }
            NodeStep::WriteClosedBoth => {
                kill::point("node.before-closed");
                let done = self.writer().write(context, &Target::ClosedBoth { booking: id }).await;
                kill::point("node.after-closed");
                done
            }
            NodeStep::WriteUnsold => {
                kill::point("node.before-unsold");
                let done = self.writer().write(context, &Target::Unsold).await;
                kill::point("node.after-unsold");
                done
            }
            NodeStep::WriteHolder => self.hand_over(context).await,
            NodeStep::Drain => {
                self.drain(context).await?;
                kill::point("node.after-drain");
                Ok(after(1000))
            }
            NodeStep::AskCheck => {
                self.ask(context).await?;
                kill::point("node.after-ask");
                Ok(after(1000))
            }
            NodeStep::Wait(_, ms) => Ok(after(ms)),
            NodeStep::GiveUp(reason) => {
                self.give_up(context, &reason.message);
                Ok(after(1000))
            }
            NodeStep::Broken(reason, ms) => {
                // A booking that waits for this node takes another one, once the node has been away for as long as a lost one may be.
                let repair = parse_duration_ms(&self.pool.spec.sale.repair_after).unwrap_or(300_000);
                if self.now_ms.saturating_sub(self.closed_since(context)) > repair {
                    self.give_up(context, &reason.message);
                }
                Ok(after(ms))
            }
        }
    }

    fn give_up(&self, context: &Context, why: &str) {
        if let Some(booking) = &self.booking {
            tracing::info!(node = %self.node.name_any(), booking = %booking.id, why, "the booking takes another node");
            context.tell(Message::GiveUp { booking: booking.id.clone(), node: self.uid.clone() });
        }
    }

    async fn hand_over(&self, context: &Context) -> Result<Action, Error> {
        let Some(booking) = &self.booking else { return Ok(Action::await_change()) };
        let namespace = &booking.reservation.namespace;
        let Some(found) = context.namespace(namespace) else { return Ok(Action::requeue(Duration::from_secs(1))) };
        let holder = found.uid().unwrap_or_default();
        // Without the label no pod of the namespace could land: the tenant controller is about to write it.
        if found.labels().get(spillway_crds::names::HOLDER_LABEL) != Some(&holder) {
            return Ok(Action::requeue(Duration::from_millis(500)));
        }
        kill::point("node.before-hold");
        let target = Target::Holder {
            holder: &holder,
            namespace,
            reservation: &booking.reservation.name,
            booking: booking.id.as_str(),
        };
        let done = self.writer().write(context, &target).await;
        kill::point("node.after-hold");
        done
    }

    /// Asks every foreign pod to go, with a grace that the cap bounds. The first grace that a kubelet is given is final, so a pod is asked once.
    async fn drain(&self, context: &Context) -> Result<(), Error> {
        let name = self.node.name_any();
        let tenants_only = self.tenants_only(&self.hold());
        let going: Vec<PodFacts> = pods_now(context, &name)
            .await?
            .into_iter()
            .filter(|pod| pod.deleting.is_none())
            .filter(|pod| match whose(context, &pod.namespace) {
                Whose::Infrastructure => false,
                Whose::Tenant | Whose::Unknown => true,
                Whose::Owner | Whose::Other => !tenants_only,
            })
            .collect();
        if going.is_empty() {
            return Ok(());
        }
        self.writer().permitted(context, "emptying a node").await?;
        let cap = i64::from(context.config.grace_cap_seconds);
        stream::iter(going)
            .map(|pod| async move {
                let api: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace);
                let grace = pod.grace_seconds.clamp(1, cap.max(1));
                let params = DeleteParams {
                    grace_period_seconds: u32::try_from(grace).ok(),
                    preconditions: Some(Preconditions { uid: Some(pod.uid.to_string()), resource_version: None }),
                    ..DeleteParams::default()
                };
                match call("deleting a pod of a node that is emptied", api.delete(&pod.name, &params)).await {
                    Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
                    _ => Ok(()),
                }
            })
            .buffer_unordered(8)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(())
    }

    /// Asks the agent of the node which containers it has.
    async fn ask(&self, context: &Context) -> Result<(), Error> {
        let name = self.node.name_any();
        let id = uuid::Uuid::new_v4().to_string();
        let object = json!({
            "apiVersion": "spillway.dev/v1alpha1",
            "kind": "GpuNode",
            "metadata": {
                "name": name,
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": self.uid.as_str()}],
            },
            "spec": {"nodeUid": self.uid.as_str(), "check": {"id": id}},
        });
        let now_ms = jiff::Timestamp::now().as_millisecond();
        {
            let mut memory = context.node_memory();
            let hold_since = self.hold_since();
            let first = memory
                .asked
                .get(&self.uid)
                .filter(|asked| asked.hold_since == hold_since)
                .map_or(now_ms, |asked| asked.first);
            memory.asked.insert(self.uid.clone(), Asked { id: id.clone(), hold_since, at: now_ms, first });
        }
        let api: Api<GpuNode> = Api::all(context.client.clone());
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let asked = call("asking the agent of a node", api.patch(&name, &params, &Patch::Apply(&object))).await;
        if asked.is_err() {
            context.node_memory().asked.remove(&self.uid);
        }
        asked.map(|_| ())
    }
}

/// Writes a node, as long as what was decided on is still so.
struct Writer<'a> {
    node: &'a Node,
    uid: &'a NodeUid,
    booking: Option<&'a Arc<Booking>>,
    /// Number of pauses of the process before the look.
    gaps: u64,
}

impl Writer<'_> {
    /// Writes taints, labels and annotations in one patch, if what the ledger wants of the node is still the same.
    async fn write(&self, context: &Context, target: &Target<'_>) -> Result<Action, Error> {
        let generation = self.permitted(context, "writing a node").await?;
        let patch = hold::build_patch(self.node, target, generation, jiff::Timestamp::now().as_millisecond());
        let api: Api<Node> = Api::all(context.client.clone());
        call(
            "writing a node",
            api.patch_metadata(&self.node.name_any(), &PatchParams::default(), &Patch::Merge(&patch)),
        )
        .await?;
        context.metrics.node_writes.inc();
        if matches!(target, Target::Unsold | Target::Holder { .. }) {
            context.node_memory().asked.remove(self.uid);
        }
        // The write comes back by the watch, with the resourceVersion that the next step needs.
        Ok(Action::requeue(Duration::from_secs(5)))
    }

    /// The generation on which a write may stand: the root is read after the node was, and what it wants of the node is what was decided on.
    async fn permitted(&self, context: &Context, action: &'static str) -> Result<i64, Error> {
        let expected = context.view().generation;
        let found = context.fence.generation().await?;
        let fenced = Error::Fenced { action, expected, found };
        let mut views = context.view.clone();
        let caught_up = tokio::time::timeout(Duration::from_millis(500), async {
            views.wait_for(|view| view.generation >= found).await.map(|view| Arc::clone(&view))
        })
        .await;
        let view: Option<Arc<View>> = caught_up.ok().and_then(Result::ok);
        let Some(view) = view else {
            context.tell(Message::Reload);
            return Err(fenced);
        };
        let same = view.generation == found
            && view.blocked.is_none()
            && context.guards.allow_writes()
            && view.booking_on(self.uid).map(|booking| &booking.id) == self.booking.map(|booking| &booking.id);
        if same && context.pulse.gaps() == self.gaps { Ok(found) } else { Err(fenced) }
    }
}

/// Containers that must be gone and are not, for people.
fn containers_left(context: &Context, answer: &CheckResult, tenants_only: bool) -> Vec<String> {
    if let Some(error) = &answer.error {
        return vec![format!("the agent could not ask the container runtime: {error}")];
    }
    let mut left: Vec<String> = answer
        .containers
        .iter()
        .filter(|container| match whose(context, &container.namespace) {
            Whose::Infrastructure => false,
            Whose::Tenant | Whose::Unknown => true,
            Whose::Owner | Whose::Other => !tenants_only,
        })
        .map(|container| format!("{}/{}", container.namespace, container.pod))
        .collect();
    left.sort();
    left.dedup();
    let listed = i32::try_from(answer.containers.len()).unwrap_or(i32::MAX);
    let more = left.len().saturating_sub(NAMED);
    left.truncate(NAMED);
    if more > 0 {
        left.push(format!("and {more} more"));
    }
    if answer.total > listed {
        left.push(format!("{} containers that the agent did not list", answer.total - listed));
    }
    left
}
