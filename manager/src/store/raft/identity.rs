//! Whose state directory it is. A member of a Raft group that comes back without what it voted and confirmed, or as someone else, breaks
//! the group's promises, so both are refused.
//!
//! `identity.json` is written after the first log is whole: where it stands and the log does not, the log was lost.

use std::fmt;
use std::path::Path;

use raft::eraftpb::{ConfState, HardState, Snapshot};
use rcluster_base::ledger;
use serde::{Deserialize, Serialize};

use super::disk::RedbLog;
use super::log::LogError;
use super::{StoreConfig, StoreError};
use crate::core::state::{State, encode_snapshot};

const FILE: &str = "identity.json";

/// A member of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    cluster_id: String,
    name: String,
    id: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "manager {} (id {}) of cluster {}", self.name, self.id, self.cluster_id)
    }
}

/// Opens the log of this manager, or makes its first one.
pub fn open(config: &StoreConfig) -> Result<RedbLog, StoreError> {
    let dir = &config.dir;
    std::fs::create_dir_all(dir).map_err(|source| StoreError::Dir { path: dir.clone(), source })?;
    let own = Identity { cluster_id: config.cluster_id(), name: config.name.clone(), id: config.id };
    let path = dir.join(FILE);
    let known = ledger::read::<Identity>(&path)?;
    if let Some(found) = &known {
        check(dir, &own, found)?;
    }
    let log = if known.is_some() || RedbLog::exists(dir) {
        let (log, identity) = RedbLog::open(dir)?;
        let found = serde_json::from_slice(&identity).map_err(|_| LogError::Damaged("it does not say whose it is".to_owned()))?;
        check(dir, &own, &found)?;
        log
    } else {
        let identity = serde_json::to_vec(&own).expect("an identity has nothing that JSON lacks");
        let (hard_state, snapshot) = first(config);
        RedbLog::create(dir, &identity, &hard_state, snapshot)?
    };
    if known.is_none() {
        ledger::write(&path, &own)?;
    }
    Ok(log)
}

/// What a cluster begins with: a snapshot at index 1 that names every voter, so that a member never has to replay the configuration.
pub fn first(config: &StoreConfig) -> (HardState, Snapshot) {
    let voters: Vec<u64> = config.members.iter().map(|member| member.id).collect();
    let mut snapshot = Snapshot::default();
    snapshot.set_data(encode_snapshot(&State::new(config.cluster_id())).into());
    let metadata = snapshot.mut_metadata();
    (metadata.index, metadata.term) = (1, 1);
    metadata.set_conf_state(ConfState::from((voters, Vec::new())));
    (HardState { term: 1, commit: 1, ..HardState::default() }, snapshot)
}

fn check(dir: &Path, own: &Identity, found: &Identity) -> Result<(), StoreError> {
    if own == found {
        return Ok(());
    }
    Err(StoreError::OtherIdentity { path: dir.to_path_buf(), found: Box::new(found.clone()), own: Box::new(own.clone()) })
}
