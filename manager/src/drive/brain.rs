//! The leader's decisions over time: gathers what came in, plans once over all of it, asks for one transaction to be proposed, and again.
//!
//! ```text
//!   users ─ Control ────────────────────────────┐
//!   agents ─ Register, Heard, Network, Reports ─┤→ take → pending → turn: draft ← registrations, liveness, networks, reports, requests
//!   wake_at ────────────────────────────────────┘                     │
//!                                                                     └→ core::plan → Effect::Propose
//!   the store ─ proposed → Effect::Answer, Effect::Registered
//! ```
//!
//! No clock, no channel and no chance of its own: the time, the tables and a seed are given to it, by `drive::shell` in a manager and by
//! the simulation in `sim`. While a proposal is in flight, what comes in waits. On a conflict the plan is dropped and made again from the
//! state as it is. Nothing that a plan needs is kept here: only what came in and has not been committed yet, and when nodes were last
//! heard.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::id::{NodeId, TaskId};
use rcluster_api::network::NodeNetwork;
use rcluster_api::object::{Kind, Node, NodeState, Object, TaskStatus};
use tracing::{debug, error, info, warn};

use crate::core::control::{self, Answer, Request};
use crate::core::node::liveness::{Liveness, Timing};
use crate::core::node::register::{self, Registration, register};
use crate::core::node::report;
use crate::core::plan::{BYTES_PER_PART_MAX, ChangeSet, Ctx, Dirty, Note, OBJECTS_PER_PART_MAX, plan, stage};
use crate::core::state::{Draft, State, Transaction, weight};
use crate::store::ProposeError;

/// How soon a proposal that found leadership being handed over is made again: the hand-over may come to nothing.
const HANDING_OVER: Duration = Duration::from_millis(50);

/// A user's request, carried out: the revision and what to answer.
pub type Outcome = Result<(u64, Answer), ApiError>;

/// What an answer rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// The tables as they are: those of a leader that was replaced unheard may be old.
    Tables,
    /// What has become of a proposal.
    Proposal,
}

/// The time as a brain is told it.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Since a fixed point; never goes back.
    pub monotonic: Duration,
    /// Unix time in milliseconds; may jump.
    pub unix_ms: u64,
}

/// What the brain is told. `U` and `A` stand for whoever waits for the answer, a user and an agent.
#[derive(Debug)]
pub enum Event<U, A> {
    /// A user asks for something.
    Control { request: Request, from: U },
    /// An agent asks to take part, with what it knows of its tasks.
    Register { registration: Box<Registration>, reports: Vec<(TaskId, TaskStatus)>, from: A },
    /// An agent was heard, at this monotonic time.
    Heard { node: NodeId, at: Duration },
    /// An agent tells of its tasks.
    Reports { node: NodeId, reports: Vec<(TaskId, TaskStatus)> },
    /// An agent tells that its host's network is another than it was.
    Network { node: NodeId, network: NodeNetwork },
}

/// What is to be done for the brain.
#[derive(Debug)]
pub enum Effect<U, A> {
    /// [`Brain::proposed`] is to be called with what comes of it; nothing is planned before.
    Propose(Transaction),
    Answer(U, Outcome, Ground),
    Registered(A, Result<(), ApiError>),
}

/// The last word on each task, by who has said it.
type Reports = BTreeMap<(NodeId, TaskId), TaskStatus>;

/// The last word on each node's network.
type HostNetworks = BTreeMap<NodeId, NodeNetwork>;

/// What came in and has not been proposed yet.
#[derive(Debug)]
struct Pending<U, A> {
    controls: Vec<(Request, U)>,
    registrations: Vec<(Box<Registration>, Duration, A)>,
    reports: Reports,
    networks: HostNetworks,
}

/// What waits for the commit: answers, and what agents have told that is lost if it does not come about.
#[derive(Debug)]
struct Replies<U, A> {
    controls: Vec<(Answer, U)>,
    registrations: Vec<A>,
    reports: Reports,
    networks: HostNetworks,
}

/// A transaction that was proposed: what is dirty still once it is committed, and what waits for it.
#[derive(Debug)]
struct InFlight<U, A> {
    left: Dirty,
    replies: Replies<U, A>,
}

/// One leader's memory, for one term.
#[derive(Debug)]
pub struct Brain<U, A> {
    liveness: Liveness,
    /// Time between two turns that is a pause of this manager: it was stopped, or waited for its disk or a quorum.
    late: Duration,
    turned_at: Duration,
    pending: Pending<U, A>,
    in_flight: Option<InFlight<U, A>>,
    dirty: Dirty,
    seen: State,
    /// When nodes are to be judged again, or what is pending goes on.
    wake_at: Duration,
    /// When a wait that a plan met with is over; everything is dirty then.
    plan_at: Option<Duration>,
    /// The time of the last plan: the wall clock of this manager or an earlier leader's may step back, time here does not.
    now_ms: u64,
    announcement: Option<Note>,
    is_over: bool,
}

impl<U, A> Brain<U, A> {
    /// A brain of the manager `leader` for the term `number`; everything is dirty.
    pub fn new(state: State, leader: String, number: u64, timing: Timing, now: Moment) -> Self {
        let awaited_until_ms = state.cluster().map_or(0, |cluster| cluster.nodes_awaited_until_ms);
        let announcement = Note {
            kind: Kind::Event,
            object_id: String::new(),
            object: leader,
            reason: "LeaderElected",
            message: format!("leads in term {number}"),
        };
        Self {
            liveness: Liveness::new(timing.awaiting(awaited_until_ms, now.unix_ms), ms(now.monotonic)),
            // It is woken at least once in the time of a heartbeat.
            late: Duration::from_millis(timing.heartbeat_ms + timing.heartbeat_ms / 2),
            turned_at: now.monotonic,
            pending: Pending { controls: Vec::new(), registrations: Vec::new(), reports: Reports::new(), networks: HostNetworks::new() },
            in_flight: None,
            dirty: Dirty::everything(),
            now_ms: latest_ms(&state),
            seen: state,
            wake_at: now.monotonic,
            plan_at: None,
            announcement: Some(announcement),
            is_over: false,
        }
    }

    /// Takes in what came; [`Brain::turn`] acts on it.
    pub fn take(&mut self, now: Moment, event: Event<U, A>) {
        match event {
            Event::Control { request, from } => self.pending.controls.push((request, from)),
            Event::Register { registration, reports, from } => {
                self.take_reports(&registration.id, reports);
                self.pending.registrations.push((registration, now.monotonic, from));
            }
            Event::Heard { node, at } => self.liveness.heard(&node, ms(at)),
            Event::Reports { node, reports } => self.take_reports(&node, reports),
            Event::Network { node, network } => drop(self.pending.networks.insert(node, network)),
        }
    }

    fn take_reports(&mut self, node: &NodeId, reports: Vec<(TaskId, TaskStatus)>) {
        for (task, status) in reports {
            self.pending.reports.insert((node.clone(), task), status);
        }
    }

    /// When there is something to do although nothing has come in; `None` while a proposal is in flight.
    pub fn wake_at(&self) -> Option<Duration> {
        let wake_at = self.plan_at.map_or(self.wake_at, |plan_at| plan_at.min(self.wake_at));
        self.in_flight.is_none().then_some(wake_at)
    }

    /// Drops requests of whom `waits` says no: they are not carried out.
    pub fn retain(&mut self, waits: impl Fn(&U) -> bool) {
        self.pending.controls.retain(|(_, from)| waits(from));
    }

    /// Whether the store has said that the term is over.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Plans once over the tables as they are and all that came in; nothing while a proposal is in flight.
    pub fn turn(&mut self, now: Moment, state: State, seed: u64) -> Vec<Effect<U, A>> {
        let mut effects = Vec::new();
        if self.in_flight.is_some() || self.is_over {
            return effects;
        }
        let pause = now.monotonic.saturating_sub(std::mem::replace(&mut self.turned_at, now.monotonic));
        if pause >= self.late {
            warn!(pause_ms = ms(pause), "this manager stood still; no node is judged by it");
            self.liveness.excuse(ms(pause), ms(now.monotonic));
            // Who has asked meanwhile was not answered, and is silent since.
            for (_, at, _) in &mut self.pending.registrations {
                *at = (*at + pause).min(now.monotonic);
            }
        }
        self.dirty.add_difference(&self.seen, &state);
        self.seen = state.clone();
        self.now_ms = now.unix_ms.max(self.now_ms + 1);
        if self.plan_at.is_some_and(|plan_at| plan_at <= now.monotonic) {
            self.plan_at = None;
            self.dirty = Dirty::everything();
        }
        let mut ctx = Ctx::new(self.now_ms, seed);
        let mut draft = Draft::new(state, ctx.now_ms);
        let replies = self.stage_pending(now, &mut draft, &mut ctx, &mut effects);
        self.dirty.add_difference(&self.seen, draft.state());
        let planned = plan(draft, &self.dirty, &mut ctx);
        let plan_wake = planned.wake_at_ms.map(|at| now.monotonic + Duration::from_millis(at.saturating_sub(ctx.now_ms)));
        self.plan_at = [self.plan_at, plan_wake].into_iter().flatten().min();
        if planned.goes_on {
            self.wake_at = now.monotonic;
        }
        if planned.transaction.changes.is_empty() {
            self.dirty = planned.left;
            answer(replies, self.seen.revision(), Ground::Tables, &mut effects);
        } else {
            self.in_flight = Some(InFlight { left: planned.left, replies });
            effects.push(Effect::Propose(planned.transaction));
        }
        effects
    }

    /// Puts on the draft all that came in; refusals are answered at once.
    fn stage_pending(&mut self, now: Moment, draft: &mut Draft, ctx: &mut Ctx, effects: &mut Vec<Effect<U, A>>) -> Replies<U, A> {
        let mut replies =
            Replies { controls: Vec::new(), registrations: Vec::new(), reports: Reports::new(), networks: HostNetworks::new() };
        if let Some(note) = self.announcement.take() {
            let mut event = ctx.event(note);
            "manager".clone_into(&mut event.kind);
            draft.put(Object::Event(event));
        }
        for (registration, at, from) in std::mem::take(&mut self.pending.registrations) {
            match register(draft.state(), &registration, ctx.now_ms) {
                Ok(changes) => {
                    // One that is refused is not heard: it takes no part.
                    self.liveness.heard(&registration.id, ms(at));
                    stage(draft, changes, ctx);
                    replies.registrations.push(from);
                }
                Err(refusal) => {
                    warn!(node = %registration.id, %refusal, "refused an agent");
                    effects.push(Effect::Registered(from, Err(refusal)));
                }
            }
        }
        self.stage_judgements(now, draft, ctx);
        replies.networks = self.stage_networks(now, draft, ctx);
        replies.reports = self.stage_reports(now, draft, ctx);
        self.stage_requests(now, draft, ctx, &mut replies, effects);
        replies
    }

    /// As many requests as one transaction takes, up to one that sets what another has set: two contents of one version could not be told
    /// apart by who expects it. The others are next.
    fn stage_requests(
        &mut self,
        now: Moment,
        draft: &mut Draft,
        ctx: &mut Ctx,
        replies: &mut Replies<U, A>,
        effects: &mut Vec<Effect<U, A>>,
    ) {
        let mut bytes = 0;
        let mut set = BTreeSet::new();
        let mut requests = std::mem::take(&mut self.pending.controls).into_iter();
        for (request, from) in requests.by_ref() {
            let sets = request.sets(draft.state());
            // One that may be too large for the log is proposed without others, who would be refused with it.
            let is_large = request.bytes() >= BYTES_PER_PART_MAX;
            if sets.iter().any(|object| set.contains(object)) || is_large && !replies.controls.is_empty() {
                self.pending.controls.push((request, from));
                break;
            }
            set.extend(sets);
            match control::decide(draft.state(), request, ctx) {
                Ok((changes, answer)) => {
                    bytes += changes.puts.iter().map(weight).sum::<usize>() + changes.answered.as_ref().map_or(0, |kept| kept.answer.len());
                    stage(draft, changes, ctx);
                    replies.controls.push((answer, from));
                }
                Err(refusal) => effects.push(Effect::Answer(from, Err(refusal), Ground::Tables)),
            }
            if is_large || bytes >= BYTES_PER_PART_MAX {
                break;
            }
        }
        self.pending.controls.extend(requests);
        if !self.pending.controls.is_empty() {
            self.wake_at = now.monotonic;
        }
    }

    fn stage_judgements(&mut self, now: Moment, draft: &mut Draft, ctx: &mut Ctx) {
        let now_ms = ms(now.monotonic);
        let (judgements, ask_again_ms) = self.liveness.judge(draft.state(), now_ms);
        self.wake_at = now.monotonic + Duration::from_millis(ask_again_ms.saturating_sub(now_ms));
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

    /// As many words of nodes' networks as one transaction takes; returns those that have gone into it. A conflict must not lose them.
    fn stage_networks(&mut self, now: Moment, draft: &mut Draft, ctx: &mut Ctx) -> HostNetworks {
        let (mut staged, mut bytes) = (HostNetworks::new(), 0);
        for (node, network) in std::mem::take(&mut self.pending.networks) {
            if staged.len() >= OBJECTS_PER_PART_MAX || bytes >= BYTES_PER_PART_MAX {
                self.pending.networks.insert(node, network);
                self.wake_at = now.monotonic;
                continue;
            }
            let changes = register::network(draft.state(), &node, &network);
            if changes.puts.is_empty() {
                continue;
            }
            bytes += changes.puts.iter().map(weight).sum::<usize>();
            stage(draft, changes, ctx);
            staged.insert(node, network);
        }
        staged
    }

    /// As many reports as one transaction takes; returns those that have gone into it. A conflict must not lose them.
    fn stage_reports(&mut self, now: Moment, draft: &mut Draft, ctx: &mut Ctx) -> Reports {
        let (mut staged, mut bytes) = (Reports::new(), 0);
        for (key, status) in std::mem::take(&mut self.pending.reports) {
            if staged.len() >= OBJECTS_PER_PART_MAX || bytes >= BYTES_PER_PART_MAX {
                self.pending.reports.insert(key, status);
                self.wake_at = now.monotonic;
                continue;
            }
            let (node, task) = &key;
            let Some(before) = draft.state().tasks().get(task).cloned() else { continue };
            let Some(after) = report::merge(&before, node, &status) else { continue };
            debug!(task = %task, name = after.name, from = %before.status.state, to = %after.status.state, "step");
            let notes = report::note(&before, &after).into_iter().collect();
            let after = Object::Task(Box::new(after));
            bytes += weight(&after);
            stage(draft, ChangeSet { puts: vec![after], notes, ..ChangeSet::default() }, ctx);
            staged.insert(key, status);
        }
        staged
    }

    /// What has become of the transaction that was proposed.
    pub fn proposed(&mut self, now: Moment, outcome: Result<u64, ProposeError>) -> Vec<Effect<U, A>> {
        let mut effects = Vec::new();
        let Some(InFlight { left, mut replies }) = self.in_flight.take() else { return effects };
        if outcome.is_err() {
            self.take_back(std::mem::take(&mut replies.reports), std::mem::take(&mut replies.networks));
        }
        match outcome {
            Ok(revision) => {
                debug!(revision, "committed");
                self.dirty = left;
                answer(replies, revision, Ground::Proposal, &mut effects);
                return effects;
            }
            Err(ProposeError::Conflict(conflict)) => {
                // Only this brain writes, so a conflict means that an earlier leader's entry came in between: plan again.
                warn!(%conflict, "planning again");
                refuse(replies, &ApiError::new(ErrorCode::Conflict, conflict.to_string()).hint("try again"), &mut effects);
            }
            Err(ProposeError::TooLarge { bytes, limit }) => {
                error!(bytes, limit, "transaction too large");
                let refusal =
                    ApiError::new(ErrorCode::TooLarge, format!("the change needs {bytes} bytes in the log, the limit is {limit}"))
                        .hint("deploy or scale in smaller steps");
                // All parts of a plan but a single request are bounded: without it the next plan fits. Nothing else is lost.
                refuse(replies, &refusal, &mut effects);
            }
            Err(refused @ ProposeError::NotLeader { .. }) => {
                // The term may be over; or leadership is being handed over, and the hand-over may fail, with nobody else to go on.
                refuse(replies, &not_leader(&refused), &mut effects);
                self.wake_at = now.monotonic + HANDING_OVER;
                self.dirty = Dirty::everything();
                return effects;
            }
            Err(refused @ (ProposeError::ShuttingDown | ProposeError::NoVoters)) => {
                refuse(replies, &not_leader(&refused), &mut effects);
                self.is_over = true;
            }
            Err(lost @ ProposeError::Unavailable) => {
                refuse(replies, &unavailable(&lost), &mut effects);
                self.is_over = true;
            }
        }
        self.wake_at = now.monotonic;
        self.dirty = Dirty::everything();
        effects
    }

    /// The term is over: what was not proposed is not carried out.
    pub fn end(&mut self) -> Vec<Effect<U, A>> {
        self.is_over = true;
        let over = ApiError::new(ErrorCode::NotLeader, "this manager stopped leading; the request was not carried out").hint("try again");
        let controls = std::mem::take(&mut self.pending.controls).into_iter();
        let registrations = std::mem::take(&mut self.pending.registrations).into_iter();
        let mut effects: Vec<_> = controls.map(|(_, from)| Effect::Answer(from, Err(over.clone()), Ground::Proposal)).collect();
        effects.extend(registrations.map(|(_, _, from)| Effect::Registered(from, Err(over.clone()))));
        effects
    }

    /// What was not committed is to be reported again, unless there is newer word of the task or node.
    fn take_back(&mut self, reports: Reports, networks: HostNetworks) {
        for (key, status) in reports {
            self.pending.reports.entry(key).or_insert(status);
        }
        for (node, network) in networks {
            self.pending.networks.entry(node).or_insert(network);
        }
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn unavailable(error: &ProposeError) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, error.to_string()).hint("look at the state, then try again")
}

/// Nothing was proposed: whoever leads then may be asked.
fn not_leader(error: &ProposeError) -> ApiError {
    ApiError::new(ErrorCode::NotLeader, error.to_string()).hint("try again")
}

fn answer<U, A>(replies: Replies<U, A>, revision: u64, ground: Ground, effects: &mut Vec<Effect<U, A>>) {
    effects.extend(replies.controls.into_iter().map(|(answer, from)| Effect::Answer(from, Ok(answer.at(revision)), ground)));
    effects.extend(replies.registrations.into_iter().map(|from| Effect::Registered(from, Ok(()))));
}

fn refuse<U, A>(replies: Replies<U, A>, refusal: &ApiError, effects: &mut Vec<Effect<U, A>>) {
    effects.extend(replies.controls.into_iter().map(|(_, from)| Effect::Answer(from, Err(refusal.clone()), Ground::Proposal)));
    effects.extend(replies.registrations.into_iter().map(|from| Effect::Registered(from, Err(refusal.clone()))));
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
