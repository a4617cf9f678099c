//! The brain by chance: random clusters, random events; invariants are checked after every commit, and once the faults end the cluster
//! must converge.

use crate::world::World;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rcluster_api::object::{Availability, NodeState};
use rcluster_api::task::TaskState;
use rcluster_manager::core::control::Request;
use rcluster_manager::core::state::{decode_snapshot, encode_snapshot};
use serde_json::json;

const SERVICES: [&str; 3] = ["web", "db", "all"];
const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];

fn step(world: &mut World, rng: &mut ChaCha8Rng) {
    world.now_ms += rng.random_range(1..5_000);
    match rng.random_range(0..10) {
        0..=1 => {
            let name = *SERVICES.choose(rng).unwrap();
            let image = format!("image:{}", rng.random_range(0..3));
            let update = json!({"parallelism": rng.random_range(0..3), "order": if rng.random() { "stop-first" } else { "start-first" }});
            let resources = json!({"reservations": {"memory": format!("{}MiB", rng.random_range(1..200))}});
            let mut spec = json!({"containers": [{"image": image, "resources": resources}], "networks": ["lab"], "update": update});
            if name == "all" {
                spec["mode"] = json!("global");
            } else {
                spec["replicas"] = json!(rng.random_range(0..8));
            }
            let exists_removing = world.state.find_service(name).is_some_and(|service| service.removing);
            if !exists_removing {
                world.service(name, spec);
            }
        }
        2 => {
            let name = *SERVICES.choose(rng).unwrap();
            if world.state.find_service(name).is_some() && rng.random_range(0..3) == 0 {
                world.request(Request::Remove(vec![(rcluster_api::object::Kind::Service, name.to_owned())])).unwrap();
            }
        }
        3..=4 => {
            let state = *[NodeState::Ready, NodeState::Suspect, NodeState::Down].choose(rng).unwrap();
            world.node_state(NODES.choose(rng).unwrap(), state);
        }
        5 => {
            let availability = *[Availability::Active, Availability::Pause, Availability::Drain].choose(rng).unwrap();
            world.availability(NODES.choose(rng).unwrap(), availability);
        }
        6..=7 => {
            let placed: Vec<_> = world.state.tasks().values().filter(|task| task.status.state >= TaskState::Assigned).cloned().collect();
            if let Some(task) = placed.choose(rng) {
                let states = [TaskState::Accepted, TaskState::Running, TaskState::Failed, TaskState::Complete, TaskState::Shutdown];
                world.report(&task.id, *states.choose(rng).unwrap(), "by chance");
            }
        }
        _ => world.settle(),
    }
}

#[test]
fn random_clusters_keep_the_invariants_and_converge() {
    for seed in 0..300 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = World::new(seed);
        for name in NODES {
            world.node(name, &[]);
        }
        world.network("lab");
        for _ in 0..40 {
            step(&mut world, &mut rng);
        }
        for name in NODES {
            world.node_state(name, NodeState::Ready);
            world.availability(name, Availability::Active);
        }
        world.settle();
        for service in world.state.services().values() {
            let name = &service.spec.name;
            let wanted = if name == "all" { NODES.len() } else { service.spec.replicas() as usize };
            assert_eq!(world.running(name), wanted, "seed {seed}, service {name}:\n{}", world.picture());
        }
        let copy = decode_snapshot(&encode_snapshot(&world.state)).unwrap();
        assert_eq!(copy.objects().collect::<Vec<_>>(), world.state.objects().collect::<Vec<_>>(), "seed {seed}: a snapshot loses nothing");
    }
}
