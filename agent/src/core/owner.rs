//! What is known of all tasks on this node, and what follows from what is heard of them.
//!
//! In: the managers' sets, the workers' reports. Out: the workers to begin, to tell and to forget, and the reports that stand. Never:
//! goes back to an older set, or ends a task because there is no set yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rcluster_api::id::{TaskId, is_id};
use rcluster_api::object::{Task, TaskStatus};
use rcluster_api::task::TaskState;
use rcluster_api::wire::convert::WireError;
use rcluster_api::wire::v1;

use super::reconcile::{Action, Local, Wish, logs_kept, reconcile};
use super::status::raise;

/// The report of every task that the managers are to know of.
pub type Statuses = BTreeMap<TaskId, TaskStatus>;

/// A task that has a worker.
#[derive(Debug)]
struct Known {
    task: Arc<Task>,
    local: Local,
}

/// The tasks of this node.
#[derive(Debug, Default)]
pub struct Owner {
    /// Of the set in force; `None` until there is one, and then nothing is stopped for not being in it.
    mark: Option<(u64, u64)>,
    wanted: BTreeMap<TaskId, Task>,
    kept: BTreeSet<TaskId>,
    known: BTreeMap<TaskId, Known>,
}

/// What is to be done with a task's worker.
#[derive(Debug, Clone, PartialEq)]
pub enum Deed {
    /// It is to be made; there is no record of the task.
    Begin(Arc<Task>),
    /// It is to be told.
    Tell(TaskId, Wish),
    /// Its record is to go.
    Forget(TaskId),
}

/// Something of a set that cannot be carried out as it is.
#[derive(Debug)]
pub enum Complaint {
    /// The text that should have been an id.
    NoId(String),
    /// It goes on as it was: an agent that is behind must not stop what it does not understand.
    GoesOn(TaskId, WireError),
}

impl Owner {
    /// A task whose worker goes on where one before it was.
    pub fn adopt(&mut self, task: Arc<Task>, status: TaskStatus, statuses: &mut Statuses) {
        note(&task.id, status, statuses);
        self.know(task);
    }

    fn know(&mut self, task: Arc<Task>) {
        self.known.insert(task.id.clone(), Known { task, local: Local { wish: Wish::Run, ended: false } });
    }

    /// The mark of the set in force, if that is newer than `set`.
    pub fn newer_than(&self, set: &v1::Assignments) -> Option<(u64, u64)> {
        self.mark.filter(|in_force| (set.term, set.revision) < *in_force)
    }

    /// The managers' whole set for this node, which is not older than the one in force.
    pub fn take(&mut self, set: v1::Assignments, now_ms: u64, statuses: &mut Statuses) -> (Vec<Deed>, Vec<Complaint>) {
        let v1::Assignments { term, revision, tasks, kept_tasks } = set;
        self.mark = Some((term, revision));
        self.kept = kept_tasks.into_iter().map(TaskId::from).collect();
        let (mut unreadable, mut complaints) = (BTreeSet::new(), Vec::new());
        self.wanted.clear();
        for wire in tasks {
            let id = wire.meta.as_ref().map(|meta| meta.id.clone()).unwrap_or_default();
            if !is_id(&id) {
                complaints.push(Complaint::NoId(id));
                continue;
            }
            let id = TaskId::from(id);
            match Task::try_from(wire) {
                Ok(task) => drop(self.wanted.insert(id, task)),
                Err(error) if let Some(known) = self.known.get(&id) => {
                    self.wanted.insert(id.clone(), Task::clone(&known.task));
                    complaints.push(Complaint::GoesOn(id, error));
                }
                Err(error) => {
                    let why = format!("this agent cannot read the task: {error}; is it older than the managers?");
                    note(&id, status(TaskState::Rejected, why, now_ms), statuses);
                    unreadable.insert(id);
                }
            }
        }
        let deeds = self.reconcile(now_ms, statuses);
        statuses.retain(|id, _| self.known.contains_key(id) || self.wanted.contains_key(id) || unreadable.contains(id));
        (deeds, complaints)
    }

    /// A worker has ended: nothing of its task is left but record and logs.
    pub fn ended(&mut self, id: &TaskId, now_ms: u64, statuses: &mut Statuses) -> Vec<Deed> {
        if let Some(known) = self.known.get_mut(id) {
            known.local.ended = true;
        }
        self.reconcile(now_ms, statuses)
    }

    /// The tasks whose logs stay on disk.
    pub fn logs_kept(&self) -> BTreeSet<TaskId> {
        logs_kept(&self.wanted, &self.local(), &self.kept)
    }

    fn local(&self) -> BTreeMap<TaskId, Local> {
        self.known.iter().map(|(id, known)| (id.clone(), known.local)).collect()
    }

    fn reconcile(&mut self, now_ms: u64, statuses: &mut Statuses) -> Vec<Deed> {
        if self.mark.is_none() {
            return Vec::new();
        }
        let mut deeds = Vec::new();
        for action in reconcile(&self.wanted, &self.local()) {
            match action {
                Action::Begin(id) => {
                    if let Some(task) = self.wanted.get(&id).cloned().map(Arc::new) {
                        self.know(Arc::clone(&task));
                        deeds.push(Deed::Begin(task));
                    }
                }
                Action::Wish(id, wish) => {
                    if let Some(known) = self.known.get_mut(&id) {
                        known.local.wish = wish;
                        deeds.push(Deed::Tell(id, wish));
                    }
                }
                Action::Report(id, state, message) => drop(note(&id, status(state, message, now_ms), statuses)),
                Action::Forget(id) => {
                    self.known.remove(&id);
                    statuses.remove(&id);
                    deeds.push(Deed::Forget(id));
                }
            }
        }
        deeds
    }
}

/// Takes a report in; whether that is a change.
pub fn note(id: &TaskId, status: TaskStatus, statuses: &mut Statuses) -> bool {
    match raise(statuses.get(id), status) {
        Some(status) => {
            statuses.insert(id.clone(), status);
            true
        }
        None => false,
    }
}

fn status(state: TaskState, message: String, since_ms: u64) -> TaskStatus {
    TaskStatus { state, message, since_ms, containers: Vec::new(), ending: false }
}
