//! Which of the nodes that fit is best: one where the slot did not fail before, then the fewest tasks of the same service, then the
//! fewest tasks, then the id, so that equal inputs give equal answers.

use rcluster_api::id::NodeId;
use rcluster_api::object::Task;

use super::room::Room;

/// Smaller is better.
pub fn of(task: &Task, room: &Room<'_>) -> (usize, usize, usize, NodeId) {
    let failures = room.failures_of(&task.service_id, task.slot);
    (failures, room.tasks_of(&task.service_id), room.tasks, room.node.id.clone())
}
