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
    let TaskStatus { state: _, message, since_ms: _, containers, ending } = &task.status;
    let news = report.state > task.status.state
        || (report.state == task.status.state
            && (report.message != *message || report.containers != *containers || report.ending != *ending));
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
        ending: false,
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

#[cfg(test)]
mod tests {
    use rcluster_api::object::Stamp;
    use rcluster_api::spec::TaskTemplate;

    use super::*;

    fn status(state: TaskState) -> TaskStatus {
        TaskStatus { state, message: String::new(), since_ms: 5, containers: Vec::new(), ending: false }
    }

    fn task_on(node: Option<&str>, state: TaskState) -> Task {
        Task {
            id: "t1".into(),
            stamp: Stamp::default(),
            service_id: "s1".into(),
            service: "web".to_owned(),
            stack: String::new(),
            slot: 1,
            name: "web.1".to_owned(),
            template: TaskTemplate::default(),
            spec_version: 1,
            desired_state: TaskState::Running,
            restarts: 0,
            restarts_in_window: 0,
            window_start_ms: 0,
            start_after_ms: 0,
            node_id: node.map(NodeId::from),
            node: node.unwrap_or_default().to_owned(),
            networks: Vec::new(),
            status: status(state),
            leave_ms: 0,
        }
    }

    #[test]
    fn a_node_tells_of_its_own_tasks_alone() {
        for (state, told) in
            [(TaskState::Assigned, TaskState::Running), (TaskState::Running, TaskState::Failed), (TaskState::Orphaned, TaskState::Shutdown)]
        {
            let merged = |node, from: &str| merge(&task_on(node, state), &from.into(), &status(told)).map(|task| task.status.state);
            assert!(merged(Some("n1"), "n1").is_some(), "{told} after {state}");
            assert_eq!(merged(Some("n1"), "n2"), None, "{told} after {state}");
            assert_eq!(merged(None, "n2"), None, "{told} after {state}: it is on no node");
        }
    }

    #[test]
    fn observed_states_only_rise() {
        let merged = |before, told| merge(&task_on(Some("n1"), before), &"n1".into(), &status(told)).map(|task| task.status.state);
        assert_eq!(merged(TaskState::Running, TaskState::Starting), None);
        assert_eq!(merged(TaskState::Running, TaskState::Running), None);
        assert_eq!(merged(TaskState::Assigned, TaskState::Accepted), Some(TaskState::Accepted));
        assert_eq!(merged(TaskState::Running, TaskState::Orphaned), None, "that is for managers to say");
        assert_eq!(merged(TaskState::Orphaned, TaskState::Failed), Some(TaskState::Removed));
    }

    #[test]
    fn that_a_task_will_end_is_news_and_it_serves_no_more() {
        let before = task_on(Some("n1"), TaskState::Running);
        assert!(before.serves());
        let told = TaskStatus { ending: true, ..status(TaskState::Running) };
        let after = merge(&before, &"n1".into(), &told).expect("news");
        assert!(!after.serves());
        assert_eq!(merge(&after, &"n1".into(), &told), None);
    }
}
