//! The brain by example: what a cluster looks like after something happened.

use std::collections::{BTreeMap, BTreeSet};

use crate::world::World;
use rcluster_api::error::ErrorCode;
use rcluster_api::object::{Availability, Kind, NodeDescription, NodeState, ServiceVip};
use rcluster_api::spec::{NetworkSpec, ServiceSpec, Spec};
use rcluster_api::task::TaskState;
use rcluster_manager::core::allocate::REST_LEAST_MS;
use rcluster_manager::core::control::Request;
use rcluster_manager::core::dispatch::netview::Networks;
use rcluster_manager::core::members::Standing;
use rcluster_manager::core::node::register::{Registration, register};
use serde_json::json;

fn three_nodes() -> World {
    let mut world = World::new(7);
    for name in ["n1", "n2", "n3"] {
        world.node(name, &[("zone", if name == "n3" { "b" } else { "a" })]);
    }
    world.network("lab");
    world
}

fn web(replicas: u32) -> serde_json::Value {
    json!({"replicas": replicas, "containers": [{"image": "web:1"}], "networks": ["lab"]})
}

#[test]
fn a_new_service_is_created_addressed_and_assigned_in_one_commit() {
    let mut world = three_nodes();
    let revision = world.state.revision();
    world.service("web", web(3));
    assert_eq!(world.state.revision(), revision + 1);
    assert_eq!(world.picture(), "web.1 n1 assigned running\nweb.2 n2 assigned running\nweb.3 n3 assigned running");
    assert_eq!(world.task("web.1").networks[0].ip.to_string(), "10.128.0.2");
    assert_eq!(world.state.find_network("lab").unwrap().vni, Some(4096));
}

#[test]
fn a_node_has_its_number_from_the_commit_in_which_it_joins_and_nobody_gets_it_after_it() {
    let mut world = three_nodes();
    let numbers = |world: &World| world.state.nodes().values().map(|node| format!("{} {}", node.name(), node.number)).collect::<Vec<_>>();
    assert_eq!(numbers(&world), ["n1 1", "n2 2", "n3 3"]);
    world.node_state("n3", NodeState::Down);
    world.request(Request::Remove(vec![(Kind::Node, "n3".to_owned())])).unwrap();
    let revision = world.state.revision();
    world.node("n4", &[]);
    assert_eq!((world.state.revision(), numbers(&world)), (revision + 1, vec!["n1 1".to_owned(), "n2 2".to_owned(), "n4 4".to_owned()]));
}

#[test]
fn a_lost_node_loses_its_tasks_and_its_addresses_stay_taken_until_it_is_back() {
    let mut world = three_nodes();
    world.service("web", web(3));
    world.settle();
    world.node_state("n2", NodeState::Down);
    assert_eq!(
        world.picture(),
        "web.1 n1 running running\nweb.2 n1 assigned running\nweb.2 n2 orphaned shutdown lost with node n2\nweb.3 n3 running running"
    );
    world.settle();
    world.now_ms += 60_000;
    world.node_state("n2", NodeState::Ready);
    world.settle();
    assert!(
        world.picture().contains("web.2 n2 removed shutdown lost with node n2; stopped when the node came back"),
        "{}",
        world.picture()
    );
    assert_eq!(world.running("web"), 3);
}

#[test]
fn a_task_lost_with_its_node_has_its_address_for_a_day_and_no_longer() {
    const HOUR_MS: u64 = 3_600_000;
    let mut world = three_nodes();
    world.service("web", web(2));
    world.settle();
    let lost = world.task("web.2").id;
    world.node_state("n2", NodeState::Down);
    world.settle();
    world.now_ms += 23 * HOUR_MS;
    world.rest();
    assert_eq!(world.state.tasks()[&lost].status.state, TaskState::Orphaned, "its node may come back");
    world.now_ms += 2 * HOUR_MS;
    world.rest();
    assert!(!world.state.tasks().contains_key(&lost), "{}", world.picture());
    assert_eq!(world.running("web"), 2);
}

#[test]
fn a_crash_is_answered_at_once_then_later_and_later() {
    let mut world = three_nodes();
    world.service("web", web(1));
    world.settle();
    let mut delays = Vec::new();
    for round in 0..4 {
        world.now_ms += 100;
        world.report(&world.task("web.1").id, TaskState::Failed, "exited with code 3");
        let next = world.task("web.1");
        delays.push(next.start_after_ms.saturating_sub(world.now_ms));
        if round == 0 {
            assert_eq!(next.status.state, TaskState::Assigned, "the first replacement is assigned in the same commit");
        } else {
            assert_eq!(
                (next.status.state, next.status.message.as_str()),
                (TaskState::Pending, format!("waits before restart {}", round + 1).as_str())
            );
            world.now_ms = next.start_after_ms;
            world.wake();
        }
        world.settle();
        assert_eq!(world.running("web"), 1);
    }
    assert_eq!(delays[0], 0);
    assert!((400..=500).contains(&delays[1]) && (800..=1000).contains(&delays[2]) && (1600..=2000).contains(&delays[3]), "{delays:?}");
    assert_eq!(world.task("web.1").restarts, 4);
}

#[test]
fn a_pending_task_says_why() {
    let mut world = three_nodes();
    world.service("big", json!({"containers": [{"image": "a", "resources": {"reservations": {"memory": "64GiB"}}}]}));
    assert_eq!(world.picture(), "big.1 - pending running 0/3 nodes fit big.1: 3 lack memory (need 64 GiB, best has 4 GiB free)");
    world.service("far", json!({"containers": [{"image": "a"}], "placement": {"constraints": ["node.labels.zone==c"]}}));
    world.availability("n1", Availability::Pause);
    assert!(
        world.picture().contains("far.1 - pending running 0/3 nodes fit far.1: 1 paused, 2 fail node.labels.zone==c"),
        "{}",
        world.picture()
    );
    world.node("n4", &[("zone", "c")]);
    assert_eq!(world.task("far.1").node, "n4", "a node that fits is used as soon as it comes");
}

#[test]
fn constraints_and_max_per_node_are_kept() {
    let mut world = three_nodes();
    let placement = json!({"constraints": ["node.labels.zone!=b"], "max_per_node": 1});
    world.service("web", json!({"replicas": 3, "containers": [{"image": "a"}], "placement": placement}));
    assert_eq!(
        world.picture(),
        "web.1 n1 assigned running\nweb.2 n2 assigned running\n\
         web.3 - pending running 0/3 nodes fit web.3: 1 fails node.labels.zone!=b, 2 already have 1 (max_per_node)"
    );
}

#[test]
fn a_global_service_has_one_task_on_each_node_that_fits() {
    let mut world = three_nodes();
    world
        .service("probe", json!({"mode": "global", "containers": [{"image": "a"}], "placement": {"constraints": ["node.labels.zone==a"]}}));
    assert_eq!(world.picture(), "probe.n1 n1 assigned running\nprobe.n2 n2 assigned running");
    world.settle();
    world.node("n4", &[("zone", "a")]);
    world.settle();
    world.availability("n1", Availability::Drain);
    world.settle();
    assert_eq!(world.picture(), "probe.n2 n2 running running\nprobe.n4 n4 running running");
}

#[test]
fn a_changed_template_replaces_tasks_one_by_one() {
    let mut world = three_nodes();
    world.service("web", web(3));
    world.settle();
    world.service("web", json!({"replicas": 3, "containers": [{"image": "web:2"}], "networks": ["lab"]}));
    let stopping = || "shutdown";
    assert_eq!(world.picture().matches(&format!("running {}", stopping())).count(), 1, "{}", world.picture());
    world.settle();
    let tasks = world.state.tasks().values().filter(|task| task.is_live());
    assert_eq!(tasks.filter(|task| task.template.containers[0].image == "web:2").count(), 3);
    assert_eq!(world.running("web"), 3);
}

#[test]
fn a_broken_template_can_be_mended() {
    let mut world = three_nodes();
    world.service("web", web(2));
    world.settle();
    world.service("web", json!({"replicas": 2, "containers": [{"image": "web:broken"}], "networks": ["lab"]}));
    for _ in 0..5 {
        let broken = world.state.tasks().values().find(|task| task.is_live() && task.template.containers[0].image == "web:broken").cloned();
        if let Some(task) = broken {
            world.now_ms = world.now_ms.max(task.start_after_ms);
            world.wake();
            world.report(&task.id, TaskState::Rejected, "no such image");
        } else {
            let stopping =
                world.state.tasks().values().find(|task| !task.is_wanted() && !task.status.state.is_terminal()).unwrap().id.clone();
            world.report(&stopping, TaskState::Shutdown, "");
        }
    }
    assert_eq!(world.running("web"), 1, "an update that fails goes no further:\n{}", world.picture());
    world.service("web", web(2));
    world.settle();
    assert_eq!(world.running("web"), 2);
}

#[test]
fn draining_starts_the_new_before_it_stops_the_old() {
    let mut world = three_nodes();
    world.service("web", web(3));
    world.settle();
    world.availability("n2", Availability::Drain);
    assert_eq!(world.running("web"), 3);
    assert!(world.picture().contains("assigned running"), "{}", world.picture());
    world.settle();
    assert_eq!(world.running("web"), 3);
    assert!(world.state.tasks_of_node(&"n2".into()).all(|task| task.status.state.is_terminal()));
}

#[test]
fn a_manager_is_no_node_unless_a_node_has_its_name() {
    let mut world = World::new(7);
    let asked = |node: &str, availability: Option<Availability>| Request::UpdateNode {
        node: node.to_owned(),
        availability,
        labels_set: BTreeMap::new(),
        labels_removed: Vec::new(),
    };
    let joins = Request::AddManager { name: "n1".to_owned(), addr: "n1:7443".to_owned(), standing: Standing::default() };
    world.request(joins).unwrap();
    let id = world.state.find_manager("n1").unwrap().id.to_string();
    for name in ["n1", id.as_str()] {
        for (availability, instead) in [
            (Some(Availability::Drain), format!("`rclusterctl node demote {name}` takes its vote and moves leadership away")),
            (Some(Availability::Pause), format!("`rclusterctl node demote {name}` takes its vote and moves leadership away")),
            (Some(Availability::Active), format!("`rclusterctl node promote {name}` lets it vote")),
            (None, "`rclusterctl get nodes` lists the nodes".to_owned()),
        ] {
            let refused = world.request(asked(name, availability)).unwrap_err();
            assert_eq!(refused, format!("{name} is a manager, not a node: it runs no tasks ({instead})"));
        }
    }
    let refused = world.request(asked("n2", Some(Availability::Drain))).unwrap_err();
    assert_eq!(refused, "there is no node n2 (`rclusterctl get nodes` lists them)");
    world.node("n1", &[]);
    world.request(asked("n1", Some(Availability::Drain))).unwrap();
    assert_eq!(world.state.find_node("n1").unwrap().availability, Availability::Drain);
}

#[test]
fn a_successor_that_is_outdated_has_gone_before_the_next_is_made() {
    let mut world = three_nodes();
    let spec = |image: &str, order: &str| json!({"containers": [{"image": image}], "update": {"order": order}});
    world.service("web", spec("web:1", "start-first"));
    world.settle();
    let old = world.task("web.1");
    world.service("web", spec("web:2", "start-first"));
    let second = world.task("web.1");
    world.report(&second.id, TaskState::Preparing, "");
    world.availability(&old.node, Availability::Drain);
    world.service("web", spec("web:3", "stop-first"));
    world.wake();
    let of_web = |world: &World| world.state.tasks().values().filter(|task| task.may_run()).count();
    assert_eq!(of_web(&world), 2, "{}", world.picture());
    world.report(&second.id, TaskState::Shutdown, "");
    assert_eq!(of_web(&world), 2, "{}", world.picture());
    world.settle();
    assert_eq!((world.running("web"), world.task("web.1").spec_version), (1, 3), "{}", world.picture());
}

#[test]
fn scaling_down_and_removing_leave_nothing() {
    let mut world = three_nodes();
    world.service("web", web(5));
    world.settle();
    world.request(Request::Scale { service: "web".to_owned(), replicas: 2 }).unwrap();
    world.settle();
    world.rest();
    assert_eq!(world.picture(), "web.1 n1 running running\nweb.2 n2 running running");
    let refused = world.request(Request::Remove(vec![(Kind::Network, "lab".to_owned())])).unwrap_err();
    assert_eq!(refused, "network lab is used by web (remove those services first, or in the same command)");
    world.request(Request::Remove(vec![(Kind::Network, "lab".to_owned()), (Kind::Service, "web".to_owned())])).unwrap();
    world.settle();
    assert_eq!((world.state.services().len(), world.state.networks().len()), (0, 0), "they do not wait for addresses to rest");
    world.rest();
    assert_eq!((world.picture().as_str(), world.state.services().len(), world.state.networks().len()), ("", 0, 0));
}

#[test]
fn an_endpoint_is_answered_only_while_all_of_it_runs_and_leaves_before_it_stops() {
    let mut world = three_nodes();
    world.service("web", web(2));
    let serving = |world: &World| -> Vec<String> {
        let view = Networks::new(&world.state).view(&"n1".into(), 1);
        let endpoints = view.networks.iter().flat_map(|network| &network.endpoints);
        endpoints.map(|endpoint| format!("{} {} {:?}", endpoint.task, endpoint.serving, endpoint.state())).collect()
    };
    let sorted = |world: &World| {
        let mut lines = serving(world);
        lines.sort();
        lines.join(", ")
    };
    assert_eq!(sorted(&world), "web.1 false Routed, web.2 false Routed");
    world.settle();
    assert_eq!(sorted(&world), "web.1 true Serving, web.2 true Serving");
    world.request(Request::Scale { service: "web".to_owned(), replicas: 1 }).unwrap();
    assert_eq!(sorted(&world), "web.1 true Serving, web.2 false Leaving");
    world.container_ends(&world.task("web.1").id);
    assert_eq!(world.task("web.1").status.state, TaskState::Running);
    assert_eq!(sorted(&world), "web.1 false Routed, web.2 false Leaving", "its other containers have yet to stop");
    let view = Networks::new(&world.state).view(&"n1".into(), 1);
    assert_eq!(view.networks[0].names, ["tasks.web", "web"]);
    assert!(Networks::new(&world.state).view(&"n3".into(), 1).networks.is_empty(), "a node without tasks on a network does not see it");
}

#[test]
fn a_view_shows_the_services_of_its_networks_and_the_ports_that_the_node_opens() {
    let mut world = three_nodes();
    let networks = json!([{"network": "lab", "aliases": ["www"]}]);
    world.service("web", json!({"replicas": 2, "stack": "shop", "containers": [{"image": "web:1"}], "networks": networks}));
    world.settle();
    assert_eq!(world.picture(), "web.1 n1 running running\nweb.2 n2 running running");
    let lab = world.state.find_network("lab").unwrap().id.clone();
    world.change_service("web", |service| {
        let vip = |network_id, network: &str, last: u8| {
            let ip = [10, 128, 0, last].into();
            ServiceVip { network_id, network: network.to_owned(), ip, ip6: None }
        };
        service.vips = vec![vip(lab, "lab", 200), vip("gone".into(), "gone", 201)];
        service.spec.ports = serde_json::from_value(json!(["8080:80", {"target": 81, "published": 81, "mode": "host"}])).unwrap();
    });
    let shown = |node: &str| {
        let view = Networks::new(&world.state).view(&node.into(), 1);
        assert_eq!(view.pools, ["10.128.0.0/9"]);
        let vips = view.services.iter().flat_map(|service| &service.vips);
        let mut lines: Vec<String> = vips.map(|vip| format!("{} {}", vip.names.join(" "), vip.ip)).collect();
        lines.extend(
            view.published
                .iter()
                .flat_map(|told| told.ports.iter().map(move |port| format!("{} for {}", port.published, told.backends.len()))),
        );
        lines.join(", ")
    };
    assert_eq!(shown("n1"), "web web.shop www 10.128.0.200, 8080 for 2, 81 for 1");
    assert_eq!(shown("n3"), "8080 for 2", "it has no task of the service");
}

#[test]
fn bad_requests_change_nothing_and_say_what_mends_them() {
    let mut world = three_nodes();
    world.service("web", web(1));
    let before = world.state.revision();
    let service =
        |name: &str, spec: serde_json::Value| Spec::Service(ServiceSpec { name: name.to_owned(), ..serde_json::from_value(spec).unwrap() });
    let network = |name: &str, subnet: &str| {
        Spec::Network(NetworkSpec { name: name.to_owned(), subnet: Some(subnet.parse().unwrap()), ..NetworkSpec::default() })
    };
    for (request, expected) in [
        (
            Request::Apply(vec![
                (service("ok", json!({"containers": [{"image": "a"}]})), 0),
                (service("bad", json!({"containers": [{"image": "a"}], "networks": ["nowhere"]})), 0),
            ]),
            "networks[0]: network nowhere of service bad does not exist (deploy the network first, or in the same files)",
        ),
        (
            Request::Apply(vec![(service("web", web(2)), 1)]),
            "version: service web has changed: it is at version 6, the request was made for version 1 \
             (look at it again with `rclusterctl get service web -o yaml`)",
        ),
        (
            Request::Apply(vec![(network("other", "10.128.0.0/16"), 0)]),
            "subnet: subnet 10.128.0.0/16 overlaps 10.128.0.0/24 of network lab (choose another subnet, or leave it out and one is chosen)",
        ),
        (
            Request::Apply(vec![(network("lab", "10.9.0.0/16"), 0)]),
            "subnet: network lab exists and its subnet cannot change \
             (remove the network and its services first, or give the new network another name)",
        ),
        (Request::Scale { service: "wbe".to_owned(), replicas: 1 }, "there is no service wbe (`rclusterctl get services` lists them)"),
        (
            Request::Remove(vec![(Kind::Node, "n1".to_owned())]),
            "node n1 is ready (drain it and stop its agent first; only a node that is down can be removed)",
        ),
    ] {
        assert_eq!(world.request(request).unwrap_err(), expected);
    }
    assert_eq!(world.state.revision(), before);
    let named = json!({"containers": [{"image": "a"}], "networks": ["lab"], "ports": [{"name": "http", "target": 80}]});
    world.request(Request::Apply(vec![(service("named", named), 0)])).unwrap();
}

#[test]
fn an_exhausted_network_says_so_and_gives_again_when_an_address_is_free() {
    let mut world = World::new(1);
    world.node("n1", &[]);
    world.network_of("small", "10.9.0.0/29");
    world.service("web", json!({"replicas": 6, "containers": [{"image": "a"}], "networks": ["small"]}));
    world.settle();
    assert_eq!(world.running("web"), 5);
    assert!(world.picture().contains("web.6 - pending running network small has no free address: 5 of 5 in use"), "{}", world.picture());
    world.report(&world.task("web.2").id, TaskState::Failed, "crashed");
    world.settle();
    assert!(world.picture().contains("has no free address: 4 of 5 in use, 1 just freed; its subnet is 10.9.0.0/29"), "{}", world.picture());
    world.now_ms += REST_LEAST_MS;
    world.wake();
    world.settle();
    assert_eq!(world.running("web"), 5);
}

#[test]
fn tasks_that_wait_for_an_address_are_not_written_again_while_they_do() {
    let mut world = World::new(1);
    world.node("n1", &[]);
    world.network_of("small", "10.9.0.0/29");
    world.service("web", json!({"replicas": 9, "containers": [{"image": "a"}], "networks": ["small"]}));
    world.settle();
    let waiting = |world: &World| -> Vec<(String, u64)> {
        let tasks = world.state.tasks().values().filter(|task| task.status.state == TaskState::Pending && task.service == "web");
        tasks.map(|task| (task.id.to_string(), task.stamp.version)).collect()
    };
    let before = waiting(&world);
    assert_eq!(before.len(), 4, "{}", world.picture());
    // What ends leaves an address that rests: other numbers, the same reason.
    world.request(Request::Scale { service: "web".to_owned(), replicas: 8 }).unwrap();
    world.report(&world.task("web.2").id, TaskState::Failed, "crashed");
    let after = waiting(&world);
    let as_before = after.iter().filter(|task| before.contains(task)).count();
    assert_eq!((as_before, after.len()), (3, 4), "{}", world.picture());
}

/// A service's virtual addresses, with their networks.
fn vips(world: &World, service: &str) -> String {
    let vips = world.state.find_service(service).unwrap().vips.clone();
    vips.iter().map(|vip| format!("{} on {}", vip.ip, vip.network)).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_service_keeps_a_virtual_address_on_each_network_until_it_is_not_asked_for() {
    let mut world = three_nodes();
    world.network("back");
    let containers = json!([{"image": "web:1"}]);
    let spec =
        |networks: &[&str], mode: &str| json!({"replicas": 2, "containers": containers, "networks": networks, "endpoint_mode": mode});
    let revision = world.state.revision();
    world.service("web", spec(&["lab"], "vip"));
    assert_eq!((world.state.revision(), vips(&world, "web").as_str()), (revision + 1, "10.128.0.4 on lab"), "in the commit that made it");
    world.service("web", json!({"replicas": 4, "containers": [{"image": "web:1"}], "networks": ["lab"]}));
    assert_eq!(vips(&world, "web"), "10.128.0.4 on lab", "virtual addresses are the default");
    world.service("web", spec(&["back", "lab"], "vip"));
    world.settle();
    let (on_back, kept) = (world.state.find_service("web").unwrap().vips[0].clone(), "10.128.0.4 on lab");
    assert_eq!(on_back.network, "back");
    assert!(vips(&world, "web").ends_with(kept), "{}", vips(&world, "web"));
    world.service("web", spec(&["back"], "vip"));
    world.settle();
    assert_eq!(world.state.find_service("web").unwrap().vips, [on_back]);
    world.service("web", spec(&["back"], "dnsrr"));
    assert_eq!(vips(&world, "web"), "");
}

#[test]
fn a_virtual_address_that_was_given_up_rests_like_a_tasks() {
    let mut world = World::new(1);
    world.node("n1", &[]);
    world.network_of("small", "10.9.0.0/29");
    let containers = json!([{"image": "a"}]);
    let spec =
        |replicas: u32, mode: &str| json!({"replicas": replicas, "containers": containers, "networks": ["small"], "endpoint_mode": mode});
    for (name, vip) in [("web", "10.9.0.3 on small"), ("api", "10.9.0.5 on small")] {
        world.service(name, spec(1, "vip"));
        assert_eq!(vips(&world, name), vip);
    }
    world.settle();
    world.service("web", spec(1, "dnsrr"));
    world.service("next", spec(2, "dnsrr"));
    let lacks = |world: &World, said: &str| world.picture().contains(&format!("network small has no free address: {said}"));
    assert!(lacks(&world, "4 of 5 in use, 1 just freed;"), "{}", world.picture());
    world.now_ms += REST_LEAST_MS;
    world.wake();
    world.settle();
    assert_eq!((world.running("next"), world.task("next.2").networks[0].ip.octets()[3]), (2, 3), "{}", world.picture());
    // A service that goes gives up its address as well, and what its tasks had.
    world.request(Request::Remove(vec![(Kind::Service, "api".to_owned())])).unwrap();
    world.settle();
    assert!(world.state.find_service("api").is_none());
    world.service("last", spec(2, "dnsrr"));
    assert!(lacks(&world, "3 of 5 in use, 2 just freed;"), "{}", world.picture());
    world.now_ms += REST_LEAST_MS;
    world.wake();
    world.settle();
    assert_eq!(world.running("last"), 2, "{}", world.picture());
}

#[test]
fn a_service_goes_without_a_virtual_address_rather_than_without_a_task_and_has_one_when_there_is_one() {
    let mut world = World::new(1);
    world.node("n1", &[]);
    world.network_of("small", "10.9.0.0/29");
    world.service("web", json!({"replicas": 5, "containers": [{"image": "a"}], "networks": ["small"]}));
    world.settle();
    assert_eq!((world.running("web"), vips(&world, "web").as_str()), (5, ""));
    world.request(Request::Scale { service: "web".to_owned(), replicas: 4 }).unwrap();
    world.settle();
    // However long an address rests when its task has gone.
    world.now_ms += 120_000;
    world.wake();
    assert_eq!((world.running("web"), vips(&world, "web").as_str()), (4, "10.9.0.6 on small"));
    world.request(Request::Scale { service: "web".to_owned(), replicas: 5 }).unwrap();
    world.settle();
    assert!(world.picture().contains("web.5 - pending running network small has no free address: 5 of 5 in use"), "{}", world.picture());
}

#[test]
fn a_very_large_service_is_made_in_several_transactions() {
    let mut world = three_nodes();
    let revision = world.state.revision();
    world.service("web", json!({"replicas": 3500, "containers": [{"image": "web:1"}]}));
    assert_eq!(world.state.revision(), revision + 4);
    assert_eq!(world.state.tasks().len(), 3500);
}

#[test]
fn a_successor_that_fails_beside_the_old_task_is_tried_again_by_the_restart_policy() {
    let mut world = three_nodes();
    let spec = |image: &str| json!({"containers": [{"image": image}], "update": {"order": "start-first"}, "restart": {"max_attempts": 2, "delay": "1s"}});
    world.service("web", spec("web:1"));
    world.settle();
    world.service("web", spec("typo:2"));
    let mut tries = Vec::new();
    while let Some(next) = world.state.tasks().values().find(|task| task.is_live() && task.spec_version == 2).cloned() {
        tries.push(next.start_after_ms.saturating_sub(next.stamp.created_at_ms) > 0);
        world.now_ms = world.now_ms.max(next.start_after_ms);
        world.wake();
        world.report(&next.id, TaskState::Rejected, "no such image");
        assert!(tries.len() < 10, "{}", world.picture());
    }
    assert_eq!(tries, [false, true, true], "the first at once, the others after a delay, and then no more");
    assert_eq!(world.running("web"), 1, "the old task goes on");
}

#[test]
fn an_update_passes_by_a_slot_that_has_no_place_and_a_node_that_is_down() {
    let mut world = three_nodes();
    let spec = |memory: &str| json!({"replicas": 4, "containers": [{"image": "web:1", "resources": {"reservations": {"memory": memory}}}]});
    world.service("web", spec("3GiB"));
    world.service("agent", json!({"mode": "global", "containers": [{"image": "agent:1"}]}));
    world.settle();
    assert_eq!((world.running("web"), world.running("agent")), (3, 3));
    world.service("web", spec("2GiB"));
    world.settle();
    let updated = |world: &World, service: &str| {
        world.state.tasks().values().filter(|t| t.service == service && t.is_live() && t.spec_version == 2 && t.serves()).count()
    };
    assert_eq!(updated(&world, "web"), 4, "{}", world.picture());

    world.node_state("n2", NodeState::Down);
    world.service("agent", json!({"mode": "global", "containers": [{"image": "agent:2"}]}));
    world.settle();
    assert_eq!(updated(&world, "agent"), 2, "{}", world.picture());
}

#[test]
fn an_update_stops_where_the_new_version_has_no_place() {
    let mut world = three_nodes();
    let spec = |memory: &str| {
        json!({"replicas": 3, "placement": {"max_per_node": 1},
            "containers": [{"image": "web:1", "resources": {"reservations": {"memory": memory}}}]})
    };
    world.service("web", spec("1GiB"));
    world.settle();
    world.service("web", spec("64GiB"));
    world.settle();
    assert_eq!(world.running("web"), 2, "one slot is taken out and no other follows: {}", world.picture());
}

#[test]
fn what_one_plan_has_no_room_for_is_not_forgotten() {
    let mut world = three_nodes();
    let names = ["a", "b", "c"];
    for name in names {
        world.service(name, json!({"replicas": 700, "containers": [{"image": "web:1"}]}));
    }
    assert_eq!(world.state.tasks().len(), 2100);
    world.request(Request::Remove(names.map(|name| (Kind::Service, name.to_owned())).to_vec())).unwrap();
    assert!(world.state.tasks().values().all(|task| task.desired_state == TaskState::Removed));
}

#[test]
fn services_with_long_specs_move_in_steps_that_the_log_takes() {
    let mut world = three_nodes();
    let argument = "x".repeat(200 << 10);
    world.service("long", json!({"replicas": 60, "containers": [{"image": "web:1", "args": [argument]}]}));
    world.node_state("n1", NodeState::Down);
    assert_eq!(world.state.tasks().values().filter(|task| task.is_live() && task.node != "n1").count(), 60);
}

#[test]
fn a_pool_without_a_subnet_left_is_said_when_the_network_is_asked_for() {
    let mut world = three_nodes();
    let all = NetworkSpec { name: "all".to_owned(), subnet: Some("10.128.0.0/10".parse().unwrap()), ..NetworkSpec::default() };
    let refused = world.request(Request::Apply(vec![(Spec::Network(all), 0)])).unwrap_err();
    assert!(refused.contains("overlaps 10.128.0.0/24 of network lab"), "{refused}");
    world.request(Request::Remove(vec![(Kind::Network, "lab".to_owned())])).unwrap();
    for (name, subnet) in [("lower", "10.128.0.0/10"), ("upper", "10.192.0.0/10")] {
        world.network_of(name, subnet);
    }
    let more = NetworkSpec { name: "more".to_owned(), ..NetworkSpec::default() };
    let refused = world.request(Request::Apply(vec![(Spec::Network(more), 0)])).unwrap_err();
    assert!(refused.contains("no subnet is free for network more"), "{refused}");
}

#[test]
fn of_two_requests_for_the_same_version_in_one_batch_the_second_is_refused() {
    let mut world = three_nodes();
    world.service("web", web(1));
    let version = world.state.find_service("web").unwrap().stamp.version;
    let mut outcomes = Vec::new();
    world.turn(|draft, ctx| {
        for replicas in [2, 3] {
            let spec = ServiceSpec { name: "web".to_owned(), ..serde_json::from_value(web(replicas)).unwrap() };
            let decided = rcluster_manager::core::control::decide(draft.state(), Request::Apply(vec![(Spec::Service(spec), version)]), ctx);
            outcomes.push(decided.map(|(changes, _)| rcluster_manager::core::plan::stage(draft, changes, ctx)).is_ok());
        }
    });
    assert_eq!(outcomes, [true, false]);
}

#[test]
fn a_node_with_more_labels_than_are_kept_is_refused() {
    let world = World::new(1);
    let labels = [("a".to_owned(), "b".repeat(256 << 10))].into();
    let description = NodeDescription { name: "n1".to_owned(), addr: "10.0.0.1".to_owned(), labels, ..NodeDescription::default() };
    let registration = Registration { id: "n1".into(), incarnation: 1, description, tasks: BTreeSet::new() };
    let refused = register(&world.state, &registration, 1).unwrap_err();
    assert_eq!(refused.code, ErrorCode::TooLarge);
    assert!(refused.message.starts_with("the labels of node n1 have 262145 bytes"), "{refused}");
}

#[test]
fn the_sizes_that_are_shown_add_up_to_what_is_limited() {
    let mut world = three_nodes();
    let spec = NetworkSpec { name: "labelled".to_owned(), labels: [("a".to_owned(), "b".to_owned())].into(), ..NetworkSpec::default() };
    world.request(Request::Apply(vec![(Spec::Network(spec), 0)])).unwrap();
    world.service("web", web(3));
    let shown = world.state.sizes().values().map(|size| size.bytes).sum::<usize>();
    assert_eq!(shown, world.state.bytes());
}
