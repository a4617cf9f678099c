//! Networks' policies: what nodes are told of them, and how large they may be.

use crate::world::World;
use rcluster_api::id::ServiceId;
use rcluster_api::object::Kind;
use rcluster_api::spec::{NetworkSpec, Spec};
use rcluster_manager::core::control::Request;
use rcluster_manager::core::dispatch::netview::Networks;
use serde_json::{Value, json};

/// Asks for a policy of network `lab`.
fn policy(allow: &Value) -> Request {
    let spec: NetworkSpec = serde_json::from_value(json!({"policy": {"allow": allow}})).unwrap();
    Request::Apply(vec![(Spec::Network(NetworkSpec { name: "lab".to_owned(), ..spec }), 0)])
}

/// A node, and services on network `lab` with so many tasks.
fn with(services: &[(&str, u32)]) -> World {
    let mut world = World::new(1);
    world.node("n1", &[]);
    world.network("lab");
    for (name, replicas) in services {
        world.service(name, json!({"replicas": replicas, "containers": [{"image": "a"}], "networks": ["lab"]}));
    }
    world
}

/// The policy as the node is told it, with the names of the services for their ids.
fn told(world: &World) -> String {
    let view = Networks::new(&world.state).view(&"n1".into(), 1);
    let Some(policy) = &view.networks[0].policy else { return "none".to_owned() };
    let names = |ids: &[String], all: bool| {
        let name = |id: &String| world.state.services().get(&ServiceId::from(id.as_str())).unwrap().spec.name.as_str();
        let mut names: Vec<&str> = ids.iter().map(name).collect();
        names.extend(all.then_some("*"));
        names.join(",")
    };
    let lines = policy.allow.iter().map(|allow| {
        let ports: Vec<String> = allow.ports.iter().map(|port| format!("{:?} {}-{}", port.protocol(), port.first, port.last)).collect();
        let (from, to) = (names(&allow.from_service_ids, allow.from_all), names(&allow.to_service_ids, allow.to_all));
        format!("{from} {} to {to} at {}", allow.from_cidrs.join(","), ports.join(","))
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_node_is_told_a_policy_by_the_services_that_its_names_stand_for() {
    let mut world = with(&[("web", 1), ("db", 1)]);
    world.service("stranger", json!({"containers": [{"image": "a"}]}));
    assert_eq!(told(&world), "none");
    let allow = json!([
        {"from": ["web", "stranger", "10.0.0.0/8"], "to": ["db"], "ports": [5432, "53/udp"]},
        {"from": ["*"], "to": ["late", "*"]},
    ]);
    world.request(policy(&allow)).unwrap();
    assert_eq!(told(&world), "web 10.0.0.0/8 to db at Tcp 5432-5432,Udp 53-53\n*  to * at ");
    let notes = world.state.events().values().filter(|event| event.reason == "PolicyMatchesNobody");
    let mut notes: Vec<&str> = notes.map(|event| event.message.as_str()).collect();
    notes.sort_unstable();
    assert_eq!(
        notes,
        [
            "the policy names service late, which is not on this network: it matches nobody until it is",
            "the policy names service stranger, which is not on this network: it matches nobody until it is",
        ]
    );
    world.service("late", json!({"containers": [{"image": "a"}], "networks": ["lab"]}));
    assert!(told(&world).ends_with("*  to late,* at "), "{}", told(&world));

    // A service that is made anew is another one.
    let old = world.state.find_service("db").unwrap().id.clone();
    world.request(Request::Remove(vec![(Kind::Service, "db".to_owned())])).unwrap();
    world.settle();
    world.rest();
    assert!(told(&world).starts_with("web 10.0.0.0/8 to  at Tcp"), "{}", told(&world));
    world.service("db", json!({"containers": [{"image": "a"}], "networks": ["lab"]}));
    assert_ne!(world.state.find_service("db").unwrap().id, old);
    assert!(told(&world).starts_with("web 10.0.0.0/8 to db at Tcp"), "{}", told(&world));
    world.request(policy(&json!([]))).unwrap();
    assert_eq!(told(&world), "", "a policy without rules is one");
}

#[test]
fn a_policy_has_a_limit_and_names_the_rule_that_is_beyond_it() {
    let mut world = with(&[("web", 90), ("db", 80)]);
    let before = world.state.revision();
    let rule = |ports: &[u16]| json!({"from": ["web"], "to": ["db"], "ports": ports});
    for (allow, expected) in [
        (
            json!([{"from": ["web"], "to": ["gone"]}, {"from": ["*", "web"], "to": ["db"]}, rule(&[])]),
            "policy.allow[2]: 90 × 80 tasks make 7200 pairs, more than the limit of 4096 (name narrower services)",
        ),
        (
            json!([rule(&[80, 81])]),
            "policy.allow[0]: 90 × 80 tasks at 2 ports make 14400 pairs, more than the limit of 4096 (name narrower services)",
        ),
        (
            json!([{"from": ["*"], "to": ["db"], "ports": vec![80; 51]}, {"from": ["10.0.0.0/8"], "to": ["db"]}]),
            "policy.allow[1]: 1 × 80 tasks make 80 pairs, with those of the rules before 4160, more than the limit of 4096 \
             (name narrower services)",
        ),
    ] {
        assert_eq!(world.request(policy(&allow)).unwrap_err(), expected);
    }
    assert_eq!(world.state.revision(), before, "nothing has changed");
    world.request(policy(&json!([{"from": ["*"], "to": ["*"]}]))).unwrap();
}

#[test]
fn a_service_grows_no_policy_beyond_the_limit_and_may_always_shrink() {
    let mut world = with(&[("web", 40), ("db", 80)]);
    world.request(policy(&json!([{"from": ["web"], "to": ["db"]}]))).unwrap();
    let scale = |replicas: u32| Request::Scale { service: "web".to_owned(), replicas };
    world.request(scale(51)).unwrap();
    let expected = "replicas: by policy.allow[0] of network lab, 52 × 80 tasks make 4160 pairs, more than the limit of 4096 \
                    (scale less, or name narrower services in the policy)";
    assert_eq!(world.request(scale(52)).unwrap_err(), expected);
    // By a leader of before there was a limit, say.
    world.change_service("web", |service| service.spec.replicas = Some(60));
    world.request(scale(59)).unwrap();
    assert!(world.request(scale(60)).is_err());
}
