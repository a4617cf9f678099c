use std::net::Ipv4Addr;
use std::path::Path;

use super::*;
use crate::core::fixtures::{balanced, flow, numbered, published, underlay, view};
use crate::core::flows::{Flow, Transport};
use crate::core::links::veth_name;
use crate::core::names::{Answer, Kind};
use crate::core::rules::elements::SetName;
use crate::core::uplink::{Guards, HostRules};
use crate::kernel::fake::Fake;

pub(super) struct Bench {
    pub(super) owner: Owner<Fake>,
    pub(super) _dir: tempfile::TempDir,
}

pub(super) fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    Bench { owner: start(dir.path(), Fake::default(), false), _dir: dir }
}

pub(super) fn start(dir: &Path, kernel: Fake, adopted: bool) -> Owner<Fake> {
    let store = Store::start(dir, dir).unwrap();
    Owner::start(Parts { kernel, store, shared: Arc::default(), pins: dir.join("netns"), underlay: underlay(Forwarding::Netd), adopted })
        .unwrap()
}

impl Owner<Fake> {
    pub(super) fn apply_view(&mut self, view: &v1::NetView) -> Result<v1::ApplyViewResponse, Refusal> {
        self.read_view(view).map(|read| self.obey(read))
    }
}

pub(super) fn request(task_id: &str, ip: &str) -> v1::AttachRequest {
    let networks = vec![v1::AttachNetwork { network_id: "net-a".into(), ip: ip.into() }];
    v1::AttachRequest { task_id: task_id.into(), networks, ..Default::default() }
}

#[test]
fn the_kernel_holds_what_the_picture_says_and_a_restart_finds_nothing_to_do() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(3)).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    assert_eq!(owner.kernel.held, owner.wanted());
    let mut kernel = mem::take(&mut owner.kernel);
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
    let veth = veth_name("t1", "net-a");
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
fn a_pod_is_not_attached_for_one_who_waits_no_longer() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    let (reply, answer) = oneshot::channel();
    drop(answer);
    owner.handle(Command::Attach { request: request("t1", "10.128.0.2"), reply });
    assert_eq!(owner.status().attachments, []);
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
    let mut restarted = start(_dir.path(), mem::take(&mut owner.kernel), true);
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
    let mut restarted = start(_dir.path(), mem::take(&mut owner.kernel), true);
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
    let mut restarted = start(_dir.path(), mem::take(&mut owner.kernel), true);
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
    let told = |owner: &mut Owner<Fake>| owner.status().network.unwrap().routes;
    let shut = |owner: &Owner<Fake>| owner.kernel.held.elements.keys().filter(|key| key.set == SetName::Inside).count();
    assert_eq!((told(&mut owner), shut(&owner)), (vec![], 2));
    owner.kernel.routes = ["0.0.0.0/0", "10.200.0.0/16"].map(|net| net.parse().unwrap()).to_vec();
    assert_eq!(told(&mut owner), Vec::<String>::new(), "a status asks the kernel for none");
    owner.look();
    let (done, _answer) = oneshot::channel();
    owner.handle(Command::Look { news: News { routes: true, ..News::default() }, done });
    owner.look();
    assert_eq!((told(&mut owner), shut(&owner)), (vec!["10.200.0.0/16".to_owned()], 3));
    // Also under another picture.
    owner.apply_view(&view(2)).unwrap();
    assert_eq!((told(&mut owner), shut(&owner)), (vec!["10.200.0.0/16".to_owned()], 3));
}

#[test]
fn a_host_that_others_made_forward_ipv6_before_netd_had_to_goes_on_for_them() {
    let mut wire = view(1);
    wire.networks[0].subnet6 = "fd00:1::/64".into();
    for (forwards, six) in [(true, false), (false, true)] {
        let Bench { mut owner, _dir } = bench();
        owner.kernel.host_six = HostSix { forwards, routes: vec!["::/0".parse().unwrap()], ..HostSix::default() };
        owner.read_routes();
        owner.apply_view(&wire).unwrap();
        // What netd has turned on itself it reads back.
        owner.kernel.host_six.forwards = true;
        owner.read_routes();
        owner.apply_view(&v1::NetView { revision: 2, ..wire.clone() }).unwrap();
        assert_eq!(owner.kernel.held.host.rules, HostRules::Ours(Guards { four: true, six }));
    }
}

#[test]
fn a_device_that_goes_with_its_pod_is_no_reason_to_look_and_any_other_is() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    owner.look();
    let veth = veth_name("t1", "net-a");
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

#[test]
fn without_a_picture_nothing_of_a_living_pod_is_removed() {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&view(1)).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    let held = owner.kernel.held.clone();
    let kernel = mem::take(&mut owner.kernel);
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
    let mut balanced = balanced(1);
    let flow = |last: u8| Flow { id: last.into(), ..flow(Transport::Udp, [10, 128, 0, 9], ([10, 128, 0, 8], 53), [10, 128, 0, last]) };
    let servers = |owner: &Owner<Fake>| owner.kernel.flows.iter().map(|flow| flow.id).collect::<Vec<u32>>();
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
    let flow = |client: u8, server: u8| {
        let straight = flow(Transport::Tcp, [10, 128, 0, client], ([10, 128, 0, server], 80), [10, 128, 0, server]);
        Flow { id: u32::from(client) << 8 | u32::from(server), ..straight }
    };
    let all = [flow(2, 3), flow(3, 2), flow(4, 3), flow(4, 9)];
    let left = |owner: &Owner<Fake>| owner.kernel.flows.iter().map(|flow| flow.id).collect::<Vec<u32>>();
    owner.kernel.flows = all.to_vec();
    owner.kernel.clings = true;
    owner.detach("t1", 0).unwrap();
    assert_eq!(left(&owner).len(), 4);
    owner.kernel.clings = false;
    owner.check();
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

#[test]
fn a_pod_of_an_encrypted_network_waits_for_its_tunnel_and_the_key_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut owner = start(dir.path(), Fake { no_encryption: Some("no module"), ..Fake::default() }, false);
    let mut wire = numbered(1, Vec::new());
    (wire.key_epoch, wire.networks[0].encrypted) = (1, true);
    owner.apply_view(&wire).unwrap();
    let told = |owner: &mut Owner<Fake>| {
        let network = owner.status().network.unwrap();
        (network.no_encryption, network.wireguard_keys.iter().map(|key| (key.epoch, key.port)).collect::<Vec<_>>())
    };
    assert_eq!(told(&mut owner), ("no module".to_owned(), vec![]));
    let refusal = owner.attach(&request("t1", "10.128.0.2")).unwrap_err();
    let expected = "network front is encrypted, and this node has no part in it: no module";
    assert!(matches!(&refusal, Refusal::NotYet(why) if why == expected), "{refusal}");

    owner.kernel.no_encryption = None;
    owner.kernel.refuses = Some("add tunnel");
    (0..CHECK_TICKS).for_each(|_| owner.handle(Command::Tick));
    let refusal = owner.attach(&request("t1", "10.128.0.2")).unwrap_err();
    assert!(matches!(&refusal, Refusal::NotYet(why) if why.ends_with("its tunnel is not there")), "{refusal}");

    owner.kernel.refuses = None;
    (0..CHECK_TICKS).for_each(|_| owner.handle(Command::Tick));
    assert_eq!(told(&mut owner), (String::new(), vec![(1, 51821)]));
    assert_eq!(owner.attach(&request("t1", "10.128.0.2")).unwrap().mtu, 1390);
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
    let flow = |id: u32| Flow { id, ..flow(Transport::Tcp, [10, 128, 0, 9], ([192, 0, 2, 1], 80), [192, 0, 2, 1]) };
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
    let response = owner.apply_view(&numbered(1, vec![published(v1::IngressPolicy::Spread)])).unwrap();
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
    owner.apply_view(&numbered(1, vec![published(v1::IngressPolicy::Local)])).unwrap();
    assert_eq!(led(&owner), (0, 1, 0), "the port is kept, and refused");
    let times = owner.kernel.led;
    let mut elsewhere = request("t9", "10.128.1.9");
    elsewhere.networks[0].network_id = "net-b".into();
    owner.attach(&elsewhere).unwrap();
    assert_eq!(owner.kernel.led, times, "nothing is behind the port there");
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    assert_eq!(led(&owner), (1, 1, 1));
    let mut restarted = start(_dir.path(), mem::take(&mut owner.kernel), true);
    assert_eq!((led(&restarted), restarted.repairs), ((1, 1, 1), 0));
    restarted.leave("t1").unwrap();
    assert_eq!(led(&restarted), (0, 1, 0));
    restarted.apply_view(&view(2)).unwrap();
    assert!(restarted.kernel.held.host.ports.is_empty() && restarted.kernel.targets.is_empty());
}
