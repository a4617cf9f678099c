//! Which tasks there should be: one live task in each slot of each service.
//!
//! In: services, their tasks, the nodes. Out: tasks created, tasks asked to stop, tasks and services that can go. A slot of a replicated
//! service is a number, of a global one a node. Never: chooses a node for a replicated task (schedule does) or an address (allocate
//! does).

mod restart;
mod service;
mod slot;

use rcluster_api::object::{Kind, Object, Task};

use super::plan::{ChangeSet, Ctx, Dirty, Note};
use super::state::{Draft, State};

/// How long a task lost with its node is remembered before its address is given up, when the node never comes back.
pub const ORPHAN_KEPT_MS: u64 = 24 * 3600 * 1000;

/// Looks at every dirty service.
pub fn pass(draft: &Draft, dirty: &Dirty, ctx: &mut Ctx) -> ChangeSet {
    let mut changes = ChangeSet::default();
    for id in dirty.services(draft.state()) {
        if changes.is_full() {
            changes.unfinished.insert(id.clone());
            continue;
        }
        match draft.state().services().get(id) {
            Some(service) => service::reconcile(draft.state(), service, ctx, &mut changes),
            None => reap_without_service(draft.state().tasks_of_service(id).map(AsRef::as_ref), ctx.now_ms, &mut changes),
        }
        if changes.is_full() {
            changes.unfinished.insert(id.clone());
        }
    }
    if dirty.all {
        let strays = draft.state().tasks().values().filter(|task| !draft.state().services().contains_key(&task.service_id));
        reap_without_service(strays.map(AsRef::as_ref), ctx.now_ms, &mut changes);
    }
    remove_networks(draft.state(), &mut changes);
    changes
}

/// A network that is to go goes when no task can use it any more.
fn remove_networks(state: &State, changes: &mut ChangeSet) {
    for network in state.networks().values().filter(|network| network.removing) {
        let in_use = state
            .tasks()
            .values()
            .any(|task| super::allocate::holds_addresses(task) && task.template.networks.iter().any(|a| a.network == network.spec.name));
        if !in_use {
            changes.deletes.push((Kind::Network, network.id.to_string()));
            changes.notes.push(Note {
                kind: Kind::Network,
                object_id: network.id.to_string(),
                object: network.spec.name.clone(),
                reason: "Removed",
                message: "nothing uses it any more".to_owned(),
            });
        }
    }
}

/// A task that is over goes, once its addresses have rested.
fn forget(task: &Task, now_ms: u64, changes: &mut ChangeSet) {
    match slot::kept_until_ms(task, now_ms) {
        Some(until_ms) => changes.wake_at(until_ms),
        None => changes.deletes.push((Kind::Task, task.id.to_string())),
    }
}

/// Tasks whose service has gone stay only while a lost node may still run them, or their addresses rest.
fn reap_without_service<'a>(tasks: impl Iterator<Item = &'a Task>, now_ms: u64, changes: &mut ChangeSet) {
    for task in tasks {
        if changes.is_full() {
            changes.unfinished.insert(task.service_id.clone());
        } else if slot::is_over(task, now_ms) {
            forget(task, now_ms, changes);
        } else if task.is_wanted() {
            changes.puts.push(Object::Task(Box::new(slot::leaving(task, rcluster_api::task::TaskState::Removed))));
        }
    }
}
