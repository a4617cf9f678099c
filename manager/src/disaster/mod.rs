//! Clusters that begin anew with one manager: from a backup, or from what one of the managers has on its disk.
//!
//! Each says what it is about to do, and what is lost by it, before it touches anything; without `--yes` that is all it does.

mod external;
mod recover;
mod restore;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcluster_api::cluster::{Manager, User, UserRole};
use rcluster_api::identity::Part;
use rcluster_api::object::Kind;
use rcluster_api::seal::UnlockKey;
use rcluster_base::ledger;

pub use self::recover::{check_whole, recover};
pub use self::restore::restore;
use crate::core::members;
use crate::core::refound::Refounded;
use crate::core::state::State;
use crate::found::{self, ADMIN, Access};
use crate::seal::{self, Lock, Owner, Seal, keeper};
use crate::store::{self, Member, StoreConfig, etcd};

/// What a cluster is restored from, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restore {
    pub from: PathBuf,
    pub name: String,
    pub state_dir: PathBuf,
    pub advertise: String,
    pub await_nodes_ms: u64,
    pub yes: bool,
}

/// Which manager goes on alone, and how.
#[derive(Debug, Clone)]
pub struct Recover {
    pub state_dir: PathBuf,
    /// Where it is reached from now on; as before when not given.
    pub advertise: Option<String>,
    pub await_nodes_ms: u64,
    /// Opens the disk of a cluster with autolock.
    pub unlock_key: Option<UnlockKey>,
    /// The etcd that keeps the state.
    pub store: Option<etcd::Access>,
    pub yes: bool,
}

const NOTHING_DONE: &str = "\nNothing was changed. To do it, run the same command with --yes.";

/// The user for whom a new way in is written: an administrator that is let in still.
fn administrator(state: &State, now_ms: u64) -> Option<&User> {
    let lasting = |user: &&User| user.role == UserRole::Admin && (user.expires_at_ms == 0 || user.expires_at_ms > now_ms);
    state.users().values().map(AsRef::as_ref).filter(lasting).min_by_key(|user| user.name != "admin")
}

/// Makes the directory of the manager that goes on: its credentials, an administrator's, and its log last, unless the state is elsewhere.
fn make(dir: &Path, refounded: &Refounded, external: bool, now_ms: u64) -> Result<()> {
    let Refounded { state, term, manager, dropped: _ } = refounded;
    let Manager { id, raft_id, name, addr, .. } = manager;
    let (cluster, cluster_id) = (members::cluster(state)?, state.cluster_id());
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let lock = Lock::of(cluster)?;
    if lock.key.is_some() {
        keeper::keep_door_current(cluster_id, cluster, dir, id.as_str())?;
    }
    let disk = Seal::create(dir, Owner { cluster_id: cluster_id.to_owned(), manager: *raft_id }, lock)?;
    if cluster.authorities.is_empty() {
        ledger::write_secret(&dir.join(ADMIN), &Access { managers: [addr], credentials: None })?;
    } else {
        let own = found::credentials(cluster, cluster_id, Part::Manager, id.as_str(), &[name, crate::ca::host(addr)])?;
        seal::keep_credentials(dir, &disk.keys, &own)?;
        if let Some(admin) = administrator(state, now_ms) {
            let credentials = found::credentials(cluster, cluster_id, Part::User, admin.id.as_str(), &[])?;
            ledger::write_secret(&dir.join(ADMIN), &Access { managers: [addr], credentials: Some(&credentials) })?;
        }
    }
    let member = Member { id: *raft_id, name: name.clone(), addr: addr.clone() };
    let config = StoreConfig::new(cluster_id.to_owned(), name.clone(), *raft_id, vec![member], dir.to_path_buf());
    let config = StoreConfig { keys: Some(disk.keys), ..config };
    if external { Ok(store::prepare_external(&config)?) } else { Ok(store::prepare_from(&config, state, *term)?) }
}

/// What a state holds, for people.
fn inventory(state: &State) -> String {
    let mut counts: BTreeMap<Kind, usize> = BTreeMap::new();
    for object in state.objects() {
        *counts.entry(object.kind()).or_default() += 1;
    }
    rcluster_api::backup::inventory(&counts)
}

/// A time for people.
fn time(at_ms: u64) -> String {
    rcluster_api::rest::timestamp(at_ms)
}

/// Who is dropped, and what to do about it.
fn dropped(managers: &[Manager]) -> String {
    if managers.is_empty() {
        return String::new();
    }
    let names: Vec<String> = managers.iter().map(|manager| format!("{} at {}", manager.name, manager.addr)).collect();
    format!(
        "  - these managers: {}. Their certificates are taken no more. Make sure that none of them runs, or starts again with its old\n    \
           directory: together they could go on as a second cluster. Their hosts may join again with empty ones.\n",
        names.join(", ")
    )
}

/// What follows.
fn next_steps(refounded: &Refounded, external: Option<&etcd::Access>, dir: &Path, now_ms: u64) -> String {
    let (state, addr, dir) = (&refounded.state, &refounded.manager.addr, dir.display());
    let plain = state.cluster().is_some_and(|cluster| cluster.authorities.is_empty());
    let flag = if plain { " --insecure" } else { "" }.to_owned() + &external.map(etcd::Access::flags).unwrap_or_default();
    let way_in = match administrator(state, now_ms) {
        Some(admin) => format!("as user {}: rclusterctl context create NAME --from {dir}/{ADMIN}", admin.name),
        None if plain => format!("rclusterctl context create NAME --from {dir}/{ADMIN}"),
        None => "by a user that was there; there is no administrator whose access has not expired".to_owned(),
    };
    // Whoever got so far has the authority's key as well.
    let unlock = match state.cluster().map(|cluster| Lock::of(cluster)) {
        Some(Ok(Lock { key: Some(key), .. })) => format!("\x20 unlock it:       rclusterctl cluster unlock; the unlock key is {key}\n"),
        _ => String::new(),
    };
    format!(
        "\nNext:\n\
         \x20 start it:        rcluster-manager run --state-dir {dir} --listen {addr}{flag}\n\
         {unlock}\
         \x20 use it:          {way_in}\n\
         \x20 agents:          those that know {addr} come by themselves; start the others with --managers {addr}; containers go on\n\
         \x20 more managers:   rcluster-manager run --join {addr} --name NAME --state-dir EMPTY --listen HOST:PORT{flag}\n"
    )
}

fn say(out: &mut impl Write, text: &str) -> Result<()> {
    writeln!(out, "{text}").and_then(|()| out.flush()).context("write to stdout")
}
