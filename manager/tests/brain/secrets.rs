//! Secrets and configs: who is told of them, who is replaced when they change, what is refused.

use rcluster_api::data::{DataKind, DataSpec, Payload};
use rcluster_api::object::Kind;
use rcluster_api::spec::{ServiceSpec, Spec};
use rcluster_manager::core::control::Request;
use rcluster_manager::core::dispatch::assignments::used_data;
use serde_json::json;

use crate::world::World;

fn secret(name: &str, bytes: Option<&str>) -> (Spec, u64) {
    let data = bytes.map(|bytes| Payload(bytes.as_bytes().to_vec()));
    let spec = DataSpec { kind: DataKind::Secret, name: name.to_owned(), stack: String::new(), labels: [].into(), data };
    (Spec::Data(spec), 0)
}

fn service(name: &str, replicas: u32, secrets: &[&str]) -> (Spec, u64) {
    let spec = json!({"replicas": replicas, "containers": [{"image": "i", "secrets": secrets}], "update": {"parallelism": 0}});
    (Spec::Service(ServiceSpec { name: name.to_owned(), ..serde_json::from_value(spec).unwrap() }), 0)
}

fn apply(world: &mut World, specs: Vec<(Spec, u64)>) -> Result<(), String> {
    world.request(Request::Apply(specs)).map(drop)
}

/// Two nodes; web, whose one task uses the secret db, and api, which uses nothing.
fn world() -> World {
    let mut world = World::new(7);
    world.node("n1", &[]);
    world.node("n2", &[]);
    apply(&mut world, vec![service("web", 1, &["db"]), service("api", 1, &[]), secret("db", Some("one"))]).unwrap();
    world.settle();
    world
}

#[test]
fn a_node_is_told_of_the_secrets_of_its_tasks_alone() {
    let mut world = world();
    apply(&mut world, vec![secret("unused", Some("x"))]).unwrap();
    let told = |node: &str| used_data(&world.state, &node.into()).values().map(|data| data.spec.name.clone()).collect::<Vec<_>>();
    let (with, without) = if world.task("web.1").node == "n1" { ("n1", "n2") } else { ("n2", "n1") };
    assert_eq!((told(with), told(without)), (vec!["db".to_owned()], vec![]), "{}", world.picture());
}

#[test]
fn other_bytes_replace_the_tasks_of_those_who_use_them() {
    let mut world = world();
    let versions = |world: &World| ["web", "api"].map(|name| world.state.find_service(name).unwrap().spec_version);
    apply(&mut world, vec![secret("db", Some("one"))]).unwrap();
    apply(&mut world, vec![secret("db", None)]).unwrap();
    assert_eq!(versions(&world), [1, 1], "the same bytes, and none given");
    apply(&mut world, vec![secret("db", Some("two"))]).unwrap();
    assert_eq!(versions(&world), [2, 1]);
    world.settle();
    assert_eq!((world.task("web.1").spec_version, world.running("web")), (2, 1));
    apply(&mut world, vec![service("web", 2, &["db"]), secret("db", Some("three"))]).unwrap();
    assert_eq!(versions(&world), [3, 1], "scaled in the same request");
    assert_eq!(world.state.find_service("web").unwrap().spec.replicas(), 2);
    let data = world.state.find_data(DataKind::Secret, "db").unwrap();
    assert_eq!((data.digest.clone(), data.size), (Payload(b"three".to_vec()).digest(), 5));
}

#[test]
fn what_cannot_be_is_refused() {
    let mut world = world();
    let mut refuse = |specs: Vec<(Spec, u64)>, expected: &str| assert_eq!(apply(&mut world, specs).unwrap_err(), expected);
    refuse(vec![service("new", 1, &["db", "dv"])], "containers[0].secrets[1]: secret dv of service new does not exist (did you mean db?)");
    refuse(
        vec![service("new", 1, &["certificate"])],
        "containers[0].secrets[0]: secret certificate of service new does not exist (make it with `rclusterctl secret create certificate \
         FILE`, or in the same files)",
    );
    refuse(
        vec![secret("new", None)],
        "data: secret new does not exist, and no data is given (give data (base64), or in a manifest text or file)",
    );
    let large = "a".repeat(512_001);
    refuse(
        vec![secret("new", Some(&large))],
        "data: secret new has 512001 bytes, more than the limit of 512000 (split it, or keep it on a volume or in the image)",
    );
    let remove = |world: &mut World, refs: &[(Kind, &str)]| {
        world.request(Request::Remove(refs.iter().map(|(kind, name)| (*kind, (*name).to_owned())).collect()))
    };
    assert_eq!(
        remove(&mut world, &[(Kind::Secret, "db")]).unwrap_err(),
        "secret db is used by web (remove those services first, or in the same command)"
    );
    remove(&mut world, &[(Kind::Config, "db")]).unwrap_err();
    remove(&mut world, &[(Kind::Secret, "db"), (Kind::Service, "web")]).unwrap();
    assert!(world.state.find_data(DataKind::Secret, "db").is_none());
}
