//! IPv6: networks' prefixes, tasks' and services' addresses, and nodes that do not have it.

use crate::world::World;
use rcluster_api::network::NodeNetwork;
use rcluster_api::object::NodeDescription;
use rcluster_api::spec::{NetworkSpec, Spec};
use rcluster_manager::core::control::Request;
use rcluster_manager::core::dispatch::netview::Networks;
use rcluster_manager::core::node::register::Registration;
use serde_json::{Value, json};

fn network(name: &str, spec: Value) -> Request {
    let spec: NetworkSpec = serde_json::from_value(spec).unwrap();
    Request::Apply(vec![(Spec::Network(NetworkSpec { name: name.to_owned(), ..spec }), 0)])
}

/// A node whose netd has told of its network.
fn joins(world: &mut World, name: &str, addr: &str, ipv6: bool) {
    let network = Some(NodeNetwork { mtu: 1450, ipv6, ..NodeNetwork::default() });
    let description = NodeDescription { name: name.to_owned(), addr: addr.to_owned(), network, ..NodeDescription::default() };
    world.register(&Registration { id: name.into(), incarnation: 1, description, tasks: [].into() });
}

#[test]
fn who_has_an_address_has_it_in_the_networks_ipv6_prefix_too() {
    let mut world = World::new(1);
    joins(&mut world, "n1", "10.0.0.1", true);
    world.request(network("six", json!({"ipv6": true}))).unwrap();
    world.request(network("asked", json!({"ipv6": true, "subnet6": "fd00:1::/64"}))).unwrap();
    world.request(network("four", json!({}))).unwrap();
    world.service("web", json!({"containers": [{"image": "a"}], "networks": ["six", "asked", "four"]}));
    let subnet6 = |name: &str| world.state.find_network(name).unwrap().subnet6;
    let six = subnet6("six").unwrap();
    assert!(six.prefix_len() == 64 && six.addr().is_unique_local(), "{six}");
    assert_eq!((subnet6("asked"), subnet6("four")), ("fd00:1::/64".parse().ok(), None));
    let task = world.state.tasks().values().find(|task| task.service == "web").unwrap();
    let low = |ip: std::net::Ipv4Addr| u128::from(u32::from(ip));
    let due = [Some(six), subnet6("asked"), None];
    for (attached, subnet6) in task.networks.iter().zip(due) {
        assert_eq!(attached.ip6.map(u128::from), subnet6.map(|subnet6| u128::from(subnet6.network()) + low(attached.ip)));
    }
    let service = world.state.find_service("web").unwrap();
    assert_eq!(service.vips.len(), 3);
    for (vip, subnet6) in service.vips.iter().zip(due) {
        assert_eq!(vip.ip6.map(u128::from), subnet6.map(|subnet6| u128::from(subnet6.network()) + low(vip.ip)));
    }
    let view = Networks::new(&world.state).view(&"n1".into(), 1);
    let mut told: Vec<(String, String)> = view.networks.into_iter().map(|network| (network.name, network.subnet6)).collect();
    told.sort_unstable();
    let six = six.to_string();
    let due6 = [("asked", "fd00:1::/64"), ("four", ""), ("six", six.as_str())];
    assert_eq!(told, due6.map(|(name, subnet6)| (name.to_owned(), subnet6.to_owned())));
}

#[test]
fn ipv6_is_as_it_was_made_and_no_prefix_is_two_networks() {
    let mut world = World::new(1);
    world.request(network("six", json!({"ipv6": true, "subnet6": "fd00:1::/64"}))).unwrap();
    world.network("four");
    assert!(world.request(network("four", json!({"ipv6": true}))).unwrap_err().contains("network four exists and its ipv6 cannot change"));
    let moved = world.request(network("six", json!({"ipv6": true, "subnet6": "fd00:2::/64"}))).unwrap_err();
    assert!(moved.contains("network six exists and its subnet6 cannot change"), "{moved}");
    let taken = world.request(network("other", json!({"ipv6": true, "subnet6": "fd00:1::/64"}))).unwrap_err();
    assert!(taken.contains("subnet6 fd00:1::/64 is that of network six"), "{taken}");
}

#[test]
fn nodes_are_told_addresses_of_ipv6_of_nodes_and_of_tasks_behind_published_ports() {
    let mut world = World::new(1);
    let addresses6 = vec!["2001:db8::1".parse().unwrap()];
    let host = Some(NodeNetwork { mtu: 1450, ipv6: true, addresses6, ..NodeNetwork::default() });
    let description = NodeDescription { name: "n1".to_owned(), addr: "10.0.0.1".to_owned(), network: host, ..NodeDescription::default() };
    world.register(&Registration { id: "n1".into(), incarnation: 1, description, tasks: [].into() });
    world.request(network("six", json!({"ipv6": true, "subnet6": "fd00:1::/64"}))).unwrap();
    world.network("four");
    world.service("web", json!({"containers": [{"image": "a"}], "networks": ["six", "four"], "ports": ["80:80"]}));
    world.service("old", json!({"containers": [{"image": "a"}], "networks": ["four", "six"], "ports": ["81:80"]}));
    world.settle();
    let view = Networks::new(&world.state).view(&"n1".into(), 1);
    assert_eq!(view.nodes.iter().map(|node| node.addresses6.join(" ")).collect::<Vec<_>>(), ["2001:db8::1"]);
    // From outside a task is reached by its first network.
    for (port, has_six) in [(80, true), (81, false)] {
        let published = view.published.iter().find(|published| published.ports[0].published == port).unwrap();
        let told: Vec<bool> = published.backends.iter().map(|backend| backend.ip6.starts_with("fd00:1::")).collect();
        assert_eq!(told, [has_six], "{port}");
    }
}

#[test]
fn a_task_goes_where_ipv6_is() {
    let mut world = World::new(1);
    joins(&mut world, "n1", "10.0.0.1", false);
    world.request(network("six", json!({"ipv6": true}))).unwrap();
    world.service("web", json!({"containers": [{"image": "a"}], "networks": ["six"]}));
    let task = |world: &World| world.state.tasks().values().find(|task| task.service == "web").cloned().unwrap();
    assert_eq!(task(&world).status.message, "0/1 nodes fit web.1: 1 does not have IPv6, which network six has");
    joins(&mut world, "n2", "10.0.0.2", true);
    assert_eq!(task(&world).node_id, Some("n2".into()));
}
