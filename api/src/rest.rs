//! The JSON form of objects: what REST answers, what `-o json` prints. Field names are a contract (`product.md`).

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};

use crate::cluster::{User, UserRole};
use crate::data::{Data, DataKind, DataSpec};
use crate::health::Health;
use crate::network::NodeNetwork;
use crate::object::{Availability, Capacity, ContainerStatus, Event, Network, Node, NodeState, Service, ServiceVip, Task};
use crate::spec::{Mode, NetworkSpec, ServiceSpec};
use crate::task::TaskState;

/// RFC 3339 in UTC with milliseconds.
pub fn timestamp(unix_ms: u64) -> String {
    i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(String::new, |time| format!("{time:.3}"))
}

/// A task's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskNetworkJson {
    pub network: String,
    pub ip: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ipv6Addr>,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskJson {
    pub id: String,
    pub name: String,
    pub service: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stack: String,
    pub slot: u32,
    pub node: String,
    pub state: TaskState,
    /// Of a running task whose health is checked: the worst of its containers'.
    #[serde(default, skip_serializing_if = "Health::is_none")]
    pub health: Health,
    pub desired_state: TaskState,
    pub message: String,
    pub since: String,
    pub restarts: u32,
    pub networks: Vec<TaskNetworkJson>,
    pub images: Vec<String>,
    pub containers: Vec<ContainerStatus>,
    pub created: String,
    pub version: u64,
}

impl From<&Task> for TaskJson {
    fn from(task: &Task) -> Self {
        Self {
            id: task.id.to_string(),
            name: task.name.clone(),
            service: task.service.clone(),
            stack: task.stack.clone(),
            slot: task.slot,
            node: task.node.clone(),
            state: task.status.state,
            health: if task.status.state == TaskState::Running { task.health() } else { Health::None },
            desired_state: task.desired_state,
            message: task.status.message.clone(),
            since: timestamp(task.status.since_ms),
            restarts: task.restarts,
            networks: task
                .networks
                .iter()
                .map(|network| TaskNetworkJson { network: network.network.clone(), ip: network.ip.to_string(), ip6: network.ip6 })
                .collect(),
            images: task.template.containers.iter().map(|container| container.image.clone()).collect(),
            containers: task.status.containers.clone(),
            created: timestamp(task.stamp.created_at_ms),
            version: task.stamp.version,
        }
    }
}

/// A node's room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeResourcesJson {
    pub capacity: Capacity,
    pub reserved: Capacity,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeJson {
    pub id: String,
    pub name: String,
    pub status: NodeState,
    pub availability: Availability,
    pub role: String,
    pub addr: String,
    pub labels: BTreeMap<String, String>,
    pub resources: NodeResourcesJson,
    pub tasks: usize,
    pub message: String,
    pub since: String,
    pub kernel: String,
    pub arch: String,
    pub cgroup: String,
    pub agent_version: String,
    /// Absent: not yet given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// Absent until its netd has told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NodeNetwork>,
    pub version: u64,
}

impl NodeJson {
    /// The node with what its tasks (any that may run on it) reserve.
    pub fn new<'a>(node: &Node, tasks: impl IntoIterator<Item = &'a Task>) -> Self {
        let mut reserved = Capacity::default();
        let mut count = 0;
        for task in tasks.into_iter().filter(|task| task.node_id.as_ref() == Some(&node.id) && !task.status.state.is_terminal()) {
            let of_task = task.reserved();
            reserved.cpus.0 += of_task.cpus.0;
            reserved.memory.0 += of_task.memory.0;
            count += 1;
        }
        Self {
            id: node.id.to_string(),
            name: node.name().to_owned(),
            status: node.state,
            availability: node.availability,
            role: "agent".to_owned(),
            addr: node.description.addr.clone(),
            labels: node.all_labels(),
            resources: NodeResourcesJson { capacity: node.description.capacity, reserved },
            tasks: count,
            message: node.message.clone(),
            since: timestamp(node.since_ms),
            kernel: node.description.kernel.clone(),
            arch: node.description.arch.clone(),
            cgroup: node.description.cgroup.clone(),
            agent_version: node.description.version.clone(),
            number: (node.number != 0).then_some(node.number),
            network: node.description.network.clone(),
            version: node.stamp.version,
        }
    }
}

/// How many tasks are wanted and how many run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicasJson {
    pub desired: usize,
    pub running: usize,
}

/// How far the last change of the template has come: completed or updating.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateJson {
    pub state: String,
    pub message: String,
}

/// A service's virtual address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipJson {
    pub network: String,
    pub ip: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ipv6Addr>,
}

impl VipJson {
    fn new(vip: &ServiceVip) -> Self {
        Self { network: vip.network.clone(), ip: vip.ip.to_string(), ip6: vip.ip6 }
    }
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceJson {
    pub kind: String,
    pub id: String,
    pub name: String,
    pub version: u64,
    pub mode: Mode,
    pub replicas: ReplicasJson,
    pub update: UpdateJson,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<VipJson>,
    pub created: String,
    pub updated: String,
    pub spec: ServiceSpec,
}

impl ServiceJson {
    /// The service with what its tasks tell.
    pub fn new<'a>(service: &Service, tasks: impl IntoIterator<Item = &'a Task>) -> Self {
        let (mut live, mut running, mut old) = (0, 0, 0);
        for task in tasks.into_iter().filter(|task| task.service_id == service.id) {
            if task.is_live() {
                live += 1;
                old += usize::from(task.spec_version != service.spec_version);
            }
            running += usize::from(task.is_wanted() && task.status.state == TaskState::Running);
        }
        let desired = match service.spec.mode {
            _ if service.removing => 0,
            Mode::Replicated => service.spec.replicas() as usize,
            Mode::Global => live,
        };
        let (state, message) = if service.removing {
            ("removing", "its tasks are being stopped".to_owned())
        } else if old > 0 {
            ("updating", format!("{old} of {desired} tasks have the old template"))
        } else if running < desired {
            ("converging", format!("{running} of {desired} tasks run"))
        } else {
            ("completed", String::new())
        };
        Self {
            kind: "Service".to_owned(),
            id: service.id.to_string(),
            name: service.spec.name.clone(),
            version: service.stamp.version,
            mode: service.spec.mode,
            replicas: ReplicasJson { desired, running },
            update: UpdateJson { state: state.to_owned(), message },
            vips: service.vips.iter().map(VipJson::new).collect(),
            created: timestamp(service.stamp.created_at_ms),
            updated: timestamp(service.stamp.updated_at_ms),
            spec: service.spec.clone(),
        }
    }
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkJson {
    pub kind: String,
    pub id: String,
    pub name: String,
    pub version: u64,
    pub vni: Option<u32>,
    pub subnet: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<Ipv6Net>,
    pub endpoints: usize,
    pub created: String,
    pub spec: NetworkSpec,
}

impl NetworkJson {
    /// The network with how many addresses are in use.
    pub fn new<'a>(network: &Network, tasks: impl IntoIterator<Item = &'a Task>) -> Self {
        let on_network = |task: &&Task| task.may_run() && task.networks.iter().any(|attached| attached.network_id == network.id);
        Self {
            kind: "Network".to_owned(),
            id: network.id.to_string(),
            name: network.spec.name.clone(),
            version: network.stamp.version,
            vni: network.vni,
            subnet: network.subnet.map(|subnet| subnet.to_string()).unwrap_or_default(),
            subnet6: network.subnet6,
            endpoints: tasks.into_iter().filter(on_network).count(),
            created: timestamp(network.stamp.created_at_ms),
            spec: network.spec.clone(),
        }
    }
}

/// A secret or config; of a secret without its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataJson {
    pub kind: String,
    pub id: String,
    pub name: String,
    pub version: u64,
    pub digest: String,
    /// Bytes.
    pub size: u64,
    pub created: String,
    pub updated: String,
    pub spec: DataSpec,
}

impl From<&Data> for DataJson {
    fn from(data: &Data) -> Self {
        let kind = match data.spec.kind {
            DataKind::Secret => "Secret",
            DataKind::Config => "Config",
        };
        Self {
            kind: kind.to_owned(),
            id: data.id.to_string(),
            name: data.spec.name.clone(),
            version: data.stamp.version,
            digest: data.digest.clone(),
            size: data.size,
            created: timestamp(data.stamp.created_at_ms),
            updated: timestamp(data.stamp.updated_at_ms),
            spec: data.shown().spec,
        }
    }
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventJson {
    pub id: String,
    pub time: String,
    pub kind: String,
    pub object: String,
    pub object_id: String,
    pub reason: String,
    pub message: String,
}

impl From<&Event> for EventJson {
    fn from(event: &Event) -> Self {
        Self {
            id: event.id.to_string(),
            time: timestamp(event.stamp.created_at_ms),
            kind: event.kind.clone(),
            object: event.object.clone(),
            object_id: event.object_id.clone(),
            reason: event.reason.clone(),
            message: event.message.clone(),
        }
    }
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserJson {
    pub id: String,
    pub name: String,
    pub role: UserRole,
    /// By what the user is known: `certificate` or `token`.
    pub credentials: String,
    pub created: String,
    /// Empty: never.
    pub expires: String,
}

impl From<&User> for UserJson {
    fn from(user: &User) -> Self {
        Self {
            id: user.id.to_string(),
            name: user.name.clone(),
            role: user.role,
            credentials: if user.token_digest.is_empty() { "certificate" } else { "token" }.to_owned(),
            created: timestamp(user.stamp.created_at_ms),
            expires: if user.expires_at_ms == 0 { String::new() } else { timestamp(user.expires_at_ms) },
        }
    }
}

/// One manager as the one that answered sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerJson {
    pub name: String,
    pub addr: String,
    pub role: String,
    pub reachable: bool,
    pub matched: u64,
    pub voter: bool,
    /// Entries that the leader's log has and it does not; 0 when asked of another than the leader.
    pub lag: u64,
    /// How long its last write to the log took; 0: not known.
    pub write_us: u64,
}

/// The managers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterJson {
    pub cluster_id: String,
    pub leader: String,
    pub term: u64,
    pub committed: u64,
    pub applied: u64,
    pub revision: u64,
    pub answered_by: String,
    /// `raft`, or the address of the etcd that keeps the state.
    pub store: String,
    pub managers: Vec<ManagerJson>,
}
