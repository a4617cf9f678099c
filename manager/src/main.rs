//! rcluster-manager: the store, the leader's scope and the interfaces in one process.

use std::future::Future;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use axum::middleware::from_fn_with_state;
use clap::Parser;
use rcluster_api::client::MESSAGE_BYTES_MAX;
use rcluster_api::tls::Security;
use rcluster_api::wire::v1::admission_server::AdmissionServer;
use rcluster_api::wire::v1::control_server::ControlServer;
use rcluster_api::wire::v1::dispatcher_server::DispatcherServer;
use rcluster_api::wire::v1::raft_server::RaftServer;
use rcluster_base::scope::Scope;
use rcluster_base::telemetry::{self, LogFormat};
use rcluster_manager::config::{Cli, Config, Init, Join, Verb};
use rcluster_manager::core::node::liveness::Timing;
use rcluster_manager::disaster;
use rcluster_manager::drive::Leadership;
use rcluster_manager::found::{self, Founded};
use rcluster_manager::renewal;
use rcluster_manager::rpc::admission::AdmissionService;
use rcluster_manager::rpc::audit::Audit;
use rcluster_manager::rpc::audited::AuditedControl;
use rcluster_manager::rpc::calls::{self, Calls};
use rcluster_manager::rpc::dispatcher::DispatcherService;
use rcluster_manager::rpc::limits::Limiter;
use rcluster_manager::rpc::listen::Arrivals;
use rcluster_manager::rpc::raft::RaftService;
use rcluster_manager::rpc::{Router, listen, locked, rest};
use rcluster_manager::seal::{self, Opened, keeper};
use rcluster_manager::store::etcd::{self, Access, EtcdTiming};
use rcluster_manager::store::{self, Inbound, Store, StoreConfig};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    verb().map_err(|error| match store::advice(error.as_ref()) {
        Some(advice) => error.context(advice),
        None => error,
    })
}

fn verb() -> Result<()> {
    match Cli::parse().verb {
        Verb::Init(args) => init(&args.check()?),
        Verb::Run(args) => {
            telemetry::start(args.log_format);
            let config = args.check()?;
            block_on(run(config))
        }
        Verb::Join(args) => {
            telemetry::start(LogFormat::Text);
            let (join, state_dir, store) = args.check()?;
            block_on(self::join(join, state_dir, store))
        }
        Verb::Restore(args) => disaster::restore(&args.check()?, &mut std::io::stdout().lock()),
        Verb::Recover(args) => disaster::recover(&args.check()?, &mut std::io::stdout().lock()),
    }
}

fn block_on(verb: impl Future<Output = Result<()>>) -> Result<()> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().context("start the async runtime")?.block_on(verb)
}

async fn join(join: Join, state_dir: PathBuf, store: Option<Access>) -> Result<()> {
    disaster::check_whole(&state_dir)?;
    if let Some(found) = store::identity(&state_dir)? {
        bail!("{} is of {found} already: start it with `rcluster-manager run`, or give an empty directory", state_dir.display());
    }
    found::join(&join, &state_dir, store.is_some()).await?;
    let (name, dir, addr, flags) = (&join.name, state_dir.display(), &join.advertise, flags(join.token.is_none(), store.as_ref()));
    let text = format!(
        "manager {name} has joined; it takes part once it is started:\nrcluster-manager run --state-dir {dir} --listen {addr}{flags}"
    );
    writeln!(std::io::stdout().lock(), "{text}").context("write to stdout")
}

fn init(init: &Init) -> Result<()> {
    disaster::check_whole(&init.state_dir)?;
    let founded = found::init(init)?;
    let text = if init.json { serde_json::to_string(&founded).context("encode as JSON")? } else { told(init, &founded) };
    writeln!(std::io::stdout().lock(), "{text}").context("write to stdout")
}

/// What every manager of such a cluster is started with.
fn flags(insecure: bool, store: Option<&Access>) -> String {
    let insecure = if insecure { " --insecure" } else { "" };
    insecure.to_owned() + &store.map(Access::flags).unwrap_or_default()
}

fn told(init: &Init, founded: &Founded) -> String {
    let Founded { cluster_id, manager, manager_token, agent_token, admin_file } = founded;
    let (dir, addr, admin) = (init.state_dir.display(), &init.advertise, admin_file.display());
    let flag = flags(init.insecure, init.store.as_ref());
    let mut text = format!(
        "cluster {cluster_id} is made, with manager {manager}\n\n\
         start it:             rcluster-manager run --state-dir {dir} --listen {addr}{flag}\n\
         use it:               rclusterctl context create NAME --from {admin}\n"
    );
    if init.insecure {
        text += &format!("more managers:        rcluster-manager run --join {addr} --name NAME --state-dir DIR --listen HOST:PORT{flag}\n");
        text += &format!("agents:               rcluster-agent run --managers {addr} … --insecure");
    } else {
        text += &format!("more managers:        RCLUSTER_JOIN_TOKEN={manager_token} \\\n");
        text += &format!("                      rcluster-manager run --join {addr} --name NAME --state-dir DIR --listen HOST:PORT{flag}\n");
        text += &format!("agents:               RCLUSTER_JOIN_TOKEN={agent_token} rcluster-agent run --managers {addr} …\n");
        text += "\nWho has a token can join. rclusterctl cluster token manager|agent prints it again; --rotate makes another.";
    }
    text
}

/// Starts the store of a manager, where its directory says that the state is; with what other managers' messages go to.
async fn open(config: StoreConfig, in_etcd: bool, external: Option<Access>, security: &Security) -> Result<(Store, Option<Inbound>)> {
    let dir = config.dir.display().to_string();
    match (in_etcd, external) {
        (false, None) => {
            let (store, raft) = store::start(config, security.clone()).with_context(|| format!("open the store in {dir}"))?;
            Ok((store, Some(raft)))
        }
        (true, Some(access)) => {
            let opened = etcd::start(config, EtcdTiming::default(), &access).await;
            Ok((opened.with_context(|| format!("open the store at {}", access.address))?, None))
        }
        (true, None) => bail!("the cluster of the manager in {dir} keeps its state in etcd: start with --store etcd://…"),
        (false, Some(_)) => bail!("the manager in {dir} keeps the state itself: start without --store; the state cannot move to etcd"),
    }
}

async fn run(config: Config) -> Result<()> {
    let Config { state_dir, listen, join, insecure, store: external, limits } = config;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen on {listen} (is another manager running, or is the address not this host's?)"))?;
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    disaster::check_whole(&state_dir)?;
    let mut fresh = None;
    if store::identity(&state_dir)?.is_none() {
        let Some(join) = &join else {
            bail!(
                "{} holds no manager: make a cluster with `rcluster-manager init`, or join one with --join, --token-file and --name",
                state_dir.display()
            );
        };
        fresh = tokio::select! {
            joined = found::join(join, &state_dir, external.is_some()) => Some(joined?),
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
    }
    let identity = store::identity(&state_dir)?.context("find out whose the state directory is")?;
    let audit = Audit::start(&identity.name).context("start a thread")?;
    let disk = match fresh.map_or_else(|| found::open_seal(&state_dir, &identity), |disk| Ok(Opened::Open(disk)))? {
        Opened::Open(disk) => disk,
        Opened::Locked(locked) => {
            let door = seal::door(&state_dir)?;
            tokio::select! {
                unlocked = locked::serve(&listener, locked, door, &identity, &audit) => unlocked?,
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
            }
        }
    };
    let security = found::security(&state_dir, insecure, &disk)?;
    let name = identity.name.clone();
    let config = StoreConfig::new(identity.cluster_id, identity.name, identity.id, identity.seeds, state_dir.clone());
    let config = StoreConfig { keys: Some(disk.keys.clone()), ..config };
    let opening = open(config, identity.etcd, external, &security);
    let (store, raft) = tokio::select! {
        opened = opening => opened?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    found::forget_keys(&state_dir, &disk)?;
    if security.is_plain() && store.state().cluster().is_some_and(|cluster| !cluster.authorities.is_empty()) {
        bail!("this cluster was made with TLS: start without --insecure, and bring back credentials.json if it is missing");
    }
    let mut scope = Scope::new();
    let leadership = Leadership::start(store.clone(), Timing::default(), &mut scope);
    let router = Router::new(store.clone(), leadership, security.clone(), audit);
    if !security.is_plain() {
        scope.spawn(renewal::keep(router.clone(), security.clone(), state_dir.clone(), disk.keys.clone()));
    }
    scope.spawn(keeper::keep(store.clone(), disk, state_dir));
    let limiter = Limiter::new(limits);
    let calls = Calls { router: router.clone(), limiter: limiter.clone() };
    let arrivals = Arrivals { figures: router.figures.clone(), limiter };
    let control = AuditedControl::new(router.clone());
    let routes = tonic::service::Routes::new(
        ControlServer::new(control.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX),
    )
    .add_service(AdmissionServer::new(AdmissionService::new(router.clone())))
    .add_service(
        DispatcherServer::new(DispatcherService::new(router))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX),
    );
    let routes = match raft {
        Some(raft) => routes.add_service(
            RaftServer::new(RaftService::new(raft))
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX),
        ),
        // Managers whose state is in etcd have nothing to tell each other.
        None => routes,
    };
    let app =
        rest::routes(control).merge(routes.into_axum_router().reset_fallback()).layer(from_fn_with_state(calls.clone(), calls::serve));
    info!(name, %listen, security = ?security, "serving");
    let serving = listen::serve(listener, security, app, arrivals);
    tokio::pin!(serving);
    tokio::select! {
        () = &mut serving => {}
        _ = terminate.recv() => info!("stopping: SIGTERM"),
        _ = interrupt.recv() => info!("stopping: SIGINT"),
    }
    // Leadership goes while this manager still hears the others and answers users: what comes meanwhile is passed on.
    tokio::select! {
        () = &mut serving => {}
        () = store.hand_over() => {}
    }
    store.shutdown().await;
    scope.shutdown().await;
    Ok(())
}
