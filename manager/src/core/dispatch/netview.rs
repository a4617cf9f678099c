//! What one node must reach: the networks that have a task on it, with every endpoint and every name.
//!
//! An endpoint is routed from the moment its task has a node, and answered by DNS only while the task runs, is wanted, and its node is
//! not down. It leaves the answers in the same commit that asks the task to stop.

use std::collections::{BTreeMap, BTreeSet};

use rcluster_api::id::{NetworkId, NodeId};
use rcluster_api::object::{Network, NodeState, Task, TaskNetwork};
use rcluster_api::task::TaskState;
use rcluster_api::wire::v1;

use crate::core::state::State;

/// All networks of the cluster as the nodes see them; made once for a revision and shared between nodes.
#[derive(Debug)]
pub struct Networks {
    revision: u64,
    nodes: Vec<v1::NodeView>,
    views: BTreeMap<NetworkId, v1::NetworkView>,
    by_node: BTreeMap<NodeId, BTreeSet<NetworkId>>,
}

impl Networks {
    /// The networks as of `state`.
    pub fn new(state: &State) -> Self {
        let nodes = state
            .nodes()
            .values()
            .map(|node| v1::NodeView {
                id: node.id.to_string(),
                name: node.name().to_owned(),
                addr: node.description.addr.clone(),
                incarnation: node.incarnation,
            })
            .collect();
        let mut views: BTreeMap<NetworkId, v1::NetworkView> =
            state.networks().values().filter_map(|network| Some((network.id.clone(), empty_view(network)?))).collect();
        for service in state.services().values() {
            for attachment in &service.spec.networks {
                let Some(view) = state.find_network(&attachment.network).and_then(|network| views.get_mut(&network.id)) else { continue };
                view.names.extend(service_names(&service.spec.name, &service.spec.stack));
                view.names.extend(attachment.aliases.iter().map(|alias| alias.to_lowercase()));
            }
        }
        for view in views.values_mut() {
            view.names.sort();
            view.names.dedup();
        }
        let mut by_node: BTreeMap<NodeId, BTreeSet<NetworkId>> = BTreeMap::new();
        for task in state.tasks().values().filter(|task| task.may_run() && task.status.state >= TaskState::Assigned) {
            let Some(node) = &task.node_id else { continue };
            let node_is_up = state.nodes().get(node).is_some_and(|node| node.state != NodeState::Down);
            for attached in &task.networks {
                let Some(view) = views.get_mut(&attached.network_id) else { continue };
                view.endpoints.push(endpoint(task, node, attached, node_is_up));
                by_node.entry(node.clone()).or_default().insert(attached.network_id.clone());
            }
        }
        Self { revision: state.revision(), nodes, views, by_node }
    }

    /// The revision that they are of.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The part that concerns one node, told by the leader of `term`.
    pub fn view(&self, node: &NodeId, term: u64) -> v1::NetView {
        let own = self.by_node.get(node).into_iter().flatten();
        v1::NetView {
            term,
            revision: self.revision,
            node_id: node.to_string(),
            nodes: self.nodes.clone(),
            networks: own.filter_map(|id| self.views.get(id)).cloned().collect(),
        }
    }
}

/// A network without endpoints; `None` before it has its numbers.
fn empty_view(network: &Network) -> Option<v1::NetworkView> {
    Some(v1::NetworkView {
        id: network.id.to_string(),
        name: network.spec.name.clone(),
        vni: network.vni?,
        subnet: network.subnet?.to_string(),
        internal: network.spec.internal,
        names: Vec::new(),
        endpoints: Vec::new(),
    })
}

/// The names that stand for all tasks of a service.
fn service_names(service: &str, stack: &str) -> Vec<String> {
    let mut names = vec![service.to_owned(), format!("tasks.{service}")];
    if !stack.is_empty() {
        names.push(format!("{service}.{stack}"));
        names.push(format!("tasks.{service}.{stack}"));
    }
    names
}

fn endpoint(task: &Task, node: &NodeId, attached: &TaskNetwork, node_is_up: bool) -> v1::EndpointView {
    let mut names = service_names(&task.service, &task.stack);
    if task.slot > 0 {
        names.push(format!("{}.{}", task.slot, task.service));
    }
    names.push(task.name.clone());
    names.push(task.id.to_string());
    names.extend(attached.aliases.iter().map(|alias| alias.to_lowercase()));
    v1::EndpointView {
        task_id: task.id.to_string(),
        node_id: node.to_string(),
        ip: attached.ip.to_string(),
        serving: node_is_up && task.serves(),
        names,
        task: task.name.clone(),
    }
}
