//! The owner of what is known of all tasks on this node: the managers' set, a worker per task, the reports.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use prost::Message;
use rcluster_api::id::{TaskId, is_id};
use rcluster_api::object::{Task, TaskStatus};
use rcluster_api::task::TaskState;
use rcluster_api::wire::v1;
use rcluster_base::clock::unix_ms;
use rcluster_base::ledger;
use rcluster_base::scope::Scope;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tracing::{debug, error, info, warn};

use crate::core::reconcile::{Action, Local, Wish, logs_kept, reconcile};
use crate::core::status::raise;
use crate::core::task::Record;
use crate::exec::Tools;
use crate::place::{Places, read_message};
use crate::worker::Worker;

/// What the owner is told.
#[derive(Debug)]
pub enum Event {
    /// The managers' whole set for this node.
    Assignments(v1::Assignments),
    /// A worker reports.
    Status(TaskId, TaskStatus),
    /// A worker has ended: nothing of its task is left but record and logs.
    Ended(TaskId),
}

/// The report of every task that the managers are to know of.
pub type Statuses = BTreeMap<TaskId, TaskStatus>;

/// How many events may wait for the owner.
pub const EVENTS_MAX: usize = 256;

/// The owner.
#[derive(Debug)]
pub struct Agent {
    tools: Arc<Tools>,
    events: mpsc::Sender<Event>,
    statuses: watch::Sender<Statuses>,
    /// Of the set in force.
    mark: (u64, u64),
    wanted: BTreeMap<TaskId, Task>,
    kept: BTreeSet<TaskId>,
    workers: BTreeMap<TaskId, Handle>,
    scope: Scope,
}

#[derive(Debug)]
struct Handle {
    wish: watch::Sender<Wish>,
    ended: bool,
}

impl Agent {
    /// Takes up what an agent before this one, in the same boot, left: its tasks and the last set of the managers.
    pub fn restore(tools: Arc<Tools>, events: mpsc::Sender<Event>, statuses: watch::Sender<Statuses>) -> Result<Self> {
        let mut agent = Self {
            tools,
            events,
            statuses,
            mark: (0, 0),
            wanted: BTreeMap::new(),
            kept: BTreeSet::new(),
            workers: BTreeMap::new(),
            scope: Scope::new(),
        };
        let places = agent.tools.places.clone();
        let adopted = adopted(&places)?;
        remove_strangers(&places.writes(), |id| adopted.contains_key(id));
        for (id, (task, record)) in adopted {
            info!(%id, name = task.name, state = %record.state, "adopts a task");
            agent.note(&id, record.status());
            agent.work(task, record, true);
        }
        if let Some(assignments) = read_message::<v1::Assignments>(&places.assignments_file())? {
            agent.take(assignments);
        }
        Ok(agent)
    }

    /// Handles events for as long as it is polled.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            match event {
                Event::Assignments(assignments) => self.handle_assignments(assignments),
                Event::Status(id, status) => self.note(&id, status),
                Event::Ended(id) => {
                    if let Some(handle) = self.workers.get_mut(&id) {
                        handle.ended = true;
                    }
                    self.reconcile();
                }
            }
        }
    }

    fn handle_assignments(&mut self, assignments: v1::Assignments) {
        let mark = (assignments.term, assignments.revision);
        if mark < self.mark {
            warn!(?mark, in_force = ?self.mark, "refuses assignments older than those in force");
            return;
        }
        // Before anything is done by it: an agent started anew must not fall back behind it.
        if let Err(error) = ledger::write_bytes(&self.tools.places.assignments_file(), &assignments.encode_to_vec()) {
            error!(%error, "the assignments are not kept for a restart of the agent");
        }
        self.take(assignments);
    }

    fn take(&mut self, assignments: v1::Assignments) {
        let v1::Assignments { term, revision, tasks, kept_tasks } = assignments;
        debug!(term, revision, tasks = tasks.len(), "assignments");
        self.mark = (term, revision);
        self.kept = kept_tasks.into_iter().map(TaskId::from).collect();
        let mut unreadable = BTreeSet::new();
        self.wanted.clear();
        for wire in tasks {
            let id = wire.meta.as_ref().map(|meta| meta.id.clone()).unwrap_or_default();
            if !is_id(&id) {
                warn!(id, "an assignment without a proper id is not carried out");
                continue;
            }
            let id = TaskId::from(id);
            match Task::try_from(wire) {
                Ok(task) => drop(self.wanted.insert(id, task)),
                Err(error) => {
                    self.note(
                        &id,
                        status(TaskState::Rejected, format!("this agent cannot read the task: {error}; is it older than the managers?")),
                    );
                    unreadable.insert(id);
                }
            }
        }
        self.reconcile();
        let (workers, wanted) = (&self.workers, &self.wanted);
        self.statuses.send_if_modified(|statuses| {
            let before = statuses.len();
            statuses.retain(|id, _| workers.contains_key(id) || wanted.contains_key(id) || unreadable.contains(id));
            statuses.len() != before
        });
        self.sweep_logs();
    }

    fn reconcile(&mut self) {
        let local = self.local();
        for action in reconcile(&self.wanted, &local) {
            match action {
                Action::Begin(id) => {
                    if let Some(task) = self.wanted.get(&id).cloned() {
                        let record = Record::new(&task);
                        self.work(task, record, false);
                    }
                }
                Action::Wish(id, wish) => {
                    if let Some(handle) = self.workers.get(&id) {
                        info!(%id, ?wish, "task is to stop");
                        handle.wish.send_replace(wish);
                    }
                }
                Action::Report(id, state, message) => self.note(&id, status(state, message)),
                Action::Forget(id) => self.forget(&id),
            }
        }
    }

    fn local(&self) -> BTreeMap<TaskId, Local> {
        self.workers.iter().map(|(id, handle)| (id.clone(), Local { wish: *handle.wish.borrow(), ended: handle.ended })).collect()
    }

    fn work(&mut self, task: Task, record: Record, adopted: bool) {
        let (sender, wish) = watch::channel(Wish::Run);
        let id = task.id.clone();
        let worker = Worker { tools: Arc::clone(&self.tools), task: Arc::new(task), record, adopted, wish, events: self.events.clone() };
        self.workers.insert(id, Handle { wish: sender, ended: false });
        self.scope.spawn(worker.run());
    }

    fn note(&mut self, id: &TaskId, status: TaskStatus) {
        self.statuses.send_if_modified(|statuses| match raise(statuses.get(id), status) {
            Some(status) => {
                statuses.insert(id.clone(), status);
                true
            }
            None => false,
        });
    }

    fn forget(&mut self, id: &TaskId) {
        self.workers.remove(id);
        self.statuses.send_modify(|statuses| drop(statuses.remove(id)));
        let dir = self.tools.places.of_task(id).run;
        if let Err(error) = crate::image::mount::remove(&dir) {
            warn!(%id, dir = %dir.display(), %error, "cannot remove the task's record");
        }
    }

    /// Removes the logs that nobody wants any more.
    fn sweep_logs(&mut self) {
        let kept = logs_kept(&self.wanted, &self.local(), &self.kept);
        let logs = self.tools.places.logs();
        self.scope.spawn(async move {
            let swept = spawn_blocking(move || remove_strangers(&logs, |id| kept.contains(id))).await;
            if let Err(error) = swept {
                warn!(%error, "sweeping logs");
            }
        });
    }
}

fn status(state: TaskState, message: String) -> TaskStatus {
    TaskStatus { state, message, since_ms: unix_ms(), containers: Vec::new() }
}

/// The tasks that an agent before this one had, and how far each had come.
fn adopted(places: &Places) -> Result<BTreeMap<TaskId, (Task, Record)>> {
    let mut adopted = BTreeMap::new();
    for id in ids_in(&places.tasks())? {
        let task_places = places.of_task(&id);
        let task = read_message::<v1::Task>(&task_places.task_file())?;
        let record: Option<Record> = ledger::read(&task_places.record_file())?;
        match (task, record) {
            (Some(task), Some(record)) => {
                let task = Task::try_from(task).with_context(|| format!("read {}", task_places.task_file().display()))?;
                adopted.insert(id, (task, record));
            }
            // Killed between the two files, before anything was done for the task.
            _ => crate::image::mount::remove(&task_places.run).with_context(|| format!("remove {}", task_places.run.display()))?,
        }
    }
    Ok(adopted)
}

/// Removes the directories of tasks that `keep` does not know; tells what could not be removed and goes on.
fn remove_strangers(dir: &Path, keep: impl Fn(&TaskId) -> bool) {
    let ids = match ids_in(dir) {
        Ok(ids) => ids,
        Err(error) => return warn!(error = format!("{error:#}"), "cannot look for leftovers of tasks"),
    };
    for id in ids.into_iter().filter(|id| !keep(id)) {
        let path = dir.join(id.as_str());
        if let Err(error) = crate::image::mount::remove(&path) {
            warn!(path = %path.display(), %error, "cannot remove what is left of a task");
        }
    }
}

/// The entries of a directory, which need not be there, that are named by ids.
fn ids_in(dir: &Path) -> Result<Vec<TaskId>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        done => done.with_context(|| format!("list {}", dir.display()))?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry.with_context(|| format!("list {}", dir.display()))?.file_name();
        if let Some(name) = name.to_str().filter(|name| is_id(name)) {
            ids.push(TaskId::from(name));
        }
    }
    Ok(ids)
}
