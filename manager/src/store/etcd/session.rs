//! A session with etcd: as long as the lease lasts. Who leads does so within one session and never beyond it.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use rcluster_base::scope::Scope;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::client::{CallError, Campaigned, Entry, Etcd, Loaded};
use super::keys::{self, LeaderRecord, Live, PART_BYTES, SnapshotRecord};
use super::lease::Lease;
use super::node::{End, Node};
use super::watch::{self, Change, Seen};
use super::{EtcdTiming, Fatal, Input, Proposal};
use crate::core::state::{Conflict, State, Transaction};
use crate::store::{ProposeError, RoleKind};

/// Transactions written at once. etcd takes 128 operations in one unless it is told otherwise (`--max-txn-ops`).
const BATCH_MAX: usize = 64;
/// Changes that wait to be looked at; more wait in etcd.
const CHANGES_MAX: usize = 256;
/// How often it is looked whether something is due that no event tells of.
const LOOK: Duration = Duration::from_millis(200);

/// What a session begins with.
pub struct Begun {
    pub lease: Lease,
    /// etcd's revision at which this manager said that it runs, and the tables' then.
    pub at: i64,
    pub head: u64,
    pub loaded: Option<Loaded>,
}

/// Gets a lease, says that manager `id` runs as `run`, and reads the tables of `stale` when they are to be read anew.
pub async fn begin(etcd: Etcd, timing: EtcdTiming, (id, run): (u64, u64), stale: Option<String>) -> Result<Begun, CallError> {
    etcd.probe().await?;
    let mut lease = Lease::grant(&etcd, timing).await?;
    let lease_id = lease.id;
    let begin = async {
        let (at, head) = etcd.say_alive(id, run, lease_id).await?;
        let loaded = match &stale {
            Some(cluster_id) => Some(etcd.load(cluster_id).await?),
            None => None,
        };
        Ok::<_, CallError>((at, head, loaded))
    };
    // It may take as long as it needs, over a slow link; without the lease it is of no use.
    let (at, head, loaded) = tokio::select! {
        begun = begin => begun?,
        () = lease.ended() => return Err(lease.lost()),
    };
    Ok(Begun { lease, at, head, loaded })
}

/// Something under way, or nothing: then it never ends.
struct Slot<T>(Option<BoxFuture<'static, T>>);

impl<T> Slot<T> {
    fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    fn start(&mut self, work: impl Future<Output = T> + Send + 'static) {
        self.0 = Some(Box::pin(work));
    }
}

impl<T> Future for Slot<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(work) = &mut self.0 else { return Poll::Pending };
        let done = work.as_mut().poll(context);
        if done.is_ready() {
            self.0 = None;
        }
        done
    }
}

type Reply = oneshot::Sender<Result<u64, ProposeError>>;
/// A transaction from its pieces, and its bytes.
type Gathered = Result<(Transaction, usize), CallError>;

/// What is being written, and who is told.
struct Batch {
    /// The tables with it.
    state: State,
    bytes: usize,
    /// Of each, its revision and its bytes.
    made: Vec<(u64, usize, Reply)>,
    refused: Vec<(Conflict, Reply)>,
}

/// Leadership, or what may become it.
struct Leading {
    /// etcd's revision at which the leader's key was made.
    fence: i64,
    /// What must be in the tables first.
    head: u64,
    is_ready: bool,
}

/// One session.
pub struct Session<'a> {
    node: &'a mut Node,
    lease: Lease,
    began_at: i64,
    changes: mpsc::Receiver<Seen>,
    _watch: Scope,
    leading: Option<Leading>,
    queue: VecDeque<Proposal>,
    batch: Option<Batch>,
    asking: Vec<oneshot::Sender<()>>,
    /// Reads that wait for a revision.
    waiting: Vec<(u64, Vec<oneshot::Sender<()>>)>,
    commit: Slot<Result<(), CallError>>,
    campaign: Slot<Result<Campaigned, CallError>>,
    read: Slot<Result<u64, CallError>>,
    snapshot: Slot<Result<u64, CallError>>,
    resign: Slot<Result<(), CallError>>,
    /// The pieces of an entry; what came after it waits in `changes`.
    reading: Slot<(u64, Gathered)>,
}

enum Happened {
    LeaseEnded,
    Input(Option<Input>),
    Seen(Option<Seen>),
    Committed(Result<(), CallError>),
    Campaigned(Result<Campaigned, CallError>),
    Read(Result<u64, CallError>),
    Snapshot(Result<u64, CallError>),
    Resigned(Result<(), CallError>),
    Gathered(u64, Gathered),
    Nothing,
}

impl From<CallError> for End {
    fn from(error: CallError) -> Self {
        Self::Lost(error)
    }
}

impl From<Fatal> for End {
    fn from(fatal: Fatal) -> Self {
        Self::Fatal(fatal)
    }
}

impl<'a> Session<'a> {
    /// A session that goes on from what the node knows; it said that it runs at etcd's revision `began_at`.
    pub fn new(node: &'a mut Node, lease: Lease, began_at: i64) -> Self {
        let (sender, changes) = mpsc::channel(CHANGES_MAX);
        let mut watch = Scope::new();
        watch.spawn(watch::follow(node.etcd.clone(), node.at, node.publisher.revisions(), sender));
        Self {
            node,
            lease,
            began_at,
            changes,
            _watch: watch,
            leading: None,
            queue: VecDeque::new(),
            batch: None,
            asking: Vec::new(),
            waiting: Vec::new(),
            commit: Slot(None),
            campaign: Slot(None),
            read: Slot(None),
            snapshot: Slot(None),
            resign: Slot(None),
            reading: Slot(None),
        }
    }

    /// Runs until something ends it. Proposals that are under way then are answered by their senders' end: nobody knows. Those that still
    /// wait were never sent.
    pub async fn run(mut self) -> End {
        let end = self.events().await;
        let refused = self.batch.take().into_iter().flat_map(|batch| batch.refused).map(|(_, reply)| reply);
        for reply in self.queue.drain(..).map(|proposal| proposal.reply).chain(refused) {
            // One that has given up does not need its answer.
            drop(reply.send(Err(ProposeError::NotLeader { leader: None })));
        }
        end
    }

    async fn events(&mut self) -> End {
        loop {
            self.begin_work();
            self.publish();
            let happened = self.next().await;
            // Whatever else has happened: nobody leads on a lease that may be gone.
            let happened = if self.lease.until() <= Instant::now() { Happened::LeaseEnded } else { happened };
            if let Err(end) = self.handle(happened) {
                return end;
            }
        }
    }

    async fn next(&mut self) -> Happened {
        tokio::select! {
            () = self.lease.ended() => Happened::LeaseEnded,
            input = self.node.inputs.recv() => Happened::Input(input),
            seen = self.changes.recv(), if self.reading.is_empty() => Happened::Seen(seen),
            done = &mut self.commit => Happened::Committed(done),
            done = &mut self.campaign => Happened::Campaigned(done),
            done = &mut self.read => Happened::Read(done),
            done = &mut self.snapshot => Happened::Snapshot(done),
            done = &mut self.resign => Happened::Resigned(done),
            (revision, done) = &mut self.reading => Happened::Gathered(revision, done),
            () = sleep_until(Instant::now() + LOOK) => Happened::Nothing,
        }
    }

    fn handle(&mut self, happened: Happened) -> Result<(), End> {
        match happened {
            Happened::LeaseEnded => return Err(self.lease.lost().into()),
            Happened::Input(None) => return Err(End::Shutdown(None)),
            Happened::Input(Some(input)) => self.take(input)?,
            Happened::Seen(None | Some(Seen::Compacted)) => return Err(CallError::Compacted.into()),
            Happened::Seen(Some(Seen::WentBack { found })) => {
                return Err(Fatal::WentBack { found, seen: self.node.state.revision() }.into());
            }
            Happened::Seen(Some(Seen::Change(change))) => self.observe(change)?,
            Happened::Committed(done) => self.committed(done)?,
            Happened::Campaigned(done) => self.campaigned(done?)?,
            Happened::Read(done) => {
                let asked = std::mem::take(&mut self.asking);
                self.waiting.push((done?, asked));
            }
            Happened::Snapshot(done) => {
                let revision = done?;
                info!(revision, "snapshot kept in etcd");
                (self.node.snapshot, self.node.log_bytes) = (revision, 0);
            }
            Happened::Resigned(done) => {
                done?;
                return Err(CallError::Deposed.into());
            }
            Happened::Gathered(revision, done) => self.gathered(revision, done)?,
            Happened::Nothing => {}
        }
        self.go_on();
        Ok(())
    }

    fn is_leader(&self) -> bool {
        self.leading.as_ref().is_some_and(|leading| leading.is_ready)
    }

    /// What follows from the tables having gone on.
    fn go_on(&mut self) {
        let revision = self.node.state.revision();
        if let Some(leading) = &mut self.leading {
            leading.is_ready |= revision >= leading.head;
        }
        let (answered, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|(head, _)| *head <= revision);
        self.waiting = waiting;
        for reply in Vec::into_iter(answered).flat_map(|(_, replies): (u64, Vec<oneshot::Sender<()>>)| replies) {
            // One that has given up does not need its answer.
            let _unread = reply.send(());
        }
    }

    fn publish(&self) {
        let kind = match &self.leading {
            Some(leading) if leading.is_ready => RoleKind::Leader,
            Some(_) => RoleKind::Candidate,
            None if !self.campaign.is_empty() => RoleKind::Candidate,
            None => RoleKind::Follower,
        };
        self.node.publish(kind);
    }

    fn take(&mut self, input: Input) -> Result<(), End> {
        match input {
            Input::Propose(proposal) if self.is_leader() && self.resign.is_empty() => self.queue.push_back(proposal),
            // One that has given up does not need its answer.
            Input::Propose(proposal) => drop(proposal.reply.send(Err(self.node.not_leader()))),
            Input::Read { reply } => self.node.reads.push(reply),
            Input::Resign => {
                if let Some(leading) = &self.leading {
                    self.node.stands_from = Instant::now() + self.node.timing.pause;
                    let (etcd, fence) = (self.node.etcd.clone(), leading.fence);
                    self.resign.start(async move { etcd.resign(fence).await });
                }
            }
            Input::Shutdown { done } => return Err(End::Shutdown(Some(done))),
        }
        Ok(())
    }

    /// Begins what can begin.
    fn begin_work(&mut self) {
        let etcd = &self.node.etcd;
        let has_stood = self.leading.is_some() || !self.campaign.is_empty();
        if !has_stood && self.node.leader.is_none() && Instant::now() >= self.node.stands_from {
            let (etcd, id, run, lease) = (etcd.clone(), self.node.config.id, self.node.run, self.lease.id);
            self.campaign.start(async move { etcd.campaign(id, run, lease).await });
        }
        self.node.reads.retain(|read| !read.is_closed());
        if self.read.is_empty() && !self.node.reads.is_empty() {
            self.asking = std::mem::take(&mut self.node.reads);
            let etcd = self.node.etcd.clone();
            self.read.start(async move { Ok(etcd.head().await?.1) });
        }
        let Some(fence) = self.leading.as_ref().filter(|leading| leading.is_ready).map(|leading| leading.fence) else { return };
        if self.commit.is_empty() && !self.queue.is_empty() {
            self.begin_commit(fence);
        }
        let config = &self.node.config;
        let entries = self.node.state.revision().saturating_sub(self.node.snapshot);
        let is_due = entries >= config.snapshot_entries || self.node.log_bytes as u64 >= config.snapshot_bytes;
        if is_due && entries > 0 && self.snapshot.is_empty() {
            let (etcd, state) = (self.node.etcd.clone(), self.node.state.clone());
            self.snapshot.start(async move { etcd.replace_snapshot(fence, state).await });
        }
    }

    /// Writes as many of the transactions that wait as one transaction of etcd takes.
    fn begin_commit(&mut self, fence: i64) {
        let previous = self.node.state.revision();
        let mut batch = Batch { state: self.node.state.clone(), bytes: 0, made: Vec::new(), refused: Vec::new() };
        let mut entries = Vec::new();
        while let Some(proposal) =
            self.queue.pop_front_if(|next| entries.is_empty() || (entries.len() < BATCH_MAX && batch.bytes + next.bytes <= PART_BYTES))
        {
            let Proposal { transaction, entry, bytes, reply, permit } = proposal;
            // Room for others once it is on its way.
            drop(permit);
            let revision = batch.state.revision() + 1;
            match batch.state.apply(revision, &transaction) {
                Ok(()) => {
                    entries.push(Entry { revision, transaction: entry });
                    batch.made.push((revision, bytes, reply));
                    batch.bytes += bytes;
                }
                // It is told once etcd has said that this manager still leads: another's tables might be further.
                Err(conflict) => batch.refused.push((conflict, reply)),
            }
        }
        self.batch = Some(batch);
        let etcd = self.node.etcd.clone();
        self.commit.start(async move { etcd.commit(fence, previous, entries).await });
    }

    fn committed(&mut self, done: Result<(), CallError>) -> Result<(), End> {
        // Who waits for a commit that failed is answered when the session ends.
        done?;
        let Some(Batch { state, bytes: _, made, refused }) = self.batch.take() else { return Ok(()) };
        let known = self.node.state.revision();
        if state.revision() > known {
            // The watch may have told of some of them already.
            self.node.log_bytes += made.iter().filter(|(revision, ..)| *revision > known).map(|(_, bytes, _)| bytes).sum::<usize>();
            self.node.state = state;
            self.applied()?;
        }
        for (revision, _, reply) in made {
            self.node.config.meter.applied(true);
            drop(reply.send(Ok(revision)));
        }
        for (conflict, reply) in refused {
            self.node.config.meter.applied(false);
            drop(reply.send(Err(ProposeError::Conflict(conflict))));
        }
        Ok(())
    }

    fn applied(&self) -> Result<(), Fatal> {
        self.node.publisher.publish_state(&self.node.state);
        self.node.check_membership()
    }

    fn campaigned(&mut self, campaigned: Campaigned) -> Result<(), Fatal> {
        match campaigned {
            Campaigned::Won { head, .. } if head < self.node.state.revision() => {
                return Err(Fatal::WentBack { found: head, seen: self.node.state.revision() });
            }
            Campaigned::Won { fence, term, head } => {
                let record = LeaderRecord { id: self.node.config.id, run: self.node.run, term };
                self.node.learn_leader(Some(record), fence);
                self.leading = Some(Leading { fence, head, is_ready: false });
            }
            Campaigned::Lost { leader, at } => self.node.learn_leader(leader, at),
        }
        Ok(())
    }

    /// Something has changed in etcd.
    fn observe(&mut self, change: Change) -> Result<(), End> {
        let Change { key, value, created, at } = change;
        self.node.at = self.node.at.max(at);
        match self.node.etcd.keys.read(&key) {
            Some(Live::Format) => self.observe_format(value.as_deref())?,
            Some(Live::Leader) => self.observe_leader(value.as_deref(), created, at)?,
            Some(Live::Entry(revision)) => {
                if let Some(value) = value {
                    self.observe_entry(revision, &value)?;
                }
            }
            Some(Live::Snapshot) => {
                let text = String::from_utf8_lossy(&key);
                if let Some(value) = value {
                    let record: SnapshotRecord = keys::json(&text, &value).map_err(CallError::from)?;
                    if record.revision > self.node.snapshot {
                        (self.node.snapshot, self.node.log_bytes) = (record.revision, 0);
                    }
                }
            }
            Some(Live::Alive(id)) => {
                let run = value.map(|value| keys::number(&String::from_utf8_lossy(&key), &value)).transpose().map_err(CallError::from)?;
                self.observe_alive(id, run, at)?;
            }
            None => {}
        }
        Ok(())
    }

    fn observe_format(&self, value: Option<&[u8]>) -> Result<(), CallError> {
        let key = self.node.etcd.keys.format();
        match value {
            Some(value) => Ok(keys::check_format(&key, value)?),
            None => Err(keys::Unreadable::Missing { key }.into()),
        }
    }

    fn observe_leader(&mut self, value: Option<&[u8]>, created: i64, at: i64) -> Result<(), End> {
        let leader: Option<LeaderRecord> =
            value.map(|value| keys::json(&self.node.etcd.keys.leader(), value)).transpose().map_err(CallError::from)?;
        let fence = self.leading.as_ref().map(|leading| leading.fence);
        if fence.is_some_and(|fence| at > fence && (leader.is_none() || created != fence)) {
            warn!("this manager leads no more: its key is gone");
            return Err(CallError::Deposed.into());
        }
        self.node.learn_leader(leader, at);
        Ok(())
    }

    fn observe_entry(&mut self, revision: u64, value: &[u8]) -> Result<(), End> {
        let next = self.node.state.revision() + 1;
        if revision < next {
            return Ok(());
        }
        if revision > next {
            // Not by what etcd promises; the tables say how it was.
            warn!(revision, next, "an entry is missing: reading the tables anew");
            return Err(CallError::Compacted.into());
        }
        let key = self.node.etcd.keys.entry(revision);
        let entry = keys::open(&key, value).map_err(CallError::from)?;
        if entry.parts == 0 {
            let read = keys::transaction(&key, entry, &[]).map_err(CallError::from);
            return self.gathered(revision, read.map(|transaction| (transaction, value.len())));
        }
        // Not waited for here: the lease, and who asks to stop, are heard meanwhile. The next session is told of this entry again.
        let etcd = self.node.etcd.clone();
        self.reading.start(async move { (revision, etcd.gather(revision, entry, 0).await) });
        Ok(())
    }

    /// An entry is there with all its pieces.
    fn gathered(&mut self, revision: u64, read: Gathered) -> Result<(), End> {
        // etcd's answer to this manager's own commit was first.
        if revision <= self.node.state.revision() {
            return Ok(());
        }
        let (transaction, bytes) = match read {
            // Its parts went with a newer snapshot.
            Err(CallError::Unreadable(keys::Unreadable::Checksum { .. })) => return Err(CallError::Compacted.into()),
            other => other?,
        };
        let key = || self.node.etcd.keys.entry(revision);
        let mut state = self.node.state.clone();
        state
            .apply(revision, &transaction)
            .map_err(|conflict| CallError::from(keys::Unreadable::Conflict { key: key(), why: conflict.to_string() }))?;
        self.node.state = state;
        self.node.config.meter.applied(true);
        self.node.log_bytes += bytes;
        Ok(self.applied()?)
    }

    fn observe_alive(&mut self, id: u64, run: Option<u64>, at: i64) -> Result<(), End> {
        if id == self.node.config.id && at > self.began_at && run.is_some_and(|run| run != self.node.run) {
            return Err(Fatal::Twice.into());
        }
        match run {
            Some(run) => drop(self.node.alive.insert(id, run)),
            None => drop(self.node.alive.remove(&id)),
        }
        Ok(())
    }
}
