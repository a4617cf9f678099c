//! Refuses published ports that another service has, or rcluster itself.
//!
//! In: the state and the services that a request writes. Out: a refusal with the field, or what people should know besides. Two services
//! may exchange their ports in one request: what counts is how they stand after it. Whether a node's own programs hold a port is not known
//! here: the scheduler passes by such nodes (`mode: host`), and netd tells (`mode: ingress`).

use std::collections::BTreeSet;

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::id::{NodeId, ServiceId};
use rcluster_api::network::{NodeNetwork, NodePort, Port, Protocol, Publishers};
use rcluster_api::object::{Kind, Object, Service, Task};
use rcluster_api::task::TaskState;

use crate::core::plan::{ChangeSet, Note};
use crate::core::state::State;

/// Managers' calls, VXLAN and WireGuard.
const OWN: [NodePort; 4] = [tcp(7443), udp(4789), udp(51820), udp(51821)];
const SSH: NodePort = tcp(22);

const fn tcp(number: u16) -> NodePort {
    NodePort { protocol: Protocol::Tcp, number }
}

const fn udp(number: u16) -> NodePort {
    NodePort { protocol: Protocol::Udp, number }
}

/// Looks at the services among `changes`; what is told of them.
pub(super) fn check(state: &State, changes: &ChangeSet) -> Result<Vec<Note>, ApiError> {
    let written = changes.puts.iter().filter_map(|put| if let Object::Service(service) = put { Some(service) } else { None });
    let written: Vec<&Service> = written.collect();
    if written.iter().all(|service| service.spec.ports.is_empty()) {
        return Ok(Vec::new());
    }
    let ids: BTreeSet<&ServiceId> = written.iter().map(|service| &service.id).collect();
    let mut publishers = Publishers::default();
    for service in state.services().values().filter(|service| !ids.contains(&service.id)) {
        publishers.add(&service.spec.name, &service.spec.ports);
    }
    let mut notes = Vec::new();
    for service in &written {
        let (name, ports) = (&service.spec.name, &service.spec.ports);
        check_own(state, ports)?;
        if let Some((place, port, other)) = publishers.clash(ports) {
            return Err(taken(state, place, port, other));
        }
        check_nodes(state, &written, service)?;
        publishers.add(name, ports);
        notes.extend(ssh(state, service));
        notes.extend(held(state, service));
    }
    Ok(notes)
}

fn refused(place: usize, message: String, hint: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Invalid, message).field(format!("ports[{place}]")).hint(hint)
}

/// Refuses what rcluster's own programs listen at.
fn check_own(state: &State, ports: &[Port]) -> Result<(), ApiError> {
    let number = |addr: &str| addr.rsplit_once(':').and_then(|(_, number)| number.parse::<u16>().ok());
    let managers = state.managers().values().filter_map(|manager| number(&manager.addr)).map(tcp);
    let own: BTreeSet<NodePort> = managers.chain(OWN).collect();
    let own = ports.iter().enumerate().find_map(|(place, asked)| {
        let (port, _) = asked.node_ports().find(|(port, _)| own.contains(port))?;
        Some((place, port))
    });
    own.map_or(Ok(()), |(place, port)| Err(refused(place, format!("{port} is rcluster's own"), "choose another")))
}

fn taken(state: &State, place: usize, port: NodePort, other: &str) -> ApiError {
    let message = format!("{port} is published by service {other} already");
    let goes = state.find_service(other).is_some_and(|service| service.removing);
    let hint = if goes {
        "that service is being removed: try again when `rclusterctl get services` does not show it any more"
    } else {
        "choose another, or remove it there"
    };
    refused(place, message, hint)
}

/// Refuses what a service asks for at its tasks' nodes, and did not before, where it stands beside a task of another service that has it:
/// new tasks pass by such nodes, and those that run stay where they are.
fn check_nodes(state: &State, written: &[&Service], service: &Service) -> Result<(), ApiError> {
    let Some(before) = state.services().get(&service.id) else { return Ok(()) };
    let had: BTreeSet<NodePort> = of_tasks(before).map(|(_, port)| port).collect();
    let asked: Vec<(usize, NodePort)> = of_tasks(service).filter(|(_, port)| !had.contains(port)).collect();
    if asked.is_empty() {
        return Ok(());
    }
    let stands = |task: &Task| task.node_id.is_some() && task.status.state >= TaskState::Assigned && !task.status.state.is_terminal();
    let own = state.tasks().values().filter(|task| task.service_id == service.id && stands(task));
    let nodes: BTreeSet<&NodeId> = own.filter_map(|task| task.node_id.as_ref()).collect();
    for other in nodes.into_iter().flat_map(|node| state.tasks_of_node(node)) {
        if other.service_id == service.id || !stands(other) {
            continue;
        }
        let current = || state.services().get(&other.service_id).map(|service| &**service);
        let Some(theirs) = written.iter().find(|written| written.id == other.service_id).copied().or_else(current) else { continue };
        let theirs: BTreeSet<NodePort> = of_tasks(theirs).map(|(_, port)| port).collect();
        if let Some((place, port)) = asked.iter().find(|(_, port)| theirs.contains(port)) {
            let message = format!("{port} of node {} is published for {} already", other.node, other.name);
            return Err(refused(*place, message, "choose another, or move one of the two services with placement first"));
        }
    }
    Ok(())
}

/// The ports that the service asks for at its tasks' nodes, with their places.
fn of_tasks(service: &Service) -> impl Iterator<Item = (usize, NodePort)> {
    let asked = service.spec.ports.iter().enumerate().flat_map(|(place, port)| port.node_ports().map(move |asked| (place, asked)));
    asked.filter(|(_, (_, of_tasks))| *of_tasks).map(|(place, (port, _))| (place, port))
}

/// What people should know of a service that publishes the port of the hosts' sshd and did not before.
fn ssh(state: &State, service: &Service) -> Option<Note> {
    let publishes = |service: &Service| service.spec.ports.iter().flat_map(Port::node_ports).any(|(port, _)| port == SSH);
    let did = state.services().get(&service.id).is_some_and(|before| publishes(before));
    (publishes(service) && !did).then(|| Note {
        kind: Kind::Service,
        object_id: service.id.to_string(),
        object: service.spec.name.clone(),
        reason: "SshPort",
        message: format!("publishes {SSH}: a node whose sshd listens there does not open it for the service"),
    })
}

/// What people should know of a service that is to be reached at every node by a port that it did not have before, and that a program of a
/// host has.
fn held(state: &State, service: &Service) -> Option<Note> {
    let of_all = |service: &Service| -> BTreeSet<NodePort> {
        let asked = service.spec.ports.iter().flat_map(Port::node_ports);
        asked.filter(|(_, of_tasks)| !of_tasks).map(|(port, _)| port).collect()
    };
    let mut news = of_all(service);
    if let Some(before) = state.services().get(&service.id) {
        news = news.difference(&of_all(before)).copied().collect();
    }
    let news = &news;
    let mut held = state.nodes().values().flat_map(|node| {
        let held = node.description.network.iter().flat_map(NodeNetwork::held);
        held.filter(move |(port, _)| news.contains(port)).map(move |(port, by)| (node.name(), port, by))
    });
    let (node, port, by) = held.next()?;
    let more = match held.count() {
        0 => String::new(),
        count => format!(", and others have {count} more there or on other nodes"),
    };
    Some(Note {
        kind: Kind::Service,
        object_id: service.id.to_string(),
        object: service.spec.name.clone(),
        reason: "PortHeld",
        message: format!("{port} is held on node {node} by {by}{more}: it is not opened there"),
    })
}
