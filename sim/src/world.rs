//! The world: hosts, wires, users and the one queue of what happens.
//!
//! ```text
//!  queue ─► event ─► a host's round (the store's own code) ─► checks ─► answers to users
//!    ▲                    │ messages, jobs, how long its writes took
//!    └────────────────────┘
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use raft::eraftpb::Message;
use rand::Rng;
use rcluster_api::cluster::{Cluster as ClusterObject, Manager, ManagerRole};
use rcluster_api::object::{Object, Stamp};
use rcluster_manager::core::state::{Change, State, Transaction};
use rcluster_manager::store::{Introduction, Job, Member, StoreConfig};

use crate::chance::{Chance, mix, stream};
use crate::check::{Checker, Violation, hold};
use crate::cluster::{self, Cluster, Here};
use crate::disk::Disk;
use crate::faults::Over;
use crate::host::{self, Clock, Host};
use crate::network::{Network, exponential};
use crate::outcome::Outcome;
use crate::plan::Plan;
use crate::users::Request;
use crate::watchers::{self, Client};

const CLUSTER: &str = "cluster";
/// How often the leader looks whether the managers are what their objects say.
const KEEP_US: u64 = 50_000;
const LULL_KEEP_US: u64 = 1_000_000;
/// How often it is looked who waits no longer.
const SWEEP_US: u64 = 500_000;
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
    /// A process's watchdog looks at the owner.
    Look {
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
    /// Of who watches.
    Watch(usize, u64, watchers::Event),
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
    pub watchers: Chance,
    pub processes: Chance,
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
    pub watchers: Vec<Client>,
    pub writes: u64,
    pub reads: usize,
    /// Pieces that watchers were told, and watchers that were refused as too old.
    pub watched: (usize, usize),
    /// Leaders from whom the watchdog has taken the role.
    pub withdrawn: usize,
    pub cuts: u64,
    pub moves: u64,
    /// When the last disk was lost.
    pub wiped_us: u64,
    /// Between two bursts.
    pub is_lull: bool,
    /// How long all lulls are that have begun.
    lulls_us: u64,
    /// Bursts to come.
    pub left: u64,
    pub is_calm: bool,
    /// When the faults have ended.
    pub calm_since_us: u64,
    /// Clients' writes that were made since, and reads that were answered.
    pub served: (usize, usize),
    /// What is around the stores, in a seed that has it.
    cluster: Option<Box<Cluster>>,
    founded: State,
    pub hash: u64,
    events: u64,
    pub trace: bool,
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
                watchers: stream(seed, "watchers"),
                processes: stream(seed, "processes"),
            },
            requests: Vec::new(),
            watchers: Vec::new(),
            writes: 0,
            reads: 0,
            watched: (0, 0),
            withdrawn: 0,
            cuts: 0,
            moves: 0,
            wiped_us: 0,
            is_lull: false,
            lulls_us: 0,
            left: 0,
            is_calm: false,
            calm_since_us: 0,
            served: (0, 0),
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
        world.add_watchers();
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
                match self
                    .inspect()
                    .and_then(|()| self.inspect_service())
                    .and_then(|()| self.inspect_watches())
                    .and_then(|()| self.inspect_cluster())
                {
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
            // The faults end after the last burst: no lull is left unfinished.
            busy: Duration::from_micros(self.now_us - self.lulls_us),
            events: self.events,
            terms: self.checker.terms(),
            entries: self.checker.last(),
            writes: self.checker.made(),
            reads: self.reads,
            watched: self.watched,
            withdrawn: self.withdrawn,
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
            self.lulls_us += lull_us;
            self.queue.push(self.now_us + lull_us, Event::Turn);
        }
        self.tell(|| String::from(if self.is_lull { "a lull begins" } else { "a burst begins" }));
    }

    pub fn lives(&self, host: usize, life: u64) -> bool {
        self.hosts[host].life == life && self.hosts[host].process.is_some()
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Tick { host, life } => self.tick(host, life),
            Event::Look { host, life } => self.look(host, life),
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
            Event::Watch(client, session, event) => self.watch(client, session, event),
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
}

#[expect(clippy::print_stdout, reason = "a trace is for reading")]
pub fn trace(line: &str) {
    println!("{line}");
}
