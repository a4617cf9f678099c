//! raft-rs, hosted: one thread owns the node, its log and the tables; others send it inputs and read what it publishes.
//!
//! ```text
//!  propose, read ─┐                              ┌─► leader's messages
//!  peers' messages ├─► inbox ─► step ─► ready ───┼─► entries + hard state, durable ─► other messages
//!  clock ─────────┘                              └─► committed entries ─► tables ─► state, revision, role
//! ```

pub mod disk;
pub mod log;
mod node;
mod transport;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use arc_swap::ArcSwap;
use raft::eraftpb::Message;
use rcluster_api::wire::v1;
use rcluster_base::ledger::{self, LedgerError};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::{Semaphore, oneshot, watch};

use super::{ClusterStatus, PROPOSALS_MAX, ProposeError, Role, RoleKind, Store, StoreConfig};
use crate::core::state::State;
use disk::{DiskError, RedbLog};
use log::LogStore;

/// Inputs that wait for the owner thread.
const INBOX_MAX: usize = 8192;

/// What the owner thread is told.
#[derive(Debug)]
pub enum Input {
    Propose { entry: v1::Transaction, reply: oneshot::Sender<Result<u64, ProposeError>> },
    Read { reply: oneshot::Sender<Result<(), ProposeError>> },
    Step(Box<Message>),
    Unreachable(u64),
    SnapshotSent { to: u64, arrived: bool },
    SnapshotMade { data: Vec<u8>, index: u64, term: u64 },
    Shutdown { done: oneshot::Sender<()> },
}

/// The way to the owner thread.
#[derive(Debug, Clone)]
pub struct Inbox {
    sender: SyncSender<Input>,
}

/// The inbox is full or its thread has gone.
#[derive(Debug)]
pub struct Undelivered;

impl Inbox {
    /// Never waits: Raft's messages may be lost, and requests are told.
    pub fn send(&self, input: Input) -> Result<(), Undelivered> {
        match self.sender.try_send(input) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(Undelivered),
        }
    }
}

/// The way in for other managers' messages; held by the Raft service.
#[derive(Debug, Clone)]
pub struct Inbound {
    pub id: u64,
    pub cluster_id: String,
    pub members: Vec<u64>,
    inbox: Inbox,
}

impl Inbound {
    /// Hands a message to the owner thread; a full inbox loses it, as a wire might.
    pub fn step(&self, message: Message) {
        drop(self.inbox.send(Input::Step(Box::new(message))));
    }
}

/// Why the store cannot start.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error("make the directory {path}")]
    Dir { path: PathBuf, source: io::Error },
    #[error("who this directory belongs to")]
    Identity(#[from] LedgerError),
    #[error(
        "{path} belongs to manager {found_name} (id {found_id}) of cluster {found_cluster}, not to {name} (id {id}) of {cluster}; \
         use its own directory, or the --initial-cluster and --name that it was made with"
    )]
    OtherIdentity { path: PathBuf, found_name: String, found_id: u64, found_cluster: String, name: String, id: u64, cluster: String },
    #[error("the log")]
    Disk(#[from] DiskError),
    #[error("the log: {0}")]
    Log(String),
    #[error("the snapshot in the log")]
    Snapshot(#[from] crate::core::state::CodecError),
    #[error("raft refuses its configuration")]
    Raft(#[from] raft::Error),
    #[error("start a thread")]
    Thread(#[source] io::Error),
}

/// Whose directory it is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    cluster_id: String,
    name: String,
    id: u64,
}

/// Starts the store on redb, with real connections to the other managers. Must be called inside a tokio runtime.
pub fn start(config: StoreConfig) -> Result<(Store, Inbound), StoreError> {
    std::fs::create_dir_all(&config.dir).map_err(|source| StoreError::Dir { path: config.dir.clone(), source })?;
    claim(&config)?;
    let log = RedbLog::open(&config.dir)?;
    let peers = transport::Peers::connect(&config);
    start_with(config, log, move |inbox, message| peers.send(inbox, message))
}

/// The directory is this manager's, or becomes it.
fn claim(config: &StoreConfig) -> Result<(), StoreError> {
    let own = Identity { cluster_id: config.cluster_id(), name: config.name.clone(), id: config.id };
    let path = config.dir.join("identity.json");
    match ledger::read::<Identity>(&path)? {
        None => Ok(ledger::write(&path, &own)?),
        Some(found) if found == own => Ok(()),
        Some(found) => Err(StoreError::OtherIdentity {
            path: config.dir.clone(),
            found_name: found.name,
            found_id: found.id,
            found_cluster: found.cluster_id,
            name: own.name,
            id: own.id,
            cluster: own.cluster_id,
        }),
    }
}

/// Starts the store on any log and any way to send messages.
pub fn start_with<L: LogStore + 'static>(
    config: StoreConfig,
    log: L,
    send: impl Fn(&Inbox, Message) + Send + 'static,
) -> Result<(Store, Inbound), StoreError> {
    let (sender, receiver) = sync_channel(INBOX_MAX);
    let inbox = Inbox { sender };
    let state = Arc::new(ArcSwap::from_pointee(State::new(config.cluster_id())));
    let status = Arc::new(ArcSwap::from_pointee(ClusterStatus { answered_by: config.name.clone(), ..ClusterStatus::default() }));
    let (revision_sender, revisions) = watch::channel(0);
    let (role_sender, role) = watch::channel(Role { term: 0, kind: RoleKind::Follower, leader: None });
    let published = node::Published { state: state.clone(), status: status.clone(), revision: revision_sender, role: role_sender };
    let inbound = Inbound {
        id: config.id,
        cluster_id: config.cluster_id(),
        members: config.members.iter().map(|member| member.id).collect(),
        inbox: inbox.clone(),
    };
    let node = node::Node::new(config, log, Box::new(send), published, inbox.clone())?;
    std::thread::Builder::new().name("raft".to_owned()).spawn(move || node.run(&receiver)).map_err(StoreError::Thread)?;
    let proposals = Arc::new(Semaphore::new(PROPOSALS_MAX));
    Ok((Store { state, status, revisions, role, inbox, proposals }, inbound))
}
