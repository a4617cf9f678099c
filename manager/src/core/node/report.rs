//! What an agent's report changes in a task. Observed states only rise.
//!
//! In: the task as it is kept and what its agent says. Out: the task as it should be, or nothing. A report from a node that the task is
//! not on changes nothing.

use rcluster_api::id::NodeId;
use rcluster_api::object::{Kind, Task, TaskStatus};
use rcluster_api::task::TaskState;

use crate::core::plan::Note;

/// The task after the report, if the report says anything new.
pub fn merge(task: &Task, from: &NodeId, report: &TaskStatus) -> Option<Task> {
    if task.node_id.as_ref() != Some(from) {
        return None;
    }
    if task.status.state == TaskState::Orphaned {
        return report.state.is_terminal().then(|| gone(task, report.since_ms));
    }
    let news = report.state > task.status.state
        || (report.state == task.status.state && (report.message != task.status.message || report.containers != task.status.containers));
    let known = (TaskState::Accepted..=TaskState::Rejected).contains(&report.state);
    (news && known).then(|| Task { status: report.clone(), ..task.clone() })
}

/// A task that was lost with its node, now known to have stopped: its address is free.
pub fn gone(task: &Task, now_ms: u64) -> Task {
    let status = TaskStatus {
        state: TaskState::Removed,
        message: format!("{}; stopped when the node came back", task.status.message),
        since_ms: now_ms,
        containers: Vec::new(),
    };
    Task { status, ..task.clone() }
}

/// What people are told of a task's new state.
pub fn note(before: &Task, after: &Task) -> Option<Note> {
    if before.status.state == after.status.state {
        return None;
    }
    let reason = match after.status.state {
        TaskState::Running => "Running",
        TaskState::Complete => "Complete",
        TaskState::Failed => "Failed",
        TaskState::Rejected => "Rejected",
        TaskState::Shutdown => "Stopped",
        TaskState::Removed => "Removed",
        _ => return None,
    };
    let on = format!("on node {}", after.node);
    let message = if after.status.message.is_empty() { on } else { format!("{on}: {}", after.status.message) };
    Some(Note { kind: Kind::Task, object_id: after.id.to_string(), object: after.name.clone(), reason, message })
}
