//! Whose state directory it is. A member of a Raft group that comes back without what it voted and confirmed, or as someone else, breaks
//! the group's promises, so both are refused.
//!
//! `identity.json` is written after the first log is whole: where it stands and the log does not, the log was lost.

use std::fmt;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use raft::eraftpb::{ConfState, HardState, Snapshot};
use rcluster_api::cluster::ManagerRole;
use rcluster_base::ledger;
use serde::{Deserialize, Serialize};

use super::log::LogError;
use super::wal::{self, Wal};
use super::{StoreConfig, StoreError};
use crate::core::state::{State, encode_snapshot};
use crate::store::Member;

const FILE: &str = "identity.json";

/// A member of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub cluster_id: String,
    pub name: String,
    /// Raft's.
    pub id: u64,
    /// The managers that were there when this one joined.
    #[serde(default)]
    pub seeds: Vec<Member>,
    /// The state is in an etcd; this manager has no log.
    #[serde(default)]
    pub etcd: bool,
}

impl Identity {
    fn of(config: &StoreConfig) -> Self {
        let StoreConfig { cluster_id, name, id, seeds, .. } = config;
        Self { cluster_id: cluster_id.clone(), name: name.clone(), id: *id, seeds: seeds.clone(), etcd: false }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "manager {} (id {}) of cluster {}", self.name, self.id, self.cluster_id)
    }
}

/// Whose directory it is; `None` when no manager has used it, or one has only begun to. A log that stands there alone says it too: the
/// last step of [`prepare`] was not reached, which [`open`] makes up for. Nothing is changed here: who only looks asks as well.
pub fn identity(dir: &Path) -> Result<Option<Identity>, StoreError> {
    if let Some(known) = ledger::read(&dir.join(FILE))? {
        return Ok(Some(known));
    }
    if !wal::exists(dir)? {
        return Ok(None);
    }
    Ok(Some(read(&wal::whose(dir)?)?))
}

fn read(identity: &[u8]) -> Result<Identity, LogError> {
    serde_json::from_slice(identity).map_err(|_| LogError::Damaged("it does not say whose it is".to_owned()))
}

/// Opens the log that [`prepare`] made.
pub fn open(config: &StoreConfig) -> Result<Wal, StoreError> {
    let dir = &config.dir;
    let own = Identity::of(config);
    if let Some(found) = identity(dir)? {
        check(dir, &own, &found)?;
    }
    let (log, identity) = Wal::open(dir, config.keys.clone())?;
    let known = read(&identity)?;
    check(dir, &own, &known)?;
    let path = dir.join(FILE);
    if !path.exists() {
        ledger::write(&path, &known)?;
    }
    Ok(log)
}

/// Makes the directory of a manager whose state is in an etcd.
pub fn prepare_external(config: &StoreConfig) -> Result<(), StoreError> {
    make_dir(&config.dir)?;
    ledger::write(&config.dir.join(FILE), &Identity { etcd: true, ..Identity::of(config) })?;
    Ok(())
}

/// Makes a directory that no manager has yet. Others have no business in it.
fn make_dir(dir: &Path) -> Result<(), StoreError> {
    let made = std::fs::create_dir_all(dir).and_then(|()| std::fs::set_permissions(dir, Permissions::from_mode(0o700)));
    made.map_err(|source| StoreError::Dir { path: dir.to_path_buf(), source })?;
    if identity(dir)?.is_some() {
        return Err(StoreError::Used { path: dir.to_path_buf() });
    }
    Ok(())
}

/// Makes the first log of a manager: with the tables of a cluster that it founds, or empty for one that joins and is sent them.
pub fn prepare(config: &StoreConfig, founded: Option<&State>) -> Result<(), StoreError> {
    let begin = founded.map(first).unwrap_or_else(|| {
        let mut snapshot = Snapshot::default();
        snapshot.set_data(encode_snapshot(&State::new(config.cluster_id.clone())).into());
        (HardState::default(), snapshot)
    });
    make(config, begin)
}

/// Makes the first log of a cluster that goes on from `state`, after the index that is its revision, in terms after `term`.
pub fn prepare_from(config: &StoreConfig, state: &State, term: u64) -> Result<(), StoreError> {
    make(config, beginning(state, state.revision(), term))
}

fn make(config: &StoreConfig, (hard_state, snapshot): (HardState, Snapshot)) -> Result<(), StoreError> {
    let dir = &config.dir;
    make_dir(dir)?;
    let own = Identity::of(config);
    let bytes = serde_json::to_vec(&own).expect("an identity has nothing that JSON lacks");
    Wal::create(dir, config.keys.clone(), &bytes, &hard_state, snapshot)?;
    ledger::write(&dir.join(FILE), &own)?;
    Ok(())
}

/// What a cluster begins with: a snapshot at index 1 that names every voter, so that a member never has to replay the configuration.
pub fn first(state: &State) -> (HardState, Snapshot) {
    beginning(state, 1, 1)
}

fn beginning(state: &State, index: u64, term: u64) -> (HardState, Snapshot) {
    let voters = state.managers().values().filter(|manager| manager.role == ManagerRole::Voter).map(|manager| manager.raft_id);
    let mut snapshot = Snapshot::default();
    snapshot.set_data(encode_snapshot(state).into());
    let metadata = snapshot.mut_metadata();
    (metadata.index, metadata.term) = (index, term);
    metadata.set_conf_state(ConfState::from((voters.collect::<Vec<_>>(), Vec::new())));
    (HardState { term, commit: index, ..HardState::default() }, snapshot)
}

fn check(dir: &Path, own: &Identity, found: &Identity) -> Result<(), StoreError> {
    let same = |one: &Identity| (one.cluster_id.clone(), one.name.clone(), one.id);
    if same(own) == same(found) {
        return Ok(());
    }
    Err(StoreError::OtherIdentity { path: dir.to_path_buf(), found: Box::new(found.clone()), own: Box::new(own.clone()) })
}
