//! The world: hosts, wires, users and the one queue of what happens.
//!
//! ```text
//!  queue ─► event ─► a host's round (the store's own code) ─► checks ─► answers to users
//!    ▲                    │ messages, jobs, how long its writes took
//!    └────────────────────┘
//! ```

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use raft::eraftpb::Message;
use rand::Rng;
use rcluster_api::cluster::{Cluster as ClusterObject, Manager, ManagerRole};
use rcluster_api::object::{Object, Stamp};
use rcluster_manager::core::members::{Step, departed, next};
use rcluster_manager::core::state::{Change, State, Transaction, encode_snapshot};
use rcluster_manager::drive::standing;
use rcluster_manager::store::{Fatal, Introduction, Job, LogError, Member, MemberChange, RoleKind, Standing, StoreConfig, StoreError};

use crate::chance::{Chance, mix, stream};
use crate::check::{Checker, Violation, hold};
use crate::cluster::{self, Cluster, Counts, Here};
use crate::disk::Disk;
use crate::faults::Over;
use crate::host::{self, Clock, Host, Out, Process, Round, Sent};
use crate::network::{Network, exponential};
use crate::plan::Plan;
use crate::users::Request;

const CLUSTER: &str = "cluster";
/// How often the leader looks whether the managers are what their objects say.
const KEEP_US: u64 = 50_000;
const LULL_KEEP_US: u64 = 1_000_000;
/// How often it is looked who waits no longer.
const SWEEP_US: u64 = 500_000;
/// A snapshot travels so much longer than a small message, and its end is told so much later at most.
const SNAPSHOT_TIMES: u64 = 5;
/// What a job beside a process takes, at the mean.
const JOB_US: u64 = 5_000;
/// When a process is started again that could not start.
const AGAIN_US: u64 = 1_000_000;
/// How long a process takes to start.
const START_US: u64 = 50_000;
/// Once nothing goes wrong any more, all is well after so long.
const RECOVERY_US: u64 = 60_000_000;
/// The same of a cluster, whose services are replaced one task after the other.
const CLUSTER_RECOVERY_US: u64 = 240_000_000;
/// How often it is looked whether all is well.
const INSPECT_US: u64 = 100_000;
/// So many events at one time are a loop.
const EVENTS_AT_ONCE_MAX: u64 = 200_000;

/// What happens. Some of it is of one burst and the lull after it, and is not done in the next, which has its own.
pub enum Event {
    /// A process ticks, and takes in what has arrived.
    Tick {
        host: usize,
        life: u64,
    },
    /// A process takes in what has arrived.
    Round {
        host: usize,
        life: u64,
    },
    Arrive {
        from: usize,
        to: usize,
        message: Box<Message>,
        /// What its sender says of itself.
        sender: Arc<Introduction>,
    },
    /// A process is told that a peer cannot be reached.
    Unreachable {
        host: usize,
        life: u64,
        peer: u64,
    },
    SnapshotSent {
        host: usize,
        life: u64,
        to: u64,
        arrived: bool,
    },
    /// A process is told by a peer that it was removed.
    Refused {
        host: usize,
        life: u64,
    },
    Job {
        host: usize,
        life: u64,
        job: Job,
    },
    Start {
        host: usize,
    },
    /// The leader among them looks after the members.
    Keep(u64),
    Sweep,
    Client(usize, u64),
    Join(usize),
    Strike(u64),
    Over(Over),
    /// A burst ends, and a lull begins; or a lull ends, and a burst begins.
    Turn,
    /// The faults end.
    Calm,
    /// It is looked whether all is well.
    Inspect,
    /// What happens around the stores.
    Cluster(cluster::Event),
}

/// The streams of chance.
pub struct Chances {
    pub network: Chance,
    pub disks: Chance,
    pub faults: Chance,
    pub users: Chance,
    pub processes: Chance,
}

/// How a seed went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Of all that happened.
    pub hash: u64,
    pub simulated: Duration,
    pub events: u64,
    /// Terms in which someone led.
    pub terms: usize,
    /// Entries committed.
    pub entries: u64,
    /// Writes that were confirmed.
    pub writes: usize,
    /// Reads that were answered.
    pub reads: usize,
    /// From the end of the faults until all was well.
    pub recovery: Duration,
    /// What was done around the stores.
    pub cluster: Option<Counts>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hash, simulated, events, terms, entries, writes, reads, recovery, cluster } = self;
        write!(
            formatter,
            "{} s, {events} events, {terms} terms, {entries} entries, {writes} writes, {reads} reads, ",
            simulated.as_secs()
        )?;
        if let Some(Counts { brains, requests, starts, sessions, troubles, downs }) = cluster {
            write!(
                formatter,
                "{brains} brains, {requests} requests, {starts} starts, {sessions} sessions, {troubles} troubles, {downs} downs, "
            )?;
        }
        write!(formatter, "well after {} ms, hash {hash:016x}", recovery.as_millis())
    }
}

/// Everything.
pub struct World {
    pub plan: Plan,
    pub now_us: u64,
    pub queue: crate::queue::Queue<Event>,
    pub hosts: Vec<Host>,
    pub network: Network,
    pub checker: Checker,
    pub chances: Chances,
    pub requests: Vec<Request>,
    pub writes: u64,
    pub reads: usize,
    pub cuts: u64,
    pub moves: u64,
    /// When the last disk was lost.
    pub wiped_us: u64,
    /// Between two bursts.
    pub is_lull: bool,
    /// Bursts to come.
    pub left: u64,
    pub is_calm: bool,
    /// When the faults have ended.
    pub calm_since_us: u64,
    /// What is around the stores, in a seed that has it.
    cluster: Option<Box<Cluster>>,
    founded: State,
    hash: u64,
    events: u64,
    trace: bool,
}

fn name(host: usize) -> String {
    format!("m{}", host + 1)
}

fn founded(hosts: usize) -> State {
    let manager = |host: usize| Manager {
        id: name(host).into(),
        stamp: Stamp::default(),
        raft_id: host as u64 + 1,
        name: name(host),
        addr: host::address(&name(host), 0),
        role: ManagerRole::Voter,
    };
    let cluster = ClusterObject { managers_made: hosts as u64, certificate_ttl_ms: 1, ..ClusterObject::default() };
    let objects = (0..hosts).map(|host| Object::Manager(manager(host))).chain([Object::Cluster(Box::new(cluster))]);
    let changes = objects.map(|object| Change::Put { expected: 0, object }).collect();
    let mut state = State::new(CLUSTER.to_owned());
    state.apply(1, &Transaction { at_ms: 0, changes }).expect("nothing is there that could conflict");
    state
}

impl World {
    /// A cluster whose managers have just been founded.
    pub fn new(plan: Plan, trace: bool) -> Result<Self, Violation> {
        let seed = plan.seed;
        let founded = founded(plan.hosts);
        let mut world = Self {
            now_us: 0,
            queue: crate::queue::Queue::new(),
            hosts: Vec::new(),
            network: Network::new(&plan),
            checker: Checker::new(founded.clone(), plan.cluster.is_none()),
            chances: Chances {
                network: stream(seed, "arrivals"),
                disks: stream(seed, "disks"),
                faults: stream(seed, "faults"),
                users: stream(seed, "users"),
                processes: stream(seed, "processes"),
            },
            requests: Vec::new(),
            writes: 0,
            reads: 0,
            cuts: 0,
            moves: 0,
            wiped_us: 0,
            is_lull: false,
            left: 0,
            is_calm: false,
            calm_since_us: 0,
            cluster: plan.cluster.clone().map(|cluster| Box::new(Cluster::new(seed, cluster))),
            founded,
            hash: seed,
            events: 0,
            trace,
            plan,
        };
        world.tell(|| String::from("the world begins"));
        for at in 0..world.plan.hosts {
            let host = world.new_host();
            let id = at as u64 + 1;
            world.found(host, id, true, Vec::new())?;
            world.queue.push(0, Event::Start { host });
        }
        world.queue.push(0, Event::Sweep);
        world.left = world.plan.bursts;
        world.is_lull = true;
        world.turn();
        world.around(|_, _| Ok(()))?;
        Ok(world)
    }

    /// Says what happens, when someone wants to know.
    pub fn tell(&self, text: impl FnOnce() -> String) {
        if self.trace {
            let (s, us) = (self.now_us / 1_000_000, self.now_us % 1_000_000);
            trace(&format!("{s:4}.{us:06} {}", text()));
        }
    }

    /// Runs to the end.
    pub fn run(mut self) -> Result<Outcome, Violation> {
        let mut at_once = 0;
        while let Some((at_us, sequence, event)) = self.queue.pop() {
            at_once = if at_us > self.now_us { 0 } else { at_once + 1 };
            hold!(at_once < EVENTS_AT_ONCE_MAX, "the store goes in a circle");
            self.now_us = at_us;
            self.events += 1;
            self.hash = mix(mix(self.hash, at_us), sequence);
            if matches!(event, Event::Inspect) {
                let since_us = self.now_us - self.calm_since_us;
                let patience_us = if self.cluster.is_some() { CLUSTER_RECOVERY_US } else { RECOVERY_US };
                match self.inspect().and_then(|()| self.inspect_cluster()) {
                    Ok(()) => return Ok(self.outcome(since_us)),
                    Err(why) if since_us >= patience_us => {
                        return Err(Violation(format!("{} s after the last fault: {why}", since_us / 1_000_000)));
                    }
                    Err(why) => {
                        self.tell(|| why);
                        self.queue.push(self.now_us + INSPECT_US, Event::Inspect);
                    }
                }
            }
            self.happen(event)?;
        }
        Err(Violation("nothing happens any more".to_owned()))
    }

    fn outcome(&self, recovery_us: u64) -> Outcome {
        Outcome {
            hash: self.hash,
            simulated: Duration::from_micros(self.now_us),
            events: self.events,
            terms: self.checker.terms(),
            entries: self.checker.last(),
            writes: self.checker.made(),
            reads: self.reads,
            recovery: Duration::from_micros(recovery_us),
            cluster: self.cluster.as_ref().map(|cluster| cluster.counts),
        }
    }

    /// Lets what is around the stores act, and takes up what comes of it.
    pub fn around(&mut self, act: impl FnOnce(&mut Cluster, &mut Here<'_>) -> Result<(), Violation>) -> Result<(), Violation> {
        let Self { cluster: Some(cluster), now_us, hosts, network, checker, trace, .. } = self else { return Ok(()) };
        let done = act(cluster, &mut Here { now_us: *now_us, hosts, network, checker, trace: *trace });
        for (at_us, event) in cluster.out.drain(..) {
            self.queue.push(at_us.max(*now_us), Event::Cluster(event));
        }
        for host in std::mem::take(&mut cluster.asked) {
            let Host { process: Some(process), life, .. } = &mut hosts[host] else { continue };
            // Not at once: what acts now may be a round's own end.
            if !std::mem::replace(&mut process.is_woken, true) {
                self.queue.push(process.busy_until_us.max(*now_us), Event::Round { host, life: *life });
            }
        }
        done
    }

    fn inspect_cluster(&mut self) -> Result<(), String> {
        let Self { cluster: Some(cluster), now_us, hosts, network, checker, trace, .. } = self else { return Ok(()) };
        cluster.inspect(&Here { now_us: *now_us, hosts, network, checker, trace: *trace })
    }

    /// From a lull to a burst or from a burst to a lull; after the last burst the faults end.
    fn turn(&mut self) {
        let burst_us = self.plan.busy_us / self.plan.bursts;
        if self.is_lull {
            self.is_lull = false;
            self.left -= 1;
            let end = if self.left == 0 { Event::Calm } else { Event::Turn };
            self.queue.push(self.now_us + burst_us, end);
            let idle: Vec<usize> = (0..self.plan.clients).filter(|client| !self.waits(*client)).collect();
            for client in idle {
                self.queue.push(self.now_us, Event::Client(client, self.left));
            }
            for event in [Event::Keep(self.left), Event::Strike(self.left)] {
                self.queue.push(self.now_us, event);
            }
        } else {
            self.is_lull = true;
            let lull_us = exponential(&mut self.chances.faults, self.plan.lull_us);
            self.queue.push(self.now_us + lull_us, Event::Turn);
        }
        self.tell(|| String::from(if self.is_lull { "a lull begins" } else { "a burst begins" }));
    }

    fn lives(&self, host: usize, life: u64) -> bool {
        self.hosts[host].life == life && self.hosts[host].process.is_some()
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Tick { host, life } => self.tick(host, life),
            Event::Round { host, life } => {
                if self.lives(host, life) {
                    self.round(host, false)?;
                }
                Ok(())
            }
            Event::Arrive { from, to, message, sender } => self.arrive(from, to, *message, &sender),
            Event::Unreachable { host, life, peer } => self.report(host, life, |process| process.inbox.unreachable(peer)),
            Event::SnapshotSent { host, life, to, arrived } => self.report(host, life, |process| process.inbox.snapshot_sent(to, arrived)),
            Event::Refused { host, life } => self.report(host, life, |process| process.inbox.removed()),
            Event::Job { host, life, job } => {
                if !self.lives(host, life) {
                    return Ok(());
                }
                job();
                self.wake(host)
            }
            Event::Start { host } => self.start(host),
            Event::Keep(burst) if burst == self.left => {
                let every_us = if self.is_lull { LULL_KEEP_US } else { KEEP_US };
                self.queue.push(self.now_us + every_us, Event::Keep(burst));
                self.keep()
            }
            Event::Sweep => {
                self.queue.push(self.now_us + SWEEP_US, Event::Sweep);
                self.move_hosts()?;
                self.answer(None)
            }
            Event::Client(client, burst) if burst == self.left => self.act(client),
            Event::Join(host) => self.join(host),
            Event::Strike(burst) if burst == self.left => self.strike(),
            Event::Keep(_) | Event::Client(..) | Event::Strike(_) => Ok(()),
            Event::Over(over) => {
                self.end_fault(over);
                Ok(())
            }
            Event::Turn => {
                self.turn();
                Ok(())
            }
            Event::Calm => self.calm(),
            Event::Inspect => Ok(()),
            Event::Cluster(event) => self.around(|cluster, here| cluster.happen(event, here)),
        }
    }

    /// One more host, without a manager.
    pub fn new_host(&mut self) -> usize {
        let offset_us = self.chances.processes.random_range(0..3_600_000_000);
        self.hosts.push(Host::new(name(self.hosts.len()), Clock::new(offset_us)));
        self.hosts.len() - 1
    }

    /// A host gets a manager's disk: with the cluster's first log, or an empty one that knows of `seeds`.
    fn found(&mut self, host: usize, id: u64, founds: bool, seeds: Vec<Member>) -> Result<(), Violation> {
        let name = self.hosts[host].name.clone();
        let mut config = StoreConfig::new(CLUSTER.to_owned(), name, id, seeds, PathBuf::new());
        self.plan.tune(&mut config);
        let chance = stream(self.chances.disks.random(), "disk");
        let disk = Disk::new(chance, &self.plan, founds.then_some(&self.founded), CLUSTER);
        let disk = disk.map_err(|error| Violation(format!("{id} cannot make its log: {error}")))?;
        self.hosts[host].manager = Some(host::Manager { config, disk });
        self.hosts[host].joining = false;
        Ok(())
    }

    /// A host has joined as `manager`.
    pub fn joined(&mut self, host: usize, manager: &Manager) -> Result<(), Violation> {
        let member = |manager: &Manager| Member { id: manager.raft_id, name: manager.name.clone(), addr: manager.addr.clone() };
        let seeds = self.checker.latest().managers().values().map(|manager| member(manager)).collect();
        self.tell(|| format!("h{host} has joined as {}", manager.raft_id));
        self.found(host, manager.raft_id, false, seeds)?;
        self.start(host)
    }

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
        self.checker.forget(host);
        self.tell(|| format!("h{host} starts"));
        let tick_us = clock.lasts(self.plan.timing.tick);
        self.queue.push(self.now_us + tick_us, Event::Tick { host, life });
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

    fn tick(&mut self, host: usize, life: u64) -> Result<(), Violation> {
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

    fn report(&mut self, host: usize, life: u64, tell: impl FnOnce(&Process)) -> Result<(), Violation> {
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

    fn round(&mut self, host: usize, ticks: bool) -> Result<(), Violation> {
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
        let has_stopped = process.node.is_stopped(clock.show(until_us));
        let goes_on = ended.is_ok() && !has_stopped && process.has_inputs();
        let looked = self.checker.look(host, id, process, &manager.disk, ended.is_err());
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
    fn arrive(&mut self, from: usize, to: usize, message: Message, said: &Introduction) -> Result<(), Violation> {
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

    /// Does what `drive/members` does, where the leader is.
    fn keep(&mut self) -> Result<(), Violation> {
        for host in 0..self.hosts.len() {
            let Some(process) = &self.hosts[host].process else { continue };
            if process.store.role().borrow().kind != RoleKind::Leader {
                continue;
            }
            let (store, state) = (process.store.clone(), process.store.state());
            let seen = standing(&store.status());
            let managers = || state.managers().values().map(AsRef::as_ref);
            if departed(managers(), &seen).next().is_some() {
                self.forget(host)?;
            }
            let Some(step) = next(managers(), &seen) else { continue };
            self.tell(|| format!("h{host} as the leader: {step:?}"));
            match step {
                Step::Change { learners, voters, removed } => {
                    let changes = learners.into_iter().map(MemberChange::Learner);
                    let changes = changes.chain(voters.into_iter().map(MemberChange::Voter));
                    let changes = changes.chain(removed.into_iter().map(MemberChange::Remove)).collect();
                    let mut asking = Box::pin(async move { store.change_members(changes).await });
                    // It is polled once, which asks; what comes of it is seen in the configuration.
                    let _pending = asking.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
                }
                Step::HandOver(to) => store.transfer_leadership(to),
            }
            self.wake(host)?;
        }
        Ok(())
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

#[expect(clippy::print_stdout, reason = "a trace is for reading")]
pub fn trace(line: &str) {
    println!("{line}");
}
