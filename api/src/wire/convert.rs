//! Between the generated types and the checked ones.
//!
//! Out of the wire: `TryFrom`, naming the field that does not fit. Onto it: `From`, which destructures without `..` so that a new field
//! does not compile until it is handled.

mod cluster;
mod container;
mod data;
mod network;
mod spec;

use std::net::Ipv4Addr;
use std::str::FromStr;

use thiserror::Error;

pub use self::cluster::{manager_role, user_role};
pub use self::data::data_kind;

use super::v1;
use crate::cluster::{Cluster, ManagerRole, UserRole};
use crate::container::PullPolicy;
use crate::network::{IngressPolicy, NodeNetwork, Protocol};
use crate::object::{
    Availability, Capacity, Event, Kind, Network, Node, NodeDescription, NodeState, Object, RestingVip, Service, ServiceVip, Stamp, Task,
    TaskNetwork, TaskStatus,
};
use crate::policy::NodePolicy;
use crate::resource::{Bytes, Cpus};
use crate::spec::{Mode, Reschedule, RestartCondition, UpdateOrder};
use crate::task::TaskState;

/// A message that is well-formed protobuf but does not mean anything.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("field {field} is missing or out of range")]
pub struct WireError {
    pub field: &'static str,
}

fn missing(field: &'static str) -> WireError {
    WireError { field }
}

/// Pairs each value of an enum with its twin on the wire; the wire's UNSPECIFIED and unknown numbers are errors.
macro_rules! twins {
    ($($domain:ident <=> $wire:ident, $field:literal { $($left:ident = $right:ident),+ $(,)? })+) => {$(
        impl From<$domain> for v1::$wire {
            fn from(value: $domain) -> Self {
                match value { $($domain::$left => Self::$right),+ }
            }
        }
        impl TryFrom<v1::$wire> for $domain {
            type Error = WireError;
            fn try_from(value: v1::$wire) -> Result<Self, WireError> {
                match value {
                    v1::$wire::Unspecified => Err(missing($field)),
                    $(v1::$wire::$right => Ok(Self::$left)),+
                }
            }
        }
    )+};
}

twins! {
    TaskState <=> TaskState, "task state" {
        New = New, Pending = Pending, Assigned = Assigned, Accepted = Accepted, Preparing = Preparing, Ready = Ready,
        Starting = Starting, Running = Running, Complete = Complete, Shutdown = Shutdown, Failed = Failed, Rejected = Rejected,
        Orphaned = Orphaned, Removed = Removed,
    }
    Mode <=> ServiceMode, "mode" { Replicated = Replicated, Global = Global }
    RestartCondition <=> RestartCondition, "restart.condition" { Any = Any, OnFailure = OnFailure, None = None }
    Reschedule <=> ReschedulePolicy, "reschedule" { Always = Always, OnNodeFailure = OnNodeFailure, Never = Never }
    UpdateOrder <=> UpdateOrder, "update.order" { StopFirst = StopFirst, StartFirst = StartFirst }
    PullPolicy <=> PullPolicy, "pull" { Missing = Missing, Always = Always, Never = Never }
    Availability <=> Availability, "availability" { Active = Active, Pause = Pause, Drain = Drain }
    NodeState <=> NodeState, "node state" { Ready = Ready, Suspect = Suspect, Down = Down }
    Kind <=> Kind, "kind" {
        Service = Service, Task = Task, Node = Node, Network = Network, Event = Event, Secret = Secret, Config = Config,
        Manager = Manager, Cluster = Cluster, User = User,
    }
    ManagerRole <=> ManagerRole, "role" { Voter = Voter, Standby = Standby, Leaving = Leaving }
    UserRole <=> UserRole, "role" { ReadOnly = ReadOnly, Deploy = Deploy, Admin = Admin }
    Protocol <=> Protocol, "protocol" { Tcp = Tcp, Udp = Udp }
    IngressPolicy <=> IngressPolicy, "ports.policy" { Mesh = Mesh, Spread = Spread, Local = Local }
}

/// An enum field as it stands in a message.
fn read_enum<W: TryFrom<i32>, D: TryFrom<W, Error = WireError>>(number: i32, field: &'static str) -> Result<D, WireError> {
    W::try_from(number).map_err(|_| missing(field)).and_then(D::try_from)
}

/// A kind as it stands in a message.
pub fn kind(number: i32) -> Result<Kind, WireError> {
    read_enum::<v1::Kind, _>(number, "kind")
}

/// A task's state as it stands in a message.
pub fn task_state(number: i32) -> Result<TaskState, WireError> {
    read_enum::<v1::TaskState, _>(number, "state")
}

/// An availability as it stands in a message; `None` for UNSPECIFIED.
pub fn availability(number: i32) -> Result<Option<Availability>, WireError> {
    if number == 0 { Ok(None) } else { read_enum::<v1::Availability, _>(number, "availability").map(Some) }
}

fn wire_meta(id: impl Into<String>, stamp: Stamp) -> Option<v1::Meta> {
    let Stamp { version, created_at_ms, updated_at_ms } = stamp;
    Some(v1::Meta { id: id.into(), version, created_at_ms, updated_at_ms })
}

fn meta<I: From<String>>(wire: Option<v1::Meta>) -> Result<(I, Stamp), WireError> {
    let v1::Meta { id, version, created_at_ms, updated_at_ms } = wire.ok_or(missing("meta"))?;
    Ok((id.into(), Stamp { version, created_at_ms, updated_at_ms }))
}

/// What may be left out, as text: empty is nothing.
fn text(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// The same read again.
fn optional<T: FromStr>(text: &str, field: &'static str) -> Result<Option<T>, WireError> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| missing(field)) }
}

impl From<Service> for v1::Service {
    fn from(service: Service) -> Self {
        let Service { id, stamp, spec, spec_version, removing, vips } = service;
        let vips = vips.into_iter().map(|ServiceVip { network_id, network, ip, ip6 }| v1::ServiceVip {
            network_id: network_id.into(),
            network,
            ip: ip.to_string(),
            ip6: text(ip6),
        });
        Self { meta: wire_meta(id, stamp), spec: Some(spec.into()), spec_version, removing, vips: vips.collect() }
    }
}

impl TryFrom<v1::Service> for Service {
    type Error = WireError;

    fn try_from(wire: v1::Service) -> Result<Self, WireError> {
        let v1::Service { meta: wire_meta, spec, spec_version, removing, vips } = wire;
        let (id, stamp) = meta(wire_meta)?;
        let vips = vips
            .into_iter()
            .map(|v1::ServiceVip { network_id, network, ip, ip6 }| {
                let ip: Ipv4Addr = ip.parse().map_err(|_| missing("vips.ip"))?;
                Ok(ServiceVip { network_id: network_id.into(), network, ip, ip6: optional(&ip6, "ip6")? })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { id, stamp, spec: spec.ok_or(missing("spec"))?.try_into()?, spec_version, removing, vips })
    }
}

impl From<TaskStatus> for v1::TaskStatus {
    fn from(status: TaskStatus) -> Self {
        let TaskStatus { state, message, since_ms, containers, ending } = status;
        let containers = containers.into_iter().map(Into::into).collect();
        Self { state: v1::TaskState::from(state).into(), message, since_ms, containers, ending }
    }
}

impl TryFrom<v1::TaskStatus> for TaskStatus {
    type Error = WireError;

    fn try_from(wire: v1::TaskStatus) -> Result<Self, WireError> {
        let v1::TaskStatus { state, message, since_ms, containers, ending } = wire;
        Ok(Self {
            state: task_state(state)?,
            message,
            since_ms,
            containers: containers.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            ending,
        })
    }
}

impl From<Task> for v1::Task {
    fn from(task: Task) -> Self {
        let Task {
            id,
            stamp,
            service_id,
            service,
            stack,
            slot,
            name,
            template,
            spec_version,
            desired_state,
            restarts,
            restarts_in_window,
            window_start_ms,
            start_after_ms,
            node_id,
            node,
            networks,
            status,
            leave_ms,
        } = task;
        Self {
            meta: wire_meta(id, stamp),
            service_id: service_id.into(),
            service,
            slot,
            name,
            template: Some(template.into()),
            spec_version,
            desired_state: v1::TaskState::from(desired_state).into(),
            restarts,
            start_after_ms,
            node_id: node_id.map(Into::into).unwrap_or_default(),
            node,
            networks: networks
                .into_iter()
                .map(|TaskNetwork { network_id, network, ip, ip6, aliases }| v1::TaskNetwork {
                    network_id: network_id.into(),
                    network,
                    ip: ip.to_string(),
                    ip6: text(ip6),
                    aliases,
                })
                .collect(),
            status: Some(status.into()),
            restarts_in_window,
            window_start_ms,
            stack,
            leave_ms,
        }
    }
}

impl TryFrom<v1::Task> for Task {
    type Error = WireError;

    fn try_from(wire: v1::Task) -> Result<Self, WireError> {
        let v1::Task {
            meta: wire_meta,
            service_id,
            service,
            slot,
            name,
            template,
            spec_version,
            desired_state,
            restarts,
            start_after_ms,
            node_id,
            node,
            networks,
            status,
            restarts_in_window,
            window_start_ms,
            stack,
            leave_ms,
        } = wire;
        let (id, stamp) = meta(wire_meta)?;
        let networks = networks
            .into_iter()
            .map(|v1::TaskNetwork { network_id, network, ip, ip6, aliases }| {
                let ip: Ipv4Addr = ip.parse().map_err(|_| missing("networks.ip"))?;
                Ok(TaskNetwork { network_id: network_id.into(), network, ip, ip6: optional(&ip6, "ip6")?, aliases })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            id,
            stamp,
            service_id: service_id.into(),
            service,
            stack,
            slot,
            name,
            template: template.ok_or(missing("template"))?.try_into()?,
            spec_version,
            desired_state: task_state(desired_state)?,
            restarts,
            restarts_in_window,
            window_start_ms,
            start_after_ms,
            node_id: (!node_id.is_empty()).then(|| node_id.into()),
            node,
            networks,
            status: status.ok_or(missing("status"))?.try_into()?,
            leave_ms,
        })
    }
}

impl From<NodeDescription> for v1::NodeDescription {
    fn from(description: NodeDescription) -> Self {
        let NodeDescription { name, addr, capacity, os, arch, kernel, cgroup, version, labels, policy, network } = description;
        let NodePolicy { runtimes, privileged, binds, devices } = policy;
        let policy = Some(v1::NodePolicy { runtimes, privileged, binds, devices });
        let Capacity { cpus, memory } = capacity;
        let capacity = Some(v1::NodeResources { cpu_millis: cpus.0, memory_bytes: memory.0 });
        Self { name, addr, capacity, os, arch, kernel, cgroup, version, labels, policy, network: network.map(Into::into) }
    }
}

impl TryFrom<v1::NodeDescription> for NodeDescription {
    type Error = WireError;

    fn try_from(wire: v1::NodeDescription) -> Result<Self, WireError> {
        let v1::NodeDescription { name, addr, capacity, os, arch, kernel, cgroup, version, labels, policy, network } = wire;
        let v1::NodePolicy { runtimes, privileged, binds, devices } = policy.unwrap_or_default();
        let policy = NodePolicy { runtimes, privileged, binds, devices };
        let v1::NodeResources { cpu_millis, memory_bytes } = capacity.unwrap_or_default();
        let capacity = Capacity { cpus: Cpus(cpu_millis), memory: Bytes(memory_bytes) };
        let network = network.map(NodeNetwork::try_from).transpose()?;
        Ok(Self { name, addr, capacity, os, arch, kernel, cgroup, version, labels, policy, network })
    }
}

impl From<Node> for v1::Node {
    fn from(node: Node) -> Self {
        let Node { id, stamp, description, availability, labels, state, message, since_ms, incarnation, number } = node;
        Self {
            meta: wire_meta(id, stamp),
            description: Some(description.into()),
            availability: v1::Availability::from(availability).into(),
            labels,
            state: v1::NodeState::from(state).into(),
            message,
            since_ms,
            incarnation,
            number,
        }
    }
}

impl TryFrom<v1::Node> for Node {
    type Error = WireError;

    fn try_from(wire: v1::Node) -> Result<Self, WireError> {
        let v1::Node { meta: wire_meta, description, availability, labels, state, message, since_ms, incarnation, number } = wire;
        let (id, stamp) = meta(wire_meta)?;
        Ok(Self {
            id,
            stamp,
            description: description.ok_or(missing("description"))?.try_into()?,
            availability: read_enum::<v1::Availability, _>(availability, "availability")?,
            labels,
            state: read_enum::<v1::NodeState, _>(state, "state")?,
            message,
            since_ms,
            incarnation,
            number,
        })
    }
}

impl From<Network> for v1::Network {
    fn from(network: Network) -> Self {
        let Network { id, stamp, spec, vni, subnet, subnet6, ip_cursor, removing, resting_vips } = network;
        let resting_vips = resting_vips.into_iter().map(|RestingVip { ip, service_id, since_ms }| v1::RestingVip {
            ip: ip.to_string(),
            service_id: service_id.into(),
            since_ms,
        });
        Self {
            meta: wire_meta(id, stamp),
            spec: Some(spec.into()),
            vni: vni.unwrap_or_default(),
            subnet: text(subnet),
            subnet6: text(subnet6),
            ip_cursor,
            removing,
            resting_vips: resting_vips.collect(),
        }
    }
}

impl TryFrom<v1::Network> for Network {
    type Error = WireError;

    fn try_from(wire: v1::Network) -> Result<Self, WireError> {
        let v1::Network { meta: wire_meta, spec, vni, subnet, subnet6, ip_cursor, removing, resting_vips } = wire;
        let (id, stamp) = meta(wire_meta)?;
        let resting_vips = resting_vips
            .into_iter()
            .map(|v1::RestingVip { ip, service_id, since_ms }| {
                let ip: Ipv4Addr = ip.parse().map_err(|_| missing("resting_vips.ip"))?;
                Ok(RestingVip { ip, service_id: service_id.into(), since_ms })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            id,
            stamp,
            spec: spec.ok_or(missing("spec"))?.try_into()?,
            vni: (vni != 0).then_some(vni),
            subnet: optional(&subnet, "subnet")?,
            subnet6: optional(&subnet6, "subnet6")?,
            ip_cursor,
            removing,
            resting_vips,
        })
    }
}

impl From<Event> for v1::Event {
    fn from(event: Event) -> Self {
        let Event { id, stamp, kind, object_id, object, reason, message } = event;
        Self { meta: wire_meta(id, stamp), kind, object_id, object, reason, message }
    }
}

impl TryFrom<v1::Event> for Event {
    type Error = WireError;

    fn try_from(wire: v1::Event) -> Result<Self, WireError> {
        let v1::Event { meta: wire_meta, kind, object_id, object, reason, message } = wire;
        let (id, stamp) = meta(wire_meta)?;
        Ok(Self { id, stamp, kind, object_id, object, reason, message })
    }
}

impl From<Object> for v1::Object {
    fn from(object: Object) -> Self {
        let kind = match object {
            Object::Service(service) => v1::object::Kind::Service(service.into()),
            Object::Task(task) => v1::object::Kind::Task((*task).into()),
            Object::Node(node) => v1::object::Kind::Node(node.into()),
            Object::Network(network) => v1::object::Kind::Network(network.into()),
            Object::Event(event) => v1::object::Kind::Event(event.into()),
            Object::Data(data) => v1::object::Kind::Data(data.into()),
            Object::Manager(manager) => v1::object::Kind::Manager(manager.into()),
            Object::Cluster(cluster) => v1::object::Kind::Cluster((*cluster).into()),
            Object::User(user) => v1::object::Kind::User(user.into()),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::Object> for Object {
    type Error = WireError;

    fn try_from(wire: v1::Object) -> Result<Self, WireError> {
        match wire.kind.ok_or(missing("object"))? {
            v1::object::Kind::Service(service) => service.try_into().map(Self::Service),
            v1::object::Kind::Task(task) => Task::try_from(task).map(|task| Self::Task(Box::new(task))),
            v1::object::Kind::Node(node) => node.try_into().map(Self::Node),
            v1::object::Kind::Network(network) => network.try_into().map(Self::Network),
            v1::object::Kind::Event(event) => event.try_into().map(Self::Event),
            v1::object::Kind::Data(data) => data.try_into().map(Self::Data),
            v1::object::Kind::Manager(manager) => manager.try_into().map(Self::Manager),
            v1::object::Kind::Cluster(cluster) => Cluster::try_from(cluster).map(|cluster| Self::Cluster(Box::new(cluster))),
            v1::object::Kind::User(user) => user.try_into().map(Self::User),
        }
    }
}

impl From<WireError> for crate::error::ApiError {
    fn from(error: WireError) -> Self {
        Self::new(crate::error::ErrorCode::Invalid, error.to_string())
            .hint("the sender speaks another version of the protocol, or the message is damaged")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::WireguardKey;

    #[test]
    fn a_node_comes_back_from_the_wire_with_its_network() {
        let network: NodeNetwork = serde_json::from_value(serde_json::json!({
            "mtu": 1450, "ipv6": true, "routes": ["10.0.0.0/8", "fd00::/8"], "addresses6": ["2001:db8::1"], "no_encryption": "no module",
            "conditions": ["slow"],
            "held_ports": [{"protocol": "udp", "port": 53, "by": "named (pid 1)"}],
        }))
        .unwrap();
        let wireguard_keys = vec![WireguardKey { epoch: 3, key: [7; 32], port: 51821 }];
        let network = NodeNetwork { wireguard_keys, ..network };
        let description = NodeDescription { name: "n1".to_owned(), network: Some(network), ..NodeDescription::default() };
        let wire = v1::NodeDescription::from(description.clone());
        assert_eq!(NodeDescription::try_from(wire.clone()).unwrap(), description);
        let network = wire.network.clone().map(|network| v1::NodeNetwork { routes: vec!["10.0.0.0".to_owned()], ..network });
        let refused = NodeDescription::try_from(v1::NodeDescription { network, ..wire.clone() }).unwrap_err();
        assert_eq!(refused.to_string(), "field network.routes is missing or out of range");
        let key = v1::WireguardKey { epoch: 3, key: vec![7; 31], port: 51821 };
        let network = wire.network.map(|network| v1::NodeNetwork { wireguard_keys: vec![key], ..network });
        let refused = NodeDescription::try_from(v1::NodeDescription { network, ..wire }).unwrap_err();
        assert_eq!(refused.to_string(), "field network.wireguard_keys.key is missing or out of range");
    }
}
