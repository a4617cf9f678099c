//! Encrypted networks: who may have a task on one, and when keys become old.

use rcluster_api::network::{NodeNetwork, WireguardKey};
use rcluster_api::object::{NodeDescription, NodeState};
use rcluster_api::spec::{NetworkSpec, Spec};
use rcluster_manager::core::allocate::keys::EPOCH_MS;
use rcluster_manager::core::control::Request;
use rcluster_manager::core::dispatch::netview::Networks;
use rcluster_manager::core::node::register::{Registration, network};
use rcluster_manager::core::plan::stage;
use serde_json::json;

use crate::world::World;

fn joins(world: &mut World, number: u8) {
    let description =
        NodeDescription { name: format!("n{number}"), addr: format!("10.0.0.{number}"), network: None, ..NodeDescription::default() };
    world.register(&Registration { id: format!("n{number}").into(), incarnation: 1, description, tasks: [].into() });
}

/// What a node's netd says of its encryption.
fn tells(world: &mut World, node: &str, no_encryption: &str, epochs: &[u64]) {
    let key = |epoch: &u64| WireguardKey { epoch: *epoch, key: [1; 32], port: 51820 };
    let told =
        NodeNetwork { no_encryption: no_encryption.to_owned(), wireguard_keys: epochs.iter().map(key).collect(), ..NodeNetwork::default() };
    world.turn(|draft, ctx| {
        let changes = network(draft.state(), &node.into(), &told);
        stage(draft, changes, ctx);
    });
}

fn encrypted(name: &str, encrypted: bool) -> Request {
    Request::Apply(vec![(Spec::Network(NetworkSpec { name: name.to_owned(), encrypted, ..NetworkSpec::default() }), 0)])
}

fn epoch(world: &World) -> u64 {
    world.state.cluster().unwrap().key_epoch
}

fn passes(world: &mut World, ms: u64) {
    world.now_ms += ms;
    world.wake();
}

#[test]
fn a_task_on_an_encrypted_network_waits_for_a_node_that_encrypts_and_says_why() {
    let mut world = World::new(1);
    [1, 2, 3].into_iter().for_each(|number| joins(&mut world, number));
    world.request(encrypted("lab", true)).unwrap();
    assert_eq!(epoch(&world), 1, "the nodes are asked for keys as soon as there is such a network");
    let why = "this kernel has no WireGuard (CONFIG_WIREGUARD); load the module wireguard";
    tells(&mut world, "n1", why, &[]);
    tells(&mut world, "n2", why, &[]);
    world.service("db", json!({"containers": [{"image": "a"}], "networks": ["lab"]}));
    assert_eq!(
        world.picture(),
        format!("db.1 - pending running 0/3 nodes fit db.1: 3 cannot encrypt (n1: {why}, …)"),
        "neither can one that has told nothing"
    );
    tells(&mut world, "n3", "", &[1]);
    assert_eq!(world.task("db.1").node, "n3");
    let refused = world.request(encrypted("lab", false)).unwrap_err();
    assert!(refused.starts_with("encrypted: network lab exists and its encrypted cannot change"), "{refused}");
}

#[test]
fn keys_are_asked_for_while_a_network_is_encrypted_and_shown_to_the_nodes_that_share_one() {
    let mut world = World::new(1);
    [1, 2, 3].into_iter().for_each(|number| joins(&mut world, number));
    tells(&mut world, "n1", "", &[7]);
    world.request(encrypted("plain", false)).unwrap();
    let shown = |world: &World| {
        let view = Networks::new(&world.state).view(&"n1".into(), 1);
        (view.key_epoch, view.nodes.iter().map(|node| node.wireguard_keys.len()).collect::<Vec<_>>())
    };
    assert_eq!((epoch(&world), shown(&world)), (0, (0, vec![0, 0, 0])));
    world.request(encrypted("lab", true)).unwrap();
    tells(&mut world, "n2", "", &[1]);
    assert_eq!(shown(&world), (1, vec![1, 0, 0]), "its own, and of whom it does not share a network with none");
    world.service("db", json!({"mode": "global", "containers": [{"image": "a"}], "networks": ["lab"]}));
    assert_eq!(shown(&world), (1, vec![1, 1, 0]));
    tells(&mut world, "n3", "", &[1, 2]);
    assert_eq!(shown(&world), (1, vec![1, 1, 2]));
}

#[test]
fn keys_are_the_newest_for_a_day_and_until_every_node_has_them() {
    let mut world = World::new(1);
    [1, 2, 3].into_iter().for_each(|number| joins(&mut world, number));
    world.request(encrypted("lab", true)).unwrap();
    for node in ["n1", "n2"] {
        tells(&mut world, node, "", &[1]);
    }
    passes(&mut world, EPOCH_MS - 1000);
    assert_eq!(epoch(&world), 1);
    passes(&mut world, 2000);
    assert_eq!(epoch(&world), 2, "n3, which encrypts nothing, is not waited for");
    tells(&mut world, "n1", "", &[1, 2]);
    passes(&mut world, 2 * EPOCH_MS);
    assert_eq!(epoch(&world), 2, "n2 has no key of it yet");
    world.node_state("n2", NodeState::Down);
    assert_eq!(epoch(&world), 3, "who is down is not waited for");
}
