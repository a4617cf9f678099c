//! The steps of one task on a node: the agent's own decision (`task::next`), and a kernel that is made up.

use std::sync::Arc;

use rand::Rng;
use rcluster_agent::core::owner::{Deed, note};
use rcluster_agent::core::task::{Exit, Outcome, Phase, Process, Record, Step, next};
use rcluster_api::id::TaskId;
use rcluster_api::task::TaskState;

use super::node::{Container, Worker};
use super::{Cluster, Event, Here};
use crate::check::{Violation, hold};
use crate::network::exponential;

/// Longest wait of a task for its time: the clock may be set meanwhile.
const WAIT_MAX_MS: u64 = 1_000;
/// More steps at one time are a loop.
const STEPS_AT_ONCE_MAX: usize = 100;

/// A step of a task that took its time.
#[derive(Debug, Clone, Copy)]
pub enum Done {
    Pulled,
    Prepared,
    Waited,
    Created(usize),
    Started(usize),
    Withdrawn,
    Released,
    Stopped,
    Detached,
    Cleaned,
}

/// What an image's process does, by the image's name.
fn exit_of(image: &str, chance: &mut impl Rng) -> Option<(u64, Exit)> {
    let coded = |code| Exit { exit_code: Some(code), ..Exit::default() };
    match image.split(':').next().unwrap_or_default() {
        "crash" => Some((chance.random_range(0..500_000), coded(1))),
        "memory" => {
            Some((chance.random_range(0..3_000_000), Exit { exit_code: Some(137), signal: Some(9), oom_killed: true, problem: None }))
        }
        "ends" => Some((chance.random_range(0..8_000_000), coded(0))),
        _ => None,
    }
}

impl Cluster {
    /// Does what the owner of an agent's tasks says.
    pub(super) fn carry_out(&mut self, agent: usize, deeds: Vec<Deed>, here: &mut Here<'_>) -> Result<(), Violation> {
        for deed in deeds {
            let Some(process) = &mut self.agents[agent].process else { return Ok(()) };
            match deed {
                Deed::Begin(task) => {
                    process.workers.insert(task.id.clone(), Worker::new(false));
                    let (id, record) = (task.id.clone(), Record::new(&task));
                    self.agents[agent].records.insert(id.clone(), (task, record));
                    self.step(agent, &id, here)?;
                }
                Deed::Tell(id, wish) => {
                    if let Some(worker) = process.workers.get_mut(&id) {
                        worker.wish = wish;
                        if worker.is_patient || !worker.is_busy {
                            (worker.is_busy, worker.is_patient) = (false, false);
                            worker.serial += 1;
                            self.step(agent, &id, here)?;
                        }
                    }
                }
                Deed::Forget(id) => {
                    process.workers.remove(&id);
                    self.agents[agent].records.remove(&id);
                }
            }
        }
        self.report(agent, here);
        Ok(())
    }

    /// Asks for the next steps of a task, and does them up to one that takes time.
    pub(super) fn step(&mut self, agent: usize, id: &TaskId, here: &mut Here<'_>) -> Result<(), Violation> {
        for _ in 0..STEPS_AT_ONCE_MAX {
            let node = &mut self.agents[agent];
            let now_ms = Self::unix_ms(here.now_us, node.skew_ms);
            let (Some(process), Some((task, record))) = (&mut node.process, node.records.get_mut(id)) else { return Ok(()) };
            let Some(worker) = process.workers.get_mut(id).filter(|worker| !worker.is_busy) else { return Ok(()) };
            (worker.watches, worker.awaits) = (false, false);
            let step = next(record, task.start_after_ms, worker.wish, now_ms);
            let (done, mean_us, is_patient) = match step {
                Step::Raise(state) => {
                    (record.state, record.message, record.since_ms) = (state, String::new(), now_ms);
                    self.say(agent, id, here);
                    continue;
                }
                Step::Conclude(outcome) => {
                    record.outcome = Some(outcome);
                    self.say(agent, id, here);
                    continue;
                }
                Step::Await { .. } if process.released.contains(id) => {
                    record.released = true;
                    continue;
                }
                Step::Await { until_ms } => {
                    let left_ms = until_ms.saturating_sub(now_ms).min(task.leave_ms).max(1);
                    worker.serial += 1;
                    (worker.is_busy, worker.is_patient, worker.awaits) = (true, true, true);
                    let (serial, life) = (worker.serial, node.life);
                    let event = Event::Done { agent, life, task: id.clone(), serial, done: Done::Released };
                    self.later(here.now_us + left_ms * 1000, event);
                    return Ok(());
                }
                Step::Report(outcome) => {
                    here.tell(|| format!("{} {id} {}: {}", node.name, outcome.state, outcome.message));
                    (record.state, record.message, record.since_ms) = (outcome.state, outcome.message, now_ms);
                    self.say(agent, id, here);
                    continue;
                }
                Step::Watch => {
                    worker.watches = true;
                    let exits = record.containers.iter_mut().filter(|container| container.phase == Phase::Started);
                    let ended = exits.filter_map(|container| {
                        // A kernel that does not know it: it went with its monitor.
                        let exit = node.kernel.get(&container.id).map_or_else(
                            || Some(Exit { problem: Some("it is gone".to_owned()), ..Exit::default() }),
                            |kept| kept.exit.clone(),
                        );
                        exit.map(|exit| (container, exit))
                    });
                    let mut any = false;
                    for (container, exit) in ended {
                        (container.phase, container.exit, any) = (Phase::Ended, Some(exit), true);
                    }
                    if any {
                        continue;
                    }
                    return Ok(());
                }
                Step::End => {
                    let deeds = process.owner.ended(id, now_ms, &mut process.statuses);
                    return self.carry_out(agent, deeds, here);
                }
                Step::Create(index) => {
                    // Before the runtime is asked: whoever comes after must know that there may be something.
                    record.containers[index].phase = Phase::Creating;
                    (Done::Created(index), self.plan.step_us, false)
                }
                Step::Wait { until_ms } => {
                    let left_ms = until_ms.saturating_sub(now_ms).clamp(1, WAIT_MAX_MS);
                    worker.serial += 1;
                    (worker.is_busy, worker.is_patient) = (true, true);
                    let (serial, life) = (worker.serial, node.life);
                    let event = Event::Done { agent, life, task: id.clone(), serial, done: Done::Waited };
                    self.later(here.now_us + left_ms * 1000, event);
                    return Ok(());
                }
                Step::Pull => (Done::Pulled, self.plan.step_us * 3, true),
                Step::Prepare => (Done::Prepared, self.plan.step_us, false),
                Step::Start(index) => (Done::Started(index), self.plan.step_us, false),
                Step::Withdraw => (Done::Withdrawn, self.plan.step_us / 4, false),
                Step::Stop => (Done::Stopped, self.plan.step_us * 4, false),
                Step::Detach => (Done::Detached, self.plan.step_us / 4, false),
                Step::Clean => (Done::Cleaned, self.plan.step_us, false),
            };
            worker.serial += 1;
            (worker.is_busy, worker.is_patient) = (true, is_patient);
            let (serial, life) = (worker.serial, node.life);
            let at_us = here.now_us + exponential(&mut self.chance, mean_us.max(1));
            self.later(at_us, Event::Done { agent, life, task: id.clone(), serial, done });
            return Ok(());
        }
        Err(Violation(format!("the worker of {id} on {} goes in a circle", self.agents[agent].name)))
    }

    /// Reports a task as its record has it.
    fn say(&mut self, agent: usize, id: &TaskId, here: &Here<'_>) {
        let node = &mut self.agents[agent];
        let (Some(process), Some((_, record))) = (&mut node.process, node.records.get(id)) else { return };
        if note(id, record.status(), &mut process.statuses) {
            self.report(agent, here);
        }
    }

    /// A step is done, if its process still lives and its worker still waits for it.
    pub(super) fn done(
        &mut self,
        agent: usize,
        life: u64,
        id: &TaskId,
        serial: u64,
        done: Done,
        here: &mut Here<'_>,
    ) -> Result<(), Violation> {
        let node = &mut self.agents[agent];
        if node.life != life {
            // What the kernel was asked for may come about although the agent has gone.
            let comes_about = life >= node.booted && self.chance.random_bool(0.5);
            return match done {
                Done::Created(index) if comes_about && !self.has(agent, id, index) => {
                    self.create(agent, id, index);
                    Ok(())
                }
                Done::Started(index) if comes_about => self.run_late(agent, id, index, here),
                _ => Ok(()),
            };
        }
        let (Some(process), Some((task, record))) = (&mut node.process, node.records.get_mut(id)) else { return Ok(()) };
        let Some(worker) = process.workers.get_mut(id).filter(|worker| worker.serial == serial) else { return Ok(()) };
        (worker.is_busy, worker.is_patient) = (false, false);
        let adopted = worker.adopted;
        match done {
            Done::Waited => {}
            Done::Pulled if self.chance.random_bool(self.plan.pull_failures) => {
                let outcome = Outcome { state: TaskState::Failed, message: "no registry answers".to_owned() };
                record.outcome = Some(outcome);
            }
            Done::Pulled => record.pulled = true,
            Done::Prepared => record.prepared = true,
            Done::Withdrawn => {
                record.withdrawn = true;
                record.stop_after_ms = Self::unix_ms(here.now_us, node.skew_ms) + task.leave_ms;
            }
            Done::Released => record.released = true,
            Done::Detached => record.detached = true,
            Done::Cleaned => {
                let containers = record.containers.iter().map(|container| container.id.clone());
                for container in containers.collect::<Vec<_>>() {
                    node.kernel.remove(&container);
                }
                record.cleaned = true;
            }
            Done::Stopped => {
                for container in record.containers.iter_mut().filter(|container| container.may_live()) {
                    container.phase = Phase::Ended;
                    node.kernel.remove(&container.id);
                }
            }
            Done::Created(index) => {
                let container = &mut record.containers[index];
                (container.phase, container.process) = (Phase::Created, Some(Process { pid: 7, start_ticks: here.now_us }));
                self.create(agent, id, index);
            }
            Done::Started(index) => {
                let now_ms = Self::unix_ms(here.now_us, node.skew_ms);
                let container = &mut record.containers[index];
                (container.phase, container.started_at_ms) = (Phase::Started, now_ms);
                let name = container.id.clone();
                // An agent before this one may have started it, and not have written that down.
                if !(adopted && node.kernel.get(&name).is_some_and(|kept| kept.is_started)) {
                    self.run(agent, &name, here)?;
                }
            }
        }
        self.step(agent, id, here)
    }

    /// Nobody sends to the task any more.
    pub(super) fn release(&mut self, agent: usize, id: &TaskId, here: &mut Here<'_>) -> Result<(), Violation> {
        let Some(process) = &mut self.agents[agent].process else { return Ok(()) };
        process.released.insert(id.clone());
        let Some(worker) = process.workers.get_mut(id).filter(|worker| worker.awaits) else { return Ok(()) };
        (worker.is_busy, worker.is_patient) = (false, false);
        worker.serial += 1;
        self.step(agent, id, here)
    }

    /// Whether a kernel has this container of a task.
    fn has(&self, agent: usize, id: &TaskId, index: usize) -> bool {
        let node = &self.agents[agent];
        node.records.get(id).is_some_and(|(_, record)| node.kernel.contains_key(&record.containers[index].id))
    }

    fn create(&mut self, agent: usize, id: &TaskId, index: usize) {
        let node = &mut self.agents[agent];
        let Some((task, record)) = node.records.get(id) else { return };
        let container = Container { task: Arc::clone(task), is_started: false, exit: None };
        node.kernel.insert(record.containers[index].id.clone(), container);
    }

    /// A container's process begins although the agent that has asked for it is gone, unless another has seen to it.
    fn run_late(&mut self, agent: usize, id: &TaskId, index: usize, here: &mut Here<'_>) -> Result<(), Violation> {
        let node = &self.agents[agent];
        let Some(name) = node.records.get(id).map(|(_, record)| record.containers[index].id.clone()) else { return Ok(()) };
        let waits = node.kernel.get(&name).is_some_and(|container| !container.is_started);
        if waits { self.run(agent, &name, here) } else { Ok(()) }
    }

    /// A container's process begins.
    fn run(&mut self, agent: usize, name: &str, here: &mut Here<'_>) -> Result<(), Violation> {
        let node = &mut self.agents[agent];
        let Some(container) = node.kernel.get_mut(name) else { return Ok(()) };
        container.is_started = true;
        let task = Arc::clone(&container.task);
        let image = task.template.containers.first().map(|spec| spec.image.clone()).unwrap_or_default();
        here.tell(|| format!("{} runs {} of slot {} ({image})", node.name, task.id, task.name));
        self.counts.starts += 1;
        let incarnation = node.incarnation;
        self.check_start(agent, &task, here)?;
        if let Some((after_us, exit)) = exit_of(&image, &mut self.chance) {
            let at_us = here.now_us + after_us;
            self.later(at_us, Event::Exit { agent, incarnation, container: name.to_owned() });
            self.exits.insert((agent, name.to_owned()), exit);
        }
        Ok(())
    }

    /// A container ends by itself.
    pub(super) fn exit(&mut self, agent: usize, incarnation: u64, name: &str, here: &mut Here<'_>) -> Result<(), Violation> {
        let node = &mut self.agents[agent];
        let Some(container) = node.kernel.get_mut(name).filter(|container| container.runs() && node.incarnation == incarnation) else {
            return Ok(());
        };
        let exit = self.exits.remove(&(agent, name.to_owned()));
        hold!(exit.is_some(), "{name} ends twice");
        container.exit = exit;
        let (id, task) = (container.task.id.clone(), Arc::clone(&container.task));
        self.rules.ended(&task, here.now_us);
        let watches = node.process.as_ref().and_then(|process| process.workers.get(&id)).is_some_and(|worker| worker.watches);
        if watches { self.step(agent, &id, here) } else { Ok(()) }
    }
}
