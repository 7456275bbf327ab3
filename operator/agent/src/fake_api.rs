//! An API server of the test's own at the edge of the client: it keeps what it was sent and answers by a function.

use kube::Client;
use kube::client::Body;
use serde_json::Value;
use tokio::sync::mpsc;
use tonic::codegen::http::{Request, Response};
use tower::service_fn;

/// One request as the API server sees it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) uri: String,
    pub(crate) content_type: String,
    pub(crate) body: Value,
}

/// A client of a server that answers with `answer`: a status code and a body, or nothing for ever.
/// Every request comes out of the receiver.
pub(crate) fn fake_client<F>(answer: F) -> (Client, mpsc::UnboundedReceiver<Seen>)
where
    F: Fn(&Seen) -> Option<(u16, Value)> + Clone + Send + 'static,
{
    let (sender, receiver) = mpsc::unbounded_channel();
    let service = service_fn(move |request: Request<Body>| {
        let (answer, sender) = (answer.clone(), sender.clone());
        async move {
            let (parts, body) = request.into_parts();
            let bytes = body.collect_bytes().await.expect("a body");
            let content_type = parts.headers.get("content-type").map(|value| value.to_str().expect("text").to_owned());
            let seen = Seen {
                method: parts.method.to_string(),
                uri: parts.uri.to_string(),
                content_type: content_type.unwrap_or_default(),
                body: serde_json::from_slice(&bytes).unwrap_or_default(),
            };
            let answered = answer(&seen);
            sender.send(seen).expect("the test listens");
            let Some((code, body)) = answered else { return std::future::pending().await };
            let body = Body::from(serde_json::to_vec(&body).expect("JSON"));
            Ok::<_, tower::BoxError>(Response::builder().status(code).body(body).expect("a response"))
        }
    });
    (Client::new(service, "default"), receiver)
}
