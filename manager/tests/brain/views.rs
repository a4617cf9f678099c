//! What nodes are told of networks, from one revision to the next.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rcluster_api::id::NodeId;
use rcluster_api::object::{Kind, NodeState};
use rcluster_api::spec::{NetworkSpec, ServiceSpec, Spec};
use rcluster_api::task::TaskState;
use rcluster_api::wire::v1;
use rcluster_manager::core::allocate::REST_LEAST_MS;
use rcluster_manager::core::control::Request;
use rcluster_manager::core::dispatch::netview::Networks;
use rcluster_manager::core::node::register::Registration;
use serde_json::{Value, json};

use crate::world::World;

const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];

/// Names, where they are, and their networks.
const SERVICES: [(&str, &str, &[&str]); 4] =
    [("near", "near", &["lab"]), ("far", "far", &["other"]), ("both", "near", &["lab", "other"]), ("web", "web", &["lab"])];

/// `web` on n1 and n2 and `near` on n3 are on one network, `far` on n4 on another, `both` on n2 or n3 on both.
fn world() -> World {
    let mut world = World::new(7);
    for network in ["lab", "other"] {
        world.network(network);
    }
    for (node, zone) in [("n1", "web"), ("n2", "web"), ("n3", "near"), ("n4", "far")] {
        world.node(node, &[("zone", zone)]);
    }
    for ((name, ..), replicas) in SERVICES.iter().zip([1, 1, 0, 2]) {
        world.service(name, service(name, replicas));
    }
    world.settle();
    world
}

/// The spec of one of them.
fn service(name: &str, replicas: u32) -> Value {
    let (_, zone, networks) = SERVICES.into_iter().find(|(known, ..)| *known == name).unwrap();
    let constraints = [format!("node.labels.zone=={zone}")];
    json!({"replicas": replicas, "containers": [{"image": "a"}], "networks": networks, "placement": {"constraints": constraints}})
}

fn apply(spec: Spec) -> Request {
    Request::Apply(vec![(spec, 0)])
}

/// The host of a node comes back from a reboot.
fn starts_anew(world: &mut World, name: &str) {
    let node = world.state.find_node(name).unwrap().clone();
    let registration = Registration {
        id: node.id.clone(),
        incarnation: node.incarnation + 1,
        description: node.description.clone(),
        tasks: world.state.tasks_of_node(&node.id).map(|task| task.id.clone()).collect(),
    };
    world.register(&registration);
}

fn networks(networks: &Networks, node: &str) -> Vec<Arc<v1::NetworkView>> {
    networks.sight(&node.into()).networks().cloned().collect()
}

#[test]
fn what_is_made_from_an_earlier_revision_is_what_is_made_from_nothing() {
    let ports = [
        json!([]),
        json!([{"name": "http", "target": 80}]),
        json!(["8080:80"]),
        json!(["8081:80", {"target": 80, "published": 81, "mode": "host"}]),
    ];
    let policies = [json!(null), json!({"allow": []}), json!({"allow": [{"from": ["web", "10.0.0.0/8"], "to": ["near", "both"]}]})];
    let mut applied = 0;
    for seed in 0..20 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = world();
        let mut known = Networks::new(&world.state);
        for step in 0..100 {
            let node = *NODES.choose(&mut rng).unwrap();
            let name = SERVICES.choose(&mut rng).unwrap().0;
            match rng.random_range(0..13) {
                // What has gone, or goes, is not scaled.
                0..=1 => drop(world.request(Request::Scale { service: name.to_owned(), replicas: rng.random_range(0..4) })),
                2 => {
                    let state = *[NodeState::Ready, NodeState::Suspect, NodeState::Down].choose(&mut rng).unwrap();
                    world.node_state(node, state);
                }
                3 => starts_anew(&mut world, node),
                4 => world.now_ms += rng.random_range(0..8_000),
                5 => drop(world.request(Request::Remove(vec![(Kind::Service, name.to_owned())]))),
                6..=7 => {
                    let mut spec = service(name, rng.random_range(0..4));
                    spec["endpoint_mode"] = json!(if rng.random() { "vip" } else { "dnsrr" });
                    spec["ports"] = ports.choose(&mut rng).unwrap().clone();
                    let spec = ServiceSpec { name: name.to_owned(), ..serde_json::from_value(spec).unwrap() };
                    // Another may have the port, or go still.
                    applied += usize::from(world.request(apply(Spec::Service(spec))).is_ok());
                }
                8 => {
                    let policy = policies.choose(&mut rng).unwrap();
                    let spec: NetworkSpec = serde_json::from_value(json!({"policy": policy})).unwrap();
                    world.request(apply(Spec::Network(NetworkSpec { name: "lab".to_owned(), ..spec }))).unwrap();
                }
                _ => {
                    let placed: Vec<_> = world.state.tasks().values().filter(|task| task.may_run()).cloned().collect();
                    if let Some(task) = placed.choose(&mut rng) {
                        let state = if task.is_wanted() && rng.random_ratio(3, 4) { TaskState::Running } else { TaskState::Shutdown };
                        world.report(&task.id, state, "");
                    }
                }
            }
            // Sessions are not told of each revision.
            if rng.random_ratio(2, 3) {
                let before = known;
                known = Networks::after(Some(&before), &world.state);
                let anew = Networks::new(&world.state);
                for node in NODES.map(NodeId::from) {
                    let view = known.view(&node, 1);
                    assert_eq!(view, anew.view(&node, 1), "seed {seed}, step {step}, {node}");
                    // What is told only when it differs is told when it differs.
                    let told = v1::NetView { revision: view.revision, ..before.view(&node, 1) };
                    let same = known.sight(&node).shows_the_same(&before.sight(&node));
                    assert_eq!(same, view == told, "seed {seed}, step {step}, {node}");
                }
            }
        }
    }
    assert!(applied > 100, "{applied} deployments say little");
}

#[test]
fn networks_are_not_made_anew_for_who_has_read_the_state_before_another() {
    let mut world = world();
    let before = world.state.clone();
    let first = Networks::at_least(None, &before);
    assert!(Arc::ptr_eq(&Networks::at_least(Some(&first), &before), &first));
    world.request(Request::Scale { service: "web".to_owned(), replicas: 1 }).unwrap();
    let second = Networks::at_least(Some(&first), &world.state);
    assert_eq!(second.revision(), world.state.revision());
    assert!(Arc::ptr_eq(&Networks::at_least(Some(&second), &before), &second));
}

#[test]
fn a_network_whose_tasks_are_the_same_is_the_same_value_for_all() {
    let mut world = world();
    let before = Networks::new(&world.state);
    world.request(Request::Scale { service: "web".to_owned(), replicas: 1 }).unwrap();
    let after = Networks::after(Some(&before), &world.state);
    let (lab, other) = (networks(&after, "n1"), networks(&after, "n4"));
    assert!(Arc::ptr_eq(&other[0], &networks(&before, "n4")[0]), "nothing happened there");
    assert!(Arc::ptr_eq(&lab[0], &networks(&after, "n3")[0]), "two nodes see one value");
    assert!(!Arc::ptr_eq(&lab[0], &networks(&before, "n1")[0]));
    assert!(after.sight(&"n4".into()).shows_the_same(&before.sight(&"n4".into())));
    assert!(!after.sight(&"n1".into()).shows_the_same(&before.sight(&"n1".into())));
}

#[test]
fn that_a_node_was_started_anew_is_told_to_those_that_see_its_tasks() {
    let mut world = world();
    let before = Networks::new(&world.state);
    starts_anew(&mut world, "n4");
    let after = Networks::after(Some(&before), &world.state);
    let same = |node: &str| after.sight(&node.into()).shows_the_same(&before.sight(&node.into()));
    assert_eq!(NODES.map(same), [true, true, true, false]);
    let told: BTreeMap<String, String> = after
        .view(&"n1".into(), 1)
        .nodes
        .into_iter()
        .map(|node| (node.id, format!("{}{} {}", node.name, node.incarnation, node.addr)))
        .collect();
    assert_eq!(told["n3"], "n31 10.0.0.3");
    assert_eq!(told["n4"], "0 10.0.0.4", "its address is no way out for pods, whoever it is");
}

#[test]
fn an_address_stays_routed_for_a_moment_when_its_task_has_ended() {
    let mut world = world();
    let second = world.task("web.2");
    let (id, node, ip) = (second.id.clone(), second.node_id.clone().unwrap(), second.networks[0].ip.to_string());
    let seen = |world: &World| {
        let view = Networks::new(&world.state).view(&"n3".into(), 1);
        let endpoints = view.networks.into_iter().flat_map(|network| network.endpoints);
        endpoints.filter(|endpoint| endpoint.ip == ip).collect::<Vec<_>>()
    };
    world.request(Request::Scale { service: "web".to_owned(), replicas: 1 }).unwrap();
    world.report(&id, TaskState::Shutdown, "");
    let rests = seen(&world);
    assert_eq!(rests.len(), 1);
    assert_eq!((rests[0].task_id.as_str(), rests[0].state(), rests[0].serving), (id.as_str(), v1::EndpointState::Leaving, false));
    assert!(rests[0].names.is_empty());
    assert!(networks(&Networks::new(&world.state), node.as_str()).is_empty(), "its node has no task on the network any more");
    // Time alone is no revision.
    world.now_ms += 11_000;
    assert_eq!(seen(&world).len(), 1);
    world.request(Request::Scale { service: "near".to_owned(), replicas: 2 }).unwrap();
    assert!(seen(&world).is_empty());
}

#[test]
fn an_address_that_is_a_services_now_is_routed_to_no_task_that_has_ended() {
    let mut world = World::new(1);
    for node in ["n1", "n2"] {
        world.node(node, &[]);
    }
    world.network_of("small", "10.9.0.0/29");
    let containers = json!([{"image": "a"}]);
    let spec =
        |replicas: u32, mode: &str| json!({"replicas": replicas, "containers": containers, "networks": ["small"], "endpoint_mode": mode});
    world.service("old", spec(4, "dnsrr"));
    world.service("web", spec(1, "vip"));
    world.settle();
    assert!(world.state.find_service("web").unwrap().vips.is_empty(), "tasks have all five addresses");
    let last = world.task("old.4");
    world.request(Request::Scale { service: "old".to_owned(), replicas: 3 }).unwrap();
    world.settle();
    // Nothing else has happened meanwhile: the address is routed still when it has rested.
    world.now_ms += REST_LEAST_MS;
    let known = Networks::new(&world.state);
    world.wake();
    let vip = world.state.find_service("web").unwrap().vips[0].ip;
    assert_eq!(vip, last.networks[0].ip);
    let node = world.task("web.1").node_id.unwrap();
    let routed = |networks: &Networks| {
        let view = networks.view(&node, 1);
        view.networks.iter().flat_map(|network| &network.endpoints).any(|endpoint| endpoint.ip == vip.to_string())
    };
    assert!(routed(&known));
    assert!(!routed(&Networks::new(&world.state)));
    assert!(!routed(&Networks::after(Some(&known), &world.state)));
}

#[test]
fn an_address_that_has_a_new_task_is_that_tasks_alone() {
    let mut world = world();
    let ip = Ipv4Addr::new(10, 128, 0, 77);
    world.service("db", json!({"containers": [{"image": "db"}], "networks": [{"network": "lab", "ip": ip.to_string()}]}));
    world.settle();
    let first = world.task("db.1").id.clone();
    world.report(&first, TaskState::Failed, "");
    world.settle();
    let second = world.task("db.1").id.clone();
    assert_ne!(first, second);
    let view = Networks::new(&world.state).view(&"n3".into(), 1);
    let endpoints = view.networks.iter().flat_map(|network| &network.endpoints).filter(|endpoint| endpoint.ip == ip.to_string());
    assert_eq!(endpoints.map(|endpoint| endpoint.task_id.as_str()).collect::<Vec<_>>(), [second.as_str()]);
}
