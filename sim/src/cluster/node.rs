//! A node: its disk, its run directory, its kernel, and perhaps its agent's process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rcluster_agent::core::owner::{Owner, Statuses};
use rcluster_agent::core::reconcile::Wish;
use rcluster_agent::core::seek::Seek;
use rcluster_agent::core::task::{Exit, Record};
use rcluster_api::id::{NodeId, TaskId};
use rcluster_api::object::Task;
use rcluster_api::wire::v1;

use super::session::Link;
use super::{Cluster, Here};
use crate::check::Violation;

/// A container in a kernel.
#[derive(Debug)]
pub struct Container {
    pub task: Arc<Task>,
    pub is_started: bool,
    /// Kept by its monitor until someone asks.
    pub exit: Option<Exit>,
}

impl Container {
    /// Whether it has processes.
    pub fn runs(&self) -> bool {
        self.is_started && self.exit.is_none()
    }
}

/// What one task's worker is at.
#[derive(Debug)]
pub struct Worker {
    pub wish: Wish,
    pub adopted: bool,
    /// Rises with each step that takes time: the end of an earlier one is not this one's.
    pub serial: u64,
    pub is_busy: bool,
    /// What it waits in can be broken off by another wish.
    pub is_patient: bool,
    /// Waits for the end of a container.
    pub watches: bool,
    /// Waits for the managers to say that nobody sends to it.
    pub awaits: bool,
}

/// An agent's process, and what goes with it.
#[derive(Debug)]
pub struct Process {
    pub owner: Owner,
    pub statuses: Statuses,
    pub workers: BTreeMap<TaskId, Worker>,
    /// Tasks to which nobody sends any more.
    pub released: BTreeSet<TaskId>,
    pub seek: Seek,
    pub link: Link,
    /// Searches for a manager so far.
    pub attempts: u64,
}

/// A node.
#[derive(Debug)]
pub struct Agent {
    pub name: String,
    /// On the disk: how often the host was booted.
    pub incarnation: u64,
    /// Rises whenever the process ends or starts.
    pub life: u64,
    /// Its first life in this boot.
    pub booted: u64,
    pub skew_ms: i64,
    /// In the run directory: how far each task has come, and the last set.
    pub records: BTreeMap<TaskId, (Arc<Task>, Record)>,
    pub set: Option<v1::Assignments>,
    pub kernel: BTreeMap<String, Container>,
    pub process: Option<Process>,
    /// When something was last wrong with it or with its way to the managers.
    pub troubled_us: u64,
}

impl Agent {
    pub fn new(at: usize, skew_ms: i64) -> Self {
        // The first agent goes ahead, the second lags, and so on.
        let skew_ms = if at.is_multiple_of(2) { skew_ms } else { -skew_ms };
        Self {
            name: format!("n{}", at + 1),
            incarnation: 0,
            life: 0,
            booted: 0,
            skew_ms,
            records: BTreeMap::new(),
            set: None,
            kernel: BTreeMap::new(),
            process: None,
            troubled_us: 0,
        }
    }

    pub fn id(&self) -> NodeId {
        self.name.as_str().into()
    }
}

impl Cluster {
    /// An agent's process starts, and takes up what one before it in the same boot has left.
    pub(super) fn start(&mut self, at: usize, here: &mut Here<'_>) -> Result<(), Violation> {
        let agent = &mut self.agents[at];
        if agent.process.is_some() {
            return Ok(());
        }
        here.tell(|| format!("{} starts", agent.name));
        agent.life += 1;
        agent.incarnation = agent.incarnation.max(1);
        agent.troubled_us = here.now_us;
        let managers = here.checker.latest().managers().values().map(|manager| manager.addr.clone()).collect();
        let mut process = Process {
            owner: Owner::default(),
            statuses: Statuses::new(),
            workers: BTreeMap::new(),
            released: BTreeSet::new(),
            seek: Seek::new(managers),
            link: Link::None,
            attempts: 0,
        };
        for (id, (task, record)) in &agent.records {
            process.owner.adopt(Arc::clone(task), record.status(), &mut process.statuses);
            process.workers.insert(id.clone(), Worker::new(true));
        }
        agent.process = Some(process);
        let (adopted, set): (Vec<TaskId>, _) = (agent.records.keys().cloned().collect(), agent.set.clone());
        for id in adopted {
            self.step(at, &id, here)?;
        }
        if let Some(set) = set {
            let deeds = self.take_set(at, set, here);
            self.carry_out(at, deeds, here)?;
        }
        self.begin_to_seek(at, here);
        Ok(())
    }

    /// An agent's process ends; with the host's power, all that is in memory goes too.
    pub(super) fn stop(&mut self, at: usize, power_cut: bool, here: &mut Here<'_>) {
        self.hang_up(at, !power_cut, here);
        let agent = &mut self.agents[at];
        here.tell(|| format!("{} {}", agent.name, if power_cut { "has no power" } else { "loses its agent" }));
        agent.process = None;
        agent.life += 1;
        agent.troubled_us = here.now_us;
        if power_cut {
            agent.incarnation += 1;
            agent.booted = agent.life;
            agent.kernel.clear();
            agent.records.clear();
            agent.set = None;
        }
    }
}

impl Worker {
    pub fn new(adopted: bool) -> Self {
        Self { wish: Wish::Run, adopted, serial: 0, is_busy: false, is_patient: false, watches: false, awaits: false }
    }
}
