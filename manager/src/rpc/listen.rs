//! The managers' port: accepts connections, finds out who is at the other end, and serves gRPC and REST on each.
//!
//! Everything has a limit: connections, handshakes' time, headers' time, streams of a connection. A listener that is full lets callers
//! wait outside.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rcluster_api::tls::{HANDSHAKE_TIMEOUT, Security};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use tracing::{debug, warn};

use super::auth::{Peer, claims};
use super::figures::Figures;

/// Connections at once: an agent has one for its session and one for each conversation of a user.
const CONNECTIONS_MAX: usize = 8192;
/// Calls at once on one connection.
const STREAMS_MAX: u32 = 1024;
/// How long a caller may take for a request's headers.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause when no connection can be accepted: the process is out of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Serves `app` until the future is dropped; its connections end with it.
pub async fn serve(listener: TcpListener, security: Security, app: Router, figures: Arc<Figures>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, from)) => {
                figures.accepted.count();
                connections.spawn(connection(stream, from, security.clone(), app.clone(), figures.clone(), permit));
            }
            Err(error) => {
                warn!(%error, "no connection can be accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    from: SocketAddr,
    security: Security,
    app: Router,
    figures: Arc<Figures>,
    _permit: OwnedSemaphorePermit,
) {
    if let Err(error) = tune(&stream) {
        warn!(%error, "a connection keeps the system's defaults");
    }
    let Some(config) = security.server() else { return requests(stream, from, Peer::Plain, app, &figures).await };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await {
        Ok(Ok(stream)) => {
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let peer = Peer::of(shown.map(AsRef::as_ref));
            return requests(stream, from, peer, app, &figures).await;
        }
        Ok(Err(error)) => debug!(%error, "a TLS handshake failed"),
        Err(_) => debug!("a TLS handshake took too long"),
    }
    figures.handshakes_failed.count();
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    from: SocketAddr,
    peer: Peer,
    app: Router,
    figures: &Figures,
) {
    let _there = figures.connected(&peer);
    let app = app.map_request(move |mut request: Request<hyper::body::Incoming>| {
        let claims = claims(&peer, request.headers()).by(from);
        request.extensions_mut().insert(claims);
        request
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app)).await {
        debug!(%error, "a connection ended");
    }
}

/// Small messages leave at once, and a peer that lost power is noticed: its connection ends within seconds instead of hours.
fn tune(connection: &TcpStream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2)).with_retries(3);
    connection.set_nodelay(true)?;
    SockRef::from(connection).set_tcp_keepalive(&keepalive)
}
