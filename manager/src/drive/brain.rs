//! The leader's loop: gathers what came in, plans once over all of it, proposes one transaction, and again.
//!
//! ```text
//!   users ─ Control ─┐
//!   agents ─ Register, Heard, Reports ─┤→ inbox → drain → draft ← reports, registrations, liveness, requests
//!   store ─ revision ─┤                            │
//!   wake_at ──────────┘                            └→ core::plan → propose → answer
//! ```
//!
//! While a proposal is in flight, events wait in the inbox. On a conflict the plan is dropped and made again from the state as it is.
//! Nothing that a plan needs is kept here: only what came in and has not been committed yet, and when nodes were last heard.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::id::{NodeId, TaskId};
use rcluster_api::object::{Kind, Node, NodeState, Object, TaskStatus};
use rcluster_base::clock::unix_ms;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Duration, sleep_until};
use tracing::{debug, error, info, warn};

use crate::core::control::{self, Answer, Request};
use crate::core::node::liveness::{Liveness, Timing};
use crate::core::node::register::{Registration, register};
use crate::core::node::report;
use crate::core::plan::{BYTES_PER_PART_MAX, ChangeSet, Ctx, Dirty, Note, OBJECTS_PER_PART_MAX, plan, stage};
use crate::core::state::{Draft, State, Transaction, weight};
use crate::store::{ProposeError, Store};

/// Most events that are taken into one plan.
const BATCH_MAX: usize = 1024;

/// A user's request, carried out: the revision and what to answer.
pub type Outcome = Result<(u64, Answer), ApiError>;

/// Where an answer goes.
type Reply<T> = oneshot::Sender<Result<T, ApiError>>;

/// What the brain is told.
#[derive(Debug)]
pub enum Event {
    /// A user asks for something.
    Control { request: Request, reply: oneshot::Sender<Outcome> },
    /// An agent asks to take part, with what it knows of its tasks.
    Register { registration: Box<Registration>, reports: Vec<(TaskId, TaskStatus)>, reply: Reply<()> },
    /// An agent was heard.
    Heard { node: NodeId, at: Instant },
    /// An agent tells of its tasks.
    Reports { node: NodeId, reports: Vec<(TaskId, TaskStatus)> },
}

/// What came in and is not committed yet.
#[derive(Debug, Default)]
struct Pending {
    controls: Vec<(Request, oneshot::Sender<Outcome>)>,
    registrations: Vec<(Box<Registration>, Instant, Reply<()>)>,
    reports: BTreeMap<(NodeId, TaskId), TaskStatus>,
}

/// The answers that wait for the commit.
#[derive(Debug, Default)]
struct Replies {
    controls: Vec<(Answer, oneshot::Sender<Outcome>)>,
    registrations: Vec<Reply<()>>,
}

/// The loop's own state.
#[derive(Debug)]
pub struct Brain {
    store: Store,
    inbox: mpsc::Receiver<Event>,
    revisions: watch::Receiver<u64>,
    /// Origin of the monotonic milliseconds that liveness counts in.
    started: Instant,
    liveness: Liveness,
    pending: Pending,
    dirty: Dirty,
    seen: State,
    /// When nodes are to be judged again, or what is pending goes on.
    wake_at: tokio::time::Instant,
    /// When a wait that a plan met with is over; everything is dirty then.
    plan_at: Option<tokio::time::Instant>,
    /// The time of the last plan: the wall clock of this manager or an earlier leader's may step back, time here does not.
    now_ms: u64,
    announcement: Option<Note>,
    /// How many of the pending reports the plan at hand has taken in.
    reports_staged: usize,
}

impl Brain {
    /// A brain for the term `number`; everything is dirty.
    pub fn new(store: Store, number: u64, timing: Timing, inbox: mpsc::Receiver<Event>) -> Self {
        let started = Instant::now();
        let awaited_until_ms = store.state().cluster().map_or(0, |cluster| cluster.nodes_awaited_until_ms);
        let leader = store.status().answered_by;
        let announcement = Note {
            kind: Kind::Event,
            object_id: String::new(),
            object: leader,
            reason: "LeaderElected",
            message: format!("leads in term {number}"),
        };
        Self {
            revisions: store.revisions(),
            now_ms: latest_ms(&store.state()),
            seen: store.state(),
            store,
            inbox,
            started,
            liveness: Liveness::new(timing.awaiting(awaited_until_ms, unix_ms()), 0),
            pending: Pending::default(),
            dirty: Dirty::everything(),
            wake_at: tokio::time::Instant::now(),
            plan_at: None,
            announcement: Some(announcement),
            reports_staged: 0,
        }
    }

    /// Runs until the term is over.
    pub async fn run(mut self) {
        while self.turn().await {
            self.wait().await;
        }
    }

    /// Waits for something to do, then takes in all that is there.
    async fn wait(&mut self) {
        let wake_at = self.plan_at.map_or(self.wake_at, |plan_at| plan_at.min(self.wake_at));
        tokio::select! {
            event = self.inbox.recv() => {
                if let Some(event) = event {
                    self.take(event);
                }
            }
            changed = self.revisions.changed() => {
                if changed.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            () = sleep_until(wake_at) => {}
        }
        for _ in 0..BATCH_MAX {
            let Ok(event) = self.inbox.try_recv() else { break };
            self.take(event);
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Control { request, reply } => self.pending.controls.push((request, reply)),
            Event::Register { registration, reports, reply } => {
                self.take_reports(&registration.id, reports);
                self.pending.registrations.push((registration, Instant::now(), reply));
            }
            Event::Heard { node, at } => self.liveness.heard(&node, self.monotonic_ms(at)),
            Event::Reports { node, reports } => self.take_reports(&node, reports),
        }
    }

    fn take_reports(&mut self, node: &NodeId, reports: Vec<(TaskId, TaskStatus)>) {
        for (task, status) in reports {
            self.pending.reports.insert((node.clone(), task), status);
        }
    }

    fn monotonic_ms(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// Plans and proposes once; false when the term is over.
    async fn turn(&mut self) -> bool {
        let state = self.store.state();
        self.dirty.add_difference(&self.seen, &state);
        self.seen = state.clone();
        self.now_ms = unix_ms().max(self.now_ms + 1);
        if self.plan_at.is_some_and(|plan_at| plan_at <= tokio::time::Instant::now()) {
            self.plan_at = None;
            self.dirty = Dirty::everything();
        }
        let mut ctx = Ctx::new(self.now_ms, rand::random());
        let mut draft = Draft::new(state, ctx.now_ms);
        let replies = self.stage_pending(&mut draft, &mut ctx);
        self.dirty.add_difference(&self.seen, draft.state());
        let planned = tokio::task::block_in_place(|| plan(draft, &self.dirty, &mut ctx));
        let plan_wake = planned.wake_at_ms.map(|at| tokio::time::Instant::now() + Duration::from_millis(at.saturating_sub(ctx.now_ms)));
        self.plan_at = [self.plan_at, plan_wake].into_iter().flatten().min();
        if planned.goes_on {
            self.wake_at = tokio::time::Instant::now();
        }
        if planned.transaction.changes.is_empty() {
            self.dirty = planned.left;
            self.answer(replies, self.seen.revision());
            return true;
        }
        self.propose(planned.transaction, planned.left, replies).await
    }

    /// Puts on the draft all that came in; refusals are answered at once.
    fn stage_pending(&mut self, draft: &mut Draft, ctx: &mut Ctx) -> Replies {
        let mut replies = Replies::default();
        if let Some(note) = self.announcement.take() {
            let mut event = ctx.event(note);
            "manager".clone_into(&mut event.kind);
            draft.put(Object::Event(event));
        }
        for (registration, at, reply) in std::mem::take(&mut self.pending.registrations) {
            match register(draft.state(), &registration, ctx.now_ms) {
                Ok(changes) => {
                    // One that is refused is not heard: it takes no part.
                    self.liveness.heard(&registration.id, self.monotonic_ms(at));
                    stage(draft, changes, ctx);
                    replies.registrations.push(reply);
                }
                Err(refusal) => {
                    warn!(node = %registration.id, %refusal, "refused an agent");
                    drop(reply.send(Err(refusal)));
                }
            }
        }
        self.stage_judgements(draft, ctx);
        self.stage_reports(draft, ctx);
        self.stage_requests(draft, ctx, &mut replies);
        replies
    }

    /// As many requests as one transaction takes, up to one that sets what another has set: two contents of one version could not be told
    /// apart by who expects it. The others are next.
    fn stage_requests(&mut self, draft: &mut Draft, ctx: &mut Ctx, replies: &mut Replies) {
        let mut bytes = 0;
        let mut set = BTreeSet::new();
        let mut requests = std::mem::take(&mut self.pending.controls).into_iter();
        for (request, reply) in requests.by_ref() {
            let sets = request.sets(draft.state());
            if sets.iter().any(|object| set.contains(object)) {
                self.pending.controls.push((request, reply));
                break;
            }
            set.extend(sets);
            match control::decide(draft.state(), request, ctx) {
                Ok((changes, answer)) => {
                    bytes += changes.puts.iter().map(weight).sum::<usize>();
                    stage(draft, changes, ctx);
                    replies.controls.push((answer, reply));
                }
                Err(refusal) => drop(reply.send(Err(refusal))),
            }
            if bytes >= BYTES_PER_PART_MAX {
                break;
            }
        }
        self.pending.controls.extend(requests);
        if !self.pending.controls.is_empty() {
            self.wake_at = tokio::time::Instant::now();
        }
    }

    fn stage_judgements(&mut self, draft: &mut Draft, ctx: &mut Ctx) {
        let now_ms = self.monotonic_ms(Instant::now());
        let (judgements, ask_again_ms) = self.liveness.judge(draft.state(), now_ms);
        self.wake_at = tokio::time::Instant::now() + Duration::from_millis(ask_again_ms.saturating_sub(now_ms));
        for judgement in judgements {
            let Some(node) = draft.state().nodes().get(&judgement.node) else { continue };
            info!(node = node.name(), from = node.state.as_str(), to = judgement.state.as_str(), why = judgement.message, "node");
            let reason = match judgement.state {
                NodeState::Ready => "Ready",
                NodeState::Suspect => "Suspect",
                NodeState::Down => "Down",
            };
            let judged = Node { state: judgement.state, message: judgement.message.clone(), since_ms: ctx.now_ms, ..(**node).clone() };
            let note = Note {
                kind: Kind::Node,
                object_id: node.id.to_string(),
                object: node.name().to_owned(),
                reason,
                message: judgement.message,
            };
            stage(draft, ChangeSet { puts: vec![Object::Node(judged)], notes: vec![note], ..ChangeSet::default() }, ctx);
        }
    }

    /// Reports stay pending until they are committed: a conflict must not lose them.
    fn stage_reports(&mut self, draft: &mut Draft, ctx: &mut Ctx) {
        let (mut staged, mut bytes) = (0, 0);
        self.pending.reports.retain(|(node, task), status| {
            if staged >= OBJECTS_PER_PART_MAX || bytes >= BYTES_PER_PART_MAX {
                return true;
            }
            let Some(before) = draft.state().tasks().get(task).cloned() else { return false };
            let Some(after) = report::merge(&before, node, status) else { return false };
            debug!(task = %task, name = after.name, from = %before.status.state, to = %after.status.state, "step");
            let notes = report::note(&before, &after).into_iter().collect();
            let after = Object::Task(Box::new(after));
            bytes += weight(&after);
            stage(draft, ChangeSet { puts: vec![after], notes, ..ChangeSet::default() }, ctx);
            staged += 1;
            true
        });
        self.reports_staged = staged;
        if self.pending.reports.len() > staged {
            self.wake_at = tokio::time::Instant::now();
        }
    }

    async fn propose(&mut self, transaction: Transaction, left: Dirty, replies: Replies) -> bool {
        let changes = transaction.changes.len();
        match self.store.propose(transaction).await {
            Ok(revision) => {
                debug!(revision, changes, "committed");
                self.forget_staged_reports();
                self.dirty = left;
                self.answer(replies, revision);
                true
            }
            Err(ProposeError::Conflict(conflict)) => {
                // Only this loop writes, so a conflict means that an earlier leader's entry came in between: plan again.
                warn!(%conflict, "planning again");
                self.refuse(replies, &ApiError::new(ErrorCode::Conflict, conflict.to_string()).hint("try again"));
                self.dirty = Dirty::everything();
                true
            }
            Err(ProposeError::TooLarge { bytes, limit }) => {
                error!(bytes, limit, "transaction too large");
                let refusal =
                    ApiError::new(ErrorCode::TooLarge, format!("the change needs {bytes} bytes in the log, the limit is {limit}"))
                        .hint("deploy or scale in smaller steps");
                // All parts of a plan but a single request are bounded: without it the next plan fits. Nothing else is lost.
                self.refuse(replies, &refusal);
                self.dirty = Dirty::everything();
                true
            }
            Err(
                lost @ (ProposeError::NotLeader { .. } | ProposeError::Unavailable | ProposeError::ShuttingDown | ProposeError::NoVoters),
            ) => {
                self.refuse(replies, &ApiError::new(ErrorCode::Unavailable, lost.to_string()).hint("look at the state, then try again"));
                false
            }
        }
    }

    /// Drops the reports that the last plan took in: they stand first.
    fn forget_staged_reports(&mut self) {
        for _ in 0..std::mem::take(&mut self.reports_staged) {
            self.pending.reports.pop_first();
        }
    }

    fn answer(&self, replies: Replies, revision: u64) {
        for (answer, reply) in replies.controls {
            // A client that has gone does not need the answer.
            drop(reply.send(Ok(answer.at(revision))));
        }
        for reply in replies.registrations {
            drop(reply.send(Ok(())));
        }
    }

    fn refuse(&self, replies: Replies, refusal: &ApiError) {
        for (_, reply) in replies.controls {
            drop(reply.send(Err(refusal.clone())));
        }
        for reply in replies.registrations {
            drop(reply.send(Err(refusal.clone())));
        }
    }
}

/// The latest time that stands in a state.
fn latest_ms(state: &State) -> u64 {
    let stamps = state.services().values().map(|object| object.stamp);
    let stamps = stamps.chain(state.tasks().values().map(|object| object.stamp)).chain(state.nodes().values().map(|object| object.stamp));
    let stamps =
        stamps.chain(state.networks().values().map(|object| object.stamp)).chain(state.events().values().map(|object| object.stamp));
    let stamps = stamps.chain(state.data().values().map(|object| object.stamp)).chain(state.cluster().map(|object| object.stamp));
    stamps.map(|stamp| stamp.updated_at_ms).max().unwrap_or_default()
}
