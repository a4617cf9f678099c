//! Decides what to begin and what to end on this node.
//!
//! In: the managers' whole set for the node, and what the agent knows of each task from its own records. Out: one action per task
//! that needs one, in the order of ids. Never starts a task a second time: one that the managers have seen starting, and of which
//! there is no record here, was lost with a boot of the host and is reported so.

use std::collections::{BTreeMap, BTreeSet};

use rcluster_api::id::TaskId;
use rcluster_api::object::Task;
use rcluster_api::task::TaskState;

/// What is wanted of a task; it only goes further down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    Run,
    /// Stop it and report that.
    Stop,
    /// Stop it; the managers no longer know it.
    Remove,
}

/// What the agent knows of a task it has a record of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    pub wish: Wish,
    /// Nothing of it is left on the node but its report.
    pub ended: bool,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Begin with a task of which there is no record.
    Begin(TaskId),
    /// Tell its worker.
    Wish(TaskId, Wish),
    /// Report a task, of which there is no record, as ended.
    Report(TaskId, TaskState, String),
    /// It has ended and the managers know: drop its record.
    Forget(TaskId),
}

/// The actions that bring the node to what the managers want.
pub fn reconcile(wanted: &BTreeMap<TaskId, Task>, local: &BTreeMap<TaskId, Local>) -> Vec<Action> {
    let ids: BTreeSet<&TaskId> = wanted.keys().chain(local.keys()).collect();
    ids.into_iter().filter_map(|id| decide(id, wanted.get(id), local.get(id))).collect()
}

/// The tasks whose logs stay on disk: wanted ones, those with a record here, and what the managers ask to keep.
pub fn logs_kept(wanted: &BTreeMap<TaskId, Task>, local: &BTreeMap<TaskId, Local>, kept: &BTreeSet<TaskId>) -> BTreeSet<TaskId> {
    wanted.keys().chain(local.keys()).chain(kept).cloned().collect()
}

fn decide(id: &TaskId, wanted: Option<&Task>, local: Option<&Local>) -> Option<Action> {
    match (wanted, local) {
        (None, None) => None,
        (None, Some(local)) if local.ended => Some(Action::Forget(id.clone())),
        (None, Some(local)) => lower(id, local, Wish::Remove),
        (Some(task), Some(local)) if !task.is_wanted() => lower(id, local, Wish::Stop),
        (Some(_), Some(_)) => None,
        (Some(task), None) if task.status.state.is_terminal() => None,
        (Some(task), None) if !task.is_wanted() => {
            Some(Action::Report(id.clone(), TaskState::Shutdown, "it was not on the host when it was to be stopped".into()))
        }
        (Some(task), None) if task.status.state >= TaskState::Starting => {
            Some(Action::Report(id.clone(), TaskState::Failed, "the host restarted".into()))
        }
        (Some(_), None) => Some(Action::Begin(id.clone())),
    }
}

/// Tells the worker, unless the task has ended or was told as much already.
fn lower(id: &TaskId, local: &Local, wish: Wish) -> Option<Action> {
    (!local.ended && local.wish < wish).then(|| Action::Wish(id.clone(), wish))
}

#[cfg(test)]
mod tests {
    use rcluster_api::object::{Stamp, TaskStatus};
    use rcluster_api::spec::TaskTemplate;

    use super::*;

    fn task(id: &str, desired_state: TaskState, observed: TaskState) -> (TaskId, Task) {
        let task = Task {
            id: id.into(),
            stamp: Stamp::default(),
            service_id: "s".into(),
            service: "web".into(),
            stack: String::new(),
            slot: 1,
            name: "web.1".into(),
            template: TaskTemplate::default(),
            spec_version: 1,
            desired_state,
            restarts: 0,
            restarts_in_window: 0,
            window_start_ms: 0,
            start_after_ms: 0,
            node_id: Some("n".into()),
            node: "n1".into(),
            networks: Vec::new(),
            status: TaskStatus { state: observed, message: String::new(), since_ms: 0, containers: Vec::new(), ending: false },
            leave_ms: 0,
        };
        (id.into(), task)
    }

    fn check(wanted: &[(TaskState, TaskState)], local: &[(Wish, bool)], expected: &str) {
        let wanted = wanted.iter().map(|(desired, observed)| task("t", *desired, *observed)).collect();
        let local = local.iter().map(|(wish, ended)| ("t".into(), Local { wish: *wish, ended: *ended })).collect();
        let actions: Vec<String> = reconcile(&wanted, &local)
            .into_iter()
            .map(|action| match action {
                Action::Begin(id) => format!("begin {id}"),
                Action::Wish(id, wish) => format!("{wish:?} {id}").to_lowercase(),
                Action::Report(id, state, message) => format!("report {id} {state}: {message}"),
                Action::Forget(id) => format!("forget {id}"),
            })
            .collect();
        assert_eq!(actions.join("\n"), expected);
    }

    #[test]
    fn a_new_task_begins() {
        check(&[(TaskState::Running, TaskState::Assigned)], &[], "begin t");
    }

    #[test]
    fn a_task_seen_starting_without_a_record_here_is_lost_and_not_started_again() {
        check(&[(TaskState::Running, TaskState::Preparing)], &[], "begin t");
        check(&[(TaskState::Running, TaskState::Starting)], &[], "report t failed: the host restarted");
        check(&[(TaskState::Running, TaskState::Running)], &[], "report t failed: the host restarted");
        check(&[(TaskState::Running, TaskState::Failed)], &[], "");
    }

    #[test]
    fn a_task_with_a_record_is_left_alone_until_it_is_to_stop() {
        check(&[(TaskState::Running, TaskState::Running)], &[(Wish::Run, false)], "");
        check(&[(TaskState::Shutdown, TaskState::Running)], &[(Wish::Run, false)], "stop t");
        check(&[(TaskState::Shutdown, TaskState::Running)], &[(Wish::Stop, false)], "");
        check(&[(TaskState::Shutdown, TaskState::Running)], &[(Wish::Run, true)], "");
        check(&[(TaskState::Running, TaskState::Running)], &[(Wish::Stop, false)], "");
    }

    #[test]
    fn what_is_not_in_the_set_is_stopped_and_then_forgotten() {
        check(&[], &[(Wish::Run, false)], "remove t");
        check(&[], &[(Wish::Stop, false)], "remove t");
        check(&[], &[(Wish::Remove, false)], "");
        check(&[], &[(Wish::Remove, true)], "forget t");
    }

    #[test]
    fn a_task_to_be_stopped_that_never_was_here_is_reported_stopped() {
        check(&[(TaskState::Shutdown, TaskState::Assigned)], &[], "report t shutdown: it was not on the host when it was to be stopped");
    }
}
