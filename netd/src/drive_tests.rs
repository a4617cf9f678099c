use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::*;
use crate::core::flows::{Flow, Transport};
use crate::core::names::{Answer, Kind};
use crate::core::plan::tests::view;
use crate::core::published::tests as ports;
use crate::core::rules::elements::SetName;
use crate::core::uplink::Forwarding;
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
    let underlay = Underlay { addr: std::net::Ipv4Addr::new(10, 90, 0, 101), overlay_mtu: 1450, forwarding: Forwarding::Netd };
    let store = Store::start(dir, dir).unwrap();
    Owner::start(Parts { kernel, store, shared: Arc::default(), pins: dir.join("netns"), underlay, adopted }).unwrap()
}

impl Owner<Fake> {
    fn apply_view(&mut self, view: &v1::NetView) -> Result<v1::ApplyViewResponse, Refusal> {
        self.read_view(view).map(|read| self.obey(read))
    }
}

fn request(task_id: &str, ip: &str) -> v1::AttachRequest {
    let networks = vec![v1::AttachNetwork { network_id: "net-a".into(), ip: ip.into() }];
    v1::AttachRequest { task_id: task_id.into(), networks, ..Default::default() }
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
    let (before, names) = (owner.kernel.held.clone(), owner.names.clone());
    for refuses in ["add pod", "add veth", "configure", "set neighbour 10.128.0.2", "set route 10.128.0.2", "add element sources"] {
        owner.kernel.refuses = Some(refuses);
        let refusal = owner.attach(&request("t1", "10.128.0.2")).unwrap_err();
        assert!(matches!(&refusal, Refusal::Failed(why) if why.contains(refuses)), "{refusal}");
        // The device goes with its namespace; a check would remove what stayed.
        owner.kernel.refuses = None;
        assert!(owner.attachments.is_empty());
        assert_eq!(owner.kernel.held, before, "{refuses}");
        assert_eq!(owner.names, names, "{refuses}");
    }
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
}

/// What the pod at 10.128.0.9 is answered when it asks for `web`.
fn web(owner: &Owner<Fake>) -> Vec<u8> {
    let board = owner.shared.board.load();
    match names::lookup(&board.by_address[&Ipv4Addr::new(10, 128, 0, 9)].sight, "web", Kind::Address) {
        Answer::Addresses(addresses) => addresses.iter().map(|ip| ip.octets()[3]).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_device_that_is_still_silent_is_told_of_and_not_waited_for() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    let veth = crate::core::links::veth_name("t1", "net-a");
    owner.kernel.quiet.insert(veth.clone());
    let (reply, mut answer) = oneshot::channel();
    owner.handle(Command::Attach { request: request("t1", "10.128.0.2"), reply });
    let attached = answer.try_recv().unwrap().unwrap();
    assert_eq!(attached.without_carrier, std::slice::from_ref(&veth));
    let (reply, mut answer) = oneshot::channel();
    owner.handle(Command::WithoutCarrier { links: vec![veth], reply });
    assert_eq!(answer.try_recv().unwrap(), Vec::<String>::new());
}

#[test]
fn a_pod_is_named_from_attach_to_detach_and_not_until_the_next_picture() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    owner.attach(&request("t9", "10.128.0.9")).unwrap();
    assert_eq!(web(&owner), [3, 4]);
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    assert_eq!(web(&owner), [2, 3, 4]);
    owner.detach("t1", 0).unwrap();
    assert_eq!(web(&owner), [3, 4]);
    owner.apply_view(&view(2)).unwrap();
    assert_eq!(web(&owner), [3, 4]);
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    let mut restarted = start(_dir.path(), std::mem::take(&mut owner.kernel), true);
    assert_eq!(web(&restarted), [2, 3, 4]);
    restarted.detach("t1", 0).unwrap();
    assert_eq!(web(&restarted), [3, 4]);
}

#[test]
fn a_pod_that_has_left_is_not_named_any_more_and_goes_on_until_it_is_detached() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    owner.attach(&request("t9", "10.128.0.9")).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    let held = owner.kernel.held.clone();
    owner.leave("t1").unwrap();
    owner.leave("t1").unwrap();
    owner.leave("never").unwrap();
    assert_eq!(web(&owner), [3, 4]);
    owner.apply_view(&view(2)).unwrap();
    assert_eq!(web(&owner), [3, 4], "a picture from before it does not bring it back");
    assert_eq!(owner.kernel.held, held);
    let mut restarted = start(_dir.path(), std::mem::take(&mut owner.kernel), true);
    assert_eq!(web(&restarted), [3, 4]);
    restarted.detach("t1", 0).unwrap();
    assert!(!restarted.kernel.held.pods.contains_key("t1"));
}

#[test]
fn a_pod_that_is_detached_lingers_for_its_time_also_over_a_restart() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    owner.attach(&request("t9", "10.128.0.9")).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    let held = owner.kernel.held.clone();
    owner.detach("t1", 1000).unwrap();
    assert_eq!((web(&owner), owner.status().attachments.len()), (vec![3, 4], 1));
    assert_eq!(owner.kernel.held, held);
    owner.tick();
    assert_eq!(owner.kernel.held, held, "the first tick may have come at once");
    let mut restarted = start(_dir.path(), std::mem::take(&mut owner.kernel), true);
    restarted.tick();
    assert_eq!(restarted.kernel.held, held, "it begins anew");
    restarted.detach("t1", 1000).unwrap();
    restarted.tick();
    assert!(!restarted.kernel.held.pods.contains_key("t1"), "asking again does not put it off");
    assert_eq!(restarted.kernel.held, restarted.wanted());
}

#[test]
fn whoever_gets_the_address_of_a_pod_that_lingers_has_it_at_once() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    owner.detach("t1", 60_000).unwrap();
    owner.attach(&request("t8", "10.128.0.2")).unwrap();
    assert!(!owner.kernel.held.pods.contains_key("t1") && owner.kernel.held.pods.contains_key("t8"));
    owner.detach("t8", 60_000).unwrap();
    let mut moved = view(2);
    for endpoint in moved.networks[0].endpoints.iter_mut().filter(|endpoint| endpoint.ip == "10.128.0.2") {
        (endpoint.task_id, endpoint.node_id) = ("t7".into(), "n2".into());
    }
    owner.apply_view(&moved).unwrap();
    assert!(!owner.kernel.held.pods.contains_key("t8"));
    assert_eq!(owner.problems(), Vec::<String>::new());
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
    assert_eq!(owner.repairs, 6);
}

#[test]
fn what_a_regular_check_finds_and_cannot_mend_is_tried_again_soon() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    owner.kernel.held.routes.clear();
    owner.kernel.refuses = Some("set route 10.128.1.2");
    for _ in 0..CHECK_TICKS {
        owner.tick();
    }
    assert_eq!(owner.problems().len(), 1);
    owner.kernel.refuses = None;
    owner.tick();
    assert_eq!(owner.kernel.held, owner.wanted());
}

#[test]
fn a_picture_is_answered_before_the_kernel_is_read_back_and_one_that_is_given_again_after_it() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    owner.look();
    owner.kernel.held.routes.clear();
    owner.apply_view(&view(2)).unwrap();
    assert!(owner.kernel.held.routes.is_empty(), "it is believed to hold them");
    assert!(owner.looks.due().is_some());
    owner.look();
    assert_eq!((owner.kernel.held.clone(), owner.repairs), (owner.wanted(), 6));
    assert_eq!(owner.looks.due(), None);
    owner.kernel.held.routes.clear();
    owner.apply_view(&view(2)).unwrap();
    assert_eq!((owner.kernel.held.clone(), owner.repairs), (owner.wanted(), 12));
}

#[test]
fn what_others_change_is_looked_at_and_whoever_noticed_it_is_told() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    owner.look();
    owner.kernel.held.elements.clear();
    let (done, mut told) = oneshot::channel();
    owner.handle(Command::Look { news: News { changed: true, ..News::default() }, done });
    assert!(owner.looks.due().is_some() && told.try_recv().is_err());
    owner.look();
    assert_eq!(owner.kernel.held, owner.wanted());
    assert!(told.try_recv().is_ok());
}

#[test]
fn the_hosts_own_ways_are_read_when_they_change_and_kept_between() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    let told = |owner: &Owner<Fake>| owner.status().network.unwrap().routes;
    let shut = |owner: &Owner<Fake>| owner.kernel.held.elements.keys().filter(|key| key.set == SetName::Inside).count();
    assert_eq!((told(&owner), shut(&owner)), (vec![], 2));
    owner.kernel.routes = ["0.0.0.0/0", "10.200.0.0/16"].map(|net| net.parse().unwrap()).to_vec();
    assert_eq!(told(&owner), Vec::<String>::new(), "a status asks the kernel for none");
    owner.look();
    let (done, _answer) = oneshot::channel();
    owner.handle(Command::Look { news: News { routes: true, ..News::default() }, done });
    owner.look();
    assert_eq!((told(&owner), shut(&owner)), (vec!["10.200.0.0/16".to_owned()], 3));
    // Also under another picture.
    owner.apply_view(&view(2)).unwrap();
    assert_eq!((told(&owner), shut(&owner)), (vec!["10.200.0.0/16".to_owned()], 3));
}

#[test]
fn a_device_that_goes_with_its_pod_is_no_reason_to_look_and_any_other_is() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    owner.look();
    let veth = crate::core::links::veth_name("t1", "net-a");
    let mut gone = |link: &str| {
        let (done, mut told) = oneshot::channel();
        owner.handle(Command::Look { news: News { gone: [link.to_owned()].into(), ..News::default() }, done });
        told.try_recv().is_ok()
    };
    assert!(!gone(&veth), "its pod is here");
    assert!(!gone("v4097"));
    owner.look();
    owner.detach("t1", 0).unwrap();
    let (done, mut told) = oneshot::channel();
    owner.handle(Command::Look { news: News { gone: [veth].into(), ..News::default() }, done });
    assert!(told.try_recv().is_ok() && owner.looks.due().is_none());
    assert!(owner.leaving.is_empty());
}

#[test]
fn what_a_picture_could_not_bring_is_told_with_the_answer() {
    let Bench { mut owner, _dir } = bench();
    owner.kernel.refuses = Some("set route 10.128.1.2");
    let problems = owner.apply_view(&view(1)).unwrap().problems;
    assert!(problems.len() == 1 && problems[0].starts_with("set route 10.128.1.2/32"), "{problems:?}");
    owner.kernel.refuses = None;
    assert_eq!(owner.apply_view(&view(2)).unwrap().problems, Vec::<String>::new());
    assert_eq!(owner.kernel.held, owner.wanted());
}

/// What both hold.
fn in_both(one: &Dataplane, other: &Dataplane) -> Vec<String> {
    let mut other = things(other);
    other.sort();
    things(one).into_iter().filter(|text| other.binary_search(text).is_ok()).collect()
}

/// Everything that packets depend on, as text.
fn things(held: &Dataplane) -> Vec<String> {
    let links = held.links.keys().map(|name| format!("device {name}"));
    let routes = held.routes.iter().map(|(to, route)| format!("route {to} {route}"));
    let neighbours = held.neighbours.keys().map(|(link, ip)| format!("neighbour {ip} on {link}"));
    let forwards = held.forwards.iter().map(|forward| format!("forward {forward}"));
    let elements = held.elements.iter().map(|(key, data)| format!("element {key:?} {data:?}"));
    let pods = held.pods.keys().map(|task| format!("pod {task}"));
    links.chain(routes).chain(neighbours).chain(forwards).chain(elements).chain(pods).collect()
}

#[test]
fn killed_at_work_on_a_picture_it_goes_on_from_the_one_that_was_answered_and_takes_away_nothing_that_is_in_both() {
    let mut second = view(2);
    second.networks[0].endpoints.remove(2);
    second.networks[0].endpoints.push(crate::core::plan::tests::endpoint("t5", "n3", "10.128.0.7"));
    second.networks[1].endpoints.clear();
    for lives in 0.. {
        let Bench { mut owner, _dir } = bench();
        owner.apply_view(&view(1)).unwrap();
        owner.attach(&request("t1", "10.128.0.2")).unwrap();
        let both = in_both(&owner.wanted(), &compile(&Picture::parse(&second).0, &owner.attachments, &owner.underlay));
        assert!(both.len() > 10 && both.len() < things(&owner.wanted()).len());
        owner.kernel.lives = Some(lives);
        let work = std::panic::AssertUnwindSafe(|| drop(owner.apply_view(&second).unwrap()));
        let Err(payload) = std::panic::catch_unwind(work) else {
            assert!(lives > 5, "the second picture took {lives} operations");
            assert_eq!(start(_dir.path(), std::mem::take(&mut owner.kernel), true).picture.revision, 2);
            return;
        };
        let held = *payload.downcast::<Dataplane>().unwrap();
        let gone = |held: &Dataplane| {
            let mut now = things(held);
            now.sort();
            both.iter().find(|thing| now.binary_search(thing).is_err()).cloned()
        };
        assert_eq!(gone(&held), None, "killed after {lives}");
        let restarted = start(_dir.path(), Fake { held, ..Fake::default() }, true);
        assert_eq!((gone(&restarted.kernel.held), restarted.picture.revision), (None, 1), "killed after {lives}, and started");
        assert_eq!(restarted.kernel.held, restarted.wanted(), "killed after {lives}, and started");
    }
}

#[test]
fn a_picture_that_was_answered_is_in_force_after_a_kill_whatever_the_disk_has() {
    let Bench { mut owner, _dir } = bench();
    for revision in 1..20 {
        owner.apply_view(&view(revision)).unwrap();
        // The old one is still there, and may be writing.
        let restarted = start(_dir.path(), Fake::default(), true);
        assert_eq!(restarted.picture.revision, revision);
    }
}

#[test]
fn without_a_picture_nothing_of_a_living_pod_is_removed() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    let held = owner.kernel.held.clone();
    let kernel = std::mem::take(&mut owner.kernel);
    drop(owner);
    for file in ["picture.json", "picture.now.json"] {
        std::fs::remove_file(_dir.path().join(file)).unwrap();
    }
    let restarted = start(_dir.path(), kernel, true);
    assert_eq!(restarted.kernel.held, held);
}

#[test]
fn while_nobody_speaks_nothing_is_changed() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(3)).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    owner.attach(&request("t9", "10.128.0.9")).unwrap();
    let held = owner.kernel.held.clone();
    owner.kernel.obeyed.clear();
    for _ in 0..3 * CHECK_TICKS {
        owner.handle(Command::Tick);
    }
    assert_eq!(owner.kernel.obeyed, Vec::<String>::new());
    assert_eq!((owner.kernel.held, owner.picture.version(), owner.repairs), (held, (1, 3), 0));
}

/// The service `web` on net-a with an address, and endpoints at these last octets: even ones here, odd ones on n2.
fn balanced(revision: u64, lasts: &[u8]) -> v1::NetView {
    let mut balanced = view(revision);
    let endpoint = |last: &u8| {
        let node = if last.is_multiple_of(2) { "n1" } else { "n2" };
        let plain = crate::core::plan::tests::endpoint(&format!("t{last}"), node, &format!("10.128.0.{last}"));
        v1::EndpointView { service_id: "web".into(), ..plain }
    };
    balanced.networks[0].endpoints = lasts.iter().map(endpoint).collect();
    balanced.services.push(v1::ServiceView {
        id: "web".into(),
        name: "web".into(),
        mode: v1::EndpointMode::Vip.into(),
        vips: vec![v1::VipView { network_id: "net-a".into(), ip: "10.128.0.200".into(), names: vec!["web".into()] }],
        ..Default::default()
    });
    balanced
}

/// Whether all is held that was held `before` and is `after`.
fn keeps(held: &Dataplane, before: &Dataplane, after: &Dataplane) -> bool {
    fn all<K: Ord, V: PartialEq>(held: &BTreeMap<K, V>, before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> bool {
        before.iter().all(|(key, value)| after.get(key) != Some(value) || held.get(key) == Some(value))
    }
    all(&held.links, &before.links, &after.links)
        && all(&held.neighbours, &before.neighbours, &after.neighbours)
        && all(&held.routes, &before.routes, &after.routes)
        && all(&held.elements, &before.elements, &after.elements)
        && all(&held.pods, &before.pods, &after.pods)
        && before.forwards.intersection(&after.forwards).all(|forward| held.forwards.contains(forward))
        && before.host.peers.intersection(&after.host.peers).all(|node| held.host.peers.contains(node))
}

/// What the work comes to, or what the kernel holds when netd is killed at it.
fn survives<T>(work: impl FnOnce() -> T) -> Result<T, Box<Dataplane>> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| match payload.downcast::<Dataplane>() {
        Ok(held) => held,
        Err(other) => resume_unwind(other),
    })
}

/// netd is killed after each number of operations that `deed` takes, started again and killed after as many, and started once more: what stays is
/// never touched, and the deed then comes to the same as undisturbed.
fn killed_after_every_operation(prepare: impl Fn(&mut Owner<Fake>), deed: impl Fn(&mut Owner<Fake>)) {
    let Bench { mut owner, _dir } = bench();
    prepare(&mut owner);
    let before = owner.kernel.held.clone();
    deed(&mut owner);
    let after = owner.kernel.held.clone();
    assert_ne!(before, after);
    for lives in 0.. {
        let Bench { mut owner, _dir } = bench();
        prepare(&mut owner);
        owner.kernel.lives = Some(lives);
        let Err(killed) = survives(|| deed(&mut owner)) else {
            assert!(lives > 0, "it took no operation");
            return;
        };
        assert!(keeps(&killed, &before, &after), "killed after {lives}: {:?}", owner.kernel.obeyed);
        let restart = |held: Dataplane, lives| survives(|| start(_dir.path(), Fake { held, lives, ..Fake::default() }, true));
        let mut owner = restart(*killed, Some(lives)).unwrap_or_else(|killed| {
            assert!(keeps(&killed, &before, &after), "killed after {lives}, and again");
            restart(*killed, None).unwrap_or_else(|_| panic!("nobody kills it"))
        });
        assert!(keeps(&owner.kernel.held, &before, &after), "killed after {lives}, and started");
        owner.kernel.lives = None;
        deed(&mut owner);
        assert_eq!(owner.kernel.held, after, "killed after {lives}");
        owner.kernel.obeyed.clear();
        owner.check();
        assert_eq!(owner.kernel.obeyed, Vec::<String>::new(), "killed after {lives}");
    }
}

#[test]
fn killed_after_any_operation_it_goes_on_and_what_stays_is_never_touched() {
    let applies = |view: v1::NetView| move |owner: &mut Owner<Fake>| drop(owner.apply_view(&view).unwrap());
    let attaches = |task: &'static str, ip: &'static str| move |owner: &mut Owner<Fake>| drop(owner.attach(&request(task, ip)).unwrap());
    let first = || applies(balanced(1, &[2, 3, 4]));
    let running = || {
        let (applies, one, two) = (first(), attaches("t2", "10.128.0.2"), attaches("t4", "10.128.0.4"));
        move |owner: &mut Owner<Fake>| {
            applies(owner);
            one(owner);
            two(owner);
        }
    };
    let mut other = balanced(2, &[2, 5, 6, 7]);
    other.networks[1].id = "net-c".into();
    (other.networks[1].vni, other.networks[1].subnet) = (4099, "10.128.2.0/24".into());
    other.networks[1].endpoints[0].ip = "10.128.2.2".into();
    killed_after_every_operation(|_| {}, first());
    killed_after_every_operation(running(), applies(other));
    killed_after_every_operation(running(), attaches("t9", "10.128.0.9"));
    killed_after_every_operation(running(), |owner: &mut Owner<Fake>| owner.leave("t4").unwrap());
    killed_after_every_operation(running(), |owner: &mut Owner<Fake>| owner.detach("t4", 0).unwrap());
}

#[test]
fn a_device_that_outlives_its_namespace_is_given_time_and_then_removed() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    let (name, link) = owner.kernel.held.links.iter().find(|(name, _)| name.starts_with('p')).map(|(n, l)| (n.clone(), l.clone())).unwrap();
    owner.detach("t1", 0).unwrap();
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
    assert_eq!(owner.repairs, 0, "nobody has broken anything");
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

#[test]
fn connections_of_a_service_are_forgotten_when_their_endpoint_goes_and_at_the_regular_check() {
    let Bench { mut owner, _dir } = bench();
    let mut balanced = view(1);
    balanced.networks[0].endpoints.iter_mut().for_each(|endpoint| endpoint.service_id = "web".into());
    balanced.services.push(v1::ServiceView {
        id: "web".into(),
        name: "web".into(),
        mode: v1::EndpointMode::Vip.into(),
        vips: vec![v1::VipView { network_id: "net-a".into(), ip: "10.128.0.8".into(), names: vec!["web".into()] }],
        ..Default::default()
    });
    let flow = |last: u8| Flow {
        transport: Transport::Udp,
        source: (Ipv4Addr::new(10, 128, 0, 9), 4000),
        destination: (Ipv4Addr::new(10, 128, 0, 8), 53),
        server: Ipv4Addr::new(10, 128, 0, last),
        id: last.into(),
        zone: 0,
    };
    let servers = |owner: &Owner<Fake>| owner.kernel.flows.iter().map(|flow| flow.server.octets()[3]).collect::<Vec<u8>>();
    owner.apply_view(&balanced).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    owner.kernel.flows = [2, 3, 4].map(flow).to_vec();
    balanced.revision = 2;
    owner.apply_view(&balanced).unwrap();
    assert_eq!(servers(&owner), [2, 3, 4]);
    balanced.revision = 3;
    balanced.networks[0].endpoints[1].serving = false;
    owner.apply_view(&balanced).unwrap();
    assert_eq!(servers(&owner), [2, 4]);
    owner.detach("t1", 0).unwrap();
    assert_eq!(servers(&owner), [4]);
    owner.kernel.flows.push(flow(3));
    owner.check();
    assert_eq!(servers(&owner), [4]);
}

#[test]
fn nothing_of_who_had_an_address_is_left_to_who_has_it_next() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    let flow = |source: u8, server: u8| Flow {
        transport: Transport::Tcp,
        source: (Ipv4Addr::new(10, 128, 0, source), 4000),
        destination: (Ipv4Addr::new(10, 128, 0, server), 80),
        server: Ipv4Addr::new(10, 128, 0, server),
        id: u32::from(source) << 8 | u32::from(server),
        zone: 0,
    };
    let all = [flow(2, 3), flow(3, 2), flow(4, 3), flow(4, 9)];
    let left = |owner: &Owner<Fake>| owner.kernel.flows.iter().map(|flow| flow.id).collect::<Vec<u32>>();
    owner.kernel.flows = all.to_vec();
    owner.detach("t1", 0).unwrap();
    assert_eq!(left(&owner), [all[2].id, all[3].id], "no service has an address of its own");
    let mut next = view(2);
    next.networks[0].endpoints[1].task_id = "t7".into();
    owner.apply_view(&next).unwrap();
    assert_eq!(left(&owner), [all[3].id]);
}

#[test]
fn a_node_is_dead_when_the_managers_say_so_and_it_does_not_answer() {
    let Bench { mut owner, _dir } = bench();
    let node = Ipv4Addr::new(10, 90, 0, 102);
    let mut down = view(1);
    for endpoint in down.networks[0].endpoints.iter_mut().filter(|endpoint| endpoint.node_id == "n2") {
        endpoint.serving = false;
        endpoint.state = v1::EndpointState::Dead.into();
    }
    let dead = |owner: &Owner<Fake>| owner.kernel.held.elements.keys().filter(|key| key.set == SetName::Dead).count();
    owner.kernel.answering.insert(node);
    owner.apply_view(&down).unwrap();
    owner.tick();
    assert_eq!(dead(&owner), 0, "it is cut off from the managers alone");
    owner.kernel.answering.clear();
    owner.tick();
    assert_eq!(dead(&owner), 2);
    owner.kernel.answering.insert(node);
    down.revision = 2;
    owner.apply_view(&down).unwrap();
    assert_eq!(dead(&owner), 2, "it is not asked again");
    owner.apply_view(&view(3)).unwrap();
    assert_eq!(dead(&owner), 0);
}

/// What the node has and is not to have, and what it lacks, as `+ kind text | value` and `- …`.
fn differences(owner: &mut Owner<Fake>, request: &v1::DumpRequest) -> Vec<String> {
    let v1::DumpResponse { wanted, held, .. } = owner.dump(request).unwrap();
    let line = |sign: char, v1::NetEntry { kind, text, value }: &v1::NetEntry| format!("{sign} {kind} {text} | {value}");
    let surplus = held.iter().filter(|entry| !wanted.contains(entry)).map(|entry| line('+', entry));
    surplus.chain(wanted.iter().filter(|entry| !held.contains(entry)).map(|entry| line('-', entry))).collect()
}

/// A pod here on a network that has a virtual address.
fn audited() -> Bench {
    let Bench { mut owner, _dir } = bench();
    let mut view = view(1);
    view.networks[0].endpoints.iter_mut().for_each(|endpoint| endpoint.service_id = "web".into());
    view.services.push(v1::ServiceView {
        id: "web".into(),
        name: "web".into(),
        mode: v1::EndpointMode::Vip.into(),
        vips: vec![v1::VipView { network_id: "net-a".into(), ip: "10.128.0.8".into(), names: vec!["web".into()] }],
        ..Default::default()
    });
    owner.apply_view(&view).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    Bench { owner, _dir }
}

/// What is done to what is held, and what differs then.
type Break<'a> = (&'a dyn Fn(&mut Dataplane), &'a [&'a str]);

#[test]
fn a_dump_of_what_is_in_order_differs_in_nothing_and_one_of_what_is_broken_in_that_alone() {
    let plain = v1::DumpRequest::default();
    let link = crate::core::links::veth_name("t1", "net-a");
    let remote: ipnet::Ipv4Net = "10.128.0.3/32".parse().unwrap();
    let breaks: [Break<'_>; 12] = [
        (&|held| held.resolver = false, &["- device lo | up with 169.254.53.53"]),
        (
            &|held| held.links.retain(|name, _| name != "v4098"),
            &["- device v4098 | vxlan vni 4098 from 10.90.0.101 port 4789 mac 02:76:0a:5a:00:65 mtu 1450 up"],
        ),
        (
            &|held| held.links.get_mut("up").unwrap().up = false,
            &["+ device up | uplink mac 02:72:00:00:00:02 mtu 1450 down", "- device up | uplink mac 02:72:00:00:00:02 mtu 1450 up"],
        ),
        (&|held| held.pods.get_mut("t1").unwrap().clear(), &["- pod t1/eth0 | "]),
        (&|held| drop(held.neighbours.pop_last()), &["- neighbour 10.90.0.103 on v4098 | 02:76:0a:5a:00:67"]),
        (&|held| drop(held.forwards.pop_last()), &["- forward 02:76:0a:5a:00:67 to 10.90.0.103 on v4098 | "]),
        (&|held| drop(held.routes.remove(&remote)), &["- route 10.128.0.3/32 | via 10.90.0.102 on v4097"]),
        (&|held| drop(held.elements.pop_first()), &["- element sources { "]),
        (
            &|held| held.rules.rules.retain(|rule| rule != "leave: oifname up masquerade random-fully"),
            &["- rule leave: oifname up masquerade random-fully | "],
        ),
        (
            &|held| held.rules.chains.retain(|chain| !chain.starts_with("answer ")),
            &["- rule chain answer filter hook 3 priority -300 policy 1 | "],
        ),
        (&|held| held.host.peers.retain(|peer| peer.octets()[3] != 103), &["- host peer 10.90.0.103 | "]),
        (&|held| held.host.forwarding = false, &["- host forwarding | "]),
    ];
    for (deed, expected) in breaks {
        let Bench { mut owner, _dir } = audited();
        assert_eq!(differences(&mut owner, &plain), Vec::<String>::new());
        deed(&mut owner.kernel.held);
        let found = differences(&mut owner, &plain);
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        // The name of a device that is a hash is not told here.
        assert!(found.iter().zip(expected).all(|(found, expected)| found.starts_with(expected)), "{found:#?}");
    }
    let Bench { mut owner, _dir } = audited();
    owner.kernel.held.routes.insert("10.128.0.99/32".parse().unwrap(), crate::core::neighbours::Route::Link { link });
    let found = differences(&mut owner, &plain);
    assert!(found.len() == 1 && found[0].starts_with("+ route 10.128.0.99/32 | on p"), "{found:?}");
}

#[test]
fn a_dump_tells_of_names_of_connections_and_of_a_view_that_is_not_obeyed() {
    let plain = v1::DumpRequest::default();
    let Bench { mut owner, _dir } = audited();
    let board = owner.shared.board.load_full();
    owner.shared.board.store(Arc::default());
    let found = differences(&mut owner, &plain);
    assert!(!found.is_empty() && found.iter().all(|line| line.starts_with("- name ")), "{found:#?}");
    owner.shared.board.store(board);
    owner.kernel.flows.push(Flow {
        transport: Transport::Udp,
        source: (Ipv4Addr::new(10, 128, 0, 2), 4000),
        destination: (Ipv4Addr::new(10, 128, 0, 8), 53),
        server: Ipv4Addr::new(10, 128, 0, 77),
        id: 1,
        zone: 0,
    });
    assert_eq!(differences(&mut owner, &plain), Vec::<String>::new());
    let with_flows = v1::DumpRequest { conntrack: true, view: None };
    assert_eq!(differences(&mut owner, &with_flows), ["+ flow udp 10.128.0.2:4000 to 10.128.0.8:53 at 10.128.0.77 | "]);

    // The managers have moved t2 to n3 and made t9 here, which the node does not know.
    let mut newer = view(2);
    newer.networks[0].endpoints[1].node_id = "n3".into();
    newer.networks[0].endpoints.push(crate::core::plan::tests::endpoint("t9", "n1", "10.128.0.9"));
    newer.services.clear();
    let found = differences(&mut owner, &v1::DumpRequest { conntrack: false, view: Some(newer.clone()) });
    for line in [
        "+ route 10.128.0.3/32 | via 10.90.0.102 on v4097",
        "- route 10.128.0.3/32 | via 10.90.0.103 on v4097",
        "+ name web.front.internal | 10.128.0.8",
        "- name web.front.internal | 10.128.0.2 10.128.0.3 10.128.0.4",
        "- endpoint 10.128.0.9 on front | t9",
    ] {
        assert!(found.contains(&line.to_owned()), "{line} is not among {found:#?}");
    }
    assert_eq!(owner.picture.version(), (1, 1), "it is not in force for having been looked at");
    newer.node_id = "n2".into();
    let refusal = owner.dump(&v1::DumpRequest { conntrack: false, view: Some(newer) }).unwrap_err();
    assert_eq!(refusal.to_string(), "the view is for node n2, and this is n1");
}

#[test]
fn a_dump_tells_what_published_ports_lack_and_not_of_those_that_others_have() {
    let Bench { mut owner, _dir } = bench();
    let view = ports::numbered(1, vec![ports::published(v1::IngressPolicy::Spread)]);
    owner.kernel.taken.insert(Opening { transport: Transport::Tcp, port: 8080 }, "nginx (pid 812)".into());
    owner.apply_view(&view).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    let by_view = v1::DumpRequest { conntrack: false, view: Some(view) };
    assert_eq!(differences(&mut owner, &by_view), Vec::<String>::new());
    owner.kernel.taken.clear();
    owner.tick();
    assert_eq!(differences(&mut owner, &by_view), Vec::<String>::new());
    let held = &mut owner.kernel.held;
    (held.ingress, held.detours) = (None, BTreeMap::new());
    held.selectors.pop_last();
    held.host.ports.clear();
    assert_eq!(
        differences(&mut owner, &by_view),
        [
            "- device ing, its address | 169.254.192.1, for any source",
            "- route of table 100002 | via 10.90.0.102 on ing",
            "- route of table 100003 | via 10.90.0.103 on ing",
            "- selector mark 0x1000003/0xffffffff to table 100003 at 1000 | ",
            "- host tcp port 8080 | ",
        ]
    );
}

#[test]
fn a_trace_is_of_a_pod_that_is_here() {
    let Bench { owner, _dir } = audited();
    let trace = |task_id: &str, target: &str| owner.trace(&v1::TraceRequest { task_id: task_id.into(), target: target.into() });
    let found = trace("t1", "10.128.0.3:80").unwrap();
    assert_eq!(found.verdict, "delivered to task web.t2 behind 10.90.0.102 at 10.128.0.3");
    assert_eq!(trace("t2", "web").unwrap_err().to_string(), "task t2 is not attached on this node");
    assert!(matches!(trace("t1", ""), Err(Refusal::Invalid(_))));
}

#[test]
fn what_is_wrong_with_paths_and_with_connection_tracking_is_told() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    let (reply, mut due) = oneshot::channel();
    owner.handle(Command::Paths { reply });
    let (asked, mtu) = due.try_recv().unwrap();
    let addresses: Vec<String> = asked.iter().map(ToString::to_string).collect();
    assert_eq!((addresses.join(" "), mtu), ("10.90.0.102 10.90.0.103".to_owned(), 1500));
    let narrow = BTreeSet::from([Ipv4Addr::new(10, 90, 0, 103)]);
    owner.handle(Command::Narrow { asked, narrow });
    let conditions = |owner: &mut Owner<Fake>| owner.status().network.unwrap().conditions;
    let told = conditions(&mut owner);
    assert!(told.len() == 1 && told[0].starts_with("packets of 1500 bytes do not reach 10.90.0.103, "), "{told:?}");
    let flow = |id: u32| Flow {
        transport: Transport::Tcp,
        source: (Ipv4Addr::new(10, 128, 0, 9), 4000),
        destination: (Ipv4Addr::new(192, 0, 2, 1), 80),
        server: Ipv4Addr::new(192, 0, 2, 1),
        id,
        zone: 0,
    };
    owner.kernel.flows = (0..81).map(flow).collect();
    assert_eq!(conditions(&mut owner).len(), 1, "not before the regular check");
    owner.check();
    assert!(conditions(&mut owner)[1].starts_with("more than 80 % of the 100 connections"), "{:?}", conditions(&mut owner));
    owner.kernel.flows.truncate(80);
    owner.check();
    assert_eq!(conditions(&mut owner).len(), 1);
}

/// The elements of the router that say where tcp port 8080 leads, and what the host does with it.
fn led(owner: &Owner<Fake>) -> (usize, usize, usize) {
    let behind = owner.kernel.held.elements.keys().filter(|key| key.set == SetName::Behind).count();
    (behind, owner.kernel.held.host.ports.len(), owner.kernel.targets.values().map(Vec::len).sum())
}

#[test]
fn a_port_that_somebody_else_has_is_told_of_withheld_and_published_when_it_is_free() {
    let Bench { mut owner, _dir } = bench();
    let opening = Opening { transport: Transport::Tcp, port: 8080 };
    owner.kernel.taken.insert(opening, "nginx (pid 812)".into());
    let response = owner.apply_view(&ports::numbered(1, vec![ports::published(v1::IngressPolicy::Spread)])).unwrap();
    let problem = "tcp port 8080 is taken on this host by nginx (pid 812); service web is not published here";
    assert_eq!(response.problems, [problem]);
    assert_eq!(led(&owner), (0, 0, 0));
    let network = owner.status().network.unwrap();
    let held: Vec<_> = network.held_ports.iter().map(|held| (held.protocol(), held.port, held.by.as_str())).collect();
    assert_eq!(held, [(v1::Protocol::Tcp, 8080, "nginx (pid 812)")]);

    owner.kernel.taken.clear();
    owner.tick();
    assert_eq!(owner.problems(), Vec::<String>::new());
    assert_eq!(led(&owner), (2, 1, 2));
    assert_eq!(owner.kernel.held, owner.wanted());
    assert!(owner.status().network.unwrap().held_ports.is_empty());
}

#[test]
fn a_published_port_leads_to_a_pod_here_from_attach_until_it_leaves() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&ports::numbered(1, vec![ports::published(v1::IngressPolicy::Local)])).unwrap();
    assert_eq!(led(&owner), (0, 1, 0), "the port is kept, and refused");
    let times = owner.kernel.led;
    let mut elsewhere = request("t9", "10.128.1.9");
    elsewhere.networks[0].network_id = "net-b".into();
    owner.attach(&elsewhere).unwrap();
    assert_eq!(owner.kernel.led, times, "nothing is behind the port there");
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    assert_eq!(led(&owner), (1, 1, 1));
    let mut restarted = start(_dir.path(), std::mem::take(&mut owner.kernel), true);
    assert_eq!((led(&restarted), restarted.repairs), ((1, 1, 1), 0));
    restarted.leave("t1").unwrap();
    assert_eq!(led(&restarted), (0, 1, 0));
    restarted.apply_view(&view(2)).unwrap();
    assert!(restarted.kernel.held.host.ports.is_empty() && restarted.kernel.targets.is_empty());
}
