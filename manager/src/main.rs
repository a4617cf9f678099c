//! rcluster-manager: the store, the leader's scope and the interfaces in one process.

use std::time::Duration;

use anyhow::{Context, Result};
use axum::serve::ListenerExt;
use clap::Parser;
use rcluster_api::client::MESSAGE_BYTES_MAX;
use rcluster_api::wire::v1::control_server::ControlServer;
use rcluster_api::wire::v1::dispatcher_server::DispatcherServer;
use rcluster_api::wire::v1::raft_server::RaftServer;
use rcluster_base::scope::Scope;
use rcluster_base::telemetry;
use rcluster_manager::config::{Config, Flags};
use rcluster_manager::core::node::liveness::Timing;
use rcluster_manager::drive::Leadership;
use rcluster_manager::rpc::control::ControlService;
use rcluster_manager::rpc::dispatcher::DispatcherService;
use rcluster_manager::rpc::raft::RaftService;
use rcluster_manager::rpc::{Router, rest};
use rcluster_manager::store::{self, Member, StoreConfig};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

fn main() -> Result<()> {
    let config = Flags::parse().check()?;
    telemetry::start(config.log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("start the async runtime")?;
    runtime.block_on(run(config))
}

async fn run(config: Config) -> Result<()> {
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listen on {} (is another manager running, or is the address not this host's?)", config.listen))?;
    let members = config.members.iter().map(|(id, name, addr)| Member { id: *id, name: name.clone(), addr: addr.clone() }).collect();
    let (store, raft) = store::start(StoreConfig::new(config.name.clone(), config.id, members, config.state_dir.clone()))
        .with_context(|| format!("open the store in {}", config.state_dir.display()))?;
    let mut scope = Scope::new();
    let leadership = Leadership::start(store.clone(), Timing::default(), &mut scope);
    let router = Router::new(store.clone(), leadership);
    let control = ControlService::new(router.clone());
    let routes = tonic::service::Routes::new(
        ControlServer::new(control.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX),
    )
    .add_service(
        DispatcherServer::new(DispatcherService::new(router))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX),
    )
    .add_service(
        RaftServer::new(RaftService::new(raft)).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX),
    );
    let app = rest::routes(control).merge(routes.into_axum_router().reset_fallback());
    info!(name = config.name, listen = %config.listen, "serving");
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    tokio::select! {
        served = axum::serve(listener.tap_io(tune), app).into_future() => served.context("serve")?,
        _ = terminate.recv() => info!("stopping: SIGTERM"),
        _ = interrupt.recv() => info!("stopping: SIGINT"),
    }
    store.shutdown().await;
    scope.shutdown().await;
    Ok(())
}

/// Small messages leave at once, and a peer that lost power is noticed: its connection ends within seconds instead of hours.
fn tune(connection: &mut TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2)).with_retries(3);
    let tuned = connection.set_nodelay(true).and_then(|()| SockRef::from(&*connection).set_tcp_keepalive(&keepalive));
    if let Err(error) = tuned {
        warn!(%error, "a connection keeps the system's defaults");
    }
}
