//! Sockets: connections are taken, with TLS where it is asked for, and let go in an orderly way at the end.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use spillway_tls::Server;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Connections at once, of one port. A gateway has one or two.
const CONNECTIONS: usize = 4_096;
/// How long who connects may take to show who it is, and to send the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// How often it is asked whether anybody is at the other end.
const ALIVE: Duration = Duration::from_secs(20);
/// For how long a connection is used. Whoever connects anew shows a certificate that is good still.
const AGE: Duration = Duration::from_secs(3_600);

/// Serves until `ended` is over and those who are being answered have their answers. With `tls` whoever comes must come by it.
pub async fn serve_until(
    listener: TcpListener,
    app: Router,
    tls: Option<Arc<Server>>,
    ended: impl Future<Output = ()> + Send + 'static,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let (end, ending) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut ended = pin!(ended);
    loop {
        tokio::select! {
            biased;
            () = &mut ended => break,
            (stream, place) = accept(&listener, &places) => {
                let acceptor = tls.as_ref().map(|tls| tls.acceptor());
                connections.spawn(hold(stream, acceptor, place, app.clone(), ending.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    end.send_replace(true);
    while connections.join_next().await.is_some() {}
}

/// Listens there.
///
/// # Errors
///
/// What the system says.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    loop {
        // Closed it is never.
        let place = Arc::clone(places).acquire_owned().await.ok();
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection delays small packets");
                }
                return (stream, place);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn is_over(ending: &mut watch::Receiver<bool>) {
    let _ = ending.wait_for(|over| *over).await;
}

/// Serves one connection to its end.
async fn hold(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    _place: Option<OwnedSemaphorePermit>,
    app: Router,
    mut ending: watch::Receiver<bool>,
) {
    let Some(acceptor) = acceptor else { return hold_stream(stream, app, ending).await };
    let from = stream.peer_addr().map_or_else(|_| "nowhere".to_owned(), |from| from.ip().to_string());
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(HEAD, acceptor.accept(stream)) => shaken,
        () = is_over(&mut ending) => return,
    };
    match shaken {
        Ok(Ok(stream)) => Box::pin(hold_stream(stream, app, ending)).await,
        Ok(Err(error)) => tracing::warn!(from, %error, "whoever called was not let in"),
        Err(_) => tracing::debug!(from, "whoever called took too long to show who it is"),
    }
}

async fn hold_stream<Stream>(stream: Stream, app: Router, mut ending: watch::Receiver<bool>)
where
    Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(ALIVE).keep_alive_timeout(ALIVE);
    let (asked, app) = (Arc::new(AtomicBool::new(false)), TowerToHyperService::new(app));
    let has_asked = Arc::clone(&asked);
    let service = service_fn(move |request| {
        has_asked.store(true, Ordering::Relaxed);
        app.call(request)
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // hyper's own time limit begins when it knows which HTTP it is.
    let silent = async {
        tokio::time::sleep(HEAD).await;
        if asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = silent => return,
        () = is_over(&mut ending) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = tokio::time::sleep(AGE) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection ended");
    }
}
