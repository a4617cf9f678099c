//! Numbers and addresses: by example, and by chance against a model that knows who has had what, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::thread;

use crate::world::World;
use ipnet::Ipv4Net;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rcluster_api::cluster::Cluster;
use rcluster_api::id::{NetworkId, NodeId, ServiceId, TaskId};
use rcluster_api::network::{AddressPool, EndpointMode, NodeNetwork, REST_MS};
use rcluster_api::object::{
    Availability, Kind, Network, Node, NodeDescription, NodeState, Object, Service, ServiceVip, Stamp, Task, TaskStatus,
};
use rcluster_api::spec::{NetworkSpec, ServiceSpec, Spec};
use rcluster_api::task::TaskState;
use rcluster_manager::core::allocate::{self, REST_LEAST_MS, holds_addresses, is_given_out, overlap, rests_until_ms};
use rcluster_manager::core::control::{self, Request};
use rcluster_manager::core::node::register::{Registration, register};
use rcluster_manager::core::plan::{Ctx, Dirty, stage};
use rcluster_manager::core::state::{Draft, State};
use serde_json::json;

fn registration(name: &str, addr: &str, routes: &[&str]) -> Registration {
    let routes = routes.iter().map(|route| route.parse().unwrap()).collect();
    let network = Some(NodeNetwork { mtu: 1450, routes, ..NodeNetwork::default() });
    let description = NodeDescription { name: name.to_owned(), addr: addr.to_owned(), network, ..NodeDescription::default() };
    Registration { id: name.into(), incarnation: 1, description, tasks: [].into() }
}

fn network(name: &str, subnet: Option<&str>) -> Request {
    let subnet = subnet.map(|subnet| subnet.parse().unwrap());
    Request::Apply(vec![(Spec::Network(NetworkSpec { name: name.to_owned(), subnet, ..NetworkSpec::default() }), 0)])
}

fn numbers(world: &World, name: &str) -> (u32, String) {
    let network = world.state.find_network(name).unwrap();
    (network.vni.unwrap(), network.subnet.unwrap().to_string())
}

#[test]
fn a_network_made_anew_has_neither_number_of_the_one_before() {
    let mut world = World::new(1);
    world.network("lab");
    assert_eq!(numbers(&world, "lab"), (4096, "10.128.0.0/24".to_owned()));
    for next in 1..4_u32 {
        world.request(Request::Remove(vec![(Kind::Network, "lab".to_owned())])).unwrap();
        world.network("lab");
        assert_eq!(numbers(&world, "lab"), (4096 + next, format!("10.128.{next}.0/24")));
    }
}

#[test]
fn subnets_pass_by_nodes_and_what_their_hosts_reach_by_routes_of_their_own() {
    let mut world = World::new(1);
    world.register(&registration("n1", "10.128.1.7", &["10.128.0.0/25", "10.200.0.0/16", "fd00::/8"]));
    world.network("lab");
    assert_eq!(numbers(&world, "lab").1, "10.128.2.0/24");
    for (subnet, expected) in [
        ("10.200.7.0/24", Some("overlaps route 10.200.0.0/16 of node n1")),
        ("10.0.0.0/8", Some("overlaps 10.128.2.0/24 of network lab")),
        ("10.128.1.0/24", Some("holds the address 10.128.1.7 of node n1")),
        ("10.128.0.128/25", None),
    ] {
        let refused = world.request(network("asked", Some(subnet))).err();
        match (expected, refused) {
            (None, None) => {}
            (Some(expected), Some(refused)) => {
                assert!(refused.starts_with(&format!("subnet: subnet {subnet} {expected} (choose another")), "{refused}")
            }
            (expected, refused) => panic!("{subnet}: {refused:?} instead of {expected:?}"),
        }
    }
    world.register(&registration("n2", "10.0.0.2", &["10.0.0.0/8"]));
    let refused = world.request(network("more", None)).unwrap_err();
    let expected =
        "subnet: no subnet is free for network more: pool 10.128.0.0/9 has 0 of 32768 subnets free, beside route 10.128.0.0/25 of node n1";
    assert!(refused.starts_with(expected), "{refused}");
}

#[test]
fn of_two_requests_in_one_plan_the_second_does_not_get_the_subnet_that_the_first_has_asked_for() {
    let mut world = World::new(1);
    world.node("n1", &[]);
    let db = json!({"containers": [{"image": "db"}], "networks": [{"network": "a", "ip": "10.77.0.3"}]});
    let db = ServiceSpec { name: "db".to_owned(), ..serde_json::from_value(db).unwrap() };
    let requests = [network("a", Some("10.77.0.0/24")), network("b", Some("10.77.0.128/25")), Request::Apply(vec![(Spec::Service(db), 0)])];
    let mut refused = Vec::new();
    world.turn(|draft, ctx| {
        for request in requests {
            match control::decide(draft.state(), request, ctx) {
                Ok((changes, _)) => stage(draft, changes, ctx),
                Err(refusal) => refused.push(refusal.to_string()),
            }
        }
    });
    let expected =
        "subnet: subnet 10.77.0.128/25 overlaps 10.77.0.0/24 of network a (choose another subnet, or leave it out and one is chosen)";
    assert_eq!(refused, [expected]);
    assert_eq!(world.task("db.1").networks[0].ip.to_string(), "10.77.0.3");
}

#[test]
fn a_pool_that_is_added_is_chosen_from_when_those_before_it_are_used_up() {
    let mut world = World::new(1);
    world.register(&registration("n1", "192.0.2.7", &["10.128.0.0/9"]));
    let refused = world.request(network("a", None)).unwrap_err();
    let expected = "subnet: no subnet is free for network a: pool 10.128.0.0/9 has 0 of 32768 subnets free, beside route 10.128.0.0/9 of node n1 \
                    (add a pool: rclusterctl network pool add CIDR; or remove a network, or give this one a subnet of its own)";
    assert_eq!(refused, expected);
    world.request(Request::AddPools(vec![("10.64.0.0/27".parse().unwrap(), 28)])).unwrap();
    assert!(world.state.events().values().any(|event| event.reason == "PoolAdded"), "people are told");
    for (name, subnet) in [("a", "10.64.0.0/28"), ("b", "10.64.0.16/28")] {
        world.network(name);
        assert_eq!(numbers(&world, name).1, subnet);
    }
    let refused = world.request(network("c", None)).unwrap_err();
    assert!(refused.contains("; pool 10.64.0.0/27 has 0 of 2 subnets free (add a pool"), "{refused}");
    world.register(&registration("n1", "192.0.2.7", &[]));
    world.network("c");
    assert_eq!(numbers(&world, "c").1, "10.128.0.0/24", "the first pool comes first");
    let refused = world.request(Request::AddPools(vec![("10.64.0.0/16".parse().unwrap(), 24)])).unwrap_err();
    assert!(refused.starts_with("add[0].cidr: pool 10.64.0.0/16 overlaps pool 10.64.0.0/27 (choose another range"), "{refused}");
}

#[test]
fn a_node_within_a_network_is_refused_and_one_with_a_route_into_it_gets_no_task_on_it() {
    let mut world = World::new(1);
    world.network_of("lab", "10.77.0.0/24");
    let refused = register(&world.state, &registration("n1", "10.77.0.9", &[]), 1).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "addr: the address 10.77.0.9 is within 10.77.0.0/24 of network lab: no pod could reach it \
         (start the agent with another --addr, or remove the network first)"
    );
    // People are told once, whatever else is new of the node's network.
    for routes in [&["10.64.0.0/10"][..], &["10.64.0.0/10", "192.168.7.0/24"]] {
        world.register(&registration("n1", "10.0.0.1", routes));
        let told: Vec<&str> =
            world.state.events().values().filter(|event| event.reason == "RouteOverlap").map(|event| event.message.as_str()).collect();
        assert_eq!(told, ["its route 10.64.0.0/10 overlaps 10.77.0.0/24 of network lab: it is given no new tasks on that network"]);
    }
    world.service("web", json!({"containers": [{"image": "a"}], "networks": ["lab"]}));
    world.service("host", json!({"containers": [{"image": "a"}]}));
    assert_eq!(
        world.picture(),
        "host.1 n1 assigned running\n\
         web.1 - pending running 0/1 nodes fit web.1: 1 has route 10.64.0.0/10, which overlaps 10.77.0.0/24 of network lab"
    );
    world.register(&registration("n1", "10.0.0.1", &[]));
    assert_eq!(world.task("web.1").node, "n1");
}

#[test]
fn a_static_address_goes_with_its_service_wherever_it_runs() {
    let mut world = World::new(1);
    for name in ["n1", "n2"] {
        world.node(name, &[]);
    }
    world.network_of("lab", "10.77.0.0/29");
    let db = |ip: &str, image: &str| json!({"containers": [{"image": image}], "networks": [{"network": "lab", "ip": ip}], "endpoint_mode": "dnsrr"});
    world.service("db", db("10.77.0.3", "db:1"));
    world.service("web", json!({"replicas": 3, "containers": [{"image": "a"}], "networks": ["lab"], "endpoint_mode": "dnsrr"}));
    world.settle();
    let ip = |world: &World, task: &str| world.task(task).networks[0].ip.to_string();
    assert_eq!([1, 2, 3].map(|slot| ip(&world, &format!("web.{slot}"))), ["10.77.0.2", "10.77.0.4", "10.77.0.5"]);
    let ask = |world: &mut World, ip: &str| {
        let spec = ServiceSpec { name: "other".to_owned(), ..serde_json::from_value(db(ip, "x")).unwrap() };
        world.request(Request::Apply(vec![(Spec::Service(spec), 0)])).unwrap_err()
    };
    for (asked, expected) in [
        ("10.77.0.3", "networks[0].ip: 10.77.0.3 on network lab is held by db.1 (choose another address, or free it there first)"),
        ("10.77.0.4", "networks[0].ip: 10.77.0.4 on network lab is held by web.2 (choose another address, or free it there first)"),
        (
            "10.77.0.1",
            "networks[0].ip: 10.77.0.1 is no address of 10.77.0.0/29 that a task can have \
             (choose another, but for the first two and the last, or leave ip out)",
        ),
    ] {
        assert_eq!(ask(&mut world, asked), expected);
    }
    // A failure, an update, a drain: always the same address, and at once.
    world.report(&world.task("db.1").id, TaskState::Failed, "crashed");
    world.settle();
    assert_eq!((ip(&world, "db.1").as_str(), world.running("db")), ("10.77.0.3", 1));
    world.service("db", db("10.77.0.3", "db:2"));
    world.settle();
    let drained = world.task("db.1").node;
    world.availability(&drained, Availability::Drain);
    world.settle();
    let moved = world.task("db.1");
    assert!(moved.node != drained && moved.template.containers[0].image == "db:2", "{}", world.picture());
    assert_eq!((ip(&world, "db.1").as_str(), world.running("db")), ("10.77.0.3", 1));
    world.availability(&drained, Availability::Active);
    // As long as a lost node may still run it, nobody else has it.
    let lost = moved.node;
    world.node_state(&lost, NodeState::Down);
    world.settle();
    assert!(world.picture().contains("10.77.0.3 on network lab is held by db.1; if its node is lost for good"), "{}", world.picture());
    world.node_state(&lost, NodeState::Ready);
    world.settle();
    assert_eq!((ip(&world, "db.1").as_str(), world.running("db")), ("10.77.0.3", 1));
}

#[test]
fn a_service_is_refused_its_own_virtual_address_as_that_of_its_task() {
    let mut world = World::new(1);
    world.node("n1", &[]);
    world.network_of("lab", "10.77.0.0/29");
    let spec = |networks: serde_json::Value, mode: &str| {
        let spec = json!({"containers": [{"image": "a"}], "networks": networks, "endpoint_mode": mode});
        ServiceSpec { name: "db".to_owned(), ..serde_json::from_value(spec).unwrap() }
    };
    let ask = |world: &mut World, ip: &str, mode: &str| {
        let networks = json!([{"network": "lab", "ip": ip}]);
        world.request(Request::Apply(vec![(Spec::Service(spec(networks, mode)), 0)]))
    };
    world.request(Request::Apply(vec![(Spec::Service(spec(json!(["lab"]), "vip")), 0)])).unwrap();
    world.settle();
    let own = world.state.find_service("db").unwrap().vips[0].ip.to_string();
    for mode in ["vip", "dnsrr"] {
        let refused = ask(&mut world, &own, mode).unwrap_err();
        assert!(
            refused.starts_with(&format!("networks[0].ip: {own} on network lab is the service's own virtual address (choose another")),
            "{refused}"
        );
    }
    ask(&mut world, "10.77.0.6", "vip").unwrap();
    world.settle();
    assert_eq!((world.task("db.1").networks[0].ip.to_string().as_str(), world.running("db")), ("10.77.0.6", 1), "{}", world.picture());
}

/// Steps in all, in lanes that go at the same time. A debug build takes some 50 µs for each.
const STEPS: u32 = 1_000_000;
const STEPS_PER_TURN: u32 = 32;
const LANES: u64 = 4;
/// The first lane's, where RCLUSTER_SEED does not give it; each next one has the next.
const SEED: u64 = 5;
const TASKS_MAX: usize = 100;
/// Kept for the first service.
const STATIC: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 5);
/// Services of `Chance` from this one on come, go, and have virtual addresses or none.
const VIPS_FROM: usize = 6;
/// Of the first pool, beside the route and the node.
const POOL_SUBNETS: usize = 13;
const SPARE_NETWORKS: u32 = 20;
const SPARE_NODES: u32 = 4;
const ROUTE: &str = "10.200.0.32/27";
const NODE: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 100);

struct Chance {
    state: State,
    now_ms: u64,
    rng: ChaCha8Rng,
    services: Vec<Service>,
    ids: Vec<TaskId>,
    /// What each task was given when it was.
    given: BTreeMap<TaskId, Vec<Ipv4Addr>>,
    /// When an address's task has ended last, and of which service it was.
    ended: BTreeMap<(NetworkId, Ipv4Addr), (u64, ServiceId)>,
    vni: u32,
    subnet: Option<Ipv4Net>,
    /// How many nodes were numbered, and how many were when a number was freed last.
    numbered: u32,
    freed: BTreeMap<u32, u32>,
}

impl Chance {
    fn new(seed: u64) -> Self {
        let pool = AddressPool { cidr: "10.200.0.0/24".parse().unwrap(), prefix: 28, cursor: 15 };
        let mut draft = Draft::new(State::new("ipam".to_owned()), 1_000);
        draft.put(Object::Cluster(Box::new(Cluster { pools: vec![pool], ..Cluster::default() })));
        draft.put(Object::Node(node(registration("n1", &NODE.to_string(), &[ROUTE]).description)));
        for (name, subnet) in [("a", Some("10.77.0.0/28")), ("b", Some("10.77.1.0/28")), ("c", None)] {
            draft.put(Object::Network(made(name, name, subnet)));
        }
        let attached = [
            json!([{"network": "a", "ip": STATIC.to_string()}]),
            json!(["a"]),
            json!(["a"]),
            json!(["b"]),
            json!(["b", "c"]),
            json!(["c", "a"]),
            json!(["a"]),
            json!(["b", "c"]),
        ];
        let service = |(place, networks): (usize, serde_json::Value)| {
            let mode = if place < VIPS_FROM { "dnsrr" } else { "vip" };
            let spec = json!({"containers": [{"image": "i"}], "networks": networks, "endpoint_mode": mode});
            let spec = serde_json::from_value::<ServiceSpec>(spec).unwrap();
            let spec = ServiceSpec { name: format!("s{place}"), ..spec };
            let id = ServiceId::from(spec.name.as_str());
            Service::new(id, spec)
        };
        let services: Vec<Service> = attached.into_iter().enumerate().map(service).collect();
        for service in &services {
            draft.put(Object::Service(service.clone()));
        }
        let state = draft.state().clone();
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Self {
            state,
            now_ms: 1_000_000,
            rng,
            services,
            ids: Vec::new(),
            given: BTreeMap::new(),
            ended: BTreeMap::new(),
            vni: 0,
            subnet: None,
            numbered: 0,
            freed: BTreeMap::new(),
        }
    }

    /// Some steps, and one plan over what they have done.
    fn turn(&mut self, steps: u32) {
        let mut draft = Draft::new(self.state.clone(), self.now_ms);
        for _ in 0..steps {
            match self.rng.random_range(0..20) {
                0..=3 => {
                    let place = self.rng.random_range(0..self.services.len());
                    self.create(place, &mut draft);
                }
                4 => match self.rng.random_range(0..3) {
                    0 => self.make_or_remove(&mut draft),
                    1 => self.change_vips(&mut draft),
                    _ => self.join_or_go(&mut draft),
                },
                _ => self.move_on(&mut draft),
            }
        }
        self.plan(draft);
    }

    fn plan(&mut self, mut draft: Draft) {
        let mut ctx = Ctx::new(self.now_ms, self.rng.random());
        let changes = allocate::pass(&draft, &Dirty::default(), &mut ctx);
        stage(&mut draft, changes, &mut ctx);
        let before = std::mem::replace(&mut self.state, draft.state().clone());
        self.check_vips(&before);
        self.check_nodes(&before);
        self.check_tasks();
        self.check_networks(&before);
    }

    fn create(&mut self, place: usize, draft: &mut Draft) {
        let service = &self.services[place];
        // The orchestrator makes no second task of a service with an address of its own.
        let is_taken = place == 0 && draft.state().tasks_of_service(&service.id).any(|task| !task.status.state.is_terminal());
        if is_taken || self.ids.len() >= TASKS_MAX {
            return;
        }
        let id = TaskId::random(&mut self.rng);
        draft.put(Object::Task(Box::new(Task {
            id: id.clone(),
            stamp: Stamp::default(),
            service_id: service.id.clone(),
            service: service.spec.name.clone(),
            stack: String::new(),
            slot: 1,
            name: format!("{}.1", service.spec.name),
            template: service.spec.template(),
            spec_version: 1,
            desired_state: TaskState::Running,
            restarts: 0,
            restarts_in_window: 0,
            window_start_ms: 0,
            start_after_ms: 0,
            node_id: None,
            node: String::new(),
            networks: Vec::new(),
            status: TaskStatus { state: TaskState::New, message: String::new(), since_ms: 0, containers: Vec::new(), ending: false },
            leave_ms: 0,
        })));
        self.ids.push(id);
    }

    fn make_or_remove(&mut self, draft: &mut Draft) {
        let name = format!("spare{}", self.rng.random_range(0..SPARE_NETWORKS));
        if let Some(id) = draft.state().find_network(&name).map(|network| network.id.to_string()) {
            draft.delete(Kind::Network, &id);
            return;
        }
        // A network that is asked for when all subnets are taken is refused until there is another pool.
        let chosen = draft.state().networks().values().filter(|network| network.spec.subnet.is_none()).count();
        if chosen == POOL_SUBNETS && allocate::pools(draft.state()).len() == 1 {
            let mut ctx = Ctx::new(self.now_ms, self.rng.random());
            let more = Request::AddPools(vec![("10.201.0.0/24".parse().unwrap(), 28)]);
            let (changes, _) = control::decide(draft.state(), more, &mut ctx).unwrap();
            stage(draft, changes, &mut ctx);
        }
        draft.put(Object::Network(made(NetworkId::random(&mut self.rng).as_str(), &name, None)));
    }

    /// A service with virtual addresses comes, goes, or is answered for by its tasks' addresses from now on, or no longer.
    fn change_vips(&mut self, draft: &mut Draft) {
        let place = self.rng.random_range(VIPS_FROM..self.services.len());
        let Some(current) = draft.state().services().get(&self.services[place].id).cloned() else {
            draft.put(Object::Service(self.services[place].clone()));
            return;
        };
        if self.rng.random_range(0..3) == 0 {
            let mut staged = Vec::new();
            allocate::give_up_vips(draft.state(), &current, &mut staged, self.now_ms);
            staged.into_iter().for_each(|object| draft.put(object));
            draft.delete(Kind::Service, current.id.as_str());
        } else {
            let mut changed = (*current).clone();
            let other = if changed.spec.endpoint_mode == EndpointMode::Vip { EndpointMode::Dnsrr } else { EndpointMode::Vip };
            changed.spec.endpoint_mode = other;
            draft.put(Object::Service(changed));
        }
    }

    /// A node joins or is removed.
    fn join_or_go(&mut self, draft: &mut Draft) {
        let name = format!("spare{}", self.rng.random_range(0..SPARE_NODES));
        if draft.state().nodes().contains_key(&NodeId::from(name.as_str())) {
            draft.delete(Kind::Node, &name);
        } else {
            draft.put(Object::Node(node(NodeDescription { name, ..NodeDescription::default() })));
        }
    }

    /// What comes next of a task, or what may befall it.
    fn move_on(&mut self, draft: &mut Draft) {
        if self.ids.is_empty() {
            return;
        }
        let place = self.rng.random_range(0..self.ids.len());
        let task = draft.state().tasks().get(&self.ids[place]).expect("it is there until it is forgotten").clone();
        let chance = self.rng.random_range(0..4);
        let next = match task.status.state {
            TaskState::Pending if task.networks.len() == task.template.networks.len() => Some((TaskState::Running, TaskState::Running)),
            TaskState::Running => [
                None,
                Some((TaskState::Failed, TaskState::Running)),
                Some((TaskState::Shutdown, TaskState::Removed)),
                Some((TaskState::Orphaned, TaskState::Shutdown)),
            ][chance],
            TaskState::Orphaned if chance == 0 => Some((TaskState::Removed, TaskState::Shutdown)),
            _ => None,
        };
        if let Some((state, desired_state)) = next {
            self.put(&task, state, desired_state, draft);
        } else if task.status.state.is_terminal()
            && !holds_addresses(&task)
            && rests_until_ms(&task).is_none_or(|until| until <= self.now_ms)
        {
            draft.delete(Kind::Task, task.id.as_str());
            self.given.remove(&task.id);
            self.ids.swap_remove(place);
        }
    }

    fn put(&mut self, task: &Task, state: TaskState, desired_state: TaskState, draft: &mut Draft) {
        let mut next = Task { desired_state, node_id: Some("n1".into()), node: "n1".to_owned(), ..task.clone() };
        // Whatever an agent's clock says.
        (next.status.state, next.status.since_ms) = (state, self.rng.random());
        if holds_addresses(task) && !holds_addresses(&next) {
            for attached in &task.networks {
                self.ended.insert((attached.network_id.clone(), attached.ip), (self.now_ms, task.service_id.clone()));
            }
        }
        draft.put(Object::Task(Box::new(next)));
    }

    /// Who has which address.
    fn held(&self) -> BTreeMap<(NetworkId, Ipv4Addr), String> {
        let mut held = BTreeMap::new();
        for task in self.state.tasks().values().filter(|task| holds_addresses(task)) {
            for attached in &task.networks {
                let other = held.insert((attached.network_id.clone(), attached.ip), task.id.to_string());
                assert_eq!(other, None, "{} is held twice, by {}", attached.ip, task.id);
            }
        }
        for (service, vip) in vips(&self.state) {
            let other = held.insert((vip.network_id.clone(), vip.ip), service.to_string());
            assert_eq!(other, None, "{} is held twice, by {service}", vip.ip);
        }
        held
    }

    /// A virtual address that is given up rests, and one that is new has rested, if there was a choice as long as a task's.
    fn check_vips(&mut self, before: &State) {
        let is_there = |state: &State, one: &(ServiceId, ServiceVip)| vips(state).contains(one);
        for (service, vip) in vips(before) {
            if !is_there(&self.state, &(service.clone(), vip.clone())) {
                self.ended.insert((vip.network_id, vip.ip), (self.now_ms, service));
            }
        }
        let held = self.held();
        for (service, vip) in vips(&self.state) {
            if !is_there(before, &(service, vip.clone())) {
                assert!(vip.network != "a" || vip.ip != STATIC, "{STATIC} is kept for another");
                self.check_rested(&vip.network_id, &vip.network, vip.ip, &held);
            }
        }
    }

    /// An address that was given just now has rested, unless none was idle.
    fn check_rested(&self, id: &NetworkId, network: &str, ip: Ipv4Addr, held: &BTreeMap<(NetworkId, Ipv4Addr), String>) {
        let waited_ms = self.ended.get(&(id.clone(), ip)).map_or(u64::MAX, |(at_ms, _)| self.now_ms - at_ms);
        assert!(waited_ms >= REST_LEAST_MS, "{ip} is given again after {waited_ms} ms");
        if waited_ms < REST_MS {
            let subnet = self.state.networks().get(id).unwrap().subnet.unwrap();
            let is_idle = |ip: &Ipv4Addr| {
                let key = (id.clone(), *ip);
                let rested = self.ended.get(&key).is_none_or(|(at_ms, _)| self.now_ms - at_ms > REST_MS + 1000);
                is_given_out(subnet, *ip) && rested && !held.contains_key(&key) && (network != "a" || *ip != STATIC)
            };
            let idle = subnet.hosts().find(is_idle);
            assert_eq!(idle, None, "{ip} is given again after {waited_ms} ms, and another is idle");
        }
    }

    /// Every node has a number of its own, and one that was freed is not given before most others.
    fn check_nodes(&mut self, before: &State) {
        for gone in before.nodes().values().filter(|node| !self.state.nodes().contains_key(&node.id)) {
            self.freed.insert(gone.number, self.numbered);
        }
        let mut numbers = BTreeSet::new();
        for node in self.state.nodes().values() {
            assert!(node.number > 0 && numbers.insert(node.number), "{} has the number {}", node.name(), node.number);
            if before.nodes().get(&node.id).is_none_or(|old| old.number != node.number) {
                self.numbered += 1;
                let since = self.freed.get(&node.number).map_or(u32::MAX, |freed| self.numbered - freed);
                assert!(since > 1000, "{} is given again after {since} others", node.number);
            }
        }
    }

    /// No address has two holders, none changes, and none is given again too soon.
    fn check_tasks(&mut self) {
        let held = self.held();
        for task in self.state.tasks().values().filter(|task| !task.networks.is_empty()) {
            let ips: Vec<Ipv4Addr> = task.networks.iter().map(|attached| attached.ip).collect();
            if let Some(given) = self.given.get(&task.id) {
                assert_eq!(*given, ips, "{} has other addresses than it was given", task.id);
                continue;
            }
            for (attached, asked) in task.networks.iter().zip(&task.template.networks) {
                let key = (attached.network_id.clone(), attached.ip);
                let ended = self.ended.get(&key);
                let waited_ms = ended.map_or(u64::MAX, |(at_ms, _)| self.now_ms - at_ms);
                if let Some(ip) = asked.ip {
                    assert_eq!(attached.ip, ip);
                    assert!(waited_ms >= REST_LEAST_MS || ended.is_some_and(|(_, service)| *service == task.service_id));
                    continue;
                }
                assert!(attached.network != "a" || attached.ip != STATIC, "{STATIC} is kept for another");
                self.check_rested(&attached.network_id, &attached.network, attached.ip, &held);
            }
            self.given.insert(task.id.clone(), ips);
        }
    }

    /// Networks share nothing with one another, with nodes or with routes; a new one has no number that another has just had.
    fn check_networks(&mut self, before: &State) {
        let subnets: Vec<Ipv4Net> = self.state.networks().values().filter_map(|network| network.subnet).collect();
        for (place, subnet) in subnets.iter().enumerate() {
            assert!(subnets[..place].iter().all(|other| !overlap(other, subnet)), "{subnet} is shared");
            assert!(!overlap(subnet, &ROUTE.parse().unwrap()) && !subnet.contains(&NODE), "{subnet}");
        }
        let is_new = |network: &Network| before.networks().get(&network.id).is_none_or(|old| old.vni.is_none());
        let mut new: Vec<(u32, Ipv4Net)> = Vec::new();
        for network in self.state.networks().values().filter(|network| is_new(network)) {
            new.push((network.vni.expect("there are enough"), network.subnet.expect("there are enough")));
        }
        new.sort_unstable();
        for (vni, subnet) in new {
            assert!(vni > self.vni, "{vni} after {}", self.vni);
            let of_first_pool = subnets.iter().filter(|subnet| subnet.network().octets()[1] == 200).count();
            assert!(Some(subnet) != self.subnet || of_first_pool == POOL_SUBNETS, "{subnet} is given again at once");
            self.vni = vni;
            if subnet.prefix_len() == 28 && subnet.network().octets()[1] == 200 {
                self.subnet = Some(subnet);
            }
        }
    }

    /// Everything ends and is forgotten.
    fn rest(&mut self) {
        for _ in 0..2 {
            let mut draft = Draft::new(self.state.clone(), self.now_ms);
            for service in &self.services[VIPS_FROM..] {
                if let Some(current) = draft.state().services().get(&service.id).cloned() {
                    let mut staged = Vec::new();
                    allocate::give_up_vips(draft.state(), &current, &mut staged, self.now_ms);
                    staged.into_iter().for_each(|object| draft.put(object));
                    draft.delete(Kind::Service, current.id.as_str());
                }
            }
            for id in std::mem::take(&mut self.ids) {
                let task = draft.state().tasks().get(&id).expect("it is there until it is forgotten").clone();
                if task.node_id.is_some() && holds_addresses(&task) {
                    self.put(&task, TaskState::Removed, TaskState::Removed, &mut draft);
                    self.ids.push(id);
                } else {
                    draft.delete(Kind::Task, id.as_str());
                    self.given.remove(&id);
                }
            }
            self.plan(draft);
            self.now_ms += REST_MS + 1000;
        }
    }
}

/// All virtual addresses, with whose they are.
fn vips(state: &State) -> Vec<(ServiceId, ServiceVip)> {
    state.services().values().flat_map(|service| service.vips.iter().map(move |vip| (service.id.clone(), vip.clone()))).collect()
}

/// A node that is there, its id its name, and has no number yet.
fn node(description: NodeDescription) -> Node {
    Node::new(description.name.as_str().into(), description, 1, 0)
}

fn made(id: &str, name: &str, subnet: Option<&str>) -> Network {
    let subnet = subnet.map(|subnet| subnet.parse().unwrap());
    let spec = NetworkSpec { name: name.to_owned(), subnet, ..NetworkSpec::default() };
    Network::new(id.into(), spec)
}

#[test]
fn whatever_happens_no_address_has_two_holders_or_is_given_again_too_soon() {
    let first = std::env::var("RCLUSTER_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(SEED);
    thread::scope(|scope| {
        for seed in (0..LANES).map(|lane| first + lane) {
            // A lane that fails tells its seed by its name.
            let lane = thread::Builder::new().name(format!("RCLUSTER_SEED={seed}"));
            lane.spawn_scoped(scope, move || by_chance(seed)).unwrap();
        }
    });
}

fn by_chance(seed: u64) {
    let mut chance = Chance::new(seed);
    for turn in 0..STEPS / STEPS_PER_TURN / u32::try_from(LANES).unwrap() {
        chance.turn(STEPS_PER_TURN);
        // A clock that stands still, as after one that was ahead; one that goes; one that leaps.
        let (low, high) = match turn % 50 {
            0..5 => (1, 2),
            49 => (3_600_000, 7_200_000),
            _ => (500, 6_000),
        };
        chance.now_ms += chance.rng.random_range(low..high);
    }
    chance.rest();
    assert!(chance.state.tasks().is_empty());
    let mut draft = Draft::new(chance.state.clone(), chance.now_ms);
    for _ in 0..13 {
        chance.create(1, &mut draft);
    }
    chance.plan(draft);
    let without: Vec<&str> =
        chance.state.tasks().values().filter(|task| task.networks.is_empty()).map(|task| task.status.message.as_str()).collect();
    let expected = "network a has no free address: 12 of 13 in use, 1 kept for services by their ip; its subnet is 10.77.0.0/28";
    assert_eq!(without, [expected], "nothing has leaked");
}
