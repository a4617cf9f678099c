//! The owner of what is known of all tasks on this node: the managers' set, a worker per task, the reports.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use prost::Message;
use rcluster_api::id::{TaskId, is_id};
use rcluster_api::object::{Task, TaskStatus};
use rcluster_api::wire::v1;
use rcluster_base::clock::unix_ms;
use rcluster_base::ledger;
use rcluster_base::scope::Scope;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tracing::{debug, error, info, warn};

use crate::core::owner::{Complaint, Deed, Owner, Statuses, note};
use crate::core::reconcile::Wish;
use crate::core::task::Record;
use crate::exec::Tools;
use crate::host;
use crate::image::mount::remove;
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

/// How many events may wait for the owner.
pub const EVENTS_MAX: usize = 256;

/// The owner.
#[derive(Debug)]
pub struct Agent {
    tools: Arc<Tools>,
    events: mpsc::Sender<Event>,
    statuses: watch::Sender<Statuses>,
    owner: Owner,
    /// What each worker is told.
    workers: BTreeMap<TaskId, watch::Sender<Wish>>,
    scope: Scope,
}

impl Agent {
    /// Takes up what an agent before this one, in the same boot, left: its tasks and the last set of the managers.
    pub fn restore(tools: Arc<Tools>, events: mpsc::Sender<Event>, statuses: watch::Sender<Statuses>) -> Result<Self> {
        let mut agent = Self { tools, events, statuses, owner: Owner::default(), workers: BTreeMap::new(), scope: Scope::new() };
        let places = agent.tools.places.clone();
        let adopted = adopted(&places)?;
        let mut living = adopted.values().filter(|(_, record)| !record.has_ended()).map(|(task, _)| task);
        if let Some(task) = living.find(|task| !agent.tools.knows_runtime(task)) {
            let runtime = &task.template.runtime;
            bail!("task {} runs here under the OCI runtime {runtime}: start the agent with --add-runtime {runtime}=PATH", task.name);
        }
        agent.remove_later(strangers(&places.writes(), |id| adopted.contains_key(id)));
        remove_cgroups(&agent.tools.cgroup_parent, |id| adopted.contains_key(id));
        for (id, (task, record)) in adopted {
            info!(%id, name = task.name, state = %record.state, "adopts a task");
            let (task, owner) = (Arc::new(task), &mut agent.owner);
            agent.statuses.send_modify(|statuses| owner.adopt(Arc::clone(&task), record.status(), statuses));
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
                Event::Status(id, status) => drop(self.statuses.send_if_modified(|statuses| note(&id, status, statuses))),
                Event::Ended(id) => {
                    let deeds = self.change(|owner, statuses| owner.ended(&id, unix_ms(), statuses));
                    self.carry_out(deeds);
                }
            }
        }
    }

    fn handle_assignments(&mut self, assignments: v1::Assignments) {
        if let Some(in_force) = self.owner.newer_than(&assignments) {
            let mark = (assignments.term, assignments.revision);
            warn!(?mark, ?in_force, "refuses assignments older than those in force");
            return;
        }
        // Before anything is done by it: an agent started anew must not fall back behind it.
        if let Err(error) = ledger::write_bytes(&self.tools.places.assignments_file(), &assignments.encode_to_vec()) {
            error!(%error, "the assignments are not kept for a restart of the agent");
        }
        self.take(assignments);
    }

    fn take(&mut self, set: v1::Assignments) {
        debug!(term = set.term, revision = set.revision, tasks = set.tasks.len(), "assignments");
        let (deeds, complaints) = self.change(|owner, statuses| owner.take(set, unix_ms(), statuses));
        for complaint in complaints {
            match complaint {
                Complaint::NoId(id) => warn!(id, "an assignment without a proper id is not carried out"),
                Complaint::GoesOn(id, error) => warn!(%id, %error, "cannot read what the managers say of a task; it goes on as it was"),
            }
        }
        self.carry_out(deeds);
        self.sweep_logs();
    }

    /// Lets the owner change the reports; whoever waits for them is told if it has.
    fn change<T>(&mut self, change: impl FnOnce(&mut Owner, &mut Statuses) -> T) -> T {
        let mut statuses = self.statuses.borrow().clone();
        let done = change(&mut self.owner, &mut statuses);
        self.statuses.send_if_modified(|before| {
            let differ = *before != statuses;
            *before = statuses;
            differ
        });
        done
    }

    fn carry_out(&mut self, deeds: Vec<Deed>) {
        for deed in deeds {
            match deed {
                Deed::Begin(task) => {
                    let record = Record::new(&task);
                    self.work(task, record, false);
                }
                Deed::Tell(id, wish) => {
                    if let Some(worker) = self.workers.get(&id) {
                        info!(%id, ?wish, "task is to stop");
                        worker.send_replace(wish);
                    }
                }
                Deed::Forget(id) => self.forget(&id),
            }
        }
    }

    fn work(&mut self, task: Arc<Task>, record: Record, adopted: bool) {
        let (sender, wish) = watch::channel(Wish::Run);
        self.workers.insert(task.id.clone(), sender);
        let worker =
            Worker { tools: Arc::clone(&self.tools), task, record, adopted, wish, events: self.events.clone(), checks: BTreeMap::new() };
        self.scope.spawn(worker.run());
    }

    fn forget(&mut self, id: &TaskId) {
        self.workers.remove(id);
        let dir = self.tools.places.of_task(id).run;
        if let Err(error) = remove(&dir) {
            warn!(%id, dir = %dir.display(), %error, "cannot remove the task's record");
        }
    }

    /// Removes the logs that nobody wants any more.
    fn sweep_logs(&mut self) {
        let kept = self.owner.logs_kept();
        self.remove_later(strangers(&self.tools.places.logs(), |id| kept.contains(id)));
    }

    /// Removes trees that nobody is going to use again.
    fn remove_later(&mut self, paths: Vec<PathBuf>) {
        if paths.is_empty() {
            return;
        }
        let removal = spawn_blocking(move || {
            for path in paths {
                if let Err(error) = remove(&path) {
                    warn!(path = %path.display(), %error, "cannot remove what is left of a task");
                }
            }
        });
        self.scope.spawn(async move {
            if let Err(error) = removal.await {
                warn!(%error, "removing what is left of tasks");
            }
        });
    }
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
            _ => remove(&task_places.run).with_context(|| format!("remove {}", task_places.run.display()))?,
        }
    }
    Ok(adopted)
}

/// The directories of tasks that `keep` does not know. Listed by the owner itself, so that a task that begins later is not among them.
fn strangers(dir: &Path, keep: impl Fn(&TaskId) -> bool) -> Vec<PathBuf> {
    match ids_in(dir) {
        Ok(ids) => ids.into_iter().filter(|id| !keep(id)).map(|id| dir.join(id.as_str())).collect(),
        Err(error) => {
            warn!(error = format!("{error:#}"), "cannot look for what is left of tasks");
            Vec::new()
        }
    }
}

/// Removes the empty cgroups of tasks that `keep` does not know: they outlive a crash of the host's processes.
fn remove_cgroups(parent: &str, keep: impl Fn(&TaskId) -> bool) {
    let removed = host::cgroups_in(parent).and_then(|names| {
        for name in names.into_iter().filter(|name| is_id(name) && !keep(&TaskId::from(name.as_str()))) {
            let task = format!("{parent}/{name}");
            for container in host::cgroups_in(&task)? {
                host::remove_cgroup(&format!("{task}/{container}"))?;
            }
            host::remove_cgroup(&task)?;
        }
        Ok(())
    });
    if let Err(error) = removed {
        warn!(error = format!("{error:#}"), "cannot remove the cgroups that are left of tasks");
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
