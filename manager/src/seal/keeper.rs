//! Keeps the disk's keys wrapped as the tables say: with the cluster's unlock key, or with none.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rcluster_api::cluster::Cluster;
use rcluster_api::tls::{Credentials, SigningRequest};
use rcluster_base::backoff::Backoff;
use tracing::{info, warn};

use super::{Lock, Seal, door, keep_door, reseal_credentials};
use crate::ca;
use crate::core::state::State;
use crate::store::Store;

/// Pause before what failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));

/// Runs as long as the manager.
pub async fn keep(store: Store, seal: Seal, dir: PathBuf) {
    let mut revisions = store.revisions();
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut seen = None;
    loop {
        revisions.borrow_and_update();
        let state = store.state();
        let wanted = state.cluster().map(|cluster| (cluster.unlock_generation, ca::trusted(&cluster.authorities)));
        let done = if wanted == seen { Ok(true) } else { follow(&store, &state, &seal, &dir) };
        match done {
            Ok(done) => {
                seen = if done { wanted } else { seen };
                backoff.reset();
                if revisions.changed().await.is_err() {
                    // The store has stopped; so does the manager.
                    std::future::pending::<()>().await;
                }
            }
            Err(error) => {
                warn!("{error:#}: this manager's disk is not sealed and locked as the cluster asks; trying on");
                tokio::time::sleep(backoff.delay()).await;
            }
        }
    }
}

/// Tables that are older than what the keys were wrapped by change nothing: a manager that starts has them first. `false`: the tables do
/// not say enough yet.
fn follow(store: &Store, state: &State, seal: &Seal, dir: &Path) -> Result<bool> {
    let own = store.status().own;
    let Some(cluster) = state.cluster() else { return Ok(false) };
    let Some(manager) = state.managers().values().find(|manager| manager.raft_id == own) else { return Ok(false) };
    let lock = Lock::of(cluster)?;
    if lock.key.is_some() {
        // Before it is locked: it could not be reached.
        keep_door_current(state.cluster_id(), cluster, dir, manager.id.as_str())?;
    }
    if lock.generation > seal.generation() {
        let on = lock.key.is_some();
        seal.wrap(lock)?;
        store.rekeyed();
        info!(
            generation = cluster.unlock_generation,
            "{}",
            if on { "this disk is locked with the unlock key" } else { "this disk is not locked" }
        );
    }
    reseal_credentials(dir, &seal.keys).context("seal the credentials anew")?;
    Ok(true)
}

/// Keeps a door in `dir`, unless there is one by the authorities of now.
pub(crate) fn keep_door_current(cluster_id: &str, cluster: &Cluster, dir: &Path, manager: &str) -> Result<()> {
    let trusted: Vec<Vec<u8>> = ca::trusted(&cluster.authorities);
    let is_current = |door: &Credentials| door.authorities.iter().map(|der| &der.0).eq(trusted.iter());
    if door(dir)?.is_some_and(|door| is_current(&door)) {
        return Ok(());
    }
    let request = SigningRequest::new()?;
    let issued = ca::issue_door(&cluster.authorities, cluster_id, manager, &request.request)?;
    Ok(keep_door(dir, &Credentials::new(issued, request.key))?)
}
