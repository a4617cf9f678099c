//! How a manager comes to be: the first of a new cluster, or one more of a cluster that is there.
//!
//! The credentials are on disk before the log is, and the log before its identity: a crash in between leaves a directory that is begun
//! anew.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rcluster_api::client::{self, Joiner};
use rcluster_api::cluster::{Cluster, JoinSecret, Manager, ManagerRole, User, UserRole};
use rcluster_api::data::Payload;
use rcluster_api::error::ErrorCode;
use rcluster_api::id::{ManagerId, UserId, random_id};
use rcluster_api::identity::{self, Identity, Part};
use rcluster_api::object::{Object, Stamp};
use rcluster_api::tls::{Credentials, Security, SigningRequest};
use rcluster_base::backoff::Backoff;
use rcluster_base::clock::unix_ms;
use rcluster_base::ledger;
use serde::Serialize;
use tracing::{info, warn};

use crate::ca;
use crate::config::{Init, Join};
use crate::core::state::{Change, State, Transaction};
use crate::rpc::admission::join_token;
use crate::seal::{self, Lock, Opened, Owner, Seal};
use crate::store::etcd;
use crate::store::{self, Member, StoreConfig};

/// How the first administrator reaches the cluster; a file for `rclusterctl context create`.
pub(crate) const ADMIN: &str = "admin.json";
/// Pause before a join is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// What [`init`] has made.
#[derive(Debug, Serialize)]
pub struct Founded {
    pub cluster_id: String,
    pub manager: String,
    /// Empty without TLS, as are those that follow.
    pub manager_token: String,
    pub agent_token: String,
    pub admin_file: PathBuf,
}

/// A user's way to a cluster.
#[derive(Debug, Serialize)]
pub(crate) struct Access<'a> {
    pub managers: [&'a str; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<&'a Credentials>,
}

/// Credentials for a key that is made here.
pub(crate) fn credentials(cluster: &Cluster, cluster_id: &str, part: Part, id: &str, hosts: &[&str]) -> Result<Credentials> {
    let request = SigningRequest::new()?;
    let identity = Identity { part, id: id.to_owned(), cluster_id: cluster_id.to_owned() };
    let ttl = Duration::from_millis(cluster.certificate_ttl_ms);
    Ok(Credentials::new(ca::issue(&cluster.authorities, &identity, hosts, &request.request, ttl)?, request.key))
}

/// Makes a cluster.
pub fn init(init: &Init) -> Result<Founded> {
    let Init { name, state_dir, advertise, certificate_ttl_ms, insecure, store, json: _ } = init;
    let mut rng = rand::rng();
    let (cluster_id, now_ms) = (random_id(&mut rng), unix_ms());
    let secret = |rng: &mut _| JoinSecret { secret: Payload(identity::join_secret(rng)), rotated_at_ms: now_ms };
    let cluster = Cluster {
        managers_made: 1,
        authorities: if *insecure { Vec::new() } else { vec![ca::found()?] },
        manager_token: secret(&mut rng),
        agent_token: secret(&mut rng),
        certificate_ttl_ms: *certificate_ttl_ms,
        ..Cluster::default()
    };
    let id = ManagerId::random(&mut rng);
    let manager = Manager {
        id: id.clone(),
        stamp: Stamp::default(),
        raft_id: 1,
        name: name.clone(),
        addr: advertise.clone(),
        role: ManagerRole::Voter,
    };
    let admin = UserId::random(&mut rng);
    let user = User {
        id: admin.clone(),
        stamp: Stamp::default(),
        name: "admin".to_owned(),
        role: UserRole::Admin,
        token_digest: String::new(),
        expires_at_ms: 0,
    };
    let config = StoreConfig::new(cluster_id.clone(), name.clone(), 1, vec![member(1, name, advertise)], state_dir.clone());
    if store::identity(state_dir)?.is_some() {
        bail!("{} holds a manager already: start it with `rcluster-manager run`, or give an empty directory", state_dir.display());
    }
    fs::create_dir_all(state_dir).with_context(|| format!("make {}", state_dir.display()))?;
    let disk = Seal::create(state_dir, Owner { cluster_id: cluster_id.clone(), manager: 1 }, Lock::default())?;
    let config = StoreConfig { keys: Some(disk.keys.clone()), ..config };
    let (mut founded, mut objects) = (
        Founded {
            cluster_id: cluster_id.clone(),
            manager: name.clone(),
            manager_token: String::new(),
            agent_token: String::new(),
            admin_file: state_dir.join(ADMIN),
        },
        vec![Object::Manager(manager)],
    );
    if *insecure {
        ledger::write_secret(&founded.admin_file, &Access { managers: [advertise], credentials: None })?;
    } else {
        founded.manager_token = join_token(&cluster, true)?.to_string();
        founded.agent_token = join_token(&cluster, false)?.to_string();
        let own = credentials(&cluster, &cluster_id, Part::Manager, id.as_str(), &[name, ca::host(advertise)])?;
        seal::keep_credentials(state_dir, &disk.keys, &own)?;
        let admin = credentials(&cluster, &cluster_id, Part::User, admin.as_str(), &[])?;
        ledger::write_secret(&founded.admin_file, &Access { managers: [advertise], credentials: Some(&admin) })?;
        objects.push(Object::User(user));
    }
    objects.push(Object::Cluster(Box::new(cluster)));
    let state = first_state(cluster_id, objects);
    match store {
        None => store::prepare(&config, Some(&state))?,
        Some(access) => {
            make_keys(access, state)?;
            store::prepare_external(&config)?;
        }
    }
    Ok(founded)
}

/// Makes the keys of a new cluster in etcd. Those of one whose making was cut short are nobody's: its id was drawn for them.
fn make_keys(access: &etcd::Access, state: State) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the async runtime")?;
    let cluster_id = state.cluster_id().to_owned();
    let made = runtime.block_on(etcd::found(access, &cluster_id, state));
    let why =
        || format!("write the cluster's first state to {} (does etcd run there, and let this host in? then `init` again)", access.address);
    if !made.with_context(why)? {
        bail!("{} has a cluster {cluster_id} already", access.address);
    }
    Ok(())
}

/// The state that a cluster begins with.
pub fn first_state(cluster_id: String, objects: Vec<Object>) -> State {
    let changes = objects.into_iter().map(|object| Change::Put { expected: 0, object }).collect();
    let mut state = State::new(cluster_id);
    state.apply(1, &Transaction { at_ms: unix_ms(), changes }).expect("nothing is there that could conflict");
    state
}

fn member(id: u64, name: &str, addr: &str) -> Member {
    Member { id, name: name.to_owned(), addr: addr.to_owned() }
}

/// Joins a cluster, trying on while none of its managers answers. The keys of the disk are the caller's to go on with: with autolock on,
/// they are locked for the next start.
pub async fn join(join: &Join, state_dir: &Path, external: bool) -> Result<Seal> {
    let token = join.token()?;
    let Join { managers, token: _, insecure: _, name, advertise } = join;
    fs::create_dir_all(state_dir).with_context(|| format!("make {}", state_dir.display()))?;
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut told = String::new();
    let joined = loop {
        match client::join_as(managers, token.as_ref(), Joiner { name, addr: advertise, etcd: external }).await {
            Ok(joined) => break joined,
            Err(error) if error.code == ErrorCode::Unavailable => {
                if told != error.message {
                    warn!(%error, "cannot join yet; trying on");
                    told = error.message;
                }
                tokio::time::sleep(backoff.delay()).await;
            }
            Err(error) => bail!("join the cluster at {}: {error}", managers.join(", ")),
        }
    };
    if joined.raft_id == 0 {
        bail!("the join token is for agents: `rclusterctl cluster token manager` prints the one for managers");
    }
    let owner = Owner { cluster_id: joined.cluster_id.clone(), manager: joined.raft_id };
    let lock = match joined.lock {
        Some(client::Lock { key, generation, door }) => {
            // Before it is locked: it could not be reached.
            seal::keep_door(state_dir, &door)?;
            Lock { key: Some(key), generation }
        }
        None => Lock::default(),
    };
    let disk = Seal::create(state_dir, owner, lock)?;
    if let Some(credentials) = &joined.credentials {
        seal::keep_credentials(state_dir, &disk.keys, credentials)?;
    }
    let seeds = joined.managers.iter().map(|peer| member(peer.raft_id, &peer.name, &peer.addr)).collect();
    let config = StoreConfig::new(joined.cluster_id.clone(), name.clone(), joined.raft_id, seeds, state_dir.to_path_buf());
    let config = StoreConfig { keys: Some(disk.keys.clone()), ..config };
    if external {
        store::prepare_external(&config)?
    } else {
        store::prepare(&config, None)?
    }
    info!(cluster = joined.cluster_id, name, id = joined.raft_id, "joined");
    if disk.is_locked() {
        info!("the cluster has autolock: when this manager is started again, it waits for `rclusterctl cluster unlock`");
    }
    Ok(disk)
}

/// The keys of a manager's disk, or what they wait for.
pub fn open_seal(state_dir: &Path, identity: &store::Identity) -> Result<Opened> {
    let owner = Owner { cluster_id: identity.cluster_id.clone(), manager: identity.id };
    Ok(Seal::open(state_dir, owner, &keys_used(state_dir)?)?)
}

fn keys_used(state_dir: &Path) -> Result<BTreeSet<u32>> {
    Ok(store::keys_used(state_dir)?.into_iter().chain(seal::key_used(state_dir)?).collect())
}

/// Forgets keys that nothing on the disk is sealed with any more. For who holds the log's lock: nobody else makes keys meanwhile.
pub fn forget_keys(state_dir: &Path, disk: &Seal) -> Result<()> {
    Ok(disk.forget_all_but(&keys_used(state_dir)?)?)
}

/// The credentials in a manager's directory. Those that are in clear, or sealed with a key that is not the newest, are sealed anew.
pub fn security(state_dir: &Path, insecure: bool, disk: &Seal) -> Result<Security> {
    let found = seal::reseal_credentials(state_dir, &disk.keys)?;
    match (found, insecure) {
        (Some(credentials), false) => Security::new(credentials).context("use credentials.json"),
        (None, true) => Ok(Security::plain()),
        (Some(_), true) => bail!("this cluster was made with TLS: start without --insecure"),
        (None, false) => {
            bail!(
                "{} has no credentials.json: bring it back; if the cluster was made without TLS, start with --insecure",
                state_dir.display()
            )
        }
    }
}
