//! The guards: they watch the hold itself, and while they doubt it nothing new is sold (docs/ARCHITECTURE.md, "The guards").
//!
//! Each runs as a task of the leader and writes its part of one [`State`]; the engine and the controllers read that, and nothing else of the guards.

use std::{sync::Arc, time::Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{ResourceExt, runtime::controller::Action};
use spillway_crds::{
    Mode,
    names::{POLICIES_CONFIGMAP, POOL_LABEL},
};
use spillway_manifests::{conditions::bounded, observe::speak};
use spillway_planner::{Outcome, Plan, Pool, Snapshot};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use crate::{context::Context, error::Error};

pub mod audit;
mod observe;
mod policies;
mod selftest;
pub mod state;

pub use state::{Doubt, State};

/// A node that must not be written now is looked at again after so long; when the doubt ends it is looked at at once.
const HELD_OFF: std::time::Duration = std::time::Duration::from_secs(5);

/// What the guards share with everybody else.
#[derive(Debug)]
pub struct Guards {
    state: watch::Sender<State>,
    /// When a policy was last seen to change.
    changed: watch::Sender<Option<Instant>>,
    /// Nodes to audit.
    pub audit: audit::Dirty,
    wake: Arc<Notify>,
}

impl Guards {
    /// Guards that know nothing yet, and so doubt. `wake` wakes the engine.
    pub fn new(wake: Arc<Notify>) -> Self {
        Self {
            state: watch::Sender::new(State::default()),
            changed: watch::Sender::new(None),
            audit: audit::Dirty::default(),
            wake,
        }
    }

    /// What they found.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Whether nodes may be written and pods deleted: nothing is in doubt, and not all pools observe.
    pub fn allow_writes(&self) -> bool {
        let state = self.state.borrow();
        state.doubt().is_none() && !state.observes()
    }

    /// A policy was seen to change, or will be by a write of ours: what was tested before counts no more.
    fn mark_changed(&self) {
        self.changed.send_replace(Some(Instant::now()));
    }
}

/// Starts the guards.
pub fn start(context: &Arc<Context>, tasks: &mut JoinSet<Result<(), Error>>) {
    let (one, two, three) = (Arc::clone(context), Arc::clone(context), Arc::clone(context));
    tasks.spawn(async move {
        policies::run(one).await;
        Err(Error::TaskEnded("guard of the policies"))
    });
    tasks.spawn(async move {
        selftest::run(two).await;
        Err(Error::TaskEnded("self-test"))
    });
    tasks.spawn(async move {
        audit::run(three).await;
        Err(Error::TaskEnded("audit"))
    });
}

/// Changes the state, and lets everybody look again whom the change concerns.
async fn change(context: &Context, with: impl FnOnce(&mut State)) {
    let before = context.guards.state();
    let changed = context.guards.state.send_if_modified(|state| {
        with(state);
        if before.doubt().is_none() && state.doubt().is_some() {
            state.since = Instant::now();
        }
        *state != before
    });
    if !changed {
        return;
    }
    let now = context.guards.state();
    let metrics = &context.metrics;
    metrics.doubt.set(i64::from(now.doubt().is_some()));
    metrics.observing.set(i64::from(now.observes()));
    if before.doubt() != now.doubt() {
        match now.doubt() {
            Some((reason, message)) => tracing::warn!(reason, message, "nothing new is sold"),
            None => tracing::info!("nothing is in doubt any more"),
        }
    }
    context.guards.wake.notify_one();
    for pool in context.stores.pools.state() {
        context.queues.pools.push(&pool.name_any()).await;
    }
    let freed = before.doubt().is_some() && now.doubt().is_none();
    if freed || before.stance != now.stance {
        context.guards.audit.all();
        for node in context.stores.nodes.state().iter().filter(|node| node.labels().contains_key(POOL_LABEL)) {
            context.queues.nodes.push(&node.name_any()).await;
        }
        for tenant in context.stores.tenants.state() {
            context.queues.tenants.push(&tenant.name_any()).await;
        }
    }
}

/// The object on which the guards write their Events.
fn subject(context: &Context) -> ConfigMap {
    let mut subject = ConfigMap::default();
    subject.metadata.name = Some(POLICIES_CONFIGMAP.to_owned());
    subject.metadata.namespace = Some(context.config.namespace.clone());
    subject
}

/// Before a plan: pools from which nothing may be sold say so, and while all observe nodes count as if they were open.
pub fn shape(context: &Context, state: &State, snapshot: &mut Snapshot) {
    if state.observes() {
        observe::open_nodes(context, snapshot);
    } else {
        shape_pools(context, state, &mut snapshot.pools);
    }
}

/// Pools from which nothing may be sold say so, while not all observe.
pub fn shape_pools(context: &Context, state: &State, pools: &mut [Pool]) {
    let objects = context.stores.pools.state();
    let observing = |name: &str| objects.iter().any(|pool| pool.name_any() == name && pool.spec.mode == Mode::Observe);
    for pool in pools {
        if let Some((reason, message)) = state.told() {
            pool.not_selling = Some(bounded(&format!("{reason}, {message}"), 180));
        } else if observing(pool.name.as_str()) {
            pool.not_selling = Some(format!("pool {} has mode: Observe", pool.name));
        }
    }
}

/// After a plan: while all observe (`observed`: on what it was made then) it only says what it would do; while something is in doubt, or has come to
/// be since the plan was begun, it books nothing and refuses nothing for good on that account.
pub fn temper(context: &Context, begun: &State, observed: Option<&Snapshot>, plan: &mut Plan) {
    if let Some(snapshot) = observed {
        speak(plan, snapshot);
    }
    let now = context.guards.state();
    if begun.doubt().is_some() || now.doubt().is_some() || now.stance != begun.stance {
        plan.bookings.clear();
        plan.outcomes.retain(|(_, outcome)| match outcome {
            Outcome::Waitlisted(_) => true,
            Outcome::Rejected(reason) => reason.code != state::NOT_NOW,
            Outcome::Expired(_) => false,
        });
    }
}

/// What to do with a node instead of what the ledger wants of it, if that is not to be done now.
///
/// # Errors
/// When the API server cannot be told.
pub async fn hold_off(context: &Context, node: &Node) -> Result<Option<Action>, Error> {
    let state = context.guards.state();
    if state.observes() {
        return observe::release(context, &state, node).await.map(Some);
    }
    Ok(state.doubt().is_some().then(|| Action::requeue(HELD_OFF)))
}
