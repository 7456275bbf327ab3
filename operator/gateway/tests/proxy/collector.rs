//! A collector's edge: an HTTP server that takes OTLP (http/protobuf) and decodes it. That a real collector takes it is not shown here.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use spillway_gateway::telemetry::{Otlp, Settings};

/// What came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) spans: Vec<Span>,
    pub(crate) metrics: Vec<Metric>,
    pub(crate) resources: Vec<Resource>,
    /// All bytes, heads among them.
    pub(crate) bytes: Vec<u8>,
}

pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    told: Arc<Mutex<Told>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let told = Arc::new(Mutex::new(Told::default()));
        let shared = Arc::clone(&told);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let told = Arc::clone(&shared);
                let service = service_fn(move |request| take(Arc::clone(&told), request));
                connections.spawn(async move {
                    let _ =
                        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, told, task }
    }

    pub(crate) fn told(&self) -> Told {
        self.told.lock().unwrap().clone()
    }
}

/// What tells whoever listens there.
pub(crate) fn otlp(address: SocketAddr) -> Otlp {
    let uri = |path: &str| Some(format!("http://{address}{path}").parse().unwrap());
    Otlp::new(&Settings { traces: uri("/v1/traces"), metrics: uri("/v1/metrics") }, "gateway-0").unwrap()
}

async fn take(
    told: Arc<Mutex<Told>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    assert_eq!(head.headers["content-type"], "application/x-protobuf");
    let mut told = told.lock().unwrap();
    told.bytes.extend_from_slice(format!("{head:?}").as_bytes());
    told.bytes.extend_from_slice(&body);
    match head.uri.path() {
        "/v1/traces" => {
            let request = ExportTraceServiceRequest::decode(body).unwrap();
            for one in request.resource_spans {
                told.resources.extend(one.resource);
                told.spans.extend(one.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        "/v1/metrics" => {
            let request = ExportMetricsServiceRequest::decode(body).unwrap();
            for one in request.resource_metrics {
                told.resources.extend(one.resource);
                told.metrics.extend(one.scope_metrics.into_iter().flat_map(|scope| scope.metrics));
            }
        }
        path => panic!("{path}"),
    }
    Ok(Response::new(Full::default()))
}

/// An attribute as text.
pub(crate) fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes.iter().find(|one| one.key == key)?.value.clone()?.value?;
    Some(text(value))
}

fn text(value: Value) -> String {
    match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(truth) => truth.to_string(),
        Value::ArrayValue(all) => {
            all.values.into_iter().filter_map(|one| one.value).map(text).collect::<Vec<_>>().join(",")
        }
        other => format!("{other:?}"),
    }
}
