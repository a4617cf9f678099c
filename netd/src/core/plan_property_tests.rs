use ipnet::Ipv6Net;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use rcluster_api::network::address6;
use rcluster_api::wire::v1;

use super::tests::obey;
use super::*;
use crate::core::dataplane::{compile, compile_part};
use crate::core::fixtures::{endpoint, key, numbered, published, service, underlay, view};
use crate::core::flows::Transport;
use crate::core::links::{ROUTER_MAC, Underlay};
use crate::core::picture::{Attachment, Attachments, Membership, Picture, Place};
use crate::core::published::Backend;
use crate::core::rules::{egress, isolation};
use crate::core::uplink::Forwarding;

/// A few networks, each with a service whose endpoints are on a few nodes, and pods here on some of them; `steady` pods have the same
/// interface on the same network each time they appear, as it is in life, and nothing of theirs goes out by IPv6.
fn any_wanted(steady: bool) -> impl Strategy<Value = Dataplane> {
    (any_picture(steady), any::<bool>()).prop_map(move |((mut picture, attachments, underlay), has_way)| {
        if has_way && !steady {
            lead_out6(&mut picture);
        }
        compile(&picture, &attachments, &underlay)
    })
}

/// The host has ways by IPv6, and published ports are to be reached by it where their tasks have it.
fn lead_out6(picture: &mut Picture) {
    picture.beyond6 = vec![Ipv6Net::default()];
    for backend in picture.published.iter_mut().flat_map(|published| &mut published.backends) {
        let network = picture.networks.values().find(|network| network.subnet.contains(&backend.ip));
        backend.ip6 = network.and_then(|network| network.subnet6).map(|subnet6| address6(subnet6, backend.ip));
    }
}

/// What such a dataplane comes from.
fn any_picture(steady: bool) -> impl Strategy<Value = (Picture, Attachments, Underlay)> {
    let endpoints = proptest::collection::btree_map(2_u8..40, 1_usize..4, 0..12);
    let networks = proptest::collection::btree_map(0_u8..4, endpoints, 0..4);
    let pods = proptest::collection::btree_map(0_u8..5, proptest::collection::btree_set(0_u8..4, 0..3), 0..5);
    let policies = proptest::collection::btree_map(0_u8..4, (any::<bool>(), 1_u32..4, 0_u32..4), 0..3);
    let mtus = prop_oneof![Just(1450_u32), Just(8950)];
    (networks, pods, policies, mtus, 0_u64..4).prop_map(move |(networks, pods, policies, overlay_mtu, key_epoch)| {
        let numbered = numbered(1, Vec::new());
        let mut wire = v1::NetView { term: 1, revision: 1, node_id: "n1".into(), nodes: numbered.nodes, key_epoch, ..Default::default() };
        for node in &mut wire.nodes {
            node.wireguard_keys = [key_epoch, key_epoch.saturating_sub(1)].map(|epoch| key(node.number, epoch)).to_vec();
        }
        for (net, endpoints) in &networks {
            let endpoints = endpoints.iter().map(|(host, node)| v1::EndpointView {
                service_id: format!("s{net}"),
                state: if host % 7 == 0 { v1::EndpointState::Dead.into() } else { v1::EndpointState::Serving.into() },
                serving: host % 7 != 0,
                ..endpoint(&format!("t{host}"), &format!("n{node}"), &format!("10.128.{net}.{host}"))
            });
            wire.services.push(service(&format!("s{net}"), &format!("net{net}"), &format!("10.128.{net}.250")));
            let mut published = published(v1::IngressPolicy::Spread);
            let port = &mut published.ports[0];
            (port.published, port.count) = (8000 + u32::from(*net), 1);
            port.allow_from = if endpoints.len() < 3 { Vec::new() } else { vec![format!("10.{net}.0.0/16")] };
            published.service_id = format!("s{net}");
            published.backends = endpoints
                .clone()
                .map(|endpoint| v1::BackendView {
                    task_id: endpoint.task_id,
                    node_id: endpoint.node_id,
                    ip: endpoint.ip,
                    state: endpoint.state,
                    ..Default::default()
                })
                .collect();
            wire.published.push(published);
            wire.networks.push(v1::NetworkView {
                id: format!("net{net}"),
                name: format!("net{net}"),
                vni: u32::from(*net) + 1,
                subnet: format!("10.128.{net}.0/24"),
                // Two of them have IPv6, and one of these is encrypted.
                subnet6: if *net < 2 { format!("fd00:{net}::/64") } else { String::new() },
                endpoints: endpoints.collect(),
                encrypted: net % 2 == 1,
                policy: policies.get(net).map(|(all, first, more)| any_policy(format!("s{net}"), *all, (*first, first + more))),
                ..Default::default()
            });
        }
        let attachments: Attachments = pods
            .iter()
            .map(|(pod, nets)| {
                let member = |net: &u8| Membership { network_id: format!("net{net}"), ip: Ipv4Addr::new(10, 128, *net, 100 + pod) };
                let fixed = [pod % 4, (pod + 1) % 4];
                let networks = if steady { fixed.iter().take(nets.len()).map(member).collect() } else { nets.iter().map(member).collect() };
                (format!("pod{pod}"), Attachment { networks, ..Attachment::default() })
            })
            .collect();
        let mut picture = Picture::parse(&wire).0;
        picture.silent = picture.dead_nodes();
        (picture, attachments, Underlay { overlay_mtu, ..underlay(Forwarding::Netd) })
    })
}

/// All, or the service alone, may speak with the service, and a range with all, at these ports.
fn any_policy(service: String, all: bool, (first, last): (u32, u32)) -> v1::NetworkPolicyView {
    let ports = vec![v1::PolicyPort { protocol: v1::Protocol::Tcp.into(), first, last }];
    let from_service_ids = if all { Vec::new() } else { vec![service.clone()] };
    let inside = v1::AllowView { from_all: all, from_service_ids, to_service_ids: vec![service], ports, ..v1::AllowView::default() };
    let outside = v1::AllowView { from_cidrs: vec![format!("192.0.{first}.0/24")], to_all: true, ..inside.clone() };
    v1::NetworkPolicyView { allow: vec![inside, outside] }
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
    kernel.plain_lookup = !coin();
    kernel.host.forwarding = !coin();
    if coin() {
        kernel.host.rules = HostRules::Other;
    }
    if coin() {
        kernel.host.passage = Passage::Docker;
    }
    kernel.host.peers.retain(|_| !coin());
    if coin() {
        kernel.host.peers.insert(Ipv4Addr::new(10, 90, 0, 9));
    }
    kernel.host.ports.retain(|_| !coin());
    kernel.host.ports6.retain(|_| !coin());
    if coin() {
        kernel.host.forwarding6 = Forwards6::No;
    }
    if coin() {
        kernel.host.ports.insert(Opening { transport: Transport::Udp, port: 9 });
    }
    if coin() {
        kernel.host.end = None;
    }
    kernel.host.sealed.retain(|_| !coin());
    kernel.host.fenced &= !coin();
    kernel.host.tunnels.retain(|_, _| !coin());
    kernel.host.tunnels.values_mut().filter(|_| coin()).for_each(|tunnel| tunnel.epoch += 2);
    kernel.host.tunnels.values_mut().filter(|_| coin()).for_each(|tunnel| tunnel.end.up = false);
    kernel.host.tunnels.values_mut().for_each(|tunnel| tunnel.peers.retain(|_, _| !coin()));
    kernel.host.end.iter_mut().filter(|_| coin()).for_each(|end| end.addressed = false);
    kernel.host.end.iter_mut().filter(|_| coin()).for_each(|end| end.six = !end.six);
    if coin() {
        kernel.rules.rules.pop();
    }
    for name in kernel.links.keys().cloned().collect::<Vec<_>>() {
        if coin() {
            kernel.absorb(&Op::RemoveLink { name });
        }
    }
    kernel.links.values_mut().for_each(|link| link.up = !coin());
    kernel.links.values_mut().filter(|_| coin()).for_each(|link| link.mac = Mac([2, 0, 0, 0, 0, 9]));
    kernel.links.values_mut().filter(|_| coin()).for_each(|link| link.mtu = 1000);
    kernel.links.values_mut().filter(|_| coin()).for_each(|link| link.six = !link.six);
    kernel.pods.values_mut().flat_map(|pod| pod.values_mut()).filter(|_| coin()).for_each(|end| end.ip6 = None);
    kernel.routes.retain(|_, _| !coin());
    kernel.detours.retain(|_, _| !coin());
    kernel.routes.values_mut().chain(kernel.detours.values_mut()).filter(|_| coin()).for_each(|route| *route = Route::Otherwise);
    kernel.selectors.retain(|_| !coin());
    if coin() {
        let stray = Selector { preference: 1000, mark: 0x0100_0009, mask: u32::MAX, table: 100_009 };
        kernel.selectors.insert(stray);
        kernel.detours.insert(stray.table, Route::Via { link: "v1".into(), gateway: Ipv4Addr::new(10, 90, 0, 9).into() });
    }
    if coin() {
        kernel.ingress = None;
    }
    kernel.neighbours.retain(|_, _| !coin());
    kernel.neighbours.values_mut().filter(|_| coin()).for_each(|mac| *mac = ROUTER_MAC);
    kernel.forwards.retain(|_| !coin());
    kernel.elements.retain(|_, _| !coin());
    kernel.elements.values_mut().filter(|_| coin()).for_each(|data| data.reverse());
    kernel.pods.values_mut().flat_map(|pod| pod.values_mut()).filter(|_| coin()).for_each(|end| end.routes.clear());
    if coin() {
        let stray = egress::entry(Ipv4Addr::new(10, 90, 0, 9));
        kernel.elements.insert(stray.key, stray.data);
    }
    if coin() {
        let stray = isolation::source("p000000000000", Ipv4Addr::new(1, 2, 3, 4));
        kernel.elements.insert(stray.key, stray.data);
    }
    if coin() {
        let stale = Route::Via { link: "v1".into(), gateway: Ipv4Addr::new(10, 90, 0, 7).into() };
        kernel.routes.insert(IpNet::from(IpAddr::from([10, 128, 0, 250])), stale);
    }
    if coin() {
        kernel.routes.insert(IpNet::from(IpAddr::from([10, 128, 0, 251])), Route::Otherwise);
        kernel.detours.insert(100_010, Route::Otherwise);
    }
    kernel
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

    #[test]
    fn one_plan_is_enough_whatever_the_kernel_held(wanted in any_wanted(false), held in any_wanted(false), seed in any::<u64>()) {
        let kernel = corrupt(held, seed);
        let mut after = obey(kernel.clone(), &plan(&wanted, &kernel));
        prop_assert!(plan(&wanted, &after).is_empty());
        // A host that forwards IPv6 goes on doing so.
        prop_assert!(after.host.forwarding6 >= wanted.host.forwarding6);
        after.host.forwarding6 = wanted.host.forwarding6;
        prop_assert_eq!(&after, &wanted);
    }

    #[test]
    fn a_pods_part_of_the_plan_is_what_the_whole_plan_does_when_it_comes_leaves_or_goes(
        (mut picture, attachments, underlay) in any_picture(false),
        has_way in any::<bool>(),
    ) {
        if has_way {
            lead_out6(&mut picture);
        }
        let here = Picture::parse(&view(1)).0.networks["net-a"].endpoints[&Ipv4Addr::new(10, 128, 0, 2)].clone();
        for (task_id, pod) in &attachments {
            for membership in &pod.networks {
                let Some(network) = picture.networks.get_mut(&membership.network_id) else { continue };
                let mut endpoint = here.clone();
                endpoint.task_id = task_id.as_str().into();
                endpoint.service_id = network.vips.values().next().map(|vip| vip.service_id.as_str().into()).unwrap_or_default();
                network.endpoints.insert(membership.ip, endpoint);
                // Behind the ports of all services, those of other networks too.
                let (task_id, ip, ip6) = (task_id.clone(), membership.ip, network.ip6(membership.ip).filter(|_| has_way));
                let backend = Backend { task_id, ip, ip6, place: Place::Here, serving: true, dead: false };
                picture.published.iter_mut().for_each(|published| published.backends.push(backend.clone()));
            }
        }
        for (task_id, pod) in &attachments {
            let (mut without, mut left) = (attachments.clone(), attachments.clone());
            without.remove(task_id);
            left.insert(task_id.clone(), Attachment { left: true, ..pod.clone() });
            for (before, after) in [(&without, &attachments), (&attachments, &left), (&left, &without)] {
                let part = |pods: &Attachments| compile_part(&picture, pods, &underlay, &pod.network_ids());
                let (held, wanted) = (compile(&picture, before, &underlay), compile(&picture, after, &underlay));
                prop_assert_eq!(plan_part(&part(before), &part(after), &held).to_string(), plan(&wanted, &held).to_string());
            }
        }
    }

    #[test]
    fn nothing_that_stays_is_touched(wanted in any_wanted(true), held in any_wanted(true)) {
        let plan = plan(&wanted, &held);
        for op in plan.add.iter().chain(&plan.remove) {
            let touched = match op {
                Op::LoadRules | Op::PrepareResolver | Op::EnableForwarding => true,
                Op::LoadHostRules { .. } | Op::EnableHostForwarding | Op::OpenPassage | Op::AddUplink { .. } => true,
                Op::EnableHostForwarding6 { .. } | Op::OpenPassage6 => true,
                Op::AddPeer { node } => held.host.peers.contains(node),
                Op::RemovePeer { node } => wanted.host.peers.contains(node),
                Op::SealNetwork { vni } => held.host.sealed.contains(vni),
                Op::UnsealNetwork { vni } => wanted.host.sealed.contains(vni),
                Op::AddTunnel { name, epoch } => held.host.tunnels.get(name).is_some_and(|tunnel| tunnel.epoch == *epoch),
                Op::SetTunnelPeer { name, key, peer } => {
                    let tunnel = held.host.tunnels.get(name).filter(|held| wanted.host.tunnels.get(name).is_some_and(|due| due.epoch == held.epoch));
                    tunnel.is_some_and(|tunnel| tunnel.peers.get(key) == Some(peer))
                }
                Op::AddPod { task } | Op::RemovePod { task } => held.pods.contains_key(task) && wanted.pods.contains_key(task),
                Op::SetRoute { to, route } => held.routes.get(to) == Some(route),
                Op::RemoveRoute { to, .. } => wanted.routes.contains_key(to),
                Op::SetDetour { table, route } => held.detours.get(table) == Some(route),
                Op::RemoveDetour { table, .. } => wanted.detours.contains_key(table),
                Op::AddSelector(selector) => held.selectors.contains(selector),
                Op::RemoveSelector(selector) => wanted.selectors.contains(selector),
                Op::OpenPort(opening) => held.host.ports.contains(opening),
                Op::ClosePort(opening) => wanted.host.ports.contains(opening),
                Op::OpenPort6(opening) => held.host.ports6.contains(opening),
                Op::ClosePort6(opening) => wanted.host.ports6.contains(opening),
                Op::ConfigureIngress { ip } => held.ingress == Some(*ip),
                Op::SetForward(forward) => held.forwards.contains(forward),
                Op::RemoveForward(forward) => wanted.forwards.contains(forward),
                Op::AddElement(element) => held.elements.get(&element.key) == Some(&element.data),
                Op::RemoveElement(element) => wanted.elements.get(&element.key) == Some(&element.data),
                Op::RemoveLink { name } => wanted.links.get(name).is_some_and(|link| held.links.get(name) == Some(link)),
                _ => false,
            };
            prop_assert!(!touched, "{}", op);
        }
    }
}
