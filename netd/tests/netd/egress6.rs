//! The way out by IPv6: it is there while the host has one, and what is not outside stays refused.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::thread;

use ipnet::Ipv6Net;
use rcluster_api::network::address6;
use rcluster_api::wire::v1;
use rcluster_netd::kernel::netns;

use crate::lifecycle::held;
use crate::support::seen::{run, show};
use crate::support::traffic::at_once;
use crate::support::{Host, Lab, eventually, network};

const WORLD: &str = "[2001:db8:f::1]:80";

/// A prefix of the cluster's range, and of a network in it.
pub fn prefix(third: u8) -> Ipv6Net {
    format!("fd12:3456:789a:{third}::/64").parse().unwrap()
}

pub fn six(third: u8, network: v1::NetworkView) -> v1::NetworkView {
    v1::NetworkView { subnet6: prefix(third).to_string(), ..network }
}

/// The host's address on the wire.
pub fn own(index: usize) -> Ipv6Addr {
    format!("2001:db8:f::10{}", index + 1).parse().unwrap()
}

/// On the network `front` with IPv6 t1 and t2, one on each host; on `plain` without it p1, and on the internal `inner` with it i1.
fn networks() -> Vec<v1::NetworkView> {
    let mut inner = six(2, network("inner", 2, &[("i1", 0, 2)]));
    inner.internal = true;
    vec![six(0, network("front", 0, &[("t1", 0, 2), ("t2", 1, 3)])), network("plain", 1, &[("p1", 0, 2)]), inner]
}

/// The hosts, each told the others' addresses of IPv6, and the pods.
fn lab() -> Lab {
    let lab = Lab::start(2);
    apply(&lab, 1);
    for (host, task, name, ip) in [(0, "t1", "front", "10.128.0.2"), (1, "t2", "front", "10.128.0.3"), (0, "p1", "plain", "10.128.1.2")] {
        lab.hosts[host].attach(task, &[(name, ip)]).unwrap();
    }
    lab.hosts[0].attach("i1", &[("inner", "10.128.2.2")]).unwrap();
    lab
}

fn apply(lab: &Lab, revision: u64) {
    for (index, host) in lab.hosts.iter().enumerate() {
        let mut view = lab.view(index, revision, &networks());
        for (number, node) in view.nodes.iter_mut().enumerate() {
            node.addresses6 = vec![own(number).to_string()];
        }
        assert_eq!(host.apply(view).unwrap().problems, Vec::<String>::new());
    }
}

/// The world, 2001:db8:f::1, and the hosts on the same wire with ways to all of IPv6 by it. It tells whoever connects whom it sees.
pub fn world(lab: &Lab) -> Host {
    let outside = lab.outside();
    outside.here(|| run("ip -6 addr add 2001:db8:f::1/64 dev up0 nodad"));
    for (index, host) in lab.hosts.iter().enumerate() {
        let address = own(index);
        host.here(move || run(&format!("ip -6 addr add {address}/64 dev up0 nodad")));
        lead(host, true);
    }
    let listener = outside.here(|| TcpListener::bind(WORLD)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let Ok(IpAddr::V6(peer)) = stream.peer_addr().map(|peer| peer.ip()) else { continue };
            // Who has gone meanwhile is told nothing.
            drop(stream.write_all(&peer.octets()));
        }
    });
    outside
}

/// Gives the host its default route, or takes it.
fn lead(host: &Host, is_there: bool) {
    host.here(move || run(&format!("ip -6 route {} default via 2001:db8:f::1 dev up0", if is_there { "add" } else { "del" })));
}

fn await_way(host: &Host, task: &str) {
    eventually("the pod has a way out", || host.connect(task, WORLD).is_ok());
}

fn has_default_route() -> bool {
    !show("ip -6 route show default").is_empty()
}

/// Whom the world sees when a pod connects to it and is answered.
fn seen_by_world(host: &Host, task: &str) -> Ipv6Addr {
    let mut seen = [0; 16];
    host.connect(task, WORLD).unwrap().read_exact(&mut seen).unwrap();
    seen.into()
}

fn refused(host: &Host, task: &str, to: &str) -> ErrorKind {
    at_once(host, Some(task), &format!("{task} to {to}"), || host.connect(task, to)).unwrap_err().kind()
}

fn host_setting(host: &Host, name: &'static str) -> String {
    host.here(move || netns::sysctl(name).unwrap())
}

#[test]
fn the_world_is_reached_by_ipv6_and_sees_the_host() {
    let lab = lab();
    assert_eq!(refused(&lab.hosts[0], "t1", WORLD), ErrorKind::NetworkUnreachable, "the host has no way");
    assert_eq!(host_setting(&lab.hosts[0], "ipv6/conf/all/forwarding"), "0", "nobody gets out by it yet");
    let _outside = world(&lab);
    for (index, task) in ["t1", "t2"].into_iter().enumerate() {
        await_way(&lab.hosts[index], task);
        assert_eq!(seen_by_world(&lab.hosts[index], task), own(index));
    }
    for task in ["p1", "i1"] {
        assert_eq!(refused(&lab.hosts[0], task, WORLD), ErrorKind::NetworkUnreachable, "{task}");
    }
    let told = lab.hosts[0].status().unwrap().network.unwrap().addresses6;
    assert_eq!(told, [own(0).to_string()]);
    lead(&lab.hosts[0], false);
    // The wire itself is still a way of the host's.
    assert_eq!(seen_by_world(&lab.hosts[0], "t1"), own(0));
    let address = own(0);
    lab.hosts[0].here(move || run(&format!("ip -6 addr del {address}/64 dev up0")));
    eventually("the pod has no way out", || !lab.hosts[0].inside("t1", has_default_route));
    assert_eq!(refused(&lab.hosts[0], "t1", WORLD), ErrorKind::NetworkUnreachable);
}

#[test]
fn what_is_not_outside_is_refused_at_once_by_ipv6_too() {
    let lab = lab();
    let _outside = world(&lab);
    let host = &lab.hosts[0];
    await_way(host, "t1");
    let _listeners: Vec<TcpListener> = lab.hosts.iter().map(|host| host.here(|| TcpListener::bind("[::]:22")).unwrap()).collect();
    let inner = address6(prefix(2), Ipv4Addr::new(10, 128, 2, 2));
    let _inner = host.listen("i1", &format!("[{inner}]:22"));
    let nobodys = address6(prefix(0), Ipv4Addr::new(10, 128, 0, 77));
    let others = [own(0), own(1), inner, nobodys].map(|ip6| ip6.to_string());
    let own = ["fd5c:7263::54:1", "fd12:3456:789a:99::1", "fd00:ec2::254"].map(str::to_owned);
    for to in others.iter().chain(&own) {
        assert_eq!(refused(host, "t1", &format!("[{to}]:22")), ErrorKind::ConnectionRefused, "{to}");
    }
    lead(host, false);
    eventually("the router has lost the way", || !host.inside("router", has_default_route));
    assert_eq!(refused(host, "t1", "[2001:db8:e::1]:80"), ErrorKind::ConnectionRefused, "where the host has no way to");
}

#[test]
fn a_host_that_is_made_to_forward_still_hears_routers() {
    let lab = lab();
    let _outside = world(&lab);
    let host = &lab.hosts[0];
    await_way(host, "t1");
    eventually("the host forwards", || host_setting(host, "ipv6/conf/all/forwarding") == "1");
    for name in ["ipv6/conf/up0/accept_ra", "ipv6/conf/default/accept_ra"] {
        assert_eq!(host_setting(host, name), "2", "{name}");
    }
    assert_eq!(host_setting(host, "ipv6/conf/rcl-up/accept_ra"), "0", "no router is behind it");
}

#[test]
fn whether_a_host_forwards_ipv6_can_be_left_to_its_administrator() {
    let mut lab = Lab::wire(1);
    lab.hosts[0].here(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
    lab.hosts[0].flags = vec!["--no-forwarding"];
    lab.hosts[0].start();
    let _outside = world(&lab);
    let view = lab.view(0, 1, &[six(0, network("front", 0, &[("t1", 0, 2)]))]);
    lab.hosts[0].apply(view).unwrap();
    let host = &lab.hosts[0];
    host.attach("t1", &[("front", "10.128.0.2")]).unwrap();
    eventually("it is told", || {
        let problems = host.status().unwrap().problems;
        problems.iter().any(|problem| problem.contains("this host does not forward IPv6"))
    });
    assert_eq!(refused(host, "t1", WORLD), ErrorKind::NetworkUnreachable);
    host.here(|| std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap());
    await_way(host, "t1");
    assert_eq!(seen_by_world(host, "t1"), own(0));
    assert_eq!(host_setting(host, "ipv6/conf/up0/accept_ra"), "1", "that is the administrator's");
}

#[test]
fn what_is_broken_of_the_way_out_by_ipv6_is_mended_and_a_restart_changes_nothing() {
    let mut lab = lab();
    let _outside = world(&lab);
    await_way(&lab.hosts[0], "t1");
    apply(&lab, 1);
    let before = held(&lab.hosts[0]);
    lab.hosts[0].kill();
    lab.hosts[0].start();
    assert_eq!(held(&lab.hosts[0]), before);
    assert_eq!(lab.hosts[0].status().unwrap().repairs, 0);
    lab.hosts[0].here(|| {
        run("ip -6 neigh del fd5c:7263::54:2 dev rcl-up");
        run("ip -6 addr flush dev rcl-up scope global");
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0").unwrap();
    });
    lab.hosts[0].inside("router", || run("ip -6 route del default"));
    apply(&lab, 1);
    assert_eq!(seen_by_world(&lab.hosts[0], "t1"), own(0));
}
