//! Puts the parts together: election, watches, engine, controllers.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        controller::{self, Action},
        events::{Recorder, Reporter},
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use spillway_crds::{ApiKey, GpuNode, GpuPool, GpuReservation, Model, ModelEndpoint, Tenant, names::POOL_LABEL};
use spillway_manifests::hold;
use spillway_planner::{Booking, BookingId};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};

use crate::{
    apikeys, archive, assignments,
    backlog::Backlog,
    canaries,
    changes::{Changed, Sharing},
    config::{Config, MAX_GAP},
    context::{Context, NodeMemory, Queues, Stores, Throttle},
    endpoints,
    engine::Engine,
    error::Error,
    external::{self, Registration},
    fence::{Fence, Pulse},
    gateways::Gateways,
    guards::{self, Guards},
    hosted::Hosted,
    http, identities, leader,
    metrics::Metrics,
    models, nodes,
    pods::{self, PodIndex},
    pools, reservations, scaling, snapshot, tenants,
    view::View,
    watches::{self, Queue, Synced, object, slim, slim_node, watch},
    written::Written,
};

/// Runs the operator until it leads no more, or a part of it fails. It is then started again by who started it: nothing is true only in memory.
///
/// # Errors
/// When a part fails.
pub async fn run(client: Client, config: Config, mut shutdown: watch::Receiver<bool>) -> Result<(), Error> {
    let metrics = Arc::new(Metrics::default());
    let ready = Arc::new(AtomicBool::new(false));
    let mut tasks: JoinSet<Result<(), Error>> = JoinSet::new();
    tasks.spawn(http::serve(config.http, Arc::clone(&metrics), Arc::clone(&ready)));
    // Load is known to all replicas: each of them may be asked for metrics.
    let gateways = Arc::new(Gateways::default());
    let following = Arc::clone(&gateways).follow(client.clone(), config.namespace.clone());
    tasks.spawn(async move {
        following.await;
        Err(Error::TaskEnded("gateways"))
    });
    if let Some(address) = config.metrics_api {
        tasks.spawn(external::serve(client.clone(), config.namespace.clone(), address, Arc::clone(&gateways)));
    }
    let (mut leading, election) = leader::campaign(client.clone(), &config).await?;
    tasks.spawn(async move { election.await.unwrap_or(Err(Error::TaskEnded("lease"))) });
    ready.store(true, Ordering::Release);
    tracing::info!(identity = config.identity, "waiting for the lease");
    tokio::select! {
        result = leader::wait_until_leading(&mut leading) => result?,
        _ = shutdown.changed() => return Ok(()),
        Some(ended) = tasks.join_next() => return ended.unwrap_or(Err(Error::TaskEnded("a task"))),
    }
    tracing::info!("this process leads");
    metrics.leader.set(1);
    start(client, config, metrics, gateways, &mut tasks);
    tokio::select! {
        () = leader::wait_until_deposed(&mut leading) => {
            tracing::warn!("another process leads: this one ends");
            Ok(())
        }
        _ = shutdown.changed() => {
            tracing::info!("asked to end");
            Ok(())
        }
        Some(ended) = tasks.join_next() => ended.unwrap_or(Err(Error::TaskEnded("a task"))),
    }
}

/// Starts watches, engine and controllers.
fn start(
    client: Client,
    config: Config,
    metrics: Arc<Metrics>,
    gateways: Arc<Gateways>,
    tasks: &mut JoinSet<Result<(), Error>>,
) {
    let wake = Arc::new(Notify::new());
    let (node_queue, node_stream) = Queue::<Node>::new();
    let (reservation_queue, reservation_stream) = Queue::<GpuReservation>::new();
    let (pool_queue, pool_stream) = Queue::<GpuPool>::new();
    let (tenant_queue, tenant_stream) = Queue::<Tenant>::new();
    let (namespace_queue, namespace_stream) = Queue::<NamespaceMeta>::new();
    let queues = Queues {
        nodes: node_queue,
        reservations: reservation_queue,
        pools: pool_queue,
        tenants: tenant_queue,
        namespaces: namespace_queue,
    };
    let (model_queue, model_stream) = Queue::<Model>::new();
    let (endpoint_queue, endpoint_stream) = Queue::<ModelEndpoint>::new();
    let (key_queue, key_stream) = Queue::<ApiKey>::new();
    let (register, registration) = watch::channel(Registration::default());
    let (hosted, hosted_feeds) =
        Hosted::watch(&client, &config.namespace, model_queue, endpoint_queue, &key_queue, registration);
    let (publish, view) = watch::channel(Arc::new(View::default()));
    let pods = Arc::new(PodIndex::default());
    let synced = Synced::default();
    let guards = Arc::new(Guards::new(Arc::clone(&wake)));
    let changed = Arc::new(Changed::default());
    let (backlog, orders) = Backlog::new();
    let sharing = Arc::new(Sharing::default());
    let (stores, feeds) =
        watch_all(&client, &config, &queues, &wake, &changed, &sharing, &pods, &view, &guards, &hosted, &synced);
    // Capacity is sold whether models are hosted or not: only these lists are waited for.
    let watches = feeds.len();
    for feed in feeds.into_iter().chain(hosted_feeds) {
        tasks.spawn(async move {
            feed.await;
            Err(Error::TaskEnded("watch"))
        });
    }
    let (engine_sender, messages) = mpsc::channel(4096);
    let pulse = Arc::new(Pulse::default());
    let reporter = Reporter { controller: "spillway-operator".to_owned(), instance: Some(config.identity.clone()) };
    let context = Arc::new(Context {
        fence: Fence::new(client.clone()),
        recorder: Recorder::new(client.clone(), reporter),
        client,
        config,
        hosted,
        stores,
        pods,
        queues,
        view,
        changed,
        engine: engine_sender,
        pulse: Arc::clone(&pulse),
        metrics,
        guards,
        nodes: std::sync::Mutex::new(NodeMemory::default()),
        waiting: std::sync::Mutex::default(),
        pod_events: Throttle::new(assignments::EVENTS),
        wording: Throttle::new(reservations::WORDING),
        statements: Throttle::new(pools::STATEMENTS),
        tenancies: Throttle::new(tenants::TENANCIES),
        written: Written::default(),
        backlog,
        sharing,
    });
    tasks.spawn(async move {
        pulse.beat(MAX_GAP).await;
        Ok(())
    });
    guards::start(&context, tasks);
    let mut engine = Engine::new(Arc::clone(&context), publish, wake, messages);
    tasks.spawn(async move {
        // Deciding on half of the cluster would sell what is sold: the engine waits for the first list of everything.
        tokio::join!(synced.wait(watches), engine.preload());
        engine.run().await;
        Err(Error::TaskEnded("engine"))
    });
    let Stores {
        nodes: node_store,
        reservations: reservation_store,
        pools: pool_store,
        tenants: tenant_store,
        namespaces: namespace_store,
        ..
    } = context.stores.clone();
    let telling = reservations::tell(Arc::clone(&context), orders);
    tasks.spawn(async move {
        telling.await;
        Err(Error::TaskEnded("telling"))
    });
    control("nodes", &context, node_store, node_stream, 8, nodes::reconcile, tasks);
    control("reservations", &context, reservation_store, reservation_stream, 8, reservations::reconcile, tasks);
    control("pools", &context, pool_store, pool_stream, 4, pools::reconcile, tasks);
    control("tenants", &context, tenant_store, tenant_stream, 4, tenants::reconcile, tasks);
    let (model_store, endpoint_store) = (context.hosted.models.clone(), context.hosted.endpoints.clone());
    control("models", &context, model_store, model_stream, 2, models::reconcile, tasks);
    control("apikeys", &context, context.hosted.keys.clone(), key_stream, 2, apikeys::reconcile, tasks);
    let sweeping = apikeys::sweep(Arc::clone(&context));
    tasks.spawn(async move {
        sweeping.await;
        Err(Error::TaskEnded("sweeping"))
    });
    if let Some(usage) = context.config.usage.clone() {
        let shipping = archive::ship(Arc::clone(&context), usage);
        tasks.spawn(async move {
            shipping.await;
            Err(Error::TaskEnded("archive"))
        });
    }
    let judging = canaries::run(Arc::clone(&context), Arc::clone(&gateways));
    let identities = identities::keep(Arc::clone(&context));
    let (scaling, keeping) =
        (scaling::run(Arc::clone(&context), gateways), external::keep(Arc::clone(&context), register));
    tasks.spawn(async move {
        tokio::join!(scaling, keeping, judging, identities);
        Err(Error::TaskEnded("scaling"))
    });
    control("endpoints", &context, endpoint_store, endpoint_stream, 4, endpoints::reconcile, tasks);
    control("assignments", &context, namespace_store, namespace_stream, 8, assignments::reconcile, tasks);
}

/// Runs one controller: its queue, with back-off on errors and a bound on what is under way at once.
fn control<K, Fut>(
    name: &'static str,
    context: &Arc<Context>,
    store: Store<K>,
    stream: impl Stream<Item = Result<ObjectRef<K>, std::convert::Infallible>> + Send + 'static,
    concurrency: u16,
    reconcile: impl Fn(Arc<K>, Arc<Context>) -> Fut + Send + Sync + 'static,
    tasks: &mut JoinSet<Result<(), Error>>,
) where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Action, Error>> + Send + 'static,
{
    let failures: Arc<std::sync::Mutex<HashMap<ObjectRef<K>, u32>>> = Arc::default();
    let forget = Arc::clone(&failures);
    let policy = move |object: Arc<K>, error: &Error, context: Arc<Context>| {
        let key = ObjectRef::from_obj(&*object);
        let mut failures = failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let count = failures.entry(key).or_default();
        *count = (*count + 1).min(8);
        // A conflict is no error: somebody else wrote, the watch brings it, look again.
        tracing::debug!(controller = name, object = %object.name_any(), %error, "not done");
        if error.is_conflict() {
            context.metrics.reconciled(name, "conflict");
            return Action::requeue(Duration::from_millis(50 << (*count).min(5)));
        }
        if matches!(error, Error::Fenced { .. }) {
            context.metrics.fenced.inc();
            return Action::requeue(Duration::from_millis(100));
        }
        context.metrics.reconciled(name, "error");
        tracing::warn!(controller = name, object = %object.name_any(), %error, "it is tried again");
        Action::requeue(Duration::from_millis(100 << *count))
    };
    let context_of = Arc::clone(context);
    let applier = controller::applier(
        move |object, context| Box::pin(reconcile(object, context)),
        policy,
        Arc::clone(context),
        store,
        stream,
        controller::Config::default().concurrency(concurrency),
    );
    tasks.spawn(async move {
        let mut applier = Box::pin(applier);
        while let Some(result) = applier.next().await {
            if let Ok((key, _)) = result {
                forget.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&key);
                context_of.metrics.reconciled(name, "ok");
            }
        }
        Err(Error::TaskEnded(name))
    });
}

/// All watches. Each change wakes the engine and asks the controllers to look at what it concerns.
#[expect(clippy::too_many_arguments, reason = "what the watches feed")]
fn watch_all(
    client: &Client,
    config: &Config,
    queues: &Queues,
    wake: &Arc<Notify>,
    changed: &Arc<Changed>,
    sharing: &Arc<Sharing>,
    pods: &Arc<PodIndex>,
    view: &watch::Receiver<Arc<View>>,
    guards: &Arc<Guards>,
    hosted: &Hosted,
    synced: &Synced,
) -> (Stores, Vec<watches::Feed>) {
    let any = || watcher::Config::default().streaming_lists();
    let (queues, wake) = (queues.clone(), Arc::clone(wake));

    let (q, w) = (queues.clone(), Arc::clone(&wake));
    let (pools, pool_feed) = watch::<GpuPool, _, _>(Api::all(client.clone()), any(), slim, synced, move |event| {
        let (q, w) = (q.clone(), Arc::clone(&w));
        async move {
            w.notify_one();
            if let Some(pool) = object(&event) {
                q.pools.push(&pool.name_any()).await;
            }
        }
    });

    let (q, w, c, sharing) = (queues.clone(), Arc::clone(&wake), Arc::clone(changed), Arc::clone(sharing));
    let (there, standing, v) = (Arc::clone(pods), hosted.clone(), view.clone());
    let (reservations, reservation_feed) =
        watch::<GpuReservation, _, _>(Api::all(client.clone()), any(), slim, synced, move |event| {
            let (q, w, p, standing) = (q.clone(), Arc::clone(&w), Arc::clone(&there), standing.clone());
            let early = is_early(&event, &v);
            match object(&event) {
                Some(object) => {
                    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
                    let there = !matches!(event, watcher::Event::Delete(_));
                    sharing.note(&namespace, &name, there && !object.spec.exclusive_nodes);
                    c.reservation(&namespace, &name);
                }
                None => c.all(),
            }
            async move {
                w.notify_one();
                if let Some(reservation) = object(&event).filter(|_| !early) {
                    let namespace = reservation.namespace().unwrap_or_default();
                    q.reservations.push_in(&namespace, &reservation.name_any()).await;
                    standing.reservation(&namespace, &reservation.name_any()).await;
                    let recorded = reservation.status.as_ref().is_some_and(|status| !status.assignments.is_empty());
                    if !reservation.spec.exclusive_nodes && (recorded || p.any_in(&namespace)) {
                        q.namespaces.push(&namespace).await;
                    }
                }
            }
        });

    let (q, w) = (queues.clone(), Arc::clone(&wake));
    let (tenants, tenant_feed) = watch::<Tenant, _, _>(Api::all(client.clone()), any(), slim, synced, move |event| {
        let (q, w) = (q.clone(), Arc::clone(&w));
        async move {
            w.notify_one();
            if let Some(tenant) = object(&event) {
                q.tenants.push(&tenant.name_any()).await;
            }
        }
    });

    let (q, w, v, guarded) = (queues.clone(), Arc::clone(&wake), view.clone(), Arc::clone(guards));
    let (c, there) = (Arc::clone(changed), Arc::clone(pods));
    let mut seen: HashMap<String, u64> = HashMap::new();
    let (nodes, node_feed) = watch::<Node, _, _>(Api::all(client.clone()), any(), slim_node, synced, move |event| {
        let (q, w, p) = (q.clone(), Arc::clone(&w), Arc::clone(&there));
        let early = is_early(&event, &v);
        // A heartbeat is a write of the node as well: ten thousand nodes would keep everybody awake.
        let news = match &event {
            watcher::Event::Apply(node) | watcher::Event::InitApply(node) => {
                let print = snapshot::fingerprint(node);
                seen.insert(node.uid().unwrap_or_default(), print) != Some(print)
            }
            watcher::Event::Delete(node) => seen.remove(&node.uid().unwrap_or_default()).is_some(),
            watcher::Event::Init | watcher::Event::InitDone => true,
        };
        match object(&event) {
            Some(node) if news => c.node(&node.name_any()),
            Some(_) => {}
            None => c.all(),
        }
        let about = object(&event).filter(|_| news).map(|node| {
            let view = Arc::clone(&v.borrow());
            let named = hold::named_bookings(node).filter_map(|id| view.booking(&BookingId::from(id)));
            let named: Vec<Arc<Booking>> = named.map(Arc::clone).collect();
            (node.name_any(), node.labels().get(POOL_LABEL).cloned(), named)
        });
        if let Some((name, ..)) = &about {
            guarded.audit.node(name);
        }
        async move {
            if news {
                w.notify_one();
            }
            if let Some((name, pool, bookings)) = about.filter(|_| !early) {
                q.nodes.push(&name).await;
                if let Some(pool) = pool {
                    q.pools.push(&pool).await;
                }
                for booking in bookings {
                    let reservation = &booking.reservation;
                    q.reservations.push_in(&reservation.namespace, &reservation.name).await;
                    q.push_sharer(&booking, &p).await;
                }
            }
        }
    });

    let q = queues.clone();
    let (gpu_nodes, gpu_node_feed) =
        watch::<GpuNode, _, _>(Api::all(client.clone()), any(), slim, synced, move |event| {
            let q = q.clone();
            async move {
                if let Some(node) = object(&event) {
                    q.nodes.push(&node.name_any()).await;
                }
            }
        });

    let (namespaces, namespace_feed) = namespaces(client, &queues, &wake, synced);

    let (index, prefixes, q, w) = (Arc::clone(pods), config.device_prefixes.clone(), queues, wake);
    let (guarded, c) = (Arc::clone(guards), Arc::clone(changed));
    let bound = any().fields("status.phase!=Succeeded,status.phase!=Failed");
    let stream = watcher(Api::<Pod>::all(client.clone()), bound);
    let mut mark = synced.mark();
    let pod_feed: watches::Feed = Box::pin(async move {
        use kube::runtime::WatchStreamExt;
        let mut stream = Box::pin(stream.default_backoff());
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => {
                    // Only pods with devices change what can be sold.
                    let devices = object(&event).is_none_or(|pod| !pods::devices(pod, &prefixes).is_empty());
                    let touched = index.take(&event, &prefixes);
                    for node in touched.nodes {
                        if devices {
                            c.node(&node);
                        }
                        guarded.audit.node(&node);
                        q.nodes.push(&node).await;
                    }
                    for namespace in touched.namespaces {
                        q.namespaces.push(&namespace).await;
                    }
                    mark(matches!(event, watcher::Event::InitDone));
                    if devices {
                        w.notify_one();
                    }
                }
                Err(error) => tracing::warn!(kind = "Pod", %error, "a watch failed; it is tried again"),
            }
        }
    });

    let feeds = vec![pool_feed, reservation_feed, tenant_feed, node_feed, gpu_node_feed, namespace_feed, pod_feed];
    (Stores { pools, reservations, tenants, nodes, gpu_nodes, namespaces }, feeds)
}

/// An object of a first list, before the ledger is known: everything is looked at once it is.
fn is_early<K>(event: &watcher::Event<K>, view: &watch::Receiver<Arc<View>>) -> bool {
    matches!(event, watcher::Event::InitApply(_)) && view.borrow().ledger.is_none()
}

type NamespaceMeta = PartialObjectMeta<Namespace>;

/// Namespaces are watched without their specs; a change concerns every tenant that lists the namespace or whose label it carries.
fn namespaces(
    client: &Client,
    queues: &Queues,
    wake: &Arc<Notify>,
    synced: &Synced,
) -> (Store<NamespaceMeta>, watches::Feed) {
    use kube::runtime::{WatchStreamExt, reflector};
    let (store, writer) = reflector::store::<NamespaceMeta>();
    let (q, w) = (queues.clone(), Arc::clone(wake));
    let stream = watcher(Api::<NamespaceMeta>::all(client.clone()), watcher::Config::default().streaming_lists())
        .default_backoff()
        .modify(slim)
        .reflect(writer);
    let tenants: Api<Tenant> = Api::all(client.clone());
    let mut mark = synced.mark();
    let feed = Box::pin(async move {
        let mut stream = Box::pin(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => {
                    w.notify_one();
                    mark(matches!(event, watcher::Event::InitDone));
                    let Some(namespace) = object(&event) else { continue };
                    let label = namespace.labels().get(spillway_crds::names::TENANT_LABEL).cloned();
                    if let Some(tenant) = label {
                        q.tenants.push(&tenant).await;
                    } else if !matches!(event, kube::runtime::watcher::Event::InitApply(_)) {
                        // A namespace that came after its tenant: rare, so the tenants are asked.
                        let name = namespace.name_any();
                        if let Ok(list) = tenants.list(&kube::api::ListParams::default()).await {
                            for tenant in list.items.iter().filter(|tenant| tenant.spec.namespaces.contains(&name)) {
                                q.tenants.push(&tenant.name_any()).await;
                            }
                        }
                    }
                }
                Err(error) => tracing::warn!(kind = "Namespace", %error, "a watch failed; it is tried again"),
            }
        }
    });
    (store, feed)
}
