//! Published ports: who has them, who does not get them, and where tasks go that have one of their node.

use std::collections::BTreeMap;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rcluster_api::network::{HeldPort, NodeNetwork, NodePort, Port, Protocol, WireguardKey};
use rcluster_api::object::{Availability, Kind, NodeDescription, NodeState, Task};
use rcluster_api::spec::{ServiceSpec, Spec};
use rcluster_api::task::TaskState;
use rcluster_manager::core::control::Request;
use rcluster_manager::core::dispatch::netview::Networks;
use rcluster_manager::core::members::Standing;
use rcluster_manager::core::node::register::{self, Registration};
use rcluster_manager::core::plan::stage;
use serde_json::{Value, json};

use crate::world::World;

fn two_nodes() -> World {
    let mut world = World::new(7);
    for name in ["n1", "n2"] {
        world.node(name, &[]);
    }
    world.network("lab");
    world
}

fn web(replicas: u32, ports: &Value) -> Value {
    json!({"replicas": replicas, "containers": [{"image": "web:1"}], "networks": ["lab"], "ports": ports})
}

/// A port of the task's node.
fn own(port: u16) -> Value {
    json!([{"target": 80, "published": port, "mode": "host"}])
}

fn apply(services: &[(&str, Value)]) -> Request {
    let spec = |(name, spec): &(&str, Value)| ServiceSpec { name: (*name).to_owned(), ..serde_json::from_value(spec.clone()).unwrap() };
    Request::Apply(services.iter().map(|service| (Spec::Service(spec(service)), 0)).collect())
}

/// What the node says of its host.
fn tell(world: &mut World, node: &str, network: &NodeNetwork) -> usize {
    world.turn(|draft, ctx| {
        let changes = register::network(draft.state(), &node.into(), network);
        stage(draft, changes, ctx);
    })
}

/// What people were told for this reason, each with whom it is of.
fn told(world: &World, reason: &str) -> Vec<String> {
    let events = world.state.events().values().filter(|event| event.reason == reason);
    events.map(|event| format!("{}: {}", event.object, event.message)).collect()
}

#[test]
fn a_port_that_another_has_is_refused_with_who_has_it() {
    let mut world = two_nodes();
    world.request(Request::AddManager { name: "m1".to_owned(), addr: "10.0.0.9:9443".to_owned(), standing: Standing::default() }).unwrap();
    world.service("web", web(1, &json!(["8080:80", "53:53/udp"])));
    world.settle();
    let revision = world.state.revision();
    for (ports, expected) in [
        (json!(["80:80", "8080:80"]), "ports[1]: tcp port 8080 is published by service web already (choose another, or remove it there)"),
        (own(8080), "ports[0]: tcp port 8080 is published by service web already (choose another, or remove it there)"),
        (json!(["7443:80"]), "ports[0]: tcp port 7443 is rcluster's own (choose another)"),
        (json!(["9443:80"]), "ports[0]: tcp port 9443 is rcluster's own (choose another)"),
        (json!(["4789:80/udp"]), "ports[0]: udp port 4789 is rcluster's own (choose another)"),
        (json!(["51819-51821:1-3/udp"]), "ports[0]: udp port 51820 is rcluster's own (choose another)"),
    ] {
        assert_eq!(world.request(apply(&[("other", web(1, &ports))])).unwrap_err(), expected, "{ports}");
    }
    assert_eq!(world.state.revision(), revision);
    world.service("other", web(1, &json!(["8080:80/udp", "53:53", "4789:80"])));
}

#[test]
fn services_exchange_their_ports_in_one_request_and_two_do_not_get_one() {
    let mut world = two_nodes();
    let refused = world.request(apply(&[("a", web(1, &json!(["90:80"]))), ("b", web(1, &json!(["90:80"])))])).unwrap_err();
    assert_eq!(refused, "ports[0]: tcp port 90 is published by service a already (choose another, or remove it there)");
    world.request(apply(&[("a", web(1, &json!(["90:80"]))), ("b", web(1, &json!(["91:80"])))])).unwrap();
    assert!(world.request(apply(&[("a", web(1, &json!(["91:80"])))])).is_err());
    world.request(apply(&[("a", web(1, &json!(["91:80"]))), ("b", web(1, &json!(["90:80"])))])).unwrap();
}

#[test]
fn the_ports_of_a_service_that_is_being_removed_are_free_when_it_has_gone() {
    let mut world = two_nodes();
    world.service("web", web(1, &json!(["8080:80"])));
    world.settle();
    world.request(Request::Remove(vec![(Kind::Service, "web".to_owned())])).unwrap();
    let next = || apply(&[("next", web(1, &json!(["8080:80"])))]);
    assert_eq!(
        world.request(next()).unwrap_err(),
        "ports[0]: tcp port 8080 is published by service web already \
         (that service is being removed: try again when `rclusterctl get services` does not show it any more)"
    );
    world.settle();
    world.request(next()).unwrap();
}

#[test]
fn changed_ports_replace_no_task_and_every_node_is_told_with_the_state_of_its_backends() {
    let mut world = two_nodes();
    let shown = |world: &World, node: &str| {
        let view = Networks::new(&world.state).view(&node.into(), 1);
        let backends = |published: &rcluster_api::wire::v1::PublishedView| {
            let mut backends: Vec<String> =
                published.backends.iter().map(|backend| format!("{} {:?}", backend.node_id, backend.state())).collect();
            backends.sort();
            backends.join(", ")
        };
        let lines =
            view.published.iter().flat_map(|one| one.ports.iter().map(move |port| format!("{}: {}", port.published, backends(one))));
        lines.collect::<Vec<_>>().join("; ")
    };
    world.service("web", web(2, &json!(["8080:80"])));
    world.settle();
    world.node("n3", &[]);
    let before = world.picture();
    assert_eq!(before, "web.1 n1 running running\nweb.2 n2 running running");
    let tasks = |world: &World| world.state.tasks().keys().cloned().collect::<Vec<_>>();
    let ids = tasks(&world);
    for node in ["n1", "n2", "n3"] {
        assert_eq!(shown(&world, node), "8080: n1 Serving, n2 Serving");
    }
    world.service("web", web(2, &json!(["8081:80", {"target": 80, "published": 90, "mode": "host"}])));
    world.settle();
    assert_eq!((tasks(&world), world.picture()), (ids, before));
    world.request(Request::Scale { service: "web".to_owned(), replicas: 1 }).unwrap();
    assert_eq!(shown(&world, "n1"), "8081: n1 Serving, n2 Leaving; 90: n1 Serving");
    assert_eq!(shown(&world, "n2"), "8081: n1 Serving, n2 Leaving; 90: n2 Leaving");
    assert_eq!(shown(&world, "n3"), "8081: n1 Serving, n2 Leaving");
}

#[test]
fn however_many_ports_a_service_publishes_its_tasks_are_told_once_for_each_mode() {
    let mut world = two_nodes();
    let mut ports: Vec<Value> = (0..40).map(|index| json!(format!("{}:{}", 8000 + index, 80 + index))).collect();
    ports.extend((0..40).map(|index| json!({"target": 80, "published": 9000 + index, "mode": "host"})));
    world.service("web", web(2, &json!(ports)));
    world.settle();
    let told = |node: &str| -> Vec<(usize, usize)> {
        let view = Networks::new(&world.state).view(&node.into(), 1);
        view.published.iter().map(|one| (one.ports.len(), one.backends.len())).collect()
    };
    assert_eq!(told("n1"), [(40, 2), (40, 1)]);
    world.node("n3", &[]);
    let view = Networks::new(&world.state).view(&"n3".into(), 1);
    assert_eq!(view.published.iter().map(|one| one.ports.len()).collect::<Vec<_>>(), [40], "it has no task of the service");
}

#[test]
fn a_task_goes_where_its_port_is_free_and_waits_with_the_names_of_who_has_it() {
    let mut world = two_nodes();
    let held = HeldPort { protocol: Protocol::Tcp, port: 80, by: "nginx (pid 812)".to_owned() };
    tell(&mut world, "n1", &NodeNetwork { held_ports: vec![held], ..NodeNetwork::default() });
    world.service("web", web(2, &own(80)));
    assert_eq!(
        world.picture(),
        "web.1 n2 assigned running\n\
         web.2 - pending running 0/2 nodes fit web.2: 2 have tcp port 80 taken (n1: nginx (pid 812), n2: web.1)"
    );
    tell(&mut world, "n1", &NodeNetwork::default());
    assert_eq!(world.picture(), "web.1 n2 assigned running\nweb.2 n1 assigned running");

    world.service("other", web(1, &own(80)));
    assert!(world.picture().contains("0/2 nodes fit other.1: 2 have tcp port 80 taken (n1: web.2, n2: web.1)"), "{}", world.picture());
    world.service("web", web(2, &own(81)));
    assert!(world.picture().contains("other.1 n1 assigned running"), "{}", world.picture());
}

#[test]
fn of_many_nodes_whose_port_is_taken_three_are_named() {
    let mut world = two_nodes();
    for name in ["n3", "n4", "n5"] {
        world.node(name, &[]);
    }
    world.service("web", web(5, &own(80)));
    world.service("other", web(1, &own(80)));
    let expected = "0/5 nodes fit other.1: 5 have tcp port 80 taken (n1: web.1, n2: web.2, n3: web.3, and 2 more)";
    assert!(world.picture().contains(expected), "{}", world.picture());
}

#[test]
fn a_port_of_the_tasks_nodes_is_refused_where_a_task_of_another_service_has_it() {
    let mut world = two_nodes();
    world.service("a", web(2, &own(80)));
    world.service("b", web(2, &json!([])));
    world.settle();
    assert_eq!(
        world.request(apply(&[("b", web(2, &own(80)))])).unwrap_err(),
        "ports[0]: tcp port 80 of node n1 is published for a.1 already \
         (choose another, or move one of the two services with placement first)"
    );
    world.service("b", web(2, &own(81)));
    assert!(world.request(apply(&[("b", web(2, &own(80)))])).is_err());
    world.request(apply(&[("a", web(2, &own(81))), ("b", web(2, &own(80)))])).unwrap();
}

#[test]
fn a_global_service_with_a_port_of_its_nodes_is_replaced_one_after_the_other_whatever_its_order() {
    let mut world = two_nodes();
    let gate = |image: &str| {
        json!({"mode": "global", "containers": [{"image": image}], "networks": ["lab"], "ports": own(80),
            "update": {"order": "start-first"}})
    };
    world.service("gate", gate("gate:1"));
    world.settle();
    world.service("gate", gate("gate:2"));
    assert!(world.picture().contains("running shutdown"), "{}", world.picture());
    world.settle();
    let updated = world.state.tasks().values().filter(|task| task.is_live() && task.serves() && task.spec_version == 2).count();
    assert_eq!(updated, 2, "{}", world.picture());
}

#[test]
fn a_service_with_a_port_of_its_nodes_is_replaced_also_where_all_of_them_have_its_tasks() {
    let mut world = two_nodes();
    let gate = |image: &str| {
        let mut spec = web(2, &own(80));
        spec["containers"][0]["image"] = json!(image);
        spec["update"] = json!({"order": "start-first"});
        spec
    };
    world.service("gate", gate("gate:1"));
    world.settle();
    world.service("gate", gate("gate:2"));
    world.settle();
    let updated = world.state.tasks().values().filter(|task| task.is_live() && task.serves() && task.spec_version == 2).count();
    assert_eq!(updated, 2, "{}", world.picture());
    // Who has to leave a node goes first where there is a place.
    world.node("n3", &[]);
    world.availability("n1", Availability::Drain);
    assert_eq!(world.running("gate"), 2);
    world.settle();
    assert_eq!((world.running("gate"), world.state.tasks_of_node(&"n1".into()).filter(|task| task.is_live()).count()), (2, 0));
}

#[test]
fn who_publishes_the_port_of_ssh_is_told_once() {
    let mut world = two_nodes();
    let told = |world: &World| told(world, "SshPort");
    world.service("git", web(1, &json!(["2222:22"])));
    assert!(told(&world).is_empty());
    for replicas in [1, 2] {
        world.service("git", web(replicas, &json!(["22:22"])));
        assert_eq!(told(&world), ["git: publishes tcp port 22: a node whose sshd listens there does not open it for the service"]);
    }
}

#[test]
fn a_program_that_has_a_published_port_is_told_of_once() {
    let mut world = two_nodes();
    world.service("web", web(1, &json!(["80-81:80-81"])));
    world.service("own", web(1, &own(82)));
    world.settle();
    let told = |world: &World| told(world, "PortHeld");
    let held = |ports: &[u16]| NodeNetwork {
        held_ports: ports.iter().map(|port| HeldPort { protocol: Protocol::Tcp, port: *port, by: "nginx (pid 812)".to_owned() }).collect(),
        ..NodeNetwork::default()
    };
    assert_eq!(world.task("own.1").node, "n2");
    tell(&mut world, "n1", &held(&[79, 82]));
    assert!(told(&world).is_empty(), "nobody is to be reached there");
    for mtu in [1400, 1450] {
        tell(&mut world, "n1", &NodeNetwork { mtu, ..held(&[79, 81, 82]) });
        assert_eq!(told(&world), ["n1: tcp port 81 is held there by nginx (pid 812): it is not opened for service web"]);
    }
    tell(&mut world, "n2", &held(&[82]));
    assert_eq!(told(&world)[1], "n2: tcp port 82 is held there by nginx (pid 812): it is not opened for service own");
}

#[test]
fn held_ports_are_told_of_for_each_service_and_when_a_service_comes_later() {
    let mut world = two_nodes();
    world.service("web", web(1, &json!(["80-82:80-82"])));
    world.service("api", web(1, &json!(["90:90"])));
    world.settle();
    let told = |world: &World| told(world, "PortHeld");
    let held = |port: u16| HeldPort { protocol: Protocol::Tcp, port, by: "nginx (pid 812)".to_owned() };
    tell(&mut world, "n1", &NodeNetwork { held_ports: [80, 82, 90, 99].map(held).to_vec(), ..NodeNetwork::default() });
    let mut first = told(&world);
    first.sort();
    assert_eq!(
        first,
        [
            "n1: tcp port 80 is held there by nginx (pid 812), and 1 more: they are not opened for service web",
            "n1: tcp port 90 is held there by nginx (pid 812): it is not opened for service api",
        ]
    );
    // Not opened, and not told of before: nobody asked for it.
    for replicas in [1, 2] {
        world.service("late", web(replicas, &json!(["99:80"])));
        assert_eq!(told(&world).len(), 3, "{:?}", told(&world));
    }
    assert_eq!(told(&world)[2], "late: tcp port 99 is held on node n1 by nginx (pid 812): it is not opened there");
}

#[test]
fn what_a_node_says_of_its_host_does_not_fill_the_state() {
    let mut world = two_nodes();
    let held = |port| HeldPort { protocol: Protocol::Udp, port, by: "x".repeat(1000) };
    let said = NodeNetwork {
        mtu: 1400,
        ipv6: true,
        routes: vec!["172.16.0.0/12".parse().unwrap(); 1000],
        addresses6: vec!["2001:db8::1".parse().unwrap(); 1000],
        no_encryption: "z".repeat(10_000),
        wireguard_keys: vec![WireguardKey { epoch: 1, key: [7; 32], port: 51821 }; 1000],
        held_ports: (1..=5000).map(held).collect(),
        conditions: vec!["y".repeat(10_000); 100],
    };
    assert!(tell(&mut world, "n1", &said) > 0);
    assert_eq!(tell(&mut world, "n1", &said), 0, "it says the same");
    let description =
        NodeDescription { name: "n3".to_owned(), addr: "10.0.0.3".to_owned(), network: Some(said.clone()), ..NodeDescription::default() };
    let registration = Registration { id: "n3".into(), incarnation: 1, description, tasks: [].into() };
    world.register(&registration);
    for node in ["n1", "n3"] {
        let kept = world.state.find_node(node).unwrap().description.network.clone();
        assert_eq!(kept, Some(said.clone().bounded()), "{node}");
    }
}

/// No port of all nodes is two services', and none of a node is that of two services' tasks there.
fn check(world: &World, seed: u64) {
    let mut of_nodes: BTreeMap<NodePort, (String, bool)> = BTreeMap::new();
    for service in world.state.services().values() {
        for (port, of_tasks) in service.spec.ports.iter().flat_map(Port::node_ports) {
            if let Some((other, theirs)) = of_nodes.insert(port, (service.spec.name.clone(), of_tasks)) {
                assert!(of_tasks && theirs, "seed {seed}: {port} is published by {other} and {}", service.spec.name);
            }
        }
    }
    let mut of_node = BTreeMap::new();
    let stands = |task: &Task| task.status.state >= TaskState::Assigned && !task.status.state.is_terminal();
    for task in world.state.tasks().values().filter(|task| stands(task)) {
        let Some(service) = world.state.services().get(&task.service_id) else { continue };
        for (port, _) in service.spec.ports.iter().flat_map(Port::node_ports).filter(|(_, of_tasks)| *of_tasks) {
            let other = of_node.insert((task.node.clone(), port), task.service.clone());
            assert!(other.is_none_or(|other| other == task.service), "seed {seed}: {port} of {}: {}", task.node, world.picture());
        }
    }
}

#[test]
fn whatever_services_ask_for_and_whichever_nodes_fail_no_port_is_two_services() {
    let (mut applied, mut refused) = (0, 0);
    for seed in 0..100 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = two_nodes();
        world.node("n3", &[]);
        for _ in 0..40 {
            world.now_ms += rng.random_range(1..5_000);
            let name = *["a", "b", "c"].choose(&mut rng).unwrap();
            match rng.random_range(0..8) {
                0..=3 => {
                    let mut ports = Vec::new();
                    for port in [80, 81, 82] {
                        if rng.random_range(0..3) == 0 {
                            let mode = if rng.random_range(0..4) == 0 { "ingress" } else { "host" };
                            ports.push(json!({"target": 80, "published": port, "mode": mode}));
                        }
                    }
                    let mut spec = web(rng.random_range(0..4), &json!(ports));
                    spec["update"] = json!({"order": if rng.random() { "stop-first" } else { "start-first" }});
                    spec["containers"][0]["image"] = json!(format!("web:{}", rng.random_range(0..2)));
                    match world.request(apply(&[(name, spec)])) {
                        Ok(_) => applied += 1,
                        Err(_) => refused += 1,
                    }
                }
                4 if world.state.find_service(name).is_some() => {
                    world.request(Request::Remove(vec![(Kind::Service, name.to_owned())])).unwrap();
                }
                5 => {
                    let state = *[NodeState::Ready, NodeState::Suspect, NodeState::Down].choose(&mut rng).unwrap();
                    world.node_state(["n1", "n2", "n3"].choose(&mut rng).unwrap(), state);
                }
                _ => world.settle(),
            }
            check(&world, seed);
        }
    }
    assert!(applied > 500 && refused > 100, "{applied} applied and {refused} refused say little");
}
