use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use rcluster_api::wire::v1;

use super::*;
use crate::core::dataplane::compile;
use crate::core::fixtures::{attached, endpoint, numbered, published, t1_attached, underlay, view};
use crate::core::links::ROUTER_MAC;
use crate::core::picture::{Attachments, Picture};
use crate::core::rules::{Outline, isolation};
use crate::core::uplink::Forwarding;

fn wanted(view: &v1::NetView, attachments: &Attachments) -> Dataplane {
    compile(&Picture::parse(view).0, attachments, &underlay(Forwarding::Netd))
}

/// Whether the kernel refuses one element of a set of intervals because the set has the other.
fn collide(new: &Key, held: &Key) -> bool {
    let set = new.set.set();
    let ((first, Some(last)), (lowest, Some(highest))) = (set.bounds(&new.bytes), set.bounds(&held.bytes)) else { return false };
    let within = |corner: &[u8]| {
        let mut at = 0;
        set.key.iter().all(|field| {
            let place = at..at + field.padded();
            at = place.end;
            lowest[place.clone()] <= corner[place.clone()] && corner[place.clone()] <= highest[place]
        })
    };
    new.set == held.set && new != held && (within(first) || within(last))
}

/// What a plan leaves behind, where the kernel refuses none of its steps and no port is open before the pair carries what comes by it.
pub(super) fn obey(mut kernel: Dataplane, plan: &Plan) -> Dataplane {
    for op in plan.add.iter().chain(&plan.remove) {
        if let Op::AddElement(element) = op {
            assert!(!kernel.elements.keys().any(|held| collide(&element.key, held)), "{op} beside {:?}", kernel.elements);
        }
        if let Op::OpenPort(_) | Op::OpenPort6(_) = op {
            let six = matches!(op, Op::OpenPort6(_));
            let end = kernel.host.end;
            assert!(end.is_some_and(|end| end.up && end.addressed && (end.six || !six)), "{op} while the pair is {end:?}");
        }
        kernel.absorb(op);
    }
    kernel
}

#[test]
fn from_nothing_rules_come_first_with_their_elements() {
    let plan = plan(&wanted(&view(1), &t1_attached()), &Dataplane::default());
    assert_eq!(
        plan.to_string(),
        "load rules
add element sources { p6d9291118c81 . 10.128.0.2 }
add element members { p6d9291118c81 : 4097 }
add element members { v4097 : 4097 }
add element members { v4098 : 4098 }
add element exits { 4097 . p6d9291118c81 }
add element exits { 4097 . up }
add element exits { 4097 . v4097 }
add element exits { 4098 . up }
add element exits { 4098 . v4098 }
add element entries { 10.90.0.101 }
add element entries { 10.90.0.102 }
add element entries { 10.90.0.103 }
add element inside { 0-255 . 10.128.0.0-10.255.255.255 }
add element inside { 0-255 . 169.254.0.0-169.254.255.255 }
prepare resolver
enable forwarding
mend the rules of routing
load the host's rules
add peer 10.90.0.102
add peer 10.90.0.103
enable the host's forwarding
add pod t1
add veth p6d9291118c81 mac 02:72:00:00:00:01 mtu 1450 up to t1/eth0
add uplink up mac 02:72:00:00:00:02 mtu 1450 up to rcl-up
add vxlan v4097 vni 4097 from 10.90.0.101 port 4789 mac 02:76:0a:5a:00:65 mtu 1450 up
add vxlan v4098 vni 4098 from 10.90.0.101 port 4789 mac 02:76:0a:5a:00:65 mtu 1450 up
configure t1/eth0 10.128.0.2
configure rcl-up mac 02:72:00:00:00:03 mtu 1450
set neighbour 10.128.0.2 is 02:70:0a:80:00:02 on p6d9291118c81
set neighbour 10.90.0.102 is 02:76:0a:5a:00:66 on v4097
set neighbour 10.90.0.103 is 02:76:0a:5a:00:67 on v4098
set forward 02:76:0a:5a:00:66 to 10.90.0.102 on v4097
set forward 02:76:0a:5a:00:67 to 10.90.0.103 on v4098
set route 0.0.0.0/0 via 169.254.54.1 on up
set route 10.128.0.0/24 on lo
set route 10.128.0.2/32 on p6d9291118c81
set route 10.128.0.3/32 via 10.90.0.102 on v4097
set route 10.128.0.4/32 via 10.90.0.102 on v4097
set route 10.128.1.0/24 on lo
set route 10.128.1.2/32 via 10.90.0.103 on v4098
-- dns
"
    );
}

#[test]
fn ipv6_of_a_network_is_every_address_once_more() {
    let pods = t1_attached();
    let mut next = view(2);
    next.networks[0].subnet6 = "fd00:1::/64".into();
    assert_eq!(
        plan(&wanted(&next, &pods), &wanted(&view(1), &pods)).to_string(),
        "mend device p6d9291118c81 mac 02:72:00:00:00:01 mtu 1450 up ipv6
mend device v4097 vni 4097 from 10.90.0.101 port 4789 mac 02:76:0a:5a:00:65 mtu 1450 up ipv6
configure t1/eth0 10.128.0.2
set neighbour fd00:1::a80:2 is 02:70:0a:80:00:02 on p6d9291118c81
set neighbour fe80::a5a:66 is 02:76:0a:5a:00:66 on v4097
set route fd00:1::a80:2/128 on p6d9291118c81
set route fd00:1::a80:3/128 via fe80::a5a:66 on v4097
set route fd00:1::a80:4/128 via fe80::a5a:66 on v4097
add element sources6 { p6d9291118c81 . fd00:1::a80:2 }
add element prefixes6 { up . fd00:1::/64 }
add element prefixes6 { v4097 . fd00:1::/64 }
-- dns
"
    );
}

#[test]
fn a_new_endpoint_on_a_known_node_is_one_route() {
    let mut next = view(2);
    next.networks[0].endpoints.push(endpoint("t5", "n2", "10.128.0.9"));
    let plan = plan(&wanted(&next, &Attachments::new()), &wanted(&view(1), &Attachments::new()));
    assert_eq!(plan.to_string(), "set route 10.128.0.9/32 via 10.90.0.102 on v4097\n-- dns\n");
}

#[test]
fn a_detached_pod_goes_backwards_and_its_namespace_takes_its_device() {
    let plan = plan(&wanted(&view(1), &Attachments::new()), &wanted(&view(1), &t1_attached()));
    assert_eq!(
        plan.to_string(),
        "-- dns
remove element sources { p6d9291118c81 . 10.128.0.2 }
remove element members { p6d9291118c81 : 4097 }
remove element exits { 4097 . p6d9291118c81 }
remove route 10.128.0.2/32 on p6d9291118c81
remove neighbour 10.128.0.2 on p6d9291118c81
remove pod t1
"
    );
}

#[test]
fn a_network_that_is_not_in_the_picture_goes_whole() {
    let mut next = view(2);
    next.networks.truncate(1);
    let plan = plan(&wanted(&next, &Attachments::new()), &wanted(&view(1), &Attachments::new()));
    assert_eq!(
        plan.to_string(),
        "-- dns
remove element members { v4098 : 4098 }
remove element exits { 4098 . up }
remove element exits { 4098 . v4098 }
remove route 10.128.1.0/24 on lo
remove route 10.128.1.2/32 via 10.90.0.103 on v4098
remove neighbour 10.90.0.103 on v4098
remove forward 02:76:0a:5a:00:67 to 10.90.0.103 on v4098
remove device v4098
remove peer 10.90.0.103
"
    );
}

#[test]
fn an_internal_network_has_no_way_out() {
    let mut next = view(2);
    next.networks[1].internal = true;
    let plan = plan(&wanted(&next, &Attachments::new()), &wanted(&view(1), &Attachments::new()));
    assert_eq!(plan.to_string(), "-- dns\nremove element exits { 4098 . up }\n");
}

#[test]
fn an_uplink_that_leads_nowhere_is_made_anew_with_the_route_that_hung_on_it() {
    let wanted = wanted(&view(1), &Attachments::new());
    let mut observed = wanted.clone();
    observed.host.end = None;
    assert_eq!(
        plan(&wanted, &observed).to_string(),
        "remove device up
add uplink up mac 02:72:00:00:00:02 mtu 1450 up to rcl-up
configure rcl-up mac 02:72:00:00:00:03 mtu 1450
set route 0.0.0.0/0 via 169.254.54.1 on up
-- dns
"
    );
}

#[test]
fn the_hosts_rules_are_loaded_with_all_their_peers_and_before_it_forwards() {
    let wanted = wanted(&view(1), &Attachments::new());
    let mut observed = wanted.clone();
    observed.host.rules = HostRules::Other;
    observed.host.forwarding = false;
    observed.host.passage = Passage::Docker;
    assert_eq!(
        plan(&wanted, &observed).to_string(),
        "load the host's rules
add peer 10.90.0.102
add peer 10.90.0.103
enable the host's forwarding
open the passage through iptables
-- dns
"
    );
}

#[test]
fn a_published_port_is_opened_last_and_closed_first() {
    let attachments = t1_attached();
    let mut view = numbered(1, vec![published(v1::IngressPolicy::Mesh)]);
    view.nodes.truncate(2);
    view.networks.truncate(1);
    let open = wanted(&view, &attachments);
    let mut plain = view.clone();
    plain.nodes.iter_mut().for_each(|node| node.number = 0);
    plain.published.clear();
    let closed = wanted(&plain, &attachments);
    assert_eq!(
        plan(&open, &closed).to_string(),
        "add vxlan ing vni 4095 from 10.90.0.101 port 4789 mac 02:76:0a:5a:00:65 mtu 1450 up
configure ing 169.254.192.1
set neighbour 10.90.0.102 is 02:76:0a:5a:00:66 on ing
set forward 02:76:0a:5a:00:66 to 10.90.0.102 on ing
set route of table 100002 via 10.90.0.102 on ing
add rule mark 0x0/0xff000000 to table 254 at 100
add rule mark 0x1000002/0xffffffff to table 100002 at 1000
add element entries { 169.254.54.2 }
add element hairpin { 10.128.0.2 . 10.128.0.2 }
add element outward { 4097 }
add element peers { 02:76:0a:5a:00:66 : 16777218 }
add element zones { 02:76:0a:5a:00:66 : 2 }
add element homes { 10.128.0.3 : 16777218 }
add element homes { 10.128.0.4 : 16777218 }
add element served { 10.128.0.2 . 6 . 80 }
add element behind { 6 . 8080 . 0 : 10.128.0.2 . 80 }
add element ports { 6 . 8080 : goto p1 }
open tcp port 8080
-- dns
"
    );
    assert_eq!(
        plan(&closed, &open).to_string(),
        "-- dns
close tcp port 8080
remove element entries { 169.254.54.2 }
remove element hairpin { 10.128.0.2 . 10.128.0.2 }
remove element outward { 4097 }
remove element peers { 02:76:0a:5a:00:66 : 16777218 }
remove element zones { 02:76:0a:5a:00:66 : 2 }
remove element homes { 10.128.0.3 : 16777218 }
remove element homes { 10.128.0.4 : 16777218 }
remove element served { 10.128.0.2 . 6 . 80 }
remove element behind { 6 . 8080 . 0 : 10.128.0.2 . 80 }
remove element ports { 6 . 8080 : goto p1 }
remove rule mark 0x0/0xff000000 to table 254 at 100
remove rule mark 0x1000002/0xffffffff to table 100002 at 1000
remove route of table 100002 via 10.90.0.102 on ing
remove neighbour 10.90.0.102 on ing
remove forward 02:76:0a:5a:00:66 to 10.90.0.102 on ing
remove device ing
"
    );
}

#[test]
fn of_published_ports_a_part_has_those_with_a_task_here_on_its_networks() {
    let mut view = numbered(1, vec![published(v1::IngressPolicy::Mesh), published(v1::IngressPolicy::Mesh)]);
    view.published[1].ports[0].published = 8081;
    view.published[1].backends.retain(|backend| backend.node_id != "n1");
    let (picture, problems) = Picture::parse(&view);
    assert_eq!(problems, Vec::<String>::new());
    let of =
        |networks: &[&str]| picture.part(&networks.iter().copied().collect()).published.iter().map(|port| port.first).collect::<Vec<_>>();
    assert_eq!((of(&["net-a"]), of(&["net-b"]), of(&["net-a", "net-b"])), (vec![8080], vec![], vec![8080]));
}

#[test]
fn rules_that_are_gone_come_back_with_all_their_elements_and_on_the_host_with_ports_that_led_somewhere() {
    let view = numbered(1, vec![published(v1::IngressPolicy::Mesh)]);
    let wanted = wanted(&view, &t1_attached());
    let mut gone = wanted.clone();
    gone.rules = Outline::default();
    gone.elements.clear();
    (gone.host.rules, gone.host.peers, gone.host.ports) = (HostRules::Other, BTreeSet::new(), BTreeSet::new());
    let steps = plan(&wanted, &gone);
    let (elements, peers) = (wanted.elements.len(), wanted.host.peers.len());
    assert!(steps.add[0] == Op::LoadRules && steps.add[1..=elements].iter().all(|op| matches!(op, Op::AddElement(_))));
    assert_eq!(steps.add[elements + 1], Op::LoadHostRules { guards: Guards { four: true, six: false } });
    assert!(matches!(steps.add[elements + 2 + peers..], [Op::OpenPort(_)]) && steps.remove.is_empty(), "{steps}");
    gone.host.end = None;
    assert!(matches!(plan(&wanted, &gone).add.last(), Some(Op::OpenPort(_))), "and at the end where nothing stands yet");
}

#[test]
fn a_way_out_by_ipv6_comes_with_the_rules_before_it_and_with_all_that_it_takes() {
    let mut wire = view(1);
    wire.networks[0].subnet6 = "fd00:1::/64".into();
    let mut picture = Picture::parse(&wire).0;
    let of = |picture: &Picture| compile(picture, &t1_attached(), &underlay(Forwarding::Netd));
    let without = of(&picture);
    picture.beyond6 = vec!["::/0".parse().unwrap()];
    let with = of(&picture);
    let steps = plan(&with, &without);
    let place = |text: &str| {
        let found = steps.add.iter().position(|op| op.to_string().starts_with(text));
        found.unwrap_or_else(|| panic!("{text} is not in {steps}"))
    };
    let order = [
        "load the host's rules",
        "add peer",
        "enable the host's forwarding of IPv6",
        "mend device up",
        "configure t1/eth0",
        "configure rcl-up",
        "set neighbour fe80::53",
        "set route ::/0 via fe80::53 on up",
    ];
    assert!(order.map(place).is_sorted(), "{steps}");
    let mut held = without.clone();
    held.absorb_all(steps.add.iter().chain(&steps.remove));
    assert!(held == with && steps.remove.is_empty(), "{steps}");
    let back = plan(&without, &held);
    held.absorb_all(back.add.iter().chain(&back.remove));
    assert_eq!((held.routes, held.links, held.pods), (without.routes, without.links, without.pods));
}

#[test]
fn a_port_is_open_by_ipv6_only_once_the_pair_carries_it() {
    let mut wire = numbered(1, vec![published(v1::IngressPolicy::Mesh)]);
    wire.networks[0].subnet6 = "fd00:1::/64".into();
    wire.published[0].backends[1].ip6 = "fd00:1::a80:2".into();
    let mut picture = Picture::parse(&wire).0;
    let of = |picture: &Picture| compile(picture, &t1_attached(), &underlay(Forwarding::Netd));
    let without = of(&picture);
    picture.beyond6 = vec!["::/0".parse().unwrap()];
    let steps = plan(&of(&picture), &without);
    assert_eq!(steps.add.last(), Some(&Op::OpenPort6(picture.published[0].opening(0))), "{steps}");
}

#[test]
fn an_interval_goes_before_one_that_meets_it_comes() {
    let mut view = numbered(1, vec![published(v1::IngressPolicy::Mesh)]);
    let mut allowing = |net: &str| {
        view.published[0].ports[0].allow_from = vec![net.to_owned()];
        wanted(&view, &Attachments::new())
    };
    let (wide, narrow) = (allowing("10.0.0.0/8"), allowing("10.1.0.0/16"));
    assert_eq!(
        plan(&narrow, &wide).to_string(),
        "remove element allowed { 6 . 8080 . 10.0.0.0-10.255.255.255 }
add element allowed { 6 . 8080 . 10.1.0.0-10.1.255.255 }
-- dns
"
    );
}

#[test]
fn a_device_of_the_wrong_kind_is_made_anew_with_all_that_hung_on_it() {
    let wanted = wanted(&view(1), &Attachments::new());
    let mut observed = wanted.clone();
    let wrong = LinkKind::Vxlan { vni: 4098, local: Ipv4Addr::new(10, 90, 0, 9), port: 4789, learning: true };
    observed.links.get_mut("v4098").expect("in the view").kind = wrong;
    assert_eq!(
        plan(&wanted, &observed).to_string(),
        "remove device v4098
add vxlan v4098 vni 4098 from 10.90.0.101 port 4789 mac 02:76:0a:5a:00:65 mtu 1450 up
set neighbour 10.90.0.103 is 02:76:0a:5a:00:67 on v4098
set forward 02:76:0a:5a:00:67 to 10.90.0.103 on v4098
set route 10.128.1.2/32 via 10.90.0.103 on v4098
-- dns
"
    );
}

#[test]
fn a_device_is_readdressed_only_where_its_address_is_another_and_its_neighbours_set_again() {
    let wanted = wanted(&view(1), &t1_attached());
    let mended = |alter: fn(&mut Link)| {
        let mut held = wanted.clone();
        held.links.get_mut("v4097").map(alter).unwrap();
        plan(&wanted, &held).to_string()
    };
    let mend = "mend device v4097 vni 4097 from 10.90.0.101 port 4789 mac 02:76:0a:5a:00:65 mtu 1450 up";
    assert_eq!(mended(|link| link.mtu = 1000), format!("{mend}\n-- dns\n"));
    let neighbour = "set neighbour 10.90.0.102 is 02:76:0a:5a:00:66 on v4097";
    assert_eq!(mended(|link| link.mac = ROUTER_MAC), format!("{mend}\n{neighbour}\n-- dns\n"));
}

#[test]
fn a_lost_pin_of_a_living_pod_is_not_replaced_by_an_empty_namespace() {
    let wanted = wanted(&view(1), &t1_attached());
    let mut observed = wanted.clone();
    observed.pods.clear();
    assert!(plan(&wanted, &observed).is_empty());
}

#[test]
fn an_element_with_other_data_goes_before_it_comes() {
    let wanted = wanted(&view(1), &Attachments::new());
    let mut observed = wanted.clone();
    for link in ["v4097", "v4098"] {
        let member = isolation::member(link, 7);
        observed.elements.insert(member.key, member.data);
    }
    let plan = plan(&wanted, &observed);
    assert_eq!(
        plan.to_string(),
        "remove element members { v4097 : 7 }
remove element members { v4098 : 7 }
add element members { v4097 : 4097 }
add element members { v4098 : 4098 }
-- dns
"
    );
    assert_eq!(obey(observed, &plan), wanted);
}

/// `view(1)` where all of `front` may speak with t2 at these ports.
fn policed(ports: &[(u32, u32)]) -> Dataplane {
    let mut wire = view(1);
    wire.networks[0].endpoints[1].service_id = "db".into();
    let port = |(first, last): &(u32, u32)| v1::PolicyPort { protocol: v1::Protocol::Tcp.into(), first: *first, last: *last };
    let ports = ports.iter().map(port).collect();
    let allow = vec![v1::AllowView { from_all: true, to_service_ids: vec!["db".into()], ports, ..v1::AllowView::default() }];
    wire.networks[0].policy = Some(v1::NetworkPolicyView { allow });
    wanted(&wire, &Attachments::new())
}

#[test]
fn a_policy_comes_before_it_is_in_force_and_what_it_allows_no_more_goes_first_only_if_it_is_in_the_way() {
    let (open, old, new) = (wanted(&view(1), &Attachments::new()), policed(&[(70, 70), (80, 90)]), policed(&[(85, 95)]));
    assert_eq!(
        plan(&old, &open).to_string(),
        "add element allow { 10.128.0.0-10.128.0.255 . 10.128.0.3 . 1 . 0-65535 }
add element allow { 10.128.0.0-10.128.0.255 . 10.128.0.3 . 6 . 70 }
add element allow { 10.128.0.0-10.128.0.255 . 10.128.0.3 . 6 . 80-90 }
add element policed { 4097 }
-- dns
"
    );
    let steps = plan(&new, &old);
    assert_eq!(
        steps.to_string(),
        "remove element allow { 10.128.0.0-10.128.0.255 . 10.128.0.3 . 6 . 80-90 }
add element allow { 10.128.0.0-10.128.0.255 . 10.128.0.3 . 6 . 85-95 }
-- dns
remove element allow { 10.128.0.0-10.128.0.255 . 10.128.0.3 . 6 . 70 }
"
    );
    assert_eq!(obey(old, &steps), new);
}

/// A key that counts how often it is compared.
#[derive(Debug, PartialEq, Eq)]
struct Counted(u32);

static COMPARED: AtomicUsize = AtomicUsize::new(0);

impl Ord for Counted {
    fn cmp(&self, other: &Self) -> Ordering {
        COMPARED.fetch_add(1, Relaxed);
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Counted {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[test]
fn ten_thousand_elements_are_compared_with_as_many_others_in_one_walk() {
    let every = |step: usize, value: u32| -> BTreeMap<Counted, u32> {
        (0..).step_by(step).take(10_000).map(|key| (Counted(key), if key % 5 == 0 { value } else { 0 })).collect()
    };
    let (wanted, held) = (every(2, 1), every(3, 2));
    COMPARED.store(0, Relaxed);
    let mut counts = [0; 3];
    for difference in differences(&wanted, &held) {
        let kind = match difference {
            Difference::Missing(..) => 0,
            Difference::Altered { .. } => 1,
            Difference::Stray(..) => 2,
        };
        counts[kind] += 1;
    }
    // Multiples of 6 below 20,000 are in both, multiples of 30 with different values.
    assert_eq!(counts, [10_000 - 3_334, 667, 10_000 - 3_334]);
    assert!(COMPARED.load(Relaxed) <= 20_000, "{COMPARED:?}");
}

#[test]
fn lost_devices_take_along_what_hangs_on_them_whether_they_go_at_once_or_one_by_one() {
    let mut pods = t1_attached();
    pods.extend(attached("t9", &[("net-a", [10, 128, 0, 9]), ("net-b", [10, 128, 1, 9])]));
    let held = wanted(&view(1), &pods);
    let ops =
        [Op::RemoveLink { name: "v4097".into() }, Op::RemovePod { task: "t9".into() }, Op::RemoveElement(isolation::exit(4098, "v4098"))];
    let mut at_once = held.clone();
    at_once.absorb_all(&ops);
    let one_by_one = ops.iter().fold(held, |mut held, op| {
        held.absorb(op);
        held
    });
    assert_eq!(at_once, one_by_one);
    assert_eq!(at_once.links.keys().collect::<Vec<_>>(), ["p6d9291118c81", "up", "v4098"]);
    assert_eq!(at_once.pods.keys().collect::<Vec<_>>(), ["t1"]);
    let kept = |link: &str| ["p6d9291118c81", "v4098", "lo", "up"].contains(&link);
    assert!(at_once.routes.values().all(|route| kept(route.link())) && at_once.routes.len() == 5, "{:?}", at_once.routes);
    assert!(at_once.neighbours.keys().all(|(link, _)| kept(link)) && at_once.neighbours.len() == 2, "{:?}", at_once.neighbours);
    assert!(at_once.forwards.iter().all(|forward| kept(&forward.link)) && at_once.forwards.len() == 1, "{:?}", at_once.forwards);
}
