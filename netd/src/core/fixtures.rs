//! The cluster that the tests of `core` and `drive` begin with, and vary.
//!
//! This node is n1 at 10.90.0.101; n2 and n3 are at .102 and .103. On the network `front` (`net-a`, 10.128.0.0/24) are the task t1, here, at
//! .2 and behind n2 t2 at .3 and t3 at .4; on `back` (`net-b`, 10.128.1.0/24) is t4 behind n3 at .2.

use std::net::{IpAddr, Ipv4Addr};

use rcluster_api::wire::v1;

use super::flows::{Flow, Transport};
use super::links::Underlay;
use super::picture::{Attachment, Attachments, Membership};
use super::uplink::Forwarding;

/// One that serves as `web`.
pub fn endpoint(task_id: &str, node_id: &str, ip: &str) -> v1::EndpointView {
    v1::EndpointView {
        task_id: task_id.into(),
        node_id: node_id.into(),
        ip: ip.into(),
        serving: true,
        names: vec!["web".into()],
        task: format!("web.{task_id}"),
        ..Default::default()
    }
}

/// Nodes, networks and endpoints; no services.
pub fn view(revision: u64) -> v1::NetView {
    let node =
        |id: &str, addr: &str| v1::NodeView { id: id.into(), name: id.into(), addr: addr.into(), incarnation: 1, ..Default::default() };
    let network = |id: &str, name: &str, vni: u32, subnet: &str, endpoints: Vec<v1::EndpointView>| v1::NetworkView {
        id: id.into(),
        name: name.into(),
        vni,
        subnet: subnet.into(),
        internal: false,
        names: vec!["web".into()],
        endpoints,
        subnet6: String::new(),
        encrypted: false,
        policy: None,
    };
    v1::NetView {
        term: 1,
        revision,
        node_id: "n1".into(),
        nodes: vec![node("n1", "10.90.0.101"), node("n2", "10.90.0.102"), node("n3", "10.90.0.103")],
        networks: vec![
            network(
                "net-a",
                "front",
                4097,
                "10.128.0.0/24",
                vec![endpoint("t1", "n1", "10.128.0.2"), endpoint("t2", "n2", "10.128.0.3"), endpoint("t3", "n2", "10.128.0.4")],
            ),
            network("net-b", "back", 4098, "10.128.1.0/24", vec![endpoint("t4", "n3", "10.128.1.2")]),
        ],
        ..Default::default()
    }
}

/// A service that is called by its id and has this address on a network.
pub fn service(id: &str, network_id: &str, ip: &str) -> v1::ServiceView {
    v1::ServiceView {
        id: id.into(),
        name: id.into(),
        mode: v1::EndpointMode::Vip.into(),
        vips: vec![v1::VipView { network_id: network_id.into(), ip: ip.into(), names: vec![id.into()] }],
        ..Default::default()
    }
}

/// The view with the service `web`, whose address is 10.128.0.8 and whose endpoints are all those on `front`.
pub fn balanced(revision: u64) -> v1::NetView {
    let mut view = view(revision);
    view.networks[0].endpoints.iter_mut().for_each(|endpoint| endpoint.service_id = "web".into());
    view.services.push(service("web", "net-a", "10.128.0.8"));
    view
}

/// A service's tcp port 8080 before port 80 of t1, t2 and t3.
pub fn published(policy: v1::IngressPolicy) -> v1::PublishedView {
    let backend = |task: &str, node: &str, ip: &str| v1::BackendView {
        task_id: task.into(),
        node_id: node.into(),
        ip: ip.into(),
        state: v1::EndpointState::Serving.into(),
        ..Default::default()
    };
    v1::PublishedView {
        service_id: "web".into(),
        ports: vec![v1::Port {
            protocol: v1::Protocol::Tcp.into(),
            target: 80,
            published: 8080,
            mode: v1::PublishMode::Ingress.into(),
            policy: policy.into(),
            ..Default::default()
        }],
        backends: vec![backend("t3", "n2", "10.128.0.4"), backend("t1", "n1", "10.128.0.2"), backend("t2", "n2", "10.128.0.3")],
    }
}

/// The view with numbers for its nodes, and these ports.
pub fn numbered(revision: u64, published: Vec<v1::PublishedView>) -> v1::NetView {
    let mut view = view(revision);
    for (number, node) in (1..).zip(&mut view.nodes) {
        node.number = number;
    }
    v1::NetView { published, ..view }
}

/// A node's key for an epoch; its bytes are both numbers' digits.
pub fn key(number: u32, epoch: u64) -> v1::WireguardKey {
    let byte = u8::try_from(u64::from(number) * 16 + epoch).expect("small numbers");
    v1::WireguardKey { epoch, key: vec![byte; 32], port: if epoch.is_multiple_of(2) { 51820 } else { 51821 } }
}

/// The view with numbers for its nodes, where this network is encrypted and every node has told a key for the first epoch.
pub fn encrypted(network_id: &str) -> v1::NetView {
    let mut view = v1::NetView { key_epoch: 1, ..numbered(1, Vec::new()) };
    view.nodes.iter_mut().for_each(|node| node.wireguard_keys = vec![key(node.number, 1)]);
    view.networks.iter_mut().for_each(|network| network.encrypted = network.id == network_id);
    view
}

/// A pod here on these networks, under these addresses.
pub fn attached(task_id: &str, networks: &[(&str, [u8; 4])]) -> Attachments {
    let membership = |(id, ip): &(&str, [u8; 4])| Membership { network_id: (*id).to_owned(), ip: Ipv4Addr::from(*ip) };
    let networks = networks.iter().map(membership).collect();
    Attachments::from([(task_id.to_owned(), Attachment { networks, ..Attachment::default() })])
}

/// The pod t1, as the view has it.
pub fn t1_attached() -> Attachments {
    attached("t1", &[("net-a", [10, 128, 0, 2])])
}

/// This node's.
pub fn underlay(forwarding: Forwarding) -> Underlay {
    Underlay { addr: Ipv4Addr::new(10, 90, 0, 101), overlay_mtu: 1450, forwarding, forwarding6: forwarding, turned_on6: false, six: true }
}

/// A client's, from its port 4000.
pub fn flow(transport: Transport, client: impl Into<IpAddr>, (ip, port): (impl Into<IpAddr>, u16), server: impl Into<IpAddr>) -> Flow {
    let source = (client.into(), 4000);
    Flow { transport, source, destination: (ip.into(), port), reply: ((server.into(), port), source), id: 7 }
}
