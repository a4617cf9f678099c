//! The agent's process: everything it owns, from start to end.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rcluster_base::scope::Scope;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::info;

use crate::agent::{Agent, EVENTS_MAX};
use crate::config::Config;
use crate::core::owner::Statuses;
use crate::credentials::{self, Trust};
use crate::exec::netd_client::Netd;
use crate::exec::{Images, Tools};
use crate::host;
use crate::image::Store;
use crate::image::housekeeper::Housekeeper;
use crate::image::pull::Puller;
use crate::image::registry::Client;
use crate::place::Places;
use crate::relay;
use crate::session::{self, Session};

/// Runs the agent until it is told to end. Containers stay: the next agent adopts them.
pub async fn run(config: Config) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the agent mounts file systems and runs containers: it must be run as root");
    }
    let places = Places { state: config.state_dir.clone(), run: config.run_dir.clone() };
    for dir in [&places.state, &places.run] {
        fs::create_dir_all(dir).with_context(|| format!("make directory {}", dir.display()))?;
    }
    let _state_lock = only_one(&places.state, "state")?;
    let _run_lock = only_one(&places.run, "run")?;
    for dir in [places.tasks(), places.writes(), places.logs(), places.volumes(), places.runtime_root()] {
        fs::create_dir_all(&dir).with_context(|| format!("make directory {}", dir.display()))?;
    }
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let security = tokio::select! {
        security = credentials::security(&config, &places) => security?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let identity = host::identify(&places, credentials::node_id(&security)?).context("read the node's identity")?;
    let description = host::describe(&config.name, &config.addr.to_string(), config.labels.clone(), config.policy.clone())?;
    info!(
        node = config.name,
        id = %identity.node_id,
        incarnation = identity.incarnation,
        cgroup = description.cgroup,
        kernel = description.kernel,
        "rcluster-agent {}",
        description.version
    );
    let store = Store::open(&places.state)?;
    let client = Client::new(config.registries.clone()).context("prepare to pull images")?;
    let housekeeper = Housekeeper { store: store.clone(), limits: config.collection.limits, every: config.collection.every };
    let images = Images { puller: Puller::new(store.clone(), client), store, policy: config.pull };
    let netd = Netd::new(&places)?;
    let credentials_file = places.credentials_file();
    let tools = Arc::new(Tools::new(&config, places, images, netd, security.clone()));

    let (events, inbox) = mpsc::channel(EVENTS_MAX);
    let statuses = watch::Sender::new(Statuses::new());
    let (assignments, latest) = watch::channel(None);
    let (trust, heard) = watch::channel(Trust::default());
    let session = Session {
        tools: Arc::clone(&tools),
        node_id: identity.node_id,
        incarnation: identity.incarnation,
        description,
        statuses: statuses.subscribe(),
        assignments,
        trust,
    };
    relay::leftover::end(&tools.places);
    let agent = Agent::restore(Arc::clone(&tools), events.clone(), statuses).context("take up what is on the node")?;

    let mut scope = Scope::new();
    scope.spawn(agent.run(inbox));
    scope.spawn(session::take_in(Arc::clone(&tools), latest, events));
    scope.spawn(session::run(session, config.managers.clone()));
    scope.spawn(credentials::keep(security, credentials_file, heard));
    scope.spawn(async move { tools.netd.drive().await });
    scope.spawn(async move { match housekeeper.run().await {} });

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("ends; containers go on and the next agent adopts them");
    scope.shutdown().await;
    Ok(())
}

/// A lock on the directory for as long as the file is open.
fn only_one(dir: &Path, what: &str) -> Result<File> {
    let path = dir.join("agent.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).with_context(|| format!("open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!("another agent uses the {what} directory {}: end it first", dir.display()),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}
