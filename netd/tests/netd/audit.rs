//! What a node holds beside what it is to hold: what is broken is named, and nothing else; and the ways of packets, in words.

use std::io::ErrorKind;

use rcluster_api::wire::v1;
use rcluster_netd::core::links::vtep_mac;
use rcluster_netd::core::rules::elements::SetName;
use rcluster_netd::kernel::netlink::Netlink;
use rcluster_netd::kernel::nft;

use crate::support::seen::run;
use crate::support::{Host, Lab, eventually, network};

const VXLAN: &str = "v4096";

/// One network with a pod on each of two hosts and a service's address.
fn audited() -> (Lab, v1::NetView) {
    let lab = Lab::start(2);
    let networks = [network("front", 0, &[("t1", 0, 2), ("t2", 1, 3)])];
    let service = v1::ServiceView {
        id: "web".into(),
        name: "web".into(),
        mode: v1::EndpointMode::Vip.into(),
        vips: vec![v1::VipView { network_id: "net-front".into(), ip: "10.128.0.200".into(), names: vec!["web".into()] }],
        ..Default::default()
    };
    for (index, host) in lab.hosts.iter().enumerate() {
        let view = v1::NetView { services: vec![service.clone()], ..lab.view(index, 1, &networks) };
        assert_eq!(host.apply(view).unwrap().problems, Vec::<String>::new());
    }
    lab.hosts[0].attach("t1", &[("front", "10.128.0.2")]).unwrap();
    lab.hosts[1].attach("t2", &[("front", "10.128.0.3")]).unwrap();
    let view = v1::NetView { services: vec![service], ..lab.view(0, 1, &networks) };
    (lab, view)
}

/// What is there and is not to be as `+ kind text | value`, what is to be there and is not as `- …`.
fn differences(host: &Host, view: &v1::NetView) -> Vec<String> {
    let request = v1::DumpRequest { conntrack: true, view: Some(view.clone()) };
    let v1::DumpResponse { wanted, held, .. } = host.dump(request).unwrap();
    assert!(wanted.len() > 100, "the rules alone are more than that");
    let line = |sign: char, v1::NetEntry { kind, text, value }: &v1::NetEntry| format!("{sign} {kind} {text} | {value}");
    let surplus = held.iter().filter(|entry| !wanted.contains(entry)).map(|entry| line('+', entry));
    surplus.chain(wanted.iter().filter(|entry| !held.contains(entry)).map(|entry| line('-', entry))).collect()
}

/// What differs once that is done. Its netd hears of it and may have mended it by then: it is done until it is seen.
fn after(host: &Host, view: &v1::NetView, deed: impl Fn()) -> Vec<String> {
    let mut found = Vec::new();
    eventually("what is broken is seen", || {
        deed();
        found = differences(host, view);
        !found.is_empty()
    });
    found
}

/// Takes the elements of a set away.
fn empty(set: SetName) {
    let mut rules = Netlink::open(nft::NETLINK_NETFILTER).unwrap();
    let (_, elements) = nft::observe(&mut rules).unwrap();
    for (key, data) in elements.iter().filter(|(key, _)| key.set == set) {
        nft::change(&mut rules, &[nft::Change { add: false, set: set.set(), key: &key.bytes, data }]).unwrap();
    }
}

#[test]
fn each_kind_that_is_broken_is_named_and_nothing_else() {
    let (lab, view) = audited();
    let host = &lab.hosts[0];
    assert_eq!(differences(host, &view), Vec::<String>::new());
    let (local, peer) = (vtep_mac(lab.hosts[0].addr), vtep_mac(lab.hosts[1].addr));
    let vxlan = |mtu: u32| format!("device {VXLAN} | vxlan vni 4096 from 10.90.0.101 port 4789 mac {local} mtu {mtu} up");
    let in_router: [(&str, Vec<String>); 7] = [
        ("ip route del 10.128.0.3/32 proto 114", vec![format!("- route 10.128.0.3/32 | via 10.90.0.102 on {VXLAN}")]),
        ("ip neigh del 10.90.0.102 dev v4096", vec![format!("- neighbour 10.90.0.102 on {VXLAN} | {peer}")]),
        ("FDB", vec![format!("- forward {peer} to 10.90.0.102 on {VXLAN} | ")]),
        ("ip link set v4096 mtu 1400", vec![format!("+ {}", vxlan(1400)), format!("- {}", vxlan(1450))]),
        ("VIPS", vec!["- element vips { 4096 . 10.128.0.200 } | goto r2".to_owned()]),
        ("SYSCTL", vec!["- device all | forwarding, strict about what comes by the uplink".to_owned()]),
        ("ip addr del 169.254.53.53/32 dev lo", vec!["- device lo | up with 169.254.53.53".to_owned()]),
    ];
    for (deed, expected) in in_router {
        let found = after(host, &view, || {
            let fdb = format!("bridge fdb del {peer} dev {VXLAN} dst 10.90.0.102 self");
            host.inside("router", move || match deed {
                "FDB" => run(&fdb),
                "VIPS" => empty(SetName::Vips),
                "SYSCTL" => std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap(),
                command => run(command),
            });
        });
        assert_eq!(found, expected, "{deed}");
        // The same picture again: the router is read back and mended.
        assert_eq!(host.apply(view.clone()).unwrap().problems, Vec::<String>::new());
        assert_eq!(differences(host, &view), Vec::<String>::new(), "after {deed}");
    }
    let found = after(host, &view, || host.here(|| run("ip link set rcl-up mtu 1400")));
    assert!(found.len() == 2 && found.iter().all(|line| line[1..].starts_with(" host rcl-up | mac ")), "{found:#?}");
    host.apply(view.clone()).unwrap();
    let found = after(host, &view, || host.inside("t1", || run("ip link set eth0 mtu 1400")));
    assert!(found.len() == 2 && found.iter().all(|line| line[1..].starts_with(" pod t1/eth0 | 10.128.0.2 ")), "{found:#?}");
}

#[test]
fn a_node_that_has_not_obeyed_yet_differs_from_what_is_wanted_of_it() {
    let (lab, mut view) = audited();
    view.revision = 2;
    view.networks[0].endpoints.pop();
    let found = differences(&lab.hosts[0], &view);
    for line in ["+ route 10.128.0.3/32 | via 10.90.0.102 on v4096", "+ name 3.web.front.internal | 10.128.0.3"] {
        assert!(found.iter().any(|found| found == line), "{line} is not among {found:#?}");
    }
    lab.hosts[0].apply(view.clone()).unwrap();
    assert_eq!(differences(&lab.hosts[0], &view), Vec::<String>::new());
}

#[test]
fn a_trace_goes_the_way_that_packets_go() {
    let (lab, _) = audited();
    let trace = |target: &str| lab.hosts[0].trace("t1", target, v1::Protocol::Unspecified).unwrap().verdict;
    assert_eq!(trace("web:80"), "delivered to task web.2 here at 10.128.0.2; or delivered to task web.3 behind 10.90.0.102 at 10.128.0.3");
    assert_eq!(trace("10.90.0.102"), "refused: 10.90.0.102 is a node, and pods reach nothing of nodes but published ports");
    lab.hosts[0].trace("t2", "web", v1::Protocol::Unspecified).unwrap_err();
}

#[test]
fn a_trace_over_udp_tells_what_a_pod_hears() {
    let (lab, _) = audited();
    let host = &lab.hosts[0];
    let socket = |to: &str| {
        let socket = host.udp("t1", "10.128.0.2:0");
        socket.connect(to).unwrap();
        socket.send(b"x").unwrap();
        socket
    };
    let traced = |to: &str| host.trace("t1", to, v1::Protocol::Udp).unwrap();
    for (to, verdict, heard) in [
        ("10.90.0.102:9", "refused, as ICMP port unreachable: 10.90.0.102 is a node", ErrorKind::ConnectionRefused),
        ("10.200.0.1:9", "refused, as ICMP administratively prohibited: 10.200.0.1 is of no network", ErrorKind::HostUnreachable),
    ] {
        let trace = traced(to);
        assert!(trace.verdict.starts_with(verdict), "{trace:?}");
        assert_eq!(trace.protocol(), v1::Protocol::Udp);
        assert_eq!(socket(to).recv(&mut [0]).unwrap_err().kind(), heard, "{to}");
    }
    let hearer = lab.hosts[1].udp("t2", "10.128.0.3:9");
    assert_eq!(traced("10.128.0.3:9").verdict, "delivered to task web.3 behind 10.90.0.102 at 10.128.0.3");
    let _sender = socket("10.128.0.3:9");
    assert_eq!(hearer.recv(&mut [0]).unwrap(), 1);
    assert!(host.trace("t1", "web", v1::Protocol::Udp).unwrap_err().message().contains("needs a port"));
}

#[test]
fn a_path_that_drops_what_is_large_is_told_of() {
    let lab = Lab::start(3);
    lab.narrow(1, 1400);
    let networks = [network("front", 0, &[("t1", 0, 2), ("t2", 1, 3), ("t3", 2, 4)])];
    lab.apply(1, &networks);
    let conditions = |index: usize| lab.hosts[index].status().unwrap().network.unwrap().conditions;
    let told = "packets of 1500 bytes do not reach 10.90.0.102, smaller ones do: ";
    eventually("the narrow path is told of", || conditions(0).iter().any(|condition| condition.starts_with(told)));
    eventually("by all", || conditions(2).iter().any(|condition| condition.starts_with(told)));
    assert_eq!((conditions(0).len(), conditions(2).len()), (1, 1));
}
