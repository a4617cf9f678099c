//! The cluster around the stores: a brain on whoever leads, agents with kernels that are made up, users, and what goes wrong for them.
//!
//! ```text
//!  users ─► brain (manager::drive::Brain) ─► the simulated stores ─► the committed log ─► rules
//!               ▲  │ Told
//!      sessions │  ▼                 wires that delay, hold back and break
//!  agents: Seek, Beats, Owner, task::next ─► kernels that are made up
//! ```

mod leader;
mod node;
mod plan;
mod rules;
mod session;
mod trouble;
mod users;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rcluster_agent::core::task::Exit;
use rcluster_api::id::TaskId;
use rcluster_manager::core::dispatch::netview::Networks;

use crate::chance::{Chance, stream};
use crate::check::{Checker, Violation};
use crate::host::Host;
use crate::network::Network;

use leader::Lead;
use node::Agent;
pub use plan::Plan;
use rules::Rules;
use session::{Packet, Session, Timer};
use users::User;
use work::Done;

/// What all clocks that people set show when the world begins, Unix time in milliseconds.
const EPOCH_MS: u64 = 1_700_000_000_000;
/// The network's number of the first agent; managers have theirs from 0 on.
const FIRST_AGENT: usize = 1000;

/// What happens around the stores.
#[derive(Debug)]
pub enum Event {
    /// A leader's brain may have something to do.
    Wake {
        host: usize,
        life: u64,
    },
    /// The first packet of a session's wire goes on its way, if the wire carries.
    Move {
        session: u64,
        up: bool,
    },
    Arrive {
        session: u64,
        packet: Packet,
    },
    Timer {
        agent: usize,
        life: u64,
        timer: Timer,
    },
    /// A step of a task is done.
    Done {
        agent: usize,
        life: u64,
        task: TaskId,
        serial: u64,
        done: Done,
    },
    /// A container ends by itself.
    Exit {
        agent: usize,
        incarnation: u64,
        container: String,
    },
    /// An agent's process starts.
    Start(usize),
    User(usize),
    Strike,
    Over(u64),
}

/// What the cluster can see and use of the world in one step.
pub struct Here<'a> {
    pub now_us: u64,
    pub hosts: &'a [Host],
    pub network: &'a mut Network,
    pub checker: &'a Checker,
    pub trace: bool,
}

impl Here<'_> {
    /// Says what happens, when someone wants to know.
    pub fn tell(&self, text: impl FnOnce() -> String) {
        if self.trace {
            let (s, us) = (self.now_us / 1_000_000, self.now_us % 1_000_000);
            crate::world::trace(&format!("{s:4}.{us:06}     {}", text()));
        }
    }
}

/// How much was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Terms in which a brain began.
    pub brains: usize,
    /// Requests that were answered.
    pub requests: usize,
    /// Containers that were started.
    pub starts: usize,
    /// Sessions that were welcomed.
    pub sessions: usize,
    /// Troubles of agents.
    pub troubles: usize,
    /// Nodes that were judged to be down.
    pub downs: usize,
}

/// The cluster.
pub struct Cluster {
    pub plan: Plan,
    pub counts: Counts,
    /// What is to happen, and when.
    pub out: Vec<(u64, Event)>,
    /// Hosts whose stores were asked for something.
    pub asked: BTreeSet<usize>,
    chance: Chance,
    agents: Vec<Agent>,
    leads: BTreeMap<usize, Lead>,
    sessions: BTreeMap<u64, Session>,
    sessions_made: u64,
    networks: Option<Arc<Networks>>,
    users: Vec<User>,
    /// How containers that run are going to end.
    exits: BTreeMap<(usize, String), Exit>,
    rules: Rules,
    cuts: u64,
    is_calm: bool,
}

impl Cluster {
    /// The cluster of `seed`, with all agents about to start.
    pub fn new(seed: u64, plan: Plan) -> Self {
        let agents = (0..plan.agents).map(|at| Agent::new(at, plan.skew_ms)).collect();
        let users = (0..plan.users).map(User::new).collect();
        let mut out: Vec<(u64, Event)> = (0..plan.agents).map(|agent| (0, Event::Start(agent))).collect();
        out.extend((0..plan.users).map(|user| (2_000_000, Event::User(user))));
        out.push((0, Event::Strike));
        Self {
            counts: Counts::default(),
            out,
            asked: BTreeSet::new(),
            chance: stream(seed, "cluster"),
            agents,
            leads: BTreeMap::new(),
            sessions: BTreeMap::new(),
            sessions_made: 0,
            networks: None,
            users,
            exits: BTreeMap::new(),
            rules: Rules::new(),
            cuts: 1 << 32,
            is_calm: false,
            plan,
        }
    }

    /// Does what is to be done at this time.
    pub fn happen(&mut self, event: Event, here: &mut Here<'_>) -> Result<(), Violation> {
        match event {
            Event::Wake { host, life } => self.wake(host, life, here),
            Event::Move { session, up } => {
                self.carry(session, up, here);
                Ok(())
            }
            Event::Arrive { session, packet } => self.arrive(session, packet, here),
            Event::Timer { agent, life, timer } => self.ring(agent, life, timer, here),
            Event::Done { agent, life, task, serial, done } => self.done(agent, life, &task, serial, done, here),
            Event::Exit { agent, incarnation, container } => self.exit(agent, incarnation, &container, here),
            Event::Start(agent) => self.start(agent, here),
            Event::User(user) => self.act(user, here),
            Event::Strike => {
                self.strike(here);
                Ok(())
            }
            Event::Over(cut) => {
                here.network.mend(cut);
                Ok(())
            }
        }
    }

    fn later(&mut self, at_us: u64, event: Event) {
        self.out.push((at_us, event));
    }

    /// What the people's clock of a manager or an agent shows.
    fn unix_ms(now_us: u64, skew_ms: i64) -> u64 {
        (EPOCH_MS + now_us / 1000).saturating_add_signed(skew_ms)
    }

    /// The faults end: nodes have power, agents run, and the users want all nodes to take part again.
    pub fn calm(&mut self, here: &mut Here<'_>) {
        self.is_calm = true;
        for agent in 0..self.agents.len() {
            if self.agents[agent].process.is_none() {
                self.later(here.now_us, Event::Start(agent));
            }
        }
    }
}
