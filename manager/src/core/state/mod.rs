//! The replicated state: tables of objects, indices over them, and the one way to change them.
//!
//! In: transactions in log order. Out: the tables at a revision; a clone is a snapshot and costs nothing. The tables hold no policy:
//! a transaction says what the objects are to be, and is applied whole or refused as a conflict.

mod answers;
mod change;
mod codec;
mod draft;
mod history;
mod weight;

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use rcluster_api::cluster::{Cluster, Manager, ManagerRole, User};
use rcluster_api::data::{Data, DataKind};
use rcluster_api::id::{DataId, EventId, ManagerId, NetworkId, NodeId, ServiceId, TaskId, UserId};
use rcluster_api::object::{Event, Kind, Network, Node, Object, Service, Task};
use rcluster_api::task::TaskState;

pub use answers::{ANSWER_LIFE_MS, ANSWERS_BYTES_MAX, ANSWERS_MAX, Answered, Answers, PENDING};
pub use change::{Change, Conflict, Transaction};
pub use codec::{CodecError, SNAPSHOT_FORMAT, decode_snapshot, decode_transaction, encode_snapshot, encode_transaction};
pub use draft::Draft;
pub use history::{CHANGES_MAX, Compacted, History, Key};
pub use weight::{Size, weight};

/// All objects at one revision.
#[derive(Debug, Clone, Default)]
pub struct State {
    revision: u64,
    cluster_id: String,
    services: OrdMap<ServiceId, Arc<Service>>,
    tasks: OrdMap<TaskId, Arc<Task>>,
    nodes: OrdMap<NodeId, Arc<Node>>,
    networks: OrdMap<NetworkId, Arc<Network>>,
    events: OrdMap<EventId, Arc<Event>>,
    data: OrdMap<DataId, Arc<Data>>,
    managers: OrdMap<ManagerId, Arc<Manager>>,
    users: OrdMap<UserId, Arc<User>>,
    cluster: Option<Arc<Cluster>>,
    service_names: OrdMap<String, ServiceId>,
    network_names: OrdMap<String, NetworkId>,
    node_names: OrdMap<String, NodeId>,
    data_names: OrdMap<(DataKind, String), DataId>,
    tasks_by_service: OrdSet<(ServiceId, TaskId)>,
    tasks_by_node: OrdSet<(NodeId, TaskId)>,
    unassigned: OrdSet<TaskId>,
    answers: Answers,
    /// What the objects weigh.
    bytes: usize,
    /// Not replicated, and in no snapshot.
    history: History,
}

impl State {
    /// An empty state of the cluster called `cluster_id`.
    pub fn new(cluster_id: String) -> Self {
        Self { cluster_id, ..Self::default() }
    }

    /// Which cluster this is the state of.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// The log index of the last transaction that was applied.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What the last revisions have changed.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The answers to requests that were made under a key.
    pub fn answers(&self) -> &Answers {
        &self.answers
    }

    /// All services, by id.
    pub fn services(&self) -> &OrdMap<ServiceId, Arc<Service>> {
        &self.services
    }

    /// All tasks, by id.
    pub fn tasks(&self) -> &OrdMap<TaskId, Arc<Task>> {
        &self.tasks
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> &OrdMap<NodeId, Arc<Node>> {
        &self.nodes
    }

    /// All networks, by id.
    pub fn networks(&self) -> &OrdMap<NetworkId, Arc<Network>> {
        &self.networks
    }

    /// The events that are kept, oldest first.
    pub fn events(&self) -> &OrdMap<EventId, Arc<Event>> {
        &self.events
    }

    /// All secrets and configs, by id.
    pub fn data(&self) -> &OrdMap<DataId, Arc<Data>> {
        &self.data
    }

    /// All managers, by id.
    pub fn managers(&self) -> &OrdMap<ManagerId, Arc<Manager>> {
        &self.managers
    }

    /// A manager by id or name; one that stays before one that leaves.
    pub fn find_manager(&self, name: &str) -> Option<&Arc<Manager>> {
        let named = self.managers.values().filter(|manager| manager.name == name);
        self.managers.get(&ManagerId::from(name)).or_else(|| named.min_by_key(|manager| manager.role == ManagerRole::Leaving))
    }

    /// All users, by id.
    pub fn users(&self) -> &OrdMap<UserId, Arc<User>> {
        &self.users
    }

    /// A user by id or name.
    pub fn find_user(&self, name: &str) -> Option<&Arc<User>> {
        self.users.get(&UserId::from(name)).or_else(|| self.users.values().find(|user| user.name == name))
    }

    /// What the managers share; `None` only before the first snapshot has come.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    /// A secret or config by id or name.
    pub fn find_data(&self, kind: DataKind, name: &str) -> Option<&Arc<Data>> {
        let by_id = self.data.get(&DataId::from(name)).filter(|data| data.spec.kind == kind);
        by_id.or_else(|| self.data.get(self.data_names.get(&(kind, name.to_owned()))?))
    }

    /// A service by id or name.
    pub fn find_service(&self, name: &str) -> Option<&Arc<Service>> {
        self.services.get(&ServiceId::from(name)).or_else(|| self.services.get(self.service_names.get(name)?))
    }

    /// A network by id or name.
    pub fn find_network(&self, name: &str) -> Option<&Arc<Network>> {
        self.networks.get(&NetworkId::from(name)).or_else(|| self.networks.get(self.network_names.get(name)?))
    }

    /// A node by id or name.
    pub fn find_node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(&NodeId::from(name)).or_else(|| self.nodes.get(self.node_names.get(name)?))
    }

    /// A service's tasks, ended ones too, by id.
    pub fn tasks_of_service<'a>(&'a self, service: &ServiceId) -> impl Iterator<Item = &'a Arc<Task>> + use<'a> {
        let first = (service.clone(), TaskId::default());
        let service = service.clone();
        self.tasks_by_service.range(first..).take_while(move |(of, _)| *of == service).filter_map(|(_, task)| self.tasks.get(task))
    }

    /// The tasks that were given to a node, ended ones too, by id.
    pub fn tasks_of_node<'a>(&'a self, node: &NodeId) -> impl Iterator<Item = &'a Arc<Task>> + use<'a> {
        let first = (node.clone(), TaskId::default());
        let node = node.clone();
        self.tasks_by_node.range(first..).take_while(move |(of, _)| *of == node).filter_map(|(_, task)| self.tasks.get(task))
    }

    /// The tasks that are wanted and wait for an address or a node, by id.
    pub fn unassigned(&self) -> impl Iterator<Item = &Task> {
        self.unassigned.iter().filter_map(|task| self.tasks.get(task)).map(AsRef::as_ref)
    }

    /// The version of an object; 0 when there is none.
    pub fn version(&self, kind: Kind, id: &str) -> u64 {
        match kind {
            Kind::Service => self.services.get(&ServiceId::from(id)).map(|object| object.stamp.version),
            Kind::Task => self.tasks.get(&TaskId::from(id)).map(|object| object.stamp.version),
            Kind::Node => self.nodes.get(&NodeId::from(id)).map(|object| object.stamp.version),
            Kind::Network => self.networks.get(&NetworkId::from(id)).map(|object| object.stamp.version),
            Kind::Event => self.events.get(&EventId::from(id)).map(|object| object.stamp.version),
            Kind::Secret | Kind::Config => self.data.get(&DataId::from(id)).map(|object| object.stamp.version),
            Kind::Manager => self.managers.get(&ManagerId::from(id)).map(|object| object.stamp.version),
            Kind::Cluster => self.cluster.as_ref().map(|object| object.stamp.version),
            Kind::User => self.users.get(&UserId::from(id)).map(|object| object.stamp.version),
        }
        .unwrap_or_default()
    }

    /// An object.
    pub fn object(&self, kind: Kind, id: &str) -> Option<Object> {
        match kind {
            Kind::Service => self.services.get(&ServiceId::from(id)).map(|object| Object::Service((**object).clone())),
            Kind::Task => self.tasks.get(&TaskId::from(id)).map(|object| Object::Task(Box::new((**object).clone()))),
            Kind::Node => self.nodes.get(&NodeId::from(id)).map(|object| Object::Node((**object).clone())),
            Kind::Network => self.networks.get(&NetworkId::from(id)).map(|object| Object::Network((**object).clone())),
            Kind::Event => self.events.get(&EventId::from(id)).map(|object| Object::Event((**object).clone())),
            Kind::Secret | Kind::Config => {
                let of_kind = self.data.get(&DataId::from(id)).filter(|data| data.spec.kind.object_kind() == kind);
                of_kind.map(|object| Object::Data((**object).clone()))
            }
            Kind::Manager => self.managers.get(&ManagerId::from(id)).map(|object| Object::Manager((**object).clone())),
            Kind::Cluster => self.cluster.as_ref().map(|object| Object::Cluster(Box::new((**object).clone()))),
            Kind::User => self.users.get(&UserId::from(id)).map(|object| Object::User((**object).clone())),
        }
    }

    /// The kind and id of every object, kind by kind.
    pub fn keys(&self) -> impl Iterator<Item = (Kind, &str)> {
        let services = self.services.keys().map(|id| (Kind::Service, id.as_str()));
        let tasks = self.tasks.keys().map(|id| (Kind::Task, id.as_str()));
        let nodes = self.nodes.keys().map(|id| (Kind::Node, id.as_str()));
        let networks = self.networks.keys().map(|id| (Kind::Network, id.as_str()));
        let events = self.events.keys().map(|id| (Kind::Event, id.as_str()));
        let data = self.data.values().map(|data| (data.spec.kind.object_kind(), data.id.as_str()));
        let managers = self.managers.keys().map(|id| (Kind::Manager, id.as_str()));
        let users = self.users.keys().map(|id| (Kind::User, id.as_str()));
        let cluster = self.cluster.iter().map(|_| (Kind::Cluster, rcluster_api::cluster::CLUSTER));
        services.chain(nodes).chain(networks).chain(tasks).chain(events).chain(data).chain(managers).chain(users).chain(cluster)
    }

    /// Every object, kind by kind.
    pub fn objects(&self) -> impl Iterator<Item = Object> + '_ {
        let services = self.services.values().map(|object| Object::Service((**object).clone()));
        let tasks = self.tasks.values().map(|object| Object::Task(Box::new((**object).clone())));
        let nodes = self.nodes.values().map(|object| Object::Node((**object).clone()));
        let networks = self.networks.values().map(|object| Object::Network((**object).clone()));
        let events = self.events.values().map(|object| Object::Event((**object).clone()));
        let data = self.data.values().map(|object| Object::Data((**object).clone()));
        let managers = self.managers.values().map(|object| Object::Manager((**object).clone()));
        let users = self.users.values().map(|object| Object::User((**object).clone()));
        let cluster = self.cluster.iter().map(|object| Object::Cluster(Box::new((**object).clone())));
        services.chain(nodes).chain(networks).chain(tasks).chain(events).chain(data).chain(managers).chain(users).chain(cluster)
    }

    /// Writes an object with its stamp as it is, keeping the indices right. An index that stays as it is is not touched: a table that is
    /// written is copied where it is, as others hold it too.
    fn insert(&mut self, object: Object) {
        self.bytes += weight(&object);
        self.bytes -= self.weight(object.kind(), object.id());
        match object {
            Object::Service(service) => {
                let (id, name) = (service.id.clone(), service.spec.name.clone());
                let before = self.services.insert(id.clone(), Arc::new(service));
                rename(&mut self.service_names, before.map(|before| before.spec.name.clone()), name, id);
            }
            Object::Task(task) => self.insert_task(*task),
            Object::Node(node) => {
                let (id, name) = (node.id.clone(), node.description.name.clone());
                let before = self.nodes.insert(id.clone(), Arc::new(node));
                rename(&mut self.node_names, before.map(|before| before.description.name.clone()), name, id);
            }
            Object::Network(network) => {
                let (id, name) = (network.id.clone(), network.spec.name.clone());
                let before = self.networks.insert(id.clone(), Arc::new(network));
                rename(&mut self.network_names, before.map(|before| before.spec.name.clone()), name, id);
            }
            Object::Event(event) => {
                self.events.insert(event.id.clone(), Arc::new(event));
            }
            Object::Data(data) => {
                let (id, name) = (data.id.clone(), (data.spec.kind, data.spec.name.clone()));
                let before = self.data.insert(id.clone(), Arc::new(data));
                rename(&mut self.data_names, before.map(|before| (before.spec.kind, before.spec.name.clone())), name, id);
            }
            Object::Manager(manager) => {
                self.managers.insert(manager.id.clone(), Arc::new(manager));
            }
            Object::Cluster(cluster) => self.cluster = Some(Arc::new(*cluster)),
            Object::User(user) => {
                self.users.insert(user.id.clone(), Arc::new(user));
            }
        }
    }

    fn insert_task(&mut self, task: Task) {
        let places = |task: &Task| (task.service_id.clone(), task.node_id.clone(), is_unassigned(task));
        let (id, now) = (task.id.clone(), places(&task));
        let before = self.tasks.insert(id.clone(), Arc::new(task));
        let before = before.map(|before| places(&before));
        if before.as_ref() == Some(&now) {
            return;
        }
        if let Some(before) = before {
            self.unlist_task(&id, before);
        }
        let (service, node, unassigned) = now;
        self.tasks_by_service.insert((service, id.clone()));
        if let Some(node) = node {
            self.tasks_by_node.insert((node, id.clone()));
        }
        if unassigned {
            self.unassigned.insert(id);
        }
    }

    fn unlist_task(&mut self, id: &TaskId, (service, node, unassigned): (ServiceId, Option<NodeId>, bool)) {
        self.tasks_by_service.remove(&(service, id.clone()));
        if let Some(node) = node {
            self.tasks_by_node.remove(&(node, id.clone()));
        }
        if unassigned {
            self.unassigned.remove(id);
        }
    }

    /// Removes an object, if it is there, keeping the indices right.
    fn delete(&mut self, kind: Kind, id: &str) {
        self.bytes -= self.weight(kind, id);
        match kind {
            Kind::Service => {
                if let Some(service) = self.services.remove(&ServiceId::from(id)) {
                    self.service_names.remove(&service.spec.name);
                }
            }
            Kind::Task => {
                if let Some(task) = self.tasks.remove(&TaskId::from(id)) {
                    self.unlist_task(&task.id, (task.service_id.clone(), task.node_id.clone(), is_unassigned(&task)));
                }
            }
            Kind::Node => {
                if let Some(node) = self.nodes.remove(&NodeId::from(id)) {
                    self.node_names.remove(&node.description.name);
                }
            }
            Kind::Network => {
                if let Some(network) = self.networks.remove(&NetworkId::from(id)) {
                    self.network_names.remove(&network.spec.name);
                }
            }
            Kind::Event => {
                self.events.remove(&EventId::from(id));
            }
            Kind::Secret | Kind::Config => {
                if let Some(data) = self.data.remove(&DataId::from(id)) {
                    self.data_names.remove(&(data.spec.kind, data.spec.name.clone()));
                }
            }
            Kind::Manager => {
                self.managers.remove(&ManagerId::from(id));
            }
            Kind::Cluster => self.cluster = None,
            Kind::User => {
                self.users.remove(&UserId::from(id));
            }
        }
    }
}

/// Whether a task is wanted and waits for an address or a node.
fn is_unassigned(task: &Task) -> bool {
    task.is_wanted() && task.status.state < TaskState::Assigned
}

/// Has an index of names say where an object is, under its name of now alone.
fn rename<N: Ord + Clone, I: Clone>(names: &mut OrdMap<N, I>, before: Option<N>, now: N, id: I) {
    if before.as_ref() == Some(&now) {
        return;
    }
    if let Some(before) = before {
        names.remove(&before);
    }
    names.insert(now, id);
}
