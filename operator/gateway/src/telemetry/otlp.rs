//! OTLP by HTTP to a collector: from threads of its own, out of a queue that is bounded and never waited for. A collector that is away costs requests
//! nothing, and what it would have been told is dropped.

use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Uri;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry::metrics::{Histogram, Meter, MeterProvider as _};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Array, Context, Key, KeyValue, StringValue, Value};
use opentelemetry_http::{HeaderExtractor, HeaderInjector, HttpClient, HttpError};
use opentelemetry_otlp::{MetricExporter, Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;

use super::{DURATION, FIRST_TOKEN, Operation, PER_TOKEN, PROVIDER, TOKENS};

/// Name of what tells.
const SCOPE: &str = "spillway-gateway";
/// How long a collector may take to be connected, and to answer.
const CONNECT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(10);
/// Bytes of its answer.
const ANSWER_BYTES: usize = 1 << 20;

/// Why nothing can be told to a collector.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address is none.
    #[error(
        "{name} is {value:?}: give it as http://HOST:PORT; a collector that takes TLS only is reached by one that runs beside the gateway"
    )]
    Endpoint {
        /// The variable.
        name: &'static str,
        /// What it is.
        value: String,
    },
    /// A variable asks for something that there is not.
    #[error("{name} is {value:?}: {allowed} is what there is")]
    Value {
        /// The variable.
        name: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// The exporter cannot be made.
    #[error("the exporter of OTLP: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Where traces and metrics go.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Settings {
    /// Where traces are taken, such as `http://collector:4318/v1/traces`.
    pub traces: Option<Uri>,
    /// Where metrics are taken.
    pub metrics: Option<Uri>,
}

impl Settings {
    /// By OpenTelemetry's own variables, as `read` gives them: none where no endpoint is named, or it is turned off. Those of queues, intervals, sampling,
    /// headers and resources are read by its SDK.
    ///
    /// # Errors
    ///
    /// [`Error::Endpoint`] and [`Error::Value`].
    pub fn from_env(read: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, Error> {
        // An empty one is none (the specification's own words).
        let read = |name: &str| read(name).filter(|value| !value.is_empty());
        if read("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        for name in
            ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"]
        {
            if let Some(value) = read(name).filter(|value| value != "http/protobuf") {
                return Err(Error::Value { name, value, allowed: "http/protobuf" });
            }
        }
        let signal = |own: &'static str, exporter: &'static str, path: &str| {
            match read(exporter) {
                Some(value) if value == "none" => return Ok(None),
                Some(value) if value != "otlp" => {
                    return Err(Error::Value { name: exporter, value, allowed: "otlp or none" });
                }
                _ => {}
            }
            let base = "OTEL_EXPORTER_OTLP_ENDPOINT";
            let own_value = read(own).map(|value| (own, value.clone(), value));
            let from_base = || read(base).map(|value| (base, format!("{}{path}", value.trim_end_matches('/')), value));
            let Some((name, address, value)) = own_value.or_else(from_base) else { return Ok(None) };
            match address.parse::<Uri>() {
                Ok(uri) if uri.scheme_str() == Some("http") && uri.host().is_some() => Ok(Some(uri)),
                _ => Err(Error::Endpoint { name, value }),
            }
        };
        let traces = signal("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER", "/v1/traces")?;
        let metrics = signal("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_METRICS_EXPORTER", "/v1/metrics")?;
        Ok((traces.is_some() || metrics.is_some()).then_some(Self { traces, metrics }))
    }
}

/// What tells a collector.
pub struct Otlp {
    traces: Option<(SdkTracerProvider, SdkTracer)>,
    metrics: Option<(SdkMeterProvider, Instruments)>,
}

struct Instruments {
    duration: Histogram<f64>,
    first_token: Histogram<f64>,
    per_token: Histogram<f64>,
    tokens: Histogram<u64>,
}

impl Instruments {
    fn new(meter: &Meter) -> Self {
        let seconds =
            |name, buckets: &[f64]| meter.f64_histogram(name).with_unit("s").with_boundaries(buckets.to_vec()).build();
        Self {
            duration: seconds("gen_ai.server.request.duration", &DURATION),
            first_token: seconds("gen_ai.server.time_to_first_token", &FIRST_TOKEN),
            per_token: seconds("gen_ai.server.time_per_output_token", &PER_TOKEN),
            tokens: meter
                .u64_histogram("gen_ai.client.token.usage")
                .with_unit("{token}")
                .with_boundaries(TOKENS.to_vec())
                .build(),
        }
    }
}

impl Otlp {
    /// To where the settings say, as this gateway. Within tokio's runtime, on which its requests run.
    ///
    /// # Errors
    ///
    /// [`Error::Exporter`].
    pub fn new(settings: &Settings, gateway: &str) -> Result<Self, Error> {
        let known = Resource::builder().build();
        let service = known.get(&Key::new("service.name")).map(|name| name.to_string());
        // The environment may name another one, as it may give more attributes.
        let service = service.filter(|name| !name.starts_with("unknown_service")).unwrap_or_else(|| SCOPE.to_owned());
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.instance.id", gateway.to_owned()))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        let http = Http { client, runtime: Handle::current() };
        let traces = match &settings.traces {
            Some(uri) => {
                let exporter = SpanExporter::builder()
                    .with_http()
                    .with_http_client(http.clone())
                    .with_protocol(Protocol::HttpBinary)
                    .with_endpoint(uri.to_string())
                    .build()?;
                let provider =
                    SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.clone()).build();
                let tracer = provider.tracer(SCOPE);
                Some((provider, tracer))
            }
            None => None,
        };
        let metrics = match &settings.metrics {
            Some(uri) => {
                let exporter = MetricExporter::builder()
                    .with_http()
                    .with_http_client(http)
                    .with_protocol(Protocol::HttpBinary)
                    .with_endpoint(uri.to_string())
                    .build()?;
                let provider =
                    SdkMeterProvider::builder().with_periodic_exporter(exporter).with_resource(resource).build();
                let instruments = Instruments::new(&provider.meter(SCOPE));
                Some((provider, instruments))
            }
            None => None,
        };
        Ok(Self { traces, metrics })
    }

    /// Begins the span of a request, in the trace of its client if that has one.
    pub(super) fn begin(
        &self,
        begun: Instant,
        headers: &HeaderMap,
        name: &'static str,
        model: &str,
        stream: bool,
    ) -> Option<Span> {
        let (_, tracer) = self.traces.as_ref()?;
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
        // What samplers may look at.
        let attributes = vec![
            KeyValue::new("gen_ai.operation.name", name),
            KeyValue::new("gen_ai.provider.name", PROVIDER),
            KeyValue::new("gen_ai.request.model", model.to_owned()),
            KeyValue::new("gen_ai.request.stream", stream),
        ];
        let started = SystemTime::now().checked_sub(begun.elapsed()).unwrap_or_else(SystemTime::now);
        let span = tracer
            .span_builder(format!("{name} {model}"))
            // To the engine; of whoever asked us it is a child.
            .with_kind(SpanKind::Client)
            .with_start_time(started)
            .with_attributes(attributes)
            .start_with_context(tracer, &parent);
        Some(Span(span))
    }

    /// Tells of a request that ended.
    pub(super) fn tell(
        &self,
        operation: &mut Operation,
        took: Duration,
        first: Option<Duration>,
        per_token: Option<Duration>,
    ) {
        if let Some(Span(span)) = &mut operation.span {
            if let Some((address, model)) = &operation.sent {
                span.set_attributes(server(address));
                span.set_attribute(KeyValue::new("gen_ai.response.model", model.clone()));
            }
            if let Some(used) = operation.used {
                span.set_attribute(KeyValue::new("gen_ai.usage.input_tokens", integer(used.prompt())));
                span.set_attribute(KeyValue::new("gen_ai.usage.cache_read.input_tokens", integer(used.cached())));
                span.set_attribute(KeyValue::new("gen_ai.usage.output_tokens", integer(used.completion())));
            }
            if let Some(first) = first {
                span.set_attribute(KeyValue::new("gen_ai.response.time_to_first_chunk", first.as_secs_f64()));
            }
            let reasons: Vec<StringValue> = operation.reasons.words().map(StringValue::from).collect();
            if !reasons.is_empty() {
                let reasons = Value::Array(Array::String(reasons));
                span.set_attribute(KeyValue::new("gen_ai.response.finish_reasons", reasons));
            }
            if let Some(error) = operation.error {
                span.set_attribute(KeyValue::new("error.type", error));
                span.set_status(Status::error(error));
            }
            span.end();
        }
        let Some((_, instruments)) = &self.metrics else { return };
        let mut labels = vec![
            KeyValue::new("gen_ai.operation.name", operation.name),
            KeyValue::new("gen_ai.provider.name", PROVIDER),
            KeyValue::new("gen_ai.request.model", operation.model.clone()),
        ];
        if let Some((_, model)) = &operation.sent {
            labels.push(KeyValue::new("gen_ai.response.model", model.clone()));
        }
        if let Some(first) = first {
            instruments.first_token.record(first.as_secs_f64(), &labels);
        }
        if let Some(per_token) = per_token {
            instruments.per_token.record(per_token.as_secs_f64(), &labels);
        }
        if let Some(used) = operation.used {
            for (kind, count) in [("input", used.prompt()), ("output", used.completion())] {
                labels.push(KeyValue::new("gen_ai.token.type", kind));
                instruments.tokens.record(count, &labels);
                labels.pop();
            }
        }
        labels.extend(operation.error.map(|error| KeyValue::new("error.type", error)));
        instruments.duration.record(took.as_secs_f64(), &labels);
    }

    /// Tells what is left, for so long at most. Blocks.
    pub(super) fn end(&self, within: Duration) {
        if let Some((provider, _)) = &self.traces
            && let Err(error) = provider.shutdown_with_timeout(within)
        {
            tracing::warn!(%error, "the last traces could not be told");
        }
        if let Some((provider, _)) = &self.metrics
            && let Err(error) = provider.shutdown_with_timeout(within)
        {
            tracing::warn!(%error, "the last metrics could not be told");
        }
    }
}

/// The span of a request.
pub(crate) struct Span(opentelemetry_sdk::trace::Span);

impl Span {
    /// Headers by which whoever is asked continues the trace.
    pub(super) fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let own = Context::new().with_remote_span_context(self.0.span_context().clone());
        let mut headers = HeaderMap::new();
        TraceContextPropagator::new().inject_context(&own, &mut HeaderInjector(&mut headers));
        // An empty tracestate is none.
        headers
            .into_iter()
            .filter_map(|(name, value)| Some((name?, value)))
            .filter(|(_, value)| !value.is_empty())
            .collect()
    }
}

fn server((address, port): &(String, u16)) -> [KeyValue; 2] {
    [KeyValue::new("server.address", address.clone()), KeyValue::new("server.port", i64::from(*port))]
}

fn integer(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A count of tokens as histograms take it; up to 2^32 it is exact.
pub(super) fn float(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// The gateway's own way to call, for threads that are no part of its runtime.
#[derive(Clone, Debug)]
struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for Http {
    async fn send_bytes(&self, request: hyper::Request<Bytes>) -> Result<hyper::Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sending = async move {
            let (head, body) = client.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES).collect().await?.to_bytes();
            Ok::<_, HttpError>(hyper::Response::from_parts(head, body))
        };
        // Timers too are the runtime's.
        self.runtime.spawn(async move { tokio::time::timeout(ANSWER, sending).await }).await??
    }
}
