use std::collections::BTreeMap;

use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use rcluster_api::wire::v1;

use super::*;
use crate::core::dataplane::compile;
use crate::core::links::{ROUTER_MAC, Underlay};
use crate::core::picture::{Attachment, Attachments, Membership, Picture};

pub fn endpoint(task_id: &str, node_id: &str, ip: &str) -> v1::EndpointView {
    v1::EndpointView {
        task_id: task_id.into(),
        node_id: node_id.into(),
        ip: ip.into(),
        serving: true,
        names: vec!["web".into()],
        task: format!("web.{task_id}"),
    }
}

/// Two networks; on `front` a task here and two behind n2, on `back` one behind n3.
pub fn view(revision: u64) -> v1::NetView {
    let node = |id: &str, addr: &str| v1::NodeView { id: id.into(), name: id.into(), addr: addr.into(), incarnation: 1 };
    let network = |id: &str, name: &str, vni: u32, subnet: &str, endpoints: Vec<v1::EndpointView>| v1::NetworkView {
        id: id.into(),
        name: name.into(),
        vni,
        subnet: subnet.into(),
        internal: false,
        names: vec!["web".into()],
        endpoints,
    };
    v1::NetView {
        term: 1,
        revision,
        node_id: "n1".into(),
        nodes: vec![node("n1", "10.90.0.101"), node("n2", "10.90.0.102"), node("n3", "10.90.0.103")],
        networks: vec![
            network(
                "net-a",
                "front",
                4097,
                "10.128.0.0/24",
                vec![endpoint("t1", "n1", "10.128.0.2"), endpoint("t2", "n2", "10.128.0.3"), endpoint("t3", "n2", "10.128.0.4")],
            ),
            network("net-b", "back", 4098, "10.128.1.0/24", vec![endpoint("t4", "n3", "10.128.1.2")]),
        ],
    }
}

fn underlay() -> Underlay {
    Underlay { addr: Ipv4Addr::new(10, 90, 0, 101), overlay_mtu: 1450 }
}

fn attached(task: &str, networks: &[(&str, [u8; 4])]) -> Attachments {
    let networks = networks.iter().map(|(id, ip)| Membership { network_id: (*id).to_owned(), ip: Ipv4Addr::from(*ip) }).collect();
    BTreeMap::from([(task.to_owned(), Attachment { networks })])
}

fn wanted(view: &v1::NetView, attachments: &Attachments) -> Dataplane {
    compile(&Picture::parse(view).0, attachments, &underlay())
}

fn obey(mut kernel: Dataplane, plan: &Plan) -> Dataplane {
    for op in plan.add.iter().chain(&plan.remove) {
        kernel.absorb(op);
    }
    kernel
}

#[test]
fn from_nothing_rules_come_first_and_elements_last() {
    let plan = plan(&wanted(&view(1), &attached("t1", &[("net-a", [10, 128, 0, 2])])), &Dataplane::default());
    assert_eq!(
        plan.to_string(),
        "load rules
prepare resolver
enable forwarding
add pod t1
add veth p6d9291118c81 mac 02:72:00:00:00:01 mtu 1450 up to t1/eth0
add vxlan v4097 vni 4097 from 10.90.0.101 port 4789 mac 02:76:0a:5a:00:65 mtu 1450 up
add vxlan v4098 vni 4098 from 10.90.0.101 port 4789 mac 02:76:0a:5a:00:65 mtu 1450 up
configure t1/eth0 10.128.0.2
set neighbour 10.128.0.2 is 02:70:0a:80:00:02 on p6d9291118c81
set neighbour 10.90.0.102 is 02:76:0a:5a:00:66 on v4097
set neighbour 10.90.0.103 is 02:76:0a:5a:00:67 on v4098
set forward 02:76:0a:5a:00:66 to 10.90.0.102 on v4097
set forward 02:76:0a:5a:00:67 to 10.90.0.103 on v4098
set route 0.0.0.0/0 on lo
set route 10.128.0.2/32 on p6d9291118c81
set route 10.128.0.3/32 via 10.90.0.102 on v4097
set route 10.128.0.4/32 via 10.90.0.102 on v4097
set route 10.128.1.2/32 via 10.90.0.103 on v4098
add element sources { p6d9291118c81 . 10.128.0.2 }
add element members { p6d9291118c81 : 4097 }
add element members { v4097 : 4097 }
add element members { v4098 : 4098 }
add element exits { 4097 . p6d9291118c81 }
add element exits { 4097 . v4097 }
add element exits { 4098 . v4098 }
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
    let plan = plan(&wanted(&view(1), &Attachments::new()), &wanted(&view(1), &attached("t1", &[("net-a", [10, 128, 0, 2])])));
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
remove element exits { 4098 . v4098 }
remove route 10.128.1.2/32 via 10.90.0.103 on v4098
remove neighbour 10.90.0.103 on v4098
remove forward 02:76:0a:5a:00:67 to 10.90.0.103 on v4098
remove device v4098
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
fn a_lost_pin_of_a_living_pod_is_not_replaced_by_an_empty_namespace() {
    let wanted = wanted(&view(1), &attached("t1", &[("net-a", [10, 128, 0, 2])]));
    let mut observed = wanted.clone();
    observed.pods.clear();
    assert!(plan(&wanted, &observed).is_empty());
}

/// A few networks with endpoints on a few nodes, and pods here on some of them; `steady` pods have the same interface on the same network
/// each time they appear, as it is in life.
fn any_wanted(steady: bool) -> impl Strategy<Value = Dataplane> {
    let endpoints = proptest::collection::btree_map(2_u8..40, 1_usize..4, 0..12);
    let networks = proptest::collection::btree_map(0_u8..4, endpoints, 0..4);
    let pods = proptest::collection::btree_map(0_u8..5, proptest::collection::btree_set(0_u8..4, 0..3), 0..5);
    (networks, pods, prop_oneof![Just(1450_u32), Just(8950)]).prop_map(move |(networks, pods, overlay_mtu)| {
        let mut wire = v1::NetView { term: 1, revision: 1, node_id: "n1".into(), nodes: view(1).nodes, networks: Vec::new() };
        for (net, endpoints) in &networks {
            let endpoints =
                endpoints.iter().map(|(host, node)| endpoint(&format!("t{host}"), &format!("n{node}"), &format!("10.128.{net}.{host}")));
            wire.networks.push(v1::NetworkView {
                id: format!("net{net}"),
                name: format!("net{net}"),
                vni: u32::from(*net) + 1,
                subnet: format!("10.128.{net}.0/24"),
                endpoints: endpoints.collect(),
                ..Default::default()
            });
        }
        let attachments: Attachments = pods
            .iter()
            .map(|(pod, nets)| {
                let member = |net: &u8| Membership { network_id: format!("net{net}"), ip: Ipv4Addr::new(10, 128, *net, 100 + pod) };
                let fixed = [pod % 4, (pod + 1) % 4];
                let networks = if steady { fixed.iter().take(nets.len()).map(member).collect() } else { nets.iter().map(member).collect() };
                (format!("pod{pod}"), Attachment { networks })
            })
            .collect();
        compile(&Picture::parse(&wire).0, &attachments, &Underlay { overlay_mtu, ..underlay() })
    })
}

/// Corrupts a dataplane: what is chosen by `seed` is dropped, altered or joined by strangers.
fn corrupt(mut kernel: Dataplane, seed: u64) -> Dataplane {
    let mut bits = seed;
    let mut coin = move || {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bits >> 60 == 0
    };
    kernel.forwarding = !coin();
    kernel.resolver = !coin();
    if coin() {
        kernel.rules.rules.pop();
    }
    for name in kernel.links.keys().cloned().collect::<Vec<_>>() {
        if coin() {
            kernel.absorb(&Op::RemoveLink { name });
        }
    }
    kernel.links.values_mut().for_each(|link| link.up = !coin());
    kernel.routes.retain(|_, _| !coin());
    kernel.neighbours.retain(|_, _| !coin());
    kernel.neighbours.values_mut().filter(|_| coin()).for_each(|mac| *mac = ROUTER_MAC);
    kernel.forwards.retain(|_| !coin());
    kernel.elements.retain(|_| !coin());
    kernel.pods.values_mut().flat_map(|pod| pod.values_mut()).filter(|_| coin()).for_each(|end| end.routes.clear());
    if coin() {
        kernel.elements.insert(Element::Source { link: "p000000000000".into(), ip: Ipv4Addr::new(1, 2, 3, 4) });
    }
    if coin() {
        let stale = Route::Via { link: "v1".into(), gateway: Ipv4Addr::new(10, 90, 0, 7) };
        kernel.routes.insert(Ipv4Net::from(Ipv4Addr::new(10, 128, 0, 250)), stale);
    }
    kernel
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

    #[test]
    fn one_plan_is_enough_whatever_the_kernel_held(wanted in any_wanted(false), held in any_wanted(false), seed in any::<u64>()) {
        let kernel = corrupt(held, seed);
        let after = obey(kernel.clone(), &plan(&wanted, &kernel));
        prop_assert_eq!(&after, &wanted);
        prop_assert!(plan(&wanted, &after).is_empty());
    }

    #[test]
    fn nothing_that_stays_is_touched(wanted in any_wanted(true), held in any_wanted(true)) {
        let plan = plan(&wanted, &held);
        for op in plan.add.iter().chain(&plan.remove) {
            let touched = match op {
                Op::LoadRules | Op::PrepareResolver | Op::EnableForwarding => true,
                Op::AddPod { task } | Op::RemovePod { task } => held.pods.contains_key(task) && wanted.pods.contains_key(task),
                Op::SetRoute { to, route } => held.routes.get(to) == Some(route),
                Op::RemoveRoute { to, .. } => wanted.routes.contains_key(to),
                Op::SetForward(forward) => held.forwards.contains(forward),
                Op::RemoveForward(forward) => wanted.forwards.contains(forward),
                Op::AddElement(element) => held.elements.contains(element),
                Op::RemoveElement(element) => wanted.elements.contains(element),
                Op::RemoveLink { name } => wanted.links.get(name).is_some_and(|link| held.links.get(name) == Some(link)),
                _ => false,
            };
            prop_assert!(!touched, "{}", op);
        }
    }
}
