//! What the managers keep: id, version, spec, status. Each field's writer stands in `objects.proto`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::cluster::{CLUSTER, Cluster, Manager, User};
use crate::data::Data;
use crate::health::Health;
use crate::id::{NetworkId, NodeId, ServiceId, TaskId};
use crate::network::NodeNetwork;
use crate::policy::NodePolicy;
use crate::resource::{Bytes, Cpus};
use crate::spec::{NetworkSpec, ServiceSpec, TaskTemplate};
use crate::task::TaskState;

/// When and at which revision an object was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Revision of the transaction that last wrote the object; 0 before the first.
    pub version: u64,
    pub created_at_ms: u64,
    pub updated_at_ms: u64,
}

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Service,
    Task,
    Node,
    Network,
    Event,
    Secret,
    Config,
    Manager,
    Cluster,
    User,
}

impl Kind {
    /// The kind's name as users see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Task => "task",
            Self::Node => "node",
            Self::Network => "network",
            Self::Event => "event",
            Self::Secret => "secret",
            Self::Config => "config",
            Self::Manager => "manager",
            Self::Cluster => "cluster",
            Self::User => "user",
        }
    }
}

/// A service as the managers keep it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub id: ServiceId,
    pub stamp: Stamp,
    pub spec: ServiceSpec,
    /// Rises when the template changes: tasks made from an older one are replaced.
    pub spec_version: u64,
    /// Removal was asked for; the service goes when its tasks have.
    pub removing: bool,
    pub vips: Vec<ServiceVip>,
}

impl Service {
    /// One that was asked for just now.
    pub fn new(id: ServiceId, spec: ServiceSpec) -> Self {
        Self { id, stamp: Stamp::default(), spec, spec_version: 1, removing: false, vips: Vec::new() }
    }
}

/// A service's virtual address on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceVip {
    pub network_id: NetworkId,
    pub network: String,
    pub ip: Ipv4Addr,
    /// On a network with IPv6.
    pub ip6: Option<Ipv6Addr>,
}

/// A task's address on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskNetwork {
    pub network_id: NetworkId,
    pub network: String,
    pub ip: Ipv4Addr,
    /// On a network with IPv6.
    pub ip6: Option<Ipv6Addr>,
    pub aliases: Vec<String>,
}

/// One container of a task as the agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerStatus {
    pub name: String,
    pub id: String,
    /// On the node; `None` when it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(default)]
    pub oom_killed: bool,
    #[serde(default)]
    pub started_at_ms: u64,
    #[serde(default, skip_serializing_if = "Health::is_none")]
    pub health: Health,
    /// What the last check said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub health_output: String,
}

impl ContainerStatus {
    /// Whether it has a process.
    pub fn runs(&self) -> bool {
        self.pid.is_some()
    }
}

/// How far a task has come and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskStatus {
    pub state: TaskState,
    pub message: String,
    pub since_ms: u64,
    pub containers: Vec<ContainerStatus>,
    /// It will end: nothing may be sent to it any more.
    pub ending: bool,
}

/// A task as the managers keep it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    pub id: TaskId,
    pub stamp: Stamp,
    pub service_id: ServiceId,
    pub service: String,
    pub stack: String,
    /// From 1 for replicated services, 0 for global ones.
    pub slot: u32,
    /// `service.slot`, or `service.node` for global services.
    pub name: String,
    pub template: TaskTemplate,
    pub spec_version: u64,
    /// Running, Shutdown or Removed.
    pub desired_state: TaskState,
    /// Failures of the slot so far.
    pub restarts: u32,
    /// Failures since `window_start_ms`, for back-off and `max_attempts`.
    pub restarts_in_window: u32,
    pub window_start_ms: u64,
    /// Unix time before which it is not started; 0: at once.
    pub start_after_ms: u64,
    pub node_id: Option<NodeId>,
    pub node: String,
    pub networks: Vec<TaskNetwork>,
    pub status: TaskStatus,
    /// The service's `leave` when the task was made.
    pub leave_ms: u64,
}

impl Task {
    /// Whether the task is to run.
    pub fn is_wanted(&self) -> bool {
        self.desired_state <= TaskState::Running
    }

    /// Whether the task holds, or is to hold, a place: it is wanted and has not ended.
    pub fn is_live(&self) -> bool {
        self.is_wanted() && !self.status.state.is_terminal()
    }

    /// What the checks of its containers have shown: the worst of them.
    pub fn health(&self) -> Health {
        let rank = |health: &Health| match health {
            Health::None => 0,
            Health::Healthy => 1,
            Health::Starting => 2,
            Health::Unhealthy => 3,
        };
        self.status.containers.iter().map(|container| container.health).max_by_key(rank).unwrap_or_default()
    }

    /// Whether requests may be sent to it: it and each of its containers run, it is to go on and does, and no check says otherwise.
    pub fn serves(&self) -> bool {
        let runs = self.status.state == TaskState::Running && self.status.containers.iter().all(ContainerStatus::runs);
        self.is_wanted() && !self.status.ending && runs && self.health().serves()
    }

    /// Whether the task may still have processes or addresses on a node.
    pub fn may_run(&self) -> bool {
        let state = self.status.state;
        state >= TaskState::Assigned && (!state.is_terminal() || state == TaskState::Orphaned)
    }

    /// CPU and memory set aside for all its containers.
    pub fn reserved(&self) -> Capacity {
        reserved(&self.template)
    }
}

/// CPU and memory that a template's containers reserve in all.
pub fn reserved(template: &TaskTemplate) -> Capacity {
    template.containers.iter().fold(Capacity::default(), |sum, container| {
        let reservation = container.resources.reservations;
        Capacity {
            cpus: Cpus(sum.cpus.0.saturating_add(reservation.cpus.unwrap_or_default().0)),
            memory: Bytes(sum.memory.0.saturating_add(reservation.memory.unwrap_or_default().0)),
        }
    })
}

/// CPU and memory of a node or of what stands on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capacity {
    pub cpus: Cpus,
    pub memory: Bytes,
}

/// What an agent says of its host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeDescription {
    pub name: String,
    pub addr: String,
    pub capacity: Capacity,
    pub os: String,
    pub arch: String,
    pub kernel: String,
    pub cgroup: String,
    pub version: String,
    pub labels: BTreeMap<String, String>,
    pub policy: NodePolicy,
    /// `None` until its netd has told.
    pub network: Option<NodeNetwork>,
}

/// Whether a node is given work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    #[default]
    Active,
    /// Keeps its tasks, gets no new ones.
    Pause,
    /// Its tasks are moved away.
    Drain,
}

impl Availability {
    /// The word as users see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pause => "pause",
            Self::Drain => "drain",
        }
    }
}

/// Whether a node is heard from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    Ready,
    /// Missed a beat or more; nothing is moved.
    Suspect,
    Down,
}

impl NodeState {
    /// The word as users see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

/// A node as the managers keep it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub id: NodeId,
    pub stamp: Stamp,
    pub description: NodeDescription,
    pub availability: Availability,
    /// Given by users; they win over those of the agent's configuration.
    pub labels: BTreeMap<String, String>,
    pub state: NodeState,
    pub message: String,
    pub since_ms: u64,
    /// Rises with each boot of the host.
    pub incarnation: u64,
    /// No other node has it; 0: not yet given.
    pub number: u32,
}

impl Node {
    /// One that takes part from now on.
    pub fn new(id: NodeId, description: NodeDescription, incarnation: u64, now_ms: u64) -> Self {
        Self {
            id,
            stamp: Stamp::default(),
            description,
            availability: Availability::Active,
            labels: BTreeMap::new(),
            state: NodeState::Ready,
            message: String::new(),
            since_ms: now_ms,
            incarnation,
            number: 0,
        }
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.description.name
    }

    /// A label's value, the user's before the agent's.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).or_else(|| self.description.labels.get(key)).map(String::as_str)
    }

    /// All labels, the user's before the agent's.
    pub fn all_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.description.labels.clone();
        labels.extend(self.labels.clone());
        labels
    }
}

/// A network as the managers keep it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub id: NetworkId,
    pub stamp: Stamp,
    pub spec: NetworkSpec,
    /// `None` until allocated.
    pub vni: Option<u32>,
    pub subnet: Option<Ipv4Net>,
    /// A /64; `None` without IPv6, or until allocated.
    pub subnet6: Option<Ipv6Net>,
    /// Offset in the subnet after which the next address is sought, so that a freed address rests.
    pub ip_cursor: u32,
    pub removing: bool,
    /// Addresses that services have given up just now; those that have rested go with the next one.
    pub resting_vips: Vec<RestingVip>,
}

impl Network {
    /// One that was asked for just now.
    pub fn new(id: NetworkId, spec: NetworkSpec) -> Self {
        Self {
            id,
            stamp: Stamp::default(),
            spec,
            vni: None,
            subnet: None,
            subnet6: None,
            ip_cursor: 0,
            removing: false,
            resting_vips: Vec::new(),
        }
    }
}

/// An address that was a service's and rests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestingVip {
    pub ip: Ipv4Addr,
    /// Whose it was.
    pub service_id: ServiceId,
    /// When it was given up, by the managers' time.
    pub since_ms: u64,
}

/// Something that happened, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub id: crate::id::EventId,
    pub stamp: Stamp,
    pub kind: String,
    pub object_id: String,
    pub object: String,
    pub reason: String,
    pub message: String,
}

/// An object of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    Service(Service),
    Task(Box<Task>),
    Node(Node),
    Network(Network),
    Event(Event),
    Data(Data),
    Manager(Manager),
    Cluster(Box<Cluster>),
    User(User),
}

impl Object {
    /// The object's kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::Task(_) => Kind::Task,
            Self::Node(_) => Kind::Node,
            Self::Network(_) => Kind::Network,
            Self::Event(_) => Kind::Event,
            Self::Data(data) => data.spec.kind.object_kind(),
            Self::Manager(_) => Kind::Manager,
            Self::Cluster(_) => Kind::Cluster,
            Self::User(_) => Kind::User,
        }
    }

    /// The object's id as text.
    pub fn id(&self) -> &str {
        match self {
            Self::Service(object) => object.id.as_str(),
            Self::Task(object) => object.id.as_str(),
            Self::Node(object) => object.id.as_str(),
            Self::Network(object) => object.id.as_str(),
            Self::Event(object) => object.id.as_str(),
            Self::Data(object) => object.id.as_str(),
            Self::Manager(object) => object.id.as_str(),
            Self::Cluster(_) => CLUSTER,
            Self::User(object) => object.id.as_str(),
        }
    }

    /// When it was written.
    pub fn stamp(&self) -> Stamp {
        match self {
            Self::Service(object) => object.stamp,
            Self::Task(object) => object.stamp,
            Self::Node(object) => object.stamp,
            Self::Network(object) => object.stamp,
            Self::Event(object) => object.stamp,
            Self::Data(object) => object.stamp,
            Self::Manager(object) => object.stamp,
            Self::Cluster(object) => object.stamp,
            Self::User(object) => object.stamp,
        }
    }

    /// To be set by the store when it writes.
    pub fn stamp_mut(&mut self) -> &mut Stamp {
        match self {
            Self::Service(object) => &mut object.stamp,
            Self::Task(object) => &mut object.stamp,
            Self::Node(object) => &mut object.stamp,
            Self::Network(object) => &mut object.stamp,
            Self::Event(object) => &mut object.stamp,
            Self::Data(object) => &mut object.stamp,
            Self::Manager(object) => &mut object.stamp,
            Self::Cluster(object) => &mut object.stamp,
            Self::User(object) => &mut object.stamp,
        }
    }
}
