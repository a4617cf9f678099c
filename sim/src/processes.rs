//! The managers' processes: when they start and end, the rounds in which they run, and what comes out of these.

use std::fmt;

use raft::eraftpb::Message;
use rand::Rng;
use rcluster_manager::core::state::encode_snapshot;
use rcluster_manager::store::{Fatal, Introduction, LogError, Standing, StoreError};

use crate::chance::mix;
use crate::check::{Violation, hold};
use crate::host::{Host, Out, Process, Round, Sent};
use crate::network::exponential;
use crate::world::{Event, World};

/// A snapshot travels so much longer than a small message, and its end is told so much later at most.
const SNAPSHOT_TIMES: u64 = 5;
/// What a job beside a process takes, at the mean.
const JOB_US: u64 = 5_000;
/// When a process is started again that could not start.
const AGAIN_US: u64 = 1_000_000;
/// How long a process takes to start.
const START_US: u64 = 50_000;

impl World {
    /// Starts a host's process, if it has a manager and none runs.
    pub fn start(&mut self, host: usize) -> Result<(), Violation> {
        let Host { manager: Some(manager), clock, process, life, frozen_until_us, .. } = &mut self.hosts[host] else { return Ok(()) };
        if process.is_some() {
            return Ok(());
        }
        *life += 1;
        *frozen_until_us = 0;
        let (life, clock, config) = (*life, *clock, manager.config.clone());
        let seed = self.chances.processes.random();
        let started = Process::start(config, manager.disk.clone(), clock, self.now_us, seed);
        match started {
            Ok(started) => *process = Some(started),
            Err(error) => return self.not_started(host, &error),
        }
        self.checker.begin_process(host, manager.disk.snapshot_index());
        self.tell(|| format!("h{host} starts"));
        let tick_us = clock.lasts(self.plan.timing.tick);
        self.queue.push(self.now_us + tick_us, Event::Tick { host, life });
        let look_us = clock.lasts(self.plan.timing.silence());
        self.queue.push(self.now_us + look_us, Event::Look { host, life });
        self.rounds(host, false, true)
    }

    /// A process could not start on its disk.
    fn not_started(&mut self, host: usize, error: &StoreError) -> Result<(), Violation> {
        let Some(manager) = &self.hosts[host].manager else { return Ok(()) };
        let (id, disk) = (manager.config.id, manager.disk.clone());
        hold!(disk.is_harmed() && !disk.has_lost(), "{id} cannot start: {}", Causes(error));
        self.tell(|| format!("{id} cannot start: {}", Causes(error)));
        disk.crash();
        if disk.is_rotten() {
            // It says so, and whoever looks after it removes it and has its host join again.
            let refused = matches!(
                error,
                StoreError::Log(
                    LogError::Segment { .. }
                        | LogError::Snapshot { .. }
                        | LogError::Format { .. }
                        | LogError::NoKey { .. }
                        | LogError::Damaged(_)
                )
            );
            hold!(refused, "{id} does not say that its log is damaged: {}", Causes(error));
            return self.lose_disk(host);
        }
        self.queue.push(self.now_us + AGAIN_US, Event::Start { host });
        Ok(())
    }

    /// Ends a host's process at once.
    pub fn end(&mut self, host: usize) -> Result<(), Violation> {
        let Host { process, manager, .. } = &mut self.hosts[host];
        if process.take().is_some()
            && let Some(manager) = manager
        {
            manager.disk.crash();
        }
        self.around(|cluster, here| {
            cluster.lost(host, here);
            Ok(())
        })?;
        self.end_watches(host);
        // Whoever waits for it is told, or waits in vain.
        self.answer(Some(host))
    }

    /// A process dies, and is started again later.
    pub fn crash(&mut self, host: usize, down_us: u64) -> Result<(), Violation> {
        if self.hosts[host].process.is_some() {
            self.end(host)?;
            self.queue.push(self.now_us + down_us, Event::Start { host });
        }
        Ok(())
    }

    /// A process is asked to stop.
    pub fn stop(&mut self, host: usize) -> Result<(), Violation> {
        let Some(process) = &self.hosts[host].process else { return Ok(()) };
        let store = process.store.clone();
        let mut stopping = Box::pin(async move { store.shutdown().await });
        // It is polled once, which tells the store; that it has stopped is seen there.
        let _pending = stopping.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
        self.wake(host)
    }

    pub fn tick(&mut self, host: usize, life: u64) -> Result<(), Violation> {
        if !self.lives(host, life) {
            return Ok(());
        }
        let Host { clock, process: Some(process), .. } = &self.hosts[host] else { return Ok(()) };
        // Ticks that a stall swallowed are not made up for.
        if process.busy_until_us > self.now_us {
            self.queue.push(process.busy_until_us, Event::Tick { host, life });
            return Ok(());
        }
        let next_us = self.now_us + clock.lasts(self.plan.timing.tick).max(1);
        self.queue.push(next_us, Event::Tick { host, life });
        self.round(host, true)
    }

    /// A process's watchdog looks whether the owner comes back. If it withdraws the role, the rest of the process sees that.
    pub fn look(&mut self, host: usize, life: u64) -> Result<(), Violation> {
        if !self.lives(host, life) {
            return Ok(());
        }
        let Host { clock, process: Some(process), frozen_until_us, .. } = &self.hosts[host] else { return Ok(()) };
        if *frozen_until_us > self.now_us {
            self.queue.push(*frozen_until_us, Event::Look { host, life });
            return Ok(());
        }
        let next_us = self.now_us + clock.lasts(self.plan.timing.silence()).max(1);
        self.queue.push(next_us, Event::Look { host, life });
        if !process.look(clock.show(self.now_us)) {
            return Ok(());
        }
        self.withdrawn += 1;
        self.tell(|| format!("h{host} is told that it leads no more: its disk hangs"));
        self.around(|cluster, here| cluster.look(host, here))
    }

    pub fn report(&mut self, host: usize, life: u64, tell: impl FnOnce(&Process)) -> Result<(), Violation> {
        if !self.lives(host, life) {
            return Ok(());
        }
        if let Some(process) = &self.hosts[host].process {
            tell(process);
        }
        self.wake(host)
    }

    /// Something has arrived at a process: a round takes it in, now or a little later.
    pub fn wake(&mut self, host: usize) -> Result<(), Violation> {
        let Host { process: Some(process), life, .. } = &mut self.hosts[host] else { return Ok(()) };
        if process.is_woken {
            return Ok(());
        }
        let batching_us = self.plan.batching_us;
        if batching_us == 0 && process.busy_until_us <= self.now_us {
            return self.round(host, false);
        }
        let pause_us = if batching_us == 0 { 0 } else { exponential(&mut self.chances.network, batching_us) };
        process.is_woken = true;
        let at_us = process.busy_until_us.max(self.now_us + pause_us);
        let life = *life;
        self.queue.push(at_us, Event::Round { host, life });
        Ok(())
    }

    pub fn round(&mut self, host: usize, ticks: bool) -> Result<(), Violation> {
        let Host { process: Some(process), life, .. } = &mut self.hosts[host] else { return Ok(()) };
        if process.busy_until_us > self.now_us {
            process.is_woken = true;
            let (at_us, life) = (process.busy_until_us, *life);
            self.queue.push(at_us, Event::Round { host, life });
            return Ok(());
        }
        process.is_woken = false;
        self.rounds(host, ticks, false)
    }

    fn rounds(&mut self, host: usize, ticks: bool, first: bool) -> Result<(), Violation> {
        let (now_us, batch_max) = (self.now_us, self.plan.batch_max);
        let Host { process: Some(process), clock, manager: Some(manager), life, .. } = &mut self.hosts[host] else { return Ok(()) };
        let (id, life, clock) = (manager.config.id, *life, *clock);
        let (Round { until_us, out, jobs }, ended) = process.round(now_us, clock, ticks, first, batch_max);
        let raft = process.node.raft();
        let position = [id, raft.term, raft.leader_id, raft.raft_log.committed, raft.store().applied(), raft.raft_log.last_index()];
        self.hash = position.into_iter().fold(mix(self.hash, until_us), mix);
        let hangs = process.is_hanging;
        let has_stopped = !hangs && process.node.is_stopped(clock.show(until_us));
        let goes_on = ended.is_ok() && !has_stopped && (hangs || process.has_inputs());
        // Nothing has come of a round that has not ended.
        let looked = if hangs { Ok(()) } else { self.checker.look(host, id, process, &manager.disk, ended.is_err()) };
        if self.trace {
            let (raft, role) = (process.node.raft(), process.store.role().borrow().kind);
            let (term, log) = (raft.term, &raft.raft_log);
            let text = format!("{id} {role:?} term {term} committed {} of {} wants to send {}", log.committed, log.last_index(), out.len());
            let members = raft.store().configuration();
            let text = format!(
                "{text} voters {:?} {:?} learners {:?} {:?}",
                members.voters, members.voters_outgoing, members.learners, members.learners_next
            );
            self.tell(|| text);
        }
        looked?;
        self.send(host, id, life, out)?;
        for job in jobs {
            let at_us = until_us + exponential(&mut self.chances.network, JOB_US);
            self.queue.push(at_us, Event::Job { host, life, job });
        }
        match ended {
            Ok(()) if has_stopped => {
                self.tell(|| format!("{id} has stopped"));
                self.crash(host, START_US)
            }
            Ok(()) => {
                if goes_on {
                    let Some(process) = &mut self.hosts[host].process else { return Ok(()) };
                    process.is_woken = true;
                    self.queue.push(until_us, Event::Round { host, life });
                }
                self.answer(Some(host))?;
                self.tell_watchers(host);
                self.around(|cluster, here| cluster.look(host, here))
            }
            // What the disk was made to do.
            Err(Fatal::Log(error)) if matches!(error, LogError::Io { .. }) || self.is_harmed(host) => {
                self.tell(|| format!("{id} ends: its disk has failed"));
                let down_us = self.chances.faults.random_range(START_US..START_US + self.plan.fault_lasts_us);
                self.crash(host, down_us)
            }
            Err(fatal) => {
                self.tell(|| format!("{id} ends: {}", Causes(&fatal)));
                self.checker.mourn(id, &fatal)?;
                self.end(host)?;
                self.hosts[host].manager = None;
                Ok(())
            }
        }
    }

    fn is_harmed(&self, host: usize) -> bool {
        self.hosts[host].manager.as_ref().is_some_and(|manager| manager.disk.is_harmed())
    }

    /// Where the manager with this id is.
    pub fn host_of(&self, id: u64) -> Option<usize> {
        (0..self.hosts.len()).find(|at| self.hosts[*at].id() == Some(id))
    }

    fn send(&mut self, host: usize, id: u64, life: u64, out: Vec<Sent>) -> Result<(), Violation> {
        for Sent { at_us, out, addr, sender } in out {
            let (message, times) = match out {
                Out::Message(message) => (message, 1),
                Out::Snapshot(mut message, state) => {
                    message.mut_snapshot().set_data(encode_snapshot(&state).into());
                    (message, SNAPSHOT_TIMES)
                }
            };
            let (peer, is_snapshot) = (message.to, times > 1);
            // The Raft service takes nothing else, and ends the stream on which it comes.
            hold!(message.from == id, "{id} sends a {:?} to {peer} in the name of {}", message.get_msg_type(), message.from);
            let target = self.hosts.iter().position(|host| host.addr == addr);
            let arrivals = target.map_or_else(Vec::new, |to| self.network.arrivals((host, to), at_us, times));
            let told_us = arrivals.last().copied().unwrap_or(at_us) + self.network.latency();
            if is_snapshot {
                let arrived = !arrivals.is_empty();
                self.queue.push(told_us, Event::SnapshotSent { host, life, to: peer, arrived });
            } else if arrivals.is_empty() && self.chances.network.random_bool(0.5) {
                self.queue.push(told_us, Event::Unreachable { host, life, peer });
            }
            let Some(to) = target else { continue };
            for at_us in arrivals {
                self.queue.push(at_us, Event::Arrive { from: host, to, message: Box::new(message.clone()), sender: sender.clone() });
            }
        }
        Ok(())
    }

    /// A message arrives, and is taken as the Raft service takes it: by whom it is for, from whoever was not removed.
    pub fn arrive(&mut self, from: usize, to: usize, message: Message, said: &Introduction) -> Result<(), Violation> {
        let (sender, life) = (message.from, self.hosts[from].life);
        let Some(process) = &self.hosts[to].process else {
            if self.hosts[from].id() == Some(sender) {
                self.queue.push(self.now_us, Event::Unreachable { host: from, life, peer: message.to });
            }
            return Ok(());
        };
        // A host that has joined again is another manager.
        if message.to != process.inbound.id {
            return Ok(());
        }
        match process.inbound.admit(said.clone()) {
            Standing::Member | Standing::Unknown => {
                // A store that has stopped takes nothing; that it has is seen at its end.
                drop(process.inbound.step(message));
                self.wake(to)
            }
            Standing::Removed if self.hosts[from].id() == Some(sender) => {
                let at_us = self.now_us + self.network.latency();
                self.queue.push(at_us, Event::Refused { host: from, life });
                Ok(())
            }
            Standing::Removed => Ok(()),
        }
    }
}

/// An error with all its causes.
struct Causes<'a>(&'a dyn std::error::Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let causes = std::iter::successors(Some(self.0), |error| error.source());
        formatter.write_str(&causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
    }
}
