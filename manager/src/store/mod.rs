//! The replicated store: transactions in, tables at a revision out.
//!
//! In: transactions, from whoever leads. Out: the applied [`State`], a revision that rises, who leads. Never: policy; the store does not
//! look into what it keeps. Two keep it: raft-rs, hosted among the managers (`raft/`), or an etcd that the user runs (`etcd/`).

pub mod etcd;
mod raft;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::core::state::{Conflict, State, Transaction, encode_transaction};
use crate::meter::StoreMeter;
use crate::seal::Keys;

pub use self::raft::disk::advice;
pub use self::raft::log::{Batch, Compaction, Loaded, LogError, LogStore, Saved, Saver, checksum};
pub use self::raft::memory::MemoryLog;
pub use self::raft::storage::Terms;
pub use self::raft::transport::REMOVED;
pub use self::raft::wal::disk::{Directory, Disk, DiskFile};
pub use self::raft::wal::{Wal, lock};
pub use self::raft::{
    Assembled, Environment, Fatal, Identity, Inbound, Inbox, Input, Introduction, Job, Node, Salvaged, Standing, StoreError, Transport,
    Watchdog, assemble, first, identity, keys_used, prepare, prepare_external, prepare_from, salvage, start, start_with,
};

/// Most bytes of one transaction in the log.
pub const TRANSACTION_BYTES_MAX: usize = 8 << 20;
/// Permits for proposals that wait for their commit: so many small ones, or so many times [`PERMIT_BYTES`] of larger ones. More wait
/// outside.
const PERMITS: usize = 256;
const PERMIT_BYTES: usize = 64 << 10;
/// How long a leader that stops waits for another to take over.
const TRANSFER_WAIT: Duration = Duration::from_secs(1);
/// How long a linearizable read waits for a quorum's word.
const READ_TIMEOUT: Duration = Duration::from_secs(3);

/// A manager of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub id: u64,
    pub name: String,
    /// `HOST:PORT`.
    pub addr: String,
}

/// What the store is told at start.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    pub cluster_id: String,
    pub name: String,
    pub id: u64,
    /// The managers that a new one knows of before it has the tables, which name them all.
    pub seeds: Vec<Member>,
    pub dir: PathBuf,
    /// What the disk is sealed with; `None`: it is written in clear.
    pub keys: Option<Keys>,
    pub timing: RaftTiming,
    /// A snapshot is made after so many applied entries, or after so many bytes of them.
    pub snapshot_entries: u64,
    pub snapshot_bytes: u64,
    /// Entries kept behind a snapshot, for followers that lag a little.
    pub trailing_entries: u64,
    /// Where the store counts what it does.
    pub meter: Arc<StoreMeter>,
}

/// Raft's clock, in ticks.
///
/// A follower stands for election when it has heard nothing for `election + slack + rank * stagger` ticks, and up to `stagger` more by
/// chance; `rank` is its place among the members. So survivors of a dead leader stand one after the other and do not split the votes,
/// and `slack` covers that the others, who refuse their vote until `election` ticks of silence, count from a tick of their own.
#[derive(Debug, Clone, Copy)]
pub struct RaftTiming {
    pub tick: Duration,
    pub heartbeat: usize,
    /// Also how long a leader keeps leading without a quorum's answers: up to twice this.
    pub election: usize,
    pub slack: usize,
    pub stagger: usize,
}

impl RaftTiming {
    /// Silence of a leader after which others may stand for election.
    pub fn silence(self) -> Duration {
        self.tick.saturating_mul(u32::try_from(self.election).unwrap_or(u32::MAX))
    }
}

impl Default for RaftTiming {
    /// Heartbeats every 100 ms; of three, the first survivor stands 450 to 600 ms after the last one. Three lost heartbeats in a row, or
    /// a stall of a quarter of a second, are forgiven.
    fn default() -> Self {
        Self { tick: Duration::from_millis(25), heartbeat: 4, election: 16, slack: 2, stagger: 3 }
    }
}

impl StoreConfig {
    /// The usual configuration.
    pub fn new(cluster_id: String, name: String, id: u64, seeds: Vec<Member>, dir: PathBuf) -> Self {
        Self {
            cluster_id,
            name,
            id,
            seeds,
            dir,
            keys: None,
            timing: RaftTiming::default(),
            snapshot_entries: 10_000,
            snapshot_bytes: 64 << 20,
            trailing_entries: 1_000,
            meter: Arc::default(),
        }
    }
}

/// What a manager is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleKind {
    /// It leads, and has applied all that was committed before its term.
    Leader,
    Follower,
    /// It stands for election, or was elected and has not applied yet what was committed before.
    Candidate,
}

impl RoleKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
        }
    }
}

/// What this manager is, and who leads as far as it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    pub term: u64,
    pub kind: RoleKind,
    /// Never this manager, unless `kind` is [`RoleKind::Leader`].
    pub leader: Option<Member>,
}

/// Why a proposal did not become a revision.
#[derive(Debug, Error)]
pub enum ProposeError {
    /// Every manager refuses it alike: an object had another version.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// Nothing was proposed.
    #[error("this manager does not lead{}", leader.as_ref().map(|leader| format!("; {} at {} does", leader.name, leader.addr)).unwrap_or_default())]
    NotLeader { leader: Option<Member> },
    #[error("leadership or the quorum was lost; the change may or may not have been made")]
    Unavailable,
    /// Nothing was proposed.
    #[error("the transaction has {bytes} bytes, the limit is {limit}")]
    TooLarge { bytes: usize, limit: usize },
    /// Nothing was proposed.
    #[error("this manager is stopping")]
    ShuttingDown,
    /// Nothing was proposed.
    #[error("the state is in etcd: managers do not vote, there is no configuration of theirs to change")]
    NoVoters,
}

/// One manager as this one sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    pub id: u64,
    pub name: String,
    pub addr: String,
    pub role: String,
    /// Heard within the last second; of followers among themselves, who have little to say: connected.
    pub reachable: bool,
    /// Last log index known to be on it; known to the leader only, else 0.
    pub matched: u64,
    pub voter: bool,
    /// How long its last write to the log took, in microseconds, as it said; 0: it has not said.
    pub write_us: u64,
}

/// The managers as this one sees them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterStatus {
    pub term: u64,
    pub committed: u64,
    pub applied: u64,
    /// The leader's name; empty when there is none.
    pub leader: String,
    pub members: Vec<MemberStatus>,
    pub answered_by: String,
    /// This manager's Raft id.
    pub own: u64,
    /// Raft's configuration as it is.
    pub configuration: Configuration,
    /// Last index of this manager's log.
    pub last: u64,
}

/// Who takes part in Raft, by id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Configuration {
    pub voters: BTreeSet<u64>,
    /// They have a copy and do not vote.
    pub learners: BTreeSet<u64>,
    /// Between two configurations: both must agree to all that is done (Raft, §6).
    pub joint: bool,
}

/// One step of a change of Raft's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberChange {
    /// It becomes, or goes back to being, one that does not vote.
    Learner(u64),
    Voter(u64),
    Remove(u64),
}

/// A handle on the store; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    state: Arc<ArcSwap<State>>,
    status: Arc<ArcSwap<ClusterStatus>>,
    revisions: watch::Receiver<u64>,
    role: watch::Receiver<Role>,
    backend: Backend,
    permits: Arc<Semaphore>,
    meter: Arc<StoreMeter>,
}

/// Who keeps the state.
#[derive(Debug, Clone)]
enum Backend {
    Raft(Inbox),
    /// `address`: as a user writes it.
    Etcd {
        inbox: mpsc::UnboundedSender<etcd::Input>,
        address: Arc<str>,
    },
}

impl Store {
    /// Whether an etcd keeps the state.
    pub fn is_external(&self) -> bool {
        matches!(self.backend, Backend::Etcd { .. })
    }

    /// Where the state is: `raft`, or the address of an etcd.
    pub fn place(&self) -> &str {
        match &self.backend {
            Backend::Raft(_) => "raft",
            Backend::Etcd { address, .. } => address,
        }
    }

    /// The applied tables, now.
    pub fn state(&self) -> State {
        (**self.state.load()).clone()
    }

    /// Rises after each applied transaction, once it is in [`Store::state`].
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revisions.clone()
    }

    /// This manager's role.
    pub fn role(&self) -> watch::Receiver<Role> {
        self.role.clone()
    }

    /// What the store has counted since it was started.
    pub fn meter(&self) -> &StoreMeter {
        &self.meter
    }

    /// The managers, as of the last tick.
    pub fn status(&self) -> ClusterStatus {
        (**self.status.load()).clone()
    }

    /// Replicates a transaction; the answer is its revision, already applied here. Waits while too much is in flight.
    ///
    /// # Errors
    /// After [`ProposeError::Unavailable`] the outcome is unknown; after any other nothing has changed.
    pub async fn propose(&self, transaction: Transaction) -> Result<u64, ProposeError> {
        let began = Instant::now();
        let outcome = self.replicate(transaction).await;
        match outcome {
            Ok(_) => self.meter.proposals.observe(began.elapsed()),
            Err(_) => self.meter.proposals_failed.count(),
        }
        outcome
    }

    async fn replicate(&self, transaction: Transaction) -> Result<u64, ProposeError> {
        let entry = encode_transaction(&transaction);
        let bytes = prost::Message::encoded_len(&entry);
        if bytes > TRANSACTION_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes, limit: TRANSACTION_BYTES_MAX });
        }
        let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES).clamp(1, PERMITS)).unwrap_or(1);
        let permit = self.permits.clone().acquire_many_owned(permits).await.map_err(|_| ProposeError::ShuttingDown)?;
        let (reply, answer) = oneshot::channel();
        let sent = match &self.backend {
            Backend::Raft(inbox) => inbox.send(raft::Input::Propose { entry, reply, permit }).is_ok(),
            Backend::Etcd { inbox, .. } => {
                let proposal = etcd::Proposal { transaction, entry, bytes, reply, permit };
                inbox.send(etcd::Input::Propose(proposal)).is_ok()
            }
        };
        if !sent {
            return Err(ProposeError::ShuttingDown);
        }
        answer.await.unwrap_or(Err(ProposeError::Unavailable))
    }

    /// Returns once [`Store::state`] holds everything that was committed anywhere before the call. A follower asks the leader.
    ///
    /// # Errors
    /// [`ProposeError::Unavailable`] when no leader with a quorum answers within three seconds.
    pub async fn read_barrier(&self) -> Result<(), ProposeError> {
        match tokio::time::timeout(READ_TIMEOUT, self.ask_read()?).await {
            Ok(answer) => answer.map_err(|_| ProposeError::Unavailable),
            Err(_) => Err(ProposeError::Unavailable),
        }
    }

    /// Asks for what [`Store::read_barrier`] waits for. The answer may never come: who waits for it says how long.
    ///
    /// # Errors
    /// [`ProposeError::ShuttingDown`].
    pub fn ask_read(&self) -> Result<oneshot::Receiver<()>, ProposeError> {
        let (reply, answer) = oneshot::channel();
        let sent = match &self.backend {
            Backend::Raft(inbox) => inbox.send(raft::Input::Read { reply }).is_ok(),
            Backend::Etcd { inbox, .. } => inbox.send(etcd::Input::Read { reply }).is_ok(),
        };
        if sent { Ok(answer) } else { Err(ProposeError::ShuttingDown) }
    }

    /// Asks for a change of Raft's configuration; several steps are made as one, by joint consensus. Whether it comes about is seen in
    /// [`Store::status`]: a change that meets another on its way is dropped.
    ///
    /// # Errors
    /// Nothing was proposed.
    pub async fn change_members(&self, changes: Vec<MemberChange>) -> Result<(), ProposeError> {
        let Backend::Raft(inbox) = &self.backend else { return Err(ProposeError::NoVoters) };
        let (reply, answer) = oneshot::channel();
        inbox.send(raft::Input::ChangeMembers { changes, reply }).map_err(|_| ProposeError::ShuttingDown)?;
        answer.await.unwrap_or(Err(ProposeError::Unavailable))
    }

    /// Begins to hand leadership to another voter. In etcd it is given up, and whoever else is first has it.
    pub fn transfer_leadership(&self, to: u64) {
        // A store that has stopped leads no more.
        match &self.backend {
            Backend::Raft(inbox) => drop(inbox.send(raft::Input::Transfer { to })),
            Backend::Etcd { inbox, .. } => drop(inbox.send(etcd::Input::Resign)),
        }
    }

    /// Has another manager lead, if this one does and another can; returns once it is known who, or after a second.
    pub async fn hand_over(&self) {
        let mut role = self.role.clone();
        if role.borrow().kind != RoleKind::Leader {
            return;
        }
        let handed_over = async {
            let begun = match &self.backend {
                Backend::Raft(inbox) => {
                    let (begun, told) = oneshot::channel();
                    inbox.send(raft::Input::HandOver { begun }).is_ok() && told.await.unwrap_or(false)
                }
                Backend::Etcd { inbox, .. } => self.hears_another() && inbox.send(etcd::Input::Resign).is_ok(),
            };
            if begun {
                // Whoever it is: what is left to do does not depend on it.
                drop(role.wait_for(|role| role.kind != RoleKind::Leader && role.leader.is_some()).await);
            }
        };
        // A leader whose disk hangs begins nothing; what is left to do is done without it.
        drop(tokio::time::timeout(TRANSFER_WAIT, handed_over).await);
    }

    fn hears_another(&self) -> bool {
        let status = self.status.load();
        status.members.iter().any(|member| member.reachable && member.id != status.own)
    }

    /// The disk's keys have changed: nothing that is needed stays under those before. An etcd's disks are not ours.
    pub fn rekeyed(&self) {
        match &self.backend {
            // What has stopped looks at its next start.
            Backend::Raft(inbox) => drop(inbox.send(raft::Input::Rekeyed)),
            Backend::Etcd { .. } => {}
        }
    }

    /// Hands leadership over, if this manager has it and another has kept up, and stops the store.
    pub async fn shutdown(&self) {
        self.permits.close();
        let (done, stopped) = oneshot::channel();
        let sent = match &self.backend {
            Backend::Raft(inbox) => inbox.send(raft::Input::Shutdown { done }).is_ok(),
            Backend::Etcd { inbox, .. } => inbox.send(etcd::Input::Shutdown { done }).is_ok(),
        };
        if sent {
            // An error means that it has ended already.
            drop(stopped.await);
        }
    }
}
