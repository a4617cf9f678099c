//! The node that owns raft-rs, the log and the tables: inputs and the time in, messages, batches and answers out.
//!
//! It has no clock, no thread and no source of chance of its own: `thread` gives it those of the process, a simulation its own. Order of
//! a round: a leader's messages leave first (followers write while it does), then entries and hard state become durable
//! together, then the messages that promise them leave, then committed entries are applied and their proposers told. Disk and clock are
//! on one thread on purpose: a leader whose disk hangs falls silent, and is replaced; `watchdog` has the rest of its manager know.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot,
};
use raft::{Raft, RawNode, SnapshotStatus, StateRole};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rcluster_api::wire::v1;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::{debug, error, info, warn};

use super::log::{LogError, LogStore, Saved};
use super::publish::Publisher;
use super::reads::Reads;
use super::storage::Storage;
use super::{Chain, Environment, Fatal, Inbox, Input, StoreError, Transport};
use crate::core::state::{State, decode_snapshot, decode_transaction, encode_snapshot};
use crate::store::{MemberChange, ProposeError, RaftTiming, StoreConfig, TRANSFER_WAIT};

/// Voters that stand for election one after the other; more share the last place.
const VOTERS_MAX: usize = 9;
/// Bytes of entries in one message, one peer's messages on their way, entries not committed, entries applied at once.
const APPEND_BYTES_MAX: u64 = 512 << 10;
const APPENDS_MAX: usize = 64;
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
const APPLY_BYTES_MAX: u64 = 4 << 20;
/// Pause before a snapshot that takes old keys off the disk is tried again.
const RESEAL_PAUSE: Duration = Duration::from_secs(10);
/// A successor that lacks no more entries than this has them within a few messages.
const SUCCESSOR_LAG_MAX: u64 = 1000;

type Reply = oneshot::Sender<Result<u64, ProposeError>>;
/// Whom to answer what.
type Answer = (Reply, Result<u64, ProposeError>);

/// Proposals of one term that wait for their commit.
#[derive(Debug, Default)]
struct Proposals {
    term: u64,
    next: u64,
    waiting: BTreeMap<u64, (Reply, OwnedSemaphorePermit)>,
}

/// How far the disk's content has been brought under its newest key. The tables hold what it is locked with, so what stands under the keys
/// before must not: it is taken off by a snapshot, and by keeping no entries behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resealing {
    Done,
    /// A snapshot is to be made at once.
    Due,
    /// One was begun under the newest key. If entries that were not applied then stand under an older key, another follows.
    Begun,
    /// It could not be made, and is due again then.
    Failed {
        due: Duration,
    },
}

/// The owner.
pub struct Node<L: LogStore, T> {
    config: StoreConfig,
    raw: RawNode<Storage<L>>,
    transport: T,
    environment: Box<dyn Environment>,
    publisher: Publisher,
    inbox: Inbox,
    rng: ChaCha8Rng,
    /// Random per start, so that an entry of an earlier run is not taken for one of this.
    run: u64,
    proposals: Proposals,
    reads: Reads,
    /// Applied index and log bytes at which the next snapshot is due.
    snapshot_due: (u64, u64),
    making_snapshot: bool,
    resealing: Resealing,
    /// Whether the configuration has named this manager: one that joins is not named at first.
    member: bool,
    /// Ticks of silence after which it stands for election, as this chose them.
    patience: usize,
    /// Ticks since it was started.
    ticks: usize,
    /// Term, role and place among the voters that `patience` was drawn for.
    drawn_for: Option<(u64, StateRole, usize)>,
    stopping: Option<(Duration, oneshot::Sender<()>)>,
}

impl<L: LogStore, T: Transport> Node<L, T> {
    /// Loads the log and publishes the tables of its snapshot. Equal seeds make equal choices; those of two runs must not be equal.
    pub fn new(
        config: StoreConfig,
        mut log: L,
        mut transport: T,
        environment: Box<dyn Environment>,
        mut publisher: Publisher,
        inbox: Inbox,
        seed: u64,
    ) -> Result<Self, StoreError> {
        let loaded = log.load()?;
        let state = decode_snapshot(&loaded.data)?;
        if state.cluster_id() != config.cluster_id {
            let (found, own) = (state.cluster_id(), &config.cluster_id);
            return Err(LogError::Damaged(format!("its snapshot is of cluster {found}, not of {own}")).into());
        }
        if state.managers().is_empty() && config.seeds.is_empty() {
            return Err(LogError::Damaged("it names no managers: it was made by a version before there were any in it".to_owned()).into());
        }
        let applied = loaded.snapshot.index;
        info!(snapshot = applied, last = loaded.terms.last(), bytes = loaded.bytes, "log loaded");
        let storage = Storage::new(log, loaded, state)?;
        publisher.publish_state(storage.state());
        transport.set_members(publisher.members(), publisher.version());
        let raw = RawNode::new(&raft_config(&config, applied), storage, &slog::Logger::root(Bridge, slog::o!()))?;
        publisher.publish_status(&raw.raft, &transport, environment.now());
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let run = rng.random();
        let member = Self::takes_part(raw.store(), config.id);
        let mut node = Self {
            member,
            patience: 0,
            ticks: 0,
            drawn_for: None,
            reads: Reads::new(config.id, run),
            config,
            raw,
            transport,
            environment,
            publisher,
            inbox,
            rng,
            run,
            proposals: Proposals::default(),
            snapshot_due: (0, 0),
            making_snapshot: false,
            // Also when the process before this has ended between the two.
            resealing: Resealing::Due,
            stopping: None,
        };
        node.plan_snapshot();
        Ok(node)
    }

    /// The first round. A lone voter need not wait for an election.
    pub fn start(&mut self, now: Duration) -> Result<(), Fatal> {
        // What is known to be committed first: raft-rs holds all that is not applied in memory at once when it stands for election.
        self.work(now)?;
        if self.raw.store().configuration().voters == [self.config.id]
            && let Err(error) = self.raw.campaign()
        {
            warn!(%error, "cannot stand for election yet");
        }
        self.work(now)
    }

    /// Takes an input in; what follows from it, [`Node::work`] does, once for all inputs that were there.
    pub fn handle(&mut self, now: Duration, input: Input) -> Result<(), Fatal> {
        self.publisher.watchdog().works(now);
        match input {
            Input::Propose { entry, reply, permit } => self.propose(entry, reply, permit),
            Input::Read { reply } => self.reads.push(reply),
            Input::Step { message, bytes } => {
                self.inbox.taken(bytes);
                self.publisher.hear(message.from, now);
                // What does not fit the configuration is dropped by raft, as it should be.
                if let Err(error) = self.raw.step(*message) {
                    debug!(%error, "dropped a message");
                }
            }
            Input::HeardWrite { from, write_us } => self.publisher.hear_write(from, write_us),
            Input::Introduced(sender) => {
                if self.publisher.introduce(sender) {
                    self.transport.set_members(self.publisher.members(), self.publisher.version());
                }
            }
            Input::Unreachable { peer } => self.raw.report_unreachable(peer),
            Input::SnapshotSent { to, arrived } => {
                self.raw.report_snapshot(to, if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
            }
            Input::SnapshotSaved(saved) => self.keep_snapshot(saved)?,
            Input::Rekeyed => {
                self.resealing = Resealing::Due;
                self.plan_snapshot();
            }
            Input::ChangeMembers { changes, reply } => drop(reply.send(self.change_members(&changes))),
            Input::Transfer { to } => self.transfer(to, now),
            Input::HandOver { begun } => drop(begun.send(self.hand_over(now))),
            Input::Removed => return Err(Fatal::Removed),
            Input::Shutdown { done } => self.begin_stopping(now, done),
        }
        Ok(())
    }

    /// Raft's clock goes on by one; [`Node::work`] does what follows.
    pub fn tick(&mut self, now: Duration) {
        self.spread_elections();
        self.raw.tick();
        // As often as a leader says that it is there: what the status says of time is not known better than that.
        self.ticks += 1;
        if let Resealing::Failed { due } = self.resealing
            && now >= due
        {
            self.resealing = Resealing::Due;
        }
        if self.ticks.is_multiple_of(self.config.timing.heartbeat) {
            self.publisher.publish_status(&self.raw.raft, &self.transport, now);
        }
    }

    /// Handles everything that raft has ready, and lets everyone see what has come of it.
    pub fn work(&mut self, now: Duration) -> Result<(), Fatal> {
        self.publisher.watchdog().works(now);
        self.drain(now)?;
        let withdrawn = self.publisher.watchdog().done();
        if let Some(since) = withdrawn {
            self.step_down(self.environment.now().saturating_sub(since));
            self.drain(now)?;
        }
        self.end_proposals_of_other_terms();
        if self.publisher.publish_role(&self.raw.raft) || withdrawn.is_some() {
            self.publisher.publish_status(&self.raw.raft, &self.transport, now);
        }
        self.reads.answer(self.raw.store().applied());
        self.make_snapshot_when_due();
        Ok(())
    }

    /// Leads no more in this term: others have been told so.
    fn step_down(&mut self, late: Duration) {
        if self.raw.raft.state == StateRole::Leader {
            warn!(late_ms = late.as_millis(), "the disk answers again, too late for a leader: this manager steps down");
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
        }
    }

    fn drain(&mut self, now: Duration) -> Result<(), Fatal> {
        loop {
            self.reads.ask(&mut self.raw, now);
            self.spread_elections();
            if !self.raw.has_ready() {
                break;
            }
            let mut ready = self.raw.ready();
            self.send(ready.take_messages());
            ready.take_read_states().iter().for_each(|read| self.reads.confirm(read));
            let entries = ready.take_entries();
            let (hard_state, must_sync) = (ready.hs().cloned(), ready.must_sync());
            if ready.snapshot().is_empty() {
                self.write(hard_state, entries, must_sync)?;
            } else {
                self.install(ready.snapshot().clone(), hard_state, entries)?;
            }
            self.send(ready.take_persisted_messages());
            self.apply(&ready.take_committed_entries())?;
            let mut light = self.raw.advance(ready);
            if let Some(commit) = light.commit_index() {
                self.raw.mut_store().set_commit(commit);
            }
            self.send(light.take_messages());
            self.apply(&light.take_committed_entries())?;
            self.raw.advance_apply();
        }
        Ok(())
    }

    /// Whether it was shut down and has handed leadership over, as far as anyone takes it.
    pub fn is_stopped(&self, now: Duration) -> bool {
        let Some((since, _)) = &self.stopping else { return false };
        let handing_over = self.leads() && self.raw.raft.lead_transferee.is_some();
        !handing_over || now.saturating_sub(*since) >= TRANSFER_WAIT
    }

    /// Who is to be told of the end of a stopped node, once it is gone, and its log with it.
    pub fn end(self) -> Option<oneshot::Sender<()>> {
        self.stopping.map(|(_, done)| done)
    }

    /// Raft as it is, for looking at.
    pub fn raft(&self) -> &Raft<Storage<L>> {
        &self.raw.raft
    }

    fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    // A proposer that has given up does not need its answer: results of `reply.send` are dropped for that reason.

    fn propose(&mut self, mut entry: v1::Transaction, reply: Reply, permit: OwnedSemaphorePermit) {
        if !self.leads() || self.stopping.is_some() {
            drop(reply.send(Err(self.not_leader())));
            return;
        }
        self.end_proposals_of_other_terms();
        let proposal = self.proposals.next;
        self.proposals.next += 1;
        entry.proposal_id = proposal;
        entry.proposer = self.config.id;
        entry.proposer_run = self.run;
        match self.raw.propose(Vec::new(), entry.encode_to_vec()) {
            Ok(()) => {
                self.proposals.waiting.insert(proposal, (reply, permit));
            }
            Err(error) => {
                // It did not enter the log: leadership is being handed over.
                debug!(%error, "proposal refused");
                drop(reply.send(Err(self.not_leader())));
            }
        }
    }

    fn change_members(&mut self, changes: &[MemberChange]) -> Result<(), ProposeError> {
        if !self.leads() || self.stopping.is_some() {
            return Err(self.not_leader());
        }
        let single = |change: &MemberChange| {
            let (kind, id) = match *change {
                MemberChange::Learner(id) => (ConfChangeType::AddLearnerNode, id),
                MemberChange::Voter(id) => (ConfChangeType::AddNode, id),
                MemberChange::Remove(id) => (ConfChangeType::RemoveNode, id),
            };
            let mut single = ConfChangeSingle::default();
            single.set_change_type(kind);
            single.node_id = id;
            single
        };
        let mut change = ConfChangeV2::default();
        change.set_changes(changes.iter().map(single).collect::<Vec<_>>().into());
        self.raw.propose_conf_change(Vec::new(), change).map_err(|error| {
            debug!(%error, "change of members refused");
            self.not_leader()
        })
    }

    /// A change of the configuration that all apply alike. One that raft-rs cannot make, it makes for nobody.
    fn reconfigure(&mut self, entry: &Entry) -> Result<(), Fatal> {
        let unreadable = |error: protobuf::ProtobufError| Fatal::Entry { index: entry.index, why: error.to_string() };
        let made = if entry.get_entry_type() == EntryType::EntryConfChange {
            self.raw.apply_conf_change(&ConfChange::parse_from_bytes(&entry.data).map_err(unreadable)?)
        } else {
            self.raw.apply_conf_change(&ConfChangeV2::parse_from_bytes(&entry.data).map_err(unreadable)?)
        };
        match made {
            Ok(configuration) => {
                info!(index = entry.index, voters = ?configuration.voters, learners = ?configuration.learners, "members");
                self.raw.mut_store().set_configuration(configuration);
            }
            Err(error) => warn!(index = entry.index, %error, "a change of members has no effect"),
        }
        let takes_part = Self::takes_part(self.raw.store(), self.config.id);
        if self.member && !takes_part {
            return Err(Fatal::Removed);
        }
        self.member = takes_part;
        Ok(())
    }

    fn takes_part(storage: &Storage<L>, id: u64) -> bool {
        let ConfState { voters, learners, voters_outgoing, learners_next, .. } = storage.configuration();
        [voters, learners, voters_outgoing, learners_next].into_iter().any(|ids| ids.contains(&id))
    }

    /// Voters stand for election one after the other, see [`RaftTiming`]. raft-rs draws a time for itself whenever its term or role
    /// changes, by a chance of its own; that one is never waited for, since another is set before the next tick.
    fn spread_elections(&mut self) {
        let RaftTiming { tick: _, heartbeat: _, election, slack, stagger } = self.config.timing;
        let (own, voters) = (self.config.id, &self.raw.store().configuration().voters);
        // One that does not vote is never asked to stand.
        let rank = if voters.contains(&own) { voters.iter().filter(|id| **id < own).count().min(VOTERS_MAX - 1) } else { 0 };
        let drawing_for = Some((self.raw.raft.term, self.raw.raft.state, rank));
        if self.drawn_for != drawing_for {
            self.drawn_for = drawing_for;
            self.patience = election + slack + rank * stagger + self.rng.random_range(0..stagger.max(1));
        }
        self.raw.raft.set_randomized_election_timeout(self.patience);
    }

    fn not_leader(&self) -> ProposeError {
        let raft = &self.raw.raft;
        let leader = self.publisher.member(raft.leader_id).filter(|leader| leader.id != self.config.id).cloned();
        ProposeError::NotLeader { leader }
    }

    /// What was proposed in a term that is over may or may not be committed by another leader.
    fn end_proposals_of_other_terms(&mut self) {
        if self.leads() && self.raw.raft.term == self.proposals.term {
            return;
        }
        self.proposals.term = self.raw.raft.term;
        for (_, (reply, _)) in std::mem::take(&mut self.proposals.waiting) {
            drop(reply.send(Err(ProposeError::Unavailable)));
        }
    }

    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            if message.from != self.config.id {
                // A manager speaks for itself alone, and what it sends for another is refused with all that comes behind it. raft-rs
                // passes reads on that have come to one who leads no more; whoever reads asks again.
                debug!(from = message.from, to = message.to, "another's message is not passed on");
            } else if message.get_msg_type() != MessageType::MsgSnapshot {
                self.transport.send(message);
            } else if let Some(state) = self.raw.store().take_outgoing(message.to) {
                info!(to = message.to, index = message.get_snapshot().get_metadata().index, "sending a snapshot");
                self.config.meter.snapshots_sent.count();
                self.transport.send_snapshot(message, state);
            } else {
                self.inbox.snapshot_sent(message.to, false);
            }
        }
    }

    fn write(&mut self, hard_state: Option<HardState>, entries: Vec<Entry>, must_sync: bool) -> Result<(), Fatal> {
        if must_sync {
            let started = self.environment.now();
            self.raw.mut_store().append(hard_state, entries)?;
            let took = self.environment.now().saturating_sub(started);
            self.watch_disk(took);
            self.config.meter.log_writes.observe(took);
            let write_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            self.publisher.hear_write(self.config.id, write_us);
            self.transport.set_write(write_us);
        } else if let Some(hard_state) = hard_state {
            self.raw.mut_store().set_commit(hard_state.commit);
        }
        Ok(())
    }

    fn watch_disk(&self, took: Duration) {
        if took > self.config.timing.silence() {
            warn!(took_ms = took.as_millis(), "the disk is slow: a write took longer than followers wait for a leader");
        }
    }

    /// Begins again from the tables that the leader sent.
    fn install(&mut self, snapshot: Snapshot, hard_state: Option<HardState>, entries: Vec<Entry>) -> Result<(), Fatal> {
        let Snapshot { data, metadata, .. } = snapshot;
        let state = decode_snapshot(&data)?;
        if state.cluster_id() != self.config.cluster_id {
            return Err(LogError::Damaged(format!("the leader sent the tables of cluster {:?}", state.cluster_id())).into());
        }
        let saved = self.raw.store().saver()(metadata.unwrap_or_default(), &data)?;
        self.raw.mut_store().install(&saved, state, hard_state, entries)?;
        info!(index = saved.metadata.index, bytes = saved.bytes, "snapshot installed");
        self.config.meter.snapshots_installed.count();
        self.member = Self::takes_part(self.raw.store(), self.config.id);
        self.publish_state();
        self.plan_snapshot();
        Ok(())
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<(), Fatal> {
        let Some(last) = entries.last() else { return Ok(()) };
        let mut state = self.raw.store().state().clone();
        let mut answers = Vec::new();
        for entry in entries {
            if entry.get_entry_type() == EntryType::EntryNormal {
                answers.extend(self.apply_entry(&mut state, entry)?);
            } else {
                // raft-rs may ask for a snapshot while it changes the configuration: one of the tables and the configuration before.
                self.raw.mut_store().set_applied(entry.index - 1, state.clone());
                self.reconfigure(entry)?;
                self.raw.mut_store().set_applied(entry.index, state.clone());
            }
        }
        let moved = !state.managers().ptr_eq(self.raw.store().state().managers());
        self.raw.mut_store().set_applied(last.index, state);
        if moved {
            // Where managers are is on the disk as committed before anyone acts on it: one that has been restarted would look for them where
            // they were, and of those that have moved nobody could tell it.
            self.write(None, Vec::new(), true)?;
        }
        self.publish_state();
        for (reply, outcome) in answers {
            drop(reply.send(outcome));
        }
        Ok(())
    }

    fn publish_state(&mut self) {
        if self.publisher.publish_state(self.raw.store().state()) {
            self.transport.set_members(self.publisher.members(), self.publisher.version());
        }
    }

    /// Applies one entry; if this run has proposed it and waits for it, says what to answer.
    fn apply_entry(&mut self, state: &mut State, entry: &Entry) -> Result<Option<Answer>, Fatal> {
        let unreadable = |why: String| Fatal::Entry { index: entry.index, why };
        if entry.data.is_empty() {
            return Ok(None);
        }
        let wire = v1::Transaction::decode(&entry.data[..]).map_err(|error| unreadable(error.to_string()))?;
        let own = wire.proposer == self.config.id && wire.proposer_run == self.run;
        let proposal = wire.proposal_id;
        let transaction = decode_transaction(wire).map_err(|error| unreadable(Chain(&error).to_string()))?;
        let outcome = state.apply(entry.index, &transaction).map(|()| entry.index).map_err(ProposeError::Conflict);
        self.config.meter.applied(outcome.is_ok());
        let waiting = if own { self.proposals.waiting.remove(&proposal) } else { None };
        Ok(waiting.map(|(reply, _)| (reply, outcome)))
    }

    fn plan_snapshot(&mut self) {
        let (storage, config) = (self.raw.store(), &self.config);
        self.snapshot_due = (storage.snapshot_index() + config.snapshot_entries, config.snapshot_bytes);
        if self.resealing != Resealing::Done && !storage.has_older_keys() {
            self.resealing = Resealing::Done;
        } else if self.resealing == Resealing::Begun {
            self.snapshot_due.0 = storage.snapshot_index() + 1;
        }
    }

    /// Has the tables encoded and written beside this node; their copy costs nothing.
    fn make_snapshot_when_due(&mut self) {
        let storage = self.raw.store();
        let due = storage.applied() >= self.snapshot_due.0 || storage.bytes() >= self.snapshot_due.1;
        let resealing = self.resealing == Resealing::Due;
        if self.making_snapshot || !(resealing || due && storage.applied() > storage.snapshot_index()) {
            return;
        }
        if resealing {
            self.resealing = Resealing::Begun;
        }
        let (state, metadata, save, inbox) = (storage.state().clone(), storage.applied_metadata(), storage.saver(), self.inbox.clone());
        let made = self.environment.beside(Box::new(move || {
            let saved = save(metadata, &encode_snapshot(&state));
            // When the owner has ended, the file is left for the next start to sweep.
            drop(inbox.send(Input::SnapshotSaved(saved)));
        }));
        match made {
            Ok(()) => self.making_snapshot = true,
            Err(error) => self.put_snapshot_off(&error),
        }
    }

    fn keep_snapshot(&mut self, saved: Result<Saved, LogError>) -> Result<(), Fatal> {
        self.making_snapshot = false;
        let resealing = self.resealing != Resealing::Done;
        match saved {
            Ok(saved) if saved.metadata.index + u64::from(resealing) > self.raw.store().snapshot_index() => {
                let trailing = if resealing { 0 } else { self.config.trailing_entries };
                self.raw.mut_store().compact(&saved, trailing)?;
                info!(index = saved.metadata.index, bytes = saved.bytes, "snapshot kept");
                self.config.meter.snapshots_made.count();
                self.plan_snapshot();
            }
            Ok(saved) => debug!(index = saved.metadata.index, "a newer snapshot came from the leader meanwhile"),
            Err(error) => self.put_snapshot_off(&error),
        }
        Ok(())
    }

    /// Nothing is lost without a snapshot: the log only grows. It is made again from the tables as they are then.
    fn put_snapshot_off(&mut self, error: &(dyn std::error::Error + 'static)) {
        let error = Chain(error);
        if self.resealing == Resealing::Begun {
            self.resealing = Resealing::Failed { due: self.environment.now() + RESEAL_PAUSE };
            error!(%error, "no snapshot could be made: the log grows, and keys that were replaced still open it; does the disk have room?");
        } else {
            error!(%error, "no snapshot could be made: the log grows; does the disk have room?");
        }
        self.snapshot_due.0 = self.raw.store().applied() + self.config.snapshot_entries.div_ceil(10);
        self.snapshot_due.1 = self.raw.store().bytes() + self.config.snapshot_bytes.div_ceil(10);
    }

    /// Whether `id` would lead at once if it was told to. Until the successor leads, or the time of an election has gone by, raft-rs refuses
    /// all proposals: none is begun for one that does not answer or would be sent much first.
    fn can_succeed(&self, id: u64, now: Duration) -> bool {
        let raft = &self.raw.raft;
        let is_near = raft.prs().get(id).is_some_and(|progress| progress.matched + SUCCESSOR_LAG_MAX >= raft.raft_log.last_index());
        let votes = self.raw.store().configuration().voters.contains(&id);
        id != self.config.id && votes && is_near && self.publisher.is_heard(id, now)
    }

    fn transfer(&mut self, to: u64, now: Duration) {
        if self.can_succeed(to, now) {
            self.raw.transfer_leader(to);
        } else {
            debug!(to, "leadership is not handed over: it is not heard, is far behind or does not vote");
        }
    }

    /// Has the voter lead that is nearest to this leader; whether there is one.
    fn hand_over(&mut self, now: Duration) -> bool {
        let peers = self.raw.raft.prs().iter().filter(|(id, _)| self.can_succeed(**id, now));
        let successor = peers.max_by_key(|(_, progress)| progress.matched).map(|(id, _)| *id);
        let Some(successor) = successor.filter(|_| self.leads()) else { return false };
        info!(to = successor, "handing leadership over");
        self.raw.transfer_leader(successor);
        true
    }

    fn begin_stopping(&mut self, now: Duration, done: oneshot::Sender<()>) {
        self.hand_over(now);
        self.stopping = Some((now, done));
    }
}

fn raft_config(config: &StoreConfig, applied: u64) -> raft::Config {
    let RaftTiming { tick: _, heartbeat, election, slack, stagger } = config.timing;
    let min_election_tick = election + slack;
    raft::Config {
        id: config.id,
        election_tick: election,
        min_election_tick,
        // Room for what `spread_elections` chooses.
        max_election_tick: min_election_tick + VOTERS_MAX * stagger.max(1) + 1,
        heartbeat_tick: heartbeat,
        applied,
        max_size_per_msg: APPEND_BYTES_MAX,
        max_inflight_msgs: APPENDS_MAX,
        check_quorum: true,
        pre_vote: true,
        max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
        max_committed_size_per_ready: APPLY_BYTES_MAX,
        ..raft::Config::default()
    }
}

/// raft-rs speaks slog; what it says about elections is worth having when looking closely.
struct Bridge;

impl slog::Drain for Bridge {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _values: &slog::OwnedKVList) -> Result<(), slog::Never> {
        if record.level().is_at_least(slog::Level::Error) {
            warn!("raft: {}", record.msg());
        } else if record.level().is_at_least(slog::Level::Info) {
            debug!("raft: {}", record.msg());
        }
        Ok(())
    }
}
