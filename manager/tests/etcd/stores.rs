//! Stores that keep their state in an etcd.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use rcluster_api::cluster::{Cluster, Manager, ManagerRole};
use rcluster_api::object::Object;
use rcluster_manager::core::state::{Change, State, Transaction};
use rcluster_manager::found::first_state;
use rcluster_manager::store::etcd::{Access, EtcdTiming, Fatal, found, start_with};
use rcluster_manager::store::{ProposeError, RoleKind, Store, StoreConfig};
use tokio::sync::watch;

use crate::promises::{has, soon, until};
use crate::server::Server;

/// A store of a manager.
#[derive(Debug)]
pub struct Running {
    pub store: Store,
    pub fatal: watch::Receiver<Option<String>>,
}

pub fn config(id: u64) -> StoreConfig {
    StoreConfig::new("cluster".to_owned(), format!("m{id}"), id, Vec::new(), PathBuf::new())
}

pub fn manager(id: u64) -> Manager {
    let name = format!("m{id}");
    let addr = format!("127.0.0.1:{}", 10_000 + id);
    Manager { id: name.as_str().into(), stamp: Default::default(), raft_id: id, name, addr, role: ManagerRole::Voter }
}

/// A transaction by which this manager joins.
pub fn join(id: u64) -> Transaction {
    Transaction { at_ms: 1, changes: vec![Change::Put { expected: 0, object: Object::Manager(manager(id)) }] }
}

pub fn first(count: u64) -> State {
    let managers = (1..=count).map(|id| Object::Manager(manager(id)));
    let cluster = Object::Cluster(Box::new(Cluster { managers_made: count, ..Cluster::default() }));
    first_state("cluster".to_owned(), managers.chain([cluster]).collect())
}

/// Short leases, so that a test need not wait long; the machine may be slow.
pub fn timing() -> EtcdTiming {
    EtcdTiming { lease: Duration::from_secs(4), pause: Duration::from_millis(500) }
}

pub async fn begin(config: StoreConfig, access: &Access) -> Result<Running, Fatal> {
    begin_timed(config, access, timing()).await
}

/// Leases that do not end while the machine stands still: leadership changes when it is given up, and not else.
pub fn steady() -> EtcdTiming {
    EtcdTiming { lease: Duration::from_secs(120), ..timing() }
}

pub async fn begin_timed(config: StoreConfig, access: &Access, timing: EtcdTiming) -> Result<Running, Fatal> {
    let (told, fatal) = watch::channel(None);
    let on_fatal = move |fatal: &Fatal| drop(told.send_replace(Some(fatal.to_string())));
    let store = start_with(config, timing, access, on_fatal).await?;
    Ok(Running { store, fatal })
}

/// Stores `1..=count` on an etcd of their own.
#[derive(Debug)]
pub struct Stores {
    pub server: Server,
    pub running: Vec<Running>,
}

impl Stores {
    pub async fn start(count: u64) -> Self {
        Self::start_tuned(count, |_| {}).await
    }

    pub async fn start_timed(count: u64, timing: EtcdTiming) -> Self {
        Self::start_with(count, timing, |_| {}).await
    }

    pub async fn start_tuned(count: u64, tune: impl Fn(&mut StoreConfig)) -> Self {
        Self::start_with(count, timing(), tune).await
    }

    pub async fn start_with(count: u64, timing: EtcdTiming, tune: impl Fn(&mut StoreConfig)) -> Self {
        let server = Server::start().await;
        assert!(found(&server.access(), "cluster", first(count)).await.unwrap());
        let mut running = Vec::new();
        for id in 1..=count {
            let mut config = config(id);
            tune(&mut config);
            running.push(begin_timed(config, &server.access(), timing).await.unwrap());
        }
        Self { server, running }
    }

    pub fn stores(&self) -> Vec<Store> {
        self.running.iter().map(|running| running.store.clone()).collect()
    }

    pub fn store(&self, index: usize) -> &Store {
        &self.running[index].store
    }

    /// Index of the one that leads, among those at `indices`.
    pub async fn leader_among(&self, indices: &[usize]) -> usize {
        let leads = |index: &&usize| self.store(**index).role().borrow().kind == RoleKind::Leader;
        until("a leader", || indices.iter().find(leads).copied()).await
    }

    pub async fn leader(&self) -> usize {
        let all: Vec<usize> = (0..self.running.len()).collect();
        self.leader_among(&all).await
    }

    /// Lets the one at `index` of two lead.
    pub async fn lead(&self, index: usize) {
        self.leader().await;
        give_up(self.store(1 - index), index as u64 + 1, self.store(index)).await;
    }

    /// Has `transaction` made by whoever leads among `indices`, trying again while nothing was proposed.
    pub async fn write(&self, indices: &[usize], transaction: &Transaction) -> u64 {
        let attempt = async {
            loop {
                let leader = self.leader_among(indices).await;
                match self.store(leader).propose(transaction.clone()).await {
                    Ok(revision) => return revision,
                    Err(ProposeError::NotLeader { .. }) => tokio::time::sleep(Duration::from_millis(2)).await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        soon("a write", attempt).await
    }

    /// Has `transaction` made by whoever leads, trying again also when nobody knows whether it was made.
    pub async fn write_whatever_comes(&self, transaction: &Transaction) {
        let attempt = async {
            loop {
                let leader = self.leader().await;
                match self.store(leader).propose(transaction.clone()).await {
                    // The attempt before has made it.
                    Ok(_) | Err(ProposeError::Conflict(_)) => return,
                    Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
                }
            }
        };
        soon("a write", attempt).await
    }

    pub async fn all_have(&self, indices: &[usize], id: &str) {
        until(id, || indices.iter().all(|index| has(&self.store(*index).state(), id)).then_some(())).await;
    }
}

/// Has one of two stores give leadership up to the other, called `id`, as often as it takes: one that is late does not get it.
pub async fn give_up(one: &Store, id: u64, other: &Store) {
    let leads = || (other.role().borrow().kind == RoleKind::Leader).then_some(());
    let handed_over = async {
        while leads().is_none() {
            one.transfer_leadership(id);
            within(Duration::from_secs(2), until("the other leads", leads)).await;
        }
    };
    soon("the other leads", handed_over).await;
}

/// What a future that is polled at most so long yields.
pub async fn within<T>(time: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(time, future).await.ok()
}
