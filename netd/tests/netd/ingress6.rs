//! Published ports by IPv6: who is reached by which node, as whom, and who is refused.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use rcluster_api::network::address6;
use rcluster_api::wire::v1;

use crate::egress6::{own, prefix, six, world};
use crate::six::serve;
use crate::support::seen::run;
use crate::support::traffic::at_once;
use crate::support::{DEADLINE, Host, Lab, eventually, network, numbered, published};

const CLIENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 1);

/// A task with its host's index and the last octet of its address, which is also what it says.
type Place = (&'static str, usize, u8);

const TWO: [Place; 2] = [("t1", 0, 2), ("t2", 1, 3)];

fn ip6(last: u8) -> Ipv6Addr {
    address6(prefix(0), Ipv4Addr::new(10, 128, 0, last))
}

/// The network of both, with IPv6.
fn front() -> v1::NetworkView {
    six(0, network("front", 0, &TWO))
}

/// TCP port `number` of every node before port 80 of these.
fn port(number: u32, places: &[Place]) -> v1::PublishedView {
    let mut published = published(number, 80, places);
    for (backend, place) in published.backends.iter_mut().zip(places) {
        backend.ip6 = ip6(place.2).to_string();
    }
    published
}

fn apply(lab: &Lab, revision: u64, front: &v1::NetworkView, ports: &[v1::PublishedView]) {
    for (index, host) in lab.hosts.iter().enumerate() {
        let view = v1::NetView { published: ports.to_vec(), ..lab.view(index, revision, std::slice::from_ref(front)) };
        assert_eq!(host.apply(numbered(view)).unwrap().problems, Vec::<String>::new());
    }
}

/// Two hosts with the ports and both tasks, which say who they are and whom they see; and the world.
fn lab(ports: &[v1::PublishedView]) -> (Lab, Host) {
    let lab = Lab::start(2);
    let outside = world(&lab);
    apply(&lab, 1, &front(), ports);
    for (task, host, last) in TWO {
        let ip = format!("10.128.0.{last}");
        lab.hosts[host].attach(task, &[("front", ip.as_str())]).unwrap();
        serve(&lab.hosts[host], task, &format!("[{}]:80", ip6(last)), last);
    }
    (lab, outside)
}

/// A connection from a host, with who answers and whom it sees.
fn connect(from: &Host, to: (Ipv6Addr, u16)) -> io::Result<(TcpStream, u8, Ipv6Addr)> {
    let mut stream = from.here(move || TcpStream::connect_timeout(&SocketAddr::from(to), DEADLINE))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut said = [0; 17];
    stream.read_exact(&mut said)?;
    let [who, seen @ ..] = said;
    Ok((stream, who, seen.into()))
}

fn await_port(from: &Host, to: (Ipv6Addr, u16)) {
    eventually("the port is open", || connect(from, to).is_ok());
}

fn is_refused(from: &Host, to: (Ipv6Addr, u16)) {
    let error = at_once(from, None, &format!("{to:?}"), || connect(from, to)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to:?}: {error}");
}

#[test]
fn every_node_leads_to_every_backend_by_ipv6_and_each_of_them_sees_the_client() {
    let (lab, outside) = lab(&[port(8080, &TWO[..1]), port(8081, &TWO[1..])]);
    for entry in 0..2 {
        for (number, (_, _, last)) in (8080..).zip(TWO) {
            await_port(&outside, (own(entry), number));
            let (mut stream, who, seen) = connect(&outside, (own(entry), number)).unwrap();
            assert_eq!((who, seen), (last, CLIENT), "by {entry} at {number}");
            // More than any window or MTU, and back.
            let text = vec![7; 200_000];
            let mut back = vec![0; text.len()];
            let mut sender = stream.try_clone().unwrap();
            let sending = thread::spawn(move || sender.write_all(&text).unwrap());
            stream.read_exact(&mut back).unwrap();
            sending.join().unwrap();
        }
    }
    // A node is a client like any other.
    let (_, who, seen) = connect(&lab.hosts[1], (own(0), 8080)).unwrap();
    assert_eq!((who, seen), (2, own(1)));
    is_refused(&outside, (own(0), 8082));
}

#[test]
fn a_node_that_has_no_ipv6_itself_answers_by_the_one_that_was_asked() {
    let (lab, outside) = lab(&[port(8081, &TWO[1..])]);
    lab.hosts[1].here(|| run("ip -6 addr flush dev up0 scope global"));
    await_port(&outside, (own(0), 8081));
    let (_, who, seen) = connect(&outside, (own(0), 8081)).unwrap();
    assert_eq!((who, seen), (3, CLIENT));
}

#[test]
fn a_port_without_tasks_with_ipv6_or_with_none_that_serves_is_refused_at_once() {
    let plain = published(8081, 80, &TWO[..1]);
    let mut idle = port(8082, &TWO[..1]);
    idle.backends[0].state = v1::EndpointState::Routed.into();
    let (_lab, outside) = lab(&[port(8080, &TWO[..1]), plain, idle]);
    await_port(&outside, (own(0), 8080));
    for number in [8081, 8082] {
        is_refused(&outside, (own(0), number));
    }
}

#[test]
fn clients_of_ipv6_that_are_not_allowed_are_refused() {
    let allowing = |nets: &[&str]| {
        let mut allowed = port(8080, &TWO[1..]);
        allowed.ports[0].allow_from = nets.iter().map(|net| (*net).to_owned()).collect();
        [allowed]
    };
    let (lab, outside) = lab(&allowing(&["2001:db8:f::1/128"]));
    let entry = (own(0), 8080);
    await_port(&outside, entry);
    is_refused(&lab.hosts[1], entry);
    apply(&lab, 2, &front(), &allowing(&["203.0.113.0/24"]));
    is_refused(&outside, entry);
    apply(&lab, 3, &front(), &allowing(&["2001:db8:f::/64", "203.0.113.0/24"]));
    assert_eq!(connect(&outside, entry).unwrap().1, 3);
    assert_eq!(connect(&lab.hosts[1], entry).unwrap().2, own(1));
}

#[test]
fn a_policy_judges_who_comes_by_ipv6_where_the_task_is() {
    let ports = [port(8080, &TWO[..1]), port(8081, &TWO[1..])];
    let (lab, outside) = lab(&ports);
    for number in [8080, 8081] {
        await_port(&outside, (own(0), number));
    }
    let policed = |range: &str| {
        let allow = v1::AllowView { from_cidrs: vec![range.to_owned()], to_all: true, ..Default::default() };
        v1::NetworkView { policy: Some(v1::NetworkPolicyView { allow: vec![allow] }), ..front() }
    };
    apply(&lab, 2, &policed("2001:db8:e::/64"), &ports);
    is_refused(&outside, (own(0), 8080));
    // Through another node a refusal is silence.
    let elsewhere = SocketAddr::from((own(0), 8081));
    assert!(outside.here(move || TcpStream::connect_timeout(&elsewhere, Duration::from_secs(2))).is_err());
    apply(&lab, 3, &policed("2001:db8:f::/64"), &ports);
    for number in [8080, 8081] {
        assert_eq!(connect(&outside, (own(0), number)).unwrap().2, CLIENT);
    }
}

#[test]
fn nobody_outside_speaks_for_a_pod_by_ipv6() {
    let mut datagrams = port(8081, &TWO[..1]);
    datagrams.ports[0].protocol = v1::Protocol::Udp.into();
    let (lab, outside) = lab(&[port(8080, &TWO[..1]), datagrams]);
    await_port(&outside, (own(0), 8080));
    let receiver = lab.hosts[0].udp("t1", &format!("[{}]:80", ip6(2)));
    let pods = ip6(3);
    outside.here(move || {
        run(&format!("ip -6 addr add {pods}/128 dev up0 nodad"));
        for (from, word) in [(pods, "a pod's"), (CLIENT, "its own")] {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            assert_eq!(socket.send_to(word.as_bytes(), (own(0), 8081)).unwrap(), word.len());
        }
    });
    let mut buffer = [0; 64];
    let (len, from) = receiver.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from.ip()), (&b"its own"[..], IpAddr::V6(CLIENT)));
}

#[test]
fn a_host_reaches_ports_by_its_own_addresses_of_ipv6() {
    let (lab, outside) = lab(&[port(8080, &TWO[..1])]);
    await_port(&outside, (own(0), 8080));
    // It is connected on by IPv4.
    let listener = lab.hosts[0].listen("t1", "10.128.0.2:80");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let Ok(IpAddr::V4(peer)) = stream.peer_addr().map(|peer| peer.ip()) else { continue };
            drop(stream.write_all(&peer.octets()));
        }
    });
    for to in [Ipv6Addr::LOCALHOST, own(0)] {
        let stream = lab.hosts[0].here(move || TcpStream::connect_timeout(&SocketAddr::from((to, 8080)), DEADLINE));
        let mut seen = [0; 4];
        stream.unwrap().read_exact(&mut seen).unwrap();
        assert_eq!(Ipv4Addr::from(seen), Ipv4Addr::new(169, 254, 192, 1), "{to}");
    }
}

#[test]
fn a_port_that_a_program_has_of_ipv6_alone_stays_its_own() {
    let lab = Lab::start(1);
    let outside = world(&lab);
    let program = lab.hosts[0].here(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
        socket.set_only_v6(true).unwrap();
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 8080)).into()).unwrap();
        socket.listen(1).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    });
    let view = lab.view(0, 1, &[six(0, network("front", 0, &TWO[..1]))]);
    let view = v1::NetView { published: vec![port(8080, &TWO[..1]), port(8081, &TWO[..1])], ..view };
    let problems = lab.hosts[0].apply(numbered(view)).unwrap().problems;
    assert!(problems.iter().any(|problem| problem.contains("tcp port 8080 is taken on this host by")), "{problems:?}");
    lab.hosts[0].attach("t1", &[("front", "10.128.0.2")]).unwrap();
    serve(&lab.hosts[0], "t1", &format!("[{}]:80", ip6(2)), 2);
    await_port(&outside, (own(0), 8081));
    let stream = outside.here(|| TcpStream::connect_timeout(&SocketAddr::from((own(0), 8080)), DEADLINE)).unwrap();
    let (_, client) = program.accept().expect("the program takes it");
    assert_eq!(client.as_socket(), Some(stream.local_addr().unwrap()));
    // Behind the port nobody has IPv6 any more, and of IPv4 it is free.
    let view = lab.view(0, 2, &[six(0, network("front", 0, &TWO[..1]))]);
    let view = v1::NetView { published: vec![published(8080, 80, &TWO[..1])], ..view };
    assert_eq!(lab.hosts[0].apply(numbered(view)).unwrap().problems, Vec::<String>::new());
}
