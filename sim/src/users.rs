//! Who uses the managers: clients that write and read, and whoever joins, removes and promotes managers. They know only what they are
//! told.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use prost::Message as _;
use raft::GetEntriesContext;
use raft::eraftpb::EntryType;
use rand::Rng;
use rand::seq::IteratorRandom;
use rcluster_api::cluster::{Manager, ManagerRole};
use rcluster_api::object::{Event, Kind, Object, Stamp};
use rcluster_api::wire::v1;
use rcluster_manager::core::members::{self, Step, departed, next};
use rcluster_manager::core::plan::{ChangeSet, Ctx};
use rcluster_manager::core::state::{Change, Draft, State, Transaction, decode_transaction};
use rcluster_manager::drive::standing;
use rcluster_manager::store::{MemberChange, ProposeError, RoleKind, Store};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::check::{Fate, Violation};
use crate::host::{Host, Process, address};
use crate::network::exponential;
use crate::world::{Event as Happening, World};

/// Longest wait for an answer; the store's own readers wait as long.
const PATIENCE_US: u64 = 3_000_000;
/// Mean time of a client between two requests in a lull.
const LULL_THINK_US: u64 = 20_000_000;
/// Longest mean pause of a client once the faults have ended.
const CALM_THINK_US: u64 = 100_000;
/// Most objects of one transaction.
const OBJECTS_MAX: usize = 3;
/// How soon a host that could not join tries again.
const JOIN_AGAIN_US: u64 = 1_000_000;
/// Most managers.
const HOSTS_MAX: usize = 8;

type Proposal = Pin<Box<dyn Future<Output = Result<u64, ProposeError>>>>;

/// Who waits for an answer.
#[derive(Debug, Clone)]
pub enum Who {
    Client(usize),
    /// One who begins to watch, at its session of this number.
    Watcher(usize, u64),
    /// One whose watch has been silent: its manager asks whether it hears of everything.
    Listener(usize, u64),
    /// The host that joins as this manager.
    Joiner(usize, Box<Manager>),
    Operator,
}

enum Answer {
    Write { number: u64, proposal: Proposal },
    Read(oneshot::Receiver<()>),
}

/// A request without an answer yet.
pub struct Request {
    who: Who,
    pub host: usize,
    pub life: u64,
    floor: u64,
    until_us: u64,
    answer: Answer,
}

fn poll(proposal: &mut Proposal) -> Option<Result<u64, ProposeError>> {
    match proposal.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    }
}

fn fate(outcome: &Result<u64, ProposeError>) -> Fate {
    match outcome {
        Ok(revision) => Fate::Made(*revision),
        Err(ProposeError::Conflict(_)) => Fate::Conflict,
        Err(ProposeError::Unavailable) => Fate::Unknown,
        Err(ProposeError::NotLeader { .. } | ProposeError::TooLarge { .. } | ProposeError::ShuttingDown | ProposeError::NoVoters) => {
            Fate::Refused
        }
    }
}

impl World {
    /// A client's next request, to the manager that it takes for the leader or to any other.
    pub fn act(&mut self, client: usize) -> Result<(), Violation> {
        let hosts = (0..self.hosts.len()).filter(|at| self.hosts[*at].process.is_some());
        let Some(any) = hosts.choose(&mut self.chances.users) else {
            self.rest(client);
            return Ok(());
        };
        let host = if self.chances.users.random_bool(0.8) { self.leader().unwrap_or(any) } else { any };
        let reads = if self.is_calm { 0.5 } else { self.plan.reads };
        if self.chances.users.random_bool(reads) { self.read(Who::Client(client), host) } else { self.write(client, host) }
    }

    /// Whether a client has a request without an answer.
    pub fn waits(&self, client: usize) -> bool {
        self.requests.iter().any(|request| matches!(request.who, Who::Client(who) if who == client))
    }

    fn rest(&mut self, client: usize) {
        let think_us = match (self.is_calm, self.is_lull) {
            (true, _) => CALM_THINK_US.min(self.plan.think_us),
            (false, true) => LULL_THINK_US,
            (false, false) => self.plan.think_us,
        };
        let pause_us = exponential(&mut self.chances.users, think_us).max(100);
        self.queue.push(self.now_us + pause_us, Happening::Client(client, self.left));
    }

    /// Asks a host for what was committed before now.
    pub fn read(&mut self, who: Who, host: usize) -> Result<(), Violation> {
        let Some(process) = &self.hosts[host].process else { return Ok(()) };
        let Ok(receiver) = process.store.ask_read() else {
            self.has_not_read(&who);
            return Ok(());
        };
        self.requests.push(Request {
            who,
            host,
            life: self.hosts[host].life,
            floor: self.checker.floor,
            until_us: self.now_us + PATIENCE_US,
            answer: Answer::Read(receiver),
        });
        self.wake(host)
    }

    fn write(&mut self, client: usize, host: usize) -> Result<(), Violation> {
        let Some(process) = &self.hosts[host].process else { return Ok(()) };
        let state = process.store.state();
        let chance = &mut self.chances.users;
        let count = chance.random_range(1..=OBJECTS_MAX.min(self.plan.keys));
        let keys = (0..self.plan.keys).choose_multiple(chance, count);
        let mut changes = Vec::with_capacity(count);
        for key in keys {
            let id = format!("k{key:02}");
            let version = state.version(Kind::Event, &id);
            let expected = if chance.random_bool(0.05) { version + 1 } else { version };
            changes.push(if version > 0 && chance.random_bool(0.2) {
                Change::Delete { expected, kind: Kind::Event, id }
            } else {
                Change::Put { expected, object: Object::Event(event(id, chance.random_range(0..40))) }
            });
        }
        self.propose(Who::Client(client), host, Transaction { at_ms: 0, changes })
    }

    /// Proposes under a number of its own, which stands in the log as the transaction's time.
    fn propose(&mut self, who: Who, host: usize, transaction: Transaction) -> Result<(), Violation> {
        let Some(process) = &self.hosts[host].process else { return Ok(()) };
        self.writes += 1;
        let number = self.writes;
        let (store, transaction) = (process.store.clone(), Transaction { at_ms: number, ..transaction });
        self.checker.begin(number);
        let mut proposal: Proposal = Box::pin(async move { store.propose(transaction).await });
        let refused = poll(&mut proposal);
        let request = Request {
            who,
            host,
            life: self.hosts[host].life,
            floor: self.checker.floor,
            until_us: self.now_us + PATIENCE_US,
            answer: Answer::Write { number, proposal },
        };
        match refused {
            Some(outcome) => self.written(&request, number, &outcome),
            None => {
                self.requests.push(request);
                self.wake(host)
            }
        }
    }

    /// Looks who has an answer from a host, or waits no longer.
    pub fn answer(&mut self, of: Option<usize>) -> Result<(), Violation> {
        let mut at = 0;
        while let Some(request) = self.requests.get_mut(at) {
            if of.is_some_and(|host| host != request.host) {
                at += 1;
                continue;
            }
            let gives_up = request.until_us <= self.now_us;
            match &mut request.answer {
                Answer::Write { number, proposal } => {
                    let number = *number;
                    let Some(outcome) = poll(proposal).or_else(|| gives_up.then_some(Err(ProposeError::Unavailable))) else {
                        at += 1;
                        continue;
                    };
                    let request = self.requests.remove(at);
                    self.written(&request, number, &outcome)?;
                }
                Answer::Read(receiver) => {
                    let answered = receiver.try_recv();
                    if answered == Err(TryRecvError::Empty) && !gives_up {
                        at += 1;
                        continue;
                    }
                    let request = self.requests.remove(at);
                    let Host { process, life, .. } = &self.hosts[request.host];
                    match process.as_ref().filter(|_| answered.is_ok() && *life == request.life) {
                        Some(process) => {
                            let (id, state) = (process.inbound.id, process.store.state());
                            self.has_read(&request, id, &state)?;
                        }
                        None => self.has_not_read(&request.who),
                    }
                }
            }
        }
        Ok(())
    }

    /// A read was answered.
    fn has_read(&mut self, request: &Request, id: u64, state: &State) -> Result<(), Violation> {
        self.reads += 1;
        self.checker.read(id, state, request.floor)?;
        match request.who {
            Who::Watcher(client, session) => return self.begin_watch(client, session, request.host),
            Who::Listener(client, session) => return self.has_listened(client, session),
            Who::Client(client) => {
                self.served.1 += usize::from(self.is_calm);
                self.rest(client);
            }
            Who::Joiner(..) | Who::Operator => {}
        }
        Ok(())
    }

    /// A read was not answered, and never will be.
    fn has_not_read(&mut self, who: &Who) {
        match *who {
            Who::Client(client) => self.rest(client),
            Who::Watcher(client, session) => self.watch_again(client, session),
            Who::Listener(client, session) => self.end_watch(client, session),
            Who::Joiner(..) | Who::Operator => {}
        }
    }

    fn written(&mut self, request: &Request, number: u64, outcome: &Result<u64, ProposeError>) -> Result<(), Violation> {
        self.checker.end(number, fate(outcome), request.floor)?;
        match &request.who {
            Who::Client(client) => {
                self.served.0 += usize::from(self.is_calm && outcome.is_ok());
                self.rest(*client);
            }
            Who::Joiner(host, manager) if outcome.is_ok() => self.joined(*host, manager)?,
            Who::Joiner(host, _) => self.queue.push(self.now_us + JOIN_AGAIN_US, Happening::Join(*host)),
            Who::Operator | Who::Watcher(..) | Who::Listener(..) => {}
        }
        Ok(())
    }

    /// A host whose manager leads, as it says itself.
    pub fn leader(&self) -> Option<usize> {
        let leads = |store: &Store| store.role().borrow().kind == RoleKind::Leader;
        (0..self.hosts.len()).find(|at| self.hosts[*at].process.as_ref().is_some_and(|process| leads(&process.store)))
    }

    /// Has the leader make what `decide` says, from the tables and what it knows of the others; a refusal is taken as one.
    fn administer(
        &mut self,
        who: impl FnOnce(&Manager) -> Who,
        decide: impl FnOnce(&State, &members::Standing, &mut Ctx) -> Option<(ChangeSet, Manager)>,
    ) -> Result<bool, Violation> {
        let Some(host) = self.leader() else { return Ok(false) };
        // One that stands still answers nobody.
        let process = self.hosts[host].process.as_ref().filter(|process| process.busy_until_us <= self.now_us);
        // A brain has one proposal on its way: it decides once it knows what has become of those before.
        let Some(process) = process.filter(|process| !members_on_their_way(process)) else { return Ok(false) };
        let state = process.store.state();
        let mut ctx = Ctx::new(self.now_us / 1000, self.chances.users.random());
        let Some((changes, manager)) = decide(&state, &standing(&process.store.status()), &mut ctx) else { return Ok(false) };
        let transaction = transaction(state, changes);
        if transaction.changes.is_empty() {
            return Ok(false);
        }
        self.propose(who(&manager), host, transaction)?;
        Ok(true)
    }

    /// A host without a manager asks to be one.
    pub fn join(&mut self, host: usize) -> Result<(), Violation> {
        if !self.hosts[host].joining || self.hosts[host].manager.is_some() {
            return Ok(());
        }
        let Host { name, addr, .. } = &self.hosts[host];
        let (name, addr) = (name.clone(), addr.clone());
        let asked = self.administer(
            |manager| Who::Joiner(host, Box::new(manager.clone())),
            |state, standing, ctx| members::add(state, &name, &addr, standing, ctx).ok(),
        )?;
        if !asked {
            self.queue.push(self.now_us + JOIN_AGAIN_US, Happening::Join(host));
        }
        Ok(())
    }

    /// A new host, as long as there is room.
    pub fn add_host(&mut self) -> Result<(), Violation> {
        if let Some(host) = (0..self.hosts.len()).find(|at| self.hosts[*at].manager.is_none() && !self.hosts[*at].joining) {
            self.hosts[host].joining = true;
            return self.join(host);
        }
        if self.hosts.len() < HOSTS_MAX {
            let host = self.new_host();
            self.hosts[host].joining = true;
            return self.join(host);
        }
        Ok(())
    }

    /// A manager is removed, if it is not refused.
    pub fn remove_manager(&mut self) -> Result<(), Violation> {
        let chosen = self.any_manager();
        self.administer(
            |_| Who::Operator,
            |state, standing, _| {
                let manager = chosen?;
                Some((members::remove(state, &manager.name, standing).ok()?, manager))
            },
        )?;
        Ok(())
    }

    /// A manager is to vote, or not to vote, if it is not refused.
    pub fn change_role(&mut self) -> Result<(), Violation> {
        let chosen = self.any_manager();
        self.administer(
            |_| Who::Operator,
            |state, standing, _| {
                let manager = chosen?;
                let role = match manager.role {
                    ManagerRole::Voter => ManagerRole::Standby,
                    ManagerRole::Standby | ManagerRole::Leaving => ManagerRole::Voter,
                };
                Some((members::update(state, &manager.name, Some(role), "", standing).ok()?, manager))
            },
        )?;
        Ok(())
    }

    /// A manager is to be at another address.
    pub fn move_manager(&mut self) -> Result<(), Violation> {
        let Some(manager) = self.any_manager() else { return Ok(()) };
        self.moves += 1;
        let addr = address(&manager.name, self.moves);
        self.administer(
            |_| Who::Operator,
            |state, standing, _| Some((members::update(state, &manager.name, None, &addr, standing).ok()?, manager)),
        )?;
        Ok(())
    }

    /// Whoever looks after the hosts sees in the objects where a manager is to be, and starts it there.
    pub fn move_hosts(&mut self) -> Result<(), Violation> {
        for host in 0..self.hosts.len() {
            let Some(id) = self.hosts[host].id() else { continue };
            let manager = self.checker.latest().managers().values().find(|manager| manager.raft_id == id).cloned();
            if let Some(manager) = manager.filter(|manager| manager.addr != self.hosts[host].addr) {
                self.tell(|| format!("h{host} moves to {}", manager.addr));
                self.hosts[host].addr.clone_from(&manager.addr);
                self.stop(host)?;
            }
        }
        Ok(())
    }

    /// The leader forgets who has left.
    pub fn forget(&mut self, host: usize) -> Result<(), Violation> {
        let Some(process) = &self.hosts[host].process else { return Ok(()) };
        let (state, seen) = (process.store.state(), standing(&process.store.status()));
        let Ok(changes) = members::forget(&state, &seen, self.now_us / 1000) else { return Ok(()) };
        self.propose(Who::Operator, host, transaction(state, changes))
    }

    /// Does what `drive/members` does, where the leader is.
    pub fn keep(&mut self) -> Result<(), Violation> {
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

    fn any_manager(&mut self) -> Option<Manager> {
        let managers = self.checker.latest().managers().clone();
        managers.values().choose(&mut self.chances.users).map(|manager| (**manager).clone())
    }
}

/// Whether the log holds changes of managers that are not applied yet; or may hold them, where it cannot be read.
fn members_on_their_way(process: &Process) -> bool {
    let raft = process.node.raft();
    let (applied, last) = (raft.store().applied(), raft.raft_log.last_index());
    let Ok(entries) = raft.raft_log.slice(applied + 1, last + 1, None, GetEntriesContext::empty(false)) else { return true };
    let is_of_manager = |change: &Change| match change {
        Change::Put { object, .. } => object.kind() == Kind::Manager,
        Change::Delete { kind, .. } => *kind == Kind::Manager,
        Change::Answer(_) => false,
    };
    let transactions = entries.iter().filter(|entry| !entry.data.is_empty() && entry.get_entry_type() == EntryType::EntryNormal);
    let mut transactions = transactions.filter_map(|entry| decode_transaction(v1::Transaction::decode(&entry.data[..]).ok()?).ok());
    transactions.any(|transaction| transaction.changes.iter().any(is_of_manager))
}

fn transaction(state: State, changes: ChangeSet) -> Transaction {
    let mut draft = Draft::new(state, 0);
    for (kind, id) in changes.deletes {
        draft.delete(kind, &id);
    }
    for object in changes.puts {
        draft.put(object);
    }
    draft.into_transaction()
}

fn event(id: String, bytes: usize) -> Event {
    Event {
        id: id.into(),
        stamp: Stamp::default(),
        kind: String::new(),
        object_id: String::new(),
        object: String::new(),
        reason: String::new(),
        message: "x".repeat(bytes),
    }
}
