//! Connections to engines, each with the time at which it was made: one that was there before a request may have been closed by its engine meanwhile,
//! and then the failure says nothing of the request (RFC 9112, section 9.3.1).

use std::future::Future;
use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::Uri;
use hyper::http::Extensions;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{CaptureConnection, Connected, Connection, HttpConnector};
use tokio::time::Instant;
use tower_service::Service;

type Stream = <HttpConnector as Service<Uri>>::Response;
type Error = <HttpConnector as Service<Uri>>::Error;

/// When a connection was made.
#[derive(Clone, Copy)]
struct Made(Instant);

/// Whether what a request went out on was there before the request.
pub(super) fn is_older(connection: &CaptureConnection, sent: Instant) -> bool {
    let mut extras = Extensions::new();
    if let Some(connected) = connection.connection_metadata().as_ref() {
        connected.get_extras(&mut extras);
    }
    extras.get::<Made>().is_some_and(|made| made.0 < sent)
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
