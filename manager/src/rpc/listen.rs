//! The managers' port: accepts connections, finds out who is at the other end, and serves gRPC and REST on each.
//!
//! Everything has a limit: connections, handshakes' time, headers' time, streams of a connection. A listener that is full lets callers
//! wait outside.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rcluster_api::identity;
use rcluster_api::tls::{HANDSHAKE_TIMEOUT, Security, Trust};
use rcluster_base::clock::unix_ms;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::{Service, ServiceExt};
use tracing::{debug, warn};

use super::auth::{Peer, Validity, claims};
use super::figures::Figures;
use super::limits::Limiter;

/// Connections at once: an agent has one for its session and one for each conversation of a user.
const CONNECTIONS_MAX: usize = 8192;
/// Calls at once on one connection.
const STREAMS_MAX: u32 = 1024;
/// How long a caller may take for a request's headers, and for its first request.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// A caller of HTTP/2 that answers nothing for their sum is gone, though its kernel may answer for it: the process may be stopped.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the streams of a connection may take to end when its certificate has expired, or its authority was dropped.
const ENDING_TIMEOUT: Duration = Duration::from_secs(5);
/// The clock is looked at this often at least.
const LOOK: Duration = Duration::from_secs(60);
/// How long one is told that its caller has too many connections.
const REFUSED_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause when no connection can be accepted: the process is out of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What is counted of who comes; clones share it.
#[derive(Debug, Clone)]
pub struct Arrivals {
    pub figures: Arc<Figures>,
    pub limiter: Limiter,
}

/// Serves `app` until the future is dropped; its connections end with it.
pub async fn serve(listener: TcpListener, security: Security, app: Router, arrivals: Arrivals) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, from)) => {
                arrivals.figures.accepted.count();
                connections.spawn(connection(stream, from, security.clone(), app.clone(), arrivals.clone(), permit));
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
    arrivals: Arrivals,
    _permit: OwnedSemaphorePermit,
) {
    if let Err(error) = tune(&stream) {
        warn!(%error, "a connection keeps the system's defaults");
    }
    let Ok(arrived) = arrivals.limiter.arrived(from.ip()) else {
        debug!(%from, "too many handshakes from there");
        return arrivals.figures.limited.count();
    };
    let Some(config) = security.server() else {
        drop(arrived);
        return arrivals.serve(stream, from, (Peer::Plain, Proof::default()), app).await;
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await {
        Ok(Ok(stream)) => {
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let (shown, trust) = (chain.first(), security.trust(chain));
            if shown.is_none() || trust.is_some() {
                let (peer, until_ms) = (Peer::of(shown.map(AsRef::as_ref)), shown.and_then(|shown| expiry(shown)));
                drop(arrived);
                return arrivals.serve(stream, from, (peer, Proof { until_ms, trust }), app).await;
            }
            debug!("an authority was dropped during a TLS handshake");
        }
        Ok(Err(error)) => debug!(%error, "a TLS handshake failed"),
        Err(_) => debug!("a TLS handshake took too long"),
    }
    arrivals.figures.handshakes_failed.count();
}

/// For how long it is proven who is at the other end; without a certificate there is no end.
#[derive(Debug, Default)]
struct Proof {
    /// When the certificate has expired, Unix time.
    until_ms: Option<u64>,
    trust: Option<Trust>,
}

impl Proof {
    fn validity(&self) -> Validity {
        Validity { until_ms: self.until_ms, authority: self.trust.as_ref().map(|trust| trust.authority().clone()) }
    }

    /// Returns when it counts no more, with the reason.
    async fn over(&self) -> &'static str {
        let dropped = async {
            match &self.trust {
                Some(trust) => trust.lost().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = passed(self.until_ms) => "its certificate has expired",
            () = dropped => "the authority of its certificate was dropped",
        }
    }
}

impl Arrivals {
    /// Serves who is at the other end, now that it is known.
    async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        from: SocketAddr,
        (peer, proof): (Peer, Proof),
        app: Router,
    ) {
        let _there = self.figures.connected(&peer);
        let share = self.limiter.connected(&peer, from.ip());
        let held = match share.as_ref().map(|share| self.limiter.hold_connection(share)).transpose() {
            Ok(held) => held,
            Err(too_many) => {
                self.figures.limited.count();
                let Ok(_refused) = self.limiter.hold_refused() else { return debug!(%from, "too many connections are being refused") };
                let refusing = Router::new().fallback(move |request: Request| async move { too_many.refusal(&request) });
                // Long enough to be read.
                drop(tokio::time::timeout(REFUSED_TIMEOUT, requests(stream, refusing, &Proof::default())).await);
                return;
            }
        };
        let validity = proof.validity();
        let app = app.map_request(move |mut request: Request<hyper::body::Incoming>| {
            let claims = claims(&peer, request.headers()).by(from, validity.clone());
            request.extensions_mut().insert(claims);
            if let Some(share) = &share {
                request.extensions_mut().insert(share.clone());
            }
            request
        });
        requests(stream, app, &proof).await;
        drop(held);
    }
}

async fn requests<S>(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, app: S, proof: &Proof)
where
    S: Service<Request<hyper::body::Incoming>, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX);
    builder.http2().keep_alive_interval(PING_INTERVAL).keep_alive_timeout(PING_TIMEOUT);
    let asked = Arc::new(AtomicBool::new(false));
    let heard = asked.clone();
    let app = app.map_request(move |request| {
        heard.store(true, Ordering::Relaxed);
        request
    });
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = silent(&asked) => return debug!("a connection ends that asks for nothing"),
        why = proof.over() => {
            debug!(why, "a connection ends");
            // Streams end with a word to their users meanwhile.
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(ENDING_TIMEOUT, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended");
    }
}

/// Returns when nothing was asked for in time.
async fn silent(asked: &AtomicBool) {
    tokio::time::sleep(HEADERS_TIMEOUT).await;
    if asked.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// When the certificate has expired, in milliseconds of Unix time: after the last second that it names (RFC 5280 §4.1.2.5).
fn expiry(certificate: &[u8]) -> Option<u64> {
    let not_after = identity::read(certificate).ok()?.not_after;
    u64::try_from(not_after.saturating_add(1)).ok()?.checked_mul(1000)
}

/// Returns when the clock has passed this time, in milliseconds of Unix time; never without one.
async fn passed(until_ms: Option<u64>) {
    let Some(until_ms) = until_ms else { return std::future::pending().await };
    loop {
        let left_ms = until_ms.saturating_sub(unix_ms());
        if left_ms == 0 {
            return;
        }
        // The clock may be set meanwhile.
        tokio::time::sleep(Duration::from_millis(left_ms).min(LOOK)).await;
    }
}

/// Small messages leave at once, and a peer that lost power is noticed: its connection ends within seconds instead of hours.
fn tune(connection: &TcpStream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2)).with_retries(3);
    connection.set_nodelay(true)?;
    SockRef::from(connection).set_tcp_keepalive(&keepalive)
}
