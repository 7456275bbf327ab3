//! Connections to engines, each with the time at which it was made: one that was there before a request may have been closed by its engine meanwhile,
//! and then the failure says nothing of the request (RFC 9112, section 9.3.1).

use std::error::Error as _;
use std::future::Future;
use std::io::{ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper::http::Extensions;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy as client;
use hyper_util::client::legacy::connect::{CaptureConnection, Connected, Connection, HttpConnector};
use tokio::time::Instant;
use tower_service::Service;

type Stream = <HttpConnector as Service<Uri>>::Response;
type Error = <HttpConnector as Service<Uri>>::Error;

/// When a connection was made.
#[derive(Clone, Copy)]
struct Made(Instant);

/// What an engine closed before a request came is noticed at once; what breaks off later had begun with it.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Whether what a request was sent on had been closed before, as far as can be told: it was there before the request, and broke off at once without
/// a byte of an answer.
pub(super) fn was_closed(connection: &CaptureConnection, sent: Instant, error: &client::Error) -> bool {
    if sent.elapsed() > AT_ONCE || !is_broken(error) {
        return false;
    }
    let mut extras = Extensions::new();
    if let Some(connected) = connection.connection_metadata().as_ref() {
        connected.get_extras(&mut extras);
    }
    extras.get::<Made>().is_some_and(|made| made.0 < sent)
}

/// Whether a connection broke off, rather than that something came on it that is no answer.
fn is_broken(error: &client::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        let http = error.downcast_ref::<hyper::Error>();
        if matches!(kind, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
            || http.is_some_and(|error| error.is_incomplete_message() || error.is_closed())
        {
            return true;
        }
        source = error.source();
    }
    false
}

/// Makes them.
#[derive(Clone, Debug)]
pub(super) struct Connector(pub(super) HttpConnector);

impl Service<Uri> for Connector {
    type Response = Dated;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Dated, Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<std::result::Result<(), Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.0.call(uri);
        Box::pin(async { Ok(Dated { stream: connecting.await?, made: Made(Instant::now()) }) })
    }
}

/// A connection.
pub(super) struct Dated {
    stream: Stream,
    made: Made,
}

impl Connection for Dated {
    fn connected(&self) -> Connected {
        self.stream.connected().extra(self.made)
    }
}

impl Read for Dated {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Dated {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }
}
