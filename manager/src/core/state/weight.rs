//! Roughly what objects take, in the log and in memory: their texts, and something for the rest.

use std::collections::BTreeMap;

use rcluster_api::cluster::Cluster;
use rcluster_api::data::Data;
use rcluster_api::id::{DataId, EventId, ManagerId, NetworkId, NodeId, ServiceId, TaskId, UserId};
use rcluster_api::object::{Kind, Network, Node, Object, Service, Task};
use rcluster_api::validate;

use super::State;

const REST: usize = 512;

/// The objects of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    pub objects: usize,
    pub bytes: usize,
}

/// The bytes of an object.
pub fn weight(object: &Object) -> usize {
    match object {
        Object::Task(task) => task_weight(task),
        Object::Service(service) => service_weight(service),
        Object::Data(data) => data_weight(data),
        Object::Cluster(cluster) => cluster_weight(cluster),
        Object::Node(node) => node_weight(node),
        Object::Network(network) => network_weight(network),
        Object::Event(_) | Object::Manager(_) | Object::User(_) => REST,
    }
}

fn task_weight(task: &Task) -> usize {
    REST + validate::text_bytes(&task.template.containers)
        + validate::words_bytes(&task.template.dns_search, &task.template.extra_hosts)
        + task.status.message.len()
        + 64 * (task.status.containers.len() + task.networks.len())
}

fn service_weight(service: &Service) -> usize {
    REST + validate::text_size(&service.spec) + 64 * service.vips.len()
}

fn data_weight(data: &Data) -> usize {
    REST + validate::label_bytes(&data.spec.labels) + data.spec.data.as_ref().map_or(0, |payload| payload.0.len())
}

fn node_weight(node: &Node) -> usize {
    let network = node.description.network.as_ref().map_or(0, |network| {
        64 * (network.routes.len() + network.held_ports.len())
            + network.held_ports.iter().map(|held| held.by.len()).sum::<usize>()
            + network.conditions.iter().map(String::len).sum::<usize>()
    });
    REST + validate::label_bytes(&node.labels) + validate::label_bytes(&node.description.labels) + network
}

fn network_weight(network: &Network) -> usize {
    REST + validate::network_text_size(&network.spec) + 64 * network.resting_vips.len()
}

fn cluster_weight(cluster: &Cluster) -> usize {
    const CREDENTIALS_BYTES: usize = 2048;
    REST + (1 + cluster.authorities.len()) * CREDENTIALS_BYTES + 64 * (cluster.revocations.len() + cluster.pools.len())
}

impl State {
    /// The bytes of an object as it is; 0 when there is none.
    pub fn weight(&self, kind: Kind, id: &str) -> usize {
        let weight = match kind {
            Kind::Service => self.services.get(&ServiceId::from(id)).map(|service| service_weight(service)),
            Kind::Task => self.tasks.get(&TaskId::from(id)).map(|task| task_weight(task)),
            Kind::Secret | Kind::Config => self.data.get(&DataId::from(id)).map(|data| data_weight(data)),
            Kind::Cluster => self.cluster.as_ref().map(|cluster| cluster_weight(cluster)),
            Kind::Node => self.nodes.get(&NodeId::from(id)).map(|node| node_weight(node)),
            Kind::Network => self.networks.get(&NetworkId::from(id)).map(|network| network_weight(network)),
            Kind::Event => self.events.contains_key(&EventId::from(id)).then_some(REST),
            Kind::Manager => self.managers.contains_key(&ManagerId::from(id)).then_some(REST),
            Kind::User => self.users.contains_key(&UserId::from(id)).then_some(REST),
        };
        weight.unwrap_or_default()
    }

    /// How many objects of each kind there are, and their bytes. Looks at every object.
    pub fn sizes(&self) -> BTreeMap<Kind, Size> {
        let mut sizes = BTreeMap::new();
        let mut add = |kind: Kind, bytes: usize| {
            let size: &mut Size = sizes.entry(kind).or_default();
            (size.objects, size.bytes) = (size.objects + 1, size.bytes + bytes);
        };
        self.services.values().for_each(|service| add(Kind::Service, service_weight(service)));
        self.tasks.values().for_each(|task| add(Kind::Task, task_weight(task)));
        self.data.values().for_each(|data| add(data.spec.kind.object_kind(), data_weight(data)));
        self.cluster.iter().for_each(|cluster| add(Kind::Cluster, cluster_weight(cluster)));
        self.nodes.values().for_each(|node| add(Kind::Node, node_weight(node)));
        self.networks.values().for_each(|network| add(Kind::Network, network_weight(network)));
        let alike = [(Kind::Event, self.events.len()), (Kind::Manager, self.managers.len()), (Kind::User, self.users.len())];
        sizes.extend(alike.map(|(kind, objects)| (kind, Size { objects, bytes: objects * REST })));
        sizes
    }

    /// The bytes of all objects.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
