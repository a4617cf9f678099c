//! One service: fills its slots, empties those that should not be, moves tasks off lost and drained nodes, replaces old templates.

use std::collections::BTreeMap;

use rcluster_api::id::{NodeId, TaskId};
use rcluster_api::network::Port;
use rcluster_api::object::{Availability, Kind, Node, NodeState, Object, Service, Stamp, Task, TaskStatus};
use rcluster_api::spec::{Mode, Reschedule, ServiceSpec, UpdateOrder};
use rcluster_api::task::TaskState;

use super::restart::{Verdict, verdict};
use super::slot::{Slot, SlotKey, is_over, kept_until_ms, leaving};
use crate::core::allocate;
use crate::core::plan::{ChangeSet, Ctx, Note};
use crate::core::schedule::filter;
use crate::core::state::State;

/// Ended tasks that are kept for each slot, so that people can see what happened.
const HISTORY_PER_SLOT: usize = 4;

/// Brings the tasks of one service towards its spec.
pub fn reconcile(state: &State, service: &Service, ctx: &mut Ctx, changes: &mut ChangeSet) {
    let mut tasks: Vec<&Task> = state.tasks_of_service(&service.id).map(AsRef::as_ref).collect();
    tasks.sort_by(|a, b| (b.stamp.created_at_ms, b.restarts, &b.id).cmp(&(a.stamp.created_at_ms, a.restarts, &a.id)));
    let lost = orphan_lost(state, service, &tasks, ctx.now_ms, changes);
    let tasks: Vec<&Task> = tasks.iter().map(|task| lost.get(&task.id).unwrap_or(task)).collect();
    let mut slots: BTreeMap<SlotKey, Slot<'_>> = BTreeMap::new();
    for task in tasks {
        slots.entry(SlotKey::of(task)).or_default().add(task);
    }
    if service.removing {
        remove(state, service, &slots, ctx.now_ms, changes);
        return;
    }
    let wanted = wanted_slots(state, service);
    let empty = Slot::default();
    let mut budget = update_budget(state, service, &slots, &wanted);
    for key in &wanted {
        if changes.is_full() {
            return;
        }
        let slot = slots.get(key).unwrap_or(&empty);
        let step = Step { state, service, key, slot };
        step.fill(ctx, changes);
        step.retire_predecessors(changes);
        step.replace_outdated(&mut budget, ctx, changes);
    }
    for (key, slot) in &slots {
        if changes.is_full() {
            return;
        }
        if !wanted.contains(key) {
            let desired = if matches!(key, SlotKey::Node(_)) { TaskState::Shutdown } else { TaskState::Removed };
            changes.puts.extend(slot.live.iter().map(|task| Object::Task(Box::new(leaving(task, desired)))));
        }
        forget(slot, wanted.contains(key), ctx.now_ms, changes);
    }
}

/// Marks the tasks of nodes that are down as lost, where the policy wants them elsewhere; returns them as they will be.
fn orphan_lost(state: &State, service: &Service, tasks: &[&Task], now_ms: u64, changes: &mut ChangeSet) -> BTreeMap<TaskId, Task> {
    let mut lost = BTreeMap::new();
    if service.spec.mode == Mode::Global && !service.removing {
        return lost;
    }
    for task in tasks {
        if changes.is_full() {
            break;
        }
        let Some(node) = node_of(state, task) else { continue };
        let moves = service.removing || !task.is_wanted() || service.spec.reschedule != Reschedule::Never;
        if node.state != NodeState::Down || task.status.state.is_terminal() || !moves {
            continue;
        }
        let desired_state = if service.removing { TaskState::Removed } else { task.desired_state.max(TaskState::Shutdown) };
        let status = TaskStatus {
            state: TaskState::Orphaned,
            message: format!("lost with node {}", node.name()),
            since_ms: now_ms,
            containers: task.status.containers.clone(),
            ending: task.status.ending,
        };
        let orphan = Task { desired_state, status, ..(*task).clone() };
        changes.notes.push(Note {
            kind: Kind::Task,
            object_id: task.id.to_string(),
            object: task.name.clone(),
            reason: "Orphaned",
            message: format!("node {} is down", node.name()),
        });
        changes.puts.push(Object::Task(Box::new(orphan.clone())));
        lost.insert(task.id.clone(), orphan);
    }
    lost
}

fn node_of<'a>(state: &'a State, task: &Task) -> Option<&'a Node> {
    task.node_id.as_ref().and_then(|id| state.nodes().get(id)).map(AsRef::as_ref)
}

/// The slots that should hold a task.
fn wanted_slots(state: &State, service: &Service) -> Vec<SlotKey> {
    match service.spec.mode {
        Mode::Replicated => (1..=service.spec.replicas()).map(SlotKey::Number).collect(),
        Mode::Global => state
            .nodes()
            .values()
            .filter(|node| node.availability != Availability::Drain && filter::constraints_hold(&service.spec.placement, node))
            .filter(|node| {
                node.availability == Availability::Active
                    || state.tasks_of_node(&node.id).any(|task| task.service_id == service.id && task.is_live())
            })
            .map(|node| SlotKey::Node(node.id.clone()))
            .collect(),
    }
}

/// How many slots more may be taken out of service for an update.
fn update_budget(state: &State, service: &Service, slots: &BTreeMap<SlotKey, Slot<'_>>, wanted: &[SlotKey]) -> usize {
    if service.spec.update.parallelism == 0 {
        return usize::MAX;
    }
    let in_transition = wanted.iter().filter_map(|key| slots.get(key)).filter(|slot| is_in_transition(state, service, slot)).count();
    (service.spec.update.parallelism as usize).saturating_sub(in_transition)
}

/// Whether an update has taken a slot out of service and not put it back. A slot that had nothing running before the update does not
/// hold it up, nor does one whose node is down: it would for ever.
fn is_in_transition(state: &State, service: &Service, slot: &Slot<'_>) -> bool {
    let on_live_node = |task: &Task| node_of(state, task).is_none_or(|node| node.state != NodeState::Down);
    // The old version ran here until it was stopped, or the new one has failed.
    let was_taken_out = |task: &Task| if task.spec_version == service.spec_version { task.status.state.is_failure() } else { ran(task) };
    match slot.live.first() {
        Some(task) if task.spec_version != service.spec_version || task.serves() => false,
        Some(task) if task.status.state >= TaskState::Assigned => on_live_node(task),
        None if slot.leaving.iter().any(|task| on_live_node(task)) => true,
        // It waits for its time or for a place, or is about to be made.
        Some(_) | None => slot.ended.first().is_some_and(|task| was_taken_out(task)),
    }
}

/// Whether a task's containers were started.
fn ran(task: &Task) -> bool {
    task.status.containers.iter().any(|container| container.started_at_ms > 0)
}

/// Whether a slot has what it should: its newest live task runs.
fn runs(slot: &Slot<'_>) -> bool {
    slot.live.first().is_some_and(|task| task.serves())
}

/// One slot under one service.
struct Step<'a> {
    state: &'a State,
    service: &'a Service,
    key: &'a SlotKey,
    slot: &'a Slot<'a>,
}

impl Step<'_> {
    /// A slot without a live task gets one, if the restart policy agrees.
    fn fill(&self, ctx: &mut Ctx, changes: &mut ChangeSet) {
        if !self.slot.live.is_empty() {
            return;
        }
        if let SlotKey::Node(id) = self.key
            && self.state.nodes().get(id).is_none_or(|node| node.state == NodeState::Down)
        {
            return;
        }
        if self.waits_for_the_old_to_go() {
            return;
        }
        match self.slot.ended.first() {
            None => changes.puts.push(self.new_task(None, ctx)),
            Some(ended) if ended.spec_version != self.service.spec_version => changes.puts.push(self.new_task(None, ctx)),
            Some(ended) => match verdict(ended, &self.service.spec.restart, ctx.now_ms, &mut ctx.rng) {
                Verdict::Stay => {}
                restart @ Verdict::Restart { .. } => changes.puts.push(self.new_task(Some(restart), ctx)),
            },
        }
    }

    /// Whether a task that is to go may run still, and nothing may be started beside it.
    fn waits_for_the_old_to_go(&self) -> bool {
        self.slot.leaving.iter().any(|task| task.may_run()) && !self.starts_before_the_old_has_gone()
    }

    /// Not with a port of its node, whatever is asked for: where the service has a task on each node that fits, there would be no place beside
    /// them.
    fn starts_before_the_old_has_gone(&self) -> bool {
        self.service.spec.update.order == UpdateOrder::StartFirst && !self.has_port_of_its_node()
    }

    fn has_port_of_its_node(&self) -> bool {
        self.service.spec.ports.iter().flat_map(Port::node_ports).any(|(_, of_tasks)| of_tasks)
    }

    /// Whether the slot has what one task holds at a time: a static address, or a port of the one node that the slot is.
    fn is_for_one(&self) -> bool {
        let ServiceSpec { mode, networks, .. } = &self.service.spec;
        networks.iter().any(|attachment| attachment.ip.is_some()) || *mode == Mode::Global && self.has_port_of_its_node()
    }

    /// When the newest task of a slot runs, older live ones have been replaced and stop.
    fn retire_predecessors(&self, changes: &mut ChangeSet) {
        if runs(self.slot) {
            let older = self.slot.live.iter().skip(1);
            changes.puts.extend(older.map(|task| Object::Task(Box::new(leaving(task, TaskState::Shutdown)))));
        }
    }

    /// A live task that has an old template, or stands on a drained node, is replaced.
    fn replace_outdated(&self, budget: &mut usize, ctx: &mut Ctx, changes: &mut ChangeSet) {
        let Some(task) = self.slot.live.first() else { return };
        let outdated = task.spec_version != self.service.spec_version;
        let drained = self.service.spec.mode == Mode::Replicated
            && self.service.spec.reschedule == Reschedule::Always
            && node_of(self.state, task).is_some_and(|node| node.availability == Availability::Drain);
        if !outdated && !drained {
            return;
        }
        let running = task.status.state == TaskState::Running;
        let start_first = running && !self.is_for_one() && (drained || self.starts_before_the_old_has_gone());
        if start_first && self.waits_for_the_old_to_go() {
            // A successor that became outdated itself is on its way out: two beside the one that runs are one too many.
            return;
        }
        let restart = if start_first { self.next_try(task, ctx) } else { None };
        if restart == Some(Verdict::Stay) {
            return;
        }
        if outdated && running {
            if *budget == 0 {
                return;
            }
            *budget -= 1;
        }
        if start_first {
            changes.puts.push(self.new_task(restart, ctx));
        } else {
            changes.puts.push(Object::Task(Box::new(leaving(task, TaskState::Shutdown))));
        }
    }

    /// What the restart policy says when a successor of `task`, which goes on meanwhile, has been tried and has ended.
    fn next_try(&self, task: &Task, ctx: &mut Ctx) -> Option<Verdict> {
        let tried = self.slot.ended.first()?;
        let is_successor = tried.spec_version == self.service.spec_version && tried.stamp.created_at_ms > task.stamp.created_at_ms;
        is_successor.then(|| verdict(tried, &self.service.spec.restart, ctx.now_ms, &mut ctx.rng))
    }

    /// A new task for the slot.
    fn new_task(&self, restart: Option<Verdict>, ctx: &mut Ctx) -> Object {
        let (start_after_ms, restarts, restarts_in_window, window_start_ms) = match restart {
            Some(Verdict::Restart { start_after_ms, restarts, restarts_in_window, window_start_ms }) => {
                (start_after_ms, restarts, restarts_in_window, window_start_ms)
            }
            Some(Verdict::Stay) | None => (0, 0, 0, 0),
        };
        let spec = &self.service.spec;
        let (slot, node_id, node) = match self.key {
            SlotKey::Number(slot) => (*slot, None, String::new()),
            SlotKey::Node(id) => (0, Some(id.clone()), self.state.nodes().get(id).map(|node| node.name().to_owned()).unwrap_or_default()),
        };
        let name = if slot == 0 { format!("{}.{node}", spec.name) } else { format!("{}.{slot}", spec.name) };
        Object::Task(Box::new(Task {
            id: TaskId::random(&mut ctx.rng),
            stamp: Stamp::default(),
            service_id: self.service.id.clone(),
            service: spec.name.clone(),
            stack: spec.stack.clone(),
            slot,
            name,
            template: spec.template(),
            spec_version: self.service.spec_version,
            desired_state: TaskState::Running,
            restarts,
            restarts_in_window,
            window_start_ms,
            start_after_ms,
            node_id: node_id as Option<NodeId>,
            node,
            networks: Vec::new(),
            status: TaskStatus {
                state: TaskState::New,
                message: String::new(),
                since_ms: ctx.now_ms,
                containers: Vec::new(),
                ending: false,
            },
            leave_ms: spec.leave.0,
        }))
    }
}

/// A service that is to go: everything stops; when nothing may run any more, it goes.
fn remove(state: &State, service: &Service, slots: &BTreeMap<SlotKey, Slot<'_>>, now_ms: u64, changes: &mut ChangeSet) {
    let mut waits = false;
    for slot in slots.values() {
        if changes.is_full() {
            return;
        }
        for task in slot.live.iter().chain(&slot.leaving) {
            if is_over(task, now_ms) {
                super::forget(task, now_ms, changes);
            } else {
                waits = true;
                if task.desired_state != TaskState::Removed {
                    changes.puts.push(Object::Task(Box::new(leaving(task, TaskState::Removed))));
                }
            }
        }
        for task in slot.ended.iter().chain(&slot.resting).filter(|task| is_over(task, now_ms)) {
            super::forget(task, now_ms, changes);
        }
    }
    if !waits {
        allocate::give_up_vips(state, service, &mut changes.puts, now_ms);
        changes.deletes.push((Kind::Service, service.id.to_string()));
        changes.notes.push(Note {
            kind: Kind::Service,
            object_id: service.id.to_string(),
            object: service.spec.name.clone(),
            reason: "Removed",
            message: "all its tasks have stopped".to_owned(),
        });
    }
}

/// Deletes ended tasks beyond the history, those lost with their node long ago, and those that were to be removed, once their addresses have rested.
fn forget(slot: &Slot<'_>, wanted: bool, now_ms: u64, changes: &mut ChangeSet) {
    let mut kept = 0;
    for task in &slot.ended {
        if !is_over(task, now_ms) {
            changes.wake_at(task.status.since_ms.saturating_add(super::ORPHAN_KEPT_MS));
            continue;
        }
        if task.status.state == TaskState::Orphaned {
            // As history it would have its addresses for ever.
            super::forget(task, now_ms, changes);
            continue;
        }
        kept += 1;
        if !wanted && kept_until_ms(task, now_ms).is_some() {
            // Should the slot be wanted again meanwhile, it is not what that begins from.
            changes.puts.push(Object::Task(Box::new(leaving(task, TaskState::Removed))));
        } else if task.desired_state == TaskState::Removed || !wanted || kept > HISTORY_PER_SLOT {
            super::forget(task, now_ms, changes);
        }
    }
    for task in &slot.resting {
        super::forget(task, now_ms, changes);
    }
    for task in &slot.leaving {
        if !task.may_run() {
            changes.deletes.push((Kind::Task, task.id.to_string()));
        }
    }
}
