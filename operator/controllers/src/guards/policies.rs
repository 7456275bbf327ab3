//! Guards the policies: what is missing or differs from the release's copy is written back within a second, or nothing is sold.
//!
//! Must not: write before it has read the copy and the operator's Deployment from the API server. Without either the release is being uninstalled,
//! and an upgrade that is under way has changed the copy first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{
        WatchStreamExt,
        events::EventType,
        watcher::{self, Event},
    },
};
use serde_json::{Value, json};
use spillway_crds::{
    GpuPool,
    names::{FIELD_MANAGER, OPERATOR_DEPLOYMENT, POLICIES_CONFIGMAP},
};
use spillway_manifests::{
    observe::{Stance, stance},
    policies::{Fault, Key, Kind, PolicyCopy, compare, owned_alone, read_copy, replacement, wanted},
};

use super::{Doubt, change, state, subject};
use crate::{
    context::Context,
    error::{Error, call},
};

/// Only what the chart labels is watched: a cluster may have many policies. One that loses the label counts as deleted.
const SELECTOR: &str = "app.kubernetes.io/name=spillway";
/// An uninstall deletes policies and copy within moments of each other: it is given a moment to be seen as one.
const PATIENCE: Duration = Duration::from_millis(250);
/// A sale that is under way when the last pool begins to observe is in the ledger by then, and keeps the policies in force.
const SALE_BOUND: Duration = Duration::from_secs(3);
/// How often all is compared while nothing happens.
const RESYNC: Duration = Duration::from_secs(60);
/// First and longest wait after a restore that failed.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// What the watches bring.
enum Seen {
    Policy(Kind, Event<DynamicObject>),
    Copy(Event<ConfigMap>),
    Trouble,
}

/// Guards for ever.
pub(super) async fn run(context: Arc<Context>) {
    let mut watches = Box::pin(watch_all(&context));
    let mut view = context.view.clone();
    let mut guard = Guard::new(context);
    let mut wait = Duration::ZERO;
    loop {
        tokio::select! {
            seen = watches.next() => match seen {
                Some(seen) => guard.take(seen).await,
                None => return,
            },
            // Modes and bookings: the engine publishes what it saw of both.
            changed = view.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wait) => guard.due = true,
        }
        wait = match guard.look().await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::warn!(%error, "the policies could not be looked at; it is tried again");
                guard.due = true;
                RETRY.0
            }
        };
    }
}

fn resource(kind: Kind) -> ApiResource {
    let gvk = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind.kind());
    ApiResource::from_gvk_with_plural(&gvk, kind.plural())
}

fn watch_all(context: &Context) -> impl futures::Stream<Item = Seen> + use<> {
    let trouble = |kind: &str, error: &watcher::Error| {
        tracing::warn!(kind, %error, "a watch failed; it is tried again");
        Seen::Trouble
    };
    let policies = Kind::ALL.into_iter().map(|kind| {
        let api: Api<DynamicObject> = Api::all_with(context.client.clone(), &resource(kind));
        let events = watcher::watcher(api, watcher::Config::default().labels(SELECTOR)).default_backoff();
        let seen = events.map(move |event| match event {
            Ok(event) => Seen::Policy(kind, event),
            Err(error) => trouble(kind.kind(), &error),
        });
        seen.boxed()
    });
    let named = watcher::Config::default().fields(&format!("metadata.name={POLICIES_CONFIGMAP}"));
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &context.config.namespace);
    let copy = watcher::watcher(api, named).default_backoff().map(move |event| match event {
        Ok(event) => Seen::Copy(event),
        Err(error) => trouble("ConfigMap", &error),
    });
    stream::select_all(policies.chain([copy.boxed()]))
}

struct Guard {
    context: Arc<Context>,
    live: BTreeMap<Key, Value>,
    relist: BTreeMap<Key, Value>,
    listed: BTreeSet<Kind>,
    copy_listed: bool,
    copy: Option<ConfigMap>,
    copy_relist: Option<ConfigMap>,
    /// What the API server makes of each object that was wanted.
    complete: BTreeMap<Key, (Value, Value)>,
    stance_since: Instant,
    stance_known: bool,
    /// Something may be other than at the last look.
    due: bool,
    failures: u32,
    not_before: Instant,
}

impl Guard {
    fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            live: BTreeMap::new(),
            relist: BTreeMap::new(),
            listed: BTreeSet::new(),
            copy_listed: false,
            copy: None,
            copy_relist: None,
            complete: BTreeMap::new(),
            stance_since: Instant::now(),
            stance_known: false,
            due: true,
            failures: 0,
            not_before: Instant::now(),
        }
    }

    /// Takes in what a watch brought. What changes a policy makes the last self-test worthless.
    async fn take(&mut self, seen: Seen) {
        self.due = true;
        match seen {
            Seen::Trouble => {}
            Seen::Copy(Event::Init) => self.copy_relist = None,
            Seen::Copy(Event::InitApply(copy)) => self.copy_relist = Some(copy),
            Seen::Copy(Event::InitDone) => (self.copy, self.copy_listed) = (self.copy_relist.take(), true),
            Seen::Copy(Event::Apply(copy)) => self.copy = Some(copy),
            Seen::Copy(Event::Delete(_)) => self.copy = None,
            Seen::Policy(kind, event) => match event {
                Event::Init => self.relist.retain(|key, _| key.kind != kind),
                Event::InitApply(object) => drop(insert(&mut self.relist, kind, &object)),
                Event::InitDone => {
                    let fresh: BTreeMap<Key, Value> = self.relist.extract_if(.., |key, _| key.kind == kind).collect();
                    let before: BTreeMap<Key, Value> = self.live.extract_if(.., |key, _| key.kind == kind).collect();
                    let known = self.listed.contains(&kind);
                    let same = fresh.len() == before.len()
                        && fresh.iter().all(|(key, object)| before.get(key).map(spec) == Some(spec(object)));
                    self.live.extend(fresh);
                    self.listed.insert(kind);
                    if known && !same {
                        self.mark_changed().await;
                    }
                }
                Event::Apply(object) => {
                    let key = Key { kind, name: object.name_any() };
                    let before = insert(&mut self.live, kind, &object);
                    if before.as_ref().map(spec) != self.live.get(&key).map(spec) {
                        self.mark_changed().await;
                    }
                }
                Event::Delete(object) => {
                    self.live.remove(&Key { kind, name: object.name_any() });
                    self.mark_changed().await;
                }
            },
        }
    }

    async fn mark_changed(&self) {
        self.context.guards.mark_changed();
        change(&self.context, |state| state.tested = Some(state::pending())).await;
    }

    async fn doubt(&self, doubt: Option<Doubt>) {
        change(&self.context, |state| state.policies = doubt).await;
    }

    /// Compares, and restores. Gives the time to the next look.
    async fn look(&mut self) -> Result<Duration, Error> {
        let Some(stance) = self.stance() else { return Ok(Duration::from_millis(200)) };
        if !self.stance_known || self.context.guards.state().stance != stance {
            tracing::info!(?stance, "whether the policies act");
            // What the policies do, not only which pools ask for it, is what takes a moment to change.
            let acts = |stance: &Stance| *stance != Stance::Observe;
            let turned = acts(&self.context.guards.state().stance) != acts(&stance);
            if turned {
                self.stance_since = Instant::now();
            }
            self.stance_known = true;
            self.due = true;
            change(&self.context, |state| {
                state.stance = stance.clone();
                if turned {
                    state.policies = Some(state::changing());
                    state.tested = Some(state::pending());
                }
            })
            .await;
        }
        let observing = stance == Stance::Observe;
        if observing && let Some(left) = SALE_BOUND.checked_sub(self.stance_since.elapsed()) {
            return Ok(left.max(Duration::from_millis(10)));
        }
        if self.listed.len() < Kind::ALL.len() || !self.copy_listed || !self.due {
            return Ok(RESYNC);
        }
        self.due = false;
        let copy = match self.copy.as_ref().map(read_copy) {
            None => {
                self.doubt(Some(state::no_copy(&format!("ConfigMap {POLICIES_CONFIGMAP} is missing")))).await;
                return Ok(RESYNC);
            }
            Some(Err(error)) => {
                self.doubt(Some(state::no_copy(&error.to_string()))).await;
                return Ok(RESYNC);
            }
            Some(Ok(copy)) => copy,
        };
        if !copy.enforced {
            self.doubt(Some(state::not_enforced())).await;
            return Ok(RESYNC);
        }
        let wanted = wanted(&copy, observing);
        self.complete(&wanted).await;
        let complete = self.complete.iter().map(|(key, (_, complete))| (key.clone(), complete.clone())).collect();
        let faults = compare(&copy, &wanted, &complete, &self.live);
        let wrong = faults.values().filter(|fault| **fault != Fault::Unknown).count();
        self.context.metrics.policies_wrong.set(i64::try_from(wrong).unwrap_or(i64::MAX));
        if faults.is_empty() {
            self.failures = 0;
            self.doubt(None).await;
            return Ok(RESYNC);
        }
        if wrong == 0 {
            self.due = true;
            return Ok(Duration::from_millis(500));
        }
        self.restore(&copy, &wanted, &faults, observing).await
    }

    /// Whether the policies are to act; none while the ledger is not known. With a ledger that cannot be read nothing changes.
    fn stance(&self) -> Option<Stance> {
        let view = self.context.view();
        let Some(ledger) = view.ledger.as_ref() else {
            return view.blocked.as_ref().map(|_| self.context.guards.state().stance);
        };
        let pools = self.context.stores.pools.state();
        let modes: Vec<(String, _)> = pools.iter().map(|pool| (pool.name_any(), pool.spec.mode)).collect();
        Some(stance(modes.iter().map(|(name, mode)| (name.as_str(), *mode)), ledger.len()))
    }

    /// Asks the API server what it would make of each wanted object that is there and that was not asked about before.
    async fn complete(&mut self, wanted: &BTreeMap<Key, Value>) {
        self.complete.retain(|key, (asked, _)| wanted.get(key) == Some(asked));
        let ask: Vec<(Key, Value, Value)> = wanted
            .iter()
            .filter(|(key, _)| !self.complete.contains_key(*key))
            .filter_map(|(key, want)| Some((key.clone(), want.clone(), replacement(want, self.live.get(key)?))))
            .collect();
        let asked = ask.into_iter().map(|(key, want, object)| {
            let context = Arc::clone(&self.context);
            async move {
                let answer = replace(&context, &key, object, true).await;
                (key, want, answer)
            }
        });
        let answers = stream::iter(asked.collect::<Vec<_>>()).buffer_unordered(8).collect::<Vec<_>>().await;
        for (key, want, answer) in answers {
            match answer {
                Ok(complete) => drop(self.complete.insert(key, (want, complete))),
                // It changed meanwhile: the watch brings it, and it is asked again.
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => tracing::warn!(policy = %key, %error, "the API server could not be asked about a policy"),
            }
        }
    }

    /// Writes back what is wrong, unless the release is going or there is a newer copy.
    async fn restore(
        &mut self,
        copy: &PolicyCopy,
        wanted: &BTreeMap<Key, Value>,
        faults: &BTreeMap<Key, Fault>,
        observing: bool,
    ) -> Result<Duration, Error> {
        let what: Vec<String> = faults.iter().map(|(key, fault)| format!("{key} {}", fault.word())).collect();
        if self.failures == 0
            && self.context.guards.state().policies.as_ref().is_none_or(|doubt| *doubt != state::changing())
        {
            self.doubt(Some(state::wrong(&what, None))).await;
        }
        if let Some(left) = self.not_before.checked_duration_since(Instant::now()) {
            self.due = true;
            return Ok(left.max(Duration::from_millis(10)));
        }
        let gaps = self.context.pulse.gaps();
        tokio::time::sleep(PATIENCE).await;
        if let Some(gone) = self.release_is_going().await? {
            self.doubt(Some(state::uninstalling(gone))).await;
            self.due = true;
            return Ok(Duration::from_secs(5));
        }
        let fresh = self.copy.as_ref().map(read_copy);
        if fresh.as_ref().and_then(|fresh| fresh.as_ref().ok()) != Some(copy) {
            self.due = true;
            return Ok(Duration::ZERO);
        }
        if self.context.pulse.gaps() != gaps || (observing && !self.still_observing().await?) {
            self.due = true;
            return Ok(Duration::from_secs(1));
        }
        self.context.guards.mark_changed();
        change(&self.context, |state| state.tested = Some(state::pending())).await;
        let mut failed = Vec::new();
        // Policies before their bindings, and what changes pods before what refuses unchanged ones.
        let order = |key: &Key| Kind::ALL.iter().position(|kind| *kind == key.kind);
        let mut sorted: Vec<(&Key, &Fault)> = faults.iter().collect();
        sorted.sort_by_key(|(key, _)| order(key));
        for (key, fault) in sorted {
            match self.write(copy, wanted, key, *fault).await {
                Ok(()) => self.tell(key, *fault, observing).await,
                Err(error) if error.is_conflict() => {}
                Err(error) => {
                    tracing::error!(policy = %key, fault = fault.word(), %error, "a policy could not be restored");
                    failed.push(format!("{key}: {error}"));
                }
            }
        }
        self.due = true;
        if failed.is_empty() {
            self.failures = 0;
            return Ok(Duration::from_millis(50));
        }
        self.failures = (self.failures + 1).min(8);
        let wait = (RETRY.0 * 2_u32.saturating_pow(self.failures - 1)).min(RETRY.1);
        self.not_before = Instant::now() + wait;
        self.doubt(Some(state::wrong(&what, failed.first().map(String::as_str)))).await;
        Ok(wait)
    }

    /// Reads the copy and the operator's Deployment from the API server; gives which of them is gone or going.
    async fn release_is_going(&mut self) -> Result<Option<&'static str>, Error> {
        let namespace = &self.context.config.namespace;
        let copies: Api<ConfigMap> = Api::namespaced(self.context.client.clone(), namespace);
        let copy = call("reading the copy of the policies", copies.get_opt(POLICIES_CONFIGMAP)).await?;
        if copy.as_ref().is_none_or(|copy| copy.metadata.deletion_timestamp.is_some()) {
            return Ok(Some("ConfigMap spillway-policies"));
        }
        self.copy = copy;
        let deployments: Api<Deployment> = Api::namespaced(self.context.client.clone(), namespace);
        let found = call("reading the operator's Deployment", deployments.get_opt(OPERATOR_DEPLOYMENT)).await?;
        let going = found.is_none_or(|found| found.metadata.deletion_timestamp.is_some());
        Ok(going.then_some("Deployment spillway-operator"))
    }

    /// A leader that was paused must not put policies out of force which another one has put in force since.
    async fn still_observing(&self) -> Result<bool, Error> {
        let api: Api<GpuPool> = Api::all(self.context.client.clone());
        let pools = call("listing pools", api.list(&ListParams::default())).await?;
        let modes: Vec<(String, _)> = pools.items.iter().map(|pool| (pool.name_any(), pool.spec.mode)).collect();
        let view = self.context.view();
        let bookings = view.ledger.as_ref().map_or(1, |ledger| ledger.len());
        let now = stance(modes.iter().map(|(name, mode)| (name.as_str(), *mode)), bookings);
        Ok(now == Stance::Observe && self.context.fence.generation().await? == view.generation)
    }

    /// Writes one: a replacement, an apply in the name of who wrote the copy, which gives that one its fields, and a note that they are nobody
    /// else's. Otherwise the next upgrade that changes one of them would meet a conflict.
    async fn write(
        &mut self,
        copy: &PolicyCopy,
        wanted: &BTreeMap<Key, Value>,
        key: &Key,
        fault: Fault,
    ) -> Result<(), Error> {
        let api: Api<DynamicObject> = Api::all_with(self.context.client.clone(), &resource(key.kind));
        let Some(want) = wanted.get(key) else {
            if fault == Fault::Surplus {
                let uid = self.live.get(key).and_then(|live| live.pointer("/metadata/uid")).and_then(Value::as_str);
                let preconditions = Some(Preconditions { uid: uid.map(str::to_owned), resource_version: None });
                let params = DeleteParams { preconditions, ..DeleteParams::default() };
                match call("taking a policy out of force", api.delete(&key.name, &params)).await {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => drop(self.live.remove(key)),
                }
            }
            return Ok(());
        };
        // An apply leaves what others added, and merges lists that are sets into what no API server takes: what is there is replaced first.
        if self.live.contains_key(key) {
            let found = call("reading a policy", api.get_opt(&key.name)).await?;
            if let Some(found) = found {
                replace(&self.context, key, replacement(want, &json!(found)), false).await?;
            }
        }
        let params = PatchParams::apply(&copy.manager).force();
        let mut have = json!(call("restoring a policy", api.patch(&key.name, &params, &Patch::Apply(want))).await?);
        if let Some(object) = owned_alone(&have, &copy.manager) {
            have = replace(&self.context, key, object, false).await?;
        }
        self.complete.insert(key.clone(), (want.clone(), have.clone()));
        self.live.insert(key.clone(), have);
        Ok(())
    }

    async fn tell(&self, key: &Key, fault: Fault, observing: bool) {
        self.context.metrics.policies_restored.inc();
        let note = match (fault, observing) {
            (Fault::Surplus, _) => format!("{key} was taken out of force: all pools observe."),
            (_, true) => format!("{key} {} and was written as it is to be while all pools observe.", fault.word()),
            (_, false) => format!("{key} {} and was restored.", fault.word()),
        };
        tracing::warn!(policy = %key, note, "a policy was written");
        self.context.event(&subject(&self.context), EventType::Warning, "PolicyRestored", &note, "Restore").await;
    }
}

/// Replaces an object, or asks what would become of it.
async fn replace(context: &Context, key: &Key, object: Value, dry_run: bool) -> Result<Value, Error> {
    let api: Api<DynamicObject> = Api::all_with(context.client.clone(), &resource(key.kind));
    let object: DynamicObject = serde_json::from_value(object)
        .map_err(|error| Error::Api { action: "reading a policy", source: Box::new(kube::Error::SerdeError(error)) })?;
    let params = PostParams { dry_run, field_manager: Some(FIELD_MANAGER.to_owned()) };
    Ok(json!(call("replacing a policy", api.replace(&key.name, &params, &object)).await?))
}

fn insert(into: &mut BTreeMap<Key, Value>, kind: Kind, object: &DynamicObject) -> Option<Value> {
    into.insert(Key { kind, name: object.name_any() }, json!(object))
}

fn spec(object: &Value) -> Option<&Value> {
    object.get("spec")
}
