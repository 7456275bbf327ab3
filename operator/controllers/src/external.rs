//! `external.metrics.k8s.io`: what the HPAs of endpoints ask (docs/adr/0012-scaling-of-endpoints.md). Every replica serves it; the leader keeps its
//! certificate and the CA in its `APIService`.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::Full;
use hyper::{Method, Request, Response, body::Incoming, header::CONTENT_TYPE, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use rcgen::ExtendedKeyUsagePurpose;
use serde_json::json;
use spillway_crds::{
    ModelEndpoint,
    names::{EXTERNAL_METRICS_APISERVICE, METRICS_API_SERVICE, METRICS_TLS_SECRET},
};
use spillway_manifests::endpoint::scales_by;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    certificate::{self, Pair, Subject},
    context::Context,
    error::{Error, call},
    gateways::Gateways,
    identities::{self, file},
    loads::FullName,
};

mod api;
mod tls;

use tls::Callers;

/// Common name of the CA.
const AUTHORITY: &str = "spillway-metrics-ca";
/// How often certificate and callers are read again, and the `APIService` looked at,
const LOOK: Duration = Duration::from_secs(30);
/// and while something is missing.
const MISSING: Duration = Duration::from_secs(2);
/// How long a caller may take to show who it is,
const HANDSHAKE: Duration = Duration::from_secs(5);
/// and to send the head of a request.
const HEAD: Duration = Duration::from_secs(5);
/// Connections at once: the API servers' are few.
const CONNECTIONS: usize = 256;
/// Callers at once that have not shown who they are,
const HANDSHAKES: u32 = 256;
/// and of one address.
const HANDSHAKES_OF_ONE: u32 = 16;

/// Who has `external.metrics.k8s.io`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Registration {
    /// It has not been looked at.
    #[default]
    Unknown,
    /// We have.
    Ours,
    /// Nobody has.
    Nobody,
    /// Another adapter has.
    Another,
}

/// The CA, and the certificate of the metrics API that it has signed.
#[derive(Clone, Eq, PartialEq)]
struct Identity {
    authority: Pair,
    server: Pair,
}

/// What connections are taken with.
struct Serving {
    acceptor: TlsAcceptor,
    callers: Callers,
}

/// Serves the metrics, as soon as there is a certificate, and never ends by itself.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    client: Client,
    namespace: String,
    address: SocketAddr,
    gateways: Arc<Gateways>,
) -> Result<(), Error> {
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Http { address, source })?;
    let (publish, serving) = watch::channel(None::<Arc<Serving>>);
    let (specs, following) = follow_specs(&client);
    let reading = read(client, namespace, publish);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let callers: Arc<Mutex<HashMap<IpAddr, u32>>> = Arc::default();
    let accepting = async {
        loop {
            let Ok((stream, from)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            // Without a certificate there is nothing to say. Who has not shown one takes no place of those who have, and few of any.
            let Some(now) = serving.borrow().clone() else { continue };
            let Some(unknown) = Unknown::new(&callers, from.ip()) else { continue };
            let (gateways, specs, places) = (Arc::clone(&gateways), specs.clone(), Arc::clone(&places));
            tokio::spawn(async move {
                if let Some(stream) = handshake(stream, &now).await {
                    drop(unknown);
                    let Ok(_place) = places.try_acquire() else { return };
                    connection(stream, gateways, specs).await;
                }
            });
        }
    };
    tokio::select! {
        () = reading => {}
        () = accepting => {}
        () = following => {}
    }
    Err(Error::TaskEnded("external metrics"))
}

/// What endpoints scale by now: every replica of the operator is asked. The leader has a watch of its own, for more.
fn follow_specs(client: &Client) -> (Specs, impl Future<Output = ()> + use<>) {
    let (store, writer) = reflector::store();
    let slim = |endpoint: &mut ModelEndpoint| {
        endpoint.metadata.managed_fields = None;
        endpoint.status = None;
    };
    let stream = watcher(Api::<ModelEndpoint>::all(client.clone()), watcher::Config::default());
    let stream = stream.default_backoff().modify(slim).reflect(writer);
    let specs = Specs { store, listed: Arc::default() };
    let listed = Arc::clone(&specs.listed);
    let following = stream.for_each(move |event| {
        match event {
            Ok(watcher::Event::InitDone) => listed.store(true, Ordering::Release),
            Ok(_) => {}
            Err(error) => tracing::warn!(kind = "ModelEndpoint", %error, "a watch failed; it is tried again"),
        }
        std::future::ready(())
    });
    (specs, following)
}

/// What endpoints say.
#[derive(Clone)]
struct Specs {
    store: Store<ModelEndpoint>,
    /// All of them have been read once.
    listed: Arc<AtomicBool>,
}

/// Reads the certificate and who may call, again and again.
async fn read(client: Client, namespace: String, publish: watch::Sender<Option<Arc<Serving>>>) {
    let mut known: Option<(Identity, Callers)> = None;
    let mut told = String::new();
    loop {
        let wait = match read_once(&client, &namespace).await {
            Ok(Some(now)) if known.as_ref() == Some(&now) => {
                told.clear();
                LOOK
            }
            Ok(Some((identity, callers))) => match tls::config(&identity, &callers) {
                Ok(config) => {
                    tracing::info!("the metrics API has a certificate");
                    let acceptor = TlsAcceptor::from(Arc::new(config));
                    publish.send_replace(Some(Arc::new(Serving { acceptor, callers: callers.clone() })));
                    known = Some((identity, callers));
                    told.clear();
                    LOOK
                }
                Err(error) => complain(&mut told, &error.to_string()),
            },
            // The leader makes it.
            Ok(None) => MISSING,
            Err(error) => complain(&mut told, &error),
        };
        tokio::time::sleep(wait).await;
    }
}

/// Says once what is wrong.
fn complain(told: &mut String, error: &str) -> Duration {
    if told != error {
        tracing::warn!(error, "the metrics API cannot be served as it should; it is tried again");
        error.clone_into(told);
    }
    MISSING
}

async fn read_once(client: &Client, namespace: &str) -> Result<Option<(Identity, Callers)>, String> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let secret = call("reading the certificate of the metrics API", secrets.get_opt(METRICS_TLS_SECRET)).await;
    let Some(identity) = secret.map_err(|error| error.to_string())?.as_ref().and_then(identity) else {
        return Ok(None);
    };
    let map = call("reading who calls the metrics API", maps.get("extension-apiserver-authentication")).await;
    let data = map.map_err(|error| error.to_string())?.data.unwrap_or_default();
    let callers = Callers::parse(|name| data.get(name).map(String::as_str)).map_err(|error| error.to_string())?;
    Ok(Some((identity, callers)))
}

/// A caller that has not shown who it is, until this is dropped.
struct Unknown {
    callers: Arc<Mutex<HashMap<IpAddr, u32>>>,
    from: IpAddr,
}

impl Unknown {
    fn new(callers: &Arc<Mutex<HashMap<IpAddr, u32>>>, from: IpAddr) -> Option<Self> {
        let mut counts = callers.lock().unwrap_or_else(PoisonError::into_inner);
        let total: u32 = counts.values().sum();
        let count = counts.entry(from).or_default();
        let may = *count < HANDSHAKES_OF_ONE && total < HANDSHAKES;
        if may {
            *count += 1;
        }
        may.then(|| Self { callers: Arc::clone(callers), from })
    }
}

impl Drop for Unknown {
    fn drop(&mut self) {
        let mut counts = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.from) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.from);
            }
        }
    }
}

/// Lets a caller in that shows that it is one.
async fn handshake(stream: TcpStream, serving: &Serving) -> Option<TlsStream<TcpStream>> {
    let stream = match tokio::time::timeout(HANDSHAKE, serving.acceptor.accept(stream)).await.ok()? {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "a caller of the metrics API was not let in");
            return None;
        }
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    if !serving.callers.may(certificate) {
        tracing::warn!("a caller of the metrics API has a certificate of the front-proxy CA and no allowed name");
        return None;
    }
    Some(stream)
}

/// Serves one connection to its end.
async fn connection(stream: TlsStream<TcpStream>, gateways: Arc<Gateways>, specs: Specs) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(&gateways, &specs, &request);
        async move { Ok::<_, std::convert::Infallible>(answer) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(LOOK);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(error, "a connection of the metrics API ended");
    }
}

fn answer(gateways: &Gateways, specs: &Specs, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (code, body) = match *request.method() {
        Method::GET => {
            let (path, query) = (request.uri().path(), request.uri().query());
            let scales = |(namespace, name): &FullName, metric: &str| {
                let endpoint = specs.store.get(&ObjectRef::new(name.as_str()).within(namespace.as_str()));
                let scales = endpoint.is_some_and(|endpoint| scales_by(&endpoint, metric));
                specs.listed.load(Ordering::Acquire).then_some(scales)
            };
            api::answer(&gateways.loads(), &scales, path, query, gateways.now_ms(), Timestamp::now())
        }
        _ => api::failure(405, "MethodNotAllowed", "metrics are read by GET"),
    };
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or_default();
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}

/// What is in the Secret.
fn identity(secret: &Secret) -> Option<Identity> {
    Some(Identity {
        authority: Pair { certificate: file(secret, "ca.crt")?, key: file(secret, "ca.key")? },
        server: Pair { certificate: file(secret, "tls.crt")?, key: file(secret, "tls.key")? },
    })
}

/// Keeps the certificate and the `APIService`, and tells who has it. The leader's; never ends by itself.
pub async fn keep(context: Arc<Context>, publish: watch::Sender<Registration>) {
    loop {
        let wait = match keep_once(&context).await {
            Ok(registration) => {
                publish.send_if_modified(|known| std::mem::replace(known, registration) != registration);
                LOOK
            }
            Err(error) if error.is_conflict() => MISSING,
            Err(error) => {
                tracing::warn!(%error, "the metrics API is not registered as it should; it is tried again");
                MISSING
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn keep_once(context: &Context) -> Result<Registration, Error> {
    let services: Api<APIService> = Api::all(context.client.clone());
    let found = call("reading the APIService", services.get_opt(EXTERNAL_METRICS_APISERVICE)).await?;
    let Some(found) = found else { return Ok(Registration::Nobody) };
    let namespace = context.config.namespace.as_str();
    let service = found.spec.as_ref().and_then(|spec| spec.service.clone()).unwrap_or_default();
    let ours = service.name.as_deref() == Some(METRICS_API_SERVICE) && service.namespace.as_deref() == Some(namespace);
    if !ours {
        return Ok(Registration::Another);
    }
    let identity = keep_identity(context).await?;
    let known = found.spec.as_ref().and_then(|spec| spec.ca_bundle.as_ref());
    if known.is_none_or(|known| known.0 != identity.authority.certificate.as_bytes()) {
        let bundle = ByteString(identity.authority.certificate.into_bytes());
        let patch = json!({
            "metadata": {"resourceVersion": found.resource_version()},
            "spec": {"caBundle": bundle},
        });
        let params = PatchParams::default();
        let patch = Patch::Merge(&patch);
        let patching = services.patch(EXTERNAL_METRICS_APISERVICE, &params, &patch);
        call("writing the CA of the metrics API", patching).await?;
    }
    Ok(Registration::Ours)
}

/// The certificate, as it is or made anew.
async fn keep_identity(context: &Context) -> Result<Identity, Error> {
    let namespace = context.config.namespace.as_str();
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let name = format!("{METRICS_API_SERVICE}.{namespace}.svc");
    let found = call("reading the certificate of the metrics API", secrets.get_opt(METRICS_TLS_SECRET)).await?;
    let old = found.as_ref().and_then(identity);
    let now = Timestamp::now();
    let authority = old.as_ref().map(|old| &old.authority).filter(|old| !certificate::is_authority_due(old, now));
    let old = old
        .as_ref()
        .filter(|old| authority.is_some() && !certificate::is_due(&old.server, &old.authority.certificate, &name, now));
    if let Some(old) = old {
        return Ok(old.clone());
    }
    let authority = match authority {
        Some(authority) => authority.clone(),
        None => certificate::make_authority(AUTHORITY, now)?,
    };
    let uses = [ExtendedKeyUsagePurpose::ServerAuth];
    let subject = Subject { common_name: "spillway-metrics", dns_name: name, uses: &uses };
    let server = certificate::sign(AUTHORITY, &authority, &subject, now)?;
    let files = [
        ("ca.crt", authority.certificate.as_str()),
        ("ca.key", &authority.key),
        ("tls.crt", &server.certificate),
        ("tls.key", &server.key),
    ];
    identities::write(&secrets, METRICS_TLS_SECRET, found, &files).await?;
    Ok(Identity { authority, server })
}
