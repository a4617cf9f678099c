//! The thread that owns raft-rs, the log and the tables.
//!
//! Order of a round: leader's messages leave first (followers write while we do), then entries and hard state become durable together,
//! then the messages that promise them, then committed entries are applied and their proposers told. A failed write ends the process:
//! after a failed fsync nobody knows what is on the disk, and a manager that dies is replaced while one that lies is not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use prost::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot};
use raft::{RawNode, SnapshotStatus, StateRole};
use rcluster_api::wire::v1;
use tokio::sync::{oneshot, watch};
use tracing::{error, info, warn};

use super::log::{Batch, LogStore, MemoryLog};
use super::{Inbox, Input, StoreError};
use crate::core::state::{State, decode_snapshot, decode_transaction, encode_snapshot};
use crate::store::{ClusterStatus, Member, MemberStatus, ProposeError, Role, RoleKind, StoreConfig};

/// Inputs taken in before the log is written once for all of them.
const DRAIN_MAX: usize = 1024;
/// A peer heard this recently is reachable.
const REACHABLE: Duration = Duration::from_secs(1);
/// How long a stopping leader waits for another to take over.
const TRANSFER_WAIT: Duration = Duration::from_secs(1);
/// A write slower than this is told: leadership is about to be lost.
const SLOW_WRITE: Duration = Duration::from_millis(400);
/// Ticks that a stall of the thread may swallow; more at once would start an election for no reason.
const TICKS_MAX: u32 = 2;

/// What everyone else reads.
pub struct Published {
    pub state: Arc<ArcSwap<State>>,
    pub status: Arc<ArcSwap<ClusterStatus>>,
    pub revision: watch::Sender<u64>,
    pub role: watch::Sender<Role>,
}

type Send = Box<dyn Fn(&Inbox, Message) + std::marker::Send>;

/// The owner.
pub struct Node<L> {
    config: StoreConfig,
    raw: RawNode<MemoryLog>,
    log: L,
    state: State,
    applied: u64,
    send: Send,
    published: Published,
    inbox: Inbox,
    run: u64,
    next_proposal: u64,
    proposals: BTreeMap<u64, oneshot::Sender<Result<u64, ProposeError>>>,
    next_read: u64,
    reads: BTreeMap<u64, oneshot::Sender<Result<(), ProposeError>>>,
    /// Reads whose index is known and not applied yet.
    ready_reads: Vec<(u64, u64)>,
    heard: BTreeMap<u64, Instant>,
    making_snapshot: bool,
    stopping: Option<(Instant, oneshot::Sender<()>)>,
}

impl<L: LogStore> Node<L> {
    /// Loads the log, or bootstraps an empty one from a snapshot at index 1 that names the voters, so that everyone begins alike.
    pub fn new(config: StoreConfig, mut log: L, send: Send, published: Published, inbox: Inbox) -> Result<Self, StoreError> {
        let broken = |error: L::Error| StoreError::Log(error.to_string());
        let loaded = match log.load().map_err(broken)? {
            Some(loaded) => loaded,
            None => bootstrap(&config, &mut log).map_err(broken)?,
        };
        let state = if loaded.snapshot.get_data().is_empty() {
            State::new(config.cluster_id())
        } else {
            decode_snapshot(loaded.snapshot.get_data())?
        };
        let applied = loaded.snapshot.get_metadata().index;
        info!(snapshot = applied, entries = loaded.entries.len(), "log loaded");
        let raft_config = raft::Config {
            id: config.id,
            election_tick: config.timing.election_ticks,
            heartbeat_tick: config.timing.heartbeat_ticks,
            applied,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: 64 << 20,
            max_committed_size_per_ready: 16 << 20,
            ..raft::Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&raft_config, MemoryLog::new(loaded), &logger)?;
        Ok(Self {
            config,
            raw,
            log,
            state,
            applied,
            send,
            published,
            inbox,
            run: rand::random(),
            next_proposal: 1,
            proposals: BTreeMap::new(),
            next_read: 1,
            reads: BTreeMap::new(),
            ready_reads: Vec::new(),
            heard: BTreeMap::new(),
            making_snapshot: false,
            stopping: None,
        })
    }

    /// Runs until shut down.
    pub fn run(mut self, receiver: &Receiver<Input>) {
        let tick = self.config.timing.tick;
        if self.config.members.len() == 1
            && let Err(error) = self.raw.campaign()
        {
            warn!(%error, "stand for election");
        }
        let mut next_tick = Instant::now() + tick;
        self.work();
        loop {
            match receiver.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(input) => self.take(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            for _ in 0..DRAIN_MAX {
                let Ok(input) = receiver.try_recv() else { break };
                self.take(input);
            }
            let mut ticks = 0;
            while Instant::now() >= next_tick {
                if ticks < TICKS_MAX {
                    self.raw.tick();
                }
                ticks += 1;
                next_tick += tick;
            }
            self.work();
            if ticks > 0 {
                self.publish_status();
            }
            if self.is_stopped() {
                return;
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Propose { entry, reply } => self.propose(entry, reply),
            Input::Read { reply } => self.read(reply),
            Input::Step(message) => {
                self.heard.insert(message.from, Instant::now());
                // A message that does not fit the term or the configuration is dropped by raft, as it should be.
                if let Err(error) = self.raw.step(*message) {
                    tracing::debug!(%error, "dropped a message");
                }
            }
            Input::Unreachable(peer) => self.raw.report_unreachable(peer),
            Input::SnapshotSent { to, arrived } => {
                self.raw.report_snapshot(to, if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
            }
            Input::SnapshotMade { data, index, term } => self.keep_snapshot(data, index, term),
            Input::Shutdown { done } => self.begin_stopping(done),
        }
    }

    fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    fn member(&self, id: u64) -> Option<Member> {
        self.config.members.iter().find(|member| member.id == id).cloned()
    }

    fn not_leader(&self) -> ProposeError {
        ProposeError::NotLeader { leader: self.member(self.raw.raft.leader_id) }
    }

    // A proposer that has given up does not need its answer: results of `reply.send` below are dropped for that reason.

    fn propose(&mut self, mut entry: v1::Transaction, reply: oneshot::Sender<Result<u64, ProposeError>>) {
        if !self.leads() || self.stopping.is_some() {
            drop(reply.send(Err(self.not_leader())));
            return;
        }
        let proposal = self.next_proposal;
        self.next_proposal += 1;
        entry.proposal_id = proposal;
        entry.proposer = self.config.id;
        entry.proposer_run = self.run;
        match self.raw.propose(Vec::new(), entry.encode_to_vec()) {
            Ok(()) => {
                self.proposals.insert(proposal, reply);
            }
            Err(error) => {
                warn!(%error, "proposal refused");
                drop(reply.send(Err(ProposeError::Unavailable)));
            }
        }
    }

    fn read(&mut self, reply: oneshot::Sender<Result<(), ProposeError>>) {
        if !self.leads() {
            drop(reply.send(Err(self.not_leader())));
            return;
        }
        // raft-rs forgets a read silently when the leader has not committed in its term.
        if !self.raw.raft.commit_to_current_term() {
            drop(reply.send(Err(ProposeError::Unavailable)));
            return;
        }
        let read = self.next_read;
        self.next_read += 1;
        self.reads.retain(|_, waiting| !waiting.is_closed());
        self.reads.insert(read, reply);
        self.raw.read_index(read.to_be_bytes().to_vec());
    }

    /// Handles everything that raft has ready.
    fn work(&mut self) {
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            self.send_all(ready.take_messages());
            for read in ready.take_read_states() {
                if let Ok(bytes) = <[u8; 8]>::try_from(read.request_ctx.as_slice()) {
                    self.ready_reads.push((read.index, u64::from_be_bytes(bytes)));
                }
            }
            let entries = ready.take_entries();
            let snapshot = Some(ready.snapshot().clone()).filter(|snapshot| !snapshot.is_empty_snapshot());
            self.make_durable(entries, ready.hs().cloned(), snapshot);
            self.send_all(ready.take_persisted_messages());
            let committed = ready.take_committed_entries();
            self.apply(committed);
            let mut light = self.raw.advance(ready);
            if let Some(commit) = light.commit_index() {
                self.raw.mut_store().set_commit(commit);
            }
            self.send_all(light.take_messages());
            self.apply(light.take_committed_entries());
            self.raw.advance_apply();
        }
        self.publish_role();
        self.answer_reads();
        if self.raw.store().take_snapshot_wanted()
            || self.applied.saturating_sub(self.raw.store().snapshot_index()) >= self.config.snapshot_entries
        {
            self.make_snapshot();
        }
    }

    fn send_all(&self, messages: Vec<Message>) {
        for message in messages {
            (self.send)(&self.inbox, message);
        }
    }

    fn make_durable(&mut self, entries: Vec<Entry>, hard_state: Option<raft::eraftpb::HardState>, snapshot: Option<Snapshot>) {
        if let Some(snapshot) = &snapshot {
            self.install(snapshot);
        }
        if entries.is_empty() && hard_state.is_none() && snapshot.is_none() {
            return;
        }
        // A snapshot and the hard state that goes with it are durable in one step: a commit index without its log would not start again.
        let mut hard_state = hard_state.unwrap_or_else(|| self.raw.store().hard_state().clone());
        if let Some(snapshot) = &snapshot {
            hard_state.commit = hard_state.commit.max(snapshot.get_metadata().index);
            hard_state.term = hard_state.term.max(snapshot.get_metadata().term);
        }
        let batch = Batch {
            entries: &entries,
            hard_state: Some(&hard_state),
            snapshot: snapshot.as_ref(),
            reset_log: snapshot.is_some(),
            first_kept: 0,
        };
        self.persist(&batch);
        if let Some(snapshot) = snapshot {
            self.raw.mut_store().install(snapshot);
        }
        self.raw.mut_store().set_hard_state(hard_state);
        self.raw.mut_store().append(entries);
    }

    fn persist(&mut self, batch: &Batch<'_>) {
        let started = Instant::now();
        if let Err(failure) = self.log.persist(batch) {
            error!(error = %failure, dir = %self.config.dir.display(), "the log cannot be written: this manager ends; mend the disk and start it again");
            std::process::abort();
        }
        let took = started.elapsed();
        if took > SLOW_WRITE {
            warn!(milliseconds = took.as_millis(), "the disk is slow: a write took longer than followers wait for a leader");
        }
    }

    /// Takes over the tables that the leader sent.
    fn install(&mut self, snapshot: &Snapshot) {
        match decode_snapshot(snapshot.get_data()) {
            Ok(state) => {
                self.state = state;
                self.applied = snapshot.get_metadata().index;
                info!(index = self.applied, "snapshot installed");
                self.publish_state();
            }
            Err(failure) => {
                error!(error = %failure, "the leader's snapshot cannot be read: this manager ends; is it older than the leader?");
                std::process::abort();
            }
        }
    }

    fn apply(&mut self, entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        let mut answers = Vec::new();
        for entry in entries {
            self.applied = entry.index;
            if entry.get_entry_type() != EntryType::EntryNormal || entry.data.is_empty() {
                continue;
            }
            let decoded = v1::Transaction::decode(&entry.data[..]).map(|wire| (wire.proposer, wire.proposer_run, wire.proposal_id, wire));
            let Ok((proposer, run, proposal, wire)) = decoded else {
                error!(index = entry.index, "a committed entry cannot be read: this manager ends; is it older than the leader?");
                std::process::abort();
            };
            let outcome = match decode_transaction(wire) {
                Ok(transaction) => self.state.apply(entry.index, &transaction).map(|()| entry.index),
                Err(failure) => {
                    error!(index = entry.index, error = %failure, "a committed entry cannot be read: this manager ends");
                    std::process::abort();
                }
            };
            if proposer == self.config.id
                && run == self.run
                && let Some(reply) = self.proposals.remove(&proposal)
            {
                answers.push((reply, outcome));
            }
        }
        self.publish_state();
        for (reply, outcome) in answers {
            drop(reply.send(outcome.map_err(ProposeError::Conflict)));
        }
    }

    fn publish_state(&self) {
        self.published.state.store(Arc::new(self.state.clone()));
        let revision = self.state.revision();
        self.published.revision.send_if_modified(|known| {
            let rises = *known != revision;
            *known = revision;
            rises
        });
    }

    /// Leadership is told only once everything from before the term is applied here.
    fn publish_role(&mut self) {
        let raft = &self.raw.raft;
        let kind = match raft.state {
            StateRole::Leader if raft.commit_to_current_term() && self.applied >= raft.raft_log.committed => RoleKind::Leader,
            StateRole::Leader | StateRole::Candidate | StateRole::PreCandidate => RoleKind::Candidate,
            StateRole::Follower => RoleKind::Follower,
        };
        let role = Role { term: raft.term, kind, leader: self.member(raft.leader_id) };
        if !self.leads() {
            for (_, reply) in std::mem::take(&mut self.proposals) {
                drop(reply.send(Err(ProposeError::Unavailable)));
            }
            for (_, reply) in std::mem::take(&mut self.reads) {
                drop(reply.send(Err(ProposeError::Unavailable)));
            }
            self.ready_reads.clear();
        }
        let changed = self.published.role.send_if_modified(|known| {
            let changes = *known != role;
            known.clone_from(&role);
            changes
        });
        if changed {
            let leader = role.leader.map(|leader| leader.name).unwrap_or_default();
            info!(role = kind.as_str(), term = role.term, leader, "raft");
            self.publish_status();
        }
    }

    fn answer_reads(&mut self) {
        let applied = self.applied;
        let (done, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.ready_reads).into_iter().partition(|(index, _)| *index <= applied);
        self.ready_reads = waiting;
        for (_, read) in done {
            if let Some(reply) = self.reads.remove(&read) {
                drop(reply.send(Ok(())));
            }
        }
    }

    fn publish_status(&self) {
        let raft = &self.raw.raft;
        let leader = self.member(raft.leader_id).map(|leader| leader.name).unwrap_or_default();
        let members = self.config.members.iter().map(|member| {
            let own = member.id == self.config.id;
            let role = if own {
                match raft.state {
                    StateRole::Leader => RoleKind::Leader,
                    StateRole::Follower => RoleKind::Follower,
                    StateRole::Candidate | StateRole::PreCandidate => RoleKind::Candidate,
                }
            } else if member.id == raft.leader_id {
                RoleKind::Leader
            } else {
                RoleKind::Follower
            };
            let heard = self.heard.get(&member.id).is_some_and(|at| at.elapsed() < REACHABLE);
            MemberStatus {
                id: member.id,
                name: member.name.clone(),
                addr: member.addr.clone(),
                role: role.as_str().to_owned(),
                reachable: own || heard,
                matched: if self.leads() { raft.prs().get(member.id).map(|progress| progress.matched).unwrap_or_default() } else { 0 },
            }
        });
        self.published.status.store(Arc::new(ClusterStatus {
            term: raft.term,
            committed: raft.raft_log.committed,
            applied: self.applied,
            leader,
            members: members.collect(),
            answered_by: self.config.name.clone(),
        }));
    }

    /// Has the tables encoded beside this thread; a clone costs nothing.
    fn make_snapshot(&mut self) {
        let index = self.applied;
        let Ok(term) = raft::Storage::term(self.raw.store(), index) else { return };
        if self.making_snapshot {
            return;
        }
        self.making_snapshot = true;
        let (state, inbox) = (self.state.clone(), self.inbox.clone());
        let made = std::thread::Builder::new().name("snapshot".to_owned()).spawn(move || {
            let made = Input::SnapshotMade { data: encode_snapshot(&state), index, term };
            // When the inbox is full the snapshot is lost and `making_snapshot` would stay set; waiting is right here.
            drop(inbox.sender.send(made));
        });
        if let Err(error) = made {
            warn!(%error, "no thread for a snapshot");
            self.making_snapshot = false;
        }
    }

    fn keep_snapshot(&mut self, data: Vec<u8>, index: u64, term: u64) {
        self.making_snapshot = false;
        if index <= self.raw.store().snapshot_index() && !data.is_empty() && self.raw.store().snapshot_index() > 1 {
            return;
        }
        let conf_state = self.raw.store().conf_state().clone();
        let snapshot = snapshot(data, index, term, conf_state);
        let first_kept = self.raw.store().first_kept(index, self.config.trailing_entries);
        let hard_state = self.raw.store().hard_state().clone();
        let batch = Batch { entries: &[], hard_state: Some(&hard_state), snapshot: Some(&snapshot), reset_log: false, first_kept };
        self.persist(&batch);
        self.raw.mut_store().compact(snapshot, first_kept);
        info!(index, first_kept, "snapshot kept");
    }

    fn begin_stopping(&mut self, done: oneshot::Sender<()>) {
        if self.leads() {
            let reachable = |id: &u64| self.heard.get(id).is_some_and(|at| at.elapsed() < REACHABLE);
            let best = self
                .raw
                .raft
                .prs()
                .iter()
                .filter(|(id, _)| **id != self.config.id && reachable(id))
                .max_by_key(|(_, progress)| progress.matched)
                .map(|(id, _)| *id);
            if let Some(successor) = best {
                info!(to = successor, "handing leadership over");
                self.raw.transfer_leader(successor);
            }
        }
        self.stopping = Some((Instant::now(), done));
    }

    fn is_stopped(&mut self) -> bool {
        let over = self.stopping.as_ref().is_some_and(|(since, _)| {
            let alone = self.config.members.len() == 1;
            !self.leads() || alone || since.elapsed() > TRANSFER_WAIT
        });
        if over
            && let Some((_, done)) = self.stopping.take()
            && done.send(()).is_err()
        {
            info!("stopped; nobody waited for it");
        }
        over
    }
}

fn snapshot(data: Vec<u8>, index: u64, term: u64, conf_state: ConfState) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.set_data(data.into());
    let metadata = snapshot.mut_metadata();
    metadata.index = index;
    metadata.term = term;
    metadata.set_conf_state(conf_state);
    snapshot
}

/// The first log of a cluster: a snapshot at index 1 with every voter, so that a member never has to replay the configuration.
fn bootstrap<L: LogStore>(config: &StoreConfig, log: &mut L) -> Result<super::log::Loaded, L::Error> {
    let voters: Vec<u64> = config.members.iter().map(|member| member.id).collect();
    let first = snapshot(encode_snapshot(&State::new(config.cluster_id())), 1, 1, ConfState::from((voters, Vec::new())));
    let mut hard_state = raft::eraftpb::HardState::default();
    hard_state.term = 1;
    hard_state.commit = 1;
    log.persist(&Batch { entries: &[], hard_state: Some(&hard_state), snapshot: Some(&first), reset_log: true, first_kept: 0 })?;
    Ok(super::log::Loaded { hard_state, snapshot: first, entries: Vec::new() })
}

/// Whether a message carries a snapshot; those travel on their own call.
pub fn is_snapshot(message: &Message) -> bool {
    message.get_msg_type() == MessageType::MsgSnapshot
}

trait EmptySnapshot {
    fn is_empty_snapshot(&self) -> bool;
}

impl EmptySnapshot for Snapshot {
    fn is_empty_snapshot(&self) -> bool {
        self.get_metadata().index == 0
    }
}
