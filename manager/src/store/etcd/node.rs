//! The owner task: it has the tables, knows who leads, and goes from one session with etcd to the next.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use rcluster_base::backoff::Backoff;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::client::{CallError, Etcd, Loaded, Standing};
use super::keys::{LeaderRecord, Unreadable};
use super::publish::{Publisher, View};
use super::session::{self, Session};
use super::{EtcdTiming, Fatal, Input, RETRY};
use crate::core::state::State;
use crate::store::{Member, ProposeError, RoleKind, StoreConfig};

/// How long the end of a lease is waited for when a manager stops.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(1);

/// What outlives a session with etcd.
#[derive(Debug)]
pub struct Node {
    pub config: StoreConfig,
    pub timing: EtcdTiming,
    pub etcd: Etcd,
    /// Random for each start.
    pub run: u64,
    pub publisher: Publisher,
    pub inputs: mpsc::UnboundedReceiver<Input>,
    pub state: State,
    /// etcd's revision up to which all is known; what happened at it may be told again.
    pub at: i64,
    /// The tables have to be read anew before this goes on.
    pub is_stale: bool,
    pub term: u64,
    pub leader: Option<LeaderRecord>,
    /// etcd's revision of the last word about the leader.
    pub leader_at: i64,
    pub alive: BTreeMap<u64, u64>,
    /// Revision of the snapshot, and the bytes of the entries since.
    pub snapshot: u64,
    pub log_bytes: usize,
    /// It has given leadership up and does not stand before this.
    pub stands_from: Instant,
    /// Who waits for a read that no session has begun.
    pub reads: Vec<oneshot::Sender<()>>,
}

/// How a session ended.
pub enum End {
    /// All handles are gone, or one said so.
    Shutdown(Option<oneshot::Sender<()>>),
    Fatal(Fatal),
    /// Another one may do better.
    Lost(CallError),
}

impl Node {
    pub fn new(config: StoreConfig, timing: EtcdTiming, etcd: Etcd, publisher: Publisher, inputs: mpsc::UnboundedReceiver<Input>) -> Self {
        let state = State::new(config.cluster_id.clone());
        Self {
            config,
            timing,
            etcd,
            run: rand::random(),
            publisher,
            inputs,
            state,
            at: 0,
            is_stale: true,
            term: 0,
            leader: None,
            leader_at: 0,
            alive: BTreeMap::new(),
            snapshot: 0,
            log_bytes: 0,
            stands_from: Instant::now(),
            reads: Vec::new(),
        }
    }

    /// Takes over what was read.
    pub fn install(&mut self, loaded: Loaded) -> Result<(), Fatal> {
        let Loaded { state, at, live: Standing { leader, alive, snapshot }, log_bytes } = loaded;
        if state.revision() < self.state.revision() {
            return Err(Fatal::WentBack { found: state.revision(), seen: self.state.revision() });
        }
        info!(revision = state.revision(), "the tables are read");
        (self.state, self.at, self.alive, self.snapshot, self.log_bytes) = (state, at, alive, snapshot, log_bytes);
        self.learn_leader(leader, at);
        self.is_stale = false;
        self.check_membership()?;
        self.publisher.publish_state(&self.state);
        self.publish(RoleKind::Follower);
        Ok(())
    }

    /// Word of etcd's revision `at` about who leads.
    pub fn learn_leader(&mut self, leader: Option<LeaderRecord>, at: i64) {
        if at >= self.leader_at {
            self.term = leader.as_ref().map_or(self.term, |leader| leader.term.max(self.term));
            (self.leader, self.leader_at) = (leader, at);
        }
    }

    /// Refuses to go on as a manager that is none any more.
    pub fn check_membership(&self) -> Result<(), Fatal> {
        let is_member = self.state.managers().values().any(|manager| manager.raft_id == self.config.id);
        if is_member { Ok(()) } else { Err(Fatal::Removed) }
    }

    pub fn publish(&self, kind: RoleKind) {
        // Out of touch, nobody is known to lead.
        let view = View { kind, term: self.term, leader: self.leader.as_ref(), alive: &self.alive };
        self.publisher.publish_view(&self.state, &view);
    }

    /// Refuses a transaction: another leads, or nobody.
    pub fn not_leader(&self) -> ProposeError {
        let other = self.leader.as_ref().filter(|leader| leader.id != self.config.id);
        let manager = other.and_then(|leader| self.state.managers().values().find(|manager| manager.raft_id == leader.id));
        let leader = manager.map(|manager| Member { id: manager.raft_id, name: manager.name.clone(), addr: manager.addr.clone() });
        ProposeError::NotLeader { leader }
    }

    /// Runs until it is shut down, or cannot go on.
    pub async fn run(&mut self) -> Result<(), Fatal> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut told = String::new();
        loop {
            let (end, lease) = self.session().await;
            // Nobody is known to lead, and this manager does not.
            self.leader = None;
            self.publish(RoleKind::Follower);
            if let Some(lease) = lease {
                let ended = tokio::time::timeout(REVOKE_TIMEOUT, self.etcd.revoke(lease));
                // A lease that is not ended here ends by itself.
                drop(ended.await);
                told.clear();
                backoff.reset();
            }
            match end {
                End::Shutdown(done) => {
                    say_done(done);
                    return Ok(());
                }
                End::Fatal(fatal) => return Err(fatal),
                End::Lost(error) if error.is_passing() || matches!(error, CallError::Compacted | CallError::Deposed) => {
                    let text = error.to_string();
                    if told != text {
                        warn!(%error, "out of touch with etcd; trying on");
                        told = text;
                    }
                    self.is_stale |= matches!(error, CallError::Compacted);
                }
                // It was this version's when this manager began.
                End::Lost(CallError::Unreadable(Unreadable::Format { found, .. })) => return Err(Fatal::Raised { found }),
                End::Lost(CallError::Unreadable(error)) => return Err(CallError::from(error).into()),
                End::Lost(error) => {
                    let text = error.to_string();
                    if told != text {
                        warn!(%error, "etcd refuses; trying on");
                        told = text;
                    }
                }
            }
            if let Err(End::Shutdown(done)) = self.during(sleep(backoff.delay())).await {
                say_done(done);
                return Ok(());
            }
        }
    }

    /// One session: how it ended, and the lease that it had.
    async fn session(&mut self) -> (End, Option<i64>) {
        let begun = session::begin(
            self.etcd.clone(),
            self.timing,
            (self.config.id, self.run),
            self.is_stale.then(|| self.config.cluster_id.clone()),
        );
        let begun = match self.during(begun).await {
            Ok(Ok(begun)) => begun,
            Ok(Err(error)) => return (End::Lost(error), None),
            Err(end) => return (end, None),
        };
        let lease = begun.lease.id;
        let end = match self.resume(begun) {
            Ok(session) => session.run().await,
            Err(fatal) => End::Fatal(fatal),
        };
        (end, Some(lease))
    }

    fn resume(&mut self, begun: session::Begun) -> Result<Session<'_>, Fatal> {
        let session::Begun { lease, at, head, loaded } = begun;
        // Before the tables are taken over: they were read later, and whoever else uses this etcd may have written between.
        if head < self.state.revision() || at < self.at {
            return Err(Fatal::WentBack { found: head, seen: self.state.revision() });
        }
        if let Some(loaded) = loaded {
            self.install(loaded)?;
        }
        Ok(Session::new(self, lease, at))
    }

    /// What `future` yields; whoever asks for something meanwhile is refused, or waits.
    async fn during<T>(&mut self, future: impl Future<Output = T>) -> Result<T, End> {
        tokio::pin!(future);
        loop {
            let input = tokio::select! {
                value = &mut future => return Ok(value),
                input = self.inputs.recv() => input,
            };
            match input {
                None => return Err(End::Shutdown(None)),
                Some(Input::Shutdown { done }) => return Err(End::Shutdown(Some(done))),
                // Who has given up does not need an answer.
                Some(Input::Propose(proposal)) => drop(proposal.reply.send(Err(ProposeError::NotLeader { leader: None }))),
                Some(Input::Read { reply }) => {
                    self.reads.retain(|read| !read.is_closed());
                    self.reads.push(reply);
                }
                Some(Input::Resign) => {}
            }
        }
    }
}

/// Who asked may have given up; it need not know.
fn say_done(done: Option<oneshot::Sender<()>>) {
    if let Some(done) = done {
        let _unread = done.send(());
    }
}
