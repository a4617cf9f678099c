//! What one node must run: every task of its that has not ended, and the ended ones whose logs are still wanted.

use rcluster_api::id::NodeId;
use rcluster_api::task::TaskState;
use rcluster_api::wire::v1;

use crate::core::state::State;

/// The node's set as of `state`, told by the leader of `term`.
pub fn assignments(state: &State, node: &NodeId, term: u64) -> v1::Assignments {
    let mut tasks = Vec::new();
    let mut kept_tasks = Vec::new();
    for task in state.tasks_of_node(node) {
        if task.status.state < TaskState::Assigned {
            continue;
        }
        if task.may_run() {
            tasks.push(v1::Task::from((**task).clone()));
        } else {
            kept_tasks.push(task.id.to_string());
        }
    }
    v1::Assignments { term, revision: state.revision(), tasks, kept_tasks }
}
