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
pub mod memory;
mod node;
mod publish;
mod reads;
mod salvage;
mod snapshots;
pub mod storage;
mod thread;
pub mod transport;
pub mod wal;
mod watchdog;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use arc_swap::ArcSwap;
use raft::eraftpb::Message;
use rcluster_api::tls::Security;
use rcluster_api::wire::v1;
use rcluster_base::ledger::LedgerError;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tracing::error;

use super::{Backend, ClusterStatus, Member, MemberChange, PERMITS, ProposeError, Role, RoleKind, Store, StoreConfig};
use crate::core::state::{CodecError, State};
pub use identity::{Identity, first, identity, prepare, prepare_external, prepare_from};
use log::{LogError, LogStore, Saved};
pub use node::Node;
pub use salvage::{Salvaged, salvage};
pub use watchdog::Watchdog;

/// Bytes of peers' messages that wait for the owner thread; more are lost, as a wire might lose them.
const STEPS_BYTES_MAX: usize = 32 << 20;

/// What the owner thread is told.
#[derive(Debug)]
pub enum Input {
    Propose {
        entry: v1::Transaction,
        reply: oneshot::Sender<Result<u64, ProposeError>>,
        permit: OwnedSemaphorePermit,
    },
    Read {
        reply: oneshot::Sender<()>,
    },
    Step {
        message: Box<Message>,
        bytes: usize,
    },
    /// A peer's last write to its log took so many microseconds.
    HeardWrite {
        from: u64,
        write_us: u64,
    },
    /// A manager says where it is, which this one's tables do not say yet.
    Introduced(Introduction),
    Unreachable {
        peer: u64,
    },
    SnapshotSent {
        to: u64,
        arrived: bool,
    },
    SnapshotSaved(Result<Saved, LogError>),
    /// The disk has another key: what stands under those before goes.
    Rekeyed,
    ChangeMembers {
        changes: Vec<MemberChange>,
        reply: oneshot::Sender<Result<(), ProposeError>>,
    },
    Transfer {
        to: u64,
    },
    /// A manager that is one says that this one is none any more.
    Removed,
    /// Another is to lead; answered with whether there is one.
    HandOver {
        begun: oneshot::Sender<bool>,
    },
    Shutdown {
        done: oneshot::Sender<()>,
    },
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

    /// A manager says that this one was removed.
    pub fn removed(&self) {
        drop(self.send(Input::Removed));
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
    seeds: Arc<[u64]>,
    state: Arc<ArcSwap<State>>,
    inbox: Inbox,
}

/// Where a manager is, as it says itself, and the version of its object that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    pub member: Member,
    pub version: u64,
}

/// What a manager is to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Member,
    /// It was one, and was removed.
    Removed,
    /// It has joined since the last that this one has heard: its messages are what tells of it.
    Unknown,
}

impl Inbound {
    /// The tables as this manager has them.
    pub fn state(&self) -> State {
        (**self.state.load()).clone()
    }

    /// A peer says how long its last write to its log took.
    pub fn heard_write(&self, from: u64, write_us: u64) {
        drop(self.inbox.send(Input::HeardWrite { from, write_us }));
    }

    /// Another manager says that this one was removed.
    pub fn removed(&self) {
        self.inbox.removed();
    }

    /// What the manager with this id is.
    pub fn standing(&self, id: u64) -> Standing {
        let state = self.state.load();
        let Some(cluster) = state.cluster() else {
            return if self.seeds.contains(&id) { Standing::Member } else { Standing::Unknown };
        };
        if state.managers().values().any(|manager| manager.raft_id == id) {
            Standing::Member
        } else if id <= cluster.managers_made {
            Standing::Removed
        } else {
            Standing::Unknown
        }
    }

    /// What the sender of a message is, which says where it is. One whose tables are newer than this one's is believed: a manager that
    /// was away while another joined or moved, and came to lead, hears of that only from it.
    pub fn admit(&self, sender: Introduction) -> Standing {
        let standing = self.standing(sender.member.id);
        let known = match standing {
            Standing::Removed => return standing,
            Standing::Unknown => None,
            Standing::Member => self.version(sender.member.id),
        };
        if !sender.member.addr.is_empty() && known.is_none_or(|known| sender.version > known) {
            // When the owner has ended, the next message tells.
            drop(self.inbox.send(Input::Introduced(sender)));
        }
        standing
    }

    /// Version of the object of the manager with this id, in the tables as they are here.
    fn version(&self, id: u64) -> Option<u64> {
        let state = self.state.load();
        state.managers().values().find(|manager| manager.raft_id == id).map(|manager| manager.stamp.version)
    }

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

    /// These are the members from now on, this manager among them; `version`: of the object that says where this one is.
    fn set_members(&mut self, members: &[Member], version: u64);

    /// This manager's last write to its log took so many microseconds; the others are told with what is sent.
    fn set_write(&mut self, write_us: u64);

    /// Whether a connection to `peer` stands.
    fn is_connected(&self, peer: u64) -> bool;
}

/// What a node uses of the process that it runs in; a simulation has its own.
pub trait Environment: Send + 'static {
    /// Time that only rises, by the clock that a round's time is taken from: read around a write, to know what it took.
    fn now(&self) -> Duration;

    /// Has something done beside the node, which goes on meanwhile.
    fn beside(&mut self, job: Job) -> io::Result<()>;
}

/// Something to be done beside a node, once.
pub type Job = Box<dyn FnOnce() + Send>;

/// Why the store cannot start.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error("make the directory {path}")]
    Dir { path: PathBuf, source: io::Error },
    #[error("say whose directory it is")]
    Identity(#[from] LedgerError),
    #[error("{path} belongs to {found}, not to {own}; give the directory that is this manager's")]
    OtherIdentity { path: PathBuf, found: Box<Identity>, own: Box<Identity> },
    #[error("{path} is a manager's already; it goes on from there with `run`, and a new one needs an empty directory")]
    Used { path: PathBuf },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("read the snapshot of the tables")]
    Snapshot(#[from] CodecError),
    #[error("configure raft")]
    Raft(#[from] raft::Error),
    #[error("start a thread")]
    Thread(#[source] io::Error),
}

/// Why the store cannot go on: what it promised is not on the disk, or it cannot read what all others read.
#[derive(Debug, Error)]
pub enum Fatal {
    #[error("{}", disk::advice(.0).unwrap_or("the log cannot be written or read: mend the disk and start this manager again"))]
    Log(#[from] LogError),
    #[error("entry {index} cannot be applied: {why}; was it written by a newer version? upgrade this manager")]
    Entry { index: u64, why: String },
    #[error("this manager was removed from its cluster: to bring the host back, join with an empty state directory")]
    Removed,
    #[error("the leader's snapshot cannot be read: is it of a newer version? upgrade this manager")]
    Snapshot(#[from] CodecError),
}

/// Numbers of the disk's keys that the log and the snapshots in `dir` are sealed with.
pub fn keys_used(dir: &Path) -> Result<BTreeSet<u32>, LogError> {
    Ok(wal::keys_used(dir)?.into_iter().chain(snapshots::keys_used(dir)?).collect())
}

/// Starts the store on the log in its state directory, with real connections to the other managers. Must be called inside a tokio runtime.
pub fn start(config: StoreConfig, security: Security) -> Result<(Store, Inbound), StoreError> {
    let log = identity::open(&config)?.metered(config.meter.clone());
    let connect = transport::connector(&config, security);
    // After a failed write nobody knows what is on the disk. A manager that ends is replaced; one that goes on could lie.
    start_with(config, log, connect, |_| std::process::exit(1))
}

/// A store that nobody runs yet.
pub struct Assembled<L: LogStore, T> {
    pub store: Store,
    pub inbound: Inbound,
    pub node: Node<L, T>,
    /// What the node is to be given, in this order.
    pub inputs: Receiver<Input>,
    /// To be given a look now and then from another thread than the node's, where that can hang.
    pub watchdog: Arc<Watchdog>,
}

/// Puts a store together on any log, any transport, made from the inbox that it reports to, and any environment. Equal seeds make equal
/// choices; two runs on one log must not have the same.
pub fn assemble<L: LogStore, T: Transport>(
    config: StoreConfig,
    log: L,
    transport: impl FnOnce(Inbox) -> T,
    environment: Box<dyn Environment>,
    seed: u64,
) -> Result<Assembled<L, T>, StoreError> {
    let (inbox, inputs) = Inbox::new();
    let (revision, revisions) = watch::channel(0);
    let (role_sender, role) = watch::channel(Role { term: 0, kind: RoleKind::Follower, leader: None });
    let state = Arc::new(ArcSwap::from_pointee(State::default()));
    let status = Arc::new(ArcSwap::from_pointee(ClusterStatus::default()));
    let seeds = config.seeds.iter().map(|member| member.id).collect();
    let inbound = Inbound { id: config.id, cluster_id: config.cluster_id.clone(), seeds, state: state.clone(), inbox: inbox.clone() };
    let publisher = publish::Publisher::new(&config, state.clone(), status.clone(), revision, role_sender);
    let watchdog = publisher.watchdog().clone();
    let meter = config.meter.clone();
    let node = Node::new(config, log, transport(inbox.clone()), environment, publisher, inbox.clone(), seed)?;
    let permits = Arc::new(Semaphore::new(PERMITS));
    let store = Store { state, status, revisions, role, backend: Backend::Raft(inbox), permits, meter };
    Ok(Assembled { store, inbound, node, inputs, watchdog })
}

/// Starts the store on any log and any transport, on a thread of its own. `on_fatal` is told when the store cannot go on; in production it
/// must not return.
pub fn start_with<L: LogStore, T: Transport>(
    config: StoreConfig,
    log: L,
    transport: impl FnOnce(Inbox) -> T,
    on_fatal: impl FnOnce(&Fatal) + Send + 'static,
) -> Result<(Store, Inbound), StoreError> {
    let (clock, tick) = (thread::Process::new(), config.timing.tick);
    let Assembled { store, inbound, node, inputs, watchdog } = assemble(config, log, transport, Box::new(clock), rand::random())?;
    let (alive, ended) = mpsc::channel();
    let run = move || {
        let (_guard, _alive): (_, Sender<()>) = (AbortOnPanic, alive);
        match thread::run(node, &inputs, tick, clock) {
            // A store whose caller did not wait has stopped all the same.
            Ok(done) => drop(done.map(|done| done.send(()))),
            Err(fatal) => {
                error!(error = %Chain(&fatal), "this manager ends");
                on_fatal(&fatal);
            }
        }
    };
    let watch = move || watchdog::run(&watchdog, &ended, clock);
    std::thread::Builder::new().name("raft-watchdog".to_owned()).spawn(watch).map_err(StoreError::Thread)?;
    std::thread::Builder::new().name("raft".to_owned()).spawn(run).map_err(StoreError::Thread)?;
    Ok((store, inbound))
}

/// A manager without its store must not look alive. raft-rs panics when it finds its log impossible.
pub(super) struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            error!("the store has panicked: this manager ends");
            std::process::abort();
        }
    }
}

/// An error with all its causes.
pub(super) struct Chain<'a>(pub &'a dyn std::error::Error);

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
