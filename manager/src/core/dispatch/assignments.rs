//! What one node must run: every task of its that has not ended, and the ended ones whose logs are still wanted.

use std::collections::BTreeMap;
use std::sync::Arc;

use rcluster_api::data::Data;
use rcluster_api::id::{DataId, NodeId};
use rcluster_api::object::Task;
use rcluster_api::task::TaskState;
use rcluster_api::wire::v1;

use crate::core::state::State;

/// The node's set as of `state`, told by the leader of `term`.
pub fn assignments(state: &State, node: &NodeId, term: u64) -> v1::Assignments {
    let tasks = assigned_tasks(state, node).map(|task| v1::Task::from((**task).clone())).collect();
    let kept_tasks = kept_tasks(state, node).map(|task| task.id.to_string()).collect();
    v1::Assignments { term, revision: state.revision(), tasks, kept_tasks }
}

/// The tasks of the set.
pub fn assigned_tasks<'a>(state: &'a State, node: &NodeId) -> impl Iterator<Item = &'a Arc<Task>> {
    state.tasks_of_node(node).filter(|task| task.status.state >= TaskState::Assigned && task.may_run())
}

/// Those whose logs are still wanted.
pub fn kept_tasks<'a>(state: &'a State, node: &NodeId) -> impl Iterator<Item = &'a Arc<Task>> {
    state.tasks_of_node(node).filter(|task| task.status.state >= TaskState::Assigned && !task.may_run())
}

/// The secrets and configs that the node's tasks use, and no others.
pub fn used_data(state: &State, node: &NodeId) -> BTreeMap<DataId, Arc<Data>> {
    let mut used = BTreeMap::new();
    for task in state.tasks_of_node(node).filter(|task| task.may_run()) {
        let data = task.template.data().filter_map(|(kind, name)| state.find_data(kind, name));
        used.extend(data.map(|data| (data.id.clone(), data.clone())));
    }
    used
}

/// What the node is told of one of them.
pub fn assigned_data(data: &Data) -> v1::AssignedData {
    v1::AssignedData {
        kind: v1::DataKind::from(data.spec.kind).into(),
        name: data.spec.name.clone(),
        version: data.stamp.version,
        payload: data.spec.data.clone().map(Into::into),
    }
}
