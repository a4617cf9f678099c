//! Who waits for whom when a task is to stop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rcluster_api::id::{NodeId, TaskId};
use rcluster_api::object::NodeState;
use rcluster_api::task::TaskState;
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::manager_message::Kind;
use rcluster_manager::core::control::Request;
use rcluster_manager::core::dispatch::leave::Leave;
use rcluster_manager::core::dispatch::netview::Networks;
use rcluster_manager::core::dispatch::told::Told;
use rcluster_manager::core::state::State;
use serde_json::json;

use crate::world::World;

const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];

/// A leader's sessions with all nodes.
struct Sessions {
    leave: Leave,
    begun: u64,
    /// As the leader has seen them last, and the tables that they are of.
    networks: Arc<Networks>,
    seen: State,
    nodes: BTreeMap<NodeId, Session>,
}

#[derive(Default)]
struct Session {
    number: u64,
    told: Told,
    /// Sent, and not in force yet.
    sent: Vec<v1::NetView>,
    /// In force; what was in force outlives a session.
    holds: Option<v1::NetView>,
}

impl Sessions {
    fn open(world: &World) -> Self {
        let networks = Arc::new(Networks::new(&world.state));
        let mut sessions = Self { leave: Leave::default(), begun: 0, networks, seen: world.state.clone(), nodes: BTreeMap::new() };
        for node in NODES {
            sessions.begin(node);
        }
        sessions
    }

    /// All nodes have confirmed what there is.
    fn settled(world: &World) -> Self {
        let mut sessions = Self::open(world);
        for node in NODES {
            sessions.tell(world, node);
            sessions.confirm(node);
        }
        sessions
    }

    /// The node connects anew.
    fn begin(&mut self, node: &str) {
        self.begun += 1;
        let node = NodeId::from(node);
        self.leave.begin(&node, self.begun);
        let holds = self.nodes.remove(&node).and_then(|session| session.holds);
        self.nodes.insert(node, Session { number: self.begun, holds, ..Session::default() });
    }

    /// The node is told what is new.
    fn tell(&mut self, world: &World, node: &str) {
        let node = NodeId::from(node);
        self.networks = Arc::new(Networks::after(Some(&self.networks), &world.state));
        self.seen = world.state.clone();
        let session = self.nodes.get_mut(&node).unwrap();
        for kind in session.told.news(&world.state, &self.networks, &node, 1) {
            if let Kind::View(view) = kind {
                session.sent.push(view);
            }
        }
        self.leave.compared(&node, session.number, &self.networks, session.told.view());
    }

    /// The views under way come into force there; the last one is the one that counts.
    fn confirm(&mut self, node: &str) {
        let node = NodeId::from(node);
        let session = self.nodes.get_mut(&node).unwrap();
        if let Some(view) = std::mem::take(&mut session.sent).pop() {
            self.leave.acknowledged(&node, session.number, (view.term, view.revision));
            session.holds = Some(view);
        }
    }

    fn released(&self) -> BTreeSet<TaskId> {
        self.nodes.keys().flat_map(|node| self.leave.released(node)).collect()
    }

    /// Whether the node, by what is in force there, sends to the task: what comes to its ports, or what its pods have to say.
    fn sends(&self, node: &str, task: &TaskId) -> bool {
        self.nodes[&NodeId::from(node)].holds.iter().any(|view| {
            let mut endpoints = view.networks.iter().flat_map(|network| &network.endpoints);
            let mut backends = view.published.iter().flat_map(|published| &published.backends);
            self.has_pods_beside(node, task) && endpoints.any(|to| to.task_id == task.as_str() && to.serving)
                || backends.any(|to| to.task_id == task.as_str() && to.state() == v1::EndpointState::Serving)
        })
    }

    /// Whether the node has a pod on one of the task's networks.
    fn has_pods_beside(&self, node: &str, task: &TaskId) -> bool {
        let networks: BTreeSet<_> = self.seen.tasks()[task].networks.iter().map(|attached| attached.network_id.clone()).collect();
        let mut own = self.seen.tasks_of_node(&node.into()).filter(|own| own.may_run() && own.status.state >= TaskState::Assigned);
        own.any(|own| own.networks.iter().any(|attached| networks.contains(&attached.network_id)))
    }

    /// The nodes that are not down, as far as the leader has seen.
    fn up(&self) -> impl Iterator<Item = &'static str> {
        NODES.into_iter().filter(move |node| self.seen.nodes()[&NodeId::from(*node)].state != NodeState::Down)
    }
}

/// `web` on n1 and n2 on one network; n3 has a task on it too, n4 on another.
fn world() -> World {
    world_with(&json!([]))
}

/// The same, where `web` publishes ports.
fn world_with(ports: &serde_json::Value) -> World {
    let mut world = World::new(7);
    for network in ["lab", "other"] {
        world.network(network);
    }
    for (node, zone) in [("n1", "web"), ("n2", "web"), ("n3", "near"), ("n4", "far")] {
        world.node(node, &[("zone", zone)]);
    }
    let service = |replicas: u32, zone: &str, network: &str| {
        let constraints = [format!("node.labels.zone=={zone}")];
        json!({"replicas": replicas, "containers": [{"image": "a"}], "networks": [network], "placement": {"constraints": constraints}})
    };
    world.service("near", service(1, "near", "lab"));
    world.service("far", service(1, "far", "other"));
    world.service("web", web("a", ports));
    world.settle();
    world
}

/// `web` with this image and these ports.
fn web(image: &str, ports: &serde_json::Value) -> serde_json::Value {
    json!({"replicas": 2, "containers": [{"image": image}], "networks": ["lab"], "ports": ports,
        "placement": {"constraints": ["node.labels.zone==web"]}})
}

#[test]
fn a_task_is_released_when_every_node_on_its_networks_has_confirmed_that_it_leaves() {
    let mut world = world();
    let mut sessions = Sessions::settled(&world);
    let second = world.task("web.2").id.clone();
    let own = world.task("web.2").node_id.clone().unwrap();
    world.request(Request::Scale { service: "web".to_owned(), replicas: 1 }).unwrap();
    for node in NODES {
        assert!(sessions.released().is_empty(), "before {node}");
        sessions.tell(&world, node);
    }
    let with_lab: Vec<&str> = NODES.into_iter().filter(|node| sessions.sends(node, &second)).collect();
    assert_eq!(with_lab.len(), 3, "{with_lab:?} have a task on lab");
    for node in with_lab {
        assert!(sessions.released().is_empty(), "before {node} has confirmed");
        sessions.confirm(node);
    }
    assert_eq!(sessions.released(), [second.clone()].into());
    assert_eq!(sessions.leave.released(&own), [second.clone()].into(), "its own node is to be told");
    let mut told = Told::default();
    let released = |told: &mut Told| told.release([second.clone()].into(), 3);
    assert_eq!(released(&mut told), Some(Kind::Released(v1::Released { term: 3, task_ids: vec![second.to_string()] })));
    assert_eq!(released(&mut told), None, "once is enough");
    world.report(&second, TaskState::Shutdown, "");
    sessions.tell(&world, "n1");
    assert!(sessions.released().is_empty(), "it is gone");
}

#[test]
fn a_task_behind_a_port_of_every_node_is_released_when_every_node_has_confirmed() {
    let mut world = world_with(&json!(["8080:80"]));
    let mut sessions = Sessions::settled(&world);
    let second = world.task("web.2").id.clone();
    assert!(NODES.into_iter().all(|node| sessions.sends(node, &second)));
    world.request(Request::Scale { service: "web".to_owned(), replicas: 1 }).unwrap();
    for node in NODES {
        sessions.tell(&world, node);
    }
    for node in NODES {
        assert!(sessions.released().is_empty(), "before {node} has confirmed");
        sessions.confirm(node);
    }
    assert_eq!(sessions.released(), [second].into());
}

#[test]
fn a_task_whose_port_goes_with_it_is_released_when_every_node_that_had_the_port_has_confirmed() {
    let mut world = world_with(&json!(["8080:80"]));
    let mut sessions = Sessions::settled(&world);
    world.service("web", web("b", &json!([])));
    let leaving: Vec<TaskId> = world.state.tasks().values().filter(|task| !task.is_wanted()).map(|task| task.id.clone()).collect();
    assert_eq!(leaving.len(), 1, "{}", world.picture());
    for node in NODES {
        sessions.tell(&world, node);
    }
    for node in NODES {
        assert!(sessions.released().is_empty(), "before {node} has confirmed");
        sessions.confirm(node);
    }
    assert_eq!(sessions.released(), leaving.into_iter().collect());
}

#[test]
fn a_node_that_is_down_is_not_waited_for_and_one_that_has_connected_anew_is() {
    let mut world = world();
    let mut sessions = Sessions::settled(&world);
    world.request(Request::Scale { service: "web".to_owned(), replicas: 1 }).unwrap();
    let own = world.task("web.2").node_id.clone().unwrap();
    let others: Vec<&str> = NODES.into_iter().filter(|node| *node != "n3").collect();
    for node in &others {
        sessions.tell(&world, node);
        sessions.confirm(node);
    }
    sessions.begin("n3");
    sessions.tell(&world, "n3");
    assert!(sessions.released().is_empty(), "nothing is known of n3 in its new session");
    world.node_state("n3", NodeState::Down);
    sessions.tell(&world, "n1");
    for node in &others {
        sessions.tell(&world, node);
        sessions.confirm(node);
    }
    assert_eq!(sessions.leave.released(&own).len(), 1);
}

#[test]
fn whoever_is_released_is_sent_to_by_nobody() {
    let mut releases = 0;
    for seed in 0..40 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let ports = if seed % 2 == 0 { json!([]) } else { json!(["8080:80", {"target": 81, "published": 81, "mode": "host"}]) };
        let mut world = world_with(&ports);
        let mut sessions = Sessions::open(&world);
        let mut before = BTreeSet::new();
        for _ in 0..150 {
            let node = *NODES.choose(&mut rng).unwrap();
            match rng.random_range(0..13) {
                0 => {
                    let replicas = rng.random_range(0..5);
                    world.request(Request::Scale { service: "web".to_owned(), replicas }).unwrap();
                }
                1 => {
                    let state = *[NodeState::Ready, NodeState::Suspect, NodeState::Down].choose(&mut rng).unwrap();
                    world.node_state(node, state);
                }
                2 => sessions.begin(node),
                3..=4 => {
                    let placed: Vec<_> = world.state.tasks().values().filter(|task| task.may_run()).cloned().collect();
                    if let Some(task) = placed.choose(&mut rng) {
                        world.report(&task.id, if task.is_wanted() { TaskState::Running } else { TaskState::Shutdown }, "");
                    }
                }
                5 => {
                    let ports = [json!([]), json!(["8080:80"]), json!([{"target": 81, "published": 81, "mode": "host"}])];
                    world.service("web", web(["a", "b"].choose(&mut rng).unwrap(), ports.choose(&mut rng).unwrap()));
                }
                6..=9 => sessions.tell(&world, node),
                _ => sessions.confirm(node),
            }
            let released = sessions.released();
            for task in released.difference(&before) {
                releases += 1;
                for sender in sessions.up() {
                    assert!(!sessions.sends(sender, task), "seed {seed}: {sender} sends to {task}, which was released");
                }
            }
            before = released;
        }
        // When all have heard of all, nobody is waited for.
        NODES.into_iter().for_each(|node| sessions.tell(&world, node));
        NODES.into_iter().for_each(|node| sessions.confirm(node));
        assert_eq!(sessions.released(), sessions.networks.leaving().keys().cloned().collect(), "seed {seed}");
    }
    assert!(releases > 40, "{releases} releases say nothing");
}
