//! What is free on each node while tasks are being placed.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use ipnet::Ipv4Net;
use rcluster_api::id::{NodeId, ServiceId};
use rcluster_api::network::{NodeNetwork, NodePort, Port};
use rcluster_api::object::{Capacity, Node, Service, Task};

use super::{filter, rank};
use crate::core::allocate;
use crate::core::state::State;

/// One node and what stands on it.
#[derive(Debug)]
pub struct Room<'a> {
    pub node: &'a Node,
    /// Capacity less the reservations of the tasks that have not ended.
    pub free: Capacity,
    /// Tasks that have not ended.
    pub tasks: usize,
    /// Networks that are asked for and whose addresses its host reaches by routes of its own, with words for it.
    pub crossed: BTreeMap<String, String>,
    /// Networks that are encrypted.
    pub encrypted: Rc<BTreeSet<String>>,
    /// Networks with IPv6, when its pods cannot have that.
    pub without_six: BTreeSet<String>,
    /// Its ports that someone has, with who: programs of its host, and tasks whose services publish them there (`mode: host`).
    pub ports: BTreeMap<NodePort, String>,
    by_service: BTreeMap<ServiceId, usize>,
    failures: BTreeMap<(ServiceId, u32), usize>,
}

impl Room<'_> {
    /// Tasks of a service that have not ended.
    pub fn tasks_of(&self, service: &ServiceId) -> usize {
        self.by_service.get(service).copied().unwrap_or_default()
    }

    /// Remembered failures of a slot on this node.
    pub fn failures_of(&self, service: &ServiceId, slot: u32) -> usize {
        self.failures.get(&(service.clone(), slot)).copied().unwrap_or_default()
    }

    /// Takes in a task that has `ports` of the node.
    fn add(&mut self, task: &Task, ports: &[NodePort]) {
        if task.status.state.is_terminal() {
            if task.status.state.is_failure() {
                *self.failures.entry((task.service_id.clone(), task.slot)).or_default() += 1;
            }
            return;
        }
        let reserved = task.reserved();
        self.free.cpus.0 = self.free.cpus.0.saturating_sub(reserved.cpus.0);
        self.free.memory.0 = self.free.memory.0.saturating_sub(reserved.memory.0);
        self.tasks += 1;
        for port in ports {
            self.ports.entry(*port).or_insert_with(|| task.name.clone());
        }
        if task.is_wanted() {
            *self.by_service.entry(task.service_id.clone()).or_default() += 1;
        }
    }
}

/// All nodes.
#[derive(Debug)]
pub struct Rooms<'a> {
    rooms: BTreeMap<NodeId, Room<'a>>,
    /// Those of its node that a task of a service has, or is to have; of services that have some.
    ports: BTreeMap<&'a ServiceId, Vec<NodePort>>,
}

impl<'a> Rooms<'a> {
    /// The nodes as they are in `state`, for tasks that wait for one.
    pub fn new(state: &'a State, waiting: &[&Task]) -> Self {
        let ports: BTreeMap<&ServiceId, Vec<NodePort>> = state.services().values().filter_map(|service| own_ports(service)).collect();
        let asked: BTreeSet<&str> = waiting.iter().flat_map(|task| &task.template.networks).map(|on| on.network.as_str()).collect();
        let subnets: Vec<(&str, Ipv4Net)> = allocate::subnets(state).filter(|(name, _)| asked.contains(name)).collect();
        let encrypted = state.networks().values().filter(|network| network.spec.encrypted);
        let encrypted: Rc<BTreeSet<String>> = Rc::new(encrypted.map(|network| network.spec.name.clone()).collect());
        let rooms = state.nodes().values().map(|node| {
            let said = |(route, name, subnet): (Ipv4Net, &str, Ipv4Net)| {
                (String::from(name), format!("{route}, which overlaps {subnet} of network {name}"))
            };
            let held = node.description.network.iter().flat_map(NodeNetwork::held);
            let mut room = Room {
                node,
                free: node.description.capacity,
                tasks: 0,
                crossed: allocate::crossed(&subnets, node).map(said).collect(),
                encrypted: Rc::clone(&encrypted),
                without_six: if has_six(node) { BTreeSet::new() } else { with_six(state).collect() },
                ports: held.map(|(port, by)| (port, by.to_owned())).collect(),
                by_service: BTreeMap::new(),
                failures: BTreeMap::new(),
            };
            for task in state.tasks_of_node(&node.id).filter(|task| !is_unplaced(task)) {
                room.add(task, of_task(&ports, task));
            }
            (node.id.clone(), room)
        });
        let rooms = rooms.collect();
        Self { rooms, ports }
    }

    /// The best node for a task, or why there is none.
    pub fn best(&self, task: &Task) -> Result<&Room<'a>, String> {
        let ports = of_task(&self.ports, task);
        let mut refused = Vec::new();
        let mut fitting = Vec::new();
        for room in self.rooms.values() {
            match filter::check(task, ports, room) {
                Ok(()) => fitting.push(room),
                Err(refusal) => refused.push((refusal, room)),
            }
        }
        fitting.into_iter().min_by_key(|room| rank::of(task, room)).ok_or_else(|| filter::explain(task, &refused))
    }

    /// Counts a task that was just assigned.
    pub fn place(&mut self, node: &NodeId, task: &Task) {
        if let Some(room) = self.rooms.get_mut(node) {
            room.add(task, of_task(&self.ports, task));
        }
    }
}

/// Whether its netd has told that pods can have IPv6.
fn has_six(node: &Node) -> bool {
    node.description.network.as_ref().is_some_and(|network| network.ipv6)
}

fn with_six(state: &State) -> impl Iterator<Item = String> {
    state.networks().values().filter(|network| network.spec.ipv6).map(|network| network.spec.name.clone())
}

/// The service with the ports of its tasks' nodes, if it has some.
fn own_ports(service: &Service) -> Option<(&ServiceId, Vec<NodePort>)> {
    let asked = service.spec.ports.iter().flat_map(Port::node_ports);
    let ports: Vec<NodePort> = asked.filter(|(_, of_tasks)| *of_tasks).map(|(port, _)| port).collect();
    (!ports.is_empty()).then_some((&service.id, ports))
}

/// The ports of its node that a task has, or is to have: as its service is now.
fn of_task<'a>(ports: &'a BTreeMap<&ServiceId, Vec<NodePort>>, task: &Task) -> &'a [NodePort] {
    ports.get(&task.service_id).map(Vec::as_slice).unwrap_or_default()
}

/// A global service's task that has its node but is not assigned takes no room yet.
fn is_unplaced(task: &Task) -> bool {
    task.status.state < rcluster_api::task::TaskState::Assigned
}
