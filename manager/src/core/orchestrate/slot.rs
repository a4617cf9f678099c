//! One place of a service and the tasks that are, were or will be in it.

use rcluster_api::id::NodeId;
use rcluster_api::object::Task;
use rcluster_api::task::TaskState;

use super::ORPHAN_KEPT_MS;
use crate::core::allocate::rests_until_ms;

/// Which place of its service a task has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SlotKey {
    /// A replicated service's slot, from 1.
    Number(u32),
    /// A global service's node.
    Node(NodeId),
}

impl SlotKey {
    /// The slot a task is in.
    pub fn of(task: &Task) -> Self {
        match (&task.node_id, task.slot) {
            (Some(node), 0) => Self::Node(node.clone()),
            (_, slot) => Self::Number(slot),
        }
    }
}

/// The tasks of a slot, newest first in each list.
#[derive(Debug, Default)]
pub struct Slot<'a> {
    /// Wanted and not ended.
    pub live: Vec<&'a Task>,
    /// Asked to stop, not yet ended.
    pub leaving: Vec<&'a Task>,
    /// Ended, or lost with their node.
    pub ended: Vec<&'a Task>,
    /// Ended and to be forgotten, once their addresses have rested.
    pub resting: Vec<&'a Task>,
}

impl<'a> Slot<'a> {
    /// Sorts a task in; tasks are to be added newest first.
    pub fn add(&mut self, task: &'a Task) {
        if task.is_live() {
            self.live.push(task);
        } else if !task.status.state.is_terminal() {
            self.leaving.push(task);
        } else if task.desired_state == TaskState::Removed && !task.may_run() {
            self.resting.push(task);
        } else {
            self.ended.push(task);
        }
    }
}

/// The task, asked to stop.
pub fn leaving(task: &Task, desired_state: TaskState) -> Task {
    Task { desired_state, ..task.clone() }
}

/// Whether nothing of the task runs any more, nor can: it has ended, and no node can still hold its address.
pub fn is_over(task: &Task, now_ms: u64) -> bool {
    match task.status.state {
        TaskState::Orphaned => task.status.since_ms.saturating_add(ORPHAN_KEPT_MS) <= now_ms,
        _ => !task.may_run(),
    }
}

/// Until when a task that is over is kept for nothing but its addresses, which rest; `None`: it can be forgotten.
pub fn kept_until_ms(task: &Task, now_ms: u64) -> Option<u64> {
    rests_until_ms(task).filter(|until_ms| now_ms < *until_ms)
}
