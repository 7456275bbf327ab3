//! What is told of requests by OpenTelemetry's conventions for generative AI (<https://github.com/open-telemetry/semantic-conventions-genai>): metrics at
//! `/metrics` always, and both traces and metrics to a collector where one is named (docs/adr/0015-telemetry-of-requests.md).
//!
//! Each request for a model is one [`Operation`], from when it is read until its answer has gone. Nothing is told before its end, when nobody waits for it
//! any more. Names of endpoints and versions are of the cluster, and all other words are ours: nothing of a prompt, an answer or a key has a place here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};
use spillway_metering::tokens::{Outcome, Tokens};

use crate::catalogue::{Replica, Served, Target};
use crate::metrics;
use crate::request::Endpoint;
use crate::sse::FinishReasons;

mod otlp;

pub use otlp::{Error, Otlp, Settings};

/// Who provides the models, as the conventions have it of a host that is none of those they know.
const PROVIDER: &str = "spillway";
/// Buckets that the conventions recommend: of a request, in seconds,
const DURATION: [f64; 14] = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
/// until the first token,
const FIRST_TOKEN: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// for each token after it,
const PER_TOKEN: [f64; 13] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
/// and of tokens.
const TOKENS: [f64; 14] = [
    1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0,
    67108864.0,
];

/// What was asked for, and what answered.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Asked {
    gen_ai_operation_name: &'static str,
    gen_ai_provider_name: &'static str,
    gen_ai_request_model: String,
    gen_ai_response_model: Option<String>,
}

/// A request that ended.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Ended {
    #[prometheus(flatten)]
    asked: Asked,
    error_type: Option<&'static str>,
}

/// Tokens that it used.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Used {
    #[prometheus(flatten)]
    asked: Asked,
    gen_ai_token_type: &'static str,
}

type Histograms<Labels> = Family<Labels, Histogram, fn() -> Histogram>;

/// Where it is told.
pub struct Telemetry {
    registry: Registry,
    duration: Histograms<Ended>,
    first_token: Histograms<Asked>,
    per_token: Histograms<Asked>,
    tokens: Histograms<Used>,
    otlp: Option<Otlp>,
}

impl Telemetry {
    /// At `/metrics`, and with `otlp` to a collector.
    pub fn new(otlp: Option<Otlp>) -> Arc<Self> {
        let mut metrics = Self {
            registry: Registry::with_prefix("gen_ai"),
            duration: Family::new_with_constructor(|| Histogram::new(DURATION)),
            first_token: Family::new_with_constructor(|| Histogram::new(FIRST_TOKEN)),
            per_token: Family::new_with_constructor(|| Histogram::new(PER_TOKEN)),
            tokens: Family::new_with_constructor(|| Histogram::new(TOKENS)),
            otlp,
        };
        let (registry, unit) = (&mut metrics.registry, Unit::Seconds);
        let help = "Time from a request until its answer has gone";
        registry.register_with_unit("server_request_duration", help, unit.clone(), metrics.duration.clone());
        let help = "Time from a request until the first token of a stream";
        registry.register_with_unit("server_time_to_first_token", help, unit.clone(), metrics.first_token.clone());
        let help = "Time for each token of a stream after the first";
        registry.register_with_unit("server_time_per_output_token", help, unit, metrics.per_token.clone());
        registry.register("client_token_usage", "Tokens that were billed of a request", metrics.tokens.clone());
        Arc::new(metrics)
    }

    /// All metrics as text, and the end of it.
    pub(crate) fn render(&self, text: &mut String) {
        // Into a string: there is no way for it to fail.
        let _ = encode(text, &self.registry);
    }

    /// Begins what is told of a request, which came at `begun` with these headers.
    pub(crate) fn begin(
        self: &Arc<Self>,
        begun: Instant,
        headers: &HeaderMap,
        endpoint: Endpoint,
        served: &Served,
        stream: bool,
    ) -> Operation {
        let name = match endpoint {
            Endpoint::ChatCompletions => "chat",
            Endpoint::Completions => "text_completion",
            Endpoint::Embeddings => "embeddings",
        };
        let model = format!("{}/{}", served.namespace, served.name);
        let span = self.otlp.as_ref().and_then(|otlp| otlp.begin(begun, headers, name, &model, stream));
        Operation {
            telemetry: Arc::clone(self),
            name,
            model,
            begun,
            first: None,
            last: None,
            sent: None,
            used: None,
            reasons: FinishReasons::default(),
            error: Some("internal"),
            known: false,
            span,
        }
    }

    /// Tells what is left to be told, for so long at most, and nothing more after that. Blocks.
    pub fn end(&self, within: Duration) {
        if let Some(otlp) = &self.otlp {
            otlp.end(within);
        }
    }
}

/// What is told of one request, when this is dropped.
pub(crate) struct Operation {
    telemetry: Arc<Telemetry>,
    name: &'static str,
    /// `<namespace>/<endpoint>`, however the client named it.
    model: String,
    begun: Instant,
    /// When the first token came, of a stream,
    first: Option<Instant>,
    /// and when the answer ended.
    last: Option<Instant>,
    /// Where it was sent last, and the model and version there.
    sent: Option<((String, u16), String)>,
    used: Option<Tokens>,
    reasons: FinishReasons,
    /// Why it failed. One of which nobody says how it ended did so by a mistake of ours.
    error: Option<&'static str>,
    /// Whether somebody has said how it ended.
    known: bool,
    span: Option<otlp::Span>,
}

impl Operation {
    /// Headers by which an engine continues its trace, in place of the client's.
    pub(crate) fn trace(&self) -> Option<Vec<(HeaderName, HeaderValue)>> {
        self.span.as_ref().map(otlp::Span::headers)
    }

    /// It is sent to a replica.
    pub(crate) fn sent(&mut self, served: &Served, replica: &Replica) {
        let server = match &replica.target {
            Target::Pod(address) => (address.ip().to_string(), address.port()),
            Target::Provider(provider) => {
                let base = &provider.base;
                let port = if base.scheme_str() == Some("http") { 80 } else { 443 };
                (base.host().unwrap_or_default().to_owned(), base.port_u16().unwrap_or(port))
            }
        };
        self.sent = Some((server, format!("{}:{}", served.model, replica.version)));
    }

    /// A token of a stream has come.
    pub(crate) fn token(&mut self) {
        self.first.get_or_insert_with(Instant::now);
    }

    /// Its answer ended so, and used so many tokens.
    pub(crate) fn ended(&mut self, outcome: Outcome, used: Tokens, reasons: FinishReasons) {
        (self.last, self.used, self.reasons) = (Some(Instant::now()), Some(used), reasons);
        match metrics::failure(outcome) {
            Some(word) => self.failed(word),
            None if !self.known => (self.error, self.known) = (None, true),
            None => {}
        }
    }

    /// It failed for this reason. The first that is told counts, but that an answer was good does not stand against one.
    pub(crate) fn failed(&mut self, error: &'static str) {
        if !self.known || self.error.is_none() {
            (self.error, self.known) = (Some(error), true);
        }
    }

    /// The mean time of tokens after the first.
    fn per_token(&self) -> Option<Duration> {
        let more = self.used?.completion().checked_sub(1)?;
        let took = self.last?.saturating_duration_since(self.first?);
        took.checked_div(u32::try_from(more).ok()?)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        let telemetry = Arc::clone(&self.telemetry);
        let took = self.begun.elapsed();
        // Of what failed they would say how it failed.
        let good = self.error.is_none();
        let first = self.first.filter(|_| good).map(|first| first.saturating_duration_since(self.begun));
        let per_token = self.per_token().filter(|_| good);
        if let Some(otlp) = &telemetry.otlp {
            otlp.tell(self, took, first, per_token);
        }
        let asked = Asked {
            gen_ai_operation_name: self.name,
            gen_ai_provider_name: PROVIDER,
            gen_ai_request_model: std::mem::take(&mut self.model),
            gen_ai_response_model: self.sent.take().map(|(_, model)| model),
        };
        if let Some(first) = first {
            telemetry.first_token.get_or_create(&asked).observe(first.as_secs_f64());
        }
        if let Some(per_token) = per_token {
            telemetry.per_token.get_or_create(&asked).observe(per_token.as_secs_f64());
        }
        if let Some(used) = self.used {
            for (kind, count) in [("input", used.prompt()), ("output", used.completion())] {
                let labels = Used { asked: asked.clone(), gen_ai_token_type: kind };
                telemetry.tokens.get_or_create(&labels).observe(otlp::float(count));
            }
        }
        let labels = Ended { asked, error_type: self.error };
        telemetry.duration.get_or_create(&labels).observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests;
