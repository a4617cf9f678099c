//! What an agent's registration changes: its node's object, and the tasks that were lost with it.
//!
//! In: who registers, with which boot count and which tasks. Out: the node and the tasks to write, or why the node is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::id::{NodeId, TaskId};
use rcluster_api::network::{NodeNetwork, NodePort, Port};
use rcluster_api::object::{Kind, Node, NodeDescription, NodeState, Object, Service};
use rcluster_api::task::TaskState;

use super::report;
use crate::core::allocate;
use crate::core::plan::{ChangeSet, Note};
use crate::core::state::State;

/// An agent that asks to take part.
#[derive(Debug, Clone)]
pub struct Registration {
    pub id: NodeId,
    pub incarnation: u64,
    pub description: NodeDescription,
    /// The tasks that it knows of.
    pub tasks: BTreeSet<TaskId>,
}

/// What to write for a registration.
pub fn register(state: &State, registration: &Registration, now_ms: u64) -> Result<ChangeSet, ApiError> {
    let Registration { id, incarnation, description, tasks } = registration;
    check(state, registration)?;
    let mut changes = ChangeSet::default();
    let known = state.nodes().get(id);
    let told = description.network.clone().map(NodeNetwork::bounded);
    let node = match known {
        Some(known) => {
            // An agent whose netd has not told it yet does not know less than before.
            let network = told.or_else(|| known.description.network.clone());
            let description = NodeDescription { network, ..description.clone() };
            let mut node = Node { description, incarnation: *incarnation, ..(**known).clone() };
            if node.state != NodeState::Ready {
                node.state = NodeState::Ready;
                node.message = String::new();
                node.since_ms = now_ms;
            }
            node
        }
        None => {
            let description = NodeDescription { network: told, ..description.clone() };
            Node::new(id.clone(), description, *incarnation, now_ms)
        }
    };
    if known.is_none_or(|known| **known != node) {
        if known.is_none_or(|known| known.state != NodeState::Ready) {
            changes.notes.push(Note {
                kind: Kind::Node,
                object_id: id.to_string(),
                object: description.name.clone(),
                reason: "Ready",
                message: if known.is_some() { "is back".to_owned() } else { format!("joined at {}", description.addr) },
            });
        }
        // Told once: as long as the node says the same, it is no news.
        if known.is_none_or(|known| known.description.network != node.description.network) {
            changes.notes.extend(news(state, known.and_then(|known| known.description.network.as_ref()), &node));
        }
        changes.puts.push(Object::Node(node));
    }
    for task in state.tasks_of_node(id) {
        if task.status.state == TaskState::Orphaned && !tasks.contains(&task.id) {
            changes.puts.push(Object::Task(Box::new(report::gone(task, now_ms))));
        }
    }
    Ok(changes)
}

/// What to write when a node's host has another network than it had.
pub fn network(state: &State, id: &NodeId, network: &NodeNetwork) -> ChangeSet {
    let mut changes = ChangeSet::default();
    let network = Some(network.clone().bounded());
    let Some(known) = state.nodes().get(id).filter(|known| known.description.network != network) else { return changes };
    let description = NodeDescription { network, ..known.description.clone() };
    let node = Node { description, ..(**known).clone() };
    changes.notes.extend(news(state, known.description.network.as_ref(), &node));
    changes.puts.push(Object::Node(node));
    changes
}

/// What people are told of a host that has another network than `before`: of what was so before they have heard.
fn news(state: &State, before: Option<&NodeNetwork>, node: &Node) -> Vec<Note> {
    crossing(state, before, node).into_iter().chain(withheld(state, before, node)).collect()
}

/// Its host reaches by a route of its own, and did not before, what pods are to reach on networks.
fn crossing(state: &State, before: Option<&NodeNetwork>, node: &Node) -> Option<Note> {
    let subnets: Vec<(&str, Ipv4Net)> = allocate::subnets(state).collect();
    let description = NodeDescription { network: before.cloned(), ..node.description.clone() };
    let earlier = Node { description, ..node.clone() };
    let known: BTreeSet<&str> = allocate::crossed(&subnets, &earlier).map(|(_, network, _)| network).collect();
    let mut news = allocate::crossed(&subnets, node).filter(|(_, network, _)| !known.contains(network));
    let (route, network, subnet) = news.next()?;
    let (more, them) = match news.count() {
        0 => (String::new(), "that network"),
        count => (format!(", and those of {count} more"), "those networks"),
    };
    Some(Note {
        kind: Kind::Node,
        object_id: node.id.to_string(),
        object: node.name().to_owned(),
        reason: "RouteOverlap",
        message: format!("its route {route} overlaps {subnet} of network {network}{more}: it is given no new tasks on {them}"),
    })
}

/// Programs of its host have, and had not before, what it is to open for services: a word for each of these.
fn withheld(state: &State, before: Option<&NodeNetwork>, node: &Node) -> Vec<Note> {
    let (had, has) = (held(before), held(node.description.network.as_ref()));
    if has.is_empty() {
        return Vec::new();
    }
    let of_service = |service: &Service| {
        let runs_here = || state.tasks_of_node(&node.id).any(|task| task.service_id == service.id && task.may_run());
        let asked = service.spec.ports.iter().flat_map(Port::node_ports);
        let mut news = asked.filter(|(port, of_tasks)| has.contains_key(port) && !had.contains_key(port) && (!of_tasks || runs_here()));
        let (port, _) = news.next()?;
        let (more, it) = match news.count() {
            0 => (String::new(), "it is"),
            count => (format!(", and {count} more"), "they are"),
        };
        Some(Note {
            kind: Kind::Node,
            object_id: node.id.to_string(),
            object: node.name().to_owned(),
            reason: "PortHeld",
            message: format!("{port} is held there by {}{more}: {it} not opened for service {}", has.get(&port)?, service.spec.name),
        })
    };
    state.services().values().filter_map(|service| of_service(service)).collect()
}

/// The ports that programs of a host have, with who.
fn held(network: Option<&NodeNetwork>) -> BTreeMap<NodePort, &str> {
    network.into_iter().flat_map(NodeNetwork::held).collect()
}

fn check(state: &State, registration: &Registration) -> Result<(), ApiError> {
    let Registration { id, description, .. } = registration;
    if id.is_empty() {
        return Err(ApiError::new(ErrorCode::Invalid, "the agent gave no node id"));
    }
    rcluster_api::validate::check_name("node", &description.name)?;
    rcluster_api::validate::check_labels("node", &description.name, &description.labels)?;
    let Ok(addr) = description.addr.parse::<Ipv4Addr>() else {
        return Err(ApiError::new(ErrorCode::Invalid, format!("{:?} is not an IPv4 address", description.addr))
            .field("addr")
            .hint("start the agent with --addr and the address at which other nodes reach it"));
    };
    // One that takes part already goes on, whatever it was let in with.
    let is_new = state.nodes().get(id).is_none_or(|known| known.description.addr != description.addr);
    if is_new && let Some((network, subnet)) = allocate::network_of(state, addr) {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("the address {addr} is within {subnet} of network {network}: no pod could reach it"),
        )
        .field("addr")
        .hint("start the agent with another --addr, or remove the network first"));
    }
    for other in state.nodes().values().filter(|other| other.id != *id) {
        if other.name() == description.name {
            return Err(ApiError::new(ErrorCode::Conflict, format!("a node named {} exists already (id {})", other.name(), other.id))
                .field("name")
                .hint("start the agent with another --name, or give it back its old state directory"));
        }
        if other.description.addr == description.addr {
            return Err(ApiError::new(ErrorCode::Conflict, format!("node {} has the address {} already", other.name(), description.addr))
                .field("addr")
                .hint("start the agent with another --addr"));
        }
    }
    Ok(())
}
