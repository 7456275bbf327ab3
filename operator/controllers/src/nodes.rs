//! Nodes: from what they are to what the ledger wants, one step at a time (docs/ARCHITECTURE.md, "The node machine").
//!
//! The step is decided by the planner's `node_step`; here it is only looked at and carried out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    runtime::{controller::Action, reflector::ObjectRef},
};
use serde_json::json;
use spillway_crds::{
    CheckResult, GpuNode, GpuPool, NodeCheck,
    names::{
        BOOKING_ANNOTATION, FIELD_MANAGER, HOLD_CLOSED, HOLD_NODE_PREFIX, HOLD_UNSOLD, POOL_LABEL, ROLE_LABEL,
        ROLE_OWNER, ROLE_TENANT, hold_label, reservation_hold_label,
    },
    parse_duration_ms,
};
use spillway_manifests::hold::{self, Target};
use spillway_planner::{
    Booking, BookingId, NodeName, NodeUid, ReservationRef,
    node::{Check, ForeignPods, Hold, NodeInput, NodeStep, Part, Wanted, node_step},
};

use crate::{
    assignments,
    context::{Asked, Context},
    ended::{About, Ended, PodName, read_pod},
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
    /// Live bookings that have it, or parts of it.
    bookings: Vec<Arc<Booking>>,
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
    let bookings: Vec<Arc<Booking>> = view.bookings_on(&uid).cloned().collect();
    let label = node.labels().get(POOL_LABEL).cloned();
    let pool = label
        .or_else(|| bookings.first().map(|booking| booking.pool.to_string()))
        .and_then(|name| context.stores.pools.get(&ObjectRef::new(&name)));
    let Some(pool) = pool else {
        return close_stray(&context, &Writer { node: &node, uid: &uid, bookings: &bookings, gaps }).await;
    };
    let look = Look { node, uid, pool, bookings, gaps, now_ms: jiff::Timestamp::now().as_millisecond() };
    let pods = context.pods.on(&look.node.name_any());
    let mut ended = look.ended(&context, &view);
    let mut input = look.input(&context, &pods, &ended);
    let mut step = node_step(&input);
    // A watch may be behind: before a node changes hands, the API server itself is asked who is there.
    // A part more on a node that is shared takes nothing from anybody.
    let adds = |parts: &[Part]| matches!(&input.hold, Hold::Shared { set_up } if set_up.iter().all(|part| parts.contains(part)));
    let decisive = matches!(step, NodeStep::WriteHolder | NodeStep::WriteUnsold)
        || matches!(&step, NodeStep::WriteShared(parts) if !adds(parts))
        || (matches!(step, NodeStep::WriteClosedBoth) && matches!(input.hold, Hold::Closed { .. }));
    // A node that is sold is closed at once, or its owner's pods would take it. Whether it is emptied and handed over now or in a while is a matter of
    // leave; what comes later still is then handed over with it. Once its pods were told to go, it goes on.
    let begins = !matches!(input.hold, Hold::Closed { no_execute: true })
        && matches!(step, NodeStep::WriteClosedBoth | NodeStep::WriteShared(_));
    let booked = look.bookings.iter().map(|booking| booking.booked_at).max().filter(|_| begins);
    let leave = booked.map(|at| context.backlog.leave(at, look.now_ms)).transpose();
    let _leave = match leave {
        Ok(leave) => leave,
        Err(pause) => return Ok(Action::requeue(pause)),
    };
    if decisive {
        ended.read_again(&context).await?;
        input = look.input(&context, &pods_now(&context, &look.node.name_any()).await?, &ended);
        step = node_step(&input);
    }
    look.note_problem(&context, &step).await;
    look.take(&context, step).await
}

/// A node of no pool that is there, such as one that lost its label while it was held. It is not ours to sell, and the policy has closed one
/// that is new; but who held it keeps it no longer than the booking lasts.
async fn close_stray(context: &Context, writer: &Writer<'_>) -> Result<Action, Error> {
    let open = matches!(read_hold(writer.node), Hold::None | Hold::Closed { .. } | Hold::Unsold);
    let kept = !writer.bookings.is_empty() || open;
    if kept {
        return Ok(Action::requeue(RESYNC));
    }
    writer.write(context, &Target::ClosedBoth { booking: None }).await
}

fn needs_check(pool: &GpuPool) -> bool {
    pool.spec.node_check != NodeCheck::None
}

/// The pods that the API server has on a node now.
async fn pods_now(context: &Context, node: &str) -> Result<Vec<PodFacts>, Error> {
    let api: Api<Pod> = Api::all(context.client.clone());
    let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let list = call("listing the pods of a node", api.list(&params)).await?;
    Ok(list.items.iter().filter_map(|pod| facts(pod, &context.config.device_prefixes)).collect())
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
        _ if hold::is_shared(node) => Hold::Shared { set_up: hold::read_parts(node) },
        // Of another node object: this one was re-created.
        (Some(a), _) if a.starts_with(HOLD_NODE_PREFIX) => Hold::Other,
        (Some(a), Some(b)) if a == b && a != HOLD_UNSOLD => Hold::Holder { holder: a.to_owned(), booking },
        _ => Hold::Other,
    }
}

/// Who may be on a node that changes hands or is shared.
struct Rights<'a> {
    /// Opening a node that nothing on it was told to leave: only what is a tenant's matters.
    tenants_only: bool,
    /// Namespaces that have parts of a shared node.
    sharers: BTreeSet<&'a str>,
    ended: &'a Ended,
}

impl Rights<'_> {
    fn allows(&self, context: &Context, namespace: &str, pod_uid: &str) -> bool {
        match whose(context, namespace) {
            Whose::Infrastructure => true,
            _ if self.sharers.contains(namespace) => !pod_uid.is_empty() && self.ended.allows(pod_uid),
            Whose::Tenant | Whose::Unknown => false,
            Whose::Owner | Whose::Other => self.tenants_only,
        }
    }
}

impl Look {
    fn hold(&self) -> Hold {
        read_hold(&self.node)
    }

    fn writer(&self) -> Writer<'_> {
        Writer { node: &self.node, uid: &self.uid, bookings: &self.bookings, gaps: self.gaps }
    }

    /// The live bookings' parts of the node, sorted.
    fn parts(&self) -> Vec<Part> {
        let of = |booking: &Arc<Booking>| {
            let mut open = booking.segments.iter().filter(|segment| segment.to.is_none() && segment.uid == self.uid);
            open.next().map(|segment| Part { booking: booking.id.clone(), devices: segment.devices })
        };
        let mut parts: Vec<Part> = self.bookings.iter().filter_map(of).collect();
        parts.sort_unstable();
        parts
    }

    /// The parts of the node whose bookings ended. A node that is closed was set up for those that it names still: who waits in them could land
    /// once it is shared again.
    fn ended(&self, context: &Context, view: &View) -> Ended {
        match self.hold() {
            Hold::Shared { .. } | Hold::Closed { .. } => {
                let set_up = hold::read_parts(&self.node);
                let here = (&*self.node.name_any(), &self.uid);
                Ended::look(context, view, here, &set_up, &self.bookings, &self.parts())
            }
            _ => Ended::default(),
        }
    }

    fn rights<'a>(&'a self, hold: &Hold, ended: &'a Ended) -> Rights<'a> {
        let shared = matches!(hold, Hold::Shared { .. });
        let sharers = self.bookings.iter().filter(|booking| shared && !booking.exclusive);
        Rights {
            tenants_only: self.tenants_only(hold),
            sharers: sharers.map(|booking| &*booking.reservation.namespace).collect(),
            ended,
        }
    }

    fn sound(&self) -> Soundness {
        soundness(&self.node, &self.pool)
    }

    /// Opening a node that nothing on it was told to leave: only what is a tenant's matters.
    fn tenants_only(&self, hold: &Hold) -> bool {
        self.bookings.is_empty() && matches!(hold, Hold::Closed { no_execute: false })
    }

    fn input(&self, context: &Context, pods: &[PodFacts], ended: &Ended) -> NodeInput {
        let hold = self.hold();
        let rights = self.rights(&hold, ended);
        let wanted = match self.bookings.first() {
            None => Wanted::Open,
            Some(booking) if booking.exclusive => {
                let namespace = context.namespace(&booking.reservation.namespace).and_then(|namespace| namespace.uid());
                // A namespace that cannot be seen for a moment must not cost its tenant the node.
                let current = match &hold {
                    Hold::Holder { holder, booking: of } if of.as_ref() == Some(&booking.id) => Some(holder.clone()),
                    _ => None,
                };
                Wanted::Held { holder: namespace.or(current).unwrap_or_default(), booking: booking.id.clone() }
            }
            Some(_) => Wanted::Shared { parts: self.parts() },
        };
        let mut there = ForeignPods::default();
        for pod in pods {
            let foreign = !rights.allows(context, &pod.namespace, &pod.uid);
            let owner_device = whose(context, &pod.namespace) == Whose::Owner
                && !pod.devices.is_empty()
                && !matches!(hold, Hold::Shared { .. });
            match (foreign, pod.deleting.is_some()) {
                (_, false) if owner_device => there.owner = true,
                (true, true) => there.leaving = true,
                (true, false) => there.running = true,
                (false, _) => {}
            }
        }
        // Who may land still in a part that ended must go as well.
        there.running |= ended.waiting().next().is_some();
        there.leaving |= ended.went_meanwhile(pods);
        let shared = matches!(hold, Hold::Shared { .. });
        let mut releasing = BTreeMap::new();
        if shared {
            releasing = assignments::releasing(context, &self.bookings, &self.node.name_any());
            let memory = context.node_memory();
            let node = NodeName::from(self.node.name_any());
            releasing.retain(|uid, _| !memory.gone.contains(&(node.clone(), Arc::clone(uid))));
        }
        let about = self.about(shared, ended, &releasing);
        let sound = self.sound();
        NodeInput {
            closed_for_ms: self.now_ms.saturating_sub(self.closed_since(context)),
            check: self.check(context, &rights, pods, &about),
            hold,
            wanted,
            pods: there,
            ready: sound.ready,
            cordoned: sound.cordoned,
            device_count_ok: sound.wrong_devices.is_none(),
            devices: u32::try_from(self.pool.spec.devices.per_node).unwrap_or(0),
            releasing: !releasing.is_empty(),
        }
    }

    /// Of what a question about a shared node is: parts that ended, and pods that went. An answer counts for nothing that came later.
    fn about(&self, shared: bool, ended: &Ended, releasing: &BTreeMap<Arc<str>, PodName>) -> About {
        if !shared {
            return About::new();
        }
        let mut about = ended.about();
        about.extend(releasing.iter().map(|(uid, name)| (Arc::clone(uid), Some(name.clone()))));
        about
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
    fn check(&self, context: &Context, rights: &Rights<'_>, pods: &[PodFacts], about: &About) -> Check {
        if !needs_check(&self.pool) {
            return Check::NotNeeded;
        }
        let asked = {
            let mut memory = context.node_memory();
            memory.about.insert(self.uid.clone(), about.clone());
            let same = |asked: &&Asked| asked.hold_since == self.hold_since() && asked.about == *about;
            memory.asked.get(&self.uid).filter(same).cloned()
        };
        let Some(asked) = asked else { return Check::NotAsked };
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
        let found = containers_left(context, &answer, rights, pods);
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
        let ids: Vec<&str> = self.bookings.iter().map(|booking| booking.id.as_str()).collect();
        let ids = ids.join(",");
        let id = (!ids.is_empty()).then_some(ids.as_str());
        let after = |ms: i64| Action::requeue(Duration::from_millis(u64::try_from(ms).unwrap_or(0).max(20)));
        match step {
            NodeStep::Nothing => {
                // A booking that lost its part of a shared node and has it again lost its labels meanwhile.
                if let Hold::Shared { set_up } = self.hold()
                    && !self.has_labels()
                {
                    return self.share(context, &set_up).await;
                }
                let told = self.say_handed_over(context, &self.bookings);
                Ok(Action::requeue(if told { Duration::from_secs(5) } else { RESYNC }))
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
            NodeStep::WriteShared(parts) => {
                // Those that were let in before are not kept waiting by those that come.
                self.say_handed_over(context, &self.set_up());
                self.share(context, &parts).await
            }
            NodeStep::Release => {
                // Those of which the agent was asked: who went since then is asked about next.
                let releasing = assignments::releasing(context, &self.bookings, &self.node.name_any());
                {
                    let mut memory = context.node_memory();
                    let about = memory.asked.get(&self.uid).map(|asked| asked.about.clone()).unwrap_or_default();
                    let asked = |uid: &Arc<str>| !needs_check(&self.pool) || about.contains_key(uid);
                    let node = NodeName::from(self.node.name_any());
                    memory.gone.extend(releasing.into_keys().filter(asked).map(|uid| (node.clone(), uid)));
                }
                for booking in &self.bookings {
                    context.queues.namespaces.push(&booking.reservation.namespace).await;
                }
                Ok(Action::requeue(RESYNC))
            }
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

    /// The bookings whose parts a shared node is set up for.
    fn set_up(&self) -> Vec<Arc<Booking>> {
        let Hold::Shared { set_up } = self.hold() else { return Vec::new() };
        let wanted = self.parts();
        let there =
            |booking: &&Arc<Booking>| set_up.iter().any(|part| part.booking == booking.id && wanted.contains(part));
        self.bookings.iter().filter(there).cloned().collect()
    }

    /// Whether all bookings that have parts of it have their labels on it.
    fn has_labels(&self) -> bool {
        let labels = self.node.labels();
        self.bookings.iter().all(|booking| {
            let ReservationRef { namespace, name, .. } = &booking.reservation;
            labels.contains_key(&hold_label(namespace)) && labels.contains_key(&reservation_hold_label(namespace, name))
        })
    }

    /// Tells the engine that the node is these bookings', of whose segments it does not know so.
    fn say_handed_over(&self, context: &Context, bookings: &[Arc<Booking>]) -> bool {
        let waits = |booking: &&Arc<Booking>| {
            let mut open = booking.segments.iter().filter(|segment| segment.uid == self.uid && segment.to.is_none());
            open.any(|segment| segment.from.is_none())
        };
        let mut told = false;
        for booking in bookings.iter().filter(waits) {
            context.tell(Message::HandedOver { booking: booking.id.clone(), node: self.uid.clone() });
            told = true;
        }
        told
    }

    fn give_up(&self, context: &Context, why: &str) {
        for booking in &self.bookings {
            tracing::info!(node = %self.node.name_any(), booking = %booking.id, why, "the booking takes another node");
            context.tell(Message::GiveUp { booking: booking.id.clone(), node: self.uid.clone() });
        }
    }

    async fn hand_over(&self, context: &Context) -> Result<Action, Error> {
        let Some(booking) = self.bookings.first() else { return Ok(Action::await_change()) };
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

    /// Sets a shared node up for these parts. Those that ended and are still among them keep their room, and lose their labels.
    async fn share(&self, context: &Context, parts: &[Part]) -> Result<Action, Error> {
        let mut holders: Vec<(&str, &str)> = Vec::new();
        for booking in self.bookings.iter().filter(|booking| parts.iter().any(|part| part.booking == booking.id)) {
            let namespace = &booking.reservation.namespace;
            let Some(found) = context.namespace(namespace) else { return Ok(Action::requeue(Duration::from_secs(1))) };
            // Without the label no pod of the namespace could land: the tenant controller is about to write it.
            if found.labels().get(spillway_crds::names::HOLDER_LABEL) != found.uid().as_ref() {
                return Ok(Action::requeue(Duration::from_millis(500)));
            }
            holders.push((namespace, &booking.reservation.name));
        }
        kill::point("node.before-share");
        let done = self.writer().write(context, &Target::Shared { parts, holders: &holders }).await;
        kill::point("node.after-share");
        done
    }

    /// Asks every foreign pod to go, with a grace that the cap bounds. The first grace that a kubelet is given is final, so a pod is asked once.
    async fn drain(&self, context: &Context) -> Result<(), Error> {
        let name = self.node.name_any();
        let mut ended = self.ended(context, &context.view());
        ended.read_again(context).await?;
        let rights = self.rights(&self.hold(), &ended);
        let mut going: Vec<PodFacts> = pods_now(context, &name)
            .await?
            .into_iter()
            .filter(|pod| pod.deleting.is_none() && !rights.allows(context, &pod.namespace, &pod.uid))
            .collect();
        going.extend(ended.waiting().cloned());
        if going.is_empty() {
            return Ok(());
        }
        // Who came by right since the node was looked at came after another write of it.
        let api: Api<Node> = Api::all(context.client.clone());
        let now = call("reading a node that is emptied", api.get_opt(&name)).await?;
        let same = |now: &Node| {
            now.uid() == self.node.uid()
                && read_hold(now) == self.hold()
                && hold::hold_since(now) == hold::hold_since(&self.node)
        };
        if !now.is_some_and(|now| same(&now)) {
            return Ok(());
        }
        self.writer().permitted(context, "emptying a node").await?;
        stream::iter(going)
            .map(|pod| async move { context.end_pod(&pod, "deleting a pod of a node that is emptied").await.map(drop) })
            .buffer_unordered(8)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(())
    }

    /// Fails unless the pods of which the agent is asked next are gone from the API server: it would answer that nothing of them is left before
    /// they land.
    async fn are_gone(&self, context: &Context) -> Result<(), Error> {
        let about = context.node_memory().about.get(&self.uid).cloned().unwrap_or_default();
        for (uid, (namespace, pod)) in about.into_iter().filter_map(|(uid, name)| Some((uid, name?))) {
            if read_pod(context, &namespace, &pod, &uid).await?.is_some() {
                let expected = context.view().generation;
                return Err(Error::Fenced { action: "asking about a pod that is there", expected, found: expected });
            }
        }
        Ok(())
    }

    /// Asks the agent of the node which containers it has.
    async fn ask(&self, context: &Context) -> Result<(), Error> {
        let name = self.node.name_any();
        self.are_gone(context).await?;
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
            let about = memory.about.get(&self.uid).cloned().unwrap_or_default();
            let first = memory
                .asked
                .get(&self.uid)
                .filter(|asked| asked.hold_since == hold_since && asked.about == about)
                .map_or(now_ms, |asked| asked.first);
            memory.asked.insert(self.uid.clone(), Asked { id: id.clone(), hold_since, about, at: now_ms, first });
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
    bookings: &'a [Arc<Booking>],
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
        if matches!(target, Target::Unsold | Target::Holder { .. } | Target::Shared { .. }) {
            context.node_memory().asked.remove(self.uid);
        }
        // The write comes back by the watch, with the resourceVersion that the next step needs.
        Ok(Action::requeue(Duration::from_secs(5)))
    }

    /// The generation on which a write may stand: the root is read after the node was, and what it wants of the node is what was decided on.
    async fn permitted(&self, context: &Context, action: &'static str) -> Result<i64, Error> {
        let view = context.settled(action, self.gaps).await?;
        let same = view.bookings_on(self.uid).map(|booking| &booking.id).eq(self.bookings.iter().map(|one| &one.id));
        let found = view.generation;
        if same { Ok(found) } else { Err(Error::Fenced { action, expected: found, found }) }
    }
}

/// Containers that must be gone and are not, for people.
fn containers_left(context: &Context, answer: &CheckResult, rights: &Rights<'_>, pods: &[PodFacts]) -> Vec<String> {
    if let Some(error) = &answer.error {
        return vec![format!("the agent could not ask the container runtime: {error}")];
    }
    let mut left: Vec<String> = answer
        .containers
        .iter()
        .filter(|container| {
            // Where others may stay, a container whose pod is gone is nobody's.
            let orphan =
                rights.sharers.contains(&*container.namespace) && pods.iter().all(|pod| *pod.uid != *container.pod_uid);
            orphan || !rights.allows(context, &container.namespace, &container.pod_uid)
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
