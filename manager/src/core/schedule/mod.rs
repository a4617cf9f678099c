//! Which node a task runs on.
//!
//! In: tasks without a node (or, for global services, not yet assigned) and the nodes. Out: tasks assigned, or pending with the reason
//! in words. Never: moves a task, or puts one where a filter says no.

pub mod filter;
mod rank;
mod room;

use rcluster_api::object::{Kind, Object, Task};
use rcluster_api::task::TaskState;

use super::plan::{ChangeSet, Ctx, Dirty, Note};
use super::state::Draft;
use room::Rooms;

/// Assigns every task that has its addresses and fits somewhere.
pub fn pass(draft: &Draft, _dirty: &Dirty, ctx: &mut Ctx) -> ChangeSet {
    let mut changes = ChangeSet::default();
    let mut waiting: Vec<&Task> = draft.state().unassigned().filter(|task| is_ready_to_place(task)).collect();
    if waiting.is_empty() {
        return changes;
    }
    waiting.sort_by(|a, b| (a.stamp.created_at_ms, &a.service, a.slot, &a.id).cmp(&(b.stamp.created_at_ms, &b.service, b.slot, &b.id)));
    let mut rooms = Rooms::new(draft.state(), &waiting);
    for task in waiting {
        if changes.is_full() {
            break;
        }
        if task.start_after_ms > ctx.now_ms {
            changes.wake_at(task.start_after_ms);
            if task.status.message.is_empty() {
                let mut waits = task.clone();
                waits.status.message = format!("waits before restart {}", task.restarts);
                changes.puts.push(Object::Task(Box::new(waits)));
            }
            continue;
        }
        let placed = match rooms.best(task) {
            Ok(room) => {
                let mut placed = task.clone();
                placed.node_id = Some(room.node.id.clone());
                placed.node = room.node.name().to_owned();
                placed.status.state = TaskState::Assigned;
                placed.status.message = String::new();
                placed.status.since_ms = ctx.now_ms;
                changes.notes.push(Note {
                    kind: Kind::Task,
                    object_id: task.id.to_string(),
                    object: task.name.clone(),
                    reason: "Assigned",
                    message: format!("to node {}", placed.node),
                });
                placed
            }
            Err(why) => {
                let mut waits = task.clone();
                waits.status.message = why;
                waits
            }
        };
        if let Some(node) = placed.node_id.clone().filter(|_| placed.status.state == TaskState::Assigned) {
            rooms.place(&node, &placed);
        }
        if placed != *task {
            changes.puts.push(Object::Task(Box::new(placed)));
        }
    }
    changes
}

/// Whether a task waits for a node and nothing else.
fn is_ready_to_place(task: &Task) -> bool {
    task.status.state == TaskState::Pending && task.networks.len() == task.template.networks.len()
}
