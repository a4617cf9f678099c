//! The store in an etcd that the user runs already: the log and its snapshots are keys there, and every manager follows them.
//!
//! ```text
//!  propose ─► queue ─► one etcd transaction: "I lead, the head is N, the format is mine" → entries N+1…, head ─► tables ─► answers
//!  etcd's watch ─► entries in order ─► tables ─► state, revision
//!  lease ─► "I run" and, for whoever made it, the leader's key; a lease that may have ended ends leadership first
//! ```
//!
//! Why a log of transactions and not a key for each object: `docs/decisions/0008-etcd-holds-the-log.md`.

mod address;
mod anew;
mod client;
mod keys;
mod lease;
mod node;
mod publish;
mod session;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rcluster_api::wire::v1;
use rcluster_base::backoff::Backoff;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::{error, warn};

use super::raft::{AbortOnPanic, Chain};
use super::{Backend, PERMITS, ProposeError, Store, StoreConfig};
use crate::core::state::{State, Transaction};
pub use address::{Access, Address, NotAnAddress};
pub use anew::Held;
pub use client::CallError;
use client::Etcd;
use node::Node;

/// Pause before an etcd that cannot be used is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long the keys of a new cluster may take: some values, each asked for again when etcd does not answer.
const FOUND_TIMEOUT: Duration = Duration::from_secs(10);

/// What leadership costs when a leader dies, against what a stall of etcd costs.
#[derive(Debug, Clone, Copy)]
pub struct EtcdTiming {
    /// A manager that is silent for so long has its lease ended, in whole seconds; etcd takes no less than 2 by its defaults. It stops
    /// leading by itself after three quarters of it.
    pub lease: Duration,
    /// A leader that gives leadership up does not stand again for so long.
    pub pause: Duration,
}

impl Default for EtcdTiming {
    fn default() -> Self {
        Self { lease: Duration::from_secs(4), pause: Duration::from_secs(1) }
    }
}

/// What the owner task is told.
#[derive(Debug)]
pub enum Input {
    Propose(Proposal),
    Read { reply: oneshot::Sender<()> },
    Resign,
    Shutdown { done: oneshot::Sender<()> },
}

/// A transaction that wants to become a revision.
#[derive(Debug)]
pub struct Proposal {
    pub transaction: Transaction,
    pub entry: v1::Transaction,
    pub bytes: usize,
    pub reply: oneshot::Sender<Result<u64, ProposeError>>,
    pub permit: OwnedSemaphorePermit,
}

/// Why a store in etcd cannot go on, or cannot begin.
#[derive(Debug, Error)]
pub enum Fatal {
    #[error("etcd at {address} has no cluster {cluster_id}: give --store as the other managers have it")]
    NoCluster { address: String, cluster_id: String },
    #[error("this manager was removed from its cluster: to bring the host back, join with an empty state directory")]
    Removed,
    #[error("another program runs as this manager: each needs a state directory of its own")]
    Twice,
    #[error(
        "etcd has gone back: it is at revision {found} of the tables, and this manager has seen {seen}, or more of etcd itself. If it was restored from a backup, stop all managers and go on with `rclusterctl cluster recover`: agents refuse what is older than they have seen"
    )]
    WentBack { found: u64, seen: u64 },
    #[error(
        "the store in etcd was raised to format {found} by a later version; this one reads {}: upgrade this manager. It writes nothing there any more",
        keys::FORMAT
    )]
    Raised { found: u32 },
    #[error("what stands in etcd cannot be used")]
    Call(#[from] CallError),
}

/// Makes the keys of a new cluster; false: they are there. Who waits for it is told soon why etcd cannot be used.
pub async fn found(access: &Access, cluster_id: &str, state: State) -> Result<bool, CallError> {
    let etcd = Etcd::connect(access, cluster_id).await?;
    etcd.probe().await?;
    let made = tokio::time::timeout(FOUND_TIMEOUT, etcd.found(state)).await;
    made.unwrap_or(Err(CallError::Timeout { what: "make the cluster's keys", waited: FOUND_TIMEOUT }))
}

/// Starts the store once it has the tables; as long as etcd cannot be reached it tries on.
pub async fn start(config: StoreConfig, timing: EtcdTiming, access: &Access) -> Result<Store, Fatal> {
    start_with(config, timing, access, |_| std::process::exit(1)).await
}

/// Starts the store; `on_fatal` is told when it cannot go on.
pub async fn start_with(
    config: StoreConfig,
    timing: EtcdTiming,
    access: &Access,
    on_fatal: impl FnOnce(&Fatal) + Send + 'static,
) -> Result<Store, Fatal> {
    let (mut backoff, mut told) = (Backoff::new(RETRY.0, RETRY.1), String::new());
    let (etcd, loaded) = loop {
        match connect(access, &config.cluster_id).await {
            Ok(ready) => break ready,
            Err(CallError::Unreadable(keys::Unreadable::Missing { key })) if key.ends_with("/format") => {
                return Err(Fatal::NoCluster { address: access.address.to_string(), cluster_id: config.cluster_id });
            }
            Err(error) if error.is_passing() || matches!(error, CallError::Compacted) => {
                let text = error.to_string();
                if told != text {
                    warn!(%error, etcd = %access.address, "cannot read the tables yet; trying on");
                    told = text;
                }
                tokio::time::sleep(backoff.delay()).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    let (inbox, inputs) = mpsc::unbounded_channel();
    let (publisher, seen) = publish::Publisher::new(&config);
    let publish::Seen { state, status, revisions, role } = seen;
    let meter = config.meter.clone();
    let mut node = Node::new(config, timing, etcd, publisher, inputs);
    node.install(loaded)?;
    tokio::spawn(async move {
        let _guard = AbortOnPanic;
        if let Err(fatal) = node.run().await {
            error!(error = %Chain(&fatal), "this manager ends");
            on_fatal(&fatal);
        }
    });
    let backend = Backend::Etcd { inbox, address: access.address.to_string().into() };
    Ok(Store { state, status, revisions, role, backend, permits: Arc::new(Semaphore::new(PERMITS)), meter })
}

async fn connect(access: &Access, cluster_id: &str) -> Result<(Etcd, client::Loaded), CallError> {
    let etcd = Etcd::connect(access, cluster_id).await?;
    // What follows is asked for without end: here a person is told why nothing happens.
    etcd.probe().await?;
    let loaded = etcd.load(cluster_id).await?;
    Ok((etcd, loaded))
}

/// A shared value that is replaced as a whole.
type Shared<T> = Arc<ArcSwap<T>>;
