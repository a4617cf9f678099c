//! Published ports: who is reached by which node, as whom, by whom, and what becomes of connections when that changes.
//!
//! Each host has one network, which the others do not: what comes in goes on to nodes with which nothing else is shared.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use rcluster_api::wire::v1;
use rcluster_netd::core::rules::elements::Element;
use rcluster_netd::kernel::netlink::Netlink;
use rcluster_netd::kernel::nft;
use socket2::{Domain, Socket, Type};

use crate::support::seen::run;
use crate::support::traffic::at_once;
use crate::support::{DEADLINE, Host, Lab, eventually, network, node_id, numbered};

const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// The hosts' networks.
const NETWORKS: [&str; 3] = ["a", "b", "c"];

/// A task with its host's index and the last octet of its address.
type Place = (&'static str, u8, u8);

const THREE: [Place; 3] = [("t1", 0, 11), ("t2", 1, 12), ("t3", 2, 13)];

fn address((_, host, last): Place) -> Ipv4Addr {
    Ipv4Addr::new(10, 128, host, last)
}

fn host(lab: &Lab, (_, host, _): Place) -> &Host {
    &lab.hosts[usize::from(host)]
}

/// TCP of every node's port to port 80 of the tasks; over UDP to their port 9.
fn port(protocol: v1::Protocol, published: u32, policy: v1::IngressPolicy) -> v1::Port {
    v1::Port {
        protocol: protocol.into(),
        target: if protocol == v1::Protocol::Udp { 9 } else { 80 },
        published,
        mode: v1::PublishMode::Ingress.into(),
        policy: policy.into(),
        ..Default::default()
    }
}

fn tcp(published: u32, policy: v1::IngressPolicy) -> v1::Port {
    port(v1::Protocol::Tcp, published, policy)
}

/// A port with the tasks behind it.
fn before(port: v1::Port, places: &[Place]) -> v1::PublishedView {
    let backend = |place: &Place| v1::BackendView {
        task_id: place.0.to_owned(),
        node_id: node_id(usize::from(place.1)),
        ip: address(*place).to_string(),
        state: v1::EndpointState::Serving.into(),
        ..Default::default()
    };
    v1::PublishedView { service_id: "web".into(), ports: vec![port], backends: places.iter().map(backend).collect() }
}

/// What a host is told: its own network with these tasks, all nodes' numbers, and the ports.
fn view(lab: &Lab, index: usize, revision: u64, places: &[Place], ports: &[v1::PublishedView]) -> v1::NetView {
    let own = places.iter().filter(|place| usize::from(place.1) == index);
    let endpoints: Vec<(&str, usize, u8)> = own.map(|(task, _, last)| (*task, index, *last)).collect();
    let third = u8::try_from(index).unwrap();
    let view = lab.view(index, revision, &[network(NETWORKS[index], third, &endpoints)]);
    numbered(v1::NetView { published: ports.to_vec(), ..view })
}

fn apply(lab: &Lab, revision: u64, places: &[Place], ports: &[v1::PublishedView]) {
    for (index, host) in lab.hosts.iter().enumerate() {
        let response = host.apply(view(lab, index, revision, places, ports)).unwrap();
        assert_eq!((response.revision, response.problems), (revision, vec![]));
    }
}

/// Three hosts with the ports and these tasks, which say who they are; and the world.
fn published(places: &[Place], ports: &[v1::PublishedView]) -> (Lab, Host) {
    let lab = Lab::start(3);
    let outside = lab.outside();
    apply(&lab, 1, places, ports);
    for place in places {
        attach(&lab, *place);
        serve(&lab, *place);
        serve_udp(&lab, *place);
    }
    (lab, outside)
}

fn attach(lab: &Lab, place: Place) {
    let ip = address(place).to_string();
    host(lab, place).attach(place.0, &[(NETWORKS[usize::from(place.1)], ip.as_str())]).unwrap();
}

/// Tells whoever connects to a task's port 80 which task it is and whom it sees, and then says again what it hears; so at the ports after it.
fn serve(lab: &Lab, place: Place) {
    for port in 80..83 {
        let listener = host(lab, place).listen(place.0, &format!("{}:{port}", address(place)));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream: TcpStream = stream.unwrap();
                thread::spawn(move || {
                    stream.write_all(&words(place, port, stream.peer_addr()?))?;
                    let mut byte = [0];
                    while stream.read(&mut byte)? == 1 {
                        stream.write_all(&byte)?;
                    }
                    Ok::<(), io::Error>(())
                });
            }
        });
    }
}

/// Answers datagrams to a task's port 9 in the same words.
fn serve_udp(lab: &Lab, place: Place) {
    let socket = host(lab, place).udp(place.0, &format!("{}:9", address(place)));
    socket.set_read_timeout(None).unwrap();
    thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
            drop(socket.send_to(&words(place, 9, from), from));
        }
    });
}

fn words((_, _, last): Place, port: u16, peer: SocketAddr) -> [u8; 6] {
    let IpAddr::V4(ip) = peer.ip() else { panic!("not IPv4") };
    let [a, b, c, d] = ip.octets();
    [last, u8::try_from(port).unwrap(), a, b, c, d]
}

/// Who answered, by its last octet, at which port, and whom it sees.
type Said = (u8, u8, Ipv4Addr);

fn understood([last, port, peer @ ..]: [u8; 6]) -> Said {
    (last, port, peer.into())
}

/// A connection from a host itself.
fn connect(from: &Host, to: (Ipv4Addr, u16)) -> io::Result<(TcpStream, Said)> {
    hear(from.here(move || TcpStream::connect_timeout(&to.into(), DEADLINE))?)
}

/// A connection from a pod.
fn connect_from(lab: &Lab, place: Place, to: (Ipv4Addr, u16)) -> io::Result<(TcpStream, Said)> {
    hear(host(lab, place).connect(place.0, &SocketAddr::from(to).to_string())?)
}

fn hear(mut stream: TcpStream) -> io::Result<(TcpStream, Said)> {
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut said = [0; 6];
    stream.read_exact(&mut said)?;
    Ok((stream, understood(said)))
}

fn goes_on(stream: &mut TcpStream) {
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

fn is_refused(from: &Host, to: (Ipv4Addr, u16)) {
    let error = at_once(from, None, &format!("{to:?}"), || connect(from, to)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to:?}: {error}");
}

/// Who answers of many connections.
fn reached(from: &Host, to: (Ipv4Addr, u16)) -> BTreeSet<u8> {
    (0..30).map(|_| connect(from, to).unwrap().1.0).collect()
}

#[test]
fn every_node_leads_to_every_backend_and_each_of_them_sees_the_client() {
    let ports: Vec<v1::PublishedView> =
        (8080..).zip(THREE).map(|(number, place)| before(tcp(number, v1::IngressPolicy::Mesh), &[place])).collect();
    let (lab, outside) = published(&THREE, &ports);
    for entry in &lab.hosts {
        for (number, place) in (8080..).zip(THREE) {
            let (mut stream, said) = connect(&outside, (entry.addr, number)).unwrap();
            assert_eq!(said, (place.2, 80, OUTSIDE), "by {} to {}", entry.addr, place.0);
            goes_on(&mut stream);
        }
    }
    // A node is a client like any other.
    for place in THREE {
        let number = 8080 + u16::from(place.1);
        let (_, said) = connect(&lab.hosts[0], (lab.hosts[1].addr, number)).unwrap();
        assert_eq!(said, (place.2, 80, lab.hosts[0].addr));
    }
    is_refused(&outside, (lab.hosts[0].addr, 8083));
}

#[test]
fn a_client_with_an_address_of_what_subnets_are_chosen_from_is_served_and_reached() {
    let ports = [before(tcp(8080, v1::IngressPolicy::Mesh), &THREE[..1]), before(tcp(8081, v1::IngressPolicy::Mesh), &THREE[1..2])];
    let (lab, outside) = published(&THREE[..2], &ports);
    for (index, host) in lab.hosts.iter().enumerate() {
        let pools = ["10.128.0.0/9", "203.0.0.0/16"].map(str::to_owned).to_vec();
        let view = v1::NetView { pools, ..view(&lab, index, 2, &THREE[..2], &ports) };
        assert_eq!(host.apply(view).unwrap().problems, Vec::<String>::new());
    }
    for (number, place) in (8080..).zip(THREE).take(2) {
        let (mut stream, said) = connect(&outside, (lab.hosts[0].addr, number)).unwrap();
        assert_eq!(said, (place.2, 80, OUTSIDE), "at {number}");
        goes_on(&mut stream);
    }
    // The host has a way there of its own, not one like netd's; where it has none but its default route, nothing of a pool is sent out.
    lab.hosts[0].here(|| {
        run("ip route replace 203.0.113.0/24 dev up0 proto static");
        run("ip route add default via 203.0.113.1 dev up0");
    });
    let _world = outside.here(|| TcpListener::bind((OUTSIDE, 80))).unwrap();
    eventually("netd knows of the host's way", || lab.hosts[0].connect("t1", "203.0.113.1:80").is_ok());
    let error = lab.hosts[0].connect("t1", "203.0.200.1:80").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
}

#[test]
fn a_client_with_an_address_of_a_link_is_answered() {
    let (lab, outside) = published(&THREE[..1], &[before(tcp(8080, v1::IngressPolicy::Mesh), &THREE[..1])]);
    outside.here(|| run("ip addr add 169.254.77.7/32 dev up0"));
    lab.hosts[0].here(|| run("ip route add 169.254.77.7/32 dev up0"));
    let (checker, entry) = (Ipv4Addr::new(169, 254, 77, 7), lab.hosts[0].addr);
    let stream = outside.here(move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((checker, 0)).into())?;
        socket.connect_timeout(&SocketAddr::from((entry, 8080)).into(), DEADLINE)?;
        Ok::<TcpStream, io::Error>(socket.into())
    });
    let (mut stream, said) = hear(stream.unwrap()).unwrap();
    assert_eq!(said, (11, 80, checker));
    goes_on(&mut stream);
    let error = lab.hosts[0].connect("t1", "169.254.77.7:80").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostUnreachable, "pods begin nothing there: {error}");
}

#[test]
fn each_policy_leads_where_it_says() {
    let two = &THREE[..2];
    let ports = [
        before(tcp(8080, v1::IngressPolicy::Mesh), two),
        before(tcp(8081, v1::IngressPolicy::Spread), two),
        before(tcp(8082, v1::IngressPolicy::Local), two),
    ];
    let (lab, outside) = published(two, &ports);
    let [first, second, third] = [0, 1, 2].map(|index: usize| lab.hosts[index].addr);
    let (one, other, both) = (BTreeSet::from([11]), BTreeSet::from([12]), BTreeSet::from([11, 12]));
    assert_eq!([first, second, third].map(|entry| reached(&outside, (entry, 8080))), [one.clone(), other.clone(), both.clone()]);
    assert_eq!([first, second, third].map(|entry| reached(&outside, (entry, 8081))), [both.clone(), both.clone(), both]);
    assert_eq!([first, second].map(|entry| reached(&outside, (entry, 8082))), [one, other.clone()]);
    is_refused(&outside, (third, 8082));

    // The last one here has left: mesh goes elsewhere, local nowhere, at once.
    lab.hosts[0].leave("t1").unwrap();
    assert_eq!(reached(&outside, (first, 8080)), other);
    is_refused(&outside, (first, 8082));
}

#[test]
fn a_port_without_backends_is_refused_from_everywhere() {
    let mut idle = before(tcp(8080, v1::IngressPolicy::Mesh), &THREE[..1]);
    idle.backends[0].state = v1::EndpointState::Routed.into();
    let (lab, outside) = published(&THREE[..1], &[idle]);
    is_refused(&outside, (lab.hosts[0].addr, 8080));
    is_refused(&outside, (lab.hosts[1].addr, 8080));
    let error = connect(&lab.hosts[0], (Ipv4Addr::LOCALHOST, 8080)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    let error = connect_from(&lab, THREE[0], (lab.hosts[0].addr, 8080)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}

#[test]
fn clients_that_are_not_allowed_are_refused() {
    let allowing = |nets: &[&str]| {
        let allow_from = nets.iter().map(|net| (*net).to_owned()).collect();
        [before(v1::Port { allow_from, ..tcp(8080, v1::IngressPolicy::Mesh) }, &THREE[1..2])]
    };
    let places = [THREE[1], ("pod", 0, 21)];
    let (lab, outside) = published(&places, &allowing(&["203.0.113.0/24", "10.90.0.103/32"]));
    let entry = (lab.hosts[0].addr, 8080);
    assert_eq!(connect(&outside, entry).unwrap().1, (12, 80, OUTSIDE));
    assert_eq!(connect(&lab.hosts[2], entry).unwrap().1, (12, 80, lab.hosts[2].addr));
    is_refused(&lab.hosts[1], entry);
    let error = connect_from(&lab, places[1], entry).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    // A part of what was allowed, and then all of it and more.
    apply(&lab, 2, &places, &allowing(&["203.0.113.128/25", "10.128.0.0/16"]));
    is_refused(&outside, entry);
    assert_eq!(connect_from(&lab, places[1], entry).unwrap().1, (12, 80, address(places[1])));
    apply(&lab, 3, &places, &allowing(&["203.0.0.0/8", "203.0.113.0/24"]));
    assert_eq!(connect(&outside, entry).unwrap().1, (12, 80, OUTSIDE));
}

#[test]
fn a_host_reaches_every_port_under_its_own_addresses() {
    let ports: Vec<v1::PublishedView> =
        (8080..).zip(THREE).map(|(number, place)| before(tcp(number, v1::IngressPolicy::Mesh), &[place])).collect();
    let (lab, _outside) = published(&THREE, &ports);
    for (own, host) in (1..).map(|number| Ipv4Addr::new(169, 254, 192, number)).zip(&lab.hosts) {
        for (number, place) in (8080..).zip(THREE) {
            for at in [Ipv4Addr::LOCALHOST, host.addr] {
                let (mut stream, said) = connect(host, (at, number)).unwrap();
                assert_eq!(said, (place.2, 80, own), "{} to {at}, {}", host.addr, place.0);
                goes_on(&mut stream);
            }
        }
    }
}

#[test]
fn a_hosts_own_stream_to_a_backend_on_a_dead_node_is_reset() {
    let port = before(tcp(8080, v1::IngressPolicy::Mesh), &THREE[1..2]);
    let (lab, _outside) = published(&THREE[1..2], std::slice::from_ref(&port));
    let (mut stream, _) = connect(&lab.hosts[0], (Ipv4Addr::LOCALHOST, 8080)).unwrap();
    goes_on(&mut stream);
    lab.hosts[1].here(|| run("ip link set up0 down"));
    let mut dead = port;
    dead.backends[0].state = v1::EndpointState::Dead.into();
    lab.hosts[0].apply(view(&lab, 0, 2, &THREE[1..2], &[dead])).unwrap();
    stream.write_all(b"x").unwrap();
    let error = stream.read_exact(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
}

#[test]
fn a_port_that_a_program_of_the_host_has_stays_its_own_and_is_told_of() {
    let ports = [before(tcp(8080, v1::IngressPolicy::Mesh), &THREE[1..2])];
    let lab = Lab::start(3);
    let outside = lab.outside();
    let entry = &lab.hosts[0];
    let program = entry.here(|| TcpListener::bind("0.0.0.0:8080")).unwrap();
    for (index, host) in lab.hosts.iter().enumerate() {
        let problems = host.apply(view(&lab, index, 1, &THREE, &ports)).unwrap().problems;
        assert_eq!(problems.len(), usize::from(index == 0), "{problems:?}");
    }
    let by = format!("(pid {})", std::process::id());
    let status = entry.status().unwrap();
    let problem = &status.problems[0];
    assert!(problem.starts_with("tcp port 8080 is taken on this host by ") && problem.contains(&by), "{problem}");
    assert!(problem.ends_with("; service web is not published here"), "{problem}");
    let held = status.network.unwrap().held_ports;
    assert_eq!(held.iter().map(|held| (held.protocol(), held.port)).collect::<Vec<_>>(), [(v1::Protocol::Tcp, 8080)]);
    assert!(held[0].by.ends_with(&by), "{}", held[0].by);

    attach(&lab, THREE[1]);
    serve(&lab, THREE[1]);
    let to = (entry.addr, 8080);
    let _client = outside.here(move || TcpStream::connect_timeout(&to.into(), DEADLINE)).unwrap();
    assert_eq!(program.accept().unwrap().1.ip(), IpAddr::V4(OUTSIDE));
    assert_eq!(connect(&outside, (lab.hosts[2].addr, 8080)).unwrap().1, (12, 80, OUTSIDE));

    // Somebody who looks for a place for the port is to know also while it is not published.
    let mut closed = view(&lab, 0, 2, &THREE, &[]);
    assert_eq!(entry.apply(closed.clone()).unwrap().problems, Vec::<String>::new());
    assert_eq!(entry.status().unwrap().network.unwrap().held_ports, held);
    (closed.revision, closed.published) = (3, ports.to_vec());
    assert_eq!(entry.apply(closed).unwrap().problems.len(), 1);

    drop(program);
    eventually("the port is published once it is free", || entry.status().unwrap().problems.is_empty());
    assert_eq!(connect(&outside, to).unwrap().1, (12, 80, OUTSIDE));
    let error = entry.here(|| TcpListener::bind("0.0.0.0:8080")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse, "netd keeps it from others");
}

/// Asks once over UDP, from a host itself.
fn ask(from: &Host, own: Ipv4Addr, to: (Ipv4Addr, u16)) -> (UdpSocket, io::Result<Said>) {
    let socket = from.here(move || UdpSocket::bind((own, 0))).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.connect(SocketAddr::from(to)).unwrap();
    let said = ask_again(&socket);
    (socket, said)
}

fn ask_again(socket: &UdpSocket) -> io::Result<Said> {
    let mut said = [0; 6];
    socket.send(b"?")?;
    socket.recv(&mut said)?;
    Ok(understood(said))
}

#[test]
fn datagrams_are_led_and_answered_like_connections() {
    let udp = |number| port(v1::Protocol::Udp, number, v1::IngressPolicy::Mesh);
    let ports: Vec<v1::PublishedView> = (9000..).zip(THREE).map(|(number, place)| before(udp(number), &[place])).collect();
    let (lab, outside) = published(&THREE, &ports);
    for (own, entry) in (1..).map(|number| Ipv4Addr::new(169, 254, 192, number)).zip(&lab.hosts) {
        for (number, place) in (9000..).zip(THREE) {
            let (socket, said) = ask(&outside, OUTSIDE, (entry.addr, number));
            assert_eq!(said.unwrap(), (place.2, 9, OUTSIDE), "by {} to {}", entry.addr, place.0);
            assert_eq!(ask_again(&socket).unwrap(), (place.2, 9, OUTSIDE));
            for at in [Ipv4Addr::LOCALHOST, entry.addr] {
                let (socket, said) = ask(entry, at, (at, number));
                assert_eq!(said.unwrap(), (place.2, 9, own), "{} to {at}, {}", entry.addr, place.0);
                assert_eq!(ask_again(&socket).unwrap(), (place.2, 9, own));
            }
        }
    }
    // To a second address of the host: who asks there hears nobody else.
    lab.hosts[0].here(|| run("ip addr add 10.90.0.201/32 dev up0"));
    let (_socket, said) = ask(&lab.hosts[0], lab.hosts[0].addr, (Ipv4Addr::new(10, 90, 0, 201), 9000));
    assert_eq!(said.unwrap().0, THREE[0].2);
    // A backend that leaves: what is sent goes to the other one, as soon as connections have been looked through.
    let two = before(udp(9000), &THREE[1..]);
    apply(&lab, 2, &THREE, std::slice::from_ref(&two));
    let (socket, said) = ask(&outside, OUTSIDE, (lab.hosts[0].addr, 9000));
    let first = said.unwrap().0;
    let mut left = two;
    left.backends[usize::from(first - 12)].state = v1::EndpointState::Leaving.into();
    apply(&lab, 3, &THREE, &[left]);
    eventually("the other one answers", || ask_again(&socket).is_ok_and(|said| said == (12 + 13 - first, 9, OUTSIDE)));
}

#[test]
fn a_client_that_sent_before_the_port_was_open_is_answered_once_it_is() {
    let (lab, outside) = published(&THREE, &[]);
    let entry = SocketAddr::from((lab.hosts[0].addr, 9000));
    let socket = outside.here(|| UdpSocket::bind((OUTSIDE, 0))).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket.connect(entry).unwrap();
    assert_eq!(ask_again(&socket).unwrap_err().kind(), ErrorKind::ConnectionRefused, "nobody is there");
    // The host goes on tracking it as it began, as long as it is sent.
    apply(&lab, 2, &THREE, &[before(port(v1::Protocol::Udp, 9000, v1::IngressPolicy::Mesh), &THREE[..1])]);
    eventually("it is answered by the backend", || ask_again(&socket).is_ok_and(|said| said == (11, 9, OUTSIDE)));
    apply(&lab, 3, &THREE, &[]);
    eventually("it is refused", || ask_again(&socket).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused));
}

#[test]
fn a_client_that_comes_by_two_nodes_from_one_port_has_two_connections() {
    let (lab, outside) = published(&THREE[1..2], &[before(tcp(8080, v1::IngressPolicy::Mesh), &THREE[1..2])]);
    let by = |entry: Ipv4Addr| {
        let stream = outside.here(move || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((OUTSIDE, 40_000)).into())?;
            socket.connect_timeout(&SocketAddr::from((entry, 8080)).into(), DEADLINE)?;
            Ok::<TcpStream, io::Error>(socket.into())
        });
        hear(stream.unwrap()).unwrap()
    };
    // By its own node, too.
    let mut streams: Vec<TcpStream> = lab
        .hosts
        .iter()
        .map(|entry| {
            let (stream, said) = by(entry.addr);
            assert_eq!(said, (12, 80, OUTSIDE), "by {}", entry.addr);
            stream
        })
        .collect();
    for _ in 0..3 {
        streams.iter_mut().for_each(goes_on);
    }
    // What is gone is forgotten of each of them.
    apply(&lab, 2, &[], &[before(tcp(8080, v1::IngressPolicy::Mesh), &[])]);
    for stream in &mut streams {
        let error = stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
}

#[test]
fn a_range_leads_port_by_port() {
    let range = v1::Port { count: 3, ..tcp(8080, v1::IngressPolicy::Mesh) };
    let (lab, outside) = published(&THREE[2..], &[before(range, &THREE[2..])]);
    for (number, port) in (8080..8083).zip(80..) {
        assert_eq!(connect(&outside, (lab.hosts[0].addr, number)).unwrap().1, (13, port, OUTSIDE));
        assert_eq!(connect(&lab.hosts[0], (Ipv4Addr::LOCALHOST, number)).unwrap().1.1, port);
    }
    is_refused(&outside, (lab.hosts[0].addr, 8083));
}

#[test]
fn a_port_of_the_hosts_alone_is_open_where_a_task_is() {
    let lab = Lab::start(3);
    let outside = lab.outside();
    let own = v1::Port { mode: v1::PublishMode::Host.into(), policy: 0, ..tcp(8080, v1::IngressPolicy::Mesh) };
    for (index, host) in lab.hosts.iter().enumerate() {
        let ports = if index == 1 { vec![before(own.clone(), &THREE[1..2])] } else { Vec::new() };
        assert_eq!(host.apply(view(&lab, index, 1, &THREE, &ports)).unwrap().problems, Vec::<String>::new());
    }
    attach(&lab, THREE[1]);
    serve(&lab, THREE[1]);
    assert_eq!(connect(&outside, (lab.hosts[1].addr, 8080)).unwrap().1, (12, 80, OUTSIDE));
    is_refused(&outside, (lab.hosts[0].addr, 8080));
}

#[test]
fn pods_use_nodes_ports_and_nothing_else_of_nodes() {
    let pod: Place = ("pod", 0, 21);
    let places = [THREE[0], THREE[1], pod];
    let ports = [before(tcp(8080, v1::IngressPolicy::Mesh), &THREE[1..2]), before(tcp(8081, v1::IngressPolicy::Mesh), &THREE[..1])];
    let (lab, _outside) = published(&places, &ports);
    for node in &lab.hosts {
        assert_eq!(connect_from(&lab, pod, (node.addr, 8080)).unwrap().1, (12, 80, address(pod)), "another node's, by {}", node.addr);
        assert_eq!(connect_from(&lab, pod, (node.addr, 8081)).unwrap().1, (11, 80, address(pod)), "one here, by {}", node.addr);
    }
    // What comes back to its own pod comes from the router.
    assert_eq!(connect_from(&lab, THREE[0], (lab.hosts[0].addr, 8081)).unwrap().1, (11, 80, Ipv4Addr::new(169, 254, 53, 53)));
    let _listener = lab.hosts[1].here(|| TcpListener::bind("0.0.0.0:22")).unwrap();
    let refused = |port: u16| {
        let error = connect_from(&lab, pod, (lab.hosts[1].addr, port)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{port}: {error}");
    };
    refused(22);
    let mut internal = view(&lab, 0, 2, &places, &ports);
    internal.networks[0].internal = true;
    assert_eq!(lab.hosts[0].apply(internal).unwrap().problems, Vec::<String>::new());
    refused(8080);
}

#[test]
fn a_stream_goes_on_when_netd_is_killed_on_its_way_and_when_its_port_is_published_no_more() {
    let ports = [before(tcp(8080, v1::IngressPolicy::Mesh), &THREE[1..2])];
    let (mut lab, outside) = published(&THREE[1..2], &ports);
    let entry = (lab.hosts[0].addr, 8080);
    let mut stream = connect(&outside, entry).unwrap().0;
    for index in [0, 1] {
        lab.hosts[index].kill();
        goes_on(&mut stream);
        assert_eq!(connect(&outside, entry).unwrap().1, (12, 80, OUTSIDE), "nor is anything new kept waiting");
        lab.hosts[index].start();
        let status = lab.hosts[index].status().unwrap();
        assert_eq!((status.repairs, status.problems), (0, vec![]));
        goes_on(&mut stream);
    }
    assert_eq!(connect(&lab.hosts[0], (Ipv4Addr::LOCALHOST, 8080)).unwrap().1.0, 12, "the host's own way is back too");
    apply(&lab, 2, &THREE[1..2], &[]);
    is_refused(&outside, entry);
    goes_on(&mut stream);
    eventually("the port is free for others", || lab.hosts[0].here(|| TcpListener::bind("0.0.0.0:8080").is_ok()));
}

#[test]
fn what_someone_breaks_on_the_way_is_mended() {
    let ports = [before(tcp(8080, v1::IngressPolicy::Mesh), &THREE[1..2])];
    let (lab, outside) = published(&THREE[1..2], &ports);
    let entry = (lab.hosts[0].addr, 8080);
    let breaks: [fn(); 7] = [
        || run("ip rule del pref 1000"),
        || run("ip rule del pref 32766"),
        || run("ip rule add pref 50 from all blackhole"),
        || run("ip route flush table 100002"),
        || run("ip link del ing"),
        || run("ip addr flush dev ing"),
        || {
            let mut netlink = Netlink::open(nft::NETLINK_NETFILTER).unwrap();
            let (_, elements) = nft::observe(&mut netlink).unwrap();
            for (key, data) in elements {
                nft::change(&mut netlink, &[nft::Change::remove(&Element { key, data })]).unwrap();
            }
        },
    ];
    for (number, broken) in breaks.into_iter().enumerate() {
        let before = lab.hosts[0].status().unwrap().repairs;
        lab.hosts[0].inside("router", broken);
        eventually("the break is seen", || lab.hosts[0].status().unwrap().repairs > before);
        // Given again it is answered after a look.
        apply(&lab, 1, &THREE[1..2], &ports);
        assert_eq!(connect(&outside, entry).unwrap().1, (12, 80, OUTSIDE), "break {number}");
        let repairs = lab.hosts[0].status().unwrap().repairs;
        apply(&lab, 1, &THREE[1..2], &ports);
        assert_eq!(lab.hosts[0].status().unwrap().repairs, repairs, "break {number}, a second time");
    }
}
