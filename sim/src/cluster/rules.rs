//! What must hold: after each commit, whenever a container starts, and when the faults are over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use imbl::ordmap::DiffItem;
use rcluster_api::id::{NetworkId, NodeId, ServiceId, TaskId};
use rcluster_api::object::{Availability, Node, NodeState, Service, Task};
use rcluster_api::spec::{Mode, UpdateOrder};
use rcluster_api::task::TaskState;
use rcluster_manager::core::allocate::holds_addresses;
use rcluster_manager::core::state::State;
use rcluster_manager::store::RoleKind;

use super::node::Agent;
use super::{Cluster, Here};
use crate::check::{Violation, hold};

/// After so long without trouble a node is not judged to be down, whatever happens to the managers.
const HEALTHY_US: u64 = 20_000_000;
/// Tasks of a slot that are wanted at a time, at most.
const LIVE_MAX: usize = 2;

/// A place of a service.
type Place = (ServiceId, u32, Option<NodeId>);

fn place(task: &Task) -> Place {
    let node = task.node_id.clone().filter(|_| task.slot == 0);
    (task.service_id.clone(), task.slot, node)
}

/// How a task was made while another of its slot might run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TakeOver {
    /// Beside one that goes on until it runs.
    Beside,
    /// From one that was given up with its node, as long as that is so.
    GivenUp,
}

/// What the rules remember.
#[derive(Debug)]
pub struct Rules {
    /// The last index that was looked at.
    seen: u64,
    /// Pairs of a slot: the task that might run, and the one that was made meanwhile, as it may.
    taken_over: BTreeMap<(TaskId, TaskId), TakeOver>,
    /// When a container of a slot has last ended by itself, and of which task.
    ended: BTreeMap<Place, (u64, Task)>,
}

impl Rules {
    pub fn new() -> Self {
        Self { seen: 1, taken_over: BTreeMap::new(), ended: BTreeMap::new() }
    }

    /// A container of the task has ended by itself.
    pub fn ended(&mut self, task: &Task, now_us: u64) {
        self.ended.insert(place(task), (now_us, task.clone()));
    }

    /// Whether `new` may run while `old` does.
    fn takes_over(&self, old: &TaskId, new: &TaskId, state: &State) -> bool {
        let Some(known) = state.tasks().get(old) else { return false };
        match self.taken_over.get(&(old.clone(), new.clone())) {
            Some(TakeOver::Beside) => true,
            Some(TakeOver::GivenUp) => known.status.state == TaskState::Orphaned,
            None => false,
        }
    }

    /// Whether a task was to wait for the end of `last`: not one that was made beside another, or given up for another, nor the same, whose
    /// end its node has forgotten with its power.
    fn waits_for(&self, last: &TaskId, task: &TaskId) -> bool {
        last != task && !self.taken_over.keys().any(|(old, new)| old == task || new == task)
    }
}

impl Cluster {
    /// Looks at all that was committed since the last time.
    pub(super) fn check_commits(&mut self, here: &Here<'_>) -> Result<(), Violation> {
        while self.rules.seen < here.checker.last() {
            let index = self.rules.seen + 1;
            self.rules.seen = index;
            let (Some(before), Some(after)) = (here.checker.state_at(index - 1), here.checker.state_at(index)) else { continue };
            self.check_nodes(before, after, here)?;
            if before.tasks().ptr_eq(after.tasks()) {
                continue;
            }
            check_addresses(after)?;
            for item in before.tasks().diff(after.tasks()) {
                match item {
                    DiffItem::Add(_, task) => {
                        check_assignment(None, task, after)?;
                        self.check_new(task, before, after)?;
                    }
                    DiffItem::Update { old: (_, old), new: (_, new) } => {
                        let rises = new.status.state >= old.status.state && new.desired_state >= old.desired_state;
                        hold!(rises, "{} ({}) goes from {} to {}", new.name, new.id, old.status.state, new.status.state);
                        check_stays(old, new)?;
                        check_assignment(Some(old), new, after)?;
                    }
                    DiffItem::Remove(_, task) => {
                        let holds = |node: &&Agent| node.kernel.values().any(|container| container.runs() && container.task.id == task.id);
                        let runs_on = self.agents.iter().find(holds).map(|node| node.name.as_str());
                        hold!(runs_on.is_none(), "{} ({}) is forgotten, and runs on {runs_on:?}", task.name, task.id);
                        self.rules.taken_over.retain(|(_, new), _| *new != task.id);
                    }
                }
            }
        }
        Ok(())
    }

    /// A node is judged to be down only when something is wrong with it or with its way to the managers.
    fn check_nodes(&mut self, before: &State, after: &State, here: &Here<'_>) -> Result<(), Violation> {
        for item in before.nodes().diff(after.nodes()) {
            let DiffItem::Update { old: (_, old), new: (id, new) } = item else { continue };
            if new.state == NodeState::Down && old.state != NodeState::Down {
                self.counts.downs += 1;
                let Some(agent) = self.agents.iter().find(|agent| agent.id() == *id) else { continue };
                // By the clock of who has judged; the commit may have had to wait for a disk.
                let judged_ms = new.since_ms.saturating_sub(Self::unix_ms(0, 0) + self.plan.skew_ms.unsigned_abs());
                let judged_us = (judged_ms * 1000).min(here.now_us);
                let healthy = agent.process.is_some() && agent.troubled_us + HEALTHY_US < judged_us;
                hold!(!healthy, "{} is well and is judged to be down: {}", agent.name, new.message);
            }
        }
        Ok(())
    }

    /// A new task: alone in its slot but for those that it may stand beside, and with the history of the one before it.
    fn check_new(&mut self, task: &Task, before: &State, after: &State) -> Result<(), Violation> {
        let Some(service) = after.services().get(&task.service_id) else { return Ok(()) };
        let mut others: Vec<&Task> = after.tasks_of_service(&task.service_id).map(AsRef::as_ref).collect();
        others.retain(|other| place(other) == place(task) && other.id != task.id);
        let live = others.iter().filter(|other| other.is_live()).count();
        hold!(live < LIVE_MAX, "{} has {} tasks that are wanted", task.name, live + 1);
        for other in others.iter().filter(|other| other.may_run()) {
            let is_given_up = other.status.state == TaskState::Orphaned;
            let may = is_given_up || service.spec.update.order == UpdateOrder::StartFirst || is_drained(other, after);
            hold!(may, "{} ({}) is made while {} may run: it is {}", task.name, task.id, other.id, other.status.state);
            let how = if is_given_up { TakeOver::GivenUp } else { TakeOver::Beside };
            self.rules.taken_over.insert((other.id.clone(), task.id.clone()), how);
        }
        let last = others
            .iter()
            .filter(|other| other.spec_version == task.spec_version)
            .max_by_key(|other| (other.stamp.created_at_ms, other.restarts));
        if let Some(last) =
            last.filter(|last| last.is_wanted() && last.status.state.is_failure() && last.status.state != TaskState::Orphaned)
        {
            check_history(last, task, service, before)?;
        }
        Ok(())
    }

    /// A container of `task` starts on an agent's node: no other of its slot runs anywhere, but one that it takes over from, or that
    /// takes over from it. And not sooner than the restart policy says.
    pub(super) fn check_start(&mut self, agent: usize, task: &Task, here: &Here<'_>) -> Result<(), Violation> {
        let state = here.checker.latest();
        let others = self.agents.iter().flat_map(|node| node.kernel.values().map(move |container| (node, container)));
        for (node, container) in others.filter(|(_, container)| container.runs() && container.task.id != task.id) {
            let other = &container.task;
            if place(other) != place(task) {
                continue;
            }
            let may = self.rules.takes_over(&other.id, &task.id, state) || self.rules.takes_over(&task.id, &other.id, state);
            hold!(may, "{} runs twice: {} on {} and {} on {}", task.name, task.id, self.agents[agent].name, other.id, node.name);
        }
        let Some(service) = state.services().get(&task.service_id) else { return Ok(()) };
        let Some((ended_us, last)) = self.rules.ended.get(&place(task)) else { return Ok(()) };
        // The end of one that was given up with its node, or was to end, is not what the managers count from.
        let known = state.tasks().get(&last.id);
        let is_failure = known.is_none_or(|known| known.is_wanted() && known.status.state != TaskState::Orphaned);
        let counts = last.spec_version == task.spec_version && is_failure;
        if counts && task.restarts_in_window > 1 && self.rules.waits_for(&last.id, &task.id) {
            let policy = &service.spec.restart;
            let step = (task.restarts_in_window - 2).min(30);
            let delay_ms = (policy.delay.0 << step).min(policy.delay_max.0) * 4 / 5;
            let early_ms = delay_ms.saturating_sub(self.plan.skew_ms.unsigned_abs() * 2 + 2);
            let waited_ms = (here.now_us - ended_us) / 1000;
            hold!(waited_ms >= early_ms, "{} starts {waited_ms} ms after its end, and was to wait {delay_ms} ms", task.name);
        }
        Ok(())
    }

    /// Whether all is well: every node takes part, every service has what it should, and nothing else runs.
    pub fn inspect(&self, here: &Here<'_>) -> Result<(), String> {
        let leads =
            |at: &usize| here.hosts[*at].process.as_ref().is_some_and(|process| process.store.role().borrow().kind == RoleKind::Leader);
        let leader = (0..here.hosts.len()).find(leads).ok_or("nobody leads")?;
        self.check_lead(leader)?;
        let state = here.checker.latest();
        for agent in &self.agents {
            let node = state.nodes().get(&agent.id()).ok_or_else(|| format!("{} has not registered", agent.name))?;
            if node.state != NodeState::Ready || node.availability != Availability::Active {
                return Err(format!("{} is {:?} and {:?}", agent.name, node.state, node.availability));
            }
        }
        for service in state.services().values() {
            self.inspect_service(service, state)?;
        }
        for task in state.tasks().values() {
            if task.status.state == TaskState::Orphaned {
                return Err(format!("{} ({}) is orphaned, and its node is back", task.name, task.id));
            }
        }
        for agent in &self.agents {
            for container in agent.kernel.values().filter(|container| container.runs()) {
                let known =
                    state.tasks().get(&container.task.id).filter(|task| task.is_wanted() && task.node_id.as_ref() == Some(&agent.id()));
                let known = known.ok_or_else(|| format!("{} runs {}, which nobody wants there", agent.name, container.task.id))?;
                if container.task.template.containers[0].image.starts_with("steady") && known.status.state != TaskState::Running {
                    return Err(format!("{} runs {}, and the managers take it for {}", agent.name, known.id, known.status.state));
                }
            }
        }
        Ok(())
    }

    fn inspect_service(&self, service: &Service, state: &State) -> Result<(), String> {
        let name = &service.spec.name;
        if service.removing {
            return Err(format!("{name} is not removed yet"));
        }
        let wanted = match service.spec.mode {
            Mode::Replicated => service.spec.replicas() as usize,
            Mode::Global => self.agents.len(),
        };
        let live: Vec<&Task> = state.tasks_of_service(&service.id).map(AsRef::as_ref).filter(|task| task.is_live()).collect();
        let places: BTreeSet<Place> = live.iter().map(|task| place(task)).collect();
        let is_steady = service.spec.containers[0].image.starts_with("steady");
        // What does not run stands beside what it is to replace, for ever.
        if places.len() != wanted || (is_steady && live.len() != wanted) {
            return Err(format!("{name} has {} tasks in {} slots, and is to have {wanted}", live.len(), places.len()));
        }
        if !is_steady {
            return Ok(());
        }
        for task in live {
            let current = task.spec_version == service.spec_version && task.status.state == TaskState::Running;
            let agent = self.agents.iter().find(|agent| Some(agent.id()) == task.node_id);
            let runs = agent.is_some_and(|agent| agent.kernel.values().any(|container| container.task.id == task.id && container.runs()));
            if !current || !runs {
                let (state, version) = (task.status.state, task.spec_version);
                return Err(format!(
                    "{} ({}) is {state} at version {version} of {}; runs: {runs}",
                    task.name, task.id, service.spec_version
                ));
            }
        }
        Ok(())
    }
}

fn node_of<'a>(task: &Task, state: &'a State) -> Option<&'a Node> {
    task.node_id.as_ref().and_then(|id| state.nodes().get(id)).map(AsRef::as_ref)
}

fn is_drained(task: &Task, state: &State) -> bool {
    node_of(task, state).is_some_and(|node| node.availability == Availability::Drain)
}

/// No address belongs to two tasks.
fn check_addresses(state: &State) -> Result<(), Violation> {
    let mut holders: BTreeMap<(&NetworkId, Ipv4Addr), &TaskId> = BTreeMap::new();
    for task in state.tasks().values().filter(|task| holds_addresses(task)) {
        for attached in &task.networks {
            let other = holders.insert((&attached.network_id, attached.ip), &task.id);
            hold!(other.is_none(), "{} belongs to {} and to {other:?}", attached.ip, task.id);
        }
    }
    Ok(())
}

/// A task is assigned only to a node that takes work.
fn check_assignment(before: Option<&Task>, after: &Task, state: &State) -> Result<(), Violation> {
    let was = before.is_some_and(|task| task.status.state >= TaskState::Assigned);
    if was || after.status.state != TaskState::Assigned {
        return Ok(());
    }
    let takes = node_of(after, state).is_some_and(|node| node.state == NodeState::Ready && node.availability == Availability::Active);
    hold!(takes, "{} is assigned to {}, which takes no work", after.name, after.node);
    Ok(())
}

/// A task keeps its slot, and its node once it has one.
fn check_stays(old: &Task, new: &Task) -> Result<(), Violation> {
    let same = old.service_id == new.service_id && old.slot == new.slot;
    hold!(same, "{} ({}) goes from slot {} of {} to {} of {}", new.name, new.id, old.slot, old.service_id, new.slot, new.service_id);
    let stays = old.node_id.is_none() || old.node_id == new.node_id;
    hold!(stays, "{} ({}) goes from node {:?} to {:?}", new.name, new.id, old.node_id, new.node_id);
    Ok(())
}

/// A restart counts on from the one before it.
fn check_history(last: &Task, new: &Task, service: &Service, before: &State) -> Result<(), Violation> {
    let started_ms = last.status.containers.iter().map(|container| container.started_at_ms).max().unwrap_or_default();
    let ran_ms = if started_ms == 0 { 0 } else { last.status.since_ms.saturating_sub(started_ms) };
    let row = if ran_ms >= service.spec.restart.window.0 { 0 } else { last.restarts_in_window };
    let counts = new.restarts == last.restarts + 1 && new.restarts_in_window == row + 1;
    hold!(
        counts || before.tasks().get(&last.id).is_none(),
        "{} forgets its history: {} restarts, {} in a row, after {} and {}",
        new.name,
        new.restarts,
        new.restarts_in_window,
        last.restarts,
        last.restarts_in_window
    );
    Ok(())
}
