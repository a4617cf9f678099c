//! The owner of one task on this node: asks `core::task` for the next step, does it, keeps the record, reports.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use prost::Message;
use rcluster_api::object::Task;
use rcluster_api::task::TaskState;
use rcluster_api::wire::v1;
use rcluster_base::backoff::Backoff;
use rcluster_base::clock::unix_ms;
use rcluster_base::ledger::{self, LedgerError};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{Instrument, error, info, info_span, warn};

use crate::agent::Event;
use crate::core::health::Checks;
use crate::core::reconcile::Wish;
use crate::core::task::{Exit, Network, Outcome, Phase, Record, Step, next};
use crate::exec::Tools;
use crate::exec::pod::{self, StepError};
use crate::health::{self, Change, Place};
use crate::image::pull::Progress;

/// A task and how far it has come.
#[derive(Debug)]
pub struct Worker {
    pub tools: Arc<Tools>,
    pub task: Arc<Task>,
    pub record: Record,
    /// The record is of an agent before this one.
    pub adopted: bool,
    pub wish: watch::Receiver<Wish>,
    pub events: mpsc::Sender<Event>,
    /// Of the containers that are checked, by their place in the pod.
    pub checks: BTreeMap<usize, Checks>,
}

/// What a running task is watched for.
enum Happened {
    Ended(Exit),
    Health(Change),
}

/// The clock may be set while a task waits for its time: it is looked at again this often.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Whatever ends does not wait longer for netd to stop naming it.
const WITHDRAW: Duration = Duration::from_millis(200);
/// A connection that was begun before the last node stopped sending is served for so long, before a program is stopped that may end with it open: a
/// client that has to wait for a processor has asked by then.
const UNDER_WAY: Duration = Duration::from_millis(200);
/// For so long the kernel goes on with what a pod's processes have left to be sent.
const LINGER: Duration = Duration::from_secs(1);
/// A report of the end does not wait longer for netd; what is left is done with the cleaning.
const DETACH: Duration = Duration::from_secs(2);

impl Worker {
    /// Runs until nothing of the task is left on the node but its record and logs.
    pub fn run(self) -> impl Future<Output = ()> + Send {
        let span = info_span!("task", id = %self.task.id, name = self.task.name);
        self.work().instrument(span)
    }

    async fn work(mut self) {
        if !self.adopted
            && let Err(error) = self.first_save()
        {
            self.conclude(failure(&error)).await;
        }
        loop {
            let wish = *self.wish.borrow_and_update();
            match next(&self.record, self.task.start_after_ms, wish, unix_ms()) {
                Step::Raise(state) => self.report(state, String::new()).await,
                Step::Conclude(outcome) => self.conclude(outcome).await,
                Step::Pull => self.pull().await,
                Step::Prepare => self.prepare().await,
                Step::Wait { until_ms } => self.wait_until(until_ms).await,
                Step::Create(index) => {
                    let file = self.tools.places.of_task(&self.task.id).record_file();
                    let save = |record: &Record| ledger::write(&file, record);
                    let created = pod::create(&self.tools, &self.task, &mut self.record, index, save).await;
                    self.check(created).await;
                }
                Step::Start(index) => {
                    let started = pod::start(&self.tools, &self.task, &mut self.record, index, self.adopted).await;
                    self.check(started).await;
                }
                Step::Watch => self.watch().await,
                Step::Withdraw => self.withdraw().await,
                Step::Await { until_ms } => self.await_release(until_ms).await,
                Step::Stop => {
                    pod::stop(&self.tools, &self.task, &mut self.record).await;
                    self.save();
                }
                Step::Detach => self.detach().await,
                Step::Report(outcome) => self.report(outcome.state, outcome.message).await,
                Step::Clean => self.clean().await,
                Step::End => break,
            }
        }
        // The owner of all tasks is gone only when the process ends.
        drop(self.events.send(Event::Ended(self.task.id.clone())).await);
    }

    /// The files that an agent after this one needs.
    fn first_save(&self) -> Result<(), StepError> {
        let places = self.tools.places.of_task(&self.task.id);
        let made = fs::create_dir_all(&places.run);
        made.map_err(|source| StepError::Io { what: "make the directory", container: self.task.name.clone(), source })?;
        let task = v1::Task::from(Task::clone(&self.task));
        ledger::write_bytes(&places.task_file(), &task.encode_to_vec())?;
        ledger::write(&places.record_file(), &self.record)?;
        Ok(())
    }

    async fn report(&mut self, state: TaskState, message: String) {
        (self.record.state, self.record.message, self.record.since_ms) = (state, message, unix_ms());
        self.look_after_health();
        match state {
            TaskState::Failed | TaskState::Rejected => warn!(%state, message = self.record.message, "task"),
            _ => info!(%state, "task"),
        }
        self.tell().await;
    }

    /// Keeps and reports how things stand.
    async fn tell(&self) {
        self.save();
        let event = Event::Status(self.task.id.clone(), self.record.status());
        // Without an owner nobody wants to know.
        drop(self.events.send(event).await);
    }

    /// From now on the task ends; the managers hear it before anything is done to that end.
    async fn conclude(&mut self, outcome: Outcome) {
        self.record.outcome = Some(outcome);
        self.tell().await;
    }

    async fn check(&mut self, done: Result<(), StepError>) {
        match done {
            Ok(()) => self.save(),
            Err(error) => self.conclude(failure(&error)).await,
        }
    }

    fn save(&self) {
        let file = self.tools.places.of_task(&self.task.id).record_file();
        if let Err(error) = ledger::write::<Record>(&file, &self.record) {
            keep_going(&error);
        }
    }

    /// Brings the images to the node and tells how far that has come; breaks off when the wish changes.
    async fn pull(&mut self) {
        let told = watch::Sender::new(Progress::default());
        let mut progress = told.subscribe();
        let (tools, task) = (Arc::clone(&self.tools), Arc::clone(&self.task));
        let mut pulling = std::pin::pin!(pod::pull(&tools, &task, &told));
        let pulled = loop {
            tokio::select! {
                pulled = &mut pulling => break pulled,
                _ = self.wish.changed() => return,
                Ok(()) = progress.changed() => {
                    let message = progress.borrow_and_update().to_string();
                    self.say(message).await;
                }
            }
        };
        self.record.pulled = pulled.is_ok();
        self.say(String::new()).await;
        self.check(pulled).await;
    }

    /// Makes all that the containers need, once the managers have sent the secrets and configs; breaks the wait off when the wish changes.
    async fn prepare(&mut self) {
        let (tools, task) = (Arc::clone(&self.tools), Arc::clone(&self.task));
        let data = match tools.data.of(&task.template) {
            Ok(data) => data,
            Err((kind, name)) => {
                self.say(format!("waits for the managers to send {} {name}", kind.as_str())).await;
                tokio::select! {
                    data = tools.data.wait_for(&task.template) => data,
                    _ = self.wish.changed() => return,
                }
            }
        };
        self.say(String::new()).await;
        let prepared = pod::prepare(&tools, &task, &data, &mut self.record).await;
        self.check(prepared).await;
    }

    /// Reports the state as it is with another message.
    async fn say(&mut self, message: String) {
        if self.record.message != message {
            self.record.message = message;
            self.tell().await;
        }
    }

    async fn wait_until(&mut self, until_ms: u64) {
        let left = Duration::from_millis(until_ms.saturating_sub(unix_ms())).min(WAIT_MAX);
        tokio::select! {
            () = sleep(left) => {}
            // No sender: the process is ending, and this task with it.
            _ = self.wish.changed() => {}
        }
    }

    /// Waits for the end of a container, another health, or another wish.
    async fn watch(&mut self) {
        self.look_after_health();
        let mut exits = exits(&self.tools, &self.task, &self.record);
        let mut changes: FuturesUnordered<_> = self
            .checks
            .iter_mut()
            .filter_map(|(index, checks)| {
                let container = &self.record.containers[*index];
                let pid = container.process.filter(|_| container.phase == Phase::Started)?.pid;
                let ip = self.task.networks.first().map(|network| network.ip);
                let (tools, task) = (&self.tools, &self.task);
                let places = tools.places.of_task(&task.id).of_container(&container.name);
                let (pid_file, pause) = (places.check_pid_file(), places.pause());
                let monitor = tools.runtime(task).foreign.is_none().then(|| places.monitor_socket());
                let place = Place { container: container.id.clone(), pid, ip, monitor, pid_file, pause };
                Some(async move { (*index, health::change(tools.runtime(task), &place, checks).await) })
            })
            .collect();
        let happened = tokio::select! {
            Some((index, exit)) = exits.next() => Some((index, Happened::Ended(exit))),
            Some((index, change)) = changes.next() => Some((index, Happened::Health(change))),
            _ = self.wish.changed() => None,
        };
        drop((exits, changes));
        let Some((index, happened)) = happened else { return };
        let container = &mut self.record.containers[index];
        match happened {
            Happened::Ended(exit) => {
                (container.phase, container.exit) = (Phase::Ended, Some(exit));
                // Nothing is to be sent to the pod any more, however long its other containers take to stop.
                self.tell().await;
            }
            Happened::Health(Change { health, output }) => {
                info!(container = container.name, ?health, output, "health");
                (container.health, container.health_output) = (health, output);
                self.tell().await;
            }
        }
    }

    /// Containers whose image or spec asks for it are checked from their start on.
    fn look_after_health(&mut self) {
        let started = self.record.containers.iter_mut().enumerate().filter(|(_, container)| container.phase == Phase::Started);
        for (index, container) in started {
            if let (Some(check), None) = (&container.healthcheck, self.checks.get(&index)) {
                let checks = Checks::new(check.clone(), container.started_at_ms, container.health);
                container.health = checks.health();
                self.checks.insert(index, checks);
            }
        }
    }

    async fn withdraw(&mut self) {
        match timeout(WITHDRAW, self.tools.netd.leave(&self.task.id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "pods here find the task until the managers' next view"),
            Err(_) => warn!("netd is slow: pods here find the task until the managers' next view"),
        }
        self.record.withdrawn = true;
        self.record.stop_after_ms = unix_ms().saturating_add(self.task.leave_ms);
        self.save();
    }

    /// Leaves the task alone until no node sends to it any more and what was begun has been served, or the time is over; breaks off when a
    /// container ends or the wish changes.
    async fn await_release(&mut self, until_ms: u64) {
        // The clock may have been set: never longer than the service gives.
        let left = Duration::from_millis(until_ms.saturating_sub(unix_ms()).min(self.task.leave_ms));
        let mut exits = exits(&self.tools, &self.task, &self.record);
        let (id, mut released) = (&self.task.id, self.tools.released.subscribe());
        let ended = tokio::select! {
            Some(ended) = exits.next() => Some(ended),
            () = async {
                drop(released.wait_for(|released| released.contains(id)).await);
                sleep(UNDER_WAY).await;
            } => None,
            () = sleep(left) => {
                if !self.tools.released.borrow().contains(id) {
                    let waited_ms = self.task.leave_ms;
                    info!(waited_ms, "not every node has confirmed that it sends nothing more; the task is stopped all the same");
                }
                None
            }
            _ = self.wish.changed() => return,
        };
        drop(exits);
        if let Some((index, exit)) = ended {
            let container = &mut self.record.containers[index];
            (container.phase, container.exit) = (Phase::Ended, Some(exit));
        }
        self.record.released = true;
        self.save();
    }

    async fn detach(&mut self) {
        match timeout(DETACH, pod::detach(&self.tools, &self.task, LINGER)).await {
            Ok(Ok(())) => self.record.network = Network::default(),
            Ok(Err(error)) => warn!(%error, "the pod's network is given back later"),
            Err(_) => warn!("netd is slow: the pod's network is given back later"),
        }
        self.record.detached = true;
        self.save();
    }

    async fn clean(&mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        let mut complained = false;
        while let Err(problems) = pod::clean(&self.tools, &self.task, &self.record).await {
            if !std::mem::replace(&mut complained, true) {
                warn!(problems, "not everything of the task could be removed; it is tried again");
            }
            sleep(backoff.delay()).await;
        }
        self.record.cleaned = true;
        self.save();
    }
}

/// The ends of the containers that run, by their place in the pod.
fn exits<'a>(tools: &'a Tools, task: &'a Task, record: &'a Record) -> FuturesUnordered<impl Future<Output = (usize, Exit)> + 'a> {
    let started = record.containers.iter().enumerate().filter(|(_, container)| container.phase == Phase::Started);
    started.map(|(index, container)| async move { (index, pod::ended(tools, task, container).await) }).collect()
}

/// How the task ends because of this error.
fn failure(error: &StepError) -> Outcome {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        source = cause.source();
    }
    Outcome { state: if error.is_final() { TaskState::Rejected } else { TaskState::Failed }, message }
}

fn keep_going(error: &LedgerError) {
    error!(%error, "the task's record is not kept: an agent started now would not know how far it has come");
}
