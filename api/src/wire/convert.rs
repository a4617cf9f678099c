//! Between the generated types and the checked ones.
//!
//! Out of the wire: `TryFrom`, naming the field that does not fit. Onto it: `From`, which destructures without `..` so that a new field
//! does not compile until it is handled.

mod cluster;
mod container;
mod data;
mod network;

use std::net::Ipv4Addr;

use thiserror::Error;

pub use self::cluster::{manager_role, user_role};
pub use self::data::data_kind;
use self::network::{affinity, endpoint_mode};

use super::v1;
use crate::cluster::{Cluster, ManagerRole, UserRole};
use crate::container::PullPolicy;
use crate::network::{IngressPolicy, NetworkPolicy, NodeNetwork, Port, Protocol};
use crate::object::{
    Availability, Capacity, Event, Kind, Network, Node, NodeDescription, NodeState, Object, RestingVip, Service, ServiceVip, Stamp, Task,
    TaskNetwork, TaskStatus,
};
use crate::policy::NodePolicy;
use crate::resource::{Bytes, Cpus, Millis};
use crate::spec::{
    Constraint, Mode, NetworkAttachment, NetworkSpec, Placement, Reschedule, RestartCondition, RestartPolicy, ServiceSpec, Spec,
    TaskTemplate, UpdateOrder, UpdatePolicy,
};
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

impl From<Placement> for v1::Placement {
    fn from(placement: Placement) -> Self {
        let Placement { constraints, max_per_node } = placement;
        Self {
            constraints: constraints
                .into_iter()
                .map(|Constraint { key, equal, value }| v1::Constraint { key: key.to_string(), equal, value })
                .collect(),
            max_per_node: max_per_node.unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::Placement> for Placement {
    type Error = WireError;

    fn try_from(wire: v1::Placement) -> Result<Self, WireError> {
        let v1::Placement { constraints, max_per_node } = wire;
        let constraints = constraints
            .into_iter()
            .map(|v1::Constraint { key, equal, value }| {
                Ok(Constraint { key: key.parse().map_err(|_| missing("placement.constraints.key"))?, equal, value })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { constraints, max_per_node: (max_per_node != 0).then_some(max_per_node) })
    }
}

impl From<TaskTemplate> for v1::TaskTemplate {
    fn from(template: TaskTemplate) -> Self {
        let TaskTemplate { containers, networks, placement, stop_grace, runtime, dns, dns_search, extra_hosts } = template;
        Self {
            containers: containers.into_iter().map(Into::into).collect(),
            networks: networks
                .into_iter()
                .map(|NetworkAttachment { network, aliases, ip }| v1::NetworkAttachment {
                    network,
                    aliases,
                    ip: ip.map(|ip| ip.to_string()).unwrap_or_default(),
                })
                .collect(),
            placement: Some(placement.into()),
            stop_grace_ms: stop_grace.0,
            runtime,
            dns: dns.iter().map(ToString::to_string).collect(),
            dns_search,
            extra_hosts: extra_hosts.into_iter().map(|(name, address)| v1::HostEntry { name, ip: address.to_string() }).collect(),
        }
    }
}

impl TryFrom<v1::TaskTemplate> for TaskTemplate {
    type Error = WireError;

    fn try_from(wire: v1::TaskTemplate) -> Result<Self, WireError> {
        let v1::TaskTemplate { containers, networks, placement, stop_grace_ms, runtime, dns, dns_search, extra_hosts } = wire;
        Ok(Self {
            containers: containers.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            networks: networks
                .into_iter()
                .map(|v1::NetworkAttachment { network, aliases, ip }| {
                    let ip = (!ip.is_empty()).then(|| ip.parse().map_err(|_| missing("networks.ip"))).transpose()?;
                    Ok(NetworkAttachment { network, aliases, ip })
                })
                .collect::<Result<_, WireError>>()?,
            placement: placement.unwrap_or_default().try_into()?,
            stop_grace: Millis(stop_grace_ms),
            runtime,
            dns: dns.iter().map(|ip| ip.parse().map_err(|_| missing("dns"))).collect::<Result<_, _>>()?,
            dns_search,
            extra_hosts: extra_hosts
                .into_iter()
                .map(|v1::HostEntry { name, ip }| Ok((name, ip.parse().map_err(|_| missing("extra_hosts.ip"))?)))
                .collect::<Result<_, WireError>>()?,
        })
    }
}

impl From<ServiceSpec> for v1::ServiceSpec {
    fn from(spec: ServiceSpec) -> Self {
        let ServiceSpec {
            name,
            stack,
            labels,
            mode,
            replicas,
            containers,
            networks,
            placement,
            stop_grace,
            restart: RestartPolicy { condition, delay, delay_max, max_attempts, window },
            reschedule,
            update: UpdatePolicy { parallelism, order },
            runtime,
            endpoint_mode,
            affinity,
            ports,
            leave,
            dns,
            dns_search,
            extra_hosts,
        } = spec;
        let template = TaskTemplate { containers, networks, placement, stop_grace, runtime, dns, dns_search, extra_hosts };
        Self {
            name,
            stack,
            labels,
            mode: v1::ServiceMode::from(mode).into(),
            replicas: match mode {
                Mode::Replicated => replicas.unwrap_or(1),
                Mode::Global => 0,
            },
            template: Some(template.into()),
            restart: Some(v1::RestartPolicy {
                condition: v1::RestartCondition::from(condition).into(),
                delay_ms: delay.0,
                delay_ms_max: delay_max.0,
                attempts_max: max_attempts.unwrap_or_default(),
                window_ms: window.0,
            }),
            reschedule: v1::ReschedulePolicy::from(reschedule).into(),
            update: Some(v1::UpdatePolicy { parallelism, order: v1::UpdateOrder::from(order).into() }),
            endpoint_mode: v1::EndpointMode::from(endpoint_mode).into(),
            affinity: v1::Affinity::from(affinity).into(),
            ports: ports.into_iter().map(Into::into).collect(),
            leave_ms: leave.0,
        }
    }
}

impl TryFrom<v1::ServiceSpec> for ServiceSpec {
    type Error = WireError;

    fn try_from(wire: v1::ServiceSpec) -> Result<Self, WireError> {
        let v1::ServiceSpec {
            name,
            stack,
            labels,
            mode,
            replicas,
            template,
            restart,
            reschedule,
            update,
            endpoint_mode: endpoint_number,
            affinity: affinity_number,
            ports,
            leave_ms,
        } = wire;
        let mode = read_enum::<v1::ServiceMode, Mode>(mode, "mode")?;
        let TaskTemplate { containers, networks, placement, stop_grace, runtime, dns, dns_search, extra_hosts } =
            template.ok_or(missing("template"))?.try_into()?;
        let v1::RestartPolicy { condition, delay_ms, delay_ms_max, attempts_max, window_ms } = restart.ok_or(missing("restart"))?;
        let v1::UpdatePolicy { parallelism, order } = update.ok_or(missing("update"))?;
        Ok(Self {
            name,
            stack,
            labels,
            mode,
            replicas: match mode {
                Mode::Replicated => Some(replicas),
                Mode::Global => None,
            },
            containers,
            networks,
            placement,
            stop_grace,
            restart: RestartPolicy {
                condition: read_enum::<v1::RestartCondition, _>(condition, "restart.condition")?,
                delay: Millis(delay_ms),
                delay_max: Millis(delay_ms_max),
                max_attempts: (attempts_max != 0).then_some(attempts_max),
                window: Millis(window_ms),
            },
            reschedule: read_enum::<v1::ReschedulePolicy, _>(reschedule, "reschedule")?,
            update: UpdatePolicy { parallelism, order: read_enum::<v1::UpdateOrder, _>(order, "update.order")? },
            runtime,
            endpoint_mode: endpoint_mode(endpoint_number)?,
            affinity: affinity(affinity_number)?,
            ports: ports.into_iter().map(Port::try_from).collect::<Result<_, _>>()?,
            leave: Millis(leave_ms),
            dns,
            dns_search,
            extra_hosts,
        })
    }
}

impl From<NetworkSpec> for v1::NetworkSpec {
    fn from(spec: NetworkSpec) -> Self {
        let NetworkSpec { name, stack, labels, subnet, internal, policy } = spec;
        let subnet = subnet.map(|subnet| subnet.to_string()).unwrap_or_default();
        Self { name, stack, labels, subnet, internal, policy: policy.map(Into::into) }
    }
}

fn optional_subnet(text: &str) -> Result<Option<ipnet::Ipv4Net>, WireError> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| missing("subnet")) }
}

impl TryFrom<v1::NetworkSpec> for NetworkSpec {
    type Error = WireError;

    fn try_from(wire: v1::NetworkSpec) -> Result<Self, WireError> {
        let v1::NetworkSpec { name, stack, labels, subnet, internal, policy } = wire;
        let policy = policy.map(NetworkPolicy::try_from).transpose()?;
        Ok(Self { name, stack, labels, subnet: optional_subnet(&subnet)?, internal, policy })
    }
}

impl From<Spec> for v1::spec::Kind {
    fn from(spec: Spec) -> Self {
        match spec {
            Spec::Service(spec) => Self::Service(spec.into()),
            Spec::Network(spec) => Self::Network(spec.into()),
            Spec::Data(spec) => Self::Data(spec.into()),
        }
    }
}

impl TryFrom<v1::spec::Kind> for Spec {
    type Error = WireError;

    fn try_from(wire: v1::spec::Kind) -> Result<Self, WireError> {
        match wire {
            v1::spec::Kind::Service(spec) => spec.try_into().map(Self::Service),
            v1::spec::Kind::Network(spec) => spec.try_into().map(Self::Network),
            v1::spec::Kind::Data(spec) => spec.try_into().map(Self::Data),
        }
    }
}

fn wire_meta(id: impl Into<String>, stamp: Stamp) -> Option<v1::Meta> {
    let Stamp { version, created_at_ms, updated_at_ms } = stamp;
    Some(v1::Meta { id: id.into(), version, created_at_ms, updated_at_ms })
}

fn meta<I: From<String>>(wire: Option<v1::Meta>) -> Result<(I, Stamp), WireError> {
    let v1::Meta { id, version, created_at_ms, updated_at_ms } = wire.ok_or(missing("meta"))?;
    Ok((id.into(), Stamp { version, created_at_ms, updated_at_ms }))
}

impl From<Service> for v1::Service {
    fn from(service: Service) -> Self {
        let Service { id, stamp, spec, spec_version, removing, vips } = service;
        let vips = vips.into_iter().map(|ServiceVip { network_id, network, ip }| v1::ServiceVip {
            network_id: network_id.into(),
            network,
            ip: ip.to_string(),
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
            .map(|v1::ServiceVip { network_id, network, ip }| {
                let ip: Ipv4Addr = ip.parse().map_err(|_| missing("vips.ip"))?;
                Ok(ServiceVip { network_id: network_id.into(), network, ip })
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
                .map(|TaskNetwork { network_id, network, ip, aliases }| v1::TaskNetwork {
                    network_id: network_id.into(),
                    network,
                    ip: ip.to_string(),
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
            .map(|v1::TaskNetwork { network_id, network, ip, aliases }| {
                let ip: Ipv4Addr = ip.parse().map_err(|_| missing("networks.ip"))?;
                Ok(TaskNetwork { network_id: network_id.into(), network, ip, aliases })
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
        let Network { id, stamp, spec, vni, subnet, ip_cursor, removing, resting_vips } = network;
        let resting_vips = resting_vips.into_iter().map(|RestingVip { ip, service_id, since_ms }| v1::RestingVip {
            ip: ip.to_string(),
            service_id: service_id.into(),
            since_ms,
        });
        Self {
            meta: wire_meta(id, stamp),
            spec: Some(spec.into()),
            vni: vni.unwrap_or_default(),
            subnet: subnet.map(|subnet| subnet.to_string()).unwrap_or_default(),
            ip_cursor,
            removing,
            resting_vips: resting_vips.collect(),
        }
    }
}

impl TryFrom<v1::Network> for Network {
    type Error = WireError;

    fn try_from(wire: v1::Network) -> Result<Self, WireError> {
        let v1::Network { meta: wire_meta, spec, vni, subnet, ip_cursor, removing, resting_vips } = wire;
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
            subnet: optional_subnet(&subnet)?,
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

    #[test]
    fn a_service_comes_back_from_the_wire_as_it_went() {
        let spec: ServiceSpec = serde_json::from_value(serde_json::json!({
            "replicas": 3, "labels": {"a": "b"}, "networks": [{"network": "lab", "aliases": ["www"]}], "stop_grace": "3s",
            "placement": {"constraints": ["node.labels.zone!=b", "node.name==n1"], "max_per_node": 2},
            "restart": {"condition": "on-failure", "max_attempts": 3}, "reschedule": "never", "update": {"order": "start-first"},
            "containers": [{"image": "web:1", "name": "web", "command": ["/web"], "env": {"A": "b"},
                "resources": {"limits": {"memory": "64MiB", "cpus": 0.5, "pids": 10}, "reservations": {"memory": "16MiB"}},
                "healthcheck": {"http": {"port": 80}, "interval": "5s"}, "init": true, "ulimits": {"nofile": {"soft": 1, "hard": -1}},
                "mounts": [{"type": "bind", "source": "/a", "target": "/b", "read_only": true}, {"type": "tmpfs", "target": "/t"},
                    {"type": "volume", "source": "data", "target": "/d"}, {"type": "tmpfs", "target": "/u", "size": "1MiB", "mode": "0700"}],
                "sysctls": {"net.core.somaxconn": "1"}, "cap_add": ["NET_ADMIN"], "cap_drop": ["ALL"], "no_new_privileges": true,
                "privileged": true, "devices": ["/dev/fuse:/dev/fuse:rw"], "shm_size": "1MiB", "pull": "always", "stdin": true, "tty": true,
                "secrets": ["a", {"source": "b", "target": "/b", "uid": 1, "gid": 2, "mode": "0400"}], "configs": ["c"],
                "logging": {"driver": "syslog", "address": "udp://10.0.0.1:514", "facility": "local0", "tag": "t", "max_size": "1MiB"}}, {"image": "b", "name": "b", "pull": "never",
                "healthcheck": {"tcp": {"port": 5}}}, {"image": "c", "name": "c", "healthcheck": {"command": "true", "retries": 1}},
                {"image": "d", "name": "d", "healthcheck": {"disable": true}}],
            "runtime": "crun", "endpoint_mode": "vip", "affinity": "client", "leave": "1m", "ports": ["8080:80", {"name": "dns", "target": 53},
                {"target": "90-92", "published": "190-192", "protocol": "udp", "mode": "host", "allow_from": ["10.0.0.0/8", "fd00::/8"]},
                {"target": 81, "published": 81, "policy": "local"}],
            "dns": ["9.9.9.9", "2001:db8::1"], "dns_search": ["corp.example"], "extra_hosts": {"db": "10.0.0.7", "host": "host-gateway"},
        }))
        .unwrap();
        let wire = v1::ServiceSpec::from(spec.clone());
        assert_eq!(ServiceSpec::try_from(wire.clone()).unwrap(), spec);
        let port = v1::Port { policy: v1::IngressPolicy::Local.into(), ..wire.ports[2].clone() };
        let broken = v1::ServiceSpec { ports: vec![port], ..wire.clone() };
        assert_eq!(ServiceSpec::try_from(broken).unwrap_err().to_string(), "field ports.policy is missing or out of range");
        let broken = v1::ServiceSpec { mode: 77, ..wire };
        assert_eq!(ServiceSpec::try_from(broken).unwrap_err().to_string(), "field mode is missing or out of range");
    }

    #[test]
    fn a_service_of_an_earlier_version_neither_waits_nor_has_an_address_and_goes_back_as_it_came() {
        let spec: ServiceSpec = serde_json::from_value(
            serde_json::json!({"containers": [{"image": "web:1"}], "replicas": 1, "leave": "0s", "endpoint_mode": "dnsrr"}),
        )
        .unwrap();
        let wire = v1::ServiceSpec::from(spec.clone());
        assert_eq!((wire.endpoint_mode, wire.affinity, wire.leave_ms, wire.ports.len()), (0, 0, 0, 0));
        assert_eq!(ServiceSpec::try_from(wire).unwrap(), spec);
    }

    #[test]
    fn a_network_comes_back_from_the_wire_with_its_policy() {
        for policy in [
            serde_json::json!(null),
            serde_json::json!({"allow": []}),
            serde_json::json!({"allow": [
                {"from": ["web", "*", "10.0.0.0/8"], "to": ["db", "*"], "ports": [80, "1-65535", "53/udp"]},
            ]}),
        ] {
            let spec: NetworkSpec = serde_json::from_value(serde_json::json!({"internal": true, "policy": policy})).unwrap();
            assert_eq!(NetworkSpec::try_from(v1::NetworkSpec::from(spec.clone())).unwrap(), spec);
        }
        let port = v1::PolicyPort { protocol: v1::Protocol::Tcp.into(), first: 80, last: 79 };
        let allow = vec![v1::Allow { ports: vec![port], ..v1::Allow::default() }];
        let wire = v1::NetworkSpec { policy: Some(v1::NetworkPolicy { allow }), ..v1::NetworkSpec::default() };
        assert_eq!(NetworkSpec::try_from(wire).unwrap_err(), missing("policy.allow.ports"));
    }

    #[test]
    fn a_node_comes_back_from_the_wire_with_its_network() {
        let network: NodeNetwork = serde_json::from_value(serde_json::json!({
            "mtu": 1450, "routes": ["10.0.0.0/8", "fd00::/8"], "conditions": ["slow"],
            "held_ports": [{"protocol": "udp", "port": 53, "by": "named (pid 1)"}],
        }))
        .unwrap();
        let description = NodeDescription { name: "n1".to_owned(), network: Some(network), ..NodeDescription::default() };
        let wire = v1::NodeDescription::from(description.clone());
        assert_eq!(NodeDescription::try_from(wire.clone()).unwrap(), description);
        let network = wire.network.map(|network| v1::NodeNetwork { routes: vec!["10.0.0.0".to_owned()], ..network });
        let refused = NodeDescription::try_from(v1::NodeDescription { network, ..wire }).unwrap_err();
        assert_eq!(refused.to_string(), "field network.routes is missing or out of range");
    }
}
