//! The managers' picture of what this node must reach, parsed once into a checked form, and the pods attached here.
//!
//! In: the wire's `NetView`. Out: a `Picture` in which every address lies in its network, every remote endpoint has its node's
//! underlay address, and no two networks share a VNI or overlap; what does not fit is left out and named in `problems`, so that one bad
//! entry never freezes the rest. Never: looks at the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rcluster_api::wire::v1;
use serde::{Deserialize, Serialize};

/// The highest VNI that a VXLAN header can carry.
const VNI_MAX: u32 = (1 << 24) - 1;

/// What this node must reach. The higher (`term`, `revision`) wins.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Picture {
    pub term: u64,
    pub revision: u64,
    pub node_id: String,
    /// By network id.
    pub networks: BTreeMap<String, Network>,
}

/// One network that has, or is about to have, a pod on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub name: String,
    pub vni: u32,
    pub subnet: Ipv4Net,
    pub internal: bool,
    /// Every name that exists on the network, lower case.
    pub names: BTreeSet<String>,
    pub endpoints: BTreeMap<Ipv4Addr, Endpoint>,
    /// No longer in the managers' picture; kept as last seen because a pod here is still attached to it.
    #[serde(default)]
    pub leaving: bool,
}

/// One address on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub task_id: String,
    /// The task's name.
    pub task: String,
    pub place: Place,
    /// Answered by DNS; otherwise only routed.
    pub serving: bool,
    /// Lower case.
    pub names: BTreeSet<String>,
}

/// Where an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// On this node; reached when its pod is attached.
    Here,
    /// Behind the node with this underlay address.
    Node(Ipv4Addr),
}

/// A pod's networks, in the order in which they were asked for: the first one gives the default route.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Attachment {
    pub networks: Vec<Membership>,
}

/// One network of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    pub network_id: String,
    pub ip: Ipv4Addr,
}

/// By task id.
pub type Attachments = BTreeMap<String, Attachment>;

impl Picture {
    /// Parses the wire's picture; the second value says what had to be left out and why.
    pub fn parse(view: &v1::NetView) -> (Self, Vec<String>) {
        let mut problems = Vec::new();
        let nodes: BTreeMap<&str, Option<Ipv4Addr>> = view
            .nodes
            .iter()
            .map(|node| {
                let addr = node.addr.parse().ok();
                if addr.is_none() {
                    problems
                        .push(format!("node {} has the address {:?}, which is not IPv4; its endpoints are left out", node.id, node.addr));
                }
                (node.id.as_str(), addr)
            })
            .collect();
        let mut picture = Self { term: view.term, revision: view.revision, node_id: view.node_id.clone(), networks: BTreeMap::new() };
        for wire in &view.networks {
            match Network::parse(wire, &view.node_id, &nodes, &mut problems) {
                Ok(network) => match picture.clash(&wire.id, &network) {
                    Some(why) => problems.push(format!("network {} ({}) is left out: {why}", wire.name, wire.id)),
                    None => {
                        picture.networks.insert(wire.id.clone(), network);
                    }
                },
                Err(why) => problems.push(format!("network {} ({}) is left out: {why}", wire.name, wire.id)),
            }
        }
        (picture, problems)
    }

    /// The picture's place in the order of pictures.
    pub fn version(&self) -> (u64, u64) {
        (self.term, self.revision)
    }

    /// Keeps from `old` the networks that are not in this picture but still have a pod here.
    pub fn retain_attached(&mut self, old: &Picture, attachments: &Attachments) {
        for membership in attachments.values().flat_map(|attachment| &attachment.networks) {
            if self.networks.contains_key(&membership.network_id) {
                continue;
            }
            let Some(network) = old.networks.get(&membership.network_id) else { continue };
            if self.clash(&membership.network_id, network).is_none() {
                self.networks.insert(membership.network_id.clone(), Network { leaving: true, ..network.clone() });
            }
        }
    }

    /// Drops the networks that are not in the managers' picture and have no pod here any more.
    pub fn release_detached(&mut self, attachments: &Attachments) {
        let held: BTreeSet<&str> =
            attachments.values().flat_map(|attachment| &attachment.networks).map(|m| m.network_id.as_str()).collect();
        self.networks.retain(|id, network| !network.leaving || held.contains(id.as_str()));
    }

    fn clash(&self, id: &str, network: &Network) -> Option<String> {
        self.networks.iter().find_map(|(other_id, other)| {
            if other_id == id {
                Some("its id is in the picture twice".to_owned())
            } else if other.vni == network.vni {
                Some(format!("its VNI {} is also that of {}", network.vni, other.name))
            } else if other.subnet.contains(&network.subnet) || network.subnet.contains(&other.subnet) {
                Some(format!("its subnet {} overlaps {} of {}", network.subnet, other.subnet, other.name))
            } else {
                None
            }
        })
    }
}

impl Network {
    fn parse(
        wire: &v1::NetworkView,
        here: &str,
        nodes: &BTreeMap<&str, Option<Ipv4Addr>>,
        problems: &mut Vec<String>,
    ) -> Result<Self, String> {
        if wire.id.is_empty() {
            return Err("it has no id".to_owned());
        }
        if wire.vni == 0 || wire.vni > VNI_MAX {
            return Err(format!("its VNI {} is not between 1 and {VNI_MAX}", wire.vni));
        }
        let subnet: Ipv4Net = wire.subnet.parse().map_err(|_| format!("its subnet {:?} is not an IPv4 CIDR", wire.subnet))?;
        let mut network = Self {
            name: wire.name.to_ascii_lowercase(),
            vni: wire.vni,
            subnet: subnet.trunc(),
            internal: wire.internal,
            names: wire.names.iter().map(|name| name.to_ascii_lowercase()).collect(),
            endpoints: BTreeMap::new(),
            leaving: false,
        };
        for endpoint in &wire.endpoints {
            match network.endpoint(endpoint, here, nodes) {
                Ok(Some((ip, parsed))) => {
                    network.endpoints.insert(ip, parsed);
                }
                Ok(None) => {}
                Err(why) => problems.push(format!("endpoint {} on network {} is left out: {why}", endpoint.task_id, wire.name)),
            }
        }
        Ok(network)
    }

    /// `Ok(None)` for an endpoint on a node whose address was already complained about.
    fn endpoint(
        &self,
        wire: &v1::EndpointView,
        here: &str,
        nodes: &BTreeMap<&str, Option<Ipv4Addr>>,
    ) -> Result<Option<(Ipv4Addr, Endpoint)>, String> {
        let ip: Ipv4Addr = wire.ip.parse().map_err(|_| format!("its address {:?} is not IPv4", wire.ip))?;
        if !self.subnet.contains(&ip) {
            return Err(format!("its address {ip} is not in {}", self.subnet));
        }
        if let Some(holder) = self.endpoints.get(&ip) {
            return Err(format!("its address {ip} is held by {}", holder.task_id));
        }
        let place = if wire.node_id == here {
            Place::Here
        } else {
            match nodes.get(wire.node_id.as_str()) {
                Some(Some(addr)) => Place::Node(*addr),
                Some(None) => return Ok(None),
                None => return Err(format!("its node {} is not in the picture", wire.node_id)),
            }
        };
        let endpoint = Endpoint {
            task_id: wire.task_id.clone(),
            task: wire.task.to_ascii_lowercase(),
            place,
            serving: wire.serving,
            names: wire.names.iter().map(|name| name.to_ascii_lowercase()).collect(),
        };
        Ok(Some((ip, endpoint)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::plan::tests::{endpoint, view};

    #[test]
    fn what_does_not_fit_is_left_out_and_named() {
        let mut wire = view(1);
        wire.networks[0].endpoints.push(endpoint("t9", "n9", "10.128.0.9"));
        wire.networks[0].endpoints.push(endpoint("t8", "n2", "10.200.0.1"));
        wire.networks[0].endpoints.push(endpoint("t7", "n2", "10.128.0.3"));
        wire.networks.push(v1::NetworkView {
            id: "x".into(),
            name: "x".into(),
            vni: 4097,
            subnet: "10.128.9.0/24".into(),
            ..Default::default()
        });
        wire.networks.push(v1::NetworkView {
            id: "y".into(),
            name: "y".into(),
            vni: 9,
            subnet: "10.128.0.128/25".into(),
            ..Default::default()
        });
        let (picture, problems) = Picture::parse(&wire);
        assert_eq!(
            problems,
            [
                "endpoint t9 on network front is left out: its node n9 is not in the picture",
                "endpoint t8 on network front is left out: its address 10.200.0.1 is not in 10.128.0.0/24",
                "endpoint t7 on network front is left out: its address 10.128.0.3 is held by t2",
                "network x (x) is left out: its VNI 4097 is also that of front",
                "network y (y) is left out: its subnet 10.128.0.128/25 overlaps 10.128.0.0/24 of front",
            ]
        );
        assert_eq!(picture.networks.len(), 2);
    }

    #[test]
    fn a_network_with_a_pod_outlives_the_picture_until_the_pod_goes() {
        let (old, _) = Picture::parse(&view(1));
        let mut attachments = Attachments::from([(
            "t1".to_owned(),
            Attachment { networks: vec![Membership { network_id: "net-a".into(), ip: Ipv4Addr::new(10, 128, 0, 2) }] },
        )]);
        let (mut new, _) = Picture::parse(&v1::NetView { term: 1, revision: 2, node_id: "n1".into(), ..Default::default() });
        new.retain_attached(&old, &attachments);
        assert_eq!(new.networks.keys().collect::<Vec<_>>(), ["net-a"]);
        new.release_detached(&attachments);
        assert_eq!(new.networks.len(), 1);
        attachments.clear();
        new.release_detached(&attachments);
        assert!(new.networks.is_empty());
    }
}
