//! Packets: who reaches whom, and how soon the others learn that they do not.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::support::traffic::sent_again;
use crate::support::{Lab, network, two_pods};

/// A refusal comes as fast as a packet travels; what was lost is sent again after a second.
const AT_ONCE: Duration = Duration::from_millis(900);

fn echo(stream: &mut (impl Read + Write), text: &[u8]) -> Vec<u8> {
    stream.write_all(text).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    back
}

/// One ICMP echo to `to`; whether the answer came.
pub fn ping(to: Ipv4Addr) -> bool {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // Type 8, code 0, checksum over it all, id 0x1234, sequence number 1.
    let packet: [u8; 8] = [8, 0, 0xe5, 0xca, 0x12, 0x34, 0, 1];
    socket.send_to(&packet, &std::net::SocketAddr::from((to, 0)).into()).unwrap();
    let mut socket = socket;
    let mut answer = [0; 128];
    loop {
        match socket.read(&mut answer) {
            // After an IPv4 header of 20 bytes: the echo's reply, not the echo itself.
            Ok(len) if len >= 28 && answer[20] == 0 && answer[24..26] == [0x12, 0x34] => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

#[test]
fn pods_on_two_hosts_reach_each_other() {
    let lab = two_pods();
    assert!(lab.hosts[0].inside("t1", || ping(Ipv4Addr::new(10, 128, 0, 3))));
    assert!(lab.hosts[1].inside("t2", || ping(Ipv4Addr::new(10, 128, 0, 2))));
    assert!(lab.hosts[0].inside("t1", || ping(Ipv4Addr::new(169, 254, 53, 53))), "the gateway answers");

    // More than any window or MTU, both ways.
    let text: Vec<u8> = (0..1_000_000_u32).map(|number| number.to_ne_bytes()[0]).collect();
    let listener = lab.hosts[1].listen("t2", "10.128.0.3:80");
    let server = thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        let mut buffer = [0; 65536];
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => return peer.ip(),
                len => stream.write_all(&buffer[..len]).unwrap(),
            }
        }
    });
    let mut stream = lab.hosts[0].connect("t1", "10.128.0.3:80").unwrap();
    for chunk in text.chunks(100_000) {
        assert!(echo(&mut stream, chunk) == chunk);
    }
    drop(stream);
    assert_eq!(server.join().unwrap(), Ipv4Addr::new(10, 128, 0, 2), "the server sees the client's own address");
}

#[test]
fn pods_on_one_host_reach_each_other_and_themselves() {
    let lab = Lab::start(1);
    lab.apply(1, &[network("front", 0, &[("t1", 0, 2), ("t2", 0, 3)])]);
    let host = &lab.hosts[0];
    host.attach("t1", &[("front", "10.128.0.2")]).unwrap();
    host.attach("t2", &[("front", "10.128.0.3")]).unwrap();
    for (from, to) in [("t1", [10, 128, 0, 3]), ("t2", [10, 128, 0, 2]), ("t1", [10, 128, 0, 2])] {
        assert!(host.inside(from, move || ping(Ipv4Addr::from(to))), "{from} to {to:?}");
    }
}

#[test]
fn what_a_pod_may_not_reach_refuses_at_once() {
    let lab = Lab::start(2);
    let mut networks = [network("front", 0, &[("a1", 0, 2), ("a2", 1, 3)]), network("back", 1, &[("b1", 0, 2), ("b2", 1, 3)])];
    networks.iter_mut().for_each(|network| network.internal = true);
    lab.apply(1, &networks);
    lab.hosts[0].attach("a1", &[("front", "10.128.0.2")]).unwrap();
    lab.hosts[1].attach("a2", &[("front", "10.128.0.3")]).unwrap();
    lab.hosts[0].attach("b1", &[("back", "10.128.1.2")]).unwrap();
    lab.hosts[1].attach("b2", &[("back", "10.128.1.3")]).unwrap();
    let listeners = [lab.hosts[0].listen("b1", "10.128.1.2:80"), lab.hosts[1].listen("b2", "10.128.1.3:80")];
    let others = [
        ("another network, same host", "10.128.1.2:80", ErrorKind::HostUnreachable),
        ("another network, other host", "10.128.1.3:80", ErrorKind::HostUnreachable),
        ("an address of its network that nobody holds", "10.128.0.77:80", ErrorKind::HostUnreachable),
        ("the host", "10.90.0.101:22", ErrorKind::ConnectionRefused),
        ("the router's own ports", "169.254.53.53:22", ErrorKind::HostUnreachable),
        ("the world", "192.0.2.1:80", ErrorKind::HostUnreachable),
    ];
    // Often enough to meet the kernel's limits on ICMP, if they applied: then nearly all would be slow.
    let mut slow = BTreeMap::<&str, u32>::new();
    for (what, to, kind) in others.into_iter().cycle().take(300) {
        let (started, before) = (Instant::now(), sent_again(&lab, &[(0, "a1")]));
        let error = lab.hosts[0].connect("a1", to).unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error}");
        if started.elapsed() >= AT_ONCE && sent_again(&lab, &[(0, "a1")]) > before {
            *slow.entry(what).or_default() += 1;
        }
    }
    assert!(slow.values().all(|times| *times <= 3), "of 50 times each: {slow:?}");
    drop(listeners);
    assert!(lab.hosts[0].inside("a1", || ping(Ipv4Addr::new(10, 128, 0, 3))), "its own network is reached all the while");
}

#[test]
fn a_pod_on_two_networks_reaches_both_and_does_not_join_them() {
    let lab = Lab::start(2);
    let networks = [network("front", 0, &[("both", 0, 2), ("a", 1, 3)]), network("back", 1, &[("both", 0, 2), ("b", 1, 3)])];
    lab.apply(1, &networks);
    lab.hosts[0].attach("both", &[("front", "10.128.0.2"), ("back", "10.128.1.2")]).unwrap();
    lab.hosts[1].attach("a", &[("front", "10.128.0.3")]).unwrap();
    lab.hosts[1].attach("b", &[("back", "10.128.1.3")]).unwrap();
    assert!(lab.hosts[0].inside("both", || ping(Ipv4Addr::new(10, 128, 0, 3))));
    assert!(lab.hosts[0].inside("both", || ping(Ipv4Addr::new(10, 128, 1, 3))));
    assert!(lab.hosts[1].inside("b", || ping(Ipv4Addr::new(10, 128, 1, 2))));
    let error = lab.hosts[1].connect("a", "10.128.1.2:80").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
    // Nor do refusals on the second network get lost.
    let error = lab.hosts[0].connect("both", "10.128.1.77:80").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
}

#[test]
fn a_packet_under_a_strange_source_address_is_dropped() {
    let lab = two_pods();
    let receiver = lab.hosts[1].udp("t2", "10.128.0.3:9");
    let send = |from: [u8; 4], word: &'static [u8]| {
        lab.hosts[0].inside("t1", move || {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap();
            socket.set_header_included_v4(true).unwrap();
            let to = [10, 128, 0, 3];
            let len = u16::try_from(28 + word.len()).unwrap().to_be_bytes();
            let mut packet = vec![0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, 17, 0, 0];
            packet.extend(from.into_iter().chain(to));
            let len = u16::try_from(8 + word.len()).unwrap().to_be_bytes();
            packet.extend([0, 99, 0, 9, len[0], len[1], 0, 0]);
            packet.extend(word);
            socket.send_to(&packet, &std::net::SocketAddr::from((to, 9)).into()).unwrap();
        });
    };
    send([10, 128, 0, 3], b"its receiver's");
    send([10, 128, 0, 99], b"nobody's");
    send([10, 90, 0, 101], b"the host's");
    send([10, 128, 0, 2], b"its own");
    let mut word = [0; 64];
    let receive = |socket: &UdpSocket, word: &mut [u8; 64]| socket.recv(word).map(|len| word[..len].to_vec());
    assert_eq!(receive(&receiver, &mut word).unwrap(), b"its own");
}

#[test]
fn the_mtu_is_the_underlays_less_the_overlays_headers() {
    let lab = two_pods();
    let answer = lab.hosts[0].attach("t1", &[("front", "10.128.0.2")]).unwrap();
    assert_eq!(answer.mtu, 1450);
    let largest = vec![7; 1450 - 28];
    let receiver = lab.hosts[1].udp("t2", "10.128.0.3:9");
    let sender = lab.hosts[0].udp("t1", "10.128.0.2:9");
    sender.send_to(&largest, "10.128.0.3:9").unwrap();
    let mut buffer = [0; 2000];
    assert_eq!(receiver.recv(&mut buffer).unwrap(), largest.len());
}
