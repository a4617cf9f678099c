//! Stores whose rounds, clock and messages a test moves itself, one after the other: what happens is what the test says, and no more.
//!
//! Held in every test: what a manager promises to others, or shows to its own process, is on its disk before.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use raft::StateRole;
use raft::eraftpb::{ConfState, Message, MessageType};
use rcluster_manager::core::state::{State, Transaction, encode_snapshot};
use rcluster_manager::store::{
    Assembled, Environment, Fatal, Inbound, Inbox, Input, Job, Member, MemberChange, Node, ProposeError, Store, StoreConfig, Transport,
    assemble,
};

use crate::disk::Disk;
use crate::world::{config, member};

/// Rounds of messages after which something goes in circles.
const ROUNDS_MAX: usize = 1000;

/// What was sent and has not arrived.
#[derive(Debug)]
pub struct Sent {
    pub message: Message,
    /// The tables, of a snapshot.
    pub state: Option<State>,
}

impl Sent {
    pub fn is(&self, kind: MessageType) -> bool {
        self.message.get_msg_type() == kind
    }

    /// Whether it is from or to this one.
    pub fn concerns(&self, id: u64) -> bool {
        self.message.from == id || self.message.to == id
    }
}

#[derive(Debug, Default)]
struct Surroundings {
    now: Duration,
    post: Vec<Sent>,
}

/// One store's clock and its end of the wire.
#[derive(Clone)]
pub struct Local {
    shared: Arc<Mutex<Surroundings>>,
    /// Looked at when something is promised that must be on it.
    disk: Disk,
    jobs: Arc<Mutex<Vec<Job>>>,
}

impl Local {
    fn shared(&self) -> MutexGuard<'_, Surroundings> {
        self.shared.lock().unwrap()
    }

    fn check_promise(&self, message: &Message) {
        let (kind, state) = (message.get_msg_type(), self.disk.hard_state());
        if kind == MessageType::MsgAppendResponse && !message.reject {
            assert!(message.index <= self.disk.last(), "entry {} is confirmed, and the disk ends at {}", message.index, self.disk.last());
        }
        if kind == MessageType::MsgRequestVoteResponse && !message.reject {
            assert_eq!((state.term, state.vote), (message.term, message.to), "a vote is given that is not on the disk");
        }
    }
}

impl Environment for Local {
    fn now(&self) -> Duration {
        self.shared().now
    }

    fn beside(&mut self, job: Job) -> io::Result<()> {
        self.jobs.lock().unwrap().push(job);
        Ok(())
    }
}

impl Transport for Local {
    fn send(&mut self, message: Message) {
        self.check_promise(&message);
        self.shared().post.push(Sent { message, state: None });
    }

    fn send_snapshot(&mut self, message: Message, state: State) {
        self.shared().post.push(Sent { message, state: Some(state) });
    }

    fn set_members(&mut self, _members: &[Member], _version: u64) {}

    fn set_write(&mut self, _write_us: u64) {}

    fn is_connected(&self, _peer: u64) -> bool {
        true
    }
}

/// One of the stores.
pub struct Machine {
    pub store: Store,
    pub disk: Disk,
    pub node: Node<Disk, Local>,
    pub inbound: Inbound,
    inbox: Inbox,
    inputs: Receiver<Input>,
    /// Looked at, and not taken in yet.
    waiting: Vec<Input>,
    jobs: Arc<Mutex<Vec<Job>>>,
}

impl Machine {
    fn run(&mut self, now: Duration) -> Result<(), Fatal> {
        loop {
            for input in std::mem::take(&mut self.waiting).into_iter().chain(self.inputs.try_iter()) {
                self.node.handle(now, input)?;
            }
            self.node.work(now)?;
            let (state, committed) = (self.store.state(), self.disk.hard_state().commit);
            let revision = state.revision();
            assert!(revision <= self.disk.last(), "revision {revision} is shown, and the disk ends at {}", self.disk.last());
            let managers = state.managers().values().map(|manager| manager.stamp.version).max().unwrap_or_default();
            assert!(managers <= committed, "managers of {managers} are shown, and the disk knows only {committed} to be committed");
            let jobs = std::mem::take(&mut *self.jobs.lock().unwrap());
            if jobs.is_empty() {
                return Ok(());
            }
            jobs.into_iter().for_each(|job| job());
        }
    }

    /// What has come in, and is taken in with the next round.
    pub fn waiting(&mut self) -> &[Input] {
        self.waiting.extend(self.inputs.try_iter());
        &self.waiting
    }

    /// Who takes part, as Raft has it.
    pub fn configuration(&self) -> ConfState {
        self.node.raft().prs().conf().to_conf_state()
    }
}

/// An answer that a test waits for without waiting.
pub struct Asked<T>(Pin<Box<dyn Future<Output = T>>>);

impl<T> Asked<T> {
    fn new(future: impl Future<Output = T> + 'static) -> Self {
        let mut asked = Self(Box::pin(future));
        // What it asks is asked when it is looked at for the first time.
        assert!(asked.answer().is_none(), "nobody can have answered yet");
        asked
    }

    /// The answer, if it is there. Not to be asked again after that.
    pub fn answer(&mut self) -> Option<T> {
        match self.0.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => None,
        }
    }
}

/// The stores, by id, and what is on the wire.
pub struct ByHand {
    pub machines: BTreeMap<u64, Machine>,
    /// Those that could not go on, and why.
    pub ended: BTreeMap<u64, String>,
    shared: Arc<Mutex<Surroundings>>,
    tick: Duration,
}

impl ByHand {
    /// Voters `1..=count`.
    pub fn new(count: u64) -> Self {
        Self::tuned(count, |_| {})
    }

    pub fn tuned(count: u64, tune: impl Fn(&mut StoreConfig)) -> Self {
        let tick = config(1, 1).timing.tick;
        let mut hand = Self { machines: BTreeMap::new(), ended: BTreeMap::new(), shared: Arc::default(), tick };
        for id in 1..=count {
            let mut config = config(id, count);
            tune(&mut config);
            hand.start(config.clone(), Disk::new(&config), id);
        }
        hand
    }

    /// A store without a log, which knows where the others are.
    pub fn join(&mut self, id: u64) {
        let seeds = self.machines.keys().chain([&id]).map(|id| member(*id)).collect();
        let config = StoreConfig { seeds, ..config(id, 0) };
        self.start(config.clone(), Disk::empty(&config), id);
    }

    fn start(&mut self, config: StoreConfig, disk: Disk, seed: u64) {
        let (jobs, id) = (Arc::default(), config.id);
        let local = Local { shared: self.shared.clone(), disk: disk.clone(), jobs: Arc::clone(&jobs) };
        let (transport, mut inbox) = (local.clone(), None);
        let give = |given| {
            inbox = Some(given);
            transport
        };
        let Assembled { store, inbound, mut node, inputs, .. } = assemble(config, disk.clone(), give, Box::new(local), seed).unwrap();
        node.start(self.now()).unwrap();
        self.machines.insert(id, Machine { store, disk, node, inbound, inbox: inbox.unwrap(), inputs, waiting: Vec::new(), jobs });
    }

    fn now(&self) -> Duration {
        self.shared.lock().unwrap().now
    }

    /// Lets a store do all that it has to do now. One that cannot go on is there no more.
    pub fn run(&mut self, id: u64) {
        let now = self.now();
        if let Some(machine) = self.machines.get_mut(&id)
            && let Err(fatal) = machine.run(now)
        {
            self.machines.remove(&id);
            self.ended.insert(id, fatal.to_string());
        }
    }

    /// Raft's clock goes on by one for these stores, and time for all.
    pub fn tick(&mut self, ids: &[u64]) {
        self.wait(self.tick);
        let now = self.now();
        for id in ids {
            if let Some(machine) = self.machines.get_mut(id) {
                machine.node.tick(now);
            }
            self.run(*id);
        }
    }

    /// Time goes on, and no store's Raft clock.
    pub fn wait(&mut self, time: Duration) {
        self.shared.lock().unwrap().now += time;
    }

    /// What is on the wire now; it is there no more.
    pub fn take(&mut self) -> Vec<Sent> {
        std::mem::take(&mut self.shared.lock().unwrap().post)
    }

    /// Brings one message to its receiver.
    pub fn bring(&mut self, sent: Sent) {
        let Sent { mut message, state } = sent;
        let (from, to) = (message.from, message.to);
        let Some(machine) = self.machines.get(&to) else { return };
        let is_snapshot = state.is_some();
        if let Some(state) = state {
            message.mut_snapshot().set_data(encode_snapshot(&state).into());
        }
        machine.inbound.step(message).unwrap();
        if is_snapshot && let Some(sender) = self.machines.get(&from) {
            sender.inbox.snapshot_sent(to, true);
            self.run(from);
        }
        self.run(to);
    }

    /// Brings messages before their receivers look at any of them.
    pub fn bring_at_once(&mut self, sent: Vec<Sent>) {
        let receivers: BTreeSet<u64> = sent.iter().map(|sent| sent.message.to).collect();
        for Sent { message, state } in sent {
            assert!(state.is_none(), "snapshots are brought one by one");
            self.machines[&message.to].inbound.step(message).unwrap();
        }
        receivers.into_iter().for_each(|id| self.run(id));
    }

    /// Brings what is on the wire, and what follows, until nothing is left but what does not `pass`.
    pub fn deliver(&mut self, mut pass: impl FnMut(&Sent) -> bool) -> Vec<Sent> {
        let mut held = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let (passing, other): (Vec<Sent>, Vec<Sent>) = self.take().into_iter().partition(&mut pass);
            held.extend(other);
            if passing.is_empty() {
                return held;
            }
            passing.into_iter().for_each(|sent| self.bring(sent));
        }
        panic!("messages go in circles");
    }

    pub fn deliver_all(&mut self) {
        self.deliver(|_| true);
    }

    pub fn leads(&self, id: u64) -> bool {
        self.machines[&id].node.raft().state == StateRole::Leader
    }

    /// Lets time go by until `id` leads; what does not `pass` meanwhile is handed back. Who leads now stands still.
    pub fn elect(&mut self, id: u64, mut pass: impl FnMut(&Sent) -> bool) -> Vec<Sent> {
        let (all, mut held): (Vec<u64>, _) = (self.machines.keys().copied().filter(|id| !self.leads(*id)).collect(), Vec::new());
        for round in 0..ROUNDS_MAX {
            if self.leads(id) {
                return held;
            }
            // The others miss their leader, and do not stand themselves.
            self.tick(if round < config(1, 1).timing.election { &all } else { std::slice::from_ref(&id) });
            held.extend(self.deliver(&mut pass));
        }
        panic!("{id} never leads");
    }

    /// So many voters that have all their leader has, which is the first.
    pub fn led(count: u64) -> Self {
        let mut hand = Self::new(count);
        hand.elect(1, |_| true);
        hand.beat(|_| true);
        hand
    }

    /// The first store's clock goes on for a heartbeat, and what follows comes about, as far as it passes.
    pub fn beat(&mut self, pass: impl FnMut(&Sent) -> bool) -> Vec<Sent> {
        (0..config(1, 1).timing.heartbeat).for_each(|_| self.tick(&[1]));
        self.deliver(pass)
    }

    pub fn propose(&mut self, id: u64, transaction: Transaction) -> Asked<Result<u64, ProposeError>> {
        let asked = self.propose_unheard(id, transaction);
        self.run(id);
        asked
    }

    /// Proposes to a store that does nothing meanwhile, as while its disk hangs.
    pub fn propose_unheard(&self, id: u64, transaction: Transaction) -> Asked<Result<u64, ProposeError>> {
        let store = self.machines[&id].store.clone();
        Asked::new(async move { store.propose(transaction).await })
    }

    /// Asks the first store for a change; it is proposed, and no more.
    pub fn change(&mut self, changes: &[MemberChange]) {
        let (store, changes) = (self.machines[&1].store.clone(), changes.to_vec());
        let mut asked = Asked::new(async move { store.change_members(changes).await });
        self.run(1);
        asked.answer().unwrap().unwrap();
    }

    pub fn read(&mut self, id: u64) -> Asked<bool> {
        let answer = self.machines[&id].store.ask_read().unwrap();
        let asked = Asked::new(async move { answer.await.is_ok() });
        self.run(id);
        asked
    }

    /// What `from` sent to `to` was lost; `from` takes it in with what comes in next.
    pub fn report_unreachable(&self, from: u64, to: u64) {
        self.machines[&from].inbox.unreachable(to);
    }

    /// A snapshot of `from` to `to` did not arrive.
    pub fn report_lost(&mut self, from: u64, to: u64) {
        self.machines[&from].inbox.snapshot_sent(to, false);
        self.run(from);
    }
}
