//! raft-rs, hosted: one thread owns the node, its log and the tables; others send it inputs and read what it publishes.
//!
//! ```text
//!  propose, read ─┐                              ┌─► leader's messages
//!  peers' messages ├─► inbox ─► step ─► ready ───┼─► entries + hard state, durable ─► other messages
//!  clock ─────────┘                              └─► committed entries ─► tables ─► state, revision, role ─► answers
//! ```

pub mod disk;
mod identity;
pub mod log;
mod node;
mod publish;
mod reads;
pub mod storage;
mod transport;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use arc_swap::ArcSwap;
use raft::eraftpb::Message;
use rcluster_api::wire::v1;
use rcluster_base::ledger::LedgerError;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tracing::error;

use super::{ClusterStatus, PERMITS, ProposeError, Role, RoleKind, Store, StoreConfig};
use crate::core::state::{CodecError, State};
pub use identity::{Identity, first};
use log::{LogError, LogStore, Saved};

/// Bytes of peers' messages that wait for the owner thread; more are lost, as a wire might lose them.
const STEPS_BYTES_MAX: usize = 32 << 20;

/// What the owner thread is told.
#[derive(Debug)]
pub enum Input {
    Propose { entry: v1::Transaction, reply: oneshot::Sender<Result<u64, ProposeError>>, permit: OwnedSemaphorePermit },
    Read { reply: oneshot::Sender<()> },
    Step { message: Box<Message>, bytes: usize },
    Unreachable { peer: u64 },
    SnapshotSent { to: u64, arrived: bool },
    SnapshotSaved(Result<Saved, LogError>),
    Shutdown { done: oneshot::Sender<()> },
}

/// The way to the owner thread. Sending never waits: proposals are bounded by their permits, peers' messages by their bytes, reports by
/// the messages and snapshots that they are about.
#[derive(Debug, Clone)]
pub struct Inbox {
    sender: Sender<Input>,
    steps_bytes: Arc<AtomicUsize>,
}

/// The owner thread has ended.
#[derive(Debug, Error)]
#[error("the store has stopped")]
pub struct Stopped;

impl Inbox {
    fn new() -> (Self, Receiver<Input>) {
        let (sender, receiver) = mpsc::channel();
        (Self { sender, steps_bytes: Arc::default() }, receiver)
    }

    pub(super) fn send(&self, input: Input) -> Result<(), Stopped> {
        self.sender.send(input).map_err(|_| Stopped)
    }

    /// Hands over a peer's message, or loses it when too much waits.
    fn step(&self, message: Message) -> Result<(), Stopped> {
        let bytes = usize::try_from(protobuf::Message::compute_size(&message)).unwrap_or(usize::MAX);
        let waiting = self.steps_bytes.fetch_add(bytes, Ordering::Relaxed);
        if waiting > 0 && waiting.saturating_add(bytes) > STEPS_BYTES_MAX {
            self.steps_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Ok(());
        }
        self.send(Input::Step { message: Box::new(message), bytes })
    }

    /// The owner has taken a message of so many bytes.
    fn taken(&self, bytes: usize) {
        self.steps_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A peer's message was lost on the way.
    pub fn unreachable(&self, peer: u64) {
        // When the owner has ended, nobody needs to know.
        drop(self.send(Input::Unreachable { peer }));
    }

    /// A snapshot has arrived at a peer, or has not.
    pub fn snapshot_sent(&self, to: u64, arrived: bool) {
        drop(self.send(Input::SnapshotSent { to, arrived }));
    }
}

/// The way in for other managers' messages; held by the Raft service.
#[derive(Debug, Clone)]
pub struct Inbound {
    pub id: u64,
    pub cluster_id: String,
    /// Who may send.
    pub members: Vec<u64>,
    inbox: Inbox,
}

impl Inbound {
    /// Hands a message to the owner thread.
    ///
    /// # Errors
    /// Only when that has ended; when too much waits, the message is lost as a wire might lose it.
    pub fn step(&self, message: Message) -> Result<(), Stopped> {
        self.inbox.step(message)
    }
}

/// The way out to other managers. Nothing here may wait: the owner thread calls it.
pub trait Transport: Send + 'static {
    /// Sends a message, or loses it and reports [`Inbox::unreachable`].
    fn send(&mut self, message: Message);

    /// Sends a snapshot message whose data is to be the encoded `state`, and reports [`Inbox::snapshot_sent`] once.
    fn send_snapshot(&mut self, message: Message, state: State);

    /// Whether a connection to `peer` stands.
    fn is_connected(&self, peer: u64) -> bool;
}

/// Why the store cannot start.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error("make the directory {path}")]
    Dir { path: PathBuf, source: io::Error },
    #[error("say whose directory it is")]
    Identity(#[from] LedgerError),
    #[error(
        "{path} belongs to {found}, not to {own}: the cluster's \
         id comes from --initial-cluster, which must be as it was when the directory was made; use that, or another directory"
    )]
    OtherIdentity { path: PathBuf, found: Box<Identity>, own: Box<Identity> },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("read the snapshot of the tables")]
    Snapshot(#[from] CodecError),
    #[error("configure raft")]
    Raft(#[from] raft::Error),
    #[error("start a thread")]
    Thread(#[source] io::Error),
    #[error("{addr:?} is not the address of manager {name}: {why}")]
    Address { name: String, addr: String, why: String },
}

/// Why the store cannot go on: what it promised is not on the disk, or it cannot read what all others read.
#[derive(Debug, Error)]
pub enum Fatal {
    #[error("the log cannot be written or read: mend the disk and start this manager again")]
    Log(#[from] LogError),
    #[error("entry {index} cannot be applied: {why}; was it written by a newer version? upgrade this manager")]
    Entry { index: u64, why: String },
    #[error("the leader's snapshot cannot be read: is it of a newer version? upgrade this manager")]
    Snapshot(#[from] CodecError),
}

/// Starts the store on redb, with real connections to the other managers. Must be called inside a tokio runtime.
pub fn start(config: StoreConfig) -> Result<(Store, Inbound), StoreError> {
    let log = identity::open(&config)?;
    let peers = transport::Peers::new(&config)?;
    // After a failed write nobody knows what is on the disk. A manager that dies is replaced; one that goes on could lie.
    start_with(config, log, |inbox| peers.connect(inbox), |_| std::process::abort())
}

/// Starts the store on any log and any transport, made from the inbox that it reports to. `on_fatal` is told when the store cannot go on;
/// in production it must not return.
pub fn start_with<L: LogStore, T: Transport>(
    config: StoreConfig,
    log: L,
    transport: impl FnOnce(Inbox) -> T,
    on_fatal: impl FnOnce(&Fatal) + Send + 'static,
) -> Result<(Store, Inbound), StoreError> {
    let (inbox, receiver) = Inbox::new();
    let inbound = Inbound {
        id: config.id,
        cluster_id: config.cluster_id(),
        members: config.members.iter().map(|member| member.id).collect(),
        inbox: inbox.clone(),
    };
    let (revision, revisions) = watch::channel(0);
    let (role_sender, role) = watch::channel(Role { term: 0, kind: RoleKind::Follower, leader: None });
    let state = Arc::new(ArcSwap::from_pointee(State::default()));
    let status = Arc::new(ArcSwap::from_pointee(ClusterStatus::default()));
    let publisher = publish::Publisher::new(&config, state.clone(), status.clone(), revision, role_sender);
    let node = node::Node::new(config, log, transport(inbox.clone()), publisher, inbox.clone())?;
    let run = move || {
        let _guard = AbortOnPanic;
        match node.run(&receiver) {
            // A store whose caller did not wait has stopped all the same.
            Ok(done) => drop(done.map(|done| done.send(()))),
            Err(fatal) => {
                error!(error = %Chain(&fatal), "this manager ends");
                on_fatal(&fatal);
            }
        }
    };
    std::thread::Builder::new().name("raft".to_owned()).spawn(run).map_err(StoreError::Thread)?;
    Ok((Store { state, status, revisions, role, inbox, permits: Arc::new(Semaphore::new(PERMITS)) }, inbound))
}

/// raft-rs panics when it finds its log impossible; a manager without its store must not look alive.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            error!("the store's thread has panicked: this manager ends");
            std::process::abort();
        }
    }
}

/// An error with all its causes.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(formatter, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
