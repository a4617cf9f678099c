//! What a locked manager serves: its door, under a certificate that is no manager's, until somebody has the key.
//!
//! Whoever asks for anything else does not get through the handshake, and reads there that the manager is locked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::seal::{Key, UnlockKey};
use rcluster_api::tls::{Credentials, HANDSHAKE_TIMEOUT, locked_server};
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::door_server::{Door, DoorServer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tonic::{Code, Request, Response, Status};
use tracing::{debug, info, warn};

use super::audit::Audit;
use super::methods::code_place;
use crate::seal::{Locked, Seal};
use crate::store::Identity;

/// Connections at once; more wait outside.
const CONNECTIONS_MAX: usize = 16;
/// Attempts that wait on one connection.
const STREAMS_MAX: u32 = 4;
/// How long a connection may stand: who unlocks is quick.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause before a wrong key is answered.
const AFTER_WRONG: Duration = Duration::from_secs(1);
/// How long answers may take to leave once the manager is unlocked.
const DRAIN: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Service {
    locked: Arc<Locked>,
    identity: Arc<Identity>,
    /// One wrong key at a time is answered.
    guesses: Arc<Semaphore>,
    unlocked: watch::Sender<Option<Seal>>,
    audit: Audit,
    /// Who is at the other end.
    from: Option<SocketAddr>,
}

const UNLOCK: &str = "Door/Unlock";

#[tonic::async_trait]
impl Door for Service {
    async fn unlock(&self, request: Request<v1::UnlockRequest>) -> Result<Response<v1::UnlockResponse>, Status> {
        let key = request.into_inner().key.and_then(|key| Key::from_bytes(&key.bytes));
        let name = &self.identity.name;
        let Some(seal) = key.and_then(|key| self.locked.unlock(&UnlockKey(key)).ok()) else {
            // Who has the key does not stand in line behind those who guess.
            let _turn = self.guesses.acquire().await.expect("the semaphore is never closed");
            warn!("somebody tried to unlock this manager with a wrong key");
            self.audit.tell_of_someone(self.from, UNLOCK, code_place(Code::PermissionDenied));
            sleep(AFTER_WRONG).await;
            let needed = self.locked.needed();
            let why = format!("wrong key: the disk of manager {name} is locked with the key whose fingerprint is {needed}");
            let hint = "if the key was rotated while this manager was off, give the one of before; if nobody has that any more, remove the \
                        manager and join again with an empty state directory";
            return Err(ApiError::new(ErrorCode::Forbidden, why).hint(hint).into());
        };
        self.audit.tell_of_someone(self.from, UNLOCK, code_place(Code::Ok));
        self.unlocked.send_replace(Some(seal));
        let peer = |member: &crate::store::Member| v1::Peer { raft_id: member.id, name: member.name.clone(), addr: member.addr.clone() };
        Ok(Response::new(v1::UnlockResponse { manager: name.clone(), managers: self.identity.seeds.iter().map(peer).collect() }))
    }
}

/// Serves until the disk is unlocked; everyone is answered by then.
pub async fn serve(listener: &TcpListener, locked: Locked, door: Option<Credentials>, identity: &Identity, audit: &Audit) -> Result<Seal> {
    let Some(door) = door else {
        bail!("this manager is locked and has no certificate by which it could be unlocked: bring back door.json");
    };
    let config = locked_server(&door).context("use door.json")?;
    info!(name = identity.name, key = locked.needed(), "locked: waiting for `rclusterctl cluster unlock`");
    let (unlocked, mut seal) = watch::channel(None);
    let (locked, identity) = (Arc::new(locked), Arc::new(identity.clone()));
    let guesses = Arc::new(Semaphore::new(1));
    let service = Service { locked, identity, guesses, unlocked, audit: audit.clone(), from: None };
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let seal = loop {
        while connections.try_join_next().is_some() {}
        let accepted = async {
            let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            (permit, listener.accept().await)
        };
        tokio::select! {
            found = seal.wait_for(Option::is_some) => {
                break found.ok().and_then(|seal| seal.clone()).expect("the service keeps the sender, and it was waited for");
            }
            (permit, accepted) = accepted => match accepted {
                Ok((stream, from)) => {
                    let service = Service { from: Some(from), ..service.clone() };
                    connections.spawn(connection(stream, config.clone(), service, permit));
                }
                Err(error) => {
                    warn!(%error, "no connection can be accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    };
    // An answer that does not leave is no reason to stay locked.
    drop(timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await);
    info!("unlocked");
    Ok(seal)
}

async fn connection(stream: TcpStream, config: Arc<ServerConfig>, service: Service, _permit: OwnedSemaphorePermit) {
    let mut unlocked = service.unlocked.subscribe();
    let served = async {
        let stream = match timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(%error, "a TLS handshake failed"),
            Err(_) => return debug!("a TLS handshake took too long"),
        };
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX);
        let app = tonic::service::Routes::new(DoorServer::new(service)).prepare();
        let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = async { drop(unlocked.wait_for(Option::is_some).await) } => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(%error, "a connection ended");
        }
    };
    if timeout(CONNECTION_TIMEOUT, served).await.is_err() {
        debug!("a connection stood for too long");
    }
}
