use super::*;
use crate::core::plan::tests::view;
use crate::kernel::fake::Fake;

struct Bench {
    owner: Owner<Fake>,
    _dir: tempfile::TempDir,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    Bench { owner: start(dir.path(), Fake::default(), false), _dir: dir }
}

fn start(dir: &std::path::Path, kernel: Fake, adopted: bool) -> Owner<Fake> {
    let underlay = Underlay { addr: std::net::Ipv4Addr::new(10, 90, 0, 101), overlay_mtu: 1450 };
    let store = Store::new(dir, dir);
    Owner::start(Parts { kernel, store, shared: Arc::default(), pins: dir.join("netns"), underlay, adopted }).unwrap()
}

fn request(task_id: &str, ip: &str) -> v1::AttachRequest {
    v1::AttachRequest { task_id: task_id.into(), networks: vec![v1::AttachNetwork { network_id: "net-a".into(), ip: ip.into() }] }
}

#[test]
fn the_kernel_holds_what_the_picture_says_and_a_restart_finds_nothing_to_do() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(3)).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    assert_eq!(owner.kernel.held, owner.wanted());
    let mut kernel = std::mem::take(&mut owner.kernel);
    kernel.obeyed.clear();
    let restarted = start(_dir.path(), kernel, true);
    assert_eq!(restarted.kernel.obeyed, Vec::<String>::new());
    assert_eq!((restarted.repairs, restarted.picture.version()), (0, (1, 3)));
}

#[test]
fn an_attach_that_fails_leaves_nothing_and_works_later() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    let before = owner.kernel.held.clone();
    for refuses in ["add pod", "add veth", "configure", "set neighbour 10.128.0.2", "set route 10.128.0.2", "add element sources"] {
        owner.kernel.refuses = Some(refuses);
        let refusal = owner.attach(&request("t1", "10.128.0.2")).unwrap_err();
        assert!(matches!(&refusal, Refusal::Failed(why) if why.contains(refuses)), "{refusal}");
        // The device goes with its namespace; a check would remove what stayed.
        owner.kernel.refuses = None;
        assert!(owner.attachments.is_empty());
        assert_eq!(owner.kernel.held, before, "{refuses}");
    }
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
}

#[test]
fn another_networks_trouble_does_not_keep_a_pod_from_starting() {
    let Bench { mut owner, _dir } = bench();
    owner.kernel.refuses = Some("add vxlan v4098");
    let response = owner.apply_view(&view(1)).unwrap();
    assert!(response.problems[0].starts_with("add vxlan v4098"), "{:?}", response.problems);
    owner.attach(&request("t1", "10.128.0.2")).unwrap();

    // And it is tried again: after one tick, then after two more, and so on.
    owner.tick();
    owner.tick();
    assert!(!owner.kernel.held.links.contains_key("v4098"));
    owner.kernel.refuses = None;
    owner.tick();
    assert!(owner.kernel.held.links.contains_key("v4098"));
    assert!(owner.problems().is_empty());
}

#[test]
fn drift_is_mended_at_the_regular_check_and_counted() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    owner.kernel.held.routes.clear();
    for _ in 0..CHECK_TICKS - 1 {
        owner.tick();
    }
    assert!(owner.kernel.held.routes.is_empty());
    owner.tick();
    assert_eq!(owner.kernel.held, owner.wanted());
    assert_eq!(owner.repairs, 4);
}

#[test]
fn without_a_picture_nothing_of_a_living_pod_is_removed() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    std::fs::remove_file(_dir.path().join("picture.json")).unwrap();
    let held = owner.kernel.held.clone();
    let restarted = start(_dir.path(), std::mem::take(&mut owner.kernel), true);
    assert_eq!(restarted.kernel.held, held);
}

#[test]
fn a_device_that_outlives_its_namespace_is_given_time_and_then_removed() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    let (name, link) = owner.kernel.held.links.iter().find(|(name, _)| name.starts_with('p')).map(|(n, l)| (n.clone(), l.clone())).unwrap();
    owner.detach("t1").unwrap();
    owner.kernel.held.links.insert(name.clone(), link);
    owner.apply_view(&view(2)).unwrap();
    owner.check();
    for _ in 1..LEAVING_TICKS {
        owner.tick();
    }
    assert!(owner.kernel.held.links.contains_key(&name));
    owner.tick();
    assert!(!owner.kernel.held.links.contains_key(&name));
    assert!(owner.leaving.is_empty());
}

#[test]
fn an_address_in_two_places_stays_with_the_pod_here_and_is_told() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    owner.attach(&request("t9", "10.128.0.3")).unwrap();
    let response = owner.apply_view(&view(2)).unwrap();
    assert_eq!(
        response.problems,
        ["10.128.0.3 is attached here by task t9, but the picture gives it to task t2 behind 10.90.0.102; the pod here keeps it"]
    );
}

#[test]
fn a_node_with_a_new_id_begins_a_new_order_of_pictures() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(9)).unwrap();
    assert_eq!(owner.apply_view(&view(8)).unwrap().revision, 9);
    let mut renamed = view(1);
    renamed.node_id = "n7".into();
    assert_eq!(owner.apply_view(&renamed).unwrap().revision, 1);
}
