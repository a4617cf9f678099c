//! The way out: who gets there, as whom, and what stays refused; and what netd keeps in order on the host for it.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use rcluster_netd::core::links::vtep_mac;
use rcluster_netd::core::rules::expressions::{Expression, Verdict};
use rcluster_netd::core::rules::host::{DOCKER_USER, FILTER, TABLE};
use rcluster_netd::core::rules::{Chain, Hook, Policy, Rule, Skeleton};
use rcluster_netd::kernel::netlink::{NETLINK_ROUTE, Netlink};
use rcluster_netd::kernel::{messages, nft};

use crate::support::seen::run;
use crate::support::traffic::at_once;
use crate::support::{DEADLINE, Host, Lab, network, two_pods};

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// The world. It is one for all of a test: while a test beside it starts a program, the copy of a socket lives on that is closed here, and the
/// next could not be bound.
fn world(outside: &Host) -> TcpListener {
    outside.here(|| TcpListener::bind("203.0.113.1:80")).unwrap()
}

/// Whom the world sees when a pod connects to it and is answered.
fn seen_by(world: &TcpListener, host: &Host, task: &str) -> IpAddr {
    let listener = world.try_clone().unwrap();
    let server = thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(&byte).unwrap();
        peer.ip()
    });
    let mut stream = host.connect(task, "203.0.113.1:80").unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    server.join().unwrap()
}

#[test]
fn the_world_is_reached_and_sees_the_host() {
    let lab = two_pods();
    let outside = lab.outside();
    let listener = world(&outside);
    for (host, task) in lab.hosts.iter().zip(["t1", "t2"]) {
        assert_eq!(seen_by(&listener, host, task), IpAddr::V4(host.addr));
    }

    let hearer = outside.here(|| UdpSocket::bind("203.0.113.1:9")).unwrap();
    hearer.set_read_timeout(Some(DEADLINE)).unwrap();
    let pod = lab.hosts[0].udp("t1", "10.128.0.2:9");
    pod.send_to(b"question", "203.0.113.1:9").unwrap();
    let mut buffer = [0; 64];
    let (len, from) = hearer.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from.ip()), (&b"question"[..], IpAddr::V4(lab.hosts[0].addr)));
    hearer.send_to(b"answer", from).unwrap();
    let (len, from) = pod.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from.to_string()), (&b"answer"[..], "203.0.113.1:9".to_owned()));
}

#[test]
fn what_is_not_outside_is_refused_at_once() {
    let lab = two_pods();
    let _listeners: Vec<TcpListener> = lab.hosts.iter().map(|host| host.here(|| TcpListener::bind("0.0.0.0:22")).unwrap()).collect();
    let others = [
        ("its own host", "10.90.0.101:22", ErrorKind::ConnectionRefused),
        ("its own host, by the uplink", "169.254.54.1:22", ErrorKind::HostUnreachable),
        ("another node", "10.90.0.102:22", ErrorKind::ConnectionRefused),
        ("an address of no network yet", "10.200.0.1:80", ErrorKind::HostUnreachable),
        ("a cloud's metadata", "169.254.169.254:80", ErrorKind::HostUnreachable),
    ];
    for (what, to, kind) in others {
        let error = at_once(&lab.hosts[0], Some("t1"), what, || lab.hosts[0].connect("t1", to)).unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error}");
    }
}

#[test]
fn a_host_that_has_no_route_says_so_at_once() {
    let lab = two_pods();
    let error = at_once(&lab.hosts[0], Some("t1"), "no route", || lab.hosts[0].connect("t1", "192.0.2.1:80")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NetworkUnreachable, "{error}");
}

#[test]
fn an_internal_network_has_no_way_out_and_a_second_one_may_have() {
    let lab = Lab::start(1);
    let outside = lab.outside();
    let host = &lab.hosts[0];
    let mut front = network("front", 0, &[("inner", 0, 2), ("both", 0, 3)]);
    front.internal = true;
    lab.apply(1, &[front, network("back", 1, &[("both", 0, 2)])]);
    host.attach("inner", &[("front", "10.128.0.2")]).unwrap();
    host.attach("both", &[("front", "10.128.0.3"), ("back", "10.128.1.2")]).unwrap();
    let error = at_once(host, Some("inner"), "no way out", || host.connect("inner", "203.0.113.1:80")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
    assert_eq!(seen_by(&world(&outside), host, "both"), IpAddr::V4(host.addr));
    let _listener = host.listen("inner", "10.128.0.2:80");
    host.connect("both", "10.128.0.2:80").unwrap();
}

/// Iptables' chain FORWARD as Docker sets it up, with its chain for the administrator or without.
fn dropping(with_docker_user: bool) -> Skeleton {
    let jump = Rule::new("jump DOCKER-USER", [vec![Expression::Verdict(Verdict::Jump(DOCKER_USER.to_owned()))]]);
    let rules = if with_docker_user { vec![jump] } else { Vec::new() };
    let mut chains = vec![Chain::filter("FORWARD", Hook::Forward, 0, Policy::Drop, rules)];
    if with_docker_user {
        chains.push(Chain { name: DOCKER_USER.to_owned(), base: None, rules: Vec::new() });
    }
    Skeleton { table: FILTER, sets: Vec::new(), chains }
}

fn load(host: &Host, skeleton: Skeleton) {
    host.here(move || nft::load(&mut Netlink::open(nft::NETLINK_NETFILTER).unwrap(), &skeleton)).unwrap();
}

/// One host whose iptables drop what is forwarded, with a pod.
fn behind_iptables(with_docker_user: bool) -> Lab {
    let mut lab = Lab::wire(1);
    let host = &mut lab.hosts[0];
    let skeleton = dropping(with_docker_user);
    load(host, skeleton);
    host.start();
    let view = lab.view(0, 1, &[network("front", 0, &[("t1", 0, 2)])]);
    lab.hosts[0].apply(view).unwrap();
    lab.hosts[0].attach("t1", &[("front", "10.128.0.2")]).unwrap();
    lab
}

#[test]
fn docker_lets_the_pods_packets_pass() {
    let lab = behind_iptables(true);
    let outside = lab.outside();
    assert_eq!(lab.hosts[0].status().unwrap().problems, Vec::<String>::new());
    assert_eq!(seen_by(&world(&outside), &lab.hosts[0], "t1"), IpAddr::V4(lab.hosts[0].addr));
}

#[test]
fn docker_that_comes_later_lets_them_pass_from_the_next_check() {
    let lab = two_pods();
    let outside = lab.outside();
    load(&lab.hosts[0], dropping(true));
    lab.apply(1, &[network("front", 0, &[("t1", 0, 2), ("t2", 1, 3)])]);
    assert_eq!(lab.hosts[0].status().unwrap().repairs, 1);
    assert_eq!(seen_by(&world(&outside), &lab.hosts[0], "t1"), IpAddr::V4(lab.hosts[0].addr));
}

#[test]
fn a_firewall_that_drops_what_is_forwarded_is_told_of() {
    let lab = behind_iptables(false);
    let problems = lab.hosts[0].status().unwrap().problems;
    assert!(problems.len() == 1 && problems[0].contains("iptables -I FORWARD -i rcl-up -j ACCEPT"), "{problems:?}");
}

#[test]
fn whether_a_host_forwards_can_be_left_to_its_administrator() {
    let mut lab = Lab::wire(1);
    let host = &mut lab.hosts[0];
    host.here(|| std::fs::write(IP_FORWARD, "0")).unwrap();
    host.flags = vec!["--no-forwarding"];
    host.start();
    assert_eq!(host.here(|| std::fs::read_to_string(IP_FORWARD)).unwrap(), "0\n");
    let problems = host.status().unwrap().problems;
    assert!(problems.len() == 1 && problems[0].contains("without --no-forwarding"), "{problems:?}");
    assert!(host.stop().success());
    host.flags.clear();
    host.start();
    assert_eq!(host.here(|| std::fs::read_to_string(IP_FORWARD)).unwrap(), "1\n");
    assert_eq!(host.status().unwrap().problems, Vec::<String>::new());
}

#[test]
fn what_someone_breaks_on_the_host_is_mended() {
    let lab = two_pods();
    let outside = lab.outside();
    let host = &lab.hosts[0];
    host.here(|| {
        nft::load(&mut Netlink::open(nft::NETLINK_NETFILTER).unwrap(), &Skeleton { table: TABLE, sets: Vec::new(), chains: Vec::new() })
            .unwrap();
        std::fs::write(IP_FORWARD, "0").unwrap();
        let index = nix::net::if_::if_nametoindex("rcl-up").unwrap();
        Netlink::open(NETLINK_ROUTE).unwrap().request("device", messages::del_link(index), 0).unwrap();
    });
    lab.apply(1, &[network("front", 0, &[("t1", 0, 2), ("t2", 1, 3)])]);
    // The table with its one peer, forwarding, the pair and its addresses, and the route that went with it.
    assert_eq!(host.status().unwrap().repairs, 6);
    assert_eq!(seen_by(&world(&outside), host, "t1"), IpAddr::V4(host.addr));
    let _listener = lab.hosts[1].listen("t2", "10.128.0.3:80");
    host.connect("t1", "10.128.0.3:80").unwrap();
    lab.apply(1, &[network("front", 0, &[("t1", 0, 2), ("t2", 1, 3)])]);
    assert_eq!(host.status().unwrap().repairs, 6);
}

#[test]
fn a_device_that_has_the_uplinks_name_or_address_is_left_alone_and_told_of() {
    let mut lab = Lab::wire(2);
    let address = Ipv4Addr::new(169, 254, 54, 2);
    lab.hosts[0]
        .here(move || Netlink::open(NETLINK_ROUTE).unwrap().request("address", messages::loopback_address(address), messages::CREATE))
        .unwrap();
    let refusal = lab.hosts[0].refusal("10.90.0.101");
    assert!(refusal.contains("169.254.54.2 is an address of this host's device lo; netd needs 169.254.54.0/30"), "{refusal}");

    let host = &mut lab.hosts[1];
    let strange = host.here(|| {
        run("ip link add rcl-up type veth peer name other");
        nix::net::if_::if_nametoindex("rcl-up").unwrap()
    });
    host.start();
    let problems = host.status().unwrap().problems;
    assert!(problems.iter().any(|problem| problem.contains("a device rcl-up that is not rcluster's; rename or remove it")), "{problems:?}");
    assert_eq!(host.here(|| nix::net::if_::if_nametoindex("rcl-up").unwrap()), strange);
}

/// The internet's checksum (RFC 1071) of these bytes: in their place it makes a header right.
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = (!((folded & 0xffff) + (folded >> 16))).to_be_bytes();
    [high, low]
}

/// A frame of network 4096 for the node at `to`, with UDP from `source` to t1's port 9, as VXLAN carries it.
fn frame(to: Ipv4Addr, from: Ipv4Addr, source: [u8; 4], word: &[u8]) -> Vec<u8> {
    let [_, first, second, third] = 4096_u32.to_be_bytes();
    let mut packet = vec![8, 0, 0, 0, first, second, third, 0];
    packet.extend(vtep_mac(to).0);
    packet.extend(vtep_mac(from).0);
    packet.extend([8, 0]);
    let len = |header: usize| u16::try_from(header + word.len()).unwrap().to_be_bytes();
    let mut header = vec![0x45, 0, len(28)[0], len(28)[1], 0, 0, 0, 0, 64, 17, 0, 0];
    header.extend(source);
    header.extend([10, 128, 0, 2]);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    packet.extend(header);
    packet.extend([0, 99, 0, 9, len(8)[0], len(8)[1], 0, 0]);
    packet.extend(word);
    packet
}

#[test]
fn vxlan_is_taken_from_nodes_of_the_network_alone() {
    let lab = Lab::start(3);
    lab.apply(1, &[network("front", 0, &[("t1", 0, 2), ("t2", 1, 3)])]);
    lab.hosts[0].attach("t1", &[("front", "10.128.0.2")]).unwrap();
    let receiver = lab.hosts[0].udp("t1", "10.128.0.2:9");
    let (to, node) = (lab.hosts[0].addr, lab.hosts[1].addr);
    let send = |from: &Host, at: Ipv4Addr, word: &'static [u8]| {
        let own = from.addr;
        from.here(move || {
            // Refused; from then on the wire knows both, and frames arrive in the order in which they are sent.
            assert_eq!(TcpStream::connect((to, 1)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
            let socket = UdpSocket::bind((own, 0)).unwrap();
            socket.set_broadcast(true).unwrap();
            socket.send_to(&frame(to, node, [10, 128, 0, 3], word), (at, 4789)).unwrap();
        });
    };
    let outside = lab.outside();
    send(&outside, to, b"the world's");
    send(&outside, Ipv4Addr::BROADCAST, b"the world's for everybody");
    send(&lab.hosts[2], to, b"a node's of no network here");
    send(&lab.hosts[1], to, b"a node's");
    let mut buffer = [0; 64];
    let len = receiver.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"a node's");
}

#[test]
fn a_node_speaks_for_no_pod_that_is_elsewhere() {
    let lab = Lab::start(2);
    let networks = [network("front", 0, &[("t1", 0, 2), ("t2", 1, 3), ("t3", 0, 4)]), network("back", 1, &[("t1", 0, 2), ("t2", 1, 3)])];
    lab.apply(1, &networks);
    lab.hosts[0].attach("t1", &[("front", "10.128.0.2"), ("back", "10.128.1.2")]).unwrap();
    let receiver = lab.hosts[0].udp("t1", "10.128.0.2:9");
    let (to, node) = (lab.hosts[0].addr, lab.hosts[1].addr);
    lab.hosts[1].here(move || {
        assert_eq!(TcpStream::connect((to, 1)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let socket = UdpSocket::bind((node, 0)).unwrap();
        let send = |source: [u8; 4], word: &[u8]| socket.send_to(&frame(to, node, source, word), (to, 4789)).unwrap();
        send([169, 254, 53, 53], b"the resolver's");
        send([10, 128, 0, 4], b"a pod's there");
        send([10, 128, 1, 3], b"a pod's of another network");
        send([10, 128, 0, 99], b"nobody's");
        send([192, 0, 2, 1], b"the world's");
        send([10, 128, 0, 3], b"its own pod's");
    });
    let mut buffer = [0; 64];
    let len = receiver.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"its own pod's");
}

#[test]
fn a_pods_vxlan_does_not_pass_for_its_nodes() {
    let lab = two_pods();
    let receiver = lab.hosts[0].udp("t1", "10.128.0.2:9");
    // An address of the node that no other node is told of.
    let other = Ipv4Addr::new(10, 90, 0, 201);
    lab.hosts[0].here(|| run("ip addr add 10.90.0.201/32 dev up0"));
    let (to, node) = (lab.hosts[0].addr, lab.hosts[1].addr);
    lab.hosts[1].here(move || {
        for at in [to, other] {
            assert_eq!(TcpStream::connect((at, 1)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
    });
    let pod = lab.hosts[1].udp("t2", "10.128.0.3:4000");
    pod.send_to(&frame(to, node, [10, 128, 0, 3], b"a pod's"), (other, 4789)).unwrap();
    lab.hosts[1].here(move || {
        UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&frame(to, node, [10, 128, 0, 3], b"a node's"), (to, 4789)).unwrap();
    });
    let mut buffer = [0; 64];
    let len = receiver.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"a node's");
}
