//! A host: a name, a clock, perhaps a disk with a manager's log on it, and perhaps its process.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use raft::eraftpb::Message;
use rcluster_manager::core::state::State;
use rcluster_manager::store::{
    Assembled, Environment, Fatal, Inbound, Inbox, Input, Introduction, Job, Member, Node, RoleKind, Store, StoreConfig, StoreError,
    Transport, Watchdog, assemble,
};

use crate::disk::Disk;

/// A clock that does not go like the others.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// What it has shown at `since_us` of the virtual time.
    offset_us: u64,
    since_us: u64,
    /// Microseconds that it goes on in a second.
    rate: u64,
    /// When it has last jumped.
    jumped_us: Option<u64>,
}

const SECOND: u64 = 1_000_000;
/// Between two jumps. Agents' time does not jump along, as it would if a manager stood still for so long: jumps that follow each other would be
/// a silence in which nobody could have spoken.
const JUMPS_APART_US: u64 = 4 * SECOND;

impl Clock {
    pub fn new(offset_us: u64) -> Self {
        Self { offset_us, since_us: 0, rate: SECOND, jumped_us: None }
    }

    /// What it shows.
    pub fn show(&self, at_us: u64) -> Duration {
        Duration::from_micros(self.offset_us + (at_us - self.since_us) * self.rate / SECOND)
    }

    /// Goes on at another rate.
    pub fn set_rate(&mut self, at_us: u64, rate: u64) {
        self.offset_us = u64::try_from(self.show(at_us).as_micros()).expect("a simulation is short");
        (self.since_us, self.rate) = (at_us, rate);
    }

    /// Jumps ahead, if it has not done so a moment ago.
    pub fn jump(&mut self, at_us: u64, by_us: u64) {
        if self.jumped_us.is_none_or(|jumped| jumped + JUMPS_APART_US <= at_us) {
            self.jumped_us = Some(at_us);
            self.offset_us += by_us;
        }
    }

    /// How much virtual time passes while it goes on by so much.
    pub fn lasts(&self, by: Duration) -> u64 {
        u64::try_from(by.as_micros()).expect("a tick is short") * SECOND / self.rate
    }
}

/// What leaves a process, and when.
pub enum Out {
    Message(Message),
    Snapshot(Message, Box<State>),
}

/// What goes out at once: to the address that the sender takes for the receiver's, with what it says of itself.
pub struct Sent {
    pub at_us: u64,
    pub out: Out,
    pub addr: String,
    pub sender: Arc<Introduction>,
}

/// A process's end of what is made up: it runs when the world says, and its writes take their time.
#[derive(Clone)]
pub struct Local(Arc<Mutex<Surface>>);

struct Surface {
    now_us: u64,
    clock: Clock,
    out: Vec<Sent>,
    jobs: Vec<Job>,
    own: u64,
    /// Their addresses.
    members: BTreeMap<u64, String>,
    sender: Arc<Introduction>,
}

impl Surface {
    fn put(&mut self, to: u64, out: Out) {
        let addr = match self.members.get(&to) {
            Some(addr) => addr.clone(),
            None if matches!(out, Out::Message(_)) => return,
            // It has no way, and the world says that it did not arrive.
            None => String::new(),
        };
        self.out.push(Sent { at_us: self.now_us, out, addr, sender: self.sender.clone() });
    }
}

impl Local {
    fn surface(&self) -> MutexGuard<'_, Surface> {
        self.0.lock().expect("one thread runs everything")
    }

    /// The process waits for its disk.
    pub fn stall(&self, took_us: u64) {
        self.surface().now_us += took_us;
    }
}

impl Environment for Local {
    fn now(&self) -> Duration {
        let surface = self.surface();
        surface.clock.show(surface.now_us)
    }

    fn beside(&mut self, job: Job) -> io::Result<()> {
        self.surface().jobs.push(job);
        Ok(())
    }
}

impl Transport for Local {
    fn send(&mut self, message: Message) {
        self.surface().put(message.to, Out::Message(message));
    }

    fn send_snapshot(&mut self, message: Message, state: State) {
        self.surface().put(message.to, Out::Snapshot(message, Box::new(state)));
    }

    fn set_members(&mut self, members: &[Member], version: u64) {
        let mut surface = self.surface();
        surface.members = members.iter().map(|member| (member.id, member.addr.clone())).collect();
        if let Some(member) = members.iter().find(|member| member.id == surface.own).cloned() {
            surface.sender = Arc::new(Introduction { member, version });
        }
    }

    fn set_write(&mut self, _write_us: u64) {}

    fn is_connected(&self, _peer: u64) -> bool {
        true
    }
}

/// What a round has left to do for the world.
pub struct Round {
    /// When the process is free again.
    pub until_us: u64,
    pub out: Vec<Sent>,
    pub jobs: Vec<Job>,
}

/// A manager's process.
pub struct Process {
    pub store: Store,
    pub inbound: Inbound,
    pub inbox: Inbox,
    pub node: Node<Disk, Local>,
    watchdog: Arc<Watchdog>,
    inputs: Receiver<Input>,
    waiting: VecDeque<Input>,
    local: Local,
    /// Until when it waits for its disk, or does not run at all.
    pub busy_until_us: u64,
    /// Until when a round that begins does not end.
    hangs_until_us: u64,
    /// A round has begun that has not ended: it has taken in what there was, and nothing of that is on the disk, sent or published.
    pub is_hanging: bool,
    /// Whether a round is on its way that takes in what has arrived.
    pub is_woken: bool,
}

impl Process {
    pub fn start(config: StoreConfig, disk: Disk, clock: Clock, at_us: u64, seed: u64) -> Result<Self, StoreError> {
        let own = config.id;
        // Replaced as soon as it has its members.
        let member = Member { id: own, name: config.name.clone(), addr: String::new() };
        let sender = Arc::new(Introduction { member, version: 0 });
        let surface = Surface { now_us: at_us, clock, out: Vec::new(), jobs: Vec::new(), own, members: BTreeMap::new(), sender };
        let local = Local(Arc::new(Mutex::new(surface)));
        disk.attach(local.clone());
        let (mut kept, wire) = (None, local.clone());
        let transport = |inbox| {
            kept = Some(inbox);
            wire
        };
        let Assembled { store, inbound, node, inputs, watchdog } = assemble(config, disk, transport, Box::new(local.clone()), seed)?;
        let inbox = kept.expect("a transport is made once");
        Ok(Self {
            store,
            inbound,
            inbox,
            node,
            watchdog,
            inputs,
            waiting: VecDeque::new(),
            local,
            busy_until_us: at_us,
            hangs_until_us: 0,
            is_hanging: false,
            is_woken: false,
        })
    }

    /// The first round, and then one that takes in what has arrived, at most `batch_max` of it; `ticks`: its clock has ticked. The rounds
    /// are those of the store's own thread.
    pub fn round(&mut self, at_us: u64, clock: Clock, ticks: bool, first: bool, batch_max: usize) -> (Round, Result<(), Fatal>) {
        let now = clock.show(at_us);
        {
            let mut surface = self.local.surface();
            (surface.now_us, surface.clock) = (at_us, clock);
        }
        let hangs = at_us < self.hangs_until_us;
        let ended = self.live(now, ticks, first, batch_max, hangs);
        let mut surface = self.local.surface();
        let until_us = if self.is_hanging { self.hangs_until_us } else { surface.now_us };
        let (out, jobs) = (std::mem::take(&mut surface.out), std::mem::take(&mut surface.jobs));
        self.busy_until_us = until_us;
        (Round { until_us, out, jobs }, ended)
    }

    fn live(&mut self, now: Duration, ticks: bool, first: bool, batch_max: usize, hangs: bool) -> Result<(), Fatal> {
        if first {
            return self.node.start(now);
        }
        // One round ends before another begins.
        if std::mem::take(&mut self.is_hanging) {
            self.node.work(now)?;
        }
        self.take_in();
        for _ in 0..batch_max {
            let Some(input) = self.waiting.pop_front() else { break };
            self.node.handle(now, input)?;
        }
        if ticks {
            self.node.tick(now);
        }
        if hangs {
            // As the node says where it begins to work.
            self.watchdog.works(now);
            self.is_hanging = true;
            return Ok(());
        }
        self.node.work(now)
    }

    /// Its disk hangs until then: the next round that begins does not end before.
    pub fn hang(&mut self, until_us: u64) {
        self.hangs_until_us = until_us;
    }

    /// Whether its disk hangs, or a round that has hung has still to end.
    pub fn hangs(&self, at_us: u64) -> bool {
        self.is_hanging || at_us < self.hangs_until_us
    }

    /// Whatever it waits for is there.
    pub fn go_on(&mut self, at_us: u64) {
        self.busy_until_us = self.busy_until_us.min(at_us);
        self.hangs_until_us = self.hangs_until_us.min(at_us);
    }

    /// The watchdog looks, as it does from its thread; whether it has withdrawn the role.
    pub fn look(&self, now: Duration) -> bool {
        let led = self.leads();
        self.watchdog.look(now);
        led && !self.leads()
    }

    /// Whether it leads, as everyone in it is told.
    fn leads(&self) -> bool {
        self.store.role().borrow().kind == RoleKind::Leader
    }

    fn take_in(&mut self) {
        self.waiting.extend(self.inputs.try_iter());
    }

    /// Whether anything waits for a round.
    pub fn has_inputs(&mut self) -> bool {
        self.take_in();
        !self.waiting.is_empty()
    }
}

/// A manager's own: who it is, and its disk.
pub struct Manager {
    pub config: StoreConfig,
    pub disk: Disk,
}

/// The address of the host called `name` after so many moves.
pub fn address(name: &str, moves: u64) -> String {
    format!("{name}:{}", 7400 + moves)
}

/// A host.
pub struct Host {
    pub name: String,
    /// Where its process listens.
    pub addr: String,
    pub clock: Clock,
    pub manager: Option<Manager>,
    pub process: Option<Process>,
    /// Rises with each process: what was meant for an earlier one is not for this.
    pub life: u64,
    /// Until when nothing of its process runs.
    pub frozen_until_us: u64,
    /// Whether it is to become a manager, and tries on until it is one.
    pub joining: bool,
}

impl Host {
    pub fn new(name: String, clock: Clock) -> Self {
        let addr = address(&name, 0);
        Self { name, addr, clock, manager: None, process: None, life: 0, frozen_until_us: 0, joining: false }
    }

    /// Its manager's id in Raft.
    pub fn id(&self) -> Option<u64> {
        self.manager.as_ref().map(|manager| manager.config.id)
    }
}
