//! IPv6 in networks: what holds of IPv4 there holds of it, and nothing else has it.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::thread;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use ipnet::{IpNet, Ipv6Net};
use netlink_packet_route::RouteNetlinkMessage;
use rcluster_api::network::address6;
use rcluster_api::wire::v1;
use rcluster_netd::core::links::GATEWAY6;
use rcluster_netd::kernel::messages::{self, Next};
use rcluster_netd::kernel::netlink::{NETLINK_ROUTE, Netlink};
use rcluster_netd::kernel::netns;

use crate::balance::{self, CLIENT, VIP};
use crate::lifecycle::held;
use crate::support::dns::{ask, resolve};
use crate::support::traffic::at_once;
use crate::support::{Host, Lab, eventually, network};

/// The network with IPv6.
fn six(third: u8, network: v1::NetworkView) -> v1::NetworkView {
    v1::NetworkView { subnet6: prefix(third).to_string(), ..network }
}

fn prefix(third: u8) -> Ipv6Net {
    format!("fd00:{third}::/64").parse().unwrap()
}

/// Of who has 10.128.<third>.<last>.
fn ip6(third: u8, last: u8) -> Ipv6Addr {
    address6(prefix(third), Ipv4Addr::new(10, 128, third, last))
}

fn at(third: u8, last: u8, port: u16) -> String {
    format!("[{}]:{port}", ip6(third, last))
}

/// On the network `front` t1 and t3 on the first host and t2 on the second, on `back` b1 and b2, all attached; and `plain` without IPv6.
fn lab() -> (Lab, Vec<v1::NetworkView>) {
    let lab = Lab::start(2);
    let networks = vec![
        six(0, network("front", 0, &[("t1", 0, 2), ("t2", 1, 3), ("t3", 0, 4)])),
        six(1, network("back", 1, &[("b1", 0, 2), ("b2", 1, 3)])),
        network("plain", 2, &[("p1", 0, 2)]),
    ];
    lab.apply(1, &networks);
    for (task, host, name, third, last) in
        [("t1", 0, "front", 0, 2), ("t2", 1, "front", 0, 3), ("t3", 0, "front", 0, 4), ("b1", 0, "back", 1, 2), ("b2", 1, "back", 1, 3)]
    {
        lab.hosts[host].attach(task, &[(name, format!("10.128.{third}.{last}").as_str())]).unwrap();
    }
    lab.hosts[0].attach("p1", &[("plain", "10.128.2.2")]).unwrap();
    (lab, networks)
}

/// Tells whoever connects to a task's port 80 its byte, and then says again what it hears.
pub fn serve(host: &Host, task: &str, at: &str, byte: u8) {
    let listener = host.listen(task, at);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream: TcpStream = stream.unwrap();
            thread::spawn(move || {
                let IpAddr::V6(peer) = stream.peer_addr()?.ip() else { panic!("not IPv6") };
                stream.write_all(&[&[byte][..], &peer.octets()].concat())?;
                let mut buffer = [0; 65536];
                loop {
                    match stream.read(&mut buffer)? {
                        0 => return Ok::<(), std::io::Error>(()),
                        len => stream.write_all(&buffer[..len])?,
                    }
                }
            });
        }
    });
}

/// A connection, with whom the server is and whom it sees.
fn connect(host: &Host, task: &str, to: &str) -> (TcpStream, u8, Ipv6Addr) {
    let mut stream = host.connect(task, to).unwrap();
    let mut said = [0; 17];
    stream.read_exact(&mut said).unwrap();
    let [byte, peer @ ..] = said;
    (stream, byte, peer.into())
}

/// How a connection fails, which it does at once: what a program hears of ICMPv6 it hears when it has sent twice.
fn refused(host: &Host, task: &str, to: &str) -> ErrorKind {
    at_once(host, Some(task), &format!("{task} to {to}"), || host.connect(task, to)).unwrap_err().kind()
}

/// The pod's way to all of IPv6, which a program with the right to it can give itself.
fn send_all_to_the_router(host: &Host, task: &str) {
    host.inside(task, || {
        let index = nix::net::if_::if_nametoindex("eth0").unwrap();
        let all = IpNet::from(Ipv6Net::default());
        let next = Next::Gateway { device: index, address: GATEWAY6.into(), source: None };
        let route = RouteNetlinkMessage::NewRoute(messages::route(all, next));
        Netlink::open(NETLINK_ROUTE).unwrap().request("all of IPv6", route, messages::CREATE).unwrap();
    });
}

#[test]
fn pods_reach_each_other_by_ipv6_under_their_own_addresses() {
    let (lab, _) = lab();
    serve(&lab.hosts[1], "t2", &at(0, 3, 80), 3);
    serve(&lab.hosts[0], "t3", &at(0, 4, 80), 4);
    let text: Vec<u8> = (0..1_000_000_u32).map(|number| number.to_ne_bytes()[0]).collect();
    for (last, byte) in [(3, 3), (4, 4)] {
        let (mut stream, who, seen) = connect(&lab.hosts[0], "t1", &at(0, last, 80));
        assert_eq!((who, seen), (byte, ip6(0, 2)));
        // More than any window or MTU, both ways.
        for chunk in text.chunks(100_000) {
            stream.write_all(chunk).unwrap();
            let mut back = vec![0; chunk.len()];
            stream.read_exact(&mut back).unwrap();
            assert!(back == chunk);
        }
    }
}

#[test]
fn what_a_pod_may_not_reach_by_ipv6_refuses_at_once() {
    let (lab, _) = lab();
    let _listeners = [lab.hosts[0].listen("b1", &at(1, 2, 80)), lab.hosts[1].listen("b2", &at(1, 3, 80))];
    let host = &lab.hosts[0];
    assert_eq!(refused(host, "t1", &at(0, 77, 80)), ErrorKind::ConnectionRefused, "nobody's");
    assert_eq!(refused(host, "t1", &at(0, 3, 80)), ErrorKind::ConnectionRefused, "where nobody listens");
    for to in [at(1, 2, 80), at(1, 3, 80), "[2001:db8::1]:80".to_owned()] {
        assert_eq!(refused(host, "t1", &to), ErrorKind::NetworkUnreachable, "{to} is not on its network");
    }
    send_all_to_the_router(host, "t1");
    for to in [at(1, 2, 80), at(1, 3, 80), "[2001:db8::1]:80".to_owned(), "[fd5c:7263::53]:22".to_owned()] {
        let kind = host.connect("t1", &to).unwrap_err().kind();
        assert!(matches!(kind, ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied), "{to}: {kind:?}");
    }
    assert_eq!(refused(host, "p1", &at(0, 2, 80)), ErrorKind::NetworkUnreachable, "its network has no IPv6");
}

#[test]
fn a_packet_under_a_strange_ipv6_address_is_dropped() {
    let (lab, _) = lab();
    let receiver = lab.hosts[1].udp("t2", &at(0, 3, 9));
    let host = &lab.hosts[0];
    // Its neighbour's, and one of a network without IPv6.
    for (task, third, strange) in [("t1", 0, ip6(0, 4)), ("p1", 2, ip6(0, 99))] {
        host.inside(task, move || {
            for name in ["addr_gen_mode", "disable_ipv6"] {
                netns::set_sysctl(&format!("ipv6/conf/eth0/{name}"), if name == "disable_ipv6" { "0" } else { "1" }, false).unwrap();
            }
            let index = nix::net::if_::if_nametoindex("eth0").unwrap();
            let mut netlink = Netlink::open(NETLINK_ROUTE).unwrap();
            let address = RouteNetlinkMessage::NewAddress(messages::address6(index, strange));
            netlink.request("a strange address", address, messages::REPLACE).unwrap();
            let mac = rcluster_netd::core::links::ROUTER_MAC;
            let gateway = RouteNetlinkMessage::NewNeighbour(messages::neighbour(index, GATEWAY6.into(), Some(mac)));
            netlink.request("the gateway", gateway, messages::REPLACE).unwrap();
        });
        if third == 2 {
            send_all_to_the_router(host, task);
        }
        host.udp(task, &format!("[{strange}]:0")).send_to(b"strange", at(0, 3, 9)).unwrap();
    }
    host.udp("t1", &at(0, 2, 0)).send_to(b"own", at(0, 3, 9)).unwrap();
    let mut word = [0; 16];
    let (len, from) = receiver.recv_from(&mut word).unwrap();
    assert_eq!((&word[..len], from.ip()), (&b"own"[..], ip6(0, 2).into()));
}

#[test]
fn nobody_is_believed_who_calls_himself_a_router() {
    let (lab, _) = lab();
    let setting = |pin: &str, device: &str, name: &str| {
        let name = format!("ipv6/conf/{device}/{name}");
        lab.hosts[0].inside(pin, move || netns::sysctl(&name).unwrap())
    };
    for name in ["accept_ra", "autoconf", "accept_redirects"] {
        assert_eq!((setting("t1", "eth0", name), setting("router", "v4096", name)), ("0".to_owned(), "0".to_owned()), "{name}");
    }
    assert_eq!((setting("p1", "eth0", "disable_ipv6"), setting("router", "v4098", "disable_ipv6")), ("1".to_owned(), "1".to_owned()));
}

#[test]
fn names_have_ipv6_addresses_and_ipv6_addresses_have_names() {
    let (lab, _) = lab();
    let host = &lab.hosts[0];
    let addresses = |message: &Message| {
        let address = |data: &RData| if let RData::AAAA(ip) = data { Some(ip.0) } else { None };
        let mut found: Vec<Ipv6Addr> = message.answers.iter().filter_map(|record| address(&record.data)).collect();
        found.sort();
        found
    };
    assert_eq!(addresses(&ask(host, "t1", "web.", RecordType::AAAA)), [2, 3, 4].map(|last| ip6(0, last)));
    assert_eq!(addresses(&ask(host, "t1", "3.web.front.internal.", RecordType::AAAA)), [ip6(0, 3)]);
    assert_eq!(resolve(host, "t1", "3.web."), [Ipv4Addr::new(10, 128, 0, 3)]);
    let none = ask(host, "p1", "web.", RecordType::AAAA);
    assert_eq!((none.metadata.response_code, none.answers.len()), (ResponseCode::NoError, 0), "its network has no IPv6");
    let digits = format!("{:032x}", ip6(0, 3).to_bits());
    let reverse: String = digits.chars().rev().map(|digit| format!("{digit}.")).chain(["ip6.arpa.".to_owned()]).collect();
    let pointer = ask(host, "t1", &reverse, RecordType::PTR);
    let target = |data: &RData| if let RData::PTR(name) = data { Some(name.0.to_string()) } else { None };
    assert_eq!(pointer.answers.iter().find_map(|record| target(&record.data)), Some("web.3.front.internal.".to_owned()));
}

#[test]
fn a_services_ipv6_address_is_shared_among_its_endpoints_and_refuses_where_there_are_none() {
    let web = [("t1", 0, 11), ("t2", 1, 12)];
    let lab = Lab::start(2);
    let front = |web: &[balance::Place]| six(0, balance::front(web));
    balance::apply(&lab, 1, &[front(&web)], v1::Affinity::Unspecified);
    for (task, host, last) in web.iter().chain([&CLIENT]) {
        lab.hosts[*host].attach(task, &[("front", balance::address(*last).as_str())]).unwrap();
    }
    for (task, host, last) in web {
        serve(&lab.hosts[host], task, &at(0, last, 80), last);
    }
    let service = format!("[{}]:80", address6(prefix(0), VIP));
    let mut taken = [0_u32; 2];
    for _ in 0..60 {
        let (_, who, seen) = connect(&lab.hosts[0], CLIENT.0, &service);
        assert_eq!(seen, ip6(0, CLIENT.2));
        taken[usize::from(who - 11)] += 1;
    }
    assert!(taken.iter().all(|count| *count >= 10), "{taken:?}");
    // To itself, too, in half of all cases.
    let seen: Vec<(u8, Ipv6Addr)> = (0..30).map(|_| connect(&lab.hosts[0], "t1", &service)).map(|(_, who, seen)| (who, seen)).collect();
    assert!(seen.contains(&(11, rcluster_netd::core::links::ROUTER6)) && seen.contains(&(12, ip6(0, 11))), "{seen:?}");
    balance::apply(&lab, 2, &[front(&[])], v1::Affinity::Unspecified);
    assert_eq!(refused(&lab.hosts[0], CLIENT.0, &service), ErrorKind::ConnectionRefused);
    // A client keeps its endpoint.
    balance::apply(&lab, 3, &[front(&web)], v1::Affinity::Client);
    let (_, first, _) = connect(&lab.hosts[0], CLIENT.0, &service);
    assert!((0..20).all(|_| connect(&lab.hosts[0], CLIENT.0, &service).1 == first));
}

#[test]
fn a_policy_judges_ipv6_as_it_does_ipv4() {
    let lab = Lab::start(2);
    let places = [("web", 0, 11), ("db", 0, 21), ("db", 1, 22)];
    let mut front =
        six(0, network("front", 0, &places.map(|(service, host, last)| (if last == 22 { "db2" } else { service }, host, last))));
    for (endpoint, (service, ..)) in front.endpoints.iter_mut().zip(places) {
        endpoint.service_id = service.to_owned();
    }
    let allow = v1::AllowView {
        from_service_ids: vec!["web".to_owned()],
        to_service_ids: vec!["db".to_owned()],
        ports: vec![v1::PolicyPort { protocol: v1::Protocol::Tcp.into(), first: 80, last: 80 }],
        ..Default::default()
    };
    front.policy = Some(v1::NetworkPolicyView { allow: vec![allow] });
    lab.apply(1, std::slice::from_ref(&front));
    for (task, host, last) in [("web", 0, 11), ("db", 0, 21), ("db2", 1, 22)] {
        lab.hosts[host].attach(task, &[("front", balance::address(last).as_str())]).unwrap();
        serve(&lab.hosts[host], task, &at(0, last, 80), last);
        serve(&lab.hosts[host], task, &at(0, last, 81), last);
    }
    for last in [21, 22] {
        assert_eq!(connect(&lab.hosts[0], "web", &at(0, last, 80)).1, last);
        assert_eq!(refused(&lab.hosts[0], "web", &at(0, last, 81)), ErrorKind::ConnectionRefused);
    }
    assert_eq!(refused(&lab.hosts[0], "db", &at(0, 11, 80)), ErrorKind::ConnectionRefused);
    assert_eq!(refused(&lab.hosts[1], "db2", &at(0, 11, 80)), ErrorKind::ConnectionRefused);
    front.policy = None;
    lab.apply(2, &[front]);
    assert_eq!(connect(&lab.hosts[1], "db2", &at(0, 11, 81)).1, 11);
}

#[test]
fn what_is_broken_of_ipv6_is_mended_and_a_restart_changes_nothing() {
    let (mut lab, networks) = lab();
    serve(&lab.hosts[1], "t2", &at(0, 3, 80), 3);
    let (mut stream, ..) = connect(&lab.hosts[0], "t1", &at(0, 3, 80));
    let before = held(&lab.hosts[0]);
    lab.hosts[0].kill();
    lab.hosts[0].start();
    assert_eq!(held(&lab.hosts[0]), before);
    assert_eq!(lab.hosts[0].status().unwrap().repairs, 0);
    // Without IPv6 a device loses its routes and neighbours.
    lab.hosts[0].inside("router", || netns::set_sysctl("ipv6/conf/v4096/disable_ipv6", "1", false).unwrap());
    lab.apply(2, &networks);
    eventually("a connection begins", || lab.hosts[0].connect("t1", &at(0, 3, 80)).is_ok());
    stream.write_all(b"on").unwrap();
    let mut back = [0; 2];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"on");
}
