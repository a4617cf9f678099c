//! Several stores in one process, and the network between them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use raft::eraftpb::{Message, MessageType};
use rcluster_api::cluster::{Cluster, Manager, ManagerRole};
use rcluster_api::object::Object;
use rcluster_manager::core::state::{State, Transaction, encode_snapshot};
use rcluster_manager::found::first_state;
use rcluster_manager::store::{
    Fatal, Inbound, Inbox, Introduction, Member, ProposeError, RoleKind, Standing, Store, StoreConfig, Transport, start_with,
};
use tokio::sync::watch;

use crate::disk::Disk;
pub use crate::promises::{has, make, make_large, soon, until};

pub fn member(id: u64) -> Member {
    Member { id, name: format!("m{id}"), addr: format!("127.0.0.1:{}", 10_000 + id) }
}

pub fn members(count: u64) -> Vec<Member> {
    (1..=count).map(member).collect()
}

pub fn config(id: u64, count: u64) -> StoreConfig {
    StoreConfig::new("cluster".to_owned(), format!("m{id}"), id, members(count), PathBuf::new())
}

pub fn manager(member: &Member) -> Manager {
    let Member { id, name, addr } = member.clone();
    Manager { id: name.as_str().into(), stamp: Default::default(), raft_id: id, name, addr, role: ManagerRole::Voter }
}

/// The tables that a cluster of these begins with.
pub fn founded(members: &[Member]) -> State {
    let made = members.iter().map(|member| member.id).max().unwrap_or_default();
    let managers = members.iter().map(|member| Object::Manager(manager(member)));
    let cluster = Object::Cluster(Box::new(Cluster { managers_made: made, ..Cluster::default() }));
    first_state("cluster".to_owned(), managers.chain([cluster]).collect())
}

/// A network on which a member can be cut off.
#[derive(Debug, Clone, Default)]
pub struct Network(Arc<Mutex<Links>>);

#[derive(Debug, Default)]
struct Links {
    nodes: BTreeMap<u64, Inbound>,
    /// Where they listen.
    addrs: BTreeMap<u64, String>,
    cut: BTreeSet<u64>,
    snapshots: usize,
}

impl Network {
    fn links(&self) -> MutexGuard<'_, Links> {
        self.0.lock().unwrap()
    }

    pub fn join(&self, inbound: Inbound) {
        let mut links = self.links();
        links.addrs.entry(inbound.id).or_insert_with(|| member(inbound.id).addr);
        links.nodes.insert(inbound.id, inbound);
    }

    /// A member listens at another address from now on.
    pub fn move_to(&self, id: u64, addr: &str) {
        self.links().addrs.insert(id, addr.to_owned());
    }

    pub fn wire(&self, own: u64, inbox: Inbox) -> Wire {
        let sender = Introduction { member: Member { addr: String::new(), ..member(own) }, version: 0 };
        Wire { network: self.clone(), own, inbox, members: BTreeMap::new(), sender }
    }

    pub fn inbound(&self, id: u64) -> Inbound {
        self.links().nodes[&id].clone()
    }

    /// Has a member stand for election now.
    pub fn have_stand(&self, id: u64) {
        let mut message = Message { from: id, to: id, term: 1, ..Message::default() };
        message.set_msg_type(MessageType::MsgTimeoutNow);
        self.inbound(id).step(message).unwrap();
    }

    pub fn cut(&self, id: u64) {
        self.links().cut.insert(id);
    }

    pub fn heal(&self) {
        self.links().cut.clear();
    }

    /// Snapshots that have been sent.
    pub fn snapshots(&self) -> usize {
        self.links().snapshots
    }
}

/// One store's end of the network.
#[derive(Debug)]
pub struct Wire {
    network: Network,
    own: u64,
    inbox: Inbox,
    /// Their addresses, as the store has them.
    members: BTreeMap<u64, String>,
    sender: Introduction,
}

impl Transport for Wire {
    fn send(&mut self, message: Message) {
        let to = message.to;
        let links = self.network.links();
        let is_there = self.members.contains_key(&to) && self.members.get(&to) == links.addrs.get(&to);
        let target = links.nodes.get(&to).filter(|_| is_there && !links.cut.contains(&to) && !links.cut.contains(&self.own));
        let taken = target.is_some_and(|target| target.admit(self.sender.clone()) != Standing::Removed && target.step(message).is_ok());
        if !taken {
            self.inbox.unreachable(to);
        }
    }

    fn send_snapshot(&mut self, mut message: Message, state: State) {
        self.network.links().snapshots += 1;
        message.mut_snapshot().set_data(encode_snapshot(&state).into());
        let to = message.to;
        self.send(message);
        self.inbox.snapshot_sent(to, true);
    }

    fn set_members(&mut self, members: &[Member], version: u64) {
        self.members = members.iter().map(|member| (member.id, member.addr.clone())).collect();
        if let Some(member) = members.iter().find(|member| member.id == self.own).cloned() {
            self.sender = Introduction { member, version };
        }
    }

    fn set_write(&mut self, _write_us: u64) {}

    fn is_connected(&self, peer: u64) -> bool {
        let links = self.network.links();
        !links.cut.contains(&peer) && !links.cut.contains(&self.own)
    }
}

/// Stores `1..=count` on disks of their own.
#[derive(Debug)]
pub struct Stores {
    pub network: Network,
    pub configs: Vec<StoreConfig>,
    pub disks: Vec<Disk>,
    pub stores: Vec<Store>,
    pub fatal: Vec<watch::Receiver<Option<String>>>,
}

impl Stores {
    pub fn start(count: u64) -> Self {
        Self::start_tuned(count, |_| {})
    }

    pub fn start_tuned(count: u64, tune: impl Fn(&mut StoreConfig)) -> Self {
        let mut cluster = Self { network: Network::default(), configs: vec![], disks: vec![], stores: vec![], fatal: vec![] };
        for id in 1..=count {
            let mut config = config(id, count);
            tune(&mut config);
            let disk = Disk::new(&config);
            let (store, fatal) = cluster.start_on(config.clone(), disk.clone());
            cluster.configs.push(config);
            cluster.disks.push(disk);
            cluster.stores.push(store);
            cluster.fatal.push(fatal);
        }
        cluster
    }

    /// A store without a log that knows the members there are and itself.
    pub fn join(&mut self, id: u64) -> usize {
        let mut seeds = members(self.stores.len() as u64);
        seeds.push(member(id));
        let config = StoreConfig { seeds, ..config(id, 0) };
        let disk = Disk::empty(&config);
        let (store, fatal) = self.start_on(config.clone(), disk.clone());
        self.configs.push(config);
        self.disks.push(disk);
        self.stores.push(store);
        self.fatal.push(fatal);
        self.stores.len() - 1
    }

    fn start_on(&self, config: StoreConfig, disk: Disk) -> (Store, watch::Receiver<Option<String>>) {
        let (told, fatal) = watch::channel(None);
        let id = config.id;
        let on_fatal = move |fatal: &Fatal| {
            told.send_replace(Some(fatal.to_string()));
        };
        let (store, inbound) = start_with(config, disk, |inbox| self.network.wire(id, inbox), on_fatal).unwrap();
        self.network.join(inbound);
        (store, fatal)
    }

    /// Starts the store at `index` again from its disk.
    pub fn restart(&mut self, index: usize) {
        let (store, fatal) = self.start_on(self.configs[index].clone(), self.disks[index].clone());
        (self.stores[index], self.fatal[index]) = (store, fatal);
    }

    /// Index of a store that leads, among those at `indices`.
    pub async fn leader_among(&self, indices: &[usize]) -> usize {
        let leads = |index: &&usize| self.stores[**index].role().borrow().kind == RoleKind::Leader;
        until("a leader", || indices.iter().find(leads).copied()).await
    }

    pub async fn leader(&self) -> usize {
        let all: Vec<usize> = (0..self.stores.len()).collect();
        self.leader_among(&all).await
    }

    /// Has `transaction` made by whoever leads among `indices`, trying again while nothing was proposed.
    pub async fn write(&self, indices: &[usize], transaction: &Transaction) -> u64 {
        let attempt = async {
            loop {
                let leader = self.leader_among(indices).await;
                match self.stores[leader].propose(transaction.clone()).await {
                    Ok(revision) => return revision,
                    Err(ProposeError::NotLeader { .. }) => tokio::time::sleep(std::time::Duration::from_millis(2)).await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        soon("a write", attempt).await
    }

    /// Waits until all stores at `indices` have `id`.
    pub async fn all_have(&self, indices: &[usize], id: &str) {
        until(id, || indices.iter().all(|index| has(&self.stores[*index].state(), id)).then_some(())).await;
    }
}
