//! The client's side of an exchange: the head of its answer, and then the pieces.

use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::sync::{mpsc, oneshot};

use super::{Answer, json};
use crate::error::ApiError;

/// Pieces of an answer that wait for its client.
pub(super) const PIECES: usize = 8;
/// A comment, which clients of event streams pass over: it shows them, and whatever is in between, that the connection lives.
const HEARTBEAT: &[u8] = b": the model is starting\n\n";

/// Who waits for the head of the answer.
pub(super) type Head = oneshot::Sender<Result<Response<Answer>, ApiError>>;

/// Who waits for an answer. That it is dropped, or has read enough, is how a client's going away is seen.
pub(super) enum Downstream {
    /// Of which nothing has gone yet.
    Waits(Head),
    /// A stream whose head went before there was an answer: what fails now is told as an event.
    Begun(mpsc::Sender<Bytes>),
}

impl Downstream {
    /// Until the client is gone.
    pub(super) async fn closed(&mut self) {
        match self {
            Self::Waits(head) => head.closed().await,
            Self::Begun(pieces) => pieces.closed().await,
        }
    }

    /// Shows a client that reads a stream that it is not forgotten.
    pub(super) fn beat(&mut self) {
        if let Self::Waits(head) = self {
            // Nobody waits for this one.
            let head = std::mem::replace(head, oneshot::channel().0);
            *self = Self::Begun(begin(head, None));
        }
        // Who does not read is found out when there is an answer; there is room left to tell of an error.
        if let Self::Begun(pieces) = self
            && pieces.capacity() > 1
        {
            let _ = pieces.try_send(Bytes::from_static(HEARTBEAT));
        }
    }

    /// The answer is a stream.
    pub(super) fn stream(self, content_type: Option<HeaderValue>) -> mpsc::Sender<Bytes> {
        match self {
            Self::Begun(pieces) => pieces,
            Self::Waits(head) => begin(head, content_type),
        }
    }

    /// There is no answer.
    pub(super) fn fail(self, error: ApiError) {
        match self {
            Self::Waits(head) => drop(head.send(Err(error))),
            Self::Begun(pieces) => drop(pieces.try_send(error.event().into())),
        }
    }

    /// The engine says no, in so many words: the JSON of an error.
    pub(super) fn refuse(self, status: StatusCode, error: String) {
        match self {
            Self::Waits(head) => {
                let mut answer = json(error);
                *answer.status_mut() = status;
                drop(head.send(Ok(answer)));
            }
            Self::Begun(pieces) => drop(pieces.try_send(format!("data: {error}\n\n").into())),
        }
    }
}

/// The head of a stream goes.
fn begin(head: Head, content_type: Option<HeaderValue>) -> mpsc::Sender<Bytes> {
    let (pieces, receiver) = mpsc::channel(PIECES);
    let events = HeaderValue::from_static("text/event-stream; charset=utf-8");
    let mut answer = Response::new(Answer::Stream(receiver));
    answer.headers_mut().insert(CONTENT_TYPE, content_type.unwrap_or(events));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Who is gone already is found by its pieces.
    let _ = head.send(Ok(answer));
    pieces
}
